"""Take the photographs out of Qt's binary resource files (.rcc): ``python data/unpack_photos.py FILE.rcc ...``.

Educational programs ship photographs of single things so; Debian's package gcompris-qt-data holds some 180 (animals,
tools, buildings), which ``IS_Net.self_label`` turns into training pairs.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too

from IS_Net.images import IMAGE_EXTENSIONS, atomic_file

LEAST_SIDE = 160
"""Of a photograph's shorter side, in pixels."""
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


def unpack_photographs(resources: Sequence[Path], out: Path) -> int:
    """Write the photographs among the files of some resources, as they are, to ``out/RESOURCE_NAME``.

    Left out are small pictures and those with an alpha channel. What would share a name, whatever the ending, gets a
    ``_``.

    Returns:
        How many there are.
    """
    names: set[str] = set()
    for resource in tqdm(resources, desc="resources", unit="file"):
        try:
            files = [
                (path, code) for path, code in unpack(resource.read_bytes()) if path.suffix.lower() in IMAGE_EXTENSIONS
            ]
        except OSError as error:
            raise ResourceError(f"{resource}: {error.strerror}") from error
        except ResourceError as error:
            raise ResourceError(f"{resource}: {error}") from error
        for path, code in files:
            if not _is_photograph(code):
                continue
            name = f"{resource.stem}_{path.stem}"
            while name in names:
                name += "_"
            names.add(name)
            with atomic_file(out / f"{name}{path.suffix}") as file:
                file.write(code)
    return len(names)


def _is_photograph(code: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(code)) as picture:
            return min(picture.size) >= LEAST_SIDE and not picture.has_transparency_data
    except OSError:  # not an image, or a damaged one
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("resources", type=Path, nargs="+", help="Qt resource files")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    given = parser.parse_args(arguments)
    try:
        written = unpack_photographs(given.resources, given.out)
    except ResourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.out}: {written} photographs of {len(given.resources)} resources")
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
