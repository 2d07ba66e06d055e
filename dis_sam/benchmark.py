"""Compare the runtimes of stage 2 on this machine: time, memory, difference (``dis-sam benchmark``).

Each runtime has a process of its own, so that its memory is its own. The processes take turns, run by run, so that
changes of the machine's speed affect all of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dis_sam import __version__
from IS_Net.command_line import DONE, FAILED, NOT_STARTED, positive_int, print_error, print_text, run_command
from IS_Net.errors import CheckpointError, UserError
from IS_Net.machine import RUNTIMES

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import numpy as np

    from IS_Net.exporting.parity import Difference

RUNS = 5
_REFERENCE = ("torch", "full")
_RUN, _END = "run", "end"


class WorkerError(UserError, RuntimeError):
    """A runtime that cannot be used, or whose process ended."""

    exit_code = 1


@dataclass
class Measured:
    """What was measured of one runtime.

    Attributes:
        runtime: Its name.
        precision: ``float32``, ``bfloat16`` or ``float16``.
        where: The device.
        load_seconds: From a process that has imported nothing to a network that is ready; converted before.
        seconds: Of each prediction of one pass, after one that is not counted.
        peak_mb: The most memory of the process in 10**6 bytes; None where the system does not say.
        difference: From PyTorch in float32; None for that itself.
    """

    runtime: str
    precision: str
    where: str
    load_seconds: float
    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None
    difference: Difference | None = None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def peak_memory_mb() -> float | None:
    """Return the most memory that this process has used, in 10**6 bytes; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # getrusage would count what the parent used before this process started
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _serve(pipe: Connection, weights: Path, size: tuple[int, int] | None, runtime: str, precision: str, device: str):
    """Load a network and predict, once for each request; what a process of its own runs."""
    started = time.perf_counter()
    try:
        from IS_Net.predictor import DISPredictor

        predictor = DISPredictor.from_checkpoint(weights, device, precision, size, runtime)
        loaded = time.perf_counter() - started
        image, mask = _picture(predictor.input_size)
        alpha = predictor.predict(image, mask, passes=1, detail="off")
    except UserError as error:
        pipe.send(str(error))
        return
    pipe.send((predictor.runtime.precision, predictor.runtime.where, loaded, alpha))
    while pipe.recv() == _RUN:
        started = time.perf_counter()
        predictor.predict(image, mask, passes=1, detail="off")
        pipe.send(time.perf_counter() - started)
    pipe.send(peak_memory_mb())


def _picture(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture of the self test and its coarse mask, at the size that the network works at."""
    import numpy as np

    from dis_sam.drawn import draw_picture
    from IS_Net.preprocess import resize_uint8

    image, _, mask = draw_picture()
    return np.moveaxis(resize_uint8(image, size), 0, 2).copy(), resize_uint8(255 * mask.astype(np.uint8), size)[0]


class Worker:
    """A process with one runtime.

    Args:
        weights: The checkpoint.
        size: (height, width) that the network works at; None takes that of the checkpoint.
        runtime: Its name.
        precision: ``full`` or ``half``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        WorkerError: If the runtime cannot be used.
    """

    def __init__(self, weights: Path, size: tuple[int, int] | None, runtime: str, precision: str, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = runtime
        self._pipe, other = context.Pipe()
        arguments = (other, weights, size, runtime, precision, device)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process inherits this; Ctrl-C is answered here
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        other.close()
        found = self._receive()
        if isinstance(found, str):
            self._process.join()
            raise WorkerError(found)
        self.precision, self.where, self.load_seconds, self.alpha = found

    def run(self) -> float:
        """Predict once; return the seconds."""
        self._pipe.send(_RUN)
        return self._receive()

    def end(self) -> float | None:
        """End the process; return its peak memory in 10**6 bytes."""
        self._pipe.send(_END)
        peak = self._receive()
        self._process.join()
        return peak

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise WorkerError(f"{self.name}: its process ended with code {self._process.exitcode}") from None


def measure(
    weights: Path,
    runtimes: Sequence[str],
    size: tuple[int, int] | None = None,
    precision: str = "full",
    runs: int = RUNS,
    device: str = "cpu",
) -> tuple[list[Measured], dict[str, str]]:
    """Measure runtimes.

    Args:
        weights: The checkpoint.
        runtimes: Their names.
        size: (height, width) that the network works at; None takes that of the checkpoint.
        precision: ``full`` (float32) or ``half``.
        runs: Number of predictions of each that are timed.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        What was measured, the fastest first; and why the other runtimes could not be used, by name.
    """
    from tqdm import tqdm

    from IS_Net.exporting.parity import compare_alpha

    workers: list[Worker] = []
    problems: dict[str, str] = {}
    for name in tqdm(runtimes, "loading", leave=False, disable=None):
        try:
            if name != "torch":  # a conversion takes memory that later processes do not need
                Worker(weights, size, name, precision, device).end()
            workers.append(Worker(weights, size, name, precision, device))
        except WorkerError as error:
            problems[name] = str(error)
    if not workers:
        return [], problems
    exact = next((w for w in workers if (w.name, precision) == _REFERENCE), None)
    if exact is None:
        exact = Worker(weights, size, "torch", "full", device)
        exact.end()
    found = [Measured(worker.name, worker.precision, worker.where, worker.load_seconds) for worker in workers]
    for _ in tqdm(range(runs), "predictions of each", leave=False, disable=None):
        for worker, row in zip(workers, found, strict=True):
            row.seconds.append(worker.run())
    for worker, row in zip(workers, found, strict=True):
        row.peak_mb = worker.end()
        row.difference = None if worker is exact else compare_alpha(exact.alpha, worker.alpha)
    return sorted(found, key=lambda row: row.median), problems


def format_table(found: Sequence[Measured]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'runtime':10} {'precision':9} {'prediction, median (range)':30} {'load':>7} {'peak memory':>12}  difference"
    ]
    for row in found:
        times = f"{row.median:.3f} s ({min(row.seconds):.3f} .. {max(row.seconds):.3f})"
        memory = "unknown" if row.peak_mb is None else f"{row.peak_mb:.0f} MB"
        difference = "(what the others are compared with)" if row.difference is None else str(row.difference)
        lines.append(
            f"{row.runtime:10} {row.precision:9} {times:30} {row.load_seconds:5.1f} s {memory:>12}  {difference}"
        )
    return "\n".join(lines)


def _run(options: argparse.Namespace) -> int:
    from IS_Net.files import atomic_file, prepare_output
    from IS_Net.paths import starter_weights
    from IS_Net.runtime.base import EXTRAS, is_installed

    weights = options.weights or starter_weights()
    if not weights.is_file():
        raise CheckpointError(f"{weights}: the checkpoint does not exist; check the path, or omit --weights")
    if options.json:
        prepare_output(options.json, [weights], overwrite=True)
    names = list(dict.fromkeys(options.runtimes or filter(is_installed, RUNTIMES[1:])))
    size = options.size and (options.size, options.size)
    found, problems = measure(weights, names, size, options.precision, options.runs, options.device)
    if not found:
        for problem in dict.fromkeys(problems.values()):  # of the weights or the device, the same for all
            print_error(problem)
        return NOT_STARTED
    for where in dict.fromkeys(row.where for row in found):
        print_text(where)
    print_text(format_table(found))
    for name in EXTRAS:
        if not is_installed(name) and name not in problems:
            print_text(f"{name}: not installed; pip install 'dis-sam[{EXTRAS[name]}]'")
    for name, problem in problems.items():
        print_error(f"{name}: {problem}")
    if options.json:
        rows = [asdict(row) | {"difference": row.difference and row.difference._asdict()} for row in found]
        content = {"dis-sam": __version__, "weights": str(weights), "rows": rows, "problems": problems}
        with atomic_file(options.json, "w") as file:
            json.dump(content, file, indent=2)
    return FAILED if problems else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dis-sam benchmark``; return 1 if a runtime could not be used, 2 if none could."""
    parser = argparse.ArgumentParser(
        prog="dis-sam benchmark",
        description="Time the runtimes of stage 2 that are installed, at equal precision: seconds of a prediction of "
        "one pass, peak memory (each runs in a process of its own), and the difference from PyTorch in float32.",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint; default: starter weights")
    parser.add_argument("--size", type=positive_int, metavar="SIDE", help="of the network's input; default: its own")
    parser.add_argument("--runs", type=positive_int, default=RUNS, metavar="N", help="default: %(default)s")
    parser.add_argument("--precision", choices=("full", "half"), default="full", help="default: %(default)s, float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps; default: %(default)s")
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIMES[1:], metavar="NAME", help="torch, openvino, ncnn, onnx; default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured to FILE")
    options = parser.parse_args(argv)
    return run_command(lambda: _run(options))


if __name__ == "__main__":
    raise SystemExit(main())
