"""Time mode valid with all metrics: against the prediction of the same maps alone, and the published validation.

The data set is cached. The prediction alone is the loop of mode valid without ground truths and scores; the published
validation computes only the maximum of F and MAE, of stretched maps.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import published
from benchmarks.samples import write_data_set
from benchmarks.timing import Benchmark, Row, compare, row
from IS_Net.checkpoint import load_isnet
from IS_Net.data_loader import DISDataset, ValidDataset, valid_loader
from IS_Net.datalist import from_folder
from IS_Net.engine import predict_maps
from IS_Net.hypar import Settings
from IS_Net.machine import available_cores
from IS_Net.paths import starter_weights
from IS_Net.phases import Session, evaluate
from IS_Net.tasks import SegmentationTask


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each of the two comparisons."""
    device, size = options.device, (options.size, options.size)
    workers = available_cores() if options.workers < 0 else options.workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_data_set(folder / "data", options.images, options.height, options.width)
        entry = {**from_folder(folder / "data"), "cache_dir": str(folder / "cache")}
        model = load_isnet(starter_weights())[0].to(device).eval()
        hypar = {
            "mode": "valid",
            "model": model.in_ch,
            "restore_model": str(starter_weights()),
            "cache_size": options.size,
        }
        hypar |= {"device": str(device), "workers": workers, "batch_size_valid": options.batch}
        plain = published.TensorFiles(files, folder / "tensors", size, flips=False)

        session = Session(Settings.from_hypar(hypar))
        network = load_isnet(starter_weights())[0].to(device, memory_format=torch.channels_last)
        task = SegmentationTask(network, None, session.settings)
        without_gt = ValidDataset(DISDataset({**entry, "gt_dir": ""}, model.in_ch, size, need_gt=False))

        def predict() -> None:
            for _, alpha, _ in predict_maps(
                task, valid_loader(without_gt, options.batch, workers), device, session.dtype
            ):
                alpha.cpu()

        found = {}

        def score() -> None:
            # what is cached of the ground truths is in a folder of its own, so that they are always new
            home = tempfile.mkdtemp(dir=folder)
            with patch.dict(os.environ, DIS_SAM_HOME=home):
                [scores] = evaluate(session, [entry]).scores
            found.update(scores.figures())

        def score_published() -> None:
            found["published"] = published.validate(model, plain)

        times = compare(predict, score, device, options.runs)
        what = f"mode valid, {len(files)} photographs of {options.width} x {options.height}, {workers} workers"
        yield row(what, ("prediction alone", "with all metrics"), times, as_long=True)
        times = compare(score_published, score, device, options.runs, warm_up=0)
        first = found["published"]
        difference = (
            f"max F {first['max_f']:.4f} and {found['max_f_mean_pr']:.4f}, MAE {first['mae']:.4f} and "
            f"{found['mae']:.4f}: the published maps are stretched"
        )
        print(f"  {difference}")
        yield row(what, ("published, max F and MAE", "all metrics"), times, difference)


BENCHMARK = Benchmark(
    __doc__,
    rows,
    options={
        "images": (4, "number of photographs"),
        "width": (2000, "of the photographs"),
        "height": (1500, "of the photographs"),
        "size": (1024, "side of the network's input"),
        "batch": (1, "photographs per forward pass of ours"),
        "workers": (-1, "worker processes; -1: one per core"),
        "runs": (2, "timed runs of each side"),
    },
    quick={"images": 2, "width": 200, "height": 150, "size": 128, "workers": 0, "runs": 1},
    cuda={"images": 48, "batch": 8},
)

if __name__ == "__main__":
    BENCHMARK.main()
