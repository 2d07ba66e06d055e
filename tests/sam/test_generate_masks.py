"""Masks on disk: what is written, what is kept, what an interruption leaves, and what bad input does."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sam_backends import own_predictor, save_sam, tiny_sam

from IS_Net.errors import ImageError, PromptError
from IS_Net.images import read_image, read_mask, write_image, write_mask
from sam import backends, enrich, generate_masks
from sam.backends import SamModel, load_predictor
from sam.generate_masks import Summary, enrich_split, list_images, main
from sam.generate_masks import generate_masks as generate
from sam.prompts import Prompt, read_manifest


class FilledBox:
    """A predictor whose answers are known: the filled box, or a dot at each point of label 1."""

    name, checkpoint, selects = "vit_l", "0" * 64, True

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.asked: list[tuple[int, str | None]] = []

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def predict_prompts(self, prompts: Sequence[Prompt], select: str = "score") -> Iterator[tuple[np.ndarray, float]]:
        self.asked.append((len(prompts), select))
        for prompt in prompts:
            assert not prompt.empty
            mask = np.zeros(self.images[-1].shape[:2], bool)
            if prompt.box:
                x0, y0, x1, y1 = map(int, prompt.box)
                mask[y0 : y1 + 1, x0 : x1 + 1] = True
            for (x, y), label in zip(prompt.points or (), prompt.labels or (), strict=True):
                mask[int(y), int(x)] = label
            yield mask, 0.25


def make_split(
    folder: Path, boxes: dict[str, tuple[int, int, int, int] | None], size: tuple[int, int] = (40, 60)
) -> Path:
    """Write a split whose ground truths are filled boxes, with a hole so that they are not what FilledBox answers."""
    rng = np.random.default_rng(0)
    for name, box in boxes.items():
        write_image(folder / "im" / f"{name}.png", rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        gt = np.zeros(size, np.uint8)
        if box:
            x0, y0, x1, y1 = box
            gt[y0 : y1 + 1, x0 : x1 + 1] = 255
            gt[(y0 + y1) // 2, (x0 + x1) // 2] = 0
        write_mask(folder / "gt" / f"{name}.png", gt)
    return folder


def filled(box: tuple[int, int, int, int] | None, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    if box:
        mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    return mask


BOXES = {"a": (5, 6, 30, 20), "b": (0, 0, 59, 39), "c": (10, 10, 20, 39)}


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return make_split(tmp_path / "DIS-VD", BOXES)


def run(split: Path, predictor: FilledBox | None = None, **settings: object) -> tuple[Summary, FilledBox]:
    predictor = predictor or FilledBox()
    settings = settings if "prompts" in settings else {"gt": split / "gt", **settings}
    return generate(split / "im", split / "mask", predictor, **settings), predictor


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


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


def test_prompts_of_ones_own(split: Path) -> None:
    prompts = {
        "a.png": [{"object": "left", "box": [1, 2, 9, 8]}, {"object": "right", "box": [20, 2, 99, 8]}],
        "c": [{"object": "spot", "points": [[7, 9], [50, 30], [8, 9]], "labels": [1, 1, 0]}],
    }
    (split / "prompts.json").write_text(json.dumps(prompts))
    summary, predictor = run(split, prompts=split / "prompts.json")
    assert summary.written == 3
    assert predictor.asked == [(2, "score"), (1, "score")] and len(predictor.images) == 2
    found = {path.stem: read_mask(path) for path in (split / "mask").glob("*.png")}
    assert found.keys() == {"a_left", "a_right", "c"}
    np.testing.assert_array_equal(found["a_left"], filled((1, 2, 9, 8)))
    np.testing.assert_array_equal(found["a_right"], filled((20, 2, 59, 8)))
    assert sorted(zip(*np.nonzero(found["c"]), strict=True)) == [(9, 7), (30, 50)]
    entry = read_manifest(split / "mask")["c"]
    assert (entry["box"], entry["points"], entry["labels"]) == (None, [[7, 9], [50, 30], [8, 9]], [1, 1, 0])
    assert read_manifest(split / "mask")["a_right"]["object"] == "right"


def test_an_empty_ground_truth_gives_an_empty_mask_without_asking(tmp_path: Path) -> None:
    split = make_split(tmp_path / "DIS-VD", {"a": None, "b": (3, 3, 9, 9)})
    for _ in range(2):
        summary, predictor = run(split)
        assert summary.empty == ["a"] and "ground truth is empty: a" in str(summary)
        assert not read_mask(split / "mask" / "a.png").any()
        assert read_manifest(split / "mask")["a"]["box"] is None
    assert predictor.images == [] and summary.kept == 2


def test_ground_truth_of_zeros_and_ones(tmp_path: Path) -> None:
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
def test_kinds_of_images(tmp_path: Path, kind: str) -> None:
    split = make_split(tmp_path / "DIS-VD", {"a": (5, 6, 30, 20)})
    (split / "im" / "a.png").unlink()
    save_variant(split / "im" / ("a.tif" if kind == "CMYK" else "a.png"), kind)
    summary, predictor = run(split)
    assert summary.written == 1
    assert predictor.images[0].shape == (40, 60, 3) and predictor.images[0].dtype == np.uint8
    np.testing.assert_array_equal(read_mask(split / "mask" / "a.png"), filled((5, 6, 30, 20)))


def test_boxes_speak_of_the_upright_image(tmp_path: Path) -> None:
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
    return sum(count for count, _ in predictor.asked)


def test_a_second_run_has_nothing_to_do(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(split)
    before = {path: path.stat().st_mtime_ns for path in (split / "mask").iterdir()}

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was read, and nothing was to be done")

    monkeypatch.setattr(generate_masks, "read_image", fail)
    monkeypatch.setattr(generate_masks, "read_mask", fail)
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

    (split / "mask" / "c_y.png").unlink()  # a mask that is gone
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


def test_changed_ground_truth(split: Path) -> None:
    run(split)
    write_mask(split / "gt" / "a.png", filled((5, 6, 31, 20)))
    assert made(run(split)[1]) == 1
    assert read_manifest(split / "mask")["a"]["box"] == [5, 6, 31, 20]
    write_mask(split / "gt" / "b.png", filled(BOXES["b"]))  # the hole is gone, the box is the same
    summary, predictor = run(split)
    assert (summary.kept, predictor.images) == (3, [])


def test_masks_no_longer_asked_for_are_removed(split: Path) -> None:
    (split / "mask").mkdir()
    write_mask(split / "mask" / "a_mine.png", filled((1, 1, 2, 2)))  # not made by a run, and so not touched by one
    run(split, prompts=[Prompt("a", None, (1, 1, 9, 9)), Prompt("b", None, (1, 1, 9, 9))])
    summary, _ = run(split, prompts=[Prompt("a", "x", (1, 1, 9, 9)), Prompt("a", "y", (1, 1, 9, 9))])
    assert summary.removed == ["a"]
    assert {path.stem for path in (split / "mask").glob("*.png")} == {"a_mine", "a_x", "a_y", "b"}
    assert read_manifest(split / "mask").keys() == {"a_x", "a_y", "b"}


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
def test_an_interrupted_run_goes_on(tmp_path: Path, error: type[BaseException]) -> None:
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


def test_a_killed_run_goes_on(split: Path) -> None:
    """What SIGKILL may leave: half a line, a mask without line, half a file."""
    run(split)
    mask = split / "mask"
    lines = (mask / "manifest.jsonl").read_text().splitlines(keepends=True)
    (mask / "manifest.jsonl").write_text(lines[0] + lines[1][:40])
    (mask / ".c.png.1-2.part").write_bytes(b"half a file")
    summary, _ = run(split)
    assert (summary.written, summary.kept) == (2, 1)
    assert leftovers(split) == []
    assert read_manifest(mask).keys() == BOXES.keys()


def test_no_entry_vouches_for_a_mask_it_does_not_describe(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the new mask was written and before its line: asking for the old one must not take the new one."""
    old, new = [Prompt("a", None, (1, 1, 9, 9))], [Prompt("a", None, (30, 30, 39, 39))]
    run(split, prompts=old)

    def killed(path: Path, mask: np.ndarray) -> None:
        write_mask(path, mask)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(generate_masks, "write_mask", killed)
        with pytest.raises(SystemExit):
            run(split, prompts=new)
    assert run(split, prompts=old)[0].written == 1
    np.testing.assert_array_equal(read_mask(split / "mask" / "a.png"), filled((1, 1, 9, 9)))


def test_a_failure_to_write_ends_the_run(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mask: np.ndarray) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(generate_masks, "write_mask", full)
    with pytest.raises(OSError, match="No space left"):
        run(split)
    assert read_manifest(split / "mask") == {}


@pytest.mark.slow
def test_sigkill(tmp_path: Path) -> None:
    """A real kill, in the middle of a real run; whatever is there afterwards is whole, and the next run goes on."""
    boxes = {f"n{index:02}": (20, 20, 400 + index, 300) for index in range(30)}
    split = make_split(tmp_path / "DIS-VD", boxes, (400, 600))
    command = [sys.executable, "-m", "sam.generate_masks", "--data", str(split), "--model", "grabcut"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((split / "mask").glob("*.png"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    standing = {path.stem: read_mask(path) for path in (split / "mask").glob("*.png")}
    assert 4 <= len(standing) < 30
    vouched = read_manifest(split / "mask")
    assert vouched.keys() <= standing.keys()
    summary, _ = run(split, load_predictor("grabcut"))
    assert (summary.kept, summary.written) == (len(vouched), 30 - len(vouched))
    assert leftovers(split) == []
    for name, mask in standing.items():
        np.testing.assert_array_equal(read_mask(split / "mask" / f"{name}.png"), mask)


@pytest.mark.parametrize("workers", [1, 3])
def test_images_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """With a slow model, only so many images are read ahead; with slow disks, only so many masks wait."""
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

    monkeypatch.setattr(generate_masks, "read_image", counted_read)
    monkeypatch.setattr(generate_masks, "write_mask", slow_write)
    assert run(split, Slow(), workers=workers)[0].written == 24
    assert max(ahead) <= 2 * workers
    assert max(waiting) <= 2 * workers + 1


# --- bad input


def test_an_unreadable_image_does_not_stop_the_others(split: Path) -> None:
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
    assert "61 x 40 pixels, but its image c.png has 60 x 40" in summary.failed["c"]
    assert all(name in str(summary) for name in ("b.png", "c.png", "d.png", "e.png"))
    assert {path.stem for path in (split / "mask").glob("*.png")} == {"a"}
    (split / "im" / "b.png").write_bytes(whole)
    assert run(split)[0].written == 1


def test_an_image_that_the_model_cannot_take(tmp_path: Path) -> None:
    """So long and thin that SAM's resizing leaves no row of it."""
    split = make_split(tmp_path / "DIS-VD", {"long": (1, 0, 900, 1)}, (2, 3000))
    make_split(split, {"short": (5, 6, 30, 20)})
    predictor = backends.BatchedSamPredictor(tiny_sam(), "vit_b")
    summary, _ = run(split, predictor)
    assert summary.failed.keys() == {"long"} and "long.png" in summary.failed["long"]
    assert summary.written == 1


def test_missing_ground_truths_are_all_named(split: Path) -> None:
    (split / "gt" / "a.png").rename(split / "gt" / "A1.png")
    (split / "gt" / "c.png").unlink()
    with pytest.raises(ValueError, match=r"no ground truth for the images a, c; .*ground truths without image: A1"):
        run(split)
    assert not (split / "mask").exists()


def test_a_ground_truth_without_image_is_told_once(split: Path, caplog: pytest.LogCaptureFixture) -> None:
    (split / "im" / "b.png").unlink()
    assert main(["--data", str(split), "--model", "grabcut"]) == 0
    assert files(split / "mask") == {"a.png", "c.png"}
    assert caplog.text.count("no image for the ground truths b; left out") == 1


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


def test_list_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        list_images(tmp_path / "none")
    with pytest.raises(ValueError, match="found no image"):
        list_images(tmp_path)
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list(list_images(tmp_path).values()) == [tmp_path / "a.jpg", tmp_path / "b.PNG"]
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"found a.jpg and a.png; names must differ"):
        list_images(tmp_path)


def test_gt_or_prompts_and_a_known_select(split: Path) -> None:
    for settings in ({}, {"gt": split / "gt", "prompts": []}):
        with pytest.raises(ValueError, match=r"either gt.* or prompts"):
            generate(split / "im", split / "mask", FilledBox(), **settings)
    with pytest.raises(ValueError, match="unknown select 'best'"):
        run(split, select="best")


# --- enrichment


def labeled(rows: Sequence[str]) -> np.ndarray:
    return np.array([[int(digit, 16) * 17 for digit in row] for row in rows], np.uint8)


def test_parts_touch_at_corners_and_keep_their_values() -> None:
    gt = labeled(["f00003", "0f003f", "0000ff", "900000"])  # 9 is 153, 3 is 51 and no part of anything
    whole, *parts = enrich.split_gt(gt)
    np.testing.assert_array_equal(whole, gt)
    expected = [
        labeled(["f00000", "0f0000", "000000", "000000"]),  # a diagonal: one part
        labeled(["000000", "00000f", "0000ff", "000000"]),
        labeled(["000000", "000000", "000000", "900000"]),
    ]
    assert {part.tobytes() for part in parts} == {part.tobytes() for part in expected}


@pytest.mark.parametrize(("area", "count"), [(39, 1), (40, 3), (41, 3)])
def test_parts_under_four_thousandths_are_dropped(area: int, count: int) -> None:
    gt = np.zeros((100, 100), np.uint8)
    gt[10:60, 10:60] = 255
    gt.reshape(-1)[8000 : 8000 + area] = 128  # along one row: 0.39 %, 0.4 % and 0.41 % of the image
    assert len(list(enrich.split_gt(gt))) == count


def test_one_part_or_none_leaves_the_whole() -> None:
    for gt in (np.zeros((20, 20), np.uint8), filled((1, 1, 15, 15))):
        (whole,) = enrich.split_gt(gt)
        np.testing.assert_array_equal(whole, gt)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A split of one image with two parts and a speck, and one with a single part."""
    split = make_split(tmp_path / "DIS-TR", {"one": (5, 6, 30, 20), "two": None}, (80, 100))
    gt = np.zeros((80, 100), np.uint8)
    gt[5:25, 5:45], gt[50:75, 60:90], gt[0, 99] = 255, 200, 255
    write_mask(split / "gt" / "two.png", gt)
    return split


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".png", ".jpg")}


def samples(*names: str) -> set[str]:
    return {f"{kind}/{name}.png" for name in names for kind in ("im", "gt", "mask")}


ENRICHED = samples("one_comp_0", "two_comp_0", "two_comp_1", "two_comp_2")


def do_enrich(split: Path, predictor: FilledBox | None = None) -> tuple[Summary, FilledBox, Path]:
    predictor, out = predictor or FilledBox(), split.with_name("DIS-TR-enriched")
    return enrich_split(split / "im", split / "gt", out, predictor), predictor, out


def test_enriched_split(parts: Path) -> None:
    summary, predictor, out = do_enrich(parts)
    assert files(out) == ENRICHED
    assert summary.written == 4
    assert predictor.asked == [(1, "score"), (3, "score")]  # each image once, with all of its prompts
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


def test_enriched_split_goes_on(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, out = do_enrich(parts)
    before = {path: path.lstat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(generate_masks, "read_mask", None)  # a second run reads nothing
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
    write_image(out / "im" / "notes.png", np.zeros((4, 4, 3), np.uint8))  # not a sample's name: not ours
    summary, _, _ = do_enrich(parts)
    assert files(out) == samples("one_comp_0", "two_comp_0") | {"im/notes.png"}
    assert summary.removed == ["two_comp_1", "two_comp_2"]
    assert read_manifest(out / "mask").keys() == {"one_comp_0", "two_comp_0"}

    for kind in ("im", "gt"):  # an image goes, another changes its ending
        (parts / kind / "one.png").unlink()
    image = parts / "im" / "two.png"
    write_image(parts / "im" / "two.jpg", read_image(image))
    image.unlink()
    summary, _, _ = do_enrich(parts)
    assert summary.removed == ["one_comp_0"]
    assert files(out) == {"im/notes.png", "im/two_comp_0.jpg", "gt/two_comp_0.png", "mask/two_comp_0.png"}


def test_enriched_samples_of_an_unreadable_image_stay(parts: Path) -> None:
    _, _, out = do_enrich(parts)
    (parts / "im" / "two.png").write_bytes(b"broken")
    summary, _, _ = do_enrich(parts)
    assert summary.failed.keys() == {"two"} and summary.removed == []
    assert files(out) == ENRICHED


@pytest.mark.parametrize("without", [("symlink_to",), ("symlink_to", "hardlink_to")])
def test_file_systems_without_links(parts: Path, monkeypatch: pytest.MonkeyPatch, without: Sequence[str]) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    for method in without:
        monkeypatch.setattr(Path, method, refuse)
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


def test_enriched_split_needs_a_folder_of_its_own(parts: Path) -> None:
    with pytest.raises(ValueError, match="needs a folder of its own"):
        enrich_split(parts / "im", parts / "gt", parts, FilledBox())


# --- the command line, with a real SAM


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a real SAM of small dimensions, which stands for vit_b."""
    monkeypatch.setitem(backends.SAM_MODELS, "vit_b", SamModel("sam_vit_b_01ec64.pth", tiny_sam))
    monkeypatch.setattr(backends, "CHECKPOINT_FOLDERS", (tmp_path / "weights",))
    (tmp_path / "weights").mkdir()
    return save_sam(tmp_path / "weights" / "sam_vit_b_01ec64.pth")


def test_sam_end_to_end(split: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--data", str(split), "--model", "vit_b", "--device", "cpu", "--workers", "1"]) == 0
    assert "3 masks written, 0 kept" in capsys.readouterr().out
    sam = load_predictor("vit_b", checkpoint, "cpu").model
    manifest = read_manifest(split / "mask")
    for name, box in BOXES.items():
        own = own_predictor(sam, read_image(split / "im" / f"{name}.png"))
        masks, scores, _ = own.predict(box=np.array(box), multimask_output=True)
        expected = masks[scores.argmax()]
        assert (read_mask(split / "mask" / f"{name}.png") != expected * 255).mean() < 1e-3
        assert manifest[name]["score"] == pytest.approx(scores.max(), abs=1e-5)
    assert main(["--data", str(split), "--model", "vit_b", "--device", "cpu"]) == 0
    assert "0 masks written, 3 kept" in capsys.readouterr().out
    save_sam(checkpoint, seed=1)
    assert main(["--data", str(split), "--model", "vit_b", "--device", "cpu", "--select", "first"]) == 0
    assert "3 masks written, 0 kept" in capsys.readouterr().out
    assert {entry["select"] for entry in read_manifest(split / "mask").values()} == {"first"}


def test_sam_encodes_each_image_of_an_enriched_split_once(parts: Path, checkpoint: Path) -> None:
    predictor = load_predictor("vit_b", device="cpu")
    calls = []
    predictor.model.image_encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    predictor.model.mask_decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    do_enrich(parts, predictor)
    assert calls == ["encoder", "decoder"] * 2


def test_command_line_with_prompts(split: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "p.csv").write_text("name,object,x0,y0,x1,y1\na.png,,3,3,40,30\n")
    out = tmp_path / "masks"
    options = [
        "--images",
        str(split / "im"),
        "--prompts",
        str(tmp_path / "p.csv"),
        "--out",
        str(out),
        "--model",
        "grabcut",
    ]
    assert main(options) == 0
    assert files(out) == {"a.png"} and not (split / "mask").exists()
    (split / "im" / "a.png").write_bytes(b"broken")
    assert main(options) == 1
    assert "failed" in (said := capsys.readouterr().out) and "a.png: cannot be read" in said


def test_command_line_enriches_several_splits(parts: Path, split: Path, tmp_path: Path) -> None:
    assert main(["--data", str(parts), str(split), "--enrich", "--model", "grabcut"]) == 0
    assert files(tmp_path / "DIS-TR-enriched") == ENRICHED
    assert files(tmp_path / "DIS-VD-enriched") == samples("a_comp_0", "b_comp_0", "c_comp_0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere/im: the folder does not exist"),
        (["--data", "{split}"], "found no sam_vit_l_0b3195.pth"),
        (["--data", "{split}", "--checkpoint", "no.pth"], "no.pth does not exist"),
        (
            ["--data", "{split}", "--prompts", "no.json", "--model", "grabcut"],
            "no.json: the prompt file does not exist",
        ),
        (
            ["--images", "{split}/im", "--out", "o", "--gt", "no", "--model", "grabcut"],
            "no such folder of ground truths",
        ),
        (["--data", "{split}", "--model", "vit_b", "--device", "cuda:99"], "cuda:99"),
    ],
)
def test_command_line_says_what_is_missing(
    split: Path, checkpoint: Path, options: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([option.format(split=split) for option in options]) == 2
    assert message in capsys.readouterr().err
    assert not (split / "mask").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data", "d", "--images", "i"],
        ["--data", "d", "--out", "o"],
        ["--images", "i", "--prompts", "p"],
        ["--images", "i", "--out", "o"],
        ["--images", "i", "--out", "o", "--gt", "g", "--prompts", "p"],
        ["--data", "d", "e", "--prompts", "p"],
        ["--data", "d", "--prompts", "p", "--enrich"],
        ["--data", "d", "--workers", "0"],
        ["--data", "d", "--workers", "x"],
        ["--data", "d", "--model", "vit_x"],
    ],
)
def test_command_line_that_makes_no_sense(options: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(options)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_command_line_interrupted(split: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(generate_masks, "load_predictor", lambda *_: Breaking(1, KeyboardInterrupt))
    assert main(["--data", str(split)]) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert files(split / "mask") == {"a.png"}
    with pytest.raises(ImageError):
        read_mask(split / "mask" / "b.png")
