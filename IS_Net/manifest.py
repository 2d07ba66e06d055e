"""The manifest: a record, next to the coarse masks of stage 1, of how each mask was made."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from IS_Net.errors import DatasetError
from IS_Net.files import append_line, atomic_file, content_hash, is_file_name

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"

_RENAMED = {"image_print": "image_fingerprint", "gt_print": "gt_fingerprint", "of": "num_masks"}
"""Keys of manifests that earlier versions wrote, and their names today."""


def fingerprint(path: Path) -> str:
    """Return a text that changes when the file changes: its size in bytes and its modification time in nanoseconds."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def identify(path: Path, kind: str, entries: Iterable[Mapping[str, Any]] = ()) -> dict[str, str]:
    """Return what identifies a file in the entries of a manifest.

    Args:
        path: The file.
        kind: ``image``, ``gt``, ``mask`` or ``part``, with which the keys begin.
        entries: Entries that may describe the file. If one has its fingerprint, the file is not read.

    Returns:
        ``KIND_fingerprint``, see :func:`fingerprint`, and ``KIND_hash``, the hash of the content.
    """
    now = fingerprint(path)
    known = (entry[f"{kind}_hash"] for entry in entries if _describes(entry, kind, now))
    return {f"{kind}_fingerprint": now, f"{kind}_hash": next(known, None) or content_hash(path)}


def _describes(entry: Mapping[str, Any], kind: str, now: str) -> bool:
    return entry.get(f"{kind}_fingerprint") == now and isinstance(entry.get(f"{kind}_hash"), str)


def is_unchanged(path: Path, kind: str, entry: Mapping[str, Any]) -> bool:
    """Return whether a file has the content that an entry of a manifest records.

    The content decides, so that a data set may be copied, unpacked or touched. It is only read if the size is the same
    and the time is another. Entries of earlier versions have no hash of the content; then size and time decide.

    Args:
        path: The file.
        kind: See :func:`identify`.
        entry: Holds ``KIND_fingerprint`` and, unless an earlier version wrote it, ``KIND_hash``.
    """
    now, recorded = fingerprint(path), entry.get(f"{kind}_fingerprint")
    if now == recorded:
        return True
    of_same_size = isinstance(recorded, str) and recorded.partition("-")[0] == now.partition("-")[0]
    return of_same_size and entry.get(f"{kind}_hash") == content_hash(path)


def recorded_box(mask: Path, entry: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the box that a coarse mask was made from, if the mask is still as stage 1 wrote it.

    Args:
        mask: The file of the mask.
        entry: Its entry; may be empty.

    Returns:
        xyxy in pixels of the image; None if the entry has no box, or the mask was replaced or edited: then the box is
        that of another mask.
    """
    box = entry.get("box")
    if box is None or ("mask_hash" in entry and not is_unchanged(mask, "mask", entry)):
        return None
    return tuple(box)


def read_manifest(mask_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Read the manifest of a folder of masks.

    Manifests of earlier versions are converted to the keys below.

    Args:
        mask_dir: The folder. Its ``manifest.jsonl`` holds one JSON object per line; the last one of a mask counts.

    Returns:
        The entry of each mask, by the mask's name (the file's stem); empty if the folder has no manifest. An entry
        holds ``mask``, ``image`` (stem), ``object``, ``box`` (xyxy or None), ``points``, ``labels``, ``model``,
        ``checkpoint`` (sha256 or None), ``select``, ``num_masks`` (how many masks the image has), ``size`` (height,
        width), and ``score`` (the IoU that the model predicts, or None). ``image_fingerprint`` and ``image_hash``
        identify the image (see :func:`identify`), and likewise ``gt_``, ``mask_`` (the mask's own file) and ``part_``
        (the ground truth of an enriched sample). Entries of earlier versions have no hashes.
    """
    return _read(Path(mask_dir) / MANIFEST)[0]


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Return the entries by mask name, and the names of the masks that were about to be written.

    Raises:
        DatasetError: If the file is not a manifest.
    """
    entries: dict[str, dict[str, Any]] = {}
    pending: set[str] = set()
    if not path.is_file():
        return entries, pending
    content = path.read_bytes()
    for number, line in enumerate(content.splitlines(), 1):
        try:
            entry = json.loads(line)
            name = entry["mask"]
            if not is_file_name(name):  # masks are removed by these names
                raise ValueError
            _check_values(entry)
        except (ValueError, TypeError, KeyError, RecursionError):
            # a run that is killed while it writes leaves an incomplete line; its mask is made again
            logger.warning("%s, line %d: not a complete entry; ignored", path, number)
            continue
        pending.discard(name)
        if "model" in entry:
            entries[name] = {_RENAMED.get(key, key): value for key, value in entry.items()}
        else:
            entries.pop(name, None)
            if entry.get("pending"):
                pending.add(name)
    return entries, pending


def _check_values(entry: Mapping[str, Any]) -> None:
    """Raise a ValueError or TypeError if the image or the box of an entry is not what read_manifest says."""
    if not (entry.get("image") is None or is_file_name(entry["image"])):
        raise ValueError
    box = entry.get("box")
    if box is not None and not (len(box) == 4 and all(math.isfinite(value) for value in box)):
        raise ValueError


class Manifest:
    """The manifest of a folder that masks are being written to.

    Every change is appended to the file at once, so that an interrupted run loses nothing.

    Args:
        folder: The folder of masks. Only one run at a time may write to it.
        part: The folder of a worker that makes a part of the masks (:mod:`IS_Net.shards`). The changes are appended to
            a file there, which is later merged, and the manifest is only read.
    """

    def __init__(self, folder: Path, part: Path | None = None) -> None:
        self.path = folder / MANIFEST
        self._changes = self.path if part is None else part / MANIFEST
        self.entries, self.pending = _read(self.path)
        self._lock = threading.Lock()
        if self.path.is_file():
            self._require_manifest()
        if self.path.is_file() and part is None:
            self.compact()  # also removes an incomplete last line, to which the next entry would be appended

    def _require_manifest(self) -> None:
        start = self.path.read_bytes().lstrip(b"\0")[:8]  # a power cut may leave zeros
        if not (self.entries or self.pending or b'{"mask":'.startswith(start)):
            raise DatasetError(
                f"{self.path}: is not a manifest of masks, and would be replaced by one; move it, or write the masks "
                "to another folder"
            )

    def begin(self, name: str) -> None:
        """Note on the disk that a mask is about to be written: until it is added, its file is known to be no one's."""
        with self._lock:
            self.entries.pop(name, None)
            self.pending.add(name)
            self._append({"mask": name, "pending": True})
        with self._changes.open("rb") as file:  # outside the lock: several threads may wait for the disk together
            os.fsync(file.fileno())

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add the entry of a mask that has been written; it replaces an earlier entry of the mask."""
        with self._lock:
            self.entries[entry["mask"]] = dict(entry)
            self.pending.discard(entry["mask"])
            self._append(entry)

    def drop(self, name: str) -> None:
        """Drop the entry of a mask that has been removed."""
        with self._lock:
            if self.entries.pop(name, None) is not None or name in self.pending:
                self.pending.discard(name)
                self._append({"mask": name})

    def compact(self) -> None:
        """Rewrite the file atomically: one line per mask that exists, sorted by name."""
        with self._lock:
            lines = {name: {"mask": name, "pending": True} for name in self.pending} | self.entries
            text = "".join(
                json.dumps(line) + "\n"
                for name, line in sorted(lines.items())
                if self.path.with_name(f"{name}.png").is_file()
            )
            if not self.path.is_file() or self.path.read_bytes() != text.encode():
                with atomic_file(self.path, "w") as file:
                    file.write(text)

    def _append(self, entry: Mapping[str, Any]) -> None:
        append_line(self._changes, json.dumps(entry) + "\n")
