"""The kinds of objects in the sample set, each thin or perforated, as random models in meters."""

# ruff: noqa: RUF005  (a tuple added to an array is a shift, not a concatenation)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from sample_scenes.materials import Array, Material, Rng, bark, clay, foliage, iron, paint, rubber, scaled, steel, wood
from sample_scenes.mesh import ACROSS, OUT, UP, Model, arc, curve, hoop, rotation, unit


def _wire_or_paint(rng: Rng) -> Material:
    return [steel, iron, paint][rng.integers(3)](rng)


def _wheel(m: Model, radius: float, spokes: int, metal: Material, tire: Material) -> None:
    """Add a wheel with laced wire spokes in the x-y plane about the origin."""
    m.sweep(arc((0, 0, 0), radius - 0.016, count=72), 0.017, tire)
    m.sweep(arc((0, 0, 0), radius - 0.042, count=72), (0.02, 0.012), metal, up=OUT)
    m.bar((0, 0, -0.04), (0, 0, 0.04), 0.018, metal, sides=18)
    for k in range(spokes):
        angle = 2 * np.pi * k / spokes
        lead = angle + 0.9 * (-1) ** (k // 2)
        start = np.array([np.cos(lead), np.sin(lead), 0.9 * (-1) ** k]) * 0.03
        m.bar(start, np.array([np.cos(angle), np.sin(angle), 0]) * (radius - 0.045), 0.0022, metal, sides=6)


def bicycle(m: Model) -> None:
    """Build a city or road bicycle."""
    rng, frame, metal, black = m.rng, paint(m.rng), steel(m.rng), rubber(m.rng)
    r, base, spokes = 0.34, rng.uniform(0.98, 1.1), int(rng.choice([20, 24, 28]))
    rear, crank, front = np.array([-base * 0.43, r, 0]), np.array([0, 0.28, 0]), np.array([base * 0.57, r, 0])
    seat, head = np.array([-0.16, 0.78, 0]), np.array([base * 0.57 - 0.16, rng.uniform(0.76, 0.84), 0])
    neck, dropped = head + (0.03, -0.11, 0), rng.random() < 0.35
    for a, b in [(crank, seat), (crank, neck), (seat + (0.02, -0.1 * dropped, 0), crank * 0.8 if dropped else head)]:
        m.bar(a, b, 0.016, frame)
    if dropped:
        m.bar(crank + (-0.05, 0.2, 0), neck, 0.016, frame)
    m.bar(neck + (0.01, -0.03, 0), head + (-0.015, 0.05, 0), 0.02, frame)
    for z in (-0.055, 0.055):
        m.bar(crank + (0, 0, z * 0.5), rear + (0, 0, z), 0.009, frame)
        m.bar(seat + (0.01, -0.06, z * 0.3), rear + (0, 0, z), 0.008, frame)
    m.bar(seat, seat + (-0.035, 0.13, 0), 0.012, metal)
    saddle = curve((-0.16, 0.02, 0), (-0.05, 0.05, 0), (0.05, 0.0, 0), (0.12, 0.0, 0)) + seat + (-0.03, 0.13, 0)
    m.sweep(saddle, np.interp(np.linspace(0, 1, 16), [0, 0.25, 0.6, 1], [0.03, 0.055, 0.03, 0.015]), black)
    # an outlined chainring with a star inside, two cranks, the chain's two runs
    near, turn = crank + (0, 0, 0.05), rng.uniform(0, 6.28)
    m.sweep(arc(near, 0.095, count=40), 0.006, metal, sides=6)
    for k in range(5):
        m.bar(near, arc(near, 0.09, turn + k * 2 * np.pi / 5, count=1)[0], 0.006, metal, sides=6)
    for sign in (-1, 1):
        m.bar(near + (0, sign * 0.095, 0), rear + (0, sign * 0.035, 0.05), 0.004, black, sides=6)
        tip = crank + sign * np.array([0.165 * np.cos(turn), 0.165 * np.sin(turn), 0.07])
        m.bar(crank + (0, 0, sign * 0.07), tip, (0.016, 0.01), metal)
        m.bar(tip - (0.04, 0, 0), tip + (0.04, 0, sign * 0.03), (0.05, 0.016), black)
    since = len(m.parts)
    _wheel(m, r, spokes, metal, black)
    if rng.random() < 0.6:
        m.sweep(arc((0, 0, 0), r + 0.025, 0.2, 3.3), (0.045, 0.004), frame, up=OUT)
    m.move(since, offset=rear)
    since = len(m.parts)  # what turns with the handlebar, built about the front hub
    _wheel(m, r, spokes, metal, black)
    crown = neck - front + (0.02, -0.02, 0)
    for z in (-0.055, 0.055):
        m.sweep(curve((0, 0, z), (-0.06, 0.2, z), crown + (0, 0, z)), 0.011, frame)
    m.bar(crown - (0, 0, 0.06), crown + (0, 0, 0.06), 0.014, frame)
    top, back = head - front + (-0.03, rng.uniform(0.1, 0.16), 0), rng.uniform(-0.22, 0.1)
    m.bar(head - front, top, 0.012, metal)
    for z in (-1, 1):
        bar = curve(top, top + (0.08, 0.02, z * 0.1), top + (0.05, 0.06, z * 0.3), top + (back, 0.02, z * 0.29))
        m.sweep(bar, 0.011, metal)
        m.sweep(bar[-5:], 0.016, black)
    m.sweep(curve(top + (0, 0, 0.1), top + (0.2, 0.1, 0.1), (0.03, 0.4, 0.03), (0, 0.33, 0.02)), 0.003, black, sides=6)
    pivot = np.array([neck[0], 0, 0])  # the head tube stands nearly upright here
    m.move(since, offset=front - pivot)
    m.move(since, rotation("y", rng.uniform(-0.5, 0.5)), pivot)
    if rng.random() < 0.6:  # a carrier over the rear wheel
        for z in (-0.06, 0, 0.06):
            m.bar(rear + (-0.2, 0.4, z), rear + (0.22, 0.4, z), 0.005, metal, sides=6)
            m.bar(rear + (3 * z, 0.4, -0.06), rear + (3 * z, 0.4, 0.06), 0.005, metal, sides=6)
        for x, z in ((-0.15, -0.07), (-0.15, 0.07), (0.05, -0.07), (0.05, 0.07)):
            m.bar(rear + (0, 0, z), rear + (x, 0.4, z), 0.005, metal, sides=6)
    m.bar(crank + (-0.08, -0.02, 0.02), crank + (-0.14, -0.28, 0.16), 0.008, metal)


def chair(m: Model) -> None:
    """Build a chair with a slatted seat and a slatted, spindle or ladder back."""
    rng, timber = m.rng, (wood if m.rng.random() < 0.6 else paint)(m.rng)
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
    back, low, style = -d / 2 - lean * 0.55, seat + 0.07, rng.integers(3)
    rail = curve((-w / 2, top - 0.03, back - 0.04), (0, top + 0.03, back - 0.07), (w / 2, top - 0.03, back - 0.04))
    m.sweep(rail, (0.07, 0.02), timber, up=UP)
    if style == 0:  # ladder back
        for y in np.linspace(seat + 0.12, top - 0.14, int(rng.integers(3, 5))):
            rung = curve((-w / 2, y, back), (0, y + 0.02, back - 0.04), (w / 2, y, back))
            m.sweep(rung, (0.045, 0.014), timber, up=UP)
        return
    m.bar((-w / 2, low, -d / 2), (w / 2, low, -d / 2), (0.04, 0.02), timber, up=UP)
    for x in np.linspace(-w / 2, w / 2, int(rng.integers(6, 11)))[1:-1]:  # spindles or slats between two rails
        m.bar(
            (x, low, -d / 2), (x, top - 0.03, back - 0.055), 0.008 if style == 1 else (0.026, 0.01), timber, up=ACROSS
        )


def _vine(m: Model, path: Array, leaves: int, stem: Material, leaf: Material) -> None:
    """Add a winding stem with leaves on stalks to both sides."""
    m.sweep(path, np.linspace(0.008, 0.002, len(path)), stem, sides=6)
    for _ in range(leaves):
        at = path[int(m.rng.integers(len(path) // 8, len(path)))]
        way = unit(m.rng.normal(0, 1, 3) + (0, 0.2, 0.5))
        tip = at + way * 0.08 * m.rng.uniform(0.4, 1)
        m.bar(at, tip, 0.0015, stem, sides=5)
        m.leaf(tip, unit(way + m.rng.normal(0, 0.5, 3) + (0, -0.4, 0)), 0.1 * m.rng.uniform(0.6, 1.2), leaf)


def trellis(m: Model) -> None:
    """Build a framed lattice, diamond or square, sometimes climbed by a plant."""
    rng, timber = m.rng, (wood if m.rng.random() < 0.5 else paint)(m.rng)
    w, h, foot = rng.uniform(0.8, 1.5), rng.uniform(1.1, 1.9), rng.uniform(0, 0.15)
    step, lath, post = rng.uniform(0.11, 0.2), (0.01, rng.uniform(0.016, 0.028)), rng.uniform(0.03, 0.05)
    if rng.random() < 0.65:  # diamond: lines x + s * y = c clipped to the frame
        for s in (-1, 1):
            for c in np.arange(-h - w, h + w, step * 1.4):
                ys = np.array([0, h, (c + w / 2) * s, (c - w / 2) * s])
                ends = np.stack([c - s * ys, ys + foot, 0 * ys + 0.006 * s], -1)
                ends = ends[(np.abs(ends[:, 0]) <= w / 2 + 1e-6) & (np.abs(ys - h / 2) <= h / 2 + 1e-6)]
                ends = ends[np.argsort(ends[:, 0])]
                if len(ends) >= 2 and np.linalg.norm(ends[-1] - ends[0]) > 0.05:
                    m.bar(ends[0], ends[-1], lath, timber, up=OUT)
    else:
        for x in np.arange(-w / 2 + step, w / 2 - 0.03, step):
            m.bar((x, foot, 0.006), (x, h + foot, 0.006), lath, timber, up=OUT)
        for y in np.arange(step, h - 0.03, step) + foot:
            m.bar((-w / 2, y, -0.006), (w / 2, y, -0.006), lath, timber, up=OUT)
    for x, y in ((-w / 2, foot), (w / 2, h + foot)):
        m.bar((x, 0, 0), (x, h + foot + 0.02, 0), (post, post), timber, up=OUT)
        m.bar((-w / 2 - 0.02, y, 0), (w / 2 + 0.02, y, 0), (post, post * 0.9), timber, up=OUT)
    if rng.random() < 0.45:
        stem, leaf = bark(rng), foliage(rng)
        for _ in range(int(rng.integers(2, 4))):
            y = np.linspace(0, h * rng.uniform(0.6, 1), 40)
            x = rng.uniform(-w / 3, w / 3) + 0.1 * np.sin(y * rng.uniform(4, 8)) + y * rng.uniform(-0.2, 0.2)
            _vine(m, np.stack([x, y, 0.02 * np.cos(y * 9)], -1), 26, stem, leaf)


def gate(m: Model) -> None:
    """Build a wrought-iron gate or railing with pickets, scrolls and spear heads."""
    rng, metal = m.rng, iron(m.rng)
    w, h, bulge, bar = rng.uniform(1.0, 1.8), rng.uniform(1.0, 1.5), rng.uniform(-0.12, 0.3), rng.uniform(0.007, 0.011)
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
    gap, turns, rings = xs[1] - xs[0], np.linspace(0, 1, 44), rng.random() < 0.6
    r = gap * 0.4 * (1 - turns * 0.8)
    for x in (xs[:-1] + xs[1:]) / 2:  # an S of two spirals between each pair of pickets
        for way in (-1, 1):
            angle, center = way * np.pi / 2 + turns * 2.7 * np.pi, h * 0.55 + way * gap * 0.4
            spiral = [x + (1 if x < 0 else -1) * r * np.cos(angle), center - r * np.sin(angle), 0 * r]
            m.sweep(np.stack(spiral, -1), bar * 0.6, metal, sides=6)
        if rings:
            m.sweep(arc((x, 0.17, 0), gap * 0.34, count=26), bar * 0.6, metal, sides=6)


def fern(m: Model) -> None:
    """Build a potted palm or fern: arching fronds of many leaflets."""
    rng, leaf = m.rng, foliage(m.rng)
    r, h = rng.uniform(0.13, 0.2), rng.uniform(0.2, 0.34)
    radii = np.array([0.02, 0.72, 0.74, 1.0, 1.0, 1.08, 1.08, 0.95, 0.93, 0.02]) * r
    m.turned((0, 0, 0), radii, np.array([0, 0, 0.02, 0.8, 0.82, 0.83, 1, 1, 0.9, 0.88]) * h, clay(rng))
    stem = replace(bark(rng), color=scaled(leaf.color, 0.8), contrast=0.2)
    for k in range(int(rng.integers(9, 15))):
        angle = k * 2.4 + rng.normal(0, 0.2)
        out = np.array([np.cos(angle), 0, np.sin(angle)])
        reach, rise = rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.9)
        bend = [(0, h, 0) + out * 0.02, (0, h + rise, 0) + out * reach * 0.3, (0, h + rise, 0) + out * reach]
        path = curve(*bend, (0, h + rise * rng.uniform(0.2, 0.6), 0) + out * reach * 1.25, count=30)
        m.sweep(path, np.linspace(0.006, 0.0015, 30), stem, sides=6)
        for j in range(6, 30):
            way = unit(path[j] - path[j - 1])
            side, length = unit(np.cross(way, UP)), 0.22 * np.sin(np.pi * (j - 4) / 27) + 0.03
            for s in (-1, 1):
                m.leaf(path[j], unit(way * 0.8 + s * side + (0, rng.normal(0, 0.15), 0)), length, leaf, 0.16)


def windpump(m: Model) -> None:
    """Build a farm windpump: a braced lattice tower, a rotor of many blades, a tail vane."""
    rng, metal, blades = m.rng, (iron if m.rng.random() < 0.5 else steel)(m.rng), replace(paint(m.rng), thin=True)
    h, foot, top, bays = rng.uniform(3.4, 4.4), rng.uniform(0.5, 0.7), 0.07, int(rng.integers(5, 8))
    levels = h * (1 - (1 - np.linspace(0, 1, bays + 1)) ** 1.35)
    half = foot + (top - foot) * levels / h
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    for (sx, sz), (tx, tz) in zip(corners, corners[1:] + corners[:1], strict=True):
        m.bar((sx * foot, 0, sz * foot), (sx * top, h, sz * top), (0.033, 0.033), metal)
        for (y0, y1), (w0, w1) in zip(pairwise(levels), pairwise(half), strict=True):
            m.bar((sx * w0, y0, sz * w0), (tx * w1, y1, tz * w1), 0.011, metal, sides=6)
            m.bar((tx * w0, y0, tz * w0), (sx * w1, y1, sz * w1), 0.011, metal, sides=6)
            m.bar((sx * w1, y1, sz * w1), (tx * w1, y1, tz * w1), 0.013, metal, sides=6)
    hub, r, count = np.array([0, h + 0.05, 0.22]), rng.uniform(0.8, 1.1), int(rng.integers(10, 18))
    since = len(m.parts)
    m.bar((0, 0, -0.1), (0, 0, 0.05), 0.05, metal, sides=14)
    for radius in (r * 0.5, r * 0.95):
        m.sweep(arc((0, 0, -0.02), radius, count=60), 0.009, metal, sides=6)
    t, s = np.meshgrid(np.linspace(0.38, 1, 8), np.linspace(-0.5, 0.5, 5), indexing="ij")
    width = 2.2 * r / count * (0.5 + 0.9 * t)
    blade = np.stack([s * width * 1.2, t * r, s * width * 0.7 + 0.04 * s**2], -1)
    for k in range(count):
        turn = rotation("z", 2 * np.pi * k / count)
        m.bar((0, 0, 0), turn @ (0, r * 0.97, 0), 0.009, metal, sides=6)
        m.grid(blade @ turn.T, None, np.stack([t, s * 0.2], -1), blades)
    m.move(since, rotation("z", rng.uniform(0, 1)), hub)
    m.bar((0, h + 0.05, 0.2), (0, h + 0.05, -1.0), 0.016, metal)
    u, v = np.meshgrid(np.linspace(0, 1, 6), np.linspace(-1, 1, 5), indexing="ij")
    vane = np.stack([0 * u, h + 0.05 + v * (0.14 + 0.2 * u), -0.75 - 0.5 * u], -1)
    m.grid(vane, None, np.stack([u, v], -1), blades)


def birdcage(m: Model) -> None:
    """Build a domed wire cage with a ring, a perch, a swing and a solid tray."""
    rng, wire = m.rng, _wire_or_paint(m.rng)
    r, h, count, thick = rng.uniform(0.18, 0.24), rng.uniform(0.35, 0.5), int(rng.integers(22, 34)), 0.0027
    tray = wire if rng.random() < 0.5 else wood(rng)
    m.turned((0, 0, 0), np.array([0.01, 1.06, 1.08, 1.04, 1.0]) * r, [0, 0, 0.03, 0.045, 0.046], tray)
    rise = rng.uniform(0.7, 1.2) * r
    for k in range(count):
        a = 2 * np.pi * k / count
        out = np.array([np.cos(a), 0, np.sin(a)]) * r
        dome = [out + (0, h, 0), out + (0, h + rise * 0.6, 0), out * 0.45 + (0, h + rise, 0)]
        m.sweep(np.concatenate([[out + (0, 0.04, 0)], curve(*dome, (0, h + rise, 0))]), thick, wire, sides=6)
    for y in (0.04, h * 0.35, h * 0.7, h):
        m.sweep(hoop(y, r), thick * 1.7, wire, sides=6)
    m.sweep(arc((0, h + rise + 0.035, 0), 0.035, count=30), thick * 1.4, wire, sides=6)
    m.bar((-r, h * 0.4, 0), (r, h * 0.4, 0), 0.006, wood(rng))
    swing = curve((-0.05, h + rise, 0), (-0.06, h * 0.5, 0), (0.06, h * 0.5, 0), (0.05, h + rise, 0))
    m.sweep(swing, 0.003, wire, sides=6)


def basket(m: Model) -> None:
    """Build a wire basket with two handles."""
    rng, wire = m.rng, _wire_or_paint(m.rng)
    w, d, h = rng.uniform(0.4, 0.55), rng.uniform(0.26, 0.36), rng.uniform(0.2, 0.3)
    flare, thick, t = rng.uniform(1.05, 1.35), rng.uniform(0.0024, 0.0032), np.linspace(0, 2 * np.pi, 73)

    def ring(y: float) -> Array:  # a rounded rectangle that widens with height
        grow, x, z = 1 + (flare - 1) * y / h, np.cos(t), np.sin(t)
        k = (np.abs(x) ** 5 + np.abs(z) ** 5) ** (-1 / 5)
        return np.stack([x * k * w / 2 * grow, 0 * t + y, z * k * d / 2 * grow], -1)

    floor, rim = ring(0.004), ring(h)
    for y in np.linspace(0.004, h, int(rng.integers(5, 9))):
        m.sweep(ring(y), thick * (2 if y == h else 1), wire, sides=6)
    for k in range(0, 72, 2):
        m.bar(floor[k], rim[k], thick, wire, sides=6)
    for k in range(2, 36, 2):
        m.bar(floor[k], floor[72 - k], thick, wire, sides=6)
    for k in range(-16, 17, 4):
        m.bar(floor[k % 72], floor[(36 - k) % 72], thick, wire, sides=6)
    for z, lean in ((24, 0.5), (-24, rng.uniform(-0.6, 0.6))):
        a, b, lift = rim[(z - 6) % 72], rim[(z + 6) % 72], np.array([0, 0.16, lean * 0.1])
        m.sweep(curve(a, a + lift, b + lift, b, count=20), thick * 1.8, wire, sides=8)


_BUILDERS: dict[str, Callable[[Model], None]] = {
    f.__name__: f for f in (basket, bicycle, birdcage, chair, fern, gate, trellis, windpump)
}
KINDS: tuple[str, ...] = tuple(_BUILDERS)
"""Names of the kinds that `build` knows."""


def build(kind: str, rng: Rng) -> Model:
    """Build a random object of a kind.

    Args:
        kind: One of `KINDS`.
        rng: Decides the instance; equal generators build equal models.

    Returns:
        Its model, in meters, standing on y = 0 with its face towards +z.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in _BUILDERS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
    model = Model(rng)
    _BUILDERS[kind](model)
    return model
