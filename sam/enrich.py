"""GT enrichment: the connected components of a ground truth become samples of their own, next to the whole.

The DIS-SAM paper trains on such samples; :func:`split_gt` holds the rule.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from IS_Net.images import write_mask

SMALLEST_PART = 0.004
"""Parts that cover less than this fraction of the image do not become samples."""

_SAMPLE = re.compile(r"(?P<stem>.+)_comp_\d+", re.DOTALL)


def split_gt(gt: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the ground truths of an image's samples: the whole, then each part if there is more than one.

    Args:
        gt: (H, W) uint8, 0..255. Parts are the 8-connected components of ``gt >= 128``.

    Yields:
        (H, W) uint8: the values of ``gt`` inside the part, 0 elsewhere.
    """
    yield gt
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((gt >= 128).astype(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= SMALLEST_PART * gt.size
    large[0] = False  # the background
    if large.sum() > 1:
        for label in np.flatnonzero(large):
            yield np.where(labels == label, gt, np.uint8(0))


def sample_name(stem: str, number: int) -> str:
    """Return the name of an image's sample: number 0 is the whole, 1 and up are its parts."""
    return f"{stem}_comp_{number}"


def write_sample(split: Path, name: str, image: Path, gt: np.ndarray) -> None:
    """Write image and ground truth of one sample; the image is linked if the file system can do that."""
    write_mask(split / "gt" / f"{name}.png", gt)
    link_file(image, split / "im" / f"{name}{image.suffix}")


def has_sample(split: Path, name: str, image: Path) -> bool:
    """Return whether image and ground truth of a sample exist where :func:`write_sample` writes them."""
    return (split / "gt" / f"{name}.png").is_file() and _is_same(image, split / "im" / f"{name}{image.suffix}")


def link_file(source: Path, link: Path) -> None:
    """Give a file a second name: a relative symbolic link, else a hard link, else a copy.

    Which of them works depends on the file system: some have no links, and hard links need a common disk.
    """
    if _is_same(source, link):
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
            part = link.with_name(f".{link.name}.part")
            shutil.copy2(source, part)
            part.replace(link)


def _is_same(source: Path, link: Path) -> bool:
    """Return whether ``link`` points to ``source``, or is an unchanged copy of it."""
    if not link.exists():
        return False
    if link.samefile(source):
        return True
    a, b = link.stat(), source.stat()
    return not link.is_symlink() and (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


def remove_stale(split: Path, samples: Mapping[str, str], unreadable: Container[str]) -> set[str]:
    """Remove the files of samples whose image or part no longer exists.

    Args:
        split: The enriched split. Only files named ``NAME_comp_K`` in its im, gt and mask folders are considered.
        samples: The extension of the image file of each sample that exists, by the sample's name.
        unreadable: Stems of images that could not be read. Their samples are unknown, so none of them is removed.

    Returns:
        The names of the samples of which a file was removed.
    """
    removed = set()
    for kind in ("im", "gt", "mask"):
        for path in sorted((split / kind).glob("*_comp_*")):
            match = _SAMPLE.fullmatch(path.stem)
            if match is None or match["stem"] in unreadable:
                continue
            expected = path.stem in samples and path.suffix == (samples[path.stem] if kind == "im" else ".png")
            if not expected:
                path.unlink()
                removed.add(path.stem)
    return removed
