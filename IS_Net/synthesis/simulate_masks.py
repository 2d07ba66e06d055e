"""Coarse masks simulated from the ground truth: what sources of all kinds get wrong.

Trained on these, the second stage is tied to no one source. Real masks of SAM ViT-L, beside the truth, show: borders
of a 256 x 256 map, frayed edges rounded, slats bridged and holes box_or_hull, thin cords in dashes or gone, and, where SAM
is unsure, a grid-like speckle of small blocks. Weaker sources (GrabCut, a filled box, a scribble) are wrong by whole
pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from IS_Net.images import binarize
from IS_Net.preprocess import box_from_mask

GRABCUT_SIDES = (160, 256, 400, 600)
"""GrabCut runs on an image of one of these sizes: its mistakes are much the same, in a tenth of a second to one."""


def _smooth_noise(rng: np.random.Generator, cells: int, n: int) -> np.ndarray:
    """Return an (n, n) float32 field of about unit variance that varies over n / cells pixels."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (n, n), interpolation=cv2.INTER_CUBIC)


def _ellipse(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _at_side(gt: np.ndarray, n: int) -> np.ndarray:
    """Return a ground truth as an (n, n) float32 map in [0, 1]."""
    return cv2.resize(gt, (n, n), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _speckle(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn small blocks of a mask over, where a promptable model would be unsure: in parts of the object's reach."""
    n, block = len(mask), int(rng.integers(1, 4))
    reach = cv2.dilate(mask, _ellipse(2 * int(rng.integers(2, max(n // 12, 4))) + 1))
    unsure = _smooth_noise(rng, int(rng.integers(3, 9)), n) > rng.uniform(0.6, 1.5)
    side = -(-n // block)
    blocks = (rng.random((side, side)) < rng.uniform(0.2, 0.5)).astype(np.uint8)
    period = int(rng.integers(2, 5))  # the decoder's upsampling leaves a grid
    grid = np.add.outer(np.arange(side), np.zeros(side, int)) % period == 0
    blocks[grid & grid.T] ^= 1
    blocks = np.kron(blocks, np.ones((block, block), np.uint8))[:n, :n]
    return np.where(unsure & (reach > 0), mask ^ blocks, mask)


def sam_like(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate the mask of a promptable model (SAM, HQ-SAM): right as a whole, coarse in its parts."""
    n = int(rng.choice([64, 96, 128, 128, 192, 256]))
    soft = cv2.GaussianBlur(_at_side(gt, n), (0, 0), rng.uniform(0.4, 1.6))
    band = np.ones((int(rng.integers(1, 4)) * 2 + 1,) * 2)
    border = cv2.dilate(soft, band) - cv2.erode(soft, band)
    soft += rng.uniform(0, 0.4) * _smooth_noise(rng, n // int(rng.integers(3, 13)), n) * border
    mask = (soft > rng.uniform(0.4, 0.6)).astype(np.uint8)
    if rng.random() < 0.3:  # thin parts come in dashes, or not at all
        thick = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _ellipse(int(rng.choice([3, 5]))))
        kept = _smooth_noise(rng, n // int(rng.integers(3, 9)), n) > rng.uniform(-1, 1)
        mask = np.where(kept, mask, thick)
    if rng.random() < 0.6:
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _ellipse(int(rng.choice([3, 5, 7]))))
    if rng.random() < 0.2:
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _ellipse(3))
    if rng.random() < 0.15:  # holes are filled
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(mask, contours, -1, 1, cv2.FILLED)
    if rng.random() < 0.2:  # a piece is dropped, or one beside the object added
        piece = _smooth_noise(rng, int(rng.integers(4, 10)), n) > 1.6
        near = cv2.dilate(mask, _ellipse(n // 10)) > 0
        mask = np.where(piece & near, np.uint8(rng.random() < 0.5), mask)
    if rng.random() < 0.25:
        mask = _speckle(mask, rng)
    return _enlarge(mask, gt.shape)


def _enlarge(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    grown = cv2.resize(mask.astype(np.float32), shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(grown > 0.5, np.uint8(255), np.uint8(0))


def grabcut(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let GrabCut find the object in its box: it follows colors, whatever they belong to."""
    box = box_from_mask(gt)
    if box is None:
        return np.zeros_like(gt)
    reach = max(box[2] - box[0], box[3] - box[1], 16)  # around the box, to learn the background from
    top, left = max(box[1] - reach, 0), max(box[0] - reach, 0)
    window = np.s_[top : box[3] + reach + 1, left : box[2] + reach + 1]
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
    labels = np.zeros(size[::-1], np.uint8)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(int(rng.integers(2**31)))
    rounds = int(rng.integers(1, 6))
    try:
        cv2.grabCut(small, labels, (x0, y0, max(x1 - x0, 1), max(y1 - y0, 1)), *models, rounds, cv2.GC_INIT_WITH_RECT)
    except cv2.error:  # a box of too few colors
        return box_or_hull(gt, image, rng)
    mask = np.zeros_like(gt)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    mask[window] = _enlarge(found.astype(np.uint8), (height, width))
    return mask if mask.any() else box_or_hull(gt, image, rng)


def drop_parts(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Drop large pieces of the object, add large pieces beside it, or both; the new borders are ragged."""
    n = 160
    mask = (_at_side(gt, n) > 0.5).astype(np.uint8)
    ragged = rng.uniform(0, 0.5) * _smooth_noise(rng, n // 2, n)
    if rng.random() < 0.7:
        mask &= _smooth_noise(rng, int(rng.integers(2, 7)), n) + ragged < rng.uniform(0, 1)
    if rng.random() < 0.6:
        reach = cv2.dilate(mask, _ellipse(2 * int(rng.integers(3, 20)) + 1))
        mask |= reach & (_smooth_noise(rng, int(rng.integers(2, 9)), n) + ragged > rng.uniform(0, 1))
    return _enlarge(mask, gt.shape)


def leak_background(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take the box apart by its colors and places, and some parts for the object that are none, or the reverse.

    So GrabCut does where it fails, which on the few photographs of a training set it does too rarely: what is behind
    the object comes with it, up to the box, and parts of the object go.
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
    inside = cv2.resize(gt[window], size, interpolation=cv2.INTER_AREA) > 128
    rows, columns = np.mgrid[: size[1], : size[0]] * (rng.uniform(0, 200) / max(size))
    points = np.dstack((cv2.GaussianBlur(lab, (0, 0), 1).astype(np.float32), rows, columns))
    number = int(rng.integers(3, 16))
    centers = points[rng.integers(size[1], size=number), rng.integers(size[0], size=number)]
    parts = np.stack([np.square(points - center).sum(2) for center in centers]).argmin(0)
    joined = rng.random(number) < rng.uniform(0.1, 0.7)
    lost = rng.random(number) < (rng.uniform(0, 0.5) if rng.random() < 0.5 else 0)
    found = np.where(inside, ~lost[parts], joined[parts])
    if (found & inside).sum() < 0.5 * inside.sum():
        found |= inside
    mask = np.zeros_like(gt)
    mask[window] = _enlarge(cv2.medianBlur(found.astype(np.uint8), 3), shape)
    return mask


def box_or_hull(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill the object's box, an ellipse in it, or its convex hull."""
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
    """Draw a few broad strokes over the object, as by hand."""
    rows, columns = np.nonzero(binarize(gt))
    mask = np.zeros_like(gt)
    if not len(rows):
        return mask
    extent = max(np.ptp(rows), np.ptp(columns), 8)
    for _ in range(int(rng.integers(1, 4))):
        chosen = rng.integers(len(rows), size=int(rng.integers(2, 6)))
        stroke = np.stack((columns[chosen], rows[chosen]), axis=1).astype(np.int32)
        cv2.polylines(mask, [stroke], False, 255, max(int(extent * rng.uniform(0.02, 0.15)), 2))
    return mask


def binarize_to_uint8(gt: np.ndarray) -> np.ndarray:
    """Return the ground truth itself as a mask of 0 and 255."""
    return np.where(binarize(gt), np.uint8(255), np.uint8(0))


def exact(gt: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the perfect mask, which is not to be damaged."""
    return binarize_to_uint8(gt)


Source = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

MASK_SOURCES: dict[Source, float] = {
    sam_like: 0.32,
    grabcut: 0.24,
    leak_background: 0.22,
    drop_parts: 0.05,
    exact: 0.12,
    box_or_hull: 0.03,
    scribble: 0.02,
}
"""What a training mask comes from, and how often."""

RELIABLE_SOURCES: dict[Source, float] = {sam_like: 0.85, exact: 0.15}
"""Likewise, where nothing but the mask tells what is meant: none that is wrong by most of the object."""


def simulate_mask(
    gt: np.ndarray, image: np.ndarray, rng: np.random.Generator, sources: Mapping[Source, float] = MASK_SOURCES
) -> np.ndarray:
    """Simulate the coarse mask of an object.

    Args:
        gt: (H, W) uint8 0..255.
        image: (3, H, W) uint8 RGB; GrabCut looks at it.
        rng: Where the chances come from; the same state gives the same mask.
        sources: One of them is drawn, by these shares.

    Returns:
        (H, W) uint8, 0 or 255; empty only where the ground truth is, or next to.
    """
    source = rng.choice(list(sources), p=list(sources.values()))
    mask = source(gt, image, rng)
    return mask if mask.any() else binarize_to_uint8(gt)
