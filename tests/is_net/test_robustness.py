"""Changed prompts: each is what its name says, and ``dis-sam evaluate --jitter`` reports all of them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import draw_sample

from IS_Net import evaluation, evaluation_work
from IS_Net.evaluate import main
from IS_Net.evaluation_data import Request, gather
from IS_Net.images import read_mask
from IS_Net.metrics import iou
from IS_Net.preprocess import box_from_mask
from IS_Net.report import robustness_page
from IS_Net.robustness import AMOUNTS, BOTH, BOX, MASK, Change, change_mask, change_prompt, list_changes

KINDS = ("dilated", "eroded", "shifted", "neighbor")


def sample(height: int = 97, width: int = 140) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, gt, mask = draw_sample(3, height, width)
    return image, gt, mask


def changed(change: Change, seed: int = 0, **values: Any) -> tuple[np.ndarray | None, Any]:
    image, gt, mask = sample()
    given = {"name": "ring", "image": image, "gt": gt, "mask": mask, "seed": seed, **values}
    return change_prompt(change, **given)


def test_exact_prompts_come_first_and_a_network_without_a_box_channel_has_no_boxes_beside_masks():
    four, five = list_changes(4), list_changes(5)
    assert four[0] == Change(BOX) and Change(MASK) in four and len(set(five)) == len(five)
    assert not [change for change in four if change.prompt == BOTH]
    assert [change for change in five if change.prompt == BOTH] == [
        Change(BOTH, kind, amount) for kind in ("loose", "tight", "shifted") for amount in AMOUNTS
    ]
    for change in five:
        assert five.index(change.reference) <= five.index(change) and not change.reference.kind
    assert Change(BOTH, "loose", 0.1).reference == Change(MASK)
    assert [change.name for change in four[:3]] == ["exact", "loose 5 %", "loose 10 %"]


@pytest.mark.parametrize("prompt", [BOX, BOTH])
@pytest.mark.parametrize("amount", AMOUNTS)
def test_boxes_are_loose_tight_and_shifted_by_shares_of_their_sides(prompt, amount):
    gt = np.zeros((300, 400), np.uint8)
    gt[100:200, 120:320] = 255  # 100 x 200
    given = {"gt": gt, "image": np.zeros((300, 400, 3), np.uint8), "mask": gt}
    across, down = round(200 * amount), round(100 * amount)
    mask, box = changed(Change(prompt, "loose", amount), **given)
    assert box == (120 - across, 100 - down, 319 + across, 199 + down)
    assert mask is (None if prompt == BOX else gt)
    _, box = changed(Change(prompt, "tight", amount), **given)
    assert box == (120 + across, 100 + down, 319 - across, 199 - down)
    _, box = changed(Change(prompt, "shifted", amount), **given)
    moved = np.subtract(box, (120, 100, 319, 199))
    assert abs(moved).tolist() == [across, down, across, down] and (moved[:2] == moved[2:]).all()
    assert changed(Change(prompt), **given)[1] == (120, 100, 319, 199)


def test_boxes_stay_in_the_image_and_an_empty_ground_truth_has_none():
    gt = np.zeros((50, 60), np.uint8)
    gt[0:50, 20:60] = 255
    given = {"gt": gt, "image": np.zeros((50, 60, 3), np.uint8), "mask": gt}
    assert changed(Change(BOX, "loose", 0.2), **given)[1] == (12, 0, 59, 49)
    given["gt"] = given["mask"] = np.zeros_like(gt)
    for change in list_changes(5):
        mask, box = changed(change, **given)
        assert box is None and (mask is None or not mask.any())


@pytest.mark.parametrize("amount", AMOUNTS)
def test_masks_change_by_as_many_pixels_as_the_amount_says(amount):
    mask = np.zeros((200, 300), bool)
    mask[60:120, 40:140] = True
    mask[80:90, 60:100] = False
    area, rng = int(mask.sum()), np.random.default_rng(0)
    count = round(amount * area)
    grown = change_mask(mask, "dilated", amount, rng)
    assert (grown & mask).sum() == area and grown.sum() == area + count
    shrunk = change_mask(mask, "eroded", amount, rng)
    assert (shrunk & ~mask).sum() == 0 and shrunk.sum() == area - count
    # what was added is nowhere further away than what was not
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert away[grown & ~mask].max() <= away[~grown].min() + 1e-6
    joined = change_mask(mask, "neighbor", amount, rng)
    added = joined & ~mask
    assert added.sum() == count and (joined & mask).sum() == area
    assert box_from_mask(added)[0] == 140  # to the right is the most room, and it begins beside the mask
    moved = change_mask(mask, "shifted", amount, rng)
    assert moved.sum() == area
    assert np.abs(np.subtract(box_from_mask(moved), box_from_mask(mask))).tolist() == [
        *(round(100 * amount), round(60 * amount)) * 2
    ]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (5, 7)])
@pytest.mark.parametrize("fill", [0, 1])
def test_masks_of_all_sizes_can_be_changed(size, fill):
    mask = np.full(size, bool(fill))
    for kind in KINDS:
        for amount in AMOUNTS:
            found = change_mask(mask, kind, amount, np.random.default_rng(0))
            assert found.shape == size and found.dtype == bool and (fill or not found.any())


def test_the_same_seed_and_name_give_the_same_prompts_and_amounts_share_their_direction():
    for change in list_changes(5):
        first, second = changed(change), changed(change)
        assert first[1] == second[1]
        assert first[0] is second[0] is None or (first[0] == second[0]).all()
        assert first[0] is None or (first[0].dtype == np.uint8 and set(np.unique(first[0])) <= {0, 255})
    directions = {seed: [] for seed in range(8)}
    exact = np.array(changed(Change(BOX))[1])
    for seed, found in directions.items():
        for amount in AMOUNTS:
            found.append(tuple(np.sign(np.array(changed(Change(BOX, "shifted", amount), seed)[1]) - exact)[:2]))
        assert len(set(found)) == 1
    assert len({found[0] for found in directions.values()}) > 1
    assert {tuple(changed(Change(BOX, "shifted", 0.2), name=name)[1]) for name in "abcdefgh"} != {tuple(exact)}


# --- the command ---


class Echo:
    """A network that returns its mask, or its filled box."""

    def __init__(self, in_ch: int) -> None:
        self.in_ch, self.prompts = in_ch, []

    def predict(self, image: np.ndarray, mask: np.ndarray | None, box: Any) -> np.ndarray:
        self.prompts.append((mask, box))
        if mask is not None:
            return mask.astype(np.float32) / 255
        alpha = np.zeros(image.shape[:2], np.float32)
        x0, y0, x1, y1 = box
        alpha[y0 : y1 + 1, x0 : x1 + 1] = 1
        return alpha


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    found = Echo(4)
    for module in (evaluation, evaluation_work):
        monkeypatch.setattr(module, "load_networks", lambda _: {"echo": found})
    return found


def rows_of(output: str) -> dict[tuple[str, str], list[str]]:
    """Return the numbers of the printed table by prompt and change."""
    found = {}
    for line in output.splitlines():
        cells = re.split(r" {2,}", line.strip())
        if len(cells) == 8 and cells[0] != "prompt":
            found[cells[0], cells[1]] = cells[2:]
    return found


def test_all_changes_are_reported(echo, make_dataset, tmp_path, capsys):
    gts = Path(make_dataset("tiny")["gt_dir"])
    outputs = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "html")}
    options = [text for kind, path in outputs.items() for text in (f"--{kind}", str(path))]
    assert main(["--gt", str(gts.parent), "--weights", "--jitter", "--workers", "0", *options]) == 0
    printed = rows_of(capsys.readouterr().out)
    changes = list_changes(4)
    assert len(printed) == len(changes) and len(echo.prompts) == 3 * len(changes)
    boxes = [iou(filled(read_mask(path)), read_mask(path)) for path in sorted(gts.iterdir())]
    assert float(printed["box alone", "exact"][0]) == pytest.approx(np.mean(boxes), abs=1e-4)
    assert printed["mask", "exact"][4:] == ["-", "-"]
    values, exact = printed["mask", "eroded 20 %"], float(printed["mask", "exact"][0])
    assert float(values[4]) == pytest.approx(float(values[0]) - exact, abs=2e-4)
    with outputs["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * (len(changes) + 1)  # and the coarse masks themselves
    content = json.loads(outputs["json"].read_text())["results"]
    found = {result["method"]: result for result in content}
    shifted = found["mask, shifted 10 % -> echo"]
    assert shifted["prompt"] == {
        **{"network": "echo", "coarse": "mask", "prompt": "mask", "kind": "shifted", "amount": 0.1}
    }
    assert shifted["refinement"]["baseline"] == "mask, exact -> echo"
    assert found["box alone, exact -> echo"]["refinement"]["baseline"] is None
    page = outputs["html"].read_text()
    assert page.count("<polyline") == 2 * (3 + 4) and page.count("<svg") == 4
    for kind in ("loose", "neighbor", "grabcut"):
        assert f">{kind}" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def filled(gt: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = box_from_mask(gt)
    found = np.zeros_like(gt)
    found[y0 : y1 + 1, x0 : x1 + 1] = 255
    return found


def test_without_masks_the_ground_truths_are_changed_and_boxes_beside_masks_too(echo, make_dataset, tmp_path, capsys):
    echo.in_ch = 5
    gts = Path(make_dataset("tiny")["gt_dir"])
    for path in (gts.parent / "mask").iterdir():
        path.unlink()
    (gts.parent / "mask").rmdir()
    assert main(["--gt", str(gts.parent), "--weights", "--jitter", "--workers", "0", "--limit", "1"]) == 0
    printed = rows_of(capsys.readouterr().out)
    assert len(printed) == len(list_changes(5)) == len(echo.prompts)
    assert printed["perfect", "exact"][0] == "1.0000"
    assert printed["perfect + box", "loose 10 %"][4] == "+0.0000"  # this network does not look at it


def test_only_sets_without_masks_use_their_ground_truths(echo, make_dataset, tmp_path, capsys):
    for name in ("a", "b"):
        split = Path(make_dataset(name)["gt_dir"]).parent
    (split / "mask").rename(tmp_path / "elsewhere")
    out = tmp_path / "out.html"
    splits = ["--gt", str(tmp_path / "a"), str(tmp_path / "b"), "--limit", "1"]
    assert main([*splits, "--weights", "--jitter", "--workers", "0", "--html", str(out)]) == 0
    printed = rows_of(capsys.readouterr().out)
    assert {prompt for prompt, _ in printed} == {"box alone", "mask", "perfect"}
    assert float(printed["mask", "exact"][0]) < float(printed["perfect", "exact"][0]) == 1
    assert len(echo.prompts) == 2 * len(list_changes(4))
    assert "2 images." in out.read_text()


def test_charts_start_at_the_exact_prompt_of_their_own_masks(make_dataset):
    split = Path(make_dataset("tiny")["gt_dir"]).parent
    shutil.copytree(split / "mask", split / "other")
    request = Request([str(split)], weights=[], coarse=["mask", "other"], jitter=True, metrics="iou")
    results = evaluation.empty_scores(gather(request, {"echo": 5}), "iou").values()
    for scores in results:  # each kind of mask has a value of its own, which no change lowers
        value = 0.5 if scores.method.startswith("other") else 0.9
        scores.add("ring_0", {"iou": np.array([value, 100 * value, 100])})
        scores.seconds["ring_0"] = 1.0
    page = robustness_page(list(results))
    lines = re.findall(r'<polyline[^>]*points="([^"]*)"', page)
    heights = [{point.split(",")[1] for point in line.split()} for line in lines]
    assert len(lines) == 3 + 2 * (4 + 3) and all(len(found) == 1 for found in heights)


def test_the_seed_changes_the_prompts(echo, make_dataset):
    folder = str(Path(make_dataset("tiny")["gt_dir"]).parent)
    runs = []
    for seed in ("0", "0", "5"):
        echo.prompts.clear()
        assert main(["--gt", folder, "--weights", "--jitter", "--seed", seed, "--workers", "0", "--limit", "2"]) == 0
        runs.append([(None if mask is None else mask.tobytes(), box) for mask, box in echo.prompts])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jitter", "--coarse"], "expected --weights"),
        (["--weights", "--jitter", "--pred", "x"], "--pred has no effect"),
        (["--weights", "--jitter", "--sheet", "x.jpg"], "--sheet has no effect"),
        (["--weights", "--seed", "1"], "--seed has no effect"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--gt", "x", *options])
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_network_without_prompts_is_refused(echo, make_dataset, capsys):
    echo.in_ch = 3
    assert main(["--gt", str(Path(make_dataset("tiny")["gt_dir"]).parent), "--weights", "--jitter"]) == 2
    assert "echo has 3 input channels, and no prompt" in capsys.readouterr().err


def test_rows_of_an_earlier_run_are_kept_unless_the_seed_is_another(echo, make_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation_work, "content_hash", lambda _: "echo")
    folder = str(Path(make_dataset("tiny")["gt_dir"]).parent)
    arguments = [
        "--gt",
        folder,
        "--weights",
        "--jitter",
        "--workers",
        "0",
        "--limit",
        "2",
        "--rows",
        str(tmp_path / "r"),
    ]
    printed, counts = [], []
    for seed in ("0", "0", "5"):
        echo.prompts.clear()
        assert main([*arguments, "--seed", seed]) == 0
        counts.append(len(echo.prompts))
        printed.append(rows_of(capsys.readouterr().out))
    assert counts == [2 * len(list_changes(4)), 0, 2 * len(list_changes(4))]
    assert printed[0] == printed[1] != printed[2]
