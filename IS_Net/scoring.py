"""Measure maps against ground truths, in worker processes where there are cores to spare.

The measures do not depend on the number of workers, and come back in the order of the jobs. What depends on a ground
truth alone is computed once for all maps of it, and kept on disk.
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
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from IS_Net import paths
from IS_Net.errors import ScoringError
from IS_Net.images import ImageError, atomic_file, binarize, read_map, read_mask
from IS_Net.metrics import GroundTruth, Pair
from IS_Net.metrics.pair import PARTS
from IS_Net.metrics.suite import ALL, Suite

logger = logging.getLogger(__name__)


def gt_cache_folder() -> Path:
    """Return the folder of what was computed from ground truths alone."""
    return paths.cache() / "gt"


"""Where ground truths' arrays are kept, unless another folder is named."""

CACHE_VERSION = 2  # to be raised with every change of what GroundTruth.arrays() gives


@dataclass(frozen=True)
class Job:
    """A ground truth, and the maps of it."""

    name: str
    gt: Path | np.ndarray
    """A file; or (H, W) uint8, the object above 128, or bool."""
    maps: Mapping[str, Path | np.ndarray]
    """By method: files; or (H, W) uint8."""


class Outcome(NamedTuple):
    """What came of a job."""

    name: str
    measured: dict[str, dict[str, Any]]
    """By method: what :meth:`IS_Net.metrics.suite.Suite.measure` gave, to be added to a ``Suite``."""
    problems: list[str]
    """What kept the other maps from being measured; each names its file."""


class GTCache:
    """What :meth:`IS_Net.metrics.GroundTruth.arrays` gives, in a file for each part, found by the mask's pixels.

    A file that is damaged, or cannot be written, costs time and nothing else.

    Args:
        folder: Is made where it is missing.
        parts: Which of ``IS_Net.metrics.pair.PARTS`` are read, or computed and kept.
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
        """Return a ground truth, (H, W) bool, that knows the parts' arrays: read, or else computed and kept."""
        known: dict[str, np.ndarray] = {}
        missing: dict[str, Path] = {}
        for part, path in self.paths(mask).items():
            try:
                known |= self._read(path, part, mask.shape)
            except FileNotFoundError:
                missing[part] = path
            except Exception as error:  # zlib, zipfile and NumPy have a dozen ways to say that bytes are damaged
                missing[part] = path
                if path.is_file():
                    logger.warning("%s: is damaged (%s); computed anew", path, error)
        gt = GroundTruth(mask, known)
        for part, path in missing.items():
            arrays = gt.arrays([part])
            if self._writable:
                try:
                    self._write(path, arrays)
                except OSError as error:
                    self._writable = False
                    logger.warning("%s: cannot be written (%s); nothing more is kept there", self.folder, error)
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
            raise ValueError("it is of another size")
        return arrays

    @staticmethod
    def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        # numpy.savez_compressed takes as long to compress as the arrays take to compute; level 1 takes a third of it
        with (
            atomic_file(path) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)


class _Judge:
    """Does jobs, one at a time."""

    def __init__(self, metrics: str, cache_dir: str) -> None:
        self.suite = Suite(metrics)
        self.cache = GTCache(cache_dir, self.suite.slow_gt) if cache_dir and self.suite.slow_gt else None

    def __call__(self, job: Job) -> Outcome:
        outcome = Outcome(job.name, {}, [])
        try:
            plane = read_mask(job.gt) if isinstance(job.gt, Path) else job.gt
        except ImageError as error:
            outcome.problems.append(str(error))
            return outcome
        mask = plane if plane.dtype == bool else binarize(plane)
        gt = self.cache.ground_truth(mask) if self.cache else GroundTruth(mask)
        for method, pred in job.maps.items():
            try:
                pair = Pair(read_map(pred) if isinstance(pred, Path) else pred, gt)
            except ImageError as error:
                outcome.problems.append(str(error))
            except ValueError as error:
                outcome.problems.append(f"{pred if isinstance(pred, Path) else job.name}: {error}")
            else:
                outcome.measured[method] = self.suite.measure(pair)
        return outcome


_judge: _Judge | None = None  # a worker process's own


def _start_worker(metrics: str, cache_dir: str) -> None:
    global _judge
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    cv2.setNumThreads(0)  # the workers are the parallelism
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _judge = _Judge(metrics, cache_dir)


def _end_with_parent() -> None:
    """End this process when the main one does, even if that was killed: else it would wait for jobs forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _do(job: Job) -> Outcome:
    return _named(_judge, job)


def _named(judge: _Judge, job: Job) -> Outcome:
    """Do a job; an error that nobody expects, such as too little memory, names its file."""
    try:
        return judge(job)
    except Exception as error:
        file = job.gt if isinstance(job.gt, Path) else job.name
        raise ScoringError(f"{file}: cannot be scored ({type(error).__name__}: {error})") from error


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep the processes that are started meanwhile from running the main script's file: they need nothing of it.

    A script without ``if __name__ == "__main__"`` would score anew in each of them, and one from stdin has no file.
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
    """Let Ctrl-C wait for a moment; it never reaches the processes that are started meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    masks = hasattr(signal, "pthread_sigmask")  # not on Windows
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else None  # what is started inherits it
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


class Scorer:
    """Measures maps, a few at a time; a context manager, which ends its workers.

    Args:
        metrics: As :func:`IS_Net.metrics.suite.choose` takes them.
        workers: Processes; 0 measures in this one.
        cache_dir: Of :class:`GTCache`; "" keeps nothing, None takes :func:`gt_cache_folder`.

    Raises:
        ValueError: If a metric is unknown.
    """

    def __init__(self, metrics: str = ALL, workers: int = 0, cache_dir: str | Path | None = None) -> None:
        self.workers = workers
        self._settings = metrics, str(gt_cache_folder() if cache_dir is None else cache_dir)
        self._judge = _Judge(*self._settings)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def measure(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Yield the outcomes of jobs in their order; of the jobs, two for each worker are drawn ahead and no more.

        Raises:
            ScoringError: If a worker process died, or a job failed in a way that is no file's fault.
        """
        if not self.workers:
            yield from (_named(self._judge, job) for job in jobs)
            return
        waiting: deque[Future[Outcome]] = deque()
        try:
            for job in jobs:
                if len(waiting) == 2 * self.workers:
                    yield waiting.popleft().result()
                self._pool = self._pool or self._start()
                with _interrupts_wait(), _main_hidden():  # what is half started cannot be ended
                    waiting.append(self._pool.submit(_do, job))
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ScoringError(
                "a process that scores died, as they do where memory is short; try again with fewer workers, or 0"
            ) from error

    def _start(self) -> ProcessPoolExecutor:
        # Forking this process would copy threads and a CUDA context in whatever state they are in. A server that has
        # imported this module and done nothing else can be forked safely, and at once.
        served = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if served else "spawn")
        if served:
            context.set_forkserver_preload([__name__])
        return ProcessPoolExecutor(self.workers, context, _start_worker, self._settings)
