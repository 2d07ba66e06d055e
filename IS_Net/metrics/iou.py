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
    - Empty maps: 1 where the ground truth is empty too, else 0; empty ground truths likewise.

    Args:
        pred: (H, W) uint8, binarized at > 128, or bool; an array, or a tensor on the CPU.
        gt: Likewise, of the same size.

    Returns:
        In [0, 1]; 1 where both are empty, 0 where one of them is.

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is another.
    """
    return IoU().measure(Pair(pred, gt))


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    # `width` erosions by 3 x 3 are one by a box of 2 * width + 1; all around the mask is background
    box = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    kept = cv2.erode(mask.astype(np.uint8), box, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (kept == 0)


def boundary_iou(pred: Mask, gt: Mask, dilation_ratio: float = 0.02) -> float:
    """Return the intersection over union of two masks' inner boundaries (Cheng et al., Boundary IoU, CVPR 2021).

    A mask's boundary is what d erosions by 3 x 3 take from it, d being ``dilation_ratio`` of the image's diagonal,
    rounded, and at least 1. Outside of the image is background: a mask has a boundary along the image's border.

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: 1 where the ground truth is empty too, else 0; empty ground truths likewise.

    Args:
        pred: (H, W) uint8, binarized at > 128, or bool; an array, or a tensor on the CPU.
        gt: Likewise, of the same size.
        dilation_ratio: The boundary's width as a share of the diagonal.

    Returns:
        In [0, 1]; 1 where both are empty, 0 where one of them is.

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is another.
    """
    return BoundaryIoU(dilation_ratio).measure(Pair(pred, gt))


class IoU(Metric):
    """Mean :func:`iou` over the images (Jaccard, 1912; as in PASCAL VOC, Everingham et al., IJCV 2010).

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: 1 where the ground truth is empty too, else 0; empty ground truths likewise.
    """

    def measure(self, pair: Pair) -> float:
        """Return :func:`iou` of one image."""
        return _ratio(binarize(pair.pred), pair.gt.mask)

    def compute(self) -> dict[str, float]:
        """Return ``{"iou": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"iou": float(self.mean())}


class BoundaryIoU(Metric):
    """Mean :func:`boundary_iou` over the images (Cheng et al., Boundary IoU, CVPR 2021).

    - Thresholds: map and ground truth are binarized at > 128.
    - Stretching: none.
    - Empty maps: 1 where the ground truth is empty too, else 0; empty ground truths likewise.

    Args:
        dilation_ratio: The boundary's width as a share of the diagonal.
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
        window = np.s_[y0 : y1 + 1, x0 : x1 + 1]  # exact: beyond it both are background, as outside of the image
        width = max(1, round(self.dilation_ratio * math.hypot(*gt.shape)))
        return _ratio(_boundary(pred[window], width), _boundary(gt[window], width))

    def compute(self) -> dict[str, float]:
        """Return ``{"boundary_iou": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"boundary_iou": float(self.mean())}
