"""Pairing and checking the files of data sets."""

from __future__ import annotations

import json
import logging
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from IS_Net.datalist import from_folder
from IS_Net.errors import DatasetError, MissingFileError
from IS_Net.images import read_mask, write_mask
from IS_Net.manifest import identify
from IS_Net.samples import check_dataset, find_samples


def test_files_are_paired_by_name(make_dataset):
    samples = find_samples(make_dataset(), need_mask=True, need_gt=True)
    assert [s.name for s in samples] == ["ring_0", "ring_1", "ring_2"]
    assert all(s.image.stem == s.mask.stem == s.gt.stem == s.name for s in samples)


def test_every_missing_file_is_named_at_once(make_dataset):
    entry = make_dataset()
    (Path(entry["gt_dir"]) / "ring_0.png").unlink()
    (Path(entry["mid_dir"]) / "ring_2.png").rename(Path(entry["mid_dir"]) / "ring2.png")
    with pytest.raises(DatasetError, match=r"(?s)files are missing.*ring_0: no ground truth.*ring_2: no coarse mask"):
        find_samples(entry, need_mask=True, need_gt=True)


def test_a_network_of_three_channels_needs_no_masks(make_dataset):
    entry = make_dataset()
    shutil.rmtree(entry["mid_dir"])
    assert all(s.mask is None for s in find_samples(entry, need_mask=False, need_gt=True))
    with pytest.raises(DatasetError, match=r"coarse masks.*does not exist.*dis-sam masks"):
        find_samples(entry, need_mask=True, need_gt=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"im_dir": "nowhere"}, "images.*nowhere.*does not exist.*check im_dir"),
        ({"im_ext": ".jpg"}, r"images.*end in \.jpg.*contains only \.png"),
        ({"gt_ext": ".bmp"}, r"ground truths.*end in \.bmp.*contains only \.png"),
        ({"mid_ext": ".bmp"}, r"coarse masks.*end in \.bmp.*contains only \.png.*dis-sam masks"),
        ({"mid_dir": ""}, r"no folder of coarse masks.*dis-sam masks"),
        ({"gt_dir": ""}, "no folder of ground truth"),
        ({"im_dir": ""}, "'im_dir' is missing"),
        ({"imdir": "x"}, "unknown key 'imdir'; did you mean 'im_dir'"),
    ],
)
def test_errors_of_an_entry_name_the_key_or_folder(make_dataset, change, message):
    with pytest.raises(DatasetError, match=message):
        find_samples(make_dataset() | change, need_mask=True, need_gt=True)


def test_sizes_that_differ_are_all_named(make_dataset):
    entry = make_dataset()
    write_mask(Path(entry["gt_dir"]) / "ring_0.png", np.zeros((10, 12), np.uint8))
    write_mask(Path(entry["mid_dir"]) / "ring_1.png", np.zeros((14, 13), np.uint8))
    with pytest.raises(DatasetError) as error:
        find_samples(entry, need_mask=True, need_gt=True)
    assert "ring_0.png is 12 x 10 pixels, but its image ring_0.png is 200 x 150 pixels" in str(error.value)
    assert "ring_1.png is 13 x 14 pixels, but its image ring_1.png is 140 x 160 pixels" in str(error.value)


def test_two_images_of_one_name_are_an_error(make_dataset):
    entry = make_dataset() | {"im_ext": ""}
    shutil.copy(Path(entry["im_dir"]) / "ring_0.png", Path(entry["im_dir"]) / "ring_0.tif")
    with pytest.raises(DatasetError, match=r"ring_0\.png and ring_0\.tif; names must differ"):
        find_samples(entry, need_mask=True, need_gt=True)


def test_each_mask_of_an_image_is_a_sample_without_ground_truth(make_dataset):
    entry = make_dataset() | {"gt_dir": ""}
    masks = Path(entry["mid_dir"])
    (masks / "ring_1.png").rename(masks / "ring_1_left_wheel.png")
    shutil.copy(masks / "ring_1_left_wheel.png", masks / "ring_1_bell.png")
    samples = find_samples(entry, need_mask=True, need_gt=False)
    owners = {s.name: s.image.stem for s in samples}
    assert owners == {"ring_0": "ring_0", "ring_1_bell": "ring_1", "ring_1_left_wheel": "ring_1", "ring_2": "ring_2"}


def test_mask_dir_and_mask_ext_are_aliases(make_dataset):
    entry = make_dataset()
    other = {key.replace("mid_", "mask_"): value for key, value in entry.items()}
    assert check_dataset(other) == check_dataset(entry)


def test_the_prompt_of_a_mask_is_read_from_its_manifest(make_dataset):
    entry = make_dataset()
    line = {"mask": "ring_1", "image": "ring_1", "box": [3, 4, 50, 60], "model": "vit_l"}
    (Path(entry["mid_dir"]) / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    boxes = [s.box for s in find_samples(entry, need_mask=True, need_gt=True)]
    assert boxes == [None, (3, 4, 50, 60), None]


def test_the_remedy_for_missing_masks_fits_the_data_set(make_dataset):
    entry = make_dataset()
    shutil.rmtree(entry["mid_dir"])
    with pytest.raises((DatasetError, MissingFileError), match=r"dis-sam masks --data \S+tiny \(without SAM"):
        find_samples(entry, need_mask=True, need_gt=True)
    with pytest.raises(
        (DatasetError, MissingFileError), match=r"dis-sam masks --images \S+im --prompts FILE --out \S+mask"
    ):
        find_samples({**entry, "gt_dir": ""}, need_mask=True, need_gt=False)


def test_the_prompt_of_a_mask_that_was_replaced_is_not_used(make_dataset):
    entry = make_dataset()
    mask = Path(entry["mid_dir"]) / "ring_1.png"
    line = {"mask": "ring_1", "image": "ring_1", "box": [3, 4, 50, 60], "model": "vit_l", **identify(mask, "mask")}
    (Path(entry["mid_dir"]) / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    assert find_samples(entry, need_mask=True, need_gt=True)[1].box == (3, 4, 50, 60)
    write_mask(mask, np.roll(read_mask(mask), 9))
    assert find_samples(entry, need_mask=True, need_gt=True)[1].box is None


# --- names and forms of files ---


def test_row_25_composed_and_decomposed_names_pair(make_dataset):
    """Fault 25: "Cafe with accent: no coarse mask", although both names look the same."""
    entry = make_dataset()
    for folder, form in (("im_dir", "NFC"), ("gt_dir", "NFD"), ("mid_dir", "NFD")):
        path = Path(entry[folder]) / "ring_0.png"
        path.rename(path.with_name(unicodedata.normalize(form, "Caf\u00e9.png")))
    samples = {s.name: s for s in find_samples(entry, need_mask=True, need_gt=True)}
    assert samples.keys() == {"Caf\u00e9", "ring_1", "ring_2"}
    assert samples["Caf\u00e9"].gt.is_file() and samples["Caf\u00e9"].mask.is_file()


def test_row_25_two_forms_of_one_name_are_an_error(make_dataset):
    entry = make_dataset()
    for form in ("NFC", "NFD"):
        shutil.copy(
            Path(entry["im_dir"]) / "ring_0.png", Path(entry["im_dir"]) / unicodedata.normalize(form, "\u00e9.png")
        )
    with pytest.raises(DatasetError, match="names must differ"):
        find_samples(entry, need_mask=True, need_gt=True)


def test_row_29_ground_truths_and_masks_of_any_format(make_dataset):
    """Fault 29: JPEG files and upper-case extensions were "missing" in a folder that is named instead of an entry."""
    entry = make_dataset()
    gts, masks = Path(entry["gt_dir"]), Path(entry["mid_dir"])
    wanted = read_mask(gts / "ring_0.png") > 128
    Image.open(gts / "ring_0.png").save(gts / "ring_0.jpg", quality=95)
    (gts / "ring_0.png").unlink()
    Image.open(masks / "ring_1.png").save(masks / "ring_1.JPG", "JPEG")
    (masks / "ring_1.png").unlink()
    (masks / "ring_2.png").rename(masks / "ring_2.PNG")
    samples = find_samples(from_folder(gts.parent), need_mask=True, need_gt=True)
    assert [s.gt.name for s in samples] == ["ring_0.jpg", "ring_1.png", "ring_2.png"]
    assert [s.mask.name for s in samples] == ["ring_0.png", "ring_1.JPG", "ring_2.PNG"]
    assert ((read_mask(samples[0].gt) > 128) != wanted).mean() < 0.01


def test_row_29_a_file_of_another_extension_is_named(make_dataset):
    entry = make_dataset()
    for key in ("gt_dir", "mid_dir"):
        path = Path(entry[key]) / "ring_0.png"
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    with pytest.raises(DatasetError) as error:
        find_samples(entry, need_mask=True, need_gt=True)
    assert "that ends in .png, but there is ring_0.jpg: set gt_ext to ''" in str(error.value)
    assert "that ends in .png, but there is ring_0.jpg: set mid_ext to ''" in str(error.value)


@pytest.mark.parametrize("im_ext", ["", ".png"])
def test_row_37_subfolders_and_other_files_are_left_out_and_named(make_dataset, caplog, im_ext: str):
    """Fault 37: a subfolder or a file without an ending was taken for an image, and the whole set refused."""
    entry = make_dataset() | {"im_ext": im_ext}
    images = Path(entry["im_dir"])
    (images / "old.png").mkdir()
    (images / "more").mkdir()
    (images / "README").write_text("x")
    (images / "scene.psd").write_text("x")
    (images / "boxes.csv").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(find_samples(entry, need_mask=True, need_gt=True)) == 3
        find_samples(entry, need_mask=True, need_gt=True)
    [message] = caplog.messages
    assert message.startswith(f"{images}: left out")
    assert message.endswith("README, more/, old.png/, scene.psd")


@pytest.mark.parametrize("need_mask", [True, False])
def test_row_35_a_missing_im_is_said(make_dataset, need_mask: bool):
    """Fault 35: photographs that lie in the folder itself; the message spoke of masks."""
    folder = Path(make_dataset()["im_dir"]).parent
    for path in (folder / "im").iterdir():
        path.rename(folder / path.name)
    for sub in ("im", "mask", "gt"):
        shutil.rmtree(folder / sub)
    with pytest.raises(DatasetError, match=r"im: the folder does not exist, and .* holds images itself; .*move them"):
        find_samples(from_folder(folder), need_mask=need_mask, need_gt=False)


def test_row_38_masks_of_objects_have_no_ground_truth(make_dataset):
    """Fault 38: "no coarse mask" though two of its objects lie there."""
    entry = make_dataset()
    masks = Path(entry["mid_dir"])
    shutil.copy(masks / "ring_1.png", masks / "ring_1_a.png")
    (masks / "ring_1.png").rename(masks / "ring_1_b.png")
    with pytest.raises(DatasetError) as error:
        find_samples(entry, need_mask=True, need_gt=False)
    assert "ring_1: found coarse masks of its objects, ring_1_a, ring_1_b, but its ground truth" in str(error.value)
    assert "no coarse mask" not in str(error.value)
    assert len(find_samples(entry | {"gt_dir": ""}, need_mask=True, need_gt=False)) == 4


# --- what sizes do not tell, and what cannot be read ---


@pytest.mark.parametrize(
    ("orientation", "size", "told"), [(3, (200, 150), True), (6, (150, 150), True), (1, (9, 9), False)]
)
def test_row_11_images_that_are_turned_in_place_are_told(tmp_path: Path, caplog, orientation: int, size, told: bool):
    """Fault 11: the ground truth of the unturned pixels has the right size."""
    for sub in ("im", "gt", "mask"):
        (tmp_path / sub).mkdir()
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.new("RGB" if sub == "im" else "L", size)
        image.save(tmp_path / sub / f"a.{'jpg' if sub == 'im' else 'png'}", **({"exif": exif} if sub == "im" else {}))
    with caplog.at_level(logging.WARNING):
        find_samples(from_folder(tmp_path), need_mask=True, need_gt=True)
    assert ("1 images are turned by their EXIF orientation without a change of size" in caplog.text) == told


def test_rows_18_and_24_an_unreadable_image_does_not_stop_a_prediction(make_dataset, monkeypatch):
    """Faults 18 and 24: one photograph that is damaged or too large refused its whole folder."""
    entry = make_dataset() | {"gt_dir": ""}
    (Path(entry["im_dir"]) / "ring_0.png").write_bytes(b"nothing")
    monkeypatch.setenv("DIS_SAM_MAX_MEGAPIXELS", "0.025")  # that of ring_1 has .0224, ring_2 .0232
    Image.new("RGB", (300, 100)).save(Path(entry["im_dir"]) / "ring_2.png")
    assert len(find_samples(entry, need_mask=True, need_gt=False)) == 3
    with pytest.raises(DatasetError, match=r"(?s)2 samples cannot be used.*ring_0.*ring_2.*DIS_SAM_MAX_MEGAPIXELS"):
        find_samples(entry | {"gt_dir": entry["mid_dir"]}, need_mask=True, need_gt=True)


def test_names_that_are_no_text(make_dataset):
    entry = make_dataset()
    for key in ("im_dir", "gt_dir", "mid_dir"):
        folder = Path(entry[key])
        try:
            (folder / "ring_0.png").rename(folder / os.fsdecode(b"ring\xff.png"))
        except OSError:
            pytest.skip("this file system has no such names")
    assert len(find_samples(entry, need_mask=True, need_gt=True)) == 3
