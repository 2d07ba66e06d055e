"""Time ``dis-sam evaluate`` on drawn maps, and measure the peak memory of all its processes. Linux only."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.metrics import draw
from benchmarks.timing import Benchmark, Row
from IS_Net.images import write_mask


def draw_data_set(folder: Path, images: int, size: int) -> None:
    """Write ground truths and maps: one pair, rotated and shifted so that all ground truths differ."""
    pred, gt = draw(size, size)
    rng = np.random.default_rng(0)
    for number in range(images):
        shift, turns = rng.integers(0, size, 2), number % 4
        for kind, plane in (("gt", gt), ("maps", pred)):
            write_mask(folder / kind / f"{number:04}.png", np.rot90(np.roll(plane, shift, (0, 1)), turns).copy())


def memory(session: int) -> int:
    """Return the memory of the processes of a session in bytes; shared memory counts once."""
    total = 0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and os.getsid(int(process.name)) == session:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ProcessLookupError):
            continue  # the process has ended
    return total


def run(home: Path, arguments: list[str]) -> tuple[float, int]:
    """Return the wall time in seconds and the peak memory in bytes of an evaluation with its cache in that home."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        [sys.executable, "-m", "IS_Net.evaluate", *arguments],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "DIS_SAM_HOME": str(home)},
    )
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the run ended with exit code {process.returncode}")
    return time.perf_counter() - started, peak


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Score the same maps twice, first with an empty cache of the ground truths, then with a filled one: one row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_data_set(folder, options.images, options.size)
        arguments = ["--gt", str(folder / "gt"), "--pred", str(folder / "maps"), "--workers", str(options.workers)]
        (empty, _), (filled, peak) = (run(folder / "home", arguments) for _ in range(2))
        found = Row(
            f"dis-sam evaluate, {options.images} maps of {options.size} x {options.size}, {options.workers} workers",
            f"empty cache of ground truths: {empty:.1f} s",
            f"filled cache: {filled:.1f} s",
            f"{empty / filled:.2f} x as fast",
            note=f"at most {peak / 2**20:.0f} MiB in all processes",
            figures={"empty": empty, "filled": filled, "memory": peak},
        )
        print(f"  {found.baseline}\n  {found.ours}\n  {found.note}")
        yield found


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "images": (100, "number of maps"),
        "size": (1024, "side of the maps"),
        "workers": (2, "worker processes"),
    },
    quick={"images": 2, "size": 128, "workers": 0},
)

if __name__ == "__main__":
    BENCHMARK.main()
