"""The cache of resized data sets, and the data set class that reads it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from IS_Net.device import available_cores
from IS_Net.errors import BoxError, DatasetError, ImageError
from IS_Net.images import read_image, read_mask
from IS_Net.preprocess import BOX_CHANNEL, MASK_CHANNEL, Size, make_planes, resize_planes, resize_uint8
from IS_Net.samples import Sample, check_dataset, find_samples, format_list
from IS_Net.worker import prepare_worker

logger = logging.getLogger(__name__)

CACHE_VERSION = 1


class _Planes(Dataset):
    """Samples as stacks of bytes, (in_ch [+ 1 with ground truth], H, W), straight from the files."""

    def __init__(self, samples: Sequence[Sample], in_ch: int, size: Size) -> None:
        self.samples, self.in_ch, self.size = samples, in_ch, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> np.ndarray:
        sample = self.samples[index]
        image = read_image(sample.image)
        mask = None if sample.mask is None else read_mask(sample.mask)
        try:
            planes = make_planes(image, mask, sample.box, self.in_ch, self.size)
        except BoxError as error:
            raise BoxError(f"{sample.mask}: its prompt in manifest.jsonl: {error}; make the mask again") from error
        if sample.gt is None:
            return planes
        return np.concatenate((planes, resize_uint8(read_mask(sample.gt), self.size)))


class _Guarded(Dataset):
    """Planes, or the message of what kept a sample from being read: so that one run names every bad file."""

    def __init__(self, planes: _Planes) -> None:
        self.planes = planes

    def __len__(self) -> int:
        return len(self.planes)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return self.planes[index]
        except (ImageError, BoxError) as error:
            return str(error)


def _first(batch: list[Any]) -> Any:
    return batch[0]


def cache_key(samples: Sequence[Sample], in_ch: int, size: Size) -> str:
    """Return a hash of all that the cached bytes depend on: files (path, size, time), boxes, channels and size."""

    def stamp(path: Path | None) -> list[Any] | None:
        if path is None:
            return None
        status = path.stat()
        return [str(path), status.st_size, status.st_mtime_ns]

    files = [[stamp(s.image), stamp(s.mask), stamp(s.gt), s.box if in_ch > BOX_CHANNEL else None] for s in samples]
    text = json.dumps([CACHE_VERSION, in_ch, list(size), files])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def open_cache(dataset: dict[str, str], samples: Sequence[Sample], in_ch: int, size: Size) -> np.ndarray:
    """Return the memory-mapped cache of a data set, building it first where it is absent or out of date.

    A cache carries its complete name only once it is complete; an interrupted build leaves nothing that could be
    taken for one. What it replaces (the same data set, channels and size from other files) is deleted.

    Args:
        dataset: Checked, with a ``cache_dir``.
        samples: Of that data set.
        in_ch: Channels of the network's input.
        size: (height, width) to store.

    Returns:
        (N, in_ch [+ 1 with ground truth], height, width) uint8, read-only, shared between processes.

    Raises:
        DatasetError: If files cannot be decoded (all are named), or the disk is too full.
    """
    folder = Path(dataset["cache_dir"])
    with_gt = "" if samples[0].gt is None else "-gt"
    prefix = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', dataset['name'])}_{in_ch}ch{with_gt}_{size[0]}x{size[1]}_"
    path = folder / f"{prefix}{cache_key(samples, in_ch, size)}.npy"
    if not path.is_file():
        _build_cache(path, _Planes(samples, in_ch, size), dataset["name"])
        for old in folder.glob(f"{prefix}*.npy"):
            if old != path:
                logger.info("cache: %s is out of date; deleted", old)
                old.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _build_cache(path: Path, planes: _Planes, name: str) -> None:
    channels = planes.in_ch + (planes.samples[0].gt is not None)
    shape = (len(planes), channels, *planes.size)
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise DatasetError(
            f"data set {name!r}: its cache needs {needed / 1e9:.1f} GB in {path.parent}, where {free / 1e9:.1f} GB "
            "are free; choose another cache_dir, a smaller cache_size, or cache_dir '' to do without"
        )
    logger.info("cache: building %s (%.2f GB)", path, needed / 1e9)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        problems = []
        workers = min(available_cores(), len(planes)) if len(planes) > 1 else 0
        loader = DataLoader(
            _Guarded(planes), batch_size=1, num_workers=workers, collate_fn=_first, worker_init_fn=prepare_worker
        )
        for index, item in enumerate(tqdm(loader, desc=f"cache {name}", unit="image")):
            if isinstance(item, str):
                problems.append(item)
            else:
                array[index] = item
        if problems:
            raise DatasetError(f"data set {name!r}: {len(problems)} files cannot be used:{format_list(problems)}")
        array.flush()
        del array
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class DISDataset(Dataset):
    """A data set of image, coarse mask and ground truth, cached where it has a ``cache_dir``.

    Args:
        dataset: As in :mod:`IS_Net.datalist`.
        in_ch: Channels of the network's input.
        cache_size: (height, width) that is stored.
        input_size: (height, width) of what is returned.
        need_gt: Whether a ground truth is asked for.
        preload: Hold the whole cache in memory.

    Raises:
        DatasetError: As :func:`find_samples` and :func:`open_cache`.
    """

    def __init__(
        self,
        dataset: dict[str, str],
        in_ch: int,
        cache_size: Size,
        input_size: Size | None = None,
        need_gt: bool = True,
        preload: bool = False,
    ) -> None:
        dataset = check_dataset(dataset)
        self.name, self.in_ch = dataset["name"], in_ch
        self.input_size = tuple(input_size or cache_size)
        self.samples = find_samples(dataset, need_mask=in_ch > MASK_CHANNEL, need_gt=need_gt)
        self.has_gt = self.samples[0].gt is not None
        self._planes: _Planes | np.ndarray = _Planes(self.samples, in_ch, self.input_size)
        if dataset["cache_dir"]:
            self._planes = open_cache(dataset, self.samples, in_ch, tuple(cache_size))
            if preload:
                self._planes = np.array(self._planes)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache's content out: a worker that is not forked maps the file anew."""
        mapped = {"_planes": Path(self._planes.filename)} if isinstance(self._planes, np.memmap) else {}
        return {**self.__dict__, **mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._planes, Path):
            self._planes = np.load(self._planes, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.samples)

    def planes(self, index: int) -> np.ndarray:
        """Return one sample as the network sees it: (in_ch [+ 1 with ground truth], height, width) uint8.

        Raises:
            ImageError: If there is no cache, and a file cannot be read.
        """
        return resize_planes(self._planes[index], self.input_size)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.planes(index)
