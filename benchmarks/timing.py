"""What all benchmarks share: timing in turn, the command line, and the table.

A benchmark is a module with a :class:`Benchmark`, which yields rows of the table.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from IS_Net.allocator import reuse_freed_memory
from IS_Net.device import describe, pick_device

Side = Callable[[], object]
"""One side of a comparison."""


# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Seconds of both sides of a comparison, run by run."""

    baseline: Sequence[float]
    ours: Sequence[float]

    @property
    def ratio(self) -> float:
        """How many times as fast ours is: the median over the pairs."""
        return statistics.median(first / second for first, second in zip(self.baseline, self.ours, strict=True))

    @property
    def overhead(self) -> float:
        """How many seconds longer ours takes: the median over the pairs."""
        return statistics.median(second - first for first, second in zip(self.baseline, self.ours, strict=True))


@dataclass(frozen=True)
class Row:
    """A row of the table; everything in it is text, and ``figures`` holds the numbers."""

    what: str
    baseline: str = ""
    ours: str = ""
    verdict: str = ""
    """How ours compares with the baseline, for example ``4.10 x as fast``."""
    difference: str = ""
    """How the results of both sides differ."""
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def spread(seconds: Sequence[float]) -> str:
    """Return the median of times and their range, for example ``0.120 s (0.118 .. 0.131)``."""
    unit, factor = ("s", 1) if statistics.median(seconds) >= 0.1 else ("ms", 1000)
    middle, low, high = (factor * value for value in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle:.3g} {unit} ({low:.3g} .. {high:.3g})"


def row(
    what: str, sides: tuple[str, str], times: Times, difference: str = "", note: str = "", as_long: bool = False
) -> Row:
    """Make a row of a comparison, and print it.

    Args:
        what: What is compared.
        sides: Names of the baseline and of ours.
        times: Their times.
        difference: How the results differ.
        note: Anything else.
        as_long: Whether the verdict says how much longer ours takes, because it does more than the baseline.
    """
    verdict = f"{1 / times.ratio:.2f} x as long" if as_long else f"{times.ratio:.2f} x as fast"
    texts = [f"{name}: {spread(values)}" for name, values in zip(sides, (times.baseline, times.ours), strict=True)]
    print(f"  {what}\n    {texts[0]}\n    {texts[1]}\n    {verdict}, median of {len(times.ours)} pairs")
    return Row(what, *texts, verdict, difference, note, asdict(times) | {"ratio": times.ratio})


COLUMNS = ("what", "baseline", "ours", "verdict", "difference", "note")


def markdown(rows: Iterable[Row]) -> str:
    """Return rows as a table in Markdown."""
    lines = ["| what | baseline | ours | ours against it | difference of results | notes |", "|---" * 6 + "|"]
    lines += ["| " + " | ".join(getattr(found, column) for column in COLUMNS) + " |" for found in rows]
    return "\n".join(lines)


# --- measuring ------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(function: Side, device: torch.device, calls: int = 1) -> float:
    """Return the seconds per call of a function whose work on a device is waited for."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - started) / calls


def compare(
    baseline: Side, ours: Side, device: torch.device, runs: int, warm_up: int = 1, reuse_memory: bool = False
) -> Times:
    """Run both sides in turn, A B A B ..., so that changes of the machine's speed affect both.

    Args:
        baseline: The side that ours is compared with.
        ours: This project's side.
        device: Where they run; it is synchronized before and after each run.
        runs: Number of timed runs of each side.
        warm_up: Number of runs of each side before that.
        reuse_memory: Whether ours is a command that calls :func:`IS_Net.allocator.reuse_freed_memory`. On a CPU, the
            baseline then returns freed memory as the C library does by default, and each timed run follows one that is
            not timed, after which the memory of the process is that of its side.
    """
    for _ in range(warm_up):
        baseline(), ours()

    def timed(side: Side, prepare: Side) -> float:
        if reuse_memory and device.type == "cpu":
            prepare(), side()
        return seconds(side, device)

    pairs = [(timed(baseline, _return_freed_memory), timed(ours, reuse_freed_memory)) for _ in range(runs)]
    return Times([first for first, _ in pairs], [second for _, second in pairs])


def _return_freed_memory() -> None:
    """Make glibc return freed memory, as it does by itself, and return what is free now."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        library.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: what its rule arrives at after large pieces
        library.mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD: twice that, by the same rule
        library.malloc_trim(0)


def peak_memory(function: Side, device: torch.device) -> int:
    """Run a function and return the most memory in bytes that was in use on its device in the meantime.

    On the CPU, it is the peak of the process so far, so each side needs a process of its own.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        function()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    function()
    try:  # ru_maxrss may be that of the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def idle_share(function: Side, device: torch.device) -> float:
    """Return the share of a function's time in which a CUDA device neither computes nor copies, from a trace."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        elapsed = 1e6 * seconds(function, device)
    on_device = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    # annotations, such as that of the optimizer's step, span kernels and the gaps between them
    work = [event.time_range for event in on_device if not getattr(event, "is_user_annotation", False)]
    return 1 - covered([(span.start, span.end) for span in work]) / elapsed


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, which may overlap."""
    total, reached = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def describe_maps(baseline: np.ndarray, ours: np.ndarray) -> str:
    """Return how two alpha mattes, float in [0, 1], differ: largest and mean difference, and pixels that flip at .5."""
    difference = 255 * np.abs(baseline - ours)
    flips = 100 * np.mean((baseline > 0.5) != (ours > 0.5))
    return f"at most {difference.max():.2g}/255, mean {difference.mean():.2g}/255, {flips:.3g} % flip at .5"


# --- the command line -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's command line.

    Attributes:
        description: The module's docstring.
        rows: Runs the benchmark with the parsed options, whose ``device`` is a torch.device.
        options: Default and help text by name. The type is that of the default; a bool is a switch, and a tuple takes
            several values.
        quick: Other defaults with ``--quick``.
        cuda: Other defaults on CUDA devices.
    """

    description: str
    rows: Callable[[argparse.Namespace], Iterator[Row]]
    options: Mapping[str, tuple[Any, str]]
    quick: Mapping[str, Any] = field(default_factory=dict)
    cuda: Mapping[str, Any] = field(default_factory=dict)

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line; ``device`` becomes a torch.device."""
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
        parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, not how fast it is")
        parser.add_argument("--json", type=Path, help="also write the rows to this file")
        for name, (default, text) in self.options.items():
            flag, text = f"--{name.replace('_', '-')}", f"{text} (default: {default})"
            if isinstance(default, bool):
                parser.add_argument(flag, action="store_true", help=text)
            elif isinstance(default, tuple):
                parser.add_argument(flag, nargs="+", type=type(default[0]), default=default, help=text)
            else:
                parser.add_argument(flag, type=type(default), default=default, help=text)
        first = parser.parse_args(argv)
        device = pick_device(first.device)
        other = dict(self.cuda) if device.type == "cuda" else {}
        parser.set_defaults(**other | (dict(self.quick) if first.quick else {}))
        options = parser.parse_args(argv)
        options.device = device
        return options

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Run the benchmark and print its rows."""
        options = self.parse(argv)
        print(f"{self.description.strip().splitlines()[0]}\n  {describe(options.device)}")
        rows = list(self.rows(options))
        print(markdown(rows))
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            content = {"machine": describe_machine(options.device), "rows": [asdict(found) for found in rows]}
            options.json.write_text(json.dumps(content, indent=1))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what the times depend on: device, processor, cores, versions."""
    return {
        "device": describe(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
