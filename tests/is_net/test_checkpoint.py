"""Checkpoints: round trips, old and published files, files that are refused, and interrupted writing."""

from __future__ import annotations

import io
import logging
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save as serialize
from torch import Tensor, nn

from IS_Net import checkpoint
from IS_Net.checkpoint import (
    input_channels,
    load_isnet,
    load_state,
    load_torch_file,
    load_weights,
    read_weights,
    require_finite,
    save_state,
    save_weights,
)
from IS_Net.errors import CheckpointError
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.models.input_channels import expand_input

State = dict[str, Tensor]
SMALL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def encoder() -> ISNetGTEncoder:
    """Return a GT encoder, the smaller one of the networks; not to be changed."""
    torch.manual_seed(0)
    return ISNetGTEncoder().eval()


@pytest.fixture(scope="module")
def narrow() -> State:
    """Return the weights of a 3-channel IS-Net."""
    torch.manual_seed(3)
    return ISNetDIS(3).state_dict()


@pytest.fixture
def fresh(encoder: ISNetGTEncoder) -> Callable[[], ISNetGTEncoder]:
    """Return a function that makes an encoder whose weights are all zero."""

    def make() -> ISNetGTEncoder:
        with torch.device("meta"):
            network = ISNetGTEncoder()
        network = network.to_empty(device="cpu")
        for tensor in network.state_dict().values():
            tensor.zero_()
        return network

    return make


# --- there and back ---


def test_weights_round_trip_with_their_metadata(tmp_path: Path, encoder: ISNetGTEncoder, fresh):
    metadata = {"in_ch": 1, "input_size": [128, 96], "max_f": 0.5, "name": "été"}
    save_weights(tmp_path / "runs" / "a.safetensors", encoder, metadata)
    found, found_metadata = read_weights(tmp_path / "runs" / "a.safetensors")
    assert_same(found, encoder.state_dict())
    assert found_metadata == metadata
    network = fresh()
    assert load_weights(network, tmp_path / "runs" / "a.safetensors") == metadata
    assert_same(network.state_dict(), encoder.state_dict())


def test_channels_last_weights_round_trip(tmp_path: Path, encoder: ISNetGTEncoder, fresh):
    network = fresh().to(memory_format=torch.channels_last)
    network.load_state_dict(encoder.state_dict())
    save_weights(tmp_path / "a.safetensors", network, {})
    assert_same(read_weights(tmp_path / "a.safetensors")[0], encoder.state_dict())


def test_loading_is_logged(weights: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        model, metadata = load_isnet(weights)
    assert model.in_ch == 4
    assert metadata == {"in_ch": 4, "input_size": [128, 128]}
    assert caplog.messages == [f"weights: {weights}"]


def test_a_loaded_network_is_independent_of_its_file(tmp_path: Path, weights: Path):
    copied = tmp_path / "isnet.safetensors"
    copied.write_bytes(weights.read_bytes())
    model, _ = load_isnet(copied)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with copied.open("r+b") as file:  # the same file, not a new one of this name
        file.write(bytes(copied.stat().st_size))
    assert_same(model.state_dict(), before)
    assert_same(before, read_weights(weights)[0])
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_files_give_float32_networks(tmp_path: Path, narrow: State):
    torch.save({name: x.half() if x.is_floating_point() else x for name, x in narrow.items()}, tmp_path / "a.pth")
    model, _ = load_isnet(tmp_path / "a.pth")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert_same(model.state_dict(), {name: x.half().to(x.dtype) for name, x in narrow.items()})


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_files_load(tmp_path: Path, encoder: ISNetGTEncoder, fresh, legacy: bool, wrapper: str, prefix: str):
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in encoder.state_dict().items()}
    content = {wrapper: state, "epoch": 3} if wrapper else state
    torch.save(content, tmp_path / "isnet.pth", _use_new_zipfile_serialization=not legacy)
    network = fresh()
    assert load_weights(network, tmp_path / "isnet.pth") == {}
    assert_same(network.state_dict(), encoder.state_dict())


def test_training_state_round_trip(tmp_path: Path):
    state = {"phase": "gt", "progress": {"iteration": 7, "best": 0.25, "seen": [1, 2]}, "generator": torch.arange(4)}
    save_state(tmp_path / "last.pt", state)
    found = load_state(tmp_path / "last.pt")
    assert found["progress"] == state["progress"]
    assert torch.equal(found["generator"], state["generator"])


def test_training_state_is_readable_as_weights(tmp_path: Path, encoder: ISNetGTEncoder, fresh):
    optimizer = torch.optim.AdamW(encoder.parameters())
    state = {"model": encoder.state_dict(), "optimizer": optimizer.state_dict(), "metadata": {"input_size": [64, 64]}}
    save_state(tmp_path / "last.pt", state)
    network = fresh()
    assert load_weights(network, tmp_path / "last.pt") == {"input_size": [64, 64]}
    assert_same(network.state_dict(), encoder.state_dict())


def test_a_training_state_gives_its_ema_if_it_has_one(tmp_path: Path):
    weights, ema = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    for saved, expected in ((ema, ema), (None, weights)):
        save_state(tmp_path / "last.pt", {"model": weights, "ema_model": saved, "metadata": {}})
        assert_same(read_weights(tmp_path / "last.pt")[0], expected)


def test_metadata_of_other_projects_is_not_taken(tmp_path: Path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "metadata": "trained in 2022"}, tmp_path / "isnet.pth")
    assert read_weights(tmp_path / "isnet.pth")[1] == {}


# --- files of earlier versions ---


def test_a_training_state_of_version_1_is_converted(tmp_path: Path):
    weights, ema = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    old = {
        "version": 1,
        "phase": "segmentation",
        "progress": {"iteration": 7, "stale": 3},
        "model": weights,
        "average": ema,
        "teacher": {"t": torch.ones(1)},
        "facts": {"input_size": [64, 64]},
        "settings": {"lr": 0.5, "composite": 0.7, "mask_path": 5.0, "lr_stem": 3.0, "restore_model": ""},
    }
    torch.save(old, tmp_path / "last.pt")
    state = load_state(tmp_path / "last.pt")
    assert state.keys() == {
        *("version", "phase", "progress", "model", "ema_model", "gt_encoder", "metadata", "settings")
    }
    assert state["progress"] == {"iteration": 7, "patience_count": 3}
    assert state["settings"] == {
        **{"lr": 0.5, "copy_paste": 0.7, "mask_skip_logit": 5.0, "lr_stem_factor": 3.0, "restore_model": ""}
    }
    assert_same(state["gt_encoder"], old["teacher"])
    found, metadata = read_weights(tmp_path / "last.pt")
    assert_same(found, ema)
    assert metadata == {"input_size": [64, 64]}
    torch.save({**old, "average": None}, tmp_path / "last.pt")
    assert_same(read_weights(tmp_path / "last.pt")[0], weights)


def test_safetensors_of_earlier_versions_load(tmp_path: Path):
    """The file's layout has not changed: the metadata is JSON under "dis-sam"."""
    metadata = {"dis-sam": '{"network": "ISNetDIS", "in_ch": 4, "input_size": [64, 64], "metrics": {"mae": 0.1}}'}
    (tmp_path / "best.safetensors").write_bytes(serialize(SMALL.state_dict(), metadata=metadata))
    weights, found = read_weights(tmp_path / "best.safetensors")
    assert_same(weights, SMALL.state_dict())
    assert found == {"network": "ISNetDIS", "in_ch": 4, "input_size": [64, 64], "metrics": {"mae": 0.1}}


# --- what does not fit ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("side3.bias"), r"missing side3\.bias\. Nothing was loaded"),
        (lambda state: state.update(head=torch.zeros(2)), r"unexpected head\. Nothing"),
        (lambda state: state.update({"side1.bias": torch.zeros(2)}), r"side1\.bias is \(2,\), expected \(1,\)\. No"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_differ_are_refused_whole(tmp_path: Path, encoder: ISNetGTEncoder, fresh, change, message: str):
    state = dict(encoder.state_dict())
    change(state)
    (tmp_path / "odd.safetensors").write_bytes(serialize(state))
    network = fresh()
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors: does not fit ISNetGTEncoder: {message}"):
        load_weights(network, tmp_path / "odd.safetensors")
    assert not any(tensor.any() for tensor in network.state_dict().values())


def test_many_differences_are_counted(tmp_path: Path, encoder: ISNetGTEncoder, fresh):
    state = {name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("side")}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"missing side1\.weight; .* and 7 more"):
        load_weights(fresh(), tmp_path / "odd.pth")


def test_gt_encoder_is_no_isnet(tmp_path: Path, encoder: ISNetGTEncoder, isnet: ISNetDIS, weights: Path, fresh):
    save_weights(tmp_path / "gt_encoder.safetensors", encoder, {})
    for load in (load_isnet, lambda path: load_weights(isnet, path)):
        with pytest.raises(CheckpointError, match=r"gt_encoder\.safetensors: .* found those of a GT encoder"):
            load(tmp_path / "gt_encoder.safetensors")
    with pytest.raises(CheckpointError, match="does not fit ISNetGTEncoder"):
        load_weights(fresh(), weights)


def test_weights_of_another_network(tmp_path: Path, isnet: ISNetDIS):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(CheckpointError, match=r"linear\.pth: expected weights of ISNetDIS .* another network"):
        load_weights(isnet, tmp_path / "linear.pth")


# --- input channels ---


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_input_channels_are_read_from_the_weights(in_ch: int):
    assert input_channels({"conv_in.weight": torch.zeros(64, in_ch, 3, 3)}, "file") == in_ch


@pytest.mark.parametrize("in_ch", [1, 2, 6])
def test_other_numbers_of_input_channels_are_refused(tmp_path: Path, isnet: ISNetDIS, in_ch: int):
    torch.save({"conv_in.weight": torch.zeros(64, in_ch, 3, 3)}, tmp_path / "odd.pth")
    for load in (load_isnet, lambda path: load_weights(isnet, path)):
        with pytest.raises(CheckpointError, match=rf"odd\.pth: expected 3, 4 or 5 input channels, found {in_ch}"):
            load(tmp_path / "odd.pth")


@pytest.mark.slow
@torch.no_grad()
def test_expanded_networks_compute_the_same(tmp_path: Path, narrow: State, caplog: pytest.LogCaptureFixture):
    torch.save(narrow, tmp_path / "isnet.pth")
    x = torch.rand(1, 5, 64, 64)
    original, _ = load_isnet(tmp_path / "isnet.pth")
    assert original.in_ch == 3
    wanted = original.eval().predict_logits(x[:, :3])
    assert not caplog.messages
    for in_ch in (4, 5):
        path = tmp_path / ("isnet.pth" if in_ch == 4 else "wider.safetensors")  # 3 -> 4 -> 5
        model = ISNetDIS(in_ch)
        load_weights(model, path)
        assert f"has {in_ch - 1} input channels" in caplog.messages[-1]
        assert f"expanded to {in_ch} with zero weights" in caplog.messages[-1]
        torch.testing.assert_close(model.eval().predict_logits(x[:, :in_ch]), wanted, rtol=1e-5, atol=1e-6)
        save_weights(tmp_path / "wider.safetensors", model, {})
    assert_same(expand_input(expand_input(narrow, 4), 5), expand_input(narrow, 5))


def test_settings_for_missing_channels_that_are_not_missing(weights: Path, caplog: pytest.LogCaptureFixture):
    load_weights(ISNetDIS(4), weights, mask_skip_logit=5)
    assert [f"mask_skip_logit=5 is not used: {weights} has a mask channel already"] == caplog.messages
    five = weights.parent / "five.safetensors"
    save_weights(five, ISNetDIS(5), {})
    caplog.clear()
    load_weights(ISNetDIS(5), five, box_gain=0.5)
    assert [f"box_gain=0.5 is not used: {five} has a box channel already"] == caplog.messages


def test_weights_wider_than_the_network(weights: Path):
    with torch.device("meta"):
        model = ISNetDIS(3)
    with pytest.raises(CheckpointError, match=r"has 4 input channels, the network 3; set hypar\['model'\] to 4"):
        load_weights(model, weights)


# --- damaged, hostile and missing files ---


def small_file(kind: str) -> bytes:
    if kind == ".safetensors":
        return serialize(SMALL.state_dict(), metadata={"dis-sam": "{}"})
    file = io.BytesIO()
    if kind == ".pt":
        torch.save(
            {"version": checkpoint.STATE_VERSION, "model": SMALL.state_dict(), "metadata": {}, "n": [1, "a"]}, file
        )
    else:
        torch.save(SMALL.state_dict(), file, _use_new_zipfile_serialization=kind == ".pth")
    return file.getvalue()


@pytest.mark.parametrize("kind", [".safetensors", ".pth", ".legacy", ".pt"])
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9])
def test_file_cut_short(tmp_path: Path, kind: str, share: float):
    whole, path = small_file(kind), tmp_path / f"cut{kind}"
    path.write_bytes(whole[: int(len(whole) * share)])
    for read in (read_weights, load_state):
        with pytest.raises(CheckpointError, match=f"cut{kind}: "):
            read(path)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("kind", [".safetensors", ".pth", ".legacy", ".pt"])
def test_any_damage_is_a_checkpoint_error(tmp_path: Path, kind: str):
    chance, whole, path = random.Random(0), small_file(kind), tmp_path / f"damaged{kind}"
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 5)):  # most of them in the header, where it matters
            content[chance.randrange(min(len(content), 400))] = chance.randrange(256)
        path.write_bytes(content)
        for read in (read_weights, load_state):
            try:
                read(path)
            except CheckpointError as error:
                refused += path.name in str(error)
    assert refused > 50


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("name", ["best.safetensors", "isnet.pth", "last.pt"])
@pytest.mark.parametrize("content", [b"", b"404: Not Found", b"\x80\x02.", b"<html>" * 100])
def test_file_that_is_no_checkpoint(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    for read in (read_weights, load_state):
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, torch.zeros(3), {"state_dict": {"a": "b"}}])
def test_file_without_a_state_dict(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: expected a state dict \(names to tensors\), found "):
        read_weights(tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth: expected a training state .*found version None"):
        load_state(tmp_path / "odd.pth")


class Hostile:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_not_run(tmp_path: Path, writer: Callable):
    writer({"state_dict": {"a": Hostile(tmp_path / "ran")}}, tmp_path / "hostile.pth")
    for read in (read_weights, load_state):
        with pytest.raises(CheckpointError, match=r"hostile\.pth: holds more than tensors and plain values"):
            read(tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


def test_another_file_is_no_checkpoint(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    with pytest.raises(
        CheckpointError, match=r"photo\.jpg: is damaged or not a checkpoint; expected \.safetensors, or"
    ):
        load_isnet(tmp_path / "photo.jpg")


def test_whole_network_is_refused(tmp_path: Path):
    torch.save(SMALL, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match=r"whole\.pth: .*save only its state_dict\(\)"):
        load_torch_file(tmp_path / "whole.pth")


@pytest.mark.parametrize("read", [read_weights, load_state, load_isnet, load_torch_file])
@pytest.mark.parametrize("name", ["nowhere.safetensors", "nowhere.pth", "."])
def test_missing_file(tmp_path: Path, read: Callable, name: str):
    with pytest.raises(CheckpointError, match=r"the checkpoint does not exist; saved_models/README\.md"):
        read(tmp_path / name)


def test_training_state_of_another_version(tmp_path: Path):
    torch.save({"version": 99, "model": {}}, tmp_path / "last.pt")
    with pytest.raises(
        CheckpointError, match=r"last\.pt: expected a training state of version 1 or 2, found version 99"
    ):
        load_state(tmp_path / "last.pt")


# --- interrupted writing ---


def test_interrupted_saving_keeps_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "best.safetensors"
    save_weights(path, SMALL, {"run": 1})

    def fail(*_: Any, **__: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "serialize", fail)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, SMALL, {"run": 2})
    assert read_weights(path)[1] == {"run": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_training_state_for_which_the_disk_has_no_room(tmp_path: Path):
    """PyTorch turns the error of a write into a RuntimeError of its own."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.pt"
    save_state(path, {"phase": "segmentation"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # its error stands for that of a full disk
    try:
        with pytest.raises(OSError, match=r"File too large; the file is as it was before") as raised:
            save_state(path, {"model": {str(number): torch.zeros(10_000) for number in range(9)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(path)
    assert load_state(path)["phase"] == "segmentation" and list(tmp_path.iterdir()) == [path]


def test_interrupted_training_state_keeps_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "last.pt"
    save_state(path, {"iteration": 1})

    def fail(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(path, {"iteration": 2})
    assert load_state(path)["iteration"] == 1
    assert list(tmp_path.iterdir()) == [path]


# --- prefixes and wrappers ---


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.", "model.", "module._orig_mod.", "my.own.thing."])
def test_prefixes_of_all_names_are_removed(tmp_path: Path, kind: str, prefix: str):
    """Row 21 of the faults seen: prefixes of wrappers, in every format."""
    state, path = {prefix + name: tensor for name, tensor in SMALL.state_dict().items()}, tmp_path / f"a.{kind}"
    path.write_bytes(serialize(state)) if kind == "safetensors" else torch.save(state, path)
    assert_same(read_weights(path)[0], SMALL.state_dict())


@pytest.mark.parametrize(
    "keys", [["params"], ["ema"], ["model", "state_dict"], ["model_ema"], ["params_ema"], ["ema", "module"], ["odd"]]
)
def test_state_dicts_under_other_keys(tmp_path: Path, keys: list[str]):
    """Row 21 of the faults seen: state dicts under "params", "ema", {"model": {"state_dict": ..}} and others."""
    content: Any = {f"module.{name}": tensor for name, tensor in SMALL.state_dict().items()}
    for key in reversed(keys):
        content = {key: content, "epoch": 3, "decay": 0.9}
    torch.save(content, tmp_path / "a.pth")
    assert_same(read_weights(tmp_path / "a.pth")[0], SMALL.state_dict())


def test_averaged_weights_are_preferred(tmp_path: Path):
    torch.save({"params": {"a.w": torch.zeros(1)}, "params_ema": {"a.w": torch.ones(1)}}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth")[0]["a.w"] == 1


def test_two_state_dicts_under_unknown_keys_are_refused(tmp_path: Path):
    torch.save({"a": {"x.w": torch.zeros(1)}, "b": {"x.w": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"found dict with the keys 'a', 'b'; save the network's state_dict\(\)"):
        read_weights(tmp_path / "a.pth")


def test_a_prefix_beside_other_tensors_is_named():
    weights = {"model.conv_in.weight": torch.zeros(64, 4, 3, 3), "loss.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"IS-Net's have the prefix 'model\.', and 'loss\.weight' does not"):
        input_channels(weights, "a.pth")


def test_counters_of_a_profiler_are_left_out(tmp_path: Path):
    torch.save(
        {**SMALL.state_dict(), "0.total_ops": torch.zeros(1), "1.total_params": torch.zeros(1)}, tmp_path / "a.pth"
    )
    assert_same(read_weights(tmp_path / "a.pth")[0], SMALL.state_dict())


@pytest.mark.parametrize("legacy", [False, True])
def test_the_message_about_a_whole_network_is_short(tmp_path: Path, legacy: bool):
    """Row 22 of the faults seen: a whole pickled module."""
    torch.save(ISNetGTEncoder(), tmp_path / "whole.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"save only its state_dict\(\)") as raised:
        read_weights(tmp_path / "whole.pth")
    message = str(raised.value)
    assert "\x1b" not in message and "\n" not in message and "weights_only" not in message
    assert len(message) < 300 + len(str(tmp_path))


# --- checksums ---


class Saved(nn.Module):
    """A network of one convolution, for files small enough to flip each of their bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)


@pytest.mark.parametrize("int8", [False, True])
def test_one_flipped_bit_in_weights_is_found(tmp_path: Path, int8: bool):
    """Row 49 of the faults seen: one bit flipped in best.safetensors."""
    path, chance, network = tmp_path / "best.safetensors", random.Random(0), Saved()
    save_weights(path, network, {"in_ch": 4, "input_size": [128, 128]}, int8=int8)
    whole = path.read_bytes()
    wanted = read_weights(path)
    for bit in chance.sample(range(len(whole) * 8), 300):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            found = read_weights(path)
        except CheckpointError as error:
            assert path.name in str(error)
            continue
        assert_same(found[0], wanted[0])  # the name of the checksum was hit, and nothing else
        assert found[1] == wanted[1]


def test_one_flipped_bit_in_a_training_state_is_found(tmp_path: Path):
    """Row 49 of the faults seen: one bit flipped in last.pt."""
    path, chance, network = tmp_path / "last.pt", random.Random(1), Saved()
    save_state(path, {"model": network.state_dict(), "metadata": {}, "progress": {"iteration": 7}})
    whole = path.read_bytes()
    refused = 0
    for bit in chance.sample(range(len(whole) * 8), 200):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            state = load_state(path)
        except CheckpointError:
            refused += 1
            continue
        assert_same(state["model"], network.state_dict())  # the bit was in the padding, or in a second copy of a name
        assert state["progress"] == {"iteration": 7}
    assert refused > 20


def test_torch_files_without_checksums_load(tmp_path: Path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(SMALL.state_dict(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(read_weights(tmp_path / "a.pth")[0], SMALL.state_dict())


# --- hostile content ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, encoder: ISNetGTEncoder, fresh, value, kind: str):
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state["side2.weight"].view(-1)[1] = value
    path = tmp_path / f"a.{kind}"
    path.write_bytes(serialize(state)) if kind == "safetensors" else torch.save(state, path)
    network = fresh()
    with pytest.raises(CheckpointError, match=rf"a\.{kind}: side2\.weight holds values that are not finite"):
        load_weights(network, path)
    assert not any(tensor.any() for tensor in network.state_dict().values())


def test_a_file_that_would_expand_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, plain = tmp_path / "bomb.pth", tmp_path / "plain.pth"
    torch.save({"w": torch.zeros(1 << 20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the file was read"))
    with pytest.raises(CheckpointError, match=r"bomb\.pth: has 0\.0 MB and would expand to 4\.2 MB"):
        read_weights(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "cannot be read as safetensors"),
        ("[1, 2]", "metadata: expected a dict"),
        ('[["a", 1]]', "metadata: expected a dict"),
        ("3", "metadata: expected a dict"),
        ('{"input_size": "large"}', r"key 'input_size': expected \[height, width\] of at most 16384, found 'large'"),
        ('{"input_size": [128, NaN]}', "key 'input_size'"),
        ('{"input_size": [0, 128]}', "key 'input_size'"),
        ('{"input_size": [1e9, 128]}', "key 'input_size'"),
    ],
)
def test_metadata_of_another_form(tmp_path: Path, text: str, message: str):
    (tmp_path / "a.safetensors").write_bytes(serialize(SMALL.state_dict(), metadata={"dis-sam": text}))
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: .*{message}"):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("metadata", [None, 3, "text", [1], {"input_size": 7}, {1: 2}])
def test_metadata_of_another_form_in_a_training_state(tmp_path: Path, metadata: Any):
    save_state(tmp_path / "last.pt", {"model": SMALL.state_dict(), "metadata": metadata})
    with pytest.raises(CheckpointError, match=r"last\.pt: metadata"):
        read_weights(tmp_path / "last.pt")


def test_deep_json_in_the_header(tmp_path: Path):
    header = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be read as safetensors"):
        read_weights(tmp_path / "a.safetensors")


def test_names_that_are_no_text(tmp_path: Path):
    torch.save({1: torch.zeros(2), 2: torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: expected a state dict with names, found the key 1"):
        read_weights(tmp_path / "a.pth")


def test_tensors_that_are_not_dense_reals():
    for tensor in (torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex64)):
        with pytest.raises(CheckpointError, match=r"w is .*; expected dense real numbers"):
            require_finite({"w": tensor}, "a.pth")


def test_equal_networks_give_equal_files(tmp_path: Path):
    network = torch.nn.Conv2d(2, 3, 3)
    for index in range(6):
        save_weights(tmp_path / f"{index}.safetensors", network, {"in_ch": 4, "name": "Ä"})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
