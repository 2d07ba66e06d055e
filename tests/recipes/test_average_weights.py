"""average_weights: the mean of checkpoints, the mask skip gain, and the metadata of the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from IS_Net.checkpoint import STATE_VERSION, load_isnet, read_weights, save_state, save_weights
from IS_Net.models import ISNetDIS
from IS_Net.models.input_channels import add_mask_skip, increase_mask_skip
from recipes.starter.average_weights import main, mean_weights


@pytest.fixture(scope="module")
def networks() -> tuple[ISNetDIS, ISNetDIS]:
    """Return two networks whose mask skip connections have different logits."""
    torch.manual_seed(0)
    pair = ISNetDIS(4).eval(), ISNetDIS(4).eval()
    for logit, network in zip((4.0, 6.0), pair, strict=True):
        network.load_state_dict(add_mask_skip(network.state_dict(), logit))
    return pair


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, a training state with EMA weights, and a checkpoint with 3 channels."""
    folder, (one, two) = tmp_path_factory.mktemp("checkpoints"), networks
    save_weights(folder / "one.safetensors", one, {"input_size": [128, 128], "metrics": {"mae": 0.1}})
    raw = {name: torch.zeros_like(tensor) for name, tensor in two.state_dict().items()}
    state = {"version": STATE_VERSION, "model": raw, "ema_model": two.state_dict(), "metadata": {"input_size": [9, 9]}}
    save_state(folder / "last.pt", state)
    save_weights(folder / "image_only.safetensors", ISNetDIS(3), {})
    return folder


def test_counters_are_taken_from_the_first():
    states = [
        {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(8)},
    ]
    mean = mean_weights(states)
    assert mean["w"].tolist() == [0.5, 3.0] and mean["w"].dtype == torch.float32
    assert mean["n"].item() == 3


def test_the_mean_of_several(folder: Path, networks, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The EMA weights of a training state count; the metrics of the first checkpoint are not those of the mean."""
    out = tmp_path / "mean.safetensors"
    assert main([str(folder / "one.safetensors"), str(folder / "last.pt"), str(out)]) == 0
    weights, metadata = read_weights(out)
    assert metadata == {"input_size": [128, 128], "in_ch": 4}
    one, two = (network.state_dict() for network in networks)
    for name, value in weights.items():
        torch.testing.assert_close(value.double(), (one[name].double() + two[name].double()) / 2, rtol=1e-6, atol=1e-8)
    assert f"{out}: mean of 2 checkpoints, 4 input channels, " in capsys.readouterr().out


def test_one_checkpoint_keeps_its_metrics_and_gets_gain_size_and_int8(folder: Path, networks, tmp_path: Path, capsys):
    out = tmp_path / "one.safetensors"
    options = ["--mask-skip-gain", "1.4", "--input-size", "256", "--int8"]
    assert main([*options, str(folder / "one.safetensors"), str(out)]) == 0
    model, metadata = load_isnet(out)
    assert metadata == {"input_size": [256, 256], "in_ch": 4, "metrics": {"mae": 0.1}}
    wanted = increase_mask_skip(networks[0].state_dict(), 1.4)
    assert torch.equal(model.state_dict()["side1.bias"], wanted["side1.bias"])
    assert not torch.equal(model.state_dict()["side1.bias"], networks[0].state_dict()["side1.bias"])
    for name, value in model.state_dict().items():
        error = (value.double() - wanted[name].double()).abs().max()
        assert error <= wanted[name].double().abs().max() / 200, name  # 8 bits
    assert out.stat().st_size < 46_000_000
    assert "MB, int8" in capsys.readouterr().out


def test_the_gain_needs_weights_that_carry_the_mask(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out.safetensors"
    assert main(["--mask-skip-gain", "1.4", str(folder / "image_only.safetensors"), str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "image_only.safetensors: --mask-skip-gain: " in printed
    assert not out.exists()


def test_networks_with_different_channels_have_no_mean(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out.safetensors"
    assert main([str(folder / "one.safetensors"), str(folder / "image_only.safetensors"), str(out)]) == 2
    assert "image_only.safetensors: found 3 input channels, expected 4" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main([str(tmp_path / "gone.safetensors"), str(tmp_path / "out.safetensors")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {tmp_path / 'gone.safetensors'}: ") and len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.safetensors", "out.pth"], "ends in .safetensors"),
        (["--input-size", "64", "a.safetensors", "out.safetensors"], "--input-size: expected 128 to 16384, found 64"),
        (["--input-size", "20000", "a.safetensors", "out.safetensors"], "expected 128 to 16384, found 20000"),
        (["out.safetensors"], "required: OUT"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("out", ["one.safetensors", "link.safetensors", "hard.safetensors", "image_only.safetensors"])
def test_no_checkpoint_is_replaced(folder: Path, out: str, capsys: pytest.CaptureFixture):
    """Row 1 of the list of faults, its neighbors: the output is a source, or, if OUT was forgotten, the last source."""
    for name, make in (("link", Path.symlink_to), ("hard", Path.hardlink_to)):
        if not (folder / f"{name}.safetensors").exists():
            make(folder / f"{name}.safetensors", folder / "one.safetensors")
    before = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert main([str(folder / "one.safetensors"), str(folder / out)]) == 2
    message = capsys.readouterr().err
    assert ("exists already" if out == "image_only.safetensors" else "would replace the input") in message
    assert {path: path.read_bytes() for path in folder.glob("*.safetensors")} == before
    for name in ("link", "hard"):
        (folder / f"{name}.safetensors").unlink()
