"""Joint augmentation: all channels are transformed alike, with the probabilities of the recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from IS_Net import augment as module
from IS_Net.preprocess import box_from_mask, fill_box


def on_arrays(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    """Return a function of tensors as one of arrays that share their memory."""
    return lambda planes, *args, **kwargs: function(torch.from_numpy(planes), *args, **kwargs).numpy()


augment, flip, random_crop = map(on_arrays, (module.augment, module.flip, module.random_crop))

CHANNELS = 6  # RGB, mask, box and ground truth
FLIPS = [(False, False), (True, False), (False, True), (True, True)]

sides = st.integers(1, 24)
many = settings(deadline=None, max_examples=80)


def numbered(channels: int, height: int, width: int) -> np.ndarray:
    """Return planes in which each channel encodes the position of a pixel in a different way."""
    place = np.arange(height * width, dtype=np.int64).reshape(1, height, width)
    return ((place * 7 + np.arange(channels)[:, None, None]) % 256).astype(np.uint8)


def mirrored(planes: np.ndarray, horizontal: bool, vertical: bool) -> np.ndarray:
    return planes[:, :: -1 if vertical else 1, :: -1 if horizontal else 1]


@many
@given(channels=st.integers(1, 7), height=sides, width=sides, horizontal=st.booleans(), vertical=st.booleans())
def test_flip_mirrors_every_channel(channels: int, height: int, width: int, horizontal: bool, vertical: bool):
    planes = numbered(channels, height, width)
    flipped = flip(planes, horizontal, vertical)
    np.testing.assert_array_equal(flipped, mirrored(planes, horizontal, vertical))
    np.testing.assert_array_equal(flip(flipped, horizontal, vertical), planes)
    assert flipped.flags.c_contiguous


@pytest.mark.parametrize(("horizontal", "vertical"), FLIPS)
def test_flip_takes_views(horizontal: bool, vertical: bool):
    view = numbered(8, 30, 40)[::2, 3:-2, 5:-1]
    np.testing.assert_array_equal(flip(view, horizontal, vertical), mirrored(view, horizontal, vertical))


@pytest.mark.parametrize(("horizontal", "vertical"), FLIPS)
def test_box_channel_stays_around_the_mask(horizontal: bool, vertical: bool):
    mask = np.zeros((37, 53), np.uint8)
    mask[4:11, 20:44] = 255
    planes = np.concatenate((mask[None], fill_box(box_from_mask(mask), mask.shape, mask.shape)))
    flipped = flip(planes, horizontal, vertical)
    np.testing.assert_array_equal(
        flipped[1:], fill_box(box_from_mask(flipped[0]), flipped.shape[1:], flipped.shape[1:])
    )


def which_flips(result: np.ndarray, planes: np.ndarray) -> tuple[bool, bool]:
    (found,) = (flips for flips in FLIPS if np.array_equal(result, mirrored(planes, *flips)))
    return found


def test_each_pair_of_flips_has_a_quarter_of_the_chances():
    planes, draws = numbered(CHANNELS, 5, 7), 4000
    counts = Counter(which_flips(augment(planes, np.random.default_rng(seed)), planes) for seed in range(draws))
    assert set(counts) == set(FLIPS)
    chi_square = sum((count - draws / 4) ** 2 / (draws / 4) for count in counts.values())
    assert chi_square < 16.27  # 3 degrees of freedom: exceeded by chance in one of 1,000 choices of seeds


@pytest.mark.parametrize("allowed", FLIPS)
def test_only_the_flips_that_are_switched_on(allowed: tuple[bool, bool]):
    planes = numbered(CHANNELS, 5, 7)
    found = {which_flips(augment(planes, np.random.default_rng(seed), *allowed), planes) for seed in range(64)}
    assert found == {(h, v) for h, v in FLIPS if h <= allowed[0] and v <= allowed[1]}


@many
@given(data=st.data(), height=sides, width=sides, seed=st.integers(0, 2**32))
def test_crop_is_one_window_of_all_channels(data: st.DataObject, height: int, width: int, seed: int):
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    crop = random_crop(np.stack([rows, columns, rows, columns]), size, np.random.default_rng(seed))
    assert crop.shape == (4, *size)
    top, left = crop[0, 0, 0], crop[1, 0, 0]
    for channels in (crop[:2], crop[2:]):
        np.testing.assert_array_equal(channels, np.mgrid[top : top + size[0], left : left + size[1]])


def test_crops_reach_every_place():
    place = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    corners = {int(random_crop(place, (2, 2), np.random.default_rng(seed))[0, 0, 0]) for seed in range(200)}
    assert corners == {0, 1, 2, 4, 5, 6}


@pytest.mark.parametrize("size", [(9, 8), (8, 9)])
def test_window_larger_than_the_stack(size: tuple[int, int]):
    with pytest.raises(ValueError, match=f"cannot crop {size[0]} x {size[1]} out of 8 x 8"):
        random_crop(numbered(2, 8, 8), size, np.random.default_rng(0))


@many
@given(seed=st.integers(0, 2**32), crop=st.sampled_from([None, (8, 10), (5, 3)]))
def test_augmentation_follows_from_the_generator_alone(seed: int, crop: tuple[int, int] | None):
    planes = numbered(CHANNELS, 8, 10)
    before = planes.copy()
    first, second = (augment(planes, np.random.default_rng(seed), crop_size=crop) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(planes, before)
    assert first.shape == (CHANNELS, *(crop or (8, 10)))
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    # the channels are still aligned: they differ by the same steps everywhere
    assert ((first - first[:1]) == np.arange(CHANNELS)[:, None, None]).all()
