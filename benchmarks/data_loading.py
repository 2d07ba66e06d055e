"""Time the training data: this project's loader against the published one, both in one process.

Both sides end with normalized float32 tensors on the device. The published loader reads files of one tensor each, and
flips. Ours reads the cache and flips; with synthesis, it also composes scenes of several objects and simulates their
coarse masks, which the published code does not do. On CUDA devices, training on the loader is also compared with
training on one batch again and again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import published
from benchmarks.samples import write_data_set
from benchmarks.timing import Benchmark, Row, compare, idle_share, row, seconds
from benchmarks.train_step import make_ours
from IS_Net.data_loader import DISDataset, Synthesis, TrainDataset, train_loader
from IS_Net.datalist import from_folder
from IS_Net.machine import available_cores
from IS_Net.tensors import make_input, make_target

SYNTHESIS = Synthesis(copy_paste=0.95, simulate_mask=1.0)


def repeat(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a loader again and again."""
    while True:
        yield from loader


def largest_difference(plain: published.TensorFiles, cached: DISDataset) -> str:
    """Return how the unflipped samples of both sides differ."""
    found = 0.0
    for index in range(len(plain)):
        planes = torch.from_numpy(cached.planes(index).copy())[None]
        sample = plain[index]
        expected = torch.cat((sample["image"], sample["label"]))
        ours = torch.cat((make_input(planes[:, :5]), make_target(planes[:, 5:])), dim=1)[0]
        kept = [0, 1, 2, 3, 5]  # the box is drawn at another size, with another border
        found = max(found, 255 * (ours[kept] - expected[kept]).abs().max().item())
    return f"at most {found:.0f}/255: ours rounds, the published code cuts off"


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield rows for flips and for synthesis; on CUDA devices, also for training on the loader."""
    device, size, batch = options.device, (options.size, options.size), options.batch
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        files = write_data_set(folder / "data", options.images, options.height, options.width)
        started = time.perf_counter()
        plain = published.TensorFiles(files, folder / "tensors", size, flips=False)
        built = [time.perf_counter() - started]
        entry = {**from_folder(folder / "data"), "cache_dir": str(folder / "cache")}
        started = time.perf_counter()
        cached = DISDataset(entry, 5, size)
        built.append(time.perf_counter() - started)
        print(f"  cache of {len(files)} samples: published {built[0]:.1f} s, ours {built[1]:.1f} s")
        difference = largest_difference(plain, cached)
        print(f"  {difference}")
        plain.flips = True

        baseline = repeat(published.train_loader(plain, batch))

        def take_published() -> None:
            for found in islice(baseline, options.batches):
                found["image"].to(device), found["label"].to(device)

        for name, synthesis in (("flips", Synthesis()), ("copy-paste, simulated masks, flips", SYNTHESIS)):
            data = TrainDataset([cached], 0, True, True, None, 5, synthesis, device)
            batches = iter(train_loader(data, batch, workers=0, pin=device.type == "cuda"))

            def take_ours(batches: Iterator[Tensor] = batches) -> None:
                for planes in islice(batches, options.batches):
                    planes = planes.to(device, non_blocking=True)
                    make_input(planes[:, :5]), make_target(planes[:, 5:])

            def take_bytes(batches: Iterator[Tensor] = batches) -> None:
                for _ in islice(batches, options.batches):
                    pass

            where = f"one process, on the {data.device.type}"
            what = f"training data, {size[1]} x {size[0]}, {name}"
            if synthesis == Synthesis():
                times = compare(take_published, take_ours, device, options.runs)
                rates = [options.batches * batch / min(values) for values in (times.baseline, times.ours)]
                note = f"{rates[0]:.3g} and {rates[1]:.3g} samples/s at best, {where}"
                yield row(what, ("published loader", "ours"), times, difference, note)
                times = compare(take_published, take_bytes, device, options.runs)
                note = "the device normalizes the bytes as part of the training step"
                yield row(f"{what}, loader alone", ("published loader", "ours, as bytes"), times, difference, note)
            else:
                take_ours()
                times = [seconds(take_ours, device) for _ in range(options.runs)]
                rate = options.batches * batch / min(times)
                found = Row(what, ours=f"{rate:.3g} samples/s at best", note=where, figures={"seconds": times})
                print(f"  {what}: {found.ours}, {where}")
                yield found
            if device.type == "cuda":
                yield _training_row(options, data, name, folder)


def _training_row(options: argparse.Namespace, data: TrainDataset, what: str, folder: Path) -> Row:
    """Compare training on a loader, with worker processes, with training on one batch."""
    device = options.device
    training = make_ours(options.size, options.batch, device, "auto", False, folder / "run")
    batches = iter(train_loader(data, options.batch, workers=available_cores(), pin=True))
    same = next(batches).to(device)

    def on_one_batch() -> None:
        for _ in range(options.batches):
            training.step(iter([same]))

    def on_loader() -> None:
        for _ in range(options.batches):
            training.step(batches)

    times = compare(on_one_batch, on_loader, device, options.runs)
    return row(
        f"training, {options.size} x {options.size}, batch {options.batch}, {what}",
        ("one batch again", "its loader"),
        times,
        note=f"device idle {100 * idle_share(on_loader, device):.1f} % on its loader",
        as_long=True,
    )


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "images": (12, "number of photographs"),
        "width": (2000, "of the photographs"),
        "height": (1500, "of the photographs"),
        "size": (1024, "side of the samples"),
        "batch": (4, "samples per batch"),
        "batches": (3, "batches per timed run"),
        "runs": (5, "timed runs of each side"),
    },
    quick={"images": 2, "width": 200, "height": 150, "size": 128, "batch": 2, "batches": 1, "runs": 1},
    cuda={"batch": 6, "batches": 10, "images": 24, "runs": 3},
)

if __name__ == "__main__":
    BENCHMARK.main()
