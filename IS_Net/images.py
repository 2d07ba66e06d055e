"""List, read and write image files: the interface of all that is decoded and encoded here.

The readers accept every form in which photographs and masks are stored, with any EXIF orientation, and return upright
8-bit arrays: RGB for photographs and one channel for masks. :mod:`IS_Net.masks` holds the rule for masks, and
:mod:`IS_Net.decoding` the formats and limits.
"""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageCms

from IS_Net.decoding import (
    IMAGE_EXTENSIONS,
    SIDEWAYS,
    bits_in_use,
    check_finite,
    exif_orientation,
    is_first,
    load_upright,
    open_bytes,
    open_file,
    require_file,
    tell_frames,
    tell_once,
    to_array,
    upright,
)
from IS_Net.errors import DatasetError, ImageError, MissingFileError, join_some
from IS_Net.files import atomic_file
from IS_Net.masks import LEVELS_KEYWORD, MASK_THRESHOLD, binarize, decode_mask, mask_to_array, read_mask

__all__ = [
    "IMAGE_EXTENSIONS",
    "MASK_THRESHOLD",
    "Header",
    "Photograph",
    "atomic_file",
    "binarize",
    "contact_sheet",
    "decode_mask",
    "decode_photograph",
    "encode_image",
    "encode_png",
    "image_size",
    "image_to_array",
    "is_image",
    "list_images",
    "mask_to_array",
    "name_of",
    "read_cutout",
    "read_header",
    "read_image",
    "read_mask",
    "read_photograph",
    "read_png_text",
    "size_mismatch",
    "size_text",
    "write_image",
    "write_map",
    "write_mask",
]

logger = logging.getLogger(__name__)

_SHEET_COLOR = 64  # gray: differs from the black and the white of a mask
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METERS_PER_INCH = 0.0254
_MAX_TEXT = 1 << 16  # bytes of a text chunk that are read
_RECORDS = (".json", ".jsonl", ".csv", ".txt", ".md")
"""Files that lie beside images for a reason; they are left out without a word."""


def is_image(path: PurePath) -> bool:
    """Return whether a file's name ends as an image's does (:data:`IMAGE_EXTENSIONS`) and does not begin with a dot."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def name_of(path: PurePath) -> str:
    """Return the name by which files belong together: the path without its extension, in Unicode's composed form.

    macOS stores names decomposed, so that one name may be stored in two ways.
    """
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix())


def list_images(
    folder: str | Path, recursive: bool = False, extension: str = "", skip: Callable[[Path], bool] | None = None
) -> dict[str, Path]:
    """List the image files of a folder.

    Files of other kinds and, unless ``recursive``, subfolders are left out, which is logged once for each folder.

    Args:
        folder: The folder.
        recursive: Whether to list the files of its subfolders too.
        extension: List only files with this extension, in lower or upper case, such as ``.png``; an empty one lists
            all of :data:`IMAGE_EXTENSIONS`.
        skip: Returns whether to leave out a file or subfolder without a word; None leaves out none.

    Returns:
        The files by name, sorted by path. A name is the path relative to the folder, with ``/`` and without the
        extension (see :func:`name_of`): the stem of a file that lies directly in the folder.

    Raises:
        MissingFileError: If the folder does not exist.
        DatasetError: If the folder contains no such file, or two that differ only in the extension, whose masks would
            have the same name.
    """
    folder, extensions = Path(folder), (extension.lower(),) if extension else IMAGE_EXTENSIONS
    if not folder.is_dir():
        raise MissingFileError(_missing_folder(folder))
    images: dict[str, Path] = {}
    duplicates, others = [], []
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        is_folder = path.is_dir()
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if is_folder and recursive:
            if path.is_symlink():
                logger.warning("%s: is a link to a folder, whose images are left out; name it beside the folder", path)
            continue
        if is_folder or path.suffix.lower() not in extensions:
            others.append(path)
            continue
        if skip is not None and skip(path):
            continue
        first = images.setdefault(name_of(path.relative_to(folder)), path)
        if first != path:
            duplicates.append(f"{first.name} and {path.name}")
    if duplicates:
        raise DatasetError(
            f"{folder}: found {', '.join(duplicates)}; names must differ in more than the extension: rename one, or "
            "remove the one that is not meant"
        )
    if not images:
        found = sorted({path.suffix or path.name for path in others if not path.is_dir()})
        found = f"contains only {', '.join(found[:5])}" if found else "is empty" if not others else "has only folders"
        raise DatasetError(
            f"{folder}: found no image; expected files that end in {', '.join(extensions)}, but the folder {found}"
        )
    left_out = [path for path in others if path.suffix.lower() not in _RECORDS and not (skip and skip(path))]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in left_out]
    if names and is_first(str(folder), *names):
        logger.warning(
            "%s: left out, because only files that end in %s are read: %s",
            *(folder, ", ".join(extensions), join_some(names)),
        )
    return images


def _missing_folder(folder: Path) -> str:
    parent = folder.parent
    if folder.name == "im" and parent.is_dir() and any(is_image(path) for path in parent.iterdir()):
        return (
            f"{folder}: the folder does not exist, and {parent} holds images itself; expected them in the folder im: "
            f"create {folder} and move them there"
        )
    return f"{folder}: the folder does not exist; expected a folder of images"


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


def read_image(path: str | Path) -> np.ndarray:
    """Read a photograph.

    - Its colors are converted to sRGB by its color profile (RGB, gray or CMYK).
    - Transparent pixels are laid on white. A file that is transparent everywhere keeps its colors.
    - 16-bit samples are scaled by the bits in use, and floats are read as 0..1 (or 0..255, if any value is above 2).
    - Of an animation or a file of several pages, the first frame is read, which is logged.

    Args:
        path: A file of one of :data:`IS_Net.decoding.FORMATS`; HEIC needs the extra ``heif``.

    Returns:
        (H, W, 3) uint8 RGB, upright (after the EXIF orientation).

    Raises:
        ImageError: If the file is missing, damaged, truncated, not an image, or larger than
            :func:`IS_Net.decoding.max_pixels`.
    """
    with open_file(path) as image:
        return image_to_array(image, path)


class Photograph(NamedTuple):
    """The pixels of a photograph, and what its file says about their colors and size."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB in sRGB, upright."""
    icc: bytes | None
    """The ICC profile of the file if it is one of RGB that describes these pixels (nearly sRGB), else None."""
    dpi: tuple[float, float] | None
    """Horizontal and vertical resolution of the upright image in pixels per inch, or None."""


def read_photograph(path: str | Path) -> Photograph:
    """Read a photograph with its ICC profile and its resolution.

    Args:
        path: See :func:`read_image`.

    Raises:
        ImageError: If the file is missing, damaged, truncated, or not an image.
    """
    return decode_photograph(require_file(path).read_bytes(), path)


def decode_photograph(data: bytes, name: object = "the image") -> Photograph:
    """Decode the content of an image file as :func:`read_photograph` does.

    Args:
        data: The content of a file; see :func:`read_image`.
        name: How errors refer to it.

    Raises:
        ImageError: If the content is damaged, truncated, or not an image.
    """
    with open_bytes(data, name) as image:
        icc, dpi = image.info.get("icc_profile"), _resolution(image.info.get("dpi"))
        if dpi is not None and exif_orientation(image) in SIDEWAYS:
            dpi = dpi[::-1]
        pixels = image_to_array(image, name)
        return Photograph(pixels, icc if icc and _is_nearly_srgb(icc) else None, dpi)


def _is_nearly_srgb(icc: bytes) -> bool:
    try:
        return icc[16:20] == b"RGB " and _to_srgb(icc, "RGB") is None
    except ImageCms.PyCMSError:  # it is damaged
        return False


def _resolution(dpi: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if all(0 < value < math.inf for value in (x, y)) else None


def image_to_array(image: Image.Image, name: object = "the image") -> np.ndarray:
    """Convert a PIL image to what :func:`read_image` returns for its file.

    Args:
        image: The image, decoded or not.
        name: How log lines refer to it.

    Raises:
        ValueError: If it is a float image with values that are not finite.
    """
    tell_frames(image, name)
    profile = image.info.get("icc_profile")
    image, wide = load_upright(image)
    if wide is not None:
        return _from_wide(wide, name)
    if image.mode.startswith(("I", "F")):
        return np.repeat(_to_8_bits(np.asarray(image), name)[..., None], 3, axis=2)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    return _on_white(to_array(_convert(image, profile, name)), alpha)


def _on_white(pixels: np.ndarray, alpha: Image.Image | None) -> np.ndarray:
    """Lay (H, W, 3) uint8 pixels on white where their alpha, a one-channel image, is below 255; in place."""
    if alpha is None or alpha.getextrema() in ((255, 255), (0, 0)):
        return pixels
    opacity = np.asarray(alpha)
    soft = opacity < 255
    weight = opacity[soft][:, None].astype(np.float32) / 255
    pixels[soft] = np.rint(pixels[soft] * weight + 255 * (1 - weight)).astype(np.uint8)
    return pixels


def _to_8_bits(values: np.ndarray, name: object) -> np.ndarray:
    """Scale samples of more than 8 bits (integers or floats, any shape) to uint8; log it if they use fewer bits."""
    if values.dtype.kind == "f":
        check_finite(values)
        top = float(values.max(initial=0))
        full = 1 if top <= 2 else 255 if top <= 510 else 65535
    else:
        top = int(values.max(initial=0))
        full = 65535 if top > 65535 else (1 << bits_in_use(top)) - 1
        if 255 < full < 65535:
            bits = full.bit_length()
            tell_once(name, f"uses {bits} bits of 16-bit samples; they are scaled, which brightens a dark photograph")
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # a table takes less memory than floats
        return np.minimum(np.rint(np.arange(1 << 16) * (255 / full)), 255).astype(np.uint8)[values]
    return np.clip(np.rint(values * np.float32(255 / full)), 0, 255).astype(np.uint8)


def _from_wide(samples: np.ndarray, name: object) -> np.ndarray:
    """Convert (H, W, 3 or 4) uint16 samples, whose highest value may be that of fewer bits."""
    pixels = _to_8_bits(samples[..., :3], name)
    if samples.shape[2] == 3:
        return pixels
    return _on_white(pixels, Image.fromarray(_to_8_bits(samples[..., 3], name)))


_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}
"""Modes of images, and the color space in the header of a profile that describes them."""


def _convert(image: Image.Image, profile: bytes | None, name: object) -> Image.Image:
    """Convert an image without alpha to RGB, by its profile if that describes it."""
    if image.mode in ("P", "1"):
        image = image.convert("RGB")
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _from_lab())
    if profile and profile[16:20] == _SPACES.get(image.mode):
        try:
            transform = _to_srgb(profile, image.mode)
        except ImageCms.PyCMSError:
            tell_once(name, "its color profile is damaged; its colors are taken for sRGB")
        else:
            if transform is not None:
                return ImageCms.applyTransform(image, transform)
    return image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a profile's colors to sRGB; None if it changes none by more than 2 of 255."""
    transform = ImageCms.buildTransform(io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    samples = Image.fromarray(cube).convert(mode)
    change = cv2.absdiff(np.asarray(ImageCms.applyTransform(samples, transform)), np.asarray(samples.convert("RGB")))
    return transform if change.max() > 2 else None


@lru_cache(maxsize=1)
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def read_cutout(path: str | Path) -> np.ndarray:
    """Read a cut-out: an image of an object with a transparent background.

    Args:
        path: A file with transparency; see :func:`read_image`.

    Returns:
        (h, w, 4) uint8 RGBA, upright (after the EXIF orientation), cropped to the pixels that are not transparent.

    Raises:
        ImageError: If the file is missing, damaged, truncated, not an image, has no alpha channel, or is fully
            transparent.
    """
    with open_file(path) as image:
        image = upright(image)
        if not image.has_transparency_data:
            raise ImageError(f"{path}: the image has no transparency; a cut-out needs an alpha channel")
        image = image.convert("RGBA")
        box = image.getchannel("A").getbbox()
        if box is None:
            raise ImageError(f"{path}: the image is fully transparent; a cut-out needs visible pixels")
        return np.array(image.crop(box))


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


class Header(NamedTuple):
    """What the header of an image file says."""

    size: tuple[int, int]
    """(height, width), as the readers return the image."""
    orientation: int
    """EXIF orientation, 1 to 8."""

    @property
    def turned_in_place(self) -> bool:
        """Whether the orientation turns or flips the image without a change of its size.

        A mask of the pixels as they are stored has the same size then, so that only its content shows the mistake.
        """
        return self.orientation in (2, 3, 4) or (self.orientation > 4 and self.size[0] == self.size[1])


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the (height, width) of an image as the readers return it, without decoding the pixels.

    Raises:
        ImageError: If the file is missing, or its header cannot be read.
    """
    return read_header(path).size


def read_header(path: str | Path) -> Header:
    """Return the size and the EXIF orientation of an image, without decoding the pixels.

    Raises:
        ImageError: If the file is missing, or its header cannot be read.
    """
    with open_file(path) as image:
        width, height = image.size
        # for PNG files, getexif would decode the whole file, because an EXIF chunk may follow the pixels
        may_turn = image.format != "PNG" or _png_has_orientation(Path(path))
        orientation = exif_orientation(image) if may_turn else 1
        if orientation in SIDEWAYS and image.format != "TIFF":  # of TIFF files, Pillow returns the upright size
            width, height = height, width
        return Header((height, width), orientation)


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


def write_map(path: str | Path, levels: np.ndarray) -> None:
    """Write a predicted map atomically as an 8-bit gray PNG file whose text says that its values are levels 0..255.

    :func:`read_mask` takes them as they are then, even if they are 0 and 1 only, which it takes for classes elsewhere.

    Args:
        path: Where to write.
        levels: (H, W) uint8.
    """
    with atomic_file(path) as file:
        file.write(encode_png(levels, text={LEVELS_KEYWORD: "0..255"}))


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
