"""Copy-paste augmentation: paste objects of the training set onto other photographs.

A network that was trained on photographs with one salient object each erases targets that are not salient, although
the coarse mask shows them, and adds salient objects beside the target. The scenes of this module therefore contain
targets (objects that the ground truth shows) and distractors (other objects): several objects of which only some are
targets, similar objects that touch, groups of many small objects, objects with little contrast to the background, and
regions of photographs that are not objects.

Samples are planes, (C, H, W) uint8 of one size, as the cache stores them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from IS_Net.compositing import estimate_foreground, paste
from IS_Net.errors import import_extra
from IS_Net.preprocess import box_from_mask

MIN_SIDE = 12
"""Minimum length of a cut-out's shorter side in pixels; smaller ones show no recognizable object."""
REGION_SIDE = 512
"""Photographs are scaled down to this longer side, in pixels, before they are segmented into regions."""
MIN_CONTRAST = 20.0
"""Minimum contrast across the outline of a region: sum of the differences of L, a and b, each on a scale of 0..255."""
_REGION_TRIES = 6
_RING = np.ones((7, 7), np.uint8)

DrawSample = Callable[[], np.ndarray]
"""Returns the planes of another sample at each call: (C, H, W) uint8, RGB first, ground truth last."""


class Cutout(NamedTuple):
    """An object without its background."""

    color: np.ndarray
    """(h, w, 3) uint8 RGB; the object's own colors, also where it is transparent."""
    alpha: np.ndarray
    """(h, w) float32 in [0, 1]."""


def cut_out(planes: np.ndarray) -> Cutout | None:
    """Cut the object out of a sample.

    Args:
        planes: (C, H, W) uint8: RGB first, ground truth last.

    Returns:
        The object with a margin of up to 4 pixels; None if it is missing or smaller than :data:`MIN_SIDE`.
    """
    box = box_from_mask(planes[-1])
    if box is None or min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        return None
    margin = 4
    window = np.s_[max(box[1] - margin, 0) : box[3] + margin + 1, max(box[0] - margin, 0) : box[2] + margin + 1]
    alpha = planes[-1][window].astype(np.float32) / 255
    return Cutout(estimate_foreground(np.moveaxis(planes[:3], 0, 2)[window], alpha), alpha)


# --- variation of cut-outs ---


def _transform(cutout: Cutout, side: float, rng: np.random.Generator, max_angle: float) -> Cutout:
    """Scale a cut-out so that its longer side has ``side`` pixels; stretch, flip and rotate it at random.

    ``max_angle`` is the highest angle of rotation in degrees.
    """
    scale = side / max(cutout.alpha.shape)
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    size = [
        max(round(edge * scale * s), 2)
        for edge, s in zip(cutout.alpha.shape[::-1], (stretch, 1 / stretch), strict=True)
    ]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    layers = cv2.resize(np.dstack((cutout.color, np.uint8(cutout.alpha * 255))), size, interpolation=interpolation)
    if rng.random() < 0.5:
        layers = layers[:, ::-1]
    angle = rng.uniform(-max_angle, max_angle)
    if abs(angle) > 3:
        (w, h), radians = size, np.deg2rad(angle)
        rotated_w = int(abs(w * np.cos(radians)) + abs(h * np.sin(radians))) + 2
        rotated_h = int(abs(h * np.cos(radians)) + abs(w * np.sin(radians))) + 2
        matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, 1)
        matrix[:, 2] += (rotated_w - w) / 2, (rotated_h - h) / 2
        rotated = rotated_w, rotated_h
        color = cv2.warpAffine(layers[..., :3].copy(), matrix, rotated, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(layers[..., 3].copy(), matrix, rotated)
        return Cutout(color, alpha.astype(np.float32) / 255)
    return Cutout(np.ascontiguousarray(layers[..., :3]), layers[..., 3].astype(np.float32) / 255)


def _jitter_color(color: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change exposure, tint and brightness of an (h, w, 3) image, by the same amount for all pixels."""
    gain = np.exp(rng.normal(0, 0.25 * strength) + rng.normal(0, 0.08 * strength, 3))
    shift = rng.normal(0, 15 * strength, 3)
    return np.clip(color * gain + shift, 0, 255)


def _harmonize(cutout: Cutout, background: np.ndarray, strength: float) -> np.ndarray:
    """Move mean and contrast of a cut-out's colors towards those of the background; strength 1 adopts them."""
    solid = cutout.alpha > 0.5
    if not solid.any():
        return cutout.color.astype(np.float32)
    own, other = cutout.color[solid].astype(np.float32), background.reshape(-1, 3).astype(np.float32)
    ratio = np.clip((other.std(0) + 8) / (own.std(0) + 8), 0.4, 1.6)
    ratio = 1 + strength * (ratio - 1)
    mean = own.mean(0) + strength * (other.mean(0) - own.mean(0))
    return np.clip((cutout.color - own.mean(0)) * ratio + mean, 0, 255)


def _random_patch(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a random part of an image, resized to (height, width, 3) with ``size`` as (height, width)."""
    h, w = (min(edge, whole) for edge, whole in zip(size, image.shape[:2], strict=True))
    zoom = rng.uniform(0.5, 1)
    h, w = max(int(h * zoom), 2), max(int(w * zoom), 2)
    top, left = rng.integers(image.shape[0] - h + 1), rng.integers(image.shape[1] - w + 1)
    return cv2.resize(image[top : top + h, left : left + w], size[::-1], interpolation=cv2.INTER_LINEAR)


def draw_strokes(side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw many thin curved parts, similar to seedlings, grass, cords or a net.

    Args:
        side: Height and width in pixels.
        rng: Random generator; the same state gives the same strokes.

    Returns:
        (side, side) float32 alpha in [0, 1].
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
    return alpha.astype(np.float32) / 255


# --- scenes ---


class _Look(NamedTuple):
    """How a cut-out is adapted to a scene."""

    jitter: float
    """Strength of the change of its colors, 0..1."""
    harmony: float
    """Strength of the adaptation of its colors to the background, 0..1."""
    blur: float
    """Standard deviation of a blur in pixels; 0 does not blur."""
    shadow: float
    """Darkness of its shadow, 0..1; 0 draws no shadow."""
    texture: np.ndarray | None
    """(H, W, 3) image whose parts replace the cut-out's colors; None keeps them."""


def _random_look(background: np.ndarray, rng: np.random.Generator) -> _Look:
    texture = background if rng.random() < 0.15 else None
    camouflaged = rng.random() < 0.2
    return _Look(
        jitter=rng.uniform(0, 1) * (not camouflaged),
        harmony=rng.uniform(0.6, 1) if camouflaged else rng.uniform(0, 0.5),
        blur=rng.uniform(0.3, 1.2) if rng.random() < 0.5 else 0.0,
        shadow=rng.uniform(0.1, 0.6) if rng.random() < 0.35 else 0.0,
        texture=texture,
    )


class _Scene:
    """An image and the alpha matte of its targets, to which cut-outs are added.

    Args:
        background: (H, W, 3) uint8 RGB.
    """

    def __init__(self, background: np.ndarray) -> None:
        self.image = background.astype(np.float32)
        """(H, W, 3) float32 RGB, 0..255."""
        self.target = np.zeros(background.shape[:2], np.float32)
        """(H, W) float32 in [0, 1]."""

    def paste_onto(
        self, cutout: Cutout, center: tuple[float, float], is_target: bool, look: _Look, rng: np.random.Generator
    ) -> None:
        """Paste a cut-out onto the scene, in front of everything else.

        Args:
            cutout: The cut-out.
            center: x and y of its center in pixels; it may lie outside the scene.
            is_target: Whether it is a target or a distractor, which hides the targets behind it.
            look: Its adaptation to the scene.
            rng: Random generator.
        """
        height, width = self.target.shape
        h, w = cutout.alpha.shape
        left, top = round(center[0] - w / 2), round(center[1] - h / 2)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        place = np.s_[y0:y1, x0:x1]
        cutout = Cutout(cutout.color[part], cutout.alpha[part])
        if look.texture is not None:
            color = _random_patch(look.texture, cutout.alpha.shape, rng).astype(np.float32)
        else:
            color = cutout.color
        color = _jitter_color(color, rng, look.jitter)
        color = _harmonize(Cutout(color, cutout.alpha), self.image[place], look.harmony)
        alpha = cutout.alpha
        if look.blur:
            alpha = cv2.GaussianBlur(alpha, (0, 0), look.blur)
            color = cv2.GaussianBlur(color, (0, 0), look.blur)
        if look.shadow:
            self._draw_shadow(alpha, place, look.shadow, rng)
        self.image[place] = paste(color, alpha, self.image[place])
        self.target[place] += alpha * (float(is_target) - self.target[place])

    def _draw_shadow(
        self, alpha: np.ndarray, place: tuple[slice, slice], darkness: float, rng: np.random.Generator
    ) -> None:
        reach = max(alpha.shape) * rng.uniform(0.02, 0.1)
        shift = np.float32([[1, 0, rng.normal(0, reach)], [0, 1, abs(rng.normal(0, reach))]])
        shadow = cv2.warpAffine(alpha, shift, alpha.shape[::-1])
        shadow = cv2.GaussianBlur(shadow, (0, 0), max(reach, 0.5))
        self.image[place] *= 1 - darkness * shadow[..., None]


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


def _own_object(scene: _Scene, draw: DrawSample, background: np.ndarray, rng: np.random.Generator) -> None:
    """A crop of a sample's own photograph; its own object, usually the salient one, is the target."""
    height, width = scene.target.shape
    planes = draw()
    box = box_from_mask(planes[-1])
    window = [0, 0, width, height]
    if box is not None:
        for axis, side in enumerate((width, height)):
            window[axis] = int(box[axis] * rng.random())
            window[axis + 2] = side - int((side - 1 - box[axis + 2]) * rng.random())
        if rng.random() < 0.3:  # part of the object lies outside the crop
            axis, end = int(rng.integers(2)), 2 * int(rng.integers(2))
            cut = int((window[axis + 2] - window[axis]) * rng.uniform(0.1, 0.4))
            window[axis + end] += cut if end == 0 else -cut
    part = np.moveaxis(planes[[0, 1, 2, -1], window[1] : window[3], window[0] : window[2]], 0, 2)
    layers = cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_LINEAR)
    scene.image[:] = _jitter_color(layers[..., :3].astype(np.float32), rng, strength=0.5)
    scene.target[:] = layers[..., 3].astype(np.float32) / 255


def _small_target(scene: _Scene, draw: DrawSample, background: np.ndarray, rng: np.random.Generator) -> None:
    """A crop of a sample's own photograph whose own object is a distractor, with one or two smaller targets."""
    _own_object(scene, draw, background, rng)
    scene.target[:] = 0
    height, width = scene.target.shape
    for _ in range(int(rng.choice([1, 2], p=[0.7, 0.3]))):
        cutout = cut_out(draw())
        if cutout is None:
            continue
        side = max(height, width) * np.exp(rng.uniform(np.log(0.08), np.log(0.4)))
        cutout = _transform(cutout, side, rng, max_angle=30)
        center = width * rng.uniform(0.1, 0.9), height * rng.uniform(0.1, 0.9)
        scene.paste_onto(cutout, center, True, _random_look(background, rng), rng)


def _several(scene: _Scene, draw: DrawSample, background: np.ndarray, rng: np.random.Generator) -> None:
    """One to four objects, side by side or in front of each other."""
    height, width = scene.target.shape
    number = int(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1]))
    same = cut_out(draw()) if rng.random() < 0.2 else None
    for is_target in _choose_targets(number, rng):
        cutout = same or cut_out(draw())
        if cutout is None:
            continue
        side = np.exp(rng.uniform(np.log(0.2), np.log(1.1))) * max(height, width) / np.sqrt(number) ** 0.5
        cutout = _transform(cutout, side, rng, max_angle=rng.choice([0, 30]))
        center = width * rng.uniform(0.15, 0.85), height * rng.uniform(0.15, 0.85)
        scene.paste_onto(cutout, center, is_target, _random_look(background, rng), rng)


def _touching(scene: _Scene, draw: DrawSample, background: np.ndarray, rng: np.random.Generator) -> None:
    """A row of two or three similar objects that touch or overlap a little; one of them is the target."""
    height, width = scene.target.shape
    original = cut_out(draw())
    if original is None:
        return
    number = int(rng.choice([2, 3], p=[0.7, 0.3]))
    target = rng.integers(number)
    side = max(height, width) * rng.uniform(0.2, 0.7)
    look, max_angle = _random_look(background, rng), rng.choice([0, 15])
    angle = rng.choice([0, np.pi]) + rng.normal(0, 0.4)
    x, y = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.7)
    x, y = x - np.cos(angle) * side * 0.4 * (number - 1), y - np.sin(angle) * side * 0.4 * (number - 1)
    for index in range(number):
        cutout = _transform(original, side * np.exp(rng.normal(0, 0.08)), rng, max_angle)
        scene.paste_onto(cutout, (x, y), index == target, look._replace(jitter=look.jitter * 0.2), rng)
        extent = 1 / max(abs(np.cos(angle)) / cutout.alpha.shape[1], abs(np.sin(angle)) / cutout.alpha.shape[0])
        step = extent * rng.uniform(0.55, 0.98)
        x, y = x + np.cos(angle) * step, y + np.sin(angle) * step


def _crowd(scene: _Scene, draw: DrawSample, background: np.ndarray, rng: np.random.Generator) -> None:
    """A group of 4 to 35 small objects of one to three kinds; in half of the scenes, all of them are targets."""
    height, width = scene.target.shape
    kinds = [cutout for cutout in (cut_out(draw()) for _ in range(int(rng.integers(1, 4)))) if cutout is not None]
    if not kinds:
        return
    number = int(rng.integers(4, 36))
    side = max(height, width) * np.exp(rng.uniform(np.log(0.06), np.log(0.35)))
    # from a heap of objects that hide each other to a flock all over the image
    spread = min(side / max(height, width) * np.sqrt(number) * rng.uniform(0.2, 0.7), 0.35)
    middle = rng.uniform(0.3, 0.7, 2)
    all_targets = rng.random() < 0.5
    targets = np.ones(number, bool) if all_targets else _choose_targets(number, rng)
    look, max_angle = _random_look(background, rng), rng.choice([10, 180])
    for is_target in targets:
        kind = kinds[rng.integers(len(kinds))]
        cutout = _transform(kind, side * np.exp(rng.normal(0, 0.15)), rng, max_angle)
        x, y = middle + rng.normal(0, spread, 2)
        scene.paste_onto(cutout, (x * width, y * height), is_target, look._replace(jitter=look.jitter * 0.5), rng)


def _thin_parts(scene: _Scene, draw: DrawSample, background: np.ndarray, rng: np.random.Generator) -> None:
    """One or two groups of thin parts with the colors of a photograph, in front of up to two distractors."""
    height, width = scene.target.shape
    for _ in range(int(rng.integers(0, 3))):
        cutout = cut_out(draw())
        if cutout is not None:
            cutout = _transform(cutout, max(height, width) * rng.uniform(0.2, 0.7), rng, max_angle=20)
            center = width * rng.random(), height * rng.random()
            scene.paste_onto(cutout, center, False, _random_look(background, rng), rng)
    for is_target in _choose_targets(int(rng.choice([1, 2], p=[0.6, 0.4])), rng):
        side = int(max(height, width) * rng.uniform(0.3, 1))
        alpha = draw_strokes(side, rng)
        source = cut_out(draw())
        texture = background if source is None or rng.random() < 0.3 else source.color
        color = np.ascontiguousarray(_random_patch(texture, alpha.shape, rng))
        look = _random_look(background, rng)._replace(texture=None)
        center = width * rng.uniform(0.2, 0.8), height * rng.uniform(0.2, 0.8)
        scene.paste_onto(Cutout(color, alpha), center, is_target, look, rng)


def _image_region(scene: _Scene, draw: DrawSample, background: np.ndarray, rng: np.random.Generator) -> None:
    """A region of the photograph, whatever it shows; only the coarse mask indicates that it is the target.

    A region of similar color and its most similar neighbors, by the graph of Felzenszwalb and Huttenlocher ("Efficient
    Graph-Based Image Segmentation", IJCV 2004), if its outline is visible.
    """
    felzenszwalb = import_extra("skimage.segmentation", "train").felzenszwalb
    height, width = scene.target.shape
    scale = min(REGION_SIDE / max(height, width), 1)
    small = cv2.resize(background, (max(round(width * scale), 1), max(round(height * scale), 1)))
    min_area = int(small.shape[0] * small.shape[1] * 0.002)
    parts = felzenszwalb(small, scale=np.exp(rng.uniform(np.log(80), np.log(600))), sigma=0.8, min_size=min_area)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    areas = np.bincount(parts.ravel())
    means = np.stack([np.bincount(parts.ravel(), channel.ravel()) / areas for channel in cv2.split(lab)], axis=1)
    for _ in range(_REGION_TRIES):
        region = parts == rng.choice(len(areas), p=areas / areas.sum())
        for _ in range(int(rng.geometric(0.35)) - 1):  # add the most similar neighbor
            ring = cv2.dilate(region.view(np.uint8), _RING).view(bool) & ~region
            neighbors = np.unique(parts[ring])
            if len(neighbors):
                mean = lab[region].mean(0)
                region |= parts == neighbors[np.abs(means[neighbors] - mean).sum(1).argmin()]
        mask = cv2.medianBlur(region.view(np.uint8) * np.uint8(255), 5)
        inside, outside = (mask > 0) & (cv2.erode(mask, _RING) == 0), (mask == 0) & (cv2.dilate(mask, _RING) > 0)
        if 0.005 < (mask > 0).mean() < 0.6 and inside.any() and outside.any():
            contrast = np.abs(lab[inside].mean(0) - lab[outside].mean(0)).sum()
            if contrast > MIN_CONTRAST:
                mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_CUBIC)
                scene.target[:] = np.clip((mask.astype(np.float32) / 255 - 0.5) * 2 + 0.5, 0, 1)
                return


def _degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply lens blur, exposure, sensor noise and JPEG to the whole scene, which hides where objects were pasted."""
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3))
    image = 255 * (np.clip(image, 0, 255) / 255) ** np.exp(rng.normal(0, 0.15))
    if rng.random() < 0.5:
        image = image + rng.normal(0, rng.uniform(1, 7), image.shape)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        _, code = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))])
        pixels = cv2.imdecode(code, cv2.IMREAD_COLOR)
    return pixels


def _random_background(photograph: np.ndarray, rng: np.random.Generator, sharp: bool = False) -> np.ndarray:
    """Return a random crop of a photograph, (3, H, W), as (H, W, 3); unless ``sharp``, it is often out of focus."""
    pixels = np.moveaxis(photograph, 0, 2)
    height, width = pixels.shape[:2]
    zoom = rng.uniform(0.4, 1)
    h, w = int(height * zoom), int(width * zoom)
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    pixels = cv2.resize(np.ascontiguousarray(pixels[top : top + h, left : left + w]), (width, height))
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1].copy()
    focus = 1 if sharp else rng.random()
    if focus < 0.45:
        far = max(height, width) / 32  # blurred so strongly that only the pasted objects are recognizable
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.8, 6) if focus < 0.3 else far)
    return pixels


SCENES = {
    _own_object: 0.34,
    _small_target: 0.14,
    _several: 0.17,
    _touching: 0.12,
    _crowd: 0.08,
    _thin_parts: 0.05,
    _image_region: 0.10,
}
"""The kinds of scenes and their probabilities."""


class CopyPasteSample(NamedTuple):
    """A training sample made by copy-paste augmentation."""

    image: np.ndarray
    """(3, H, W) uint8 RGB."""
    gt: np.ndarray
    """(H, W) uint8 0..255: the targets. May be empty if these are hidden or outside the image."""
    mask_only_target: bool
    """Whether only the coarse mask indicates the target, and nothing in the image; it should then be reliable."""


def copy_paste(background: np.ndarray, draw: DrawSample, rng: np.random.Generator) -> CopyPasteSample:
    """Make a training sample of objects in front of a photograph.

    Args:
        background: (3, H, W) uint8 RGB, the photograph.
        draw: Returns a sample whose object may be pasted, of the same height and width.
        rng: Random generator; the same state gives the same sample.

    Returns:
        The sample, of the background's height and width.

    Raises:
        MissingExtraError: If scikit-image, which the extra ``train`` installs, is missing and a scene needs it.
    """
    make_scene = rng.choice(list(SCENES), p=list(SCENES.values()))
    pixels = _random_background(background, rng, sharp=make_scene is _image_region)
    scene = _Scene(pixels)
    make_scene(scene, draw, pixels, rng)
    image = _degrade(scene.image, rng)
    gt = np.round(scene.target * 255).astype(np.uint8)
    return CopyPasteSample(np.moveaxis(image, 2, 0), gt, mask_only_target=make_scene is _image_region)
