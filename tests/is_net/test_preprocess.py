"""Boxes, resizing, the network's input, and the alpha matte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from IS_Net.errors import BoxError
from IS_Net.preprocess import (
    box_from_mask,
    check_box,
    clip_box,
    fill_box,
    make_image_planes,
    make_planes,
    make_prompt_planes,
    prompt_box,
    reaches_outside,
    resize_planes,
    resize_uint8,
)
from IS_Net.tensors import alpha_to_uint8, make_alpha, make_input, make_target

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
MASK = np.zeros((37, 53), dtype=np.uint8)
MASK[10:21, 5:31] = 255

sides = st.integers(1, 40)
many = settings(deadline=None, max_examples=80)


def draw_box(data: st.DataObject, height: int, width: int) -> tuple[int, int, int, int]:
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    return x0, y0, data.draw(st.integers(x0, width - 1)), data.draw(st.integers(y0, height - 1))


# --- boxes ---


@pytest.mark.parametrize(
    ("rows", "columns", "box"),
    [
        (slice(0, 0), slice(0, 0), None),
        (slice(3, 4), slice(8, 9), (8, 3, 8, 3)),
        (slice(None), slice(None), (0, 0, 52, 36)),
        (slice(10, 21), slice(5, 31), (5, 10, 30, 20)),
    ],
    ids=["empty", "one pixel", "full", "middle"],
)
@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_box_of_a_mask(rows: slice, columns: slice, box: tuple | None, dtype: type):
    mask = np.zeros((37, 53), dtype=dtype)
    mask[rows, columns] = True if dtype is bool else 255
    assert box_from_mask(mask) == box


def test_box_includes_values_above_128():
    assert box_from_mask(np.full((5, 5), 128, np.uint8)) is None
    assert box_from_mask(np.full((5, 5), 129, np.uint8)) == (0, 0, 4, 4)


@many
@given(mask=arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=30), elements=st.booleans()))
def test_box_of_any_mask(mask: np.ndarray):
    rows, columns = np.where(mask)
    wanted = (columns.min(), rows.min(), columns.max(), rows.max()) if rows.size else None
    assert box_from_mask(mask) == wanted


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], "four finite numbers"),
        ([1, 2, 3, 4, 5], "four finite numbers"),
        ([1, 2, float("nan"), 4], "four finite numbers"),
        ([1, 2, float("inf"), 4], "four finite numbers"),
        ([1, None, 3, 4], "four finite numbers"),
        ("1,2,3,4", "four finite numbers"),
        ([1, "two", 3, 4], "four finite numbers"),
        (7, "four finite numbers"),
        ([[1, 2], [3]], "four finite numbers"),
        ([9, 2, 3, 4], "wrong order"),
        ([1, 9, 3, 4], "wrong order"),
        ([60, 2, 70, 4], r"outside its image of 53 x 37 pixels"),
        ([2, -9, 7, -1], r"outside its image of 53 x 37 pixels"),
        ([5, 6, 5, 6], "single point"),
    ],
)
def test_invalid_boxes_are_errors(box: Any, message: str):
    with pytest.raises(BoxError, match=f"^the box of spoon: .*{message}"):
        check_box(box, 37, 53, where="the box of spoon")


def test_a_mask_may_come_with_a_box_of_one_pixel():
    assert check_box([5, 6, 5, 6], 37, 53, with_mask=True) == (5, 6, 5, 6)
    with pytest.raises(BoxError, match="wrong order"):
        check_box([5, 6, 4, 6], 37, 53, with_mask=True)


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ([1, 2, 3, 4], (1, 2, 3, 4)),
        (np.array([[1.5, 2, 3, 4]]), (1.5, 2, 3, 4)),
        ([-7, -8, 90, 80], (0, 0, 52, 36)),
        ([5, 6, 5, 9], (5, 6, 5, 9)),
        ([52, 36, 60, 60], (52, 36, 52, 36)),
    ],
)
def test_boxes_are_clipped(box: Any, clipped: tuple):
    assert check_box(box, 37, 53) == clip_box(box, 37, 53) == clipped


@pytest.mark.parametrize(
    ("box", "outside"),
    [
        ([0, 0, 52, 36], False),
        ([-1, 0, 54, 37], False),  # a detector's box, somewhat too large
        ([49, 0, 53, 10], False),  # of a few pixels, with an end that does not belong to it
        ([10, 10, 100, 30], True),
        ([10, -9, 30, 30], True),
    ],
)
def test_boxes_that_reach_outside(box: list[float], outside: bool):
    assert reaches_outside(box, 37, 53) == outside


def test_boxes_of_masks_may_be_single_pixels():
    assert clip_box([5, 6, 5, 6], 37, 53) == (5, 6, 5, 6)


@many
@given(data=st.data(), height=sides, width=sides)
def test_filled_box_covers_both_of_its_ends(data: st.DataObject, height: int, width: int):
    x0, y0, x1, y1 = box = draw_box(data, height, width)
    wanted = np.zeros((1, height, width), np.uint8)
    wanted[0, y0 : y1 + 1, x0 : x1 + 1] = 255
    np.testing.assert_array_equal(fill_box(box, (height, width), (height, width)), wanted)


@many
@given(data=st.data(), height=sides, width=sides, new_height=sides, new_width=sides)
def test_filled_box_at_another_scale(data: st.DataObject, height: int, width: int, new_height: int, new_width: int):
    """A pixel is in the box exactly where its square overlaps the box's, both ends of it included."""
    x0, y0, x1, y1 = box = draw_box(data, height, width)
    plane = fill_box(box, (height, width), (new_height, new_width))

    def overlaps(first: int, last: int, old: int, new: int) -> np.ndarray:
        pixel = np.arange(new)  # positions times old are integers, so there is no rounding error
        return (pixel * old < (last + 1) * new) & ((pixel + 1) * old > first * new)

    wanted = np.outer(overlaps(y0, y1, height, new_height), overlaps(x0, x1, width, new_width))
    np.testing.assert_array_equal(plane, 255 * wanted[None].astype(np.uint8))
    assert plane.any()


def test_filled_box_is_clipped_and_may_be_none():
    assert (fill_box([-5, -5, 99, 99], (37, 53), (20, 30)) == 255).all()
    assert not fill_box(None, (37, 53), (20, 30)).any()
    with pytest.raises(BoxError, match="outside its image"):
        fill_box([60, 2, 70, 4], (37, 53), (20, 30))


# --- resizing ---


@many
@given(
    pixels=arrays.arrays(np.uint8, st.tuples(sides, sides, st.sampled_from([1, 3]))),
    height=sides,
    width=sides,
)
def test_resize_is_pytorchs_rounded(pixels: np.ndarray, height: int, width: int):
    exact = torch.tensor(pixels).permute(2, 0, 1)[None].double()
    exact = F.interpolate(exact, (height, width), mode="bilinear", align_corners=False)[0].numpy()
    found = resize_uint8(pixels, (height, width))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    # float32 may round a value between two bytes to the other one
    assert (np.abs(found - exact) <= 0.5 + 1e-3).all()
    np.testing.assert_array_equal(resize_planes(np.moveaxis(pixels, 2, 0), (height, width)), found)


def test_resize_by_hand():
    """Half-pixel centers: 4 -> 2 pixels takes the mean of the inner pair of each half, without antialiasing."""
    row = np.uint8([[0, 100, 200, 40]])
    np.testing.assert_array_equal(resize_uint8(row, (1, 2)), [[[50, 120]]])
    np.testing.assert_array_equal(resize_uint8(np.uint8([[0, 100]]), (1, 4)), [[[0, 25, 75, 100]]])
    # a single bright column among eight falls between the two samples taken
    np.testing.assert_array_equal(resize_uint8(np.uint8([[255, 0, 0, 0, 0, 0, 0, 0]]), (1, 2)), [[[0, 0]]])


def test_resize_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resize_uint8(IMAGE, (37, 53)), np.moveaxis(IMAGE, 2, 0))
    np.testing.assert_array_equal(resize_uint8(MASK, (37, 53)), MASK[None])


@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::-1], np.s_[..., ::-1], np.s_[::2, 1::3]])
def test_views_are_resized_like_copies(view: Any):
    np.testing.assert_array_equal(resize_uint8(IMAGE[view], (20, 30)), resize_uint8(IMAGE[view].copy(), (20, 30)))


def test_read_only_arrays_are_resized():
    frozen = IMAGE.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(resize_uint8(frozen, (20, 30)), resize_uint8(IMAGE, (20, 30)))


# --- the network's input ---


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_planes_are_stacked_in_order(in_ch: int):
    size = (64, 48)
    planes = make_planes(IMAGE, MASK, (2, 3, 40, 30), in_ch, size)
    parts = [resize_uint8(IMAGE, size), resize_uint8(MASK, size), fill_box((2, 3, 40, 30), (37, 53), size)]
    assert planes.shape == (in_ch, *size)
    assert planes.dtype == np.uint8
    np.testing.assert_array_equal(planes, np.concatenate(parts)[:in_ch])


def test_missing_box_is_the_masks_bounds():
    planes = make_planes(IMAGE, MASK, None, 5, (37, 53))
    np.testing.assert_array_equal(planes[4], MASK)


@pytest.mark.parametrize("box", [None, (7, 8, 7, 8)], ids=["bounds", "given"])
def test_object_of_one_pixel_has_a_box(box: tuple | None):
    mask = np.zeros_like(MASK)
    mask[8, 7] = 255
    np.testing.assert_array_equal(make_planes(IMAGE, mask, box, 5, (37, 53))[4], mask)


def test_empty_mask_has_an_empty_box():
    assert not make_planes(IMAGE, np.zeros_like(MASK), None, 5, (64, 64))[3:].any()


def test_planes_are_copies():
    before = IMAGE.copy()
    make_planes(IMAGE, MASK, None, 4, IMAGE.shape[:2])[:] = 0
    np.testing.assert_array_equal(IMAGE, before)


BOX = (2, 3, 40, 30)
ZEROS, WHOLE = np.zeros((64, 48), np.uint8), np.full((64, 48), 255, np.uint8)
FILLED = fill_box(BOX, (37, 53), (64, 48))[0]
BOUNDS = fill_box((5, 10, 30, 20), (37, 53), (64, 48))[0]
RESIZED = resize_uint8(MASK, (64, 48))[0]


@pytest.mark.parametrize(
    ("mask", "box", "four", "five"),
    [
        (MASK, BOX, RESIZED, [RESIZED, FILLED]),
        (MASK, None, RESIZED, [RESIZED, BOUNDS]),
        (None, BOX, FILLED, [ZEROS, FILLED]),
        (None, None, WHOLE, [ZEROS, WHOLE]),
        (MASK * 0, None, ZEROS, [ZEROS, ZEROS]),
        (MASK * 0, BOX, ZEROS, [ZEROS, FILLED]),
    ],
    ids=["mask and box", "mask", "box", "neither", "empty mask", "empty mask and box"],
)
def test_every_kind_of_prompt(mask: np.ndarray | None, box: tuple | None, four: np.ndarray, five: list[np.ndarray]):
    """The table in the module's documentation."""
    image = make_image_planes(IMAGE, (64, 48))
    for in_ch, expected in ((3, []), (4, [four]), (5, five)):
        found = make_planes(IMAGE, mask, box, in_ch, (64, 48))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, np.concatenate([image, *(plane[None] for plane in expected)]))
        np.testing.assert_array_equal(make_prompt_planes(mask, box, in_ch, (37, 53), (64, 48)), found[3:])


def test_box_of_a_prompt():
    assert prompt_box(MASK, BOX, (37, 53)) == prompt_box(None, BOX, (37, 53)) == BOX
    assert prompt_box(MASK, None, (37, 53)) == (5, 10, 30, 20)
    assert prompt_box(None, None, (37, 53)) == (0, 0, 52, 36)
    assert prompt_box(MASK * 0, None, (37, 53)) is None


@pytest.mark.parametrize("in_ch", [4, 5])
def test_box_outside_of_its_image_is_an_error_without_a_mask_too(in_ch: int):
    with pytest.raises(BoxError, match="outside its image"):
        make_planes(IMAGE, None, (60, 2, 70, 4), in_ch, (64, 64))


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (IMAGE[..., 0], MASK, "expected an image of shape"),
        (np.dstack([IMAGE, MASK]), MASK, "expected an image of shape"),
        (IMAGE / 255, MASK, "expected an image of shape .* float64"),
        (IMAGE, MASK[:-1], r"the mask is 53 x 36 pixels, but its image is 53 x 37"),
        (IMAGE, MASK.T, r"the mask is 37 x 53 pixels, but its image is 53 x 37"),
        (IMAGE, MASK > 128, r"expected a mask of uint8 0\.\.255, found bool"),
        (IMAGE, MASK / 255, r"expected a mask of uint8 0\.\.255, found float64"),
    ],
)
def test_invalid_arrays_are_errors(image: np.ndarray, mask: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        make_planes(image, mask, None, 4, (64, 64))


def test_input_is_normalized():
    planes = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(2, 5, 7, 3)
    x = make_input(planes)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    levels = torch.tensor([0.0, 0.2, 1.0])
    torch.testing.assert_close(x[:, :3], (levels - 0.5).expand(2, 3, 7, 3))
    torch.testing.assert_close(x[:, 3:], levels.expand(2, 2, 7, 3))
    assert planes[0, 0, 0].tolist() == [0, 51, 255]


def test_target_is_normalized():
    target = make_target(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8))
    torch.testing.assert_close(target, torch.tensor([[[[0.0, 0.2, 1.0]]]]))


# --- the alpha ---


@pytest.mark.parametrize("logit", [-100.0, -3.0, 0.0, 2.0, 20.0, 100.0])
@pytest.mark.parametrize("size", [(64, 64), (37, 53), (101, 200)])
def test_alpha_is_not_stretched(logit: float, size: tuple[int, int]):
    alpha = make_alpha(torch.full((1, 1, 64, 64), logit), size)
    assert alpha.shape == (1, 1, *size)
    torch.testing.assert_close(alpha, torch.full((1, 1, *size), 1 / (1 + np.exp(-logit))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_alpha_stays_in_range(dtype: torch.dtype):
    logits = torch.randn(3, 1, 33, 47, generator=torch.Generator().manual_seed(0)) * 1000
    alpha = make_alpha(logits.to(dtype), (101, 97))
    assert alpha.dtype == torch.float32
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert torch.equal(alpha_to_uint8(alpha), (alpha.double() * 255).round().to(torch.uint8))


def test_alpha_is_rounded_to_the_nearest_level():
    alpha = torch.tensor([0.0, 0.49 / 255, 0.51 / 255, 127.4 / 255, 254.6 / 255, 1.0])
    assert alpha_to_uint8(alpha).tolist() == [0, 0, 1, 127, 255, 255]


@many
@given(level=st.integers(0, 255))
def test_levels_survive_the_round_trip(level: int):
    assert alpha_to_uint8(make_target(torch.tensor([level], dtype=torch.uint8))).item() == level
