"""Models in folders and on the Hugging Face Hub: what is saved is what is loaded, and folders need no network."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_sample

from IS_Net.checkpoint import read_weights
from IS_Net.errors import CheckpointError, DatasetError
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor

huggingface_hub = pytest.importorskip("huggingface_hub")
hub_module = pytest.importorskip("IS_Net.hub")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuse connections; return the addresses that were asked for."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments)
        raise OSError("the tests have no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return asked


@pytest.fixture(scope="module")
def saved(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that a model was saved to."""
    folder = tmp_path_factory.mktemp("hub") / "mine"
    assert DISPredictor.from_checkpoint(weights, "cpu").save_pretrained(folder) is None
    return folder


def predict(predictor: DISPredictor) -> np.ndarray:
    image, _, mask = draw_sample(0, 120, 90)
    return predictor.predict(image, mask)


def test_a_file_is_no_model_of_the_hub(weights, no_network):
    with pytest.raises(CheckpointError, match="is a file; expected a folder or USER/MODEL"):
        DISPredictor.from_pretrained(weights)
    assert not no_network


def test_a_folder_gives_the_same_alpha_without_the_network(saved, weights, no_network):
    assert {path.name for path in saved.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert (saved / "model.safetensors").read_bytes() == weights.read_bytes()
    assert json.loads((saved / "config.json").read_text()) == {
        **{"architecture": "ISNetDIS", "in_ch": 4, "input_size": [128, 128]}
    }
    loaded = DISPredictor.from_pretrained(saved, "cpu")
    original = DISPredictor.from_checkpoint(weights, "cpu")
    assert loaded.metadata == original.metadata and (predict(loaded) == predict(original)).all()
    assert not no_network


def test_a_relative_checkpoint_is_found_from_another_folder(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(weights.parent)
    predictor = DISPredictor.from_checkpoint(weights.name, "cpu", runtime="torch")
    monkeypatch.chdir(tmp_path)
    predictor.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").is_file()


def test_the_size_that_was_worked_at_is_kept(weights, tmp_path):
    original = DISPredictor.from_checkpoint(weights, "cpu", input_size=(64, 96))
    original.save_pretrained(tmp_path / "small")
    loaded = DISPredictor.from_pretrained(str(tmp_path / "small"), "cpu")
    assert loaded.input_size == (64, 96) and (predict(loaded) == predict(original)).all()


def test_a_published_checkpoint_becomes_safetensors(isnet, tmp_path):
    torch.save(isnet.state_dict(), tmp_path / "published.pth")
    DISPredictor.from_checkpoint(tmp_path / "published.pth", "cpu", input_size=(64, 64)).save_pretrained(
        tmp_path / "out"
    )
    found, _ = read_weights(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in isnet.state_dict().items())
    assert DISPredictor.from_pretrained(tmp_path / "out", "cpu").input_size == (64, 64)


def test_the_model_card_says_what_the_checkpoint_records(saved, weights, tmp_path):
    card = huggingface_hub.ModelCard.load(saved / "README.md")
    assert card.data.library_name == "dis-sam" and card.data.pipeline_tag == "image-segmentation"
    assert card.data.license is None and "License of the weights: not stated" in card.text
    assert "| input_size | [128, 128] |" in card.text and "4 input channels (image and coarse mask)" in card.text
    options = {"model_card_kwargs": {"license": "mit", "name": "me/mine"}}
    DISPredictor.from_checkpoint(weights, "cpu").save_pretrained(tmp_path / "licensed", **options)
    card = huggingface_hub.ModelCard.load(tmp_path / "licensed" / "README.md")
    assert card.data.license == "mit" and 'from_pretrained("me/mine")' in card.text
    (saved / "README.md").write_text("mine")  # written by hand: kept
    DISPredictor.from_checkpoint(weights, "cpu").save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"


def test_the_starter_weights_have_their_own_card():
    model = hub_module.HubModel(starter_weights(), {"in_ch": 4, "input_size": [1024, 1024]})
    card = model.generate_model_card(name="me/starter")
    assert card.data.license == "other" and card.data.license_name == "see-model-card"
    assert "## Lineage and licenses" in card.text and "](../" not in card.text and "LOG.md" in card.text


def test_a_push_uploads_the_same_files(weights, monkeypatch, no_network):
    class Api:
        def __init__(self, **_: Any) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls.append(("create_repo", repo_id, options))
            return type("Repository", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
            calls.append(("upload_folder", repo_id, options))
            shutil.copytree(folder_path, "pushed")
            return "https://hub/commit"

    calls: list[tuple[str, str, dict[str, Any]]] = []
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    predictor = DISPredictor.from_checkpoint(weights, "cpu")
    assert predictor.push_to_hub("me/mine", private=True, commit_message="first") == "https://hub/commit"
    assert [call[:2] for call in calls] == [("create_repo", "me/mine"), ("upload_folder", "me/mine")]
    assert calls[0][2]["private"] is True and calls[1][2]["commit_message"] == "first"
    pushed = Path("pushed")
    assert (pushed / "model.safetensors").read_bytes() == weights.read_bytes()
    assert 'from_pretrained("me/mine")' in (pushed / "README.md").read_text()
    assert json.loads((pushed / "config.json").read_text())["in_ch"] == 4
    assert not no_network


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_repository_is_downloaded(saved, weights, monkeypatch):
    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename, options["revision"]))
        return str(saved / filename)

    asked: list[tuple[str, str, str]] = []
    monkeypatch.setattr(hub_module.huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **options: download(**options))
    loaded = DISPredictor.from_pretrained("me/mine", "cpu", revision="v1")
    assert asked == [("me/mine", "config.json", "v1"), ("me/mine", "model.safetensors", "v1")]
    assert (predict(loaded) == predict(DISPredictor.from_checkpoint(weights, "cpu"))).all()


def test_what_cannot_be_loaded_is_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"me/mine: cannot be loaded .*check the name and the network"):
        DISPredictor.from_pretrained("me/mine", cache_dir=tmp_path / "cache", local_files_only=True)
    with pytest.raises(CheckpointError, match=r"no/such/folder: cannot be loaded"):
        DISPredictor.from_pretrained("no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: found no model\.safetensors"):
        DISPredictor.from_pretrained(tmp_path / "empty")
    damaged = tmp_path / "damaged"
    shutil.copytree(saved, damaged)
    for content, message in (("{", "cannot be loaded"), ('{"input_size": [0, 5]}', r"expected \[height, width\]")):
        (damaged / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            DISPredictor.from_pretrained(damaged)
    (damaged / "config.json").write_text('{"input_size": [16, 5000000]}')
    with pytest.raises(CheckpointError, match=r"sides of 33 to 16384 pixels, found \[16, 5000000\]"):
        DISPredictor.from_pretrained(damaged)
    (damaged / "config.json").unlink()
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"damaged/model\.safetensors"):
        DISPredictor.from_pretrained(damaged)


def test_what_cannot_be_saved_is_named(saved, weights, isnet, tmp_path):
    with pytest.raises(CheckpointError, match="not loaded from a checkpoint; write one with"):
        DISPredictor(isnet, "cpu").save_pretrained(tmp_path / "out")
    with pytest.raises(DatasetError, match="would replace the input"):
        DISPredictor.from_pretrained(saved, "cpu").save_pretrained(saved)
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="file: is a file; expected a folder"):
        DISPredictor.from_pretrained(saved, "cpu").save_pretrained(tmp_path / "file")
    with pytest.raises(OSError, match="file/folder"):
        DISPredictor.from_pretrained(saved, "cpu").save_pretrained(tmp_path / "file" / "folder")
    copied = tmp_path / "copied.safetensors"
    shutil.copyfile(weights, copied)
    predictor = DISPredictor.from_checkpoint(copied, "cpu")
    copied.write_bytes(b"another")
    with pytest.raises(CheckpointError, match="has changed or is gone"):
        predictor.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_extra_is_named():
    code = "import sys; sys.modules['huggingface_hub'] = None\nfrom dis_sam import DISPredictor\n"
    code += "DISPredictor.from_pretrained('folder')"
    folder = Path(hub_module.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'dis-sam[hub]'" in done.stderr
