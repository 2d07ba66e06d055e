"""The command dis-sam: its verbs, their help, and their exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dis_sam
from dis_sam import cli
from dis_sam.cli import VERBS, main

HEAVY = ("torch", "numpy", "cv2", "PIL")


def test_help_lists_every_verb(capsys: pytest.CaptureFixture):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"  {name} " in printed and verb.summary in printed
    assert "130 interrupted" in printed


def test_without_a_verb_the_help_comes_with_code_2(capsys: pytest.CaptureFixture):
    assert main([]) == 2
    assert "usage: dis-sam VERB" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dis-sam {dis_sam.__version__}\n"


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "dis_sam", "evalute"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == "error: unknown verb 'evalute'; did you mean 'evaluate'?\n"


def test_an_unknown_verb_is_named_with_its_neighbor(capsys: pytest.CaptureFixture):
    assert main(["evalute"]) == 2
    assert capsys.readouterr().err == "error: unknown verb 'evalute'; did you mean 'evaluate'?\n"


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_loads_nothing_heavy(verb: str | None):
    """Importing torch takes seconds; --help answers before that."""
    arguments = ["--help"] if verb is None else [verb, "--help"]
    code = (
        "import sys\n"
        "from dis_sam.cli import main\n"
        f"code = main({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_argument_is_code_2(verb: str, capsys: pytest.CaptureFixture):
    assert main([verb, "--no-such-option"]) == 2
    assert "error: " in capsys.readouterr().err


def test_train_and_valid_set_the_mode(monkeypatch: pytest.MonkeyPatch):
    from IS_Net import train_valid_inference_main as script

    calls = []
    monkeypatch.setattr(script, "command_line", lambda arguments: calls.append(list(arguments)) or 0)
    assert main(["train", "max_ite=3"]) == 0
    assert main(["valid", "workers=1"]) == 0
    assert calls == [["mode=train", "max_ite=3"], ["mode=valid", "workers=1"]]


def test_the_verbs_table_names_what_exists():
    for verb in VERBS.values():
        module, _, function = verb.target.partition(":")
        assert callable(getattr(cli.importlib.import_module(module), function))


# --- the package's names ---


def test_the_packages_names_are_lazy():
    code = "import sys, dis_sam; print('numpy' in sys.modules); dis_sam.refine; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("name", dis_sam.__all__)
def test_every_name_is_there(name: str):
    assert getattr(dis_sam, name)
    assert name in dir(dis_sam)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="it has DISSAM"):
        dis_sam.nothing  # noqa: B018
