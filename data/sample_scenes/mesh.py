"""Triangle meshes of swept profiles, bodies of revolution and sheets, in meters with y pointing up."""

# ruff: noqa: RUF005  (a tuple added to an array is a shift, not a concatenation)

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from sample_scenes.materials import Array, Material, Range, Rng

UP = np.array([0.0, 1.0, 0.0])
ACROSS = np.array([1.0, 0.0, 0.0])
OUT = np.array([0.0, 0.0, 1.0])


def dot(a: Array, b: Array) -> Array:
    """Return the dot products of the last axes."""
    return np.einsum("...i,...i->...", a, b)


def unit(v: Array) -> Array:
    """Scale vectors (..., 3) to length 1."""
    return v / np.maximum(np.sqrt(dot(v, v)), 1e-9)[..., None]


def rotation(axis: str, angle: float) -> Array:
    """Return the rotation matrix (3, 3) by `angle` radians about a coordinate axis."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i], matrix[i, j] = np.sin(angle), -np.sin(angle)
    return matrix


def arc(center: Array, radius: float, start: float = 0.0, stop: float = 2 * np.pi, count: int = 48) -> Array:
    """Return points (count, 3) on a circle in the x-y plane around `center`; angles in radians."""
    angles = np.linspace(start, stop, count)
    return np.asarray(center) + radius * np.stack([np.cos(angles), np.sin(angles), 0 * angles], -1)


def curve(*points: tuple[float, float, float], count: int = 16) -> Array:
    """Return points (count, 3) on the Bezier curve with the given control points."""
    t = np.linspace(0, 1, count)[:, None]
    layers = [np.broadcast_to(np.asarray(p, float), (count, 3)) for p in points]
    while len(layers) > 1:
        layers = [a + (b - a) * t for a, b in pairwise(layers)]
    return layers[0]


def _box_profile(width: float, depth: float) -> tuple[Array, Array]:
    # rounded edges catch the light as real timber does; sharp edges look drawn
    bevel = 0.18 * min(width, depth)
    angles = np.arange(4)[:, None] * np.pi / 2 + np.linspace(0, np.pi / 2, 3)
    normals = np.stack([np.cos(angles), np.sin(angles)], -1)
    centers = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * (width / 2 - bevel, depth / 2 - bevel)
    points, normals = (centers[:, None] + bevel * normals).reshape(-1, 2), normals.reshape(-1, 2)
    return np.array([*points, points[0]]), np.array([*normals, normals[0]])


@dataclass
class Model:
    """Triangles in meters, y up, standing on y = 0.

    A part is an array (M, 3, 9) float32: position, normal, two texture coordinates and brightness of three corners.
    """

    rng: Rng  # source of the small differences between parts
    target: int = 0  # index of the target that the parts added next belong to, or -1 for none
    parts: list[Array] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)  # of each part
    targets: list[int] = field(default_factory=list)  # of each part

    def grid(self, points: Array, normals: Array | None, uv: Array, material: Material) -> None:
        """Add the surface spanned by a grid of points (n, m, 3); normals of None are taken from the grid."""
        if normals is None:
            normals = unit(np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1)))
        shade = np.full((*points.shape[:2], 1), self.rng.normal(1, 0.07))
        corners = np.concatenate([points, normals, uv + self.rng.random(2) * 10, shade], -1).astype(np.float32)
        a, b, c, d = corners[:-1, :-1], corners[1:, :-1], corners[:-1, 1:], corners[1:, 1:]
        triangles = np.stack([np.stack([a, b, c], 2), np.stack([d, c, b], 2)], 2)
        self.parts.append(triangles.reshape(-1, 3, 9))
        self.materials.append(material)
        self.targets.append(self.target)

    def sweep(
        self, path: Array, size: float | Array | Range, material: Material, up: Array | None = None, sides: int = 10
    ) -> None:
        """Sweep a profile along a path of points (n, 3).

        `size` is a radius, (n,) radii, or (width, depth) of a beveled box whose width lies along `up`; an `up` of None
        is chosen to suit the path. A round profile has as many corners as `sides`.
        """
        path = np.asarray(path, float)
        tangents = unit(np.gradient(path, axis=0))
        if up is None:  # the direction the path moves in least: a flat curve's own normal, never along the path
            up = np.linalg.eigh(tangents.T @ tangents)[1][:, 0]
        side = unit(np.cross(tangents, up))
        circle = arc((0, 0, 0), 1, count=sides + 1)[:, :2]
        profile, bends = _box_profile(*size) if isinstance(size, tuple) else (circle, circle)
        scale = np.broadcast_to(1.0 if isinstance(size, tuple) else np.asarray(size, float), len(path))
        girth = scale.mean() * np.cumsum(np.r_[0, np.linalg.norm(np.diff(profile, axis=0), axis=1)])
        frame = np.stack([np.cross(side, tangents), side], 1)
        ring = path[:, None] + np.einsum("sk,nkd->nsd", profile, frame) * scale[:, None, None]
        length = np.cumsum(np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1)])
        uv = np.stack(np.broadcast_arrays(length[:, None], girth[None]), -1)
        self.grid(ring, np.einsum("sk,nkd->nsd", bends, frame), uv, material)
        for end, sign in ((0, -1), (-1, 1)):
            cap = np.stack([ring[end], np.broadcast_to(path[end], ring[end].shape)])
            self.grid(cap, np.broadcast_to(sign * tangents[end], cap.shape), np.stack([uv[end], uv[end]]), material)

    def bar(self, a: Array, b: Array, size: float | Range, material: Material, **how: object) -> None:
        """Add a straight bar between two points; see `sweep`."""
        self.sweep(np.stack([np.asarray(a, float), np.asarray(b, float)]), size, material, **how)

    def turned(self, center: Array, radii: Array, heights: Array, material: Material, sides: int = 32) -> None:
        """Add a body of revolution about the vertical through `center`, such as a pot or a hub."""
        angles = np.linspace(0, 2 * np.pi, sides + 1)
        radii, heights = np.asarray(radii, float), np.asarray(heights, float)
        slope = unit(np.stack([np.gradient(heights), -np.gradient(radii)], -1) + 1e-9)
        around = np.stack([np.cos(angles), 0 * angles, np.sin(angles)], -1)
        points = np.asarray(center) + radii[:, None, None] * around + heights[:, None, None] * UP
        normals = slope[:, :1, None] * around + slope[:, 1:, None] * UP
        uv = np.stack(np.broadcast_arrays(heights[:, None], angles[None] * radii.max()), -1)
        self.grid(points, normals, uv, material)

    def ball(self, center: Array, radii: float | Array, material: Material, dents: float = 0, detail: int = 9) -> None:
        """Add an ellipsoid of one radius or three, with `dents` as deep as that share of it."""
        t, a = np.linspace(-np.pi / 2, np.pi / 2, detail)[:, None], np.linspace(0, 2 * np.pi, 2 * detail)
        way = np.stack(np.broadcast_arrays(np.cos(t) * np.cos(a), np.sin(t), np.cos(t) * np.sin(a)), -1)
        bends = self.rng.normal(0, 1.6, (5, 3))
        waves = way @ bends.T + self.rng.uniform(0, 6.3, 5)
        depth = 1 + dents * np.sin(waves).mean(-1, keepdims=True)
        slope = dents * np.cos(waves) @ bends / len(bends)
        normals = unit((way * (depth + dot(way, slope)[..., None]) - slope) / radii)
        uv = np.stack(np.broadcast_arrays(t, a), -1) * np.mean(radii)
        self.grid(np.asarray(center) + way * depth * radii, normals, uv, material)

    def leaf(
        self, base: Array, way: Array, length: float, material: Material, width: float = 0.5, detail: int = 9
    ) -> None:
        """Add a blade that grows along `way`, folded along its midrib and drooping at its tip."""
        side = unit(np.cross(way, self.rng.normal(0, 0.5, 3) + (0, 1, 0.3)))
        face = np.cross(side, way)
        u, v = np.meshgrid(np.linspace(0, 1, detail), np.linspace(-1, 1, 5), indexing="ij")
        half = 0.5 * width * length * np.sin(np.pi * u**0.75) ** 0.9
        rise = length * (0.12 * np.abs(v) * np.sin(np.pi * u) - 0.3 * u**2)
        points = base + (u * length)[..., None] * way + (v * half)[..., None] * side + rise[..., None] * face
        self.grid(points, None, np.stack([u, v], -1) * length * 3, material)

    def move(self, since: int, matrix: Array | None = None, offset: Array | tuple = (0, 0, 0)) -> None:
        """Rotate, then shift, all parts from index `since` on."""
        matrix = np.eye(3) if matrix is None else matrix
        for part in self.parts[since:]:
            part[..., :3] = part[..., :3] @ matrix.T + np.asarray(offset)
            part[..., 3:6] = part[..., 3:6] @ matrix.T

    def bounds(self) -> Array:
        """Return the lowest and the highest corner, (2, 3)."""
        points = np.concatenate([part[..., :3].reshape(-1, 3) for part in self.parts])
        return np.stack([points.min(0), points.max(0)])
