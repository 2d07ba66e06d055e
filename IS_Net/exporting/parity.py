"""How much the alpha mattes of another runtime, another format or another precision differ from the exact ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from IS_Net.exporting import FLIPS, MEAN
from IS_Net.metrics.iou import boundary_iou


class Difference(NamedTuple):
    """How two alpha mattes differ."""

    largest: float
    """Largest difference of a pixel, in steps of 1/255."""
    mean: float
    """Mean difference, in steps of 1/255."""
    flips: float
    """Share of the pixels that change sides at .5."""
    boundary: float
    """Boundary IoU of both, binarized at .5; see :func:`IS_Net.metrics.iou.boundary_iou`."""

    def passes(self, flips: float = FLIPS) -> bool:
        """Return whether the difference is within the tolerance: at most MEAN, and at most this share of flips."""
        return self.mean <= MEAN and self.flips <= flips

    def __str__(self) -> str:
        return (
            f"at most {self.largest:.2g}/255, mean {self.mean:.2g}/255, {100 * self.flips:.2g} % flip at .5, "
            f"boundary IoU {self.boundary:.5f}"
        )


def compare_alpha(exact: np.ndarray, found: np.ndarray) -> Difference:
    """Compare two alpha mattes.

    Args:
        exact: (H, W) float in [0, 1].
        found: Of the same shape. A value that is not finite counts as a difference of 1.

    Raises:
        ValueError: If the shapes differ.
    """
    if exact.shape != found.shape:
        raise ValueError(f"expected an alpha matte of {exact.shape}, found {found.shape}")
    difference = np.nan_to_num(np.abs(exact - found), nan=1.0, posinf=1.0)
    masks = exact > 0.5, found > 0.5
    return Difference(
        255 * float(difference.max()),
        255 * float(difference.mean(dtype=np.float64)),
        float(np.mean(masks[0] != masks[1])),
        boundary_iou(masks[1], masks[0]),
    )
