"""What every model of stage 1 must do, whatever it is. A model that is added to the registry joins these tests."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_sam import tiny_sam

from IS_Net.errors import PromptError
from sam import backends
from sam.backends import BACKENDS, checkpoint_names, load_predictor
from sam.backends.base import StageOnePredictor
from sam.prompts import Prompt

SMALL_NETWORKS = {"sam.backends.segment_anything": tiny_sam}
"""For each module whose models have weights: what builds its network in small, in place of its ``BUILDERS``."""

BOX = Prompt("x", "box", (10, 20, 80, 90))
POINT = Prompt("x", "point", None, ((45.5, 55.0),), (1,))
POINTS = Prompt("x", "points", None, ((45, 55), (5, 5)), (1, 0))
BOTH = Prompt("x", "both", (30, 25.5, 120, 100), ((60, 50),), (1,))
PROMPTS = [BOX, POINT, BOTH, POINTS, Prompt("x", "box 2", (60, 10, 150, 110))]


def accepted(predictor: StageOnePredictor, prompts: Sequence[Prompt] = PROMPTS) -> list[Prompt]:
    """Return the prompts that a model takes: one that takes boxes only refuses the others."""
    return [prompt for prompt in prompts if prompt.box is not None or not predictor.box_only]


def draw_image(seed: int, size: tuple[int, int] = (120, 170)) -> np.ndarray:
    """Return an image of a bright disc at (45, 55) on a smooth, colored background."""
    noise = np.random.default_rng(seed).integers(0, 120, (12, 17, 3), dtype=np.uint8)
    image = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (45, 55), 25, (230, 200, 60), cv2.FILLED)
    return image


@pytest.fixture(scope="module", params=BACKENDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path | None]:
    """Return each model's name, and a checkpoint of random weights if it needs one."""
    model = request.param
    if model not in checkpoint_names():
        return model, None
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp(model) / checkpoint_names()[model]
    torch.save(SMALL_NETWORKS[BACKENDS[model]]().state_dict(), path)
    return model, path


@pytest.fixture
def predictor(checkpoint: tuple[str, Path | None], monkeypatch: pytest.MonkeyPatch) -> StageOnePredictor:
    model, path = checkpoint
    if path is not None:
        module = importlib.import_module(BACKENDS[model])
        monkeypatch.setitem(module.BUILDERS, model, SMALL_NETWORKS[BACKENDS[model]])
        monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: [path.parent])
    return load_predictor(model, device="cpu")


def predict(predictor: StageOnePredictor, prompt: Prompt, **options: object) -> tuple[np.ndarray, np.ndarray, object]:
    return predictor.predict(
        point_coords=None if prompt.points is None else np.array(prompt.points),
        point_labels=None if prompt.labels is None else np.array(prompt.labels),
        box=None if prompt.box is None else np.array(prompt.box),
        **options,
    )


def test_attributes(predictor: StageOnePredictor, checkpoint: tuple[str, Path | None]) -> None:
    model, path = checkpoint
    assert predictor.name == model
    assert predictor.checkpoint == (path and hashlib.sha256(path.read_bytes()).hexdigest())
    assert isinstance(predictor.selects, bool) and isinstance(predictor.box_only, bool)


def test_without_an_image(predictor: StageOnePredictor) -> None:
    with pytest.raises(RuntimeError, match="set_image"):
        predict(predictor, BOX)
    with pytest.raises(RuntimeError, match="set_image"):
        next(iter(predictor.predict_prompts([BOX])))


@pytest.mark.parametrize("prompt", [BOX, POINT, POINTS, BOTH], ids=lambda prompt: prompt.object)
def test_predict(predictor: StageOnePredictor, prompt: Prompt) -> None:
    image = draw_image(0)
    predictor.set_image(image)
    if not accepted(predictor, [prompt]):
        with pytest.raises(PromptError, match="points without a box need SAM"):
            predict(predictor, prompt)
        with pytest.raises(PromptError, match="points without a box need SAM"):
            next(predictor.predict_prompts([prompt]))
        return
    masks, scores, logits = predict(predictor, prompt)
    assert masks.dtype == bool and masks.shape[1:] == image.shape[:2]
    assert (len(masks) > 1) == predictor.selects
    assert scores.dtype == np.float32 and scores.shape == masks.shape[:1]
    assert logits is None or (logits.dtype == np.float32 and logits.shape[0] == len(masks) and logits.ndim == 3)
    single, score, _ = predict(predictor, prompt, multimask_output=False)
    assert single.shape == (1, *image.shape[:2]) and score.shape == (1,)


def test_mask_input(predictor: StageOnePredictor) -> None:
    """Logits of an earlier call are accepted by models that return logits, and refused by others."""
    predictor.set_image(draw_image(0))
    masks, _, logits = predict(predictor, BOX)
    if logits is None:
        with pytest.raises(ValueError, match="mask_input"):
            predict(predictor, BOX, mask_input=np.zeros((1, 256, 256), np.float32))
    else:
        again, _, _ = predict(predictor, BOX, mask_input=logits[:1], multimask_output=False)
        assert again.shape == (1, *masks.shape[1:])


@pytest.mark.parametrize("select", ["score", "first"])
def test_predict_prompts_agrees_with_predict(predictor: StageOnePredictor, select: str) -> None:
    image = draw_image(0)
    predictor.set_image(image)
    prompts = accepted(predictor)
    results = list(predictor.predict_prompts(prompts, select))
    assert len(results) == len(prompts) > 2
    found = []
    for prompt, (mask, score) in zip(prompts, results, strict=True):
        masks, scores, _ = predict(predictor, prompt)
        best = int(np.argmax(scores)) if select == "score" else 0
        assert mask.dtype == bool and mask.shape == image.shape[:2]
        assert (mask != masks[best]).mean() < 1e-3  # logits near 0 may round to either side
        if np.isnan(scores[best]):
            assert score is None
        else:
            assert isinstance(score, float) and score == pytest.approx(scores[best], abs=1e-4)
        found.append(mask)
    assert any(mask.any() for mask in found)
    assert len({mask.tobytes() for mask in found}) > 1  # the order would not show in equal masks


def test_no_prompts(predictor: StageOnePredictor) -> None:
    predictor.set_image(draw_image(0))
    assert list(predictor.predict_prompts([])) == []


def test_masks_are_reproducible(predictor: StageOnePredictor) -> None:
    predictor.set_image(draw_image(0))
    prompts = accepted(predictor)
    first = [mask for mask, _ in predictor.predict_prompts(prompts)]
    np.random.seed(5)
    cv2.setRNGSeed(5)
    torch.manual_seed(5)
    predictor.set_image(draw_image(0))
    for mask, (again, _) in zip(first, predictor.predict_prompts(prompts), strict=True):
        np.testing.assert_array_equal(mask, again)


def test_new_image_replaces_the_previous_one(predictor: StageOnePredictor) -> None:
    other = draw_image(1, (100, 90))
    box = Prompt("x", None, (10, 20, 80, 90))
    predictor.set_image(other)
    ((expected, _),) = predictor.predict_prompts([box])
    predictor.set_image(draw_image(0))
    ((previous, _),) = predictor.predict_prompts([box])
    predictor.set_image(other)
    ((mask, _),) = predictor.predict_prompts([box])
    assert previous.shape == (120, 170)
    np.testing.assert_array_equal(mask, expected)


def test_image_is_not_modified_and_may_be_a_view(predictor: StageOnePredictor) -> None:
    image = draw_image(0)
    before = image.copy()
    flipped = image[:, ::-1]
    predictor.set_image(flipped)
    ((mask, _),) = predictor.predict_prompts([BOX])
    np.testing.assert_array_equal(image, before)
    predictor.set_image(flipped.copy())
    ((expected, _),) = predictor.predict_prompts([BOX])
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 30, 3), np.float32),
        np.zeros((20, 30, 3), np.uint16),
        np.zeros((20, 30, 4), np.uint8),
        np.zeros((20, 30), np.uint8),
        np.zeros((0, 30, 3), np.uint8),
    ],
    ids=str,
)
def test_only_8_bit_rgb_is_taken(predictor: StageOnePredictor, image: np.ndarray) -> None:
    """Row 15 of the list of faults: floats of 0..1 were taken, nearly black for SAM."""
    with pytest.raises(ValueError, match=r"expected an image of shape \(H, W, 3\) uint8, found"):
        predictor.set_image(image)


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        ([[500, -9]], [1], "outside the image of 170 x 120 pixels"),
        ([[5, 5]], [7], "labels of 1"),
        ([[np.nan, 5]], [1], "expected two numbers"),
        ([[5, 5], [6, 6]], [1], "2 points and 1 labels"),
        ([[5, 5]], None, "points without labels"),
    ],
)
def test_faulty_points(predictor: StageOnePredictor, points: list, labels: list | None, message: str) -> None:
    """Row 14: the same checks in the Python interface as in the command."""
    predictor.set_image(draw_image(0))
    labels = None if labels is None else np.array(labels)
    for box in (None, np.array([10, 20, 80, 90])):
        with pytest.raises(PromptError, match=message):
            predictor.predict(point_coords=np.array(points), point_labels=labels, box=box)


def test_a_lone_background_point(predictor: StageOnePredictor) -> None:
    """Row 14: it selects nothing, so it needs a box beside it."""
    predictor.set_image(draw_image(0))
    with pytest.raises(PromptError, match=r"only background points|need SAM"):
        predictor.predict(point_coords=np.array([[5, 5]]), point_labels=np.array([0]))
