"""Find a data set's files, check that they belong together, cache them resized, and feed them in batches."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from IS_Net.augment import augment
from IS_Net.coarse import FAITHFUL, SOURCES, coarse_mask
from IS_Net.composite import composite
from IS_Net.hypar import resolve
from IS_Net.images import IMAGE_EXTENSIONS, MASK_THRESHOLD, ImageError, image_size, read_image, read_mask
from IS_Net.preprocess import (
    BOX_CHANNEL,
    IMAGE_CHANNELS,
    MASK_CHANNEL,
    Box,
    BoxError,
    box_from_mask,
    fill_box,
    make_planes,
    resize_planes,
    resize_uint8,
)
from sam.prompts import read_manifest

logger = logging.getLogger(__name__)

Size = tuple[int, int]
CACHE_VERSION = 1
_ALIASES = {"mask_dir": "mid_dir", "mask_ext": "mid_ext"}
_KEYS = ("name", "im_dir", "gt_dir", "mid_dir", "im_ext", "gt_ext", "mid_ext", "cache_dir")
_SHOWN = 20  # how many offenders a message names


class DatasetError(ValueError):
    """A data set whose description, folders or files are not as they must be."""


@dataclass(frozen=True)
class Sample:
    """One pair (or triple) of files: an image, its coarse mask and its ground truth."""

    name: str
    image: Path
    mask: Path | None
    gt: Path | None
    box: Box | None
    """The prompt that the mask came from, xyxy in pixels, where stage 1 noted one."""


def _listed(items: Sequence[str]) -> str:
    more = f"\n  ... and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "".join(f"\n  {item}" for item in items[:_SHOWN]) + more


def check_dataset(dataset: dict[str, str]) -> dict[str, str]:
    """Return a data set's description with all keys of :mod:`IS_Net.datalist`, aliases resolved, folders absolute.

    Raises:
        DatasetError: If a key is unknown, or ``name`` or ``im_dir`` is missing.
    """
    entry = dict.fromkeys(_KEYS, "")
    for key, value in dataset.items():
        key = _ALIASES.get(key, key)
        if key not in entry:
            raise DatasetError(f"data set {dataset.get('name')!r}: unknown key {key!r}; known are {', '.join(_KEYS)}")
        entry[key] = value
    for key in ("name", "im_dir"):
        if not entry[key]:
            raise DatasetError(f"data set {entry['name']!r}: key {key!r} is missing or empty")
    for key in ("im_dir", "gt_dir", "mid_dir", "cache_dir"):
        if entry[key]:
            entry[key] = str(resolve(entry[key]))
    return entry


def _list_files(dataset: dict[str, str], kind: str) -> dict[str, Path]:
    """Return the files of one folder of a data set (kind: im, gt or mid) by their stems."""
    folder, extension = Path(dataset[f"{kind}_dir"]), dataset[f"{kind}_ext"].lower()
    what = {"im": "images", "gt": "ground truths", "mid": "coarse masks"}[kind]
    if not folder.is_dir():
        remedy = {
            "im": "check the path; README.md shows the tree",
            "gt": "check the path, or set gt_dir to '' where there is no ground truth",
            "mid": "make them with: python -m sam.generate_masks --data " + str(Path(dataset["im_dir"]).parent),
        }[kind]
        raise DatasetError(
            f"data set {dataset['name']!r}: the folder of its {what}, {folder}, does not exist; {remedy}"
        )
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    files = [
        e for e in entries if e.suffix.lower() == extension or (not extension and e.suffix.lower() in IMAGE_EXTENSIONS)
    ]
    if kind == "im" and not files:
        there = ", ".join(sorted({entry.suffix for entry in entries})) or "nothing"
        raise DatasetError(
            f"data set {dataset['name']!r}: no {what} ending in {extension or 'a known image ending'} in {folder}; "
            f"it holds {there}"
        )
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise DatasetError(
                f"data set {dataset['name']!r}: {found[file.stem]} and {file.name} share the name {file.stem!r}; "
                "rename one of them"
            )
        found[file.stem] = file
    return found


def _mask_owners(masks: Iterable[str], images: Collection[str], manifest: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Tell which image each mask is of: as stage 1 noted, else NAME of NAME or NAME_OBJECT, the longest that fits."""
    owners = {}
    for mask in masks:
        parts = mask.split("_")
        candidates = [manifest.get(mask, {}).get("image")]
        candidates += ["_".join(parts[:end]) for end in range(len(parts), 0, -1)]
        owner = next((name for name in candidates if name in images), None)
        if owner is not None:
            owners[mask] = owner
    return owners


def find_samples(dataset: dict[str, str], need_mask: bool, need_gt: bool) -> list[Sample]:
    """Pair the files of a data set by name, and check that they belong together.

    Where there is no ground truth, an image with several masks (``NAME_OBJECT.png``) gives a sample for each.

    Args:
        dataset: As in :mod:`IS_Net.datalist`.
        need_mask: Whether the network looks at the masks.
        need_gt: Whether a ground truth is asked for; without, one is used where ``gt_dir`` is set.

    Returns:
        The samples, sorted by name.

    Raises:
        DatasetError: If a folder is missing or empty, an image has no mask or ground truth, or sizes differ; all
            offenders are named at once.
        ImageError: If a file's header cannot be read.
    """
    dataset = check_dataset(dataset)
    where = f"data set {dataset['name']!r}"
    for kind, needed in (("mid", need_mask), ("gt", need_gt)):
        if needed and not dataset[f"{kind}_dir"]:
            what = "coarse masks (mid_dir)" if kind == "mid" else "ground truth (gt_dir)"
            remedy = "; make them with: python -m sam.generate_masks" if kind == "mid" else ""
            raise DatasetError(f"{where}: has no folder of {what}, which this run needs{remedy}")
    images = _list_files(dataset, "im")
    masks = _list_files(dataset, "mid") if need_mask else {}
    gts = _list_files(dataset, "gt") if dataset["gt_dir"] else {}

    manifest = read_manifest(Path(dataset["mid_dir"])) if need_mask else {}

    problems = [f"{name}: no ground truth in {dataset['gt_dir']}" for name in images if gts and name not in gts]
    if dataset["gt_dir"] and not gts:
        problems.append(f"no ground truths ending in {dataset['gt_ext']} in {dataset['gt_dir']}")
    of_image: dict[str, list[str]] = {name: [] for name in images}
    if need_mask:
        if gts:
            of_image = {name: [name] if name in masks else [] for name in images}
        else:
            for mask, owner in _mask_owners(masks, images, manifest).items():
                of_image[owner].append(mask)
        problems += [f"{name}: no coarse mask in {dataset['mid_dir']}" for name, own in of_image.items() if not own]
    if problems:
        orphans = [str(gts[name]) for name in gts if name not in images][:3]
        hint = f"\n(ground truths without an image, misnamed? {', '.join(orphans)})" if orphans else ""
        hint += "\n(coarse masks: python -m sam.generate_masks)" if any("coarse" in p for p in problems) else ""
        raise DatasetError(f"{where}: {len(problems)} files are missing:{_listed(problems)}{hint}")

    samples = []
    for name, image in images.items():
        for own in of_image[name] if need_mask else [name]:
            box = manifest.get(own, {}).get("box")
            samples.append(Sample(own, image, masks.get(own), gts.get(name), tuple(box) if box else None))
    _check_sizes(where, samples)
    return samples


def _check_sizes(where: str, samples: Sequence[Sample]) -> None:
    def problem(sample: Sample) -> str | None:
        try:
            size = image_size(sample.image)
            for file in (sample.mask, sample.gt):
                if file is not None and image_size(file) != size:
                    (h, w), (image_h, image_w) = image_size(file), size
                    return f"{file} is {w} x {h} pixels, its image {sample.image.name} {image_w} x {image_h}"
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:  # headers only, but of thousands of files that may lie on a network
        problems = [found for found in pool.map(problem, samples) if found]
    if problems:
        raise DatasetError(
            f"{where}: {len(problems)} files cannot be used (sizes must agree, upright by EXIF):{_listed(problems)}"
        )


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


def _as_it_is(batch: Any) -> Any:
    return batch


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
            _Guarded(planes), batch_size=1, num_workers=workers, collate_fn=_first, worker_init_fn=_prepare_worker
        )
        for index, item in enumerate(tqdm(loader, desc=f"cache {name}", unit="image")):
            if isinstance(item, str):
                problems.append(item)
            else:
                array[index] = item
        if problems:
            raise DatasetError(f"data set {name!r}: {len(problems)} files cannot be used:{_listed(problems)}")
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


class TrainKey(NamedTuple):
    """Which sample, and in which epoch: together with the seed they decide its augmentation."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Synthesis:
    """What of the training samples is made up; see the keys of the same names in :mod:`IS_Net.hypar`."""

    composite: float = 0.0
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
        self.all = torch.utils.data.ConcatDataset(datasets)
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
            planes = self._synthesise(self.all[key.index], rng)
            if batch is None:
                batch = torch.empty((len(keys), len(planes), *(self.crop_size or planes.shape[1:])), dtype=torch.uint8)
            augment(planes, rng, self.flip_h, self.flip_v, self.crop_size, out=batch[place].numpy())
        return batch

    def _synthesise(self, planes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Replace a sample by a composite, its coarse mask by a simulated one, or nothing."""
        share = self.synthesis
        image, gt, given, sources = planes[:IMAGE_CHANNELS], planes[-1], True, SOURCES
        if share.composite and rng.random() < share.composite:
            behind = self.all if share.backgrounds is None else share.backgrounds
            background = behind[rng.integers(len(behind))][:IMAGE_CHANNELS]
            scene = composite(background, lambda: self.all[rng.integers(len(self.all))], rng)
            if np.count_nonzero(scene.gt > MASK_THRESHOLD) >= _LEAST_VISIBLE:
                image, gt, given = scene.image, scene.gt, False
                sources = FAITHFUL if scene.plain else SOURCES
        if given and not (share.simulate_mask and rng.random() < share.simulate_mask):
            return planes
        layers = [image]
        if self.in_ch > MASK_CHANNEL:
            layers.append(coarse_mask(gt, image, rng, sources)[None])
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


def _prepare_worker(_worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism; PyTorch knows that by itself
    # Ctrl-C reaches all processes of a terminal, but it is the main one's to answer; SIGTERM is the loader's
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def train_loader(dataset: TrainDataset, batch_size: int, workers: int, start: int = 0, pin: bool = False) -> DataLoader:
    """Return an endless loader of uint8 batches (B, in_ch + 1, height, width), from batch number ``start`` on."""
    batches = EndlessBatches(len(dataset), batch_size, dataset.seed, start)
    if batch_size > len(dataset):
        logger.warning("batch_size_train is %d; the training set's %d samples make one batch", batch_size, len(dataset))
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=_prepare_worker,
    )


def valid_loader(dataset: ValidDataset, batch_size: int, workers: int, pin: bool = False) -> DataLoader:
    """Return a loader of :class:`ValidBatch`, in order; the last may be shorter."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate_valid,
        pin_memory=pin,
        worker_init_fn=_prepare_worker,
    )
