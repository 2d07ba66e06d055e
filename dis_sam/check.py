"""Report what DIS-SAM would run with: versions, device, precision, weights, disk space (``dis-sam check``)."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dis_sam import __version__
from IS_Net import paths
from IS_Net.command_line import DONE, FAILED, print_text, run_command
from IS_Net.errors import UserError

PACKAGES = {
    "torch": "", "numpy": "", "opencv-python-headless": "", "opencv-python": "", "pillow": "", "safetensors": "",
    "tqdm": "", "platformdirs": "", "segment-anything": "sam", "torchvision": "sam", "tensorboard": "train",
    "scikit-image": "train, eval", "onnx": "import", "matplotlib": "notebook",
}  # fmt: skip
"""Distributions, and the extras that install them ("" is the core)."""


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _weights(problems: list[str]) -> list[dict[str, Any]]:
    """List the weights that are found: the starter weights, other IS-Net weights, SAM checkpoints."""
    from IS_Net.checkpoint import input_channels, read_weights
    from sam.backends import available_model, checkpoint_names

    rows = []
    starter = paths.starter_weights()
    if not starter.is_file():
        problems.append(f"starter weights: {starter} does not exist; install the project again")
    folder = paths.saved_models()
    others = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    for path in dict.fromkeys([starter, *others]):
        if not path.is_file():
            continue
        row: dict[str, Any] = {"file": str(path), "kind": "IS-Net"}
        try:
            weights, about = read_weights(path)
            row |= {"in_ch": input_channels(weights, path), "input_size": about.get("input_size")}
        except UserError as error:
            problems.append(str(error))
            row["kind"] = "unreadable"
        rows.append(row)
    for model, name in checkpoint_names().items():
        for place in paths.sam_checkpoint_folders():
            if (place / name).is_file():
                rows.append({"file": str(place / name), "kind": f"SAM {model}"})
    rows.append({"kind": "stage 1 by default", "file": available_model()})
    return rows


def _space(folder: Path) -> dict[str, Any]:
    """Return the free space of the disk that a folder lies on, or would lie on."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return {"folder": str(folder), "free_gb": round(shutil.disk_usage(existing).free / 1e9, 1)}


def collect(device: str = "auto") -> tuple[dict[str, Any], list[str]]:
    """Collect the report.

    Args:
        device: As :func:`IS_Net.device.pick_device` takes it.

    Returns:
        The report, as JSON values; and what is wrong, a line each.
    """
    from IS_Net.device import describe, fast_dtype, pick_device

    problems: list[str] = []
    versions = _versions()
    if versions["opencv-python"] and versions["opencv-python-headless"]:
        problems.append(
            "opencv-python and opencv-python-headless are both installed and overwrite each other's files; "
            "uninstall both and install one of them again"
        )
    try:
        chosen = pick_device(device)
        dtype = fast_dtype(chosen)
        where = {"device": describe(chosen), "precision": str(dtype).removeprefix("torch.") if dtype else "float32"}
    except UserError as error:
        problems.append(str(error))
        where = {"device": None, "precision": None}
    report = {
        "dis-sam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        **where,
        "home": str(paths.home()),
        "checkout": str(paths.checkout()) if paths.checkout() else None,
        "weights": _weights(problems),
        "disk": [_space(paths.home()), _space(paths.cache())],
    }
    return report, problems


def format_report(report: dict[str, Any]) -> str:
    """Return the report as lines of text."""
    lines = [f"dis-sam {report['dis-sam']}, Python {report['python']}, {report['platform']}"]
    for name, version in report["packages"].items():
        extra = PACKAGES[name]
        if version is None and name == "opencv-python":
            continue
        remedy = f"not installed; pip install 'dis-sam[{extra.split(',')[0]}]'" if extra else "not installed"
        lines.append(f"  {name:24} {version or remedy}")
    lines.append(f"device: {report['device']}, default precision: {report['precision']}")
    lines.append(f"home: {report['home']}" + (" (the checkout)" if report["home"] == report["checkout"] else ""))
    lines.append("weights:")
    for row in report["weights"]:
        size = row.get("input_size")
        more = f", {row['in_ch']} input channels" if "in_ch" in row else ""
        more += f", {size[0]} x {size[1]}" if size else ""
        lines.append(f"  {row['kind']}: {row['file']}{more}")
    lines += [f"free disk space: {row['free_gb']} GB at {row['folder']}" for row in report["disk"]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all is well, 1 if something was found that will not work."""
    parser = argparse.ArgumentParser(prog="dis-sam check", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(argv)

    def command() -> int:
        report, problems = collect(options.device)
        print_text(json.dumps({**report, "problems": problems}, indent=2) if options.json else format_report(report))
        for problem in problems if not options.json else ():
            print_text(f"problem: {problem}", sys.stderr)
        return FAILED if problems else DONE

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
