"""Make training samples: copy-paste scenes, simulated masks, or what the data set has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from IS_Net.preprocess import BOX_CHANNEL, IMAGE_CHANNELS, MASK_CHANNEL, Window
from IS_Net.synthesis.copy_paste import MIN_SIDE, Object, Photo, Scene, draw_scene
from IS_Net.synthesis.render import joint, render
from IS_Net.synthesis.simulate_masks import MASK_SOURCES, RELIABLE_SOURCES, binarize, fill_bounds, simulate_mask
from IS_Net.synthesis.sources import Sources

_MIN_TARGET_PIXELS = 100  # a copy-paste sample with fewer visible pixels of the target is not used


class Composer:
    """Makes samples on the device that holds the sources.

    Args:
        samples: The training samples, (C, H, W) uint8 of one size, with ground truth. They have ``in_ch + 1`` planes,
            or 4 if all masks are simulated.
        backgrounds: Photographs of the same size for copy-paste augmentation; None takes the training images.
        in_ch: Number of input channels of the network.
        copy_paste: Probability of copy-paste augmentation. The masks of these samples are simulated.
        simulate_mask: Probability that the coarse mask of another sample is simulated.
        device: Where the samples are made.
    """

    def __init__(
        self,
        samples: Dataset,
        backgrounds: Dataset | None,
        in_ch: int,
        copy_paste: float,
        simulate_mask: float,
        device: torch.device,
    ) -> None:
        self.in_ch, self.copy_paste, self.simulate_mask, self.device = in_ch, copy_paste, simulate_mask, device
        self.samples = Sources(samples, device)
        self.backgrounds = None if backgrounds is None else Sources(backgrounds, device)

    def make(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> list[Tensor]:
        """Make one sample for each index; it depends on the index and on the random generator at the same place only.

        Returns:
            (in_ch + 1, H, W) uint8 each: the network's input and the ground truth.
        """
        with torch.no_grad(), torch.backends.cudnn.flags(True, benchmark=False, deterministic=False, allow_tf32=False):
            # sizes change from call to call, so that a search for the fastest convolution would never end
            return self._make(indices, rngs)

    def _make(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> list[Tensor]:
        scenes = [self._draw_scene(rng) if self.copy_paste and rng.random() < self.copy_paste else None for rng in rngs]
        composed = self._compose([scene for scene in scenes if scene is not None])
        made = [None if scene is None else composed.pop(0) for scene in scenes]
        return [
            self._complete(index, rng, scene, image_and_gt)
            for index, rng, scene, image_and_gt in zip(indices, rngs, scenes, made, strict=True)
        ]

    def _draw_scene(self, rng: np.random.Generator) -> Scene:
        if self.backgrounds is None:
            background = Photo(int(rng.integers(len(self.samples))))
        else:
            background = Photo(int(rng.integers(len(self.backgrounds))), is_background=True)

        def draw() -> Object | None:
            index = int(rng.integers(len(self.samples)))
            box = self.samples.box(index)
            if box is None or min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
                return None
            return Object(index, box)

        return draw_scene(background, self.samples.size, draw, rng)

    def _load(self, photo: Photo, window: Window) -> Tensor:
        if photo.is_background:
            return self.backgrounds.planes(photo.index, window)[:, :IMAGE_CHANNELS]
        planes = self.samples.planes(photo.index, window)
        return planes if planes.shape[1] == IMAGE_CHANNELS + 1 else torch.cat((planes[:, :3], planes[:, -1:]), dim=1)

    def _compose(self, scenes: Sequence[Scene]) -> list[tuple[Tensor, Tensor]]:
        """Return image and ground truth of each scene: (3, H, W) and (H, W) uint8."""
        found, step = [], joint(self.device, max(len(scenes), 1))
        for start in range(0, len(scenes), step):
            images, gts = render(scenes[start : start + step], self._load, self.device)
            found += zip(images, gts[:, 0], strict=True)
        return found

    def _complete(
        self, index: int, rng: np.random.Generator, scene: Scene | None, made: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Add mask and box to a scene or to the data set's own sample, if the latter's own are not wanted."""
        wanted = bool(self.simulate_mask) and rng.random() < self.simulate_mask
        if made is None:
            planes = self.samples.planes(index)[0]
            return self._add_prompt(planes[:IMAGE_CHANNELS], planes[-1], rng, None) if wanted else planes
        image, gt = made
        is_visible = binarize(gt).sum() >= _MIN_TARGET_PIXELS
        if self.device.type == "cpu" and is_visible:
            return self._add_prompt(image, gt, rng, scene)
        # a GPU would have to be waited for, to know whether the data set's own sample is needed
        planes = self.samples.planes(index)[0]
        image, gt = torch.where(is_visible, image, planes[:IMAGE_CHANNELS]), torch.where(is_visible, gt, planes[-1])
        sample = self._add_prompt(image, gt, rng, scene)
        return sample if wanted or len(planes) != len(sample) else torch.where(is_visible, sample, planes)

    def _add_prompt(self, image: Tensor, gt: Tensor, rng: np.random.Generator, scene: Scene | None) -> Tensor:
        layers = [image]
        if self.in_ch > MASK_CHANNEL:
            sources = RELIABLE_SOURCES if scene is not None and scene.mask_only_target else MASK_SOURCES
            layers.append(simulate_mask(gt, image, rng, sources)[None])
        if self.in_ch > BOX_CHANNEL:
            layers.append(fill_bounds(binarize(gt))[None].to(torch.uint8) * 255)
        return torch.cat((*layers, gt[None]))
