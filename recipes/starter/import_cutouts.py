"""Turn pictures with an alpha channel into training pairs.

    python -m recipes.starter.import_cutouts /usr/share/tuxpaint/stamps --backgrounds data/sample/photos/im

Each cut-out is pasted onto a strongly blurred photograph, like a photograph of a single object with a shallow depth of
field. Image and alpha are written as a data set (``im/``, ``gt/``); with ``hypar["copy_paste"]``, training pastes the
objects into other scenes. Drawings, icons and letters have few colors and are left out.
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

from IS_Net.command_line import DONE, FAILED, print_error, run_command
from IS_Net.compositing import paste
from IS_Net.errors import ImageError
from IS_Net.files import atomic_file, refuse_to_replace, remove_leftovers
from IS_Net.images import encode_image, list_images, read_cutout, read_image
from IS_Net.lock import lock_folder

MIN_SIDE = 180
"""Of a cut-out's longer side, in pixels: smaller ones show no edges to learn from."""
MIN_COLORS = 3000
"""A photograph has more colors than this, a drawing fewer."""
RELATIVE_SIZE = (0.45, 0.92)
"""Range of a cut-out's longer side relative to the side of the image."""


def is_photograph(cutout: np.ndarray) -> bool:
    """Return whether a cut-out, (h, w, 4) uint8 RGBA, is large and has enough colors to be a useful photograph."""
    solid = cutout[cutout[..., 3] > 200][:, :3].astype(np.uint32)
    colors = len(np.unique(solid @ np.uint32([1 << 16, 1 << 8, 1])))
    return max(cutout.shape[:2]) >= MIN_SIDE and colors >= MIN_COLORS


def paste_onto(cutout: np.ndarray, photograph: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paste a cut-out onto a strongly blurred photograph.

    Args:
        cutout: (h, w, 4) uint8 RGBA.
        photograph: (H, W, 3) uint8 RGB of any size.
        rng: Decides the position, the relative size and the blur.

    Returns:
        Image (side, side, 3) and alpha (side, side), both uint8. The cut-out keeps its resolution and is completely
        inside the image.
    """
    height, width = cutout.shape[:2]
    side = int(max(height, width) / rng.uniform(*RELATIVE_SIZE)) + 1
    small = cv2.resize(photograph, (64, 64), interpolation=cv2.INTER_AREA)
    image = cv2.resize(cv2.GaussianBlur(small, (0, 0), rng.uniform(1, 6)), (side, side)).astype(np.float32)
    top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
    window = np.s_[top : top + height, left : left + width]
    alpha = np.zeros((side, side), np.uint8)
    alpha[window] = cutout[..., 3]
    image[window] = paste(cutout[..., :3], cutout[..., 3] / np.float32(255), image[window])
    return np.round(image).astype(np.uint8), alpha


def import_cutouts(pictures: Sequence[Path], backgrounds: Sequence[Path], out: Path) -> tuple[int, list[str]]:
    """Write the photographs among some cut-outs to ``out/im`` and ``out/gt``; the same files give the same pairs.

    A file that exists with another content is kept: it belongs to another import, or was changed by hand.

    Returns:
        The number of pairs that are there now, and an error message for each file that cannot be used or written.

    Raises:
        DatasetError: If ``out/im`` or ``out/gt`` is a folder of inputs; nothing is written.
        FolderInUseError: If another process writes to ``out``.
    """
    folders = [out / "im", out / "gt"]
    refuse_to_replace([out, *folders], {path.parent for path in (*pictures, *backgrounds)})
    with lock_folder(out, "an import of cut-outs"):
        for folder in folders:
            remove_leftovers(folder)
        return _import(pictures, backgrounds, out)


def _import(pictures: Sequence[Path], backgrounds: Sequence[Path], out: Path) -> tuple[int, list[str]]:
    written, errors, names = 0, [], set()
    for path in tqdm(pictures, desc="cut-outs", unit="image"):
        try:
            cutout = read_cutout(path)
        except ImageError as error:
            errors.append(str(error))
            continue
        if not is_photograph(cutout):
            continue
        name = path.stem
        while name in names:  # subfolders may repeat names
            name += "_"
        names.add(name)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        image, alpha = paste_onto(cutout, read_image(backgrounds[rng.integers(len(backgrounds))]), rng)
        files = {out / "gt" / f"{name}.png": alpha, out / "im" / f"{name}.png": image}
        contents = {file: encode_image(pixels, ".png") for file, pixels in files.items()}
        others = [str(file) for file, content in contents.items() if not _is_free(file, content)]
        if others:
            errors.append(
                f"{path}: {' and '.join(others)} exists with another content, from another import or changed by hand; "
                "rename the picture, or write to another folder with --out"
            )
            continue
        for file, content in contents.items():
            if not file.is_file() or file.stat().st_size != len(content):
                with atomic_file(file) as stream:
                    stream.write(content)
        written += 1
    return written, errors


def _is_free(file: Path, content: bytes) -> bool:
    """Return whether a file is missing or empty, or has this content already."""
    return not file.is_file() or file.stat().st_size == 0 or file.read_bytes() == content


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.import_cutouts", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("pictures", type=Path, help="folder of pictures with an alpha channel, including subfolders")
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of photographs")
    parser.add_argument(
        "--out", type=Path, default=Path("data/cutouts"), help="folder to write to (default: %(default)s)"
    )
    args = parser.parse_args(argv)

    def command() -> int:
        pictures = list(list_images(args.pictures, recursive=True).values())
        backgrounds = list(list_images(args.backgrounds).values())
        written, errors = import_cutouts(pictures, backgrounds, args.out)
        for message in errors:
            print_error(message)
        print(f"{args.out}: {written} pairs from {len(pictures)} pictures; drawings and small pictures are left out")
        if not written:
            raise ImageError(
                f"{args.pictures}: found no cut-out of a photograph; expected color pictures of objects with an alpha "
                f"channel and a longer side of at least {MIN_SIDE} pixels"
            )
        return FAILED if errors else DONE

    return run_command(command, "interrupted; the same command starts again")


if __name__ == "__main__":
    sys.exit(main())
