"""Parts of a run: shards, rows, and the folders of workers that end, are killed, or are still there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from IS_Net.errors import DatasetError, FolderInUseError
from IS_Net.lock import lock_folder
from IS_Net.shards import (
    PARTS,
    ROWS,
    Part,
    Shard,
    ShardError,
    merge_parts,
    open_part,
    read_rows,
    run_part,
    run_shard,
)


@dataclass
class Work:
    """Counts to a number; odd numbers fail."""

    out: Path
    count: int = 10
    what = "a test"
    left_out = ()
    finished: list[list[str]] = field(default_factory=list)

    def items(self) -> Sequence[int]:
        return range(self.count)

    def without_items(self) -> Work:
        return self

    def run(self, items: Sequence[int], part: Part) -> None:
        for item in items:
            if part.rows.get(str(item), {}).get("status") == "done":
                part.keep()
            else:
                part.add(str(item), "failed" if item % 2 else "done", 0.5, f"{item}: is odd" if item % 2 else None)

    def finish(self) -> None:
        self.finished.append(sorted(path.name for path in self.out.iterdir() if not path.name.endswith(".lock")))


# --- shards ---


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shards_hold_each_item_once(count: int):
    items = list(range(17))
    parts = [Shard(index, count).of(items) for index in range(count)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "a/b", "2/2", "-1/2", "0/0", "1.0/2", "0/1/2"])
def test_shards_that_do_not_exist(text: str):
    with pytest.raises(ShardError, match="expected a shard K/N"):
        Shard.parse(text)


def test_the_shard_of_a_launcher():
    slurm = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}
    assert str(Shard.from_environment(slurm)) == "3/4"
    assert str(Shard.from_environment({"RANK": "0", "WORLD_SIZE": "2", **slurm})) == "0/2"
    with pytest.raises(ShardError, match=r"found neither RANK .* torchrun or srun"):
        Shard.from_environment({"RANK": "0"})
    with pytest.raises(ShardError, match=r"^RANK, WORLD_SIZE: expected a shard K/N.* found 2/2"):
        Shard.from_environment({"RANK": "2", "WORLD_SIZE": "2"})


# --- rows ---


def test_rows_of_all_shards_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture):
    work = Work(tmp_path / "out")
    assert [run_shard([work], Shard(index, 3)) for index in range(3)] == [1, 1, 1]
    assert [path.name for path in work.out.iterdir()] == [ROWS]
    rows = [json.loads(line) for line in (work.out / ROWS).read_text().splitlines()]
    assert [row["id"] for row in rows] == sorted(map(str, range(10)))
    assert rows[0] == {"id": "0", "status": "done", "seconds": 0.5, "error": None}
    assert rows[1]["status"] == "failed" and rows[1]["error"] == "1: is odd"
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "shard 0/3: 2 done, 0 kept, 2 failed"
    assert "error: 3: is odd" in captured.err
    before = (work.out / ROWS).read_bytes()
    assert run_shard([work], Shard(0, 1)) == 1  # another number of shards; what failed is tried again
    assert capsys.readouterr().out == f"{work.out}: 0 done, 5 kept, 5 failed\n"
    assert (work.out / ROWS).read_bytes() == before


def test_incomplete_rows_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    out = tmp_path / "out"
    (out / PARTS / "1-of-2").mkdir(parents=True)
    row = json.dumps({"id": "0", "status": "done", "seconds": 1, "error": None})
    (out / ROWS).write_text(row.replace("0", "8", 1) + '\n{"id": "2", "sta')  # a merge was killed
    torn = ["[1]", "\0\0\0", '"text"', "{" * 100_000, row, '{"id": "4"']
    (out / PARTS / "1-of-2" / ROWS).write_text("\n".join(torn))  # a worker was killed
    work = Work(out)
    part = run_part(work, work.items(), "0-of-1")
    assert (part.counts["kept"], part.counts["done"], part.counts["failed"]) == (2, 3, 5)
    assert set(read_rows(out)) == set(map(str, range(10)))
    assert all(isinstance(json.loads(line), dict) for line in (out / ROWS).read_text().splitlines())
    assert f"{out / ROWS}, line 2: not a complete row" in caplog.text
    assert not (out / PARTS).exists()


@pytest.mark.parametrize("text", ["notes about rows\n", '{"name": "a"}\n{"id": 3}\n', "[1, 2]"])
def test_a_file_that_holds_no_rows_is_kept(text: str, tmp_path: Path):
    work = Work(tmp_path, 3)
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DatasetError, match=r"rows\.jsonl: holds no rows of a run; rename it"):
        run_part(work, work.items(), "0-of-1")
    assert (tmp_path / "rows.jsonl").read_text() == text


def test_a_merge_may_be_repeated(tmp_path: Path):
    work = Work(tmp_path / "out")
    run_part(work, [0, 1], "a")
    (work.out / PARTS / "a").mkdir(parents=True)
    (work.out / PARTS / "a" / ROWS).write_bytes((work.out / ROWS).read_bytes())  # killed before the file was removed
    before = (work.out / ROWS).read_bytes()
    run_part(work, [], "b")
    assert (work.out / ROWS).read_bytes() == before


# --- workers ---


def test_workers_at_the_same_time(tmp_path: Path):
    work = Work(tmp_path / "out")
    with open_part(work, "a") as first, open_part(work, "b") as second:
        first.add("0", "done", 1)
        second.add("1", "done", 1)
        with pytest.raises(FolderInUseError, match=r"a: is in use by a test, worker a \(process"), open_part(work, "a"):
            pass
        with pytest.raises(FolderInUseError, match="is in use by the workers a, b; wait"):
            merge_parts(work.out, "a run")
        assert work.finished == []
    assert len(work.finished) == 1 and set(read_rows(work.out)) == {"0", "1"}


def test_a_run_over_the_whole_folder_keeps_workers_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("IS_Net.shards.PATIENCE", 0.05)
    work = Work(tmp_path / "out")
    with (
        lock_folder(work.out, "a mask run"),
        pytest.raises(FolderInUseError, match="is in use by a mask run"),
        open_part(work, "a"),
    ):
        pass


def test_rows_are_kept_when_a_worker_fails(tmp_path: Path):
    work = Work(tmp_path / "out")
    with pytest.raises(RuntimeError, match="unexpected"), open_part(work, "a") as part:
        part.add("0", "done", 1)
        raise RuntimeError("unexpected")
    assert set(read_rows(work.out)) == {"0"}


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_rows_of_a_killed_worker_are_merged_by_the_next(tmp_path: Path):
    script = """
        import sys, time
        from pathlib import Path
        from types import SimpleNamespace
        from IS_Net.shards import open_part
        work = SimpleNamespace(out=Path(sys.argv[1]), what="a test", finish=lambda: None)
        with open_part(work, "0-of-2") as part:
            part.add("0", "done", 1)
            part.add("2", "done", 1)
            print("ready", flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    work = Work(tmp_path / "out")
    part = run_part(work, Shard(0, 2).of(work.items()), "0-of-2")
    assert (part.counts["kept"], part.counts["done"]) == (2, 3)
    assert not (work.out / PARTS).exists()
