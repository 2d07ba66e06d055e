"""Windows along edges: where they lie, what the network gets, how they are blended, and what stays as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from IS_Net.models import ISNetDIS
from IS_Net.predictor import BAND, MAX_WINDOWS, OVERLAP, DISPredictor, choose_windows, edge_band, window_weight
from IS_Net.preprocess import Window, fill_box, make_window_planes, resize_uint8
from IS_Net.tensors import alpha_to_uint8

SIZE = (64, 96)
RNG = np.random.default_rng(0)
LARGE = (201, 450)


class Fake(ISNetDIS):
    """A network of a known function; it keeps its inputs. By default, the logits are the first channel times 40."""

    def __init__(self, in_ch: int = 5) -> None:
        nn.Module.__init__(self)
        self.conv_in = nn.Conv2d(in_ch, 1, 1)
        self.inputs: list[torch.Tensor] = []

    def __deepcopy__(self, memo: dict) -> Fake:
        return self  # the predictor's copy is this network, so that the tests see the inputs

    def predict_logits(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.clone())
        return self.function(x)

    def function(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * 40


class Constant(Fake):
    def function(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x[:, :1], 0.3)


class Brightness(Fake):
    """The same logit at every pixel of a window, which depends on the window."""

    def function(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].mean().expand_as(x[:, :1]) * 6


def make_predictor(model: Fake, **metadata: object) -> DISPredictor:
    return DISPredictor(model, "cpu", "full", SIZE, metadata)


def step_image(size: tuple[int, int] = LARGE, column: int = 233) -> np.ndarray:
    """Return an image that is black left of a column and white from there on."""
    image = np.zeros((*size, 3), np.uint8)
    image[:, column:] = 255
    return image


def alphas(model: Fake, image: np.ndarray, mask: np.ndarray | None = None, box: tuple | None = None) -> tuple:
    """Return the alpha mattes without and with windows."""
    predictor = make_predictor(model)
    return tuple(predictor.predict(image, mask, box, passes=1, detail=detail) for detail in ("off", "max"))


# --- what changes, and what does not ---


@pytest.mark.parametrize("size", [LARGE, (65, 97), (300, 50), (40, 700), (64, 1000), (67, 389)])
@pytest.mark.parametrize("in_ch", [3, 4, 5])
def test_where_windows_agree_with_the_whole_nothing_changes(size: tuple[int, int], in_ch: int):
    model = Constant(in_ch)
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    whole, detailed = alphas(model, image)
    np.testing.assert_array_equal(detailed, whole)
    assert detailed.shape == size and detailed.dtype == np.float32
    assert len(model.inputs) > 3  # gray everywhere, so that windows cover the whole image
    assert all(x.shape == (1, in_ch, *SIZE) for x in model.inputs)


def test_edges_get_native_detail_and_the_rest_is_unchanged():
    image = step_image()
    whole, detailed = alphas(Fake(), image)
    native = 1 / (1 + np.exp(-40 * (image[..., 0] / 255 - 0.5)))
    distance = np.abs(np.arange(LARGE[1]) - 232.5)
    pixel = LARGE[1] / SIZE[1]  # of the network's input, in pixels of the image
    near, far = distance < (BAND / 2 - 1) * pixel, distance > (1.5 * BAND + 2) * pixel
    np.testing.assert_allclose(detailed[:, near], native[:, near], atol=1e-5)
    np.testing.assert_array_equal(detailed[:, far], whole[:, far])
    assert np.abs(whole - native)[:, near].max() > 0.3  # the whole pass alone misses the edge
    assert far.sum() > 100


def test_without_edges_there_are_no_windows():
    model = Fake()
    whole, detailed = alphas(model, np.full((*LARGE, 3), 255, np.uint8))
    np.testing.assert_array_equal(detailed, whole)
    assert len(model.inputs) == 2  # one whole pass each


@pytest.mark.parametrize("size", [SIZE, (64, 95), (10, 20), (1, 1)])
def test_images_that_are_not_larger_than_the_input_have_no_windows(size: tuple[int, int]):
    model = Constant()
    whole, detailed = alphas(model, RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    np.testing.assert_array_equal(detailed, whole)
    assert len(model.inputs) == 2


@pytest.mark.parametrize("size", [(70, 97), (201, 77), (500, 320)])
def test_alpha_stays_in_range(size: tuple[int, int]):
    noise = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    _, detailed = alphas(Fake(), noise)
    assert 0 <= detailed.min() < 0.01 and 0.99 < detailed.max() <= 1


def test_no_seams():
    """Windows whose alpha mattes differ as a whole are blended without steps."""
    ramp = np.linspace(0, 255, LARGE[1]).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (*LARGE, 3)).copy()
    model = Brightness()
    whole, detailed = alphas(model, image)
    levels = [float(torch.sigmoid(x[0, 0].mean() * 6)) for x in model.inputs[2:]]
    assert np.ptp(levels) > 0.5 and np.ptp(detailed) > 0.4
    assert np.ptp(whole) < 1e-6
    between_neighbors = max(np.abs(np.diff(detailed, axis=axis)).max() for axis in (0, 1))
    # the blend goes from one window to the next over their overlap; a seam would be a step of up to the difference
    assert between_neighbors < 3 * np.ptp(levels) / (OVERLAP * SIZE[0])


def test_edges_far_from_the_box_are_unchanged():
    image = np.zeros((200, 600, 3), np.uint8)
    image[:, 101:150] = 255
    image[:, 501:550] = 255
    whole, detailed = alphas(Fake(), image, box=(90, 0, 160, 199))
    changed = np.flatnonzero((detailed != whole).any(axis=0))
    assert 80 < changed.min() < 101 and changed.max() < 350
    assert (detailed != whole)[:, 95:156].any()
    _, everywhere = alphas(Fake(), image)
    assert (everywhere != whole)[:, 495:556].any()


# --- what the network gets ---


def test_windows_get_crops_of_image_alpha_and_box():
    model, image, box = Fake(), step_image(), (150, 20, 300, 180)
    image[..., 1], image[..., 2] = np.arange(LARGE[1]) % 251, np.arange(LARGE[0])[:, None]  # the place of each pixel
    predictor = make_predictor(model)
    whole = predictor.predict(image, box=box, passes=1, detail="off")
    del model.inputs[:]
    predictor.predict(image, box=box, passes=1, detail="max")
    coarse = alpha_to_uint8(torch.from_numpy(whole)).numpy()
    offset = torch.tensor([127.5] * 3 + [0] * 2)[:, None, None]
    assert len(model.inputs) > 3
    for x in model.inputs[1:]:
        planes = (x[0] * 255 + offset).round().to(torch.uint8).numpy()
        top, left = int(planes[2, 0, 0]), int(planes[1, 0, 0])
        window = Window(top, left + 251 * (planes[0, 0, 0] == 255), *SIZE)
        np.testing.assert_array_equal(planes[:3], window.crop(image).transpose(2, 0, 1))
        np.testing.assert_array_equal(planes[3], window.crop(coarse))
        np.testing.assert_array_equal(planes[4], window.crop(fill_box(box, LARGE, LARGE)[0]))


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((10, 5, 200, 30), np.s_[0:11, 0:70]),  # the window begins at (30, 20)
        ((40, 30, 60, 40), np.s_[10:21, 10:31]),
        ((0, 0, 29, 300), np.s_[0:0, 0:0]),
        ((100, 20, 120, 80), np.s_[0:0, 0:0]),
        (None, np.s_[0:0, 0:0]),
    ],
)
def test_box_of_a_window(box: tuple | None, inside: tuple):
    window = Window(20, 30, 50, 70)
    image, mask = RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8), np.zeros((200, 300), np.uint8)
    mask[60:100, 80:90] = 200
    planes = make_window_planes(image, mask, box, window, 5, (50, 70))
    expected = np.zeros((50, 70), np.uint8)
    expected[inside] = 255
    np.testing.assert_array_equal(planes[:3], image[20:70, 30:100].transpose(2, 0, 1))
    np.testing.assert_array_equal(planes[3], mask[20:70, 30:100])
    np.testing.assert_array_equal(planes[4], expected)
    smaller = make_window_planes(image, mask, box, window, 4, (25, 30))
    np.testing.assert_array_equal(smaller[3:], resize_uint8(mask[20:70, 30:100], (25, 30)))


# --- when there are windows ---


@pytest.mark.parametrize(
    ("metadata", "detail", "windows"),
    [
        ({}, "auto", False),
        ({"windows": False}, "auto", False),
        ({"windows": True}, "auto", True),
        ({"windows": True}, "off", False),
        ({}, "max", True),
    ],
)
def test_auto_depends_on_the_weights(metadata: dict, detail: str, windows: bool):
    model = Fake()
    predictor = make_predictor(model, **metadata)
    predictor.predict(step_image(), passes=1, detail=detail)
    assert (len(model.inputs) > 1) == windows


def test_auto_is_the_default():
    model = Fake()
    make_predictor(model, windows=True).predict(step_image(), passes=1)
    assert len(model.inputs) > 1


def test_auto_limits_the_number_of_windows():
    image = np.zeros((500, 900, 3), np.uint8)
    image[::40] = 255
    counts = {}
    for detail in ("auto", "max"):
        model = Constant()
        make_predictor(model, windows=True).predict(image, passes=1, detail=detail)
        counts[detail] = len(model.inputs) - 1
    assert 1 < counts["auto"] <= MAX_WINDOWS < counts["max"]


def test_windows_follow_the_last_whole_pass():
    model = Fake()
    make_predictor(model).predict(step_image(), passes=3, detail="max")
    assert len(model.inputs) > 4
    for x in model.inputs[1:3]:  # whole passes: all of the image
        assert (x[0, 0, :, 0] == -0.5).all() and (x[0, 0, :, -1] == 0.5).all() and (x[0, 4] == 1).all()


def test_unknown_detail():
    with pytest.raises(ValueError, match="expected detail to be one of auto, off, max, found 'full'"):
        make_predictor(Constant()).predict(step_image(), detail="full")


# --- the band and the windows ---


def test_band_around_an_edge():
    alpha = np.zeros((50, 200), np.float32)
    alpha[:, 100:] = 1
    weight = edge_band(alpha, np.ones_like(alpha, dtype=bool))[25]
    distance = np.abs(np.arange(200) - 99.5) - 0.5  # from the nearest pixel of the edge, which is two pixels wide
    assert (weight[distance <= BAND / 2] == 1).all()
    assert (weight[distance > 1.5 * BAND] == 0).all()
    assert np.abs(np.diff(weight)).max() < 1.5 / BAND
    region = np.zeros_like(alpha, dtype=bool)
    region[:, :10] = True
    assert not edge_band(alpha, region).any()


def test_gray_counts_as_an_edge():
    alpha = np.full((60, 60), 0.5, np.float32)
    everywhere = np.ones_like(alpha, dtype=bool)
    assert (edge_band(alpha, everywhere) == 1).all()
    for level in (0.0, 0.05, 0.95, 1.0):
        assert not edge_band(np.full_like(alpha, level), everywhere).any()


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    max_windows=st.sampled_from([None, 1, 4]),
)
def test_windows_contain_the_band(
    data: st.DataObject, height: int, width: int, size: tuple[int, int], max_windows: int | None
):
    band = np.zeros((height, width), bool)
    for _ in range(data.draw(st.integers(0, 4))):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        band[top : top + rows, left : left + columns] = True
    windows = choose_windows(band, size, max_windows)
    total = np.zeros(band.shape)
    for window in windows:
        assert 0 <= window.top <= height - window.height and 0 <= window.left <= width - window.width
        assert window.height >= min(size[0], height) and window.width >= min(size[1], width)
        if max_windows is None:
            assert window.size == (min(size[0], height), min(size[1], width))
        assert window.crop(band).any()
        window.crop(total)[:] += window_weight(window.size)
    assert (total[band] > 0).all()
    assert max_windows is None or len(windows) <= max_windows
    assert bool(windows) == band.any()
    assert len({(window.top, window.left) for window in windows}) == len(windows)


def test_neighboring_windows_overlap():
    windows = choose_windows(np.ones((300, 500), bool), (100, 100))
    tops, lefts = (sorted({window[axis] for window in windows}) for axis in (0, 1))
    assert tops[0] == lefts[0] == 0 and tops[-1] == 200 and lefts[-1] == 400
    assert max(np.diff(tops)) <= 76 and max(np.diff(lefts)) <= 76
    assert len(windows) == len(tops) * len(lefts) == 4 * 7


def test_weight_of_a_window():
    weight = window_weight((40, 80))
    assert weight.dtype == np.float32 and weight.shape == (40, 80)
    assert 0 < weight.min() < 0.01 and (weight[10:-10, 20:-20] == 1).all()
    np.testing.assert_array_equal(weight, weight[::-1, ::-1])


# --- memory ---


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_of_24_megapixels(tmp_path: Path):
    """All that does not depend on the network takes less than 1.5 GB."""
    code = """
from pathlib import Path
import numpy as np
from test_detail import Fake
from IS_Net.predictor import DISPredictor

class Counting(Fake):
    def predict_logits(self, x):
        self.inputs.append(None)
        return self.function(x)

image = np.zeros((4000, 6000, 3), np.uint8)
for top in range(0, 4000, 400):
    image[top : top + 200] = 255
model = Counting()
alpha = DISPredictor(model, "cpu", "full").predict(image, detail="max", return_score=True)[0]
assert alpha.shape == (4000, 6000) and len(model.inputs) > 30
# not ru_maxrss, which starts at the size of the process that this one was forked from
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert int(run.stdout) < 1_500_000
