"""Turn prompts into coarse masks on disk: ``python -m sam.generate_masks --help``.

Reader threads decode images, the main thread runs the model, writer threads encode masks; what waits between them is
bounded, so that memory does not grow with the number of images. Every mask is written whole or not at all and noted
in a manifest, so that a run may stop anywhere and the next one goes on from there.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
from tqdm import tqdm

from IS_Net.errors import DeviceError
from IS_Net.images import list_images, read_image, read_mask, write_mask
from IS_Net.manifest import Manifest, fingerprint
from sam import enrich
from sam.backends import GRABCUT, SAM_MODELS, Predictor, Select, load_predictor
from sam.prompts import Prompt, check_prompts, prompt_from_mask, prompt_from_record, read_prompts

logger = logging.getLogger(__name__)

T, R = TypeVar("T"), TypeVar("R")


@dataclass
class Summary:
    """What a run did.

    Attributes:
        written: Masks made in this run.
        kept: Masks that stood already, made from the same image and prompt by the same model.
        empty: Masks that are all zero, for their ground truths hold no object; no model was asked.
        removed: Masks (of an enriched split, samples) that an earlier run made and that are no longer asked for.
        failed: What went wrong, by the stem of the image; all others are done.
    """

    written: int = 0
    kept: int = 0
    empty: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.written} masks written, {self.kept} kept"]
        if self.empty:
            lines.append(f"all zero, for the ground truth is empty: {', '.join(self.empty)}")
        if self.removed:
            lines.append(f"removed, for they are no longer asked for: {', '.join(self.removed)}")
        lines += [f"failed: {message}" for message in self.failed.values()]
        return "\n".join(lines)


def generate_masks(
    images: str | Path,
    out: str | Path,
    predictor: Predictor,
    *,
    gt: str | Path | None = None,
    prompts: str | Path | Iterable[Prompt] | None = None,
    select: Select = "score",
    workers: int | None = None,
) -> Summary:
    """Write the coarse masks of a folder of images: 8-bit PNG, 0 or 255, of the image's own size.

    Masks that stand already and were made from the same image and prompt by the same model are left alone. Those that
    an earlier run made of one of the images, and that are no longer asked for, are removed.

    Args:
        images: Folder of images.
        out: Folder of the masks, and of their manifest (see :func:`sam.prompts.read_manifest`). One run at a time.
        predictor: See :func:`sam.backends.load_predictor`.
        gt: Folder of ground truths named as the images, whose tight boxes are the prompts.
        prompts: Instead of ``gt``, a prompt file (see :func:`sam.prompts.read_prompts`) or the prompts themselves;
            images without one are left out.
        select: Which of SAM's three masks: ``score`` takes that of the highest predicted IoU, ``first`` the first.
        workers: Threads that read, and as many that write; None means one for each core, at most 4.

    Returns:
        What was done; an image that cannot be read is named there and does not stop the others.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If ground truths are missing or prompts faulty, all named at once, before anything is written.
    """
    paths = list_images(images)
    if (gt is None) == (prompts is None):
        raise ValueError("expected either gt, a folder of ground truths, or prompts, and not both")
    if gt is not None:
        items = _pair(paths, gt)
        _warn_of_unused(paths, gt)
    else:
        given = read_prompts(prompts) if isinstance(prompts, str | Path) else prompts
        of_image: dict[str, dict[str, Prompt]] = defaultdict(dict)
        for name, prompt in check_prompts(given, paths).items():
            of_image[prompt.name][name] = prompt
        items = [_Item(stem, paths[stem], prompts=of_image[stem]) for stem in paths if stem in of_image]
        if len(items) < len(paths):
            logger.info("%d of %d images have no prompt and are left out", len(paths) - len(items), len(paths))
    return _Run(Path(out), predictor, select).do(items, workers)


def enrich_split(
    images: str | Path,
    gt: str | Path,
    out: str | Path,
    predictor: Predictor,
    *,
    select: Select = "score",
    workers: int | None = None,
) -> Summary:
    """Write an enriched split: each part of a ground truth as a sample, beside the whole.

    ``out/{im,gt,mask}/NAME_comp_K``: K is 0 for the whole ground truth, 1 and up for its parts where there is more
    than one of 0.4 % of the image (see :func:`sam.enrich.split_gt`). Images are linked, not copied. Samples that are
    no longer in the data are removed.

    Args:
        images: Folder of images.
        gt: Folder of ground truths named as the images.
        out: Folder of the enriched split; nothing else should be kept there.
        predictor: See :func:`sam.backends.load_predictor`.
        select: As for :func:`generate_masks`.
        workers: As for :func:`generate_masks`.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If ground truths are missing, or ``out`` holds the images or ground truths themselves.
    """
    out = Path(out)
    paths = list_images(images)
    items = _pair(paths, gt)
    _warn_of_unused(paths, gt)
    if any((out / kind).resolve() in (Path(images).resolve(), Path(gt).resolve()) for kind in ("im", "gt", "mask")):
        raise ValueError(f"{out}: holds the images themselves; the enriched split needs a folder of its own")
    return _Run(out / "mask", predictor, select, enriched=out).do(items, workers)


@dataclass(frozen=True)
class _Item:
    """An image of the run, with its prompts by mask name, or the ground truth that they are to be taken from."""

    stem: str
    image: Path
    gt: Path | None = None
    prompts: Mapping[str, Prompt] | None = None


@dataclass(frozen=True)
class _Work:
    """An image's prompts by mask name, those of them whose masks are to be made, and what the manifest says of all.

    The image is None where there is nothing to make.
    """

    prompts: Mapping[str, Prompt]
    todo: Sequence[str]
    common: Mapping[str, Any]
    image: np.ndarray | None


def _pair(images: Mapping[str, Path], gt: str | Path) -> list[_Item]:
    if not Path(gt).is_dir():
        raise FileNotFoundError(
            f"{gt}: no such folder of ground truths; make it, or give prompts of your own (--prompts)"
        )
    gts = list_images(gt)
    missing, unused = sorted(images.keys() - gts.keys()), sorted(gts.keys() - images.keys())
    if missing:
        hint = f"; ground truths without image: {', '.join(unused)}" if unused else ""
        raise ValueError(f"{gt}: no ground truth for the images {', '.join(missing)}; expected one of each name{hint}")
    return [_Item(stem, path, gt=gts[stem]) for stem, path in images.items()]


def _warn_of_unused(images: Mapping[str, Path], gt: str | Path) -> None:
    unused = sorted(list_images(gt).keys() - images.keys())
    if unused:
        logger.warning("%s: no image for the ground truths %s; left out", gt, ", ".join(unused))


class _Run:
    """One run over one folder of masks.

    Args:
        mask_dir: Where masks and manifest go.
        predictor: The model.
        select: Which of its masks.
        enriched: The enriched split that the masks belong to, or None.
    """

    def __init__(self, mask_dir: Path, predictor: Predictor, select: Select, enriched: Path | None = None):
        if select not in get_args(Select):
            raise ValueError(f"unknown select {select!r}; expected one of {', '.join(get_args(Select))}")
        self.mask_dir, self.predictor, self.select, self.enriched = mask_dir, predictor, select, enriched
        for folder in [mask_dir] if enriched is None else [enriched / kind for kind in ("im", "gt", "mask")]:
            for part in folder.glob(".*.part"):  # left by a run that was killed while it wrote
                part.unlink()
        self.manifest = Manifest(mask_dir)
        self.recorded: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self.manifest.entries.values():
            self.recorded[entry.get("image", "")].append(entry)
        self.summary = Summary()

    def do(self, items: Sequence[_Item], workers: int | None) -> Summary:
        """Make the masks of all images that lack them."""
        workers = workers or min(4, os.cpu_count() or 1)
        samples: dict[str, str] = {}
        stale: set[str] = set()
        with ThreadPoolExecutor(workers) as readers, ThreadPoolExecutor(workers) as writers:
            writes: deque[Future[None]] = deque()
            loads = _ahead(readers, self.load, items, 2 * workers)
            for item, load in zip(items, tqdm(loads, "masks", len(items), unit="image"), strict=True):
                try:
                    work = load.result()
                    if any(not work.prompts[name].empty for name in work.todo):
                        self.predictor.set_image(work.image)
                except (ValueError, FileNotFoundError) as error:
                    self.summary.failed[item.stem] = _named(error, item.image)
                    continue
                for entry, mask in self.predict(work):
                    if len(writes) == 2 * workers:
                        writes.popleft().result()
                    writes.append(writers.submit(self.save, entry, mask))
                samples.update(dict.fromkeys(work.prompts, item.image.suffix))
                stale |= {entry["mask"] for entry in self.recorded.get(item.stem, ())}
                self.summary.empty += [name for name, prompt in work.prompts.items() if prompt.empty]
                self.summary.written += len(work.todo)
                self.summary.kept += len(work.prompts) - len(work.todo)
            while writes:
                writes.popleft().result()
        if self.enriched is not None:
            stale |= enrich.remove_stale(self.enriched, samples, self.summary.failed)
        self.summary.removed = sorted(stale - samples.keys())
        for name in self.summary.removed:
            self.path(name).unlink(missing_ok=True)
            self.manifest.drop(name)
        self.manifest.compact()
        return self.summary

    def load(self, item: _Item) -> _Work:
        """Find out what is to be done for an image, and read it where there is something (in a reader thread)."""
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
        common = {**made_by, "gt_fingerprint": gt_fingerprint, "of": len(prompts)}
        todo = []
        for name, prompt in prompts.items():
            entry = self.manifest.entries.get(name, {})
            if not (_holds(entry, {**made_by, **prompt.record()}) and self.path(name).is_file()):
                todo.append(name)
            elif not _holds(entry, common):  # another ground truth of the same box
                self.manifest.add({**entry, **common})
        if todo and image is None:
            image = read_image(item.image)
        return _Work(prompts, todo, common, image if todo else None)

    def recorded_prompts(
        self, item: _Item, image_fingerprint: str, gt_fingerprint: str | None
    ) -> dict[str, Prompt] | None:
        """Return the prompts that the manifest holds for image and ground truth, or None where either is new to it.

        Reading and splitting all ground truths would take most of the time of a run that has little left to do.
        """
        prints = {"image_fingerprint": image_fingerprint, "gt_fingerprint": gt_fingerprint}
        entries = [entry for entry in self.recorded.get(item.stem, ()) if _holds(entry, prints)]
        if not entries or len(entries) != entries[0].get("of"):
            return None
        if self.enriched and not all(enrich.has_sample(self.enriched, e["mask"], item.image) for e in entries):
            return None
        return {entry["mask"]: prompt_from_record(item.stem, entry) for entry in entries}

    def prompts_from_gt(self, item: _Item, image: np.ndarray) -> dict[str, Prompt]:
        """Return the prompts of a ground truth; for an enriched split, write the samples that they belong to."""
        gt = read_mask(item.gt)
        if gt.shape != image.shape[:2]:
            raise ValueError(
                f"{item.gt}: {gt.shape[1]} x {gt.shape[0]} pixels, but its image {item.image.name} has "
                f"{image.shape[1]} x {image.shape[0]}; both must be of one size, after their EXIF orientation"
            )
        if self.enriched is None:
            return {item.stem: prompt_from_mask(item.stem, gt)}
        prompts = {}
        for number, part in enumerate(enrich.split_gt(gt)):
            name = enrich.sample_name(item.stem, number)
            enrich.write_sample(self.enriched, name, item.image, part)
            prompts[name] = prompt_from_mask(item.stem, part, f"comp_{number}")
        return prompts

    def predict(self, work: _Work) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Yield manifest entry and mask for all that is to be done for the image that was set."""
        asked = {name: work.prompts[name] for name in work.todo if not work.prompts[name].empty}
        answers = self.predictor.predict_prompts(list(asked.values()), self.select) if asked else iter(())
        for name in work.todo:
            mask, score = next(answers) if name in asked else (np.zeros(work.image.shape[:2], dtype=bool), None)
            entry = {"mask": name, **work.common, **work.prompts[name].record()}
            yield {**entry, "size": list(mask.shape), "score": score}, mask

    def save(self, entry: Mapping[str, Any], mask: np.ndarray) -> None:
        """Write a mask, then what the manifest says of it (in a writer thread)."""
        # forgotten first: if the run is killed between the two, no entry must vouch for a mask it does not describe
        self.manifest.drop(entry["mask"])
        write_mask(self.path(entry["mask"]), mask)
        self.manifest.add(entry)

    def path(self, name: str) -> Path:
        """Return the file of a mask."""
        return self.mask_dir / f"{name}.png"


def _holds(entry: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(key in entry and entry[key] == value for key, value in wanted.items())


def _named(error: Exception, path: Path) -> str:
    return str(error) if path.stem in str(error) else f"{path}: {error}"


def _ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[Future[R]]:
    """Yield the future of each item in order, with at most ``ahead`` of them under way or waiting."""
    window: deque[Future[R]] = deque()
    for item in items:
        window.append(pool.submit(function, item))
        if len(window) == ahead:
            yield window.popleft()
    yield from window


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sam.generate_masks",
        description="Write the coarse masks that stage 2 refines. Run it again after an interruption: it goes on.",
    )
    where = parser.add_argument_group("data, either")
    where.add_argument(
        "--data",
        action="extend",
        type=Path,
        nargs="+",
        metavar="SPLIT",
        help="folders that hold im/ and gt/, such as data/DIS5K/DIS-VD; masks go to SPLIT/mask",
    )
    where = parser.add_argument_group("or")
    where.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    where.add_argument("--out", type=Path, metavar="DIR", help="folder for the masks")
    where.add_argument("--gt", type=Path, metavar="DIR", help="folder of ground truths")
    what = parser.add_argument_group("prompts")
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="CSV (name,object,x0,y0,x1,y1) or JSON of boxes or points; default: tight boxes of the ground truths",
    )
    what.add_argument(
        "--enrich",
        action="store_true",
        help="write SPLIT-enriched/{im,gt,mask} (or, with --images, under --out): the parts of each ground truth too",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="vit_l", choices=[*SAM_MODELS, GRABCUT], help="default: %(default)s")
    model.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="SAM's weights, if not where they are looked for"
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: %(default)s")
    model.add_argument(
        "--select",
        default="score",
        choices=get_args(Select),
        help="which of SAM's three masks: that of the highest predicted IoU, or the first; default: %(default)s",
    )
    parser.add_argument("--workers", type=_positive, metavar="N", help="reader threads, and as many writers")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def _run_all(options: argparse.Namespace) -> list[Summary]:
    if options.data:
        splits = [data.absolute() for data in options.data]
        jobs = [
            (d / "im", d / "gt", d.with_name(f"{d.name}-enriched") if options.enrich else d / "mask") for d in splits
        ]
    else:
        jobs = [(options.images, options.gt, options.out)]
    for images, gt, _ in jobs:  # a folder that is missing is told before the model is loaded and the others are done
        paths = list_images(images)
        if not options.prompts:
            _pair(paths, gt)

    settings = {
        "predictor": load_predictor(options.model, options.checkpoint, options.device),
        "select": options.select,
        "workers": options.workers,
    }
    summaries = []
    for images, gt, out in jobs:
        if options.enrich:
            summary = enrich_split(images, gt, out, **settings)
        elif options.prompts:
            summary = generate_masks(images, out, prompts=options.prompts, **settings)
        else:
            summary = generate_masks(images, out, gt=gt, **settings)
        print(f"{out}: {summary}")
        summaries.append(summary)
    return summaries


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 if all masks stand, 1 if some images failed, 2 if the run could not start, 130 if it was interrupted.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if bool(options.data) == bool(options.images):
        parser.error("expected either --data, or --images and --out")
    if options.data and (options.gt or options.out):
        parser.error("--data says where ground truths and masks are; --gt and --out go with --images")
    if options.images and not options.out:
        parser.error("--images needs --out, a folder for the masks")
    if options.images and bool(options.gt) == bool(options.prompts):
        parser.error("--images needs either --gt or --prompts")
    if options.prompts and (options.enrich or len(options.data or []) > 1):
        parser.error("--prompts goes with one folder of images, and without --enrich")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        summaries = _run_all(options)
    except (ValueError, OSError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the masks that stand are whole, and the same command goes on from here", file=sys.stderr)
        return 130
    return 1 if any(summary.failed for summary in summaries) else 0


if __name__ == "__main__":
    sys.exit(main())
