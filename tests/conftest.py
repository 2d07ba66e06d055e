"""Small data sets that the tests make for themselves."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import settings

from IS_Net.images import write_image, write_mask
from IS_Net.models import ISNetDIS

# pytest-xdist runs a process for each core; each computes with its share of the cores, and so do its child processes
if worker_count := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    share = max(1, (os.cpu_count() or 1) // worker_count)
    torch.set_num_threads(share)
    cv2.setNumThreads(share)
    os.environ["OMP_NUM_THREADS"] = str(share)

# converting a network for OpenVINO takes seconds; the tests of that runtime ask for it
os.environ["DIS_SAM_RUNTIME"] = "torch"

# a shell that starts the tests in the background has them ignore Ctrl-C, which some of them send to their children
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair, and the same commit has the same examples on each machine.
# `pytest --hypothesis-profile default` searches for new ones.
settings.register_profile("patient", deadline=None, derandomize=True)
settings.load_profile("patient")


def draw_sample(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image, the ground truth of the ring in it, and a coarse mask (the disc around it)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    gt, mask = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    radius = int(min(height, width) * rng.uniform(0.2, 0.4))
    x, y = (int(rng.integers(radius + 2, size - radius - 2)) for size in (width, height))
    cv2.circle(gt, (x, y), radius, 255, max(radius // 4, 2), cv2.LINE_AA)
    cv2.circle(mask, (x, y), radius, 255, -1)
    image[gt > 128] = rng.integers(150, 255, 3, dtype=np.uint8)
    return image, gt, mask


@pytest.fixture(autouse=True)
def float32_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``auto`` mean float32 on every CPU: what this machine is fast at must not change what the tests compare."""
    monkeypatch.setattr("IS_Net.device.has_amx", lambda: False)


@pytest.fixture(autouse=True)
def gt_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what is cached of ground truths out of the project; return where it goes instead."""
    folder = tmp_path_factory.getbasetemp() / "gt_cache"
    monkeypatch.setattr("IS_Net.scoring.gt_cache_folder", lambda: folder)
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread: with small arrays, threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_dataset(
    base: Path, name: str = "tiny", sizes=((150, 200), (160, 140), (131, 177)), cache: bool = True
) -> dict[str, str]:
    """Write a split in the data contract's layout to ``base / name`` and return its entry for datalist."""
    folder = base / name
    for index, (height, width) in enumerate(sizes):
        image, gt, mask = draw_sample(index, height, width)
        write_image(folder / "im" / f"ring_{index}.png", image)
        write_mask(folder / "gt" / f"ring_{index}.png", gt)
        write_mask(folder / "mask" / f"ring_{index}.png", mask)
    return {
        "name": name,
        "im_dir": str(folder / "im"),
        "gt_dir": str(folder / "gt"),
        "mid_dir": str(folder / "mask"),
        "im_ext": ".png",
        "gt_ext": ".png",
        "mid_ext": ".png",
        "cache_dir": str(base / "cache") if cache else "",
    }


@pytest.fixture
def make_dataset(tmp_path: Path):
    """Return a function that writes a split to a folder of the test, as :func:`write_dataset` does."""
    return functools.partial(write_dataset, tmp_path)


@pytest.fixture(scope="session")
def isnet() -> Iterator[ISNetDIS]:
    """Yield a 4-channel network with random weights, in eval mode; all tests share it, so none may change it."""
    torch.manual_seed(0)
    model = ISNetDIS(4).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield model
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name])]
    assert not changed, f"a test changed the network that all tests share: {changed[:3]}"


@pytest.fixture(scope="session")
def weights(isnet: ISNetDIS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of that network, noted to work at 128 x 128."""
    from IS_Net.checkpoint import save_weights

    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_weights(path, isnet, {"in_ch": 4, "input_size": [128, 128]})
    return path
