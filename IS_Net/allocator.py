"""How the C library keeps the memory that tensors have freed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # in glibc's malloc.h
_NEVER = -1
_ANY = 2**31 - 1  # the largest number of bytes that mallopt takes
_OVERHEAD = 4096  # bytes that an allocation may need besides what was asked for


def reuse_freed_memory(largest: int = _ANY) -> None:
    """Make glibc keep freed memory for the next allocation, where it would return it to the system.

    Every layer of a network allocates its output on the CPU, and the system has to clear the pages. Without this, that
    takes a fifth of a training step's CPU time, and a quarter of that of SAM's encoder; with it, the peak memory is up
    to a seventh higher. It holds for the whole process, so commands call it, and the library does not. With other C
    libraries, nothing changes.

    Args:
        largest: Size in bytes. Memory that was allocated in larger pieces is still returned.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)  # what one thread has freed is of use to the others, too
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_MMAP_THRESHOLD, min(largest + _OVERHEAD, _ANY))
