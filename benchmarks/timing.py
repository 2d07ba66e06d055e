"""Time two ways of doing the same thing in turn, and tell the medians and the ratio of each pair."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def compare(
    plain: tuple[str, Callable[[], object]],
    ours: tuple[str, Callable[[], object]],
    device: torch.device,
    runs: int = 5,
    warm_up: int = 2,
) -> None:
    """Run both in turn, A B A B ..., so that a machine whose speed drifts slows both, and print the outcome.

    Args:
        plain: What it is compared with: a name and a function.
        ours: Likewise.
        device: Where they run; a CUDA device is waited for.
        runs: Counted runs of each.
        warm_up: Runs of each before.
    """
    for _ in range(warm_up):
        plain[1](), ours[1]()
    times = [(_seconds(plain[1], device), _seconds(ours[1], device)) for _ in range(runs)]
    width = max(len(plain[0]), len(ours[0]))
    for (name, _), values in zip((plain, ours), zip(*times, strict=True), strict=True):
        print(f"  {name:{width}}  median {statistics.median(values):8.4f} s   ({min(values):.4f} .. {max(values):.4f})")
    print(f"  ratio, median over {runs} pairs: {statistics.median(a / b for a, b in times):.2f} times as fast")


def peak_memory(device: torch.device) -> str:
    """Return the peak memory so far: the process's, and the device's."""
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the process"
    if device.type == "cuda":
        text += f", {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of the device"
    return text
