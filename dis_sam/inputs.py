"""What is requested: the photographs of files and folders, and the objects of them, by prompts or by coarse masks."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dis_sam.records import read_record
from IS_Net.errors import DatasetError, MissingFileError, join_some
from IS_Net.images import is_image, list_images, name_of
from IS_Net.manifest import read_manifest, recorded_box

logger = logging.getLogger(__name__)

Source = Path | bytes
"""A file, or the content of one that was read from standard input."""


@dataclass(frozen=True)
class Request:
    """One object of a photograph. With neither box nor points nor mask, the most salient object is meant.

    Attributes:
        name: The photograph's name; if it has several requests, with ``_OBJECT`` behind it.
        box: xyxy in pixels of the upright photograph, or None.
        points: (x, y) of each point, or None.
        labels: 1 (object) or 0 (background) for each point, or None.
        mask: The coarse mask; it may come with a box, but not with points.
    """

    name: str
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] | None = None
    labels: tuple[int, ...] | None = None
    mask: Source | None = None

    @property
    def uses_stage_1(self) -> bool:
        """Whether stage 1 makes the coarse mask."""
        return self.mask is None and (self.box is not None or self.points is not None)


@dataclass(frozen=True)
class Task:
    """A photograph, and the objects that are requested of it.

    Attributes:
        name: The file's stem; of a file in a subfolder of the input, the path relative to the input, without extension.
        image: The file.
        requests: At least one.
        label: How messages refer to a photograph, or its mask, that is no file.
    """

    name: str
    image: Source
    requests: tuple[Request, ...]
    label: str = "standard input"

    @property
    def where(self) -> str:
        """How messages refer to the photograph."""
        return self.label if isinstance(self.image, bytes) else str(self.image)


def find_photographs(
    inputs: Sequence[Path], recursive: bool = False, out: Path | None = None
) -> list[tuple[str, Path]]:
    """Find the photographs of files and folders.

    Files that this project made of a photograph in the same folder are left out, and so is everything in ``out`` if
    that is inside a folder of photographs: what a run wrote is no input of the next one.

    Args:
        inputs: Files, which may have any extension, and folders.
        recursive: Whether to search the subfolders of folders too.
        out: The folder of the outputs, if there is one.

    Returns:
        Name and path of each photograph. A file that is named twice is one photograph; two links to a file are two, as
        the samples of an enriched split are. The name is the file's stem; in a folder, the path relative to it without
        extension.

    Raises:
        MissingFileError: If files or folders do not exist; the message names all of them.
        DatasetError: If a folder contains no photograph, or two that differ only in the extension.
    """
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise MissingFileError(f"{', '.join(missing)}: does not exist; expected photographs, or folders of them")
    found: dict[Path, tuple[str, Path]] = {}
    for path in inputs:
        named = {name_of(Path(path.name)): path} if path.is_file() else _list_folder(path, recursive, out)
        for name, file in named.items():
            found.setdefault(file.parent.resolve() / file.name, (name, file))
    return list(found.values())


def _list_folder(folder: Path, recursive: bool, out: Path | None) -> dict[str, Path]:
    outputs = None if out is None or folder.resolve() not in out.resolve().parents else out.resolve()

    def skip(path: Path) -> bool:
        return (outputs is not None and path.resolve().is_relative_to(outputs)) or _is_output_of_neighbor(path)

    if not recursive and any(path.is_dir() for path in folder.iterdir()) and not any(map(is_image, folder.iterdir())):
        raise DatasetError(f"{folder}: found no image, only folders; use -r (--recursive) to include them")
    return list_images(folder, recursive, skip=skip)


def _is_output_of_neighbor(path: Path) -> bool:
    record = read_record(path) if path.suffix.lower() == ".png" else None
    source = None if record is None else record["source"]
    return isinstance(source, str) and source != path.name and (path.parent / source).is_file()


def plan_cut(
    photographs: Sequence[tuple[str, Source]], objects: Sequence[Request] = (), file: Path | None = None
) -> list[Task]:
    """Say which objects of which photographs are requested.

    Args:
        photographs: Name and file of each; see :func:`find_photographs`.
        objects: The objects of every photograph; their names are not used. If there are several, they are named 1, 2
            and so on.
        file: Instead, a prompt file (see :func:`sam.prompts.read_prompts`); photographs without a prompt are skipped.

    Returns:
        A task for each photograph. With neither objects nor file, the most salient object is requested.

    Raises:
        PromptError: If prompts of the file are faulty; the message names all of them.
        DatasetError: If the file is used, and two photographs have the same name.
    """
    if file is None:
        return [Task(name, image, tuple(_name_objects(name, objects))) for name, image in photographs]
    images = by_name(photographs, file)
    from sam.prompts import check_prompts, read_prompts  # imports PyTorch; see ModelChoice.load

    requests: dict[str, list[Request]] = defaultdict(list)
    for name, prompt in check_prompts(read_prompts(file), images).items():
        requests[prompt.name].append(Request(name, prompt.box, prompt.points, prompt.labels))
    if len(requests) < len(images):
        logger.info("%d of %d photographs have no prompt and are skipped", len(images) - len(requests), len(images))
    return [Task(name, image, tuple(requests[name])) for name, image in images.items() if name in requests]


def by_name(photographs: Sequence[tuple[str, Source]], where: Path) -> dict[str, Source]:
    """Return photographs by name; raise a DatasetError if two have the same, because a file or folder names them."""
    images: dict[str, Source] = {}
    for name, image in photographs:
        if images.setdefault(name, image) != image:
            raise DatasetError(
                f"{images[name]} and {image}: have the same name, so {where} does not say which is meant"
            )
    return images


def _name_objects(name: str, objects: Sequence[Request]) -> Iterator[Request]:
    if len(objects) < 2:
        yield replace(objects[0], name=name) if objects else Request(name)
    else:
        yield from (replace(found, name=f"{name}_{number}") for number, found in enumerate(objects, 1))


def plan_refine(
    photographs: Sequence[tuple[str, Source]], masks: Source, recursive: bool = False, kind: str = "mask"
) -> tuple[list[Task], list[str]]:
    """Pair photographs with coarse masks.

    A mask ``NAME`` or ``NAME_OBJECT`` belongs to the photograph ``NAME``; of several such names, to the longest. Where
    a folder of masks has a manifest of stage 1, the boxes in it are used too.

    Args:
        photographs: Name and file of each; see :func:`find_photographs`.
        masks: A folder, or one mask for one photograph.
        recursive: Whether the subfolders of the folder of masks are searched too.
        kind: How messages refer to a mask.

    Returns:
        A task for each photograph that has masks, and a message for each of the others.

    Raises:
        MissingFileError: If the masks do not exist.
        DatasetError: If there is one mask for several photographs, the folder contains no mask or also a photograph, no
            photograph has a mask, or two photographs have the same name.
    """
    if isinstance(masks, bytes) or masks.is_file():
        if len(photographs) != 1:
            raise DatasetError(
                f"{'standard input' if isinstance(masks, bytes) else masks}: found one {kind} for "
                f"{len(photographs)} photographs; expected a folder of them with the names of the photographs"
            )
        [(name, image)] = photographs
        return [Task(name, image, (Request(name, mask=masks),))], []
    if not masks.exists():
        raise MissingFileError(f"{masks}: does not exist; expected a {kind}, or a folder of them")
    files = list_images(masks, recursive)
    mixed = {path.resolve() for path in files.values()} & {p.resolve() for _, p in photographs if isinstance(p, Path)}
    if mixed:
        raise DatasetError(f"{masks}: contains the photograph {min(mixed).name} too; keep them in folders of their own")
    requests: dict[str, list[Request]] = defaultdict(list)
    names, unused = by_name(photographs, masks), []
    manifests = {folder: read_manifest(folder) for folder in {path.parent for path in files.values()}}
    for name, path in files.items():
        entry = manifests[path.parent].get(path.stem, {})
        candidates = [str(Path(name).with_name(entry["image"]).as_posix())] if entry.get("image") else []
        parts = name.split("_")
        candidates += ["_".join(parts[:end]) for end in range(len(parts), 0, -1)]
        image = next((candidate for candidate in candidates if candidate in names), None)
        if image is None:
            unused.append(path.name)
            continue
        requests[image].append(Request(name, recorded_box(path, entry), mask=path))
    if unused:
        logger.warning("%s: found no photograph for %s", masks, join_some(unused))
    missing = [(name, image) for name, image in photographs if name not in requests]
    without = [f"{image}: found no {kind} {name}.png or {name}_OBJECT.png in {masks}" for name, image in missing]
    if not requests:
        raise DatasetError(f"{without[0]}; expected files with the names of the photographs")
    return [Task(name, image, tuple(requests[name])) for name, image in photographs if name in requests], without


def inputs_of(tasks: Iterable[Task]) -> Iterator[Path]:
    """Yield the files that are read for tasks: photographs and masks."""
    for task in tasks:
        yield from (x for x in (task.image, *(request.mask for request in task.requests)) if isinstance(x, Path))
