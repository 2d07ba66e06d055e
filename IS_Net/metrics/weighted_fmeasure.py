"""Weighted F-measure."""

from __future__ import annotations

import cv2
import numpy as np

from IS_Net.metrics.pair import REACH, Metric, Pair

_GAUSSIAN = cv2.getGaussianKernel(2 * REACH + 1, 5)

# By the squared distance from the object: what a false alarm there weighs, 1 close to the object and 2 far off; and
# nothing on the object itself. Beyond the table's end, at 256 pixels, it is 2 as exactly as a double can say.
_WEIGHTS = 2 - 0.5 ** (np.sqrt(np.arange(2**16)) / 5)
_WEIGHTS[0] = 0


class WeightedFMeasure(Metric):
    """Weighted F-measure (Margolin et al., CVPR 2014; beta = 1).

    A missed part of the object is forgiven in part where what surrounds it was found (a Gaussian of 7 x 7, sigma 5),
    a false alarm weighs the more the farther it is from the object.

    - Thresholds: none, maps are taken as they are; the ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: 0 where the object keeps off the image's border. Outside of the image there is no error, and by the
      definition that is forgiving: an object that lies along the border gets more the thinner it is, 0.432 for 3
      columns at the border of 1024 x 1024, and 0.988 where a single pixel is all of the image.
    - Empty ground truths: 0 whatever the map.

    Around the object each pixel of the background takes over the error of the object's pixel nearest to it. Where
    several are at the same distance, that of the lowest column is taken, and in it that of the lowest row:
    scipy's distance transform breaks ties in this way too.
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
        # no dot product: BLAS sums in an order that depends on its threads
        false_alarms = (pair.pred * _WEIGHTS[gt.squared_distance]).sum() / 255
        hits = max(gt.area - misses, 0.0)
        # the harmonic mean of precision, hits / (hits + false alarms), and recall, hits / area
        return 2 * hits / (gt.area + hits + false_alarms)

    def compute(self) -> dict[str, float]:
        """Return ``{"weighted_f": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"weighted_f": float(self.mean())}
