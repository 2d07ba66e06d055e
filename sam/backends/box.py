"""The filled box as a coarse mask: for use without SAM's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from IS_Net.errors import PromptError
from IS_Net.preprocess import Box, fill_box
from sam.backends import BOX, NEEDS_SAM
from sam.backends.base import Select, require_rgb
from sam.prompts import Prompt, check_points

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def load(model: str, checkpoint: Path | None, device: str | torch.device) -> BoxPredictor:
    """Return the predictor; see :func:`sam.backends.load_predictor`. It has no weights and uses no device."""
    return BoxPredictor()


class BoxPredictor:
    """Returns the filled box of a prompt as its mask: pixels from both ends of the box and between them.

    It leaves the segmentation to stage 2, and costs nothing. It takes no account of points; a prompt without a box
    needs SAM.
    """

    name = BOX
    checkpoint = None
    selects = False
    box_only = True
    uses_proposals = False
    images_per_batch = 1

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None
        self._warned = False

    def set_image(self, image: np.ndarray) -> None:
        """Set the image of the following calls, (H, W, 3) uint8 RGB. Only its size is used.

        Raises:
            ValueError: If the shape or dtype is another.
        """
        (self._size,) = self.encode([image])

    def encode(self, images: Sequence[np.ndarray]) -> list[tuple[int, int]]:
        """Return the height and width of each image."""
        for image in images:
            require_rgb(image)
        return [image.shape[:2] for image in images]

    def set_encoding(self, encoding: tuple[int, int]) -> None:
        """Set the image of the following calls, as :meth:`encode` returned it."""
        self._size = encoding

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, None]:
        """Fill the box of one prompt, with the arguments of SamPredictor's method of this name.

        Args:
            point_coords: Not used; a warning says so.
            point_labels: Not used.
            box: (4,) xyxy in pixels.
            mask_input: Must be None.
            multimask_output: Has no effect; there is one mask.

        Returns:
            Masks (1, H, W) bool; scores (1,) float32, NaN, because no IoU is predicted; None for the logits.

        Raises:
            RuntimeError: If no image is set.
            PromptError: If there is no box, or the points are faulty (see :func:`sam.prompts.check_points`).
            BoxError: If the box is not four finite numbers, has its corners in the wrong order, or lies outside the
                image.
            ValueError: If a mask_input is given.
        """
        if mask_input is not None:
            raise ValueError(f"the model {BOX} takes no mask_input; omit it, or use SAM")
        if self._size is not None:
            check_points(point_coords, point_labels, self._size, box is not None)
        mask = self._fill(box, point_coords is not None)
        return mask[None], np.full(1, np.nan, dtype=np.float32), None

    def predict_prompts(self, prompts: Sequence[Prompt], select: Select = "score") -> Iterator[tuple[np.ndarray, None]]:
        """Yield the filled box of each prompt, (H, W) bool, and None for the predicted IoU.

        Raises:
            RuntimeError: If no image is set.
            PromptError: If a prompt has no box.
            BoxError: If a box lies outside the image.
        """
        for prompt in prompts:
            yield self._fill(prompt.box, prompt.points is not None), None

    def _fill(self, box: Box | None, has_points: bool) -> np.ndarray:
        if self._size is None:
            raise RuntimeError("no image is set; call set_image first")
        if box is None:
            raise PromptError(NEEDS_SAM)
        if has_points and not self._warned:
            self._warned = True
            logger.warning("points are ignored, because only SAM takes points; the box alone is used")
        return fill_box(box, self._size, self._size)[0] > 0
