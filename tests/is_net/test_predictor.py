"""Refining coarse masks: the forms of input, channels and boxes, bad input, and the network inside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from IS_Net import predictor as predictor_module
from IS_Net.checkpoint import save_weights
from IS_Net.errors import BoxError, CheckpointError, DeviceError
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor, agreement, calibrate, check_mask, is_exact
from IS_Net.preprocess import fill_box, make_planes
from IS_Net.runtime.torch_runtime import fold_batchnorm
from IS_Net.tensors import make_input

SIZE = (64, 96)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (75, 101, 3), dtype=np.uint8)
MASK = np.zeros((75, 101), dtype=bool)
MASK[20:60, 30:81] = True


@pytest.fixture(scope="module")
def trained() -> ISNetDIS:
    """Return a 5-channel network in train mode whose BatchNorms have seen a few batches."""
    torch.manual_seed(0)
    model = ISNetDIS(5)
    with torch.no_grad():
        for _ in range(3):
            model.predict_logits(torch.rand(2, 5, 128, 128) * 2 - 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
    return model


@pytest.fixture(scope="module")
def predictor(trained: ISNetDIS) -> DISPredictor:
    return DISPredictor(trained, device="cpu", precision="full", input_size=SIZE)


class Constant(ISNetDIS):
    """A network that returns the same logit everywhere."""

    def __init__(self, logit: float, in_ch: int = 4) -> None:
        nn.Module.__init__(self)
        self.conv_in = nn.Conv2d(in_ch, 1, 1)
        self.logit = logit

    def predict_logits(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x[:, :1], self.logit)


class Copying(Constant):
    """A network that returns one of its input channels as logits."""

    def __init__(self, channel: int, in_ch: int) -> None:
        super().__init__(0, in_ch)
        self.channel = channel

    def predict_logits(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.channel : self.channel + 1]


def sigmoid(x: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))


# --- the alpha matte ---


@pytest.mark.parametrize("size", [(75, 101), (64, 96), (33, 200), (1, 7)])
def test_alpha_has_the_images_size(predictor: DISPredictor, size: tuple[int, int]):
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    alpha = predictor.predict(image, np.ones(size, bool))
    assert alpha.shape == size
    assert alpha.dtype == np.float32
    assert 0 <= alpha.min() < alpha.max() <= 1


def test_alpha_follows_the_published_recipe(trained: ISNetDIS, predictor: DISPredictor):
    """The steps one by one: resize, round, normalize, the network without folding, sigmoid, resize."""

    def resize(pixels: np.ndarray) -> torch.Tensor:
        planes = torch.tensor(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None].float()
        return F.interpolate(planes, SIZE, mode="bilinear").round() / 255

    # the pixels that the mask's bounds touch: rows 20 * 64 / 75 = 17.07 to 60 * 64 / 75 = 51.2, columns 28.5 to 76.99
    filled = torch.zeros(1, 1, *SIZE)
    filled[..., 17:52, 28:77] = 1
    x = torch.cat([resize(IMAGE) - 0.5, resize(MASK * np.uint8(255)), filled], dim=1)
    with torch.no_grad():
        logits = copy.deepcopy(trained).eval()(x)[0][0]
    wanted = F.interpolate(logits.sigmoid(), IMAGE.shape[:2], mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(predictor.predict(IMAGE, MASK), wanted, atol=2e-5)


@pytest.mark.parametrize(
    "form",
    [
        MASK.astype(np.uint8),
        MASK * np.uint8(255),
        MASK.astype(np.float32),
        MASK.astype(np.float16),
        MASK[None],
        MASK[..., None],
        np.asfortranarray(MASK),
    ],
    ids=["0/1", "0..255", "float", "half", "(1, H, W)", "(H, W, 1)", "fortran"],
)
def test_all_forms_of_a_mask_give_the_same_alpha(predictor: DISPredictor, form: np.ndarray):
    np.testing.assert_array_equal(predictor.predict(IMAGE, form), predictor.predict(IMAGE, MASK))


def test_soft_masks_reach_the_network():
    alpha = DISPredictor(Copying(3, in_ch=4), "cpu", "full", IMAGE.shape[:2]).predict(IMAGE, MASK * 0.6)
    np.testing.assert_allclose(alpha, sigmoid(MASK * 0.6), atol=1e-6)


def test_views_are_accepted(predictor: DISPredictor):
    flipped = predictor.predict(IMAGE[:, ::-1, ::-1], MASK[:, ::-1])
    np.testing.assert_array_equal(flipped, predictor.predict(IMAGE[:, ::-1, ::-1].copy(), MASK[:, ::-1].copy()))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_empty_mask_gives_zero_alpha(predictor: DISPredictor, dtype: type):
    alpha = predictor.predict(IMAGE, np.zeros(IMAGE.shape[:2], dtype))
    assert alpha.dtype == np.float32
    np.testing.assert_array_equal(alpha, np.zeros(IMAGE.shape[:2]))


@pytest.mark.parametrize("logit", [-9.0, -1.0, 0.0, 4.0])
def test_alpha_is_not_stretched(logit: float):
    alpha = DISPredictor(Constant(logit), "cpu", "full", SIZE).predict(IMAGE, MASK)
    np.testing.assert_allclose(alpha, np.full(MASK.shape, sigmoid(logit)), rtol=1e-5)


# --- channels and boxes ---


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_channels(in_ch: int):
    predictor = DISPredictor(Constant(0, in_ch), "cpu", "full", SIZE)
    assert predictor.in_ch == in_ch
    for prompt in ((MASK,), (MASK, (1, 2, 30, 40)), (None, (1, 2, 30, 40)), ()):
        alpha = predictor.predict(IMAGE, *prompt)
        assert alpha.shape == MASK.shape and alpha.dtype == np.float32
        np.testing.assert_array_equal(alpha, 0.5)
    # a 3-channel network does not use the mask
    assert predictor.predict(IMAGE, np.zeros_like(MASK)).any() == (in_ch == 3)
    assert predictor.predict(IMAGE, np.zeros_like(MASK), (1, 2, 30, 40)).any() == (in_ch == 3)


class Recording(Constant):
    """A network that keeps its inputs; its logits are a function of the input."""

    def __init__(self, in_ch: int, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(0, in_ch)
        self.function, self.inputs = function, []

    def __deepcopy__(self, memo: dict) -> Recording:
        return self  # the predictor's copy is this network, so that the tests see the inputs

    def predict_logits(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.clone())
        return self.function(x)


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
@pytest.mark.parametrize("box", [None, (5, 6, 70, 74)], ids=["no box", "box"])
@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_network_gets_the_planes_of_the_prompt(mask: np.ndarray | None, box: tuple | None, in_ch: int):
    model = Recording(in_ch, lambda x: x[:, :1])
    DISPredictor(model, "cpu", "full", SIZE).predict(IMAGE, mask, box, passes=1)
    planes = make_planes(IMAGE, None if mask is None else mask * np.uint8(255), box, in_ch, SIZE)
    (x,) = model.inputs
    torch.testing.assert_close(x, make_input(torch.from_numpy(planes)[None]), rtol=0, atol=0)


def test_box_channel_is_the_given_box_or_the_masks_bounds():
    predictor = DISPredictor(Copying(4, in_ch=5), "cpu", "full", IMAGE.shape[:2])
    disc = np.hypot(*(np.mgrid[:75, :101] - np.array([40, 50]).reshape(2, 1, 1))) < 10.5
    for box, rows, columns in [(None, slice(30, 51), slice(40, 61)), ((5, 6, 70, 74), slice(6, 75), slice(5, 71))]:
        inside = np.zeros(disc.shape)
        inside[rows, columns] = 1
        np.testing.assert_allclose(predictor.predict(IMAGE, disc, box), sigmoid(inside), atol=1e-6)


def test_box_changes_the_alpha(predictor: DISPredictor):
    mask = MASK.copy()
    mask[20, 30] = False  # a full rectangle with its bounds is a box alone
    bounds = predictor.predict(IMAGE, mask, box=(30, 20, 80, 59))
    np.testing.assert_array_equal(predictor.predict(IMAGE, mask), bounds)
    assert np.abs(predictor.predict(IMAGE, mask, box=(0, 0, 100, 74)) - bounds).max() > 1e-4


def test_mask_of_one_pixel(predictor: DISPredictor):
    mask = np.zeros_like(MASK)
    mask[3, 4] = True
    assert predictor.predict(IMAGE, mask).shape == MASK.shape


# --- passes ---


def logit(x: torch.Tensor) -> torch.Tensor:
    return torch.logit(x.clamp(1e-4, 1 - 1e-4))


def halfway(x: torch.Tensor) -> torch.Tensor:
    """Return logits whose alpha is halfway between the mask channel and 0.8."""
    return logit((x[:, 3:4] + 0.8) / 2)


@pytest.mark.parametrize("in_ch", [4, 5])
@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_each_pass_takes_the_alpha_of_the_one_before_as_its_mask(in_ch: int, mask: np.ndarray | None):
    model = Recording(in_ch, halfway)
    predictor = DISPredictor(model, "cpu", "full", IMAGE.shape[:2])
    box = (5, 6, 70, 74)
    start = make_planes(IMAGE, None if mask is None else mask * np.uint8(255), box, in_ch, IMAGE.shape[:2])[3] / 255
    for passes in (1, 2, 3, 4):
        model.inputs.clear()
        alpha = predictor.predict(IMAGE, mask, box, passes=passes)
        assert len(model.inputs) == passes
        np.testing.assert_allclose(alpha, 0.8 + (start - 0.8) / 2**passes, atol=0.004)  # 8 bits between passes
        for before, after in pairwise(model.inputs):
            expected = torch.sigmoid(halfway(before)).mul(255).round() / 255
            torch.testing.assert_close(after[:, 3:4], expected)
            assert torch.equal(after[:, :3], before[:, :3]) and torch.equal(after[:, 4:], before[:, 4:])


def test_number_of_passes_by_default():
    model = Recording(5, halfway)
    predictor = DISPredictor(model, "cpu", "full", SIZE)
    for mask, box, number in ((MASK, None, 1), (MASK, (5, 6, 70, 74), 1), (None, (5, 6, 70, 74), 2), (None, None, 2)):
        model.inputs.clear()
        default = predictor.predict(IMAGE, mask, box)
        assert len(model.inputs) == number
        np.testing.assert_array_equal(default, predictor.predict(IMAGE, mask, box, passes=number))


@pytest.mark.parametrize(
    ("wide", "narrow", "number", "smaller"),
    [(0.8, 0.95, 4, True), (0.8, 0.85, 4, False), (0.8, 0.75, 4, False), (0.88, 0.99, 2, False)],
    ids=["the smaller box agrees more", "hardly more", "less", "the given box agrees enough"],
)
def test_a_smaller_box_is_tried_if_two_passes_agree_too_little(wide: float, narrow: float, number: int, smaller: bool):
    """The network multiplies its mask by a factor, which is then the agreement of two passes."""
    box, inner = (8, 12, 68, 60), (13, 16, 63, 56)

    def shrink(x: torch.Tensor) -> torch.Tensor:
        columns = (x[:, 3] > 0).any(dim=1).sum()
        return logit(x[:, 3:4] * (wide if columns > 55 else narrow))

    model = Recording(4, shrink)
    predictor = DISPredictor(model, "cpu", "full", IMAGE.shape[:2])
    alpha, score = predictor.predict(IMAGE, None, box, return_score=True)
    assert len(model.inputs) == number
    np.testing.assert_array_equal(alpha, predictor.predict(IMAGE, None, inner if smaller else box, passes=2))
    assert score == pytest.approx(narrow if smaller else wide, abs=0.01)


@pytest.mark.parametrize(
    ("in_ch", "mask", "box", "passes", "number"),
    [
        (5, None, (8, 12, 68, 60), "auto", 2),  # it sees the box
        (4, None, None, "auto", 2),
        (4, None, (8, 12, 68, 60), 2, 2),
        (4, MASK, (8, 12, 68, 60), "auto", 1),
        (3, None, (8, 12, 68, 60), "auto", 1),
        (4, None, (8, 12, 8, 12), "auto", 4),  # a single pixel stays one
    ],
)
def test_when_no_smaller_box_is_tried(in_ch: int, mask: Any, box: Any, passes: Any, number: int):
    model = Recording(in_ch, halfway if in_ch > 3 else lambda x: x[:, :1])
    DISPredictor(model, "cpu", "full", SIZE).predict(IMAGE, mask, box, passes=passes)
    assert len(model.inputs) == number


@pytest.mark.parametrize("in_ch", [4, 5])
def test_a_mask_that_is_its_box_is_a_box_alone(in_ch: int):
    torch.manual_seed(in_ch)
    predictor = DISPredictor(ISNetDIS(in_ch), "cpu", input_size=(64, 64))
    box = (10.4, 8, 70, 50.5)
    filled = fill_box(box, MASK.shape, MASK.shape)[0]
    alone = predictor.predict(IMAGE, None, box)
    np.testing.assert_array_equal(predictor.predict(IMAGE, filled, box), alone)
    filled[20, 20] = 0
    assert np.abs(predictor.predict(IMAGE, filled, box) - alone).max() > 0
    without = make_planes(IMAGE, fill_box(box, MASK.shape, MASK.shape)[0], None, in_ch, (64, 64))
    assert without[3].max() == 255  # without the box, it is a mask


def test_passes_of_a_three_channel_network_do_not_differ():
    model = Recording(3, lambda x: x[:, :1])
    DISPredictor(model, "cpu", "full", SIZE).predict(IMAGE, passes=3)
    assert len(model.inputs) == 1


def test_one_pass_with_a_mask_is_the_published_prediction(trained: ISNetDIS, predictor: DISPredictor):
    """The options change nothing where they are not asked to."""
    plain = predictor.predict(IMAGE, MASK)
    np.testing.assert_array_equal(predictor.predict(IMAGE, MASK, passes=1, detail="off"), plain)
    with_score, _ = predictor.predict(IMAGE, MASK, return_score=True)
    np.testing.assert_array_equal(with_score, plain)
    assert (predictor.predict(IMAGE, MASK, passes=2) != plain).any()


@pytest.mark.parametrize("passes", [0, -1, 1.5, "two", None, True])
def test_invalid_number_of_passes(predictor: DISPredictor, passes: Any):
    with pytest.raises(ValueError, match="expected passes to be 'auto' or a number of 1 and up"):
        predictor.predict(IMAGE, MASK, passes=passes)


# --- the score ---


def test_score_is_the_agreement_of_the_last_two_passes():
    model = Recording(5, halfway)
    predictor = DISPredictor(model, "cpu", "full", SIZE)
    for prompt, passes, number, levels in [
        ((MASK > 2,), 1, 0, None),  # an empty mask
        ((None, None), 1, 2, (0.4, 0.6)),  # one more pass, because one alone has nothing to agree with
        ((None, None), "auto", 2, (0.4, 0.6)),
        ((None, None), 3, 3, (0.6, 0.7)),
        ((np.ones_like(MASK), None), "auto", 2, (0.85, 0.9)),
    ]:
        model.inputs.clear()
        alpha, score = predictor.predict(IMAGE, *prompt, passes=passes, return_score=True)
        assert len(model.inputs) == number
        assert isinstance(score, float)
        if levels is None:
            assert np.isnan(score) and not alpha.any()
        else:
            assert score == pytest.approx(levels[0] / levels[1], abs=0.01)


def test_score_of_a_three_channel_network_is_unknown():
    alpha, score = DISPredictor(Constant(1, 3), "cpu", "full", SIZE).predict(IMAGE, return_score=True)
    assert np.isnan(score) and alpha.any()


def test_agreement():
    a, b = np.float32([0.0, 0.5, 1.0, 0.75]), np.float32([0.0, 1.0, 0.25, 0.75])
    assert agreement(a, b) == pytest.approx((0.5 + 0.25 + 0.75) / (1 + 1 + 0.75))
    assert agreement(b, a) == agreement(a, b)
    assert agreement(a, a) == 1
    assert agreement(np.zeros(3), np.zeros(3)) == 0
    assert agreement(np.full(3, 0.4), np.full(3, 0.4)) == 0  # no object in it


def test_calibration():
    assert calibrate(0.37, (0, 1)) == 0.37
    assert np.isnan(calibrate(np.nan, (1, 2)))
    # the logit of 0.8 is log 4; sigmoid(log 3 + 1/2 log 4) = 6 / 7
    assert calibrate(0.8, (np.log(3), 0.5)) == pytest.approx(6 / 7)
    scores = [calibrate(value, (-0.4, 1.7)) for value in np.linspace(0, 1, 50)]
    assert (np.diff(scores) > 0).all() and scores[0] >= 0 and scores[-1] <= 1


def test_calibration_comes_from_the_checkpoint(tmp_path, isnet: ISNetDIS):
    path = tmp_path / "weights.safetensors"
    save_weights(path, isnet, {"input_size": SIZE, "score_calibration": [0.5, 2.0]})
    predictor = DISPredictor.from_checkpoint(path, "cpu", "full")
    assert predictor.calibration == (0.5, 2.0)
    _, score = predictor.predict(IMAGE, MASK, return_score=True)
    predictor.calibration = (0, 1)
    _, raw = predictor.predict(IMAGE, MASK, return_score=True)
    assert score == pytest.approx(calibrate(raw, (0.5, 2.0))) and score != raw
    save_weights(path, isnet, {"score_calibration": [1]})
    message = (
        r"weights\.safetensors: metadata, key 'score_calibration': expected two numbers, offset and slope > 0, found"
    )
    with pytest.raises(CheckpointError, match=message):
        DISPredictor.from_checkpoint(path, "cpu")


@pytest.mark.parametrize("wrong", [3, [1], ["a", 1], [0, -1], [0, 0], [float("nan"), 1], None])
def test_invalid_calibration(wrong: Any):
    with pytest.raises(
        CheckpointError, match="metadata, key 'score_calibration': expected two numbers, offset and slope > 0, found"
    ):
        DISPredictor(Constant(0), "cpu", "full", SIZE, {"score_calibration": wrong})


# --- a mask that is better than its refinement ---


def disc(radius: float, size: tuple[int, int] = (120, 120), center: tuple[float, float] = (60, 60)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.hypot(rows - center[0], columns - center[1]) < radius


@pytest.mark.parametrize(
    ("mask", "refined", "exact"),
    [
        (disc(40), disc(40), True),
        (disc(40), disc(41), True),
        (disc(40), disc(43), False),
        (disc(40), disc(36), False),
        (disc(40) | disc(15, center=(60, 110)), disc(40), True),  # the network lost a part
        (disc(40), disc(40) & ~disc(3), True),  # a small hole
        (disc(40), disc(40) & ~disc(30), False),  # a large hole: many new edges
        (disc(40), disc(0), True),  # nothing was found
        (~disc(200), disc(40), False),
        (disc(200), disc(200), True),  # the whole frame
    ],
)
def test_mask_is_exact_if_the_network_finds_no_other_edges(mask: np.ndarray, refined: np.ndarray, exact: bool):
    assert is_exact(mask.astype(np.float32), refined.astype(np.float32)) == exact


@pytest.mark.parametrize("in_ch", [4, 5])
def test_better_mask_is_kept_only_on_request(in_ch: int):
    image = np.zeros((120, 120, 3), np.uint8)
    refined = disc(40)
    image[refined] = 255
    model = Recording(in_ch, lambda x: x[:, :1] * 40)  # the alpha matte is the bright disc
    predictor = DISPredictor(model, "cpu", "full", (120, 120))
    exact, coarse = disc(40) | disc(15, center=(60, 110)), disc(46)
    for mask in (exact, exact * np.uint8(255), exact * 0.8):
        kept, score = predictor.predict(image, mask, keep_better=True, return_score=True)
        assert kept.dtype == np.float32
        np.testing.assert_allclose(kept, mask / np.max(mask) * (0.8 if mask.dtype == float else 1), atol=1e-6)
        assert score == 1  # two passes agree
    for mask, options in ((coarse, {"keep_better": True}), (exact, {}), (None, {"keep_better": True})):
        np.testing.assert_array_equal(predictor.predict(image, mask, **options) > 0.5, refined)
    assert predictor.refine(predictor.prepare(image), exact * np.uint8(255), None, keep_better=True).kept
    assert not predictor.predict(image, exact & ~exact, keep_better=True).any()


def test_masks_of_another_size_than_the_input_are_compared_at_the_networks():
    image = np.zeros((300, 260, 3), np.uint8)
    mask = disc(100, (300, 260), (150, 130))
    image[mask] = 255
    predictor = DISPredictor(Recording(5, lambda x: x[:, :1] * 40), "cpu", "full", (120, 120))
    np.testing.assert_array_equal(predictor.predict(image, mask, keep_better=True), mask.astype(np.float32))
    moved = np.roll(mask, 12, axis=1)
    assert (predictor.predict(image, moved, keep_better=True) != moved).any()


# --- prepared images ---


def count_image_resizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that the shape of every image that is resized is appended to."""
    resized = []
    make_image_planes = predictor_module.make_image_planes

    def counted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        resized.append(image.shape)
        return make_image_planes(image, size)

    monkeypatch.setattr(predictor_module, "make_image_planes", counted)
    return resized


def test_prepared_image_is_resized_once(predictor: DISPredictor, monkeypatch: pytest.MonkeyPatch):
    masks = [MASK, ~MASK, np.roll(MASK, 9, 1) * 0.8]
    boxes = [None, (5, 6, 70, 74), None]
    expected = [predictor.predict(IMAGE, mask, box) for mask, box in zip(masks, boxes, strict=True)]
    resized = count_image_resizes(monkeypatch)
    prepared = predictor.prepare(IMAGE)
    assert prepared.size == (75, 101) and prepared.planes.shape == (3, *SIZE) and prepared.pixels is IMAGE
    for mask, box, alpha in zip(masks, boxes, expected, strict=True):
        np.testing.assert_array_equal(predictor.predict(prepared, mask, box), alpha)
    assert resized == [IMAGE.shape]


def test_prepared_image_does_not_change_with_the_callers_array():
    predictor = DISPredictor(Copying(0, in_ch=4), "cpu", "full", IMAGE.shape[:2])  # no resize, which would copy
    image = IMAGE.transpose(2, 0, 1).copy().transpose(1, 2, 0)  # planes in memory, as the network takes them
    prepared = predictor.prepare(image)
    expected = predictor.predict(prepared, MASK)
    image[:] = 0
    np.testing.assert_array_equal(predictor.predict(prepared, MASK), expected)


def test_input_is_checked_for_prepared_images_too(predictor: DISPredictor):
    prepared = predictor.prepare(IMAGE)
    with pytest.raises(ValueError, match="the mask is 101 x 74 pixels, but its image is 101 x 75 pixels"):
        predictor.predict(prepared, MASK[1:])
    with pytest.raises(BoxError, match="outside its image of 101 x 75"):
        predictor.predict(prepared, MASK, (200, 5, 220, 9))


def test_size_mismatch_names_mask_and_image():
    with pytest.raises(ValueError, match=r"mask\.png is 101 x 75 pixels, but photo\.jpg is 99 x 98 pixels"):
        check_mask(MASK, (98, 99), "mask.png", "photo.jpg")


# --- bad input ---


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (IMAGE[..., 0], MASK, "expected an image of shape"),
        (IMAGE / 255, MASK, "expected an image of shape"),
        (IMAGE[:0], MASK[:0], r"expected an image of shape .* found \(0, 101, 3\) uint8"),
        (IMAGE[:, :0], None, r"expected an image of shape .* found \(75, 0, 3\) uint8"),
        (IMAGE, MASK[1:], "the mask is 101 x 74 pixels, but its image is 101 x 75 pixels"),
        (IMAGE, np.stack([MASK] * 3), "expected a mask of shape"),
        (IMAGE, MASK[0], "expected a mask of shape"),
        (IMAGE, MASK.astype(int), "expected a mask of bool, uint8 or float, found int64"),
        (IMAGE, MASK * 255.0, r"expected a float mask within 0\.\.1"),
        (IMAGE, MASK * -0.1, r"expected a float mask within 0\.\.1"),
        (IMAGE, np.where(MASK, np.nan, 0), r"expected a float mask within 0\.\.1"),
    ],
)
def test_invalid_arrays(predictor: DISPredictor, image: np.ndarray, mask: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        predictor.predict(image, mask)


@pytest.mark.parametrize("box", [(200, 5, 220, 9), (5, 9, 2, 4), (1, 2, 3), "box"])
def test_invalid_boxes(predictor: DISPredictor, box: Any):
    with pytest.raises(BoxError, match=r"^box: "):
        predictor.predict(IMAGE, MASK, box)


def test_box_may_be_a_single_pixel(predictor: DISPredictor):
    pixel = np.zeros_like(MASK)
    pixel[9, 7] = 1
    found = predictor.predict(IMAGE, pixel, (7, 9, 7, 9))
    np.testing.assert_array_equal(found, predictor.predict(IMAGE, None, (7, 9, 7, 9)))
    assert not np.array_equal(found, predictor.predict(IMAGE, pixel, (0, 0, 100, 74)))


# --- the network inside ---


@torch.no_grad()
def test_folding_keeps_the_function(trained: ISNetDIS):
    x = torch.rand(1, 5, 96, 65)
    before = copy.deepcopy(trained)
    folded = fold_batchnorm(trained)
    own = {tensor.data_ptr() for tensor in trained.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in folded.state_dict().values()}
    assert all(map(torch.equal, trained.state_dict().values(), before.state_dict().values()))
    unfolded = copy.deepcopy(trained).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded.predict_logits(x), unfolded.predict_logits(x), rtol=1e-4, atol=1e-4)
    # the test would notice if the statistics were ignored
    identity = copy.deepcopy(unfolded)
    for module in identity.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    assert (identity.predict_logits(x) - unfolded.predict_logits(x)).abs().max() > 1e-2


def test_callers_network_is_not_modified(trained: ISNetDIS):
    before = copy.deepcopy(trained.state_dict())
    DISPredictor(trained, "cpu", "full", SIZE).predict(IMAGE, MASK)
    assert trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())
    after = trained.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_half_precision_is_close(trained: ISNetDIS, predictor: DISPredictor):
    half = DISPredictor(trained, "cpu", "half", SIZE)
    assert half.runtime.precision == "bfloat16"
    alpha = half.predict(IMAGE, MASK)
    assert alpha.dtype == np.float32
    np.testing.assert_allclose(alpha, predictor.predict(IMAGE, MASK), atol=0.05)


def test_unavailable_device_and_unknown_precision(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="'cuda'"):
        DISPredictor(Constant(0), device="cuda")
    with pytest.raises(DeviceError, match="precision 'best' is unknown"):
        DISPredictor(Constant(0), device="cpu", precision="best")


# --- checkpoints ---


def test_input_size_comes_from_the_checkpoint(weights, isnet: ISNetDIS):
    predictor = DISPredictor.from_checkpoint(weights, "cpu", "full")
    assert predictor.input_size == (128, 128)
    same = DISPredictor(isnet, "cpu", "full", (128, 128))
    np.testing.assert_array_equal(predictor.predict(IMAGE, MASK), same.predict(IMAGE, MASK))
    assert DISPredictor.from_checkpoint(weights, "cpu", input_size=SIZE).input_size == SIZE


def test_checkpoint_without_metadata_uses_the_published_size(tmp_path, isnet: ISNetDIS):
    torch.save(isnet.state_dict(), tmp_path / "isnet.pth")
    assert DISPredictor.from_checkpoint(tmp_path / "isnet.pth", "cpu").input_size == (1024, 1024)


def test_checkpoint_that_is_missing_or_of_another_network(tmp_path):
    with pytest.raises(CheckpointError, match=r"nope\.safetensors: the checkpoint does not exist"):
        DISPredictor.from_checkpoint(tmp_path / "nope.safetensors", "cpu")
    save_weights(tmp_path / "linear.safetensors", nn.Linear(2, 2), {})
    with pytest.raises(CheckpointError, match="another network"):
        DISPredictor.from_checkpoint(tmp_path / "linear.safetensors", "cpu")
