"""Write prompts that are a box alone, to validate on during training.

    python -m recipes.starter.box_prompts data/sample/hard/many_parts

writes the tight box of each ground truth as a filled mask to `box/` in the folder, and as numbers to its manifest. The
data set `data/sample/hard/many_parts:box` then gives a network what it gets for a box without a mask.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from IS_Net.command_line import DONE, run_command
from IS_Net.errors import DatasetError
from IS_Net.files import refuse_to_replace
from IS_Net.images import list_images, read_mask, write_mask
from IS_Net.manifest import Manifest
from IS_Net.preprocess import box_from_mask, fill_box

FOLDER = "box"
"""Subfolder of the masks."""


def write_box_prompts(pairs: Path) -> int:
    """Write a filled box and a manifest entry with the tight box for each ground truth that has a target.

    Args:
        pairs: A folder that holds ``im`` and ``gt``.

    Returns:
        The number of prompts.

    Raises:
        DatasetError: If there are no ground truths, one of them is empty, or ``box/`` holds masks of another program.
    """
    if not (pairs / "gt").is_dir():
        raise DatasetError(f"{pairs}: has no folder gt of ground truths; name a folder that holds im and gt")
    folder = pairs / FOLDER
    gts = list_images(pairs / "gt")
    refuse_to_replace([folder], [pairs / "gt", pairs / "im"])
    folder.mkdir(exist_ok=True)
    manifest = Manifest(folder)
    for name in gts:
        if (folder / f"{name}.png").is_file() and manifest.entries.get(name, {}).get("model") != FOLDER:
            raise DatasetError(f"{folder / name}.png: was not made by this program, which would replace it; move it")
    for name, path in gts.items():
        gt = read_mask(path)
        box = box_from_mask(gt)
        if box is None:
            raise DatasetError(f"{path}: the ground truth is empty, so it has no box; remove it and its image")
        write_mask(folder / f"{name}.png", fill_box(box, gt.shape, gt.shape)[0])
        manifest.add({"mask": name, "image": name, "box": list(box), "model": FOLDER, "size": list(gt.shape)})
    return len(gts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.box_prompts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pairs", type=Path, nargs="+", metavar="FOLDER", help="folders that hold im and gt")
    args = parser.parse_args(argv)

    def command() -> int:
        for pairs in args.pairs:
            print(f"{pairs / FOLDER}: {write_box_prompts(pairs)} prompts")
        return DONE

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
