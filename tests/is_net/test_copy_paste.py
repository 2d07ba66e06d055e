"""Copy-paste augmentation: cutting out, pasting, and the scenes."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from IS_Net.synthesis import copy_paste as module
from IS_Net.synthesis.copy_paste import (
    SCENES,
    CopyPasteSample,
    Cutout,
    copy_paste,
    cut_out,
    draw_strokes,
)

few = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)

RED, GREEN = (220, 30, 20), (10, 190, 40)


def uniform(color: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    """Return a (3, H, W) image of one color."""
    return np.tile(np.uint8(color)[:, None, None], (1, height, width))


def sample(seed: int, height: int, width: int, in_ch: int = 3) -> np.ndarray:
    """Return planes of a noise image with an object of any size at any place, or sometimes with none."""
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 256, (in_ch + 1, height, width), dtype=np.uint8)
    planes[-1] = 0
    if seed % 7:
        center = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(planes[-1], center, int(rng.integers(1, max(height, width))), 255, -1, cv2.LINE_AA)
    return planes


def sample_source(height: int, width: int, start: int = 0) -> Callable[[], np.ndarray]:
    numbers = iter(range(start, start + 1000))
    return lambda: sample(next(numbers), height, width)


# --- cutting out ---


def test_scaling_down_gives_no_dark_border():
    """Border pixels are averaged with pixels beside the object, which must not be black."""
    gt = cv2.circle(np.zeros((900, 900), np.uint8), (450, 450), 360, 255, -1)
    cut = cut_out(np.concatenate((uniform(RED, 900, 900), gt[None])))
    small = module._transform(cut, 50, np.random.default_rng(0), max_angle=0)
    assert np.abs(small.color[small.alpha > 0].astype(int) - RED).max() < 8


def test_a_cut_out_is_the_object_with_a_small_margin():
    planes = sample(1, 90, 120, in_ch=5)
    planes[-1] = 0
    planes[-1, 30:60, 40:95] = 255
    cut = cut_out(planes)
    height, width = cut.alpha.shape
    assert 30 <= height <= 50 and 55 <= width <= 75
    assert cut.color.shape == (height, width, 3) and cut.color.dtype == np.uint8
    assert cut.alpha.dtype == np.float32 and cut.alpha.sum() == 30 * 55
    solid = cut.color[cut.alpha == 1].reshape(30, 55, 3)
    assert np.abs(solid.astype(int) - np.moveaxis(planes[:3, 30:60, 40:95], 0, 2)).max() <= 1


def test_the_margin_ends_at_the_border_of_the_image():
    planes = np.concatenate((uniform(RED, 70, 60), np.full((1, 70, 60), 255, np.uint8)))
    cut = cut_out(planes)
    assert cut.alpha.shape == (70, 60) and (cut.alpha == 1).all()


@pytest.mark.parametrize("size", [0, 1, 5])
def test_objects_that_are_too_small_are_not_cut_out(size):
    planes = sample(1, 90, 120)
    planes[-1] = 0
    planes[-1, 10:70, 30 : 30 + size] = 255  # a long line is not an object either
    assert cut_out(planes) is None


# --- layers ---

LOOK = module._Look(jitter=0.0, harmony=0.0, blur=0.0, shadow=0.0, texture=None)


def square(color: tuple[int, int, int], side: int, alpha: float = 1.0) -> Cutout:
    return Cutout(np.moveaxis(uniform(color, side, side), 0, 2).copy(), np.full((side, side), alpha, np.float32))


def put(scene: module._Scene, cut: Cutout, center: tuple[float, float], is_target: bool, **look: float) -> None:
    scene.paste_onto(cut, center, is_target, LOOK._replace(**look), np.random.default_rng(0))


def make_scene() -> module._Scene:
    return module._Scene(np.moveaxis(uniform(GREEN, 60, 80), 0, 2))


def test_the_target_is_the_alpha_of_the_cut_outs_that_are_targets():
    scene = make_scene()
    put(scene, square(RED, 20, 0.25), (30, 20), True)
    wanted = np.zeros((60, 80), np.float32)
    wanted[10:30, 20:40] = 0.25
    assert scene.target == pytest.approx(wanted)
    put(scene, square(RED, 10), (60, 40), False)  # beside it
    assert scene.target == pytest.approx(wanted)
    assert scene.image[35:45, 55:65] == pytest.approx(np.full((10, 10, 3), RED), abs=1)


def test_later_cut_outs_hide_earlier_ones():
    scene = make_scene()
    put(scene, square(RED, 20), (30, 20), True)
    put(scene, square((9, 9, 200), 20), (40, 20), False)  # hides the right half
    put(scene, square((250, 250, 9), 6, 0.5), (24, 20), False)  # lets half of it through
    put(scene, square(RED, 8), (45, 20), True)  # and the hiding one is hidden
    wanted = np.zeros((60, 80), np.float32)
    wanted[10:30, 20:30] = 1
    wanted[17:23, 21:27] = 0.5
    wanted[16:24, 41:49] = 1
    assert scene.target == pytest.approx(wanted)


def test_cut_outs_partly_or_wholly_outside_the_scene():
    scene = make_scene()
    put(scene, square(RED, 20), (0, 60), True)
    assert np.array_equal(np.argwhere(scene.target)[[0, -1]], [[50, 0], [59, 9]]) and scene.target.sum() == 100
    before = scene.image.copy(), scene.target.copy()
    for center in ((-11, 30), (200, 30), (40, -50), (40, 71)):
        put(scene, square(RED, 20), center, True)
    assert np.array_equal(scene.image, before[0]) and np.array_equal(scene.target, before[1])


def test_a_shadow_darkens_the_image_and_is_not_part_of_the_target():
    rows, columns = np.mgrid[:40, :40]
    disc = (np.hypot(rows - 20, columns - 20) < 10).astype(np.float32)
    scene, without_shadow = make_scene(), make_scene()
    cut = Cutout(square(RED, 40).color, disc)
    put(scene, cut, (40, 30), True, shadow=0.6)
    put(without_shadow, cut, (40, 30), True)
    assert np.array_equal(scene.target, without_shadow.target)
    around = scene.target == 0
    assert (scene.image[around] <= without_shadow.image[around]).all()
    assert (scene.image[around] < without_shadow.image[around] - 1).any()
    assert np.array_equal(scene.image[~around], without_shadow.image[~around])


# --- strokes ---


@few
@given(side=st.integers(4, 200), seed=seeds)
def test_strokes_are_an_alpha_matte(side, seed):
    alpha = draw_strokes(side, np.random.default_rng(seed))
    assert alpha.shape == (side, side) and alpha.dtype == np.float32
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert np.array_equal(alpha, draw_strokes(side, np.random.default_rng(seed)))


def test_strokes_are_thin_and_never_missing():
    shares = [draw_strokes(200, np.random.default_rng(seed)).mean() for seed in range(30)]
    assert min(shares) > 0 and np.median(shares) < 0.4


# --- scenes ---


@pytest.mark.parametrize("build", SCENES, ids=lambda build: build.__name__)
@few
@given(height=st.integers(12, 90), width=st.integers(12, 90), seed=seeds, nothing=st.booleans())
def test_any_scene_of_any_size(build, height, width, seed, nothing):
    """Objects may be tiny, larger than the image, or missing."""
    background = sample(seed, height, width)[:3]
    empty = np.concatenate((background, np.zeros((1, height, width), np.uint8)))
    before = background.copy()

    def make() -> CopyPasteSample:
        draw = (lambda: empty) if nothing else sample_source(height, width, seed % 1000)
        return copy_paste(background, draw, np.random.default_rng(seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCENES", {build: 1.0})
        image, target, mask_only_target = make()
        again = make()
    assert image.shape == (3, height, width) and image.dtype == np.uint8
    assert target.shape == (height, width) and target.dtype == np.uint8
    assert np.array_equal(image, again[0]) and np.array_equal(target, again[1])
    assert np.array_equal(background, before)
    assert mask_only_target == (build is module._image_region)
    if nothing and build not in (module._thin_parts, module._image_region):  # these need no objects
        assert not target.any()


def test_regions_end_where_the_photograph_changes(monkeypatch):
    """A photograph of four uniform quarters: the target is one or more of them, up to some pixels at the borders."""
    monkeypatch.setattr(module, "SCENES", {module._image_region: 1.0})
    monkeypatch.setattr(module, "_degrade", lambda image, _: np.round(image).astype(np.uint8))
    monkeypatch.setattr(module, "_random_background", lambda image, rng, sharp: np.moveaxis(image, 0, 2).copy())
    quarters = np.zeros((3, 128, 160), np.uint8)
    for number, color in enumerate((RED, GREEN, (20, 30, 200), (240, 240, 240))):
        top, left = 64 * (number // 2), 80 * (number % 2)
        quarters[:, top : top + 64, left : left + 80] = np.array(color)[:, None, None]
    chosen = set()
    for seed in range(30):
        image, target, _ = copy_paste(quarters, lambda: quarters, np.random.default_rng(seed))
        assert np.array_equal(image, quarters)  # nothing is pasted
        if target.any():
            corners = [target[32 + 64 * (n // 2), 40 + 80 * (n % 2)] for n in range(4)]
            wanted = np.kron(np.reshape(corners, (2, 2)), np.ones((64, 80))) > 128
            sure = np.ones((128, 160), bool)
            sure[58:70] = sure[:, 74:86] = False  # at a change of color, a pixel may belong to either side
            assert np.array_equal((target > 128)[sure], wanted[sure])
            chosen.add(tuple(corner > 128 for corner in corners))
    assert len(chosen) >= 4


def test_a_uniform_photograph_has_no_regions(monkeypatch):
    monkeypatch.setattr(module, "SCENES", {module._image_region: 1.0})
    flat = uniform(GREEN, 64, 64)
    for seed in range(5):
        assert not copy_paste(flat, lambda: flat, np.random.default_rng(seed)).gt.any()


def test_scenes_accept_planes_of_a_cache():
    """They are read-only."""
    planes = sample(3, 100, 100)
    planes.flags.writeable = False
    for seed in range(12):
        copy_paste(planes[:3], lambda: planes, np.random.default_rng(seed))


@pytest.mark.parametrize("build", [module._several, module._crowd], ids=["few", "many"])
def test_image_and_ground_truth_agree(monkeypatch, build):
    """Objects of one color, all of them targets, without degradation: each pixel shows its alpha."""
    monkeypatch.setattr(module, "SCENES", {build: 1.0})
    monkeypatch.setattr(module, "_random_look", lambda *_: LOOK)
    monkeypatch.setattr(module, "_choose_targets", lambda number, _: np.ones(number, bool))
    monkeypatch.setattr(module, "_degrade", lambda image, _: np.round(image).astype(np.uint8))
    gt = cv2.circle(np.zeros((128, 160), np.uint8), (80, 60), 40, 255, -1)
    seen = 0
    for seed in range(15):
        planes = np.concatenate((uniform(RED, 128, 160), gt[None]))
        image, target, _ = copy_paste(
            uniform(GREEN, 128, 160), lambda planes=planes: planes, np.random.default_rng(seed)
        )
        share = target[..., None] / 255
        wanted = share * np.array(RED) + (1 - share) * np.array(GREEN)
        assert np.abs(np.moveaxis(image, 0, 2) - wanted).max() < 4
        seen += 0.01 < share.mean() < 0.95
    assert seen > 10


def test_an_own_object_is_cropped_together_with_its_ground_truth(monkeypatch):
    monkeypatch.setattr(module, "SCENES", {module._own_object: 1.0})
    monkeypatch.setattr(module, "_jitter_color", lambda color, *_, **__: color)
    monkeypatch.setattr(module, "_degrade", lambda image, _: np.round(image).astype(np.uint8))
    gt = cv2.circle(np.zeros((128, 160), np.uint8), (60, 50), 20, 255, -1)
    share = gt[..., None] / 255
    own = np.moveaxis(share * np.array(RED) + (1 - share) * np.array(GREEN), 2, 0).round().astype(np.uint8)
    planes = np.concatenate((own, gt[None]))
    sizes, cut = [], 0
    for seed in range(30):
        image, target, mask_only_target = copy_paste(
            uniform((0, 0, 255), 128, 160), lambda: planes, np.random.default_rng(seed)
        )
        assert not mask_only_target
        share = target[..., None] / 255
        assert np.abs(np.moveaxis(image, 0, 2) - (share * np.array(RED) + (1 - share) * np.array(GREEN))).max() < 4
        sizes.append((target > 128).mean() / (gt > 128).mean())
        edges = target[0], target[-1], target[:, 0], target[:, -1]
        cut += max(edge.mean() for edge in edges) > 30
    assert min(sizes) > 0.9 and max(sizes) > 2  # never scaled down
    assert 0 < cut < 20


def test_a_small_target_lies_beside_the_photographs_own_object(monkeypatch):
    monkeypatch.setattr(module, "SCENES", {module._small_target: 1.0})
    monkeypatch.setattr(module, "_random_look", lambda *_: LOOK)
    monkeypatch.setattr(module, "_jitter_color", lambda color, *_, **__: color)
    monkeypatch.setattr(module, "_degrade", lambda image, _: np.round(image).astype(np.uint8))
    gt = cv2.circle(np.zeros((128, 160), np.uint8), (60, 50), 20, 255, -1)
    share = gt[..., None] / 255
    own = np.moveaxis(share * np.array(RED) + (1 - share) * np.array(GREEN), 2, 0).round().astype(np.uint8)
    blue = np.concatenate((uniform((0, 0, 255), 128, 160), gt[None]))
    targets = shown = 0
    for seed in range(20):
        first = iter([np.concatenate((own, gt[None]))])
        image, target, mask_only_target = copy_paste(
            own, lambda first=first: next(first, blue), np.random.default_rng(seed)
        )
        assert not mask_only_target
        assert image[2][target > 200].min(initial=255) > 190 and image[2][target < 50].max() < 100  # all that is blue
        targets += (target > 128).any()
        shown += (image[0] > 150).sum() > 0.5 * (gt > 128).sum()
    assert targets == 20 and shown > 12


def test_one_of_the_touching_objects_is_the_target(monkeypatch):
    monkeypatch.setattr(module, "SCENES", {module._touching: 1.0})
    monkeypatch.setattr(module, "_random_look", lambda *_: LOOK)
    monkeypatch.setattr(module, "_degrade", lambda image, _: np.round(image).astype(np.uint8))
    gt = cv2.circle(np.zeros((128, 160), np.uint8), (80, 60), 40, 255, -1)
    near = shown = 0
    for seed in range(20):
        planes = np.concatenate((uniform(RED, 128, 160), gt[None]))
        image, target, _ = copy_paste(
            uniform(GREEN, 128, 160), lambda planes=planes: planes, np.random.default_rng(seed)
        )
        discs = image[0] > 100
        is_target = target > 128
        assert discs[is_target].all()
        others = discs & ~cv2.dilate(is_target.astype(np.uint8), np.ones((3, 3))).astype(bool)
        shown += 0.5 * is_target.sum() < others.sum() < 2.6 * is_target.sum()
        near += (cv2.dilate(is_target.astype(np.uint8), np.ones((25, 25))) * others).any()
    assert shown > 12 and near > 15


def test_targets_differ_from_their_surroundings(monkeypatch):
    """Complete scenes, degradation included, in front of a uniform photograph."""
    builders = [build for build in SCENES if build not in (module._image_region, module._small_target)]
    monkeypatch.setattr(module, "SCENES", dict.fromkeys(builders, 1 / len(builders)))
    gt = cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), 40, 255, -1)
    planes = np.concatenate((uniform(RED, 128, 128), gt[None]))
    inside, outside, some = [], [], []
    for seed in range(60):
        image, target, _ = copy_paste(uniform(GREEN, 128, 128), lambda: planes, np.random.default_rng(seed))
        off = np.abs(image - np.array(GREEN)[:, None, None]).mean(axis=0)
        if 0 < (target > 128).mean() < 1:
            inside.append(off[target > 128].mean())
            outside.append(off[target <= 128].mean())
            some.append((target > 128).mean())
    assert len(some) > 40 and np.median(some) > 0.01
    assert np.median(np.subtract(inside, outside)) > 20
    assert (np.array(inside) > outside).mean() > 0.7


def test_some_scenes_contain_distractors():
    """They teach the network to look at the coarse mask."""
    gt = cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), 40, 255, -1)
    planes = np.concatenate((uniform(RED, 128, 128), gt[None]))
    with_distractor = 0
    for seed in range(40):
        image, target, _ = copy_paste(uniform(GREEN, 128, 128), lambda: planes, np.random.default_rng(seed))
        reddish = image[0].astype(int) > image[1] + 60
        with_distractor += (reddish & (target == 0)).mean() > 0.02
    assert 4 < with_distractor < 36
