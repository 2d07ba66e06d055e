"""The training losses, as pure functions: side outputs (BCE + IoU), feature supervision, orthogonality.

The weights with which they are summed stand in ``hypar``; their defaults are the published recipe's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IOU_SMOOTH = 1.0


def bce_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross entropy, averaged over all pixels; logits and target (in [0, 1]) of one shape.

    ``weight``, of the same shape and of mean 1, gives some pixels more weight than others.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), target, weight)


def edge_weights(target: Tensor, edge_weight: float, reach: int = 31) -> Tensor:
    """Weigh pixels by how much their surroundings differ from them: edges and thin parts more than plain areas.

    The weights of "F3Net: Fusion, Feedback and Focus for Salient Object Detection" (Wei et al., AAAI 2020), whose
    factor is 5: 1 + factor * |mean of the surroundings - target|, here scaled to a mean of 1.

    Args:
        target: (B, 1, H, W) in [0, 1].
        edge_weight: The factor; 0 gives all pixels the same weight.
        reach: Side of the surroundings in pixels, odd.

    Returns:
        (B, 1, H, W) of the target's type, of mean 1 over the batch.
    """
    mean = target
    for side in ((1, reach), (reach, 1)):  # one direction after the other: 62 sums a pixel instead of 961
        padding = side[0] // 2, side[1] // 2
        mean = F.avg_pool2d(mean, side, stride=1, padding=padding, count_include_pad=False)
    weight = 1 + edge_weight * (mean - target).abs()
    return weight / weight.mean()


def iou_loss(logits: Tensor, target: Tensor, smooth: float = IOU_SMOOTH) -> Tensor:
    """Soft IoU loss: ``1 - (I + smooth) / (U + smooth)`` of each sample, then their mean.

    Args:
        logits: (B, C, H, W), any float dtype.
        target: (B, C, H, W) in [0, 1].
        smooth: Added to intersection and union, so that an empty sample has a value.
    """
    probability = torch.sigmoid(logits.float())
    intersection = (probability * target).flatten(1).sum(1)
    union = probability.flatten(1).sum(1) + target.flatten(1).sum(1) - intersection
    return (1 - (intersection + smooth) / (union + smooth)).mean()


def side_output_loss(
    sides: Sequence[Tensor],
    target: Tensor,
    bce_weight: float = 20.0,
    iou_weight: float = 0.5,
    edge_weight: float = 0.0,
) -> Tensor:
    """Sum over the side outputs of ``bce_weight * BCE + iou_weight * IoU``.

    Args:
        sides: Logits (B, 1, H, W) at the input's size, as the networks' ``forward`` returns them.
        target: (B, 1, H, W) in [0, 1].
        bce_weight: Weight of the cross entropy (published: 20).
        iou_weight: Weight of the IoU loss (published: 0.5).
        edge_weight: How much more the cross entropy minds edges, see :func:`edge_weights` (published: 0).
    """
    weight = edge_weights(target, edge_weight) if edge_weight else None
    return torch.stack(
        [bce_weight * bce_loss(side, target, weight) + iou_weight * iou_loss(side, target) for side in sides]
    ).sum()


def feature_loss(features: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Intermediate supervision of IS-Net: the sum over the stages of the features' mean squared error.

    Args:
        features: Six maps of the segmentation network.
        teacher: Six maps of the frozen ground-truth encoder, of the same shapes.
    """
    pairs = zip(features, teacher, strict=True)
    return torch.stack([F.mse_loss(found.float(), wanted.float()) for found, wanted in pairs]).sum()


def _flat_weights(model: nn.Module) -> Iterable[Tensor]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith("bias"):
            # W W^T does not mind the order of W's columns; in this one a channels_last weight needs no copy
            yield parameter.movedim(1, -1).flatten(1) if parameter.ndim > 1 else parameter[:, None]


class _GramDistance(torch.autograd.Function):
    """``sum |W W^T - I|`` of one matrix; as W W^T is symmetric, its gradient takes one product instead of two."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        difference = weight @ weight.T
        difference.diagonal().sub_(1)
        ctx.save_for_backward(weight, difference.sign())
        return difference.abs().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        weight, sign = ctx.saved_tensors
        return (sign @ weight).mul_(2 * gradient)


def orthogonal_loss(model: nn.Module) -> Tensor:
    """Sum of ``|W W^T - I|`` over all trainable parameters but the biases, each viewed as (C, -1).

    BatchNorm weights are included, as (C, 1). The published code adds it with a weight of 1e-8. Always computed
    in float32: it sums tens of millions of entries.
    """
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        return torch.stack([_GramDistance.apply(weight) for weight in _flat_weights(model)]).sum()
