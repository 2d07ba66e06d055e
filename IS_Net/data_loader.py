"""Datasets and loaders for training and validation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from IS_Net.augment import augment
from IS_Net.cache import DISDataset
from IS_Net.images import MASK_THRESHOLD, image_size, read_mask
from IS_Net.preprocess import BOX_CHANNEL, IMAGE_CHANNELS, MASK_CHANNEL, Size, box_from_mask, fill_box
from IS_Net.synthesis.copy_paste import copy_paste
from IS_Net.synthesis.simulate_masks import MASK_SOURCES, RELIABLE_SOURCES, simulate_mask
from IS_Net.worker import prepare_worker

logger = logging.getLogger(__name__)


class TrainKey(NamedTuple):
    """Which sample, and in which epoch: together with the seed they decide its augmentation."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Synthesis:
    """What of the training samples is made up; see the keys of the same names in :mod:`IS_Net.hypar`."""

    copy_paste: float = 0.0
    """Share of the samples that are composed, their masks being simulated."""
    simulate_mask: float = 0.0
    """Share of the other samples whose coarse masks are simulated."""
    backgrounds: DISDataset | None = None
    """Photographs to compose in front of; None takes the training images."""


_LEAST_VISIBLE = 100  # pixels; a composed target with fewer is no target


class TrainDataset(Dataset):
    """The training samples of one or more data sets, augmented.

    The chances of a sample depend on seed, epoch and index alone: not on the worker that loads it, nor on where
    an earlier run was interrupted.

    Args:
        datasets: With ground truth, of equal sizes. Of ``in_ch`` channels; or of 3, where all masks are simulated.
        seed: Of the augmentation.
        flip_h: As :func:`IS_Net.augment.augment`.
        flip_v: As :func:`IS_Net.augment.augment`.
        crop_size: As :func:`IS_Net.augment.augment`.
        in_ch: Channels of the network's input; None takes the data sets'.
        synthesis: What is made up.
    """

    def __init__(
        self,
        datasets: Sequence[DISDataset],
        seed: int,
        flip_h: bool,
        flip_v: bool,
        crop_size: Size | None = None,
        in_ch: int | None = None,
        synthesis: Synthesis = Synthesis(),
    ) -> None:
        self.all = ConcatDataset(datasets)
        self.seed, self.flip_h, self.flip_v, self.crop_size = seed, flip_h, flip_v, crop_size
        self.in_ch, self.synthesis = in_ch or datasets[0].in_ch, synthesis

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, key: TrainKey) -> Tensor:
        """Return (in_ch + 1, height, width) uint8: input planes and ground truth."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[TrainKey]) -> Tensor:
        """Return (B, in_ch + 1, height, width) uint8, each sample going straight from the cache to its place."""
        batch = None
        for place, key in enumerate(keys):
            rng = np.random.default_rng((self.seed, key.epoch, key.index))
            planes = self._synthesize(self.all[key.index], rng)
            if batch is None:
                batch = torch.empty((len(keys), len(planes), *(self.crop_size or planes.shape[1:])), dtype=torch.uint8)
            augment(planes, rng, self.flip_h, self.flip_v, self.crop_size, out=batch[place].numpy())
        return batch

    def _synthesize(self, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Replace a sample by a composite, its coarse mask by a simulated one, or nothing."""
        share = self.synthesis
        image, gt, given, sources = planes[:IMAGE_CHANNELS], planes[-1], True, MASK_SOURCES
        if share.copy_paste and rng.random() < share.copy_paste:
            behind = self.all if share.backgrounds is None else share.backgrounds
            background = behind[rng.integers(len(behind))][:IMAGE_CHANNELS]
            scene = copy_paste(background, lambda: self.all[rng.integers(len(self.all))], rng)
            if np.count_nonzero(scene.gt > MASK_THRESHOLD) >= _LEAST_VISIBLE:
                image, gt, given = scene.image, scene.gt, False
                sources = RELIABLE_SOURCES if scene.mask_only_target else MASK_SOURCES
        if given and not (share.simulate_mask and rng.random() < share.simulate_mask):
            return planes
        layers = [image]
        if self.in_ch > MASK_CHANNEL:
            layers.append(simulate_mask(gt, image, rng, sources)[None])
        if self.in_ch > BOX_CHANNEL:
            layers.append(fill_box(box_from_mask(gt), gt.shape, gt.shape))
        return np.concatenate([*layers, gt[None]])


class EndlessBatches(Sampler[list[TrainKey]]):
    """Shuffled batches, epoch after epoch, from any batch on: a resumed run sees what it would have seen.

    Args:
        length: Samples an epoch.
        batch_size: Samples a batch; the last batch of an epoch may be shorter.
        seed: Of the shuffling.
        start: The batch, counted over all epochs, to start from.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start

    @property
    def per_epoch(self) -> int:
        """Batches an epoch."""
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[TrainKey]]:
        order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))
        for batch in count(self.start):
            epoch, position = divmod(batch, self.per_epoch)
            if order[0] != epoch:
                order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
            chosen = order[1][position * self.batch_size : (position + 1) * self.batch_size]
            yield [TrainKey(epoch, int(index)) for index in chosen]


class ValidItem(NamedTuple):
    """One sample of a validation or inference run."""

    name: str
    planes: Tensor
    """(in_ch [+ 1 with ground truth], height, width) uint8."""
    size: Size
    """(height, width) of the image."""
    gt: Tensor | None
    """(height, width) uint8: the ground truth at the image's own size, where there is one."""


class ValidBatch(NamedTuple):
    """Several of them; only the planes are of one size."""

    names: list[str]
    planes: Tensor
    sizes: list[Size]
    gts: list[Tensor] | None


class ValidDataset(Dataset):
    """The samples of one data set in order, each with its ground truth at full size."""

    def __init__(self, dataset: DISDataset) -> None:
        self.dataset = dataset
        self.name = dataset.name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> ValidItem:
        sample = self.dataset.samples[index]
        planes = torch.from_numpy(self.dataset.planes(index).copy())  # the cache is read-only, tensors are not
        gt = None if sample.gt is None else torch.from_numpy(read_mask(sample.gt))
        return ValidItem(sample.name, planes, image_size(sample.image) if gt is None else tuple(gt.shape), gt)


def collate_valid(items: list[ValidItem]) -> ValidBatch:
    """Stack the planes; leave what is at full size as a list."""
    gts = None if items[0].gt is None else [item.gt for item in items]
    planes = torch.stack([item.planes for item in items])
    return ValidBatch([item.name for item in items], planes, [item.size for item in items], gts)


def _as_is(batch: Any) -> Any:
    return batch


def train_loader(dataset: TrainDataset, batch_size: int, workers: int, start: int = 0, pin: bool = False) -> DataLoader:
    """Return an endless loader of uint8 batches (B, in_ch + 1, height, width), from batch number ``start`` on."""
    batches = EndlessBatches(len(dataset), batch_size, dataset.seed, start)
    if batch_size > len(dataset):
        logger.warning("batch_size_train is %d; the training set's %d samples make one batch", batch_size, len(dataset))
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        worker_init_fn=prepare_worker,
    )


def valid_loader(dataset: ValidDataset, batch_size: int, workers: int, pin: bool = False) -> DataLoader:
    """Return a loader of :class:`ValidBatch`, in order; the last may be shorter."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate_valid,
        pin_memory=pin,
        worker_init_fn=prepare_worker,
    )
