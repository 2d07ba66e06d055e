"""Intersection over union, of whole masks and of their boundaries."""

from __future__ import annotations

import math

import cv2
import numpy as np
from torch import Tensor

from IS_Net.images import binarise
from IS_Net.preprocess import box_from_mask

Mask = np.ndarray | Tensor
"""(H, W): uint8, the object above 128, or bool. A tensor must lie on the CPU."""


def _objects(pred: Mask, gt: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Return where the prediction and the ground truth are the object, (H, W) bool each."""
    pred, gt = np.asarray(pred), np.asarray(gt)
    for name, mask in (("prediction", pred), ("ground truth", gt)):
        if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):  # of an alpha in 0..1 nothing would be > 128
            raise ValueError(
                f"expected a {name} of shape (H, W), uint8 0..255 or bool; found {mask.shape} {mask.dtype}"
            )
    if pred.shape != gt.shape:
        sizes = [f"{mask.shape[1]} x {mask.shape[0]}" for mask in (pred, gt)]
        raise ValueError(
            f"the prediction is {sizes[0]} pixels, its ground truth {sizes[1]}; "
            "resize the prediction to the ground truth's size"
        )
    return tuple(mask if mask.dtype == bool else binarise(mask) for mask in (pred, gt))


def _ratio(pred: np.ndarray, gt: np.ndarray) -> float:
    union = np.count_nonzero(pred | gt)
    return np.count_nonzero(pred & gt) / union if union else 1.0


def iou(pred: Mask, gt: Mask) -> float:
    """Return the intersection over union (Jaccard index) of two masks.

    Args:
        pred: (H, W) uint8, binarised at > 128, or bool; an array, or a tensor on the CPU.
        gt: Likewise, of the same size.

    Returns:
        In [0, 1]; 1 where both are empty, 0 where one of them is.

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is another.
    """
    return _ratio(*_objects(pred, gt))


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    # `width` erosions by 3 x 3 are one by a box of 2 * width + 1; all around the mask is background
    box = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    kept = cv2.erode(mask.astype(np.uint8), box, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (kept == 0)


def boundary_iou(pred: Mask, gt: Mask, dilation_ratio: float = 0.02) -> float:
    """Return the intersection over union of two masks' inner boundaries (Cheng et al., Boundary IoU, CVPR 2021).

    A mask's boundary is what d erosions by 3 x 3 take from it, d being ``dilation_ratio`` of the image's diagonal,
    rounded, and at least 1. Outside of the image is background: a mask has a boundary along the image's border.

    Args:
        pred: (H, W) uint8, binarised at > 128, or bool; an array, or a tensor on the CPU.
        gt: Likewise, of the same size.
        dilation_ratio: The boundary's width as a share of the diagonal.

    Returns:
        In [0, 1]; 1 where both are empty, 0 where one of them is.

    Raises:
        ValueError: If the sizes differ, or a shape or dtype is another.
    """
    pred, gt = _objects(pred, gt)
    bounds = box_from_mask(pred | gt)
    if bounds is None:
        return 1.0
    x0, y0, x1, y1 = bounds
    window = np.s_[y0 : y1 + 1, x0 : x1 + 1]  # exact: beyond it both are background, as outside of the image
    width = max(1, round(dilation_ratio * math.hypot(*gt.shape)))
    return _ratio(_boundary(pred[window], width), _boundary(gt[window], width))


class IoU:
    """Mean :func:`iou` over the images."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def update(self, pred: Mask, gt: Mask) -> None:
        """Add one image, as :func:`iou` takes it."""
        self._values.append(iou(pred, gt))

    def compute(self) -> dict[str, float]:
        """Return ``{"iou": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"iou": float(np.mean(self._values)) if self._values else math.nan}


class BoundaryIoU:
    """Mean :func:`boundary_iou` over the images."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def update(self, pred: Mask, gt: Mask) -> None:
        """Add one image, as :func:`boundary_iou` takes it."""
        self._values.append(boundary_iou(pred, gt))

    def compute(self) -> dict[str, float]:
        """Return ``{"boundary_iou": ...}`` in [0, 1] over all images; nan where there was none."""
        return {"boundary_iou": float(np.mean(self._values)) if self._values else math.nan}
