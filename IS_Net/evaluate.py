"""The command ``dis-sam evaluate`` (also ``python -m IS_Net.evaluate``); the work is done in :mod:`IS_Net.evaluation`.

This module imports nothing heavy, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from IS_Net import shards
from IS_Net.command_line import (
    DONE,
    FAILED,
    non_negative_int,
    positive_int,
    print_error,
    print_text,
    run_command,
)
from IS_Net.errors import EvaluationError
from IS_Net.metric_names import ALL, choose

if TYPE_CHECKING:
    from IS_Net.evaluation_data import Request
    from IS_Net.evaluation_work import EvaluationWork

_RESUMES = "interrupted; what was measured is kept, and the same command resumes"
OUTPUTS = ("json", "csv", "html", "sheet")
"""The options that write a file."""

_JITTER_METRICS = "f,mae,iou,biou"
"""The metrics by default of changed prompts: the others take longer than the predictions do on a GPU."""


def _metrics(text: str) -> str:
    try:
        return ALL if text == ALL else ",".join(choose(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dis-sam evaluate",
        description="Score maps, coarse masks, or the predictions of weights against ground truths, at the size of the "
        "ground truths, with all metrics of the DIS papers and of mask refinement. Maps are 8-bit gray files, 0..255; "
        "files are paired with the ground truths by name.",
        epilog="docs/evaluation.md describes the metrics and the outputs.",
    )
    parser.add_argument(
        "--gt",
        nargs="+",
        default=[],
        metavar="DIR",
        help="data sets: splits that hold gt/ (and im/, mask/), such as data/DIS5K/DIS-VD; folders of such splits; "
        "folders of ground truths; or names from datalist.py",
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="a data set as a list of pictures, .jsonl or .parquet, with the columns name, image, gt, mask, box",
    )
    parser.add_argument(
        "--pred",
        nargs="+",
        default=[],
        metavar="DIR",
        help="methods: folders of maps, DIR/<data set>/NAME.png, or DIR/NAME.png for a single data set; NAME=DIR gives "
        "a method another name than its folder's",
    )
    parser.add_argument(
        "--weights",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="checkpoints of IS-Net or DIS-SAM, which refine the coarse masks; without FILE: the starter weights",
    )
    parser.add_argument(
        "--coarse",
        nargs="*",
        metavar="KIND",
        help="score coarse masks as methods, too. KIND is a folder beside im/ and gt/, or (with --weights) 'perfect' "
        "for the ground truth as the coarse mask. Without KIND: the data sets' own coarse masks, mask/; with "
        "--weights: all kinds that exist, which is the default there",
    )
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N images of each data set")
    parser.add_argument(
        "--metrics",
        type=_metrics,
        metavar="M,M",
        help="any of f (F-measure), wf (weighted F), mae (mean absolute error), s (S-measure), e (E-measure), hce "
        "(human correction effort), iou (intersection over union), biou (boundary IoU), mba (mean boundary accuracy); "
        "all their figures are printed. Default: all are computed, and a selection is printed; "
        "with --jitter: f,mae,iou,biou",
    )
    parser.add_argument(
        "--jitter",
        action="store_true",
        help="with --weights: predict from prompts that are changed step by step (boxes loose, tight and shifted; "
        "masks dilated, eroded, shifted, with a part of a neighbor, or simulated), and compare with the exact ones. "
        "--coarse names the masks; default: mask/, else the ground truths. About 40 passes for each image: use --limit",
    )
    parser.add_argument(
        "--seed", type=non_negative_int, metavar="N", help="with --jitter: seed of the random changes; default: 0"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--device", help="with --weights: auto (default), cpu, cuda, cuda:N or mps")
    run.add_argument("--precision", help="with --weights: auto (default), full (float32) or half (16 bits)")
    run.add_argument("--runtime", help="with --weights: auto (default), torch, openvino, ncnn or onnx")
    run.add_argument(
        "--workers",
        type=non_negative_int,
        metavar="N",
        help="number of processes that score; 0: score in the main process; default: one for each CPU core",
    )
    run.add_argument("--no-cache", action="store_true", help="do not cache what is computed from the ground truths")
    run.add_argument(
        "--rows",
        type=Path,
        metavar="DIR",
        help="folder where the measures of each picture are kept: a second start, or one on other machines, measures "
        "only what is left",
    )
    shards.add_options(parser)
    out = parser.add_argument_group("outputs, in addition to the printed table")
    out.add_argument("--json", type=Path, metavar="FILE", help="everything: figures, curves, the figures of each image")
    out.add_argument("--csv", type=Path, metavar="FILE", help="the figures of each image")
    out.add_argument("--html", type=Path, metavar="FILE", help="a page with tables, curves and the worst results")
    out.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.jpg",
        help="a picture of the worst results; with --weights those whose IoU fell most from coarse mask to map",
    )
    out.add_argument(
        "--worst", type=non_negative_int, default=8, metavar="N", help="number of worst results; default: %(default)s"
    )
    files = parser.add_argument_group("files that are not beside the ground truths; one folder for each of --gt")
    files.add_argument("--images", nargs="+", type=Path, metavar="DIR", help="images; default: im/ of the split")
    files.add_argument("--masks", nargs="+", type=Path, metavar="DIR", help="own coarse masks; default: mask/")
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with a message if the options do not fit together."""
    predicts = options.weights is not None
    shards.check_options(parser, options)
    if not options.gt and not options.manifest:
        parser.error("expected --gt with data sets, or --manifest")
    if options.shard and not options.rows:
        parser.error("--shard: expected --rows with a folder, which all shards share")
    if not options.pred and options.coarse is None and not predicts:
        parser.error("expected --pred with folders of maps, --weights, or --coarse")
    for key in ("device", "precision", "runtime"):
        if getattr(options, key) is not None and not predicts:
            parser.error(f"--{key} has no effect without --weights")
    if options.jitter and not predicts:
        parser.error("--jitter changes the prompts of predictions; expected --weights")
    if options.jitter and (options.pred or options.sheet):
        parser.error(f"--{'pred' if options.pred else 'sheet'} has no effect with --jitter; omit it")
    if options.seed is not None and not options.jitter:
        parser.error("--seed has no effect without --jitter")
    for key in ("images", "masks"):
        given = getattr(options, key)
        if given and len(given) != len(options.gt):
            parser.error(f"--{key}: expected a folder for each of --gt ({len(options.gt)}), found {len(given)}")
    paths = [path for key in OUTPUTS if (path := getattr(options, key))]
    if len({path.resolve() for path in paths}) < len(paths) or any(path.is_dir() for path in paths):
        parser.error(f"{', '.join(f'--{key}' for key in OUTPUTS)}: expected a different file for each, not a folder")
    if options.sheet and options.sheet.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        parser.error(f"--sheet: expected a file that ends in .jpg or .png, found {options.sheet}")
    if options.sheet and not options.worst:
        parser.error("--sheet shows the worst results; expected --worst of at least 1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit code: 0 done; 1 files could not be scored or written, each named; 2 the command could not start;
        130 interrupted.
    """
    options = _read(argv)
    if options.shard:
        return run_command(lambda: shards.run_shard([_work(options)], options.shard), _RESUMES)
    return run_command(lambda: _run(options), _RESUMES if options.rows else "interrupted; nothing was written")


def plan_work(argv: Sequence[str]) -> list[shards.Work]:
    """Return the work of ``dis-sam evaluate`` with these arguments."""
    return [_work(_read(argv))]


def _read(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    return options


def _work(options: argparse.Namespace) -> EvaluationWork:
    from IS_Net.evaluation_work import EvaluationWork
    from IS_Net.files import refuse_to_replace

    reports = [getattr(options, key) for key in OUTPUTS]
    refuse_to_replace([Path(options.rows) / shards.ROWS], [options.manifest, *reports])
    return EvaluationWork.plan(_request(options), options.rows, _shows_maps(options))


def _shows_maps(options: argparse.Namespace) -> bool:
    return bool(options.worst and not options.jitter and (options.html or options.sheet))


def _run(options: argparse.Namespace) -> int:
    """Evaluate, print the tables and write the outputs; return the exit code."""
    from IS_Net import report
    from IS_Net.evaluation import evaluate
    from IS_Net.evaluation_outputs import contents
    from IS_Net.files import refuse_to_replace_data
    from IS_Net.images import atomic_file

    outputs: dict[str, Path] = {key: path for key in OUTPUTS if (path := getattr(options, key))}
    written: list[Path] = []
    code = DONE
    try:
        named = [text.partition("=")[2] or text for text in options.pred]
        sources = [*options.gt, *options.pred, *named, *(options.images or []), *(options.masks or [])]
        sources += [options.manifest] if options.manifest else []
        refuse_to_replace_data(outputs.values(), [*sources, *(options.weights or [])])
        _check_writable(outputs)
        with tempfile.TemporaryDirectory(prefix="dis-sam-") as thumbnails:
            if options.rows:
                work = _work(options)
                part = shards.run_part(work, work.items(), "all")
                data_sets, results = work.data_sets, work.results(part.rows)
            else:
                shown = Path(thumbnails) if _shows_maps(options) else None
                data_sets, results = evaluate(_request(options), shown)
            if options.jitter:
                print_text(f"{report.robustness_table(results)}\n{report.ROBUSTNESS_NOTE}")
            else:
                print_text(report.text_table(results, every=options.metrics not in (None, ALL)))
                if table := report.refinement_table(results):
                    print_text(f"\n{table}\n{report.REFINEMENT_NOTE}")
            files = contents(data_sets, results, outputs, options.worst)
        for key, content in files.items():
            try:
                with atomic_file(outputs[key]) as file:
                    file.write(content)
            except OSError as error:  # the other files may still be written
                print_error(_not_writable(key, outputs[key], error))
                code = FAILED
            else:
                written.append(outputs[key])
                print_text(f"wrote {outputs[key]}")
    except KeyboardInterrupt as error:
        if options.rows and not written:
            raise
        done = f"only {', '.join(map(str, written))} was written" if written else "nothing was written"
        raise type(error)(f"interrupted; {done}") from error
    return code


def _request(options: argparse.Namespace) -> Request:
    from IS_Net.evaluation_data import Request

    return Request(
        gt=options.gt,
        pred=options.pred,
        weights=options.weights,
        coarse=options.coarse,
        images=options.images,
        masks=options.masks,
        limit=options.limit,
        metrics=options.metrics or (_JITTER_METRICS if options.jitter else ALL),
        device=options.device or "auto",
        precision=options.precision or "auto",
        runtime=options.runtime or "auto",
        workers=options.workers,
        cache=not options.no_cache,
        manifest=options.manifest,
        jitter=options.jitter,
        seed=options.seed or 0,
    )


def _not_writable(key: str, path: Path, error: OSError) -> str:
    return f"--{key} {path}: cannot be written ({error.strerror or error})"


def _check_writable(outputs: Mapping[str, Path]) -> None:
    """Check that the outputs can be written, before hours are spent on their content.

    Raises:
        EvaluationError: If a folder cannot be created or written; all are listed.
    """
    from IS_Net.files import require_writable

    problems = []
    for key, path in outputs.items():
        try:
            require_writable(path)
        except OSError as error:
            problems.append(_not_writable(key, path, error))
    if problems:
        raise EvaluationError("\n".join(problems))


if __name__ == "__main__":
    sys.exit(main())
