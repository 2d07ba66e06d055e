"""Photographs, coarse masks and data sets that are drawn for the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks.published import Box, Files
from IS_Net.images import write_image, write_mask
from IS_Net.preprocess import box_from_mask


class Sample(NamedTuple):
    """A photograph of one object."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    mask: np.ndarray
    """(H, W) uint8 0 or 255, the coarse mask: the object without its hairs."""
    gt: np.ndarray
    """(H, W) uint8."""
    box: Box


def draw(height: int, width: int, seed: int = 0) -> Sample:
    """Draw a furry disk on a background of another color, with the grain of a camera."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    center_y, center_x = (side * rng.uniform(0.47, 0.53) for side in (height, width))
    radius = min(height, width) * rng.uniform(0.3, 0.36)
    angle, distance = np.arctan2(y - center_y, x - center_x), np.hypot(y - center_y, x - center_x)
    hair = 1 + 0.03 * np.sin(60 * angle) + 0.02 * np.sin(173 * angle)
    inside = np.clip((radius * hair - distance) / 4, 0, 1)
    object_color, other_color = rng.permutation(((200, 120, 60), (70, 110, 150))).astype(np.float32)
    image = inside[..., None] * object_color + (1 - inside[..., None]) * other_color
    image += cv2.GaussianBlur(rng.normal(0, 12, (height, width, 3)).astype(np.float32), (0, 0), 1)
    gt = np.rint(255 * inside).astype(np.uint8)
    mask = (distance < radius).astype(np.uint8) * np.uint8(255)
    return Sample(np.clip(image, 0, 255).astype(np.uint8), mask, gt, box_from_mask(gt))


def draw_several(height: int, width: int, number: int) -> list[Sample]:
    """Draw as many photographs; all but two of them are moved copies, because drawing a large one takes seconds."""
    drawn = [draw(height, width, seed) for seed in range(min(number, 2))]
    samples = []
    for index in range(number):
        sample = drawn[index % 2]
        shift = 2 * (index // 2)
        image, mask, gt = (np.roll(plane, shift, axis=1) for plane in sample[:3])
        samples.append(Sample(image, mask, gt, box_from_mask(gt)))
    return samples


def write_data_set(folder: Path, number: int, height: int, width: int) -> list[Files]:
    """Write photographs, coarse masks and ground truths as a data set of this project; return its files."""
    written = []
    for index, sample in enumerate(draw_several(height, width, number)):
        files = Files(
            folder / "im" / f"{index:04}.jpg", folder / "mask" / f"{index:04}.png", folder / "gt" / f"{index:04}.png"
        )
        write_image(files.image, sample.image)
        write_mask(files.mask, sample.mask)
        write_mask(files.gt, sample.gt)
        written.append(files)
    return written
