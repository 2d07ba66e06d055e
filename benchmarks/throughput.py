"""Measure predictions and training steps a second at several batches, and the share of the matrix product's rate.

The batches are on the device already, so that nothing but the networks is timed. A batch that does not fit into the
memory is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.ceilings import count_operations, matmul_rate
from benchmarks.timing import Benchmark, Row, Side, peak_memory, seconds
from benchmarks.train_step import make_ours, make_planes
from IS_Net.models import ISNetDIS
from IS_Net.runtime.torch_runtime import TorchRuntime
from IS_Net.tensors import make_alpha, make_input


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each batch, of predictions and of training."""
    device, size = options.device, options.size
    torch.manual_seed(0)
    runtime = TorchRuntime(ISNetDIS(5), device)
    operations = count_operations(runtime.model, torch.rand(1, 5, size, size).to(device, runtime.dtype))
    ceiling = matmul_rate(device, runtime.dtype, options.matrix)
    print(f"  {runtime.precision}: matrix product {ceiling / 1e12:.4g} TFLOP/s")

    def make_prediction(batch: int, compiled: bool) -> Side:
        planes = make_planes(batch, size)[:, :5].to(device)
        network = torch.compile(runtime.model.predict_logits) if compiled else runtime.model.predict_logits

        @torch.inference_mode()
        def predict() -> None:
            make_alpha(network(make_input(planes).to(runtime.dtype)), planes.shape[-2:])

        return predict

    with tempfile.TemporaryDirectory() as folder:

        def make_training(batch: int, compiled: bool) -> Side:
            planes = make_planes(batch, size).to(device)
            training = make_ours(size, batch, device, "auto", compiled, Path(folder))
            return lambda: training.step(iter([planes]))

        modes = [False, True] if options.compile else [False]
        for what, batches, make in (
            ("prediction", options.batches, make_prediction),
            ("training", options.training_batches, make_training),
        ):
            for compiled in modes:
                for batch in filter(None, batches):
                    found = _measure(options, make, batch, compiled)
                    if found is None:
                        break
                    rate, memory, first = found
                    share = f"{100 * rate * operations / ceiling:.1f} % of the matrix product's rate"
                    note = [f"peak memory {memory / 2**30:.1f} GiB"] if device.type == "cuda" else []
                    note += [share] if what == "prediction" else []
                    note += [f"first call {first:.0f} s"] if compiled else []
                    row = Row(
                        f"{what}, {size} x {size}, batch {batch}, {runtime.precision}{', compiled' * compiled}",
                        ours=f"{rate:.3g} images/s",
                        note="; ".join(note),
                        figures={"rate": rate, "batch": batch, "memory": memory, "first": first, "compiled": compiled},
                    )
                    print(f"  {row.what}: {row.ours}; {row.note}")
                    yield row


def _measure(
    options: argparse.Namespace, make: Callable[[int, bool], Side], batch: int, compiled: bool
) -> tuple[float, int, float] | None:
    """Return images a second, peak memory in bytes, and seconds of the first call; None without enough memory."""
    device = options.device
    try:
        function = make(batch, compiled)
        started = time.perf_counter()
        memory = peak_memory(function, device)
        first = time.perf_counter() - started
        calls = 5 if device.type == "cuda" else 1
        times = [seconds(function, device, calls) for _ in range(options.runs)]
    except torch.cuda.OutOfMemoryError:
        print(f"  batch {batch} does not fit into the memory")
        return None
    return batch / statistics.median(times), memory, first


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "size": (1024, "side of the images"),
        "batches": ((1, 2), "batches of predictions; 0 is left out"),
        "training_batches": ((0,), "batches of training; 0 is left out"),
        "compile": (False, "also compile the networks, which takes minutes"),
        "matrix": (2048, "side of the matrices whose product gives the ceiling"),
        "runs": (3, "timed runs of each batch"),
    },
    quick={"size": 128, "batches": (1,), "training_batches": (2,), "matrix": 128, "runs": 1},
    cuda={"batches": (1, 2, 4, 8, 16), "training_batches": (6, 12, 18, 24), "matrix": 8192, "runs": 3},
)

if __name__ == "__main__":
    BENCHMARK.main()
