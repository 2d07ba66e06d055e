"""Copy-paste augmentation: paste objects of the training set onto other photographs.

A network that was trained on photographs with one salient object each erases targets that are not salient, although
the coarse mask shows them, and adds salient objects beside the target. The scenes of this module therefore contain
targets (objects that the ground truth shows) and distractors (other objects): several objects of which only some are
targets, similar objects that touch, groups of many small objects, objects with little contrast to the background, and
regions of photographs that are not objects.

:func:`draw_scene` draws all random parameters of a scene on the host; :func:`compose` makes a batch of scenes from
them by operations on whole planes, the same on CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from IS_Net.preprocess import Size, Window
from IS_Net.synthesis.filters import (
    Affine,
    enlarge,
    gaussian_blur,
    pixel_noise,
    pyramid,
    upload,
    warp,
    wide_blur,
)
from IS_Net.synthesis.foreground import REACH, premultiplied_foreground
from IS_Net.synthesis.jpeg import compress
from IS_Net.synthesis.regions import Region, draw_region, find_region

MIN_SIDE = 12
"""Minimum length of an object's shorter side in pixels; smaller ones show no recognizable object."""
_LEVELS = 5  # of the pyramids that objects are scaled down from
_ALIGNED = 64  # windows of sources begin at multiples of this, so that all pyramids have the same pixels
_JOINT = 8  # objects that a GPU cuts out at a time

Color = tuple[float, float, float]


class Photo(NamedTuple):
    """One of the photographs that scenes are made of."""

    index: int
    is_background: bool = False
    """Whether it is one of the backgrounds; otherwise, it is one of the training set."""


class Object(NamedTuple):
    """An object of the training set: a photograph and the tight box of its ground truth."""

    index: int
    box: tuple[int, int, int, int]
    """xyxy in pixels, both ends included."""


class Strokes(NamedTuple):
    """Thin parts; they have no colors of their own."""

    alpha: np.ndarray
    """(side, side) uint8, 0..255."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """All of it."""
        return 0, 0, self.alpha.shape[1] - 1, self.alpha.shape[0] - 1


DrawObject = Callable[[], "Object | None"]
"""Returns an object of the training set at each call; None if the sample has none, or one below :data:`MIN_SIDE`."""
Load = Callable[[Photo, Window], Tensor]
"""Returns a window of a photograph, (1, 3, h, w) uint8 RGB; of the training set (1, 4, h, w), with ground truth."""


# --- what is drawn on the host --------------------------------------------------------------------------------------


class Tint(NamedTuple):
    """A change of colors: ``gain * color + shift`` for each channel, 0..255."""

    gain: Color = (1.0, 1.0, 1.0)
    shift: Color = (0.0, 0.0, 0.0)


SAME_COLORS = Tint()


class Shadow(NamedTuple):
    """A blurred, darker copy of the alpha matte behind an object."""

    darkness: float
    """0..1."""
    right: float
    """How far it is moved to the right, in pixels."""
    down: float
    sigma: float
    """Standard deviation of its blur in pixels."""


class Texture(NamedTuple):
    """Colors that take the place of an object's own."""

    photo: Photo | None
    """None is the scene's own background."""
    part: Window
    """The part of the photograph that is stretched over the object."""


class Look(NamedTuple):
    """How an object is adapted to a scene."""

    jitter: float = 0.0
    """Strength of the change of its colors, 0..1."""
    harmony: float = 0.0
    """Strength of the adaptation of its colors to the background, 0..1."""
    blur: float = 0.0
    """Standard deviation of a blur in pixels; 0 does not blur."""
    shadow: float = 0.0
    """Darkness of its shadow, 0..1; 0 draws no shadow."""
    textured: bool = False
    """Whether parts of the background replace its colors."""


class Pose(NamedTuple):
    """Size and orientation of an object in a scene."""

    scale: tuple[float, float]
    """Along x and y; negative along x if it is mirrored."""
    angle: float
    """In radians."""
    extent: tuple[float, float]
    """Width and height in the scene, in pixels."""


class Paste(NamedTuple):
    """One object in front of everything before it."""

    layer: int
    """Index of the object in :attr:`Scene.layers`."""
    affine: Affine
    """From the scene to the object's photograph."""
    level: int
    """Level of the pyramid that it is resampled from."""
    bounds: tuple[int, int, int, int]
    """First column and row in the scene, and those after the last ones."""
    is_target: bool
    """Whether it is a target or a distractor, which hides the targets behind it."""
    tint: Tint = SAME_COLORS
    harmony: float = 0.0
    blur: float = 0.0
    shadow: Shadow | None = None
    texture: Texture | None = None


class Finish(NamedTuple):
    """What a camera and a file do to the whole scene, which hides where objects were pasted."""

    blur: float = 0.0
    """Standard deviation of the lens blur in pixels."""
    gamma: float = 1.0
    noise: float = 0.0
    """Standard deviation of the sensor noise, 0..255."""
    noise_offset: int = 0
    quality: int | None = None
    """Of JPEG, 1..100; None does not compress."""


UNCHANGED = Finish()


@dataclass
class Scene:
    """All parameters of a scene."""

    size: Size
    photo: Photo
    """What the scene shows before objects are pasted: a part of a photograph, stretched to the scene's size."""
    part: Window
    mirrored: bool = False
    tint: Tint = SAME_COLORS
    focus: float = 0.0
    """Standard deviation of the blur of the photograph, in pixels."""
    keeps_target: bool = False
    """Whether the photograph's own object is a target."""
    layers: list[Object | Strokes] = field(default_factory=list)
    pastes: list[Paste] = field(default_factory=list)
    region: Region | None = None
    """The target, if it is a region of the photograph."""
    finish: Finish = UNCHANGED

    @property
    def mask_only_target(self) -> bool:
        """Whether only the coarse mask indicates the target, and nothing in the image; it should then be reliable."""
        return self.region is not None

    @property
    def longer_side(self) -> int:
        """The longer side in pixels."""
        return max(self.size)

    def add(self, layer: Object | Strokes | None) -> int | None:
        """Add an object that pastes may show; return its number, or None if there is none."""
        if layer is None:
            return None
        self.layers.append(layer)
        return len(self.layers) - 1

    def paste(
        self,
        layer: int,
        pose: Pose,
        center: tuple[float, float],
        is_target: bool,
        look: Look,
        rng: np.random.Generator,
        texture: Object | None = None,
    ) -> None:
        """Paste an object in front of everything else.

        Args:
            layer: Its number.
            pose: Its size and orientation.
            center: x and y of its center in pixels; it may lie outside the scene.
            is_target: Whether it is a target.
            look: Its adaptation to the scene.
            rng: Random generator.
            texture: An object whose parts replace its colors; None takes the background if ``look`` says so.
        """
        tint = draw_tint(rng, look.jitter)
        reach = max(pose.extent) * rng.uniform(0.02, 0.1)
        right, down = rng.normal(0, reach), abs(rng.normal(0, reach))
        whole = Window(0, 0, *self.size) if texture is None else _box_window(texture.box)
        part = _random_part(whole, (pose.extent[1], pose.extent[0]), rng)
        margin = 1 + 3 * look.blur
        bounds = []
        for axis in (0, 1):
            half, side = pose.extent[axis] / 2 + margin, self.size[1 - axis]
            bounds.append((max(int(np.floor(center[axis] - half)), 0), min(int(np.ceil(center[axis] + half)), side)))
        (left, right_end), (top, bottom_end) = bounds
        if left >= right_end or top >= bottom_end:
            return
        box = self.layers[layer].box
        middle = (box[0] + box[2] + 1) / 2, (box[1] + box[3] + 1) / 2
        self.pastes.append(
            Paste(
                layer,
                _affine(pose, middle, center),
                pyramid_level(pose.scale),
                (left, top, right_end, bottom_end),
                is_target,
                tint,
                look.harmony,
                look.blur,
                Shadow(look.shadow, right, down, max(reach, 0.5)) if look.shadow else None,
                Texture(Photo(texture.index) if texture else None, part) if look.textured or texture else None,
            )
        )


def _box_window(box: tuple[int, int, int, int]) -> Window:
    return Window(box[1], box[0], box[3] - box[1] + 1, box[2] - box[0] + 1)


def _affine(pose: Pose, middle: tuple[float, float], center: tuple[float, float]) -> Affine:
    """Return the map from the scene to a photograph that puts its point ``middle`` at ``center``."""
    (scale_x, scale_y), cos, sin = pose.scale, np.cos(pose.angle), np.sin(pose.angle)
    a, b, d, e = cos / scale_x, sin / scale_x, -sin / scale_y, cos / scale_y
    c, f = middle[0] - a * center[0] - b * center[1], middle[1] - d * center[0] - e * center[1]
    return Affine(*(float(v) for v in (a, b, c, d, e, f)))


def pyramid_level(scale: tuple[float, float]) -> int:
    """Return the level of a pyramid from which an object of this scale is resampled without aliasing."""
    return int(np.clip(np.floor(0.6 - np.log2(np.sqrt(abs(scale[0] * scale[1])))), 0, _LEVELS))


def draw_tint(rng: np.random.Generator, strength: float) -> Tint:
    """Draw a change of exposure, tint and brightness."""
    gain = np.exp(rng.normal(0, 0.25 * strength) + rng.normal(0, 0.08 * strength, 3))
    return Tint(tuple(gain.tolist()), tuple(rng.normal(0, 15 * strength, 3).tolist()))


def draw_pose(layer: Object | Strokes, side: float, rng: np.random.Generator, max_angle: float) -> Pose:
    """Scale an object so that its longer side has ``side`` pixels; stretch, mirror and rotate it at random.

    ``max_angle`` is the highest angle of rotation in degrees.
    """
    x0, y0, x1, y1 = layer.box
    width, height = x1 - x0 + 1, y1 - y0 + 1
    scale, stretch = side / max(width, height), np.exp(rng.uniform(-0.15, 0.15))
    scale_x, scale_y = scale * stretch, scale / stretch
    mirrored = rng.random() < 0.5
    angle = rng.uniform(-max_angle, max_angle)
    angle = np.deg2rad(angle) if abs(angle) > 3 else 0.0
    w, h, cos, sin = width * scale_x, height * scale_y, abs(np.cos(angle)), abs(np.sin(angle))
    return Pose((-scale_x if mirrored else scale_x, scale_y), float(angle), (w * cos + h * sin, w * sin + h * cos))


def draw_look(rng: np.random.Generator) -> Look:
    """Draw the adaptation of an object to a scene."""
    textured = rng.random() < 0.15
    camouflaged = rng.random() < 0.2
    return Look(
        jitter=rng.uniform(0, 1) * (not camouflaged),
        harmony=rng.uniform(0.6, 1) if camouflaged else rng.uniform(0, 0.5),
        blur=rng.uniform(0.3, 1.2) if rng.random() < 0.5 else 0.0,
        shadow=rng.uniform(0.1, 0.6) if rng.random() < 0.35 else 0.0,
        textured=textured,
    )


def draw_finish(rng: np.random.Generator) -> Finish:
    """Draw lens blur, exposure, sensor noise and JPEG."""
    blur = rng.uniform(0.4, 1.3) if rng.random() < 0.3 else 0.0
    gamma = float(np.exp(rng.normal(0, 0.15)))
    noise = rng.uniform(1, 7) if rng.random() < 0.5 else 0.0
    quality = int(rng.integers(45, 96)) if rng.random() < 0.5 else None
    return Finish(blur, gamma, noise, int(rng.integers(2**31)), quality)


def _random_part(whole: Window, size: tuple[float, float], rng: np.random.Generator) -> Window:
    """Return a random part of a window, of half to all of (height, width) ``size``, at most all of the window."""
    zoom = rng.uniform(0.5, 1)
    h, w = (max(int(min(edge, side) * zoom), 1) for edge, side in zip(size, whole.size, strict=True))
    top, left = rng.integers(whole.height - h + 1), rng.integers(whole.width - w + 1)
    return Window(whole.top + int(top), whole.left + int(left), h, w)


def draw_strokes(side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw many thin curved parts, similar to seedlings, grass, cords or a net.

    Args:
        side: Height and width in pixels.
        rng: Random generator; the same state gives the same strokes.

    Returns:
        (side, side) uint8 alpha, 0..255.
    """
    alpha = np.zeros((side, side), np.uint8)
    t = np.linspace(0, 1, 24)[:, None]
    common_direction = rng.uniform(-1, 1, 2)
    common_share = rng.random()
    thickness = max(side * rng.uniform(0.003, 0.02), 1.2)
    for _ in range(int(rng.integers(2, 50))):
        start = rng.uniform(0.05, 0.95, 2)
        direction = common_share * common_direction + (1 - common_share) * rng.uniform(-1, 1, 2)
        vector = direction * rng.uniform(0.1, 0.5)
        bend = rng.normal(0, 0.08, 2)
        curve = start + t * vector + t * (1 - t) * 4 * bend
        points = np.round(curve * side * 16).astype(np.int32)
        width = max(int(thickness * rng.uniform(0.6, 1.6)), 1)
        cv2.polylines(alpha, [points], False, 255, width, cv2.LINE_AA, 4)
        if rng.random() < 0.5:  # a leaf, bead or bulb at the end
            axes = np.maximum(side * rng.uniform(0.005, 0.035, 2), 1.5)
            end = tuple(int(v) for v in points[-1])
            cv2.ellipse(
                alpha, end, tuple(int(v * 16) for v in axes), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA, 4
            )
    return alpha


# --- the kinds of scenes --------------------------------------------------------------------------------------------


def _choose_targets(number: int, rng: np.random.Generator) -> np.ndarray:
    """Choose which of ``number`` objects are targets: all, one, or a random subset; (number,) bool."""
    is_target = np.zeros(number, bool)
    kind = rng.random()
    if kind < 0.25:
        is_target[:] = True
    elif kind < 0.65:
        is_target[rng.integers(number)] = True
    else:
        is_target = rng.random(number) < rng.uniform(0.2, 0.8)
        is_target[rng.integers(number)] = True
    return is_target


def _somewhere(scene: Scene, rng: np.random.Generator, low: float, high: float) -> tuple[float, float]:
    height, width = scene.size
    return width * rng.uniform(low, high), height * rng.uniform(low, high)


def _own_object(scene: Scene, draw: DrawObject, rng: np.random.Generator) -> None:
    """A crop of a sample's own photograph; its own object, usually the salient one, is the target."""
    found = draw()
    if found is None:
        return
    height, width = scene.size
    window, box = [0, 0, width, height], found.box
    for axis, side in enumerate((width, height)):
        window[axis] = int(box[axis] * rng.random())
        window[axis + 2] = side - int((side - 1 - box[axis + 2]) * rng.random())
    if rng.random() < 0.3:  # part of the object lies outside the crop
        axis, end = int(rng.integers(2)), 2 * int(rng.integers(2))
        cut = int((window[axis + 2] - window[axis]) * rng.uniform(0.1, 0.4))
        window[axis + end] += cut if end == 0 else -cut
    x0, y0, x1, y1 = window
    scene.photo, scene.part, scene.mirrored = Photo(found.index), Window(y0, x0, y1 - y0, x1 - x0), False
    scene.tint, scene.focus, scene.keeps_target = draw_tint(rng, 0.5), 0.0, True


def _small_target(scene: Scene, draw: DrawObject, rng: np.random.Generator) -> None:
    """A crop of a sample's own photograph whose own object is a distractor, with one or two smaller targets."""
    _own_object(scene, draw, rng)
    scene.keeps_target = False
    for _ in range(int(rng.choice([1, 2], p=[0.7, 0.3]))):
        layer = scene.add(draw())
        if layer is None:
            continue
        side = scene.longer_side * np.exp(rng.uniform(np.log(0.08), np.log(0.4)))
        pose = draw_pose(scene.layers[layer], side, rng, max_angle=30)
        scene.paste(layer, pose, _somewhere(scene, rng, 0.1, 0.9), True, draw_look(rng), rng)


def _several(scene: Scene, draw: DrawObject, rng: np.random.Generator) -> None:
    """One to four objects, side by side or in front of each other."""
    number = int(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1]))
    same = scene.add(draw()) if rng.random() < 0.2 else None
    for is_target in _choose_targets(number, rng):
        layer = scene.add(draw()) if same is None else same
        if layer is None:
            continue
        side = np.exp(rng.uniform(np.log(0.2), np.log(1.1))) * scene.longer_side / np.sqrt(number) ** 0.5
        pose = draw_pose(scene.layers[layer], side, rng, max_angle=rng.choice([0, 30]))
        scene.paste(layer, pose, _somewhere(scene, rng, 0.15, 0.85), is_target, draw_look(rng), rng)


def _touching(scene: Scene, draw: DrawObject, rng: np.random.Generator) -> None:
    """A row of two or three similar objects that touch or overlap a little; one of them is the target."""
    layer = scene.add(draw())
    if layer is None:
        return
    number = int(rng.choice([2, 3], p=[0.7, 0.3]))
    target = rng.integers(number)
    side = scene.longer_side * rng.uniform(0.2, 0.7)
    look, max_angle = draw_look(rng), rng.choice([0, 15])
    angle = rng.choice([0, np.pi]) + rng.normal(0, 0.4)
    x, y = _somewhere(scene, rng, 0.3, 0.7)
    x, y = x - np.cos(angle) * side * 0.4 * (number - 1), y - np.sin(angle) * side * 0.4 * (number - 1)
    for index in range(number):
        pose = draw_pose(scene.layers[layer], side * np.exp(rng.normal(0, 0.08)), rng, max_angle)
        scene.paste(layer, pose, (x, y), index == target, look._replace(jitter=look.jitter * 0.2), rng)
        extent = 1 / max(abs(np.cos(angle)) / pose.extent[0], abs(np.sin(angle)) / pose.extent[1])
        step = extent * rng.uniform(0.55, 0.98)
        x, y = x + np.cos(angle) * step, y + np.sin(angle) * step


def _crowd(scene: Scene, draw: DrawObject, rng: np.random.Generator) -> None:
    """A group of 4 to 35 small objects of one to three kinds; in half of the scenes, all of them are targets."""
    layers = [layer for layer in (scene.add(draw()) for _ in range(int(rng.integers(1, 4)))) if layer is not None]
    if not layers:
        return
    height, width = scene.size
    number = int(rng.integers(4, 36))
    side = scene.longer_side * np.exp(rng.uniform(np.log(0.06), np.log(0.35)))
    # from a heap of objects that hide each other to a flock all over the image
    extent = min(side / scene.longer_side * np.sqrt(number) * rng.uniform(0.2, 0.7), 0.35)
    middle = rng.uniform(0.3, 0.7, 2)
    all_targets = rng.random() < 0.5
    targets = np.ones(number, bool) if all_targets else _choose_targets(number, rng)
    look, max_angle = draw_look(rng), rng.choice([10, 180])
    look = look._replace(jitter=look.jitter * 0.5)
    for is_target in targets:
        layer = layers[rng.integers(len(layers))]
        pose = draw_pose(scene.layers[layer], side * np.exp(rng.normal(0, 0.15)), rng, max_angle)
        x, y = middle + rng.normal(0, extent, 2)
        scene.paste(layer, pose, (x * width, y * height), is_target, look, rng)


def _thin_parts(scene: Scene, draw: DrawObject, rng: np.random.Generator) -> None:
    """One or two groups of thin parts with the colors of a photograph, in front of up to two distractors."""
    for _ in range(int(rng.integers(0, 3))):
        layer = scene.add(draw())
        if layer is not None:
            pose = draw_pose(scene.layers[layer], scene.longer_side * rng.uniform(0.2, 0.7), rng, max_angle=20)
            scene.paste(layer, pose, _somewhere(scene, rng, 0, 1), False, draw_look(rng), rng)
    for is_target in _choose_targets(int(rng.choice([1, 2], p=[0.6, 0.4])), rng):
        side = max(int(min(scene.size) * rng.uniform(0.4, 1)), 2)
        layer = scene.add(Strokes(draw_strokes(side, rng)))
        found = draw()
        look = draw_look(rng)
        own = found is None or rng.random() < 0.3
        pose = Pose((1.0, 1.0), 0.0, (side, side))
        center = _somewhere(scene, rng, 0.2, 0.8)
        scene.paste(layer, pose, center, is_target, look._replace(textured=own), rng, None if own else found)


def _image_region(scene: Scene, draw: DrawObject, rng: np.random.Generator) -> None:
    """A region of the photograph, whatever it shows; only the coarse mask indicates that it is the target."""
    scene.focus = 0.0
    scene.region = draw_region(rng)


SCENES: dict[Callable[[Scene, DrawObject, np.random.Generator], None], float] = {
    _own_object: 0.34,
    _small_target: 0.14,
    _several: 0.17,
    _touching: 0.12,
    _crowd: 0.08,
    _thin_parts: 0.05,
    _image_region: 0.10,
}
"""The kinds of scenes and their probabilities."""


def draw_scene(background: Photo, size: Size, draw: DrawObject, rng: np.random.Generator) -> Scene:
    """Draw all parameters of a scene of objects in front of a photograph.

    Args:
        background: The photograph.
        size: (height, width) of the scene and of all photographs.
        draw: Returns objects that may be pasted.
        rng: Random generator; the same state gives the same scene.
    """
    make = rng.choice(list(SCENES), p=list(SCENES.values()))
    zoom = rng.uniform(0.4, 1)
    h, w = (max(int(side * zoom), 1) for side in size)
    part = Window(int(rng.integers(size[0] - h + 1)), int(rng.integers(size[1] - w + 1)), h, w)
    scene = Scene(size, background, part, mirrored=rng.random() < 0.5)
    focus = rng.random()
    if focus < 0.45:
        far = max(size) / 32  # blurred so strongly that only the pasted objects are recognizable
        scene.focus = rng.uniform(0.8, 6) if focus < 0.3 else far
    make(scene, draw, rng)
    scene.finish = draw_finish(rng)
    return scene


# --- what is computed on the device ---------------------------------------------------------------------------------


class _Layer(NamedTuple):
    """An object to be resampled: RGB times alpha, 0..255, and alpha."""

    levels: list[Tensor]
    """(1, 4, h, w) float32 each, of half the size of the one before."""
    left: int
    """First column in the photograph; a multiple of :data:`_ALIGNED`."""
    top: int

    def warp(self, affine: Affine, level: int, window: Window, factor: int = 1) -> Tensor:
        """Resample it into a window of a scene that is smaller by ``factor``."""
        affine = affine.moved(self.left, self.top).scaled(0.5**level, 1 / factor)
        return warp(self.levels[level], affine, window)


def compose(scenes: Sequence[Scene], load: Load, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make the images of scenes and their ground truths.

    A scene does not depend on the others, but for rounding on a GPU.

    Args:
        scenes: The scenes, of one size.
        load: Loads the photographs.
        device: Where the photographs are.

    Returns:
        (B, 3, H, W) uint8 RGB, and (B, 1, H, W) uint8 0..255: the targets. Empty where these are hidden or outside.
    """
    # with the number of pastes falling, those of the same number in their scenes are at the beginning of the batch
    order = sorted(range(len(scenes)), key=lambda index: -len(scenes[index].pastes))
    ordered = [scenes[index] for index in order]
    canvas = torch.cat([_show_photo(scene, load) for scene in ordered])
    for index, scene in enumerate(ordered):
        if scene.region is not None:
            canvas[index, 3:] = find_region(canvas[index : index + 1, :3], scene.region)[0]
    _paste_all(canvas, ordered, load, device)
    image = _finish(canvas[:, :3], [scene.finish for scene in ordered])
    target = (canvas[:, 3:] * 255).round_().to(torch.uint8)
    place = [order.index(index) for index in range(len(scenes))]
    return torch.stack([image[index] for index in place]), torch.stack([target[index] for index in place])


def _show_photo(scene: Scene, load: Load) -> Tensor:
    """Return what a scene shows before objects are pasted: (1, 4, H, W) float32, RGB 0..255 and the target, 0..1."""
    planes = load(scene.photo, scene.part)
    shown = F.interpolate(planes[:, :3].float(), size=scene.size, mode="bilinear", align_corners=False)
    target = torch.zeros_like(shown[:, :1])
    if scene.keeps_target:
        alpha = planes[:, 3:].float().div_(255)
        target = F.interpolate(alpha, size=scene.size, mode="bilinear", align_corners=False)
    if scene.mirrored:
        shown = shown.flip(-1)
    if scene.tint != SAME_COLORS:
        gain, shift = upload(np.array(scene.tint, np.float32), shown.device)[:, None, :, None, None]
        shown = torch.addcmul(shift, shown, gain).clamp_(0, 255)
    if scene.focus:
        shown = wide_blur(shown, scene.focus)
    return torch.cat((shown, target), dim=1)


def _cut_out(
    objects: Sequence[tuple[Object | Strokes, int]], size: Size, load: Load, device: torch.device
) -> list[_Layer]:
    """Cut objects out of their photographs; each comes with the number of levels of its pyramid."""
    if isinstance(objects[0][0], Strokes):
        layers = []
        for strokes, levels in objects:
            alpha = upload(strokes.alpha, device)[None, None].float()
            layers.append(_Layer(pyramid(torch.cat((alpha, alpha, alpha, alpha / 255), dim=1), levels), 0, 0))
        return layers
    # one needs only the surroundings of its object; several have the same size only as whole photographs
    window = _surroundings(objects[0][0].box, size) if len(objects) == 1 else Window(0, 0, *size)
    planes = torch.cat([load(Photo(found.index), window) for found, _ in objects]).float()
    cut = pyramid(premultiplied_foreground(planes[:, :3], planes[:, 3:] / 255), max(levels for _, levels in objects))
    return [_Layer([level[i : i + 1] for level in cut], window.left, window.top) for i in range(len(objects))]


def _surroundings(box: tuple[int, int, int, int], size: Size) -> Window:
    """Return the window of a photograph that the colors of an object depend on, with aligned borders."""
    height, width = size
    left, top = (max(first - REACH, 0) // _ALIGNED * _ALIGNED for first in box[:2])
    right, bottom = (-(-(last + 1 + REACH) // _ALIGNED) * _ALIGNED for last in box[2:])
    return Window(top, left, min(bottom, height) - top, min(right, width) - left)


def _all_layers(scenes: Sequence[Scene], load: Load, device: torch.device) -> list[list[_Layer | None]]:
    """Cut out the objects of each scene that it shows."""
    layers: list[list[_Layer | None]] = [[None] * len(scene.layers) for scene in scenes]
    found: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}
    for index, scene in enumerate(scenes):
        for number, layer in enumerate(scene.layers):
            levels = [_shadow_level(paste) for paste in scene.pastes if paste.layer == number]
            if levels:
                found[isinstance(layer, Strokes)].append((index, number, max(levels)))
    joint = 1 if device.type == "cpu" else _JOINT  # a CPU saves the pixels around objects, a GPU saves calls
    for same in found.values():
        for start in range(0, len(same), joint):
            chunk = same[start : start + joint]
            objects = [(scenes[index].layers[number], levels) for index, number, levels in chunk]
            for (index, number, _), layer in zip(chunk, _cut_out(objects, scenes[0].size, load, device), strict=True):
                layers[index][number] = layer
    return layers


def _shadow_factor(shadow: Shadow) -> int:
    """Return by how much the resolution of a shadow can be reduced."""
    return int(2 ** np.clip(np.floor(np.log2(shadow.sigma / 1.5)), 0, 4))


def _shadow_level(paste: Paste) -> int:
    """Return the level of the pyramid that the shadow is resampled from; without shadow, that of the object."""
    more = int(np.log2(_shadow_factor(paste.shadow))) if paste.shadow else 0
    return min(paste.level + more, _LEVELS)


def _paste_all(canvas: Tensor, scenes: Sequence[Scene], load: Load, device: torch.device) -> None:
    """Paste the objects of all scenes, first the first one of each, then the second ones, and so on.

    Args:
        canvas: (B, 4, H, W) float32, RGB 0..255 and the target, 0..1; changed in place.
        scenes: (B,) with the number of pastes falling.
        load: Loads the photographs.
        device: Where the canvas is.
    """
    steps = [[scene.pastes[k] for scene in scenes if len(scene.pastes) > k] for k in range(len(scenes[0].pastes))]
    if not steps:
        return
    layers = _all_layers(scenes, load, device)
    needs_photos = any(p.texture is not None and p.texture.photo is None for pastes in steps for p in pastes)
    photos = canvas[:, :3].clone() if needs_photos else canvas
    numbers = [[*p.tint.gain, *p.tint.shift, p.harmony, p.is_target, *p.bounds] for pastes in steps for p in pastes]
    values = upload(np.array(numbers, np.float32), device)[:, :, None, None]
    start = 0
    for pastes in steps:
        own = [layers[index][paste.layer] for index, paste in enumerate(pastes)]
        end = start + len(pastes)
        _paste_step(canvas[: len(pastes)], photos, pastes, own, values[start:end], load)
        start = end


def _paste_step(
    canvas: Tensor, photos: Tensor, pastes: Sequence[Paste], layers: Sequence[_Layer], values: Tensor, load: Load
) -> None:
    """Paste one object onto each scene.

    Args:
        canvas: (B, 4, H, W) float32; changed in place.
        photos: (B, 3, H, W) float32, the scenes without objects.
        pastes: (B,) what to paste.
        layers: (B,) the objects.
        values: (B, 12, 1, 1) float32: gain, shift, harmony, whether it is a target, bounds.
        load: Loads the photographs that textures are taken from.
    """
    lefts, tops, rights, bottoms = zip(*(paste.bounds for paste in pastes), strict=True)
    top, left = min(tops) // 2 * 2, min(lefts) // 2 * 2  # even, for _harmonize
    window = Window(top, left, max(bottoms) - top, max(rights) - left)
    place = _crop(canvas, window)
    found = torch.cat([lay.warp(p.affine, p.level, window) for p, lay in zip(pastes, layers, strict=True)])
    found = gaussian_blur(found, [paste.blur for paste in pastes])
    alpha = found[:, 3:]
    color = found[:, :3] / alpha.clamp(min=1e-3)
    for index, paste in enumerate(pastes):
        if paste.texture is not None:
            color[index] = _stretch_texture(paste, photos[index : index + 1], window, load)[0]
    color = torch.addcmul(values[:, 3:6], color, values[:, :3]).clamp_(0, 255)
    if any(paste.harmony for paste in pastes):
        color = _harmonize(color, alpha, place[:, :3], values[:, 6:7], values[:, 8:], window)
    for index, (paste, layer) in enumerate(zip(pastes, layers, strict=True)):
        if paste.shadow is not None:
            _draw_shadow(canvas[index : index + 1, :3], paste, paste.shadow, layer)
    target = values[:, 7:8].expand(-1, -1, *window.size)
    place.lerp_(torch.cat((color, target), dim=1), alpha)


def _crop(planes: Tensor, window: Window) -> Tensor:
    return planes[..., window.top : window.top + window.height, window.left : window.left + window.width]


def _stretch_texture(paste: Paste, photo: Tensor, window: Window, load: Load) -> Tensor:
    """Stretch a part of a photograph over an object: (1, 3, h, w) float32 of the window."""
    (photo_of, part), (left, top, right, bottom) = paste.texture, paste.bounds
    source = _crop(photo, part) if photo_of is None else load(photo_of, part)[:, :3].float()
    x, y = part.width / (right - left), part.height / (bottom - top)
    return warp(source, Affine(x, 0.0, -left * x, 0.0, y, -top * y), window, "border")


def _harmonize(color: Tensor, alpha: Tensor, scene: Tensor, strength: Tensor, bounds: Tensor, window: Window) -> Tensor:
    """Move mean and contrast of objects' colors towards those of what they cover; strength 1 adopts them.

    Args:
        color: (B, 3, h, w) float32 0..255, of the window.
        alpha: (B, 1, h, w) float32.
        scene: (B, 3, h, w) float32, what is there so far.
        strength: (B, 1, 1, 1) float32, 0..1.
        bounds: (B, 4, 1, 1) float32, of the objects in the scene.
        window: Place of the window in the scene. It begins at even rows and columns, since every second one is used.
    """
    x = torch.arange(window.left, window.left + window.width, 2, device=color.device)
    y = torch.arange(window.top, window.top + window.height, 2, device=color.device)[:, None]
    left, top, right, bottom = bounds.split(1, dim=1)
    inside = ((x >= left) & (x < right) & (y >= top) & (y < bottom)).float()
    solid = (alpha[..., ::2, ::2] > 0.5).float()
    own_mean, own_std = _weighted_statistics(color[..., ::2, ::2], solid)
    mean, std = _weighted_statistics(scene[..., ::2, ::2], inside)
    ratio = 1 + strength * (((std + 8) / (own_std + 8)).clamp(0.4, 1.6) - 1)
    shift = torch.lerp(own_mean, mean, strength) - own_mean * ratio
    found = solid.sum((2, 3), keepdim=True) > 0
    return torch.where(found, torch.addcmul(shift, color, ratio).clamp_(0, 255), color)


def _weighted_statistics(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (B, C, 1, 1) each."""
    weights = weights / weights.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (values * weights).sum((2, 3), keepdim=True)
    variance = (values * values * weights).sum((2, 3), keepdim=True) - mean * mean
    return mean, variance.clamp(min=0).sqrt()


def _draw_shadow(image: Tensor, paste: Paste, shadow: Shadow, layer: _Layer) -> None:
    """Darken an image, (1, 3, H, W) float32, in place; the shadow is computed at a lower resolution."""
    factor, reach = _shadow_factor(shadow), 3 * shadow.sigma
    height, width = image.shape[-2:]
    left, right = (
        int(np.clip(end + min(shadow.right, 0) - reach if first else end + max(shadow.right, 0) + reach, 0, width))
        for end, first in ((paste.bounds[0], True), (paste.bounds[2], False))
    )
    top, bottom = max(int(paste.bounds[1] - reach), 0), min(int(paste.bounds[3] + shadow.down + reach) + 1, height)
    left, top = left // factor * factor, top // factor * factor
    place = image[..., top:bottom, left:right]
    small = Window(top // factor, left // factor, -(-(bottom - top) // factor), -(-(right - left) // factor))
    affine = paste.affine
    affine = affine._replace(
        c=affine.c - affine.a * shadow.right - affine.b * shadow.down,
        f=affine.f - affine.d * shadow.right - affine.e * shadow.down,
    )
    alpha = gaussian_blur(layer.warp(affine, _shadow_level(paste), small, factor)[:, 3:], [shadow.sigma / factor])
    place.mul_(1 - shadow.darkness * enlarge(alpha, factor, place.shape[-2:]))


def _finish(image: Tensor, finishes: Sequence[Finish]) -> Tensor:
    """Apply lens blur, exposure, sensor noise and JPEG to scenes, (B, 3, H, W) float32; return uint8."""
    image = gaussian_blur(image, [finish.blur for finish in finishes])
    if any(finish.gamma != 1 for finish in finishes):
        gamma = upload(np.array([finish.gamma for finish in finishes], np.float32), image.device)
        image = (image.clamp(0, 255) / 255).pow_(gamma[:, None, None, None]).mul_(255)
    for index, finish in enumerate(finishes):
        if finish.noise:
            image[index].add_(pixel_noise(finish.noise_offset, image.shape[1:], image.device), alpha=finish.noise)
    image = image.round().clamp_(0, 255)
    for index, finish in enumerate(finishes):
        if finish.quality is not None:
            image[index] = compress(image[index : index + 1], finish.quality)[0]
    return image.to(torch.uint8)
