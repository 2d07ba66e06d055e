"""labelme files: rectangles, polygons, circles and masks in; ``mask`` shapes out, as labelme 5 and later store them.

Everything in a file that is not a refined shape is kept, in its order, unknown keys included.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from dis_sam.formats.annotation import (
    Annotation,
    Refiner,
    Summary,
    is_far_outside,
    read_json,
    refine_objects,
    to_json,
    to_numbers,
)
from dis_sam.formats.journal import Journal, digest
from IS_Net.bounded import map_bounded
from IS_Net.decoding import open_bytes
from IS_Net.errors import DatasetError, ImageError, UserError
from IS_Net.files import is_existing_file
from IS_Net.images import encode_image, image_to_array, read_image, size_mismatch
from IS_Net.lock import lock_folder
from IS_Net.manifest import fingerprint
from IS_Net.preprocess import box_from_mask, check_box

_NUM_POINTS = {"rectangle": 2, "mask": 2, "circle": 2, "oriented_rectangle": 4, "polygon": None}
"""Number of points of the shapes that are refined; a polygon has at least 3."""

_SKIPPED = ("point", "points", "line", "linestrip")
_READ_AHEAD = 2  # files, read with their images while the model works
_ORIENTATION = 0x0112  # EXIF


@dataclass(frozen=True)
class LabelmeFile:
    """The content of a labelme file; see :func:`read`.

    Attributes:
        path: The file.
        content: What it holds, unchanged.
        image: (H, W, 3) uint8 RGB, as labelme shows it.
        image_path: The image file that ``imagePath`` names; it need not exist if the file holds the image itself.
        problems: One error per shape that cannot be used; :meth:`annotations` adds to it.
    """

    path: Path
    content: dict[str, Any]
    image: np.ndarray = field(repr=False)
    image_path: Path
    problems: list[UserError] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Number of shapes that are not refined: points and lines."""
        return sum(_type_of(shape) in _SKIPPED for shape in self.content["shapes"])

    def annotations(self, boxes_only: bool = False) -> list[Annotation]:
        """Return the shapes that can be refined; their ids are the indices of the shapes.

        Each shape is an object of its own, whatever its ``group_id``.

        Args:
            boxes_only: Use the tight box of each shape; no masks.
        """
        found = []
        for index, shape in enumerate(self.content["shapes"]):
            if _type_of(shape) in _SKIPPED:
                continue
            label = shape.get("label") if isinstance(shape, dict) else None
            where = f"{self.path}, shape {index}" + (f" ({label})" if label else "")
            try:
                found.append(self._annotation(index, shape, where, boxes_only))
            except UserError as error:
                self.problems.append(error)
        return found

    def _annotation(self, index: int, shape: Any, where: str, boxes_only: bool) -> Annotation:
        size = self.image.shape[:2]
        kind = _type_of(shape)
        if kind not in _NUM_POINTS:
            raise DatasetError(f"{where}: unknown shape_type {kind!r}; expected one of {', '.join(_NUM_POINTS)}")
        points = _read_points(shape.get("points"), kind, size, where)
        if kind == "rectangle":
            (x0, y0), (x1, y1) = points
            edges = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
            return Annotation(index, where, check_box(edges, *size, f"{where}: rectangle, as xyxy"))

        def decode() -> np.ndarray:
            if kind == "mask":
                return _read_mask(shape.get("mask"), points, size, where)
            return _fill(kind, points, size)

        box = box_from_mask(decode())
        if box is None:
            raise DatasetError(f"{where}: the {kind} covers no pixel of the image")
        return Annotation(index, where, box, None if boxes_only else decode)

    def text(self, results: dict[int, dict[str, Any]], folder: Path) -> str:
        """Return the file's content with refined masks, as JSON.

        Args:
            results: What changes in each refined shape, by its index; see :func:`encode`.
            folder: Where the text will be written. ``imagePath`` becomes relative to it if the image file exists.
        """
        shapes = [
            {**shape, **results[index]} if index in results else shape
            for index, shape in enumerate(self.content["shapes"])
        ]
        content = {**self.content, "shapes": shapes}
        moved = folder.resolve() != self.path.parent.resolve()
        if moved and "imagePath" in content and is_existing_file(self.image_path):
            content["imagePath"] = _relative(self.image_path, folder)
        return to_json(content, indent=2) + "\n"


def read(path: str | Path) -> LabelmeFile:
    """Read a labelme file and its image: that in the file (``imageData``), else that which ``imagePath`` names.

    Raises:
        DatasetError: If the file cannot be read, is not a labelme file, or states another size of the image.
        ImageError: If the image is missing or damaged.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise DatasetError(f"{path}: expected a labelme file, with a list 'shapes'")
    name, data = content.get("imagePath"), content.get("imageData")
    if not isinstance(name, str | None) or not isinstance(data, str | None) or not (name or data):
        raise DatasetError(f"{path}: expected the name of an image (imagePath), or an image (imageData)")
    image_path = path.parent / PureWindowsPath(name or "").as_posix()  # as labelme reads the paths of either system
    if data:
        image = _decode_image(data, path)
    else:
        try:
            image = read_image(image_path)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
    stated = content.get("imageHeight") or image.shape[0], content.get("imageWidth") or image.shape[1]
    if stated != image.shape[:2]:
        reference = "imageHeight and imageWidth of its file"
        if not all(type(edge) is int for edge in stated):
            raise DatasetError(f"{path}: expected integers as imageHeight and imageWidth, found {stated}")
        raise DatasetError(size_mismatch(f"{path}: the image", image.shape[:2], reference, stated))
    return LabelmeFile(path, content, image, image_path)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask, (H, W) bool and not empty, as labelme stores it.

    Returns:
        ``points``, the first and the last column and row; ``shape_type``; and ``mask``, the pixels inside them as PNG
        (0 and 1) in base64.
    """
    x0, y0, x1, y1 = box_from_mask(mask)
    png = encode_image(mask[y0 : y1 + 1, x0 : x1 + 1].astype(np.uint8), ".png")
    return {
        "points": [[float(x0), float(y0)], [float(x1), float(y1)]],
        "shape_type": "mask",
        "mask": base64.b64encode(png).decode("ascii"),
    }


def refine_labelme(
    folder: str | Path,
    out: str | Path,
    refiner: Refiner,
    *,
    recursive: bool = False,
    boxes_only: bool = False,
    settings: str = "",
) -> Summary:
    """Refine the shapes of a folder of labelme files and write a folder of files with their masks.

    A file is made again if it, its image or the settings changed, or if something in it failed. A journal in the output
    folder (``journal.jsonl``) records what was written. Shapes that fail are written unchanged.

    Args:
        folder: Folder of labelme files (``.json``).
        out: Folder of the output files, which have the same names.
        refiner: Makes the masks; see :func:`dis_sam.formats.annotation.refine_with`.
        recursive: Whether to refine the files of subfolders too; the structure is kept.
        boxes_only: See :meth:`LabelmeFile.annotations`.
        settings: Identifies the weights and options of the refiner.

    Raises:
        DatasetError: If the folder does not exist, contains no such file, or is the output folder.
        FolderInUseError: If another process writes to the output folder.
    """
    folder, out = Path(folder), Path(out)
    paths = _list_files(folder, out, recursive)
    with lock_folder(out, "a refinement of labelme files"):
        return _refine(folder, out, paths, refiner, boxes_only, settings)


def _refine(
    folder: Path, out: Path, paths: Sequence[Path], refiner: Refiner, boxes_only: bool, settings: str
) -> Summary:
    journal = Journal(out / "journal.jsonl")
    summary = Summary()

    def load(path: Path) -> tuple[str, int, LabelmeFile | None]:
        """Return what identifies the input, the number of its shapes, and the file unless it is done (in a thread)."""
        target, name = out / path.relative_to(folder), path.relative_to(folder).as_posix()
        content = read_json(path)
        image = path.parent / PureWindowsPath(str(_get(content, "imagePath"))).as_posix()
        stamp = fingerprint(image) if is_existing_file(image) and not _get(content, "imageData") else None
        key = digest(content, stamp, str(target.resolve().parent), boxes_only, settings)
        if journal.is_complete(target, name, key):
            return key, sum(_type_of(shape) in _NUM_POINTS for shape in content["shapes"]), None
        journal.check_output(target, name, paths)
        return key, 0, read(path)

    with ThreadPoolExecutor(1) as reader, tqdm(total=len(paths), desc="files", unit="file") as bar:
        for path, future in zip(paths, map_bounded(reader, load, paths, _READ_AHEAD), strict=True):
            bar.update()
            try:
                key, done, file = future.result()
            except UserError as error:
                summary.problems.append(error)
                continue
            if file is None:
                summary.kept += done
                continue
            annotations = file.annotations(boxes_only)
            objects = refine_objects(file.image, annotations, refiner, file.problems)
            results = {annotation.id: encode(mask) for annotation, mask in objects}
            target, name = out / path.relative_to(folder), path.relative_to(folder).as_posix()
            text = file.text(results, target.parent)
            journal.write(target, name, None if file.problems else key, [text])
            summary.refined += len(results)
            summary.skipped += file.skipped
            summary.problems += file.problems
    journal.compact(())
    return summary


def _list_files(folder: Path, out: Path, recursive: bool) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: the folder does not exist; expected a folder of labelme files")
    if out.resolve() == folder.resolve():
        raise DatasetError(f"{out}: the output would replace its input; choose another output folder")
    found = sorted(folder.rglob("*.json") if recursive else folder.glob("*.json"))
    if folder.resolve() in out.resolve().parents:
        found = [path for path in found if out.resolve() not in path.resolve().parents]
    # names that begin with a dot are hidden, such as those that macOS writes beside its files
    paths = [path for path in found if path.is_file() and not path.name.startswith(".")]
    if not paths:
        raise DatasetError(f"{folder}: found no labelme file; expected files that end in .json")
    return paths


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _type_of(shape: Any) -> Any:
    """Return the type of a shape; without one, it is a polygon, as in labelme."""
    kind = (shape.get("shape_type") or "polygon") if isinstance(shape, dict) else None
    return kind if isinstance(kind, str | None) else repr(kind)


def _read_points(points: Any, kind: str, size: tuple[int, int], where: str) -> Sequence[tuple[float, float]]:
    pairs = [to_numbers(point) for point in points] if isinstance(points, list) else [None]
    if any(pair is None or len(pair) != 2 for pair in pairs):
        raise DatasetError(f"{where}: expected points as [[x, y], ..] of numbers, found {str(points)[:60]}")
    count = _NUM_POINTS[kind]
    if len(pairs) < 3 if count is None else len(pairs) != count:
        expected = "at least 3" if count is None else count
        raise DatasetError(f"{where}: found {len(pairs)} points; expected {expected} for a {kind}")
    corners = pairs
    if kind == "circle":
        (x, y), radius = pairs[0], math.dist(*pairs)
        corners = [(x - radius, y - radius), (x + radius, y + radius)]
    if is_far_outside(corners, size):
        raise DatasetError(f"{where}: has points far outside of the image; expected pixels of the upright image")
    return [(x, y) for x, y in pairs]


def _fill(kind: str, points: Sequence[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """Rasterize a shape as labelme does; return (H, W) bool."""
    mask = Image.new("L", size[::-1])
    draw = ImageDraw.Draw(mask)
    if kind == "circle":
        (x, y), radius = points[0], math.dist(*points)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    else:
        draw.polygon(points, fill=1, outline=1)
    return np.asarray(mask) > 0


def _read_mask(data: Any, points: Sequence[tuple[float, float]], size: tuple[int, int], where: str) -> np.ndarray:
    """Decode a mask shape, which is cropped to its points, both ends included; return (H, W) bool."""
    (x0, y0), (x1, y1) = (tuple(map(int, point)) for point in points)
    try:
        with open_bytes(base64.b64decode(data, validate=True), "its PNG") as image:
            pixels = np.asarray(image) != 0
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: the mask cannot be read as PNG in base64: {error}") from error
    expected = y1 - y0 + 1, x1 - x0 + 1
    if pixels.shape != expected:
        found = " x ".join(map(str, pixels.shape[1::-1] + pixels.shape[2:]))
        raise DatasetError(
            f"{where}: the mask is {found} pixels, but its points span {expected[1]} x {expected[0]} pixels; "
            "expected one channel of that size"
        )
    if x0 < 0 or y0 < 0 or x1 >= size[1] or y1 >= size[0]:
        raise DatasetError(f"{where}: the mask reaches out of the image: its points are {[[x0, y0], [x1, y1]]}")
    mask = np.zeros(size, dtype=bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = pixels
    return mask


def _decode_image(data: str, path: Path) -> np.ndarray:
    try:
        with open_bytes(base64.b64decode(data), "its image") as image:
            # labelme turns an image before it stores it, and shows what it stored as it is
            image.getexif().pop(_ORIENTATION, None)
            return image_to_array(image)
    except ValueError as error:
        raise ImageError(f"{path}: imageData cannot be read as an image in base64: {error}") from error


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return path.resolve().as_posix()
