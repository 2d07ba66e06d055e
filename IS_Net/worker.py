"""What all data loaders share: how their worker processes are set up, and a collate function."""

from __future__ import annotations

import signal
from typing import TypeVar

import cv2

T = TypeVar("T")


def prepare_worker(_worker: int) -> None:
    """Set up a worker process; for ``worker_init_fn`` of a :class:`torch.utils.data.DataLoader`."""
    cv2.setNumThreads(0)  # one process per core is enough; PyTorch limits its own threads in workers
    # Ctrl-C reaches all processes of a terminal, and the main process handles it; a DataLoader ends its workers with
    # SIGTERM, whose handler they would inherit from the main process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def keep(batch: T) -> T:
    """Return a batch unchanged; for ``collate_fn`` of a :class:`torch.utils.data.DataLoader`."""
    return batch
