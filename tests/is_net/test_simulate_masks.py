"""Simulated coarse masks: shape and values, determinism, and the errors of each source."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from IS_Net.images import binarize
from IS_Net.preprocess import box_from_mask
from IS_Net.synthesis import simulate_masks as module
from IS_Net.synthesis.simulate_masks import (
    MASK_SOURCES,
    RELIABLE_SOURCES,
    Source,
    bounds,
    box_or_hull,
    drop_parts,
    exact,
    fill_bounds,
    grabcut,
    leak_background,
    sam_like,
    scribble,
)

pytestmark = pytest.mark.usefixtures("one_thread")
few = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)
by_name = pytest.mark.parametrize("source", MASK_SOURCES, ids=lambda source: source.__name__)

DISC = cv2.circle(np.zeros((200, 240), np.uint8), (110, 95), 70, 255, -1, cv2.LINE_AA)


def paint(gt: np.ndarray, seed: int = 0, red: int = 200) -> np.ndarray:
    """Return a (3, H, W) image of a reddish object on a bluish background, with noise."""
    image = np.random.default_rng(seed).integers(0, 40, (3, *gt.shape), dtype=np.uint8)
    image[0][binarize(gt)] += np.uint8(red)
    image[2][~binarize(gt)] += np.uint8(200)
    return image


def iou(mask: np.ndarray, gt: np.ndarray) -> float:
    a, b = binarize(mask), binarize(gt)
    return (a & b).sum() / max((a | b).sum(), 1)


def run(source: Source, gt: np.ndarray, image: np.ndarray, seed: int) -> np.ndarray:
    """Return the mask of a source as an array of 0 and 255."""
    mask = source(torch.from_numpy(gt), torch.from_numpy(image), np.random.default_rng(seed))
    assert mask.dtype == torch.bool
    return mask.numpy() * np.uint8(255)


def simulate_mask(gt: np.ndarray, image: np.ndarray, seed: int, *sources: dict[Source, float]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return module.simulate_mask(torch.from_numpy(gt), torch.from_numpy(image), rng, *sources).numpy()


def masks_of(source: Source, gt: np.ndarray, number: int, image: np.ndarray | None = None) -> list[np.ndarray]:
    image = paint(gt) if image is None else image
    return [run(source, gt, image, seed) for seed in range(number)]


@st.composite
def ground_truths(draw: st.DrawFn) -> np.ndarray:
    """Return a ground truth of any size: empty, full, a single pixel, a line, a soft disc, noise, or faint."""
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    gt = np.zeros((height, width), np.uint8)
    kind = draw(st.sampled_from(["empty", "full", "pixel", "line", "disc", "noise", "faint"]))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    if kind in ("full", "faint"):
        gt[:] = 255 if kind == "full" else draw(st.integers(1, 128))
    elif kind == "pixel":
        gt[y, x] = draw(st.integers(129, 255))
    elif kind == "line":
        gt[y] = 255
    elif kind == "disc":
        cv2.circle(gt, (x, y), draw(st.integers(0, 50)), 255, -1, cv2.LINE_AA)
    elif kind == "noise":
        gt = np.random.default_rng(draw(seeds)).integers(0, 256, gt.shape, dtype=np.uint8)
    return gt


# --- every source ---


@by_name
@few
@given(gt=ground_truths(), seed=seeds, uniform=st.booleans())
def test_every_source_gives_a_binary_mask_that_depends_on_the_generator_alone(source, gt, seed, uniform):
    image = np.full((3, *gt.shape), 90, np.uint8) if uniform else paint(gt, seed % 7)
    before = gt.copy(), image.copy()
    first = run(source, gt, image, seed)
    assert first.shape == gt.shape
    torch.manual_seed(seed % 1000)  # the state of PyTorch's own generator has no effect
    assert np.array_equal(run(source, gt, image, seed), first)
    assert np.array_equal(gt, before[0]) and np.array_equal(image, before[1])
    if not gt.any():
        assert not first.any()


@by_name
def test_every_source_accepts_views_of_planes(source):
    planes = torch.from_numpy(np.concatenate((paint(DISC), DISC[None], DISC[None])))
    mask = source(planes[-1], planes[:3], np.random.default_rng(5)).numpy()
    assert np.array_equal(mask * np.uint8(255), run(source, DISC, paint(DISC), 5))


@pytest.mark.parametrize("source", [s for s in MASK_SOURCES if s is not exact], ids=lambda source: source.__name__)
def test_other_seeds_give_other_masks(source):
    """On an object of low contrast, so that GrabCut's masks vary too."""
    image = np.random.default_rng(0).integers(0, 120, (3, *DISC.shape), dtype=np.uint8)
    image[0][binarize(DISC)] += np.uint8(15)
    assert len({mask.tobytes() for mask in masks_of(source, DISC, 8, image)}) > 1


# --- errors of the sources ---


def test_a_sam_like_mask_is_right_as_a_whole():
    found = np.array([iou(mask, DISC) for mask in masks_of(sam_like, DISC, 60)])
    assert found.min() > 0.5 and np.median(found) > 0.85
    assert (found < 1).mean() > 0.9  # but rarely perfect


def test_a_sam_like_mask_has_no_details_finer_than_its_grid():
    comb = np.zeros((1024, 1024), np.uint8)
    comb[200:800, 200:800:4] = comb[200:800, 201:800:4] = 255  # slats of two pixels
    edges = [np.count_nonzero(np.diff(mask[500, 230:770])) for mask in masks_of(sam_like, comb, 12)]
    assert max(edges) < np.count_nonzero(np.diff(comb[500, 230:770])) / 4


def test_grabcut_follows_colors():
    assert min(iou(mask, DISC) for mask in masks_of(grabcut, DISC, 4)) > 0.9
    half = paint(DISC)
    background = np.moveaxis(paint(np.zeros_like(DISC), 1), 0, 2)
    half[:, :, 110:] = np.moveaxis(background, 2, 0)[:, :, 110:]  # its right half looks like the background
    for mask in masks_of(grabcut, DISC, 4, half):
        assert iou(mask[:, :108], DISC[:, :108]) > 0.8
        assert mask[:, 113:].mean() < 0.05 * 255


def test_grabcut_stays_inside_the_box_and_finds_something_in_an_image_of_one_color():
    image = np.full((3, *DISC.shape), 77, np.uint8)
    x0, y0, x1, y1 = box_from_mask(DISC)
    for mask in [*masks_of(grabcut, DISC, 4, image), *masks_of(grabcut, DISC, 4)]:
        outside = mask.copy()
        outside[y0 : y1 + 1, x0 : x1 + 1] = 0
        assert mask.any() and not outside.any()


def test_dropping_parts_gives_large_errors():
    masks = masks_of(drop_parts, DISC, 100)
    assert np.mean([iou(mask, DISC) < 0.75 for mask in masks]) > 0.15
    missing = [np.mean(~binarize(mask)[binarize(DISC)]) for mask in masks]
    added = [binarize(mask)[~binarize(DISC)].sum() / binarize(DISC).sum() for mask in masks]
    assert np.mean(np.array(missing) > 0.2) > 0.15
    assert np.mean(np.array(added) > 0.05) > 0.1


def test_leaking_background_adds_similar_parts_of_the_box():
    image = paint(DISC)
    image[1][:, 110:] += np.uint8(200)  # the background is blue on the left, and cyan on the right
    image[1][binarize(DISC)] //= 4
    x0, y0, x1, y1 = box_from_mask(DISC)
    box = np.zeros(DISC.shape, bool)
    box[y0 : y1 + 1, x0 : x1 + 1] = True
    background = box & ~cv2.dilate(DISC, np.ones((9, 9), np.uint8)).view(bool)
    one_side = 0
    for mask in masks_of(leak_background, DISC, 80, image):
        assert not mask[~box].any()
        assert binarize(mask)[binarize(DISC)].mean() >= 0.49
        left, right = (np.mean(mask[:, half][background[:, half]] > 0) for half in (np.s_[:108], np.s_[112:]))
        one_side += abs(left - right) > 0.9
    assert one_side > 8
    masks = masks_of(leak_background, DISC, 80, image)
    kept = np.array([binarize(mask)[binarize(DISC)].mean() for mask in masks])
    added = np.array([binarize(mask)[background].mean() for mask in masks])
    assert (kept > 0.97).mean() > 0.4 and (kept < 0.9).mean() > 0.05
    assert (added > 0.4).mean() > 0.2 and (added < 0.1).mean() > 0.1


def test_exact_is_the_ground_truth():
    soft = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(masks_of(exact, soft, 1)[0], np.where(soft > 128, 255, 0))


def test_box_or_hull_fills_the_box_the_hull_or_an_ellipse_in_the_box():
    gt = DISC.copy()
    gt[60:120, 90:120] = 0  # a hole and a notch in its border
    gt[:60, 100:120] = 0
    x0, y0, x1, y1 = box_from_mask(gt)
    box = np.zeros_like(gt)
    box[y0 : y1 + 1, x0 : x1 + 1] = 255
    kinds = {mask.tobytes(): mask for mask in masks_of(box_or_hull, gt, 40)}.values()
    assert len(kinds) == 3
    about = cv2.dilate(box, np.ones((3, 3), np.uint8))  # the ellipse's ends are rounded to pixels
    assert all(about[mask > 0].all() and iou(mask, box) > 0.6 for mask in kinds)
    containing = [mask for mask in kinds if mask[binarize(gt)].all()]
    assert any(np.array_equal(mask, box) for mask in containing)
    hulls = [mask for mask in containing if not np.array_equal(mask, box)]
    assert any(0.6 * (box > 0).sum() < (mask > 0).sum() < 0.9 * (box > 0).sum() for mask in hulls)


@few
@given(gt=ground_truths(), seed=seeds)
def test_strokes_touch_the_object(gt, seed):
    mask = run(scribble, gt, paint(gt), seed)
    found = binarize(gt)
    assert found.any() or not mask.any()
    if found.sum() > 0.05 * found.size:  # else a stroke may lie between two pixels
        assert (binarize(mask) & found).any()


def test_strokes_connect_points_of_the_object():
    """Of two small squares far apart: a stroke stays inside one, or leads to the other."""
    gt = np.zeros((256, 256), np.uint8)
    gt[20:50, 20:50] = gt[200:230, 200:230] = 255
    near = cv2.dilate(gt, np.ones((61, 61), np.uint8)) > 0
    connecting = 0
    for mask in masks_of(scribble, gt, 30):
        assert near[mask > 0].mean() > 0.2
        connecting += (~near)[mask > 0].any()
    assert connecting > 10


def test_strokes_cover_part_of_the_object_and_stay_near_it():
    reach = cv2.dilate(DISC, np.ones((61, 61), np.uint8))
    for mask in masks_of(scribble, DISC, 30):
        assert not mask[reach == 0].any()
        assert mask[binarize(DISC)].mean() < 0.9 * 255


# --- all sources ---


@few
@given(gt=ground_truths(), seed=seeds)
def test_a_simulated_mask_is_empty_only_without_an_object(gt, seed):
    mask = simulate_mask(gt, paint(gt), seed)
    assert mask.shape == gt.shape and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
    assert mask.any() or not binarize(gt).any()
    assert np.array_equal(mask, simulate_mask(gt, paint(gt), seed))


def test_the_ground_truth_replaces_an_empty_mask():
    nothing = {lambda gt, *_: gt > 255: 1.0}
    found = simulate_mask(DISC, paint(DISC), 0, nothing)
    assert np.array_equal(found, np.where(DISC > 128, 255, 0))


@pytest.mark.parametrize("sources", [MASK_SOURCES, RELIABLE_SOURCES], ids=["all", "reliable"])
def test_probabilities_sum_to_one(sources):
    assert sum(sources.values()) == pytest.approx(1) and sources.keys() <= MASK_SOURCES.keys()


def test_sources_are_drawn_with_their_probabilities():
    """Each source is replaced by one that shows a column of its own."""
    columns = torch.arange(len(MASK_SOURCES))
    counted = {lambda gt, *_, n=n: columns[None] == n: share for n, share in enumerate(MASK_SOURCES.values())}
    gt, rng = torch.full((1, len(MASK_SOURCES)), 255, dtype=torch.uint8), np.random.default_rng(0)
    image = torch.zeros((3, *gt.shape), dtype=torch.uint8)
    drawn = [int(module.simulate_mask(gt, image, rng, counted).argmax()) for _ in range(3000)]
    for number, share in enumerate(MASK_SOURCES.values()):
        assert np.mean(np.array(drawn) == number) == pytest.approx(share, abs=0.04)


# --- boxes ---


@few
@given(gt=ground_truths())
def test_bounds_are_the_tight_box(gt):
    found, box = torch.from_numpy(binarize(gt)), box_from_mask(gt)
    wanted = np.zeros(gt.shape, bool)
    if box is None:
        assert [int(end) for end in bounds(found)] == [0, 0, 0, 0]
    else:
        x0, y0, x1, y1 = box
        assert [int(end) for end in bounds(found)] == [x0, y0, x1 + 1, y1 + 1]
        wanted[y0 : y1 + 1, x0 : x1 + 1] = True
    assert np.array_equal(fill_bounds(found).numpy(), wanted)


# --- holes ---


def test_enclosed_holes_are_filled_and_open_ones_are_not():
    mask = torch.zeros((1, 1, 40, 40))
    mask[..., 5:20, 5:35] = 1
    mask[..., 8:12, 8:12] = 0  # a hole
    mask[..., 10:17, 20:35] = 0  # a bay, open to the right
    mask[..., 0, 38] = 1  # at the border, nothing is enclosed
    filled = mask.clone()
    filled[..., 8:12, 8:12] = 1
    assert torch.equal(module._fill_holes(mask), filled)
    assert torch.equal(module._fill_holes(torch.zeros_like(mask)), torch.zeros_like(mask))
