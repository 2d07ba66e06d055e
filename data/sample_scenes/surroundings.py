"""Empty places made from the photographs inside scikit-image: floors, walls, skies and blurred backdrops."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from IS_Net.images import read_image
from sample_scenes.materials import Array, Color, Range, Rng, noise, random_color
from sample_scenes.render import Camera, Light, blurred

REGIONS = {"DIS-TR": (0.0, 0.0, 0.5, 1.0), "DIS-VD": (0.5, 0.0, 1.0, 0.5), "DIS-TE1": (0.5, 0.5, 1.0, 1.0)}
"""The part of every photograph, (x0, y0, x1, y1) as shares of its size, that a split's surroundings come from."""
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "ihc.png", "retina.jpg",
               "hubble_deep_field.jpg", "camera.png")  # fmt: skip
"""What backdrops are cut from."""
TEXTURES = ("grass.png", "gravel.png")
"""What floors are grown from."""


def source_path(name: str) -> Path:
    """Return where scikit-image keeps one of the files it ships; never asks the network.

    Raises:
        FileNotFoundError: If scikit-image or the file is missing.
    """
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("scikit-image is not installed: pip install scikit-image")
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from this scikit-image; install scikit-image 0.22 to 0.26")
    return path


@cache
def _source(name: str) -> Array:
    return (read_image(source_path(name)).astype(np.float32) / 255) ** 2.2


def _region(name: str, split: str) -> Array:
    photo = _source(name)
    h, w = photo.shape[:2]
    x0, y0, x1, y1 = REGIONS[split]
    return photo[int(y0 * h) : int(y1 * h), int(x0 * w) : int(x1 * w)]


def _ramp(gray: Array, dark: Color | Array, light: Color | Array) -> Array:
    """Color a gray picture (H, W) in [0, 1] between two linear RGB colors."""
    gray = np.clip(gray, 0, 1)[..., None].astype(np.float32)
    return np.float32(dark) * (1 - gray) + np.float32(light) * gray


# --- surfaces ----------------------------------------------------------------------------------------------------

Hsv = tuple[Range, Range, Range]

# photograph, contrast, and the ranges of the dark and the bright color and of the meters that a tile spans
_GROWN: dict[str, tuple[str, float, Hsv, Hsv, Range]] = {
    "grass": ("grass.png", 1.1, ((60, 110), (0.5, 0.8), (0.05, 0.2)), ((50, 98), (0.25, 0.5), (0.5, 0.75)), (0.9, 1.6)),
    "gravel": ("gravel.png", 1, ((15, 60), (0, 0.3), (0.05, 0.2)), ((20, 60), (0, 0.25), (0.75, 0.95)), (0.9, 1.8)),
}  # fmt: skip
# grown from gravel or made of noise, contrast, large spots, color, how much darker and brighter it gets, meters
_EVEN: dict[str, tuple[bool, float, float, Hsv, Range, Range]] = {
    "asphalt": (True, 0.5, 0.07, ((0, 360), (0, 0.06), (0.3, 0.75)), (0.25, 1.9), (0.4, 0.7)),
    "soil": (True, 0.45, 0.07, ((20, 40), (0.25, 0.5), (0.3, 0.75)), (0.25, 1.9), (0.4, 0.7)),
    "concrete": (False, 0.05, 0.02, ((0, 360), (0, 0.12), (0.5, 0.88)), (0.5, 1.5), (1.5, 3)),
    "plaster": (False, 0.022, 0.006, ((0, 360), (0, 0.3), (0.5, 0.88)), (0.5, 1.5), (1.5, 3)),
}
# rows, columns, joint, bond, length of the grain, contrast, colors of faces and of joints, meters
_LAID: dict[str, tuple[int, int, float, str, int, float, Hsv, Hsv, Range]] = {
    "bricks": (16, 5, 0.0055, "running", 1, 0.1, ((5, 28), (0.1, 0.65), (0.4, 0.85)),
               ((20, 50), (0, 0.2), (0.45, 0.85)), (1.2, 1.2)),
    "paving": (6, 3, 0.005, "running", 1, 0.09, ((0, 50), (0, 0.25), (0.45, 0.85)),
               ((30, 90), (0.05, 0.3), (0.1, 0.4)), (1.8, 1.8)),
    "tiles": (6, 6, 0.004, "stack", 1, 0.03, ((0, 360), (0, 0.35), (0.5, 0.92)),
              ((0, 360), (0, 0.05), (0.4, 0.8)), (0.9, 2)),
    "planks": (16, 2, 0.001, "random", 10, 0.13, ((15, 38), (0.15, 0.65), (0.4, 0.85)),
               ((0, 0), (0, 0), (0.12, 0.12)), (1.1, 1.6)),
}  # fmt: skip
_LAID["panels"] = _LAID["planks"]

OUTDOOR_FLOORS = ("grass", "gravel", "asphalt", "soil", "paving", "concrete", "bricks")
INDOOR_FLOORS = ("planks", "planks", "tiles", "concrete")
OUTDOOR_WALLS = ("bricks", "plaster", "panels", "concrete")
INDOOR_WALLS = ("plaster", "plaster", "bricks", "panels", "tiles")
BEHIND = ("plaster", "bricks", "panels", "concrete", "gravel", "grass", "planks", "paving", "tiles")


def _grown(source: Array, rng: Rng, size: int = 1024, block: int = 192, step: int = 128) -> Array:
    """Grow a gray texture (h, w) to a (size, size) one that tiles, from flipped patches whose contrast is kept."""
    mean, index = source.mean(), np.arange(block)
    window = np.outer(*[np.hanning(block + 2)[1:-1].astype(np.float32)] * 2)
    total, weight = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    for y in range(0, size, step):
        for x in range(0, size, step):
            top, left = (int(rng.integers(0, n - block + 1)) for n in source.shape)
            patch = source[top : top + block, left : left + block]
            place = np.ix_((index + y) % size, (index + x) % size)
            total[place] += window * ((patch[:, ::-1] if rng.random() < 0.5 else patch) - mean)
            weight[place] += window**2
    return total / np.sqrt(weight) + mean


def _laid(rng: Rng, rows: int, columns: int, joint: float, bond: str, grain: int, contrast: float) -> tuple:
    """Lay boards, bricks or tiles: gray faces (1024, 1024) in [0, 1], and the share of joint at each pixel."""
    y, x = np.mgrid[0:1024, 0:1024] / np.float32(1024)
    row = np.floor(y * rows).astype(int)
    shift = {"running": (row % 2) * 0.5, "stack": 0 * row, "random": rng.random(rows)[row]}[bond] / columns
    across = (x + shift) * columns
    cell = row * columns + np.floor(across).astype(int) % columns
    u, v, fine = across % 1, (y * rows) % 1, noise(rng, 1024, 8, 0.75)
    start = rng.integers(0, 1024, (rows * columns, 2))[cell]
    # the grain continues within a face, also where the face crosses the texture's edge
    at_x = (u / columns * 1024 / grain).astype(int) + start[..., 0]
    at_y = (v / rows * 1024).astype(int) + start[..., 1]
    faces = 0.5 + contrast * fine[at_y % 1024, at_x % 1024] + rng.normal(0, 0.11, rows * columns)[cell]
    # distance to the joint in tiles of texture, so that joints are equally wide both ways
    edge = np.minimum(np.minimum(u, 1 - u) / columns, np.minimum(v, 1 - v) / rows) + 0.0006 * fine
    return faces, np.clip(1.4 - edge / joint, 0, 1)


def surface(kind: str, rng: Rng, split: str) -> tuple[Array, float]:
    """Make a surface that tiles.

    Args:
        kind: grass, gravel, asphalt, soil, concrete, plaster, bricks, paving, tiles, planks or panels.
        rng: Decides colors and patterns.
        split: Whose part of the photographs it is made from.

    Returns:
        (1024, 1024, 3) float32 linear RGB, and the meters that it spans.
    """
    large = noise(rng, 1024, 5, 0.6)
    if kind in _GROWN:
        file, contrast, dark, bright, meters = _GROWN[kind]
        gray = _grown(_region(file, split)[..., 0] ** (1 / 2.2), rng) + 0.05 * large
        gray = contrast * gray - 0.65 * (contrast - 1)
        return _ramp(gray, random_color(rng, *dark), random_color(rng, *bright)), rng.uniform(*meters)
    if kind in _EVEN:
        grown, contrast, spots, color, (darker, brighter), meters = _EVEN[kind]
        fine = _grown(_region("gravel.png", split)[..., 0] ** (1 / 2.2), rng) if grown else noise(rng, 1024, 8, 0.95)
        base = np.float32(random_color(rng, *color))
        gray = 0.5 + contrast * (fine - fine.mean()) + spots * large
        return _ramp(gray, base * darker, np.minimum(base * brighter, 1)), rng.uniform(*meters)
    *layout, face, mortar, meters = _LAID[kind]
    faces, joint = _laid(rng, *layout)
    base, mortar = np.float32(random_color(rng, *face)), np.float32(random_color(rng, *mortar))
    color, joint = _ramp(faces + 0.03 * large, base * 0.35, np.minimum(base * 1.6, 1)), joint[..., None]
    texture = color * (1 - joint) + mortar * joint * (1 + 0.1 * large[..., None])
    return (texture.transpose(1, 0, 2) if kind == "panels" else texture).astype(np.float32), rng.uniform(*meters)


def _sample(texture: Array, meters: float, x: Array, y: Array, blur: Array) -> Array:
    """Look up a tiling texture (n, n, C) at metric coordinates (H, W), `blur` (H, 1) meters wide: (H, W, C)."""
    levels = [texture]
    while levels[-1].shape[0] > 16:
        small = cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        levels.append(small.reshape(*small.shape[:2], -1))
    wanted = np.log2(np.maximum(blur * texture.shape[0] / meters, 1))
    level = np.clip(wanted, 0, len(levels) - 1).astype(np.float32)
    result = np.zeros((*x.shape, texture.shape[2]), np.float32)
    for k, picture in enumerate(levels):
        share = np.clip(1 - np.abs(level - k), 0, 1)
        rows = np.flatnonzero(share[:, 0])
        if not len(rows):
            continue
        span, n = slice(rows[0], rows[-1] + 1), picture.shape[0]
        padded = cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_WRAP)  # to interpolate across the tile's seam
        column, row = (((c[span] * (n / meters) - 0.5) % n + 1).astype(np.float32) for c in (x, y))
        result[span] += share[span, :, None] * cv2.remap(padded, column, row, cv2.INTER_LINEAR).reshape(
            *column.shape, -1
        )
    return result


# --- places ------------------------------------------------------------------------------------------------------


def backdrop(rng: Rng, split: str, shape: tuple[int, int], blur: Range = (0.008, 0.035)) -> Array:
    """Cut out a part of a photograph, vary its colors and put it out of focus.

    Args:
        rng: Decides photograph, part and colors.
        split: Whose part of the photographs it is cut from.
        shape: (height, width) of the result.
        blur: Range of the blur's sigma, as shares of the longer side.

    Returns:
        (height, width, 3) float32 linear RGB.
    """
    photo = _region(str(rng.choice(PHOTOGRAPHS)), split)
    h, w = photo.shape[:2]
    aspect, zoom = shape[1] / shape[0], rng.uniform(0.65, 1)
    ch, cw = (max(2, int(n * zoom)) for n in ((h, h * aspect) if w / h > aspect else (w / aspect, w)))
    top, left = int(rng.integers(0, h - ch + 1)), int(rng.integers(0, w - cw + 1))
    crop = photo[top : top + ch, left : left + cw][:, :: -1 if rng.random() < 0.5 else 1]
    picture = np.clip(cv2.resize(np.ascontiguousarray(crop), shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    if rng.random() < 0.5:  # other colors, same shapes
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 360)) % 360
        hsv[..., 1] *= rng.uniform(0.3, 0.9)
        picture = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if np.ptp(picture, axis=-1).max() < 0.01:
        picture = _ramp(picture[..., 0], (0, 0, 0), random_color(rng, (0, 360), (0.05, 0.4), (0.8, 1)))
    level = min(rng.uniform(0.12, 0.4) / max(float(picture.mean()), 0.02), 4.0)
    picture = picture * np.float32(level * (1 + rng.normal(0, 0.08, 3)))
    return blurred(picture, math.exp(rng.uniform(*np.log(blur))) * max(shape))


def _sky(rng: Rng, shape: tuple[int, int], horizon: float) -> Array:
    """Draw a sky with clouds above the horizon's row, and hazy lines of trees or hills on it."""
    h, w = shape
    y = np.clip((horizon - np.arange(h)) / max(horizon, h * 0.3), 0, 1)[:, None].astype(np.float32)
    high = random_color(rng, (195, 225), (0.15, 0.65), (0.5, 0.9))
    low = np.float32(random_color(rng, (15, 220), (0.02, 0.2), (0.8, 0.98)))
    sky = _ramp(np.broadcast_to(y**0.7, shape), low, high)
    clouds = cv2.resize(noise(rng, 512, 6), (max(w, 512) * 2, max(h, 512)), interpolation=cv2.INTER_CUBIC)[:h, :w]
    cover = np.clip((clouds - rng.uniform(-1, 1.5)) * 0.7, 0, 1)[..., None] * rng.uniform(0.4, 0.95)
    sky = sky * (1 - cover) + np.float32(random_color(rng, (0, 360), (0, 0.05), (0.8, 1))) * cover
    for depth in (0.35, 1.0)[int(rng.integers(2)) :]:  # the further one has less contrast
        line = cv2.resize(noise(rng, 512, 8, rng.uniform(0.45, 0.75))[:1], (w, 1), interpolation=cv2.INTER_CUBIC)[0]
        top = horizon - h * rng.uniform(0.02, 0.16) * (1.2 - 0.5 * depth) * np.clip(1 + 0.3 * line, 0.2, 3)
        inside = np.clip(np.arange(h)[:, None] - top, 0, 1)[..., None].astype(np.float32)
        crowns = cv2.resize(noise(rng, 512, 7, 0.8), (w, h), interpolation=cv2.INTER_CUBIC)
        dark = np.float32(random_color(rng, (70, 150), (0.2, 0.6), (0.08, 0.3)))
        trees = _ramp(0.45 + 0.2 * crowns, dark * 0.4, dark * 1.8) * depth + low * 0.6 * (1 - depth)
        sky = sky * (1 - inside) + trees * inside
    return blurred(sky.astype(np.float32), max(shape) * rng.uniform(0.002, 0.008))


@dataclass(frozen=True)
class Scene:
    """An empty place and its light.

    Attributes:
        image: (H, W, 3) float32 linear RGB.
        light: The light in it.
        screen: The plane that shadows fall on, as `render` takes it.
        far: Meters from the camera to the wall at its end, or to the horizon.
    """

    image: Array
    light: Light
    screen: tuple[int, float] | None
    far: float


def _light(rng: Rng, axis: int) -> Light:
    """Draw sun or overcast light; a plane that faces along the axis receives a light of one in all."""
    if axis == 1:
        way = np.array([rng.uniform(-1, 1), rng.uniform(0.6, 1.6), rng.uniform(-0.4, 1.0)])
    else:
        way = np.array([rng.uniform(-1, 1), rng.uniform(0.2, 1.1), rng.uniform(0.6, 1.4)])
    way /= np.linalg.norm(way)
    ambient = rng.uniform(0.22, 0.42) if rng.random() < 0.65 else rng.uniform(0.6, 0.8)
    warm = np.float32([1, 1, 1]) + rng.uniform(-0.03, 0.1) * np.float32([1, 0.2, -1])
    return Light(way, warm * (1 - ambient) / way[axis], ambient, np.full((2, 2, 3), 0.3, np.float32))


def _floor(texture: Array, meters: float, camera: Camera, rows: Array, width: int, focus: Range, rng: Rng) -> tuple:
    """Draw the floor at some image rows (n,): (n, width, 3) linear RGB, and the distance of each row, (n, 1)."""
    below = np.maximum(rows[:, None] - camera.center[1], 0.5).astype(np.float32)
    depth = np.float32(camera.focal * camera.height) / below
    x = (np.arange(width, dtype=np.float32) - camera.center[0]) / camera.focal * depth
    # one pixel of floor is longer than wide; out of focus, the lens blurs what is not at the object's distance
    footprint = depth * np.sqrt(depth / camera.height) / camera.focal
    defocus = focus[1] * np.abs(1 - focus[0] / depth) * depth
    away = np.broadcast_to(depth, x.shape)
    floor = _sample(texture, meters, x + rng.uniform(0, 9), away, np.maximum(footprint, defocus))
    tones = noise(rng, 256, 5, 0.7)[..., None] * np.float32(0.07)
    for period in (4.7, 23.0):  # unlike the texture's own period, so that its tiles look different
        floor *= np.exp(_sample(tones, period, x, away, footprint))
    return floor, depth


def _room(
    outdoors: bool, camera: Camera, distance: float, shape: tuple[int, int], light: Light, rng: Rng, split: str,
    material: str | None,
) -> tuple[Array, float]:  # fmt: skip
    """Draw a floor and what rises behind it: (H, W, 3) linear RGB, and the meters to the wall or to the horizon."""
    h, w = shape
    blur, walled = 0.012 * rng.uniform(0.3, 1.5), not outdoors or rng.random() < 0.35
    far, horizon = distance * (rng.uniform(1.25, 2.2) if walled else 60), camera.center[1]
    foot = float(horizon + camera.focal * camera.height / far)
    rows, edge = np.arange(h, dtype=np.float32), int(np.clip(foot, 0, h))
    texture, meters = surface(material or str(rng.choice(OUTDOOR_FLOORS if outdoors else INDOOR_FLOORS)), rng, split)
    floor, depth = _floor(texture, meters, camera, rows[edge:], w, (distance, blur), rng)
    if not walled:
        back = _sky(rng, shape, float(np.clip(horizon, 0.02 * h, 2 * h)))
        haze = np.clip(depth / (distance * 30), 0, 1)[..., None] ** 0.7 * 0.6
        floor = floor * (1 - haze) + back[int(np.clip(horizon - 2, 0, h - 1))].mean(0) * haze
    elif material is None and rng.random() < 0.2:
        back = backdrop(rng, split, shape, (0.01, 0.03))
    else:
        if material is None:
            texture, meters = surface(str(rng.choice(OUTDOOR_WALLS if outdoors else INDOOR_WALLS)), rng, split)
        pixel = far / camera.focal
        x, y = np.meshgrid((np.arange(w) - w / 2) * pixel, (rows[: edge + 1] - foot) * pixel)
        spread = np.full((len(y), 1), max(pixel, blur * abs(1 - far / distance) * distance))
        back = _sample(texture, meters, x, y, spread)
        back *= max(float(light.direction[2]), 0) * float(light.color.mean()) + light.ambient
    back = back[: edge + 1]
    if walled:  # little light gets into the corner
        shade = 1 - 0.4 * np.exp(-np.abs(rows - foot) / (0.12 * camera.focal / far))[:, None, None]
        floor, back = floor * shade[edge:], back * shade[: edge + 1]
    image = np.concatenate([back, floor[1:]]).astype(np.float32)
    if edge < h:
        image[edge] = back[edge] * (foot - edge) + floor[0] * (1 - foot + edge)  # the row in which they meet
    return image, far


def make_scene(
    place: str,
    camera: Camera,
    distance: float,
    shape: tuple[int, int],
    rng: Rng,
    split: str,
    material: str | None = None,
) -> Scene:
    """Make an empty place.

    Args:
        place: "o" outdoors, "i" indoors, "w" against a wall or seen from above, "b" before a blurred photograph.
        camera: The view.
        distance: Meters to what the picture is of.
        shape: (height, width).
        rng: Decides everything else.
        split: Whose part of the photographs it is made from.
        material: The floor's, and the wall's, as `surface` takes it; None draws them.
    """
    h, w = shape
    screen = {"w": (2, -distance), "b": None}.get(place, (1, 0.0))
    light, far = _light(rng, screen[0] if screen else 2), distance
    if place == "b":
        image = backdrop(rng, split, shape)
    elif place == "w":
        texture, meters = surface(material or str(rng.choice(BEHIND)), rng, split)
        pixel = np.float32(distance / camera.focal)
        x, y = np.meshgrid(np.arange(w, dtype=np.float32) * pixel, np.arange(h, dtype=np.float32) * pixel)
        image = _sample(texture, meters, x + rng.uniform(0, 9), y + rng.uniform(0, 9), np.full((h, 1), pixel))
    else:
        image, far = _room(place == "o", camera, distance, shape, light, rng, split, material)
    # uneven light: a broad gradient and soft patches
    patches = cv2.resize(noise(rng, 64, 3, 0.5), (w, h), interpolation=cv2.INTER_CUBIC)
    across, down = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in (w, h))
    slope = across * np.float32(rng.uniform(-0.5, 0.5)) + down[:, None] * np.float32(rng.uniform(-0.2, 0.3))
    image = np.clip(image * np.exp(0.04 * patches + slope)[..., None], 0, 1).astype(np.float32)
    small = cv2.GaussianBlur(cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA), (0, 0), 1)
    return Scene(image, replace(light, surroundings=small), screen, far)
