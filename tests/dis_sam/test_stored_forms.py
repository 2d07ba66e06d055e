"""The commands read masks, ground truths and photographs in every stored form alike, from end to end."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_sample
from PIL import Image

from dis_sam.cli import main
from dis_sam.formats import labelme
from IS_Net.errors import ImageError
from IS_Net.images import image_size, read_mask, write_image, write_mask

Binary = np.ndarray
"""(H, W) bool."""


def save_array(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def save_palette(path: Path, found: Binary) -> None:
    image = Image.fromarray(found.astype(np.uint8)).convert("P")
    image.putdata(found.astype(np.uint8).flatten().tolist())
    image.putpalette([0, 0, 0, 64, 0, 0])
    image.save(path)


def save_cutout(path: Path, found: Binary) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (*found.shape, 3), dtype=np.uint8)
    save_array(path, np.dstack([colors, found.astype(np.uint8) * np.uint8(255)]))


FORMS: dict[str, tuple[str, Callable[[Path, Binary], None]]] = {
    "0/1": (".png", lambda path, found: save_array(path, found.astype(np.uint8))),
    "0/2": (".png", lambda path, found: save_array(path, found.astype(np.uint8) * np.uint8(2))),
    "0/20 in 16 bits": (".png", lambda path, found: save_array(path, found.astype(np.uint16) * np.uint16(20))),
    "0/4095": (".png", lambda path, found: save_array(path, found.astype(np.uint16) * np.uint16(4095))),
    "0/255 in 16 bits": (".tif", lambda path, found: save_array(path, found.astype(np.uint16) * np.uint16(255))),
    "float": (".tif", lambda path, found: save_array(path, found.astype(np.float32))),
    "dark red": (".png", lambda path, found: save_array(path, found[..., None] * np.uint8([128, 0, 0]))),
    "orange": (".bmp", lambda path, found: save_array(path, found[..., None] * np.uint8([250, 179, 36]))),
    "palette": (".png", save_palette),
    "cut-out": (".png", save_cutout),
    "upper case": (".PNG", lambda path, found: Image.fromarray(found.astype(np.uint8) * 255).save(path, "PNG")),
}


def make_split(folder: Path, form: str = "") -> Path:
    """Write three pairs with coarse masks; in a form, the ground truths and the masks are stored in it."""
    for index, (height, width) in enumerate(((60, 80), (72, 60), (64, 64))):
        image, gt, mask = draw_sample(index, height, width)
        write_image(folder / "im" / f"ring_{index}.png", image)
        for sub, plane in (("gt", gt > 128), ("mask", mask > 128)):
            (folder / sub).mkdir(exist_ok=True)
            if form:
                extension, save = FORMS[form]
                save(folder / sub / f"ring_{index}{extension}", plane)
            else:
                write_mask(folder / sub / f"ring_{index}.png", plane)
    return folder


def scores(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("form", FORMS)
def test_rows_6_to_10_evaluate(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture):
    """Faults 6, 7, 8, 9, 10: ground truths and predictions in any form get the scores of the plain form."""
    tables = []
    for number, stored in enumerate(("", form)):
        split = make_split(tmp_path / str(number) / "split", stored)
        tables.append(tmp_path / f"{number}.csv")
        arguments = ["--gt", split, "--pred", f"coarse-like={split / 'mask'}", "--csv", tables[-1], "--no-cache"]
        assert main(["evaluate", *map(str, arguments), "--workers", "0"]) == 0
    assert scores(tables[0]) == scores(tables[1])
    assert ("is read as the object" in caplog.text) == form.startswith("0/")


@pytest.mark.parametrize("form", FORMS)
def test_rows_6_to_9_masks_and_their_boxes(tmp_path: Path, form: str):
    """Faults 6 to 9: zero masks, exit 0."""
    for number, stored in enumerate(("", form)):
        split = make_split(tmp_path / str(number) / "split", stored)
        shutil.rmtree(split / "mask")
        assert main(["masks", "--data", str(split), "--model", "box"]) == 0
    for index in range(3):
        plain, other = (read_mask(tmp_path / str(n) / "split" / "mask" / f"ring_{index}.png") for n in (0, 1))
        np.testing.assert_array_equal(plain, other)
        assert plain.any()


def valid(weights: Path, split: Path, out: Path, *arguments: str) -> int:
    settings = {
        "restore_model": weights,
        "valid_datasets": split,
        "valid_out_dir": out,
        "cache_size": 128,
        "input_size": 128,
        "workers": 0,
        "metrics": "mae,f",
    }
    return main(["valid", *(f"{key}={value}" for key, value in settings.items()), *arguments])


@pytest.mark.parametrize("form", ["0/2", "cut-out"])
def test_rows_6_to_9_valid(tmp_path: Path, form: str, weights: Path, capsys: pytest.CaptureFixture):
    """Faults 6 to 9, 29: mode=valid scores the same for every form."""
    printed = []
    for stored in ("", form):
        split = make_split(tmp_path / (stored.replace("/", "-") or "plain") / "split", stored)
        assert valid(weights, split, tmp_path / "out") == 0
        printed.append([line for line in capsys.readouterr().out.splitlines() if "random" in line])
    assert printed[0] == printed[1] != []


def test_row_25_names_of_two_forms_in_the_commands(tmp_path: Path, weights: Path):
    split = make_split(tmp_path / "split")
    for sub, form in (("im", "NFD"), ("gt", "NFC"), ("mask", "NFC")):
        (split / sub / "ring_0.png").rename(split / sub / unicodedata.normalize(form, "Caf\u00e9.png"))
    assert valid(weights, split, tmp_path / "out") == 0
    assert main(["masks", "--data", str(split), "--model", "box"]) == 0
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(unicodedata.normalize("NFD", "name,object,x0,y0,x1,y1\nCaf\u00e9,,5,5,40,40\n"), "utf-8")
    arguments = ["--images", split / "im", "--prompts", prompts, "--out", tmp_path / "masks", "--model", "box"]
    assert main(["masks", *map(str, arguments)]) == 0
    assert [path.name for path in (tmp_path / "masks").glob("*.png")] == ["Caf\u00e9.png"]


def test_row_29_no_twin_is_written_beside_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Fault 29: NAME.png was written beside NAME.jpg and NAME.PNG, after which every run refused the folder."""
    split = make_split(tmp_path / "split")
    masks = split / "mask"
    Image.open(masks / "ring_0.png").save(masks / "ring_0.jpg", quality=95)
    (masks / "ring_0.png").unlink()
    (masks / "ring_1.png").rename(masks / "ring_1.PNG")
    (masks / "ring_2.png").unlink()
    kept = {path: path.read_bytes() for path in masks.iterdir()}
    make = ["masks", "--data", str(split), "--model", "box"]
    evaluate = ["evaluate", "--gt", str(split), "--coarse", "mask", "--workers", "0", "--metrics", "mae", "--no-cache"]
    assert main(make) == 0
    assert "2 kept as they are" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path.name for path in masks.glob("ring*")} == {"ring_0.jpg", "ring_1.PNG", "ring_2.png"}
    assert main(evaluate) == 0
    assert main([*make, "--overwrite"]) == 0
    assert {path.name for path in masks.glob("ring*")} == {"ring_0.png", "ring_1.png", "ring_2.png"}
    assert main(evaluate) == 0


@pytest.mark.parametrize("content", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"P6 #" + b"x" * 99 + b"\n1 1 255 abc"])
def test_pictures_inside_of_labelme_files_are_of_the_named_formats(tmp_path: Path, content: bytes):
    data = {"imagePath": "gone.png", "imageData": base64.b64encode(content).decode(), "shapes": [], "version": "5.5.0"}
    (tmp_path / "a.json").write_text(json.dumps(data | {"imageHeight": 1, "imageWidth": 1}))
    with pytest.raises(ImageError, match=r"a\.json: imageData cannot be read .*expected JPEG, PNG"):
        labelme.read(tmp_path / "a.json")


def test_row_35_im_is_missing_in_every_command(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "photos"
    write_image(folder / "a.png", draw_sample(0, 60, 80)[0])
    assert valid(weights, folder, tmp_path / "out", "mode=inference") == 2
    assert main(["masks", "--data", str(folder), "--model", "box"]) == 2
    printed = capsys.readouterr().err
    assert printed.count(f"{folder / 'im'}: the folder does not exist, and {folder} holds images itself") == 2


def test_row_38_masks_of_objects_in_mode_valid(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture):
    split = make_split(tmp_path / "split")
    shutil.copy(split / "mask" / "ring_0.png", split / "mask" / "ring_0_a.png")
    (split / "mask" / "ring_0.png").rename(split / "mask" / "ring_0_b.png")
    assert valid(weights, split, tmp_path / "out") == 2
    assert "found coarse masks of its objects, ring_0_a, ring_0_b" in capsys.readouterr().err
    assert valid(weights, split, tmp_path / "out", "mode=inference") == 0
    assert {path.stem for path in (tmp_path / "out").rglob("*.png")} == {"ring_0_a", "ring_0_b", "ring_1", "ring_2"}


def test_rows_13_17_18_24_50_the_rest_of_a_folder_is_done(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
):
    """Faults 13, 17, 18, 24, 50: each bad file is named, all others are done, exit 1."""
    split = make_split(tmp_path / "split")
    images, masks = split / "im", split / "mask"
    tag = b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x28\0\x04\0\0\0\x01\0\x01\x11\x70\0\0\0\0"
    Image.new("RGB", (60, 80), (200, 30, 30)).save(images / "odd.jpg", exif=b"Exif\0\0" + tag)
    Image.new("RGB", (80, 60)).save(images / "frames.gif", save_all=True, append_images=[Image.new("RGB", (80, 60), 9)])
    buffer = io.BytesIO()
    Image.fromarray(draw_sample(9, 60, 80)[0]).save(buffer, "PNG")
    (images / "cut_short.png").write_bytes(buffer.getvalue()[:3000])
    (images / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    Image.new("RGB", (400, 300)).save(images / "large.png")
    (images / "drawing.psd").write_bytes(b"8BPS")
    names = ("odd", "frames", "cut_short", "eps", "large")
    for name in names:
        size = (300, 400) if name == "large" else (60, 80)
        write_mask(masks / f"{name}.png", cv2.circle(np.zeros(size, np.uint8), (40, 30), 20, 255, -1))
    assert image_size(images / "odd.jpg") == (60, 80)
    monkeypatch.setenv("DIS_SAM_MAX_MEGAPIXELS", "0.1")
    assert valid(weights, split, tmp_path / "out", "mode=inference") == 1
    printed = "".join(capsys.readouterr())
    assert {path.stem for path in (tmp_path / "out").rglob("*.png")} == {"ring_0", "ring_1", "ring_2", "odd", "frames"}
    shutil.rmtree(split / "gt")
    arguments = [images, "-m", masks, "-o", tmp_path / "cut", "--weights", weights]
    assert main(["refine", *map(str, arguments)]) == 1
    printed += "".join(capsys.readouterr()) + caplog.text
    for name in ("cut_short.png", "eps.png", "large.png"):
        assert printed.count(f"{images / name}: ") >= 2, printed
    assert "DIS_SAM_MAX_MEGAPIXELS=1" in printed
    made = {path.stem.split(".")[0] for path in (tmp_path / "cut").rglob("*.png")}
    assert made == {"ring_0", "ring_1", "ring_2", "odd", "frames"}
