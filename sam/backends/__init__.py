"""The models of stage 1, by name. Each family lives in a module of its own, which is imported when it is loaded.

This module imports nothing heavy, so that a command can list the models at once.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from IS_Net.errors import CheckpointError, did_you_mean
from IS_Net.paths import sam_checkpoint_folders

if TYPE_CHECKING:
    import torch

    from sam.backends.base import StageOnePredictor

BACKENDS: dict[str, str] = {
    "vit_l": "sam.backends.segment_anything",
    "vit_h": "sam.backends.segment_anything",
    "vit_b": "sam.backends.segment_anything",
    "box": "sam.backends.box",
}
"""The module of each model; preferred models come first. A module has a function ``load(model, checkpoint, device)``
that returns a :class:`sam.backends.base.StageOnePredictor`; every model must pass ``tests/sam/test_conformance.py``."""

BOX = "box"
"""The model that needs no weights: its masks are the filled boxes. It is used where no checkpoint of SAM is found."""

NEEDS_SAM = (
    "points without a box need SAM: download a checkpoint (dis-sam fetch vit_l) and choose that model, or provide a box"
)
"""Error message for prompts that the model :data:`BOX` cannot take."""

CHECKPOINT_SOURCE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
"""Where the checkpoints are published."""

_CHECKPOINTS = {
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
    "vit_b": "sam_vit_b_01ec64.pth",
}


def checkpoint_names() -> dict[str, str]:
    """Return the published file name of each model that needs a checkpoint."""
    return dict(_CHECKPOINTS)


def available_model() -> str:
    """Return the preferred model whose checkpoint is found: ``vit_l``, ``vit_h``, ``vit_b``, else ``box``."""
    return next((model for model in _CHECKPOINTS if _find_published(model)), BOX)


def how_to_fetch(model: str) -> str:
    """Return how to get the checkpoint of a model of SAM, as the end of an error message."""
    return f"download it with `dis-sam fetch {model}`, or from {CHECKPOINT_SOURCE}"


def find_checkpoint(model: str, checkpoint: str | Path | None = None) -> Path | None:
    """Return the checkpoint that a model is loaded from, or None if the model has no weights.

    Args:
        model: A name in :data:`BACKENDS`.
        checkpoint: The file; None looks for the published file name in the folders that
            :func:`IS_Net.paths.sam_checkpoint_folders` lists.

    Raises:
        ValueError: If the model is unknown.
        CheckpointError: If a checkpoint is given for a model that has no weights.
        FileNotFoundError: If there is no checkpoint; the message names the command that downloads it.
    """
    if model not in BACKENDS:
        raise ValueError(f"unknown model {model!r}{did_you_mean(model, BACKENDS)}")
    if model not in _CHECKPOINTS:
        if checkpoint is not None:
            raise CheckpointError(f"{checkpoint}: {model} has no weights; omit the checkpoint, or choose another model")
        return None
    path = Path(checkpoint) if checkpoint is not None else _find_published(model)
    if path is None or not path.is_file():
        name, folders = _CHECKPOINTS[model], list(map(str, sam_checkpoint_folders()))
        found = f"{path} does not exist" if path else f"found no {name} in {' or '.join(folders)}"
        raise FileNotFoundError(
            f"SAM {model}: {found}; {how_to_fetch(model)} into {folders[0]}, or pass the path of a checkpoint "
            f"(--checkpoint). The model {BOX} needs no weights (--model {BOX})"
        )
    return path


def load_predictor(
    model: str = "vit_l", checkpoint: str | Path | None = None, device: str | torch.device = "auto"
) -> StageOnePredictor:
    """Load a model.

    Args:
        model: ``vit_l``, ``vit_h`` or ``vit_b`` for SAM, ``box`` for filled boxes, which need no weights.
        checkpoint: SAM's weights; see :func:`find_checkpoint`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``, of SAM.

    Raises:
        ValueError: If the model is unknown.
        FileNotFoundError: If there is no checkpoint; the message names the command that downloads it.
        CheckpointError: If the checkpoint is damaged, holds another model, or is given for a model without weights.
        MissingExtraError: If the package that the model needs is not installed.
        DeviceError: If the device is not available.
    """
    path = find_checkpoint(model, checkpoint)
    return importlib.import_module(BACKENDS[model]).load(model, path, device)


def _find_published(model: str) -> Path | None:
    paths = (folder / _CHECKPOINTS[model] for folder in sam_checkpoint_folders())
    return next((path for path in paths if path.is_file()), None)
