"""The command ``dis-sam compare``: the figure of a paper, for photographs, prompts and methods of one's own.

The library is :mod:`dis_sam.comparison`; this module imports it, and all that is heavy, only when there is work to do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dis_sam.arguments import add_model, add_prompts, check_prompts, parse, prompts_of
from IS_Net.command_line import DONE, FAILED, positive_int, print_error, print_text, run_command
from IS_Net.metric_names import choose

_EXTENSIONS = (".jpg", ".jpeg", ".png")
_NARROWEST = 160  # pixels; a line of scores needs them


def _metrics(text: str) -> str:
    try:
        return ",".join(choose(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _column(text: str) -> int:
    if (width := positive_int(text)) < _NARROWEST:
        raise argparse.ArgumentTypeError(f"expected a width of at least {_NARROWEST} pixels, found {text}")
    return width


def _figure(text: str) -> Path:
    if Path(text).suffix.lower() not in _EXTENSIONS:
        raise argparse.ArgumentTypeError(f"expected a file that ends in .jpg or .png, found {text!r}")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dis-sam compare",
        description="Draw a figure that compares methods: a row for each object, with the photograph, the ground truth "
        "and the map of each method, below them the part where the methods differ most along edges, magnified, and the "
        "scores.",
        epilog="docs/evaluation.md shows an example. Exit codes: 0 done; 1 some items failed, each named; 2 could not "
        "start; 130 interrupted; 143 terminated",
    )
    parser.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTO_OR_FOLDER", help="photographs, or folders of photographs"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=_figure,
        default=Path("compare.jpg"),
        metavar="FILE",
        help="the figure, .jpg or .png; default: %(default)s",
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="include subfolders")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="the columns: coarse (the coarse masks that the weights are given), a model of stage 1 (vit_l, box, ...), "
        "starter or files of weights of IS-Net or DIS-SAM, which refine the coarse masks, and folders of maps NAME.png "
        "or NAME_OBJECT.png. NAME=METHOD gives a method a name. Default: coarse starter",
    )
    parser.add_argument(
        "--gt",
        type=Path,
        metavar="DIR",
        help="ground truths NAME.png or NAME_OBJECT.png. Without prompts, their tight boxes are the prompts",
    )
    prompts = parser.add_argument_group("prompts; default: the boxes of --gt, or the most salient object")
    add_prompts(prompts, "called")
    prompts.add_argument(
        "-m",
        "--mask",
        type=Path,
        metavar="MASK_OR_FOLDER",
        help="coarse masks instead of those of stage 1: the mask of a photograph, or a folder of NAME.png or "
        "NAME_OBJECT.png",
    )
    figure = parser.add_argument_group("figure")
    figure.add_argument(
        "--metrics",
        type=_metrics,
        metavar="M,M",
        help="the scores: any of f, wf, mae, s, e, hce, iou, biou, mba (docs/evaluation.md); default: mae,iou,biou",
    )
    figure.add_argument(
        "--column", type=_column, default=280, metavar="PIXELS", help="width of a column; default: %(default)s"
    )
    add_model(parser, weights=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None takes the process's own.

    Returns:
        0 if the figure is complete, 1 if something in it is missing or it could not be drawn, 2 if the run could not
        start, 130 if it was interrupted.
    """
    parser = _parser()
    options = parse(parser, argv)
    check_prompts(parser, options)
    if options.mask and (options.prompts or options.box or options.point):
        parser.error("expected either --mask, or --box, --point and --prompts")
    if options.metrics and not options.gt:
        parser.error("--metrics has no effect without --gt")
    return run_command(lambda: _run(options), "interrupted; nothing was written")


def _run(options: argparse.Namespace) -> int:
    from dis_sam import comparison
    from dis_sam.inputs import Request
    from IS_Net.errors import PromptError
    from IS_Net.files import prepare_output, refuse_to_replace_data
    from IS_Net.images import atomic_file, encode_image

    objects = [Request("", *prompt) for prompt in prompts_of(options)]
    tasks, failed = comparison.plan(
        options.photos,
        objects=objects,
        prompts=options.prompts,
        masks=options.mask,
        truths=options.gt,
        recursive=options.recursive,
    )
    requests = [request for task in tasks for request in task.requests]
    if options.sam not in ("auto", "box") and not any(request.uses_stage_1 for request in requests):
        why = "where masks are given" if options.mask else "without a prompt"
        raise PromptError(f"--sam {options.sam} has no effect {why}; omit it")
    methods = comparison.find_methods(options.methods or comparison.default_methods(tasks))
    sources = [*options.photos, *(path for path in (options.gt, options.mask, options.prompts) if path)]
    refuse_to_replace_data([options.out], [*sources, *(m.source for m in methods if isinstance(m.source, Path))])
    prepare_output(options.out, overwrite=True)
    settings = comparison.Settings(
        options.sam,
        options.device,
        options.precision,
        options.runtime,
        options.detail or "auto",
        options.metrics or comparison.METRICS,
        options.column,
    )
    found = comparison.compare(tasks, methods, settings, options.gt)
    with atomic_file(options.out) as file:
        file.write(encode_image(found.figure, options.out.suffix.lower(), quality=90))
    counts = {"object": found.rows, "method": len(methods)}
    text = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for word, count in counts.items())
    print_text(f"wrote {options.out}: {text}")
    for message in (*failed, *found.failed):
        print_error(message)
    return FAILED if failed or found.failed else DONE


if __name__ == "__main__":
    sys.exit(main())
