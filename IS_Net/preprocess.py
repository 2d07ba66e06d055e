"""Make the network's input of pixels and prompts, as bytes, and bring alpha mattes to an image's size.

Training, validation and prediction all resize with these functions, so that the network sees the same numbers in all
three; :mod:`IS_Net.tensors` normalizes the bytes. This module does not import PyTorch, so that a prediction with
another runtime need not wait for it.

A prompt is a coarse mask, a box, both, or neither. What each network gets is decided in :func:`make_prompt_planes`:

========  =========================  ======================================  ==========================
channels  mask given                 box alone                               neither
========  =========================  ======================================  ==========================
3         image                      image                                   image
4         image, mask                image, filled box                       image, whole frame
5         image, mask, filled box    image, zeros, filled box                image, zeros, whole frame
========  =========================  ======================================  ==========================

With a mask and no box, the box is the mask's bounds; an empty mask has no bounds, and its box channel is zero. A mask
that is exactly the filled box given with it, as the model ``box`` of stage 1 makes them, is a box alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from IS_Net.errors import BoxError
from IS_Net.images import binarize, size_mismatch, size_text

Box = Sequence[float]
"""A box as xyxy in pixels: (first column, first row, last column, last row). Both ends belong to the box."""

Size = tuple[int, int]
"""(height, width)."""


class Window(NamedTuple):
    """A rectangle of an image, in pixels of the image."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.height, self.width

    def crop(self, array: np.ndarray) -> np.ndarray:
        """Return the window's view of an array of the image's size, (H, W) or (H, W, C)."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]


IMAGE_CHANNELS, MASK_CHANNEL, BOX_CHANNEL = 3, 3, 4
"""Layout of the network's input: number of RGB channels, index of the coarse mask, index of the filled box."""


def box_from_mask(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the tight box around a mask.

    Args:
        mask: (H, W), bool, or uint8 with the target above 128.

    Returns:
        (first column, first row, last column, last row) of the target; None if the mask is empty.
    """
    found = mask if mask.dtype == bool else binarize(mask)
    columns, rows = np.flatnonzero(found.any(axis=0)), np.flatnonzero(found.any(axis=1))
    if columns.size == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def four_numbers(box: Box, where: str) -> list[float]:
    """Return the numbers of a box.

    Raises:
        BoxError: If it is not four finite numbers; the message begins with ``where``.
    """
    try:
        values = np.asarray(box, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.size != 4 or not np.isfinite(values).all():
        raise BoxError(f"{where}: expected four finite numbers x0, y0, x1, y1, found {box!r}")
    return values.tolist()


def clip_box(box: Box, height: int, width: int, where: str = "box") -> tuple[float, float, float, float]:
    """Check a box, which may be a single pixel, and clip it to its image.

    Args:
        box: xyxy in pixels.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        where: The name of the box in error messages.

    Returns:
        The clipped box.

    Raises:
        BoxError: If the box is not four finite numbers, has its corners in the wrong order, or lies outside the image.
    """
    x0, y0, x1, y1 = four_numbers(box, where)
    if x1 < x0 or y1 < y0:
        message = f"{where}: {[x0, y0, x1, y1]} has its corners in the wrong order; expected x0 < x1 and y0 < y1"
        if x1 > 0 and y1 > 0 and x0 + x1 <= width and y0 + y1 <= height:
            message += f"; if it is x, y, width, height, as in COCO, write {[x0, y0, x0 + x1 - 1, y0 + y1 - 1]}"
        raise BoxError(message)
    clipped = max(x0, 0.0), max(y0, 0.0), min(x1, width - 1.0), min(y1, height - 1.0)
    if clipped[2] < clipped[0] or clipped[3] < clipped[1]:
        raise BoxError(
            f"{where}: {[x0, y0, x1, y1]} lies outside its image of {size_text((height, width))} pixels; boxes are in "
            "pixels of the upright image, after its EXIF orientation"
        )
    return clipped


def check_box(
    box: Box, height: int, width: int, where: str = "box", with_mask: bool = False
) -> tuple[float, float, float, float]:
    """Check a box that a person gives and clip it to its image, as :func:`clip_box` does; refuse a single point.

    A box of one pixel is what a click leaves. With a mask, the box may be its bounds, which may be that small.

    Raises:
        BoxError: If :func:`clip_box` raises it, or the box is a single point and comes without a mask.
    """
    clipped = clip_box(box, height, width, where)
    x0, y0, x1, y1 = four_numbers(box, where)
    if x1 == x0 and y1 == y0 and not with_mask:
        raise BoxError(f"{where}: {[x0, y0, x1, y1]} is a single point; expected a box with an area")
    return clipped


def reaches_outside(box: Box, height: int, width: int) -> bool:
    """Return whether more than a tenth of a box's area, and more than two pixels of it, lie outside its image.

    Such a box may be meant for another image, or for a larger version of the image.

    Raises:
        BoxError: If :func:`clip_box` raises it.
    """
    given, inside = np.array(four_numbers(box, "box")), np.array(clip_box(box, height, width))
    areas = [np.prod(edges[2:] - edges[:2] + 1) for edges in (given, inside)]
    return bool(np.abs(given - inside).max() > 2 and areas[1] < 0.9 * areas[0])


def resize_uint8(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize pixels as the published recipe does: bilinear, align_corners False, no antialiasing, rounded to uint8.

    Args:
        pixels: (H, W) or (H, W, C) uint8.
        size: (height, width) of the result.

    Returns:
        (C, height, width) uint8, PyTorch's layout; C is 1 for an (H, W) array.
    """
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(_resize(pixels, size)), 2, 0))


def resize_planes(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize planes, (C, H, W) uint8, to (C, height, width) uint8 in the same way as :func:`resize_uint8`."""
    return np.stack([_resize(plane, size) for plane in planes])


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) or (H, W, C) uint8; a C of 1 may be dropped."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    # in float32, because OpenCV interpolates bytes with weights of 11 bits
    return np.rint(resize_alpha(pixels.astype(np.float32), size)).astype(np.uint8)


def resize_alpha(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an alpha matte, (h, w) float32, to (height, width): bilinear, align_corners False."""
    if alpha.shape[:2] == tuple(size):
        return alpha
    return cv2.resize(alpha, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def alpha_to_uint8(alpha: np.ndarray) -> np.ndarray:
    """Round an alpha matte, float in [0, 1], to uint8 0..255, as it is saved and scored."""
    return np.rint(alpha * np.float32(255)).astype(np.uint8)


def fill_box(box: Box | None, image_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Draw the box channel: 255 inside the box, including both of its ends, and 0 elsewhere.

    Args:
        box: xyxy in pixels of the image, clipped to it; it may be a single pixel. None gives a channel of zeros.
        image_size: (height, width) of the image.
        size: (height, width) of the channel.

    Returns:
        (1, height, width) uint8. A box covers at least one pixel.

    Raises:
        BoxError: If the box is not four finite numbers, has its corners in the wrong order, or lies outside the image.
    """
    plane = np.zeros((1, *size), dtype=np.uint8)
    if box is None:
        return plane
    x0, y0, x1, y1 = clip_box(box, *image_size)
    (image_h, image_w), (h, w) = image_size, size
    top, left = int(y0 * h / image_h), int(x0 * w / image_w)
    bottom, right = int(np.ceil((y1 + 1) * h / image_h)), int(np.ceil((x1 + 1) * w / image_w))
    plane[0, top:bottom, left:right] = 255
    return plane


def make_image_planes(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image to the network's first three channels.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: (height, width) of the network's input.

    Returns:
        (3, height, width) uint8.

    Raises:
        ValueError: If shape or dtype differ, or the image has no pixels.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"expected an image of shape (H, W, 3) uint8, with H and W of at least 1, found {image.shape} {image.dtype}"
        )
    return resize_uint8(image, size)


def prompt_mask(mask: np.ndarray | None, box: Box | None, image_size: tuple[int, int]) -> np.ndarray | None:
    """Return the mask of a prompt, or None if it is the filled box of the same prompt, and says no more than that.

    Args:
        mask: (H, W) uint8 0..255, the coarse mask, or None.
        box: xyxy in pixels, or None.
        image_size: (H, W), the height and width of the image.

    Raises:
        BoxError: If the box lies outside the image.
    """
    if mask is None or box is None:
        return mask
    return None if np.array_equal(mask, fill_box(box, image_size, image_size)[0]) else mask


def prompt_box(mask: np.ndarray | None, box: Box | None, image_size: tuple[int, int]) -> Box | None:
    """Return the box of a prompt: the given one, else the mask's bounds, else the whole frame.

    Args:
        mask: (H, W) bool or uint8, the coarse mask, or None.
        box: xyxy in pixels, or None.
        image_size: (H, W), the height and width of the image.

    Returns:
        xyxy in pixels; None if the mask is empty and there is no box.
    """
    if box is not None:
        return box
    return (0, 0, image_size[1] - 1, image_size[0] - 1) if mask is None else box_from_mask(mask)


def make_prompt_planes(
    mask: np.ndarray | None, box: Box | None, in_ch: int, image_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Make the network's channels after the image's: the coarse mask and the filled box.

    Args:
        mask: (H, W) uint8 0..255, the coarse mask. None gives a mask channel of zeros if ``in_ch`` is 5, so that the
            box alone says what is meant, and the filled box if ``in_ch`` is 4.
        box: xyxy in pixels; None means the bounds of the mask, or the whole frame if there is no mask.
        in_ch: 3 = image, 4 = image + mask, 5 = image + mask + filled box.
        image_size: (H, W), the height and width of the image.
        size: (height, width) of the network's input.

    Returns:
        (in_ch - 3, height, width) uint8.

    Raises:
        ValueError: If the mask's shape or dtype differs.
        BoxError: If the box lies outside the image.
    """
    if in_ch <= MASK_CHANNEL:
        return np.empty((0, *size), dtype=np.uint8)
    if mask is not None and mask.shape != image_size:
        raise ValueError(size_mismatch("the mask", mask.shape, "its image", image_size))
    if mask is not None and mask.dtype != np.uint8:  # a mask of 0/1 or 0..1 would be almost black
        raise ValueError(f"expected a mask of uint8 0..255, found {mask.dtype}")
    if mask is not None and in_ch <= BOX_CHANNEL:
        return resize_uint8(mask, size)
    filled = fill_box(prompt_box(mask, box, image_size), image_size, size)
    if in_ch <= BOX_CHANNEL:
        return filled
    return np.concatenate((np.zeros_like(filled) if mask is None else resize_uint8(mask, size), filled))


def make_planes(
    image: np.ndarray, mask: np.ndarray | None, box: Box | None, in_ch: int, size: tuple[int, int]
) -> np.ndarray:
    """Make the network's input of one sample as bytes: resized, not yet normalized.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 0..255, the coarse mask; see :func:`make_prompt_planes` for None.
        box: xyxy in pixels; None means the bounds of the mask, or the whole frame if there is no mask.
        in_ch: 3 = image, 4 = image + mask, 5 = image + mask + filled box.
        size: (height, width) of the network's input.

    Returns:
        (in_ch, height, width) uint8.

    Raises:
        ValueError: If a shape or dtype differs.
        BoxError: If the box lies outside the image.
    """
    image_planes = make_image_planes(image, size)
    mask = prompt_mask(mask, box, image.shape[:2])
    return np.concatenate((image_planes, make_prompt_planes(mask, box, in_ch, image.shape[:2], size)))


def make_window_planes(
    image: np.ndarray, mask: np.ndarray, box: Box | None, window: Window, in_ch: int, size: tuple[int, int]
) -> np.ndarray:
    """Make the network's input of a window of an image as bytes, as :func:`make_planes` does for the whole image.

    Args:
        image: (H, W, 3) uint8 RGB, the whole image.
        mask: (H, W) uint8 0..255, the coarse mask of the whole image: the alpha matte of a whole pass.
        box: xyxy in pixels of the whole image. The box channel is what the window contains of the filled box: all of
            the window, a part, or nothing, and then it is zero. None gives a channel of zeros.
        window: The window; it lies inside the image.
        in_ch: 3 = image, 4 = image + mask, 5 = image + mask + filled box.
        size: (height, width) of the network's input.

    Returns:
        (in_ch, height, width) uint8.
    """
    planes = [make_image_planes(window.crop(image), size)]
    if in_ch > MASK_CHANNEL:
        planes.append(resize_uint8(window.crop(mask), size))
    if in_ch > BOX_CHANNEL:
        planes.append(fill_box(_shift_box(box, window), window.size, size))
    return np.concatenate(planes)


def _shift_box(box: Box | None, window: Window) -> Box | None:
    """Return a box in pixels of a window, not clipped; None if the window contains nothing of it."""
    if box is None:
        return None
    x0, y0, x1, y1 = box[0] - window.left, box[1] - window.top, box[2] - window.left, box[3] - window.top
    return None if x1 < 0 or y1 < 0 or x0 > window.width - 1 or y0 > window.height - 1 else (x0, y0, x1, y1)
