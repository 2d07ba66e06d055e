"""Parts of a run over many pictures: which pictures a worker has, and where it records what became of them.

Each worker of a run (a process on this machine, a rank of torchrun or Slurm, an actor of Ray) writes to a folder of its
own, ``OUT/.parts/NAME``, whose lock it holds. When it ends, what it wrote there is merged into the files of ``OUT``.
What a killed worker has left is merged when the next worker starts. This module imports nothing heavy.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from IS_Net import command_line
from IS_Net.command_line import positive_int
from IS_Net.errors import DatasetError, FolderInUseError, UserError
from IS_Net.files import append_line, atomic_file
from IS_Net.lock import LOCK_FILE, lock_folder

logger = logging.getLogger(__name__)

T = TypeVar("T")

PARTS = ".parts"
"""In the folder of a run: the folders of its workers."""
ROWS = "rows.jsonl"
"""In the folder of a run: what became of each picture."""
PATIENCE = 60.0
"""Seconds that a worker waits for the others, which hold the lock of the folder only while they merge a file."""
DONE, KEPT, FAILED = "done", "kept", "failed"
"""The status of a picture: made in this run, up to date from an earlier run, or failed."""
_STATUS = (DONE, KEPT, FAILED)

_VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))

Row = Mapping[str, Any]
"""What became of a picture: ``id``, ``status``, ``seconds`` of work, ``error`` (a message or None) and ``outputs``."""


class ShardError(UserError, ValueError):
    """A shard that does not exist, or cannot be determined."""


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th item of a run, beginning with item ``index``; both runs and items are counted from 0.

    Neighbors in a list, such as the frames of a video, often have the same size and content; with every N-th item
    instead of blocks of neighbors, all shards take about the same time.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ShardError(f"expected a shard K/N with K from 0 to N - 1, found {self}")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Convert ``K/N``.

        Raises:
            ShardError: If the text is something else, or K is not from 0 to N - 1.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ShardError(f"expected a shard K/N, such as 0/4 for the first of four, found {text!r}")
        return cls(int(index), int(count))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """Return the shard of this process under torchrun (RANK, WORLD_SIZE) or Slurm's srun.

        Raises:
            ShardError: If the variables are absent or no numbers.
        """
        for rank, world in _VARIABLES:
            if rank in environment and world in environment:
                try:
                    return cls.parse(f"{environment[rank]}/{environment[world]}")
                except ShardError as error:
                    raise ShardError(f"{rank}, {world}: {error}") from error
        raise ShardError(
            "found neither RANK and WORLD_SIZE nor SLURM_PROCID and SLURM_NTASKS in the environment; start the command "
            "with torchrun or srun, or name the shard with --shard K/N"
        )

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this shard."""
        return items[self.index :: self.count]


class Work(Protocol):
    """A run over many pictures: what a verb does, without saying which process does which part.

    It can be pickled; what is loaded, such as a model, stays behind.
    """

    out: Path
    """The folder of the rows."""
    what: str
    """What runs, such as ``a mask run``, for messages."""
    left_out: Sequence[str]
    """Messages about pictures that were asked for, and of which there are no items."""

    def items(self) -> Sequence[Any]:
        """Return all pictures: paths and prompts, no pixels."""

    def without_items(self) -> Work:
        """Return the same without the pictures, for another process that is given some of them."""

    def run(self, items: Sequence[Any], part: Part) -> None:
        """Make what is missing for these pictures, and add a row for each that was made or failed, or is kept now."""

    def finish(self) -> None:
        """Merge what else the workers have left; called with the folder's lock held when no worker is left."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of runs on many processes and machines to a verb's parser."""
    group = parser.add_argument_group("many processes and machines (docs/scale.md)")
    group.add_argument(
        "--shard",
        type=_shard,
        metavar="K/N",
        help="only every N-th picture, beginning with picture K (0 .. N-1); writes a row for each to rows.jsonl in the "
        "folder of the outputs. Shards may run at the same time, on any machines that share the folders",
    )
    group.add_argument("--processes", type=positive_int, metavar="N", help="run N shards as processes on this machine")
    group.add_argument(
        "--driver",
        choices=("local", "env", "ray"),
        help="what runs the shards: local (default), the processes of --processes; env, this process is one of those "
        "that torchrun or srun started (RANK, WORLD_SIZE, or Slurm's variables); ray, --processes actors of Ray, by "
        "default one for each GPU",
    )


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ShardError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with exit code 2 if a verb was called with options that only ``dis-sam`` carries out."""
    if options.processes or options.driver:
        parser.error("--processes and --driver, written in full, are options of the command dis-sam; use --shard K/N")


# --- rows ---


def read_rows(out: str | Path) -> dict[str, Row]:
    """Read the rows of a run.

    Args:
        out: The folder of the run.

    Returns:
        The last row of each picture, by its id; empty if there are none. Incomplete lines, and those that are no rows
        of a run, are ignored.
    """
    rows = read_lines(Path(out) / ROWS)
    return {row["id"]: row for row in rows if isinstance(row.get("id"), str) and row.get("status") in _STATUS}


def _require_rows(path: Path) -> None:
    """Raise a DatasetError if a file that rows would be appended to is not of a run."""
    if not path.is_file() or read_rows(path.parent):
        return
    with path.open("rb") as file:
        beginning = file.read(64).lstrip()
    if beginning and not beginning.startswith(b'{"id"'):  # a killed run may have left a part of its first row
        raise DatasetError(f"{path}: holds no rows of a run; rename it, or choose another folder")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; lines that a killed process left incomplete are logged and ignored."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError
            except (ValueError, RecursionError):
                logger.warning("%s, line %d: not a complete row; ignored", path, number)
            else:
                yield value


class Part:
    """What one worker records.

    Args:
        folder: The worker's own folder.
        rows: The rows of earlier runs by id.
    """

    def __init__(self, folder: Path, rows: dict[str, Row]) -> None:
        self.folder, self.rows = folder, rows
        self.counts: Counter[str] = Counter()
        """How many pictures were done, kept and failed."""
        self.errors: list[str] = []
        """The messages of those that failed."""
        self.state: dict[str, Any] = {}
        """What a worker that runs several times keeps from one time to the next."""
        self.resources = ExitStack()
        """What is closed when the worker ends."""
        self._lock = threading.Lock()

    def keep(self) -> None:
        """Count a picture whose row says that it is up to date."""
        with self._lock:
            self.counts[KEPT] += 1

    def add(self, name: str, status: str, seconds: float, error: str | None = None, **values: Any) -> None:
        """Add the row of a picture; it is on the disk (but for a power cut) when the method returns.

        Args:
            name: The picture's id.
            status: ``done``, ``kept`` or ``failed``.
            seconds: How long was worked on it.
            error: Why it failed.
            values: More of what JSON can hold, such as ``outputs``.
        """
        row = {"id": name, "status": status, "seconds": round(seconds, 3), "error": error, **values}
        line = json.dumps(row) + "\n"
        with self._lock:
            self.rows[name] = row
            self.counts[status] += 1
            if error is not None:
                self.errors.append(error)
            append_line(self.folder / ROWS, line)


def run_part(work: Work, items: Sequence[Any], name: str) -> Part:
    """Do one worker's part of a run.

    Args:
        work: What is done.
        items: The worker's items.
        name: Of the worker's folder; no other worker of the run may have it.

    Returns:
        What was done.

    Raises:
        FolderInUseError: If another process writes to the folder as a whole, or is this worker.
    """
    with open_part(work, name) as part:
        work.run(items, part)
    return part


@contextmanager
def open_part(work: Work, name: str) -> Iterator[Part]:
    """Hold the folder of a worker; merge what dead workers have left before, and its own files after.

    Raises:
        FolderInUseError: If another process writes to the folder as a whole, or is this worker.
        DatasetError: If a file has the name of the rows, and holds something else.
    """
    folder = work.out / PARTS / name
    _require_rows(work.out / ROWS)
    with ExitStack() as stack:
        with lock_folder(work.out, f"{work.what} (merge)", wait=PATIENCE):
            _merge(work.out)
            stack.enter_context(lock_folder(folder, f"{work.what}, worker {name}"))
            part = Part(folder, read_rows(work.out))
        try:
            with part.resources:
                yield part
        finally:
            with lock_folder(work.out, f"{work.what} (merge)", wait=PATIENCE):
                stack.close()
                finish(work)


def finish(work: Work) -> list[str]:
    """Merge what dead workers have left, and if no worker is left, finish the run's files; the lock must be held.

    Returns:
        The names of the workers that are still there.
    """
    working = _merge(work.out)
    if not working:
        _compact(work.out / ROWS)
        work.finish()
    return working


def merge_parts(out: Path, what: str) -> None:
    """Merge what dead workers have left in a folder whose lock is held by a run over the folder as a whole.

    Raises:
        FolderInUseError: If a worker is still there.
    """
    working = _merge(out)
    if working:
        raise FolderInUseError(
            f"{out}: is in use by the workers {', '.join(working)}; wait until they end before you start {what}"
        )


def _merge(out: Path) -> list[str]:
    """Append the files of workers that have ended to those of the run; return the names of those that have not."""
    working = []
    parts = out / PARTS
    for folder in sorted(parts.iterdir()) if parts.is_dir() else []:
        if not folder.is_dir():
            continue
        try:
            with lock_folder(folder, "a merge"):
                for path in sorted(folder.glob("*.jsonl")):
                    _append(path, out / path.name)
                    path.unlink()
        except FolderInUseError:
            working.append(folder.name)
        else:
            with suppress(OSError):  # something else lies in it
                (folder / LOCK_FILE).unlink(missing_ok=True)
                folder.rmdir()
    with suppress(OSError):
        parts.rmdir()
    return working


def _append(path: Path, to: Path) -> None:
    """Append the complete lines of a file to another. Killed in between, it does so again: the last line counts."""
    lines = [json.dumps(value) + "\n" for value in read_lines(path)]
    with to.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _compact(path: Path) -> None:
    """Rewrite the rows with one line for each picture, sorted by id."""
    if not path.is_file():
        return
    rows = read_rows(path.parent)
    text = "".join(json.dumps(rows[name]) + "\n" for name in sorted(rows))
    if path.read_bytes() != text.encode():
        with atomic_file(path, "w") as file:
            file.write(text)


def run_shard(works: Sequence[Work], shard: Shard) -> int:
    """Do a shard of each of some runs, and print what was done.

    Returns:
        The exit code: 0, or 1 if pictures failed, each of which is named.
    """
    logging.disable(logging.NOTSET)
    code = command_line.DONE
    for work in works:
        part = run_part(work, shard.of(work.items()), f"{shard.index}-of-{shard.count}")
        label = f"shard {shard}" if shard.count > 1 else str(work.out)
        if shard.count > 1 and len(works) > 1:
            label = f"{work.out}, {label}"
        errors = [*part.errors, *(work.left_out if shard.index == 0 else ())]
        print_results(label, part.counts, errors)
        if errors or work.left_out:
            code = command_line.FAILED
    return code


def print_results(label: str, counts: Mapping[str, int], errors: Sequence[str]) -> None:
    """Print the errors of a run, and how many pictures have which status."""
    for message in errors:
        command_line.print_error(message)
    found = ", ".join(f"{counts.get(status, 0)} {status}" for status in _STATUS)
    command_line.print_text(f"{label}: {found}")
