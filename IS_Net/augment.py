"""Joint augmentation: what is done to the image is done to mask, box and ground truth alike.

All functions take one (C, H, W) uint8 stack in which these are channels, so they cannot fall out of step.
"""

from __future__ import annotations

import cv2
import numpy as np


def flip(planes: np.ndarray, horizontal: bool, vertical: bool) -> np.ndarray:
    """Mirror a (C, H, W) stack left to right, upside down, or both; returns a contiguous array."""
    if horizontal:  # OpenCV mirrors bytes several times faster than NumPy, and takes the stack as one tall image
        planes = cv2.flip(np.ascontiguousarray(planes).reshape(-1, planes.shape[-1]), 1).reshape(planes.shape)
    return np.ascontiguousarray(planes[:, ::-1] if vertical else planes)


def random_crop(planes: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Cut a (height, width) window out of a (C, H, W) stack, at a place drawn from ``rng``.

    Raises:
        ValueError: If the window is larger than the stack.
    """
    (height, width), (crop_h, crop_w) = planes.shape[1:], size
    if crop_h > height or crop_w > width:
        raise ValueError(f"cannot crop {crop_h} x {crop_w} out of {height} x {width}")
    top, left = rng.integers(height - crop_h + 1), rng.integers(width - crop_w + 1)
    return planes[:, top : top + crop_h, left : left + crop_w]


def augment(
    planes: np.ndarray,
    rng: np.random.Generator,
    flip_h: bool = True,
    flip_v: bool = True,
    crop_size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Flip and crop a training sample at random.

    Args:
        planes: (C, H, W) uint8: the network's input planes and the ground truth.
        rng: Where the chances come from; the same state gives the same result.
        flip_h: Mirror left to right with p = 0.5.
        flip_v: Mirror upside down with p = 0.5, independently: with both, each of none, H, V and both has
            the published p = 0.25.
        crop_size: (height, width) to crop to, or None.

    Returns:
        (C, height, width) uint8, contiguous.
    """
    flips = rng.random(2) < 0.5
    if crop_size is not None and tuple(crop_size) != planes.shape[1:]:
        planes = random_crop(planes, crop_size, rng)
    return flip(planes, flip_h and flips[0], flip_v and flips[1])
