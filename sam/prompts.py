"""Prompts of stage 1: boxes and points, read from files and checked against their images."""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from IS_Net.errors import BoxError, ImageError, PromptError, did_you_mean, join_some
from IS_Net.images import IMAGE_EXTENSIONS, image_size, name_of, size_text
from IS_Net.preprocess import box_from_mask, check_box

_COLUMNS = ("name", "object", "x0", "y0", "x1", "y1")
_KEYS = ("object", "box", "points", "labels")
_MAX_LISTED = 80
"""Unknown names in a message."""
_MAX_COMPARED = 20_000
"""Pairs of names that are compared to find similar ones; a thousand take about .07 seconds."""
_LONGEST_NAME = 251
"""Bytes of a mask's name; with .png, they are the limit of the usual file systems."""
_NOT_IN_FILE_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f]')


@dataclass(frozen=True)
class Prompt:
    """One object to segment in one image.

    A prompt with neither box nor points stands for an empty ground truth; its mask is all zero.

    Attributes:
        name: The image's stem.
        object: A name that distinguishes the objects of the image; may be None if the image has only one prompt.
        box: xyxy in pixels of the upright image, or None.
        points: (x, y) of each point, in pixels of the upright image, or None.
        labels: 1 (object) or 0 (background) for each point, or None.
        where: File and row or key that the prompt was read from, for error messages.
    """

    name: str
    object: str | None = None
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] | None = None
    labels: tuple[int, ...] | None = None
    where: str = field(default="", compare=False)

    @property
    def empty(self) -> bool:
        """Whether the prompt stands for an empty ground truth."""
        return self.box is None and self.points is None

    def record(self) -> dict[str, Any]:
        """Return object, box, points and labels as JSON values, as the manifest holds them."""
        return {
            "object": self.object,
            "box": None if self.box is None else list(self.box),
            "points": None if self.points is None else [list(point) for point in self.points],
            "labels": None if self.labels is None else list(self.labels),
        }


def prompt_from_mask(name: str, mask: np.ndarray, object: str | None = None) -> Prompt:
    """Return the tight box of a ground truth, (H, W) bool or uint8, as a prompt; an empty prompt if it is empty."""
    return Prompt(name, object, box_from_mask(mask))


def prompt_from_record(name: str, record: Mapping[str, Any], where: str = "") -> Prompt:
    """Convert one object of a prompt file, or one entry of a manifest, to a prompt.

    Args:
        name: The image's stem.
        record: Holds ``object``, ``box``, ``points`` and ``labels``; missing ones are None. Numbers may be strings.
        where: How errors refer to the record.

    Raises:
        PromptError: If a value has the wrong type or length, or labels and points do not match.
    """
    label = record.get("object")
    label = None if label is None else str(label).strip() or None
    if label is not None and _NOT_IN_FILE_NAMES.search(label):
        raise PromptError(
            f'{where}: the object {label!r} becomes part of a file name and must not contain \\ / : * ? " < > |'
        )
    box = record.get("box")
    if box is not None:
        box = _numbers(box, 4, f"{where}: box", "four numbers x0, y0, x1, y1")
    points, labels = record.get("points"), record.get("labels")
    if (points is None) != (labels is None):
        found, missing = ("labels", "points") if points is None else ("points", "labels")
        raise PromptError(
            f"{where}: found {found} without {missing}; expected one label (1 object, 0 background) per point"
        )
    if points is not None:
        points, labels = _points(points, labels, where)
        if box is None and 1 not in labels:
            raise PromptError(f"{where}: found only background points; add a point with label 1, or a box")
    return Prompt(name, label, box, points, labels, where)


def _numbers(values: Any, count: int, where: str, expected: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values if not isinstance(value, bool))
    except (TypeError, ValueError, OverflowError):  # the last: an integer beyond the range of float
        numbers = ()
    if len(numbers) != count or not isinstance(values, list | tuple) or not all(map(math.isfinite, numbers)):
        raise PromptError(f"{where}: expected {expected}, found {values!r}")
    return numbers


def _points(points: Any, labels: Any, where: str) -> tuple[tuple[tuple[float, ...], ...], tuple[int, ...]]:
    if not isinstance(points, list | tuple) or not isinstance(labels, list | tuple) or not points:
        raise PromptError(
            f"{where}: expected points as [[x, y], ..] and labels as [1, 0, ..], found {points!r}, {labels!r}"
        )
    if len(points) != len(labels):
        raise PromptError(f"{where}: found {len(points)} points and {len(labels)} labels; expected one label per point")
    if any(isinstance(label, bool) or label not in (0, 1) for label in labels):
        raise PromptError(f"{where}: expected labels of 1 (object) and 0 (background), found {labels!r}")
    coordinates = tuple(_numbers(point, 2, f"{where}: point", "two numbers x, y") for point in points)
    return coordinates, tuple(int(label) for label in labels)


def check_points(
    points: Any, labels: Any, size: tuple[int, int], has_box: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Check the points of a prompt that a program gives, as :func:`check_prompts` does those of a file.

    Args:
        points: (N, 2) x, y in pixels, or None.
        labels: (N,) 1 for the object, 0 for the background, or None.
        size: (height, width) of the image.
        has_box: Whether the prompt has a box, or another hint of the object, beside the points.

    Returns:
        Points (N, 2) float64 and labels (N,) int64; None if there are neither.

    Raises:
        PromptError: If only one of the two is given, they differ in number, a label is neither 1 nor 0, a point is not
            two finite numbers or lies outside the image, or there are only background points and no box.
    """

    def plain(values: Any) -> Any:
        return values.tolist() if isinstance(values, np.ndarray) else values

    record = {"points": plain(points), "labels": plain(labels), "box": (0, 0, 0, 0) if has_box else None}
    prompt = prompt_from_record("", record, "points")
    if prompt.points is None:
        return None
    _require_inside(prompt.points, size, "points", "the image")
    return np.asarray(prompt.points, np.float64), np.asarray(prompt.labels, np.int64)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read prompts from a file. They are not compared with the images; see :func:`check_prompts`.

    Args:
        path: ``.csv`` with the columns name, object, x0, y0, x1, y1, or ``.json`` that holds ``{name: [{"object": ..,
            "box": [x0, y0, x1, y1]} | {"object": .., "points": [[x, y], ..], "labels": [1, 0, ..]}]}``.

    Returns:
        The prompts in the order of the file, with the image names that the file uses.

    Raises:
        PromptError: If the file cannot be read or has another form; the message names every faulty row or key.
    """
    path = Path(path)
    extension = path.suffix.lower()
    parsers = {".csv": _parse_csv, ".json": _parse_json}
    if extension not in parsers:
        raise PromptError(f"{path}: expected a prompt file, .csv or .json, found {extension or 'no extension'}")
    if not path.is_file():
        raise PromptError(f"{path}: the prompt file does not exist")
    prompts: list[Prompt] = []
    problems: list[str] = []
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first name
        with path.open(newline="", encoding="utf-8-sig") as file:
            for where, name, record in parsers[extension](file, str(path), problems):
                try:
                    prompts.append(_parse_record(name, record, where))
                except PromptError as error:
                    problems.append(str(error))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise PromptError(f"{path}: cannot be read as {extension[1:].upper()} in UTF-8: {error}") from error
    if not prompts and not problems:
        problems.append(f"{path}: contains no prompts")
    _raise_if_any(problems)
    return prompts


def _parse_csv(file: IO[str], path: str, problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    rows = csv.reader(file, skipinitialspace=True)
    header = [column.strip() for column in next(rows, [])]
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise PromptError(
            f"{path}, line 1: found the columns {', '.join(header) or 'none'}; missing {', '.join(missing)}; "
            f"expected {','.join(_COLUMNS)} (object may be empty in the rows)"
        )
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if not any(map(str.strip, row)):
            continue
        if len(row) != len(header):
            problems.append(f"{where}: found {len(row)} values, expected {len(header)}, one per column")
            continue
        cells = dict(zip(header, map(str.strip, row), strict=True))
        yield where, cells["name"], {"object": cells["object"], "box": [cells[edge] for edge in _COLUMNS[2:]]}


def _parse_json(file: IO[str], path: str, problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # a plain dict would keep the last of two equal keys and silently drop the other prompts
        counts = Counter(key for key, _ in pairs)
        problems.extend(
            f"{path}: found the key {key!r} {count} times in one object; put all prompts of an image under one key"
            for key, count in counts.items()
            if count > 1
        )
        return dict(pairs)

    try:
        images = json.load(file, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of thousands of digits
        raise PromptError(f"{path}: cannot be read as JSON in UTF-8: {error}") from error
    _refuse_annotations(images, path)
    if not isinstance(images, dict):
        raise PromptError(f"{path}: expected an object {{name: [prompt, ..]}}, found {_kind(images)}")
    for name, records in images.items():
        if isinstance(records, list):
            yield from ((f"{path}, {name!r}[{index}]", name, record) for index, record in enumerate(records))
        else:
            problems.append(f"{path}, {name!r}: expected a list of prompts, found {_kind(records)}")


_ANNOTATIONS: dict[str, tuple[set[str], ...]] = {
    "COCO": ({"annotations", "images"}, {"annotations", "categories"}, {"image_id", "bbox"}),
    "labelme": ({"shapes"},),
}
"""Keys that tell other formats; of a list, those of its first element."""


def _refuse_annotations(content: Any, path: str) -> None:
    """Name a file of annotations in one line, instead of each of its keys."""
    first = content[0] if isinstance(content, list) and content else content
    keys = first.keys() if isinstance(first, dict) else set()
    for name, marks in _ANNOTATIONS.items():
        if any(mark <= keys for mark in marks):
            raise PromptError(
                f"{path}: is a {name} file of annotations, not of prompts; give it to `dis-sam refine`, which reads "
                'such files, or write prompts as {name: [{"box": [x0, y0, x1, y1]}]}'
            )


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), repr(value))


def _parse_record(name: str, record: Any, where: str) -> Prompt:
    if not name:
        raise PromptError(f"{where}: the name is empty; expected the name of an image")
    if not isinstance(record, dict):
        raise PromptError(f"{where}: expected an object with box, or points and labels, found {_kind(record)}")
    for key in record.keys() - set(_KEYS):
        raise PromptError(f"{where}: unknown key {key!r}{did_you_mean(key, _KEYS)}")
    prompt = prompt_from_record(name, record, where)
    if prompt.empty:
        raise PromptError(f"{where}: expected a box, or points and labels, found neither")
    return prompt


def check_prompts(prompts: Iterable[Prompt], images: Mapping[str, Path]) -> dict[str, Prompt]:
    """Match prompts to images, and name the mask of each.

    Args:
        prompts: Their names may include the extension of the image file.
        images: Path of each image by its stem. Only the headers are read.

    Returns:
        Prompts by mask name, which is ``NAME`` if the image has one prompt and ``NAME_OBJECT`` if it has several.
        Their names are the stems of the images, and their boxes are clipped to the images.

    Raises:
        PromptError: If an image is unknown, a box or point lies outside its image, or two prompts would write the
            same mask; the message names all such prompts.
    """
    problems, unknown, of_image = [], {}, defaultdict(list)
    sizes: dict[str, tuple[int, int] | None] = {}
    for prompt in prompts:
        stem = _stem(prompt.name, images)
        if stem is None:
            unknown.setdefault(prompt.name, prompt.where)
            continue
        if stem not in sizes:
            sizes[stem] = _size_or_none(images[stem])
        try:
            of_image[stem].append(_inside(replace(prompt, name=stem), sizes[stem]))
        except (BoxError, PromptError) as error:
            problems.append(str(error))
    if unknown:
        problems.insert(0, _unknown_images(unknown, images))

    masks: dict[str, Prompt] = {}
    for stem, siblings in of_image.items():
        for prompt in siblings:
            try:
                name = _mask_name(prompt, siblings)
                other = masks.setdefault(name, prompt)
                if other is not prompt:
                    what = "the object is given twice" if other.name == stem else f"so would {_describe(other)}"
                    raise PromptError(f"{_describe(prompt)}: would write mask {name!r}, and {what}; rename the object")
                length = len(os.fsencode(name.rpartition("/")[2]))  # a photograph's name may begin with folders
                if length > _LONGEST_NAME:
                    raise PromptError(
                        f"{_describe(prompt)}: the name of the mask, {name[:40]!r} .., has {length} bytes, expected at "
                        f"most {_LONGEST_NAME}; shorten the object's name"
                    )
                if name != stem and name in images:
                    raise PromptError(
                        f"{_describe(prompt)}: would write mask {name!r}, which belongs to the image "
                        f"{images[name].name}; rename the object"
                    )
            except PromptError as error:
                problems.append(str(error))
    _raise_if_any(problems)
    return masks


def _stem(name: str, images: Mapping[str, Path]) -> str | None:
    name = unicodedata.normalize("NFC", name)  # as the names of images; macOS decomposes them
    if name in images:
        return name
    path = Path(name)
    if path.suffix.lower() not in IMAGE_EXTENSIONS:
        return None
    if name_of(path) in images:
        return name_of(path)
    # a path is that of the image, if its folders are
    parts = images[path.stem].absolute().parts if path.stem in images else ()
    return path.stem if parts[-len(path.parts) : -1] == path.parts[:-1] and parts else None


def _size_or_none(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except ImageError:
        return None  # the run reports the file when it reads it, and continues with the other images


def _describe(prompt: Prompt) -> str:
    return prompt.where or f"prompt {prompt.name!r}" + (f", object {prompt.object!r}" if prompt.object else "")


def _inside(prompt: Prompt, size: tuple[int, int] | None) -> Prompt:
    if size is None:
        return prompt
    height, width = size
    _require_inside(prompt.points or (), size, _describe(prompt), f"its image {prompt.name!r}")
    if prompt.box is None:
        return prompt
    return replace(prompt, box=check_box(prompt.box, height, width, f"{_describe(prompt)}, image {prompt.name!r}: box"))


def _require_inside(points: Sequence[Sequence[float]], size: tuple[int, int], where: str, image: str) -> None:
    for x, y in points:
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise PromptError(
                f"{where}: point {[x, y]} lies outside {image} of {size_text(size)} pixels; points are in pixels of "
                "the upright image (after its EXIF orientation)"
            )


def _mask_name(prompt: Prompt, siblings: Sequence[Prompt]) -> str:
    if len(siblings) == 1:
        return prompt.name
    if prompt.object is None:
        raise PromptError(
            f"{_describe(prompt)}: image {prompt.name!r} has {len(siblings)} prompts, and this one has no object; "
            "name the object, because the mask is named after it"
        )
    return f"{prompt.name}_{prompt.object}"


def _unknown_images(unknown: Mapping[str, str], images: Mapping[str, Path]) -> str:
    folder = next((str(path.parent) for path in images.values()), "the image folder")
    names = join_some([f"{name!r} ({where})" if where else repr(name) for name, where in unknown.items()], _MAX_LISTED)
    # looking for similar names takes long where both are many, as in a file of another data set
    few = list(unknown)[: max(1, _MAX_COMPARED // len(images))] if images else []
    near = {match for name in few for match in difflib.get_close_matches(Path(name).stem, images, 1)}
    hint = f"; there are images named {', '.join(map(repr, sorted(near)))}" if near else ""
    return f"no image in {folder} for {names}; expected names of its {len(images)} images{hint}"


def _raise_if_any(problems: Sequence[str]) -> None:
    if problems:
        raise PromptError("\n".join(problems))
