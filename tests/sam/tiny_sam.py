"""A real SAM of small dimensions with random weights, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

SIDE = 128
"""Side of the network's input in pixels."""


def tiny_sam(side: int = SIDE, width: int = 32) -> Sam:
    """Build the network.

    Args:
        side: Side of its square input in pixels.
        width: Width of its image encoder.
    """
    grid, channels = side // 16, 32
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            embed_dim=width,
            depth=2,
            num_heads=2,
            out_chans=channels,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(channels, (grid, grid), (side, side), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=2, mlp_dim=64),
            iou_head_hidden_dim=32,
        ),
    )


def save_sam(path: Path, seed: int = 0, build: Callable[[], Sam] = tiny_sam) -> Path:
    """Save random weights as a checkpoint; return its path."""
    torch.manual_seed(seed)
    torch.save(build().state_dict(), path)
    return path


def reference_predictor(sam: Sam, image: np.ndarray) -> SamPredictor:
    """Return segment_anything's own predictor, with an image set."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    return predictor
