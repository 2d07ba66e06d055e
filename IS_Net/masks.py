"""Read masks, ground truths and predicted maps: one rule decides how each stored form becomes levels 0..255.

docs/data.md shows the rule as a table. It is the same for training, evaluation, coarse masks and all commands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageChops

from IS_Net.decoding import (
    LOSSY,
    UnusableError,
    bits_in_use,
    check_finite,
    load_upright,
    open_bytes,
    open_file,
    tell_frames,
    tell_once,
    to_array,
)

MASK_THRESHOLD = 128
"""Mask values above this belong to the target, here and in all metrics; see :func:`binarize`."""

LEVELS_KEYWORD = "dis-sam levels"
"""Keyword of the text in a PNG file that says that its gray values are levels, which need no interpretation."""

_OUTPUT_KEYWORD = "dis-sam"  # of dis_sam.records, in files of 8 or 16 bits
_FEW = 16
"""Classes or objects are stored as at most this many values; soft edges give more."""
_FEW_COLORS, _MANY_COLORS = 32, 128
"""The same for colors; a picture of more colors is not a mask."""
_HIGHEST_INDEX = 32
"""Class indices beside 255 are at most this (VOC has 20)."""
_SAMPLE = 1 << 14
"""About how many pixels are looked at first."""
_NEARLY = 0.98
"""A mask whose samples have N bits has a peak of at least this part of the highest value of N bits."""
_CHROMA_NOISE = 24
"""Channels of a gray picture differ by at most this after JPEG."""
_FLAT = 16
"""Neighbors in an area of one color differ by at most this after JPEG."""
_DARK = 32
"""JPEG turns black into values up to this."""
_FAINT = "no value is above {threshold} of 255 ({found}): they are read as levels, so that no pixel is the object"


class StoredMask(NamedTuple):
    """A mask, and how its file was read."""

    levels: np.ndarray
    """(H, W) uint8 0..255, upright."""
    note: str
    """What was rescaled, or is doubtful; empty if the values are levels 0..255 as they are."""


def binarize(mask: np.ndarray) -> np.ndarray:
    """Threshold a mask, uint8 0..255 of any shape; return a bool array of the same shape, True on the target."""
    return mask > MASK_THRESHOLD


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask, a ground truth or a predicted map.

    - Gray values are levels, as they are. A mask of 0 and one other value of at most 128 (0/1, class indices) is scaled
      to 0 and 255; of several classes, every one but 0 is the object.
    - 16-bit values are scaled by the bits in use (8, 10, 12, 14 or 16); floats are 0..1 or 0..255.
    - In a color palette, and in flat colors, everything but black is the object.
    - If an alpha channel varies, it is the mask.

    - Maps that this project wrote say so, and are taken as they are.

    Whatever is rescaled or doubtful is logged, once for all such files of a folder.

    Args:
        path: A file of one of :data:`IS_Net.decoding.FORMATS`.

    Returns:
        (H, W) uint8 0..255, upright (after the EXIF orientation).

    Raises:
        ImageError: If the file is missing, damaged, truncated, not an image, or a picture that is not a mask: with
            values that are not finite or out of range, many colors, or classes without a background.
    """
    levels, note = read_stored_mask(path)
    if note:
        tell_once(path, note)
    return levels


def read_stored_mask(path: str | Path) -> StoredMask:
    """Read a mask as :func:`read_mask` does, and return what that would log."""
    with open_file(path) as image:
        tell_frames(image, path)
        return _read(image)


def decode_mask(data: bytes, name: object = "the mask") -> np.ndarray:
    """Decode the content of a mask's file as :func:`read_mask` does.

    Args:
        data: The content of a file.
        name: How errors refer to it.

    Returns:
        (H, W) uint8 0..255, upright (after the EXIF orientation).

    Raises:
        ImageError: See :func:`read_mask`.
    """
    with open_bytes(data, name) as image:
        tell_frames(image, name)
        return mask_to_array(image, name)


def keep_levels(mask: np.ndarray) -> np.ndarray:
    """Return a mask of a file in a form that :func:`IS_Net.predictor.check_mask` does not take for classes 0 and 1.

    Args:
        mask: (H, W) uint8, levels 0..255. All of them may be 0 or 1: the map of a picture in which hardly anything was
            found.

    Returns:
        The mask, or its levels as (H, W) float32 in [0, 1].
    """
    return mask / np.float32(255) if mask.max(initial=0) == 1 else mask


def mask_to_array(image: Image.Image, name: object = "the mask") -> np.ndarray:
    """Convert a PIL image to what :func:`read_mask` returns for its file.

    Raises:
        ValueError: If it is not a mask, as :func:`read_mask` says.
    """
    levels, note = _read(image)
    if note:
        tell_once(name, note)
    return levels


def _read(image: Image.Image) -> StoredMask:
    lossy = image.format in LOSSY
    exact = image.format == "PNG" and (LEVELS_KEYWORD in image.info or _OUTPUT_KEYWORD in image.info)
    image, wide = load_upright(image)
    if wide is not None:
        return _from_wide(wide)
    if exact and image.mode == "L":
        return StoredMask(to_array(image), "")
    if exact and image.mode == "I;16":
        return StoredMask(_scale(np.asarray(image), 65535), "")
    if image.mode == "L":
        return _from_gray(to_array(image))
    if image.mode == "1":
        return StoredMask(to_array(image.convert("L")), "")
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image))
    if image.mode == "P":
        return _from_palette(image)
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        pixels = to_array(image.convert("RGBA"))
        return _from_alpha(pixels[..., :3], pixels[..., 3], lambda color: _from_color(color, lossy))
    image = image if image.mode == "RGB" else image.convert("RGB")
    red, green, blue = image.split()
    if all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue)):
        return _from_gray(to_array(red))  # much faster than by an array of all channels
    return _from_color(to_array(image), lossy)


# --- one channel ---


def _from_gray(values: np.ndarray) -> StoredMask:
    """Read integer samples, (H, W) uint8 or uint16."""
    full = np.iinfo(values.dtype).max
    top = int(values.max(initial=0))
    if top == 0:
        return StoredMask(np.zeros(values.shape, np.uint8), "")
    level = round(top * 255 / full)
    if level <= MASK_THRESHOLD:
        present = _present(values)
        if present.tolist() in ([0, top], [1]):
            return _object(values, f"holds 0 and {top}, not 0 and {full}; {top} is read as the object")
    note = ""
    if full > 255:
        # a mask reaches its highest value nearly always; the peak of a faint one is anywhere
        bits = bits_in_use(top)
        if bits < 16 and top >= _NEARLY * ((1 << bits) - 1):
            full = (1 << bits) - 1
            note = f"holds {bits}-bit values in 16 bits; they are scaled to 0..255"
            level = round(top * 255 / full)
    levels = values if values.dtype == np.uint8 else _scale(values, full)
    # classes fill areas, so that a part of the pixels shows them; counting all would take a tenth of the decoder's time
    step = max(math.isqrt(values.size // _SAMPLE), 1)
    sample = values[::step, ::step]
    if ((sample > 0) & ~binarize(levels[::step, ::step])).any() and len(_present(sample)) <= _FEW:
        present = _present(values)
        if len(present) <= _FEW and (found := _from_few(values, levels, present)):
            return found
    if level <= MASK_THRESHOLD:
        note = _FAINT.format(threshold=MASK_THRESHOLD, found=f"the highest is {top} of {full}")
    return StoredMask(levels, note)


def _object(values: np.ndarray, note: str) -> StoredMask:
    """Return a mask of all values but 0."""
    return StoredMask(np.where(values > 0, np.uint8(255), np.uint8(0)), note)


def _present(values: np.ndarray) -> np.ndarray:
    """Return the values that occur, in ascending order."""
    size = np.iinfo(values.dtype).max + 1
    return np.flatnonzero(cv2.calcHist([np.ascontiguousarray(values)], [0], None, [size], [0, size]))


def _scale(values: np.ndarray, full: int) -> np.ndarray:
    table = np.minimum(np.rint(np.arange(1 << 16) * (255 / full)), 255).astype(np.uint8)
    return table[values]


def _from_few(values: np.ndarray, levels: np.ndarray, present: np.ndarray) -> StoredMask | None:
    """Read a map of a few values whose regions say that they are classes; None if its values are levels."""
    small = (values > 0) & ~binarize(levels)
    area, large = np.count_nonzero(small), np.count_nonzero(binarize(levels))
    if area < max(0.004 * values.size, 9) or not _are_regions(values, small, present):
        return None
    found = _list(present)
    if large:
        indices = present[(present > 0) & (present <= _HIGHEST_INDEX)]
        if len(indices) and np.isin(values, indices).sum() > large:
            raise UnusableError(
                f"it holds the values {found}, which are neither levels 0..255 nor one class: write the object as 255 "
                "and everything else as 0"
            )
        return StoredMask(levels, f"holds the values {found}; those of at most {MASK_THRESHOLD} count as background")
    if len(present) > 3 and _steps(values) <= 1:
        return None  # a faint map, whose neighbors differ by one level only; 0, 1 and 2 alone are a trimap
    if present[0] > 0:
        if len(present) < 2:
            return None
        raise UnusableError(
            f"it holds the values {found} and no 0, so that nothing says which is the object: write the object as 255 "
            "and everything else as 0"
        )
    return _object(values, f"holds the values {found}, taken for classes; everything but 0 is read as the object")


def _are_regions(values: np.ndarray, small: np.ndarray, present: np.ndarray) -> bool:
    """Return whether each small value fills areas; soft edges are lines, one pixel wide."""
    kernel = np.ones((3, 3), np.uint8)
    flat = cv2.erode(values, kernel) == cv2.dilate(values, kernel)
    for value in present:
        where = values == value
        if value == 0 or not (small & where).any():
            continue
        if np.count_nonzero(where & flat) < 0.2 * np.count_nonzero(where):
            return False
    return True


def _steps(values: np.ndarray) -> int:
    """Return the largest difference between neighbors in a row or a column."""
    signed = values.astype(np.int32)
    steps = [np.abs(np.diff(signed, axis=axis)) for axis in (0, 1)]
    return max(int(step.max(initial=0)) for step in steps)


def _list(values: Iterable[int]) -> str:
    items = [str(int(value)) for value in values]
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def _from_integers(values: np.ndarray) -> StoredMask:
    """Read integer samples of 16 or 32 bits."""
    low, top = int(values.min(initial=0)), int(values.max(initial=0))
    if low >= 0 and top <= 65535:
        return _from_gray(values.astype(np.uint16))
    if low == 0 and ((values == 0) | (values == top)).all():
        return _object(values, f"holds 0 and {top}; {top} is read as the object")
    raise UnusableError(f"it holds values from {low} to {top}; expected 0 to 255 or 0 to 65535")


def _from_floats(values: np.ndarray) -> StoredMask:
    check_finite(values)
    low, top = float(values.min(initial=0)), float(values.max(initial=0))
    whole = low >= 0 and 1 < top <= 65535 and np.array_equal(values, np.rint(values))
    if whole and top <= 255:
        return _from_gray(values.astype(np.uint8))
    if whole:
        return _from_gray(values.astype(np.uint16))
    scale = 255 if top <= 2 else 1
    if low < (-26 if top > 128 else -1) or (scale == 1 and top > 260):  # beyond what resizing overshoots
        raise UnusableError(f"it holds values from {low:g} to {top:g}; expected 0 to 1, or 0 to 255")
    levels = np.clip(np.rint(values * np.float32(scale)), 0, 255).astype(np.uint8)
    beyond = low < -1e-3 or top * scale > 255.5
    note = f"holds values from {low:.4g} to {top:.4g}; those outside 0..{255 // scale} are cut off" if beyond else ""
    if not note and top > 0 and not binarize(levels).any():
        note = _FAINT.format(threshold=MASK_THRESHOLD, found=f"the highest is {top:.4g} of {255 // scale}")
    return StoredMask(levels, note)


# --- colors ---


def _from_palette(image: Image.Image) -> StoredMask:
    palette = np.reshape(image.getpalette("RGB"), (-1, 3))
    if (palette[:, :1] == palette).all():  # a gray file that is stored with a palette
        return _from_gray(np.array(image.convert("RGB"))[..., 0])
    indices = np.asarray(image)
    used = _present(indices)
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() <= MASK_THRESHOLD < alpha.max():
            return _from_gray(alpha.copy())
    if len(used) > 2 * _FEW_COLORS and not _are_regions(indices, np.ones_like(indices, bool), used):
        raise _not_a_mask(f"{len(used)} colors of a palette")
    # not the colors in use alone: labels may have indices behind the end of a palette, which are black too
    black = [index for index in used if index < len(palette) and not palette[index].any()]
    background = [0] if not palette[0].any() or not black else black
    return StoredMask(np.where(np.isin(indices, background), np.uint8(0), np.uint8(255)), "")


def _from_alpha(color: np.ndarray, alpha: np.ndarray, from_color: Callable[[np.ndarray], StoredMask]) -> StoredMask:
    """Read (H, W, 3) colors with (H, W) alpha: the alpha if it varies, else the colors."""
    full = np.iinfo(alpha.dtype).max
    low, high = (int(extreme) for extreme in (alpha.min(initial=full), alpha.max(initial=0)))
    if low < high and low * 255 / full <= MASK_THRESHOLD:
        return _from_gray(np.ascontiguousarray(alpha))
    if high > 0:
        return from_color(color)
    if not np.ptp(color, axis=(0, 1)).any():
        return StoredMask(np.zeros(alpha.shape, np.uint8), "")
    levels, note = from_color(color)
    return StoredMask(levels, f"is fully transparent; its colors are read{'; it ' if note else ''}{note}")


def _from_color(color: np.ndarray, lossy: bool) -> StoredMask:
    """Read (H, W, 3) uint8 RGB."""
    red, green, blue = cv2.split(color)
    if np.array_equal(red, green) and np.array_equal(green, blue):
        return _from_gray(red)
    brightest = cv2.max(cv2.max(red, green), blue)
    spread = int(cv2.subtract(brightest, cv2.min(cv2.min(red, green), blue)).max())
    if spread <= _CHROMA_NOISE:
        return _from_gray(cv2.cvtColor(color, cv2.COLOR_RGB2GRAY) if lossy else brightest)
    cells = (red >> 3).astype(np.uint16) << 10 | (green >> 3).astype(np.uint16) << 5 | blue >> 3
    counts = cv2.calcHist([cells], [0], None, [1 << 15], [0, 1 << 15]).ravel()
    number = np.count_nonzero(counts)
    if not lossy and max(number, len(_present(brightest))) <= _FEW_COLORS:
        return _object(brightest, "")
    # soft edges or JPEG: the colors of the mask are those that fill areas; it is cut at half the darkest of them
    kernel = np.ones((3, 3), np.uint8)
    flat = cv2.subtract(cv2.dilate(brightest, kernel), cv2.erode(brightest, kernel)) <= _FLAT
    counts = cv2.calcHist([cells], [0], flat.astype(np.uint8), [1 << 15], [0, 1 << 15]).ravel()
    main = np.flatnonzero(counts >= max(0.001 * cells.size, 4))
    if len(main) > _MANY_COLORS or counts[main].sum() < 0.5 * cells.size:
        raise _not_a_mask(f"{number} colors")
    peaks = np.maximum(np.maximum(main >> 10, main >> 5 & 31), main & 31) * 8 + 7
    darkest = int(peaks[peaks > _DARK].min(initial=255))
    return StoredMask(np.where(brightest > darkest // 2, np.uint8(255), np.uint8(0)), "")


def _from_wide(samples: np.ndarray) -> StoredMask:
    """Read (H, W, 3 or 4) uint16 samples, whose highest value may be that of fewer bits."""

    def from_color(color: np.ndarray) -> StoredMask:
        if (color == color[..., :1]).all():
            return _from_gray(np.ascontiguousarray(color[..., 0]))
        full = (1 << bits_in_use(int(color.max()))) - 1
        levels, note = _from_color(np.where(color > 0, np.maximum(_scale(color, full), 1), np.uint8(0)), False)
        return StoredMask(levels, note or "uses fewer than 16 bits per channel; they are scaled")

    if samples.shape[2] == 4:
        return _from_alpha(samples[..., :3], samples[..., 3], from_color)
    return from_color(samples)


def _not_a_mask(found: str) -> UnusableError:
    return UnusableError(
        f"it is a picture of {found}, not a mask; expected gray values, one color for each object on black, or a "
        "transparent background"
    )
