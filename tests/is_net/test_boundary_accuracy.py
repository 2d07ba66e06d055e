"""Mean boundary accuracy against a plain reading of its definition and the steps of the published code."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from golden.make_metrics import shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from IS_Net.metrics import BoundaryAccuracy, GroundTruth, Pair, boundary_accuracy


def radii(height: int, width: int) -> list[int]:
    return [1 + int(((height + width) / 300 - 1) / 5 * step) for step in range(5)]


def kernel(radius: int) -> list[tuple[int, int]]:
    """Return the offsets within an ellipse of that radius, as rows of pixels whose half-widths are rounded."""
    rows = range(-radius, radius + 1)
    return [
        (dy, dx)
        for dy in rows
        for dx in range(-radius, radius + 1)
        if abs(dx) <= round(math.sqrt(radius**2 - dy**2))  # rounds halves to even, as OpenCV does
    ]


def plain_band(gt: np.ndarray, radius: int) -> np.ndarray:
    """Return the pixels that have a pixel of the other class within the radius, by shifting the mask."""
    height, width = gt.shape
    band = np.zeros(gt.shape, bool)
    for dy, dx in kernel(radius):
        for y in range(max(0, -dy), min(height, height - dy)):
            for x in range(max(0, -dx), min(width, width - dx)):
                band[y, x] |= gt[y, x] != gt[y + dy, x + dx]
    return band


def plain(pred: np.ndarray, gt: np.ndarray, sizes: list[int] | None = None) -> float:
    """Follow the definition: the accuracy in each band, and their mean."""
    right = (pred > 128) == (gt > 128)
    bands = [plain_band(gt > 128, radius) for radius in sizes or radii(*gt.shape)]
    if not bands[0].any():
        return float(right.mean())
    return float(np.mean([right[band].mean() for band in bands]))


def published(pred: np.ndarray, gt: np.ndarray) -> float:
    """Follow the steps of CascadePSP's code."""
    pred, gt = ((plane > 128).astype(np.uint8) for plane in (pred, gt))
    accuracies = []
    for radius in radii(*gt.shape):
        disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        band = cv2.morphologyEx(gt, cv2.MORPH_GRADIENT, disk) > 0
        accuracies.append((pred[band] == gt[band]).sum() / band.sum())
    return sum(accuracies) / 5


def blobs(seed: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((5, 6), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 255, 0, 255).astype(np.uint8)


def square(size: int, start: int, stop: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[start:stop, start:stop] = 255
    return mask


@settings(max_examples=80)
@given(
    pair=arrays.array_shapes(min_dims=2, max_dims=2, max_side=11).flatmap(
        lambda shape: st.tuples(arrays.arrays(np.uint8, shape), arrays.arrays(np.uint8, shape))
    )
)
def test_anything_against_the_plain_reading(pair: tuple[np.ndarray, np.ndarray]):
    """Images this small have a single radius, 1 pixel."""
    assert boundary_accuracy(*pair) == pytest.approx(plain(*pair), abs=1e-12)


@settings(max_examples=25)
@given(
    masks=arrays.array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
        lambda shape: st.tuples(arrays.arrays(bool, shape), arrays.arrays(bool, shape))
    ),
    sizes=st.lists(st.integers(1, 6), min_size=5, max_size=5).map(sorted),
)
def test_several_radii_against_the_plain_reading(masks: tuple[np.ndarray, np.ndarray], sizes: list[int]):
    pred, gt = masks
    truth = GroundTruth(gt)
    truth.edge_radii = sizes
    found = BoundaryAccuracy().measure(Pair(pred, truth))
    assert found == pytest.approx(plain(pred * np.uint8(255), gt * np.uint8(255), sizes), abs=1e-12)


@pytest.mark.parametrize("size", [(40, 50), (300, 401), (433, 1000), (1200, 900)])
@pytest.mark.parametrize("seed", range(3))
def test_blobs_against_the_published_steps(seed: int, size: tuple[int, int]):
    gt = blobs(seed + 10, *size)
    for pred in (blobs(seed, *size), blobs(seed, *size) // 2 + gt // 2, gt, np.zeros_like(gt), np.full_like(gt, 255)):
        assert boundary_accuracy(pred, gt) == published(pred, gt)


@pytest.mark.parametrize(("name", "gt"), list(shapes()), ids=[name for name, _ in shapes()])
def test_shapes_against_the_published_steps(name: str, gt: np.ndarray):
    mask = cv2.resize(gt.astype(np.uint8) * 255, None, fx=5, fy=5, interpolation=cv2.INTER_NEAREST)  # up to 13 pixels
    assert boundary_accuracy(np.roll(mask, 3, 0), mask) == published(np.roll(mask, 3, 0), mask)


def test_radii():
    assert GroundTruth(np.ones((1, 1), bool)).edge_radii == [1] * 5  # (h + w) / 300 is below 1
    assert GroundTruth(np.ones((1024, 1024), bool)).edge_radii == [1, 2, 3, 4, 5]
    assert GroundTruth(np.ones((2000, 3000), bool)).edge_radii == [1, 4, 7, 10, 13]


def test_known_answers():
    # 100 px: radius 1 for all bands. The band of a square of side 20: its 76 border pixels and 80 pixels outside.
    gt = square(100, 40, 60)
    assert boundary_accuracy(gt, gt) == 1.0
    assert boundary_accuracy(np.zeros_like(gt), gt) == pytest.approx(80 / 156)
    assert boundary_accuracy(255 - gt, gt) == 0.0
    assert boundary_accuracy(square(100, 41, 59), gt) == pytest.approx(80 / 156)  # all 76 border pixels are missed
    assert boundary_accuracy(square(100, 42, 58), gt) == pytest.approx(80 / 156)  # errors beyond the band do not count
    far = gt.copy()
    far[:20] = 255
    assert boundary_accuracy(far, gt) == 1.0
    # an edge along the image border is none: only one side of this half counts, 100 pixels of each class
    half = np.zeros((100, 100), np.uint8)
    half[:, :50] = 255
    shifted = np.zeros_like(half)
    shifted[:, :51] = 255
    assert boundary_accuracy(shifted, half) == 0.5


@pytest.mark.parametrize("size", [1, 2, 40])
def test_ground_truths_without_an_edge(size: int):
    empty, full = np.zeros((size, size), np.uint8), np.full((size, size), 255, np.uint8)
    assert boundary_accuracy(empty, empty) == boundary_accuracy(full, full) == 1.0
    assert boundary_accuracy(empty, full) == boundary_accuracy(full, empty) == 0.0
    dot = empty.copy()
    dot[0, 0] = 255
    assert boundary_accuracy(dot, empty) == pytest.approx(1 - 1 / size**2)


def test_threshold_and_kinds_of_arrays():
    gt = square(50, 10, 40)
    assert boundary_accuracy(gt // 255 * np.uint8(129), gt) == 1.0
    assert boundary_accuracy(gt // 255 * np.uint8(128), gt) < 1.0
    pred = blobs(0, 50, 50)
    found = boundary_accuracy(pred, gt)
    assert boundary_accuracy(pred > 128, gt > 128) == found
    assert boundary_accuracy(torch.from_numpy(pred), torch.from_numpy(gt)) == found


def test_what_is_refused():
    gt = square(30, 5, 20)
    with pytest.raises(ValueError, match="prediction is 30 x 20 pixels, but its ground truth is 30 x 30 pixels"):
        boundary_accuracy(gt[:20], gt)
    with pytest.raises(ValueError, match=r"prediction .* found .* float64"):
        boundary_accuracy(gt / 255, gt)


def test_the_accumulator_is_a_mean_over_images():
    total = BoundaryAccuracy()
    assert math.isnan(total.compute()["mba"])
    pairs = [(blobs(k, 30 + k, 40), blobs(k + 5, 30 + k, 40)) for k in range(3)]
    for pred, gt in pairs:
        total.update(torch.from_numpy(pred), torch.from_numpy(gt))
    assert total.compute() == {"mba": pytest.approx(np.mean([boundary_accuracy(*pair) for pair in pairs]))}
