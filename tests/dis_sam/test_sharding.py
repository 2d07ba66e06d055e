"""Drivers: the same files from one process, several, those of a launcher, and actors of Ray; and what a kill leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel, write_photo
from processes import members, wait_for_end

from dis_sam import cli, sharding
from dis_sam.cut import plan_refine_work
from dis_sam.model_choice import ModelChoice
from IS_Net.errors import MissingExtraError
from IS_Net.images import write_mask
from IS_Net.shards import PARTS, read_rows

HERE = Path(__file__).parent
COUNT = 24
OPTIONS = ("--sam", "box", "--weights", "weights", "--as", "rgba,alpha", "--manifest", "list.jsonl")
posix = pytest.mark.skipif(os.name == "nt", reason="needs signals")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder with a list of photographs; processes that are started have a model that computes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelChoice, "load", lambda _: FakeModel())
    site = [str(HERE / "fake_site"), str(HERE), str(HERE.parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*site, os.environ.get("PYTHONPATH", "")]))
    Path("weights").write_bytes(b"weights")
    rows = []
    for index in range(COUNT):
        write_photo(Path(f"photos/{index}.png"), index, (30 + index % 5, 41))
        row = {"name": f"{index % 3}/{index}", "image": f"photos/{index}.png"}
        rows.append(row if index % 4 else {**row, "box": [1, 2, 20, 20 + index % 7]})
    Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def cut(*options: str) -> int:
    return cli.main(["cut", *OPTIONS, *options])


def start(*options: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dis_sam.cli", "cut", *OPTIONS, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True, **pipes)


def files(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.png")}


def statuses(folder: str) -> list[str]:
    return [row["status"] for row in read_rows(folder).values()]


def wait_for_files(folder: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(files(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_give_the_same_files_as_one(capfd: pytest.CaptureFixture):
    assert cut("-o", "one") == 0
    capfd.readouterr()
    assert cut("-o", "two", "--processes", "2") == 0
    captured = capfd.readouterr()
    assert sorted(captured.out.splitlines()) == [
        "shard 0/2: 12 done, 0 kept, 0 failed",
        "shard 1/2: 12 done, 0 kept, 0 failed",
    ]
    assert files("two") == files("one") and len(files("one")) == 2 * COUNT
    assert statuses("two") == ["done"] * COUNT and not Path("two", PARTS).exists()
    row = read_rows("two")["0/3"]
    assert row["error"] is None and row["seconds"] >= 0 and set(row["outputs"]) == {"0/3.alpha.png", "0/3.cutout.png"}


def test_what_planning_finds_is_told_once():
    rows = [json.loads(line) for line in Path("list.jsonl").read_text().splitlines()]
    Path("list.jsonl").write_text("".join(json.dumps({**row, "weather": "fine"}) + "\n" for row in rows[:4]))
    process = start("-o", "two", "--processes", "2")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors.count("weather") == 1


def test_a_launchers_processes_give_the_same_files(monkeypatch: pytest.MonkeyPatch):
    assert cut("-o", "one") == 0
    slurm = [start("-o", "two", "--driver", "env", SLURM_PROCID=str(rank), SLURM_NTASKS="2") for rank in range(2)]
    assert [process.wait(60) for process in slurm] == [0, 0]
    assert files("two") == files("one")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert cut("-o", "three", "--driver", "env") == 0
    assert files("three") == files("one") and statuses("three") == ["done"] * COUNT
    for process in slurm:
        process.communicate()


def test_options_may_end_before_the_photographs(capfd: pytest.CaptureFixture):
    assert cli.main(["cut", "--weights", "weights", "-o", "two", "--processes", "2", "--", "photos"]) == 0
    assert len(files("two")) == COUNT and "warning" not in capfd.readouterr().err


def test_photographs_without_a_mask_are_named_by_each_driver(capsys: pytest.CaptureFixture):
    Path("masks").mkdir()
    write_mask("masks/3.png", np.full((33, 41), 255, np.uint8))
    arguments = ["photos", "-m", "masks", "-o", "refined", "--weights", "weights"]
    [work] = plan_refine_work(arguments)
    assert len(work.items()) == 1 and len(work.left_out) == COUNT - 1
    assert cli.main(["refine", *arguments, "--shard", "0/2"]) == 1
    assert capsys.readouterr().err.count("error: ") == COUNT - 1
    assert cli.main(["refine", *arguments, "--shard", "1/2"]) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the processes")
def test_a_killed_worker_loses_nothing():
    assert cut("-o", "one") == 0
    process = start("-o", "two", "--processes", "2")
    wait_for_files("two", 4)
    os.kill(next(worker for worker in members(process.pid) if worker != process.pid), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "/2 was ended by SIGKILL; all files written so far are complete" in errors
    before = files("two")
    assert before.items() <= files("one").items() and 12 * 2 <= len(before) < 24 * 2
    times = {path: path.stat().st_mtime_ns for path in Path("two").rglob("*.png")}
    assert cut("-o", "two", "--shard", "0/1") == 0  # another number of shards
    assert files("two") == files("one")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert set(statuses("two")) <= {"done", "kept"} and len(statuses("two")) == COUNT
    assert not Path("two", PARTS).exists() and not list(Path("two").rglob("*.part"))


def test_a_second_start_reads_no_photograph(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert cut("-o", "out", "--shard", "0/1") == 0
    monkeypatch.setattr("dis_sam.batch._read", lambda _: pytest.fail("read"))
    assert cut("-o", "out", "--shard", "0/1") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"out: 0 done, {COUNT} kept, 0 failed"
    monkeypatch.undo()


def test_a_second_start_does_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def counts() -> str:
        assert cut("-o", "out", "--shard", "0/1") == 0
        return capsys.readouterr().out.splitlines()[-1]

    counts()
    Path("out/0/0.alpha.png").unlink()
    write_photo(Path("photos/1.png"), 99)
    os.utime("photos/2.png", (1, 1))  # the content is the same
    assert counts() == f"out: 2 done, {COUNT - 2} kept, 0 failed"
    assert read_rows("out")["2/2"]["status"] == "kept"
    assert counts() == f"out: 0 done, {COUNT} kept, 0 failed"
    Path("weights").write_bytes(b"other weights")
    assert counts() == f"out: {COUNT} done, 0 kept, 0 failed"
    with Path("list.jsonl").open("a") as file:
        file.write('{"name": "new", "image": "photos/0.png"}\n')
    assert counts() == f"out: 1 done, {COUNT} kept, 0 failed"


def test_rows_name_doubtful_results_until_they_are_made_again(monkeypatch: pytest.MonkeyPatch):
    model = FakeModel(score=0.5)
    monkeypatch.setattr(ModelChoice, "load", lambda _: model)
    assert cut("-o", "out", "--shard", "0/1") == 0
    assert read_rows("out")["0/0"]["doubtful"] == ["0/0 (score 0.50)"]
    os.utime("photos/0.png", (1, 1))  # the row is not believed, but the outputs are up to date
    assert cut("-o", "out", "--shard", "0/1") == 0
    row = read_rows("out")["0/0"]
    assert (row["status"], row["doubtful"]) == ("kept", ["0/0 (score 0.50)"])
    model.score = 0.9
    write_photo(Path("photos/0.png"), 99)
    assert cut("-o", "out", "--shard", "0/1") == 0
    assert "doubtful" not in read_rows("out")["0/0"] and "doubtful" in read_rows("out")["1/1"]


def test_failures_have_rows(capsys: pytest.CaptureFixture):
    Path("photos/3.png").write_bytes(b"no image")
    Path("photos/4.png").unlink()
    for _ in range(2):  # tried again
        assert cut("-o", "out", "--shard", "0/1") == 1
        captured = capsys.readouterr()
        assert captured.out.splitlines()[-1].endswith("2 failed") and captured.err.count("error: ") == 2
    rows = read_rows("out")
    assert rows["0/3"]["status"] == rows["1/4"]["status"] == "failed" and rows["0/3"]["outputs"] == {}
    assert rows["0/3"]["error"].startswith(str(Path("photos/3.png").absolute()))
    write_photo(Path("photos/3.png"))
    write_photo(Path("photos/4.png"))
    assert cut("-o", "out", "--shard", "0/1") == 0


def test_files_of_others_are_not_replaced(capsys: pytest.CaptureFixture):
    Path("out/1").mkdir(parents=True)
    Path("out/1/1.alpha.png").write_bytes(b"precious")
    assert cut("-o", "out", "--shard", "0/2") == 0
    assert cut("-o", "out", "--shard", "1/2") == 2
    assert "did not write: out/1/1.alpha.png" in capsys.readouterr().err
    assert Path("out/1/1.alpha.png").read_bytes() == b"precious"


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_their_parent(number: int):
    process = start("-o", "out", "--processes", "2")
    wait_for_files("out", 4)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    wait_for_end(process.pid)
    assert cut("-o", "out", "--shard", "0/1") == 0
    assert len(files("out")) == 2 * COUNT and len(statuses("out")) == COUNT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "0", "-o", "out"], "expected an integer above 0, found '0'"),
        (["--shard", "2/2", "-o", "out"], "expected a shard K/N with K from 0 to N - 1, found 2/2"),
        (["--shard", "0/2", "--processes", "2", "-o", "out"], "either --shard, or --processes and --driver"),
        (["--driver", "env", "-o", "out"], "found neither RANK and WORLD_SIZE"),
        (["--driver", "env", "--processes", "2", "-o", "out"], "torchrun or srun starts the processes"),
        (["--driver", "local", "-o", "out"], "--driver local: expected --processes N"),
        (["--process", "2", "-o", "out"], "--processes and --driver, written in full"),
        (["--processes", "2"], "--shard and --processes: expected -o, a folder"),
        (["--processes", "2", "-o", "out.png"], "--shard and --processes: expected -o, a folder"),
        (["--processes", "2", "-o", "out", "--weights", "none"], "none: the file of the weights does not exist"),
        (["--processes", "2", "-o", "out", "--box", "1,2,3,4"], "--box has no effect on --manifest"),
    ],
)
def test_wrong_options_are_named_once(
    options: list[str], message: str, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert cut(*options) == 2
    assert capfd.readouterr().err.count(message) == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a.png"}, {"image": "b/a.png"}], "line 2: the name 'a' is that of another image"),
        ([{"image": "a.png"}, {"image": "a.png"}], "line 1: 'object': 'a' has 2 rows; name the object of each"),
        (
            [{"image": "a.png", "object": 1}, {"image": "a.png", "object": 1}],
            "line 2: the object '1' of 'a' is given twice",
        ),
        ([{"image": "a.png", "box": [1, 2, 3]}], "line 1: box: expected four numbers"),
        ([{"image": "a.png", "points": [[1, 2]]}], "line 1: found points without labels"),
    ],
)
def test_lists_that_say_two_things(rows: list[dict], message: str, capsys: pytest.CaptureFixture):
    Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cut("-o", "out") == 2
    assert message in capsys.readouterr().err


def test_rows_do_not_replace_a_list(capsys: pytest.CaptureFixture):
    Path("out").mkdir()
    text = json.dumps({"id": "0", "image": "../photos/0.png"}) + "\n"
    Path("out/rows.jsonl").write_text(text)
    assert cut("--manifest", "out/rows.jsonl", "-o", "out", "--shard", "0/1") == 2
    assert "out/rows.jsonl: the output would replace the input" in capsys.readouterr().err
    assert Path("out/rows.jsonl").read_text() == text
    Path("out/list.jsonl").write_text(text)
    assert cut("--manifest", "out/list.jsonl", "-o", "out", "--shard", "0/1") == 0  # a line that is no row is ignored
    assert statuses("out") == ["done"]


def test_refine_takes_the_masks_of_a_list(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    model = FakeModel()
    monkeypatch.setattr(ModelChoice, "load", lambda _: model)
    write_mask(Path("mask.png"), np.full((30, 41), 255, np.uint8))
    rows = [{"image": "photos/0.png", "mask": "mask.png", "object": x, "box": [1, 2, 9, 9 + x]} for x in (1, 2)]
    Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["refine", *OPTIONS, "-o", "out"]) == 0
    assert set(files("out")) == {f"0_{x}.{kind}.png" for x in (1, 2) for kind in ("alpha", "cutout")}
    assert [call["box"] for call in model.calls] == [(1, 2, 9, 10), (1, 2, 9, 11)]
    assert all(call["mask"] is not None for call in model.calls)
    Path("list.jsonl").write_text('{"image": "photos/0.png"}\n')
    assert cli.main(["refine", *OPTIONS, "-o", "out"]) == 2
    assert "list.jsonl, line 1: found no 'mask'; expected image, mask" in capsys.readouterr().err


# --- Ray ---


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def missing(module: str, extra: str):
        raise MissingExtraError(f"no {module}: pip install 'dis-sam[{extra}]'")

    monkeypatch.setattr(sharding, "import_extra", missing)
    assert cut("-o", "out", "--driver", "ray") == 2
    assert "pip install 'dis-sam[ray]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the package ray")
def test_ray_gives_the_same_files(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cut("-o", "one") == 0
    Path("photos/3.png").write_bytes(b"no image")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        capfd.readouterr()
        assert cut("-o", "two", "--driver", "ray", "--processes", "2") == 1
        captured = capfd.readouterr()
        assert f"2 actors: {COUNT - 1} done, 0 kept, 1 failed" in captured.out and "photos/3.png" in captured.err
        found, expected = files("two"), files("one")
        assert found == {name: data for name, data in expected.items() if "0/3." not in name}
        write_photo(Path("photos/3.png"), 3, (33, 41))
        assert cut("-o", "two", "--driver", "ray") == 0
        assert f"1 actor: 1 done, {COUNT - 1} kept, 0 failed" in capfd.readouterr().out
    finally:
        ray.shutdown()
    assert files("two") == expected and statuses("two") == ["done"] * COUNT
    assert not Path("two", PARTS).exists()
