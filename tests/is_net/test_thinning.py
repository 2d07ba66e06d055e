"""Thinning against scikit-image, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.morphology
from golden.make_metrics import blur, shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from IS_Net.metrics.thinning import skeletonize

SHAPES = dict(shapes())


def same(mask: np.ndarray) -> bool:
    found = skeletonize(mask)
    return found.dtype == bool and np.array_equal(found, skimage.morphology.skeletonize(mask))


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str):
    assert all(same(mask) for mask in (SHAPES[name], ~SHAPES[name], SHAPES[name].T))


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 12])
def test_blobs_of_all_sizes(radius: int):
    noise = blur(np.random.default_rng(radius).integers(0, 256, (211, 307), dtype=np.uint8), radius)
    for share in (0.05, 0.5, 0.95):
        assert same(noise > np.quantile(noise, share))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (40, 30)])
def test_empty_and_full(shape: tuple[int, int]):
    assert not skeletonize(np.zeros(shape, bool)).any()
    assert same(np.ones(shape, bool))


def test_every_neighborhood():
    codes = np.arange(512)
    for image in (codes[:, None] >> np.arange(9) & 1).astype(bool).reshape(-1, 3, 3):
        assert same(image)
        assert same(np.kron(image, np.ones((3, 3), bool)))


def test_the_mask_stays_as_it_is():
    mask = SHAPES["disc"].copy()
    skeletonize(mask)
    assert np.array_equal(mask, SHAPES["disc"])


@settings(deadline=None, max_examples=100)
@given(mask=arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.booleans()))
def test_anything(mask: np.ndarray):
    assert same(mask)
