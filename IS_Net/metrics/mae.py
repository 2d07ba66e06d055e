"""Mean absolute error."""

from __future__ import annotations

import torch
from torch import Tensor

from IS_Net.images import MASK_THRESHOLD


class MAE:
    """Mean absolute error of a map, as saliency detection and DIS use it (Perazzi et al., CVPR 2012).

    Maps are read as they would be saved, in steps of 1/255, without any stretching; the ground truth is
    binarised at > 128. The result is the mean over the images of each image's mean over its pixels.
    """

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._images = 0

    def update(self, pred: Tensor, gt: Tensor) -> None:
        """Add one image.

        Args:
            pred: (H, W) uint8, on any device. No result is fetched from the device here.
            gt: (H, W) uint8, on the same device.
        """
        difference = torch.where(gt > MASK_THRESHOLD, 255 - pred, pred)
        self._sum = self._sum + difference.sum(dtype=torch.int64).double() / (255 * difference.numel())
        self._images += 1

    def compute(self) -> dict[str, float]:
        """Return ``{"mae": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"mae": float(self._sum) / self._images if self._images else float("nan")}
