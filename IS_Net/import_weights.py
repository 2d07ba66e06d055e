"""Turn IS-Net weights of other projects into a checkpoint of this one.

python -m IS_Net.import_weights isnet-general-use.pth saved_models/isnet.safetensors
python -m IS_Net.import_weights isnet.onnx saved_models/isnet_int8.safetensors --int8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from IS_Net.checkpoint import CheckpointError, load_isnet, save_weights


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m IS_Net.import_weights",
        description="Write IS-Net weights of any kind that this project reads as safetensors.",
    )
    parser.add_argument("source", type=Path, help="a published .pth, an .onnx export or a .safetensors")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--int8", action="store_true", help="store convolutions in 8 bits: a quarter of the size")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        parser.error(f"{args.out}: expected a name that ends in .safetensors")
    try:
        model, facts = load_isnet(args.source)
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
