"""Report what DIS-SAM would run with, or examine data sets (``dis-sam check``).

dis-sam check                                            # versions, devices, weights, disk space, and a self test
dis-sam check data/DIS5K/DIS-TR                          # every file that cannot be used or would distort a result
dis-sam check dataset_tr dataset_vd --json found.json    # also images that are in both
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dis_sam import __version__
from dis_sam.drawn import draw_picture
from dis_sam.fetch import differs_from_published, hash_file
from IS_Net import paths
from IS_Net.command_line import DONE, FAILED, positive_int, print_text, run_command
from IS_Net.errors import UserError
from IS_Net.machine import PRECISIONS, RUNTIMES

if TYPE_CHECKING:
    import numpy as np

    from IS_Net.doctor import Report

PACKAGES = {
    "torch": "", "numpy": "", "opencv-python-headless": "", "opencv-python": "", "pillow": "", "safetensors": "",
    "tqdm": "", "platformdirs": "", "openvino": "fast", "ncnn": "fast", "onnxruntime": "onnx",
    "segment-anything": "sam", "torchvision": "sam", "tensorboard": "train",
    "onnx": "import", "matplotlib": "notebook",
}  # fmt: skip
"""Distributions, and the extras that install them ("" is the core)."""

SELF_TEST_IOU = 0.9
"""What the self test must exceed; the coarse mask that it refines has 0.78."""
_SHORT = 12
"""Hex digits of a hash in the text of the report."""
STDOUT = "-"


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
    from sam.backends import available_model, checkpoint_names, found_weights

    rows = []
    starter = paths.starter_weights()
    if not starter.is_file():
        problems.append(f"starter weights: {starter} does not exist; install the project again")
    folder = paths.saved_models()
    others = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    for path in dict.fromkeys([starter, *others]):
        if not path.is_file():
            continue
        row: dict[str, Any] = {"file": str(path), "kind": "IS-Net", "sha256": hash_file(path).sha256}
        try:
            weights, about = read_weights(path)
            row |= {"in_ch": input_channels(weights, path), "input_size": about.get("input_size")}
        except UserError as error:
            problems.append(str(error))
            row["kind"] = "unreadable"
        rows.append(row)
    for model, name in checkpoint_names().items():
        for place in paths.sam_checkpoint_folders():
            path = place / name
            if not path.is_file():
                continue
            hashes = hash_file(path)
            difference = differs_from_published(hashes, name)
            rows.append({
                "file": str(path), "kind": f"SAM {model}", "sha256": hashes.sha256, "published": difference is None
            })  # fmt: skip
            if difference:
                problems.append(
                    f"{path}: the file is not the published checkpoint ({difference}); move it away if it is your own, "
                    f"or replace it: dis-sam fetch {model} --force"
                )
    rows += [
        {"file": str(path), "kind": f"SAM {model}"}
        for model, path in found_weights().items()
        if path.name not in checkpoint_names().values()
    ]
    rows.append({"kind": "stage 1 by default", "file": available_model()})
    return rows


def _space(folder: Path) -> dict[str, Any]:
    """Return the free space of the disk that a folder lies on, or would lie on."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return {"folder": str(folder), "free_gb": round(shutil.disk_usage(existing).free / 1e9, 1)}


def _devices() -> list[dict[str, str | None]]:
    """List the devices, each with its default precision and its 16-bit precision."""
    import torch

    from IS_Net.device import describe, dtype_name, fast_dtype, half_dtype

    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return [
        {
            "device": describe(device),
            "auto": dtype_name(fast_dtype(device)),
            "half": dtype_name(half_dtype(device)) if half_dtype(device) else None,
        }
        for device in map(torch.device, names)
    ]


def run_self_test(device: str = "auto", precision: str = "auto", runtime: str = "auto") -> dict[str, Any]:
    """Refine one drawn mask with the starter weights.

    Args:
        device: As :func:`IS_Net.device.pick_device` takes it.
        precision: As :func:`IS_Net.device.autocast_dtype` takes it.
        runtime: As :func:`IS_Net.runtime.base.choose_runtime` takes it.

    Returns:
        ``device``, ``runtime``, ``precision``, ``load_seconds``, ``predict_seconds`` (of the first prediction
        in this process), ``coarse_iou`` and ``iou`` (of the coarse and of the refined mask with the ground truth).

    Raises:
        CheckpointError: If the starter weights are missing or damaged.
        DeviceError: If the device, the precision or the runtime is not available.
    """
    from IS_Net.predictor import DISPredictor

    image, gt, coarse = draw_picture()
    start = time.perf_counter()
    predictor = DISPredictor.from_checkpoint(paths.starter_weights(), device, precision, runtime=runtime)
    loaded = time.perf_counter()
    alpha = predictor.predict(image, coarse)
    done = time.perf_counter()

    def iou(mask: np.ndarray) -> float:
        return round(float((mask & gt).sum() / (mask | gt).sum()), 4)

    return {
        "device": predictor.runtime.where,
        "runtime": predictor.runtime.name,
        "precision": predictor.runtime.precision,
        "load_seconds": round(loaded - start, 2),
        "predict_seconds": round(done - loaded, 2),
        "coarse_iou": iou(coarse),
        "iou": iou(alpha > 0.5),
    }


def _try_self_test(device: str, precision: str, runtime: str, problems: list[str]) -> dict[str, Any] | None:
    """Run the self test and add what is wrong to the problems; return None if it could not be completed."""
    try:
        result = run_self_test(device, precision, runtime)
    except (UserError, RuntimeError) as error:  # RuntimeError: PyTorch's errors, such as too little memory
        problems.append(f"self test: {error}")
        return None
    if not result["iou"] > SELF_TEST_IOU:
        problems.append(
            f"self test: found an IoU of {result['iou']} with the drawn object, expected more than {SELF_TEST_IOU}; "
            "try --device cpu --precision full --runtime torch: if that helps, the device or the runtime computes "
            "wrongly, otherwise install the project again"
        )
    return result


def collect(
    device: str = "auto", precision: str = "auto", self_test: bool = True, runtime: str = "auto"
) -> tuple[dict[str, Any], list[str]]:
    """Collect the report.

    Args:
        device: As :func:`IS_Net.device.pick_device` takes it.
        precision: Of the self test, as :func:`IS_Net.device.autocast_dtype` takes it.
        self_test: Whether to run :func:`run_self_test`.
        runtime: Of the self test, as :func:`IS_Net.runtime.base.choose_runtime` takes it.

    Returns:
        The report, as JSON values; and what is wrong, a line each.
    """
    from IS_Net.device import autocast_dtype, describe, dtype_name, pick_device

    problems: list[str] = []
    versions = _versions()
    if versions["opencv-python"] and versions["opencv-python-headless"]:
        problems.append(
            "opencv-python and opencv-python-headless are both installed and overwrite each other's files; "
            "uninstall both and install one of them again"
        )
    try:
        chosen = pick_device(device)
        where = {"device": describe(chosen), "precision": dtype_name(autocast_dtype(chosen, precision))}
    except UserError as error:
        problems.append(str(error))
        where, self_test = {"device": None, "precision": None}, False
    report = {
        "dis-sam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        **where,
        "devices": _devices(),
        "home": str(paths.home()),
        "checkout": str(paths.checkout()) if paths.checkout() else None,
        "weights": _weights(problems),
        "disk": [_space(paths.home()), _space(paths.cache())],
        "self_test": None,
    }
    if self_test and paths.starter_weights().is_file():  # without the file, the problem is already named
        report["self_test"] = _try_self_test(device, precision, runtime, problems)
    return report, problems


def format_report(report: dict[str, Any]) -> str:
    """Return the report as lines of text."""
    lines = [f"dis-sam {report['dis-sam']}, Python {report['python']}, {report['platform']}"]
    for name, version in report["packages"].items():
        extra = PACKAGES[name]
        if version is None and name == "opencv-python":
            continue
        remedy = f"not installed; pip install 'dis-sam[{extra}]'" if extra else "not installed"
        lines.append(f"  {name:24} {version or remedy}")
    lines.append(f"device: {report['device']}, precision: {report['precision']}")
    for row in report["devices"]:
        half = f"{row['half']} with half" if row["half"] else "no 16-bit precision"
        lines.append(f"  {row['device']}: {row['auto']} by default, {half}")
    lines.append(f"home: {report['home']}" + (" (the checkout)" if report["home"] == report["checkout"] else ""))
    lines.append("weights:")
    for row in report["weights"]:
        size = row.get("input_size")
        more = f", {row['in_ch']} input channels" if "in_ch" in row else ""
        more += f", {size[0]} x {size[1]}" if size else ""
        more += f", SHA-256 {row['sha256'][:_SHORT]}" if "sha256" in row else ""
        more += " as published" if row.get("published") else ""
        lines.append(f"  {row['kind']}: {row['file']}{more}")
    lines += [f"free disk space: {row['free_gb']} GB at {row['folder']}" for row in report["disk"]]
    if test := report["self_test"]:
        lines.append(
            f"self test: IoU {test['iou']:.3f} (coarse mask {test['coarse_iou']:.3f}), weights loaded in "
            f"{test['load_seconds']} s, first prediction in {test['predict_seconds']} s on {test['device']}, "
            f"{test['precision']}"
        )
    return "\n".join(lines)


def _examine(options: argparse.Namespace) -> int:
    """Examine data sets; return 1 if a file cannot be used or is doubtful."""
    from IS_Net.datalist import find_datasets
    from IS_Net.doctor import ERROR, WARNING, examine
    from IS_Net.files import refuse_to_replace_data
    from IS_Net.paths import resolve

    entries = [entry for names in options.datasets for entry in find_datasets(names, cache=False)]
    if options.json not in (None, STDOUT):
        folders = [entry[key] for entry in entries for key in ("im_dir", "gt_dir", "mid_dir") if entry.get(key)]
        refuse_to_replace_data([options.json], map(resolve, folders))
    report = examine(entries, workers=options.workers)
    _show(format_findings(report), report.as_dict(), options.json)
    return FAILED if report.of(ERROR, WARNING) else DONE


def _show(text: str, values: dict[str, Any], json_target: str | None) -> None:
    """Print a report as text, or as JSON if the target is standard output; write it to another target as JSON."""
    from IS_Net.images import atomic_file

    content = json.dumps(values, indent=2)
    print_text(content if json_target == STDOUT else text)
    if json_target not in (None, STDOUT):
        with atomic_file(json_target, "w") as file:
            file.write(content + "\n")


def format_findings(report: Report) -> str:
    """Return the findings as lines of text. Errors and warnings are named, notes only counted."""
    from IS_Net.doctor import KINDS, NOTE

    lines = []
    for kind, severity in KINDS.items():
        found = [finding for finding in report.findings if finding.kind == kind]
        if found and severity == NOTE:
            lines.append(f"{kind}: {len(found)} files (note)")
        elif found:
            lines.append(f"{kind}: {len(found)} ({severity})")
            lines += [f"  {finding.message}" for finding in found]
    for row in report.datasets:
        own = sum(finding.dataset == row["name"] and finding.severity != NOTE for finding in report.findings)
        counts = f"{row['images']} images, {row['gts']} ground truths, {row['masks']} coarse masks"
        lines.append(f"{row['name']}: {counts}; {own or 'no'} problem{'s' * (own != 1)}")
    lines.append(f"{report.files} files read in {report.seconds:.1f} s")
    return "\n".join(lines)


def _json_target(text: str) -> str:
    """Convert the argument of ``--json``; a data set that stands behind it is not taken for the file."""
    if text != STDOUT and not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"expected a file name with .json, found {text!r}; give data sets first")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all is well, 1 if something was found that will not work."""
    parser = argparse.ArgumentParser(
        prog="dis-sam check",
        description="Report what DIS-SAM would run with, and refine one mask as a test. With data sets: read all their "
        "files, and name those that are unreadable, truncated, of another size than their image, without a partner, "
        "empty, full, turned, copies of others (also between data sets), or out of date.",
    )
    parser.add_argument(
        "datasets",
        nargs="*",
        metavar="DATA_SET",
        help="a folder with im/, gt/ and mask/, or a name of datalist.py; FOLDER:SUB takes the masks of FOLDER/SUB",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: %(default)s")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="default: %(default)s")
    parser.add_argument("--runtime", default="auto", choices=RUNTIMES, help="default: %(default)s")
    parser.add_argument("--no-self-test", action="store_true", help="do not refine a mask")
    parser.add_argument(
        "--json", nargs="?", const=STDOUT, metavar="FILE", type=_json_target, help="report as JSON, printed or to FILE"
    )
    parser.add_argument("--workers", type=positive_int, help="with data sets: threads; default: one for each core")
    options = parser.parse_args(argv)
    about_model, about_data = ("device", "precision", "runtime", "no_self_test"), ("workers",)
    for name in about_model if options.datasets else about_data:
        if getattr(options, name) != parser.get_default(name):
            what = "with data sets" if options.datasets else "without data sets"
            parser.error(f"--{name.replace('_', '-')} has no effect {what}; omit it")

    def command() -> int:
        if options.datasets:
            return _examine(options)
        report, problems = collect(options.device, options.precision, not options.no_self_test, options.runtime)
        _show(format_report(report), {**report, "problems": problems}, options.json)
        for problem in problems if options.json != STDOUT else ():
            print_text(f"problem: {problem}", sys.stderr)
        return FAILED if problems else DONE

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
