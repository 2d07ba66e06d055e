"""The losses against values computed by hand and against plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from IS_Net.losses import bce_loss, edge_weights, feature_loss, iou_loss, orthogonal_loss, side_output_loss

SIDES = (8, 6)


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def net() -> nn.Module:
    """Return a small network with all kinds of parameters: convolutions, BatchNorms, biases."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, (1, 3)), nn.BatchNorm2d(2))
    nn.init.uniform_(model[1].weight)
    nn.init.uniform_(model[3].weight, -2, 2)
    return model


def plain_orthogonal(model: nn.Module) -> Tensor:
    """Compute sum |W W^T - I| entry by entry."""
    total = torch.zeros((), dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            continue
        rows = parameter.double().reshape(parameter.shape[0], -1)
        for i in range(len(rows)):
            for j in range(len(rows)):
                total = total + (rows[i].dot(rows[j]) - float(i == j)).abs()
    return total


# --- BCE and IoU ---


def test_bce_by_hand():
    logits = torch.tensor([[[[logit(0.9), logit(0.2)]]]])
    target = torch.tensor([[[[1.0, 0.25]]]])
    wanted = (-math.log(0.9) - 0.25 * math.log(0.2) - 0.75 * math.log(0.8)) / 2
    assert bce_loss(logits, target).item() == pytest.approx(wanted, rel=1e-6)


def test_edge_weights_by_hand():
    """The local mean is taken over the pixels of the window that are inside the image."""
    target = torch.zeros(1, 1, 7, 9)
    target[..., :4] = 1
    found = edge_weights(target, 5.0, reach=3)
    rows = torch.tensor([1, 1, 1, 1 + 5 / 3, 1 + 5 / 3, 1, 1, 1, 1])
    torch.testing.assert_close(found, (rows / rows.mean()).expand(1, 1, 7, 9))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_uniform_target_has_uniform_weights(value: float):
    torch.testing.assert_close(edge_weights(torch.full((2, 1, 40, 30), value), 5.0), torch.ones(2, 1, 40, 30))


def test_edge_weights_against_a_plain_mean():
    torch.manual_seed(0)
    target = (torch.rand(1, 1, 50, 40) > 0.5).float()
    y, x = 17, 33
    near = target[0, 0, max(y - 15, 0) : y + 16, max(x - 15, 0) : x + 16].mean()
    found = edge_weights(target, 5.0)
    other = edge_weights(target, 0.0)
    assert torch.equal(other, torch.ones_like(target)) and abs(found.mean() - 1) < 1e-5
    plain = target[0, 0, max(9 - 15, 0) : 9 + 16, max(5 - 15, 0) : 5 + 16].mean()
    ratio = (1 + 5 * (near - target[0, 0, y, x]).abs()) / (1 + 5 * (plain - target[0, 0, 9, 5]).abs())
    torch.testing.assert_close(found[0, 0, y, x] / found[0, 0, 9, 5], ratio)


def test_edge_weight_increases_the_loss_near_edges():
    target = torch.zeros(1, 1, 64, 64)
    target[..., :32] = 1
    right = (target * 2 - 1) * 4
    at_edge, far = right.clone(), right.clone()
    at_edge[..., 32] *= -1
    far[..., 63] *= -1
    plain = [side_output_loss([side], target, 20.0, 0.0) for side in (at_edge, far)]
    torch.testing.assert_close(plain[0], plain[1])
    assert side_output_loss([at_edge], target, 20.0, 0.0, 5.0) > 2 * side_output_loss([far], target, 20.0, 0.0, 5.0)


def test_iou_is_taken_per_sample():
    """For samples of very different areas, pooled pixels would give another value."""
    logits = torch.tensor([[logit(0.9), logit(0.5)], [logit(0.1), logit(0.2)]]).view(2, 1, 1, 2)
    target = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    first = 1 - (0.9 + 0.5 + 1) / (2 + 1)  # intersection 1.4, union 1.4 + 2 - 1.4
    second = 1 - (0.2 + 1) / (0.3 + 1 - 0.2 + 1)
    assert iou_loss(logits, target).item() == pytest.approx((first + second) / 2, rel=1e-6)
    pooled = 1 - (1.4 + 0.2 + 1) / (1.7 + 3 - 1.6 + 1)
    assert iou_loss(logits, target).item() != pytest.approx(pooled, rel=1e-3)


def test_iou_of_nothing_and_of_everything():
    sure = torch.full((1, 1, 4, 4), 100.0)
    empty, full = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert iou_loss(-sure, empty).item() == pytest.approx(0, abs=1e-6)  # because of the smoothing
    assert iou_loss(sure, full).item() == pytest.approx(0, abs=1e-6)
    assert iou_loss(sure, empty).item() == pytest.approx(1 - 1 / 17, rel=1e-6)
    assert iou_loss(sure, empty, smooth=4).item() == pytest.approx(1 - 4 / 20, rel=1e-6)


def test_side_outputs_are_summed_with_their_weights():
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(3, 1, *SIDES, generator=generator) for _ in range(6)]
    target = torch.rand(3, 1, *SIDES, generator=generator)
    total = 0.0
    for side in sides:
        p = 1 / (1 + (-side.double()).exp())
        bce = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
        overlap, both = (p * target).sum((1, 2, 3)), (p + target - p * target).sum((1, 2, 3))
        total += 20 * bce + 0.5 * (1 - (overlap + 1) / (both + 1)).mean()
    assert side_output_loss(sides, target, 20.0, 0.5).item() == pytest.approx(total.item(), rel=1e-5)
    one = side_output_loss(sides[:1], target, bce_weight=0, iou_weight=1)
    assert one.item() == pytest.approx(iou_loss(sides[0], target).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1.0, 6e4])
def test_losses_stay_finite(dtype: torch.dtype, scale: float):
    signs = torch.randn(2, 1, *SIDES, generator=torch.Generator().manual_seed(0)).sign()
    logits = (signs * scale).to(dtype).requires_grad_()
    loss = side_output_loss([logits] * 6, (signs < 0).float(), 20.0, 0.5)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


# --- feature supervision ---


def test_feature_loss_by_hand():
    found = [torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0], [3.0]])]
    wanted = [torch.tensor([[1.0, 4.0]]), torch.tensor([[1.0], [1.0]])]
    assert feature_loss(found, wanted).item() == pytest.approx((0 + 4) / 2 + (1 + 4) / 2)


def test_feature_loss_needs_equally_many_maps():
    maps = [torch.zeros(1, 2)] * 6
    with pytest.raises(ValueError, match="argument"):
        feature_loss(maps, maps[:5])


def test_feature_loss_of_16_bits_does_not_overflow():
    loss = feature_loss([torch.full((4,), 300.0, dtype=torch.float16)], [torch.zeros(4, dtype=torch.float16)])
    assert loss.item() == pytest.approx(9e4)  # beyond float16


# --- the orthogonal term ---


def test_orthogonal_loss_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        model[0].bias.fill_(50)
        model[1].weight.copy_(torch.tensor([2.0, -1.0]))
    linear = abs(5 - 1) + 6 + 6 + abs(9 - 1)
    batch_norm = abs(4 - 1) + 2 + 2 + abs(1 - 1)  # its weights are a column: their outer product
    assert orthogonal_loss(model).item() == pytest.approx(linear + batch_norm)


def test_orthogonal_loss_is_zero_for_an_orthogonal_matrix():
    model = nn.Linear(4, 3)
    nn.init.orthogonal_(model.weight)
    assert orthogonal_loss(model).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_orthogonal_loss_and_gradient_against_the_plain_formula(memory_format: torch.memory_format):
    model = net().to(memory_format=memory_format)
    wanted = plain_orthogonal(model)
    gradients = torch.autograd.grad(wanted, list(model.parameters()), allow_unused=True)
    loss = orthogonal_loss(model)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    (3 * loss).backward()
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        if name.endswith("bias"):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, 3 * gradient.to(parameter.dtype), rtol=1e-4, atol=1e-5)


def test_orthogonal_gradient_against_finite_differences():
    model = net().double()
    names = [name for name, _ in model.named_parameters() if not name.endswith("bias")]

    def value(*weights: Tensor) -> Tensor:
        for name, weight in zip(names, weights, strict=True):  # plain tensors in the parameters' place
            owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            owner._parameters[leaf] = weight
        return orthogonal_loss(model)

    weights = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(value, weights, eps=1e-7, atol=1e-5)


def test_frozen_parameters_are_excluded():
    model = net()
    whole = orthogonal_loss(model).item()
    model[0].weight.requires_grad_(False)
    rows = model[0].weight.flatten(1)
    assert orthogonal_loss(model).item() == pytest.approx(whole - (rows @ rows.T - torch.eye(5)).abs().sum().item())


def test_orthogonal_loss_is_float32_under_autocast():
    model = net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = orthogonal_loss(model)
    assert inside.dtype == torch.float32
    assert inside.item() == orthogonal_loss(model).item()
