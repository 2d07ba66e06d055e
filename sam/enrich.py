"""GT enrichment: the parts of an object that do not touch become samples of their own, beside the whole."""

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
"""Parts that cover less than this share of the image are no samples of their own."""

_SAMPLE = re.compile(r"(?P<stem>.+)_comp_\d+", re.DOTALL)


def split_gt(gt: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the ground truths of an image's samples: the whole, then each part where there is more than one.

    Args:
        gt: (H, W) uint8, 0..255. Parts are the 8-connected components of ``gt >= 128``.

    Yields:
        (H, W) uint8: the values of ``gt`` on the part, 0 elsewhere.
    """
    yield gt
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((gt >= 128).astype(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= SMALLEST_PART * gt.size
    large[0] = False  # the background
    if large.sum() > 1:
        for label in np.flatnonzero(large):
            yield np.where(labels == label, gt, np.uint8(0))


def sample_name(stem: str, number: int) -> str:
    """Return the name of an image's sample: 0 is the whole, 1 and up are its parts."""
    return f"{stem}_comp_{number}"


def write_sample(split: Path, name: str, image: Path, gt: np.ndarray) -> None:
    """Write image and ground truth of one sample, the image without copying its bytes where that can be done."""
    write_mask(split / "gt" / f"{name}.png", gt)
    link_file(image, split / "im" / f"{name}{image.suffix}")


def has_sample(split: Path, name: str, image: Path) -> bool:
    """Return whether image and ground truth of a sample stand where :func:`write_sample` puts them."""
    return (split / "gt" / f"{name}.png").is_file() and _is_same(image, split / "im" / f"{name}{image.suffix}")


def link_file(source: Path, link: Path) -> None:
    """Make a file appear under a second name: as a relative link, a hard link, or a copy, the first that works.

    The file system decides: some have no links, and hard links do not reach across disks.
    """
    if _is_same(source, link):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    source = source.resolve()
    try:
        # relative, so that the data can be moved as a whole
        link.symlink_to(os.path.relpath(source, link.parent.resolve()))
    except (OSError, NotImplementedError, ValueError):
        try:
            link.hardlink_to(source)
        except (OSError, NotImplementedError):
            part = link.with_name(f".{link.name}.part")
            shutil.copy2(source, part)
            part.replace(link)


def _is_same(source: Path, link: Path) -> bool:
    """Return whether ``link`` leads to ``source``, or is an unchanged copy of it."""
    if not link.exists():
        return False
    if link.samefile(source):
        return True
    a, b = link.stat(), source.stat()
    return not link.is_symlink() and (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


def remove_stale(split: Path, samples: Mapping[str, str], spared: Container[str]) -> set[str]:
    """Remove the files of samples that are no longer there: of an image or a part that is gone.

    Args:
        split: The enriched split; only files called ``NAME_comp_K`` in its im, gt and mask folders are looked at.
        samples: The ending of the image file by sample name, for all samples that are there.
        spared: Stems of images whose samples are not known, for they could not be read; nothing of theirs is removed.

    Returns:
        The names of the samples of which something was removed.
    """
    removed = set()
    for kind in ("im", "gt", "mask"):
        for path in sorted((split / kind).glob("*_comp_*")):
            match = _SAMPLE.fullmatch(path.stem)
            if match is None or match["stem"] in spared:
                continue
            wanted = path.stem in samples and path.suffix == (samples[path.stem] if kind == "im" else ".png")
            if not wanted:
                path.unlink()
                removed.add(path.stem)
    return removed
