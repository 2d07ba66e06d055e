"""Export stage 2 with its pre- and post-processing to another format (``dis-sam export``).

dis-sam export --format onnx --dynamic                            # pictures of any size
dis-sam export --format onnx --dynamic --input-size 512 --int8    # small and fast, for browsers
dis-sam export --format openvino --pictures photos --masks masks
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dis_sam import __version__
from IS_Net.command_line import DONE, FAILED, positive_int, print_error, print_text, run_command
from IS_Net.errors import CheckpointError, UserError
from IS_Net.exporting import FLIPS, SUFFIXES

if TYPE_CHECKING:
    import numpy as np

    from dis_sam.inputs import Request
    from IS_Net.exporting.formats import Export
    from IS_Net.exporting.parity import Difference
    from IS_Net.predictor import DISPredictor

PICTURES = 20
"""Default number of the user's pictures that are compared."""

_STARTER_LICENSE = "Apache-2.0; the ingredients of the starter weights have terms of their own: see their MODEL_CARD.md"
_DESCRIPTION = (
    "DIS-SAM, stage 2: image (H, W, 3) RGB and mask (H, W), both 0..255 (uint8; float32 in Core ML), and box (4,) "
    "float32 x0, y0, x1, y1 in pixels, both ends included -> alpha (H, W) float32 in 0..1. A mask of zeros, and a box "
    "of zeros, mean that there is none. A network of 3 channels has the image alone."
)
_EXIT_CODES = (
    "exit codes: 0 done; 1 the export differs by more than the tolerance, and was not kept; 2 could not start; "
    "130 interrupted; 143 terminated"
)


class OutputExistsError(UserError, ValueError):
    """A place where the export cannot be written."""


@dataclass(frozen=True)
class Sample:
    """A picture with a prompt, on which the export is compared with the checkpoint.

    Attributes:
        name: For the report.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 0..255, or None.
        box: xyxy in pixels, or None.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None = None
    box: tuple[float, ...] | None = None

    @property
    def prompt(self) -> str:
        """What the prompt consists of."""
        given = [name for name in ("mask", "box") if getattr(self, name) is not None]
        return ", ".join(given) or "none"

    def resize(self, size: tuple[int, int]) -> Sample:
        """Return the sample at a size, (height, width)."""
        import numpy as np

        from IS_Net.preprocess import resize_uint8

        if self.image.shape[:2] == size:
            return self
        image = np.ascontiguousarray(resize_uint8(self.image, size).transpose(1, 2, 0))
        mask = None if self.mask is None else resize_uint8(self.mask, size)[0]
        y, x = size[0] / self.image.shape[0], size[1] / self.image.shape[1]
        box = self.box
        if box is not None:  # both ends are included, so that a narrow box would otherwise end before it begins
            x0, y0 = min(box[0] * x, size[1] - 1.5), min(box[1] * y, size[0] - 1.5)
            box = x0, y0, max(x0 + 0.5, (box[2] + 1) * x - 1), max(y0 + 0.5, (box[3] + 1) * y - 1)
        return Sample(self.name, image, mask, box)


def drawn_samples(any_size: bool) -> Iterator[Sample]:
    """Yield pictures that need no files: the star of the self test with a mask, a box, and both.

    Args:
        any_size: Whether a smaller one follows.
    """
    from dis_sam.drawn import draw_picture
    from IS_Net.preprocess import box_from_mask

    image, gt, disc = draw_picture()
    mask, box = 255 * disc.astype("uint8"), box_from_mask(gt)
    yield Sample("drawn star", image, mask)
    yield Sample("drawn star", image, None, box)
    yield Sample("drawn star", image, mask, box)
    if any_size:
        yield Sample("small star", image, mask, box).resize((241, 317))


def read_samples(pictures: Sequence[Path], masks: Path | None, prompts: Path | None, limit: int) -> Iterator[Sample]:
    """Read the user's pictures.

    Args:
        pictures: Files, and folders of them.
        masks: A mask, or a folder of masks; see :func:`dis_sam.inputs.plan_refine`.
        prompts: A file of boxes; see :func:`dis_sam.inputs.plan_cut`.
        limit: The highest number of samples.

    Yields:
        A sample for each prompt. Without masks and prompts, the most salient object is meant.

    Raises:
        UserError: If a file cannot be used.
    """
    from dis_sam.inputs import find_photographs, plan_cut, plan_refine

    photographs = find_photographs(pictures)
    tasks, without = (plan_cut(photographs, file=prompts), []) if masks is None else plan_refine(photographs, masks)
    for message in without:
        print_error(message, prefix="warning: ")
    requests = [(task.image, request) for task in tasks for request in task.requests]
    yield from (_read_sample(image, request) for image, request in requests[:limit])


def _read_sample(image: Path, request: Request) -> Sample:
    from IS_Net.errors import PromptError
    from IS_Net.images import read_image, read_mask, size_mismatch
    from IS_Net.preprocess import check_box

    if request.points is not None:
        raise PromptError(f"{request.name}: has points, which only SAM takes; expected boxes or masks")
    pixels = read_image(image)
    mask = None if request.mask is None else read_mask(request.mask)
    if mask is not None and mask.shape != pixels.shape[:2]:
        raise PromptError(size_mismatch(request.mask, mask.shape, image, pixels.shape[:2]))
    box, where = request.box, f"{request.name}: box"
    box = None if box is None else check_box(box, *pixels.shape[:2], where, with_mask=mask is not None)
    return Sample(request.name, pixels, mask, box)


def compare(
    exact: DISPredictor, export: Export, samples: Iterator[Sample], image_size: tuple[int, int] | None
) -> Iterator[tuple[Sample, Difference]]:
    """Compare an export with the checkpoint in PyTorch and float32.

    Args:
        exact: The checkpoint.
        export: The export.
        samples: The pictures with their prompts. An empty mask means to an export that there is none, so samples that
            have one are left out.
        image_size: (height, width) of the export's images: the samples are resized to it. None takes them as they are.

    Yields:
        Each sample as it was compared, and the difference.
    """
    from IS_Net.exporting.parity import compare_alpha

    for sample in samples:
        resized = sample if image_size is None else sample.resize(image_size)
        if resized.mask is None or resized.mask.any():
            image, mask, box = resized.image, resized.mask, resized.box
            expected = exact.predict(image, mask, box, passes=1, detail="off")
            yield resized, compare_alpha(expected, export.alpha(image, mask, box))


def _size(text: str) -> tuple[int, int]:
    """Convert a command-line argument, ``SIDE`` or ``HEIGHTxWIDTH``, to (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) <= 1 << 14 for side in sides):
        raise argparse.ArgumentTypeError(f"expected a side, or HEIGHTxWIDTH, in pixels, found {text!r}")
    return int(sides[0]), int(sides[-1])


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 100, found {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dis-sam export",
        description="Export stage 2 with its pre- and post-processing: image, mask and box in, alpha matte out. The "
        "export is compared with the checkpoint, and kept only if it agrees.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--format", required=True, choices=tuple(SUFFIXES), help="of the export")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="checkpoint; default: starter weights")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="default: the name of the weights, in the current folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")
    parser.add_argument(
        "--input-size",
        type=_size,
        metavar="SIZE",
        help="what the network works at: SIDE or HEIGHTxWIDTH; default: that of the checkpoint",
    )
    parser.add_argument("--dynamic", action="store_true", help="take images of any size; not with coreml")
    parser.add_argument(
        "--image-size",
        type=_size,
        metavar="SIZE",
        help="the only size of images, without --dynamic; default: what the network works at",
    )
    parser.add_argument("--half", action="store_true", help="float16 weights: half the size")
    parser.add_argument(
        "--int8", action="store_true", help="int8 weights with a scale for each channel: a quarter of the size"
    )
    parser.add_argument("--license", metavar="TEXT", help="of the weights, for the metadata; known for starter weights")
    group = parser.add_argument_group("comparison with the checkpoint")
    group.add_argument(
        "--pictures", "--images", type=Path, nargs="+", metavar="PATH", help="files or folders; default: drawn pictures"
    )
    group.add_argument("--masks", type=Path, metavar="PATH", help="their coarse masks: a folder, or a file")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="their boxes: CSV or JSON, as for dis-sam cut")
    group.add_argument("--limit", type=positive_int, metavar="N", help=f"of them; default: {PICTURES}")
    group.add_argument(
        "--tolerance",
        type=_percent,
        default=100 * FLIPS,
        metavar="PERCENT",
        help="share of a picture's pixels that may change sides at .5; default: %(default)s. The mean difference may "
        "be 2/255",
    )
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the process with exit code 2 if options contradict each other."""
    if options.half and options.int8:
        parser.error("expected --half or --int8: weights are stored in one type")
    if options.dynamic and options.image_size:
        parser.error("--dynamic takes images of any size; omit --image-size")
    if options.format == "coreml" and options.dynamic:
        parser.error("coreml has one image size: its converter has no resizing to any size; give --image-size")
    if options.format == "coreml" and options.int8:
        parser.error("--int8 is not available with coreml, where it could not be verified; use --half")
    if (options.masks or options.prompts or options.limit) and not options.pictures:
        parser.error("--masks, --prompts and --limit belong to --pictures")
    if options.masks and options.prompts:
        parser.error("expected --masks or --prompts")
    suffix = SUFFIXES[options.format]
    if options.out is not None and options.out.suffix != suffix:
        parser.error(f"--out: expected a name that ends in {suffix}, found {options.out.name!r}")


def _place(options: argparse.Namespace, weights: Path) -> Path:
    """Return where the export is written."""
    from IS_Net.exporting.formats import files_of
    from IS_Net.files import require_writable

    out = options.out or Path(f"{weights.stem}{SUFFIXES[options.format]}")
    for path in files_of(out):
        if path.is_dir() and options.format != "coreml":
            raise OutputExistsError(f"{path}: is a folder, expected a file; choose another name with --out")
        if path.exists() and path.resolve() == weights.resolve():
            raise OutputExistsError(f"{path}: is the file of the weights; choose another name with --out")
        if path.exists() and not options.overwrite:
            raise OutputExistsError(f"{path}: exists; choose another name with --out, or add --overwrite")
        require_writable(path)
    return out


def _metadata(options: argparse.Namespace, weights: Path, about: dict, sizes: tuple[str, str]) -> dict[str, str]:
    from dis_sam.fetch import hash_file
    from IS_Net.paths import starter_weights

    digest, starter = hash_file(weights).sha256, starter_weights()
    known = _STARTER_LICENSE if starter.is_file() and hash_file(starter).sha256 == digest else "not stated"
    return {
        "name": "dis-sam",
        "version": __version__,
        "description": _DESCRIPTION,
        "license": options.license or str(about.get("license") or known),
        "network": "IS-Net",
        "in_ch": str(about["in_ch"]),
        "input_size": sizes[0],
        "image_size": sizes[1],
        "weights": weights.name,
        "weights_sha256": digest,
        "weights_type": _storage(options),
    }


def _storage(options: argparse.Namespace) -> str:
    return "float16" if options.half else "int8" if options.int8 else "float32"


def _run(options: argparse.Namespace) -> int:
    from IS_Net.checkpoint import load_isnet
    from IS_Net.exporting.formats import open_export, write_export
    from IS_Net.images import size_text
    from IS_Net.paths import starter_weights
    from IS_Net.predictor import DISPredictor
    from IS_Net.runtime.base import pick_size

    weights = options.weights or starter_weights()
    if not weights.is_file():
        raise CheckpointError(f"{weights}: the checkpoint does not exist; check the path, or omit --weights")
    out = _place(options, weights)
    samples = drawn_samples(options.dynamic)
    if options.pictures:
        samples = iter(list(read_samples(options.pictures, options.masks, options.prompts, options.limit or PICTURES)))
    model, about = load_isnet(weights)
    size = pick_size(options.input_size, about)
    image_size = None if options.dynamic else options.image_size or size
    sizes = "x".join(map(str, size)), "any" if image_size is None else "x".join(map(str, image_size))
    metadata = _metadata(options, weights, {**about, "in_ch": model.in_ch}, sizes)
    with tempfile.TemporaryDirectory(prefix="dis-sam-export-") as folder:
        draft = Path(folder) / out.name
        print_text(f"converting {weights.name}: the network works at {size_text(size)}")
        write_export(model, draft, options.format, size, image_size, _storage(options), metadata)
        export = open_export(draft)
        if not getattr(export, "runs", True):
            print_text(
                "not compared with the checkpoint: Core ML runs on macOS only; run this command there to compare"
            )
        elif not _report(compare(DISPredictor(model, "cpu", "full", size), export, samples, image_size), options):
            print_error(f"{out}: was not written: the export differs by more than the tolerance")
            return FAILED
        del export  # some systems keep open files from being moved
        for path in _publish(draft, out):
            print_text(f"{path} ({_bytes(path) / 1e6:.1f} MB)")
    return DONE


def _report(compared: Iterator[tuple[Sample, Difference]], options: argparse.Namespace) -> bool:
    """Print the differences; return whether all are within the tolerance."""
    from tqdm import tqdm

    rows = list(tqdm(compared, "comparing", leave=False, unit="picture", disable=None))
    if not rows:
        print_error("nothing was compared: all masks are empty", prefix="warning: ")
        return False
    width = max(len("picture"), *(len(sample.name) for sample, _ in rows))
    print_text("difference from the checkpoint in PyTorch and float32, in steps of 1/255:")
    print_text(f"  {'picture':{width}}  {'size':>11}  {'prompt':9}  largest     mean  flips at .5  boundary IoU")
    failed = 0
    for sample, found in rows:
        ok = found.passes(options.tolerance / 100)
        failed += not ok
        size = f"{sample.image.shape[1]} x {sample.image.shape[0]}"
        print_text(
            f"  {sample.name:{width}}  {size:>11}  {sample.prompt:9}  {found.largest:7.3f}  {found.mean:7.4f}  "
            f"{100 * found.flips:9.4f} %  {found.boundary:12.5f}{'' if ok else '  too much'}"
        )
    verdict = f"{failed} of {len(rows)} exceed it" if failed else "passes"
    print_text(f"tolerance: {options.tolerance:g} % of a picture's pixels flip, mean 2/255: {verdict}")
    return not failed


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def _publish(draft: Path, out: Path) -> list[Path]:
    """Copy an export to its place; files are replaced whole."""
    from IS_Net.exporting.formats import files_of
    from IS_Net.files import atomic_file

    places = files_of(out)
    for source, target in zip(files_of(draft), places, strict=True):
        if source.is_dir():
            copied = target.with_name(f".{target.name}.part")
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(source, copied)
            shutil.rmtree(target, ignore_errors=True)
            copied.replace(target)
            continue
        with source.open("rb") as content, atomic_file(target) as file:
            shutil.copyfileobj(content, file, 1 << 22)
    return places


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dis-sam export``.

    Args:
        argv: The arguments; None takes the process's own.

    Returns:
        0 if the export was written, 1 if it differs from the checkpoint by more than the tolerance, 2 if the run could
        not start, 130 if it was interrupted.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    _check(parser, options)
    return run_command(lambda: _run(options), "interrupted; nothing was written")


if __name__ == "__main__":
    raise SystemExit(main())
