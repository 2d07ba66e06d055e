"""The command that makes masks: its options, messages and exit codes, with a real SAM and with filled boxes."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mask_splits import BOXES, FilledBox, files, filled, make_split, samples
from PIL import Image
from tiny_sam import reference_predictor, save_sam, tiny_sam

from IS_Net.errors import ImageError
from IS_Net.images import read_image, read_mask, write_mask
from IS_Net.lock import lock_folder
from IS_Net.manifest import read_manifest
from sam import backends
from sam.backends import load_predictor, segment_anything
from sam.generate_masks import main, plan_work


@pytest.fixture
def split(tmp_path: Path) -> Path:
    return make_split(tmp_path / "DIS-VD", BOXES)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a real SAM of small dimensions, in place of vit_b."""
    monkeypatch.setitem(segment_anything.BUILDERS, "vit_b", tiny_sam)
    monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: [tmp_path / "weights"])
    (tmp_path / "weights").mkdir()
    return save_sam(tmp_path / "weights" / "sam_vit_b_01ec64.pth")


def test_sam_end_to_end(split: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--data", str(split), "--model", "vit_b", "--device", "cpu", "--workers", "1"]) == 0
    assert "3 masks written, 0 kept" in capsys.readouterr().out
    sam = load_predictor("vit_b", checkpoint, "cpu").model
    manifest = read_manifest(split / "mask")
    for name, box in BOXES.items():
        reference = reference_predictor(sam, read_image(split / "im" / f"{name}.png"))
        masks, scores, _ = reference.predict(box=np.array(box), multimask_output=True)
        expected = masks[scores.argmax()]
        assert (read_mask(split / "mask" / f"{name}.png") != expected * 255).mean() < 1e-3
        assert manifest[name]["score"] == pytest.approx(scores.max(), abs=1e-5)
    assert main(["--data", str(split), "--model", "vit_b", "--device", "cpu"]) == 0
    assert "0 masks written, 3 kept" in capsys.readouterr().out
    save_sam(checkpoint, seed=1)
    assert main(["--data", str(split), "--model", "vit_b", "--device", "cpu", "--select", "first"]) == 0
    assert "3 masks written, 0 kept" in capsys.readouterr().out
    assert {entry["select"] for entry in read_manifest(split / "mask").values()} == {"first"}


def test_the_first_model_whose_weights_are_found(
    split: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    command = ["--data", str(split), "--model", "auto", "--device", "cpu"]
    (work,) = plan_work([*command, "--shard", "0/2"])
    assert work.load.args[0] == "vit_b"
    assert main(command) == 0
    assert caplog.text.count(f"stage 1: SAM vit_b, {checkpoint}") == 2
    checkpoint.unlink()
    assert main(command) == 0
    assert "stage 1: filled boxes (box)" in caplog.text
    assert {entry["model"] for entry in read_manifest(split / "mask").values()} == {"box"}


def test_ground_truth_without_an_image_is_logged_once(split: Path, caplog: pytest.LogCaptureFixture) -> None:
    (split / "im" / "b.png").unlink()
    assert main(["--data", str(split), "--model", "box"]) == 0
    assert files(split / "mask") == {"a.png", "c.png"}
    assert caplog.text.count("no image for the ground truths b; skipped") == 1


def test_each_image_of_an_enriched_split_is_encoded_once(
    split: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gt = filled((1, 1, 9, 9)) | filled((30, 20, 50, 35))
    write_mask(split / "gt" / "a.png", gt)
    predictor = load_predictor("vit_b", device="cpu")
    calls = []
    predictor.model.image_encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    predictor.model.mask_decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    monkeypatch.setattr(backends, "load_predictor", lambda *_: predictor)
    assert main(["--data", str(split), "--enrich", "--model", "vit_b"]) == 0
    assert files(split.with_name("DIS-VD-enriched")) == samples(
        "a_comp_0", "a_comp_1", "a_comp_2", "b_comp_0", "c_comp_0"
    )
    assert calls == ["encoder", "decoder"] * 3


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
        "box",
    ]
    assert main(options) == 0
    assert files(out) == {"a.png"} and not (split / "mask").exists()
    np.testing.assert_array_equal(read_mask(out / "a.png"), filled((3, 3, 40, 30)))
    entry = read_manifest(out)["a"]
    assert (entry["model"], entry["checkpoint"], entry["select"], entry["score"]) == ("box", None, None, None)
    (split / "im" / "a.png").write_bytes(b"broken")
    assert main(options) == 1
    output = capsys.readouterr().out
    assert "failed" in output and "a.png: cannot be read" in output


def test_points_without_a_box_need_sam(split: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts = tmp_path / "p.json"
    point = {"points": [[5, 5]], "labels": [1]}
    prompts.write_text(json.dumps({"a": [point], "b": [{"box": [1, 1, 20, 20], **point}], "c": [point]}))
    options = ["--images", str(split / "im"), "--prompts", str(prompts), "--out", str(tmp_path / "o"), "--model", "box"]
    assert main(options) == 2
    message = capsys.readouterr().err
    assert "points without a box need SAM" in message and "dis-sam fetch vit_l" in message
    assert "p.json, 'a'[0], " in message and "'c'[0]" in message and "'b'[0]" not in message
    assert not (tmp_path / "o").exists()
    prompts.write_text(json.dumps({"b": [{"box": [1, 1, 20, 20], **point}]}))
    assert main(options) == 0
    np.testing.assert_array_equal(read_mask(tmp_path / "o" / "b.png"), filled((1, 1, 20, 20)))


def test_command_line_enriches_several_splits(split: Path, tmp_path: Path) -> None:
    other = make_split(tmp_path / "DIS-TR", {"d": (3, 3, 30, 20)})
    assert main(["--data", str(other), str(split), "--enrich", "--model", "box"]) == 0
    assert files(tmp_path / "DIS-TR-enriched") == samples("d_comp_0")
    assert files(tmp_path / "DIS-VD-enriched") == samples("a_comp_0", "b_comp_0", "c_comp_0")


def test_a_damaged_avif_does_not_stop_the_others(split: Path, capsys: pytest.CaptureFixture) -> None:
    """Row 50: its decoder's RuntimeError ended the run."""
    buffer = io.BytesIO()
    try:
        Image.fromarray(read_image(split / "im" / "a.png")).save(buffer, "AVIF")
    except (KeyError, OSError):
        pytest.skip("this build of Pillow does not write AVIF")
    head, name, pixels = buffer.getvalue().partition(b"mdat")
    photo = split / "im" / "a.avif"
    photo.write_bytes(head + name + b"\xff" * len(pixels))
    (split / "im" / "a.png").unlink()
    assert main(["--data", str(split), "--model", "box"]) == 1
    assert f"failed: {photo}: cannot be read as an image" in capsys.readouterr().out
    assert files(split / "mask") == {"b.png", "c.png"}


def test_one_failed_split_does_not_hide_the_other(split: Path, tmp_path: Path) -> None:
    other = make_split(tmp_path / "DIS-TR", {"d": (3, 3, 30, 20)})
    (split / "im" / "a.png").write_bytes(b"broken")
    assert main(["--data", str(split), str(other), "--model", "box"]) == 1
    assert files(split / "mask") == {"b.png", "c.png"} and files(other / "mask") == {"d.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere/im: the folder does not exist"),
        (["--data", "{split}"], "found no sam_vit_l_0b3195.pth"),
        (["--data", "{split}", "--checkpoint", "no.pth"], "no.pth does not exist"),
        (
            ["--data", "{split}", "--prompts", "no.json", "--model", "box"],
            "no.json: the prompt file does not exist",
        ),
        (
            ["--images", "{split}/im", "--out", "o", "--gt", "no", "--model", "box"],
            "no: the folder of ground truths does not exist",
        ),
        (["--data", "{split}", "--model", "vit_b", "--device", "cuda:99"], "cuda:99"),
        (["--data", "{split}", "--model", "box", "--checkpoint", "sam.pth"], "box has no weights"),
        (["--images", "{split}", "--gt", "{split}/gt", "--out", "o", "--model", "box"], "found no image"),
        (
            ["--images", "{split}/im", "--gt", "{split}/gt", "--out", "{split}", "--enrich", "--model", "box"],
            "write the enriched split to another folder",
        ),
    ],
)
def test_errors_of_the_command_line(
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
        ["--data", "d", "--model", "auto", "--checkpoint", "vit_b.pth"],
    ],
)
def test_contradicting_options(options: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(options)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_interrupted_command(split: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    class Interrupted(FilledBox):
        def set_image(self, image: np.ndarray) -> None:
            if self.images:
                raise KeyboardInterrupt
            super().set_image(image)

    monkeypatch.setattr(backends, "load_predictor", lambda *_: Interrupted())
    assert main(["--data", str(split)]) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert files(split / "mask") == {"a.png"}
    with pytest.raises(ImageError):
        read_mask(split / "mask" / "b.png")


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from sam.generate_masks import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
assert not {"torch", "numpy", "cv2", "PIL", "tqdm", "segment_anything"} & sys.modules.keys()
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(option in run.stdout for option in ("--data", "--prompts", "--enrich", "vit_l, vit_h", "box"))


def test_dots_as_the_name_of_a_split(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 34: `cd D/im; generate_masks --data .. --enrich` wrote D/im/..-enriched."""
    monkeypatch.chdir(split / "im")
    assert main(["--data", "..", "--enrich", "--model", "box"]) == 0
    monkeypatch.chdir(split)
    assert main(["--data", ".", "--enrich", "--model", "box"]) == 0
    assert main(["--data", "im/..", "--model", "box"]) == 0
    assert {path.name for path in split.parent.iterdir()} == {"DIS-VD", "DIS-VD-enriched"}
    assert {path.name for path in split.iterdir()} == {"im", "gt", "mask"}
    assert files(split.with_name("DIS-VD-enriched")) == samples("a_comp_0", "b_comp_0", "c_comp_0")


@pytest.mark.parametrize("out", ["gt", "im", "photos"])
def test_the_command_never_replaces_inputs(
    split: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Row 1: --out of the ground truths or photographs; refused before the model is loaded."""
    (split / "photos").symlink_to(split / "im")
    monkeypatch.setattr(backends, "load_predictor", None)
    before = {path: path.read_bytes() for path in split.rglob("*.png")}
    arguments = ["--images", str(split / "im"), "--gt", str(split / "gt"), "--out", str(split / out)]
    assert main(arguments) == 2
    assert f"{split / out}: the output would replace the input" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in split.rglob("*.png")} == before


def test_masks_drawn_by_hand_are_replaced_only_on_request(split: Path, capsys: pytest.CaptureFixture) -> None:
    """Row 3: masks without a manifest."""
    write_mask(split / "mask" / "a.png", filled((1, 1, 2, 2)))
    before = (split / "mask" / "a.png").read_bytes()
    assert main(["--data", str(split), "--model", "box"]) == 0
    assert "1 kept as they are" in capsys.readouterr().out
    assert (split / "mask" / "a.png").read_bytes() == before
    assert main(["--data", str(split), "--model", "box", "--overwrite"]) == 0
    np.testing.assert_array_equal(read_mask(split / "mask" / "a.png"), filled(BOXES["a"]))


@pytest.mark.parametrize("kind", ["im", "gt"])
@pytest.mark.parametrize("enrich", [False, True])
def test_a_truncated_file(
    split: Path, kind: str, enrich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With --check, no model is loaded and nothing is written; without it, the rest is done."""
    other = make_split(split.with_name("DIS-TR"), {"d": (3, 3, 30, 20)})
    damaged = split / kind / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    before = {path: path.read_bytes() for path in split.parent.rglob("*.*")}
    command = ["--data", str(other), str(split), "--model", "box", *["--enrich"] * enrich]
    with monkeypatch.context() as patch:
        patch.setattr(backends, "load_predictor", None)
        assert main([*command, "--check"]) == 2
    message = capsys.readouterr().err
    assert f"error: 1 files of the data sets cannot be used:\n  truncated: {damaged}: " in message
    assert {path: path.read_bytes() for path in split.parent.rglob("*.*")} == before
    assert main(command) == 1
    assert f"failed: {damaged}" in capsys.readouterr().out
    if enrich:
        assert files(split.with_name("DIS-VD-enriched")) == samples("a_comp_0", "c_comp_0")
    else:
        assert files(split / "mask") == {"a.png", "c.png"} and files(other / "mask") == {"d.png"}


def test_what_is_only_doubtful_does_not_stop_a_checked_run(split: Path, caplog: pytest.LogCaptureFixture) -> None:
    (split / "im" / "d.png").write_bytes((split / "im" / "a.png").read_bytes())
    write_mask(split / "gt" / "d.png", filled(None))
    assert main(["--data", str(split), "--model", "box", "--check"]) == 0
    assert files(split / "mask") == {"a.png", "b.png", "c.png", "d.png"}
    assert f"duplicate: {split / 'im' / 'd.png'} has the same pixels as {split / 'im' / 'a.png'}" in caplog.text
    assert f"empty: {split / 'gt' / 'd.png'}: " in caplog.text


def test_a_checked_run_with_prompts_and_relative_paths(
    split: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(split)
    Path("p.csv").write_text("name,object,x0,y0,x1,y1\na.png,,3,3,40,30\n")
    command = ["--images", "im", "--prompts", "p.csv", "--out", "out", "--model", "box", "--check"]
    assert main(command) == 0
    assert files(split / "out") == {"a.png"}
    command = ["--data", ".", "--prompts", "p.csv", "--model", "box", "--check"]
    shutil.rmtree("gt")  # is not read
    assert main(command) == 0
    Path("im/a.png").write_bytes(b"broken")
    assert main(command) == 2
    assert f"unreadable: {split / 'im' / 'a.png'}: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file/masks", "file"])
def test_a_place_that_cannot_be_written_is_tried_first(
    split: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Row 23: one message that names the folder, before the model is loaded."""
    (split / "file").write_text("x")
    monkeypatch.setattr(backends, "load_predictor", None)
    arguments = ["--images", str(split / "im"), "--gt", str(split / "gt"), "--out", str(split / place)]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert str(split / place) in message and "choose another" in message and "Traceback" not in message


def test_a_read_only_folder_is_named_first(split: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Row 23: a data set on a read-only disk."""
    (split / "mask").mkdir(mode=0o500)
    try:
        (split / "mask" / "probe").touch()
        pytest.skip("this user may write everywhere")
    except PermissionError:
        pass
    monkeypatch.setattr(backends, "load_predictor", None)
    assert main(["--data", str(split)]) == 2
    assert f"{split / 'mask'}" in capsys.readouterr().err


def test_two_commands_in_one_folder(split: Path, capsys: pytest.CaptureFixture) -> None:
    """Row 52, its kind: the second command is refused before it loads a model."""
    with lock_folder(split / "mask", "a mask run"):
        assert main(["--data", str(split), "--model", "box"]) == 2
    assert "is in use by a mask run" in capsys.readouterr().err
