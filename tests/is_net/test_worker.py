"""The end of worker processes, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
