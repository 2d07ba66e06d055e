"""The kinds of objects in the sample set, each thin or perforated, as random models in meters."""

# ruff: noqa: RUF005  (a tuple added to an array is a shift, not a concatenation)

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sample_scenes.materials import RUBBER, Array, Material, Rng, foliage, iron, paint, scaled, steel, wood
from sample_scenes.mesh import ACROSS, OUT, UP, Model, arc, curve, rotation, unit


def _one_of(rng: Rng, *materials: Callable[[Rng], Material]) -> Material:
    return materials[rng.integers(len(materials))](rng)


def _circle(points: int) -> Array:
    """Return evenly spread directions (points, 2) in a plane."""
    angles = np.arange(points) * 2 * np.pi / points
    return np.stack([np.cos(angles), np.sin(angles)], -1)


def _wheel(m: Model, radius: float, spokes: int, metal: Material, tire: Material) -> None:
    """Add a wheel with laced wire spokes in the x-y plane about the origin."""
    m.sweep(arc((0, 0, 0), radius - 0.016, count=72), 0.017, tire)
    m.sweep(arc((0, 0, 0), radius - 0.042, count=72), (0.02, 0.012), metal, up=OUT)
    m.bar((0, 0, -0.04), (0, 0, 0.04), 0.018, metal, sides=18)
    for k, (x, y) in enumerate(_circle(spokes)):
        lead = rotation("z", 0.9 * (-1) ** (k // 2)) @ (x, y, 0.9 * (-1) ** k)
        m.bar(lead * 0.03, np.array([x, y, 0]) * (radius - 0.045), 0.0034, metal, sides=6)


def bicycle(m: Model) -> None:
    """Build a city bicycle."""
    rng, frame, metal, black = m.rng, paint(m.rng), steel(m.rng), RUBBER
    r, base, spokes = 0.34, rng.uniform(0.98, 1.1), int(rng.choice([20, 24, 28]))
    rear, crank, front = np.array([-base * 0.43, r, 0]), np.array([0, 0.28, 0]), np.array([base * 0.57, r, 0])
    seat, head = np.array([-0.16, 0.78, 0]), np.array([base * 0.57 - 0.16, rng.uniform(0.76, 0.84), 0])
    neck = head + (0.03, -0.11, 0)
    for a, b in [(crank, seat), (crank, neck), (seat, head), (neck + (0.01, -0.03, 0), head + (-0.015, 0.05, 0))]:
        m.bar(a, b, 0.017, frame)
    for z in (-0.055, 0.055):
        m.bar(crank + (0, 0, z * 0.5), rear + (0, 0, z), 0.009, frame)
        m.bar(seat + (0.01, -0.06, z * 0.3), rear + (0, 0, z), 0.008, frame)
    m.bar(seat, seat + (-0.035, 0.13, 0), 0.012, metal)
    saddle = curve((-0.16, 0.02, 0), (-0.05, 0.05, 0), (0.05, 0.0, 0), (0.12, 0.0, 0)) + seat + (-0.03, 0.13, 0)
    m.sweep(saddle, np.interp(np.linspace(0, 1, 16), [0, 0.25, 0.6, 1], [0.03, 0.055, 0.03, 0.015]), black)
    # the chainring, two cranks with pedals, the chain's two runs
    near, turn = crank + (0, 0, 0.05), rotation("z", rng.uniform(0, 6.28))
    m.sweep(arc(near, 0.095, count=40), 0.006, metal, sides=6)
    for sign in (-1, 1):
        m.bar(near + (0, sign * 0.095, 0), rear + (0, sign * 0.035, 0.05), 0.004, black, sides=6)
        tip = crank + turn @ (sign * 0.165, 0, sign * 0.07)
        m.bar(crank + (0, 0, sign * 0.07), tip, (0.016, 0.01), metal)
        m.bar(tip - (0.04, 0, 0), tip + (0.04, 0, sign * 0.03), (0.05, 0.016), black)
    since = len(m.parts)
    _wheel(m, r, spokes, metal, black)
    m.move(since, offset=rear)
    since = len(m.parts)  # what turns with the handlebar
    _wheel(m, r, spokes, metal, black)
    m.move(since, offset=front)
    crown, top, back = neck + (0.02, -0.02, 0), head + (-0.03, rng.uniform(0.1, 0.16), 0), rng.uniform(-0.22, 0.1)
    m.bar(crown - (0, 0, 0.06), crown + (0, 0, 0.06), 0.014, frame)
    m.bar(head, top, 0.012, metal)
    for z in (-1, 1):
        side = (0, 0, z * 0.055)
        m.sweep(curve(front + side, front + (-0.06, 0.2, 0) + side, crown + side), 0.011, frame)
        bar = curve(top, top + (0.08, 0.02, z * 0.1), top + (0.05, 0.06, z * 0.3), top + (back, 0.02, z * 0.29))
        m.sweep(bar, 0.011, metal)
        m.sweep(bar[-5:], 0.016, black)
    pivot = np.array([neck[0], 0, 0])  # the head tube stands nearly upright here
    m.move(since, offset=-pivot)
    m.move(since, rotation("y", rng.uniform(-0.5, 0.5)), pivot)
    m.bar(crank + (-0.08, -0.02, 0.02), crank + (-0.14, -0.28, 0.16), 0.008, metal)  # the stand


def chair(m: Model) -> None:
    """Build a chair with a slatted seat and a spindle or slatted back."""
    rng, timber = m.rng, _one_of(m.rng, wood, wood, paint)
    w, d, seat, top = rng.uniform(0.4, 0.5), rng.uniform(0.38, 0.46), 0.45, rng.uniform(0.85, 1.1)
    leg, lean = (0.036, 0.036), rng.uniform(0.04, 0.12)
    for x in (-w / 2, w / 2):
        m.bar((x, 0, d / 2), (x, seat, d / 2), leg, timber, up=ACROSS)
        m.sweep(curve((x, 0, -d / 2 - 0.04), (x, seat, -d / 2), (x, top, -d / 2 - lean)), leg, timber, up=ACROSS)
        for y in (0.14, 0.3)[: int(rng.integers(1, 3))]:
            m.bar((x, y, -d / 2), (x, y, d / 2), (0.03, 0.018), timber, up=UP)
        m.bar((x, seat - 0.04, -d / 2), (x, seat - 0.04, d / 2), (0.05, 0.02), timber, up=UP)
    for z in (-d / 2, d / 2):
        m.bar((-w / 2, seat - 0.04, z), (w / 2, seat - 0.04, z), (0.05, 0.02), timber, up=UP)
    slats, half = int(rng.integers(6, 11)), w / 2 + 0.02
    for z in np.linspace(-d / 2, d / 2 + 0.02, slats):
        m.bar((-half, seat, z), (half, seat, z), (d / slats * 0.66, 0.014), timber, up=OUT)
    back, low = -d / 2 - lean * 0.55, seat + 0.07
    rail = curve((-w / 2, top - 0.03, back - 0.04), (0, top + 0.03, back - 0.07), (w / 2, top - 0.03, back - 0.04))
    m.sweep(rail, (0.07, 0.02), timber, up=UP)
    m.bar((-w / 2, low, -d / 2), (w / 2, low, -d / 2), (0.04, 0.02), timber, up=UP)
    thick = 0.008 if rng.random() < 0.5 else (0.026, 0.01)  # spindles or slats between two rails
    for x in np.linspace(-w / 2, w / 2, int(rng.integers(6, 11)))[1:-1]:
        m.bar((x, low, -d / 2), (x, top - 0.03, back - 0.055), thick, timber, up=ACROSS)


def trellis(m: Model) -> None:
    """Build a framed lattice, diamond or square."""
    rng, timber = m.rng, _one_of(m.rng, wood, paint)
    w, h, foot = rng.uniform(0.8, 1.5), rng.uniform(1.1, 1.9), rng.uniform(0, 0.15)
    step, lath, post = rng.uniform(0.11, 0.2), (0.01, rng.uniform(0.02, 0.03)), rng.uniform(0.03, 0.05)
    if rng.random() < 0.65:  # lines x + s * y = c within the frame
        for s, c in itertools.product((-1, 1), np.arange(-h - w, h + w, step * 1.4)):
            low, high = max(0, s * c - w / 2), min(h, s * c + w / 2)
            if high - low > 0.03:
                a, b = ((c - s * y, y + foot, 0.006 * s) for y in (low, high))
                m.bar(a, b, lath, timber, up=OUT)
    else:
        for x in np.arange(-w / 2 + step, w / 2 - 0.03, step):
            m.bar((x, foot, 0.006), (x, h + foot, 0.006), lath, timber, up=OUT)
        for y in np.arange(step, h - 0.03, step) + foot:
            m.bar((-w / 2, y, -0.006), (w / 2, y, -0.006), lath, timber, up=OUT)
    for x, y in ((-w / 2, foot), (w / 2, h + foot)):
        m.bar((x, 0, 0), (x, h + foot + 0.02, 0), (post, post), timber, up=OUT)
        m.bar((-w / 2 - 0.02, y, 0), (w / 2 + 0.02, y, 0), (post, post * 0.9), timber, up=OUT)


def gate(m: Model) -> None:
    """Build a wrought-iron gate or railing with pickets, scrolls and spear heads."""
    rng, metal = m.rng, iron(m.rng)
    w, h, bulge, bar = rng.uniform(1.0, 1.8), rng.uniform(1.0, 1.5), rng.uniform(-0.12, 0.3), rng.uniform(0.01, 0.014)
    xs, fine = np.linspace(-w / 2, w / 2, int(rng.integers(9, 16))), np.linspace(-w / 2, w / 2, 40)
    m.sweep(np.stack([fine, h + bulge * np.cos(np.pi * fine / w), 0 * fine], -1), (0.025, 0.014), metal, up=UP)
    for y in (0.1, 0.1 + h * rng.uniform(0.15, 0.25), h - 0.14):
        m.bar((-w / 2, y, 0), (w / 2, y, 0), (0.028, 0.012), metal, up=UP)
    spear, tip = rng.uniform(0.08, 0.15), np.linspace(0, 1, 7)
    profile = np.interp(tip, [0, 0.15, 0.4, 1], [0.6, 1.1, 2.1, 0.1]) * bar
    for x, y in zip(xs, h + bulge * np.cos(np.pi * xs / w), strict=True):
        m.bar((x, 0.1, 0), (x, y + spear * 0.6, 0), bar, metal, sides=8)
        m.sweep(np.stack([0 * tip + x, y + spear * (0.5 + 0.6 * tip), 0 * tip], -1), profile, metal)
    for x in (-w / 2 - 0.04, w / 2 + 0.04):
        m.bar((x, 0, 0), (x, h + 0.12, 0), (0.05, 0.05), metal, up=ACROSS)
        m.ball((x, h + 0.16, 0), 0.04, metal)
    gap, turns = xs[1] - xs[0], np.linspace(0, 1, 44)
    r = gap * 0.4 * (1 - turns * 0.8)
    for x in (xs[:-1] + xs[1:]) / 2:  # an S of two spirals between each pair of pickets
        for way in (-1, 1):
            angle, center = way * np.pi / 2 + turns * 2.7 * np.pi, h * 0.55 + way * gap * 0.4
            spiral = [x + (1 if x < 0 else -1) * r * np.cos(angle), center - r * np.sin(angle), 0 * r]
            m.sweep(np.stack(spiral, -1), bar * 0.6, metal, sides=6)


def fern(m: Model) -> None:
    """Build a potted palm or fern: arching fronds of many leaflets."""
    rng, leaf = m.rng, foliage(m.rng)
    r, h = rng.uniform(0.13, 0.2), rng.uniform(0.2, 0.34)
    radii = np.array([0.02, 0.72, 0.74, 1.0, 1.0, 1.08, 1.08, 0.95, 0.93, 0.02]) * r
    m.turned((0, 0, 0), radii, np.array([0, 0, 0.02, 0.8, 0.82, 0.83, 1, 1, 0.9, 0.88]) * h, paint(rng))
    stem = replace(leaf, color=scaled(leaf.color, 0.6), thin=False)
    for k in range(int(rng.integers(9, 15))):
        out = rotation("y", k * 2.4 + rng.normal(0, 0.2)) @ ACROSS
        reach, rise = rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.9)
        bend = [(0, h, 0) + out * 0.02, (0, h + rise, 0) + out * reach * 0.3, (0, h + rise, 0) + out * reach]
        path = curve(*bend, (0, h + rise * rng.uniform(0.2, 0.6), 0) + out * reach * 1.25, count=30)
        m.sweep(path, np.linspace(0.006, 0.0015, 30), stem, sides=6)
        for j in range(6, 30):
            way = unit(path[j] - path[j - 1])
            side, length = unit(np.cross(way, UP)), 0.22 * np.sin(np.pi * (j - 4) / 27) + 0.03
            for s in (-1, 1):
                m.leaf(path[j], unit(way * 0.8 + s * side + (0, rng.normal(0, 0.15), 0)), length, leaf, 0.16)


def birdcage(m: Model) -> None:
    """Build a domed wire cage with a ring, a perch and a solid tray."""
    rng, wire = m.rng, _one_of(m.rng, steel, iron, paint)
    r, h, count, thick = rng.uniform(0.18, 0.24), rng.uniform(0.35, 0.5), int(rng.integers(20, 30)), 0.0044
    tray = wire if rng.random() < 0.5 else wood(rng)
    m.turned((0, 0, 0), np.array([0.01, 1.06, 1.08, 1.04, 1.0]) * r, [0, 0, 0.03, 0.045, 0.046], tray)
    rise = rng.uniform(0.7, 1.2) * r
    for x, z in _circle(count) * r:
        out = np.array([x, 0, z])
        dome = [out + (0, h, 0), out + (0, h + rise * 0.6, 0), out * 0.45 + (0, h + rise, 0)]
        m.sweep(np.concatenate([[out + (0, 0.04, 0)], curve(*dome, (0, h + rise, 0))]), thick, wire, sides=6)
    for y in (0.04, h * 0.35, h * 0.7, h):
        m.sweep(arc((0, 0, 0), r, count=60) @ rotation("x", np.pi / 2).T + (0, y, 0), thick * 1.7, wire, sides=6)
    m.sweep(arc((0, h + rise + 0.035, 0), 0.035, count=30), thick * 1.4, wire, sides=6)
    m.bar((-r, h * 0.4, 0), (r, h * 0.4, 0), 0.006, wood(rng))


def basket(m: Model) -> None:
    """Build a wire basket with two handles."""
    rng, wire = m.rng, _one_of(m.rng, steel, iron, paint)
    w, d, h = rng.uniform(0.4, 0.55), rng.uniform(0.26, 0.36), rng.uniform(0.2, 0.3)
    flare, thick, t = rng.uniform(1.05, 1.35), rng.uniform(0.0038, 0.005), np.linspace(0, 2 * np.pi, 73)

    def ring(y: float) -> Array:  # a rounded rectangle that widens with height
        grow, x, z = 1 + (flare - 1) * y / h, np.cos(t), np.sin(t)
        k = (np.abs(x) ** 5 + np.abs(z) ** 5) ** (-1 / 5)
        return np.stack([x * k * w / 2 * grow, 0 * t + y, z * k * d / 2 * grow], -1)

    floor, rim = ring(0.004), ring(h)
    for y in np.linspace(0.004, h, int(rng.integers(5, 9))):
        m.sweep(ring(y), thick * (2 if y == h else 1), wire, sides=6)
    upright = [(floor[k], rim[k]) for k in range(0, 72, 2)]
    across = [(floor[k], floor[72 - k]) for k in range(2, 36, 2)]
    along = [(floor[k % 72], floor[(36 - k) % 72]) for k in range(-16, 17, 4)]
    for a, b in upright + across + along:
        m.bar(a, b, thick, wire, sides=6)
    for z, lean in ((24, 0.5), (-24, rng.uniform(-0.6, 0.6))):
        a, b, lift = rim[(z - 6) % 72], rim[(z + 6) % 72], np.array([0, 0.16, lean * 0.1])
        m.sweep(curve(a, a + lift, b + lift, b, count=20), thick * 1.8, wire, sides=8)


KINDS: dict[str, Callable[[Model], None]] = {
    build.__name__: build for build in (basket, bicycle, birdcage, chair, fern, gate, trellis)
}
"""Functions that add an object to a model: in meters, standing on y = 0, with its face towards +z."""
