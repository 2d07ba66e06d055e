"""Composites: objects cut out of their photographs and put into others, to train on what few photographs show.

A network that was trained on one salient object a photograph erases what is not salient, although the coarse mask
shows it, and adds what is salient beside it. So the scenes made here hold, beside pictures as they are, several objects
of which some are named, ones alike that touch, heaps of many small ones, ones that hardly differ from their
surroundings, and regions of plain photographs that are no objects at all. Samples come and go as (C, H, W) uint8 planes
of one size, as the cache holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb

from IS_Net.preprocess import box_from_mask

MIN_SIDE = 12
"""A cut-out's shorter side in pixels, below which it shows no object."""
REGION_SIDE = 512
"""Regions of photographs are looked for at this size."""
MIN_CONTRAST = 20.0
"""Between both sides of a region's outline: sum of the differences of L, a and b, each 0..255."""
_TRIES = 6
_RING = np.ones((7, 7), np.uint8)

Draw = Callable[[], np.ndarray]
"""Gives the planes of another sample at each call: (C, H, W) uint8, RGB first, ground truth last."""


class Cutout(NamedTuple):
    """An object without its background."""

    color: np.ndarray
    """(h, w, 3) uint8 RGB; the object's own colors also where it is transparent."""
    alpha: np.ndarray
    """(h, w) float32 in [0, 1]."""


def estimate_foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Estimate the object's own colors where its border mixes with the background.

    Two passes of blur fusion (Forte, "Approximate Fast Foreground Color Estimation", ICIP 2021).

    Args:
        image: (h, w, 3) uint8.
        alpha: (h, w) float32 in [0, 1].

    Returns:
        (h, w, 3) uint8.
    """
    quarter = max(alpha.shape[1] // 4, 1), max(alpha.shape[0] // 4, 1)
    pixels, small = (cv2.resize(layer, quarter, interpolation=cv2.INTER_AREA) for layer in (image, alpha))
    colors = pixels.astype(np.float32)
    colors = _blur_fusion(colors, small, colors, colors, radius=11)  # wide blurs need no full resolution
    inside, outside = (cv2.resize(layer, alpha.shape[::-1], interpolation=cv2.INTER_LINEAR) for layer in colors)
    inside, _ = _blur_fusion(image.astype(np.float32), alpha, inside, outside, radius=4)
    return inside.astype(np.uint8)


def _blur_fusion(
    pixels: np.ndarray, alpha: np.ndarray, inside: np.ndarray, outside: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correct estimates of the colors inside and outside of an object by their means nearby."""
    size, a = (2 * radius + 1,) * 2, alpha[..., None]
    weight = cv2.blur(alpha, size)[..., None]
    near = (cv2.blur(inside * a, size) + 1e-5 * inside) / (weight + 1e-5)  # without the object in reach: as it was
    behind = cv2.blur(outside * (1 - a), size) / (1 - weight + 1e-5)
    return np.clip(near + a * (pixels - a * near - (1 - a) * behind), 0, 255), behind


def cut_out(planes: np.ndarray) -> Cutout | None:
    """Cut the object out of a sample.

    Args:
        planes: (C, H, W) uint8: RGB first, ground truth last.

    Returns:
        The object, or None where there is none of use.
    """
    box = box_from_mask(planes[-1])
    if box is None or min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
        return None
    margin = 4
    window = np.s_[max(box[1] - margin, 0) : box[3] + margin + 1, max(box[0] - margin, 0) : box[2] + margin + 1]
    alpha = planes[-1][window].astype(np.float32) / 255
    return Cutout(estimate_foreground(np.moveaxis(planes[:3], 0, 2)[window], alpha), alpha)


def _transform(cut: Cutout, side: float, rng: np.random.Generator, turn: float) -> Cutout:
    """Scale a cut-out so that its longer side is ``side`` pixels, mirror and turn it (up to ``turn`` degrees)."""
    scale = side / max(cut.alpha.shape)
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    size = [
        max(round(edge * scale * s), 2) for edge, s in zip(cut.alpha.shape[::-1], (stretch, 1 / stretch), strict=True)
    ]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    layers = cv2.resize(np.dstack((cut.color, np.uint8(cut.alpha * 255))), size, interpolation=interpolation)
    if rng.random() < 0.5:
        layers = layers[:, ::-1]
    angle = rng.uniform(-turn, turn)
    if abs(angle) > 3:
        (w, h), radians = size, np.deg2rad(angle)
        wide = int(abs(w * np.cos(radians)) + abs(h * np.sin(radians))) + 2
        high = int(abs(h * np.cos(radians)) + abs(w * np.sin(radians))) + 2
        matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, 1)
        matrix[:, 2] += (wide - w) / 2, (high - h) / 2
        color = cv2.warpAffine(layers[..., :3].copy(), matrix, (wide, high), borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(layers[..., 3].copy(), matrix, (wide, high))
        return Cutout(color, alpha.astype(np.float32) / 255)
    return Cutout(np.ascontiguousarray(layers[..., :3]), layers[..., 3].astype(np.float32) / 255)


def _recolor(color: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change exposure, contrast and tint, as much for all pixels of a cut-out."""
    gain = np.exp(rng.normal(0, 0.25 * strength) + rng.normal(0, 0.08 * strength, 3))
    shift = rng.normal(0, 15 * strength, 3)
    return np.clip(color * gain + shift, 0, 255)


def _harmonize(cut: Cutout, behind: np.ndarray, strength: float) -> np.ndarray:
    """Move the colors of a cut-out towards mean and contrast of what it is put before; 1 takes them over."""
    solid = cut.alpha > 0.5
    if not solid.any():
        return cut.color.astype(np.float32)
    own, other = cut.color[solid].astype(np.float32), behind.reshape(-1, 3).astype(np.float32)
    ratio = np.clip((other.std(0) + 8) / (own.std(0) + 8), 0.4, 1.6)
    ratio = 1 + strength * (ratio - 1)
    mean = own.mean(0) + strength * (other.mean(0) - own.mean(0))
    return np.clip((cut.color - own.mean(0)) * ratio + mean, 0, 255)


def _patch(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a (height, width, 3) patch of a photograph, from anywhere in it, at its own scale or enlarged."""
    h, w = (min(edge, whole) for edge, whole in zip(size, image.shape[:2], strict=True))
    zoom = rng.uniform(0.5, 1)
    h, w = max(int(h * zoom), 2), max(int(w * zoom), 2)
    top, left = rng.integers(image.shape[0] - h + 1), rng.integers(image.shape[1] - w + 1)
    return cv2.resize(image[top : top + h, left : left + w], size[::-1], interpolation=cv2.INTER_LINEAR)


def strokes(side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw many thin curved parts, as of seedlings, grass, cords or a net: (side, side) float32 alpha in [0, 1]."""
    alpha = np.zeros((side, side), np.uint8)
    t = np.linspace(0, 1, 24)[:, None]
    common = rng.uniform(-1, 1, 2)  # a direction that the parts may share
    shared = rng.random()
    thick = max(side * rng.uniform(0.003, 0.02), 1.2)
    for _ in range(int(rng.integers(2, 50))):
        start = rng.uniform(0.05, 0.95, 2)
        way = (shared * common + (1 - shared) * rng.uniform(-1, 1, 2)) * rng.uniform(0.1, 0.5)
        bend = rng.normal(0, 0.08, 2)
        curve = start + t * way + t * (1 - t) * 4 * bend
        points = np.round(curve * side * 16).astype(np.int32)
        width = max(int(thick * rng.uniform(0.6, 1.6)), 1)
        cv2.polylines(alpha, [points], False, 255, width, cv2.LINE_AA, 4)
        if rng.random() < 0.5:  # a leaf, a bead or a bulb at its end
            axes = np.maximum(side * rng.uniform(0.005, 0.035, 2), 1.5)
            end = tuple(int(v) for v in points[-1])
            cv2.ellipse(
                alpha, end, tuple(int(v * 16) for v in axes), rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA, 4
            )
    return alpha.astype(np.float32) / 255


class _Scene:
    """A picture that grows by layers, and the alpha of those layers that are the target."""

    def __init__(self, background: np.ndarray) -> None:
        self.image = background.astype(np.float32)
        self.target = np.zeros(background.shape[:2], np.float32)

    def put(
        self, cut: Cutout, center: tuple[float, float], chosen: bool, look: _Look, rng: np.random.Generator
    ) -> None:
        """Put a cut-out before all that is there, its center at x, y."""
        height, width = self.target.shape
        h, w = cut.alpha.shape
        left, top = round(center[0] - w / 2), round(center[1] - h / 2)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, width), min(top + h, height)
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        place = np.s_[y0:y1, x0:x1]
        cut = Cutout(cut.color[part], cut.alpha[part])
        if look.texture is not None:
            color = _recolor(_patch(look.texture, cut.alpha.shape, rng).astype(np.float32), rng, look.tint)
        else:
            color = _recolor(cut.color, rng, look.tint)
        color = _harmonize(Cutout(color, cut.alpha), self.image[place], look.harmony)
        alpha = cut.alpha
        if look.soft:
            alpha = cv2.GaussianBlur(alpha, (0, 0), look.soft)
            color = cv2.GaussianBlur(color, (0, 0), look.soft)
        if look.shadow:
            self._shade(alpha, place, look.shadow, rng)
        a = alpha[..., None]
        self.image[place] += a * (color - self.image[place])
        self.target[place] += alpha * (float(chosen) - self.target[place])

    def _shade(self, alpha: np.ndarray, place: tuple[slice, slice], depth: float, rng: np.random.Generator) -> None:
        reach = max(alpha.shape) * rng.uniform(0.02, 0.1)
        shift = np.float32([[1, 0, rng.normal(0, reach)], [0, 1, abs(rng.normal(0, reach))]])
        shadow = cv2.warpAffine(alpha, shift, alpha.shape[::-1])
        fade = cv2.GaussianBlur(shadow, (0, 0), max(reach, 0.5))
        self.image[place] *= 1 - depth * fade[..., None]


class _Look(NamedTuple):
    """How a cut-out is put into a scene."""

    tint: float
    harmony: float
    soft: float
    shadow: float
    texture: np.ndarray | None


def _look(background: np.ndarray, rng: np.random.Generator) -> _Look:
    texture = background if rng.random() < 0.15 else None
    hidden = rng.random() < 0.2
    return _Look(
        tint=rng.uniform(0, 1) * (not hidden),
        harmony=rng.uniform(0.6, 1) if hidden else rng.uniform(0, 0.5),
        soft=rng.uniform(0.3, 1.2) if rng.random() < 0.5 else 0.0,
        shadow=rng.uniform(0.1, 0.6) if rng.random() < 0.35 else 0.0,
        texture=texture,
    )


def _choose(number: int, rng: np.random.Generator) -> np.ndarray:
    """Decide which of some objects are named: all of them, one, or any."""
    chosen = np.zeros(number, bool)
    kind = rng.random()
    if kind < 0.25:
        chosen[:] = True
    elif kind < 0.65:
        chosen[rng.integers(number)] = True
    else:
        chosen = rng.random(number) < rng.uniform(0.2, 0.8)
        chosen[rng.integers(number)] = True
    return chosen


def _own_object(scene: _Scene, draw: Draw, background: np.ndarray, rng: np.random.Generator) -> None:
    """A sample's own photograph with its own object, which mostly is what is salient there, seen from nearer."""
    height, width = scene.target.shape
    planes = draw()
    box = box_from_mask(planes[-1])
    window = [0, 0, width, height]
    if box is not None:
        for axis, side in enumerate((width, height)):
            window[axis] = int(box[axis] * rng.random())
            window[axis + 2] = side - int((side - 1 - box[axis + 2]) * rng.random())
        if rng.random() < 0.3:  # part of it lies outside
            axis, end = int(rng.integers(2)), 2 * int(rng.integers(2))
            cut = int((window[axis + 2] - window[axis]) * rng.uniform(0.1, 0.4))
            window[axis + end] += cut if end == 0 else -cut
    part = np.moveaxis(planes[[0, 1, 2, -1], window[1] : window[3], window[0] : window[2]], 0, 2)
    layers = cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_LINEAR)
    scene.image[:] = _recolor(layers[..., :3].astype(np.float32), rng, strength=0.5)
    scene.target[:] = layers[..., 3].astype(np.float32) / 255


def _small_target(scene: _Scene, draw: Draw, background: np.ndarray, rng: np.random.Generator) -> None:
    """A sample's own photograph with its own object, which is not meant: what is named is smaller, and beside it."""
    _own_object(scene, draw, background, rng)
    scene.target[:] = 0
    height, width = scene.target.shape
    for _ in range(int(rng.choice([1, 2], p=[0.7, 0.3]))):
        cut = cut_out(draw())
        if cut is None:
            continue
        placed = _transform(cut, max(height, width) * np.exp(rng.uniform(np.log(0.08), np.log(0.4))), rng, turn=30)
        center = width * rng.uniform(0.1, 0.9), height * rng.uniform(0.1, 0.9)
        scene.put(placed, center, True, _look(background, rng), rng)


def _several(scene: _Scene, draw: Draw, background: np.ndarray, rng: np.random.Generator) -> None:
    """One to four objects, side by side or one before the other."""
    height, width = scene.target.shape
    number = int(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1]))
    same = cut_out(draw()) if rng.random() < 0.2 else None
    for chosen in _choose(number, rng):
        cut = same or cut_out(draw())
        if cut is None:
            continue
        side = np.exp(rng.uniform(np.log(0.2), np.log(1.1))) * max(height, width) / np.sqrt(number) ** 0.5
        placed = _transform(cut, side, rng, turn=rng.choice([0, 30]))
        center = width * rng.uniform(0.15, 0.85), height * rng.uniform(0.15, 0.85)
        scene.put(placed, center, chosen, _look(background, rng), rng)


def _touching(scene: _Scene, draw: Draw, background: np.ndarray, rng: np.random.Generator) -> None:
    """Two or three of one kind in a row, alike, that touch or hide each other a little; one of them is named."""
    height, width = scene.target.shape
    cut = cut_out(draw())
    if cut is None:
        return
    number = int(rng.choice([2, 3], p=[0.7, 0.3]))
    named = rng.integers(number)
    side = max(height, width) * rng.uniform(0.2, 0.7)
    look, turn = _look(background, rng), rng.choice([0, 15])
    angle = rng.choice([0, np.pi]) + rng.normal(0, 0.4)
    x, y = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.7)
    x, y = x - np.cos(angle) * side * 0.4 * (number - 1), y - np.sin(angle) * side * 0.4 * (number - 1)
    for index in range(number):
        placed = _transform(cut, side * np.exp(rng.normal(0, 0.08)), rng, turn)
        scene.put(placed, (x, y), index == named, look._replace(tint=look.tint * 0.2), rng)
        reach = 1 / max(abs(np.cos(angle)) / placed.alpha.shape[1], abs(np.sin(angle)) / placed.alpha.shape[0])
        step = reach * rng.uniform(0.55, 0.98)
        x, y = x + np.cos(angle) * step, y + np.sin(angle) * step


def _crowd(scene: _Scene, draw: Draw, background: np.ndarray, rng: np.random.Generator) -> None:
    """A heap or a flock: up to forty small ones of one to three kinds; often all of them are named."""
    height, width = scene.target.shape
    kinds = [cut for cut in (cut_out(draw()) for _ in range(int(rng.integers(1, 4)))) if cut is not None]
    if not kinds:
        return
    number = int(rng.integers(4, 36))
    side = max(height, width) * np.exp(rng.uniform(np.log(0.06), np.log(0.35)))
    # from a heap whose members hide each other to a flock that fills the picture
    spread = min(side / max(height, width) * np.sqrt(number) * rng.uniform(0.2, 0.7), 0.35)
    middle = rng.uniform(0.3, 0.7, 2)
    all_named = rng.random() < 0.5
    named = np.ones(number, bool) if all_named else _choose(number, rng)
    look, turn = _look(background, rng), rng.choice([10, 180])
    for chosen in named:
        cut = kinds[rng.integers(len(kinds))]
        placed = _transform(cut, side * np.exp(rng.normal(0, 0.15)), rng, turn)
        x, y = middle + rng.normal(0, spread, 2)
        scene.put(placed, (x * width, y * height), chosen, look._replace(tint=look.tint * 0.5), rng)


def _thin_parts(scene: _Scene, draw: Draw, background: np.ndarray, rng: np.random.Generator) -> None:
    """Many thin parts of some photograph's colors, before up to two objects and beside others that are not named."""
    height, width = scene.target.shape
    for _ in range(int(rng.integers(0, 3))):
        cut = cut_out(draw())
        if cut is not None:
            placed = _transform(cut, max(height, width) * rng.uniform(0.2, 0.7), rng, turn=20)
            scene.put(placed, (width * rng.random(), height * rng.random()), False, _look(background, rng), rng)
    for chosen in _choose(int(rng.choice([1, 2], p=[0.6, 0.4])), rng):
        side = int(max(height, width) * rng.uniform(0.3, 1))
        shape = strokes(side, rng)
        source = cut_out(draw())
        texture = background if source is None or rng.random() < 0.3 else source.color
        color = np.ascontiguousarray(_patch(texture, shape.shape, rng))
        look = _look(background, rng)._replace(texture=None)
        center = width * rng.uniform(0.2, 0.8), height * rng.uniform(0.2, 0.8)
        scene.put(Cutout(color, shape), center, chosen, look, rng)


def _image_region(scene: _Scene, draw: Draw, background: np.ndarray, rng: np.random.Generator) -> None:
    """Regions of the photograph itself, whatever they show: nothing but the mask tells that they are meant.

    A region of even color and its nearest neighbors, by the graph of Felzenszwalb and Huttenlocher ("Efficient
    Graph-Based Image Segmentation", IJCV 2004), where its outline is one that can be seen.
    """
    height, width = scene.target.shape
    scale = min(REGION_SIDE / max(height, width), 1)
    small = cv2.resize(background, (max(round(width * scale), 1), max(round(height * scale), 1)))
    least = int(small.shape[0] * small.shape[1] * 0.002)
    parts = felzenszwalb(small, scale=np.exp(rng.uniform(np.log(80), np.log(600))), sigma=0.8, min_size=least)
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    areas = np.bincount(parts.ravel())
    means = np.stack([np.bincount(parts.ravel(), channel.ravel()) / areas for channel in cv2.split(lab)], axis=1)
    for _ in range(_TRIES):
        chosen = parts == rng.choice(len(areas), p=areas / areas.sum())
        for _ in range(int(rng.geometric(0.35)) - 1):  # grow by the neighbor most alike
            ring = cv2.dilate(chosen.view(np.uint8), _RING).view(bool) & ~chosen
            near = np.unique(parts[ring])
            if len(near):
                mean = lab[chosen].mean(0)
                chosen |= parts == near[np.abs(means[near] - mean).sum(1).argmin()]
        mask = cv2.medianBlur(chosen.view(np.uint8) * np.uint8(255), 5)
        inside, outside = (mask > 0) & (cv2.erode(mask, _RING) == 0), (mask == 0) & (cv2.dilate(mask, _RING) > 0)
        if 0.005 < (mask > 0).mean() < 0.6 and inside.any() and outside.any():
            contrast = np.abs(lab[inside].mean(0) - lab[outside].mean(0)).sum()
            if contrast > MIN_CONTRAST:
                grown = cv2.resize(mask, (width, height), interpolation=cv2.INTER_CUBIC)
                scene.target[:] = np.clip((grown.astype(np.float32) / 255 - 0.5) * 2 + 0.5, 0, 1)
                return


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photograph the scene: lens blur, gain, sensor noise and JPEG over all of it hide where things were pasted."""
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


def _backdrop(photograph: np.ndarray, rng: np.random.Generator, sharp: bool = False) -> np.ndarray:
    """A part of a photograph as background, often out of focus."""
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
        far = max(height, width) / 32  # so far out of focus that what stands before it is all there is to see
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
"""What a composite shows, and how often."""


class CopyPasteSample(NamedTuple):
    """A composed training sample."""

    image: np.ndarray
    """(3, H, W) uint8 RGB."""
    gt: np.ndarray
    """(H, W) uint8: what is named. May be empty, where that is hidden or outside."""
    mask_only_target: bool
    """Nothing in the image tells what is named; the coarse mask alone can, and should be about right."""


def copy_paste(background: np.ndarray, draw: Draw, rng: np.random.Generator) -> CopyPasteSample:
    """Make a scene of cut-out objects before a photograph.

    Args:
        background: (3, H, W) uint8 RGB.
        draw: Where the objects come from.
        rng: Where the chances come from.

    Returns:
        The sample; planes of the background's size.
    """
    build = rng.choice(list(SCENES), p=list(SCENES.values()))
    backdrop = _backdrop(background, rng, sharp=build is _image_region)
    scene = _Scene(backdrop)
    build(scene, draw, backdrop, rng)
    image = _expose(scene.image, rng)
    gt = np.round(scene.target * 255).astype(np.uint8)
    return CopyPasteSample(np.moveaxis(image, 2, 0), gt, mask_only_target=build is _image_region)
