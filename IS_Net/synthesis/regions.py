"""Regions of photographs: parts of similar color, whatever they show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from IS_Net.synthesis.filters import dilate, erode, gaussian_blur, majority, spread, upload

SIDE = 384
"""Photographs are scaled down to this longer side, in pixels, before they are divided into regions."""
MIN_CONTRAST = 16.0
"""Minimum contrast across the outline of a region: sum of the differences of brightness and two color axes, 0..255."""
_PARTS = 24
_TRIES = 6
_COARSE = 4  # connected parts are found at a resolution that is lower by this factor


class Region(NamedTuple):
    """What is drawn of a region; its shape follows from the photograph."""

    seeds: np.ndarray
    """(24, 2) float32 in [0, 1): y and x of points whose colors the parts of the photograph begin with."""
    near: float
    """How much the distance to a part's center counts, compared with its color."""
    tries: np.ndarray
    """(6,) int: the seeds whose parts are tried in turn until an outline is visible."""
    similar: np.ndarray
    """(6,) float32: other parts belong to the region too up to this difference in color."""


def draw_region(rng: np.random.Generator) -> Region:
    """Draw the parameters of a region."""
    seeds = rng.random((_PARTS, 2), dtype=np.float32)
    near = float(rng.uniform(0, 120))
    similar = np.exp(rng.uniform(np.log(4), np.log(40), _TRIES)).astype(np.float32)
    return Region(seeds, near, rng.permutation(_PARTS)[:_TRIES], similar)


def find_region(image: Tensor, region: Region) -> Tensor:
    """Find a region of a photograph.

    The photograph is divided into parts by color and place (k-means). A region is one of them with those of similar
    color, as far as they are connected; the first one is taken that is neither tiny nor huge and whose outline is
    visible.

    Args:
        image: (1, 3, H, W) float32 RGB, 0..255.
        region: Its parameters.

    Returns:
        (1, 1, H, W) float32 in [0, 1], the region; 0 everywhere if none is visible.
    """
    height, width = image.shape[-2:]
    scale = min(SIDE / max(height, width), 1)
    h, w = max(round(height * scale), 1), max(round(width * scale), 1)
    small = F.interpolate(image, size=(h, w), mode="area")
    colors = gaussian_blur(opponent_colors(small), [1.2])
    parts, centers = _divide(colors, region)
    # the tries: (6, 1, h, w)
    tries = upload(region.tries, image.device)
    chosen = centers[tries]
    differences = (chosen[:, None, :3] - centers[None, :, :3]).abs().sum(-1)  # (6, parts)
    belongs = differences <= upload(region.similar, image.device)[:, None]
    found = belongs.float()[:, parts][:, None]
    coarse = F.interpolate(found, scale_factor=1 / _COARSE, mode="area") if min(h, w) >= 2 * _COARSE else found
    seeds = F.interpolate((parts == tries[:, None, None]).float()[:, None], size=coarse.shape[-2:], mode="area")
    # of the chosen part, the point that is most surely inside it
    inside = F.avg_pool2d(seeds, 9, 1, 4).flatten(1)
    seed = torch.zeros_like(inside, dtype=torch.bool).scatter_(1, inside.argmax(1, keepdim=True), True)
    connected = spread(seed.view_as(coarse), coarse > 0.5)
    found = majority(found * F.interpolate(dilate(connected.float(), 1), size=(h, w)), 2)
    inner, outer = found - erode(found, 3), dilate(found, 3) - found
    contrast = (_mean(colors, inner) - _mean(colors, outer)).abs().sum(1)
    area = found.mean((1, 2, 3))
    visible = (contrast > MIN_CONTRAST) & (area > 0.005) & (area < 0.6)
    first = (visible.float() * torch.arange(_TRIES, 0, -1, device=image.device)).argmax()[None]
    found = found.index_select(0, first) * visible.any()
    enlarged = F.interpolate(found, size=(height, width), mode="bicubic", align_corners=False)
    return enlarged.sub_(0.5).mul_(2).add_(0.5).clamp_(0, 1)


def opponent_colors(image: Tensor) -> Tensor:
    """Return brightness and two color axes, (B, 3, H, W), each on about the scale of the RGB values."""
    red, green, blue = image.unbind(1)
    return torch.stack(((red + green + blue) / 3, red - green, (red + green) / 2 - blue), dim=1)


def _divide(colors: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Divide colors, (1, 3, h, w), into parts; return their numbers, (h, w) int64, and centers, (parts, 5)."""
    _, _, h, w = colors.shape
    y = torch.arange(h, device=colors.device)[:, None].expand(h, w) * (region.near / max(h, w))
    x = torch.arange(w, device=colors.device).expand(h, w) * (region.near / max(h, w))
    features = torch.cat((colors[0], y[None], x[None])).flatten(1).T.contiguous()
    seeds = (region.seeds * (h, w)).astype(np.int64)
    centers = features[upload(seeds[:, 0] * w + seeds[:, 1], colors.device)]
    sample = features[:: max(features.shape[0] // 8192, 1)]
    for _ in range(4):
        share = (_nearest(sample, centers)[:, None] == torch.arange(_PARTS, device=colors.device)).float()
        counts = share.sum(0)[:, None]
        centers = torch.where(counts > 0, share.T @ sample / counts.clamp(min=1), centers)
    return _nearest(features, centers).view(h, w), centers


def _nearest(features: Tensor, centers: Tensor) -> Tensor:
    """Return the number of the center that is nearest to each feature, (n,) int64."""
    # the squares of the features are the same for all centers
    return torch.addmm(centers.square().sum(1), features, centers.T, alpha=-2).argmin(1)


def _mean(colors: Tensor, where: Tensor) -> Tensor:
    """Return the mean color, (n, 3), of each of several masks, (n, 1, h, w); 0 if a mask is empty."""
    return (where * colors).sum((2, 3)) / where.sum((2, 3)).clamp(min=1)
