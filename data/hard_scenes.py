"""Draw scenes on which a refinement network tends to erase what is not salient, to gate trained weights.

    python data/hard_scenes.py                       # writes data/sample/hard

`many_parts` has objects made of many small parts, `low_salience` objects that look like what surrounds them, and
`touching` pairs of objects of which one is named at a time. Nothing is shared with `objects.py`, whose drawings are
trained on. Colors are linear-light RGB; everything is drawn at `SCALE` times the size, seen from above or from the
front, and an object's ground truth is the share of each pixel that it covers. Shadows are not part of it.
"""

# ruff: noqa: RUF005  (a list added to an array is a shift, not a concatenation)

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from IS_Net.images import read_image, read_mask, write_image, write_mask
from IS_Net.preprocess import box_from_mask
from sam.backends import GrabCutPredictor

__all__ = ["KINDS", "Scene", "coarse_masks", "contact_sheet", "jobs", "main", "make_hard_scenes", "make_scene", "sim"]

Array = np.ndarray
Rng = np.random.Generator
Color = Array | Sequence[float]

VERSION = 1
"""Raise it when the same seed gives other pictures."""
SCALE = 2


# --- painting ----------------------------------------------------------------------------------------------------


def hsv(hue: float, saturation: float, value: float) -> Array:
    """Return a color, hue in degrees and the others in [0, 1], as (3,) float32 linear RGB."""
    pixel = np.float32([[[hue % 360, np.clip(saturation, 0, 1), np.clip(value, 0, 1)]]])
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] ** 2.2


def mix(one: Color, other: Color, share: Array) -> Array:
    """Blend two colors by a share, (h, w) clipped to [0, 1]: (h, w, 3) float32."""
    share = np.clip(share, 0, 1)[..., None].astype(np.float32)
    return np.float32(one) * (1 - share) + np.float32(other) * share


def fractal(
    rng: Rng, shape: tuple[int, int], cell: float | tuple[float, float], octaves: int = 5, rough: float = 0.6
) -> Array:
    """Make noise of several scales, (h, w) float32 of mean 0 and standard deviation about 1.

    Args:
        rng: Decides it.
        shape: (h, w) of the result.
        cell: Pixels of the coarsest scale, or (vertically, horizontally); each further octave halves them.
        octaves: Number of scales; none gets finer than a pixel.
        rough: Amplitude of a scale relative to the one before.
    """
    total, power = np.zeros(shape, np.float32), 0.0
    for k in range(octaves):
        sizes = np.maximum(np.broadcast_to(cell, 2) / 2**k, 1)
        rows, columns = (int(np.ceil(n / size)) + 2 for n, size in zip(shape, sizes, strict=True))
        layer = rng.standard_normal((rows, columns), dtype=np.float32)
        total += rough**k * cv2.resize(layer, shape[::-1], interpolation=cv2.INTER_CUBIC)
        power += rough ** (2 * k)
        if sizes.max() <= 1:
            break
    return total * np.float32(1.4 / np.sqrt(power))


def normals(height: Array) -> Array:
    """Return the unit normals, (h, w, 3), of a height in pixels (h, w); z points at the camera."""
    x, y = (cv2.Sobel(height, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    return unit(np.dstack([-x, -y, np.ones_like(height)]))


def unit(v: Array) -> Array:
    """Scale vectors, (..., 3), to length 1."""
    return (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-6)).astype(np.float32)


def turned(points: Array | Sequence, angle: float, center: Sequence[float]) -> Array:
    """Turn (N, 2) points about the origin, then move the origin to `center`."""
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points, np.float64) @ np.array([[c, s], [-s, c]]) + center


def spline(*points: Sequence[float], count: int = 24) -> Array:
    """Return (count, 2) points of a smooth curve (Bezier) steered by the given ones."""
    t, p = np.linspace(0, 1, count)[:, None], [np.asarray(point, np.float64)[None] for point in points]
    while len(p) > 1:
        p = [a * (1 - t) + b * t for a, b in pairwise(p)]
    return p[0]


class Scene:
    """A picture in the making: things are painted over one another, and each of them may belong to a named object.

    Args:
        rng: Decides everything that is random.
        height: Of the photograph, in pixels.
        width: Of the photograph, in pixels.
        objects: Number of named objects.
    """

    def __init__(self, rng: Rng, height: int, width: int, objects: int = 1):
        self.rng, self.h, self.w = rng, SCALE * height, SCALE * width
        self.u = min(self.h, self.w)  # the measure for everything that is drawn
        self.color = np.zeros((self.h, self.w, 3), np.float32)
        self.owners = np.zeros((self.h, self.w, objects), np.float32)
        angle, slant = rng.uniform(-0.85, -0.15) * np.pi, rng.uniform(0.5, 0.95)  # from above: y points down
        self.light = unit(np.array([np.cos(angle) * slant, np.sin(angle) * slant, 1.0]))
        self.hard = rng.uniform(0.35, 0.8)  # sun or overcast

    def lit(self, normal: Array, albedo: Array, gloss: float = 0.0) -> Array:
        """Shade surfaces: (h, w, 3) normals and albedo -> (h, w, 3) linear RGB."""
        facing = np.clip(normal @ self.light, 0, 1)[..., None]
        sky = (0.75 - 0.25 * normal[..., 1:2]) * np.float32([0.94, 1.0, 1.08])
        color = albedo * (self.hard * np.float32([1.12, 1.05, 0.95]) * facing + (1.1 - self.hard) * sky)
        if gloss:
            half = normal @ unit(self.light + [0, 0, 1])
            shine = 0.06 * np.clip(half, 0, 1) ** 12 + 0.5 * np.clip((half - 0.97) * 50, 0, 1) ** 2
            color += (gloss * (shine + 0.25 * (1 - np.clip(normal[..., 2], 0, 1)) ** 3))[..., None]
        return color.astype(np.float32)

    def _put(
        self,
        mask: Array,
        corner: tuple[int, int],
        normal: Array,
        color: Color,
        owner: int | None = None,
        gloss: float = 0.0,
        texture: float = 0.1,
        cell: float | tuple[float, float] = 24,
        bump: float = 0.0,
        lift: float = 0.0,
    ) -> None:
        """Paint a patch over the picture.

        Args:
            mask: (h, w) float32, the share of each pixel that is covered.
            corner: x, y of its first pixel; it may reach out of the picture.
            normal: (h, w, 3) unit vectors.
            color: (3,) or (h, w, 3) albedo.
            owner: Index of the named object that this is part of, or None.
            gloss: Strength of reflections.
            texture: Contrast of the albedo's noise.
            cell: Pixels of its coarsest scale.
            bump: Slope of the surface's noise.
            lift: Pixels above what is below, for the shadow; 0 for none.
        """
        x, y = corner
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + mask.shape[1], self.w), min(y + mask.shape[0], self.h)
        if x0 >= x1 or y0 >= y1:
            return
        if lift:
            self._shadow(mask, corner, lift)
        grain = fractal(self.rng, mask.shape, cell, 5, 0.7)
        if bump:
            normal = unit(normal + bump * (normals(grain * float(np.mean(cell)) * 0.3) - [0, 0, 1]))
        albedo = np.float32(color) * np.exp(texture * grain)[..., None]
        part = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
        cover = mask[part][..., None]
        below, owners = self.color[y0:y1, x0:x1], self.owners[y0:y1, x0:x1]
        below += cover * (self.lit(normal[part], albedo[part], gloss) - below)
        owners *= 1 - cover
        if owner is not None:
            owners[..., owner] += cover[..., 0]

    def _shadow(self, mask: Array, corner: Sequence[float], lift: float) -> None:
        """Darken what lies below a patch: closely where it touches, and softly where it keeps the light off."""
        away = -self.light[:2] / self.light[2] * lift
        for shift, sigma, strength in ((0.15 * away, 0.12 * lift, 0.35), (away, 0.3 * lift, 0.65 * self.hard)):
            step = max(int(sigma / 3), 1)  # what is blurred need not be drawn in full
            pad = int(np.ceil(3 * sigma / step)) + 1
            small = cv2.resize(mask, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA) if step > 1 else mask
            soft = cv2.GaussianBlur(
                cv2.copyMakeBorder(small, *[pad] * 4, cv2.BORDER_CONSTANT, value=0), (0, 0), sigma / step + 0.3
            )
            soft = cv2.resize(soft, None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR)
            x, y = (round(float(c + s)) - pad * step for c, s in zip(corner, shift, strict=True))
            x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + soft.shape[1], self.w), min(y + soft.shape[0], self.h)
            if x0 < x1 and y0 < y1:
                self.color[y0:y1, x0:x1] *= 1 - strength * soft[y0 - y : y1 - y, x0 - x : x1 - x, None]

    def ball(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float | None = None,
        color: Color | Callable[[Array, Array], Array] = (0.5, 0.5, 0.5),
        angle: float = 0.0,
        wobble: float = 0.0,
        deep: float = 1.0,
        **look,
    ) -> None:
        """Paint an ellipsoid with half axes rx, ry, turned by `angle` and made irregular by `wobble`.

        A color may be a function of (h, w) coordinates along both axes, in [-1, 1]; `deep` below 1 flattens it.
        """
        ry = rx if ry is None else ry
        reach = int((1 + 3 * wobble) * max(rx, ry)) + 3
        corner = int(x) - reach, int(y) - reach
        gy, gx = np.mgrid[0 : 2 * reach, 0 : 2 * reach].astype(np.float32) + 0.5
        gx, gy = gx + np.float32(corner[0] - x), gy + np.float32(corner[1] - y)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        p, q = (gx * c + gy * s) / np.float32(rx), (gy * c - gx * s) / np.float32(ry)
        if wobble:
            theta = np.arctan2(q, p)
            waves = [self.rng.normal() / k * np.cos(k * theta + self.rng.uniform(0, 6.3)) for k in range(2, 7)]
            r = np.clip(1 + wobble * np.sum(waves, 0), 0.5, 1.9).astype(np.float32)
            p, q = p / r, q / r
        rho = np.hypot(p, q)
        a, b = p / np.float32(rx), q / np.float32(ry)
        mask = np.clip((1 - rho) * rho / np.maximum(np.hypot(a, b), 1e-6) + 0.5, 0, 1)
        z = np.sqrt(np.clip(1 - rho**2, 0.0, 1)) / np.float32(min(rx, ry) * deep)
        normal = unit(np.dstack([a * c - b * s, a * s + b * c, z]))
        self._put(mask, corner, normal, color(p, q) if callable(color) else color, **look)

    def flat(self, points: Array, color: Color | Callable, rim: float = 3.0, tube: bool = False, **look) -> None:
        """Paint a polygon, (N, 2), whose edge is rounded over `rim` pixels, or an upright tube of that outline.

        A color may be a function of the (h, w) mask and its corner, x and y.
        """
        low = np.floor(points.min(0)).astype(int) - 3
        mask = np.zeros(tuple((np.ceil(points.max(0)).astype(int) + 4 - low)[::-1]), np.uint8)
        cv2.fillPoly(mask, [np.int32(np.round((points - low) * 16))], 255, cv2.LINE_AA, 4)
        if callable(color):
            color = color(mask, low)
        if tube:
            x = np.broadcast_to(np.linspace(-1, 1, mask.shape[1], dtype=np.float32), mask.shape)
            normal = np.dstack([x, 0 * x - 0.05, np.sqrt(1.02 - x**2)])
            return self._put(mask / np.float32(255), tuple(low.tolist()), unit(normal), color, **look)
        self._raised(mask, low, color, rim, **look)

    def line(self, points: Array, width: float | Array, color: Color, **look) -> None:
        """Paint a round rod along (N, 2) points, as wide as `width`, which may vary: (N,)."""
        width = np.maximum(np.broadcast_to(width, len(points)) / 2, 0.6)
        low = np.floor(points.min(0) - width.max()).astype(int) - 3
        mask = np.zeros(tuple((np.ceil(points.max(0) + width.max()).astype(int) + 4 - low)[::-1]), np.uint8)
        way = np.gradient(points, axis=0)
        side = np.stack([-way[:, 1], way[:, 0]], 1) / np.maximum(np.hypot(*way.T), 1e-6)[:, None] * width[:, None]
        left, right = (np.int32(np.round((points - low + s) * 16)) for s in (side, -side))
        for k in range(len(points) - 1):
            quad = np.stack([left[k], left[k + 1], right[k + 1], right[k]])
            cv2.fillConvexPoly(mask, quad, 255, cv2.LINE_AA, 4)
        for point, radius in zip(np.int32(np.round((points - low) * 16)), width, strict=True):
            cv2.circle(mask, point.tolist(), int(radius * 16), 255, -1, cv2.LINE_AA, 4)
        self._raised(mask, low, color, float(width.max()), **look)

    def _raised(self, mask: Array, corner: Array, color: Color, rim: float, **look) -> None:
        depth = np.clip(cv2.distanceTransform((mask > 127).astype(np.uint8), cv2.DIST_L2, 5) / rim, 0, 1)
        height = cv2.GaussianBlur(rim * np.sqrt(1 - (1 - depth) ** 2), (0, 0), 0.12 * rim + 0.6)
        self._put(mask / np.float32(255), tuple(corner.tolist()), normals(height), color, **look)

    def leaf(
        self, x: float, y: float, length: float, angle: float, color: Color, wide: float = 0.5, stalk: float = 0.15,
        owner: int | None = None, lift: float | None = None, teeth: float = 0.0, gloss: float = 0.15,
    ) -> None:  # fmt: skip
        """Paint a leaf that begins at x, y, with midrib, veins and a stalk; `teeth` gives it a jagged edge."""
        t = np.linspace(0, 1, 60)
        mid = np.stack([t, self.rng.normal(0, 0.12) * np.sin(np.pi * t) + self.rng.normal(0, 0.1) * t**2], 1)
        half = wide / 2 * np.sin(np.pi * t**0.75) ** 0.85 * (1 + teeth * np.abs(np.sin(8 * np.pi * t)))
        edges = [turned((mid + np.stack([0 * t, sign * half], 1)) * length, angle, (x, y)) for sign in (1, -1)]
        rib = turned(mid * length, angle, (x, y))
        base = np.float32(color)

        def veined(mask: Array, low: Array) -> Array:
            veins = np.zeros(mask.shape, np.uint8)
            paths = [rib, *(np.stack([rib[k], edge[k + 6]]) for k in range(6, 50, 6) for edge in edges)]
            for k, path in enumerate(paths):
                wide = max(int(length * (0.012 if k else 0.025)), 1)
                cv2.polylines(veins, [np.int32((path - low) * 16)], False, 255 if k == 0 else 110, wide, cv2.LINE_AA, 4)
            spots = np.clip(fractal(self.rng, mask.shape, length / 4) - 1, 0, 1)
            return mix(mix(base, base * [1.5, 1.05, 0.6], spots * 0.7), base * 1.5 + 0.03, veins / np.float32(400))

        lift = 0.05 * length if lift is None else lift
        if stalk:
            end = rib[0] + (rib[0] - rib[8]) / np.hypot(*(rib[0] - rib[8])) * stalk * length
            self.line(spline(end, rib[0], rib[6]), length * 0.03, base * 0.9, owner=owner, lift=lift * 0.5)
        outline = np.concatenate([edges[0], edges[1][::-1]])
        self.flat(outline, veined, length * 0.04, owner=owner, lift=lift, gloss=gloss, cell=length / 3, bump=0.1)

    def ground(self, kind: str, color: Color | None = None) -> None:
        """Fill the picture with a surface: soil, sand, stone, wood, cloth, plain or blur (far away, out of focus)."""
        shape, u, rng = (self.h, self.w), self.u, self.rng
        default = {
            "soil": hsv(rng.uniform(18, 30), 0.45, 0.36), "sand": hsv(rng.uniform(30, 40), 0.3, 0.8),
            "stone": hsv(rng.uniform(0, 60), 0.05, rng.uniform(0.45, 0.75)),
            "cloth": hsv(rng.uniform(0, 360), 0.3, 0.6), "wood": hsv(rng.uniform(20, 34), 0.5, rng.uniform(0.45, 0.75)),
            "plain": hsv(40, 0.03, 0.88), "blur": hsv(rng.uniform(70, 130), 0.45, 0.45),
        }  # fmt: skip
        base = np.float32(default[kind] if color is None else color)
        large, fine = fractal(rng, shape, u / 3, 3), fractal(rng, shape, 6, 3, 0.9)
        height, tone = np.zeros(shape, np.float32), 0.06 * large
        if kind == "soil":
            clods = fractal(rng, shape, u / 14, 8, 0.72)
            height, tone = clods * u / 130, 0.15 * large + 0.25 * np.tanh(clods) + 0.12 * fine
        elif kind == "sand":
            height = (fractal(rng, shape, (u / 18, u / 5), 4) * u / 400) + fine * 0.7
            tone = 0.05 * large + 0.1 * fine
        elif kind == "stone":
            height, tone = fine * 0.35, 0.1 * large + 0.07 * fine + 0.06 * fractal(rng, shape, u / 20, 6, 0.9)
        elif kind == "wood":
            grain = fractal(rng, shape, (u / 12, u * 2), 7, 0.75)
            planks = np.arange(self.h) * rng.uniform(2, 5) / u % 1
            joint = np.clip(1 - np.minimum(planks, 1 - planks) * 90, 0, 1)[:, None]
            height, tone = grain * 0.8, 0.2 * grain + 0.1 * np.sin(9 * grain) + 0.03 * fine - 1.6 * joint
        elif kind == "cloth":
            y, x = np.mgrid[0 : self.h, 0 : self.w].astype(np.float32) + 3 * large
            folds, weave = fractal(rng, shape, u / 1.5, 2, 0.3), np.sin(x * 0.9) * np.sin(y * 0.9)
            height, tone = folds * u / 14 + 0.5 * weave, 0.07 * weave + 0.05 * fine
        elif kind == "plain":
            height, tone = 0.15 * fine, 0.012 * large + 0.008 * fine
        else:
            spots = fractal(rng, shape, u / 6, 3, 0.7)
            base = mix(base * 0.25, base * [1.5, 1.4, 0.9], 0.45 + 0.33 * spots)
            for _ in range(rng.integers(6, 20)):
                disc = np.zeros(shape, np.float32)
                at = int(rng.uniform(0, self.w)), int(rng.uniform(0, self.h))
                cv2.circle(disc, at, int(u * rng.uniform(0.02, 0.08)), float(rng.uniform(0.1, 0.4)), -1)
                base = base + disc[..., None] * np.float32([1, 0.95, 0.6]) * 0.5
            self.color[:] = base
            return self.defocus(0.02 * u)
        self.color[:] = self.lit(normals(height), base * np.exp(tone)[..., None])

    def defocus(self, sigma: float) -> None:
        """Blur what has been painted so far, which nothing named may be part of."""
        step = max(int(sigma / 4), 1)
        small = cv2.resize(self.color, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / step, borderType=cv2.BORDER_REPLICATE)
        self.color[:] = cv2.resize(small, (self.w, self.h), interpolation=cv2.INTER_CUBIC)

    def table(self, kind: str, horizon: float, color: Color | None = None, wall: Color | None = None) -> None:
        """Fill the picture with a table seen from the front and what is behind it, out of focus."""
        self.ground(kind, color)
        edge = np.clip((np.arange(self.h) / self.h - horizon) * 35 + 0.5, 0, 1)[:, None, None].astype(np.float32)
        front = self.color.copy()
        self.ground("blur", hsv(self.rng.uniform(0, 360), 0.2, 0.5)) if wall is None else self.ground("plain", wall)
        self.color[:] = self.color * (1 - edge) + front * edge

    def near(self, x: float, y: float, spread: float) -> Array:
        """Return a random point around x, y, all in shares of the picture's width, height and shorter side."""
        return np.array([x * self.w, y * self.h]) + self.rng.normal(0, spread * self.u, 2)

    def spots(self, count: int, gap: float, margin: float = 0.1, stretch: float = 1.0) -> list[Array]:
        """Return up to `count` random points, (2,), at least `gap` times the shorter side apart."""
        found: list[Array] = []
        for _ in range(60 * count):
            at = self.rng.uniform(margin, 1 - margin, 2) * [self.w, self.h]
            if len(found) == count:
                break
            if not found or np.hypot(*(np.array(found) - at).T).min() > gap * self.u:
                found.append(at)
        return found

    def photograph(self) -> tuple[Array, list[Array]]:
        """Take the picture.

        Returns:
            (H, W, 3) uint8 sRGB, and (H, W) uint8 alpha for each named object.
        """
        rng, size = self.rng, (self.w // SCALE, self.h // SCALE)
        sigma = rng.uniform(0.35, 0.7)  # the lens blurs a thing and its ground truth alike
        small = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in (self.color, self.owners)]
        color, owners = (cv2.GaussianBlur(plane, (0, 0), sigma) for plane in small)
        y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
        fall = rng.normal(0, 0.12, 2)
        light = (1 - rng.uniform(0.1, 0.3) * (x**2 + y**2) / 2) * np.exp(fall[0] * x + fall[1] * y)
        glow = cv2.GaussianBlur(color, (0, 0), 0.02 * self.u / SCALE)
        color = (0.95 * color + 0.05 * glow) * light[..., None] * np.exp(rng.normal(0, 0.025, 3))
        color *= rng.uniform(0.9, 1.15)
        color = np.where(color > 0.7, 0.7 + 0.3 * np.tanh((color - 0.7) / 0.3), color)  # highlights roll off
        noise = rng.standard_normal(color.shape, dtype=np.float32) * np.sqrt(color.clip(0) * 3e-4 + 2e-5)
        noise = 1.4 * cv2.GaussianBlur(noise.astype(np.float32), (0, 0), 0.6)
        image = np.clip(color + rng.uniform(0.5, 1.5) * noise, 0, 1) ** (1 / 2.2)
        alphas = np.atleast_3d(owners).transpose(2, 0, 1)
        return np.uint8(np.round(image * 255)), [np.uint8(np.round(alpha.clip(0, 1) * 255)) for alpha in alphas]


# --- many parts --------------------------------------------------------------------------------------------------

# the formatter would put each measure on a line of its own
# fmt: off


def fruit(s: Scene, x: float, y: float, r: float, base: Color, owner: int | None, **look) -> None:
    """Paint a round fruit of uneven ripeness, with a bloom and a navel."""
    other = np.float32(base) * s.rng.uniform(0.5, 1.6, 3)
    towards = s.rng.uniform(0, 2 * np.pi)

    def skin(p: Array, q: Array) -> Array:
        ripe = 0.5 + 0.5 * (p * np.cos(towards) + q * np.sin(towards)) + 0.2 * fractal(s.rng, p.shape, r)
        return mix(base, other, ripe * 0.7)

    look = {"gloss": 0.5, "lift": 0.8 * r, "texture": 0.07, "cell": max(r / 3, 4), "wobble": 0.03, **look}
    s.ball(x, y, r, r * s.rng.uniform(0.9, 1.1), skin, owner=owner, angle=s.rng.uniform(0, 3), **look)


def berries(s: Scene) -> None:
    """A heap of berries."""
    s.ground(str(s.rng.choice(["wood", "cloth", "stone"])))
    r, base = (s.u * s.rng.uniform(0.032, 0.05),
        hsv(*[(350, 0.85, 0.75), (225, 0.5, 0.4), (20, 0.85, 0.9)][s.rng.integers(3)]))
    heap, wide = [], s.u * s.rng.uniform(0.2, 0.28)
    for layer in range(3):  # each on the gaps of the one below
        heap += [p for p in s.spots(400, 1.55 * r / s.u) if np.hypot(*(p - [s.w / 2, s.h / 2])) < wide - 2 * r * layer]
    for at in s.spots(6, 0.12) + heap:
        fruit(s, *at, r * s.rng.uniform(0.8, 1.15), base * s.rng.uniform(0.7, 1.3), 0)
        if s.rng.random() < 0.6:
            s.ball(*(at + s.rng.normal(0, 0.35 * r, 2)), r * 0.2, r * 0.17, base * 0.25, wobble=0.15, deep=0.3, owner=0)


def grapes(s: Scene) -> None:
    """A bunch of grapes that hangs before foliage."""
    s.ground("blur")
    r, base = s.u * s.rng.uniform(0.035, 0.045), hsv(*[(75, 0.55, 0.75), (325, 0.5, 0.35)][s.rng.integers(2)])
    top = np.array([s.w * s.rng.uniform(0.4, 0.6), s.h * 0.14])
    stem = spline(top - [s.u * 0.05, s.h * 0.1], top, top + [0, s.u * 0.1])
    s.line(stem, s.u * 0.014, hsv(60, 0.5, 0.4), owner=0, texture=0.2)
    for down in np.sort(s.rng.uniform(0.05, 1, 110))[::-1]:
        wide = 0.05 + 0.2 * np.sin(np.pi * down**0.55)
        at = top + [s.rng.uniform(-wide, wide) * s.u, down * 0.62 * s.u]
        fruit(s, *at, r * s.rng.uniform(0.85, 1.1), base * s.rng.uniform(0.7, 1.25), 0, gloss=0.35, lift=0.6 * r)


def seedling(s: Scene, at: Array, size: float, green: Color, owner: int | None) -> None:
    """Paint a thin stem with a pair or two of small leaves."""
    tip = at + turned([[0, -size]], s.rng.normal(0, 0.35), (0, 0))[0]
    stem = spline(at, at + [s.rng.normal(0, 0.2) * size, -0.5 * size], tip)
    s.line(stem, np.linspace(0.05, 0.03, len(stem)) * size, mix(green, hsv(350, 0.4, 0.7), np.full((1, 1), 0.35))[0, 0],
        owner=owner, lift=0.1 * size)
    for k, back in enumerate([0, 7][: s.rng.integers(1, 3)]):
        for side in (0, np.pi):
            angle = -0.35 * np.cos(side) + side + s.rng.normal(0, 0.25) + 0.5 * k
            length = size * s.rng.uniform(0.3, 0.5)
            s.leaf(*stem[-1 - back], length, angle, green * s.rng.uniform(0.8, 1.25), 0.55, 0, owner, 0.25 * size)


def seedlings(s: Scene) -> None:
    """Young plants on soil."""
    s.ground("soil")
    for _ in range(s.rng.integers(60, 160)):
        s.ball(*s.near(0.5, 0.5, 0.5), s.u * s.rng.uniform(0.003, 0.009), None, hsv(25, 0.25, s.rng.uniform(0.3, 0.6)),
            wobble=0.2, lift=5)
    green, size = hsv(s.rng.uniform(85, 110), 0.65, 0.62), s.rng.uniform(0.13, 0.19) * s.u
    for at in sorted(s.spots(s.rng.integers(12, 45), 0.09, 0.12), key=lambda p: p[1]):
        seedling(s, at, size * s.rng.uniform(0.7, 1.2), green, 0)


def flock(s: Scene) -> None:
    """Birds in a cloudy sky."""
    down = np.linspace(0, 1, s.h, dtype=np.float32)[:, None] * np.ones((1, s.w), np.float32)
    clouds = fractal(s.rng, (s.h, s.w), (s.u / 3, s.u / 1.5), 7, 0.55)
    s.color[:] = mix(mix(hsv(212, 0.6, 0.7), hsv(205, 0.2, 0.9), down), hsv(30, 0.04, 0.93), 0.3 + 0.35 * clouds)
    shade, heading = hsv(20, 0.2, s.rng.uniform(0.15, 0.4)), s.rng.uniform(0, 6.3)
    for at in s.spots(s.rng.integers(12, 36), 0.14):
        span, lift = s.u * s.rng.uniform(0.055, 0.09), s.rng.uniform(0.1, 0.7)
        wings = np.array([[1, 0], [0.1, 0.12], [-0.3, 1], [-0.5, 0.95], [-0.25, 0.12], [-0.7, 0.12], [-0.75, -0.1],
            [-0.25, -0.12], [-0.5, -0.95 * lift], [-0.3, -1 * lift], [0.1, -0.12]])
        smooth = spline_closed(wings * [0.65, 1])
        s.flat(turned(smooth * span, heading + s.rng.normal(0, 0.25), at), shade * s.rng.uniform(0.8, 1.3), 0.1 * span,
            owner=0, texture=0.2)


def spline_closed(points: Array, rounds: int = 2) -> Array:
    """Round the corners of a polygon, (N, 2), by cutting them."""
    for _ in range(rounds):
        after = np.roll(points, -1, 0)
        points = np.stack([0.8 * points + 0.2 * after, 0.2 * points + 0.8 * after], 1).reshape(-1, 2)
    return points


def fallen(s: Scene) -> None:
    """Leaves scattered on a pavement."""
    s.ground("stone")
    for at in s.spots(s.rng.integers(12, 30), 0.17):
        color = hsv(s.rng.uniform(12, 55), s.rng.uniform(0.5, 0.85), s.rng.uniform(0.35, 0.85))
        s.leaf(*at, s.u * s.rng.uniform(0.1, 0.16), s.rng.uniform(0, 6.3), color, s.rng.uniform(0.4, 0.7), 0.4, 0,
            s.u * 0.006, 0.12)


def beads(s: Scene) -> None:
    """A string of beads laid on cloth or wood."""
    s.ground(str(s.rng.choice(["cloth", "wood"])))
    ends = [s.near(x, y, 0.06) for x, y in ((0.12, 0.3), (0.35, -0.2), (0.95, 0.1), (0.95, 1.2), (0.1, 1.15),
        (0.2, 0.5), (0.6, 0.5))]
    path = spline(*ends, count=400)
    s.line(path[::8], s.u * 0.005, hsv(30, 0.3, 0.35), owner=0, lift=s.u * 0.006)
    base, walked, r = hsv(s.rng.uniform(0, 360), 0.6, 0.7), 0.0, s.u * s.rng.uniform(0.021, 0.03)
    for k in range(1, len(path)):
        walked += float(np.hypot(*(path[k] - path[k - 1])))
        if walked > 2.5 * r:
            walked = 0.0
            s.ball(*path[k], r * s.rng.uniform(0.9, 1.1), None, base * s.rng.uniform(0.7, 1.4), gloss=0.9, owner=0,
                lift=r)


def clips(s: Scene) -> None:
    """Spilled paper clips and nails."""
    s.ground(str(s.rng.choice(["wood", "stone"])))
    for at in s.spots(s.rng.integers(14, 28), 0.15):
        size, angle = s.u * s.rng.uniform(0.07, 0.085), s.rng.uniform(0, 6.3)
        steel = hsv(s.rng.uniform(200, 240), 0.08, s.rng.uniform(0.55, 0.8))
        look = {"owner": 0, "gloss": 0.9, "lift": size * 0.15}
        if s.rng.random() < 0.5:
            arc = np.linspace(0, np.pi, 9)
            bend = np.stack([np.sin(arc), np.cos(arc)], 1)
            wire = [[-0.5, 0.32], *(bend * 0.32 + [0.6, 0]), *(-bend * 0.26 + [-0.6, -0.06]), *(bend * 0.2 + [0.35, 0]),
                [-0.4, -0.2]]
            s.line(turned(np.array(wire) * size, angle, at), size * 0.09, steel, **look)
        else:
            rod = turned(np.array([[-1, 0], [0.85, 0], [1.05, 0]]) * size, angle, at)
            s.line(rod, np.array([0.12, 0.12, 0.02]) * size, steel * 0.8, **look)
            s.line(turned(np.array([[-1, -0.14], [-1, 0.14]]) * size, angle, at), size * 0.07, steel, **look)


def tuft(s: Scene) -> None:
    """A tuft of grass on sand or soil."""
    s.ground(str(s.rng.choice(["sand", "soil"])))
    green = hsv(s.rng.uniform(50, 100), 0.5, 0.6)
    for _ in range(s.rng.integers(60, 140)):
        root = s.near(0.5, 0.72, 0.03)
        lean, tall = s.rng.normal(0, 0.35), s.u * s.rng.uniform(0.3, 0.65)
        blade = spline(root, root + [lean * 0.3 * tall, -0.7 * tall],
            root + [lean * tall, -tall * s.rng.uniform(0.6, 1)])
        s.line(blade, np.linspace(1, 0.1, 24) * s.u * 0.009, green * s.rng.uniform(0.5, 1.5), owner=0, lift=s.u * 0.012,
            cell=(60, 4))


def mushrooms(s: Scene) -> None:
    """A cluster of mushrooms in litter."""
    litter(s, 120, hsv(30, 0.5, 0.35))
    s.defocus(0.004 * s.u)
    cap = hsv(s.rng.uniform(15, 40), s.rng.uniform(0.3, 0.7), 0.75)
    for foot in sorted((s.near(0.5, 0.62, 0.11) for _ in range(s.rng.integers(14, 26))), key=lambda p: p[1]):
        r = s.u * s.rng.uniform(0.03, 0.065)
        head = foot + [s.rng.normal(0, 0.6) * r, -s.rng.uniform(1.5, 3.2) * r]
        s.line(spline(foot, (foot + head) / 2 + [s.rng.normal(0, 0.3) * r, 0], head), 0.42 * r, hsv(38, 0.18, 0.85),
            owner=0, lift=0.4 * r, cell=(30, 6), texture=0.12)
        s.ball(*(head + [0, 0.16 * r]), r, 0.42 * r, hsv(30, 0.3, 0.5), owner=0, texture=0.2)
        s.ball(*head, 1.02 * r, 0.6 * r, lambda p, q: mix(cap * 0.75, cap * 1.25, 0.6 - 0.6 * np.hypot(p, q + 0.3)),
            owner=0, gloss=0.35, lift=0.5 * r, wobble=0.03)


# --- low salience ------------------------------------------------------------------------------------------------


def litter(s: Scene, count: int, color: Color, size: float = 0.11) -> None:
    """Cover the picture with leaves."""
    s.ground("soil")
    for _ in range(count):
        at, tone = s.rng.uniform(-0.05, 1.05, 2) * [s.w, s.h], s.rng.uniform(0.6, 1.3) * s.rng.uniform(0.9, 1.1, 3)
        s.leaf(*at, s.u * size * s.rng.uniform(0.7, 1.3), s.rng.uniform(0, 6.3), color * tone, s.rng.uniform(0.4, 0.6),
            0.3, None, s.u * 0.008)


def cup(s: Scene, x: float, foot: float, r: float, tall: float, glaze: Color, owner: int, side: float = 1) -> None:
    """Paint a cup, seen from the front and a little from above; x, foot: the middle of its base."""
    squash, look = 0.3, {"owner": owner, "gloss": 0.5, "texture": 0.015}
    s._shadow(ellipse_mask(1.15 * r, 0.42 * r), (int(x - 1.15 * r), int(foot - 0.5 * r)), 0.35 * r)
    turn = np.linspace(-1.25, 1.25, 24)
    grip = np.stack([side * (0.92 + 0.55 * np.cos(turn)) * r, -(0.52 - 0.3 * np.sin(turn)) * tall], 1) + [x, foot]
    s.line(grip, 0.17 * r, glaze, **look)
    t = np.linspace(0, np.pi, 40)
    narrow = s.rng.uniform(0.68, 0.95)
    base = np.stack([np.cos(t) * r * narrow, np.sin(t) * r * squash * narrow], 1)
    rim = np.stack([np.array([-1, 1]) * r, [-tall, -tall]], 1)
    s.flat(np.concatenate([base, rim]) + [x, foot], glaze, tube=True, **look)
    s.ball(x, foot - tall, r, r * squash, glaze, deep=0.3, **look)
    s.ball(x, foot - tall + 0.03 * r, 0.93 * r, 0.93 * r * squash, lambda p,
        q: glaze * (0.35 + 0.35 * np.clip(q + 0.4, 0, 1))[..., None], deep=9, **{**look, "gloss": 0})


def ellipse_mask(rx: float, ry: float) -> Array:
    """Return a filled ellipse, (2 ry, 2 rx) float32 in [0, 1]."""
    mask = np.zeros((int(2 * ry), int(2 * rx)), np.float32)
    return cv2.ellipse(mask, (int(rx), int(ry)), (int(rx) - 1, int(ry) - 1), 0, 0, 360, 1.0, -1, cv2.LINE_AA)


def white_cup(s: Scene) -> None:
    """A white cup on a white table before a white wall."""
    white = hsv(s.rng.uniform(20, 60), 0.04, s.rng.uniform(0.82, 0.9))
    s.table("plain", s.rng.uniform(0.3, 0.5), white, white * 0.95)
    r = s.u * s.rng.uniform(0.14, 0.2)
    cup(s, s.w * s.rng.uniform(0.4, 0.6), s.h * 0.72, r, r * s.rng.uniform(1.2, 1.9), white * 1.04, 0,
        s.rng.choice([-1, 1]))


def bark_coat(s: Scene) -> Callable[[tuple[int, int]], Array]:
    """Fill the picture with bark; return what gives a patch, (h, w), the same coat, (h, w, 3)."""
    dark, pale = hsv(25, 0.3, 0.28), hsv(35, 0.18, 0.62)

    def coat(shape: tuple[int, int]) -> Array:
        return mix(dark, pale, 0.5 + 0.3 * fractal(s.rng, shape, (s.u / 6, s.u / 22), 7, 0.75))

    ridges = fractal(s.rng, (s.h, s.w), (s.u / 3, s.u / 16), 7, 0.7)
    s.color[:] = s.lit(normals(ridges * s.u / 160), coat((s.h, s.w)) * np.exp(0.2 * ridges)[..., None])
    return coat


def moth(s: Scene) -> None:
    """A moth with the bark's own pattern."""
    coat = bark_coat(s)
    half = np.array([[0, -0.42], [0.12, -0.4], [0.5, -0.5], [0.95, -0.15], [0.85, 0.1], [0.6, 0.2], [0.7, 0.5],
        [0.4, 0.62], [0.1, 0.45], [0, 0.55]])
    size, at, angle = s.u * s.rng.uniform(0.2, 0.3), s.near(0.5, 0.5, 0.05), s.rng.normal(0, 0.5)
    wings = spline_closed(np.concatenate([half, half[:0:-1] * [-1, 1]]), 3)
    s.flat(turned(wings * size, angle, at), lambda mask, _: 1.12 * coat(mask.shape), 0.05 * size, owner=0,
        lift=0.07 * size, bump=0.2)
    for side in (-1, 1):
        feeler = spline([0.02 * side, -0.4], [0.1 * side, -0.6], [0.3 * side, -0.7])
        s.line(turned(feeler * size, angle, at), 0.02 * size, hsv(25, 0.3, 0.4), owner=0, lift=0.03 * size)
    body = turned([[0, 0.02]], angle, (0, 0))[0] * size + at
    s.ball(*body, 0.09 * size, 0.42 * size, lambda p, q: coat(p.shape), angle=angle, owner=0, bump=0.4)


def pebble(s: Scene, at: Array, r: float, owner: int | None) -> None:
    """Paint a gray pebble."""
    gray = hsv(s.rng.uniform(20, 50), s.rng.uniform(0.02, 0.12), s.rng.uniform(0.42, 0.68))
    s.ball(*at, r, r * s.rng.uniform(0.65, 0.95), gray, s.rng.uniform(0, 3.1), 0.08, s.rng.uniform(0.5, 1), owner=owner,
        lift=0.45 * r, texture=0.14, cell=max(r / 3, 3), bump=0.25)


def one_pebble(s: Scene) -> None:
    """One pebble among many."""
    r = s.u * s.rng.uniform(0.05, 0.07)
    s.ground("soil", hsv(35, 0.1, 0.3))
    grid = np.stack(np.meshgrid(np.arange(0, s.w + r, 1.15 * r), np.arange(0, s.h + r, 1.15 * r)), -1).reshape(-1, 2)
    for at in s.rng.permutation(grid):
        pebble(s, at + s.rng.normal(0, 0.3 * r, 2), r * s.rng.uniform(0.5, 1.25), None)
    pebble(s, s.near(0.5, 0.5, 0.08), r * s.rng.uniform(1.5, 2.2), 0)


def towel(s: Scene) -> None:
    """A sand-colored towel on sand."""
    base = hsv(s.rng.uniform(30, 40), 0.28, 0.8)
    s.ground("sand", base)
    a, b, angle = s.u * s.rng.uniform(0.28, 0.36), s.u * s.rng.uniform(0.16, 0.22), s.rng.uniform(0, 3)
    at, t = s.near(0.5, 0.5, 0.03), np.linspace(-1, 1, 40)
    edges = [np.stack([t * a, np.full(40, -b)], 1), np.stack([np.full(40, a), t * b], 1)]
    outline = np.concatenate([edges[0], edges[1], -edges[0], -edges[1]])
    outline += 0.012 * s.u * np.sin(outline[:, ::-1] / s.u * [17, 23] + s.rng.uniform(0, 6, 2))
    for end in (-1, 1):
        for y in np.arange(-b, b, s.u * 0.008):
            tip = np.array([end * (a + s.u * s.rng.uniform(0.02, 0.035)), y + s.rng.normal(0, 0.004) * s.u])
            s.line(turned([[end * a * 0.97, y], tip], angle, at), s.u * 0.004, base * 1.1, owner=0, lift=s.u * 0.004)

    def woven(mask: Array, low: Array) -> Array:
        gy, gx = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]] + (low - at)[::-1, None, None]
        along = (gx * np.cos(angle) + gy * np.sin(angle)) / a
        stripe = np.clip(1 - np.abs(np.abs(along) - 0.8) * 30, 0, 1)
        return base * (1 + 0.08 * np.sin(gx * 0.8) * np.sin(gy * 0.8) - 0.12 * stripe)[..., None]

    s.flat(turned(outline, angle, at), woven, s.u * 0.012, owner=0, lift=s.u * 0.012, texture=0.05, cell=s.u / 7,
        bump=0.12)


def pale_leaf(s: Scene) -> None:
    """One leaf among leaves that are alike."""
    color = hsv(s.rng.uniform(25, 45), s.rng.uniform(0.25, 0.5), 0.6)
    litter(s, 260, color)
    length, angle = s.u * s.rng.uniform(0.3, 0.4), s.rng.uniform(0, 6.3)
    start = np.array([s.w, s.h]) / 2 - turned([[length / 2, 0]], angle, (0, 0))[0]
    s.leaf(*start, length, angle, color * s.rng.uniform(0.9, 1.15), 0.55, 0.3, 0)


def dull(s: Scene) -> None:
    """A small gray stone beside a ball of bright colors."""
    s.ground("stone", hsv(40, 0.05, 0.55))
    left, r = s.rng.choice([-1, 1]), s.u * s.rng.uniform(0.17, 0.23)
    hue = s.rng.uniform(0, 360)
    s.ball(s.w * (0.5 - 0.2 * left), s.h * 0.45, r, None,
        lambda p, q: mix(hsv(hue, 0.9, 0.85), hsv(hue + 60, 0.8, 0.95), np.sin(p * 7 + q * 4) * 8),
        gloss=0.9, lift=0.8 * r, texture=0.02)
    pebble(s, np.array([s.w * (0.5 + 0.27 * left), s.h * 0.62]), s.u * s.rng.uniform(0.06, 0.09), 0)


def hare(s: Scene) -> None:
    """A hare in dry grass, with blades before it."""
    straw, at, r = hsv(36, 0.4, 0.58), s.near(0.5, 0.55, 0.04), s.u * s.rng.uniform(0.13, 0.17)
    s.ground("soil", straw * 0.5)

    def blades(count: int, low: float, high: float) -> None:
        for y in np.sort(s.rng.uniform(low, high, count)):
            root, tall, lean = (np.array([s.rng.uniform(0, s.w), y * s.h]), s.u * s.rng.uniform(0.08, 0.2),
                s.rng.normal(0, 0.4))
            path = spline(root, root - [-lean * 0.3 * tall, 0.7 * tall], root - [-lean * tall, tall], count=10)
            s.line(path, np.linspace(1, 0.15, 10) * s.u * 0.006,
                straw * s.rng.uniform(0.45, 1.25) * s.rng.uniform(0.93, 1.07, 3), lift=s.u * 0.01)

    def fur(center: Array, rx: float, ry: float, count: int, angle: float = 0.0) -> None:
        s.ball(*center, rx, ry, straw * 0.75, angle, 0.03, owner=0, texture=0.25, cell=(12, 24), lift=0.3 * ry)
        for _ in range(count):
            q = s.rng.normal(0, 0.45, 2)
            q = q / max(1, np.hypot(*q))
            start = turned([q * [rx, ry]], angle, center)[0]
            hair = np.stack([start, start + turned([[-0.1 * r, 0.05 * r]], angle + s.rng.normal(0, 0.3), (0, 0))[0]])
            s.line(hair, [s.u * 0.003, 1], straw * s.rng.uniform(0.4, 1.3), owner=0, texture=0)

    blades(900, 0.05, 0.62)
    side = s.rng.choice([-1, 1])
    head = at + [side * 1.25 * r, -0.75 * r]
    fur(at + [-side * 0.5 * r, 0.15 * r], r * 1.0, r * 0.85, 500)
    fur(at, r * 1.45, r * 0.8, 900, -0.2 * side)
    for tilt in (0.5, 0.2):
        fur(head + [-side * tilt * r, -0.8 * r], 0.16 * r, 0.65 * r, 90, -side * tilt)
    fur(head, 0.62 * r, 0.47 * r, 300, 0.3 * side)
    s.ball(*(head + [side * 0.15 * r, -0.1 * r]), 0.08 * r, None, hsv(25, 0.5, 0.12), gloss=1, owner=0)
    blades(260, 0.62, 0.85)
    blades(250, 0.95, 1.15)


def paper(s: Scene) -> None:
    """A blank letter on a pale desk."""
    pale = hsv(s.rng.uniform(30, 60), 0.05, 0.86)
    s.ground("plain", pale)
    a, b, angle = s.u * 0.3, s.u * s.rng.uniform(0.18, 0.24), s.rng.uniform(0, 3)
    sheet = turned(np.array([[-a, -b], [a, -b], [a, b], [-a, b]]), angle, s.near(0.5, 0.5, 0.04))
    s.flat(sheet, pale * 1.02, 2, owner=0, lift=s.u * 0.006, texture=0.01, cell=s.u / 3, bump=0.04)
    for share in (1 / 3, 2 / 3):
        fold = np.stack([sheet[0] * (1 - share) + sheet[1] * share, sheet[3] * (1 - share) + sheet[2] * share])
        s.line(fold, 3, pale * 0.97, owner=0, texture=0)


# --- touching ----------------------------------------------------------------------------------------------------


def pair(s: Scene, apart: float) -> list[Array]:
    """Return the centers of two things side by side, `apart` pixels from each other."""
    angle = s.rng.uniform(-0.4, 0.4) + (np.pi if s.rng.random() < 0.5 else 0)
    half = turned([[apart / 2, 0]], angle, (0, 0))[0]
    middle = s.near(0.5, 0.52, 0.03)
    return [middle - half, middle + half]


def apples(s: Scene) -> None:
    """Two apples from above."""
    s.ground(str(s.rng.choice(["wood", "cloth"])))
    r, base = s.u * s.rng.uniform(0.17, 0.21), hsv(s.rng.choice([2, 10, 75]), 0.8, 0.75)
    for k, at in enumerate(pair(s, 1.9 * r)):
        fruit(s, *at, r, base * s.rng.uniform(0.85, 1.15), k, wobble=0.025, cell=(r / 2, r / 8), texture=0.12)
        dip = at + s.rng.normal(0, 0.12 * r, 2)
        s.ball(*dip, 0.17 * r, 0.13 * r, lambda p, q: mix(base * 0.25, base * 0.8, np.hypot(p, q)), owner=k, deep=6)
        s.line(spline(dip, dip + [0.05 * r, -0.15 * r], dip + s.rng.normal(0, 0.2 * r, 2) - [0, 0.2 * r]), 0.06 * r,
            hsv(25, 0.5, 0.3), owner=k, lift=0.08 * r)


def slabs(s: Scene, k: int, at: Array, angle: float, size: Array, color: Color, **look) -> Array:
    """Paint a rectangle with rounded corners, as books and cards have; returns its corners."""
    a, b = size
    box = np.array([[-a, -b], [a, -b], [a, b], [-a, b]])
    corner = turned(box, angle, at)
    ways = unit(np.roll(corner, -1, 0) - corner) * s.u * 0.012
    rounded = np.concatenate([spline(c - w0, c, c + w1, count=6)
        for c, w0, w1 in zip(corner, np.roll(ways, 1, 0), ways, strict=True)])
    s.flat(rounded, color, owner=k, **look)
    return corner


def books(s: Scene) -> None:
    """Two books from above, one partly on the other."""
    s.ground(str(s.rng.choice(["wood", "cloth"])))
    size, hue = s.u * np.array([0.15, 0.21]), s.rng.uniform(0, 360)
    for k, at in enumerate(pair(s, 1.9 * size[0])):
        angle, cover = s.rng.normal(0, 0.12), hsv(hue + 25 * k, 0.55, s.rng.uniform(0.35, 0.6))
        slabs(s, k, at + [4, 10], angle, size * 0.985, hsv(45, 0.15, 0.85), lift=s.u * 0.03, texture=0.2, cell=(2, 60))
        slabs(s, k, at, angle, size, cover, rim=5, texture=0.08, cell=6, bump=0.15, gloss=0.1)
        for y, wide in ((-0.55, 0.6), (-0.4, 0.45), (0.65, 0.3)):
            bar = np.array([[-wide, y], [wide, y]]) * size
            s.line(turned(bar, angle, at), s.u * 0.014, hsv(45, 0.4, 0.8), owner=k, texture=0.1)


def leaves(s: Scene) -> None:
    """Two leaves that overlap."""
    s.ground(str(s.rng.choice(["stone", "soil"])))
    color, length = hsv(s.rng.uniform(20, 110), 0.6, 0.6), s.u * s.rng.uniform(0.45, 0.55)
    for k, at in enumerate(pair(s, 0.35 * length)):
        angle = np.pi / 2 * s.rng.choice([-1, 1]) + s.rng.normal(0, 0.3)
        start = at - turned([[length / 2, 0]], angle, (0, 0))[0]
        s.leaf(*start, length, angle, color * s.rng.uniform(0.85, 1.2), 0.6, 0.25, k, s.u * 0.015, 0.1)


def cards(s: Scene) -> None:
    """Two playing cards, one partly on the other."""
    s.ground("cloth", hsv(s.rng.uniform(100, 160), 0.6, 0.4))
    size = s.u * np.array([0.16, 0.225])
    for k, at in enumerate(pair(s, 1.5 * size[0])):
        angle, ink = (s.rng.normal(0.15 - 0.3 * k, 0.2),
            hsv(355, 0.85, 0.75) if s.rng.random() < 0.5 else hsv(0, 0, 0.12))
        slabs(s, k, at, angle, size, hsv(45, 0.04, 0.92), lift=s.u * 0.006, texture=0.01)
        pip = np.array([[0, -1], [0.75, 0], [0, 1], [-0.75, 0]]) * s.u * 0.028
        for x, y in [(x, y) for x in (-0.5, 0.5) for y in np.linspace(-0.7, 0.7, s.rng.integers(2, 5))]:
            center = turned([np.array([x, y]) * size], angle, at)[0]
            s.flat(turned(pip, angle, center), ink, 1, owner=k, texture=0.02)


def pebbles(s: Scene) -> None:
    """Two pebbles on sand."""
    s.ground("sand")
    r = s.u * s.rng.uniform(0.16, 0.2)
    for k, at in enumerate(pair(s, 1.65 * r)):
        pebble(s, at, r, k)


def cups(s: Scene) -> None:
    """Two cups on a table, one a little before the other."""
    s.table(str(s.rng.choice(["wood", "plain"])), s.rng.uniform(0.3, 0.45))
    r, glaze = s.u * s.rng.uniform(0.13, 0.16), hsv(s.rng.uniform(0, 360), s.rng.uniform(0.1, 0.5), 0.75)
    for k, side in enumerate((-1, 1)):
        cup(s, s.w / 2 + side * 0.85 * r, s.h * (0.66 + 0.05 * k), r, 1.5 * r, glaze * s.rng.uniform(0.9, 1.1), k, side)


def eggs(s: Scene) -> None:
    """Two eggs on cloth."""
    s.ground(str(s.rng.choice(["cloth", "wood"])))
    r, shell = s.u * s.rng.uniform(0.2, 0.24), hsv(25, s.rng.uniform(0.15, 0.45), 0.85)
    for k, at in enumerate(pair(s, 1.55 * r)):
        angle = np.pi / 2 + s.rng.normal(0, 0.3)
        s.ball(*at, r, 0.76 * r, shell * s.rng.uniform(0.9, 1.1), angle, owner=k, lift=0.6 * r, texture=0.03, cell=8,
            gloss=0.1, bump=0.03)


def crumb(s: Scene, r: float, p: Array, q: Array) -> Array:
    """Color a bun: brown above, pale at its side; p, q: (h, w) in [-1, 1] on it."""
    pale = np.hypot(p, q) ** 3 + 0.18 * fractal(s.rng, p.shape, r / 3, 6)
    return mix(hsv(26, 0.72, 0.6), hsv(36, 0.45, 0.85), pale)


def buns(s: Scene) -> None:
    """Two buns on a board."""
    s.ground(str(s.rng.choice(["wood", "stone"])))
    r = s.u * s.rng.uniform(0.18, 0.22)
    for k, at in enumerate(pair(s, 1.85 * r)):
        s.ball(*at, r, r * s.rng.uniform(0.85, 1), partial(crumb, s, r), s.rng.uniform(0, 3), 0.04, 0.8, owner=k,
            gloss=0.25, lift=0.5 * r, texture=0.08, cell=r / 8, bump=0.12)
        for _ in range(s.rng.integers(20, 50)):
            seed = at + s.rng.normal(0, 0.3 * r, 2)
            s.ball(*seed, 0.04 * r, 0.022 * r, hsv(42, 0.25, 0.92), s.rng.uniform(0, 3), owner=k, lift=0.02 * r)



# fmt: on

KINDS: dict[str, tuple[Callable[[Scene], None], ...]] = {
    "many_parts": (berries, grapes, seedlings, flock, fallen, beads, clips, tuft, mushrooms),
    "low_salience": (white_cup, moth, one_pebble, towel, pale_leaf, dull, hare, paper),
    "touching": (apples, books, leaves, cards, pebbles, cups, eggs, buns),
}


def make_scene(
    kind: Callable[[Scene], None], rng: Rng, size: tuple[int, int] | None = None
) -> tuple[Array, list[Array]]:
    """Draw one scene.

    Args:
        kind: One of `KINDS`' functions.
        rng: Decides everything that is random.
        size: (height, width); None draws one of 700 to 1400 pixels a side.

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) uint8 alpha of each named object: two for the kinds of `touching`, else one.
    """
    if size is None:
        size = tuple(int(n) for n in rng.permutation([rng.integers(700, 1000), rng.integers(900, 1401)]))
    scene = Scene(rng, *size, objects=2 if kind in KINDS["touching"] else 1)
    kind(scene)
    return scene.photograph()


# --- coarse masks ------------------------------------------------------------------------------------------------


def sim(gt: Array, rng: Rng) -> Array:
    """Lose what a promptable model's mask loses: 128 x 128 pixels, soft, an uncertain border, small holes closed.

    Args:
        gt: (H, W) uint8 alpha.
        rng: Decides the border's noise.

    Returns:
        (H, W) uint8, 0 or 255.
    """
    n = 128
    small = cv2.resize((gt > 128).astype(np.float32), (n, n), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), 1)
    border = cv2.morphologyEx(soft, cv2.MORPH_GRADIENT, np.ones((5, 5)))
    noise = cv2.resize(rng.standard_normal((16, 16), dtype=np.float32), (n, n), interpolation=cv2.INTER_CUBIC)
    level = min(0.5, 0.5 * float(soft.max()))  # threads alone still leave a trace
    found = (soft + 0.2 * noise * border > level).astype(np.float32)
    found = cv2.morphologyEx(found, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    return np.uint8(255) * (cv2.resize(found, gt.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5)


def coarse_masks(image: Array, gt: Array, grabcut: GrabCutPredictor, rng: Rng) -> dict[str, Array]:
    """Make both coarse masks of an object, (H, W) uint8 of 0 and 255, by the name of their folder.

    Args:
        image: (H, W, 3) uint8 RGB.
        gt: (H, W) uint8 alpha; must not be empty.
        grabcut: Is asked with the tight box, which also stands in where it finds next to nothing.
        rng: Decides the noise of `sim`.
    """
    x0, y0, x1, y1 = box = box_from_mask(gt)
    grabcut.set_image(image)
    found = grabcut.predict(box=np.array(box))[0][0].astype(np.uint8) * np.uint8(255)
    if found.sum() < 2.55 * (x1 + 1 - x0) * (y1 + 1 - y0):  # a hundredth of the box, or nothing
        found[y0 : y1 + 1, x0 : x1 + 1] = 255
    return {"grabcut": found, "sim": sim(gt, rng)}


# --- the sets ----------------------------------------------------------------------------------------------------


def jobs(per_set: int) -> list[tuple[str, str, int]]:
    """Return all scenes as (set, kind's name, number in the set); a scene of `touching` serves two prompts."""
    counts = {name: (per_set + 1) // 2 if name == "touching" else per_set for name in KINDS}
    return [(name, KINDS[name][k % len(KINDS[name])].__name__, k) for name, n in counts.items() for k in range(n)]


def _write_scene(out: Path, job: tuple[str, str, int], seed: int, size: tuple[int, int] | None) -> None:
    folder, kind, number = job
    rng = np.random.default_rng([seed, list(KINDS).index(folder), number])
    image, gts = make_scene(next(k for k in KINDS[folder] if k.__name__ == kind), rng, size)
    grabcut = GrabCutPredictor()
    for gt, letter in zip(gts, ("_a", "_b") if len(gts) > 1 else ("",), strict=True):
        name = f"{kind}_{number:02d}{letter}"
        path = out / folder / "im" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=92)
        write_mask(out / folder / "gt" / f"{name}.png", gt)
        for way, mask in coarse_masks(read_image(path), gt, grabcut, rng).items():  # of what a user would have
            write_mask(out / folder / way / f"{name}.png", mask)


def contact_sheet(out: Path, height: int = 260, columns: int = 4) -> Array:
    """Lay out all pairs: the image with the ground truth's outline, beside it both coarse masks, sim over grabcut.

    Args:
        out: The folder of the sets.
        height: Pixels of a row.
        columns: Pairs in a row.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    cells, width = [], int(2.1 * height)
    for path in sorted(out.glob("*/im/*.jpg")):
        image, gt = read_image(path), read_mask(path.parents[1] / "gt" / f"{path.stem}.png")
        scale = min((height - 16) / gt.shape[0], width / 1.5 / gt.shape[1])
        image, gt = (cv2.resize(a, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for a in (image, gt))
        outline = cv2.findContours((gt > 128).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(image, outline, -1, (255, 0, 255), 1)
        half = gt.shape[1] // 2, gt.shape[0] // 2
        masks = [read_mask(path.parents[1] / way / f"{path.stem}.png") for way in ("sim", "grabcut")]
        masks = np.vstack([cv2.resize(mask, half, interpolation=cv2.INTER_AREA) for mask in masks])
        cell = np.full((height, width, 3), 40, np.uint8)
        cell[: image.shape[0], : image.shape[1]] = image
        cell[: masks.shape[0], image.shape[1] + 2 :][:, : masks.shape[1]] = masks[:, : width - image.shape[1] - 2, None]
        label = f"{path.parents[1].name} {path.stem}"
        cv2.putText(cell, label, (2, height - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (230, 230, 230), 1, cv2.LINE_AA)
        cells.append(cell)
    cells += [np.full_like(cells[0], 40)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[k : k + columns]) for k in range(0, len(cells), columns)])


def make_hard_scenes(out: Path, seed: int = 0, per_set: int = 16, size: tuple[int, int] | None = None) -> bool:
    """Make all sets, unless they are there.

    Args:
        out: Their folder; a set made with other settings is replaced as a whole.
        seed: Another seed gives other scenes.
        per_set: Prompts in a set.
        size: (height, width) of all images; None varies them.

    Returns:
        True if they were made, False if they were there.

    Raises:
        FileExistsError: If the folder holds something else.
    """
    settings = {"version": VERSION, "seed": seed, "per_set": per_set, "size": list(size) if size else None}
    record = out / "hard.json"
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8")) == settings:
            return False
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not a folder that this program made; name another with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for job in tqdm(jobs(per_set), desc=f"hard scenes in {out}", unit="scene", disable=None):
            _write_scene(temporary, job, seed, size)
        write_image(temporary / "contact_sheet.jpg", contact_sheet(temporary))
        (temporary / record.name).write_text(json.dumps(settings), encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's folders are private
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw scenes that a refinement network tends to fail on.")
    here = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=here / "sample" / "hard", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes (default: %(default)s)")
    parser.add_argument("--per-set", type=int, default=16, help="prompts in a set (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.per_set < 1 or args.seed < 0:
        parser.error("--per-set must be positive, and --seed not negative")
    try:
        made = make_hard_scenes(args.out, args.seed, args.per_set)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {args.out} is as it was", file=sys.stderr)
        return 130
    print(f"{args.out}: {'made' if made else 'complete already'}, {len(jobs(args.per_set))} scenes")
    return 0


if __name__ == "__main__":
    logging.getLogger("sam").setLevel(logging.ERROR)  # it would warn for each scene that GrabCut is not SAM
    sys.exit(main())
