"""The batch size that fits, and the lines about a training."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from IS_Net import preflight, worker
from IS_Net.errors import HyparError
from IS_Net.hypar import Settings
from IS_Net.preflight import describe, find_batch_size, largest_batch, state_memory
from IS_Net.tasks import SegmentationTask
from IS_Net.worker import workers_that_fit
from tests.thin_networks import Thin, ThinGTEncoder


@given(st.integers(0, 300), st.integers(1, 200))
def test_the_largest_batch_that_fits(limit: int, most: int):
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert largest_batch(fits, most) == min(limit, most)
    assert len(tried) <= 20 and max(tried) <= most


def test_auto_batch_needs_a_cuda_device():
    with pytest.raises(HyparError, match=r"auto_batch.*CUDA device, found cpu; set batch_size_train"):
        find_batch_size(Thin(), Settings(), torch.device("cpu"), None, 10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_batch_on_a_gpu_leaves_the_network_as_it_is():
    model = Thin()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = Settings.from_hypar({"cache_size": 128, "model_path": "x"})
    assert find_batch_size(model, settings, torch.device("cuda"), torch.bfloat16, 16) == 16
    assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("supervised", "expected"), [(False, 9), (True, 7)])
def test_auto_batch_counts_the_gt_encoder(monkeypatch: pytest.MonkeyPatch, supervised: bool, expected: int):
    """A GPU that is not there: its memory is 1000 bytes, of which a sample takes 100, and a GT encoder 200."""
    encoder, moved, size = ThinGTEncoder() if supervised else None, [], 0

    def loss(task: SegmentationTask, planes: torch.Tensor) -> torch.Tensor:
        nonlocal size
        size = len(planes)
        assert task.gt_encoder is encoder
        return next(task.model.parameters()).sum()

    cuda = {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda _: None,
        "get_device_properties": lambda _: SimpleNamespace(total_memory=1000),
        "max_memory_allocated": lambda _: 100 * size + 200 * (encoder in moved),
    }
    for name, replacement in cuda.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: moved.append(module) or module)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(preflight, "autocast", lambda *_: nullcontext())
    monkeypatch.setattr(preflight, "state_memory", lambda model, _: 8 * sum(p.numel() for p in model.parameters()))
    monkeypatch.setattr(SegmentationTask, "loss", loss)
    settings = Settings.from_hypar({"cache_size": 128, "model_path": "x"})
    assert find_batch_size(Thin(), settings, torch.device("cuda"), None, 20, encoder) == expected


def test_the_memory_of_a_training_state():
    model = torch.nn.Linear(1000, 1000, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    held = [model.weight, model.weight.grad, *optimizer.state[model.weight].values()]
    measured = sum(tensor.nbytes for tensor in held if tensor.ndim)
    assert state_memory(model, ema=False) == measured
    assert state_memory(model, ema=True) == measured + model.weight.nbytes
    text = describe(model, Settings(), torch.device("cpu"), torch.bfloat16)
    assert text.startswith("1.0 million parameters on cpu in bfloat16; weights, gradients and optimizer take 0.0 GiB")


@pytest.mark.parametrize(
    ("free", "expected"), [(1 << 40, 4), (12_000_000, 4), (11_000_000, 3), (4_000_000, 1), (2_000_000, 0)]
)
def test_workers_are_as_many_as_shared_memory_holds(monkeypatch, tmp_path, caplog, free, expected):
    """/dev/shm of 4 or 8 MB (row 19 of the list of faults)."""
    monkeypatch.setattr(worker, "_SHARED_MEMORY", tmp_path)
    usage = worker.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(worker.shutil, "disk_usage", lambda _: usage._replace(free=free))
    with caplog.at_level(logging.WARNING):
        assert workers_that_fit(4, 1_000_000) == expected
    assert ("--shm-size" in caplog.text) == (expected < 4)
