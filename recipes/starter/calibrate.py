"""Measure weights on validation pairs, prompt by prompt, and fit the score that prediction returns.

    python -m recipes.starter.calibrate saved_models/starter/mean.safetensors data/sample/hard/many_parts --plot p.png
    python -m recipes.starter.calibrate WEIGHTS FOLDER ... --test OTHER_FOLDER ... --out CALIBRATED.safetensors

Each pair (im, gt) is predicted from its tight box, from boxes that are looser and tighter by 10 % of their size, and
from the coarse masks in its subfolder `sim` if there is one. The agreement of two passes of the network and the IoU of
the result are related by two coefficients, which --out stores in the metadata of the weights; see
IS_Net.predictor.calibrate. With --test, the table and the plot show pairs that the coefficients were not fitted to.
Also printed: how much of the alpha lies outside the box grown by 10 % on each side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from IS_Net.checkpoint import load_isnet, save_weights
from IS_Net.command_line import DONE, run_command
from IS_Net.errors import DatasetError, UserError, import_extra
from IS_Net.files import prepare_output
from IS_Net.images import list_images, read_image, read_mask
from IS_Net.metrics.iou import iou
from IS_Net.predictor import CALIBRATION, DEFAULT_SIZE, DISPredictor, calibrate
from IS_Net.preprocess import MASK_CHANNEL, Box, box_from_mask

MARGIN = 0.1
"""Share of a box's width and height by which boxes are looser or tighter, and grown to measure what lies outside."""
MASKS = "sim"
"""Subfolder of the coarse masks."""


class FitError(UserError, ValueError):
    """The coefficients cannot be fitted to the measurements."""


class Outcome(NamedTuple):
    """One prediction."""

    pair: str
    prompt: str
    """``box``, ``loose box``, ``tight box`` or ``mask``."""
    agreement: float
    """Of two passes, in [0, 1]."""
    iou: float
    """Of the alpha matte at > 128 with the ground truth."""
    outside: float
    """From :func:`outside_share`."""


def grow_box(box: Box, margin: float) -> Box:
    """Return a box whose sides are moved outwards by a share of its width and height; a negative one shrinks it."""
    x0, y0, x1, y1 = box
    # the sides of a thin box meet at most
    dx, dy = max(margin * (x1 - x0 + 1), (x0 - x1) / 2), max(margin * (y1 - y0 + 1), (y0 - y1) / 2)
    return x0 - dx, y0 - dy, x1 + dx, y1 + dy


def outside_share(alpha: np.ndarray, gt: np.ndarray, box: Box, margin: float = MARGIN) -> float:
    """Return how much alpha lies outside a box that is grown on each side, relative to the object.

    Args:
        alpha: (H, W) float in [0, 1].
        gt: (H, W) uint8 with the object above 128, not empty.
        box: xyxy in pixels; both ends belong to it.
        margin: How much the box grows on each side, as a share of its width or height.

    Returns:
        The sum of alpha at the pixels outside, divided by the object's area in pixels.
    """
    x0, y0, x1, y1 = grow_box(box, margin)
    rows, columns = np.arange(alpha.shape[0]), np.arange(alpha.shape[1])
    inside = ((rows >= y0) & (rows <= y1))[:, None] & (columns >= x0) & (columns <= x1)
    return float(alpha[~inside].sum(dtype=np.float64) / np.count_nonzero(gt > 128))


def measure(predictor: DISPredictor, pairs: Sequence[Path]) -> Iterator[Outcome]:
    """Predict pairs from each prompt.

    Args:
        predictor: Must have no calibration, so that its score is the agreement.
        pairs: Folders that hold ``im`` and ``gt``, and may hold ``sim``.

    Raises:
        DatasetError: If a folder or an image is missing, or a ground truth is empty.
    """
    for folder in pairs:
        if not (folder / "im").is_dir() or not (folder / "gt").is_dir():
            raise DatasetError(f"{folder}: expected a folder that holds im and gt")
        gts, images = list_images(folder / "gt"), list_images(folder / "im")
        masks = list_images(folder / MASKS) if (folder / MASKS).is_dir() else {}
        for name, path in tqdm(gts.items(), desc=folder.name, unit="pair"):
            if name not in images:
                raise DatasetError(f"{path}: there is no image of that name in {folder / 'im'}; add it")
            gt, prepared = read_mask(path), predictor.prepare(read_image(images[name]))
            box = box_from_mask(gt)
            if box is None:
                raise DatasetError(f"{path}: the ground truth is empty; remove it and its image")
            prompts: list[tuple[str, np.ndarray | None, Box]] = [
                ("box", None, box),
                ("loose box", None, grow_box(box, MARGIN)),
                ("tight box", None, grow_box(box, -MARGIN)),
            ]
            if name in masks:
                prompts.append(("mask", read_mask(masks[name]), box))
            for prompt, mask, given in prompts:
                alpha, score = predictor.predict(prepared, mask, given, return_score=True)
                found = np.rint(alpha * 255).astype(np.uint8)
                yield Outcome(f"{folder.name}/{name}", prompt, score, iou(found, gt), outside_share(alpha, gt, given))


def fit_calibration(agreements: Sequence[float], ious: Sequence[float]) -> tuple[float, float]:
    """Fit ``sigmoid(a + b * logit(agreement))`` to IoU by least cross entropy (logistic regression, Newton's method).

    Args:
        agreements: In [0, 1].
        ious: In [0, 1], of the same predictions.

    Returns:
        a and b > 0, for :func:`IS_Net.predictor.calibrate`.

    Raises:
        FitError: If there are fewer than 10 predictions, or the IoU does not rise with the agreement.
    """
    known = np.isfinite(agreements)
    clipped = np.clip(np.asarray(agreements, dtype=np.float64)[known], 1e-6, 1 - 1e-6)
    target = np.asarray(ious, dtype=np.float64)[known]
    if len(target) < 10:
        raise FitError(f"found {len(target)} predictions with a score, expected at least 10; name more pairs")
    inputs = np.stack((np.ones_like(clipped), np.log(clipped / (1 - clipped))), axis=1)
    coefficients = np.array([0.0, 1.0])
    for _ in range(100):
        predicted = 1 / (1 + np.exp(-inputs @ coefficients))
        curvature = (inputs.T * (predicted * (1 - predicted))) @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, inputs.T @ (predicted - target))
        # a full step may overshoot where the curve is flat
        coefficients = coefficients - step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    offset, slope = coefficients.tolist()
    if not slope > 0:
        raise FitError(f"the IoU does not rise with the agreement (slope {slope:.3g}); name more, and harder, pairs")
    return offset, slope


def draw_reliability(scores: np.ndarray, ious: np.ndarray, out: Path, bins: int = 8) -> None:
    """Draw predicted IoU against IoU: every prediction, and the means of groups of equal number.

    Args:
        scores: (N,) predicted IoU.
        ious: (N,) IoU.
        out: The image file to write.
        bins: Number of groups.
    """
    figure = import_extra("matplotlib.figure", "notebook").Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    axis.scatter(scores, ious, s=8, alpha=0.35, linewidths=0, label="predictions")
    groups = [group for group in np.array_split(np.argsort(scores), min(bins, len(scores))) if len(group)]
    means = np.array([[scores[group].mean(), ious[group].mean()] for group in groups])
    axis.plot(means[:, 0], means[:, 1], "o-", color="tab:red", label=f"means of {len(groups)} groups")
    axis.set(xlabel="score (predicted IoU)", ylabel="IoU", xlim=(0, 1.01), ylim=(0, 1.01))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def describe(outcomes: Sequence[Outcome], scores: np.ndarray) -> str:
    """Return a table of means: one line for each prompt. Errors are those of the agreement and of the score as IoU."""
    titles = ("IoU", "agreement", "error", "score", "error", "alpha outside the box")
    lines = [f"{'prompt':<10} {'number':>6} " + " ".join(f"{title:>{max(len(title), 6)}}" for title in titles)]
    for prompt in dict.fromkeys(outcome.prompt for outcome in outcomes):
        chosen = [index for index, outcome in enumerate(outcomes) if outcome.prompt == prompt]
        ious, agreements = (np.array([getattr(outcomes[i], key) for i in chosen]) for key in ("iou", "agreement"))
        outside = np.mean([outcomes[index].outside for index in chosen])
        lines.append(
            f"{prompt:<10} {len(chosen):>6} {ious.mean():>6.3f} {np.nanmean(agreements):>9.3f} "
            f"{np.nanmean(np.abs(agreements - ious)):>6.3f} {np.nanmean(scores[chosen]):>6.3f} "
            f"{np.nanmean(np.abs(scores[chosen] - ious)):>6.3f} {outside:>21.3%}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="checkpoint with 4 or 5 input channels")
    parser.add_argument("pairs", type=Path, nargs="+", metavar="FOLDER", help="folders that hold im, gt and maybe sim")
    parser.add_argument(
        "--test", type=Path, nargs="+", default=[], metavar="FOLDER", help="other pairs, for the table and the plot"
    )
    parser.add_argument("--out", type=Path, help="write the weights with the coefficients to this .safetensors file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out if it exists")
    parser.add_argument("--int8", action="store_true", help="store convolutions in 8 bits: a quarter of the file size")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a reliability plot (needs matplotlib)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.out is not None and (args.out.suffix != ".safetensors" or args.out.resolve() == args.weights.resolve()):
        parser.error(f"--out {args.out}: expected a name that ends in .safetensors and is not that of the weights")
    if args.plot is not None and args.plot.suffix not in (".png", ".jpg", ".pdf", ".svg"):
        parser.error(f"--plot {args.plot}: expected a name that ends in .png, .jpg, .pdf or .svg")

    def command() -> int:
        if args.out:
            prepare_output(args.out, [args.weights], args.overwrite)
        model, metadata = load_isnet(args.weights)
        if model.in_ch <= MASK_CHANNEL:
            raise FitError(f"{args.weights}: has {model.in_ch} input channels and no prompt, so all passes agree")
        metadata.pop(CALIBRATION, None)
        size = metadata.get("input_size") or DEFAULT_SIZE
        predictor = DISPredictor(model, args.device, "auto", size, metadata)
        outcomes = list(measure(predictor, args.pairs))
        shown = list(measure(predictor, args.test)) if args.test else outcomes
        coefficients = fit_calibration([o.agreement for o in outcomes], [o.iou for o in outcomes])
        scores = np.array([calibrate(outcome.agreement, coefficients) for outcome in shown])
        print(describe(shown, scores))
        print(f"{CALIBRATION}: {coefficients[0]:.4f}, {coefficients[1]:.4f}")
        if args.out:
            rounded = [round(value, 4) for value in coefficients]
            save_weights(args.out, model, {**metadata, CALIBRATION: rounded}, int8=args.int8)
            print(args.out)
        if args.plot:
            known = np.isfinite(scores)
            draw_reliability(scores[known], np.array([outcome.iou for outcome in shown])[known], args.plot)
            print(args.plot)
        return DONE

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
