"""Procedural things with thin and perforated structure: small 3-D models and the renderer that draws them.

A generator builds a `Model` in metres from swept profiles and sheets; `render` draws it through a pinhole `Camera`
with a depth buffer, a shadow map, textured materials and supersampling, and returns a `Cutout`.
Colors are linear-light RGB throughout; only `make_object` returns display values.
"""

# ruff: noqa: RUF005  (a tuple added to an array is a shift, not a concatenation)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np

Array = np.ndarray
Rng = np.random.Generator
UP = np.array([0.0, 1.0, 0.0])
SUPERSAMPLING = 2


# --- materials ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        color: Linear RGB albedo, each in [0, 1].
        stain: Linear RGB that the texture mixes in (rust, dirt, darker grain).
        stained: Share of the surface that `stain` covers, in [0, 1].
        stretch: Texture frequency along and around the part, in tiles a metre.
        contrast: Amplitude of the fine texture.
        metal: Share of mirrored surroundings, in [0, 1].
        gloss: Strength of the highlight, in [0, 1].
        thin: True for sheets, which show both faces and let some light through.
    """

    color: tuple[float, float, float]
    stain: tuple[float, float, float] = (0.05, 0.03, 0.02)
    stained: float = 0.1
    stretch: tuple[float, float] = (1.0, 1.0)
    contrast: float = 0.15
    metal: float = 0.0
    gloss: float = 0.2
    thin: bool = False


def _linear(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    rgb = cv2.cvtColor(np.float32([[[hue % 360, saturation, value]]]), cv2.COLOR_HSV2RGB)[0, 0]
    return tuple(float(c) for c in rgb**2.2)


def wood(rng: Rng) -> Material:
    """Raw, oiled or weathered wood with grain along the part."""
    color = _linear(rng.uniform(16, 36), rng.uniform(0.12, 0.62), rng.uniform(0.3, 0.8))
    dark = tuple(c * rng.uniform(0.2, 0.5) for c in color)
    return Material(color, dark, rng.uniform(0.3, 0.5), (0.5, rng.uniform(5, 9)), 0.35, gloss=rng.uniform(0, 0.3))


def paint(rng: Rng) -> Material:
    """Painted wood or metal with worn and dirty places."""
    white = rng.random() < 0.3
    color = _linear(rng.uniform(0, 360), 0.08 if white else rng.uniform(0.2, 0.85), rng.uniform(0.25, 0.9))
    stain = _linear(rng.uniform(15, 40), rng.uniform(0.2, 0.6), rng.uniform(0.15, 0.5))
    return Material(color, stain, rng.uniform(0.02, 0.3), (1.5, 3.0), 0.12, gloss=rng.uniform(0.1, 0.8))


def steel(rng: Rng) -> Material:
    """Bare or chromed metal."""
    color = _linear(rng.uniform(20, 240), rng.uniform(0, 0.12), rng.uniform(0.55, 0.9))
    metal = rng.uniform(0.5, 0.9)
    return Material(color, _linear(25, 0.5, 0.3), rng.uniform(0, 0.15), (1, 4), 0.1, metal, rng.uniform(0.5, 1))


def iron(rng: Rng) -> Material:
    """Dark wrought iron, rusted to some degree."""
    color = _linear(rng.uniform(0, 360), rng.uniform(0, 0.25), rng.uniform(0.12, 0.4))
    rust = _linear(rng.uniform(12, 28), rng.uniform(0.5, 0.8), rng.uniform(0.25, 0.5))
    return Material(color, rust, rng.uniform(0.05, 0.7), (2, 3), 0.3, 0.1, rng.uniform(0.1, 0.5))


def rubber(rng: Rng) -> Material:
    """Tires, grips, saddles."""
    shade = rng.uniform(0.02, 0.06)
    return Material((shade, shade, shade), (0.15, 0.13, 0.1), 0.25, (2, 6), 0.3, gloss=0.15)


def bark(rng: Rng) -> Material:
    """Bark of trunks and twigs."""
    color = _linear(rng.uniform(18, 45), rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.6))
    return Material(color, (0.03, 0.025, 0.02), 0.45, (1.5, 6), 0.6, gloss=0.0)


def foliage(rng: Rng) -> Material:
    """Leaves: mostly green, sometimes autumnal."""
    hue = rng.uniform(70, 135) if rng.random() < 0.75 else rng.uniform(5, 60)
    color = _linear(hue, rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.7))
    stain = _linear(hue - 25, 0.6, 0.6)
    return Material(color, stain, rng.uniform(0.05, 0.3), (3, 3), 0.3, gloss=rng.uniform(0.1, 0.5), thin=True)


def rope(rng: Rng) -> Material:
    """Twine, rope, cord."""
    color = _linear(rng.uniform(20, 60), rng.uniform(0.05, 0.5), rng.uniform(0.4, 0.9))
    return Material(color, tuple(c * 0.3 for c in color), 0.4, (25, 5), 0.4, gloss=0.0)


def cloth(rng: Rng) -> Material:
    """Canvas, with light shining through."""
    color = _linear(rng.uniform(0, 360), rng.uniform(0.1, 0.8), rng.uniform(0.4, 0.9))
    return Material(color, tuple(c * 0.6 for c in color), 0.2, (1, 1), 0.12, gloss=0.02, thin=True)


def clay(rng: Rng) -> Material:
    """Terracotta, glazed or concrete pots."""
    color = _linear(rng.uniform(8, 35), rng.uniform(0.05, 0.65), rng.uniform(0.35, 0.8))
    return Material(color, (0.4, 0.38, 0.34), rng.uniform(0, 0.35), (1.5, 1.5), 0.2, gloss=rng.uniform(0, 0.7))


# --- models ------------------------------------------------------------------------------------------------------


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("...i,...i->...", a, b)


def _unit(v: Array) -> Array:
    return v / np.maximum(np.sqrt(_dot(v, v)), 1e-9)[..., None]


def rotation(axis: Literal["x", "y", "z"], angle: float) -> Array:
    """Rotation matrix (3, 3) by `angle` radians about a coordinate axis."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i] = np.sin(angle)
    matrix[i, j] = -matrix[j, i]
    return matrix


def arc(center: Array, radius: float, start: float = 0.0, stop: float = 2 * np.pi, count: int = 48) -> Array:
    """Points (count, 3) on a circle in the x-y plane around `center`; angles in radians."""
    angles = np.linspace(start, stop, count)
    return np.asarray(center) + radius * np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1)


def curve(*points: tuple[float, float, float], count: int = 16) -> Array:
    """Points (count, 3) on the Bezier curve with the given control points."""
    t = np.linspace(0, 1, count)[:, None]
    layers = [np.broadcast_to(np.asarray(p, float), (count, 3)) for p in points]
    while len(layers) > 1:
        layers = [a + (b - a) * t for a, b in pairwise(layers)]
    return layers[0]


def _circle_profile(sides: int) -> tuple[Array, Array]:
    angles = np.linspace(0, 2 * np.pi, sides + 1)
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    return ring, ring


def _box_profile(width: float, depth: float) -> tuple[Array, Array]:
    # Rounded edges catch the light as real timber and stock do; knife edges look drawn.
    bevel = 0.18 * min(width, depth)
    points, normals = [], []
    for k, (sx, sy) in enumerate([(1, 1), (-1, 1), (-1, -1), (1, -1)]):
        for angle in np.linspace(0, np.pi / 2, 3) + k * np.pi / 2:
            normal = np.array([np.cos(angle), np.sin(angle)])
            points.append(np.array([sx * (width / 2 - bevel), sy * (depth / 2 - bevel)]) + bevel * normal)
            normals.append(normal)
    return np.array([*points, points[0]]), np.array([*normals, normals[0]])


@dataclass
class Model:
    """Triangles in metres, y up, standing on y = 0.

    Attributes:
        rng: Source of the small differences between parts.
        parts: Arrays (M, 3, 9) float32: position, normal, two texture coordinates, brightness, for three corners.
        materials: One material a part.
    """

    rng: Rng
    parts: list[Array] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)

    def grid(self, points: Array, normals: Array | None, uv: Array, material: Material) -> None:
        """Add the surface spanned by a grid of points (n, m, 3); normals None are taken from the grid."""
        if normals is None:
            normals = _unit(np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1)))
        shade = np.full((*points.shape[:2], 1), self.rng.normal(1, 0.07))
        uv = uv + self.rng.random(2) * 10
        corners = np.concatenate([points, normals, uv, shade], -1).astype(np.float32)
        a, b, c, d = corners[:-1, :-1], corners[1:, :-1], corners[:-1, 1:], corners[1:, 1:]
        triangles = np.stack([np.stack([a, b, c], 2), np.stack([d, c, b], 2)], 2)
        self.parts.append(triangles.reshape(-1, 3, 9))
        self.materials.append(material)

    def sweep(
        self,
        path: Array,
        size: float | Array | tuple[float, float],
        material: Material,
        up: Array | None = None,
        sides: int = 10,
    ) -> None:
        """Sweep a profile along a path.

        Args:
            path: (n, 3) points.
            size: A radius, (n,) radii, or (width, depth) of a bevelled box whose width lies along `up`.
            material: The part's material.
            up: Direction of the profile's first axis; None chooses one that suits the path.
            sides: Corners of a round profile.
        """
        path = np.asarray(path, float)
        tangents = _unit(np.gradient(path, axis=0))
        if up is None:  # the direction the path moves in least: a flat curve's own normal, never along the path
            up = np.linalg.eigh(tangents.T @ tangents)[1][:, 0]
        side = _unit(np.cross(tangents, up))
        first = np.cross(side, tangents)
        if isinstance(size, tuple):
            profile, bends = _box_profile(*size)
            scale, girth = np.ones(len(path)), np.cumsum(np.r_[0, np.linalg.norm(np.diff(profile, axis=0), axis=1)])
        else:
            profile, bends = _circle_profile(sides)
            scale = np.broadcast_to(np.asarray(size, float), len(path))
            girth = np.linspace(0, 2 * np.pi * scale.mean(), sides + 1)
        frame = np.stack([first, side], 1)
        offsets = np.einsum("sk,nkd->nsd", profile, frame) * scale[:, None, None]
        normals = np.einsum("sk,nkd->nsd", bends, frame)
        ring = path[:, None] + offsets
        length = np.cumsum(np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1)])
        uv = np.stack(np.broadcast_arrays(length[:, None], girth[None]), -1)
        self.grid(ring, normals, uv, material)
        for end, sign in ((0, -1), (-1, 1)):
            cap = np.stack([ring[end], np.broadcast_to(path[end], ring[end].shape)])
            flat = np.broadcast_to(sign * tangents[end], cap.shape)
            self.grid(cap, flat, np.stack([uv[end], uv[end]]), material)

    def bar(self, a: Array, b: Array, size: float | tuple[float, float], material: Material, **how: object) -> None:
        """Add a straight bar between two points; see `sweep`."""
        self.sweep(np.stack([np.asarray(a, float), np.asarray(b, float)]), size, material, **how)

    def turned(self, center: Array, radii: Array, heights: Array, material: Material, sides: int = 32) -> None:
        """Add a body of revolution about the vertical through `center`: pots, hubs, balls, seats."""
        angles = np.linspace(0, 2 * np.pi, sides + 1)
        radii, heights = np.asarray(radii, float), np.asarray(heights, float)
        slope = _unit(np.stack([np.gradient(heights), -np.gradient(radii)], -1) + 1e-9)
        around = np.stack([np.cos(angles), 0 * angles, np.sin(angles)], -1)
        points = np.asarray(center) + radii[:, None, None] * around + heights[:, None, None] * UP
        normals = slope[:, :1, None] * around + slope[:, 1:, None] * UP
        uv = np.stack(np.broadcast_arrays(heights[:, None], angles[None] * radii.max()), -1)
        self.grid(points, normals, uv, material)

    def ball(self, center: Array, radius: float, material: Material) -> None:
        """Add a sphere."""
        angles = np.linspace(-np.pi / 2, np.pi / 2, 9)
        self.turned(center, radius * np.cos(angles), radius * np.sin(angles), material, 14)

    def sheet(self, points: Array, inside: Array, uv: Array, material: Material) -> None:
        """Add the part of a surface (n, m, 3) where `inside` (n, m) is positive, cut along its zero line."""
        before = len(self.parts)
        self.grid(points, None, uv, material)
        values = np.repeat(inside[..., None], 9, -1).astype(np.float32)
        a, b, c, d = values[:-1, :-1, 0], values[1:, :-1, 0], values[:-1, 1:, 0], values[1:, 1:, 0]
        signs = np.stack([np.stack([a, b, c], 2), np.stack([d, c, b], 2)], 2).reshape(-1, 3)
        self.parts[before] = _clip(self.parts[before], signs)

    def move(self, since: int, matrix: Array | None = None, offset: Array | tuple = (0, 0, 0)) -> None:
        """Rotate, then shift, all parts added since there were `since` of them."""
        matrix = np.eye(3) if matrix is None else matrix
        for k in range(since, len(self.parts)):
            part = self.parts[k].copy()
            part[..., :3] = part[..., :3] @ matrix.T + np.asarray(offset)
            part[..., 3:6] = part[..., 3:6] @ matrix.T
            self.parts[k] = part

    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest corner, (3,) each."""
        points = np.concatenate([part[..., :3].reshape(-1, 3) for part in self.parts])
        return points.min(0), points.max(0)


def _clip(triangles: Array, values: Array) -> Array:
    """Keep the part of each triangle (M, 3, 9) where its corner values (M, 3), interpolated, are positive."""
    positive = values > 0
    count = positive.sum(1)
    kept = [triangles[count == 3]]
    for wanted in (1, 2):  # turn each cut triangle so that its odd corner comes first
        chosen = count == wanted
        t, v, p = triangles[chosen], values[chosen], positive[chosen]
        odd = np.argmax(p if wanted == 1 else ~p, axis=1)
        order = (odd[:, None] + np.arange(3)) % 3
        t = np.take_along_axis(t, order[..., None], 1)
        v = np.take_along_axis(v, order, 1)[..., None]
        left = t[:, 0] + (t[:, 1] - t[:, 0]) * (v[:, 0] / (v[:, 0] - v[:, 1]))
        right = t[:, 0] + (t[:, 2] - t[:, 0]) * (v[:, 0] / (v[:, 0] - v[:, 2]))
        if wanted == 1:
            kept.append(np.stack([t[:, 0], left, right], 1))
        else:
            kept += [np.stack([left, t[:, 1], t[:, 2]], 1), np.stack([left, t[:, 2], right], 1)]
    return np.concatenate(kept)


# --- the things --------------------------------------------------------------------------------------------------


def _wheel(m: Model, radius: float, spokes: int, rim: Material, spoke: Material, tire: Material | None) -> None:
    """A wheel in the x-y plane about the origin: laced wire spokes with a tire, else turned wooden ones."""
    if tire:
        m.sweep(arc((0, 0, 0), radius - 0.016, count=72), 0.017, tire)
        m.sweep(arc((0, 0, 0), radius - 0.042, count=72), (0.02, 0.012), rim, up=np.array([0, 0, 1.0]))
        hub = 0.03
    else:
        m.sweep(arc((0, 0, 0), radius - 0.03, count=72), (0.06, 0.06), rim, up=np.array([0, 0, 1.0]))
        m.sweep(arc((0, 0, 0), radius, count=72), (0.055, 0.008), iron(m.rng), up=np.array([0, 0, 1.0]))
        hub = radius * 0.13
    m.bar((0, 0, -hub * 1.3), (0, 0, hub * 1.3), hub * (0.6 if tire else 1), rim, sides=18)
    for k in range(spokes):
        angle = 2 * np.pi * k / spokes
        lead = angle + (0.9 * (-1) ** (k // 2) if tire else 0)
        start = np.array([np.cos(lead) * hub, np.sin(lead) * hub, hub * 0.9 * (-1) ** k if tire else 0])
        stop = np.array([np.cos(angle), np.sin(angle), 0]) * (radius - 0.045)
        if tire:
            m.bar(start, stop, 0.0022, spoke, sides=6)
        else:
            along = np.linspace(0, 1, 7)[:, None]
            m.sweep(start + (stop - start) * along, 0.02 * np.array([1.2, 1.0, 0.8, 0.75, 0.8, 0.9, 1]), spoke)


def bicycle(m: Model) -> None:
    """A city or road bicycle."""
    rng, frame, metal, black = m.rng, paint(m.rng), steel(m.rng), rubber(m.rng)
    r, base = 0.34, rng.uniform(0.98, 1.1)
    spokes = int(rng.choice([20, 24, 28]))
    rear, crank = np.array([-base * 0.43, r, 0]), np.array([0, 0.28, 0])
    front = np.array([base * 0.57, r, 0])
    seat, head = np.array([-0.16, 0.78, 0]), np.array([base * 0.57 - 0.16, rng.uniform(0.76, 0.84), 0])
    neck = head + (0.03, -0.11, 0)
    dropped = rng.random() < 0.35
    for a, b in [(crank, seat), (crank, neck), (seat + (0.02, -0.1 * dropped, 0), crank * 0.8 if dropped else head)]:
        m.bar(a, b, 0.016, frame)
    if dropped:
        m.bar(crank + (-0.05, 0.2, 0), neck, 0.016, frame)
    m.bar(neck + (0.01, -0.03, 0), head + (-0.015, 0.05, 0), 0.02, frame)
    for z in (-0.055, 0.055):
        end = rear + (0, 0, z)
        m.bar(crank + (0, 0, z * 0.5), end, 0.009, frame)
        m.bar(seat + (0.01, -0.06, z * 0.3), end, 0.008, frame)
    m.bar(seat, seat + (-0.035, 0.13, 0), 0.012, metal)
    saddle = curve((-0.16, 0.02, 0), (-0.05, 0.05, 0), (0.05, 0.0, 0), (0.12, 0.0, 0)) + seat + (-0.03, 0.13, 0)
    m.sweep(saddle, np.interp(np.linspace(0, 1, 16), [0, 0.25, 0.6, 1], [0.03, 0.055, 0.03, 0.015]), black)
    # chain set: an outlined chainring with a star inside, two cranks, chain runs
    for z in (0.05,):
        m.sweep(arc(crank + (0, 0, z), 0.095, count=40), 0.006, metal, sides=6)
        turn = rng.uniform(0, 6.28)
        for k in range(5):
            a = turn + k * 2 * np.pi / 5
            m.bar(crank + (0, 0, z), crank + (np.cos(a) * 0.09, np.sin(a) * 0.09, z), 0.006, metal, sides=6)
        m.bar(crank + (0, 0.095, z), rear + (0, 0.035, z), 0.004, black, sides=6)
        m.bar(crank + (0, -0.095, z), rear + (0, -0.035, z), 0.004, black, sides=6)
        for sign in (-1, 1):
            tip = crank + sign * 0.165 * np.array([np.cos(turn), np.sin(turn), 0]) + (0, 0, sign * 0.07)
            m.bar(crank + (0, 0, sign * 0.07), tip, (0.016, 0.01), metal)
            m.bar(tip - (0.04, 0, sign * 0.0), tip + (0.04, 0, sign * 0.03), (0.05, 0.016), black)
    since = len(m.parts)
    _wheel(m, r, spokes, metal, metal, black)
    if rng.random() < 0.6:
        m.sweep(arc((0, 0, 0), r + 0.025, 0.2, 3.3), (0.045, 0.004), frame, up=np.array([0, 0, 1.0]))
    m.move(since, offset=rear)
    since = len(m.parts)  # what turns with the handlebar, built about the steering axis' foot
    _wheel(m, r, spokes, metal, metal, black)
    for z in (-0.055, 0.055):
        m.sweep(curve((0, 0, z), (-0.06, 0.2, z), neck - front + (0.02, -0.02, z)), 0.011, frame)
    m.bar(neck - front + (0.02, -0.02, -0.06), neck - front + (0.02, -0.02, 0.06), 0.014, frame)
    top = head - front + (-0.03, rng.uniform(0.1, 0.16), 0)
    m.bar(head - front, top, 0.012, metal)
    back = rng.uniform(-0.22, 0.1)
    for z in (-1, 1):
        bar = curve(top, top + (0.08, 0.02, z * 0.1), top + (0.05, 0.06, z * 0.3), top + (back, 0.02, z * 0.29))
        m.sweep(bar, 0.011, metal)
        m.sweep(bar[-5:], 0.016, black)
    m.sweep(curve(top + (0, 0, 0.1), top + (0.2, 0.1, 0.1), (0.03, 0.4, 0.03), (0, 0.33, 0.02)), 0.003, black, sides=6)
    steer = rng.uniform(-0.5, 0.5)
    pivot = np.array([neck[0], 0, 0])  # the head tube stands nearly upright here
    m.move(since, offset=front - pivot)
    m.move(since, rotation("y", steer), pivot)
    if rng.random() < 0.6:  # carrier over the rear wheel
        for z in (-0.06, 0, 0.06):
            m.bar(rear + (-0.2, 0.4, z), rear + (0.22, 0.4, z), 0.005, metal, sides=6)
        for x in (-0.18, 0, 0.18):
            m.bar(rear + (x, 0.4, -0.06), rear + (x, 0.4, 0.06), 0.005, metal, sides=6)
        for z in (-0.07, 0.07):
            m.bar(rear + (0, 0, z), rear + (-0.15, 0.4, z), 0.005, metal, sides=6)
            m.bar(rear + (0, 0, z), rear + (0.05, 0.4, z), 0.005, metal, sides=6)
    m.bar(crank + (-0.08, -0.02, 0.02), crank + (-0.14, -0.28, 0.16), 0.008, metal)


def cartwheel(m: Model) -> None:
    """A wooden wheel with an iron tire, leaning."""
    timber = wood(m.rng) if m.rng.random() < 0.6 else paint(m.rng)
    radius = m.rng.uniform(0.4, 0.6)
    _wheel(m, radius, int(m.rng.integers(10, 17)), timber, timber, None)
    m.move(0, rotation("x", -m.rng.uniform(0.0, 0.25)), (0, radius, 0))


def chair(m: Model) -> None:
    """A chair with a slatted seat and a slatted, spindle or ladder back."""
    rng = m.rng
    timber = wood(rng) if rng.random() < 0.6 else paint(rng)
    w, d, seat, top = rng.uniform(0.4, 0.5), rng.uniform(0.38, 0.46), 0.45, rng.uniform(0.85, 1.1)
    leg, lean = (0.036, 0.036), rng.uniform(0.04, 0.12)
    across = np.array([1.0, 0, 0])
    for x in (-w / 2, w / 2):
        m.bar((x, 0, d / 2), (x, seat, d / 2), leg, timber, up=across)
        m.sweep(curve((x, 0, -d / 2 - 0.04), (x, seat, -d / 2), (x, top, -d / 2 - lean)), leg, timber, up=across)
        for y in (0.14, 0.3)[: int(rng.integers(1, 3))]:
            m.bar((x, y, -d / 2), (x, y, d / 2), (0.03, 0.018), timber, up=UP)
        m.bar((x, seat - 0.04, -d / 2), (x, seat - 0.04, d / 2), (0.05, 0.02), timber, up=UP)
    for z in (-d / 2, d / 2):
        m.bar((-w / 2, seat - 0.04, z), (w / 2, seat - 0.04, z), (0.05, 0.02), timber, up=UP)
    if rng.random() < 0.5:
        m.bar((-w / 2, 0.18, d / 2), (w / 2, 0.18, d / 2), 0.012, timber)
    slats = int(rng.integers(6, 11))
    for z in np.linspace(-d / 2, d / 2 + 0.02, slats):
        m.bar(
            (-w / 2 - 0.02, seat, z),
            (w / 2 + 0.02, seat, z),
            (d / slats * 0.66, 0.014),
            timber,
            up=np.array([0, 0, 1.0]),
        )
    back = -d / 2 - lean * 0.55
    style = rng.integers(3)
    m.sweep(curve((-w / 2, top - 0.03, back - 0.04), (0, top + 0.03, back - 0.07), (w / 2, top - 0.03, back - 0.04)),
            (0.07, 0.02), timber, up=UP)  # fmt: skip
    if style == 0:  # ladder back
        for y in np.linspace(seat + 0.12, top - 0.14, int(rng.integers(3, 5))):
            m.sweep(
                curve((-w / 2, y, back), (0, y + 0.02, back - 0.04), (w / 2, y, back)), (0.045, 0.014), timber, up=UP
            )
    else:  # spindles or slats between two rails
        low = seat + 0.07
        m.bar((-w / 2, low, -d / 2), (w / 2, low, -d / 2), (0.04, 0.02), timber, up=UP)
        for x in np.linspace(-w / 2, w / 2, int(rng.integers(6, 11)))[1:-1]:
            ends = (x, low, -d / 2), (x, top - 0.03, back - 0.055)
            if style == 1:
                m.bar(*ends, 0.008, timber)
            else:
                m.bar(*ends, (0.026, 0.01), timber, up=across)


def bench(m: Model) -> None:
    """A park bench: wooden slats on curled iron sides."""
    rng, slat, side = m.rng, wood(m.rng) if m.rng.random() < 0.7 else paint(m.rng), iron(m.rng)
    w = rng.uniform(1.2, 1.7)
    for x in (-w / 2 + 0.1, w / 2 - 0.1):
        s = lambda *p, x=x: [(x, y, z) for y, z in p]  # noqa: E731
        m.sweep(curve(*s((0, 0.3), (0.25, 0.12), (0.42, 0.28), (0.46, 0.2))), 0.016, side)
        m.sweep(curve(*s((0, -0.3), (0.2, -0.1), (0.4, -0.15), (0.9, -0.36))), 0.016, side)
        m.sweep(curve(*s((0.44, 0.24), (0.4, 0), (0.43, -0.22))), 0.014, side)
        m.sweep(curve(*s((0.45, 0.24), (0.75, 0.4), (0.68, 0.1), (0.66, -0.26)), count=24), 0.013, side)
        spiral = np.linspace(0, 3.2 * np.pi, 40)
        r = 0.07 * (1 - spiral / 13)
        m.sweep(np.stack([0 * r + x, 0.53 + r * np.cos(spiral), 0.0 + r * np.sin(spiral)], -1), 0.007, side, sides=6)
    for z in np.linspace(-0.16, 0.26, int(rng.integers(5, 8))):
        m.bar(
            (-w / 2, 0.445 + 0.15 * z * z, z),
            (w / 2, 0.445 + 0.15 * z * z, z),
            (0.05, 0.022),
            slat,
            up=np.array([0, 0, 1.0]),
        )
    for t in np.linspace(0.1, 1, int(rng.integers(4, 7))):
        y, z = 0.47 + t * 0.43, -0.17 - t * 0.17
        m.bar((-w / 2, y, z), (w / 2, y, z), (0.055, 0.02), slat, up=np.array([0, 1, -0.4]))


def _vine(m: Model, path: Array, leaves: int, spread: float, stem: Material, leaf: Material, size: float) -> None:
    """A winding stem with leaves on stalks to both sides."""
    m.sweep(path, np.linspace(0.008, 0.002, len(path)), stem, sides=6)
    for _ in range(leaves):
        at = path[int(m.rng.integers(len(path) // 8, len(path)))]
        way = _unit(m.rng.normal(0, 1, 3) + (0, 0.2, 0.5))
        tip = at + way * spread * m.rng.uniform(0.4, 1)
        m.bar(at, tip, 0.0015, stem, sides=5)
        _leaf(m, tip, _unit(way + m.rng.normal(0, 0.5, 3) + (0, -0.4, 0)), size * m.rng.uniform(0.6, 1.2), leaf)


def _leaf(m: Model, base: Array, way: Array, length: float, material: Material, width: float = 0.5) -> None:
    """A small blade, folded along its midrib and drooping at its tip."""
    side = _unit(np.cross(way, m.rng.normal(0, 0.5, 3) + (0, 1, 0.3)))
    face = np.cross(side, way)
    u, v = np.meshgrid(np.linspace(0, 1, 9), np.linspace(-1, 1, 5), indexing="ij")
    half = 0.5 * width * length * np.sin(np.pi * u**0.75) ** 0.9
    rise = length * (0.12 * np.abs(v) * np.sin(np.pi * u) - 0.3 * u**2)
    points = base + (u * length)[..., None] * way + (v * half)[..., None] * side + rise[..., None] * face
    # the shaded midrib comes from the normal's jump across the fold
    m.grid(points, None, np.stack([u * length * 3, v * length * 3], -1), material)


def trellis(m: Model) -> None:
    """A framed lattice, diamond or square, sometimes climbed by a plant."""
    rng = m.rng
    timber = wood(rng) if rng.random() < 0.5 else paint(rng)
    w, h = rng.uniform(0.8, 1.5), rng.uniform(1.1, 1.9)
    step, lath = rng.uniform(0.11, 0.2), rng.uniform(0.016, 0.028)
    post = rng.uniform(0.03, 0.05)
    foot = rng.uniform(0, 0.15)
    out = np.array([0, 0, 1.0])
    if rng.random() < 0.65:  # diamond: lines x + s*y = c clipped to the frame
        for s in (-1, 1):
            for c in np.arange(-h - w, h + w, step * 1.4):
                ys = np.array([0, h, (c + w / 2) * s, (c - w / 2) * s])
                xs = c - s * ys
                ok = (np.abs(xs) <= w / 2 + 1e-6) & (ys >= -1e-6) & (ys <= h + 1e-6)
                ends = sorted(zip(xs[ok], ys[ok], strict=True))
                if len(ends) >= 2 and np.hypot(*(np.array(ends[-1]) - ends[0])) > 0.05:
                    z = 0.006 * s
                    m.bar(
                        (*(ends[0] + np.array([0, foot])), z),
                        (*(ends[-1] + np.array([0, foot])), z),
                        (0.01, lath),
                        timber,
                        up=out,
                    )
    else:
        for x in np.arange(-w / 2 + step, w / 2 - 0.03, step):
            m.bar((x, foot, 0.006), (x, h + foot, 0.006), (0.01, lath), timber, up=out)
        for y in np.arange(step, h - 0.03, step):
            m.bar((-w / 2, y + foot, -0.006), (w / 2, y + foot, -0.006), (0.01, lath), timber, up=out)
    for x in (-w / 2, w / 2):
        m.bar((x, 0, 0), (x, h + foot + 0.02, 0), (post, post), timber, up=out)
    for y in (foot, h + foot):
        m.bar((-w / 2 - 0.02, y, 0), (w / 2 + 0.02, y, 0), (post, post * 0.9), timber, up=out)
    if rng.random() < 0.45:
        stem, leaf = bark(rng), foliage(rng)
        for _ in range(int(rng.integers(2, 4))):
            y = np.linspace(0, h * rng.uniform(0.6, 1), 40)
            x = rng.uniform(-w / 3, w / 3) + 0.1 * np.sin(y * rng.uniform(4, 8)) + y * rng.uniform(-0.2, 0.2)
            _vine(m, np.stack([x, y, 0.02 * np.cos(y * 9)], -1), 26, 0.08, stem, leaf, 0.1)


def ladder(m: Model) -> None:
    """A step ladder or a straight one leaning back."""
    rng = m.rng
    rail = [wood, paint, steel][rng.integers(3)](rng)
    h, w, rungs = rng.uniform(1.5, 2.2), rng.uniform(0.34, 0.46), int(rng.integers(6, 9))
    step = rng.random() < 0.6
    reach, across = (h * 0.24 if step else h * 0.12), np.array([1.0, 0, 0])
    for x in (-1, 1):
        m.bar((x * w / 2 * 1.15, 0, reach), (x * w / 2 * 0.85, h, 0), (0.022, 0.06), rail, up=across)
        if step:
            m.bar((x * w / 2 * 1.05, 0, -reach), (x * w / 2 * 0.8, h * 0.98, -0.03), (0.02, 0.035), rail, up=across)
            m.bar(
                (x * w / 2, h * 0.5, reach * 0.5),
                (x * w / 2, h * 0.45, -reach * 0.52),
                (0.012, 0.004),
                steel(rng),
                up=across,
            )
    for t in np.linspace(0.1, 0.93 if step else 0.97, rungs):
        half, z = w / 2 * (1.15 - 0.3 * t), reach * (1 - t)
        if step:
            m.bar((-half, h * t, z), (half, h * t, z), (0.075, 0.018), rail, up=np.array([0, 0, 1.0]))
        else:
            m.bar((-half, h * t, z), (half, h * t, z), 0.015, rail)
    if step:
        m.bar((-w * 0.5, h, 0), (w * 0.5, h, 0), (0.14, 0.022), rail, up=np.array([0, 0, 1.0]))
        for t in (0.25, 0.7):
            half = w / 2 * (1.05 - 0.25 * t)
            m.bar((-half, h * t, -reach * (1 - t)), (half, h * t, -reach * (1 - t)), (0.03, 0.012), rail, up=UP)


def gate(m: Model) -> None:
    """A wrought-iron gate or railing with pickets, scrolls and spear heads."""
    rng, metal = m.rng, iron(m.rng)
    w, h = rng.uniform(1.0, 1.8), rng.uniform(1.0, 1.5)
    bulge, bar = rng.uniform(-0.12, 0.3), rng.uniform(0.007, 0.011)
    xs = np.linspace(-w / 2, w / 2, int(rng.integers(9, 16)))
    crest = h + bulge * np.cos(np.pi * xs / w)
    fine = np.linspace(-w / 2, w / 2, 40)
    m.sweep(np.stack([fine, h + bulge * np.cos(np.pi * fine / w), 0 * fine], -1), (0.025, 0.014), metal, up=UP)
    for y in (0.1, 0.1 + h * rng.uniform(0.15, 0.25), h - 0.14):
        m.bar((-w / 2, y, 0), (w / 2, y, 0), (0.028, 0.012), metal, up=UP)
    spear = rng.uniform(0.08, 0.15)
    for x, y in zip(xs, crest, strict=True):
        m.bar((x, 0.1, 0), (x, y + spear * 0.6, 0), bar, metal, sides=8)
        tip = np.linspace(0, 1, 7)
        profile = np.interp(tip, [0, 0.15, 0.4, 1], [0.6, 1.1, 2.1, 0.1]) * bar
        m.sweep(np.stack([0 * tip + x, y + spear * (0.5 + 0.6 * tip), 0 * tip], -1), profile, metal)
    for x in (-w / 2 - 0.04, w / 2 + 0.04):
        m.bar((x, 0, 0), (x, h + 0.12, 0), (0.05, 0.05), metal, up=np.array([1.0, 0, 0]))
        m.ball((x, h + 0.16, 0), 0.04, metal)
    gap = xs[1] - xs[0]
    turns = np.linspace(0, 1, 44)
    for x in (xs[:-1] + xs[1:]) / 2:  # an S of two spirals between each pair of pickets
        flip = 1 if x < 0 else -1
        for way in (-1, 1):
            angle = way * np.pi / 2 + turns * 1.35 * 2 * np.pi
            r = gap * 0.4 * (1 - turns * 0.8)
            center = h * 0.55 + way * gap * 0.4
            points = np.stack([x + flip * r * np.cos(angle) * way * way, center - r * np.sin(angle), 0 * r], -1)
            m.sweep(points, bar * 0.6, metal, sides=6)
    if rng.random() < 0.6:
        for x in (xs[:-1] + xs[1:]) / 2:
            m.sweep(arc((x, 0.17, 0), gap * 0.34, count=26), bar * 0.6, metal, sides=6)


def _grow(m: Model, at: Array, way: Array, length: float, radius: float, level: int, twig: Callable) -> None:
    """Grow a branch, its side branches and, by `twig(end, direction)`, what its ends carry."""
    bend = at + way * length * 0.5 + m.rng.normal(0, 0.09, 3) * length
    end = at + _unit(way + m.rng.normal(0, 0.12, 3) + UP * 0.06) * length
    path = curve(at, bend, end, count=9)
    m.sweep(path, np.linspace(radius, radius * 0.62, 9), m.materials[0] if m.materials else bark(m.rng), sides=8)
    last = _unit(path[-1] - path[-2])
    if level == 0:
        twig(end, last)
        return
    for k in range(int(m.rng.integers(2, 4))):
        start = path[-1] if k < 2 else path[int(m.rng.integers(4, 8))]
        spread = _unit(last + m.rng.normal(0, 0.55, 3) * (1, 0.7, 1))
        _grow(m, start, spread, length * m.rng.uniform(0.62, 0.85), radius * 0.62, level - 1, twig)


def tree(m: Model) -> None:
    """A small tree or shrub: forking branches, bare or with leaves."""
    rng, leaf = m.rng, foliage(m.rng)
    m.turned((0, 0, 0), [0.001, 0.03], [0, 0.001], bark(rng), 8)  # its material is the bark of all branches
    leaves = int(rng.choice([0, 2, 4]))

    def twig(end: Array, way: Array) -> None:
        for _ in range(leaves):
            _leaf(m, end - way * rng.uniform(0, 0.15), _unit(way + rng.normal(0, 0.7, 3)), rng.uniform(0.06, 0.1), leaf)

    for _ in range(int(rng.integers(1, 4))):
        lean = _unit(rng.normal(0, 0.2, 3) * (1, 0, 1) + UP)
        _grow(m, np.zeros(3), lean, rng.uniform(0.45, 0.6), rng.uniform(0.02, 0.032), 4, twig)


def fern(m: Model) -> None:
    """A potted palm or fern: arching fronds of many leaflets."""
    rng, leaf = m.rng, foliage(m.rng)
    r, h = rng.uniform(0.13, 0.2), rng.uniform(0.2, 0.34)
    pot = clay(rng)
    radii = np.array([0.02, 0.72, 0.74, 1.0, 1.0, 1.08, 1.08, 0.95, 0.93, 0.02]) * r
    m.turned((0, 0, 0), radii, np.array([0, 0, 0.02, 0.8, 0.82, 0.83, 1, 1, 0.9, 0.88]) * h, pot)
    stem = replace(bark(rng), color=tuple(c * 0.8 for c in leaf.color), contrast=0.2)
    for k in range(int(rng.integers(9, 15))):
        angle = k * 2.4 + rng.normal(0, 0.2)
        out = np.array([np.cos(angle), 0, np.sin(angle)])
        reach, rise = rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.9)
        low = h + rise * rng.uniform(0.2, 0.6)
        bend = [(0, h, 0) + out * 0.02, (0, h + rise, 0) + out * reach * 0.3, (0, h + rise, 0) + out * reach]
        path = curve(*bend, (0, low, 0) + out * reach * 1.25, count=30)
        m.sweep(path, np.linspace(0.006, 0.0015, 30), stem, sides=6)
        for j in range(6, 30):
            way = _unit(path[j] - path[j - 1])
            side = _unit(np.cross(way, UP))
            long = 0.22 * np.sin(np.pi * (j - 4) / 27) + 0.03
            for s in (-1, 1):
                _leaf(m, path[j], _unit(way * 0.8 + s * side + (0, rng.normal(0, 0.15), 0)), long, leaf, 0.16)


def leaf(m: Model) -> None:
    """One large leaf with lobes, holes and raised veins on a stalk."""
    rng, blade = m.rng, foliage(m.rng)
    blade = replace(blade, stretch=(2, 2))
    n = 150
    u, v = np.meshgrid(np.linspace(-0.25, 1.02, n), np.linspace(-0.75, 0.75, n), indexing="ij")
    outline = 0.62 * np.sin(np.clip((u + 0.2) / 1.2, 0, 1) ** 0.7 * np.pi) ** 0.75 - np.abs(v)
    notch = np.abs(v) - 0.6 * np.clip(-u - 0.02, 0, None) + (u > -0.02) * 1.0  # the bay where the stalk joins
    inside = np.minimum(outline, notch)
    pairs = int(rng.integers(5, 8))
    veins = []
    for s in (-1, 1):
        for k in range(pairs):
            start, slope = -0.02 + 0.82 * k / pairs, rng.uniform(0.55, 0.75)
            veins.append((start, s, slope))
            along = np.clip(np.abs(v), 0, 1)
            center = start + 0.41 / pairs + slope * along + rng.normal(0, 0.008)
            split = np.abs(u - center) - np.clip((along - rng.uniform(0.2, 0.36)) * 0.17, -0.02, 0.06)
            inside = np.minimum(inside, np.where(v * s > 0, split, 1))
            if rng.random() < 0.75:  # a hole between two veins, near the midrib
                hv, hr = rng.uniform(0.08, 0.15), rng.uniform(0.5, 1.0)
                hu = start + 0.41 / pairs + slope * hv
                du, dv = u - hu - slope * (np.abs(v) - hv), (v - s * hv)
                inside = np.minimum(inside, np.hypot(du / (0.022 * hr), dv / (0.055 * hr)) * 0.02 - 0.02)
    for _ in range(int(rng.integers(0, 9))):  # eaten by insects
        c = rng.uniform([-0.1, -0.5], [0.9, 0.5])
        inside = np.minimum(inside, np.hypot(u - c[0], v - c[1]) - rng.uniform(0.006, 0.02))
    curl, fold = rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.35)

    def surface(a: Array, b: Array) -> Array:
        ripple = np.cos((a - 0.65 * np.abs(b) + 0.02) / 0.82 * pairs * 2 * np.pi)  # sunk along the veins
        z = fold * np.abs(b) - curl * a**2 - 0.012 * ripple * np.minimum(1, np.abs(b) * 6)
        return np.stack([b, -a, z], -1)

    m.sheet(surface(u, v), inside, np.stack([u * 0.6, v * 0.6], -1), blade)
    rib = replace(blade, color=tuple(min(1.0, c * 1.7 + 0.05) for c in blade.color), thin=False, contrast=0.1)
    t = np.linspace(0, 1, 30)
    m.sweep(surface(t * 0.95, 0 * t), np.linspace(0.009, 0.002, 30), rib, sides=8)
    for start, s, slope in veins:
        b = np.linspace(0, 0.5, 16)
        a = start + slope * b
        keep = (0.62 * np.sin(np.clip((a + 0.2) / 1.2, 0, 1) ** 0.7 * np.pi) ** 0.75 - b) > 0.02
        if keep.sum() > 2:
            m.sweep(surface(a[keep], s * b[keep]), np.linspace(0.0045, 0.001, keep.sum()), rib, sides=6)
    m.sweep(curve((0, 0, 0), (0, 0.25, 0.05), (rng.uniform(-0.3, 0.3), 0.7, -0.2)), 0.01, rib)
    m.move(0, rotation("z", rng.uniform(-0.6, 0.6)))
    m.move(0, np.eye(3) * 0.5)
    m.move(0, offset=(0, -m.bounds()[0][1], 0))


def goal(m: Model) -> None:
    """A small goal: tube frame with a sagging net."""
    rng, frame, cord = m.rng, paint(m.rng), rope(m.rng)
    w, h, d = rng.uniform(1.3, 1.9), rng.uniform(0.9, 1.25), rng.uniform(0.5, 0.8)
    for x in (-w / 2, w / 2):
        m.bar((x, 0, 0), (x, h, 0), 0.022, frame)
        m.bar((x, 0.01, 0), (x, 0.01, -d), 0.016, frame)
        m.sweep(curve((x, h, 0), (x, h * 0.98, -d * 0.5), (x, 0.01, -d)), 0.014, frame)
    m.bar((-w / 2, h, 0), (w / 2, h, 0), 0.022, frame)
    m.bar((-w / 2, 0.01, -d), (w / 2, 0.01, -d), 0.016, frame)
    step, sag = rng.uniform(0.07, 0.11), rng.uniform(0.03, 0.1)
    fine = np.linspace(0, 1, 40)
    slope = curve((0, h, 0), (0, h * 0.98, -d * 0.5), (0, 0.01, -d), count=60)

    def back(s: Array, t: Array) -> Array:
        spot = np.stack([np.interp(t, np.linspace(0, 1, 60), slope[:, k]) for k in range(3)], -1)
        dip = sag * np.sin(np.pi * s) * np.sin(np.pi * t)
        wave = 0.012 * np.sin(s * 31 + t * 17)
        return spot + np.stack([(s - 0.5) * w, -dip * 0.5 + wave, -dip + wave], -1)

    diagonal = rng.random() < 0.5
    rows = 1.1 * h / step
    if diagonal:
        for c in np.arange(-rows, w / step, 1.4):
            for s in (-1, 1):
                x = (c + fine * rows) * step / w
                x = x if s > 0 else 1 - x
                ok = (x >= 0) & (x <= 1)
                if ok.sum() > 2:
                    m.sweep(back(x[ok], fine[ok]), 0.0028, cord, sides=6)
    else:
        for x in np.arange(step / w, 1, step / w):
            m.sweep(back(0 * fine + x, fine), 0.0028, cord, sides=6)
        for t in np.arange(1 / rows, 1, 1 / rows):
            m.sweep(back(fine, 0 * fine + t), 0.0028, cord, sides=6)
    for side in (0.0, 1.0):  # the net's cheeks
        for t in np.arange(0.08, 0.95, 1.2 / rows):
            end = back(np.array([side]), np.array([t]))[0]
            m.sweep(curve((end[0], end[1], 0), (end[0], end[1] - 0.04, end[2] / 2), end), 0.0026, cord, sides=6)
        for z in np.arange(-d + step, -0.02, step):
            k = int(np.argmin(np.abs(slope[:, 2] - z)))
            m.bar(((side - 0.5) * w, 0.01, z), ((side - 0.5) * w, slope[k, 1], z), 0.0026, cord, sides=6)


def parasol(m: Model) -> None:
    """An open parasol with ribs, stays and a scalloped canopy of two-colored panels."""
    rng, fabric, pole = m.rng, cloth(m.rng), [wood, steel, paint][m.rng.integers(3)](m.rng)
    other = fabric if rng.random() < 0.4 else cloth(rng)
    ribs, r, h = int(rng.choice([6, 8, 10])), rng.uniform(0.7, 1.0), rng.uniform(1.7, 2.1)
    drop = r * rng.uniform(0.3, 0.5)
    m.bar((0, 0.02, 0), (0, h + 0.06, 0), 0.018, pole)
    m.ball((0, h + 0.07, 0), 0.025, pole)
    m.turned((0, 0, 0), [0.001, 0.26, 0.26, 0.05, 0.035, 0.03], [0, 0, 0.04, 0.07, 0.2, 0.3], clay(rng))
    open_panels = set(rng.choice(ribs, int(rng.integers(0, 3)), replace=False).tolist())
    for k in range(ribs):
        a0, a1 = 2 * np.pi * np.array([k, k + 1]) / ribs
        tip = np.array([r * np.cos(a0), h - drop, r * np.sin(a0)])
        spoke = curve((0, h, 0), tip * (0.5, 0, 0.5) + (0, h - drop * 0.25, 0), tip)
        m.sweep(spoke - (0, 0.012, 0), 0.006, pole, sides=6)
        m.bar((0, h - drop - 0.28, 0), spoke[8] - (0, 0.012, 0), 0.005, pole, sides=6)
        t, s = np.meshgrid(np.linspace(0.015, 1, 20), np.linspace(0, 1, 13), indexing="ij")
        a = a0 + (a1 - a0) * s
        dent = 1 - (0.11 if ribs < 8 else 0.06) * np.sin(np.pi * s) * t  # cloth pulled straight between ribs
        scallop = 1 - 0.035 * np.sin(np.pi * s) * t**8
        y = h - drop * (0.5 * t + 0.5 * t**2) - 0.03 * np.sin(np.pi * s) * t
        points = np.stack([r * t * dent * scallop * np.cos(a), y, r * t * dent * scallop * np.sin(a)], -1)
        if k not in open_panels:
            m.grid(points, None, np.stack([t, s], -1), fabric if k % 2 else other)
    m.turned((0, h - drop - 0.3, 0), [0.02, 0.035, 0.035, 0.02], [0, 0.01, 0.05, 0.06], pole)


def windpump(m: Model) -> None:
    """A farm windpump: lattice tower, a rotor of many blades, a tail vane."""
    rng, metal, blades = m.rng, iron(m.rng) if m.rng.random() < 0.5 else steel(m.rng), paint(m.rng)
    h, foot = rng.uniform(3.4, 4.4), rng.uniform(0.5, 0.7)
    _mast(m, h, foot, 0.07, int(rng.integers(5, 8)), 0.022, metal)
    hub, r, count = np.array([0, h + 0.05, 0.22]), rng.uniform(0.8, 1.1), int(rng.integers(10, 18))
    since = len(m.parts)
    m.bar((0, 0, -0.1), (0, 0, 0.05), 0.05, metal, sides=14)
    for radius in (r * 0.5, r * 0.95):
        m.sweep(arc((0, 0, -0.02), radius, count=60), 0.009, metal, sides=6)
    for k in range(count):
        turn = rotation("z", 2 * np.pi * k / count)
        m.bar((0, 0, 0), turn @ (0, r * 0.97, 0), 0.009, metal, sides=6)
        t, s = np.meshgrid(np.linspace(0.38, 1, 8), np.linspace(-0.5, 0.5, 5), indexing="ij")
        width = 2.2 * r / count * (0.5 + 0.9 * t)
        blade = np.stack([s * width * 1.2, t * r, s * width * 0.7 + 0.04 * s**2], -1)
        m.grid(blade @ turn.T, None, np.stack([t, s * 0.2], -1), replace(blades, thin=True))
    m.move(since, rotation("z", rng.uniform(0, 1)), hub)
    m.bar((0, h + 0.05, 0.2), (0, h + 0.05, -1.0), 0.016, metal)
    u, v = np.meshgrid(np.linspace(0, 1, 6), np.linspace(-1, 1, 5), indexing="ij")
    vane = np.stack([0 * u, h + 0.05 + v * (0.14 + 0.2 * u), -0.75 - 0.5 * u], -1)
    m.grid(vane, None, np.stack([u, v], -1), replace(blades, thin=True))


def _mast(m: Model, h: float, foot: float, top: float, bays: int, bar: float, metal: Material) -> None:
    """A square tapering tower of angle bars with crossed braces."""
    levels = h * (1 - (1 - np.linspace(0, 1, bays + 1)) ** 1.35)
    half = foot + (top - foot) * levels / h
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    for k, (sx, sz) in enumerate(corners):
        tx, tz = corners[(k + 1) % 4]
        m.bar((sx * foot, 0, sz * foot), (sx * top, h, sz * top), (bar * 1.5, bar * 1.5), metal)
        for (y0, y1), (w0, w1) in zip(pairwise(levels), pairwise(half), strict=True):
            m.bar((sx * w0, y0, sz * w0), (tx * w1, y1, tz * w1), bar * 0.5, metal, sides=6)
            m.bar((tx * w0, y0, tz * w0), (sx * w1, y1, sz * w1), bar * 0.5, metal, sides=6)
            m.bar((sx * w1, y1, sz * w1), (tx * w1, y1, tz * w1), bar * 0.6, metal, sides=6)


def pylon(m: Model) -> None:
    """A power pylon with three cross arms and insulators, at a tenth of its size."""
    rng, metal = m.rng, steel(m.rng) if m.rng.random() < 0.6 else iron(m.rng)
    metal, glass = replace(metal, metal=0.2), paint(rng)
    h, foot = rng.uniform(3.6, 4.6), rng.uniform(0.4, 0.55)
    _mast(m, h, foot, 0.05, int(rng.integers(9, 13)), 0.024, metal)
    for t, reach in ((0.66, 0.95), (0.79, 0.75), (0.91, 0.55)):
        reach *= rng.uniform(0.85, 1.1)
        w = foot + (0.05 - foot) * t
        for s in (-1, 1):
            tip = np.array([s * reach, h * t + 0.02, 0])
            for z in (-w, w):
                low, high = np.array([s * w, h * t, z]), np.array([s * w * 0.8, h * (t + 0.05), z * 0.8])
                m.bar(low, tip, 0.012, metal, sides=6)
                m.bar(high, tip, 0.01, metal, sides=6)
                for a, b in ((0.0, 0.3), (0.3, 0.3), (0.3, 0.6), (0.6, 0.6)):
                    m.bar(high + (tip - high) * a, low + (tip - low) * b, 0.007, metal, sides=6)
            m.bar(tip, tip - (0, 0.19, 0), 0.004, metal, sides=6)
            for k in range(7):
                m.turned(tip - (0, 0.03 + 0.025 * k, 0), [0.004, 0.022, 0.004], [0.008, 0, -0.008], glass, 10)


def birdcage(m: Model) -> None:
    """A domed wire cage with a ring, a perch and a solid tray."""
    rng, wire = m.rng, [steel, iron, paint][m.rng.integers(3)](m.rng)
    r, h, count = rng.uniform(0.18, 0.24), rng.uniform(0.35, 0.5), int(rng.integers(22, 34))
    thick = rng.uniform(0.0022, 0.0032)
    m.turned(
        (0, 0, 0),
        np.array([0.01, 1.06, 1.08, 1.04, 1.0]) * r,
        [0, 0, 0.03, 0.045, 0.046],
        wire if rng.random() < 0.5 else wood(rng),
    )
    rise = rng.uniform(0.7, 1.2) * r
    for k in range(count):
        a = 2 * np.pi * k / count
        out = np.array([np.cos(a), 0, np.sin(a)])
        dome = [out * r + (0, h, 0), out * r + (0, h + rise * 0.6, 0), out * r * 0.45 + (0, h + rise, 0)]
        path = np.concatenate([[out * r + (0, 0.04, 0)], curve(*dome, (0, h + rise, 0))])
        m.sweep(path, thick, wire, sides=6)
    for y in (0.04, h * 0.35, h * 0.7, h):
        m.sweep(arc((0, 0, 0), r, count=60) @ rotation("x", np.pi / 2).T + (0, y, 0), thick * 1.7, wire, sides=6)
    m.sweep(arc((0, h + rise + 0.035, 0), 0.035, count=30), thick * 1.4, wire, sides=6)
    m.bar((-r, h * 0.4, 0), (r, h * 0.4, 0), 0.006, wood(rng))
    m.sweep(
        curve((-0.05, h + rise, 0), (-0.06, h * 0.5, 0), (0.06, h * 0.5, 0), (0.05, h + rise, 0)), 0.003, wire, sides=6
    )


def basket(m: Model) -> None:
    """A wire basket with two handles."""
    rng, wire = m.rng, [steel, paint, iron][m.rng.integers(3)](m.rng)
    w, d, h = rng.uniform(0.4, 0.55), rng.uniform(0.26, 0.36), rng.uniform(0.2, 0.3)
    flare, thick = rng.uniform(1.05, 1.35), rng.uniform(0.0022, 0.003)
    t = np.linspace(0, 2 * np.pi, 73)

    def ring(y: float) -> Array:  # a rounded rectangle that widens with height
        grow = 1 + (flare - 1) * y / h
        x, z = np.cos(t), np.sin(t)
        k = (np.abs(x) ** 5 + np.abs(z) ** 5) ** (-1 / 5)
        return np.stack([x * k * w / 2 * grow, 0 * t + y, z * k * d / 2 * grow], -1)

    for y in np.linspace(0.004, h, int(rng.integers(5, 9))):
        m.sweep(ring(y), thick * (2 if y == h else 1), wire, sides=6)
    for k in range(0, 72, 2):
        m.bar(ring(0.004)[k], ring(h)[k], thick, wire, sides=6)
    for k in range(2, 36, 2):
        m.bar(ring(0.004)[k], ring(0.004)[72 - k], thick, wire, sides=6)
    for k in range(-16, 17, 4):
        m.bar(ring(0.004)[k % 72], ring(0.004)[(36 - k) % 72], thick, wire, sides=6)
    rim = ring(h)
    for z, lean in ((24, 0.5), (-24, rng.uniform(-0.6, 0.6))):
        a, b = rim[(z - 6) % 72], rim[(z + 6) % 72]
        lift = np.array([0, 0.16, lean * 0.1])
        m.sweep(curve(a, a + lift, b + lift, b, count=20), thick * 1.8, wire, sides=8)


def fan(m: Model) -> None:
    """A pedestal fan with a wire guard."""
    rng, body, wire = m.rng, paint(m.rng), steel(m.rng)
    h, r = rng.uniform(0.7, 1.1), rng.uniform(0.2, 0.26)
    m.turned((0, 0, 0), [0.001, 0.2, 0.2, 0.04, 0.03], [0, 0, 0.02, 0.045, 0.07], body)
    m.bar((0, 0.04, 0), (0, h - 0.05, 0), 0.014, wire)
    since = len(m.parts)
    m.bar((0, 0, -0.2), (0, 0, -0.07), 0.06, body, sides=20)
    m.bar((0, 0, -0.08), (0, 0, 0.02), 0.03, body, sides=16)
    for k in range(4):
        s, t = np.meshgrid(np.linspace(-0.5, 0.5, 9), np.linspace(0.15, 0.9, 9), indexing="ij")
        angle = s * 1.1 * np.sin(np.pi * t) ** 0.5 + k * np.pi / 2
        m.grid(
            np.stack([t * r * np.cos(angle), t * r * np.sin(angle), s * 0.06], -1),
            None,
            np.stack([s, t], -1),
            replace(body, thin=True),
        )
    spokes = int(rng.integers(30, 48))
    for depth in (0.05, -0.06):
        for k in range(spokes):
            a = 2 * np.pi * k / spokes
            out = np.array([np.cos(a), np.sin(a), 0])
            m.sweep(
                curve(out * 0.03 + (0, 0, depth), out * r + (0, 0, depth), out * r, count=10), 0.0017, wire, sides=5
            )
        m.sweep(arc((0, 0, depth * 0.75), r * 0.62, count=50), 0.002, wire, sides=5)
    m.bar((0, 0, 0.045), (0, 0, 0.056), 0.035, body, sides=20)
    m.sweep(arc((0, 0, 0), r, count=60), 0.006, wire, sides=8)
    m.move(since, rotation("x", rng.uniform(-0.3, 0.1)) @ rotation("y", rng.uniform(-0.5, 0.5)), (0, h + 0.02, 0.1))


def stool(m: Model) -> None:
    """A metal stool with a perforated seat on crossed wire legs."""
    rng, metal = m.rng, [steel, paint, iron][m.rng.integers(3)](m.rng)
    r, h = rng.uniform(0.16, 0.2), rng.uniform(0.42, 0.7)
    n = 150
    u, v = np.meshgrid(np.linspace(-1.02, 1.02, n), np.linspace(-1.02, 1.02, n), indexing="ij")
    step = rng.uniform(0.14, 0.2)
    row = np.round(v / (step * 0.866))
    du = (u + (row % 2) * step / 2 + step / 2) % step - step / 2
    holes = np.hypot(du, v - row * step * 0.866) - step * rng.uniform(0.26, 0.34)
    rim = np.hypot(u, v)
    inside = np.minimum(1.0 - rim, np.maximum(holes, (rim - 0.86) * 2))
    points = np.stack([u * r, h + 0.01 * rim**2, v * r], -1)
    m.sheet(points, inside, np.stack([u, v], -1) * r, replace(metal, thin=True))
    ring = rotation("x", np.pi / 2)
    m.sweep(arc((0, 0, 0), r, count=60) @ ring.T + (0, h + 0.005, 0), 0.008, metal, sides=8)
    legs = int(rng.choice([3, 4]))
    tops = []
    for k in range(legs):
        a = 2 * np.pi * k / legs + 0.4
        out = np.array([np.cos(a), 0, np.sin(a)])
        m.bar(out * r * 0.85 + (0, h, 0), out * r * 1.35, 0.009, metal)
        m.ball(out * r * 1.35 + (0, 0.01, 0), 0.014, rubber(rng))
        tops.append(out)
    for y in (0.3, 0.62)[: int(rng.integers(1, 3))]:
        m.sweep(arc((0, 0, 0), r * (1.35 - 0.5 * y), count=50) @ ring.T + (0, h * y, 0), 0.006, metal, sides=8)


_BUILDERS: dict[str, Callable[[Model], None]] = {
    f.__name__: f
    for f in (
        basket, bench, bicycle, birdcage, cartwheel, chair, fan, fern, gate,
        goal, ladder, leaf, parasol, pylon, stool, tree, trellis, windpump,
    )
}  # fmt: skip
KINDS: tuple[str, ...] = tuple(_BUILDERS)
"""Names of the things that `build` and `make_object` know."""


def build(kind: str, rng: Rng) -> Model:
    """Build a random thing of a kind.

    Args:
        kind: One of `KINDS`.
        rng: Decides the instance; equal generators build equal models.

    Returns:
        Its model, in metres, standing on y = 0 with its face towards +z.
    """
    if kind not in _BUILDERS:
        raise ValueError(f"unknown kind {kind!r}; choose from {', '.join(KINDS)}")
    model = Model(rng)
    _BUILDERS[kind](model)
    return model


# --- drawing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera at (0, height, 0) that looks along -z.

    Attributes:
        focal: Focal length in pixels.
        height: Metres above the ground.
        center: (x, y) of the principal point in pixels; y is the horizon's row.
    """

    focal: float
    height: float
    center: tuple[float, float]

    def project(self, points: Array) -> Array:
        """Map points (..., 3) in metres to (..., 3): column, row, distance."""
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
    """A drawn thing, in place.

    Attributes:
        rgba: (h, w, 4) float32: linear RGB premultiplied by alpha, and alpha in [0, 1].
        shadow: (h, w) float32 in [0, 1]: the share of light it takes from what lies behind; not part of the thing.
        corner: (x, y) of the top left pixel in the image.
    """

    rgba: Array
    shadow: Array
    corner: tuple[int, int]


def blurred(image: Array, sigma: float, squash: float = 1.0) -> Array:
    """Blur with a Gaussian, `squash` times as high as wide; a wide one at a lower resolution."""
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
    buffer = np.full(height * width, np.iinfo(np.int64).max)
    corners = triangles[:, 0, :2], triangles[:, 1, :2], triangles[:, 2, :2]
    low = np.minimum(np.minimum(corners[0], corners[1]), corners[2])  # numpy is slow at short axes
    high = np.maximum(np.maximum(corners[0], corners[1]), corners[2])
    first = np.ceil(low - 0.5)
    extent = np.floor(high - 0.5) - first + 1
    visible = (extent[:, 0] > 0) & (extent[:, 1] > 0) & (high[:, 0] > 0) & (high[:, 1] > 0)
    visible &= (low[:, 0] < width) & (low[:, 1] < height)
    near, far = triangles[..., 2].min(), triangles[..., 2].max()
    a, b, c = (triangles[:, k, :2] - first - 0.5 for k in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    visible &= np.abs(area) > 1e-9
    weights = []  # of a and b as affine functions (x, y, 1) of the pixel within the triangle's own box
    with np.errstate(divide="ignore", invalid="ignore"):
        for p, q in ((b, c), (c, a)):
            line = np.stack([p[:, 1] - q[:, 1], q[:, 0] - p[:, 0], p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]], -1)
            weights.append((line / area[:, None]).astype(np.float32))
    depth = (triangles[..., 2] - near) / max(far - near, 1e-9)
    size = np.maximum(extent[:, 0], extent[:, 1])
    limit = 1
    while visible.any():  # boxes of about one size are tested together
        chosen = np.flatnonzero(visible & (size <= limit))
        visible[chosen] = False
        grid = np.arange(limit, dtype=np.float32)
        for part in np.array_split(chosen, max(1, len(chosen) * limit * limit // 200_000)):
            if not len(part):
                continue
            line_a, line_b = weights[0][part], weights[1][part]
            a = (line_a[:, :1] * grid)[:, None] + (line_a[:, 1:2] * grid + line_a[:, 2:])[..., None]
            b = (line_b[:, :1] * grid)[:, None] + (line_b[:, 1:2] * grid + line_b[:, 2:])[..., None]
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
    face = np.where(buffer == np.iinfo(np.int64).max, -1, buffer & 0xFFFFFFFF)
    return face.reshape(shape)


def _subdivide(corners: Array, labels: Array, screen: Callable[[Array], Array], limit: float) -> tuple[Array, Array]:
    """Halve triangles along their longest edge until none is longer than `limit` pixels."""
    done: list[tuple[Array, Array]] = []
    for _ in range(24):
        points = screen(corners[..., :3])[..., :2]
        edges = [points[:, k] - points[:, k - 2] for k in range(3)]  # from each corner to the next
        ab, bc, ca = (np.maximum(np.abs(e[:, 0]), np.abs(e[:, 1])) for e in edges)
        long = np.maximum(np.maximum(ab, bc), ca) > limit
        done.append((corners[~long], labels[~long]))
        if not long.any():
            break
        corners, labels, ab, bc, ca = corners[long], labels[long], ab[long], bc[long], ca[long]
        first = np.where((ab >= bc) & (ab >= ca), 0, np.where(bc >= ca, 1, 2))
        order = (first[:, None] + np.arange(3)) % 3
        corners = np.take_along_axis(corners, order[..., None], 1)
        a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
        middle = (a + b) / 2
        corners = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
        labels = np.concatenate([labels, labels])
    return np.concatenate([c for c, _ in done]), np.concatenate([n for _, n in done])


def _barycentric(triangles: Array, x: Array, y: Array) -> Array:
    """Weights (P, 3) of the corners (P, 3, 2+) at pixel coordinates."""
    a, b, c = (triangles[:, k, :2] for k in range(3))
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    px, py = x - a[:, 0], y - a[:, 1]
    v = (px * ac[:, 1] - py * ac[:, 0]) / area
    w = (ab[:, 0] * py - ab[:, 1] * px) / area
    return np.stack([1 - v - w, v, w], -1)


def noise(rng: Rng, size: int = 512, octaves: int = 7, roughness: float = 0.6) -> Array:
    """Fractal noise (size, size) float32 that tiles, of mean 0 and standard deviation 1."""
    total = np.zeros((size, size), np.float32)
    for k in range(octaves):
        cells = 4 * 2**k
        if cells > size:
            break
        layer = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
        scale = size // cells
        layer = cv2.resize(layer, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        total += roughness**k * layer[2 * scale : 2 * scale + size, 2 * scale : 2 * scale + size]
    return (total - total.mean()) / total.std()


def _shade(
    attributes: Array, materials: list[Material], label: Array, eye: Array, light: Light, lit: Array, rng: Rng
) -> Array:
    """Color surface points: (P, 9) attributes, (P,) material and lit share -> (P, 3) linear RGB."""
    position, normal, uv, bright = attributes[:, :3], _unit(attributes[:, 3:6]), attributes[:, 6:8], attributes[:, 8:]
    table = {
        name: np.array([getattr(m, name) for m in materials], np.float32)[label]
        for name in ("color", "stain", "stained", "stretch", "contrast", "metal", "gloss", "thin")
    }
    view = _unit(eye - position)
    behind = (_dot(normal, view) < 0) & (table["thin"] > 0)
    normal = np.where(behind[:, None], -normal, normal)
    coarse, fine = noise(rng), noise(rng, roughness=0.85)
    at = (uv * table["stretch"] * 512).astype(int) % 512
    spots, grain = coarse[at[:, 1], at[:, 0]], fine[at[:, 1], at[:, 0]]
    # spots of stain where the coarse noise exceeds the quantile that leaves `stained` of the surface
    level = np.quantile(coarse, np.clip(1 - np.array([m.stained for m in materials]), 0, 1))[label]
    mix = np.clip((spots + 0.35 * grain - level) * 1.3 + 0.5, 0, 1)[:, None] * 0.8
    albedo = table["color"] * (1 - mix) + table["stain"] * mix
    albedo = albedo * bright * np.exp(table["contrast"] * grain * 0.6)[:, None]
    facing = _dot(normal, light.direction.astype(np.float32))
    through = np.where(table["thin"] > 0, 0.45 * np.clip(-facing, 0, 1), 0)
    lamp = (np.clip(facing, 0, 1) * lit + through * (0.4 + 0.6 * lit))[:, None] * light.color
    small = light.surroundings
    rows, columns = small.shape[:2]

    def mirrored(way: Array) -> Array:
        row = ((0.5 - 0.5 * way[:, 1]) * (rows - 1)).round().astype(int)
        return small[row, ((0.5 + 0.5 * way[:, 0]) * (columns - 1)).round().astype(int)]

    # light comes from the sky more than from the floor, and little of it gets down to where things stand
    dome = (0.68 + 0.32 * normal[:, 1:2]) * (0.55 + 0.45 * np.clip(position[:, 1:2] / 0.12, 0, 1))
    tint = small.mean((0, 1)) / max(small.mean(), 1e-3)
    color = albedo * (lamp + light.ambient * dome * (0.6 + 0.4 * tint))
    toward = _dot(normal, view)
    reflected = 2 * toward[:, None] * normal - view
    half = _unit(view + light.direction.astype(np.float32))
    sharp = 12 + 90 * table["gloss"]
    glint = table["gloss"] * np.clip(_dot(normal, half), 0, 1) ** sharp * lit
    fresnel = 0.04 + 0.96 * (1 - np.clip(toward, 0.35, 1)) ** 5
    mirror = (table["metal"] + (1 - table["metal"]) * table["gloss"] * fresnel * 0.6)[:, None]
    scene = mirrored(reflected) * (0.35 + 0.65 * light.ambient + 0.3 * lit[:, None])
    shine = np.where(table["metal"][:, None] > 0.3, albedo * 1.5, 1)
    color = color * (1 - 0.8 * mirror) + scene * mirror * shine
    return np.clip(color + (0.6 * glint)[:, None] * light.color, 0, 2.5).astype(np.float32)


def _shadow_map(corners: Array, labels: Array, light: Light, size: int = 640) -> Callable[[Array], Array]:
    """Return a function of points (P, 3) that gives the share of lamp light, (P,), the model lets through."""
    way = light.direction
    side = _unit(np.cross(way, (0.31, 0.21, 0.93)))
    basis = np.stack([side, np.cross(way, side), -way], 1)
    span = max(float(np.ptp(corners[..., :3].reshape(-1, 3), axis=0).max()), 1e-3)
    corners, _ = _subdivide(corners, labels, lambda p: p @ basis * (size / span), 20.0)
    flat = corners[..., :3] @ basis
    low = flat.reshape(-1, 3).min(0)
    scale = (size - 4) / max(np.ptp(flat[..., 0]), np.ptp(flat[..., 1]))
    screen = (flat - low) * (scale, scale, 1) + (2, 2, 0)
    face = rasterize(screen, (size, size))
    depth = np.where(face < 0, np.inf, screen[face, :, 2].mean(-1))

    turned = (basis * (scale, scale, 1)).astype(np.float32)
    shift = (np.array([2, 2, 0]) - low * (scale, scale, 1)).astype(np.float32)

    def lit(points: Array) -> Array:
        spot = points @ turned + shift
        total = np.zeros(len(points), np.float32)
        for dx, dy in ((-0.7, -0.3), (0.3, -0.7), (0.7, 0.3), (-0.3, 0.7)):
            x = np.clip(spot[:, 0] + dx, 0, size - 1).astype(int)
            y = np.clip(spot[:, 1] + dy, 0, size - 1).astype(int)
            total += depth[y, x] > spot[:, 2] - 4.0 / scale - 0.012
        return total / 4

    return lit


def render(
    model: Model,
    camera: Camera,
    light: Light,
    offset: Array,
    frame: tuple[int, int],
    rng: Rng,
    screen: Literal["ground", "wall", "none"] = "ground",
    tint: Array | None = None,
) -> Cutout | None:
    """Draw a model as a cut-out with its shadow.

    Args:
        model: What to draw.
        camera: Where from.
        light: Under which light; its direction also decides the shadow's.
        offset: (3,) metres from the world's origin to the model's.
        frame: (height, width) of the image; nothing outside it is drawn.
        rng: Decides the textures.
        screen: What the shadow falls on: the ground y = 0, the plane just behind the model, or nothing.
        tint: (3,) linear RGB that all colors lean to, or None.

    Returns:
        The cut-out, or None where nothing of the model is inside the frame.
    """
    corners = np.concatenate(model.parts)
    labels = np.repeat(np.arange(len(model.parts)), [len(part) for part in model.parts])
    # few materials, many parts: one table entry for each distinct material
    materials = list(dict.fromkeys(model.materials))
    made_of = np.array([materials.index(m) for m in model.materials])
    if tint is not None:
        level = [max(sum(m.color) / 3, 0.02) / max(float(np.mean(tint)), 0.02) for m in materials]
        mix = [
            tuple(0.45 * c + 0.55 * float(t) * k for c, t in zip(m.color, tint, strict=True))
            for m, k in zip(materials, level, strict=True)
        ]
        materials = [replace(m, color=c) for m, c in zip(materials, mix, strict=True)]
    corners = corners.copy()
    corners[..., :3] += np.asarray(offset, np.float32)
    corners, labels = corners[(corners[..., 2] < -0.05).all(1)], labels[(corners[..., 2] < -0.05).all(1)]
    spot = camera.project(corners[..., :3])
    height, width = frame
    back = corners[..., 2].min() - 0.02

    axis, level = (1, 0.0) if screen == "ground" else (2, back)

    def fallen(points: Array, way: Array = light.direction) -> Array:
        """Where the shadow of points falls."""
        away = (points[..., axis] - level) / max(way[axis], 0.05)
        return points - away[..., None] * way

    def box(points: Array, pad: int) -> tuple[Array, Array]:
        first = np.floor(points[..., :2].reshape(-1, 2).min(0)).astype(int) - pad
        last = np.ceil(points[..., :2].reshape(-1, 2).max(0)).astype(int) + pad
        return np.clip(first, 0, (width, height)), np.clip(last, 0, (width, height))

    (x0, y0), (x1, y1) = box(spot, 3)
    if x1 - x0 < 8 or y1 - y0 < 8:
        return None
    inside = (spot[..., 0].max(1) > x0) & (spot[..., 0].min(1) < x1)
    inside &= (spot[..., 1].max(1) > y0) & (spot[..., 1].min(1) < y1)
    if not inside.any():
        return None
    lit = _shadow_map(corners, labels, light)
    shape = ((y1 - y0) * SUPERSAMPLING, (x1 - x0) * SUPERSAMPLING)

    def on_canvas(points: Array) -> Array:
        return (camera.project(points) - (x0, y0, 0)) * (SUPERSAMPLING, SUPERSAMPLING, 1)

    left, top, right, bottom = x0, y0, x1, y1
    shadow = np.zeros((y1 - y0, x1 - x0), np.float32)
    if screen != "none":
        squash = min(1.0, 1.3 * camera.height / abs(float(offset[2]))) if screen == "ground" else 1.0
        (left, top), (right, bottom) = box(
            np.concatenate([spot, camera.project(fallen(corners[..., :3]))]), max(frame) // 14
        )
        size = (bottom - top, right - left)

        def place(points: Array) -> Array:
            return camera.project(fallen(points)) - (left, top, 0)

        def below(points: Array) -> Array:
            return camera.project(fallen(points, np.eye(3)[axis])) - (left, top, 0)

        lamp = _cast(corners, labels, place, size, axis, level, squash)
        # the sky is hidden too where a foot meets the ground: darkest at the contact, gone a hand above it
        reach = 0.03 * float(np.ptp(corners[..., axis]))
        low = (corners[..., axis].min(1) - level) < reach
        contact = _cast(corners[low], labels[low], below, size, axis, level, squash)
        blur = max(1.0, camera.focal / abs(float(offset[2])) * reach * 0.5)
        contact = np.maximum(1.2 * blurred(contact, blur, squash), 2 * blurred(contact, 2.5 * blur, squash))
        shadow = 1 - (1 - (1 - light.ambient) * lamp) * (1 - np.clip(contact, 0, 0.85) * max(light.ambient, 0.5))
    eye = np.array([0, camera.height, 0], np.float32)
    thin = np.array([m.thin for m in model.materials])[labels]
    away = (_dot(corners[..., 3:6], eye - corners[..., :3]) < 0).all(1)
    front = inside & (thin | ~away)
    corners, labels = _subdivide(corners[front], labels[front], on_canvas, 20.0)
    triangles = on_canvas(corners[..., :3])
    face = rasterize(triangles, shape)
    found = face >= 0
    if not found.any():
        return None
    # where one part fills all samples of a pixel, a single one of them is shaded
    part_at = np.where(found, labels[face], -1)
    first = part_at[::2, ::2]
    others = [(1, 0), (0, 1), (1, 1)]
    whole = first >= 0
    for dy, dx in others:
        whole &= part_at[dy::2, dx::2] == first
    needed = found.copy()
    for dy, dx in others:
        needed[dy::2, dx::2] &= ~whole
    y, x = np.nonzero(needed)
    hit = face[y, x]
    colors = np.zeros((*shape, 4), np.float32)
    colors[..., 3] = found
    texture_seed = int(rng.integers(2**32))
    for part in np.array_split(np.arange(len(y)), len(y) // 400_000 + 1):
        chosen = hit[part]
        weights = _barycentric(triangles[chosen], x[part] + 0.5, y[part] + 0.5).astype(np.float32)
        attributes = np.einsum("pk,pkd->pd", weights, corners[chosen])
        lamp = lit(attributes[:, :3] + 0.004 * _unit(attributes[:, 3:6]))
        textures = np.random.default_rng(texture_seed)
        rgb = _shade(attributes, materials, made_of[labels[chosen]], eye, light, lamp, textures)
        colors[y[part], x[part], :3] = rgb
    for dy, dx in others:
        colors[dy::2, dx::2][whole] = colors[::2, ::2][whole]
    # the lens's point spread, wide enough that four samples a pixel give a smooth edge
    colors = cv2.GaussianBlur(colors, (0, 0), 0.75, borderType=cv2.BORDER_REPLICATE)
    rgba = np.zeros((*shadow.shape, 4), np.float32)
    rgba[y0 - top : y1 - top, x0 - left : x1 - left] = cv2.resize(
        colors, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA
    )
    return Cutout(rgba, shadow, (int(left), int(top)))


def _coarse(corners: Array, labels: Array, light: Light) -> tuple[Array, Light]:
    """Triangles small enough for the shadow map, and the light."""
    span = max(float(np.ptp(corners[..., :3].reshape(-1, 3), axis=0).max()), 1e-3)
    small, _ = _subdivide(corners, labels, lambda p: p[..., [0, 1, 2]] * (640 / span), 40.0)
    return small, light


def _cast(
    corners: Array,
    labels: Array,
    place: Callable[[Array], Array],
    shape: tuple[int, int],
    axis: int,
    level: float,
    squash: float,
) -> Array:
    """Shadow (h, w) in [0, 1]: sharp at the contact, softer the further away its caster is."""
    small, _ = _subdivide(corners, labels, place, 20.0)
    if not len(small):
        return np.zeros(shape, np.float32)
    face = rasterize(place(small[..., :3]), shape)
    hard = (face >= 0).astype(np.float32)
    distance = small[..., axis].mean(1) - level
    away = np.where(face >= 0, distance[face], 0).astype(np.float32)
    reach = max(shape) / 60
    near, middle, soft = (blurred(hard, sigma, squash) for sigma in (1.2, max(1.3, reach / 3), reach))
    weight = blurred(away, reach, squash) / np.maximum(soft, 1e-3) / max(float(distance.max()), 1e-3)
    weight = np.clip(weight, 0, 1)
    return np.where(
        weight < 0.3, near + (middle - near) * weight / 0.3, middle + (soft - middle) * (weight - 0.3) / 0.7
    ).astype(np.float32)


def make_object(kind: str, rng: Rng, size: int = 512) -> Array:
    """Draw a random thing alone, seen from eye height under studio light.

    Args:
        kind: One of `KINDS`.
        rng: Decides instance, material, turn and light; equal generators draw equal pictures.
        size: Length of the cut-out's longer side in pixels.

    Returns:
        (h, w, 4) uint8: straight (not premultiplied) sRGB and alpha, cropped to the thing.
    """
    model = build(kind, rng)
    model.move(0, rotation("y", rng.uniform(-0.7, 0.7)))
    low, high = model.bounds()
    span = float((high - low).max())
    distance = 4 * span
    camera = Camera(3.2 * size, 0.75 * float(high[1]), (size, size))
    direction = _unit(np.array([rng.uniform(-1, 1), rng.uniform(0.7, 1.4), rng.uniform(0.5, 1.2)]))
    light = Light(direction, np.full(3, 0.9), 0.45, np.linspace(0.8, 0.15, 8)[:, None, None].repeat(8, 1).repeat(3, 2))
    middle = (low + high) / 2
    offset = np.array([-middle[0], camera.height - middle[1], -distance - middle[2]])
    cutout = render(model, camera, light, offset, (2 * size, 2 * size), rng, "none")
    assert cutout is not None
    y, x = np.nonzero(cutout.rgba[..., 3] > 0.02)
    rgba = cutout.rgba[y.min() : y.max() + 1, x.min() : x.max() + 1]
    scale = size / max(rgba.shape[:2])
    rgba = cv2.resize(
        rgba,
        (max(1, round(rgba.shape[1] * scale)), max(1, round(rgba.shape[0] * scale))),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
    )
    alpha = np.clip(rgba[..., 3:], 0, 1)
    straight = np.clip(rgba[..., :3] / np.maximum(alpha, 1e-4), 0, 1) ** (1 / 2.2)
    return np.round(np.concatenate([straight, alpha], -1) * 255).astype(np.uint8)
