"""calibrate: what it measures, the fit of the score, and the weights and the plot that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from IS_Net.checkpoint import read_weights, save_weights
from IS_Net.images import write_image, write_mask
from IS_Net.manifest import read_manifest
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor, calibrate
from IS_Net.preprocess import box_from_mask, make_planes
from recipes.starter import box_prompts
from recipes.starter import calibrate as module
from recipes.starter.calibrate import FitError, fit_calibration, grow_box, main, outside_share


@pytest.mark.parametrize(("offset", "slope"), [(0.0, 1.0), (-0.7, 0.5), (1.2, 2.0)])
def test_the_fit_finds_the_coefficients_that_made_the_data(offset: float, slope: float):
    rng = np.random.default_rng(0)
    agreements = rng.uniform(0.3, 0.99, 200)
    ious = np.array([calibrate(value, (offset, slope)) for value in agreements])
    assert fit_calibration(agreements, ious) == pytest.approx((offset, slope), abs=1e-3)
    noisy = np.clip(ious + rng.normal(0, 0.03, 200), 0, 1)
    found = fit_calibration([*agreements, np.nan], [*noisy, 0.5])
    again = [calibrate(value, found) for value in agreements]
    assert np.abs(again - ious).mean() < 0.02


def test_agreements_of_0_and_1_do_not_break_the_fit():
    offset, slope = fit_calibration([0.0, 0.0, 1.0, 1.0, *np.linspace(0.2, 0.9, 20)], [0, 0.1, 1, 0.9, *[0.5] * 20])
    assert np.isfinite(offset) and slope > 0


def test_a_fit_that_makes_no_sense_is_refused():
    with pytest.raises(FitError, match="found 3 predictions with a score, expected at least 10"):
        fit_calibration([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    falling = np.linspace(0.1, 0.9, 30)
    with pytest.raises(FitError, match="does not rise with the agreement"):
        fit_calibration(falling, 1 - falling)


def test_alpha_outside_a_grown_box():
    gt, alpha = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.float32)
    gt[40:60, 30:50] = 255  # 400 pixels; the box grows by 2
    alpha[40:60, 30:50] = 1
    box = box_from_mask(gt)
    assert outside_share(alpha, gt, box) == 0
    alpha[38:62, 28:52] = 1
    assert outside_share(alpha, gt, box) == 0
    alpha[0, :8] = 0.5
    assert outside_share(alpha, gt, box) == pytest.approx(4 / 400)
    alpha[37, 40] = 1
    assert outside_share(alpha, gt, box) == pytest.approx(5 / 400)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    rng = np.random.default_rng(0)
    for index in range(4):
        gt = np.zeros((140, 150), np.uint8)
        gt[20 + 5 * index : 90, 30 : 100 + 5 * index] = 255
        write_image(folder / "im" / f"{index}.png", rng.integers(0, 255, (140, 150, 3), dtype=np.uint8))
        write_mask(folder / "gt" / f"{index}.png", gt)
        write_mask(folder / "sim" / f"{index}.png", np.roll(gt, 10, axis=0))
    return folder


def test_the_command_writes_weights_with_the_coefficients_and_a_plot(pairs, tmp_path, isnet, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    weights, out, plot = (tmp_path / name for name in ("w.safetensors", "out.safetensors", "plot.png"))
    save_weights(weights, isnet, {"input_size": [128, 128], "windows": True, "score_calibration": [3.0, 3.0]})
    scores = iter([*np.linspace(0.5, 0.98, 16)] * 2)

    def predict(self: DISPredictor, image, mask, box, return_score: bool):
        """Return the box as alpha matte, and a score that rises."""
        assert self.calibration == (0.0, 1.0), "the score must be the agreement"
        alpha = np.zeros(image.size, np.float32)
        x0, y0, x1, y1 = (round(value) for value in box)
        alpha[max(y0, 0) : y1 + 1, max(x0, 0) : x1 + 1] = 1
        return alpha, float(next(scores))

    monkeypatch.setattr(DISPredictor, "predict", predict)
    monkeypatch.setattr(module, "fit_calibration", lambda agreements, ious: (float(len(agreements)), float(len(ious))))
    held = ["--test", str(pairs)]  # 16 predictions more, and those are shown
    assert main([str(weights), str(pairs), *held, "--out", str(out), "--plot", str(plot), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    lines = {line[:10].strip(): line.split() for line in printed.splitlines()}
    assert lines["box"][2] == "1.000" and lines["box"][-1] == "0.000%"
    assert 0.6 < float(lines["loose box"][3]) < 0.75 and 0.6 < float(lines["tight box"][3]) < 0.7
    assert lines["mask"][1] == "4"
    stored, metadata = read_weights(out)
    assert metadata == {"input_size": [128, 128], "windows": True, "score_calibration": [16.0, 16.0]}
    assert all((stored[name] == tensor).all() for name, tensor in isnet.state_dict().items())
    assert DISPredictor.from_checkpoint(out, "cpu").calibration == (16.0, 16.0)
    assert Image.open(plot).size[0] > 300


@pytest.mark.parametrize("margin", [0.1, -0.1, -0.5])
def test_thin_boxes_do_not_turn_over(margin: float):
    for box in ((10, 3, 10, 40), (7, 7, 7, 7), (0, 0, 1, 90)):
        x0, y0, x1, y1 = grow_box(box, margin)
        assert x0 <= x1 and y0 <= y1
    assert grow_box((10, 20, 109, 119), -0.1) == (20, 30, 99, 109)


def test_what_is_wrong_is_said_before_the_predictions(pairs, tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr(module, "measure", None)
    three, out = tmp_path / "three.safetensors", tmp_path / "out.safetensors"
    save_weights(three, ISNetDIS(3), {})
    assert main([str(three), str(pairs)]) == 2
    assert "three.safetensors: has 3 input channels and no prompt" in capsys.readouterr().err
    out.write_bytes(b"precious")
    assert main([str(weights), str(pairs), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err and out.read_bytes() == b"precious"
    with pytest.raises(SystemExit):
        main([str(weights), str(pairs), "--plot", "plot.xyz"])


def test_folders_and_files_that_cannot_be_used(pairs, tmp_path, weights, capsys):
    assert main([str(weights), str(tmp_path / "none")]) == 2
    assert "expected a folder that holds im and gt" in capsys.readouterr().err
    write_mask(pairs / "gt" / "0.png", np.zeros((140, 150), np.uint8))
    assert main([str(weights), str(pairs), "--device", "cpu"]) == 2
    assert "0.png: the ground truth is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(weights), str(pairs), "--out", str(weights)])


def test_box_prompts_give_a_network_the_box_alone(pairs, capsys):
    from IS_Net import datalist
    from IS_Net.data_loader import DISDataset
    from IS_Net.images import read_image, read_mask

    for _ in range(2):  # again: the same
        assert box_prompts.main([str(pairs)]) == 0
    assert "4 prompts" in capsys.readouterr().out
    assert len(read_manifest(pairs / "box")) == 4
    data = DISDataset(datalist.from_folder(pairs, masks="box"), 5, (128, 128))
    for index, sample in enumerate(data.samples):
        gt = read_mask(sample.gt)
        alone = make_planes(read_image(sample.image), None, box_from_mask(gt), 5, (128, 128))
        assert np.array_equal(data.planes(index)[:5], alone)
        assert read_mask(sample.mask).sum() > 0  # networks with four channels see the box, too
    write_mask(pairs / "gt" / "2.png", np.zeros((140, 150), np.uint8))
    assert box_prompts.main([str(pairs)]) == 2
    assert "2.png: the ground truth is empty, so it has no box" in capsys.readouterr().err
