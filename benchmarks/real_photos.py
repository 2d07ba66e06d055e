"""Score weights on photographs with ground truth: what they make of coarse masks, beside the coarse masks themselves.

python benchmarks/real_photos.py FOLDER [FOLDER ...] [--weights FILE ...] [--coarse KIND ...] [--limit N]

A FOLDER is a set, or holds sets. A set holds im/NAME.* and gt/NAME.png, and beside them one folder of masks,
NAME.png, for each kind of coarse mask. Prints a table; writes results.csv, a row a pair, kind and weights, and for each
weights worst_WEIGHTS.jpg, the cases in which they lost the most.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

from IS_Net.data_loader import Sample, find_samples
from IS_Net.datalist import from_folder
from IS_Net.device import describe
from IS_Net.errors import CheckpointError, DatasetError, DeviceError
from IS_Net.images import atomic_file, binarize, read_image, read_mask, write_image
from IS_Net.metrics import MAE, FMeasure, boundary_iou, iou
from IS_Net.predictor import DISPredictor
from IS_Net.preprocess import MASK_CHANNEL

PERFECT = "gt"
"""The kind of coarse mask that is the ground truth itself, binarized."""

FIGURES = {"max_f": "max F", "mae": "MAE", "iou": "IoU", "boundary_iou": "boundary IoU"}
TOLERANCE = 0.005
"""A case whose IoU fell by no more than this was not made worse."""

WORST = 10

Row = dict[str, Any]


class Case(NamedTuple):
    """A photograph of a set, with its ground truth and a coarse mask of each kind."""

    set: str
    samples: dict[str, Sample]  # by kind; they share image and ground truth


def find_sets(folders: Iterable[Path]) -> list[Path]:
    """Return the folders that hold ``im`` and ``gt``: those given, and the sub folders of those given.

    Raises:
        DatasetError: If a folder does not exist or is not, and does not hold, a set.
    """
    sets = []
    for folder in folders:
        if not folder.is_dir():
            raise DatasetError(f"{folder}: the folder does not exist; check the path")
        found = [s for s in (folder, *sorted(folder.iterdir())) if (s / "im").is_dir() and (s / "gt").is_dir()]
        if not found:
            raise DatasetError(f"{folder}: no set in it; expected im/ and gt/ in this folder or in its sub folders")
        sets += found
    return sets


def find_cases(sets: Sequence[Path], kinds: Sequence[str], limit: int | None = None) -> list[Case]:
    """Pair the files of all sets.

    Args:
        sets: Their folders.
        kinds: The kinds of coarse mask: names of folders beside ``im`` and ``gt``, or :data:`PERFECT`; none given
            means all that are there.
        limit: At most so many pairs of each set.

    Raises:
        DatasetError: If there is no kind, or an image lacks its ground truth or a mask; all of a folder are named.
    """
    if not kinds:
        beside = {sub for s in sets for sub in s.iterdir() if sub.name not in ("im", "gt") and any(sub.glob("*.png"))}
        kinds = sorted({sub.name for sub in beside})
    if not kinds:
        raise DatasetError(
            f"{', '.join(map(str, sets))}: no folder of coarse masks beside im and gt; make one with "
            f"sam.generate_masks, or ask for --coarse {PERFECT}"
        )
    cases = []
    for folder in sets:
        entry, by_kind = from_folder(folder), {}
        for kind in dict.fromkeys(kinds):
            # as an absolute path, since datalist's are relative to its own folder
            masks = {"mid_dir": str(folder.resolve() / kind)} if kind != PERFECT else {}
            by_kind[kind] = find_samples(entry | masks, need_mask=kind != PERFECT, need_gt=True)
        samples = [dict(zip(by_kind, row, strict=True)) for row in zip(*by_kind.values(), strict=True)]
        cases += [Case(folder.resolve().name, row) for row in samples[:limit]]
    return cases


def measure(pred: np.ndarray, gt: np.ndarray) -> dict[str, float]:
    """Return the FIGURES of one map, both (H, W) uint8; max F is the maximum of this map's own curve."""
    max_f, mae = FMeasure(), MAE()
    for metric in (max_f, mae):
        metric.update(torch.from_numpy(pred), torch.from_numpy(gt))
    return {
        "max_f": max_f.compute()["max_f_mean_curve"],
        "mae": mae.compute()["mae"],
        "iou": iou(pred, gt),
        "boundary_iou": boundary_iou(pred, gt),
    }


def score(case: Case, predictors: dict[str, DISPredictor]) -> Iterable[tuple[Row, list[np.ndarray]]]:
    """Yield, for each kind of coarse mask and each weights, a row of results and the pictures behind it.

    The pictures: image (H, W, 3), coarse mask, refined mask and ground truth (H, W), all uint8.
    """
    first = next(iter(case.samples.values()))
    image, gt = read_image(first.image), read_mask(first.gt)
    refined: dict[str, tuple[np.ndarray, float]] = {}
    for kind, sample in case.samples.items():
        coarse = binarize(gt if kind == PERFECT else read_mask(sample.mask)) * np.uint8(255)
        before = {f"coarse_{key}": value for key, value in measure(coarse, gt).items()}
        for weights, predictor in predictors.items():
            if weights not in refined or predictor.in_ch > MASK_CHANNEL:  # else the mask makes no difference
                started = time.perf_counter()
                alpha = predictor.predict(image, coarse, sample.box)
                refined[weights] = np.rint(alpha * 255).astype(np.uint8), time.perf_counter() - started
            alpha, seconds = refined[weights]
            after = {f"refined_{key}": value for key, value in measure(alpha, gt).items()}
            names = {"set": case.set, "name": first.name, "coarse": kind, "weights": weights}
            yield names | before | after | {"seconds": seconds}, [image, coarse, alpha, gt]


def change(row: Row) -> float:
    """Return by how much the IoU rose from coarse to refined."""
    return row["refined_iou"] - row["coarse_iou"]


def table(rows: Sequence[Row]) -> str:
    """Lay out the means over pairs: of each set and of all, by kind of coarse mask and weights."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for name in (*dict.fromkeys(row["set"] for row in rows), "all"):
        for row in rows:
            if name in ("all", row["set"]):
                groups.setdefault((name, row["coarse"], row["weights"]), []).append(row)
    heads = ("set", "coarse", "weights")
    widths = [max(map(len, column)) for column in zip(heads, *groups, strict=True)]
    # one column a figure: of the coarse masks and, right of it, of the refined
    titles = "".join(f"  {title:^14}" for title in FIGURES.values())
    lines = ["  ".join(f"{h:{w}}" for h, w in zip(heads, widths, strict=True)) + f"  pairs{titles}  not worse"]
    for names, group in groups.items():
        line = "  ".join(f"{n:{w}}" for n, w in zip(names, widths, strict=True)) + f"  {len(group):5}"
        for key in FIGURES:
            before, after = (statistics.fmean(row[f"{side}_{key}"] for row in group) for side in ("coarse", "refined"))
            line += f"  {before:.3f} -> {after:.3f}"
        lines.append(line + f"  {statistics.fmean(change(row) >= -TOLERANCE for row in group):9.0%}")
    return "\n".join(lines)


def thumbnail(pixels: np.ndarray, width: int = 400, height: int = 280) -> np.ndarray:
    """Fit an image, (H, W) or (H, W, 3) uint8, into the middle of a (height, width, 3) cell."""
    scale = min((width - 4) / pixels.shape[1], height / pixels.shape[0])
    size = max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1)
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    small = small if small.ndim == 3 else cv2.cvtColor(small, cv2.COLOR_GRAY2RGB)
    cell = np.full((height, width, 3), 64, np.uint8)  # neither a mask's black nor its white
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    cell[top : top + small.shape[0], left : left + small.shape[1]] = small
    return cell


def contact_sheet(cases: Iterable[tuple[Row, list[np.ndarray]]]) -> np.ndarray:
    """Lay out cases, a row each: image, coarse mask, refined mask, ground truth, with names and figures over them.

    Args:
        cases: Result and thumbnails, as of :func:`score` and :func:`thumbnail`.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    lines = []
    for row, cells in cases:
        strip = np.full((48, sum(cell.shape[1] for cell in cells), 3), 24, np.uint8)
        figures = [
            f"IoU {row[f'{side}_iou']:.3f}  bIoU {row[f'{side}_boundary_iou']:.3f}" for side in ("coarse", "refined")
        ]
        title = f"{row['set']} / {row['name']}    IoU change {change(row):+.3f}"
        captions = ["image", f"{row['coarse']}  {figures[0]}", f"{row['weights']}  {figures[1]}", "ground truth"]
        texts = [(title, 4, 18), *((text, k * cells[0].shape[1] + 4, 40) for k, text in enumerate(captions))]
        for text, x, y in texts:
            cv2.putText(strip, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (235, 235, 235), 1, cv2.LINE_AA)
        lines += [strip, np.hstack(cells)]
    return np.vstack(lines)


def labels(paths: Sequence[Path]) -> list[str]:
    """Name weights by their files' stems, where these are shared with the folder's name in front.

    Raises:
        ValueError: If two names are one even so.
    """
    stems = [path.stem for path in paths]
    names = [
        stem if stems.count(stem) == 1 else f"{path.resolve().parent.name}_{stem}"
        for path, stem in zip(paths, stems, strict=True)
    ]
    if len(set(names)) < len(names):
        raise ValueError(f"--weights: expected a name of its own for each file, found {', '.join(names)}; rename one")
    return names


def run(options: argparse.Namespace) -> None:
    """Score all weights on all cases; print the table, write the files."""
    cases = find_cases(find_sets(options.folders), options.coarse, options.limit)
    predictors = {
        label: DISPredictor.from_checkpoint(path, options.device)
        for label, path in zip(labels(options.weights), options.weights, strict=True)
    }
    rows: list[Row] = []
    worst: dict[str, list[tuple[Row, list[np.ndarray]]]] = {label: [] for label in predictors}
    for case in tqdm(cases, unit="photo", disable=None):
        for row, pictures in score(case, predictors):
            rows.append(row)
            kept = worst[row["weights"]]
            if len(kept) < WORST or change(row) < change(kept[-1][0]):
                kept.append((row, [thumbnail(picture) for picture in pictures]))
                kept.sort(key=lambda item: change(item[0]))
                del kept[WORST:]

    print(f"means over pairs; coarse -> refined; not worse: IoU fell by no more than {TOLERANCE}")
    print(table(rows))
    for label, predictor in predictors.items():
        median = statistics.median(row["seconds"] for row in rows if row["weights"] == label)
        print(f"{label}: {predictor.in_ch} channels, median {median:.2f} s an image, {describe(predictor.device)}")
    with atomic_file(options.out / "results.csv", "w") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for label, items in worst.items():
        write_image(options.out / f"worst_{label}.jpg", contact_sheet(items))
    print(f"{options.out}: results.csv, {', '.join(f'worst_{label}.jpg' for label in worst)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    here = Path(__file__).resolve().parent
    starter = here.parent / "saved_models" / "dis_sam_starter.safetensors"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--weights", type=Path, nargs="+", default=[starter], metavar="FILE", help="one or several")
    parser.add_argument(
        "--coarse", nargs="+", default=[], metavar="KIND",
        help=f"folders of coarse masks beside im and gt, or {PERFECT} for the ground truth itself (default: all there)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=here / "results" / "real_photos")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N pairs of each set")
    options = parser.parse_args(argv)
    if options.limit is not None and options.limit < 1:
        parser.error("--limit: at least 1")
    try:
        run(options)
    except (OSError, ValueError, CheckpointError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
