"""The command that turns prompts into coarse masks on disk: ``python -m sam.generate_masks``, ``dis-sam masks``.

The library is :mod:`sam.mask_work`; this module imports it, and all that is heavy, only when there is work to do.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from IS_Net import shards
from IS_Net.allocator import reuse_freed_memory
from IS_Net.command_line import DONE, FAILED, positive_int, print_text, run_command
from sam.backends import BACKENDS, model_argument
from sam.backends.base import Select

if TYPE_CHECKING:
    from sam.backends.base import StageOnePredictor
    from sam.mask_work import MaskWork

logger = logging.getLogger(__name__)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dis-sam masks",
        description="Write the coarse masks that stage 2 refines. After an interruption, the same command resumes.",
    )
    data = parser.add_argument_group("data, either")
    data.add_argument(
        "--data",
        action="extend",
        type=Path,
        nargs="+",
        metavar="SPLIT",
        help="folders that contain im/ and gt/, such as data/DIS5K/DIS-VD; masks are written to SPLIT/mask",
    )
    data = parser.add_argument_group("or")
    data.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    data.add_argument("--out", type=Path, metavar="DIR", help="folder of the masks")
    data.add_argument("--gt", type=Path, metavar="DIR", help="folder of ground truths")
    data = parser.add_argument_group("or")
    data.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="list of images, .jsonl or .parquet, with the columns name, image, object, and gt or box, points, labels",
    )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="CSV (name,object,x0,y0,x1,y1) or JSON with boxes or points; default: tight boxes of the ground truths",
    )
    prompts.add_argument(
        "--enrich",
        action="store_true",
        help="write SPLIT-enriched/{im,gt,mask} (with --images: into --out) with the parts of each ground truth too",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default="vit_l",
        type=model_argument,
        metavar="NAME",
        help=f"{', '.join(BACKENDS)} (the filled boxes, without weights), or auto, the first of these whose weights "
        "are found; default: %(default)s",
    )
    model.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="the model's weights, a file or a folder; default: looked for by name. --model NAME=PATH says the same",
    )
    model.add_argument(
        "--batch",
        type=positive_int,
        metavar="N",
        help="number of images that the model encodes together; default: 1 on a CPU, several on a GPU",
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: %(default)s")
    model.add_argument(
        "--select",
        default="score",
        choices=get_args(Select),
        help="which of SAM's three masks: the one with the highest predicted IoU, or the first; default: %(default)s",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace masks that no run wrote, or that were changed by hand; by default, they are kept and named",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read all files first, as dis-sam check does, and do not start if some cannot be used; by default, the "
        "masks of the other images are made",
    )
    parser.add_argument("--workers", type=positive_int, metavar="N", help="number of reader and of writer threads")
    shards.add_options(parser)
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with exit code 2 if options contradict each other."""
    shards.check_options(parser, options)
    if sum(map(bool, (options.data, options.images, options.manifest))) != 1:
        parser.error("expected either --data, or --images and --out, or --manifest and --out")
    if options.manifest:
        if not options.out:
            parser.error("--manifest requires --out, the folder of the masks")
        if options.gt or options.prompts or options.enrich or options.check:
            parser.error("--gt, --prompts, --enrich and --check have no effect on --manifest; omit them")
    if options.model == "auto" and options.checkpoint:
        parser.error("--checkpoint requires a model; use --model NAME=PATH")
    if options.data and (options.gt or options.out):
        parser.error("--data implies the folders of ground truths and masks; use --gt and --out with --images")
    if options.images and not options.out:
        parser.error("--images requires --out, the folder of the masks")
    if options.images and bool(options.gt) == bool(options.prompts):
        parser.error("--images requires either --gt or --prompts")
    if options.prompts and (options.enrich or len(options.data or []) > 1):
        parser.error("--prompts requires a single folder of images, and excludes --enrich")


def _plan(options: argparse.Namespace) -> list[MaskWork]:
    """Find the images and check all that can be known before the model is loaded and the first mask is made."""
    from IS_Net.files import refuse_to_replace
    from IS_Net.lock import lock_folder
    from IS_Net.manifest import MANIFEST
    from IS_Net.shards import PATIENCE
    from sam.backends import available_model, find_checkpoint
    from sam.mask_items import check_files, check_folders, find_items, find_listed
    from sam.mask_work import MaskWork

    if options.model == "auto":
        options.model = available_model()
        weights = find_checkpoint(options.model)
        logger.info("stage 1: %s", f"SAM {options.model}, {weights}" if weights else f"filled boxes ({options.model})")
    load = partial(_load_model, options.model, options.checkpoint, options.device)
    how = {name: getattr(options, name) for name in ("select", "workers", "batch", "overwrite")}
    jobs = []
    for data in options.data or ():
        # the name of `..` is known once it is resolved; a link keeps its own name and place
        split = data.resolve() if data.name in ("", "..") else data.absolute()
        out = split.parent / f"{split.name}-enriched" if options.enrich else split / "mask"
        jobs.append((split / "im", split / "gt", out))
    if options.images:
        jobs = [(options.images, options.gt, options.out)]
    works = []
    for images, gt, out in jobs:
        items = find_items(images, None if options.prompts else gt, options.prompts)
        check_folders(images, gt, out, options.enrich)
        refuse_to_replace([out], [folder for job in jobs for folder in job[:2]])
        enriched = {"enriched": out, "source": (images, gt)} if options.enrich else {}
        works.append(MaskWork(items, out / "mask" if options.enrich else out, load, **how, **enriched))
    if options.manifest:
        items = find_listed(options.manifest)
        refuse_to_replace([options.out], {path.parent for item in items for path in (item.image, item.gt) if path})
        refuse_to_replace([options.out / name for name in (shards.ROWS, MANIFEST)], [options.manifest])
        works = [MaskWork(items, options.out, load, **how)]
    for work in works:
        with lock_folder(work.out, "a mask run", wait=PATIENCE if options.shard else False):
            pass
    if options.check:
        check_files((images, None if options.prompts else gt) for images, gt, _ in jobs)
    return works


def plan_work(argv: Sequence[str]) -> Sequence[shards.Work]:
    """Return the work of ``dis-sam masks`` with these arguments."""
    from sam.backends import find_checkpoint

    options = _read(argv)
    works = _plan(options)
    find_checkpoint(options.model, options.checkpoint)
    return works


def _load_model(model: str, checkpoint: Path | None, device: str) -> StageOnePredictor:
    from sam.backends import load_predictor

    reuse_freed_memory()
    return load_predictor(model, checkpoint, device)


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    return options


def _run(options: argparse.Namespace) -> int:
    works = _plan(options)
    if options.shard:
        return shards.run_shard(works, options.shard)
    code, predictor = DONE, works[0].load()
    for work in works:
        summary = work.make_all(predictor)
        print_text(f"{work.enriched or work.out}: {summary}")
        if summary.failed:
            code = FAILED
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None takes the process's own.

    Returns:
        0 if all masks exist, 1 if some images failed, 2 if the run could not start, 130 if it was interrupted.
    """
    options = _read(argv)
    return run_command(
        lambda: _run(options), "interrupted; all masks written so far are complete, and the same command resumes"
    )


if __name__ == "__main__":
    sys.exit(main())
