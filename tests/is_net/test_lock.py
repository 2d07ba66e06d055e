"""The lock on a folder, between real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from IS_Net.errors import FolderInUseError
from IS_Net.lock import lock_folder

HOLDER = """
import sys
from IS_Net.lock import lock_folder
with lock_folder(sys.argv[1], "a training"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Yield a process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused_and_its_owner_named(holder, tmp_path: Path):
    """Two trainings in one model_path, two pseudo-labellings (rows 39 and 52 of the list of faults)."""
    message = rf"{tmp_path}: is in use by a training \(process {holder.pid} on .*choose another folder"
    with pytest.raises(FolderInUseError, match=message), lock_folder(tmp_path, "a mask run"):
        pass


def test_a_killed_process_leaves_no_lock(holder, tmp_path: Path):
    holder.kill()
    holder.wait()
    with lock_folder(tmp_path, "a mask run"), pytest.raises(FolderInUseError), lock_folder(tmp_path, "another"):
        pass
    with lock_folder(tmp_path, "a mask run"):
        pass


def test_waiting_for_the_other_process(holder, tmp_path: Path):
    holder.stdin.close()
    with lock_folder(tmp_path, "the build of a cache", wait=True):
        assert holder.wait(30) == 0


def test_a_folder_below_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"), lock_folder(tmp_path / "file" / "run", "a training"):
        pass
