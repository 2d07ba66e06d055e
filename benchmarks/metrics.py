"""Time the metrics on one thread, and those of pysodmetrics on the same images in the same run.

"ours" computes everything; "ours, cached" reads the slow parts of the ground truth from the cache on disk, as
``dis-sam evaluate`` does.

pysodmetrics needs older versions than the project and thus its own environment. Without it, only ours is timed.

python -m venv /tmp/sod && /tmp/sod/bin/pip install pysodmetrics==1.6.2
python -m benchmarks.metrics --reference-python /tmp/sod/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.timing import Benchmark, Row, Times, row, spread
from IS_Net.metrics import (
    HCE,
    MAE,
    BoundaryAccuracy,
    BoundaryIoU,
    EMeasure,
    FMeasure,
    GroundTruth,
    IoU,
    Pair,
    SMeasure,
    WeightedFMeasure,
)
from IS_Net.metrics.fmeasure import KINDS
from IS_Net.scoring import GTCache

METRICS = {
    "MAE": MAE(),
    "F": FMeasure(KINDS),
    "weighted F": WeightedFMeasure(),
    "S": SMeasure(),
    "E": EMeasure(),
    "HCE": HCE(),
    "IoU": IoU(),
    "BIoU": BoundaryIoU(),
    "mBA": BoundaryAccuracy(),
}
REFERENCE = ("MAE", "F", "weighted F", "S", "E", "HCE")  # those of pysodmetrics
NEEDS = {"weighted F": "distance", "HCE": "skeleton"}  # the parts that the cache holds for them


def draw(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a map and its ground truth: an object with thick parts, spokes and hairs, and a map with errors."""
    rng = np.random.default_rng(0)
    gt, unit = np.zeros((height, width), np.uint8), height / 100
    for x in (0.3, 0.7):
        center = (int(x * width), int(60 * unit))
        cv2.circle(gt, center, int(22 * unit), 255, int(2 * unit), cv2.LINE_AA)
        for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
            rim = center + 22 * unit * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(gt, center, tuple(int(v) for v in rim), 255, max(1, int(unit / 5)), cv2.LINE_AA)
    cv2.ellipse(gt, (width // 2, int(30 * unit)), (int(24 * unit), int(14 * unit)), 15, 0, 360, 255, -1, cv2.LINE_AA)
    for _ in range(40):
        hair = np.array((width / 2, 30 * unit)) + np.cumsum(rng.normal(0, 2 * unit, (30, 2)), axis=0)
        cv2.polylines(gt, [hair.astype(np.int32)], False, 255, max(1, int(unit / 8)), cv2.LINE_AA)
    noise = cv2.resize(rng.normal(0, 1, (24, 24)), (width, height), interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur(gt, (0, 0), unit / 4).astype(np.float64)
    pred = np.clip(soft + 60 * noise * (cv2.dilate(gt, np.ones((9, 9))) > 0) + rng.normal(0, 4, gt.shape), 0, 255)
    return pred.astype(np.uint8), gt


class Reference:
    """pysodmetrics in its own process and environment."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("metrics_reference.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def seconds(self, images: Path, metric: str) -> float:
        """Return the time of one metric on one pair."""
        self._process.stdin.write(json.dumps({"images": str(images), "metric": metric}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the reference's process ended; is pysodmetrics installed in its environment?")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def seconds(function: Callable[[], object]) -> float:
    """Return the time of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(names: list[str], pred: np.ndarray, gt: np.ndarray | GroundTruth) -> None:
    """Measure metrics that share one pair."""
    pair = Pair(pred, gt)
    for name in names:
        METRICS[name].measure(pair)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Print a table for each size, and yield a row for all metrics of each."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    reference = Reference(options.reference_python) if options.reference_python else None
    groups = [(name, [name]) for name in METRICS] + [("these six", list(REFERENCE)), ("all", list(METRICS))]
    with tempfile.TemporaryDirectory() as folder:
        for text in options.sizes:
            width, height = map(int, text.split("x"))
            pred, gt = draw(height, width)
            images = Path(folder) / f"{width}.npz"
            np.savez(images, pred=pred, gt=gt)
            GTCache(folder).ground_truth(gt > 128)
            print(f"{width} x {height}, median of {options.runs} in ms; in brackets: times as fast as pysodmetrics")
            print(f"  {'':12}{'pysodmetrics':>14}{'ours':>18}{'ours, cached':>18}")
            for group, names in groups:
                cache = GTCache(folder, [NEEDS[name] for name in names if name in NEEDS])
                sides: list[Callable[[], float]] = [
                    lambda names=names, pred=pred, gt=gt: seconds(lambda: measure(names, pred, gt)),
                    lambda names=names, pred=pred, gt=gt, cache=cache: seconds(
                        lambda: measure(names, pred, cache.ground_truth(gt > 128) if cache.parts else gt)
                    ),
                ]
                compared = reference is not None and set(names) <= set(REFERENCE)
                if compared:
                    sides.append(
                        lambda names=names, images=images: sum(reference.seconds(images, name) for name in names)
                    )
                times = [[side() for side in sides] for _ in range(options.runs + 1)][1:]
                by_side = list(zip(*times, strict=True))
                ours, cached, *theirs = (1000 * statistics.median(side) for side in by_side)
                cells = [
                    f"{value:.1f}" + (f" ({theirs[0] / value:.1f}x)" if theirs else "") for value in (ours, cached)
                ]
                print(f"  {group:12}{f'{theirs[0]:.1f}' if theirs else '-':>14}{cells[0]:>18}{cells[1]:>18}")
                what = f"metrics of one {width} x {height} map, one thread"
                if group == "these six" and compared:
                    sides_of_row = "pysodmetrics, six metrics", "ours, ground truth cached"
                    yield row(what, sides_of_row, Times(by_side[2], by_side[1]), note=", ".join(REFERENCE))
                elif group == "all":
                    note = f"ground truth not cached: {spread(by_side[0])}"
                    yield Row(what, ours=f"all, ground truth cached: {spread(by_side[1])}", note=note)
    if reference:
        reference.close()


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "reference_python": ("", "Python with pysodmetrics 1.6.2"),
        "sizes": (("1024x1024", "3000x2000"), "widths and heights of the maps"),
        "runs": (5, "runs of each side, in turn"),
    },
    quick={"sizes": ("128x96",), "runs": 1},
)

if __name__ == "__main__":
    BENCHMARK.main()
