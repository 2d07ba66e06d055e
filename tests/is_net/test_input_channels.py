"""Additional input channels, and the mask skip connection."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from IS_Net.checkpoint import load_weights, save_weights
from IS_Net.errors import CheckpointError
from IS_Net.models import ISNetDIS
from IS_Net.models.input_channels import add_mask_skip, expand_input, increase_mask_skip

LOGIT = 3.0


@pytest.fixture(scope="module")
def plain() -> ISNetDIS:
    """Return a 3-channel IS-Net whose channels differ in size, with two inactive ones in each stage."""
    torch.manual_seed(0)
    model = ISNetDIS(3).eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("bn_s1"):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            if name.endswith(("rebnconvin.bn_s1", "rebnconv1d.bn_s1")):
                module.weight[2:4] = 0
                module.bias[2:4] = -1
        model.conv_in.weight[5] = 0
        model.conv_in.bias[5] = 0
    return model


@pytest.fixture(scope="module")
def wide(plain: ISNetDIS) -> ISNetDIS:
    model = ISNetDIS(4).eval()
    model.load_state_dict(add_mask_skip(expand_input(plain.state_dict(), 4), LOGIT))
    return model


def halves(size: int) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 2 :] = 1
    return mask


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_uniform_mask_adds_half_its_logit_to_all_sides(plain: ISNetDIS, wide: ISNetDIS, value: float):
    """The replaced channels were inactive, so the rest of the network computes the same as before."""
    image, mask = torch.rand(1, 3, 128, 128) - 0.5, torch.full((1, 1, 128, 128), value)
    before, after = plain(image)[0], wide(torch.cat((image, mask), dim=1))[0]
    for old, new in zip(before, after, strict=True):
        added = (new - old)[..., 40:88, 40:88]  # without the borders, where the first convolution sees padding
        torch.testing.assert_close(added, torch.full_like(added, LOGIT * (value - 0.5)), rtol=0.02, atol=0.02)


@torch.no_grad()
def test_the_mask_reaches_the_side_outputs_in_its_place(plain: ISNetDIS, wide: ISNetDIS):
    image, mask = torch.rand(1, 3, 256, 256) - 0.5, halves(256)
    for level, (new, old) in enumerate(zip(wide(torch.cat((image, mask), dim=1))[0], plain(image)[0], strict=True)):
        added, reach = new - old, 8 if level < 4 else 96  # the coarse sides use pooled maps
        assert (added[..., 8:-8, 8 : 128 - reach] < -LOGIT / 2 + 0.05).all()
        assert (added[..., 8:-8, 128 + reach : -8] > LOGIT / 2 - 0.05).all()


@torch.no_grad()
def test_the_skip_connection_works_without_inactive_channels():
    """For any network, a full and an empty mask differ by the logit."""
    torch.manual_seed(1)
    model, image = ISNetDIS(4).eval(), torch.rand(1, 3, 64, 64) - 0.5
    model.load_state_dict(add_mask_skip(expand_input(ISNetDIS(3).state_dict(), 4), LOGIT))
    inside, outside = (model(torch.cat((image, torch.full((1, 1, 64, 64), v)), dim=1))[0][0] for v in (1.0, 0.0))
    middle = (inside - outside)[..., 16:48, 16:48]
    torch.testing.assert_close(middle, torch.full_like(middle, LOGIT), rtol=1e-3, atol=1e-3)


def test_every_stage_can_learn_from_the_mask(wide: ISNetDIS):
    """A gradient reaches the weights with which each stage's first block reads the mask."""
    model = ISNetDIS(4).eval()
    model.load_state_dict(wide.state_dict())
    x = torch.cat((torch.rand(1, 3, 64, 64) - 0.5, halves(64)), dim=1)
    torch.stack([side.mean() for side in model(x)[0]]).sum().backward()
    reading = set()
    for name, parameter in model.named_parameters():
        if name.endswith(("rebnconvin.conv_s1.weight", "rebnconv1.conv_s1.weight")):
            silent = (parameter == 0).all(dim=0).flatten(1).all(dim=1)  # input channels that nothing reads yet
            others = [c for c in range(parameter.shape[1]) if silent[c] and parameter.grad[:, c].any()]
            if others:
                reading.add(name.removesuffix(".conv_s1.weight"))
    stages = [f"stage{level}" for level in range(1, 7)] + [f"stage{level}d" for level in range(1, 6)]
    # a rebnconvin reads it for the skip connection; in the decoder also from the stage below
    assert reading >= {f"{stage}.rebnconv1" for stage in stages}
    assert reading >= {f"stage{level}d.rebnconvin" for level in range(1, 6)}


def test_names_shapes_and_the_given_weights_do_not_change(plain: ISNetDIS):
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    expanded = add_mask_skip(expand_input(plain.state_dict(), 5), LOGIT)
    wanted = ISNetDIS(5).state_dict()
    assert {n: t.shape for n, t in expanded.items()} == {n: t.shape for n, t in wanted.items()}
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    assert not expanded["conv_in.weight"][:, 4].any()  # the box channel has zero weights


def test_loading_adds_the_mask_skip_only_if_the_mask_channel_is_missing(plain: ISNetDIS, tmp_path, caplog):
    save_weights(tmp_path / "isnet.safetensors", plain, {})
    loaded = ISNetDIS(4)
    load_weights(loaded, tmp_path / "isnet.safetensors", LOGIT)
    wanted = add_mask_skip(expand_input(plain.state_dict(), 4), LOGIT)
    assert all(torch.equal(wanted[name], value) for name, value in loaded.state_dict().items())
    assert "expanded to 4 with a mask skip connection (logit 3)" in caplog.messages[-1]

    save_weights(tmp_path / "wide.safetensors", loaded, {})
    wider = ISNetDIS(5)
    load_weights(wider, tmp_path / "wide.safetensors", LOGIT)  # from 4 channels to 5 the new one is the box
    assert "expanded to 5 with zero weights" in caplog.messages[-1]
    wanted = expand_input(wanted, 5)
    assert all(torch.equal(wanted[name], value) for name, value in wider.state_dict().items())


@torch.no_grad()
def test_a_box_alone_acts_as_a_mask_of_its_pixels_if_the_gain_is_1(tmp_path, caplog):
    torch.manual_seed(0)
    four = ISNetDIS(4)
    save_weights(tmp_path / "four.safetensors", four, {})
    five, image = ISNetDIS(5), torch.rand(1, 3, 64, 64)
    load_weights(five, tmp_path / "four.safetensors", LOGIT, 1.0)
    assert "expanded to 5 with 1 of the mask's weights for the box" in caplog.messages[-1]
    box = torch.zeros(1, 1, 64, 64)
    box[..., 10:40, 20:50] = 1
    wanted = four.eval().predict_logits(torch.cat((image, box), dim=1))
    found = five.eval().predict_logits(torch.cat((image, torch.zeros_like(box), box), dim=1))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)

    load_weights(five, tmp_path / "four.safetensors", LOGIT, 0.5)
    stem = five.state_dict()["conv_in.weight"]
    assert torch.equal(stem[:, 4], stem[:, 3] / 2)


def test_3_channels_get_both(plain: ISNetDIS, tmp_path, caplog):
    save_weights(tmp_path / "isnet.safetensors", plain, {})
    five, narrow = ISNetDIS(5), ISNetDIS(4)
    load_weights(five, tmp_path / "isnet.safetensors", LOGIT, 1.0)
    assert "with a mask skip connection (logit 3) and 1 of the mask's weights for the box" in caplog.messages[-1]
    stem = five.state_dict()["conv_in.weight"]
    assert stem[:, 3].any() and torch.equal(stem[:, 4], stem[:, 3])
    load_weights(narrow, tmp_path / "isnet.safetensors", LOGIT, 1.0)  # has no box channel
    assert caplog.messages[-1].endswith("with a mask skip connection (logit 3)")


def test_another_network_is_refused_before_the_mask_skip_is_added(plain: ISNetDIS, tmp_path):
    weights = {name: value for name, value in plain.state_dict().items() if not name.startswith("stage3d")}
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth: does not fit ISNetDIS: missing stage3d"):
        load_weights(ISNetDIS(4), tmp_path / "other.pth", LOGIT)


@torch.no_grad()
def test_the_mask_skip_can_be_increased(wide: ISNetDIS):
    increased = ISNetDIS(4).eval()
    increased.load_state_dict(increase_mask_skip(wide.state_dict(), 2.0))
    x = torch.cat((torch.rand(1, 3, 128, 128) - 0.5, halves(128)), dim=1)
    added = increased.predict_logits(x) - wide.predict_logits(x)
    torch.testing.assert_close(added[..., 8:-8, 8:56], torch.full((1, 1, 112, 48), -2.0), rtol=0, atol=0.05)
    torch.testing.assert_close(added[..., 8:-8, 72:-8], torch.full((1, 1, 112, 48), 2.0), rtol=0, atol=0.05)


def test_weights_without_a_mask_skip_cannot_be_increased(plain: ISNetDIS):
    with pytest.raises(ValueError, match="no input channel for a mask"):
        increase_mask_skip(plain.state_dict(), 1.0)
    with pytest.raises(ValueError, match="the first stage has no mask skip connection"):
        increase_mask_skip(expand_input(plain.state_dict(), 4), 1.0)


@torch.no_grad()
def test_a_mask_skip_that_training_changed_is_increased_as_much(wide: ISNetDIS):
    weights = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    carrier = int(weights["conv_in.weight"][:, 3].sum((1, 2)).argmax())
    weights["conv_in.weight"][carrier, 3] *= 1.5
    before, increased = ISNetDIS(4).eval(), ISNetDIS(4).eval()
    before.load_state_dict(weights)
    increased.load_state_dict(increase_mask_skip(weights, 2.0))
    x = torch.cat((torch.rand(1, 3, 128, 128) - 0.5, halves(128)), dim=1)
    added = increased.predict_logits(x) - before.predict_logits(x)
    torch.testing.assert_close(added[..., 8:-8, 8:56], torch.full((1, 1, 112, 48), -2.0), rtol=0, atol=0.05)
    torch.testing.assert_close(added[..., 8:-8, 72:-8], torch.full((1, 1, 112, 48), 2.0), rtol=0, atol=0.05)


def test_the_skip_connection_scales_with_its_logit():
    weights = expand_input(ISNetDIS(3).state_dict(), 4)
    one, two = add_mask_skip(weights, 1.0), add_mask_skip(weights, 2.0)
    assert {name for name in one if not torch.equal(one[name], two[name])} == {
        f"side{level}.{kind}" for level in range(1, 7) for kind in ("weight", "bias")
    }
