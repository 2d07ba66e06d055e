"""The images of a run of stage 1, with the prompts or ground truths that their masks are made from."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from IS_Net.doctor import require_usable
from IS_Net.errors import DatasetError, MissingFileError, PromptError
from IS_Net.files import refuse_to_replace
from IS_Net.images import list_images
from IS_Net.listing import Entry, read_listing
from sam.backends import NEEDS_SAM
from sam.enrich import FOLDERS
from sam.prompts import Prompt, check_prompts, prompt_from_record, read_prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """An image of a run, with its prompts by mask name, or with the ground truth that they are derived from."""

    stem: str
    image: Path
    gt: Path | None = None
    prompts: Mapping[str, Prompt] | None = None


def find_items(
    images: str | Path, gt: str | Path | None = None, prompts: str | Path | Iterable[Prompt] | None = None
) -> list[Item]:
    """Return the images of a run; the arguments and errors are those of :func:`sam.mask_run.generate_masks`."""
    paths = list_images(images)
    if (gt is None) == (prompts is None):
        raise ValueError("expected either gt, a folder of ground truths, or prompts; found both or neither")
    if gt is not None:
        items = pair_with_gt(paths, gt)
        _warn_of_unused(paths, gt)
        return items
    found = read_prompts(prompts) if isinstance(prompts, str | Path) else prompts
    of_image = _by_image(found, paths)
    if len(of_image) < len(paths):
        logger.info("%d of %d images have no prompt and are skipped", len(paths) - len(of_image), len(paths))
    return [Item(stem, paths[stem], prompts=of_image[stem]) for stem in paths if stem in of_image]


def find_listed(path: str | Path) -> list[Item]:
    """Return the images of a list (see :func:`IS_Net.listing.read_listing`) with their prompts or ground truths.

    Rows with a box or points are prompts. The tight box of the ground truth is the prompt of an image that has a single
    row without them.

    Raises:
        DatasetError: If the list is faulty, or says two things about an image.
        PromptError: If prompts are faulty, or two of them would write the same mask.
    """
    rows: dict[str, list[Entry]] = defaultdict(list)
    for entry in read_listing(path):
        rows[entry.name].append(entry)
    images, gts, prompts = {}, {}, []
    for name, entries in rows.items():
        first = entries[0]
        if "/" in name:
            raise DatasetError(f"{first.where}: 'name': becomes the name of a mask and cannot be {name!r}")
        if any(entry.image != first.image for entry in entries):
            raise DatasetError(f"{first.where}: the name {name!r} is that of several images")
        images[name] = first.image
        if not first.prompt and first.gt is not None and len(entries) == 1:
            gts[name] = first.gt
            continue
        prompts += [prompt_from_record(name, {**e.prompt, "object": e.object}, e.where) for e in entries]
    if without := next((prompt for prompt in prompts if prompt.empty), None):
        if (count := len(rows[without.name])) > 1:
            raise PromptError(
                f"{without.where}: {without.name!r} has {count} rows, and this one has no prompt; expected 'box', or "
                "'points' and 'labels', in each ('gt' replaces them where an image has one row)"
            )
        raise PromptError(f"{without.where}: expected 'box', 'points' and 'labels', or 'gt', found none")
    of_image = _by_image(prompts, images)  # all together: a mask must not have the name of another image's
    return [Item(name, path, gts.get(name), of_image.get(name)) for name, path in images.items()]


def _by_image(prompts: Iterable[Prompt], images: Mapping[str, Path]) -> dict[str, dict[str, Prompt]]:
    """Check prompts (:func:`sam.prompts.check_prompts`), and return those of each image by mask name."""
    of_image: dict[str, dict[str, Prompt]] = defaultdict(dict)
    for name, prompt in check_prompts(prompts, images).items():
        of_image[prompt.name][name] = prompt
    return of_image


def pair_with_gt(images: Mapping[str, Path], gt: str | Path) -> list[Item]:
    """Pair images with the ground truths of the same name.

    Args:
        images: Path of each image by its stem.
        gt: Folder of ground truths.

    Raises:
        MissingFileError: If the folder does not exist.
        DatasetError: If ground truths are missing; the message names all of them.
    """
    if not Path(gt).is_dir():
        raise MissingFileError(f"{gt}: the folder of ground truths does not exist; create it, or provide prompts")
    gts = list_images(gt)
    missing, unused = sorted(images.keys() - gts.keys()), sorted(gts.keys() - images.keys())
    if missing:
        hint = f"; ground truths without an image: {', '.join(unused)}" if unused else ""
        raise DatasetError(f"{gt}: no ground truth for the images {', '.join(missing)}; expected the same names{hint}")
    return [Item(stem, path, gt=gts[stem]) for stem, path in images.items()]


def _warn_of_unused(images: Mapping[str, Path], gt: str | Path) -> None:
    unused = sorted(list_images(gt).keys() - images.keys())
    if unused:
        logger.warning("%s: no image for the ground truths %s; skipped", gt, ", ".join(unused))


def check_folders(images: str | Path, gt: str | Path | None, out: str | Path, enriched: bool = False) -> None:
    """Refuse a folder of masks, or an enriched split, in which inputs would be replaced.

    Args:
        images: Folder of images.
        gt: Folder of ground truths, or None.
        out: Folder of masks, or with ``enriched`` that of the enriched split.
        enriched: See ``out``.

    Raises:
        DatasetError: If ``out``, or a folder in it that is written to, is one of the other folders.
    """
    try:
        refuse_to_replace([out, *(Path(out) / kind for kind in FOLDERS)] if enriched else [out], [images, gt])
    except DatasetError as error:
        if enriched:
            raise DatasetError(f"{error}: write the enriched split to another folder") from error
        raise


def check_files(sources: Iterable[tuple[str | Path, str | Path | None]]) -> None:
    """Read all files that masks are to be made from, as ``dis-sam check`` does; log what is doubtful.

    Args:
        sources: Folders of images, each with its folder of ground truths or None.

    Raises:
        DatasetError: If files cannot be used; the message names them.
    """
    folders = [(Path(images).absolute(), Path(gt).absolute() if gt else "") for images, gt in sources]
    require_usable([], [{"name": str(im), "im_dir": str(im), "gt_dir": str(gt)} for im, gt in folders])


def require_boxes(items: Iterable[Item]) -> None:
    """Refuse prompts without a box, for a model that takes boxes only.

    Raises:
        PromptError: If there are such prompts; the message names all of them.
    """
    prompts = (prompt for item in items for prompt in (item.prompts or {}).values())
    without = [prompt.where or prompt.name for prompt in prompts if prompt.box is None and not prompt.empty]
    if without:
        raise PromptError(f"{NEEDS_SAM}; found no box at {', '.join(without)}")
