"""Time SAM's image encoder, and the masks of a picture with several objects: one encoding for all against one for each.

SAM's weights are random, which does not change the time. The published procedure encodes the picture for each object
and for the whole, so that k objects take k + 1 encodings.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from benchmarks import published
from benchmarks.published import Box
from benchmarks.samples import draw
from benchmarks.timing import Benchmark, Row, compare, row
from sam.prompts import Prompt


def boxes_of(box: Box, number: int) -> list[Box]:
    """Return a box, and as many parts of it side by side."""
    x0, y0, x1, y1 = box
    edges = np.linspace(x0, x1, number + 1).round().astype(int)
    return [box, *((int(left), y0, int(right), y1) for left, right in pairwise(edges))]


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield two rows; none if segment_anything is not installed."""
    if importlib.util.find_spec("segment_anything") is None:
        print("  left out: segment_anything is not installed")
        return
    from segment_anything import SamPredictor

    from sam.backends.attention import fuse_attention
    from sam.backends.segment_anything import BUILDERS, BatchedSamPredictor
    from tests.sam.tiny_sam import tiny_sam

    device = options.device
    torch.manual_seed(0)
    network = (tiny_sam if options.model == "tiny" else BUILDERS[options.model])().to(device).eval()
    fused = copy.deepcopy(network)
    fuse_attention(fused.image_encoder)  # as load() does
    plain, ours = SamPredictor(network), BatchedSamPredictor(fused, options.model)
    sample = draw(options.height, options.width)
    boxes = boxes_of(sample.box, options.objects)
    prompts = [Prompt("photo", str(index), tuple(map(float, box))) for index, box in enumerate(boxes)]

    def make_ours() -> list[np.ndarray]:
        ours.set_image(sample.image)
        return [mask for mask, _ in ours.predict_prompts(prompts, "first")]

    pixels = torch.randn(1, 3, plain.model.image_encoder.img_size, plain.model.image_encoder.img_size).to(device)

    @torch.inference_mode()
    def encode(sam: torch.nn.Module) -> torch.Tensor:
        return sam.image_encoder(pixels)

    difference = (encode(network) - encode(fused)).abs().max().item()  # also warms both up
    yield row(
        f"SAM {options.model}, image encoder",
        ("attention of segment_anything", "fused attention"),
        compare(lambda: encode(network), lambda: encode(fused), device, options.runs, 0, reuse_memory=True),
        f"largest difference {difference:.1g}",
        "random weights",
    )
    results = published.make_masks(plain, sample.image, boxes), make_ours()  # also warms both up
    flips = 100 * np.mean([baseline != own for baseline, own in zip(*results, strict=True)])
    yield row(
        f"SAM {options.model}, {options.objects} objects and the whole",
        (f"{len(boxes)} encodings", "one encoding"),
        compare(lambda: published.make_masks(plain, sample.image, boxes), make_ours, device, options.runs, 0, True),
        f"{flips:.3g} % of the masks' pixels differ",
        "random weights",
    )


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "model": ("vit_b", "vit_b, vit_l, vit_h, or tiny, which is for tests"),
        "objects": (3, "number of objects"),
        "width": (1500, "of the picture"),
        "height": (1000, "of the picture"),
        "runs": (2, "timed runs of each side"),
    },
    quick={"model": "tiny", "objects": 2, "width": 150, "height": 100, "runs": 1},
    cuda={"model": "vit_l", "runs": 5},
)

if __name__ == "__main__":
    BENCHMARK.main()
