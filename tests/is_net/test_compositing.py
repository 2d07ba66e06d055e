"""Pasting by alpha and estimating the colors of an object without its background."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from IS_Net.compositing import estimate_foreground, paste

few = settings(deadline=None, max_examples=40)

RED, GREEN = (220, 30, 20), (10, 190, 40)


@few
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9))
def test_pasting_is_the_weighted_mean(seed, height, width):
    rng = np.random.default_rng(seed)
    image, background = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    alpha = rng.random((height, width), dtype=np.float32)
    alpha.flat[0], alpha.flat[-1] = 0, 1
    before = image.copy(), alpha.copy(), background.copy()
    found = paste(image, alpha, background)
    expected = alpha[..., None] * image.astype(float) + (1 - alpha[..., None].astype(float)) * background
    assert found.shape == image.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found[alpha == 0], background[alpha == 0])
    np.testing.assert_array_equal(found[alpha == 1], image[alpha == 1])
    assert all(np.array_equal(a, b) for a, b in zip(before, (image, alpha, background), strict=True))


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_pasting_agrees_bit_for_bit_with_adding_the_difference_in_place(seed):
    """As scenes of copy-paste augmentation and pasted cut-outs were computed before there was one function."""
    rng = np.random.default_rng(seed)
    color, alpha = rng.uniform(0, 255, (7, 8, 3)), rng.random((7, 8), dtype=np.float32)
    scene = rng.uniform(0, 255, (7, 8, 3)).astype(np.float32)
    expected = scene.copy()
    expected += alpha[..., None] * (color - expected)
    pasted = scene.copy()
    pasted[:] = paste(color, alpha, scene)
    np.testing.assert_array_equal(pasted, expected)

    cutout = rng.integers(0, 256, (7, 8, 4), dtype=np.uint8)
    expected = scene.copy()
    expected += (cutout[..., :3] - expected) * (cutout[..., 3:] / np.float32(255))
    np.testing.assert_array_equal(paste(cutout[..., :3], cutout[..., 3] / np.float32(255), scene), expected)


@pytest.mark.parametrize("background", [230, GREEN, np.uint8(GREEN)])
def test_the_background_may_be_one_color(background):
    image, alpha = np.full((4, 5, 3), RED, np.uint8), np.full((4, 5), 0.25, np.float32)
    expected = 0.25 * np.array(RED) + 0.75 * np.array(background)
    np.testing.assert_allclose(paste(image, alpha, background), np.broadcast_to(expected, (4, 5, 3)), rtol=1e-6)


def test_mixed_pixels_get_the_objects_own_color():
    rows, columns = np.mgrid[:160, :160]
    alpha = np.clip((50 - np.hypot(rows - 80, columns - 80)) / 12 + 0.5, 0, 1).astype(np.float32)  # 12 pixels soft
    mixed = alpha[..., None] * np.array(RED) + (1 - alpha[..., None]) * np.array(GREEN)
    found = estimate_foreground(np.round(mixed).astype(np.uint8), alpha)
    assert found.shape == (160, 160, 3) and found.dtype == np.uint8
    error = np.abs(found.astype(int) - RED).max(axis=2)
    assert error[alpha > 0.1].max() < 25 and error[alpha > 0.9].max() < 6
    # the image itself is far from the object's color there
    assert np.abs(mixed - RED).max(axis=2)[(alpha > 0.1) & (alpha < 0.5)].min() > 80


def test_an_opaque_object_keeps_its_colors():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = estimate_foreground(image, np.ones((40, 50), np.float32))
    assert np.abs(found.astype(int) - image).max() <= 1


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_colors_of_some_pixels_are_those_of_all(share: float):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (37, 50, 3), dtype=np.uint8)
    alpha, where = rng.random((37, 50), dtype=np.float32), rng.random((37, 50)) < share
    found = estimate_foreground(image, alpha, where)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, estimate_foreground(image, alpha)[where])


def test_colors_follow_the_published_formula():
    """The two passes written out pixel by pixel in float64, with plain loops over windows."""
    rng = np.random.default_rng(1)
    image = cv2.resize(rng.integers(0, 256, (13, 15, 3), dtype=np.uint8), (60, 52), interpolation=cv2.INTER_CUBIC)
    alpha = np.clip(cv2.resize(rng.random((6, 6), dtype=np.float32), (60, 52)) * 1.6 - 0.3, 0, 1)

    def mean(values: np.ndarray, radius: int) -> np.ndarray:
        padded = np.pad(values, ((radius, radius),) * 2 + ((0, 0),), mode="reflect")
        side = 2 * radius + 1
        height, width = values.shape[:2]
        return np.array(
            [[padded[y : y + side, x : x + side].mean(axis=(0, 1)) for x in range(width)] for y in range(height)]
        )

    def improve(pixels: np.ndarray, a: np.ndarray, front: np.ndarray, back: np.ndarray, radius: int):
        weight = mean(a, radius)
        front = (mean(front * a, radius) + 1e-5 * front) / (weight + 1e-5)
        back = mean(back * (1 - a), radius) / (1 - weight + 1e-5)
        return np.clip(front + a * (pixels - a * front - (1 - a) * back), 0, 255), back

    small, small_alpha = (cv2.resize(x, (15, 13), interpolation=cv2.INTER_AREA) for x in (image, alpha))
    small = small.astype(float)
    front, back = improve(small, small_alpha[..., None].astype(float), small, small, 11)
    front, back = (cv2.resize(layer, (60, 52), interpolation=cv2.INTER_LINEAR) for layer in (front, back))
    expected, _ = improve(image.astype(float), alpha[..., None].astype(float), front, back, 4)
    difference = expected - estimate_foreground(image, alpha)  # colors are rounded down
    assert difference.min() > -0.01 and difference.max() < 1.01
