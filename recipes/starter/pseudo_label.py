"""Turn photographs into training pairs: a 3-channel IS-Net gives them pseudo-labels.

    python -m recipes.starter.pseudo_label data/photographs

The network segments the salient object of each photograph twice: as it is, and mirrored. A pseudo-label is confident
if both results agree and few pixels are undecided. Confident ones are written with their images as a data set (``im/``,
``gt/``); with ``hypar["copy_paste"]``, training cuts the objects out and pastes them onto other photographs.
``labels.csv`` lists every photograph with its figures and the verdict.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from IS_Net.command_line import DONE, FAILED, print_error, run_command
from IS_Net.errors import CheckpointError, DatasetError, ImageError
from IS_Net.files import (
    atomic_file,
    from_spreadsheet_text,
    refuse_to_replace,
    remove_leftovers,
    spreadsheet_text,
)
from IS_Net.images import is_image, list_images, read_image, write_image, write_mask
from IS_Net.lock import lock_folder
from IS_Net.paths import saved_models
from IS_Net.predictor import DISPredictor

LONGEST_SIDE = 1600
"""In pixels; larger photographs are scaled down to it."""
MIN_AGREEMENT, MAX_UNDECIDED, AREA = 0.93, 0.15, (0.004, 0.85)
KEPT, NO_OBJECT, DISAGREEMENT, UNDECIDED = VERDICTS = (
    "kept",
    "no object of a useful size",
    "another object when mirrored",
    "undecided",
)
"""Verdicts on a photograph. For one that cannot be read, the verdict is the error message instead."""


@dataclass(frozen=True)
class Confidence:
    """How confident a network is about the alpha matte of a photograph."""

    agreement: float
    """IoU of the objects found in the photograph and in its mirror image."""
    undecided: float
    """Fraction of the object's pixels that have an alpha of 0.1 to 0.9."""
    area: float
    """Fraction of the photograph that the object covers."""

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``: whether the pseudo-label is kept, or why not."""
        if not AREA[0] <= self.area <= AREA[1]:
            return NO_OBJECT
        if self.agreement < MIN_AGREEMENT:
            return DISAGREEMENT
        return KEPT if self.undecided <= MAX_UNDECIDED else UNDECIDED


def label(predictor: DISPredictor, image: np.ndarray) -> tuple[np.ndarray, Confidence]:
    """Segment the salient object of a photograph.

    Args:
        predictor: Has 3 input channels.
        image: (H, W, 3) uint8 RGB.

    Returns:
        The pseudo-label, (H, W) float32 alpha in [0, 1], with more contrast than the prediction: values below 0.15
        become 0 and values above 0.85 become 1; and how confident it is.
    """
    direct = predictor.predict(image)
    mirrored = predictor.predict(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
    both, either = (direct > 0.5) & (mirrored > 0.5), (direct > 0.5) | (mirrored > 0.5)
    alpha = (direct + mirrored) / 2
    found = alpha > 0.1
    confidence = Confidence(
        agreement=float(both.sum() / max(either.sum(), 1)),
        undecided=float((found & (alpha < 0.9)).sum() / max(found.sum(), 1)),
        area=float((alpha > 0.5).mean()),
    )
    return np.clip((alpha - 0.15) / 0.7, 0, 1), confidence


def _fit(image: np.ndarray) -> np.ndarray:
    scale = LONGEST_SIDE / max(image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def pseudo_label(photographs: Sequence[Path], out: Path, predictor: DISPredictor) -> dict[str, str]:
    """Label photographs and write the confident pseudo-labels to ``out/im`` and ``out/gt``.

    A photograph that ``out/labels.csv`` already lists with its figures is skipped, so an interrupted run resumes, and
    labels that were corrected by hand stay.

    Returns:
        The verdict on each photograph, by name: one of ``VERDICTS``, or why the file cannot be read.

    Raises:
        ImageError: If two photographs share a name, because their labels would share a file.
        DatasetError: If ``out`` would replace photographs, or holds files that no run of this program wrote.
        FolderInUseError: If another process writes to ``out``.
    """
    refuse_to_replace([out, out / "im", out / "gt"], {path.parent for path in photographs})
    for name, times in Counter(path.stem for path in photographs).items():
        if times > 1:
            raise ImageError(f"{times} photographs share the name {name!r}, expected different names; rename them")
    with lock_folder(out, "a pseudo-labeling"):
        for folder in (out, out / "im", out / "gt"):
            remove_leftovers(folder)
        rows = _read_rows(out)
        _write_rows(out, rows)  # from now on, the folder is known to be this program's
        return _label_all(photographs, out, predictor, rows)


_COLUMNS = ("name", "verdict", "agreement", "undecided", "area")


def _read_rows(out: Path) -> dict[str, dict[str, object]]:
    """Return the rows of the photographs that are done, by name.

    Raises:
        DatasetError: If the folder holds files that no run of this program wrote.
    """
    path = out / "labels.csv"
    if not path.is_file():
        for folder in (out / "im", out / "gt"):
            if folder.is_dir() and any(is_image(file) for file in folder.iterdir()):
                raise DatasetError(
                    f"{folder}: holds images, and there is no {path} that would list them as written by this program; "
                    "choose another folder with --out"
                )
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if path.stat().st_size and set(reader.fieldnames or ()) != set(_COLUMNS):
            raise DatasetError(
                f"{path}: found the columns {', '.join(reader.fieldnames or ())}, expected {', '.join(_COLUMNS)}; "
                "it was not written by this program: choose another folder with --out"
            )
        rows = [{key: from_spreadsheet_text(value or "") for key, value in row.items() if key} for row in reader]
    return {row["name"]: row for row in rows}


def _write_rows(out: Path, rows: Mapping[str, Mapping[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS)
    writer.writeheader()
    writer.writerows(
        {key: spreadsheet_text(value) if isinstance(value, str) else value for key, value in row.items()}
        for row in rows.values()
    )
    with atomic_file(out / "labels.csv", "w") as file:
        file.write(text.getvalue())


def _label_all(
    photographs: Sequence[Path], out: Path, predictor: DISPredictor, rows: dict[str, dict[str, object]]
) -> dict[str, str]:
    def is_done(name: str) -> bool:
        files = out / "gt" / f"{name}.png", out / "im" / f"{name}.jpg"
        # one that was deleted is not wanted; an empty one is what a power cut may leave
        return bool(rows.get(name, {}).get("agreement")) and all(
            file.stat().st_size for file in files if file.is_file()
        )

    todo = [path for path in photographs if not is_done(path.stem)]
    for path in tqdm(todo, desc="label", unit="image"):
        try:
            image = _fit(read_image(path))
        except ImageError as error:
            rows[path.stem] = {"name": path.stem, "verdict": str(error)}
        else:
            alpha, confidence = label(predictor, image)
            if confidence.verdict == KEPT:
                write_mask(out / "gt" / f"{path.stem}.png", np.round(alpha * 255).astype(np.uint8))
                write_image(out / "im" / f"{path.stem}.jpg", image)
            rounded = {key: round(value, 4) for key, value in asdict(confidence).items()}
            rows[path.stem] = {"name": path.stem, "verdict": confidence.verdict, **rounded}
        _write_rows(out, rows)
    return {path.stem: str(rows[path.stem]["verdict"]) for path in photographs}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.pseudo_label", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("photographs", type=Path, nargs="+", metavar="FOLDER", help="folders of photographs")
    parser.add_argument(
        "--out", type=Path, default=Path("data/pseudo_labeled"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--weights", type=Path, default=saved_models() / "isnet.safetensors",
        help="checkpoint of a 3-channel IS-Net (default: %(default)s, which fetch_isnet writes)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    args = parser.parse_args(argv)

    def command() -> int:
        files = [path for folder in args.photographs for path in list_images(folder).values()]
        # before the network is loaded
        refuse_to_replace([args.out, args.out / "im", args.out / "gt"], [*args.photographs, args.weights])
        with lock_folder(args.out, "a pseudo-labeling"):
            _read_rows(args.out)
        predictor = DISPredictor.from_checkpoint(args.weights, args.device)
        if predictor.in_ch != 3:
            raise CheckpointError(
                f"{args.weights}: found {predictor.in_ch} input channels, expected 3 (image only); pass weights of a "
                "plain IS-Net: --weights FILE"
            )
        print(f"labeling {len(files)} photographs on {predictor.runtime.where}")
        verdicts = pseudo_label(files, args.out, predictor)
        kept = list(verdicts.values()).count(KEPT)
        print(f"{args.out}: kept {kept} of {len(verdicts)} photographs; labels.csv lists the verdicts")
        failed = [verdict for verdict in verdicts.values() if verdict not in VERDICTS]
        for message in failed:
            print_error(message)
        return FAILED if failed else DONE

    return run_command(command, "interrupted; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
