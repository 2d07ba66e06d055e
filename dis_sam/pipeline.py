"""Both stages as one: an image and a prompt become an alpha matte."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from IS_Net.predictor import DISPredictor
from IS_Net.preprocess import Box, check_box


class PromptPredictor(Protocol):
    """What DISSAM asks of stage 1: the interface of segment_anything's SamPredictor."""

    def set_image(self, image: np.ndarray) -> None:
        """Take an image, (H, W, 3) uint8 RGB."""

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, Any]:
        """Return masks (C, H, W) bool, scores (C,) and something further."""


class DISSAM:
    """Both stages as one: an image and a prompt in, an alpha matte out. Mirrors SamPredictor.

    Args:
        sam_predictor: A SamPredictor, or anything with its ``set_image`` and ``predict``
            (``sam.backends.load_predictor`` gives one).
        dis_predictor: The second stage.
    """

    def __init__(self, sam_predictor: PromptPredictor, dis_predictor: DISPredictor) -> None:
        self.sam = sam_predictor
        self.dis = dis_predictor
        self._image: np.ndarray | None = None

    def set_image(self, image: np.ndarray) -> None:
        """Take the image that the following prompts speak of; it is encoded once.

        Args:
            image: (H, W, 3) uint8 RGB, upright.
        """
        self.sam.set_image(image)
        self._image = image

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: Box | None = None,
        mask_input: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Turn one prompt into an alpha matte.

        Args:
            point_coords: (N, 2) points x, y in pixels.
            point_labels: (N,) 1 for the object, 0 for its background.
            box: xyxy in pixels.
            mask_input: (1, 256, 256) logits of an earlier call, as SAM takes them.

        Returns:
            The alpha, (H, W) float32 in [0, 1]; the coarse mask, (H, W) bool, the one of stage 1's proposals that
            it scores highest; and that score, SAM's prediction of the mask's IoU.

        Raises:
            RuntimeError: If no image was set.
            ValueError: If there is no prompt, or points are given without labels.
            BoxError: If the box has no area, or lies outside the image.
        """
        if self._image is None:
            raise RuntimeError("no image is set; call set_image(image) before predict()")
        if point_coords is None and box is None and mask_input is None:
            raise ValueError("no prompt; give a box, points with labels, or a mask_input")
        if (point_coords is None) != (point_labels is None):
            raise ValueError("points and labels go together: one label (1 object, 0 background) for each point")
        if box is not None:
            check_box(box, *self._image.shape[:2])  # rather no answer than one to another question
        masks, scores, _ = self.sam.predict(
            point_coords=None if point_coords is None else np.asarray(point_coords),
            point_labels=None if point_labels is None else np.asarray(point_labels),
            box=None if box is None else np.asarray(box),
            mask_input=mask_input,
            multimask_output=True,
        )
        best = int(np.argmax(scores))
        coarse = np.asarray(masks[best]).astype(bool)
        return self.dis.predict(self._image, coarse, box), coarse, float(scores[best])
