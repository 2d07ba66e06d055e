"""Put drawn objects into their surroundings: image and ground truth pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from sample_scenes.kinds import KINDS
from sample_scenes.materials import Array, Rng
from sample_scenes.mesh import Model, rotation
from sample_scenes.render import Camera, Cutout, render
from sample_scenes.surroundings import make_scene

SHAPES = ((1024, 1024), (1024, 1536), (1200, 1600), (1080, 1440), (960, 1280), (1440, 1080), (1280, 1024), (1024, 1366))


def compose(background: Array, cutouts: Sequence[Cutout], rng: Rng) -> tuple[Array, Array]:
    """Put cut-outs into a picture as one exposure: same lens, same sensor.

    Args:
        background: (H, W, 3) float32 linear RGB in [0, 1].
        cutouts: What stands in it, furthest first.
        rng: Decides lens, sensor and development.

    Returns:
        image: (H, W, 3) uint8 sRGB.
        gts: (T, H, W) uint8, how much of each pixel each target covers; shadows are not part of it.
    """
    image = background.astype(np.float32)
    h, w = image.shape[:2]
    covered = np.zeros((h, w, max(c.targets.shape[2] for c in cutouts)), np.float32)
    windows = [np.s_[y : y + c.shadow.shape[0], x : x + c.shadow.shape[1]] for c in cutouts for x, y in [c.corner]]
    for cutout, window in zip(cutouts, windows, strict=True):
        image[window] *= 1 - cutout.shadow[..., None]
    for cutout, window in zip(cutouts, windows, strict=True):
        clear = 1 - np.clip(cutout.rgba[..., 3:], 0, 1)
        image[window] = image[window] * clear + cutout.rgba[..., :3]
        covered[window] *= clear
        covered[window][..., : cutout.targets.shape[2]] += cutout.targets
    sigma = rng.uniform(0.3, 0.65)  # the lens, the same for all, so no edge is sharper than another
    image = cv2.GaussianBlur(image, (0, 0), sigma)
    gts = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in np.moveaxis(covered, 2, 0)])
    across, down = (np.linspace(-0.5, 0.5, n, dtype=np.float32) ** 2 for n in (w, h))
    fall_off = 1 - np.float32(rng.uniform(0, 0.5)) * (across + down[:, None])
    exposure = np.clip(rng.uniform(0.7, 0.95) / max(float(np.quantile(image[::4, ::4], 0.98)), 0.05), 0.5, 2.5)
    image *= fall_off[..., None] * np.float32(exposure * (1 + rng.normal(0, 0.03, 3)))
    grain = cv2.GaussianBlur(rng.standard_normal((h, w, 3), np.float32), (0, 0), 0.5)  # neighbors are demosaiced
    grain *= np.float32(1.6 * rng.uniform(0.5, 1.8))
    image += grain * cv2.sqrt(np.clip(image, 0, 1) * np.float32(2e-4) + np.float32(2e-6))
    shown = cv2.pow(np.clip(image, 0, 1), 1 / 2.2)
    shown += np.float32(rng.uniform(-0.05, 0.12)) * (shown - 0.5) * (1 - np.abs(2 * shown - 1))  # the tone curve
    return np.uint8(np.round(np.clip(shown, 0, 1) * 255)), np.uint8(np.round(np.clip(gts, 0, 1) * 255))


def _built(kind: str, rng: Rng, most: float) -> Model:
    """Build an object and turn it about the vertical, at most by an angle from its front or its back."""
    model = Model(rng)
    KINDS[kind](model)
    model.move(0, rotation("y", rng.uniform(-most, most) + (np.pi if rng.random() < 0.4 else 0)))
    return model


def _seen(model: Model, spot: Array, camera: Camera) -> tuple[Array, Array]:
    """Return the top left and the bottom right corner, (2,) each, of the box around a model at a spot, in pixels."""
    points = np.concatenate([camera.project(part[..., :3] + spot)[..., :2].reshape(-1, 2) for part in model.parts])
    return points.min(0), points.max(0)


def make_pair(kind: str, split: str, rng: Rng, size: int | None = None) -> tuple[Array, Array]:
    """Make one image of an object, sometimes with others, and its ground truth.

    All objects are wholly inside the frame, but now and then it cuts the first one of a training image.

    Args:
        kind: One of `KINDS`.
        split: One of `REGIONS`.
        rng: Decides everything else.
        size: Length of the longer side in pixels; None varies it from 1024 to 1600.

    Returns:
        (H, W, 3) uint8 sRGB image and (H, W) uint8 ground truth.
    """
    frame = h, w = SHAPES[int(rng.integers(len(SHAPES)))]
    if size is not None:
        frame = h, w = round(h * size / max(h, w)), round(w * size / max(h, w))
    upright = kind in ("gate", "trellis") and rng.random() < 0.3  # before a wall
    model = _built(kind, rng, 0.3 if upright else 0.8)
    low, high = model.bounds()
    distance = rng.uniform(1.5, 2.6) * float((high - low).max())
    spot = np.array([0, 0, -distance])
    # a camera of one pixel tells how large the object looks; then it gets its share of the frame and a place in it
    camera = Camera(1.0, float(np.clip(rng.uniform(0.5, 1.15) * high[1], 0.35, 2.2)), (0.0, 0.0))
    first, last = _seen(model, spot, camera)
    fill = rng.uniform(0.95, 1.2) if split == "DIS-TR" and rng.random() < 0.2 else rng.uniform(0.78, 0.93)
    focal = float(fill * ((w, h) / (last - first)).min())
    left, top = rng.uniform((0.35, 0.5), (0.65, 0.9)) * ((w, h) - focal * (last - first)) - focal * first
    camera = replace(camera, focal=focal, center=(float(left), float(top)))
    back = distance - low[2] + 0.02 if upright else distance
    background, light, far = make_scene(camera, back, frame, rng, split, upright=upright)
    things, boxes = [(model, spot)], [_seen(model, spot, camera)]
    wanted = 1 if upright else 1 + int(rng.choice(4, p=[0.55, 0.25, 0.13, 0.07]))
    for _ in range(8 * wanted):
        if len(things) == wanted:
            break
        extra = _built(str(rng.choice(list(KINDS))), rng, 1.2)
        depth = distance * rng.uniform(0.95, 1.7)
        spot = np.array([rng.uniform(-0.48, 0.48) * w * depth / focal, 0, -depth])
        first, last = _seen(extra, spot, camera)
        inside = (first > 0.01 * w).all() and (last < (0.99 * w, 0.99 * h)).all() and last[1] - first[1] > 0.2 * h
        apart = all((first > high).any() or (last < low).any() for low, high in boxes)
        if inside and apart and depth - extra.bounds()[0, 2] < far:
            things.append((extra, spot))
            boxes.append((first, last))
    mean, cutouts = background.mean((0, 1)), []
    for one, at in sorted(things, key=lambda thing: thing[1][2]):
        tint = mean if rng.random() < 0.2 else None  # camouflage
        cutouts.append(render(one, camera, light, at, frame, rng, tint))
    image, gts = compose(background, [c for c in cutouts if c is not None], rng)
    return image, gts[0]
