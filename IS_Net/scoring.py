"""Measure maps against ground truths, in this process or in worker processes.

The results do not depend on the number of workers and keep the order of the jobs. What depends only on a ground truth
is computed once for all its maps and cached on disk.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch

from IS_Net import paths
from IS_Net.bounded import map_bounded
from IS_Net.command_line import signals_held
from IS_Net.decoding import tell_once
from IS_Net.errors import ImageError, ScoringError
from IS_Net.files import atomic_file
from IS_Net.masks import binarize, read_stored_mask
from IS_Net.metric_names import ALL
from IS_Net.metrics import GroundTruth, Pair
from IS_Net.metrics.pair import PARTS
from IS_Net.metrics.suite import Suite
from IS_Net.worker import end_with_parent

logger = logging.getLogger(__name__)


R = TypeVar("R")

_SIGTERM_DELAY = 2.0  # seconds
_PATIENCE = 600.0  # seconds without a result after which scoring ends

CACHE_VERSION = 2  # increase it with every change of GroundTruth.arrays()


def gt_cache_folder() -> Path:
    """Return the default folder of the cache of ground truths."""
    return paths.cache() / "gt"


@dataclass(frozen=True)
class Job:
    """A ground truth and the maps that are measured against it."""

    name: str
    gt: Path | np.ndarray
    """A file, or an array (H, W): uint8 with the object above 128, or bool."""
    maps: Mapping[str, Path | np.ndarray]
    """By method: a file, or an array (H, W) uint8."""


class Outcome(NamedTuple):
    """The result of a job."""

    name: str
    measured: dict[str, dict[str, Any]]
    """By method: the result of :meth:`IS_Net.metrics.suite.Suite.measure`, for ``Suite.add``."""
    problems: list[str]
    """Why the other maps could not be measured; each message names its file."""
    notes: list[tuple[Path, str]]
    """Files that were rescaled or are doubtful, and why; see :class:`IS_Net.masks.StoredMask`."""


class GTCache:
    """A cache on disk of :meth:`IS_Net.metrics.GroundTruth.arrays`: a file for each part, named by a hash of the mask.

    Damaged files are computed again, and a folder that cannot be written only costs time.

    Args:
        folder: The folder; it is created if it does not exist.
        parts: Names from ``IS_Net.metrics.pair.PARTS``: the parts that are read, or computed and written.
    """

    def __init__(self, folder: str | Path, parts: Iterable[str] = tuple(PARTS)) -> None:
        self.folder = Path(folder)
        self.parts = sorted(parts)
        self._writable = True

    def paths(self, mask: np.ndarray) -> dict[str, Path]:
        """Return the files of a ground truth, (H, W) bool, by part."""
        content = hashlib.sha256(f"{CACHE_VERSION} {mask.shape}".encode())
        content.update(np.packbits(mask))
        return {part: self.folder / f"{content.hexdigest()[:32]}_{part}.npz" for part in self.parts}

    def ground_truth(self, mask: np.ndarray) -> GroundTruth:
        """Return a ground truth, (H, W) bool, with the parts read from the cache, or computed and written to it."""
        known: dict[str, np.ndarray] = {}
        missing: dict[str, Path] = {}
        for part, path in self.paths(mask).items():
            try:
                known |= self._read(path, part, mask.shape)
            except FileNotFoundError:
                missing[part] = path
            except Exception as error:  # zlib, zipfile and NumPy raise many types of errors for damaged bytes
                missing[part] = path
                if path.is_file():
                    logger.warning("%s: is damaged (%s); it is computed again", path, error)
        gt = GroundTruth(mask, known)
        for part, path in missing.items():
            arrays = gt.arrays([part])
            if self._writable:
                try:
                    self._write(path, arrays)
                except OSError as error:
                    self._writable = False
                    logger.warning("%s: cannot be written (%s); continuing without writing there", self.folder, error)
        return gt

    @staticmethod
    def _read(path: Path, part: str, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in PARTS[part]}
        if part == "skeleton":
            fits = arrays["skeleton"].shape == (-(-shape[0] * shape[1] // 8),)
        else:
            fits = arrays["squared_distance"].shape == shape and arrays["band"].shape == arrays["nearest"].shape
        if not fits:
            raise ValueError("its size is wrong")
        return arrays

    @staticmethod
    def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        # numpy.savez_compressed takes as long as computing the arrays; compression level 1 takes a third of that
        with (
            atomic_file(path) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


class _Worker:
    """Measures one job at a time."""

    def __init__(self, metrics: str, cache_dir: str) -> None:
        self.suite = Suite(metrics)
        self.cache = GTCache(cache_dir, self.suite.slow_gt) if cache_dir and self.suite.slow_gt else None

    def __call__(self, job: Job) -> Outcome:
        outcome = Outcome(job.name, {}, [], [])

        def read(file: Path | np.ndarray) -> np.ndarray:
            if not isinstance(file, Path):
                return file
            levels, note = read_stored_mask(file)
            if note:
                outcome.notes.append((file, note))
            return levels

        try:
            plane = read(job.gt)
        except ImageError as error:
            outcome.problems.append(str(error))
            return outcome
        mask = plane if plane.dtype == bool else binarize(plane)
        gt = self.cache.ground_truth(mask) if self.cache else GroundTruth(mask)
        for method, pred in job.maps.items():
            try:
                pair = Pair(read(pred), gt)
            except ImageError as error:
                outcome.problems.append(str(error))
            except ValueError as error:
                outcome.problems.append(f"{pred if isinstance(pred, Path) else job.name}: {error}")
            else:
                outcome.measured[method] = self.suite.measure(pair)
        return outcome


_worker: _Worker | None = None  # that of a worker process


def _start_worker(metrics: str, cache_dir: str) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    signal.signal(signal.SIGTERM, _end_later)
    cv2.setNumThreads(0)  # the processes run in parallel already
    torch.set_num_threads(1)
    end_with_parent()
    _worker = _Worker(metrics, cache_dir)


def _end_later(_number: int, _frame: object) -> None:
    """Answer SIGTERM after a while: if it was sent to the whole group, the main process answers it first.

    The pool ends its processes by SIGTERM, too, if one of them died.
    """
    timer = threading.Timer(_SIGTERM_DELAY, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _measure_in_worker(job: Job) -> Outcome:
    return _measure(_worker, job)


def _tell(outcome: Outcome) -> Outcome:
    """Log the notes of an outcome, here in the main process."""
    for path, note in outcome.notes:
        tell_once(path, note)
    return outcome


def _measure(worker: _Worker, job: Job) -> Outcome:
    """Measure a job; the message of an unexpected error, such as too little memory, names the file."""
    try:
        return worker(job)
    except Exception as error:
        file = job.gt if isinstance(job.gt, Path) else job.name
        raise ScoringError(f"{file}: cannot be scored ({type(error).__name__}: {error})") from error


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep processes that are started in this context from running the file of the main script.

    A script without ``if __name__ == "__main__"`` would run again in each of them, and a script from stdin has no file.
    """
    main = vars(sys.modules["__main__"])
    kept = {key: main[key] for key in ("__spec__", "__file__") if key in main}
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(kept)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of this context; keep Ctrl-C from processes that are started in it."""
    masks = hasattr(signal, "pthread_sigmask") and threading.current_thread() is threading.main_thread()
    with signals_held():
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else None  # new processes inherit it
        try:
            yield
        finally:
            if masks:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _QuietPool(ProcessPoolExecutor):
    """A process pool whose processes start without the main script and without Ctrl-C."""

    def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        with _interrupts_wait(), _main_hidden():  # a process that is half started cannot be ended
            return super().submit(function, *args, **kwargs)


class Scorer:
    """Measures maps; a context manager that ends its worker processes.

    Args:
        metrics: Names of metrics; the format is that of :func:`IS_Net.metric_names.choose`.
        workers: Number of worker processes; 0 measures in this process.
        cache_dir: Folder of :class:`GTCache`; "" disables the cache, None means :func:`gt_cache_folder`.

    Raises:
        ValueError: If a metric is unknown.
    """

    def __init__(self, metrics: str = ALL, workers: int = 0, cache_dir: str | Path | None = None) -> None:
        self.workers = workers
        self._settings = metrics, str(gt_cache_folder() if cache_dir is None else cache_dir)
        self._worker = _Worker(*self._settings)
        self._pool: _QuietPool | None = None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def measure(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Measure jobs and yield their outcomes in order; at most two jobs for each worker are drawn ahead.

        Raises:
            ScoringError: If a worker process died or hangs, or a job failed for a reason other than its files.
        """
        if not self.workers:
            for job in jobs:
                yield _tell(_measure(self._worker, job))
            return
        self._pool = self._pool or self._start()
        try:
            for future in map_bounded(self._pool, _measure_in_worker, jobs, 2 * self.workers):
                yield _tell(future.result(_PATIENCE))
        except FutureTimeoutError as error:
            for process in self._pool._processes.values():  # else the end of this context would wait for them
                process.kill()
            raise ScoringError(
                f"no map was scored in {_PATIENCE / 60:.0f} minutes; check the disk of the maps and ground truths, and "
                "try again with fewer workers, or 0"
            ) from error
        except BrokenProcessPool as error:
            raise ScoringError(
                "a worker process died, perhaps because memory is short; try again with fewer workers, or 0"
            ) from error

    def _start(self) -> _QuietPool:
        # Forking this process would copy its threads and its CUDA context in an arbitrary state. A fork server that has
        # only imported this module can be forked safely and quickly.
        served = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if served else "spawn")
        if served:
            context.set_forkserver_preload([__name__])
        with _interrupts_wait():  # half-made semaphores would stay
            return _QuietPool(self.workers, context, _start_worker, self._settings)
