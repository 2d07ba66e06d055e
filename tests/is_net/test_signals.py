"""Signals to a training and its processes, with real processes and small networks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from IS_Net.checkpoint import load_state
from tests.processes import wait_for_end

ENDLESS = (
    *("cache_size=128", "batch_size_train=2", "max_ite=1000000", "model_save_fre=100000", "interm_sup=False"),
    *("device=cpu", "model_digit=full", "freeze_bn=True"),
)
SCRIPT = """
import sys
if __name__ == "__main__":
    from tests.fuzz.chaos import _use_thin_networks
    from IS_Net.train_valid_inference_main import command_line
    _use_thin_networks()
    sys.exit(command_line(sys.argv[1:]))
"""


@pytest.fixture
def training(make_dataset, tmp_path: Path):
    """Return a function that starts a training in a process group of its own and waits until it has begun."""
    folder = Path(make_dataset()["im_dir"]).parent
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    processes = []

    def start(workers: int, *launcher: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [
                *(sys.executable, *launcher, script, *ENDLESS, f"workers={workers}", f"model_path={tmp_path / 'run'}"),
                *(f"train_datasets={folder}", f"valid_datasets={folder}"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "DIS_SAM_HOME": str(tmp_path / "home")},
        )
        processes.append(process)
        printed = ""
        while "an iteration takes" not in printed:
            printed += (letter := process.stderr.read(1))
            assert letter, printed
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_to_the_whole_group_saves_the_training(training, tmp_path: Path, number, code, word):
    """As timeout, scancel and a terminal send it (row 31 of the list of faults): the workers must not end first."""
    process = training(workers=2)
    os.killpg(process.pid, number)
    printed = process.communicate(timeout=120)[1]
    assert process.returncode == code, printed
    assert f"{word}; restore_model=last.pt resumes the training" in printed and "Traceback" not in printed
    assert f"{number.name}: the training stops after this batch and is saved" in printed
    assert load_state(tmp_path / "run" / "last.pt")["progress"]["iteration"] >= 10


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_iteration(training, tmp_path: Path):
    """As the system does when memory is short (row 4d of the list of faults)."""
    process = training(workers=2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        pytest.skip("needs /proc")
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    printed = process.communicate(timeout=120)[1]
    assert process.returncode == 1, printed
    assert "a process that loads data ended" in printed and "restore_model=last.pt resumes it" in printed
    assert "Traceback" not in printed
    assert load_state(tmp_path / "run" / "last.pt")["progress"]["iteration"] >= 10


@pytest.mark.slow
def test_workers_end_with_a_killed_training(training):
    process = training(workers=2)
    process.kill()
    process.wait()
    wait_for_end(process.pid)


@pytest.mark.slow
def test_torchrun_passes_a_signal_on_and_the_training_is_saved(training, tmp_path: Path):
    """To the whole group, so that each process gets it twice."""
    process = training(0, *("-m", "torch.distributed.run", "--nproc-per-node=2", "--shutdown-timeout=100"))
    os.killpg(process.pid, signal.SIGTERM)
    printed = process.communicate(timeout=120)[1]
    assert "terminated; restore_model=last.pt resumes the training" in printed
    assert printed.count("the training stops after this batch and is saved") == 1
    assert load_state(tmp_path / "run" / "last.pt")["progress"]["iteration"] >= 10
