"""Draw the loss and the validations of training runs, one after the other: ``training_curves.py RUN [RUN ...]``.

A RUN is a ``model_path``. The loss comes from its TensorBoard log, the validations from ``metrics.csv``. Needs
matplotlib (the extra ``notebook``).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PHASE = "segmentation"


def read_loss(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return iterations and losses, (N,) each."""
    events = EventAccumulator(str(run / "tensorboard" / PHASE), size_guidance={"scalars": 0})
    events.Reload()
    scalars = events.Scalars("loss")
    return np.array([s.step for s in scalars]), np.array([s.value for s in scalars])


def read_validations(run: Path) -> dict[str, np.ndarray]:
    """Return (N, 3) of each data set: iteration, max F from mean precision and recall, MAE."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == PHASE]
    keys = "iteration", "max_f_mean_pr", "mae"
    sets = dict.fromkeys(row["data_set"] for row in rows)
    return {name: np.array([[float(r[k]) for k in keys] for r in rows if r["data_set"] == name]) for name in sets}


def draw(runs: Sequence[Path], out: Path, smooth: int) -> None:
    """Write the figure; the loss is a running mean over ``smooth`` notes of it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    start, colors, highest = 0, {}, 0.0
    for run in runs:
        iterations, losses = read_loss(run)
        highest = max(highest, float(np.percentile(losses, 97)))  # single samples would squeeze the rest
        width = min(smooth, len(losses))
        mean = np.convolve(losses, np.ones(width) / width, mode="valid")
        left.plot(start + iterations, losses, color="0.85", linewidth=0.6)
        left.plot(start + iterations[width - 1 :], mean, label=run.name)
        for name, values in read_validations(run).items():
            line = right.plot(
                start + values[:, 0], values[:, 1], "o-", markersize=3, color=colors.get(name), label=name
            )
            line[0].set_label("_" if name in colors else name)
            colors.setdefault(name, line[0].get_color())
        start += int(iterations[-1])
    left.set(xlabel="iteration", ylabel="training loss")
    left.set_ylim(0, highest)
    right.set(xlabel="iteration", ylabel="max F (mean precision and recall)")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, in their order")
    parser.add_argument("--out", type=Path, default=Path("pic/starter_training.png"), help="default: %(default)s")
    parser.add_argument("--smooth", type=int, default=20, help="notes of the loss averaged; default: %(default)s")
    given = parser.parse_args(arguments)
    for run in given.runs:
        if not (run / "metrics.csv").is_file():
            print(f"error: {run}: holds no metrics.csv; name the model_path of a run", file=sys.stderr)
            return 1
    draw(given.runs, given.out, given.smooth)
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
