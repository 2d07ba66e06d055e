"""The starter weights: their storage, their model card, and how they refine masks of unseen scenes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors import safe_open

from IS_Net.images import read_image, read_mask
from IS_Net.metrics import boundary_iou, iou
from IS_Net.paths import checkout, starter_weights
from IS_Net.predictor import DISPredictor
from IS_Net.runtime.base import is_installed, preferred
from recipes.starter import hard_scenes

STARTER = starter_weights()
REAL = checkout().parent / "shared" / "real"


@pytest.fixture(scope="session")
def starter() -> DISPredictor:
    """Return the predictor, loaded once, in the fastest runtime here; all of them compute the same."""
    fastest = next(filter(is_installed, preferred()), "torch")
    return DISPredictor.from_checkpoint(STARTER, "cpu", precision="full", runtime=fastest)


def test_storage(starter: DISPredictor):
    assert STARTER.stat().st_size <= 46_000_000
    with safe_open(STARTER, framework="pt") as file:
        dtypes = {str(file.get_tensor(name).dtype) for name in file.keys() if name.endswith("conv_s1.weight")}  # noqa: SIM118 - not a dict
        metadata = json.loads(file.metadata()["dis-sam"])
    assert dtypes == {"torch.int8"}
    assert metadata["in_ch"] == 4 and metadata["input_size"] == [1024, 1024]
    assert starter.in_ch == 4 and starter.input_size == (1024, 1024)


def test_the_model_card_describes_this_file():
    folder = checkout() / "saved_models"
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert STARTER.name in card
    assert len(card.splitlines()) <= 70
    for word in ("License", "AGPL-3.0", "Apache-2.0", "MIT", "non-commercial", "Limits"):
        assert word in card
    assert not re.search(r"\b(FIGURES|LIMITS|RUN_\w+)\b", card)


@pytest.mark.parametrize(
    "page",
    ["saved_models/MODEL_CARD.md", "saved_models/README.md", "recipes/starter/README.md", "recipes/starter/LOG.md"],
)
def test_links_lead_to_files(page: str):
    path = checkout() / page
    linked = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    assert linked and all((path.parent / link).is_file() for link in linked)


def refined(predictor: DISPredictor, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.rint(predictor.predict(image, mask) * 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", hard_scenes.KINDS)
def test_hard_scenes_are_refined(starter: DISPredictor, name: str):
    """Simulated and perfect masks of scenes with another seed than those that the weights were chosen on."""
    gains, preserved = [], []
    for kind in hard_scenes.KINDS[name][:2]:
        rng = np.random.default_rng(7)
        image, alphas = hard_scenes.make_scene(kind, rng, (360, 480))
        coarse = hard_scenes.coarse_mask(image, alphas[0], rng)
        gains.append(boundary_iou(refined(starter, image, coarse), alphas[0]) - boundary_iou(coarse, alphas[0]))
        perfect = np.where(alphas[0] > 128, np.uint8(255), np.uint8(0))
        preserved.append(iou(refined(starter, image, perfect), alphas[0]))
    assert np.median(gains) > 0  # of two similar books, one may be confused with the other
    assert np.median(preserved) > 0.9


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
