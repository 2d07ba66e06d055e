"""Give IS-Net weights further input channels: of zeros, or with the mask carried through the network.

Weights of a plain IS-Net know nothing of a mask. With zeros in the new channel they learn of it from the first
convolution on, slowly, through layers that were made for colors. So here one channel of each stage, the one that
does least, can be given up to carry the mask: from the input through all stages to all side outputs. What IS-Net finds
and what the mask shows are then added up from the start, and each scale's convolutions see the mask beside their own
maps and may learn from it at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from IS_Net.preprocess import IMAGE_CHANNELS, MASK_CHANNEL

Weights = dict[str, Tensor]

_EPS = 1e-5  # of all BatchNorms
_LEAST_HEIGHT = 0.2  # of the mask in the channel that carries it: 1 before training, 1.3 after nine runs of it


def expand_input(weights: Weights, in_ch: int) -> Weights:
    """Give IS-Net weights more input channels, of zeros: the network computes what it did before.

    Args:
        weights: A state dict of ISNetDIS; not changed.
        in_ch: The channels wanted, at least as many as there are.

    Returns:
        A state dict of the same names.
    """
    stem = weights["conv_in.weight"]
    zeros = stem.new_zeros(stem.shape[0], in_ch - stem.shape[1], *stem.shape[2:])
    return {**weights, "conv_in.weight": torch.cat((stem, zeros), dim=1)}


def _normalized(weights: Weights, block: str) -> tuple[Tensor, Tensor]:
    """Return a block's convolution with its BatchNorm folded in: weight and bias."""
    norm = {key: weights[f"{block}.bn_s1.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
    gain = norm["weight"] * torch.rsqrt(norm["running_var"] + _EPS)
    bias = (weights[f"{block}.conv_s1.bias"] - norm["running_mean"]) * gain + norm["bias"]
    return weights[f"{block}.conv_s1.weight"] * gain.view(-1, 1, 1, 1), bias


def _energy(weight: Tensor, dim: int) -> Tensor:
    return weight.square().sum([d for d in range(4) if d != dim])


class _Stage:
    """A stage of IS-Net: where its input comes from, who reads its output."""

    def __init__(self, name: str, width: int) -> None:
        self.name, self.width = name, width
        self.readers: list[tuple[str, int]] = []
        """Convolutions that read its output, and the input channel at which its channels begin there."""
        self.side = ""
        self.channel = -1
        """The one that is given up."""


def _stages(weights: Weights) -> tuple[list[_Stage], dict[str, list[tuple[_Stage, int]]]]:
    """Return all stages in the order in which they run, and the stages (and offsets) that each one's input holds."""
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
    """Let one channel of each stage carry the mask, and add it to all side outputs.

    The stages' residual connections (an RSU's output is the sum of its first convolution's and its U's) let a channel
    pass; between the stages it is pooled like all others. Of each stage the channel is taken that matters least to the
    stages and the side output behind it, as judged by the sizes of the weights that make it and of those that read it.

    Args:
        weights: A state dict of ISNetDIS of at least 4 input channels; not changed.
        logit: What the mask adds to each side output: half of it inside the mask, minus half of it outside.

    Returns:
        A state dict of the same names and shapes.
    """
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    stem, first = weights["conv_in.weight"], "stage1.rebnconvin"
    use = _energy(_normalized(weights, first)[0], dim=1)
    carrier = int((_energy(stem[:, :IMAGE_CHANNELS], dim=0) * use).argmin())
    weights[f"{first}.conv_s1.weight"][:, carrier] = 0
    kernel = torch.tensor([0.25, 0.5, 0.25])  # the first convolution halves the size: smooth, so that no row is lost
    stem[carrier] = 0
    stem[carrier, MASK_CHANNEL] = torch.outer(kernel, kernel)
    weights["conv_in.bias"][carrier] = 0

    stages, inputs = _stages(weights)
    for stage in stages:
        stage.channel = int(_influence(weights, stage).argmin())
        source, offset = inputs[stage.name][-1] if inputs[stage.name] else (None, 0)
        _pass_on(weights, stage, offset + (source.channel if source else carrier))
        if stage.side:
            weights[f"{stage.side}.weight"][:, stage.channel, 1, 1] = logit
            weights[f"{stage.side}.bias"] -= logit / 2
    return weights


@torch.no_grad()
def increase_mask_skip(weights: Weights, logit: float) -> Weights:
    """Let the mask count for more in the finest side output of trained weights in which :func:`add_mask_skip` carries it.

    Training bends the path where masks are often wrong, in the first stage least. So one more channel of the last
    stage, again the one that does least, is given up to take the mask from there afresh.

    Args:
        weights: A state dict of ISNetDIS; not changed.
        logit: Added to the output inside the mask, and taken from it outside.

    Returns:
        A state dict of the same names and shapes.

    Raises:
        ValueError: If no channel carries the mask.
    """
    if weights["conv_in.weight"].shape[1] <= MASK_CHANNEL:
        raise ValueError(
            "the weights have no input channel for a mask; train them with in_ch=4 and mask_skip_logit first"
        )
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    stages, inputs = _stages(weights)
    last = stages[-1]
    first, offset = inputs[last.name][-1]
    stem = weights["conv_in.weight"][:, MASK_CHANNEL].sum((1, 2)) - weights["conv_in.weight"].abs().sum((1, 2, 3))
    carrier = int(stem.argmax())  # the channel that reads nothing but the mask, as far as training left it
    source = int(weights[f"{first.name}.rebnconvin.conv_s1.weight"][:, carrier, 1, 1].argmax())
    influence = _influence(weights, last)
    influence[int(weights["side1.weight"][0, :, 1, 1].argmax())] = torch.inf  # the path that there is
    last.channel = int(influence.argmin())
    _pass_on(weights, last, offset + source)
    outside, inside = _levels(weights, f"{first.name}.rebnconvin", source)
    if inside - outside < _LEAST_HEIGHT:
        raise ValueError(
            "no channel carries the mask through the first stage; only weights trained with mask_skip_logit do"
        )
    gain = 2 * logit / (inside - outside)
    weights["side1.weight"][:, last.channel, 1, 1] = gain
    weights["side1.bias"] -= logit + gain * outside
    return weights


def _levels(weights: Weights, block: str, channel: int) -> tuple[float, float]:
    """Compute a channel of the first stage's first block over plain gray, outside and inside of a mask."""
    kernel, bias = (tensor[channel] for tensor in _normalized(weights, block))
    stem = weights["conv_in.bias"] + torch.outer(
        torch.tensor([0.0, 1.0]), weights["conv_in.weight"][:, MASK_CHANNEL].sum((1, 2))
    )
    return tuple((stem @ kernel.sum((1, 2)) + bias).clamp_min(0).tolist())


def _influence(weights: Weights, stage: _Stage) -> Tensor:
    """Judge how much each channel of a stage does: (width,)."""
    made = torch.zeros(stage.width)
    for block in (f"{stage.name}.rebnconvin", f"{stage.name}.rebnconv1d"):
        weight, bias = _normalized(weights, block)
        made += _energy(weight, dim=0) + bias.clamp_min(0).square()  # a negative bias keeps a channel silent
    read = torch.zeros(stage.width)
    for reader, offset in stage.readers:
        folds = reader.endswith(".conv_s1")
        weight = _normalized(weights, reader.removesuffix(".conv_s1"))[0] if folds else weights[f"{reader}.weight"]
        read += _energy(weight[:, offset : offset + stage.width], dim=1)
    return made * read


def _pass_on(weights: Weights, stage: _Stage, source: int) -> None:
    """Make a stage's channel a copy of one of its input; nothing but the later stages' copies reads it as yet."""
    channel = stage.channel
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
