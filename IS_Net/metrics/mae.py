"""Mean absolute error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from IS_Net.images import MASK_THRESHOLD
from IS_Net.metrics.pair import LEVELS, GroundTruth, Metric, Pair, device_planes


def device_mae(pred: Tensor, gt: Tensor) -> Tensor:
    """Return the mean absolute error of a map, as :class:`MAE` tells, fetching nothing from the device.

    Args:
        pred: (H, W) uint8 or bool.
        gt: Likewise, on the same device.

    Returns:
        float64 of shape ().

    Raises:
        ValueError: If the sizes or devices differ, or a shape or dtype is another.
    """
    pred, gt = device_planes(pred, gt)
    difference = torch.where(gt > MASK_THRESHOLD, 255 - pred, pred)
    return difference.sum(dtype=torch.int64).double() / (255 * difference.numel())


class MAE(Metric):
    """Mean absolute error of a map, as saliency detection and DIS use it (Perazzi et al., CVPR 2012).

    The result is the mean over the images of each image's mean over its pixels.

    - Thresholds: none, maps are read as they would be saved, in steps of 1/255; the ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: the object's share of the image.
    - Empty ground truths: the map's mean.
    """

    def measure(self, pair: Pair) -> float:
        """Return the mean absolute error of one image, in [0, 1]."""
        level = np.arange(LEVELS)
        outside, inside = pair.levels
        return int(outside @ level + inside @ level[::-1]) / (255 * pair.pred.size)

    def update(self, pred: np.ndarray | Tensor, gt: np.ndarray | Tensor | GroundTruth) -> None:
        """Add one image.

        Args:
            pred: (H, W) uint8 or bool, an array or a tensor on any device. No result is fetched from the device here.
            gt: Likewise, on the same device.

        Raises:
            ValueError: If the sizes or devices differ, or a shape or dtype is another.
        """
        if not isinstance(pred, Tensor) or pred.device.type == "cpu":
            super().update(pred, gt)
            return
        self.add(device_mae(pred, gt))

    def compute(self) -> dict[str, float]:
        """Return ``{"mae": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"mae": float(self.mean())}
