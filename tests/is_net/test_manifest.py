"""The manifest: entries are added and dropped, damaged lines are ignored, and old keys are converted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from IS_Net.errors import StoppedError
from IS_Net.manifest import Manifest, fingerprint, identify, is_unchanged, read_manifest


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


@pytest.mark.parametrize(
    "wrong", [{"image": "p/x"}, {"image": ["x"]}, {"box": 5}, {"box": [1, 2, "x", 4]}, {"box": [1]}]
)
def test_entries_with_values_of_another_form_are_ignored(tmp_path: Path, wrong: dict, caplog) -> None:
    lines = [json.dumps(entry("a", **wrong)), json.dumps(entry("b", box=[1, 2, 3, 4]))]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    assert read_manifest(tmp_path).keys() == {"b"}
    assert "line 1: not a complete entry; ignored" in caplog.text


def test_a_manifest_that_cannot_be_written_stops_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest(tmp_path)
    manifest.add(entry("a"))

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(
            StoppedError, match=r"manifest\.jsonl: cannot be written \(No space left on device\)"
        ) as caught:
            manifest.add(entry("b"))
    assert caught.value.exit_code == 1
    assert read_manifest(tmp_path).keys() == {"a"}


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


def test_content_is_identity(tmp_path: Path) -> None:
    """Row 4b of the list of faults: a touched or copied file is the same; one of the same size and time may not be."""
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    entry = identify(path, "image")
    assert entry.keys() == {"image_fingerprint", "image_hash"}
    os.utime(path, (1e9, 1e9))
    assert is_unchanged(path, "image", entry)
    assert identify(path, "image", [entry])["image_hash"] == entry["image_hash"]
    path.write_bytes(b"12346")
    assert not is_unchanged(path, "image", entry)
    path.write_bytes(b"")
    assert not is_unchanged(path, "image", entry)
    old = {"image_fingerprint": fingerprint(path)}
    assert is_unchanged(path, "image", old)
    os.utime(path, (1e9, 1e9))
    assert not is_unchanged(path, "image", old)


def test_a_file_with_the_recorded_time_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"12345")
    entry = identify(path, "mask")
    monkeypatch.setattr("IS_Net.manifest.content_hash", None)
    assert is_unchanged(path, "mask", entry) and identify(path, "mask", [{}, entry]) == entry


def test_a_mask_that_was_announced_is_pending_until_it_is_added_or_dropped(tmp_path: Path) -> None:
    """Row 40: after a kill, such a mask is no one's work, and is made again."""
    manifest = Manifest(tmp_path)
    manifest.add(entry("a"))
    for name in "abc":
        manifest.begin(name)
        (tmp_path / f"{name}.png").touch()
    manifest.add(entry("b"))
    manifest.drop("c")
    for _ in range(2):  # also after it was rewritten
        again = Manifest(tmp_path)
        assert (again.entries, again.pending) == ({"b": entry("b")}, {"a"})
    assert read_manifest(tmp_path).keys() == {"b"}
