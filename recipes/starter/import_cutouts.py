"""Turn pictures with an alpha channel into training pairs: ``python -m recipes.starter.import_cutouts``.

Each cut-out, alone, is put before a photograph that is far out of focus, as photographs of single things look; image
and alpha are written as a data set (``im/``, ``gt/``), whose objects ``hypar["copy_paste"]`` puts into other scenes.
Drawings, icons and letters, which have few colors, are left out.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from IS_Net.errors import ImageError
from IS_Net.images import IMAGE_EXTENSIONS, read_cutout, read_image, write_image, write_mask

LEAST_SIDE = 180
"""Of a cut-out's longer side in pixels: what is smaller shows no edges to learn from."""
LEAST_COLORS = 3000
"""A photograph has more, a drawing fewer."""
SHARE = (0.45, 0.92)
"""Of the picture's side that a cut-out's longer side takes."""


def is_photograph(cutout: np.ndarray) -> bool:
    """Say whether a cut-out, (h, w, 4) uint8 RGBA, is large and colorful enough to be of use."""
    solid = cutout[cutout[..., 3] > 200][:, :3].astype(np.uint32)
    colors = len(np.unique(solid @ np.uint32([1 << 16, 1 << 8, 1])))
    return max(cutout.shape[:2]) >= LEAST_SIDE and colors >= LEAST_COLORS


def paste_onto(cutout: np.ndarray, photograph: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put a cut-out before a photograph out of focus.

    Args:
        cutout: (h, w, 4) uint8 RGBA.
        photograph: (H, W, 3) uint8 RGB of any size.
        rng: Where place and size come from.

    Returns:
        Image (side, side, 3) and alpha (side, side), both uint8; the cut-out at its own resolution, wholly in view.
    """
    height, width = cutout.shape[:2]
    side = int(max(height, width) / rng.uniform(*SHARE)) + 1
    behind = cv2.resize(photograph, (64, 64), interpolation=cv2.INTER_AREA)
    behind = cv2.resize(cv2.GaussianBlur(behind, (0, 0), rng.uniform(1, 6)), (side, side)).astype(np.float32)
    top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
    place = np.s_[top : top + height, left : left + width]
    alpha = np.zeros((side, side), np.uint8)
    alpha[place] = cutout[..., 3]
    behind[place] += (cutout[..., :3] - behind[place]) * (cutout[..., 3:] / np.float32(255))
    return np.round(behind).astype(np.uint8), alpha


def import_cutouts(pictures: Sequence[Path], backgrounds: Sequence[Path], out: Path) -> tuple[int, list[str]]:
    """Write the photographs among some cut-outs to ``out/im`` and ``out/gt``; the same files give the same pairs.

    Returns:
        How many were written, and what is wrong with the files that cannot be used at all.
    """
    written, problems, names = 0, [], set()
    for path in tqdm(pictures, desc="cut-outs", unit="image"):
        try:
            cutout = read_cutout(path)
        except ImageError as error:
            problems.append(str(error))
            continue
        if not is_photograph(cutout):
            continue
        name = path.stem
        while name in names:  # folders of pictures may repeat names
            name += "_"
        names.add(name)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        image, alpha = paste_onto(cutout, read_image(backgrounds[rng.integers(len(backgrounds))]), rng)
        write_mask(out / "gt" / f"{name}.png", alpha)
        write_image(out / "im" / f"{name}.png", image)
        written += 1
    return written, problems


def _images(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise ImageError(f"{folder}: is no folder; name one that holds pictures")
    found = sorted(path for path in folder.glob(pattern) if path.suffix.lower() in IMAGE_EXTENSIONS)
    if not found:
        raise ImageError(f"{folder}: holds no pictures")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.import_cutouts", description=__doc__.split("\n\n")[1]
    )
    parser.add_argument("pictures", type=Path, help="a folder of pictures with alpha; its subfolders are looked into")
    parser.add_argument("--backgrounds", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--out", type=Path, default=Path("data/cutouts"), help="default: %(default)s")
    given = parser.parse_args(arguments)
    try:
        pictures, backgrounds = _images(given.pictures, "**/*"), _images(given.backgrounds, "*")
        written, problems = import_cutouts(pictures, backgrounds, given.out)
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"{given.out}: {written} pairs of {len(pictures)} pictures; drawings and small ones are left out")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
