"""Weights stored in 8 bits: quantization, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from IS_Net.checkpoint import load_isnet, load_weights, read_weights, save_weights
from IS_Net.errors import CheckpointError
from IS_Net.int8 import dequantize, quantize
from IS_Net.models import ISNetDIS
from IS_Net.models.input_channels import add_mask_skip


def channels(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)[:, :, None, None]


def restored(weight: Tensor) -> Tensor:
    return dequantize(*quantize(weight))


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))


def content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the stored tensors and metadata of a file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["dis-sam"])  # noqa: SIM118


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_weights(tmp_path / "small.safetensors", network(), {"in_ch": 3}, int8=True)
    return tmp_path / "small.safetensors"


# --- quantization ---


def test_known_answers():
    weight = channels([127, -64, 0, 1], [-0.5, 0.25, 0, 0.5 / 127], [0, 0, 0, 0])
    values, scale, outliers = quantize(weight)
    assert not len(outliers)
    assert values.dtype == torch.int8 and values.shape == weight.shape
    assert values.flatten(1).tolist()[0] == [127, -64, 0, 1]
    assert values.flatten(1).tolist()[1] == [-127, 64, 0, 1]
    assert values.flatten(1).tolist()[2] == [0, 0, 0, 0]
    assert scale.dtype == torch.float32 and scale.shape == (3,)
    assert scale[0] == 1
    assert scale[1].item() == pytest.approx(0.5 / 127, rel=1e-4)
    assert scale[2] > 0


def test_clips_if_that_reduces_the_error():
    weight = torch.tensor([[0.75] * 1_000_000 + [127.0] * 2])[:, :, None, None]
    values, scale, outliers = quantize(weight)
    assert not len(outliers)
    assert scale.item() == pytest.approx(0.75, rel=1e-4)  # the many exactly, and 127 as 95.25
    assert values.unique().tolist() == [1, 127]
    assert (restored(weight) - weight).square().sum() < (weight.round() - weight).square().sum()


@pytest.mark.parametrize("tails", [2, 3, 30])
def test_error_is_at_most_that_of_rounding_without_clipping(tails: float):
    torch.manual_seed(0)
    weight = torch.distributions.StudentT(tails).sample((32, 16, 3, 3))
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    plain = (weight / step).round() * step
    error, worst = ((weight - other).square().sum((1, 2, 3)) for other in (restored(weight), plain))
    assert (error <= worst * 1.001).all()  # scales have fewer significant bits
    assert ((weight - plain).abs() <= step / 2 * 1.001).all()


def test_small_weights_and_half_precision():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for factor in (1e-3, 1e-20, 1e-28):
        torch.testing.assert_close(restored(weight * factor) / factor, restored(weight), rtol=0, atol=0.02)
    assert restored(weight * 1e-40).isfinite().all()
    assert torch.equal(restored(weight.half()), restored(weight.half().float()))


@pytest.mark.parametrize("seed", range(20))
def test_quantizing_again_changes_nothing(seed: int):
    torch.manual_seed(seed)
    weight = torch.distributions.StudentT(2 + seed / 2).sample((64, 8, 3, 3)) * 10 ** (seed / 3 - 5)
    weight[::7, 0, 0, 0] *= 100  # some of these are more than eight times as large as all others, some a little less
    parts = quantize(weight)
    once = restored(weight)
    assert all(torch.equal(again, part) for again, part in zip(quantize(once), parts, strict=True))
    assert torch.equal(restored(once), once)
    assert len(parts[2]) == (parts[0] == -128).sum() > 0


def test_a_weight_much_larger_than_all_others_of_its_channel_is_an_outlier():
    weight = channels([0.01, -1, -0.02, 0.005], [8, 1, -1, 1], [8.1, 1, -1, 1], [0, 0, 3, 0], [0, 0, 0, 0])
    values, scale, outliers = quantize(weight)
    assert (values.flatten(1) == -128).nonzero().tolist() == [[0, 1], [2, 0], [3, 2]]
    assert outliers.dtype == torch.float32
    torch.testing.assert_close(outliers, torch.tensor([-1, 8.1, 3]), rtol=0, atol=0)
    torch.testing.assert_close(scale[:3], torch.tensor([0.02, 8, 1]) / 127, rtol=1e-4, atol=0)
    torch.testing.assert_close(restored(weight), weight, rtol=0, atol=8 / 254 * 1.001)
    torch.testing.assert_close(restored(weight)[0], weight[0], rtol=0, atol=0.02 / 254 * 1.001)
    assert not len(quantize(weight[:, :1])[2])  # a single weight is never an outlier


# --- files ---


def test_content_of_the_file(small: Path):
    stored, metadata = content(small)
    assert metadata == {"in_ch": 3, "storage": "int8"}
    wanted = network().state_dict()
    assert stored.keys() == wanted.keys() | {"0.weight.scale", "3.weight.scale"}
    assert [stored[name].dtype for name in ("0.weight", "0.weight.scale")] == [torch.int8, torch.float32]
    for name in ("0.bias", "1.weight", "1.running_var", "1.num_batches_tracked", "3.bias"):
        torch.testing.assert_close(stored[name], wanted[name], rtol=0, atol=0)


def test_reading_restores_the_weights(small: Path):
    model = network()
    wanted = {**model.state_dict(), **{name: restored(model.state_dict()[name]) for name in ("0.weight", "3.weight")}}
    weights, metadata = read_weights(small)
    assert metadata == {"in_ch": 3}
    assert weights.keys() == wanted.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)


def test_half_precision_networks_become_float32(tmp_path: Path):
    save_weights(tmp_path / "half.safetensors", network().half(), {}, int8=True)
    weights, _ = read_weights(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}


def test_saving_again_writes_the_same_file(small: Path):
    model = network()
    weights, metadata = read_weights(small)
    model.load_state_dict(weights)
    save_weights(small.with_name("again.safetensors"), model, metadata, int8=True)
    assert small.with_name("again.safetensors").read_bytes() == small.read_bytes()
    save_weights(small.with_name("full.safetensors"), model, metadata)
    assert content(small.with_name("full.safetensors"))[1] == {"in_ch": 3}


@pytest.mark.slow
@torch.no_grad()
def test_a_whole_network(tmp_path: Path, isnet: ISNetDIS):
    save_weights(tmp_path / "isnet.safetensors", isnet, {"in_ch": 4}, int8=True)
    assert (tmp_path / "isnet.safetensors").stat().st_size < 46e6
    model, metadata = load_isnet(tmp_path / "isnet.safetensors")
    assert metadata == {"in_ch": 4}
    x = torch.rand(1, 4, 64, 64)
    alpha, wanted = (network.eval().predict_logits(x).sigmoid() for network in (model, isnet))
    torch.testing.assert_close(alpha, wanted, rtol=0, atol=0.01)
    wider = ISNetDIS(5)
    load_weights(wider, tmp_path / "isnet.safetensors")
    assert torch.equal(wider.conv_in.weight[:, :4], model.conv_in.weight)


@torch.no_grad()
def test_the_mask_skip_connection_is_stored_exactly(tmp_path: Path, isnet: ISNetDIS):
    """Its weight of 1 is among many that are a hundred times smaller, as after training."""
    weights = add_mask_skip(isnet.state_dict(), 5.0)
    block = weights["stage4d.rebnconvin.conv_s1.weight"]
    row = block[block.flatten(1).amax(1) == 1]
    row += torch.rand(row.shape, generator=torch.Generator().manual_seed(1)) * 2e-3
    block[block.flatten(1).amax(1) == 1] = row
    model = ISNetDIS(4)
    model.load_state_dict(weights)
    save_weights(tmp_path / "isnet.safetensors", model, {"in_ch": 4}, int8=True)
    stored, _ = content(tmp_path / "isnet.safetensors")
    assert stored["stage4d.rebnconvin.conv_s1.weight.outliers"].tolist() == [pytest.approx(1, abs=2e-3)]
    read, _ = read_weights(tmp_path / "isnet.safetensors")
    found = read["stage4d.rebnconvin.conv_s1.weight"][weights["stage4d.rebnconvin.conv_s1.weight"] > 0.9]
    torch.testing.assert_close(found, stored["stage4d.rebnconvin.conv_s1.weight.outliers"], rtol=0, atol=0)


# --- what is refused ---


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, r"expected 8 scales above 0, found \(0,\)"),
        ({"scale": torch.ones(7)}, r"expected 8 scales above 0, found \(7,\)"),
        ({"scale": torch.ones(8, 1)}, r"expected 8 scales above 0, found \(8, 1\)"),
        ({"scale": torch.zeros(8)}, "expected 8 scales above 0"),
        ({"scale": torch.full((8,), torch.nan)}, "expected 8 scales above 0"),
        ({"scale": torch.full((8,), torch.inf)}, "expected 8 scales above 0"),
        ({"scale": torch.ones(8), "outliers": torch.ones(2)}, r"expected 0 outliers, found \(2,\)"),
    ],
)
def test_damaged_scales_and_outliers(small: Path, parts: dict[str, Tensor], message: str):
    stored, metadata = content(small)
    del stored["0.weight.scale"]
    stored |= {f"0.weight.{name}": part for name, part in parts.items()}
    save_file(stored, small, metadata={"dis-sam": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match=rf"small\.safetensors: 0\.weight is damaged: {message}.*copy the file"):
        read_weights(small)


def test_another_storage(small: Path):
    save_file(content(small)[0], small, metadata={"dis-sam": '{"storage": "int4"}'})
    with pytest.raises(CheckpointError, match=r"small\.safetensors: is stored as int4; expected int8 or plain floats"):
        read_weights(small)


@pytest.mark.parametrize("metadata", ["[1]", "5", '"text"', "null", "{"])
def test_damaged_metadata(small: Path, metadata: str):
    save_file(content(small)[0], small, metadata={"dis-sam": metadata})
    with pytest.raises(CheckpointError, match=r"small\.safetensors: (cannot be read as|metadata: expected a dict)"):
        read_weights(small)


def test_int8_tensors_are_never_taken_for_weights(tmp_path: Path, isnet: ISNetDIS):
    state = isnet.state_dict()
    values, scale, _ = quantize(state["side1.weight"])
    stored = {**state, "side1.weight": values, "side1.weight.scale": scale}
    save_file(stored, tmp_path / "lost.safetensors")  # a tool that dropped the metadata
    with torch.device("meta"):
        model = ISNetDIS(4)
    with pytest.raises(CheckpointError, match=r"unexpected side1\.weight\.scale\. Nothing was loaded"):
        load_weights(model, tmp_path / "lost.safetensors")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float):
    model = network()
    model[3].weight.data[0, 0, 0, 0] = value
    with pytest.raises(CheckpointError, match=r"a\.safetensors: 3\.weight has weights that are not finite"):
        save_weights(tmp_path / "a.safetensors", model, {}, int8=True)
    assert not list(tmp_path.iterdir())


def test_a_convolution_of_one_channel_stays_float32(tmp_path: Path):
    """As those of the side outputs, which are small."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 3))
    with torch.no_grad():
        model[1].weight[0, 3, 1, 1] = 50
    save_weights(tmp_path / "small.safetensors", model, {}, int8=True)
    stored, _ = content(tmp_path / "small.safetensors")
    assert stored["0.weight"].dtype == torch.int8 and "1.weight.scale" not in stored
    assert torch.equal(stored["1.weight"], model[1].weight)
    assert torch.equal(read_weights(tmp_path / "small.safetensors")[0]["1.weight"], model[1].weight)
