"""Converted networks in the cache folder (see :func:`IS_Net.paths.cache`): one is a file with a record beside it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from IS_Net import paths
from IS_Net.files import atomic_file, remove_leftovers
from IS_Net.preprocess import Size

logger = logging.getLogger(__name__)

KEPT = 4
"""Number of networks that are kept of each runtime; each takes four bytes per weight, 180 MB for IS-Net. The one that
was used longest ago is removed when another is added."""

Opened = TypeVar("Opened")


class KeptNetwork:
    """A converted network in the cache folder, with a record of its length, its checksum and the checkpoint's metadata.

    Args:
        runtime: The subfolder.
        parts: All that the network depends on, as JSON values; a hash of them is the file's name.
    """

    def __init__(self, runtime: str, parts: list[Any]) -> None:
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        self.folder = paths.cache() / runtime
        self.blob, self.record = self.folder / f"{key}.blob", self.folder / f"{key}.json"

    def read(self, open_content: Callable[[np.memmap, Size], Opened]) -> tuple[Opened, dict[str, Any], Size] | None:
        """Open a network.

        Args:
            open_content: Makes the network of the file's content, (N,) uint8, and the input size; the content may be
                modified, which does not change the file.

        Returns:
            The network, the checkpoint's metadata, and the input size; None if it is missing, damaged, or of another
            machine.
        """
        try:
            record = json.loads(self.record.read_bytes())
            content = np.memmap(self.blob, dtype=np.uint8, mode="c")
            if len(content) != record["length"] or zlib.crc32(content) != record["crc32"]:
                raise ValueError("expected another length or checksum")
            height, width = record["size"]
            opened = open_content(content, (height, width))
            os.utime(self.record)
            return opened, record["metadata"], (height, width)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
            logger.info("%s is not used, and is made again: %s", self.blob, error)
            return None

    def write(self, content: bytes, metadata: dict[str, Any], size: Size) -> None:
        """Store a network; a folder that cannot be written is reported, and nothing else."""
        record = {"length": len(content), "crc32": zlib.crc32(content), "metadata": metadata, "size": size}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            self._make_room()
            with atomic_file(self.blob) as file:
                file.write(content)
            with atomic_file(self.record) as file:
                file.write(json.dumps(record).encode())
        except (OSError, TypeError, ValueError) as error:
            logger.warning(
                "the converted network was not kept, so that the next process converts it again: %s; DIS_SAM_HOME "
                "names another folder",
                error,
            )

    def _make_room(self) -> None:
        records = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for record in records[: max(0, len(records) - KEPT + 1)]:
            record.unlink(missing_ok=True)
            record.with_suffix(".blob").unlink(missing_ok=True)
