"""Both stages as one: DISSAM, its results, load and refine."""

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
from dis_sam.outputs import OutputError
from dis_sam.pipeline import DISSAM, Result, load, refine
from IS_Net import predictor as predictor_module
from IS_Net.checkpoint import save_weights
from IS_Net.errors import BoxError, CheckpointError, ImageError, MissingFileError, PromptError
from IS_Net.images import read_image, read_mask, write_image, write_map, write_mask
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor, Refined
from IS_Net.preprocess import fill_box
from sam import backends
from sam.backends.box import BoxPredictor

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


class FakeSam2(FakeSam):
    """A FakeSam that uses proposals and records them. It is not sure of its masks."""

    uses_proposals = True

    def __init__(self) -> None:
        super().__init__()
        self.proposals: list[np.ndarray] = []

    def mask_prompt(self, alpha: np.ndarray) -> np.ndarray:
        assert len(self.images) == 1  # the image is set before
        self.proposals.append(alpha)
        return np.full((1, 256, 256), len(self.proposals), np.float32)

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        masks, scores, logits = super().predict(**prompt)
        return masks, scores - 0.1, logits


def test_a_model_that_uses_proposals_is_given_what_stage_2_finds_from_the_box():
    torch.manual_seed(0)
    predictor = DISPredictor(ISNetDIS(5), "cpu", "full", (32, 48), {"windows": True})
    sam, box = FakeSam2(), (30, 20, 80, 59)
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    expected = predictor.predict(IMAGE, None, box, detail="off")
    assert (expected > 0.5).any()
    assert (expected != predictor.predict(IMAGE, None, box)).any()  # SAM needs no detail
    results = both.segment(box), both.predict(box=box)
    assert len(sam.proposals) == 2
    for proposal in sam.proposals:
        np.testing.assert_array_equal(proposal, expected)
    prompted = [prompt["mask_input"] for prompt in sam.prompts]
    assert prompted[0] is None and prompted[1].max() == 1  # first the box alone, then the proposal too
    assert prompted[2] is None and prompted[3].max() == 2
    for prompt in sam.prompts:
        np.testing.assert_array_equal(prompt["box"], box)
    np.testing.assert_array_equal(results[0].coarse, MASK)  # the model's own mask is refined, not the proposal
    np.testing.assert_array_equal(results[0].alpha, predictor.predict(IMAGE, MASK, box))
    np.testing.assert_array_equal(results[1][0], results[0].alpha)


def test_points_and_masks_need_no_proposal(predictor: DISPredictor):
    sam, box, low = FakeSam2(), (30, 20, 80, 59), np.zeros((1, 256, 256), np.float32)
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    both.segment(points=[[50, 40]])
    both.segment(box, points=[[50, 40]])
    both.predict(box=box, mask_input=low)
    both.segment(box, mask=MASK)
    assert not sam.proposals
    assert [prompt["mask_input"] is low for prompt in sam.prompts] == [False, False, True]


def test_a_stage_2_without_prompts_makes_no_proposal():
    """With three channels, stage 2 finds the same object whatever the box."""
    torch.manual_seed(0)
    sam = FakeSam2()
    both = DISSAM(sam, DISPredictor(ISNetDIS(3), "cpu", "full", SIZE))
    both.set_image(IMAGE)
    both.segment((30, 20, 80, 59))
    assert not sam.proposals and len(sam.prompts) == 1


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


def test_stage_1_encodes_the_image_when_a_prompt_first_needs_it(predictor: DISPredictor):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    both.segment()
    both.segment(mask=MASK)
    assert sam.images == []
    both.segment(box=(30, 20, 80, 59))
    both.predict(box=(30, 20, 80, 59))
    both.segment(points=[[50, 40]])
    assert len(sam.images) == 1
    both.set_image(IMAGE[::-1])
    assert len(sam.images) == 1
    both.predict(box=(30, 20, 80, 59))
    np.testing.assert_array_equal(sam.images[1], IMAGE[::-1])


def test_image_may_be_modified_after_it_is_set(predictor: DISPredictor):
    sam, image = FakeSam(), IMAGE.copy()
    both = DISSAM(sam, predictor)
    both.set_image(image)
    image[:] = 0
    result = both.segment(box=(30, 20, 80, 59))
    np.testing.assert_array_equal(sam.images[0], IMAGE)
    np.testing.assert_array_equal(result.image, IMAGE)


def test_failure_of_stage_1_is_not_taken_for_an_encoded_image(predictor: DISPredictor):
    class Failing(FakeSam):
        def set_image(self, image: np.ndarray) -> None:
            super().set_image(image)
            if len(self.images) == 1:
                raise MemoryError

    both = DISSAM(Failing(), predictor)
    both.set_image(IMAGE)
    with pytest.raises(MemoryError):
        both.predict(box=(30, 20, 80, 59))
    np.testing.assert_array_equal(both.predict(box=(30, 20, 80, 59))[1], MASK)


# --- segment and cut ---


def assert_same(result: Result, alpha: np.ndarray, coarse: np.ndarray | None) -> None:
    np.testing.assert_array_equal(result.image, IMAGE)
    np.testing.assert_array_equal(result.alpha, alpha)
    if coarse is None:
        assert result.coarse is None
    else:
        np.testing.assert_array_equal(result.coarse, coarse)


def test_segment_with_sam(predictor: DISPredictor):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    box = (10, 10, 90, 70)
    assert_same(both.segment(box), predictor.predict(IMAGE, MASK, box), MASK)
    assert_same(both.segment(points=[(50, 40), (3, 3)], labels=[1, 0]), predictor.predict(IMAGE, MASK), MASK)
    assert_same(both.segment(box, [(50, 40)]), predictor.predict(IMAGE, MASK, box), MASK)
    assert [prompt["box"] is None for prompt in sam.prompts] == [False, True, False]
    np.testing.assert_array_equal(sam.prompts[1]["point_coords"], [[50, 40], [3, 3]])
    np.testing.assert_array_equal(sam.prompts[1]["point_labels"], [1, 0])
    np.testing.assert_array_equal(sam.prompts[2]["point_labels"], [1])  # points are on the object by default
    assert all(prompt["multimask_output"] and prompt["mask_input"] is None for prompt in sam.prompts)


def test_segment_with_boxes_alone_gives_stage_2_no_mask(predictor: DISPredictor, caplog: pytest.LogCaptureFixture):
    both = DISSAM(BoxPredictor(), predictor)
    both.set_image(IMAGE)
    box = (10, 10, 90, 70)
    filled = fill_box(box, MASK.shape, MASK.shape)[0] > 0
    expected = predictor.predict(IMAGE, None, box)
    np.testing.assert_array_equal(predictor.predict(IMAGE, filled, box), expected)
    assert (expected != predictor.predict(IMAGE, filled, (0, 0, 99, 74))).any()
    result = both.segment(box)
    assert_same(result, expected, filled)
    alpha, coarse, score = both.predict(box=box)
    np.testing.assert_array_equal(alpha, expected)
    np.testing.assert_array_equal(coarse, filled)
    assert coarse.dtype == bool and np.isnan(score)
    assert_same(both.segment(box, [(50, 40)]), expected, filled)
    assert "points are ignored" in caplog.text
    for call in (lambda: both.segment(points=[(50, 40)]), lambda: both.predict(np.array([[50, 40]]), np.array([1]))):
        with pytest.raises(PromptError, match=r"points without a box need SAM: .*dis-sam fetch vit_l"):
            call()


def test_boxes_alone_and_a_four_channel_network():
    """The filled box is its mask."""
    torch.manual_seed(0)
    predictor = DISPredictor(ISNetDIS(4), "cpu", "full", SIZE)
    both = DISSAM(BoxPredictor(), predictor)
    box = (10, 10, 90, 70)
    alpha = both.cut(IMAGE, box).alpha
    filled = fill_box(box, MASK.shape, MASK.shape)[0]
    first = predictor.predict(IMAGE, None, box, passes=1)
    np.testing.assert_array_equal(alpha, predictor.predict(IMAGE, None, box, passes=2))
    # the box is drawn at the network's size, the mask is resized: they differ at the border
    np.testing.assert_allclose(first, predictor.predict(IMAGE, filled), atol=0.02)


def test_segment_a_mask_or_the_most_salient_thing(predictor: DISPredictor, tmp_path: Path):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    box, coarse = (10, 10, 90, 70), MASK * np.uint8(255)
    write_mask(tmp_path / "mask.png", MASK)
    for mask in (MASK, MASK.astype(np.float32), Image.fromarray(MASK), tmp_path / "mask.png"):
        result = both.segment(mask=mask)
        assert_same(result, predictor.predict(IMAGE, MASK), coarse)
        assert result.coarse.dtype == np.uint8 and np.isnan(result.score)
    assert_same(both.segment(box, mask=MASK), predictor.predict(IMAGE, MASK, box), coarse)
    assert_same(both.segment(mask=~MASK & MASK), np.zeros(MASK.shape), coarse * 0)
    assert_same(both.segment(), predictor.predict(IMAGE), None)
    assert sam.images == sam.prompts == []


def test_a_mask_of_one_pixel_comes_with_its_box(predictor: DISPredictor):
    """Stage 1 records such a box in its manifest."""
    image, mask, box = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8), (30, 20, 30, 20)
    mask[20, 30] = 255
    model = DISSAM(None, predictor)
    model.set_image(image)
    assert model.segment(box, mask=mask).alpha.shape == (40, 60)
    with pytest.raises(BoxError, match="single point"):
        model.segment(box)


def test_a_map_of_hardly_anything_is_no_mask_of_classes(predictor: DISPredictor, tmp_path: Path, monkeypatch):
    """Its levels are 0 and 1 of 255; in an array of a caller, 1 is the object."""
    levels = np.zeros(IMAGE.shape[:2], np.uint8)
    levels[5:9, 5:9] = 1
    write_map(tmp_path / "map.png", levels)
    given, found = [], Refined(np.zeros(levels.shape, np.float32), 0.5, False)
    monkeypatch.setattr(predictor, "refine", lambda image, mask, *_, **__: given.append(mask) or found)
    model = DISSAM(FakeSam(), predictor)
    model.set_image(IMAGE)
    for mask in (tmp_path / "map.png", Image.open(tmp_path / "map.png"), levels):
        model.segment(mask=mask)
    assert [mask.max() for mask in given] == [1, 1, 255]


def test_score_of_a_result(predictor: DISPredictor):
    both = DISSAM(BoxPredictor(), predictor)
    both.set_image(IMAGE)
    box = (10, 10, 90, 70)
    _, expected = predictor.predict(IMAGE, None, box, return_score=True)
    assert both.segment(box).score == both.segment(box, need_score=True).score == expected
    _, expected = predictor.predict(IMAGE, MASK, return_score=True)
    assert both.segment(mask=MASK, need_score=True).score == expected


def test_options_reach_stage_2(predictor: DISPredictor, monkeypatch: pytest.MonkeyPatch):
    calls = []
    refine_ = DISPredictor.refine

    def recorded(self: DISPredictor, *prompt: Any, **options: Any) -> Any:
        calls.append(options)
        return refine_(self, *prompt, **options)

    monkeypatch.setattr(DISPredictor, "refine", recorded)
    both, options = DISSAM(BoxPredictor(), predictor), {"detail": "off", "keep_better": True, "need_score": True}
    both.cut(IMAGE, mask=MASK, **options)
    both.segment(box=(1, 1, 50, 50), **options)
    both.segment()
    assert calls == [options, options, {"detail": "auto", "keep_better": False, "need_score": False}]


def test_cut_sets_the_image(predictor: DISPredictor, tmp_path: Path):
    write_image(tmp_path / "photo.png", IMAGE)
    both = DISSAM(FakeSam(), predictor)
    for image in (IMAGE, Image.fromarray(IMAGE), tmp_path / "photo.png"):
        assert_same(both.cut(image, (10, 10, 90, 70)), predictor.predict(IMAGE, MASK, (10, 10, 90, 70)), MASK)
        assert_same(both.cut(image, None, [(50, 40)], [1]), predictor.predict(IMAGE, MASK), MASK)
        assert_same(both.cut(image, mask=~MASK), predictor.predict(IMAGE, ~MASK), ~MASK * np.uint8(255))
    with pytest.raises(ValueError, match="expected an image of shape"):
        both.cut(IMAGE[..., 0])
    with pytest.raises(RuntimeError, match=r"no image is set; call set_image"):
        both.segment()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [(1, 1)], "mask": MASK}, "points together with a mask"),
        ({"labels": [1]}, "labels without points"),
        ({"points": [(1, 1)], "labels": [1, 0]}, "one label, 1 .* or 0 .*, for each"),
        ({"points": [(1, 1)], "labels": [2]}, "one label, 1 .* or 0 .*, for each"),
        ({"points": [(1, 1)], "labels": [0]}, "only background points"),
        ({"points": (1, 1)}, r"expected points as \[\[x, y\], ..\]"),
        ({"points": []}, r"expected points as \[\[x, y\], ..\]"),
        ({"points": [(1, float("nan"))]}, r"expected points as \[\[x, y\], ..\]"),
        ({"points": [("a", 1)]}, r"expected points as \[\[x, y\], ..\]"),
        ({"box": (200, 5, 220, 9)}, "outside its image"),
        ({"mask": MASK[1:]}, "the mask is 101 x 74 pixels"),
    ],
)
def test_invalid_prompts_do_not_reach_stage_1(predictor: DISPredictor, prompt: dict, message: str):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    with pytest.raises((PromptError, BoxError, ValueError), match=message):
        both.segment(**prompt)
    assert sam.prompts == []


# --- results ---


def make_result() -> Result:
    alpha = np.zeros(MASK.shape, np.float32)
    alpha[20:60, 30:80] = 1
    alpha[20:60, 80] = 0.25
    return Result(IMAGE, alpha)


def test_result():
    assert repr(Result(IMAGE, np.zeros(IMAGE.shape[:2], np.float32), None, 0.91)) == (
        f"<Result: {IMAGE.shape[1]} x {IMAGE.shape[0]} pixels, no coarse mask, score 0.910>"
    )
    result = make_result()
    assert result.coarse is None and np.isnan(result.score)
    expected = np.zeros(MASK.shape, bool)
    expected[20:60, 30:80] = True
    np.testing.assert_array_equal(result.mask, expected)
    with pytest.raises(AttributeError):
        result.alpha = expected


@pytest.mark.parametrize(("bits", "dtype", "highest"), [(8, np.uint8, 255), (16, np.uint16, 65535)])
def test_rgba(bits: int, dtype: type, highest: int):
    result = make_result()
    rgba = result.rgba(bits)
    assert rgba.dtype == dtype and rgba.shape == (*MASK.shape, 4)
    np.testing.assert_array_equal(rgba[..., 3], np.rint(result.alpha * highest))
    scale = highest // 255
    np.testing.assert_array_equal(rgba[20:60, 30:80, :3], IMAGE[20:60, 30:80].astype(int) * scale)
    with pytest.raises(OutputError, match="8 or 16"):
        result.rgba(12)


def test_save(tmp_path: Path):
    result = make_result()
    result.save(tmp_path / "new" / "cutout.png")
    with Image.open(tmp_path / "new" / "cutout.png") as file:
        np.testing.assert_array_equal(np.asarray(file), result.rgba())
    result.save(tmp_path / "alpha.png", "alpha", bits=16, crop=True)
    with Image.open(tmp_path / "alpha.png") as file:
        found = np.asarray(file)
    assert found.shape == (40, 51) and found[0, 0] == 65535 and found[0, -1] == 16384
    result.save(tmp_path / "mask.png", "mask", threshold=0.2)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png") > 0, result.alpha > 0.2)
    with pytest.raises(OutputError, match=r"cutout\.jpg: expected a file name with \.png, found \.jpg"):
        result.save(tmp_path / "cutout.jpg")


# --- the prompts of predict ---


def test_box_is_checked_once(predictor: DISPredictor, monkeypatch: pytest.MonkeyPatch):
    checked = []

    def counted(box: Any, height: int, width: int) -> Any:
        checked.append(box)
        return box

    monkeypatch.setattr(pipeline, "check_box", counted)
    monkeypatch.setattr(predictor_module, "clip_box", counted)
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
    assert sam.images == sam.prompts == []


def test_image_may_be_a_pil_image_or_a_path(predictor: DISPredictor, tmp_path: Path):
    write_image(tmp_path / "photo.png", IMAGE)
    for image in (Image.fromarray(IMAGE), tmp_path / "photo.png", str(tmp_path / "photo.png")):
        sam = FakeSam()
        both = DISSAM(sam, predictor)
        both.set_image(image)
        alpha, _, _ = both.predict(box=(30, 20, 80, 59))
        np.testing.assert_array_equal(sam.images[0], IMAGE)
        np.testing.assert_array_equal(alpha, predictor.predict(IMAGE, MASK, (30, 20, 80, 59)))


@pytest.mark.parametrize("method", ["predict", "cut"])
def test_stage_1_gets_the_part_of_a_box_that_is_inside(method: str, predictor: DISPredictor):
    sam = FakeSam()
    both = DISSAM(sam, predictor)
    both.set_image(IMAGE)
    both.predict(box=(-5, 20, 500, 59)) if method == "predict" else both.cut(IMAGE, (-5, 20, 500, 59))
    np.testing.assert_array_equal(sam.prompts[-1]["box"], (0, 20, IMAGE.shape[1] - 1, 59))


# --- load ---


def test_load_takes_boxes_alone_without_sam(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: [tmp_path])
    with caplog.at_level(logging.INFO):
        model = load(weights, device="cpu", precision="full")
        assert "stage 1" not in caplog.text  # it may never be needed
        assert model.sam.name == "box" and model.sam is model.sam
    assert caplog.text.count("stage 1: none; boxes go to stage 2 (box)") == 1
    expected = DISPredictor.from_checkpoint(weights, "cpu", "full").predict(IMAGE, None, (30, 20, 80, 59))
    np.testing.assert_array_equal(model.cut(IMAGE, (30, 20, 80, 59)).alpha, expected)


def test_load_takes_the_best_sam_and_loads_it_when_needed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    loaded = []

    def load_fake(*arguments: Any) -> FakeSam:
        loaded.append(arguments)
        return FakeSam()

    monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: [tmp_path])
    monkeypatch.setattr(pipeline, "load_predictor", load_fake)
    for name in ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth"):
        (tmp_path / name).touch()
    with caplog.at_level(logging.INFO):
        model = load(weights, device="cpu", precision="full")
        model.cut(IMAGE, mask=MASK)
        model.cut(IMAGE)
        assert loaded == [] and "stage 1" not in caplog.text
        result = model.cut(IMAGE, (30, 20, 80, 59))
    assert f"stage 1: SAM vit_l, {tmp_path / 'sam_vit_l_0b3195.pth'}" in caplog.text
    np.testing.assert_array_equal(result.coarse, MASK)
    model.segment((31, 20, 80, 59))
    assert loaded == [("vit_l", tmp_path / "sam_vit_l_0b3195.pth", "cpu")]
    assert load(weights, sam="box", device="cpu", precision="full").sam is not model.sam
    assert loaded[-1] == ("box", None, "cpu")


def test_load_reports_unknown_or_missing_models_at_once(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: [tmp_path])
    with pytest.raises(ValueError, match="unknown model 'vitl'; did you mean 'vit_l'"):
        load(weights, sam="vitl")
    with pytest.raises(MissingFileError, match=r"found no sam_vit_l_0b3195\.pth"):
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
    opacity = np.where(MASK, np.uint8(255), np.uint8(0))
    stored = Image.fromarray(np.dstack([IMAGE, opacity])).rotate(90, expand=True)
    exif = stored.getexif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    stored.save(tmp_path / "photo.png", exif=exif)
    palette = Image.fromarray(MASK.astype(np.uint8) * 3)
    palette.putpalette([0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 60])
    palette.save(tmp_path / "palette.png")
    alpha = Image.fromarray(np.dstack([np.full((*MASK.shape, 3), 255, np.uint8), MASK * np.uint8(255)]))
    alpha.save(tmp_path / "alpha.png")
    on_white = np.where(opacity[..., None] > 0, IMAGE, np.uint8(255))
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), on_white)
    for name in ("palette.png", "alpha.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name) > 128, MASK)
        with Image.open(tmp_path / "photo.png") as image, Image.open(tmp_path / name) as mask:
            opened = refine_with(weights, image, mask)
        np.testing.assert_array_equal(opened, refine_with(weights, on_white, MASK))
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

    def counted(path: Path, *settings: Any, **others: Any) -> DISPredictor:
        loaded.append((path, *settings))
        return from_checkpoint(path, *settings, **others)

    monkeypatch.setattr(DISPredictor, "from_checkpoint", counted)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights.read_bytes())
    first = refine_with(path, IMAGE, MASK)
    np.testing.assert_array_equal(refine_with(path, IMAGE, MASK), first)
    assert load(path, "box", "cpu", "full").dis is load(str(path), "box", torch.device("cpu"), "full").dis
    assert loaded == [(path, "cpu", "full")]
    assert load(path, "box", "cpu", "half").dis.runtime.precision == "bfloat16"
    assert len(loaded) == 2
    model = ISNetDIS(4)
    model.load_state_dict({name: value * 0.9 for name, value in load_file(weights).items()})
    save_weights(path, model, {"input_size": [128, 128]})
    os.utime(path, ns=(1, 1))  # another time of change, however coarse the file system's clock
    assert (refine_with(path, IMAGE, MASK) != first).any()
    assert len(loaded) == 3
