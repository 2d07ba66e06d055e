"""Masks in shards: several workers in one folder, one manifest, and nothing that is lost or made twice."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mask_splits import ENRICHED, FilledBox, files, make_split

from IS_Net.images import write_mask
from IS_Net.manifest import MANIFEST, read_manifest
from IS_Net.shards import PARTS, Shard, read_rows
from sam import generate_masks as module
from sam.generate_masks import main, plan_work

NAMES = [f"{number:02d}" for number in range(9)]
OWN = ("image_fingerprint", "gt_fingerprint", "mask_fingerprint", "part_fingerprint")


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Return a split of nine images."""
    return make_split(tmp_path / "split", {name: (5, 6, 20 + int(name), 25) for name in NAMES})


@pytest.fixture(autouse=True)
def predictors(monkeypatch: pytest.MonkeyPatch) -> list[FilledBox]:
    """Put predictors whose masks are known in place of SAM; return those that were loaded."""
    loaded: list[FilledBox] = []

    def load(*_: object) -> FilledBox:
        loaded.append(FilledBox())
        return loaded[-1]

    monkeypatch.setattr(module, "_load_model", load)
    return loaded


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def entries(folder: Path) -> dict[str, dict]:
    """Return the manifest without what depends on the time."""
    return {name: {k: v for k, v in e.items() if k not in OWN} for name, e in read_manifest(folder).items()}


def statuses(folder: Path) -> dict[str, str]:
    return {name: row["status"] for name, row in read_rows(folder).items()}


def shard(split: Path, text: str, *options: str) -> int:
    return main(["--data", str(split), "--shard", text, *options])


def test_shards_at_the_same_time_give_what_one_process_gives(split: Path, tmp_path: Path):
    other = shutil.copytree(split, tmp_path / "other")
    assert main(["--data", str(other)]) == 0
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda index: shard(split, f"{index}/3"), range(3))) == [0, 0, 0]
    assert masks(split / "mask") == masks(other / "mask") and len(masks(other / "mask")) == 9
    assert entries(split / "mask") == entries(other / "mask")
    assert statuses(split / "mask") == dict.fromkeys(NAMES, "done")
    assert not (split / "mask" / PARTS).exists()
    lines = (split / "mask" / MANIFEST).read_text().splitlines()
    assert [json.loads(line)["mask"] for line in lines] == NAMES


def test_a_second_start_does_what_is_left(split: Path, predictors: list[FilledBox], capsys: pytest.CaptureFixture):
    assert shard(split, "0/3") == shard(split, "1/3") == 0
    assert main(["--data", str(split)]) == 0  # the rest, in one process
    assert [len(predictor.images) for predictor in predictors] == [3, 3, 3]
    capsys.readouterr()
    (split / "mask" / "00.png").unlink()
    assert shard(split, "0/1") == 0
    assert f"{split / 'mask'}: 1 done, 5 kept, 0 failed" not in capsys.readouterr().out  # rows of the rest are new
    assert statuses(split / "mask") == {name: "kept" if int(name) % 3 == 2 else "done" for name in NAMES}
    assert shard(split, "0/1") == 0
    assert f"{split / 'mask'}: 0 done, 9 kept, 0 failed" in capsys.readouterr().out


def test_rows_name_all_masks_of_an_image(split: Path, tmp_path: Path):
    prompts = tmp_path / "p.json"
    prompts.write_text(json.dumps({"00": [{"object": o, "box": [1, 1, 9, 9]} for o in "xy"]}))
    expected = ["00_x.png", "00_y.png"]
    for lost in ("", "00_y.png", "rows.jsonl"):
        (split / "mask" / (lost or "none")).unlink(missing_ok=True)
        assert shard(split, "0/1", "--prompts", str(prompts)) == 0
        assert read_rows(split / "mask")["00"]["outputs"] == expected


def test_a_worker_that_is_lost_loses_nothing(split: Path, monkeypatch: pytest.MonkeyPatch, predictors: list[FilledBox]):
    class Lost(FilledBox):
        def set_image(self, image: np.ndarray) -> None:
            if len(self.images) == 2:
                raise MemoryError("lost")
            super().set_image(image)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_load_model", lambda *_: Lost())
        patch.setattr("IS_Net.shards._merge", lambda _: ["0-of-2"])  # as if it was killed: nothing is merged
        with pytest.raises(MemoryError):
            shard(split, "0/2", "--workers", "1")
    part = split / "mask" / PARTS / "0-of-2"
    assert not (split / "mask" / MANIFEST).exists() and (part / MANIFEST).is_file()
    with (part / MANIFEST).open("a") as file:
        file.write('{"mask": "04", "pending": true}\n{"mask": "0')  # killed while it wrote
    (split / "mask" / "04.png").write_bytes(b"half")
    made = len(masks(split / "mask")) - 1
    assert made == 2
    assert shard(split, "0/1") == 0
    assert len(predictors[-1].images) == 9 - made
    assert len(read_manifest(split / "mask")) == 9 and set(statuses(split / "mask")) == set(NAMES)


def test_masks_drawn_by_hand_are_kept(split: Path):
    write_mask(split / "mask" / "03.png", np.zeros((40, 60), bool))
    before = (split / "mask" / "03.png").read_bytes()
    assert shard(split, "0/1") == 0
    assert (split / "mask" / "03.png").read_bytes() == before and "03" not in read_manifest(split / "mask")


def test_shards_remove_no_masks(split: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """What an earlier run made of one image may now be the mask of another, which another shard makes."""
    prompts = tmp_path / "p.json"
    command = ["--data", str(split), "--prompts", str(prompts)]
    prompts.write_text(json.dumps({"00": [{"box": [1, 1, 9, 9]}], "01": [{"box": [1, 1, 9, 9]}]}))
    assert main(command) == 0
    prompts.write_text(json.dumps({"00": [{"object": o, "box": [1, 1, 9, 9]} for o in "xy"]}))
    assert main([*command, "--shard", "0/1"]) == 0
    assert set(masks(split / "mask")) == {"00.png", "00_x.png", "00_y.png", "01.png"}
    assert main(command) == 0
    assert "removed, because they are no longer requested: 00" in capsys.readouterr().out
    assert set(masks(split / "mask")) == {"00_x.png", "00_y.png", "01.png"}


def test_failures_have_rows(split: Path, capsys: pytest.CaptureFixture):
    (split / "im" / "03.png").write_bytes(b"no image")
    for text in ("1/2", "0/1"):
        assert shard(split, text) == 1
        assert "03.png: cannot be read" in capsys.readouterr().err
    row = read_rows(split / "mask")["03"]
    assert row["status"] == "failed" and "03.png" in row["error"] and row["outputs"] == []
    assert len(read_manifest(split / "mask")) == 8


def test_whole_runs_and_workers_exclude_each_other(
    split: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    begun, end = threading.Event(), threading.Event()

    class Waiting(FilledBox):
        def set_image(self, image: np.ndarray) -> None:
            begun.set()
            assert end.wait(60)
            super().set_image(image)

    monkeypatch.setattr(module, "_load_model", lambda *_: Waiting())
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(shard, split, "0/2")
        assert begun.wait(60)
        assert main(["--data", str(split)]) == 2
        assert "is in use by the workers 0-of-2" in capsys.readouterr().err
        assert shard(split, "0/2") == 2
        assert "is in use by a mask run, worker 0-of-2" in capsys.readouterr().err
        end.set()
        assert worker.result() == 0


def test_enriched_splits_in_shards(tmp_path: Path):
    split = tmp_path / "split"
    make_split(split, {"one": (5, 6, 30, 20), "two": (5, 6, 12, 20)})
    gt = np.zeros((40, 60), np.uint8)
    gt[5:20, 5:12] = gt[25:35, 30:50] = 255
    write_mask(split / "gt" / "two.png", gt)
    for index in range(2):
        assert shard(split, f"{index}/2", "--enrich") == 0
    assert files(tmp_path / "split-enriched") == ENRICHED
    assert len(read_manifest(tmp_path / "split-enriched" / "mask")) == 4
    assert main(["--data", str(split), "--enrich"]) == 0
    assert files(tmp_path / "split-enriched") == ENRICHED


def test_a_list_of_images(split: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [
        {"name": "first", "image": "split/im/00.png", "gt": "split/gt/00.png"},
        {"image": "split/im/01.png", "box": [1, 2, 30, 31], "object": "x"},
        {"image": "split/im/01.png", "box": [3, 4, 30, 31], "object": "y"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--manifest", str(tmp_path / "list.jsonl"), "--out", str(tmp_path / "out")]
    for index in range(2):
        assert main([*command, "--shard", f"{index}/2"]) == 0
    assert [work.items() and len(Shard(0, 1).of(work.items())) for work in plan_work_of_box(command)] == [2]
    assert set(masks(tmp_path / "out")) == {"first.png", "01_x.png", "01_y.png"}
    assert read_manifest(tmp_path / "out")["01_x"]["box"] == [1, 2, 30, 31]
    assert main(command) == 0
    assert "0 masks written, 3 kept" in capsys.readouterr().out
    for faulty, message in (
        ({"image": "split/im/00.png"}, "line 1: expected 'box', 'points' and 'labels', or 'gt', found none"),
        ({"image": "split/im/00.png", "box": [0, 0, 900, 900, 1]}, "line 1: box: expected four numbers"),
        (
            {"image": "split/im/00.png", "name": "a/b", "box": [0, 0, 9, 9]},
            "line 1: 'name': becomes the name of a mask",
        ),
    ):
        (tmp_path / "list.jsonl").write_text(json.dumps(faulty) + "\n")
        assert main(command) == 2
        assert message in capsys.readouterr().err
    rows[2].pop("box")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({**row, "gt": rows[0]["gt"]}) + "\n" for row in rows))
    assert main(command) == 2
    assert "line 3: '01' has 2 rows, and this one has no prompt; expected 'box', or" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", [{"box": [3, 3, 20, 20]}, {"gt": "split/gt/01.png"}])
def test_two_images_of_a_list_cannot_write_one_mask(
    split: Path, tmp_path: Path, prompt: dict, capsys: pytest.CaptureFixture
):
    """Each image was checked alone, and one mask replaced the other without a word."""
    rows = [{"name": "a", "object": o, "image": "split/im/00.png", "box": [1, 1, 9, 9]} for o in "bc"]
    rows.append({"name": "a_b", "image": "split/im/01.png", **prompt})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--manifest", str(tmp_path / "list.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "line 1: would write mask 'a_b', which belongs to the image 01.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def plan_work_of_box(command: list[str]):
    return plan_work([*command, "--model", "box"])
