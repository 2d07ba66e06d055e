"""The command ``dis-sam VERB ...``: a table of verbs, each imported only when it is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dis_sam import __version__
from dis_sam.sharding import drive
from IS_Net.command_line import DONE, NOT_STARTED, print_error, run_command
from IS_Net.errors import did_you_mean


class Verb(NamedTuple):
    """A verb of the command."""

    target: str
    """``module:function``; the function takes the arguments behind the verb and returns the exit code."""
    summary: str
    before: tuple[str, ...] = ()
    """Arguments that the function gets first."""
    plan: str = ""
    """``module:function`` of verbs that can run on many machines; the function returns their work."""


VERBS = {
    "cut": Verb(
        "dis_sam.cut:main",
        "cut objects out of photographs: boxes, points, or the most salient object",
        plan="dis_sam.cut:plan_cut_work",
    ),
    "refine": Verb(
        "dis_sam.cut:refine",
        "refine coarse masks from any source; COCO and labelme files too",
        plan="dis_sam.cut:plan_refine_work",
    ),
    "serve": Verb("dis_sam.serve.command:main", "open a local page and a JSON API"),
    "masks": Verb(
        "sam.generate_masks:main", "stage 1: prompts become coarse masks on disk", plan="sam.generate_masks:plan_work"
    ),
    "train": Verb("IS_Net.train_valid_inference_main:command_line", "train stage 2", ("mode=train",)),
    "valid": Verb("IS_Net.train_valid_inference_main:command_line", "predict and score data sets", ("mode=valid",)),
    "evaluate": Verb(
        "IS_Net.evaluate:main",
        "score maps, or the predictions of weights, with all metrics",
        plan="IS_Net.evaluate:plan_work",
    ),
    "compare": Verb("dis_sam.compare:main", "draw methods side by side, with magnified edges and scores"),
    "import-weights": Verb("IS_Net.import_weights:main", "convert published .pth and .onnx weights to safetensors"),
    "export": Verb("dis_sam.export:main", "export stage 2 to ONNX, OpenVINO, TorchScript or Core ML"),
    "benchmark": Verb("dis_sam.benchmark:main", "compare the runtimes on this machine: time, memory, difference"),
    "fetch": Verb("dis_sam.fetch:main", "download SAM's checkpoints: vit_l, vit_h, vit_b"),
    "check": Verb(
        "dis_sam.check:main", "report versions, devices and weights, and run a self test; or examine data sets"
    ),
}

_EXIT_CODES = "exit codes: 0 done; 1 some items failed, each named; 2 could not start; 130 interrupted; 143 terminated"


def usage() -> str:
    """Return the help text of the command."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: dis-sam VERB [ARGUMENTS]\n"
        "       dis-sam VERB --help\n"
        "       dis-sam --version\n\n"
        f"A box around a thing in a photograph becomes a pixel-accurate mask of it.\n\n{verbs}\n\n{_EXIT_CODES}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: The arguments; None takes the process's own.

    Returns:
        The exit code: 0 done, 1 some items failed, 2 could not start, 130 interrupted, 143 terminated.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(arguments))  # the verb answers interruptions itself, once it is imported


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return DONE if arguments else NOT_STARTED
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        print(f"dis-sam {__version__}")
        return DONE
    if name not in VERBS:
        print_error(f"unknown verb {name!r}{did_you_mean(name, VERBS)}")
        return NOT_STARTED
    verb = VERBS[name]
    function = _function(verb.target)
    try:
        if verb.plan:
            return drive(name, rest, function, _function(verb.plan))
        return function([*verb.before, *rest])
    except SystemExit as end:  # argparse ends the process after --help and after a wrong argument
        return end.code if isinstance(end.code, int) else DONE if end.code is None else NOT_STARTED


def _function(target: str) -> Callable:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    sys.exit(main())
