"""DIS-SAM: a box around a thing in a photograph becomes a pixel-accurate mask of it.

    from dis_sam import load, refine

    alpha = refine("photo.jpg", "mask.png")  # any coarse mask -> (H, W) float32 in [0, 1]

The names below are imported when they are first used, so that ``import dis_sam`` takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from dis_sam.pipeline import DISSAM, Result, load, refine
    from IS_Net.images import read_image
    from IS_Net.predictor import DISPredictor

_MODULES = {
    "DISPredictor": "IS_Net.predictor",
    "DISSAM": "dis_sam.pipeline",
    "Result": "dis_sam.pipeline",
    "load": "dis_sam.pipeline",
    "read_image": "IS_Net.images",
    "refine": "dis_sam.pipeline",
}

__all__ = ["DISSAM", "DISPredictor", "Result", "__version__", "load", "read_image", "refine"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dis_sam' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
