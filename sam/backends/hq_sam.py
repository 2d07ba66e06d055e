"""HQ-SAM (Ke et al., "Segment Anything in High Quality", NeurIPS 2023), from its published checkpoints.

A folder in the layout of transformers holds HQ-SAM as well (:mod:`sam.backends.transformers`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from IS_Net.device import pick_device
from IS_Net.errors import import_extra
from sam.backends.promptable import hash_weights
from sam.backends.segment_anything import BatchedSamPredictor, fuse_attention, load_weights

if TYPE_CHECKING:
    from segment_anything_hq.modeling import Sam

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the package uses earlier names of timm's modules
    import_extra("timm", "hq")  # the package needs it, and does not declare that
    build_sam = import_extra("segment_anything_hq.build_sam", "hq")

BUILDERS: dict[str, Callable[[], Sam]] = {
    "hq_vit_l": build_sam.build_sam_vit_l,
    "hq_vit_h": build_sam.build_sam_vit_h,
    "hq_vit_b": build_sam.build_sam_vit_b,
    "hq_light": build_sam.build_sam_vit_t,
}
"""Builds the network of each model, without weights."""


def load(model: str, checkpoint: Path, device: str | torch.device) -> HQPredictor:
    """Load a model; see :func:`sam.backends.load_predictor`."""
    chosen = pick_device(device)
    sam = BUILDERS[model]()
    load_weights(sam, checkpoint, model)
    if model != "hq_light":  # its encoder is TinyViT, which has other attention
        fuse_attention(sam.image_encoder)
    return HQPredictor(sam.to(chosen), model, hash_weights([checkpoint]))


class HQPredictor(BatchedSamPredictor):
    """HQ-SAM: SAM with a token, and features of an early layer, that refine the mask.

    Its decoder selects SAM's mask with the highest predicted IoU itself, and returns one.
    """

    selects = False

    def _of_each_image(self, encoded: Any) -> Iterable[Any]:
        embeddings, (early, *_) = encoded
        for embedding, features in zip(embeddings.float().split(1), early.float().split(1), strict=True):
            yield {"image_embeddings": embedding, "interm_embeddings": [features], "hq_token_only": False}
