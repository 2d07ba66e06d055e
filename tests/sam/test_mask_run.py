"""Mask runs: what is written and kept, what an interruption leaves behind, bad input, and enriched splits."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_splits import BOXES, ENRICHED, FilledBox, files, filled, leftovers, make_split, samples
from PIL import Image
from tiny_sam import tiny_sam

from IS_Net.errors import DatasetError, FolderInUseError, PromptError
from IS_Net.images import binarize, read_image, read_mask, write_image, write_mask
from IS_Net.lock import lock_folder
from IS_Net.manifest import read_manifest
from sam import enrich, mask_folder, mask_run
from sam.backends import load_predictor
from sam.backends.segment_anything import BatchedSamPredictor
from sam.mask_run import Summary, enrich_split, generate_masks
from sam.prompts import Prompt


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return make_split(tmp_path / "DIS-VD", BOXES)


def run(split: Path, predictor: FilledBox | None = None, **settings: object) -> tuple[Summary, FilledBox]:
    predictor = predictor or FilledBox()
    settings = settings if "prompts" in settings else {"gt": split / "gt", **settings}
    return generate_masks(split / "im", split / "mask", predictor, **settings), predictor


# --- what is written


def test_masks_and_manifest_of_ground_truths(split: Path) -> None:
    summary, predictor = run(split)
    assert (summary.written, summary.kept, summary.failed, summary.empty) == (3, 0, {}, [])
    assert sorted(path.name for path in (split / "mask").iterdir()) == ["a.png", "b.png", "c.png", "manifest.jsonl"]
    manifest = read_manifest(split / "mask")
    for name, box in BOXES.items():
        with Image.open(split / "mask" / f"{name}.png") as file:
            assert file.mode == "L" and file.size == (60, 40)
            np.testing.assert_array_equal(np.asarray(file), filled(box))
        entry = manifest[name]
        assert tuple(entry["box"]) == box
        assert (entry["image"], entry["object"], entry["points"], entry["labels"]) == (name, None, None, None)
        assert (entry["model"], entry["checkpoint"], entry["select"]) == ("vit_l", "0" * 64, "score")
        assert (entry["score"], entry["size"]) == (0.25, [40, 60])
    for image, name in zip(predictor.images, BOXES, strict=True):
        np.testing.assert_array_equal(image, read_image(split / "im" / f"{name}.png"))


def test_prompts_from_a_file(split: Path) -> None:
    prompts = {
        "a.png": [{"object": "left", "box": [1, 2, 9, 8]}, {"object": "right", "box": [20, 2, 99, 8]}],
        "c": [{"object": "spot", "points": [[7, 9], [50, 30], [8, 9]], "labels": [1, 1, 0]}],
    }
    (split / "prompts.json").write_text(json.dumps(prompts))
    summary, predictor = run(split, prompts=split / "prompts.json")
    assert summary.written == 3
    assert predictor.requests == [(2, "score"), (1, "score")] and len(predictor.images) == 2
    found = {path.stem: read_mask(path) for path in (split / "mask").glob("*.png")}
    assert found.keys() == {"a_left", "a_right", "c"}
    np.testing.assert_array_equal(found["a_left"], filled((1, 2, 9, 8)))
    np.testing.assert_array_equal(found["a_right"], filled((20, 2, 59, 8)))
    assert sorted(zip(*np.nonzero(found["c"]), strict=True)) == [(9, 7), (30, 50)]
    entry = read_manifest(split / "mask")["c"]
    assert (entry["box"], entry["points"], entry["labels"]) == (None, [[7, 9], [50, 30], [8, 9]], [1, 1, 0])
    assert read_manifest(split / "mask")["a_right"]["object"] == "right"


def test_empty_ground_truth_gives_an_empty_mask_without_the_model(tmp_path: Path) -> None:
    split = make_split(tmp_path / "DIS-VD", {"a": None, "b": (3, 3, 9, 9)})
    for _ in range(2):
        summary, predictor = run(split)
        assert summary.empty == ["a"] and "ground truth is empty: a" in str(summary)
        assert not read_mask(split / "mask" / "a.png").any()
        assert read_manifest(split / "mask")["a"]["box"] is None
    assert predictor.images == [] and summary.kept == 2


def test_ground_truth_stored_as_0_and_1(tmp_path: Path) -> None:
    split = make_split(tmp_path / "DIS-VD", {"a": (5, 6, 30, 20)})
    gt = split / "gt" / "a.png"
    write_mask(gt, (read_mask(gt) > 0).astype(np.uint8))
    run(split)
    assert read_manifest(split / "mask")["a"]["box"] == [5, 6, 30, 20]


def save_variant(path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    image = {
        "gray": lambda: Image.fromarray(pixels[..., 0]),
        "alpha": lambda: Image.fromarray(np.dstack([pixels, pixels[..., 0]])),
        "palette": lambda: Image.fromarray(pixels).quantize(),
        "16 bits": lambda: Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
        "CMYK": lambda: Image.fromarray(pixels).convert("CMYK"),
    }[kind]()
    image.save(path)


@pytest.mark.parametrize("kind", ["gray", "alpha", "palette", "16 bits", "CMYK"])
def test_image_modes(tmp_path: Path, kind: str) -> None:
    split = make_split(tmp_path / "DIS-VD", {"a": (5, 6, 30, 20)})
    (split / "im" / "a.png").unlink()
    save_variant(split / "im" / ("a.tif" if kind == "CMYK" else "a.png"), kind)
    summary, predictor = run(split)
    assert summary.written == 1
    assert predictor.images[0].shape == (40, 60, 3) and predictor.images[0].dtype == np.uint8
    np.testing.assert_array_equal(read_mask(split / "mask" / "a.png"), filled((5, 6, 30, 20)))


def test_boxes_refer_to_the_upright_image(tmp_path: Path) -> None:
    """A camera held upright: stored 60 x 40 (width x height) with orientation 6, seen as 40 x 60."""
    split = tmp_path / "photos"
    (split / "im").mkdir(parents=True)
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(split / "im" / "a.jpg", exif=exif)
    summary, _ = run(split, prompts=[Prompt("a", None, (10, 45, 30, 59))])
    assert summary.failed == {}
    np.testing.assert_array_equal(read_mask(split / "mask" / "a.png"), filled((10, 45, 30, 59), (60, 40)))
    with pytest.raises(PromptError, match="outside its image of 40 x 60 pixels"):
        run(split, prompts=[Prompt("a", None, (45, 10, 59, 30))])


# --- what is kept


def made(predictor: FilledBox) -> int:
    """Return the number of masks that a predictor made."""
    return sum(count for count, _ in predictor.requests)


def test_second_run_has_nothing_to_do(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(split)
    before = {path: path.stat().st_mtime_ns for path in (split / "mask").iterdir()}

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was read, although there was nothing to do")

    monkeypatch.setattr(mask_run, "read_image", fail)
    monkeypatch.setattr(mask_folder, "read_image", fail)
    monkeypatch.setattr(mask_run, "read_mask", fail)
    summary, predictor = run(split)
    assert (summary.written, summary.kept) == (0, 3) and predictor.images == []
    assert {path: path.stat().st_mtime_ns for path in (split / "mask").iterdir()} == before


def test_only_what_changed_is_made_again(split: Path) -> None:
    prompts = [Prompt(name, label, box) for name, box in BOXES.items() for label in "xy"]
    run(split, prompts=prompts)
    assert made(run(split, prompts=prompts)[1]) == 0

    prompts[0] = Prompt("a", "x", (1, 1, 4, 4))  # another prompt
    summary, predictor = run(split, prompts=prompts)
    assert (summary.written, summary.kept, made(predictor)) == (1, 5, 1)
    np.testing.assert_array_equal(read_mask(split / "mask" / "a_x.png"), filled((1, 1, 4, 4)))

    write_image(split / "im" / "b.png", np.full((40, 60, 3), 7, np.uint8))  # another image
    summary, predictor = run(split, prompts=prompts)
    assert (summary.written, made(predictor), len(predictor.images)) == (2, 2, 1)

    (split / "mask" / "c_y.png").unlink()  # a missing mask
    assert made(run(split, prompts=prompts)[1]) == 1
    assert (split / "mask" / "c_y.png").is_file()

    assert made(run(split, prompts=prompts, select="first")[1]) == 6  # another option
    assert made(run(split, prompts=prompts, select="first")[1]) == 0

    other = FilledBox()
    other.checkpoint = "1" * 64  # another checkpoint
    assert made(run(split, other, prompts=prompts, select="first")[1]) == 6
    other = FilledBox()
    other.name = "vit_b"  # another model
    assert made(run(split, other, prompts=prompts, select="first")[1]) == 6


@pytest.mark.parametrize("prompts", [None, [Prompt("a", None, (1, 1, 4, 4)), Prompt("b", None, (2, 2, 5, 5))]])
def test_masks_of_a_manifest_with_old_keys_are_kept(split: Path, prompts: list[Prompt] | None) -> None:
    settings = {} if prompts is None else {"prompts": prompts}
    run(split, **settings)
    path = split / "mask" / "manifest.jsonl"
    written = path.read_text()
    old_keys = {"image_fingerprint": "image_print", "gt_fingerprint": "gt_print", "num_masks": "of"}
    old = written
    for new_key, old_key in old_keys.items():
        assert f'"{new_key}"' in old
        old = old.replace(f'"{new_key}"', f'"{old_key}"')
    path.write_text(old)
    masks = {mask: mask.stat().st_mtime_ns for mask in (split / "mask").glob("*.png")}
    summary, predictor = run(split, **settings)
    assert (summary.written, summary.kept, predictor.images) == (0, len(masks), [])
    assert {mask: mask.stat().st_mtime_ns for mask in masks} == masks
    assert path.read_text() == written


def test_changed_ground_truth(split: Path) -> None:
    run(split)
    write_mask(split / "gt" / "a.png", filled((5, 6, 31, 20)))
    assert made(run(split)[1]) == 1
    assert read_manifest(split / "mask")["a"]["box"] == [5, 6, 31, 20]
    write_mask(split / "gt" / "b.png", filled(BOXES["b"]))  # without the hole, with the same box
    summary, predictor = run(split)
    assert (summary.kept, predictor.images) == (3, [])


def test_masks_no_longer_requested_are_removed(split: Path) -> None:
    (split / "mask").mkdir()
    write_mask(split / "mask" / "a_mine.png", filled((1, 1, 2, 2)))  # not made by a run, so no run removes it
    run(split, prompts=[Prompt("a", None, (1, 1, 9, 9)), Prompt("b", None, (1, 1, 9, 9))])
    summary, _ = run(split, prompts=[Prompt("a", "x", (1, 1, 9, 9)), Prompt("a", "y", (1, 1, 9, 9))])
    assert summary.removed == ["a"]
    assert {path.stem for path in (split / "mask").glob("*.png")} == {"a_mine", "a_x", "a_y", "b"}
    assert read_manifest(split / "mask").keys() == {"a_x", "a_y", "b"}


# --- whose file it is


def copied(split: Path, to: Path) -> Path:
    """Copy a data set as `cp -r` and unzip do: the content is the same, all times are new."""
    shutil.copytree(split, to, copy_function=shutil.copy)
    for path in to.rglob("*.*"):
        os.utime(path, (1e9, 1e9 + len(path.name)))
    return to


def corrected(path: Path) -> bytes:
    """Change a mask as a hand would, to the same number of bytes if need be; return the new content."""
    write_mask(path, filled((2, 2, 40, 35)))
    return path.read_bytes()


def test_masks_drawn_by_hand_are_kept_and_told(split: Path) -> None:
    """Row 3 of the list of faults: masks without a manifest were overwritten without a word."""
    drawn = {name: corrected(split / "mask" / f"{name}.png") for name in ("a", "b")}
    summary, predictor = run(split)
    assert (summary.written, summary.kept, summary.by_hand, made(predictor)) == (1, 0, ["a", "b"], 1)
    assert "2 kept as they are" in str(summary) and "a, b; --overwrite replaces them" in str(summary)
    assert {name: (split / "mask" / f"{name}.png").read_bytes() for name in drawn} == drawn
    assert run(split)[0].by_hand == ["a", "b"]
    summary, _ = run(split, overwrite=True)
    assert (summary.written, summary.kept, summary.by_hand) == (2, 1, [])
    np.testing.assert_array_equal(read_mask(split / "mask" / "a.png"), filled(BOXES["a"]))
    assert run(split)[0].kept == 3


def test_a_copied_data_set_keeps_its_masks_and_its_corrections(split: Path, tmp_path: Path) -> None:
    """Row 4b: the image's time was its identity, so a copy lost hours of work, and the corrections with it."""
    run(split)
    content = corrected(split / "mask" / "b.png")
    copy = copied(split, tmp_path / "copy")
    for _ in range(2):
        summary, predictor = run(copy)
        assert (summary.written, summary.kept, summary.by_hand, predictor.images) == (0, 2, ["b"], [])
    assert (copy / "mask" / "b.png").read_bytes() == content


@pytest.mark.parametrize("change", ["image", "prompt", "model"])
def test_a_corrected_mask_survives_every_change(split: Path, change: str) -> None:
    """Row 4b, its neighbors: whatever makes the mask outdated, the correction is kept and named."""
    run(split)
    content = corrected(split / "mask" / "b.png")
    predictor = FilledBox()
    if change == "image":
        write_image(split / "im" / "b.png", np.full((40, 60, 3), 7, np.uint8))
    elif change == "prompt":
        write_mask(split / "gt" / "b.png", filled((3, 3, 9, 9)))
    else:
        predictor.checkpoint = "1" * 64
    summary, _ = run(split, predictor)
    assert summary.by_hand == ["b"] and (split / "mask" / "b.png").read_bytes() == content
    assert summary.written == (2 if change == "model" else 0)


def test_a_corrected_mask_that_is_no_longer_requested_is_kept(split: Path) -> None:
    """Row 4c: another run with other objects removed the masks of the run before, corrections included."""
    run(split, prompts=[Prompt("a", None, (1, 1, 9, 9)), Prompt("b", None, (1, 1, 9, 9))])
    content = corrected(split / "mask" / "a.png")
    summary, _ = run(split, prompts=[Prompt("a", "x", (1, 1, 9, 9)), Prompt("a", "y", (1, 1, 9, 9))])
    assert (summary.removed, summary.by_hand) == ([], ["a"])
    assert (split / "mask" / "a.png").read_bytes() == content


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n", None])
def test_a_damaged_mask_is_never_taken_for_whole(split: Path, damage: bytes | None) -> None:
    """Row 40: after a power cut, 0-byte masks counted as kept, because the manifest vouched for them."""
    run(split)
    path = split / "mask" / "b.png"
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    summary, _ = run(split)
    assert (summary.written, summary.kept, summary.by_hand) == (1, 2, [])
    np.testing.assert_array_equal(read_mask(path), filled(BOXES["b"]))


def test_the_manifest_announces_a_mask_before_its_name_counts(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 40: after a power cut, a mask without an entry would count as drawn by hand."""
    synchronized = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        text = (split / "mask" / "manifest.jsonl").read_text() if (split / "mask" / "manifest.jsonl").exists() else ""
        synchronized.append(text)

    def checked(path: Path, mask: np.ndarray) -> None:
        assert any(f'{{"mask": "{path.stem}", "pending": true}}' in text for text in synchronized)
        write_mask(path, mask)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(mask_run, "write_mask", checked)
    assert run(split)[0].written == 3


def without_hashes(mask_dir: Path) -> None:
    """Turn a manifest into one of an earlier version."""
    path = mask_dir / "manifest.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        for kind in ("image", "gt", "mask"):
            del entry[f"{kind}_hash"]
        del entry["mask_fingerprint"]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_masks_of_an_earlier_version_are_kept(split: Path, tmp_path: Path) -> None:
    """Row 4b: an old manifest does not tell whether a mask was corrected, so that nothing of it is replaced unasked."""
    run(split)
    without_hashes(split / "mask")
    copy = copied(split, tmp_path / "copy")
    for where in (split, copy):
        summary, predictor = run(where)
        assert (summary.written, summary.kept, summary.by_hand, predictor.images) == (0, 3, [], [])
    write_mask(copy / "gt" / "a.png", filled((1, 1, 9, 9)))
    assert run(copy)[0].by_hand == ["a"]
    assert run(copy, overwrite=True)[0].written == 1
    np.testing.assert_array_equal(read_mask(copy / "mask" / "a.png"), filled((1, 1, 9, 9)))


@pytest.mark.parametrize("folder", ["im", "gt", "link", "im/../gt"])
def test_masks_never_replace_the_inputs(split: Path, folder: str) -> None:
    """Row 1: --out of the ground truths or photographs replaced them."""
    (split / "link").symlink_to(split / "gt")
    before = {path: path.read_bytes() for path in split.rglob("*.png")}
    predictor = FilledBox()
    with pytest.raises(DatasetError, match=r"the output would replace the input.*write to another folder"):
        generate_masks(split / "im", split / folder, predictor, gt=split / "gt")
    assert predictor.images == []
    assert {path: path.read_bytes() for path in split.rglob("*.png")} == before
    assert {path.name for path in split.iterdir()} == {"im", "gt", "link"}


@pytest.mark.parametrize("content", ['{"a": 1}\n', "name,box\n", '[{"mask": "a", "model": "m"}]'])
def test_a_file_of_the_manifests_name_is_not_replaced(split: Path, content: str) -> None:
    """Rows 1 and 2, a neighbor: a file that no run wrote lies where the manifest goes."""
    (split / "mask").mkdir()
    (split / "mask" / "manifest.jsonl").write_text(content)
    with pytest.raises(DatasetError, match=r"manifest.jsonl: is not a manifest"):
        run(split)
    assert (split / "mask" / "manifest.jsonl").read_text() == content


@pytest.mark.parametrize("name", ["../gt/a", "../../outside", "", "..", "/etc/x", "a\0b"])
def test_names_of_a_manifest_cannot_lead_out_of_the_folder(split: Path, name: str) -> None:
    """Row 53: the manifest is a file of other people, and masks are removed by its names."""
    run(split)
    with (split / "mask" / "manifest.jsonl").open("a") as file:
        file.write(json.dumps({"mask": name, "image": "a", "model": "vit_l"}) + "\n")
    write_mask(split.parent / "outside.png", filled((1, 1, 2, 2)))
    before = {path: path.read_bytes() for path in split.parent.rglob("*.png")}
    assert run(split)[0].kept == 3
    assert {path: path.read_bytes() for path in split.parent.rglob("*.png")} == before


def test_two_runs_in_one_folder(split: Path) -> None:
    """Row 52, its kind: the second run is refused and told what to do."""
    with lock_folder(split / "mask", "a mask run"):
        with pytest.raises(FolderInUseError, match=r"mask: is in use by a mask run \(process \d+ on"):
            run(split)
        assert read_manifest(split / "mask") == {}
    assert run(split)[0].written == 3


# --- interruptions


class Breaking(FilledBox):
    """Raises on the n-th image."""

    def __init__(self, after: int, error: type[BaseException]) -> None:
        super().__init__()
        self.after, self.error = after, error

    def set_image(self, image: np.ndarray) -> None:
        if len(self.images) == self.after:
            raise self.error("interrupted")
        super().set_image(image)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_interrupted_run_resumes(tmp_path: Path, error: type[BaseException]) -> None:
    boxes = {f"n{index:02}": (index, 1, index + 9, 20) for index in range(20)}
    split = make_split(tmp_path / "DIS-VD", boxes)
    with pytest.raises(error):
        run(split, Breaking(7, error), workers=2)
    assert leftovers(tmp_path) == []
    done = read_manifest(split / "mask")
    assert done.keys() == {path.stem for path in (split / "mask").glob("*.png")} == set(list(boxes)[:7])
    summary, _ = run(split)
    assert (summary.written, summary.kept) == (13, 7)
    for name, box in boxes.items():
        np.testing.assert_array_equal(read_mask(split / "mask" / f"{name}.png"), filled(box))


def test_killed_run_resumes(split: Path) -> None:
    """What SIGKILL may leave behind: a mask that was announced but has no entry, half a line, half a file."""
    run(split)
    mask = split / "mask"
    lines = (mask / "manifest.jsonl").read_text().splitlines(keepends=True)
    announced = [json.dumps({"mask": name, "pending": True}) + "\n" for name in "bc"]
    (mask / "manifest.jsonl").write_text(lines[0] + "".join(announced) + lines[1][:40])
    (mask / "c.png").unlink()
    (mask / ".c.png.1-2.part").write_bytes(b"half a file")
    assert read_manifest(mask).keys() == {"a"}
    summary, _ = run(split)
    assert (summary.written, summary.kept, summary.by_hand) == (2, 1, [])
    assert leftovers(split) == []
    assert read_manifest(mask).keys() == BOXES.keys()


def test_no_entry_describes_the_mask_of_another_prompt(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the new mask and its entry: a run for the old prompt must not keep the new mask."""
    old, new = [Prompt("a", None, (1, 1, 9, 9))], [Prompt("a", None, (30, 30, 39, 39))]
    run(split, prompts=old)

    def killed(path: Path, mask: np.ndarray) -> None:
        write_mask(path, mask)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(mask_run, "write_mask", killed)
        with pytest.raises(SystemExit):
            run(split, prompts=new)
    assert run(split, prompts=old)[0].written == 1
    np.testing.assert_array_equal(read_mask(split / "mask" / "a.png"), filled((1, 1, 9, 9)))


def test_failure_to_write_ends_the_run(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mask: np.ndarray) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(mask_run, "write_mask", full)
    with pytest.raises(OSError, match="No space left"):
        run(split)
    assert read_manifest(split / "mask") == {}


@pytest.mark.slow
def test_sigkill(tmp_path: Path) -> None:
    """A run that is really killed: all masks it leaves behind are complete, and the next run resumes."""
    boxes = {f"n{index:02}": (20, 20, 400 + index, 300) for index in range(30)}
    split = make_split(tmp_path / "DIS-VD", boxes, (400, 600))
    code = """
import sys, time
from sam.backends.box import BoxPredictor
from sam.generate_masks import main
fill = BoxPredictor._fill
BoxPredictor._fill = lambda *arguments: time.sleep(0.1) or fill(*arguments)  # as slow as a small network
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "--data", str(split), "--model", "box"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((split / "mask").glob("*.png"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    remaining = {path.stem: read_mask(path) for path in (split / "mask").glob("*.png")}
    assert 4 <= len(remaining) < 30
    recorded = read_manifest(split / "mask")
    assert recorded.keys() <= remaining.keys()
    summary, _ = run(split, load_predictor("box"))
    assert (summary.kept, summary.written) == (len(recorded), 30 - len(recorded))
    assert leftovers(split) == []
    for name, mask in remaining.items():
        np.testing.assert_array_equal(read_mask(split / "mask" / f"{name}.png"), mask)


@pytest.mark.parametrize("workers", [1, 3])
def test_queues_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """With a slow model, few images are read ahead; with a slow disk, few masks wait to be written."""
    split = make_split(tmp_path / "DIS-VD", {f"n{index:02}": (1, 1, 20, 20) for index in range(24)})
    lock, counts = threading.Lock(), {"read": 0, "asked": 0, "written": 0}
    ahead, waiting = [], []

    def count(what: str) -> None:
        with lock:
            counts[what] += 1
            ahead.append(counts["read"] - counts["asked"])
            waiting.append(counts["asked"] - counts["written"])

    def counted_read(path: Path) -> np.ndarray:
        count("read")
        return read_image(path)

    def slow_write(path: Path, mask: np.ndarray) -> None:
        time.sleep(0.02 if counts["written"] < 12 else 0)
        write_mask(path, mask)
        count("written")

    class Slow(FilledBox):
        def set_image(self, image: np.ndarray) -> None:
            count("asked")
            time.sleep(0 if counts["asked"] < 12 else 0.01)
            super().set_image(image)

    monkeypatch.setattr(mask_run, "read_image", counted_read)
    monkeypatch.setattr(mask_run, "write_mask", slow_write)
    assert run(split, Slow(), workers=workers)[0].written == 24
    assert max(ahead) <= 2 * workers
    assert max(waiting) <= 2 * workers + 1


# --- bad input


def test_unreadable_image_does_not_stop_the_others(split: Path) -> None:
    whole = (split / "im" / "b.png").read_bytes()
    (split / "im" / "b.png").write_bytes(whole[: len(whole) // 2])
    (split / "im" / "d.png").write_bytes(b"")
    (split / "im" / "e.png").symlink_to(split / "nothing.png")
    write_mask(split / "gt" / "d.png", filled((1, 1, 5, 5)))
    write_mask(split / "gt" / "e.png", filled((1, 1, 5, 5)))
    write_mask(split / "gt" / "c.png", np.zeros((40, 61), np.uint8))
    summary, _ = run(split)
    assert summary.written == 1 and summary.failed.keys() == {"b", "c", "d", "e"}
    assert "b.png: cannot be read as an image" in summary.failed["b"]
    assert "gt/c.png is 61 x 40 pixels, but its image c.png is 60 x 40" in summary.failed["c"]
    assert all(name in str(summary) for name in ("b.png", "c.png", "d.png", "e.png"))
    assert {path.stem for path in (split / "mask").glob("*.png")} == {"a"}
    (split / "im" / "b.png").write_bytes(whole)
    assert run(split)[0].written == 1


@pytest.mark.parametrize("kind", ["im", "gt"])
def test_a_checked_run_starts_only_if_all_files_can_be_used(split: Path, kind: str) -> None:
    damaged = split / kind / "b.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-30])
    predictor, enriched = FilledBox(), split.with_name("DIS-VD-enriched")
    with pytest.raises(DatasetError, match=f"truncated: {damaged}: "):
        run(split, predictor, check=True)
    with pytest.raises(DatasetError, match=f"truncated: {damaged}: "):
        enrich_split(split / "im", split / "gt", enriched, predictor, check=True)
    assert not predictor.images and not (split / "mask").exists() and not enriched.exists()
    damaged.write_bytes(whole)
    assert run(split, predictor, check=True)[0].written == 3
    assert enrich_split(split / "im", split / "gt", enriched, predictor, check=True).written == 3


def test_images_are_encoded_in_batches(tmp_path: Path) -> None:
    boxes = {f"n{index}": (index, 1, index + 9, 20) for index in range(7)}
    split = make_split(tmp_path / "DIS-VD", {**boxes, "empty": None})
    summary, predictor = run(split, batch=3)
    assert predictor.batches == [3, 3]  # and the last image, which is alone
    assert (summary.written, summary.empty) == (8, ["empty"]) and len(predictor.images) == 7
    for name, box in boxes.items():
        np.testing.assert_array_equal(read_mask(split / "mask" / f"{name}.png"), filled(box))
    (split / "mask" / "n1.png").unlink()
    (split / "mask" / "n6.png").unlink()
    write_image(split / "im" / "n3.png", np.zeros((40, 60, 3), np.uint8))
    summary, predictor = run(split, batch=3)
    assert (summary.written, summary.kept, predictor.batches) == (3, 5, [3])
    (split / "mask" / "n1.png").unlink()
    assert run(split)[1].batches == []  # by default, as the model prefers: one by one


def test_batches_of_images_give_the_masks_of_single_images(tmp_path: Path) -> None:
    boxes = {f"n{index}": (5 * index, 1, 5 * index + 30, 30) for index in range(4)}
    split = make_split(tmp_path / "DIS-VD", boxes)
    torch.manual_seed(3)
    predictor = BatchedSamPredictor(tiny_sam(), "vit_b")
    assert run(split, predictor, batch=1)[0].written == 4
    single = {name: read_mask(split / "mask" / f"{name}.png") for name in boxes}
    entries = read_manifest(split / "mask")
    shutil.rmtree(split / "mask")
    assert run(split, predictor, batch=3)[0].written == 4
    for name, mask in single.items():
        again = read_mask(split / "mask" / f"{name}.png")
        assert 0 < np.mean(mask > 0) < 1 and np.mean(mask != again) < 1e-3  # logits near 0 may round to either side
        assert read_manifest(split / "mask")[name]["score"] == pytest.approx(entries[name]["score"], abs=1e-4)
    assert len({mask.tobytes() for mask in single.values()}) > 1


@pytest.mark.parametrize("batch", [1, 2])
def test_image_that_the_model_cannot_process(tmp_path: Path, batch: int) -> None:
    """It is so long and thin that no row is left after SAM's resizing."""
    split = make_split(tmp_path / "DIS-VD", {"e": (1, 0, 900, 1)}, (2, 3000))
    make_split(split, {"short": (5, 6, 30, 20)})
    predictor = BatchedSamPredictor(tiny_sam(), "vit_b")
    summary, _ = run(split, predictor, batch=batch)
    assert list(summary.failed) == ["e"] and summary.failed["e"].startswith(
        f"{split / 'im' / 'e.png'}: the image of 3000 x 2 pixels is too long and thin for vit_b"
    )
    assert summary.written == 1


def test_missing_ground_truths_are_all_named(split: Path) -> None:
    (split / "gt" / "a.png").rename(split / "gt" / "A1.png")
    (split / "gt" / "c.png").unlink()
    with pytest.raises(ValueError, match=r"no ground truth for the images a, c; .*ground truths without an image: A1"):
        run(split)
    assert not (split / "mask").exists()


def test_unknown_images_are_all_named(split: Path) -> None:
    with (split / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["name", "object", "x0", "y0", "x1", "y1"],
                ["z1", "", 1, 1, 9, 9],
                ["a", "", 1, 1, 9, 9],
                ["z2", "", 1, 1, 9, 9],
            ]
        )
    with pytest.raises(PromptError, match=r"'z1' \(.*line 2\), 'z2' \(.*line 4\)"):
        run(split, prompts=split / "prompts.csv")
    assert not (split / "mask").exists()


def test_invalid_arguments(split: Path) -> None:
    for settings in ({}, {"gt": split / "gt", "prompts": []}):
        with pytest.raises(ValueError, match=r"either gt.* or prompts"):
            generate_masks(split / "im", split / "mask", FilledBox(), **settings)
    with pytest.raises(ValueError, match="unknown select 'best'"):
        run(split, select="best")


# --- enrichment, and whose file it is


def test_a_part_of_the_threshold_is_no_sample(tmp_path: Path) -> None:
    """Row 12: a component of value 128 became a sample whose ground truth is empty by the rule of all metrics."""
    gt = np.zeros((40, 60), np.uint8)
    gt[2:12, 2:12], gt[20:30, 20:30], gt[20:30, 40:50] = 255, 128, 129
    for part in enrich.split_gt(gt):
        assert binarize(part).any()
    assert len(list(enrich.split_gt(gt))) == 3


def test_a_second_split_does_not_remove_the_first(parts: Path, tmp_path: Path) -> None:
    """Row 4c: --enrich --out X of a second split into the X of a first removed the first one's samples."""
    _, _, out = do_enrich(parts)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for names in ({"other": (3, 3, 30, 20)}, {"one": (3, 3, 30, 20), "more": None}):  # also with equal names
        second = make_split(tmp_path / f"second{len(names)}", names)
        with pytest.raises(
            DatasetError, match=r"holds the enriched split of other images in .*write this one to another"
        ):
            enrich_split(second / "im", second / "gt", out, FilledBox())
        (out / mask_folder.SOURCE_FILE).unlink(missing_ok=True)  # an earlier version made it
        with pytest.raises(DatasetError, match="holds the enriched split of other images"):
            enrich_split(second / "im", second / "gt", out, FilledBox())
        (out / mask_folder.SOURCE_FILE).write_bytes(before[out / mask_folder.SOURCE_FILE])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_enriched_split_may_be_moved_and_copied(parts: Path, tmp_path: Path) -> None:
    """Row 4b and 4c: content is identity, with and without the links."""
    _, _, out = do_enrich(parts)
    (tmp_path / "new").mkdir()
    moved = copied(parts, tmp_path / "new" / "train")
    elsewhere = copied(out, tmp_path / "new" / "x")  # the links have become files
    for split in (parts, out):
        shutil.rmtree(split)
    for _ in range(2):
        predictor = FilledBox()
        summary = enrich_split(moved / "im", moved / "gt", elsewhere, predictor)
        assert (summary.written, summary.kept, summary.by_hand, predictor.images) == (0, 4, [], [])


def test_a_corrected_sample_is_kept(parts: Path) -> None:
    """Row 4b: a ground truth or a mask of an enriched split, corrected by hand, before its source changes."""
    _, _, out = do_enrich(parts)
    gt, mask = out / "gt" / "two_comp_1.png", out / "mask" / "two_comp_2.png"
    write_mask(gt, filled((1, 1, 9, 9), (80, 100)))
    write_mask(mask, filled((2, 2, 9, 9), (80, 100)))
    before = gt.read_bytes(), mask.read_bytes()
    source = read_mask(parts / "gt" / "two.png")
    for change in (source | filled((0, 70, 5, 75), (80, 100)), filled((0, 0, 50, 50), (80, 100))):
        write_mask(parts / "gt" / "two.png", change)
        summary, _, _ = do_enrich(parts)
        assert {"two_comp_1", "two_comp_2"} <= set(summary.by_hand) and "--overwrite" in str(summary)
        assert (gt.read_bytes(), mask.read_bytes()) == before


def test_changed_samples_are_noticed_where_the_source_is_as_it_was(parts: Path) -> None:
    """They were called kept, an empty file included, and --overwrite did not replace them."""
    _, _, out = do_enrich(parts)
    edited_gt, emptied = out / "gt" / "two_comp_1.png", out / "gt" / "two_comp_2.png"
    before = edited_gt.read_bytes(), emptied.read_bytes()
    write_mask(edited_gt, filled((1, 1, 9, 9), (80, 100)))
    emptied.write_bytes(b"")
    content = edited_gt.read_bytes()
    for _ in range(2):
        summary, _, _ = do_enrich(parts)
        assert summary.by_hand == ["two_comp_1"] and edited_gt.read_bytes() == content
        assert emptied.read_bytes() == before[1]
    summary = enrich_split(parts / "im", parts / "gt", out, FilledBox(), overwrite=True)
    assert summary.by_hand == [] and (edited_gt.read_bytes(), emptied.read_bytes()) == before


def test_files_of_other_forms_beside_a_sample_are_kept(parts: Path) -> None:
    """They were deleted without a word."""
    _, _, out = do_enrich(parts)
    theirs = out / "mask" / "two_comp_1.jpg", out / "gt" / "two_comp_1.tif"
    for path in theirs:
        write_image(path.with_suffix(".png.png"), np.zeros((80, 100, 3), np.uint8))
        path.with_suffix(".png.png").rename(path)
    summary, _, _ = do_enrich(parts)
    assert all(path.is_file() for path in theirs) and summary.by_hand == ["two_comp_1"]


def edited(path: Path) -> bytes:
    """Put an image of one's own in place of a link or copy; return the content."""
    path.unlink()
    write_image(path, np.full((80, 100, 3), 200, np.uint8))
    return path.read_bytes()


@pytest.mark.parametrize("links", [True, False])
def test_an_edited_image_of_a_sample_is_kept(parts: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was replaced by a link without a word."""
    if not links:
        monkeypatch.setattr(Path, "symlink_to", no_link)
        monkeypatch.setattr(Path, "hardlink_to", no_link)
    _, _, out = do_enrich(parts)
    kept, image = out / "im" / "two_comp_1.png", parts / "im" / "two.png"
    content = edited(kept)
    for _ in range(2):
        summary, _, _ = do_enrich(parts)
        assert (summary.by_hand, summary.written, summary.kept) == (["two_comp_1"], 0, 3)
        assert kept.read_bytes() == content and files(out) == ENRICHED
    write_image(image, np.full((80, 100, 3), 9, np.uint8))
    assert do_enrich(parts)[0].by_hand == ["two_comp_1"]
    assert kept.read_bytes() == content
    assert (out / "im" / "two_comp_2.png").read_bytes() == image.read_bytes()  # a copy that is out of date is replaced
    write_mask(parts / "gt" / "two.png", filled((5, 5, 44, 24), (80, 100)))  # the sample is no longer requested
    summary, _, _ = do_enrich(parts)
    assert (summary.by_hand, summary.removed) == (["two_comp_1"], ["two_comp_2"])
    assert kept.read_bytes() == content


def test_an_edited_image_of_a_sample_is_replaced_on_request(parts: Path) -> None:
    _, _, out = do_enrich(parts)
    edited(out / "im" / "two_comp_1.png")
    summary = enrich_split(parts / "im", parts / "gt", out, FilledBox(), overwrite=True)
    assert summary.by_hand == [] and (out / "im" / "two_comp_1.png").samefile(parts / "im" / "two.png")


def test_an_image_whose_samples_would_have_too_long_names_fails_alone(parts: Path) -> None:
    for kind in ("im", "gt"):
        shutil.copy(parts / kind / "one.png", parts / kind / f"{'x' * 245}.png")
    for _ in range(2):
        summary, _, out = do_enrich(parts)
        assert files(out) == ENRICHED
        assert list(summary.failed) == ["x" * 245] and "1 bytes too long" in summary.failed["x" * 245]


def test_a_lost_image_does_not_stop_a_moved_enriched_split(parts: Path) -> None:
    _, _, out = do_enrich(parts)
    (out / mask_folder.SOURCE_FILE).unlink()
    (parts / "im" / "one.png").unlink()
    (parts / "im" / "one.png").symlink_to("nothing.png")
    assert list(do_enrich(parts)[0].failed) == ["one"]


def test_an_enriched_split_does_not_replace_files_of_others(parts: Path) -> None:
    """Row 1 and 4c: a folder that this project did not write."""
    theirs = parts.with_name("DIS-TR-enriched") / "gt" / "two_comp_1.png"
    write_mask(theirs, filled((1, 1, 9, 9)))
    before = theirs.read_bytes()
    with pytest.raises(DatasetError, match=r"two_comp_1.png: exists, and the enriched split would replace it"):
        do_enrich(parts)
    assert theirs.read_bytes() == before


def from_hex(rows: Sequence[str]) -> np.ndarray:
    """Return an image whose values are 17 times the hexadecimal digits."""
    return np.array([[int(digit, 16) * 17 for digit in row] for row in rows], np.uint8)


def test_parts_touch_at_corners_and_keep_their_values() -> None:
    gt = from_hex(["f00003", "0f003f", "0000ff", "900000"])  # 9 is 153, 3 is 51 and no part of anything
    whole, *parts = enrich.split_gt(gt)
    np.testing.assert_array_equal(whole, gt)
    expected = [
        from_hex(["f00000", "0f0000", "000000", "000000"]),  # a diagonal: one part
        from_hex(["000000", "00000f", "0000ff", "000000"]),
        from_hex(["000000", "000000", "000000", "900000"]),
    ]
    assert {part.tobytes() for part in parts} == {part.tobytes() for part in expected}


@pytest.mark.parametrize(("area", "count"), [(39, 1), (40, 3), (41, 3)])
def test_parts_below_four_thousandths_are_dropped(area: int, count: int) -> None:
    gt = np.zeros((100, 100), np.uint8)
    gt[10:60, 10:60] = 255
    gt.reshape(-1)[8000 : 8000 + area] = 129  # along one row: 0.39 %, 0.4 % and 0.41 % of the image
    assert len(list(enrich.split_gt(gt))) == count


def test_single_part_or_none_gives_only_the_whole() -> None:
    for gt in (np.zeros((20, 20), np.uint8), filled((1, 1, 15, 15))):
        (whole,) = enrich.split_gt(gt)
        np.testing.assert_array_equal(whole, gt)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A split with an image of two parts and a speck, and an image of a single part."""
    split = make_split(tmp_path / "DIS-TR", {"one": (5, 6, 30, 20), "two": None}, (80, 100))
    gt = np.zeros((80, 100), np.uint8)
    gt[5:25, 5:45], gt[50:75, 60:90], gt[0, 99] = 255, 200, 255
    write_mask(split / "gt" / "two.png", gt)
    return split


def do_enrich(split: Path, predictor: FilledBox | None = None) -> tuple[Summary, FilledBox, Path]:
    predictor, out = predictor or FilledBox(), split.with_name("DIS-TR-enriched")
    return enrich_split(split / "im", split / "gt", out, predictor), predictor, out


def test_enriched_split(parts: Path) -> None:
    summary, predictor, out = do_enrich(parts)
    assert files(out) == ENRICHED
    assert summary.written == 4
    assert predictor.requests == [(1, "score"), (3, "score")]  # each image once, with all its prompts
    gt = read_mask(parts / "gt" / "two.png")
    np.testing.assert_array_equal(read_mask(out / "gt" / "two_comp_0.png"), gt)
    found = {int(read_mask(out / "gt" / f"two_comp_{n}.png").max()): n for n in (1, 2)}
    for value, (x0, y0, x1, y1) in {255: (5, 5, 44, 24), 200: (60, 50, 89, 74)}.items():
        name = f"two_comp_{found[value]}"
        expected = np.zeros_like(gt)
        expected[y0 : y1 + 1, x0 : x1 + 1] = value
        np.testing.assert_array_equal(read_mask(out / "gt" / f"{name}.png"), expected)
        np.testing.assert_array_equal(read_mask(out / "mask" / f"{name}.png"), filled((x0, y0, x1, y1), (80, 100)))
        assert read_manifest(out / "mask")[name]["box"] == [x0, y0, x1, y1]
    assert read_manifest(out / "mask")["two_comp_0"]["box"] == [5, 0, 99, 74]
    for name in ("one_comp_0", "two_comp_0", "two_comp_1"):
        link = out / "im" / f"{name}.png"
        assert link.is_symlink() and not link.readlink().is_absolute()
        np.testing.assert_array_equal(read_image(link), read_image(parts / "im" / f"{name[:3]}.png"))


def test_enriched_links_move_with_the_data(parts: Path, tmp_path: Path) -> None:
    do_enrich(parts)
    (tmp_path / "moved").mkdir()
    for folder in ("DIS-TR", "DIS-TR-enriched"):
        (tmp_path / folder).rename(tmp_path / "moved" / folder)
    assert read_image(tmp_path / "moved/DIS-TR-enriched/im/two_comp_1.png").shape == (80, 100, 3)


def test_enriched_split_resumes(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, out = do_enrich(parts)
    before = {path: path.lstat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(mask_run, "read_mask", None)  # a second run reads nothing
        summary, predictor, _ = do_enrich(parts)
    assert (summary.written, summary.kept, predictor.images) == (0, 4, [])
    assert {path: path.lstat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    for lost in ("gt/two_comp_1.png", "im/one_comp_0.png", "mask/two_comp_2.png"):
        (out / lost).unlink()
    summary, _, _ = do_enrich(parts)
    assert files(out) == ENRICHED and summary.written == 1


def test_enriched_split_follows_its_source(parts: Path) -> None:
    _, _, out = do_enrich(parts)
    gt = read_mask(parts / "gt" / "two.png")
    gt[50:75, 60:90] = 0
    write_mask(parts / "gt" / "two.png", gt)
    write_image(out / "im" / "notes.png", np.zeros((4, 4, 3), np.uint8))  # not named like a sample, so it is kept
    summary, _, _ = do_enrich(parts)
    assert files(out) == samples("one_comp_0", "two_comp_0") | {"im/notes.png"}
    assert summary.removed == ["two_comp_1", "two_comp_2"]
    assert read_manifest(out / "mask").keys() == {"one_comp_0", "two_comp_0"}

    for kind in ("im", "gt"):  # an image is removed, another changes its extension
        (parts / kind / "one.png").unlink()
    image = parts / "im" / "two.png"
    write_image(parts / "im" / "two.jpg", read_image(image))
    image.unlink()
    summary, _, _ = do_enrich(parts)
    assert summary.removed == ["one_comp_0"]
    assert files(out) == {"im/notes.png", "im/two_comp_0.jpg", "gt/two_comp_0.png", "mask/two_comp_0.png"}


def test_enriched_samples_of_an_unreadable_image_are_kept(parts: Path) -> None:
    _, _, out = do_enrich(parts)
    (parts / "im" / "two.png").write_bytes(b"broken")
    summary, _, _ = do_enrich(parts)
    assert summary.failed.keys() == {"two"} and summary.removed == []
    assert files(out) == ENRICHED


def no_link(*_: object) -> None:
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("without", [("symlink_to",), ("symlink_to", "hardlink_to")])
def test_file_systems_without_links(parts: Path, monkeypatch: pytest.MonkeyPatch, without: Sequence[str]) -> None:
    for method in without:
        monkeypatch.setattr(Path, method, no_link)
    _, _, out = do_enrich(parts)
    image, link = parts / "im" / "two.png", out / "im" / "two_comp_1.png"
    assert not link.is_symlink() and link.samefile(image) == (len(without) == 1)
    assert link.read_bytes() == image.read_bytes()
    before = link.stat().st_mtime_ns
    assert do_enrich(parts)[0].written == 0
    assert link.stat().st_mtime_ns == before
    image.write_bytes((parts / "im" / "one.png").read_bytes())
    do_enrich(parts)
    assert link.read_bytes() == image.read_bytes()
    assert leftovers(out) == []


def test_enriched_split_must_not_contain_the_images(parts: Path) -> None:
    with pytest.raises(DatasetError, match="write the enriched split to another folder"):
        enrich_split(parts / "im", parts / "gt", parts, FilledBox())
