"""MobileSAM (Zhang et al., "Faster Segment Anything", 2023): SAM with a TinyViT as its image encoder.

MobileSAM has no package of its own on PyPI. Its image encoder is the one of Light HQ-SAM, which segment-anything-hq
holds; its decoder is SAM's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from IS_Net.device import pick_device
from IS_Net.errors import import_extra
from sam.backends.hq_sam import build_sam
from sam.backends.promptable import hash_weights
from sam.backends.segment_anything import BatchedSamPredictor, load_weights

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

modeling = import_extra("segment_anything.modeling", "sam")


class ImageEncoder(build_sam.TinyViT):
    """The TinyViT without the features of early layers, which only HQ-SAM uses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode images: (B, 3, 1024, 1024) -> (B, 256, 64, 64)."""
        return super().forward(x)[0]


def build_mobile_sam() -> Sam:
    """Build the network as published, without weights."""
    encoder = ImageEncoder(
        img_size=1024,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
        layer_lr_decay=0.8,
    )
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return modeling.Sam(
        image_encoder=encoder,
        prompt_encoder=modeling.PromptEncoder(256, (64, 64), (1024, 1024), mask_in_chans=16),
        mask_decoder=modeling.MaskDecoder(transformer_dim=256, transformer=transformer),
    )


BUILDERS: dict[str, Callable[[], Sam]] = {"mobile": build_mobile_sam}
"""Builds the network of each model, without weights."""


def load(model: str, checkpoint: Path, device: str | torch.device) -> BatchedSamPredictor:
    """Load the model; see :func:`sam.backends.load_predictor`."""
    chosen = pick_device(device)
    sam = BUILDERS[model]()
    load_weights(sam, checkpoint, model)
    return BatchedSamPredictor(sam.to(chosen), model, hash_weights([checkpoint]))
