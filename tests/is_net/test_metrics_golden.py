"""The metrics against the values of pysodmetrics (golden/metrics.json), and their documented edge cases.

As a script, this prints the differences from the reference, also for the real pairs if their folder exists:

    python tests/is_net/test_metrics_golden.py
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections import defaultdict
from collections.abc import Iterable

import cv2
import numpy as np
import pytest
import torch
from golden import make_metrics
from golden.make_metrics import REAL, THRESHOLDS, checksum, procedural, real
from test_iou import plain_boundary_iou, plain_iou

from IS_Net import metrics as package
from IS_Net.metrics import (
    HCE,
    MAE,
    EMeasure,
    FMeasure,
    GroundTruth,
    Metric,
    Pair,
    SMeasure,
    WeightedFMeasure,
    boundary_accuracy,
    boundary_iou,
    iou,
)
from IS_Net.metrics.fmeasure import KINDS, device_levels
from IS_Net.metrics.mae import device_mae

GOLDEN = json.loads(make_metrics.FILE.read_text(encoding="utf-8"))
PAIRS = {name: (pred, gt) for name, pred, gt in procedural()}
# OpenCV before 4.13 lists contours in another order, which changes HCE by some clicks, also in the reference.
SAME_CONTOURS = tuple(int(part) for part in cv2.__version__.split(".")[:2]) >= (4, 13)
NEEDS_CONTOURS = pytest.mark.skipif(
    not SAME_CONTOURS, reason=f"the values of HCE are those of OpenCV 4.13 and later; this is {cv2.__version__}"
)


def suite() -> list[Metric]:
    return [FMeasure(KINDS), WeightedFMeasure(), MAE(), SMeasure(), EMeasure(), HCE()]


def figures(metrics: list[Metric]) -> dict[str, float]:
    return {name: value for metric in metrics for name, value in metric.compute().items()}


def measured(*pairs: tuple) -> dict[str, float | np.ndarray]:
    """Return all figures and curves of some pairs."""
    metrics = suite()
    for pred, gt in pairs:
        pair = Pair(pred, gt)
        for metric in metrics:
            metric.add(metric.measure(pair))
    curves = metrics[0].curves()
    curves = {"f_mean_curve_at": curves["f"], "precision_at": curves["precision"], "recall_at": curves["recall"]}
    curves["e_at"] = metrics[4].curve()
    return figures(metrics) | {name: curve[THRESHOLDS] for name, curve in curves.items()}


def differences(found: dict[str, float | np.ndarray], golden: dict) -> dict[str, float]:
    """Return the difference of each figure from the reference, where that has a value."""
    away = {}
    for name, value in found.items():
        if name not in golden:  # the reference has no adaptive F from mean precision and recall
            assert name == "adaptive_f_mean_pr"
        elif golden[name] is None:  # the reference divides by zero
            assert 0 <= value <= 1
        else:
            away[name] = float(np.abs(value - np.array(golden[name])).max())
    return away


def check(found: dict[str, float | np.ndarray], golden: dict) -> None:
    away = differences(found, golden)
    del away["hce"]  # it has its own test
    assert max(away.values()) < 1e-9, away


# --- parity ---


@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_the_reference(name: str):
    assert checksum(*PAIRS[name]) == GOLDEN["procedural"][name]["checksum"], "the pair differs from that of the values"
    check(measured(PAIRS[name]), GOLDEN["procedural"][name])


@NEEDS_CONTOURS
@pytest.mark.parametrize("name", PAIRS)
def test_hce_agrees_with_the_reference(name: str):
    assert HCE().measure(Pair(*PAIRS[name])) == GOLDEN["procedural"][name]["hce"]


@pytest.mark.parametrize("name", PAIRS)
def test_iou_agrees_with_its_plain_reading(name: str):
    assert iou(*PAIRS[name]) == plain_iou(*PAIRS[name])
    assert boundary_iou(*PAIRS[name]) == plain_boundary_iou(*PAIRS[name])


def test_the_recipe_names_the_versions_that_the_values_come_from():
    assert GOLDEN["versions"].keys() == set(make_metrics.PACKAGES)
    assert all(f"{name}=={version}" in make_metrics.__doc__ for name, version in GOLDEN["versions"].items())


def test_every_golden_pair_is_there():
    assert PAIRS.keys() == GOLDEN["procedural"].keys()
    assert len(PAIRS) + len(GOLDEN["real"]) > 150


def test_agrees_with_the_reference_over_many_images():
    found = measured(*(pair for pair in PAIRS.values() if pair[0].size > 1))
    check(found, GOLDEN["all procedural"])


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the folder shared/real beside the project")
def test_agrees_with_the_reference_on_real_photographs():
    names = set()
    for name, pred, gt in real():
        names.add(name)
        assert checksum(pred, gt) == GOLDEN["real"][name]["checksum"], name
        check(measured((pred, gt)), GOLDEN["real"][name])
        assert iou(pred, gt) == plain_iou(pred, gt)
        assert boundary_iou(pred, gt) == plain_boundary_iou(pred, gt)
    assert names == GOLDEN["real"].keys()


@NEEDS_CONTOURS
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="needs the folder shared/real beside the project")
def test_hce_agrees_with_the_reference_on_real_photographs():
    for name, pred, gt in real():
        assert HCE().measure(Pair(pred, gt)) == GOLDEN["real"][name]["hce"], name


# --- documentation ---


@pytest.mark.parametrize(
    "documented",
    [
        *(thing for thing in vars(package).values() if isinstance(thing, type) and Metric in thing.__bases__),
        iou,
        boundary_iou,
        boundary_accuracy,
    ],
    ids=lambda thing: thing.__name__,
)
def test_every_metric_cites_its_paper_and_tells_its_conventions(documented: type):
    text = documented.__doc__
    assert re.search(r"\b(19|20)\d\d\b", text)
    assert all(f"- {topic}: " in text for topic in ("Thresholds", "Stretching"))
    assert re.search(r"Empty maps: .*empty ground truths", text, re.DOTALL | re.IGNORECASE)


# --- edge cases ---

DISC = PAIRS["perfect"][1]
EMPTY, FULL = np.zeros_like(DISC), np.full_like(DISC, 255)
SOFT = PAIRS["disc, soft"][0]
FS = [f"{kind}_f_{how}" for kind in KINDS for how in ("mean_curve", "mean_pr")]
ES = [f"{kind}_e" for kind in KINDS]
SCORES = [*FS, *ES, "weighted_f", "s_measure"]


def test_perfect():
    found = measured((DISC, DISC))
    # at threshold 0 every pixel is foreground; this enters the means over all thresholds
    share = np.count_nonzero(DISC) / DISC.size
    at_zero = 1.3 * share / (0.3 * share + 1)
    expected = dict.fromkeys(SCORES, 1.0) | dict.fromkeys(FS[2:4], (255 + at_zero) / 256) | {"mae": 0.0, "hce": 0.0}
    expected["mean_e"] = found["mean_e"]
    assert 0.99 < found["mean_e"] < 1
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_is_out_of_range(name: str):
    found = measured(PAIRS[name])
    assert found.pop("hce") >= 0
    assert all(np.all((value >= 0) & (value <= 1)) for value in found.values())


def test_empty_gt():
    found = measured((SOFT, EMPTY))
    mean = SOFT.mean() / 255
    assert all(found[name] == 0 for name in [*FS, "weighted_f"])
    assert (found["mae"], found["s_measure"]) == pytest.approx((mean, 1 - mean))
    assert found["max_e"] == pytest.approx((SOFT < 255).mean(), rel=1e-3)
    assert found["hce"] >= 1
    found = measured((EMPTY, EMPTY))
    assert (found["mae"], found["s_measure"], found["max_e"], found["hce"]) == (0, 1, 1, 0)
    assert found["adaptive_e"] == 0  # its threshold is 0, where every pixel is foreground
    assert all(found[name] == 0 for name in [*FS, "weighted_f"])


def test_full_gt():
    found = measured((SOFT, FULL))
    assert found["s_measure"] == pytest.approx(SOFT.mean() / 255)
    assert found["max_e"] == 1
    found = measured((FULL, FULL))
    assert [found[name] for name in SCORES] == pytest.approx([1] * len(SCORES), abs=1e-12)
    assert (found["mae"], found["hce"]) == (0, 0)


def test_empty_map():
    found = measured((EMPTY, DISC))
    assert found["weighted_f"] == pytest.approx(0, abs=1e-12)
    assert found["mae"] == np.count_nonzero(DISC) / DISC.size
    assert found["adaptive_f_mean_curve"] == found["max_f_mean_curve"]  # every pixel is foreground at threshold 0
    assert found["hce"] >= 1


def test_what_the_documentation_says_of_empty_maps():
    found = measured((EMPTY, DISC))
    assert [found[name] for name in ES] == pytest.approx([1 / 4] * 3, rel=1e-3)
    assert FMeasure(KINDS).measure(Pair(EMPTY, DISC))[0, 1:256].tolist() == [0] * 255
    half = np.zeros((60, 60), np.uint8)
    half[:, :30] = 255  # the quarters meet after column 14; those on the left are constant
    assert measured((np.zeros_like(half), half))["s_measure"] == pytest.approx(0.5 * 30 / 60 + 0.5 * 15 / 60)


def test_weighted_f_of_an_empty_map_depends_on_the_border():
    def weighted(gt: np.ndarray) -> float:
        return WeightedFMeasure().measure(Pair(np.zeros_like(gt), gt))

    inner, strip, lower = (np.zeros((1024, 1024), bool) for _ in range(3))
    inner[3:-3, 3:-3] = strip[:, :3] = lower[:, 3:] = True
    assert weighted(inner) == pytest.approx(0, abs=1e-12)
    assert weighted(strip) == weighted(strip.T) == pytest.approx(0.432, abs=5e-4)
    assert 0 < weighted(lower) < 0.01
    assert weighted(np.ones((1, 1), bool)) == pytest.approx(0.988, abs=5e-4)


@pytest.mark.parametrize("level", [1, 51, 128, 254])
def test_constant_map(level: int):
    gt = np.zeros((60, 60), np.uint8)
    gt[:, :30] = 255
    found = measured((np.full_like(gt, level), gt))
    assert all(0 <= found[name] <= 1 for name in SCORES)
    # The quarters meet after column 14. On the left, map and ground truth are constant: these quarters are similar,
    # without an effect of rounding. On the right, only the ground truth varies.
    by_object = sum(2 * x / (x**2 + 1) for x in (level / 255, 1 - level / 255)) / 2
    assert found["s_measure"] == pytest.approx(0.5 * by_object + 0.5 * 15 / 60, abs=1e-12)


@pytest.mark.parametrize("pred", [0, 1, 127, 128, 129, 255])
@pytest.mark.parametrize("gt", [0, 255])
def test_one_pixel(pred: int, gt: int):
    found = measured((np.uint8([[pred]]), np.uint8([[gt]])))
    assert found["mae"] == pytest.approx(abs(pred - gt) / 255)
    assert found["s_measure"] == pytest.approx(1 - abs(pred - gt) / 255)
    assert found["hce"] == int((pred > 128) != (gt > 128))
    assert all(np.all((found[name] >= 0) & (found[name] <= 1)) for name in SCORES)


@pytest.mark.parametrize("metric", suite(), ids=lambda metric: type(metric).__name__)
def test_another_size_is_an_error_that_names_both(metric: Metric):
    with pytest.raises(
        ValueError, match=re.escape("the prediction is 5 x 4 pixels, but its ground truth is 4 x 5 pixels")
    ):
        metric.update(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8))
    with pytest.raises(ValueError, match="5 x 4"):
        metric.update(torch.zeros(4, 5, dtype=torch.uint8), torch.zeros(5, 4, dtype=torch.uint8))
    assert all(math.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize("wrong", [np.zeros((4, 5)), np.zeros((4, 5, 3), np.uint8), np.zeros((0, 5), np.uint8)])
def test_other_shapes_and_types_are_errors(wrong: np.ndarray):
    with pytest.raises(ValueError, match=r"expected a prediction of shape \(H, W\), uint8"):
        Pair(wrong, np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match="expected a ground truth"):
        Pair(np.zeros((4, 5), np.uint8), wrong)


@pytest.mark.parametrize("function", [device_levels, device_mae])
@pytest.mark.parametrize(
    "wrong", [torch.zeros(4, 5), torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(0, 5).byte()]
)
def test_other_shapes_and_types_are_errors_on_a_device(function, wrong: torch.Tensor):
    plane = torch.zeros(4, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"expected a prediction of shape \(H, W\), uint8"):
        function(wrong, plane)
    with pytest.raises(ValueError, match="expected a ground truth of shape"):
        function(plane, wrong)
    with pytest.raises(ValueError, match="the prediction is 5 x 4 pixels, but its ground truth is 4 x 5"):
        function(plane, plane.T)
    with pytest.raises(ValueError, match="on the prediction's device, cpu; found ndarray"):
        function(plane, plane.numpy())
    with pytest.raises(ValueError, match="on the prediction's device, meta; found cpu"):
        function(plane.to("meta"), plane)


def test_unknown_kind():
    with pytest.raises(ValueError, match="median"):
        FMeasure(("max", "median"))


# --- inputs ---


def test_tensors_arrays_and_masks_are_the_same():
    pred, gt = PAIRS["hairy disc, coarse"]
    expected = measured((pred, gt))
    for pair in ((torch.from_numpy(pred), torch.from_numpy(gt)), (pred > 128, gt > 128), (pred.T.copy().T, gt)):
        metrics = suite()
        for metric in metrics:
            metric.update(*pair)
        assert figures(metrics) == {name: expected[name] for name in figures(metrics)}


@pytest.mark.parametrize("name", ["blobs, noisy", "random 3 x 5", "gt in the last row", "both empty", "full gt"])
def test_ground_truth_from_a_cache(name: str):
    pred, gt = PAIRS[name]
    expected = measured((pred, gt))
    truth = GroundTruth(gt)
    stored = truth.arrays()
    assert all(isinstance(array, np.ndarray) for array in stored.values())
    for known in (truth, GroundTruth(gt, stored), pickle.loads(pickle.dumps(truth)), GroundTruth(gt)):
        found = measured((pred, known))
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_ground_truth_does_not_follow_its_array():
    for gt in (DISC.copy(), DISC > 128):
        truth = GroundTruth(gt)
        gt[:] = 0
        assert np.array_equal(truth.mask, DISC > 128)


def test_distances_and_nearest_pixels():
    rng = np.random.default_rng(2)
    for share in (0.003, 0.05, 0.4):
        gt = rng.random((61, 47)) < share
        truth = GroundTruth(gt)
        y, x = np.nonzero(gt)
        rows, columns = np.mgrid[:61, :47]
        squared = (rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2
        assert np.array_equal(truth.squared_distance, squared.min(axis=-1))
        # ties: the lowest column, then the lowest row
        nearest = (squared * 10**4 + x * 100 + y).argmin(axis=-1).ravel()[truth.band.pixels]
        assert np.array_equal(truth.band.nearest, y[nearest] * 47 + x[nearest])
        box = np.ones((7, 7), np.uint8)
        around = (cv2.dilate(gt.astype(np.uint8), box) > 0) & ~gt
        assert np.array_equal(truth.band.pixels, np.flatnonzero(around))


@pytest.mark.parametrize("name", ["blobs, noisy", "perfect", "both empty", "random 31 x 64", "gt 128 and 129"])
def test_counting_on_a_device_agrees(name: str):
    """On a device, torch counts F and MAE; the same functions also run on the CPU."""
    pair = Pair(*PAIRS[name])
    planes = [torch.from_numpy(plane) for plane in PAIRS[name]]
    assert np.array_equal(device_levels(*planes).numpy(), pair.levels)
    assert device_mae(*planes).item() == pytest.approx(MAE().measure(pair), abs=1e-12)
    masks, pair = [plane > 128 for plane in planes], Pair(*(plane > 128 for plane in PAIRS[name]))
    assert np.array_equal(device_levels(*masks).numpy(), pair.levels)
    assert device_mae(*masks).item() == pytest.approx(MAE().measure(pair), abs=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_without_synchronization():
    pairs = [PAIRS[name] for name in ("blobs, noisy", "perfect", "both empty", "random 31 x 64")]
    for make in (lambda: FMeasure(KINDS), MAE):
        here, there = make(), make()
        for pred, gt in pairs:
            here.update(pred, gt)
            planes = [torch.from_numpy(plane).cuda() for plane in (pred, gt)]
            torch.cuda.set_sync_debug_mode("error")
            try:
                there.update(*planes)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert there.compute() == pytest.approx(here.compute(), abs=1e-12)


# --- as a script ---


def parity(pairs: Iterable[tuple], golden: dict) -> dict[str, list[float]]:
    """Return the differences of each figure from the reference; those of IoU are from the plain reading."""
    away = defaultdict(list)
    for name, pred, gt in pairs:
        plain = {"iou": plain_iou(pred, gt), "boundary_iou": plain_boundary_iou(pred, gt)}
        found = measured((pred, gt)) | {"iou": iou(pred, gt), "boundary_iou": boundary_iou(pred, gt)}
        for figure, difference in differences(found, golden[name] | plain).items():
            away[figure].append(difference)
    return away


def main() -> None:
    """Print a table: metric, pairs, largest difference."""
    sets = [("procedural", procedural())] + ([("real", real())] if REAL.is_dir() else [])
    print(f"OpenCV {cv2.__version__}\n\n| set | metric | pairs | largest difference |\n|---|---|---|---|")
    for label, pairs in sets:
        for figure, away in parity(pairs, GOLDEN[label]).items():
            print(f"| {label} | {figure} | {len(away)} | {max(away):.1e} |")


if __name__ == "__main__":
    main()
