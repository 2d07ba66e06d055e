"""import_cutouts: pictures with an alpha channel become training pairs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from IS_Net.datalist import from_folder
from IS_Net.errors import ImageError
from IS_Net.images import read_cutout, read_image, read_mask
from IS_Net.samples import find_samples
from recipes.starter.import_cutouts import MIN_SIDE, is_photograph, main, paste_onto


def noisy_disc(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (height, width, 4) uint8 RGBA: an ellipse of many colors that touches all sides."""
    rgba = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    alpha = np.zeros((height, width), np.uint8)
    cv2.ellipse(alpha, (width // 2, height // 2), (width // 2, height // 2), 0, 0, 360, 255, -1)
    rgba[..., 3] = alpha
    return rgba


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture
def photographs(tmp_path) -> Path:
    for number in range(2):
        write(tmp_path / "photos" / f"{number}.png", np.full((40, 60, 3), 90 * number, np.uint8))
    return tmp_path / "photos"


def test_a_folder_becomes_a_data_set(tmp_path, photographs, capsys):
    """Subfolders count; equal names stay apart; drawings and small pictures are left out; errors are printed."""
    disc = noisy_disc(200, 260)
    write(tmp_path / "cuts" / "a" / "disc.png", disc)
    write(tmp_path / "cuts" / "b" / "disc.png", noisy_disc(300, 200, 1))
    flat = disc.copy()
    flat[..., :3] = 200
    write(tmp_path / "cuts" / "drawing.png", flat)
    write(tmp_path / "cuts" / "small.png", noisy_disc(100, 100))
    write(tmp_path / "cuts" / "opaque.png", disc[..., :3])
    (tmp_path / "cuts" / "broken.png").write_bytes(b"")
    out = tmp_path / "out"
    code = main([str(tmp_path / "cuts"), "--backgrounds", str(photographs), "--out", str(out)])
    assert code == 1  # two files cannot be used
    printed = capsys.readouterr()
    assert "2 pairs from 6" in printed.out
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "broken.png: " in errors[0] and "opaque.png: " in errors[1]
    assert "no transparency" in errors[1]
    samples = find_samples(from_folder(out), need_mask=False, need_gt=True)
    assert [sample.name for sample in samples] == ["disc", "disc_"]
    image, alpha = read_image(samples[0].image), read_mask(samples[0].gt)
    y, x = np.argwhere(alpha)[:, 0].min(), np.argwhere(alpha)[:, 1].min()
    assert np.array_equal(alpha[y : y + 200, x : x + 260], disc[..., 3])
    found = image[y : y + 200, x : x + 260]
    assert np.array_equal(found[disc[..., 3] == 255], disc[..., :3][disc[..., 3] == 255])
    assert np.ptp(image[alpha == 0]) <= 1  # the photographs are of one color

    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    main([str(tmp_path / "cuts"), "--backgrounds", str(photographs), "--out", str(out)])
    assert before == {path: path.read_bytes() for path in out.rglob("*.png")}


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 300), width=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_a_cutout_is_completely_inside_the_image(height, width, seed):
    cutout = noisy_disc(height, width)
    image, alpha = paste_onto(cutout, np.zeros((9, 7, 3), np.uint8), np.random.default_rng(seed))
    assert image.shape == (*alpha.shape, 3) and alpha.shape[0] == alpha.shape[1]
    assert np.sort(alpha[alpha > 0]).tolist() == np.sort(cutout[..., 3][cutout[..., 3] > 0]).tolist()
    assert 0.4 < max(height, width) / (alpha.shape[0] + 1) <= 1 or max(height, width) < 10


def test_a_photograph_has_many_colors():
    many = noisy_disc(MIN_SIDE, MIN_SIDE)
    assert is_photograph(many)
    assert not is_photograph(many // 64 * 64)
    assert not is_photograph(noisy_disc(MIN_SIDE - 1, MIN_SIDE - 1))
    hidden = many.copy()
    hidden[..., 3] = 100  # invisible colors do not count
    assert not is_photograph(hidden)


def test_pictures_without_an_error_exit_with_0(tmp_path, photographs, capsys):
    write(tmp_path / "cuts" / "disc.png", noisy_disc(200, 260))
    assert main([str(tmp_path / "cuts"), "--backgrounds", str(photographs), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "1 pairs from 1" in printed.out and "error" not in printed.err


def test_folders_that_cannot_be_used_are_named(tmp_path, photographs, capsys):
    nothing = noisy_disc(200, 200)
    nothing[..., 3] = 0
    path = write(tmp_path / "cuts" / "nothing.png", nothing)
    with pytest.raises(ImageError, match=r"nothing\.png: .*transparent"):
        read_cutout(path)
    out = ["--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "cuts"), "--backgrounds", str(photographs), *out]) == 2
    assert "cuts: found no cut-out of a photograph" in capsys.readouterr().err
    assert main([str(tmp_path / "gone"), "--backgrounds", str(photographs), *out]) == 2
    assert "gone: the folder does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "cuts"), "--backgrounds", str(tmp_path / "empty"), *out]) == 2
    assert "empty: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_margins_are_cropped(tmp_path):
    wide = np.zeros((300, 400, 4), np.uint8)
    disc = noisy_disc(200, 250)
    wide[40:240, 60:310] = disc
    assert np.array_equal(read_cutout(write(tmp_path / "wide.png", wide))[..., 3], disc[..., 3])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_are_never_replaced(tmp_path, photographs, capsys):
    """Row 4 of the list of faults: --out D for the pictures in D/im."""
    write(tmp_path / "data" / "im" / "disc.png", noisy_disc(200, 260))
    before = contents(tmp_path)
    for out in (tmp_path / "data", tmp_path / "data" / "im", photographs):
        arguments = [str(tmp_path / "data" / "im"), "--backgrounds", str(photographs), "--out", str(out)]
        assert main(arguments) == 2
        assert "would replace the input" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_second_import_with_equal_names_replaces_no_pair(tmp_path, photographs, capsys):
    """Row 4c: the pairs of the first import, and ground truths drawn by hand, were replaced."""
    out = tmp_path / "out"
    common = ["--backgrounds", str(photographs), "--out", str(out)]
    write(tmp_path / "one" / "disc.png", noisy_disc(200, 260))
    assert main([str(tmp_path / "one"), *common]) == 0
    before = contents(out)
    write(tmp_path / "two" / "disc.png", noisy_disc(220, 260))
    write(tmp_path / "two" / "new.png", noisy_disc(230, 260))
    assert main([str(tmp_path / "two"), *common]) == 1
    assert "out/gt/disc.png and " in (message := capsys.readouterr().err) and "another content" in message
    after = contents(out)
    assert {path: after[path] for path in before} == before
    assert {path.name for path in after.keys() - before.keys()} == {"new.png"}


def test_empty_files_of_a_power_cut_are_made_again(tmp_path, photographs):
    """Row 40: 0-byte files under their final names."""
    write(tmp_path / "one" / "disc.png", noisy_disc(200, 260))
    arguments = [str(tmp_path / "one"), "--backgrounds", str(photographs), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "gt" / "disc.png").write_bytes(b"")
    assert main(arguments) == 0 and contents(tmp_path / "out") == before
