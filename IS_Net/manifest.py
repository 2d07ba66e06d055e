"""The manifest: a record, next to the coarse masks of stage 1, of how each mask was made."""

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

_RENAMED = {"image_print": "image_fingerprint", "gt_print": "gt_fingerprint", "of": "num_masks"}
"""Keys of manifests that earlier versions wrote, and their names today."""


def fingerprint(path: Path) -> str:
    """Return a text that changes when the file changes: its size in bytes and its modification time in nanoseconds."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_manifest(mask_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Read the manifest of a folder of masks.

    Manifests of earlier versions are converted to the keys below.

    Args:
        mask_dir: The folder. Its ``manifest.jsonl`` holds one JSON object per line; the last one of a mask counts.

    Returns:
        The entry of each mask, by the mask's name (the file's stem); empty if the folder has no manifest. An entry
        holds ``mask``, ``image`` (stem), ``object``, ``box`` (xyxy or None), ``points``, ``labels``, ``model``,
        ``checkpoint`` (sha256 or None), ``select``, ``image_fingerprint`` and ``gt_fingerprint`` (see
        :func:`fingerprint`), ``num_masks`` (how many masks the image has), ``size`` (height, width), and ``score`` (the
        IoU that the model predicts, or None).
    """
    path = Path(mask_dir) / MANIFEST
    entries: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return entries
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            name = entry["mask"]
        except (ValueError, TypeError, KeyError, RecursionError):
            # a run that is killed while it writes leaves an incomplete line; its mask is made again
            logger.warning("%s, line %d: not a complete entry; ignored", path, number)
            continue
        if "model" in entry:
            entries[name] = {_RENAMED.get(key, key): value for key, value in entry.items()}
        else:  # the mask was about to be replaced or removed
            entries.pop(name, None)
    return entries


class Manifest:
    """The manifest of a folder that masks are being written to.

    Every change is appended to the file at once, so that an interrupted run loses nothing.

    Args:
        folder: The folder of masks. Only one run at a time may write to it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MANIFEST
        self.entries = read_manifest(folder)
        self._lock = threading.Lock()
        if self.path.is_file():
            self.compact()  # also removes an incomplete last line, to which the next entry would be appended

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add the entry of a mask that has been written; it replaces an earlier entry of the mask."""
        with self._lock:
            self.entries[entry["mask"]] = dict(entry)
            self._append(entry)

    def drop(self, name: str) -> None:
        """Drop the entry of a mask that is about to be replaced or removed."""
        with self._lock:
            if self.entries.pop(name, None) is not None:
                self._append({"mask": name})

    def compact(self) -> None:
        """Rewrite the file atomically: one line per mask that exists, sorted by name."""
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
