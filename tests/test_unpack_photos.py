"""Photographs come out of Qt resource files; those in golden/ were written by Qt 6's own rcc."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from IS_Net.images import read_image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))

import unpack_photos

GOLDEN = Path(__file__).parent / "golden"
TEXT = b"compressed by zlib, since it repeats " * 60


@pytest.mark.parametrize("version", [1, 3])
def test_every_file_comes_out_under_its_path(version):
    files = {str(path): code for path, code in unpack_photos.unpack((GOLDEN / f"version_{version}.rcc").read_bytes())}
    assert set(files) == {"top/" + name for name in ("a/photo.jpg", "a/b/photo.webp", "a/cut.png", "small.png")} | {
        "top/text.txt",
        "top/ünï.txt",
    }
    assert files["top/text.txt"] == TEXT
    assert files["top/ünï.txt"] == b""
    assert files["top/a/photo.jpg"][:3] == b"\xff\xd8\xff"


def test_photographs_are_written_small_ones_and_cut_outs_are_not(tmp_path):
    assert unpack_photos.main([str(GOLDEN / "version_3.rcc"), "--out", str(tmp_path / "out")]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["version_3_photo.webp", "version_3_photo_.jpg"]  # as labels need, no two share a stem
    for name in written:
        assert read_image(tmp_path / "out" / name).shape == (170, 200, 3)


def test_a_method_of_compression_that_is_not_known_is_told(tmp_path, capsys):
    assert unpack_photos.main([str(GOLDEN / "zstd.rcc"), "--out", str(tmp_path / "out")]) == 1
    assert "top/a/cut.png: compressed by a method that is not known (flags 4)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_a_file_of_another_kind_are_told(tmp_path, capsys):
    other = tmp_path / "other.rcc"
    other.write_bytes(b"PK\x03\x04 and so on")
    assert unpack_photos.main([str(other), "--out", str(tmp_path / "out")]) == 1
    assert f"{other}: begins unlike a Qt resource" in capsys.readouterr().err
    assert unpack_photos.main([str(tmp_path / "none.rcc"), "--out", str(tmp_path / "out")]) == 1
    assert "none.rcc: No such file" in capsys.readouterr().err


@given(st.integers(4, 5000), st.integers(0, 255))
def test_damage_is_told_and_never_loops(place, value):
    code = bytearray((GOLDEN / "version_3.rcc").read_bytes())
    code[place % len(code)] = value
    with contextlib.suppress(unpack_photos.ResourceError):
        list(unpack_photos.unpack(bytes(code)))


@given(st.integers(4, 3000))
def test_a_file_that_was_cut_short_is_told(length):
    with pytest.raises(unpack_photos.ResourceError, match=r"early|cut short"):
        list(unpack_photos.unpack((GOLDEN / "version_3.rcc").read_bytes()[:length]))
