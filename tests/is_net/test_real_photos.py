"""The benchmark on photographs: its figures, its files, and what it says of folders that are not as they must be."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_sample

from IS_Net.checkpoint import save_weights
from IS_Net.images import read_image, read_mask, write_image, write_mask
from IS_Net.metrics import iou
from IS_Net.models import ISNetDIS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import real_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two sets, of two pairs and one, with two kinds of coarse mask."""
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
    """A network that does not look at the mask."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    save_weights(path, ISNetDIS(3), {"in_ch": 3, "input_size": [64, 64]})
    return path


def results(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_every_pair_kind_and_weights(photos: Path, weights: Path, plain_weights: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert real_photos.main([str(photos), "--weights", str(weights), str(plain_weights), "--out", str(out)]) == 0
    rows = results(out)
    assert [(r["set"], r["name"], r["coarse"], r["weights"]) for r in rows] == [
        (folder, name, kind, label)
        for folder, name in (("a", "x"), ("a", "y"), ("b", "x"))
        for kind in ("disc", "empty")
        for label in ("random", "plain")
    ]
    gt, disc = (read_mask(photos / "a" / kind / "x.png") for kind in ("gt", "disc"))
    assert float(rows[0]["coarse_iou"]) == iou(disc, gt)
    for row in rows:
        assert all(
            0 <= float(row[f"{side}_{key}"]) <= 1 for side in ("coarse", "refined") for key in real_photos.FIGURES
        )
        if row["coarse"] == "empty":  # an empty mask asks for nothing, unless the network does not look at it
            assert float(row["coarse_iou"]) == 0
            assert (float(row["refined_mae"]) == float(row["coarse_mae"])) == (row["weights"] == "random")
    alone = [row for row in rows if row["weights"] == "plain"]
    assert alone[0]["refined_mae"] == alone[1]["refined_mae"]

    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if re.match(r"(a|b|all)\s", line)]
    assert [(*line[:3], int(line[3])) for line in table] == [
        (name, kind, label, pairs)
        for name, pairs in (("a", 2), ("b", 1), ("all", 3))
        for kind in ("disc", "empty")
        for label in ("random", "plain")
    ]
    mean = np.mean([float(row["coarse_max_f"]) for row in rows if row["coarse"] == "disc"])
    assert table[-4][4] == f"{mean:.3f}"
    assert {file.name for file in out.iterdir()} == {"results.csv", "worst_random.jpg", "worst_plain.jpg"}
    assert read_image(out / "worst_plain.jpg").shape == (6 * 328, 1600, 3)  # three pairs, two kinds


def test_the_perfect_mask(photos: Path, weights: Path, tmp_path: Path):
    options = ["--weights", str(weights), "--coarse", "gt", "--limit", "1", "--out", str(tmp_path / "out")]
    assert real_photos.main([str(photos / "a"), str(photos / "b"), *options]) == 0
    rows = results(tmp_path / "out")
    assert [(row["set"], row["name"], row["coarse"]) for row in rows] == [("a", "x", "gt"), ("b", "x", "gt")]
    for row in rows:
        found = [float(row[f"coarse_{key}"]) for key in real_photos.FIGURES]
        assert found == [1, 0, 1, 1]


class Lost:
    """A predictor that finds nothing in photographs of one height, and elsewhere returns the mask."""

    in_ch, device = 4, torch.device("cpu")

    def predict(self, image: np.ndarray, mask: np.ndarray, box: object) -> np.ndarray:
        return (image.shape[0] != 160) * mask / np.float32(255)


def test_the_worst_cases_come_first(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(real_photos.DISPredictor, "from_checkpoint", lambda *_: Lost())
    monkeypatch.setattr(real_photos, "WORST", 2)
    sheet = real_photos.contact_sheet
    monkeypatch.setattr(real_photos, "contact_sheet", lambda cases: drawn.extend(cases) or sheet(cases))
    assert real_photos.main([str(photos), "--coarse", "disc", "--out", str(tmp_path)]) == 0
    assert [(row["set"], row["name"]) for row, _ in drawn] == [("a", "y"), ("a", "x")]
    assert drawn[0][0]["refined_iou"] == 0


def test_share_of_cases_not_made_worse():
    figures = {f"{side}_{key}": 0.5 for side in ("coarse", "refined") for key in real_photos.FIGURES}
    names = {"set": "s", "coarse": "c", "weights": "w"}
    rows = [names | figures | {"refined_iou": value} for value in (0.494, 0.4951, 0.9, 0.1)]
    assert real_photos.table(rows).splitlines()[-1].endswith(" 50%")


def test_weights_of_one_name_are_told_apart():
    paths = [Path("runs/a/best.safetensors"), Path("runs/b/best.safetensors"), Path("isnet.pth")]
    assert real_photos.labels(paths) == ["a_best", "b_best", "isnet"]
    with pytest.raises(ValueError, match="a_best, a_best; rename"):
        real_photos.labels([Path("a/best.pth"), Path("b/a/best.pth")])


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (None, ["nowhere"], "nowhere: the folder does not exist"),
        (None, ["a/im"], "a/im: no set in it; expected im/ and gt/"),
        (None, [".", "--coarse", "sam"], "coarse masks, .*sam, does not exist"),
        (None, [".", "--weights", "none.pth"], "none.pth"),
        (["a/disc/x.png", "a/disc/y.png"], ["."], r"x: no .*mask[^$]*y: no .*mask"),
        (["a/gt/x.png"], ["a"], "x: no ground truth"),
        (["b/disc/x.png", "b/empty/x.png"], ["b"], "no folder of coarse masks .* --coarse gt"),
    ],
)
def test_faults_are_named(
    spoil: list[str] | None,
    options: list[str],
    message: str,
    photos: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(photos)
    for name in spoil or ():
        Path(name).unlink()
    more = [] if "--weights" in options else ["--weights", str(weights)]
    assert real_photos.main([*options, *more, "--out", str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
