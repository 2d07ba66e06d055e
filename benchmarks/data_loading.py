"""Time the cached loader with flips in one process against decoding the files, and the building of the cache.

python benchmarks/data_loading.py [--images 32] [--size 1024] [--runs 5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from timing import compare, peak_memory

from IS_Net.data_loader import DISDataset, TrainDataset, train_loader
from IS_Net.datalist import from_folder
from IS_Net.images import write_image, write_mask


def main() -> None:
    """Print both sides, their ratio, and the items per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    size, cpu = (options.size, options.size), torch.device("cpu")

    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for index in range(options.images):
            smooth = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8).repeat(100, 0).repeat(100, 1)
            write_image(folder / "im" / f"{index}.jpg", smooth)
            for kind in ("gt", "mask"):
                write_mask(folder / kind / f"{index}.png", smooth[..., 0] // 128 * np.uint8(255))
        entry = from_folder(folder)
        started = time.perf_counter()
        cached = DISDataset({**entry, "cache_dir": str(folder / "cache")}, 4, size)
        built = time.perf_counter() - started
        print(f"{options.images} images of 2000 x 1500 px to {size[0]} x {size[1]}; one process")
        print(f"  cache built in {built:.1f} s: {options.images / built:.1f} images/s, all cores")

        def loop(dataset: DISDataset, items: int, batch: int) -> None:
            data = TrainDataset([dataset], 0, flip_h=True, flip_v=True)
            for planes in islice(train_loader(data, batch, workers=0), items // batch):
                assert planes.dtype == torch.uint8

        items, batch = options.images * 2, 4
        compare(
            (f"{items} items decoded from their files", lambda: loop(DISDataset(entry, 4, size), items, batch)),
            (f"{items} items from the cache", lambda: loop(cached, items, batch)),
            cpu,
            options.runs,
            warm_up=1,
        )
        started = time.perf_counter()
        loop(cached, 10 * items, batch)
        print(f"  cached, flips: {10 * items / (time.perf_counter() - started):.0f} uint8 items/s")
        print(f"  peak memory: {peak_memory(cpu)}")


if __name__ == "__main__":
    main()
