"""Vary the prompts of a training batch, and cut windows out of it, on the device that the batch is on.

The loader gives samples whose prompt is a coarse mask and the tight box. In use, a network meets other prompts too:
loose boxes, a box without a mask, its own alpha matte as the mask (a second pass), and windows of a photograph at
native scale with the alpha matte of a whole pass. :func:`prepare_batch` makes such samples out of the loader's.

All random numbers are drawn on the CPU from the seed and the number of the batch, so that a resumed run gets what it
would have got, and that each process of a run draws those of the whole batch and takes what concerns its samples.
Nothing here makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from IS_Net import distributed
from IS_Net.hypar import Settings
from IS_Net.preprocess import BOX_CHANNEL, MASK_CHANNEL, Size
from IS_Net.tensors import alpha_to_uint8, resize_alpha, resize_batch

_SALIENT = 0.25  # share of the frame from which a box may be replaced by the whole frame
_CELL = 32  # side of the cells among which the position of a window is chosen, in pixels
_OFF_CENTER = 0.375  # how far from a window's center the edge is that it is placed at, as a share of its side


def prepare_batch(
    planes: Tensor,
    in_ch: int,
    number: int,
    settings: Settings,
    predict_alpha: Callable[[Tensor], Tensor],
    total: int | None = None,
) -> Tensor:
    """Vary the prompts of a batch as the settings say; see ``box_jitter`` and the keys after it in :mod:`IS_Net.hypar`.

    The box of a sample is the bounds of its box channel; for a 4-channel network, those of its ground truth.

    Args:
        planes: (B, in_ch + 1, H, W) uint8, the input and the ground truth as the loader gives them. With
            ``window_share``, at ``cache_size``.
        in_ch: Number of input channels of the network, 4 or 5.
        number: Number of the batch in the run.
        settings: The settings of the run.
        predict_alpha: Runs the network on (n, in_ch, h, w) uint8 and returns alpha mattes, (n, 1, h, w) float32.
        total: Samples in the batch of all processes, of which ``planes`` is this one's :func:`distributed.share`; None
            means that there is only this one.

    Returns:
        (B, in_ch + 1, h, w) uint8: with ``window_share`` at ``input_size``, else at the size of ``planes``. The batch
        that was given is not modified.
    """
    rng = np.random.default_rng((settings.seed, number))
    total = len(planes) if total is None else total
    places = {position: index for index, position in enumerate(distributed.share(total))}

    def here(positions: Sequence[int]) -> list[int]:
        return [places[position] for position in positions if position in places]

    order = rng.permutation(total).tolist()
    window_end = _count(settings.window_share, total, rng)
    own_end = min(window_end + _count(settings.own_mask, total, rng), total)
    windows, own = here(order[:window_end]), here(order[window_end:own_end])
    without = rng.permutation(total)[: _count(settings.drop_mask, total, rng)].tolist()
    framed = here(without[: _count(settings.whole_frame, len(without), rng)])
    dropped = here(without)

    boxes = find_bounds(planes[:, BOX_CHANNEL if in_ch > BOX_CHANNEL else -1] > 128)
    if settings.box_jitter:
        shifts = rng.uniform(-settings.box_jitter, settings.box_jitter, (total, 4)).astype(np.float32)
        boxes = jitter_boxes(boxes, torch.from_numpy(shifts[list(places)]), planes.shape[-2:])
    for index in framed:
        boxes[index] = _whole_frame(boxes[index], planes.shape[-2:])

    size = settings.input_size if settings.window_share else tuple(planes.shape[-2:])
    batch = resize_batch(planes, size)
    batch = batch.clone() if batch is planes else batch
    _write_prompts(batch, boxes, dropped, in_ch, planes.shape[-2:])
    if windows or own:
        alpha = predict_alpha(batch[_index(windows + own, planes)][:, :in_ch])
        if own:
            batch[_index(own, planes), MASK_CHANNEL] = alpha_to_uint8(alpha[len(windows) :])[:, 0]
        for index, matte in zip(windows, alpha, strict=False):
            own_rng = np.random.default_rng((settings.seed, number, distributed.share(total)[index]))
            top, left = place_window(planes[index, -1], size, own_rng)
            batch[index] = cut_window(planes[index], matte[None], boxes[index], top, left, size, in_ch)
    return batch


def _count(share: float, total: int, rng: np.random.Generator) -> int:
    """Return a whole number whose mean is a share of a total, as close to it as possible."""
    return int(share * total + rng.random())


def _index(numbers: Sequence[int], planes: Tensor) -> Tensor:
    """Return numbers as an index on the device of the planes; indexing with a list would wait for the device."""
    return torch.tensor(numbers).to(planes.device, non_blocking=True)


def _write_prompts(batch: Tensor, boxes: Tensor, dropped: Sequence[int], in_ch: int, frame: Size) -> None:
    """Write the box channel, and the mask channel of the samples whose mask is dropped."""
    filled = fill_boxes(boxes, frame, batch.shape[-2:])
    if in_ch > BOX_CHANNEL:
        batch[:, BOX_CHANNEL] = filled
    for index in dropped:
        batch[index, MASK_CHANNEL] = 0 if in_ch > BOX_CHANNEL else filled[index]


# --- boxes ----------------------------------------------------------------------------------------------------------


def find_bounds(found: Tensor) -> Tensor:
    """Return the tight boxes around masks, as :func:`IS_Net.preprocess.box_from_mask` does for one mask.

    Args:
        found: (B, H, W) bool.

    Returns:
        (B, 4) int64 xyxy in pixels; (0, 0, -1, -1) for an empty mask.
    """
    columns, rows = found.any(1), found.any(2)
    first, last = [], []
    for occupied in (columns, rows):
        occupied = occupied.to(torch.uint8)
        filled = occupied.amax(1).long()
        first.append(occupied.argmax(1) * filled)
        last.append((occupied.shape[1] - occupied.flip(1).argmax(1)) * filled - 1)
    return torch.stack((*first, *last), dim=1)


def jitter_boxes(boxes: Tensor, shifts: Tensor, frame: Size) -> Tensor:
    """Move each side of boxes, to whole pixels, and clip them to the frame.

    Args:
        boxes: (B, 4) int64 xyxy, from :func:`find_bounds`.
        shifts: (B, 4) float32, of x0, y0, x1 and y1: shares of the box's width or height, at most a quarter.
        frame: (height, width) of the image.

    Returns:
        (B, 4) int64. A box keeps at least one pixel; an empty one stays empty.
    """
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    moved = boxes + (sides * shifts.to(boxes.device, non_blocking=True)).round().long()
    for column, side in enumerate((frame[1], frame[0])):
        moved[:, column].clamp_(min=0)
        moved[:, column + 2].clamp_(max=side - 1)
    return moved


def _whole_frame(box: Tensor, frame: Size) -> Tensor:
    """Return the box of the whole frame if a box, (4,), covers enough of it, else the box."""
    whole = torch.tensor([0, 0, frame[1] - 1, frame[0] - 1]).to(box.device, non_blocking=True)
    area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
    return torch.where(area >= _SALIENT * frame[0] * frame[1], whole, box)


def fill_boxes(boxes: Tensor, frame: Size, size: Size) -> Tensor:
    """Draw the box channels of a batch, as :func:`IS_Net.preprocess.fill_box` draws one.

    Args:
        boxes: (B, 4) int64 xyxy in pixels of the image, inside it; one from :func:`find_bounds` may be empty.
        frame: (height, width) of the image.
        size: (height, width) of the channels.

    Returns:
        (B, height, width) uint8, 0 or 255.
    """
    inside = []
    for first, last, side, pixels in zip(boxes[:, :2].T, boxes[:, 2:].T, reversed(frame), reversed(size), strict=True):
        start, end = first * pixels // side, -((-(last + 1) * pixels) // side)  # the end is rounded up
        at = torch.arange(pixels, device=boxes.device)
        inside.append((at >= start[:, None]) & (at < end[:, None]))
    columns, rows = inside
    return (rows[:, :, None] & columns[:, None, :]).to(torch.uint8) * 255


def outside_boxes(boxes: Tensor, margin: float, size: Size) -> Tensor:
    """Return what lies outside boxes that are grown on each side.

    Args:
        boxes: (B, 4) int64 xyxy, from :func:`find_bounds`.
        margin: How much the boxes grow on each side, as a share of their width or height.
        size: (height, width) of the image.

    Returns:
        (B, 1, height, width) bool.
    """
    directions = torch.tensor([-1.0, -1.0, 1.0, 1.0]).expand(len(boxes), 4)
    return fill_boxes(jitter_boxes(boxes, margin * directions, size), size, size)[:, None] == 0


# --- windows --------------------------------------------------------------------------------------------------------


def place_window(gt: Tensor, size: Size, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Choose a window that shows a random part of the target's edges, not always in its center.

    Args:
        gt: (H, W) uint8, the ground truth.
        size: (height, width) of the window, at most (H, W).
        rng: Random generator of the position.

    Returns:
        The first row and column of the window: int64 of shape (), on the device of the ground truth.
    """
    target = (gt > 128).float()[None]
    is_edge = F.max_pool2d(target, _CELL, ceil_mode=True) + F.max_pool2d(-target, _CELL, ceil_mode=True) > 0
    noise = torch.from_numpy(rng.random(is_edge.shape[1:], dtype=np.float32)).to(gt.device, non_blocking=True)
    best = (is_edge[0].float() + noise).flatten().argmax()  # an edge if there is one
    cells = best // noise.shape[1], best % noise.shape[1]
    first = []
    for cell, side, length in zip(cells, size, gt.shape, strict=True):
        shift = round(rng.uniform(-_OFF_CENTER, _OFF_CENTER) * side) + _CELL // 2 - side // 2
        first.append((cell * _CELL + shift).clamp(0, length - side))
    return first[0], first[1]


def cut_window(
    planes: Tensor, alpha: Tensor, box: Tensor, top: Tensor | int, left: Tensor | int, size: Size, in_ch: int
) -> Tensor:
    """Cut a window out of a sample, as :func:`IS_Net.preprocess.make_window_planes` does in prediction.

    Args:
        planes: (in_ch + 1, H, W) uint8, the sample with its ground truth.
        alpha: (1, 1, h, w) float32, the alpha matte of a whole pass; it becomes the coarse mask.
        box: (4,) int64 xyxy, the box of the prompt.
        top: First row of the window.
        left: First column of the window.
        size: (height, width) of the window.
        in_ch: Number of input channels, 4 or 5.

    Returns:
        (in_ch + 1, height, width) uint8.
    """
    rows, columns = (
        first + torch.arange(side, device=planes.device) for first, side in ((top, size[0]), (left, size[1]))
    )
    whole = alpha_to_uint8(resize_alpha(alpha, planes.shape[-2:]))[0, 0]
    window = planes[:, rows[:, None], columns]
    window[MASK_CHANNEL] = whole[rows[:, None], columns]
    if in_ch > BOX_CHANNEL:
        inside = ((rows >= box[1]) & (rows <= box[3]))[:, None] & (columns >= box[0]) & (columns <= box[2])
        window[BOX_CHANNEL] = inside.to(torch.uint8) * 255
    return window
