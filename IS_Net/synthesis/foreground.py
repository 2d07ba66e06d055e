"""Separate objects from the background that their edges are mixed with, as layers to be pasted elsewhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from IS_Net.synthesis.filters import box_mean, halve, pad_to_multiple

REACH = 64
"""How far pixels affect the colors of an object, in pixels: a window around it needs this margin."""


def premultiplied_foreground(image: Tensor, alpha: Tensor) -> Tensor:
    """Estimate the object's own colors where they mix with the background, times alpha.

    Blur fusion (Forte, "Approximate Fast Foreground Color Estimation", ICIP 2021), at an eighth and twice at half of
    the resolution, and its last step at full resolution.

    Args:
        image: (B, 3, H, W) float32 RGB, 0..255.
        alpha: (B, 1, H, W) float32 in [0, 1].

    Returns:
        (B, 4, H, W) float32: RGB times alpha, 0..255, and alpha. Nothing is left of the background.
    """
    height, width = image.shape[-2:]
    half = halve(pad_to_multiple(torch.cat((image, alpha), dim=1), 8, "replicate"))
    small = halve(halve(half))
    layers = _blur_fusion(small[:, :3], small[:, 3:], small[:, :3], small[:, :3], radius=5)
    layers = F.interpolate(layers, scale_factor=4, mode="bilinear")
    for _ in range(2):
        layers = _blur_fusion(half[:, :3], half[:, 3:], layers[:, :3], layers[:, 3:], radius=2)
    layers = F.interpolate(layers, scale_factor=2, mode="bilinear")[..., :height, :width]
    foreground, background = layers[:, :3], layers[:, 3:]
    # image = alpha foreground + (1 - alpha) background + residual
    residual = image - background - alpha * (foreground - background)
    colors = torch.addcmul(foreground, residual, alpha).clamp_(0, 255).mul_(alpha)
    return torch.cat((colors, alpha), dim=1)


def _blur_fusion(image: Tensor, alpha: Tensor, foreground: Tensor, background: Tensor, radius: int) -> Tensor:
    """Improve estimates of foreground and background colors, (B, 3, H, W) each, by their means over a window.

    Returns:
        (B, 6, H, W): both.
    """
    means = box_mean(torch.cat((foreground * alpha, background * (1 - alpha), alpha), dim=1), radius)
    weight = means[:, 6:]
    # the terms of 1e-5 keep the color where the window holds no foreground, and avoid a division by zero
    foreground = (means[:, :3] + 1e-5 * foreground) / (weight + 1e-5)
    background = (means[:, 3:6] + 1e-5 * background) / (1 - weight + 1e-5)
    residual = image - background - alpha * (foreground - background)
    return torch.cat((torch.addcmul(foreground, residual, alpha).clamp_(0, 255), background), dim=1)
