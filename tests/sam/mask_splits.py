"""Small splits on disk, and a predictor whose masks are known, for the tests of mask runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from IS_Net.images import write_image, write_mask
from sam.prompts import Prompt


class FilledBox:
    """A predictor whose masks are known: the filled box, or a dot at each point with label 1."""

    name, checkpoint, selects, box_only, images_per_batch = "vit_l", "0" * 64, True, False, 1

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.batches: list[int] = []
        self.requests: list[tuple[int, str | None]] = []

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def encode(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.batches.append(len(images))
        return list(images)

    def set_encoding(self, encoding: np.ndarray) -> None:
        self.images.append(encoding)

    def predict_prompts(self, prompts: Sequence[Prompt], select: str = "score") -> Iterator[tuple[np.ndarray, float]]:
        self.requests.append((len(prompts), select))
        for prompt in prompts:
            assert not prompt.empty
            mask = np.zeros(self.images[-1].shape[:2], bool)
            if prompt.box:
                x0, y0, x1, y1 = map(int, prompt.box)
                mask[y0 : y1 + 1, x0 : x1 + 1] = True
            for (x, y), label in zip(prompt.points or (), prompt.labels or (), strict=True):
                mask[int(y), int(x)] = label
            yield mask, 0.25


def make_split(
    folder: Path, boxes: dict[str, tuple[int, int, int, int] | None], size: tuple[int, int] = (40, 60)
) -> Path:
    """Write a split whose ground truths are filled boxes; each has a hole, so that it differs from FilledBox's mask."""
    rng = np.random.default_rng(0)
    for name, box in boxes.items():
        write_image(folder / "im" / f"{name}.png", rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        gt = np.zeros(size, np.uint8)
        if box:
            x0, y0, x1, y1 = box
            gt[y0 : y1 + 1, x0 : x1 + 1] = 255
            gt[(y0 + y1) // 2, (x0 + x1) // 2] = 0
        write_mask(folder / "gt" / f"{name}.png", gt)
    return folder


def filled(box: tuple[int, int, int, int] | None, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    """Return the mask of a filled box, uint8 0/255; an empty mask if the box is None."""
    mask = np.zeros(size, np.uint8)
    if box:
        mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    return mask


BOXES = {"a": (5, 6, 30, 20), "b": (0, 0, 59, 39), "c": (10, 10, 20, 39)}


def files(folder: Path) -> set[str]:
    """Return the images in a folder and its subfolders, relative to the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".png", ".jpg")}


def samples(*names: str) -> set[str]:
    """Return the files of the samples of an enriched split."""
    return {f"{kind}/{name}.png" for name in names for kind in ("im", "gt", "mask")}


ENRICHED = samples("one_comp_0", "two_comp_0", "two_comp_1", "two_comp_2")


def leftovers(folder: Path) -> list[Path]:
    """Return the incomplete files in a folder and its subfolders."""
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]
