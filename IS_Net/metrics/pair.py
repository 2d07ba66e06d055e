"""What the metrics look at: a ground truth with all that depends on it alone, and a map laid over it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from IS_Net.images import binarize
from IS_Net.metrics.thinning import skeletonize

LEVELS = 256
REACH = 3
"""How far weighted F spreads errors: its Gaussian spans 7 x 7 pixels."""

_FAR = 2**16 - 1  # squared distances end here: 256 pixels off, weighted F has forgotten the distance


PARTS = {"skeleton": ("skeleton",), "distance": ("squared_distance", "band", "nearest")}
"""What is slow to compute of a ground truth, by name, and the arrays of :meth:`GroundTruth.arrays` that hold it."""


def _check(plane: np.ndarray | Tensor, what: str) -> None:
    shape, dtype = tuple(plane.shape), str(plane.dtype).removeprefix("torch.")
    if len(shape) != 2 or 0 in shape or dtype not in ("uint8", "bool"):
        raise ValueError(f"expected a {what} of shape (H, W), uint8 0..255 or bool; found {shape} {dtype}")


def _gray(plane: np.ndarray | Tensor, what: str) -> np.ndarray:
    plane = np.asarray(plane)
    _check(plane, what)
    return plane


def device_planes(pred: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """Return a map and its ground truth as uint8, checked as :class:`Pair` does; nothing is fetched from their device.

    Raises:
        ValueError: If the sizes or devices differ, or a shape or dtype is another.
    """
    if not isinstance(gt, Tensor) or gt.device != pred.device:
        found = gt.device if isinstance(gt, Tensor) else type(gt).__name__
        raise ValueError(f"expected a ground truth on the prediction's device, {pred.device}; found {found}")
    _check(pred, "prediction")
    _check(gt, "ground truth")
    check_same_size(pred, gt)
    pred, gt = (plane.to(torch.uint8) * 255 if plane.dtype == torch.bool else plane for plane in (pred, gt))
    return pred, gt


def check_same_size(pred: np.ndarray | Tensor, gt: np.ndarray | Tensor) -> None:
    """Raise ValueError, naming both sizes, where a map (H, W) is not of its ground truth's size."""
    if tuple(pred.shape) != tuple(gt.shape):
        sizes = [f"{plane.shape[1]} x {plane.shape[0]}" for plane in (pred, gt)]
        raise ValueError(
            f"the prediction is {sizes[0]} pixels, its ground truth {sizes[1]}; "
            "resize the prediction to the ground truth's size"
        )


class Band(NamedTuple):
    """The background that lies within ``REACH`` rows and columns of the object."""

    pixels: np.ndarray
    """(N,) int32: indices into the flat image."""
    nearest: np.ndarray
    """(N,) int32: the object's pixel that is nearest to each, likewise."""


class GroundTruth:
    """A ground truth, and what metrics need to know of it whatever the prediction.

    All but ``mask`` is computed when it is first asked for, and kept. The object can be pickled with what it knows;
    :meth:`arrays` gives that for storing, and ``known`` takes it back.

    Args:
        gt: (H, W) uint8, the object above 128, or bool; an array, or a tensor on the CPU.
        known: What :meth:`arrays` returned for the same ground truth, all or part of it.

    Raises:
        ValueError: If the shape or dtype is another.
    """

    def __init__(self, gt: np.ndarray | Tensor, known: Mapping[str, np.ndarray] | None = None) -> None:
        gt = _gray(gt, "ground truth")
        self.mask = gt.copy() if gt.dtype == bool else binarize(gt)  # the caller may draw on his own
        known = known or {}
        if "skeleton" in known:
            self.skeleton = np.unpackbits(known["skeleton"], count=gt.size).reshape(gt.shape).astype(bool)
        if "squared_distance" in known:
            self.squared_distance = known["squared_distance"]
            self.band = Band(known["band"], known["nearest"])

    def arrays(self, parts: Iterable[str] = tuple(PARTS)) -> dict[str, np.ndarray]:
        """Return what is slow to compute, computed, as arrays to store (``numpy.savez_compressed``, say).

        Args:
            parts: Which of ``PARTS``; the others are not computed.
        """
        make = {
            "skeleton": lambda: np.packbits(self.skeleton),
            "squared_distance": lambda: self.squared_distance,
            "band": lambda: self.band.pixels,
            "nearest": lambda: self.band.nearest,
        }
        return {name: make[name]() for part in parts for name in PARTS[part]}

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.mask.shape

    @cached_property
    def area(self) -> int:
        """The object's pixels."""
        return np.count_nonzero(self.mask)

    @cached_property
    def center(self) -> tuple[int, int]:
        """The row and column behind the object's center of mass, where S-measure cuts the image in four."""
        if not self.area:
            return self.shape[0] // 2, self.shape[1] // 2
        counts = np.count_nonzero(self.mask, axis=1), np.count_nonzero(self.mask, axis=0)
        # round() takes halves to the even neighbor, as the common implementation does
        row, column = (round(int(count @ np.arange(count.size)) / self.area) + 1 for count in counts)
        return row, column

    @cached_property
    def skeleton(self) -> np.ndarray:
        """(H, W) bool: the object thinned to lines of one pixel."""
        return skeletonize(self.mask)

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """(H, W) uint16: each pixel's squared distance from the object, 65535 where it is more or there is none."""
        distance = cv2.distanceTransform((~self.mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return np.rint(np.minimum(distance, math.sqrt(_FAR)) ** 2).astype(np.uint16)

    @cached_property
    def band(self) -> Band:
        """The background around the object, and the object's pixel that is nearest to each of its pixels.

        Of several at the same distance, the nearest is that of the lowest column, and there of the lowest row.
        """
        width = self.shape[1]
        box = np.ones((2 * REACH + 1, 2 * REACH + 1), np.uint8)
        around = cv2.dilate(self.mask.view(np.uint8), box).view(bool) & ~self.mask
        pixels = np.flatnonzero(around)
        nearest = np.empty(pixels.size, np.int32)
        rows, columns = np.divmod(pixels, width)
        places = (rows + REACH + 1) * (width + 2 * REACH + 2) + columns + REACH + 1
        padded = np.pad(self.mask, REACH + 1).ravel()
        squared = self.squared_distance.flat[pixels]
        near = range(-REACH - 1, REACH + 2)  # a corner of the box is 4.2 pixels off
        for distance in np.unique(squared):
            left = np.flatnonzero(squared == distance)
            for dx, dy in [(dx, dy) for dx in near for dy in near if dx**2 + dy**2 == distance]:
                hit = padded[places[left] + dy * (width + 2 * REACH + 2) + dx]
                found, left = left[hit], left[~hit]
                nearest[found] = pixels[found] + dy * width + dx
        return Band(pixels.astype(np.int32), nearest)


class Pair:
    """A predicted map over its ground truth: what a metric's ``measure`` takes.

    Metrics that are measured on one pair share what they count.

    Args:
        pred: (H, W) uint8, the map as it is saved, or bool; an array, or a tensor on the CPU. It is not stretched.
        gt: A ground truth; an array or tensor is made one.

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is another.
    """

    def __init__(self, pred: np.ndarray | Tensor, gt: np.ndarray | Tensor | GroundTruth) -> None:
        pred = _gray(pred, "prediction")
        self.pred = pred * np.uint8(255) if pred.dtype == bool else pred
        self.gt = gt if isinstance(gt, GroundTruth) else GroundTruth(gt)
        check_same_size(self.pred, self.gt)

    @cached_property
    def quarters(self) -> np.ndarray:
        """(4, 2, 256) int64: pixels by quarter of the image, outside or inside of the object, and the map's level.

        The image is cut at the ground truth's center; quarters run upper left, upper right, lower left, lower right.
        """
        row, column = self.gt.center
        halves = [
            (rows, columns)
            for rows in (slice(row), slice(row, None))
            for columns in (slice(column), slice(column, None))
        ]
        counts = np.empty((4, 2, LEVELS), np.int64)
        for count, half in zip(counts, halves, strict=True):
            count[:] = _levels(self.pred[half])
            count[1] = _levels(self.pred[half], self.gt.mask[half])
            count[0] -= count[1]
        return counts

    @cached_property
    def levels(self) -> np.ndarray:
        """(2, 256) int64: pixels outside and inside of the object, by the map's level."""
        return self.quarters.sum(axis=0)


def _levels(pred: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Return how many pixels (inside of the mask) are of each level, (256,) int64."""
    counts = np.zeros(LEVELS, np.int64)
    if pred.size == 0:
        return counts
    rows = max(1, 2**24 // pred.shape[1])  # OpenCV counts in floats, which are exact up to here
    for top in range(0, pred.shape[0], rows):
        part = np.s_[top : top + rows]
        inside = None if mask is None else mask[part].view(np.uint8)
        counts += cv2.calcHist([pred[part]], [0], inside, [LEVELS], [0, LEVELS]).ravel().astype(np.int64)
    return counts


class Metric:
    """The mean over images of what ``measure`` gives for one: the base of the accumulators.

    ``update(pred, gt)`` measures a pair and adds it. Where measuring runs elsewhere, in a worker process or for
    several metrics on one :class:`Pair`, ``add(metric.measure(pair))`` does the same in two steps.
    """

    def __init__(self) -> None:
        self._sum: Any = 0.0
        self._images = 0

    def measure(self, pair: Pair) -> Any:
        """Return what is averaged, of one image: a number or an array."""
        raise NotImplementedError

    def add(self, measured: Any) -> None:
        """Add one image's measure."""
        self._sum = self._sum + measured
        self._images += 1

    def update(self, pred: np.ndarray | Tensor, gt: np.ndarray | Tensor | GroundTruth) -> None:
        """Add one image, as :class:`Pair` takes it."""
        self.add(self.measure(Pair(pred, gt)))

    def mean(self) -> Any:
        """Return the measures' mean; nan where there was no image."""
        return self._sum / self._images if self._images else math.nan

    def compute(self) -> dict[str, float]:
        """Return the figures over all images by their names; nan where there was none."""
        raise NotImplementedError
