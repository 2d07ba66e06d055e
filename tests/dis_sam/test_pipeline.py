"""Both stages as one: DISSAM, load and refine."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dis_sam import pipeline
from dis_sam.pipeline import DISSAM, load, refine
from IS_Net import predictor as predictor_module
from IS_Net.checkpoint import save_weights
from IS_Net.errors import BoxError, CheckpointError, ImageError
from IS_Net.images import read_image, read_mask, write_image, write_mask
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor
from sam import backends

SIZE = (64, 96)
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (75, 101, 3), dtype=np.uint8)
MASK = np.zeros((75, 101), dtype=bool)
MASK[20:60, 30:81] = True


@pytest.fixture(scope="module")
def predictor() -> DISPredictor:
    torch.manual_seed(0)
    return DISPredictor(ISNetDIS(5), "cpu", "full", SIZE)


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """Let no test use the weights that another test loaded."""
    pipeline._load_cached.cache_clear()


# --- DISSAM ---


class FakeSam:
    """A SamPredictor with three masks, of which the second has the highest score; it records its calls."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.prompts: list[dict[str, Any]] = []

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.prompts.append(prompt)
        masks = np.stack([np.ones_like(MASK), MASK, ~MASK])
        return masks, np.array([0.3, 0.9, 0.5], dtype=np.float32), np.zeros((3, 256, 256), np.float32)


def test_mask_with_the_highest_score_is_refined(predictor: DISPredictor):
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


def test_points_and_mask_input_reach_stage_1(predictor: DISPredictor):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    low = np.zeros((1, 256, 256), np.float32)
    alpha, _, _ = both.predict(point_coords=[[50, 40]], point_labels=[1], mask_input=low)
    np.testing.assert_array_equal(alpha, predictor.predict(IMAGE, MASK))  # the box is the bounds of the mask
    (prompt,) = sam.prompts
    assert isinstance(prompt["point_coords"], np.ndarray)
    np.testing.assert_array_equal(prompt["point_coords"], [[50, 40]])
    np.testing.assert_array_equal(prompt["point_labels"], [1])
    assert prompt["box"] is None
    assert prompt["mask_input"] is low


def test_image_and_prompt_are_required(predictor: DISPredictor):
    both = DISSAM(FakeSam(), predictor)
    with pytest.raises(RuntimeError, match=r"no image is set; call set_image"):
        both.predict(box=(30, 20, 80, 59))
    both.set_image(IMAGE)
    with pytest.raises(ValueError, match="no prompt"):
        both.predict()
    with pytest.raises(ValueError, match="only one of point_coords and point_labels"):
        both.predict(point_coords=np.array([[30, 40]]))


def test_image_is_resized_once_for_all_prompts(predictor: DISPredictor, monkeypatch: pytest.MonkeyPatch):
    resized = []
    make_image_planes = predictor_module.make_image_planes

    def counted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        resized.append(image.shape)
        return make_image_planes(image, size)

    boxes = [(30, 20, 80, 59), (10, 10, 90, 70), (0, 0, 100, 74)]
    expected = [predictor.predict(IMAGE, MASK, box) for box in boxes]
    monkeypatch.setattr(predictor_module, "make_image_planes", counted)
    both = DISSAM(FakeSam(), predictor)
    both.set_image(IMAGE)
    for box, alpha in zip(boxes, expected, strict=True):
        np.testing.assert_array_equal(both.predict(box=box)[0], alpha)
    assert resized == [IMAGE.shape]
    both.set_image(IMAGE[::-1])
    both.predict(box=boxes[0])
    assert len(resized) == 2


def test_box_is_checked_once(predictor: DISPredictor, monkeypatch: pytest.MonkeyPatch):
    checked = []

    def counted(box: Any, height: int, width: int) -> Any:
        checked.append(box)
        return box

    monkeypatch.setattr(pipeline, "check_box", counted)
    monkeypatch.setattr(predictor_module, "check_box", counted)
    both = DISSAM(FakeSam(), predictor)
    both.set_image(IMAGE)
    both.predict(box=(30, 20, 80, 59))
    assert checked == [(30, 20, 80, 59)]


@pytest.mark.parametrize("box", [(200, 5, 220, 9), (5, 9, 2, 4), (7, 7, 7, 7), (1, 2, 3)])
def test_invalid_box_does_not_reach_stage_1(predictor: DISPredictor, box: tuple):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    with pytest.raises(BoxError, match=r"^box: "):
        both.predict(box=box)
    assert sam.prompts == []


def test_mask_of_stage_1_must_have_the_size_of_the_image(predictor: DISPredictor):
    both = DISSAM(FakeSam(), predictor)
    both.set_image(IMAGE[1:])
    with pytest.raises(ValueError, match="the mask is 101 x 75 pixels, but its image is 101 x 74 pixels"):
        both.predict(box=(30, 20, 80, 59))


def test_no_prompt_refers_to_the_image_before_a_failed_one(predictor: DISPredictor):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    with pytest.raises(ValueError, match="expected an image of shape"):
        both.set_image(IMAGE[..., 0])
    with pytest.raises(RuntimeError, match="no image is set"):
        both.predict(box=(30, 20, 80, 59))
    assert len(sam.images) == 1


def test_image_may_be_a_pil_image_or_a_path(predictor: DISPredictor, tmp_path: Path):
    write_image(tmp_path / "photo.png", IMAGE)
    for image in (Image.fromarray(IMAGE), tmp_path / "photo.png", str(tmp_path / "photo.png")):
        sam = FakeSam()
        both = DISSAM(sam, predictor)
        both.set_image(image)
        np.testing.assert_array_equal(sam.images[0], IMAGE)
        alpha, _, _ = both.predict(box=(30, 20, 80, 59))
        np.testing.assert_array_equal(alpha, predictor.predict(IMAGE, MASK, (30, 20, 80, 59)))


# --- load ---


def test_load_takes_the_best_model_and_loads_it_when_needed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: [tmp_path])
    with caplog.at_level(logging.WARNING):
        model = load(weights, device="cpu", precision="full")
        assert "GrabCut" not in caplog.text
        model.set_image(IMAGE)
    assert "GrabCut" in caplog.text and model.sam.name == "grabcut" and model.sam is model.sam
    alpha, coarse, score = model.predict(box=(30, 20, 80, 59))
    expected = DISPredictor.from_checkpoint(weights, "cpu", "full").predict(IMAGE, coarse)
    np.testing.assert_array_equal(alpha, expected)
    assert np.isnan(score)


def test_load_reports_unknown_or_missing_models_at_once(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: [tmp_path])
    with pytest.raises(ValueError, match="unknown model 'vitl'; did you mean 'vit_l'"):
        load(weights, sam="vitl")
    with pytest.raises(FileNotFoundError, match=r"found no sam_vit_l_0b3195\.pth"):
        load(weights, sam="vit_l")
    with pytest.raises(CheckpointError, match=r"gone\.safetensors"):
        load(tmp_path / "gone.safetensors")


# --- refine ---


def refine_with(weights: Path, image: Any, mask: Any, **options: Any) -> np.ndarray:
    return refine(image, mask, weights=weights, device="cpu", precision="full", **options)


@pytest.fixture
def expected(weights: Path) -> np.ndarray:
    return DISPredictor.from_checkpoint(weights, "cpu", "full").predict(IMAGE, MASK)


def test_refine_accepts_arrays_pil_images_and_paths(weights: Path, expected: np.ndarray, tmp_path: Path):
    write_image(tmp_path / "photo.png", IMAGE)
    write_mask(tmp_path / "mask.png", MASK)
    images = [IMAGE, Image.fromarray(IMAGE), tmp_path / "photo.png", str(tmp_path / "photo.png")]
    masks = [MASK, MASK.astype(np.float32), Image.fromarray(MASK), tmp_path / "mask.png", str(tmp_path / "mask.png")]
    for image in images:
        np.testing.assert_array_equal(refine_with(weights, image, MASK), expected)
    for mask in masks:
        np.testing.assert_array_equal(refine_with(weights, IMAGE, mask), expected)


def test_pil_images_follow_the_rules_of_the_readers(weights: Path, tmp_path: Path):
    """An image stored on its side, with alpha; a mask with a color palette, and one in the alpha channel."""
    stored = Image.fromarray(np.dstack([IMAGE, IMAGE[..., 0]])).rotate(90, expand=True)
    exif = stored.getexif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    stored.save(tmp_path / "photo.png", exif=exif)
    palette = Image.fromarray(MASK.astype(np.uint8) * 3)
    palette.putpalette([0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 60])
    palette.save(tmp_path / "palette.png")
    alpha = Image.fromarray(np.dstack([np.full((*MASK.shape, 3), 255, np.uint8), MASK * np.uint8(255)]))
    alpha.save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), IMAGE)
    for name in ("palette.png", "alpha.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name) > 128, MASK)
        with Image.open(tmp_path / "photo.png") as image, Image.open(tmp_path / name) as mask:
            opened = refine_with(weights, image, mask)
        np.testing.assert_array_equal(opened, refine_with(weights, IMAGE, MASK))
        paths = refine_with(weights, tmp_path / "photo.png", tmp_path / name)
        np.testing.assert_array_equal(opened, paths)


def test_refine_uses_the_box(tmp_path: Path, predictor: DISPredictor):
    torch.manual_seed(0)
    path = tmp_path / "five.safetensors"
    save_weights(path, ISNetDIS(5), {"input_size": SIZE})
    for box in (None, (0, 0, 100, 74)):
        np.testing.assert_array_equal(refine_with(path, IMAGE, MASK, box=box), predictor.predict(IMAGE, MASK, box))
    with pytest.raises(BoxError, match=r"^box: "):
        refine_with(path, IMAGE, MASK, box=(200, 5, 220, 9))


def test_refine_takes_the_starter_weights_by_default(
    weights: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "starter_weights", lambda: weights)
    np.testing.assert_array_equal(refine(IMAGE, MASK, device="cpu", precision="full"), expected)


def test_sizes_that_differ(weights: Path, tmp_path: Path):
    write_image(tmp_path / "photo.png", IMAGE)
    write_mask(tmp_path / "mask.png", MASK[1:])
    with pytest.raises(ValueError, match=r"^the mask is 101 x 74 pixels, but its image is 101 x 75 pixels"):
        refine_with(weights, IMAGE, MASK[1:])
    with pytest.raises(
        ValueError, match=r"mask\.png is 101 x 74 pixels, but its image .*photo\.png is 101 x 75 pixels"
    ):
        refine_with(weights, tmp_path / "photo.png", tmp_path / "mask.png")


def test_files_that_cannot_be_read(weights: Path, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for image, mask in ((tmp_path / "broken.png", MASK), (IMAGE, tmp_path / "gone.png")):
        with pytest.raises(ImageError, match=r"(broken|gone)\.png"):
            refine_with(weights, image, mask)


def test_weights_are_loaded_once_and_again_when_the_file_changes(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded = []
    from_checkpoint = DISPredictor.from_checkpoint

    def counted(path: Path, *settings: Any) -> DISPredictor:
        loaded.append((path, *settings))
        return from_checkpoint(path, *settings)

    monkeypatch.setattr(DISPredictor, "from_checkpoint", counted)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights.read_bytes())
    first = refine_with(path, IMAGE, MASK)
    np.testing.assert_array_equal(refine_with(path, IMAGE, MASK), first)
    assert load(path, "grabcut", "cpu", "full").dis is load(str(path), "grabcut", torch.device("cpu"), "full").dis
    assert loaded == [(path, "cpu", "full")]
    assert load(path, "grabcut", "cpu", "half").dis.dtype == torch.bfloat16
    assert len(loaded) == 2
    model = ISNetDIS(4)
    model.load_state_dict({name: value * 0.9 for name, value in load_file(weights).items()})
    save_weights(path, model, {"input_size": [128, 128]})
    os.utime(path, ns=(1, 1))  # another time of change, however coarse the file system's clock
    assert (refine_with(path, IMAGE, MASK) != first).any()
    assert len(loaded) == 3
