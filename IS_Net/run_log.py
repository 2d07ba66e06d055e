"""The log of a training run: metrics.csv and TensorBoard curves."""

from __future__ import annotations

import csv
import io
import logging
import threading
from pathlib import Path
from typing import Any

from IS_Net.errors import import_extra
from IS_Net.images import atomic_file

logger = logging.getLogger(__name__)

_METRICS = ("max_f_mean_pr", "max_f_mean_curve", "mae")
_COLUMNS = ("phase", "iteration", "epoch", "data_set", *_METRICS, "loss", "seconds")


def _report_thread(arguments: threading.ExceptHookArgs) -> None:
    """Print the error of a thread; not that of the one that writes curves, which :class:`RunLog` reports."""
    if not (issubclass(arguments.exc_type, OSError) and type(arguments.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(arguments)


class RunLog:
    """Logs each validation of a data set as a line of ``metrics.csv``, and metrics and loss as TensorBoard curves.

    Args:
        folder: Receives ``metrics.csv`` and ``tensorboard/``.

    Raises:
        MissingExtraError: If the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        import_extra("tensorboard", "train")  # so that a missing package ends the run before it starts
        self.path = folder / "metrics.csv"
        self._board: Any = None

    def begin(self, phase: str, iteration: int, validated: int) -> None:
        """Begin a phase or resume it: what an interrupted run logged of it later is removed.

        Args:
            phase: Name of the phase.
            iteration: The iteration that the run resumes from.
            validated: The iteration of the last validation that its state contains.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._board = None
        board = self.path.parent / "tensorboard" / phase
        threading.excepthook = _report_thread
        try:
            self._board = SummaryWriter(str(board), purge_step=iteration + 1)
        except OSError as error:
            self._give_up(error)
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        rows = list(csv.DictReader(lines, _COLUMNS))[1:]
        if lines and not lines[-1].endswith("\n"):
            rows[-1:] = [{}] * len(rows[-1:])
        whole = [row for row in rows if row and None not in (*row, *row.values()) and row["iteration"].isdigit()]
        if len(whole) < len(rows):
            logger.warning("%s: %d incomplete lines are removed", self.path, len(rows) - len(whole))
        rows = [row for row in whole if row["phase"] != phase or int(row["iteration"]) <= validated]
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(self.path, "w") as file:
            file.write(text.getvalue())

    def validation(self, row: dict[str, Any]) -> None:
        """Log one validation of one data set; the keys are the columns of ``metrics.csv``."""
        new = not self.path.is_file()
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, _COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(self.path)) from error
        for key in _METRICS:
            self._add_scalar(f"{row['data_set']}/{key}", row[key], row["iteration"])

    def loss(self, iteration: int, value: float) -> None:
        """Log the training loss."""
        self._add_scalar("loss", value, iteration)

    def _add_scalar(self, name: str, value: float, iteration: int) -> None:
        """Add a point to a curve. Curves are no reason to end a training: without space, no more are written."""
        if self._board is None:
            return
        try:
            self._board.add_scalar(name, value, iteration)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._board = None
        logger.warning("%s: curves are no longer written: %s", self.path.parent / "tensorboard", error)

    def close(self) -> None:
        """Write everything to disk."""
        if self._board:
            try:
                self._board.close()
            except OSError as error:
                self._give_up(error)


class SilentLog(RunLog):
    """Logs nothing, in processes other than the main one."""

    def __init__(self) -> None:
        """Open nothing."""

    def begin(self, phase: str, iteration: int, validated: int) -> None:
        """Do nothing."""

    def validation(self, row: dict[str, Any]) -> None:
        """Do nothing."""

    def loss(self, iteration: int, value: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
