"""Empty places: a floor and what rises behind it. Textures and blurred backdrops are made from photographs."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from sample_scenes.materials import Array, Color, Range, Rng, Size, noise, random_color
from sample_scenes.photographs import BACKDROPS, region
from sample_scenes.render import Camera, Light, blurred

Hsv = tuple[Range, Range, Range]

# photograph it is grown from, or "" for noise; contrast; large spots; color; darkest and brightest shade; meters
_EVEN: dict[str, tuple[str, float, float, Hsv, Range, Range]] = {
    "grass": ("grass.png", 1.1, 0.05, ((55, 100), (0.35, 0.65), (0.5, 0.75)), (0.05, 1.2), (0.9, 1.6)),
    "gravel": ("gravel.png", 1.0, 0.05, ((15, 60), (0, 0.25), (0.75, 0.95)), (0.03, 1.0), (0.9, 1.8)),
    "asphalt": ("gravel.png", 0.5, 0.07, ((0, 360), (0, 0.06), (0.3, 0.75)), (0.25, 1.9), (0.4, 0.7)),
    "soil": ("gravel.png", 0.45, 0.07, ((20, 40), (0.25, 0.5), (0.3, 0.75)), (0.25, 1.9), (0.4, 0.7)),
    "concrete": ("", 0.05, 0.02, ((0, 360), (0, 0.12), (0.5, 0.88)), (0.5, 1.5), (1.5, 3)),
    "plaster": ("", 0.022, 0.006, ((0, 360), (0, 0.3), (0.5, 0.88)), (0.5, 1.5), (1.5, 3)),
}
# rows, columns, width of the joint, length of the grain, contrast, colors of faces and of joints, meters
_LAID: dict[str, tuple[int, int, float, int, float, Hsv, Hsv, Range]] = {
    "bricks": (
        16,
        5,
        0.0055,
        1,
        0.1,
        ((5, 28), (0.1, 0.65), (0.4, 0.85)),
        ((20, 50), (0, 0.2), (0.45, 0.85)),
        (1, 1.4),
    ),
    "paving": (6, 3, 0.005, 1, 0.09, ((0, 50), (0, 0.25), (0.45, 0.85)), ((30, 90), (0, 0.3), (0.1, 0.4)), (1.5, 2)),
    "tiles": (6, 6, 0.004, 1, 0.03, ((0, 360), (0, 0.35), (0.5, 0.92)), ((0, 360), (0, 0.05), (0.4, 0.8)), (0.9, 2)),
    "planks": (16, 2, 0.001, 10, 0.13, ((15, 38), (0.1, 0.65), (0.4, 0.85)), ((0, 0), (0, 0), (0.1, 0.1)), (1.1, 1.6)),
}
FLOORS = ("grass", "gravel", "asphalt", "soil", "paving", "concrete", "bricks", "planks", "tiles", "planks")
WALLS = ("plaster", "plaster", "bricks", "planks", "tiles", "concrete")


def _ramp(gray: Array, dark: Color | Array, light: Color | Array) -> Array:
    """Color a gray picture (H, W) in [0, 1] between two linear RGB colors."""
    gray = np.clip(gray, 0, 1)[..., None].astype(np.float32)
    return np.float32(dark) * (1 - gray) + np.float32(light) * gray


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


def _laid(rng: Rng, rows: int, columns: int, joint: float, grain: int, contrast: float) -> tuple[Array, Array]:
    """Lay boards, bricks or tiles: gray faces (1024, 1024) in [0, 1], and the share of joint at each pixel."""
    y, x = np.mgrid[0:1024, 0:1024] / np.float32(1024)
    row = np.floor(y * rows).astype(int)
    # square tiles lie in a grid, bricks are shifted by half, boards by anything
    shift = 0 * row if rows == columns else rng.random(rows)[row] if grain > 1 else (row % 2) * 0.5
    across = x * columns + shift
    cell = row * columns + np.floor(across).astype(int) % columns
    u, v, fine = across % 1, (y * rows) % 1, noise(rng, 1024, 8, 0.75)
    start = rng.integers(0, 1024, (rows * columns, 2))[cell]
    # the grain continues within a face, also where the face crosses the texture's edge
    at_x = (u / columns * 1024 / grain).astype(int) + start[..., 0]
    at_y = (v / rows * 1024).astype(int) + start[..., 1]
    faces = 0.5 + contrast * fine[at_y % 1024, at_x % 1024] + rng.normal(0, 0.11, rows * columns)[cell]
    # distance to the joint in tiles of texture, so that joints are equally wide both ways
    edge = np.minimum(np.minimum(u, 1 - u) / columns, np.minimum(v, 1 - v) / rows) + 0.0006 * fine
    return faces, np.clip(1.4 - edge / joint, 0, 1)[..., None]


def surface(kind: str, rng: Rng, split: str) -> tuple[Array, float]:
    """Make a surface that tiles: (1024, 1024, 3) float32 linear RGB, and the meters that it spans.

    `kind` is grass, gravel, asphalt, soil, concrete, plaster, bricks, paving, tiles or planks.
    """
    large = noise(rng, 1024, 5)
    if kind in _EVEN:
        file, contrast, spots, color, (darker, brighter), meters = _EVEN[kind]
        fine = _grown(region(file, split)[..., 0] ** (1 / 2.2), rng) if file else noise(rng, 1024, 8, 0.95)
        base = np.float32(random_color(rng, *color))
        gray = 0.5 + contrast * (fine - fine.mean()) + spots * large
        return _ramp(gray, base * darker, np.minimum(base * brighter, 1)), rng.uniform(*meters)
    *layout, face, mortar, meters = _LAID[kind]
    faces, joint = _laid(rng, *layout)
    base, mortar = np.float32(random_color(rng, *face)), np.float32(random_color(rng, *mortar))
    color = _ramp(faces + 0.03 * large, base * 0.35, np.minimum(base * 1.6, 1))
    return color * (1 - joint) + mortar * joint * (1 + 0.1 * large[..., None]), rng.uniform(*meters)


def _sample(texture: Array, meters: float, x: Array, y: Array, blur: Array) -> Array:
    """Look up a tiling texture (n, n, 3) at metric coordinates (H, W), `blur` (H, 1) meters wide: (H, W, 3)."""
    levels = [texture]
    while levels[-1].shape[0] > 16:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    level = np.clip(np.log2(np.maximum(blur * len(texture) / meters, 1)), 0, len(levels) - 1)
    result = np.zeros((*x.shape, 3), np.float32)
    for k, picture in enumerate(levels):
        share = np.clip(1 - np.abs(level - k), 0, 1).astype(np.float32)
        rows, n = share[:, 0] > 0, len(picture)
        if rows.any():
            padded = cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_WRAP)  # to interpolate across the seam
            column, row = (((c[rows] * (n / meters) - 0.5) % n + 1).astype(np.float32) for c in (x, y))
            result[rows] += share[rows, :, None] * cv2.remap(padded, column, row, cv2.INTER_LINEAR)
    return result


def backdrop(rng: Rng, split: str, shape: Size) -> Array:
    """Cut out a part of a photograph, vary its brightness and put it out of focus: (h, w, 3) float32 linear RGB."""
    photo = region(str(rng.choice(BACKDROPS)), split)
    h, w = photo.shape[:2]
    size = rng.uniform(0.65, 1) * min(h / shape[0], w / shape[1])
    ch, cw = (max(2, int(n * size)) for n in shape)
    top, left = int(rng.integers(0, h - ch + 1)), int(rng.integers(0, w - cw + 1))
    crop = np.ascontiguousarray(photo[top : top + ch, left : left + cw][:, :: rng.choice([-1, 1])])
    picture = np.clip(cv2.resize(crop, shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    level = min(rng.uniform(0.12, 0.4) / max(float(picture.mean()), 0.02), 4.0)
    return blurred(picture * np.float32(level * (1 + rng.normal(0, 0.08, 3))), rng.uniform(0.01, 0.03) * max(shape))


def _light(rng: Rng, axis: int) -> Light:
    """Draw sun or overcast light; a plane that faces along the axis receives a light of one in all."""
    low, high = ((-1, 0.6, -0.4), (1, 1.6, 1.0)) if axis == 1 else ((-1, 0.2, 0.6), (1, 1.1, 1.4))
    way = rng.uniform(low, high)
    way /= np.linalg.norm(way)
    ambient = rng.uniform(0.22, 0.42) if rng.random() < 0.65 else rng.uniform(0.6, 0.8)
    warm = 1 + rng.uniform(-0.03, 0.1) * np.float32([1, 0.2, -1])
    return Light(way, warm * (1 - ambient) / way[axis], ambient, np.full((2, 2, 3), 0.3, np.float32))


def _floor(material: str, camera: Camera, rows: Array, width: int, focus: Range, rng: Rng, split: str) -> Array:
    """Draw the floor at some image rows (n,), in focus at a distance with an aperture: (n, width, 3) linear RGB."""
    depth = np.float32(camera.focal * camera.height) / np.maximum(rows[:, None] - camera.center[1], 0.5)
    x = (np.arange(width, dtype=np.float32) - camera.center[0]) / camera.focal * depth
    # one pixel of floor is longer than wide; out of focus, the lens blurs what is not at the object's distance
    footprint = depth * np.sqrt(depth / camera.height) / camera.focal
    blur = np.maximum(footprint, focus[1] * np.abs(depth - focus[0]))
    away = np.broadcast_to(depth, x.shape)
    floor = _sample(*surface(material, rng, split), x + rng.uniform(0, 9), away, blur)
    tones = np.repeat(np.exp(0.07 * noise(rng, 256, 5, 0.7))[..., None], 3, 2)
    for period in (4.7, 23.0):  # unlike the texture's own period, so that its tiles look different
        floor *= _sample(tones, period, x, away, footprint)
    return floor


def _wall(material: str, shape: Size, pixel: float, blur: float, rng: Rng, split: str) -> Array:
    """Draw an upright surface (h, w, 3), with `pixel` and `blur` in meters."""
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) * np.float32(pixel) + rng.uniform(0, 9) for n in shape[::-1]))
    return _sample(*surface(material, rng, split), x, y, np.full((shape[0], 1), max(pixel, blur)))


def make_scene(
    camera: Camera, distance: float, shape: Size, rng: Rng, split: str, material: str = "", upright: bool = False
) -> tuple[Array, Light, float]:
    """Make an empty place: a floor before a wall or before a blurred photograph.

    Args:
        camera: The view.
        distance: Meters to what the picture is of.
        shape: (height, width).
        rng: Decides what is not given.
        split: Whose part of the photographs it is made from.
        material: The floor's, and the wall's, as `surface` takes it; drawn at random if empty.
        upright: Show only a wall right behind the object, which can serve as a floor seen from above.

    Returns:
        (H, W, 3) float32 linear RGB, the light, and the meters from the camera to the wall or photograph.
    """
    h, w = shape
    screen = (2, -distance) if upright else (1, 0.0)
    light = _light(rng, screen[0])
    far = distance * (1 if upright else rng.uniform(1.25, 2.2))
    aperture = 0.012 * rng.uniform(0.3, 1.5)
    if not material and not upright and rng.random() < 0.5:
        image = backdrop(rng, split, shape)
    else:
        wall = material or str(rng.choice(WALLS))
        image = _wall(wall, shape, far / camera.focal, aperture * (far - distance), rng, split)
        if not upright:
            image *= max(float(light.direction[2]), 0) * float(light.color.mean()) + light.ambient
    foot, rows = camera.center[1] + camera.focal * camera.height / far, np.arange(h, dtype=np.float32)
    if not upright and foot < h:
        ground, edge = material or str(rng.choice(FLOORS)), int(max(foot, 0))
        floor = _floor(ground, camera, rows[edge:], w, (distance, aperture), rng, split)
        share = np.clip(rows + 1 - foot, 0, 1)[edge:, None, None]  # in one row they meet
        image[edge:] += (floor - image[edge:]) * share
        # little light gets into the corner
        image *= 1 - 0.4 * np.exp(-np.abs(rows - foot) / (0.12 * camera.focal / far))[:, None, None]
    # uneven light: a broad gradient and soft patches
    patches = cv2.resize(noise(rng, 64, 3, 0.5), (w, h), interpolation=cv2.INTER_CUBIC)
    across, down = (np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in (w, h))
    slope = across * np.float32(rng.uniform(-0.5, 0.5)) + down[:, None] * np.float32(rng.uniform(-0.2, 0.3))
    image = np.clip(image * np.exp(0.04 * patches + slope)[..., None], 0, 1).astype(np.float32)
    small = cv2.GaussianBlur(cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA), (0, 0), 1)
    return image, replace(light, surroundings=small, screen=screen), far
