"""Pairing and checking the files of data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from IS_Net.errors import DatasetError
from IS_Net.images import write_mask
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
    with pytest.raises(DatasetError, match=r"coarse masks.*does not exist.*sam\.generate_masks"):
        find_samples(entry, need_mask=True, need_gt=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"im_dir": "nowhere"}, "images.*nowhere.*does not exist.*check im_dir"),
        ({"im_ext": ".jpg"}, r"images.*end in \.jpg.*contains only \.png"),
        ({"gt_ext": ".bmp"}, r"ground truths.*end in \.bmp.*contains only \.png"),
        ({"mid_ext": ".bmp"}, r"coarse masks.*end in \.bmp.*contains only \.png.*sam\.generate_masks"),
        ({"mid_dir": ""}, r"no folder of coarse masks.*sam\.generate_masks"),
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
