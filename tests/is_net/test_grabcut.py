"""The call of GrabCut: the same masks as OpenCV's own forms of the call, repeatable, and None where it fails."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from IS_Net.grabcut import grabcut


def scene(seed: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Return an image of an ellipse on a noisy ground, and a box around the ellipse as x, y, width, height."""
    rng = np.random.default_rng(seed)
    h, w = (int(n) for n in rng.integers(30, 90, 2))
    image = rng.integers(0, 130, (h, w, 3), dtype=np.uint8)
    x, y, a, b = w // 2, h // 2, int(rng.integers(5, w // 3)), int(rng.integers(5, h // 3))
    mask = cv2.ellipse(np.zeros((h, w), np.uint8), (x, y), (a, b), 0, 0, 360, 1, -1).astype(bool)
    image[mask] += rng.integers(80, 120, 3, dtype=np.uint8)
    return image, (x - a - 2, y - b - 2, 2 * a + 4, 2 * b + 4)


def box_labels(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    x, y, w, h = box
    labels = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    labels[max(y, 0) : y + h, max(x, 0) : x + w] = cv2.GC_PR_FGD
    return labels


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("form", ["rectangle", "mask"])
def test_masks_are_those_of_opencvs_calls(seed, form):
    image, box = scene(seed)
    labels = box_labels(image, box)
    if form == "mask":
        cv2.circle(labels, (image.shape[1] // 2, image.shape[0] // 2), 3, cv2.GC_FGD, -1)
    found = grabcut(image, labels, iterations=1 + seed % 4, seed=seed)

    expected, models = labels.copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.setRNGSeed(seed)
    if form == "mask":
        cv2.grabCut(image, expected, None, *models, 1 + seed % 4, cv2.GC_INIT_WITH_MASK)
    else:
        cv2.grabCut(image, expected, box, *models, 1 + seed % 4, cv2.GC_INIT_WITH_RECT)
    expected = (expected == cv2.GC_FGD) | (expected == cv2.GC_PR_FGD)
    assert expected.any() and found.dtype == bool
    np.testing.assert_array_equal(found, expected)


def test_the_seed_alone_decides_and_labels_stay():
    image, box = scene(3)
    labels = box_labels(image, box)
    before = labels.copy()
    first = grabcut(image, labels, 2, seed=7)
    cv2.setRNGSeed(99)
    np.testing.assert_array_equal(grabcut(image, labels, 2, seed=7), first)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("label", [cv2.GC_BGD, cv2.GC_PR_FGD])
def test_without_pixels_of_both_kinds_there_is_no_mask(label):
    image, _ = scene(1)
    assert grabcut(image, np.full(image.shape[:2], label, np.uint8), 2, 0) is None


def test_nothing_found_is_none():
    image = np.full((40, 50, 3), 77, np.uint8)  # one color: all of it is background
    assert grabcut(image, box_labels(image, (10, 10, 20, 20)), 3, 0) is None
