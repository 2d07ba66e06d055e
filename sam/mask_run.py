"""Write the coarse masks of folders of images.

Reader threads decode images, the main thread runs the model, writer threads encode masks. The queues between them are
bounded, so that memory does not grow with the number of images. Every mask is written atomically and recorded in the
manifest, so that a run can be interrupted at any time and resumed by calling the function again.

Masks that this project did not write, or that have changed since, are someone's work: they are kept, unless the caller
asks to replace them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from IS_Net.bounded import BoundedQueue, map_bounded
from IS_Net.decoding import tell_once
from IS_Net.errors import DatasetError, ImageError, join_some
from IS_Net.files import remove_leftovers
from IS_Net.images import read_header, read_image, read_mask, size_mismatch, write_mask
from IS_Net.lock import lock_folder
from IS_Net.manifest import identify
from IS_Net.shards import merge_parts
from sam import enrich
from sam.backends.base import Select, StageOnePredictor
from sam.mask_folder import MaskFolder, State, is_about
from sam.mask_items import Item, check_files, check_folders, find_items, require_boxes
from sam.prompts import Prompt, prompt_from_mask

logger = logging.getLogger(__name__)

_MAX_LISTED = 20


@dataclass
class Summary:
    """What a run did.

    Attributes:
        written: Number of masks made in this run.
        kept: Number of masks of an earlier run, made from the same image and prompt by the same model.
        empty: Names of the masks that are all zero because their ground truths are empty; no model was run for them.
        removed: Names of the masks (of an enriched split, samples) of earlier runs that are no longer requested.
        by_hand: Names of the masks (of an enriched split, samples) that were kept although they are not those that were
            requested, because this project did not write them, or they have changed since.
        failed: The error of each image that failed, by its stem; all other images are done.
    """

    written: int = 0
    kept: int = 0
    empty: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.written} masks written, {self.kept} kept"]
        if self.empty:
            lines.append(f"all zero, because the ground truth is empty: {join_some(self.empty, _MAX_LISTED)}")
        if self.by_hand:
            lines.append(
                f"{len(self.by_hand)} kept as they are, because no run wrote them, or they were changed afterwards: "
                f"{join_some(self.by_hand, _MAX_LISTED)}; --overwrite replaces them"
            )
        if self.removed:
            lines.append(f"removed, because they are no longer requested: {join_some(self.removed, _MAX_LISTED)}")
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
    batch: int | None = None,
    overwrite: bool = False,
    check: bool = False,
) -> Summary:
    """Write the coarse masks of a folder of images: 8-bit PNG, 0 or 255, of the size of the image.

    Existing masks that were made from the same image and prompt by the same model are kept; the content of the files
    decides, not their times. Masks that an earlier run made of one of the images, and that are no longer requested, are
    removed. Masks that no run wrote, or that were changed afterwards, are kept and listed.

    Args:
        images: Folder of images.
        out: Folder of the masks and of their manifest (see :func:`IS_Net.manifest.read_manifest`).
        predictor: See :func:`sam.backends.load_predictor`.
        gt: Folder of ground truths with the names of the images. Their tight boxes are the prompts.
        prompts: Instead of ``gt``, a prompt file (see :func:`sam.prompts.read_prompts`) or the prompts themselves;
            images without a prompt are skipped.
        select: Which of SAM's three masks: ``score`` takes the one with the highest predicted IoU, ``first`` the first.
        workers: Number of reader threads, and of writer threads; None means one per core, at most 4.
        batch: How many images the model encodes together; None takes what it prefers on its device, 1 on a CPU.
        overwrite: Whether to replace also the masks that no run wrote, or that were changed afterwards.
        check: Whether to call :func:`sam.mask_items.check_files` first.

    Returns:
        What was done. An image that cannot be read is listed there and does not stop the others.

    Raises:
        MissingFileError: If a folder does not exist.
        DatasetError: If ground truths are missing (the message names all of them), ``out`` is a folder of inputs, or
            ``check`` finds files that cannot be used; nothing is written.
        FolderInUseError: If another process writes to ``out``.
        PromptError: If prompts are faulty, or have no box and the model takes boxes only; the message names all of
            them, and nothing is written.
        ImageError: If the folder of images is empty, or two images would have masks of the same name.
        ValueError: If neither ``gt`` nor ``prompts`` is given, or both are, or ``select`` is unknown.
    """
    items = find_items(images, gt, prompts)
    check_folders(images, gt, out)
    if predictor.box_only:
        require_boxes(items)
    if check:
        check_files([(images, gt)])
    return MaskRun(Path(out), predictor, select, overwrite, batch).make(items, workers)


def enrich_split(
    images: str | Path,
    gt: str | Path,
    out: str | Path,
    predictor: StageOnePredictor,
    *,
    select: Select = "score",
    workers: int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    check: bool = False,
) -> Summary:
    """Write an enriched split: each connected component of a ground truth becomes a sample, next to the whole.

    Writes ``out/{im,gt,mask}/NAME_comp_K``: K is 0 for the whole ground truth, 1 and up for its parts if more than one
    of them covers 0.4 % of the image (see :func:`sam.enrich.split_gt`). Images are linked, not copied. Samples whose
    image or part no longer exists are removed, unless one of their files was changed after it was written.

    Args:
        images: Folder of images.
        gt: Folder of ground truths with the names of the images.
        out: Folder of the enriched split. Keep nothing else in it.
        predictor: See :func:`sam.backends.load_predictor`.
        select: See :func:`generate_masks`.
        workers: See :func:`generate_masks`.
        batch: See :func:`generate_masks`.
        overwrite: Whether to replace also files of samples that were changed after they were written.
        check: See :func:`generate_masks`.

    Returns:
        What was done.

    Raises:
        MissingFileError: If a folder does not exist.
        DatasetError: If ground truths are missing, ``out`` contains the images or ground truths themselves, the
            enriched split of other images, or files that no run wrote, or ``check`` finds files that cannot be used.
        FolderInUseError: If another process writes to ``out``.
        ImageError: If the folder of images is empty, or two images would have masks of the same name.
        ValueError: If ``select`` is unknown.
    """
    out = Path(out)
    items = find_items(images, gt)
    check_folders(images, gt, out, enriched=True)
    if check:
        check_files([(images, gt)])
    return MaskRun(
        out / "mask", predictor, select, overwrite, batch, enriched=out, source=(Path(images), Path(gt))
    ).make(items, workers)


@dataclass
class Outcome:
    """What became of an image.

    Attributes:
        item: The image.
        seconds: How long the model and the writing took.
        written: Names of the masks that were made in this run.
        masks: Names of all its masks that exist then.
        error: Why the image failed, or None.
    """

    item: Item
    seconds: float = 0.0
    written: Sequence[str] = ()
    masks: Sequence[str] = ()
    error: str | None = None


class _Progress:
    """Counts the steps of the work on an image, and reports it after the last one.

    Args:
        outcome: Receives the time of the steps.
        report: Is called at the end; may be None.
    """

    def __init__(self, outcome: Outcome, report: Callable[[Outcome], None] | None) -> None:
        self.outcome, self.report = outcome, report
        self._unfinished = 1
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Add a step; the first one has begun."""
        with self._lock:
            self._unfinished += 1

    def end(self, seconds: float) -> None:
        """End a step that took so long."""
        with self._lock:
            self._unfinished -= 1
            self.outcome.seconds += seconds
            finished = not self._unfinished
        if finished and self.report is not None:
            self.report(self.outcome)


@dataclass(frozen=True)
class _Work:
    """What is to be done for an image."""

    prompts: Mapping[str, Prompt]
    """By mask name."""
    todo: Set[str]
    """The masks to make."""
    by_hand: Set[str]
    """The masks that differ from what is requested, and are kept."""
    common: Mapping[str, Any]
    """What the entries of its masks share."""
    parts: Mapping[str, Mapping[str, str]]
    """What identifies the ground truths of its samples that were written now, by mask name."""
    image: np.ndarray | None
    """None if there is nothing to make."""

    @property
    def needs_model(self) -> bool:
        """Whether a mask is to be made that is not empty by rule."""
        return any(not self.prompts[name].empty for name in self.todo)


class MaskRun:
    """One run over one folder of masks.

    Args:
        mask_dir: Folder of masks and manifest.
        predictor: The model.
        select: Which of its masks to take.
        overwrite: Whether to replace masks that are not as a run wrote them.
        batch: How many images the model encodes together; None takes what it prefers.
        enriched: The enriched split that the masks belong to, or None.
        source: The folders of images and ground truths that the enriched split is made from.
    """

    def __init__(
        self,
        mask_dir: Path,
        predictor: StageOnePredictor,
        select: Select,
        overwrite: bool,
        batch: int | None = None,
        enriched: Path | None = None,
        source: tuple[Path, Path] | None = None,
    ) -> None:
        if select not in get_args(Select):
            raise ValueError(f"unknown select {select!r}; expected one of {', '.join(get_args(Select))}")
        self.mask_dir, self.predictor, self.select, self.overwrite = mask_dir, predictor, select, overwrite
        self.batch = batch or predictor.images_per_batch
        self.enriched, self.source = enriched, source
        self.summary = Summary()

    def make(self, items: Sequence[Item], workers: int | None) -> Summary:
        """Make the masks that are missing, and remove those that are no longer requested."""
        with lock_folder(self.mask_dir, "a mask run"):
            merge_parts(self.mask_dir, "a mask run")
            self.prepare(items)
            return self.make_all(items, workers)

    def prepare(self, items: Sequence[Item], part: Path | None = None) -> None:
        """Read what is known of the masks; the folder's lock must be held.

        Args:
            items: The images.
            part: The folder of the worker, if this is one of several; see :class:`IS_Net.manifest.Manifest`.
        """
        for folder in [self.mask_dir] if self.enriched is None else [self.enriched / kind for kind in enrich.FOLDERS]:
            remove_leftovers(folder)
        self.part = part
        self.folder = MaskFolder(self.mask_dir, part, self.enriched)
        if self.enriched is not None:
            self.folder.claim(items, self.source)

    def make_all(
        self, items: Sequence[Item], workers: int | None, report: Callable[[Outcome], None] | None = None
    ) -> Summary:
        """Do the work of :meth:`make`, once the folder is this run's.

        Args:
            items: The images, or some of them.
            workers: See :func:`generate_masks`.
            report: Is called with what became of each image once its masks are written, one call at a time.
        """
        self.summary = Summary()
        workers = workers or min(4, os.cpu_count() or 1)
        samples: dict[str, str] = {}
        outdated: set[str] = set()
        by_hand: set[str] = set()
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
            writes = BoundedQueue(writers, 2 * workers)
            loads = map_bounded(readers, self.load, items, 2 * workers + self.batch - 1)
            loads = tqdm(loads, "masks", len(items), unit="image")
            for item, work, seconds in self.encode(zip(items, loads, strict=True), report):
                started = time.perf_counter()
                outcome = Outcome(item, seconds, written=sorted(work.todo), masks=sorted(work.prompts))
                progress = _Progress(outcome, report)
                for entry, mask in self.predict(work):
                    progress.begin()
                    writes.submit(self.save, entry, mask, progress)
                progress.end(time.perf_counter() - started)
                samples.update(dict.fromkeys(work.prompts, item.image.suffix))
                outdated |= {entry["mask"] for entry in self.folder.recorded(item.stem)}
                by_hand |= work.by_hand
                self.summary.empty += [name for name, prompt in work.prompts.items() if prompt.empty]
                self.summary.written += len(work.todo)
                self.summary.kept += len(work.prompts.keys() - work.todo - work.by_hand)
            writes.close()
        if self.part is not None:  # a worker does not know the others' masks, and leaves the removal to a whole run
            outdated.clear()
        elif self.enriched is not None:
            removed, kept = enrich.remove_stale(self.enriched, samples, self.summary.failed, self.folder.is_own)
            outdated |= removed
            by_hand |= kept
        for name in sorted(outdated - samples.keys() - by_hand):
            if self.folder.is_own(name):
                self.folder.drop(name)
                self.summary.removed.append(name)
            else:
                by_hand.add(name)
        self.summary.by_hand = sorted(by_hand)
        if self.part is None:
            self.folder.manifest.compact()
        return self.summary

    def encode(
        self, loads: Iterable[tuple[Item, Future[_Work]]], report: Callable[[Outcome], None] | None
    ) -> Iterator[tuple[Item, _Work, float]]:
        """Yield every image that can be read, while the model holds its encoding; note the others.

        Args:
            loads: The images, and what becomes their work.
            report: See :meth:`make_all`; is called for the others.

        Yields:
            An image, its work, and how many seconds the encoding took.
        """
        waiting: list[tuple[Item, _Work]] = []
        for item, load in loads:
            started = time.perf_counter()
            try:
                work = load.result()
            except (ValueError, FileNotFoundError) as error:
                self.fail(item, error, time.perf_counter() - started, report)
                continue
            if not work.needs_model:
                yield item, work, 0.0
                continue
            waiting.append((item, work))
            if len(waiting) == self.batch:
                yield from self.encode_together(waiting, report)
                waiting = []
        yield from self.encode_together(waiting, report)

    def encode_together(
        self, works: Sequence[tuple[Item, _Work]], report: Callable[[Outcome], None] | None
    ) -> Iterator[tuple[Item, _Work, float]]:
        """Encode images as one batch; yield as :meth:`encode` does."""
        started = time.perf_counter()
        encodings = None
        if len(works) > 1:
            try:
                encodings = self.predictor.encode([work.image for _, work in works])
            except ValueError:
                logger.debug("one of %d images cannot be encoded; they are encoded one by one", len(works))
        seconds = (time.perf_counter() - started) / max(1, len(works))
        for index, (item, work) in enumerate(works):
            started = time.perf_counter()
            try:
                if encodings is None:
                    self.predictor.set_image(work.image)
                else:
                    self.predictor.set_encoding(encodings[index])
            except ValueError as error:
                self.fail(item, error, seconds + time.perf_counter() - started, report)
                continue
            yield item, work, seconds + time.perf_counter() - started

    def fail(self, item: Item, error: Exception, seconds: float, report: Callable[[Outcome], None] | None) -> None:
        """Note that an image could not be worked on."""
        self.summary.failed[item.stem] = _with_path(error, item)
        if report is not None:
            report(Outcome(item, seconds, error=self.summary.failed[item.stem]))

    def load(self, item: Item) -> _Work:
        """Determine what is to be done for an image, and read it if necessary (in a reader thread)."""
        image, recorded = None, self.folder.recorded(item.stem)
        try:
            sources = identify(item.image, "image", recorded)
            if item.gt is not None:
                sources |= identify(item.gt, "gt", recorded)
        except OSError as error:
            raise ImageError(f"{error.filename}: cannot be read ({error.strerror})") from error
        parts: dict[str, dict[str, str]] = {}
        todo: set[str] = set()
        by_hand: set[str] = set()
        prompts = self.folder.recorded_prompts(item, sources) if item.prompts is None else item.prompts
        if prompts is None:
            image = read_image(item.image)
            prompts = self.prompts_from_gt(item, image, parts, by_hand)
        made_by = {
            "image": item.stem,
            "model": self.predictor.name,
            "checkpoint": self.predictor.checkpoint,
            "select": self.select if self.predictor.selects else None,
        }
        common = {"gt_fingerprint": None, **made_by, **sources, "num_masks": len(prompts)}
        for name, prompt in prompts.items():
            entry, state = self.folder.manifest.entries.get(name, {}), self.folder.state(name)
            current = _includes(entry, {**made_by, **prompt.record()}) and is_about(entry, "image", sources)
            if state is State.OTHER or (state is State.OLD and not current):
                (todo if self.overwrite else by_hand).add(name)
            elif state is State.FREE or not current:
                todo.add(name)
            else:
                now = {**common, **parts.get(name, {})}
                if state is State.OWN:
                    now |= identify(self.folder.file(name), "mask", [entry])
                if not _includes(entry, now):  # the times changed, or a ground truth whose box did not
                    self.folder.manifest.add({**entry, **now})
        if todo and image is None:
            image = read_image(item.image)
        return _Work(prompts, todo, by_hand, common, parts, image if todo else None)

    def prompts_from_gt(
        self, item: Item, image: np.ndarray, parts: dict[str, dict[str, str]], by_hand: set[str]
    ) -> dict[str, Prompt]:
        """Return the prompts of a ground truth; for an enriched split, write the samples that they belong to.

        Args:
            item: The image and its ground truth.
            image: The image's pixels.
            parts: Receives what identifies the ground truths of samples.
            by_hand: Receives the names of the samples whose images or ground truths were changed, and are kept.
        """
        gt = read_mask(item.gt)
        if gt.shape != image.shape[:2]:
            raise DatasetError(size_mismatch(item.gt, gt.shape, f"its image {item.image.name}", image.shape[:2]))
        if read_header(item.image).turned_in_place:
            note = "its EXIF orientation keeps its size; the ground truth must be of the upright image"
            tell_once(item.image, note)
        if self.enriched is None:
            return {item.stem: prompt_from_mask(item.stem, gt)}
        prompts = {}
        for number, part in enumerate(enrich.split_gt(gt)):
            name = enrich.sample_name(item.image, item.stem, number)
            path = enrich.gt_file(self.enriched, name)
            picture = enrich.image_file(self.enriched, name, item.image)
            if not (self.overwrite or enrich.is_same(item.image, picture) or self.folder.is_own_image(name, picture)):
                by_hand.add(name)
                continue
            if self.overwrite or self.folder.is_own_part(name):
                enrich.write_sample(self.enriched, name, item.image, part)
            else:
                kept = read_mask(path)
                enrich.write_sample(self.enriched, name, item.image, None)
                if not np.array_equal(kept, part):
                    by_hand.add(name)
                    continue
            parts[name] = identify(path, "part")
            prompts[name] = prompt_from_mask(item.stem, part, f"comp_{number}")
        return prompts

    def predict(self, work: _Work) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Yield manifest entry and mask of everything that is to be made for the image that is set."""
        todo = [name for name in work.prompts if name in work.todo]
        requested = {name: work.prompts[name] for name in todo if not work.prompts[name].empty}
        results = self.predictor.predict_prompts(list(requested.values()), self.select) if requested else iter(())
        for name in todo:
            mask, score = next(results) if name in requested else (np.zeros(work.image.shape[:2], dtype=bool), None)
            entry = {"mask": name, **work.common, **work.parts.get(name, {}), **work.prompts[name].record()}
            yield {**entry, "size": list(mask.shape), "score": score}, mask

    def save(self, entry: Mapping[str, Any], mask: np.ndarray, progress: _Progress) -> None:
        """Write a mask, then its manifest entry (in a writer thread)."""
        started = time.perf_counter()
        path = self.folder.file(entry["mask"])
        self.folder.begin(entry["mask"])
        write_mask(path, mask)
        self.folder.manifest.add({**entry, **identify(path, "mask")})
        progress.end(time.perf_counter() - started)


def _includes(entry: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(key in entry and entry[key] == value for key, value in values.items())


def _with_path(error: Exception, item: Item) -> str:
    """Return the message of an error, after the image if it does not name the file. Names are too short to tell."""
    is_named = any(path is not None and str(path) in str(error) for path in (item.image, item.gt))
    return str(error) if is_named else f"{item.image}: {error}"
