"""Stage 2 helps stage 1: what it finds from a box alone is a proposal, with which SAM is prompted besides the box.

A box that is not tight says little to SAM 2: with one around most of a photograph, it may return the sky. SAM's own
mask stays where it is sure of it and the proposal does not contradict. docs/sam.md has the measurements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sam.backends.base import StageOnePredictor

SURE = 0.9
"""From this predicted IoU on, SAM is sure of a mask."""
CONTRADICTS = 0.3
"""A mask and a proposal whose IoU is below this are different objects."""


def best_mask(
    predictor: StageOnePredictor, proposal: np.ndarray | None = None, **prompt: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """Return the mask with the highest predicted IoU; if a proposal is needed, of those that SAM makes with it.

    Args:
        predictor: A model whose image is set, or segment_anything's SamPredictor.
        proposal: (H, W) float of 0 (background) to 1 (object), of the image's size, or None. It needs a model that
            ``uses_proposals``.
        **prompt: As :meth:`sam.backends.base.StageOnePredictor.predict` takes it.

    Returns:
        The mask, (H, W) bool, and its predicted IoU, which is higher where SAM was given a proposal.

    Raises:
        RuntimeError, ValueError: As :meth:`sam.backends.base.StageOnePredictor.predict` and its ``mask_prompt`` say.
    """
    mask, score = _predict(predictor, **prompt)
    if proposal is None or _agrees(mask, score, proposal > 0.5):
        return mask, score
    return _predict(predictor, **{**prompt, "mask_input": predictor.mask_prompt(proposal)})


def _predict(predictor: StageOnePredictor, **prompt: Any) -> tuple[np.ndarray, float]:
    masks, scores, _ = predictor.predict(**prompt, multimask_output=True)
    best = int(np.argmax(scores))
    return np.asarray(masks[best]).astype(bool), float(scores[best])


def _agrees(mask: np.ndarray, score: float, proposal: np.ndarray) -> bool:
    """Return whether SAM's own mask stays; it does if nothing is proposed."""
    if not proposal.any():
        return True
    return score >= SURE and (mask & proposal).sum() >= CONTRADICTS * (mask | proposal).sum()
