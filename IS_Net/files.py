"""Files that a run writes: whole or not at all, on the disk before their names count, and never in place of an input.

This module imports nothing heavy.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from IS_Net.errors import DatasetError, StoppedError

LONGEST_NAME = 255
"""Bytes of a file name; the limit of the usual file systems."""
_DAY = 24 * 60 * 60
_PART = re.compile(r"\..+\.(?:(?P<host>[0-9a-f]{8})-(?P<process>\d+)-(?P<start>\d+)|\d+)-\d+\.part", re.DOTALL)
"""Temporary names; earlier versions wrote them without the host and the start."""
_REPORTS = (".json", ".csv", ".html", ".txt", ".md")
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF}


@contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file for writing that replaces ``path`` only when the ``with`` block succeeds.

    After an error, an interruption or a power cut, ``path`` is either as before or whole: the content is on the disk
    before the file gets its name. A missing folder is created. Until then, the file has a temporary name in the same
    folder; a run that is killed leaves it there (see :func:`remove_leftovers`).

    Args:
        path: The file to write.
        mode: ``"wb"`` or ``"w"`` (UTF-8).

    Yields:
        The open file.

    Raises:
        OSError: If the file cannot be written; the message names ``path``.
    """
    path = Path(path)
    if not path.name:  # "." and "/"
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = _temporary(path)
    try:
        _make_folder(path.parent)
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            # Path.is_file() fails for a name that is too long
            former = "; the file is as it was before" if os.path.isfile(path) else ""  # noqa: PTH113
            raise type(error)(error.errno, f"{error.strerror}{former}", str(path)) from error
        raise


def _temporary(path: Path) -> Path:
    """Return a name that no image and no other writer has; it tells whose file it is."""
    process = os.getpid()
    end = f".{_host()}-{process}-{_start_time(process) or 0}-{threading.get_ident()}.part"
    name = path.name
    while len(os.fsencode(f".{name}{end}")) > LONGEST_NAME and len(os.fsencode(path.name)) <= LONGEST_NAME:
        name = name[:-1]
    return path.with_name(f".{name}{end}")


@functools.cache
def _host() -> str:
    return hashlib.blake2s(platform.node().encode(), digest_size=4).hexdigest()


def _start_time(process: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; 0 if unknown, None if it does not run."""
    try:
        # the second field, the program's name, may contain spaces and parentheses
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else 0
    except (OSError, ValueError, IndexError):
        return 0


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed runs have left in a folder.

    A file of :func:`atomic_file` is removed if its process has ended, or, where that cannot be found out (on another
    machine), if the file has not changed for a day.
    """
    for path in Path(folder).glob(".*.part"):
        match = _PART.fullmatch(path.name)
        if match is None:
            continue
        with suppress(OSError):  # the other process may just have finished the file
            if match["host"] is None:
                ended = True  # no present version gives such names
            elif match["host"] == _host() and (now := _start_time(int(match["process"]))) != 0:
                ended = now is None or now != int(match["start"])
            else:
                ended = time.time() - path.stat().st_mtime > _DAY
            if ended:
                path.unlink()


def _make_folder(folder: Path) -> None:
    """Create a folder; the names of new folders are on the disk afterwards."""
    new = []
    while not folder.is_dir():
        new.append(folder)
        if folder.parent == folder or os.path.lexists(folder):
            break
        folder = folder.parent
    if new:
        new[0].mkdir(parents=True, exist_ok=True)
        for made in new:
            _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system can do that."""
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # files may be created in it, but not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append a line, which ends in a newline, to the record of what is done; the folder is made if it is missing.

    Raises:
        StoppedError: If it cannot be written, for example because the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise StoppedError(
            f"{path}: cannot be written ({error.strerror or error}); what is done is kept: make room, and run the same "
            "command again"
        ) from error


def content_hash(path: str | Path) -> str:
    """Return a hash of a file's content: BLAKE2b with 128 bits, as hexadecimal digits."""
    content = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    content = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def is_existing_file(path: str | Path) -> bool:
    """Return whether a file exists and can be looked up: a name may be too long, or in a folder that is closed."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def is_file_name(name: object) -> bool:
    """Return whether a name is that of a file in a folder, and cannot lead out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and not any(letter in name for letter in "/\\\0")


def spreadsheet_text(text: str) -> str:
    """Return a text for a CSV file; if a spreadsheet would take it for a formula, an apostrophe is put before it."""
    return f"'{text}" if text.lstrip("'").startswith(("=", "+", "-", "@", "\t", "\r")) else text


def from_spreadsheet_text(text: str) -> str:
    """Return the text that :func:`spreadsheet_text` was given."""
    return text[1:] if text.startswith("'") and spreadsheet_text(text[1:]) == text else text


def refuse_to_replace(outputs: Iterable[str | Path], inputs: Iterable[str | Path | None]) -> None:
    """Refuse outputs that are inputs, under whatever name.

    Links, relative paths and the case of letters make no difference, because the files themselves are compared.

    Args:
        outputs: Files and folders that are about to be written; those that do not exist are no inputs.
        inputs: Files and folders that are read; None and missing ones are ignored.

    Raises:
        DatasetError: If an output is an input; the message names both.
    """
    read: dict[tuple[int, int], Path] = {}
    for path in inputs:
        if path is not None and (identity := _identity(Path(path))):
            read.setdefault(identity, Path(path))
    for path in map(Path, outputs):
        found = read.get(_identity(path))
        if found is not None:
            kind = "folder" if path.is_dir() else "file"
            name = "" if str(found) == str(path) else f" {found}"
            raise DatasetError(
                f"{path}: the output would replace the input{name}, which is the same {kind}; write to another {kind}"
            )


def refuse_to_replace_data(outputs: Iterable[str | Path], sources: Iterable[str | Path]) -> None:
    """Refuse reports that would replace files of the folders that they are about.

    Args:
        outputs: Files that are about to be written.
        sources: Files, and folders with all that lies in them.

    Raises:
        DatasetError: If an output is one of the files; the message names both.
    """
    existing = [path for path in map(Path, outputs) if path.is_file()]
    if existing:  # only then are the folders listed
        trees = ([source, *source.rglob("*")] if source.is_dir() else [source] for source in map(Path, sources))
        # a report of an earlier run may lie there too; data is what has another extension than reports have
        refuse_to_replace(existing, (path for tree in trees for path in tree if path.suffix not in _REPORTS))


def prepare_output(path: str | Path, inputs: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
    """Find out, before a long work, that its one output file can be written and replaces nothing.

    Args:
        path: The file to be written.
        inputs: See :func:`refuse_to_replace`.
        overwrite: Whether to replace a file that exists and is no input.

    Raises:
        DatasetError: If the file is an input, or exists and must not be replaced.
        OSError: If it cannot be written; the message names it.
    """
    path = Path(path)
    refuse_to_replace([path], inputs)
    if os.path.lexists(path) and not overwrite:
        raise DatasetError(f"{path}: exists already; choose another name, remove it, or replace it with --overwrite")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file; choose another name", str(path))
    require_writable(path)


def require_writable(path: str | Path) -> None:
    """Find out, before a long work, that a file or folder can be made; folders around it may be missing.

    Args:
        path: The file or folder.

    Raises:
        OSError: If it cannot be made; the message names it.
    """
    folder = next(parent for parent in Path(path).absolute().parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror}; choose another place", str(path)) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: NUL in the name
        return None
    return status.st_dev, status.st_ino
