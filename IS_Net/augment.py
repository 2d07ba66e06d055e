"""Joint augmentation of image, coarse mask, box and ground truth.

All functions take planes, one (C, H, W) uint8 array with these as channels, so that all are transformed alike.
"""

from __future__ import annotations

import cv2
import numpy as np

# cv2.flip's code for (horizontal, vertical)
_FLIP_CODES = {(True, False): 1, (False, True): 0, (True, True): -1}


def flip(planes: np.ndarray, horizontal: bool, vertical: bool, out: np.ndarray | None = None) -> np.ndarray:
    """Flip planes horizontally, vertically, both or not at all.

    Args:
        planes: (C, H, W) uint8; not modified.
        horizontal: Whether to flip left to right.
        vertical: Whether to flip upside down.
        out: The array to write to, contiguous and of the same shape; None allocates one.

    Returns:
        (C, H, W) uint8: ``out``, or the array that was allocated.
    """
    out = np.empty(planes.shape, planes.dtype) if out is None else out
    code = _FLIP_CODES.get((bool(horizontal), bool(vertical)))
    if code is None:
        np.copyto(out, planes)
    else:
        for plane, flipped in zip(planes, out, strict=True):  # OpenCV is several times as fast as NumPy here
            cv2.flip(plane, code, dst=flipped)
    return out


def random_crop(planes: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
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
    planes: np.ndarray,
    rng: np.random.Generator,
    flip_h: bool = True,
    flip_v: bool = True,
    crop_size: tuple[int, int] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Flip and crop a training sample at random.

    Args:
        planes: (C, H, W) uint8: the network's input and the ground truth.
        rng: Random generator; the same state gives the same result.
        flip_h: Whether to flip horizontally with p = 0.5.
        flip_v: Whether to flip vertically with p = 0.5, independently of ``flip_h``. With both, each of no flip, H, V,
            and H and V has the published p = 0.25.
        crop_size: (height, width) of a random crop; None does not crop.
        out: The array to write to, contiguous and of the shape of the result; None allocates one.

    Returns:
        (C, height, width) uint8, contiguous.
    """
    flips = rng.random(2) < 0.5
    if crop_size is not None and tuple(crop_size) != planes.shape[1:]:
        planes = random_crop(planes, crop_size, rng)
    return flip(planes, flip_h and flips[0], flip_v and flips[1], out)
