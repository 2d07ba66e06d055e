"""Mean absolute error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from IS_Net.images import MASK_THRESHOLD
from IS_Net.metrics.pair import LEVELS, GroundTruth, Metric, Pair, check_same_size


def device_mae(pred: Tensor, gt: Tensor) -> Tensor:
    """Return the mean absolute error of a map (uint8, any shape), float64 of shape (), and fetch nothing."""
    difference = torch.where(gt > MASK_THRESHOLD, 255 - pred, pred)
    return difference.sum(dtype=torch.int64).double() / (255 * difference.numel())


class MAE(Metric):
    """Mean absolute error of a map, as saliency detection and DIS use it (Perazzi et al., CVPR 2012).

    Maps are read as they would be saved, in steps of 1/255, without any threshold or stretching; the ground truth is
    binarised at > 128. The result is the mean over the images of each image's mean over its pixels. An empty or a
    full ground truth, and an empty or constant map, are nothing special.
    """

    def measure(self, pair: Pair) -> float:
        """Return the mean absolute error of one image, in [0, 1]."""
        level = np.arange(LEVELS)
        outside, inside = pair.levels
        return int(outside @ level + inside @ level[::-1]) / (255 * pair.pred.size)

    def update(self, pred: np.ndarray | Tensor, gt: np.ndarray | Tensor | GroundTruth) -> None:
        """Add one image.

        Args:
            pred: (H, W) uint8, an array or a tensor on any device. No result is fetched from the device here.
            gt: (H, W) uint8, likewise, on the same device.

        Raises:
            ValueError: If the sizes differ.
        """
        if not isinstance(pred, Tensor) or pred.device.type == "cpu":
            super().update(pred, gt)
            return
        check_same_size(pred, gt)
        self.add(device_mae(pred, gt))

    def compute(self) -> dict[str, float]:
        """Return ``{"mae": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"mae": float(self.mean())}
