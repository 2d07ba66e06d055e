"""The input of the metrics: a ground truth with everything that depends only on it, and a map to compare with it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from IS_Net.images import binarize, size_mismatch
from IS_Net.metrics.thinning import skeletonize
from IS_Net.preprocess import box_from_mask

LEVELS = 256
REACH = 3
"""Radius in pixels of weighted F's Gaussian, which spans 7 x 7 pixels."""

EDGE_STEPS = 5
"""Number of bands around the edge in which mean boundary accuracy is measured."""

_FAR = 2**16 - 1  # the largest squared distance that is kept; weighted F is constant beyond 256 pixels

PARTS = {"skeleton": ("skeleton",), "distance": ("squared_distance", "band", "nearest")}
"""The parts of a ground truth that are slow to compute, and the names of their arrays in :meth:`GroundTruth.arrays`."""


def _check(plane: np.ndarray | Tensor, what: str) -> None:
    shape, dtype = tuple(plane.shape), str(plane.dtype).removeprefix("torch.")
    if len(shape) != 2 or 0 in shape or dtype not in ("uint8", "bool"):
        raise ValueError(f"expected a {what} of shape (H, W), uint8 0..255 or bool; found {shape} {dtype}")


def _gray(plane: np.ndarray | Tensor, what: str) -> np.ndarray:
    plane = np.asarray(plane)
    _check(plane, what)
    return plane


def device_planes(pred: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """Return a map and its ground truth as uint8, after the checks of :class:`Pair`, without a device-to-host copy.

    Raises:
        ValueError: If the sizes or devices differ, or a shape or dtype is wrong.
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
    """Raise ValueError, with both sizes, if a map (H, W) does not have the size of its ground truth."""
    if tuple(pred.shape) != tuple(gt.shape):
        raise ValueError(size_mismatch("the prediction", tuple(pred.shape), "its ground truth", tuple(gt.shape)))


class Band(NamedTuple):
    """The background within ``REACH`` rows and columns of the object."""

    pixels: np.ndarray
    """(N,) int32: indices into the flat image."""
    nearest: np.ndarray
    """(N,) int32: the nearest object pixel of each, as indices into the flat image."""


class GroundTruth:
    """A ground truth, and everything that metrics compute from it alone.

    All attributes except ``mask`` are computed at their first use and then kept. They are pickled with the object;
    :meth:`arrays` returns the slow ones for storage, and ``known`` takes them back.

    Args:
        gt: (H, W) uint8, the object above 128, or bool; an array, or a tensor on the CPU.
        known: The result of :meth:`arrays` for the same ground truth, or a part of it.

    Raises:
        ValueError: If the shape or dtype is wrong.
    """

    def __init__(self, gt: np.ndarray | Tensor, known: Mapping[str, np.ndarray] | None = None) -> None:
        gt = _gray(gt, "ground truth")
        self.mask = gt.copy() if gt.dtype == bool else binarize(gt)  # the caller may change its array later
        known = known or {}
        if "skeleton" in known:
            self.skeleton = np.unpackbits(known["skeleton"], count=gt.size).reshape(gt.shape).astype(bool)
        if "squared_distance" in known:
            self.squared_distance = known["squared_distance"]
            self.band = Band(known["band"], known["nearest"])

    def arrays(self, parts: Iterable[str] = tuple(PARTS)) -> dict[str, np.ndarray]:
        """Return the slow parts as arrays for storage, for example with ``numpy.savez_compressed``.

        Args:
            parts: Names from ``PARTS``; only these are computed.
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
        """The number of object pixels."""
        return np.count_nonzero(self.mask)

    @cached_property
    def center(self) -> tuple[int, int]:
        """The row and column after the object's center of mass, where S-measure divides the image into quarters."""
        if not self.area:
            return self.shape[0] // 2, self.shape[1] // 2
        counts = np.count_nonzero(self.mask, axis=1), np.count_nonzero(self.mask, axis=0)
        # round() rounds halves to even, like the common implementation
        row, column = (round(int(count @ np.arange(count.size)) / self.area) + 1 for count in counts)
        return row, column

    @cached_property
    def skeleton(self) -> np.ndarray:
        """(H, W) bool: the object thinned to lines one pixel wide."""
        return skeletonize(self.mask)

    @cached_property
    def squared_distance(self) -> np.ndarray:
        """(H, W) uint16: squared distance to the object in pixels; 65535 if it is larger or there is no object."""
        distance = cv2.distanceTransform((~self.mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return np.rint(np.minimum(distance, math.sqrt(_FAR)) ** 2).astype(np.uint16)

    @cached_property
    def band(self) -> Band:
        """The background around the object, with the nearest object pixel of each of its pixels.

        Ties go to the lowest column, then to the lowest row.
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
        near = range(-REACH - 1, REACH + 2)  # the corners of the box are 4.2 pixels away
        for distance in np.unique(squared):
            left = np.flatnonzero(squared == distance)
            for dx, dy in [(dx, dy) for dx in near for dy in near if dx**2 + dy**2 == distance]:
                hit = padded[places[left] + dy * (width + 2 * REACH + 2) + dx]
                found, left = left[hit], left[~hit]
                nearest[found] = pixels[found] + dy * width + dx
        return Band(pixels.astype(np.int32), nearest)

    @cached_property
    def edge_radii(self) -> list[int]:
        """The radii in pixels, in ascending order, of the bands in which mean boundary accuracy is measured.

        As in the published code, they are ``1 + int(k / 5 * ((H + W) / 300 - 1))`` for k = 0..4.
        """
        height, width = self.shape
        return [1 + int(((height + width) / 300 - 1) / EDGE_STEPS * step) for step in range(EDGE_STEPS)]

    @cached_property
    def edge_bands(self) -> np.ndarray:
        """(H, W) uint8: the number of bands around the object's edge that do not contain the pixel, 0..5.

        The bands contain each other, so a pixel with value k is in the bands of ``edge_radii[k:]``. A band of radius r
        holds the pixels that have a pixel of the other class within r, measured with OpenCV's elliptical kernel of
        2 r + 1 pixels as in the published code. The image border is not an edge.
        """
        bands = np.full(self.shape, EDGE_STEPS, np.uint8)
        bounds = box_from_mask(self.mask)
        if bounds is None:
            return bands
        reach = self.edge_radii[-1]
        x0, y0, x1, y1 = bounds
        window = np.s_[max(y0 - reach, 0) : y1 + reach + 1, max(x0 - reach, 0) : x1 + reach + 1]  # holds all bands
        mask = np.ascontiguousarray(self.mask[window]).view(np.uint8)
        for radius in self.edge_radii:
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
            bands[window] -= cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, kernel)
        return bands


class Pair:
    """A predicted map with its ground truth: the argument of ``Metric.measure``.

    Metrics that measure the same pair share its counts.

    Args:
        pred: (H, W) uint8, the map as it is saved, or bool; an array, or a tensor on the CPU. It is not stretched.
        gt: The ground truth; an array or a tensor is converted.

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is wrong.
    """

    def __init__(self, pred: np.ndarray | Tensor, gt: np.ndarray | Tensor | GroundTruth) -> None:
        pred = _gray(pred, "prediction")
        self.pred = pred * np.uint8(255) if pred.dtype == bool else pred
        self.gt = gt if isinstance(gt, GroundTruth) else GroundTruth(gt)
        check_same_size(self.pred, self.gt)

    @cached_property
    def quarters(self) -> np.ndarray:
        """(4, 2, 256) int64: number of pixels by quarter of the image, outside or inside the object, and map value.

        The quarters meet at the ground truth's center: upper left, upper right, lower left, lower right.
        """
        row, column = self.gt.center
        halves = [
            (rows, columns)
            for rows in (slice(row), slice(row, None))
            for columns in (slice(column), slice(column, None))
        ]
        counts = np.empty((4, 2, LEVELS), np.int64)
        for count, half in zip(counts, halves, strict=True):
            count[:] = count_levels(self.pred[half])
            count[1] = count_levels(self.pred[half], self.gt.mask[half])
            count[0] -= count[1]
        return counts

    @cached_property
    def levels(self) -> np.ndarray:
        """(2, 256) int64: number of pixels outside and inside the object at each value of the map."""
        return self.quarters.sum(axis=0)


def count_levels(plane: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Count the pixels of a plane at each value.

    Args:
        plane: (H, W) uint8.
        mask: (H, W) bool; only pixels inside it are counted. None counts all.

    Returns:
        (256,) int64.
    """
    counts = np.zeros(LEVELS, np.int64)
    if plane.size == 0:
        return counts
    rows = max(1, 2**24 // plane.shape[1])  # OpenCV counts in float32, which is exact up to this number
    for top in range(0, plane.shape[0], rows):
        part = np.s_[top : top + rows]
        inside = None if mask is None else mask[part].view(np.uint8)
        counts += cv2.calcHist([plane[part]], [0], inside, [LEVELS], [0, LEVELS]).ravel().astype(np.int64)
    return counts


class Metric:
    """Base class of the accumulators: the mean over images of ``measure``.

    ``update(pred, gt)`` measures a pair and adds the result. ``add(metric.measure(pair))`` does the same in two steps,
    for measuring in a worker process or for several metrics on one :class:`Pair`.
    """

    def __init__(self) -> None:
        self._sum: Any = 0.0
        self._images = 0

    def measure(self, pair: Pair) -> Any:
        """Return the measure of one image, a number or an array; it is averaged over the images."""
        raise NotImplementedError

    def add(self, measured: Any) -> None:
        """Add the measure of one image."""
        self._sum = self._sum + measured
        self._images += 1

    def update(self, pred: np.ndarray | Tensor, gt: np.ndarray | Tensor | GroundTruth) -> None:
        """Measure and add one image; the arguments are those of :class:`Pair`."""
        self.add(self.measure(Pair(pred, gt)))

    def mean(self) -> Any:
        """Return the mean of the measures; nan without images."""
        return self._sum / self._images if self._images else math.nan

    def compute(self) -> dict[str, float]:
        """Return the figures over all images by their names; nan without images."""
        raise NotImplementedError
