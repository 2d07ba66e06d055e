"""Runtimes: which one is chosen, that OpenVINO computes what PyTorch computes, and what is kept on the disk."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from IS_Net import checkpoint, paths
from IS_Net import machine as machine_module
from IS_Net.checkpoint import save_weights
from IS_Net.errors import CheckpointError, DeviceError
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor
from IS_Net.runtime import base, kept, open_weights
from IS_Net.runtime.base import choose_runtime
from IS_Net.runtime.torch_runtime import TorchRuntime, fold_batchnorm
from IS_Net.tensors import make_alpha, make_input
from tests.thin_networks import lively

RNG = np.random.default_rng(0)
SIZE = (128, 160)

openvino_runtime = pytest.importorskip("IS_Net.runtime.openvino_runtime")
openvino = openvino_runtime.openvino


def planes(in_ch: int = 5, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (in_ch, *size), dtype=np.uint8)


@pytest.fixture(scope="module")
def converted() -> openvino.Model:
    return openvino_runtime.convert_network(lively(), SIZE)


# --- which one ---

INSTALLED = importlib.machinery.ModuleSpec("any", None, origin="any/__init__.py")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_up(installed: bool, gpu: bool, amx: bool = False) -> None:
        monkeypatch.delenv(base.VARIABLE, raising=False)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: INSTALLED if installed else None)
        monkeypatch.setattr(base, "_may_have_gpu", lambda: gpu)
        monkeypatch.setattr(base, "has_amx", lambda: amx)

    return set_up


def test_auto_takes_the_next_where_the_first_is_missing(machine, monkeypatch: pytest.MonkeyPatch):
    machine(installed=True, gpu=False)
    for missing, expected in (({"ncnn"}, "openvino"), ({"ncnn", "openvino"}, "onnx")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, gone=missing: None if name in gone else INSTALLED)
        assert choose_runtime("auto", "cpu") == expected
    assert choose_runtime("auto", "cuda") == "torch"


@pytest.mark.parametrize(("given", "expected"), [("", 5), ("0", 5), ("many", 5), ("3", 3), ("99999999", 1024)])
def test_threads_are_those_of_the_environment(given: str, expected: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(machine_module, "available_cores", lambda: 5)
    assert machine_module.requested_threads() == expected


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "converted_networks").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(base._PACKAGES, "ncnn", "converted_networks")
    assert not base.is_installed("ncnn")
    (tmp_path / "converted_networks" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert base.is_installed("ncnn")


def test_auto_takes_16_bits_where_they_are_fast(machine):
    machine(installed=True, gpu=False, amx=True)
    assert choose_runtime("auto", "cpu") == "openvino"


@pytest.mark.parametrize(
    ("installed", "gpu", "device", "expected"),
    [
        (True, False, "auto", "ncnn"),
        (True, True, "auto", "torch"),
        (True, True, "cpu", "ncnn"),
        (True, False, "cuda", "torch"),
        (True, False, torch.device("cpu"), "ncnn"),
        (False, False, "auto", "torch"),
        (False, False, "cpu", "torch"),
    ],
)
def test_auto(machine, installed: bool, gpu: bool, device: str | torch.device, expected: str):
    machine(installed, gpu)
    assert choose_runtime("auto", device) == expected
    assert choose_runtime("torch", device) == "torch"


def test_requests_that_cannot_be_met(machine):
    machine(installed=False, gpu=False)
    with pytest.raises(DeviceError, match=r"pip install 'dis-sam\[fast\]'"):
        choose_runtime("openvino", "cpu")
    with pytest.raises(DeviceError, match=r"package onnxruntime is not installed; run pip install 'dis-sam\[onnx\]'"):
        choose_runtime("onnx", "cpu")
    machine(installed=True, gpu=True)
    with pytest.raises(DeviceError, match="runs on the CPU, but found device 'cuda:1'"):
        choose_runtime("openvino", "cuda:1")
    with pytest.raises(DeviceError, match="'ncnn' runs on the CPU, but found device 'mps'"):
        choose_runtime("ncnn", "mps")
    assert choose_runtime("onnx", "cuda:1") == "onnx"
    with pytest.raises(DeviceError, match="on the CPU and on CUDA devices, but found device 'mps'"):
        choose_runtime("onnx", "mps")
    with pytest.raises(
        DeviceError, match="runtime 'jax' is unknown; expected one of auto, torch, openvino, ncnn, onnx"
    ):
        choose_runtime("jax", "cpu")


def test_environment_says_what_auto_is(machine, monkeypatch: pytest.MonkeyPatch):
    machine(installed=True, gpu=False)
    monkeypatch.setenv(base.VARIABLE, "torch")
    assert choose_runtime("auto", "cpu") == "torch"
    assert choose_runtime("openvino", "cpu") == "openvino"
    monkeypatch.setenv(base.VARIABLE, "fastest")
    with pytest.raises(DeviceError, match="environment variable DIS_SAM_RUNTIME: runtime 'fastest' is unknown"):
        choose_runtime("auto", "cpu")


# --- the same function ---


@pytest.mark.parametrize(("in_ch", "size"), [(3, (128, 128)), (4, (200, 136)), (5, (96, 256))])
def test_openvino_computes_what_pytorch_computes(in_ch: int, size: tuple[int, int]):
    network = lively(in_ch)
    converted = openvino_runtime.convert_network(network, size)
    ours = openvino_runtime.OpenVINORuntime(openvino_runtime.compile_network(converted, "float32"), "float32")
    assert ours.in_ch == in_ch
    for seed in range(2):
        x = planes(in_ch, size, seed)
        expected = TorchRuntime(network, "cpu", "full").alpha(x)
        assert np.ptp(expected) > 0.2
        found = ours.alpha(x)
        assert found.dtype == np.float32 and found.shape == size
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("threads", "cores", "pinned"), [(1, 2, False), (2, 4, False), (2, 2, True)])
def test_processes_that_share_a_machine_do_not_choose_the_same_cores(
    threads: int, cores: int, pinned: bool, converted: openvino.Model, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    monkeypatch.setattr(openvino_runtime, "available_cores", lambda: cores)
    compiled = openvino_runtime.compile_network(converted, "float32")
    assert compiled.get_property("ENABLE_CPU_PINNING") == pinned


@pytest.mark.parametrize(("in_ch", "size"), [(3, (128, 128)), (4, (200, 136)), (5, (96, 131))])
def test_weights_that_are_converted_once_compute_what_autocast_computes(in_ch: int, size: tuple[int, int]):
    network = lively(in_ch)
    runtime = TorchRuntime(network, "cpu", "half")
    assert {parameter.dtype for parameter in runtime.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    x = planes(in_ch, size)
    folded = fold_batchnorm(network).to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = folded.predict_logits(make_input(torch.from_numpy(x)[None]))
    expected = make_alpha(logits, size)[0, 0].numpy()
    found = runtime.alpha(x)
    assert found.dtype == np.float32 and np.ptp(expected) > 0.2
    np.testing.assert_allclose(found, expected, atol=1e-6)
    exact = TorchRuntime(network, "cpu", "full").alpha(x)
    assert 0 < np.abs(found - exact).mean() < 0.02


def test_results_are_their_own_memory_and_threads_do_not_mix(converted: openvino.Model):
    ours = openvino_runtime.OpenVINORuntime(openvino_runtime.compile_network(converted, "float32"), "float32")
    inputs = [planes(seed=seed) for seed in range(6)]
    alone = [ours.alpha(x) for x in inputs]
    assert not np.array_equal(alone[0], alone[1])
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(ours.alpha, inputs * 4))
    for number, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[number % 6])


def test_precisions(monkeypatch: pytest.MonkeyPatch):
    pick = openvino_runtime.pick_precision
    assert pick("full") == "float32"
    can = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for amx in (False, True):
        monkeypatch.setattr(openvino_runtime, "has_amx", lambda amx=amx: amx)
        assert pick("auto") == ("bfloat16" if amx and can else "float32")
    if can:
        assert pick("half") == "bfloat16"
    else:
        with pytest.raises(DeviceError, match="no 16-bit type on this CPU; use auto"):
            pick("half")
    with pytest.raises(DeviceError, match="precision 'best' is unknown"):
        pick("best")


CONVERT = """
import socket, threading
asked = []
socket.socket.connect = socket.getaddrinfo = lambda *given, **_: asked.append(given)
from IS_Net.models import ISNetDIS
from IS_Net.runtime.openvino_runtime import convert_network
from tests.thin_networks import Thin
convert_network(Thin(4).eval(), (128, 128))
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(20)
assert not asked, asked
"""


def test_openvino_reports_to_nobody(tmp_path: Path):
    environment = {**os.environ, "HOME": str(tmp_path / "user")} | {"CI": "", "TF_BUILD": "", "JENKINS_URL": ""}
    subprocess.run([sys.executable, "-c", CONVERT], env=environment, check=True, timeout=300, cwd=paths.checkout())
    assert not (tmp_path / "user").exists()


@pytest.mark.slow
def test_real_network_of_a_checkpoint(tmp_path: Path, isnet: ISNetDIS, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path))
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, isnet, {"input_size": SIZE})
    image = RNG.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    mask = np.zeros((90, 130), bool)
    mask[20:70, 30:90] = True
    found = [
        DISPredictor.from_checkpoint(weights, "cpu", "full", runtime=name).predict(image, mask, detail="max")
        for name in ("torch", "openvino", "openvino")
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_array_equal(found[2], found[1])


# --- what is kept ---


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: openvino.Model) -> Path:
    """Return a file that is loaded as a thin network; count the times in ``load.calls``."""
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path / "home"))
    network, metadata = lively(), {"input_size": list(SIZE), "windows": True}

    def convert(model: ISNetDIS, size: tuple[int, int]) -> openvino.Model:  # once for all tests
        model = converted.clone()
        model.reshape([1, 5, *size])
        return model

    monkeypatch.setattr(openvino_runtime, "convert_network", convert)

    def load(path: Path) -> tuple[ISNetDIS, dict]:
        load.calls += 1
        return network, dict(metadata)

    load.calls = 0
    monkeypatch.setattr(checkpoint, "load_isnet", load)
    path = tmp_path / "thin.safetensors"
    path.write_bytes(b"weights")
    return path


def load_count() -> int:
    return checkpoint.load_isnet.calls


def cached() -> list[Path]:
    return sorted((paths.cache() / "openvino").iterdir())


def open_converted(path: Path, **options: object) -> tuple[np.ndarray, dict, tuple[int, int]]:
    runtime, metadata, size = open_weights(path, "cpu", runtime="openvino", **options)
    return runtime.alpha(planes(size=size)), metadata, size


def test_network_is_converted_once(weights: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    first = open_converted(weights)
    assert first[1:] == ({"input_size": list(SIZE), "windows": True}, SIZE)
    assert caplog.text.count("once for this machine") == 1
    assert [path.suffix for path in cached()] == [".blob", ".json"]
    again = open_converted(weights)
    assert load_count() == 1
    assert again[1:] == first[1:]
    np.testing.assert_array_equal(again[0], first[0])
    assert f"weights: {weights}" in caplog.text
    copy = weights.with_name("copy.safetensors")
    copy.write_bytes(weights.read_bytes())
    open_converted(copy)
    assert load_count() == 1  # what counts is the content
    weights.write_bytes(b"others")
    open_converted(weights)
    assert load_count() == 2
    open_converted(weights, input_size=(128, 128))
    assert load_count() == 3


@pytest.mark.parametrize("damage", ["shorter", "other", "record", "fields", "list", "missing"])
def test_damaged_file_is_not_used(weights: Path, damage: str):
    expected = open_converted(weights)
    blob, record = cached()
    content = bytearray(blob.read_bytes())
    if damage == "shorter":
        blob.write_bytes(content[:-100])
    elif damage == "other":
        content[len(content) // 2] ^= 1
        blob.write_bytes(content)
    elif damage == "record":
        record.write_text("{")
    elif damage == "fields":
        record.write_text(json.dumps({"length": len(content)}))
    elif damage == "list":
        record.write_text("[1, 2]")
    else:
        blob.unlink()
    found = open_converted(weights)
    assert load_count() == 2
    np.testing.assert_array_equal(found[0], expected[0])
    open_converted(weights)
    assert load_count() == 2


def test_file_of_another_openvino_is_not_used(weights: Path, monkeypatch: pytest.MonkeyPatch):
    open_converted(weights)
    monkeypatch.setattr(openvino_runtime.openvino, "get_version", lambda: "2031.1")
    open_converted(weights)
    assert load_count() == 2


def test_few_networks_are_kept(weights: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "KEPT", 2)
    (paths.cache() / "openvino").mkdir(parents=True)
    leftover = paths.cache() / "openvino" / ".x.json.host-000-1-1-00000000.part"
    for number in (1, 2, 1, 3):  # 1 was used after 2
        weights.write_bytes(bytes([number]))
        open_converted(weights)
        for path in cached():  # times that differ, whatever the file system's resolution
            os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10**9))
    assert load_count() == 3
    assert len(cached()) == 4 and not leftover.exists()
    for number, loads in ((1, 3), (3, 3), (2, 4)):
        weights.write_bytes(bytes([number]))
        open_converted(weights)
        assert load_count() == loads


def test_folder_that_cannot_be_written(weights: Path, caplog: pytest.LogCaptureFixture):
    paths.cache().mkdir(parents=True)
    (paths.cache() / "openvino").write_text("a file where the folder would be")
    found = open_converted(weights)
    assert "was not kept" in caplog.text and "DIS_SAM_HOME" in caplog.text
    assert np.ptp(found[0]) > 0.2


def test_kept_network_needs_no_pytorch(weights: Path):
    expected, _, _ = open_converted(weights)
    code = (
        "import socket, sys, numpy as np\n"
        "socket.socket.connect = socket.getaddrinfo = lambda *_: print('network', flush=True)\n"
        "from dis_sam.pipeline import load\n"
        f"model = load({str(weights)!r}, 'box', 'cpu', runtime='openvino')\n"
        f"alpha = model.dis.runtime.alpha(np.load({str(weights.with_suffix('.npy'))!r}))\n"
        "model.cut(np.zeros((300, 400, 3), np.uint8), box=(10, 10, 90, 90))\n"
        "assert 'torch' not in sys.modules\n"
        f"np.save({str(weights.with_suffix('.out.npy'))!r}, alpha)\n"
    )
    np.save(weights.with_suffix(".npy"), planes())
    environment = {**os.environ, "HOME": str(weights.parent / "user")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True, timeout=300
    )
    assert done.stdout == b"" and not (weights.parent / "user").exists()
    np.testing.assert_array_equal(np.load(weights.with_suffix(".out.npy")), expected)


def test_weights_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"nope\.safetensors: the checkpoint does not exist"):
        open_weights(tmp_path / "nope.safetensors", "cpu", runtime="openvino")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
        open_weights(damaged, "cpu", runtime="openvino")
