"""Datasets and data loaders for training and validation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

from IS_Net.augment import augment
from IS_Net.cache import open_cache, read_planes
from IS_Net.errors import import_extra
from IS_Net.images import binarize, image_size, read_mask
from IS_Net.preprocess import BOX_CHANNEL, IMAGE_CHANNELS, MASK_CHANNEL, Size, box_from_mask, fill_box, resize_planes
from IS_Net.samples import check_dataset, pair_files
from IS_Net.synthesis.copy_paste import copy_paste
from IS_Net.synthesis.simulate_masks import MASK_SOURCES, RELIABLE_SOURCES, simulate_mask
from IS_Net.worker import keep, prepare_worker

logger = logging.getLogger(__name__)


class DISDataset(Dataset):
    """The samples of a data set, from its cache if it has a ``cache_dir``, otherwise decoded from the files.

    Args:
        dataset: An entry of :mod:`IS_Net.datalist`.
        in_ch: Number of input channels of the network.
        cache_size: (height, width) to store in the cache.
        input_size: (height, width) of the samples; None is ``cache_size``.
        need_gt: Whether the ground truth is required.
        preload: Whether to read the whole cache into memory.

    Attributes:
        name: Name of the data set.
        samples: Its files, as :func:`IS_Net.samples.pair_files` returns them.

    Raises:
        DatasetError: If the entry or its files cannot be used, or the disk is too full for the cache.
    """

    def __init__(
        self,
        dataset: Mapping[str, str],
        in_ch: int,
        cache_size: Size,
        input_size: Size | None = None,
        need_gt: bool = True,
        preload: bool = False,
    ) -> None:
        checked = check_dataset(dataset)
        self.name, self.in_ch = checked.name, in_ch
        self.input_size = tuple(input_size or cache_size)
        self.samples = pair_files(checked, need_mask=in_ch > MASK_CHANNEL, need_gt=need_gt)
        self._cache: np.ndarray | None = None
        if checked.cache_dir:
            self._cache = open_cache(checked.cache_dir, self.name, self.samples, in_ch, tuple(cache_size))
            if preload:
                self._cache = np.array(self._cache)

    def __getstate__(self) -> dict[str, Any]:
        """Replace a memory-mapped cache by its path, so that spawned workers map the file instead of copying it."""
        mapped = {"_cache": Path(self._cache.filename)} if isinstance(self._cache, np.memmap) else {}
        return {**self.__dict__, **mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._cache, Path):
            self._cache = np.load(self._cache, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def has_gt(self) -> bool:
        """Whether the samples have ground truth."""
        return self.samples[0].gt is not None

    @property
    def has_cache(self) -> bool:
        """Whether the samples come from a cache, for which all files have been read."""
        return self._cache is not None

    def planes(self, index: int) -> np.ndarray:
        """Return a sample: (in_ch, height, width) uint8, with ground truth (in_ch + 1, height, width).

        Raises:
            ImageError: If there is no cache and a file cannot be read.
            BoxError: If there is no cache and the prompt of the manifest lies outside the image.
        """
        if self._cache is None:
            return read_planes(self.samples[index], self.in_ch, self.input_size)
        return resize_planes(self._cache[index], self.input_size)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.planes(index)


# --- training -------------------------------------------------------------------------------------------------------


class TrainKey(NamedTuple):
    """A sample in an epoch. Together with the seed, it determines the augmentation."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Synthesis:
    """Which training samples are synthetic; see the keys of the same names in :mod:`IS_Net.hypar`."""

    copy_paste: float = 0.0
    """Probability of copy-paste augmentation. The masks of these samples are simulated."""
    simulate_mask: float = 0.0
    """Probability that the coarse mask of another sample is simulated."""
    backgrounds: DISDataset | None = None
    """Photographs for the backgrounds of copy-paste augmentation; None takes the training images."""


_MIN_TARGET_PIXELS = 100  # a copy-paste sample with fewer visible pixels of the target is not used


class TrainDataset(Dataset):
    """The training samples of one or more data sets, augmented.

    The augmentation of a sample depends on seed, epoch and index only, not on the worker process that loads it, nor on
    whether the run was interrupted and resumed.

    Args:
        datasets: Data sets with ground truth, of equal sizes. They have ``in_ch`` channels, or 3 if all masks are
            simulated.
        seed: Seed of the augmentation.
        flip_h: As in :func:`IS_Net.augment.augment`.
        flip_v: As in :func:`IS_Net.augment.augment`.
        crop_size: As in :func:`IS_Net.augment.augment`.
        in_ch: Number of input channels of the network; None takes that of the data sets.
        synthesis: Which samples are synthetic.

    Raises:
        MissingExtraError: If copy-paste augmentation is used and the extra ``train`` is not installed.
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
        if synthesis.copy_paste:
            import_extra("skimage.segmentation", "train")  # now, rather than in a worker process during training
        self.dataset = ConcatDataset(datasets)
        self.seed, self.flip_h, self.flip_v, self.crop_size = seed, flip_h, flip_v, crop_size
        self.in_ch, self.synthesis = in_ch or datasets[0].in_ch, synthesis

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: TrainKey) -> Tensor:
        """Return (in_ch + 1, height, width) uint8: the network's input and the ground truth."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[TrainKey]) -> Tensor:
        """Return (B, in_ch + 1, height, width) uint8; each sample is written to its place in the batch directly."""
        batch = None
        for position, key in enumerate(keys):
            rng = np.random.default_rng((self.seed, key.epoch, key.index))
            planes = self._synthesize(self.dataset[key.index], rng)
            if batch is None:
                batch = torch.empty((len(keys), len(planes), *(self.crop_size or planes.shape[1:])), dtype=torch.uint8)
            augment(planes, rng, self.flip_h, self.flip_v, self.crop_size, out=batch[position].numpy())
        return batch

    def _synthesize(self, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Replace the whole sample by copy-paste augmentation, or its coarse mask by a simulated one, or nothing."""
        synthesis = self.synthesis
        image, gt, sources, pasted = planes[:IMAGE_CHANNELS], planes[-1], MASK_SOURCES, False
        if synthesis.copy_paste and rng.random() < synthesis.copy_paste:
            backgrounds = self.dataset if synthesis.backgrounds is None else synthesis.backgrounds
            background = backgrounds[rng.integers(len(backgrounds))][:IMAGE_CHANNELS]
            sample = copy_paste(background, lambda: self.dataset[rng.integers(len(self.dataset))], rng)
            if np.count_nonzero(binarize(sample.gt)) >= _MIN_TARGET_PIXELS:
                image, gt, pasted = sample.image, sample.gt, True
                sources = RELIABLE_SOURCES if sample.mask_only_target else MASK_SOURCES
        if not pasted and not (synthesis.simulate_mask and rng.random() < synthesis.simulate_mask):
            return planes
        layers = [image]
        if self.in_ch > MASK_CHANNEL:
            layers.append(simulate_mask(gt, image, rng, sources)[None])
        if self.in_ch > BOX_CHANNEL:
            layers.append(fill_box(box_from_mask(gt), gt.shape, gt.shape))
        return np.concatenate([*layers, gt[None]])


class EndlessBatches(Sampler[list[TrainKey]]):
    """Shuffled batches without end. Starting at a later batch, a resumed run gets the batches that it would have got.

    Args:
        length: Number of samples per epoch.
        batch_size: Samples per batch; the last batch of an epoch may be smaller.
        seed: Seed of the shuffling.
        start: Number of the first batch, counted over all epochs.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start

    @property
    def per_epoch(self) -> int:
        """Number of batches per epoch."""
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[TrainKey]]:
        shuffled_epoch, order = -1, np.empty(0, dtype=int)
        for batch in count(self.start):
            epoch, position = divmod(batch, self.per_epoch)
            if epoch != shuffled_epoch:
                shuffled_epoch, order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
            indices = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield [TrainKey(epoch, int(index)) for index in indices]


def train_loader(dataset: TrainDataset, batch_size: int, workers: int, start: int = 0, pin: bool = False) -> DataLoader:
    """Return an endless loader of training batches, (B, in_ch + 1, height, width) uint8.

    Args:
        dataset: The samples.
        batch_size: Samples per batch.
        workers: Number of worker processes; 0 loads in the main process.
        start: Number of the first batch, counted over all epochs.
        pin: Whether to pin the memory of batches, for faster copies to a GPU.
    """
    batches = EndlessBatches(len(dataset), batch_size, dataset.seed, start)
    if batch_size > len(dataset):
        logger.warning(
            "batch_size_train is %d, but there are only %d training samples; they make one batch",
            batch_size,
            len(dataset),
        )
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=keep,
        pin_memory=pin,
        worker_init_fn=prepare_worker,
    )


# --- validation -----------------------------------------------------------------------------------------------------


class ValidItem(NamedTuple):
    """One sample of a validation or inference run."""

    name: str
    planes: Tensor
    """(in_ch, h, w) uint8, the network's input; with ground truth (in_ch + 1, h, w)."""
    size: Size
    """(H, W) of the image."""
    gt: Tensor | None
    """(H, W) uint8, the ground truth at the size of the image; None if there is none."""


class ValidBatch(NamedTuple):
    """A batch of :class:`ValidItem`. Images may have different sizes."""

    names: list[str]
    planes: Tensor
    """(B, in_ch, h, w) uint8; with ground truth (B, in_ch + 1, h, w)."""
    sizes: list[Size]
    gts: list[Tensor] | None


class ValidDataset(Dataset):
    """The samples of one data set in order, each with its ground truth at the size of the image."""

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
    """Make a batch: stack the planes, and list what may differ in size."""
    gts = None if items[0].gt is None else [item.gt for item in items]
    planes = torch.stack([item.planes for item in items])
    return ValidBatch([item.name for item in items], planes, [item.size for item in items], gts)


def valid_loader(dataset: ValidDataset, batch_size: int, workers: int, pin: bool = False) -> DataLoader:
    """Return a loader of :class:`ValidBatch` in order; the last batch may be smaller.

    Args:
        dataset: The samples.
        batch_size: Samples per batch.
        workers: Number of worker processes; 0 loads in the main process.
        pin: Whether to pin the memory of batches, for faster copies to a GPU.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate_valid,
        pin_memory=pin,
        worker_init_fn=prepare_worker,
    )
