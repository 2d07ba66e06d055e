"""Convert IS-Net weights of any supported format to a checkpoint of this project.

dis-sam import-weights isnet-general-use.pth saved_models/isnet.safetensors
dis-sam import-weights isnet.onnx saved_models/isnet_int8.safetensors --int8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from IS_Net.command_line import DONE, print_text, run_command
from IS_Net.files import prepare_output
from IS_Net.hypar import MAX_SIZE, MIN_SIZE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="dis-sam import-weights", description="Convert IS-Net weights of any supported format to safetensors."
    )
    parser.add_argument(
        "source", type=Path, help="a published .pth, an .onnx export, a .safetensors or a last.pt, whose EMA is taken"
    )
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument(
        "--input-size", type=int, metavar="SIDE", help="predict at SIDE x SIDE by default, not at the training size"
    )
    parser.add_argument("--int8", action="store_true", help="store convolutions in 8 bits: a quarter of the size")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        parser.error(f"{args.out}: expected a name that ends in .safetensors")
    if args.input_size is not None and not MIN_SIZE <= args.input_size <= MAX_SIZE:
        parser.error(f"--input-size: expected {MIN_SIZE} to {MAX_SIZE}, found {args.input_size}")
    return run_command(lambda: _convert(args), f"interrupted; {args.out} was not written")


def _convert(args: argparse.Namespace) -> int:
    from IS_Net.checkpoint import load_isnet, save_weights  # they import PyTorch, which --help does not need

    prepare_output(args.out, [args.source], args.overwrite)
    model, metadata = load_isnet(args.source)
    if args.input_size:
        metadata["input_size"] = [args.input_size] * 2
    save_weights(args.out, model, {**metadata, "in_ch": model.in_ch}, int8=args.int8)
    count = sum(parameter.numel() for parameter in model.parameters())
    size = f"{args.out.stat().st_size / 1e6:.1f} MB{', int8' if args.int8 else ''}"
    print_text(f"{args.out}: IS-Net with {model.in_ch} input channels, {count:,} parameters, {size}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
