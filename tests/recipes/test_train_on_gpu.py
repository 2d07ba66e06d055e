"""train_on_gpu: what is packed, the training's arguments, the time limit, resuming, and the parts of the weights."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from IS_Net.checkpoint import load_isnet, save_state
from IS_Net.command_line import run_command
from IS_Net.errors import DatasetError
from IS_Net.hypar import Settings, parse_assignments
from IS_Net.images import read_image, read_mask, write_image, write_mask
from recipes.starter import train_on_gpu as module
from recipes.starter.train_on_gpu import (
    PackError,
    PartsError,
    join_parts,
    main,
    pack,
    publish,
    split_file,
    train,
    training_arguments,
)
from tests.processes import end_by


def write_pairs(folder: Path, number: int, size: tuple[int, int] = (300, 400), masks: bool = False) -> Path:
    rng = np.random.default_rng(0)
    for index in range(number):
        gt = np.zeros(size, np.uint8)
        gt[40:200, 50 + index : 300] = 255
        write_image(folder / "im" / f"p{index}.png", rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        write_mask(folder / "gt" / f"p{index}.png", gt)
        if masks:
            write_mask(folder / "sim" / f"p{index}.png", gt)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    photos = tmp_path / "photos"
    for index in range(6):
        write_image(
            photos / f"{index}.png", np.random.default_rng(index).integers(0, 255, (200, 260, 3), dtype=np.uint8)
        )
    return {
        "many": write_pairs(tmp_path / "many", 8),
        "few": write_pairs(tmp_path / "few", 2),
        "valid": write_pairs(tmp_path / "valid", 2, masks=True),
        "photos": photos,
    }


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- pack ---


def test_all_sources_are_packed_at_the_size_that_is_used(sources: dict[str, Path], tmp_path: Path):
    out = tmp_path / "packed"
    found = pack([sources["many"], sources["few"]], sources["photos"], [sources["valid"]], out, 200, 10**8)
    assert found == {"pairs/many": 8, "pairs/few": 2, "photos": 6, "valid/valid": 2}
    assert read_image(out / "pairs/many/im/p3.jpg").shape == (150, 200, 3)
    gt = read_mask(out / "pairs/many/gt/p3.png")
    assert gt.shape == (150, 200)
    original = read_mask(sources["many"] / "gt/p3.png")
    assert abs(gt.mean() - original.mean()) < 0.5
    assert (out / "valid/valid/sim/p1.png").is_file() and not (out / "pairs/many/sim").exists()
    assert len(list((out / "photos/im").iterdir())) == 6
    larger = tmp_path / "larger"
    pack([sources["few"]], sources["photos"], [sources["valid"]], larger, 5000, 10**8)
    assert read_image(larger / "pairs/few/im/p0.jpg").shape == (300, 400, 3), "pictures are not enlarged"


def test_packing_stops_at_the_limit_and_takes_from_every_folder(sources: dict[str, Path], tmp_path: Path):
    arguments = [sources["many"], sources["few"]], sources["photos"], [sources["valid"]]
    pack(*arguments, tmp_path / "all", 400, 10**8)
    limit = round(0.6 * size_of(tmp_path / "all"))
    found = pack(*arguments, tmp_path / "some", 400, limit)
    assert limit * 0.7 < size_of(tmp_path / "some") <= limit
    assert found["valid/valid"] == 2 and found["pairs/few"] == 2 and 0 < found["pairs/many"] < 8 and found["photos"] > 0


def test_sources_that_cannot_be_packed(sources: dict[str, Path], tmp_path: Path):
    out = tmp_path / "packed"
    with pytest.raises(PackError, match="two folders of one kind share a name"):
        pack([sources["few"], tmp_path / "x" / "few"], sources["photos"], [sources["valid"]], out, 200, 10**8)
    with pytest.raises(PackError, match="the validation pairs alone exceed the limit"):
        pack([sources["few"]], sources["photos"], [sources["valid"]], out, 200, 100)
    with pytest.raises(DatasetError, match="photos: has no folder im"):
        pack([sources["photos"]], sources["photos"], [sources["valid"]], out, 200, 10**8)
    assert not out.exists() and not list(tmp_path.glob(".packed*")), "an incomplete folder was left behind"
    out.mkdir()
    with pytest.raises(PackError, match="already exists"):
        pack([sources["few"]], sources["photos"], [sources["valid"]], out, 200, 10**8)


# --- the arguments ---


def test_the_training_accepts_the_arguments(sources: dict[str, Path], tmp_path: Path):
    out, run, weights = tmp_path / "packed", tmp_path / "run", tmp_path / "w.safetensors"
    pack([sources["many"], sources["few"]], sources["photos"], [sources["valid"]], out, 200, 10**8)
    weights.touch()
    arguments = training_arguments(out, run, weights, ["batch_size_train=24", "compile=True"])
    given = parse_assignments(arguments, extra=("train_datasets", "valid_datasets"))
    assert given.pop("train_datasets") == f"{out}/pairs/few,{out}/pairs/many"
    assert given.pop("valid_datasets") == f"{out}/valid/valid:box,{out}/valid/valid:sim"
    settings = Settings.from_hypar(given)
    assert (settings.in_ch, settings.batch_size_train, settings.compile, settings.ema) == (5, 24, True, 0.995)
    assert settings.drop_mask and settings.own_mask and settings.save_minutes == 2
    assert settings.restore_model == str(weights) and settings.model_digit == "half"
    run.mkdir()
    (run / "last.pt").touch()
    assert "restore_model=last.pt" in training_arguments(out, run, weights, [])


# --- parts ---


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5003])
def test_parts_are_joined_to_the_same_bytes(tmp_path: Path, size: int):
    path, data = tmp_path / "weights.bin", np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    parts = split_file(path, tmp_path / "parts", 1000)
    assert len(parts) == max(1, -(-size // 1000)) and all(part.stat().st_size <= 1000 for part in parts)
    assert join_parts(tmp_path / "parts", tmp_path / "joined.bin") == len(parts)
    assert (tmp_path / "joined.bin").read_bytes() == data


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path):
    path, parts = tmp_path / "weights.bin", tmp_path / "parts"
    path.write_bytes(bytes(2500))
    split_file(path, parts, 1000)
    (parts / "weights.bin.001").write_bytes(b"x" * 1000)
    with pytest.raises(PartsError, match="the parts are not those of one file"):
        join_parts(parts, tmp_path / "joined")
    (parts / "weights.bin.001").unlink()
    with pytest.raises(PartsError, match=r"weights\.bin\.001"):
        join_parts(parts, tmp_path / "joined")
    (parts / "parts.json").write_text("[]")
    assert main(["join", str(parts), "--out", str(tmp_path / "joined")]) == 2
    assert not (tmp_path / "joined").exists()


def test_published_weights_are_those_of_the_state(tmp_path: Path, isnet, capsys):
    from IS_Net.checkpoint import read_weights, save_weights

    ema = {name: tensor.clone() for name, tensor in isnet.state_dict().items()}
    ema["side1.bias"] = torch.tensor([7.0])
    state = {"model": isnet.state_dict(), "ema_model": ema, "metadata": {"input_size": [128, 128], "windows": True}}
    save_state(tmp_path / "last.pt", state)
    for _ in range(2):  # the second time over the first
        publish(tmp_path / "last.pt", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["parts.json", "weights.safetensors.000", "weights.safetensors.001", "weights.safetensors.002"]
    assert all(path.stat().st_size < 16 * 2**20 for path in (tmp_path / "out").iterdir())
    joined = tmp_path / "joined.safetensors"
    assert main(["join", str(tmp_path / "out"), "--out", str(joined)]) == 0
    digest = json.loads((tmp_path / "out" / "parts.json").read_text())["sha256"]
    assert hashlib.sha256(joined.read_bytes()).hexdigest() == digest
    model, metadata = load_isnet(joined)
    assert metadata == {"input_size": [128, 128], "windows": True} and model.side1.bias.item() == 7
    save_weights(tmp_path / "int8.safetensors", isnet, {}, int8=True)
    expected = read_weights(tmp_path / "int8.safetensors")[0]
    assert torch.equal(
        model.state_dict()["stage1.rebnconvin.conv_s1.weight"], expected["stage1.rebnconvin.conv_s1.weight"]
    )


# --- the time limit ---

TRAINER = """
import signal, sys, time
from pathlib import Path
run = Path(RUN)
run.mkdir(exist_ok=True)
stopped = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit("a second signal") if stopped else stopped.append(1))
def save(text):
    (run / "new").write_text(text)
    (run / "new").replace(run / "last.pt")
save("first")
(run / "ready").touch()
for _ in range(LOOPS):
    time.sleep(0.05)
    if stopped:
        time.sleep(0.5)
        if CODE:
            sys.exit(CODE)
        save("stopped")
        sys.exit(143)
sys.exit(CODE)
"""


def trainer(tmp_path: Path, loops: int, code: int = 0) -> str:
    """Return an interpreter that runs a small script in place of the training, whatever its arguments."""
    script = tmp_path / "trainer.py"
    text = TRAINER.replace("RUN", repr(str(tmp_path / "run"))).replace("LOOPS", str(loops)).replace("CODE", str(code))
    script.write_text(text)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {module.sys.executable} {script}\n")
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the contents of the states whose weights are published."""
    texts: list[str] = []
    monkeypatch.setattr(module, "publish", lambda state, out: texts.append(state.read_text()))
    return texts


def test_when_the_time_is_up_the_training_saves_and_the_weights_are_published(tmp_path, published):
    python = trainer(tmp_path, loops=2000)
    assert train([], tmp_path / "run", tmp_path / "out", minutes=1.5 / 60, poll=0.05, python=python) == 0
    assert published == ["first", "stopped"]


def test_a_training_that_ends_by_itself_ends_the_command(tmp_path, published):
    python = trainer(tmp_path, loops=2)
    assert train([], tmp_path / "run", tmp_path / "out", minutes=5, poll=0.05, python=python) == 0
    assert published == ["first"]
    published.clear()
    python = trainer(tmp_path, loops=0, code=2)
    assert train([], tmp_path / "run", tmp_path / "out", minutes=5, poll=0.05, python=python) == 2


def test_a_training_that_fails_when_the_time_is_up_is_no_success(tmp_path, published):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_text("of an earlier run")
    python = trainer(tmp_path, loops=2000, code=1)
    assert train([], tmp_path / "run", tmp_path / "out", minutes=1.5 / 60, poll=0.05, python=python) == 1
    assert published == ["first"]


def test_weights_that_cannot_be_published_do_not_end_the_training(tmp_path, monkeypatch, caplog):
    def full(state: Path, out: Path) -> None:
        (tmp_path / "tried").open("a").write(state.read_text() + "\n")
        if not (tmp_path / "space").exists():
            raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(module, "publish", full)
    python = trainer(tmp_path, loops=4)
    run = tmp_path / "run", tmp_path / "out"
    assert train([], *run, minutes=5, poll=0.05, python=python) == 1, "the last weights are not published"
    assert (tmp_path / "tried").read_text().split() == ["first", "first"]
    assert "out: the weights of" in caplog.text and "No space left on device" in caplog.text
    (tmp_path / "space").touch()
    assert train([], *run, minutes=5, poll=0.05, python=python) == 0


def test_publishing_leaves_no_unfinished_parts(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "load_isnet", lambda _: (None, {}))

    def full(path: Path, *_: object, **__: object) -> None:
        path.parent.mkdir(parents=True)
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "save_weights", full)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path / "last.pt", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_training_saves_its_state(tmp_path: Path, number: signal.Signals):
    """Ctrl-C reaches both processes, SIGTERM the parent alone; the training must get one signal, and time to save."""
    run = tmp_path / "run"
    python = trainer(tmp_path, loops=1200)
    script = "import sys\nfrom pathlib import Path\nfrom IS_Net.command_line import run_command\n"
    script += "from recipes.starter import train_on_gpu as module\nmodule.publish = lambda *_: None\n"
    script += f"arguments = [], Path({str(run)!r}), Path({str(tmp_path / 'out')!r}), 5, 0.05, {python!r}\n"
    script += "sys.exit(run_command(lambda: module.train(*arguments)))\n"
    root = Path(module.__file__).parents[2]
    assert end_by(number, script, root, run / "ready") == (130 if number == signal.SIGINT else 143)
    assert (run / "last.pt").read_text() == "stopped"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_signal_that_comes_while_the_training_starts_is_passed_on(tmp_path: Path, published, monkeypatch):
    class Starting(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            while not (tmp_path / "run" / "ready").is_file():
                time.sleep(0.02)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Starting)
    python = trainer(tmp_path, loops=1200)
    run = tmp_path / "run", tmp_path / "out"
    assert run_command(lambda: train([], *run, minutes=5, poll=0.05, python=python)) == 143
    assert (tmp_path / "run" / "last.pt").read_text() == "stopped"
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "s", "--out", "o", "--minutes", "0"], "expected a number above 0"),
        (["train", "s", "--out", "o", "--settings", "batch"], "expected KEY=VALUE, found 'batch'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_folder_that_is_not_packed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["train", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no folder pairs; name what the verb pack wrote" in capsys.readouterr().err
