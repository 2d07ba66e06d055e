"""Prompts: read from files, and checked against their images."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from IS_Net.errors import PromptError
from IS_Net.images import write_image
from sam.prompts import Prompt, check_points, check_prompts, prompt_from_mask, prompt_from_record, read_prompts

REPEATED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

names = st.text("abcXYZ019-. äß", min_size=1, max_size=8).filter(lambda name: name.strip() == name)
objects = st.text("abc 0-äß", min_size=1, max_size=6).filter(lambda name: name.strip() == name)
numbers = st.floats(-1e6, 1e6, allow_nan=False)
boxes = st.tuples(numbers, numbers, numbers, numbers)
clicks = st.lists(st.tuples(st.tuples(numbers, numbers), st.sampled_from([0, 1])), min_size=1, max_size=4).filter(
    lambda points: any(label for _, label in points)
)


def write_csv(path: Path, *rows: str, header: str = "name,object,x0,y0,x1,y1") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def write_json(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """Three images of 40 x 30 pixels (width x height); one has the name that an object's mask could have."""
    paths = {}
    for name in ("cat.png", "dog.jpg", "cat_ear.png"):
        path = tmp_path / "im" / name
        write_image(path, np.full((30, 40, 3), 90, np.uint8))
        paths[path.stem] = path
    return paths


@REPEATED
@given(rows=st.lists(st.tuples(names, st.none() | objects, boxes), min_size=1, max_size=5))
def test_csv_round_trip(tmp_path: Path, rows: list) -> None:
    path = tmp_path / "prompts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "object", "x0", "y0", "x1", "y1"])
        writer.writerows([name, label or "", *map(repr, box)] for name, label, box in rows)
    assert read_prompts(path) == [Prompt(name, label, box) for name, label, box in rows]


@REPEATED
@given(
    images=st.dictionaries(
        names, st.lists(st.tuples(st.none() | objects, st.none() | boxes, clicks), min_size=1, max_size=3), min_size=1
    )
)
def test_json_round_trip(tmp_path: Path, images: dict) -> None:
    written, expected = {}, []
    for name, prompts in images.items():
        written[name] = []
        for label, box, points in prompts:
            record: dict = {"object": label}
            if box:
                record["box"] = box
            else:
                record |= {"points": [xy for xy, _ in points], "labels": [sign for _, sign in points]}
            written[name].append(record)
            coordinates, signs = tuple(xy for xy, _ in points), tuple(sign for _, sign in points)
            expected.append(Prompt(name, label, box) if box else Prompt(name, label, None, coordinates, signs))
    found = read_prompts(write_json(tmp_path / "prompts.json", written))
    assert found == expected
    # the manifest holds the same values
    for prompt in found:
        assert prompt_from_record(prompt.name, json.loads(json.dumps(prompt.record()))) == prompt


def test_csv_written_by_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes("﻿x1, name,object ,y0,x0,y1,note\r\n30, cat.png, ear ,2,1,20,good\r\n\r\n,,,,,,\r\n".encode())
    assert read_prompts(path) == [Prompt("cat.png", "ear", (1, 2, 30, 20))]


def test_all_faults_of_a_csv_are_named(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "prompts.csv", "cat,,1,2,x,4", "dog,a,1,2,3", ",a,1,2,3,4", "cat,a/b,1,2,3,4", "cat,,1,2,nan,4"
    )
    with pytest.raises(PromptError) as error:
        read_prompts(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    for number, what in [
        (2, "'x'"),
        (3, "found 5 values, expected 6"),
        (4, "name is empty"),
        (5, "'a/b'"),
        (6, "'nan'"),
    ]:
        assert any(f"prompts.csv, line {number}:" in line and what in line for line in lines), number


def test_csv_without_a_column(tmp_path: Path) -> None:
    with pytest.raises(
        PromptError, match=r"line 1: found the columns name, x0, y0, x1; missing object, y1; expected name"
    ):
        read_prompts(write_csv(tmp_path / "prompts.csv", "a,1,2,3", header="name,x0,y0,x1"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"box": [1, 2, 3]}, r"'cat'\[0\]: box: expected four numbers x0, y0, x1, y1, found \[1, 2, 3\]"),
        ({"box": [1, 2, 3, True]}, "expected four numbers"),
        ({"box": [1, 2, 3, 10**400]}, "expected four numbers"),
        ({"box": "1234"}, "expected four numbers"),
        ({"box": {"x0": 1}}, "expected four numbers"),
        ({"bbox": [1, 2, 3, 4]}, "unknown key 'bbox'; did you mean 'box'"),
        ({"points": [[1, 2]]}, "found points without labels"),
        ({"labels": [1]}, "found labels without points"),
        ({"mask": 1}, "unknown key 'mask'; known names: box, labels, object, points"),
        ({"points": [[1, 2], [3, 4]], "labels": [1]}, "found 2 points and 1 labels"),
        ({"points": [[1, 2]], "labels": [2]}, r"expected labels of 1 \(object\) and 0"),
        ({"points": [[1, 2]], "labels": [0]}, "only background points"),
        ({"points": [[1, 2, 3]], "labels": [1]}, "point: expected two numbers"),
        ({"points": [], "labels": []}, "expected points as"),
        ({"object": "cat"}, "expected a box, or points and labels, found neither"),
        ([1, 2, 3, 4], "expected an object with box, or points and labels, found a list"),
    ],
)
def test_faults_of_a_json(tmp_path: Path, record: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompts(write_json(tmp_path / "prompts.json", {"cat": [record]}))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("prompts.json", '{"cat": [', "cannot be read as JSON"),
        ("prompts.json", "[]", "expected an object {name"),
        ("prompts.json", "{}", "contains no prompts"),
        ("prompts.json", '{"cat": {"box": [1, 2, 3, 4]}}', "'cat': expected a list of prompts, found an object"),
        ("prompts.json", '{"cat": [{"box": [1, 2, 3, 4]}], "cat": []}', "the key 'cat' 2 times"),
        ("prompts.csv", "", "found the columns none"),
        ("prompts.csv", "name,object,x0,y0,x1,y1\n", "contains no prompts"),
        ("prompts.txt", "", "expected a prompt file, .csv or .json, found .txt"),
    ],
)
def test_faulty_files(tmp_path: Path, file: str, text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as error:
        read_prompts(write_json(tmp_path / file, text))
    assert file in str(error.value)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(PromptError, match=r"cannot be read as CSV in UTF-8"):
        read_prompts(tmp_path / "prompts.csv")
    with pytest.raises(PromptError, match="does not exist"):
        read_prompts(tmp_path / "none.csv")


def test_masks_are_named_after_image_and_object(images: dict[str, Path]) -> None:
    box = (1, 2, 20, 25)
    prompts = [
        Prompt("cat.png", "a", box),
        Prompt("cat", "b", box),
        Prompt("dog", "c", box),
        Prompt("cat_ear", None, box),
    ]
    found = check_prompts(prompts, images)
    assert {mask: (p.name, p.object) for mask, p in found.items()} == {
        "cat_a": ("cat", "a"),
        "cat_b": ("cat", "b"),
        "dog": ("dog", "c"),
        "cat_ear": ("cat_ear", None),
    }


def test_stem_may_look_like_a_file_name(tmp_path: Path) -> None:
    path = tmp_path / "cat.png.jpg"
    write_image(path, np.zeros((30, 40, 3), np.uint8))
    assert list(check_prompts([Prompt("cat.png", None, (1, 1, 9, 9))], {"cat.png": path})) == ["cat.png"]
    assert list(check_prompts([Prompt("cat.png.jpg", None, (1, 1, 9, 9))], {"cat.png": path})) == ["cat.png"]


def test_folders_in_names_count(tmp_path: Path) -> None:
    for name in ("a.png", "sub/a.png"):
        write_image(tmp_path / "im" / name, np.zeros((30, 40, 3), np.uint8))
    both = {"a": tmp_path / "im" / "a.png", "sub/a": tmp_path / "im" / "sub" / "a.png"}
    box = (1, 1, 9, 9)
    assert list(check_prompts([Prompt("sub/a.png", None, box)], both)) == ["sub/a"]
    for name in ("a.png", "im/a.png", str(both["a"])):
        assert list(check_prompts([Prompt(name, None, box)], {"a": both["a"]})) == ["a"]
    with pytest.raises(PromptError, match=r"no image in .* for 'sub/a\.png'"):
        check_prompts([Prompt("sub/a.png", None, box)], {"a": both["a"]})


def test_prompts_of_another_data_set_are_named_at_once(tmp_path: Path) -> None:
    """Similar names were looked for among all pairs: minutes for thousands of names."""
    images = {f"n{number:08}_picture": tmp_path / "im" / f"n{number}.png" for number in range(3000)}
    prompts = [Prompt(f"m{number:08}_image", None, (1, 1, 9, 9)) for number in range(3000)]
    with pytest.raises(PromptError, match="and 2920 more; expected names of its 3000 images"):
        check_prompts(prompts, images)


def test_boxes_are_clipped(images: dict[str, Path]) -> None:
    found = check_prompts([Prompt("cat", None, (-5, 3, 99, 12.5))], images)
    assert found["cat"].box == (0, 3, 39, 12.5)


def test_all_faulty_prompts_are_named(images: dict[str, Path]) -> None:
    prompts = [
        Prompt("cot", None, (1, 1, 5, 5), where="p.csv, line 2"),
        Prompt("bird.tif", None, (1, 1, 5, 5), where="p.csv, line 3"),
        Prompt("cat", "a", (50, 1, 60, 5), where="p.csv, line 4"),
        Prompt("cat", "b", (1, 9, 5, 2), where="p.csv, line 5"),
        Prompt("cat", "c", (1, 1, 1, 1), where="p.csv, line 6"),
        Prompt("dog", None, None, ((39, 29), (40, 29)), (1, 1), where="p.csv, line 7"),
    ]
    with pytest.raises(PromptError) as error:
        check_prompts(prompts, images)
    message = str(error.value)
    assert re.search(
        r"no image in .*im for 'cot' \(p.csv, line 2\), 'bird.tif' \(p.csv, line 3\); .* named 'cat'", message
    )
    assert re.search(r"line 4, image 'cat': box: .* outside its image of 40 x 30", message)
    assert re.search(r"line 5, image 'cat': box: .* corners in the wrong order", message)
    assert re.search(r"line 6, image 'cat': box: .* single point", message)
    assert re.search(r"line 7: point \[40, 29\] lies outside its image 'dog' of 40 x 30", message)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([("cat", "a"), ("cat.png", "a")], "would write mask 'cat_a', and the object is given twice"),
        ([("cat", "a"), ("cat", None)], "image 'cat' has 2 prompts, and this one has no object"),
        ([("cat", "ear"), ("cat", "b"), ("cat_ear", None)], "would write mask 'cat_ear', "),
        # the image has no prompt, but readers of the masks would match the mask to it
        ([("cat", "ear"), ("cat", "b")], "would write mask 'cat_ear', which belongs to the image cat_ear.png"),
    ],
)
def test_two_prompts_must_not_write_the_same_mask(images: dict[str, Path], prompts: list, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        check_prompts([Prompt(name, label, (1, 1, 9, 9)) for name, label in prompts], images)


def test_objects_of_two_images_must_not_write_the_same_mask(tmp_path: Path) -> None:
    images = {}
    for stem in ("a", "a_b"):
        images[stem] = tmp_path / f"{stem}.png"
        write_image(images[stem], np.zeros((20, 20, 3), np.uint8))
    prompts = [("a", "b_c"), ("a", "d"), ("a_b", "c"), ("a_b", "e")]
    with pytest.raises(
        PromptError, match=r"prompt 'a_b', object 'c': would write mask 'a_b_c', and so would prompt 'a'"
    ):
        check_prompts([Prompt(name, label, (1, 1, 9, 9)) for name, label in prompts], images)


def test_prompt_of_a_ground_truth() -> None:
    gt = np.zeros((20, 30), np.uint8)
    assert prompt_from_mask("a", gt).empty
    gt[4:9, 7:22] = 129
    gt[15, 3] = 128  # not above the threshold
    assert prompt_from_mask("a", gt) == Prompt("a", None, (7, 4, 21, 8))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"images": [{"id": 1}], "annotations": [{"id": i, "bbox": [1, 2, 3, 4]} for i in range(99)]}, "COCO"),
        ({"annotations": [], "categories": []}, "COCO"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "COCO"),
        ({"version": "5.4", "shapes": [{"label": "a", "points": [[1, 2]]}] * 99, "imagePath": "a.jpg"}, "labelme"),
    ],
)
def test_annotation_files_are_named_in_one_line(tmp_path: Path, content: object, name: str) -> None:
    """Row 27 of the list of faults: 2,000 lines that ask whether 'points' was meant."""
    with pytest.raises(PromptError) as error:
        read_prompts(write_json(tmp_path / "p.json", content))
    assert re.fullmatch(rf".*p\.json: is a {name} file of annotations.*dis-sam refine.*", str(error.value))


def test_an_image_may_be_named_like_a_key_of_annotations(tmp_path: Path) -> None:
    """Row 27, its neighbor: {"images": [..]} alone are prompts of an image of that name."""
    path = write_json(tmp_path / "p.json", {"images": [{"box": [1, 2, 3, 4]}]})
    assert read_prompts(path) == [Prompt("images", None, (1, 2, 3, 4))]


def test_a_box_with_width_and_height_is_recognized(images: dict[str, Path]) -> None:
    """Row 28: only said that the corners are in the wrong order."""
    with pytest.raises(PromptError, match=r"wrong order.*if it is x, y, width, height.*\[30.0, 20.0, 35.0, 24.0\]"):
        check_prompts([Prompt("cat", None, (30, 20, 6, 5))], images)
    with pytest.raises(PromptError) as error:  # would reach out of the image, so it is not one either
        check_prompts([Prompt("cat", None, (30, 20, 20, 5))], images)
    assert "width, height" not in str(error.value)


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        ([[500, -9]], [1], r"point \[500.0, -9.0\] lies outside the image of 40 x 30 pixels"),
        ([[40, 5]], [1], "outside"),
        ([[5, 5]], [7], "labels of 1 .object. and 0"),
        ([[5, 5]], [-1], "labels of 1 .object. and 0"),
        ([[5, 5]], [0], "only background points"),
        ([[5, float("nan")]], [1], "expected two numbers x, y"),
        ([[5, 5], [6, 6]], [1], "found 2 points and 1 labels"),
        ([[5, 5]], None, "found points without labels"),
        (None, [1], "found labels without points"),
        ([], [], "expected points as"),
        ([5, 5], [1, 1], "expected two numbers x, y"),
        ([["a", "b"]], [1], "expected two numbers x, y"),
    ],
)
def test_points_of_a_program_are_checked_as_those_of_a_file(points: object, labels: object, message: str) -> None:
    """Row 14: the whole picture, an OverflowError, or a message of zip()."""
    for convert in (lambda value: value, lambda value: None if value is None else np.array(value)):
        with pytest.raises(PromptError, match=message):
            check_points(convert(points), convert(labels), (30, 40), has_box=False)


def test_good_points(images: dict[str, Path]) -> None:
    found = check_points(np.float32([[39.5, 0], [1, 2]]), np.array([True, False]).astype(int), (30, 40), has_box=False)
    np.testing.assert_array_equal(found[0], [[39.5, 0], [1, 2]])
    np.testing.assert_array_equal(found[1], [1, 0])
    assert check_points(None, None, (30, 40), has_box=True) is None
    np.testing.assert_array_equal(check_points([[1, 1]], [0], (30, 40), has_box=True)[1], [0])


@pytest.mark.parametrize("label", ["n" * 300, "я" * 130, "../../etc/x", "/etc/x", "a\0b", "a\\b"])
def test_objects_cannot_lead_out_of_the_folder(images: dict[str, Path], tmp_path: Path, label: str) -> None:
    """Row 53: object names become file names."""
    content = {"cat": [{"object": label, "box": [1, 2, 9, 9]}, {"object": "b", "box": [1, 2, 9, 9]}]}
    with pytest.raises(PromptError, match=r"must not contain|at most 251"):
        check_prompts(read_prompts(write_json(tmp_path / "p.json", content)), images)
