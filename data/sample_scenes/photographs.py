"""The photographs inside scikit-image: parts of them for surroundings, and one whose ground truth was measured."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from IS_Net.images import read_image
from sample_scenes.materials import Array

REGIONS = {"DIS-TR": (0.0, 0.0, 0.5, 1.0), "DIS-VD": (0.5, 0.0, 1.0, 0.5), "DIS-TE1": (0.5, 0.5, 1.0, 1.0)}
"""The part of every photograph, (x0, y0, x1, y1) as shares of its size, that a split's surroundings come from."""
BACKDROPS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg")
TEXTURES = ("grass.png", "gravel.png")
MOTORCYCLE = ("motorcycle_left.png", "motorcycle_disp.npz")


def source_path(name: str) -> Path:
    """Return where scikit-image keeps one of the files it ships; raises FileNotFoundError if it is missing."""
    spec = find_spec("skimage")
    path = Path(spec.origin).parent / "data" / name if spec and spec.origin else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: scikit-image does not hold this file; install scikit-image 0.22 to 0.26")
    return path


@cache
def region(name: str, split: str) -> Array:
    """Return the split's part of a photograph, (h, w, 3) float32 linear RGB."""
    photo = read_image(source_path(name))
    h, w = photo.shape[:2]
    x0, y0, x1, y1 = REGIONS[split]
    return (photo[int(y0 * h) : int(y1 * h), int(x0 * w) : int(x1 * w)].astype(np.float32) / 255) ** 2.2


def motorcycle() -> tuple[Array, Array]:
    """Take the motorcycle's mask from the disparity of the Middlebury 2014 stereo data.

    Returns:
        The left photograph, (500, 741, 3) uint8 RGB, and where the motorcycle is, (500, 741) bool.
    """
    image = read_image(source_path(MOTORCYCLE[0]))
    with np.load(source_path(MOTORCYCLE[1])) as archive:
        disparity = archive["arr_0"].astype(np.float32)
    height, width = disparity.shape
    measured = np.isfinite(disparity)
    disparity = np.where(measured, disparity, 0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32([[[height]], [[width]]])
    # the floor's disparity, fitted where nothing stands on it; a quadric, because the concrete is not quite flat
    floor = measured & ((y > 0.92) | ((y > 0.66) & ((x < 0.148) | (x > 0.931))) | ((y > 0.8) & (x < 0.405)))
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
    plane = terms @ np.linalg.lstsq(terms[floor], disparity[floor], rcond=None)[0]
    mask = ((disparity > 38) & (disparity - plane > 0.45)).astype(np.uint8)  # the bench behind ends at 33
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    mask = (stats[:, cv2.CC_STAT_AREA] >= 50)[labels] & (labels > 0)  # handlebar and mirror hang on unmeasured pixels
    # unmeasured pixels are wall seen by one camera only, except where the motorcycle surrounds them
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~measured & ~mask).astype(np.uint8), connectivity=4)
    for k, (left, top, w, h, _) in enumerate(stats[1:], 1):
        window = np.s_[max(top - 1, 0) : top + h + 1, max(left - 1, 0) : left + w + 1]
        hole = labels[window] == k
        border = (cv2.dilate(hole.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0) & ~hole
        if mask[window][border].mean() > 0.65:
            mask[window] |= hole
    return image, mask


def motorcycle_pair(size: int | None) -> tuple[Array, Array]:
    """Return image and (H, W) uint8 ground truth at twice their size, or with `size` pixels on the longer side."""
    image, mask = motorcycle()
    scale = 2 if size is None else size / max(mask.shape)
    shape = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    smooth = cv2.resize(cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7), shape, interpolation=way)
    gt = np.clip((smooth - 0.5) * 2 + 0.5, 0, 1)  # steps of whole pixels become edges as soft as the photograph's
    return cv2.resize(image, shape, interpolation=way), np.round(gt * 255).astype(np.uint8)
