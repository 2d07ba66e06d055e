"""Draw a model through a pinhole camera with a depth buffer, a shadow map, textured materials and supersampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sample_scenes.materials import Array, Material, Rng, Size, noise
from sample_scenes.mesh import Model, dot, unit

SUPERSAMPLING = 2


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera at (0, height, 0) that looks along -z."""

    focal: float  # focal length in pixels
    height: float  # meters above the ground
    center: tuple[float, float]  # column and row of the principal point in pixels; the row is the horizon's

    def project(self, points: Array) -> Array:
        """Map points (..., 3) in meters to (..., 3): column, row, and 1 / distance, which is linear in the image."""
        near = 1 / np.maximum(-points[..., 2], 1e-3)
        x = self.center[0] + self.focal * points[..., 0] * near
        y = self.center[1] + self.focal * (self.height - points[..., 1]) * near
        return np.stack([x, y, near], -1)


@dataclass(frozen=True)
class Light:
    """One distant lamp and the light of the surroundings."""

    direction: Array  # (3,) unit vector towards the lamp
    color: Array  # (3,) linear RGB of the lamp
    ambient: float  # share of light that reaches the ground in full shadow, in (0, 1)
    surroundings: Array  # (h, w, 3) small linear RGB picture that metal mirrors and that tints the ambient light
    screen: tuple[int, float] = (1, 0.0)  # the plane that shadows fall on: (1, y) is a floor, (2, z) a wall


@dataclass(frozen=True)
class Cutout:
    """A drawn model, in place; all arrays are float32."""

    rgba: Array  # (h, w, 4): linear RGB premultiplied by alpha, and alpha in [0, 1]
    shadow: Array  # (h, w): the share of light it takes from what lies behind; not part of any target
    targets: Array  # (h, w, T): the share of each pixel in which each target is seen
    corner: Size  # column and row of the top left pixel in the image


def blurred(image: Array, sigma: float, squash: float = 1.0) -> Array:
    """Blur with a Gaussian, `squash` times as high as wide; wide ones at a lower resolution."""
    h, w = image.shape[:2]
    factor = int(min(sigma * squash / 2.5, h / 4, w / 4))
    if factor < 2:
        return cv2.GaussianBlur(image, (0, 0), sigma, sigmaY=sigma * squash)
    small = cv2.resize(image, (-(-w // factor), -(-h // factor)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / factor, sigmaY=sigma * squash / factor)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)


def _pixels(low: Array, high: Array, size: int) -> tuple[Array, Array]:
    """List the pixels with centers in the intervals [low, high): the interval's index and the pixel, (n,) int each."""
    first, last = (np.clip(np.ceil(end - 0.5), 0, size).astype(int) for end in (low, high))
    count = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + (first - np.cumsum(count) + count)[owner]


def rasterize(triangles: Array, shape: Size) -> tuple[Array, Array]:
    """Find the nearest of triangles (M, 3, 3) of column, row and nearness at every pixel center.

    Returns its index, (height, width) int64, and its nearness, float64; -1 and -inf where there is none.
    """
    height, width = shape
    buffer = np.full(height * width, -1)
    low, span = triangles[..., 2].min(), max(np.ptp(triangles[..., 2]), 1e-12)
    for start in range(0, len(triangles), 4000):  # to limit the memory
        x, y, z = np.moveaxis(triangles[start : start + 4000].astype(float), 2, 0)
        u, v, n = ((c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]) for c in (x, y, z))
        with np.errstate(divide="ignore", invalid="ignore"):
            area = u[0] * v[1] - v[0] * u[1]
            across, down = (n[0] * v[1] - n[1] * v[0]) / area, (n[1] * u[0] - n[0] * u[1]) / area
            face, row = _pixels(y.min(1), y.max(1), height)
            ends = []
            for k in range(3):  # where the edges cross the row
                share = (row + 0.5 - y[face, k - 1]) / (y[face, k] - y[face, k - 1])
                cross = x[face, k - 1] + share * (x[face, k] - x[face, k - 1])
                ends.append(np.where((share >= 0) & (share <= 1), cross, np.nan))
        left, right = (np.nan_to_num(f(f(ends[0], ends[1]), ends[2])) for f in (np.fmin, np.fmax))
        line, column = _pixels(left, right, width)
        face, row = face[line], row[line]
        near = z[face, 0] + across[face] * (column + 0.5 - x[face, 0]) + down[face] * (row + 0.5 - y[face, 0])
        level = np.clip((np.nan_to_num(near) - low) / span, 0, 1) * 0x3FFFFFFF
        np.maximum.at(buffer, row * width + column, level.astype(np.int64) << 32 | (face + start))
    buffer = buffer.reshape(shape)
    empty = buffer < 0
    return np.where(empty, -1, buffer & 0xFFFFFFFF), np.where(empty, -np.inf, low + (buffer >> 32) / 0x3FFFFFFF * span)


def _weights(triangles: Array, x: Array, y: Array) -> Array:
    """Return the weights (P, 3), correct in perspective, of the corners (P, 3, 3) at pixel coordinates (P,)."""
    a, b, c = (triangles[:, k, :2].astype(float) for k in range(3))
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    px, py = x - a[:, 0], y - a[:, 1]
    v, w = (px * ac[:, 1] - py * ac[:, 0]) / area, (ab[:, 0] * py - ab[:, 1] * px) / area
    weights = np.clip(np.stack([1 - v - w, v, w], -1), 1e-9, 1) * triangles[..., 2]
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _shade(
    attributes: Array, materials: list[Material], label: Array, eye: Array, light: Light, lit: Array, textures: tuple
) -> Array:
    """Color surface points: (P, 9) attributes, (P,) material and lit share -> (P, 3) linear RGB."""
    position, normal, uv, bright = attributes[:, :3], unit(attributes[:, 3:6]), attributes[:, 6:8], attributes[:, 8:]
    table = {
        name: np.array([getattr(m, name) for m in materials], np.float32)[label]
        for name in ("color", "stain", "stretch", "contrast", "metal", "gloss", "thin")
    }
    view, lamp_way = unit(eye - position), light.direction.astype(np.float32)
    thin = table["thin"] > 0
    normal = np.where(((dot(normal, view) < 0) & thin)[:, None], -normal, normal)
    coarse, fine = textures
    at = (uv * table["stretch"] * 512).astype(int) % 512
    spots, grain = coarse[at[:, 1], at[:, 0]], fine[at[:, 1], at[:, 0]]
    # spots of stain where the coarse noise exceeds the quantile that leaves `stained` of the surface
    level = np.quantile(coarse, np.clip([1 - m.stained for m in materials], 0, 1))[label]
    mix = np.clip((spots + 0.35 * grain - level) * 1.3 + 0.5, 0, 1)[:, None] * 0.8
    albedo = table["color"] * (1 - mix) + table["stain"] * mix
    albedo = albedo * bright * np.exp(table["contrast"] * grain * 0.6)[:, None]
    facing = dot(normal, lamp_way)
    through = np.where(thin, 0.45 * np.clip(-facing, 0, 1), 0)
    lamp = (np.clip(facing, 0, 1) * lit + through * (0.4 + 0.6 * lit))[:, None] * light.color
    # light comes from the sky more than from the floor, and little of it gets down to where objects stand
    dome = (0.68 + 0.32 * normal[:, 1:2]) * (0.55 + 0.45 * np.clip(position[:, 1:2] / 0.12, 0, 1))
    small = light.surroundings
    tint = small.mean((0, 1)) / max(small.mean(), 1e-3)
    color = albedo * (lamp + light.ambient * dome * (0.6 + 0.4 * tint))
    toward = dot(normal, view)
    glint = np.clip(dot(normal, unit(view + lamp_way)), 0, 1) ** (12 + 90 * table["gloss"]) * table["gloss"] * lit
    fresnel = 0.04 + 0.96 * (1 - np.clip(toward, 0.35, 1)) ** 5
    mirror = (table["metal"] + (1 - table["metal"]) * table["gloss"] * fresnel * 0.6)[:, None]
    way = (2 * toward[:, None] * normal - view) * (0.5, -0.5, 0) + 0.5
    column, row = (np.round(way[:, k] * (small.shape[1 - k] - 1)).astype(int) for k in (0, 1))
    scene = small[row, column] * (0.35 + 0.65 * light.ambient + 0.3 * lit[:, None])
    color = color * (1 - 0.8 * mirror) + scene * mirror * np.where(table["metal"][:, None] > 0.3, albedo * 1.5, 1)
    return np.clip(color + (0.6 * glint)[:, None] * light.color, 0, 2.5).astype(np.float32)


def _shadow_map(points: Array, light: Light, size: int = 640) -> Callable[[Array], Array]:
    """Return a function of points (P, 3): the share (P,) of lamp light that triangles (M, 3, 3) let through."""
    side = unit(np.cross(light.direction, (0.31, 0.21, 0.93)))
    basis = np.stack([side, np.cross(light.direction, side), light.direction], 1).astype(np.float32)
    flat = (points @ basis).reshape(-1, 3)
    low, scale = flat.min(0), (size - 4) / np.ptp(flat[:, :2], axis=0).max()
    _, nearest = rasterize((flat.reshape(-1, 3, 3) - low) * (scale, scale, 1) + (2, 2, 0), (size, size))
    bias = 4.0 / scale + 0.012

    def lit(points: Array) -> Array:
        spot = points @ basis - low
        total = np.zeros(len(points), np.float32)
        for shift in ((-0.7, -0.3), (0.3, -0.7), (0.7, 0.3), (-0.3, 0.7)):
            x, y = np.clip(spot[:, :2] * scale + shift + 2, 0, size - 1).astype(int).T
            total += nearest[y, x] < spot[:, 2] + bias
        return total / 4

    return lit


def _cast(spot: Array, shape: Size, squash: float) -> Array:
    """Draw a shadow (h, w) in [0, 1]: sharp at the contact, softer the further its caster is from the screen.

    `spot` (M, 3, 3) holds the shadows of triangles: column, row, and minus the meters from the screen.
    """
    if not len(spot):
        return np.zeros(shape, np.float32)
    face, nearness = rasterize(spot, shape)
    hard, away = np.float32(face >= 0), np.where(face >= 0, -nearness, 0).astype(np.float32)
    reach = max(shape) / 60
    near, middle, soft = (blurred(hard, sigma, squash) for sigma in (1.2, max(1.3, reach / 3), reach))
    weight = blurred(away, reach, squash) / np.maximum(soft, 1e-3) / max(-float(spot[..., 2].min()), 1e-3)
    result = near + (middle - near) * np.clip(weight / 0.3, 0, 1)
    return result + (soft - middle) * np.clip((weight - 0.3) / 0.7, 0, 1)


def _tinted(material: Material, tint: Array) -> Material:
    level = max(sum(material.color) / 3, 0.02) / max(float(np.mean(tint)), 0.02)
    color = tuple(0.55 * c + 0.45 * float(t) * level for c, t in zip(material.color, tint, strict=True))
    return replace(material, color=color)


def render(
    model: Model, camera: Camera, light: Light, offset: Array, frame: Size, rng: Rng, tint: Array | None = None
) -> Cutout | None:
    """Draw a model as a cut-out with its shadow.

    Args:
        model: What to draw.
        camera: Where from.
        light: Under which light.
        offset: (3,) meters from the world's origin to the model's.
        frame: (height, width) of the image; None is returned where nothing of the model is inside.
        rng: Decides the textures.
        tint: (3,) linear RGB that all colors lean to, or None.
    """
    corners = np.concatenate(model.parts)
    corners[..., :3] += np.asarray(offset, np.float32)
    points, labels = corners[..., :3], np.repeat(np.arange(len(model.parts)), [len(part) for part in model.parts])
    spot, eye, size = camera.project(points), np.array([0, camera.height, 0], np.float32), frame[::-1]
    thin = np.array([m.thin for m in model.materials])[labels]
    seen = ((spot[..., :2].max(1) > 0) & (spot[..., :2].min(1) < size)).all(1)
    seen &= thin | (dot(corners[..., 3:6], eye - points) >= 0).any(1)
    if not seen.any():
        return None
    axis, level = light.screen
    away = points[..., axis] - level

    def fallen(way: Array) -> Array:
        shadow = camera.project(points - (away / max(way[axis], 0.05))[..., None] * way)
        return np.concatenate([shadow[..., :2], -away[..., None]], -1)

    fall, pad = fallen(light.direction), max(frame) // 14
    every = np.concatenate([spot, fall])[..., :2].reshape(-1, 2)
    left, top = np.clip(every.min(0) - pad, 0, size).astype(int)
    right, bottom = np.clip(every.max(0) + pad, 0, size).astype(int)
    shape = (bottom - top, right - left)
    squash = min(1.0, 1.3 * camera.height / abs(float(offset[2]))) if axis == 1 else 1.0
    lamp = _cast(fall - (left, top, 0), shape, squash)
    # the sky is hidden too where a foot meets the ground: darkest at the contact, gone a hand above it
    reach = 0.03 * float(np.ptp(points[..., axis]))
    contact = _cast((fallen(np.eye(3)[axis]) - (left, top, 0))[away.min(1) < reach], shape, squash)
    blur = max(1.0, camera.focal / abs(float(offset[2])) * reach * 0.5)
    contact = np.maximum(1.2 * blurred(contact, blur, squash), 2 * blurred(contact, 2.5 * blur, squash))
    shadow = 1 - (1 - (1 - light.ambient) * lamp) * (1 - np.clip(contact, 0, 0.85) * max(light.ambient, 0.5))

    lit = _shadow_map(points, light)
    corners, labels = corners[seen], labels[seen]
    triangles = (spot[seen] - (left, top, 0)) * (SUPERSAMPLING, SUPERSAMPLING, 1)
    face, _ = rasterize(triangles, tuple(n * SUPERSAMPLING for n in shape))
    found = face >= 0
    materials = list(dict.fromkeys(model.materials))  # many parts share one
    made_of = np.array([materials.index(m) for m in model.materials])
    if tint is not None:
        materials = [_tinted(m, tint) for m in materials]
    colors = np.zeros((*face.shape, 4), np.float32)
    colors[..., 3] = found
    textures = noise(rng), noise(rng, roughness=0.85)
    y, x = np.nonzero(found)
    for part in np.array_split(np.arange(len(y)), len(y) // 400_000 + 1):
        hit = face[y[part], x[part]]
        attributes = np.einsum("pk,pkd->pd", _weights(triangles[hit], x[part] + 0.5, y[part] + 0.5), corners[hit])
        lamp = lit(attributes[:, :3] + 0.004 * unit(attributes[:, 3:6]))
        colors[y[part], x[part], :3] = _shade(attributes, materials, made_of[labels[hit]], eye, light, lamp, textures)

    def exposed(plane: Array) -> Array:
        """Shrink a plane as the lens does: wide enough that four samples per pixel give a smooth edge."""
        plane = cv2.GaussianBlur(plane, (0, 0), 0.75, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_AREA)

    target_at = np.where(found, np.array(model.targets)[labels[face]], -1)
    planes = [exposed((target_at == k).astype(np.float32)) for k in range(max(max(model.targets), 0) + 1)]
    return Cutout(exposed(colors), np.float32(shadow), np.stack(planes, -1), (int(left), int(top)))
