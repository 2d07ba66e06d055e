"""Intersection over union, of whole masks and of their boundaries."""

from __future__ import annotations

import math

import cv2
import numpy as np
from torch import Tensor

from IS_Net.images import binarize
from IS_Net.metrics.pair import Metric, Pair
from IS_Net.preprocess import box_from_mask

Mask = np.ndarray | Tensor
"""(H, W): uint8, the object above 128, or bool. A tensor must lie on the CPU."""


def _ratio(pred: np.ndarray, gt: np.ndarray) -> float:
    union = np.count_nonzero(pred | gt)
    return np.count_nonzero(pred & gt) / union if union else 1.0


def iou(pred: Mask, gt: Mask) -> float:
    """Return the intersection over union of two masks (Jaccard, 1912; as in PASCAL VOC, Everingham et al., IJCV 2010).

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: 1 if the ground truth is empty too, else 0; the same for empty ground truths.

    Args:
        pred: (H, W) uint8, binarized at > 128, or bool; an array, or a tensor on the CPU.
        gt: (H, W), of the same kinds.

    Returns:
        A number in [0, 1]: 1 if both masks are empty, 0 if only one is.

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is wrong.
    """
    return float(IoU().measure(Pair(pred, gt))[0])


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    # `width` erosions by 3 x 3 equal one erosion by a box of 2 * width + 1; the area around the mask is background
    box = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    kept = cv2.erode(mask.astype(np.uint8), box, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (kept == 0)


def boundary_iou(pred: Mask, gt: Mask, dilation_ratio: float = 0.02) -> float:
    """Return the intersection over union of two masks' inner boundaries (Cheng et al., Boundary IoU, CVPR 2021).

    The boundary of a mask consists of the pixels that d erosions by 3 x 3 remove. d is ``dilation_ratio`` times the
    image's diagonal, rounded, and at least 1. The area outside the image is background, so a mask also has a boundary
    along the image border.

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: 1 if the ground truth is empty too, else 0; the same for empty ground truths.

    Args:
        pred: (H, W) uint8, binarized at > 128, or bool; an array, or a tensor on the CPU.
        gt: (H, W), of the same kinds.
        dilation_ratio: Width of the boundary as a share of the diagonal.

    Returns:
        A number in [0, 1]: 1 if both masks are empty, 0 if only one is.

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is wrong.
    """
    return BoundaryIoU(dilation_ratio).measure(Pair(pred, gt))


class IoU(Metric):
    """Intersection over union (Jaccard, 1912), as a mean over the images and pooled.

    - ``iou``: mean of :func:`iou` over the images (as in PASCAL VOC, Everingham et al., IJCV 2010).
    - ``pooled_iou``: sum of the intersections divided by the sum of the unions, so that large objects count more (as in
      the tables of CascadePSP, Cheng et al., CVPR 2020, and of later refinement papers).

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: 1 if the ground truth is empty too, else 0; the same for empty ground truths. Pooled IoU is 1 if all
      maps and ground truths are empty.
    """

    def measure(self, pair: Pair) -> np.ndarray:
        """Return IoU, intersection and union of one image, (3,) float64; the latter two in pixels."""
        pred, gt = binarize(pair.pred), pair.gt.mask
        intersection, union = np.count_nonzero(pred & gt), np.count_nonzero(pred | gt)
        return np.array([intersection / union if union else 1.0, intersection, union])

    def compute(self) -> dict[str, float]:
        """Return ``{"iou": ..., "pooled_iou": ...}`` in [0, 1] over all images; nan without images."""
        if not self._images:
            return {"iou": math.nan, "pooled_iou": math.nan}
        total, intersection, union = self._sum.tolist()  # sums of integers, exact up to 2**53 pixels
        return {"iou": total / self._images, "pooled_iou": intersection / union if union else 1.0}


class BoundaryIoU(Metric):
    """Mean :func:`boundary_iou` over the images (Cheng et al., Boundary IoU, CVPR 2021).

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: 1 if the ground truth is empty too, else 0; the same for empty ground truths.

    Args:
        dilation_ratio: Width of the boundary as a share of the diagonal.
    """

    def __init__(self, dilation_ratio: float = 0.02) -> None:
        super().__init__()
        self.dilation_ratio = dilation_ratio

    def measure(self, pair: Pair) -> float:
        """Return :func:`boundary_iou` of one image."""
        pred, gt = binarize(pair.pred), pair.gt.mask
        bounds = box_from_mask(pred | gt)
        if bounds is None:
            return 1.0
        x0, y0, x1, y1 = bounds
        window = np.s_[y0 : y1 + 1, x0 : x1 + 1]  # exact: beyond it, both masks are background
        width = max(1, round(self.dilation_ratio * math.hypot(*gt.shape)))
        return _ratio(_boundary(pred[window], width), _boundary(gt[window], width))

    def compute(self) -> dict[str, float]:
        """Return ``{"boundary_iou": ...}`` in [0, 1] over all images; nan without images."""
        return {"boundary_iou": float(self.mean())}
