"""Structure measure."""

from __future__ import annotations

import math

import numpy as np

from IS_Net.metrics.pair import LEVELS, Metric, Pair

_LEVEL = np.arange(LEVELS)


class SMeasure(Metric):
    """Structure measure (Fan et al., ICCV 2017): how alike a map and its ground truth are as objects and by region.

    ``alpha`` times the object score plus ``1 - alpha`` times the region score, and at least 0. The object score
    compares the map's mean and deviation inside of the object and outside; the region score is a structural
    similarity of each quarter of the image, cut at the object's center of mass and weighted by its area.

    - Thresholds: none, maps are taken as they are; the ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: the background's share of the image times ``alpha``, and that of the quarters in which the ground
      truth does not vary times ``1 - alpha``.
    - Empty ground truths: 1 less the map's mean; full ones give the mean.

    All sums are of whole numbers and exact: a quarter in which the map is constant has no deviation at all, where
    floating sums may leave one of 1e-17 and turn the quarter's score from 1 to 0. A quarter without pixels (all of
    the object in the last row or column) counts nothing.

    Args:
        alpha: The object score's share.
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
        """Return ``{"s_measure": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"s_measure": float(self.mean())}


def _moments(counts: np.ndarray) -> tuple[int, int, int]:
    """Return the number of pixels, the sum of their levels, and that of the squares."""
    return int(counts.sum()), int(counts @ _LEVEL), int(counts @ _LEVEL**2)


def _object(counts: np.ndarray) -> float:
    """Score pixels that should all be 255, by how many there are of each level."""
    n, total, squares = _moments(counts)
    mean = total / (255 * n)
    deviation = math.sqrt((n * squares - total**2) / (n * max(n - 1, 1))) / 255
    return 2 * mean / (mean**2 + 1 + deviation)


def _similarity(counts: np.ndarray) -> float:
    """Score one quarter, (2, 256): 4 x y cov / ((x^2 + y^2) (var x + var y)), in units that cancel."""
    n, x, squares = _moments(counts.sum(axis=0))
    area, inside, _ = _moments(counts[1])
    y = 255 * area
    variances = (n * squares - x**2) + (255 * y * n - y**2)
    bottom = (x**2 + y**2) * variances
    return 4 * x * y * (n * inside * 255 - x * y) / bottom if bottom else 1.0
