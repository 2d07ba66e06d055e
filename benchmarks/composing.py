"""Time the composing of training samples (copy-paste scenes with simulated masks) on the CPU and on a GPU.

python benchmarks/composing.py [--size 1024] [--samples 32] [--batch 8] [--sources 24] [--against OTHER_CHECKOUT]

The sources are generated. One thread is used, as in a worker process of the loader. With ``--against``, the CPU part
also runs on the code of another checkout, in turn with this one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from IS_Net.data_loader import DISDataset, Synthesis, TrainDataset, train_loader
from IS_Net.datalist import from_folder
from IS_Net.images import write_image, write_mask

PROBABILITIES = Synthesis(copy_paste=0.95, simulate_mask=1.0)


def generate(folder: Path, number: int, side: int) -> None:
    """Write photographs of blobs with a ragged border and some texture, in front of clouds."""
    for index in range(number):
        rng = np.random.default_rng(index)

        def clouds(cells: int, rng: np.random.Generator = rng) -> np.ndarray:
            noise = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
            return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)

        rows, columns = np.mgrid[:side, :side] / side
        center, radius = rng.uniform(0.35, 0.65, 2), rng.uniform(0.12, 0.35)
        distance = (
            np.hypot(rows - center[0], columns - center[1]) + 0.05 * clouds(12)[..., 0] + 0.02 * clouds(60)[..., 0]
        )
        alpha = np.clip((radius - distance) * side / 3 + 0.5, 0, 1)[..., None]
        mean = rng.uniform(40, 215, (2, 3))
        layers = [m + 40 * clouds(8) + 15 * clouds(100) for m in mean]
        image = alpha * layers[0] + (1 - alpha) * layers[1]
        write_image(folder / "im" / f"{index}.png", np.clip(image, 0, 255).astype(np.uint8))
        write_mask(folder / "gt" / f"{index}.png", np.rint(alpha[..., 0] * 255).astype(np.uint8))


def measure(folder: Path, size: int, samples: int, batch: int, device: torch.device) -> float:
    """Return the samples per second of the loader."""
    dataset = DISDataset({**from_folder(folder), "cache_dir": str(folder / f"cache_{size}")}, 3, (size, size))
    options = {} if device.type == "cpu" else {"device": device}  # earlier code has no such option
    data = TrainDataset([dataset], 0, True, True, None, 5, PROBABILITIES, **options)
    batches = iter(train_loader(data, batch, workers=0))
    for _ in islice(batches, 1 if device.type == "cpu" else 5):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, made = time.perf_counter(), 0
    while made < samples:
        made += len(next(batches))
    if device.type == "cuda":
        print(f"  {device}: the host is free after {1e3 * (time.perf_counter() - started) / made:.2f} ms a sample")
        torch.cuda.synchronize()
        print(f"  {device}: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of memory at most")
    return made / (time.perf_counter() - started)


def main() -> None:
    """Print samples per second of each side, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sources", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--against", type=Path, help="a checkout whose loader is the baseline on the CPU")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process that measures one side
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    numbers = options.size, options.samples, options.batch
    if options.folder:
        print(measure(options.folder, *numbers, torch.device("cpu")))
        return

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, options.sources, options.size)

        def in_process(checkout: Path) -> float:
            arguments = [__file__, "--folder", name]
            for key in ("size", "samples", "batch"):
                arguments += [f"--{key}", str(getattr(options, key))]
            env = {**os.environ, "PYTHONPATH": str(checkout)}
            ran = subprocess.run([sys.executable, *arguments], env=env, check=True, stdout=subprocess.PIPE, text=True)
            return float(ran.stdout.split()[-1])

        sides = {"ours": Path(__file__).resolve().parents[1]}
        if options.against:
            sides = {"baseline": options.against.resolve(), **sides}
        rates = [{side: in_process(path) for side, path in sides.items()} for _ in range(options.runs)]
        print(f"{options.size} x {options.size} px, batches of {options.batch}, one thread")
        for side in sides:
            values = [rate[side] for rate in rates]
            print(f"  cpu, {side}: {statistics.median(values):.2f} samples/s ({min(values):.2f} .. {max(values):.2f})")
        if options.against:
            ratio = statistics.median(rate["ours"] / rate["baseline"] for rate in rates)
            print(f"  ratio: ours is {ratio:.2f} times as fast")
        if torch.cuda.is_available():
            device = torch.device("cuda")
            rate = measure(folder, options.size, 40 * options.samples, options.batch, device)
            print(f"  {torch.cuda.get_device_name()}: {rate:.0f} samples/s")


if __name__ == "__main__":
    main()
