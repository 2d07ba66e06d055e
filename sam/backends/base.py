"""The interface of a stage-1 model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from sam.prompts import Prompt

Select = Literal["score", "first"]
"""Which of a model's masks is taken: the one with the highest predicted IoU, or the first (the published code)."""


def require_rgb(image: np.ndarray) -> None:
    """Check an image that a model is given.

    Raises:
        ValueError: If it is not (H, W, 3) uint8. Floats of 0..1, for example, would be almost black.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != "uint8":
        raise ValueError(
            f"expected an image of shape (H, W, 3) uint8, found {image.shape} {image.dtype}; scale floats to "
            "0..255 and convert them"
        )


class StageOnePredictor(Protocol):
    """A model that turns prompts into coarse masks: the interface of SamPredictor, plus prompts in batches.

    :class:`dis_sam.pipeline.DISSAM` calls only ``set_image``, ``predict`` and, of models that use proposals,
    ``mask_prompt``, so segment_anything's own SamPredictor works there too.

    Attributes:
        name: The model's name in :data:`sam.backends.BACKENDS`.
        checkpoint: Hash of the weights (of one file, its sha256); None if the model has no weights.
        selects: Whether the model returns several masks per prompt, of which one is selected.
        box_only: Whether each prompt must have a box, and the masks tell nothing that the boxes do not. Stage 2 is then
            given the boxes alone.
        uses_proposals: Whether, with a box, it should also be given what stage 2 finds from that box alone, as
            :meth:`mask_prompt`. This was measured with SAM 2 Hiera-Tiny only (docs/sam.md).
        images_per_batch: How many images :meth:`encode` should be given together: 1 on a CPU.
    """

    name: str
    checkpoint: str | None
    selects: bool
    box_only: bool
    uses_proposals: bool
    images_per_batch: int

    def set_image(self, image: np.ndarray) -> None:
        """Set the image of the following calls, (H, W, 3) uint8 RGB.

        Raises:
            ValueError: If the shape or dtype is another, see :func:`require_rgb`, or the image is too long and thin for
                the model (ImageError).
        """

    def encode(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Encode images together, which is faster than one by one on a GPU. The image that is set stays.

        Args:
            images: Each (H, W, 3) uint8 RGB; their sizes may differ.

        Returns:
            What :meth:`set_encoding` takes, for each image. ``set_encoding(encode([image])[0])`` has the effect of
            ``set_image(image)``.

        Raises:
            ValueError: As of :meth:`set_image`.
        """

    def set_encoding(self, encoding: Any) -> None:
        """Set the image of the following calls, as :meth:`encode` returned it."""

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Segment the object of one prompt.

        Args:
            point_coords: (N, 2) x, y in pixels, or None.
            point_labels: (N,) 1 for the object, 0 for the background, or None.
            box: (4,) xyxy in pixels, or None.
            mask_input: (1, h, w) low-resolution logits of an earlier call, or None.
            multimask_output: Whether to return all masks of a model that returns several.

        Returns:
            Masks (C, H, W) bool; the predicted IoU of each, (C,) float32, NaN if the model predicts none; and
            low-resolution logits (C, h, w) float32, or None if the model has none.

        Raises:
            RuntimeError: If no image is set.
            PromptError: If the points are not as :func:`sam.prompts.check_points` expects.
        """

    def mask_prompt(self, alpha: np.ndarray) -> np.ndarray:
        """Return a mask as the ``mask_input`` of :meth:`predict`. A ``box_only`` model lacks this method.

        Args:
            alpha: (H, W) float of 0 (background) to 1 (object), or bool, or uint8; of the size of the image.

        Returns:
            (1, h, w) low-resolution logits, float32.

        Raises:
            RuntimeError: If no image is set.
            ValueError: If shape, dtype, size or range is another.
        """

    def predict_prompts(
        self, prompts: Sequence[Prompt], select: Select = "score"
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        """Segment the objects of several prompts of the image.

        Args:
            prompts: In pixels of the image; each has a box, points, or both.
            select: Which of several masks to take.

        Yields:
            For each prompt, in order, its mask, (H, W) bool, and the predicted IoU, or None if there is none.

        Raises:
            RuntimeError: If no image is set.
        """
