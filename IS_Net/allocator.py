"""How the C library keeps the memory that tensors have freed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # in glibc's malloc.h
_NEVER = -1
_ANY = 2**31 - 1  # the largest number of bytes that mallopt takes
_OF_OLD = 32 * 2**20  # the largest threshold that glibc accepted up to 2.34
_OVERHEAD = 4096  # bytes that an allocation may need besides what was asked for


def reuse_freed_memory(largest: int = _ANY) -> None:
    """Make glibc keep freed memory for the next allocation, where it would return it to the system.

    Every layer of a network allocates its output on the CPU, and the system has to clear the pages. Without this, that
    takes a fifth of a training step's CPU time, and a quarter of that of SAM's encoder; with it, the peak memory is up
    to a seventh higher. It changes the whole process, so commands call it; networks and predictors do not. Up to
    version 2.34, glibc keeps pieces of up to 32 MiB only; with other C libraries, nothing changes.

    Args:
        largest: Size in bytes. Memory that was allocated in larger pieces is still returned.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is None:
        return
    # either threshold, once set, keeps glibc from adapting the other, so the second is set only if the first was
    if any(mallopt(_M_MMAP_THRESHOLD, size) for size in (min(largest + _OVERHEAD, _ANY), _OF_OLD)):
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_ARENA_MAX, 1)  # what one thread has freed is of use to the others, too
