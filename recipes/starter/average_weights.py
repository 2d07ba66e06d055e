"""Average checkpoints of one training, and prepare the result for release.

    python -m recipes.starter.average_weights --int8 --mask-skip-gain 1.4 1024/last.pt 768/last.pt mean.safetensors

The mean of several checkpoints of one training is often better than each of them ("Model soups", Wortsman et al.,
ICML 2022). Of a training state (``last.pt``), the EMA weights are used if it has them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from IS_Net.checkpoint import load_isnet, save_weights
from IS_Net.command_line import DONE, run_command
from IS_Net.errors import CheckpointError
from IS_Net.files import prepare_output
from IS_Net.hypar import MAX_SIZE, MIN_SIZE
from IS_Net.models import ISNetDIS
from IS_Net.models.input_channels import increase_mask_skip


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts that have the same names and shapes.

    Integer tensors (BatchNorm's counters) are taken from the first one.
    """
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def average_weights(sources: Sequence[Path], mask_skip_gain: float = 0.0) -> tuple[ISNetDIS, dict[str, Any]]:
    """Load checkpoints and return a network that has their mean weights.

    Args:
        sources: One or more checkpoints with the same number of input channels.
        mask_skip_gain: Passed to :func:`IS_Net.models.input_channels.increase_mask_skip` unless it is 0.

    Returns:
        The network, on the CPU, and the first checkpoint's metadata. For several sources the metadata has no metrics,
        because those belong to the first checkpoint only.

    Raises:
        CheckpointError: If a checkpoint cannot be loaded, the numbers of input channels differ, or a gain is given and
            the weights do not carry the mask to the side outputs.
    """
    model, metadata = load_isnet(sources[0])
    states = [model.state_dict()]
    for path in sources[1:]:
        other, _ = load_isnet(path)
        if other.in_ch != model.in_ch:
            raise CheckpointError(
                f"{path}: found {other.in_ch} input channels, expected {model.in_ch} as in {sources[0]}; "
                "average checkpoints of the same network"
            )
        states.append(other.state_dict())
    if len(states) > 1:
        model.load_state_dict(mean_weights(states))
        metadata.pop("metrics", None)
    if mask_skip_gain:
        try:
            model.load_state_dict(increase_mask_skip(model.state_dict(), mask_skip_gain))
        except ValueError as error:
            raise CheckpointError(f"{sources[0]}: --mask-skip-gain: {error}") from error
    return model, {**metadata, "in_ch": model.in_ch}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.average_weights",
        description="Write the mean of IS-Net checkpoints as safetensors.",
    )
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="checkpoints: .safetensors, last.pt, .pth or .onnx"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the .safetensors file to write")
    parser.add_argument(
        "--mask-skip-gain", type=float, default=0.0, metavar="LOGIT",
        help="for weights trained with mask_skip_logit: add LOGIT to the output inside the mask, subtract it outside",
    )  # fmt: skip
    parser.add_argument(
        "--input-size", type=int, metavar="SIDE",
        help="size to predict at by default (default: the size of training)",
    )  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="store convolutions in 8 bits: a quarter of the file size")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        parser.error(f"{args.out}: expected a name that ends in .safetensors")
    if args.input_size is not None and not MIN_SIZE <= args.input_size <= MAX_SIZE:
        parser.error(f"--input-size: expected {MIN_SIZE} to {MAX_SIZE}, found {args.input_size}")

    def command() -> int:
        prepare_output(args.out, args.sources, args.overwrite)
        model, metadata = average_weights(args.sources, args.mask_skip_gain)
        if args.input_size:
            metadata["input_size"] = [args.input_size] * 2
        save_weights(args.out, model, metadata, int8=args.int8)
        size = f"{args.out.stat().st_size / 1e6:.1f} MB{', int8' if args.int8 else ''}"
        print(f"{args.out}: mean of {len(args.sources)} checkpoints, {model.in_ch} input channels, {size}")
        return DONE

    return run_command(command, f"interrupted; {args.out} was not written")


if __name__ == "__main__":
    sys.exit(main())
