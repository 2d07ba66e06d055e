"""A folder of coarse masks: what earlier runs recorded of it, and which of its files are theirs.

A mask that this project did not write, or that has changed since, is someone's work. So are the images and ground
truths of an enriched split that were changed after a run wrote them.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from IS_Net.errors import DatasetError, ImageError
from IS_Net.files import atomic_file
from IS_Net.images import is_image, name_of, read_image
from IS_Net.manifest import Manifest, is_unchanged
from sam import enrich
from sam.mask_items import Item
from sam.prompts import Prompt, prompt_from_record

SOURCE_FILE = "enriched_from.json"
"""In an enriched split: the folders of images and ground truths that it was made from, relative to the split."""


class State(Enum):
    """Whose file a mask is."""

    FREE = "no one's: missing, empty, damaged, or left by a run that was killed while it wrote it"
    OWN = "as a run wrote it"
    OLD = "of an earlier version, which did not record the content"
    OTHER = "not written by a run, or changed since"


class MaskFolder:
    """A folder of masks and its manifest.

    Args:
        path: The folder; it need not exist.
        part: The folder of the worker, if it is one of several that write; see :class:`IS_Net.manifest.Manifest`.
        enriched: The enriched split that the masks belong to, or None.

    Attributes:
        manifest: What is known of the masks now.
        twins: Masks with other file names, by mask name: NAME.jpg, NAME.PNG, or a name with decomposed accents. Beside
            one, NAME.png would be a second mask.
    """

    def __init__(self, path: Path, part: Path | None = None, enriched: Path | None = None) -> None:
        self.path, self.enriched = path, enriched
        self.manifest = Manifest(path, part)
        self._known = dict(self.manifest.entries)  # of earlier runs
        names = {file: name_of(Path(file.name)) for file in (path.iterdir() if path.is_dir() else ()) if is_image(file)}
        self.twins = {name: file for file, name in names.items() if file.name != f"{name}.png"}
        self._of_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self._known.values():
            self._of_image[entry.get("image", "")].append(entry)

    def file(self, name: str) -> Path:
        """Return the file of a mask."""
        return self.path / f"{name}.png"

    def recorded(self, stem: str) -> Sequence[dict[str, Any]]:
        """Return the entries that earlier runs wrote of the masks of an image."""
        return self._of_image.get(stem, ())

    def begin(self, name: str) -> None:
        """Record that a mask is about to be written, and remove its twin if there is no such mask yet.

        If the run is killed before the mask's entry is written, the old entry must not describe the new mask, and the
        mask is no one's work.
        """
        self.manifest.begin(name)
        twin = self.twins.get(name)
        if twin is not None and not self.file(name).is_file():  # it is to be replaced
            twin.unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        """Delete a mask and its entry."""
        self.file(name).unlink(missing_ok=True)
        self.manifest.drop(name)

    def state(self, name: str) -> State:
        """Return whose file a mask is."""
        path, entry = self.file(name), self.manifest.entries.get(name)
        if name in self.twins and not path.is_file():
            return State.OTHER
        if not path.is_file() or path.stat().st_size == 0 or name in self.manifest.pending:
            return State.FREE
        if entry is None:
            return State.OTHER
        if "mask_hash" not in entry:
            return State.OLD
        if is_unchanged(path, "mask", entry):
            return State.OWN
        try:
            read_image(path)
        except ImageError:
            return State.FREE
        return State.OTHER

    def is_own(self, name: str, images: Sequence[Path] = ()) -> bool:
        """Return whether no one's work is lost with a mask and, in an enriched split, the sample's other files.

        Args:
            name: Of the mask.
            images: Files of the sample's image.
        """
        own = self.state(name) in (State.FREE, State.OWN) and all(self.is_own_image(name, path) for path in images)
        return own and (self.enriched is None or self.is_own_part(name))

    def is_own_image(self, name: str, path: Path) -> bool:
        """Return whether an image file of a sample is missing, or is a link or a copy that a run made."""
        if path.is_symlink() or not path.is_file() or path.stat().st_size == 0:
            return True
        entry = self._known.get(name, {})
        return entry.get("image_fingerprint") is not None and is_unchanged(path, "image", entry)

    def is_own_part(self, name: str) -> bool:
        """Return whether the ground truth of a sample is missing, or is as a run wrote it."""
        path, entry = enrich.gt_file(self.enriched, name), self.manifest.entries.get(name, {})
        if not path.is_file() or path.stat().st_size == 0:
            return True
        return "part_hash" in entry and is_unchanged(path, "part", entry)

    def recorded_prompts(self, item: Item, sources: Mapping[str, str]) -> dict[str, Prompt] | None:
        """Return the prompts that the manifest holds for an image, or None if image or ground truth are new to it.

        It is also None if a file of its samples in an enriched split is missing or was changed. Reading and splitting
        all ground truths would take most of the time of a run that has little left to do.
        """
        entries = [
            entry
            for entry in self.recorded(item.stem)
            if is_about(entry, "image", sources) and is_about(entry, "gt", sources)
        ]
        if not entries or len(entries) != entries[0].get("num_masks"):
            return None
        if self.enriched and not all(self._has_own_sample(entry["mask"], item.image) for entry in entries):
            return None
        return {entry["mask"]: prompt_from_record(item.stem, entry) for entry in entries}

    def _has_own_sample(self, name: str, image: Path) -> bool:
        return enrich.has_sample(self.enriched, name, image) and self.is_own_part(name)

    def claim(self, items: Sequence[Item], source: tuple[Path, Path]) -> None:
        """Record where the enriched split comes from, unless it already comes from elsewhere.

        Args:
            items: The images.
            source: The folders of images and ground truths.

        Raises:
            DatasetError: If the folder holds the enriched split of other images, or files that no run wrote.
        """
        record, (images, gt) = self.enriched / SOURCE_FILE, source
        recorded = _read_source(record)
        if recorded is None and not self.manifest.entries and not self.manifest.pending:
            enrich.require_own_files(self.enriched, {item.stem for item in items})
        elif not (recorded and recorded.is_dir() and recorded.samefile(images)):
            # the folders were moved or copied together, or an earlier version made the split: the images decide
            of_stem = {item.stem: item.image for item in items}
            same = (
                entry["image"] in of_stem and _is_same_or_old(of_stem[entry["image"]], entry)
                for entry in self.manifest.entries.values()
                if "image" in entry
            )
            if (recorded and recorded.is_dir()) or (self.manifest.entries and not any(same)):
                origin = f" in {recorded}" if recorded else ""
                raise DatasetError(
                    f"{self.enriched}: holds the enriched split of other images{origin}, not of those in {images}; "
                    "write this one to another folder, or delete the old one"
                )
        here = self.enriched.resolve()
        try:
            record_now = {"images": os.path.relpath(images.resolve(), here), "gt": os.path.relpath(gt.resolve(), here)}
        except ValueError:  # on another drive
            record_now = {"images": str(images.resolve()), "gt": str(gt.resolve())}
        text = json.dumps(record_now, indent=1) + "\n"
        if not record.is_file() or record.read_text(encoding="utf-8", errors="replace") != text:
            with atomic_file(record, "w") as file:
                file.write(text)


def _is_same_or_old(image: Path, entry: Mapping[str, Any]) -> bool:
    """Return whether an entry may be about this image; those of earlier versions tell no more than its name."""
    return "image_hash" not in entry or (image.is_file() and is_unchanged(image, "image", entry))


def is_about(entry: Mapping[str, Any], kind: str, now: Mapping[str, str]) -> bool:
    """Return whether an entry is about an image or a ground truth.

    Args:
        entry: Of the manifest.
        kind: ``image`` or ``gt``.
        now: What identifies the file, from :func:`IS_Net.manifest.identify`.
    """
    if f"{kind}_hash" in entry or f"{kind}_fingerprint" not in now:
        return entry.get(f"{kind}_hash") == now.get(f"{kind}_hash")
    # of an earlier version, which knew a file by its size and time; a copied file has another time
    recorded = entry.get(f"{kind}_fingerprint")
    return isinstance(recorded, str) and recorded.partition("-")[0] == now[f"{kind}_fingerprint"].partition("-")[0]


def _read_source(record: Path) -> Path | None:
    """Return the folder of images that an enriched split records as its source, or None if it records none."""
    try:
        return record.parent / json.loads(record.read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
