"""What a training says about itself before it starts, and the batch size that fits into a GPU's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from IS_Net.device import autocast
from IS_Net.errors import HyparError
from IS_Net.hypar import Settings
from IS_Net.tasks import SegmentationTask

logger = logging.getLogger(__name__)

BYTES_PER_PARAMETER = 16
"""Weight, gradient and the two averages of AdamW in float32; an EMA of the weights takes 4 more."""
_MEMORY_SHARE = 0.9  # of the device's memory that a step may take; the rest is for validation and fragments
_LARGEST = 1024


def state_memory(model: nn.Module, ema: bool) -> int:
    """Return the bytes that weights, gradients, optimizer and EMA of a network take during a training."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters * (BYTES_PER_PARAMETER + 4 * ema)


def largest_batch(fits: Callable[[int], bool], most: int = _LARGEST) -> int:
    """Return the largest number of samples that fit; 0 if not even one does.

    Args:
        fits: Tries a number of samples. If a number fits, so does every smaller one.
        most: The largest number to try.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def find_batch_size(
    model: nn.Module,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype | None,
    most: int,
    gt_encoder: nn.Module | None = None,
) -> int:
    """Find the largest batch size whose training step fits into the memory of a GPU, by trying.

    What this process holds there already, such as the data sets that samples are made of, counts too.

    Args:
        model: The network of phase 2, an ISNetDIS; it is the same afterwards.
        settings: The settings of the run.
        device: A CUDA device.
        dtype: Of autocast; None is float32.
        most: The largest batch size to try: the number of training samples.
        gt_encoder: An ISNetGTEncoder with any weights, if one supervises phase 2; it is frozen and moved to the device.

    Raises:
        HyparError: If the device is not a CUDA device, or not even one sample fits.
    """
    if device.type != "cuda":
        raise HyparError(
            f"hypar['auto_batch']: tries batch sizes on a CUDA device, found {device}; set batch_size_train instead"
        )
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(device, memory_format=torch.channels_last)
    if gt_encoder is not None:
        gt_encoder.to(device, memory_format=torch.channels_last)
    task = SegmentationTask(model, gt_encoder, settings)
    limit = _MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            planes = torch.randint(0, 256, (size, model.in_ch + 1, *settings.crop_size), dtype=torch.uint8)
            with autocast(device, dtype):
                loss = task.loss(planes.to(device))
            loss.backward()
            states = state_memory(model, bool(settings.ema)) - 8 * sum(p.numel() for p in model.parameters())
            return torch.cuda.max_memory_allocated(device) + states <= limit
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)

    task.train()
    size = largest_batch(fits, most)
    torch.cuda.empty_cache()
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    if not size:
        raise HyparError(
            f"hypar['auto_batch']: not even one sample of {list(settings.crop_size)} fits into the memory of {device}; "
            f"reduce input_size, or set model_digit to 'half'{'' if settings.recompute else ' or recompute to True'}"
        )
    logger.info("auto_batch: %d samples fit into the memory of %s", size, device)
    return size


def describe(model: nn.Module, settings: Settings, device: torch.device, dtype: torch.dtype | None) -> str:
    """Return a line about a network and where it is trained."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    memory = state_memory(model, bool(settings.ema)) / 2**30
    return (
        f"{parameters / 1e6:.1f} million parameters on {device} in {precision}; weights, gradients and optimizer take "
        f"{memory:.1f} GiB"
    )
