"""The data sets, as the dicts that the training script takes.

Keys of an entry:

- ``name``;
- ``im_dir``, ``gt_dir``, ``mid_dir``: folders of the images, the ground truths and the coarse masks of stage 1
  (``mask_dir`` is another name of ``mid_dir``). An empty ``gt_dir`` means that there is no ground truth; an empty
  ``mid_dir`` means that there are no coarse masks, which only a 3-channel IS-Net allows;
- ``im_ext``, ``gt_ext``, ``mid_ext`` (or ``mask_ext``): file extensions; "" takes all image files;
- ``cache_dir``: folder of the resized copies; "" decodes the files each time, and ``cache_size`` and ``cache_boost_*``
  have no effect then.

Relative paths start at ``IS_Net/`` in the checkout (:func:`IS_Net.paths.settings_base`). To use your own data, copy an
entry and edit it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from IS_Net import paths
from IS_Net.errors import DatasetError

Dataset = dict[str, str]


def split(name: str, folder: str, im_ext: str = ".jpg") -> Dataset:
    """Return the entry of a folder in the DIS5K layout, with subfolders ``im``, ``gt`` and ``mask``."""
    return {
        "name": name,
        "im_dir": f"{folder}/im",
        "gt_dir": f"{folder}/gt",
        "mid_dir": f"{folder}/mask",
        "im_ext": im_ext,
        "gt_ext": ".png",
        "mid_ext": ".png",
        "cache_dir": str(paths.cache() / name),
    }


def from_folder(folder: str | Path, cache: bool = False, masks: str = "mask") -> Dataset:
    """Return the entry of a folder that holds ``im`` and may hold ``gt`` and coarse masks, in any image format.

    Args:
        folder: Its name becomes the name of the data set.
        cache: Whether to cache resized copies, in :func:`IS_Net.paths.cache`.
        masks: Subfolder of the coarse masks; if it is not ``mask``, it is added to the name of the data set.
    """
    folder = Path(folder).resolve()
    entry = split(folder.name if masks == "mask" else f"{folder.name}-{masks.replace('/', '-')}", str(folder))
    entry |= dict.fromkeys(("im_ext", "gt_ext", "mid_ext"), "")
    for key, sub in (("gt_dir", "gt"), ("mid_dir", masks)):
        entry[key] = str(folder / sub) if (folder / sub).is_dir() else ""
    return entry | {"cache_dir": _folder_cache(folder) if cache else ""}


def photographs(folder: str | Path, cache: bool = False) -> Dataset:
    """Return the entry of a folder of images without masks or ground truth, such as copy-paste backgrounds.

    Args:
        folder: Holds the images, directly or in ``im``.
        cache: Whether to cache resized copies, in :func:`IS_Net.paths.cache`.
    """
    folder = Path(folder).resolve()
    entry = dict.fromkeys(split("", ""), "") | {"name": folder.name}
    entry["im_dir"] = str(folder / "im" if (folder / "im").is_dir() else folder)
    return entry | {"cache_dir": _folder_cache(folder) if cache else ""}


def _folder_cache(folder: Path) -> str:
    unique = hashlib.sha256(str(folder).encode()).hexdigest()[:8]  # two folders of one name must not share a cache
    return str(paths.cache() / f"{folder.name}-{unique}")


# DIS5K (https://xuebinqin.github.io/dis/index.html): 3,000 images for training, 470 for validation, 4 x 500 for testing
dataset_tr = split("DIS5K-TR", "../data/DIS5K/DIS-TR")
dataset_vd = split("DIS5K-VD", "../data/DIS5K/DIS-VD")
dataset_te1 = split("DIS5K-TE1", "../data/DIS5K/DIS-TE1")
dataset_te2 = split("DIS5K-TE2", "../data/DIS5K/DIS-TE2")
dataset_te3 = split("DIS5K-TE3", "../data/DIS5K/DIS-TE3")
dataset_te4 = split("DIS5K-TE4", "../data/DIS5K/DIS-TE4")

# the GT enrichment of the paper, written by `dis-sam masks --enrich`
dataset_tr_enriched = split("DIS5K-TR-enriched", "../data/DIS5K/DIS-TR-enriched")

# the procedural sample set, written by `python data/make_sample.py`
sample_tr = split("sample-TR", "../data/sample/DIS-TR")
sample_vd = split("sample-VD", "../data/sample/DIS-VD")
sample_te1 = split("sample-TE1", "../data/sample/DIS-TE1")


def named() -> dict[str, Dataset]:
    """Return the entries of this file by their variable names."""
    return {name: value for name, value in globals().items() if name.startswith(("dataset_", "sample_"))}


def find_datasets(names: str, cache: bool) -> list[Dataset]:
    """Return the entries of data sets that are given as text.

    Args:
        names: Variable names of this file or folders, separated by commas. FOLDER:SUB takes the coarse masks of a
            folder from FOLDER/SUB instead of FOLDER/mask.
        cache: Whether folders are cached, as :func:`from_folder` takes it.

    Raises:
        DatasetError: If a name is neither an entry nor a folder.
    """
    known, entries = named(), []
    for name in filter(None, map(str.strip, names.split(","))):
        folder, _, masks = name.rpartition(":")
        if name in known:
            entries.append(known[name])
        elif Path(name).is_dir():
            entries.append(from_folder(name, cache))
        elif folder and (Path(folder) / masks).is_dir():
            entries.append(from_folder(folder, cache, masks))
        else:
            raise DatasetError(
                f"{name!r} is neither a data set of datalist.py ({', '.join(known)}) nor a folder; check the spelling"
            )
    return entries
