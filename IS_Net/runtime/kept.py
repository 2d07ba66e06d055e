"""Converted networks in the cache folder (see :func:`IS_Net.paths.cache`): one is a file with a record beside it.

Weights are converted once for each size and precision, which takes some seconds and PyTorch. Later processes open what
was kept, without PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
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

_ABANDONED = 3600.0
"""Seconds after which a network without a record is not one that another process is storing now."""

Opened = TypeVar("Opened", bound=Runtime)


def open_kept(
    title: str,
    path: str | Path,
    parts: list[Any],
    input_size: Size | None,
    reopen: Callable[[np.ndarray, Size, Path | None], Opened],
    convert: Callable[[ISNetDIS, Size], bytes],
) -> tuple[Opened, dict[str, Any], Size]:
    """Open the converted network of a checkpoint; if none is kept, convert the checkpoint and keep the result.

    Args:
        title: The runtime's name for messages; in lower case, the subfolder.
        path: The checkpoint.
        parts: All that the converted network depends on beside the checkpoint and the size, as JSON values.
        input_size: (height, width); None takes that of the checkpoint, see :func:`IS_Net.runtime.base.pick_size`.
        reopen: Makes a runtime of a converted network: its content, (N,) uint8, which may be modified without an effect
            on the file; the input size; and the file, or None if it could not be kept.
        convert: Makes the content of the checkpoint's network and the input size.

    Returns:
        The runtime, the checkpoint's metadata, and the input size.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or belongs to another network.
    """
    path = Path(path)
    input_size = None if input_size is None else (int(input_size[0]), int(input_size[1]))
    version = content_hash(path) if path.is_file() else ""
    kept = KeptNetwork(title.lower(), [version, input_size, *parts])
    found = kept.read(reopen) if version else None
    if found is None:
        from IS_Net.checkpoint import load_isnet

        model, metadata = load_isnet(path)  # names a file that is missing
        size = pick_size(input_size, metadata)
        logger.info("converting %s for %s, once for this machine", path.name, title)
        content = convert(model, size)
        # a training may have replaced the checkpoint since, and then this is perhaps the network of the new one
        if path.is_file() and content_hash(path) == version and kept.write(content, metadata, size):
            found = kept.read(reopen)
        found = found or (reopen(np.frombuffer(bytearray(content), np.uint8), size, None), metadata, size)
    else:
        logger.info("weights: %s", path)
    logger.info("device: %s", found[0].where)
    return found


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

    def read(
        self, reopen: Callable[[np.ndarray, Size, Path | None], Opened]
    ) -> tuple[Opened, dict[str, Any], Size] | None:
        """Open a network.

        Args:
            reopen: See :func:`open_kept`.

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
            opened = reopen(content, (height, width), self.blob)
            with suppress(OSError):  # of another user, or on a disk that cannot be written
                os.utime(self.record)
            return opened, record["metadata"], (height, width)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, RecursionError) as error:
            logger.info("%s is not used, and is made again: %s", self.blob, error)
            return None

    def write(self, content: bytes, metadata: dict[str, Any], size: Size) -> bool:
        """Store a network, and return whether that succeeded; why not is logged."""
        record = {"length": len(content), "crc32": zlib.crc32(content), "metadata": metadata, "size": size}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            self._make_room()
            with atomic_file(self.blob) as file:
                file.write(content)
            with atomic_file(self.record) as file:
                file.write(json.dumps(record).encode())
            return True
        except (OSError, TypeError, ValueError) as error:
            logger.warning(
                "the converted network was not kept, so that the next process converts it again: %s; DIS_SAM_HOME "
                "names another folder",
                error,
            )
            return False

    def _make_room(self) -> None:
        """Remove the networks that were used longest ago, and those that a process left without a record."""
        others = {record: _last_used(record) for record in self.folder.glob("*.json") if record != self.record}
        for record in sorted(others, key=others.__getitem__)[: max(0, len(others) - KEPT + 1)]:
            record.unlink(missing_ok=True)
            record.with_suffix(".blob").unlink(missing_ok=True)
        for blob in self.folder.glob("*.blob"):
            if not blob.with_suffix(".json").exists() and _last_used(blob) < time.time() - _ABANDONED:
                blob.unlink(missing_ok=True)


def _last_used(path: Path) -> float:
    """Return the time of a file, in seconds; 0 if another process has removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
