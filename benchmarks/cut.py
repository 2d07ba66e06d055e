"""Time `dis-sam cut` on one photograph of 12 megapixels, as a new process, against the prediction alone.

The prediction, from the pixels and a box to the alpha matte, is timed in this process, with the model loaded. The
command also starts Python, imports PyTorch, loads the weights, decodes the photograph, estimates the colors of soft
edges, and encodes the cut-out.

python benchmarks/cut.py [--device auto] [--width 4000] [--height 3000] [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from IS_Net.device import describe
from IS_Net.images import read_image, write_image
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor


def make_photograph(height: int, width: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Draw a furry disk on a background of another color, with the grain of a camera.

    Returns:
        (height, width, 3) uint8 RGB, and a box around the disk as xyxy in pixels.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    center_y, center_x, radius = height / 2, width / 2, min(height, width) / 3
    angle = np.arctan2(y - center_y, x - center_x)
    hair = 1 + 0.03 * np.sin(60 * angle) + 0.02 * np.sin(173 * angle)
    inside = np.clip((radius * hair - np.hypot(y - center_y, x - center_x)) / 4, 0, 1)[..., None]
    image = inside * np.float32((200, 120, 60)) + (1 - inside) * np.float32((70, 110, 150))
    image += cv2.GaussianBlur(rng.normal(0, 12, (height, width, 3)).astype(np.float32), (0, 0), 1)
    reach = 1.05 * radius
    box = center_x - reach, center_y - reach, center_x + reach, center_y + reach
    return np.clip(image, 0, 255).astype(np.uint8), tuple(map(round, box))


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Call a function; return the seconds that passed, and the CPU seconds of this process and its children."""
    clocks = time.perf_counter(), sum(os.times()[:4])
    function()
    return time.perf_counter() - clocks[0], sum(os.times()[:4]) - clocks[1]


def main() -> None:
    """Print both sides and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    predictor = DISPredictor.from_checkpoint(starter_weights(), options.device)
    image, box = make_photograph(options.height, options.width)
    with tempfile.TemporaryDirectory() as folder:
        photo, out = Path(folder, "photo.jpg"), Path(folder, "out.png")
        write_image(photo, image)
        image = read_image(photo)
        arguments = [str(photo), "--box", ",".join(map(str, box)), "--sam", "box", "--device", options.device]
        command = [sys.executable, "-m", "dis_sam.cli", "cut", *arguments, "-o", str(out)]

        def predict() -> None:
            predictor.predict(image, box=box)
            if predictor.device.type == "cuda":
                torch.cuda.synchronize(predictor.device)

        def run() -> None:
            out.unlink(missing_ok=True)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        predict(), run()  # warm up: file cache, first calls
        pairs = [(timed(predict), timed(run)) for _ in range(options.runs)]
    print(f"{describe(predictor.device)}, {options.width} x {options.height}, median of {options.runs} runs in turn")
    for index, unit in enumerate(("s", "CPU s")):
        sides = [[side[index] for side in pair] for pair in pairs]
        names = "prediction alone, warm", "dis-sam cut, new process", "difference"
        rows = [*zip(*sides, strict=True), [whole - prediction for prediction, whole in sides]]
        for name, values in zip(names, rows, strict=True):
            spread = f"({min(values):.2f} .. {max(values):.2f})"
            print(f"  {name:26} median {statistics.median(values):6.2f} {unit:6} {spread}")


if __name__ == "__main__":
    main()
