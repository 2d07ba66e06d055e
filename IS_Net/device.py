"""Select the device and the precision that is fast on it."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from IS_Net.errors import DeviceError
from IS_Net.machine import PRECISIONS, has_amx

logger = logging.getLogger(__name__)


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Select a device and log its name.

    Args:
        name: ``auto`` (CUDA, else Apple's MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        DeviceError: If the device is unknown or not available. Only ``auto`` falls back to another device.
    """
    if str(name) == "auto":
        name = _local_cuda() if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
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
                f"device {str(name)!r} was requested, but PyTorch {torch.__version__} finds {count} CUDA devices; "
                "check nvidia-smi and that this PyTorch was built for CUDA, or use auto or cpu"
            )
        if device.index is not None:
            torch.cuda.set_device(device)  # otherwise pinning memory would open a context on cuda:0
        # the input size stays the same for a whole run, so cuDNN's search for the fastest convolution pays off
        torch.backends.cudnn.benchmark = True
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps' was requested, but this PyTorch does not support it here; use auto or cpu")
    logger.info("device: %s", describe(device))
    return device


def _local_cuda() -> str:
    """Return the CUDA device of this process: if a driver started several on this machine, each has its own."""
    rank, count = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "")), torch.cuda.device_count()
    return f"cuda:{int(rank) % count}" if rank.isdecimal() and count > 1 else "cuda"


def describe(device: torch.device) -> str:
    """Return the type of a device and its model or number of threads, for example ``cuda:0 (NVIDIA H100)``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def half_dtype(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit dtype for networks on a device, or None if it has none.

    bfloat16 on CPUs and on CUDA devices of compute capability 8.0 or higher; float16, which needs a gradient scaler,
    on older CUDA devices.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" else None


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return :func:`half_dtype` if it is faster than float32, on CUDA devices and CPUs with AMX; otherwise None.

    AVX512-BF16 alone does not make IS-Net faster, as benchmarks/predict.py shows.
    """
    if device.type == "cpu":
        return half_dtype(device) if has_amx() else None
    return half_dtype(device)


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """Return the dtype for autocast; None means float32.

    Args:
        device: The device of the network.
        precision: ``full`` (float32), ``half`` (16 bits) or ``auto`` (16 bits if that is faster).

    Raises:
        DeviceError: If the precision is unknown, or if ``half`` is requested and the device has no 16-bit dtype.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        return fast_dtype(device)
    dtype = half_dtype(device) if precision == "half" else None
    if precision == "half" and dtype is None:
        raise DeviceError(f"half precision was requested, but {describe(device)} has no 16-bit dtype; use auto")
    return dtype


def training_format(device: torch.device, dtype: torch.dtype | None) -> torch.memory_format:
    """Return the memory format in which a network trains fastest; None means float32.

    That is channels_last, except in float32 on x86 CPUs without AVX512: oneDNN takes there up to three times as long
    for the gradients of weights in channels_last. Without gradients, channels_last is faster there too.
    """
    slow = device.type == "cpu" and dtype is None and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if slow else torch.channels_last


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """Return a context in which networks run in ``dtype``; None means float32."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def dtype_name(dtype: torch.dtype | None) -> str:
    """Return the name of a dtype for autocast, for example ``bfloat16``; None is ``float32``."""
    return str(dtype or torch.float32).removeprefix("torch.")
