"""What every model of stage 1 must do, whatever it is. A model that is added to the registry joins these tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from tiny_families import FAMILIES, replace_dimensions

from IS_Net.errors import PromptError
from sam import backends
from sam.backends import BACKENDS, load_predictor
from sam.backends import BOX as BOX_MODEL
from sam.backends.base import StageOnePredictor
from sam.prompts import Prompt

BOX = Prompt("x", "box", (10, 20, 80, 90))
POINT = Prompt("x", "point", None, ((45.5, 55.0),), (1,))
POINTS = Prompt("x", "points", None, ((45, 55), (5, 5)), (1, 0))
BOTH = Prompt("x", "both", (30, 25.5, 120, 100), ((60, 50),), (1,))
PROMPTS = [BOX, POINT, BOTH, Prompt("x", "box 2", (60, 10, 150, 110))]


def accepted(predictor: StageOnePredictor, prompts: Sequence[Prompt] = PROMPTS) -> list[Prompt]:
    """Return the prompts that a model takes: one that takes boxes only refuses the others."""
    return [prompt for prompt in prompts if prompt.box is not None or not predictor.box_only]


def draw_image(seed: int, size: tuple[int, int] = (120, 170)) -> np.ndarray:
    """Return an image of a bright disc at (45, 55) on a smooth, colored background."""
    noise = np.random.default_rng(seed).integers(0, 120, (12, 17, 3), dtype=np.uint8)
    image = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (45, 55), 25, (230, 200, 60), cv2.FILLED)
    return image


class Loaded(NamedTuple):
    """A model that was loaded, and how to load it again."""

    model: str
    path: Path | None
    predictor: StageOnePredictor


@pytest.fixture(scope="module", params=[*FAMILIES, BOX_MODEL])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Load each family in small, with random weights."""
    if request.param == BOX_MODEL:
        yield Loaded(BOX_MODEL, None, load_predictor(BOX_MODEL))
        return
    tiny = FAMILIES[request.param]
    for package in tiny.packages:
        pytest.importorskip(package)
    torch.manual_seed(3)
    name = BACKENDS[tiny.model].published if tiny.build else tiny.model
    path = tiny.save(tmp_path_factory.mktemp("models") / name)
    with pytest.MonkeyPatch.context() as patch:
        replace_dimensions(patch, tiny)
        patch.setattr(backends, "sam_checkpoint_folders", lambda: [path.parent])
        yield Loaded(tiny.model, path, load_predictor(tiny.model, device="cpu"))


@pytest.fixture
def predictor(loaded: Loaded) -> StageOnePredictor:
    return loaded.predictor


@pytest.fixture(scope="module")
def encoding(loaded: Loaded) -> object:
    return loaded.predictor.encode([draw_image(0)])[0]


@pytest.fixture
def ready(predictor: StageOnePredictor, encoding: object) -> StageOnePredictor:
    """Return the model with the image ``draw_image(0)`` set."""
    predictor.set_encoding(encoding)
    return predictor


def predict(predictor: StageOnePredictor, prompt: Prompt, **options: object) -> tuple[np.ndarray, np.ndarray, object]:
    return predictor.predict(
        point_coords=None if prompt.points is None else np.array(prompt.points),
        point_labels=None if prompt.labels is None else np.array(prompt.labels),
        box=None if prompt.box is None else np.array(prompt.box),
        **options,
    )


def test_every_module_is_tested() -> None:
    """A module that is added to the registry joins these tests, with each way in which it is loaded."""
    tested = {(tiny.model, tiny.build is None) for tiny in FAMILIES.values()}
    modules = {BACKENDS[model].of_folder if in_folder else BACKENDS[model].of_file for model, in_folder in tested}
    known = {module for backend in BACKENDS.values() for module in (backend.of_file, backend.of_folder) if module}
    assert modules | {BACKENDS[BOX_MODEL].of_file} == known


def test_attributes(loaded: Loaded) -> None:
    predictor, path = loaded.predictor, loaded.path
    assert predictor.name == loaded.model
    assert isinstance(predictor.selects, bool) and isinstance(predictor.box_only, bool)
    assert predictor.images_per_batch == 1  # on the CPU
    if path is None:
        assert predictor.checkpoint is None
    elif path.is_file():
        assert predictor.checkpoint == hashlib.sha256(path.read_bytes()).hexdigest()
    elif loaded.model == "onnx":
        hashes = [hashlib.sha256((path / f"{name}.onnx").read_bytes()).hexdigest() for name in ("decoder", "encoder")]
        assert predictor.checkpoint == hashlib.sha256("".join(hashes).encode()).hexdigest()
    else:
        assert predictor.checkpoint == hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def test_without_an_image(loaded: Loaded) -> None:
    predictor = load_predictor(loaded.model, loaded.path, "cpu")
    with pytest.raises(RuntimeError, match="set_image"):
        predict(predictor, BOX)
    with pytest.raises(RuntimeError, match="set_image"):
        next(iter(predictor.predict_prompts([BOX])))
    if not predictor.box_only:
        with pytest.raises(RuntimeError, match="set_image"):
            predictor.mask_prompt(np.zeros((8, 8), np.float32))


@pytest.mark.parametrize("prompt", [BOX, POINT, POINTS, BOTH], ids=lambda prompt: prompt.object)
def test_predict(ready: StageOnePredictor, prompt: Prompt) -> None:
    image = draw_image(0)
    if not accepted(ready, [prompt]):
        with pytest.raises(PromptError, match="points without a box need SAM"):
            predict(ready, prompt)
        with pytest.raises(PromptError, match="points without a box need SAM"):
            next(ready.predict_prompts([prompt]))
        return
    masks, scores, logits = predict(ready, prompt)
    assert masks.dtype == bool and masks.shape[1:] == image.shape[:2]
    assert (len(masks) > 1) == ready.selects
    assert scores.dtype == np.float32 and scores.shape == masks.shape[:1]
    assert logits is None or (logits.dtype == np.float32 and logits.shape[0] == len(masks) and logits.ndim == 3)
    single, score, _ = predict(ready, prompt, multimask_output=False)
    assert single.shape == (1, *image.shape[:2]) and score.shape == (1,)


def test_mask_input(ready: StageOnePredictor) -> None:
    """Logits of an earlier call are accepted by models that return logits, and refused by others."""
    masks, _, logits = predict(ready, BOX)
    if logits is None:
        with pytest.raises(ValueError, match="mask_input"):
            predict(ready, BOX, mask_input=np.zeros((1, 256, 256), np.float32))
    else:
        again, _, _ = predict(ready, BOX, mask_input=logits[:1], multimask_output=False)
        assert again.shape == (1, *masks.shape[1:])


@pytest.mark.parametrize("size", [(120, 170), (170, 121), (60, 200)])
def test_mask_prompt(loaded: Loaded, size: tuple[int, int]) -> None:
    """A mask as a prompt lies where the model's own masks lie, whatever the shape of the image."""
    predictor = loaded.predictor
    if predictor.box_only:
        assert not predictor.uses_proposals
        return
    predictor.set_image(draw_image(0, size))
    mask = np.zeros(size, np.float32)
    mask[size[0] // 4 : -3, 20:70] = 1
    low = predictor.mask_prompt(mask)
    _, _, logits = predict(predictor, BOX)
    assert low.dtype == np.float32 and low.shape == (1, *logits.shape[1:])
    back = predictor._upsample(torch.from_numpy(low)[None], predictor._encoding)[0, 0].numpy() > 0
    assert (back & (mask > 0)).sum() / (back | (mask > 0)).sum() > 0.85  # a logit covers some pixels
    found, _, _ = predict(predictor, BOX, mask_input=low)
    assert found.shape[1:] == size
    assert predictor.uses_proposals == (predictor.name == "sam2" or getattr(predictor, "kind", "") == "SAM 2")
    with pytest.raises(ValueError, match="but its image is"):
        predictor.mask_prompt(mask[1:])
    with pytest.raises(ValueError, match=r"a float mask within 0\.\.1"):
        predictor.mask_prompt(mask * 255)


@pytest.mark.parametrize("select", ["score", "first"])
def test_predict_prompts_agrees_with_predict(ready: StageOnePredictor, select: str) -> None:
    image = draw_image(0)
    prompts = accepted(ready)
    results = list(ready.predict_prompts(prompts, select))
    assert len(results) == len(prompts) > 2
    found = []
    for prompt, (mask, score) in zip(prompts, results, strict=True):
        masks, scores, _ = predict(ready, prompt)
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


def test_no_prompts(ready: StageOnePredictor) -> None:
    assert list(ready.predict_prompts([])) == []


def test_masks_are_reproducible(predictor: StageOnePredictor) -> None:
    predictor.set_image(draw_image(0))
    prompts = accepted(predictor, [BOX, POINT])
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


def test_batches_of_images_agree_with_single_images(predictor: StageOnePredictor) -> None:
    images = [draw_image(0), draw_image(1, (100, 90))]
    box = Prompt("x", None, (10, 20, 80, 90))
    expected = []
    for image in images:
        predictor.set_image(image)
        expected += predictor.predict_prompts([box])
    encodings = predictor.encode(images)
    assert len(encodings) == 2
    ((mask, _),) = predictor.predict_prompts([box])
    np.testing.assert_array_equal(mask, expected[-1][0])  # the image that is set stays
    for index in (1, 0):
        predictor.set_encoding(encodings[index])
        ((mask, score),) = predictor.predict_prompts([box])
        reference, reference_score = expected[index]
        assert mask.shape == images[index].shape[:2] and (mask != reference).mean() < 1e-3
        assert score == pytest.approx(reference_score, abs=1e-4)


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
def test_faulty_points(ready: StageOnePredictor, points: list, labels: list | None, message: str) -> None:
    """Row 14: the same checks in the Python interface as in the command."""
    labels = None if labels is None else np.array(labels)
    for box in (None, np.array([10, 20, 80, 90])):
        with pytest.raises(PromptError, match=message):
            ready.predict(point_coords=np.array(points), point_labels=labels, box=box)


def test_a_lone_background_point(ready: StageOnePredictor) -> None:
    """Row 14: it selects nothing, so it needs a box beside it."""
    with pytest.raises(PromptError, match=r"only background points|need SAM"):
        ready.predict(point_coords=np.array([[5, 5]]), point_labels=np.array([0]))
