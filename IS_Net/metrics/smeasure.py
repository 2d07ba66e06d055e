"""Structure measure."""

from __future__ import annotations

import math

import numpy as np

from IS_Net.metrics.pair import LEVELS, Metric, Pair

_LEVEL = np.arange(LEVELS)


class SMeasure(Metric):
    """Structure measure (Fan et al., ICCV 2017): similarity of a map and its ground truth by object and by region.

    The measure is ``alpha`` times the object score plus ``1 - alpha`` times the region score, and at least 0. The
    object score compares the map's mean and deviation inside and outside the object. The region score is the structural
    similarity of four quarters of the image, which meet at the object's center of mass, weighted by their areas.

    - Thresholds: none for the map; the ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: ``alpha`` times the background's share of the image, plus ``1 - alpha`` times the share of the
      quarters in which the ground truth is constant.
    - Empty ground truths: 1 minus the mean of the map. Full ones: the mean of the map.

    All sums are exact, because they are sums of integers. In floating point, a constant quarter may have a deviation of
    1e-17, which would change its score from 1 to 0. A quarter without pixels (the whole object is in the last row or
    column) does not count.

    Args:
        alpha: Weight of the object score, in [0, 1].
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        self.alpha = alpha

    def measure(self, pair: Pair) -> float:
        """Return the structure measure of one image, in [0, 1]."""
        outside, inside = pair.levels
        size, area = pair.pred.size, pair.gt.area
        if area in (0, size):
            mean = int((outside + inside) @ _LEVEL) / (255 * size)
            return mean if area else 1 - mean
        by_object = (area * _object(inside) + (size - area) * _object(outside[::-1])) / size
        by_region = sum(int(quarter.sum()) * _similarity(quarter) for quarter in pair.quarters) / size
        return max(0.0, self.alpha * by_object + (1 - self.alpha) * by_region)

    def compute(self) -> dict[str, float]:
        """Return ``{"s_measure": ...}`` in [0, 1] over all images; nan without images."""
        return {"s_measure": float(self.mean())}


def _moments(counts: np.ndarray) -> tuple[int, int, int]:
    """Return the number of pixels, the sum of their values, and the sum of the squared values."""
    return int(counts.sum()), int(counts @ _LEVEL), int(counts @ _LEVEL**2)


def _object(counts: np.ndarray) -> float:
    """Return the object score of pixels that should all be 255, from their number at each value."""
    n, total, squares = _moments(counts)
    mean = total / (255 * n)
    deviation = math.sqrt((n * squares - total**2) / (n * max(n - 1, 1))) / 255
    return 2 * mean / (mean**2 + 1 + deviation)


def _similarity(counts: np.ndarray) -> float:
    """Return the similarity of one quarter, (2, 256) counts: 4 x y cov / ((x^2 + y^2) (var x + var y))."""
    n, x, squares = _moments(counts.sum(axis=0))
    area, inside, _ = _moments(counts[1])
    y = 255 * area
    variances = (n * squares - x**2) + (255 * y * n - y**2)
    bottom = (x**2 + y**2) * variances
    return 4 * x * y * (n * inside * 255 - x * y) / bottom if bottom else 1.0
