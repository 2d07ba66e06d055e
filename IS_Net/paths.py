"""Where things are: the home folder, the caches, the weights.

The home folder is, in this order: the environment variable ``DIS_SAM_HOME``; the checkout, when the project runs from
one; the user's data folder. It has the checkout's layout: ``data/``, ``saved_models/``, ``sam/notebooks/``. Installed
files are only read.
"""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path, user_data_path

_PACKAGE = Path(__file__).resolve().parent
STARTER_NAME = "dis_sam_starter.safetensors"
"""File name of the starter weights."""


def checkout() -> Path | None:
    """Return the root of the checkout that the project runs from, or None if it is installed from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "saved_models").is_dir() else None


def _from_environment() -> Path | None:
    folder = os.environ.get("DIS_SAM_HOME")
    return Path(folder).expanduser().resolve() if folder else None


def home() -> Path:
    """Return the folder that holds the user's data and weights; it may not exist yet."""
    return _from_environment() or checkout() or user_data_path("dis-sam", appauthor=False)


def cache() -> Path:
    """Return the folder of everything that can be computed again; it may not exist yet."""
    if _from_environment() is None and checkout() is None:
        return user_cache_path("dis-sam", appauthor=False)
    return home() / "data" / "cache"


def saved_models() -> Path:
    """Return the folder where weights are looked for and written by default."""
    return home() / "saved_models"


def settings_base() -> Path:
    """Return the folder at which relative paths in ``hypar`` and datalist.py start.

    It is ``IS_Net/`` in the home folder: the published code runs inside that folder, so its paths begin with ``../``.
    """
    return home() / "IS_Net"


def resolve(path: str | Path, base: Path | None = None) -> Path:
    """Return an absolute path; a relative one starts at ``base``, or at :func:`settings_base` if that is None."""
    return ((settings_base() if base is None else base) / Path(path).expanduser()).resolve()


def starter_weights() -> Path:
    """Return the file of the starter weights that come with the project."""
    root = checkout()
    return (root / "saved_models" if root else _PACKAGE / "weights") / STARTER_NAME


def sam_checkpoint_folders() -> list[Path]:
    """Return the folders in which SAM's checkpoints are looked for, in order."""
    roots = [root for root in (checkout(), home()) if root is not None]
    folders = [root / part for root in roots for part in ("sam/notebooks", "saved_models")]
    return list(dict.fromkeys(folders))
