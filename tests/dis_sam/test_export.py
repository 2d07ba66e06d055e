"""The commands dis-sam export and dis-sam benchmark."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from dis_sam import benchmark
from dis_sam.cli import main
from dis_sam.export import Sample, drawn_samples
from IS_Net import checkpoint
from IS_Net.exporting import graph
from IS_Net.exporting.formats import open_export
from IS_Net.images import write_image, write_mask
from IS_Net.preprocess import check_box
from tests.thin_networks import lively

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = [96, 128]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that is loaded as a thin network, in the current folder."""
    monkeypatch.setattr(checkpoint, "load_isnet", lambda path: (lively(4), {"input_size": SIZE}))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "thin.safetensors"
    path.write_bytes(b"weights")
    return path


def export(*arguments: str, kind: str = "torchscript") -> int:
    return main(["export", "--format", kind, "--weights", "thin.safetensors", *arguments])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_export_is_compared_and_described(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert export("--dynamic", "--license", "mine") == 0
    printed = capsys.readouterr().out
    assert "drawn star" in printed and "317 x 241" in printed and ": passes" in printed
    assert "thin.pt (" in printed and files(tmp_path) == ["thin.pt", "thin.safetensors"]
    metadata = open_export(tmp_path / "thin.pt").metadata
    assert metadata["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    expected = {"name": "dis-sam", "in_ch": "4", "input_size": "96x128", "image_size": "any", "license": "mine"}
    assert expected.items() <= metadata.items() and metadata["weights_type"] == "float32"
    assert export() == 2
    assert "thin.pt: exists; choose another name with --out, or add --overwrite" in capsys.readouterr().err


def test_an_export_that_differs_is_not_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    compute = graph.compute_alpha  # a converter that normalizes wrongly
    monkeypatch.setattr(graph, "compute_alpha", lambda network, planes: compute(network, 255 - planes))
    (tmp_path / "thin.pt").write_bytes(b"an earlier export")
    assert export("--overwrite") == 1
    captured = capsys.readouterr()
    assert "too much" in captured.out and "3 of 3 exceed it" in captured.out
    assert "thin.pt: was not written" in captured.err
    assert (tmp_path / "thin.pt").read_bytes() == b"an earlier export" and len(files(tmp_path)) == 2


def test_pictures_of_the_user(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    for name, size in (("a", (80, 120)), ("b", (131, 77))):
        write_image(tmp_path / "im" / f"{name}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        mask = np.zeros(size, np.uint8)
        mask[20:60, 30:70] = 255 * (name == "a")  # that of b is empty
        write_mask(tmp_path / "mask" / f"{name}.png", mask)
    (tmp_path / "boxes.csv").write_text("name,object,x0,y0,x1,y1\nb,,3,4,50,100\n")
    assert export("--images", "im", "--masks", "mask", "--image-size", "64x100", "-o", "m.pt") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " x 64" in line]
    assert [row[:5] for row in rows] == [["a", "100", "x", "64", "mask"]]
    assert export("--images", "im", "--prompts", "boxes.csv", "--dynamic", "-o", "b.pt") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " x 131" in line]
    assert [row[:5] for row in rows] == [["b", "77", "x", "131", "box"]]
    assert export("--images", "im/b.png", "--masks", "mask/b.png", "-o", "c.pt") == 1
    assert "nothing was compared: all masks are empty" in capsys.readouterr().err
    assert export("--images", "nowhere", "-o", "c.pt") == 2
    assert not (tmp_path / "c.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--half", "--int8"), "weights are stored in one type"),
        (("--dynamic", "--image-size", "64"), "omit --image-size"),
        (("--format", "coreml", "--dynamic"), "coreml has one image size"),
        (("--format", "coreml", "--int8"), "use --half"),
        (("--masks", "mask"), "belong to --pictures"),
        (("--limit", "3"), "belong to --pictures"),
        (("--images", "im", "--masks", "mask", "--prompts", "b.csv"), "expected --masks or --prompts"),
        (("-o", "x.onnx"), "expected a name that ends in .pt, found 'x.onnx'"),
        (("--image-size", "1x2x3"), "expected a side, or HEIGHTxWIDTH"),
        (("--tolerance", "101"), "expected a number from 0 to 100"),
    ],
)
def test_options_that_make_no_sense(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture):
    assert export(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_missing_extra_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    assert export(kind="coreml") == 2
    assert "pip install 'dis-sam[coreml]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(kind="onnx") == 2
    assert "pip install 'dis-sam[onnx]'" in capsys.readouterr().err


def test_weights_are_not_replaced(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    weights.rename(tmp_path / "thin.pt")
    assert main(["export", "--format", "torchscript", "--weights", "thin.pt", "--overwrite"]) == 2
    assert "is the file of the weights" in capsys.readouterr().err
    assert main(["export", "--format", "torchscript", "--weights", "nowhere.pt"]) == 2
    assert "nowhere.pt: the checkpoint does not exist" in capsys.readouterr().err


def test_a_sample_is_resized_with_its_prompt():
    image, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8)
    mask[30:, 40:] = 255
    resized = Sample("", image, mask, (40, 30, 79, 59)).resize((120, 40))
    assert resized.image.shape == (120, 40, 3) and resized.box == (20, 60, 39, 119)
    assert (resized.mask[62:, 21:] == 255).all() and not resized.mask[:58].any()
    prompts = [sample.prompt for sample in drawn_samples(any_size=True)]
    assert prompts == ["mask", "box", "mask, box", "mask, box"]
    assert len(list(drawn_samples(any_size=False))) == 3


# --- benchmark ---


@pytest.mark.slow
def test_benchmark_of_weights_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture):
    weights = tmp_path / "thin.pth"
    weights.write_bytes(b"not weights")
    assert main(["benchmark", "--weights", str(weights), "--runtimes", "torch", "torch", "--runs", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("thin.pth") == 1 and "runtime" not in printed.out


def test_outputs_that_cannot_be_written_are_reported_before_the_work(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    assert export("-o", "thin.safetensors/thin.pt") == 2
    monkeypatch.setattr(benchmark, "measure", None)
    for path in ("thin.safetensors", "thin.safetensors/found.json", "."):
        assert main(["benchmark", "--weights", "thin.safetensors", "--json", path]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 4 and all("thin.safetensors" in line for line in lines[:3]) and "is a folder" in lines[3]
    assert "converting" not in printed.out


@pytest.mark.slow
def test_benchmark_of_a_checkpoint(weights_of_isnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    command = ["benchmark", "--weights", str(weights_of_isnet), "--runtimes", "torch", "--runs", "2", "--size", "64"]
    assert main([*command, "--json", str(tmp_path / "found.json")]) == 0
    assert "torch      float32" in capsys.readouterr().out
    [row] = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0 and row["difference"] is None
    assert row["peak_mb"] is None or 100 < row["peak_mb"] < 4000


@pytest.fixture
def weights_of_isnet(isnet, tmp_path: Path) -> Path:
    path = tmp_path / "isnet.safetensors"
    checkpoint.save_weights(path, isnet, {})
    return path


def test_the_table_of_the_benchmark():
    from IS_Net.exporting.parity import Difference

    row = benchmark.Measured("onnx", "float32", "cpu", 1.25, [2, 1, 4], 700.4, Difference(0.5, 0.01, 0.0005, 0.99))
    lines = benchmark.format_table([row]).splitlines()
    assert "2.000 s (1.000 .. 4.000)" in lines[1] and "700 MB" in lines[1] and "0.05 % flip" in lines[1]
    assert lines[0].index("prediction") == lines[1].index("2.000")


@pytest.mark.parametrize("corner", [(0, 0), (700, 300), (1994, 996)])
def test_a_narrow_box_stays_a_box_when_its_picture_is_reduced(corner: tuple[int, int]):
    x, y = corner
    sample = Sample("narrow", np.zeros((1000, 2000, 3), np.uint8), None, (x, y, x + 5, y + 3))
    x0, y0, x1, y1 = check_box(sample.resize((96, 128)).box, 96, 128)
    assert (x0, y0) == pytest.approx((x * 128 / 2000, y * 96 / 1000), abs=1.5)
    assert x0 < x1 <= x0 + 1 and y0 < y1 <= y0 + 1


def test_a_folder_with_the_name_of_the_export_is_refused_before_the_conversion(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "thin.pt").mkdir()
    assert export("--overwrite") == 2
    printed = capsys.readouterr()
    assert "thin.pt: is a folder, expected a file" in printed.err and "converting" not in printed.out


def tell_signal(pipe: Connection, *_: object) -> None:
    pipe.send(str(signal.getsignal(signal.SIGINT) is signal.SIG_IGN))


def test_processes_of_the_benchmark_leave_interrupts_to_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark, "_serve", tell_signal)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(benchmark.WorkerError, match="True"):
        benchmark.Worker(Path("any"), None, "torch", "full", "cpu")
    assert signal.getsignal(signal.SIGINT) is before
