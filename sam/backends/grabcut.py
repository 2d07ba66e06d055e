"""GrabCut as a stand-in for SAM: it needs no weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from IS_Net.grabcut import grabcut
from IS_Net.images import binarize
from IS_Net.preprocess import resize_uint8
from sam.backends.base import Select
from sam.prompts import Prompt

logger = logging.getLogger(__name__)

LONG_SIDE = 320
"""The box and its surroundings are scaled down to this many pixels; GrabCut's time grows faster than their number."""
ITERATIONS = 3
SEED = 0


def load(model: str, checkpoint: Path | None, device: str | torch.device) -> GrabCutPredictor:
    """Return the predictor; see :func:`sam.backends.load_predictor`. GrabCut has no weights and runs on the CPU."""
    return GrabCutPredictor()


class GrabCutPredictor:
    """A stand-in for SAM that needs no weights: OpenCV's GrabCut inside the box.

    It separates colors, knows nothing about objects, and is far less accurate than SAM; it lets the pipeline run
    anywhere. Its masks are the same in every run.
    """

    name = "grabcut"
    checkpoint = None
    selects = False

    def __init__(self) -> None:
        self._image: np.ndarray | None = None
        logger.warning("masks come from OpenCV's GrabCut, a stand-in that needs no weights; this is not SAM")

    def set_image(self, image: np.ndarray) -> None:
        """Set the image of the following calls, (H, W, 3) uint8 RGB."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an image of shape (H, W, 3) uint8, found {image.shape} {image.dtype}")
        self._image = image

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, None]:
        """Segment the object of one prompt, as SamPredictor's method of this name does.

        Args:
            point_coords: (N, 2) x, y in pixels, or None.
            point_labels: (N,) 1 for the object, 0 for the background, or None.
            box: (4,) xyxy in pixels, or None.
            mask_input: Must be None; GrabCut does not use logits.
            multimask_output: Has no effect; GrabCut returns one mask.

        Returns:
            Masks (1, H, W) bool; scores (1,) float32, NaN, because GrabCut predicts no IoU; None for the logits.

        Raises:
            RuntimeError: If no image is set.
            ValueError: If a mask_input is given.
        """
        if mask_input is not None:
            raise ValueError("GrabCut takes no mask_input; omit it, or use SAM")
        points = [] if point_coords is None else _array(point_coords).reshape(-1, 2).tolist()
        labels = [] if point_labels is None else np.asarray(point_labels).reshape(-1).tolist()
        mask = self._segment(points, labels, None if box is None else _array(box).reshape(-1).tolist())
        return mask[None], np.full(1, np.nan, dtype=np.float32), None

    def predict_prompts(
        self, prompts: Sequence[Prompt], select: Select = "score"
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        """Yield a mask, (H, W) bool, for each prompt, and None for the predicted IoU.

        Raises:
            RuntimeError: If no image is set.
        """
        for prompt in prompts:
            yield self._segment(prompt.points or (), prompt.labels or (), prompt.box), None

    def _segment(
        self, points: Sequence[Sequence[float]], labels: Sequence[int], box: Sequence[float] | None
    ) -> np.ndarray:
        if self._image is None:
            raise RuntimeError("no image is set; call set_image first")
        height, width = self._image.shape[:2]
        left, top, right, bottom = _pixel_range(box, height, width)
        mask = np.zeros((height, width), dtype=bool)
        if left >= right or top >= bottom:
            return mask

        # the window: the box and half its size on each side, enough to learn the background's colors from
        pad_x, pad_y = (right - left) // 2 + 8, (bottom - top) // 2 + 8
        x0, y0 = max(left - pad_x, 0), max(top - pad_y, 0)
        x1, y1 = min(right + pad_x, width), min(bottom + pad_y, height)
        window = self._image[y0:y1, x0:x1]
        scale = min(1.0, LONG_SIDE / max(window.shape[:2]))
        size = tuple(max(1, round(side * scale)) for side in window.shape[:2])

        seeds = np.full(size, cv2.GC_BGD, dtype=np.uint8)
        inside = (
            slice(int((top - y0) * scale), int(np.ceil((bottom - y0) * scale))),
            slice(int((left - x0) * scale), int(np.ceil((right - x0) * scale))),
        )
        seeds[inside] = cv2.GC_PR_FGD
        _add_points(seeds, [((x - x0) * scale, (y - y0) * scale) for x, y in points], labels, box is not None)
        if not (seeds == cv2.GC_BGD).any():
            # the box covers the whole image: the image's border is the most likely background
            border = max(1, max(size) // 50)
            rest = seeds[border:-border, border:-border].copy()
            seeds[seeds == cv2.GC_PR_FGD] = cv2.GC_PR_BGD
            seeds[border:-border, border:-border] = rest

        small = np.ascontiguousarray(resize_uint8(window, size).transpose(1, 2, 0))
        found = grabcut(small, seeds, ITERATIONS, SEED)
        if found is None:
            mask[top:bottom, left:right] = True
            return mask
        upsampled = binarize(resize_uint8(found.astype(np.uint8) * np.uint8(255), window.shape[:2])[0])
        mask[top:bottom, left:right] = upsampled[top - y0 : bottom - y0, left - x0 : right - x0]
        return mask


def _add_points(seeds: np.ndarray, points: Sequence[tuple[float, float]], labels: Sequence[int], has_box: bool) -> None:
    """Mark points as certain; without a box, also mark their surroundings as likely object, the rest as background."""
    centers = [(round(x), round(y)) for x, y in points]
    if centers and not has_box:
        seeds[:] = cv2.GC_PR_BGD
        for center, label in zip(centers, labels, strict=True):
            if label:
                cv2.circle(seeds, center, max(2, min(seeds.shape) // 5), cv2.GC_PR_FGD, cv2.FILLED)
    for center, label in zip(centers, labels, strict=True):
        cv2.circle(seeds, center, max(1, max(seeds.shape) // 100), cv2.GC_FGD if label else cv2.GC_BGD, cv2.FILLED)


def _pixel_range(box: Sequence[float] | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the pixels that a box touches as half-open ranges left, top, right, bottom; they may be empty."""
    if box is None:
        return 0, 0, width, height
    x0, y0, x1, y1 = np.nan_to_num(np.asarray(box, dtype=np.float64)).tolist()
    left, top = max(int(np.floor(min(x0, width))), 0), max(int(np.floor(min(y0, height))), 0)
    right, bottom = int(min(np.ceil(x1) + 1, width)), int(min(np.ceil(y1) + 1, height))
    return left, top, right, bottom


def _array(values: Sequence) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)
