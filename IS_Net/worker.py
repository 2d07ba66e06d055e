"""How the processes that load data are set up."""

from __future__ import annotations

import signal

import cv2


def prepare_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism; PyTorch knows that by itself
    # Ctrl-C reaches all processes of a terminal, but it is the main one's to answer; SIGTERM is the loader's
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
