"""Compare the alpha mattes of every fast path with PyTorch's in float32, on photographs with ground truths.

python -m benchmarks.guards FOLDER ... [--device auto] [--masks mask] [--limit N]

Each FOLDER holds im/ and gt/, and coarse masks in mask/ (or --masks). A fast path passes if the mean difference is
below 2/255, fewer than .05 % of the pixels change sides at .5, and the mean boundary IoU stays within .001. The exit
code is 1 if one does not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.predict import choose_runtimes
from IS_Net.device import half_dtype, pick_device
from IS_Net.errors import DeviceError
from IS_Net.images import list_images, read_image, read_mask
from IS_Net.metrics.iou import boundary_iou
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor

MEAN, FLIPS, BOUNDARY = 2 / 255, 0.0005, 0.001
"""Highest mean difference, share of pixels that change sides, and change of the mean boundary IoU."""


def measure(exact: np.ndarray, fast: np.ndarray, gt: np.ndarray) -> tuple[float, float, float]:
    """Return mean difference, share of pixels that change sides at .5, and change of the boundary IoU.

    Args:
        exact: (H, W) float in [0, 1], the alpha matte in float32.
        fast: (H, W) float in [0, 1], that of the fast path.
        gt: (H, W) uint8, the ground truth.
    """
    scores = [boundary_iou(alpha > 0.5, gt > 128) for alpha in (exact, fast)]
    return float(np.abs(exact - fast).mean()), float(np.mean((exact > 0.5) != (fast > 0.5))), scores[1] - scores[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each fast path; return 1 if one does not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--masks", default="mask", help="folder of the coarse masks; default: %(default)s")
    parser.add_argument("--limit", type=int, help="pairs of each folder")
    parser.add_argument("--precisions", nargs="+", default=["full", "half"], help="of the fast paths; default: both")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    paths = {
        (runtime, precision)
        for runtime in choose_runtimes(device)
        for precision in options.precisions
        if (runtime, precision) != ("torch", "full") and (precision == "full" or half_dtype(device))
    }
    exact = DISPredictor.from_checkpoint(starter_weights(), device, "full", runtime="torch")
    fast: dict[str, DISPredictor] = {}
    for runtime, precision in sorted(paths):
        try:
            predictor = DISPredictor.from_checkpoint(starter_weights(), device, precision, runtime=runtime)
        except DeviceError as error:  # OpenVINO has no 16-bit type on every CPU
            print(f"{runtime}, {precision}: {error}")
        else:
            fast[f"{runtime}, {predictor.runtime.precision}"] = predictor
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in fast}
    files = [(folder, name) for folder in options.folders for name in list(list_images(folder / "im"))[: options.limit]]
    for folder, name in tqdm(files, "photographs"):
        image = exact.prepare(read_image(list_images(folder / "im")[name]))
        gt, mask = (read_mask(folder / kind / f"{name}.png") for kind in ("gt", options.masks))
        expected = exact.predict(image, mask)
        for path, predictor in fast.items():
            found[path].append(measure(expected, predictor.predict(image, mask), gt))
    failed = False
    for path, figures in found.items():
        difference, flips, change = map(statistics.fmean, zip(*figures, strict=True))
        passes = difference < MEAN and flips < FLIPS and abs(change) < BOUNDARY
        failed |= not passes
        print(
            f"{path}: mean difference {255 * difference:.3g}/255, {100 * flips:.3g} % change sides, boundary IoU "
            f"{change:+.5f}, {len(figures)} photographs: {'passes' if passes else 'does not pass'}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
