"""The files that the server sends: mattes and colors for the page, pictures and archives for download."""

from __future__ import annotations

import io
import itertools
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image

from dis_sam.outputs import encode, file_label, object_colors, render_all
from dis_sam.pipeline import Result
from dis_sam.serve.pictures import Decoded, Picture, join
from IS_Net.images import encode_png


def file_headers(name: str) -> dict[str, str]:
    """Return the header that gives a download its name, in ASCII for old browsers and in full for others."""
    ascii_name = re.sub(r"[^ -~]|[\"\\%]", "_", name)
    return {"Content-Disposition": f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(name, safe='')}"}


def score_text(result: Result) -> str:
    """Return a result's score for the header X-Score; empty if it is unknown."""
    return "" if np.isnan(result.score) else f"{result.score:.4f}"


def make_files(
    result: Result, decoded: Decoded, name: str, kinds: Sequence[str], bits: int, threshold: float | None, crop: bool
) -> dict[str, bytes]:
    """Return a result as files, by their names."""
    rendered = render_all(result, kinds, bits=bits, threshold=threshold, crop=crop)
    return {f"{name}.{file_label(k)}.png": encode(pixels, decoded.icc, decoded.dpi) for k, pixels in rendered.items()}


def encode_matte(alpha: np.ndarray) -> tuple[bytes, tuple[int, int, int, int]]:
    """Encode an alpha matte for display: a white PNG whose transparency is the matte, cropped to what is not empty.

    Args:
        alpha: (H, W) float32 in [0, 1].

    Returns:
        The PNG, and (left, top, width, height) of the crop. An empty matte gives one transparent pixel.
    """
    values = np.rint(alpha * 255).astype(np.uint8)
    rows, columns = window = _visible(values)
    image = Image.fromarray(np.ascontiguousarray(values[window]))
    image.putpalette([255] * 768)  # the values become indices of a palette: a quarter of the bytes of RGBA
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(256)), compress_level=1)
    return file.getvalue(), (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


def _visible(values: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns that contain all values above 0; the first pixel if there are none."""
    found = [np.flatnonzero(values.any(axis=axis)) for axis in (1, 0)]
    return tuple(slice(int(i[0]), int(i[-1]) + 1) if i.size else slice(0, 1) for i in found)


def encode_colors(result: Result, longest: int) -> bytes:
    """Encode the object's own colors for display, as JPEG, cropped as :func:`encode_matte` does, and reduced."""
    window = _visible(np.rint(result.alpha * 255).astype(np.uint8))
    colors = object_colors(result.image[window], result.alpha[window])
    file = io.BytesIO()
    # without subsampling of colors, which would mix them with the black around the object
    Image.fromarray(reduce_pixels(colors, longest)).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


def reduce_pixels(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Scale a picture or a mask, (H, W) or (H, W, 3) uint8, down to a longer side of this length."""
    scale = longest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = tuple(max(round(length * scale), 1) for length in pixels.shape[1::-1])
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def make_zip(files: dict[str, bytes]) -> bytes:
    """Return an archive of files, by their names."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as writer:  # PNG files do not get smaller
        for name, data in files.items():
            writer.writestr(name, data)
    return archive.getvalue()


def unique_names(stems: Sequence[str], counts: Sequence[int]) -> Iterator[str]:
    """Yield the names of pictures, with ``-2``, ``-3`` and so on appended where files would have the same name.

    Some systems do not distinguish capitals.

    Args:
        stems: The pictures' own names.
        counts: How many objects each has; the files of several are named ``NAME_1``, ``NAME_2`` and so on.
    """
    taken: set[str] = set()
    for stem, count in zip(stems, counts, strict=True):
        for number in itertools.count(1):
            name = stem if number == 1 else f"{stem}-{number}"
            objects = range(1, count + 1) if count > 1 else ()
            labels = {label.casefold() for label in (name, *(f"{name}_{k}" for k in objects))}
            if taken.isdisjoint(labels):
                break
        taken |= labels
        yield name


def export_prompts(results: list[Result], picture: Picture, keys: list[str]) -> list[dict[str, Any]]:
    """Return the objects of one picture as a prompt file holds them, without those in which nothing was found."""
    records = [picture.prompts[key].as_dict(result) for key, result in zip(keys, results, strict=True)]
    return [{"object": str(number), **record} for number, record in enumerate(records, start=1) if record]


def export_files(
    results: list[Result], decoded: Decoded, name: str, kind: str, bits: int, threshold: float | None, crop: bool
) -> dict[str, bytes]:
    """Return the files of one picture by name: one of a kind, or everything for the kind ``zip``."""
    joined, options = join(results), (bits, threshold, crop)
    if kind != "zip":
        return make_files(joined, decoded, name, [kind], *options)
    files = make_files(joined, decoded, name, ["rgba", "alpha", "mask"], *options)
    if joined.coarse is not None:
        mask = joined.coarse if joined.coarse.dtype != bool else joined.coarse.astype(np.uint8) * np.uint8(255)
        files[f"{name}.coarse.png"] = encode_png(mask)
    if len(results) > 1:
        for number, result in enumerate(results, start=1):
            files |= make_files(result, decoded, f"{name}_{number}", ["rgba", "alpha"], *options)
    return files
