"""Trace rays through textured triangles: the exact coverage of each object, and its colors in the light of a picture.

Intel's Embree (package `embreex`) finds what a ray hits; everything else is NumPy. The scene is about 1 wide, y points
up, and colors are linear RGB.

What covers a pixel is decided by the first surface that a ray meets, glass included: what is seen through a pane
belongs to the pane. Only the holes of a texture (opacity below one half) let a ray pass as if nothing were there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from IS_Net.errors import UserError, import_extra

Array = np.ndarray
Rng = np.random.Generator


class RenderError(UserError, ValueError):
    """Models that cannot be rendered."""


EXTRA = "render"
"""The extra that installs what is imported here when it is needed."""
NOTHING = -1
"""The object of a ray that hits none."""
_EPSILON = 2e-4
"""The distance from a surface at which a ray that leaves it starts."""
_LAYERS = 16
"""The most holes of textures that a ray passes, and the most panes that light is followed through."""
_RAYS = 1 << 20
"""Traced at a time; bounds the memory."""
_GRID = np.float32([[0.25, 0.25], [0.75, 0.75]])
"""Where a pixel is sampled that one object covers or none; an upright or level bar of half a pixel is not missed."""
_SHADED = 4
"""Places in a pixel that are shaded, of those that show an object."""


def _hammersley(bits: int) -> Array:
    """Return 2**bits points in the unit square, (n, 2) float32, no two of which share a row or a column.

    An edge along either axis is thereby measured to 1 / n. Source: Hammersley, "Monte Carlo Methods for Solving
    Multivariable Problems", 1960.
    """
    index = np.arange(1 << bits)
    mirrored = sum(((index >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    return ((np.stack((index, mirrored), 1) + 0.5) / (1 << bits)).astype(np.float32)


_DENSE = _hammersley(6)
"""Where a pixel is sampled that an edge may cross."""


@dataclass(frozen=True)
class Surface:
    """What triangles are made of."""

    color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Diffuse color; tints the texture."""
    texture: Array | None = None
    """(h, w, 3) uint8 sRGB, or None. It repeats outside of [0, 1]."""
    opacity_map: Array | None = None
    """(h, w) bool, False in the holes of the texture, or None."""
    opacity: float = 1.0
    """Below 1: glass, of which the rest of the light passes."""
    roughness: float = 0.5
    metallic: bool = False
    mottled: float = 0.0
    """How much a surface without a texture varies in brightness."""


@dataclass(frozen=True)
class Mesh:
    """The triangles of one object."""

    triangles: Array
    """(F, 3, 3) float32: x, y, z of the corners."""
    normals: Array
    """(F, 3, 3) float32: the unit normals at the corners; either side may be outside."""
    uv: Array
    """(F, 3, 2) float32: where the corners lie in the texture."""
    material: Array
    """(F,) int: index of the surface."""
    surfaces: Sequence[Surface]

    def moved(self, matrix: Array, shift: Sequence[float] = (0, 0, 0)) -> Mesh:
        """Return the mesh after `matrix @ point + shift`; the matrix is a rotation times a number."""
        turn = np.asarray(matrix, np.float32)
        normals = self.normals @ (turn.T / np.float32(np.cbrt(abs(np.linalg.det(turn)))))
        triangles = self.triangles @ turn.T + np.float32(shift)
        return Mesh(triangles, normals, self.uv, self.material, self.surfaces)

    def bounds(self) -> tuple[Array, Array]:
        """Return the smallest and the largest x, y, z, each (3,)."""
        return self.triangles.min((0, 1)), self.triangles.max((0, 1))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera."""

    eye: Array
    """(3,)"""
    axes: Array
    """(3, 3): the directions right, down and forward in rows, orthonormal."""
    focal: float
    """Pixels."""
    center: tuple[float, float]
    """Where the optical axis meets the image: x and y in pixels; pixel 0 reaches from 0 to 1."""

    def project(self, points: Array) -> Array:
        """Return x and y in pixels and the depth, (..., 3), of points (..., 3)."""
        seen = (points - self.eye) @ self.axes.T
        depth = np.maximum(seen[..., 2:], 1e-6)
        return np.concatenate((seen[..., :2] / depth * self.focal + self.center, seen[..., 2:]), -1)

    def directions(self, xy: Array) -> Array:
        """Return the unit directions, (n, 3) float32, of the rays through image points (n, 2) in pixels."""
        flat = ((xy - np.float32(self.center)) / np.float32(self.focal)).astype(np.float32)
        axes = self.axes.astype(np.float32)
        return _unit(flat[:, :1] * axes[0] + flat[:, 1:] * axes[1] + axes[2])


@dataclass(frozen=True)
class Light:
    """A picture around the scene, and a sun."""

    sky: Array
    """(64, 64, 3) float32 radiance; see :func:`fold`."""
    mirror: Array
    """(256, 256, 3) float32: the same, sharper, for reflections."""
    sun: Array
    """(3,): the unit direction towards it."""
    sun_color: Array
    """(3,) irradiance of a surface that faces the sun."""
    sun_size: float
    """Radius in radians: how soft its shadows are."""


@dataclass(frozen=True)
class Layers:
    """A rendered scene: shown is `color + through * shade * background`."""

    color: Array
    """(H, W, 3) float32 linear RGB, multiplied by the coverage."""
    through: Array
    """(H, W) float32: the share of the background that reaches the camera, past the objects and through glass."""
    coverage: Array
    """(n, H, W) float32 in [0, 1]: the share of each pixel that each object covers, hidden parts excluded."""
    shade: Array = field(repr=False)
    """(H, W, 3) float32: the share of its light that the floor keeps; 1 where there is none."""


def _unit(vectors: Array) -> Array:
    return vectors / np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), 1e-12)[:, None]


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("ij,ij->i", a, b)


def fold(directions: Array) -> Array:
    """Map unit directions (n, 3) to a square, (n, 2) in [0, 1]; y is up and in the middle.

    Source: the octahedral map of Cigolla et al., "A Survey of Efficient Representations for Independent Unit Vectors",
    JCGT 2014.
    """
    flat = directions[:, ::2] / np.abs(directions).sum(1, keepdims=True)
    below = directions[:, 1] < 0
    folded = (1 - np.abs(flat[below][:, ::-1])) * np.where(flat[below] < 0, np.float32(-1), np.float32(1))
    flat[below] = folded
    return flat * np.float32(0.5) + np.float32(0.5)


def unfold(side: int) -> Array:
    """Return the unit directions, (side, side, 3), of the pixels of an octahedral map."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    z, x = np.meshgrid(line, line, indexing="ij")
    y = 1 - np.abs(x) - np.abs(z)
    excess = np.maximum(-y, 0)
    x, z = x - np.copysign(excess, x), z - np.copysign(excess, z)
    directions = np.stack((x, y, z), -1)
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def _look_up(table: Array, directions: Array) -> Array:
    side = len(table)
    x, y = np.minimum((fold(directions) * side).astype(np.int32), side - 1).T
    return table[y, x]


class _Frame:
    """Random directions around unit axes (n, 3)."""

    def __init__(self, axis: Array):
        # two directions at right angles to the axis: Duff et al., "Building an Orthonormal Basis, Revisited", JCGT 2017
        x, y, z = axis.T
        sign = np.copysign(np.float32(1), z)
        a = -1 / (sign + z)
        b = x * y * a
        self.axis = axis
        self.right = np.stack((1 + sign * x * x * a, sign * b, -sign * x), 1)
        self.up = np.stack((b, sign + y * y * a, -y), 1)

    def diffuse(self, rng: Rng) -> Array:
        """Return unit directions (n, 3) that are distributed as the cosine of the angle to the axis."""
        x, y, z = _COSINE[rng.integers(len(_COSINE), size=len(self.axis))].T
        return x[:, None] * self.right + y[:, None] * self.up + z[:, None] * self.axis

    def near(self, rng: Rng, spread: float | Array) -> Array:
        """Return unit directions (n, 3) within an angle in radians of the axis, which may differ from axis to axis."""
        x, y, _ = _COSINE[rng.integers(len(_COSINE), size=len(self.axis))].T
        radius = np.tan(np.minimum(np.float32(spread), np.float32(1.2)))
        return _unit((radius * x)[:, None] * self.right + (radius * y)[:, None] * self.up + self.axis)


def _cosine_directions(side: int = 64) -> Array:
    """Return side * side unit directions around z, (n, 3) float32, distributed as the cosine of their angle to it."""
    at = (np.arange(side) + 0.5) / side
    radius, turn = (plane.ravel() for plane in np.meshgrid(np.sqrt(at), 2 * np.pi * at))
    return np.stack((radius * np.cos(turn), radius * np.sin(turn), np.sqrt(1 - radius**2)), 1).astype(np.float32)


_COSINE = _cosine_directions()


def _noise(rng: Rng, side: int = 512) -> Array:
    """Return a picture of stains, (side, side) float32, of mean 0 and deviation 1, that repeats seamlessly."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**1.3
    spectrum[0, 0] = 0
    stains = np.fft.irfft2(spectrum, (side, side))
    return (stains / stains.std()).astype(np.float32)


class Scene:
    """Objects that rays can be traced through."""

    def __init__(self, objects: Sequence[Mesh]):
        offsets = np.cumsum([0, *(len(mesh.surfaces) for mesh in objects)])
        self.surfaces = [surface for mesh in objects for surface in mesh.surfaces]
        self.objects = len(objects)
        self.triangles = np.ascontiguousarray(np.concatenate([mesh.triangles for mesh in objects]), np.float32)
        self.normals = np.concatenate([mesh.normals for mesh in objects]).astype(np.float32)
        self.uv = np.concatenate([mesh.uv for mesh in objects]).astype(np.float32)
        self.material = np.concatenate([m.material + offset for m, offset in zip(objects, offsets, strict=False)])
        self.owner = np.repeat(np.arange(len(objects)), [len(mesh.triangles) for mesh in objects])
        self._all = _build(self.triangles)
        solid = np.array([surface.opacity >= 1 for surface in self.surfaces])[self.material]
        self._solid = np.flatnonzero(solid)
        self._blockers = _build(self.triangles[self._solid]) if solid.any() else None
        self._holes = np.array([surface.opacity_map is not None for surface in self.surfaces])

    def _in_hole(self, prim: Array, u: Array, v: Array) -> Array:
        material = self.material[prim]
        found = np.zeros(len(prim), bool)
        for index in np.flatnonzero(self._holes):
            here = np.flatnonzero(material == index)
            if len(here):
                plane = self.surfaces[index].opacity_map
                found[here] = ~_nearest(plane, self._interpolate(self.uv, prim[here], u[here], v[here]))
        return found

    def _interpolate(self, corners: Array, prim: Array, u: Array, v: Array) -> Array:
        a, b, c = np.moveaxis(corners[prim], 1, 0)
        return a + u[:, None] * (b - a) + v[:, None] * (c - a)

    def trace(self, origins: Array, directions: Array) -> tuple[Array, Array, Array, Array]:
        """Follow rays (n, 3), (n, 3) to the first surface; return the triangle or -1, the distance, and u and v."""
        return self._follow(self._all, None, origins, directions)

    def blocked(self, origins: Array, directions: Array) -> Array:
        """Return, (n,) bool, whether rays meet a surface that is not glass."""
        if self._blockers is None:
            return np.zeros(len(origins), bool)
        if not self._holes.any():
            return self._blockers.run(origins, directions, query="OCCLUDED") >= 0
        return self._follow(self._blockers, self._solid, origins, directions)[0] >= 0

    def _follow(
        self, scene: Any, names: Array | None, origins: Array, directions: Array
    ) -> tuple[Array, Array, Array, Array]:
        found = scene.run(origins, directions, output=True)
        prim, far, u, v = found["primID"].astype(np.int64), found["tfar"], found["u"], found["v"]
        if names is not None:
            prim[prim >= 0] = names[prim[prim >= 0]]
        if not self._holes.any():
            return prim, far, u, v
        for _ in range(_LAYERS):
            hit = np.flatnonzero(prim >= 0)
            hit = hit[self._holes[self.material[prim[hit]]]]
            hit = hit[self._in_hole(prim[hit], u[hit], v[hit])]
            if not len(hit):
                break
            start = far[hit] + np.float32(_EPSILON)
            again = scene.run(origins[hit] + start[:, None] * directions[hit], directions[hit], output=True)
            prim[hit] = again["primID"]
            if names is not None:
                prim[hit] = np.where(prim[hit] >= 0, names[prim[hit]], NOTHING)
            far[hit], u[hit], v[hit] = again["tfar"] + start, again["u"], again["v"]
        return prim, far, u, v

    def owners(self, prim: Array) -> Array:
        """Return the objects, (n,) int, that triangles belong to; -1 for -1."""
        return np.where(prim >= 0, self.owner[prim], NOTHING)


def _build(triangles: Array) -> Any:
    scene = import_extra("embreex.rtcore_scene", EXTRA).EmbreeScene()
    import_extra("embreex.mesh_construction", EXTRA).TriangleMesh(scene, np.ascontiguousarray(triangles, np.float32))
    return scene


def _nearest(plane: Array, uv: Array) -> Array:
    h, w = plane.shape[:2]
    x, y = np.floor(uv * np.float32([w, h])).astype(np.int64).T
    return plane[(h - 1 - y) % h, x % w]


def _smooth(plane: Array, uv: Array) -> Array:
    """Look up a texture, (h, w) or (h, w, 3), between its pixels; return (n,) or (n, 3) float32."""
    h, w = plane.shape[:2]
    xy = uv * np.float32([w, -h]) - np.float32(0.5)
    corner = np.floor(xy)
    fx, fy = (xy - corner).T
    x, y = corner.astype(np.int64).T
    x0, y0, x1, y1 = x % w, y % h, (x + 1) % w, (y + 1) % h
    if plane.ndim == 3:
        fx, fy = fx[:, None], fy[:, None]
    values = plane if plane.dtype == np.float32 else _LINEAR
    pick = (lambda y, x: values[y, x]) if plane.dtype == np.float32 else (lambda y, x: values[plane[y, x]])
    top = pick(y0, x0) * (1 - fx) + pick(y0, x1) * fx
    return top * (1 - fy) + (pick(y1, x0) * (1 - fx) + pick(y1, x1) * fx) * fy


def to_linear(srgb: Array) -> Array:
    """Convert sRGB, uint8 or float in [0, 1], to linear RGB, float32."""
    srgb = srgb.astype(np.float32) / np.float32(255) if srgb.dtype == np.uint8 else srgb.astype(np.float32)
    return np.power(np.maximum(srgb, 0), np.float32(2.2))


_LINEAR = to_linear(np.arange(256, dtype=np.uint8))


class _Shader:
    """Colors of surfaces in a light; the rays that it traces are counted per image point."""

    def __init__(self, scene: Scene, light: Light, rng: Rng, rays: int):
        self.scene, self.light, self.rng, self.rays = scene, light, rng, rays
        self.stains, self.stain_scale = _noise(rng), float(rng.uniform(0.2, 1.0))
        self.ambient = light.sky.reshape(-1, 3).mean(0)

    def _albedo(self, prim: Array, u: Array, v: Array, points: Array) -> Array:
        material = self.scene.material[prim]
        albedo = np.empty((len(prim), 3), np.float32)
        for index in np.unique(material):
            here, surface = np.flatnonzero(material == index), self.scene.surfaces[index]
            color = np.float32(surface.color)
            if surface.texture is not None:
                uv = self.scene._interpolate(self.scene.uv, prim[here], u[here], v[here])
                color = color * _smooth(surface.texture, uv)
            elif surface.mottled:
                xyz = points[here] * np.float32(self.stain_scale)
                value = sum(_smooth(self.stains, xyz[:, pair]) for pair in ([0, 1], [1, 2], [2, 0]))
                color = color * np.exp(np.float32(surface.mottled) * np.clip(value, -4, 4))[:, None]
            albedo[here] = color
        return np.clip(albedo, 0, 0.95) * np.float32(0.9) + np.float32(0.015)

    def _surface(self, prim: Array, name: str) -> Array:
        return np.float32([getattr(surface, name) for surface in self.scene.surfaces])[self.scene.material[prim]]

    def shade(self, prim: Array, u: Array, v: Array, points: Array, directions: Array) -> tuple[Array, Array]:
        """Return the light, (n, 3), that surfaces send back along rays, and the share that passes through, (n,)."""
        corners = self.scene.triangles[prim]
        flat = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
        flat *= np.where(_dot(flat, directions) > 0, np.float32(-1), np.float32(1))[:, None]
        normal = _unit(self.scene._interpolate(self.scene.normals, prim, u, v))
        normal *= np.where(_dot(normal, flat) < 0, np.float32(-1), np.float32(1))[:, None]
        toward = -_dot(normal, directions)
        turned = toward < 0.02  # interpolated normals may look away from the camera near the outline
        normal[turned] = _unit(normal[turned] + (toward[turned] - np.float32(0.03))[:, None] * directions[turned])
        toward = np.maximum(-_dot(normal, directions), np.float32(0.02))
        start = points + flat * np.float32(_EPSILON)

        albedo = self._albedo(prim, u, v, points)
        roughness, opacity = self._surface(prim, "roughness"), self._surface(prim, "opacity")
        metal = self._surface(prim, "metallic")[:, None]
        base = np.float32(0.04) + metal * (np.float32(0.35) + np.float32(0.6) * albedo - np.float32(0.04))
        fresnel = base + (1 - base) * ((1 - toward) ** 5 * (1 - roughness) ** 2)[:, None]

        light = self._diffuse(start, normal, flat, albedo)
        sun = _Frame(np.broadcast_to(self.light.sun, normal.shape)).near(self.rng, self.light.sun_size)
        facing = np.maximum(_dot(normal, sun), 0) * (_dot(flat, sun) > 0)
        lit = facing > 0
        lit[lit] = ~self.scene.blocked(start[lit], sun[lit])
        facing *= lit
        sunlight = facing[:, None] * np.float32(self.light.sun_color / np.pi)
        half = _unit(sun - directions)
        power = 2 / np.maximum(roughness, 0.08) ** 4
        glint = (power + 2) / 8 * np.maximum(_dot(normal, half), 0) ** power
        color = (light + sunlight) * albedo * (1 - metal) * opacity[:, None]
        color += fresnel * (self._reflected(start, normal, flat, directions, roughness, albedo))
        color += fresnel * sunlight * np.minimum(glint, 30)[:, None]
        return color, (1 - opacity) * (1 - fresnel.mean(1))

    def _diffuse(self, start: Array, normal: Array, flat: Array, albedo: Array) -> Array:
        """Return the mean radiance, (n, 3), that surfaces see: the sky, and themselves where it is hidden."""
        total, frame = np.zeros_like(start), _Frame(normal)
        nearby = self.ambient * albedo * np.float32(0.6)
        for _ in range(self.rays):
            way = frame.diffuse(self.rng)
            sunk = _dot(way, flat)
            way -= np.where(sunk < 0, 2 * sunk, np.float32(0))[:, None] * flat
            hidden = self.scene.blocked(start, way)
            total[hidden] += nearby[hidden]
            total[~hidden] += _look_up(self.light.sky, way[~hidden])
        return total / np.float32(self.rays)

    def _reflected(
        self, start: Array, normal: Array, flat: Array, directions: Array, roughness: Array, albedo: Array
    ) -> Array:
        way = directions - 2 * _dot(directions, normal)[:, None] * normal
        way = _Frame(way).near(self.rng, roughness**2)
        sunk = _dot(way, flat)
        way -= np.where(sunk < 0, 2 * sunk, np.float32(0))[:, None] * flat
        hidden = self.scene.blocked(start, way)[:, None]
        sharp = np.where((roughness < 0.3)[:, None], _look_up(self.light.mirror, way), _look_up(self.light.sky, way))
        return np.where(hidden, self.ambient * albedo * np.float32(0.5), sharp)

    def follow(self, prim: Array, far: Array, u: Array, v: Array, eye: Array, directions: Array) -> tuple[Array, Array]:
        """Return the light that reaches the eye along rays, (n, 3), and the share of the background, (n,).

        Glass does not bend a ray.
        """
        n = len(prim)
        color, passing, through = np.zeros((n, 3), np.float32), np.ones(n, np.float32), np.zeros(n, np.float32)
        ray = np.arange(n)
        origins = np.broadcast_to(np.float32(eye), (n, 3))
        for _ in range(_LAYERS):
            points = origins + far[:, None] * directions
            seen, share = self.shade(prim, u, v, points, directions)
            color[ray] += passing[ray, None] * seen
            passing[ray] *= share
            on = passing[ray] > 0.01
            ray, directions = ray[on], directions[on]
            if not len(ray):
                break
            origins = points[on] + directions * np.float32(_EPSILON)
            prim, far, u, v = self.scene.trace(origins, directions)
            out = prim < 0
            through[ray[out]] = passing[ray[out]]
            passing[ray[out]] = 0
            kept = ~out
            ray, directions, origins = ray[kept], directions[kept], origins[kept]
            prim, far, u, v = prim[kept], far[kept], u[kept], v[kept]
            if not len(ray):
                break
        return color, through


def _window(scene: Scene, camera: Camera, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the pixels that the scene may cover; the whole image if it is behind."""
    h, w = size
    seen = camera.project(scene.triangles.reshape(-1, 3))
    if seen[:, 2].min() <= 1e-3:
        return 0, 0, w, h
    (left, top), (right, bottom) = np.floor(seen[:, :2].min(0)) - 2, np.ceil(seen[:, :2].max(0)) + 2
    return max(int(left), 0), max(int(top), 0), min(int(right), w), min(int(bottom), h)


def _bands(first: int, last: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(first, last, step):
        yield start, min(start + step, last)


def render(
    scene: Scene, camera: Camera, light: Light, size: tuple[int, int], rng: Rng, floor: bool = True, rays: int = 4
) -> Layers:
    """Render a scene.

    Args:
        scene: The objects.
        camera: Outside of them.
        light: What surrounds them.
        size: Height and width in pixels.
        rng: Decides where the rays of soft light go. Coverage does not depend on it.
        floor: Whether there is one at y = 0, which is invisible but catches shadows.
        rays: For the light of the sky, at each of the two to four places in a pixel that are shaded.

    Returns:
        The layers. A pixel that an edge may cross is covered by a multiple of 1 / 64.
    """
    h, w = size
    color, through = np.zeros((h, w, 3), np.float32), np.ones((h, w), np.float32)
    coverage = np.zeros((scene.objects, h, w), np.float32)
    left, top, right, bottom = _window(scene, camera, size)
    if left < right and top < bottom:
        owners = _first_look(scene, camera, (left, top, right, bottom))
        edge = _may_hold_edge(owners)
        whole = ~edge & (owners[0] >= 0)
        for index in range(scene.objects):
            coverage[index, top:bottom, left:right][whole & (owners[0] == index)] = 1
        shader = _Shader(scene, light, rng, rays)
        for pixels, grid in ((np.argwhere(whole), _GRID), (np.argwhere(edge), _DENSE)):
            for start, stop in _bands(0, len(pixels), _RAYS // len(grid)):
                yx = pixels[start:stop] + np.array([top, left])
                _sample(scene, camera, shader, yx, grid, color, through, coverage)
    return Layers(color, through, coverage, _floor_shade(scene, camera, light, size, rng) if floor else _no_shade(size))


def _points(yx: Array, grid: Array) -> Array:
    """Return the image points, (n * k, 2) as x and y, of pixels (n, 2) at k places within each."""
    return (yx[:, None, ::-1].astype(np.float32) + grid).reshape(-1, 2)


def _origins(camera: Camera, n: int) -> Array:
    return np.tile(np.float32(camera.eye), (n, 1))


def _first_look(scene: Scene, camera: Camera, window: tuple[int, int, int, int]) -> Array:
    """Return the objects at the places of `_GRID` in each pixel of a window, (places, h, w) int16."""
    left, top, right, bottom = window
    owners = np.empty((len(_GRID), bottom - top, right - left), np.int16)
    for start, stop in _bands(top, bottom, max(_RAYS // (len(_GRID) * (right - left)), 1)):
        rows = np.stack(np.mgrid[start:stop, left:right], -1).reshape(-1, 2)
        directions = camera.directions(_points(rows, _GRID))
        prim = scene.trace(_origins(camera, len(directions)), directions)[0]
        found = scene.owners(prim).reshape(stop - start, right - left, len(_GRID))
        owners[:, start - top : stop - top] = np.moveaxis(found, 2, 0)
    return owners


def _may_hold_edge(owners: Array) -> Array:
    """Return, (h, w) bool, the pixels in which, or next to which, not all samples show the same object."""
    around = np.ones((3, 3), np.uint8)
    low = cv2.erode(owners.min(0), around, borderType=cv2.BORDER_REPLICATE)
    high = cv2.dilate(owners.max(0), around, borderType=cv2.BORDER_REPLICATE)
    return low != high


def _sample(
    scene: Scene, camera: Camera, shader: _Shader, yx: Array, grid: Array, color: Array, through: Array, coverage: Array
) -> None:
    """Measure pixels (n, 2) at all places of a grid, and shade some of those that show an object."""
    n, k = len(yx), len(grid)
    if not n:
        return
    directions = camera.directions(_points(yx, grid))
    prim, far, u, v = scene.trace(_origins(camera, n * k), directions)
    owner = scene.owners(prim).reshape(n, k)
    rows, columns = yx.T
    for index in range(scene.objects):
        coverage[index, rows, columns] = (owner == index).mean(1, dtype=np.float32)
    covered = owner >= 0
    count = covered.sum(1)
    wanted = np.minimum(count, _SHADED)
    # of a pixel's hits, those that divide their sequence evenly
    rank = np.cumsum(covered, 1) - 1
    step = rank * wanted[:, None] // np.maximum(count, 1)[:, None]
    previous = np.maximum(rank - 1, 0) * wanted[:, None] // np.maximum(count, 1)[:, None]
    chosen = np.flatnonzero((covered & ((rank == 0) | (step != previous))).ravel())
    if not len(chosen):
        return
    seen, passing = shader.follow(prim[chosen], far[chosen], u[chosen], v[chosen], camera.eye, directions[chosen])
    pixel = chosen // k
    weight = (count / np.float32(k) / np.maximum(wanted, 1)).astype(np.float32)
    for channel in range(3):
        color[rows, columns, channel] = np.bincount(pixel, seen[:, channel] * weight[pixel], n)
    through[rows, columns] = np.bincount(pixel, passing * weight[pixel], n) + 1 - count / np.float32(k)


def _no_shade(size: tuple[int, int]) -> Array:
    return np.ones((*size, 3), np.float32)


def _floor_shade(
    scene: Scene, camera: Camera, light: Light, size: tuple[int, int], rng: Rng, rays: int = 14, most: int = 640
) -> Array:
    """Return the share of its light, (H, W, 3), that the floor keeps; measured at up to `most` pixels a side.

    Neighbors trace different rays, in blocks of 3 by 3 pixels, and a filter of that size adds them up. Source: Keller
    and Heidrich, "Interleaved Sampling", EGWR 2001.
    """
    h, w = size
    scale = min(most / max(size), 1.0)
    small = max(round(h * scale), 1), max(round(w * scale), 1)
    yx = np.stack(np.mgrid[: small[0], : small[1]], -1).reshape(-1, 2)
    directions = camera.directions((yx[:, ::-1] + np.float32(0.5)) * np.float32([w / small[1], h / small[0]]))
    below = np.flatnonzero(directions[:, 1] < -1e-3)
    far = -np.float32(camera.eye[1]) / directions[below, 1]
    near = (far > 0) & (far < 50)
    below, far = below[near], far[near]
    if not len(below):
        return _no_shade(size)
    points = np.float32(camera.eye) + far[:, None] * directions[below]
    points[:, 1] = _EPSILON
    block = (yx[below] % 3) @ (3, 1)
    shade = np.ones((len(yx), 3), np.float32)
    up = _Frame(np.tile(np.float32([0, 1, 0]), (9, 1)))
    sun = _Frame(np.tile(light.sun, (9, 1)))
    lost, full = np.zeros_like(points), np.float32(1e-6)
    for index in range(rays):
        way = up.diffuse(rng)
        ways = [(way, _look_up(light.sky, way))]
        if index % 2 == 0:
            way = sun.near(rng, light.sun_size)
            ways.append((way, np.maximum(way[:, 1:2], 0) * np.float32(light.sun_color / np.pi * 2)))
        for way, radiance in ways:
            full = full + radiance.mean(0)
            hidden = scene.blocked(points, np.ascontiguousarray(way[block]))
            lost[hidden] += radiance[block[hidden]]
    shade[below] -= lost / full
    shade = cv2.blur(shade.reshape(*small, 3), (3, 3))
    shade = cv2.GaussianBlur(shade, (0, 0), 0.8)
    return cv2.resize(shade, (w, h), interpolation=cv2.INTER_CUBIC).clip(0, 1)
