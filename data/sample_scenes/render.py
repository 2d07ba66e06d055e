"""Draw a model through a pinhole camera with a depth buffer, a shadow map, textured materials and supersampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sample_scenes.materials import Array, Material, Rng, noise
from sample_scenes.mesh import Model, dot, unit

SUPERSAMPLING = 2
_EDGE = 20.0  # pixels: longer triangles are split, since small ones are fast to rasterize


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera at (0, height, 0) that looks along -z.

    Attributes:
        focal: Focal length in pixels.
        height: Meters above the ground.
        center: (x, y) of the principal point in pixels; y is the horizon's row.
    """

    focal: float
    height: float
    center: tuple[float, float]

    def project(self, points: Array) -> Array:
        """Map points (..., 3) in meters to (..., 3): column, row, distance."""
        depth = np.maximum(-points[..., 2], 1e-3)
        x = self.center[0] + self.focal * points[..., 0] / depth
        y = self.center[1] + self.focal * (self.height - points[..., 1]) / depth
        return np.stack([x, y, depth], -1)


@dataclass(frozen=True)
class Light:
    """One distant lamp and the light of the surroundings.

    Attributes:
        direction: Unit vector (3,) towards the lamp.
        color: Linear RGB of the lamp.
        ambient: Share of light that reaches the ground in full shadow, in (0, 1).
        surroundings: (h, w, 3) small linear RGB picture that metal mirrors and that tints the ambient light.
    """

    direction: Array
    color: Array
    ambient: float
    surroundings: Array


@dataclass(frozen=True)
class Cutout:
    """A drawn model, in place.

    Attributes:
        rgba: (h, w, 4) float32: linear RGB premultiplied by alpha, and alpha in [0, 1].
        shadow: (h, w) float32 in [0, 1]: the share of light it takes from what lies behind; not part of any target.
        targets: (h, w, T) float32 in [0, 1]: the share of each pixel in which each target is seen.
        corner: (x, y) of the top left pixel in the image.
    """

    rgba: Array
    shadow: Array
    targets: Array
    corner: tuple[int, int]


def blurred(image: Array, sigma: float, squash: float = 1.0) -> Array:
    """Blur with a Gaussian, `squash` times as high as wide; wide ones at a lower resolution."""
    h, w = image.shape[:2]
    factor = int(min(sigma * squash / 2.5, h / 4, w / 4))
    if factor < 2:
        return cv2.GaussianBlur(image, (0, 0), sigma, sigmaY=sigma * squash)
    small = cv2.resize(image, (-(-w // factor), -(-h // factor)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / factor, sigmaY=sigma * squash / factor)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR)


def rasterize(triangles: Array, shape: tuple[int, int]) -> Array:
    """Find the nearest triangle at every pixel center.

    Args:
        triangles: (M, 3, 3) float: column, row, distance of three corners; small ones are fast.
        shape: (height, width).

    Returns:
        (height, width) int64: the triangle's index, -1 where there is none.
    """
    height, width = shape
    empty = np.iinfo(np.int64).max
    buffer = np.full(height * width, empty)
    p, q, r = (triangles[:, k, :2] for k in range(3))
    low, high = np.minimum(np.minimum(p, q), r), np.maximum(np.maximum(p, q), r)  # numpy is slow at short axes
    first = np.ceil(low - 0.5)
    extent = np.floor(high - 0.5) - first + 1
    visible = (extent[:, 0] > 0) & (extent[:, 1] > 0) & (high[:, 0] > 0) & (high[:, 1] > 0)
    visible &= (low[:, 0] < width) & (low[:, 1] < height)
    a, b, c = (corner - first - 0.5 for corner in (p, q, r))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    visible &= np.abs(area) > 1e-9
    weights = []  # of a and b as affine functions (x, y, 1) of the pixel within the triangle's own box
    with np.errstate(divide="ignore", invalid="ignore"):
        for s, t in ((b, c), (c, a)):
            line = np.stack([s[:, 1] - t[:, 1], t[:, 0] - s[:, 0], s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]], -1)
            weights.append((line / area[:, None]).astype(np.float32))
    near, far = triangles[..., 2].min(), triangles[..., 2].max()
    depth = (triangles[..., 2] - near) / max(far - near, 1e-9)
    size, limit = np.maximum(extent[:, 0], extent[:, 1]), 1
    while visible.any():  # boxes of about one size are tested together
        chosen = np.flatnonzero(visible & (size <= limit))
        visible[chosen] = False
        grid = np.arange(limit, dtype=np.float32)
        for part in np.array_split(chosen, max(1, len(chosen) * limit * limit // 200_000)):
            if not len(part):
                continue
            a, b = (
                (line[:, :1] * grid)[:, None] + (line[:, 1:2] * grid + line[:, 2:])[..., None]
                for line in (weights[0][part], weights[1][part])
            )
            hit = np.flatnonzero((np.minimum(a, b) >= 0) & (a + b <= 1))
            n, spot = np.divmod(hit, limit * limit)
            y, x = np.divmod(spot, limit)
            a, b, face = a.ravel()[hit], b.ravel()[hit], part[n]
            column, row = x + first[face, 0].astype(int), y + first[face, 1].astype(int)
            z = a * depth[face, 0] + b * depth[face, 1] + (1 - a - b) * depth[face, 2]
            key = (np.clip(z, 0, 1) * 0x3FFFFFFF).astype(np.int64) << 32 | face
            ok = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            np.minimum.at(buffer, row[ok] * width + column[ok], key[ok])
        limit += 1 + limit // 4
    return np.where(buffer == empty, -1, buffer & 0xFFFFFFFF).reshape(shape)


def _subdivide(corners: Array, labels: Array, screen: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Halve triangles along their longest edge until none is longer than `_EDGE` pixels."""
    done: list[tuple[Array, Array]] = []
    for _ in range(24):
        points = screen(corners[..., :3])[..., :2]
        edges = (np.abs(points[:, k] - points[:, k - 2]) for k in range(3))  # from each corner to the next
        ab, bc, ca = (np.maximum(edge[:, 0], edge[:, 1]) for edge in edges)
        long = np.maximum(np.maximum(ab, bc), ca) > _EDGE
        done.append((corners[~long], labels[~long]))
        if not long.any():
            break
        corners, labels, ab, bc, ca = corners[long], labels[long], ab[long], bc[long], ca[long]
        first = np.where((ab >= bc) & (ab >= ca), 0, np.where(bc >= ca, 1, 2))
        corners = np.take_along_axis(corners, ((first[:, None] + np.arange(3)) % 3)[..., None], 1)
        a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
        middle = (a + b) / 2
        corners = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
        labels = np.concatenate([labels, labels])
    return np.concatenate([c for c, _ in done]), np.concatenate([n for _, n in done])


def _barycentric(triangles: Array, x: Array, y: Array) -> Array:
    """Return the weights (P, 3) of the corners (P, 3, 2+) at pixel coordinates."""
    a, b, c = (triangles[:, k, :2] for k in range(3))
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    px, py = x - a[:, 0], y - a[:, 1]
    v, w = (px * ac[:, 1] - py * ac[:, 0]) / area, (ab[:, 0] * py - ab[:, 1] * px) / area
    return np.stack([1 - v - w, v, w], -1).astype(np.float32)


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


def _shadow_map(corners: Array, labels: Array, light: Light, size: int = 640) -> Callable[[Array], Array]:
    """Return a function of points (P, 3) that gives the share of lamp light, (P,), the model lets through."""
    way = light.direction
    side = unit(np.cross(way, (0.31, 0.21, 0.93)))
    basis = np.stack([side, np.cross(way, side), -way], 1)
    span = max(float(np.ptp(corners[..., :3].reshape(-1, 3), axis=0).max()), 1e-3)
    corners, _ = _subdivide(corners, labels, lambda p: p @ basis * (size / span))
    flat = corners[..., :3] @ basis
    low = flat.reshape(-1, 3).min(0)
    scale = (size - 4) / max(np.ptp(flat[..., 0]), np.ptp(flat[..., 1]))
    screen = (flat - low) * (scale, scale, 1) + (2, 2, 0)
    face = rasterize(screen, (size, size))
    depth = np.where(face < 0, np.inf, screen[face, :, 2].mean(-1))
    turned = (basis * (scale, scale, 1)).astype(np.float32)
    shift = (np.array([2, 2, 0]) - low * (scale, scale, 1)).astype(np.float32)
    bias = 4.0 / scale + 0.012

    def lit(points: Array) -> Array:
        spot = points @ turned + shift
        total = np.zeros(len(points), np.float32)
        for dx, dy in ((-0.7, -0.3), (0.3, -0.7), (0.7, 0.3), (-0.3, 0.7)):
            x, y = (np.clip(spot[:, k] + d, 0, size - 1).astype(int) for k, d in enumerate((dx, dy)))
            total += depth[y, x] > spot[:, 2] - bias
        return total / 4

    return lit


def _cast(small: Array, spot: Array, shape: tuple[int, int], height: Array, squash: float) -> Array:
    """Draw a shadow (h, w) in [0, 1]: sharp at the contact, softer the further its caster is from the screen."""
    if not len(small):
        return np.zeros(shape, np.float32)
    face = rasterize(spot, shape)
    hard = (face >= 0).astype(np.float32)
    away = np.where(face >= 0, height[face], 0).astype(np.float32)
    reach = max(shape) / 60
    near, middle, soft = (blurred(hard, sigma, squash) for sigma in (1.2, max(1.3, reach / 3), reach))
    weight = blurred(away, reach, squash) / np.maximum(soft, 1e-3) / max(float(height.max()), 1e-3)
    return np.where(
        weight < 0.3,
        near + (middle - near) * weight / 0.3,
        middle + (soft - middle) * np.clip(weight - 0.3, 0, 0.7) / 0.7,
    ).astype(np.float32)


def _tinted(material: Material, tint: Array) -> Material:
    level = max(sum(material.color) / 3, 0.02) / max(float(np.mean(tint)), 0.02)
    color = tuple(0.45 * c + 0.55 * float(t) * level for c, t in zip(material.color, tint, strict=True))
    return replace(material, color=color)


def render(
    model: Model,
    camera: Camera,
    light: Light,
    offset: Array,
    frame: tuple[int, int],
    rng: Rng,
    screen: tuple[int, float] | None = (1, 0.0),
    tint: Array | None = None,
) -> Cutout | None:
    """Draw a model as a cut-out with its shadow.

    Args:
        model: What to draw.
        camera: Where from.
        light: Under which light; its direction also decides the shadow's.
        offset: (3,) meters from the world's origin to the model's.
        frame: (height, width) of the image; nothing outside it is drawn.
        rng: Decides the textures.
        screen: The plane that the shadow falls on: (1, y) is a floor, (2, z) a wall, None is no shadow.
        tint: (3,) linear RGB that all colors lean to, or None.

    Returns:
        The cut-out, or None where nothing of the model is inside the frame.
    """
    corners = np.concatenate(model.parts)
    labels = np.repeat(np.arange(len(model.parts)), [len(part) for part in model.parts])
    # few materials, many parts: one table entry for each distinct material
    materials = list(dict.fromkeys(model.materials))
    index = {material: k for k, material in enumerate(materials)}
    made_of = np.array([index[m] for m in model.materials])
    if tint is not None:
        materials = [_tinted(m, tint) for m in materials]
    corners[..., :3] += np.asarray(offset, np.float32)
    ahead = (corners[..., 2] < -0.05).all(1)
    corners, labels = corners[ahead], labels[ahead]
    height, width = frame

    def box(spots: Array, pad: int) -> tuple[Array, Array]:
        spots = spots[..., :2].reshape(-1, 2)
        first, last = np.floor(spots.min(0)).astype(int) - pad, np.ceil(spots.max(0)).astype(int) + pad
        return np.clip(first, 0, (width, height)), np.clip(last, 0, (width, height))

    spot = camera.project(corners[..., :3])
    (x0, y0), (x1, y1) = box(spot, 3)
    if x1 - x0 < 8 or y1 - y0 < 8:
        return None
    inside = (spot[..., 0].max(1) > x0) & (spot[..., 0].min(1) < x1)
    inside &= (spot[..., 1].max(1) > y0) & (spot[..., 1].min(1) < y1)
    eye = np.array([0, camera.height, 0], np.float32)
    thin = np.array([m.thin for m in model.materials])[labels]
    front = inside & (thin | (dot(corners[..., 3:6], eye - corners[..., :3]) >= 0).any(1))
    if not front.any():
        return None
    left, top = x0, y0
    shadow = np.zeros((y1 - y0, x1 - x0), np.float32)
    if screen is not None:
        axis, level = screen

        def fallen(points: Array, way: Array) -> Array:
            """Project points along the light onto the screen, and that into the image."""
            away = (points[..., axis] - level) / max(way[axis], 0.05)
            return camera.project(points - away[..., None] * way)

        def cast(chosen: Array, way: Array) -> Array:
            small, _ = _subdivide(corners[chosen], labels[chosen], lambda p: fallen(p, way))
            spots = fallen(small[..., :3], way) - (left, top, 0)
            return _cast(small, spots, (bottom - top, right - left), small[..., axis].mean(1) - level, squash)

        squash = min(1.0, 1.3 * camera.height / abs(float(offset[2]))) if axis == 1 else 1.0
        every = np.concatenate([spot, fallen(corners[..., :3], light.direction)])
        (left, top), (right, bottom) = box(every, max(frame) // 14)
        lamp = cast(np.ones(len(corners), bool), light.direction)
        # the sky is hidden too where a foot meets the ground: darkest at the contact, gone a hand above it
        reach = 0.03 * float(np.ptp(corners[..., axis]))
        contact = cast((corners[..., axis].min(1) - level) < reach, np.eye(3)[axis])
        blur = max(1.0, camera.focal / abs(float(offset[2])) * reach * 0.5)
        contact = np.maximum(1.2 * blurred(contact, blur, squash), 2 * blurred(contact, 2.5 * blur, squash))
        shadow = 1 - (1 - (1 - light.ambient) * lamp) * (1 - np.clip(contact, 0, 0.85) * max(light.ambient, 0.5))

    def on_canvas(points: Array) -> Array:
        return (camera.project(points) - (x0, y0, 0)) * (SUPERSAMPLING, SUPERSAMPLING, 1)

    lit = _shadow_map(corners, labels, light)
    corners, labels = _subdivide(corners[front], labels[front], on_canvas)
    triangles = on_canvas(corners[..., :3])
    face = rasterize(triangles, ((y1 - y0) * SUPERSAMPLING, (x1 - x0) * SUPERSAMPLING))
    found = face >= 0
    if not found.any():
        return None
    # where one part fills all samples of a pixel, a single one of them is shaded
    part_at = np.where(found, labels[face], -1)
    others = [(1, 0), (0, 1), (1, 1)]
    whole = found[::2, ::2] & np.all([part_at[dy::2, dx::2] == part_at[::2, ::2] for dy, dx in others], 0)
    needed = found.copy()
    for dy, dx in others:
        needed[dy::2, dx::2] &= ~whole
    y, x = np.nonzero(needed)
    colors = np.zeros((*face.shape, 4), np.float32)
    colors[..., 3] = found
    textures = noise(rng), noise(rng, roughness=0.85)
    for part in np.array_split(np.arange(len(y)), len(y) // 400_000 + 1):
        hit = face[y[part], x[part]]
        weights = _barycentric(triangles[hit], x[part] + 0.5, y[part] + 0.5)
        attributes = np.einsum("pk,pkd->pd", weights, corners[hit])
        lamp = lit(attributes[:, :3] + 0.004 * unit(attributes[:, 3:6]))
        color = _shade(attributes, materials, made_of[labels[hit]], eye, light, lamp, textures)
        colors[y[part], x[part], :3] = color
    for dy, dx in others:
        colors[dy::2, dx::2][whole] = colors[::2, ::2][whole]

    def exposed(plane: Array) -> Array:
        """Shrink a plane as the lens does: wide enough that four samples per pixel give a smooth edge."""
        plane = cv2.GaussianBlur(plane, (0, 0), 0.75, borderType=cv2.BORDER_REPLICATE)
        result = np.zeros((*shadow.shape, *plane.shape[2:]), np.float32)
        result[y0 - top : y1 - top, x0 - left : x1 - left] = cv2.resize(
            plane, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA
        )
        return result

    target_at = np.where(found, np.array(model.targets)[labels[face]], -1)
    planes = [exposed((target_at == k).astype(np.float32)) for k in range(max(max(model.targets), 0) + 1)]
    return Cutout(exposed(colors), shadow, np.stack(planes, -1), (int(left), int(top)))
