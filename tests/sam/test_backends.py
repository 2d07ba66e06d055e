"""The models of stage 1: the registry, SAM compared with segment_anything's own predictor, filled boxes, bad input."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from tiny_sam import reference_predictor, save_sam, tiny_sam

from IS_Net.errors import BoxError, CheckpointError, DeviceError, MissingExtraError, PromptError
from sam import backends
from sam.backends import (
    available_model,
    checkpoint_names,
    find_checkpoint,
    load_predictor,
    promptable,
    segment_anything,
)
from sam.backends.box import BoxPredictor
from sam.backends.segment_anything import BatchedSamPredictor
from sam.prompts import Prompt


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Replace vit_b by a tiny SAM, and the folders of checkpoints by two empty ones."""
    found = tmp_path / "notebooks", tmp_path / "saved_models"
    for folder in found:
        folder.mkdir()
    monkeypatch.setattr(backends, "sam_checkpoint_folders", lambda: list(found))
    monkeypatch.setitem(segment_anything.BUILDERS, "vit_b", tiny_sam)
    return found


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(3)
    return tiny_sam()


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (12, 17, 3), dtype=np.uint8)
    return cv2.resize(noise, (170, 120), interpolation=cv2.INTER_CUBIC)


PROMPTS = [
    Prompt("x", "a", (10, 20, 80, 90)),
    Prompt("x", "b", (0, 0, 169, 119)),
    Prompt("x", "c", None, ((30.5, 40.0),), (1,)),
    Prompt("x", "d", None, ((30, 40), (100, 60), (5, 5)), (1, 1, 0)),
    Prompt("x", "e", (50, 10.5, 120, 60), ((60, 30),), (1,)),
    Prompt("x", "f", None, ((120, 100),), (1,)),
    Prompt("x", "g", (100, 30, 140, 110)),
]


def predict_one(predictor: SamPredictor, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Return all masks and scores of segment_anything's own predictor for one prompt."""
    masks, scores, _ = predictor.predict(
        point_coords=None if prompt.points is None else np.array(prompt.points),
        point_labels=None if prompt.labels is None else np.array(prompt.labels),
        box=None if prompt.box is None else np.array(prompt.box),
        multimask_output=True,
    )
    return masks, scores


@pytest.mark.parametrize("select", ["score", "first"])
@pytest.mark.parametrize("batch", [32, 2])
def test_batched_prompts_agree_with_single_prompts(
    sam: Sam, image: np.ndarray, select: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promptable, "PROMPTS_PER_BATCH", batch)
    predictor = BatchedSamPredictor(sam, "vit_b")
    predictor.set_image(image)
    results = list(predictor.predict_prompts(PROMPTS, select))
    assert len(results) == len(PROMPTS)
    reference = reference_predictor(sam, image)
    choices = set()
    for prompt, (mask, score) in zip(PROMPTS, results, strict=True):
        masks, scores = predict_one(reference, prompt)
        chosen = int(np.argmax(scores)) if select == "score" else 0
        choices.add(int(np.argmax(scores)))
        assert mask.dtype == bool and mask.shape == image.shape[:2]
        assert score == pytest.approx(scores[chosen], abs=1e-5)
        assert (mask != masks[chosen]).mean() < 1e-4  # logits near 0 may round to either side
        assert 0.01 < mask.mean() < 0.99  # empty or full masks would agree trivially
    assert choices != {0}  # otherwise score and first would select the same masks


def test_predict_agrees_with_segment_anything(sam: Sam, image: np.ndarray) -> None:
    predictor = BatchedSamPredictor(sam, "vit_b")
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(box=np.array(PROMPTS[0].box))
    expected_masks, expected_scores = predict_one(reference_predictor(sam, image), PROMPTS[0])
    np.testing.assert_array_equal(masks, expected_masks)
    np.testing.assert_array_equal(scores, expected_scores)
    again, _, _ = predictor.predict(box=np.array(PROMPTS[0].box), mask_input=logits[:1], multimask_output=False)
    assert again.shape == (1, *image.shape[:2])


def test_encoder_in_16_bits_agrees_with_float32(sam: Sam, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("IS_Net.device.has_amx", lambda: True)
    predictor = BatchedSamPredictor(sam, "vit_b")
    types = []
    hook = sam.image_encoder.blocks[0].mlp.lin1.register_forward_hook(lambda *found: types.append(found[-1].dtype))
    predictor.set_image(image)
    hook.remove()
    features = predictor.encode([image])[0].features["image_embeddings"]
    assert types == [torch.bfloat16] and features.dtype == torch.float32
    reference = reference_predictor(sam, image)
    assert 0 < (features - reference.features).abs().max() < 0.1 * reference.features.abs().max()
    for prompt, (mask, _) in zip(PROMPTS, predictor.predict_prompts(PROMPTS, "first"), strict=True):
        assert (mask != predict_one(reference, prompt)[0][0]).mean() < 0.02


def test_image_is_encoded_once(sam: Sam, image: np.ndarray) -> None:
    calls = []
    hook = sam.image_encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    other = sam.mask_decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    predictor = BatchedSamPredictor(sam, "vit_b")
    predictor.set_image(image)
    boxes = [Prompt("x", str(n), (n, n, 60 + n, 70 + n)) for n in range(30)]
    assert len(list(predictor.predict_prompts(boxes))) == 30
    hook.remove()
    other.remove()
    assert calls == ["encoder", "decoder"]


def test_no_image_set(sam: Sam) -> None:
    for predictor in (BatchedSamPredictor(sam, "vit_b"), BoxPredictor()):
        with pytest.raises(RuntimeError, match="call set_image first"):
            next(iter(predictor.predict_prompts(PROMPTS)))


def test_checkpoint_is_found_and_loaded(folders: tuple[Path, Path], image: np.ndarray) -> None:
    assert available_model() == "box"
    path = save_sam(folders[1] / "sam_vit_b_01ec64.pth", seed=1)
    assert available_model() == "vit_b"
    predictor = load_predictor("vit_b", device="cpu")
    assert predictor.name == "vit_b"
    assert predictor.checkpoint == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.manual_seed(1)
    expected = tiny_sam().eval()
    predictor.set_image(image)
    masks = predictor.predict(box=np.array(PROMPTS[0].box))[0]
    assert (masks != predict_one(reference_predictor(expected, image), PROMPTS[0])[0]).mean() < 1e-4
    # the first folder takes precedence over the second, and an explicit path over both
    first = save_sam(folders[0] / "sam_vit_b_01ec64.pth", seed=2)
    assert load_predictor("vit_b", device="cpu").checkpoint == hashlib.sha256(first.read_bytes()).hexdigest()
    assert load_predictor("vit_b", path, "cpu").checkpoint == predictor.checkpoint


def test_missing_checkpoint_error_names_where_to_find_it(folders: tuple[Path, Path]) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_predictor("vit_l")
    for part in (
        "sam_vit_l_0b3195.pth",
        *map(str, folders),
        "dis-sam fetch vit_l",
        "vit_l=PATH",
        "The model box needs no weights",
    ):
        assert part in str(error.value)
    assert "facebookresearch/segment-anything" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"mine.pth does not exist; download it with `dis-sam fetch vit_b`"):
        load_predictor("vit_b", "mine.pth")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04rest"])
def test_damaged_checkpoint(folders: tuple[Path, Path], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sam.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"(?s)sam\.pth: .*damaged.*{len(content)} bytes: .*dis-sam fetch vit_b"):
        load_predictor("vit_b", tmp_path / "sam.pth", "cpu")


def test_truncated_checkpoint(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = save_sam(tmp_path / "sam.pth")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"(?s)sam\.pth: .*damaged.*download it with `dis-sam fetch vit_b`"):
        load_predictor("vit_b", path, "cpu")


def test_checkpoint_that_could_run_code_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({"weights": Path("x")}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        load_predictor("vit_b", tmp_path / "sam.pth", "cpu")


def test_checkpoint_of_another_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = save_sam(tmp_path / "sam.pth", build=partial(tiny_sam, width=1024))
    with pytest.raises(
        CheckpointError, match=r"weights of SAM vit_b \(image_encoder.* is .*\); it looks like vit_l: choose that model"
    ):
        load_predictor("vit_b", path, "cpu")
    state = torch.load(save_sam(path))
    del state["mask_decoder.iou_token.weight"]
    torch.save({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, 1 are unknown, such as mask_decoder.iou_token"):
        load_predictor("vit_b", path, "cpu")
    torch.save(torch.zeros(3), path)
    with pytest.raises(CheckpointError, match="does not hold the weights of SAM vit_b"):
        load_predictor("vit_b", path, "cpu")


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_checkpoints_under_wrappers_and_prefixes(
    folders: tuple[Path, Path], tmp_path: Path, wrapper: str, prefix: str
) -> None:
    """Row 21 of the faults seen: SAM under "model", or with the prefix of DataParallel."""
    path = save_sam(tmp_path / "sam.pth")
    state = torch.load(path)
    torch.save({wrapper: {prefix + name: tensor for name, tensor in state.items()}}, path)
    found = load_predictor("vit_b", path, "cpu").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_weights_that_are_not_finite(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = save_sam(tmp_path / "sam.pth")
    state = torch.load(path)
    state["mask_decoder.iou_token.weight"][0, 0] = torch.nan
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"mask_decoder\.iou_token\.weight holds values that are not finite"):
        load_predictor("vit_b", path, "cpu")


def test_unknown_model_or_device_and_unneeded_checkpoint(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'vitl'; did you mean 'vit_l'\?"):
        load_predictor("vitl")
    with pytest.raises(ValueError, match=r"unknown model '\?\?'; known names: box, hq_light, .*, vit_b, vit_h, vit_l"):
        load_predictor("??")
    with pytest.raises(CheckpointError, match=r"sam\.pth: box has no weights; omit the checkpoint"):
        load_predictor("box", "sam.pth")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cuda"):
            load_predictor("vit_b", save_sam(tmp_path / "sam.pth"), "cuda")


def test_find_checkpoint(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert checkpoint_names()["vit_l"] == "sam_vit_l_0b3195.pth" and "box" not in checkpoint_names()
    assert find_checkpoint("box") is None
    published, given = folders[1] / "sam_vit_h_4b8939.pth", tmp_path / "mine.pth"
    for path in (published, given):
        path.touch()
    assert find_checkpoint("vit_h") == published and find_checkpoint("vit_h", given) == given
    assert available_model() == "vit_h"


def test_checkpoints_are_looked_for_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path))
    for place in ("saved_models", "sam/notebooks"):  # the second takes precedence
        path = tmp_path / place / "sam_vit_b_01ec64.pth"
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_checkpoint("vit_b") == path


def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sam.pth").touch()
    monkeypatch.delitem(sys.modules, "sam.backends.segment_anything")
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(MissingExtraError, match=r"'segment_anything' is not installed.*pip install 'dis-sam\[sam\]'"):
        load_predictor("vit_b", tmp_path / "sam.pth", "cpu")


def test_registry_imports_nothing_heavy_and_boxes_need_no_segment_anything() -> None:
    code = """
import sys
import sam.backends
assert not {"torch", "numpy", "cv2", "segment_anything"} & sys.modules.keys()
sam.backends.load_predictor("box")
assert "segment_anything" not in sys.modules and "sam.backends.segment_anything" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(sam: Sam, image: np.ndarray) -> None:
    results = []
    for device in ("cpu", "cuda"):
        predictor = BatchedSamPredictor(sam.to(device), "vit_b")
        predictor.set_image(image)
        results.append([mask for mask, _ in predictor.predict_prompts(PROMPTS, "first")])
    sam.cpu()
    for on_cpu, on_cuda in zip(*results, strict=True):
        assert (on_cpu != on_cuda).mean() < 0.05


# --- filled boxes ---


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((10, 20, 30, 25), slice(20, 26), slice(10, 31)),
        ((10.5, 20, 30.5, 25), slice(20, 26), slice(10, 32)),
        ((-5, -5, 999, 3), slice(0, 4), slice(0, 60)),
        ((7, 8, 7, 8), slice(8, 9), slice(7, 8)),
        ((0, 0, 59, 39), slice(0, 40), slice(0, 60)),
    ],
)
def test_box_is_filled_including_both_ends(box: tuple, rows: slice, columns: slice) -> None:
    predictor = load_predictor("box")
    predictor.set_image(np.zeros((40, 60, 3), np.uint8))
    expected = np.zeros((40, 60), bool)
    expected[rows, columns] = True
    masks, scores, logits = predictor.predict(box=np.array(box))
    np.testing.assert_array_equal(masks, expected[None])
    assert np.isnan(scores).all() and scores.shape == (1,) and logits is None
    ((mask, score),) = predictor.predict_prompts([Prompt("x", None, box)])
    np.testing.assert_array_equal(mask, expected)
    assert score is None


def test_points_in_a_box_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    predictor = load_predictor("box")
    predictor.set_image(np.zeros((40, 60, 3), np.uint8))
    prompts = [Prompt("x", None, (3, 4, 20, 30), ((9, 9),), (0,)), Prompt("x", None, (3, 4, 20, 30))]
    with caplog.at_level(logging.WARNING):
        masks = [mask for mask, _ in predictor.predict_prompts([prompts[1]])]
        assert not caplog.records
        masks += [mask for mask, _ in predictor.predict_prompts(prompts)]
        masks += [predictor.predict(np.array([[9, 9]]), np.array([0]), np.array((3, 4, 20, 30)))[0][0]]
    assert len({mask.tobytes() for mask in masks}) == 1
    assert [record.message for record in caplog.records] == [
        "points are ignored, because only SAM takes points; the box alone is used"
    ]


def test_what_filled_boxes_do_not_accept() -> None:
    predictor = load_predictor("box")
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\) uint8, found \(4, 4\) float64"):
        predictor.set_image(np.zeros((4, 4)))
    predictor.set_image(np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(PromptError, match=r"points without a box need SAM: .*dis-sam fetch vit_l.* or provide a box"):
        predictor.predict(np.array([[9, 9]]), np.array([1]))
    with pytest.raises(ValueError, match="takes no mask_input"):
        predictor.predict(box=np.array([0, 0, 3, 3]), mask_input=np.zeros((1, 256, 256)))
    with pytest.raises(BoxError, match="outside its image of 60 x 40"):
        predictor.predict(box=np.array([80, 80, 90, 90]))
