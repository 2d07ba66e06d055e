"""``dis-sam evaluate`` of maps: pairing, messages, exit codes and outputs (test_evaluate_weights.py: predictions)."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import draw_sample

from IS_Net import datalist, evaluation, evaluation_outputs
from IS_Net.evaluate import main
from IS_Net.images import atomic_file, read_image, read_mask, write_image, write_mask
from IS_Net.metrics import Pair, iou
from IS_Net.metrics.suite import FAMILIES, FIGURES, Suite
from IS_Net.report import MAX_COLUMNS, MAX_WIDTH, SCREEN, Scores, text_table
from IS_Net.shards import Part

SIZES = ((60, 80), (97, 64), (45, 45))


@pytest.fixture
def make_split(tmp_path: Path):
    """Return a function that writes a split and folders of perfect and rough maps, and returns the split."""

    def make(name: str = "DIS-VD", names=("a", "b", "c"), sub: str = "") -> Path:
        split = tmp_path / name
        for index, (stem, size) in enumerate(zip(names, SIZES, strict=True)):
            image, gt, mask = draw_sample(index, *size)
            gt = (gt > 128).astype(np.uint8) * np.uint8(255)
            soft = (0.6 * mask + 0.3 * gt + np.random.default_rng(index).uniform(0, 25, size)).astype(np.uint8)
            write_image(split / "im" / f"{stem}.jpg", image)
            write_mask(split / "gt" / f"{stem}.png", gt)
            write_mask(split / "mask" / f"{stem}.png", mask)
            write_mask(tmp_path / "perfect" / sub / f"{stem}.png", gt)
            write_mask(tmp_path / "rough" / sub / f"{stem}.png", soft)
        return split

    return make


def run(*arguments: str | Path, workers: int = 0) -> int:
    return main([*map(str, arguments), "--workers", str(workers)])


def table(text: str) -> list[list[str]]:
    """Return the lines of the printed table, split at two or more spaces."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


# --- figures ---


def test_perfect_maps_get_perfect_figures(make_split, tmp_path, capsys):
    assert run("--gt", make_split(), "--pred", tmp_path / "perfect") == 0
    head, row = table(capsys.readouterr().out)
    assert head == ["data set", "max F (mean P, R)", "wF", "MAE", "Sm", "mIoU", "mBIoU"]
    assert row == ["DIS-VD", "1.0000", "1.0000", "0.0000", "1.0000", "1.0000", "1.0000"]


def test_a_folder_of_ground_truths_or_the_split_or_its_gt_are_the_same(make_split, tmp_path, capsys):
    split = make_split()
    plain = shutil.copytree(split / "gt", tmp_path / "plain" / "DIS-VD")
    output = []
    for where in (split, split / "gt", plain):
        assert run("--gt", where, "--pred", tmp_path / "rough") == 0
        output.append(capsys.readouterr().out)
    assert output[0] == output[1] == output[2]


def test_several_methods_on_several_data_sets(make_split, tmp_path, capsys):
    one, two = make_split("one", sub="one"), make_split("two", names=("x", "y", "z"), sub="two")
    files = [tmp_path / "out" / name for name in ("r.csv", "r.json")]
    arguments = ["--gt", one, two, "--pred", tmp_path / "perfect", f"mine={tmp_path / 'rough'}", "--coarse"]
    assert run(*arguments, "--csv", files[0], "--json", files[1]) == 0
    output = table(capsys.readouterr().out)
    assert output[0] == ["data set", "method", "max F (mean P, R)", "MAE", "Sm", "mIoU", "mBIoU"]
    assert [row[:2] for row in output[1:-2]] == [
        [data_set, method] for data_set in ("one", "two", "mean") for method in ("coarse", "perfect", "mine")
    ]
    content = json.loads(files[1].read_text())
    results = {(result["data_set"], result["method"]): result for result in content["results"]}
    assert len(results) == 6
    for (data_set, method), result in results.items():
        folder = {"coarse": tmp_path / data_set / "mask", "perfect": tmp_path / "perfect" / data_set}
        folder = folder.get(method, tmp_path / "rough" / data_set)
        suite = Suite()
        for gt in sorted((tmp_path / data_set / "gt").iterdir()):
            alone = Suite()
            for metric in (suite, alone):
                metric.update(read_mask(folder / gt.name), read_mask(gt))
            assert result["images"][gt.stem] == alone.compute()
        assert result["figures"] == suite.compute()
        assert result["curves"] == {key: curve.tolist() for key, curve in suite.curves().items()}
    for method, figures in content["mean"].items():
        own = [result["figures"] for (_, other), result in results.items() if other == method]
        assert figures == pytest.approx({key: (own[0][key] + own[1][key]) / 2 for key in figures}, abs=1e-15)
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["method", "data_set", "name", *FIGURES]
    assert len(rows) == 18
    for row in rows:
        figures = results[row["data_set"], row["method"]]["images"][row["name"]]
        assert {key: float(row[key]) for key in FIGURES} == figures


def test_results_are_the_same_to_the_last_byte_however_they_come_about(make_split, tmp_path, gt_cache):
    split, contents = make_split(), set()
    for number, (workers, more) in enumerate([(0, ["--no-cache"]), (1, []), (2, []), (0, []), (2, ["--no-cache"])]):
        names = [str(tmp_path / f"{number}.{kind}") for kind in ("csv", "json", "html")]
        outputs = ["--csv", names[0], "--json", names[1], "--html", names[2]]
        assert run("--gt", split, "--pred", tmp_path / "rough", *outputs, *more, workers=workers) == 0
        contents.add(tuple(Path(name).read_bytes() for name in names))
    assert len(contents) == 1
    assert list(gt_cache.glob("*.npz"))


def test_chosen_metrics(make_split, tmp_path, capsys):
    split = make_split()
    assert run("--gt", split, "--pred", tmp_path / "rough", "--metrics", "mae,f", "--json", tmp_path / "r.json") == 0
    of = ("mean curve", "mean P, R")
    f_figures = [f"{kind} F ({definition})" for kind in ("max", "mean", "adaptive") for definition in of]
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= MAX_WIDTH
    headings = [row[1:] for row in table("\n".join(lines)) if row and row[0] == "data set"]
    assert len(headings) > 1 and [heading for row in headings for heading in row] == [*f_figures, "MAE"]
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert set(result["curves"]) == {"f", "precision", "recall"}
    assert "hce" not in result["figures"]


def test_a_data_set_has_its_name_from_datalist(make_split, tmp_path, monkeypatch, capsys):
    split = make_split("DIS-TE1", sub="my-TE1")
    monkeypatch.setattr(datalist, "sample_te1", datalist.split("my-TE1", str(split)))
    for name in ("sample_te1", split):  # the training script writes maps to a folder with the data set's name
        assert run("--gt", name, "--pred", tmp_path / "perfect") == 0
        assert table(capsys.readouterr().out)[1][0] == "my-TE1"
    (tmp_path / "rough" / "my-TE1").rename(tmp_path / "rough" / "DIS-TE1")
    assert run("--gt", split, "--pred", tmp_path / "rough") == 0


def test_entries_of_datalist_that_the_training_accepts(make_split, monkeypatch, capsys):
    split = make_split()
    monkeypatch.setattr(datalist, "dataset_other", {"name": "other", "im_dir": "nowhere"}, raising=False)
    entry = {"name": "mine", "im_dir": str(split / "im"), "gt_dir": str(split / "gt")}
    for masks, code in (({"mask_dir": str(split / "mask")}, 0), ({"mid_dir": ""}, 2), ({}, 2)):
        monkeypatch.setattr(datalist, "dataset_mine", entry | masks, raising=False)
        assert run("--gt", "dataset_mine", "--coarse") == code
        output = capsys.readouterr()
        if code:
            assert "mine has no coarse masks of the kind 'mask', found none" in output.err
        else:
            assert table(output.out)[1][0] == "mine"
    assert run("--gt", "dataset_other", "--coarse") == 2
    assert "dataset_other: the entry of datalist.py has no folder of ground truths" in capsys.readouterr().err


def test_a_method_has_the_name_that_it_is_given(make_split, tmp_path, capsys):
    split = make_split()
    (tmp_path / "perfect").rename(tmp_path / "x=1")
    assert run("--gt", split, "--pred", tmp_path / "x=1", f"y={tmp_path / 'x=1'}", f"{tmp_path / 'rough'}/") == 0
    assert [row[1] for row in table(capsys.readouterr().out)[1:]] == ["x=1", "y", "rough"]


def test_a_folder_of_splits_stands_for_all_of_them(make_split, tmp_path, capsys):
    for name in ("one", "two"):
        shutil.move(make_split(name), tmp_path / "sets" / name)
    (tmp_path / "sets" / "notes").mkdir()
    assert run("--gt", tmp_path / "sets", "--coarse") == 0
    assert [row[0] for row in table(capsys.readouterr().out)[1:]] == ["one", "two", "mean"]


def test_kinds_of_coarse_masks_are_methods(make_split, tmp_path, capsys):
    split = make_split()
    shutil.copytree(tmp_path / "rough", split / "sam")
    assert run("--gt", split, "--coarse", "sam", "mask", "--json", tmp_path / "kinds.json") == 0
    assert [row[1] for row in table(capsys.readouterr().out)[1:-1]] == ["sam", "mask"]
    arguments = ["--pred", tmp_path / "rough", "--coarse", "--json", tmp_path / "maps.json"]
    assert run("--gt", split, *arguments) == 0
    kinds, maps = (json.loads((tmp_path / f"{name}.json").read_text())["results"] for name in ("kinds", "maps"))
    assert [kinds[0]["figures"], kinds[1]["figures"]] == [maps[1]["figures"], maps[0]["figures"]]


def test_the_first_images_alone(make_split, tmp_path, caplog):
    split = make_split()
    (tmp_path / "rough" / "c.png").unlink()  # beyond the limit
    assert run("--gt", split, "--pred", tmp_path / "rough", "--limit", "2", "--csv", tmp_path / "r.csv") == 0
    assert [line.split(",")[2] for line in (tmp_path / "r.csv").read_text().splitlines()[1:]] == ["a", "b"]
    assert "no ground truth" not in caplog.text


# --- the table on screen ---


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("methods", [1, 3])
@pytest.mark.parametrize("length", [1, 20, 90])
def test_tables_have_at_most_7_columns_and_100_characters(every: bool, methods: int, length: int):
    results = []
    _, gt, mask = draw_sample(0, 60, 80)
    for data_set in ("d" * length, "e" * length):
        for number in range(methods):
            scores = Scores(data_set, f"{number}" + "m" * length, "all")
            scores.add("a", scores.suite.measure(Pair(mask, gt)))
            results.append(scores)
    tables = text_table(results, every).split("\n\n")
    keys = [heading for text in tables for heading in table(text)[0][1 + (methods > 1) :]]
    assert keys == [FIGURES[key].heading for key in FIGURES if every or key in SCREEN[: 7 - 1 - (methods > 1)]]
    for text in tables:
        rows = table(text)
        assert len(rows) == 1 + 3 * methods and {len(row) for row in rows} == {len(rows[0])}
        assert len(rows[0]) <= MAX_COLUMNS == 7
        assert max(map(len, text.splitlines())) <= MAX_WIDTH == 100
        assert rows[-1][0] == "mean"
        if length == 1 or (length == 90 and methods > 1):
            assert ("..." in text) == (length == 90)


# --- errors ---


def test_missing_missized_and_undecodable_maps_are_all_named(make_split, tmp_path, capsys):
    one, two = make_split("one", sub="one"), make_split("two", sub="two")
    rough, perfect = tmp_path / "rough", tmp_path / "perfect"
    (rough / "one" / "a.png").unlink()
    write_mask(rough / "one" / "b.png", np.zeros((7, 9), np.uint8))
    (rough / "two" / "c.png").write_bytes(b"no image")
    (perfect / "two" / "b.png").unlink()
    out = tmp_path / "r.csv"
    assert run("--gt", one, two, "--pred", rough, perfect, "--csv", out) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: 4 files or folders cannot be scored:") and "Traceback" not in output
    assert "one, rough: there is no map of a" in output
    assert (
        f"{rough / 'one' / 'b.png'} is 9 x 7 pixels, but its ground truth" in output and "is 64 x 97 pixels" in output
    )
    assert f"{rough / 'two' / 'c.png'}: cannot be read as an image" in output
    assert "two, perfect: there is no map of b" in output
    assert not out.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_break_off_are_all_named(make_split, tmp_path, capsys, workers):
    """Their headers are whole; the damage is found during scoring."""
    split = make_split()
    broken = [tmp_path / "rough" / "a.png", tmp_path / "rough" / "c.png", split / "gt" / "b.png"]
    for path in broken:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    assert run("--gt", split, "--pred", tmp_path / "rough", "--json", tmp_path / "r.json", workers=workers) == 1
    output = capsys.readouterr().err
    assert "error: 3 files or folders cannot be scored:" in output
    assert all(str(path) in output for path in broken)
    assert not (tmp_path / "r.json").exists()


def test_maps_without_a_ground_truth_are_named_and_left_out(make_split, tmp_path, capsys, caplog):
    split = make_split()
    for name in ("extra one", "extra_2"):
        write_mask(tmp_path / "perfect" / f"{name}.png", np.zeros((5, 5), np.uint8))
    (tmp_path / "perfect" / "notes.txt").write_text("no map")
    assert run("--gt", split, "--pred", tmp_path / "perfect", "--csv", tmp_path / "r.csv") == 0
    assert "2 maps have no ground truth" in caplog.text and "notes" not in caplog.text
    assert "extra one.png" in caplog.text and "extra_2.png" in caplog.text
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gt", "gone", "--pred", "rough"], "gone: the folder does not exist"),
        (["--gt", "DIS-VD", "--pred", "gone"], "gone: the folder does not exist; expected a folder of maps"),
        (["--gt", "DIS-VD", "--pred", "empty"], "empty: found no image"),
        (["--gt", "DIS-VD", "other", "--pred", "rough"], "found no folder DIS-VD in it"),
        (["--gt", "DIS-VD", "DIS-VD/gt", "--pred", "rough"], "two data sets have the same name: DIS-VD, DIS-VD"),
        (["--gt", "DIS-VD", "--pred", "rough", "./rough"], "two methods are named 'rough'"),
        (["--gt", "DIS-VD", "--pred", "coarse=rough", "--coarse"], "'coarse' is the name of the data sets' own"),
        (["--gt", "DIS-VD", "--pred", "coarse=rough"], "'coarse' is the name of the data sets' own"),
        (["--gt", "DIS-VD", "--pred", "mask=rough", "--coarse", "mask"], "two methods are named 'mask'"),
        (["--gt", "DIS-VD", "--coarse", "sam"], "DIS-VD has no coarse masks of the kind 'sam', found mask;"),
        (["--gt", "DIS-VD", "--coarse", "perfect"], "--coarse perfect: is the ground truth"),
        (["--gt", "sets", "--coarse", "--masks", "DIS-VD/mask"], "sets: holds 2 splits; name each with --gt"),
        (["--gt", "DIS-VD", "--pred", "=rough"], "the method has no name; expected DIR or NAME=DIR"),
        (["--gt", "mean", "--pred", "rough"], "a data set is named 'mean'"),
        (["--gt", "DIS-VD", "--pred", "empty"], "and it has no folder DIS-VD"),
        (["--gt", "perfect", "--coarse"], "perfect has no coarse masks"),
    ],
)
def test_folders_that_do_not_fit_are_reported(make_split, tmp_path, monkeypatch, capsys, arguments, message):
    make_split()
    shutil.copytree(tmp_path / "DIS-VD", tmp_path / "other")
    shutil.copytree(tmp_path / "DIS-VD", tmp_path / "mean")
    for name in ("x", "y"):
        shutil.copytree(tmp_path / "DIS-VD", tmp_path / "sets" / name)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ") and message in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pred", "x"], "--gt"),
        (["--gt", "x"], "expected --pred"),
        (["--gt", "x", "--pred", "x", "--metrics", "wff"], "did you mean 'wf'"),
        (["--gt", "x", "--pred", "x", "--workers", "-1"], "--workers"),
        (
            ["--gt", "x", "y", "--pred", "x", "--images", "z"],
            "--images: expected a folder for each of --gt (2), found 1",
        ),
        (["--gt", "x", "--pred", "x", "--csv", "r", "--json", "r"], "expected a different file for each"),
        (["--gt", "x", "--pred", "x", "--html", "."], "not a folder"),
        (["--gt", "x", "--pred", "x", "--sheet", "r.gif"], "ends in .jpg or .png, found r.gif"),
        (["--gt", "x", "--pred", "x", "--sheet", "r.jpg", "--worst", "0"], "--worst of at least 1"),
        (["--gt", "x", "--pred", "x", "--limit", "0"], "expected an integer above 0, found '0'"),
        (["--gt", "x", "--pred", "x", "--device", "cpu"], "--device has no effect without --weights"),
        (["--gt", "x", "--coarse", "--precision", "full"], "--precision has no effect without --weights"),
    ],
)
def test_wrong_calls_are_reported(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_problems_of_all_folders_are_reported_at_once(make_split, tmp_path, capsys):
    one, two = make_split("one", sub="one"), make_split("two", sub="two")
    shutil.rmtree(tmp_path / "rough" / "one")
    for path in (tmp_path / "rough" / "two").iterdir():
        path.unlink()
    (tmp_path / "perfect" / "one" / "a.png").unlink()
    shutil.copy(tmp_path / "perfect" / "two" / "a.png", tmp_path / "perfect" / "two" / "a.bmp")
    shutil.rmtree(two / "mask")
    methods = [tmp_path / name for name in ("rough", "perfect", "lost")]
    assert run("--gt", one, two, tmp_path / "gone", "--pred", *methods, "--coarse") == 2
    output = capsys.readouterr().err
    assert "error: 7 files or folders" in output
    for problem in (
        f"{tmp_path / 'gone'}: the folder does not exist",
        f"{tmp_path / 'lost'}: the folder does not exist",
        f"{tmp_path / 'rough'}: found no folder one in it",
        f"{tmp_path / 'rough' / 'two'}: found no image",
        "one, perfect: there is no map of a",
        "found a.bmp and a.png",
        "two has no coarse masks",
    ):
        assert problem in output


def test_a_data_set_may_be_a_link(make_split, tmp_path, capsys):
    (tmp_path / "DIS-VD").symlink_to(make_split("disk-7", sub="DIS-VD"))
    for where in ("DIS-VD", "DIS-VD/gt"):
        assert run("--gt", tmp_path / where, "--pred", tmp_path / "rough") == 0
    (tmp_path / "rough" / "DIS-VD").rename(tmp_path / "rough" / "x")
    assert run("--gt", tmp_path / "DIS-VD", "--pred", tmp_path / "rough") == 2
    assert "and it has no folder disk-7 or DIS-VD" in capsys.readouterr().err


# --- outputs that cannot be written ---


def test_outputs_that_cannot_be_written_are_reported_before_scoring(make_split, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "score", None)
    (tmp_path / "file").write_text("in the way")
    outputs = ["--csv", tmp_path / "file" / "r.csv", "--json", tmp_path / "r.json", "--html", tmp_path / "file" / "r"]
    assert run("--gt", make_split(), "--pred", tmp_path / "rough", *outputs) == 2
    output = capsys.readouterr().err
    for option, path in (outputs[:2], outputs[4:]):
        assert f"{option} {path}: cannot be written (" in output
    assert "--json" not in output and not list(tmp_path.glob(".*"))


def test_one_output_that_cannot_be_written_leaves_the_others(make_split, tmp_path, monkeypatch, capsys):
    def full(path, *rest):
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        return atomic_file(path, *rest)

    monkeypatch.setattr("IS_Net.images.atomic_file", full)
    outputs = ["--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json", "--html", tmp_path / "r.html"]
    assert run("--gt", make_split(), "--pred", tmp_path / "rough", *outputs) == 1
    output = capsys.readouterr()
    assert output.err.splitlines()[-1] == (
        f"error: --json {tmp_path / 'r.json'}: cannot be written (No space left on device)"
    )
    lines = table(output.out)
    assert lines[1][0] == "DIS-VD" and lines[2:] == [[f"wrote {tmp_path / f'r.{kind}'}"] for kind in ("csv", "html")]
    assert (tmp_path / "r.csv").is_file() and (tmp_path / "r.html").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text on other systems")
def test_names_that_are_not_text_lose_nothing(make_split, tmp_path, capsys):
    odd = os.fsdecode(b"caf\xe9")
    split = make_split(odd, names=(odd, "b", "c"))
    outputs = [option for kind in ("csv", "json", "html") for option in (f"--{kind}", tmp_path / f"{odd}.{kind}")]
    method = f"{odd}={tmp_path / 'rough'}"
    assert run("--gt", split, "--pred", method, tmp_path / "perfect", *outputs, workers=1) == 0
    assert "caf\\udce9" in capsys.readouterr().out
    for path in outputs[1::2]:
        assert "caf\\udce9" in path.read_text(encoding="utf-8")


def test_the_help_explains_the_metrics(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} (" in output for name in FAMILIES)


# --- interruptions ---


@pytest.mark.parametrize("where", ["measuring", "rendering"])
def test_an_interrupted_run_writes_nothing(make_split, tmp_path, monkeypatch, capsys, where):
    def interrupted(*_):
        raise KeyboardInterrupt

    target = (Scores, "add") if where == "measuring" else (evaluation_outputs, "html_page")
    monkeypatch.setattr(*target, interrupted)
    split, out = make_split(), tmp_path / "out"
    outputs = ["--csv", out / "r.csv", "--json", out / "r.json", "--html", out / "r.html"]
    assert run("--gt", split, "--pred", tmp_path / "rough", *outputs) == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert not list(out.rglob("*"))


def test_an_interrupted_run_with_rows_says_that_it_resumes(make_split, tmp_path, monkeypatch, capsys):
    """It said that nothing was written."""
    real, calls = Part.add, []

    def add(*arguments, **values):
        if calls:
            raise KeyboardInterrupt
        calls.append(real(*arguments, **values))

    monkeypatch.setattr(Part, "add", add)
    assert run("--gt", make_split(), "--pred", tmp_path / "rough", "--rows", tmp_path / "rows") == 130
    assert "interrupted; what was measured is kept, and the same command resumes" in capsys.readouterr().err


def test_interrupted_writing_reports_what_was_written(make_split, tmp_path, monkeypatch, capsys):
    def interrupted(path, *rest):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        return atomic_file(path, *rest)

    monkeypatch.setattr("IS_Net.images.atomic_file", interrupted)
    split, out = make_split(), tmp_path / "out"
    outputs = ["--csv", out / "r.csv", "--json", out / "r.json", "--html", out / "r.html"]
    assert run("--gt", split, "--pred", tmp_path / "rough", *outputs) == 130
    assert f"interrupted; only {out / 'r.csv'} was written" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["r.csv"]


_STARTING, _SCORING = " 0/3003", " 3/3003"  # what the progress bar shows then


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "number", "to_all", "code", "word"),
    [
        pytest.param(_STARTING, signal.SIGINT, True, 130, "interrupted", id="Ctrl-C as workers start"),
        pytest.param(_SCORING, signal.SIGINT, True, 130, "interrupted", id="Ctrl-C as they score"),
        pytest.param(_STARTING, signal.SIGTERM, False, 143, "terminated", id="SIGTERM as workers start"),
        pytest.param(_SCORING, signal.SIGTERM, True, 143, "terminated", id="SIGTERM to the group as they score"),
    ],
)
def test_a_signal_ends_all_processes_quietly(make_split, tmp_path, when, number, to_all, code, word):
    """A terminal sends Ctrl-C to the main process and to its workers, a cluster SIGTERM."""
    split = make_split()
    gt, rough = split / "gt", tmp_path / "rough"
    for index in range(3000):
        (gt / f"n{index}.png").symlink_to(gt / "a.png")
        (rough / f"n{index}.png").symlink_to(rough / "a.png")
    arguments = ["--gt", gt, "--pred", rough, "--csv", tmp_path / "r.csv", "--workers", "2", "--no-cache"]
    every = {"TQDM_MININTERVAL": "0"}  # else some numbers would be skipped
    process = subprocess.Popen(
        [sys.executable, "-m", "IS_Net.evaluate", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=os.environ | every,
    )
    output = ""
    while when not in output:
        output += (letter := process.stderr.read(1))
        assert letter, output
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == code
    assert rest.rstrip().endswith(f"{word}; nothing was written") and "Traceback" not in rest
    assert not (tmp_path / "r.csv").exists() and not list(tmp_path.glob(".*"))


# --- the report ---


class Page(HTMLParser):
    """The parts of a page that are tested here; checks that every element is closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)


def decoded(uri: str) -> np.ndarray:
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(content, validate=True), np.uint8), cv2.IMREAD_COLOR)


ODD = ("with space", "a&b <i>c", "quo\"te's")


def test_the_report_stands_alone_and_holds_everything(make_split, tmp_path):
    split = make_split("set <1> & more", names=ODD)
    arguments = ["--gt", split, "--pred", f"<b>mine</b>={tmp_path / 'rough'}", tmp_path / "perfect"]
    assert run(*arguments, "--html", tmp_path / "r.html", "--worst", "2") == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "http" not in text and "<script" not in text and "url(" not in text and "@import" not in text
    page = Page(text)
    assert all("src" not in attributes or attributes["src"].startswith("data:") for _, attributes in page.tags)
    assert not [tag for tag, attributes in page.tags if "href" in attributes or tag == "link"]

    assert {"set <1> & more", "<b>mine</b>", "perfect"} <= set(page.texts)
    assert [tag for tag, _ in page.tags].count("table") == 2  # the published figures and the others
    assert [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"] == [
        *("precision over recall", "F over threshold (mean curve)", "E over threshold")
    ]
    lines = [attributes["points"] for tag, attributes in page.tags if tag == "polyline"]
    assert len(lines) == 6 and all(len(line.split()) == 256 for line in lines)
    numbers = np.array([[pair.split(",") for pair in line.split()] for line in lines], float)
    assert numbers.min() >= 0 and numbers.max() <= 345

    # the worst two of each method by IoU: image, ground truth, coarse mask, map
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 16
    assert [image["alt"].split(" of ")[0] for image in images[:4]] == [
        *("image", "ground truth", "coarse mask", "<b>mine</b>")
    ]
    pictures = [decoded(image["src"]) for image in images]
    sizes = {name: size for name, size in zip(ODD, SIZES, strict=True)}
    for image, picture in zip(images, pictures, strict=True):
        assert picture.shape[:2] == sizes[image["alt"].split(" of ")[1]]
    files = {name: [folder / f"{name}.png" for folder in (tmp_path / "rough", split / "gt")] for name in ODD}
    values = {name: iou(*map(read_mask, paths)) for name, paths in files.items()}
    worst = sorted(ODD, key=values.get)[:2]
    assert [image["alt"].split(" of ")[1] for image in images[:8:4]] == worst
    assert any(f"IoU {values[worst[0]]:.4f}" in text for text in page.texts)


def test_a_report_without_pictures(make_split, tmp_path):
    arguments = ["--gt", make_split(), "--pred", f"a={tmp_path / 'rough'}", "--worst", "0"]
    assert run(*arguments, "--html", tmp_path / "r.html") == 0
    assert not {"img", "h3"} & {tag for tag, _ in Page((tmp_path / "r.html").read_text()).tags}


def test_large_pictures_are_shown_small(tmp_path):
    gt = np.zeros((600, 900), np.uint8)
    gt[100:400, 200:700] = 255
    write_mask(tmp_path / "gt" / "a.png", gt)
    write_mask(tmp_path / "maps" / "a.png", gt)
    assert run("--gt", tmp_path / "gt", "--pred", tmp_path / "maps", "--html", tmp_path / "r.html") == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    shapes = [decoded(attributes["src"]).shape for tag, attributes in page.tags if tag == "img"]
    assert shapes == [(160, 240, 3)] * 2  # without images and coarse masks


def test_images_and_masks_may_be_elsewhere_or_damaged(make_split, tmp_path, caplog):
    split = make_split()
    gt = shutil.copytree(split / "gt", tmp_path / "plain")
    (split / "im" / "a.jpg").write_bytes(b"no image")
    beside = ["--images", split / "im", "--masks", split / "mask"]
    assert run("--gt", gt, "--pred", tmp_path / "rough", *beside, "--html", tmp_path / "r.html") == 0
    images = [attributes for tag, attributes in Page((tmp_path / "r.html").read_text()).tags if tag == "img"]
    assert len(images) == 11
    assert "left out of the report" in caplog.text and "a.jpg" in caplog.text


def test_the_report_of_metrics_without_curves(make_split, tmp_path):
    arguments = ["--gt", make_split(), "--pred", tmp_path / "rough", "--metrics", "mae"]
    assert run(*arguments, "--html", tmp_path / "r.html") == 0
    page = Page((tmp_path / "r.html").read_text())
    assert not [tag for tag, _ in page.tags if tag == "svg"]
    assert any("with the highest MAE" in text for text in page.texts)


# --- the contact sheet ---


def test_the_sheet_shows_the_worst_results(make_split, tmp_path):
    split = make_split()
    write_mask(tmp_path / "perfect" / "b.png", np.zeros(SIZES[1], np.uint8))
    arguments = ["--gt", split, "--pred", tmp_path / "rough", tmp_path / "perfect", "--coarse"]
    assert run(*arguments, "--sheet", tmp_path / "all.jpg", "--worst", "20") == 0
    assert run(*arguments, "--sheet", tmp_path / "r.png", "--worst", "1") == 0
    sheet = read_image(tmp_path / "r.png")
    assert read_image(tmp_path / "all.jpg").shape[0] > 8 * sheet.shape[0]  # 9 results
    height = sheet.shape[0] - 4 - 4 - 18  # below a caption of 18 pixels, gaps of 4
    width = round(SIZES[1][1] * height / SIZES[1][0])
    assert sheet.shape[1] == 4 + 4 * (width + 4)  # image, ground truth, coarse mask, map
    cells = [sheet[30:-8, 4 + k * (width + 4) :][:, :width] for k in range(4)]
    assert not cells[3].any() and all(cell.any() for cell in cells[:3])


# --- a light command ---


def test_the_help_needs_no_heavy_module():
    code = "import sys, IS_Net.evaluate; print(sorted({'torch', 'numpy', 'cv2', 'PIL', 'tqdm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reports_never_replace_inputs(make_split, tmp_path, capsys):
    """Row 1 of the list of faults, a neighbor: an output that is a ground truth or a map."""
    split = make_split()
    maps = sorted((tmp_path / "rough").rglob("*.png"))
    for key, path in (("--sheet", next((split / "gt").iterdir())), ("--json", maps[0])):
        before = path.read_bytes()
        assert run("--gt", split, "--pred", f"mine={tmp_path / 'rough'}", key, path) == 2
        assert f"{path}: the output would replace the input" in capsys.readouterr().err
        assert path.read_bytes() == before
