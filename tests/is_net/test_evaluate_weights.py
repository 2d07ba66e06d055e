"""``dis-sam evaluate --weights``: kinds of coarse masks, baselines, figures, outputs, and messages."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_sample
from thin_networks import lively

from IS_Net import evaluation, evaluation_outputs
from IS_Net.checkpoint import save_weights
from IS_Net.errors import EvaluationError
from IS_Net.evaluate import main
from IS_Net.evaluation_data import Request, gather
from IS_Net.images import read_image, read_mask, write_image, write_map, write_mask
from IS_Net.manifest import identify
from IS_Net.metrics import iou
from IS_Net.metrics.suite import FIGURES, Suite
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor, check_mask
from IS_Net.report import REFINEMENT_NOTE, Scores, refinement_table, worst_results
from IS_Net.scoring import Scorer
from IS_Net.shards import read_rows


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two sets, with two pairs and one, and two kinds of coarse masks."""
    for index, (group, name, size) in enumerate(
        (("a", "x", (150, 200)), ("a", "y", (160, 140)), ("b", "x", (131, 177)))
    ):
        folder = tmp_path / "photos" / group
        image, gt, mask = draw_sample(index, *size)
        write_image(folder / "im" / f"{name}.jpg", image)
        write_mask(folder / "gt" / f"{name}.png", gt)
        write_mask(folder / "disc" / f"{name}.png", mask)
        write_mask(folder / "empty" / f"{name}.png", np.zeros_like(gt))
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a network without a mask channel."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    save_weights(path, ISNetDIS(3), {"in_ch": 3, "input_size": [128, 128]})
    return path


def run(*arguments: str | Path, workers: int = 0) -> int:
    return main([*map(str, arguments), "--workers", str(workers)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def blocks(text: str) -> list[list[list[str]]]:
    """Return the printed tables as lines of cells."""
    return [[re.split(r"\s{2,}", line) for line in block.splitlines()] for block in text.split("\n\n")]


class Lost:
    """A predictor that finds nothing in images of one height, and otherwise returns the mask."""

    in_ch = 4

    def __init__(self) -> None:
        self.boxes: list[object] = []

    def predict(self, image: np.ndarray, mask: np.ndarray, box: object) -> np.ndarray:
        self.boxes.append(box)
        return (image.shape[0] != 160) * mask / np.float32(255)


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Lost:
    """Replace all networks by :class:`Lost`."""
    predictor = Lost()
    monkeypatch.setattr(evaluation.DISPredictor, "from_checkpoint", lambda *_, **__: predictor)
    return predictor


# --- figures ---


def test_maps_of_hardly_anything_are_no_masks_of_classes(photos: Path, weights: Path, lost: Lost, monkeypatch):
    for folder in (photos / "a", photos / "b"):
        for path in (folder / "gt").iterdir():
            write_map(folder / "empty" / path.name, (read_mask(path) > 0).astype(np.uint8))  # levels 0 and 1 of 255
    given = []
    monkeypatch.setattr(lost, "predict", lambda image, mask, box: given.append(mask) or image[..., 0] / np.float32(255))
    assert run("--gt", photos, "--weights", weights, "--coarse", "empty") == 0
    assert len(given) == 3 and all(check_mask(mask, mask.shape).max() == 1 for mask in given)


def test_scores_every_pair_kind_and_weights(
    photos: Path, weights: Path, plain_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
):
    predictors = {path.stem: DISPredictor.from_checkpoint(path) for path in (weights, plain_weights)}
    monkeypatch.setattr(evaluation.DISPredictor, "from_checkpoint", lambda path, *_, **__: predictors[path.stem])
    out = tmp_path / "out"
    outputs = ["--csv", out / "r.csv", "--json", out / "r.json", "--html", out / "r.html", "--sheet", out / "r.jpg"]
    assert run("--gt", photos, "--weights", weights, plain_weights, "--coarse", *outputs, workers=1) == 0
    methods = ["disc", "disc -> random", "empty", "empty -> random", "plain"]
    rows = rows_of(out / "r.csv")
    assert [(row["data_set"], row["method"], row["name"]) for row in rows] == [
        (folder, method, name) for folder, names in (("a", "xy"), ("b", "x")) for method in methods for name in names
    ]
    by_key = {(row["data_set"], row["method"], row["name"]): row for row in rows}
    for (data_set, method, name), row in by_key.items():
        kind, _, network = method.partition(" -> ")
        if method == "plain":
            kind, network = "", "plain"
        image = read_image(photos / data_set / "im" / f"{name}.jpg")
        gt = read_mask(photos / data_set / "gt" / f"{name}.png")
        coarse = read_mask(photos / data_set / kind / f"{name}.png") if kind else None
        found = coarse
        if network:
            found = np.rint(predictors[network].predict(image, coarse) * 255).astype(np.uint8)
        alone = Suite()
        alone.update(found, gt)
        assert {key: float(row[key]) for key in FIGURES} == alone.compute()
        assert bool(row["seconds"]) == bool(network) and bool(row["iou_change"]) == (
            method != "plain" and bool(network)
        )
        if row["iou_change"]:
            assert float(row["iou_change"]) == float(row["iou"]) - float(by_key[data_set, kind, name]["iou"])

    printed, refined = blocks(capsys.readouterr().out)
    assert [row[:2] for row in printed[1:]] == [[name, method] for name in ("a", "b", "mean") for method in methods]
    assert [row[:3] for row in refined if len(row) == 6][1:] == [
        [name, method, pairs]
        for name, pairs in (("a", "2"), ("b", "1"), ("all", "3"))
        for method in ("disc -> random", "empty -> random", "plain")
    ]
    content = json.loads((out / "r.json").read_text())["results"]
    assert [result.get("refinement", {}).get("baseline") for result in content[:5]] == [
        None,
        "disc",
        None,
        "empty",
        None,
    ]
    assert content[3]["refinement"]["pairs"] == 2 and content[3]["refinement"]["seconds"] > 0
    assert content[3]["refinement"]["not_worse"] == 1.0  # nothing can be worse than an empty mask
    assert content[4]["refinement"]["iou_change"] is None and "refinement" not in content[0]
    assert "Refinement of the coarse masks" in (out / "r.html").read_text()
    assert read_image(out / "r.jpg").shape[0] > 6 * 280  # three pairs, two kinds


def test_maps_that_were_saved_score_the_same(photos: Path, weights: Path, tmp_path: Path):
    predictor = DISPredictor.from_checkpoint(weights)
    for path in (photos / "a" / "im").iterdir():
        alpha = predictor.predict(read_image(path), read_mask(photos / "a" / "disc" / f"{path.stem}.png"))
        write_mask(tmp_path / "maps" / f"{path.stem}.png", np.rint(alpha * 255).astype(np.uint8))
    arguments = ["--pred", tmp_path / "maps", "--weights", weights, "--coarse", "disc", "--json", tmp_path / "r.json"]
    assert run("--gt", photos / "a", *arguments) == 0
    coarse, refined, maps = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [result["method"] for result in (coarse, refined, maps)] == ["disc", "disc -> random", "maps"]
    assert refined["figures"] == maps["figures"] and refined["curves"] == maps["curves"]


def test_the_perfect_mask(photos: Path, weights: Path, tmp_path: Path):
    options = ["--weights", weights, "--coarse", "perfect", "--limit", "1", "--csv", tmp_path / "r.csv"]
    assert run("--gt", photos / "a", photos / "b", *options) == 0
    rows = rows_of(tmp_path / "r.csv")
    assert [(row["data_set"], row["method"], row["name"]) for row in rows] == [
        (folder, method, "x") for folder in "ab" for method in ("perfect", "perfect -> random")
    ]
    for row in rows[::2]:
        assert [float(row[key]) for key in ("max_f_mean_pr", "mae", "iou", "boundary_iou", "mba")] == [1, 0, 1, 1, 1]


def test_all_kinds_are_the_default(photos: Path, lost: Lost, tmp_path: Path):
    for given in ([], ["--coarse"], ["--coarse", "disc", "empty"]):
        assert run("--gt", photos, "--weights", "w.pth", *given, "--csv", tmp_path / "r.csv") == 0
        methods = list(dict.fromkeys(row["method"] for row in rows_of(tmp_path / "r.csv")))
        assert methods == ["disc", "disc -> w", "empty", "empty -> w"]


def test_the_own_masks_come_first_and_may_be_elsewhere(photos: Path, lost: Lost, tmp_path: Path):
    shutil.copytree(photos / "a" / "disc", photos / "a" / "mask")
    shutil.copytree(photos / "b" / "disc", tmp_path / "elsewhere")
    for given in (["a"], ["b", "--masks", tmp_path / "elsewhere"]):
        assert run("--gt", photos / given[0], *given[1:], "--weights", "w.pth", "--csv", tmp_path / "r.csv") == 0
        methods = list(dict.fromkeys(row["method"] for row in rows_of(tmp_path / "r.csv")))
        assert methods[::2] == ["mask", "disc", "empty"]


def test_a_network_without_a_mask_channel_needs_no_coarse_mask(photos: Path, plain_weights: Path, tmp_path: Path):
    for kind in ("disc", "empty"):
        shutil.rmtree(photos / "b" / kind)
    assert run("--gt", photos / "b", "--weights", plain_weights, "--csv", tmp_path / "r.csv") == 0
    assert [row["method"] for row in rows_of(tmp_path / "r.csv")] == ["plain"]


def test_weights_without_a_file_are_the_starter_weights(photos: Path, monkeypatch: pytest.MonkeyPatch):
    loaded = []
    monkeypatch.setattr(evaluation.DISPredictor, "from_checkpoint", lambda *given, **_: loaded.append(given) or Lost())
    options = ["--device", "cpu", "--precision", "full"]
    assert run("--gt", photos, "--coarse", "disc", *options, "--weights") == 0
    assert loaded == [(evaluation.starter_weights(), "cpu", "full")]


def test_the_prompt_of_the_manifest_is_the_box(photos: Path, lost: Lost):
    entry = {"mask": "y", "image": "y", "model": "sam", "box": [10.0, 20.0, 90.0, 80.0]}
    (photos / "a" / "disc" / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    assert run("--gt", photos / "a", "--weights", "w.pth", "--coarse", "disc", "perfect") == 0
    assert lost.boxes == [None, None, (10.0, 20.0, 90.0, 80.0), None]


def test_the_box_of_a_replaced_mask_is_not_used(photos: Path, lost: Lost):
    mask = photos / "a" / "disc" / "y.png"
    entry = {"mask": "y", "image": "y", "model": "sam", "box": [10.0, 20.0, 90.0, 80.0], **identify(mask, "mask")}
    (photos / "a" / "disc" / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
    command = ["--gt", photos / "a", "--weights", "w.pth", "--coarse", "disc"]
    assert run(*command) == 0
    assert lost.boxes == [None, (10.0, 20.0, 90.0, 80.0)]
    lost.boxes.clear()
    write_mask(mask, np.roll(read_mask(mask), 9))
    assert run(*command) == 0
    assert lost.boxes == [None, None]


def test_a_box_that_does_not_fit_is_named_and_does_not_stop_the_others(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    predictor = DISPredictor(lively(5), "cpu", "full", (64, 64))
    monkeypatch.setattr(evaluation.DISPredictor, "from_checkpoint", lambda *_, **__: predictor)
    (tmp_path / "w.pth").write_bytes(b"weights")
    boxes = {"x": [500, 20, 600, 80], "y": [7, 5, 7, 5]}  # beside the image; a single pixel
    entries = [{"mask": name, "image": name, "model": "box", "box": box} for name, box in boxes.items()]
    manifest = photos / "a" / "disc" / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    command = ["--gt", photos / "a", "--weights", tmp_path / "w.pth", "--coarse", "disc"]
    message = rf"1 files .*:\n  {re.escape(str(photos))}\S*x.jpg: box: .* lies outside its image of 200 x 150 pixels"
    assert run(*command) == 1
    assert re.search(message, capsys.readouterr().err)
    assert run(*command, "--rows", tmp_path / "rows") == 1
    assert re.search(message, capsys.readouterr().err)
    assert {name: row["status"] for name, row in read_rows(tmp_path / "rows").items()} == {
        "a/x": "failed",
        "a/y": "done",
    }


def test_listed_boxes_are_compared_with_their_pictures(photos: Path, lost: Lost, capsys: pytest.CaptureFixture):
    def write(boxes: dict[str, list[int]]) -> None:
        rows = [{"image": f"im/{name}.jpg", "gt": f"gt/{name}.png", "box": box} for name, box in boxes.items()]
        (photos / "a" / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    command = ["--manifest", photos / "a" / "list.jsonl", "--weights", "w.pth", "--coarse", "perfect"]
    write({"x": [200, 1, 300, 50], "y": [139, 159, 139, 159]})
    assert run(*command) == 2
    error = capsys.readouterr().err
    assert "list.jsonl, line 1: box: [200.0, 1.0, 300.0, 50.0] lies outside its image of 200 x 150" in error
    assert "line 2" not in error and lost.boxes == []
    write({"x": [199, 1, 300, 50], "y": [139, 159, 139, 159]})
    assert run(*command) == 0


def test_a_box_that_changed_is_measured_again(
    photos: Path, lost: Lost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(b"weights")
    command = ["--gt", photos / "a", "--weights", "w.pth", "--coarse", "disc", "perfect", "--rows", "rows"]
    for box in ([1.0, 2.0, 90.0, 80.0], [3.0, 4.0, 90.0, 80.0]):
        entry = {"mask": "y", "image": "y", "model": "sam", "box": box}
        (photos / "a" / "disc" / "manifest.jsonl").write_text(json.dumps(entry) + "\n")
        lost.boxes.clear()
        assert run(*command) == 0
    assert lost.boxes == [tuple(box), None]  # of y, whose masks are of two kinds; x is as it was
    assert run(*command) == 0 and len(lost.boxes) == 2


def test_photographs_beside_the_ground_truths_are_no_coarse_masks(
    photos: Path, lost: Lost, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    split = photos / "a"
    (split / "im").rename(split / "photographs")
    command = ["--gt", split, "--images", split / "photographs", "--weights", "w.pth", "--csv", tmp_path / "r.csv"]
    methods = {"disc", "disc -> w", "empty", "empty -> w"}
    assert run(*command) == 0
    assert {row["method"] for row in rows_of(tmp_path / "r.csv")} == methods and not caplog.records
    for name in "xy":
        shutil.copytree(split / "photographs", split / name)
    assert run(*command) == 0
    assert {row["method"] for row in rows_of(tmp_path / "r.csv")} == methods
    assert [f"{split / name}: is left out" in caplog.text for name in "xy"] == [True, True]


# --- what got worse ---


def test_the_worst_results_come_first(photos: Path, lost: Lost, tmp_path: Path):
    request = Request([str(photos)], weights=[Path("w.pth")], coarse=["disc"], workers=0)
    thumbnails = tmp_path / "thumbnails"
    data_sets, results = evaluation.evaluate(request, thumbnails)
    worst = worst_results(results, 2)
    assert [(scores.data_set, scores.method, name) for scores, name in worst] == [
        ("a", "disc -> w", "y"),
        ("a", "disc -> w", "x"),
    ]
    pictures = dict(evaluation_outputs._pictures(data_sets[0], "disc -> w", "y"))
    assert list(pictures) == ["image", "ground truth", "coarse mask", "disc -> w"]
    assert not pictures["disc -> w"].any() and pictures["coarse mask"].any()
    assert len(list(thumbnails.iterdir())) == 3
    table = blocks(refinement_table(results))[0]
    assert [(row[:3], row[4]) for row in table[1:]] == [
        (["a", "disc -> w", "2"], "50.0%"),
        (["b", "disc -> w", "1"], "100.0%"),
        (["all", "disc -> w", "3"], "66.7%"),
    ]
    gt, coarse = (read_mask(photos / "a" / kind / "y.png") for kind in ("gt", "disc"))
    assert table[1][3] == f"{-iou(coarse, gt) / 2:+.4f}"


def test_shards_predict_what_one_process_does(
    photos: Path, lost: Lost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(b"weights")
    command = ["--gt", photos, "--weights", "w.pth", "--coarse", "disc", "--worst", "2"]
    assert run(*command, "--sheet", "one.png", "--json", "one.json") == 0
    for index in range(2):
        assert run(*command, "--sheet", "two.png", "--rows", "rows", "--shard", f"{index}/2") == 0
    predicted = len(lost.boxes)
    assert run(*command, "--sheet", "two.png", "--json", "two.json", "--rows", "rows") == 0
    assert len(lost.boxes) == predicted == 6
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    one, two = (
        re.sub(r'("[^"]*seconds[^"]*": )[^,}]*', r"\1", Path(f"{name}.json").read_text()) for name in ("one", "two")
    )
    assert one == two
    Path("w.pth").write_bytes(b"other weights")
    assert run(*command, "--rows", "rows") == 0
    assert len(lost.boxes) == predicted + 3


def test_large_maps_are_kept_small(tmp_path: Path, lost: Lost):
    gt = np.zeros((600, 1200), np.uint8)
    gt[100:400, 200:700] = 255
    for kind in ("gt", "mask"):
        write_mask(tmp_path / "set" / kind / "a.png", gt)
    write_image(tmp_path / "set" / "im" / "a.jpg", np.zeros((600, 1200, 3), np.uint8))
    request = Request([str(tmp_path / "set")], weights=[Path("w.pth")], workers=0)
    data_sets, _ = evaluation.evaluate(request, tmp_path / "thumbnails")
    assert read_mask(data_sets[0].thumbnails["mask -> w"]["a"]).shape == (240, 480)


def test_share_of_pairs_not_made_worse():
    baseline = Scores("s", "c", "iou")
    scores = Scores("s", "c -> w", "iou", baseline)
    for name, value in zip("abcd", (0.494, 0.4951, 0.9, 0.1), strict=True):
        for own, number in ((baseline, 0.5), (scores, value)):
            own.add(name, {"iou": np.array([number, 1, 2])})
        scores.seconds[name] = 0.25
    row = blocks(refinement_table([baseline, scores]))[0][1]
    assert row[2:] == ["4", "-0.0027", "50.0%", "0.25"]
    assert "0.005" in REFINEMENT_NOTE
    assert refinement_table([baseline]) == ""


def test_without_iou_there_is_no_comparison(photos: Path, lost: Lost, capsys: pytest.CaptureFixture, tmp_path: Path):
    options = ["--weights", "w.pth", "--coarse", "disc", "--metrics", "mae", "--sheet", tmp_path / "r.jpg"]
    assert run("--gt", photos / "a", *options) == 0
    assert blocks(capsys.readouterr().out)[1][1][3:5] == ["-", "-"]
    assert (tmp_path / "r.jpg").is_file()  # by the highest MAE


def test_prediction_runs_while_workers_score(photos: Path, lost: Lost, monkeypatch: pytest.MonkeyPatch):
    """Images are predicted ahead of the outcomes, but no more than two for each worker."""
    shared = photos / "a"
    for number in range(12):
        for kind, ending in (("im", "jpg"), ("gt", "png"), ("disc", "png")):
            shutil.copy(shared / kind / f"x.{ending}", shared / kind / f"z{number:02}.{ending}")
    ahead = []
    add = Scores.add

    def counted(self: Scores, name: str, measured: dict) -> None:
        add(self, name, measured)
        if self.method == "disc -> w":
            ahead.append(len(lost.boxes) - len(self.images))

    monkeypatch.setattr(Scores, "add", counted)
    assert run("--gt", shared, "--weights", "w.pth", "--coarse", "disc", workers=1) == 0
    assert len(ahead) == 14 and 1 <= max(ahead) <= 2


# --- names and errors ---


def test_weights_of_one_name_are_told_apart():
    paths = [Path("runs/a/best.safetensors"), Path("runs/b/best.safetensors"), Path("isnet.pth")]
    assert evaluation.network_names(paths) == ["a_best", "b_best", "isnet"]
    with pytest.raises(EvaluationError, match="a_best, a_best; rename"):
        evaluation.network_names([Path("a/best.pth"), Path("b/a/best.pth")])


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (None, ["nowhere"], "nowhere: the folder does not exist"),
        (None, ["a", "--coarse", "sam"], "a has no coarse masks of the kind 'sam', found disc, empty;"),
        (None, [".", "--weights", "none.pth"], "none.pth"),
        (["a/disc/x.png"], ["."], "a, disc: there is no map of x"),
        (["a/im/x.jpg", "b/im/x.jpg"], ["."], r"a: there is no image of x[^$]*b: there is no image of x"),
        (["b/disc/x.png", "b/empty/x.png"], ["b"], "b: no folder of coarse masks .* --coarse perfect"),
        (["b/disc/x.png"], [".", "--coarse", "disc"], "b has no coarse masks of the kind 'disc', found empty"),
    ],
)
def test_errors_are_reported_before_the_run(
    spoil: list[str] | None,
    options: list[str],
    message: str,
    photos: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(photos)
    for name in spoil or ():
        Path(name).unlink()
    more = []
    if "--weights" not in options:
        request.getfixturevalue("lost")
        more = ["--weights", "w.pth"]
    assert run("--gt", *options, *more, "--csv", tmp_path / "r.csv") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "r.csv").exists()


def test_an_image_of_another_size_is_reported(photos: Path, lost: Lost, capsys: pytest.CaptureFixture):
    write_image(photos / "a" / "im" / "x.jpg", np.zeros((20, 30, 3), np.uint8))
    assert run("--gt", photos, "--weights", "w.pth") == 2
    assert "x.jpg is 30 x 20 pixels, but its ground truth" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_and_masks_are_all_named(photos: Path, lost: Lost, tmp_path: Path, capsys, workers: int):
    """Their headers are whole; the damage is found when they are decoded."""
    broken = [photos / "a" / "im" / "x.jpg", photos / "b" / "disc" / "x.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    options = ["--weights", "w.pth", "--coarse", "disc", "--csv", tmp_path / "r.csv"]
    assert run("--gt", photos, *options, workers=workers) == 1
    output = capsys.readouterr().err
    assert "error: 2 files or folders cannot be scored:" in output and all(str(path) in output for path in broken)
    assert not (tmp_path / "r.csv").exists()


def test_images_without_a_ground_truth_do_not_count(photos: Path, lost: Lost, tmp_path: Path):
    (photos / "a" / "gt" / "x.png").unlink()
    assert run("--gt", photos / "a", "--weights", "w.pth", "--csv", tmp_path / "r.csv") == 0
    assert {row["name"] for row in rows_of(tmp_path / "r.csv")} == {"y"}


def test_scoring_without_networks_needs_no_predictor(photos: Path):
    (data_set,) = gather(Request([str(photos / "a")], coarse=["disc"]))
    (scores,) = evaluation.score([data_set], Scorer("mae"), "mae")
    assert scores.method == "disc" and list(scores.images) == ["x", "y"]
