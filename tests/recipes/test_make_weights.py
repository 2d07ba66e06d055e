"""make_weights: the order of the steps, their commands, resuming, and errors. The steps themselves are not run."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from IS_Net import datalist
from IS_Net.command_line import Terminated
from IS_Net.hypar import Settings as TrainingSettings
from IS_Net.hypar import parse_assignments
from IS_Net.paths import checkout
from recipes.starter import make_weights as module
from recipes.starter.make_weights import RecipeError, Settings, StepError, list_steps, main, make_weights, run_python
from tests.processes import end_by

STEPS = [
    "sample set",
    "hard scenes",
    "box prompts",
    "renders",
    "cut-outs",
    "IS-Net",
    "pseudo-labels",
    "training at 512 px",
    "weights of 512 px",
    "training at 768 px",
    "weights of 768 px",
    "training at 1024 px",
    "mean",
    "calibration",
]


def produce(product: Path) -> None:
    """Make what a step would write: a folder, or a file if the name has a suffix."""
    if product.suffix:
        product.parent.mkdir(parents=True, exist_ok=True)
        product.touch()
    else:
        product.mkdir(parents=True, exist_ok=True)


class FakeRunner:
    """Replaces the interpreter: notes the steps that run, and writes their products instead of running them."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.ran, self.codes, self.without_product = settings, [], {}, ()
        self.arguments: dict[str, Sequence[str]] = {}

    def __call__(self, arguments: Sequence[str], root: Path) -> int:
        key = [a for a in arguments if not a.startswith(("workers=", "--workers=", "restore_model="))]
        (step,) = (s for s in list_steps(self.settings) if [a for a in s.key() if "restore_model=" not in a] == key)
        self.ran.append(step.name)
        self.arguments[step.name] = arguments
        code = self.codes.get(step.name, 0)
        if code in (0, 1) and step.name not in self.without_product:
            produce(root / step.product)
        return code


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner(Settings())


def of(arguments: Sequence[str], key: str) -> str:
    (value,) = (a.partition("=")[2] for a in arguments if a.startswith(f"{key}="))
    return value


# --- order and settings ---


def test_the_steps_run_in_order_and_are_recorded(tmp_path: Path, runner: FakeRunner, capsys: pytest.CaptureFixture):
    make_weights(Settings(), tmp_path, runner)
    assert runner.ran == STEPS
    assert list(json.loads((tmp_path / "saved_models/starter/steps.json").read_text())) == STEPS
    assert (tmp_path / "saved_models/starter/dis_sam_starter.safetensors").is_file()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "[1/14] sample set" and printed[1] == "python data/make_sample.py"
    assert len(printed) == 2 * len(STEPS)


def test_each_step_reads_what_earlier_steps_wrote():
    """Paths in the commands are inputs of the project, or products of earlier steps."""
    written = {"data/sample/photos/im", "/usr/share/tuxpaint/stamps", "/usr/share/sweethome3d/furniture"}
    for step in list_steps(Settings()):
        read = [a.partition("=")[2] if "=" in a else a for a in step.arguments]
        for path in [part.partition(":")[0] for text in read for part in text.split(",") if "/" in part]:
            own = str(step.product) in (path, f"{path}/im", f"{path}/last.pt") or path.startswith("data/make_sample")
            own |= path == str(step.product.with_suffix(".png"))
            earlier = any(path == one or path.startswith(f"{one}/") or f"{path}/im" == one for one in written)
            assert own or earlier, (step.name, path)
        written.add(str(step.product))


def test_there_is_a_value_for_each_size_or_the_last_one_counts():
    settings = Settings(iterations=(10, 20, 30), batch=(16,), rate=(1e-4, 2e-5), workers=7)
    trainings = [step.arguments for step in list_steps(settings) if step.state]
    assert [of(a, "cache_size") for a in trainings] == ["512", "768", "2048"]
    assert "input_size=1024" in trainings[2]
    assert [of(a, "max_ite") for a in trainings] == ["10", "20", "30"]
    assert [of(a, "batch_size_train") for a in trainings] == ["16", "16", "16"]
    assert [of(a, "lr") for a in trainings] == ["0.0001", "2e-05", "2e-05"]
    assert [of(a, "workers") for a in trainings] == ["7", "7", "7"]
    assert ["mask_skip_logit=5" in a for a in trainings] == [True, False, False]  # only 3-channel weights need it


# --- the commands are valid ---


class ParsedError(Exception):
    """The parser accepted the arguments."""


@pytest.mark.parametrize("name", [name for name in STEPS if not name.startswith(("sample", "training"))])
def test_the_parsers_accept_the_arguments(name: str, monkeypatch: pytest.MonkeyPatch):
    photos = [Path("data/photographs"), Path("/elsewhere/more photographs")]
    (step,) = (s for s in list_steps(Settings(photos, Path("/elsewhere/cutouts"))) if s.name == name)
    parse = argparse.ArgumentParser.parse_args

    def stop(*arguments: object) -> None:
        raise ParsedError(parse(*arguments))

    assert step.arguments[0] == "-m"
    command = importlib.import_module(step.arguments[1])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(ParsedError) as parsed:
        command.main(step.arguments[2:])
    given = parsed.value.args[0]
    if name == "box prompts":
        assert step.product.parent == given.pairs[-1]
    else:
        assert str(step.product.parent if step.product.name == "im" else step.product) == str(given.out)


def test_the_training_script_accepts_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for step in list_steps(Settings()):
        if step.state:
            assert step.arguments[:2] == ("-m", "IS_Net.train_valid_inference_main")
            given = parse_assignments(step.arguments[2:], extra=("train_datasets", "valid_datasets"))
            assert given.pop("train_datasets").split(",") == [
                *["data/pseudo_labeled"] * 3,
                *("data/cutouts", "data/rendered", "sample_tr"),
            ]
            valid = [name.split(":") for name in given.pop("valid_datasets").split(",")]
            kinds = importlib.import_module("recipes.starter.hard_scenes").KINDS
            assert valid == [[f"data/sample/hard/{kind}", prompt] for kind in kinds for prompt in ("sim", "box")]
            settings = TrainingSettings.from_hypar(given)
            assert settings.restore_model == str(tmp_path / of(step.arguments, "restore_model"))
            assert settings.model_path == str(tmp_path / step.product.parent)
            assert (settings.copy_paste, settings.simulate_mask, settings.ema) == (0.95, 1.0, 0.995)
            assert (settings.bce_weight, settings.iou_weight, settings.edge_weight) == (10, 2.5, 4)
            assert (settings.in_ch, settings.box_jitter, settings.drop_mask, settings.own_mask) == (5, 0.1, 0.34, 0.25)
            assert bool(settings.window_share) == (settings.input_size == (1024, 1024))
            assert settings.freeze_bn and not settings.interm_sup and not settings.random_flip_v
        produce(step.product)
    assert "sample_tr" in datalist.named()


def test_the_scripts_exist():
    assert all((checkout() / s.arguments[0]).is_file() for s in list_steps(Settings()) if s.arguments[0] != "-m")


# --- resuming ---


def test_a_second_run_repeats_nothing(tmp_path: Path, runner: FakeRunner, capsys: pytest.CaptureFixture):
    make_weights(Settings(), tmp_path, runner)
    runner.ran.clear()
    capsys.readouterr()
    make_weights(Settings(workers=9), tmp_path, runner)
    assert runner.ran == []
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(STEPS) and all(line.endswith(": done") for line in printed)


def test_an_interrupted_training_resumes_and_the_steps_before_it_are_not_repeated(tmp_path: Path, runner: FakeRunner):
    runner.codes["training at 768 px"] = 130
    with pytest.raises(KeyboardInterrupt):
        make_weights(Settings(), tmp_path, runner)
    assert runner.ran == STEPS[:10]
    assert of(runner.arguments["training at 768 px"], "restore_model") == "saved_models/starter/512/last.safetensors"
    (tmp_path / "saved_models/starter/768").mkdir()
    (tmp_path / "saved_models/starter/768/last.pt").touch()  # the training saved its state
    runner.codes.clear()
    runner.ran.clear()
    make_weights(Settings(workers=3), tmp_path, runner)
    assert runner.ran == STEPS[9:]
    assert of(runner.arguments["training at 768 px"], "restore_model") == "last.pt"
    assert of(runner.arguments["training at 1024 px"], "restore_model") == "saved_models/starter/768/last.safetensors"


def test_a_product_that_was_deleted_is_made_again(tmp_path: Path, runner: FakeRunner):
    make_weights(Settings(), tmp_path, runner)
    runner.ran.clear()
    (tmp_path / "data/cutouts/im").rmdir()
    make_weights(Settings(), tmp_path, runner)
    assert runner.ran == ["cut-outs"]


def test_weights_that_exist_already_are_not_fetched(tmp_path: Path, runner: FakeRunner):
    (tmp_path / "saved_models").mkdir()
    (tmp_path / "saved_models/isnet.safetensors").touch()
    (tmp_path / "data/cutouts/im").mkdir(parents=True)  # not recorded, so it may be incomplete
    make_weights(Settings(), tmp_path, runner)
    assert runner.ran == [name for name in STEPS if name != "IS-Net"]


@pytest.mark.parametrize(
    ("settings", "step", "found", "expected"),
    [
        (Settings(photos=[Path("p")]), "renders", "data/sample/photos/im", "p"),
        (Settings(cutouts=Path("c")), "cut-outs", "/usr/share/tuxpaint/stamps", "c"),
        (Settings(iterations=[5]), "training at 512 px", "max_ite=1000", "max_ite=5"),
        (Settings(rate=[5e-5]), "training at 768 px", "lr=6e-05", "lr=5e-05"),
    ],
)
def test_other_settings_for_a_step_that_is_done(tmp_path: Path, runner: FakeRunner, settings, step, found, expected):
    make_weights(Settings(), tmp_path, runner)
    runner.ran.clear()
    message = rf"step '{step}' was done with other settings: found {found}, expected {expected}; .*delete"
    with pytest.raises(RecipeError, match=message):
        make_weights(settings, tmp_path, runner)
    assert runner.ran == []


# --- what goes wrong ---


@pytest.mark.parametrize("code", [1, 2, -9])
def test_a_failed_step_ends_the_run(tmp_path: Path, runner: FakeRunner, code: int):
    runner.codes["weights of 512 px"] = code
    with pytest.raises(StepError, match=f"'weights of 512 px' failed with exit code {code}") as caught:
        make_weights(Settings(), tmp_path, runner)
    assert runner.ran == STEPS[:9] and caught.value.exit_code == 1
    assert list(json.loads((tmp_path / "saved_models/starter/steps.json").read_text())) == STEPS[:8]


def test_files_that_cannot_be_used_do_not_end_the_run(tmp_path: Path, runner: FakeRunner):
    runner.codes.update({"cut-outs": 1, "pseudo-labels": 1})
    make_weights(Settings(), tmp_path, runner)
    assert runner.ran == STEPS


def test_a_step_without_a_product_ends_the_run(tmp_path: Path, runner: FakeRunner):
    runner.without_product = ("pseudo-labels",)
    with pytest.raises(StepError, match="'pseudo-labels' wrote no data/pseudo_labeled/im"):
        make_weights(Settings(), tmp_path, runner)
    assert runner.ran == STEPS[:7]


# --- the command ---


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the command take an empty folder for the checkout."""
    monkeypatch.setattr(module, "checkout", lambda: tmp_path)
    return tmp_path


def test_a_dry_run_prints_the_commands_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture):
    arguments = ["--photos", str(root / "my photos"), "/elsewhere", "--iterations", "600", "600", "1600"]
    assert main([*arguments, "--batch", "16", "--rate", "1e-4", "--workers", "15", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "import_cutouts /usr/share/tuxpaint/stamps --backgrounds 'my photos' --out data/cutouts" in printed
    assert "pseudo_label 'my photos' /elsewhere --out data/pseudo_labeled" in printed
    assert "'backgrounds=my photos'" in printed
    for text in ("max_ite=600", "max_ite=1600", "batch_size_train=16", "lr=0.0001", "workers=15"):
        assert text in printed
    assert not list(root.iterdir())


def test_a_missing_folder_is_named_before_anything_runs(root: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(module, "make_weights", lambda *_, **__: pytest.fail("started"))
    assert main(["--cutouts", str(root), "--photos", str(root / "gone")]) == 2
    assert "gone: the folder does not exist" in capsys.readouterr().err
    assert main(["--cutouts", str(root), "--models", str(root / "none")]) == 2
    assert "none: the folder does not exist; choose another" in capsys.readouterr().err
    monkeypatch.setattr(module, "CUTOUTS", root / "stamps")
    assert main([]) == 2
    assert "stamps: the folder does not exist; install Debian's package tuxpaint" in capsys.readouterr().err


def test_an_installed_package_cannot_run_the_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(module, "checkout", lambda: None)
    assert main([]) == 2
    assert "runs in a checkout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "0"], "expected an integer above 0"),
        (["--rate", "fast"], "expected a number above 0, found 'fast'"),
        (["--rate", "inf"], "expected a number above 0"),
        (["--batch", "1", "2", "3", "4"], "--batch: expected at most 3 values, found 4"),
        (["--workers", "-1"], "expected"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("code", "kind"), [(130, KeyboardInterrupt), (143, Terminated)])
def test_an_interrupted_step_interrupts_the_recipe(tmp_path: Path, runner: FakeRunner, code, kind):
    runner.codes["weights of 512 px"] = code
    with pytest.raises(KeyboardInterrupt) as caught:
        make_weights(Settings(), tmp_path, runner)
    assert caught.type is kind and runner.ran == STEPS[:9]


def test_an_interruption_exits_with_130(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (root / "stamps").mkdir()
    monkeypatch.setattr(module, "make_weights", interrupt)
    assert main(["--cutouts", str(root / "stamps"), "--models", str(root)]) == 130
    assert "the same command resumes" in capsys.readouterr().err


# --- the interpreter ---


def test_run_python_runs_in_the_folder_and_returns_the_exit_code(tmp_path: Path):
    assert run_python(["-c", "open('here', 'w').close(); raise SystemExit(3)"], tmp_path) == 3
    assert (tmp_path / "here").is_file()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_child_saves_its_state(tmp_path: Path, number: signal.Signals):
    """Ctrl-C reaches both processes, SIGTERM the parent; the child must get one signal, and time to save."""
    child = "import signal, sys, time\ngot = []\nfor s in (signal.SIGINT, signal.SIGTERM):\n"
    child += " signal.signal(s, lambda *_: sys.exit(9) if got else got.append(1))\n"
    child += "open('ready', 'w').close()\nfor _ in range(1200):\n time.sleep(0.05)\n if got: break\n"
    child += "time.sleep(1)\nopen('saved', 'w').close()\n"
    parent = "import sys\nfrom pathlib import Path\nfrom IS_Net.command_line import run_command\n"
    parent += "from recipes.starter.make_weights import run_python\n"
    parent += f"sys.exit(run_command(lambda: run_python(['-c', {child!r}], Path({str(tmp_path)!r}))))"
    assert end_by(number, parent, checkout(), tmp_path / "ready") == (130 if number == signal.SIGINT else 143)
    assert (tmp_path / "saved").is_file()
