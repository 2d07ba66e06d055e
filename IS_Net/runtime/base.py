"""What a runtime is, and which one is used."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from IS_Net.errors import CheckpointError, DeviceError
from IS_Net.hypar import MAX_SIZE
from IS_Net.machine import PRECISIONS, RUNTIMES, has_amx
from IS_Net.preprocess import Size

if TYPE_CHECKING:
    import torch

EXTRAS = {"openvino": "fast", "ncnn": "fast", "onnx": "onnx"}
"""By runtime: the extra that installs it."""
_PACKAGES = {"openvino": "openvino", "ncnn": "ncnn", "onnx": "onnxruntime"}

VARIABLE = "DIS_SAM_RUNTIME"
"""Environment variable: the runtime that ``auto`` stands for."""

_SIDES = range(33, MAX_SIZE + 1)
"""Sides of the network's input in pixels: it halves the picture five times, and needs 2 pixels then."""
DEFAULT_SIZE: Size = (1024, 1024)
"""(height, width) that networks work at whose checkpoints do not name a size."""


class Runtime(Protocol):
    """A network, ready to run."""

    name: str
    """``torch``, ``openvino``, ``ncnn`` or ``onnx``."""
    device: str
    """For example ``cpu`` or ``cuda:0``."""
    where: str
    """The device with its model or number of threads."""
    precision: str
    """``float32``, ``bfloat16`` or ``float16``."""
    in_ch: int
    """Number of input channels."""

    def alpha(self, planes: np.ndarray) -> np.ndarray:
        """Run the network; any number of threads may call this at the same time.

        Args:
            planes: (in_ch, h, w) uint8, as :func:`IS_Net.preprocess.make_planes` returns it.

        Returns:
            (h, w) float32 alpha matte in [0, 1].
        """

    def release(self) -> None:
        """Free the computer's memory that is kept for the next call, which then takes a little longer."""


def choose_runtime(name: str, device: str | torch.device) -> str:
    """Return ``torch``, ``openvino``, ``ncnn`` or ``onnx``.

    Args:
        name: ``torch``, ``openvino``, ``ncnn``, ``onnx`` (ONNX Runtime), or ``auto``: what the environment variable
            ``DIS_SAM_RUNTIME`` says; else, if the device is the CPU, the fastest that is installed, see
            :func:`preferred`; else PyTorch.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        DeviceError: If the name is unknown; or if another runtime than PyTorch was requested, and is not installed or
            does not support the device. OpenVINO and ncnn are used on the CPU, ONNX Runtime on the CPU and on CUDA
            devices.
    """
    where = "runtime"
    if name == "auto" and os.environ.get(VARIABLE):
        name, where = os.environ[VARIABLE], f"environment variable {VARIABLE}: runtime"
    if name not in RUNTIMES:
        raise DeviceError(f"{where} {name!r} is unknown; expected one of {', '.join(RUNTIMES)}")
    if name == "auto":
        on_cpu = str(device) == "cpu" or (str(device) == "auto" and not _may_have_gpu())
        return next(filter(is_installed, preferred()), "torch") if on_cpu else "torch"
    if not is_installed(name):
        raise DeviceError(
            f"{where} {name!r} was requested, but the package {_PACKAGES[name]} is not installed; run "
            f"pip install 'dis-sam[{EXTRAS[name]}]', or use auto or torch"
        )
    kind = str(device).partition(":")[0]
    if name in ("openvino", "ncnn") and kind not in ("auto", "cpu"):
        raise DeviceError(f"{where} {name!r} runs on the CPU, but found device {str(device)!r}; use cpu or torch")
    if name == "onnx" and kind not in ("auto", "cpu", "cuda"):
        raise DeviceError(
            f"{where} 'onnx' runs on the CPU and on CUDA devices, but found device {str(device)!r}; use cpu or torch"
        )
    return name


def require_known_precision(precision: str) -> None:
    """Raise a DeviceError if a precision is not one of ``auto``, ``full`` and ``half``."""
    if precision not in PRECISIONS:
        raise DeviceError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")


def require_float32(precision: str, title: str) -> None:
    """Raise a DeviceError if a runtime that computes in float32 is to compute in something else.

    Args:
        precision: ``auto`` and ``full`` are float32.
        title: The runtime's name for a message.
    """
    require_known_precision(precision)
    if precision == "half":
        raise DeviceError(f"half precision was requested, but {title} is used in float32 here; use auto, or torch")


def preferred() -> tuple[str, ...]:
    """Return the runtimes that are faster than PyTorch on this CPU, the fastest first.

    With AMX, OpenVINO's 16 bits are the fastest; without, ncnn's convolutions are (see benchmarks/README.md).
    """
    return ("openvino", "ncnn", "onnx") if has_amx() else ("ncnn", "openvino", "onnx")


def is_installed(name: str) -> bool:
    """Return whether the package of a runtime is installed, without importing it."""
    if name == "torch":
        return True
    found = importlib.util.find_spec(_PACKAGES[name])
    return found is not None and found.origin is not None  # a folder of that name without Python code has no origin


def _may_have_gpu() -> bool:
    """Return whether PyTorch may find a GPU here, without importing it."""
    if platform.system() == "Darwin":
        return True
    try:
        driver = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):  # no driver: ROCm's devices are found by their file
        return Path("/dev/kfd").exists()


def pick_size(input_size: Size | None, metadata: dict[str, Any]) -> Size:
    """Return the (height, width) that is given, else the one in a checkpoint's metadata, else 1024 x 1024.

    Raises:
        CheckpointError: If a side is too small for the network, or far too large for any memory.
    """
    height, width = map(int, input_size or metadata.get("input_size") or DEFAULT_SIZE)
    if not all(side in _SIDES for side in (height, width)):
        raise CheckpointError(
            f"input_size: the network works at sides of {_SIDES[0]} to {_SIDES[-1]} pixels, found [{height}, {width}]; "
            "the metadata of the checkpoint, config.json, or the caller names the size"
        )
    return height, width
