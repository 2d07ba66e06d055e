"""The starter weights: their storage, and what they do to coarse masks of scenes that they were not trained on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import IS_Net
from IS_Net.checkpoint import load_isnet
from IS_Net.images import read_image, read_mask
from IS_Net.metrics import boundary_iou, iou
from IS_Net.predictor import DISPredictor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

import hard_scenes

ROOT = Path(IS_Net.__file__).parents[1]
STARTER = ROOT / "saved_models" / "dis_sam_starter.safetensors"
REAL = ROOT.parent / "shared" / "real"


@pytest.fixture(scope="module")
def starter() -> DISPredictor:
    return DISPredictor.from_checkpoint(STARTER, "cpu", precision="full")


def test_storage():
    assert STARTER.stat().st_size <= 46_000_000
    with safe_open(STARTER, framework="pt") as file:
        kinds = {str(file.get_tensor(name).dtype) for name in file.keys() if name.endswith("conv_s1.weight")}  # noqa: SIM118 - not a dict
    assert kinds == {"torch.int8"}
    model, facts = load_isnet(STARTER)
    assert model.in_ch == facts["in_ch"] == 4 and facts["input_size"] == [1024, 1024]


def test_the_model_card_speaks_of_this_file():
    card = (STARTER.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert STARTER.name in card
    for word in ("License", "AGPL-3.0", "Apache-2.0", "MIT", "non-commercial", "Limits"):
        assert word in card
    assert not re.search(r"\b(FIGURES|LIMITS|RUN_\w+)\b", card)
    linked = re.findall(r"\]\(([^)]+)\)", card)
    assert linked and all((STARTER.parent / path).is_file() for path in linked)


def refined(predictor: DISPredictor, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.rint(predictor.predict(image, mask) * 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", hard_scenes.KINDS)
def test_hard_scenes_are_refined(starter: DISPredictor, name: str):
    """Scenes of another seed than those that the weights were chosen on; simulated masks and perfect ones."""
    gains, kept = [], []
    for kind in hard_scenes.KINDS[name][:3]:
        rng = np.random.default_rng(7)
        image, alphas = hard_scenes.make_scene(kind, rng, (480, 640))
        coarse = hard_scenes.sim(alphas[0], rng)
        gains.append(boundary_iou(refined(starter, image, coarse), alphas[0]) - boundary_iou(coarse, alphas[0]))
        perfect = np.where(alphas[0] > 128, np.uint8(255), np.uint8(0))
        kept.append(iou(refined(starter, image, perfect), alphas[0]))
    assert np.median(gains) > 0  # one of two alike books is confused with the other
    assert np.median(kept) > 0.9


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the photographs with ground truth are not beside the project")
@pytest.mark.parametrize("kind", ["sim", "grabcut"])
def test_real_photographs_are_refined(starter: DISPredictor, kind: str):
    before, after = [], []
    for path in sorted(REAL.glob("*/im/*"))[::7]:
        folder, name = path.parents[1], f"{path.stem}.png"
        gt, coarse = read_mask(folder / "gt" / name), read_mask(folder / kind / name)
        alpha = refined(starter, read_image(path), coarse)
        before.append((iou(coarse, gt), boundary_iou(coarse, gt)))
        after.append((iou(alpha, gt), boundary_iou(alpha, gt)))
    gains = np.subtract(after, before)
    assert gains[:, 0].min() > -0.005
    assert gains[:, 0].mean() > 0.05 and gains[:, 1].mean() > 0.13
