"""Filters on batches of float planes, (B, C, H, W), the same on CPU and GPU.

Parameters are Python numbers or small arrays drawn on the host. Nothing here reads a result back from the device, so
that a GPU never waits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from IS_Net.preprocess import Window


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """Return a small array as a tensor on a device, without waiting for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


# --- scaling and warping --------------------------------------------------------------------------------------------


def halve(planes: Tensor) -> Tensor:
    """Return planes of half the size, each pixel the mean of four; the sides of the planes must be even."""
    rows = planes[..., ::2, :] + planes[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


def shrink(planes: Tensor, factor: int) -> Tensor:
    """Return planes that are smaller by a power of two, with sides rounded up, by the mean of ``factor`` ** 2 pixels.

    Where the last pixels are incomplete, the border is repeated.
    """
    planes = pad_to_multiple(planes, factor, "replicate")
    for _ in range(int(math.log2(factor))):
        planes = halve(planes)
    return planes


def enlarge(planes: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """Undo :func:`shrink` by bilinear interpolation; ``size`` is the (height, width) before."""
    if factor == 1:
        return planes
    return F.interpolate(planes, scale_factor=factor, mode="bilinear")[..., : size[0], : size[1]]


def pad_to_multiple(planes: Tensor, factor: int, mode: str) -> Tensor:
    """Pad planes at the right and below until their sides are multiples of ``factor``."""
    bottom, right = (-side % factor for side in planes.shape[-2:])
    return F.pad(planes, (0, right, 0, bottom), mode=mode) if bottom or right else planes


def pyramid(planes: Tensor, levels: int) -> list[Tensor]:
    """Return planes at full, half, quarter ... size. Outside the planes is 0, as :func:`warp` has it."""
    found = [planes]
    planes = pad_to_multiple(planes, 2**levels, "constant")
    for _ in range(levels):
        planes = halve(planes)
        found.append(planes)
    return found


class Affine(NamedTuple):
    """Maps a point of the result to a point of the source: (a x + b y + c, d x + e y + f).

    Coordinates are continuous: the center of the first pixel is (0.5, 0.5).
    """

    a: float
    b: float
    c: float
    d: float
    e: float
    f: float

    def scaled(self, source: float, result: float = 1.0) -> Affine:
        """Return the map between versions of source and result whose sizes are these multiples of the original."""
        x, y = source / result, source
        return Affine(self.a * x, self.b * x, self.c * y, self.d * x, self.e * x, self.f * y)

    def moved(self, left: float, top: float) -> Affine:
        """Return the map to a window of the source that begins at (left, top)."""
        return self._replace(c=self.c - left, f=self.f - top)


def warp(source: Tensor, affine: Affine, window: Window, padding: str = "zeros") -> Tensor:
    """Resample planes bilinearly.

    The result should not be smaller than the source by more than a factor of 1.5; see :func:`pyramid`.

    Args:
        source: (1, C, h, w) float32.
        affine: The map from the result to the source.
        window: The part of the result to compute.
        padding: What is outside the source, as in :func:`torch.nn.functional.grid_sample`.

    Returns:
        (1, C, height, width) of the window, float32.
    """
    height, width = source.shape[-2:]
    x = torch.arange(window.left, window.left + window.width, device=source.device) + 0.5
    y = (torch.arange(window.top, window.top + window.height, device=source.device) + 0.5)[:, None]
    grid = torch.empty((1, window.height, window.width, 2), device=source.device)
    for axis, (along_x, along_y, shift), side in ((0, affine[:3], width), (1, affine[3:], height)):
        torch.add(x * (along_x * 2 / side) + (shift * 2 / side - 1), y * (along_y * 2 / side), out=grid[0, :, :, axis])
    return F.grid_sample(source, grid, mode="bilinear", padding_mode=padding, align_corners=False)


# --- blurring -------------------------------------------------------------------------------------------------------


def gaussian_blur(planes: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Blur each sample of a batch by a Gaussian of its own, and repeat the border.

    Args:
        planes: (B, C, H, W) float32.
        sigmas: (B,) standard deviations in pixels; 0 leaves a sample as it is. Above 3, take :func:`wide_blur`.

    Returns:
        (B, C, H, W) float32, the planes themselves if all are 0.
    """
    if not any(sigmas):
        return planes
    batch, channels, height, width = planes.shape
    radius = math.ceil(3 * max(sigmas))
    x = np.arange(-radius, radius + 1)
    weights = np.stack([np.exp(-0.5 * np.square(x / sigma)) if sigma else x == 0 for sigma in sigmas])
    weights = np.where(np.abs(x) <= np.ceil(3 * np.array(sigmas))[:, None], weights, 0)  # whatever the others need
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32).repeat(channels, 0)
    kernel = upload(weights, planes.device)[:, None, None]
    stacked = F.pad(planes.reshape(1, batch * channels, height, width), (radius,) * 4, mode="replicate")
    if planes.device.type == "cpu":
        stacked = stacked.contiguous(memory_format=torch.channels_last)  # several times as fast
    stacked = F.conv2d(stacked, kernel, groups=batch * channels)
    stacked = F.conv2d(stacked, kernel.mT, groups=batch * channels)
    return stacked.contiguous().view(batch, channels, height, width)


def wide_blur(planes: Tensor, sigma: float) -> Tensor:
    """Blur planes, (B, C, H, W), by a Gaussian of any standard deviation, at a lower resolution if it is wide."""
    factor = 2 ** max(math.floor(math.log2(max(sigma, 1e-3) / 1.4)), 0)
    if factor == 1:
        return gaussian_blur(planes, [sigma] * len(planes))
    small = shrink(planes, factor)
    # shrinking and enlarging blur too: by about factor / 2
    rest = math.sqrt(max(sigma**2 - factor**2 / 4, 0)) / factor
    return enlarge(gaussian_blur(small, [rest] * len(planes)), factor, planes.shape[-2:])


def box_mean(planes: Tensor, radius: int) -> Tensor:
    """Return the mean of the (2 radius + 1) ** 2 pixels around each, of those that exist."""
    for kernel, padding in (((1, 2 * radius + 1), (0, radius)), ((2 * radius + 1, 1), (radius, 0))):
        planes = F.avg_pool2d(planes, kernel, 1, padding, count_include_pad=False)
    return planes


# --- binary masks, as floats of 0 and 1 -----------------------------------------------------------------------------


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Dilate masks by an octagon of about this radius in pixels."""
    square, cross = round(radius * 0.41), radius - round(radius * 0.41)
    for _ in range(min(cross, 3)):  # beyond, the shape of the corners does not matter
        rows = F.max_pool2d(mask, (3, 1), 1, (1, 0))
        mask = torch.maximum(rows, F.max_pool2d(mask, (1, 3), 1, (0, 1)))
    square += max(cross - 3, 0)
    if square:
        mask = F.max_pool2d(mask, (2 * square + 1, 1), 1, (square, 0))
        mask = F.max_pool2d(mask, (1, 2 * square + 1), 1, (0, square))
    return mask


def erode(mask: Tensor, radius: int) -> Tensor:
    """Erode masks as :func:`dilate` dilates; what is outside the planes does not erode them."""
    return 1 - dilate(1 - mask, radius)


def majority(mask: Tensor, radius: int) -> Tensor:
    """Return what most pixels around each are, a median filter of masks."""
    return (box_mean(mask, radius) > 0.5).float()


def spread(seeds: Tensor, free: Tensor, rounds: int = 4) -> Tensor:
    """Spread seeds along rows and columns as far as pixels are free, in both directions, several times.

    Args:
        seeds: (B, 1, H, W) bool, some of the free pixels.
        free: (B, 1, H, W) bool.
        rounds: How often. Each round goes around one more corner.

    Returns:
        (B, 1, H, W) bool: the free pixels that are connected to a seed, but for ways of many corners.
    """
    for _ in range(rounds):
        for axis in (-1, -2):
            place = torch.arange(1, free.shape[axis] + 1, device=free.device)
            place = place if axis == -1 else place[:, None]
            for flipped in (False, True):
                if flipped:
                    seeds, free = seeds.flip(axis), free.flip(axis)
                last_seed = torch.where(seeds, place, 0).cummax(axis).values
                last_wall = torch.where(free, 0, place).cummax(axis).values
                seeds = free & (last_seed > last_wall)
                if flipped:
                    seeds, free = seeds.flip(axis), free.flip(axis)
    return seeds


# --- noise ----------------------------------------------------------------------------------------------------------

_BANK = 2**22  # numbers


@functools.cache
def _noise_bank(device: torch.device) -> Tensor:
    """Return normal noise, int8 in units of 1/32, drawn once: drawing an image's own costs more than all the rest."""
    drawn = np.random.default_rng(0).standard_normal(_BANK, dtype=np.float32)
    return torch.from_numpy(np.clip(np.rint(drawn * 32), -127, 127).astype(np.int8)).to(device)


def pixel_noise(offset: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return normal noise of unit variance, float32 of any shape: a part of a fixed sequence, which is repeated."""
    bank, number = _noise_bank(device), math.prod(shape)
    repeated = bank.repeat(-(-(offset % _BANK + number) // _BANK)) if offset % _BANK + number > _BANK else bank
    return (repeated[offset % _BANK :][:number].float() * (1 / 32)).view(shape)


def smooth_noise(rng: np.random.Generator, cells: int, size: int | tuple[int, int], device: torch.device) -> Tensor:
    """Return (1, 1, height, width) noise of about unit variance that varies over about size / cells pixels."""
    coarse = upload(rng.standard_normal((1, 1, cells, cells), dtype=np.float32), device)
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
