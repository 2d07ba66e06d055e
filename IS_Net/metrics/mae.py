"""Mean absolute error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from IS_Net.images import MASK_THRESHOLD
from IS_Net.metrics.pair import LEVELS, GroundTruth, Metric, Pair, device_planes


def device_mae(pred: Tensor, gt: Tensor) -> Tensor:
    """Return the mean absolute error of a map without a device-to-host copy; see :class:`MAE`.

    Args:
        pred: (H, W) uint8 or bool.
        gt: (H, W) uint8 or bool, on the same device.

    Returns:
        float64 of shape (), in [0, 1].

    Raises:
        ValueError: If the sizes or devices differ, or a shape or dtype is wrong.
    """
    pred, gt = device_planes(pred, gt)
    difference = torch.where(gt > MASK_THRESHOLD, 255 - pred, pred)
    return difference.sum(dtype=torch.int64).double() / (255 * difference.numel())


class MAE(Metric):
    """Mean absolute error of a map, as in saliency detection and DIS (Perazzi et al., CVPR 2012).

    The result is the mean over the images of the mean over each image's pixels.

    - Thresholds: none for the map, which has steps of 1/255; the ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: the object's share of the image.
    - Empty ground truths: the mean of the map.
    """

    def measure(self, pair: Pair) -> float:
        """Return the mean absolute error of one image, in [0, 1]."""
        level = np.arange(LEVELS)
        outside, inside = pair.levels
        return int(outside @ level + inside @ level[::-1]) / (255 * pair.pred.size)

    def update(self, pred: np.ndarray | Tensor, gt: np.ndarray | Tensor | GroundTruth) -> None:
        """Add one image.

        Args:
            pred: (H, W) uint8 or bool, an array or a tensor on any device. Results stay on the device.
            gt: (H, W) uint8 or bool, on the same device.

        Raises:
            ValueError: If the sizes or devices differ, or a shape or dtype is wrong.
        """
        if not isinstance(pred, Tensor) or pred.device.type == "cpu":
            super().update(pred, gt)
            return
        self.add(device_mae(pred, gt))

    def compute(self) -> dict[str, float]:
        """Return ``{"mae": ...}`` in [0, 1] over all images; nan without images."""
        return {"mae": float(self.mean())}
