"""From files' pixels to the network's input, and from its logits back to an alpha matte.

Nothing else in the project resizes or normalizes: training, validation and prediction share these functions, so
that the network sees the same numbers in all three.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from IS_Net.errors import BoxError
from IS_Net.images import binarize

Box = Sequence[float]
"""xyxy in pixels: (first column, first row, last column, last row), both ends belonging to the box."""

Size = tuple[int, int]
"""(height, width)."""

IMAGE_CHANNELS, MASK_CHANNEL, BOX_CHANNEL = 3, 3, 4
"""The input's channels: RGB, then (from 4 on) the coarse mask, then (from 5 on) the filled box."""


def box_from_mask(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the tight box of a mask, or None where the mask is empty.

    Args:
        mask: (H, W), bool, or uint8 with the object above 128.

    Returns:
        (first column, first row, last column, last row) that hold the object.
    """
    found = mask if mask.dtype == bool else binarize(mask)
    columns, rows = np.flatnonzero(found.any(axis=0)), np.flatnonzero(found.any(axis=1))
    if columns.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _four_numbers(box: Box, where: str) -> list[float]:
    try:
        values = np.asarray(box, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.size != 4 or not np.isfinite(values).all():
        raise BoxError(f"{where}: expected four finite numbers x0, y0, x1, y1, found {box!r}")
    return values.tolist()


def _clip_box(box: Box, height: int, width: int, where: str = "box") -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = _four_numbers(box, where)
    if x1 < x0 or y1 < y0:
        raise BoxError(f"{where}: {[x0, y0, x1, y1]} is turned around; expected x0 < x1 and y0 < y1")
    clipped = max(x0, 0.0), max(y0, 0.0), min(x1, width - 1.0), min(y1, height - 1.0)
    if clipped[2] < clipped[0] or clipped[3] < clipped[1]:
        raise BoxError(
            f"{where}: {[x0, y0, x1, y1]} lies outside its image of {width} x {height} pixels; boxes are in pixels "
            "of the upright image (after its EXIF orientation)"
        )
    return clipped


def check_box(box: Box, height: int, width: int, where: str = "box") -> tuple[float, float, float, float]:
    """Return a prompt's box clipped to its image, or say what is wrong with it.

    Args:
        box: xyxy in pixels.
        height: The image's.
        width: The image's.
        where: What to call the box in an error.

    Raises:
        BoxError: If it is not four finite numbers, is turned around, or has no area inside the image.
    """
    clipped = _clip_box(box, height, width, where)
    x0, y0, x1, y1 = _four_numbers(box, where)
    if x1 == x0 and y1 == y0:
        raise BoxError(f"{where}: {[x0, y0, x1, y1]} is a single point; expected a box with an area")
    return clipped


def resize_uint8(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize as the published recipe does: bilinear, align_corners False, no antialiasing, rounded to uint8.

    Args:
        pixels: (H, W) or (H, W, C) uint8.
        size: (height, width) wanted.

    Returns:
        (C, height, width) uint8, C being 1 for an (H, W) array: the layout that PyTorch wants.
    """
    return resize_planes(np.moveaxis(np.atleast_3d(pixels), 2, 0), size)


def resize_planes(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a (C, H, W) uint8 stack like :func:`resize_uint8`, to (C, height, width) uint8."""
    if planes.shape[-2:] == tuple(size):
        return np.ascontiguousarray(planes)
    # PyTorch takes no array that steps backwards, as image[..., ::-1] does
    pixels = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))
    resized = F.interpolate(pixels[None], size=tuple(size), mode="bilinear", align_corners=False)
    return resized[0].round_().to(torch.uint8).contiguous().numpy()


def fill_box(box: Box | None, image_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Draw the box channel: 255 inside the box, both of its ends included, 0 elsewhere.

    Args:
        box: xyxy in pixels of the image, or None for an all-zero channel. The tight box of a single pixel counts.
        image_size: (height, width) of the image that the box speaks of.
        size: (height, width) of the channel.

    Returns:
        (1, height, width) uint8. A box keeps at least one pixel, however small the channel.

    Raises:
        BoxError: If the box is not four finite numbers, is turned around, or lies outside the image.
    """
    plane = np.zeros((1, *size), dtype=np.uint8)
    if box is None:
        return plane
    x0, y0, x1, y1 = _clip_box(box, *image_size)
    (image_h, image_w), (h, w) = image_size, size
    top, left = int(y0 * h / image_h), int(x0 * w / image_w)
    bottom, right = int(np.ceil((y1 + 1) * h / image_h)), int(np.ceil((x1 + 1) * w / image_w))
    plane[0, top:bottom, left:right] = 255
    return plane


def make_planes(
    image: np.ndarray, mask: np.ndarray | None, box: Box | None, in_ch: int, size: tuple[int, int]
) -> np.ndarray:
    """Stack what the network sees of one sample, still as bytes: resized, not yet normalized.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 0..255, the coarse mask; may be None for ``in_ch`` 3.
        box: xyxy in pixels; None means the mask's bounds. Only looked at for ``in_ch`` 5.
        in_ch: 3 = image, 4 = image + mask, 5 = image + mask + filled box.
        size: (height, width) of the network's input.

    Returns:
        (in_ch, height, width) uint8.

    Raises:
        ValueError: If shapes or dtypes disagree, or the mask that ``in_ch`` asks for is missing.
        BoxError: If the box lies outside the image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an image of shape (H, W, 3) uint8, found {image.shape} {image.dtype}")
    planes = [resize_uint8(image, size)]
    if in_ch > MASK_CHANNEL:
        if mask is None:
            raise ValueError(f"a network of {in_ch} input channels needs a coarse mask beside the image; found none")
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{image.shape[1]} x {image.shape[0]}; both must be of one size"
            )
        if mask.dtype != np.uint8:  # 0/1 or 0..1 would be taken for all but black
            raise ValueError(f"expected a mask of uint8 0..255, found {mask.dtype}")
        planes.append(resize_uint8(mask, size))
    if in_ch > BOX_CHANNEL:
        planes.append(fill_box(box_from_mask(mask) if box is None else box, image.shape[:2], size))
    return np.concatenate(planes)


def make_input(planes: torch.Tensor) -> torch.Tensor:
    """Normalize a batch of planes on the device that holds it.

    Args:
        planes: (B, in_ch, H, W) uint8, as :func:`make_planes` stacks them.

    Returns:
        (B, in_ch, H, W) float32, channels_last: RGB in [0, 1] minus 0.5, mask and box in [0, 1].
    """
    x = planes.to(torch.float32, memory_format=torch.channels_last).div_(255)
    x[:, :IMAGE_CHANNELS].sub_(0.5)
    return x


def make_target(gt: torch.Tensor) -> torch.Tensor:
    """Normalize a batch of ground truths, (B, 1, H, W) uint8, to float32 in [0, 1]."""
    return gt.to(torch.float32).div_(255)


def make_alpha(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Turn logits into an alpha matte of the image's own size.

    There is no min-max stretch: where nothing was found, nothing is returned.

    Args:
        logits: (B, 1, h, w), any float dtype.
        size: (height, width) of the image.

    Returns:
        (B, 1, height, width) float32 in [0, 1].
    """
    alpha = torch.sigmoid(logits.float())
    if alpha.shape[-2:] != tuple(size):
        alpha = F.interpolate(alpha, size=tuple(size), mode="bilinear", align_corners=False)
    return alpha


def alpha_to_uint8(alpha: torch.Tensor) -> torch.Tensor:
    """Round an alpha matte in [0, 1] to uint8 0..255, as it is saved and scored."""
    return (alpha * 255).round_().to(torch.uint8)
