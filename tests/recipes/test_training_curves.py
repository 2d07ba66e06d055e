"""training_curves: what it reads, the figure, and the messages about folders that are not runs."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from recipes.starter import training_curves

pytest.importorskip("matplotlib")

LOSSES = [3.0, 2.0, 1.5, 1.25]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    with SummaryWriter(str(folder / "tensorboard" / "segmentation")) as writer:
        for step, loss in enumerate(LOSSES):
            writer.add_scalar("loss", loss, 10 * (step + 1))
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ["phase", "iteration", "data_set", "max_f_mean_pr", "mae"])
        rows.writeheader()
        for phase, iteration, f in (("gt_encoder", 5, 0.1), ("segmentation", 20, 0.5), ("segmentation", 40, 0.75)):
            rows.writerow(
                {"phase": phase, "iteration": iteration, "data_set": "tiny", "max_f_mean_pr": f, "mae": 1 - f}
            )
    return folder


def test_losses_and_validations_are_those_of_the_run(run: Path) -> None:
    iterations, losses = training_curves.read_loss(run)
    assert iterations.tolist() == [10, 20, 30, 40] and losses == pytest.approx(LOSSES)
    found = training_curves.read_validations(run)
    assert list(found) == ["tiny"]
    assert np.array_equal(found["tiny"], [[20, 0.5, 0.5], [40, 0.75, 0.25]])


def test_a_figure_of_runs_one_after_the_other(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "curves.png"
    assert training_curves.main([str(run), str(run), "--out", str(out), "--smooth", "2"]) == 0
    assert np.asarray(Image.open(out)).std() > 5


def test_a_folder_that_is_not_a_run_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert training_curves.main([str(tmp_path / "gone"), "--out", str(tmp_path / "c.png")]) == 2
    assert "gone: contains no metrics.csv" in capsys.readouterr().err
    shutil.rmtree(run / "tensorboard")
    assert training_curves.main([str(run), "--out", str(tmp_path / "c.png")]) == 2
    assert "run: found no loss in tensorboard/segmentation" in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


def test_smooth_must_be_positive(run: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        training_curves.main([str(run), "--smooth", "0"])
    assert stop.value.code == 2 and "above 0" in capsys.readouterr().err
