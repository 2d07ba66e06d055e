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
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for a checkout that is not installed

from IS_Net.command_line import DONE, answer_interrupts, non_negative_int, run_command

answer_interrupts()  # before the imports that take long

import cv2
import numpy as np
from sample_scenes import KINDS, make_pair
from sample_scenes.photographs import BACKDROPS, MOTORCYCLE, TEXTURES, motorcycle_pair, source_path
from tqdm import tqdm

from IS_Net.bounded import map_bounded
from IS_Net.errors import DatasetError, join_some
from IS_Net.files import atomic_file, content_hash, refuse_to_replace
from IS_Net.images import contact_sheet, read_image, read_mask, write_image, write_mask
from IS_Net.lock import lock_folder
from IS_Net.worker import prepare_worker

VERSION = 3
"""Increase it when the same seed gives other pictures."""

SPLITS = {"train": "DIS-TR", "valid": "DIS-VD", "test": "DIS-TE1"}

# photographs for the demo: the file, the object, and its tight box (first column and row, last column and row)
PHOTOS: dict[str, tuple[str, str, tuple[int, int, int, int]]] = {
    "astronaut": ("astronaut.png", "person", (22, 15, 363, 511)),
    "chelsea": ("chelsea.png", "cat", (0, 0, 401, 299)),
    "coffee": ("coffee.png", "cup", (172, 17, 409, 308)),
    "motorcycle": ("motorcycle_left.png", "motorcycle", (93, 35, 685, 452)),
    "rocket": ("rocket.jpg", "rocket", (308, 126, 336, 407)),
}

Job = tuple[str, int, str]


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
        """Return all pairs as (split, index, kind); kinds take turns, and the last test pair is the motorcycle."""
        jobs: list[Job] = []
        for k, (field, split) in enumerate(SPLITS.items()):
            order = np.random.default_rng([self.seed, k]).permutation(list(KINDS))
            jobs += [(split, index, str(order[index % len(order)])) for index in range(getattr(self, field))]
        return [(*job[:2], "motorcycle") if job[:2] == ("DIS-TE1", self.test - 1) else job for job in jobs]


def _files(out: Path, job: Job) -> tuple[Path, Path]:
    split, index, kind = job
    return out / split / "im" / f"{kind}_{index:04d}.jpg", out / split / "gt" / f"{kind}_{index:04d}.png"


def _write_pair(out: Path, settings: Settings, job: Job) -> None:
    split, index, kind = job
    if kind == "motorcycle":
        image, gt = motorcycle_pair(settings.size)
    else:  # every pair has a generator of its own
        keys = [settings.seed, list(SPLITS.values()).index(split), index, 1]
        image, gt = make_pair(kind, split, np.random.default_rng(keys), settings.size)
    im_path, gt_path = _files(out, job)
    write_image(im_path, image)
    write_mask(gt_path, gt)


def _write_photos(out: Path) -> None:
    prompts = {}
    for name, (file, thing, box) in PHOTOS.items():
        write_image(out / "im" / f"{name}.png", read_image(source_path(file)))
        prompts[name] = [{"object": thing, "box": list(box)}]
    with atomic_file(out / "prompts.json", "w") as file:
        json.dump(prompts, file, indent=1)


_RECORD = "sample.json"
_OWN_NAMES = re.compile(rf"(?:{'|'.join((*KINDS, 'motorcycle'))})_\d{{4}}\.(?:jpg|png)")


def _all_files(out: Path, settings: Settings) -> list[Path]:
    files = [out / "photos" / "prompts.json", *(out / "photos" / "im" / f"{name}.png" for name in PHOTOS)]
    return files + [file for job in settings.jobs() for file in _files(out, job)]


def _read_record(out: Path) -> dict[str, Any] | None:
    """Return what the folder's record says, or None if this program has not written to the folder."""
    try:
        record = json.loads((out / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and asdict(Settings()).keys() <= record.keys() else None


def _write_record(out: Path, settings: Settings, files: dict[str, str] | None) -> None:
    """Record the settings and the hash of each file; no files mean that the sample is being made."""
    with atomic_file(out / _RECORD, "w") as file:
        json.dump({**asdict(settings), "files": files}, file, indent=1)


def is_complete(out: Path, settings: Settings) -> bool:
    """Return whether `out` holds the whole sample made with these settings, each file as it was made."""
    record = _read_record(out)
    if record is None or any(record[key] != value for key, value in asdict(settings).items()):
        return False
    files = _all_files(out, settings)
    if any(not file.is_file() or file.stat().st_size == 0 for file in files):
        return False
    if "files" not in record:  # an earlier version recorded no hashes, and the settings only at the end
        return True
    hashes = record["files"] or {}
    return all(hashes.get(file.relative_to(out).as_posix()) == content_hash(file) for file in files)


def _remove_own(out: Path) -> None:
    """Remove the sample that an earlier run left in the folder.

    Raises:
        DatasetError: If there are files beside it or in it that this program did not write, or that were changed
            since; then nothing is removed.
    """
    record = _read_record(out)
    found = sorted(path for name in (*SPLITS.values(), "photos") for path in (out / name).rglob("*") if path.is_file())
    hashes = (record or {}).get("files", {})
    others = []
    for path in found:
        name = path.relative_to(out).as_posix()
        in_own_folder = path.parent.name in ("im", "gt") and len(path.relative_to(out).parts) == 3
        if record is None:
            own = False
        elif path.stat().st_size == 0 or path.name.endswith(".part"):  # left by a kill or a power cut
            own = True
        elif hashes is None:  # interrupted, while nobody else had a reason to write there
            own = in_own_folder or name == "photos/prompts.json"
        elif hashes:
            own = name in hashes and content_hash(path) == hashes[name]
        else:  # an earlier version recorded no hashes
            known = _OWN_NAMES.fullmatch(path.name) or (path.parent.parent.name == "photos" and path.stem in PHOTOS)
            own = (in_own_folder and known) or name == "photos/prompts.json"
        if not own:
            others.append(name)
    if others:
        raise DatasetError(
            f"{out}: holds files that this program did not write, or that were changed since: {join_some(others, 5)}; "
            "making the sample would remove them: choose another folder with --out, or remove them"
        )
    for path in found:
        path.unlink()


def make_sample(out: Path, settings: Settings, workers: int) -> bool:
    """Make the sample data set, unless it is complete.

    The sample that an earlier run left in the folder, with these or other settings, is replaced; other files are not.
    The number of `workers`, the processes, does not change the files.

    Returns:
        True if it was made, False if it was complete.

    Raises:
        FileNotFoundError: If a photograph of scikit-image is missing; nothing is written.
        DatasetError: If the folders of the sample hold other files, or changed ones; nothing is written.
        FolderInUseError: If another process makes a sample there.
    """
    with lock_folder(out, "the making of a sample"):
        return _make_sample(out, settings, workers)


def _make_sample(out: Path, settings: Settings, workers: int) -> bool:
    if is_complete(out, settings):
        return False
    for name in {file for file, _, _ in PHOTOS.values()}.union(MOTORCYCLE, BACKDROPS, TEXTURES):
        source_path(name)
    _remove_own(out)
    _write_record(out, settings, None)
    for split in SPLITS.values():
        for folder in ("im", "gt"):
            (out / split / folder).mkdir(parents=True, exist_ok=True)
    _write_photos(out / "photos")
    jobs, write = settings.jobs(), partial(_write_pair, out, settings)
    with tqdm(total=len(jobs), desc=f"sample data in {out}", unit="pair", disable=None) as bar:
        if workers <= 1:
            cv2.setNumThreads(1)
            for job in jobs:
                write(job)
                bar.update()
        else:
            context = multiprocessing.get_context("spawn")  # forked OpenCV and BLAS threads may hang
            with ProcessPoolExecutor(workers, context, prepare_worker, (0,)) as pool:
                for future in map_bounded(pool, write, jobs, 2 * workers):
                    future.result()
                    bar.update()
    files = _all_files(out, settings)
    _write_record(out, settings, {file.relative_to(out).as_posix(): content_hash(file) for file in files})
    return True


def overview(out: Path, settings: Settings, height: int = 220, columns: int = 4) -> np.ndarray:
    """Return a contact sheet, (h, w, 3) uint8 RGB, of all pairs of a sample, each image beside its ground truth."""
    pairs = [_files(out, job) for job in settings.jobs()]
    captions = [f"{im.parents[1].name} {im.stem}" for im, _ in pairs]
    return contact_sheet(((read_image(im), read_mask(gt)) for im, gt in pairs), height, columns, captions=captions)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the sample data set: drawn objects in real surroundings.")
    add = partial(parser.add_argument, type=non_negative_int)
    sample, cores = Path(__file__).resolve().parent / "sample", os.cpu_count() or 1
    add("--out", type=Path, default=sample, help="its folder (default: %(default)s)")
    add("--train", default=48, help="pairs in DIS-TR (default: %(default)s)")
    add("--valid", default=10, help="pairs in DIS-VD (default: %(default)s)")
    add("--test", default=10, help="pairs in DIS-TE1 (default: %(default)s)")
    add("--seed", default=0, help="another seed gives another set (default: %(default)s)")
    add("--size", help="pixels of the longer side (default: 1024 to 1600, varied)")
    add("--workers", default=cores, help="processes (default: %(default)s)")
    add("--contact-sheet", type=Path, metavar="FILE", help="also write an overview picture")
    args = parser.parse_args(argv)
    if args.size is not None and args.size < 64:
        parser.error("--size: at least 64 pixels")
    if args.contact_sheet and args.contact_sheet.suffix.lower() not in (".png", ".jpg"):
        parser.error(f"--contact-sheet {args.contact_sheet}: expected a name that ends in .png or .jpg")
    if args.contact_sheet and not args.train + args.valid + args.test:
        parser.error("--contact-sheet shows pairs; set --train, --valid or --test")
    settings = Settings(args.train, args.valid, args.test, args.seed, args.size)

    def command() -> int:
        made = make_sample(args.out, settings, args.workers)
        state = "made" if made else "already complete"
        print(f"{args.out}: {state}, {len(settings.jobs())} pairs and {len(PHOTOS)} photographs")
        if args.contact_sheet:
            refuse_to_replace([args.contact_sheet], _all_files(args.out, settings))
            write_image(args.contact_sheet, overview(args.out, settings))
            print(f"{args.contact_sheet}: overview")
        return DONE

    return run_command(command, f"interrupted; run the command again to make {args.out}")


if __name__ == "__main__":
    # numpy's own threads would compete with the pool's processes; read when a process imports numpy
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
