"""The manifest: entries are added and dropped, damaged lines are ignored, and old keys are converted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from IS_Net.manifest import Manifest, fingerprint, read_manifest


def entry(mask: str, **values: object) -> dict:
    return {"mask": mask, "image": mask, "model": "vit_l", **values}


def test_entries_are_added_replaced_and_dropped(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) == {}
    manifest = Manifest(tmp_path)
    manifest.add(entry("a", box=[1, 2, 3, 4]))
    manifest.add(entry("b"))
    manifest.add(entry("a", box=[5, 6, 7, 8]))
    manifest.add(entry("c"))
    manifest.drop("c")
    assert read_manifest(tmp_path) == {"a": entry("a", box=[5, 6, 7, 8]), "b": entry("b")} == manifest.entries
    (tmp_path / "a.png").touch()
    manifest.compact()
    assert read_manifest(tmp_path) == {"a": entry("a", box=[5, 6, 7, 8])}
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("length", range(1, 40, 6))
def test_incomplete_last_line_is_ignored(tmp_path: Path, length: int) -> None:
    incomplete = json.dumps(entry("b"))[:length]
    (tmp_path / "manifest.jsonl").write_text(json.dumps(entry("a")) + "\n" + incomplete)
    (tmp_path / "a.png").touch()
    assert read_manifest(tmp_path) == {"a": entry("a")}
    Manifest(tmp_path).add(entry("c"))  # must not be appended to the rest of b
    assert read_manifest(tmp_path) == {"a": entry("a"), "c": entry("c")}


def test_damaged_lines_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(
        b'\xff\xfe\n[1]\n"x"\n{}\nnull\n' + json.dumps(entry("a")).encode() + b"\n"
    )
    assert read_manifest(tmp_path) == {"a": entry("a")}


OLD = {
    "mask": "a",
    "image": "a",
    "image_print": "120-1",
    "model": "grabcut",
    "checkpoint": None,
    "select": None,
    "gt_print": "80-2",
    "of": 1,
    "object": None,
    "box": [1, 2, 3, 4],
    "points": None,
    "labels": None,
    "size": [40, 60],
    "score": None,
}
"""An entry as earlier versions wrote it."""


def test_old_keys_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(OLD) + "\n" + json.dumps({**OLD, "mask": "b"}) + "\n" + json.dumps({"mask": "b"}) + "\n")
    renamed = {"image_print": "image_fingerprint", "gt_print": "gt_fingerprint", "of": "num_masks"}
    expected = {renamed.get(key, key): value for key, value in OLD.items()}
    assert read_manifest(tmp_path) == {"a": expected}
    (tmp_path / "a.png").touch()
    Manifest(tmp_path)  # a run rewrites the file
    assert [json.loads(line) for line in path.read_text().splitlines()] == [expected]


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    before = fingerprint(path)
    assert fingerprint(path) == before
    path.write_bytes(b"12")
    assert fingerprint(path) != before
