"""The list of data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from IS_Net import datalist, paths

ROOT = Path(__file__).resolve().parents[2]

KEYS = {"name", "im_dir", "gt_dir", "mid_dir", "im_ext", "gt_ext", "mid_ext", "cache_dir"}


def test_data_sets_have_the_published_keys():
    named = datalist.named()
    wanted = {f"dataset_{split}" for split in ("tr", "vd", "te1", "te2", "te3", "te4", "tr_enriched")}
    assert named.keys() == wanted | {f"sample_{split}" for split in ("tr", "vd", "te1")}
    for entry in named.values():
        assert entry.keys() == KEYS
        assert all(isinstance(value, str) for value in entry.values())
        folder = Path(entry["im_dir"]).parent
        assert [Path(entry[key]) for key in ("im_dir", "gt_dir", "mid_dir")] == [
            folder / sub for sub in ("im", "gt", "mask")
        ]
        assert paths.resolve(folder).is_relative_to(ROOT / "data")
    for key in ("name", "im_dir", "cache_dir"):  # no two of them in one place
        assert len({entry[key] for entry in named.values()}) == len(named)


def test_data_set_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "photos" / "im").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    entry = datalist.from_folder("photos")
    assert entry.keys() == KEYS
    assert entry["name"] == "photos"
    assert entry["im_dir"] == str(tmp_path / "photos" / "im")
    assert (entry["gt_dir"], entry["mid_dir"], entry["cache_dir"], entry["im_ext"]) == ("", "", "", "")
    assert (entry["gt_ext"], entry["mid_ext"]) == ("", "")  # ground truths and masks in any format
    for sub in ("gt", "mask"):
        (tmp_path / "photos" / sub).mkdir()
    entry = datalist.from_folder(tmp_path / "photos")
    assert (entry["gt_dir"], entry["mid_dir"]) == (str(tmp_path / "photos/gt"), str(tmp_path / "photos/mask"))


@pytest.mark.parametrize("sub", ["im", ""])
def test_photographs_are_images_alone(tmp_path: Path, sub: str):
    (tmp_path / "streets" / sub).mkdir(parents=True)
    (tmp_path / "streets" / "gt").mkdir()  # not looked at: of a background nothing is asked for but its pixels
    entry = datalist.photographs(tmp_path / "streets")
    assert entry.keys() == KEYS
    assert entry["name"] == "streets"
    assert entry["im_dir"] == str(tmp_path / "streets" / sub).rstrip("/")
    assert not any(entry[key] for key in KEYS - {"name", "im_dir"})
    cached = datalist.photographs(tmp_path / "streets", cache=True)["cache_dir"]
    assert cached == datalist.from_folder(tmp_path / "streets", cache=True)["cache_dir"] != ""
    (tmp_path / "other" / "streets").mkdir(parents=True)
    assert datalist.photographs(tmp_path / "other" / "streets", cache=True)["cache_dir"] != cached
