"""F-measure over all thresholds, and its maximum in both definitions that are in use."""

from __future__ import annotations

import torch
from torch import Tensor

from IS_Net.images import MASK_THRESHOLD

LEVELS = 256


class FMeasure:
    """Maximal F-measure (Achanta et al., CVPR 2009; beta squared = 0.3) over the 256 thresholds of a uint8 map.

    A pixel is found at threshold t where the map is >= t. Maps are not stretched; the ground truth is binarised
    at > 128. Where nothing is found precision is 0, where the ground truth is empty recall is 0, and where both
    precision and recall are 0 so is F.

    Two definitions of the maximum over a data set are in use, and differ by up to a point:

    - ``max_f_mean_curve``: F of each image at each threshold, averaged over the images, then the maximum.
    - ``max_f_mean_pr``: precision and recall averaged over the images at each threshold, F from these averages,
      then the maximum (the published IS-Net and DIS-SAM tables).
    """

    beta2 = 0.3

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (3, 256): F, precision and recall, summed over the images
        self._images = 0

    def update(self, pred: Tensor, gt: Tensor) -> None:
        """Add one image.

        Args:
            pred: (H, W) uint8, on any device. No result is fetched from the device here.
            gt: (H, W) uint8, on the same device.
        """
        found = gt > MASK_THRESHOLD
        # One histogram of 512 bins counts the map's levels outside and inside of the object at once. torch.histc
        # needs no look at the data from the host, which torch.bincount does; doubles count any image exactly.
        levels = (pred.to(torch.int16) + found.to(torch.int16) * LEVELS).flatten().double()
        counts = torch.histc(levels, bins=2 * LEVELS, min=0, max=2 * LEVELS)
        false_positive, true_positive = counts.view(2, LEVELS).flip(1).cumsum(1).flip(1)
        precision = true_positive / (true_positive + false_positive).clamp(min=1)
        recall = true_positive / true_positive[0].clamp(min=1)
        curves = torch.stack((self._f(precision, recall), precision, recall))
        self._sums = curves if self._sums is None else self._sums + curves
        self._images += 1

    def _f(self, precision: Tensor, recall: Tensor) -> Tensor:
        top = (1 + self.beta2) * precision * recall
        return top / torch.where(top == 0, 1, self.beta2 * precision + recall)

    def compute(self) -> dict[str, float]:
        """Return ``{"max_f_mean_curve": ..., "max_f_mean_pr": ...}`` in [0, 1]; nan where there was no image."""
        if self._sums is None:
            return {"max_f_mean_curve": float("nan"), "max_f_mean_pr": float("nan")}
        f, precision, recall = self._sums.cpu() / self._images
        return {
            "max_f_mean_curve": f.max().item(),
            "max_f_mean_pr": self._f(precision, recall).max().item(),
        }
