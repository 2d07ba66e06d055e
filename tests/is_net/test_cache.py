"""Reading samples, and the cache of resized ones."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from IS_Net import cache as cache_module
from IS_Net.cache import _allocate
from IS_Net.data_loader import DISDataset, ValidDataset
from IS_Net.errors import BoxError, DatasetError, ImageError
from IS_Net.images import read_image, read_mask, write_image, write_mask
from IS_Net.lock import LOCK_FILE
from IS_Net.preprocess import box_from_mask, make_planes, resize_uint8
from tests.processes import wait_for_end

SIZE = (128, 128)


def caches(entry: dict[str, str]) -> list[Path]:
    return sorted(path for path in Path(entry["cache_dir"]).iterdir() if path.name != LOCK_FILE)


# --- reading samples ---


@pytest.mark.parametrize("in_ch", [3, 4, 5])
@pytest.mark.parametrize("cache", [True, False])
def test_a_sample_equals_the_predictors_input_for_the_same_files(make_dataset, in_ch, cache):
    dataset = DISDataset(make_dataset(cache=cache), in_ch, SIZE)
    for index, sample in enumerate(dataset.samples):
        image, mask = read_image(sample.image), read_mask(sample.mask) if sample.mask else None
        wanted = make_planes(image, mask, None, in_ch, SIZE)
        assert np.array_equal(dataset.planes(index)[:in_ch], wanted)
        assert np.array_equal(dataset.planes(index)[in_ch], resize_uint8(read_mask(sample.gt), SIZE)[0])


def test_the_input_size_may_differ_from_the_cache_size(make_dataset):
    dataset = DISDataset(make_dataset(), 4, SIZE, input_size=(160, 144))
    assert np.load(caches({"cache_dir": str(Path(dataset.samples[0].image).parents[2] / "cache")})[0]).shape[2:] == SIZE
    assert dataset.planes(0).shape == (5, 160, 144)


def test_an_empty_ground_truth_is_allowed(make_dataset):
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


def test_an_image_rotated_by_exif_pairs_with_upright_masks(make_dataset):
    entry = make_dataset() | {"im_ext": ""}
    upright = read_image(Path(entry["im_dir"]) / "ring_0.png")
    (Path(entry["im_dir"]) / "ring_0.png").unlink()
    turned, exif = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be displayed rotated by 90 degrees clockwise
    turned.save(Path(entry["im_dir"]) / "ring_0.tif", exif=exif)
    dataset = DISDataset(entry, 4, SIZE)
    assert np.array_equal(dataset.planes(0)[:3], resize_uint8(upright, SIZE))


def test_a_prompt_outside_its_image_is_an_error_that_names_the_mask(make_dataset):
    entry = make_dataset(cache=False)
    line = {"mask": "ring_1", "image": "ring_1", "box": [900, 4, 950, 60], "model": "vit_l"}
    (Path(entry["mid_dir"]) / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(BoxError, match=r"ring_1\.png.*outside its image"):
        DISDataset(entry, 5, SIZE).planes(1)


def test_without_a_cache_a_damaged_file_is_an_error_when_it_is_read(make_dataset):
    entry = make_dataset(cache=False)
    path = Path(entry["im_dir"]) / "ring_0.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ImageError, match=r"ring_0\.png"):
        DISDataset(entry, 4, SIZE).planes(0)


def test_the_default_box_is_that_of_the_mask(make_dataset):
    entry = make_dataset()
    dataset = DISDataset(entry, 5, SIZE)
    mask = read_mask(dataset.samples[0].mask)
    x0, y0, x1, y1 = box_from_mask(mask)
    rows, columns = np.flatnonzero(dataset.planes(0)[4].any(1)), np.flatnonzero(dataset.planes(0)[4].any(0))
    scale_y, scale_x = SIZE[0] / mask.shape[0], SIZE[1] / mask.shape[1]
    assert rows[0] == int(y0 * scale_y) and rows[-1] == int(np.ceil((y1 + 1) * scale_y)) - 1
    assert columns[0] == int(x0 * scale_x) and columns[-1] == int(np.ceil((x1 + 1) * scale_x)) - 1


# --- the cache ---


def test_a_cache_is_built_once_and_shared(make_dataset, monkeypatch):
    entry = make_dataset()
    first = DISDataset(entry, 4, SIZE)
    monkeypatch.setattr(cache_module, "_build_cache", lambda *_: pytest.fail("built again"))
    second = DISDataset(entry, 4, SIZE)
    assert len(caches(entry)) == 1
    assert all(np.array_equal(first.planes(i), second.planes(i)) for i in range(3))


def test_a_preloaded_cache_gives_the_same(make_dataset):
    entry = make_dataset()
    mapped, held = DISDataset(entry, 4, SIZE), DISDataset(entry, 4, SIZE, preload=True)
    assert isinstance(mapped._cache, np.memmap) and not isinstance(held._cache, np.memmap)
    assert np.array_equal(mapped.planes(2), held.planes(2))


@pytest.mark.parametrize("kind", ["im", "gt", "mid"])
def test_a_changed_file_gives_a_new_cache_and_the_old_one_is_deleted(make_dataset, kind):
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


def test_caches_of_other_sizes_and_channels_are_kept(make_dataset):
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


def test_a_full_disk_is_an_error_before_anything_is_written(make_dataset, monkeypatch):
    entry = make_dataset()
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DatasetError, match="its cache needs"):
        DISDataset(entry, 4, SIZE)
    assert caches(entry) == []


def test_a_disk_that_fills_up_is_an_error_before_anything_is_written(make_dataset, monkeypatch):
    """The space that was free is gone (row 42 of the list of faults): it is allocated before the file is mapped."""
    entry = make_dataset()

    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"its cache needs .* \(No space left on device\); choose another cache_dir"):
        DISDataset(entry, 4, SIZE)
    assert caches(entry) == []


def test_the_space_of_a_cache_is_allocated(tmp_path):
    array = _allocate(tmp_path / "a.npy", (3, 4, 200, 200))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes


@pytest.mark.parametrize("damage", ["short", "empty", "header", "other"])
def test_a_damaged_cache_is_built_again(make_dataset, damage):
    """Row 51 of the list of faults."""
    entry = make_dataset()
    wanted = DISDataset(entry, 4, SIZE).planes(1).copy()  # not a view of the file that is damaged
    (path,) = caches(entry)
    content = path.read_bytes()
    if damage == "other":
        np.save(path, np.zeros((3, 5, 7), np.uint8))
    else:
        path.write_bytes(
            {"short": content[:-1000], "empty": b"", "header": b"\x93NUMPY\x01\x00v\x00{'a" + content}[damage]
        )
    assert np.array_equal(DISDataset(entry, 4, SIZE).planes(1), wanted)
    assert caches(entry) == [path]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that share a barrier")
def test_processes_that_find_the_same_damaged_cache_build_it_once(make_dataset, monkeypatch, tmp_path: Path):
    entry = make_dataset()
    wanted = DISDataset(entry, 4, SIZE).planes(1).copy()
    (path,) = caches(entry)
    path.write_bytes(path.read_bytes()[:1000])
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    is_whole, fill, looks = cache_module._is_whole, cache_module._fill_cache, []

    def looked(*arguments) -> bool:
        found = is_whole(*arguments)
        looks.append(found)
        if len(looks) == 1:
            barrier.wait(60)  # both have found the damage, and neither has removed it
        return found

    def counted(*arguments) -> None:
        (tmp_path / f"built by {os.getpid()}").touch()
        fill(*arguments)

    def open_it() -> None:
        planes = DISDataset(entry, 4, SIZE).planes(1)
        sys.exit(0 if np.array_equal(planes, wanted) else 3)

    monkeypatch.setattr(cache_module, "_is_whole", looked)
    monkeypatch.setattr(cache_module, "_fill_cache", counted)
    monkeypatch.setattr(cache_module, "workers_that_fit", lambda *_: 0)
    processes = [context.Process(target=open_it) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("built by *"))) == 1
    assert caches(entry) == [path]


def test_names_that_differ_in_other_letters_only_keep_their_caches(make_dataset):
    entries = [make_dataset(name) for name in ("训练", "验证", "a b", "a_b", "a-b")]
    for entry in entries:
        DISDataset(entry, 4, SIZE)
    made = caches(entries[0])
    assert len(made) == 5 and all(path.name.isascii() for path in made)
    for entry in entries:
        DISDataset(entry, 4, SIZE)
    assert caches(entries[0]) == made


def test_what_a_killed_build_has_left_is_removed_after_a_file_has_changed(make_dataset):
    entry, other = make_dataset(), make_dataset("other")
    for one in (entry, other):
        DISDataset(one, 4, SIZE)
    left = {path: path.with_name(f".{path.name}.123.part") for path in caches(entry)}
    for path in left.values():
        path.touch()
    os.utime(Path(entry["im_dir"]) / "ring_0.png", (1, 1))
    DISDataset(entry, 4, SIZE)
    assert [path for path in left.values() if path.exists()] == [
        part for path, part in left.items() if path.name.startswith("other_")
    ]


def test_building_a_cache_draws_no_random_numbers(make_dataset):
    """Otherwise a run that builds its cache would differ from one that finds it."""
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    DISDataset(make_dataset(), 4, SIZE)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize("killed", ["group", "main process"])
def test_a_cache_whose_build_was_killed_is_built_again(make_dataset, tmp_path, killed):
    """If only the main process is killed, its workers end, too (row 41 of the list of faults)."""
    entry = make_dataset()
    script = textwrap.dedent(f"""
        import time
        from IS_Net import cache, data_loader
        read = cache.read_image
        def slow(path):
            if path.stem == "ring_2":
                print("half way", flush=True)
                time.sleep(60)
            return read(path)
        cache.read_image = slow
        data_loader.DISDataset({entry!r}, 4, {SIZE!r})
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    assert process.stdout.readline() == b"half way\n"
    if killed == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    wait_for_end(process.pid)
    assert not [path for path in caches(entry) if path.suffix == ".npy"]
    dataset = DISDataset(entry, 4, SIZE)
    wanted = DISDataset({**entry, "cache_dir": ""}, 4, SIZE)
    assert all(np.array_equal(dataset.planes(i), wanted.planes(i)) for i in range(3))
    assert [path.suffix for path in caches(entry)] == [".npy"]


def test_validation_and_inference_have_separate_caches(make_dataset):
    entry = make_dataset()
    for _ in range(2):
        DISDataset(entry, 4, SIZE)
        DISDataset({**entry, "gt_dir": ""}, 4, SIZE, need_gt=False)
    assert len(caches(entry)) == 2


def test_a_spawned_worker_maps_the_cache_instead_of_copying_it(make_dataset):
    dataset = DISDataset(make_dataset(), 4, SIZE)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < dataset.planes(0).nbytes / 4
    again = pickle.loads(pickled)
    assert isinstance(again._cache, np.memmap) and np.array_equal(again.planes(2), dataset.planes(2))


def test_a_file_time_alone_gives_a_new_cache(make_dataset):
    """A file that was replaced by one of the same size, such as a shifted mask, is detected by its time."""
    entry = make_dataset()
    DISDataset(entry, 4, SIZE)
    old = caches(entry)
    path = Path(entry["mid_dir"]) / "ring_0.png"
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns + 1))
    DISDataset(entry, 4, SIZE)
    assert caches(entry) != old
