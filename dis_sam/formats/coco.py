"""COCO annotations: boxes, polygons or RLE in; refined masks out, as RLE with holes.

pycocotools encodes and decodes the masks. Everything in a file that is not a refined mask is kept, in its order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from dis_sam.formats.annotation import (
    Annotation,
    Refiner,
    Summary,
    box_from_edges,
    is_far_outside,
    read_json,
    refine_objects,
    to_json,
    to_numbers,
)
from dis_sam.formats.journal import Journal, digest
from IS_Net.bounded import map_bounded
from IS_Net.errors import DatasetError, UserError, import_extra, join_some
from IS_Net.files import is_existing_file
from IS_Net.images import image_size, read_image, size_mismatch
from IS_Net.lock import lock_folder
from IS_Net.manifest import fingerprint
from IS_Net.preprocess import check_box

Rle = dict[str, Any]
"""``{"size": [height, width], "counts": str}``, a mask as pycocotools compresses it."""

_READ_AHEAD = 2  # images, decoded while the model works


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO file, with the annotations that can be used.

    Attributes:
        id: The id of the image.
        file_name: As the file has it.
        path: The image file.
        size: (height, width) as the file has it, or None if it has none.
        records: The annotations, as the file has them.
    """

    id: Hashable
    file_name: str
    path: Path
    size: tuple[int, int] | None
    records: list[dict[str, Any]] = field(default_factory=list, compare=False)


class CocoFile:
    """The content of a COCO file; see :func:`read`.

    Attributes:
        path: The file.
        content: What it holds, unchanged.
        images: The images that have annotations to refine.
        skipped: Number of annotations that are not refined: crowds (``iscrowd`` 1), which are regions, not objects.
        problems: One error per image or annotation that cannot be used; :meth:`annotations` adds to it.
    """

    def __init__(self, path: Path, content: dict[str, Any], images_dir: Path) -> None:
        self.path, self.content = path, content
        self.problems: list[UserError] = []
        self.skipped = 0
        self._masks = _mask_tools()
        images = self._index_images(images_dir)
        self._group_annotations(images)
        self.images = [image for image in images.values() if image.records]

    def _problem(self, message: str) -> None:
        self.problems.append(DatasetError(f"{self.path}, {message}"))

    def _index_images(self, images_dir: Path) -> dict[Hashable, CocoImage]:
        images: dict[Hashable, CocoImage] = {}
        counts = Counter(_id_of(record) for record in self.content["images"])
        for index, record in enumerate(self.content["images"]):
            number = _id_of(record)
            name = record.get("file_name") if isinstance(record, dict) else None
            if number is None or not isinstance(name, str) or not name:
                self._problem(f"images[{index}]: expected an id and a file_name, found {_shorten(record)}")
            elif counts[number] == 1:
                size = record.get("height"), record.get("width")
                known = all(type(edge) is int and edge > 0 for edge in size)
                images[number] = CocoImage(number, name, images_dir / name, size if known else None)
        for number, count in counts.items():
            if number is not None and count > 1:
                self._problem(f"image {number}: found {count} images with this id; expected one; make the ids unique")
        return images

    def _group_annotations(self, images: Mapping[Hashable, CocoImage]) -> None:
        categories = self.content.get("categories")
        known = {_id_of(category) for category in categories} - {None} if isinstance(categories, list) else set()
        counts = Counter(_id_of(record) for record in self.content["annotations"])
        for number, count in counts.items():
            if number is not None and count > 1:
                self._problem(
                    f"annotation {number}: found {count} annotations with this id; expected one; make the ids unique"
                )
        for index, record in enumerate(self.content["annotations"]):
            number = _id_of(record)
            if number is None:
                self._problem(f"annotations[{index}]: expected an id, found {_shorten(record)}")
                continue
            if counts[number] > 1:
                continue
            image, category = _as_key(record.get("image_id")), record.get("category_id")
            if image not in images:
                self._problem(f"annotation {number}: no usable image has the id {record.get('image_id')!r}")
            elif known and "category_id" in record and _as_key(category) not in known:
                ids = join_some([str(_id_of(known)) for known in categories])
                self._problem(f"annotation {number}: unknown category {category!r}; known ids: {ids}")
            elif record.get("iscrowd") == 1:
                self.skipped += 1
            else:
                images[image].records.append(record)

    def items(self, boxes_only: bool = False) -> Iterator[tuple[Path, list[Annotation]]]:
        """Yield the path of each image with the objects in it, so that each image needs to be read once.

        Args:
            boxes_only: See :meth:`annotations`.
        """
        for image in self.images:
            try:
                size = image_size(image.path)
            except UserError as error:
                self.image_failed(image, image.records, error)
                continue
            yield image.path, self.annotations(image, image.records, size, boxes_only)

    def annotations(
        self, image: CocoImage, records: Sequence[dict[str, Any]], size: tuple[int, int], boxes_only: bool = False
    ) -> list[Annotation]:
        """Convert annotations of an image. One that cannot be used is left out and added to :attr:`problems`.

        An annotation with a segmentation has its tight box; its ``bbox`` is not used.

        Args:
            image: The image.
            records: Some of its annotations.
            size: (height, width) of the image file, upright.
            boxes_only: Use the ``bbox`` of each annotation, and its segmentation only if it has none; no masks.
        """
        if image.size not in (None, size):
            mismatch = size_mismatch(image.path, size, "its entry", image.size)
            self.image_failed(image, records, DatasetError(mismatch))
            return []
        found = []
        for record in records:
            try:
                found.append(self._annotation(image, record, size, boxes_only))
            except UserError as error:
                self.problems.append(error)
        return found

    def image_failed(self, image: CocoImage, records: Sequence[dict[str, Any]], error: UserError) -> None:
        """Add the error of an image, whose annotations cannot be refined, to :attr:`problems`."""
        ids = join_some([str(record["id"]) for record in records])
        self._problem(f"image {image.id}: {error}; annotations that are left as they are: {ids}")

    def _annotation(
        self, image: CocoImage, record: dict[str, Any], size: tuple[int, int], boxes_only: bool
    ) -> Annotation:
        where = f"{self.path}, annotation {record['id']} of {image.file_name}"
        if record.get("bbox") and (boxes_only or not record.get("segmentation")):
            return Annotation(record["id"], where, _read_box(record["bbox"], size, where))
        if not record.get("segmentation"):
            raise DatasetError(f"{where}: found neither a segmentation nor a bbox; expected one of them")
        rle = self._read_segmentation(record["segmentation"], size, where)
        x, y, width, height = map(float, self._masks.toBbox(rle))
        if not width:
            raise DatasetError(f"{where}: the segmentation covers no pixel of the image")
        box = x, y, x + width - 1, y + height - 1
        if boxes_only:
            return Annotation(record["id"], where, box)
        return Annotation(record["id"], where, box, lambda: self._masks.decode(rle).astype(bool, order="C"))

    def _read_segmentation(self, segmentation: Any, size: tuple[int, int], where: str) -> Rle:
        """Check a segmentation and convert it to RLE. pycocotools checks little of it and may crash."""
        if isinstance(segmentation, list):
            polygons = [_read_polygon(flat, size, f"{where}: polygon {i}") for i, flat in enumerate(segmentation)]
            return self._masks.merge(self._masks.frPyObjects(polygons, *size))
        if not isinstance(segmentation, dict):
            raise DatasetError(f"{where}: expected a segmentation of polygons or RLE, found {_shorten(segmentation)}")
        found, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(found, list) or len(found) != 2 or any(type(edge) is not int for edge in found):
            raise DatasetError(f"{where}: RLE: expected a size of [height, width], found {_shorten(found)}")
        if tuple(found) != size:
            raise DatasetError(size_mismatch(f"{where}: the RLE", tuple(found), "the image", size))
        runs = _read_runs(counts, where)
        pixels = size[0] * size[1]
        if sum(runs) != pixels:
            raise DatasetError(f"{where}: RLE: the counts add up to {sum(runs)} pixels, expected {pixels}")
        if isinstance(counts, list) or 0 in runs[1:]:
            rle = self._masks.frPyObjects({"size": list(size), "counts": runs}, *size)
            return self._masks.encode(self._masks.decode(rle))  # toBbox would take runs of length 0 for pixels
        return {"size": list(size), "counts": counts}

    def encode(self, mask: np.ndarray) -> Rle:
        """Return a mask, (H, W) bool, as RLE."""
        rle = self._masks.encode(np.asfortranarray(mask, dtype=np.uint8))
        return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}

    def text(self, results: Mapping[Hashable, Rle]) -> Iterator[str]:
        """Yield the file's content with refined masks, as JSON in parts.

        Annotations with a result get its segmentation, area and bbox; all else is the input's, in its order.

        Args:
            results: The refined masks by the ids of the annotations.
        """
        separator = "{\n"
        for key, value in self.content.items():
            yield f"{separator}{to_json(key)}: "
            separator = ",\n"
            if key == "annotations":
                yield "[\n"
                for index, record in enumerate(value):
                    rle = results.get(_id_of(record))
                    yield ("" if index == 0 else ",\n") + to_json(record if rle is None else self._refined(record, rle))
                yield "\n]"
            else:
                yield to_json(value)
        yield "\n}\n"

    def _refined(self, record: Mapping[str, Any], rle: Rle) -> dict[str, Any]:
        return {
            **record,
            "segmentation": rle,
            "area": float(self._masks.area(rle)),
            "bbox": [float(value) for value in self._masks.toBbox(rle)],
        }


def read(path: str | Path, images_dir: str | Path = "") -> CocoFile:
    """Read a COCO file.

    Args:
        path: JSON with ``images``, ``annotations`` and, usually, ``categories``.
        images_dir: The folder that the ``file_name`` of the images starts at.

    Raises:
        DatasetError: If the file cannot be read or is not a COCO file, or the folder does not exist. What is wrong
            with single images and annotations is found in the result's ``problems`` instead.
        MissingExtraError: If pycocotools is not installed.
    """
    path, images_dir = Path(path), Path(images_dir)
    content = read_json(path)
    if not isinstance(content, dict) or any(
        not isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else _shorten(content)
        raise DatasetError(f"{path}: expected a COCO file, with lists 'images' and 'annotations', found {found}")
    if not images_dir.is_dir():
        raise DatasetError(f"{images_dir}: the folder of images does not exist")
    return CocoFile(path, content, images_dir)


def refine_coco(
    path: str | Path,
    images_dir: str | Path,
    out: str | Path,
    refiner: Refiner,
    *,
    boxes_only: bool = False,
    settings: str = "",
) -> Summary:
    """Refine the objects of a COCO file and write a COCO file with their masks.

    Each image is read once. Refined masks are kept as RLE, in memory and in a journal beside the output
    (``OUT.journal.jsonl``), from which an interrupted run resumes when the function is called again. A result is made
    again if the image, its annotation or the settings changed. Annotations that fail are written unchanged.

    Args:
        path: See :func:`read`.
        images_dir: See :func:`read`.
        out: The output file.
        refiner: Makes the masks; see :func:`dis_sam.formats.annotation.refine_with`.
        boxes_only: See :meth:`CocoFile.annotations`.
        settings: Identifies the weights and options of the refiner.

    Raises:
        DatasetError: If the input cannot be read, or the output is the input, or exists and was not written by this
            function.
        FolderInUseError: If another process writes to the output.
        MissingExtraError: If pycocotools is not installed.
    """
    path, out = Path(path), Path(out)
    coco = read(path, images_dir)
    with lock_folder(out.parent, f"a refinement to {out.name}", name=f".{out.name}.lock"):
        return _refine(coco, path, out, refiner, boxes_only, settings)


def _refine(coco: CocoFile, path: Path, out: Path, refiner: Refiner, boxes_only: bool, settings: str) -> Summary:
    journal = Journal(out.with_name(f"{out.name}.journal.jsonl"))
    journal.check_output(out, out.name, [path])
    summary = Summary(skipped=coco.skipped, problems=coco.problems)
    results: dict[Hashable, Rle] = {}
    keys: dict[Hashable, str] = {}
    todo: list[tuple[CocoImage, list[dict[str, Any]]]] = []
    for image in coco.images:
        stamp = fingerprint(image.path) if is_existing_file(image.path) else None
        records = []
        for record in image.records:
            inputs = record.get("bbox"), record.get("segmentation")
            key = digest(str(image.path), stamp, image.size, inputs, boxes_only, settings)
            keys[record["id"]] = key
            if stamp is not None and key in journal.results:
                results[record["id"]] = journal.results[key]
            else:
                records.append(record)
        if records:
            todo.append((image, records))
    summary.kept = len(results)

    total = sum(len(records) for _, records in todo)
    with ThreadPoolExecutor(1) as reader, tqdm(total=total, desc="objects", unit="object") as bar:
        loads = map_bounded(reader, lambda item: read_image(item[0].path), todo, _READ_AHEAD)
        for (image, records), load in zip(todo, loads, strict=True):
            try:
                pixels = load.result()
            except UserError as error:
                coco.image_failed(image, records, error)
                bar.update(len(records))
                continue
            annotations = coco.annotations(image, records, pixels.shape[:2], boxes_only)
            bar.update(len(records) - len(annotations))
            for annotation, mask in refine_objects(pixels, annotations, refiner, summary.problems):
                results[annotation.id] = coco.encode(mask)
                journal.add(keys[annotation.id], results[annotation.id])
                summary.refined += 1
                bar.update()
    journal.write(out, out.name, None, coco.text(results))
    if not summary.problems:  # else results of images that are missing for now would be dropped
        journal.compact(set(keys.values()))
    return summary


def _mask_tools() -> ModuleType:
    return import_extra("pycocotools.mask", "formats")


def _as_key(value: Any) -> Hashable:
    """Return an id, or None if it is not a number or a text (a list, for example)."""
    return value if isinstance(value, int | float | str) else None


def _id_of(record: Any) -> Hashable:
    """Return the id of an image, annotation or category, or None if it has none."""
    return _as_key(record.get("id")) if isinstance(record, dict) else None


def _read_box(bbox: Any, size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    values = to_numbers(bbox)
    if values is None or len(values) != 4:
        raise DatasetError(f"{where}: expected a bbox of four numbers x, y, width, height, found {_shorten(bbox)}")
    x, y, width, height = values
    if width <= 0 or height <= 0:
        raise DatasetError(f"{where}: the bbox {values} has no area; expected x, y, width, height")
    return check_box(box_from_edges(x, y, x + width, y + height), *size, f"{where}: bbox, as xyxy")


def _read_polygon(flat: Any, size: tuple[int, int], where: str) -> list[float]:
    values = to_numbers(flat)
    if values is None or len(values) % 2:
        raise DatasetError(f"{where}: expected a list of numbers x, y, x, y, .., found {_shorten(flat)}")
    if len(values) < 6:
        raise DatasetError(f"{where}: found {len(values) // 2} points; expected at least 3")
    if is_far_outside(zip(values[::2], values[1::2], strict=True), size):
        raise DatasetError(f"{where}: has points far outside of the image; expected pixels of the upright image")
    return values


def _read_runs(counts: Any, where: str) -> list[int]:
    """Return the lengths of the runs of an RLE, uncompressed (a list) or compressed (a text).

    pycocotools does not check them: where they cover fewer pixels than the image, it returns uninitialized memory.
    """
    if isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
        return counts
    runs: list[int] = []
    if isinstance(counts, str) and all("0" <= character <= "o" for character in counts):
        value = shift = 0
        for character in counts:
            bits = ord(character) - 48
            value |= (bits & 0x1F) << shift
            shift += 5
            if bits & 0x20 and shift < 40:
                continue
            value -= (1 << shift) if bits & 0x10 else 0
            # From the fourth on, a run is stored as the difference to the one two before.
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
        if shift == 0 and min(runs, default=-1) >= 0:
            return runs
    raise DatasetError(f"{where}: RLE: expected counts as a list of integers or as pycocotools' text; they are damaged")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
