"""Copy-paste augmentation: cutting out, pasting, the scenes, and what a camera does to them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from IS_Net.preprocess import Window, box_from_mask
from IS_Net.synthesis import copy_paste as module
from IS_Net.synthesis import render as render_module
from IS_Net.synthesis.composer import Composer
from IS_Net.synthesis.copy_paste import (
    MIN_SIDE,
    SAME_COLORS,
    SCENES,
    UNCHANGED,
    Look,
    Object,
    Photo,
    Pose,
    Scene,
    Strokes,
    draw_pose,
    draw_scene,
    draw_strokes,
    pyramid_level,
)
from IS_Net.synthesis.foreground import premultiplied_foreground
from IS_Net.synthesis.jpeg import compress
from IS_Net.synthesis.regions import draw_region, find_region
from IS_Net.synthesis.render import render

few = settings(deadline=None, max_examples=8)
seeds = st.integers(0, 2**32 - 1)

RED, GREEN, BLUE = (220, 30, 20), (10, 190, 40), (0, 0, 255)
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")
AS_IT_IS = Pose((1.0, 1.0), 0.0, (0.0, 0.0))


def uniform(color: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    """Return a (3, H, W) image of one color."""
    return np.tile(np.uint8(color)[:, None, None], (1, height, width))


def disc(height: int, width: int, center: tuple[int, int], radius: int) -> np.ndarray:
    return cv2.circle(np.zeros((height, width), np.uint8), center, radius, 255, -1, cv2.LINE_AA)


def mixed(color: tuple[int, int, int], background: tuple[int, int, int], gt: np.ndarray) -> np.ndarray:
    """Return the planes of an object of one color in front of another color, mixed where the alpha is soft."""
    share = gt[None] / 255
    image = share * np.reshape(color, (3, 1, 1)) + (1 - share) * np.reshape(background, (3, 1, 1))
    return np.concatenate((image.round().astype(np.uint8), gt[None]))


def noise_sample(seed: int, height: int, width: int) -> np.ndarray:
    """Return planes of a noise image with an object of any size at any place, or sometimes with none."""
    rng = np.random.default_rng(seed)
    planes = rng.integers(0, 256, (4, height, width), dtype=np.uint8)
    planes[-1] = 0
    if seed % 7:
        center = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(planes[-1], center, int(rng.integers(1, max(height, width))), 255, -1, cv2.LINE_AA)
    return planes


class Photos:
    """Photographs to make scenes of: the last one is the background, the others have objects."""

    def __init__(self, samples: Sequence[np.ndarray], background: np.ndarray) -> None:
        self.samples = [torch.from_numpy(np.array(planes)) for planes in samples]
        self.background = torch.from_numpy(np.array(background))

    def load(self, photo: Photo, window: Window) -> Tensor:
        planes = self.background if photo.is_background else self.samples[photo.index]
        rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
        found = planes[None, :, rows, columns]
        assert found.shape[-2:] == window.size  # inside the photograph
        return found

    def object(self, index: int) -> Object | None:
        box = box_from_mask(self.samples[index][-1].numpy())
        return None if box is None or min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE else Object(index, box)

    def scene(self) -> Scene:
        """Return the background as it is."""
        size = tuple(self.background.shape[1:])
        return Scene(size, Photo(0, is_background=True), Window(0, 0, *size))

    def drawn(self, seed: int) -> Scene:
        """Return a scene of random objects."""
        rng = np.random.default_rng(seed)
        size = tuple(self.background.shape[1:])
        photo = Photo(0, is_background=True)
        return draw_scene(photo, size, lambda: self.object(int(rng.integers(len(self.samples)))), rng)

    def render(self, *scenes: Scene) -> tuple[np.ndarray, np.ndarray]:
        """Return the image and target of a scene, or those of a batch."""
        images, targets = render(scenes, self.load, CPU)
        assert images.dtype == targets.dtype == torch.uint8
        assert images.shape[1:] == (3, *scenes[0].size) and targets.shape[1:] == (1, *scenes[0].size)
        found = images.numpy(), targets[:, 0].numpy()
        return found if len(scenes) > 1 else (found[0][0], found[1][0])


def add(scene: Scene, layer: Object, center: tuple[float, float], is_target: bool, **look: float) -> None:
    """Paste an object in its own size."""
    x0, y0, x1, y1 = layer.box
    pose = AS_IT_IS._replace(extent=(x1 + 1 - x0, y1 + 1 - y0))
    scene.paste(scene.add(layer), pose, center, is_target, Look(**look), np.random.default_rng(0))


# --- cutting out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(150, 170), (64, 64), (37, 53)])
def test_nothing_of_the_background_is_left_in_a_cut_out(size):
    gt = cv2.GaussianBlur(disc(*size, (size[1] // 2, size[0] // 2), min(size) // 3), (0, 0), 2)
    planes = torch.from_numpy(mixed(RED, BLUE, gt))[None].float()
    alpha = planes[:, 3:] / 255
    found = premultiplied_foreground(planes[:, :3], alpha)
    assert torch.equal(found[:, 3:], alpha)
    wanted = alpha * torch.tensor(RED)[None, :, None, None]
    assert (found[:, :3] - wanted).abs().max() < 14 and (found[:, :3] - wanted).abs().mean() < 1.2
    assert not found[(alpha == 0).expand_as(found)].any()


def test_a_window_around_the_object_gives_the_same_cut_out():
    planes = noise_sample(1, 400, 400)
    planes[-1] = cv2.GaussianBlur(disc(400, 400, (250, 200), 40), (0, 0), 3)
    window = render_module._surroundings(box_from_mask(planes[-1] > 0), (400, 400))
    assert window.size != (400, 400)
    whole = torch.from_numpy(planes)[None].float()
    part = render_module._crop(whole, window)
    found = premultiplied_foreground(part[:, :3], part[:, 3:] / 255)
    wanted = render_module._crop(premultiplied_foreground(whole[:, :3], whole[:, 3:] / 255), window)
    assert (found - wanted).abs().max() < 1e-2


@pytest.mark.parametrize("size", [0, 1, 5])
def test_objects_that_are_too_small_are_not_pasted(size):
    planes = noise_sample(1, 90, 120)
    planes[-1] = 0
    planes[-1, 10:70, 30 : 30 + size] = 255  # a long line is not an object either
    composer = Composer([planes], None, 4, 1.0, 1.0, CPU)
    assert all(not composer._draw_scene(np.random.default_rng(seed)).keeps_target for seed in range(10))
    layers = [layer for seed in range(30) for layer in composer._draw_scene(np.random.default_rng(seed)).layers]
    assert all(isinstance(layer, Strokes) for layer in layers)


# --- pasting --------------------------------------------------------------------------------------------------------


@pytest.fixture
def squares() -> Photos:
    """Red, blue and half-transparent yellow squares of 20 pixels, a small blue one of 14; a green background."""
    samples = []
    for color, side, alpha in ((RED, 20, 255), (BLUE, 20, 255), ((250, 250, 9), 16, 128), (RED, 14, 255)):
        gt = np.zeros((60, 80), np.uint8)
        gt[10 : 10 + side, 20 : 20 + side] = alpha
        samples.append(np.concatenate((uniform(color, 60, 80), gt[None])))
    return Photos(samples, uniform(GREEN, 60, 80))


def square(number: int) -> Object:
    side = (20, 20, 16, 14)[number]
    return Object(number, (20, 10, 20 + side - 1, 10 + side - 1))


def test_an_object_is_pasted_without_a_change(squares):
    scene = squares.scene()
    add(scene, square(0), (30, 20), True)
    image, target = squares.render(scene)
    wanted = np.zeros((60, 80), np.uint8)
    wanted[10:30, 20:40] = 255
    assert np.array_equal(target, wanted)
    assert np.array_equal(image, np.where(wanted, uniform(RED, 60, 80), uniform(GREEN, 60, 80)))


def test_later_objects_hide_earlier_ones(squares):
    scene = squares.scene()
    add(scene, square(0), (30, 20), True)
    add(scene, square(1), (40, 20), False)  # hides the right half
    add(scene, square(2), (24, 20), False)  # lets half of it through
    add(scene, square(3), (45, 20), True)  # and the hiding one is hidden
    image, target = squares.render(scene)
    wanted = np.zeros((60, 80))
    wanted[10:30, 20:30] = 255
    wanted[12:28, 20:30] *= 1 - 128 / 255
    wanted[13:27, 38:52] = 255
    assert np.abs(target - wanted).max() <= 1
    assert (image[:, 20, 35] == BLUE).all() and (image[:, 20, 45] == RED).all()


def test_the_target_is_the_union_of_the_visible_targets(squares):
    scene = squares.scene()
    add(scene, square(0), (20, 20), True)
    add(scene, square(1), (30, 30), True)
    _, target = squares.render(scene)
    wanted = np.zeros((60, 80), np.uint8)
    wanted[10:30, 10:30] = wanted[20:40, 20:40] = 255
    assert np.array_equal(target, wanted)


def test_objects_partly_or_wholly_outside_the_scene(squares):
    scene = squares.scene()
    add(scene, square(0), (0, 60), True)
    for center in ((-15, 30), (200, 30), (40, -50), (40, 75)):
        add(scene, square(0), center, True)
    image, target = squares.render(scene)
    assert np.array_equal(np.argwhere(target)[[0, -1]], [[50, 0], [59, 9]]) and (target == 255).sum() == 100
    assert np.array_equal(image, np.where(target, uniform(RED, 60, 80), uniform(GREEN, 60, 80)))


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_scaling_down_averages_alpha_and_gives_no_dark_border(scale):
    """Known answer: a square whose sides are multiples of the scale stays a square with hard edges."""
    gt = np.zeros((256, 256), np.uint8)
    gt[64:192, 64:192] = 255
    photos = Photos([mixed(RED, (0, 0, 0), gt)], uniform(GREEN, 256, 256))
    scene = photos.scene()
    pose = Pose((1 / scale, 1 / scale), 0.0, (128 / scale, 128 / scale))
    scene.paste(scene.add(photos.object(0)), pose, (128, 64), True, Look(), np.random.default_rng(0))
    image, target = photos.render(scene)
    half = 64 // scale
    wanted = np.zeros((256, 256), np.uint8)
    wanted[64 - half : 64 + half, 128 - half : 128 + half] = 255
    assert np.abs(target.astype(int) - wanted).max() <= 1
    assert np.abs(image.astype(int) - np.where(wanted, uniform(RED, 256, 256), uniform(GREEN, 256, 256))).max() <= 2


@pytest.mark.parametrize(("scale", "level"), [(4.0, 0), (1.0, 0), (0.8, 0), (0.5, 1), (0.25, 2), (1 / 1000, 5)])
def test_small_objects_are_resampled_from_smaller_versions(scale, level):
    assert pyramid_level((scale, scale)) == pyramid_level((-scale, scale)) == level


def test_mirrored_and_turned_objects():
    """Known answers: a mirrored one and one that is turned by a quarter have the pixels of the original."""
    gt = np.zeros((64, 64), np.uint8)
    gt[16:40, 16:48] = 255
    gt[16:24, 16:32] = 0  # no symmetry
    photos = Photos([np.concatenate((uniform(RED, 64, 64), gt[None]))], uniform(GREEN, 64, 64))
    wanted = gt[16:40, 16:48]
    for pose, turned in (
        (Pose((-1.0, 1.0), 0.0, (32, 24)), wanted[:, ::-1]),
        (Pose((1.0, 1.0), np.pi / 2, (24, 32)), np.rot90(wanted, -1)),
        (Pose((1.0, 1.0), -np.pi / 2, (24, 32)), np.rot90(wanted)),
    ):
        scene = photos.scene()
        scene.paste(scene.add(photos.object(0)), pose, (32, 32), True, Look(), np.random.default_rng(0))
        _, target = photos.render(scene)
        x0, y0, x1, y1 = box_from_mask(target)
        assert target[y0 : y1 + 1, x0 : x1 + 1].shape == turned.shape
        assert np.abs(target[y0 : y1 + 1, x0 : x1 + 1].astype(int) - turned).max() <= 1


@few
@given(seed=seeds, side=st.floats(8, 80))
def test_the_extent_of_a_pose_is_that_of_the_pasted_object(seed, side):
    gt = np.zeros((128, 128), np.uint8)
    gt[30:90, 40:70] = 255
    photos = Photos([np.concatenate((uniform(RED, 128, 128), gt[None]))], uniform(GREEN, 128, 128))
    scene, found = photos.scene(), photos.object(0)
    pose = draw_pose(found, side, np.random.default_rng(seed), max_angle=180)
    scene.paste(scene.add(found), pose, (64, 64), True, Look(), np.random.default_rng(0))
    _, target = photos.render(scene)
    rows, columns = np.nonzero(target > 10)
    found = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert np.abs(np.subtract(found, pose.extent)).max() <= 3 + 0.06 * side  # corners fade
    assert abs(target.sum() / 255 - abs(pose.scale[0] * pose.scale[1]) * 1800) < 4 + 0.1 * side


def test_no_ghost_of_the_object_outside_its_alpha():
    """Where alpha is 0, the scene does not change; elsewhere, colors mix those of object and scene alone."""
    gt = cv2.GaussianBlur(disc(128, 160, (80, 64), 40), (0, 0), 2)
    photos = Photos([mixed(RED, BLUE, gt)], uniform(GREEN, 128, 160))
    scene = photos.scene()
    add(scene, photos.object(0), (80.5, 64.5), True)
    image, target = photos.render(scene)
    assert np.abs(target.astype(int) - gt).max() <= 1
    assert (image[:, gt == 0] == np.array(GREEN)[:, None]).all()
    assert np.abs(image.astype(int) - mixed(RED, GREEN, gt)[:3]).max() < 14


def test_a_shadow_darkens_the_image_and_is_not_part_of_the_target():
    gt = disc(90, 100, (50, 40), 15)
    photos = Photos([np.concatenate((uniform(RED, 90, 100), gt[None]))], uniform(GREEN, 90, 100))
    scenes = [photos.scene(), photos.scene()]
    add(scenes[0], photos.object(0), (50, 40), True)
    add(scenes[1], photos.object(0), (50, 40), True, shadow=0.6)
    (without, image), targets = photos.render(*scenes)
    assert np.array_equal(*targets)
    around = targets[0] == 0
    assert (image[:, around] <= without[:, around]).all()
    assert (image[:, around] < without[:, around] - 5).any()
    assert np.array_equal(image[:, targets[0] == 255], without[:, targets[0] == 255])
    assert np.array_equal(image[:, :10], without[:, :10])  # far away


def test_harmonized_colors_are_those_of_the_background(squares):
    scene = squares.scene()
    add(scene, square(0), (30, 20), True, harmony=1.0)
    image, target = squares.render(scene)
    assert target.any() and np.abs(image.astype(int) - uniform(GREEN, 60, 80)).max() <= 1


def test_a_texture_replaces_the_colors_and_not_the_shape(squares):
    scene = squares.scene()
    add(scene, square(0), (50, 40), True, textured=True)
    image, target = squares.render(scene)
    assert (target == 255).sum() == 400 and np.array_equal(image, uniform(GREEN, 60, 80))
    strokes = np.zeros((30, 30), np.uint8)
    strokes[10:20] = 255
    scene = squares.scene()
    pose = Pose((1.0, 1.0), 0.0, (30, 30))
    scene.paste(scene.add(Strokes(strokes)), pose, (40, 30), True, Look(), np.random.default_rng(0), square(1))
    image, target = squares.render(scene)
    wanted = np.zeros((60, 80), np.uint8)
    wanted[25:35, 25:55] = 255
    assert np.array_equal(target, wanted)
    assert np.array_equal(image, np.where(wanted, uniform(BLUE, 60, 80), uniform(GREEN, 60, 80)))


def test_blur_softens_image_and_target_alike(squares):
    scene = squares.scene()
    add(scene, square(0), (30, 20), True, blur=1.0)
    image, target = squares.render(scene)
    assert len(np.unique(target)) > 3 and abs(target.sum() / 255 - 400) < 2
    assert np.abs(image.astype(int) - mixed(RED, GREEN, target)[:3]).max() <= 2


# --- strokes --------------------------------------------------------------------------------------------------------


@few
@given(side=st.integers(4, 200), seed=seeds)
def test_strokes_follow_from_the_generator(side, seed):
    alpha = draw_strokes(side, np.random.default_rng(seed))
    assert alpha.shape == (side, side) and alpha.dtype == np.uint8
    assert np.array_equal(alpha, draw_strokes(side, np.random.default_rng(seed)))


def test_strokes_are_thin_and_never_missing():
    shares = [draw_strokes(200, np.random.default_rng(seed)).mean() / 255 for seed in range(30)]
    assert min(shares) > 0 and np.median(shares) < 0.4


# --- scenes ---------------------------------------------------------------------------------------------------------


def only(monkeypatch: pytest.MonkeyPatch, *kinds: object) -> None:
    """Draw these kinds of scenes alone."""
    monkeypatch.setattr(module, "SCENES", dict.fromkeys(kinds, 1 / len(kinds)))


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave colors, blur, shadow and noise out."""
    monkeypatch.setattr(module, "draw_look", lambda _: Look())
    monkeypatch.setattr(module, "draw_tint", lambda *_: SAME_COLORS)
    monkeypatch.setattr(module, "draw_finish", lambda _: UNCHANGED)


@pytest.mark.parametrize("build", SCENES, ids=lambda build: build.__name__)
@few
@given(height=st.integers(12, 90), width=st.integers(12, 90), seed=seeds, nothing=st.booleans())
def test_any_scene_of_any_size(build, height, width, seed, nothing):
    """Objects may be tiny, larger than the image, or missing; a scene is the same in any batch."""
    samples = [noise_sample(seed % 1000 + number, height, width) for number in range(5)]
    if nothing:
        for planes in samples:
            planes[-1] = 0
    photos = Photos(samples, samples[0][:3])
    before = [planes.clone() for planes in photos.samples]
    with pytest.MonkeyPatch.context() as patch:
        only(patch, build)
        first, again = photos.drawn(seed), photos.drawn(seed)
    others = [photos.drawn(seed + 1), photos.drawn(seed + 2)]
    image, target = photos.render(first)
    images, targets = photos.render(others[0], again, others[1])
    # in a batch, convolutions may add in another order
    assert np.abs(images[1].astype(int) - image).mean() < 0.05 and np.abs(targets[1].astype(int) - target).max() <= 1
    assert np.array_equal(photos.render(again)[0], image)
    assert all(torch.equal(a, b) for a, b in zip(before, photos.samples, strict=True))
    assert first.mask_only_target == (build is module._image_region)
    if nothing and build not in (module._thin_parts, module._image_region):  # these need no objects
        assert not target.any()


def test_objects_cut_out_together_are_those_cut_out_alone(monkeypatch):
    """As on a GPU: whole photographs instead of windows."""
    photos = Photos([noise_sample(number, 150, 190) for number in range(1, 6)], noise_sample(9, 150, 190)[:3])
    scenes = [photos.drawn(seed) for seed in range(12)]
    alone = photos.render(*scenes)
    monkeypatch.setattr(render_module, "joint", lambda _, number: number)
    together = photos.render(*scenes)
    difference = np.abs(alone[0].astype(int) - together[0])
    assert (difference > 1).mean() < 0.01 and difference.mean() < 0.05  # JPEG's rounding may differ
    assert np.abs(alone[1].astype(int) - together[1]).max() <= 1


def test_all_kinds_of_scenes_occur():
    assert sum(SCENES.values()) == pytest.approx(1)
    photos = Photos([noise_sample(number, 40, 50) for number in range(1, 6)], noise_sample(9, 40, 50)[:3])
    scenes = [photos.drawn(seed) for seed in range(300)]
    assert np.mean([scene.mask_only_target for scene in scenes]) == pytest.approx(0.10, abs=0.06)
    assert np.mean([scene.keeps_target for scene in scenes]) == pytest.approx(0.34, abs=0.1)
    assert max(len(scene.pastes) for scene in scenes) > 10


def test_regions_end_where_the_photograph_changes():
    """A photograph of four uniform quarters: the region is one of them, up to some pixels at the borders."""
    quarters = np.zeros((3, 128, 160), np.uint8)
    for number, color in enumerate((RED, GREEN, (20, 30, 200), (240, 240, 240))):
        top, left = 64 * (number // 2), 80 * (number % 2)
        quarters[:, top : top + 64, left : left + 80] = np.array(color)[:, None, None]
    chosen = set()
    for seed in range(20):
        found = find_region(torch.from_numpy(quarters)[None].float(), draw_region(np.random.default_rng(seed)))
        assert found.shape == (1, 1, 128, 160) and found.min() >= 0 and found.max() <= 1
        target = found[0, 0].numpy() > 0.5
        corners = [target[32 + 64 * (n // 2), 40 + 80 * (n % 2)] for n in range(4)]
        if target.any() and any(corners):
            chosen.add(tuple(corners))
            outside = [target[64 * (n // 2) :, 80 * (n % 2) :][6:58, 6:74].mean() for n in range(4) if not corners[n]]
            assert max(outside) < 0.4  # position divides large areas into parts
    assert len(chosen) >= 3


def test_a_uniform_photograph_has_no_regions():
    for seed in range(5):
        assert not find_region(torch.full((1, 3, 64, 64), 90.0), draw_region(np.random.default_rng(seed))).any()


def test_own_objects_keep_their_place_in_the_photograph(monkeypatch):
    """Crops of the sample's photograph: the object is complete, or a part of it is outside."""
    only(monkeypatch, module._own_object)
    plain(monkeypatch)
    gt = disc(128, 160, (60, 50), 20)
    photos = Photos([mixed(RED, GREEN, gt)], uniform(BLUE, 128, 160))
    sizes, cut = [], 0
    for seed in range(20):
        image, target = photos.render(photos.drawn(seed))
        assert np.abs(image.astype(int) - mixed(RED, GREEN, target)[:3]).max() < 4
        sizes.append((target > 128).mean() / (gt > 128).mean())
        edges = target[0], target[-1], target[:, 0], target[:, -1]
        cut += max(edge.mean() for edge in edges) > 30
    assert min(sizes) > 0.9 and max(sizes) > 2  # never scaled down
    assert 0 < cut < 20


def test_a_small_target_lies_beside_the_photographs_own_object(monkeypatch):
    only(monkeypatch, module._small_target)
    plain(monkeypatch)
    own = mixed(RED, GREEN, disc(128, 160, (60, 50), 20))
    blue = np.concatenate((uniform(BLUE, 128, 160), disc(128, 160, (60, 50), 20)[None]))
    photos = Photos([own, blue], uniform(GREEN, 128, 160))
    targets = shown = 0
    for seed in range(20):
        order = iter([0, *[1] * 10])
        draw = lambda order=order: photos.object(next(order))  # noqa: E731
        scene = draw_scene(Photo(0, True), (128, 160), draw, np.random.default_rng(seed))
        image, target = photos.render(scene)
        assert image[2][target > 200].min(initial=255) > 190 and image[2][target < 50].max() < 110  # all that is blue
        targets += (target > 128).any()
        shown += (image[0] > 150).sum() > 600
    assert targets == 20 and shown > 12


def test_one_of_the_touching_objects_is_the_target(monkeypatch):
    only(monkeypatch, module._touching)
    plain(monkeypatch)
    photos = Photos(
        [np.concatenate((uniform(RED, 128, 160), disc(128, 160, (80, 60), 40)[None]))], uniform(GREEN, 128, 160)
    )
    near = shown = 0
    for seed in range(20):
        image, target = photos.render(photos.drawn(seed))
        discs, is_target = image[0] > 100, target > 128
        assert discs[is_target].all()
        others = discs & ~cv2.dilate(is_target.astype(np.uint8), np.ones((3, 3))).astype(bool)
        shown += 0.5 * is_target.sum() < others.sum() < 2.6 * is_target.sum()
        near += (cv2.dilate(is_target.astype(np.uint8), np.ones((25, 25))) * others).any()
    assert shown > 12 and near > 15


def test_targets_differ_from_their_surroundings_and_some_scenes_have_distractors(monkeypatch):
    """Complete scenes in front of a uniform photograph."""
    only(monkeypatch, *(build for build in SCENES if build not in (module._image_region, module._small_target)))
    planes = np.concatenate((uniform(RED, 128, 128), disc(128, 128, (64, 64), 40)[None]))
    photos = Photos([planes], uniform(GREEN, 128, 128))
    inside, outside, some, with_distractor = [], [], [], 0
    for seed in range(50):
        image, target = photos.render(photos.drawn(seed))
        off = np.abs(image - np.array(GREEN)[:, None, None]).mean(axis=0)
        if 0 < (target > 128).mean() < 1:
            inside.append(off[target > 128].mean())
            outside.append(off[target <= 128].mean())
            some.append((target > 128).mean())
        with_distractor += ((image[0].astype(int) > image[1] + 60) & (target == 0)).mean() > 0.02
    assert len(some) > 35 and np.median(some) > 0.01
    assert np.median(np.subtract(inside, outside)) > 12
    assert (np.array(inside) > outside).mean() > 0.7
    assert 4 < with_distractor < 45


# --- camera and file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [45, 75, 95])
def test_compression_has_the_errors_of_jpeg(quality):
    """Against OpenCV: as far from the original, and much nearer to each other than to the original."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (200, 150), interpolation=cv2.INTER_CUBIC)
    image = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    _, code = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    wanted = cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
    planes = torch.from_numpy(np.moveaxis(image, 2, 0).copy())[None].float()
    found = np.moveaxis(compress(planes, quality)[0].numpy(), 0, 2)
    assert found.shape == image.shape and (found == found.round()).all()
    error, expected = (np.abs(x - image).mean() for x in (found, wanted))
    assert error == pytest.approx(expected, rel=0.15)
    assert np.abs(found - wanted).mean() < 0.4 * expected
