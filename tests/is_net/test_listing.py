"""Lists of pictures: JSON lines and Parquet, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from IS_Net.errors import DatasetError, MissingExtraError
from IS_Net.listing import read_listing

ROWS = [
    {"name": "a", "image": "im/a.jpg", "mask": "/far/a.png", "box": [1, 2, 3, 4], "gt": None, "taken": "1999"},
    {"id": "x/b", "image": "im/b.jpg", "object": 7, "points": [[1, 2]], "labels": [1]},
    {"image": "im/deep/c.jpg"},
]


def write(folder: Path, rows: list, extension: str) -> Path:
    path = folder / f"list.{extension}"
    if extension == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        pytest.importorskip("pyarrow")
        from pyarrow import Table, parquet

        keys = list(dict.fromkeys(key for row in rows for key in row))
        rows = [{**dict.fromkeys(keys), **row} for row in rows]
        parquet.write_table(Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_rows_are_read(tmp_path: Path, extension: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    first, second, third = read_listing(write(tmp_path, ROWS, extension))
    assert (first.name, first.image, first.mask) == ("a", tmp_path / "im" / "a.jpg", Path("/far/a.png"))
    assert first.prompt == {"box": [1, 2, 3, 4]} and first.gt is None and first.object is None
    assert (second.name, second.object) == ("x/b", "7") and second.prompt == {"points": [[1, 2]], "labels": [1]}
    assert third.name == "c" and third.prompt == {}
    assert first.where == f"{tmp_path / 'list'}.{extension}, {'line' if extension == 'jsonl' else 'row'} 1"
    assert "the columns taken have no meaning here" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: cannot be read as JSON"),
        ("[1]", r"line 2: expected an object with name and image, found \[1\]"),
        ('{"name": "b"}', "line 2: found no 'image'; expected image, gt"),
        ('{"image": "b.png"}', "line 2: found no 'gt'; expected image, gt"),
        ('{"image": 7, "gt": "b.png"}', "line 2: 'image': expected the path of a file, found 7"),
        ('{"image": "", "gt": "b.png"}', "line 2: 'image': expected the path of a file, found ''"),
        ('{"image": "b", "gt": "b", "name": "../b"}', r"line 2: 'name': becomes the name of the outputs .* '\.\./b'"),
        ('{"image": "b", "gt": "b", "name": "/b"}', "line 2: 'name': .* '/b'"),
        ('{"image": "b", "gt": "b", "name": ""}', "line 2: 'name': .* ''"),
        ('{"image": "b", "gt": "b", "name": "\\ud800"}', "line 2: 'name': becomes the name of the outputs"),
        ('{"image": "b", "gt": "\\ud800"}', "line 2: 'gt': expected the path of a file"),
        ('{"image": "b", "gt": "b", "name": ["b"]}', r"line 2: 'name': expected a text or a number, found \['b'\]"),
        ('{"image": "b", "gt": "b", "object": true}', "line 2: 'object': expected a text or a number, found True"),
        (f'{{"image": "b", "gt": "b", "name": "{"n" * 250}"}}', "line 2: 'name' and 'object' .* 250 bytes"),
        (f'{{"image": "{"é" * 116}.png", "gt": "b"}}', "line 2: 'name' and 'object' .* 232 bytes"),
        ('{"image": "b", "gt": "b", "object": "\\u0000"}', "line 2: 'object': becomes part of a file name"),
    ],
)
def test_faulty_rows_are_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "list.jsonl"
    path.write_text(f'{{"image": "a.png", "gt": "a.png"}}\n{line}\n')
    with pytest.raises(DatasetError, match=message) as error:
        read_listing(path, ["gt"])
    assert str(error.value).startswith(str(path))


def test_all_faulty_rows_are_counted(tmp_path: Path):
    (tmp_path / "list.jsonl").write_text("{\n" * 14)
    with pytest.raises(DatasetError, match=r"and 4 more faulty rows$"):
        read_listing(tmp_path / "list.jsonl")


def test_faulty_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DatasetError, match=r"list\.jsonl: the list of pictures does not exist"):
        read_listing(tmp_path / "list.jsonl")
    with pytest.raises(DatasetError, match=r"list\.csv: expected a list of pictures, \.jsonl or \.parquet"):
        read_listing(tmp_path / "list.csv")
    (tmp_path / "list.jsonl").write_bytes(b"\n")
    with pytest.raises(DatasetError, match="contains no rows"):
        read_listing(tmp_path / "list.jsonl")
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises((MissingExtraError, ModuleNotFoundError), match="pyarrow"):
        read_listing(tmp_path / "list.parquet")
    monkeypatch.undo()
    pytest.importorskip("pyarrow")
    with pytest.raises(DatasetError, match=r"list\.parquet: cannot be read as Parquet"):
        read_listing(tmp_path / "list.parquet")
