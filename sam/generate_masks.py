"""The command that turns prompts into coarse masks on disk: ``python -m sam.generate_masks``, ``dis-sam masks``.

The library is :mod:`sam.mask_run`; this module imports it, and all that is heavy, only when there is work to do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from IS_Net.command_line import DONE, FAILED, positive_int, print_text, run_command
from sam.backends import BACKENDS
from sam.backends.base import Select


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
        choices=list(BACKENDS),
        help="SAM, or box: the filled boxes, without weights; default: %(default)s",
    )
    model.add_argument("--checkpoint", type=Path, metavar="FILE", help="SAM's weights; default: looked for by name")
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
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with exit code 2 if options contradict each other."""
    if bool(options.data) == bool(options.images):
        parser.error("expected either --data, or --images and --out")
    if options.data and (options.gt or options.out):
        parser.error("--data implies the folders of ground truths and masks; use --gt and --out with --images")
    if options.images and not options.out:
        parser.error("--images requires --out, the folder of the masks")
    if options.images and bool(options.gt) == bool(options.prompts):
        parser.error("--images requires either --gt or --prompts")
    if options.prompts and (options.enrich or len(options.data or []) > 1):
        parser.error("--prompts requires a single folder of images, and excludes --enrich")


def _run(options: argparse.Namespace) -> int:
    from IS_Net.files import refuse_to_replace
    from IS_Net.images import list_images
    from IS_Net.lock import lock_folder
    from sam.backends import load_predictor
    from sam.mask_run import check_files, check_folders, enrich_split, generate_masks, pair_with_gt
    from sam.prompts import check_prompts, read_prompts

    if options.data:
        jobs = []
        for data in options.data:
            # the name of `..` is known once it is resolved; a link keeps its own name and place
            split = data.resolve() if data.name in ("", "..") else data.absolute()
            out = split.parent / f"{split.name}-enriched" if options.enrich else split / "mask"
            jobs.append((split / "im", split / "gt", out))
    else:
        jobs = [(options.images, options.gt, options.out)]
    # whatever can be found out is reported before the model is loaded and the first split is made
    for images, gt, out in jobs:
        paths = list_images(images)
        if options.prompts:
            check_prompts(read_prompts(options.prompts), paths)
        else:
            pair_with_gt(paths, gt)
        check_folders(images, gt, out, options.enrich)
        refuse_to_replace([out], [folder for job in jobs for folder in job[:2]])
    for _, _, out in jobs:
        with lock_folder(out / "mask" if options.enrich else out, "a mask run"):
            pass
    if options.check:
        check_files(job[:2] for job in jobs)

    settings = {
        "predictor": load_predictor(options.model, options.checkpoint, options.device),
        "select": options.select,
        "workers": options.workers,
        "overwrite": options.overwrite,
    }
    code = DONE
    for images, gt, out in jobs:
        if options.enrich:
            summary = enrich_split(images, gt, out, **settings)
        elif options.prompts:
            summary = generate_masks(images, out, prompts=options.prompts, **settings)
        else:
            summary = generate_masks(images, out, gt=gt, **settings)
        print_text(f"{out}: {summary}")
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
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    return run_command(
        lambda: _run(options), "interrupted; all masks written so far are complete, and the same command resumes"
    )


if __name__ == "__main__":
    sys.exit(main())
