"""Copy-paste augmentation: paste objects of the training set onto other photographs.

A network that was trained on photographs with one salient object each erases targets that are not salient, although
the coarse mask shows them, and adds salient objects beside the target. The scenes of this module therefore contain
targets (objects that the ground truth shows) and distractors (other objects): several objects of which only some are
targets, similar objects that touch, groups of many small objects, objects with little contrast to the background, and
regions of photographs that are not objects.

Here, all random parameters of a scene are drawn; :mod:`IS_Net.synthesis.render` makes the scenes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from IS_Net.preprocess import Size, Window
from IS_Net.synthesis.filters import Affine
from IS_Net.synthesis.regions import Region, draw_region

MIN_SIDE = 12
"""Minimum length of an object's shorter side in pixels; smaller ones show no recognizable object."""
LEVELS = 5
"""Number of halved versions of an object from which a smaller one is resampled."""

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


# --- parameters -----------------------------------------------------------------------------------------------------


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
        margin = 1 + 3 * look.blur + 0.05 * max(pose.extent)  # soft edges reach beyond the box
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
    return int(np.clip(np.floor(0.6 - np.log2(np.sqrt(abs(scale[0] * scale[1])))), 0, LEVELS))


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
