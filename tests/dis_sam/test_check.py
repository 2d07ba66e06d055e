"""The command dis-sam check: its report, its problems, and its self test."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dis_sam import check
from dis_sam.check import SELF_TEST_IOU, collect, draw_picture, format_report, run_self_test
from dis_sam.cli import main
from IS_Net import paths
from IS_Net.errors import CheckpointError
from sam.backends import BACKENDS

NO_TEST = ["check", "--device", "cpu", "--no-self-test"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home folder whose saved_models exists."""
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path))
    (tmp_path / "saved_models").mkdir()
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the list of weights; reading them takes seconds."""
    monkeypatch.setattr(check, "_weights", lambda problems: [])


def short_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


# --- the report ---


def test_the_report_has_versions_device_and_weights(capsys: pytest.CaptureFixture):
    assert main(NO_TEST) == 0
    printed = capsys.readouterr().out
    for part in ("torch", "device: cpu", "dis_sam_starter.safetensors", "input channels", "free disk space"):
        assert part in printed
    assert f"SHA-256 {short_hash(paths.starter_weights())}" in printed
    assert "by default, bfloat16 with half" in printed
    assert "self test" not in printed


def test_the_report_as_json(capsys: pytest.CaptureFixture):
    assert main([*NO_TEST, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["packages"]["torch"] and report["device"].startswith("cpu")
    assert report["self_test"] is None
    (starter,) = [row for row in report["weights"] if row["file"] == str(paths.starter_weights())]
    assert starter["in_ch"] in (4, 5)
    assert starter["sha256"] == hashlib.sha256(paths.starter_weights().read_bytes()).hexdigest()


def test_the_precisions_of_every_device(no_weights: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7 + 2 * device.index, 0))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    rows = check._devices()
    assert [row["device"].split(" (")[0] for row in rows] == ["cpu", "cuda:0", "cuda:1", "mps"]
    assert rows[1:] == [
        {"device": "cuda:0 (GPU 0)", "auto": "float16", "half": "float16"},
        {"device": "cuda:1 (GPU 1)", "auto": "bfloat16", "half": "bfloat16"},
        {"device": "mps", "auto": "float32", "half": None},
    ]
    report, _ = collect("cpu", self_test=False)
    assert "  mps: float32 by default, no 16-bit precision" in format_report(report)


def test_the_precision_of_the_report_is_the_chosen_one(no_weights: None, capsys: pytest.CaptureFixture):
    assert main([*NO_TEST, "--precision", "half"]) == 0
    assert "precision: bfloat16\n" in capsys.readouterr().out


# --- problems ---


def test_what_is_wrong_is_named(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(paths, "starter_weights", lambda: home / "missing.safetensors")
    (home / "saved_models" / "cut.safetensors").write_bytes(b"not whole")
    assert main(["check", "--device", "cuda:99"]) == 1
    printed = capsys.readouterr()
    for part in ("cuda:99", "cut.safetensors", "missing.safetensors does not exist; install the project again"):
        assert printed.err.count(part) == 1
    assert "self test" not in printed.out + printed.err


def test_sam_checkpoints_are_compared_with_the_published_ones(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    content = b"the published checkpoint"
    name = f"sam_vit_b_{hashlib.md5(content).hexdigest()[:6]}.pth"
    monkeypatch.setitem(BACKENDS, "vit_b", BACKENDS["vit_b"]._replace(published=name))
    monkeypatch.setattr(paths, "starter_weights", lambda: weights)
    good = home / "saved_models" / name
    good.write_bytes(content)
    assert main(NO_TEST) == 0
    assert f"SAM vit_b: {good}, SHA-256 {short_hash(good)} as published" in capsys.readouterr().out
    good.write_bytes(content[:-1])
    assert main(NO_TEST) == 1
    printed = capsys.readouterr()
    assert f"SAM vit_b: {good}, SHA-256 {short_hash(good)}\n" in printed.out
    assert f"problem: {good}: the file is not the published checkpoint (found the MD5" in printed.err
    assert "dis-sam fetch vit_b --force" in printed.err


def test_without_starter_weights_there_is_no_self_test(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(paths, "starter_weights", lambda: home / "missing.safetensors")
    assert main(["check", "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("missing.safetensors") == 1 and "self test" not in printed.out + printed.err
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        run_self_test("cpu")


# --- the self test ---


def test_the_picture_of_the_self_test():
    image, gt, coarse = draw_picture()
    assert image.shape == (480, 640, 3) and image.dtype == np.uint8
    assert gt.shape == coarse.shape == (480, 640) and gt.dtype == coarse.dtype == bool
    iou = (gt & coarse).sum() / (gt | coarse).sum()
    assert 0.7 < iou < SELF_TEST_IOU - 0.1  # the coarse mask, unrefined, would fail
    assert abs(image[gt].mean(0) - image[~gt].mean(0)).max() > 50


def test_the_starter_weights_pass(capsys: pytest.CaptureFixture):
    """The only test here that runs the starter weights at their full size."""
    assert main(["check", "--device", "cpu", "--precision", "full"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("self test: IoU 0.9") and "(coarse mask 0.7" in line
    assert " s on cpu (" in line and line.endswith("float32")


def test_weights_that_fail(home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(paths, "starter_weights", lambda: weights)  # random ones
    assert main(["check", "--device", "cpu", "--precision", "full", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    test = report["self_test"]
    assert test["precision"] == report["precision"] == "float32" and test["device"] == report["device"]
    assert 0 <= test["iou"] <= SELF_TEST_IOU and 0.7 < test["coarse_iou"] < 0.8
    assert test["load_seconds"] > 0 and test["predict_seconds"] > 0
    (problem,) = report["problems"]
    assert problem.startswith(f"self test: found an IoU of {test['iou']}") and "expected more than 0.9" in problem


def test_an_error_of_the_device(no_weights: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def fail(device: str, precision: str, runtime: str) -> None:
        assert (device, precision, runtime) == ("cpu", "half", "torch")
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(check, "run_self_test", fail)
    assert main(["check", "--device", "cpu", "--precision", "half", "--runtime", "torch"]) == 1
    printed = capsys.readouterr()
    assert "problem: self test: CUDA out of memory" in printed.err
    assert "free disk space" in printed.out  # the rest of the report is printed


# --- data sets ---


def test_a_sound_data_set(make_dataset, capsys: pytest.CaptureFixture):
    folder = Path(make_dataset()["im_dir"]).parent
    assert main(["check", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "tiny: 3 images, 3 ground truths, 3 coarse masks; no problems" in printed and "9 files read in" in printed
    assert "torch" not in printed  # the report of the environment is another one


def test_damaged_data_sets_are_named_and_written_as_json(make_dataset, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = Path(make_dataset()["im_dir"]).parent
    (folder / "gt" / "ring_1.png").write_bytes((folder / "gt" / "ring_1.png").read_bytes()[:50])
    (folder / "mask" / "ring_2.png").unlink()
    assert main(["check", str(folder), "--json", str(tmp_path / "out" / "found.json")]) == 1
    printed = capsys.readouterr().out
    assert "truncated: 1 (error)" in printed and "mispaired: 1 (error)" in printed and "2 problems" in printed
    report = json.loads((tmp_path / "out" / "found.json").read_text())
    assert report["counts"] == {"truncated": 1, "mispaired": 1, "not binary": 2}
    assert {Path(file).name for row in report["findings"] for file in row["files"]} >= {"ring_1.png", "ring_2.png"}
    assert main(["check", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["counts"] == report["counts"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' is neither a data set"),
        ([str(Path(__file__).parent)], "does not exist; expected a folder of images"),
        (["--workers", "2"], "--workers has no effect without data sets"),
        (["set", "--device", "cpu"], "--device has no effect with data sets"),
        (["set", "--no-self-test"], "--no-self-test has no effect with data sets"),
        (["--json", "folder"], "expected a file name with .json, found 'folder'; give data sets first"),
    ],
)
def test_what_cannot_be_examined(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    assert main(["check", *arguments]) == 2
    assert message in capsys.readouterr().err
