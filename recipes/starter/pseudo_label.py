"""Turn photographs into training pairs, labeled by a network itself: ``python -m recipes.starter.pseudo_label PHOTOS``.

A plain IS-Net (3 channels) finds the salient object of each photograph, once as it is and once mirrored; where the
two agree and little is undecided, image and alpha are written as a data set (``im/``, ``gt/``) to train on, whose
objects ``hypar["copy_paste"]`` cuts out and puts into other photographs. ``labels.csv`` tells what was kept and why.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from IS_Net.errors import CheckpointError, DeviceError, ImageError
from IS_Net.hypar import IS_NET_DIR
from IS_Net.images import IMAGE_EXTENSIONS, atomic_file, read_image, write_image, write_mask
from IS_Net.predictor import DISPredictor

WEIGHTS = IS_NET_DIR.parent / "saved_models" / "isnet.safetensors"
LONGEST_SIDE = 1600
LEAST_AGREEMENT, MOST_UNDECIDED, AREA = 0.93, 0.15, (0.004, 0.85)


@dataclass(frozen=True)
class Label:
    """How sure a network is of the alpha that it gave a photograph."""

    agreement: float
    """IoU of what it finds in the photograph and in its mirror image."""
    undecided: float
    """Share of the object's pixels with an alpha of 0.1 to 0.9."""
    area: float
    """Share of the photograph that the object takes."""

    @property
    def verdict(self) -> str:
        """Return ``kept``, or why the label is not worth training on."""
        if not AREA[0] <= self.area <= AREA[1]:
            return "no object of a useful size"
        if self.agreement < LEAST_AGREEMENT:
            return "another object when mirrored"
        return "kept" if self.undecided <= MOST_UNDECIDED else "undecided"


def label(predictor: DISPredictor, image: np.ndarray) -> tuple[np.ndarray, Label]:
    """Find a photograph's salient object.

    Args:
        predictor: Of 3 channels.
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) float32 alpha in [0, 1], steepened so that what is nearly decided is decided; and its figures.
    """
    seen = predictor.predict(image)
    mirrored = predictor.predict(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
    both, either = (seen > 0.5) & (mirrored > 0.5), (seen > 0.5) | (mirrored > 0.5)
    alpha = (seen + mirrored) / 2
    found = alpha > 0.1
    figures = Label(
        agreement=float(both.sum() / max(either.sum(), 1)),
        undecided=float((found & (alpha < 0.9)).sum() / max(found.sum(), 1)),
        area=float((alpha > 0.5).mean()),
    )
    return np.clip((alpha - 0.15) / 0.7, 0, 1), figures


def _fit(image: np.ndarray) -> np.ndarray:
    scale = LONGEST_SIDE / max(image.shape[:2])
    return image if scale >= 1 else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def self_label(photographs: Sequence[Path], out: Path, predictor: DISPredictor) -> dict[str, str]:
    """Label photographs, and write those that the network is sure of to ``out/im`` and ``out/gt``.

    Files that cannot be read are told in ``labels.csv``; a photograph that is labeled there already is left out.

    Returns:
        The verdict of each photograph by its name: ``kept``, or why not.

    Raises:
        ImageError: If two photographs share a name, by which the one's label would replace the other's.
    """
    for name, times in Counter(path.stem for path in photographs).items():
        if times > 1:
            raise ImageError(f"{times} photographs share the name {name!r}; rename all but one of them")
    rows: dict[str, dict[str, object]] = {}
    if (out / "labels.csv").is_file():
        with (out / "labels.csv").open(newline="", encoding="utf-8") as file:
            rows = {row["name"]: row for row in csv.DictReader(file)}
    for path in tqdm([path for path in photographs if path.stem not in rows], desc="label", unit="image"):
        try:
            image = _fit(read_image(path))
        except ImageError as error:
            rows[path.stem] = {"name": path.stem, "verdict": str(error)}
        else:
            alpha, figures = label(predictor, image)
            if figures.verdict == "kept":
                write_mask(out / "gt" / f"{path.stem}.png", np.round(alpha * 255).astype(np.uint8))
                write_image(out / "im" / f"{path.stem}.jpg", image)
            rounded = {key: round(value, 4) for key, value in asdict(figures).items()}
            rows[path.stem] = {"name": path.stem, "verdict": figures.verdict, **rounded}
        text = io.StringIO()
        writer = csv.DictWriter(text, ["name", "verdict", "agreement", "undecided", "area"])
        writer.writeheader()
        writer.writerows(rows.values())
        with atomic_file(out / "labels.csv", "w") as file:
            file.write(text.getvalue())
    return {name: str(row["verdict"]) for name, row in rows.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.pseudo_label", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("photographs", type=Path, nargs="+", help="folders of photographs")
    parser.add_argument("--out", type=Path, default=Path("data/self_labeled"), help="default: %(default)s")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="of a 3-channel IS-Net; default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    given = parser.parse_args(arguments)
    try:
        files = []
        for folder in given.photographs:
            if not folder.is_dir():
                raise ImageError(f"{folder}: is no folder; name one that holds photographs")
            files += sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS)
        if not files:
            raise ImageError(f"{', '.join(map(str, given.photographs))}: hold no photographs")
        predictor = DISPredictor.from_checkpoint(given.weights, given.device)
        if predictor.in_ch != 3:
            raise CheckpointError(
                f"{given.weights}: has {predictor.in_ch} input channels; labeling takes 3, image alone"
            )
        print(f"labeling {len(files)} photographs on {predictor.device}")
        verdicts = list(self_label(files, given.out, predictor).values())
    except (ImageError, CheckpointError, DeviceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: kept {verdicts.count('kept')} of {len(verdicts)}; labels.csv tells why")
    return 0


if __name__ == "__main__":
    sys.exit(main())
