"""Colors, noise and the materials of drawn objects. Colors are linear-light RGB."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

Array = np.ndarray
Rng = np.random.Generator
Color = tuple[float, float, float]
Range = tuple[float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class Material:
    """How a surface looks."""

    color: Color  # linear RGB albedo, each in [0, 1]
    stain: Color = (0.05, 0.03, 0.02)  # linear RGB that the texture mixes in (rust, dirt, darker grain)
    stained: float = 0.1  # share of the surface that `stain` covers, in [0, 1]
    stretch: Range = (1.0, 1.0)  # texture frequency along and around the part, in tiles per meter
    contrast: float = 0.15  # amplitude of the fine texture
    metal: float = 0.0  # share of mirrored surroundings, in [0, 1]
    gloss: float = 0.2  # strength of the highlight, in [0, 1]
    thin: bool = False  # for sheets, which show both faces and let some light through


RUBBER = Material((0.04, 0.04, 0.04), (0.15, 0.13, 0.1), 0.25, (2, 6), 0.3, gloss=0.15)


def linear(hue: float, saturation: float, value: float) -> Color:
    """Return a color, hue in degrees and the others in [0, 1], as linear RGB."""
    rgb = cv2.cvtColor(np.float32([[[hue % 360, saturation, value]]]), cv2.COLOR_HSV2RGB)[0, 0]
    return tuple(float(c) for c in rgb**2.2)


def random_color(rng: Rng, hue: Range, saturation: Range, value: Range) -> Color:
    """Draw a linear RGB color from ranges of hue (degrees), saturation and value."""
    return linear(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value))


def scaled(color: Color, factor: float) -> Color:
    """Return a color at another brightness; no channel exceeds 1."""
    return tuple(min(float(c) * factor, 1.0) for c in color)


def noise(rng: Rng, size: int = 512, octaves: int = 7, roughness: float = 0.6) -> Array:
    """Make fractal noise (size, size) float32 that tiles, of mean 0 and standard deviation 1."""
    total = np.zeros((size, size), np.float32)
    for k in range(octaves):
        cells = min(4 * 2**k, size)
        layer = np.pad(rng.standard_normal((cells, cells)).astype(np.float32), 2, mode="wrap")
        scale = size // cells
        layer = cv2.resize(layer, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        total += roughness**k * layer[2 * scale : 2 * scale + size, 2 * scale : 2 * scale + size]
    return (total - total.mean()) / total.std()


def wood(rng: Rng) -> Material:
    """Raw, oiled or weathered wood with grain along the part."""
    color = random_color(rng, (16, 36), (0.12, 0.62), (0.3, 0.8))
    dark = scaled(color, rng.uniform(0.2, 0.5))
    return Material(color, dark, rng.uniform(0.3, 0.5), (0.5, rng.uniform(5, 9)), 0.35, gloss=rng.uniform(0, 0.3))


def paint(rng: Rng) -> Material:
    """Painted wood or metal with worn and dirty places."""
    color = random_color(rng, (0, 360), (0.05, 0.1) if rng.random() < 0.3 else (0.2, 0.85), (0.25, 0.9))
    stain = random_color(rng, (15, 40), (0.2, 0.6), (0.15, 0.5))
    return Material(color, stain, rng.uniform(0.02, 0.3), (1.5, 3.0), 0.12, gloss=rng.uniform(0.1, 0.8))


def steel(rng: Rng) -> Material:
    """Bare or chromed metal."""
    color = random_color(rng, (20, 240), (0, 0.12), (0.55, 0.9))
    metal, gloss = rng.uniform(0.5, 0.9), rng.uniform(0.5, 1)
    return Material(color, linear(25, 0.5, 0.3), rng.uniform(0, 0.15), (1, 4), 0.1, metal, gloss)


def iron(rng: Rng) -> Material:
    """Dark wrought iron, rusted to some degree."""
    color = random_color(rng, (0, 360), (0, 0.25), (0.12, 0.4))
    rust = random_color(rng, (12, 28), (0.5, 0.8), (0.25, 0.5))
    return Material(color, rust, rng.uniform(0.05, 0.7), (2, 3), 0.3, 0.1, rng.uniform(0.1, 0.5))


def foliage(rng: Rng) -> Material:
    """Leaves: mostly green, sometimes autumnal."""
    hue = rng.uniform(70, 135) if rng.random() < 0.75 else rng.uniform(5, 60)
    color = random_color(rng, (hue, hue), (0.35, 0.8), (0.3, 0.7))
    gloss = rng.uniform(0.1, 0.5)
    return Material(color, linear(hue - 25, 0.6, 0.6), rng.uniform(0.05, 0.3), (3, 3), 0.3, gloss=gloss, thin=True)
