"""One model object in several threads: each gets the result of its own picture, or an error that says why not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from dis_sam.pipeline import DISSAM
from IS_Net.models import ISNetDIS
from IS_Net.predictor import DISPredictor

PICTURES = [np.random.default_rng(seed).integers(0, 256, (48 + 4 * seed, 60, 3), dtype=np.uint8) for seed in range(6)]
BOX = (10, 8, 50, 40)


class Stateful:
    """Stage 1: its mask is where the encoded picture is bright, so that another picture's mask differs."""

    def __init__(self) -> None:
        self.image: np.ndarray | None = None
        self.busy = threading.Lock()

    def set_image(self, image: np.ndarray) -> None:
        assert self.busy.acquire(blocking=False), "two threads use stage 1 at the same time"
        self.image = image
        self.busy.release()

    def predict(self, **prompt: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.busy.acquire(blocking=False), "two threads use stage 1 at the same time"
        mask = self.image[..., 0] > 128
        self.busy.release()
        return mask[None], np.array([self.image.mean() / 255]), np.zeros((1, 256, 256), np.float32)


@pytest.fixture(scope="module")
def predictor() -> DISPredictor:
    torch.manual_seed(0)
    return DISPredictor(ISNetDIS(5), "cpu", "full", (64, 64))


@pytest.fixture
def both(predictor: DISPredictor) -> DISSAM:
    return DISSAM(lambda: Stateful(), predictor)


def test_cut_gives_each_thread_its_own_picture(both: DISSAM):
    expected = [both.cut(picture, box=BOX) for picture in PICTURES]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: both.cut(PICTURES[index % 6], box=BOX), range(12)))
    for index, result in enumerate(found):
        np.testing.assert_array_equal(result.coarse, PICTURES[index % 6][..., 0] > 128)
        np.testing.assert_allclose(result.alpha, expected[index % 6].alpha, atol=1e-5)


def test_the_second_stage_has_no_state(predictor: DISPredictor):
    masks = [picture[..., 1] > 100 for picture in PICTURES]
    expected = [predictor.predict(*pair) for pair in zip(PICTURES, masks, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(predictor.predict, PICTURES, masks), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_sessions_share_the_model_and_keep_their_own_pictures(both: DISSAM):
    barrier = threading.Barrier(3)

    def work(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        session = both.session()
        assert session.dis is both.dis and session.sam is both.sam
        session.set_image(picture)
        barrier.wait()  # all pictures are set before the first prompt
        return picture, session.predict(box=BOX)[1]

    with ThreadPoolExecutor(3) as pool:
        for picture, coarse in pool.map(work, PICTURES[:3]):
            np.testing.assert_array_equal(coarse, picture[..., 0] > 128)


def test_a_picture_of_another_thread_is_never_used(both: DISSAM):
    with ThreadPoolExecutor(1) as pool:
        both.set_image(PICTURES[0])
        assert both.segment(box=BOX).alpha.shape == PICTURES[0].shape[:2]
        pool.submit(both.set_image, PICTURES[1]).result()
        for prompt in (both.predict, both.segment):
            with pytest.raises(RuntimeError, match=r"another thread has set an image.*session\(\) for each thread"):
                prompt(box=BOX)
        assert pool.submit(both.segment, BOX).result().alpha.shape == PICTURES[1].shape[:2]
        both.set_image(PICTURES[2])
        assert both.segment(box=BOX).alpha.shape == PICTURES[2].shape[:2]


def test_a_picture_may_be_handed_to_another_thread(both: DISSAM):
    both.set_image(PICTURES[0])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(both.segment, BOX).result().alpha.shape == PICTURES[0].shape[:2]
