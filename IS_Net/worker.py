"""What all data loaders share: how their worker processes are set up, and a collate function."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TypeVar

import cv2

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHARED_MEMORY = Path("/dev/shm")  # where PyTorch puts what workers send
_BATCHES_PER_WORKER = 3  # two are prefetched, and one is in use
_GRACE = 1.0  # seconds that daemon processes have to answer SIGTERM at exit


def prepare_worker(_worker: int) -> None:
    """Set up a worker process; for ``worker_init_fn`` of a :class:`torch.utils.data.DataLoader`."""
    cv2.setNumThreads(0)  # one process per core is enough; PyTorch limits its own threads in workers
    # Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all processes of a job. The main process
    # handles both, and still needs its workers until it has saved; it ends them by a message.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()


def _end_workers() -> None:
    """End the worker processes that are left when the main process exits.

    An error that ends the program keeps the iterator of its data loader alive, and with it the workers.
    :mod:`multiprocessing` then sends them SIGTERM, which they ignore, and would wait for them forever.
    """
    processes = [process for process in multiprocessing.active_children() if process.daemon]
    if not processes:
        return
    if hasattr(signal, "SIGCHLD"):  # PyTorch's handler raises an error for a worker that a signal ends
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in processes:
        process.terminate()
    end = time.monotonic() + _GRACE
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
        if process.is_alive():
            process.kill()


# 0 is the lowest priority of what multiprocessing calls at exit: pools have ended their own processes before
multiprocessing.util.Finalize(None, _end_workers, exitpriority=0)


def workers_that_fit(workers: int, batch_bytes: int) -> int:
    """Reduce a number of workers to those whose batches fit into shared memory, and log if that changes it.

    A worker that writes a batch to a full ``/dev/shm`` is ended by a signal, and the main process waits for it. Docker
    gives containers 64 MB.

    Args:
        workers: Number of worker processes.
        batch_bytes: Size of a batch in bytes.
    """
    if not workers or not _SHARED_MEMORY.is_dir():
        return workers
    free = shutil.disk_usage(_SHARED_MEMORY).free
    fitting = min(workers, free // (_BATCHES_PER_WORKER * max(batch_bytes, 1)))
    if fitting < workers:
        logger.warning(
            "%s has %.0f MB free, too little for %d workers with batches of %.0f MB; %d are used. Make it larger "
            "(docker run --shm-size=8g), or reduce workers or the batch size",
            *(_SHARED_MEMORY, free / 1e6, workers, batch_bytes / 1e6, fitting),
        )
    return fitting


def end_with_parent() -> None:
    """End this process soon after the process that started it, even if that one was killed.

    Call it in a process that :mod:`multiprocessing` has started.
    """
    parent = os.getppid()
    starter = multiprocessing.parent_process()

    def watch() -> None:
        # A process whose parent has ended gets another one. If that came before the line above, only the sentinel
        # tells; and that of a forked process is held open by those that were forked later, until they end.
        while os.getppid() == parent and starter.is_alive():
            starter.join(timeout=1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keep(batch: T) -> T:
    """Return a batch unchanged; for ``collate_fn`` of a :class:`torch.utils.data.DataLoader`."""
    return batch
