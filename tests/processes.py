"""Processes that tests start and end."""

from __future__ import annotations

import time
from pathlib import Path


def members(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, of = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended
            continue
        if int(of) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for_end(group: int, seconds: float = 60) -> None:
    """Wait until all processes of a group have ended; without /proc, there is nothing to wait for.

    Raises:
        AssertionError: If one of them has not.
    """
    deadline = time.monotonic() + seconds
    while left := members(group):
        assert time.monotonic() < deadline, f"processes that did not end: {left}"
        time.sleep(0.1)
