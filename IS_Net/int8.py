"""Storage of convolution weights in 8 bits: a quarter of the space of float32."""

from __future__ import annotations

import torch
from torch import Tensor

Weights = dict[str, Tensor]

_LEVELS = 127
OUTLIER = -128
"""What is stored where a weight is kept separately; see :func:`quantize`."""
_OUTLIER_RATIO = 8  # to the second largest weight of the channel
_CLIPS = tuple(1 - step / 40 for step in range(17))  # candidates, relative to a channel's largest weight; see quantize
_SCALE = ".scale"
_OUTLIERS = ".outliers"


def quantize(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize a convolution's weights to 8 bits, with the scale of least squared error for each output channel.

    A weight that is more than eight times as large as every other weight of its channel is an outlier and is stored
    separately, because the others would be rounded to 0 beside it. The weights of the mask skip connection
    (:func:`IS_Net.models.input_channels.add_mask_skip`) are such outliers.

    The function is idempotent: quantizing the result of :func:`dequantize` gives the same values, scales and outliers.
    To that end, a scale has only 17 significant bits, so that its products with up to 127 are exact in float32, and
    the scale without clipping is preferred among those of equal error.

    Args:
        weight: (out, ...) of any float type, finite.

    Returns:
        Values of the same shape, int8 in -127..127, or -128 at outliers; scales (out,), float32, above 0; the
        outliers, float32, in the order of their positions.
    """
    rows = weight.float().flatten(1)
    largest = rows.abs().topk(min(2, rows.shape[1]), dim=1)
    is_outlier = torch.zeros_like(rows, dtype=torch.bool)
    is_outlier.scatter_(1, largest.indices[:, :1], largest.values[:, :1] > _OUTLIER_RATIO * largest.values[:, -1:])
    outliers = rows[is_outlier]
    rows = rows.masked_fill(is_outlier, 0)
    peak = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / _LEVELS  # the scale of a channel of zeros is not 0
    values, scale = torch.zeros_like(rows), peak
    least_error = torch.full_like(peak, torch.inf)
    for clip in _CLIPS:
        candidate = ((peak * clip).view(torch.int32) & ~0x7F).view(torch.float32)
        rounded = (rows / candidate).round().clamp(-_LEVELS, _LEVELS)
        error = (rows - rounded * candidate).square().sum(1, keepdim=True)
        better = error < least_error
        least_error, scale = torch.where(better, error, least_error), torch.where(better, candidate, scale)
        values = torch.where(better, rounded, values)
    values = values.masked_fill(is_outlier, OUTLIER)
    return values.to(torch.int8).view(weight.shape), scale.flatten(), outliers


def find_outliers(values: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of the outliers in the values of :func:`quantize`, a tensor for each axis; () without any."""
    # the smallest value is found in a fraction of the time that a search for all outliers takes; most tensors have none
    return (values == OUTLIER).nonzero(as_tuple=True) if values.numel() and values.amin() == OUTLIER else ()


def dequantize(values: Tensor, scale: Tensor, outliers: Tensor) -> Tensor:
    """Return the float32 weights for the values, scales and outliers of :func:`quantize`.

    Raises:
        ValueError: If the number of scales or outliers does not match the values, or a scale is not above 0.
    """
    if scale.shape != values.shape[:1] or not (scale.isfinite() & (scale > 0)).all():
        raise ValueError(f"expected {len(values)} scales above 0, found {tuple(scale.shape)}")
    weight = values.float().mul_(scale.float().view(-1, *[1] * (values.ndim - 1)))
    found = find_outliers(values)
    number = len(found[0]) if found else 0
    if outliers.shape != (number,):
        raise ValueError(f"expected {number} outliers, found {tuple(outliers.shape)}")
    if number:
        weight[found] = outliers.float()
    return weight


def pack(weights: Weights) -> Weights:
    """Return the tensors that are stored for a state dict.

    A convolution ``name`` becomes ``name``, (out, in, kh, kw) int8, ``name.scale``, (out,) float32, and, if it has
    outliers, ``name.outliers``, float32. A convolution of one output channel (a side output) is small and stays
    float32, as does everything else; counters stay integers.

    Raises:
        ValueError: If a weight of a convolution is not finite; the message names the tensor.
    """
    stored = {}
    for name, tensor in weights.items():
        if tensor.ndim == 4 and len(tensor) > 1:
            if not tensor.isfinite().all():
                raise ValueError(f"{name} has weights that are not finite and cannot be stored as int8")
            stored[name], stored[name + _SCALE], outliers = quantize(tensor)
            if len(outliers):
                stored[name + _OUTLIERS] = outliers
        else:
            stored[name] = tensor.float() if tensor.is_floating_point() else tensor
    return stored


def unpack(stored: Weights) -> Weights:
    """Return the state dict, in float32, for the tensors of :func:`pack`.

    Raises:
        ValueError: If the scales or outliers of a tensor do not match it; the message names the tensor.
    """
    weights = dict(stored)
    for name in [name for name, tensor in stored.items() if tensor.dtype == torch.int8]:
        scale, outliers = (weights.pop(name + part, torch.empty(0)) for part in (_SCALE, _OUTLIERS))
        try:
            weights[name] = dequantize(weights[name], scale, outliers)
        except ValueError as error:
            raise ValueError(f"{name} is damaged: {error}") from error
    return weights
