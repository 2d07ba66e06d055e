"""Processes that tests start and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


def end_by(number: signal.Signals, script: str, folder: Path, ready: Path) -> int:
    """Run a Python script in a folder, send it a signal once a file exists, and return its exit code.

    Ctrl-C goes to its children, too, as from a terminal; other signals go to it alone.
    """
    process = subprocess.Popen([sys.executable, "-c", script], cwd=folder, start_new_session=True)
    try:
        while not ready.is_file():
            assert process.poll() is None
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        return process.wait(timeout=30)
    finally:
        process.kill()
