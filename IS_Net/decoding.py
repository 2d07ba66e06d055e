"""Open image files: the formats, limits and orientations that all readers share.

:mod:`IS_Net.images` reads photographs with it, and :mod:`IS_Net.masks` masks.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image

from IS_Net.errors import ImageError, UserError, import_extra

logger = logging.getLogger(__name__)

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
"""The formats that are read, with the endings of their names. No other decoder of Pillow is ever started."""
IMAGE_EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF")
"""Formats, as Pillow names them, that change values a little."""

MAX_MEGAPIXELS = 178.0
"""Larger images are refused, unless the environment variable ``DIS_SAM_MAX_MEGAPIXELS`` allows more (or less)."""
MAX_MEGAPIXELS_VARIABLE = "DIS_SAM_MAX_MEGAPIXELS"
MAX_SCANS = 100
"""Scans of a JPEG file. Programs write about ten; each costs as much time as a whole image."""
_MAX_SCANNED = 12
"""Scans of a JPEG file times its pixels, as a multiple of the limit of pixels."""

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_PLUGINS = {"TIFF": "PIL.TiffImagePlugin", "WEBP": "PIL.WebPImagePlugin", "AVIF": "PIL.AvifImagePlugin"}
"""Modules that Pillow would import together with those of all other formats."""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_STRIP = 1 << 18
"""Pixels that are copied at a time."""
_WIDE = 64
"""A 16-bit file is looked at again if the high bytes of all its samples are below this: it may use fewer bits."""

# Pillow warns of large photographs and of damaged EXIF blocks; both can be read. The filter is set once, because with
# warnings.catch_warnings around each read, threads would undo each other's filters.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnusableError(ValueError):
    """A file that can be decoded, but does not hold what it should."""


# --- messages ---

_told: set[tuple[str, ...]] = set()


def is_first(*key: str) -> bool:
    """Return whether this process asks for the first time, so that the same is not logged again and again."""
    if key in _told:
        return False
    if len(_told) >= 10_000:
        _told.clear()
    _told.add(key)
    return True


def tell_once(name: object, note: str) -> None:
    """Log how a file is read, once for all files of a folder to which the same applies."""
    if is_first(os.path.dirname(str(name)), note):  # noqa: PTH120 the name need not be that of a file
        logger.warning("%s: %s (this is said once for all such files of a folder)", name, note)


# --- opening ---


@contextmanager
def open_file(path: str | Path) -> Iterator[Image.Image]:
    """Open a file as a PIL image.

    Raises:
        ImageError: If the file is missing, damaged, too large, or of another format; also for all errors of decoding.
    """
    path = require_file(path)
    # opened as a file: given a path, Pillow maps uncompressed TIFFs into memory and misreads rotated ones
    with _name_errors(path, lambda: path.stat().st_size), path.open("rb") as stream, _open(stream, path) as image:
        yield image


@contextmanager
def open_bytes(data: bytes, name: object) -> Iterator[Image.Image]:
    """Open the content of a file as :func:`open_file` does; errors refer to it by the name."""
    with _name_errors(name, lambda: len(data)), _open(io.BytesIO(data), name) as image:
        yield image


def require_file(path: str | Path) -> Path:
    """Return the path of a file.

    Raises:
        ImageError: If there is no such file, or it cannot be looked up.
    """
    path = Path(path)
    try:
        found = path.is_file()
    except OSError as error:  # such as a name that is too long, or a folder that is closed to this user
        raise ImageError(f"{path}: the image file cannot be opened: {error.strerror}") from error
    if not found:
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ImageError(f"{path}: the image file {what}")
    return path


@contextmanager
def _name_errors(name: object, size: Callable[[], int]) -> Iterator[None]:
    """Raise all errors of decoding as ImageError, with the name and the size in bytes of the file."""
    try:
        yield
    except UserError:
        raise
    except UnusableError as error:
        raise ImageError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise _too_large(name, int(found[0]) if found else 0) from error
    except MemoryError as error:
        raise ImageError(
            f"{name}: there is not enough memory to read the image ({size()} bytes); scale it down"
        ) from error
    except Exception as error:  # decoders raise errors of all types for damaged files
        raise ImageError(
            f"{name}: cannot be read as an image ({size()} bytes; {error or type(error).__name__}); the file is "
            "damaged, truncated, or of a format that is not supported: copy or export it again"
        ) from error


def _too_large(name: object, pixels: int) -> ImageError:
    enough = f"{MAX_MEGAPIXELS_VARIABLE}={pixels // 10**6 + 1}"
    return ImageError(
        f"{name}: the image is too large to be read safely: found {pixels / 1e6:.4g} megapixels, expected at most "
        f"{max_pixels() / 1e6:g}; scale it down first, or set the environment variable {enough} if there is enough "
        "memory (about 8 bytes a pixel for each process that reads)"
    )


def max_pixels() -> int:
    """Return the highest number of pixels of an image: what the environment says, or :data:`MAX_MEGAPIXELS`.

    Without the environment variable, a lower limit of Pillow (``PIL.Image.MAX_IMAGE_PIXELS``) counts too.

    Raises:
        ImageError: If the environment variable is not a number above 0.
    """
    text = os.environ.get(MAX_MEGAPIXELS_VARIABLE, "").strip()
    if not text:
        limit = round(MAX_MEGAPIXELS * 1e6)
        return limit if Image.MAX_IMAGE_PIXELS is None else min(limit, 2 * Image.MAX_IMAGE_PIXELS)
    try:
        megapixels = float(text)
    except ValueError:
        megapixels = 0.0
    if not 0 < megapixels < 1e6:
        raise ImageError(
            f"environment variable {MAX_MEGAPIXELS_VARIABLE}: expected megapixels, such as 200, found {text!r}"
        )
    return round(megapixels * 1e6)


def _format(head: bytes) -> str | None:
    """Return the format of a file by its first bytes, or None if it is none of :data:`FORMATS`."""
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        length = min(max(int.from_bytes(head[:4], "big"), 16), len(head))
        brands = {head[8:12]} | {head[place : place + 4] for place in range(16, length - 3, 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & _HEIF_BRANDS:
            return "HEIF"
    return None


def _open(stream: IO[bytes], name: object) -> Image.Image:
    start = stream.tell()
    head = stream.read(64)
    stream.seek(start)
    kind = _format(head)
    if kind is None:
        raise ValueError(f"expected {', '.join(FORMATS)}, found a file that starts with {head[:8]!r}")
    _prepare(kind, name)
    limit = max_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = (limit + 1) // 2  # as the user asked; Pillow's own limit is twice this
    image = Image.open(stream, formats=[kind])
    pixels = image.width * image.height
    if pixels > limit:
        image.close()
        raise _too_large(name, pixels)
    if kind == "TIFF":
        right, bottom = (max((tile[1][side] for tile in image.tile), default=0) for side in (2, 3))
        if right * bottom < pixels:  # Pillow would return the rest as black
            raise ValueError(f"its data hold {right} x {bottom} pixels of {pixels}")
        # Pillow would turn it while it decodes, with code that fails for unusual tags; upright() turns it
        image.load_end = lambda: None
    return image


def _prepare(kind: str, name: object) -> None:
    """Import what reads a format."""
    if kind == "HEIF":
        try:
            import_extra("pillow_heif", "heif").register_heif_opener()
        except UserError as error:
            raise ImageError(f"{name}: is a HEIC photograph; {error}, or export it as JPEG") from error
    elif kind in _PLUGINS:
        try:
            importlib.import_module(_PLUGINS[kind])
        except ImportError as error:
            raise ImageError(f"{name}: this version of Pillow does not read {kind} files; update Pillow") from error


_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # those from D0 to D7 are a part of a scan
_END, _SCAN, _ALONE = 0xD9, 0xDA, (0x01, 0xD8)


def _count_scans(data: bytes) -> int:
    """Return the number of scans of the first image in a JPEG file; others, or a video of a phone, may follow it."""
    scans, place = 0, 0
    while (found := _JPEG_MARKER.search(data, place)) and data[found.end() - 1] != _END:
        marker, place = data[found.end() - 1], found.end()
        scans += marker == _SCAN
        if marker not in _ALONE:
            place += int.from_bytes(data[place : place + 2], "big")
    return scans


def _check_scans(image: Image.Image) -> None:
    """Check, before a JPEG file is decoded, that this will not take minutes."""
    stream = getattr(image, "fp", None)
    if image.format not in ("JPEG", "MPO") or stream is None or not image.tile:
        return
    place = stream.tell()
    stream.seek(0)
    scans = _count_scans(stream.read())
    stream.seek(place)
    pixels, limit = image.width * image.height, _MAX_SCANNED * max_pixels()
    if scans > MAX_SCANS or scans * pixels > limit:
        raise UnusableError(
            f"the JPEG file has {scans} scans of {pixels / 1e6:.1f} megapixels, which would take minutes to decode; "
            f"expected at most {MAX_SCANS} scans, and {limit / 1e6:g} megapixels in all scans: save it again as a JPEG "
            f"that is not progressive, or as PNG (the environment variable {MAX_MEGAPIXELS_VARIABLE} sets the limit of "
            "pixels)"
        )


def _check_sums(image: Image.Image) -> None:
    """Check, before a PNG file is decoded, the checksums of its pixels, at which Pillow does not look.

    Without it, a flipped bit would change a mask in silence. Decoding itself finds damage in files that are compressed
    little, such as photographs, whose checksums would take a fifth of the decoder's time.
    """
    stream = getattr(image, "fp", None)
    if stream is None or not image.tile:
        return
    place = stream.tell()
    if stream.seek(0, io.SEEK_END) < image.width * image.height:
        stream.seek(image.tile[0][2] - 8)  # the first chunk of pixels, of which length and kind stand before the data
        while (head := stream.read(8))[4:] == b"IDAT":
            data = stream.read(int.from_bytes(head[:4], "big"))
            if stream.read(4) != zlib.crc32(b"IDAT" + data).to_bytes(4, "big"):
                raise ValueError("the checksum of its pixels is wrong")
    stream.seek(place)


# --- orientation and samples ---


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 if it has none, or if it cannot be read."""
    if image.format == "PNG":  # getexif decodes it, and would hide that its pixels are damaged
        _check_sums(image)
        image.load()
    try:
        # getexif of a TIFF reads all tags, of which others may be damaged
        found = image.tag_v2.get(_ORIENTATION) if image.format == "TIFF" else image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data raise errors of all types
        return 1
    return found if isinstance(found, int) and found in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """Decode an image and turn it by its EXIF orientation.

    Raises:
        UnusableError: If it is a JPEG file that would take minutes to decode.
    """
    _check_scans(image)
    # Not ImageOps.exif_transpose: it also writes the other EXIF tags, and fails for some that it can read.
    method = _UPRIGHT.get(exif_orientation(image))
    turned_by_pillow = image.format == "TIFF" and "load_end" not in vars(image)  # opened by another module
    image.load()
    return image if method is None or turned_by_pillow else image.transpose(method)


def tell_frames(image: Image.Image, name: object) -> None:
    """Log that only the first frame of an animated or multi-page file is read."""
    try:
        # MPO: a JPEG file of a camera that also holds previews or the second eye's view
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # damaged after the first frame
        return
    if animated:
        tell_once(name, "holds several frames or pages; the first one is read")


def load_upright(image: Image.Image) -> tuple[Image.Image, np.ndarray | None]:
    """Decode an image and turn it upright.

    Returns:
        The image; and, of a color file with 16 bits per channel whose samples may use fewer bits, these: (H, W, C)
        uint16, RGB or RGBA. Pillow keeps the high bytes only, which would be almost black.
    """
    stream = getattr(image, "fp", None)
    wide = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and not image.mode.startswith("I")
    orientation = exif_orientation(image)  # may decode the image, after which its tiles are not known
    turned = upright(image)
    if not wide or stream is None or stream.closed:
        return turned, None
    bands = turned.getextrema()
    if max(high for _, high in bands[:3] if bands) >= _WIDE:
        return turned, None
    stream.seek(0)
    samples = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        return turned, None
    samples = cv2.cvtColor(samples, cv2.COLOR_BGR2RGB if samples.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return turned, _turn(samples, orientation)


def _turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored array upright."""
    if orientation in SIDEWAYS:
        array = array.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(array[:: -1 if vertical else 1, :: -1 if horizontal else 1])


def to_array(image: Image.Image) -> np.ndarray:
    """Return an image of 8 bits as an array of its own: (H, W) uint8, or (H, W, C).

    It is copied in strips, because Pillow would need three times the memory of the array, and more time.
    """
    bands = len(image.getbands())
    pixels = np.empty((image.height, image.width) if bands == 1 else (image.height, image.width, bands), np.uint8)
    rows = max(_STRIP // max(image.width, 1), 1)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def check_finite(values: np.ndarray) -> None:
    """Check the values of a float image.

    Raises:
        UnusableError: If one is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise UnusableError("it contains values that are not finite")


def bits_in_use(top: int) -> int:
    """Return the bits of the samples of a 16-bit file with this highest value: 8, 10, 12, 14 or 16."""
    return next(bits for bits in (8, 10, 12, 14, 16) if top < 1 << bits)
