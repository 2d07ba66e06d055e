"""A model with the interface of dis_sam.pipeline.DISSAM that computes nothing, and photographs for it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from IS_Net.errors import PromptError
from IS_Net.images import write_image
from IS_Net.preprocess import check_box


@dataclass(frozen=True)
class FakeResult:
    image: np.ndarray
    alpha: np.ndarray
    coarse: np.ndarray | None = None
    score: float = math.nan

    @property
    def mask(self) -> np.ndarray:
        return self.alpha > 0.5


@dataclass
class FakeModel:
    """Fills the box, or returns the mask, with edges softened; without a prompt, fills the middle of the image."""

    seconds: float = 0.0
    """How long each object takes."""
    score: float = math.nan
    """The score of each result."""
    sam: None = None
    images: list[np.ndarray] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def segment(
        self, box: Any = None, points: Any = None, labels: Any = None, mask: Any = None, **options: Any
    ) -> FakeResult:
        self.calls.append({"box": box, "points": points, "labels": labels, "mask": mask, **options})
        time.sleep(self.seconds)
        image = self.images[-1]
        if image.max() == 0:
            raise PromptError("a black photograph shows nothing")
        height, width = image.shape[:2]
        if mask is not None:
            alpha = mask.astype(np.float32) / (1 if mask.dtype == bool else 255)
        else:
            if box is None:
                box = [width // 4, height // 4, 3 * width // 4, 3 * height // 4]
            x0, y0, x1, y1 = (round(edge) for edge in check_box(box, height, width))
            alpha = np.zeros((height, width), np.float32)
            alpha[y0 : y1 + 1, x0 : x1 + 1] = 1
        return FakeResult(image, np.clip(cv2.blur(alpha, (3, 3)), 0, 1), score=self.score)


def write_photo(path: Path, seed: int = 0, size: tuple[int, int] = (37, 53)) -> np.ndarray:
    """Write an image of random colors and return it."""
    image = np.random.default_rng(seed).integers(1, 256, (*size, 3), dtype=np.uint8)
    write_image(path, image)
    return image
