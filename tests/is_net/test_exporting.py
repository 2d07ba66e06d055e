"""Exports: what they compute is what DISPredictor computes, in every format; their metadata; files that are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from IS_Net.exporting import SUFFIXES
from IS_Net.exporting.formats import ExportError, files_of, open_export, write_export
from IS_Net.exporting.graph import ExportedNetwork, prepare_network
from IS_Net.exporting.parity import Difference, compare_alpha
from IS_Net.predictor import DISPredictor
from IS_Net.preprocess import fill_box
from IS_Net.runtime.torch_runtime import fold_batchnorm
from tests.thin_networks import Thin, lively

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (128, 160)
NETWORKS = {in_ch: lively(in_ch) for in_ch in (3, 4, 5)}
with torch.no_grad():  # an outlier, as the weights of a mask skip connection are, is stored separately with int8
    weight = NETWORKS[4].stage2.rebnconv1.conv_s1.weight
    weight[0, 0, 0, 0] = 10 * weight[0].abs().max()
METADATA = {"name": "dis-sam", "in_ch": "5", "license": 'mine, "as is" \N{COPYRIGHT SIGN}'}
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch", "coreml": "coremltools"}
STEP = 1.5 / 255
"""What one byte of the resized image that is rounded to the other side may change."""


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prompts(height: int, width: int) -> dict[str, tuple[np.ndarray | None, tuple[float, ...] | None]]:
    """Return prompts of all kinds."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 5 : height // 2, width // 4 : width - 7] = 255
    faint = mask // 3  # no pixel above the threshold: the mask has no bounds
    box = (width * 0.1, height * 0.25, width * 0.6 + 0.3, height * 0.9)
    return {
        "neither": (None, None),
        "box": (None, box),
        "mask": (mask, None),
        "both": (mask, box),
        "faint": (faint, None),
        "box beyond the image": (None, (-20.0, -1.0, width / 2, height + 50.0)),
        "row": (None, (3.0, height - 1.0, width - 3.0, height - 1.0)),
    }


def check(alpha, network: Thin, height: int, width: int, names: tuple[str, ...] = (), atol: float = STEP) -> None:
    """Compare a function of image, mask and box with DISPredictor, for all prompts or those of the names."""
    predictor, image = DISPredictor(network, "cpu", "full", SIZE), picture(height, width)
    for name, (mask, box) in prompts(height, width).items():
        if names and name not in names:
            continue
        expected = predictor.predict(image, mask, box, passes=1, detail="off")
        found = alpha(image, mask, box)
        assert found.dtype == np.float32 and found.shape == (height, width)
        assert np.ptp(expected) > 0.1, name
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=name)
        assert np.abs(found - expected).mean() < atol / 10, name


def eager(network: Thin, image_size: tuple[int, int] | None, storage: str = "float32"):
    module = ExportedNetwork(prepare_network(network, storage), SIZE, image_size)

    @torch.inference_mode()
    def alpha(image: np.ndarray, mask: np.ndarray | None, box: tuple[float, ...] | None) -> np.ndarray:
        mask = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
        box = torch.tensor([0.0] * 4 if box is None else box)
        return module(torch.from_numpy(image), torch.from_numpy(mask), box).numpy()

    return alpha


# --- the graph ---


@pytest.mark.parametrize("in_ch", [3, 4, 5])
@pytest.mark.parametrize("image_size", [(128, 160), (97, 211), (301, 131)])
def test_the_graph_computes_what_the_predictor_computes(in_ch: int, image_size: tuple[int, int]):
    check(eager(NETWORKS[in_ch], None), NETWORKS[in_ch], *image_size)
    exact = 1e-5 if image_size == SIZE else STEP  # without resizing, nothing is rounded
    check(eager(NETWORKS[in_ch], image_size), NETWORKS[in_ch], *image_size, atol=exact)


def test_a_second_run_with_the_result_as_mask_is_the_second_pass():
    predictor, alpha = DISPredictor(NETWORKS[5], "cpu", "full", SIZE), eager(NETWORKS[5], SIZE)
    image, box = picture(*SIZE), (20, 30, 90, 100)
    first = alpha(image, None, box)
    second = alpha(image, np.rint(255 * first).astype(np.uint8), box)
    np.testing.assert_allclose(second, predictor.predict(image, box=box, detail="off"), atol=STEP)


def test_the_box_channel_is_that_of_training():
    rng = np.random.default_rng(0)
    module = ExportedNetwork(NETWORKS[5], SIZE, None)
    for _ in range(200):
        height, width = rng.integers(1, 5000, 2)
        whole = rng.random() < 0.7
        (x0, x1), (y0, y1) = (np.sort(rng.uniform(0, side - 1, 2)) for side in (width, height))
        box = [float(round(value) if whole else value) for value in (x0, y0, x1, y1)]
        if box[0] == box[2] and box[1] == box[3]:
            continue  # a single point means that there is no box
        lines = torch.zeros(height), torch.zeros(width)
        given, has_box = torch.tensor([False]), torch.tensor([True])
        ends = torch.tensor(box).split(1)
        rows = module._fill_side(lines[0], given, has_box, (ends[1], ends[3]), int(height), SIZE[0])
        columns = module._fill_side(lines[1], given, has_box, (ends[0], ends[2]), int(width), SIZE[1])
        found = torch.minimum(rows[:, None], columns[None]).numpy()
        np.testing.assert_array_equal(found, fill_box(box, (height, width), SIZE)[0], err_msg=f"{box} {height} {width}")


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_weights_in_fewer_bits(storage: str):
    torch.manual_seed(0)
    network = Thin(4).eval()
    with torch.no_grad():
        network.stage2.rebnconv1.conv_s1.weight[0, 0, 0, 0] = 40  # an outlier, as a mask skip connection has them
        folded, stored = fold_batchnorm(network), prepare_network(network, storage)
        x = torch.rand(1, 4, 128, 128)
        expected, found = folded.predict_logits(x), stored.predict_logits(x)
    assert 0 < (found - expected).abs().max() < 0.05 * expected.std()
    assert stored.stage2.rebnconv1.conv_s1.values.element_size() == {"float16": 2, "int8": 1}[storage]
    assert network.stage2.rebnconv1.conv_s1.weight.dtype == torch.float32


# --- the formats ---

CASES = [
    ("onnx", 5, None, "float32"),
    ("onnx", 4, (211, 151), "int8"),
    ("openvino", 4, None, "float32"),
    ("openvino", 5, SIZE, "float16"),
    ("openvino", 4, (97, 211), "int8"),
    ("torchscript", 3, None, "float32"),
    ("torchscript", 5, (97, 211), "int8"),
]


@pytest.mark.parametrize(("kind", "in_ch", "image_size", "storage"), CASES)
def test_formats(kind: str, in_ch: int, image_size: tuple[int, int] | None, storage: str, tmp_path: Path):
    pytest.importorskip(PACKAGES[kind])
    path = tmp_path / f"thin{SUFFIXES[kind]}"
    write_export(NETWORKS[in_ch], path, kind, SIZE, image_size, storage, METADATA)
    assert sorted(tmp_path.iterdir()) == sorted(files_of(path))
    export = open_export(path)
    assert METADATA.items() <= export.metadata.items()
    atol = STEP if storage == "float32" else 4 * STEP
    for height, width in [image_size] if image_size else [(90, 333), SIZE]:
        check(export.alpha, NETWORKS[in_ch], height, width, ("neither", "box", "mask", "both"), atol)


def test_coreml_is_written_where_it_cannot_run(tmp_path: Path):
    pytest.importorskip("coremltools")
    path = tmp_path / "thin.mlpackage"
    write_export(NETWORKS[4], path, "coreml", SIZE, SIZE, "float32", METADATA)
    export = open_export(path)
    assert METADATA.items() <= export.metadata.items()
    if export.runs:
        check(export.alpha, NETWORKS[4], *SIZE)
    else:
        with pytest.raises(ExportError, match="runs on macOS only"):
            export.alpha(picture(*SIZE))


def test_what_coreml_does_not_have(tmp_path: Path):
    with pytest.raises(ExportError, match="no resizing to any size"):
        write_export(NETWORKS[4], tmp_path / "x.mlpackage", "coreml", SIZE, None, "float32", {})
    with pytest.raises(ExportError, match="use --half"):
        write_export(NETWORKS[4], tmp_path / "x.mlpackage", "coreml", SIZE, SIZE, "int8", {})


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torchscript"])
def test_files_that_are_no_exports(kind: str, tmp_path: Path):
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        pytest.skip(f"needs {PACKAGES[kind]}")
    path = tmp_path / f"x{SUFFIXES[kind]}"
    with pytest.raises(ExportError, match="does not exist"):
        open_export(path)
    path.write_bytes(b"not a network")
    with pytest.raises(ExportError, match=f"x{SUFFIXES[kind]}: "):
        open_export(path)
    with pytest.raises(ExportError, match="expected an export"):
        open_export(tmp_path / "x.bin")


# --- the difference ---


def test_known_differences():
    exact = np.zeros((10, 20), np.float32)
    exact[2:8, 5:15] = 1
    assert compare_alpha(exact, exact) == Difference(0, 0, 0, 1)
    found = exact.copy()
    found[0, 0] = 0.6
    difference = compare_alpha(exact, found)
    assert difference[:3] == pytest.approx((0.6 * 255, 0.6 * 255 / 200, 1 / 200))
    assert difference.boundary < 1 and not difference.passes() and difference.passes(0.01)
    found[0, 0] = np.nan
    assert compare_alpha(exact, found).largest == 255
    with pytest.raises(ValueError, match="found \\(20, 10\\)"):
        compare_alpha(exact, exact.T)
