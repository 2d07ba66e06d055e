"""List, read and write image files. All of the project's image files are decoded and encoded here.

The readers accept gray, palette, alpha, CMYK and 16-bit files with any EXIF orientation. They return upright 8-bit
arrays: RGB for images and one channel for masks.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from IS_Net.errors import DatasetError, ImageError
from IS_Net.files import atomic_file

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_THRESHOLD = 128
"""Mask values above this belong to the target, here and in all metrics; see :func:`binarize`."""

_SHEET_COLOR = 64  # gray: differs from the black and the white of a mask
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METERS_PER_INCH = 0.0254
_MAX_TEXT = 1 << 16  # bytes of a text chunk that are read

# Pillow warns of large photographs and of damaged EXIF blocks; both can be read. The filter is set once, because with
# warnings.catch_warnings around each read, threads would undo each other's filters.
warnings.filterwarnings("ignore", module=r"PIL\.")


def binarize(mask: np.ndarray) -> np.ndarray:
    """Threshold a mask, uint8 0..255 of any shape; return a bool array of the same shape, True on the target."""
    return mask > MASK_THRESHOLD


def is_image(path: PurePath) -> bool:
    """Return whether a file's name ends as an image's does (:data:`IMAGE_EXTENSIONS`) and does not begin with a dot."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def list_images(
    folder: str | Path, recursive: bool = False, extension: str = "", skip: Callable[[Path], bool] | None = None
) -> dict[str, Path]:
    """List the image files of a folder.

    Args:
        folder: The folder.
        recursive: Whether to list the files of its subfolders too.
        extension: List only files with this extension, in lower or upper case, such as ``.png``; an empty one lists
            all of :data:`IMAGE_EXTENSIONS`.
        skip: Returns whether to leave out an image file; None leaves out none.

    Returns:
        The files by name, sorted by path. A name is the path relative to the folder, with ``/`` and without the
        extension: the stem of a file that lies directly in the folder.

    Raises:
        FileNotFoundError: If the folder does not exist.
        DatasetError: If the folder contains no such file, or two that differ only in the extension, whose masks would
            have the same name.
    """
    folder, extensions = Path(folder), (extension.lower(),) if extension else IMAGE_EXTENSIONS
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the folder does not exist; expected a folder of images")
    images: dict[str, Path] = {}
    duplicates, others = [], set()
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix.lower() not in extensions:
            others.add(path.suffix or path.name)
            continue
        if skip is not None and skip(path):
            continue
        first = images.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if first != path:
            duplicates.append(f"{first.name} and {path.name}")
    if duplicates:
        raise DatasetError(
            f"{folder}: found {', '.join(duplicates)}; names must differ in more than the extension: rename one"
        )
    if not images:
        found = f"contains only {', '.join(sorted(others)[:5])}" if others else "is empty"
        raise DatasetError(
            f"{folder}: found no image; expected files that end in {', '.join(extensions)}, but the folder {found}"
        )
    return images


def size_text(size: tuple[int, int]) -> str:
    """Return a size (height, width) as messages show it: ``"WIDTH x HEIGHT"``."""
    return f"{size[1]} x {size[0]}"


def size_mismatch(file: object, found: tuple[int, int], reference: object, expected: tuple[int, int]) -> str:
    """Return the message about a mask, map or ground truth whose size differs from that of its image.

    Args:
        file: The file, or another name of what has the wrong size.
        found: Its (height, width).
        reference: What it is compared with, for example ``"its image cat.jpg"``.
        expected: The (height, width) of the reference.
    """
    return (
        f"{file} is {size_text(found)} pixels, but {reference} is {size_text(expected)} pixels; "
        "both must have the same size, after their EXIF orientation"
    )


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    """Open a file as a PIL image; raise all errors as ImageError."""
    path = _require_file(path)
    # opened as a file: given a path, Pillow maps uncompressed TIFFs into memory and misreads rotated ones
    with _name_errors(path, lambda: path.stat().st_size), path.open("rb") as file, Image.open(file) as image:
        yield image


def _require_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ImageError(f"{path}: the image file {what}")
    return path


@contextmanager
def _name_errors(name: object, size: Callable[[], int]) -> Iterator[None]:
    """Raise all errors of decoding as ImageError, with the name and the size in bytes of the file."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: the image is too large to be read safely ({error}); scale it down first") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        raise ImageError(
            f"{name}: cannot be read as an image ({size()} bytes; {error}); the file is damaged, truncated, or of a "
            "format that Pillow does not support: copy or export it again"
        ) from error


@contextmanager
def _open_bytes(data: bytes, name: object) -> Iterator[Image.Image]:
    """Open the content of a file as a PIL image; raise all errors as ImageError."""
    with _name_errors(name, lambda: len(data)), Image.open(io.BytesIO(data)) as image:
        yield image


def _to_8_bits(image: Image.Image, guess: bool = True) -> np.ndarray:
    """Scale a one-channel image of more than 8 bits (mode I;16, I or F) to uint8.

    Integers are read as 16-bit samples, and floats as 0..1. With ``guess``, integers are kept if all of them fit into
    8 bits (some tools store an 8-bit mask in a 16-bit file, which would be almost black as 16-bit samples), and floats
    are read as 0..255 if any value is above 1.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it contains values that are not finite")
    peak = values.max(initial=0) if guess else (1 if image.mode == "F" else 65535)
    scale = (255 if peak <= 1 else 1) if image.mode == "F" else (1 if peak <= 255 else 255 / 65535)
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def read_image(path: str | Path) -> np.ndarray:
    """Read a photograph.

    Args:
        path: A file in any format that Pillow reads. Alpha is ignored, 16 bits are scaled to 8.

    Returns:
        (H, W, 3) uint8 RGB, upright (after the EXIF orientation).

    Raises:
        ImageError: If the file is missing, damaged, truncated, or not an image.
    """
    with _open(path) as image:
        return image_to_array(image)


class Photograph(NamedTuple):
    """The pixels of a photograph, and what its file says about their colors and size."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""
    icc: bytes | None
    """The ICC profile of the pixels; None if the file has none, or one of another color space than RGB."""
    dpi: tuple[float, float] | None
    """Horizontal and vertical resolution of the upright image in pixels per inch, or None."""


def read_photograph(path: str | Path) -> Photograph:
    """Read a photograph with its ICC profile and its resolution.

    Args:
        path: See :func:`read_image`.

    Raises:
        ImageError: If the file is missing, damaged, truncated, or not an image.
    """
    return decode_photograph(_require_file(path).read_bytes(), path)


def decode_photograph(data: bytes, name: object = "the image") -> Photograph:
    """Decode the content of an image file as :func:`read_photograph` does.

    Args:
        data: The content of a file in any format that Pillow reads.
        name: How errors refer to it.

    Raises:
        ImageError: If the content is damaged, truncated, or not an image.
    """
    with _open_bytes(data, name) as image:
        icc, dpi = image.info.get("icc_profile"), _resolution(image.info.get("dpi"))
        if dpi is not None and image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS:
            dpi = dpi[::-1]
        return Photograph(image_to_array(image), icc if _is_rgb_profile(icc) else None, dpi)


def _is_rgb_profile(icc: bytes | None) -> bool:
    return icc is not None and icc[16:20] == b"RGB "  # the header's color space; a gray file's would not fit RGB pixels


def _resolution(dpi: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if all(0 < value < math.inf for value in (x, y)) else None


def image_to_array(image: Image.Image) -> np.ndarray:
    """Convert a PIL image to what :func:`read_image` returns for its file.

    Raises:
        ValueError: If it is a float image with values that are not finite.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return np.repeat(_to_8_bits(image)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def read_cutout(path: str | Path) -> np.ndarray:
    """Read a cut-out: an image of an object with a transparent background.

    Args:
        path: A file in any format that Pillow reads, with transparency.

    Returns:
        (h, w, 4) uint8 RGBA, upright (after the EXIF orientation), cropped to the pixels that are not transparent.

    Raises:
        ImageError: If the file is missing, damaged, truncated, not an image, has no alpha channel, or is fully
            transparent.
    """
    with _open(path) as image:
        image = ImageOps.exif_transpose(image)
        if not image.has_transparency_data:
            raise ImageError(f"{path}: the image has no transparency; a cut-out needs an alpha channel")
        image = image.convert("RGBA")
        box = image.getchannel("A").getbbox()
        if box is None:
            raise ImageError(f"{path}: the image is fully transparent; a cut-out needs visible pixels")
        return np.array(image.crop(box))


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask or a ground truth.

    - Gray files are read as they are.
    - In a file with a color palette, all indices but 0 are the target (DAVIS and VOC store objects as dark colors).
    - If a file has a single color and a varying alpha channel, the alpha channel is the mask.
    - Of other color files, the luminance is the mask.
    - A mask of 0 and 1 is scaled to 0 and 255.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        (H, W) uint8 0..255, upright (after the EXIF orientation).

    Raises:
        ImageError: If the file is missing, damaged, truncated, or not an image.
    """
    with _open(path) as image:
        return mask_to_array(image)


def decode_mask(data: bytes, name: object = "the mask") -> np.ndarray:
    """Decode the content of a mask's file as :func:`read_mask` does.

    Args:
        data: The content of a file in any format that Pillow reads.
        name: How errors refer to it.

    Returns:
        (H, W) uint8 0..255, upright (after the EXIF orientation).

    Raises:
        ImageError: If the content is damaged, truncated, or not an image.
    """
    with _open_bytes(data, name) as image:
        return mask_to_array(image)


def mask_to_array(image: Image.Image) -> np.ndarray:
    """Convert a PIL image to what :func:`read_mask` returns for its file.

    Raises:
        ValueError: If it is a float image with values that are not finite.
    """
    mask = _to_plane(image, guess=True)
    return mask * np.uint8(255) if mask.max(initial=0) == 1 else mask


def read_map(path: str | Path) -> np.ndarray:
    """Read a predicted map: like :func:`read_mask`, but the scale does not depend on the highest value.

    8-bit values are read as they are, 16-bit values are scaled by 255 / 65535, and floats are read as 0..1. A file of a
    single color whose alpha channel is 0 everywhere is an empty map.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        (H, W) uint8 0..255, upright (after the EXIF orientation).

    Raises:
        ImageError: If the file is missing, damaged, truncated, or not an image.
    """
    with _open(path) as image:
        return _to_plane(image, guess=False)


def _to_plane(image: Image.Image, guess: bool) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _to_8_bits(image, guess)
    if image.mode == "P":
        return _from_palette(image)
    if image.mode in ("LA", "PA", "RGBA"):
        return _from_alpha(image, empty=not guess)
    return np.array(image.convert("L"))


def _from_palette(image: Image.Image) -> np.ndarray:
    # the whole palette and not the colors in use: VOC's seventh object has a gray value that is below the threshold
    palette = np.reshape(image.getpalette("RGB"), (-1, 3))
    if (palette[:, :1] == palette).all():  # a gray file that is stored with a palette
        return np.array(image.convert("RGB"))[..., 0]
    return np.where(np.asarray(image) > 0, np.uint8(255), np.uint8(0))


def _from_alpha(image: Image.Image, empty: bool) -> np.ndarray:
    """Return the alpha channel of a single-color image if it varies, or if ``empty`` and it is 0; else luminance."""
    pixels = np.array(image.convert("RGBA"))
    color, alpha = pixels[..., :3], pixels[..., 3]
    if (np.ptp(alpha) > 0 or (empty and not alpha.any())) and not np.ptp(color, axis=(0, 1)).any():
        return alpha
    return np.array(image.convert("RGB").convert("L"))


def _png_has_orientation(path: Path) -> bool:
    """Return whether a PNG file contains EXIF or XMP data; only the heads of its chunks are read."""
    with path.open("rb") as file:
        file.seek(len(_PNG_SIGNATURE))
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            start = file.read(min(length, 32))
            if kind == b"eXIf" or start.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
                return True
            file.seek(length - len(start) + 4, os.SEEK_CUR)  # the rest of the chunk and its checksum
    return False


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the (height, width) of an image as the readers return it, without decoding the pixels.

    Raises:
        ImageError: If the file is missing, or its header cannot be read.
    """
    with _open(path) as image:
        width, height = image.size
        # For TIFF files, Pillow returns the size after rotation. For PNG files, getexif would decode the whole file,
        # because an EXIF chunk may follow the pixels.
        may_rotate = image.format != "TIFF" and (image.format != "PNG" or _png_has_orientation(Path(path)))
        if may_rotate and image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        return height, width


def encode_image(image: np.ndarray, extension: str, quality: int = 95) -> bytes:
    """Encode an image in the format of a file extension.

    Args:
        image: (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) gray, uint8.
        extension: ``.png``, ``.jpg`` or another extension that OpenCV writes.
        quality: Quality of a JPEG, 0 to 100.

    Returns:
        The content of the file.

    Raises:
        ValueError: If the shape or dtype differs, or the extension is unknown.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"expected uint8 of {_IMAGE_SHAPES}, found {image.dtype} {image.shape}")
    pixels = _to_opencv(image)
    # OpenCV 5 warns of options that the format does not have
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if extension in (".jpg", ".jpeg") else []
    try:
        written, data = cv2.imencode(extension, pixels, options)
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot write files with the extension {extension!r}") from error
    if not written:
        raise ValueError(f"OpenCV cannot write this {image.shape} array as {extension!r}")
    return data.tobytes()


_IMAGE_SHAPES = "shape (H, W), (H, W, 3) or (H, W, 4)"


def _to_opencv(image: np.ndarray) -> np.ndarray:
    """Return an image with its channels in OpenCV's order."""
    channels = 1 if image.ndim == 2 else image.shape[-1] if image.ndim == 3 else 0
    if channels not in (1, 3, 4) or image.size == 0:
        raise ValueError(f"expected {image.dtype} of {_IMAGE_SHAPES}, found {image.shape}")
    order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[channels]
    return image if order is None else cv2.cvtColor(image, order)


def encode_png(
    image: np.ndarray,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """Encode an image as PNG, with 8 or 16 bits per channel and metadata.

    Args:
        image: (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) gray; uint8 or uint16.
        icc: The ICC profile of the pixels.
        dpi: Horizontal and vertical resolution in pixels per inch. PNG stores whole pixels per meter.
        text: Text by keyword; see :func:`read_png_text`. Both are in Latin-1; a keyword has 1 to 79 characters.

    Returns:
        The content of the file.

    Raises:
        ValueError: If the shape or dtype differs.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected uint8 or uint16 of {_IMAGE_SHAPES}, found {image.dtype} {image.shape}")
    written, encoded = cv2.imencode(".png", _to_opencv(image))
    if not written:
        raise ValueError(f"OpenCV cannot write this {image.shape} array as PNG")
    chunks = []
    if icc is not None:
        chunks.append(_png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if dpi is not None:
        x, y = (min(max(round(value / _METERS_PER_INCH), 1), 2**31 - 1) for value in dpi)
        chunks.append(_png_chunk(b"pHYs", struct.pack(">IIB", x, y, 1)))
    for keyword, value in (text or {}).items():
        chunks.append(_png_chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + value.encode("latin-1")))
    data = encoded.tobytes()
    head = len(_PNG_SIGNATURE) + 25  # the first chunk, IHDR, has 13 bytes of data
    return b"".join((data[:head], *chunks, data[head:]))


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read_png_text(path: str | Path, keyword: str) -> str | None:
    """Return a text that :func:`encode_png` wrote into a file, or None if the file has none, or is no PNG file.

    Only the heads of the chunks before the pixels are read.

    Raises:
        OSError: If the file cannot be read.
    """
    start = keyword.encode("latin-1") + b"\0"
    with Path(path).open("rb") as file:
        if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
            return None
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"tEXt" and length <= _MAX_TEXT:
                data = file.read(length)
                if data.startswith(start) and len(data) == length:
                    return data[len(start) :].decode("latin-1")
                length -= len(data)
            file.seek(length + 4, os.SEEK_CUR)  # the rest of the chunk and its checksum
    return None


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an image file atomically.

    Args:
        path: Has the extension ``.png``, ``.jpg`` (quality 95) or another one that OpenCV writes.
        image: (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) gray, uint8.

    Raises:
        ValueError: If the shape or dtype differs, or the extension is unknown.
    """
    path = Path(path)
    try:
        data = encode_image(image, path.suffix.lower())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with atomic_file(path) as file:
        file.write(data)


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask atomically as an 8-bit gray PNG file.

    Args:
        path: Must have the extension ``.png``, because a lossy format would blur the mask.
        mask: (H, W), bool (written as 0 and 255) or uint8 (written unchanged).

    Raises:
        ValueError: If the shape, dtype or extension differs.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: masks are written as .png, not as {path.suffix or 'a file without extension'}")
    if mask.dtype == bool:
        mask = mask.astype(np.uint8) * np.uint8(255)
    if mask.ndim != 2:
        raise ValueError(f"{path}: expected a mask of shape (H, W), found {mask.shape}")
    write_image(path, mask)


def contact_sheet(
    rows: Iterable[Sequence[np.ndarray]],
    height: int,
    columns: int = 1,
    gap: int = 4,
    captions: Sequence[str] = (),
) -> np.ndarray:
    """Lay out pictures for an overview: those of a row side by side, scaled to one height.

    Args:
        rows: Each a sequence of pictures, (h, w) or (h, w, 3) uint8, of any sizes.
        height: Height of the pictures in pixels.
        columns: Number of rows that are laid side by side, filled from left to right.
        gap: Pixels between pictures, and around them.
        captions: One line of ASCII text for each row, which is written above it; none by default.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: If there is no row, or another number of captions than of rows.
    """
    strips = [_strip(row, height, gap) for row in rows]
    if not strips:
        raise ValueError("a contact sheet needs at least one row of pictures; found none")
    if captions:
        strips = [
            np.vstack((_caption(text, strip.shape[1]), strip)) for strip, text in zip(strips, captions, strict=True)
        ]
    width = max(strip.shape[1] for strip in strips)
    strips = [_pad(strip, right=width - strip.shape[1]) for strip in strips]
    strips += [np.full_like(strips[0], _SHEET_COLOR)] * (-len(strips) % columns)
    sheet = np.vstack([np.hstack(strips[start : start + columns]) for start in range(0, len(strips), columns)])
    return _pad(sheet, top=gap, left=gap)


def _pad(picture: np.ndarray, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    return np.pad(picture, ((top, bottom), (left, right), (0, 0)), constant_values=_SHEET_COLOR)


def _strip(pictures: Sequence[np.ndarray], height: int, gap: int) -> np.ndarray:
    """Scale pictures to one height and lay them side by side, with a gap to the right of each and below all."""
    cells = []
    for picture in pictures:
        size = max(round(picture.shape[1] * height / picture.shape[0]), 1), height
        shrink = height < picture.shape[0]
        cell = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
        cell = cell if cell.ndim == 3 else cv2.cvtColor(cell, cv2.COLOR_GRAY2RGB)
        cells.append(_pad(cell, bottom=gap, right=gap))
    return np.hstack(cells)


def _caption(text: str, width: int) -> np.ndarray:
    bar = np.full((18, width, 3), _SHEET_COLOR, np.uint8)
    return cv2.putText(bar, text, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (235, 235, 235), 1, cv2.LINE_AA)
