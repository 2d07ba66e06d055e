"""The networks: names, shapes and sizes are those of the published ones, and they compute the same function."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from IS_Net.models import RSU, ConvBNReLU, ISNetDIS, ISNetGTEncoder
from tests.thin_networks import Thin, ThinGTEncoder

FEATURE_CHANNELS = (64, 64, 128, 256, 512, 512)
RSUS = [(7, True), (6, True), (5, True), (4, True), (4, False)]

# stage: (levels, pooled, in, mid, out), from the paper's figure and the published code
DIS_STAGES = {
    "stage1": (7, True, 64, 32, 64),
    "stage2": (6, True, 64, 32, 128),
    "stage3": (5, True, 128, 64, 256),
    "stage4": (4, True, 256, 128, 512),
    "stage5": (4, False, 512, 256, 512),
    "stage6": (4, False, 512, 256, 512),
    "stage5d": (4, False, 1024, 256, 512),
    "stage4d": (4, True, 1024, 128, 256),
    "stage3d": (5, True, 512, 64, 128),
    "stage2d": (6, True, 256, 32, 64),
    "stage1d": (7, True, 128, 16, 64),
}
GT_STAGES = {
    "stage1": (7, True, 16, 16, 64),
    "stage2": (6, True, 64, 16, 64),
    "stage3": (5, True, 64, 32, 128),
    "stage4": (4, True, 128, 32, 256),
    "stage5": (4, False, 256, 64, 512),
    "stage6": (4, False, 512, 64, 512),
}


def conv_entries(name: str, in_ch: int, out_ch: int) -> Iterator[tuple[str, tuple]]:
    yield f"{name}.weight", (out_ch, in_ch, 3, 3)
    yield f"{name}.bias", (out_ch,)


def norm_entries(name: str, channels: int) -> Iterator[tuple[str, tuple]]:
    for kind in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{kind}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def rsu_entries(name: str, levels: int, in_ch: int, mid_ch: int, out_ch: int) -> Iterator[tuple[str, tuple]]:
    blocks = {"rebnconvin": (in_ch, out_ch), "rebnconv1": (out_ch, mid_ch)}
    blocks |= {f"rebnconv{level}": (mid_ch, mid_ch) for level in range(2, levels + 1)}
    blocks |= {f"rebnconv{level}d": (2 * mid_ch, mid_ch) for level in range(2, levels)}
    blocks["rebnconv1d"] = (2 * mid_ch, out_ch)
    for block, channels in blocks.items():
        yield from conv_entries(f"{name}.{block}.conv_s1", *channels)
        yield from norm_entries(f"{name}.{block}.bn_s1", channels[1])


def published_entries(stages: dict[str, tuple], in_ch: int, encoder: bool) -> dict[str, tuple]:
    """Return the names and shapes of a published checkpoint."""
    entries: dict[str, tuple] = {}
    if encoder:
        entries |= dict([*conv_entries("conv_in.conv", in_ch, 16), *norm_entries("conv_in.bn", 16)])
    else:
        entries |= dict(conv_entries("conv_in", in_ch, 64))
    for name, (levels, _, *channels) in stages.items():
        entries |= dict(rsu_entries(name, levels, *channels))
    for level, channels in enumerate(FEATURE_CHANNELS, start=1):
        entries |= dict(conv_entries(f"side{level}", channels, 1))
    return entries


def randomize_batchnorm(model: nn.Module) -> None:
    """Give the statistics and weights values under which a BatchNorm is not the identity."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)


# --- names and shapes ---


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_isnet_has_the_published_state_dict(in_ch: int):
    with torch.device("meta"):
        state = ISNetDIS(in_ch).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published_entries(DIS_STAGES, in_ch, False)


def test_gt_encoder_has_the_published_state_dict():
    with torch.device("meta"):
        state = ISNetGTEncoder().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published_entries(GT_STAGES, 1, True)


@pytest.mark.parametrize(("in_ch", "parameters"), [(5, 44_047_942), (4, 44_047_942 - 576), (3, 44_047_942 - 1152)])
def test_parameter_count(in_ch: int, parameters: int):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ISNetDIS(in_ch).parameters()) == parameters


def test_further_output_channels():
    with torch.device("meta"):
        network = ISNetDIS(4, out_ch=2)
        assert network.predict_logits(torch.zeros(1, 4, 64, 96)).shape == (1, 2, 64, 96)
    assert network.in_ch == 4
    assert ISNetGTEncoder(in_ch=1).in_ch == 1


# --- blocks ---


def conv_bn_relu(block: ConvBNReLU, x: Tensor, dilation: int) -> Tensor:
    """Compute a block from its tensors, without its forward method."""
    conv, norm = block.conv_s1, block.bn_s1
    x = F.conv2d(x, conv.weight, conv.bias, padding=dilation, dilation=dilation)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return ((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(min=0)


def plain_rsu4(m: RSU, x: Tensor) -> Tensor:
    """Compute RSU-4 line by line, as in the paper's figure."""

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, 2, ceil_mode=True)

    def up_cat(x: Tensor, like: Tensor) -> Tensor:
        return torch.cat((F.interpolate(x, like.shape[2:], mode="bilinear"), like), 1)

    hxin = conv_bn_relu(m.rebnconvin, x, 1)
    hx1 = conv_bn_relu(m.rebnconv1, hxin, 1)
    hx2 = conv_bn_relu(m.rebnconv2, pool(hx1), 1)
    hx3 = conv_bn_relu(m.rebnconv3, pool(hx2), 1)
    hx4 = conv_bn_relu(m.rebnconv4, hx3, 2)
    hx3d = conv_bn_relu(m.rebnconv3d, torch.cat((hx4, hx3), 1), 1)
    hx2d = conv_bn_relu(m.rebnconv2d, up_cat(hx3d, hx2), 1)
    hx1d = conv_bn_relu(m.rebnconv1d, up_cat(hx2d, hx1), 1)
    return hx1d + hxin


def plain_rsu4f(m: RSU, x: Tensor) -> Tensor:
    """Compute RSU-4F line by line: dilations 1, 2, 4, 8 down and 4, 2, 1 up, no pooling."""
    hxin = conv_bn_relu(m.rebnconvin, x, 1)
    hx1 = conv_bn_relu(m.rebnconv1, hxin, 1)
    hx2 = conv_bn_relu(m.rebnconv2, hx1, 2)
    hx3 = conv_bn_relu(m.rebnconv3, hx2, 4)
    hx4 = conv_bn_relu(m.rebnconv4, hx3, 8)
    hx3d = conv_bn_relu(m.rebnconv3d, torch.cat((hx4, hx3), 1), 4)
    hx2d = conv_bn_relu(m.rebnconv2d, torch.cat((hx3d, hx2), 1), 2)
    hx1d = conv_bn_relu(m.rebnconv1d, torch.cat((hx2d, hx1), 1), 1)
    return hx1d + hxin


@pytest.mark.parametrize(("pool", "plain"), [(True, plain_rsu4), (False, plain_rsu4f)])
@pytest.mark.parametrize("size", [(32, 24), (13, 27)])
@torch.no_grad()
def test_rsu_is_the_papers(pool: bool, plain, size: tuple[int, int]):
    torch.manual_seed(0)
    block = RSU(4, 6, 5, 7, pool=pool).eval()
    randomize_batchnorm(block)
    x = torch.randn(2, 6, *size)
    torch.testing.assert_close(block(x), plain(block, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "pool"), RSUS)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 5), (1, 1)])
@torch.no_grad()
def test_rsu_keeps_any_size(depth: int, pool: bool, size: tuple[int, int]):
    block = RSU(depth, 6, 4, 7, pool=pool).eval()
    assert block(torch.randn(1, 6, *size)).shape == (1, 7, *size)


@pytest.mark.parametrize(("depth", "pool"), RSUS)
def test_dilations(depth: int, pool: bool):
    block = RSU(depth, 6, 4, 7, pool=pool)
    down = [block.get_submodule(f"rebnconv{level}.conv_s1").dilation[0] for level in range(1, depth + 1)]
    up = [block.get_submodule(f"rebnconv{level}d.conv_s1").dilation[0] for level in range(1, depth)]
    assert down == ([1] * (depth - 1) + [2] if pool else [1, 2, 4, 8])
    assert up == ([1] * (depth - 1) if pool else [1, 2, 4])


@torch.no_grad()
def test_conv_bn_relu_against_its_formula():
    torch.manual_seed(0)
    block = ConvBNReLU(3, 4, dilation=2).eval()
    randomize_batchnorm(block)
    x = torch.randn(1, 3, 9, 11)
    torch.testing.assert_close(block(x), conv_bn_relu(block, x, 2))


def test_a_frozen_batchnorm_computes_the_same_in_training_and_evaluation():
    """Values and gradients of the convolution; the statistics do not change."""
    torch.manual_seed(0)
    block = ConvBNReLU(3, 4, dilation=2)
    randomize_batchnorm(block)
    before = {name: value.clone() for name, value in block.bn_s1.state_dict().items()}
    x = torch.randn(2, 3, 9, 11)
    found = []
    for training in (False, True):
        block.train(training)
        block.bn_s1.eval()
        block.zero_grad()
        y = block(x)
        y.square().sum().backward()
        found.append([y, block.conv_s1.weight.grad, block.conv_s1.bias.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in block.bn_s1.state_dict().items())


# --- whole networks ---


def rounded_up_halves(size: tuple[int, int]) -> list[tuple[int, int]]:
    sizes = []
    for _ in FEATURE_CHANNELS:
        size = tuple((side + 1) // 2 for side in size)
        sizes.append(size)
    return sizes


@pytest.mark.parametrize("size", [(64, 128), (75, 101), (1, 1)])
@torch.no_grad()
def test_features_of_both_networks_agree(isnet: ISNetDIS, size: tuple[int, int]):
    wanted = [(2, channels, *half) for channels, half in zip(FEATURE_CHANNELS, rounded_up_halves(size), strict=True)]
    for network in (isnet, ISNetGTEncoder().eval()):
        sides, features = network(torch.rand(2, network.in_ch, *size))
        assert [tuple(feature.shape) for feature in features] == wanted
        assert [tuple(side.shape) for side in sides] == [(2, 1, *size)] * 6


@pytest.fixture(scope="module")
def networks() -> dict[type, nn.Module]:
    """Return both networks, in eval mode, with BatchNorms that are not the identity."""
    torch.manual_seed(0)
    both = {ISNetDIS: ISNetDIS(4).eval(), ISNetGTEncoder: ISNetGTEncoder().eval()}
    for network in both.values():
        randomize_batchnorm(network)
    return both


@pytest.mark.parametrize("kind", [ISNetDIS, ISNetGTEncoder])
@torch.no_grad()
def test_sides_are_computed_from_the_features(networks: dict, kind: type):
    network = networks[kind]
    x = torch.rand(1, network.in_ch, 75, 101)
    sides, features = network(x)
    for level, (side, feature) in enumerate(zip(sides, features, strict=True), start=1):
        conv = network.get_submodule(f"side{level}")
        logits = F.conv2d(feature, conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(side, F.interpolate(logits, (75, 101), mode="bilinear"))
    assert sides[0].min() < 0  # logits, not probabilities
    torch.testing.assert_close(network.predict_logits(x), sides[0])


@torch.no_grad()
def test_isnet_is_the_papers(networks: dict):
    """The U of stages, written out; the tests above check each stage."""
    m = networks[ISNetDIS]
    x = torch.rand(1, 4, 70, 90)

    def up_cat(x: Tensor, like: Tensor) -> Tensor:
        return torch.cat((F.interpolate(x, like.shape[2:], mode="bilinear"), like), 1)

    hx = F.conv2d(x, m.conv_in.weight, m.conv_in.bias, stride=2, padding=1)
    hx1 = m.stage1(hx)
    hx2 = m.stage2(F.max_pool2d(hx1, 2, 2, ceil_mode=True))
    hx3 = m.stage3(F.max_pool2d(hx2, 2, 2, ceil_mode=True))
    hx4 = m.stage4(F.max_pool2d(hx3, 2, 2, ceil_mode=True))
    hx5 = m.stage5(F.max_pool2d(hx4, 2, 2, ceil_mode=True))
    hx6 = m.stage6(F.max_pool2d(hx5, 2, 2, ceil_mode=True))
    hx5d = m.stage5d(up_cat(hx6, hx5))
    hx4d = m.stage4d(up_cat(hx5d, hx4))
    hx3d = m.stage3d(up_cat(hx4d, hx3))
    hx2d = m.stage2d(up_cat(hx3d, hx2))
    hx1d = m.stage1d(up_cat(hx2d, hx1))
    for found, wanted in zip(m.features(x), [hx1d, hx2d, hx3d, hx4d, hx5d, hx6], strict=True):
        torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_gt_encoder_is_the_papers(networks: dict):
    m = networks[ISNetGTEncoder]
    x = torch.rand(1, 1, 70, 90)
    features = m.features(x)
    stem = m.conv_in
    hx = F.batch_norm(
        F.conv2d(x, stem.conv.weight, stem.conv.bias, stride=2, padding=1),
        *(stem.bn.running_mean, stem.bn.running_var, stem.bn.weight, stem.bn.bias),
        eps=1e-5,
    ).relu()
    torch.testing.assert_close(features[0], m.stage1(hx))
    for level, (finer, coarser) in enumerate(pairwise(features), start=2):
        stage = m.get_submodule(f"stage{level}")
        torch.testing.assert_close(coarser, stage(F.max_pool2d(finer, 2, 2, ceil_mode=True)))


@pytest.mark.parametrize("kind", [ISNetDIS, ISNetGTEncoder])
def test_gradient_reaches_every_parameter(networks: dict, kind: type):
    network = networks[kind]
    sides, _ = network(torch.rand(1, network.in_ch, 96, 80))
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(torch.stack([side.square().mean() for side in sides]).sum(), parameters.values())
    without = [name for name, gradient in zip(parameters, gradients, strict=True) if not gradient.any()]
    assert not without


def _same(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("kind", [Thin, ThinGTEncoder])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_recomputing_changes_neither_gradients_nor_statistics(kind: type, half: bool, frozen: bool):
    outcome = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = kind().train()
        network.recompute = recompute
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.train(not frozen)
        saved = []
        keep_size = torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: (saved.append(t.nbytes), t)[1], _same
        )
        x = torch.rand(2, network.in_ch, 128, 75)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=half), keep_size:
                features = network.features(x)
            sum(feature.float().square().mean() for feature in features).backward()
        gradients = [parameter.grad for name, parameter in network.named_parameters() if "side" not in name]
        outcome.append((sum(saved), [*gradients, *network.buffers()]))
    (kept, expected), (kept_less, found) = outcome
    assert all(gradient.isfinite().all() and gradient.any() for gradient in expected[:3])
    for first, second in zip(expected, found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-8)
    assert int(dict(network.named_buffers())["stage1.rebnconvin.bn_s1.num_batches_tracked"]) == (0 if frozen else 2)
    assert network.stage1.rebnconvin.bn_s1.momentum == 0.1
    assert kept_less < kept / 2


@pytest.mark.parametrize("kind", [ISNetDIS, ISNetGTEncoder])
@torch.no_grad()
def test_channels_last_changes_nothing(networks: dict, kind: type):
    x = torch.rand(1, networks[kind].in_ch, 65, 96)
    wanted = networks[kind].predict_logits(x)
    network = kind(networks[kind].in_ch).to(memory_format=torch.channels_last).eval()
    network.load_state_dict(networks[kind].state_dict())
    found = network.predict_logits(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
