"""Example pictures that need no network: photographs of scikit-image, if it is installed, else drawings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from IS_Net.images import encode_image


@dataclass(frozen=True)
class Example:
    """An example picture.

    Attributes:
        name: Of the file, with its extension.
        title: What the picture shows.
        source: Where it comes from.
        load: Returns the content of the file.
    """

    name: str
    title: str
    source: str
    load: Callable[[], bytes]


_PHOTOGRAPHS = {"chelsea.png": "Cat", "coffee.png": "Coffee", "astronaut.png": "Astronaut"}


def find_examples() -> dict[str, Example]:
    """Return the examples by name: three photographs of scikit-image, or two drawings."""
    spec = find_spec("skimage")  # finds the package without importing it
    folder = Path(spec.origin).parent / "data" if spec is not None and spec.origin else None
    if folder is not None and all((folder / name).is_file() for name in _PHOTOGRAPHS):
        found = [
            Example(name, title, "photographs of scikit-image's test data", (folder / name).read_bytes)
            for name, title in _PHOTOGRAPHS.items()
        ]
    else:
        found = [
            Example("wheel.png", "Wheel", "drawn by DIS-SAM", cache(lambda: encode_image(draw_wheel(), ".png"))),
            Example("branch.png", "Branch", "drawn by DIS-SAM", cache(lambda: encode_image(draw_branch(), ".png"))),
        ]
    return {example.name: example for example in found}


def _gradient(top: tuple[int, int, int], bottom: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    """Return a vertical gradient with some texture, (height, width, 3) uint8."""
    ramp = np.linspace(0, 1, height)[:, None, None]
    colors = (1 - ramp) * np.array(top) + ramp * np.array(bottom)
    noise = np.random.default_rng(0).normal(0, 4, (height // 8, width // 8, 3))
    return np.clip(colors + cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def _reduce(canvas: np.ndarray) -> np.ndarray:
    return cv2.resize(canvas, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # smooth edges


def draw_wheel() -> np.ndarray:
    """Return a picture of a spoked wheel in front of a wall, (800, 1200, 3) uint8 RGB."""
    canvas = _gradient((176, 190, 197), (120, 111, 100), 1600, 2400)
    cv2.rectangle(canvas, (0, 1330), (2400, 1600), (96, 84, 74), -1)
    center = np.array((1180, 780))
    cv2.ellipse(canvas, (1200, 1372), (560, 36), 0, 0, 360, (66, 57, 50), -1, cv2.LINE_AA)
    for k in range(28):
        angle, twist = 2 * np.pi * k / 28, 0.45 * (-1) ** k
        hub = center + 52 * np.array((np.cos(angle + twist), np.sin(angle + twist)))
        rim = center + 530 * np.array((np.cos(angle), np.sin(angle)))
        cv2.line(canvas, tuple(hub.astype(int)), tuple(rim.astype(int)), (226, 228, 230), 5, cv2.LINE_AA)
    cv2.circle(canvas, tuple(center), 570, (32, 33, 36), 48, cv2.LINE_AA)
    cv2.circle(canvas, tuple(center), 532, (198, 60, 48), 22, cv2.LINE_AA)
    cv2.circle(canvas, tuple(center), 62, (54, 58, 64), -1, cv2.LINE_AA)
    cv2.circle(canvas, tuple(center), 22, (205, 208, 212), -1, cv2.LINE_AA)
    return _reduce(canvas)


def draw_branch() -> np.ndarray:
    """Return a picture of a branch with leaves in front of the sky, (1200, 900, 3) uint8 RGB."""
    canvas = _gradient((126, 178, 226), (226, 236, 242), 2400, 1800)
    rng = np.random.default_rng(3)

    def grow(start: np.ndarray, angle: float, length: float, thickness: float) -> None:
        end = start + length * np.array((np.cos(angle), -np.sin(angle)))
        ends = [tuple(point.astype(int)) for point in (start, end)]
        cv2.line(canvas, *ends, (92, 66, 48), max(int(thickness), 2), cv2.LINE_AA)
        if length < 90:
            axes, tilt = (int(rng.integers(46, 66)), int(rng.integers(16, 24))), -np.degrees(angle)
            green = (int(rng.integers(40, 80)), int(rng.integers(110, 160)), int(rng.integers(40, 70)))
            cv2.ellipse(canvas, ends[1], axes, tilt, 0, 360, green, -1, cv2.LINE_AA)
            return
        for turn in (rng.uniform(0.25, 0.6), -rng.uniform(0.25, 0.6)):
            grow(end, angle + turn, length * rng.uniform(0.68, 0.8), thickness * 0.66)

    grow(np.array((880.0, 2400.0)), np.pi / 2, 520, 64)
    return _reduce(canvas)
