"""Time a training step of phase 2 with all loss terms, and measure its memory: Training.step against the published one.

The published step takes float32 tensors as its loader makes them, ours the bytes of its own. Memory is that of a
process that runs one side only; on the CPU, with interpreter and libraries.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import published
from benchmarks.timing import Benchmark, Row, compare, peak_memory, row
from IS_Net.allocator import reuse_freed_memory
from IS_Net.device import autocast, autocast_dtype
from IS_Net.engine import Run, Training
from IS_Net.hypar import Settings
from IS_Net.losses import orthogonal_loss
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.run_log import RunLog
from IS_Net.tasks import SegmentationTask
from IS_Net.tensors import make_input, make_target

ROOT = Path(__file__).resolve().parents[1]


def make_planes(batch: int, size: int) -> Tensor:
    """Return a batch of the loader, (batch, 6, size, size) uint8: noise with a disk as mask, box and ground truth."""
    planes = torch.randint(0, 256, (batch, 6, size, size), dtype=torch.uint8)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    disk = (rows - size / 2).hypot(columns - size / 2) < size / 3
    planes[:, 3:] = disk * torch.tensor(255, dtype=torch.uint8)
    return planes


def make_networks() -> tuple[ISNetDIS, ISNetGTEncoder]:
    """Return both networks with random weights, which are the same each time."""
    torch.manual_seed(0)
    return ISNetDIS(5), ISNetGTEncoder()


def make_baseline(device: torch.device) -> published.Training:
    """Return the published training."""
    return published.Training(*make_networks(), device)


def make_ours(size: int, batch: int, device: torch.device, precision: str, compiled: bool, folder: Path) -> Training:
    """Return this project's training."""
    settings = Settings.from_hypar(
        {"model": 5, "cache_size": size, "batch_size_train": batch, "model_digit": precision, "compile": compiled}
    )
    run = Run(settings, device, autocast_dtype(device, precision), [], lambda start: [], RunLog(folder))
    return Training(SegmentationTask(*make_networks(), settings), run)


def our_loss(training: Training, planes: Tensor) -> Tensor:
    """Return the whole loss of a batch on the device, as a training step computes it."""
    with autocast(training.run.device, training.run.dtype):
        loss = training.task.loss(planes)
    return loss + training.run.settings.orthogonal_weight * orthogonal_loss(training.task.model)


def compare_losses(baseline: published.Training, ours: Training, planes: Tensor) -> tuple[float, float]:
    """Return the relative difference of both losses, and that of their gradients: norm of the difference over norm.

    The statistics of BatchNorm are fixed, because where they are those of few values, as in the deepest layers, they
    multiply rounding errors until the gradients say nothing.
    """

    def gradient(loss: Tensor, model: nn.Module) -> Tensor:
        found = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([part.flatten() for part in found])

    planes = planes.to(baseline.device)
    baseline.model.eval(), ours.task.model.eval()
    first = baseline.loss(make_input(planes[:, :5]).contiguous(), make_target(planes[:, 5:]))
    expected = gradient(first, baseline.model)
    second = our_loss(ours, planes)
    found = gradient(second, ours.task.model)
    baseline.model.train(), ours.task.train()
    return abs((second / first).item() - 1), float((found - expected).norm() / expected.norm())


def measure_memory(options: argparse.Namespace, side: str) -> int:
    """Return the peak memory in bytes of a process that runs one side only."""
    if options.device.type == "cuda":
        torch.cuda.empty_cache()  # what this process keeps is missing in the other
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "memory.json")
        arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "precision")]
        command = [sys.executable, "-m", "benchmarks.train_step", *arguments, f"--device={options.device}"]
        command += [f"--only={side}", f"--json={file}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())["rows"][0]["figures"]["bytes"]


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield one row; with ``--only``, the peak memory of one side instead."""
    device, planes = options.device, make_planes(options.batch, options.size)
    batch = make_input(planes[:, :5]).contiguous(), make_target(planes[:, 5:])
    with tempfile.TemporaryDirectory() as folder:

        def build() -> Training:
            return make_ours(options.size, options.batch, device, options.precision, options.compile, Path(folder))

        if options.only:
            if options.only == "ours" and device.type == "cpu":
                reuse_freed_memory()
            baseline = make_baseline(device) if options.only == "published" else None
            ours = build() if options.only == "ours" else None
            step = (lambda: baseline.step(*batch)) if baseline else (lambda: ours.step(iter([planes])))
            peak = peak_memory(lambda: [step() for _ in range(2)], device)
            yield Row(f"memory of {options.only}", ours=f"{peak / 2**30:.2f} GiB", figures={"bytes": peak})
            return
        baseline, ours = make_baseline(device), build()
        loss, gradient = compare_losses(baseline, ours, planes)
        difference = f"loss {100 * loss:.2g} %, gradient {100 * gradient:.2g} %"
        kind = str(ours.run.dtype or torch.float32).removeprefix("torch.")
        print(f"  ours in {kind}: {difference}")
        sides = {"published": lambda: baseline.step(*batch), "ours": lambda: ours.step(iter([planes]))}
        times = compare(*sides.values(), device, options.runs, warm_up=0 if options.quick else 1, reuse_memory=True)
        memory = {side: measure_memory(options, side) / 2**30 for side in sides}
        name = f"training step, {options.size} x {options.size}, batch {options.batch}, {kind}"
        found = row(
            name + (", compiled" if options.compile else ""),
            ("published, float32", "Training.step"),
            times,
            difference,
            f"peak memory {memory['published']:.2f} GiB and {memory['ours']:.2f} GiB",
        )
        print(f"    {found.note}")
        yield found


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "size": (1024, "side of the samples"),
        "batch": (1, "samples per step"),
        "runs": (2, "timed runs of each side"),
        "precision": ("auto", "of ours: auto, full or half"),
        "compile": (False, "compile ours, which takes minutes"),
        "only": ("", "published or ours: measure the memory of two steps of this side alone"),
    },
    quick={"size": 128, "batch": 2, "runs": 1},
    cuda={"batch": 6, "runs": 10},
)

if __name__ == "__main__":
    BENCHMARK.main()
