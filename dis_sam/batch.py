"""Segment photographs and folders of them: find the files, run the model, write the outputs.

Reader threads decode photographs, the main thread runs the model, writer threads render and encode outputs. The queues
between them are bounded, so that memory does not grow with the number of photographs. Every output is written
atomically and holds a fingerprint of all that it was made from, so that a run can be interrupted at any time and
resumed by calling it again.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import hashlib
import json
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dis_sam import __version__
from dis_sam.outputs import OutputError, Segmented, check_kind, check_options, encode, file_label, render_all
from IS_Net.bounded import BoundedQueue, map_bounded
from IS_Net.errors import CheckpointError, DatasetError, PromptError, UserError
from IS_Net.images import (
    IMAGE_EXTENSIONS,
    Photograph,
    atomic_file,
    decode_mask,
    decode_photograph,
    is_image,
    list_images,
    name_of,
    read_png_text,
    size_mismatch,
)
from IS_Net.manifest import fingerprint, read_manifest
from IS_Net.paths import starter_weights
from sam.backends import BOX, NEEDS_SAM, available_model, find_checkpoint, split_model, weight_files

if TYPE_CHECKING:
    from dis_sam.pipeline import DISSAM, Result

logger = logging.getLogger(__name__)

KEYWORD = "dis-sam"
"""Keyword of the text in a PNG file by which an output of this module is recognized."""

_METHOD = 2
"""Part of every fingerprint. Increase it when the same inputs give other outputs than before."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # in glibc's malloc.h
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_MAX_LISTED = 10

Source = Path | bytes
"""A file, or the content of one that was read from standard input."""


@dataclass(frozen=True)
class Options:
    """How objects are segmented and written.

    Attributes:
        kinds: What to write; see :func:`dis_sam.outputs.check_kind`.
        bits: 8 or 16 per channel.
        threshold: See :func:`dis_sam.outputs.render_all`.
        crop: Whether to crop the outputs to the object.
        keep_better: Whether to keep a coarse mask that is probably better than the refined one.
        detail: ``auto``, ``off`` or ``max``; see :meth:`dis_sam.pipeline.DISSAM.segment`.

    Raises:
        OutputError: If a value is unknown or out of range.
    """

    kinds: tuple[str, ...] = ("rgba",)
    bits: int = 8
    threshold: float | None = None
    crop: bool = False
    keep_better: bool = False
    detail: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(dict.fromkeys(map(check_kind, self.kinds))))
        if not self.kinds:
            raise OutputError("found no kind of output; expected at least one, such as rgba")
        check_options(self.bits, self.threshold)


@dataclass(frozen=True)
class Request:
    """One object of a photograph. With neither box nor points nor mask, the most salient thing is meant.

    Attributes:
        name: The photograph's name; if it has several requests, with ``_OBJECT`` behind it.
        box: xyxy in pixels of the upright photograph, or None.
        points: (x, y) of each point, or None.
        labels: 1 (object) or 0 (background) for each point, or None.
        mask: The coarse mask; it may come with a box, but not with points.
    """

    name: str
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] | None = None
    labels: tuple[int, ...] | None = None
    mask: Source | None = None

    @property
    def uses_stage_1(self) -> bool:
        """Whether stage 1 makes the coarse mask."""
        return self.mask is None and (self.box is not None or self.points is not None)


@dataclass(frozen=True)
class Task:
    """A photograph, and the objects that are requested of it.

    Attributes:
        name: The file's stem; of a file in a subfolder of the input, the path relative to the input, without extension.
        image: The file.
        requests: At least one.
        label: How messages refer to a photograph, or its mask, that is no file.
    """

    name: str
    image: Source
    requests: tuple[Request, ...]
    label: str = "standard input"

    @property
    def where(self) -> str:
        """How messages refer to the photograph."""
        return self.label if isinstance(self.image, bytes) else str(self.image)


@dataclass
class Summary:
    """What a run did.

    Attributes:
        written: The outputs that were made in this run.
        kept: The outputs of an earlier run, made from the same photograph, prompt, weights and options.
        empty: Names of the objects of this run whose alpha mattes are empty: nothing was found.
        failed: One message for each photograph or object that failed; all others are done.
    """

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.written)} {'file' if len(self.written) == 1 else 'files'} written"
        text += f", {len(self.kept)} kept from an earlier run" if self.kept else ""
        text += f", {len(self.failed)} failed" if self.failed else ""
        return text + (f"; nothing was found for {_list(self.empty)}" if self.empty else "")


# --- inputs ---


def find_photographs(
    inputs: Sequence[Path], recursive: bool = False, out: Path | None = None
) -> list[tuple[str, Path]]:
    """Find the photographs of files and folders.

    Files that this module made of a photograph in the same folder are left out, and so is everything in ``out`` if that
    is inside a folder of photographs: what a run wrote is no input of the next one.

    Args:
        inputs: Files, which may have any extension, and folders.
        recursive: Whether to search the subfolders of folders too.
        out: The folder of the outputs, if there is one.

    Returns:
        Name and path of each photograph, each once. The name is the file's stem; in a folder, the path relative to it
        without extension.

    Raises:
        FileNotFoundError: If files or folders do not exist; the message names all of them.
        DatasetError: If a folder contains no photograph, or two that differ only in the extension.
    """
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)}: does not exist; expected photographs, or folders of them")
    found: dict[Path, tuple[str, Path]] = {}
    for path in inputs:
        named = {name_of(Path(path.name)): path} if path.is_file() else _list_folder(path, recursive, out)
        for name, file in named.items():
            found.setdefault(file.resolve(), (name, file))
    return list(found.values())


def _list_folder(folder: Path, recursive: bool, out: Path | None) -> dict[str, Path]:
    outputs = None if out is None or out.resolve() == folder.resolve() else out.resolve()

    def skip(path: Path) -> bool:
        return (outputs is not None and path.resolve().is_relative_to(outputs)) or _is_output_of_neighbor(path)

    if not recursive and any(path.is_dir() for path in folder.iterdir()) and not any(map(is_image, folder.iterdir())):
        raise DatasetError(f"{folder}: found no image, only folders; use -r (--recursive) to include them")
    return list_images(folder, recursive, skip=skip)


def _is_output_of_neighbor(path: Path) -> bool:
    record = read_record(path) if path.suffix.lower() == ".png" else None
    source = None if record is None else record["source"]
    return isinstance(source, str) and source != path.name and (path.parent / source).is_file()


def plan_cut(
    photographs: Sequence[tuple[str, Source]], objects: Sequence[Request] = (), file: Path | None = None
) -> list[Task]:
    """Say which objects of which photographs are requested.

    Args:
        photographs: Name and file of each; see :func:`find_photographs`.
        objects: The objects of every photograph; their names are not used. If there are several, they are named 1, 2
            and so on.
        file: Instead, a prompt file (see :func:`sam.prompts.read_prompts`); photographs without a prompt are skipped.

    Returns:
        A task for each photograph. With neither objects nor file, the most salient thing is requested.

    Raises:
        PromptError: If prompts of the file are faulty; the message names all of them.
        DatasetError: If the file is used, and two photographs have the same name.
    """
    if file is None:
        return [Task(name, image, tuple(_name_objects(name, objects))) for name, image in photographs]
    images: dict[str, Path] = {}
    for name, image in photographs:
        if images.setdefault(name, image) != image:
            raise DatasetError(f"{images[name]} and {image}: have the same name, so {file} does not say which is meant")
    from sam.prompts import check_prompts, read_prompts  # imports PyTorch; see ModelChoice.load

    requests: dict[str, list[Request]] = defaultdict(list)
    for name, prompt in check_prompts(read_prompts(file), images).items():
        requests[prompt.name].append(Request(name, prompt.box, prompt.points, prompt.labels))
    if len(requests) < len(images):
        logger.info("%d of %d photographs have no prompt and are skipped", len(images) - len(requests), len(images))
    return [Task(name, image, tuple(requests[name])) for name, image in images.items() if name in requests]


def _name_objects(name: str, objects: Sequence[Request]) -> Iterator[Request]:
    if len(objects) < 2:
        yield replace(objects[0], name=name) if objects else Request(name)
    else:
        yield from (replace(found, name=f"{name}_{number}") for number, found in enumerate(objects, 1))


def plan_refine(
    photographs: Sequence[tuple[str, Source]], masks: Source, recursive: bool = False, kind: str = "mask"
) -> tuple[list[Task], list[str]]:
    """Pair photographs with coarse masks.

    A mask ``NAME`` or ``NAME_OBJECT`` belongs to the photograph ``NAME``; of several such names, to the longest. Where
    a folder of masks has a manifest of stage 1, the boxes in it are used too.

    Args:
        photographs: Name and file of each; see :func:`find_photographs`.
        masks: A folder, or one mask for one photograph.
        recursive: Whether the subfolders of the folder of masks are searched too.
        kind: How messages refer to a mask.

    Returns:
        A task for each photograph that has masks, and a message for each of the others.

    Raises:
        FileNotFoundError: If the masks do not exist.
        DatasetError: If there is one mask for several photographs, the folder contains no mask or also a photograph, or
            no photograph has a mask.
    """
    if isinstance(masks, bytes) or masks.is_file():
        if len(photographs) != 1:
            raise DatasetError(
                f"{'standard input' if isinstance(masks, bytes) else masks}: found one {kind} for "
                f"{len(photographs)} photographs; expected a folder of them with the names of the photographs"
            )
        [(name, image)] = photographs
        return [Task(name, image, (Request(name, mask=masks),))], []
    if not masks.exists():
        raise FileNotFoundError(f"{masks}: does not exist; expected a {kind}, or a folder of them")
    files = list_images(masks, recursive)
    mixed = {path.resolve() for path in files.values()} & {p.resolve() for _, p in photographs if isinstance(p, Path)}
    if mixed:
        raise DatasetError(f"{masks}: contains the photograph {min(mixed).name} too; keep them in folders of their own")
    requests: dict[str, list[Request]] = defaultdict(list)
    names, unused = {name for name, _ in photographs}, []
    manifests = {folder: read_manifest(folder) for folder in {path.parent for path in files.values()}}
    for name, path in files.items():
        entry = manifests[path.parent].get(path.stem, {})
        candidates = [str(Path(name).with_name(entry["image"]).as_posix())] if entry.get("image") else []
        parts = name.split("_")
        candidates += ["_".join(parts[:end]) for end in range(len(parts), 0, -1)]
        image = next((candidate for candidate in candidates if candidate in names), None)
        if image is None:
            unused.append(path.name)
            continue
        box = entry.get("box")
        requests[image].append(Request(name, tuple(box) if box else None, mask=path))
    if unused:
        logger.warning("%s: found no photograph for %s", masks, _list(unused))
    missing = [(name, image) for name, image in photographs if name not in requests]
    without = [f"{image}: found no {kind} {name}.png or {name}_OBJECT.png in {masks}" for name, image in missing]
    if not requests:
        raise DatasetError(f"{without[0]}; expected files with the names of the {len(photographs)} photographs")
    return [Task(name, image, tuple(requests[name])) for name, image in photographs if name in requests], without


# --- the model ---


@dataclass(frozen=True)
class ModelChoice:
    """Which model is used. It is loaded only when there is work for it.

    Attributes:
        weights: The checkpoint of stage 2.
        sam: The model of stage 1, a name in :data:`sam.backends.BACKENDS`, or ``NAME=PATH``.
        device: See :func:`dis_sam.pipeline.load`.
        precision: See :func:`dis_sam.pipeline.load`.
        runtime: See :func:`dis_sam.pipeline.load`.
    """

    weights: Path
    sam: str = BOX
    device: str = "auto"
    precision: str = "auto"
    runtime: str = "auto"

    def load(self) -> DISSAM:
        """Load the model."""
        # PyTorch takes seconds to import, and a run may have nothing left to do
        with _garbage_collection_paused():  # it would start hundreds of times during the import and find nothing
            from dis_sam.pipeline import load
        return load(self.weights, self.sam, self.device, self.precision, self.runtime)

    @cached_property
    def _stage_2(self) -> list[str]:
        return [_hash_file(self.weights), self.precision]

    @cached_property
    def _stage_1(self) -> list[str]:
        checkpoint, model = find_checkpoint(self.sam), split_model(self.sam)[0]
        files = [] if checkpoint is None else weight_files(checkpoint)
        return [model, " ".join(map(fingerprint, files))]  # of gigabytes, which take seconds to hash

    def key(self, uses_stage_1: bool) -> list[list[str]]:
        """Return what identifies the weights and the precision, as JSON values."""
        return [self._stage_2, self._stage_1] if uses_stage_1 else [self._stage_2]


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _reuse_freed_memory() -> None:
    """Make glibc keep freed memory for the next allocation, where it would return it to the system.

    Every layer of the network allocates its output. Without this, a seventh of a prediction's CPU time is spent on new
    pages; with it, the peak memory is a tenth higher.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries, such as musl, have none
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)  # what the prediction has freed is of use to reader and writer threads too
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_M_MMAP_THRESHOLD, 130 * 2**20)  # the largest output of a layer has 128 MiB


def choose_model(
    weights: Path | None = None,
    sam: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    runtime: str = "auto",
    *,
    uses_stage_1: bool = True,
    needs_sam: bool = False,
) -> ModelChoice:
    """Choose the model, and check that its files exist.

    Args:
        weights: The checkpoint of stage 2; None takes the starter weights.
        sam: The model of stage 1, or ``auto``; see :func:`dis_sam.pipeline.load`.
        device: See :func:`dis_sam.pipeline.load`.
        precision: See :func:`dis_sam.pipeline.load`.
        runtime: See :func:`dis_sam.pipeline.load`.
        uses_stage_1: Whether there are prompts for stage 1; see :func:`needs_of`.
        needs_sam: Whether there are prompts that only SAM can take.

    Raises:
        CheckpointError: If the weights do not exist.
        FileNotFoundError: If stage 1 is used, and its checkpoint is not found.
        ValueError: If the model of stage 1 is unknown.
        PromptError: If SAM is needed, and the model of stage 1 is not SAM.
    """
    path = starter_weights() if weights is None else weights
    if not path.is_file():
        raise CheckpointError(f"{path}: the file of the weights does not exist; check the path, or omit --weights")
    if not uses_stage_1:
        return ModelChoice(path, BOX, device, precision, runtime)
    model = available_model() if sam == "auto" else sam
    find_checkpoint(model)
    if needs_sam and model == BOX:
        raise PromptError(NEEDS_SAM)
    return ModelChoice(path, model, device, precision, runtime)


def needs_of(tasks: Iterable[Task]) -> dict[str, bool]:
    """Return what tasks need of the model: the keyword arguments of :func:`choose_model`."""
    requests = [request for task in tasks for request in task.requests if request.uses_stage_1]
    return {"uses_stage_1": bool(requests), "needs_sam": any(request.box is None for request in requests)}


# --- outputs ---


class Destination:
    """Where the outputs go.

    - Without a folder: beside the photograph, as ``NAME.cutout.png``, ``NAME.alpha.png`` and so on.
    - In a folder: ``NAME.png``; if there are several kinds, ``NAME.cutout.png`` and so on. Folders of the photographs
      are kept.
    - A path that ends in ``.png`` and is no folder is the file of a single output.

    Args:
        out: The folder or file, or None.
        kinds: The kinds of outputs.
    """

    def __init__(self, out: Path | None, kinds: Sequence[str]) -> None:
        self.out, self.kinds = out, tuple(kinds)
        self.is_file = out is not None and out.suffix.lower() in IMAGE_EXTENSIONS and not out.is_dir()
        if self.is_file and out.suffix.lower() != ".png":
            raise OutputError(f"{out}: outputs are PNG files; expected a name that ends in .png, or a folder")

    def path(self, task: Task, request: Request, kind: str) -> Path:
        """Return the file of an output."""
        if self.is_file:
            return self.out
        if self.out is None:
            return task.image.with_name(f"{Path(request.name).name}.{file_label(kind)}.png")
        label = f".{file_label(kind)}" if len(self.kinds) > 1 else ""
        return self.out / f"{request.name}{label}.png"

    def paths(self, task: Task) -> Iterator[Path]:
        """Yield the files of all outputs of a photograph."""
        for request in task.requests:
            for kind in self.kinds:
                yield self.path(task, request, kind)

    def holds(self, path: Path, made_from: str) -> bool:
        """Return whether an output exists that was made from what this fingerprint says."""
        return (read_record(path) or {}).get("fingerprint") == made_from

    def write(self, path: Path, data: bytes) -> None:
        """Write an output."""
        with atomic_file(path) as file:
            file.write(data)

    def check(self, tasks: Sequence[Task], overwrite: bool = False, inputs: Iterable[Path] = ()) -> None:
        """Check that all outputs may be written, before anything is; see the methods that it calls."""
        self.check_names(tasks, inputs)
        self.check_foreign(tasks, overwrite)

    def check_names(self, tasks: Sequence[Task], inputs: Iterable[Path] = ()) -> None:
        """Check that no output is an input or another output.

        Args:
            tasks: What is to be done.
            inputs: Files that are read, beside those of the tasks.

        Raises:
            OutputError: If outputs would replace inputs or each other; the message names the files.
        """
        owners: dict[Path, str] = {}
        doubled, existing = [], []
        for task in tasks:
            for path in self.paths(task):
                if path in owners:
                    doubled.append(f"{path} (of {owners[path]} and {task.where})")
                owners[path] = task.where
                if path.exists():
                    existing.append(path)
        if doubled and self.is_file:
            raise OutputError(f"{self.out}: is one file, but there are {len(doubled) + 1} outputs; expected a folder")
        if doubled:
            raise OutputError(
                f"several outputs would have the same name: {_list(doubled)}; write them to other folders"
            )
        if existing:  # only then are the inputs looked up
            used = {_identity(path) for path in (*inputs_of(tasks), *inputs) if path.is_file()}
            replaced = [str(path) for path in existing if _identity(path) in used]
            if replaced:
                raise OutputError(f"outputs would replace input files: {_list(replaced)}; write them elsewhere with -o")

    def check_foreign(self, tasks: Iterable[Task], overwrite: bool = False) -> None:
        """Check that no output replaces a file that this module did not write.

        Args:
            tasks: What is to be done.
            overwrite: Whether such files may be replaced; folders may not.

        Raises:
            OutputError: If there are such files; the message names them.
        """
        existing = (path for task in tasks for path in self.paths(task) if path.exists())
        foreign = [str(path) for path in existing if path.is_dir() or not (overwrite or read_record(path))]
        if foreign:
            raise OutputError(
                f"files exist that dis-sam did not write: {_list(foreign)}; use --overwrite to replace them, or write "
                "the outputs elsewhere with -o"
            )


def inputs_of(tasks: Iterable[Task]) -> Iterator[Path]:
    """Yield the files that are read for tasks: photographs and masks."""
    for task in tasks:
        yield from (x for x in (task.image, *(request.mask for request in task.requests)) if isinstance(x, Path))


def _identity(path: Path) -> tuple[int, int]:
    """Return what all names of a file share: links, and other spellings where case does not matter."""
    status = path.stat()
    return status.st_dev, status.st_ino


def read_record(path: Path) -> dict[str, Any] | None:
    """Return what an output says about how it was made, or None if this module did not write the file.

    Returns:
        ``fingerprint``: what it was made from; ``source``: the photograph's file name, or None; ``version``.
    """
    text = read_png_text(path, KEYWORD) if path.is_file() else None
    try:
        record = json.loads(text or "")
        return record if isinstance(record, dict) and {"fingerprint", "source"} <= record.keys() else None
    except (ValueError, RecursionError):
        return None


def _record(made_from: str, source: Source) -> str:
    name = source.name if isinstance(source, Path) else None
    return json.dumps({"fingerprint": made_from, "source": name, "version": __version__})


def encode_outputs(
    result: Segmented,
    options: Options,
    records: Mapping[str, str],
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> dict[str, bytes]:
    """Render a result and encode it as PNG files.

    Args:
        result: The result.
        options: How to render.
        records: The kinds to make, and the record of each; see :func:`read_record`.
        icc: The ICC profile of the photograph.
        dpi: The resolution of the photograph.

    Returns:
        The content of the files by kind.
    """
    arrays = render_all(result, records, bits=options.bits, threshold=options.threshold, crop=options.crop)
    return {kind: encode(array, icc, dpi, {KEYWORD: records[kind]}) for kind, array in arrays.items()}


# --- the run ---


@dataclass(frozen=True)
class _Item:
    """An object to segment: its request, its coarse mask, and the fingerprint of each output by kind."""

    request: Request
    mask: np.ndarray | None
    fingerprints: Mapping[str, str]


@dataclass
class Outcome:
    """What became of a photograph.

    Attributes:
        task: The photograph and its objects.
        written: The outputs that were made in this run.
        kept: The outputs that were up to date.
        empty: Names of the objects of this run whose alpha mattes are empty.
        failed: One message for each failure.
        seconds: How long was worked on it: to read, segment, render and write.
    """

    task: Task
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class _Work:
    """What is to be done for a photograph; None instead of the photograph if there is nothing to do."""

    outcome: Outcome
    photograph: Photograph | None = None
    items: Sequence[_Item] = ()


def run(
    tasks: Sequence[Task],
    destination: Destination,
    choice: ModelChoice,
    options: Options,
    *,
    workers: int | None = None,
) -> Summary:
    """Segment photographs and write the outputs. Outputs that are up to date are kept.

    Args:
        tasks: See :func:`plan_cut` and :func:`plan_refine`.
        destination: Where the outputs go; see :meth:`Destination.check`.
        choice: The model; see :func:`choose_model`.
        options: How to segment and write.
        workers: Number of reader threads, and of writer threads; None means one per core, at most 4.

    Returns:
        What was done. A photograph or object that fails is listed there and does not stop the others.

    Raises:
        CheckpointError: If the weights are damaged, or belong to another network.
        DeviceError: If the device, the precision or the runtime is not available.
    """
    return run_tasks(tasks, destination, choice, options, workers)


def run_tasks(
    tasks: Iterable[Task],
    destination: Destination,
    choice: ModelChoice,
    options: Options,
    workers: int | None = None,
    load_model: Callable[[], DISSAM] | None = None,
    report: Callable[[Outcome], None] | None = None,
) -> Summary:
    """Do what :func:`run` does, and report each photograph.

    Args:
        tasks: May be drawn from an iterator, so that not all are in memory.
        destination: See :func:`run`.
        choice: See :func:`run`.
        options: See :func:`run`.
        workers: See :func:`run`.
        load_model: Loads the model when it is first needed; by default, as chosen.
        report: Is called with what became of each photograph once its outputs are written, in any thread, one call at
            a time.
    """
    _reuse_freed_memory()
    return _Run(destination, choice, options, load_model, report).make(tasks, workers)


def run_one(task: Task, choice: ModelChoice, options: Options) -> bytes:
    """Segment one object and return the content of the file of its first kind of output.

    Args:
        task: A photograph with one request.
        choice: The model.
        options: How to segment and write.

    Raises:
        RunError: If the photograph or the mask cannot be used.
        CheckpointError: If the weights are damaged, or belong to another network.
        DeviceError: If the device, the precision or the runtime is not available.
    """
    _reuse_freed_memory()
    runner = _Run(None, choice, options)
    work = runner.load(task)
    if work.outcome.failed:
        raise RunError(work.outcome.failed[0])
    model = choice.load()
    [item] = work.items
    try:
        model.set_image(work.photograph.pixels)
        result = segment(model, item.request, item.mask, options)
    except (UserError, ValueError) as error:
        raise RunError(_describe(error, _where(task, item.request))) from error
    kind, made_from = next(iter(item.fingerprints.items()))
    records = {kind: _record(made_from, task.image)}
    return encode_outputs(result, options, records, work.photograph.icc, work.photograph.dpi)[kind]


class RunError(UserError, RuntimeError):
    """A photograph that cannot be segmented."""

    exit_code = 1


def segment(model: DISSAM, request: Request, mask: np.ndarray | None, options: Options) -> Result:
    """Segment the object of a request in the image that is set.

    Args:
        model: The model, with the request's photograph set.
        request: The request.
        mask: (H, W) uint8, the coarse mask of the request, if it has one.
        options: How to segment.
    """
    details = {"detail": options.detail, "keep_better": options.keep_better}
    return model.segment(request.box, request.points, request.labels, mask, **details)


class _Run:
    """One run.

    Args:
        destination: Where the outputs go; None if they are not written, so that none is up to date.
        choice: The model.
        options: How to segment and write.
        load_model: See :func:`run_tasks`.
        report: See :func:`run_tasks`.
    """

    def __init__(
        self,
        destination: Destination | None,
        choice: ModelChoice,
        options: Options,
        load_model: Callable[[], DISSAM] | None = None,
        report: Callable[[Outcome], None] | None = None,
    ) -> None:
        self.destination, self.choice, self.options = destination, choice, options
        self.load_model, self.report = load_model or choice.load, report
        self.summary = Summary()
        self._unfinished: dict[int, int] = {}
        self._has_work = threading.Event()
        self._full_disk = threading.Event()
        self._lock = threading.Lock()

    def make(self, tasks: Iterable[Task], workers: int | None = None) -> Summary:
        """Make the outputs that are missing or out of date."""
        workers = workers or min(4, os.cpu_count() or 1)
        count = len(tasks) if isinstance(tasks, Sequence) else None
        if count is not None:
            _remove_partial_files(path for task in tasks for path in self.destination.paths(task))
        model: DISSAM | None = None
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
            writes = BoundedQueue(writers, workers + 1)
            loads = map_bounded(readers, self.load, tasks, workers + 1)
            bar = tqdm(loads, "photographs", count, unit="photo", disable=count is not None and count < 2)
            for number, loading in enumerate(bar):
                if self._full_disk.is_set():
                    left = "" if count is None else f"; {count - number} photographs are left"
                    self.summary.failed.append(f"stopped, because the disk is full{left}")
                    break
                if model is None and self._needs_model(loading):
                    model = self.load_model()
                work = loading.result()
                if any(item.request.uses_stage_1 for item in work.items):
                    _ = model.sam  # loads stage 1; weights that cannot be used end the run, not each photograph
                with self._working_on(work.outcome, 1 + len(work.items)):
                    self._segment(model, work, writes)
            writes.close()
        return self.summary

    def _segment(self, model: DISSAM | None, work: _Work, writes: BoundedQueue) -> None:
        """Segment the objects of a photograph and schedule the writing of their outputs."""
        outcome, left = work.outcome, len(work.items)
        try:
            if work.items:
                model.set_image(work.photograph.pixels)
            for item in work.items:
                try:
                    result = segment(model, item.request, item.mask, self.options)
                except Exception as error:
                    outcome.failed.append(_describe(error, _where(outcome.task, item.request)))
                    self._finish_one(outcome)
                else:
                    # without the photograph's pixels, which would stay in memory until the outputs are written
                    writes.submit(self.save, outcome, item, result, work.photograph.icc, work.photograph.dpi)
                left -= 1
        except Exception as error:
            outcome.failed.append(_describe(error, outcome.task.where))
            for _ in range(left):
                self._finish_one(outcome)

    @contextmanager
    def _working_on(self, outcome: Outcome, steps: int = 0) -> Iterator[None]:
        """Measure the time of a step of the work on a photograph; ``steps``, if this is the first, counts them all."""
        if steps:
            self._unfinished[id(outcome)] = steps
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                outcome.seconds += time.perf_counter() - started
            self._finish_one(outcome)

    def _finish_one(self, outcome: Outcome) -> None:
        """Count a step of the work on a photograph as finished; after the last one, report what became of it."""
        with self._lock:
            self._unfinished[id(outcome)] -= 1
            if self._unfinished[id(outcome)]:
                return
            del self._unfinished[id(outcome)]
            for name in ("written", "kept", "empty", "failed"):
                getattr(self.summary, name).extend(getattr(outcome, name))
            if self.report is not None:
                self.report(outcome)

    def _needs_model(self, loading: Future[_Work]) -> bool:
        """Wait until a photograph is known to need the model, so that it is loaded while the photograph is decoded."""
        while not self._has_work.is_set() and not loading.done():
            wait([loading], timeout=0.01)
        return self._has_work.is_set()

    def load(self, task: Task) -> _Work:
        """Determine what is to be done for a photograph, and read it if necessary (in a reader thread)."""
        outcome, started = Outcome(task), time.perf_counter()
        try:
            return self._load(outcome)
        except Exception as error:
            outcome.failed.append(_describe(error, task.where))
            return _Work(outcome)
        finally:
            outcome.seconds += time.perf_counter() - started

    def _load(self, outcome: Outcome) -> _Work:
        task = outcome.task
        data = _read(task.image)
        image_hash = hashlib.sha256(data).hexdigest()
        todo: list[tuple[Request, bytes | None, dict[str, str]]] = []
        for request in task.requests:
            try:
                mask_data = None if request.mask is None else _read(request.mask)
            except OSError as error:
                outcome.failed.append(_describe(error, _where(task, request)))
                continue
            fingerprints = self.fingerprints(request, image_hash, mask_data)
            if self.destination is not None:
                paths = {kind: self.destination.path(task, request, kind) for kind in fingerprints}
                done = {kind for kind, path in paths.items() if self.destination.holds(path, fingerprints[kind])}
                outcome.kept += [paths[kind] for kind in paths if kind in done]
                fingerprints = {kind: value for kind, value in fingerprints.items() if kind not in done}
            if fingerprints:
                todo.append((request, mask_data, fingerprints))
        if not todo:
            return _Work(outcome)
        self._has_work.set()
        photograph = decode_photograph(data, task.where)
        items = []
        for request, mask_data, fingerprints in todo:
            try:
                mask = None if mask_data is None else self._decode_mask(task, request, mask_data, photograph)
            except ValueError as error:
                outcome.failed.append(_describe(error, _where(task, request)))
            else:
                items.append(_Item(request, mask, fingerprints))
        return _Work(outcome, photograph, items)

    def _decode_mask(self, task: Task, request: Request, data: bytes, photograph: Photograph) -> np.ndarray:
        name = _where(task, request)
        mask = decode_mask(data, name)
        if mask.shape != photograph.pixels.shape[:2]:
            raise DatasetError(size_mismatch(name, mask.shape, f"its image {task.where}", photograph.pixels.shape[:2]))
        return mask

    def fingerprints(self, request: Request, image_hash: str, mask: bytes | None) -> dict[str, str]:
        """Return, for each kind, a text that changes when anything changes that the output is made from."""
        options = self.options
        made_from = [
            _METHOD,
            image_hash,
            [request.box, request.points, request.labels],
            None if mask is None else hashlib.sha256(mask).hexdigest(),
            self.choice.key(request.uses_stage_1),
            [options.bits, options.threshold, options.crop, options.keep_better, options.detail],
        ]
        return {
            kind: hashlib.sha256(json.dumps([kind, *made_from]).encode()).hexdigest()[:32] for kind in options.kinds
        }

    def save(
        self, outcome: Outcome, item: _Item, result: Result, icc: bytes | None, dpi: tuple[float, float] | None
    ) -> None:
        """Render, encode and write the outputs of an object (in a writer thread)."""
        task = outcome.task
        with self._working_on(outcome):
            try:
                records = {kind: _record(value, task.image) for kind, value in item.fingerprints.items()}
                for kind, data in encode_outputs(result, self.options, records, icc, dpi).items():
                    path = self.destination.path(task, item.request, kind)
                    self.destination.write(path, data)
                    with self._lock:
                        outcome.written.append(path)
                if not (result.alpha > 0.5).any():
                    with self._lock:
                        outcome.empty.append(item.request.name)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _FULL_DISK:
                    self._full_disk.set()
                with self._lock:
                    outcome.failed.append(_describe(error, _where(task, item.request)))


def _where(task: Task, request: Request) -> str:
    """Return how messages refer to a request."""
    if request.mask is not None:
        return str(request.mask) if isinstance(request.mask, Path) else task.label
    return task.where if request.name == task.name else f"{task.where}, object {request.name}"


def _read(source: Source) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _describe(error: Exception, where: str) -> str:
    message = str(error) if isinstance(error, UserError | ValueError | OSError) else f"{type(error).__name__}: {error}"
    if not isinstance(error, UserError | ValueError | OSError):
        logger.debug("%s", where, exc_info=error)
    return message if where in message else f"{where}: {message}"


def _hash_file(path: Path) -> str:
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def _remove_partial_files(outputs: Iterable[Path]) -> None:
    """Remove what runs that were killed while they wrote these outputs have left; see :func:`atomic_file`."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in outputs:
        names[path.parent].add(path.name)
    for folder, files in names.items():
        for part in folder.glob(".*.part"):
            if part.name[1:].rpartition(".part")[0].rpartition(".")[0] in files:
                part.unlink(missing_ok=True)


def _list(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return ", ".join(items[:_MAX_LISTED]) + more
