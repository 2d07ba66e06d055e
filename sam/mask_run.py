"""Write the coarse masks of folders of images.

Reader threads decode images, the main thread runs the model, writer threads encode masks. The queues between them are
bounded, so that memory does not grow with the number of images. Every mask is written atomically and recorded in the
manifest, so that a run can be interrupted at any time and resumed by calling the function again.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from IS_Net.bounded import BoundedQueue, map_bounded
from IS_Net.errors import DatasetError, PromptError
from IS_Net.images import list_images, read_image, read_mask, size_mismatch, write_mask
from IS_Net.manifest import Manifest, fingerprint
from sam import enrich
from sam.backends import NEEDS_SAM
from sam.backends.base import Select, StageOnePredictor
from sam.prompts import Prompt, check_prompts, prompt_from_mask, prompt_from_record, read_prompts

logger = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a run did.

    Attributes:
        written: Number of masks made in this run.
        kept: Number of masks of an earlier run, made from the same image and prompt by the same model.
        empty: Names of the masks that are all zero because their ground truths are empty; no model was run for them.
        removed: Names of the masks (of an enriched split, samples) of earlier runs that are no longer requested.
        failed: The error of each image that failed, by its stem; all other images are done.
    """

    written: int = 0
    kept: int = 0
    empty: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.written} masks written, {self.kept} kept"]
        if self.empty:
            lines.append(f"all zero, because the ground truth is empty: {', '.join(self.empty)}")
        if self.removed:
            lines.append(f"removed, because they are no longer requested: {', '.join(self.removed)}")
        lines += [f"failed: {message}" for message in self.failed.values()]
        return "\n".join(lines)


def generate_masks(
    images: str | Path,
    out: str | Path,
    predictor: StageOnePredictor,
    *,
    gt: str | Path | None = None,
    prompts: str | Path | Iterable[Prompt] | None = None,
    select: Select = "score",
    workers: int | None = None,
) -> Summary:
    """Write the coarse masks of a folder of images: 8-bit PNG, 0 or 255, of the size of the image.

    Existing masks that were made from the same image and prompt by the same model are kept. Masks that an earlier run
    made of one of the images, and that are no longer requested, are removed.

    Args:
        images: Folder of images.
        out: Folder of the masks and of their manifest (see :func:`IS_Net.manifest.read_manifest`). Only one run at a
            time may write to it.
        predictor: See :func:`sam.backends.load_predictor`.
        gt: Folder of ground truths with the names of the images. Their tight boxes are the prompts.
        prompts: Instead of ``gt``, a prompt file (see :func:`sam.prompts.read_prompts`) or the prompts themselves;
            images without a prompt are skipped.
        select: Which of SAM's three masks: ``score`` takes the one with the highest predicted IoU, ``first`` the first.
        workers: Number of reader threads, and of writer threads; None means one per core, at most 4.

    Returns:
        What was done. An image that cannot be read is listed there and does not stop the others.

    Raises:
        FileNotFoundError: If a folder does not exist.
        DatasetError: If ground truths are missing; the message names all of them, and nothing is written.
        PromptError: If prompts are faulty, or have no box and the model takes boxes only; the message names all of
            them, and nothing is written.
        ImageError: If the folder of images is empty, or two images would have masks of the same name.
        ValueError: If neither ``gt`` nor ``prompts`` is given, or both are, or ``select`` is unknown.
    """
    paths = list_images(images)
    if (gt is None) == (prompts is None):
        raise ValueError("expected either gt, a folder of ground truths, or prompts; found both or neither")
    if gt is not None:
        items = pair_with_gt(paths, gt)
        _warn_of_unused(paths, gt)
    else:
        found = read_prompts(prompts) if isinstance(prompts, str | Path) else prompts
        of_image: dict[str, dict[str, Prompt]] = defaultdict(dict)
        checked = check_prompts(found, paths)
        if predictor.box_only:
            _require_boxes(checked.values())
        for name, prompt in checked.items():
            of_image[prompt.name][name] = prompt
        items = [Item(stem, paths[stem], prompts=of_image[stem]) for stem in paths if stem in of_image]
        if len(items) < len(paths):
            logger.info("%d of %d images have no prompt and are skipped", len(paths) - len(items), len(paths))
    return _Run(Path(out), predictor, select).make(items, workers)


def enrich_split(
    images: str | Path,
    gt: str | Path,
    out: str | Path,
    predictor: StageOnePredictor,
    *,
    select: Select = "score",
    workers: int | None = None,
) -> Summary:
    """Write an enriched split: each connected component of a ground truth becomes a sample, next to the whole.

    Writes ``out/{im,gt,mask}/NAME_comp_K``: K is 0 for the whole ground truth, 1 and up for its parts if more than one
    of them covers 0.4 % of the image (see :func:`sam.enrich.split_gt`). Images are linked, not copied. Samples whose
    image or part no longer exists are removed.

    Args:
        images: Folder of images.
        gt: Folder of ground truths with the names of the images.
        out: Folder of the enriched split. Keep nothing else in it.
        predictor: See :func:`sam.backends.load_predictor`.
        select: See :func:`generate_masks`.
        workers: See :func:`generate_masks`.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: If a folder does not exist.
        DatasetError: If ground truths are missing, or ``out`` contains the images or ground truths themselves.
        ImageError: If the folder of images is empty, or two images would have masks of the same name.
        ValueError: If ``select`` is unknown.
    """
    out = Path(out)
    paths = list_images(images)
    items = pair_with_gt(paths, gt)
    _warn_of_unused(paths, gt)
    if any((out / kind).resolve() in (Path(images).resolve(), Path(gt).resolve()) for kind in ("im", "gt", "mask")):
        raise DatasetError(f"{out}: contains the images themselves; write the enriched split to another folder")
    return _Run(out / "mask", predictor, select, enriched=out).make(items, workers)


@dataclass(frozen=True)
class Item:
    """An image of a run, with its prompts by mask name, or with the ground truth that they are derived from."""

    stem: str
    image: Path
    gt: Path | None = None
    prompts: Mapping[str, Prompt] | None = None


def pair_with_gt(images: Mapping[str, Path], gt: str | Path) -> list[Item]:
    """Pair images with the ground truths of the same name.

    Args:
        images: Path of each image by its stem.
        gt: Folder of ground truths.

    Raises:
        FileNotFoundError: If the folder does not exist.
        DatasetError: If ground truths are missing; the message names all of them.
    """
    if not Path(gt).is_dir():
        raise FileNotFoundError(f"{gt}: the folder of ground truths does not exist; create it, or provide prompts")
    gts = list_images(gt)
    missing, unused = sorted(images.keys() - gts.keys()), sorted(gts.keys() - images.keys())
    if missing:
        hint = f"; ground truths without an image: {', '.join(unused)}" if unused else ""
        raise DatasetError(f"{gt}: no ground truth for the images {', '.join(missing)}; expected the same names{hint}")
    return [Item(stem, path, gt=gts[stem]) for stem, path in images.items()]


def _require_boxes(prompts: Iterable[Prompt]) -> None:
    without = [prompt.where or prompt.name for prompt in prompts if prompt.box is None and not prompt.empty]
    if without:
        raise PromptError(f"{NEEDS_SAM}; found no box at {', '.join(without)}")


def _warn_of_unused(images: Mapping[str, Path], gt: str | Path) -> None:
    unused = sorted(list_images(gt).keys() - images.keys())
    if unused:
        logger.warning("%s: no image for the ground truths %s; skipped", gt, ", ".join(unused))


@dataclass(frozen=True)
class _Work:
    """What is to be done for an image: its prompts by mask name, the masks to make, and what their entries share.

    The image is None if there is nothing to make.
    """

    prompts: Mapping[str, Prompt]
    todo: Sequence[str]
    common: Mapping[str, Any]
    image: np.ndarray | None


class _Run:
    """One run over one folder of masks.

    Args:
        mask_dir: Folder of masks and manifest.
        predictor: The model.
        select: Which of its masks to take.
        enriched: The enriched split that the masks belong to, or None.
    """

    def __init__(
        self, mask_dir: Path, predictor: StageOnePredictor, select: Select, enriched: Path | None = None
    ) -> None:
        if select not in get_args(Select):
            raise ValueError(f"unknown select {select!r}; expected one of {', '.join(get_args(Select))}")
        self.mask_dir, self.predictor, self.select, self.enriched = mask_dir, predictor, select, enriched
        for folder in [mask_dir] if enriched is None else [enriched / kind for kind in ("im", "gt", "mask")]:
            for part in folder.glob(".*.part"):  # from a run that was killed while it wrote
                part.unlink()
        self.manifest = Manifest(mask_dir)
        self.recorded: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.manifest.entries.values():
            self.recorded[entry.get("image", "")].append(entry)
        self.summary = Summary()

    def make(self, items: Sequence[Item], workers: int | None) -> Summary:
        """Make the masks that are missing, and remove those that are no longer requested."""
        workers = workers or min(4, os.cpu_count() or 1)
        samples: dict[str, str] = {}
        outdated: set[str] = set()
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
            writes = BoundedQueue(writers, 2 * workers)
            loads = map_bounded(readers, self.load, items, 2 * workers)
            for item, load in zip(items, tqdm(loads, "masks", len(items), unit="image"), strict=True):
                try:
                    work = load.result()
                    if any(not work.prompts[name].empty for name in work.todo):
                        self.predictor.set_image(work.image)
                except (ValueError, FileNotFoundError) as error:
                    self.summary.failed[item.stem] = _with_path(error, item.image)
                    continue
                for entry, mask in self.predict(work):
                    writes.submit(self.save, entry, mask)
                samples.update(dict.fromkeys(work.prompts, item.image.suffix))
                outdated |= {entry["mask"] for entry in self.recorded.get(item.stem, ())}
                self.summary.empty += [name for name, prompt in work.prompts.items() if prompt.empty]
                self.summary.written += len(work.todo)
                self.summary.kept += len(work.prompts) - len(work.todo)
            writes.close()
        if self.enriched is not None:
            outdated |= enrich.remove_stale(self.enriched, samples, self.summary.failed)
        self.summary.removed = sorted(outdated - samples.keys())
        for name in self.summary.removed:
            self.path(name).unlink(missing_ok=True)
            self.manifest.drop(name)
        self.manifest.compact()
        return self.summary

    def load(self, item: Item) -> _Work:
        """Determine what is to be done for an image, and read it if necessary (in a reader thread)."""
        image = None
        image_fingerprint = fingerprint(item.image)
        gt_fingerprint = None if item.gt is None else fingerprint(item.gt)
        prompts = (
            self.recorded_prompts(item, image_fingerprint, gt_fingerprint) if item.prompts is None else item.prompts
        )
        if prompts is None:
            image = read_image(item.image)
            prompts = self.prompts_from_gt(item, image)
        made_by = {
            "image": item.stem,
            "image_fingerprint": image_fingerprint,
            "model": self.predictor.name,
            "checkpoint": self.predictor.checkpoint,
            "select": self.select if self.predictor.selects else None,
        }
        common = {**made_by, "gt_fingerprint": gt_fingerprint, "num_masks": len(prompts)}
        todo = []
        for name, prompt in prompts.items():
            entry = self.manifest.entries.get(name, {})
            if not (_includes(entry, {**made_by, **prompt.record()}) and self.path(name).is_file()):
                todo.append(name)
            elif not _includes(entry, common):  # the ground truth changed, its box did not
                self.manifest.add({**entry, **common})
        if todo and image is None:
            image = read_image(item.image)
        return _Work(prompts, todo, common, image if todo else None)

    def recorded_prompts(
        self, item: Item, image_fingerprint: str, gt_fingerprint: str | None
    ) -> dict[str, Prompt] | None:
        """Return the prompts that the manifest holds for an image, or None if image or ground truth are new to it.

        Reading and splitting all ground truths would take most of the time of a run that has little left to do.
        """
        fingerprints = {"image_fingerprint": image_fingerprint, "gt_fingerprint": gt_fingerprint}
        entries = [entry for entry in self.recorded.get(item.stem, ()) if _includes(entry, fingerprints)]
        if not entries or len(entries) != entries[0].get("num_masks"):
            return None
        if self.enriched and not all(enrich.has_sample(self.enriched, e["mask"], item.image) for e in entries):
            return None
        return {entry["mask"]: prompt_from_record(item.stem, entry) for entry in entries}

    def prompts_from_gt(self, item: Item, image: np.ndarray) -> dict[str, Prompt]:
        """Return the prompts of a ground truth; for an enriched split, write the samples that they belong to."""
        gt = read_mask(item.gt)
        if gt.shape != image.shape[:2]:
            raise DatasetError(size_mismatch(item.gt, gt.shape, f"its image {item.image.name}", image.shape[:2]))
        if self.enriched is None:
            return {item.stem: prompt_from_mask(item.stem, gt)}
        prompts = {}
        for number, part in enumerate(enrich.split_gt(gt)):
            name = enrich.sample_name(item.stem, number)
            enrich.write_sample(self.enriched, name, item.image, part)
            prompts[name] = prompt_from_mask(item.stem, part, f"comp_{number}")
        return prompts

    def predict(self, work: _Work) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Yield manifest entry and mask of everything that is to be made for the image that is set."""
        requested = {name: work.prompts[name] for name in work.todo if not work.prompts[name].empty}
        results = self.predictor.predict_prompts(list(requested.values()), self.select) if requested else iter(())
        for name in work.todo:
            mask, score = next(results) if name in requested else (np.zeros(work.image.shape[:2], dtype=bool), None)
            entry = {"mask": name, **work.common, **work.prompts[name].record()}
            yield {**entry, "size": list(mask.shape), "score": score}, mask

    def save(self, entry: Mapping[str, Any], mask: np.ndarray) -> None:
        """Write a mask, then its manifest entry (in a writer thread)."""
        # The old entry is dropped first: if the run is killed in between, it must not describe the new mask.
        self.manifest.drop(entry["mask"])
        write_mask(self.path(entry["mask"]), mask)
        self.manifest.add(entry)

    def path(self, name: str) -> Path:
        """Return the file of a mask."""
        return self.mask_dir / f"{name}.png"


def _includes(entry: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(key in entry and entry[key] == value for key, value in values.items())


def _with_path(error: Exception, path: Path) -> str:
    return str(error) if path.stem in str(error) else f"{path}: {error}"
