"""Change prompts step by step, to measure how much a network depends on exact ones.

The exact prompts are the tight box of the ground truth, and a coarse mask. Each change has an amount, so that accuracy
can be drawn over it; all random choices depend on a seed and the image's name only.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import cv2
import numpy as np
import torch

from IS_Net.masks import binarize
from IS_Net.preprocess import MASK_CHANNEL, Box, box_from_mask
from IS_Net.synthesis.simulate_masks import MASK_SOURCES, exact
from IS_Net.training_prompts import jitter_boxes

AMOUNTS = (0.05, 0.1, 0.2)
"""How much prompts are changed: shares of the box's width and height, or of the mask's area."""

BOX, MASK, BOTH = "box alone", "mask", "mask + box"
"""The prompts; of a network with a box channel, ``mask`` has the tight box beside it."""

_BOX_CHANGES = ("loose", "tight", "shifted")
_MASK_CHANGES = ("dilated", "eroded", "shifted", "neighbor")
_SOURCES = {source.__name__.replace("_", " "): source for source in MASK_SOURCES if source is not exact}


class Change(NamedTuple):
    """How a prompt differs from the exact one."""

    prompt: str
    """``BOX``, ``MASK`` or ``BOTH``; what is changed is the box, the mask, or the box beside an exact mask."""
    kind: str = ""
    """Empty for the exact prompt. Boxes: ``loose``, ``tight`` or ``shifted``. Masks: ``dilated``, ``eroded``,
    ``shifted``, ``neighbor``, or the name of a source of :data:`IS_Net.synthesis.simulate_masks.MASK_SOURCES`."""
    amount: float = 0.0
    """From :data:`AMOUNTS`; 0 where there are no amounts."""

    @property
    def reference(self) -> Change:
        """The exact prompt that this one is compared with."""
        return Change(MASK if self.prompt == BOTH else self.prompt)

    @property
    def name(self) -> str:
        """For tables: for example ``loose 10 %``; ``exact`` for the exact prompt."""
        return f"{self.kind} {self.amount:.0%}".replace("%", " %") if self.amount else self.kind or "exact"


def list_changes(in_ch: int) -> list[Change]:
    """Return all changes that make a difference to a network, the exact prompts first.

    Args:
        in_ch: Number of its input channels: 4 = image + mask, which gets the filled box in place of a mask, or
            5 = image + mask + box.
    """
    boxes = [(kind, amount) for kind in _BOX_CHANGES for amount in AMOUNTS]
    masks = [(kind, amount) for kind in _MASK_CHANGES for amount in AMOUNTS] + [(kind, 0.0) for kind in _SOURCES]
    found = [Change(BOX), *(Change(BOX, *change) for change in boxes)]
    found += [Change(MASK), *(Change(MASK, *change) for change in masks)]
    return found + [Change(BOTH, *change) for change in boxes if in_ch > MASK_CHANNEL + 1]


def change_prompt(
    change: Change, name: str, image: np.ndarray, gt: np.ndarray, mask: np.ndarray | None, seed: int
) -> tuple[np.ndarray | None, Box | None]:
    """Return the prompt of an image, changed.

    Args:
        change: The change.
        name: The image's name, from which random choices are made, together with the seed.
        image: (H, W, 3) uint8 RGB.
        gt: (H, W) uint8, the ground truth, which gives the tight box.
        mask: (H, W) uint8, the exact coarse mask; only changes of ``BOX`` do without it.
        seed: Seed of the random choices. They are the same for all amounts of a change.

    Returns:
        The mask, (H, W) uint8 0 or 255, or None; and the box, xyxy in pixels, or None if the ground truth is empty.
    """
    rng = np.random.default_rng((seed, zlib.crc32(name.encode("utf-8", "backslashreplace"))))
    box = box_from_mask(gt)
    if change.prompt != MASK:
        changed = None if box is None else _change_box(box, change, gt.shape, rng)
        return (None if change.prompt == BOX else mask), changed
    if not change.kind:
        return mask, box
    if change.kind in _SOURCES:
        planes = torch.from_numpy(np.ascontiguousarray(gt)), torch.from_numpy(image.transpose(2, 0, 1).copy())
        found = _SOURCES[change.kind](*planes, rng).numpy()
    else:
        found = change_mask(binarize(mask), change.kind, change.amount, rng)
    return found.astype(np.uint8) * np.uint8(255), box


def _change_box(box: Box, change: Change, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Move the sides of a box by shares of its width and height, and clip it to the image."""
    signs = {"": (0, 0, 0, 0), "loose": (-1, -1, 1, 1), "tight": (1, 1, -1, -1)}
    directions = np.array(signs.get(change.kind) or (*_direction(rng),) * 2, np.float32)
    moved = jitter_boxes(torch.tensor([box]), torch.from_numpy(change.amount * directions)[None], size)
    return tuple(moved[0].tolist())


def _direction(rng: np.random.Generator) -> tuple[int, int]:
    """Return one of the four diagonal directions."""
    x, y = (2 * rng.integers(2, size=2) - 1).tolist()
    return x, y


def change_mask(mask: np.ndarray, kind: str, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Change a mask by an amount.

    ``dilated`` adds the pixels nearest to the mask, and ``eroded`` removes those nearest to what is around it, as many
    as the amount says, as a share of its area. ``shifted`` moves it by that share of its width and height. ``neighbor``
    adds a part of a thing like it that stands beside it: pixels of a copy, those nearest to the mask.

    Args:
        mask: (H, W) bool.
        kind: One of the four.
        amount: In [0, 1).
        rng: Chooses the direction of a shift.

    Returns:
        (H, W) bool; an empty mask stays empty.
    """
    bounds = box_from_mask(mask)
    if bounds is None:
        return mask.copy()
    width, height = bounds[2] - bounds[0] + 1, bounds[3] - bounds[1] + 1
    count = round(amount * np.count_nonzero(mask))
    if kind == "shifted":
        x, y = _direction(rng)
        return _moved(mask, x * round(amount * width), y * round(amount * height))
    if kind == "eroded":
        return mask & ~_nearest(~mask, mask, count)
    if kind == "dilated":
        return mask | _nearest(mask, ~mask, count)
    beside = [_moved(mask, *by) & ~mask for by in ((width, 0), (-width, 0), (0, height), (0, -height))]
    return mask | _nearest(mask, max(beside, key=np.count_nonzero), count)


def _moved(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """Return a mask moved by whole pixels; what leaves the image is lost."""
    found = np.zeros_like(mask)
    height, width = mask.shape
    if abs(x) < width and abs(y) < height:
        target = np.s_[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
        source = np.s_[max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)]
        found[target] = mask[source]
    return found


def _nearest(mask: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Return the candidates that are nearest to a mask, at most ``count``; all are (H, W) bool.

    Of candidates at the same distance, those in the first rows are taken.
    """
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    places = np.flatnonzero(candidates)
    found = np.zeros_like(mask)
    found.flat[places[np.argsort(distance.flat[places], kind="stable")[:count]]] = True
    return found
