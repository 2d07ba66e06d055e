"""The files of a data set: found, paired by name, and checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from IS_Net.errors import DatasetError, ImageError
from IS_Net.images import IMAGE_EXTENSIONS, image_size
from IS_Net.manifest import read_manifest
from IS_Net.paths import resolve
from IS_Net.preprocess import Box

Size = tuple[int, int]
_ALIASES = {"mask_dir": "mid_dir", "mask_ext": "mid_ext"}
_KEYS = ("name", "im_dir", "gt_dir", "mid_dir", "im_ext", "gt_ext", "mid_ext", "cache_dir")
_SHOWN = 20  # how many offenders a message names


@dataclass(frozen=True)
class Sample:
    """One pair (or triple) of files: an image, its coarse mask and its ground truth."""

    name: str
    image: Path
    mask: Path | None
    gt: Path | None
    box: Box | None
    """The prompt that the mask came from, xyxy in pixels, where stage 1 noted one."""


def format_list(items: Sequence[str]) -> str:
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
        raise DatasetError(f"{where}: {len(problems)} files are missing:{format_list(problems)}{hint}")

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
            f"{where}: {len(problems)} files cannot be used (sizes must agree, upright by EXIF):{format_list(problems)}"
        )
