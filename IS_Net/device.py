"""Choose the device, say it aloud, and know in which precision it is fast."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from IS_Net.errors import DeviceError

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "full", "half")


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of that name, and log which one it is.

    Args:
        name: ``auto`` (CUDA, else Apple's MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        DeviceError: If the device is unknown or not there. Only ``auto`` falls back to another.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is unknown; expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name!r} is not supported; expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"device {str(name)!r} was asked for, but PyTorch {torch.__version__} sees {count} CUDA devices; "
                "check nvidia-smi and that this PyTorch was built for CUDA, or ask for auto or cpu"
            )
        if device.index is not None:
            torch.cuda.set_device(device)  # else pinning memory would open a context on the first one
        # the convolutions keep one input size for a whole run, so cuDNN's search for the fastest one pays
        torch.backends.cudnn.benchmark = True
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was asked for, but this PyTorch cannot use one; ask for auto or cpu")
    logger.info("device: %s", describe(device))
    return device


def describe(device: torch.device) -> str:
    """Name a device as a person would: its type, and the model where it is known."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def half_dtype(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that networks run in on a device, or None where there is none.

    bfloat16 on CPUs and on CUDA from compute capability 8.0; float16, which needs a gradient scaler, on older CUDA.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" else None


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return :func:`half_dtype` where it is faster than float32: on CUDA, and on CPUs that have AMX; else None.

    AVX512-BF16 alone does not make IS-Net faster (benchmarks/predict.py shows it).
    """
    if device.type == "cpu":
        # private, and not there in the oldest PyTorch that this project takes
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        return half_dtype(device) if amx() else None
    return half_dtype(device)


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """Turn a precision into autocast's dtype; None stands for plain float32.

    Args:
        device: Where the network runs.
        precision: ``full`` (float32), ``half`` (16 bits) or ``auto`` (16 bits where that is faster).

    Raises:
        DeviceError: If the precision is unknown, or ``half`` is asked of a device that has no 16-bit type.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        return fast_dtype(device)
    dtype = half_dtype(device) if precision == "half" else None
    if precision == "half" and dtype is None:
        raise DeviceError(f"half precision was asked for, but {describe(device)} has no 16-bit type; use auto")
    return dtype


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Return the context in which a network runs in ``dtype``; None runs it in float32."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
