"""Datasets and data loaders for training and validation."""

from __future__ import annotations

import functools
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

from IS_Net import distributed
from IS_Net.augment import augment
from IS_Net.cache import open_cache, read_planes
from IS_Net.images import image_size, read_mask
from IS_Net.preprocess import MASK_CHANNEL, Size, resize_planes
from IS_Net.samples import check_dataset, pair_files
from IS_Net.synthesis.composer import Composer
from IS_Net.synthesis.sources import CPU, fits
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


class TrainDataset(Dataset):
    """The training samples of one or more data sets, augmented.

    The augmentation of a sample depends on seed, epoch and index only, not on the worker process that loads it, nor on
    whether the run was interrupted and resumed. On a GPU, synthetic samples are the same up to rounding.

    Args:
        datasets: Data sets with ground truth, of equal sizes. They have ``in_ch`` channels, or 3 if all masks are
            simulated.
        seed: Seed of the augmentation.
        flip_h: As in :func:`IS_Net.augment.augment`.
        flip_v: As in :func:`IS_Net.augment.augment`.
        crop_size: As in :func:`IS_Net.augment.augment`.
        in_ch: Number of input channels of the network; None takes that of the data sets.
        synthesis: Which samples are synthetic.
        device: Where to make synthetic samples: on a CUDA device if its memory has room for the data sets; on any other
            device, and without synthetic samples, the CPU is used.

    Attributes:
        device: Where the samples are made.
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
        device: torch.device = CPU,
    ) -> None:
        self.dataset = ConcatDataset(datasets)
        self.seed, self.flip_h, self.flip_v, self.crop_size = seed, flip_h, flip_v, crop_size
        self.in_ch, self.synthesis = in_ch or datasets[0].in_ch, synthesis
        used = [self.dataset, *([synthesis.backgrounds] if synthesis.backgrounds else [])]
        on_gpu = device.type == "cuda" and bool(synthesis.copy_paste or synthesis.simulate_mask) and fits(used, device)
        self.device = device if on_gpu else CPU

    def __len__(self) -> int:
        return len(self.dataset)

    def names(self, keys: Sequence[TrainKey]) -> list[str]:
        """Return the names of samples, each after that of its data set."""
        samples = [f"{data.name}/{sample.name}" for data in self.dataset.datasets for sample in data.samples]
        return [samples[key.index] for key in keys]

    def __getitem__(self, key: TrainKey) -> Tensor:
        """Return (in_ch + 1, height, width) uint8: the network's input and the ground truth."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[TrainKey]) -> Tensor:
        """Return (B, in_ch + 1, height, width) uint8, on the device where the samples are made; B may be 0."""
        if not keys:
            size = self.crop_size or self.dataset.datasets[0].input_size
            return torch.empty((0, self.in_ch + 1, *size), dtype=torch.uint8, device=self.device)
        rngs = [np.random.default_rng((self.seed, key.epoch, key.index)) for key in keys]
        samples = self._composer.make([key.index for key in keys], rngs)
        channels, *size = samples[0].shape
        batch = torch.empty((len(keys), channels, *(self.crop_size or size)), dtype=torch.uint8, device=self.device)
        for planes, rng, place in zip(samples, rngs, batch, strict=True):
            augment(planes, rng, self.flip_h, self.flip_v, self.crop_size, out=place)
        return batch

    @functools.cached_property
    def _composer(self) -> Composer:
        synthesis = self.synthesis
        return Composer(
            self.dataset,
            synthesis.backgrounds,
            self.in_ch,
            synthesis.copy_paste,
            synthesis.simulate_mask,
            self.device,
        )


class EndlessBatches(Sampler[list[TrainKey]]):
    """Shuffled batches without end. Starting at a later batch, a resumed run gets the batches that it would have got.

    The batches do not depend on the number of processes; iterating over them gives the :func:`distributed.share` of
    this one.

    Args:
        length: Number of samples per epoch.
        batch_size: Samples per batch, of all processes together; the last batch of an epoch may be smaller.
        seed: Seed of the shuffling.
        start: Number of the first batch, counted over all epochs.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start
        self._order: tuple[int, np.ndarray] | None = None  # of an epoch

    @property
    def per_epoch(self) -> int:
        """Number of batches per epoch."""
        return -(-self.length // self.batch_size)

    def batch(self, number: int) -> list[TrainKey]:
        """Return a batch of all processes; batches are numbered over all epochs."""
        epoch, position = divmod(number, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
        indices = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        return [TrainKey(epoch, int(index)) for index in indices]

    def __iter__(self) -> Iterator[list[TrainKey]]:
        for number in count(self.start):
            keys = self.batch(number)
            yield [keys[position] for position in distributed.share(len(keys))]


def train_loader(
    dataset: TrainDataset, batch_size: int, workers: int, start: int = 0, pin: bool = False, timeout: float = 0
) -> DataLoader:
    """Return an endless loader of training batches, (B, in_ch + 1, height, width) uint8.

    Those of a data set on a GPU are made there, in the main process.

    Args:
        dataset: The samples.
        batch_size: Samples per batch, of all processes together; each loads its share.
        workers: Number of worker processes; 0 loads in the main process.
        start: Number of the first batch, counted over all epochs.
        pin: Whether to pin the memory of batches, for faster copies to a GPU.
        timeout: Seconds without a batch from the workers after which the loader raises RuntimeError; 0 waits forever.
    """
    batches = EndlessBatches(len(dataset), batch_size, dataset.seed, start)
    if batch_size > len(dataset):
        logger.warning(
            "batch_size_train is %d, but there are only %d training samples; they make one batch",
            batch_size,
            len(dataset),
        )
    on_gpu = dataset.device.type != "cpu"
    workers = 0 if on_gpu else workers
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=keep,
        pin_memory=pin and not on_gpu,
        worker_init_fn=prepare_worker,
        timeout=timeout if workers else 0,
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


def valid_loader(
    dataset: ValidDataset, batch_size: int, workers: int, pin: bool = False, timeout: float = 0
) -> DataLoader:
    """Return a loader of :class:`ValidBatch` in order, with this process's share of the samples.

    The last batch may be smaller.

    Args:
        dataset: The samples.
        batch_size: Samples per batch.
        workers: Number of worker processes; 0 loads in the main process.
        pin: Whether to pin the memory of batches, for faster copies to a GPU.
        timeout: As for :func:`train_loader`.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=distributed.share(len(dataset)),
        num_workers=workers,
        collate_fn=collate_valid,
        pin_memory=pin,
        worker_init_fn=prepare_worker,
        timeout=timeout if workers else 0,
    )
