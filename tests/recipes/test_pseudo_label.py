"""pseudo_label: verdicts, the files written, resuming, and errors."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from IS_Net.checkpoint import save_weights
from IS_Net.datalist import from_folder
from IS_Net.errors import DatasetError, FolderInUseError, ImageError
from IS_Net.images import read_image, read_mask, write_image
from IS_Net.lock import lock_folder
from IS_Net.models import ISNetDIS
from IS_Net.samples import find_samples
from recipes.starter import pseudo_label as module
from recipes.starter.pseudo_label import Confidence, label, main, pseudo_label


class Stub:
    """Replaces a predictor: its alpha is the photograph's red channel, or what ``alpha`` returns."""

    in_ch, runtime = 3, SimpleNamespace(where="cpu")

    def __init__(self, alpha: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.alpha, self.seen = alpha or (lambda image: image[..., 0].astype(np.float32) / 255), []

    def predict(self, image: np.ndarray) -> np.ndarray:
        self.seen.append(image)
        return self.alpha(image)


def left_part(image: np.ndarray) -> np.ndarray:
    """Return an alpha that ignores the image: mirrored, it is another object, with an IoU of 1/3."""
    alpha = np.zeros(image.shape[:2], np.float32)
    alpha[:, : image.shape[1] * 2 // 3] = 1
    return alpha


def photograph(red: int = 255, height: int = 60, width: int = 80) -> np.ndarray:
    """Return an image of a rectangle, left of the center, that the stub finds."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 1] = 90
    image[height // 6 : height // 2, width // 8 : width // 2, 0] = red
    return image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with a photograph to keep, one without an object, and one with an undecided object."""
    folder = tmp_path / "photos"
    for name, red in (("clear", 255), ("nothing", 0), ("veil", 150)):
        write_image(folder / f"{name}.png", photograph(red))
    (folder / "notes.txt").write_text("no photograph")
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".txt")


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "labels.csv").open(newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def written(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


# --- verdicts ---


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        (Confidence(agreement=1.0, undecided=0.0, area=0.3), "kept"),
        (Confidence(agreement=0.3, undecided=0.0, area=0.3), "another object when mirrored"),
        (Confidence(agreement=1.0, undecided=0.8, area=0.3), "undecided"),
        (Confidence(agreement=1.0, undecided=0.0, area=0.0), "no object of a useful size"),
        (Confidence(agreement=1.0, undecided=0.0, area=1.0), "no object of a useful size"),
    ],
)
def test_verdicts(figures, verdict):
    assert figures.verdict == verdict


def test_the_object_found_in_both_images_is_the_label():
    image = photograph()
    stub = Stub()
    alpha, figures = label(stub, image)
    assert np.array_equal(stub.seen[0], image) and np.array_equal(stub.seen[1], image[:, ::-1])
    assert alpha.shape == (60, 80) and alpha.dtype == np.float32
    assert np.array_equal(alpha, image[..., 0] == 255)
    assert figures == Confidence(agreement=1.0, undecided=0.0, area=pytest.approx(20 * 30 / 4800))
    assert figures.verdict == "kept"


def test_another_object_in_the_mirror_image_is_a_disagreement():
    figures = label(Stub(left_part), photograph(width=90))[1]
    assert figures.agreement == pytest.approx(1 / 3) and figures.verdict == "another object when mirrored"


def test_a_half_transparent_object_is_undecided():
    figures = label(Stub(), photograph(150))[1]
    assert figures.undecided == 1 and figures.verdict == "undecided"


def test_an_empty_alpha_is_no_object():
    alpha, figures = label(Stub(), photograph(0))
    assert not alpha.any()
    assert (figures.agreement, figures.undecided, figures.area) == (0, 0, 0)
    assert figures.verdict == "no object of a useful size"


def test_contrast_is_increased_and_the_order_is_kept():
    ramp = np.tile(np.linspace(0, 255, 52, dtype=np.uint8)[:, None, None], (1, 40, 3))
    alpha = label(Stub(), ramp)[0][:, 0]
    assert (np.diff(alpha) >= 0).all() and (alpha[0], alpha[-1]) == (0, 1)
    before = ramp[:, 0, 0] / 255
    assert (alpha == 0)[before < 0.1].all() and (alpha == 1)[before > 0.9].all()
    assert alpha[26] == pytest.approx(before[26], abs=0.03)


# --- files ---


def test_kept_photographs_form_a_data_set(photos, tmp_path):
    out = tmp_path / "out"
    verdicts = pseudo_label(files(photos), out, Stub())
    assert verdicts == {"clear": "kept", "nothing": "no object of a useful size", "veil": "undecided"}
    assert written(out) == {"im/clear.jpg", "gt/clear.png", "labels.csv"}
    (sample,) = find_samples(from_folder(out), need_mask=False, need_gt=True)
    assert np.array_equal(read_mask(sample.gt), photograph()[..., 0])
    assert np.abs(read_image(sample.image).astype(int) - photograph()).mean() < 8
    listed = rows(out)
    assert {name: row["verdict"] for name, row in listed.items()} == verdicts
    assert [float(listed["clear"][key]) for key in ("agreement", "undecided", "area")] == [1, 0, 0.125]


def test_a_large_photograph_is_scaled_down_with_its_label(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_SIDE", 40)
    pseudo_label([photos / "clear.png"], tmp_path / "out", Stub())
    assert read_image(tmp_path / "out" / "im" / "clear.jpg").shape == (30, 40, 3)
    assert read_mask(tmp_path / "out" / "gt" / "clear.png").shape == (30, 40)


def test_labeling_resumes(photos, tmp_path):
    out = tmp_path / "out"
    pseudo_label([photos / "clear.png", photos / "veil.png"], out, Stub())
    before = (out / "gt" / "clear.png").stat().st_mtime_ns
    stub = Stub()
    verdicts = pseudo_label(files(photos), out, stub)
    assert len(stub.seen) == 2  # the one photograph that was not labeled yet, and its mirror image
    assert set(verdicts) == {"clear", "nothing", "veil"} == set(rows(out))
    assert verdicts["clear"] == "kept" and rows(out)["clear"]["area"] == "0.125"
    assert (out / "gt" / "clear.png").stat().st_mtime_ns == before


def test_an_interrupted_run_keeps_its_results(photos, tmp_path):
    out, stub = tmp_path / "out", Stub()

    def predict(image: np.ndarray) -> np.ndarray:
        if len(stub.seen) > 2:
            raise KeyboardInterrupt
        return image[..., 0].astype(np.float32) / 255

    stub.alpha = predict
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(files(photos), out, stub)
    assert {name: row["verdict"] for name, row in rows(out).items()} == {"clear": "kept"}


def test_a_photograph_that_cannot_be_read_is_listed_and_the_others_are_labeled(photos, tmp_path):
    out = tmp_path / "out"
    (photos / "a_broken.jpg").write_bytes(b"no image at all")
    verdicts = pseudo_label(files(photos), out, Stub())
    assert "a_broken.jpg" in verdicts["a_broken"] and verdicts["clear"] == "kept"
    listed = rows(out)
    assert listed["a_broken"]["verdict"] == verdicts["a_broken"] and listed["a_broken"]["area"] == ""
    assert set(listed) == {"a_broken", "clear", "nothing", "veil"}
    assert pseudo_label(files(photos), out, Stub()) == verdicts
    write_image(photos / "a_broken.png", photograph())
    (photos / "a_broken.jpg").unlink()
    assert pseudo_label(files(photos), out, Stub()) == {**verdicts, "a_broken": "kept"}  # it is tried again
    (photos / "b_broken.jpg").write_bytes(b"no image at all")
    assert "b_broken" in pseudo_label(files(photos), out, Stub())
    (photos / "b_broken.jpg").unlink()  # what is gone fails no longer
    assert pseudo_label(files(photos), out, Stub()) == {**verdicts, "a_broken": "kept"}


def test_two_photographs_with_one_name_raise_an_error(photos, tmp_path):
    shutil.copy(photos / "veil.png", photos / "clear.bmp")
    with pytest.raises(ImageError, match="share the name 'clear'"):
        pseudo_label(files(photos), tmp_path / "out", Stub())
    assert not (tmp_path / "out").exists()


# --- the command ---


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    found = Stub()
    monkeypatch.setattr(module.DISPredictor, "from_checkpoint", lambda path, device: found)
    return found


def test_the_command_labels_folders(photos, tmp_path, stub, capsys):
    write_image(tmp_path / "more" / "second.PNG".lower(), photograph())
    assert main([str(photos), str(tmp_path / "more"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "labeling 4 photographs on cpu" in printed and "kept 2 of 4" in printed
    assert {path.name for path in (tmp_path / "out" / "im").iterdir()} == {"clear.jpg", "second.jpg"}


def test_a_real_network_labels(photos, tmp_path, capsys):
    torch.manual_seed(0)
    save_weights(tmp_path / "three.safetensors", ISNetDIS(3), {"in_ch": 3, "input_size": [128, 128]})
    arguments = [str(photos), "--weights", str(tmp_path / "three.safetensors"), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "of 3" in capsys.readouterr().out
    listed = rows(tmp_path / "out")
    assert set(listed) == {"clear", "nothing", "veil"}
    assert all(0 <= float(row[key]) <= 1 for row in listed.values() for key in ("agreement", "undecided", "area"))


def test_the_command_names_unreadable_photographs_each_time(photos, tmp_path, stub, capsys):
    (photos / "broken.jpg").write_bytes(b"no image at all")
    for _ in range(2):
        assert main([str(photos), "--out", str(tmp_path / "out")]) == 1
        printed = capsys.readouterr()
        assert "kept 1 of 4" in printed.out and "error: " in printed.err and "broken.jpg" in printed.err


def test_an_interrupted_command_says_how_to_resume(photos, tmp_path, stub, capsys):
    def interrupt(image: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    stub.alpha = interrupt
    assert main([str(photos), "--out", str(tmp_path / "out")]) == 130
    assert "the same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["no folder", "no photographs", "one name", "no weights", "no device"])
def test_errors_are_printed_without_a_traceback(photos, tmp_path, capsys, case):
    (tmp_path / "empty").mkdir()
    arguments, message = {
        "no folder": ([str(photos), str(tmp_path / "gone")], "gone: the folder does not exist"),
        "no photographs": ([str(tmp_path / "empty")], "empty: "),
        "one name": ([str(photos), str(tmp_path / "twins")], "share the name 'clear'"),
        "no weights": ([str(photos), "--weights", str(tmp_path / "gone.safetensors")], "gone.safetensors"),
        "no device": ([str(photos), "--device", "cuda:7"], "cuda:7"),
    }[case]
    shutil.copytree(photos, tmp_path / "twins")
    if case in ("one name", "no device"):
        save_weights(tmp_path / "three.safetensors", ISNetDIS(3), {"in_ch": 3, "input_size": [128, 128]})
        arguments += ["--weights", str(tmp_path / "three.safetensors")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith("error: ") and message in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_weights_with_a_mask_channel_raise_an_error(photos, weights, tmp_path, capsys):
    assert main([str(photos), "--weights", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "4 input channels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- nothing is lost ---


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_photographs_are_never_replaced(photos: Path, tmp_path: Path):
    """Row 4 of the list of faults: --out D for the photographs in D/im shrank them and replaced ground truths."""
    photos.rename(tmp_path / "im")
    write_image(tmp_path / "gt" / "clear.png", photograph()[..., 0])
    (tmp_path / "link").symlink_to(tmp_path)
    before = contents(tmp_path)
    stub = Stub()
    for out in (tmp_path, tmp_path / "im", tmp_path / "link"):
        with pytest.raises(DatasetError, match="would replace the input"):
            pseudo_label(files(tmp_path / "im"), out, stub)
        assert main([str(tmp_path / "im"), "--out", str(out)]) == 2
    assert contents(tmp_path) == before and not stub.seen


def test_files_of_others_are_never_replaced(photos: Path, tmp_path: Path):
    """Row 4, its neighbors: a folder of hand-drawn ground truths, and a labels.csv of another program."""
    out = tmp_path / "out"
    write_image(out / "gt" / "clear.png", photograph()[..., 0])
    before = contents(out)
    with pytest.raises(DatasetError, match=r"gt: holds images, and there is no .*labels.csv"):
        pseudo_label(files(photos), out, Stub())
    (out / "labels.csv").write_text("image,class\na,b\n")
    with pytest.raises(DatasetError, match=r"found the columns image, class.*not written by this program"):
        pseudo_label(files(photos), out, Stub())
    (out / "labels.csv").unlink()
    assert contents(out) == before


def test_a_corrected_label_is_kept_and_an_empty_file_is_made_again(photos: Path, tmp_path: Path):
    """Row 40: 0-byte files under their final names, with rows that vouch for them."""
    out = tmp_path / "out"
    pseudo_label(files(photos), out, Stub())
    gt = out / "gt" / "clear.png"
    whole = gt.read_bytes()
    write_image(gt, photograph(99)[..., 0])
    corrected = gt.read_bytes()
    pseudo_label(files(photos), out, Stub())
    assert gt.read_bytes() == corrected
    gt.write_bytes(b"")
    pseudo_label(files(photos), out, Stub())
    assert gt.read_bytes() == whole
    gt.unlink()  # sorted out by hand
    pseudo_label(files(photos), out, Stub())
    assert not gt.exists()


def test_two_runs_in_one_folder(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Row 52: rows of labels.csv were lost."""
    out = tmp_path / "out"
    with lock_folder(out, "a pseudo-labeling"):
        with pytest.raises(FolderInUseError, match=r"out: is in use by a pseudo-labeling \(process"):
            pseudo_label(files(photos), out, Stub())
        assert main([str(photos), "--out", str(out)]) == 2
    assert "is in use by" in capsys.readouterr().err


def test_names_are_no_formulas(photos: Path, tmp_path: Path):
    """Row 53: a name that starts with = in labels.csv. The run still knows it again."""
    (photos / "clear.png").rename(photos / "=1+1.png")
    stub, out = Stub(), tmp_path / "out"
    verdicts = pseudo_label(files(photos), out, stub)
    assert verdicts["=1+1"] == "kept" and (out / "gt" / "=1+1.png").is_file()
    assert "\n'=1+1,kept," in (out / "labels.csv").read_text().replace("\r", "")
    assert pseudo_label(files(photos), out, again := Stub()) == verdicts and not again.seen


def test_a_place_that_cannot_be_written_is_named_before_the_network_is_loaded(photos, tmp_path, monkeypatch, capsys):
    """Row 23: a folder below a file."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "DISPredictor", None)
    assert main([str(photos), "--out", str(tmp_path / "file" / "out")]) == 2
    assert str(tmp_path / "file" / "out") in capsys.readouterr().err


def test_an_interruption_has_a_message(photos, tmp_path, monkeypatch, capsys):
    """Row 33: a traceback of KeyboardInterrupt."""

    class Interrupted(Stub):
        @classmethod
        def from_checkpoint(cls, *_):
            return cls()

        def predict(self, image):
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "DISPredictor", Interrupted)
    assert main([str(photos), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.endswith("interrupted; the same command resumes\n")
