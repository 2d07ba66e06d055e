"""SAM and GrabCut as predictors: against segment_anything's own, one by one against together, and on bad input."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from IS_Net.errors import CheckpointError, DeviceError
from sam import backends
from sam.backends import BatchedSamPredictor, GrabCutPredictor, SamModel, available_model, load_predictor
from sam.prompts import Prompt


def tiny_sam(side: int = 128, width: int = 32) -> Sam:
    """Build a real SAM of small dimensions, with random weights."""
    grid, channels = side // 16, 32
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            embed_dim=width,
            depth=2,
            num_heads=2,
            out_chans=channels,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(channels, (grid, grid), (side, side), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=channels,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=2, mlp_dim=64),
            iou_head_hidden_dim=32,
        ),
    )


def save_sam(path: Path, seed: int = 0, build: Callable[[], Sam] = tiny_sam) -> Path:
    torch.manual_seed(seed)
    torch.save(build().state_dict(), path)
    return path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Let a tiny SAM stand for vit_b, and two empty folders for those in which checkpoints are looked for."""
    found = tmp_path / "notebooks", tmp_path / "saved_models"
    for folder in found:
        folder.mkdir()
    monkeypatch.setattr(backends, "CHECKPOINT_FOLDERS", found)
    monkeypatch.setitem(backends.SAM_MODELS, "vit_b", SamModel("sam_vit_b_01ec64.pth", tiny_sam))
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


def own_predictor(sam: Sam, image: np.ndarray) -> SamPredictor:
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    return predictor


def one_by_one(predictor: SamPredictor, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Ask segment_anything's own predictor."""
    masks, scores, _ = predictor.predict(
        point_coords=None if prompt.points is None else np.array(prompt.points),
        point_labels=None if prompt.labels is None else np.array(prompt.labels),
        box=None if prompt.box is None else np.array(prompt.box),
        multimask_output=True,
    )
    return masks, scores


@pytest.mark.parametrize("select", ["score", "first"])
@pytest.mark.parametrize("at_once", [32, 2])
def test_prompts_together_are_as_segment_anything_one_by_one(
    sam: Sam, image: np.ndarray, select: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "PROMPTS_AT_ONCE", at_once)
    predictor = BatchedSamPredictor(sam, "vit_b")
    predictor.set_image(image)
    answers = list(predictor.predict_prompts(PROMPTS, select))
    assert len(answers) == len(PROMPTS)
    own = own_predictor(sam, image)
    choices = set()
    for prompt, (mask, score) in zip(PROMPTS, answers, strict=True):
        masks, scores = one_by_one(own, prompt)
        chosen = int(np.argmax(scores)) if select == "score" else 0
        choices.add(int(np.argmax(scores)))
        assert mask.dtype == bool and mask.shape == image.shape[:2]
        assert score == pytest.approx(scores[chosen], abs=1e-5)
        assert (mask != masks[chosen]).mean() < 1e-4  # a logit of 0 may round to either side
        assert 0.01 < mask.mean() < 0.99  # an empty or a full mask would compare well with anything like it
    assert choices != {0}  # else score and first would be the same thing


def test_predict_is_segment_anythings(sam: Sam, image: np.ndarray) -> None:
    predictor = BatchedSamPredictor(sam, "vit_b")
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(box=np.array(PROMPTS[0].box))
    expected_masks, expected_scores = one_by_one(own_predictor(sam, image), PROMPTS[0])
    np.testing.assert_array_equal(masks, expected_masks)
    np.testing.assert_array_equal(scores, expected_scores)
    again, _, _ = predictor.predict(box=np.array(PROMPTS[0].box), mask_input=logits[:1], multimask_output=False)
    assert again.shape == (1, *image.shape[:2])


def test_an_image_is_encoded_once(sam: Sam, image: np.ndarray) -> None:
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
    for predictor in (BatchedSamPredictor(sam, "vit_b"), GrabCutPredictor()):
        with pytest.raises(RuntimeError, match="call set_image first"):
            next(iter(predictor.predict_prompts(PROMPTS)))


def test_checkpoint_is_found_and_loaded(folders: tuple[Path, Path], image: np.ndarray) -> None:
    assert available_model() == "grabcut"
    path = save_sam(folders[1] / "sam_vit_b_01ec64.pth", seed=1)
    assert available_model() == "vit_b"
    predictor = load_predictor("vit_b", device="cpu")
    assert predictor.name == "vit_b"
    assert predictor.checkpoint == hashlib.sha256(path.read_bytes()).hexdigest()
    torch.manual_seed(1)
    expected = tiny_sam().eval()
    predictor.set_image(image)
    np.testing.assert_array_equal(
        predictor.predict(box=np.array(PROMPTS[0].box))[0], one_by_one(own_predictor(expected, image), PROMPTS[0])[0]
    )
    # the first folder comes first, and a path that is given comes before both
    first = save_sam(folders[0] / "sam_vit_b_01ec64.pth", seed=2)
    assert load_predictor("vit_b", device="cpu").checkpoint == hashlib.sha256(first.read_bytes()).hexdigest()
    assert load_predictor("vit_b", path, "cpu").checkpoint == predictor.checkpoint


def test_missing_checkpoint_says_where_to_find_it(folders: tuple[Path, Path]) -> None:
    with pytest.raises(FileNotFoundError) as error:
        load_predictor("vit_l")
    for part in ("sam_vit_l_0b3195.pth", *map(str, folders), "facebookresearch/segment-anything", "--model grabcut"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"mine.pth does not exist.*sam_vit_b_01ec64.pth"):
        load_predictor("vit_b", "mine.pth")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04rest"])
def test_damaged_checkpoint(folders: tuple[Path, Path], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sam.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"sam.pth: cannot be read .*{len(content)} bytes.*fetch it again"):
        load_predictor("vit_b", tmp_path / "sam.pth", "cpu")


def test_truncated_checkpoint(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = save_sam(tmp_path / "sam.pth")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_predictor("vit_b", path, "cpu")


def test_checkpoint_that_runs_code_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({"weights": Path("x")}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_predictor("vit_b", tmp_path / "sam.pth", "cpu")


def test_checkpoint_of_another_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = save_sam(tmp_path / "sam.pth", build=partial(tiny_sam, width=1024))
    with pytest.raises(
        CheckpointError, match=r"weights of SAM vit_b \(image_encoder.* is .*\); it looks like vit_l: ask for"
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


def test_unknown_model_device_and_needless_checkpoint(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'vit_x'; expected one of vit_l, vit_h, vit_b, grabcut"):
        load_predictor("vit_x")
    with pytest.raises(ValueError, match="has no weights"):
        load_predictor("grabcut", "sam.pth")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cuda"):
            load_predictor("vit_b", save_sam(tmp_path / "sam.pth"), "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(sam: Sam, image: np.ndarray) -> None:
    answers = []
    for device in ("cpu", "cuda"):
        predictor = BatchedSamPredictor(sam.to(device), "vit_b")
        predictor.set_image(image)
        assert predictor.features.dtype == torch.float32
        answers.append([mask for mask, _ in predictor.predict_prompts(PROMPTS, "first")])
    sam.cpu()
    for on_cpu, on_cuda in zip(*answers, strict=True):
        assert (on_cpu != on_cuda).mean() < 0.05


@pytest.fixture(scope="module")
def disc() -> tuple[np.ndarray, np.ndarray]:
    """A reddish disc on greenish ground, 700 x 500, and where it is."""
    rng = np.random.default_rng(0)
    truth = np.zeros((500, 700), np.uint8)
    cv2.circle(truth, (300, 250), 120, 1, cv2.FILLED)
    image = np.where(truth[..., None] == 1, np.array([190, 60, 50]), np.array([60, 140, 70]))
    return np.clip(image + rng.integers(-30, 30, image.shape), 0, 255).astype(np.uint8), truth == 1


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt("x", None, (180, 130, 420, 370)),
        Prompt("x", None, (150, 110, 470, 400), ((300, 250),), (1,)),
        Prompt("x", None, None, ((300, 250),), (1,)),
        Prompt("x", None, None, ((300, 250), (20, 20)), (1, 0)),
        Prompt("x", None, (0, 0, 699, 499)),
    ],
)
def test_grabcut_finds_the_disc(disc: tuple[np.ndarray, np.ndarray], prompt: Prompt) -> None:
    image, truth = disc
    predictor = GrabCutPredictor()
    predictor.set_image(image)
    ((mask, score),) = predictor.predict_prompts([prompt])
    assert score is None
    assert mask.dtype == bool and mask.shape == truth.shape
    assert iou(mask, truth) > 0.9


def test_grabcut_stays_inside_its_box_and_repeats_itself() -> None:
    # a photograph whose mask hangs on the random numbers that GrabCut's color models start from
    image = skimage.data.astronaut()
    results = []
    for seed in (1, 2, 3):
        cv2.setRNGSeed(seed)
        predictor = GrabCutPredictor()
        predictor.set_image(image)
        masks, scores, logits = predictor.predict(box=np.array([60, 60, 400, 350]))
        assert masks.shape == (1, 512, 512) and np.isnan(scores).all() and logits is None
        results.append(masks[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    outside = results[0].copy()
    outside[60:351, 60:401] = False
    assert not outside.any() and results[0].any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 400), (40, 60)])
@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 0, 1, 0), (0.4, 0.2, 0.6, 0.9), (-9, -9, 999, 999)])
def test_grabcut_falls_back_to_the_box(shape: tuple[int, int], box: tuple) -> None:
    predictor = GrabCutPredictor()
    predictor.set_image(np.full((*shape, 3), 128, np.uint8))  # one plain color: nothing to tell apart
    mask = predictor.predict(box=np.array(box))[0][0]
    height, width = shape
    x0, y0 = max(int(box[0]), 0), max(int(box[1]), 0)
    x1, y1 = min(int(np.ceil(box[2])), width - 1), min(int(np.ceil(box[3])), height - 1)
    inside = np.zeros(shape, bool)
    inside[y0 : y1 + 1, x0 : x1 + 1] = True
    assert not (mask & ~inside).any()
    assert mask.any()
    if inside.sum() == 1:
        np.testing.assert_array_equal(mask, inside)


@pytest.mark.parametrize("box", [(80, 80, 90, 90), (30, 30, 10, 10), (-20, -20, -5, -5), (np.nan, 1, np.inf, 5)])
def test_grabcut_does_not_fail_on_impossible_boxes(box: tuple) -> None:
    predictor = GrabCutPredictor()
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    assert predictor.predict(box=np.array(box))[0].shape == (1, 40, 60)


def test_grabcut_says_that_it_is_not_sam(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_predictor("grabcut")
    assert "not SAM" in caplog.text and len(caplog.records) == 1


def test_grabcut_bad_input() -> None:
    predictor = GrabCutPredictor()
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\) uint8, found \(4, 4\) float64"):
        predictor.set_image(np.zeros((4, 4)))
    predictor.set_image(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="takes no mask_input"):
        predictor.predict(box=np.array([0, 0, 3, 3]), mask_input=np.zeros((1, 256, 256)))
