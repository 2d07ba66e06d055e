"""Make weights by the current recipe: prepare the data, train at three sizes, average, fit the score.

    python -m recipes.starter.make_weights --photos data/photographs --cutouts /usr/share/tuxpaint/stamps

The steps, in order, are in list_steps(); --dry-run prints them. The result is dis_sam_starter.safetensors in
saved_models/starter. A step that is done is not repeated, and an interrupted training resumes; steps.json in the same
folder records what is done. The defaults are for a CPU and take hours; for a GPU and 16 cores:

    --workers 15 --batch 16 --rate 1e-4 --iterations 600 600 1600
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from IS_Net.command_line import (
    DONE,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    Terminated,
    non_negative_int,
    positive_int,
    run_command,
    signals_held,
)
from IS_Net.errors import UserError
from IS_Net.images import atomic_file
from IS_Net.paths import checkout

T = TypeVar("T")

SIZES = 512, 768, 1024
"""Sides in pixels of the images in the three trainings."""
PHOTOS, CUTOUTS = Path("data/sample/photos/im"), Path("/usr/share/tuxpaint/stamps")
"""Defaults: the sample set's photographs, and the pictures of Debian's package tuxpaint-stamps-default."""
MODELS = Path("/usr/share/sweethome3d/furniture")
"""Default: the models of Debian's package sweethome3d-furniture."""

# what the steps write, relative to the checkout
LABELED, PAIRS, HARD = Path("data/pseudo_labeled"), Path("data/cutouts"), Path("data/sample/hard")
RENDERED = Path("data/rendered")
ISNET = Path("saved_models/isnet.safetensors")
RUNS = Path("saved_models/starter")

TRAINING = (
    "interm_sup=False",
    "copy_paste=0.95",
    "simulate_mask=1.0",
    "freeze_bn=True",
    "ema=0.995",
    "bce_weight=10",
    "iou_weight=2.5",
    "edge_weight=4",
    "orthogonal_weight=0",
    "random_flip_v=False",
    "model_digit=half",
    "lr_decay=cosine",
    "model_save_fre=400",
    "early_stop=1000",
)
"""Settings that the three trainings share."""

PROMPTS = ("model=5", "box_jitter=0.1", "drop_mask=0.34", "whole_frame=0.1", "own_mask=0.25")
"""The prompts that the network is trained on, in the same three trainings."""
WINDOWS = ("input_size=1024", "window_share=0.2")
"""Further settings of the last training, whose samples have twice the size of the network's input."""
SCENES = "many_parts", "low_salience", "touching"
"""The kinds of scenes that ``hard_scenes`` draws."""


class RecipeError(UserError, RuntimeError):
    """The recipe cannot start: a folder is missing, or a step was done before with other settings."""


class StepError(RecipeError):
    """A step that failed."""

    exit_code = 1


class Settings(NamedTuple):
    """What the user chooses. Of the last three there may be one value for all sizes, or one for each."""

    photos: Sequence[Path] = (PHOTOS,)
    """Folders of photographs to label; those of the first one are also the backgrounds."""
    cutouts: Path = CUTOUTS
    """A folder of pictures with an alpha channel."""
    models: Path = MODELS
    """A folder of 3D models."""
    workers: int = 1
    iterations: Sequence[int] = (1000, 2000, 600)
    batch: Sequence[int] = (2, 1, 1)
    rate: Sequence[float] = (5e-5, 6e-5, 3e-5)


class Step(NamedTuple):
    """One command of the recipe."""

    name: str
    arguments: tuple[str, ...]
    """Of the Python interpreter, run in the checkout."""
    product: Path
    """What it writes, relative to the checkout."""
    state: Path | None = None
    """The training state: if it exists, the step restores it instead of its initial weights."""
    may_skip_items: bool = False
    """Exit code 1 means that some files could not be used and the others were."""
    reusable: bool = False
    """The product is the same no matter how it was made, so it is enough that it exists."""

    def key(self) -> list[str]:
        """Return what the step was done with: its arguments, without those that do not affect the product."""
        return [argument for argument in self.arguments if not argument.startswith(("workers=", "--workers="))]

    def to_run(self, root: Path) -> tuple[str, ...]:
        """Return the arguments to run now: those that resume if there is a training state."""
        if self.state is None or not (root / self.state).is_file():
            return self.arguments
        return tuple("restore_model=last.pt" if a.startswith("restore_model=") else a for a in self.arguments)


def list_steps(settings: Settings) -> list[Step]:
    """Return all steps of the recipe, in order."""
    photos, backgrounds = [str(folder) for folder in settings.photos], str(settings.photos[0])
    scenes = [str(HARD / kind) for kind in SCENES]
    steps = [
        # 1. the data: drawn scenes to train and to validate on, rendered models, cut-outs, and photographs labeled by
        # IS-Net
        Step("sample set", ("data/make_sample.py",), Path("data/sample/DIS-TR")),
        Step("hard scenes", ("-m", "recipes.starter.hard_scenes", "--out", str(HARD)), HARD),
        Step("box prompts", ("-m", "recipes.starter.box_prompts", *scenes), HARD / SCENES[-1] / "box"),
        Step(
            "renders",
            (
                *("-m", "recipes.starter.render_models", "--models", str(settings.models), "--backgrounds", *photos),
                *("--out", str(RENDERED), f"--workers={max(settings.workers, 1)}"),
            ),
            RENDERED / "im",
            may_skip_items=True,
        ),
        Step(
            "cut-outs",
            (
                *("-m", "recipes.starter.import_cutouts", str(settings.cutouts)),
                *("--backgrounds", backgrounds, "--out", str(PAIRS)),
            ),
            PAIRS / "im",
            may_skip_items=True,
        ),
        Step("IS-Net", ("-m", "recipes.starter.fetch_isnet", "--out", str(ISNET)), ISNET, reusable=True),
        Step(
            "pseudo-labels",
            ("-m", "recipes.starter.pseudo_label", *photos, "--out", str(LABELED), "--weights", str(ISNET)),
            LABELED / "im",
            may_skip_items=True,
        ),
    ]
    # 2. three trainings, each from the weights of the one before
    weights, extra = ISNET, ["mask_skip_logit=5"]
    for index, size in enumerate(SIZES):
        run = RUNS / str(size)
        steps.append(
            Step(
                f"training at {size} px",
                (
                    "-m",
                    "IS_Net.train_valid_inference_main",
                    f"train_datasets={LABELED},{LABELED},{LABELED},{PAIRS},{RENDERED},sample_tr",
                    f"valid_datasets={','.join(f'{scene}:{kind}' for scene in scenes for kind in ('sim', 'box'))}",
                    f"backgrounds={backgrounds}",
                    *(*TRAINING, *PROMPTS),
                    *([f"cache_size={2 * size}", *WINDOWS] if size == SIZES[-1] else [f"cache_size={size}"]),
                    f"max_ite={_of(settings.iterations, index)}",
                    f"batch_size_train={_of(settings.batch, index)}",
                    f"lr={_of(settings.rate, index)}",
                    *extra,
                    f"workers={settings.workers}",
                    f"model_path={run}",
                    f"restore_model={weights}",
                ),
                run / "last.pt",
                state=run / "last.pt",
            )
        )
        if size != SIZES[-1]:
            weights, extra = run / "last.safetensors", []
            export = ("-m", "IS_Net.import_weights", str(run / "last.pt"), str(weights))
            steps.append(Step(f"weights of {size} px", export, weights))
    # 3. the mean of the last two; the score is fitted, and the result stored in 8 bits
    mean, out = RUNS / "mean.safetensors", RUNS / "dis_sam_starter.safetensors"
    sources = str(RUNS / "1024" / "last.pt"), str(RUNS / "768" / "last.safetensors")
    steps.append(Step("mean", ("-m", "recipes.starter.average_weights", *sources, str(mean)), mean))
    calibration = ("--out", str(out), "--overwrite", "--int8", "--plot", str(out.with_suffix(".png")))
    calibration = ("-m", "recipes.starter.calibrate", str(mean), *scenes, *calibration)
    return [*steps, Step("calibration", calibration, out)]


def _of(values: Sequence[T], index: int) -> T:
    """Return the value for one of the sizes; the last one given counts for the sizes after it."""
    return values[min(index, len(values) - 1)]


def run_python(arguments: Sequence[str], root: Path) -> int:
    """Run the Python interpreter in a folder and return its exit code.

    After Ctrl-C or SIGTERM, it waits until the child has saved its state, and returns 130 or 143.
    """
    try:
        with start_child([sys.executable, *arguments], root) as process:
            return process.wait()
    except KeyboardInterrupt as error:
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


@contextmanager
def start_child(arguments: Sequence[str], folder: Path | None = None) -> Iterator[subprocess.Popen]:
    """Start a process that saves its state after Ctrl-C and SIGTERM, and leave it when it has ended.

    Args:
        arguments: The program and its arguments.
        folder: Where it runs; None is the current folder.

    Yields:
        The process. After Ctrl-C or SIGTERM it may save its state; after another error it is ended.
    """
    with signals_held() as release:  # one that comes meanwhile must not leave the child alone
        process = subprocess.Popen(arguments, cwd=folder)
        try:
            release()
            yield process
        except KeyboardInterrupt as error:
            _wait_until_saved(process, error)
            raise
        except BaseException:
            process.terminate()  # else it would be waited for until its own end
            raise
        finally:
            process.wait()


def _wait_until_saved(process: subprocess.Popen, error: KeyboardInterrupt) -> None:
    """Wait until a child process has saved its state and ended, after this process got Ctrl-C or SIGTERM.

    The child has received Ctrl-C from the terminal, and a second signal would end it before it has saved; SIGTERM,
    which usually the parent alone gets, is passed on.

    Args:
        process: The child.
        error: What :func:`IS_Net.command_line.run_command` turned the signal into.
    """
    if isinstance(error, Terminated):
        process.terminate()
    while process.returncode is None:
        try:
            process.wait()
        except Terminated:
            process.terminate()
        except KeyboardInterrupt:
            pass  # the child gets this one, too


def make_weights(
    settings: Settings, root: Path, run: Callable[[Sequence[str], Path], int] = run_python, dry_run: bool = False
) -> None:
    """Run the steps that are not done yet, and print each one's command.

    Args:
        settings: What the user chose.
        root: The checkout.
        run: Runs the Python interpreter with arguments in a folder and returns the exit code.
        dry_run: Only print.

    Raises:
        RecipeError: If a step was done before with other settings.
        StepError: If a step fails.
        KeyboardInterrupt: If a step was interrupted; after SIGTERM, a :class:`IS_Net.command_line.Terminated`.
    """
    record = root / RUNS / "steps.json"
    done: dict[str, list[str]] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    steps = list_steps(settings)
    for step in steps:
        _check_unchanged(step, done)
    for number, step in enumerate(steps, start=1):
        finished = _is_done(step, done, root)
        arguments = step.to_run(root)
        print(f"[{number}/{len(steps)}] {step.name}{': done' if finished else ''}", flush=True)
        if finished:
            continue
        print(f"python {shlex.join(arguments)}", flush=True)
        if dry_run:
            continue
        code = run(arguments, root)
        if code in (INTERRUPTED, TERMINATED):
            raise Terminated if code == TERMINATED else KeyboardInterrupt
        if code not in ((DONE, FAILED) if step.may_skip_items else (DONE,)):
            raise StepError(f"the step {step.name!r} failed with exit code {code}; see its message above")
        if not (root / step.product).exists():
            raise StepError(f"the step {step.name!r} wrote no {step.product}; see its message above")
        done[step.name] = step.key()
        with atomic_file(record, "w") as file:
            json.dump(done, file, indent=1)


def _is_done(step: Step, done: Mapping[str, list[str]], root: Path) -> bool:
    return (root / step.product).exists() and (step.reusable or step.name in done)


def _check_unchanged(step: Step, done: Mapping[str, list[str]]) -> None:
    """Raise a RecipeError if the step was done before with other settings."""
    before, now = done.get(step.name, step.key()), step.key()
    if before != now:
        changed = [
            f"found {shlex.join(a for a in before if a not in now)}",
            f"expected {shlex.join(a for a in now if a not in before)}",
        ]
        raise RecipeError(
            f"the step {step.name!r} was done with other settings: {', '.join(changed)}; repeat the earlier settings, "
            f"or delete {RUNS}, {LABELED}, {PAIRS} and {RENDERED} to start again"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    default = Settings()
    sizes = ", ".join(map(str, SIZES))
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.make_weights",
        description=__doc__,
        epilog=f"--iterations, --batch and --rate take one value for each of {sizes} px; the last one given counts for "
        "the sizes after it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--photos", type=Path, nargs="+", metavar="FOLDER",
        help=f"folders of photographs to label; the first one is also the backgrounds (default: {PHOTOS})",
    )  # fmt: skip
    parser.add_argument(
        "--cutouts", type=Path, metavar="FOLDER", help=f"folder of pictures with an alpha channel (default: {CUTOUTS})"
    )
    parser.add_argument(
        "--models", type=Path, metavar="FOLDER", help=f"folder of 3D models to render (default: {MODELS})"
    )
    for name, kind, meaning in (
        ("iterations", positive_int, "iterations of the trainings"),
        ("batch", positive_int, "samples in a batch"),
        ("rate", _rate, "learning rates"),
    ):
        values = getattr(default, name)
        parser.add_argument(
            f"--{name}", type=kind, nargs="+", metavar="N", default=values,
            help=f"{meaning} (default: {' '.join(f'{value:g}' for value in values)})",
        )  # fmt: skip
    parser.add_argument(
        "--workers", type=non_negative_int, default=default.workers, metavar="N",
        help="processes that make training samples (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print the steps and their commands without running them"
    )
    args = parser.parse_args(argv)
    for name in ("iterations", "batch", "rate"):
        if len(getattr(args, name)) > len(SIZES):
            parser.error(f"--{name}: expected at most {len(SIZES)} values, found {len(getattr(args, name))}")

    def command() -> int:
        root = checkout()
        if root is None:
            raise RecipeError("the recipe runs in a checkout of the project, not in an installed package; clone it")
        packages = {CUTOUTS: "tuxpaint-stamps-default", MODELS: "sweethome3d-furniture"}
        for folder in [*(args.photos or []), args.cutouts or CUTOUTS, args.models or MODELS]:
            if not folder.is_dir() and not args.dry_run:
                hint = f"install Debian's package {packages[folder]}, or " if folder in packages else ""
                raise RecipeError(
                    f"{folder}: the folder does not exist; {hint}choose another with --photos, --cutouts or --models"
                )
        settings = Settings(
            [_from_root(folder, root) for folder in args.photos] if args.photos else default.photos,
            _from_root(args.cutouts, root) if args.cutouts else default.cutouts,
            _from_root(args.models, root) if args.models else default.models,
            args.workers,
            args.iterations,
            args.batch,
            args.rate,
        )
        make_weights(settings, root, dry_run=args.dry_run)
        return DONE

    return run_command(command, "interrupted; the same command resumes")


def _rate(text: str) -> float:
    """Convert an argument to a learning rate: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value


def _from_root(folder: Path, root: Path) -> Path:
    """Return a folder relative to the checkout if it is inside it, else its absolute path."""
    folder = folder.resolve()
    return folder.relative_to(root) if folder.is_relative_to(root) else folder


if __name__ == "__main__":
    sys.exit(main())
