"""Storage of convolution weights in 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 127
_OUTLIER = -128
_OUTLYING = 8  # times the next largest weight of its channel
_CLIPS = tuple(1 - step / 40 for step in range(17))  # of a channel's largest weight; 1 first, see quantize


def quantize(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round a convolution's weights to 8 bits, with the scale for each output channel that errs least in square.

    One weight of a channel that is more than eight times as large as each of its others is kept as it is, lest these
    vanish beside it; so are the weights that carry the mask (:func:`IS_Net.models.input_channels.add_mask_skip`).

    What comes out, put together by :func:`dequantize` and put in again, comes out the same: a scale has 17 significant
    bits, so that its products with up to 127 are exact in float32, and of equal errors the one without clipping is
    taken.

    Args:
        weight: (out, ...) of any float type, finite.

    Returns:
        Values of the same shape, int8 in -127..127, or -128 where a weight is kept; scales (out,), float32, larger than
        0; the kept weights, float32, in the order in which they stand.
    """
    rows = weight.float().flatten(1)
    largest = rows.abs().topk(min(2, rows.shape[1]), dim=1)
    kept = torch.zeros_like(rows, dtype=torch.bool)
    outlying = largest.values[:, :1] > _OUTLYING * largest.values[:, -1:]
    kept.scatter_(1, largest.indices[:, :1], outlying)
    outliers = rows[kept]
    rows = rows.masked_fill(kept, 0)
    peak = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / _LEVELS  # a channel of zeros needs a scale, too
    values, scale = torch.zeros_like(rows), peak
    least = torch.full_like(peak, torch.inf)
    for clip in _CLIPS:
        tried = ((peak * clip).view(torch.int32) & ~0x7F).view(torch.float32)
        rounded = (rows / tried).round().clamp(-_LEVELS, _LEVELS)
        error = (rows - rounded * tried).square().sum(1, keepdim=True)
        better = error < least
        least, scale = torch.where(better, error, least), torch.where(better, tried, scale)
        values = torch.where(better, rounded, values)
    values = values.masked_fill(kept, _OUTLIER)
    return values.to(torch.int8).view(weight.shape), scale.flatten(), outliers


def dequantize(values: Tensor, scale: Tensor, outliers: Tensor) -> Tensor:
    """Return the weights, float32, that :func:`quantize` made values, scales and outliers of.

    Raises:
        ValueError: If scales or outliers are not as many as the values need, or a scale is not above 0.
    """
    kept = values == _OUTLIER
    if scale.shape != values.shape[:1] or not (scale.isfinite() & (scale > 0)).all():
        raise ValueError(f"expected {len(values)} scales above 0, found {tuple(scale.shape)}")
    if outliers.shape != (int(kept.sum()),):
        raise ValueError(f"expected {int(kept.sum())} outliers, found {tuple(outliers.shape)}")
    weight = values.float() * scale.float().view(-1, *[1] * (values.ndim - 1))
    weight[kept] = outliers.float()
    return weight
