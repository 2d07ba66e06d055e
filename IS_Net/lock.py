"""A lock on a folder that only one process at a time may write to.

The operating system holds the lock and frees it when the process ends, however it ends, so that a crash cannot leave it
behind. This module imports nothing heavy.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from IS_Net.errors import FolderInUseError

logger = logging.getLogger(__name__)

LOCK_FILE = ".dis-sam.lock"
"""Name of the file that is locked. It is removed when the lock is released; one that a crash leaves is harmless."""

_NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems that have no locks."""


@contextmanager
def lock_folder(folder: str | Path, purpose: str, wait: bool | float = False, name: str = LOCK_FILE) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it does not exist, and removed again if nothing was written to it.

    On a file system that has no locks, a warning is logged, and the block runs without one.

    Args:
        folder: The folder.
        purpose: What is about to run, such as ``"a training"``, for the message of the other process.
        wait: Whether to wait for the other process instead of raising an error; a number is for how many seconds.
        name: Of the file that is locked; another name locks a part of the folder, such as one file in it.

    Raises:
        FolderInUseError: If another process, or another thread of this one, holds the lock.
        OSError: If the folder cannot be created or written to; the message names it.
    """
    folder = Path(folder)
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait is True else float(wait))
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(
            f"{folder}: is in use by {_holder(path)}; wait until it ends, stop it, or choose another folder"
        ) from error
    except OSError as error:
        if error.errno in _NOT_SUPPORTED and folder.is_dir():
            logger.warning(
                "%s: its file system cannot lock files (%s); start nothing else that writes there",
                folder,
                error.strerror,
            )
            yield
            return
        message = (
            f"{error.strerror or error}; the folder cannot be written to: choose another, or change its permissions"
        )
        raise type(error)(error.errno, message, str(folder)) from error
    try:
        with suppress(OSError):
            if isinstance(lock, FileLock):  # not on a file system without locks, where the library uses the file's text
                path.write_text(f"{purpose} (process {os.getpid()} on {platform.node()})", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # before the release, so that no other process holds the removed file; not on Windows
            path.unlink()
        lock.release()
        with suppress(OSError):  # one is not empty, and so are those above it
            for made in new:
                made.rmdir()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except (OSError, ValueError):
        return "another process"
