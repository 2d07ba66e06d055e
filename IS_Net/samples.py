"""Find the files of a data set, pair them by name and check them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IS_Net.decoding import is_first
from IS_Net.errors import DatasetError, ImageError, MissingFileError, did_you_mean, join_some
from IS_Net.images import list_images, read_header, size_mismatch
from IS_Net.manifest import read_manifest, recorded_box
from IS_Net.paths import resolve
from IS_Net.preprocess import Box

logger = logging.getLogger(__name__)

_ALIASES = {"mask_dir": "mid_dir", "mask_ext": "mid_ext"}
_FOLDERS = ("im_dir", "gt_dir", "mid_dir", "cache_dir")
_KEYS = ("name", *_FOLDERS, "im_ext", "gt_ext", "mid_ext")
_MAX_LISTED = 20  # items of a list in an error message


@dataclass(frozen=True)
class CheckedDataset:
    """An entry of :mod:`IS_Net.datalist` after :func:`check_dataset`: known keys, no aliases, absolute folders."""

    name: str
    im_dir: Path
    gt_dir: Path | None
    mid_dir: Path | None
    """Folder of the coarse masks."""
    cache_dir: Path | None
    im_ext: str
    """File extension of the images; an empty one means all image files. Likewise the next two."""
    gt_ext: str
    mid_ext: str


@dataclass(frozen=True)
class Sample:
    """The files of one sample: an image, its coarse mask and its ground truth."""

    name: str
    """Name of the coarse mask's file (see :func:`IS_Net.images.name_of`); without a mask, that of the image's file."""
    image: Path
    mask: Path | None
    gt: Path | None
    box: Box | None
    """The prompt of the coarse mask, xyxy in pixels, if the manifest of stage 1 records one."""


def format_list(items: Sequence[str]) -> str:
    """Return items as the indented lines of an error message; a long list is cut."""
    more = f"\n  ... and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return "".join(f"\n  {item}" for item in items[:_MAX_LISTED]) + more


def check_dataset(dataset: Mapping[str, str]) -> CheckedDataset:
    """Check the keys of an entry of :mod:`IS_Net.datalist`; resolve aliases and relative folders.

    Raises:
        DatasetError: If a key is unknown, or ``name`` or ``im_dir`` is missing.
    """
    entry: dict[str, Any] = dict.fromkeys(_KEYS, "")
    for key, value in dataset.items():
        key = _ALIASES.get(key, key)
        if key not in entry:
            raise DatasetError(f"data set {dataset.get('name')!r}: unknown key {key!r}{did_you_mean(key, _KEYS)}")
        entry[key] = value
    for key in ("name", "im_dir"):
        if not entry[key]:
            raise DatasetError(f"data set {entry['name']!r}: key {key!r} is missing or empty; set it in the entry")
    return CheckedDataset(**entry | {key: resolve(entry[key]) if entry[key] else None for key in _FOLDERS})


def find_samples(dataset: Mapping[str, str], need_mask: bool, need_gt: bool) -> list[Sample]:
    """Check an entry of :mod:`IS_Net.datalist` and pair its files; see :func:`pair_files`."""
    return pair_files(check_dataset(dataset), need_mask, need_gt)


def pair_files(dataset: CheckedDataset, need_mask: bool, need_gt: bool) -> list[Sample]:
    """Pair the files of a data set by name, and check that all exist and have the size of their image.

    Without ground truth, each coarse mask of an image (``NAME.png`` or ``NAME_OBJECT.png``) is a sample. With ground
    truth, only ``NAME.png`` is: the ground truth of an image says nothing about one object of several.

    Where ground truth is not required, images and masks that cannot be read do not stop the others: whoever reads the
    sample names them.

    Args:
        dataset: The data set.
        need_mask: Whether the network uses coarse masks; if not, none are searched for.
        need_gt: Whether the ground truth is required; if not, it is used if ``gt_dir`` is set.

    Returns:
        The samples, sorted by the name of the image.

    Raises:
        DatasetError: If a folder is missing or empty, an image has no mask or ground truth, or sizes differ. The
            message names all files concerned.
    """
    where = f"data set {dataset.name!r}"
    if dataset.gt_dir and dataset.gt_dir.is_dir():
        command = f"--data {dataset.im_dir.parent}"
    else:
        command = f"--images {dataset.im_dir} --prompts FILE --out {dataset.mid_dir or dataset.im_dir.parent / 'mask'}"
    make_masks = f"make them with: dis-sam masks {command} (without SAM: --model box)"
    images = _list_files(f"{where}, images (im_dir)", dataset.im_dir, dataset.im_ext, "check im_dir and im_ext")
    if need_mask and not dataset.mid_dir:
        raise DatasetError(f"{where}: no folder of coarse masks (mid_dir), which this run needs; {make_masks}")
    if need_gt and not dataset.gt_dir:
        raise DatasetError(f"{where}: no folder of ground truths (gt_dir), which this run needs; set gt_dir")
    gts, masks, manifest = {}, {}, {}
    if dataset.gt_dir:
        remedy = "check gt_dir and gt_ext, or set gt_dir to '' if there is no ground truth"
        gts = _list_files(f"{where}, ground truths (gt_dir)", dataset.gt_dir, dataset.gt_ext, remedy)
    if need_mask:
        masks = _list_files(f"{where}, coarse masks (mid_dir)", dataset.mid_dir, dataset.mid_ext, make_masks)
        manifest = read_manifest(dataset.mid_dir)

    objects: dict[str, list[str]] = {name: [] for name in images}
    for mask, image in images_of_masks(masks, images, manifest).items():
        objects[image].append(mask)
    mask_names = objects if not gts else {name: [name] if name in masks else [] for name in images}

    problems = [
        f"{name}: no ground truth in {dataset.gt_dir}{_other_extension(dataset.gt_dir, name, dataset.gt_ext, 'gt_ext')}"
        for name in images
        if gts and name not in gts
    ]
    if problems and (unused := sorted(gts.keys() - images.keys())):
        problems.append(f"ground truths without an image, possibly misnamed: {', '.join(unused[:3])}")
    if need_mask:
        without = [name for name in images if not mask_names[name]]
        problems += [f"{name}: {_missing_mask(dataset, name, objects[name])}" for name in without]
        problems += [make_masks] if any(not objects[name] for name in without) else []
    if problems:
        raise DatasetError(f"{where}: files are missing:{format_list(problems)}")

    samples = []
    for name, image in images.items():
        for sample_name in mask_names[name] if need_mask else [name]:
            mask, entry = masks.get(sample_name), manifest.get(sample_name, {})
            box = None if mask is None else recorded_box(mask, entry)
            samples.append(Sample(sample_name, image, mask, gts.get(name), box))
    _check_sizes(where, samples, skip_unreadable=not need_gt)
    return samples


def _list_files(what: str, folder: Path, extension: str, remedy: str) -> dict[str, Path]:
    try:
        return list_images(folder, extension=extension)
    except (DatasetError, MissingFileError) as error:
        raise DatasetError(f"{what}: {error}; {remedy}") from error


def images_of_masks(
    masks: Iterable[str], images: Collection[str], manifest: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Find the image of each mask: in the manifest, or the longest image name that the mask's name starts with.

    A mask ``a_b_c`` belongs to the image ``a_b_c``, ``a_b`` or ``a``, in this order. Masks without image are left out.
    """
    found = {}
    for mask in masks:
        parts = mask.split("_")
        candidates = [manifest.get(mask, {}).get("image")]
        candidates += ["_".join(parts[:end]) for end in range(len(parts), 0, -1)]
        image = next((name for name in candidates if name in images), None)
        if image is not None:
            found[mask] = image
    return found


def _missing_mask(dataset: CheckedDataset, name: str, objects: Sequence[str]) -> str:
    if not objects:
        other = _other_extension(dataset.mid_dir, name, dataset.mid_ext, "mid_ext")
        return f"no coarse mask in {dataset.mid_dir}{other}"
    return (
        f"found coarse masks of its objects, {', '.join(objects)}, but its ground truth belongs to one mask {name}: "
        "give each object an image and a ground truth of its own (--enrich does), make one mask of the whole image, "
        "or set gt_dir to '' (mode inference) to predict each object"
    )


def _other_extension(folder: Path, name: str, extension: str, key: str) -> str:
    """Return the end of a message: a file of this name that the extension of the entry leaves out."""
    if not extension:
        return ""
    found = sorted(path.name for path in folder.glob("*") if path.is_file() and path.stem == name)
    return f" that ends in {extension}, but there is {found[0]}: set {key} to ''" if found else ""


def _check_sizes(where: str, samples: Sequence[Sample], skip_unreadable: bool) -> None:
    undecided = []  # list.append is safe in threads

    def problem(sample: Sample) -> str | None:
        try:
            header = read_header(sample.image)
            for file in (sample.mask, sample.gt):
                if file is not None and (size := read_header(file).size) != header.size:
                    return size_mismatch(file, size, f"its image {sample.image.name}", header.size)
        except ImageError as error:
            return None if skip_unreadable else str(error)
        if header.turned_in_place:
            undecided.append(sample.image.name)
        return None

    with ThreadPoolExecutor() as pool:  # only headers are read, but there may be thousands of files on a network disk
        problems = [found for found in pool.map(problem, samples) if found]
    if problems:
        raise DatasetError(f"{where}: {len(problems)} samples cannot be used:{format_list(problems)}")
    names = sorted(set(undecided))
    if names and any(file is not None for file in (samples[0].mask, samples[0].gt)) and is_first(where, *names):
        logger.warning(
            "%s: %d images are turned by their EXIF orientation without a change of size (square, or by 180 degrees): "
            "%s; their masks and ground truths must be of the upright image, which sizes do not tell: see "
            "`dis-sam check` (doubtful orientation)",
            *(where, len(names), join_some(names, 5)),
        )
