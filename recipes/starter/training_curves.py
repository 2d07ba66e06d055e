"""Draw the loss and the validation figures of training runs, one run after the other.

    python -m recipes.starter.training_curves saved_models/starter/512 saved_models/starter/768

A run is given by its ``model_path``. The loss is read from its TensorBoard log, the validation figures from its
``metrics.csv``. Needs matplotlib (extra ``notebook``) and tensorboard (extra ``train``).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from IS_Net.command_line import DONE, positive_int, run_command
from IS_Net.errors import UserError, import_extra

PHASE = "segmentation"


class RunError(UserError, ValueError):
    """A folder that is not the folder of a training run."""


def read_loss(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the iterations and the losses of a run, (N,) each.

    Raises:
        RunError: If the run has no TensorBoard log of the loss.
    """
    module = import_extra("tensorboard.backend.event_processing.event_accumulator", "train")
    log = run / "tensorboard" / PHASE
    events = module.EventAccumulator(str(log), size_guidance={"scalars": 0})
    if log.is_dir():
        events.Reload()
    if "loss" not in events.Tags()["scalars"]:
        raise RunError(f"{run}: found no loss in tensorboard/{PHASE}; expected the model_path of a training run")
    scalars = events.Scalars("loss")
    return np.array([s.step for s in scalars]), np.array([s.value for s in scalars])


def read_validations(run: Path) -> dict[str, np.ndarray]:
    """Return for each data set (N, 3): iteration, max F from mean precision and recall, MAE.

    Raises:
        RunError: If the run has no metrics.csv.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise RunError(f"{run}: contains no metrics.csv; expected the model_path of a training run")
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == PHASE]
    keys = "iteration", "max_f_mean_pr", "mae"
    sets = dict.fromkeys(row["data_set"] for row in rows)
    return {name: np.array([[float(r[k]) for k in keys] for r in rows if r["data_set"] == name]) for name in sets}


def draw(runs: Sequence[Path], out: Path, smooth: int) -> None:
    """Write the figure.

    Args:
        runs: Folders of training runs, in order; the iterations of each start where the run before it ended.
        out: The image file to write.
        smooth: Number of logged losses in the running mean.

    Raises:
        RunError: If a folder is not the folder of a training run.
    """
    validations = [read_validations(run) for run in runs]
    figure = import_extra("matplotlib.figure", "notebook").Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    start, colors, highest = 0, {}, 0.0
    for run, sets in zip(runs, validations, strict=True):
        iterations, losses = read_loss(run)
        highest = max(highest, float(np.percentile(losses, 97)))  # single outliers would flatten the curve
        width = min(smooth, len(losses))
        mean = np.convolve(losses, np.ones(width) / width, mode="valid")
        left.plot(start + iterations, losses, color="0.85", linewidth=0.6)
        left.plot(start + iterations[width - 1 :], mean, label=run.name)
        for name, values in sets.items():
            (line,) = right.plot(start + values[:, 0], values[:, 1], "o-", markersize=3, color=colors.get(name))
            line.set_label("_" if name in colors else name)
            colors.setdefault(name, line.get_color())
        start += int(iterations[-1])
    left.set(xlabel="iteration", ylabel="training loss", ylim=(0, highest))
    right.set(xlabel="iteration", ylabel="max F (mean precision and recall)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.training_curves", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of training runs, in order")
    parser.add_argument(
        "--out", type=Path, default=Path("pic/starter_training.png"), help="image to write (default: %(default)s)"
    )
    parser.add_argument(
        "--smooth", type=positive_int, default=20, metavar="N",
        help="logged losses in the running mean (default: %(default)s)",
    )  # fmt: skip
    args = parser.parse_args(argv)

    def command() -> int:
        draw(args.runs, args.out, args.smooth)
        print(args.out)
        return DONE

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
