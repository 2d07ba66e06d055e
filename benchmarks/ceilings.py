"""Measure what limits a prediction: its operations and bytes, the device's rates, and where the time goes.

Operations are counted by PyTorch's FlopCounterMode; a multiplication and an addition are two. Bytes are those of all
tensors that operators read and write, as if nothing stayed in a cache. The rates are those of a large matrix product,
of a 3 x 3 convolution with 64 channels, and of a copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Benchmark, Row, Side, seconds
from IS_Net.device import fast_dtype
from IS_Net.models import ISNetDIS
from IS_Net.runtime.torch_runtime import TorchRuntime


class ByteCounter(TorchDispatchMode):
    """Counts the bytes that operators read and write while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = tree_leaves((args, kwargs, result))
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        return result


@torch.inference_mode()
def count_operations(model: ISNetDIS, x: Tensor) -> int:
    """Return the operations of a prediction."""
    with FlopCounterMode(display=False) as counter:
        model.predict_logits(x)
    return counter.get_total_flops()


@torch.no_grad()  # inference mode would hide the indices of pooling
def count_bytes(model: ISNetDIS, x: Tensor) -> int:
    """Return the bytes that the operators of a prediction read and write."""
    with ByteCounter() as counter:
        model.predict_logits(x)
    return counter.bytes


def best_seconds(function: Side, device: torch.device, runs: int) -> float:
    """Return the seconds of the fastest of some runs, of several calls each on a GPU."""
    function()
    return min(seconds(function, device, 20 if device.type == "cuda" else 1) for _ in range(runs))


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int, runs: int = 5) -> float:
    """Return the operations a second of the product of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: a @ b, device, runs)


@torch.inference_mode()
def convolution_rate(device: torch.device, dtype: torch.dtype, side: int, runs: int = 5) -> float:
    """Return the operations a second of a 3 x 3 convolution, 64 channels to 64, in channels_last."""
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(1, 64, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    return 2 * 9 * 64 * 64 * side**2 / best_seconds(lambda: layer(x), device, runs)


def copy_rate(device: torch.device, megabytes: int, runs: int = 5) -> float:
    """Return the bytes a second that a copy reads and writes."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / best_seconds(lambda: target.copy_(source), device, runs)


@torch.inference_mode()
def times_by_operator(model: ISNetDIS, x: Tensor) -> dict[str, float]:
    """Return the share of each operator in the time of a prediction, the largest first."""

    def predict() -> None:
        model.predict_logits(x)

    predict()
    with torch.profiler.profile() as trace:
        seconds(predict, x.device)
    key = "self_device_time_total" if x.device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, key) for event in trace.key_averages()}
    total = sum(times.values())
    return {name: value / total for name, value in sorted(times.items(), key=lambda item: -item[1]) if value}


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for the counts, each rate, and the profile."""
    device, size = options.device, options.size
    torch.manual_seed(0)
    runtime = TorchRuntime(ISNetDIS(5), device)
    x = torch.rand(1, 5, size, size).to(device, runtime.dtype, memory_format=torch.channels_last)
    operations, traffic = count_operations(runtime.model, x), count_bytes(runtime.model, x)
    counts = f"{operations / 1e9:.4g} GFLOP, {traffic / 2**30:.3g} GiB in {runtime.precision}"
    yield _print(Row(f"one pass, {size} x {size}", ours=counts, figures={"flop": operations, "bytes": traffic}))

    dtypes = [torch.float32, *filter(None, [fast_dtype(device)])]
    for dtype in dtypes:
        kind = str(dtype).removeprefix("torch.")
        rates = {
            f"matrix product, {kind}": matmul_rate(device, dtype, options.matrix),
            f"convolution, {kind}": convolution_rate(device, dtype, options.image),
        }
        for what, rate in rates.items():
            lower = f"a pass takes at least {1e3 * operations / rate:.3g} ms at this rate"
            yield _print(Row(what, ours=f"{rate / 1e12:.3g} TFLOP/s", note=lower, figures={"rate": rate}))
    rate = copy_rate(device, options.megabytes)
    lower = f"a pass takes at least {1e3 * traffic / rate:.3g} ms at this rate, without caches"
    yield _print(Row("copy", ours=f"{rate / 1e9:.3g} GB/s", note=lower, figures={"rate": rate}))

    shares = times_by_operator(runtime.model, x)
    text = ", ".join(f"{name.removeprefix('aten::')} {100 * share:.0f} %" for name, share in [*shares.items()][:8])
    what = f"time of a pass by operator, torch, {runtime.precision}"
    yield _print(Row(what, ours=text.replace("|", "/"), figures=shares))


def _print(row: Row) -> Row:
    print(f"  {row.what}: {row.ours}{f'; {row.note}' if row.note else ''}")
    return row


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "size": (1024, "side of the network's input"),
        "matrix": (2048, "side of the matrices"),
        "image": (512, "side of the input of the convolution"),
        "megabytes": (512, "size of what is copied"),
    },
    quick={"size": 128, "matrix": 128, "image": 32, "megabytes": 8},
    cuda={"matrix": 8192, "image": 2048, "megabytes": 4096},
)

if __name__ == "__main__":
    BENCHMARK.main()
