"""IoU, pooled IoU and boundary IoU against plain readings: loops over pixels, repeated erosions by 3 x 3."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from IS_Net.metrics import BoundaryIoU, IoU, boundary_iou, iou

ON = np.uint8(255)


def plain_iou(pred: np.ndarray, gt: np.ndarray) -> float:
    both = either = 0
    for p, g in zip(pred.ravel().tolist(), gt.ravel().tolist(), strict=True):
        both += p > 128 and g > 128
        either += p > 128 or g > 128
    return both / either if either else 1.0


def plain_boundary(mask: np.ndarray, ratio: float) -> np.ndarray:
    """Follow the definition: pad by one pixel of background, erode by 3 x 3 d times, subtract."""
    mask = (mask > 128).astype(np.uint8)
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    for _ in range(max(1, round(ratio * float(np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))):
        padded = cv2.erode(padded, np.ones((3, 3), np.uint8))
    return (mask - padded[1:-1, 1:-1]) * ON


def plain_boundary_iou(pred: np.ndarray, gt: np.ndarray, ratio: float = 0.02) -> float:
    return plain_iou(plain_boundary(pred, ratio), plain_boundary(gt, ratio))


def square(size: int, start: int, stop: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[start:stop, start:stop] = 255
    return mask


def blobs(seed: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((5, 6), dtype=np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 255, 0, 255).astype(np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    pair=arrays.array_shapes(min_dims=2, max_dims=2, max_side=13).flatmap(
        lambda shape: st.tuples(arrays.arrays(np.uint8, shape), arrays.arrays(np.uint8, shape))
    ),
    ratio=st.sampled_from((0.02, 0.1, 0.3)),
)
def test_anything_against_the_plain_reading(pair: tuple[np.ndarray, np.ndarray], ratio: float):
    assert iou(*pair) == plain_iou(*pair)
    assert boundary_iou(*pair, ratio) == plain_boundary_iou(*pair, ratio)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (131, 1), (97, 211), (300, 401)])
@pytest.mark.parametrize("seed", range(3))
def test_blobs_against_the_plain_reading(seed: int, size: tuple[int, int]):
    pred, gt = blobs(seed, *size), blobs(seed + 10, *size)
    for found in (pred, pred // 2 + gt // 2, gt, np.full_like(gt, 255)):
        assert iou(found, gt) == plain_iou(found, gt)
        assert boundary_iou(found, gt) == plain_boundary_iou(found, gt)


def test_known_answers():
    # 100 px: d = round(2.83) = 3, the boundary of a square of side a is a * a - (a - 6) ** 2 pixels
    outer, inner = square(100, 20, 80), square(100, 21, 79)
    assert iou(inner, outer) == 58**2 / 60**2
    assert boundary_iou(inner, outer) == (58**2 - 54**2) / (60**2 - 52**2)
    full = np.full((100, 100), 255, np.uint8)  # its boundary is along the image border
    assert boundary_iou(square(100, 3, 97), full) == 0.0
    assert boundary_iou(square(100, 1, 99), full) == (98**2 - 94**2) / (100**2 - 92**2)


@pytest.mark.parametrize("metric", [iou, boundary_iou])
@pytest.mark.parametrize("size", [1, 2, 40])
def test_empty_masks(metric, size: int):
    empty, full = np.zeros((size, size), np.uint8), np.full((size, size), 255, np.uint8)
    assert metric(empty, empty) == metric(full, full) == 1.0
    assert metric(empty, full) == metric(full, empty) == 0.0


@pytest.mark.parametrize("metric", [iou, boundary_iou])
def test_threshold_and_kinds_of_arrays(metric):
    gt = square(50, 10, 40)
    assert metric(gt // 255 * np.uint8(129), gt) == 1.0
    assert metric(gt // 255 * np.uint8(128), gt) == 0.0
    pred = blobs(0, 50, 50)
    assert metric(pred > 128, gt > 128) == metric(torch.from_numpy(pred), torch.from_numpy(gt)) == metric(pred, gt)


@pytest.mark.parametrize("metric", [iou, boundary_iou])
def test_what_is_refused(metric):
    gt = square(30, 5, 20)
    with pytest.raises(ValueError, match="prediction is 30 x 20 pixels, but its ground truth is 30 x 30 pixels"):
        metric(gt[:20], gt)
    with pytest.raises(ValueError, match=r"prediction .* found .* float64"):
        metric(gt / 255, gt)
    with pytest.raises(ValueError, match=r"ground truth .* found \(1, 30, 30\)"):
        metric(gt, gt[None])


@pytest.mark.parametrize(("accumulator", "metric"), [(IoU, iou), (BoundaryIoU, boundary_iou)])
def test_accumulators_are_means_over_images(accumulator, metric):
    total, key = accumulator(), metric.__name__
    assert math.isnan(total.compute()[key])
    pairs = [(blobs(k, 30 + k, 40), blobs(k + 5, 30 + k, 40)) for k in range(3)]
    for pred, gt in pairs:
        total.update(torch.from_numpy(pred), torch.from_numpy(gt))
    assert total.compute()[key] == pytest.approx(np.mean([metric(*pair) for pair in pairs]))
    assert total.compute().keys() == ({"iou", "pooled_iou"} if accumulator is IoU else {key})


# --- pooled IoU ---


def pooled(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    total = IoU()
    for pred, gt in pairs:
        total.update(pred, gt)
    return total.compute()["pooled_iou"]


def plain_pooled(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    both = sum(int(((pred > 128) & (gt > 128)).sum()) for pred, gt in pairs)
    either = sum(int(((pred > 128) | (gt > 128)).sum()) for pred, gt in pairs)
    return both / either if either else 1.0


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.lists(
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=13).flatmap(
            lambda shape: st.tuples(arrays.arrays(np.uint8, shape), arrays.arrays(np.uint8, shape))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_pooled_iou_against_the_plain_reading(pairs: list[tuple[np.ndarray, np.ndarray]]):
    assert pooled(pairs) == plain_pooled(pairs)
    assert pooled(pairs[:1]) == iou(*pairs[0])


def test_pooled_iou_counts_large_objects_more():
    large, small = square(100, 0, 90), square(100, 0, 10)
    missed = np.zeros_like(small)
    assert pooled([(large, large), (missed, small)]) == 8100 / 8200  # the mean IoU is 1 / 2
    assert pooled([(missed, missed)]) == 1.0
    assert pooled([(missed, missed), (small, small)]) == 1.0
    assert pooled([(missed, missed), (missed, small)]) == 0.0
    assert math.isnan(IoU().compute()["pooled_iou"])
