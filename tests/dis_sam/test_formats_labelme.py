"""labelme files: what is read, what labelme itself reads of what is written, and what is named when it is wrong."""

from __future__ import annotations

import base64
import importlib.util
import io
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
from PIL import Image

from dis_sam.formats import labelme
from dis_sam.formats.annotation import Annotation, Summary
from IS_Net.errors import DatasetError, FolderInUseError, ImageError
from IS_Net.images import write_image
from IS_Net.lock import lock_folder
from IS_Net.preprocess import box_from_mask

SIZE = (40, 50)
HAS_LABELME = importlib.util.find_spec("labelme") is not None
"""labelme brings Qt along and is in no extra: `pip install labelme` to run its tests too."""


def png(pixels: np.ndarray, **options) -> str:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG", **options)
        return base64.b64encode(file.getvalue()).decode()


def mask_shape(mask: np.ndarray, **more) -> dict:
    """Return a mask as labelme's own saveLabels does."""
    x0, y0, x1, y1 = box_from_mask(mask)
    return {
        "label": "ring",
        "points": [[float(x0), float(y0)], [float(x1), float(y1)]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": png(mask[y0 : y1 + 1, x0 : x1 + 1].astype(np.uint8)),
        **more,
    }


def shape(kind: str | None, points: list, **more) -> dict:
    return {"label": "cup", "points": points, "shape_type": kind, "flags": {}, **more}


def ring(size: tuple[int, int] = SIZE, radius: int = 12) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    cv2.circle(mask, (20, 18), radius, 1, 4)
    return mask > 0


def write_file(folder: Path, shapes: list, name: str = "a", size: tuple[int, int] = SIZE, **more) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    rng = np.random.default_rng(0)
    write_image(folder / f"{name}.png", rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    content = {
        "version": "5.5.0",
        "flags": {"checked": True},
        "shapes": shapes,
        "imagePath": f"{name}.png",
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
        "mein Schlüssel": [1, {"猫": None}],
        **more,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


class Recorder:
    """A refiner that returns the coarse masks, or the filled boxes, and records what it was asked."""

    def __init__(self, fail: object = None) -> None:
        self.calls, self.fail = [], fail

    def __call__(self, image: np.ndarray, annotations: Sequence[Annotation]) -> Iterator[np.ndarray]:
        self.calls.append([annotation.id for annotation in annotations])
        for annotation in annotations:
            if annotation.id == self.fail:
                raise ImageError("too dark")
            mask = annotation.mask()
            if mask is None:
                x0, y0, x1, y1 = map(round, annotation.box)
                mask = np.zeros(image.shape[:2], bool)
                mask[y0 : y1 + 1, x0 : x1 + 1] = True
            yield mask


def run(folder: Path, refiner: Recorder | None = None, out: str = "out", **options) -> Summary:
    return labelme.refine_labelme(folder / "in", folder / out, refiner or Recorder(), **options)


def written(folder: Path, name: str = "a") -> dict:
    return json.loads((folder / "out" / f"{name}.json").read_text(encoding="utf-8"))


def decode(written_shape: dict, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, bool)
    (x0, y0), (x1, y1) = np.asarray(written_shape["points"]).astype(int)
    with Image.open(io.BytesIO(base64.b64decode(written_shape["mask"]))) as image:
        assert image.mode == "L"
        mask[y0 : y1 + 1, x0 : x1 + 1] = np.asarray(image).astype(bool)
    return mask


def test_shapes_that_are_read(tmp_path: Path):
    triangle = [[10, 5], [30, 20], [10, 20]]
    shapes = [
        shape("rectangle", [[30, 25.5], [10, 5]]),
        shape("polygon", triangle),
        shape(None, triangle),
        shape("circle", [[20, 20], [25, 20]]),
        mask_shape(ring()),
        shape("oriented_rectangle", [[10, 5], [20, 5], [20, 15], [10, 15]]),
        shape("point", [[3, 4]]),
        shape("linestrip", [[3, 4], [5, 6]]),
    ]
    file = labelme.read(write_file(tmp_path, shapes))
    found = file.annotations()
    assert [annotation.id for annotation in found] == [0, 1, 2, 3, 4, 5]
    assert file.skipped == 2 and file.problems == []
    assert [annotation.box for annotation in found] == [
        (10, 5, 30, 25.5),
        (10, 5, 30, 20),
        (10, 5, 30, 20),
        (15, 15, 25, 25),
        box_from_mask(ring()),
        (10, 5, 20, 15),
    ]
    assert found[0].mask() is None
    for annotation in found[1:]:
        assert annotation.mask().dtype == bool and box_from_mask(annotation.mask()) == annotation.box
    np.testing.assert_array_equal(found[4].mask(), ring())
    assert found[4].where.endswith("a.json, shape 4 (ring)")
    boxes = file.annotations(boxes_only=True)
    assert [item.box for item in boxes] == [item.box for item in found]
    assert {item.mask() for item in boxes} == {None}


@pytest.mark.skipif(not HAS_LABELME, reason="labelme is not installed")
@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", [[10.4, 5.2], [30.7, 20.5], [9.9, 33.3]]),
        ("circle", [[20.3, 20.6], [25.1, 22.2]]),
        ("polygon", [[-5, -5], [60, 3], [20, 44]]),
    ],
)
def test_shapes_are_rasterized_as_labelme_does(tmp_path: Path, kind: str, points: list):
    from labelme.utils import shape_to_mask

    (found,) = labelme.read(write_file(tmp_path, [shape(kind, points)])).annotations()
    np.testing.assert_array_equal(found.mask(), shape_to_mask(SIZE, points, kind))


def test_masks_are_written_as_labelme_stores_them(tmp_path: Path):
    shapes = [shape("polygon", [[10, 5], [30, 20], [10, 20]], group_id=3, note="猫"), shape("point", [[3, 4]])]
    path = write_file(tmp_path / "in", shapes)
    before = json.loads(path.read_text(encoding="utf-8"))
    refined = ring(radius=9)
    summary = labelme.refine_labelme(tmp_path / "in", tmp_path / "out", lambda *_: [refined])
    after = written(tmp_path)
    assert (summary.refined, summary.skipped, summary.problems) == (1, 1, [])
    assert list(after) == list(before)
    assert after["shapes"][1] == before["shapes"][1]
    new = after["shapes"][0]
    own = dict.fromkeys(("points", "shape_type", "mask"))
    assert new | own == shapes[0] | own and list(new) == [*shapes[0], "mask"]
    theirs = mask_shape(refined)
    assert (new["points"], new["shape_type"]) == (theirs["points"], theirs["shape_type"])
    np.testing.assert_array_equal(decode(new), refined)
    assert {**after, "shapes": 0, "imagePath": 0} == {**before, "shapes": 0, "imagePath": 0}
    assert after["imagePath"] == "../in/a.png"
    assert "mein Schlüssel" in (tmp_path / "out" / "a.json").read_text(encoding="utf-8")


def test_the_image_in_the_file_comes_first(tmp_path: Path):
    pixels = np.random.default_rng(1).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    path = write_file(tmp_path / "in", [mask_shape(ring())], imageData=png(pixels), imagePath="gone\\a.png")
    np.testing.assert_array_equal(labelme.read(path).image, pixels)
    run(tmp_path)
    assert written(tmp_path)["imageData"] == png(pixels)
    assert written(tmp_path)["imagePath"] == "gone\\a.png"  # no such file: kept


def test_stored_images_are_not_turned_and_image_files_are(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((*SIZE, 3), np.uint8)
    path = write_file(tmp_path, [], imageData=png(pixels, exif=exif))
    assert labelme.read(path).image.shape == (40, 50, 3)
    path = write_file(tmp_path, [], imagePath="turned.png", imageHeight=50, imageWidth=40)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert labelme.read(path).image.shape == (50, 40, 3)


CUT = png(ring().astype(np.uint8))[:80]
CASES = {
    "polygon of two points": (shape("polygon", [[1, 2], [3, 4]]), "found 2 points; expected at least 3"),
    "rectangle of one point": (shape("rectangle", [[1, 2]]), "found 1 points; expected 2 for a rectangle"),
    "points as text": (shape("polygon", "1 2"), "expected points as"),
    "points of three": (shape("polygon", [[1, 2, 3]] * 3), "expected points as"),
    "points missing": ({"label": "cup", "shape_type": "polygon"}, "expected points as"),
    "far outside": (shape("circle", [[1, 2], [1, 1e8]]), "far outside of the image"),
    "beside": (shape("polygon", [[-9, -9], [-5, -9], [-5, -5]]), "covers no pixel"),
    "rectangle outside": (shape("rectangle", [[60, 2], [70, 9]]), "lies outside its image"),
    "unknown type": (shape("star", [[1, 2]]), "unknown shape_type 'star'"),
    "type in a list": (shape("star", [[1, 2]]) | {"shape_type": ["polygon"]}, "unknown shape_type"),
    "no object": (5, "unknown shape_type"),
    "mask missing": (shape("mask", [[1, 2], [3, 4]]), "cannot be read as PNG in base64"),
    "mask damaged": (shape("mask", [[0, 0], [49, 39]], mask=CUT), "cannot be read as PNG in base64"),
    "mask of another size": (mask_shape(ring()) | {"points": [[0, 0], [5, 5]]}, "its points span 6 x 6 pixels"),
    "mask of colors": (shape("mask", [[1, 2], [4, 4]], mask=png(np.ones((3, 4, 3), np.uint8))), "is 4 x 3 x 3 pixels"),
    "mask out of the image": (shape("mask", [[48, 2], [51, 4]], mask=png(np.ones((3, 4), np.uint8))), "reaches out"),
    "mask empty": (shape("mask", [[1, 2], [4, 4]], mask=png(np.zeros((3, 4), np.uint8))), "covers no pixel"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_shapes_are_named_and_the_rest_is_done(tmp_path: Path, case: str):
    bad, message = CASES[case]
    write_file(tmp_path / "in", [bad, mask_shape(ring())])
    summary = run(tmp_path)
    (problem,) = map(str, summary.problems)
    assert message in problem and "a.json, shape 0" in problem
    assert summary.refined == 1
    assert written(tmp_path)["shapes"][0] == bad
    np.testing.assert_array_equal(decode(written(tmp_path)["shapes"][1]), ring())


def test_hidden_files_are_left_out(tmp_path: Path):
    write_file(tmp_path / "in", [mask_shape(ring())])
    (tmp_path / "in" / "._a.json").write_bytes(b"\0\5\x16\7")  # as macOS writes them to other disks
    summary = run(tmp_path)
    assert (summary.refined, summary.problems) == (1, [])


def test_bad_files_are_named_and_the_rest_is_done(tmp_path: Path):
    folder = tmp_path / "in"
    write_file(folder, [mask_shape(ring())], "good")
    write_file(folder, [], "missing", imagePath="gone.png")
    write_file(folder, [], "size", imageHeight=41)
    write_file(folder, [], "size_text", imageHeight="40")
    write_file(folder, [], "data", imageData="bm8gaW1hZ2U=")
    write_file(folder, [], "path", imagePath=None)
    write_file(folder, [], "long", imagePath="x" * 300 + ".png")
    for name, content in (("json", "{"), ("other", '{"images": []}'), ("list", "[1]")):
        (folder / f"{name}.json").write_text(content)
    summary = run(tmp_path)
    text = str(summary)
    for expected in (
        "gone.png: the image file does not exist",
        "size.json: the image is 50 x 40 pixels, but imageHeight and imageWidth of its file is 50 x 41 pixels",
        "size_text.json: expected integers as imageHeight and imageWidth",
        "data.json: imageData cannot be read as an image in base64",
        "path.json: expected the name of an image",
        "xxx.png: the image file cannot be opened: File name too long",
        "json.json: cannot be read as JSON",
        "other.json: expected a labelme file, with a list 'shapes'",
        "list.json: expected a labelme file",
    ):
        assert expected in text
    assert (summary.refined, len(summary.problems)) == (1, 9)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.json", "journal.jsonl"]


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="does not exist"):
        run(tmp_path)
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError, match="found no labelme file"):
        run(tmp_path)
    path = write_file(tmp_path / "in", [mask_shape(ring())])
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="would replace its input"):
        run(tmp_path, out="in/../in")
    assert path.read_bytes() == before


def test_files_of_others_are_not_replaced(tmp_path: Path):
    for name in "abc":
        path = write_file(tmp_path / "in", [mask_shape(ring())], name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text("mine")
    os.link(path, tmp_path / "out" / "c.json")
    before = path.read_bytes()
    summary = run(tmp_path)
    first, second = map(str, summary.problems)
    assert "a.json: exists and was not written by an earlier run" in first
    assert "c.json: the output would replace its input" in second
    assert (tmp_path / "out" / "a.json").read_text() == "mine" and path.read_bytes() == before
    assert summary.refined == 1


def test_the_output_may_be_a_folder_around_the_files(tmp_path: Path):
    write_file(tmp_path / "in", [mask_shape(ring())])
    assert run(tmp_path, out=".").refined == 1


def test_a_file_that_is_no_journal_is_kept(tmp_path: Path):
    write_file(tmp_path / "in", [mask_shape(ring())])
    journal = tmp_path / "out" / "journal.jsonl"
    journal.parent.mkdir()
    journal.write_text("my notes\nof a week\n")
    with pytest.raises(DatasetError, match=r"journal\.jsonl: is not the journal of an earlier run"):
        run(tmp_path)
    assert journal.read_text() == "my notes\nof a week\n"
    journal.write_text('{"key": "of a run that was kil')
    assert run(tmp_path).refined == 1


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path):
    write_file(tmp_path / "in", [mask_shape(ring())])
    with lock_folder(tmp_path / "out", "another run"), pytest.raises(FolderInUseError, match="in use by another run"):
        run(tmp_path)


def test_an_interrupted_run_resumes(tmp_path: Path):
    for name in "abcd":
        write_file(tmp_path / "in", [mask_shape(ring()), shape("rectangle", [[5, 5], [9, 9]])], name)

    class Killed(Recorder):
        def __call__(self, *arguments):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(*arguments)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Killed())
    refiner = Recorder()
    summary = run(tmp_path, refiner)
    assert (len(refiner.calls), summary.refined, summary.kept) == (2, 4, 4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def count(**options) -> int:
        refiner = Recorder()
        run(tmp_path, refiner, **options)
        return len(refiner.calls)

    assert count() == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    os.utime(tmp_path / "in" / "b.png", ns=(1, 1))
    assert count() == 1
    path = tmp_path / "in" / "c.json"
    path.write_text(path.read_text().replace("cup", "mug"))
    assert count() == 1
    (tmp_path / "out" / "d.json").unlink()
    assert count() == 1
    assert count(settings="other") == 4
    assert count() == 4
    assert len((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) == 4


def test_files_with_failed_shapes_are_done_again(tmp_path: Path):
    write_file(tmp_path / "in", [mask_shape(ring()), shape("rectangle", [[5, 5], [9, 9]])])
    summary = run(tmp_path, Recorder(fail=0))
    assert (summary.refined, [str(problem) for problem in summary.problems]) == (
        1,
        [f"{tmp_path / 'in' / 'a.json'}, shape 0 (ring): too dark"],
    )
    summary = run(tmp_path)
    assert (summary.refined, summary.kept, summary.problems) == (2, 0, [])


def test_subfolders_keep_their_structure(tmp_path: Path):
    write_file(tmp_path / "in", [mask_shape(ring())], "a")
    write_file(tmp_path / "in" / "sub", [mask_shape(ring())], "b")
    assert run(tmp_path).refined == 1
    out = tmp_path / "in" / "out"
    summary = labelme.refine_labelme(tmp_path / "in", out, Recorder(), recursive=True)
    assert (summary.refined, summary.problems) == (2, [])
    assert json.loads((out / "sub" / "b.json").read_text())["imagePath"] == "../../sub/b.png"
    summary = labelme.refine_labelme(tmp_path / "in", out, Recorder(), recursive=True)
    assert (summary.refined, summary.kept) == (0, 2)  # the output is not an input


# Round trips ------------------------------------------------------------------------------------------------------

TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OF_LABELME = ("label", "points", "group_id", "shape_type", "flags", "description", "mask")
OF_FILE = (
    "version",
    "imageData",
    "imagePath",
    "shapes",
    "flags",
    "imageHeight",
    "imageWidth",
    "lineColor",
    "fillColor",
)


def fields(but: Sequence[str]) -> st.SearchStrategy[dict]:
    return st.dictionaries(TEXTS.filter(lambda key: key not in but), VALUES, max_size=3)


@settings(max_examples=40)
@given(data=st.data(), size=st.tuples(st.integers(2, 24), st.integers(2, 24)), stored=st.booleans())
def test_a_round_trip_loses_nothing(data: st.DataObject, size: tuple[int, int], stored: bool):
    owner = data.draw(hnp.arrays(np.uint8, size, elements=st.integers(0, 3), fill=st.integers(0, 3)))
    masks = [owner == number for number in (1, 2, 3) if (owner == number).any()]  # they touch each other
    shapes = [
        {
            **data.draw(fields(OF_LABELME)),
            **mask_shape(cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0),
            "label": data.draw(TEXTS),
            "group_id": data.draw(st.none() | st.integers(0, 3)),
        }
        for mask in masks
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        more = data.draw(fields(OF_FILE))
        if stored:
            more["imageData"] = png(np.zeros((*size, 3), np.uint8))
        path = write_file(folder / "in", shapes, size=size, **more)
        before = json.loads(path.read_text(encoding="utf-8"))
        summary = labelme.refine_labelme(folder / "in", folder / "out", lambda *_: masks)
        assert (summary.refined, summary.problems) == (len(masks), [])
        after = written(folder)
        assert list(after) == list(before)
        changed = dict.fromkeys(("shapes", "imagePath"))
        assert after | changed == before | changed
        for old, new, mask in zip(before["shapes"], after["shapes"], masks, strict=True):
            assert list(new) == list(old)
            own = dict.fromkeys(("points", "mask"))
            assert new | own == old | own
            np.testing.assert_array_equal(decode(new, size), mask)
        again = labelme.read(folder / "out" / "a.json").annotations()
        for annotation, mask in zip(again, masks, strict=True):
            np.testing.assert_array_equal(annotation.mask(), mask)
            assert annotation.box == box_from_mask(mask)
        if HAS_LABELME:
            _compare_with_labelme(folder / "out" / "a.json", after, masks, size)


def _compare_with_labelme(path: Path, content: dict, masks: list[np.ndarray], size: tuple[int, int]) -> None:
    """Check that labelme's own reader and its own rasterizer see the same."""
    from labelme import LabelFile
    from labelme.utils import img_data_to_arr, shapes_to_label

    theirs = LabelFile(str(path))
    assert img_data_to_arr(theirs.imageData).shape[:2] == size
    assert [item["label"] for item in theirs.shapes] == [item["label"] for item in content["shapes"]]
    for item, mask in zip(theirs.shapes, masks, strict=True):
        _, instances = shapes_to_label((*size, 3), [item], {item["label"]: 1})
        np.testing.assert_array_equal(instances > 0, mask)
