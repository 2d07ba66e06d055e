"""The log of a training run: metrics.csv and TensorBoard curves."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from IS_Net.images import atomic_file

_LOG_COLUMNS = (
    "phase",
    "iteration",
    "epoch",
    "data_set",
    "max_f_mean_pr",
    "max_f_mean_curve",
    "mae",
    "loss",
    "seconds",
)


class RunLog:
    """A CSV of one line a validation and data set, and the same as TensorBoard curves.

    Args:
        folder: Gets ``metrics.csv`` and ``tensorboard/``.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.board: SummaryWriter | None = None

    def begin(self, phase: str, iteration: int) -> None:
        """Begin a phase, or go on with it: what an interrupted run noted of it after ``iteration`` is dropped."""
        self.close()
        board = self.path.parent / "tensorboard" / phase
        self.board = SummaryWriter(str(board), purge_step=iteration + 1)
        if not self.path.is_file():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["phase"] != phase or int(row["iteration"]) <= iteration]
        text = io.StringIO()
        writer = csv.DictWriter(text, _LOG_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(self.path, "w") as file:
            file.write(text.getvalue())

    def validation(self, row: dict[str, Any]) -> None:
        """Note one validation of one data set."""
        new = not self.path.is_file()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _LOG_COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        for key in ("max_f_mean_pr", "max_f_mean_curve", "mae"):
            self.board.add_scalar(f"{row['data_set']}/{key}", row[key], row["iteration"])

    def loss(self, iteration: int, value: float) -> None:
        """Note the training loss."""
        self.board.add_scalar("loss", value, iteration)

    def close(self) -> None:
        """Write out what is pending."""
        if self.board:
            self.board.close()
