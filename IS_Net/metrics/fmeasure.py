"""F-measure over all thresholds: maximum, mean and adaptive, in both definitions that are in use."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from IS_Net.images import MASK_THRESHOLD
from IS_Net.metrics.pair import LEVELS, GroundTruth, Metric, Pair, device_planes

BETA2 = 0.3
KINDS = ("max", "mean", "adaptive")


def _f(precision: Tensor, recall: Tensor) -> Tensor:
    top = (1 + BETA2) * precision * recall
    return top / torch.where(top == 0, 1, BETA2 * precision + recall)


def device_levels(pred: Tensor, gt: Tensor) -> Tensor:
    """Count pixels outside and inside of the object by the map's level, fetching nothing from the device.

    Args:
        pred: (H, W) uint8 or bool.
        gt: Likewise, on the same device.

    Returns:
        (2, 256) float64.

    Raises:
        ValueError: If the sizes or devices differ, or a shape or dtype is another.
    """
    pred, gt = device_planes(pred, gt)
    # One histogram of 512 bins counts the map's levels outside and inside of the object at once. torch.histc needs no
    # look at the data from the host, which torch.bincount does; doubles count any image exactly.
    found = gt > MASK_THRESHOLD
    levels = (pred.to(torch.int16) + found.to(torch.int16) * LEVELS).flatten().double()
    return torch.histc(levels, bins=2 * LEVELS, min=0, max=2 * LEVELS).view(2, LEVELS)


def f_curves(levels: Tensor) -> Tensor:
    """Return one image's curves, as :class:`FMeasure` tells, on the counts' device and fetching nothing from it.

    Args:
        levels: (2, 256) float64: pixels outside and inside of the object, by the map's level.

    Returns:
        (3, 257) float64 in [0, 1]: F, precision and recall at the thresholds 0..255, and at the adaptive one.
    """
    false_positive, true_positive = levels.flip(1).cumsum(1).flip(1)
    precision = true_positive / (true_positive + false_positive).clamp(min=1)
    recall = true_positive / true_positive[0].clamp(min=1)
    curves = torch.stack((_f(precision, recall), precision, recall))
    # whole numbers in doubles, so that their ratio is rounded up exactly
    per_level = levels.sum(0)
    twice_mean = 2 * (per_level * torch.arange(LEVELS, device=levels.device)).sum() / per_level.sum()
    adaptive = twice_mean.ceil().clamp(max=LEVELS - 1).long().view(1)
    return torch.cat((curves, curves.index_select(1, adaptive)), dim=1)


class FMeasure(Metric):
    """F-measure (Achanta et al., CVPR 2009; beta squared = 0.3) over the 256 thresholds of a uint8 map.

    - Thresholds: t in 0..255, a pixel is found where the map is >= t; and an adaptive one, twice the map's mean, at
      most 255. The ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: 0 at all thresholds but 0, at which all of the image is found. The adaptive one is 0, too. Where
      nothing is found precision is 0, and where both precision and recall are 0 so is F.
    - Empty ground truths: 0 whatever the map, as recall is 0.

    Two definitions over a data set are in use, and differ by up to a point:

    - ``max_f_mean_curve``: F of each image at each threshold, averaged over the images, then the maximum.
    - ``max_f_mean_pr``: precision and recall averaged over the images at each threshold, F from these averages,
      then the maximum (the published IS-Net and DIS-SAM tables).

    ``mean_f_*`` is the mean over the thresholds instead of the maximum, ``adaptive_f_*`` is taken at each image's
    adaptive threshold.

    Args:
        kinds: Which of ``max``, ``mean`` and ``adaptive`` :meth:`compute` gives.
    """

    def __init__(self, kinds: Iterable[str] = ("max",)) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"unknown kinds of F-measure {sorted(unknown)}; there are {', '.join(KINDS)}")

    def measure(self, pair: Pair) -> np.ndarray:
        """Return F, precision and recall of one image, (3, 257) float64; see :func:`f_curves`."""
        return f_curves(torch.from_numpy(pair.levels).double()).numpy()

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
        self.add(f_curves(device_levels(pred, gt)))

    def _means(self) -> Tensor:
        """Return F, precision and recall over all images, (3, 257) on the CPU."""
        if not self._images:
            return torch.full((3, LEVELS + 1), torch.nan, dtype=torch.float64)
        return torch.as_tensor(self.mean()).cpu()

    def curves(self) -> dict[str, np.ndarray]:
        """Return ``f``, ``precision`` and ``recall`` at the thresholds 0..255, means over the images, (256,) each.

        An image counts as precision 0 at the thresholds at which nothing is found in it.
        """
        return dict(zip(("f", "precision", "recall"), self._means()[:, :LEVELS].numpy(), strict=True))

    def compute(self) -> dict[str, float]:
        """Return ``{"<kind>_f_mean_curve": ..., "<kind>_f_mean_pr": ...}`` in [0, 1]; nan where there was no image."""
        f, precision, recall = self._means()
        figures = {}
        for kind in self.kinds:
            for name, curve in (("mean_curve", f), ("mean_pr", _f(precision, recall))):
                every, adaptive = curve[:LEVELS], curve[LEVELS]
                figure = {"max": every.max(), "mean": every.mean(), "adaptive": adaptive}[kind]
                figures[f"{kind}_f_{name}"] = figure.item()
        return figures
