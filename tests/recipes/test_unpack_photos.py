"""unpack_photos: Qt resource files (those in golden/ were written by Qt 6's own rcc), archives and folders."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from IS_Net.files import is_file_name
from IS_Net.images import read_image
from recipes.starter import unpack_photos

GOLDEN = Path(__file__).parent / "golden"
TEXT = b"compressed by zlib, since it repeats " * 60


@pytest.mark.parametrize("version", [1, 3])
def test_every_file_is_unpacked_under_its_path(version):
    files = {str(path): code for path, code in unpack_photos.unpack((GOLDEN / f"version_{version}.rcc").read_bytes())}
    assert set(files) == {"top/" + name for name in ("a/photo.jpg", "a/b/photo.webp", "a/cut.png", "small.png")} | {
        "top/text.txt",
        "top/ünï.txt",
    }
    assert files["top/text.txt"] == TEXT
    assert files["top/ünï.txt"] == b""
    assert files["top/a/photo.jpg"][:3] == b"\xff\xd8\xff"


def photograph(seed: int, side: int = 400) -> np.ndarray:
    """Make (side, side, 3) uint8 of soft shapes in many colors."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def unpacked(*packages: Path, out: Path) -> list[str]:
    assert unpack_photos.main([*map(str, packages), "--out", str(out)]) == 0
    return sorted(path.name for path in out.iterdir())


@pytest.fixture
def theme(tmp_path: Path) -> Path:
    """Return a folder with two photographs, one of them in two sizes, and with other files."""
    folder = tmp_path / "theme"
    write(folder / "img" / "a.jpg", photograph(1))
    write(folder / "img" / "a" / "small.png", cv2.resize(photograph(1), (200, 200), interpolation=cv2.INTER_AREA))
    write(folder / "img" / "b.webp", photograph(2))
    write(folder / "icon.png", photograph(3, side=64))
    drawing = np.full((400, 400, 3), 255, np.uint8)
    write(folder / "drawing.png", cv2.circle(drawing, (200, 200), 150, (40, 90, 200), -1))
    write(folder / "broken.png", photograph(6))
    code = bytearray((folder / "broken.png").read_bytes())
    code[len(code) // 2 : len(code) // 2 + 40] = bytes(40)
    (folder / "broken.png").write_bytes(code)
    (folder / "broken.jpg").write_bytes((folder / "img" / "a.jpg").read_bytes()[:300])
    (folder / "README").write_text("no image")
    return folder


def test_a_folder_gives_each_photograph_once_in_its_largest_file(theme, tmp_path):
    assert unpacked(theme, out=tmp_path / "out") == ["theme_a.jpg", "theme_b.webp"]
    assert (tmp_path / "out" / "theme_a.jpg").read_bytes() == (theme / "img" / "a.jpg").read_bytes()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_gives_the_same_photographs_as_its_folder(theme, tmp_path, mode):
    with tarfile.open(tmp_path / "pack.tgz", mode) as archive:
        archive.add(theme, "package")
    assert unpacked(tmp_path / "pack.tgz", out=tmp_path / "out") == ["pack_a.jpg", "pack_b.webp"]


def test_photographs_of_an_earlier_package_are_not_repeated(theme, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(theme, again)
    write(again / "c.jpg", photograph(4))
    write(again / "more" / "c.png", photograph(5))  # labels are named by the stem, so no two may share it
    written = unpacked(theme, again, out=tmp_path / "out")
    assert written == ["again_c.jpg", "again_c_.png", "theme_a.jpg", "theme_b.webp"]


def test_different_objects_on_the_same_plain_background_are_all_kept(tmp_path):
    for number in range(6):
        image = np.full((600, 600, 3), 250, np.uint8)
        image[200:400, 200:400] = photograph(number, side=200)
        write(tmp_path / "things" / f"{number}.png", image)
    assert len(unpacked(tmp_path / "things", out=tmp_path / "out")) == 6


@pytest.mark.parametrize("side, quality", [(300, 95), (700, 40)])
def test_a_noisy_picture_and_a_compressed_copy_in_another_size_are_duplicates(tmp_path, side, quality):
    noisy = np.clip(photograph(1) + np.random.default_rng(0).normal(0, 8, (400, 400, 3)), 0, 255).astype(np.uint8)
    write(tmp_path / "pair" / "a.png", noisy)
    copy = cv2.resize(noisy, (side, side), interpolation=cv2.INTER_AREA)
    (tmp_path / "pair" / "b.jpg").write_bytes(cv2.imencode(".jpg", copy, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
    assert unpacked(tmp_path / "pair", out=tmp_path / "out") == ["pair_a.png" if side < 400 else "pair_b.jpg"]


def test_a_folder_with_images_is_not_written_to(theme, tmp_path, capsys):
    unpacked(theme, out=tmp_path / "out")
    before = sorted((tmp_path / "out").iterdir())
    assert unpack_photos.main([str(theme), "--out", str(tmp_path / "out")]) == 2
    assert "contains images already" in capsys.readouterr().err
    assert sorted((tmp_path / "out").iterdir()) == before


def test_an_output_folder_that_is_not_writable_is_named(theme, tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    assert unpack_photos.main([str(theme), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_package_without_photographs_is_named(tmp_path, capsys):
    write(tmp_path / "icons" / "icon.png", photograph(3, side=64))
    assert unpack_photos.main([str(tmp_path / "icons"), "--out", str(tmp_path / "out")]) == 2
    assert "icons: found no photographs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_long_names_are_cut(tmp_path):
    for number in range(2):
        write(tmp_path / "long" / f"{'n' * 230}{number}.png", photograph(number))
    stems = unpacked(tmp_path / "long", out=tmp_path / "out")
    assert stems == [f"long_{'n' * 100}.png", f"long_{'n' * 100}_.png"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_damaged_archive_is_named(theme, tmp_path, capsys, mode):
    archive = tmp_path / "damaged.tar"
    with tarfile.open(archive, mode) as file:
        file.add(theme, "package")
        middle = file.getmembers()[4].offset
    code = bytearray(archive.read_bytes())
    code[middle if mode == "w" else len(code) // 2] ^= 255  # a header, or compressed data
    archive.write_bytes(code)
    assert unpack_photos.main([str(archive), "--out", str(tmp_path / "out")]) == 2
    assert f"error: {archive}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_truncated_archive_is_named(theme, tmp_path, capsys):
    code = io.BytesIO()
    with tarfile.open(fileobj=code, mode="w:gz") as archive:
        archive.add(theme, "package")
    short = tmp_path / "short.tgz"
    short.write_bytes(code.getvalue()[: len(code.getvalue()) // 2])
    assert unpack_photos.main([str(short), "--out", str(tmp_path / "out")]) == 2
    assert f"error: {short}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_small_pictures_and_cut_outs_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack_photos, "MIN_COLORS", 100)  # the pictures in the file are plain gradients
    assert unpack_photos.main([str(GOLDEN / "version_3.rcc"), "--out", str(tmp_path / "out")]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["version_3_photo.webp"]  # the .jpg file is a duplicate
    assert read_image(tmp_path / "out" / written[0]).shape == (170, 200, 3)


def test_an_unknown_compression_method_is_named(tmp_path, capsys):
    assert unpack_photos.main([str(GOLDEN / "zstd.rcc"), "--out", str(tmp_path / "out")]) == 2
    assert "top/a/cut.png: unknown compression method (flags 4)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_a_file_of_another_format_are_named(tmp_path, capsys):
    other = tmp_path / "other.rcc"
    other.write_bytes(b"PK\x03\x04 and so on")
    assert unpack_photos.main([str(other), "--out", str(tmp_path / "out")]) == 2
    assert f"{other}: is not a Qt resource" in capsys.readouterr().err
    assert unpack_photos.main([str(tmp_path / "none.rcc"), "--out", str(tmp_path / "out")]) == 2
    assert "none.rcc: No such file" in capsys.readouterr().err


@given(st.integers(4, 5000), st.integers(0, 255))
def test_damage_raises_an_error_and_never_loops(place, value):
    code = bytearray((GOLDEN / "version_3.rcc").read_bytes())
    code[place % len(code)] = value
    with contextlib.suppress(unpack_photos.PackageError):
        list(unpack_photos.unpack(bytes(code)))


@given(st.integers(4, 3000))
def test_a_truncated_file_raises_an_error(length):
    with pytest.raises(unpack_photos.PackageError, match="truncated"):
        list(unpack_photos.unpack((GOLDEN / "version_3.rcc").read_bytes()[:length]))


def test_a_folder_is_never_written_into_itself(theme, tmp_path, capsys):
    """Row 4 of the list of faults, its neighbor: --out is the folder of the photographs, under another name."""
    (tmp_path / "link").symlink_to(theme)
    before = {path: path.read_bytes() for path in theme.rglob("*") if path.is_file()}
    assert unpack_photos.main([str(theme), "--out", str(tmp_path / "link")]) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in theme.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["я" * 200, "a\0b", "..", "=x"])
def test_names_stay_in_the_folder(name):
    """Row 53: over-long names, NUL, and names that lead out of the folder."""
    found = f"{unpack_photos._shorten(name)}_{unpack_photos._shorten(name)}"
    assert is_file_name(found) and len(os.fsencode(found)) < 250
