"""The commands dis-sam cut and dis-sam refine: arguments, streams, messages, exit codes, and runs that are killed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel, write_photo
from PIL import Image

from dis_sam import cut as module
from dis_sam.cut import main, refine
from dis_sam.model_choice import ModelChoice
from dis_sam.records import read_record
from IS_Net.images import read_image, write_image, write_mask

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """Put a model that computes nothing in place of the one that is loaded, and run in an empty folder without SAM."""
    fake = FakeModel()
    monkeypatch.setattr(ModelChoice, "load", lambda _: fake)
    monkeypatch.setattr("dis_sam.model_choice.available_model", lambda: "box")
    monkeypatch.chdir(tmp_path)
    return fake


class Binary(io.TextIOWrapper):
    """A text stream over bytes, as sys.stdin and sys.stdout are."""

    def __init__(self, data: bytes = b"", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def folder(name: str = "photos", count: int = 3) -> Path:
    for index in range(count):
        write_photo(Path(name) / f"{index}.png", index)
    return Path(name)


def written(path: str | Path = ".") -> list[str]:
    return sorted(found.as_posix() for found in Path(path).rglob("*.png"))


# --- cut ---


def test_one_photograph_needs_no_options(capsys: pytest.CaptureFixture, model: FakeModel):
    write_photo(Path("photo.png"))
    assert main(["photo.png"]) == 0
    assert capsys.readouterr().out == "photo.cutout.png\n"
    with Image.open("photo.cutout.png") as cutout:
        assert cutout.mode == "RGBA" and cutout.size == (53, 37)
    assert main(["photo.png"]) == 0
    assert capsys.readouterr().out == "photo.cutout.png (up to date)\n"
    assert len(model.calls) == 1


def test_boxes_points_and_kinds(model: FakeModel, monkeypatch: pytest.MonkeyPatch):
    write_photo(Path("photo.png"))
    assert (
        main(["photo.png", "--box", "1,2,20,30", "--box", "5, 6,30.5,36", "--as", "alpha,mask", "--as", "#00ff00"]) == 0
    )
    assert written() == sorted(
        ["photo.png", *(f"photo_{number}.{kind}.png" for number in (1, 2) for kind in ("alpha", "mask", "00FF00"))]
    )
    assert [call["box"] for call in model.calls] == [(1, 2, 20, 30), (5, 6, 30.5, 36)]
    monkeypatch.setattr("dis_sam.model_choice.available_model", lambda: "vit_l")
    monkeypatch.setattr("dis_sam.model_choice.find_checkpoint", lambda model: Path("photo.png"))
    assert main(["photo.png", "--point", "3,4", "--point", "9,9,0", "--point", "5,5,1", "-o", "one.png"]) == 0
    assert {key: model.calls[-1][key] for key in ("box", "points", "labels")} == {
        "box": None,
        "points": ((3, 4), (9, 9), (5, 5)),
        "labels": (1, 0, 1),
    }
    assert main(["photo.png", "--point", "3,4", "--box", "1,1,9,9", "-o", "two.png"]) == 0
    assert (model.calls[-1]["box"], model.calls[-1]["points"]) == ((1, 1, 9, 9), ((3, 4),))


def test_numbers_may_be_negative(model: FakeModel, capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    assert main(["photo.png", "--box", "-3,2,20,30", "--box", "-.5,-2,20,30"]) == 0
    assert [call["box"] for call in model.calls] == [(-3, 2, 20, 30), (-0.5, -2, 20, 30)]
    for wrong in (["--box", "-r"], ["--point", "-o", "x.png"], ["--crop", "-3,2,20,30"]):
        with pytest.raises(SystemExit, match="2"):
            main(["photo.png", *wrong])
    assert "unrecognized arguments: -3,2,20,30" in capsys.readouterr().err


def test_points_without_sam_are_refused_at_once(capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    assert main(["photo.png", "--point", "3,4"]) == 2
    assert "points without a box need SAM" in capsys.readouterr().err
    assert main(["photo.png", "--point", "3,4", "--sam", "vit_b"]) == 2
    assert "SAM vit_b" in capsys.readouterr().err


def test_standard_output_does_not_hide_a_photograph_without_a_mask(capfdbinary: pytest.CaptureFixture):
    folder(count=2)
    write_mask(Path("masks/0.png"), np.ones((37, 53), bool))
    assert refine(["photos", "-m", "masks", "-o", "-"]) == 1
    printed = capfdbinary.readouterr()
    assert printed.out.startswith(b"\x89PNG") and b"1.png: found no mask" in printed.err


def test_stage_1_has_no_effect_on_masks(capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    write_mask(Path("mask.png"), np.ones((37, 53), bool))
    assert refine(["photo.png", "-m", "mask.png", "--sam", "vit_h=nowhere"]) == 2
    assert "--sam vit_h=nowhere has no effect where masks are given" in capsys.readouterr().err


def test_names_may_be_long_with_their_folders():
    deep = Path("photos", *["x" * 90] * 3)
    write_photo(deep / "a.png")
    name = (deep / "a").relative_to("photos").as_posix()
    Path("prompts.csv").write_text(f"name,object,x0,y0,x1,y1\n{name},,1,1,20,20\n")
    assert main(["photos", "-r", "--prompts", "prompts.csv", "-o", "out"]) == 0
    assert written("out") == [f"out/{name}.png"]


def test_a_prompt_file_names_the_objects():
    folder()
    Path("prompts.csv").write_text("name,object,x0,y0,x1,y1\n0,cat,1,1,20,20\n0,dog,20,1,50,30\n2.png,,0,0,9,9\n")
    assert main(["photos", "--prompts", "prompts.csv", "-o", "out"]) == 0
    assert written("out") == ["out/0_cat.png", "out/0_dog.png", "out/2.png"]


def test_output_options(model: FakeModel):
    write_photo(Path("photo.png"))
    options = ["--as", "alpha,rgba", "--bits", "16", "--crop", "--threshold", "0.25", "--detail", "off"]
    assert main(["photo.png", "--box", "10,5,29,24", "-o", "out", *options]) == 0
    with Image.open("out/photo.alpha.png") as alpha:
        assert alpha.mode == "I;16" and alpha.size == (22, 22)  # of the box and its soft edge
        assert set(np.unique(np.array(alpha))) == {0, 65535}
    assert model.calls[-1]["detail"] == "off"
    assert main(["photo.png", "-o", "out", "--as", "rbga"]) == 2


@pytest.mark.parametrize("options", [(), ("--shard", "0/1")])
def test_outputs_that_cannot_be_written_are_reported_before_the_work(
    options: tuple[str, ...], capsys: pytest.CaptureFixture, model: FakeModel
):
    write_photo(Path("photo.png"))
    assert main(["photo.png", "-o", "photo.png/out", *options]) == 2
    assert "photo.png/out" in capsys.readouterr().err and not model.calls


def test_a_model_of_stage_1_without_prompts_is_refused(capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    assert main(["photo.png", "--sam", "vit_b"]) == 2
    assert "--sam vit_b has no effect without a prompt" in capsys.readouterr().err


def test_a_folder_with_failures(capsys: pytest.CaptureFixture):
    photos = folder()
    (photos / "broken é.jpg").write_bytes(b"\xff\xd8\xff damaged")
    write_image(photos / "black.png", np.zeros((5, 5, 3), np.uint8))
    assert main(["photos", "-o", "out"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "3 files written, 2 failed\n"
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert errors[-2].startswith("error: photos/black.png: a black") and "broken é.jpg: cannot be read" in errors[-1]
    assert printed.err.splitlines()[-2:] == errors  # at the end
    assert main(["photos", "-o", "out"]) == 1
    assert capsys.readouterr().out == "0 files written, 3 kept from an earlier run, 2 failed\n"
    assert written("out") == ["out/0.png", "out/1.png", "out/2.png"]


def test_a_damaged_photograph_alone(capsys: pytest.CaptureFixture):
    Path("notes.txt").write_text("hello")
    assert main(["notes.txt"]) == 1
    assert "error: notes.txt: cannot be read as an image (5 bytes" in capsys.readouterr().err


def test_subfolders():
    folder("photos/x")
    assert main(["photos", "-o", "out"]) == 2
    assert main(["photos", "-r", "-o", "photos/out"]) == 0
    assert written("photos/out") == ["photos/out/x/0.png", "photos/out/x/1.png", "photos/out/x/2.png"]
    assert main(["photos", "-r", "-o", "photos/out"]) == 0
    assert len(written("photos/out")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either photographs, --manifest FILE, --coco FILE, or --labelme DIR"),
        (["photos", "--coco", "x.json"], "either photographs, --manifest FILE, --coco FILE, or --labelme DIR"),
        (["photos", "--images", "photos"], "use it with --coco"),
        (["--coco", "x.json", "-o", "y.json"], "together with --images"),
        (["--coco", "x.json", "--images", "photos"], "require -o"),
        (["--coco", "x.json", "--images", "photos", "-o", "-"], "require -o"),
        (["--labelme", "photos", "-o", "out", "--as", "mask"], "--as has no effect"),
        (["--labelme", "photos", "-o", "out", "--box", "1,1,2,2"], "--box has no effect"),
        (["--coco", "x.json", "--images", "photos", "-o", "y.json", "-r"], "--recursive has no effect"),
        (["photos", "--box", "1,2,3"], "four numbers x0,y0,x1,y1 in pixels, found '1,2,3'"),
        (["photos", "--box", "1,2,nan,4"], "four numbers"),
        (["photos", "--box", "9,2,3,4"], "x0 < x1 and y0 < y1, found '9,2,3,4'"),
        (["photos", "--point", "1,2,3"], "x,y,0 (on the background)"),
        (["photos", "--point", "1"], "a point as x,y"),
        (["photos", "--point", "1,2,0"], "found only background points"),
        (["photos", "--box", "1,1,9,9", "--box", "2,2,8,8", "--point", "3,3"], "found --point with 2 boxes"),
        (["photos", "--box", "1,1,9,9", "--prompts", "x.csv"], "either --prompts, or --box and --point"),
        (["-", "--prompts", "x.csv"], "has no name"),
        (["-", "photos"], "beside standard input"),
        (["-", "-"], "only once"),
        (["photos", "--threshold", "1"], "at least 0 and less than 1, found '1'"),
        (["photos", "--threshold", "x"], "at least 0 and less than 1, found 'x'"),
        (["photos", "--bits", "12"], "invalid choice"),
        (["photos", "--sam", "grabcut"], "unknown model 'grabcut'"),
        (["photos", "--workers", "0"], "above 0"),
    ],
)
def test_contradictions_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    folder()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg: does not exist"),
        (["empty"], "found no image"),
        (["photos", "--as", "gif"], "unknown kind of output 'gif'"),
        (["photos", "--as", "#12"], "six hex digits"),
        (["photos", "--weights", "nowhere.pth"], "nowhere.pth: the file of the weights does not exist"),
        (["photos", "--prompts", "nowhere.csv"], "nowhere.csv: the prompt file does not exist"),
        (["photos", "-o", "one.png"], "one.png: is one file, but there are 3 outputs"),
        (["photos/0.png", "-o", "one.jpg"], "one.jpg: outputs are PNG files"),
        (["photos", "-o", "-"], "standard output takes one output, but there are 3"),
        (["photos", "-o", "photos"], "outputs would replace input files"),
        (["photos/0.png", "-o", "photos/0.png", "--overwrite"], "outputs would replace input files"),
        (["photos/0.png", "-o", "photos/1.png"], "files exist that dis-sam did not write: photos/1.png"),
    ],
)
def test_what_cannot_start_has_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    folder()
    Path("empty").mkdir()
    before = {path: path.read_bytes() for path in map(Path, written())}
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out
    assert {path: path.read_bytes() for path in map(Path, written())} == before


def test_overwrite_replaces_foreign_files():
    folder()
    assert main(["photos/0.png", "-o", "photos/1.png", "--overwrite"]) == 0
    assert read_record(Path("photos/1.png"))


def test_names_with_dots_spaces_and_other_scripts():
    names = ["a b.c", "été", "自転車 🚲", "100% #1 [x]"]
    for name in names:
        write_photo(Path("in put") / f"{name}.png")
    assert main(["in put"]) == 0
    assert main(["in put", "-o", "out put"]) == 0
    assert written("out put") == sorted(f"out put/{name}.png" for name in names)
    assert len(written("in put")) == 8


def test_an_empty_result_is_said(capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    write_mask(Path("mask.png"), np.zeros((37, 53), bool))
    assert refine(["photo.png", "-m", "mask.png"]) == 0
    assert "warning: nothing was found for photo" in capsys.readouterr().err


def test_a_doubtful_result_is_said(model: FakeModel, capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    model.score = 0.456
    assert main(["photo.png", "--box", "5,5,30,30"]) == 0
    assert capsys.readouterr().err.count("warning: photo (score 0.46): look at the result; a box") == 1


def test_a_doubtful_result_on_standard_output_is_said(model: FakeModel, capfdbinary: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    model.score = 0.456
    assert main(["photo.png", "--box", "5,5,30,30", "-o", "-"]) == 0
    printed = capfdbinary.readouterr()
    assert printed.out.startswith(b"\x89PNG") and b"warning: photo (score 0.46): look at the result" in printed.err


def test_a_box_that_reaches_outside_is_said(caplog: pytest.LogCaptureFixture):
    for name in ("a", "b"):
        write_photo(Path(f"in/{name}.png"))
    assert main(["in", "--box", "5,5,100,30"]) == 0
    assert "b.png: the box [5.0, 5.0, 100.0, 30.0] reaches outside the image of 53 x 37 pixels" in caplog.text
    assert len([record for record in caplog.records if "reaches outside" in record.message]) == 2


# --- refine ---


def test_a_mask_is_refined(model: FakeModel, capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    mask = np.zeros((37, 53), bool)
    mask[3:20, 5:40] = True
    write_mask(Path("some mask.png"), mask)
    assert refine(["photo.png", "-m", "some mask.png", "--as", "mask", "--keep-better"]) == 0
    assert capsys.readouterr().out == "photo.mask.png\n"
    np.testing.assert_array_equal(model.calls[0]["mask"] > 0, mask)
    assert model.calls[0]["keep_better"] is True


def test_a_folder_of_masks(capsys: pytest.CaptureFixture):
    folder()
    for name in ("0", "1_cat", "1_dog"):
        write_mask(Path("masks") / f"{name}.png", np.ones((37, 53), bool))
    assert refine(["photos", "-m", "masks", "-o", "out"]) == 1
    assert written("out") == ["out/0.png", "out/1_cat.png", "out/1_dog.png"]
    printed = capsys.readouterr()
    assert printed.out == "3 files written, 1 failed\n"
    assert "error: photos/2.png: found no mask 2.png or 2_OBJECT.png in masks" in printed.err


def test_refine_requires_masks(capsys: pytest.CaptureFixture):
    folder()
    with pytest.raises(SystemExit) as end:
        refine(["photos"])
    assert end.value.code == 2 and "expected -m" in capsys.readouterr().err
    assert refine(["photos", "-m", "nowhere"]) == 2
    assert "nowhere: does not exist" in capsys.readouterr().err


# --- streams ---


def test_standard_input_and_output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    assert main(["photo.png", "--as", "white", "-o", "file.png"]) == 0
    for arguments, given in ((["-"], "photo.png"), (["-", "-o", "-"], "photo.png"), (["photo.png", "-o", "-"], None)):
        monkeypatch.setattr(sys, "stdin", Binary(Path(given).read_bytes() if given else b""))
        monkeypatch.setattr(sys, "stdout", out := Binary())
        assert main([*arguments, "--as", "white"]) == 0
        data = out.buffer.getvalue()
        assert data.startswith(b"\x89PNG")
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), read_image("file.png"))
    assert written() == ["file.png", "photo.png"]


def test_standard_input_to_a_file_and_a_mask_from_it(monkeypatch: pytest.MonkeyPatch, model: FakeModel):
    write_photo(Path("photo.png"))
    write_mask(Path("mask.png"), np.ones((37, 53), bool))
    monkeypatch.setattr(sys, "stdin", Binary(Path("photo.png").read_bytes()))
    assert main(["-", "-o", "x/one.png"]) == 0
    monkeypatch.setattr(sys, "stdin", Binary(Path("mask.png").read_bytes()))
    assert refine(["photo.png", "-m", "-", "-o", "two.png"]) == 0
    assert model.calls[-1]["mask"].all()
    monkeypatch.setattr(sys, "stdin", Binary(Path("photo.png").read_bytes()))
    assert refine(["-", "-m", "mask.png", "-o", "out", "--as", "alpha,mask"]) == 0
    assert written("out") == ["out/photo.alpha.png", "out/photo.mask.png"]


def test_streams_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    write_photo(Path("photo.png"))
    monkeypatch.setattr(sys, "stdin", Binary(b"not a photograph"))
    monkeypatch.setattr(sys, "stdout", out := Binary())
    assert main(["-"]) == 1
    assert "standard input: cannot be read as an image (16 bytes" in capsys.readouterr().err
    assert main(["photo.png", "-o", "-", "--box", "200,200,300,300"]) == 1
    assert main(["photo.png", "-o", "-", "--as", "mask,alpha"]) == 2
    assert not out.buffer.getvalue()
    monkeypatch.setattr(sys, "stdout", Binary(terminal=True))
    assert main(["photo.png", "-o", "-"]) == 2
    assert "standard output is a terminal" in capsys.readouterr().err


# --- annotation files ---


def test_annotation_files_reach_the_formats(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    from dis_sam.formats import coco, labelme
    from dis_sam.formats.annotation import Summary
    from IS_Net.errors import DatasetError

    calls = []

    def take(*arguments, refiner, settings, **options):
        calls.append((arguments, options, settings))
        return Summary(refined=1, problems=[DatasetError("id 7: damaged")] if len(calls) == 3 else [])

    monkeypatch.setattr(coco, "refine_coco", take)
    monkeypatch.setattr(labelme, "refine_labelme", take)
    assert main(["--coco", "in.json", "--images", "im", "-o", "out.json"]) == 0
    assert refine(["--coco", "in.json", "--images", "im", "-o", "out.json"]) == 0
    assert refine(["--labelme", "in", "-o", "out", "-r", "--precision", "full"]) == 1
    assert "failed: id 7: damaged" in capsys.readouterr().out
    assert [call[:2] for call in calls] == [
        ((Path("in.json"), Path("im"), Path("out.json")), {"boxes_only": True}),
        ((Path("in.json"), Path("im"), Path("out.json")), {"boxes_only": False}),
        ((Path("in"), Path("out")), {"boxes_only": False, "recursive": True}),
    ]
    assert calls[0][2] == calls[1][2] != calls[2][2]  # the precision


def test_a_coco_file(model: FakeModel, capsys: pytest.CaptureFixture):
    pytest.importorskip("pycocotools")
    folder(count=2)
    annotations = [
        {
            "id": 5,
            "image_id": 1,
            "category_id": 3,
            "bbox": [4, 5, 20, 10],
            "segmentation": [[4, 5, 24, 5, 24, 15, 4, 15]],
        },
        {"id": 6, "image_id": 1, "category_id": 3, "bbox": [30, 5, 10, 10]},
        {"id": 7, "image_id": 2, "category_id": 3, "bbox": [0, 0, 9, 9]},
    ]
    images = [{"id": number, "file_name": f"{number - 1}.png", "width": 53, "height": 37} for number in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]}
    Path("in.json").write_text(json.dumps(content))
    assert refine(["--coco", "in.json", "--images", "photos", "-o", "out.json"]) == 0
    assert "3 objects refined" in capsys.readouterr().out
    found = json.loads(Path("out.json").read_text())["annotations"]
    assert [record["id"] for record in found] == [5, 6, 7]
    assert all(record["segmentation"]["size"] == [37, 53] for record in found)
    assert [call["mask"] is None for call in model.calls] == [False, True, True]
    assert main(["--coco", "in.json", "--images", "photos", "-o", "boxes.json"]) == 0
    assert [call["mask"] is None for call in model.calls[3:]] == [True, True, True]
    assert refine(["--coco", "in.json", "--images", "photos", "-o", "in.json"]) == 2


def test_masks_of_annotations_are_made_again_by_another_method(model: FakeModel, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pycocotools")
    folder(count=1)
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": 53, "height": 37}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [4, 5, 20, 10]}],
        "categories": [{"id": 3, "name": "thing"}],
    }
    Path("in.json").write_text(json.dumps(content))
    for method, calls in ((1, 1), (1, 1), (2, 2)):
        monkeypatch.setattr("dis_sam.batch.METHOD", method)
        assert main(["--coco", "in.json", "--images", "photos", "-o", "out.json"]) == 0
        assert len(model.calls) == calls


def test_labelme_files(model: FakeModel):
    folder(count=1)
    shape = {"label": "thing", "shape_type": "rectangle", "points": [[4, 5], [24, 15]]}
    Path("photos/0.json").write_text(json.dumps({"imagePath": "0.png", "imageData": None, "shapes": [shape]}))
    assert refine(["--labelme", "photos", "-o", "out"]) == 0
    [found] = json.loads(Path("out/0.json").read_text())["shapes"]
    assert found["shape_type"] == "mask" and found["label"] == "thing"
    assert refine(["--labelme", "photos", "-o", "out"]) == 0
    assert len(model.calls) == 1


# --- processes ---

SLOW = """
import sys
sys.path.insert(0, {here!r})
from fake_model import FakeModel
from dis_sam.model_choice import ModelChoice
ModelChoice.load = lambda _: FakeModel({seconds})
from dis_sam.cut import main
sys.exit(main(sys.argv[1:]))
"""


def start(arguments: list[str], seconds: float = 0.15) -> subprocess.Popen:
    code = SLOW.format(here=str(HERE), seconds=seconds)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_outputs(count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while len(written("out") if Path("out").is_dir() else ()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_is_resumed(sent: signal.Signals, code: int, model: FakeModel):
    folder(count=12)
    process = start(["photos", "-o", "out"])
    wait_for_outputs(3, process)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    if sent != signal.SIGKILL:
        assert errors.splitlines()[-1].endswith("the same command resumes")
        assert not list(Path("out").glob(".*"))
    done = written("out")
    assert 3 <= len(done) < 12
    for path in done:
        with Image.open(path) as image:
            image.load()  # whole
    assert main(["photos", "-o", "out"]) == 0
    assert len(written("out")) == 12 and not list(Path("out").glob(".*"))
    assert len(model.calls) == 12 - len(done)


def test_image_bytes_alone_on_standard_output():
    write_photo(Path("photo.png"))
    code = SLOW.format(here=str(HERE), seconds=0)
    with Path("photo.png").open("rb") as photo:
        done = subprocess.run([sys.executable, "-c", code, "-"], stdin=photo, capture_output=True, check=True)
    with Image.open(io.BytesIO(done.stdout)) as image:
        image.load()
    assert done.stdout.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize("command", ["main", "refine"])
def test_help_is_light_and_complete(command: str):
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from dis_sam import cut\n"
        "try:\n"
        f"    cut.{command}(['--help'])\n"
        "except SystemExit as end:\n"
        "    heavy = [name for name in ('torch', 'numpy', 'cv2', 'PIL') if name in sys.modules]\n"
        "    print(json.dumps([end.code, heavy, time.perf_counter() - start]))\n"
    )
    done = subprocess.run([sys.executable, "-c", f"import json\n{code}"], capture_output=True, text=True, check=True)
    [end, heavy, seconds] = json.loads(done.stdout.splitlines()[-1])
    assert (end, heavy) == (0, [])
    assert seconds < 2  # 0.1 on an idle machine
    for option in (
        "--as",
        "--bits",
        "--threshold",
        "--crop",
        "--overwrite",
        "--coco",
        "--labelme",
        "-r",
        "exit codes:",
    ):
        assert option in done.stdout


def test_nothing_left_to_do_needs_no_torch():
    folder()
    assert main(["photos", "-o", "out"]) == 0
    code = "import sys\nfrom dis_sam.cut import main\nprint(main(['photos', '-o', 'out']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["0 files written, 3 kept from an earlier run", "0 False"]


def test_the_command_of_the_module_is_cut():
    done = subprocess.run([sys.executable, module.__file__, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: dis-sam cut ")
