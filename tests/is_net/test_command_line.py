"""Errors, exit codes and messages of all commands."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from IS_Net import command_line, errors
from IS_Net.command_line import print_text, run_command, signals_held


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.HyparError("hypar['lr']: bad"), 2),
        (errors.CheckpointError("w.pth: damaged"), 2),
        (errors.TrainingError("the loss is nan"), 1),
        (errors.ScoringError("a worker died"), 1),
        (PermissionError(13, "Permission denied", "x.png"), 2),
    ],
)
def test_an_error_becomes_a_message_and_a_code(error: Exception, code: int, capsys: pytest.CaptureFixture):
    assert run_command(raising(error)) == code
    printed = capsys.readouterr()
    assert printed.err == f"error: {error}\n"
    assert printed.out == ""


def test_an_interruption_is_130(capsys: pytest.CaptureFixture):
    assert run_command(raising(KeyboardInterrupt()), "interrupted; the same command resumes") == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes\n"


@pytest.mark.parametrize("code", [0, 1])
def test_the_commands_own_code_is_kept(code: int):
    assert run_command(lambda: code) == code


def test_a_programming_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_every_error_is_a_user_error_and_of_a_builtin_kind():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.UserError)]
    assert len(kinds) > 8
    for kind in kinds:
        if kind is not errors.UserError:
            assert issubclass(kind, ValueError | RuntimeError | ImportError | OSError)
            assert kind.exit_code in (1, 2)


def test_text_that_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    print_text("фото.jpg é")
    sys.stdout.flush()
    assert raw.getvalue().decode("cp1252") == "\\u0444\\u043e\\u0442\\u043e.jpg é\n"


@pytest.mark.parametrize("text, found", [("3", 3), ("1", 1), ("0", None), ("-1", None), ("x", None), ("", None)])
def test_positive_int(text: str, found: int | None):
    if found is None:
        with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
            command_line.positive_int(text)
    else:
        assert command_line.positive_int(text) == found


def test_did_you_mean():
    assert errors.did_you_mean("btach", ["batch", "lr"]) == "; did you mean 'batch'?"
    assert errors.did_you_mean("zzz", ["batch", "lr"]) == "; known names: batch, lr"


def test_a_missing_extra_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'dis-sam\[sam\]'"):
        errors.import_extra("segment_anything", "sam")
    assert errors.import_extra("json", "sam").loads("1") == 1


def test_an_import_error_inside_an_extra_is_not_hidden(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "half_installed.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        errors.import_extra("half_installed", "sam")


INTERRUPTED_IMPORT = """
import sys
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "numpy"):
            raise KeyboardInterrupt  # Ctrl-C, while the import takes its seconds
sys.meta_path.insert(0, Heavy())
sys.argv = sys.argv[1:]
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes.starter.pseudo_label", "x"],
        ["recipes.starter.average_weights", "x", "y.safetensors"],
        ["recipes.starter.fetch_isnet"],
        ["recipes.starter.fetch_sam2"],
        ["IS_Net.import_weights", "x", "y.safetensors"],
        ["dis_sam.cli", "import-weights", "x", "y.safetensors"],
        ["IS_Net.train_valid_inference_main", "mode=valid", "restore_model=pyproject.toml"],
        ["sam.generate_masks", "--images", "pic", "--prompts", "none.json", "--out", "none"],
    ],
)
def test_an_interruption_while_a_command_imports(arguments: list[str]):
    """Row 33 of the list of faults: a traceback of KeyboardInterrupt."""
    root = Path(__file__).resolve().parents[2]
    code = [sys.executable, "-c", INTERRUPTED_IMPORT, *arguments]
    run = subprocess.run(code, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 130, run.stderr
    assert run.stderr.startswith("interrupted") and "Traceback" not in run.stderr


SLOW_IMPORT = """
import time
try:
    print("importing", flush=True)
    time.sleep(600)
except BaseException:  # as the import of PyTorch does, whose compiled parts call Python
    pass
"""
COMMANDS = {
    "cut": ["-m", "dis_sam.cli", "cut", "pic/dis_sam.jpg", "--out", "none"],
    "masks": ["-m", "dis_sam.cli", "masks", "--images", "pic", "--prompts", "none.json", "--out", "none"],
    "valid": ["-m", "dis_sam.cli", "valid", "restore_model=pyproject.toml"],
    "evaluate": ["-m", "dis_sam.cli", "evaluate", "--gt", "pic", "--pred", "pic"],
    "check": ["-m", "dis_sam.cli", "check", "--no-self-test"],
    "serve": ["-m", "dis_sam.cli", "serve"],
    "import-weights": ["-m", "dis_sam.cli", "import-weights", "pyproject.toml", "none.safetensors"],
    "script": ["IS_Net/train_valid_inference_main.py", "mode=valid", "restore_model=pyproject.toml"],
    "sam.generate_masks": ["-m", "sam.generate_masks", "--images", "pic", "--prompts", "none.json", "--out", "none"],
    "IS_Net.evaluate": ["-m", "IS_Net.evaluate", "--gt", "pic", "--pred", "pic"],
    "recipe": ["-m", "recipes.starter.average_weights", "x", "y.safetensors"],
}


def signal_while_importing(arguments: list[str], folder: Path, module: str, number: signal.Signals) -> tuple[int, str]:
    """Run a command, send a signal while it imports a module, and return its exit code and messages."""
    (folder / f"{module}.py").write_text(SLOW_IMPORT)
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(folder), str(root)])
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "DIS_SAM_HOME": str(folder)},
    )
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        return process.wait(timeout=120), process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_while_a_command_imports(command: str, tmp_path: Path):
    """What was seen: no message, an aborted process, or a training that went on."""
    code, printed = signal_while_importing(COMMANDS[command], tmp_path, "numpy", signal.SIGTERM)
    assert code == 143, printed
    assert printed.startswith(("terminated", "stopped")) and len(printed.splitlines()) == 1, printed


def test_ctrl_c_that_an_import_would_swallow(tmp_path: Path):
    code, printed = signal_while_importing(COMMANDS["sam.generate_masks"], tmp_path, "numpy", signal.SIGINT)
    assert (code, printed.splitlines()) == (130, [printed.strip()]) and printed.startswith("interrupted")


def test_sigterm_while_dis_sam_imports_a_verb(tmp_path: Path):
    """Before the verb's own code runs."""
    code, printed = signal_while_importing(COMMANDS["check"], tmp_path, "platformdirs", signal.SIGTERM)
    assert (code, printed) == (143, "terminated\n")


def test_signals_are_answered_as_before_after_a_command():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    def command() -> int:
        assert not set(before) & {signal.getsignal(number) for number in numbers}
        signal.raise_signal(signal.SIGTERM)
        return 0

    assert run_command(command) == 143
    assert [signal.getsignal(number) for number in numbers] == before


def test_signals_that_are_held_are_answered_once_they_are_released():
    reached = []

    def command() -> int:
        with signals_held() as release:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            reached.append("held")
            try:
                release()
                reached.append("not answered")
            finally:
                reached.append("after")
        return 0

    assert run_command(command) == 143
    assert reached == ["held", "after"]
    with pytest.raises(KeyboardInterrupt), signals_held():
        signal.raise_signal(signal.SIGINT)
        reached.append("block")
    assert reached[-1] == "block"
    before = signal.getsignal(signal.SIGTERM)
    with signals_held() as release:
        release()
        assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_of_other_programs_are_kept():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run_command(lambda: signal.raise_signal(signal.SIGTERM) or 0) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_errors_keep_their_traceback():
    code = "from IS_Net.command_line import answer_interrupts; answer_interrupts(); 1 / 0"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "ZeroDivisionError" in run.stderr


def test_plain_prints_of_a_command_are_escaped_too():
    """Row 26: a non-Latin folder name with PYTHONIOENCODING=cp1252 ended a run after its first split."""
    code = "from IS_Net.command_line import run_command; run_command(lambda: print('фото é') or 0)"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert run.stdout.decode("cp1252").strip() == "\\u0444\\u043e\\u0442\\u043e é"
