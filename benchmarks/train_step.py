"""Time a training step of phase 2 with all loss terms against a straightforward float32 step of the same network.

The baseline: float32, NCHW, side-output loss, features from a full forward pass of the GT encoder, the orthogonal loss
by autograd, AdamW without fusion.

python benchmarks/train_step.py [--device auto] [--size 1024] [--batch 1] [--runs 3] [--precision auto]
    [--only baseline|ours]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from timing import compare, peak_memory

from IS_Net.device import autocast_dtype, describe, pick_device
from IS_Net.engine import Run, Training
from IS_Net.hypar import Settings
from IS_Net.losses import feature_loss, side_output_loss
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.run_log import RunLog
from IS_Net.tasks import SegmentationTask
from IS_Net.tensors import make_target


def baseline_orthogonal_loss(model: torch.nn.Module) -> torch.Tensor:
    """Compute the orthogonal loss by its formula, parameter by parameter."""
    total = torch.zeros((), device=next(model.parameters()).device)
    for name, parameter in model.named_parameters():
        if not name.endswith("bias"):
            weight = parameter.reshape(parameter.shape[0], -1)
            total = total + (weight @ weight.T - torch.eye(len(weight), device=weight.device)).abs().sum()
    return total


def main() -> None:
    """Print both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--precision", default="auto", help="precision of our side: auto, full or half")
    parser.add_argument("--only", choices=("baseline", "ours"), help="run only one side, to measure its memory")
    options = parser.parse_args()

    torch.manual_seed(0)
    device = pick_device(options.device)
    sizes = {"cache_size": [options.size, options.size], "batch_size_train": options.batch}
    settings = Settings.from_hypar({**sizes, "model_digit": options.precision})
    dtype = autocast_dtype(device, settings.model_digit)
    planes = torch.randint(0, 256, (options.batch, 5, options.size, options.size), dtype=torch.uint8)
    planes[:, 3:] = (planes[:, 3:] > 127) * 255

    model, teacher = ISNetDIS(4).to(device).train(), ISNetGTEncoder().to(device).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-5, weight_decay=0, fused=False, foreach=False)

    def baseline() -> None:
        batch = planes.to(device).float() / 255
        batch[:, :3] -= 0.5
        target = batch[:, 4:]
        sides, features = model(batch[:, :4])
        with torch.no_grad():
            gt_features = teacher(target)[1]
        loss = side_output_loss(sides, target, settings.bce_weight, settings.iou_weight)
        loss = loss + feature_loss(features, gt_features)
        loss = loss + 1e-8 * baseline_orthogonal_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    task = SegmentationTask(ISNetDIS(4), ISNetGTEncoder(), settings)
    assert make_target(planes).max() == 1
    with tempfile.TemporaryDirectory() as folder:
        run = Run(settings, device, dtype, [], lambda start: [], RunLog(Path(folder)))
        training = Training(task, run)

        def ours() -> None:
            training.step(iter([planes]))

        size = f"{options.size} x {options.size}, batch {options.batch}"
        print(f"{describe(device)}, {size}, precision {options.precision}: {dtype or torch.float32}")
        if options.only:
            step = {"baseline": baseline, "ours": ours}[options.only]
            for _ in range(options.runs):
                step()
        else:
            compare(("float32 step", baseline), ("Training.step", ours), device, options.runs, warm_up=1)
        print(f"  peak memory: {peak_memory(device)}")


if __name__ == "__main__":
    main()
