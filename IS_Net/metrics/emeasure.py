"""Enhanced-alignment measure."""

from __future__ import annotations

import math

import numpy as np

from IS_Net.metrics.pair import LEVELS, Metric, Pair


def e_curve(levels: np.ndarray) -> np.ndarray:
    """Return one image's E-measure at the thresholds 0..255, and at the adaptive one, as :class:`EMeasure` tells.

    Args:
        levels: (2, 256) int64: pixels outside and inside of the object, by the map's level.

    Returns:
        (257,) float64 in [0, 1].
    """
    outside, inside = levels[:, ::-1].cumsum(axis=1)[:, ::-1]
    found, size, area = outside + inside, int(levels.sum()), int(levels[1].sum())
    if area == 0:
        aligned = size - found
    elif area == size:
        aligned = found
    else:
        # Each pixel counts by how its two values, less their means over the image, agree. There are four kinds.
        share, gt_share = found / size, area / size
        aligned = (
            inside * _agreement(1 - share, 1 - gt_share)
            + outside * _agreement(1 - share, -gt_share)
            + (area - inside) * _agreement(-share, 1 - gt_share)
            + (size - area - outside) * _agreement(-share, -gt_share)
        )
    curve = np.minimum(aligned / max(size - 1, 1), 1)
    twice_mean = -(-2 * int(levels.sum(axis=0) @ np.arange(LEVELS)) // size)  # rounded up
    return np.append(curve, curve[min(twice_mean, LEVELS - 1)])


def _agreement(a: np.ndarray, b: float) -> np.ndarray:
    return (1 + 2 * a * b / (a**2 + b**2)) ** 2 / 4  # b is never 0 here


class EMeasure(Metric):
    """Enhanced-alignment measure (Fan et al., IJCAI 2018): ``max_e``, ``mean_e`` and ``adaptive_e``.

    Each image's curve is averaged over the images, and maximum and mean are taken of this average (the published
    tables' mean E is ``mean_e``).

    - Thresholds: t in 0..255, a pixel is found where the map is >= t; and an adaptive one, twice the map's mean, at
      most 255. The ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: 1/4 at every threshold, as whatever does not vary; the adaptive one is 0, at which all is found.
    - Empty ground truths: the share of pixels that are not found; full ones that of pixels that are.

    The published code divides by one pixel less than the image has, and this does too; what would come out above 1 (a
    perfect map's E) is 1.
    """

    def measure(self, pair: Pair) -> np.ndarray:
        """Return one image's curve, (257,) float64; see :func:`e_curve`."""
        return e_curve(pair.levels)

    def curve(self) -> np.ndarray:
        """Return E at the thresholds 0..255, mean over the images, (256,)."""
        return self._means()[:LEVELS]

    def _means(self) -> np.ndarray:
        return self.mean() if self._images else np.full(LEVELS + 1, math.nan)

    def compute(self) -> dict[str, float]:
        """Return ``max_e``, ``mean_e`` and ``adaptive_e`` in [0, 1] over all images; nan where there was none."""
        curve, adaptive = self._means()[:LEVELS], self._means()[LEVELS]
        return {"max_e": float(curve.max()), "mean_e": float(curve.mean()), "adaptive_e": float(adaptive)}
