"""The cache: resized samples of a data set in one file, which all processes map into memory."""

from __future__ import annotations

import errno
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
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from IS_Net.errors import BoxError, DatasetError, ImageError, UnusableSamplesError
from IS_Net.images import read_image, read_mask
from IS_Net.lock import lock_folder
from IS_Net.machine import available_cores
from IS_Net.preprocess import BOX_CHANNEL, Size, make_planes, resize_uint8
from IS_Net.samples import Sample, format_list
from IS_Net.worker import keep, prepare_worker, workers_that_fit

logger = logging.getLogger(__name__)

CACHE_VERSION = 3
"""Changes when the same files give other planes, so that older caches are built again."""


def read_planes(sample: Sample, in_ch: int, size: Size) -> np.ndarray:
    """Decode the files of a sample and resize them.

    Args:
        sample: The files.
        in_ch: Number of input channels of the network.
        size: (height, width) of the result.

    Returns:
        (in_ch, height, width) uint8, the network's input; with ground truth, that is one more channel.

    Raises:
        ImageError: If a file cannot be read.
        BoxError: If the prompt that the manifest records lies outside the image.
    """
    image = read_image(sample.image)
    mask = None if sample.mask is None else read_mask(sample.mask)
    try:
        planes = make_planes(image, mask, sample.box, in_ch, size)
    except BoxError as error:
        raise BoxError(f"{sample.mask}: its prompt in manifest.jsonl: {error}; make the mask again") from error
    if sample.gt is None:
        return planes
    return np.concatenate((planes, resize_uint8(read_mask(sample.gt), size)))


def open_cache(folder: Path, name: str, samples: Sequence[Sample], in_ch: int, size: Size) -> np.ndarray:
    """Open the cache of a data set; build it if it does not exist or is out of date.

    A cache gets its final name when it is complete, so an interrupted build never leaves a partial cache. Outdated
    caches of the same data set, channels and size are deleted.

    Args:
        folder: Folder of the cache; created if it is missing.
        name: Name of the data set.
        samples: The samples of the data set.
        in_ch: Number of input channels of the network.
        size: (height, width) to store.

    Returns:
        (N, in_ch, height, width) uint8, with ground truth (N, in_ch + 1, height, width): the samples as
        :func:`read_planes` returns them. Read-only and memory-mapped.

    Raises:
        UnusableSamplesError: If files cannot be read; the message names all of them.
        DatasetError: If the disk is too full.
    """
    with_gt = "" if samples[0].gt is None else "-gt"
    prefix = f"{_file_name(name)}_{in_ch}ch{with_gt}_{size[0]}x{size[1]}_"
    path = folder / f"{prefix}{_cache_key(samples, in_ch, size)}.npy"
    shape = (len(samples), in_ch + bool(with_gt), *size)
    if not _is_whole(path, shape):
        _build_cache(path, prefix, name, samples, in_ch, shape)
    return np.load(path, mmap_mode="r")


def _file_name(name: str) -> str:
    """Return the name of a data set as a part of a file name; different names give different ones."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", name)
    if plain == name:
        return name
    return f"{plain}-{hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}"


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether a cache exists, and has the expected shape and all of its bytes."""
    try:
        array = np.load(path, mmap_mode="r")  # raises if the file is shorter than its header says
    except (OSError, ValueError, EOFError, SyntaxError):
        return False
    return array.shape == shape and array.dtype == np.uint8


def _cache_key(samples: Sequence[Sample], in_ch: int, size: Size) -> str:
    """Return a hash of everything that the cached bytes depend on: files (path, size, time), boxes, channels, size."""

    def fingerprint(path: Path | None) -> list[Any] | None:
        if path is None:
            return None
        status = path.stat()
        return [str(path), status.st_size, status.st_mtime_ns]

    files = [
        [fingerprint(s.image), fingerprint(s.mask), fingerprint(s.gt), s.box if in_ch > BOX_CHANNEL else None]
        for s in samples
    ]
    text = json.dumps([CACHE_VERSION, in_ch, list(size), files])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class _PlanesOrError(Dataset):
    """The planes of each sample, or the message of the error, so that one run finds all unusable files."""

    def __init__(self, samples: Sequence[Sample], in_ch: int, size: Size) -> None:
        self.samples, self.in_ch, self.size = samples, in_ch, size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return read_planes(self.samples[index], self.in_ch, self.size)
        except (ImageError, BoxError) as error:
            return str(error)


def _build_cache(
    path: Path, prefix: str, name: str, samples: Sequence[Sample], in_ch: int, shape: tuple[int, ...]
) -> None:
    """Build a cache, and delete what its name begins with: outdated caches, and what killed builds have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(path.parent, "the build of a cache", wait=True):
        if _is_whole(path, shape):  # another process has built it in the meantime
            return
        if path.exists():
            logger.warning("cache: %s is damaged; it is built again", path)
            path.unlink(missing_ok=True)
        for leftover in path.parent.glob(f".{prefix}*.part"):
            leftover.unlink(missing_ok=True)
        _fill_cache(path, name, samples, in_ch, shape)
        for old in path.parent.glob(f"{prefix}*.npy"):
            if old != path:
                logger.info("cache: deleting %s, which is out of date", old)
                old.unlink(missing_ok=True)


def _fill_cache(path: Path, name: str, samples: Sequence[Sample], in_ch: int, shape: tuple[int, ...]) -> None:
    needed = int(np.prod(shape))
    logger.info("cache: building %s (%.2f GB)", path, needed / 1e9)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        array = _allocate(partial, shape)
    except OSError as error:
        partial.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise DatasetError(
            f"data set {name!r}: its cache needs {needed / 1e9:.1f} GB in {path.parent}, where {free / 1e9:.1f} GB "
            f"are free ({error.strerror}); choose another cache_dir, a smaller cache_size, or cache_dir '' to train "
            "without cache"
        ) from error
    try:
        problems = []
        workers = min(available_cores(), len(samples)) if len(samples) > 1 else 0
        workers = workers_that_fit(workers, int(np.prod(shape[1:])))
        loader = DataLoader(
            _PlanesOrError(samples, in_ch, shape[2:]),
            batch_size=None,
            num_workers=workers,
            collate_fn=keep,
            worker_init_fn=prepare_worker,
            # the global generator would be moved on, and a run that builds its cache would differ from one that has it
            generator=torch.Generator(),
        )
        for index, item in enumerate(tqdm(loader, desc=f"cache {name}", unit="image")):
            if isinstance(item, str):
                problems.append(item)
            else:
                array[index] = item
        if problems:
            raise UnusableSamplesError(
                f"data set {name!r}: {len(problems)} samples cannot be used:{format_list(problems)}"
            )
        array.flush()
        del array
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create a file for a memory-mapped array, with all of its space.

    A file without its space would end the process by a signal when the disk is full.

    Raises:
        OSError: If the disk is too full.
    """
    if int(np.prod(shape)) > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
