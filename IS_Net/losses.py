"""The training losses, as pure functions: side outputs (BCE + IoU), feature supervision, orthogonality.

The weights of the sum are settings (:mod:`IS_Net.hypar`), whose defaults are those of the published recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from IS_Net import distributed

IOU_SMOOTH = 1.0


def _mean(values: Tensor) -> Tensor:
    """Return the mean; 0 of no values, because a process may get none of the last samples of an epoch."""
    return values.sum() / max(values.numel(), 1)


def bce_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross entropy, averaged over all pixels.

    Args:
        logits: Any shape and float dtype.
        target: In [0, 1], of the same shape.
        weight: Weights of the pixels, of the same shape and mean 1; None weights all pixels equally.
    """
    return _mean(F.binary_cross_entropy_with_logits(logits.float(), target, weight, reduction="none"))


def edge_weights(target: Tensor, edge_weight: float, reach: int = 31) -> Tensor:
    """Compute pixel weights that are larger near edges and in thin parts than in uniform areas.

    The weights of "F3Net: Fusion, Feedback and Focus for Salient Object Detection" (Wei et al., AAAI 2020), whose
    factor is 5: 1 + factor * |local mean - target|, here scaled to a mean of 1.

    Args:
        target: (B, 1, H, W) in [0, 1].
        edge_weight: The factor; 0 weights all pixels equally.
        reach: Side of the square window of the local mean in pixels, odd.

    Returns:
        (B, 1, H, W) of the dtype of ``target``, with mean 1 over the batch: that of all processes together.
    """
    mean = target
    for side in ((1, reach), (reach, 1)):  # separable: 62 additions per pixel instead of 961
        padding = side[0] // 2, side[1] // 2
        mean = F.avg_pool2d(mean, side, stride=1, padding=padding, count_include_pad=False)
    return _scaled(1 + edge_weight * (mean - target).abs())


def _scaled(weight: Tensor) -> Tensor:
    """Return weights of pixels with mean 1 over the samples of all processes."""
    total, number = distributed.mean(torch.stack((weight.sum(), weight.new_full((), weight.numel()))))
    return weight * (number / total)


def iou_loss(logits: Tensor, target: Tensor, smooth: float = IOU_SMOOTH) -> Tensor:
    """Soft IoU loss: ``1 - (I + smooth) / (U + smooth)`` of each sample, then their mean.

    Args:
        logits: (B, C, H, W), any float dtype.
        target: (B, C, H, W) in [0, 1].
        smooth: Added to intersection and union, so that the loss is defined for an empty sample.
    """
    probability = torch.sigmoid(logits.float())
    intersection = (probability * target).flatten(1).sum(1)
    union = probability.flatten(1).sum(1) + target.flatten(1).sum(1) - intersection
    return _mean(1 - (intersection + smooth) / (union + smooth))


def side_output_loss(
    sides: Sequence[Tensor],
    target: Tensor,
    bce_weight: float,
    iou_weight: float,
    edge_weight: float = 0.0,
    extra_weight: Tensor | None = None,
) -> Tensor:
    """Sum over the side outputs of ``bce_weight * BCE + iou_weight * IoU``.

    Args:
        sides: Logits (B, 1, H, W) at the input's size, as the networks' ``forward`` returns them.
        target: (B, 1, H, W) in [0, 1].
        bce_weight: Weight of the cross entropy.
        iou_weight: Weight of the IoU loss.
        edge_weight: Extra weight of pixels near edges in the cross entropy, see :func:`edge_weights`.
        extra_weight: (B, 1, H, W), extra weights of pixels in the cross entropy, in addition to those of edges; None
            adds nothing.
    """
    weight = edge_weights(target, edge_weight) if edge_weight else None
    if extra_weight is not None:
        weight = extra_weight + (1 if weight is None else weight)
        weight = _scaled(weight)
    return torch.stack(
        [bce_weight * bce_loss(side, target, weight) + iou_weight * iou_loss(side, target) for side in sides]
    ).sum()


def feature_loss(features: Sequence[Tensor], gt_features: Sequence[Tensor]) -> Tensor:
    """Intermediate supervision of IS-Net: the mean squared error of the features, summed over the stages.

    Args:
        features: Six feature maps of the segmentation network.
        gt_features: Six feature maps of the frozen GT encoder, of the same shapes.
    """
    pairs = zip(features, gt_features, strict=True)
    return torch.stack(
        [_mean(F.mse_loss(found.float(), wanted.float(), reduction="none")) for found, wanted in pairs]
    ).sum()


def _flat_weights(model: nn.Module) -> Iterable[Tensor]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith("bias"):
            weight = parameter if parameter.ndim > 1 else parameter[:, None]
            # W W^T does not depend on the order of W's columns; in the order of its memory, a weight is not copied
            yield (weight if weight.is_contiguous() else weight.movedim(1, -1)).flatten(1)


class _GramDistance(torch.autograd.Function):
    """``sum |W W^T - I|`` of one matrix. W W^T is symmetric, so that its gradient takes one product, not two."""

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
    """Orthogonal regularization: the sum of ``|W W^T - I|`` over all trainable parameters except biases.

    Each parameter is viewed as (C, -1); BatchNorm weights are included, as (C, 1). The sum is always computed in
    float32, because it has tens of millions of terms.
    """
    with torch.autocast(next(model.parameters()).device.type, enabled=False):
        return torch.stack([_GramDistance.apply(weight) for weight in _flat_weights(model)]).sum()
