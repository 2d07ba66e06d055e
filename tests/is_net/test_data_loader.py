"""Pairing, checking, caching and batching of data sets."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from IS_Net import data_loader
from IS_Net.augment import augment
from IS_Net.data_loader import (
    DISDataset,
    EndlessBatches,
    Synthesis,
    TrainDataset,
    TrainKey,
    ValidDataset,
    check_dataset,
    find_samples,
    train_loader,
    valid_loader,
)
from IS_Net.datalist import photographs
from IS_Net.errors import BoxError, DatasetError, ImageError
from IS_Net.images import read_image, read_mask, write_image, write_mask
from IS_Net.preprocess import box_from_mask, make_planes, resize_uint8
from IS_Net.synthesis.copy_paste import Composite
from IS_Net.synthesis.simulate_masks import MASK_SOURCES, RELIABLE_SOURCES

SIZE = (128, 128)


def caches(entry: dict[str, str]) -> list[Path]:
    return sorted(Path(entry["cache_dir"]).iterdir())


# --- pairing ---


def test_files_are_paired_by_name(make_dataset):
    samples = find_samples(make_dataset(), need_mask=True, need_gt=True)
    assert [s.name for s in samples] == ["ring_0", "ring_1", "ring_2"]
    assert all(s.image.stem == s.mask.stem == s.gt.stem == s.name for s in samples)


def test_every_missing_file_is_named_at_once(make_dataset):
    entry = make_dataset()
    (Path(entry["gt_dir"]) / "ring_0.png").unlink()
    (Path(entry["mid_dir"]) / "ring_2.png").rename(Path(entry["mid_dir"]) / "ring2.png")
    with pytest.raises(DatasetError, match=r"(?s)2 files are missing.*ring_0: no ground truth.*ring_2: no coarse mask"):
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
        ({"im_dir": "nowhere"}, "images.*nowhere.*does not exist"),
        ({"im_ext": ".jpg"}, r"no images ending in \.jpg.*it holds \.png"),
        ({"gt_ext": ".bmp"}, "no ground truth"),
        ({"gt_dir": ""}, "no folder of ground truth"),
        ({"im_dir": ""}, "'im_dir' is missing"),
        ({"imdir": "x"}, "unknown key 'imdir'"),
    ],
)
def test_a_wrong_description_is_told(make_dataset, change, message):
    with pytest.raises(DatasetError, match=message):
        find_samples(make_dataset() | change, need_mask=True, need_gt=True)


def test_sizes_that_differ_are_all_named(make_dataset):
    entry = make_dataset()
    write_mask(Path(entry["gt_dir"]) / "ring_0.png", np.zeros((10, 12), np.uint8))
    write_mask(Path(entry["mid_dir"]) / "ring_1.png", np.zeros((14, 13), np.uint8))
    with pytest.raises(DatasetError) as error:
        find_samples(entry, need_mask=True, need_gt=True)
    assert "12 x 10 pixels, its image ring_0.png 200 x 150" in str(error.value)
    assert "13 x 14 pixels, its image ring_1.png 140 x 160" in str(error.value)


def test_two_files_of_one_name_are_refused(make_dataset):
    entry = make_dataset() | {"im_ext": ""}
    shutil.copy(Path(entry["im_dir"]) / "ring_0.png", Path(entry["im_dir"]) / "ring_0.tif")
    with pytest.raises(DatasetError, match="share the name 'ring_0'"):
        find_samples(entry, need_mask=True, need_gt=True)


def test_an_image_turned_by_exif_pairs_with_upright_masks(make_dataset):
    entry = make_dataset() | {"im_ext": ""}
    upright = read_image(Path(entry["im_dir"]) / "ring_0.png")
    (Path(entry["im_dir"]) / "ring_0.png").unlink()
    turned, exif = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(Path(entry["im_dir"]) / "ring_0.tif", exif=exif)
    dataset = DISDataset(entry, 4, SIZE)
    assert np.array_equal(dataset.planes(0)[:3], resize_uint8(upright, SIZE))


def test_several_masks_of_one_photograph_are_samples_of_their_own(make_dataset):
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


def test_a_prompt_outside_its_image_is_told_with_its_file(make_dataset):
    entry = make_dataset(cache=False)
    line = {"mask": "ring_1", "image": "ring_1", "box": [900, 4, 950, 60], "model": "vit_l"}
    (Path(entry["mid_dir"]) / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(BoxError, match=r"ring_1\.png.*outside its image"):
        DISDataset(entry, 5, SIZE).planes(1)


# --- samples ---


@pytest.mark.parametrize("in_ch", [3, 4, 5])
@pytest.mark.parametrize("cache", [True, False])
def test_an_item_is_what_the_predictor_sees_of_the_same_files(make_dataset, in_ch, cache):
    dataset = DISDataset(make_dataset(cache=cache), in_ch, SIZE)
    for index, sample in enumerate(dataset.samples):
        image, mask = read_image(sample.image), read_mask(sample.mask) if sample.mask else None
        wanted = make_planes(image, mask, None, in_ch, SIZE)
        assert np.array_equal(dataset.planes(index)[:in_ch], wanted)
        assert np.array_equal(dataset.planes(index)[in_ch], resize_uint8(read_mask(sample.gt), SIZE)[0])


def test_the_network_may_see_another_size_than_is_stored(make_dataset):
    dataset = DISDataset(make_dataset(), 4, SIZE, input_size=(160, 144))
    assert np.load(caches({"cache_dir": str(Path(dataset.samples[0].image).parents[2] / "cache")})[0]).shape[2:] == SIZE
    assert dataset.planes(0).shape == (5, 160, 144)


def test_an_empty_ground_truth_is_a_sample_like_any_other(make_dataset):
    entry = make_dataset()
    write_mask(Path(entry["gt_dir"]) / "ring_0.png", np.zeros((150, 200), np.uint8))
    write_mask(Path(entry["mid_dir"]) / "ring_0.png", np.zeros((150, 200), np.uint8))
    planes = DISDataset(entry, 5, SIZE).planes(0)
    assert planes[:3].any() and not planes[3:].any()


def test_a_ground_truth_of_zeros_and_ones_is_scaled(make_dataset):
    entry = make_dataset()
    path = Path(entry["gt_dir"]) / "ring_0.png"
    before = read_mask(path) > 128
    Image.fromarray(before.astype(np.uint8)).save(path)
    item = ValidDataset(DISDataset(entry, 4, SIZE))[0]
    assert np.array_equal(item.gt.numpy(), before * 255)


# --- the cache ---


def test_a_cache_is_built_once_and_shared(make_dataset, monkeypatch):
    entry = make_dataset()
    first = DISDataset(entry, 4, SIZE)
    monkeypatch.setattr(data_loader, "_build_cache", lambda *_: pytest.fail("built again"))
    second = DISDataset(entry, 4, SIZE)
    assert len(caches(entry)) == 1
    assert all(np.array_equal(first.planes(i), second.planes(i)) for i in range(3))


def test_a_preloaded_cache_gives_the_same(make_dataset):
    entry = make_dataset()
    mapped, held = DISDataset(entry, 4, SIZE), DISDataset(entry, 4, SIZE, preload=True)
    assert isinstance(mapped._planes, np.memmap) and not isinstance(held._planes, np.memmap)
    assert np.array_equal(mapped.planes(2), held.planes(2))


@pytest.mark.parametrize("kind", ["im", "gt", "mid"])
def test_a_changed_file_is_picked_up_and_the_old_cache_goes(make_dataset, kind):
    entry = make_dataset()
    before = DISDataset(entry, 4, SIZE).planes(1).copy()
    old = caches(entry)
    path = Path(entry[f"{kind}_dir"]) / "ring_1.png"
    if kind == "im":
        write_image(path, 255 - read_image(path))
    else:
        write_mask(path, 255 - read_mask(path))
    after = DISDataset(entry, 4, SIZE).planes(1)
    channels = {"im": slice(0, 3), "mid": slice(3, 4), "gt": slice(4, 5)}[kind]
    changed = np.zeros(5, bool)
    changed[channels] = True
    assert [(a != b).any() for a, b in zip(before, after, strict=True)] == list(changed)
    assert len(caches(entry)) == 1 and caches(entry) != old


def test_caches_of_other_sizes_and_channels_stay(make_dataset):
    entry = make_dataset()
    for in_ch, size in ((4, SIZE), (5, SIZE), (4, (160, 160))):
        DISDataset(entry, in_ch, size)
    assert len(caches(entry)) == 3


def test_damaged_files_are_all_named_and_no_cache_is_left(make_dataset):
    entry = make_dataset()
    for index in (0, 2):
        path = Path(entry["im_dir"]) / f"ring_{index}.png"
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DatasetError) as error:
        DISDataset(entry, 4, SIZE)
    assert "ring_0.png" in str(error.value) and "ring_2.png" in str(error.value)
    assert caches(entry) == []


def test_without_a_cache_a_damaged_file_is_named_when_it_is_read(make_dataset):
    entry = make_dataset(cache=False)
    path = Path(entry["im_dir"]) / "ring_0.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ImageError, match=r"ring_0\.png"):
        DISDataset(entry, 4, SIZE).planes(0)


def test_a_full_disk_is_told_before_anything_is_written(make_dataset, monkeypatch):
    entry = make_dataset()
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DatasetError, match="its cache needs"):
        DISDataset(entry, 4, SIZE)
    assert caches(entry) == []


def test_a_cache_whose_build_was_killed_is_built_anew(make_dataset, tmp_path):
    entry = make_dataset()
    script = textwrap.dedent(f"""
        import time
        from IS_Net import data_loader
        read = data_loader.read_image
        def slow(path):
            if path.stem == "ring_2":
                print("half way", flush=True)
                time.sleep(60)
            return read(path)
        data_loader.read_image = slow
        data_loader.DISDataset({entry!r}, 4, {SIZE!r})
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    assert process.stdout.readline() == b"half way\n"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not [path for path in caches(entry) if path.suffix == ".npy"]
    dataset = DISDataset(entry, 4, SIZE)
    wanted = DISDataset({**entry, "cache_dir": ""}, 4, SIZE)
    assert all(np.array_equal(dataset.planes(i), wanted.planes(i)) for i in range(3))


def test_scoring_and_inference_keep_their_caches_apart(make_dataset):
    entry = make_dataset()
    for _ in range(2):
        DISDataset(entry, 4, SIZE)
        DISDataset({**entry, "gt_dir": ""}, 4, SIZE, need_gt=False)
    assert len(caches(entry)) == 2


def test_a_worker_that_is_not_forked_maps_the_cache_instead_of_getting_it(make_dataset):
    dataset = DISDataset(make_dataset(), 4, SIZE)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < dataset.planes(0).nbytes / 4
    again = pickle.loads(pickled)
    assert isinstance(again._planes, np.memmap) and np.array_equal(again.planes(2), dataset.planes(2))


# --- batches ---


@given(length=st.integers(1, 30), batch_size=st.integers(1, 40), epochs=st.integers(1, 4), start=st.integers(0, 100))
def test_every_epoch_holds_every_sample_once(length, batch_size, epochs, start):
    batches = EndlessBatches(length, batch_size, seed=1)
    keys = [key for batch in islice(batches, epochs * batches.per_epoch) for key in batch]
    assert Counter(keys) == Counter(TrainKey(e, i) for e in range(epochs) for i in range(length))
    later = EndlessBatches(length, batch_size, seed=1, start=start)
    assert list(islice(later, 3)) == list(islice(batches, start, start + 3))


def test_epochs_and_seeds_are_shuffled_differently():
    def order(seed: int, epoch: int) -> list[int]:
        return [key.index for batch in islice(EndlessBatches(50, 10, seed), epoch * 5, epoch * 5 + 5) for key in batch]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_training_batches_do_not_depend_on_workers_or_on_where_they_start(make_dataset):
    data = TrainDataset([DISDataset(make_dataset(), 4, SIZE)], 3, flip_h=True, flip_v=True, crop_size=(128, 96))
    alone = list(islice(train_loader(data, 2, workers=0), 6))
    shared = list(islice(train_loader(data, 2, workers=2), 6))
    resumed = list(islice(train_loader(data, 2, workers=0, start=4), 2))
    assert [tuple(b.shape) for b in alone] == [(2, 5, 128, 96), (1, 5, 128, 96)] * 3
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[4:], resumed, strict=True))


def test_augmentation_keeps_image_mask_box_and_ground_truth_together(make_dataset):
    dataset = DISDataset(make_dataset(), 5, SIZE)
    data = TrainDataset([dataset], 0, flip_h=True, flip_v=True)
    seen = set()
    for epoch in range(30):
        planes = data[TrainKey(epoch, 0)].numpy()
        flips = [(h, v) for h in (1, -1) for v in (1, -1) if np.array_equal(planes, dataset.planes(0)[:, ::v, ::h])]
        assert len(flips) == 1
        seen.update(flips)
    assert len(seen) == 4


def test_several_training_sets_are_one(make_dataset):
    sets = [DISDataset(make_dataset(name), 4, SIZE) for name in ("one", "two")]
    data = TrainDataset(sets, 0, flip_h=False, flip_v=False)
    assert len(data) == 6
    assert np.array_equal(data[TrainKey(0, 4)].numpy(), sets[1].planes(1))


def test_a_batch_larger_than_the_set_holds_all_of_it(make_dataset):
    data = TrainDataset([DISDataset(make_dataset(), 4, SIZE)], 0, flip_h=True, flip_v=True)
    assert next(iter(train_loader(data, 50, workers=0))).shape[0] == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_batches_keep_order_and_full_size_ground_truths(make_dataset, workers):
    dataset = ValidDataset(DISDataset(make_dataset(), 4, SIZE))
    batches = list(valid_loader(dataset, 2, workers))
    assert [batch.names for batch in batches] == [["ring_0", "ring_1"], ["ring_2"]]
    assert [size for batch in batches for size in batch.sizes] == [(150, 200), (160, 140), (131, 177)]
    gts = [gt for batch in batches for gt in batch.gts]
    wanted = [read_mask(sample.gt) for sample in dataset.dataset.samples]
    assert all(np.array_equal(gt.numpy(), want) for gt, want in zip(gts, wanted, strict=True))


def test_photographs_without_ground_truth_give_their_sizes(make_dataset):
    dataset = ValidDataset(DISDataset(make_dataset() | {"gt_dir": ""}, 4, SIZE, need_gt=False))
    (batch,) = valid_loader(dataset, 3, 0)
    assert batch.gts is None
    assert batch.sizes == [(150, 200), (160, 140), (131, 177)]
    assert batch.planes.shape == (3, 4, *SIZE)


def test_the_default_box_is_that_of_the_mask(make_dataset):
    entry = make_dataset()
    dataset = DISDataset(entry, 5, SIZE)
    mask = read_mask(dataset.samples[0].mask)
    x0, y0, x1, y1 = box_from_mask(mask)
    rows, columns = np.flatnonzero(dataset.planes(0)[4].any(1)), np.flatnonzero(dataset.planes(0)[4].any(0))
    scale_y, scale_x = SIZE[0] / mask.shape[0], SIZE[1] / mask.shape[1]
    assert rows[0] == int(y0 * scale_y) and rows[-1] == int(np.ceil((y1 + 1) * scale_y)) - 1
    assert columns[0] == int(x0 * scale_x) and columns[-1] == int(np.ceil((x1 + 1) * scale_x)) - 1


def test_times_alone_make_a_cache_new(make_dataset):
    """A file that was replaced by one of equal size, as a mask that moved by a pixel, is noticed by its time."""
    entry = make_dataset()
    DISDataset(entry, 4, SIZE)
    old = caches(entry)
    path = Path(entry["mid_dir"]) / "ring_0.png"
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))
    DISDataset(entry, 4, SIZE)
    assert caches(entry) != old


# --- made-up samples ---


@pytest.fixture
def make_train(make_dataset):
    """Return a function that gives a training set of the small data set, without any mask file where it stores none."""
    entries: dict[str, dict[str, str]] = {}

    def make(in_ch: int = 4, stored: int = 3, seed: int = 3, **synthesis) -> TrainDataset:
        name = f"stored_{stored}"
        if name not in entries:
            entries[name] = make_dataset(name)
            if stored == 3:
                shutil.rmtree(entries[name]["mid_dir"])
        data = DISDataset(entries[name], stored, SIZE)
        return TrainDataset([data], seed, flip_h=False, flip_v=False, in_ch=in_ch, synthesis=Synthesis(**synthesis))

    return make


def items(data: TrainDataset, epochs: int = 1) -> list[np.ndarray]:
    return [data[TrainKey(epoch, index)].numpy() for epoch in range(epochs) for index in range(len(data))]


def check_added_planes(planes: np.ndarray, in_ch: int) -> None:
    """Check the coarse mask and the box of a sample that was made up."""
    assert planes.shape == (in_ch + 1, *SIZE) and planes.dtype == np.uint8
    gt = planes[-1] > 128
    if in_ch > 3:
        assert set(np.unique(planes[3])) <= {0, 255} and planes[3].any() == gt.any()
    if in_ch > 4:
        wanted = np.zeros(SIZE, np.uint8)
        x0, y0, x1, y1 = box_from_mask(gt)
        wanted[y0 : y1 + 1, x0 : x1 + 1] = 255
        assert np.array_equal(planes[4], wanted)


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_without_made_up_samples_all_is_as_it_was(make_dataset, in_ch):
    """The same bytes as the files', and the same chances for the augmentation."""
    data = DISDataset(make_dataset(), in_ch, SIZE)
    given = TrainDataset([data], 5, True, True, (128, 120), in_ch, Synthesis(0.0, 0.0))
    for key in (TrainKey(epoch, index) for epoch in range(4) for index in range(3)):
        rng = np.random.default_rng((5, *key))
        wanted = augment(data.planes(key.index), rng, True, True, (128, 120))
        assert np.array_equal(given[key].numpy(), wanted)
        assert np.array_equal(TrainDataset([data], 5, True, True, (128, 120))[key].numpy(), wanted)


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_masks_are_simulated_where_there_are_none(make_train, in_ch):
    data = make_train(in_ch, simulate_mask=1.0)
    stored = data.all
    for index, planes in enumerate(items(data, epochs=4)):
        check_added_planes(planes, in_ch)
        assert np.array_equal(planes[:3], stored[index % 3][:3]) and np.array_equal(planes[-1], stored[index % 3][-1])
    if in_ch > 3:
        masks = {planes[3].tobytes() for planes in items(data, epochs=4)}
        assert len(masks) > 8  # another one in each epoch


def test_a_share_of_the_masks_is_simulated(make_train):
    data = make_train(4, stored=4, simulate_mask=0.5)
    same = []
    for index, planes in enumerate(items(data, epochs=14)):
        stored = data.all[index % 3]
        same.append(np.array_equal(planes[3], stored[3]))
        assert np.array_equal(planes[[0, 1, 2, 4]], stored[[0, 1, 2, 4]])
    assert 10 < sum(same) < 32


def test_of_an_empty_ground_truth_the_simulated_mask_and_box_are_empty(make_dataset):
    entry = make_dataset()
    write_mask(Path(entry["gt_dir"]) / "ring_0.png", np.zeros((150, 200), np.uint8))
    data = TrainDataset([DISDataset(entry, 3, SIZE)], 0, False, False, in_ch=5, synthesis=Synthesis(simulate_mask=1.0))
    for epoch in range(10):
        planes = data[TrainKey(epoch, 0)].numpy()
        assert planes.shape[0] == 6 and planes[:3].any() and not planes[3:].any()


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_composites_are_samples_like_any_other(make_train, in_ch):
    data = make_train(in_ch, copy_paste=1.0, simulate_mask=1.0)
    known = [data.all[index][:3] for index in range(3)]
    new = 0
    for planes in items(data, epochs=5):
        check_added_planes(planes, in_ch)
        assert np.count_nonzero(planes[-1] > 128) >= 50
        new += not any(np.array_equal(planes[:3], image) for image in known)
    assert new > 8


def test_composites_depend_on_seed_epoch_and_index_alone(make_train):
    first = items(make_train(4, copy_paste=1.0, simulate_mask=1.0), epochs=3)
    again = items(make_train(4, copy_paste=1.0, simulate_mask=1.0), epochs=3)
    other = items(make_train(4, copy_paste=1.0, simulate_mask=1.0, seed=4), epochs=3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({planes.tobytes() for planes in first}) == 9
    key = TrainKey(2, 1)  # whatever was asked for before
    assert np.array_equal(make_train(4, copy_paste=1.0, simulate_mask=1.0)[key].numpy(), first[7])


def test_made_up_batches_do_not_depend_on_workers(make_train):
    data = make_train(5, copy_paste=0.7, simulate_mask=1.0)
    alone = list(islice(train_loader(data, 2, workers=0), 6))
    shared = list(islice(train_loader(data, 2, workers=2), 6))
    assert [tuple(b.shape) for b in alone] == [(2, 6, *SIZE), (1, 6, *SIZE)] * 3
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("given_ones", [True, False])
def test_composites_stand_before_the_photographs_given_or_the_training_images(
    make_train, tmp_path, monkeypatch, given_ones
):
    for number in range(5):
        write_image(tmp_path / "streets" / f"{number}.png", np.full((70, 90, 3), 40 * number, np.uint8))
    streets = DISDataset(photographs(tmp_path / "streets"), 3, SIZE, need_gt=False)
    seen, objects = [], []

    def noted(background, draw, rng):
        seen.append(background)
        objects.append(draw())
        return Composite(background, np.full(SIZE, 255, np.uint8), plain=False)

    monkeypatch.setattr(data_loader, "copy_paste", noted)
    data = make_train(3, copy_paste=1.0, simulate_mask=1.0, backgrounds=streets if given_ones else None)
    taken = items(data, epochs=20)
    wanted = streets if given_ones else data.all
    pool = {np.ascontiguousarray(wanted[index][:3]).tobytes() for index in range(len(wanted))}
    assert {np.ascontiguousarray(image).tobytes() for image in seen} == pool
    assert {planes[:3].tobytes() for planes in taken} == pool
    assert {planes.tobytes() for planes in objects} == {data.all[index].tobytes() for index in range(3)}


@pytest.mark.parametrize(("plain", "sources"), [(False, MASK_SOURCES), (True, RELIABLE_SOURCES)])
def test_where_only_the_mask_tells_it_is_faithful(make_train, monkeypatch, plain, sources):
    taken = []

    def noted(gt, image, rng, sources):
        taken.append(sources)
        return gt

    full = np.full(SIZE, 255, np.uint8)
    monkeypatch.setattr(data_loader, "copy_paste", lambda background, *_: Composite(background, full, plain))
    monkeypatch.setattr(data_loader, "simulate_mask", noted)
    items(make_train(4, copy_paste=1.0))
    assert len(taken) == 3 and all(used is sources for used in taken)


@pytest.mark.parametrize(("visible", "used"), [(0, False), (4, False), (60, True)])
def test_a_composite_that_shows_next_to_nothing_is_not_used(make_train, monkeypatch, visible, used):
    target = np.zeros(SIZE, np.uint8)
    target[:visible, :visible] = 255
    monkeypatch.setattr(data_loader, "copy_paste", lambda background, *_: Composite(255 - background, target, False))
    data = make_train(4, stored=4, copy_paste=1.0)
    for index, planes in enumerate(items(data)):
        assert np.array_equal(planes[-1], target) == used
        assert np.array_equal(planes, data.all[index]) == (not used)
