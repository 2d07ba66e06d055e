"""Files are whole or absent after a kill or a power cut, leftovers are removed, and inputs are never replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from IS_Net import files
from IS_Net.errors import DatasetError
from IS_Net.files import (
    atomic_file,
    content_hash,
    from_spreadsheet_text,
    is_file_name,
    refuse_to_replace,
    refuse_to_replace_data,
    remove_leftovers,
    spreadsheet_text,
)
from IS_Net.images import list_images, write_image


def test_after_a_power_cut_a_name_stands_for_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Row 40 of the list of faults: names were on the disk before the content, which left 0-byte files.

    The model of a power cut: of a file, what the last fsync covered remains; of a folder, the names at its last fsync.
    """
    content: dict[int, int] = {}  # bytes on the disk by inode
    names: dict[Path, dict[str, int]] = {}  # names on the disk by folder
    broken = []
    fsync, replace = os.fsync, Path.replace

    def synchronized(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            names[path] = {child.name: child.stat().st_ino for child in path.iterdir()}
        else:
            content[path.stat().st_ino] = path.stat().st_size

    def renamed(self: Path, target: Path) -> Path:
        if content.get(self.stat().st_ino) != self.stat().st_size:
            broken.append(target)
        return replace(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", synchronized)
    monkeypatch.setattr(Path, "replace", renamed)
    path = tmp_path / "new" / "deep" / "file.bin"
    for size in (100_000, 10):
        with atomic_file(path) as file:
            file.write(b"x" * size)
        assert broken == []
        inode = path.stat().st_ino
        assert names[path.parent]["file.bin"] == inode and content[inode] == size
        assert "deep" in names[tmp_path / "new"] and "new" in names[tmp_path]


KILLED = """
import os, signal, sys
from IS_Net.files import atomic_file
with atomic_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_live_one_kept(tmp_path: Path):
    """Issue: .part files of killed runs stayed for ever. They never count as images, and only dead owners lose them."""
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.png")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.png.") and left.name.endswith(".part")
    (tmp_path / ".mine.part").write_text("not of this project")
    write_image(tmp_path / "b.png", np.zeros((2, 2), np.uint8))
    assert list_images(tmp_path).keys() == {"b"}
    with atomic_file(tmp_path / "c.png") as file:
        remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {".mine.part", "b.png", Path(file.name).name}
        file.write(b"c")
    assert (tmp_path / "c.png").read_bytes() == b"c"


def test_leftovers_of_another_machine_are_removed_after_a_day(tmp_path: Path):
    """Whether a process of another machine still runs cannot be found out."""
    part = tmp_path / ".a.png.0123abcd-1-2-3.part"
    part.touch()
    remove_leftovers(tmp_path)
    assert part.exists()
    os.utime(part, (0, 0))
    remove_leftovers(tmp_path)
    assert not part.exists()


def test_a_process_number_that_is_used_again_is_another_owner(tmp_path: Path):
    """After a reboot, another process has the number."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("the start of a process is only known on Linux")
    part = tmp_path / f".a.png.{files._host()}-{os.getpid()}-1-2.part"
    part.touch()
    remove_leftovers(tmp_path)
    assert not part.exists()


def test_a_full_disk_names_the_file_and_leaves_the_former_one(tmp_path: Path):
    """Row 23: a message without the file's name."""
    path = tmp_path / "file.txt"
    path.write_text("former")
    message = r"No space left on device; the file is as it was before: .*file.txt'"
    with pytest.raises(OSError, match=message) as error, atomic_file(path, "w") as file:
        file.write("half")
        raise OSError(28, "No space left on device")
    assert error.value.errno == 28
    assert path.read_text() == "former" and list(tmp_path.iterdir()) == [path]


def test_a_full_device(tmp_path: Path):
    """A real device without space: the error comes when the file is flushed."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    code = """
import sys
from pathlib import Path
from IS_Net import files
files._temporary = lambda path: Path("/dev/full")
Path.unlink = lambda *_, **__: None
try:
    with files.atomic_file(sys.argv[1]) as file:
        file.write(b"x")
except OSError as error:
    print(error.errno, error.filename)
"""
    path = str(tmp_path / "x.bin")
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["28", path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    """Row 23: a path below a file."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="/file"), atomic_file(tmp_path / "file" / "below.txt"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="/folder'"), atomic_file(tmp_path / "folder"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "я" * 125 + ".png"])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str):
    """The temporary name must not be longer than the file system allows."""
    with atomic_file(tmp_path / name) as file:
        file.write(b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(OSError, match="too long"), atomic_file(tmp_path / ("n" * 300)):
        pass


def test_content_hash(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    before = content_hash(path)
    os.utime(path, (0, 0))
    assert content_hash(path) == before and len(before) == 32
    path.write_bytes(b"x" * 2_999_999 + b"y")
    assert content_hash(path) != before


def test_an_output_that_is_an_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows 1, 2, 4: whatever the name, a symbolic link, a hard link and a relative path included."""
    folder, file = tmp_path / "im", tmp_path / "im" / "a.png"
    folder.mkdir()
    file.touch()
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "hard.png").hardlink_to(file)
    monkeypatch.chdir(folder)
    for output in (folder, tmp_path / "link", Path(), Path("../im"), tmp_path / "link" / ".." / "im"):
        with pytest.raises(DatasetError, match=r"would replace the input.*same folder; write to another folder"):
            refuse_to_replace([tmp_path / "new", output], [None, folder, tmp_path / "missing"])
    for output in ("a.png", tmp_path / "hard.png", tmp_path / "link" / "a.png"):
        with pytest.raises(DatasetError, match=r"a.png.*same file"):
            refuse_to_replace([output], [file])
    refuse_to_replace([tmp_path, folder / "new", "b.png", tmp_path / "hard.png"], [folder, tmp_path / "none"])


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "'=x", "''=x", "\tx", "a=b", "'a", "", "1.5"])
def test_texts_of_spreadsheets_are_no_formulas(text: str):
    """Row 53: a name that starts with = was written raw into a CSV file."""
    written = spreadsheet_text(text)
    assert not written.startswith(("=", "+", "-", "@", "\t"))
    assert from_spreadsheet_text(written) == text


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0", None, 3])
def test_names_that_are_no_file_names(name: object):
    """Row 53: names cannot lead out of the output folder."""
    assert not is_file_name(name)
    assert is_file_name("a..b") and is_file_name("=é")


def test_reports_never_replace_the_data_that_they_are_about(tmp_path: Path):
    """Row 1, a neighbor: `--json D/im/a.png`, `--sheet D/im/a.jpg`."""
    image, report = tmp_path / "im" / "a.png", tmp_path / "im" / "report.json"
    image.parent.mkdir()
    image.touch()
    report.touch()
    (tmp_path / "sheet.jpg").symlink_to(image)
    for output in (image, tmp_path / "sheet.jpg"):
        with pytest.raises(DatasetError, match="would replace the input"):
            refuse_to_replace_data([output], [tmp_path])
    refuse_to_replace_data([report, tmp_path / "new.png"], [tmp_path])


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_is_refused_as_a_folder(path: str):
    with pytest.raises(IsADirectoryError), atomic_file(path):
        pass
