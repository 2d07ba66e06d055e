"""GT enrichment: the connected components of a ground truth become samples of their own, next to the whole.

The DIS-SAM paper trains on such samples; :func:`split_gt` holds the rule.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from IS_Net.errors import DatasetError
from IS_Net.files import LONGEST_NAME, atomic_file
from IS_Net.images import binarize, write_mask

SMALLEST_PART = 0.004
"""Parts that cover less than this fraction of the image do not become samples."""

FOLDERS = ("im", "gt", "mask")
"""The folders of an enriched split, each with a file of every sample."""

_SAMPLE = re.compile(r"(?P<stem>.+)_comp_\d+", re.DOTALL)


def split_gt(gt: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the ground truths of an image's samples: the whole, then each part if there is more than one.

    Args:
        gt: (H, W) uint8, 0..255. Parts are the 8-connected components of the target (:func:`IS_Net.images.binarize`).
            The published code also counts the value 128, which no metric does: such a part would have no target.

    Yields:
        (H, W) uint8: the values of ``gt`` inside the part, 0 elsewhere.
    """
    yield gt
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(binarize(gt).astype(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= SMALLEST_PART * gt.size
    large[0] = False  # the background
    if large.sum() > 1:
        for label in np.flatnonzero(large):
            yield np.where(labels == label, gt, np.uint8(0))


def sample_name(image: Path, stem: str, number: int) -> str:
    """Return the name of an image's sample: number 0 is the whole, 1 and up are its parts.

    Raises:
        DatasetError: If its files would have names that are too long for the usual file systems.
    """
    name = f"{stem}_comp_{number}"
    excess = max(len(os.fsencode(f"{name}{suffix}")) for suffix in (image.suffix, ".png")) - LONGEST_NAME
    if excess > 0:
        raise DatasetError(
            f"{image}: the names of its enriched samples would be {excess} bytes too long for a file; shorten the name "
            "of the image and of its ground truth"
        )
    return name


def image_file(split: Path, name: str, image: Path) -> Path:
    """Return the file that gives a sample its image."""
    return split / "im" / f"{name}{image.suffix}"


def gt_file(split: Path, name: str) -> Path:
    """Return the file of a sample's ground truth."""
    return split / "gt" / f"{name}.png"


def write_sample(split: Path, name: str, image: Path, gt: np.ndarray | None) -> None:
    """Write image and ground truth of one sample; the image is linked if the file system can do that.

    Args:
        split: The enriched split.
        name: The sample's name.
        image: The file of the image.
        gt: (H, W) uint8; None leaves the file as it is.
    """
    if gt is not None:
        write_mask(gt_file(split, name), gt)
    link_file(image, image_file(split, name, image))


def has_sample(split: Path, name: str, image: Path) -> bool:
    """Return whether image and ground truth of a sample exist, not empty, where :func:`write_sample` writes them."""
    gt = gt_file(split, name)
    return gt.is_file() and gt.stat().st_size > 0 and is_same(image, image_file(split, name, image))


def require_own_files(split: Path, stems: Container[str]) -> None:
    """Refuse a folder that holds files that the samples of an enriched split would replace.

    Raises:
        DatasetError: If there are files named ``NAME_comp_K`` of one of the stems in im, gt or mask.
    """
    for kind in FOLDERS:
        for path in sorted((split / kind).glob("*_comp_*")):
            match = _SAMPLE.fullmatch(path.stem)
            if match and match["stem"] in stems:
                raise DatasetError(
                    f"{path}: exists, and the enriched split would replace it, though no run recorded that it made it; "
                    "write the split to another folder, or move the file"
                )


def link_file(source: Path, link: Path) -> None:
    """Give a file a second name: a relative symbolic link, else a hard link, else a copy.

    Which of them works depends on the file system: some have no links, and hard links need a common disk.
    """
    if is_same(source, link):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    source = source.resolve()
    try:
        # relative, so that both splits can be moved together
        link.symlink_to(os.path.relpath(source, link.parent.resolve()))
    except (OSError, NotImplementedError, ValueError):
        try:
            link.hardlink_to(source)
        except (OSError, NotImplementedError):
            with source.open("rb") as original, atomic_file(link) as copy:
                shutil.copyfileobj(original, copy)
            shutil.copystat(source, link)


def is_same(source: Path, link: Path) -> bool:
    """Return whether ``link`` points to ``source``, or is an unchanged copy of it."""
    return link.exists() and (link.samefile(source) or (not link.is_symlink() and filecmp.cmp(source, link)))


def remove_stale(
    split: Path, samples: Mapping[str, str], unreadable: Container[str], is_own: Callable[[str, Sequence[Path]], bool]
) -> tuple[set[str], set[str]]:
    """Remove the files of samples whose image or part no longer exists.

    Args:
        split: The enriched split. Only files named ``NAME_comp_K`` in its im, gt and mask folders are considered.
        samples: The extension of the image file of each sample that exists, by the sample's name.
        unreadable: Stems of images that could not be read. Their samples are unknown, so none of them is removed.
        is_own: Returns whether the files of a sample, given its name and its outdated image files, are as this project
            wrote them. It does not know ground truths and masks that are not PNG files: no run writes those.

    Returns:
        The names of the samples of which a file was removed, and of those that were kept because they are not as this
        project wrote them.
    """
    stale: dict[str, list[Path]] = defaultdict(list)
    for kind in FOLDERS:
        for path in sorted((split / kind).glob("*_comp_*")):
            match = _SAMPLE.fullmatch(path.stem)
            if match is None or match["stem"] in unreadable:
                continue
            expected = path.stem in samples and path.suffix == (samples[path.stem] if kind == "im" else ".png")
            if not expected:
                stale[path.stem].append(path)
    removed, kept = set(), set()
    for name, paths in stale.items():
        foreign = any(path.parent.name != "im" and path.suffix != ".png" for path in paths)
        if not foreign and is_own(name, [path for path in paths if path.parent.name == "im"]):
            for path in paths:
                path.unlink()
            removed.add(name)
        else:
            kept.add(name)
    return removed, kept
