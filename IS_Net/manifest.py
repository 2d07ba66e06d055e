"""The manifest: the record, beside the coarse masks of stage 1, of how each mask was made."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IS_Net.images import atomic_file

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"


def fingerprint(path: Path) -> str:
    """Return what changes when a file does: its size in bytes and its time of change in nanoseconds."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_manifest(mask_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Read the record of how the masks of a folder were made.

    Args:
        mask_dir: A folder of masks; ``manifest.jsonl`` in it holds one JSON object a line, the last of a mask counts.

    Returns:
        By mask name (the file's stem), the entry: ``mask``, ``image`` (stem), ``object``, ``box`` (xyxy or None),
        ``points``, ``labels``, ``model``, ``checkpoint`` (sha256 or None), ``select``, ``image_fingerprint`` and
        ``gt_fingerprint`` (see :func:`fingerprint`), ``of`` (the number of the image's masks), ``size`` (height, width),
        ``score`` (the IoU that the model predicts, or None). Empty where the folder has no manifest.
    """
    path = Path(mask_dir) / MANIFEST
    entries: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return entries
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            name = entry["mask"]
        except (ValueError, TypeError, KeyError):
            # a run that was killed while it wrote leaves half a line; its mask is made again
            logger.warning("%s, line %d: not a whole entry; ignored", path, number)
            continue
        if "model" in entry:
            entries[name] = entry
        else:
            entries.pop(name, None)
    return entries


class Manifest:
    """The record beside the masks, appended to as they land, so that an interrupted run loses nothing.

    Args:
        folder: The folder of masks. One run at a time may write to it.
    """

    def __init__(self, folder: Path):
        self.path = folder / MANIFEST
        self.entries = read_manifest(folder)
        self._lock = threading.Lock()
        if self.path.is_file():
            self.compact()  # also ends a line that was cut off, which the next one would otherwise be glued to

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record a mask that has been written, in place of what was recorded of it before."""
        with self._lock:
            self.entries[entry["mask"]] = dict(entry)
            self._append(entry)

    def drop(self, name: str) -> None:
        """Forget a mask that is about to be replaced or removed."""
        with self._lock:
            if self.entries.pop(name, None) is not None:
                self._append({"mask": name})

    def compact(self) -> None:
        """Leave one line for each mask that is there, sorted by name; written whole or not at all."""
        with self._lock:
            text = "".join(
                json.dumps(entry) + "\n"
                for name, entry in sorted(self.entries.items())
                if self.path.with_name(f"{name}.png").is_file()
            )
            if not self.path.is_file() or self.path.read_bytes() != text.encode():
                with atomic_file(self.path, "w") as file:
                    file.write(text)

    def _append(self, entry: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
