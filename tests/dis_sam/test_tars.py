"""Photographs in .tar files: samples, outputs, what is kept, and what is wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image

from dis_sam import tars
from dis_sam.batch import Options
from dis_sam.cut import main, refine
from dis_sam.model_choice import ModelChoice
from dis_sam.photo_work import LazyModel
from dis_sam.tars import Sample, TarWork, read_samples
from IS_Net.errors import DatasetError
from IS_Net.shards import read_rows, run_part


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """Put a model that computes nothing in place of the one that is loaded, and run in an empty folder without SAM."""
    fake = FakeModel()
    monkeypatch.setattr(ModelChoice, "load", lambda _: fake)
    monkeypatch.setattr("dis_sam.model_choice.available_model", lambda: "box")
    monkeypatch.chdir(tmp_path)
    return fake


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def photo(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(1, 256, (30 + seed, 41, 3), dtype=np.uint8))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_samples(path: Path, count: int = 3, masks: bool = False) -> Path:
    members = {}
    for seed in range(count):
        members[f"deep.er/{seed}.png"] = photo(seed)
        members[f"deep.er/{seed}.json"] = json.dumps({"box": [1, 2, 20 + seed, 25], "caption": "x"}).encode()
        if masks:
            mask = np.zeros((30 + seed, 41), np.uint8)
            mask[5:20, 5:30] = 255
            members[f"deep.er/{seed}.mask.png"] = png(mask)
    return write_tar(path, members)


def members(path: str | Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_each_file_gives_one(model: FakeModel, capsys: pytest.CaptureFixture):
    for name in ("a", "b"):
        write_samples(Path(f"{name}.tar"))
    assert main(["a.tar", "b.tar", "-o", "out", "--as", "rgba,alpha"]) == 0
    assert capsys.readouterr().out == "out: 2 done, 0 kept, 0 failed\n"
    found = members("out/a.tar")
    assert list(found) == [f"deep.er/{n}.{kind}" for n in range(3) for kind in ("alpha.png", "cutout.png", "json")]
    names = ["deep.er/1.alpha.png", "deep.er/1.cutout.png"]
    assert json.loads(found["deep.er/1.json"]) == {"id": "deep.er/1", "status": "done", "error": None, "outputs": names}
    assert [call["box"] for call in model.calls[:3]] == [(1, 2, 20 + n, 25) for n in range(3)]
    with Image.open(io.BytesIO(found["deep.er/2.cutout.png"])) as cutout:
        assert cutout.mode == "RGBA" and cutout.size == (41, 32)
    row = read_rows("out")["a"]
    assert (row["status"], row["samples"], row["outputs"]) == ("done", 3, ["a.tar"])


def test_samples_name_doubtful_results(model: FakeModel):
    write_samples(Path("a.tar"))
    model.score = 0.5
    assert main(["a.tar", "-o", "out"]) == 0
    found = [json.loads(data) for name, data in members("out/a.tar").items() if name.endswith(".json")]
    assert [row["doubtful"] for row in found] == [[f"deep.er/{n} (score 0.50)"] for n in range(3)]


def test_outputs_do_not_depend_on_threads(model: FakeModel):
    write_samples(Path("a.tar"), 9)
    for workers in ("1", "4"):
        assert main(["a.tar", "-o", f"out{workers}", "--workers", workers]) == 0
    assert Path("out1/a.tar").read_bytes() == Path("out4/a.tar").read_bytes()


def test_masks_are_refined(model: FakeModel):
    write_samples(Path("a.tar"), masks=True)
    assert refine(["a.tar", "-o", "out", "--as", "alpha"]) == 0
    assert [call["mask"].shape for call in model.calls] == [(30, 41), (31, 41), (32, 41)]
    assert [call["box"] for call in model.calls] == [(1, 2, 20 + n, 25) for n in range(3)]
    write_samples(Path("b.tar"))
    assert refine(["b.tar", "-o", "out"]) == 1
    expected = "b.tar: 3 of 3 samples failed: b.tar, deep.er/0: found png, json; expected the mask deep.er/0.mask.png"
    assert read_rows("out")["b"]["error"].startswith(expected)


def test_only_what_changed_is_made_again(model: FakeModel, monkeypatch: pytest.MonkeyPatch):
    write_samples(Path("a.tar"))
    write_samples(Path("b.tar"))

    def made(*options: str) -> int:
        before = len(model.calls)
        assert main(["a.tar", "b.tar", "-o", "out", *options]) == 0
        return len(model.calls) - before

    assert [made(), made()] == [6, 0]
    write_samples(Path("a.tar"), 2)
    assert [made(), made()] == [2, 0]
    Path("out/b.tar").unlink()
    assert made() == 3
    assert [made("--crop"), made("--crop")] == [5, 0]
    Path("out/rows.jsonl").unlink()
    assert made("--crop") == 0
    assert {row["status"] for row in read_rows("out").values()} == {"kept"}
    monkeypatch.setattr("dis_sam.photo_work.METHOD", 0)  # of a version whose outputs differ
    assert [made("--crop"), made("--crop")] == [5, 0]


@pytest.mark.parametrize("end", [-1, -tarfile.RECORDSIZE, 2 * tarfile.RECORDSIZE, 5000])
def test_an_output_that_a_copy_cut_off_is_made_again(model: FakeModel, end: int):
    write_samples(Path("a.tar"), 9)
    assert main(["a.tar", "-o", "out"]) == 0
    whole = Path("out/a.tar").read_bytes()
    assert len(whole) >= 3 * tarfile.RECORDSIZE
    Path("out/a.tar").write_bytes(whole[:end])
    assert main(["a.tar", "-o", "out"]) == 0
    assert Path("out/a.tar").read_bytes() == whole


def test_a_sample_that_fails_does_not_stop_the_others(model: FakeModel, capsys: pytest.CaptureFixture):
    good, black = photo(0), png(np.zeros((9, 9, 3), np.uint8))
    bad = {"1.png": b"x", "2.json": b"{}", "3.png": good, "3.json": b"[", "4.png": black, "5.png": good}
    write_tar(Path("a.tar"), {"0.png": good, **bad, "5.json": b'{"box": [1, 2, 3]}', "6.png": good})
    for _ in range(2):  # tried again
        assert main(["a.tar", "-o", "out"]) == 1
        assert "error: a.tar: 5 of 7 samples failed: " in capsys.readouterr().err
    found = members("out/a.tar")
    assert [name for name in found if name.endswith(".png")] == ["0.cutout.png", "6.cutout.png"]
    errors = {name[0]: json.loads(data)["error"] for name, data in found.items() if name.endswith(".json")}
    assert list(errors) == list("0123456") and errors["0"] is None
    assert errors["1"].startswith("a.tar, 1: cannot be read as an image")
    assert errors["2"] == "a.tar, 2: found json; expected one image, such as 2.jpg"
    assert errors["3"].startswith("a.tar, 3.json: cannot be read as JSON")
    assert errors["4"] == "a.tar, 4: a black photograph shows nothing"
    assert errors["5"].startswith("a.tar, 5.json: box: expected four numbers")


def test_only_one_thread_at_a_time_writes(monkeypatch: pytest.MonkeyPatch):
    """Faulty samples are found in another thread than that which writes outputs; members may not mix."""
    names, add, writing = [f"{n:03}" for n in range(48)], tarfile.TarFile.addfile, threading.Lock()
    overlaps = []

    def slow_samples(path: Path) -> Iterator[Sample]:
        for sample in read_samples(path):
            time.sleep(0.002)  # meanwhile, outputs of the samples before are written
            yield sample

    def slow_add(self: tarfile.TarFile, info: tarfile.TarInfo, data: io.BytesIO) -> None:
        if not writing.acquire(blocking=False):
            overlaps.append(info.name)
            return
        time.sleep(0.004)
        add(self, info, data)
        writing.release()

    good = set(names[::6])
    write_tar(Path("a.tar"), {f"{name}.{'png' if name in good else 'txt'}": photo(0) for name in names})
    monkeypatch.setattr(tars, "read_samples", slow_samples)
    monkeypatch.setattr(tarfile.TarFile, "addfile", slow_add)
    assert main(["a.tar", "-o", "out", "--workers", "2"]) == 1
    assert not overlaps
    found = members("out/a.tar")
    assert [name.removesuffix(".json") for name in found if name.endswith(".json")] == names
    assert {name.removesuffix(".cutout.png") for name in found if name.endswith(".png")} == good
    assert read_rows("out")["a"]["error"].startswith("a.tar: 40 of 48 samples failed: a.tar, 001: found txt; ")


@pytest.mark.parametrize("row", ["none", "old"])
def test_an_output_shows_itself_that_samples_failed(row: str, model: FakeModel, capsys: pytest.CaptureFixture):
    """Rows may be deleted, and after a kill, the row is that of an earlier output."""
    path = write_samples(Path("a.tar"), 2)
    assert main(["a.tar", "-o", "out"]) == 0
    rows = Path("out/rows.jsonl").read_bytes()
    write_tar(path, {"0.png": photo(0), "1.png": b"x"})
    assert main(["a.tar", "-o", "out"]) == 1
    made = Path("out/a.tar").read_bytes()
    for _ in range(2):
        if row == "none":
            Path("out/rows.jsonl").unlink()
        else:
            Path("out/rows.jsonl").write_bytes(rows)
        capsys.readouterr()
        assert main(["a.tar", "-o", "out"]) == 1
        captured = capsys.readouterr()
        assert captured.out == "out: 0 done, 0 kept, 1 failed\n" and "1 of 2 samples failed" in captured.err
    assert Path("out/a.tar").read_bytes() == made and list(members("out/a.tar")) == ["0.cutout.png", "0.json", "1.json"]


def test_another_model_of_stage_1_makes_them_again(model: FakeModel):
    """Boxes go to stage 1; masks do not."""
    write_samples(Path("a.tar"), masks=True)
    for name in ("one.pth", "other.pth"):
        Path(name).write_text(name)
    counts = []
    for sam in ("box", "box", "vit_b=one.pth", "vit_b=one.pth", "vit_b=other.pth", "box"):
        before = len(model.calls)
        assert main(["a.tar", "-o", "out", "--sam", sam]) == 0
        counts.append(len(model.calls) - before)
    assert counts == [3, 0, 3, 0, 3, 3]
    choice = ModelChoice(Path("one.pth"), "vit_b=missing.pth")  # so that a look at stage 1 would fail
    work = TarWork([Path("a.tar")], Path("refined"), LazyModel(choice), Options(), refine=True)
    assert [dict(run_part(work, work.items(), "0").counts) for _ in range(2)] == [{"done": 1}, {"kept": 1}]


KILLED = """
import os, signal
from IS_Net.files import atomic_file
with atomic_file("out/a.tar") as file:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_removed(model: FakeModel):
    write_samples(Path("a.tar"))
    subprocess.run([sys.executable, "-c", KILLED], check=False, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    assert [path.suffix for path in Path("out").iterdir()] == [".part"]
    assert main(["a.tar", "-o", "out"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.tar", "rows.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.tar: "),
        (b"no tar" * 200, "a.tar: cannot be read as a .tar file"),
        (b"\0" * 10240, "contains no samples"),
    ],
)
def test_damaged_files_are_named(content: bytes, message: str, capsys: pytest.CaptureFixture):
    Path("a.tar").write_bytes(content)
    write_samples(Path("b.tar"))
    assert main(["a.tar", "b.tar", "-o", "out"]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and "1 done, 0 kept, 1 failed" in captured.out
    assert not Path("out/a.tar").exists()


@pytest.mark.parametrize("place", ["member", "header", "before a header", "damaged header"])
def test_a_file_that_is_cut_off_gives_no_output(place: str, capsys: pytest.CaptureFixture):
    path = write_samples(Path("a.tar"))
    with tarfile.open(path) as tar:
        header = tar.getmembers()[-2].offset
    content = path.read_bytes()
    end = {"member": header + 600, "header": header + 100}.get(place, header)
    path.write_bytes(content[:end] + (b"x" * 512 + content[end + 512 :] if place == "damaged header" else b""))
    assert main(["a.tar", "-o", "out"]) == 1
    assert "a.tar: cannot be read as a .tar file" in capsys.readouterr().err
    assert [found.name for found in Path("out").iterdir()] == ["rows.jsonl"]


def test_names_of_members(model: FakeModel):
    other = {"._0.png": b"", "./.hidden": b"", "README": b"", "./d//2.json": b'{"box": [1, 2, 20, 25]}'}
    write_tar(Path("a.tar"), {"./d/0.png": photo(0), **other, "d/2.png": photo(1)})
    assert main(["a.tar", "-o", "out"]) == 0
    assert list(members("out/a.tar")) == ["d/0.cutout.png", "d/0.json", "d/2.cutout.png", "d/2.json"]


def test_extensions_in_capitals(model: FakeModel):
    """WebDataset reads them as lower case too."""
    mask = np.zeros((30, 41), np.uint8)
    mask[5:20, 5:30] = 255
    sample = {"A.PNG": photo(0), "A.Json": b'{"box": [1, 2, 20, 25]}', "A.MASK.png": png(mask)}
    write_tar(Path("a.tar"), sample)
    assert [main(["a.tar", "-o", "cut"]), refine(["a.tar", "-o", "refined"])] == [0, 0]
    assert [call["box"] for call in model.calls] == [(1, 2, 20, 25)] * 2
    assert model.calls[0]["mask"] is None and (model.calls[1]["mask"] == mask).all()
    assert list(members("cut/a.tar")) == ["A.cutout.png", "A.json"]


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/a.png"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str):
    with pytest.raises(DatasetError, match="leads out of the folder"):
        list(read_samples(write_tar(Path("a.tar"), {name: photo(0)})))


@pytest.mark.parametrize("other", ["./0.png", "0.PNG"])
def test_members_are_there_once(other: str):
    with pytest.raises(DatasetError, match=r"a\.tar, 0\.png: is there twice"):
        list(read_samples(write_tar(Path("a.tar"), {"0.png": b"", other: b""})))


def test_samples_lie_together():
    path = write_tar(Path("a.tar"), {"0.png": b"", "1.png": b"", "0.json": b""})
    with pytest.raises(DatasetError, match=r"a\.tar, 0: its members are not neighbors"):
        list(read_samples(path))


def test_files_that_must_not_be_replaced(capsys: pytest.CaptureFixture):
    write_samples(Path("a.tar"))
    for out, message in ((".", "outputs would replace input files: a.tar"), ("out", "did not write: out/a.tar")):
        Path("out").mkdir(exist_ok=True)
        Path("out/a.tar").write_bytes(b"precious")
        assert main(["a.tar", "-o", out]) == 2
        assert message in capsys.readouterr().err
    assert main(["a.tar", "-o", "out", "--overwrite"]) == 0
    Path("x").mkdir()
    write_samples(Path("x/a.tar"))
    assert main(["a.tar", "x/a.tar", "-o", "out"]) == 2
    assert "several files are named a.tar" in capsys.readouterr().err
    assert main(["b.tar", "-o", "out"]) == 2
    assert "b.tar: does not exist" in capsys.readouterr().err


def test_few_samples_are_in_memory(model: FakeModel, monkeypatch: pytest.MonkeyPatch):
    write_samples(Path("a.tar"), 40)
    read, most = 0, 0

    def count(path: Path):
        nonlocal read, most
        for sample in read_samples(path):
            read += 1
            most = max(most, read - len(model.images))
            yield sample

    monkeypatch.setattr(tars, "read_samples", count)
    assert main(["a.tar", "-o", "out", "--workers", "1"]) == 0
    assert read == 40 and most <= 4
