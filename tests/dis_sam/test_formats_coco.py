"""COCO files: what is read, what pycocotools reads of what is written, and what is named when it is wrong."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dis_sam.formats import coco
from dis_sam.formats.annotation import Annotation, refine_with, to_json
from dis_sam.pipeline import load
from IS_Net.errors import DatasetError, FolderInUseError, ImageError
from IS_Net.images import write_image
from IS_Net.lock import lock_folder
from IS_Net.preprocess import box_from_mask

mask_tools = pytest.importorskip("pycocotools.mask")
COCO = pytest.importorskip("pycocotools.coco").COCO


def rle_of(mask: np.ndarray) -> dict:
    rle = mask_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def runs_of(mask: np.ndarray) -> list[int]:
    """Return a mask as uncompressed RLE, computed without pycocotools."""
    flat = mask.flatten(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def ring(size: tuple[int, int] = (40, 50), center: tuple[int, int] = (20, 18), radius: int = 12) -> np.ndarray:
    """Return a ring; its hole is what polygons cannot say."""
    mask = np.zeros(size, np.uint8)
    cv2.circle(mask, center, radius, 1, 4)
    return mask > 0


class Recorder:
    """A refiner that returns given masks and records what it was asked."""

    def __init__(self, masks: dict) -> None:
        self.masks, self.calls = masks, []

    def __call__(self, image: np.ndarray, annotations: Sequence[Annotation]) -> Iterator[np.ndarray]:
        self.calls.append([annotation.id for annotation in annotations])
        for annotation in annotations:
            mask = self.masks[annotation.id]
            if isinstance(mask, BaseException):
                raise mask
            yield mask


def write_file(folder: Path, annotations: list, images: list | None = None, name: str = "in.json", **more) -> Path:
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}] if images is None else images
    (folder / "im").mkdir(exist_ok=True)
    for image in images:
        if "height" in image:
            pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
            write_image(folder / "im" / image["file_name"], pixels)
    content = {
        "info": {"year": 2025, "note": "für alle 猫"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "猫"}],
        **more,
    }
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def annotation_of(number: object = 1, image_id: int = 1, **more) -> dict:
    return {"id": number, "image_id": image_id, "category_id": 7, "iscrowd": 0, **more}


def only_annotation(folder: Path, size=(40, 50), boxes_only: bool = False, **more) -> tuple[coco.CocoFile, list]:
    file = coco.read(write_file(folder, [annotation_of(**more)]), folder / "im")
    return file, file.annotations(file.images[0], file.images[0].records, size, boxes_only)


def test_box_is_first_column_first_row_last_column_last_row(tmp_path: Path):
    _, (found,) = only_annotation(tmp_path, bbox=[2, 3, 10, 20])
    assert found.box == (2, 3, 11, 22)
    assert found.mask() is None
    assert "in.json, annotation 1 of a.png" in found.where


@pytest.mark.parametrize(
    ("bbox", "box"),
    [
        ([10.4, 5.5, 5.3, 4.0], (10.4, 5.5, 14.7, 8.5)),
        ([-3, -2, 10, 10], (0, 0, 6, 7)),  # slightly outside
        ([45, 30, 10, 10.5], (45, 30, 49, 39)),
        ([3, 4, 0.5, 10], (3, 4, 3, 13)),  # thinner than a pixel
    ],
)
def test_boxes_are_clipped(tmp_path: Path, bbox: list, box: tuple):
    _, (found,) = only_annotation(tmp_path, bbox=bbox)
    assert found.box == pytest.approx(box)


def test_segmentations_in_all_three_forms(tmp_path: Path):
    mask = ring()
    polygon = np.array([[10, 10], [30, 10], [30, 25], [10, 25]], float)
    filled = np.zeros((40, 50), bool)
    filled[10:25, 10:30] = True
    for segmentation, expected in [
        (rle_of(mask), mask),
        ({"size": [40, 50], "counts": runs_of(mask)}, mask),
        ([polygon.ravel().tolist()], filled),
        ([polygon.ravel().tolist(), (polygon / 5).ravel().tolist()], None),
    ]:
        _, (found,) = only_annotation(tmp_path, segmentation=segmentation, bbox=[0, 0, 1, 1])
        if expected is None:
            expected = filled.copy()
            expected[2:5, 2:6] = True
        np.testing.assert_array_equal(found.mask(), expected)
        assert found.mask().dtype == bool
        assert found.box == box_from_mask(expected)  # of the segmentation, not the bbox


def test_boxes_only_takes_the_bbox_and_else_the_bounds_of_the_segmentation(tmp_path: Path):
    _, (found,) = only_annotation(tmp_path, segmentation=rle_of(ring()), bbox=[1, 2, 30, 30], boxes_only=True)
    assert (found.box, found.mask()) == ((1, 2, 30, 31), None)
    _, (found,) = only_annotation(tmp_path, segmentation=rle_of(ring()), boxes_only=True)
    assert (found.box, found.mask()) == (box_from_mask(ring()), None)


@given(mask=hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_runs_of_compressed_rle(mask: np.ndarray):
    assert coco._read_runs(rle_of(mask)["counts"], "here") == runs_of(mask)


@given(
    runs=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    height=st.integers(1, 6),
)
def test_runs_of_length_zero_do_not_enlarge_the_box(runs: list[int], height: int):
    missing = -sum(runs) % height
    runs = [*runs, missing]
    width = sum(runs) // height
    if not width:
        return
    values = np.repeat(np.arange(len(runs)) % 2, runs).reshape((height, width), order="F").astype(bool)
    record = annotation_of(segmentation={"size": [height, width], "counts": runs})
    with tempfile.TemporaryDirectory() as folder:
        file, found = only_annotation(Path(folder), size=(height, width), segmentation=record["segmentation"])
        # the size in the file is 40 x 50, so the entry is read without it
        assert found == [] and file.problems
        image = coco.CocoImage(1, "a.png", Path("a.png"), None, [record])
        found = file.annotations(image, [record], (height, width))
    assert [annotation.box for annotation in found] == ([box_from_mask(values)] if values.any() else [])
    for annotation in found:
        np.testing.assert_array_equal(annotation.mask(), values)


CASES = {
    "polygon of two points": (dict(segmentation=[[1, 2, 3, 4]]), "polygon 0: found 2 points; expected at least 3"),
    "odd polygon": (dict(segmentation=[[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]]), "polygon 1: expected a list"),
    "nested polygon": (dict(segmentation=[[[1, 2], [3, 4], [5, 6]]]), "polygon 0: expected a list of numbers"),
    "flat polygon": (dict(segmentation=[1, 2, 3, 4, 5, 6]), "polygon 0: expected a list of numbers"),
    "polygon of texts": (dict(segmentation=[["1"] * 6]), "polygon 0: expected a list of numbers"),
    "polygon with NaN": (dict(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "expected a list of numbers"),
    "polygon far outside": (dict(segmentation=[[1, 2, 3, 4, 1e9, 6]]), "far outside of the image"),
    "polygon beside": (dict(segmentation=[[-9, -9, -5, -9, -5, -5]]), "covers no pixel"),
    "RLE of another size": (dict(segmentation={"size": [50, 40], "counts": [2000]}), "the RLE is 40 x 50 pixels"),
    "RLE without size": (dict(segmentation={"counts": [2000]}), "expected a size of [height, width]"),
    "RLE too short": (dict(segmentation={"size": [40, 50], "counts": [3, 4]}), "add up to 7 pixels, expected 2000"),
    "RLE too long": (dict(segmentation={"size": [40, 50], "counts": [3, 4000]}), "add up to 4003 pixels"),
    "RLE negative": (dict(segmentation={"size": [40, 50], "counts": [-3, 2003]}), "they are damaged"),
    "RLE of floats": (dict(segmentation={"size": [40, 50], "counts": [1.5, 1998.5]}), "they are damaged"),
    "RLE damaged": (dict(segmentation={"size": [40, 50], "counts": "hello world"}), "they are damaged"),
    "RLE cut off": (dict(segmentation={"size": [40, 50], "counts": rle_of(ring())["counts"][:-1]}), "RLE: "),
    "RLE endless": (dict(segmentation={"size": [40, 50], "counts": "o" * 1000}), "RLE: "),
    "RLE empty": (dict(segmentation={"size": [40, 50], "counts": [2000]}), "covers no pixel"),
    "segmentation as text": (dict(segmentation="1 2 3"), "expected a segmentation of polygons or RLE"),
    "nothing": (dict(segmentation=[]), "neither a segmentation nor a bbox"),
    "box of three": (dict(bbox=[1, 2, 3]), "expected a bbox of four numbers"),
    "box without area": (dict(bbox=[1, 2, 0, 3]), "has no area"),
    "box outside": (dict(bbox=[100, 2, 5, 3]), "lies outside"),
    "unknown image": (dict(bbox=[1, 2, 3, 4], image_id=5), "no usable image has the id 5"),
    "unknown category": (dict(bbox=[1, 2, 3, 4], category_id=9), "unknown category 9; known ids: 7"),
    "image id as list": (dict(bbox=[1, 2, 3, 4], image_id=[1]), "no usable image has the id [1]"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_annotations_are_named_and_the_rest_is_done(tmp_path: Path, case: str):
    fields, message = CASES[case]
    bad, good = annotation_of(33, **{"image_id": 1, **fields}), annotation_of(34, bbox=[5, 5, 20, 20], extra=[1])
    path = write_file(tmp_path, [bad, good])
    summary = coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", Recorder({34: ring()}))
    (problem,) = map(str, summary.problems)
    assert message in problem and "in.json" in problem and "33" in problem
    assert summary.refined == 1
    written = json.loads((tmp_path / "out.json").read_bytes())["annotations"]
    assert to_json(written[0]) == to_json(bad)  # unchanged; NaN differs from itself
    np.testing.assert_array_equal(mask_tools.decode(written[1]["segmentation"]), ring())


def test_bad_entries_are_named_and_the_rest_is_done(tmp_path: Path):
    images = [
        {"id": 1, "file_name": "a.png", "height": 40, "width": 50},
        {"id": 2, "file_name": "missing.png"},
        {"id": 3, "file_name": "broken.png"},
        {"id": 4, "file_name": "turned.png", "height": 50, "width": 40},
        {"id": 5, "file_name": "a.png", "height": 40, "width": 50},
        {"id": 5, "file_name": "a.png", "height": 40, "width": 50},
        {"file_name": "no id.png"},
        {"id": 8, "file_name": "x" * 300 + ".png"},
    ]
    box = {"bbox": [5, 5, 20, 20]}
    annotations = [annotation_of(10 + i, i, **box) for i in (1, 2, 3, 4, 5, 8)]
    annotations += [annotation_of(20, 1, **box), annotation_of(20, 1, **box), {"image_id": 1, **box}, 5]
    path = write_file(tmp_path, annotations, images)
    (tmp_path / "im" / "broken.png").write_bytes(b"no image")
    write_image(tmp_path / "im" / "turned.png", np.zeros((40, 50, 3), np.uint8))
    summary = coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", Recorder({11: ring()}))
    text = str(summary)
    for expected in (
        "image 2: ",
        "missing.png: the image file does not exist; annotations that are left as they are: 12",
        "image 3: ",
        "broken.png: cannot be read as an image",
        "turned.png is 50 x 40 pixels, but its entry is 40 x 50 pixels",
        "image 5: found 2 images with this id",
        "annotation 15: no usable image has the id 5",
        "annotation 20: found 2 annotations with this id",
        "images[6]: expected an id and a file_name",
        "image 8: ",
        "xxx.png: the image file cannot be opened: File name too long; annotations that are left as they are: 18",
        "annotations[8]: expected an id",
        "annotations[9]: expected an id, found 5",
    ):
        assert expected in text
    assert (summary.refined, len(summary.problems)) == (1, 10)
    assert json.loads((tmp_path / "out.json").read_bytes())["annotations"][1:] == annotations[1:]


@pytest.mark.parametrize("content", ["[1]", "{}", '{"images": [], "annotations": {}}', "no json", '"text"', "\xff"])
def test_what_is_not_a_coco_file_is_refused(tmp_path: Path, content: str):
    (tmp_path / "in.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"in\.json"):
        coco.read(tmp_path / "in.json", tmp_path)


def test_missing_file_and_folder_are_named(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"none\.json: the annotation file does not exist"):
        coco.read(tmp_path / "none.json", tmp_path)
    with pytest.raises(DatasetError, match="nowhere: the folder of images does not exist"):
        coco.read(write_file(tmp_path, []), tmp_path / "nowhere")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(ImportError, match=r"dis-sam\[formats\]"):
        coco.read(write_file(tmp_path, []), tmp_path)


def test_errors_of_the_refiner_cost_one_object_each(tmp_path: Path):
    path = write_file(tmp_path, [annotation_of(i, bbox=[5, 5, 20, 20]) for i in range(1, 6)])
    masks = {1: ring(), 2: ImageError("too dark"), 3: ring(radius=8), 4: np.zeros((40, 50), bool), 5: ring(radius=5)}
    refiner = Recorder(masks)
    summary = coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", refiner)
    assert refiner.calls == [[1, 2, 3, 4, 5], [3, 4, 5]]
    assert (summary.refined, len(summary.problems)) == (3, 2)
    assert "annotation 2 of a.png: too dark" in str(summary)
    assert "annotation 4 of a.png: the refined mask is empty" in str(summary)
    written = json.loads((tmp_path / "out.json").read_bytes())["annotations"]
    assert ["segmentation" in annotation for annotation in written] == [True, False, True, False, True]


def test_masks_of_another_shape_are_a_programming_error(tmp_path: Path):
    path = write_file(tmp_path, [annotation_of(bbox=[5, 5, 20, 20])])
    for masks in ([ring((50, 40))], [ring().astype(np.uint8)], []):
        with pytest.raises(ValueError, match="annotation 1"):
            coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", lambda *_, found=masks: found)
    assert not (tmp_path / "out.json").exists()


def test_images_are_read_once_and_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in range(3)]
    annotations = [annotation_of(i, i % 3, bbox=[5, 5, 20, 20]) for i in range(12)]
    path = write_file(tmp_path, annotations, images)
    read, original = [], coco.read_image
    monkeypatch.setattr(coco, "read_image", lambda path: (read.append(path.name), original(path))[1])
    refiner = Recorder(dict.fromkeys(range(12), ring()))
    summary = coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", refiner)
    assert refiner.calls == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert read == ["0.png", "1.png", "2.png"]
    assert summary.refined == 12


def test_items_yields_images_with_their_objects(tmp_path: Path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in (1, 2)]
    path = write_file(tmp_path, [annotation_of(i, 1 + i % 2, bbox=[5, 5, i, 20]) for i in range(2, 6)], images)
    (tmp_path / "im" / "2.png").unlink()
    file = coco.read(path, tmp_path / "im")
    (item,) = file.items()
    assert item[0] == tmp_path / "im" / "1.png"
    assert [annotation.id for annotation in item[1]] == [2, 4]
    assert "annotations that are left as they are: 3, 5" in str(file.problems[0])


def test_crowds_are_left_as_they_are(tmp_path: Path):
    crowd = annotation_of(2, iscrowd=1, segmentation=rle_of(ring()), area=1, bbox=[1, 2, 3, 4]) | {"iscrowd": 1}
    path = write_file(tmp_path, [annotation_of(1, bbox=[5, 5, 20, 20]), crowd])
    summary = coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", Recorder({1: ring()}))
    assert (summary.refined, summary.skipped, summary.problems) == (1, 1, [])
    assert json.loads((tmp_path / "out.json").read_bytes())["annotations"][1] == crowd


def test_two_runs_do_not_write_to_one_file(tmp_path: Path):
    path = write_file(tmp_path, [annotation_of(1, 1, bbox=[5, 5, 20, 20])])
    refiner = Recorder({1: ring()})
    with lock_folder(tmp_path, "another run", name=".out.json.lock"):
        with pytest.raises(FolderInUseError, match="in use by another run"):
            coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", refiner)
        assert coco.refine_coco(path, tmp_path / "im", tmp_path / "other.json", refiner).refined == 1


def test_an_interrupted_run_resumes(tmp_path: Path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in range(3)]
    annotations = [annotation_of(i, i % 3, bbox=[5, 5, 20 + i, 20]) for i in range(9)]
    path, out = write_file(tmp_path, annotations, images), tmp_path / "out.json"
    masks = {i: ring(radius=3 + i) for i in range(9)}

    def run(masks: dict, path: Path = path, settings: str = "one") -> tuple[coco.Summary, list]:
        refiner = Recorder(masks)
        return coco.refine_coco(path, tmp_path / "im", out, refiner, settings=settings), refiner.calls

    with pytest.raises(KeyboardInterrupt):
        run(masks | {4: KeyboardInterrupt()})
    assert not out.exists()
    journal = tmp_path / "out.json.journal.jsonl"
    with journal.open("a") as file:
        file.write('{"key": "incompl')  # killed while it wrote
    summary, calls = run(masks)
    assert calls == [[4, 7], [2, 5, 8]]
    assert (summary.refined, summary.kept) == (5, 4)
    for annotation in json.loads(out.read_bytes())["annotations"]:
        np.testing.assert_array_equal(mask_tools.decode(annotation["segmentation"]), masks[annotation["id"]])

    before = out.read_bytes()
    assert run({})[1] == [] and out.read_bytes() == before
    assert run(masks, settings="two")[1] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    os.utime(tmp_path / "im" / "1.png", ns=(1, 1))
    assert run(masks, settings="two")[1] == [[1, 4, 7]]
    annotations[3]["bbox"][0] = 7
    content = json.loads(path.read_bytes()) | {"annotations": annotations}
    path.write_text(json.dumps(content))
    assert run(masks, settings="two")[1] == [[3]]
    assert len(journal.read_text().splitlines()) == 10  # nine results and the output


def test_the_output_replaces_neither_its_input_nor_files_of_others(tmp_path: Path):
    path = write_file(tmp_path, [annotation_of(bbox=[5, 5, 20, 20])])
    before = path.read_bytes()
    link = tmp_path / "link.json"
    os.link(path, link)
    for out in (path, tmp_path / "im" / ".." / "in.json", link):
        with pytest.raises(DatasetError, match="would replace its input"):
            coco.refine_coco(path, tmp_path / "im", out, Recorder({1: ring()}))
    assert path.read_bytes() == before
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(DatasetError, match=r"other\.json: exists and was not written by an earlier run"):
        coco.refine_coco(path, tmp_path / "im", other, Recorder({1: ring()}))
    out = tmp_path / "out.json"
    coco.refine_coco(path, tmp_path / "im", out, Recorder({1: ring()}))
    out.write_text(out.read_text() + " ")
    with pytest.raises(DatasetError, match="or was changed since then"):
        coco.refine_coco(path, tmp_path / "im", out, Recorder({1: ring()}))


def test_refine_with_a_model_gives_the_mask_or_else_the_box():
    prompts = []

    class Model:
        def set_image(self, image: np.ndarray) -> None:
            prompts.append(image.shape)

        def segment(self, **prompt):
            prompts.append(prompt)
            return type("Result", (), {"mask": ring()})

    annotations = [Annotation(1, "a", (1, 2, 3, 4)), Annotation(2, "b", (5, 6, 7, 8), lambda: ring(radius=3))]
    masks = list(refine_with(Model(), detail="off")(np.zeros((40, 50, 3), np.uint8), annotations))
    assert len(masks) == 2
    assert prompts[:2] == [(40, 50, 3), {"box": (1, 2, 3, 4), "detail": "off"}]
    assert set(prompts[2]) == {"mask", "detail"}
    np.testing.assert_array_equal(prompts[2]["mask"], ring(radius=3))


def test_both_stages_refine_a_file(tmp_path: Path, weights: Path):
    model = load(weights, sam="box", device="cpu")
    path = write_file(tmp_path, [annotation_of(1, bbox=[5, 5, 20, 20]), annotation_of(2, segmentation=rle_of(ring()))])
    summary = coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", refine_with(model))
    written = json.loads((tmp_path / "out.json").read_bytes())["annotations"]
    model.set_image(np.zeros((40, 50, 3), np.uint8))
    expected = [model.segment(box=(5, 5, 24, 24)).mask, model.segment(mask=ring()).mask]
    found = [mask.any() for mask in expected]  # random weights may find nothing
    assert any(found)
    assert (summary.refined, len(summary.problems)) == (sum(found), 2 - sum(found))
    for annotation, mask in zip(written, expected, strict=True):
        assert not mask.any() or annotation["segmentation"] == rle_of(mask)


# Round trips ------------------------------------------------------------------------------------------------------

SIZES = st.tuples(st.integers(2, 24), st.integers(2, 24))
TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(TEXTS.filter(lambda key: key not in ("id", "image_id")), VALUES, max_size=3)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list, list, dict, dict, dict]:
    """Return images, annotations, further fields, the coarse masks and the refined masks by annotation id.

    Each image is divided into objects that touch each other: every pixel belongs to one object or to none.
    """
    images, annotations, coarse, refined = [], [], {}, {}
    for image_id in range(draw(st.integers(1, 3))):
        height, width = draw(SIZES)
        images.append(
            {**draw(FIELDS), "id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width}
        )
        owner = draw(hnp.arrays(np.uint8, (height, width), elements=st.integers(0, 3), fill=st.integers(0, 3)))
        for number in range(1, 4):
            mask = owner == number
            if not mask.any():
                continue
            key = len(annotations) + 1000
            refined[key] = mask
            grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            form = draw(st.sampled_from(["rle", "runs", "bbox"]))
            extra = {
                k: v for k, v in draw(FIELDS).items() if k not in ("iscrowd", "category_id", "bbox", "segmentation")
            }
            record = {"area": 1.5, **extra, "id": key, "image_id": image_id, "category_id": 7, "name": draw(TEXTS)}
            if form == "bbox":
                x0, y0, x1, y1 = box_from_mask(grown)
                if (x0, y0) == (x1, y1):
                    continue
                record["bbox"] = [x0, y0, x1 - x0 + 1, y1 - y0 + 1]
                coarse[key] = None
            else:
                record["segmentation"] = {
                    "size": [height, width],
                    "counts": runs_of(grown) if form == "runs" else rle_of(grown)["counts"],
                }
                coarse[key] = grown
            annotations.append(record)
    return images, annotations, draw(FIELDS), coarse, refined


@settings(max_examples=60)
@given(data=datasets())
def test_a_round_trip_loses_nothing(data: tuple):
    images, annotations, fields, coarse, refined = data
    fields = {key: value for key, value in fields.items() if key not in ("images", "annotations", "categories")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_file(folder, annotations, images, **fields)
        before = json.loads(path.read_bytes())

        def refiner(image: np.ndarray, objects: Sequence[Annotation]) -> Iterator[np.ndarray]:
            for item in objects:
                expected = coarse[item.id]
                if expected is None:
                    assert item.mask() is None
                else:
                    np.testing.assert_array_equal(item.mask(), expected)
                    assert item.box == box_from_mask(expected)
                yield refined[item.id]

        out = folder / "out.json"
        summary = coco.refine_coco(path, folder / "im", out, refiner)
        assert (summary.refined, summary.problems) == (len(annotations), [])
        after = json.loads(out.read_bytes())
        assert list(after) == list(before)
        assert {**after, "annotations": None} == {**before, "annotations": None}
        theirs = COCO(str(out))
        for old, new in zip(before["annotations"], after["annotations"], strict=True):
            assert [key for key in new if key in old] == list(old)  # the order too
            recomputed = dict.fromkeys(("segmentation", "bbox", "area"))
            assert new | recomputed == old | recomputed
            mask = refined[new["id"]]
            np.testing.assert_array_equal(theirs.annToMask(theirs.anns[new["id"]]), mask)
            x0, y0, x1, y1 = box_from_mask(mask)
            assert new["bbox"] == [x0, y0, x1 - x0 + 1, y1 - y0 + 1]
            assert new["area"] == mask.sum()
            assert new["segmentation"] == rle_of(mask)
        # touching objects stay apart: no pixel belongs to two objects
        for image in images:
            masks = [theirs.annToMask(theirs.anns[i]) for i in theirs.getAnnIds(imgIds=[image["id"]])]
            assert not masks or np.sum(masks, axis=0).max() <= 1


def test_names_that_utf8_cannot_hold_are_kept(tmp_path: Path):
    path = write_file(tmp_path, [annotation_of(bbox=[5, 5, 20, 20], name="\ud800 猫")])
    coco.refine_coco(path, tmp_path / "im", tmp_path / "out.json", Recorder({1: ring()}))
    assert json.loads((tmp_path / "out.json").read_bytes())["annotations"][0]["name"] == "\ud800 猫"
    assert "für alle 猫" in (tmp_path / "out.json").read_text(encoding="utf-8")
