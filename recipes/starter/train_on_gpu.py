"""Train on a GPU in a few minutes: pack what the training reads, train until the time is up, join the weights.

    python -m recipes.starter.train_on_gpu pack --pairs data/rendered data/cutouts --photos data/photographs
        --valid data/sample/hard/many_parts --out build/sources
    python -m recipes.starter.train_on_gpu train build/sources --out build/weights --minutes 9
    python -m recipes.starter.train_on_gpu join build/weights --out saved_models/gpu.safetensors

`pack` runs on the machine that has the data: it encodes pairs, backgrounds and validation pairs again, at the size that
they are used at, until the limit is reached. `train` runs on the machine with the GPU: it is the ordinary training with
the settings of the recipe, some of which --settings replaces, in a process of its own. Every two minutes it writes
the EMA of the weights to --out, in 8 bits and in parts that are small enough to be copied one by one. When the time is
up, the training saves its state, and the same command resumes it. `join` puts the parts together.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import math
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from IS_Net.checkpoint import load_isnet, save_weights
from IS_Net.command_line import DONE, FAILED, INTERRUPTED, NOT_STARTED, TERMINATED, positive_int, run_command
from IS_Net.errors import DatasetError, UserError
from IS_Net.files import prepare_output
from IS_Net.images import atomic_file, encode_image, list_images, read_image, read_mask
from recipes.starter.box_prompts import FOLDER as BOX
from recipes.starter.box_prompts import write_box_prompts
from recipes.starter.calibrate import MASKS
from recipes.starter.make_weights import PROMPTS, TRAINING, start_child

logger = logging.getLogger(__name__)

PAIRS, PHOTOS, VALID = "pairs", "photos", "valid"
"""Subfolders of the packed sources."""
QUALITY = 92
"""Of JPEG files."""
PART_BYTES = 15 * 2**20
"""Size of a part of the weights; the last one may be smaller."""
INDEX = "parts.json"
"""Names the parts of the weights in order, with the SHA-256 of the whole file."""
SAVE_MINUTES = 2.0
"""Minutes between two writes of the weights."""


class PartsError(UserError, ValueError):
    """Parts of weights that are missing or do not belong together."""


class PackError(UserError, RuntimeError):
    """Sources that cannot be packed."""


# --- pack -----------------------------------------------------------------------------------------------------------


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return an image or a mask whose longer side is at most ``side``: area-averaged, never enlarged."""
    scale = side / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


Files = dict[str, bytes]
"""What one source becomes: paths inside the packed folder, and their contents."""


def _packed_pairs(folder: Path, kind: str, side: int, masks: bool = False) -> Iterator[Files]:
    """Yield the files of each pair of a folder: image, ground truth and, if it has one, coarse mask."""
    for part in ("im", "gt"):
        if not (folder / part).is_dir():
            raise DatasetError(f"{folder}: has no folder {part}; name a folder that holds im and gt")
    images, gts = list_images(folder / "im"), list_images(folder / "gt")
    coarse = list_images(folder / MASKS) if masks and (folder / MASKS).is_dir() else {}
    for name, path in gts.items():
        if name not in images:
            raise DatasetError(f"{path}: there is no image of that name in {folder / 'im'}; add it")
        root = f"{kind}/{folder.name}"
        files = {
            f"{root}/im/{name}.jpg": encode_image(shrink(read_image(images[name]), side), ".jpg", QUALITY),
            f"{root}/gt/{name}.png": encode_image(shrink(read_mask(path), side), ".png"),
        }
        if name in coarse:
            files[f"{root}/{MASKS}/{name}.png"] = encode_image(shrink(read_mask(coarse[name]), side), ".png")
        yield files


def _packed_photos(folder: Path, side: int) -> Iterator[Files]:
    for name, path in list_images(folder).items():
        yield {f"{PHOTOS}/im/{name}.jpg": encode_image(shrink(read_image(path), side), ".jpg", QUALITY)}


def pack(
    pairs: Sequence[Path], photos: Path, valid: Sequence[Path], out: Path, side: int, limit: int, fraction: float = 0.25
) -> dict[str, int]:
    """Encode sources again until their size reaches a limit.

    Validation pairs come first, then the others in turn, one of each folder, so that none is left out.

    Args:
        pairs: Folders that hold ``im`` and ``gt``.
        photos: A folder of photographs, for backgrounds.
        valid: Folders that hold ``im``, ``gt`` and maybe ``sim``.
        out: The folder to write to; must not exist.
        side: Longest side of a picture in pixels.
        limit: Bytes of all files together, at most.
        fraction: Share of the limit that photographs may take.

    Returns:
        The number of sources of each folder that were packed, by ``KIND/NAME``.

    Raises:
        PackError: If ``out`` exists, two folders have one name, or the validation pairs alone reach the limit.
        DatasetError: If a folder is missing or its files do not match.
    """
    names = [f"{PAIRS}/{p.name}" for p in pairs] + [f"{VALID}/{p.name}" for p in valid]
    if len(set(names)) < len(names):
        raise PackError(f"two folders of one kind share a name ({', '.join(names)}); rename one of them")
    if out.exists():
        raise PackError(f"{out}: already exists; delete it or choose another --out")
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    counts = dict.fromkeys([f"{PAIRS}/{p.name}" for p in pairs] + [PHOTOS] + [f"{VALID}/{p.name}" for p in valid], 0)
    room, room_photos = limit, round(fraction * limit)

    def write(files: Files, source: str) -> bool:
        nonlocal room
        size = sum(map(len, files.values()))
        if size > room:
            return False
        room -= size
        counts[source] += 1
        for path, data in files.items():
            with atomic_file(partial / path) as file:
                file.write(data)
        return True

    try:
        for folder in valid:
            if not all(write(files, f"{VALID}/{folder.name}") for files in _packed_pairs(folder, VALID, side, True)):
                raise PackError(f"{folder}: the validation pairs alone exceed the limit; name fewer, or raise --limit")
        turns = {f"{PAIRS}/{folder.name}": _packed_pairs(folder, PAIRS, side) for folder in pairs}
        turns[PHOTOS] = _packed_photos(photos, side)
        while turns:
            for source in list(turns):
                before, files = room, next(turns[source], None)
                if files is None or (source == PHOTOS and room_photos <= 0):
                    del turns[source]
                elif not write(files, source):
                    turns = {}
                    break
                elif source == PHOTOS:
                    room_photos -= before - room
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


# --- train ----------------------------------------------------------------------------------------------------------


def training_arguments(sources: Path, run: Path, weights: Path, extra: Sequence[str]) -> list[str]:
    """Return the arguments of the training script.

    Args:
        sources: What :func:`pack` wrote.
        run: The folder of the run; if it holds a state, the training resumes.
        weights: The initial weights.
        extra: ``key=value`` arguments, which take the place of those of the recipe.
    """
    pairs = [str(folder) for folder in sorted((sources / PAIRS).iterdir())]
    valid = [f"{folder}:{BOX}" for folder in sorted((sources / VALID).iterdir())]
    valid += [f"{f}:{MASKS}" for f in sorted((sources / VALID).iterdir()) if (f / MASKS).is_dir()]
    recipe = [
        *(f"train_datasets={','.join(pairs)}", f"valid_datasets={','.join(valid)}", f"backgrounds={sources / PHOTOS}"),
        *(*TRAINING, *PROMPTS, "box_gain=1", "batch_size_train=16", "lr=1e-4", "max_ite=4000"),
        *("model_save_fre=1000000", f"save_minutes={SAVE_MINUTES:g}", f"model_path={run}"),
        f"restore_model={'last.pt' if (run / 'last.pt').is_file() else weights}",
    ]
    given = {argument.partition("=")[0] for argument in extra}
    return [argument for argument in recipe if argument.partition("=")[0] not in given] + list(extra)


def publish(state: Path, out: Path) -> None:
    """Write the weights of a training state to a folder, in 8 bits and in parts.

    Args:
        state: ``last.pt``; if it has an EMA, that is taken.
        out: The folder. Its parts are replaced only when the new ones are complete.
    """
    model, metadata = load_isnet(state)
    work = out / ".work"
    whole = work / "weights.safetensors"
    shutil.rmtree(work, ignore_errors=True)
    try:
        save_weights(whole, model, metadata, int8=True)
        split_file(whole, work)
        whole.unlink()
        for path in sorted(work.iterdir(), key=lambda path: path.name == INDEX):  # the index last
            path.replace(out / path.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(state: Path, out: Path) -> bool:
    """Publish, and return whether that succeeded; a full disk is no reason to end the training."""
    try:
        publish(state, out)
    except Exception as error:  # of the disk, or of the library that writes the weights
        logger.warning(
            "%s: the weights of %s could not be written: %s; if the disk is full, free space", out, state, error
        )
        return False
    return True


def train(
    arguments: Sequence[str], run: Path, out: Path, minutes: float, poll: float = 1.0, python: str = sys.executable
) -> int:
    """Run the training script until it ends or the time is up, and publish the weights whenever it saves.

    Args:
        arguments: From :func:`training_arguments`.
        run: The folder of the run.
        out: Where to write the parts of the weights.
        minutes: After which the training is asked to save and end.
        poll: Seconds between two looks at the state.
        python: The interpreter.

    Returns:
        The exit code: 0 if the training ended by itself or has saved its state because the time is up; 1 if its last
        weights could not be published; else that of the training.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the training has saved its state and ended.
    """
    deadline, state, published = time.monotonic() + 60 * minutes, run / "last.pt", _version(run / "last.pt")
    succeeded = True
    with start_child([python, "-m", "IS_Net.train_valid_inference_main", *arguments]) as process:
        # it saves and ends; a timer, because publishing takes seconds
        timer = threading.Timer(60 * minutes, process.terminate)
        timer.daemon = True
        try:
            timer.start()
            while process.poll() is None:
                if _version(state) != published:
                    published = _version(state)
                    succeeded = _publish(state, out)
                time.sleep(poll)
        finally:
            timer.cancel()
    stopped = time.monotonic() >= deadline
    if _version(state) != published or not succeeded:
        succeeded = _publish(state, out)
    code = DONE if stopped and process.returncode == TERMINATED and state.is_file() else process.returncode
    return FAILED if code == DONE and not succeeded else code


def _version(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is replaced; None if there is none."""
    return (path.stat().st_mtime_ns, path.stat().st_ino) if path.is_file() else None


# --- parts ----------------------------------------------------------------------------------------------------------


def split_file(path: Path, out: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write a file as parts and an index of them.

    Args:
        path: The file.
        out: The folder of the parts, ``NAME.000``, ``NAME.001`` ..., and of ``parts.json``.
        part_bytes: Size of a part.

    Returns:
        The parts, in order.
    """
    data = path.read_bytes()
    parts = []
    for number in range(max(1, math.ceil(len(data) / part_bytes))):
        part = out / f"{path.name}.{number:03d}"
        with atomic_file(part) as file:
            file.write(data[number * part_bytes : (number + 1) * part_bytes])
        parts.append(part)
    index = {"parts": [part.name for part in parts], "sha256": hashlib.sha256(data).hexdigest()}
    with atomic_file(out / INDEX, "w") as file:
        json.dump(index, file, indent=1)
    return parts


def join_parts(folder: Path, out: Path) -> int:
    """Put the parts of a file together.

    Args:
        folder: Holds the parts and their index.
        out: The file to write.

    Returns:
        The number of parts.

    Raises:
        PartsError: If the index or a part is missing, or together they are not the file that was split.
    """
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        data = b"".join((folder / name).read_bytes() for name in index["parts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PartsError(f"{folder}: cannot be read as parts of a file ({error}); copy all of the folder") from error
    if hashlib.sha256(data).hexdigest() != index.get("sha256"):
        raise PartsError(f"{folder}: the parts are not those of one file; copy the whole folder again")
    with atomic_file(out) as file:
        file.write(data)
    return len(index["parts"])


# --- the command ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.train_on_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    packing = verbs.add_parser("pack", help="encode sources again until the limit is reached")
    packing.add_argument(
        "--pairs", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders with im and gt"
    )
    packing.add_argument("--photos", type=Path, required=True, metavar="FOLDER", help="photographs for backgrounds")
    packing.add_argument(
        "--valid", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders with im, gt and maybe sim"
    )
    packing.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write, must not exist")
    packing.add_argument(
        "--side", type=positive_int, default=1024, help="longest side of a picture in pixels (default: %(default)s)"
    )
    packing.add_argument(
        "--limit", type=positive_int, default=60, metavar="MIB", help="size of all files (default: %(default)s MiB)"
    )

    training = verbs.add_parser("train", help="train until the time is up")
    training.add_argument("sources", type=Path, metavar="SOURCES", help="what pack wrote")
    training.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write the weights' parts")
    training.add_argument(
        "--settings", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the training, see hypar.py"
    )
    training.add_argument("--minutes", type=float, default=9.0, help="when to save and end (default: %(default)s)")
    training.add_argument(
        "--weights", type=Path, default=Path("saved_models/dis_sam_starter.safetensors"), metavar="FILE",
        help="initial weights (default: %(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--run", type=Path, default=Path("saved_models/gpu"), metavar="FOLDER",
        help="folder of the training's state, from which the same command resumes (default: %(default)s)",
    )  # fmt: skip

    joining = verbs.add_parser("join", help="put the parts of the weights together")
    joining.add_argument("parts", type=Path, metavar="FOLDER", help="what train wrote to --out")
    joining.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    joining.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    args = parser.parse_args(argv)
    if args.verb == "train":
        if not 0 < args.minutes < float("inf"):
            parser.error(f"--minutes: expected a number above 0, found {args.minutes}")
        for setting in itertools.chain(args.settings):
            if "=" not in setting:
                parser.error(f"expected KEY=VALUE, found {setting!r}")

    def command() -> int:
        if args.verb == "pack":
            limit = args.limit * 2**20
            for name, count in pack(args.pairs, args.photos, args.valid, args.out, args.side, limit).items():
                print(f"{args.out / name}: {count}")
        elif args.verb == "join":
            prepare_output(args.out, [args.parts], args.overwrite)
            print(f"{args.out}: {join_parts(args.parts, args.out)} parts")
        else:
            for kind in (PAIRS, PHOTOS, VALID):
                if not (args.sources / kind).is_dir():
                    raise PackError(f"{args.sources}: has no folder {kind}; name what the verb pack wrote")
            for folder in sorted((args.sources / VALID).iterdir()):
                write_box_prompts(folder)
            args.out.mkdir(parents=True, exist_ok=True)
            sources, run, weights = (path.resolve() for path in (args.sources, args.run, args.weights))
            code = train(training_arguments(sources, run, weights, args.settings), run, args.out, args.minutes)
            return code if code in (DONE, NOT_STARTED, INTERRUPTED, TERMINATED) else FAILED
        return DONE

    return run_command(command, "interrupted; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
