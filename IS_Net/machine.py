"""What is known of this machine without PyTorch."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

RUNTIMES = ("auto", "torch", "openvino", "ncnn", "onnx")
"""What may run stage 2; see :func:`IS_Net.runtime.base.choose_runtime`."""
PRECISIONS = ("auto", "full", "half")
"""What stage 2 may compute in; see :func:`IS_Net.device.autocast_dtype`."""


_MOST_THREADS = 1024  # with far more, ncnn ends the process


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_process() -> int:
    """Return the number of CPU cores for each of the processes that a driver started on this machine."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "")  # of torchrun, and of the driver of dis-sam
    return max(1, available_cores() // max(1, int(processes) if processes.isdecimal() else 1))


def requested_threads() -> int:
    """Return how many threads a runtime may use: the environment variable ``OMP_NUM_THREADS``, else all cores."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(threads), _MOST_THREADS) if threads.isdecimal() and int(threads) else available_cores()


def launched_processes() -> int:
    """Return the number of processes that torchrun has started for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@cache
def has_amx() -> bool:
    """Return whether the CPU has AMX, with which bfloat16 is several times as fast as float32 (known on Linux only)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
