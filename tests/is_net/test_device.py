"""Devices and precisions: an unavailable device is an error, and the selected one is logged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from IS_Net import device as device_module
from IS_Net.device import autocast, autocast_dtype, describe, fast_dtype, pick_device, training_format
from IS_Net.errors import DeviceError
from IS_Net.hypar import Settings
from IS_Net.machine import has_amx
from IS_Net.tasks import GTEncoderTask, SegmentationTask
from tests.thin_networks import Thin, ThinGTEncoder

CPU = torch.device("cpu")


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # restored afterwards
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("name", ["auto", "cpu", CPU])
def test_cpu_is_selected_and_logged(name: str | torch.device, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert pick_device(name) == CPU
    assert caplog.messages == [f"device: cpu ({torch.get_num_threads()} threads)"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("name", "logged"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1")])
def test_gpu_is_selected_and_logged(name: str, logged: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert pick_device(name) == torch.device(logged)
    assert caplog.messages == [f"device: {logged} (Test GPU)"]


def test_auto_takes_mps_before_the_cpu(no_accelerator: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    assert describe(torch.device("mps")) == "mps"


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3", torch.device("cuda", 1)])
def test_gpu_that_is_not_available(name: str | torch.device):
    with pytest.raises(DeviceError, match=f"device '{name}' was requested, but .* finds 0 CUDA devices"):
        pick_device(name)


@pytest.mark.usefixtures("two_gpus")
def test_gpu_beyond_the_last():
    with pytest.raises(DeviceError, match="finds 2 CUDA devices"):
        pick_device("cuda:2")


@pytest.mark.usefixtures("no_accelerator")
def test_mps_that_is_not_available():
    with pytest.raises(DeviceError, match="'mps' was requested"):
        pick_device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "CPU", "cpu "])
def test_unknown_device(name: str):
    with pytest.raises(DeviceError, match="is unknown; expected auto, cpu, cuda, cuda:N or mps"):
        pick_device(name)


@pytest.mark.parametrize("name", ["meta", "xpu"])
def test_devices_that_are_not_supported(name: str):
    with pytest.raises(DeviceError, match="is not supported"):
        pick_device(name)


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16)]
)
def test_fast_type_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fast_dtype(torch.device("cuda")) == dtype


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_fast_type_of_a_cpu(monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: torch.dtype | None):
    monkeypatch.setattr(device_module, "has_amx", lambda: supported)
    assert fast_dtype(CPU) == dtype


@pytest.mark.parametrize("flags", ["fpu avx2 amx_bf16 amx_tile", "fpu avx2 avx512_bf16", None])
def test_amx_is_read_from_the_processors_flags(monkeypatch: pytest.MonkeyPatch, flags: str | None):
    def read(path: Path) -> str:
        assert str(path) == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\nflags : {flags}\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert has_amx.__wrapped__() == (flags is not None and "amx" in flags)


@pytest.mark.parametrize(
    ("precision", "fast", "dtype"),
    [
        ("full", torch.bfloat16, None),
        ("half", None, torch.bfloat16),
        ("auto", torch.float16, torch.float16),
        ("auto", None, None),
        ("full", None, None),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch, precision: str, fast: torch.dtype | None, dtype: torch.dtype | None
):
    monkeypatch.setattr(device_module, "fast_dtype", lambda _: fast)
    assert autocast_dtype(CPU, precision) == dtype


def test_half_precision_that_is_not_there():
    with pytest.raises(DeviceError, match="half precision was requested, but mps has no 16-bit dtype"):
        autocast_dtype(torch.device("mps"), "half")


def test_unknown_precision():
    with pytest.raises(DeviceError, match="precision 'fp16' is unknown; expected one of auto, full, half"):
        autocast_dtype(CPU, "fp16")


@pytest.mark.parametrize(("dtype", "found"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_autocast(dtype: torch.dtype | None, found: torch.dtype):
    with autocast(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == found


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "expected"),
    [
        ("cpu", "AVX2", None, torch.contiguous_format),
        ("cpu", "AVX2", torch.bfloat16, torch.channels_last),
        ("cpu", "AVX512", None, torch.channels_last),
        ("cuda", "AVX2", None, torch.channels_last),
    ],
)
def test_only_float32_on_cpus_without_avx512_trains_in_contiguous_format(
    device: str,
    capability: str,
    dtype: torch.dtype | None,
    expected: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert training_format(torch.device(device), dtype) is expected


@pytest.mark.parametrize("task_class", [SegmentationTask, GTEncoderTask])
def test_the_memory_format_does_not_change_loss_and_gradients(task_class: type):
    torch.manual_seed(0)
    planes = torch.randint(0, 256, (2, 5, 70, 65), dtype=torch.uint8)
    settings = Settings.from_hypar({"model": 4})
    network = Thin(4) if task_class is SegmentationTask else ThinGTEncoder()
    network.eval()  # statistics of the few values in the deepest layers would multiply rounding errors
    found = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        network.to(memory_format=memory_format)
        task = (
            SegmentationTask(network, None, settings)
            if task_class is SegmentationTask
            else task_class(network, settings)
        )
        task.memory_format = memory_format
        inputs = []
        hook = next(network.children()).register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        loss = task.loss(planes)
        hook.remove()
        assert inputs[0].is_contiguous(memory_format=memory_format)
        found.append((loss.detach(), torch.autograd.grad(loss, list(network.parameters()))))
    (loss, gradients), (other_loss, other_gradients) = found
    torch.testing.assert_close(loss, other_loss)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)
