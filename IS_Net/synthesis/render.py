"""Make the scenes of copy-paste augmentation from their parameters.

A batch of scenes is made by operations on whole planes, the same on CPU and GPU: first the photographs, then the first
object of each scene, then the second ones, and so on. Nothing is read back from a GPU, which therefore never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from IS_Net.preprocess import Size, Window
from IS_Net.synthesis.copy_paste import LEVELS, SAME_COLORS, Finish, Object, Paste, Photo, Scene, Shadow, Strokes
from IS_Net.synthesis.filters import Affine, enlarge, gaussian_blur, pixel_noise, pyramid, upload, warp, wide_blur
from IS_Net.synthesis.foreground import REACH, premultiplied_foreground
from IS_Net.synthesis.jpeg import compress
from IS_Net.synthesis.regions import find_region

Load = Callable[[Photo, Window], Tensor]
"""Returns a window of a photograph, (1, 3, h, w) uint8 RGB; of the training set (1, 4, h, w), with ground truth."""

_ALIGNED = 64  # windows of sources begin at multiples of this, so that all pyramids have the same pixels
_JOINT = 8  # objects that a GPU cuts out at a time


def joint(device: torch.device, number: int) -> int:
    """Return how many of a number of things to compute at a time: a CPU saves pixels, a GPU saves calls."""
    return 1 if device.type == "cpu" else number


class _Layer(NamedTuple):
    """An object to be resampled: RGB times alpha, 0..255, and alpha."""

    levels: list[Tensor]
    """(1, 4, h, w) float32 each, of half the size of the one before."""
    left: int
    """First column in the photograph; a multiple of :data:`_ALIGNED`."""
    top: int

    def warp(self, affine: Affine, level: int, window: Window, factor: int = 1) -> Tensor:
        """Resample it into a window of a scene that is smaller by ``factor``."""
        affine = affine.moved(self.left, self.top).scaled(0.5**level, 1 / factor)
        return warp(self.levels[level], affine, window)


def render(scenes: Sequence[Scene], load: Load, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make the images of scenes and their ground truths.

    A scene does not depend on the others, but for rounding on a GPU.

    Args:
        scenes: The scenes, of one size.
        load: Loads the photographs.
        device: Where the photographs are.

    Returns:
        (B, 3, H, W) uint8 RGB, and (B, 1, H, W) uint8 0..255: the targets. Empty where these are hidden or outside.
    """
    # with the number of pastes falling, those of the same number in their scenes are at the beginning of the batch
    order = sorted(range(len(scenes)), key=lambda index: -len(scenes[index].pastes))
    ordered = [scenes[index] for index in order]
    canvas = torch.cat([_show_photo(scene, load) for scene in ordered])
    for index, scene in enumerate(ordered):
        if scene.region is not None:
            canvas[index, 3:] = find_region(canvas[index : index + 1, :3], scene.region)[0]
    _paste_all(canvas, ordered, load, device)
    image = _finish(canvas[:, :3], [scene.finish for scene in ordered])
    target = (canvas[:, 3:] * 255).round_().to(torch.uint8)
    place = [order.index(index) for index in range(len(scenes))]
    return torch.stack([image[index] for index in place]), torch.stack([target[index] for index in place])


def _show_photo(scene: Scene, load: Load) -> Tensor:
    """Return what a scene shows before objects are pasted: (1, 4, H, W) float32, RGB 0..255 and the target, 0..1."""
    planes = load(scene.photo, scene.part)
    shown = F.interpolate(planes[:, :3].float(), size=scene.size, mode="bilinear", align_corners=False)
    target = torch.zeros_like(shown[:, :1])
    if scene.keeps_target:
        alpha = planes[:, 3:].float().div_(255)
        target = F.interpolate(alpha, size=scene.size, mode="bilinear", align_corners=False)
    if scene.mirrored:
        shown = shown.flip(-1)
    if scene.tint != SAME_COLORS:
        gain, shift = upload(np.array(scene.tint, np.float32), shown.device)[:, None, :, None, None]
        shown = torch.addcmul(shift, shown, gain).clamp_(0, 255)
    if scene.focus:
        shown = wide_blur(shown, scene.focus)
    return torch.cat((shown, target), dim=1)


def _cut_out(
    objects: Sequence[tuple[Object | Strokes, int]], size: Size, load: Load, device: torch.device
) -> list[_Layer]:
    """Cut objects out of their photographs; each comes with the number of levels of its pyramid."""
    if isinstance(objects[0][0], Strokes):
        layers = []
        for strokes, levels in objects:
            alpha = upload(strokes.alpha, device)[None, None].float()
            layers.append(_Layer(pyramid(torch.cat((alpha, alpha, alpha, alpha / 255), dim=1), levels), 0, 0))
        return layers
    # one needs only the surroundings of its object; several have the same size only as whole photographs
    window = _surroundings(objects[0][0].box, size) if len(objects) == 1 else Window(0, 0, *size)
    planes = torch.cat([load(Photo(found.index), window) for found, _ in objects]).float()
    cut = pyramid(premultiplied_foreground(planes[:, :3], planes[:, 3:] / 255), max(levels for _, levels in objects))
    return [_Layer([level[i : i + 1] for level in cut], window.left, window.top) for i in range(len(objects))]


def _surroundings(box: tuple[int, int, int, int], size: Size) -> Window:
    """Return the window of a photograph that the colors of an object depend on, with aligned borders."""
    height, width = size
    left, top = (max(first - REACH, 0) // _ALIGNED * _ALIGNED for first in box[:2])
    right, bottom = (-(-(last + 1 + REACH) // _ALIGNED) * _ALIGNED for last in box[2:])
    return Window(top, left, min(bottom, height) - top, min(right, width) - left)


def _all_layers(scenes: Sequence[Scene], load: Load, device: torch.device) -> list[list[_Layer | None]]:
    """Cut out the objects of each scene that it shows."""
    layers: list[list[_Layer | None]] = [[None] * len(scene.layers) for scene in scenes]
    found: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}
    for index, scene in enumerate(scenes):
        for number, layer in enumerate(scene.layers):
            levels = [_shadow_level(paste) for paste in scene.pastes if paste.layer == number]
            if levels:
                found[isinstance(layer, Strokes)].append((index, number, max(levels)))
    step = joint(device, _JOINT)
    for same in found.values():
        for start in range(0, len(same), step):
            chunk = same[start : start + step]
            objects = [(scenes[index].layers[number], levels) for index, number, levels in chunk]
            for (index, number, _), layer in zip(chunk, _cut_out(objects, scenes[0].size, load, device), strict=True):
                layers[index][number] = layer
    return layers


def _shadow_factor(shadow: Shadow) -> int:
    """Return by how much the resolution of a shadow can be reduced."""
    return int(2 ** np.clip(np.floor(np.log2(shadow.sigma / 1.5)), 0, 4))


def _shadow_level(paste: Paste) -> int:
    """Return the level of the pyramid that the shadow is resampled from; without shadow, that of the object."""
    more = int(np.log2(_shadow_factor(paste.shadow))) if paste.shadow else 0
    return min(paste.level + more, LEVELS)


def _paste_all(canvas: Tensor, scenes: Sequence[Scene], load: Load, device: torch.device) -> None:
    """Paste the objects of all scenes, first the first one of each, then the second ones, and so on.

    Args:
        canvas: (B, 4, H, W) float32, RGB 0..255 and the target, 0..1; changed in place.
        scenes: (B,) with the number of pastes falling.
        load: Loads the photographs.
        device: Where the canvas is.
    """
    steps = [[scene.pastes[k] for scene in scenes if len(scene.pastes) > k] for k in range(len(scenes[0].pastes))]
    if not steps:
        return
    layers = _all_layers(scenes, load, device)
    needs_photos = any(p.texture is not None and p.texture.photo is None for pastes in steps for p in pastes)
    photos = canvas[:, :3].clone() if needs_photos else canvas
    numbers = [[*p.tint.gain, *p.tint.shift, p.harmony, p.is_target, *p.bounds] for pastes in steps for p in pastes]
    values = upload(np.array(numbers, np.float32), device)[:, :, None, None]
    start = 0
    for pastes in steps:
        own = [layers[index][paste.layer] for index, paste in enumerate(pastes)]
        end = start + len(pastes)
        _paste_step(canvas[: len(pastes)], photos, pastes, own, values[start:end], load)
        start = end


def _paste_step(
    canvas: Tensor, photos: Tensor, pastes: Sequence[Paste], layers: Sequence[_Layer], values: Tensor, load: Load
) -> None:
    """Paste one object onto each scene.

    Args:
        canvas: (B, 4, H, W) float32; changed in place.
        photos: (B, 3, H, W) float32, the scenes without objects.
        pastes: (B,) what to paste.
        layers: (B,) the objects.
        values: (B, 12, 1, 1) float32: gain, shift, harmony, whether it is a target, bounds.
        load: Loads the photographs that textures are taken from.
    """
    lefts, tops, rights, bottoms = zip(*(paste.bounds for paste in pastes), strict=True)
    top, left = min(tops) // 2 * 2, min(lefts) // 2 * 2  # even, for _harmonize
    window = Window(top, left, max(bottoms) - top, max(rights) - left)
    place = _crop(canvas, window)
    found = torch.cat([lay.warp(p.affine, p.level, window) for p, lay in zip(pastes, layers, strict=True)])
    found = gaussian_blur(found, [paste.blur for paste in pastes])
    alpha = found[:, 3:]
    color = found[:, :3] / alpha.clamp(min=1e-3)
    for index, paste in enumerate(pastes):
        if paste.texture is not None:
            color[index] = _stretch_texture(paste, photos[index : index + 1], window, load)[0]
    color = torch.addcmul(values[:, 3:6], color, values[:, :3]).clamp_(0, 255)
    if any(paste.harmony for paste in pastes):
        color = _harmonize(color, alpha, place[:, :3], values[:, 6:7], values[:, 8:], window)
    for index, (paste, layer) in enumerate(zip(pastes, layers, strict=True)):
        if paste.shadow is not None:
            _draw_shadow(canvas[index : index + 1, :3], paste, paste.shadow, layer)
    target = values[:, 7:8].expand(-1, -1, *window.size)
    place.lerp_(torch.cat((color, target), dim=1), alpha)


def _crop(planes: Tensor, window: Window) -> Tensor:
    return planes[..., window.top : window.top + window.height, window.left : window.left + window.width]


def _stretch_texture(paste: Paste, photo: Tensor, window: Window, load: Load) -> Tensor:
    """Stretch a part of a photograph over an object: (1, 3, h, w) float32 of the window."""
    (photo_of, part), (left, top, right, bottom) = paste.texture, paste.bounds
    source = _crop(photo, part) if photo_of is None else load(photo_of, part)[:, :3].float()
    x, y = part.width / (right - left), part.height / (bottom - top)
    return warp(source, Affine(x, 0.0, -left * x, 0.0, y, -top * y), window, "border")


def _harmonize(color: Tensor, alpha: Tensor, scene: Tensor, strength: Tensor, bounds: Tensor, window: Window) -> Tensor:
    """Move mean and contrast of objects' colors towards those of what they cover; strength 1 adopts them.

    Args:
        color: (B, 3, h, w) float32 0..255, of the window.
        alpha: (B, 1, h, w) float32.
        scene: (B, 3, h, w) float32, what is there so far.
        strength: (B, 1, 1, 1) float32, 0..1.
        bounds: (B, 4, 1, 1) float32, of the objects in the scene.
        window: Place of the window in the scene. It begins at even rows and columns, since every second one is used.
    """
    x = torch.arange(window.left, window.left + window.width, 2, device=color.device)
    y = torch.arange(window.top, window.top + window.height, 2, device=color.device)[:, None]
    left, top, right, bottom = bounds.split(1, dim=1)
    inside = ((x >= left) & (x < right) & (y >= top) & (y < bottom)).float()
    solid = (alpha[..., ::2, ::2] > 0.5).float()
    own_mean, own_std = _weighted_statistics(color[..., ::2, ::2], solid)
    mean, std = _weighted_statistics(scene[..., ::2, ::2], inside)
    ratio = 1 + strength * (((std + 8) / (own_std + 8)).clamp(0.4, 1.6) - 1)
    shift = torch.lerp(own_mean, mean, strength) - own_mean * ratio
    found = solid.sum((2, 3), keepdim=True) > 0
    return torch.where(found, torch.addcmul(shift, color, ratio).clamp_(0, 255), color)


def _weighted_statistics(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (B, C, 1, 1) each."""
    weights = (weights / weights.sum((2, 3), keepdim=True).clamp(min=1)).flatten(2).mT
    values = values.flatten(2)
    mean, mean_square = (values @ weights)[..., None], (values.square() @ weights)[..., None]
    return mean, torch.addcmul(mean_square, mean, mean, value=-1).clamp_(min=0).sqrt_()


def _draw_shadow(image: Tensor, paste: Paste, shadow: Shadow, layer: _Layer) -> None:
    """Darken an image, (1, 3, H, W) float32, in place; the shadow is computed at a lower resolution."""
    factor, reach = _shadow_factor(shadow), 3 * shadow.sigma
    height, width = image.shape[-2:]
    left, right = (
        int(np.clip(end + min(shadow.right, 0) - reach if first else end + max(shadow.right, 0) + reach, 0, width))
        for end, first in ((paste.bounds[0], True), (paste.bounds[2], False))
    )
    top, bottom = max(int(paste.bounds[1] - reach), 0), min(int(paste.bounds[3] + shadow.down + reach) + 1, height)
    left, top = left // factor * factor, top // factor * factor
    place = image[..., top:bottom, left:right]
    small = Window(top // factor, left // factor, -(-(bottom - top) // factor), -(-(right - left) // factor))
    affine = paste.affine
    affine = affine._replace(
        c=affine.c - affine.a * shadow.right - affine.b * shadow.down,
        f=affine.f - affine.d * shadow.right - affine.e * shadow.down,
    )
    alpha = gaussian_blur(layer.warp(affine, _shadow_level(paste), small, factor)[:, 3:], [shadow.sigma / factor])
    place.mul_(1 - shadow.darkness * enlarge(alpha, factor, place.shape[-2:]))


def _finish(image: Tensor, finishes: Sequence[Finish]) -> Tensor:
    """Apply lens blur, exposure, sensor noise and JPEG to scenes, (B, 3, H, W) float32; return uint8."""
    image = gaussian_blur(image, [finish.blur for finish in finishes])
    if any(finish.gamma != 1 for finish in finishes):
        gamma = upload(np.array([finish.gamma for finish in finishes], np.float32), image.device)
        image = (image.clamp(0, 255) / 255).pow_(gamma[:, None, None, None]).mul_(255)
    for index, finish in enumerate(finishes):
        if finish.noise:
            image[index].add_(pixel_noise(finish.noise_offset, image.shape[1:], image.device), alpha=finish.noise)
    image = image.round().clamp_(0, 255)
    for index, finish in enumerate(finishes):
        if finish.quality is not None:
            image[index] = compress(image[index : index + 1], finish.quality)[0]
    return image.to(torch.uint8)
