"""What a result is written as: cut-out, alpha matte, mask, object on a color, or overlay; encoded as PNG."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import cv2
import numpy as np

from IS_Net.compositing import estimate_foreground, paste
from IS_Net.errors import UserError, did_you_mean
from IS_Net.images import encode_png

KINDS = {"rgba": "cutout", "alpha": "alpha", "mask": "mask", "white": "white", "overlay": "overlay"}
"""The kinds of outputs, and what file names call them. A color, ``#RRGGBB``, is a kind too."""

MASK_THRESHOLD = 0.5
"""A mask contains the pixels whose alpha is above this, unless another threshold is given."""
CROP_LEVEL = 0.02
"""A cropped output is bounded by the pixels whose alpha is above this. A haze of less opacity is not visible, and would
often extend to the whole frame."""

_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_OVERLAY_COLOR = (255, 0, 140)
_OVERLAY_OPACITY = 0.45
_LARGEST_TILE, _SMALLEST_TILE, _MARGIN = 1024, 128, 56
"""Colors are estimated in tiles, each with this margin of context, which is more than the two blurs reach. All are
multiples of 4, so that the tiles' quarter-size versions lie on the same grid as the whole image's."""
_THREADS = min(4, os.cpu_count() or 1)
_FRINGE = 2
"""Pixels around the visible ones that have the object's colors too: viewers that scale a picture mix them in."""


class OutputError(UserError, ValueError):
    """An output that cannot be made, or must not be written."""


class Segmented(Protocol):
    """The part of :class:`dis_sam.pipeline.Result` that is used here."""

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    @property
    def alpha(self) -> np.ndarray:
        """(H, W) float32 in [0, 1]."""


def check_kind(kind: str) -> str:
    """Return the name of a kind in its normal form: lower case, colors in upper case.

    Raises:
        OutputError: If the kind is unknown.
    """
    if _HEX.fullmatch(kind):
        return kind.upper()
    if kind.lower() not in KINDS:
        hint = "; expected six hex digits, as in #FF8800" if kind.startswith("#") else did_you_mean(kind, KINDS)
        raise OutputError(f"unknown kind of output {kind!r}{hint}; a color is written as #RRGGBB")
    return kind.lower()


def file_label(kind: str) -> str:
    """Return what file names call a kind: ``cutout`` for rgba, the six digits for a color."""
    kind = check_kind(kind)
    return kind[1:] if kind.startswith("#") else KINDS[kind]


def render(
    result: Segmented, kind: str, *, bits: int = 8, threshold: float | None = None, crop: bool = False
) -> np.ndarray:
    """Render a result as one kind of output; see :func:`render_all`."""
    return render_all(result, [kind], bits=bits, threshold=threshold, crop=crop)[check_kind(kind)]


def render_all(
    result: Segmented, kinds: Iterable[str], *, bits: int = 8, threshold: float | None = None, crop: bool = False
) -> dict[str, np.ndarray]:
    """Render a result as several kinds of outputs.

    - ``rgba``: the object with its own colors (see :func:`object_colors`), not multiplied by alpha, and its alpha.
    - ``alpha``: the alpha matte. ``mask``: where it is above the threshold, 0 or the highest value.
    - ``white`` and ``#RRGGBB``: the object, with its own colors, on a plain color.
    - ``overlay``: the image with the object tinted and outlined; always of 8 bits.

    Args:
        result: Image and alpha matte.
        kinds: See :func:`check_kind`.
        bits: 8 or 16 per channel.
        threshold: Alpha above it counts as 1 and the rest as 0, in every kind. None leaves the alpha matte as it is,
            and is 0.5 for ``mask``.
        crop: Whether to crop the outputs to the object; see :func:`bounds`. An empty result keeps the whole frame.

    Returns:
        The outputs by kind: (h, w, 4), (h, w, 3) or (h, w), uint8 or uint16.

    Raises:
        OutputError: If a kind is unknown, or ``bits`` or ``threshold`` is out of range.
    """
    check_options(bits, threshold)
    image, alpha = result.image, result.alpha
    mask = alpha > (MASK_THRESHOLD if threshold is None else threshold)
    if threshold is not None:
        alpha = mask.astype(np.float32)
    window = (bounds(alpha) if crop else None) or (slice(None), slice(None))
    colors = None
    rendered = {}
    for kind in dict.fromkeys(map(check_kind, kinds)):
        if colors is None and kind not in ("alpha", "mask", "overlay"):
            colors = object_colors(image, alpha)
        if kind == "rgba":
            pixels = cv2.cvtColor(_to_bits(colors, bits), cv2.COLOR_RGB2RGBA)
            pixels[..., 3] = _alpha_to_bits(alpha, bits)
        elif kind == "alpha":
            pixels = _alpha_to_bits(alpha, bits)
        elif kind == "mask":
            pixels = _alpha_to_bits(mask.astype(np.float32), bits)
        elif kind == "overlay":
            pixels = _overlay(image, alpha, mask)
        else:
            plain = paste(colors, alpha, _color(kind))
            pixels = np.rint(plain if bits == 8 else plain * np.float32(257)).astype(_dtype(bits))
        rendered[kind] = np.ascontiguousarray(pixels[window])
    return rendered


def check_options(bits: int, threshold: float | None) -> None:
    """Check the options of :func:`render_all`.

    Raises:
        OutputError: If ``bits`` is neither 8 nor 16, or the threshold is not in [0, 1).
    """
    if bits not in (8, 16):
        raise OutputError(f"expected 8 or 16 bits per channel, found {bits!r}")
    if threshold is not None and not 0 <= threshold < 1:
        raise OutputError(f"expected a threshold of at least 0 and less than 1, found {threshold!r}")


def bounds(alpha: np.ndarray) -> tuple[slice, slice] | None:
    """Return the rows and columns that contain all pixels of an alpha matte, (H, W) float32, above 0.02.

    Returns:
        Two slices, or None if there is no such pixel.
    """
    found = alpha > CROP_LEVEL
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    if rows.size == 0:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def object_colors(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the object's own colors, without those of the background that mix in at soft edges.

    Opaque pixels keep their colors exactly. Where the object is soft, and a few pixels around it, the colors are
    estimated (:func:`IS_Net.compositing.estimate_foreground`), only near such pixels, because this takes most of the
    time. All else is black: what was cut away does not stay in the file.

    Args:
        image: (H, W, 3) uint8 RGB.
        alpha: (H, W) float32 in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB.
    """
    levels = _alpha_to_bits(alpha, 8)
    opaque = levels == 255
    near = cv2.dilate((levels > 0).astype(np.uint8), np.ones((2 * _FRINGE + 1,) * 2, np.uint8)) > 0
    estimated = near & ~opaque
    colors = cv2.copyTo(image, opaque.astype(np.uint8), np.zeros_like(image))

    def estimate(tile: tuple[int, int, int]) -> None:
        y, x, side = tile
        top, left = max(y - _MARGIN, 0), max(x - _MARGIN, 0)
        context = slice(top, y + side + _MARGIN), slice(left, x + side + _MARGIN)
        where = np.zeros(alpha[context].shape, bool)
        inside = slice(y, y + side), slice(x, x + side)
        where[y - top :, x - left :][:side, :side] = estimated[inside]
        colors[inside][estimated[inside]] = estimate_foreground(image[context], alpha[context], where)

    with ThreadPoolExecutor(_THREADS) as pool:  # NumPy, which does most of it, uses one core
        for _ in pool.map(estimate, _tiles(estimated)):
            pass
    return colors


def _tiles(wanted: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Cover the wanted pixels, (H, W) bool, with squares: small ones where they are few, because less is computed.

    Yields:
        Top, left and side of each square; it may reach out of the image.
    """
    rows, columns = (np.arange(0, length, _SMALLEST_TILE) for length in wanted.shape)
    occupied = np.logical_or.reduceat(np.logical_or.reduceat(wanted, rows, axis=0), columns, axis=1)

    def split(y: int, x: int, side: int) -> Iterator[tuple[int, int, int]]:
        part = occupied[y : y + side, x : x + side]
        if 2 * np.count_nonzero(part) > part.size or (side == 1 and part.any()):
            yield y * _SMALLEST_TILE, x * _SMALLEST_TILE, side * _SMALLEST_TILE
        elif part.any():
            half = side // 2
            for top, left in ((y, x), (y, x + half), (y + half, x), (y + half, x + half)):
                yield from split(top, left, half)

    step = _LARGEST_TILE // _SMALLEST_TILE
    for y in range(0, len(rows), step):
        for x in range(0, len(columns), step):
            yield from split(y, x, step)


def encode(
    array: np.ndarray,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """Encode a rendered output as PNG.

    Args:
        array: From :func:`render`.
        icc: The ICC profile of the photograph; alpha mattes and masks, which have no color, are written without it.
        dpi: Horizontal and vertical resolution in pixels per inch.
        text: Text by keyword; see :func:`IS_Net.images.encode_png`.

    Returns:
        The content of the file.
    """
    return encode_png(array, None if array.ndim == 2 else icc, dpi, text)


def _dtype(bits: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if bits == 8 else np.uint16


def _to_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    return pixels if bits == 8 else pixels.astype(np.uint16) * np.uint16(257)


def _alpha_to_bits(alpha: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(alpha * np.float32(2**bits - 1)).astype(_dtype(bits))


def _color(kind: str) -> tuple[int, int, int]:
    digits = "FFFFFF" if kind == "white" else kind[1:]
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def _overlay(image: np.ndarray, alpha: np.ndarray, mask: np.ndarray) -> np.ndarray:
    tinted = np.rint(paste(np.uint8(_OVERLAY_COLOR), alpha * np.float32(_OVERLAY_OPACITY), image)).astype(np.uint8)
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(float(np.hypot(*mask.shape)) / 1000))
    return cv2.drawContours(tinted, outline, -1, _OVERLAY_COLOR, width)
