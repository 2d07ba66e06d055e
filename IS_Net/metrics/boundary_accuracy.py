"""Mean boundary accuracy."""

from __future__ import annotations

import numpy as np

from IS_Net.images import binarize
from IS_Net.metrics.iou import Mask
from IS_Net.metrics.pair import EDGE_STEPS, Metric, Pair, count_levels


def boundary_accuracy(pred: Mask, gt: Mask) -> float:
    """Return the mean boundary accuracy of one mask (mBA; Cheng et al., CascadePSP, CVPR 2020).

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: the background's share of the bands, about 1/2. Empty ground truths and full ones have no edge: the
      pixel accuracy of the whole image.

    See :class:`BoundaryAccuracy` for the definition.

    Args:
        pred: (H, W) uint8, binarized at > 128, or bool; an array, or a tensor on the CPU.
        gt: (H, W), of the same kinds.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is wrong.
    """
    return BoundaryAccuracy().measure(Pair(pred, gt))


class BoundaryAccuracy(Metric):
    """Mean boundary accuracy (mBA; Cheng et al., CascadePSP, CVPR 2020).

    The share of correct pixels in a band around the edge of the ground truth, averaged over five bands. The radii grow
    from 1 pixel toward (H + W) / 300 pixels. The paper leaves the steps open; this follows the published code, with
    which the figures of refinement papers are made: radii ``1 + int(k / 5 * ((H + W) / 300 - 1))`` for k = 0..4, and
    bands drawn with OpenCV's elliptical kernels (:attr:`IS_Net.metrics.GroundTruth.edge_bands`).

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: the background's share of the bands, about 1/2.
    - Empty ground truths and full ones have no edge: the pixel accuracy of the whole image. (The published code divides
      by zero.)
    """

    def measure(self, pair: Pair) -> float:
        """Return the mean boundary accuracy of one image, in [0, 1]."""
        bands, wrong = pair.gt.edge_bands, binarize(pair.pred) ^ pair.gt.mask
        # a band contains the smaller ones
        sizes, errors = (count_levels(bands, mask)[:EDGE_STEPS].cumsum() for mask in (None, wrong))
        if not sizes[0]:
            return 1 - np.count_nonzero(wrong) / wrong.size
        return float(sum((sizes - errors) / sizes) / EDGE_STEPS)

    def compute(self) -> dict[str, float]:
        """Return ``{"mba": ...}`` in [0, 1] over all images; nan without images."""
        return {"mba": float(self.mean())}
