"""Photographs in .tar files in the layout of WebDataset, and outputs in such files.

A sample is what lies under one key, the part of a member's name before the first dot of its last component:
``KEY.jpg`` (or another image), ``KEY.json`` with ``box``, ``points`` and ``labels``, and ``KEY.mask.png``; the case of
the letters after the key does not matter. Members without a key or an extension, such as hidden files, are no part of a
sample. Of each ``IN/NAME.tar``, one ``OUT/NAME.tar`` is made, whole or not at all, with ``KEY.cutout.png``
(``KEY.alpha.png`` and so on) and ``KEY.json``, the row of the sample. Python's own ``tarfile`` reads and writes them.
"""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dis_sam.batch import Options, Outcome, run_tasks
from dis_sam.inputs import Task
from dis_sam.outputs import OutputError, file_label
from dis_sam.photo_work import LazyModel, digest, request_of
from dis_sam.records import KEYWORD
from IS_Net.errors import DatasetError, MissingFileError, UserError
from IS_Net.files import atomic_file, remove_leftovers
from IS_Net.images import IMAGE_EXTENSIONS
from IS_Net.manifest import fingerprint
from IS_Net.shards import DONE, FAILED, KEPT, Part

MASK = "mask.png"
RECORD = "json"
_COMMENT = "comment"
"""The header of an output that tells what it was made from, or :data:`_INCOMPLETE`."""
_INCOMPLETE = "incomplete"
"""In the header of an output: samples failed, so that it is made again by the next start."""
_NAMED = 3
"""Failed samples that the row of a file names."""


@dataclass
class Sample:
    """One sample of a file.

    Attributes:
        key: Its key.
        files: The content of its members by their extensions: what follows the key and a dot, in lower case.
    """

    key: str
    files: dict[str, bytes] = field(default_factory=dict)


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error; ``tarfile`` would take it for the end of the file."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Read the next header; after the end of a complete file, ``tarfile.EOFHeaderError`` is raised."""
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError) as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}; it is damaged or cut off") from error


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a .tar file in its order, so that only one is in memory.

    Raises:
        DatasetError: If the file is no .tar file, is damaged or cut off, or holds a key in two places, a member twice,
            or a key that leads out of its folder; the message names file and key.
    """
    sample: Sample | None = None
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r|*", tarinfo=_Member) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, base = posixpath.split(posixpath.normpath(member.name))
                stem, _, extension = base.partition(".")
                extension = extension.lower()  # as WebDataset does
                if not stem or not extension:
                    continue
                key = posixpath.join(folder, stem)
                if key.startswith(("/", "../")):
                    raise DatasetError(f"{path}, {key}: leads out of the folder of the unpacked file; rename it")
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    if key in seen:
                        raise DatasetError(f"{path}, {key}: its members are not neighbors; expected one sample per key")
                    seen.add(key)
                    sample = Sample(key)
                if extension in sample.files:
                    raise DatasetError(
                        f"{path}, {key}.{extension}: is there twice; expected one member of that name, in any case"
                    )
                sample.files[extension] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError) as error:
        raise DatasetError(f"{path}: cannot be read as a .tar file: {error}") from error
    if sample is None:
        raise DatasetError(f"{path}: contains no samples; expected members such as KEY.jpg and KEY.json")
    yield sample


def task_of(sample: Sample, path: Path, refine: bool) -> Task:
    """Return the task of a sample.

    Args:
        sample: The sample.
        path: The file that it comes from, for messages.
        refine: Whether its mask is refined.

    Raises:
        UserError: If it has no image, no mask to refine, or faulty prompts; the message names file, key and member.
    """
    where = f"{path}, {sample.key}"
    images = [name for name in sample.files if f".{name}" in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise DatasetError(f"{where}: found {', '.join(sample.files)}; expected one image, such as {sample.key}.jpg")
    record: Any = {}
    if RECORD in sample.files:
        try:
            record = json.loads(sample.files[RECORD])
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where}.{RECORD}: cannot be read as JSON in UTF-8: {error}") from error
        if not isinstance(record, dict):
            raise DatasetError(f"{where}.{RECORD}: expected an object with box, or points and labels")
    if refine and MASK not in sample.files:
        raise DatasetError(f"{where}: found {', '.join(sample.files)}; expected the mask {sample.key}.{MASK}")
    prompt = {key: record[key] for key in ("box", "points", "labels") if record.get(key) is not None}
    request = request_of(sample.key, prompt, sample.files.get(MASK), f"{where}.{RECORD}", refine)
    return Task(sample.key, sample.files[images[0]], (request,), label=where)


class _TarDestination:
    """Collects the outputs of samples, and writes them in the order of the samples; any thread may call its methods.

    Args:
        tar: Is written to.
        kinds: The kinds of outputs.
    """

    def __init__(self, tar: tarfile.TarFile, kinds: Sequence[str]) -> None:
        self.tar, self.kinds = tar, kinds
        self.waiting: dict[str, bytes] = {}
        self.order: dict[str, tuple[str | None, list[str], Mapping[str, list[str]]] | None] = {}
        """The samples that are not written yet: None, or the arguments of :meth:`end`, once known."""
        self.failed: list[str] = []
        """The errors of the samples that are written."""
        self._lock = threading.Lock()

    def path(self, task: Task, request: Any, kind: str) -> Path:
        """Return the name of a member."""
        return Path(f"{request.name}.{file_label(kind)}.png")

    def holds(self, path: Path, made_from: str) -> bool:
        """Return False: a file is made as a whole."""
        return False

    def write(self, path: Path, data: bytes) -> None:
        """Keep a member until its sample is complete."""
        with self._lock:
            self.waiting[path.as_posix()] = data

    def begin(self, key: str) -> None:
        """Note the place of a sample."""
        with self._lock:
            self.order[key] = None

    def end(self, key: str, error: str | None, members: list[str], remarks: Mapping[str, list[str]]) -> None:
        """Write the members of a sample and its row, once those of all samples before it are written."""
        with self._lock:
            self.order[key] = error, members, remarks
            while self.order and (first := next(iter(self.order.items())))[1] is not None:
                name, row = first
                del self.order[name]
                self._write_sample(name, *row)

    def _write_sample(self, name: str, error: str | None, members: list[str], remarks: Mapping[str, list[str]]) -> None:
        for member in members:
            self._add(member, self.waiting.pop(member))
        row = {"id": name, "status": FAILED if error else DONE, "error": error, "outputs": members, **remarks}
        self._add(f"{name}.{RECORD}", json.dumps(row).encode())
        if error:
            self.failed.append(error)

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))


@dataclass(frozen=True)
class TarWork:
    """Photographs in .tar files; see :class:`IS_Net.shards.Work`. An item is a file.

    Attributes:
        tars: The files.
        out: The folder of outputs and rows.
        model: The model.
        options: How to segment and write.
        refine: Whether to refine the masks of the samples.
        overwrite: Whether to replace files that this project did not write.
        workers: See :func:`dis_sam.batch.run`.
    """

    tars: Sequence[Path]
    out: Path
    model: LazyModel
    options: Options
    refine: bool = False
    overwrite: bool = False
    workers: int | None = None
    what = "a run over photographs in .tar files"
    left_out = ()

    def check(self) -> None:
        """Check that the files exist and that no output replaces another file.

        Raises:
            MissingFileError: If files do not exist.
            OutputError: If outputs would replace inputs, each other, or files that this module did not write.
        """
        if missing := [str(path) for path in self.tars if not path.is_file()]:
            raise MissingFileError(f"{', '.join(missing)}: does not exist; expected .tar files")
        names = [path.name for path in self.tars]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise OutputError(f"several files are named {', '.join(doubled)}, and so would their outputs; rename them")
        for path in self.tars:
            output = self.out / path.name
            if output.exists() and any(output.samefile(other) for other in self.tars):
                raise OutputError(f"outputs would replace input files: {output}; write them elsewhere with -o")
            if output.exists() and not self.overwrite and _made_from(output) is None:
                raise OutputError(f"files exist that dis-sam did not write: {output}; use --overwrite to replace them")

    def items(self) -> Sequence[Path]:
        """Return the files."""
        return self.tars

    def without_items(self) -> TarWork:
        """Return the same without the files, for another process that is given some of them."""
        return replace(self, tars=())

    def run(self, items: Sequence[Path], part: Part) -> None:
        """Make the outputs of files that are missing, out of date, or have samples that failed."""
        remove_leftovers(self.out)
        for path in items:
            started, name, row = time.perf_counter(), path.stem, part.rows.get(path.stem)
            try:
                model = self.model.choice.key(uses_stage_1=not self.refine)
                key = digest([fingerprint(path), str(self.refine)], [], model, self.options)
                if _made_from(self.out / path.name) == key and _is_whole(self.out / path.name):
                    if row is not None and row["status"] != FAILED:
                        part.keep()
                    else:  # a run was killed before it could add the row, or the rows were deleted
                        part.add(name, KEPT, time.perf_counter() - started, outputs=[path.name])
                    continue
                samples, failed = self._make(path, key)
            except (UserError, ValueError, OSError) as error:
                message = str(error) if str(path) in str(error) else f"{path}: {error}"
                part.add(name, FAILED, time.perf_counter() - started, message, outputs=[])
                continue
            error = None
            if failed:
                more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
                error = f"{path}: {len(failed)} of {samples} samples failed: {'; '.join(failed[:_NAMED])}{more}"
            status = FAILED if failed else DONE
            part.add(name, status, time.perf_counter() - started, error, outputs=[path.name], samples=samples)

    def finish(self) -> None:
        """There is nothing beside the rows."""

    def _make(self, path: Path, made_from: str) -> tuple[int, list[str]]:
        """Make the output of a file; return the number of its samples, and messages about those that failed."""
        with atomic_file(self.out / path.name) as file:
            headers = {_COMMENT: f"{KEYWORD} {made_from}"}
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
                destination = _TarDestination(tar, self.options.kinds)
                count = self._fill(destination, path)
            if destination.failed:  # in the file itself, because rows may be deleted; a text of the same length
                headers = {_COMMENT: f"{KEYWORD} {_INCOMPLETE:{len(made_from)}}"}
                file.seek(0)
                file.write(tarfile.TarInfo.create_pax_global_header(headers))
        return count, destination.failed

    def _fill(self, destination: _TarDestination, path: Path) -> int:
        """Write the outputs of a file; return the number of its samples."""
        count = 0

        def tasks() -> Iterator[Task]:
            nonlocal count
            for sample in read_samples(path):
                count += 1
                destination.begin(sample.key)
                try:
                    task = task_of(sample, path, self.refine)
                except UserError as error:
                    destination.end(sample.key, str(error), [], {})
                else:
                    yield task

        def report(outcome: Outcome) -> None:
            members = sorted(member.as_posix() for member in outcome.written)
            destination.end(outcome.task.name, "\n".join(outcome.failed) or None, members, outcome.remarks)

        summary = run_tasks(tasks(), destination, self.model.choice, self.options, self.workers, self.model, report)
        if destination.order:  # it stopped early
            raise OSError("; ".join(summary.failed))
        return count


def _made_from(path: Path) -> str | None:
    """Return what an output was made from, or that it is incomplete; None if this module did not write the file."""
    with suppress(OSError, tarfile.TarError, ValueError), tarfile.open(path, "r:") as tar:
        keyword, _, key = tar.pax_headers.get(_COMMENT, "").partition(" ")
        return key if keyword == KEYWORD else None
    return None


def _is_whole(path: Path) -> bool:
    """Return whether the end of an output is there; a program that copied it may have stopped."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - 2 * tarfile.BLOCKSIZE, 0))
        return size % tarfile.RECORDSIZE == 0 and not any(file.read())  # two blocks of zeros, and padding
