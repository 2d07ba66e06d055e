"""The arguments that several commands share: prompts, and the choice of the model. It imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IS_Net.machine import RUNTIMES
from sam.backends import BACKENDS, BOX, model_argument

STANDARD = "-"
"""The argument that stands for standard input or output."""


def numbers(text: str, counts: Sequence[int], expected: str) -> list[float]:
    """Convert an argument to finite numbers that are separated by commas.

    Args:
        text: The argument.
        counts: How many numbers there may be.
        expected: What is expected, for the message.

    Raises:
        argparse.ArgumentTypeError: If it is something else.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return values


def _box(text: str) -> tuple[float, ...]:
    x0, y0, x1, y1 = numbers(text, (4,), "a box as four numbers x0,y0,x1,y1 in pixels")
    if x1 < x0 or y1 < y0 or (x0, y0) == (x1, y1):
        raise argparse.ArgumentTypeError(f"expected x0 < x1 and y0 < y1, found {text!r}")
    return x0, y0, x1, y1


def _point(text: str) -> tuple[float, float, int]:
    expected = "a point as x,y or x,y,1 (on the object) or x,y,0 (on the background)"
    x, y, *label = numbers(text, (2, 3), expected)
    if label not in ([], [0], [1]):
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return x, y, int(label[0]) if label else 1


def add_prompts(group: argparse._ArgumentGroup, several: str) -> None:
    """Add ``--box``, ``--point`` and ``--prompts``.

    Args:
        group: The group of arguments.
        several: What becomes of several objects of a photograph, as the end of a sentence.
    """
    group.add_argument(
        "--box",
        type=_box,
        action="append",
        default=[],
        metavar="x0,y0,x1,y1",
        help="box around an object, in pixels of the upright photograph; repeat it for several objects, which are "
        f"{several} NAME_1, NAME_2, ...",
    )
    group.add_argument(
        "--point",
        type=_point,
        action="append",
        default=[],
        metavar="x,y[,0]",
        help="point on the object (or, with 0, on the background); all points belong to one object, with at most one "
        "box; needs SAM",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="CSV (name,object,x0,y0,x1,y1) or JSON with boxes or points; several objects of a photograph are "
        f"{several} NAME_OBJECT; photographs without a prompt are skipped",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, among them those of :func:`add_prompts`, whose numbers may be negative.

    argparse takes ``-3,10,90,80`` for an option unless it is joined with the option before it.

    Args:
        parser: The parser.
        argv: The arguments; None takes the process's own.
    """
    joined: list[str] = []
    for argument in sys.argv[1:] if argv is None else argv:
        if joined and joined[-1] in ("--box", "--point") and re.match(r"-[0-9.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return parser.parse_args(joined)


def check_prompts(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with exit code 2 if the arguments of :func:`add_prompts` contradict each other."""
    if options.prompts and (options.box or options.point):
        parser.error("expected either --prompts, or --box and --point")
    if options.prompts and STANDARD in options.photos:
        parser.error("--prompts names photographs, and standard input (-) has no name; use --box or --point")
    if len(options.box) > 1 and options.point:
        parser.error(f"found --point with {len(options.box)} boxes; expected at most one box, or use --prompts FILE")
    if options.point and not options.box and not any(label for *_, label in options.point):
        parser.error("found only background points; add a point on the object, or a box")


def prompts_of(options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return the objects that ``--box`` and ``--point`` ask for: the box, points and labels of each.

    They are the fields of :class:`dis_sam.inputs.Request`; points and labels are missing where there are none.
    """
    if not options.point:
        return [(box,) for box in options.box]
    points, labels = tuple((x, y) for x, y, _ in options.point), tuple(label for *_, label in options.point)
    return [(options.box[0] if options.box else None, points, labels)]


def add_model(parser: argparse.ArgumentParser, weights: bool = True, detail: bool = True) -> None:
    """Add the choice of the model.

    Args:
        parser: The parser.
        weights: Whether to add ``--weights``.
        detail: Whether to add ``--detail``.
    """
    model = parser.add_argument_group("model")
    model.add_argument(
        "--sam",
        default="auto",
        type=model_argument,
        metavar="NAME",
        help=f"stage 1: {', '.join(name for name in BACKENDS if name != BOX)}; NAME=PATH takes its weights from a file "
        "or folder; box for none, so that stage 2 is given the boxes alone; auto (default) for the best whose weights "
        "are found, else box",
    )
    if weights:
        model.add_argument(
            "--weights", type=Path, metavar="FILE", help="checkpoint of stage 2; default: starter weights"
        )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: %(default)s")
    model.add_argument(
        "--precision", default="auto", choices=("auto", "full", "half"), help="of stage 2; default: %(default)s"
    )
    model.add_argument(
        "--runtime",
        default="auto",
        choices=RUNTIMES,
        help="what runs stage 2; auto (default): on the CPU the fastest that is installed of ncnn, OpenVINO (with AMX, "
        "the fastest) and ONNX Runtime, else PyTorch",
    )
    if detail:
        model.add_argument(
            "--detail",
            choices=("auto", "off", "max"),
            help="work on parts of large photographs at their full resolution: auto (default) if the weights were "
            "trained for it, off, or max for as many parts as it takes",
        )
