"""Evaluations in shards: the figures of one process, rows that are believed or not, and tables from rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_sample

from IS_Net.evaluate import main
from IS_Net.images import write_image, write_mask
from IS_Net.shards import read_rows


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a split of five pictures with coarse masks, and beside it a folder of maps."""
    monkeypatch.chdir(tmp_path)
    for index in range(5):
        image, gt, mask = draw_sample(index, 60 + index, 80)
        soft = (0.6 * mask + 0.3 * gt + np.random.default_rng(index).uniform(0, 25, gt.shape)).astype(np.uint8)
        write_image(Path("split/im", f"{index}.jpg"), image)
        write_mask(Path("split/gt", f"{index}.png"), gt)
        write_mask(Path("split/mask", f"{index}.png"), mask)
        write_mask(Path("maps", f"{index}.png"), soft)
    return Path("split")


def run(*options: str) -> int:
    return main(["--gt", "split", "--pred", "maps", "--coarse", "--workers", "0", *options])


def content(name: str) -> dict:
    return json.loads(Path(name).read_text())


def test_shards_give_the_figures_of_one_process(split: Path, capsys: pytest.CaptureFixture):
    assert run("--json", "one.json", "--csv", "one.csv") == 0
    expected = capsys.readouterr().out
    for index in range(3):
        assert run("--rows", "rows", "--shard", f"{index}/3") == 0
    assert run("--rows", "rows", "--json", "two.json", "--csv", "two.csv") == 0
    printed = capsys.readouterr().out
    assert printed.endswith(expected.replace("one.", "two."))
    assert content("one.json") == content("two.json")
    assert Path("one.csv").read_bytes() == Path("two.csv").read_bytes()
    rows = read_rows("rows")
    assert set(rows) == {f"split/{index}" for index in range(5)}
    assert set(rows["split/0"]["measured"]) == {"coarse", "maps"}


def test_only_what_changed_is_measured_again(split: Path, monkeypatch: pytest.MonkeyPatch):
    assert run("--rows", "rows") == 0
    measured = []
    from IS_Net import scoring

    original = scoring._measure
    monkeypatch.setattr(scoring, "_measure", lambda w, job: measured.append(job.name) or original(w, job))
    assert run("--rows", "rows") == 0 and measured == []
    write_mask(Path("maps/2.png"), np.zeros((62, 80), np.uint8))
    assert run("--rows", "rows", "--json", "two.json") == 0 and measured == ["2"]
    assert run("--rows", "rows", "--limit", "2") == 0 and measured == ["2"]
    assert run("--rows", "rows", "--metrics", "iou") == 0 and len(measured) == 6
    assert run("--json", "one.json") == 0
    assert content("one.json") == content("two.json")


def test_failures_have_rows(split: Path, capsys: pytest.CaptureFixture):
    gt = Path("split/gt/1.png")
    damaged, whole = gt.read_bytes()[:-40], gt.read_bytes()
    gt.write_bytes(damaged)
    assert run("--rows", "rows", "--shard", "0/2") == 0
    assert run("--rows", "rows", "--shard", "1/2") == 1
    assert "split/gt/1.png" in capsys.readouterr().err
    assert run("--rows", "rows") == 1
    assert "1 files or folders cannot be scored" in capsys.readouterr().err
    assert read_rows("rows")["split/1"]["status"] == "failed"
    gt.write_bytes(whole)
    assert run("--rows", "rows") == 0


def test_a_list_of_pictures(split: Path, capsys: pytest.CaptureFixture):
    assert run("--json", "one.json") == 0
    rows = [{"name": str(n), "image": f"split/im/{n}.jpg", "gt": f"split/gt/{n}.png"} for n in range(5)]
    rows = [{**row, "mask": f"split/mask/{row['name']}.png", "box": [1, 2, 3, 4]} for row in rows]
    Path("split.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--pred", "maps", "--coarse", "--workers", "0", "--manifest", "split.jsonl"]
    assert main([*options, "--json", "two.json"]) == 0
    assert content("one.json") == content("two.json")
    assert main([*options, "--rows", "rows", "--shard", "0/2"]) == 0
    assert len(read_rows("rows")) == 3
    Path("split.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]) + "\n")
    assert main(options) == 2
    assert "split.jsonl, line 2: the name '0' is given twice" in capsys.readouterr().err
    Path("split.jsonl").write_text(json.dumps({**rows[0], "box": [1, 2, 10**400, 4]}) + "\n")
    assert main(options) == 2
    assert "split.jsonl, line 1: box: expected four finite numbers" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["0", "split"])  # the second one is the name of the list, too
def test_names_of_a_list_may_begin_with_folders(split: Path, first: str):
    assert run("--json", "one.json") == 0
    names = [f"{first if n % 2 else 1}/{n}" for n in range(5)]
    rows = [{"name": name, "image": f"split/im/{n}.jpg", "gt": f"split/gt/{n}.png"} for n, name in enumerate(names)]
    Path("split.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder in ("found", "several/split"):
        for row in rows:
            target = Path(folder, f"{row['name']}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path("maps", f"{target.name}").read_bytes())
        pred = folder.split("/")[0]
        options = ["--manifest", "split.jsonl", "--pred", f"maps={pred}", "--workers", "0", "--json", "two.json"]
        assert main(options) == 0
        one, two = (content(f"{name}.json")["results"] for name in ("one", "two"))
        (expected,) = (result["figures"] for result in one if result["method"] == "maps")
        assert two[0]["figures"] == pytest.approx(expected)


def test_rows_replace_nothing_and_are_not_replaced(split: Path, capsys: pytest.CaptureFixture):
    assert run("--rows", "rows") == 0
    path = Path("rows/rows.jsonl")
    before = path.read_bytes()
    assert run("--rows", "rows", "--csv", str(path)) == 2
    assert main(["--manifest", str(path), "--pred", "maps", "--rows", "rows"]) == 2
    assert capsys.readouterr().err.count("would replace the input") == 2 and path.read_bytes() == before


def test_contradictions_are_named(split: Path, capsys: pytest.CaptureFixture):
    for options, message in ((["--gt", "x"], "--shard: expected --rows"), ([], "expected --gt with data sets")):
        with pytest.raises(SystemExit):
            main([*options, "--pred", "maps", "--shard", "0/2"])
        assert message in capsys.readouterr().err
