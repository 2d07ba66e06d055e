"""Examine data sets: read every file once, and name those that cannot be used or that would distort a result.

:func:`examine` decodes everything (``dis-sam check``, and the setting ``check``). :func:`take_first_look` is what every
training does at its start: it finds the files that would end it later.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from IS_Net.bounded import map_bounded
from IS_Net.errors import BoxError, DatasetError, ImageError
from IS_Net.images import binarize, is_image, read_image, read_mask, size_mismatch, size_text
from IS_Net.machine import available_cores
from IS_Net.manifest import is_unchanged, read_manifest
from IS_Net.preprocess import box_from_mask
from IS_Net.samples import CheckedDataset, check_dataset, format_list, images_of_masks

if TYPE_CHECKING:
    from IS_Net.data_loader import DISDataset

logger = logging.getLogger(__name__)

ERROR, WARNING, NOTE = "error", "warning", "note"
"""Severities: the file or data set cannot be used; it can be, but probably should not; good to know."""

KINDS = {
    "unreadable": ERROR,
    "truncated": ERROR,
    "mis-sized": ERROR,
    "turned": ERROR,
    "mispaired": ERROR,
    "leak": WARNING,
    "duplicate": WARNING,
    "doubtful orientation": WARNING,
    "stale": WARNING,
    "empty": WARNING,
    "full": WARNING,
    "not binary": NOTE,
    "ignored": NOTE,
}
"""The kinds of findings with their severities, in the order of a report.

``turned``: a mask has its image's size before the EXIF orientation. ``doubtful orientation``: a mask fits the edges of
its image, or its ground truth, better when it is flipped or turned. ``leak``: an image is in two data sets.
``stale``: stage 1 made a mask from an image or a ground truth that has changed since. ``not binary``: a mask has values
other than 0 and 255, which is legal. ``ignored``: a file that no data loader reads.
"""

_THUMBNAIL = 16
_HASH_DISTANCE = 8  # of 64 bits
_THUMBNAIL_DISTANCE = 5.0  # mean of the absolute differences, of 255
_THUMBNAIL_PEAK = 48  # the largest difference, of 255
_EDGE_SIZE = 192
_BETTER = 1.2  # see _best_turn
_HASH_BLOCK = 32
_TRUNCATED = re.compile(r"truncat|incomplete|premature|unexpected end|end of file|\b0 bytes|not enough", re.IGNORECASE)
_PART = re.compile(r"(?P<stem>.+)_comp_\d+", re.DOTALL)
_ENRICHED = "-enriched"


@dataclass(frozen=True)
class Finding:
    """What was found about one or more files of a data set."""

    kind: str
    """One of :data:`KINDS`."""
    dataset: str
    files: tuple[str, ...]
    message: str
    """Names the files."""

    @property
    def severity(self) -> str:
        """``error``, ``warning`` or ``note``."""
        return KINDS[self.kind]


@dataclass
class Report:
    """The result of :func:`examine`."""

    datasets: list[dict[str, Any]] = field(default_factory=list)
    """For each data set: ``name``, ``im_dir``, and the numbers of ``images``, ``gts`` and ``masks``."""
    findings: list[Finding] = field(default_factory=list)
    """Sorted by kind, in the order of :data:`KINDS`, then by data set and file."""
    files: int = 0
    """Number of files that were read."""
    seconds: float = 0.0

    def of(self, *severities: str) -> list[Finding]:
        """Return the findings of some severities."""
        return [finding for finding in self.findings if finding.severity in severities]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "datasets": self.datasets,
            "files": self.files,
            "seconds": round(self.seconds, 2),
            "counts": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [{"severity": found.severity, **asdict(found)} for found in self.findings],
        }


class _Item(NamedTuple):
    """An image with its ground truth and its coarse masks, each with its entry in the manifest ({} if it has none)."""

    dataset: int
    image: Path
    gt: Path | None
    masks: tuple[tuple[Path, Mapping[str, Any]], ...]


class _Signature(NamedTuple):
    """What copies of an image are found by."""

    pixels: bytes
    """Hash of the decoded pixels."""
    gradients: int
    """64-bit difference hash."""
    thumbnail: bytes
    """16 x 16 RGB."""


class _Outcome(NamedTuple):
    item: _Item
    signature: _Signature | None
    findings: list[Finding]


def examine(
    datasets: Sequence[Mapping[str, str]],
    roles: Sequence[str] | None = None,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Read all files of data sets, and find those that cannot be used or that would distort a result.

    The memory in use does not depend on the sizes of the data sets, but for about 3 KB for each image with its ground
    truth and mask: the paths, and from what copies are found.

    Args:
        datasets: Entries of :mod:`IS_Net.datalist`.
        roles: What each data set is used for, such as ``train`` and ``valid``: an image that is in data sets of two
            roles is a leak. None gives each data set a role of its own, but for one and its enriched form
            (``NAME-enriched``), which hold the same images.
        workers: Number of threads; None is the number of cores.
        progress: Whether to show a progress bar.

    Raises:
        DatasetError: If an entry is faulty, or a folder of images does not exist or holds none.
    """
    start = time.perf_counter()
    checked = [check_dataset(entry) for entry in datasets]
    report = Report()
    items: list[_Item] = []
    for index, dataset in enumerate(checked):
        own = list(_pair(index, dataset, report.findings))
        masks = sum(len(item.masks) for item in own)
        gts = sum(item.gt is not None for item in own)
        report.datasets.append({
            "name": dataset.name, "im_dir": str(dataset.im_dir), "images": len(own), "gts": gts, "masks": masks
        })  # fmt: skip
        report.files += len(own) + gts + masks
        items += own

    index_of_copies = _Copies(checked, roles or [_family(dataset) for dataset in checked])
    threads = workers or available_cores()
    with ThreadPoolExecutor(threads) as pool, tqdm(total=report.files, unit="file", disable=not progress) as bar:
        jobs = map_bounded(pool, lambda item: _examine_item(item, checked[item.dataset].name), items, 2 * threads)
        for job in jobs:
            outcome = job.result()
            report.findings += outcome.findings
            if outcome.signature is not None:
                index_of_copies.add(outcome.item, outcome.signature)
            bar.update(1 + (outcome.item.gt is not None) + len(outcome.item.masks))
    report.findings += index_of_copies.find()
    order = list(KINDS)
    report.findings.sort(key=lambda found: (order.index(found.kind), found.dataset, found.files))
    report.seconds = time.perf_counter() - start
    return report


# --- pairing --------------------------------------------------------------------------------------------------------


def _pair(index: int, dataset: CheckedDataset, findings: list[Finding]) -> Iterator[_Item]:
    """Pair the files of a data set by name; add the files that have no partner to the findings."""

    def add(kind: str, files: Iterable[Path], message: str) -> None:
        findings.append(Finding(kind, dataset.name, tuple(map(str, files)), message))

    if not dataset.im_dir.is_dir():
        raise DatasetError(
            f"data set {dataset.name!r}: {dataset.im_dir} does not exist; expected a folder of images: lay the data "
            "out as FOLDER/im, FOLDER/gt and FOLDER/mask"
        )
    images = _list(dataset.im_dir, dataset.im_ext, add)
    if not images:
        raise DatasetError(
            f"data set {dataset.name!r}: {dataset.im_dir} holds no image{f' {dataset.im_ext}' * bool(dataset.im_ext)}; "
            "check the folder and im_ext"
        )
    gts = _list(dataset.gt_dir, dataset.gt_ext, add) if dataset.gt_dir else {}
    masks = _list(dataset.mid_dir, dataset.mid_ext, add) if dataset.mid_dir else {}
    for what, folder, files, extension, key in (
        ("ground truths", dataset.gt_dir, gts, dataset.gt_ext, "gt_ext"),
        ("coarse masks", dataset.mid_dir, masks, dataset.mid_ext, "mid_ext"),
    ):
        if folder is not None and not folder.is_dir():
            add("mispaired", [folder], f"{folder}: the folder of {what} does not exist")
        elif folder is not None and not files:
            kind = f" {extension}" * bool(extension)
            add("mispaired", [folder], f"{folder}: holds no{kind} file of {what}; check the folder and {key}")
    manifest = read_manifest(dataset.mid_dir) if masks else {}
    owners = images_of_masks(masks, images, manifest)
    of_image: dict[str, list[str]] = {}
    for mask, owner in owners.items():
        of_image.setdefault(owner, []).append(mask)

    similar = {kind: _by_plain_name(names) for kind, names in (("im", images), ("gt", gts), ("mask", masks))}

    def alike(name: str, kind: str) -> str:
        other = similar[kind].get(_plain(name))
        return f"; is {other!r} meant?" if other else ""

    for name, path in gts.items():
        if name not in images:
            add("mispaired", [path], f"{path}: no image of this name in {dataset.im_dir}{alike(name, 'im')}")
    for name, path in masks.items():
        if name not in owners:
            add("mispaired", [path], f"{path}: no image for this mask in {dataset.im_dir}{alike(name, 'im')}")
    for name, path in images.items():
        if gts and name not in gts:
            add("mispaired", [path], f"{path}: no ground truth in {dataset.gt_dir}{alike(name, 'gt')}")
        if masks and name not in of_image:
            add("mispaired", [path], f"{path}: no coarse mask in {dataset.mid_dir}{alike(name, 'mask')}")
        own = tuple((masks[mask], manifest.get(mask, {})) for mask in of_image.get(name, ()))
        yield _Item(index, path, gts.get(name), own)


def _list(folder: Path, extension: str, add: Callable[[str, Iterable[Path], str], None]) -> dict[str, Path]:
    """List the image files of a folder by name (in Unicode's composed form), also if two have one name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.is_dir():
            continue
        if not is_image(path) or (extension and path.suffix.lower() != extension.lower()):
            if path.suffix not in (".json", ".jsonl", ".txt", ".md", ".csv"):
                wanted = f"files {extension}" if extension else "image files"
                add("ignored", [path], f"{path}: left out; only {wanted} are read in this folder")
            continue
        first = found.setdefault(unicodedata.normalize("NFC", path.stem), path)
        if first != path:
            add("mispaired", [first, path], f"{first} and {path.name}: two files of one name; rename or remove one")
    return found


def _plain(name: str) -> str:
    """Return what is left of a name without case, spaces and a suffix such as ``_mask``."""
    return re.sub(r"[\W_]|(mask|gt|alpha|matte)$", "", unicodedata.normalize("NFKC", name).casefold())


def _by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return the first of the names that have the same :func:`_plain` form, by that form."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(_plain(name), name)
    return found


# --- one image ------------------------------------------------------------------------------------------------------


def _examine_item(item: _Item, dataset: str) -> _Outcome:
    """Read an image, its ground truth and its masks, and compare them."""
    findings: list[Finding] = []

    def add(kind: str, path: Path, message: str) -> None:
        findings.append(Finding(kind, dataset, (str(path),), message))

    def read(reader: Callable[[Path], np.ndarray], path: Path) -> np.ndarray | None:
        try:
            return reader(path)
        except ImageError as error:
            add(_damage(path, error), path, str(error))
        return None

    image = read(read_image, item.image)
    small = None if image is None else _shrink(image)
    truth = box = None
    for path, entry in [*([(item.gt, None)] if item.gt else ()), *item.masks]:
        mask = read(read_mask, path)
        if mask is None:
            continue
        _examine_values(path, mask, add)
        is_truth = entry is None
        if is_truth:
            truth, box = mask, box_from_mask(mask)
        else:
            _examine_age(item.image if image is not None else None, path, entry, truth, box, add)
        if image is not None and mask.shape != image.shape[:2]:
            _examine_size(item.image, path, mask.shape, image.shape[:2], add)
        elif small is not None and is_truth:
            _examine_orientation(item.image, path, small, _shrink(mask), add)
        elif truth is not None and truth.shape == mask.shape:
            _examine_overlap(path, _shrink(mask), _shrink(truth), add)
    return _Outcome(item, None if image is None else _sign(image), findings)


def _damage(path: Path, error: ImageError) -> str:
    cause = str(error.__cause__ or "")
    try:
        cut = path.stat().st_size == 0 or looks_whole(path) is False
    except OSError:
        cut = False
    return "truncated" if cut or _TRUNCATED.search(cause) else "unreadable"


def _examine_values(path: Path, mask: np.ndarray, add: Callable[[str, Path, str], None]) -> None:
    found = binarize(mask)
    if not found.any():
        add("empty", path, f"{path}: no pixel is above 128: there is no object in it")
    elif found.all():
        add("full", path, f"{path}: all pixels are above 128: there is no background in it")
    between = np.count_nonzero((mask > 0) & (mask < 255))
    if between:
        add("not binary", path, f"{path}: {between / mask.size:.1%} of the pixels are neither 0 nor 255")


def _examine_age(
    image: Path | None, path: Path, entry: Mapping[str, Any], truth: np.ndarray | None, box: Any, add: Callable
) -> None:
    """Compare a mask's entry in the manifest with its image (None: it cannot be read) and ground truth as they are."""
    if image and entry.get("image_fingerprint") is not None and not is_unchanged(image, "image", entry):
        add("stale", path, f"{path}: {image.name} has changed since stage 1 made this mask; make it again")
    elif entry.get("gt_fingerprint") is not None and truth is not None:
        prompt = entry.get("box")
        if (None if prompt is None else [*map(float, prompt)]) != (None if box is None else [*map(float, box)]):
            add(
                "stale",
                path,
                f"{path}: was made from the box {prompt}, but the ground truth's is {box and list(box)} now; make it "
                "again",
            )


def _examine_size(image: Path, path: Path, found: tuple[int, int], expected: tuple[int, int], add: Callable) -> None:
    orientation = _orientation(image)
    if found == expected[::-1] and orientation >= 5:
        add(
            "turned",
            path,
            f"{path} is {size_text(found)} pixels, the size of {image.name} before its EXIF orientation "
            f"({orientation}); turn the mask as the image is turned, to {size_text(expected)}",
        )
    else:
        add("mis-sized", path, size_mismatch(path, found, f"its image {image.name}", expected))


def _orientation(path: Path) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 if it has none."""
    try:
        with Image.open(path) as image:
            found = image.getexif().get(0x0112)
    except Exception:  # damaged EXIF data raise errors of all types, and the image was readable
        return 1
    return found if found in range(1, 9) else 1


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """Resize an image or a mask to at most 192 pixels a side."""
    height, width = pixels.shape[:2]
    scale = min(_EDGE_SIZE / max(height, width), 1)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


_TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned by 180 degrees": lambda mask: mask[::-1, ::-1],
    "flipped left to right": lambda mask: mask[:, ::-1],
    "flipped upside down": lambda mask: mask[::-1],
}
_SQUARE_TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned by 90 degrees clockwise": lambda mask: np.rot90(mask, -1),
    "turned by 90 degrees counterclockwise": lambda mask: np.rot90(mask),
    "transposed": lambda mask: mask.T,
    "transposed and turned by 180 degrees": lambda mask: mask.T[::-1, ::-1],
}


def _turned(mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a mask in all other orientations that have its shape, each with its name."""
    turns = _TURNS | (_SQUARE_TURNS if mask.shape[0] == mask.shape[1] else {})
    for name, turn in turns.items():
        yield name, np.ascontiguousarray(turn(mask))


def _gradients(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    smooth = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 1)
    return cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)


def _best_turn(image: np.ndarray, mask: np.ndarray) -> tuple[str, float]:
    """Find the orientation of a mask, other than its own, whose edges agree best with those of the image.

    The measure is the mean of the image's gradients across the mask's border, with the square roots of their
    magnitudes. On 57 photographs with ground truth, it is at least 1.15 times as high for the right orientation as for
    any other.

    Returns:
        The orientation, and its measure divided by that of the mask as it is.
    """
    dx, dy = _gradients(image)
    root = np.sqrt(np.hypot(dx, dy)) + 1e-6
    dx, dy = dx / root, dy / root

    def measure(turned: np.ndarray) -> float:
        x, y = _gradients(turned)
        across = np.abs(dx * x[..., None] + dy * y[..., None]).max(axis=2)
        return float(across.sum() / max(float(np.hypot(x, y).sum()), 1e-6))

    own = measure(mask)
    name, best = max(((name, measure(turned)) for name, turned in _turned(mask)), key=lambda pair: pair[1])
    return name, best / max(own, 1e-6)


def _examine_orientation(image: Path, path: Path, pixels: np.ndarray, mask: np.ndarray, add: Callable) -> None:
    found = binarize(mask)
    if not found.any() or found.all():
        return
    name, ratio = _best_turn(pixels, mask)
    if ratio > _BETTER:
        orientation = _orientation(image)
        cause = f" (the image has the EXIF orientation {orientation})" if orientation > 1 else ""
        add(
            "doubtful orientation",
            path,
            f"{path}: {name}, its border fits the edges of {image.name} {ratio:.1f} times as well{cause}; look at it",
        )


def _examine_overlap(path: Path, mask: np.ndarray, truth: np.ndarray, add: Callable) -> None:
    """Compare a coarse mask with its ground truth, both reduced."""
    found, wanted = binarize(mask), binarize(truth)
    if not found.any() or not wanted.any():
        return

    def iou(other: np.ndarray) -> float:
        return float((other & wanted).sum() / (other | wanted).sum())

    own = iou(found)
    name, best = max(((name, iou(turned)) for name, turned in _turned(found)), key=lambda pair: pair[1])
    if best > own + 0.25:
        message = f"{path}: its IoU with the ground truth is {own:.2f}, and {best:.2f} when it is {name}; look at it"
        add("doubtful orientation", path, message)


# --- copies ---------------------------------------------------------------------------------------------------------


def _sign(image: np.ndarray) -> _Signature:
    """Return what copies of an image, (H, W, 3) uint8, are found by."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    thumbnail = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(cv2.resize(image, (9, 8), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    bits = np.packbits(gray[:, 1:] > gray[:, :-1])
    return _Signature(digest.digest(), int.from_bytes(bits.tobytes(), "big"), thumbnail.tobytes())


def _family(dataset: CheckedDataset) -> str:
    return str(dataset.im_dir.parent).removesuffix(_ENRICHED)


class _Copies:
    """Finds images that are copies of each other: of equal pixels, or encoded or resized differently.

    Args:
        datasets: The data sets.
        roles: The role of each; see :func:`examine`.
    """

    def __init__(self, datasets: Sequence[CheckedDataset], roles: Sequence[str]) -> None:
        self.names, self.roles = [dataset.name for dataset in datasets], roles
        self.items: list[tuple[int, Path]] = []
        self.pixels: list[bytes] = []
        self.gradients: list[int] = []
        self.thumbnails = bytearray()

    def add(self, item: _Item, signature: _Signature) -> None:
        """Add an image."""
        self.items.append((item.dataset, item.image))
        self.pixels.append(signature.pixels)
        self.gradients.append(signature.gradients)
        self.thumbnails += signature.thumbnail

    def find(self) -> list[Finding]:
        """Return a finding for each image that is a copy of an earlier one."""
        groups: dict[bytes, list[int]] = {}
        for index, digest in enumerate(self.pixels):
            groups.setdefault(digest, []).append(index)
        findings = []
        for group in groups.values():
            findings += self._of_group(group)
        return findings + self._of_similar(np.array([group[0] for group in groups.values()], dtype=np.int64))

    def _of_group(self, group: Sequence[int]) -> list[Finding]:
        """Compare the images of a group with the first one of each role."""
        first_of_role: dict[str, int] = {}
        findings = []
        for index in group:
            role = self.roles[self.items[index][0]]
            for other_role, other in first_of_role.items():
                if other_role != role:
                    findings += self._of_pair(other, index, "has the same pixels as")
            first = first_of_role.setdefault(role, index)
            if first != index:
                findings += self._of_pair(first, index, "has the same pixels as")
        return findings

    def _of_pair(self, first: int, second: int, relation: str) -> list[Finding]:
        (set_1, path_1), (set_2, path_2) = self.items[first], self.items[second]
        files = (str(path_1), str(path_2))
        if self.roles[set_1] != self.roles[set_2]:
            message = f"{path_2} (data set {self.names[set_2]}) {relation} {path_1} (data set {self.names[set_1]})"
            return [Finding("leak", self.names[set_2], files, message)]
        if set_1 != set_2 or _is_sample_of_one(path_1, path_2):
            return []
        return [Finding("duplicate", self.names[set_2], files, f"{path_2} {relation} {path_1}")]

    def _of_similar(self, order: np.ndarray) -> list[Finding]:
        """Compare these images with the first one of each role whose hash and thumbnail are nearly equal.

        Not with all: a film of 300 frames has 44,850 pairs.
        """
        hashes = np.array(self.gradients, dtype=np.uint64)[order]
        thumbnails = np.frombuffer(self.thumbnails, np.uint8).reshape(-1, _THUMBNAIL**2 * 3)
        found = {role: np.zeros(len(order), dtype=bool) for role in self.roles}
        findings = []
        for start in range(0, len(order), _HASH_BLOCK):
            block = hashes[start : start + _HASH_BLOCK]
            close = np.triu(_count_bits(block[:, None] ^ hashes[None, start:]) <= _HASH_DISTANCE, 1)
            for row, columns in enumerate(close):
                first = order[start + row]
                done = found[self.roles[self.items[first][0]]][start:]
                for column in np.flatnonzero(columns & ~done):
                    second = order[start + column]
                    difference = cv2.absdiff(thumbnails[first], thumbnails[second])
                    if difference.mean() <= _THUMBNAIL_DISTANCE and difference.max() <= _THUMBNAIL_PEAK:
                        finding = self._of_pair(first, second, "is nearly the same picture as")
                        done[column] = bool(finding)
                        findings += finding
        return findings


_BITS = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)


def _count_bits(values: np.ndarray) -> np.ndarray:
    """Return the number of bits that are set in each uint64 of a 2-D array."""
    return _BITS[values.view(np.uint16)].reshape(*values.shape, 4).sum(axis=2, dtype=np.uint8)


def _is_sample_of_one(first: Path, second: Path) -> bool:
    """Return whether two files are one under two names, or samples that GT enrichment made of one image."""
    names = [match["stem"] for path in (first, second) if (match := _PART.fullmatch(path.stem))]
    return (len(names) == 2 and names[0] == names[1]) or first.samefile(second)


# --- at the start of a run --------------------------------------------------------------------------------------------

_TAIL = 64


def looks_whole(path: Path) -> bool | None:
    """Return whether the end of a JPEG or PNG file is there; None for files of other formats.

    Only the first and the last bytes are read. A file that was cut short is found; damage in the middle is not, and a
    file to whose end a program added data is doubted too.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(max(file.seek(0, 2) - _TAIL, 0))
        tail = file.read()
    if head.startswith(b"\xff\xd8\xff"):
        return b"\xff\xd9" in tail
    return b"IEND" in tail if head.startswith(b"\x89PNG") else None


def find_truncated(paths: Iterable[Path], workers: int | None = None) -> list[str]:
    """Find truncated files without decoding those that are whole.

    Files about which :func:`looks_whole` is not sure are decoded.

    Args:
        paths: Image files; each is looked at once.
        workers: Number of threads; None is the number of cores.

    Returns:
        A message for each file that cannot be read.
    """

    def problem(path: Path) -> str | None:
        try:
            if not looks_whole(path):
                read_image(path)
        except (ImageError, OSError) as error:
            return str(error)
        return None

    threads = workers or available_cores()
    with ThreadPoolExecutor(threads) as pool:
        jobs = map_bounded(pool, problem, dict.fromkeys(paths), 4 * threads)
        return [message for job in jobs if (message := job.result())]


def take_first_look(train: Sequence[DISDataset], valid: Sequence[DISDataset], stop_f: float | None) -> None:
    """Find what would end a training later: files that are truncated or cannot be read, and a goal out of reach.

    A data set with a cache has been read when the cache was built. Of the others, training files are tested by
    :func:`find_truncated`, and each validation sample is read once, as each validation does.

    Args:
        train: The data sets to train on.
        valid: The data sets of validations, with ground truth.
        stop_f: The max F at which phase 1 ends, if there is a phase 1. An image whose ground truth is empty has an F
            of 0, so that too many of them keep the mean below it, which is logged.

    Raises:
        DatasetError: If files cannot be read; the message names all of them.
    """
    for dataset in train:
        if not dataset.has_cache:
            files = [file for s in dataset.samples for file in (s.image, s.mask, s.gt) if file is not None]
            _require_none(dataset.name, find_truncated(files))
    for dataset in valid:
        if dataset.has_cache and stop_f is None:
            continue
        empty, problems = _read_all(dataset)
        _require_none(dataset.name, problems)
        if stop_f is not None and 1 - empty / len(dataset) < stop_f:
            logger.warning(
                "data set %r: %d of %d ground truths are empty and have an F of 0, so that max F cannot reach "
                "gt_encoder_stop_f=%g, and phase 1 ends only by early_stop or gt_encoder_max_ite; remove these "
                "samples, or set gt_encoder_stop_f below %.3f",
                *(dataset.name, empty, len(dataset), stop_f, 1 - empty / len(dataset)),
            )


def _require_none(name: str, problems: Sequence[str]) -> None:
    if problems:
        raise DatasetError(f"data set {name!r}: {len(problems)} files cannot be used:{format_list(problems)}")


def _read_all(dataset: DISDataset) -> tuple[int, list[str]]:
    """Read all samples once; return the number of empty ground truths, and a message for each that is unusable."""

    def read(index: int) -> bool | str:
        try:
            return not binarize(dataset.planes(index)[-1]).any()
        except (ImageError, BoxError) as error:
            return str(error)

    threads = available_cores()
    with ThreadPoolExecutor(threads) as pool:
        jobs = map_bounded(pool, read, range(len(dataset)), 2 * threads)
        results = [job.result() for job in tqdm(jobs, f"reading {dataset.name}", len(dataset), unit="image")]
    return sum(found is True for found in results), [found for found in results if isinstance(found, str)]


def require_usable(train: Sequence[Mapping[str, str]], valid: Sequence[Mapping[str, str]]) -> Report:
    """Examine the data sets of a run (:func:`examine`); log what is doubtful.

    Args:
        train: Entries to train on.
        valid: Entries to validate on.

    Raises:
        DatasetError: If files cannot be used; the message names them.
    """
    report = examine([*train, *valid], ["train"] * len(train) + ["valid"] * len(valid))
    for finding in report.of(WARNING):
        logger.warning("%s: %s", finding.kind, finding.message)
    if errors := report.of(ERROR):
        listed = format_list([f"{finding.kind}: {finding.message}" for finding in errors])
        raise DatasetError(f"{len(errors)} files of the data sets cannot be used:{listed}")
    return report
