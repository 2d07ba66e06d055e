"""Make a small data set for dichotomous image segmentation, and demo photographs, without downloads.

    python data/make_sample.py                       # writes data/sample
    python data/make_sample.py --contact-sheet sheet.png

The objects are drawn and stand in surroundings made from the photographs inside scikit-image (see `sample_scenes`);
the motorcycle is a real photograph.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a checkout that is not installed

from sample_scenes import KINDS, make_pair
from sample_scenes.motorcycle import FILES, motorcycle, motorcycle_pair
from sample_scenes.surroundings import PHOTOGRAPHS, TEXTURES, source_path

from IS_Net.bounded import map_bounded
from IS_Net.command_line import DONE, non_negative_int, run_command
from IS_Net.images import atomic_file, contact_sheet, read_image, read_mask, write_image, write_mask

VERSION = 2
"""Increase it when the same seed gives other pictures."""

SPLITS = {"train": "DIS-TR", "valid": "DIS-VD", "test": "DIS-TE1"}

# Demo photographs: the file, the object, and its tight box (first column, first row, last column, last row), measured
# by hand at the photographs' own size; None is measured from the mask.
PHOTOS: dict[str, tuple[str, str, tuple[int, int, int, int] | None]] = {
    "astronaut": ("astronaut.png", "person", (22, 15, 363, 511)),
    "chelsea": ("chelsea.png", "cat", (0, 0, 401, 299)),
    "coffee": ("coffee.png", "cup", (172, 17, 409, 308)),
    "motorcycle": ("motorcycle_left.png", "motorcycle", None),
    "rocket": ("rocket.jpg", "rocket", (308, 126, 336, 407)),
}

Job = tuple[str, str, str]


@dataclass(frozen=True)
class Settings:
    """What decides the files' content."""

    train: int = 48
    valid: int = 10
    test: int = 10
    seed: int = 0
    size: int | None = None
    version: int = VERSION

    def jobs(self) -> list[Job]:
        """Return all pairs as (split, name, kind); kinds take turns, and the last test pair is the motorcycle."""
        jobs = []
        for k, (field, split) in enumerate(SPLITS.items()):
            count = getattr(self, field)
            order = np.random.default_rng([self.seed, k]).permutation(len(KINDS))
            for index in range(count):
                last = split == "DIS-TE1" and index == count - 1
                kind = "motorcycle" if last else KINDS[order[index % len(KINDS)]]
                jobs.append((split, f"{kind}_{index:04d}", kind))
        return jobs


def _single_threaded() -> None:
    cv2.setNumThreads(1)  # the pool is the parallelism


def _write_pair(out: Path, settings: Settings, job: Job) -> None:
    split, name, kind = job
    if kind == "motorcycle":
        image, gt = motorcycle_pair(settings.size)
    else:
        # the name's number is its place in the split, so every pair has a generator of its own
        keys = [settings.seed, list(SPLITS.values()).index(split), int(name.rsplit("_", 1)[1]), 1]
        image, gt = make_pair(kind, split, np.random.default_rng(keys), settings.size)
    write_image(out / split / "im" / f"{name}.jpg", image)
    write_mask(out / split / "gt" / f"{name}.png", gt)


def _write_photos(out: Path) -> None:
    prompts = {}
    for name, (file, thing, box) in PHOTOS.items():
        if box is None:
            y, x = np.nonzero(motorcycle()[1])
            box = (int(x.min()), int(y.min()), int(x.max()), int(y.max()))
        write_image(out / "im" / f"{name}.png", read_image(source_path(file)))
        prompts[name] = [{"object": thing, "box": list(box)}]
    with atomic_file(out / "prompts.json", "w") as file:
        json.dump(prompts, file, indent=1)


def is_complete(out: Path, settings: Settings) -> bool:
    """Return whether `out` holds the whole sample made with these settings."""
    try:
        record = json.loads((out / "sample.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = [out / "photos" / "prompts.json", *(out / "photos" / "im" / f"{name}.png" for name in PHOTOS)]
    for split, name, _ in settings.jobs():
        files += [out / split / "im" / f"{name}.jpg", out / split / "gt" / f"{name}.png"]
    return record == asdict(settings) and all(file.is_file() for file in files)


def make_sample(out: Path, settings: Settings, workers: int, force: bool = False) -> bool:
    """Make the sample data set, unless it is complete.

    Args:
        out: Its folder. Splits and photographs that an earlier run left in it are replaced.
        settings: What to make.
        workers: Processes; their number does not change the files.
        force: Make it even if it is complete.

    Returns:
        True if it was made, False if it was complete.

    Raises:
        FileNotFoundError: If a photograph of scikit-image is missing; nothing is written then.
    """
    if not force and is_complete(out, settings):
        return False
    for name in {file for file, _, _ in PHOTOS.values()}.union(FILES, PHOTOGRAPHS, TEXTURES):
        source_path(name)
    (out / "sample.json").unlink(missing_ok=True)
    for name in (*SPLITS.values(), "photos"):
        shutil.rmtree(out / name, ignore_errors=True)
    for split in SPLITS.values():
        for folder in ("im", "gt"):
            (out / split / folder).mkdir(parents=True)
    _write_photos(out / "photos")
    jobs = settings.jobs()
    with tqdm(total=len(jobs), desc=f"sample data in {out}", unit="pair", disable=None) as bar:
        for _ in _written(out, settings, jobs, workers):
            bar.update()
    with atomic_file(out / "sample.json", "w") as file:
        json.dump(asdict(settings), file, indent=1)
    return True


def _written(out: Path, settings: Settings, jobs: list[Job], workers: int) -> Iterator[None]:
    if workers <= 1:
        _single_threaded()
        for job in jobs:
            yield _write_pair(out, settings, job)
        return
    context = multiprocessing.get_context("spawn")  # forked OpenCV and BLAS threads may hang
    with ProcessPoolExecutor(workers, context, _single_threaded) as pool:
        for future in map_bounded(pool, partial(_write_pair, out, settings), jobs, 2 * workers):
            yield future.result()


def _place(path: Path) -> str:
    return path.stem.rsplit("_", 1)[1]  # in the split


def overview(out: Path, height: int = 220, columns: int = 4) -> np.ndarray:
    """Return a contact sheet, (h, w, 3) uint8 RGB, of all pairs of a sample, each image beside its ground truth."""
    paths = [path for split in SPLITS.values() for path in sorted((out / split / "im").glob("*.jpg"), key=_place)]
    if not paths:
        raise FileNotFoundError(f"{out} holds no sample data; run without --contact-sheet first")
    rows = ((read_image(path), read_mask(path.parents[1] / "gt" / f"{path.stem}.png")) for path in paths)
    return contact_sheet(rows, height, columns, captions=[f"{path.parents[1].name} {path.stem}" for path in paths])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Make the sample data set: drawn objects in real surroundings.")
    parser.add_argument("--out", type=Path, default=here / "sample", help="its folder (default: %(default)s)")
    parser.add_argument("--train", type=non_negative_int, default=48, help="pairs in DIS-TR (default: %(default)s)")
    parser.add_argument("--valid", type=non_negative_int, default=10, help="pairs in DIS-VD (default: %(default)s)")
    parser.add_argument("--test", type=non_negative_int, default=10, help="pairs in DIS-TE1 (default: %(default)s)")
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, help="another seed gives another set (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=non_negative_int, help="pixels of the longer side (default: 1024 to 1600, varied)"
    )
    parser.add_argument(
        "--workers", type=non_negative_int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="make it again even if it is complete")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="also write an overview picture")
    args = parser.parse_args(argv)
    if args.size is not None and args.size < 64:
        parser.error("--size: at least 64 pixels")
    settings = Settings(args.train, args.valid, args.test, args.seed, args.size)

    def command() -> int:
        made = make_sample(args.out, settings, args.workers, args.force)
        state = "made" if made else "already complete"
        print(f"{args.out}: {state}, {len(settings.jobs())} pairs and {len(PHOTOS)} photographs")
        if args.contact_sheet:
            write_image(args.contact_sheet, overview(args.out))
            print(f"{args.contact_sheet}: overview")
        return DONE

    return run_command(command, f"interrupted; run the command again to make {args.out}")


if __name__ == "__main__":
    # numpy's own threads would compete with the pool's processes; read when a process imports numpy
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
