"""Time a prediction, from image, mask and box to the alpha matte: DISPredictor against the published procedure.

Each runtime that is installed and each precision is compared with the published procedure in float32, whose bits it
shares at ``full``; a precision of 16 bits is also compared with the published procedure in that type.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch

from benchmarks import published
from benchmarks.samples import draw
from benchmarks.timing import Benchmark, Row, compare, describe_maps, row
from IS_Net.checkpoint import load_isnet
from IS_Net.device import fast_dtype, half_dtype
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor
from IS_Net.runtime.base import is_installed, preferred

STRETCH = "the published map is also stretched to 0..1, ours is not by design"


def choose_precisions(device: torch.device) -> list[str]:
    """Return the precisions worth timing: ``half`` only where it is fast."""
    return ["full", "half"] if fast_dtype(device) else ["full"]


def choose_runtimes(device: torch.device) -> list[str]:
    """Return the runtimes that can be used."""
    return ["torch", *filter(is_installed, preferred() if device.type == "cpu" else ())]


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each runtime and precision, and for each precision on both sides."""
    device, size = options.device, (options.size, options.size)
    model = load_isnet(starter_weights())[0].to(device).eval()
    image, mask, _, box = draw(*size)
    baseline = published.predict_alpha(model, image, mask, box, size)

    def predict_published(dtype: torch.dtype | None) -> np.ndarray:
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            return published.predict(model, image, mask, box, size)

    for runtime in choose_runtimes(device):
        for precision in options.precisions if options.precisions != ("auto",) else choose_precisions(device):
            predictor = DISPredictor.from_checkpoint(starter_weights(), device, precision, size, runtime=runtime)
            name = f"{predictor.runtime.name}, {predictor.runtime.precision}"
            difference = describe_maps(baseline, predictor.predict(image, mask, box))
            print(f"  {name}: {difference}; {STRETCH}")
            equal = half_dtype(device) if precision == "half" else None
            for dtype in {None: "float32", equal: str(equal).removeprefix("torch.")} if equal else {None: "float32"}:
                times = compare(
                    lambda dtype=dtype: predict_published(dtype),
                    lambda predictor=predictor: predictor.predict(image, mask, box),
                    device,
                    options.runs,
                )
                yield row(
                    f"prediction, {size[1]} x {size[0]}, {name}",
                    (f"published, {'float32' if dtype is None else str(dtype).removeprefix('torch.')}", "DISPredictor"),
                    times,
                    difference,
                    STRETCH,
                )


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "size": (1024, "side of the photograph and of the network's input"),
        "runs": (5, "timed runs of each side"),
        "precisions": (("auto",), "precisions of ours; auto: full, and half where the device is faster with it"),
    },
    quick={"size": 128, "runs": 1},
    cuda={"runs": 20},
)

if __name__ == "__main__":
    BENCHMARK.main()
