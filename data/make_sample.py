"""Make a small data set for highly accurate dichotomous segmentation, and demo photographs, without downloads.

    python data/make_sample.py                       # writes data/sample
    python data/make_sample.py --contact-sheet sheet.jpg

The objects are drawn (see `objects.py`), the surroundings are made from the photographs inside scikit-image, and the
motorcycle is a real photograph whose ground truth comes from its measured disparity.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from objects import KINDS, Camera, Cutout, Light, Model, blurred, build, make_object, noise, render, rotation

from IS_Net.images import atomic_file, read_image, read_mask, write_image, write_mask

__all__ = ["KINDS", "Cutout", "compose", "contact_sheet", "main", "make_object", "make_pair", "motorcycle"]

Array = np.ndarray
Rng = np.random.Generator

VERSION = 1
"""Raise it when the same seed gives other pictures."""

SPLITS = {"train": "DIS-TR", "valid": "DIS-VD", "test": "DIS-TE1"}

# The part of every source photograph, (x0, y0, x1, y1) in shares, that a split's backgrounds come from.
REGIONS = {"DIS-TR": (0.0, 0.0, 0.5, 1.0), "DIS-VD": (0.5, 0.0, 1.0, 0.5), "DIS-TE1": (0.5, 0.5, 1.0, 1.0)}

SHAPES = ((1024, 1024), (1024, 1536), (1200, 1600), (1080, 1440), (960, 1280), (1440, 1080), (1280, 1024), (1024, 1366))

# Where a kind may be seen: o(utdoors), i(ndoors), against a w(all), before a b(lurred photograph).
PLACES = {
    "basket": "oiw", "bench": "oo", "bicycle": "oiow", "birdcage": "ib", "cartwheel": "oow", "chair": "oii",
    "fan": "ib", "fern": "oiib", "gate": "oowb", "goal": "o", "ladder": "oiwb", "leaf": "wbb", "parasol": "ob",
    "pylon": "ob", "stool": "oii", "tree": "ob", "trellis": "oiwb", "windpump": "ob",
}  # fmt: skip

# Demo photographs: the file, the thing, and its tight box (first column, first row, last column, last row), measured
# by hand at the photographs' own size; None is measured from the mask.
PHOTOS: dict[str, tuple[str, str, tuple[int, int, int, int] | None]] = {
    "astronaut": ("astronaut.png", "person", (22, 15, 363, 511)),
    "chelsea": ("chelsea.png", "cat", (0, 0, 401, 299)),
    "coffee": ("coffee.png", "cup", (172, 17, 409, 308)),
    "motorcycle": ("motorcycle_left.png", "motorcycle", None),
    "rocket": ("rocket.jpg", "rocket", (308, 126, 336, 407)),
}


# --- surroundings ------------------------------------------------------------------------------------------------


@cache
def _source(name: str) -> Array:
    """A photograph of scikit-image as (H, W, 3) float32 linear RGB."""
    return (read_image(source_path(name)).astype(np.float32) / 255) ** 2.2


def source_path(name: str) -> Path:
    """Where scikit-image keeps one of the files it ships; never asks the network."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("scikit-image is not installed: pip install scikit-image")
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: this scikit-image does not ship it; install scikit-image 0.22 to 0.26"
        )
    return path


def _region(name: str, split: str) -> Array:
    photo = _source(name)
    h, w = photo.shape[:2]
    x0, y0, x1, y1 = REGIONS[split]
    return photo[int(y0 * h) : int(y1 * h), int(x0 * w) : int(x1 * w)]


def _ramp(gray: Array, dark: Sequence[float], light: Sequence[float]) -> Array:
    """Color a gray picture (H, W) in [0, 1] between two linear RGB colors."""
    gray = np.clip(gray, 0, 1)[..., None].astype(np.float32)
    return np.float32(dark) * (1 - gray) + np.float32(light) * gray


def _color(rng: Rng, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    hsv = np.float32([[[rng.uniform(*hue) % 360, rng.uniform(*saturation), rng.uniform(*value)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] ** 2.2


def _grown(source: Array, rng: Rng, size: int = 1024, block: int = 192, step: int = 128) -> Array:
    """Grow a gray texture (h, w) to a (size, size) one that tiles, from turned patches whose contrast is kept."""
    mean = source.mean()
    window = np.hanning(block + 2)[1:-1].astype(np.float32)
    window = np.outer(window, window)
    total, weight = np.zeros((size, size), np.float32), np.zeros((size, size), np.float32)
    index = np.arange(block)
    for y in range(0, size, step):
        for x in range(0, size, step):
            top, left = (int(rng.integers(0, n - block + 1)) for n in source.shape)
            patch = source[top : top + block, left : left + block]
            patch = patch[:, ::-1] if rng.random() < 0.5 else patch
            place = np.ix_((index + y) % size, (index + x) % size)
            total[place] += window * (patch - mean)
            weight[place] += window**2
    return total / np.sqrt(weight) + mean


def _laid(
    rng: Rng, rows: int, columns: int, joint: float, bond: str, grain: tuple[int, int], contrast: float
) -> tuple[Array, Array]:
    """Boards, bricks or tiles: gray faces (1024, 1024) in [0, 1] and the share of joint at each pixel."""
    y, x = np.mgrid[0:1024, 0:1024] / np.float32(1024)
    row = np.floor(y * rows).astype(int)
    shift = {"running": (row % 2) * 0.5, "stack": 0 * row, "random": rng.random(rows)[row]}[bond] / columns
    across = (x + shift) * columns
    column = np.floor(across).astype(int) % columns
    cell = row * columns + column
    u, v = across % 1, (y * rows) % 1
    fine = noise(rng, 1024, 8, 0.75)
    start = rng.integers(0, 1024, (rows * columns, 2))[cell]
    # the grain runs on within a face, also where the face runs over the texture's edge
    at_x = (u / columns * 1024 / grain[0]).astype(int) + start[..., 0]
    at_y = (v / rows * 1024 * grain[1]).astype(int) + start[..., 1]
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
        (1024, 1024, 3) float32 linear RGB, and the metres that it spans.
    """
    large = noise(rng, 1024, 5, 0.6)
    if kind in ("grass", "gravel", "asphalt", "soil"):
        gray = _grown(_region("grass.png" if kind == "grass" else "gravel.png", split)[..., 0] ** (1 / 2.2), rng)
        gray = gray + 0.05 * large
        if kind == "grass":
            dry = rng.uniform(0, 0.6)
            dark = _color(rng, (60, 110), (0.5, 0.8), (0.05, 0.2))
            bright = _color(rng, (72 - 32 * dry, 98 - 40 * dry), (0.25, 0.5), (0.5, 0.75))
            return _ramp(gray * 1.15 - 0.1, dark, bright), rng.uniform(0.9, 1.6)
        if kind == "gravel":
            return _ramp(
                gray, _color(rng, (15, 60), (0, 0.3), (0.05, 0.2)), _color(rng, (20, 60), (0.02, 0.25), (0.75, 0.95))
            ), rng.uniform(0.9, 1.8)
        flat = 0.5 + (gray - gray.mean()) * (0.5 if kind == "asphalt" else 0.45) + 0.07 * large
        hue, sat = ((0, 360), (0, 0.06)) if kind == "asphalt" else ((20, 40), (0.25, 0.5))
        base = _color(rng, hue, sat, (0.3, 0.75))
        return _ramp(flat, base * 0.25, np.minimum(base * 1.9, 1)), rng.uniform(0.4, 0.7)
    if kind in ("concrete", "plaster"):
        fine = noise(rng, 1024, 8, 0.95)
        gray = 0.5 + (0.02 if kind == "concrete" else 0.006) * large + (0.05 if kind == "concrete" else 0.022) * fine
        base = _color(rng, (0, 360), (0, 0.12 if kind == "concrete" else 0.3), (0.5, 0.88))
        return _ramp(gray, base * 0.5, np.minimum(base * 1.5, 1)), rng.uniform(1.5, 3)
    if kind == "bricks":
        faces, joint = _laid(rng, 16, 5, rng.uniform(0.004, 0.007), "running", (1, 1), 0.1)
        base, mortar, metres = (
            _color(rng, (5, 28), (0.1, 0.65), (0.4, 0.85)),
            _color(rng, (20, 50), (0, 0.2), (0.45, 0.85)),
            1.2,
        )
    elif kind == "paving":
        faces, joint = _laid(rng, 6, int(rng.choice([3, 6])), 0.005, "running", (1, 1), 0.09)
        base, mortar, metres = (
            _color(rng, (0, 50), (0, 0.25), (0.45, 0.85)),
            _color(rng, (30, 90), (0.05, 0.3), (0.1, 0.4)),
            1.8,
        )
    elif kind == "tiles":
        faces, joint = _laid(rng, 6, 6, 0.004, "stack", (1, 1), 0.03)
        base, mortar, metres = (
            _color(rng, (0, 360), (0, 0.35), (0.5, 0.92)),
            _color(rng, (0, 360), (0, 0.05), (0.4, 0.8)),
            rng.uniform(0.9, 2),
        )
    else:
        faces, joint = _laid(rng, 16, 2, 0.001, "random", (10, 1), 0.13)
        base, mortar, metres = (
            _color(rng, (15, 38), (0.15, 0.65), (0.4, 0.85)),
            np.full(3, 0.01),
            rng.uniform(1.1, 1.6),
        )
    color = _ramp(faces + 0.03 * large, base * 0.35, np.minimum(base * 1.6, 1))
    texture = color * (1 - joint[..., None]) + mortar * joint[..., None] * (1 + 0.1 * large[..., None])
    return (texture.transpose(1, 0, 2) if kind == "panels" else texture).astype(np.float32), metres


def _sample(texture: Array, metres: float, x: Array, y: Array, blur: Array) -> Array:
    """Look a tiling texture (n, n, C) up at metric coordinates (H, W), `blur` (H, 1) metres wide: (H, W, C)."""
    levels = [texture]
    while levels[-1].shape[0] > 16:
        small = cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        levels.append(small.reshape(*small.shape[:2], -1))
    wanted = np.log2(np.maximum(blur * texture.shape[0] / metres, 1))
    level = np.clip(wanted, 0, len(levels) - 1).astype(np.float32)
    result = np.zeros((*x.shape, texture.shape[2]), np.float32)
    for k, picture in enumerate(levels):
        share = np.clip(1 - np.abs(level - k), 0, 1)
        rows = np.flatnonzero(share[:, 0])
        if not len(rows):
            continue
        span = slice(rows[0], rows[-1] + 1)
        n = picture.shape[0]
        # padded by a pixel, the tile can be interpolated across its seam
        padded = cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_WRAP)
        column, row = (
            ((c[span] * np.float32(n / metres) - np.float32(0.5)) % n + 1).astype(np.float32) for c in (x, y)
        )
        found = cv2.remap(padded, column, row, cv2.INTER_LINEAR).reshape(*column.shape, -1)
        result[span] += share[span, :, None] * found
    return result


BACKDROPS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "ihc.png",
    "retina.jpg",
    "hubble_deep_field.jpg",
    "camera.png",
)


def backdrop(rng: Rng, split: str, shape: tuple[int, int], blur: tuple[float, float] = (0.008, 0.035)) -> Array:
    """Cut a photograph's part, vary its colors and put it out of focus.

    Args:
        rng: Decides photograph, part and colors.
        split: Whose part of the photographs it is cut from.
        shape: (height, width) of the result.
        blur: Range of the blur's sigma, as shares of the longer side.

    Returns:
        (height, width, 3) float32 linear RGB.
    """
    photo = _region(str(rng.choice(BACKDROPS)), split)
    h, w = photo.shape[:2]
    wanted = shape[1] / shape[0]
    ch, cw = (h, h * wanted) if w / h > wanted else (w / wanted, w)
    zoom = rng.uniform(0.65, 1)
    ch, cw = max(2, int(ch * zoom)), max(2, int(cw * zoom))
    top, left = int(rng.integers(0, h - ch + 1)), int(rng.integers(0, w - cw + 1))
    crop = photo[top : top + ch, left : left + cw]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    picture = np.clip(cv2.resize(np.ascontiguousarray(crop), shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    if rng.random() < 0.5:  # other colors, same shapes
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 360)) % 360
        hsv[..., 1] *= rng.uniform(0.3, 0.9)
        picture = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if np.ptp(picture, axis=-1).max() < 0.01:
        picture = _ramp(picture[..., 0], np.zeros(3), _color(rng, (0, 360), (0.05, 0.4), (0.8, 1)))
    level = rng.uniform(0.12, 0.4) / max(float(picture.mean()), 0.02)
    picture = picture * min(level, 4.0)
    picture = picture * np.float32(1 + rng.normal(0, 0.08, 3))
    sigma = math.exp(rng.uniform(*np.log(blur))) * max(shape)
    return blurred(picture, sigma)


def _sky(rng: Rng, shape: tuple[int, int], horizon: float) -> Array:
    """Sky with clouds above the horizon's row, and a hazy line of trees or hills on it."""
    h, w = shape
    y = np.clip((horizon - np.arange(h)) / max(horizon, h * 0.3), 0, 1)[:, None].astype(np.float32)
    high, low = _color(rng, (195, 225), (0.15, 0.65), (0.5, 0.9)), _color(rng, (15, 220), (0.02, 0.2), (0.8, 0.98))
    sky = _ramp(np.broadcast_to(y**0.7, shape), low, high)
    clouds = cv2.resize(noise(rng, 512, 6, 0.6), (max(w, 512) * 2, max(h, 512)), interpolation=cv2.INTER_CUBIC)[:h, :w]
    cover = np.clip((clouds - rng.uniform(-1, 1.5)) * 0.7, 0, 1)[..., None] * rng.uniform(0.4, 0.95)
    sky = sky * (1 - cover) + np.float32(_color(rng, (0, 360), (0, 0.05), (0.8, 1))) * cover
    for depth in (0.35, 1.0)[int(rng.integers(2)) :]:  # the further one is lower in contrast
        line = noise(rng, 512, 8, rng.uniform(0.45, 0.75))[100]
        line = cv2.resize(line[None], (w, 1), interpolation=cv2.INTER_CUBIC)[0]
        top = horizon - h * rng.uniform(0.02, 0.16) * (1.2 - 0.5 * depth) * np.clip(1 + 0.3 * line, 0.2, 3)
        inside = np.clip(np.arange(h)[:, None] - top, 0, 1)[..., None].astype(np.float32)
        crowns = cv2.resize(noise(rng, 512, 7, 0.8), (w, h), interpolation=cv2.INTER_CUBIC)
        dark = _color(rng, (70, 150), (0.2, 0.6), (0.08, 0.3))
        trees = _ramp(0.45 + 0.2 * crowns, dark * 0.4, dark * 1.8) * depth + low * 0.6 * (1 - depth)
        sky = sky * (1 - inside) + trees * inside
    return blurred(sky.astype(np.float32), max(shape) * rng.uniform(0.002, 0.008))


# --- scenes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """An empty place, and how it is seen and lit.

    Attributes:
        image: (H, W, 3) float32 linear RGB.
        camera: The view that `image` was drawn with.
        light: Its light.
        screen: What shadows fall on: "ground", "wall" or "none".
        far: Metres from the camera to the wall at its end.
    """

    image: Array
    camera: Camera
    light: Light
    screen: str
    far: float


def _light(rng: Rng, screen: str) -> Light:
    """Sun or overcast; a plane facing the screen's way gets a light of one in all."""
    if screen == "ground":
        way = np.array([rng.uniform(-1, 1), rng.uniform(0.6, 1.6), rng.uniform(-0.4, 1.0)])
    else:
        way = np.array([rng.uniform(-1, 1), rng.uniform(0.2, 1.1), rng.uniform(0.6, 1.4)])
    way /= np.linalg.norm(way)
    ambient = rng.uniform(0.22, 0.42) if rng.random() < 0.65 else rng.uniform(0.6, 0.8)
    facing = way[1] if screen == "ground" else way[2]
    warm = np.float32([1, 1, 1]) + rng.uniform(-0.03, 0.1) * np.float32([1, 0.2, -1])
    return Light(way, warm * (1 - ambient) / facing, ambient, np.full((2, 2, 3), 0.3, np.float32))


OUTDOOR_FLOORS = ("grass", "gravel", "asphalt", "soil", "paving", "concrete", "bricks")
INDOOR_FLOORS = ("planks", "planks", "tiles", "concrete")
OUTDOOR_WALLS = ("bricks", "plaster", "panels", "concrete")
INDOOR_WALLS = ("plaster", "plaster", "bricks", "panels", "tiles")
BEHIND = ("plaster", "bricks", "panels", "concrete", "gravel", "grass", "planks", "paving", "tiles")


def _floor(
    kind: str, camera: Camera, distance: float, rows: Array, width: int, blur: float, rng: Rng, split: str
) -> tuple[Array, Array]:
    """The floor at some image rows (n,): (n, width, 3) linear RGB, and the distance of each row, (n, 1)."""
    texture, metres = surface(kind, rng, split)
    below = np.maximum(rows[:, None] - camera.center[1], 0.5).astype(np.float32)
    depth = np.float32(camera.focal * camera.height) / below
    x = (np.arange(width, dtype=np.float32) - camera.center[0]) / camera.focal * depth
    # one pixel of floor is longer than wide; out of focus, the lens blurs what is not at the object's distance
    footprint = depth * np.sqrt(depth / camera.height) / camera.focal
    defocus = blur * np.abs(1 - distance / depth) * depth
    away = np.broadcast_to(depth, x.shape)
    floor = _sample(texture, metres, x + rng.uniform(0, 9), away, np.maximum(footprint, defocus))
    tones = noise(rng, 256, 5, 0.7)[..., None] * np.float32(0.07)
    for period in (4.7, 23.0):  # unlike the texture's own period, so that its tiles look different
        floor *= np.exp(_sample(tones, period, x, away, footprint))
    return floor, depth


def _room(
    place: str, camera: Camera, distance: float, shape: tuple[int, int], light: Light, rng: Rng, split: str
) -> tuple[Array, float]:
    """Floor and what rises behind it: (H, W, 3) linear RGB, and the metres to the wall or to the horizon."""
    h, w = shape
    blur = 0.012 * rng.uniform(0.3, 1.5)
    outdoors = place == "o"
    walled = not outdoors or rng.random() < 0.35
    far = distance * (rng.uniform(1.25, 2.2) if walled else 60)
    horizon = camera.center[1]
    foot = float(horizon + camera.focal * camera.height / far)
    rows = np.arange(h, dtype=np.float32)
    split_row = int(np.clip(foot, 0, h))
    kind = str(rng.choice(OUTDOOR_FLOORS if outdoors else INDOOR_FLOORS))
    floor, depth = _floor(kind, camera, distance, rows[split_row:], w, blur, rng, split)
    if walled:
        facing = max(float(light.direction[2]), 0) * float(light.color.mean()) + light.ambient
        if rng.random() < 0.2:
            back = backdrop(rng, split, shape, (0.01, 0.03))[: split_row + 1]
        else:
            texture, metres = surface(str(rng.choice(OUTDOOR_WALLS if outdoors else INDOOR_WALLS)), rng, split)
            x, y = np.meshgrid(np.arange(w, dtype=np.float32) - w / 2, rows[: split_row + 1] - foot)
            pixel = far / camera.focal
            spread = np.full((len(y), 1), max(pixel, blur * abs(1 - far / distance) * distance))
            back = _sample(texture, metres, x * pixel, y * pixel, spread) * facing
            if not outdoors and rng.random() < 0.7:  # skirting board
                board = (y > -0.09 / pixel)[..., None]
                back = np.where(board, back.mean((0, 1)) * rng.uniform(0.3, 1.5), back)
        # little light gets into the corner
        shade = 1 - 0.4 * np.exp(-np.abs(rows - foot) / (0.12 * camera.focal / far))[:, None, None]
        floor, back = floor * shade[split_row:], back * shade[: split_row + 1]
    else:
        back = _sky(rng, shape, float(np.clip(horizon, 0.02 * h, 2 * h)))
        haze = np.clip(depth / (distance * 30), 0, 1)[..., None] ** 0.7 * 0.6
        floor = floor * (1 - haze) + back[int(np.clip(horizon - 2, 0, h - 1))].mean(0) * haze
        back = back[: split_row + 1]
    image = np.empty((h, w, 3), np.float32)
    image[: split_row + 1] = back
    if split_row < h:
        share = foot - split_row  # of the row in which floor and wall meet
        image[split_row] = image[split_row] * share + floor[0] * (1 - share)
        image[split_row + 1 :] = floor[1:]
    return image, far


def make_scene(place: str, camera: Camera, distance: float, shape: tuple[int, int], rng: Rng, split: str) -> Scene:
    """Make an empty place.

    Args:
        place: "o" outdoors, "i" indoors, "w" against a wall or seen from above, "b" before a blurred photograph.
        camera: The view.
        distance: Metres to what the picture is of.
        shape: (height, width).
        rng: Decides everything else.
        split: Whose part of the photographs it is made from.
    """
    h, w = shape
    screen = {"w": "wall", "b": "none"}.get(place, "ground")
    light = _light(rng, screen)
    far = distance
    if place == "b":
        image = backdrop(rng, split, shape)
    elif place == "w":
        texture, metres = surface(str(rng.choice(BEHIND)), rng, split)
        pixel = np.float32(distance / camera.focal)
        x, y = np.meshgrid(np.arange(w, dtype=np.float32) * pixel, np.arange(h, dtype=np.float32) * pixel)
        image = _sample(texture, metres, x + rng.uniform(0, 9), y + rng.uniform(0, 9), np.full((h, 1), pixel))
    else:
        image, far = _room(place, camera, distance, shape, light, rng, split)
    # uneven light: a broad gradient and soft patches
    patches = cv2.resize(noise(rng, 64, 3, 0.5), (w, h), interpolation=cv2.INTER_CUBIC)
    across, down = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in (w, h))
    slope = across * np.float32(rng.uniform(-0.5, 0.5)) + down[:, None] * np.float32(rng.uniform(-0.2, 0.3))
    image = np.clip(image * np.exp(0.04 * patches + slope)[..., None], 0, 1).astype(np.float32)
    small = cv2.GaussianBlur(cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA), (0, 0), 1)
    return Scene(image, camera, replace(light, surroundings=small), screen, far)


def compose(background: Array, cutouts: Sequence[Cutout], rng: Rng) -> tuple[Array, Array]:
    """Put cut-outs into a picture as one exposure: same lens, same sensor.

    Args:
        background: (H, W, 3) float32 linear RGB in [0, 1].
        cutouts: What stands in it, furthest first.
        rng: Decides lens, sensor and development.

    Returns:
        image: (H, W, 3) uint8 sRGB.
        gt: (H, W) uint8, how much of each pixel the cut-outs cover; shadows are not part of it.
    """
    image = background.astype(np.float32).copy()
    h, w = image.shape[:2]
    empty = np.ones((h, w), np.float32)

    def window(cutout: Cutout) -> tuple[slice, slice]:
        (x, y), (ch, cw) = cutout.corner, cutout.shadow.shape
        return slice(y, y + ch), slice(x, x + cw)

    for cutout in cutouts:
        image[window(cutout)] *= 1 - cutout.shadow[..., None]
    for cutout in cutouts:
        clear = 1 - np.clip(cutout.rgba[..., 3], 0, 1)
        image[window(cutout)] = image[window(cutout)] * clear[..., None] + cutout.rgba[..., :3]
        empty[window(cutout)] *= clear
    sigma = rng.uniform(0.3, 0.65)  # the lens, the same for all, so no edge is sharper than another
    image, gt = cv2.GaussianBlur(image, (0, 0), sigma), cv2.GaussianBlur(1 - empty, (0, 0), sigma)
    across, down = (np.linspace(-0.5, 0.5, n, dtype=np.float32) ** 2 for n in (w, h))
    fall_off = 1 - np.float32(rng.uniform(0, 0.5)) * (across + down[:, None])
    exposure = np.clip(rng.uniform(0.7, 0.95) / max(float(np.quantile(image[::4, ::4], 0.98)), 0.05), 0.5, 2.5)
    balance = 1 + rng.normal(0, 0.03, 3)
    image *= fall_off[..., None] * np.float32(exposure * balance)
    grain = cv2.GaussianBlur(rng.standard_normal((h, w, 3), np.float32), (0, 0), 0.5)  # neighbors are demosaiced
    grain *= np.float32(1.6 * rng.uniform(0.5, 1.8))
    image += grain * cv2.sqrt(np.clip(image, 0, 1) * np.float32(2e-4) + np.float32(2e-6))
    shown = cv2.pow(np.clip(image, 0, 1), 1 / 2.2)
    contrast = np.float32(rng.uniform(-0.05, 0.12))
    shown += contrast * (shown - 0.5) * (1 - np.abs(2 * shown - 1))  # the tone curve
    return np.round(np.clip(shown, 0, 1) * 255).astype(np.uint8), np.round(np.clip(gt, 0, 1) * 255).astype(np.uint8)


def _turned(kind: str, rng: Rng, most: float) -> Model:
    model = build(kind, rng)
    yaw = rng.uniform(-most, most) + (np.pi if rng.random() < 0.4 and kind not in ("leaf", "goal") else 0)
    model.move(0, rotation("y", yaw))
    return model


def _apart(one: Model, at: Array, other: Model, there: Array, axes: tuple[int, int]) -> bool:
    """Whether the boxes around two models leave a gap along one of the axes."""
    (low, high), (low2, high2) = one.bounds(), other.bounds()
    return any(at[k] + low[k] > there[k] + high2[k] or at[k] + high[k] < there[k] + low2[k] for k in axes)


def make_pair(kind: str, split: str, rng: Rng, size: int | None = None) -> tuple[Array, Array]:
    """Make one image of a thing, sometimes with others, and its ground truth.

    Args:
        kind: One of `KINDS`.
        split: One of `REGIONS`.
        rng: Decides everything else.
        size: Length of the longer side in pixels; None varies it from 1024 to 1600.

    Returns:
        (H, W, 3) uint8 sRGB image and (H, W) uint8 ground truth.
    """
    h, w = SHAPES[int(rng.integers(len(SHAPES)))]
    if size is not None:
        h, w = round(h * size / max(h, w)), round(w * size / max(h, w))
    place = str(rng.choice(list(PLACES[kind])))
    model = _turned(kind, rng, 0.3 if place == "w" else 0.8)
    low, high = model.bounds()
    extent = high - low
    # pixels a metre, from how much of the frame the thing fills; now and then the frame cuts it
    fill = rng.uniform(0.62, 0.92) if rng.random() < 0.75 else rng.uniform(1.0, 1.25)
    if place == "b" and kind not in ("leaf", "birdcage"):
        fill = rng.uniform(0.9, 1.3)  # its foot is below the frame
    scale = fill * min(h / extent[1], w * 1.05 / extent[0])
    focal = rng.uniform(1.3, 2.2) * max(h, w)
    distance = max(focal / scale, float(extent[2]) * 1.5)
    focal = distance * scale
    if place in "oi":
        foot = h * rng.uniform(0.84, 0.96) if fill < 1 else h * rng.uniform(0.95, 1.1)
        eye = float(np.clip(rng.uniform(0.5, 1.15) * extent[1], 0.35, 2.2))
        camera = Camera(focal, eye, (w / 2, foot - scale * eye))
        middle = np.array([rng.uniform(-0.1, 0.1) * w / scale, 0, -distance])
    else:
        eye = float(extent[1]) / 2
        camera = Camera(focal, eye, (w / 2, h / 2))
        lift = 0.0 if place == "w" else (h / 2 - h * rng.uniform(1.03, 1.15)) / scale + eye
        middle = np.array([rng.uniform(-0.06, 0.06) * w / scale, lift, -distance])
        if place == "b" and kind in ("leaf", "birdcage"):  # these hang from above instead
            middle[1] = 0.0
            if kind == "birdcage":
                model.bar((0, high[1], 0), (0, high[1] + 3, 0), 0.0025, model.materials[-1])
    wall = distance - low[2] + 0.02 if place == "w" else distance
    scene = make_scene(place, camera, wall, (h, w), rng, split)
    things = [(model, middle)]
    wanted = 1 + int(rng.choice(4, p=[0.45, 0.28, 0.18, 0.09])) if place != "b" else 1
    for _ in range(0 if wanted == 1 else 4 * wanted):
        other = str(rng.choice([k for k in KINDS if place in PLACES[k]]))
        extra = _turned(other, rng, 0.3 if place == "w" else 1.2)
        a, b = extra.bounds()
        if place == "w":
            depth = wall + a[2] - 0.02  # its back touches the wall
            spot = np.array([*(rng.uniform(-0.5, 0.5, 2) * (w, h) / scale), -depth])
            spot[1] += eye - (a[1] + b[1]) / 2
        else:
            depth = distance * rng.uniform(0.95, 1.7)
            spot = np.array([rng.uniform(-0.48, 0.48) * w * depth / focal, 0, -depth])
        seen = (b[1] - a[1]) * focal / depth
        if not 0.2 * h < seen < 1.3 * h or depth - b[2] < 0.3 * distance or depth - a[2] > scene.far + 0.03:
            continue
        if all(_apart(extra, spot, m, at, (0, 1) if place == "w" else (0, 2)) for m, at in things):
            things.append((extra, spot))
        if len(things) == wanted:
            break
    mean = scene.image.mean((0, 1))
    cutouts = []
    for one, at in sorted(things, key=lambda thing: thing[1][2]):
        tint = mean if rng.random() < 0.3 else None  # camouflage
        cutouts.append(render(one, camera, scene.light, at, (h, w), rng, scene.screen, tint))
    return compose(scene.image, [c for c in cutouts if c is not None], rng)


# --- the motorcycle ----------------------------------------------------------------------------------------------


def motorcycle() -> tuple[Array, Array]:
    """Take the motorcycle's mask from the disparity that Middlebury measured with structured light.

    Returns:
        The left photograph, (500, 741, 3) uint8 RGB, and where the motorcycle is, (500, 741) bool.
    """
    image = read_image(source_path("motorcycle_left.png"))
    with np.load(source_path("motorcycle_disp.npz")) as archive:
        disparity = archive["arr_0"].astype(np.float32)
    height, width = disparity.shape
    measured = np.isfinite(disparity)
    disparity = np.where(measured, disparity, 0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32([[[height]], [[width]]])
    # the floor's disparity, fitted where nothing stands on it; a quadric, for the concrete is not quite flat
    floor = measured & ((y > 0.92) | ((y > 0.66) & ((x < 0.148) | (x > 0.931))) | ((y > 0.8) & (x < 0.405)))
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
    plane = terms @ np.linalg.lstsq(terms[floor], disparity[floor], rcond=None)[0]
    mask = ((disparity > 38) & (disparity - plane > 0.45)).astype(np.uint8)  # the bench behind ends at 33
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    mask = (stats[:, cv2.CC_STAT_AREA] >= 50)[labels] & (labels > 0)  # handlebar and mirror hang on unmeasured pixels
    # what was not measured is the wall seen by one camera only, except where the motorcycle surrounds it
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~measured & ~mask).astype(np.uint8), connectivity=4)
    for k in range(1, len(stats)):
        left, top, w, h, _ = stats[k]
        window = np.s_[max(top - 1, 0) : top + h + 1, max(left - 1, 0) : left + w + 1]
        region = labels[window] == k
        border = (cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~region
        if mask[window][border].mean() > 0.65:
            mask[window] |= region
    return image, mask


def _motorcycle_pair(size: int | None) -> tuple[Array, Array]:
    """The motorcycle at twice its size, (1000, 1482), or with `size` pixels on the longer side."""
    image, mask = motorcycle()
    scale = 2 if size is None else size / max(mask.shape)
    shape = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    smooth = cv2.resize(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7), shape, interpolation=way)
    gt = np.clip((smooth - 0.5) * 2 + 0.5, 0, 1)  # steps of whole pixels become edges as soft as the photograph's
    return cv2.resize(image, shape, interpolation=way), np.round(gt * 255).astype(np.uint8)


# --- the data set ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What decides the files' content."""

    train: int = 48
    valid: int = 10
    test: int = 10
    seed: int = 0
    size: int | None = None
    version: int = VERSION

    def jobs(self) -> list[tuple[str, str, str]]:
        """All pairs as (split, name, kind); kinds take turns, and the last of the test split is the motorcycle."""
        jobs = []
        for k, (field, split) in enumerate(SPLITS.items()):
            count = getattr(self, field)
            order = np.random.default_rng([self.seed, k]).permutation(len(KINDS))
            for index in range(count):
                kind = KINDS[order[index % len(KINDS)]]
                if split == "DIS-TE1" and index == count - 1:
                    kind = "motorcycle"
                jobs.append((split, f"{kind}_{index:04d}", kind))
        return jobs


def _single_threaded() -> None:
    cv2.setNumThreads(1)  # the pool is the parallelism


def _write_pair(out: Path, settings: Settings, job: tuple[str, str, str]) -> None:
    split, name, kind = job
    if kind == "motorcycle":
        image, gt = _motorcycle_pair(settings.size)
    else:
        # the name's number is its place in the split, so every pair has a generator of its own
        keys = [settings.seed, list(SPLITS.values()).index(split), int(name.rsplit("_", 1)[1]), 1]
        rng = np.random.default_rng(keys)
        image, gt = make_pair(kind, split, rng, settings.size)
    write_image(out / split / "im" / f"{name}.jpg", image)
    write_mask(out / split / "gt" / f"{name}.png", gt)


def _write_photos(out: Path) -> None:
    prompts = {}
    for name, (file, thing, box) in PHOTOS.items():
        image = read_image(source_path(file))
        if box is None:
            y, x = np.nonzero(motorcycle()[1])
            box = (int(x.min()), int(y.min()), int(x.max()), int(y.max()))
        write_image(out / "im" / f"{name}.png", image)
        prompts[name] = [{"object": thing, "box": list(box)}]
    with atomic_file(out / "prompts.json", "w") as file:
        json.dump(prompts, file, indent=1)


def is_complete(out: Path, settings: Settings) -> bool:
    """Whether `out` holds the whole sample made with these settings."""
    try:
        record = json.loads((out / "sample.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = [
        out / split / folder / f"{name}.{ext}"
        for split, name, _ in settings.jobs()
        for folder, ext in (("im", "jpg"), ("gt", "png"))
    ]
    files += [out / "photos" / "prompts.json", *(out / "photos" / "im" / f"{name}.png" for name in PHOTOS)]
    return record == _settings_record(settings) and all(file.is_file() for file in files)


def _settings_record(settings: Settings) -> dict[str, object]:
    return dict(vars(settings))


def make_sample(out: Path, settings: Settings, workers: int, force: bool = False) -> bool:
    """Make the sample data set, unless it is there.

    Args:
        out: Its folder. Splits and photographs that an earlier run left in it are replaced.
        settings: What to make.
        workers: Processes; their number does not change the files.
        force: Make it even if it is there.

    Returns:
        True if it was made, False if it was there.
    """
    if not force and is_complete(out, settings):
        return False
    for name in {file for file, _, _ in PHOTOS.values()} | {
        "motorcycle_disp.npz",
        *BACKDROPS,
        "grass.png",
        "gravel.png",
    }:
        source_path(name)  # rather no sample than half of one
    (out / "sample.json").unlink(missing_ok=True)
    for name in (*SPLITS.values(), "photos"):
        shutil.rmtree(out / name, ignore_errors=True)
    for split in SPLITS.values():
        for folder in ("im", "gt"):
            (out / split / folder).mkdir(parents=True)
    _write_photos(out / "photos")
    jobs = settings.jobs()
    with tqdm(total=len(jobs), desc=f"sample data in {out}", unit="pair", disable=None) as bar:
        for _ in _results(out, settings, jobs, workers):
            bar.update()
    with atomic_file(out / "sample.json", "w") as file:
        json.dump(_settings_record(settings), file, indent=1)
    return True


def _results(out: Path, settings: Settings, jobs: list[tuple[str, str, str]], workers: int) -> Iterator[None]:
    if workers <= 1:
        _single_threaded()
        for job in jobs:
            yield _write_pair(out, settings, job)
        return
    context = multiprocessing.get_context("spawn")  # forked OpenCV and BLAS threads may hang
    with ProcessPoolExecutor(workers, context, _single_threaded) as pool:
        futures = [pool.submit(_write_pair, out, settings, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def contact_sheet(out: Path, height: int = 240, columns: int = 4) -> Array:
    """Lay out all pairs of a sample, each image beside its ground truth, split by split.

    Args:
        out: The sample's folder.
        height: Pixels of a row.
        columns: Pairs in a row.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    cells = []
    width = round(height * 2.7)
    for split in SPLITS.values():
        for path in sorted((out / split / "im").glob("*.jpg"), key=lambda p: p.stem.rsplit("_", 1)[1]):
            gt = read_mask(out / split / "gt" / f"{path.stem}.png")
            pair = np.hstack([read_image(path), np.repeat(gt[..., None], 3, 2)])
            scale = min(width / pair.shape[1], (height - 16) / pair.shape[0])
            pair = cv2.resize(pair, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            cell = np.full((height, width, 3), 32, np.uint8)
            cell[: pair.shape[0], : pair.shape[1]] = pair
            label = f"{split} {path.stem}"
            cv2.putText(cell, label, (2, height - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (230, 230, 230), 1, cv2.LINE_AA)
            cells.append(cell)
    if not cells:
        raise FileNotFoundError(f"{out} holds no sample data; run without --contact-sheet first")
    cells += [np.full_like(cells[0], 32)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[k : k + columns]) for k in range(0, len(cells), columns)])


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description="Make the sample data set: drawn things in real surroundings, nothing downloaded."
    )
    parser.add_argument("--out", type=Path, default=here / "sample", help="its folder (default: %(default)s)")
    parser.add_argument("--train", type=_count, default=48, help="pairs in DIS-TR (default: %(default)s)")
    parser.add_argument("--valid", type=_count, default=10, help="pairs in DIS-VD (default: %(default)s)")
    parser.add_argument(
        "--test", type=_count, default=10, help="pairs in DIS-TE1, one of them the motorcycle (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=_count, default=0, help="another seed gives another data set (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=_count, default=None, help="pixels of the longer side (default: 1024 to 1600, varied)"
    )
    parser.add_argument("--workers", type=_count, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="make it again even if it is there")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="also write an overview picture")
    args = parser.parse_args(argv)
    if args.size is not None and args.size < 64:
        parser.error("--size: at least 64 pixels")
    settings = Settings(args.train, args.valid, args.test, args.seed, args.size)
    try:
        made = make_sample(args.out, settings, args.workers, args.force)
        state = "made" if made else "complete already"
        print(f"{args.out}: {state}, {len(settings.jobs())} pairs and {len(PHOTOS)} photographs")
        if args.contact_sheet:
            write_image(args.contact_sheet, contact_sheet(args.out))
            print(f"{args.contact_sheet}: overview")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; run again to make {args.out} anew", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # numpy's own threads would fight with the pool's processes; read when a process imports numpy
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
