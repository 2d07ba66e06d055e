"""F-measure over all thresholds: maximum, mean and adaptive, in both definitions that papers use."""

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
    """Count the pixels outside and inside the object at each value of the map, without a device-to-host copy.

    Args:
        pred: (H, W) uint8 or bool.
        gt: (H, W) uint8 or bool, on the same device.

    Returns:
        (2, 256) float64.

    Raises:
        ValueError: If the sizes or devices differ, or a shape or dtype is wrong.
    """
    pred, gt = device_planes(pred, gt)
    # One histogram with 512 bins counts both sides at once. torch.histc runs without a synchronization, which
    # torch.bincount needs; float64 counts the pixels of any image exactly.
    found = gt > MASK_THRESHOLD
    levels = (pred.to(torch.int16) + found.to(torch.int16) * LEVELS).flatten().double()
    return torch.histc(levels, bins=2 * LEVELS, min=0, max=2 * LEVELS).view(2, LEVELS)


def f_curves(levels: Tensor) -> Tensor:
    """Return the curves of one image on the device of its counts, without a device-to-host copy.

    Args:
        levels: (2, 256) float64: number of pixels outside and inside the object at each value of the map.

    Returns:
        (3, 257) float64 in [0, 1]: F, precision and recall at the thresholds 0..255 and at the adaptive threshold.
    """
    false_positive, true_positive = levels.flip(1).cumsum(1).flip(1)
    precision = true_positive / (true_positive + false_positive).clamp(min=1)
    recall = true_positive / true_positive[0].clamp(min=1)
    curves = torch.stack((_f(precision, recall), precision, recall))
    # integers in float64: the ratio is rounded up exactly
    per_level = levels.sum(0)
    twice_mean = 2 * (per_level * torch.arange(LEVELS, device=levels.device)).sum() / per_level.sum()
    adaptive = twice_mean.ceil().clamp(max=LEVELS - 1).long().view(1)
    return torch.cat((curves, curves.index_select(1, adaptive)), dim=1)


class FMeasure(Metric):
    """F-measure (Achanta et al., CVPR 2009; beta squared = 0.3) over the 256 thresholds of a uint8 map.

    - Thresholds: all t in 0..255, where a map value >= t counts as foreground, and an adaptive threshold: twice the
      map's mean, at most 255. The ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: 0 at all thresholds except 0, where every pixel counts as foreground; the adaptive threshold is 0 too.
      Precision is 0 where no pixel is foreground, and F is 0 where precision and recall are 0.
    - Empty ground truths: 0 for every map, because recall is 0.

    Two definitions over a data set are in use; they differ by up to one point:

    - ``max_f_mean_curve``: F of each image at each threshold, averaged over the images, then the maximum.
    - ``max_f_mean_pr``: precision and recall averaged over the images at each threshold, F of these averages, then the
      maximum. The published IS-Net and DIS-SAM tables use this definition.

    ``mean_f_*`` is the mean over the thresholds instead of the maximum; ``adaptive_f_*`` uses the adaptive threshold of
    each image.

    Args:
        kinds: The kinds that :meth:`compute` returns: any of ``max``, ``mean`` and ``adaptive``.

    Raises:
        ValueError: If a kind is unknown.
    """

    def __init__(self, kinds: Iterable[str] = ("max",)) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"unknown kinds of F-measure {sorted(unknown)}; expected {', '.join(KINDS)}")

    def measure(self, pair: Pair) -> np.ndarray:
        """Return F, precision and recall of one image, (3, 257) float64; see :func:`f_curves`."""
        return f_curves(torch.from_numpy(pair.levels).double()).numpy()

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
        self.add(f_curves(device_levels(pred, gt)))

    def _means(self) -> Tensor:
        """Return F, precision and recall over all images, (3, 257) on the CPU."""
        if not self._images:
            return torch.full((3, LEVELS + 1), torch.nan, dtype=torch.float64)
        return torch.as_tensor(self.mean()).cpu()

    def curves(self) -> dict[str, np.ndarray]:
        """Return ``f``, ``precision`` and ``recall`` at the thresholds 0..255: means over the images, (256,) each.

        An image has precision 0 at thresholds where none of its pixels is foreground.
        """
        return dict(zip(("f", "precision", "recall"), self._means()[:, :LEVELS].numpy(), strict=True))

    def compute(self) -> dict[str, float]:
        """Return ``{"<kind>_f_mean_curve": ..., "<kind>_f_mean_pr": ...}`` in [0, 1]; nan without images."""
        f, precision, recall = self._means()
        figures = {}
        for kind in self.kinds:
            for name, curve in (("mean_curve", f), ("mean_pr", _f(precision, recall))):
                every, adaptive = curve[:LEVELS], curve[LEVELS]
                figure = {"max": every.max(), "mean": every.mean(), "adaptive": adaptive}[kind]
                figures[f"{kind}_f_{name}"] = figure.item()
        return figures
