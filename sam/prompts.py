"""What stage 1 is asked for, and the record of what it made: prompts and the manifest beside the masks."""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from IS_Net.errors import BoxError, ImageError, PromptError
from IS_Net.images import IMAGE_EXTENSIONS, image_size
from IS_Net.preprocess import box_from_mask, check_box

_COLUMNS = ("name", "object", "x0", "y0", "x1", "y1")
_KEYS = ("object", "box", "points", "labels")
_UNFIT_FOR_FILE_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f]')


@dataclass(frozen=True)
class Prompt:
    """One object to cut out of one image.

    Attributes:
        name: The image's stem.
        object: What tells the image's objects apart; may be None where the image has one prompt only.
        box: xyxy in pixels of the upright image, or None.
        points: (x, y) of each click, in pixels of the upright image, or None.
        labels: 1 (object) or 0 (background) for each click, or None.
        where: File and row or key that the prompt was read from, for error messages.

    A prompt with neither box nor points stands for an empty ground truth; its mask is all zero.
    """

    name: str
    object: str | None = None
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] | None = None
    labels: tuple[int, ...] | None = None
    where: str = field(default="", compare=False)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to ask a model for."""
        return self.box is None and self.points is None

    def record(self) -> dict[str, Any]:
        """Return object, box, points and labels as the JSON values that the manifest holds."""
        return {
            "object": self.object,
            "box": None if self.box is None else list(self.box),
            "points": None if self.points is None else [list(point) for point in self.points],
            "labels": None if self.labels is None else list(self.labels),
        }


def prompt_from_mask(name: str, mask: np.ndarray, object: str | None = None) -> Prompt:
    """Return the tight-box prompt of a ground truth, (H, W) bool or uint8; an empty one where it is empty."""
    return Prompt(name, object, box_from_mask(mask))


def prompt_from_record(name: str, record: Mapping[str, Any], where: str = "") -> Prompt:
    """Turn one object of a prompt file, or one line of a manifest, into a prompt.

    Args:
        name: The image's stem.
        record: Holds ``object``, ``box``, ``points`` and ``labels``; a missing one is None. Numbers may be strings.
        where: What to call the record in an error.

    Raises:
        PromptError: If a value is of the wrong kind or length, or labels and points do not match.
    """
    label = record.get("object")
    label = None if label is None else str(label).strip() or None
    if label is not None and _UNFIT_FOR_FILE_NAMES.search(label):
        raise PromptError(
            f'{where}: the object {label!r} must not hold \\ / : * ? " < > |, for it becomes part of a file name'
        )
    box = record.get("box")
    if box is not None:
        box = _numbers(box, 4, f"{where}: box", "four numbers x0, y0, x1, y1")
    points, labels = record.get("points"), record.get("labels")
    if (points is None) != (labels is None):
        found, lacking = ("labels", "points") if points is None else ("points", "labels")
        raise PromptError(
            f"{where}: found {found} without {lacking}; expected one label (1 object, 0 background) a point"
        )
    if points is not None:
        points, labels = _clicks(points, labels, where)
        if box is None and 1 not in labels:
            raise PromptError(f"{where}: found only background points; add a point of label 1 on the object, or a box")
    return Prompt(name, label, box, points, labels, where)


def _numbers(values: Any, count: int, where: str, expected: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values if not isinstance(value, bool))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not isinstance(values, list | tuple) or not all(map(math.isfinite, numbers)):
        raise PromptError(f"{where}: expected {expected}, found {values!r}")
    return numbers


def _clicks(points: Any, labels: Any, where: str) -> tuple[tuple[tuple[float, ...], ...], tuple[int, ...]]:
    if not isinstance(points, list | tuple) or not isinstance(labels, list | tuple) or not points:
        raise PromptError(
            f"{where}: expected points as [[x, y], ..] and labels as [1, 0, ..], found {points!r}, {labels!r}"
        )
    if len(points) != len(labels):
        raise PromptError(f"{where}: found {len(points)} points and {len(labels)} labels; expected as many")
    if any(isinstance(label, bool) or label not in (0, 1) for label in labels):
        raise PromptError(f"{where}: expected labels of 1 (object) and 0 (background), found {labels!r}")
    clicks = tuple(_numbers(point, 2, f"{where}: point", "two numbers x, y") for point in points)
    return clicks, tuple(int(label) for label in labels)


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read prompts from a file, without looking at the images (see :func:`check_prompts`).

    Args:
        path: ``.csv`` with the columns name, object, x0, y0, x1, y1, or ``.json`` that holds ``{name: [{"object": ..,
            "box": [x0, y0, x1, y1]} | {"object": .., "points": [[x, y], ..], "labels": [1, 0, ..]}]}``.

    Returns:
        The prompts in the file's order, under the image names that the file uses.

    Raises:
        PromptError: If the file cannot be read or holds anything else; every faulty row or key is named.
    """
    path = Path(path)
    ending = path.suffix.lower()
    parsers = {".csv": _parse_csv, ".json": _parse_json}
    if ending not in parsers:
        raise PromptError(f"{path}: expected a prompt file that ends in .csv or .json, found {ending or 'no ending'}")
    if not path.is_file():
        raise PromptError(f"{path}: the prompt file does not exist")
    prompts: list[Prompt] = []
    problems: list[str] = []
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first name
        with path.open(newline="", encoding="utf-8-sig") as file:
            for where, name, record in parsers[ending](file, str(path), problems):
                try:
                    prompts.append(_parse_record(name, record, where))
                except PromptError as error:
                    problems.append(str(error))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, OSError) as error:
        raise PromptError(f"{path}: cannot be read as {ending[1:].upper()} in UTF-8: {error}") from error
    if not prompts and not problems:
        problems.append(f"{path}: holds no prompts")
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
            problems.append(f"{where}: found {len(row)} values, expected {len(header)}, one for each column")
            continue
        cells = dict(zip(header, map(str.strip, row), strict=True))
        yield where, cells["name"], {"object": cells["object"], "box": [cells[edge] for edge in _COLUMNS[2:]]}


def _parse_json(file: IO[str], path: str, problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # a plain dict would keep the last of two equal keys and lose the others' prompts without a word
        counts = Counter(key for key, _ in pairs)
        problems.extend(
            f"{path}: found the key {key!r} {count} times in one object; list all prompts of an image under one key"
            for key, count in counts.items()
            if count > 1
        )
        return dict(pairs)

    images = json.load(file, object_pairs_hook=unique)
    if not isinstance(images, dict):
        raise PromptError(f"{path}: expected an object {{name: [prompt, ..]}}, found {_kind(images)}")
    for name, records in images.items():
        if isinstance(records, list):
            yield from ((f"{path}, {name!r}[{index}]", name, record) for index, record in enumerate(records))
        else:
            problems.append(f"{path}, {name!r}: expected a list of prompts, found {_kind(records)}")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), repr(value))


def _parse_record(name: str, record: Any, where: str) -> Prompt:
    if not name:
        raise PromptError(f"{where}: the name is empty; expected that of an image")
    if not isinstance(record, dict):
        raise PromptError(f"{where}: expected an object with box, or points and labels, found {_kind(record)}")
    for key in record.keys() - set(_KEYS):
        nearest = difflib.get_close_matches(key, _KEYS, 1, 0)[0]
        raise PromptError(f"{where}: unknown key {key!r}, did you mean {nearest!r}? expected {', '.join(_KEYS)}")
    prompt = prompt_from_record(name, record, where)
    if prompt.empty:
        raise PromptError(f"{where}: expected a box, or points and labels, found neither")
    return prompt


def check_prompts(prompts: Iterable[Prompt], images: Mapping[str, Path]) -> dict[str, Prompt]:
    """Match prompts to images and name the masks that they will become.

    Args:
        prompts: Their names may carry the image file's ending.
        images: Path of each image by its stem. Only the headers are read.

    Returns:
        Prompts by mask name, which is ``NAME`` where the image has one prompt and ``NAME_OBJECT`` where it has
        several. Names are the images' stems, boxes are clipped to their images.

    Raises:
        PromptError: If an image is unknown, a box or point lies outside its image, or two prompts would write one
            mask; all such prompts are named at once.
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
                    what = "the object is given twice" if other.name == stem else f"so would {_called(other)}"
                    raise PromptError(f"{_called(prompt)}: would write mask {name!r}, and {what}; rename the object")
                if name != stem and name in images:
                    raise PromptError(
                        f"{_called(prompt)}: would write mask {name!r}, which belongs to the image "
                        f"{images[name].name}; rename the object"
                    )
            except PromptError as error:
                problems.append(str(error))
    _raise_if_any(problems)
    return masks


def _stem(name: str, images: Mapping[str, Path]) -> str | None:
    if name in images:
        return name
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_EXTENSIONS and path.stem in images else None


def _size_or_none(path: Path) -> tuple[int, int] | None:
    try:
        return image_size(path)
    except ImageError:
        return None  # the run reports it when it comes to reading the image, and goes on with the others


def _called(prompt: Prompt) -> str:
    return prompt.where or f"prompt {prompt.name!r}" + (f", object {prompt.object!r}" if prompt.object else "")


def _inside(prompt: Prompt, size: tuple[int, int] | None) -> Prompt:
    if size is None:
        return prompt
    height, width = size
    for x, y in prompt.points or ():
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(
                f"{_called(prompt)}: point {[x, y]} lies outside its image {prompt.name!r} of {width} x {height} "
                "pixels; points are in pixels of the upright image (after its EXIF orientation)"
            )
    if prompt.box is None:
        return prompt
    return replace(prompt, box=check_box(prompt.box, height, width, f"{_called(prompt)}, image {prompt.name!r}: box"))


def _mask_name(prompt: Prompt, siblings: Sequence[Prompt]) -> str:
    if len(siblings) == 1:
        return prompt.name
    if prompt.object is None:
        raise PromptError(
            f"{_called(prompt)}: image {prompt.name!r} has {len(siblings)} prompts, and this one has no object; name "
            "the object, to tell the masks apart"
        )
    return f"{prompt.name}_{prompt.object}"


def _unknown_images(unknown: Mapping[str, str], images: Mapping[str, Path]) -> str:
    folder = next((str(path.parent) for path in images.values()), "the image folder")
    names = ", ".join(f"{name!r} ({where})" if where else repr(name) for name, where in unknown.items())
    near = {match for name in unknown for match in difflib.get_close_matches(Path(name).stem, images, 1)}
    hint = f"; there are images named {', '.join(map(repr, sorted(near)))}" if near else ""
    return f"no image in {folder} for {names}; expected the name of one of its {len(images)} images{hint}"


def _raise_if_any(problems: Sequence[str]) -> None:
    if problems:
        raise PromptError("\n".join(problems))
