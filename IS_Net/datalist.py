"""The data sets, as the dicts that the training script takes.

Keys: ``name``; ``im_dir``, ``gt_dir``, ``mid_dir`` (the coarse masks of stage 1; ``mask_dir`` says the same);
``im_ext``, ``gt_ext``, ``mid_ext`` (``mask_ext``), the files' endings, or "" for any image; ``cache_dir``, where the
resized copies go, or "" to decode afresh each time (``cache_boost_*``, and a ``cache_size`` other than ``input_size``,
mean nothing then). Relative paths start at the folder of this file. An empty ``gt_dir`` stands for photographs without
ground truth, an empty ``mid_dir`` for a plain 3-channel IS-Net.

To use data of your own, copy an entry and edit it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

Dataset = dict[str, str]


def split(name: str, folder: str, im_ext: str = ".jpg") -> Dataset:
    """Return the entry of a folder in the DIS5K layout: ``im``, ``gt`` and ``mask`` side by side."""
    return {
        "name": name,
        "im_dir": f"{folder}/im",
        "gt_dir": f"{folder}/gt",
        "mid_dir": f"{folder}/mask",
        "im_ext": im_ext,
        "gt_ext": ".png",
        "mid_ext": ".png",
        "cache_dir": f"../data/cache/{name}",
    }


def from_folder(folder: str | Path, cache: bool = False, masks: str = "mask") -> Dataset:
    """Return an entry for a folder that holds ``im`` and, where there are such, ``gt`` and coarse masks.

    Args:
        folder: Its name becomes the data set's.
        cache: Whether to keep resized copies, in ``data/cache`` of this project.
        masks: The folder of the coarse masks in it; another than ``mask`` is added to the data set's name.
    """
    folder = Path(folder).resolve()
    entry = split(folder.name if masks == "mask" else f"{folder.name}-{masks}", str(folder), im_ext="")
    for key, sub in (("gt_dir", "gt"), ("mid_dir", masks)):
        entry[key] = str(folder / sub) if (folder / sub).is_dir() else ""
    return entry | {"cache_dir": _own_cache(folder) if cache else ""}


def photographs(folder: str | Path, cache: bool = False) -> Dataset:
    """Return an entry for a folder of photographs that are nothing else, as backgrounds are.

    Args:
        folder: Holds the photographs, itself or in ``im``.
        cache: Whether to keep resized copies, in ``data/cache`` of this project.
    """
    folder = Path(folder).resolve()
    entry = dict.fromkeys(split("", ""), "") | {"name": folder.name}
    entry["im_dir"] = str(folder / "im" if (folder / "im").is_dir() else folder)
    return entry | {"cache_dir": _own_cache(folder) if cache else ""}


def _own_cache(folder: Path) -> str:
    unique = hashlib.sha256(str(folder).encode()).hexdigest()[:8]  # folders of one name must not share a cache
    return f"../data/cache/{folder.name}-{unique}"


# DIS5K (https://xuebinqin.github.io/dis/index.html): 3,000 images to train on, 470 to validate, 4 x 500 to test
dataset_tr = split("DIS5K-TR", "../data/DIS5K/DIS-TR")
dataset_vd = split("DIS5K-VD", "../data/DIS5K/DIS-VD")
dataset_te1 = split("DIS5K-TE1", "../data/DIS5K/DIS-TE1")
dataset_te2 = split("DIS5K-TE2", "../data/DIS5K/DIS-TE2")
dataset_te3 = split("DIS5K-TE3", "../data/DIS5K/DIS-TE3")
dataset_te4 = split("DIS5K-TE4", "../data/DIS5K/DIS-TE4")

# the paper's ground-truth enrichment, which `python -m sam.generate_masks --enrich` writes
dataset_tr_enriched = split("DIS5K-TR-enriched", "../data/DIS5K/DIS-TR-enriched")

# the procedural sample that `python data/make_sample.py` writes
sample_tr = split("sample-TR", "../data/sample/DIS-TR")
sample_vd = split("sample-VD", "../data/sample/DIS-VD")
sample_te1 = split("sample-TE1", "../data/sample/DIS-TE1")


def named() -> dict[str, Dataset]:
    """Return every data set of this file by its variable's name."""
    return {name: value for name, value in globals().items() if name.startswith(("dataset_", "sample_"))}
