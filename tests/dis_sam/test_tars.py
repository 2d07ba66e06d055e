"""Photographs in .tar files: samples, outputs, what is kept, and what is wrong."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image

from dis_sam import tars
from dis_sam.cut import main, refine
from dis_sam.model_choice import ModelChoice
from dis_sam.tars import read_samples
from IS_Net.errors import DatasetError
from IS_Net.shards import read_rows


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


def test_only_what_changed_is_made_again(model: FakeModel, capsys: pytest.CaptureFixture):
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


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/a.png"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str):
    with pytest.raises(DatasetError, match="leads out of the folder"):
        list(read_samples(write_tar(Path("a.tar"), {name: photo(0)})))


def test_members_are_there_once():
    with pytest.raises(DatasetError, match=r"a\.tar, 0\.png: is there twice"):
        list(read_samples(write_tar(Path("a.tar"), {"0.png": b"", "./0.png": b""})))


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
