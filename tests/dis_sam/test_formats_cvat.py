"""The functions for CVAT, as cvat-sdk calls them and checks what they return."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dis_sam.formats import cvat
from IS_Net.errors import DatasetError

sdk = pytest.importorskip("cvat_sdk.auto_annotation")
driver = pytest.importorskip("cvat_sdk.auto_annotation.driver")
masks = pytest.importorskip("cvat_sdk.masks")
models = pytest.importorskip("cvat_sdk.models")

SIZE = (40, 50)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8))


def ring(radius: int = 12) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    cv2.circle(mask, (20, 18), radius, 1, 4)
    return mask > 0


class Model:
    """Stands in for DISSAM: records the prompts and returns a given mask."""

    def __init__(self, mask: np.ndarray | None = None, score: float = math.nan) -> None:
        self.mask, self.score = ring() if mask is None else mask, score
        self.images: list[np.ndarray] = []
        self.prompts: list[dict[str, Any]] = []

    def set_image(self, image: np.ndarray) -> None:
        self.images.append(image)

    def segment(self, **prompt: Any) -> SimpleNamespace:
        self.prompts.append(prompt)
        return SimpleNamespace(mask=self.mask, score=self.score)


def context(name: str = "a.png", threshold: float | None = None, polygons: bool = False) -> Any:
    return driver._DetectionFunctionContextImpl(frame_name=name, conf_threshold=threshold, conv_mask_to_poly=polygons)


def accept(function: Any, shapes: list, polygons: bool = False) -> list:
    """Return the shapes as cvat-sdk sends them to a task whose labels are those of the function."""
    labels = [
        SimpleNamespace(id=label.id + 100, name=label.name, type="any", attributes=[], sublabels=[])
        for label in function.spec.labels
    ]
    mapper = driver._AnnotationMapper(
        logging.getLogger(__name__),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        conv_mask_to_poly=polygons,
    )
    tags, accepted = mapper.validate_and_remap(shapes, 3)
    assert tags == []
    return accepted


def write_coco(folder: Path, annotations: list[dict], categories: list[dict] | None = None) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "sub/a.png", "height": 40, "width": 50}],
        "annotations": [{"image_id": 1, "category_id": 7, **annotation} for annotation in annotations],
        "categories": [{"id": 7, "name": "猫"}, {"id": 9, "name": "dog"}] if categories is None else categories,
    }
    path = folder / "export.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_most_salient_object_of_a_frame():
    model = Model()
    function = cvat.Detection(model, "cup")
    (found,) = accept(function, function.detect(context(), IMAGE))
    assert (found.label_id, found.frame, found.type.value) == (101, 3, "mask")
    np.testing.assert_array_equal(masks.decode_mask(found.points, image_width=50, image_height=40), ring())
    assert model.prompts == [{"need_score": False}]
    np.testing.assert_array_equal(model.images[0], np.asarray(IMAGE))


def test_objects_of_a_coco_file(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    triangle = [10, 10, 30, 10, 10, 30]
    path = write_coco(
        tmp_path,
        [
            {"id": 1, "bbox": [2, 3, 10, 20]},
            {"id": 2, "segmentation": [triangle], "category_id": 9},
            {"id": 3, "segmentation": [[1, 2, 3, 4]]},
        ],
    )
    model = Model()
    function = cvat.Detection(model, annotations=path)
    assert [(label.name, label.id) for label in function.spec.labels] == [("猫", 7), ("dog", 9)]
    found = accept(function, function.detect(context("sub/a.png"), IMAGE))
    assert [shape.label_id for shape in found] == [107, 109]
    assert model.prompts[0] == {"box": (2, 3, 11, 22), "need_score": False}
    assert model.prompts[1]["mask"][12, 12] and not model.prompts[1]["mask"][25, 25]
    assert len(model.images) == 1
    assert "annotation 3 of sub/a.png: polygon 0: found 2 points" in caplog.text
    assert function.detect(context("b.png"), IMAGE) == []
    assert len(model.images) == 1


def test_a_coco_file_without_categories_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"export\.json: expected categories"):
        cvat.Detection(Model(), annotations=write_coco(tmp_path, [], []))


def test_polygons_where_cvat_asks_for_them():
    mask = ring()
    mask[30:38, 40:48] = True
    mask[0, 0] = True  # a single pixel is no polygon
    function = cvat.Detection(Model(mask))
    found = accept(function, function.detect(context(polygons=True), IMAGE), polygons=True)
    assert {shape.type.value for shape in found} == {"polygon"}
    filled = np.zeros(SIZE, np.uint8)
    for shape in found:
        cv2.fillPoly(filled, [np.reshape(shape.points, (-1, 2)).astype(np.int32)], 1)
    expected = mask.copy()
    expected[0, 0] = False
    expected[8:28, 10:30] |= filled[8:28, 10:30] > 0  # without the hole
    np.testing.assert_array_equal(filled > 0, expected)
    assert filled[18, 20] and not mask[18, 20]


@pytest.mark.parametrize(
    ("score", "threshold", "count"), [(0.5, 0.6, 0), (0.6, 0.6, 1), (0.1, None, 1), (math.nan, 0.9, 1)]
)
def test_the_confidence_threshold(score: float, threshold: float | None, count: int):
    model = Model(score=score)
    found = cvat.Detection(model).detect(context(threshold=threshold), IMAGE)
    assert len(found) == count
    assert model.prompts == [{"need_score": threshold is not None}]


def test_nothing_found_gives_no_shape():
    empty = np.zeros(SIZE, bool)
    assert cvat.Detection(Model(empty)).detect(context(), IMAGE) == []
    assert cvat.Detection(Model(empty)).detect(context(polygons=True), IMAGE) == []


def prompts(pos: tuple = (), neg: tuple = ()) -> SimpleNamespace:
    return SimpleNamespace(pos_points=pos, neg_points=neg, bounding_box=((5.0, 6.0), (30.0, 31.5)))


@pytest.mark.skipif(not hasattr(sdk, "InteractionFunctionSpec"), reason="cvat-sdk has no interaction functions")
def test_a_box_that_an_annotator_draws():
    model = Model()
    function = cvat.Interaction(model)
    assert function.spec.min_bounding_boxes == 1
    image = function.preprocess_image(None, IMAGE)
    (found,) = function.detect(None, image, prompts())
    np.testing.assert_array_equal(masks.decode_mask(found.points, image_width=50, image_height=40), ring())
    function.detect(None, image, prompts(pos=((7.0, 8.0),), neg=((9.0, 9.0),)))
    assert model.prompts == [
        {"box": (5, 6, 29, 30.5), "points": None, "labels": None},
        {"box": (5, 6, 29, 30.5), "points": [(7, 8), (9, 9)], "labels": [1, 0]},
    ]
    assert len(model.images) == 1  # encoded once
    function.detect(None, function.preprocess_image(None, IMAGE), prompts())
    assert len(model.images) == 2
    model.mask = np.zeros(SIZE, bool)
    assert function.detect(None, image, prompts()) == []


def test_create_returns_what_cvat_cli_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    loaded = []
    monkeypatch.setattr("dis_sam.pipeline.load", lambda *arguments: loaded.append(arguments) or Model())
    assert [label.name for label in cvat.create(label="cup").spec.labels] == ["cup"]
    path = write_coco(tmp_path, [])
    assert len(cvat.create(annotations=str(path), weights="mine", sam="box", device="cpu").spec.labels) == 2
    assert loaded == [(None, "auto", "auto"), ("mine", "box", "cpu")]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(ImportError, match=r"dis-sam\[cvat\]"):
        cvat.Detection(Model())
