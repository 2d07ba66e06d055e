"""Training and validation datasets, their batches, and synthetic samples."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from IS_Net.augment import augment
from IS_Net.data_loader import (
    DISDataset,
    EndlessBatches,
    Synthesis,
    TrainDataset,
    TrainKey,
    ValidDataset,
    train_loader,
    valid_loader,
)
from IS_Net.datalist import photographs
from IS_Net.images import read_mask, write_image, write_mask
from IS_Net.preprocess import Window, box_from_mask
from IS_Net.synthesis import composer, copy_paste, sources
from IS_Net.synthesis.copy_paste import Photo, Scene, draw_scene
from IS_Net.synthesis.regions import draw_region
from IS_Net.synthesis.simulate_masks import MASK_SOURCES, RELIABLE_SOURCES

SIZE = (128, 128)
pytestmark = pytest.mark.usefixtures("one_thread")


# --- batches ---


@given(length=st.integers(1, 30), batch_size=st.integers(1, 40), epochs=st.integers(1, 4), start=st.integers(0, 100))
def test_every_epoch_contains_every_sample_once(length, batch_size, epochs, start):
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


def test_several_training_sets_are_concatenated(make_dataset):
    sets = [DISDataset(make_dataset(name), 4, SIZE) for name in ("one", "two")]
    data = TrainDataset(sets, 0, flip_h=False, flip_v=False)
    assert len(data) == 6
    assert np.array_equal(data[TrainKey(0, 4)].numpy(), sets[1].planes(1))


def test_a_batch_larger_than_the_set_contains_all_of_it(make_dataset):
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


def test_images_without_ground_truth_give_their_sizes(make_dataset):
    dataset = ValidDataset(DISDataset(make_dataset() | {"gt_dir": ""}, 4, SIZE, need_gt=False))
    (batch,) = valid_loader(dataset, 3, 0)
    assert batch.gts is None
    assert batch.sizes == [(150, 200), (160, 140), (131, 177)]
    assert batch.planes.shape == (3, 4, *SIZE)


# --- synthetic samples ---


@pytest.fixture
def make_train(make_dataset):
    """Return a function that makes a training set; its data set has no mask files if 3 channels are stored."""
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
    """Check the coarse mask and the box of a synthetic sample."""
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
def test_without_synthesis_samples_are_only_augmented(make_dataset, in_ch):
    """The planes are those of the files, and the augmentation uses the same random numbers."""
    data = DISDataset(make_dataset(), in_ch, SIZE)
    given = TrainDataset([data], 5, True, True, (128, 120), in_ch, Synthesis(0.0, 0.0))
    for key in (TrainKey(epoch, index) for epoch in range(4) for index in range(3)):
        rng = np.random.default_rng((5, *key))
        wanted = augment(torch.from_numpy(np.array(data.planes(key.index))), rng, True, True, (128, 120)).numpy()
        assert np.array_equal(given[key].numpy(), wanted)
        assert np.array_equal(TrainDataset([data], 5, True, True, (128, 120))[key].numpy(), wanted)


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_masks_are_simulated_if_there_are_none(make_train, in_ch):
    data = make_train(in_ch, simulate_mask=1.0)
    stored = data.dataset
    for index, planes in enumerate(items(data, epochs=4)):
        check_added_planes(planes, in_ch)
        assert np.array_equal(planes[:3], stored[index % 3][:3]) and np.array_equal(planes[-1], stored[index % 3][-1])
    if in_ch > 3:
        masks = {planes[3].tobytes() for planes in items(data, epochs=4)}
        assert len(masks) > 8  # a different mask in each epoch


def test_a_share_of_the_masks_is_simulated(make_train):
    data = make_train(4, stored=4, simulate_mask=0.5)
    same = []
    for index, planes in enumerate(items(data, epochs=14)):
        stored = data.dataset[index % 3]
        same.append(np.array_equal(planes[3], stored[3]))
        assert np.array_equal(planes[[0, 1, 2, 4]], stored[[0, 1, 2, 4]])
    assert 10 < sum(same) < 32


def test_an_empty_ground_truth_gives_an_empty_simulated_mask_and_box(make_dataset):
    entry = make_dataset()
    write_mask(Path(entry["gt_dir"]) / "ring_0.png", np.zeros((150, 200), np.uint8))
    data = TrainDataset([DISDataset(entry, 3, SIZE)], 0, False, False, in_ch=5, synthesis=Synthesis(simulate_mask=1.0))
    for epoch in range(10):
        planes = data[TrainKey(epoch, 0)].numpy()
        assert planes.shape[0] == 6 and planes[:3].any() and not planes[3:].any()


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_copy_paste_gives_complete_samples(make_train, in_ch):
    data = make_train(in_ch, copy_paste=1.0, simulate_mask=1.0)
    known = [data.dataset[index][:3] for index in range(3)]
    new = 0
    for planes in items(data, epochs=5):
        check_added_planes(planes, in_ch)
        assert np.count_nonzero(planes[-1] > 128) >= 50
        new += not any(np.array_equal(planes[:3], image) for image in known)
    assert new > 8


def test_copy_paste_depends_on_seed_epoch_and_index_only(make_train):
    first = items(make_train(4, copy_paste=1.0, simulate_mask=1.0), epochs=3)
    again = items(make_train(4, copy_paste=1.0, simulate_mask=1.0), epochs=3)
    other = items(make_train(4, copy_paste=1.0, simulate_mask=1.0, seed=4), epochs=3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({planes.tobytes() for planes in first}) == 9
    key = TrainKey(2, 1)  # whatever was requested before
    assert np.array_equal(make_train(4, copy_paste=1.0, simulate_mask=1.0)[key].numpy(), first[7])


def test_synthetic_batches_do_not_depend_on_workers(make_train):
    data = make_train(5, copy_paste=0.7, simulate_mask=1.0)
    alone = list(islice(train_loader(data, 2, workers=0), 6))
    shared = list(islice(train_loader(data, 2, workers=2), 6))
    assert [tuple(b.shape) for b in alone] == [(2, 6, *SIZE), (1, 6, *SIZE)] * 3
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_a_sample_is_the_same_in_every_batch(make_train):
    data = make_train(5, copy_paste=0.7, simulate_mask=1.0)
    keys = [TrainKey(epoch, index) for epoch in range(4) for index in range(3)]
    alone = [data[key] for key in keys]
    assert torch.equal(data.__getitems__(keys), torch.stack(alone))
    assert torch.equal(data.__getitems__(keys[::-1]), torch.stack(alone[::-1]))


def noted_scenes(monkeypatch) -> list[Scene]:
    """Return a list that collects the scenes that are drawn from now on."""
    seen = []

    def noted(*args):
        seen.append(draw_scene(*args))
        return seen[-1]

    monkeypatch.setattr(composer, "draw_scene", noted)
    return seen


@pytest.mark.parametrize("given_ones", [True, False])
def test_backgrounds_are_the_given_photographs_or_the_training_images(make_train, tmp_path, monkeypatch, given_ones):
    for number in range(5):
        write_image(tmp_path / "streets" / f"{number}.png", np.full((70, 90, 3), 40 * number, np.uint8))
    streets = DISDataset(photographs(tmp_path / "streets"), 3, SIZE, need_gt=False)
    monkeypatch.setattr(copy_paste, "SCENES", {copy_paste._several: 1.0})
    seen = noted_scenes(monkeypatch)
    data = make_train(3, copy_paste=1.0, simulate_mask=1.0, backgrounds=streets if given_ones else None)
    items(data, epochs=20)
    assert {scene.photo.is_background for scene in seen} == {given_ones}
    assert {scene.photo.index for scene in seen} == set(range(5 if given_ones else 3))
    assert {layer.index for scene in seen for layer in scene.layers} == {0, 1, 2}
    gray = np.stack([data._composer._load(Photo(2, True), Window(3, 5, 40, 30))[0]]) if given_ones else None
    assert gray is None or (gray.shape == (1, 3, 40, 30) and (gray == 80).all())


def fake_scenes(monkeypatch, gt: np.ndarray, region: bool = False) -> None:
    """Let all scenes be white and have this ground truth."""
    drawn = draw_scene

    def draw(*args):
        return replace(drawn(*args), region=draw_region(np.random.default_rng(0)) if region else None)

    def make(scenes, load, device):
        image = torch.full((len(scenes), 3, *gt.shape), 255, dtype=torch.uint8)
        return image, torch.from_numpy(gt).expand(len(scenes), 1, *gt.shape)

    monkeypatch.setattr(composer, "draw_scene", draw)
    monkeypatch.setattr(composer, "render", make)


@pytest.mark.parametrize(("mask_only_target", "sources"), [(False, MASK_SOURCES), (True, RELIABLE_SOURCES)])
def test_a_mask_only_target_gets_a_mask_of_a_reliable_source(make_train, monkeypatch, mask_only_target, sources):
    taken = []

    def noted(gt, image, rng, sources):
        taken.append(sources)
        return gt

    fake_scenes(monkeypatch, np.full(SIZE, 255, np.uint8), mask_only_target)
    monkeypatch.setattr(composer, "simulate_mask", noted)
    items(make_train(4, copy_paste=1.0))
    assert len(taken) == 3 and all(used is sources for used in taken)


@pytest.mark.parametrize("waits", [True, False], ids=["cpu", "as on a GPU"])
@pytest.mark.parametrize(("visible", "used"), [(0, False), (4, False), (60, True)])
@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_a_copy_paste_sample_with_a_hidden_target_is_not_used(make_train, monkeypatch, visible, used, in_ch, waits):
    target = np.zeros(SIZE, np.uint8)
    target[:visible, :visible] = 255
    fake_scenes(monkeypatch, target)
    data = make_train(in_ch, stored=in_ch, copy_paste=1.0)
    if not waits:
        monkeypatch.setattr(data._composer, "device", torch.device("meta"))  # its branch, on the tensors of a CPU
    for index, planes in enumerate(items(data)):
        assert np.array_equal(planes[-1], target) == (planes[:3] == 255).all() == used
        assert np.array_equal(planes, data.dataset[index]) == (not used)
        if used:
            check_added_planes(planes, in_ch)


def test_a_hidden_target_is_replaced_by_the_stored_sample_with_a_simulated_mask(make_train, monkeypatch):
    """If all masks are simulated, the data set stores none."""
    fake_scenes(monkeypatch, np.zeros(SIZE, np.uint8))
    data = make_train(5, copy_paste=1.0, simulate_mask=1.0)
    for index, planes in enumerate(items(data)):
        assert np.array_equal(planes[[0, 1, 2, 5]], data.dataset[index])
        check_added_planes(planes, 5)


def test_sources_fit_or_the_cpu_is_used(make_train, monkeypatch, caplog):
    """Without a GPU: what decides where samples are made."""
    gpu = torch.device("cuda", 0)
    sample = np.zeros((4, 10, 10), np.uint8)
    for free, fitting in ((2000 * 400, True), (2000 * 400 - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        assert sources.fits([[sample] * 500, [sample] * 500], gpu) == fitting
    assert "composed on the CPU" in caplog.text
    assert make_train(4, copy_paste=1.0, simulate_mask=1.0).device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_samples(make_train):
    on_cpu = make_train(5, copy_paste=0.8, simulate_mask=1.0)
    on_gpu = TrainDataset(
        on_cpu.dataset.datasets, on_cpu.seed, False, False, None, 5, on_cpu.synthesis, torch.device("cuda")
    )
    loader = train_loader(on_gpu, 3, workers=2, pin=True)
    for batch, wanted in zip(islice(loader, 8), train_loader(on_cpu, 3, workers=0), strict=False):
        assert batch.is_cuda and batch.dtype == torch.uint8
        difference = (batch.cpu().int() - wanted.int()).abs().float()
        assert (difference > 2).float().mean((0, 2, 3)).max() < 0.02
