"""What all data loaders share: how their worker processes are set up, and a collate function."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TypeVar

import cv2

T = TypeVar("T")


def prepare_worker(_worker: int) -> None:
    """Set up a worker process; for ``worker_init_fn`` of a :class:`torch.utils.data.DataLoader`."""
    cv2.setNumThreads(0)  # one process per core is enough; PyTorch limits its own threads in workers
    # Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all processes of a job. The main process
    # handles both, and still needs its workers until it has saved; it ends them by a message.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process soon after the process that started it, even if that one was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def keep(batch: T) -> T:
    """Return a batch unchanged; for ``collate_fn`` of a :class:`torch.utils.data.DataLoader`."""
    return batch
