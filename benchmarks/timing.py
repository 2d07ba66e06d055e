"""Time two implementations in turn and print the medians and the median ratio."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

Side = tuple[str, Callable[[], object]]
"""One side of a comparison: its name and the function that is timed."""


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def compare(baseline: Side, ours: Side, device: torch.device, runs: int = 5, warm_up: int = 2) -> None:
    """Run both sides in turn, A B A B ..., so that changes of the machine's speed affect both, and print the times.

    Args:
        baseline: The side that ours is compared with.
        ours: This project's side.
        device: Where they run; a CUDA device is synchronized before and after each run.
        runs: Number of timed runs of each side.
        warm_up: Number of runs of each side before that.
    """
    for _ in range(warm_up):
        baseline[1](), ours[1]()
    times = [(_seconds(baseline[1], device), _seconds(ours[1], device)) for _ in range(runs)]
    width = max(len(baseline[0]), len(ours[0]))
    for label, (name, _), values in zip(("baseline", "ours"), (baseline, ours), zip(*times, strict=True), strict=True):
        median = statistics.median(values)
        print(f"  {label:8}  {name:{width}}  median {median:8.4f} s  ({min(values):.4f} .. {max(values):.4f})")
    ratio = statistics.median(first / second for first, second in times)
    print(f"  ratio     median over {runs} pairs: ours is {ratio:.2f} times as fast")


def peak_memory(device: torch.device) -> str:
    """Return the peak memory of the process so far, and of the device."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in ru_maxrss
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB (process)"
    if device.type == "cuda":
        text += f", {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB (device)"
    return text
