"""Convert batches of bytes to the network's input, and its logits to alpha mattes, on the device of the network.

:mod:`IS_Net.preprocess` makes the bytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from IS_Net.preprocess import IMAGE_CHANNELS


def resize_batch(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a batch, (B, C, H, W) uint8 on any device, to (B, C, height, width) uint8.

    The result is that of :func:`IS_Net.preprocess.resize_uint8`, up to rounding.
    """
    if planes.shape[-2:] == tuple(size):
        return planes
    resized = F.interpolate(planes.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return resized.round_().to(torch.uint8)


def make_input(planes: torch.Tensor) -> torch.Tensor:
    """Normalize a batch of planes on its device.

    Args:
        planes: (B, in_ch, H, W) uint8, each sample as :func:`IS_Net.preprocess.make_planes` returns it.

    Returns:
        (B, in_ch, H, W) float32 in channels_last format: RGB in [-0.5, 0.5], mask and box in [0, 1].
    """
    x = planes.to(torch.float32, memory_format=torch.channels_last).div_(255)
    x[:, :IMAGE_CHANNELS].sub_(0.5)
    return x


def make_target(gt: torch.Tensor) -> torch.Tensor:
    """Normalize a batch of ground truths, (B, 1, H, W) uint8, to float32 in [0, 1]."""
    return gt.to(torch.float32).div_(255)


def make_alpha(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Convert logits to alpha mattes at the size of the image.

    There is no min-max stretch: if nothing was found, the alpha matte is empty.

    Args:
        logits: (B, 1, h, w), any float dtype.
        size: (height, width) of the image.

    Returns:
        (B, 1, height, width) float32 in [0, 1].
    """
    return resize_alpha(torch.sigmoid(logits.float()), size)


def resize_alpha(alpha: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize alpha mattes, (B, 1, h, w) float32, to (B, 1, height, width): bilinear, align_corners False."""
    if alpha.shape[-2:] == tuple(size):
        return alpha
    return F.interpolate(alpha, size=tuple(size), mode="bilinear", align_corners=False)


def alpha_to_uint8(alpha: torch.Tensor) -> torch.Tensor:
    """Round an alpha matte in [0, 1], of any shape, to uint8 0..255, as it is saved and scored."""
    return (alpha * 255).round_().to(torch.uint8)
