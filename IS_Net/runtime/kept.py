"""Converted networks in the cache folder (see :func:`IS_Net.paths.cache`): one is a file with a record beside it.

Weights are converted once for each size and precision, which takes some seconds and PyTorch. Later processes open what
was kept, without PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from IS_Net import paths
from IS_Net.files import atomic_file, content_hash, remove_leftovers
from IS_Net.preprocess import Size
from IS_Net.runtime.base import Runtime, pick_size

if TYPE_CHECKING:
    from IS_Net.models import ISNetDIS

logger = logging.getLogger(__name__)

KEPT = 4
"""Number of networks that are kept of each runtime; each takes four bytes per weight, 180 MB for IS-Net. The one that
was used longest ago is removed when another is added."""

Opened = TypeVar("Opened", bound=Runtime)


def open_kept(
    title: str,
    path: str | Path,
    parts: list[Any],
    input_size: Size | None,
    reopen: Callable[[Path, np.memmap, Size], Opened],
    convert: Callable[[ISNetDIS, Size], tuple[Opened, bytes]],
) -> tuple[Opened, dict[str, Any], Size]:
    """Open the converted network of a checkpoint, or convert the checkpoint and keep the result.

    Args:
        title: The runtime's name for messages; in lower case, the subfolder.
        path: The checkpoint.
        parts: All that the converted network depends on beside the checkpoint and the size, as JSON values.
        input_size: (height, width); None takes that of the checkpoint, see :func:`IS_Net.runtime.base.pick_size`.
        reopen: Makes a runtime of a kept network: its file, the file's content and the input size. The content is
            checked, and may be modified, which does not change the file.
        convert: Makes a runtime of the checkpoint's network and the input size, and what is to be kept of it.

    Returns:
        The runtime, the checkpoint's metadata, and the input size.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or belongs to another network.
    """
    path = Path(path)
    kept = None
    if path.is_file():
        kept = KeptNetwork(title.lower(), [content_hash(path), input_size, *parts])
        found = kept.read(lambda content, size: reopen(kept.blob, content, size))
        if found is not None:
            logger.info("weights: %s", path)
            logger.info("device: %s", found[0].where)
            return found
    from IS_Net.checkpoint import load_isnet

    model, metadata = load_isnet(path)  # names a file that is missing
    size = pick_size(input_size, metadata)
    logger.info("converting %s for %s, once for this machine", path.name, title)
    runtime, content = convert(model, size)
    if kept is not None:
        kept.write(content, metadata, size)
    logger.info("device: %s", runtime.where)
    return runtime, metadata, size


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
