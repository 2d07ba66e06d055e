"""Put drawn objects into their surroundings: image and ground truth pairs."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from sample_scenes.kinds import KINDS, build
from sample_scenes.materials import Array, Rng
from sample_scenes.mesh import Model, rotation
from sample_scenes.render import Camera, Cutout, render
from sample_scenes.surroundings import make_scene

SHAPES = ((1024, 1024), (1024, 1536), (1200, 1600), (1080, 1440), (960, 1280), (1440, 1080), (1280, 1024), (1024, 1366))
PLACES = {
    "basket": "oi", "bicycle": "oio", "birdcage": "ib", "chair": "oii", "fern": "oiib", "gate": "oowb",
    "trellis": "oiwb", "windpump": "ob",
}  # fmt: skip
"""The places in which a kind is shown, as `make_scene` takes them; one that is listed twice is twice as frequent."""


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
    covered = np.zeros((h, w, max((c.targets.shape[2] for c in cutouts), default=1)), np.float32)
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


def _turned(kind: str, rng: Rng, most: float) -> Model:
    model = build(kind, rng)
    model.move(0, rotation("y", rng.uniform(-most, most) + (np.pi if rng.random() < 0.4 else 0)))
    return model


def _apart(one: Model, at: Array, other: Model, there: Array, axes: tuple[int, int]) -> bool:
    """Return whether the boxes around two models leave a gap along one of the axes."""
    (low, high), (low2, high2) = one.bounds(), other.bounds()
    return any(at[k] + low[k] > there[k] + high2[k] or at[k] + high[k] < there[k] + low2[k] for k in axes)


def make_pair(kind: str, split: str, rng: Rng, size: int | None = None) -> tuple[Array, Array]:
    """Make one image of an object, sometimes with others, and its ground truth.

    Args:
        kind: One of `KINDS`.
        split: One of `REGIONS`.
        rng: Decides everything else.
        size: Length of the longer side in pixels; None varies it from 1024 to 1600.

    Returns:
        (H, W, 3) uint8 sRGB image and (H, W) uint8 ground truth.
    """
    h, w = SHAPES[int(rng.integers(len(SHAPES)))]
    if size is not None:
        h, w = round(h * size / max(h, w)), round(w * size / max(h, w))
    place = str(rng.choice(list(PLACES[kind])))
    model = _turned(kind, rng, 0.3 if place == "w" else 0.8)
    low, high = model.bounds()
    extent, hangs = high - low, kind == "birdcage"
    # pixels per meter, from how much of the frame the object fills; now and then the frame cuts it
    fill = rng.uniform(0.62, 0.9) if rng.random() < 0.8 else rng.uniform(0.95, 1.1)
    if place == "b" and not hangs:
        fill = rng.uniform(0.9, 1.3)  # its foot is below the frame
    scale = fill * min(h / extent[1], w / extent[0])
    distance = max(rng.uniform(1.3, 2.2) * max(h, w) / scale, float(extent[2]) * 1.5)
    focal = distance * scale
    if place in "oi":
        foot = h * rng.uniform(0.84, 0.96) if fill < 1 else h * rng.uniform(0.95, 1.1)
        eye = float(np.clip(rng.uniform(0.5, 1.15) * extent[1], 0.35, 2.2))
        camera = Camera(focal, eye, (w / 2, foot - scale * eye))
        middle = np.array([rng.uniform(-0.1, 0.1) * w / scale, 0, -distance])
    else:
        eye = float(extent[1]) / 2
        camera = Camera(focal, eye, (w / 2, h / 2))
        middle = np.array([rng.uniform(-0.06, 0.06) * w / scale, 0, -distance])
        if place == "b" and hangs:
            model.bar((0, high[1], 0), (0, high[1] + 3, 0), 0.0025, model.materials[-1])
        elif place == "b":
            middle[1] = (h / 2 - h * rng.uniform(1.03, 1.15)) / scale + eye
    wall = distance - low[2] + 0.02 if place == "w" else distance
    scene = make_scene(place, camera, wall, (h, w), rng, split)
    things = [(model, middle)]
    wanted = 1 + int(rng.choice(4, p=[0.45, 0.28, 0.18, 0.09])) if place != "b" else 1
    for _ in range(0 if wanted == 1 else 4 * wanted):
        extra = _turned(str(rng.choice([k for k in KINDS if place in PLACES[k]])), rng, 0.3 if place == "w" else 1.2)
        a, b = extra.bounds()
        if place == "w":
            depth = wall + a[2] - 0.02  # its back touches the wall
            spot = np.array([*(rng.uniform(-0.5, 0.5, 2) * (w, h) / scale), -depth])
            spot[1] += eye - (a[1] + b[1]) / 2
        else:
            depth = distance * rng.uniform(0.95, 1.7)
            spot = np.array([rng.uniform(-0.48, 0.48) * w * depth / focal, 0, -depth])
        seen = (b[1] - a[1]) * focal / depth
        if not 0.2 * h < seen < 1.3 * h or depth - b[2] < 0.3 * distance or depth - a[2] > scene.far + 0.03:
            continue
        if all(_apart(extra, spot, m, at, (0, 1) if place == "w" else (0, 2)) for m, at in things):
            things.append((extra, spot))
        if len(things) == wanted:
            break
    mean, cutouts = scene.image.mean((0, 1)), []
    for one, at in sorted(things, key=lambda thing: thing[1][2]):
        tint = mean if rng.random() < 0.3 else None  # camouflage
        cutouts.append(render(one, camera, scene.light, at, (h, w), rng, scene.screen, tint))
    image, gts = compose(scene.image, [c for c in cutouts if c is not None], rng)
    return image, gts[0]
