"""The benchmarks: the published procedure gives the results that it should, and every benchmark yields its rows."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as all_benchmarks
from benchmarks import curves, published, train_step
from benchmarks.samples import Sample, draw, write_data_set
from benchmarks.timing import COLUMNS, Benchmark, Row, Times, compare, covered, describe_maps, markdown
from IS_Net.data_loader import DISDataset
from IS_Net.datalist import from_folder
from IS_Net.images import write_mask
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor
from IS_Net.tensors import make_input, make_target
from tests.thin_networks import Thin, ThinGTEncoder

CPU = torch.device("cpu")
SIDE = 128


@pytest.fixture
def sample() -> Sample:
    return draw(SIDE, SIDE)


# --- the published procedure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_published_prediction_equals_ours_before_it_is_stretched(in_ch: int, sample: Sample):
    torch.manual_seed(0)
    model = ISNetDIS(in_ch).eval()
    predictor = DISPredictor(model, "cpu", "full", (SIDE, SIDE))
    ours = predictor.predict(sample.image, sample.mask, sample.box)
    theirs = published.predict_alpha(model, sample.image, sample.mask, sample.box, (SIDE, SIDE))
    assert np.abs(ours - theirs).max() < 1e-5
    stretched = published.predict(model, sample.image, sample.mask, sample.box, (SIDE, SIDE))
    assert (stretched.min(), stretched.max(), stretched.dtype) == (0, 255, np.uint8)
    expected = 255 * (ours - ours.min()) / np.ptp(ours)
    assert np.abs(stretched - expected).max() < 1.01  # it is cut off to whole numbers


def test_published_prediction_of_another_size(isnet: ISNetDIS):
    sample = draw(150, 220)
    ours = DISPredictor(isnet, "cpu", "full", (SIDE, SIDE)).predict(sample.image, sample.mask)
    theirs = published.predict_alpha(isnet, sample.image, sample.mask, sample.box, (SIDE, SIDE))
    assert theirs.shape == (150, 220)
    assert np.abs(ours - theirs).max() < 2 / 255  # the resized bytes are rounded here and cut off there


def test_published_loss_and_gradients_equal_ours(tmp_path: Path):
    torch.manual_seed(0)
    planes = train_step.make_planes(2, SIDE)
    baseline = train_step.make_baseline(CPU)
    ours = train_step.make_ours(SIDE, 2, CPU, "full", False, tmp_path)
    loss, gradient = train_step.compare_losses(baseline, ours, planes)
    assert loss < 1e-5
    assert gradient < 1e-3  # a ReLU on the other side of 0 changes it by 1e-4
    before = [parameter.detach().clone() for parameter in baseline.gt_encoder.parameters()]
    batch = make_input(planes[:, :5]).contiguous(), make_target(planes[:, 5:])
    first, second = (baseline.step(*batch) for _ in range(2))
    ours.step(iter([planes]))
    assert ours.read_loss() == pytest.approx(first, rel=1e-3)  # BatchNorm of few values multiplies rounding errors
    assert second < first
    assert all(map(torch.equal, baseline.gt_encoder.parameters(), before))


def test_every_term_of_the_published_loss_is_in_the_sum_and_above_the_tolerance():
    baseline = train_step.make_baseline(CPU)
    planes = train_step.make_planes(2, SIDE)
    x, target = make_input(planes[:, :5]), make_target(planes[:, 5:])
    whole = baseline.loss(x, target).item()
    sides, features = baseline.model(x)
    side_loss = published.side_output_loss([torch.sigmoid(side) for side in sides], target).item()
    orthogonal = published.ORTHOGONAL_WEIGHT * published.orthogonal_loss(baseline.model).item()
    wanted = baseline.gt_encoder(target)[1]
    feature = sum(((a - b) ** 2).mean().item() for a, b in zip(features, wanted, strict=True))
    assert min(side_loss, orthogonal, feature) > 1e-4 * whole
    assert side_loss + orthogonal + feature == pytest.approx(whole, rel=1e-5)


def test_published_samples_equal_ours(tmp_path: Path):
    files = write_data_set(tmp_path / "data", 2, 150, 220)
    plain = published.TensorFiles(files, tmp_path / "tensors", (SIDE, SIDE), flips=False)
    ours = DISDataset(from_folder(tmp_path / "data"), 5, (SIDE, SIDE))
    for index in range(2):
        planes = torch.from_numpy(ours.planes(index))[None]
        sample = plain[index]
        assert (sample["image"][:4] - make_input(planes[:, :5])[0, :4]).abs().max() <= 1.01 / 255
        assert (sample["label"] - make_target(planes[:, 5:])[0]).abs().max() <= 1.01 / 255
        assert torch.equal(sample["image"][3:4], sample["mask"])
        assert torch.equal(sample["image"][4:], sample["box"])
        assert ((sample["label"] > 0) <= (sample["box"] == 1)).all()


def test_published_flips_are_the_four_and_joint(tmp_path: Path):
    files = write_data_set(tmp_path / "data", 1, SIDE, SIDE)
    still = published.TensorFiles(files, tmp_path / "tensors", (SIDE, SIDE), flips=False)[0]
    flipping = published.TensorFiles(files, tmp_path / "tensors", (SIDE, SIDE), flips=True)
    torch.manual_seed(0)
    found = set()
    for _ in range(40):
        flipped = flipping[0]
        axes = next(a for a in ([], [1], [2], [1, 2]) if torch.equal(flipped["image"], still["image"].flip(a)))
        found.add(tuple(axes))
        assert torch.equal(flipped["label"], still["label"].flip(axes))
    assert len(found) == 4


class _Echo(torch.nn.Module):
    """Finds exactly its coarse mask."""

    in_ch = 5

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [40 * (x[:, 3:4] - 0.5)] * 6, []


def test_published_validation_has_the_known_scores(tmp_path: Path):
    [files] = write_data_set(tmp_path, 1, SIDE, SIDE)
    gt, mask = np.zeros((2, SIDE, SIDE), np.uint8)
    gt[:, :64] = 255
    mask[:, :32] = 255  # half of the object: precision 1, recall 0.5
    write_mask(files.gt, gt)
    write_mask(files.mask, mask)
    scores = published.validate(_Echo(), published.TensorFiles([files], tmp_path / "tensors", (SIDE, SIDE), False))
    assert scores["max_f"] == pytest.approx(1.3 * 0.5 / (0.3 + 0.5), abs=1e-4)
    assert scores["mae"] == pytest.approx(0.25, abs=1e-4)


def test_published_masks_equal_ours(sample: Sample):
    pytest.importorskip("segment_anything")
    from segment_anything import SamPredictor

    from benchmarks.sam_masks import boxes_of
    from sam.backends.segment_anything import BatchedSamPredictor
    from sam.prompts import Prompt
    from tests.sam.tiny_sam import tiny_sam

    torch.manual_seed(0)
    network = tiny_sam().eval()
    boxes = boxes_of(sample.box, 3)
    assert len(boxes) == 4
    theirs = published.make_masks(SamPredictor(network), sample.image, boxes)
    ours = BatchedSamPredictor(network, "tiny")
    ours.set_image(sample.image)
    found = ours.predict_prompts([Prompt("", None, tuple(map(float, box))) for box in boxes], "first")
    for (mask, _), expected in zip(found, theirs, strict=True):
        assert mask.shape == (SIDE, SIDE)
        assert 0 < expected.mean() < 1
        assert np.array_equal(mask, expected)


# --- guards ---------------------------------------------------------------------------------------------------------


def test_distance_of_curves_is_that_of_their_logarithms():
    losses = np.geomspace(90, 20, 40)
    assert curves.distance(losses, losses) == 0
    assert curves.distance(losses, 1.1 * losses) == pytest.approx(np.log(1.1))
    jagged = losses * np.where(np.arange(40) % 2, 1.2, 1 / 1.2)  # cancels in a mean over four steps
    assert curves.distance(losses, jagged) < 1e-9
    others = [losses, 1.1 * losses, 1.3 * losses]
    assert curves.judge(others, 0.8 * losses) == pytest.approx((-np.log(0.8), np.log(1.3)))


@pytest.mark.parametrize(("factor", "code"), [(1, 0), (10, 1)])
def test_curve_of_16_bits_is_compared_with_the_spread_of_seeds(
    factor: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys
):
    train, runs = curves.train, []

    def train_with_another_rate(data, settings, device, dtype, *rest):
        runs.append((settings.seed, dtype))
        lr = settings.lr * (1 if dtype is None else factor)
        return train(data, replace(settings, lr=lr), device, dtype, *rest)

    monkeypatch.setattr(curves, "train", train_with_another_rate)
    arguments = ["--device=cpu", "--steps=10", "--seeds=2", "--samples=3", "--lr=0.001"]
    assert curves.main(arguments, lambda: (Thin(5), ThinGTEncoder())) == code
    assert ("does not pass" in capsys.readouterr().out) == bool(code)
    assert runs == [(0, None), (1, None), (0, torch.bfloat16)]


# --- the table ------------------------------------------------------------------------------------------------------


def test_both_sides_run_in_turn():
    calls: list[str] = []
    times = compare(lambda: calls.append("a"), lambda: calls.append("b"), CPU, runs=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert len(times.baseline) == len(times.ours) == 2


def test_figures_of_pairs():
    times = Times([2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
    assert times.ratio == 3
    assert times.overhead == -3


def test_covered_time():
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.0)]) == 4
    assert covered([]) == 0


def test_difference_of_maps():
    first, second = np.array([0.2, 0.6, 1.0]), np.array([0.2, 0.4, 1.0])
    assert describe_maps(first, second) == "at most 51/255, mean 17/255, 33.3 % flip at .5"


def test_options_given_outrank_quick_and_device():
    options = {"size": (8, ""), "names": (("a",), ""), "on": (False, "")}
    benchmark = Benchmark("Doc.", lambda _: iter(()), options, quick={"size": 2}, cuda={"size": 4})
    assert benchmark.parse(["--device", "cpu"]).size == 8
    assert benchmark.parse(["--device", "cpu", "--quick"]).size == 2
    found = benchmark.parse(["--device", "cpu", "--quick", "--size", "3", "--names", "b", "c", "--on"])
    assert (found.size, found.names, found.on, found.device) == (3, ["b", "c"], True, CPU)


QUICK = ("predict", "folder", "data_loading", "valid", "sam_masks", "ceilings", "throughput", "metrics")
SLOW = ("train_step", "cut", "scoring")  # start processes


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_benchmark_yields_its_rows(name: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path))  # where OpenVINO's networks are kept
    threads = torch.get_num_threads()
    if name == "sam_masks":
        pytest.importorskip("segment_anything")
    try:
        module = importlib.import_module(f"benchmarks.{name}")
        smaller = ["--weights", str(weights)] if name == "cut" else []
        module.BENCHMARK.main(["--quick", "--device", "cpu", "--json", str(tmp_path / "rows.json"), *smaller])
    finally:
        torch.set_num_threads(threads)
    content = json.loads((tmp_path / "rows.json").read_text())
    rows = [Row(**found) for found in content["rows"]]
    assert rows
    assert content["machine"]["torch"] == torch.__version__
    for found in rows:
        assert found.what
        assert found.ours
        assert bool(found.baseline) == bool(found.verdict)
        assert not any("|" in getattr(found, column) for column in COLUMNS)
    lines = markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}


def test_all_benchmarks_are_listed():
    folder = Path(all_benchmarks.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if "BENCHMARK = Benchmark(" in path.read_text()}
    assert runnable == set(all_benchmarks.ON_CPU) == {*QUICK, *SLOW}


def test_a_benchmark_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    def run(name: str, arguments: list[str]) -> list[Row] | None:
        assert arguments == ["--device=cpu", "--quick"]
        return None if name == "cut" else [Row(name, ours="1 s")]

    monkeypatch.setattr(all_benchmarks, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(all_benchmarks, "run", run)
    assert all_benchmarks.main(["predict", "--device", "cpu", "--quick"]) == 0
    assert all_benchmarks.main(["cut", "metrics", "--device", "cpu", "--quick"]) == 1
    table = (tmp_path / "results" / "cpu_quick.md").read_text()
    assert "| metrics |  | 1 s |" in table
    assert table in capfd.readouterr().out
    assert [found["what"] for found in json.loads((tmp_path / "results" / "cpu_quick.json").read_text())["rows"]] == [
        "metrics"
    ]


def test_a_process_that_fails_has_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.setattr(all_benchmarks, "RESULTS", tmp_path)
    assert all_benchmarks.run("metrics", ["--device=cpu", "--runs=none"]) is None
    assert "metrics failed with exit code 2" in capfd.readouterr().err
