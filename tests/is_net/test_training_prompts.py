"""The prompts of training batches: boxes, dropped masks, the network's own masks, and windows."""

from __future__ import annotations

import copy
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from IS_Net.checkpoint import load_state, read_weights
from IS_Net.data_loader import DISDataset, TrainDataset, ValidDataset, train_loader, valid_loader
from IS_Net.engine import Run, fit
from IS_Net.errors import HyparError
from IS_Net.hypar import PROMPT_KEYS, Settings
from IS_Net.losses import bce_loss
from IS_Net.phases import Session, train
from IS_Net.predictor import DISPredictor
from IS_Net.preprocess import Window, box_from_mask, fill_box, make_planes, make_window_planes, resize_planes
from IS_Net.run_log import RunLog
from IS_Net.tasks import GTEncoderTask, SegmentationTask
from IS_Net.tensors import alpha_to_uint8, make_input, resize_alpha
from IS_Net.training_prompts import (
    cut_window,
    fill_boxes,
    find_bounds,
    jitter_boxes,
    outside_boxes,
    place_window,
    prepare_batch,
)

CPU = torch.device("cpu")
SIDE = 128


def settings_of(**changes: Any) -> Settings:
    small = {"model": 5, "cache_size": SIDE, "model_digit": "full", "workers": 0, "interm_sup": False}
    return Settings.from_hypar({**small, **changes})


def random_batch(number: int, in_ch: int = 5, size: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> Tensor:
    """Return a batch of random images, each with a random rectangle as target, as the loader gives it."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(number):
        gt = np.zeros(size, np.uint8)
        top, left = rng.integers(5, size[0] // 2), rng.integers(5, size[1] // 2)
        gt[top : top + rng.integers(20, size[0] // 2 - 5), left : left + rng.integers(20, size[1] // 2 - 5)] = 255
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        mask = np.roll(gt, 9, axis=1)
        planes = make_planes(image, mask, box_from_mask(gt), in_ch, size)
        samples.append(np.concatenate((planes, gt[None])))
    return torch.from_numpy(np.stack(samples))


def forbidden(_planes: Tensor) -> Tensor:
    raise AssertionError("the network was run although no sample needs it")


def as_alpha(planes: Tensor) -> Tensor:
    """Stand in for a network: an alpha matte that depends on image, mask and box."""
    x = planes.float() / 255
    return 0.5 * x[:, :1] + 0.3 * x[:, 3:4] + 0.2 * x[:, -1:]


class Small(nn.Module):
    """A network of three convolutions with the interface of ISNetDIS."""

    def __init__(self, in_ch: int = 5, width: int = 12) -> None:
        super().__init__()
        self.in_ch = in_ch
        self.layers = nn.Sequential(
            nn.Conv2d(in_ch, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 1),
        )

    def predict_logits(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [self.predict_logits(x)], []


# --- boxes ---


@given(st.data())
def test_bounds_and_channels_are_those_of_prediction(data: st.DataObject):
    frame = data.draw(st.tuples(st.integers(3, 40), st.integers(3, 40)))
    size = data.draw(st.tuples(st.integers(3, 40), st.integers(3, 40)))
    masks = np.stack([np.random.default_rng(data.draw(st.integers(0, 99))).random(frame) > 0.97 for _ in range(3)])
    boxes = find_bounds(torch.from_numpy(masks))
    filled = fill_boxes(boxes, frame, size)
    for mask, box, channel in zip(masks, boxes.tolist(), filled, strict=True):
        expected = box_from_mask(mask)
        assert box == list(expected or (0, 0, -1, -1))
        assert np.array_equal(channel.numpy(), fill_box(expected, frame, size)[0])


@given(st.integers(0, 10_000), st.floats(0, 0.25))
def test_jitter_moves_each_side_by_at_most_its_share_and_stays_inside(seed: int, jitter: float):
    rng = np.random.default_rng(seed)
    frame = (int(rng.integers(4, 60)), int(rng.integers(4, 60)))
    x, y = (np.sort(rng.integers(0, side, (6, 2)), axis=1) for side in (frame[1], frame[0]))
    boxes = torch.from_numpy(np.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), axis=1))
    shifts = torch.from_numpy(rng.uniform(-jitter, jitter, (6, 4)).astype(np.float32))
    moved = jitter_boxes(boxes, shifts, frame)
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    assert ((moved - boxes).abs() <= (sides * jitter + 0.5)).all()
    assert (moved[:, :2] >= 0).all() and (moved[:, 2] < frame[1]).all() and (moved[:, 3] < frame[0]).all()
    assert (moved[:, :2] <= moved[:, 2:]).all(), "a box lost all of its pixels"


def test_jitter_makes_boxes_looser_and_tighter_and_leaves_empty_ones_empty():
    boxes = torch.tensor([[40, 30, 79, 69], [0, 0, -1, -1]])
    looser = jitter_boxes(boxes, torch.tensor([[-0.1, -0.1, 0.1, 0.1]] * 2), (100, 100))
    tighter = jitter_boxes(boxes, torch.tensor([[0.1, 0.1, -0.1, -0.1]] * 2), (100, 100))
    assert looser.tolist() == [[36, 26, 83, 73], [0, 0, -1, -1]]
    assert tighter.tolist() == [[44, 34, 75, 65], [0, 0, -1, -1]]


def test_the_boxes_of_a_batch_are_jittered_around_the_box_channel():
    batch = random_batch(40)
    found = prepare_batch(batch, 5, 0, settings_of(box_jitter=0.1), forbidden)
    before, after = find_bounds(batch[:, 4] > 0), find_bounds(found[:, 4] > 0)
    change = (after - before).float() / (before[:, 2:] - before[:, :2] + 1).repeat(1, 2)
    assert change.abs().max() <= 0.1 + 0.5 / 20
    for side in change.T:  # each side moves both ways
        assert side.min() < -0.03 and side.max() > 0.03
    kept = [0, 1, 2, 3, 5]
    assert torch.equal(found[:, kept], batch[:, kept])


def test_what_lies_outside_a_grown_box():
    outside = outside_boxes(torch.tensor([[20, 40, 29, 59]]), 0.1, (100, 80))[0, 0]
    expected = torch.ones(100, 80, dtype=torch.bool)
    expected[38:62, 19:31] = False
    assert torch.equal(outside, expected)


# --- masks ---


@pytest.mark.parametrize("in_ch", [4, 5])
def test_a_share_of_the_masks_is_dropped(in_ch: int):
    batch = random_batch(9, in_ch)
    dropped = []
    for number in range(4):
        found = prepare_batch(batch, in_ch, number, settings_of(model=in_ch, drop_mask=1 / 3), forbidden)
        changed = [index for index in range(9) if not torch.equal(found[index], batch[index])]
        assert len(changed) == 3
        for index in changed:
            box = box_from_mask(batch[index, -1].numpy())
            alone = make_planes(batch[index, :3].numpy().transpose(1, 2, 0), None, box, in_ch, (SIDE, SIDE))
            assert np.array_equal(found[index, :in_ch].numpy(), alone)
            assert torch.equal(found[index, -1], batch[index, -1])
        dropped.append(tuple(changed))
    assert len(set(dropped)) > 1


def test_the_whole_frame_takes_the_place_of_large_boxes_only():
    batch = random_batch(2)
    for index, side in enumerate((100, 40)):
        batch[index, 3:] = 0
        batch[index, 3:, 10 : 10 + side, 5 : 5 + side] = 255
    found = prepare_batch(batch, 5, 0, settings_of(drop_mask=1.0, whole_frame=1.0), forbidden)
    assert (found[0, 4] == 255).all() and torch.equal(found[1, 4], batch[1, 4])
    assert not found[:, 3].any()


@pytest.mark.parametrize("mask", [True, False], ids=["with mask", "box alone"])
@pytest.mark.parametrize("in_ch", [4, 5])
def test_an_own_mask_is_that_of_the_predictors_second_pass(in_ch: int, mask: bool):
    torch.manual_seed(0)
    network = Small(in_ch)
    with torch.no_grad():
        network.layers[-1].weight.mul_(20)
    network.layers[1].running_mean.uniform_(-0.1, 0.1)
    settings = settings_of(model=in_ch, own_mask=1.0, drop_mask=0.0 if mask else 1.0)
    task, batch = SegmentationTask(network, None, settings), random_batch(3, in_ch)
    task.train()
    before = copy.deepcopy(network.state_dict())
    found = task.prepare(batch, 0, None)
    assert network.training and all(torch.equal(before[name], now) for name, now in network.state_dict().items())
    predictor = DISPredictor(network, "cpu", "full", (SIDE, SIDE))
    for planes, prepared in zip(batch.numpy(), found.numpy(), strict=True):
        image, coarse, box = planes[:3].transpose(1, 2, 0), planes[3] if mask else None, box_from_mask(planes[-1])
        first = predictor.predict(image, coarse, box, passes=1)
        assert len(np.unique(prepared[3])) > 50
        assert np.abs(prepared[3] - np.rint(first * 255)).max() <= 1
        second = predictor.predict(image, coarse, box, passes=2)
        assert np.abs(predictor.predict(image, prepared[3], box, passes=1) - second).max() < 0.05
    others = [index for index in range(in_ch + 1) if index != 3]
    assert torch.equal(found[:, others], batch[:, others])


def test_own_masks_have_no_gradient_and_keep_that_of_the_weights():
    """Under autocast, weights that were converted without gradient must not be used again in training."""
    torch.manual_seed(0)
    task = SegmentationTask(Small(), None, settings_of(own_mask=1.0))
    planes = task.prepare(random_batch(2), 0, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        task.loss(planes).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in task.model.parameters() if parameter.ndim > 1)


# --- windows ---


@pytest.mark.parametrize("in_ch", [4, 5])
def test_a_window_is_made_as_in_prediction(in_ch: int):
    frame, size = (300, 340), (SIDE, SIDE)
    sample, alpha = random_batch(1, in_ch, frame)[0], torch.rand(1, 1, *size)
    gt = sample[-1].numpy()
    box = box_from_mask(gt)
    image = sample[:3].numpy().transpose(1, 2, 0)
    whole = alpha_to_uint8(resize_alpha(alpha, frame))[0, 0].numpy()
    corners = [(0, 0), (172, 212), (box[1] - 20, box[0] - 20), (box[1] + 9, box[0] + 7), (max(box[3] - 5, 0), 0)]
    for top, left in [(min(max(top, 0), 172), min(max(left, 0), 212)) for top, left in corners]:
        found = cut_window(sample, alpha, torch.tensor(box), torch.tensor(top), torch.tensor(left), size, in_ch)
        window = Window(int(top), int(left), *size)
        assert np.array_equal(found[:-1].numpy(), make_window_planes(image, whole, box, window, in_ch, size))
        assert np.array_equal(found[-1].numpy(), window.crop(gt))


def test_windows_show_the_edges_of_the_target():
    gt = torch.zeros(600, 500, dtype=torch.uint8)
    gt[200:420, 100:390] = 255
    rng, places = np.random.default_rng(0), set()
    for _ in range(50):
        top, left = (int(first) for first in place_window(gt, (SIDE, SIDE), rng))
        assert 0 <= top <= 600 - SIDE and 0 <= left <= 500 - SIDE
        window = gt[top : top + SIDE, left : left + SIDE]
        assert window.any() and not window.all()
        places.add((top, left))
    assert len(places) > 40
    for empty in (torch.zeros(200, 200, dtype=torch.uint8), torch.full((200, 200), 255, dtype=torch.uint8)):
        top, left = (int(first) for first in place_window(empty, (SIDE, SIDE), rng))
        assert 0 <= top <= 72 and 0 <= left <= 72


def test_a_share_of_the_samples_are_windows_and_the_others_are_reduced():
    frame = (300, 260)
    batch = random_batch(4, 5, frame)
    settings = settings_of(cache_size=list(frame), input_size=SIDE, window_share=0.5)
    found = prepare_batch(batch, 5, 3, settings, as_alpha)
    assert found.shape == (4, 6, SIDE, SIDE) and found.dtype == torch.uint8
    windows = 0
    for sample, prepared in zip(batch.numpy(), found.numpy(), strict=True):
        reduced = resize_planes(sample, (SIDE, SIDE))
        reduced[4] = fill_box(box_from_mask(sample[-1]), frame, (SIDE, SIDE))
        if np.array_equal(prepared, reduced):
            continue
        windows += 1
        hits = [
            (top, left)
            for top in range(frame[0] - SIDE + 1)
            for left in range(frame[1] - SIDE + 1)
            if np.array_equal(sample[:3, top, left : left + SIDE], prepared[:3, 0])
        ]
        (top, left) = hits[0]
        alpha = resize_alpha(as_alpha(torch.from_numpy(reduced[None, :5])), frame)
        image, box = sample[:3].transpose(1, 2, 0), box_from_mask(sample[-1])
        window = Window(top, left, SIDE, SIDE)
        whole = alpha_to_uint8(alpha)[0, 0].numpy()
        assert np.array_equal(prepared[:5], make_window_planes(image, whole, box, window, 5, (SIDE, SIDE)))
        assert np.array_equal(prepared[5], window.crop(sample[-1]))
    assert windows == 2


def test_the_gt_encoder_gets_reduced_samples():
    settings = settings_of(cache_size=256, input_size=SIDE, window_share=0.5)
    batch = random_batch(2, 5, (256, 256))
    found = GTEncoderTask(nn.Identity(), settings).prepare(batch, 0, None)
    assert np.array_equal(found[0].numpy(), resize_planes(batch[0].numpy(), (SIDE, SIDE)))


# --- all together ---

ALL = {"box_jitter": 0.1, "drop_mask": 0.4, "whole_frame": 0.3, "own_mask": 0.3, "window_share": 0.4}


def test_a_batch_depends_on_the_seed_and_its_number_only():
    batch = random_batch(6, 5, (256, 256))
    settings = settings_of(cache_size=256, input_size=SIDE, **ALL)
    before = batch.clone()
    first = prepare_batch(batch, 5, 7, settings, as_alpha)
    assert torch.equal(batch, before), "the loader's batch was modified"
    assert torch.equal(first, prepare_batch(batch, 5, 7, settings, as_alpha))
    assert not torch.equal(first, prepare_batch(batch, 5, 8, settings, as_alpha))
    other = settings_of(cache_size=256, input_size=SIDE, seed=1, **ALL)
    assert not torch.equal(first, prepare_batch(batch, 5, 7, other, as_alpha))


def test_without_these_settings_the_batch_is_the_loaders():
    batch = random_batch(2)
    assert SegmentationTask(Small(), None, settings_of()).prepare(batch, 0, None) is batch


def test_a_resumed_run_equals_an_uninterrupted_one(make_dataset, tmp_path: Path):
    entry = make_dataset()
    data = DISDataset(entry, 5, (160, 160))
    valid = DISDataset(entry, 5, (160, 160), (SIDE, SIDE))

    def start(folder: str, max_ite: int) -> tuple[SegmentationTask, Run]:
        torch.manual_seed(0)
        settings = settings_of(
            **{"cache_size": 160, "input_size": SIDE, "model_path": str(tmp_path / folder), "max_ite": max_ite},
            **{"batch_size_train": 2, "accumulation": 2, "ema": 0.9, "lr": 1e-2, "outside_weight": 1.0, **ALL},
        )
        dataset = TrainDataset([data], settings.seed, True, True, (160, 160))
        make_loader = functools.partial(train_loader, dataset, 2, 0)
        loaders = [valid_loader(ValidDataset(valid), 1, 0)]
        run = Run(settings, CPU, None, loaders, make_loader, RunLog(Path(settings.model_path)))
        return SegmentationTask(Small(), None, settings), run

    fit(*start("whole", 4))
    fit(*start("resumed", 2))
    task, run = start("resumed", 4)
    state = load_state(tmp_path / "resumed" / "last.pt")
    task.model.load_state_dict(state["model"])
    fit(task, run, state)
    whole, resumed = (load_state(tmp_path / folder / "last.pt") for folder in ("whole", "resumed"))
    for part in ("model", "ema_model"):
        assert all(torch.equal(whole[part][name], tensor) for name, tensor in resumed[part].items())
    assert read_weights(tmp_path / "whole" / "best.safetensors")[1]["windows"] is True


def test_a_training_with_windows_loads_samples_at_the_size_of_the_cache(make_dataset, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("IS_Net.phases.ISNetDIS", Small)
    seen = []
    loss = SegmentationTask.loss
    monkeypatch.setattr(
        SegmentationTask, "loss", lambda task, planes: (seen.append(planes.shape), loss(task, planes))[1]
    )
    settings = settings_of(
        **{"cache_size": 256, "input_size": SIDE, "window_share": 0.5, "simulate_mask": 1.0, "copy_paste": 0.5},
        **{"model_path": str(tmp_path / "run"), "max_ite": 2, "batch_size_train": 2},
    )
    entry = make_dataset()
    assert train(Session(settings), [entry], [entry]).done == "max_ite"
    assert set(seen) == {(2, 6, SIDE, SIDE), (1, 6, SIDE, SIDE)}


def two_objects() -> tuple[np.ndarray, list[np.ndarray]]:
    """Return an image of two equal discs on a noisy ground, and the ground truth of each."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    gts = [((rows - 60) ** 2 + (columns - x) ** 2 < 25**2).astype(np.uint8) * 255 for x in (34, 94)]
    image = rng.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
    image[(gts[0] | gts[1]) > 0] = 200
    return image, gts


def test_the_box_alone_decides_which_of_two_objects_is_found():
    """Five channels, no mask: after a short training on one picture, the box selects the object."""
    torch.manual_seed(0)
    image, gts = two_objects()
    rows = [make_planes(image, gt, box_from_mask(gt), 5, (SIDE, SIDE)) for gt in gts]
    batch = torch.from_numpy(np.stack([np.concatenate((row, gt[None])) for row, gt in zip(rows, gts, strict=True)]))
    settings = settings_of(drop_mask=1.0, box_jitter=0.1, freeze_bn=True)
    task = SegmentationTask(Small(), None, settings)
    optimizer, losses = torch.optim.AdamW(task.model.parameters(), lr=0.03), []
    for number in range(40):
        planes = task.prepare(batch, number, None)
        assert not planes[:, 3].any(), "the mask would give the answer away"
        loss = task.loss(planes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    predictor = DISPredictor(task.model, "cpu", "full", (SIDE, SIDE))
    for gt, other in (gts, gts[::-1]):
        x0, y0, x1, y1 = box_from_mask(gt)
        for margin in (0, 4):  # tight and loose
            found = predictor.predict(image, box=(x0 - margin, y0 - margin, x1 + margin, y1 + margin), passes=1) > 0.5
            assert (found & (gt > 0)).sum() / (found | (gt > 0)).sum() > 0.9
            assert (found & (other > 0)).sum() < 0.02 * (other > 0).sum()


# --- the weight outside the box ---


def test_the_outside_of_the_box_weighs_more(monkeypatch):
    batch = random_batch(2)
    network = Small()
    chosen = settings_of(outside_weight=3.0, iou_weight=0.0, bce_weight=1.0)
    logits = network.predict_logits(make_input(batch[:, :5]))
    weight = torch.ones(2, 1, SIDE, SIDE)
    for index, gt in enumerate(batch[:, -1].numpy()):
        x0, y0, x1, y1 = box_from_mask(gt)
        dx, dy = round(0.1 * (x1 - x0 + 1)), round(0.1 * (y1 - y0 + 1))
        outside = np.ones((SIDE, SIDE), bool)
        outside[max(y0 - dy, 0) : y1 + dy + 1, max(x0 - dx, 0) : x1 + dx + 1] = False
        weight[index, 0][torch.from_numpy(outside)] = 4
    expected = bce_loss(logits, batch[:, -1:].float() / 255, weight / weight.mean())
    assert SegmentationTask(network, None, chosen).loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)


# --- settings ---


@pytest.mark.parametrize("key", PROMPT_KEYS)
def test_a_network_without_a_prompt_refuses_to_vary_it(key: str):
    with pytest.raises(HyparError, match=rf"hypar\['{key}'\].*3 input channels has no prompt; set hypar\['model'\]"):
        settings_of(model=3, **{"drop_mask": 0.0, key: 0.2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 4, "outside_weight": 1.0}, r"hypar\['outside_weight'\].*has no box; set hypar\['model'\] to 5"),
        ({"model": 4, "box_gain": 1.0}, r"hypar\['box_gain'\]: is 1, .*has no box; set hypar\['model'\] to 5"),
        ({"model": 3, "mask_skip_logit": 5.0}, r"hypar\['mask_skip_logit'\].*has no prompt; set .* to 4 or 5"),
        ({"backgrounds": "streets"}, r"hypar\['backgrounds'\]: are those of copy_paste, which is 0"),
        (
            {"interm_sup": False, "gt_encoder_model": __file__},
            r"hypar\['gt_encoder_model'\]: is not used without interm_sup",
        ),
        (
            {"model": 3, "mode": "valid", "restore_model": __file__, "passes": 2},
            r"hypar\['passes'\]: is 2, but a network with 3 input channels has no mask channel",
        ),
        ({"box_gain": 1.0}, r"hypar\['box_gain'\]: .*restore_model is empty; name them there"),
        ({"whole_frame": 0.1}, r"hypar\['whole_frame'\].*set drop_mask too"),
        ({"model": 4, "box_jitter": 0.1, "own_mask": 0.5}, r"hypar\['box_jitter'\]: is 0\.1, .*set drop_mask too"),
        ({"window_share": 0.6, "own_mask": 0.6, "input_size": 128, "cache_size": 256}, "sum is above 1"),
        ({"window_share": 0.5}, r"hypar\['window_share'\].*increase cache_size"),
        ({"window_share": 0.5, "cache_size": [256, 128], "input_size": [128, 192]}, "increase cache_size"),
        (
            {"window_share": 0.5, "cache_size": 512, "input_size": 256, "crop_size": 128},
            r"hypar\['crop_size'\]: with window_share, windows take the place of crops",
        ),
        ({"box_jitter": 0.3}, r"hypar\['box_jitter'\]: expected a finite number of 0 to 0.25, found 0.3"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, Any], message: str):
    with pytest.raises(HyparError, match=message):
        settings_of(**changes)


def test_a_state_that_is_older_than_the_settings_resumes_without_a_warning(
    make_dataset, tmp_path: Path, monkeypatch, caplog
):
    monkeypatch.setattr("IS_Net.phases.ISNetDIS", Small)
    entry, path = make_dataset(), str(tmp_path / "run")
    chosen = {"model": 4, "model_path": path, "batch_size_train": 2, "cache_size": SIDE}
    train(Session(settings_of(max_ite=1, **chosen)), [entry], [entry])
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    new = (*PROMPT_KEYS, "outside_weight", "max_minutes", "save_minutes", "compile")
    state["settings"] = {key: value for key, value in state["settings"].items() if key not in new}
    torch.save(state, tmp_path / "run" / "last.pt")
    with caplog.at_level(logging.WARNING):
        session = Session(settings_of(max_ite=1, restore_model="last.pt", **chosen))
        assert train(session, [entry], [entry]).iteration == 1
    assert not caplog.records
