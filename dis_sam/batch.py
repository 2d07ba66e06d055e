"""Segment photographs: read them, run the model, write the outputs.

Reader threads decode photographs, the main thread runs the model, writer threads render and encode outputs. The queues
between them are bounded, so that memory does not grow with the number of photographs. Every output is written
atomically and holds a fingerprint of all that it was made from, so that a run can be interrupted at any time and
resumed by calling it again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from dis_sam.destination import Destination
from dis_sam.inputs import Request, Source, Task
from dis_sam.model_choice import ModelChoice
from dis_sam.outputs import OutputError, Segmented, check_kind, check_options, encode, render_all
from dis_sam.records import KEYWORD, make_record
from IS_Net.allocator import reuse_freed_memory
from IS_Net.bounded import BoundedQueue, map_bounded
from IS_Net.errors import DatasetError, UserError, join_some
from IS_Net.files import remove_leftovers
from IS_Net.images import Photograph, decode_mask, decode_photograph, size_mismatch, size_text
from IS_Net.preprocess import reaches_outside

if TYPE_CHECKING:
    from dis_sam.pipeline import DISSAM, Result

logger = logging.getLogger(__name__)

METHOD = 3
"""Part of every fingerprint. Increase it when the same inputs give other outputs than before."""
LARGEST = 128 * 2**20
"""Size in bytes of the largest output of a layer at 1024 x 1024, in float32."""
DOUBTFUL = 0.7
"""Results with a lower score are named: on photographs, most of them have an IoU below that, too
(recipes/starter/LOG.md, "The score")."""
REMARKS = ("empty", "doubtful")
"""What is noted of results beside errors, as in :class:`Outcome`."""
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


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


@dataclass
class Summary:
    """What a run did.

    Attributes:
        written: The outputs that were made in this run.
        kept: The outputs of an earlier run, made from the same photograph, prompt, weights and options.
        empty: Names of the objects of this run whose alpha mattes are empty: nothing was found.
        doubtful: Names of the objects of this run whose scores are below :data:`DOUBTFUL`, with the scores. Scores that
            would take one more pass are not computed.
        failed: One message for each photograph or object that failed; all others are done.
    """

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.written)} {'file' if len(self.written) == 1 else 'files'} written"
        text += f", {len(self.kept)} kept from an earlier run" if self.kept else ""
        text += f", {len(self.failed)} failed" if self.failed else ""
        text += f"; nothing was found for {join_some(self.empty)}" if self.empty else ""
        return text + (f"; look at {join_some(self.doubtful)}" if self.doubtful else "")


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
        records: The kinds to make, and the record of each; see :func:`dis_sam.records.read_record`.
        icc: The ICC profile of the photograph.
        dpi: The resolution of the photograph.

    Returns:
        The content of the files by kind.
    """
    arrays = render_all(result, records, bits=options.bits, threshold=options.threshold, crop=options.crop)
    return {kind: encode(array, icc, dpi, {KEYWORD: records[kind]}) for kind, array in arrays.items()}


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
        doubtful: Names of the objects of this run whose scores are below :data:`DOUBTFUL`, with the scores.
        failed: One message for each failure.
        seconds: How long was worked on it: to read, segment, render and write.
    """

    task: Task
    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def remarks(self) -> dict[str, list[str]]:
        """What :data:`REMARKS` names, without what is empty."""
        return {name: found for name in REMARKS if (found := getattr(self, name))}

    def judge(self, name: str, result: Result) -> None:
        """Note whether the result of an object is empty or doubtful."""
        if not (result.alpha > 0.5).any():
            self.empty.append(name)
        elif result.score < DOUBTFUL:  # NaN, which is not, means unknown
            self.doubtful.append(f"{name} (score {result.score:.2f})")


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
        tasks: See :func:`dis_sam.inputs.plan_cut` and :func:`dis_sam.inputs.plan_refine`.
        destination: Where the outputs go; see :meth:`dis_sam.destination.Destination.check`.
        choice: The model; see :func:`dis_sam.model_choice.choose_model`.
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
    reuse_freed_memory(LARGEST)
    return _Run(destination, choice, options, load_model, report).make(tasks, workers)


def run_one(task: Task, choice: ModelChoice, options: Options) -> tuple[bytes, Outcome]:
    """Segment one object.

    Args:
        task: A photograph with one request.
        choice: The model.
        options: How to segment and write.

    Returns:
        The content of the file of its first kind of output, and what is noted of the result.

    Raises:
        RunError: If the photograph or the mask cannot be used.
        CheckpointError: If the weights are damaged, or belong to another network.
        DeviceError: If the device, the precision or the runtime is not available.
    """
    reuse_freed_memory(LARGEST)
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
    work.outcome.judge(item.request.name, result)
    kind, made_from = next(iter(item.fingerprints.items()))
    records = {kind: make_record(made_from, task.image)}
    return encode_outputs(result, options, records, work.photograph.icc, work.photograph.dpi)[kind], work.outcome


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
            for folder in {path.parent for task in tasks for path in self.destination.paths(task)}:
                remove_leftovers(folder)
        model: DISSAM | None = None
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
            writes = BoundedQueue(writers, workers + 1)
            loads = map_bounded(readers, self.load, tasks, workers + 1)
            bar = tqdm(loads, "photographs", count, unit="photo", disable=count is not None and count < 2)
            for number, loading in enumerate(bar):
                if self._full_disk.is_set():
                    left = "" if count is None else f"; photographs left: {count - number}"
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
            for name in ("written", "kept", "empty", "doubtful", "failed"):
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
                if request.box is not None and reaches_outside(request.box, *photograph.pixels.shape[:2]):
                    logger.warning(
                        "%s: the box %s reaches outside the image of %s pixels; only the part inside is used",
                        *(_where(task, request), list(request.box), size_text(photograph.pixels.shape)),
                    )
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
            METHOD,
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
                records = {kind: make_record(value, task.image) for kind, value in item.fingerprints.items()}
                for kind, data in encode_outputs(result, self.options, records, icc, dpi).items():
                    path = self.destination.path(task, item.request, kind)
                    self.destination.write(path, data)
                    with self._lock:
                        outcome.written.append(path)
                with self._lock:
                    outcome.judge(item.request.name, result)
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
