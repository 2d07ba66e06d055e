"""Time `dis-sam cut` on one photograph of 12 megapixels, as a new process, against the prediction alone.

The prediction, from the pixels and a box to the alpha matte, is timed in this process, with the model loaded. The
command also starts Python, loads the weights, decodes the photograph, estimates the colors of soft edges, and encodes
the cut-out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.samples import draw
from benchmarks.timing import Benchmark, Row, Times, spread, synchronize
from IS_Net.images import read_image, write_image
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor


def timed(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Call a function; return the seconds that passed, and the CPU seconds of this process and its children."""
    synchronize(device)
    clocks = time.perf_counter(), sum(os.times()[:4])
    function()
    synchronize(device)
    return time.perf_counter() - clocks[0], sum(os.times()[:4]) - clocks[1]


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield one row."""
    device = options.device
    weights = Path(options.weights) if options.weights else starter_weights()
    predictor = DISPredictor.from_checkpoint(weights, device)
    sample = draw(options.height, options.width)
    with tempfile.TemporaryDirectory() as folder:
        photo, out = Path(folder, "photo.jpg"), Path(folder, "out.png")
        write_image(photo, sample.image)
        image, box = read_image(photo), sample.box
        arguments = [str(photo), "--box", ",".join(map(str, box)), "--sam", "box", "--device", str(device)]
        arguments += ["--weights", str(weights)]
        command = [sys.executable, "-m", "dis_sam.cli", "cut", *arguments, "-o", str(out)]

        def predict() -> np.ndarray:
            return predictor.predict(image, box=box)

        def cut() -> None:
            out.unlink(missing_ok=True)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        cut()  # warm up: file cache, first calls
        written = cv2.imread(str(out), cv2.IMREAD_UNCHANGED)[..., 3]
        difference = f"at most {np.abs(written - np.rint(255 * predict())).max():.0f}/255"
        pairs = [(timed(predict, device), timed(cut, device)) for _ in range(options.runs)]
    walls = Times([pair[0][0] for pair in pairs], [pair[1][0] for pair in pairs])
    cpu = Times([pair[0][1] for pair in pairs], [pair[1][1] for pair in pairs])
    note = f"CPU time {statistics.median(cpu.baseline):.2f} s and {statistics.median(cpu.ours):.2f} s"
    found = Row(
        f"dis-sam cut, one {options.width} x {options.height} photograph",
        f"prediction alone, warm: {spread(walls.baseline)}",
        f"new process: {spread(walls.ours)}",
        f"{walls.overhead:+.2f} s",
        difference,
        note,
        {"baseline": walls.baseline, "ours": walls.ours, "overhead": walls.overhead},
    )
    print(f"  {found.baseline}\n  {found.ours}\n  {found.verdict}; {note}")
    yield found


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "width": (4000, "of the photograph"),
        "height": (3000, "of the photograph"),
        "weights": ("", "the checkpoint; empty: the starter weights"),
        "runs": (5, "timed runs of each side"),
    },
    quick={"width": 400, "height": 300, "runs": 1},
)

if __name__ == "__main__":
    BENCHMARK.main()
