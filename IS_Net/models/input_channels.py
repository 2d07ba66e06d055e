"""Add input channels to IS-Net weights: with zero weights, with a mask skip connection, or as a copy of the mask's.

A plain IS-Net was not trained with a coarse mask. With zero weights in the new channel it learns to use the mask only
slowly, from the first convolution on, through layers that were trained for colors. :func:`add_mask_skip` therefore
gives up one channel of each stage, the least important one, and uses it to pass the mask from the input through all
stages to all side outputs: a skip connection inside the existing architecture. Each side output is then the sum of what
IS-Net finds and the mask from the start, and the convolutions of each stage can learn from the mask at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from IS_Net.preprocess import BOX_CHANNEL, IMAGE_CHANNELS, MASK_CHANNEL

Weights = dict[str, Tensor]

_EPS = 1e-5  # of all BatchNorms
_LEAST_CONTRAST = 0.2  # of the mask in a carrier channel: 1 before training, 1.3 after nine training runs


def expand_input(weights: Weights, in_ch: int) -> Weights:
    """Add input channels with zero weights: the network computes the same as before.

    Args:
        weights: A state dict of ISNetDIS; not changed.
        in_ch: The number of input channels of the result, at least that of ``weights``.

    Returns:
        A state dict of the same names.
    """
    stem = weights["conv_in.weight"]
    zeros = stem.new_zeros(stem.shape[0], in_ch - stem.shape[1], *stem.shape[2:])
    return {**weights, "conv_in.weight": torch.cat((stem, zeros), dim=1)}


def copy_mask_to_box(weights: Weights, gain: float) -> Weights:
    """Replace the box channel's weights by a multiple of the mask channel's.

    With a gain of 1, a network that takes a filled box for its mask computes the same for a box alone as before. With a
    mask and a box it adds both, and must be trained; see ``recipes/starter/LOG.md`` for a comparison with zero weights.

    Args:
        weights: A state dict of ISNetDIS with 5 input channels; not changed.
        gain: The multiple.

    Returns:
        A state dict of the same names and shapes.
    """
    stem = weights["conv_in.weight"].clone()
    stem[:, BOX_CHANNEL] = gain * stem[:, MASK_CHANNEL]
    return {**weights, "conv_in.weight": stem}


def _fold_batchnorm(weights: Weights, block: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a block's convolution with its BatchNorm folded in."""
    norm = {key: weights[f"{block}.bn_s1.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
    gain = norm["weight"] * torch.rsqrt(norm["running_var"] + _EPS)
    bias = (weights[f"{block}.conv_s1.bias"] - norm["running_mean"]) * gain + norm["bias"]
    return weights[f"{block}.conv_s1.weight"] * gain.view(-1, 1, 1, 1), bias


def _energy(weight: Tensor, dim: int) -> Tensor:
    """Return the sum of squares of a convolution's weights for each output (dim 0) or input channel (dim 1)."""
    return weight.square().sum([d for d in range(4) if d != dim])


class _Stage:
    """A stage of IS-Net, the convolutions that read its output, and its carrier: the channel that passes the mask."""

    def __init__(self, name: str, width: int) -> None:
        self.name, self.width = name, width
        self.readers: list[tuple[str, int]] = []
        """The convolutions that read its output, each with the offset of its channels in their input."""
        self.side = ""
        """The side output that reads it, if any."""
        self.carrier = -1


def _stages(weights: Weights) -> tuple[list[_Stage], dict[str, list[tuple[_Stage, int]]]]:
    """Return all stages in the order in which they run, and for each the stages (and offsets) in its input."""
    widths = {n.split(".")[0]: t.shape[0] for n, t in weights.items() if n.endswith(".rebnconvin.conv_s1.weight")}
    stages = {name: _Stage(name, width) for name, width in widths.items()}
    inputs: dict[str, list[tuple[_Stage, int]]] = {"stage1": []}
    for level in range(2, 7):
        inputs[f"stage{level}"] = [(stages[f"stage{level - 1}"], 0)]
    for level in range(5, 0, -1):
        below = stages["stage6" if level == 5 else f"stage{level + 1}d"]
        inputs[f"stage{level}d"] = [(below, 0), (stages[f"stage{level}"], below.width)]
    for name, sources in inputs.items():
        for source, offset in sources:
            source.readers.append((f"{name}.rebnconvin.conv_s1", offset))
    for level in range(1, 7):
        stage = stages["stage6" if level == 6 else f"stage{level}d"]
        stage.side = f"side{level}"
        stage.readers.append((stage.side, 0))
    return [stages[name] for name in inputs], inputs


@torch.no_grad()
def add_mask_skip(weights: Weights, logit: float) -> Weights:
    """Add a mask skip connection from the input through one channel of each stage to all side outputs.

    The residual connections of the stages (the output of an RSU is the sum of its first convolution and its U) pass
    the channel on; between stages it is pooled like all others. In each stage it replaces the channel of least
    influence on the stages and the side output behind it, estimated from the weights that compute the channel and
    those that read it.

    Args:
        weights: A state dict of ISNetDIS with at least 4 input channels; not changed.
        logit: The difference that the mask makes in each side output: half of it is added inside the mask and half
            subtracted outside.

    Returns:
        A state dict of the same names and shapes.
    """
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    stem, first = weights["conv_in.weight"], "stage1.rebnconvin"
    use = _energy(_fold_batchnorm(weights, first)[0], dim=1)
    stem_carrier = int((_energy(stem[:, :IMAGE_CHANNELS], dim=0) * use).argmin())
    weights[f"{first}.conv_s1.weight"][:, stem_carrier] = 0
    kernel = torch.tensor([0.25, 0.5, 0.25])  # conv_in has stride 2: the kernel is smooth, so that no row is skipped
    stem[stem_carrier] = 0
    stem[stem_carrier, MASK_CHANNEL] = torch.outer(kernel, kernel)
    weights["conv_in.bias"][stem_carrier] = 0

    stages, inputs = _stages(weights)
    for stage in stages:
        stage.carrier = int(_influence(weights, stage).argmin())
        source, offset = inputs[stage.name][-1] if inputs[stage.name] else (None, 0)
        _pass_on(weights, stage, offset + (source.carrier if source else stem_carrier))
        if stage.side:
            weights[f"{stage.side}.weight"][:, stage.carrier, 1, 1] = logit
            weights[f"{stage.side}.bias"] -= logit / 2
    return weights


@torch.no_grad()
def increase_mask_skip(weights: Weights, gain: float) -> Weights:
    """Increase the weight of the mask in the finest side output of weights that were trained with a mask skip.

    Training changes the skip connection where masks are often wrong, least of all in the first stage. So one more
    channel of the last stage, again the one of least influence, takes the mask directly from the first stage.

    Args:
        weights: A state dict of ISNetDIS; not changed.
        gain: Is added to the output logits inside the mask and subtracted outside.

    Returns:
        A state dict of the same names and shapes.

    Raises:
        ValueError: If the weights have no mask skip connection.
    """
    if weights["conv_in.weight"].shape[1] <= MASK_CHANNEL:
        raise ValueError(
            "the weights have no input channel for a mask; train them with model=4 and mask_skip_logit first"
        )
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    stages, inputs = _stages(weights)
    last = stages[-1]
    first, offset = inputs[last.name][-1]
    only_mask = weights["conv_in.weight"][:, MASK_CHANNEL].sum((1, 2)) - weights["conv_in.weight"].abs().sum((1, 2, 3))
    stem_carrier = int(only_mask.argmax())  # the channel that reads almost nothing but the mask
    source = int(weights[f"{first.name}.rebnconvin.conv_s1.weight"][:, stem_carrier, 1, 1].argmax())
    influence = _influence(weights, last)
    influence[int(weights["side1.weight"][0, :, 1, 1].argmax())] = torch.inf  # the existing carrier is not replaced
    last.carrier = int(influence.argmin())
    _pass_on(weights, last, offset + source)
    outside, inside = _mask_levels(weights, f"{first.name}.rebnconvin", source)
    if inside - outside < _LEAST_CONTRAST:
        raise ValueError(
            "the first stage has no mask skip connection; only weights that were trained with mask_skip_logit have one"
        )
    slope = 2 * gain / (inside - outside)
    weights["side1.weight"][:, last.carrier, 1, 1] = slope
    weights["side1.bias"] -= gain + slope * outside
    return weights


def _mask_levels(weights: Weights, block: str, channel: int) -> tuple[float, float]:
    """Return a channel's value in the first block of the first stage for a gray image, outside and inside of a mask."""
    kernel, bias = (tensor[channel] for tensor in _fold_batchnorm(weights, block))
    stem = weights["conv_in.bias"] + torch.outer(
        torch.tensor([0.0, 1.0]), weights["conv_in.weight"][:, MASK_CHANNEL].sum((1, 2))
    )
    return tuple((stem @ kernel.sum((1, 2)) + bias).clamp_min(0).tolist())


def _influence(weights: Weights, stage: _Stage) -> Tensor:
    """Estimate the influence of each channel of a stage on the layers behind it: (width,)."""
    written = torch.zeros(stage.width)
    for block in (f"{stage.name}.rebnconvin", f"{stage.name}.rebnconv1d"):
        weight, bias = _fold_batchnorm(weights, block)
        written += _energy(weight, dim=0) + bias.clamp_min(0).square()  # a negative bias keeps a channel inactive
    read = torch.zeros(stage.width)
    for reader, offset in stage.readers:
        block = reader.removesuffix(".conv_s1")
        weight = weights[f"{reader}.weight"] if block == reader else _fold_batchnorm(weights, block)[0]
        read += _energy(weight[:, offset : offset + stage.width], dim=1)
    return written * read


def _pass_on(weights: Weights, stage: _Stage, source: int) -> None:
    """Make a stage's carrier a copy of one of its input channels, which no other layer reads yet."""
    channel = stage.carrier
    for block in (f"{stage.name}.rebnconvin", f"{stage.name}.rebnconv1d"):
        weights[f"{block}.conv_s1.weight"][channel] = 0
        weights[f"{block}.conv_s1.bias"][channel] = 0
        norm = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1 - _EPS}
        for key, value in norm.items():
            weights[f"{block}.bn_s1.{key}"][channel] = value
    weights[f"{stage.name}.rebnconvin.conv_s1.weight"][channel, source, 1, 1] = 1
    weights[f"{stage.name}.rebnconv1.conv_s1.weight"][:, channel] = 0
    for reader, offset in stage.readers:
        weights[f"{reader}.weight"][:, offset + channel] = 0
