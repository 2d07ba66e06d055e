"""Enhanced-alignment measure."""

from __future__ import annotations

import math

import numpy as np

from IS_Net.metrics.pair import LEVELS, Metric, Pair


def e_curve(levels: np.ndarray) -> np.ndarray:
    """Return one image's E-measure at the thresholds 0..255 and at the adaptive threshold; see :class:`EMeasure`.

    Args:
        levels: (2, 256) int64: number of pixels outside and inside the object at each value of the map.

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
        # A pixel counts by how well its two values, minus their means over the image, agree. Four cases occur.
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

    The curves of all images are averaged; the maximum and the mean are taken of this average. The mean E of the
    published tables is ``mean_e``.

    - Thresholds: all t in 0..255, where a map value >= t counts as foreground, and an adaptive threshold: twice the
      map's mean, at most 255. The ground truth is binarized at > 128.
    - Stretching: none.
    - Empty maps: 1/4 at every threshold, as for any constant map. The adaptive threshold is 0, where every pixel counts
      as foreground.
    - Empty ground truths: the share of pixels that are background in the map. Full ones: the share of foreground.

    Like the published code, this divides by the number of pixels minus 1; results above 1 (perfect maps) become 1.
    """

    def measure(self, pair: Pair) -> np.ndarray:
        """Return the curve of one image, (257,) float64; see :func:`e_curve`."""
        return e_curve(pair.levels)

    def curve(self) -> np.ndarray:
        """Return E at the thresholds 0..255 as the mean over the images, (256,) float64."""
        return self._means()[:LEVELS]

    def _means(self) -> np.ndarray:
        return self.mean() if self._images else np.full(LEVELS + 1, math.nan)

    def compute(self) -> dict[str, float]:
        """Return ``max_e``, ``mean_e`` and ``adaptive_e`` in [0, 1] over all images; nan without images."""
        curve, adaptive = self._means()[:LEVELS], self._means()[LEVELS]
        return {"max_e": float(curve.max()), "mean_e": float(curve.mean()), "adaptive_e": float(adaptive)}
