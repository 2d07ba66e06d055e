"""Simulate coarse masks from the ground truth, with the errors of different sources of masks.

A network that is trained with these masks does not depend on a single source. The errors are those of real masks:

- Masks of SAM ViT-L have borders of a 256 x 256 map; frayed edges are rounded, gaps between slats and holes are
  filled, thin cords are interrupted or missing, and, where SAM is uncertain, there is a grid of small blocks.
- Weaker sources (GrabCut, a filled box, a scribble) miss or add whole parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from IS_Net.grabcut import grabcut as run_grabcut
from IS_Net.images import binarize
from IS_Net.preprocess import box_from_mask

GRABCUT_SIDES = (160, 256, 400, 600)
"""Longer sides of the images for GrabCut in pixels. At all of them, its errors are similar and it takes 0.1 to 1 s."""


def _smooth_noise(rng: np.random.Generator, cells: int, n: int) -> np.ndarray:
    """Return (n, n) float32 noise of about unit variance that varies over n / cells pixels."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (n, n), interpolation=cv2.INTER_CUBIC)


def _ellipse(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _resize_to_square(gt: np.ndarray, n: int) -> np.ndarray:
    """Resize a ground truth, (H, W) uint8, to an (n, n) float32 map in [0, 1]."""
    return cv2.resize(gt, (n, n), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _add_speckle(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Invert small blocks of an (n, n) mask of 0 and 1 on and near the target, as where SAM is uncertain."""
    n, block = len(mask), int(rng.integers(1, 4))
    near = cv2.dilate(mask, _ellipse(2 * int(rng.integers(2, max(n // 12, 4))) + 1))
    uncertain = _smooth_noise(rng, int(rng.integers(3, 9)), n) > rng.uniform(0.6, 1.5)
    side = -(-n // block)
    blocks = (rng.random((side, side)) < rng.uniform(0.2, 0.5)).astype(np.uint8)
    period = int(rng.integers(2, 5))  # the mask decoder's upsampling leaves a grid
    grid = np.add.outer(np.arange(side), np.zeros(side, int)) % period == 0
    blocks[grid & grid.T] ^= 1
    blocks = np.kron(blocks, np.ones((block, block), np.uint8))[:n, :n]
    return np.where(uncertain & (near > 0), mask ^ blocks, mask)


def sam_like(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate the mask of a promptable model (SAM, HQ-SAM): right as a whole, coarse in its details."""
    n = int(rng.choice([64, 96, 128, 128, 192, 256]))
    soft = cv2.GaussianBlur(_resize_to_square(gt, n), (0, 0), rng.uniform(0.4, 1.6))
    band = np.ones((int(rng.integers(1, 4)) * 2 + 1,) * 2)
    border = cv2.dilate(soft, band) - cv2.erode(soft, band)
    soft += rng.uniform(0, 0.4) * _smooth_noise(rng, n // int(rng.integers(3, 13)), n) * border
    mask = (soft > rng.uniform(0.4, 0.6)).astype(np.uint8)
    if rng.random() < 0.3:  # thin parts are interrupted or missing
        thick = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _ellipse(int(rng.choice([3, 5]))))
        keep = _smooth_noise(rng, n // int(rng.integers(3, 9)), n) > rng.uniform(-1, 1)
        mask = np.where(keep, mask, thick)
    if rng.random() < 0.6:
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _ellipse(int(rng.choice([3, 5, 7]))))
    if rng.random() < 0.2:
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _ellipse(3))
    if rng.random() < 0.15:  # holes are filled
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(mask, contours, -1, 1, cv2.FILLED)
    if rng.random() < 0.2:  # a part of the target is missing, or one beside it is added
        part = _smooth_noise(rng, int(rng.integers(4, 10)), n) > 1.6
        near = cv2.dilate(mask, _ellipse(n // 10)) > 0
        mask = np.where(part & near, np.uint8(rng.random() < 0.5), mask)
    if rng.random() < 0.25:
        mask = _add_speckle(mask, rng)
    return _enlarge(mask, gt.shape)


def _enlarge(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a mask of 0 and 1 to a uint8 mask of 0 and 255 with (height, width) ``shape``."""
    enlarged = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(enlarged > 0.5, np.uint8(255), np.uint8(0))


def grabcut(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Segment the target in its box with GrabCut, which follows colors, whatever object they belong to."""
    box = box_from_mask(gt)
    if box is None:
        return np.zeros_like(gt)
    margin = max(box[2] - box[0], box[3] - box[1], 16)  # around the box, to learn the colors of the background from
    top, left = max(box[1] - margin, 0), max(box[0] - margin, 0)
    window = np.s_[top : box[3] + margin + 1, left : box[2] + margin + 1]
    height, width = gt[window].shape
    scale = min(1.0, int(rng.choice(GRABCUT_SIDES)) / max(height, width))
    size = max(round(width * scale), 4), max(round(height * scale), 4)
    small = cv2.resize(
        np.ascontiguousarray(np.moveaxis(image[(slice(None), *window)], 0, 2)), size, interpolation=cv2.INTER_AREA
    )
    x0, y0 = max(round((box[0] - left) * scale), 1), max(round((box[1] - top) * scale), 1)
    x1, y1 = (
        min(round((end + 1) * scale), side - 1) for end, side in ((box[2] - left, size[0]), (box[3] - top, size[1]))
    )
    labels = np.full(size[::-1], cv2.GC_BGD, np.uint8)
    labels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = cv2.GC_PR_FGD
    seed, iterations = int(rng.integers(2**31)), int(rng.integers(1, 6))
    found = run_grabcut(small, labels, iterations, seed)
    mask = np.zeros_like(gt)
    if found is not None:
        mask[window] = _enlarge(found.astype(np.uint8), (height, width))
    return mask if mask.any() else box_or_hull(gt, image, rng)


def drop_parts(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Drop large parts of the target, add large parts beside it, or both, with ragged borders."""
    n = 160
    mask = (_resize_to_square(gt, n) > 0.5).astype(np.uint8)
    ragged = rng.uniform(0, 0.5) * _smooth_noise(rng, n // 2, n)
    if rng.random() < 0.7:
        mask &= _smooth_noise(rng, int(rng.integers(2, 7)), n) + ragged < rng.uniform(0, 1)
    if rng.random() < 0.6:
        near = cv2.dilate(mask, _ellipse(2 * int(rng.integers(3, 20)) + 1))
        mask |= near & (_smooth_noise(rng, int(rng.integers(2, 9)), n) + ragged > rng.uniform(0, 1))
    return _enlarge(mask, gt.shape)


def leak_background(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add parts of the background within the box to the mask, and drop parts of the target.

    The box is divided into parts by color and position. This imitates the failures of GrabCut, which are too rare on
    the few photographs of a training set: the mask includes background up to the box and misses parts of the target.
    """
    box = box_from_mask(gt)
    if box is None:
        return np.zeros_like(gt)
    window = np.s_[box[1] : box[3] + 1, box[0] : box[2] + 1]
    shape = gt[window].shape
    scale = min(1.0, int(rng.choice(GRABCUT_SIDES)) / max(shape))
    size = max(round(shape[1] * scale), 2), max(round(shape[0] * scale), 2)
    pixels = np.ascontiguousarray(np.moveaxis(image[(slice(None), *window)], 0, 2))
    lab = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)
    target = binarize(cv2.resize(gt[window], size, interpolation=cv2.INTER_AREA))
    rows, columns = np.mgrid[: size[1], : size[0]] * (rng.uniform(0, 200) / max(size))
    features = np.dstack((cv2.GaussianBlur(lab, (0, 0), 1).astype(np.float32), rows, columns))
    number = int(rng.integers(3, 16))
    centers = features[rng.integers(size[1], size=number), rng.integers(size[0], size=number)]
    parts = np.stack([np.square(features - center).sum(2) for center in centers]).argmin(0)
    added = rng.random(number) < rng.uniform(0.1, 0.7)
    dropped = rng.random(number) < (rng.uniform(0, 0.5) if rng.random() < 0.5 else 0)
    found = np.where(target, ~dropped[parts], added[parts])
    if (found & target).sum() < 0.5 * target.sum():
        found |= target
    mask = np.zeros_like(gt)
    mask[window] = _enlarge(cv2.medianBlur(found.astype(np.uint8), 3), shape)
    return mask


def box_or_hull(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill the target's box, an ellipse in the box, or the target's convex hull."""
    mask = np.zeros_like(gt)
    points = cv2.findNonZero(binarize(gt).view(np.uint8))
    if points is None:
        return mask
    x, y, w, h = cv2.boundingRect(points)
    kind = rng.integers(3)
    if kind == 0:
        mask[y : y + h, x : x + w] = 255
    elif kind == 1:
        cv2.ellipse(mask, (x + w // 2, y + h // 2), (max(w // 2, 1), max(h // 2, 1)), 0, 0, 360, 255, cv2.FILLED)
    else:
        cv2.fillConvexPoly(mask, cv2.convexHull(points), 255)
    return mask


def scribble(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a few broad strokes over the target, as a user might draw them by hand."""
    rows, columns = np.nonzero(binarize(gt))
    mask = np.zeros_like(gt)
    if not len(rows):
        return mask
    extent = max(np.ptp(rows), np.ptp(columns), 8)
    for _ in range(int(rng.integers(1, 4))):
        points = rng.integers(len(rows), size=int(rng.integers(2, 6)))
        stroke = np.stack((columns[points], rows[points]), axis=1).astype(np.int32)
        cv2.polylines(mask, [stroke], False, 255, max(int(extent * rng.uniform(0.02, 0.15)), 2))
    return mask


def binarize_to_uint8(gt: np.ndarray) -> np.ndarray:
    """Binarize a ground truth, (H, W) uint8, to a uint8 mask of 0 and 255."""
    return np.where(binarize(gt), np.uint8(255), np.uint8(0))


def exact(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the ground truth itself, so that the network learns to preserve a perfect mask."""
    return binarize_to_uint8(gt)


Source = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""Simulates masks from ground truth, image and random generator; see :func:`simulate_mask`. A mask may be empty."""

MASK_SOURCES: dict[Source, float] = {
    sam_like: 0.32,
    grabcut: 0.24,
    leak_background: 0.22,
    drop_parts: 0.05,
    exact: 0.12,
    box_or_hull: 0.03,
    scribble: 0.02,
}
"""Sources of simulated masks and their probabilities."""

RELIABLE_SOURCES: dict[Source, float] = {sam_like: 0.85, exact: 0.15}
"""Sources for samples in which only the mask indicates the target: their masks are never wrong by most of it."""


def simulate_mask(
    gt: np.ndarray, image: np.ndarray, rng: np.random.Generator, sources: Mapping[Source, float] = MASK_SOURCES
) -> np.ndarray:
    """Simulate the coarse mask of a target.

    Args:
        gt: (H, W) uint8 0..255, the ground truth.
        image: (3, H, W) uint8 RGB; the sources that follow colors use it.
        rng: Random generator; the same state gives the same mask.
        sources: Sources and their probabilities.

    Returns:
        (H, W) uint8, 0 or 255. If the source finds nothing, the binarized ground truth: the mask is empty only if the
        ground truth is.
    """
    source = rng.choice(list(sources), p=list(sources.values()))
    mask = source(gt, image, rng)
    return mask if mask.any() else binarize_to_uint8(gt)
