"""Where things are: in a checkout, with DIS_SAM_HOME, and installed from a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from IS_Net import paths

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the package lie in a site-packages; return that folder."""
    package = tmp_path / "site-packages" / "IS_Net"
    package.mkdir(parents=True)
    monkeypatch.setattr(paths, "_PACKAGE", package)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg-data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg-cache"))
    return package.parent


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIS_SAM_HOME", raising=False)


def test_a_checkout_is_its_own_home():
    assert paths.checkout() == paths.home() == ROOT
    assert paths.cache() == ROOT / "data" / "cache"
    assert paths.saved_models() == ROOT / "saved_models"
    assert paths.settings_base() == ROOT / "IS_Net"
    assert paths.resolve("../data/DIS5K") == ROOT / "data" / "DIS5K"
    assert paths.starter_weights().is_file()
    assert paths.sam_checkpoint_folders() == [ROOT / "sam" / "notebooks", ROOT / "saved_models"]


def test_the_environment_variable_moves_what_the_user_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIS_SAM_HOME", str(tmp_path / "other disk"))
    home = tmp_path / "other disk"
    assert paths.home() == home
    assert paths.cache() == home / "data" / "cache"
    assert paths.resolve("../saved_models/mine") == home / "saved_models" / "mine"
    assert paths.checkout() == ROOT
    assert paths.starter_weights().is_relative_to(ROOT)  # these come with the project
    folders = paths.sam_checkpoint_folders()
    assert folders[:2] == [ROOT / "sam" / "notebooks", ROOT / "saved_models"]  # those of a checkout count, too
    assert folders[2:] == [home / "sam" / "notebooks", home / "saved_models"]
    assert not home.exists()  # asking where things are makes no folder


def test_the_environment_variable_knows_the_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIS_SAM_HOME", "~/dis-sam")
    assert paths.home() == tmp_path / "dis-sam"


def test_a_wheel_uses_the_users_folders(installed: Path, tmp_path: Path):
    assert paths.checkout() is None
    assert paths.home() == tmp_path / "xdg-data" / "dis-sam"
    assert paths.cache() == tmp_path / "xdg-cache" / "dis-sam"
    assert paths.starter_weights() == installed / "IS_Net" / "weights" / "dis_sam_starter.safetensors"
    assert paths.resolve("../data/DIS5K") == tmp_path / "xdg-data" / "dis-sam" / "data" / "DIS5K"
    for folder in (paths.home(), paths.cache(), paths.saved_models(), *paths.sam_checkpoint_folders()):
        assert not folder.is_relative_to(installed)  # nothing is written beside the installed code


def test_absolute_paths_stay(tmp_path: Path):
    assert paths.resolve(tmp_path / "x") == tmp_path / "x"
    assert paths.resolve("x", tmp_path) == tmp_path / "x"
