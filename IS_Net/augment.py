"""Joint augmentation of image, coarse mask, box and ground truth.

All functions take planes, one (C, H, W) uint8 tensor with these as channels, so that all are transformed alike.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def flip(planes: Tensor, horizontal: bool, vertical: bool, out: Tensor | None = None) -> Tensor:
    """Flip planes horizontally, vertically, both or not at all.

    Args:
        planes: (C, H, W) uint8 on any device; not modified.
        horizontal: Whether to flip left to right.
        vertical: Whether to flip upside down.
        out: The tensor to write to, of the same shape; None allocates one.

    Returns:
        (C, H, W) uint8: ``out``, or the tensor that was allocated.
    """
    axes = [axis for axis, wanted in ((-1, horizontal), (-2, vertical)) if wanted]
    flipped = planes.flip(axes) if axes or out is None else planes
    return flipped if out is None else out.copy_(flipped)


def random_crop(planes: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Crop planes at a random position.

    Args:
        planes: (C, H, W) uint8.
        size: (height, width) of the crop.
        rng: Random generator of the position.

    Returns:
        (C, height, width), a view of the planes.

    Raises:
        ValueError: If the crop is larger than the planes.
    """
    (height, width), (crop_h, crop_w) = planes.shape[1:], size
    if crop_h > height or crop_w > width:
        raise ValueError(f"cannot crop {crop_h} x {crop_w} out of {height} x {width}")
    top, left = rng.integers(height - crop_h + 1), rng.integers(width - crop_w + 1)
    return planes[:, top : top + crop_h, left : left + crop_w]


def augment(
    planes: Tensor,
    rng: np.random.Generator,
    flip_h: bool = True,
    flip_v: bool = True,
    crop_size: tuple[int, int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Flip and crop a training sample at random.

    Args:
        planes: (C, H, W) uint8: the network's input and the ground truth.
        rng: Random generator; the same state gives the same result.
        flip_h: Whether to flip horizontally with p = 0.5.
        flip_v: Whether to flip vertically with p = 0.5, independently of ``flip_h``. With both, each of no flip, H, V,
            and H and V has the published p = 0.25.
        crop_size: (height, width) of a random crop; None does not crop.
        out: The tensor to write to, of the shape of the result; None allocates one.

    Returns:
        (C, height, width) uint8, contiguous.
    """
    flips = rng.random(2) < 0.5
    if crop_size is not None and tuple(crop_size) != planes.shape[1:]:
        planes = random_crop(planes, crop_size, rng)
    return flip(planes, flip_h and flips[0], flip_v and flips[1], out)
