"""Weighted F-measure."""

from __future__ import annotations

import cv2
import numpy as np

from IS_Net.metrics.pair import REACH, Metric, Pair

_GAUSSIAN = cv2.getGaussianKernel(2 * REACH + 1, 5)

# Weight of a false positive by its squared distance from the object: 1 near the object, 2 far away, 0 on the object
# itself. At 256 pixels, the end of the table, the weight is 2 in double precision.
_WEIGHTS = 2 - 0.5 ** (np.sqrt(np.arange(2**16)) / 5)
_WEIGHTS[0] = 0


class WeightedFMeasure(Metric):
    """Weighted F-measure (Margolin et al., CVPR 2014; beta = 1).

    A false negative counts less where its surroundings are correct (a Gaussian of 7 x 7 pixels, sigma 5). A false
    positive counts more the farther it is from the object.

    - Thresholds: none for the map; the ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: 0 if the object does not touch the image border. The definition has no errors outside the image, so a
      thin object along the border scores above 0: 0.432 for 3 columns at the border of 1024 x 1024 pixels, and 0.988
      for an image of a single pixel.
    - Empty ground truths: 0 for every map.

    Each background pixel near the object takes the error of the nearest object pixel. Ties go to the lowest column,
    then to the lowest row, as in scipy's distance transform.
    """

    def measure(self, pair: Pair) -> float:
        """Return the weighted F-measure of one image, in [0, 1]."""
        gt = pair.gt
        if not gt.area:
            return 0.0
        missed = ((255 - pair.pred) * gt.mask).astype(np.float64)
        spread = missed.copy()
        spread.ravel()[gt.band.pixels] = missed.ravel()[gt.band.nearest]
        spread = cv2.sepFilter2D(spread, cv2.CV_64F, _GAUSSIAN, _GAUSSIAN, borderType=cv2.BORDER_CONSTANT)
        misses = np.minimum(missed, spread).sum() / 255
        # not a dot product: the order in which BLAS sums depends on its threads
        false_alarms = (pair.pred * _WEIGHTS[gt.squared_distance]).sum() / 255
        hits = max(gt.area - misses, 0.0)
        # harmonic mean of precision, hits / (hits + false alarms), and recall, hits / area
        return 2 * hits / (gt.area + hits + false_alarms)

    def compute(self) -> dict[str, float]:
        """Return ``{"weighted_f": ...}`` in [0, 1] over all images; nan without images."""
        return {"weighted_f": float(self.mean())}
