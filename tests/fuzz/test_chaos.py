"""A training that is killed at chosen writes and resumed ends as one that was not; `make chaos` kills more often."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from IS_Net.checkpoint import load_torch_file
from tests.fuzz.chaos import Trainer, choose_kills, differences


@pytest.mark.slow
def test_killed_trainings_end_as_one_that_was_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path))  # restored afterwards; the trainer sets it
    trainer = Trainer(tmp_path)
    whole, events = trainer.whole_run()
    assert {"write .last.pt.part", "write .best.safetensors.part", "os.rename .last.pt.part"} <= set(events)
    for kills in choose_kills(events, 3, seed=0):
        found = differences(whole, trainer.killed_run(kills, keep_caches=len(kills) > 1))
        assert not found, f"killed at {kills} ({events[kills[0] - 1]}): {found[:3]}"

    other = shutil.copytree(whole, tmp_path / "other")  # the comparison does find what differs
    state = load_torch_file(other / "last.pt")
    state["optimizer"]["state"][0]["exp_avg"][0] += 1
    torch.save(state, other / "last.pt")
    (other / ".best.safetensors.part").touch()
    assert differences(whole, other) == ["last.pt optimizer.state.0.exp_avg", "left behind: .best.safetensors.part"]


def test_every_kind_of_event_is_chosen_equally_often():
    events = ["open a"] * 3 + ["write a"] * 1000 + ["rename a"] * 2
    chosen = [number for run in choose_kills(events, 30, seed=1) for number in run]
    assert len(chosen) == 30
    assert sorted(sum(events[number - 1] == kind for number in chosen) for kind in set(events)) == [10, 10, 10]
