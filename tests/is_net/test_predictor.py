"""From image and mask, or prompt, to an alpha matte."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dis_sam.pipeline import DISSAM
from IS_Net.checkpoint import save_weights
from IS_Net.errors import BoxError, CheckpointError, DeviceError
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor, fold_batchnorm

SIZE = (64, 96)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (75, 101, 3), dtype=np.uint8)
MASK = np.zeros((75, 101), dtype=bool)
MASK[20:60, 30:81] = True


@pytest.fixture(scope="module")
def trained() -> ISNetDIS:
    """Return a 5-channel network, in train mode, whose BatchNorms have seen a few batches."""
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
    """A network that says the same everywhere."""

    def __init__(self, logit: float, in_ch: int = 4) -> None:
        nn.Module.__init__(self)
        self.conv_in = nn.Conv2d(in_ch, 1, 1)
        self.logit = logit

    def predict_logits(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x[:, :1], self.logit)


class Copying(Constant):
    """A network that gives one of its input channels back, as logits."""

    def __init__(self, channel: int, in_ch: int) -> None:
        super().__init__(0, in_ch)
        self.channel = channel

    def predict_logits(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.channel : self.channel + 1]


def sigmoid(x: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))


# --- what comes out ---


@pytest.mark.parametrize("size", [(75, 101), (64, 96), (33, 200), (1, 7)])
def test_alpha_has_the_images_size(predictor: DISPredictor, size: tuple[int, int]):
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    alpha = predictor.predict(image, np.ones(size, bool))
    assert alpha.shape == size
    assert alpha.dtype == np.float32
    assert 0 <= alpha.min() < alpha.max() <= 1


def test_alpha_is_the_plain_recipe(trained: ISNetDIS, predictor: DISPredictor):
    """All of it again, by hand: resize, round, normalize, the network as it is, sigmoid, resize."""

    def resize(pixels: np.ndarray) -> torch.Tensor:
        planes = torch.tensor(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)[None].float()
        return F.interpolate(planes, SIZE, mode="bilinear").round() / 255

    # what the mask's bounds touch: rows 20 * 64 / 75 = 17.07 to 60 * 64 / 75 = 51.2, columns 28.5 to 76.99
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
def test_masks_of_all_forms_give_the_same(predictor: DISPredictor, form: np.ndarray):
    np.testing.assert_array_equal(predictor.predict(IMAGE, form), predictor.predict(IMAGE, MASK))


def test_soft_masks_reach_the_network():
    alpha = DISPredictor(Copying(3, in_ch=4), "cpu", "full", IMAGE.shape[:2]).predict(IMAGE, MASK * 0.6)
    np.testing.assert_allclose(alpha, sigmoid(MASK * 0.6), atol=1e-6)


def test_views_are_taken(predictor: DISPredictor):
    flipped = predictor.predict(IMAGE[:, ::-1, ::-1], MASK[:, ::-1])
    np.testing.assert_array_equal(flipped, predictor.predict(IMAGE[:, ::-1, ::-1].copy(), MASK[:, ::-1].copy()))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_empty_mask_gives_nothing(predictor: DISPredictor, dtype: type):
    alpha = predictor.predict(IMAGE, np.zeros(IMAGE.shape[:2], dtype))
    assert alpha.dtype == np.float32
    np.testing.assert_array_equal(alpha, np.zeros(IMAGE.shape[:2]))


@pytest.mark.parametrize("logit", [-9.0, -1.0, 0.0, 4.0])
def test_nothing_is_stretched(logit: float):
    alpha = DISPredictor(Constant(logit), "cpu", "full", SIZE).predict(IMAGE, MASK)
    np.testing.assert_allclose(alpha, np.full(MASK.shape, sigmoid(logit)), rtol=1e-5)


# --- channels and boxes ---


@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_channels(in_ch: int):
    predictor = DISPredictor(Constant(0, in_ch), "cpu", "full", SIZE)
    assert predictor.in_ch == in_ch
    assert predictor.predict(IMAGE, MASK).shape == MASK.shape
    if in_ch == 3:
        assert predictor.predict(IMAGE).any()
        assert predictor.predict(IMAGE, np.zeros_like(MASK)).any()  # it does not look at the mask
    else:
        with pytest.raises(ValueError, match=f"{in_ch} input channels needs a coarse mask"):
            predictor.predict(IMAGE)


def test_box_channel_is_the_given_box_or_the_masks_bounds():
    predictor = DISPredictor(Copying(4, in_ch=5), "cpu", "full", IMAGE.shape[:2])
    disc = np.hypot(*(np.mgrid[:75, :101] - np.array([40, 50]).reshape(2, 1, 1))) < 10.5
    for box, rows, columns in [(None, slice(30, 51), slice(40, 61)), ((5, 6, 70, 74), slice(6, 75), slice(5, 71))]:
        inside = np.zeros(disc.shape)
        inside[rows, columns] = 1
        np.testing.assert_allclose(predictor.predict(IMAGE, disc, box), sigmoid(inside), atol=1e-6)


def test_box_changes_the_answer(predictor: DISPredictor):
    bounds = predictor.predict(IMAGE, MASK, box=(30, 20, 80, 59))
    np.testing.assert_array_equal(predictor.predict(IMAGE, MASK), bounds)
    assert np.abs(predictor.predict(IMAGE, MASK, box=(0, 0, 100, 74)) - bounds).max() > 1e-4


def test_object_of_one_pixel(predictor: DISPredictor):
    mask = np.zeros_like(MASK)
    mask[3, 4] = True
    assert predictor.predict(IMAGE, mask).shape == MASK.shape


# --- bad input ---


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (IMAGE[..., 0], MASK, "expected an image of shape"),
        (IMAGE / 255, MASK, "expected an image of shape"),
        (IMAGE, MASK[1:], "the mask is 101 x 74 pixels, its image 101 x 75"),
        (IMAGE, np.stack([MASK] * 3), "expected a mask of shape"),
        (IMAGE, MASK[0], "expected a mask of shape"),
        (IMAGE, MASK.astype(int), "expected a mask of bool, uint8 or float, found int64"),
        (IMAGE, MASK * 255.0, r"expected a float mask within 0\.\.1"),
        (IMAGE, MASK * -0.1, r"expected a float mask within 0\.\.1"),
        (IMAGE, np.where(MASK, np.nan, 0), r"expected a float mask within 0\.\.1"),
    ],
)
def test_arrays_that_do_not_fit(predictor: DISPredictor, image: np.ndarray, mask: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        predictor.predict(image, mask)


@pytest.mark.parametrize("box", [(200, 5, 220, 9), (5, 9, 2, 4), (1, 2, 3), "box"])
def test_boxes_that_do_not_fit(predictor: DISPredictor, box: Any):
    with pytest.raises(BoxError, match=r"^box: "):
        predictor.predict(IMAGE, MASK, box)


# --- the network inside ---


@torch.no_grad()
def test_folding_keeps_the_function(trained: ISNetDIS):
    x = torch.rand(1, 5, 96, 65)
    folded = fold_batchnorm(trained)
    plain = copy.deepcopy(trained).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded.predict_logits(x), plain.predict_logits(x), rtol=1e-4, atol=1e-4)
    # and the statistics are such that leaving them out would have shown
    identity = copy.deepcopy(plain)
    for module in identity.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    assert (identity.predict_logits(x) - plain.predict_logits(x)).abs().max() > 1e-2


def test_the_callers_network_is_left_alone(trained: ISNetDIS):
    before = copy.deepcopy(trained.state_dict())
    DISPredictor(trained, "cpu", "full", SIZE).predict(IMAGE, MASK)
    assert trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())
    after = trained.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_half_precision_is_close(trained: ISNetDIS, predictor: DISPredictor):
    half = DISPredictor(trained, "cpu", "half", SIZE)
    assert half.dtype == torch.bfloat16
    alpha = half.predict(IMAGE, MASK)
    assert alpha.dtype == np.float32
    np.testing.assert_allclose(alpha, predictor.predict(IMAGE, MASK), atol=0.05)


def test_device_and_precision_that_are_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="'cuda' was asked for"):
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


def test_checkpoint_without_facts_works_at_the_published_size(tmp_path, isnet: ISNetDIS):
    torch.save(isnet.state_dict(), tmp_path / "isnet.pth")
    assert DISPredictor.from_checkpoint(tmp_path / "isnet.pth", "cpu").input_size == (1024, 1024)


def test_checkpoint_that_is_missing_or_another(tmp_path):
    with pytest.raises(CheckpointError, match=r"nope\.safetensors: there is no such checkpoint"):
        DISPredictor.from_checkpoint(tmp_path / "nope.safetensors", "cpu")
    save_weights(tmp_path / "linear.safetensors", nn.Linear(2, 2), {})
    with pytest.raises(CheckpointError, match="another network"):
        DISPredictor.from_checkpoint(tmp_path / "linear.safetensors", "cpu")


# --- both stages ---


class FakeSam:
    """A SamPredictor with three proposals of which the second is the best; it notes what it is asked."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.prompts: list[dict[str, Any]] = []

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.prompts.append(prompt)
        masks = np.stack([np.ones_like(MASK), MASK, ~MASK])
        return masks, np.array([0.3, 0.9, 0.5], dtype=np.float32), np.zeros((3, 256, 256), np.float32)


def test_dissam_refines_the_best_proposal(predictor: DISPredictor):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    for box in ((30, 20, 80, 59), [10, 10, 90, 70]):
        alpha, coarse, score = both.predict(box=box)
        np.testing.assert_array_equal(coarse, MASK)
        assert coarse.dtype == bool
        assert score == pytest.approx(0.9)
        np.testing.assert_array_equal(alpha, predictor.predict(IMAGE, MASK, box))
    assert len(sam.images) == 1  # encoded once for both prompts
    np.testing.assert_array_equal(sam.prompts[1]["box"], [10, 10, 90, 70])
    assert all(prompt["multimask_output"] for prompt in sam.prompts)


def test_dissam_passes_points_and_masks_on(predictor: DISPredictor):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    low = np.zeros((1, 256, 256), np.float32)
    alpha, _, _ = both.predict(point_coords=[[50, 40]], point_labels=[1], mask_input=low)
    np.testing.assert_array_equal(alpha, predictor.predict(IMAGE, MASK))  # the box being the mask's bounds
    (prompt,) = sam.prompts
    assert isinstance(prompt["point_coords"], np.ndarray)
    np.testing.assert_array_equal(prompt["point_coords"], [[50, 40]])
    np.testing.assert_array_equal(prompt["point_labels"], [1])
    assert prompt["box"] is None
    assert prompt["mask_input"] is low


def test_dissam_wants_an_image_and_a_prompt(predictor: DISPredictor):
    both = DISSAM(FakeSam(), predictor)
    with pytest.raises(RuntimeError, match=r"no image is set; call set_image"):
        both.predict(box=(30, 20, 80, 59))
    both.set_image(IMAGE)
    with pytest.raises(ValueError, match="no prompt"):
        both.predict()
    with pytest.raises(ValueError, match="points and labels go together"):
        both.predict(point_coords=np.array([[30, 40]]))
