"""What JPEG does to images: quantized cosine transforms of 8 x 8 blocks, with the colors at half the resolution."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from IS_Net.synthesis.filters import halve, pad_to_multiple, upload

# quantization tables of brightness and color, from annex K of ITU-T T.81
_BRIGHTNESS = """
16 11 10 16  24  40  51  61   12 12 14 19  26  58  60  55   14 13 16 24  40  57  69  56   14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77   24 35 55 64  81 104 113  92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103  99
"""
_COLOR = """
17 18 24 47  99  99  99  99   18 21 26 66  99  99  99  99   24 26 56 99  99  99  99  99   47 66 99 99  99  99  99  99
99 99 99 99  99  99  99  99   99 99 99 99  99  99  99  99   99 99 99 99  99  99  99  99   99 99 99 99  99  99  99  99
"""
_TABLES = np.array([text.split() for text in (_BRIGHTNESS, _COLOR)], dtype=np.float32)
_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cosines, (frequencies, pixels, 1, 1), and the matrices from RGB to YCbCr and back, (3, 3, 1, 1)."""
    frequency, place = np.arange(8)[:, None], np.arange(8)
    waves = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency, 0.5, np.sqrt(1 / 8))
    blocks = np.einsum("ui,vj->uvij", waves, waves).reshape(64, 64, 1, 1)
    arrays = blocks, _YCBCR[..., None, None], np.linalg.inv(_YCBCR)[..., None, None]
    return tuple(torch.from_numpy(array.astype(np.float32)).to(device) for array in arrays)


def compress(image: Tensor, quality: int) -> Tensor:
    """Return images as they are after compression.

    Args:
        image: (B, 3, H, W) float32 RGB, 0..255.
        quality: 1 to 100, as for libjpeg.

    Returns:
        (B, 3, H, W) float32, whole numbers 0..255.
    """
    height, width = image.shape[-2:]
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    tables = upload(np.clip(np.floor((_TABLES * scale + 50) / 100), 1, 255), image.device)[..., None, None]
    cosines, to_ycbcr, to_rgb = _constants(image.device)
    ycbcr = F.conv2d(pad_to_multiple(image, 16, "replicate"), to_ycbcr)
    brightness = _quantize(ycbcr[:, :1] - 128, tables[0], cosines) + 128
    color = _quantize(halve(ycbcr[:, 1:]), tables[1], cosines)
    color = F.interpolate(color, scale_factor=2, mode="bilinear")
    return F.conv2d(torch.cat((brightness, color), dim=1), to_rgb)[..., :height, :width].round().clamp_(0, 255)


def _quantize(planes: Tensor, table: Tensor, cosines: Tensor) -> Tensor:
    batch, channels, height, width = planes.shape
    blocks = F.pixel_unshuffle(planes.reshape(batch * channels, 1, height, width), 8)  # (BC, 64, H / 8, W / 8)
    blocks = (F.conv2d(blocks, cosines) / table).round_().mul_(table)
    return F.pixel_shuffle(F.conv2d(blocks, cosines.transpose(0, 1)), 8).view(batch, channels, height, width)
