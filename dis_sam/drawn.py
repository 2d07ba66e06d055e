"""A picture that needs no file: commands test themselves with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def draw_picture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the picture of the self test: a star with round points on a colored ground.

    Returns:
        The image, (480, 640, 3) uint8 RGB; the ground truth, (480, 640) bool; a coarse mask of it, a disc, (480, 640)
        bool.
    """
    import numpy as np

    height, width = 480, 640
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance, angle = np.hypot(y - 240, x - 330), np.arctan2(y - 240, x - 330)
    gt = distance < 150 * (1 + 0.2 * np.cos(5 * angle))
    light = 1 - 0.35 * distance / 180
    star = np.stack((235 * light, 150 * light, 60 * light), axis=-1)
    ground = np.stack((70 + 60 * y / height, 110 + 50 * y / height, 90 + 70 * x / width), axis=-1)
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    image = np.where(gt[..., None], star, ground) + noise
    return np.clip(image, 0, 255).astype(np.uint8), gt, distance < 160
