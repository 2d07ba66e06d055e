"""The runtime ncnn: it computes what PyTorch computes, and what it converted is kept."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from IS_Net import checkpoint, paths
from IS_Net.checkpoint import load_isnet
from IS_Net.errors import DeviceError
from IS_Net.paths import starter_weights
from IS_Net.runtime import kept, open_weights
from IS_Net.runtime.torch_runtime import TorchRuntime
from tests.thin_networks import lively

ncnn_runtime = pytest.importorskip("IS_Net.runtime.ncnn_runtime")
SIZE = (96, 131)


def planes(in_ch: int = 5, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (in_ch, *size), dtype=np.uint8)


@pytest.fixture(scope="module")
def converted() -> bytes:
    return ncnn_runtime.convert_network(lively(), SIZE)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, converted: bytes) -> Path:
    """Return a file that is loaded as a thin network."""
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ncnn_runtime, "convert_network", lambda model, size: converted)
    monkeypatch.setattr(checkpoint, "load_isnet", lambda path: (lively(), {"input_size": list(SIZE)}))
    path = tmp_path / "thin.safetensors"
    path.write_bytes(b"weights")
    return path


def opened(content: bytes, size: tuple[int, int], folder: Path):
    (folder / "content").write_bytes(content)
    return ncnn_runtime.open_content(np.frombuffer(content, np.uint8), size, folder / "content")


@pytest.mark.parametrize(("in_ch", "size"), [(3, (128, 64)), (4, (33, 47)), (5, SIZE)])
def test_it_computes_what_pytorch_computes(in_ch: int, size: tuple[int, int], tmp_path: Path):
    ours = opened(ncnn_runtime.convert_network(lively(in_ch), size), size, tmp_path)
    assert (ours.in_ch, ours.device, ours.precision) == (in_ch, "cpu", "float32")
    for seed in range(2):
        x = planes(in_ch, size, seed)
        expected, found = TorchRuntime(lively(in_ch), "cpu", "full").alpha(x), ours.alpha(x)
        assert found.dtype == np.float32 and found.shape == size
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
def test_fast_convolutions_of_the_starter_weights_are_exact_enough(tmp_path: Path):
    model, _ = load_isnet(starter_weights())
    size = (192, 256)
    ours = opened(ncnn_runtime.convert_network(model, size), size, tmp_path)
    x = planes(4, size)
    x[3, 60:140, 80:180], x[3, :60] = 255, 0
    expected, found = TorchRuntime(model, "cpu", "full").alpha(x), ours.alpha(x)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - expected).mean() < 1e-5


def test_results_are_their_own_memory_and_threads_do_not_mix(converted: bytes, tmp_path: Path):
    ours = opened(converted, SIZE, tmp_path)
    inputs = [planes(seed=seed) for seed in range(8)]
    alone = [ours.alpha(x).copy() for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ours.alpha, inputs))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_an_operation_that_is_unknown_is_named(monkeypatch: pytest.MonkeyPatch):
    network = lively(4)
    monkeypatch.setattr(type(network), "predict_logits", lambda self, x: nn.functional.gelu(self.conv_in(x)))
    with pytest.raises(NotImplementedError, match="gelu"):
        ncnn_runtime.convert_network(network, (64, 64))


def test_it_is_converted_once(weights: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.INFO)
    first, metadata, size = open_weights(weights, "cpu", runtime="ncnn")
    assert (metadata, size) == ({"input_size": list(SIZE)}, SIZE)
    blob, record = sorted((paths.cache() / "ncnn").iterdir())
    assert (blob.suffix, record.suffix) == (".blob", ".json")
    monkeypatch.setattr(checkpoint, "load_isnet", None)
    again, metadata, size = open_weights(weights, "cpu", runtime="ncnn")
    assert (metadata, size) == ({"input_size": list(SIZE)}, SIZE)
    np.testing.assert_array_equal(again.alpha(planes()), first.alpha(planes()))
    assert caplog.text.count("once for this machine") == 1


def test_a_folder_that_cannot_be_written_is_reported(
    weights: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    (weights.parent / "home").write_text("a file")
    runtime, _, _ = open_weights(weights, "cpu", runtime="ncnn")
    assert runtime.alpha(planes()).shape == SIZE and "was not kept" in caplog.text


@pytest.mark.parametrize("damage", [b"different", b"\xff" * 8, b""])
def test_a_damaged_file_is_not_used(weights: Path, damage: bytes):
    open_weights(weights, "cpu", runtime="ncnn")
    blob, _ = sorted((paths.cache() / "ncnn").iterdir())
    content = blob.read_bytes()
    blob.write_bytes(content[:-9] + damage)
    open_weights(weights, "cpu", runtime="ncnn")
    assert blob.read_bytes() == content


def test_a_checkpoint_that_is_replaced_meanwhile_is_not_kept(weights: Path, monkeypatch: pytest.MonkeyPatch):
    before = weights.read_bytes()

    def load(path: Path) -> tuple[nn.Module, dict]:
        weights.write_bytes(b"of a training")
        return lively(), {"input_size": list(SIZE)}

    monkeypatch.setattr(checkpoint, "load_isnet", load)
    assert open_weights(weights, "cpu", runtime="ncnn")[0].alpha(planes()).shape == SIZE
    assert not (paths.cache() / "ncnn").exists()
    weights.write_bytes(before)
    monkeypatch.setattr(checkpoint, "load_isnet", lambda path: (lively(), {"input_size": list(SIZE)}))
    open_weights(weights, "cpu", runtime="ncnn")
    assert len(list((paths.cache() / "ncnn").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_read(weights: Path, monkeypatch: pytest.MonkeyPatch):
    open_weights(weights, "cpu", runtime="ncnn")

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(kept.os, "utime", refuse)
    monkeypatch.setattr(checkpoint, "load_isnet", None)
    assert open_weights(weights, "cpu", runtime="ncnn")[0].alpha(planes()).shape == SIZE


def test_what_a_killed_process_left_is_removed(weights: Path):
    folder = paths.cache() / "ncnn"
    folder.mkdir(parents=True)
    old, new = folder / "old.blob", folder / "new.blob"
    for file, age in ((old, 7200), (new, 60)):
        file.write_bytes(b"no record")
        os.utime(file, (time.time() - age,) * 2)
    open_weights(weights, "cpu", runtime="ncnn")
    assert not old.exists() and new.exists()


def test_sizes_of_numpy(weights: Path, monkeypatch: pytest.MonkeyPatch):
    for _ in range(2):
        _, _, size = open_weights(weights, "cpu", "auto", tuple(np.array(SIZE)), "ncnn")
        assert size == SIZE
        monkeypatch.setattr(checkpoint, "load_isnet", None)


def test_lack_of_memory_has_its_class(converted: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runtime = opened(converted, SIZE, tmp_path)

    class Extractor:
        def __enter__(self) -> Extractor:
            return self

        def __exit__(self, *_: object) -> None: ...

        def extract(self, _: str) -> tuple[int, None]:
            return -100, None

        input = set_blob_allocator = set_workspace_allocator = lambda *_: None

    monkeypatch.setattr(runtime, "_net", SimpleNamespace(create_extractor=Extractor))
    with pytest.raises(MemoryError, match="error -100"):
        runtime.alpha(planes())


def test_a_graph_that_cannot_be_loaded_is_an_error(converted: bytes, tmp_path: Path):
    (tmp_path / "content").write_bytes(converted)
    with pytest.raises(ValueError, match="ncnn cannot load"):
        ncnn_runtime.NcnnRuntime(tmp_path / "content", "1\n2\n3 2=4", SIZE)


def test_a_kept_network_needs_no_pytorch(weights: Path, tmp_path: Path):
    runtime, _, _ = open_weights(weights, "cpu", runtime="ncnn")
    np.save(tmp_path / "planes.npy", planes())
    code = (
        "import sys, numpy as np\n"
        "from IS_Net.predictor import DISPredictor\n"
        f"predictor = DISPredictor.from_checkpoint({str(weights)!r}, 'cpu', runtime='ncnn')\n"
        f"alpha = predictor.runtime.alpha(np.load({str(tmp_path / 'planes.npy')!r}))\n"
        f"np.save({str(tmp_path / 'alpha.npy')!r}, alpha)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "alpha.npy"), runtime.alpha(planes()), atol=1e-5)


def test_precisions_and_devices(weights: Path):
    with pytest.raises(DeviceError, match="is used in float32 here"):
        open_weights(weights, "cpu", "half", runtime="ncnn")
    with pytest.raises(DeviceError, match="precision 'best' is unknown"):
        open_weights(weights, "cpu", "best", runtime="ncnn")
    with pytest.raises(DeviceError, match="'ncnn' runs on the CPU, but found device 'cuda'"):
        open_weights(weights, torch.device("cuda"), runtime="ncnn")
