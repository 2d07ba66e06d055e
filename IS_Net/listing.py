"""Lists of pictures in a file, instead of folders: JSON lines or Parquet, one row for each object of a picture."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IS_Net.errors import DatasetError, import_extra
from IS_Net.files import is_file_name

logger = logging.getLogger(__name__)

COLUMNS = ("name", "image", "object", "mask", "gt", "box", "points", "labels")
"""The columns; ``id`` is another word for ``name``. Others are ignored."""
EXTENSIONS = (".jsonl", ".parquet")
_PATHS = ("image", "mask", "gt")
_MAX_LISTED = 10
_LONGEST_NAME = 230
"""Bytes of a name and an object; file systems allow 255, and outputs have endings such as ``.cutout.png``."""


@dataclass(frozen=True)
class Entry:
    """One row: a picture, or one object of it.

    Attributes:
        name: The picture's name, which the outputs get; it may begin with folders, separated by ``/``.
        image: The file of the picture.
        object: Distinguishes the objects of a picture that has several rows.
        mask: The file of the coarse mask, or None.
        gt: The file of the ground truth, or None.
        prompt: Those of ``box``, ``points`` and ``labels`` that the row has; the values are not checked.
        where: File and line, for messages.
    """

    name: str
    image: Path
    object: str | None
    mask: Path | None
    gt: Path | None
    prompt: Mapping[str, Any]
    where: str


def read_listing(path: str | Path, needs: Sequence[str] = ()) -> list[Entry]:
    """Read a list of pictures. The files that it names are not opened.

    Args:
        path: ``.jsonl``, an object per line, or ``.parquet``, which needs the package pyarrow. The columns are ``name``
            (or ``id``; default: the stem of the image), ``image``, and optionally ``object``, ``mask``, ``gt``, ``box``
            ([x0, y0, x1, y1] in pixels of the upright image), ``points`` ([[x, y], ..]) and ``labels`` ([1, 0, ..]).
            Relative paths begin at the folder of the file.
        needs: Columns that each row must have, beside ``image``.

    Returns:
        The rows in the order of the file.

    Raises:
        DatasetError: If the file cannot be read, or rows are faulty; the message names file, line and key.
        MissingExtraError: If pyarrow is needed and is not installed.
    """
    path = Path(path)
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        found = path.suffix or "no extension"
        raise DatasetError(f"{path}: expected a list of pictures, {' or '.join(EXTENSIONS)}, found {found}")
    if not path.is_file():
        raise DatasetError(f"{path}: the list of pictures does not exist")
    entries: list[Entry] = []
    problems: list[str] = []
    ignored: dict[str, None] = {}
    for where, row in readers[path.suffix.lower()](path, problems):
        try:
            entries.append(_entry(row, where, path.absolute().parent, needs))
        except DatasetError as error:
            problems.append(str(error))
        else:
            ignored |= dict.fromkeys(key for key in row if key not in (*COLUMNS, "id"))
    if not entries and not problems:
        problems.append(f"{path}: contains no rows")
    if problems:
        more = f"\nand {len(problems) - _MAX_LISTED} more faulty rows" if len(problems) > _MAX_LISTED else ""
        raise DatasetError("\n".join(problems[:_MAX_LISTED]) + more)
    if ignored:
        logger.info("%s: the columns %s have no meaning here and are ignored", path, ", ".join(ignored))
    return entries


def _read_jsonl(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                problems.append(f"{where}: cannot be read as JSON in UTF-8: {error}")
                continue
            if isinstance(row, dict):
                yield where, row
            else:
                problems.append(f"{where}: expected an object with name and image, found {line.decode().strip()[:40]}")


def _read_parquet(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = import_extra("pyarrow.parquet", "parquet")
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, ValueError) as error:  # what pyarrow raises are subclasses
        problems.append(f"{path}: cannot be read as Parquet: {error}")


def _entry(row: Mapping[str, Any], where: str, folder: Path, needs: Sequence[str]) -> Entry:
    for key in ("image", *needs):
        if row.get(key) is None:
            raise DatasetError(f"{where}: found no {key!r}; expected {', '.join(dict.fromkeys(('image', *needs)))}")
    paths = {key: row.get(key) for key in _PATHS}
    for key, value in paths.items():
        if value is not None and not (isinstance(value, str) and _can_be_path(value)):
            raise DatasetError(f"{where}: {key!r}: expected the path of a file, found {value!r}")
    name = row.get("id") if row.get("name") is None else row["name"]
    label = row.get("object")
    for key, value in (("name", name), ("object", label)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
            raise DatasetError(f"{where}: {key!r}: expected a text or a number, found {value!r}")
    name = Path(paths["image"]).stem if name is None else str(name)
    is_relative = all(map(is_file_name, name.split("/"))) and not (":" in name and Path(name).is_absolute())
    if not (is_relative and _can_be_path(name)):
        raise DatasetError(f"{where}: 'name': becomes the name of the outputs and cannot be {name!r}")
    if label is not None and not _can_be_path(str(label)):
        raise DatasetError(f"{where}: 'object': becomes part of a file name and cannot be {label!r}")
    longest = max(map(len, map(os.fsencode, name.split("/")))) + len(os.fsencode("" if label is None else str(label)))
    if longest > _LONGEST_NAME:
        raise DatasetError(
            f"{where}: 'name' and 'object' become the name of a file and have {longest} bytes; expected at most "
            f"{_LONGEST_NAME}"
        )
    return Entry(
        unicodedata.normalize("NFC", name),
        **{key: None if value is None else folder / value for key, value in paths.items()},
        object=None if label is None else str(label),
        prompt={key: row[key] for key in ("box", "points", "labels") if row.get(key) is not None},
        where=where,
    )


def _can_be_path(text: str) -> bool:
    try:
        os.fsencode(text)  # JSON can hold half a pair of surrogates
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text
