"""Composites: cutting out, layering, and the scenes made of them."""

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
    estimate_foreground,
    strokes,
)

few = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**32 - 1)

RED, GREEN = (220, 30, 20), (10, 190, 40)


def plain(color: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    """Return a (3, H, W) image of one color."""
    return np.tile(np.uint8(color)[:, None, None], (1, height, width))


def sample(seed: int, height: int, width: int, in_ch: int = 3) -> np.ndarray:
    """Return planes of an image of noise, with an object that lies anywhere, of any size; now and then with none."""
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 256, (in_ch + 1, height, width), dtype=np.uint8)
    planes[-1] = 0
    if seed % 7:
        center = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(planes[-1], center, int(rng.integers(1, max(height, width))), 255, -1, cv2.LINE_AA)
    return planes


def drawn(height: int, width: int, start: int = 0) -> Callable[[], np.ndarray]:
    numbers = iter(range(start, start + 1000))
    return lambda: sample(next(numbers), height, width)


# --- cutting out ---


def test_the_objects_own_color_is_found_where_its_border_is_mixed_with_the_background():
    rows, columns = np.mgrid[:160, :160]
    alpha = np.clip((50 - np.hypot(rows - 80, columns - 80)) / 12 + 0.5, 0, 1).astype(np.float32)  # 12 pixels soft
    mixed = alpha[..., None] * np.array(RED) + (1 - alpha[..., None]) * np.array(GREEN)
    found = estimate_foreground(np.round(mixed).astype(np.uint8), alpha)
    assert found.shape == (160, 160, 3) and found.dtype == np.uint8
    off = np.abs(found.astype(int) - RED).max(axis=2)
    assert off[alpha > 0.1].max() < 25 and off[alpha > 0.9].max() < 6
    assert (
        np.abs(mixed - RED).max(axis=2)[(alpha > 0.1) & (alpha < 0.5)].min() > 80
    )  # of which the picture shows little


def test_an_object_without_a_border_keeps_its_colors():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = estimate_foreground(image, np.ones((40, 50), np.float32))
    assert np.abs(found.astype(int) - image).max() <= 1


def test_scaled_down_an_object_gets_no_dark_border():
    """Pixels of the border are averaged with ones beside the object, which must not be black."""
    gt = cv2.circle(np.zeros((900, 900), np.uint8), (450, 450), 360, 255, -1)
    cut = cut_out(np.concatenate((plain(RED, 900, 900), gt[None])))
    small = module._transform(cut, 50, np.random.default_rng(0), turn=0)
    assert np.abs(small.color[small.alpha > 0].astype(int) - RED).max() < 8


def test_a_cut_out_is_the_object_with_a_little_around_it():
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


def test_a_cut_out_at_the_border_is_cut_there():
    planes = np.concatenate((plain(RED, 70, 60), np.full((1, 70, 60), 255, np.uint8)))
    cut = cut_out(planes)
    assert cut.alpha.shape == (70, 60) and (cut.alpha == 1).all()


@pytest.mark.parametrize("size", [0, 1, 5])
def test_what_is_too_small_is_not_cut_out(size):
    planes = sample(1, 90, 120)
    planes[-1] = 0
    planes[-1, 10:70, 30 : 30 + size] = 255  # a long line still is none
    assert cut_out(planes) is None


# --- layers ---

LOOK = module._Look(tint=0.0, harmony=0.0, soft=0.0, shadow=0.0, texture=None)


def square(color: tuple[int, int, int], side: int, alpha: float = 1.0) -> Cutout:
    return Cutout(np.moveaxis(plain(color, side, side), 0, 2).copy(), np.full((side, side), alpha, np.float32))


def put(scene: module._Scene, cut: Cutout, center: tuple[float, float], chosen: bool, **look: float) -> None:
    scene.put(cut, center, chosen, LOOK._replace(**look), np.random.default_rng(0))


def make_scene() -> module._Scene:
    return module._Scene(np.moveaxis(plain(GREEN, 60, 80), 0, 2))


def test_the_target_is_the_alpha_of_what_is_chosen():
    scene = make_scene()
    put(scene, square(RED, 20, 0.25), (30, 20), True)
    wanted = np.zeros((60, 80), np.float32)
    wanted[10:30, 20:40] = 0.25
    assert scene.target == pytest.approx(wanted)
    put(scene, square(RED, 10), (60, 40), False)  # beside it
    assert scene.target == pytest.approx(wanted)
    assert scene.image[35:45, 55:65] == pytest.approx(np.full((10, 10, 3), RED), abs=1)


def test_later_layers_hide_what_is_behind_them():
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


def test_what_lies_partly_or_wholly_outside():
    scene = make_scene()
    put(scene, square(RED, 20), (0, 60), True)
    assert np.array_equal(np.argwhere(scene.target)[[0, -1]], [[50, 0], [59, 9]]) and scene.target.sum() == 100
    before = scene.image.copy(), scene.target.copy()
    for center in ((-11, 30), (200, 30), (40, -50), (40, 71)):
        put(scene, square(RED, 20), center, True)
    assert np.array_equal(scene.image, before[0]) and np.array_equal(scene.target, before[1])


def test_a_shadow_darkens_and_is_no_target():
    rows, columns = np.mgrid[:40, :40]
    disc = (np.hypot(rows - 20, columns - 20) < 10).astype(np.float32)
    scene, plain_scene = make_scene(), make_scene()
    cut = Cutout(square(RED, 40).color, disc)
    put(scene, cut, (40, 30), True, shadow=0.6)
    put(plain_scene, cut, (40, 30), True)
    assert np.array_equal(scene.target, plain_scene.target)
    around = scene.target == 0
    assert (scene.image[around] <= plain_scene.image[around]).all()
    assert (scene.image[around] < plain_scene.image[around] - 1).any()
    assert np.array_equal(scene.image[~around], plain_scene.image[~around])


# --- strokes ---


@few
@given(side=st.integers(4, 200), seed=seeds)
def test_strokes_are_an_alpha(side, seed):
    alpha = strokes(side, np.random.default_rng(seed))
    assert alpha.shape == (side, side) and alpha.dtype == np.float32
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert np.array_equal(alpha, strokes(side, np.random.default_rng(seed)))


def test_strokes_are_thin_and_there():
    shares = [strokes(200, np.random.default_rng(seed)).mean() for seed in range(30)]
    assert min(shares) > 0 and np.median(shares) < 0.4


# --- scenes ---


@pytest.mark.parametrize("build", SCENES, ids=lambda build: build.__name__)
@few
@given(height=st.integers(12, 90), width=st.integers(12, 90), seed=seeds, nothing=st.booleans())
def test_any_scene_of_any_size(build, height, width, seed, nothing):
    """Whether objects are there, tiny, larger than the picture, or none at all."""
    background = sample(seed, height, width)[:3]
    empty = np.concatenate((background, np.zeros((1, height, width), np.uint8)))
    before = background.copy()

    def make() -> CopyPasteSample:
        draw = (lambda: empty) if nothing else drawn(height, width, seed % 1000)
        return copy_paste(background, draw, np.random.default_rng(seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCENES", {build: 1.0})
        image, target, plain_photo = make()
        again = make()
    assert image.shape == (3, height, width) and image.dtype == np.uint8
    assert target.shape == (height, width) and target.dtype == np.uint8
    assert np.array_equal(image, again[0]) and np.array_equal(target, again[1])
    assert np.array_equal(background, before)
    assert plain_photo == (build is module._image_region)
    if nothing and build not in (module._thin_parts, module._image_region):  # which need no objects
        assert not target.any()


def test_regions_end_where_the_photograph_changes(monkeypatch):
    """A photograph of four even quarters: what is named is one or two of them, give or take some pixels."""
    monkeypatch.setattr(module, "SCENES", {module._image_region: 1.0})
    monkeypatch.setattr(module, "_expose", lambda image, _: np.round(image).astype(np.uint8))
    monkeypatch.setattr(module, "_backdrop", lambda image, rng, sharp: np.moveaxis(image, 0, 2).copy())
    quarters = np.zeros((3, 128, 160), np.uint8)
    for number, color in enumerate((RED, GREEN, (20, 30, 200), (240, 240, 240))):
        top, left = 64 * (number // 2), 80 * (number % 2)
        quarters[:, top : top + 64, left : left + 80] = np.array(color)[:, None, None]
    named = set()
    for seed in range(30):
        image, target, _ = copy_paste(quarters, lambda: quarters, np.random.default_rng(seed))
        assert np.array_equal(image, quarters)  # nothing is pasted
        if target.any():
            corners = [target[32 + 64 * (n // 2), 40 + 80 * (n % 2)] for n in range(4)]
            wanted = np.kron(np.reshape(corners, (2, 2)), np.ones((64, 80))) > 128
            sure = np.ones((128, 160), bool)
            sure[58:70] = sure[:, 74:86] = False  # where colors change, either side may have the pixel
            assert np.array_equal((target > 128)[sure], wanted[sure])
            named.add(tuple(corner > 128 for corner in corners))
    assert len(named) >= 4


def test_an_even_photograph_has_no_regions(monkeypatch):
    monkeypatch.setattr(module, "SCENES", {module._image_region: 1.0})
    flat = plain(GREEN, 64, 64)
    for seed in range(5):
        assert not copy_paste(flat, lambda: flat, np.random.default_rng(seed)).gt.any()


def test_scenes_take_what_a_cache_holds():
    """Read-only planes."""
    planes = sample(3, 100, 100)
    planes.flags.writeable = False
    for seed in range(12):
        copy_paste(planes[:3], lambda: planes, np.random.default_rng(seed))


@pytest.mark.parametrize("build", [module._several, module._crowd], ids=["few", "many"])
def test_the_target_is_where_the_image_shows_the_objects(monkeypatch, build):
    """Objects of one color, all of them named, photographed without any loss: each pixel tells its alpha."""
    monkeypatch.setattr(module, "SCENES", {build: 1.0})
    monkeypatch.setattr(module, "_look", lambda *_: LOOK)
    monkeypatch.setattr(module, "_choose", lambda number, _: np.ones(number, bool))
    monkeypatch.setattr(module, "_expose", lambda image, _: np.round(image).astype(np.uint8))
    gt = cv2.circle(np.zeros((128, 160), np.uint8), (80, 60), 40, 255, -1)
    seen = 0
    for seed in range(15):
        planes = np.concatenate((plain(RED, 128, 160), gt[None]))
        image, target, _ = copy_paste(plain(GREEN, 128, 160), lambda planes=planes: planes, np.random.default_rng(seed))
        share = target[..., None] / 255
        wanted = share * np.array(RED) + (1 - share) * np.array(GREEN)
        assert np.abs(np.moveaxis(image, 0, 2) - wanted).max() < 4
        seen += 0.01 < share.mean() < 0.95
    assert seen > 10


def test_a_photograph_alone_is_seen_from_nearer_together_with_its_target(monkeypatch):
    monkeypatch.setattr(module, "SCENES", {module._own_object: 1.0})
    monkeypatch.setattr(module, "_recolor", lambda color, *_, **__: color)
    monkeypatch.setattr(module, "_expose", lambda image, _: np.round(image).astype(np.uint8))
    gt = cv2.circle(np.zeros((128, 160), np.uint8), (60, 50), 20, 255, -1)
    share = gt[..., None] / 255
    own = np.moveaxis(share * np.array(RED) + (1 - share) * np.array(GREEN), 2, 0).round().astype(np.uint8)
    planes = np.concatenate((own, gt[None]))
    sizes, cut = [], 0
    for seed in range(30):
        image, target, faithful = copy_paste(plain((0, 0, 255), 128, 160), lambda: planes, np.random.default_rng(seed))
        assert not faithful
        share = target[..., None] / 255
        assert np.abs(np.moveaxis(image, 0, 2) - (share * np.array(RED) + (1 - share) * np.array(GREEN))).max() < 4
        sizes.append((target > 128).mean() / (gt > 128).mean())
        edges = target[0], target[-1], target[:, 0], target[:, -1]
        cut += max(edge.mean() for edge in edges) > 30
    assert min(sizes) > 0.9 and max(sizes) > 2  # never from farther away
    assert 0 < cut < 20


def test_beside_a_photographs_own_object_another_is_named(monkeypatch):
    monkeypatch.setattr(module, "SCENES", {module._small_target: 1.0})
    monkeypatch.setattr(module, "_look", lambda *_: LOOK)
    monkeypatch.setattr(module, "_recolor", lambda color, *_, **__: color)
    monkeypatch.setattr(module, "_expose", lambda image, _: np.round(image).astype(np.uint8))
    gt = cv2.circle(np.zeros((128, 160), np.uint8), (60, 50), 20, 255, -1)
    share = gt[..., None] / 255
    own = np.moveaxis(share * np.array(RED) + (1 - share) * np.array(GREEN), 2, 0).round().astype(np.uint8)
    blue = np.concatenate((plain((0, 0, 255), 128, 160), gt[None]))
    named = shown = 0
    for seed in range(20):
        first = iter([np.concatenate((own, gt[None]))])
        image, target, faithful = copy_paste(own, lambda first=first: next(first, blue), np.random.default_rng(seed))
        assert not faithful
        assert image[2][target > 200].min(initial=255) > 190 and image[2][target < 50].max() < 100  # all blue there is
        named += (target > 128).any()
        shown += (image[0] > 150).sum() > 0.5 * (gt > 128).sum()
    assert named == 20 and shown > 12


def test_of_touching_objects_that_are_alike_one_is_named(monkeypatch):
    monkeypatch.setattr(module, "SCENES", {module._touching: 1.0})
    monkeypatch.setattr(module, "_look", lambda *_: LOOK)
    monkeypatch.setattr(module, "_expose", lambda image, _: np.round(image).astype(np.uint8))
    gt = cv2.circle(np.zeros((128, 160), np.uint8), (80, 60), 40, 255, -1)
    near = shown = 0
    for seed in range(20):
        planes = np.concatenate((plain(RED, 128, 160), gt[None]))
        image, target, _ = copy_paste(plain(GREEN, 128, 160), lambda planes=planes: planes, np.random.default_rng(seed))
        discs = image[0] > 100
        named = target > 128
        assert discs[named].all()
        others = discs & ~cv2.dilate(named.astype(np.uint8), np.ones((3, 3))).astype(bool)
        shown += 0.5 * named.sum() < others.sum() < 2.6 * named.sum()
        near += (cv2.dilate(named.astype(np.uint8), np.ones((25, 25))) * others).any()
    assert shown > 12 and near > 15


def test_targets_stand_out_from_what_is_around_them(monkeypatch):
    """Of scenes as they are, with all that hides where things were pasted; the photograph itself is even."""
    builders = [build for build in SCENES if build not in (module._image_region, module._small_target)]
    monkeypatch.setattr(module, "SCENES", dict.fromkeys(builders, 1 / len(builders)))
    gt = cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), 40, 255, -1)
    planes = np.concatenate((plain(RED, 128, 128), gt[None]))
    inside, outside, some = [], [], []
    for seed in range(60):
        image, target, _ = copy_paste(plain(GREEN, 128, 128), lambda: planes, np.random.default_rng(seed))
        off = np.abs(image - np.array(GREEN)[:, None, None]).mean(axis=0)
        if 0 < (target > 128).mean() < 1:
            inside.append(off[target > 128].mean())
            outside.append(off[target <= 128].mean())
            some.append((target > 128).mean())
    assert len(some) > 40 and np.median(some) > 0.01
    assert np.median(np.subtract(inside, outside)) > 20
    assert (np.array(inside) > outside).mean() > 0.7


def test_some_scenes_hold_what_is_not_named():
    """Which is what teaches the network to look at the coarse mask."""
    gt = cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), 40, 255, -1)
    planes = np.concatenate((plain(RED, 128, 128), gt[None]))
    unnamed = 0
    for seed in range(40):
        image, target, _ = copy_paste(plain(GREEN, 128, 128), lambda: planes, np.random.default_rng(seed))
        reddish = image[0].astype(int) > image[1] + 60
        unnamed += (reddish & (target == 0)).mean() > 0.02
    assert 4 < unnamed < 36
