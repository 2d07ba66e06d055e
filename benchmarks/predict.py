"""Time a prediction, from image and mask to alpha, against a float32 forward pass with all side outputs.

python benchmarks/predict.py [--device auto] [--size 1024] [--runs 5]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from timing import compare, peak_memory

from IS_Net.device import describe
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor


def main() -> None:
    """Print both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    torch.manual_seed(0)
    size = options.size
    model = ISNetDIS(4).eval()
    predictor = DISPredictor(model, options.device, input_size=(size, size))
    full = DISPredictor(model, options.device, "full", input_size=(size, size))
    network = model.to(predictor.device)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : -size // 4, size // 4 : -size // 4] = 255
    x = torch.randn(1, 4, size, size, device=predictor.device)

    @torch.inference_mode()
    def forward() -> None:
        torch.sigmoid(network(x)[0][0]).cpu()

    print(f"{describe(predictor.device)}, {size} x {size}, precision auto is {predictor.dtype or torch.float32}")
    baseline = ("forward pass, float32, six side outputs", forward)
    for name, own in (("auto", predictor), ("full", full)):
        ours = (f"DISPredictor.predict, precision {name}", lambda own=own: own.predict(image, mask))
        compare(baseline, ours, predictor.device, options.runs)
    print(f"  peak memory: {peak_memory(predictor.device)}")


if __name__ == "__main__":
    main()
