"""SAM's attention with relative positions, by PyTorch's fused kernel."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from IS_Net.errors import import_extra

get_rel_pos = import_extra("segment_anything.modeling.image_encoder", "sam").get_rel_pos


class FusedAttention(nn.Module):
    """The attention of SAM's image encoder (``segment_anything.modeling.image_encoder.Attention``) as one kernel.

    The relative positions (Li et al., "MViTv2", CVPR 2022) become the mask of ``scaled_dot_product_attention``, so that
    the matrix of weights is neither stored nor passed over three times. The result is the same but for rounding.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend to all positions of a window: (B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._relative_positions(query, height, width) if self.use_rel_pos else None
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        return self.proj(attended.transpose(1, 2).reshape(batch, height, width, -1))

    def _relative_positions(self, query: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Return what relative positions add to the logits, (B, heads, H * W, H * W)."""
        of_rows = get_rel_pos(height, height, self.rel_pos_h).to(query.dtype)
        of_columns = get_rel_pos(width, width, self.rel_pos_w).to(query.dtype)
        at = query.unflatten(2, (height, width))
        rows = torch.einsum("bnhwc,hkc->bnhwk", at, of_rows)
        columns = torch.einsum("bnhwc,wkc->bnhwk", at, of_columns)
        return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)


def fuse_attention(image_encoder: nn.Module) -> None:
    """Replace the attention of an image encoder of segment_anything, or segment_anything_hq, in place."""
    for block in image_encoder.blocks:
        block.attn.__class__ = FusedAttention
