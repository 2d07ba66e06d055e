"""A mutation fuzzer: damaged files of every kind that the project reads end in a result or in a clear error.

    python tests/fuzz/fuzz_files.py --cases 50000

Each case is a small valid file with random changes, which is read in a child process. The child process has a limit of
time and memory; a case fails if it passes a limit, if the process dies, or if it raises anything but a
:class:`IS_Net.errors.UserError`. A case is named by its number and does not depend on the others.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from IS_Net.errors import UserError

SECONDS = 10.0
"""Limit of time for a case."""
MEMORY = 2 << 30
"""Limit of memory for a case in bytes, beyond what the process holds before it."""

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TOKENS = (
    *("-1", "0", "1e400", "-1e308", "NaN", "Infinity", "9" * 30, "0.5", "null", "true", '""', '"\\u0000"', "[]"),
    *("{}", "[[]]", '{"a": [1]}', '"../../x"', '"' + "x" * 5000 + '"', "[" * 2000, "1" * 5000),
)
"""Values that replace numbers, strings and words of text files."""


# --- valid files ---


def _pictures() -> dict[str, bytes]:
    """Return small pictures in the formats and modes that the project reads."""
    ramp = np.linspace(0, 255, 24 * 20 * 3).reshape(24, 20, 3).astype(np.uint8)
    rgb, gray = Image.fromarray(ramp), Image.fromarray(ramp[..., 0])
    exif = Image.Exif()
    exif[0x0112], exif[0x0128], exif[0x010E] = 6, 2, "a photograph"
    profile = {"icc_profile": bytes(range(128)) * 2}
    wide = Image.fromarray(ramp[..., 0].astype(np.uint16) * 257)
    forms: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("rgb.png", rgb, {}),
        ("gray.png", gray, {}),
        ("palette.png", rgb.quantize(7), {"transparency": 0}),
        ("bits.png", gray.convert("1"), {}),
        ("rgba.png", rgb.convert("RGBA"), {}),
        ("la.png", gray.convert("LA"), {}),
        ("wide.png", wide, {}),
        ("profile.png", rgb, profile),
        ("exif.jpg", rgb, {"exif": exif}),
        ("progressive.jpg", rgb, {"progressive": True}),
        ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("gray.jpg", gray, profile),
        ("rgb.tif", rgb, {"compression": "tiff_lzw"}),
        ("float.tif", Image.fromarray(ramp[..., 0].astype(np.float32) / 255), {}),
        ("wide.tif", wide, {}),
        ("rgb.bmp", rgb, {}),
        ("rgb.webp", rgb, {}),
        ("lossless.webp", rgb.convert("RGBA"), {"lossless": True}),
        ("two.gif", rgb.quantize(9), {"save_all": True, "append_images": [gray.convert("P")]}),
        ("rgb.avif", rgb, {}),
    ]
    files = {}
    for name, image, options in forms:
        buffer = io.BytesIO()
        try:
            image.save(buffer, Path(name).suffix.replace(".jpg", ".jpeg").replace(".tif", ".tiff")[1:], **options)
        except (KeyError, OSError):  # a build of Pillow without this format
            continue
        files[name] = buffer.getvalue()
    return files


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {"conv_in.weight": torch.randn(4, 3, 3, 3, generator=generator), "conv_in.bias": torch.zeros(4)}
    return weights | {"bn.num_batches_tracked": torch.tensor(3), "half": torch.ones(5, dtype=torch.float16)}


def _checkpoints() -> dict[str, bytes]:
    """Return small checkpoints in the forms that the project reads."""
    from safetensors.torch import save

    weights = _tensors()
    metadata = {"format": "pt", "in_ch": "4", "input_size": "[128, 128]", "metrics": '{"mae": 0.1}'}
    state = {"phase": "segmentation", "model": weights, "progress": {"iteration": 3}, "optimizer": {"state": {}}}
    files = {"plain.safetensors": save(weights), "metadata.safetensors": save(weights, metadata)}
    for name, content, options in (
        ("weights.pth", weights, {}),
        ("nested.pth", {"state_dict": {f"module.{name}": value for name, value in weights.items()}}, {}),
        ("legacy.pth", weights, {"_use_new_zipfile_serialization": False}),
        ("last.pt", state, {}),
    ):
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        files[name] = buffer.getvalue()
    return files


def _coco() -> dict[str, bytes]:
    polygon = [2.0, 2.0, 12.0, 2.0, 12.0, 9.0, 2.0, 9.0]
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0, "area": 70.0, "bbox": [2, 2, 10, 7]}
    annotations = [
        {"id": 1, "segmentation": [polygon], **common},
        {"id": 2, "segmentation": {"size": [24, 20], "counts": [50, 20, 410]}, **common},
        {"id": 3, "segmentation": {"size": [24, 20], "counts": "d1d0c<"}, **common},
        {"id": 4, "segmentation": [], **common},
    ]
    images = [{"id": 1, "file_name": "rgb.png", "width": 20, "height": 24}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    return {"coco.json": json.dumps(content).encode()}


def _labelme() -> dict[str, bytes]:
    shapes = [
        {"label": "a", "points": [[2, 2], [12, 9]], "shape_type": "rectangle", "flags": {}, "group_id": None},
        {"label": "b", "points": [[2, 2], [12, 2], [7, 9]], "shape_type": "polygon", "flags": {}, "group_id": 1},
    ]
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "rgb.png", "imageData": None}
    content |= {"imageHeight": 24, "imageWidth": 20}
    return {"labelme.json": json.dumps(content).encode()}


def _prompts() -> dict[str, bytes]:
    records = {"rgb": [{"object": "a", "box": [2, 2, 12, 9]}, {"object": "b", "points": [[3, 4]], "labels": [1]}]}
    return {
        "prompts.json": json.dumps(records).encode(),
        "prompts.csv": b"name,object,x0,y0,x1,y1\nrgb,a,2,2,12,9\nrgb,b,1,1,8,20\n",
    }


# --- how they are read ---


def _read_photograph(path: Path) -> None:
    from IS_Net.images import decode_photograph, image_size, read_image

    image_size(path)
    read_image(path)
    decode_photograph(path.read_bytes(), path)


def _read_mask(path: Path) -> None:
    from IS_Net.images import read_mask

    read_mask(path)


def _read_checkpoint(path: Path) -> None:
    from IS_Net.checkpoint import load_state, read_weights

    try:
        read_weights(path)
    finally:
        if path.suffix == ".pt":
            load_state(path)


def _read_coco(path: Path) -> None:
    from dis_sam.formats import coco

    (path.parent / "rgb.png").write_bytes(_seeds("photograph")["rgb.png"])
    for _image, objects in coco.read(path, path.parent).items():
        for annotation in objects:
            annotation.mask()


def _read_labelme(path: Path) -> None:
    from dis_sam.formats import labelme

    (path.parent / "rgb.png").write_bytes(_seeds("photograph")["rgb.png"])
    labelme.read(path)


def _read_prompts(path: Path) -> None:
    from sam.prompts import check_prompts, read_prompts

    image = path.parent / "rgb.png"
    image.write_bytes(_seeds("photograph")["rgb.png"])
    check_prompts(read_prompts(path), {"rgb": image})


class Target(NamedTuple):
    """A kind of file."""

    make: Callable[[], dict[str, bytes]]
    """Returns valid files by name."""
    read: Callable[[Path], None]
    """Reads a file as the project does."""
    share: int
    """How often it is chosen, relative to the others."""


TARGETS = {
    "photograph": Target(_pictures, _read_photograph, 6),
    "mask": Target(_pictures, _read_mask, 5),
    "checkpoint": Target(_checkpoints, _read_checkpoint, 5),
    "coco": Target(_coco, _read_coco, 2),
    "labelme": Target(_labelme, _read_labelme, 1),
    "prompts": Target(_prompts, _read_prompts, 1),
}


@cache
def _seeds(target: str) -> dict[str, bytes]:
    return TARGETS[target].make()


# --- changes ---


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Return a file with one to four random changes; ``other`` is a file of the same kind that parts are taken from."""
    if data[:1] in b"{[" or b"," in data[:20]:
        data = _mutate_text(data, rng)
        if rng.random() < 0.7:
            return data
    if data[8:10] == b'{"' and rng.random() < 0.5:  # the header of safetensors
        length = int.from_bytes(data[:8], "little")
        header = _mutate_text(data[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    for _ in range(rng.randint(1, 4)):
        data = _mutate_bytes(data, other, rng)
    if data[:4] == b"\x89PNG" and rng.random() < 0.7:
        data = _repair_checksums(data)
    return data


def _mutate_text(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    for _ in range(rng.randint(1, 3)):
        tokens = list(re.finditer(r'-?\d+(?:\.\d+)?|"[^"]*"|[a-z]+|[\[\]{},:]', text))
        if not tokens:
            break
        token = rng.choice(tokens)
        text = text[: token.start()] + rng.choice((*TOKENS, "", rng.choice(tokens)[0])) + text[token.end() :]
    return text.encode("utf-8", "replace")


def _mutate_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    size = len(data)
    if size < 2:
        return data + rng.randbytes(8)
    # headers decide more than pixels do
    place = rng.randrange(min(size, 200)) if rng.random() < 0.6 else rng.randrange(size)
    length = rng.choice((1, 2, 4, 8, 16, 64, 256))
    kind = rng.randrange(8)
    changed = bytearray(data)
    if kind == 0:
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        changed[place : place + length] = rng.randbytes(min(length, size - place))
    elif kind == 2:
        form = rng.choice(("<I", ">I", "<H", ">H", "B"))
        number = rng.choice(NUMBERS) % (1 << (8 * struct.calcsize(form)))
        changed[place : place + struct.calcsize(form)] = struct.pack(form, number)
    elif kind == 3:
        del changed[place:]
    elif kind == 4:
        del changed[place : place + length]
    elif kind == 5:
        changed[place:place] = rng.choice((rng.randbytes(length), bytes(length), b"\xff" * length))
    elif kind == 6:
        start = rng.randrange(size)
        changed[place:place] = data[start : start + length] * rng.choice((1, 1, 50))
    else:
        start = rng.randrange(max(len(other), 1))
        changed[place:] = other[start:]
    return bytes(changed)


def _repair_checksums(data: bytes) -> bytes:
    """Write right checksums into the chunks of a PNG file, so that damage reaches what is behind their check."""
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        content = data[place + 4 : place + 8 + length]
        if place + 12 + length > len(data):
            break
        parts += [data[place : place + 4], content, zlib.crc32(content).to_bytes(4, "big")]
        place += 12 + length
    return b"".join(parts) + data[place:]


def make_case(number: int, seed: int) -> tuple[str, str, bytes]:
    """Return target, file name and content of a case."""
    rng = random.Random(f"{seed}/{number}")
    target = rng.choices(list(TARGETS), [entry.share for entry in TARGETS.values()])[0]
    files = _seeds(target)
    name = rng.choice(sorted(files))
    return target, name, mutate(files[name], files[rng.choice(sorted(files))], rng)


# --- runs ---


class Outcome(NamedTuple):
    """How a case ended."""

    number: int
    target: str
    name: str
    result: str
    """``result``, ``clear error``, or what is wrong."""
    seconds: float
    memory: int
    """Peak of the process in bytes, over all of its cases so far."""
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether the case ended in neither a result nor a clear error."""
        return self.result not in ("result", "clear error")


def _serve(connection: Connection, seed: int) -> None:
    """Run the cases whose numbers arrive, and answer with their outcomes."""
    torch.set_num_threads(1)
    for target in TARGETS:  # what is imported and made before the limit does not count
        for name, content in _seeds(target).items():
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / name).write_bytes(content)
                try:
                    TARGETS[target].read(Path(folder) / name)
                except UserError:
                    continue
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection.send("ready")
    while (number := connection.recv()) is not None:
        target, name, content = make_case(number, seed)
        result, detail, started = "result", "", time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            try:
                TARGETS[target].read(path)
            except UserError as error:
                result, detail = "clear error", str(error)
            except BaseException as error:
                result, detail = f"{type(error).__name__}", traceback.format_exc()
        seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        connection.send(Outcome(number, target, name, result, seconds, peak, detail))


@dataclass
class Report:
    """The outcomes of a run."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Cases by target and result."""
    failures: list[Outcome] = field(default_factory=list)
    slowest: Outcome | None = None
    memory: int = 0
    """Peak of all processes in bytes."""

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.counts[outcome.target, "failure" if outcome.failed else outcome.result] += 1
        self.memory = max(self.memory, outcome.memory)
        if outcome.failed:
            self.failures.append(outcome)
        if self.slowest is None or outcome.seconds > self.slowest.seconds:
            self.slowest = outcome


def fuzz(numbers: range, seed: int = 0, show_progress: bool = False) -> Report:
    """Run cases in a child process, which is started again if it dies or hangs."""
    report, context = Report(), multiprocessing.get_context("spawn")
    process, connection = None, None
    for number in tqdm(numbers, unit="case", disable=not show_progress):
        if process is None:
            connection, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, seed), daemon=True)
            process.start()
            theirs.close()
            assert connection.recv() == "ready"
        outcome = _ask(connection, number, seed)
        report.add(outcome)
        if outcome.result in ("hangs", "dies"):
            process.kill()
            process.join()
            process = None
    if process is not None:
        connection.send(None)
        process.join()
    return report


def _ask(connection: Connection, number: int, seed: int) -> Outcome:
    connection.send(number)
    started, result = time.perf_counter(), "hangs"
    try:
        if connection.poll(SECONDS):
            return connection.recv()
    except (EOFError, ConnectionError):
        result = "dies"
    target, name, _ = make_case(number, seed)
    return Outcome(number, target, name, result, time.perf_counter() - started, 0)


def main() -> int:
    """Run the fuzzer and return its exit code: 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="number of cases (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to write the files of the failures to")
    args = parser.parse_args()
    report = fuzz(range(args.first, args.first + args.cases), args.seed, show_progress=True)
    for (target, result), count in sorted(report.counts.items()):
        print(f"{target:<12} {result:<12} {count}")
    slowest = report.slowest
    if slowest is not None:
        print(f"slowest: case {slowest.number}, {slowest.target} {slowest.name}, {slowest.seconds:.2f} s")
    print(f"peak memory of the process: {report.memory / 2**30:.2f} GiB")
    for outcome in report.failures:
        print(f"case {outcome.number}: {outcome.target} {outcome.name}: {outcome.result}\n{outcome.detail}")
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            (args.keep / f"{outcome.number}_{outcome.name}").write_bytes(make_case(outcome.number, args.seed)[2])
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
