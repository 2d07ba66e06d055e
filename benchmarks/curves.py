"""Compare the loss curve of a training in bfloat16 with those of trainings in float32.

python -m benchmarks.curves [--device auto] [--steps 200] [--seeds 3]

Each run takes the same steps of phase 2 on the same drawn photographs, from weights, shuffling and flips that follow
from its seed. A curve is the logarithm of the loss, averaged over a tenth of the steps. The distance of two curves is
the mean of their absolute difference. The 16-bit curve of the first seed passes if its distance from the float32 curve
of that seed is at most the largest distance between the float32 curves of two seeds. The exit code is 1 if not.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.samples import write_data_set
from IS_Net.data_loader import DISDataset, TrainDataset, train_loader
from IS_Net.datalist import from_folder
from IS_Net.device import dtype_name, half_dtype, pick_device
from IS_Net.engine import Run, Training
from IS_Net.hypar import Settings
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.run_log import RunLog
from IS_Net.tasks import SegmentationTask

Networks = Callable[[], tuple[ISNetDIS, ISNetGTEncoder]]


def make_networks() -> tuple[ISNetDIS, ISNetGTEncoder]:
    """Return the network with 5 input channels, and a GT encoder, with random weights."""
    return ISNetDIS(5), ISNetGTEncoder()


def train(
    data: DISDataset,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype | None,
    steps: int,
    networks: Networks = make_networks,
) -> np.ndarray:
    """Train and return the loss of each step.

    Args:
        data: The samples, of 5 channels.
        settings: Their ``seed`` is that of weights, shuffling and flips.
        device: Where to train.
        dtype: Of autocast; None is float32.
        steps: Number of steps.
        networks: Makes the network and the GT encoder.
    """
    torch.manual_seed(settings.seed)
    batches = iter(train_loader(TrainDataset([data], settings.seed, True, True), settings.batch_size_train, workers=0))
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder))
        run = Run(settings, device, dtype, [], lambda start: [], log)
        training = Training(SegmentationTask(*networks(), settings), run)
        losses = []
        for _ in range(steps):
            training.step(batches)
            losses.append(training.read_loss())
        log.close()
    return np.array(losses)


def smooth(losses: np.ndarray) -> np.ndarray:
    """Return the curve of (N,) losses: their logarithm, averaged over every tenth of the steps in a row."""
    width = max(1, len(losses) // 10)
    return np.convolve(np.log(losses), np.full(width, 1 / width), mode="valid")


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean absolute difference of the curves of two trainings; 0.01 means that losses differ by 1 %."""
    return float(np.abs(smooth(first) - smooth(second)).mean())


def judge(exact: Sequence[np.ndarray], half: np.ndarray) -> tuple[float, float]:
    """Return the distance of the 16-bit run from the float32 run of its seed, and the largest between two seeds.

    Args:
        exact: The losses in float32, (N,) for each seed, at least two.
        half: The losses in 16 bits of the first seed.
    """
    return distance(exact[0], half), max(itertools.starmap(distance, itertools.combinations(exact, 2)))


def main(argv: Sequence[str] | None = None, networks: Networks = make_networks) -> int:
    """Print the ends of all curves and the distances; return 1 if the 16-bit curve is too far away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="float32 runs, at least 2; default: %(default)s")
    parser.add_argument("--size", type=int, default=128, help="side of the samples; default: %(default)s")
    parser.add_argument("--batch", type=int, default=2, help="samples per step; default: %(default)s")
    parser.add_argument("--samples", type=int, default=16, help="drawn photographs; default: %(default)s")
    parser.add_argument("--lr", type=float, default=Settings.lr, help="learning rate; default: %(default)s")
    options = parser.parse_args(argv)
    if options.seeds < 2 or options.steps < 1:
        parser.error("at least 2 seeds and 1 step are needed")
    device = pick_device(options.device)
    dtype = half_dtype(device)
    if dtype is None:
        parser.error(f"{device} has no 16-bit type; choose another --device")

    def run(name: str, seed: int, dtype: torch.dtype | None) -> np.ndarray:
        chosen = {"model": 5, "cache_size": options.size, "batch_size_train": options.batch, "lr": options.lr}
        settings = Settings.from_hypar({**chosen, "seed": seed})
        losses = train(data, settings, device, dtype, options.steps, networks)
        tenth = max(1, len(losses) // 10)
        first, last = losses[:tenth].mean(), losses[-tenth:].mean()
        print(f"{name}, seed {seed}: mean loss of the first tenth {first:.4g}, of the last {last:.4g}", flush=True)
        return losses

    with tempfile.TemporaryDirectory() as folder:
        write_data_set(Path(folder), options.samples, options.size, options.size)
        data = DISDataset(from_folder(folder), 5, (options.size, options.size))
        exact = [run("float32", seed, None) for seed in range(options.seeds)]
        half = run(dtype_name(dtype), 0, dtype)
    found, spread = judge(exact, half)
    passes = found <= spread
    print(
        f"{dtype_name(dtype)} is {found:.3g} from float32; the seeds are up to {spread:.3g} from each other: "
        f"{'passes' if passes else 'does not pass'}"
    )
    return int(not passes)


if __name__ == "__main__":
    sys.exit(main())
