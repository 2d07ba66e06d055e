"""Time the metrics against pysodmetrics, on the same images and in one run, each on a single thread.

The last column has the ground truth's arrays read from the cache on disk, which knows it already, as ``evaluate`` does.

pysodmetrics needs older versions than the project, so it gets an environment of its own:

python -m venv /tmp/sod && /tmp/sod/bin/pip install pysodmetrics==1.6.2
python benchmarks/metrics.py --reference-python /tmp/sod/bin/python [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from IS_Net.metrics import HCE, MAE, EMeasure, FMeasure, GroundTruth, Pair, SMeasure, WeightedFMeasure
from IS_Net.metrics.fmeasure import KINDS
from IS_Net.scoring import GTCache

METRICS = {
    "MAE": MAE(),
    "F": FMeasure(KINDS),
    "weighted F": WeightedFMeasure(),
    "S": SMeasure(),
    "E": EMeasure(),
    "HCE": HCE(),
}
NEEDS = {"weighted F": "distance", "HCE": "skeleton"}  # what the cache keeps for them
SIZES = ((1024, 1024), (2000, 3000))


def draw(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a map and its ground truth: a thing with thick parts, spokes and hairs, found with some errors."""
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
        """Return how long one metric takes on one pair."""
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
    """Return how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(names: list[str], pred: np.ndarray, gt: np.ndarray | GroundTruth) -> None:
    """Measure some metrics on one pair, which they share."""
    pair = Pair(pred, gt)
    for name in names:
        METRICS[name].measure(pair)


def main() -> None:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", required=True, metavar="PATH", help="python with pysodmetrics 1.6.2")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side, in turn; the median counts")
    options = parser.parse_args()

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    reference = Reference(options.reference_python)
    names = list(METRICS)
    with tempfile.TemporaryDirectory() as folder:
        for height, width in SIZES:
            pred, gt = draw(height, width)
            images = Path(folder) / f"{width}.npz"
            np.savez(images, pred=pred, gt=gt)
            GTCache(folder).ground_truth(gt > 128)
            print(f"{width} x {height}, median of {options.runs} in ms, and how many times as fast")
            print(f"  {'':12}{'pysodmetrics':>14}{'ours, cold':>12}{'':8}{'ours, GT cache warm':>21}")
            rows = [(name, [name]) for name in names] + [("whole suite", names)]
            for row, those in rows:
                cache = GTCache(folder, [NEEDS[name] for name in those if name in NEEDS])
                times = [
                    (
                        sum(reference.seconds(images, name) for name in those),
                        seconds(lambda those=those, pred=pred, gt=gt: measure(those, pred, gt)),
                        seconds(
                            lambda those=those, pred=pred, gt=gt, cache=cache: measure(
                                those, pred, cache.ground_truth(gt > 128) if cache.parts else gt
                            )
                        ),
                    )
                    for _ in range(options.runs + 1)
                ][1:]
                theirs, cold, warm = (1000 * statistics.median(side) for side in zip(*times, strict=True))
                print(f"  {row:12}{theirs:14.1f}{cold:12.1f}{theirs / cold:7.1f}x{warm:21.1f}{theirs / warm:7.1f}x")
    reference.close()


if __name__ == "__main__":
    main()
