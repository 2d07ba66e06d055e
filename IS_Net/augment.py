"""Joint augmentation: what is done to the image is done to mask, box and ground truth alike.

All functions take one (C, H, W) uint8 stack in which these are channels, so they cannot fall out of step.
"""

from __future__ import annotations

import cv2
import numpy as np

# what cv2.flip calls (horizontal, vertical)
_FLIP_CODES = {(True, False): 1, (False, True): 0, (True, True): -1}


def flip(planes: np.ndarray, horizontal: bool, vertical: bool, out: np.ndarray | None = None) -> np.ndarray:
    """Mirror a (C, H, W) uint8 stack left to right, upside down, both or not at all.

    Args:
        planes: The stack; it is not changed.
        horizontal: Mirror left to right.
        vertical: Mirror upside down.
        out: Where to write to, contiguous and of the stack's shape; None allocates.
    """
    out = np.empty(planes.shape, planes.dtype) if out is None else out
    code = _FLIP_CODES.get((bool(horizontal), bool(vertical)))
    if code is None:
        np.copyto(out, planes)
    else:
        for plane, mirrored in zip(planes, out, strict=True):  # OpenCV is several times as fast as NumPy here
            cv2.flip(plane, code, dst=mirrored)
    return out


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
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Flip and crop a training sample at random.

    Args:
        planes: (C, H, W) uint8: the network's input planes and the ground truth.
        rng: Where the chances come from; the same state gives the same result.
        flip_h: Mirror left to right with p = 0.5.
        flip_v: Mirror upside down with p = 0.5, independently: with both, each of none, H, V and both has
            the published p = 0.25.
        crop_size: (height, width) to crop to, or None.
        out: Where to write to, contiguous and of the result's shape; None allocates.

    Returns:
        (C, height, width) uint8, contiguous.
    """
    flips = rng.random(2) < 0.5
    if crop_size is not None and tuple(crop_size) != planes.shape[1:]:
        planes = random_crop(planes, crop_size, rng)
    return flip(planes, flip_h and flips[0], flip_v and flips[1], out)
