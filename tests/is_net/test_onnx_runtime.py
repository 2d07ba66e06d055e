"""The runtime ONNX Runtime: it computes what PyTorch computes, and what it converted is kept."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from IS_Net import checkpoint, paths
from IS_Net.errors import DeviceError
from IS_Net.runtime import open_weights
from IS_Net.runtime.torch_runtime import TorchRuntime
from tests.thin_networks import lively

onnx_runtime = pytest.importorskip("IS_Net.runtime.onnx_runtime")
SIZE = (200, 136)


def planes(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, *size), dtype=np.uint8)


@pytest.fixture(scope="module")
def converted() -> bytes:
    return onnx_runtime.convert_network(lively())


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: bytes) -> Path:
    """Return a file that is loaded as a thin network."""
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(onnx_runtime, "convert_network", lambda model: converted)
    monkeypatch.setattr(checkpoint, "load_isnet", lambda path: (lively(), {"input_size": list(SIZE)}))
    path = tmp_path / "thin.safetensors"
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize("size", [SIZE, (96, 131), (128, 128)])
def test_it_computes_what_pytorch_computes_at_any_size(converted: bytes, size: tuple[int, int]):
    ours = onnx_runtime.OnnxRuntime(converted, size)
    assert (ours.in_ch, ours.device, ours.precision) == (5, "cpu", "float32")
    x = planes(size)
    expected, found = TorchRuntime(lively(), "cpu", "full").alpha(x), ours.alpha(x)
    assert found.dtype == np.float32 and found.shape == size and np.ptp(expected) > 0.2
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_it_is_converted_once(weights: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.INFO)
    first, metadata, size = open_weights(weights, "cpu", runtime="onnx")
    assert (metadata, size) == ({"input_size": list(SIZE)}, SIZE)
    blob, record = sorted((paths.cache() / "onnx").iterdir())
    assert (blob.suffix, record.suffix) == (".blob", ".json")
    monkeypatch.setattr(checkpoint, "load_isnet", None)
    again, metadata, size = open_weights(weights, "cpu", runtime="onnx")
    assert (metadata, size) == ({"input_size": list(SIZE)}, SIZE)
    np.testing.assert_array_equal(again.alpha(planes()), first.alpha(planes()))
    assert caplog.text.count("once for this machine") == 1


def test_a_damaged_file_is_not_used(weights: Path):
    open_weights(weights, "cpu", runtime="onnx")
    blob, _ = sorted((paths.cache() / "onnx").iterdir())
    content = blob.read_bytes()
    blob.write_bytes(content[:-9] + b"different")
    open_weights(weights, "cpu", runtime="onnx")
    assert blob.read_bytes() == content


def test_a_kept_network_needs_no_pytorch(weights: Path, tmp_path: Path):
    runtime, _, _ = open_weights(weights, "cpu", runtime="onnx")
    np.save(tmp_path / "planes.npy", planes())
    code = (
        "import sys, numpy as np\n"
        "from IS_Net.predictor import DISPredictor\n"
        f"predictor = DISPredictor.from_checkpoint({str(weights)!r}, 'cpu', runtime='onnx')\n"
        f"alpha = predictor.runtime.alpha(np.load({str(tmp_path / 'planes.npy')!r}))\n"
        f"np.save({str(tmp_path / 'alpha.npy')!r}, alpha)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "alpha.npy"), runtime.alpha(planes()), atol=1e-5)


def test_devices_and_precisions(weights: Path, monkeypatch: pytest.MonkeyPatch):
    runtime = onnx_runtime.onnxruntime
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert onnx_runtime.pick_provider("auto") == ("CPUExecutionProvider", {})
    with pytest.raises(DeviceError, match="has no CUDA; install onnxruntime-gpu"):
        open_weights(weights, "cuda", runtime="onnx")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert onnx_runtime.pick_provider("auto") == ("CUDAExecutionProvider", {"device_id": 0})
    assert onnx_runtime.pick_provider("cuda:1") == ("CUDAExecutionProvider", {"device_id": 1})
    assert onnx_runtime.pick_provider("cpu") == ("CPUExecutionProvider", {})
    with pytest.raises(DeviceError, match="is used in float32 here"):
        open_weights(weights, "cpu", "half", runtime="onnx")
    with pytest.raises(DeviceError, match="precision 'best' is unknown"):
        open_weights(weights, "cpu", "best", runtime="onnx")
