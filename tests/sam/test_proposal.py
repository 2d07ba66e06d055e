"""best_mask: when SAM is prompted with a proposal, and what becomes of its own mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sam.proposal import best_mask


def rectangle(left: int, right: int) -> np.ndarray:
    mask = np.zeros((20, 100), bool)
    mask[:, left:right] = True
    return mask


OWN, PROMPTED = rectangle(0, 50), rectangle(20, 70)
BOX = np.array([0, 0, 70, 20])


class Fake:
    """Returns a small mask and ``OWN``, with a predicted IoU of ``score``; ``PROMPTED`` if it is given a mask."""

    def __init__(self, score: float) -> None:
        self.score = score
        self.prompts: list[dict[str, Any]] = []

    def mask_prompt(self, alpha: np.ndarray) -> tuple[str, float]:
        return "prompt", float(alpha.sum())

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, None]:
        self.prompts.append(prompt)
        found, score = (OWN, self.score) if prompt.get("mask_input") is None else (PROMPTED, 0.5)
        return np.stack([rectangle(0, 1), found]), np.array([0.1, score], np.float32), None


def test_without_a_proposal():
    fake = Fake(0.2)
    mask, score = best_mask(fake, box=BOX)
    np.testing.assert_array_equal(mask, OWN)
    assert score == pytest.approx(0.2)
    assert fake.prompts == [{"box": BOX, "multimask_output": True}]


@pytest.mark.parametrize(
    ("score", "proposal", "stays"),
    [
        (0.95, rectangle(0, 50), True),
        (0.95, rectangle(0, 16), True),  # IoU .32
        (0.95, rectangle(0, 14), False),  # .28
        (0.95, rectangle(50, 100), False),  # another object
        (0.85, rectangle(0, 50), False),  # not sure
        (0.2, rectangle(0, 0), True),  # nothing is proposed
    ],
)
def test_its_own_mask_stays_if_it_is_sure_and_the_proposal_is_the_same_object(
    score: float, proposal: np.ndarray, stays: bool
):
    fake, alpha = Fake(score), proposal * np.float32(0.8) + np.float32(0.1)
    mask, found = best_mask(fake, alpha, box=BOX)
    np.testing.assert_array_equal(mask, OWN if stays else PROMPTED)
    assert found == pytest.approx(score if stays else 0.5)
    if stays:
        assert len(fake.prompts) == 1
    else:
        _, prompt = fake.prompts
        assert prompt == {"box": BOX, "mask_input": ("prompt", float(alpha.sum())), "multimask_output": True}
