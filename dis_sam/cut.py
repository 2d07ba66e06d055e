"""The commands ``dis-sam cut`` and ``dis-sam refine``: photographs, folders and annotation files.

The library is :mod:`dis_sam.batch`; this module imports it, and all that is heavy, only when there is work to do.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dis_sam.arguments import STANDARD, add_model, add_prompts, check_prompts, numbers, parse, prompts_of
from IS_Net import shards
from IS_Net.command_line import DONE, FAILED, positive_int, print_error, print_text, run_command
from IS_Net.files import refuse_to_replace

if TYPE_CHECKING:
    from dis_sam.batch import Options, Outcome, Summary
    from dis_sam.formats.annotation import Refiner
    from dis_sam.formats.annotation import Summary as AnnotationSummary
    from dis_sam.inputs import Source, Task
    from dis_sam.model_choice import ModelChoice

    Plan = Callable[[argparse.Namespace], tuple[list[Task], list[str]]]

_TAR = ".tar"
_EXIT_CODES = "exit codes: 0 done; 1 some items failed, each named; 2 could not start; 130 interrupted; 143 terminated"
_INTERRUPTED = "interrupted; all files written so far are complete, and the same command resumes"


def _fraction(text: str) -> float:
    [value] = numbers(text, (1,), "a number of at least 0 and less than 1")
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0 and less than 1, found {text!r}")
    return value


def _parser(prog: str, description: str) -> tuple[argparse.ArgumentParser, argparse._ArgumentGroup]:
    parser = argparse.ArgumentParser(
        prog=f"dis-sam {prog}",
        description=f"{description} After an interruption, the same command resumes.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO_OR_FOLDER",
        help="photographs, folders of photographs, .tar files of WebDataset, or - for standard input",
    )
    parser.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        help="folder of the outputs; or, for a single output, a .png file, or - for standard output; default: "
        "NAME.cutout.png and so on beside the photograph",
    )
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="include subfolders; the outputs have the same structure"
    )
    return parser, parser.add_argument_group("prompts" if prog == "cut" else "masks")


def _add_common(parser: argparse.ArgumentParser, prog: str) -> None:
    prompt = "box, points, labels" if prog == "cut" else "mask, box"
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help=f"instead of photographs: a list, .jsonl or .parquet, with the columns name, image, object, {prompt}",
    )
    files = parser.add_argument_group("annotation files, instead of photographs")
    what = "the box of each object" if prog == "cut" else "the mask of each object, or its box if it has no mask"
    files.add_argument("--coco", type=Path, metavar="FILE", help=f"COCO file: segment {what}; -o is a COCO file too")
    files.add_argument("--images", type=Path, metavar="DIR", help="folder of the images of the COCO file")
    files.add_argument("--labelme", type=Path, metavar="DIR", help="folder of labelme files; -o is a folder too")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--as",
        dest="kinds",
        action="append",
        metavar="KIND",
        help="rgba (default), alpha, mask, white, #RRGGBB or overlay; several are separated by commas",
    )
    output.add_argument("--bits", type=int, choices=(8, 16), help="bits per channel; default: 8")
    output.add_argument(
        "--threshold",
        type=_fraction,
        metavar="T",
        help="alpha above T becomes 1, the rest 0; by default only masks are binary, with 0.5",
    )
    output.add_argument("--crop", action="store_true", help="crop the outputs to the object")
    output.add_argument("--overwrite", action="store_true", help="replace files that dis-sam did not write, too")
    add_model(parser)
    parser.add_argument("--workers", type=positive_int, metavar="N", help="number of reader and of writer threads")
    shards.add_options(parser)


def _cut_parser() -> argparse.ArgumentParser:
    parser, prompts = _parser("cut", "Cut objects out of photographs. Without a prompt, it is the most salient object.")
    add_prompts(prompts, "written as")
    _add_common(parser, "cut")
    return parser


def _refine_parser() -> argparse.ArgumentParser:
    parser, masks = _parser("refine", "Refine coarse masks from any source.")
    masks.add_argument(
        "-m",
        "--mask",
        metavar="MASK_OR_FOLDER",
        help="the mask of a photograph (or -), or a folder of masks NAME.png or NAME_OBJECT.png of photographs NAME",
    )
    masks.add_argument(
        "--keep-better", action="store_true", help="keep a mask that is probably better than the refined one"
    )
    _add_common(parser, "refine")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with exit code 2 if options contradict each other."""
    shards.check_options(parser, options)
    if sum(map(bool, (options.photos, options.manifest, options.coco, options.labelme))) != 1:
        parser.error("expected either photographs, --manifest FILE, --coco FILE, or --labelme DIR")
    tars = [Path(text).suffix == _TAR for text in options.photos]
    if any(tars) and not all(tars):
        parser.error("expected either .tar files or other photographs, found both")
    if options.shard or any(tars):
        if not options.out or options.out == STANDARD or Path(options.out).suffix.lower() == ".png":
            what = ".tar files" if any(tars) else "--shard and --processes"
            parser.error(f"{what}: expected -o, a folder, for the outputs")
        if STANDARD in (*options.photos, getattr(options, "mask", None)) or not (options.photos or options.manifest):
            parser.error("--shard and --processes: expected photographs in files, or --manifest")
    if options.manifest or any(tars):
        for name in ("box", "point", "prompts", "mask", "recursive"):
            if getattr(options, name, None):
                parser.error(f"--{name} has no effect on {'.tar files' if any(tars) else '--manifest'}; omit it")
    if options.photos or options.manifest:
        if options.images:
            parser.error("--images is the folder of the images of a COCO file; use it with --coco")
        standard = options.photos.count(STANDARD) + (getattr(options, "mask", None) == STANDARD)
        if standard > 1:
            parser.error("standard input (-) can be read only once")
        if STANDARD in options.photos and len(options.photos) > 1:
            parser.error("expected no other photographs beside standard input (-)")
        return
    if bool(options.coco) != bool(options.images):
        parser.error("expected --coco together with --images, the folder of its images")
    if not options.out or options.out == STANDARD:
        parser.error("annotation files require -o, where the refined ones are written")
    pixels = ("kinds", "bits", "threshold", "crop", "overwrite", "detail", "workers", "keep_better", "mask", "prompts")
    for name in (*pixels, "box", "point"):
        if getattr(options, name, None) not in (None, False, []):
            option = "as" if name == "kinds" else name.replace("_", "-")
            parser.error(f"--{option} has no effect on annotation files; omit it")
    if options.coco and options.recursive:
        parser.error("--recursive has no effect on a COCO file, which names its images; omit it")


def _options(options: argparse.Namespace) -> Options:
    from dis_sam.batch import Options

    kinds = [kind.strip() for text in options.kinds or ["rgba"] for kind in text.split(",")]
    keep_better = getattr(options, "keep_better", False)
    return Options(
        tuple(kinds), options.bits or 8, options.threshold, options.crop, keep_better, options.detail or "auto"
    )


def _photographs(options: argparse.Namespace) -> list[tuple[str, Source]]:
    from dis_sam.inputs import find_photographs

    if options.photos == [STANDARD]:
        return [("photo", sys.stdin.buffer.read())]
    out = None if options.out in (None, STANDARD) else Path(options.out)
    return list(find_photographs(list(map(Path, options.photos)), options.recursive, out))


def _plan_cut(options: argparse.Namespace) -> tuple[list[Task], list[str]]:
    from dis_sam.inputs import Request, plan_cut

    if options.manifest:
        from dis_sam.photo_work import plan_listing

        return plan_listing(options.manifest, refine=False), []
    objects = [Request("", *prompt) for prompt in prompts_of(options)]
    return plan_cut(_photographs(options), objects, options.prompts), []


def _plan_refine(options: argparse.Namespace) -> tuple[list[Task], list[str]]:
    from dis_sam.inputs import plan_refine

    if options.manifest:
        from dis_sam.photo_work import plan_listing

        return plan_listing(options.manifest, refine=True), []
    mask = sys.stdin.buffer.read() if options.mask == STANDARD else Path(options.mask)
    return plan_refine(_photographs(options), mask, options.recursive)


def _choose_model(options: argparse.Namespace, **needs: bool) -> ModelChoice:
    from dis_sam.model_choice import choose_model
    from IS_Net.errors import PromptError

    if options.sam not in ("auto", "box") and not needs.get("uses_stage_1", True):
        if options.command == "refine":
            raise PromptError(f"--sam {options.sam} has no effect where masks are given; omit it")
        raise PromptError(
            f"--sam {options.sam} has no effect without a prompt; add --box, --point or --prompts, or omit --sam"
        )
    return choose_model(options.weights, options.sam, options.device, options.precision, options.runtime, **needs)


def _spare_last_collection() -> None:
    """Keep Python from searching PyTorch's modules for garbage when the process ends, which takes half a second."""
    if "triton" not in sys.modules:  # it would report its objects as leaks
        gc.freeze()


def _run(options: argparse.Namespace, plan: Plan) -> int:
    atexit.register(_spare_last_collection)
    if options.coco or options.labelme:
        return _run_annotations(options)
    if options.shard or (options.photos and Path(options.photos[0]).suffix == _TAR):
        return _run_shard(options, plan)
    from dis_sam.batch import run
    from dis_sam.destination import Destination
    from dis_sam.model_choice import needs_of
    from dis_sam.outputs import OutputError

    how = _options(options)
    tasks, failed = plan(options)
    if not tasks:
        raise OutputError("found nothing to do")
    choice = _choose_model(options, **needs_of(tasks))
    if options.out == STANDARD or (options.out is None and isinstance(tasks[0].image, bytes)):
        return _write_to_standard_output(tasks, choice, how, failed)
    destination = Destination(None if options.out is None else Path(options.out), how.kinds)
    inputs = (choice.weights, getattr(options, "prompts", None), options.manifest)
    destination.check(tasks, options.overwrite, [path for path in inputs if path is not None])
    summary = run(tasks, destination, choice, how, workers=options.workers)
    summary.failed[:0] = failed
    if len(tasks) == 1 and not summary.failed:
        for path in summary.written:
            print_text(str(path))
        for path in summary.kept:
            print_text(f"{path} (up to date)")
        _warn(summary)
    else:
        print_text(str(summary))
    for message in summary.failed:
        print_error(message)
    return FAILED if summary.failed else DONE


def _warn(found: Summary | Outcome) -> None:
    """Print which objects of a photograph were not found, or probably not."""
    if found.empty:
        print_error(f"nothing was found for {', '.join(found.empty)}; the output is empty", prefix="warning: ")
    if found.doubtful:
        remedy = "look at the result; a box, another box or a coarse mask may give a better one"
        print_error(f"{', '.join(found.doubtful)}: {remedy}", prefix="warning: ")


def _write_to_standard_output(tasks: Sequence[Task], choice: ModelChoice, how: Options, failed: Sequence[str]) -> int:
    from dis_sam.batch import run_one
    from dis_sam.outputs import OutputError

    count = sum(len(task.requests) for task in tasks) * len(how.kinds)
    if count != 1:
        raise OutputError(f"standard output takes one output, but there are {count}; choose a folder with -o")
    if sys.stdout.isatty():
        raise OutputError("standard output is a terminal; redirect it (> photo.cutout.png), or choose a file with -o")
    data, outcome = run_one(tasks[0], choice, how)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    _warn(outcome)
    for message in failed:
        print_error(message)
    return FAILED if failed else DONE


def _run_annotations(options: argparse.Namespace) -> int:
    from dis_sam.batch import LARGEST, METHOD
    from IS_Net.allocator import reuse_freed_memory

    reuse_freed_memory(LARGEST)
    boxes_only = options.command == "cut"
    choice = _choose_model(options)
    settings = json.dumps([METHOD, *choice.key(uses_stage_1=True)])
    how = {"refiner": _lazy_refiner(choice), "boxes_only": boxes_only, "settings": settings}
    summary: AnnotationSummary
    if options.coco:
        from dis_sam.formats.coco import refine_coco

        summary = refine_coco(options.coco, options.images, Path(options.out), **how)
    else:
        from dis_sam.formats.labelme import refine_labelme

        summary = refine_labelme(options.labelme, Path(options.out), recursive=options.recursive, **how)
    print_text(str(summary))
    return FAILED if summary.problems else DONE


def _lazy_refiner(choice: ModelChoice) -> Refiner:
    """Return a refiner that loads the model when it is first called: nothing may be left to do."""

    @cache
    def load() -> Refiner:
        from dis_sam.formats.annotation import refine_with

        return refine_with(choice.load())

    return lambda image, annotations: load()(image, annotations)


def _read(parser: argparse.ArgumentParser, argv: Sequence[str] | None, command: str) -> argparse.Namespace:
    """Parse the arguments of a verb, and check them."""
    options = parse(parser, argv)
    options.command = command
    _check(parser, options)
    if command == "cut":
        check_prompts(parser, options)
    elif options.photos and not options.mask and Path(options.photos[0]).suffix != _TAR:
        parser.error("expected -m, a mask or a folder of masks; dis-sam cut needs no mask")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dis-sam cut``.

    Args:
        argv: The arguments; None takes the process's own.

    Returns:
        0 if all outputs exist, 1 if some photographs failed, 2 if the run could not start, 130 if it was interrupted.
    """
    options = _read(_cut_parser(), argv, "cut")
    return run_command(lambda: _run(options, _plan_cut), _INTERRUPTED)


def refine(argv: Sequence[str] | None = None) -> int:
    """Run ``dis-sam refine``.

    Args:
        argv: The arguments; None takes the process's own.

    Returns:
        See :func:`main`.
    """
    options = _read(_refine_parser(), argv, "refine")
    return run_command(lambda: _run(options, _plan_refine), _INTERRUPTED)


def plan_cut_work(argv: Sequence[str]) -> list[shards.Work]:
    """Return the work of ``dis-sam cut`` with these arguments."""
    return _plan_work(_read(_cut_parser(), argv, "cut"), _plan_cut)


def plan_refine_work(argv: Sequence[str]) -> list[shards.Work]:
    """Return the work of ``dis-sam refine`` with these arguments."""
    return _plan_work(_read(_refine_parser(), argv, "refine"), _plan_refine)


def _plan_work(options: argparse.Namespace, plan: Plan) -> list[shards.Work]:
    """Return the work of a verb."""
    how = _options(options)
    if options.photos and Path(options.photos[0]).suffix == _TAR:
        from dis_sam.photo_work import LazyModel
        from dis_sam.tars import TarWork

        choice = _choose_model(options, uses_stage_1=options.command == "cut")
        tars, refines = tuple(map(Path, options.photos)), options.command == "refine"
        work = TarWork(tars, Path(options.out), LazyModel(choice), how, refines, options.overwrite, options.workers)
        work.check()
        return [work]
    from dis_sam.destination import Destination
    from dis_sam.model_choice import needs_of
    from dis_sam.outputs import OutputError
    from dis_sam.photo_work import LazyModel, PhotoWork

    tasks, failed = plan(options)
    if not tasks:
        raise OutputError("found nothing to do")
    choice = _choose_model(options, **needs_of(tasks))
    destination = Destination(Path(options.out), how.kinds)
    inputs = (choice.weights, getattr(options, "prompts", None), options.manifest)
    destination.check_names(tasks, [path for path in inputs if path is not None])
    refuse_to_replace([Path(options.out) / shards.ROWS], inputs)
    return [PhotoWork(tasks, destination, LazyModel(choice), how, options.overwrite, options.workers, failed)]


def _run_shard(options: argparse.Namespace, plan: Plan) -> int:
    return shards.run_shard(_plan_work(options, plan), options.shard or shards.Shard(0, 1))


if __name__ == "__main__":
    sys.exit(main())
