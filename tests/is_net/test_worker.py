"""The end of worker processes, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.processes import wait_for_end

SCRIPT = """
import time
from torch.utils.data import DataLoader
from IS_Net.worker import keep, prepare_worker

class Numbers:
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        if index:
            time.sleep(1000)
        return index

if __name__ == "__main__":
    batches = iter(DataLoader(Numbers(), num_workers=1, collate_fn=keep, worker_init_fn=prepare_worker))
    next(batches)
    raise ValueError("a mistake")
"""


def test_a_program_that_an_error_ends_does_not_wait_for_its_workers(tmp_path: Path):
    """The traceback keeps the iterator alive; the worker waits, as for a disk that does not answer."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, script], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        printed = process.communicate(timeout=60)[1]
    finally:
        process.kill()  # its worker ends by itself then
    assert process.returncode == 1, printed
    assert printed.rstrip().endswith("ValueError: a mistake") and "killed by signal" not in printed


ORPHANS = """
import multiprocessing
import os
import sys
import time
from IS_Net.worker import end_with_parent

def work(ready):
    while os.path.exists(ready):
        time.sleep(0.05)
    end_with_parent()
    print("watching", flush=True)
    time.sleep(1000)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    for _ in range(2):
        context.Process(target=work, args=(sys.argv[2],)).start()
    print("started", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("killed", ["before they watch", "while they watch"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_end_with_a_main_process_that_is_killed(tmp_path: Path, method: str, killed: str):
    """A worker that was still starting has another parent already when it begins to watch."""
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    held = tmp_path / "held"
    held.touch()
    process = subprocess.Popen(
        [sys.executable, script, method, held],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "started\n"
        if killed == "while they watch":
            held.unlink()
            assert [process.stdout.readline() for _ in range(2)] == ["watching\n"] * 2
        process.kill()
        process.wait()
        held.unlink(missing_ok=True)
        wait_for_end(process.pid)
    finally:
        with suppress(ProcessLookupError):  # there is nothing left, if the test passes
            os.killpg(process.pid, signal.SIGKILL)
