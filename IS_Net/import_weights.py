"""Turn IS-Net weights of other projects into a checkpoint of this one.

python -m IS_Net.import_weights isnet-general-use.pth saved_models/isnet.safetensors
python -m IS_Net.import_weights isnet.onnx saved_models/isnet_int8.safetensors --int8
python -m IS_Net.import_weights runs/mine/best.safetensors runs/mine/last.pt saved_models/mean.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from IS_Net.checkpoint import load_isnet, save_weights
from IS_Net.errors import CheckpointError
from IS_Net.hypar import MIN_SIZE
from IS_Net.models.input_channels import increase_mask_skip


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average state dicts of one shape, of checkpoints of one training: often better than each of them.

    "Model soups" (Wortsman et al., ICML 2022). Counters are taken from the first.
    """
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m IS_Net.import_weights",
        description="Write IS-Net weights of any kind that this project reads as safetensors; the mean of several.",
    )
    parser.add_argument(
        "source", type=Path, nargs="+", help="a published .pth, an .onnx export, a .safetensors or a last.pt"
    )
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--mask-skip-gain", type=float, default=0.0, metavar="LOGIT",
        help="of weights trained with mask_skip_logit: add so much to the output inside the mask, take it away outside",
    )  # fmt: skip
    parser.add_argument(
        "--input-size", type=int, metavar="SIDE", help="predict at SIDE x SIDE by default, not at the size trained at"
    )
    parser.add_argument("--int8", action="store_true", help="store convolutions in 8 bits: a quarter of the size")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        parser.error(f"{args.out}: expected a name that ends in .safetensors")
    if args.input_size is not None and args.input_size < MIN_SIZE:
        parser.error(f"--input-size: expected at least {MIN_SIZE}, found {args.input_size}")
    try:
        model, facts = load_isnet(args.source[0])
        others = [load_isnet(path)[0] for path in args.source[1:]]
        for path, other in zip(args.source[1:], others, strict=True):
            if other.in_ch != model.in_ch:
                raise CheckpointError(
                    f"{path}: has {other.in_ch} input channels, {args.source[0]} {model.in_ch}; only weights of equal "
                    "ones have a mean"
                )
        if others:
            model.load_state_dict(mean_weights([one.state_dict() for one in (model, *others)]))
            facts.pop("metrics", None)  # which were the first one's
        if args.increase_mask_skip:
            try:
                model.load_state_dict(increase_mask_skip(model.state_dict(), args.increase_mask_skip))
            except ValueError as error:
                raise CheckpointError(f"{args.source[0]}: --mask-skip-gain: {error}") from error
        if args.input_size:
            facts["input_size"] = [args.input_size] * 2
        save_weights(args.out, model, {**facts, "in_ch": model.in_ch}, int8=args.int8)
    except (CheckpointError, OSError) as error:
        print(f"import_weights: {error}", file=sys.stderr)
        return 1
    count = sum(parameter.numel() for parameter in model.parameters())
    size = f"{args.out.stat().st_size / 1e6:.1f} MB{', int8' if args.int8 else ''}"
    print(f"{args.out}: IS-Net of {model.in_ch} input channels, {count:,} parameters, {size}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
