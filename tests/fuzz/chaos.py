"""Kill a training at every kind of write, resume it, and compare its end with that of a run that was never killed.

    python -m tests.fuzz.chaos --kills 200

A training of both phases runs in a child process with small networks. The child counts what it does to files: opening
one for writing, half of each write, synchronizing, renaming, removing. At the chosen one it kills itself with SIGKILL.
Then the same command runs again, with restore_model=last.pt if there is one.
"""

from __future__ import annotations

import argparse
import csv
import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from tqdm import tqdm

from IS_Net.checkpoint import load_state
from IS_Net.images import write_image, write_mask

TRAINING = (
    *("cache_size=128", "batch_size_train=2", "workers=0", "max_ite=4", "model_save_fre=2", "gt_encoder_max_ite=3"),
    *("ema=0.9", "copy_paste=0.5", "simulate_mask=1.0", "gt_encoder_stop_f=1.0", "device=cpu", "model_digit=full"),
)
FILES = ("best.safetensors", "gt_encoder.safetensors")


class _Events:
    """Lists what a process does to files, and kills it at the chosen one."""

    def __init__(self, kill_at: int) -> None:
        self.kinds: list[str] = []
        self.kill_at = kill_at

    @property
    def is_next(self) -> bool:
        """Whether the next event is the chosen one."""
        return len(self.kinds) + 1 == self.kill_at

    def happen(self, kind: str) -> None:
        if self.is_next:
            os.kill(os.getpid(), signal.SIGKILL)
        self.kinds.append(kind)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int):  # a pipe
                return
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (mode is None and flags & os.O_CREAT):
                self.happen(f"open {_kind(path)}")
        elif event in ("os.rename", "os.remove", "os.truncate", "os.mkdir"):
            self.happen(f"{event} {_kind(arguments[0])}")


def _kind(path: Any) -> str:
    """Return the name of a file without the part that differs from run to run."""
    name = Path(os.fsdecode(path)).name if path else ""
    return re.sub(r"\.[0-9a-f]*-[0-9-]*(?=\.part$)|[0-9]+", "", name)


class _CountedFile(io.RawIOBase):
    """A file whose writes are events; at the chosen one, only half of it is written."""

    def __init__(self, file: IO[bytes], events: _Events) -> None:
        super().__init__()
        self._file, self._events = file, events

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._events.is_next:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
        self._events.happen(f"write {_kind(self._file.name)}")
        return self._file.write(data)


def _use_thin_networks() -> None:
    from IS_Net import checkpoint, phases
    from tests.thin_networks import Thin, ThinGTEncoder

    for module in (checkpoint, phases):
        module.ISNetDIS, module.ISNetGTEncoder = Thin, ThinGTEncoder


def _count_events(events: _Events) -> None:
    from IS_Net import images

    original = images.atomic_file

    @contextmanager
    def counted(path: Any, mode: str = "wb") -> Iterator[IO]:
        with original(path, mode) as file:
            if "b" not in mode:  # small texts
                yield file
                return
            buffer = io.BufferedWriter(_CountedFile(file, events), 1 << 16)  # torch.save writes many small parts
            yield buffer
            buffer.flush()

    for module in list(sys.modules.values()):
        if getattr(module, "atomic_file", None) is original:
            module.atomic_file = counted
    synchronize = os.fsync

    def fsync(descriptor: int) -> None:
        events.happen("synchronize")
        synchronize(descriptor)

    os.fsync = fsync
    sys.addaudithook(events.audit)


def _train(arguments: Sequence[str], kill_at: int, record: Path) -> None:
    """Run a training in this process, to its end or to the event ``kill_at``; record the events."""
    from IS_Net.train_valid_inference_main import command_line

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = record.with_suffix(".txt").open("w", encoding="utf-8")
    _use_thin_networks()
    events = _Events(kill_at)
    _count_events(events)
    code = command_line(arguments)
    kinds = list(events.kinds)
    record.write_text("\n".join(kinds), encoding="utf-8")
    sys.stdout.flush()
    os._exit(code)


class Trainer:
    """Runs trainings in child processes.

    Args:
        folder: Of the data set and the runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        _draw(self.data)
        os.environ["DIS_SAM_HOME"] = str(folder / "home")  # of the caches
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["IS_Net.train_valid_inference_main", "tests.thin_networks", "torch"])

    def train(self, run: Path, kill_at: int = 0) -> tuple[int, list[str]]:
        """Start or resume a training; return its exit code, -9 if it was killed, and the kinds of its events."""
        state = run / "last.pt"
        sets = [f"train_datasets={self.data}", f"valid_datasets={self.data}", f"model_path={run}"]
        resume = [f"restore_model={state}"] if state.is_file() else []
        record = self.folder / "record"
        record.unlink(missing_ok=True)
        process = self._context.Process(target=_train, args=([*TRAINING, *sets, *resume], kill_at, record))
        process.start()
        process.join(300)  # far longer than a training takes, also on a busy machine
        if process.is_alive():
            process.kill()
            raise AssertionError(f"a training hangs: kill_at={kill_at}, {self.printed()}")
        if process.exitcode == -signal.SIGKILL:
            return process.exitcode, []
        assert record.is_file(), self.printed()
        return process.exitcode, record.read_text(encoding="utf-8").splitlines()

    def printed(self) -> str:
        """Return what the last training printed."""
        return (self.folder / "record.txt").read_text(encoding="utf-8")

    def whole_run(self) -> tuple[Path, list[str]]:
        """Train without a kill; return the folder and the kinds of its events."""
        run = self.folder / "whole"
        code, events = self.train(run)
        assert code == 0, self.printed()
        return run, events

    def killed_run(self, kills: Sequence[int], keep_caches: bool = True) -> Path:
        """Train into a new folder, kill it at each event in turn, resume it each time, and let it end."""
        run = self.folder / "killed"
        for folder in (run,) if keep_caches else (run, self.folder / "home"):
            shutil.rmtree(folder, ignore_errors=True)
        for kill_at in [*kills, 0]:
            code, _ = self.train(run, kill_at)
            assert code in (0, -signal.SIGKILL), f"killed at {kills}: {self.printed()}"
            if code == 0 and kill_at:  # a resumed run has fewer events than are left
                break
        return run


def _draw(folder: Path) -> None:
    """Draw a data set of three pictures."""
    rng = np.random.default_rng(0)
    for index in range(3):
        image = rng.integers(0, 255, (150, 130, 3), dtype=np.uint8)
        gt = np.zeros((150, 130), np.uint8)
        gt[30 + 9 * index : 100, 20:90] = 255
        image[gt > 0] //= 3
        write_image(folder / "im" / f"{index}.png", image)
        write_mask(folder / "gt" / f"{index}.png", gt)
        write_mask(folder / "mask" / f"{index}.png", np.roll(gt, 5, 0))


def differences(one: Path, other: Path) -> list[str]:
    """Return in what the ends of two runs differ, and what was left behind."""
    found = [name for name in FILES if (one / name).read_bytes() != (other / name).read_bytes()]
    states = [load_state(run / "last.pt") for run in (one, other)]
    for key in ("model", "ema_model", "optimizer", "progress"):
        found += [f"last.pt {key}{path}" for path in _unequal(*(state[key] for state in states))]
    rows = []
    for run in (one, other):
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows.append([{key: row[key] for key in row if key != "seconds"} for row in csv.DictReader(file)])
    found += ["metrics.csv"] * (rows[0] != rows[1])
    return found + [f"left behind: {path.name}" for path in other.rglob("*.part*")]


def _unequal(one: Any, other: Any, path: str = "") -> Iterator[str]:
    if isinstance(one, torch.Tensor):
        if not (isinstance(other, torch.Tensor) and torch.equal(one, other)):
            yield path
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _unequal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _unequal(*pair, f"{path}[{index}]")
    elif one != other and not (one != one and other != other):  # nan
        yield f"{path}: {one} and {other}"


def choose_kills(events: Sequence[str], number: int, seed: int) -> list[list[int]]:
    """Choose at which events runs are killed: every kind of event equally often, every third run three times."""
    rng, places = random.Random(seed), {}
    for index, kind in enumerate(events, start=1):
        places.setdefault(kind, []).append(index)
    kinds = rng.sample(sorted(places), len(places))
    chosen = [rng.choice(places[kinds[index % len(kinds)]]) for index in range(number)]
    runs = []
    while chosen:
        runs.append([chosen.pop() for _ in range(min(3 if len(runs) % 3 == 2 else 1, len(chosen)))])
    return runs


def main() -> int:
    """Run the kills and return the exit code: 1 if a resumed run ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder))
        whole, events = trainer.whole_run()
        print(f"{len(events)} events in a run, of {len(set(events))} kinds")
        failures = 0
        for kills in tqdm(choose_kills(events, args.kills, args.seed), unit="run"):
            try:
                found = differences(whole, trainer.killed_run(kills, keep_caches=len(kills) > 1))
            except AssertionError as error:
                found = [str(error)]
            if found:
                failures += 1
                print(f"killed at {kills} ({events[kills[0] - 1]}): {'; '.join(found[:3])}, {len(found)} differences")
    print(f"{args.kills} kills, {failures} runs with another end")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
