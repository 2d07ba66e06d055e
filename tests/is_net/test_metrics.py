"""Max F and MAE against plain loops over all thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from IS_Net.metrics import MAE, FMeasure

Pair = tuple[np.ndarray, np.ndarray]
RNG = np.random.default_rng(0)


def f_measure(precision: float, recall: float) -> float:
    return 1.3 * precision * recall / (0.3 * precision + recall) if precision * recall else 0.0


def plain(pairs: list[Pair]) -> dict[str, float]:
    """Compute all three figures in the plainest way: one image and one threshold at a time."""
    curves = np.zeros((3, len(pairs), 256))
    errors = []
    for n, (pred, gt) in enumerate(pairs):
        wanted = gt > 128
        for threshold in range(256):
            found = pred >= threshold
            hits = np.count_nonzero(found & wanted)
            precision = hits / np.count_nonzero(found) if found.any() else 0.0
            recall = hits / np.count_nonzero(wanted) if wanted.any() else 0.0
            curves[:, n, threshold] = f_measure(precision, recall), precision, recall
        errors.append(np.abs(pred / 255 - wanted).mean())
    f, precision, recall = curves.mean(axis=1)
    return {
        "max_f_mean_curve": f.max(),
        "max_f_mean_pr": max(map(f_measure, precision, recall)),
        "mae": float(np.mean(errors)),
    }


def measured(pairs: list[Pair]) -> dict[str, float]:
    metrics = FMeasure(), MAE()
    for pred, gt in pairs:
        for metric in metrics:
            metric.update(torch.from_numpy(pred), torch.from_numpy(gt))
    return metrics[0].compute() | metrics[1].compute()


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (255 * (np.hypot(y - height / 2, x - width / 3) < height / 3)).astype(np.uint8)


def noisy(gt: np.ndarray) -> np.ndarray:
    return np.clip(gt * 0.7 + RNG.normal(40, 60, gt.shape), 0, 255).astype(np.uint8)


GT = disc(23, 31)
CASES: dict[str, list[Pair]] = {
    "one": [(noisy(GT), GT)],
    "sizes": [(noisy(gt), gt) for gt in (disc(23, 31), disc(40, 17), disc(9, 64))],
    "random": [(RNG.integers(0, 256, (19, 27), dtype=np.uint8), RNG.integers(0, 256, (19, 27), dtype=np.uint8))],
    "constant": [(np.full_like(GT, level), GT) for level in (0, 1, 128, 255)],
    "empty gt": [(noisy(GT), np.zeros_like(GT)), (noisy(GT), GT)],
    "full gt": [(noisy(GT), np.full_like(GT, 255))],
    "perfect": [(GT, GT), (disc(8, 9), disc(8, 9))],
    "inverted": [(255 - GT, GT)],
    "soft gt": [(GT, np.clip(GT, 100, 129)), (GT, np.clip(GT, 100, 128))],
    "one pixel": [(np.uint8([[200]]), np.uint8([[255]]))],
}


@pytest.mark.parametrize("pairs", CASES.values(), ids=CASES)
def test_metrics_against_the_plain_loop(pairs: list[Pair]):
    assert measured(pairs) == pytest.approx(plain(pairs), abs=1e-12)


def test_known_answers():
    assert measured(CASES["perfect"]) == {"max_f_mean_curve": 1.0, "max_f_mean_pr": 1.0, "mae": 0.0}
    assert measured([(np.zeros_like(GT), np.full_like(GT, 255))])["mae"] == 1.0
    nothing = [(noisy(GT), np.zeros_like(GT))]
    assert measured(nothing) == pytest.approx(
        {"max_f_mean_curve": 0, "max_f_mean_pr": 0, "mae": nothing[0][0].mean() / 255}
    )
    # precision 1/2, recall 1: F = 1.3 * 0.5 / (0.15 + 1)
    half = [(np.full((2, 4), 255, np.uint8), np.uint8([[255] * 4, [0] * 4]))]
    assert measured(half)["max_f_mean_pr"] == pytest.approx(0.65 / 1.15)


def test_the_two_definitions_differ():
    gt = np.uint8([[255, 0, 0, 0]])
    pairs = [(np.uint8([[255, 0, 0, 0]]), gt), (np.uint8([[100, 100, 100, 100]]), gt)]
    found = measured(pairs)
    # at t <= 100: curves 1 and F(1/4, 1); mean precision (1 + 1/4) / 2, mean recall 1
    assert found["max_f_mean_curve"] == pytest.approx((1 + 0.325 / 1.075) / 2)
    assert found["max_f_mean_pr"] == pytest.approx(1.3 * 0.625 / (0.3 * 0.625 + 1))


def test_no_image_no_figure():
    assert all(math.isnan(value) for value in (FMeasure().compute() | MAE().compute()).values())


def test_images_weigh_the_same_whatever_their_size():
    small, large = np.zeros((2, 2), np.uint8), np.zeros((50, 50), np.uint8)
    assert measured([(small + 255, small), (large, large)])["mae"] == 0.5


pixels = arrays.array_shapes(min_dims=2, max_dims=2, max_side=9).flatmap(
    lambda shape: st.tuples(arrays.arrays(np.uint8, shape), arrays.arrays(np.uint8, shape))
)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), pairs=st.lists(pixels, min_size=1, max_size=4))
def test_metrics_of_anything(data: st.DataObject, pairs: list[Pair]):
    found = measured(pairs)
    assert all(0 <= value <= 1 for value in found.values())
    assert found == pytest.approx(plain(pairs), abs=1e-12)
    assert measured(data.draw(st.permutations(pairs))) == pytest.approx(found, abs=1e-12)
