"""Simulate coarse masks from the ground truth, with the errors of different sources of masks.

A network that is trained with these masks does not depend on a single source. The errors are those of real masks:

- Masks of SAM ViT-L have borders of a 256 x 256 map; frayed edges are rounded, gaps between slats and holes are
  filled, thin cords are interrupted or missing, and, where SAM is uncertain, there is a grid of small blocks.
- Weaker sources (GrabCut, a filled box, a scribble) miss or add whole parts.

The sources take tensors on any device. Random numbers are drawn on the host; what depends on the ground truth, such as
the box, stays on the device, so that a GPU never waits. Most work is done on maps of at most 256 x 256.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from IS_Net.synthesis.filters import (
    box_mean,
    dilate,
    erode,
    gaussian_blur,
    majority,
    shrink,
    smooth_noise,
    spread,
    upload,
)
from IS_Net.synthesis.regions import opponent_colors

COLOR_SIDES = (128, 192, 256)
"""Sides of the maps of the sources that follow colors, in pixels."""
_OUTLINE = 256  # side of the maps that hulls and strokes are drawn on


def binarize(gt: Tensor) -> Tensor:
    """Return where a ground truth, uint8 0..255 of any shape, shows the target: bool."""
    return gt > 128


def bounds(found: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tight box of a mask, (H, W) bool: first column and row, and those after the last ones.

    They are int64 of shape () on the device of the mask, and all 0 if it is empty.
    """
    ends = []
    for occupied in (found.any(0), found.any(1)):
        place = torch.arange(1, len(occupied) + 1, device=found.device)
        last = torch.where(occupied, place, 0).amax()
        first = len(occupied) - torch.where(occupied, place.flip(0), 0).amax()
        ends += [torch.minimum(first, last), last]
    return ends[0], ends[2], ends[1], ends[3]


def _rectangle(box: tuple[Tensor, Tensor, Tensor, Tensor], shape: torch.Size) -> Tensor:
    """Return (H, W) bool, True inside a box as :func:`bounds` returns it."""
    x0, y0, x1, y1 = box
    x, y = torch.arange(shape[1], device=x0.device), torch.arange(shape[0], device=x0.device)[:, None]
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def fill_bounds(found: Tensor) -> Tensor:
    """Return the filled tight box of a mask, (H, W) bool, as a mask of the same kind."""
    columns, rows = (
        (occupied.cumsum(0) > 0) & (occupied.flip(0).cumsum(0).flip(0) > 0) for occupied in (found.any(0), found.any(1))
    )
    return rows[:, None] & columns


def _to_square(gt: Tensor, n: int) -> Tensor:
    """Resize a ground truth, (H, W) uint8, to (1, 1, n, n) float32 in [0, 1]."""
    height, width = gt.shape
    planes = gt[None, None].float().div_(255)
    factor = 2 ** max(int(np.log2(min(height, width) / n)), 0)
    if height % factor == 0 and width % factor == 0:
        planes = shrink(planes, factor)  # the same mean, several times as fast
    return F.interpolate(planes, size=(n, n), mode="area")


def _enlarge(mask: Tensor, shape: torch.Size) -> Tensor:
    """Resize a mask, (1, 1, h, w) float32 of 0 and 1, to (H, W) bool."""
    return F.interpolate(mask, size=tuple(shape), mode="bilinear", align_corners=False)[0, 0] > 0.5


# --- the sources ----------------------------------------------------------------------------------------------------


def _add_speckle(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """Invert small blocks of an (1, 1, n, n) mask on and near the target, as where SAM is uncertain."""
    n, block = mask.shape[-1], int(rng.integers(1, 4))
    near = dilate(mask, int(rng.integers(2, max(n // 12, 4))))
    uncertain = smooth_noise(rng, int(rng.integers(3, 9)), n, mask.device) > rng.uniform(0.6, 1.5)
    side = -(-n // block)
    blocks = rng.random((side, side)) < rng.uniform(0.2, 0.5)
    period = int(rng.integers(2, 5))  # the mask decoder's upsampling leaves a grid
    blocks[::period, ::period] ^= True
    blocks = upload(np.kron(blocks, np.ones((block, block), bool))[:n, :n].astype(np.float32), mask.device)
    return torch.where(uncertain & (near > 0), (mask - blocks).abs(), mask)


def _fill_holes(mask: Tensor) -> Tensor:
    """Fill what is enclosed by a mask, (1, 1, n, n)."""
    background = F.pad(mask, (1, 1, 1, 1)) < 0.5
    outside = torch.zeros_like(background)
    outside[..., 0, 0] = True  # the border that was added connects all of the outside
    return 1 - spread(outside, background)[..., 1:-1, 1:-1].float()


def sam_like(gt: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Simulate the mask of a promptable model (SAM, HQ-SAM): right as a whole, coarse in its details."""
    n, device = int(rng.choice([64, 96, 128, 128, 192, 256])), gt.device
    soft = gaussian_blur(_to_square(gt, n), [rng.uniform(0.4, 1.6)])
    band = 2 * int(rng.integers(1, 4)) + 1
    border = F.max_pool2d(soft, band, 1, band // 2) + F.max_pool2d(-soft, band, 1, band // 2)
    soft = soft + rng.uniform(0, 0.4) * smooth_noise(rng, n // int(rng.integers(3, 13)), n, device) * border
    mask = (soft > rng.uniform(0.4, 0.6)).float()
    if rng.random() < 0.3:  # thin parts are interrupted or missing
        radius = int(rng.choice([1, 2]))
        thick = dilate(erode(mask, radius), radius)
        keep = smooth_noise(rng, n // int(rng.integers(3, 9)), n, device) > rng.uniform(-1, 1)
        mask = torch.where(keep, mask, thick)
    if rng.random() < 0.6:
        radius = int(rng.choice([1, 2, 3]))
        mask = erode(dilate(mask, radius), radius)
    if rng.random() < 0.2:
        mask = dilate(erode(mask, 1), 1)
    if rng.random() < 0.15:  # holes are filled
        mask = _fill_holes(mask)
    if rng.random() < 0.2:  # a part of the target is missing, or one beside it is added
        part = smooth_noise(rng, int(rng.integers(4, 10)), n, device) > 1.6
        near = dilate(mask, n // 20) > 0
        mask = mask.masked_fill(part & near, float(rng.random() < 0.5))
    if rng.random() < 0.25:
        mask = _add_speckle(mask, rng)
    return _enlarge(mask, gt.shape)


class _View:
    """A square map of a rectangle of an image. The rectangle is known on the device only.

    Args:
        box: First column and row, and those after the last ones, of shape () each.
        n: Side of the map.
    """

    def __init__(self, box: tuple[Tensor, Tensor, Tensor, Tensor], n: int) -> None:
        self.box, self.n = box, n
        x0, y0, x1, y1 = (end.float() for end in box)
        self.left, self.top = x0, y0
        self.width, self.height = (x1 - x0).clamp(min=1), (y1 - y0).clamp(min=1)

    def look(self, planes: Tensor, shape: torch.Size) -> Tensor:
        """Return (1, C, n, n) of planes, (1, C, h, w) float32; ``shape`` is the (H, W) of the image."""
        place = (torch.arange(self.n, device=planes.device) + 0.5) / self.n
        x = (self.left + place * self.width) * (2 / shape[1]) - 1
        y = (self.top + place * self.height) * (2 / shape[0]) - 1
        grid = torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1)[None]
        return F.grid_sample(planes, grid, padding_mode="border", align_corners=False)

    def put_back(self, mask: Tensor, shape: torch.Size) -> Tensor:
        """Return (H, W) bool of the image from a map, (1, 1, n, n) of 0 and 1; False outside the rectangle."""
        x = (torch.arange(shape[1], device=mask.device) + 0.5 - self.left) * (2 / self.width) - 1
        y = (torch.arange(shape[0], device=mask.device) + 0.5 - self.top) * (2 / self.height) - 1
        grid = torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1)[None]
        found = F.grid_sample(mask, grid, padding_mode="border", align_corners=False)[0, 0] > 0.5
        return found & _rectangle(self.box, shape)


def _small_image(image: Tensor) -> Tensor:
    """Return an image, (3, H, W) uint8, as (1, 3, h, w) float32 of brightness and two color axes, a little blurred."""
    factor = 2 if min(image.shape[1:]) >= 512 else 1
    return opponent_colors(shrink(image[None].float(), factor))


def grabcut(gt: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Imitate GrabCut in the target's box: it follows colors, whatever object they belong to.

    As Rother et al. ("GrabCut", SIGGRAPH 2004), colors of the object are learned inside the box and those of the
    background in the surroundings, labels follow from both and from the neighbors, and colors are learned again. Here
    colors are shares of a common palette, the neighbors' influence is a mean field, and a color of the object has to be
    clearly more frequent inside the box than outside, so that errors are as frequent on both sides as with GrabCut.
    """
    n, device = int(rng.choice(COLOR_SIDES)), gt.device
    number, iterations = int(rng.integers(16, 33)), int(rng.integers(2, 6))
    smoothness, softness, doubt = rng.uniform(0.1, 0.6), rng.uniform(5, 12), rng.uniform(0, 0.9)
    seeds = upload(rng.integers(n * n, size=number), device)
    x0, y0, x1, y1 = box = bounds(binarize(gt))
    margin = torch.maximum(x1 - x0, y1 - y0).clamp(min=16)  # around the box, to learn the background's colors from
    height, width = gt.shape
    wide = (x0 - margin).clamp(min=0), (y0 - margin).clamp(min=0), (x1 + margin).clamp(max=width), (y1 + margin)
    view = _View((*wide[:3], wide[3].clamp(max=height)), n)
    inside = view.look(_rectangle(box, gt.shape)[None, None].float(), gt.shape) > 0.5
    colors = view.look(_small_image(image), gt.shape)[0].flatten(1).T
    palette = colors[seeds]
    for _ in range(3):
        share = _shares(colors, palette, softness)
        palette = (share.T @ colors) / share.sum(0)[:, None].clamp(min=1e-3)
    share = _shares(colors, palette, softness)
    total = share.sum(0).clamp(min=1e-3)
    label = inside.float()
    for _ in range(iterations):
        sides = torch.cat((label, 1 - label)).flatten(1)  # object and background
        models = (sides @ share) / sides.sum(1, keepdim=True).clamp(min=1)
        likelihood = (((models + 1e-4) / total) @ share.T).log_()
        evidence = (likelihood[0] - likelihood[1]).clamp_(-4, 4).view_as(label) - doubt
        label = ((evidence > 0) & inside).float()
        for _ in range(2):
            label = ((evidence + smoothness * (4 * box_mean(label, 1) - 2) > 0) & inside).float()
    filled = _rectangle(box, gt.shape)
    mask = view.put_back(majority(label, 1), gt.shape) & filled
    return torch.where(mask.any(), mask, filled)


def _shares(colors: Tensor, palette: Tensor, softness: float) -> Tensor:
    """Return how much each color, (n, 3), belongs to each of a palette, (k, 3): (n, k), with a sum of 1."""
    distances = torch.addmm(palette.square().sum(1), colors, palette.T, alpha=-2)
    return torch.softmax(distances * (-0.5 / softness**2), dim=1)


def drop_parts(gt: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Drop large parts of the target, add large parts beside it, or both, with ragged borders."""
    n, device = 160, gt.device
    mask = _to_square(gt, n) > 0.5
    ragged = rng.uniform(0, 0.5) * smooth_noise(rng, n // 2, n, device)
    if rng.random() < 0.7:
        mask = mask & (smooth_noise(rng, int(rng.integers(2, 7)), n, device) + ragged < rng.uniform(0, 1))
    if rng.random() < 0.6:
        near = dilate(mask.float(), int(rng.integers(3, 17))) > 0
        more = smooth_noise(rng, int(rng.integers(2, 9)), n, device) + ragged > rng.uniform(0, 1)
        mask = mask | (near & more)
    return _enlarge(mask.float(), gt.shape)


def leak_background(gt: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Add parts of the background within the box to the mask, and drop parts of the target.

    The box is divided into parts by color and position. This imitates the failures of GrabCut, which are too rare on
    the few photographs of a training set: the mask includes background up to the box and misses parts of the target.
    """
    n, device = int(rng.choice(COLOR_SIDES)), gt.device
    near, number = rng.uniform(0, 200), int(rng.integers(3, 16))
    seeds = upload(rng.integers(n * n, size=number), device)
    added = upload(rng.random(number) < rng.uniform(0.1, 0.7), device)
    dropped = upload(rng.random(number) < (rng.uniform(0, 0.5) if rng.random() < 0.5 else 0), device)
    view = _View(bounds(binarize(gt)), n)
    colors = gaussian_blur(view.look(_small_image(image), gt.shape), [1.0])[0].flatten(1)
    place = torch.arange(n, device=device).repeat(n), torch.arange(n, device=device).repeat_interleave(n)
    longer = torch.maximum(view.width, view.height)
    position = [p * (near / n) * (side / longer) for p, side in zip(place, (view.width, view.height), strict=True)]
    features = torch.cat((colors, torch.stack(position))).T
    parts = torch.addmm(features[seeds].square().sum(1), features, features[seeds].T, alpha=-2).argmin(1)
    # read from the ground truth at full resolution: binarized once more, it would lose thin parts
    target = view.look(binarize(gt)[None, None].float(), gt.shape) > 0.5
    flat = target.flatten()
    found = torch.where(flat, ~dropped[parts], added[parts])
    too_little = (found & flat).sum() < 0.5 * flat.sum()
    found = (found | (flat & too_little)).float().view_as(target)
    return view.put_back(majority(found, 1), gt.shape)


def box_or_hull(gt: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Fill the target's box, an ellipse in the box, or the target's convex hull."""
    found, kind, device = binarize(gt), int(rng.integers(3)), gt.device
    x0, y0, x1, y1 = box = bounds(found)
    inside = _rectangle(box, gt.shape)
    if kind == 0:
        return inside
    height, width = gt.shape
    if kind == 1:
        x, y = torch.arange(width, device=device) + 0.5, torch.arange(height, device=device)[:, None] + 0.5
        x, y = ((2 * p - a - b) / (b - a).clamp(min=1) for p, a, b in ((x, x0, x1), (y, y0, y1)))
        return inside & (x * x + y * y <= 1)
    # the hull is where no direction leads farther than the target does
    small = F.adaptive_max_pool2d(found[None].float(), min(_OUTLINE, height, width))[0] > 0
    angles = np.arange(48) * (2 * np.pi / 48)
    directions = upload(np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32), device)
    place = torch.arange(small.shape[0], device=device, dtype=torch.float32)
    along = directions[:, :1, None] * place + directions[:, 1:, None] * place[:, None]  # (48, n, n)
    farthest = torch.where(small, along, -torch.inf).amax((1, 2), keepdim=True)
    hull = (along <= farthest + 1e-3).all(0)
    return inside & _enlarge(hull[None, None].float(), gt.shape)


def scribble(gt: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw a few broad strokes over the target, as a user might draw them by hand."""
    device, n = gt.device, min(_OUTLINE, *gt.shape)
    found = binarize(gt)
    small = F.adaptive_max_pool2d(found[None].float(), n)[0]
    x0, y0, x1, y1 = bounds(found)
    extent = torch.maximum((x1 - x0) / gt.shape[1], (y1 - y0) / gt.shape[0]) * n
    lines, widths = [], []
    for _ in range(int(rng.integers(1, 4))):
        lines.append(int(rng.integers(2, 6)))
        widths.append(rng.uniform(0.01, 0.075))
    # each point is where the target has the highest noise
    noise = upload(rng.random((1, sum(lines), 32, 32), dtype=np.float32), device)
    noise = F.interpolate(noise, size=(n, n), mode="nearest")[0]
    points = torch.where(small > 0, noise, -1.0).flatten(1).argmax(1)
    y, x = (points // n).float(), (points % n).float()
    rows, columns = torch.arange(n, device=device)[:, None], torch.arange(n, device=device)
    mask, start = torch.zeros_like(found[:1, :1]), 0
    for number, width in zip(lines, widths, strict=True):
        for k in range(start, start + number - 1):
            dx, dy = x[k + 1] - x[k], y[k + 1] - y[k]
            along = ((columns - x[k]) * dx + (rows - y[k]) * dy) / (dx * dx + dy * dy).clamp(min=1e-6)
            along = along.clamp(0, 1)
            distance = (columns - x[k] - along * dx).square() + (rows - y[k] - along * dy).square()
            mask = mask | (distance <= (extent * width).clamp(min=0.75).square())
        start += number
    return _enlarge(mask.expand(n, n)[None, None].float(), gt.shape) & found.any()


def exact(gt: Tensor, image: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the ground truth itself, so that the network learns to preserve a perfect mask."""
    return binarize(gt)


Source = Callable[[Tensor, Tensor, np.random.Generator], Tensor]
"""Simulates a mask, (H, W) bool, from ground truth, (H, W) uint8, image, (3, H, W) uint8 RGB, and random generator.

A mask may be empty, and is if the ground truth is.
"""

MASK_SOURCES: dict[Source, float] = {
    sam_like: 0.32,
    grabcut: 0.24,
    leak_background: 0.22,
    drop_parts: 0.05,
    exact: 0.12,
    box_or_hull: 0.03,
    scribble: 0.02,
}
"""Sources of simulated masks and their probabilities."""

RELIABLE_SOURCES: dict[Source, float] = {sam_like: 0.85, exact: 0.15}
"""Sources for samples in which only the mask indicates the target: their masks are never wrong by most of it."""


def simulate_mask(
    gt: Tensor, image: Tensor, rng: np.random.Generator, sources: Mapping[Source, float] = MASK_SOURCES
) -> Tensor:
    """Simulate the coarse mask of a target.

    Args:
        gt: (H, W) uint8 0..255, the ground truth.
        image: (3, H, W) uint8 RGB on the same device; the sources that follow colors use it.
        rng: Random generator; the same state gives the same mask.
        sources: Sources and their probabilities.

    Returns:
        (H, W) uint8, 0 or 255. If the source finds nothing, the binarized ground truth: the mask is empty only if the
        ground truth is.
    """
    source = rng.choice(list(sources), p=list(sources.values()))
    mask, found = source(gt, image, rng), binarize(gt)
    mask = torch.where(mask.any(), mask, found) & found.any()
    return mask.to(torch.uint8) * 255
