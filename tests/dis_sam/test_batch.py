"""Photographs and folders: what is found, planned, written, kept, made again and refused."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel, write_photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dis_sam import batch
from dis_sam.batch import Options, RunError, Summary, encode_outputs, run, run_one
from dis_sam.destination import Destination
from dis_sam.inputs import Request, Task, find_photographs, plan_cut, plan_refine
from dis_sam.model_choice import ModelChoice, choose_model, needs_of
from dis_sam.outputs import OutputError, render
from dis_sam.records import read_record
from IS_Net.errors import CheckpointError, DatasetError, PromptError
from IS_Net.files import atomic_file
from IS_Net.images import read_image, read_png_text, write_image, write_mask
from IS_Net.manifest import fingerprint, identify

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """Put a model that computes nothing in place of the one that is loaded."""
    fake = FakeModel()
    monkeypatch.setattr(ModelChoice, "load", lambda _: fake)
    return fake


@pytest.fixture
def choice(tmp_path: Path) -> ModelChoice:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    return ModelChoice(weights)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of three photographs."""
    for index, name in enumerate(("a", "b c", "Fenêtre 自転車")):
        write_photo(tmp_path / "photos" / f"{name}.png", index, (30 + index, 41))
    return tmp_path / "photos"


def cut(choice: ModelChoice, folder: Path, out: Path | None, options: Options | None = None, **plan) -> Summary:
    options = options or Options()
    tasks = plan_cut(find_photographs([folder], plan.pop("recursive", False), out), **plan)
    destination = Destination(out, options.kinds)
    destination.check(tasks)
    return run(tasks, destination, choice, options)


def names(paths: list[Path], folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in paths)


# --- finding photographs ---


def test_folders_and_files_are_found_once(photos: Path, tmp_path: Path):
    write_photo(tmp_path / "single.jpeg")
    write_photo(photos / "deep" / "d.png")
    found = find_photographs([tmp_path / "single.jpeg", photos, photos / "a.png"])
    assert [name for name, _ in found] == ["single", "Fenêtre 自転車", "a", "b c"]
    assert [name for name, _ in find_photographs([photos], recursive=True)][-1] == "deep/d"


def test_links_to_one_file_are_several_photographs(photos: Path, tmp_path: Path):
    """The samples of an enriched split: only the first was found."""
    for number in range(3):
        (photos / f"a_comp_{number}.png").symlink_to("a.png")
    names = [name for name, _ in find_photographs([photos])]
    assert {"a", "a_comp_0", "a_comp_1", "a_comp_2"} <= set(names)
    (tmp_path / "link").symlink_to(photos)
    assert [name for name, _ in find_photographs([photos, tmp_path / "link"])] == names


def test_missing_and_empty_inputs_are_named(photos: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"x\.jpg, .*y: does not exist"):
        find_photographs([photos, tmp_path / "x.jpg", tmp_path / "y"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"found no image.*the folder is empty"):
        find_photographs([tmp_path / "empty"])
    with pytest.raises(DatasetError, match="found no image, only folders; use -r"):
        find_photographs([tmp_path])
    write_photo(photos / "a.bmp")
    with pytest.raises(DatasetError, match=r"a\.bmp and a\.png"):
        find_photographs([photos])


def test_outputs_are_no_inputs(photos: Path, model: FakeModel, choice: ModelChoice):
    before = find_photographs([photos])
    cut(choice, photos, None, Options(("rgba", "alpha")))
    cut(choice, photos, photos / "inner")
    assert len(list(photos.glob("*.png"))) == 9
    assert find_photographs([photos]) == before
    assert find_photographs([photos], True, photos / "inner") == before
    assert len(find_photographs([photos], True)) == 6  # unless they are asked for
    assert [name for name, _ in find_photographs([photos / "inner"])] == sorted(name for name, _ in before)
    assert find_photographs([photos / "a.cutout.png"]) == [("a.cutout", photos / "a.cutout.png")]


def test_outputs_may_lie_in_a_folder_around_the_photographs(photos: Path, model: FakeModel, choice: ModelChoice):
    assert len(cut(choice, photos, photos.parent).written) == 3
    assert len(list(photos.parent.glob("*.png"))) == 3


def test_hidden_folders_and_links_to_folders_are_left_out(photos: Path, caplog: pytest.LogCaptureFixture):
    before = find_photographs([photos])
    write_photo(photos / ".thumbnails" / "deep" / "a.png")
    write_photo(photos.parent / "others" / "x.png")
    (photos / "link").symlink_to(photos.parent / "others")
    assert find_photographs([photos], recursive=True) == before
    assert "link: is a link to a folder, whose images are left out" in caplog.text


def test_a_name_that_is_too_long_does_not_stop_the_others(photos: Path, model: FakeModel, choice: ModelChoice):
    write_photo(photos / f"{'n' * 248}.png")  # .cutout.png makes it longer than file systems allow
    summary = cut(choice, photos, None)
    assert len(summary.written) == 3
    [failure] = summary.failed
    assert "File name too long" in failure


# --- plans ---


def test_without_a_prompt_each_photograph_is_one_object(photos: Path):
    tasks = plan_cut(find_photographs([photos]))
    assert [task.requests for task in tasks] == [(Request(task.name),) for task in tasks]
    assert needs_of(tasks) == {"uses_stage_1": False, "needs_sam": False}


def test_several_prompts_are_numbered(photos: Path):
    boxes = [Request("", box=(0, 0, 5, 5)), Request("", box=(1, 1, 6, 6))]
    tasks = plan_cut(find_photographs([photos]), boxes)
    assert [request.name for request in tasks[2].requests] == ["b c_1", "b c_2"]
    assert [replace(request, name="") for request in tasks[2].requests] == boxes
    assert plan_cut([("a", photos / "a.png")], boxes[:1])[0].requests == (replace(boxes[0], name="a"),)
    assert needs_of(tasks) == {"uses_stage_1": True, "needs_sam": False}


def test_objects_of_a_prompt_file(photos: Path, tmp_path: Path):
    content = {
        "a.png": [{"object": "left", "box": [0, 0, 9, 9]}, {"object": "dot", "points": [[3, 4]], "labels": [1]}],
        "Fenêtre 自転車": [{"box": [2, 2, 9, 99]}],
    }
    (tmp_path / "prompts.json").write_text(json.dumps(content), encoding="utf-8")
    tasks = plan_cut(find_photographs([photos]), file=tmp_path / "prompts.json")
    assert {task.name: [request.name for request in task.requests] for task in tasks} == {
        "a": ["a_left", "a_dot"],
        "Fenêtre 自転車": ["Fenêtre 自転車"],
    }
    assert needs_of(tasks) == {"uses_stage_1": True, "needs_sam": True}
    write_photo(tmp_path / "others" / "a.png")
    with pytest.raises(DatasetError, match=r"have the same name, so .*prompts\.json does not say which"):
        plan_cut(find_photographs([photos, tmp_path / "others"]), file=tmp_path / "prompts.json")


def test_masks_for_photographs_of_the_same_name_are_refused(photos: Path, tmp_path: Path):
    """Both were refined with the mask of one."""
    write_photo(tmp_path / "others" / "a.png")
    with pytest.raises(DatasetError, match=r"have the same name, so .*masks does not say which"):
        plan_refine(find_photographs([photos, tmp_path / "others"]), masks_of(tmp_path / "masks", "a"))


def masks_of(folder: Path, *found: str) -> Path:
    for index, name in enumerate(found):
        mask = np.zeros((30, 41), bool)
        mask[5 : 15 + index, 3:20] = True
        write_mask(folder / f"{name}.png", mask)
    return folder


def test_masks_are_paired_by_name(photos: Path, tmp_path: Path):
    masks = masks_of(tmp_path / "masks", "a", "a_dog", "a_b_c", "b c_1", "unknown")
    write_photo(photos / "a_b.png")
    tasks, without = plan_refine(find_photographs([photos]), masks)
    assert {task.name: [request.name for request in task.requests] for task in tasks} == {
        "a": ["a", "a_dog"],
        "a_b": ["a_b_c"],
        "b c": ["b c_1"],
    }
    assert without == [
        f"{photos / 'Fenêtre 自転車.png'}: found no mask Fenêtre 自転車.png or Fenêtre 自転車_OBJECT.png in {masks}"
    ]
    assert needs_of(tasks) == {"uses_stage_1": False, "needs_sam": False}


def test_one_mask_is_for_one_photograph_whatever_its_name(photos: Path, tmp_path: Path):
    mask = masks_of(tmp_path, "any name") / "any name.png"
    assert plan_refine([("a", photos / "a.png")], mask) == (
        [Task("a", photos / "a.png", (Request("a", mask=mask),))],
        [],
    )
    with pytest.raises(DatasetError, match=r"any name\.png: found one mask for 3 photographs"):
        plan_refine(find_photographs([photos]), mask)


def test_masks_that_cannot_be_paired(photos: Path, tmp_path: Path):
    found = find_photographs([photos])
    with pytest.raises(FileNotFoundError, match="nowhere: does not exist"):
        plan_refine(found, tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="contains the photograph"):
        plan_refine(found, photos)
    with pytest.raises(DatasetError, match=r"found no mask .*names of the photographs"):
        plan_refine(found, masks_of(tmp_path / "masks", "z"))


def test_boxes_of_the_manifest_are_used(photos: Path, tmp_path: Path):
    masks = masks_of(tmp_path / "masks", "a_dog_brown", "elsewhere")
    entries = [
        {"mask": "a_dog_brown", "image": "a", "model": "vit_l", "box": [1, 2, 30, 20]},
        {"mask": "elsewhere", "image": "b c", "model": "vit_l", "box": None},
    ]
    (masks / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    tasks, _ = plan_refine(find_photographs([photos]), masks)
    assert [[request.box for request in task.requests] for task in tasks] == [
        [(1, 2, 30, 20)],
        [None],
    ]


def test_the_box_of_a_replaced_mask_is_not_used(photos: Path, tmp_path: Path):
    masks = masks_of(tmp_path / "masks", "a", "b c")
    for name in ("a", "b c"):
        entry = {"mask": name, "image": name, "model": "vit_l", "box": [3, 5, 19, 14]}
        with (masks / "manifest.jsonl").open("a") as file:
            file.write(json.dumps({**entry, **identify(masks / f"{name}.png", "mask")}) + "\n")
    write_mask(masks / "a.png", np.pad(np.ones((9, 9), bool), ((20, 1), (30, 2))))
    tasks, _ = plan_refine(find_photographs([photos]), masks)
    assert {task.name: task.requests[0].box for task in tasks} == {"a": None, "b c": (3, 5, 19, 14)}


def test_an_output_that_was_cut_off_is_made_again(photos: Path, model: FakeModel, choice: ModelChoice, tmp_path: Path):
    cut(choice, photos, tmp_path / "out")
    path = tmp_path / "out" / "a.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    summary = cut(choice, photos, tmp_path / "out")
    assert (summary.written, len(summary.kept)) == ([path], 2)
    assert path.read_bytes() == whole


def test_masks_in_subfolders(tmp_path: Path, model: FakeModel, choice: ModelChoice):
    write_photo(tmp_path / "im" / "x" / "a.png", size=(30, 41))
    write_photo(tmp_path / "im" / "a.png", size=(30, 41))
    masks_of(tmp_path / "masks" / "x", "a_1", "a_2")
    masks_of(tmp_path / "masks", "a")
    tasks, without = plan_refine(find_photographs([tmp_path / "im"], True), tmp_path / "masks", True)
    assert not without
    summary = run(tasks, Destination(tmp_path / "out", ["rgba"]), choice, Options())
    assert names(summary.written, tmp_path / "out") == ["a.png", "x/a_1.png", "x/a_2.png"]


# --- the model ---


def test_only_what_is_needed_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dis_sam.model_choice.available_model", lambda: "box")
    weights = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: the file of the weights does not exist"):
        choose_model(weights)
    weights.write_bytes(b"x")
    assert choose_model(weights) == ModelChoice(weights, "box")
    with pytest.raises(PromptError, match="dis-sam fetch"):
        choose_model(weights, needs_sam=True)
    monkeypatch.setattr("sam.backends.sam_checkpoint_folders", lambda: [tmp_path])
    with pytest.raises(FileNotFoundError, match="SAM vit_l"):
        choose_model(weights, "vit_l")
    assert choose_model(weights, "vit_l", uses_stage_1=False) == ModelChoice(weights, "box")


def test_the_model_is_not_loaded_for_nothing(
    photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice, monkeypatch
):
    cut(choice, photos, tmp_path / "out")
    monkeypatch.setattr(ModelChoice, "load", lambda _: pytest.fail("loaded"))
    summary = cut(choice, photos, tmp_path / "out")
    assert (len(summary.written), len(summary.kept)) == (0, 3)


def test_weights_that_cannot_be_loaded_end_the_run(photos: Path, tmp_path: Path, choice: ModelChoice, monkeypatch):
    def load(_: ModelChoice) -> FakeModel:
        raise CheckpointError("damaged")

    monkeypatch.setattr(ModelChoice, "load", load)
    with pytest.raises(CheckpointError, match="damaged"):
        cut(choice, photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_stage_1_that_cannot_be_loaded_end_the_run(
    photos: Path, tmp_path: Path, choice: ModelChoice, monkeypatch: pytest.MonkeyPatch
):
    class Model(FakeModel):
        @property
        def sam(self) -> None:
            raise CheckpointError("sam.pth: damaged")

        @sam.setter
        def sam(self, value: None) -> None: ...

    monkeypatch.setattr(ModelChoice, "load", lambda _: Model())
    with pytest.raises(CheckpointError, match="damaged"):
        cut(choice, photos, tmp_path / "out", objects=[Request("", (2, 2, 20, 20))])
    assert not list((tmp_path / "out").glob("*.png"))


def test_prompts_reach_the_model(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    options = Options(detail="max", keep_better=True)
    objects = [Request("", box=(1, 2, 9, 9)), Request("", points=((4.0, 5.0),), labels=(1,))]
    cut(choice, photos / "a.png", tmp_path / "out", options, objects=objects)
    cut(choice, photos / "a.png", tmp_path / "out", options)
    mask = masks_of(tmp_path, "m") / "m.png"
    tasks = [Task("a", photos / "a.png", (Request("a", (1, 1, 8, 8), mask=mask),))]
    run(tasks, Destination(tmp_path / "out", ["rgba"]), choice, options)
    given = [
        {key: value for key, value in call.items() if key not in ("detail", "keep_better")} for call in model.calls
    ]
    np.testing.assert_array_equal(given[3].pop("mask") > 0, np.array(Image.open(mask)) > 0)
    assert given == [
        {"box": (1, 2, 9, 9), "points": None, "labels": None, "mask": None},
        {"box": None, "points": ((4.0, 5.0),), "labels": (1,), "mask": None},
        {"box": None, "points": None, "labels": None, "mask": None},
        {"box": (1, 1, 8, 8), "points": None, "labels": None},
    ]
    assert all(call["detail"] == "max" and call["keep_better"] for call in model.calls)
    assert len(model.images) == 3  # once for both objects


# --- outputs ---


def test_outputs_lie_beside_the_photographs(photos: Path, model: FakeModel, choice: ModelChoice):
    summary = cut(choice, photos / "b c.png", None, Options(("rgba", "#ff0000", "mask")))
    assert names(summary.written, photos) == ["b c.FF0000.png", "b c.cutout.png", "b c.mask.png"]


def test_outputs_in_a_folder(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    write_photo(photos / "deep" / "er" / "a.png")
    one = cut(choice, photos, tmp_path / "one", Options(("alpha",)), recursive=True)
    assert names(one.written, tmp_path / "one") == ["Fenêtre 自転車.png", "a.png", "b c.png", "deep/er/a.png"]
    boxes = [Request("", box=(0, 0, 9, 9)), Request("", box=(10, 10, 20, 20))]
    two = cut(choice, photos / "a.png", tmp_path / "two", Options(("alpha", "rgba")), objects=boxes)
    assert names(two.written, tmp_path / "two") == [
        "a_1.alpha.png",
        "a_1.cutout.png",
        "a_2.alpha.png",
        "a_2.cutout.png",
    ]


def test_outputs_are_what_is_rendered(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    for options in (Options(("rgba", "mask", "overlay"), crop=True), Options(("rgba", "white"), 16, 0.2)):
        out = tmp_path / f"{options.bits}"
        cut(choice, photos / "a.png", out, options)
        model.set_image(read_image(photos / "a.png"))
        result = model.segment()
        for kind, label in zip(options.kinds, ("cutout", "mask" if options.crop else "white", "overlay"), strict=False):
            expected = render(result, kind, bits=options.bits, threshold=options.threshold, crop=options.crop)
            path = out / f"a.{label}.png"
            assert path.read_bytes() == encode_outputs(result, options, {kind: read_png_text(path, "dis-sam")})[kind]
            if options.bits == 8:
                np.testing.assert_array_equal(np.array(Image.open(path)), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_are_turned_upright_and_keep_profile_and_resolution(
    tmp_path: Path, model: FakeModel, choice: ModelChoice, orientation: int
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(1, 256, (32, 48, 3), dtype=np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, exif=exif, icc_profile=SRGB, dpi=(300, 150), quality=95)
    cut(choice, path, tmp_path / "out", Options(("rgba", "alpha")))
    np.testing.assert_array_equal(model.images[0], read_image(path))
    with Image.open(tmp_path / "out" / "photo.cutout.png") as cutout:
        assert cutout.size == ((32, 48) if orientation > 4 else (48, 32))
        assert cutout.info["icc_profile"] == SRGB
        assert cutout.info["dpi"] == pytest.approx((150, 300) if orientation > 4 else (300, 150), rel=1e-3)
        assert 0x0112 not in cutout.getexif()
        opaque = np.array(cutout)[..., 3] == 255
        np.testing.assert_array_equal(np.array(cutout)[opaque][:, :3], read_image(path)[opaque])
    with Image.open(tmp_path / "out" / "photo.alpha.png") as alpha:
        assert "icc_profile" not in alpha.info and alpha.mode == "L"


def test_empty_results_are_written_and_named(tmp_path: Path, model: FakeModel, choice: ModelChoice):
    write_photo(tmp_path / "a.png", size=(30, 41))
    write_mask(tmp_path / "masks" / "a.png", np.zeros((30, 41), bool))
    tasks, _ = plan_refine([("a", tmp_path / "a.png")], tmp_path / "masks")
    summary = run(tasks, Destination(tmp_path / "out", ["rgba"]), choice, Options())
    assert summary.empty == ["a"] and not np.array(Image.open(tmp_path / "out" / "a.png")).any()
    assert "1 file written; nothing was found for a" in str(summary)


@pytest.mark.parametrize(("score", "named"), [(0.69, ["a (score 0.69)"]), (0.7, []), (math.nan, [])])
def test_doubtful_results_are_written_and_named(
    tmp_path: Path, model: FakeModel, choice: ModelChoice, score: float, named: list[str]
):
    write_photo(tmp_path / "a.png")
    model.score = score
    summary = cut(choice, tmp_path / "a.png", tmp_path / "out")
    assert summary.doubtful == named and len(summary.written) == 1
    assert str(summary) == "1 file written" + ("; look at a (score 0.69)" if named else "")
    assert not cut(choice, tmp_path / "a.png", tmp_path / "out").doubtful  # it was named when it was made


# --- what is refused ---


def test_foreign_files_are_not_replaced(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    tasks, destination = plan_cut(find_photographs([photos])), Destination(tmp_path / "out", ["rgba"])
    (tmp_path / "out").mkdir()
    foreign = tmp_path / "out" / "a.png"
    for content in (b"", b"precious", (photos / "a.png").read_bytes()):
        foreign.write_bytes(content)
        with pytest.raises(OutputError, match=r"dis-sam did not write: .*out/a\.png; use --overwrite"):
            destination.check(tasks)
    destination.check(tasks, overwrite=True)
    run(tasks, destination, choice, Options())
    assert read_record(foreign)
    destination.check(tasks)
    foreign.unlink()
    foreign.mkdir()
    with pytest.raises(OutputError, match=r"out/a\.png"):
        destination.check(tasks)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_inputs_are_never_replaced(photos: Path, tmp_path: Path, link: Callable):
    tasks = plan_cut(find_photographs([photos]))
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="replace input files"):
            Destination(photos, ["rgba"]).check(tasks, overwrite)
        with pytest.raises(OutputError, match="replace input files"):
            Destination(photos / "a.png", ["rgba"]).check(tasks[1:2], overwrite)
    (tmp_path / "out").mkdir()
    link(photos / "a.png", tmp_path / "out" / "a.png")
    with pytest.raises(OutputError, match=r"replace input files: .*out/a\.png"):
        Destination(tmp_path / "out", ["rgba"]).check(tasks, True)
    mask = masks_of(tmp_path / "masks", "a") / "a.png"
    refine, _ = plan_refine(tasks_of(photos), mask.parent)
    with pytest.raises(OutputError, match=r"replace input files: .*masks/a\.png"):
        Destination(mask.parent, ["rgba"]).check(refine, True)
    with pytest.raises(OutputError, match="replace input files"):
        Destination(tmp_path / "w.png", ["rgba"]).check(tasks[:1], True, [write(tmp_path / "w.png")])


def tasks_of(photos: Path) -> list[tuple[str, Path]]:
    return find_photographs([photos])


def write(path: Path) -> Path:
    path.write_bytes(b"x")
    return path


def test_outputs_of_one_name_are_refused(photos: Path, tmp_path: Path):
    write_photo(tmp_path / "others" / "a.jpg")
    tasks = plan_cut(find_photographs([photos, tmp_path / "others"]))
    with pytest.raises(OutputError, match=r"same name: .*out/a\.png \(of .*photos/a\.png and .*others/a\.jpg\)"):
        Destination(tmp_path / "out", ["rgba"]).check(tasks)
    Destination(None, ["rgba"]).check(tasks)
    with pytest.raises(OutputError, match=r"one\.png: is one file, but there are 4 outputs"):
        Destination(tmp_path / "one.png", ["rgba"]).check(tasks)
    with pytest.raises(OutputError, match=r"one\.jpg: outputs are PNG files"):
        Destination(tmp_path / "one.jpg", ["rgba"])


def test_options_are_checked():
    assert Options(("RGBA", "#ff0000", "rgba")).kinds == ("rgba", "#FF0000")
    for wrong in ({"kinds": ()}, {"kinds": ("gif",)}, {"bits": 9}, {"threshold": 2}):
        with pytest.raises(OutputError):
            Options(**wrong)


# --- what is kept, and what is made again ---


def test_only_what_changed_is_made_again(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    out = tmp_path / "out"
    wanted = Request("", box=(1, 1, 20, 20))

    def made(options: Options | None = None, objects=(wanted,), using: ModelChoice = choice) -> int:
        return len(cut(using, photos, out, options, objects=list(objects)).written)

    assert [made(), made()] == [3, 0]
    for path in photos.iterdir():
        os.utime(path, (1, 1))  # the content counts, not the time
    assert made() == 0
    write_photo(photos / "a.png", seed=9)
    assert [made(), made()] == [1, 0]
    (out / "b c.png").unlink()
    assert made() == 1
    assert made(objects=[Request("", box=(1, 1, 20, 21))]) == 3
    for options in (
        Options(crop=True),
        Options(threshold=0.5),
        Options(bits=16),
        Options(detail="off"),
        Options(("alpha",)),
    ):
        assert [made(options), made(options)] == [3, 0]
    assert made() == 3
    choice.weights.write_bytes(b"other weights")
    assert [made(using=replace(choice)), made(using=replace(choice))] == [3, 0]
    assert made(using=replace(choice, precision="half")) == 3
    assert made(using=replace(choice, device="cpu", precision="half")) == 0


def test_a_changed_mask_is_refined_again(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    masks = masks_of(tmp_path / "masks", "a_1", "a_2")
    tasks, _ = plan_refine(find_photographs([photos]), masks)
    destination = Destination(tmp_path / "out", ["rgba"])
    assert len(run(tasks, destination, choice, Options()).written) == 2
    masks_of(masks, "a_2")
    assert names(run(tasks, destination, choice, Options()).written, tmp_path) == ["out/a_2.png"]


def test_stage_1_counts_only_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: ModelChoice):
    checkpoint = write(tmp_path / "sam.pth")
    monkeypatch.setattr("dis_sam.model_choice.find_checkpoint", lambda model: None if model == "box" else checkpoint)
    sam = replace(choice, sam="vit_l")
    assert sam.key(False) == choice.key(False)
    assert sam.key(True) != choice.key(True)
    checkpoint.write_bytes(b"fine-tuned")
    assert replace(sam).key(True) != sam.key(True)


def test_masks_made_without_proposals_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: ModelChoice
):
    """The files of stage 1 are the same as before; what it is prompted with is not."""
    checkpoint = write(tmp_path / "sam.pth")
    monkeypatch.setattr("dis_sam.model_choice.find_checkpoint", lambda model: checkpoint)
    for model, changed in (("sam2", True), ("onnx", True), ("vit_l", False)):
        before = [model, fingerprint(checkpoint)]
        assert (replace(choice, sam=model).key(True)[1] != before) == changed


def test_kinds_are_kept_one_by_one(photos: Path, model: FakeModel, choice: ModelChoice):
    cut(choice, photos, None, Options(("rgba",)))
    summary = cut(choice, photos, None, Options(("rgba", "alpha")))
    assert all(path.name.endswith(".alpha.png") for path in summary.written) and len(summary.written) == 3
    assert all(path.name.endswith(".cutout.png") for path in summary.kept) and len(summary.kept) == 3


def test_an_edited_output_without_its_record_is_foreign(
    photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice
):
    cut(choice, photos, tmp_path / "out")
    write_image(tmp_path / "out" / "a.png", read_image(tmp_path / "out" / "a.png"))
    with pytest.raises(OutputError, match=r"did not write: .*a\.png"):
        cut(choice, photos, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"fingerprint": 1}', "7"])
def test_records_that_are_no_records(tmp_path: Path, text: str):
    from IS_Net.images import encode_png

    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((2, 2), np.uint8), text={"dis-sam": text}))
    assert read_record(tmp_path / "a.png") is None
    assert read_record(tmp_path / "nowhere.png") is None


def test_remains_of_a_killed_run_are_removed(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    out = tmp_path / "out"
    out.mkdir()
    for name in (".a.png.123-456.part", ".a.png.txt"):
        (out / name).touch()
    with atomic_file(out / "b.png") as file:  # as another run does that writes there now
        file.write(b"b")
        cut(choice, photos, out)
        assert sum(path.name.startswith(".b.png") for path in out.iterdir()) == 1
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == {".a.png.txt"}
    assert (out / "b.png").read_bytes() == b"b"


# --- failures ---


def test_failures_do_not_stop_the_others(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    (photos / "broken.jpg").write_bytes(b"not a photograph")
    write_image(photos / "black.png", np.zeros((9, 9, 3), np.uint8))
    summary = cut(choice, photos, tmp_path / "out")
    assert len(summary.written) == 3
    assert sorted(summary.failed) == [
        f"{photos / 'black.png'}: a black photograph shows nothing",
        *(m for m in summary.failed if m.startswith(f"{photos / 'broken.jpg'}: cannot be read as an image (16 bytes")),
    ]
    assert len(summary.failed) == 2
    again = cut(choice, photos, tmp_path / "out")
    assert (len(again.kept), len(again.failed)) == (3, 2)


def test_a_failed_object_does_not_stop_its_neighbors(
    photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice
):
    boxes = [Request("", box=(0, 0, 9, 9)), Request("", box=(20, 31, 80, 80)), Request("", box=(1, 1, 12, 12))]
    summary = cut(choice, photos, tmp_path / "out", objects=boxes)
    assert len(summary.written) == 7
    [first, second] = sorted(summary.failed)
    assert first.startswith(f"{photos / 'a.png'}, object a_2: box: ") and "lies outside its image" in first
    assert second.startswith(f"{photos / 'b c.png'}, object b c_2: box: ")


def test_masks_that_do_not_fit_are_named(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    masks = masks_of(tmp_path / "masks", "a_1", "b c")
    (masks / "a_2.png").write_bytes(b"nothing")
    tasks, _ = plan_refine(find_photographs([photos]), masks)
    summary = run(tasks, Destination(tmp_path / "out", ["rgba"]), choice, Options())
    assert names(summary.written, tmp_path / "out") == ["a_1.png"]
    [damaged, size] = sorted(summary.failed)
    assert damaged.startswith(f"{masks / 'a_2.png'}: cannot be read as an image")
    assert size.startswith(
        f"{masks / 'b c.png'} is 41 x 30 pixels, but its image {photos / 'b c.png'} is 41 x 31 pixels"
    )


def test_unexpected_errors_are_named_too(
    photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice, monkeypatch
):
    def segment(*prompt, **options):
        raise MemoryError("out of memory")

    monkeypatch.setattr(model, "segment", segment, raising=False)
    summary = cut(choice, photos / "a.png", tmp_path / "out")
    assert summary.failed == [f"{photos / 'a.png'}: MemoryError: out of memory"]


def test_files_that_disappear_are_failures(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    tasks, _ = plan_refine(find_photographs([photos]), masks_of(tmp_path / "masks", "a_1", "a_2", "b c"))
    (tmp_path / "masks" / "a_1.png").unlink()
    (photos / "b c.png").unlink()
    summary = run(tasks, Destination(tmp_path / "out", ["rgba"]), choice, Options())
    assert names(summary.written, tmp_path / "out") == ["a_2.png"]
    assert len(summary.failed) == 2
    assert any("a_1.png" in message for message in summary.failed) and any("b c.png" in m for m in summary.failed)


def test_a_full_disk_ends_the_run(
    tmp_path: Path, model: FakeModel, choice: ModelChoice, monkeypatch: pytest.MonkeyPatch
):
    for index in range(20):
        write_photo(tmp_path / "photos" / f"{index:02}.png", index)

    def atomic_file(path: Path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("dis_sam.destination.atomic_file", atomic_file)
    tasks = plan_cut(find_photographs([tmp_path / "photos"]))
    summary = run(tasks, Destination(tmp_path / "out", ["rgba"]), choice, Options(), workers=1)
    assert not summary.written and 2 <= len(summary.failed) < 10
    assert any(message.startswith("stopped, because the disk is full; ") for message in summary.failed)
    assert len(model.calls) < 10


def test_few_photographs_are_in_memory(tmp_path: Path, model: FakeModel, choice: ModelChoice, monkeypatch):
    """Neither reading nor writing may run ahead of the model, however many photographs there are."""
    photos = tmp_path / "photos"
    for index in range(40):
        write_photo(photos / f"{index:02}.png", index, (8, 8))
    lock, alive, most = threading.Lock(), [0], [0]
    decode, encode = batch.decode_photograph, batch.encode_outputs

    def count(change: int) -> None:
        with lock:
            alive[0] += change
            most[0] = max(most[0], alive[0])

    def counted_decode(*arguments):
        count(1)
        return decode(*arguments)

    def slow_encode(*arguments):
        time.sleep(0.005)
        encoded = encode(*arguments)
        count(-1)
        return encoded

    monkeypatch.setattr(batch, "decode_photograph", counted_decode)
    monkeypatch.setattr(batch, "encode_outputs", slow_encode)
    tasks = plan_cut(find_photographs([photos]))
    summary = run(tasks, Destination(tmp_path / "out", ["rgba"]), choice, Options(), workers=2)
    assert len(summary.written) == 40 and alive[0] == 0
    assert most[0] <= 2 * (2 + 1) + 1 + 2


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.integers(0, 7), workers=st.integers(1, 3))
def test_a_run_that_is_interrupted_is_resumed(
    tmp_path_factory, monkeypatch, choice: ModelChoice, stop: int, workers: int
):
    folder = tmp_path_factory.mktemp("run")
    for index in range(8):
        write_photo(folder / "photos" / f"{index}.png", index, (9, 11))
    fake = FakeModel()
    segment = fake.segment

    def interrupted(*prompt, **options):
        if len(fake.calls) == stop:
            raise KeyboardInterrupt
        return segment(*prompt, **options)

    monkeypatch.setattr(ModelChoice, "load", lambda _: fake)
    tasks, destination = plan_cut(find_photographs([folder / "photos"])), Destination(folder / "out", ["rgba"])
    fake.segment = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(tasks, destination, choice, Options(), workers=workers)
    fake.segment = segment
    summary = run(tasks, destination, choice, Options(), workers=workers)
    assert len(fake.calls) == 8
    assert (len(summary.kept), len(summary.written)) == (stop, 8 - stop)
    assert len(list((folder / "out").iterdir())) == 8


# --- a single output ---


def test_one_output_is_what_a_file_would_be(photos: Path, tmp_path: Path, model: FakeModel, choice: ModelChoice):
    options = Options(("alpha",), 16)
    cut(choice, photos / "a.png", tmp_path / "out", options)
    [task] = plan_cut([("photo", (photos / "a.png").read_bytes())])
    content, _ = run_one(task, choice, options)
    assert (
        run_one(plan_cut([("a", photos / "a.png")])[0], choice, options)[0] == (tmp_path / "out" / "a.png").read_bytes()
    )
    (tmp_path / "one.png").write_bytes(content)
    assert read_record(tmp_path / "one.png")["source"] is None
    assert read_record(tmp_path / "one.png")["fingerprint"] == read_record(tmp_path / "out" / "a.png")["fingerprint"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("a", b"nothing", (Request("a"),)), "^standard input: cannot be read"),
        (Task("a", Path("nowhere.png"), (Request("a"),)), r"nowhere\.png"),
        (Task("a", Path("a.png"), (Request("a", mask=b"nothing"),)), "^standard input: cannot be read"),
        (Task("a", Path("a.png"), (Request("a", mask=Path("nowhere.png")),)), r"nowhere\.png"),
        (
            Task("a", Path("a.png"), (Request("a", mask=Path("m.png")),)),
            r"m\.png is 41 x 30 pixels, but its image a\.png",
        ),
        (Task("a", Path("a.png"), (Request("a", (99, 99, 120, 120)),)), r"^a\.png: box: .*outside"),
    ],
)
def test_why_one_output_cannot_be_made(
    tmp_path: Path, model: FakeModel, choice: ModelChoice, monkeypatch: pytest.MonkeyPatch, task: Task, message: str
):
    monkeypatch.chdir(tmp_path)
    write_photo(Path("a.png"))
    masks_of(Path(), "m")
    with pytest.raises(RunError, match=message):
        run_one(task, choice, Options())
