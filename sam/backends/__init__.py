"""The models of stage 1, by name. Each family lives in a module of its own, which is imported when it is loaded.

This module imports nothing heavy, so that a command can list the models at once.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from IS_Net.errors import CheckpointError, MissingFileError, did_you_mean
from IS_Net.paths import sam_checkpoint_folders

if TYPE_CHECKING:
    import torch

    from sam.backends.base import StageOnePredictor

_SAM = "sam.backends.segment_anything"
_HQ_SAM = "sam.backends.hq_sam"
_TRANSFORMERS = "sam.backends.transformers"


class Backend(NamedTuple):
    """How a model is loaded.

    A module has a function ``load(model, checkpoint, device)`` that returns a
    :class:`sam.backends.base.StageOnePredictor`; every model must pass ``tests/sam/test_conformance.py``.

    Attributes:
        published: The published name of its weights, a file; None if it has no such file.
        of_file: The module that loads it from a file; None if no module does.
        of_folder: The module that loads it from a folder; None if no module does.
        source: Where its weights are published.
    """

    published: str | None = None
    of_file: str | None = None
    of_folder: str | None = None
    source: str = ""


CHECKPOINT_SOURCE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
"""Where SAM's checkpoints are published."""
_HQ_SOURCE = "https://github.com/SysCV/sam-hq#model-checkpoints"

BACKENDS: dict[str, Backend] = {
    "hq_vit_l": Backend("sam_hq_vit_l.pth", _HQ_SAM, _TRANSFORMERS, _HQ_SOURCE),
    "hq_vit_h": Backend("sam_hq_vit_h.pth", _HQ_SAM, _TRANSFORMERS, _HQ_SOURCE),
    "vit_l": Backend("sam_vit_l_0b3195.pth", _SAM, _TRANSFORMERS, CHECKPOINT_SOURCE),
    "vit_h": Backend("sam_vit_h_4b8939.pth", _SAM, _TRANSFORMERS, CHECKPOINT_SOURCE),
    "hq_vit_b": Backend("sam_hq_vit_b.pth", _HQ_SAM, _TRANSFORMERS, _HQ_SOURCE),
    "sam3": Backend(of_folder=_TRANSFORMERS, source="https://huggingface.co/facebook/sam3"),
    "sam2": Backend(of_folder=_TRANSFORMERS, source="https://huggingface.co/facebook/sam2.1-hiera-large"),
    "vit_b": Backend("sam_vit_b_01ec64.pth", _SAM, _TRANSFORMERS, CHECKPOINT_SOURCE),
    "hq_light": Backend("sam_hq_vit_tiny.pth", _HQ_SAM, None, _HQ_SOURCE),
    "mobile": Backend("mobile_sam.pt", "sam.backends.mobile_sam", None, "https://github.com/ChaoningZhang/MobileSAM"),
    "onnx": Backend(of_folder="sam.backends.onnx", source="https://github.com/vietanhdev/samexporter"),
    "box": Backend(of_file="sam.backends.box"),
}
"""The models; preferred ones come first."""

BOX = "box"
"""The model that needs no weights: its masks are the filled boxes. It is used where no checkpoint of SAM is found."""

NEEDS_SAM = (
    "points without a box need SAM: download a checkpoint (dis-sam fetch vit_l) and choose that model, or provide a box"
)
"""Error message for prompts that the model :data:`BOX` cannot take."""

ONNX_FORMATS = (".onnx", ".ort")
"""Extensions of ONNX models; the second one is onnxruntime's own format."""

_FETCHED = ("vit_l", "vit_h", "vit_b")
"""The models that ``dis-sam fetch`` downloads."""


def checkpoint_names() -> dict[str, str]:
    """Return the published file name of each model that ``dis-sam fetch`` downloads."""
    return {model: BACKENDS[model].published for model in _FETCHED}


def weight_names() -> dict[str, tuple[str, ...]]:
    """Return, for each model with weights, the names under which they are looked for.

    They are the published file, and a folder with the model's name.
    """
    return {
        model: tuple(filter(None, (backend.published, backend.of_folder and model)))
        for model, backend in BACKENDS.items()
        if model != BOX
    }


def found_weights() -> dict[str, Path]:
    """Return the models whose weights are found, with the file or folder; preferred ones come first."""
    return {model: path for model in weight_names() if (path := _find_weights(model))}


def available_model() -> str:
    """Return the first of :data:`BACKENDS` whose weights are found, or ``box``."""
    return next(iter(found_weights()), BOX)


def model_argument(text: str) -> str:
    """Check a model that a command is given: ``NAME``, ``NAME=PATH`` or ``auto``; a ``type`` of argparse.

    Raises:
        argparse.ArgumentTypeError: If the model is unknown.
    """
    model = split_model(text)[0]
    if text != "auto" and model not in BACKENDS:
        raise argparse.ArgumentTypeError(f"unknown model {model!r}{did_you_mean(model, BACKENDS)}")
    return text


def split_model(text: str) -> tuple[str, Path | None]:
    """Return name and path of ``NAME=PATH``; the path of a plain ``NAME`` is None."""
    model, _, path = text.partition("=")
    return model, Path(path).expanduser() if path else None


def how_to_fetch(model: str) -> str:
    """Return how to get the weights of a model, as the end of an error message."""
    if model in _FETCHED:
        return f"download it with `dis-sam fetch {model}`, or from {CHECKPOINT_SOURCE}"
    if model == "onnx":
        return (
            "get SAM 2 Hiera-Tiny with `python -m recipes.starter.fetch_sam2` (in a checkout), or export a model with "
            f"samexporter ({BACKENDS[model].source})"
        )
    return f"download it from {BACKENDS[model].source}"


def find_checkpoint(model: str, checkpoint: str | Path | None = None) -> Path | None:
    """Return the file or folder that a model is loaded from, or None if the model has no weights.

    Args:
        model: A name in :data:`BACKENDS`, or ``NAME=PATH``.
        checkpoint: The file or folder; None takes ``PATH``, or looks for the names of :func:`weight_names` in the
            folders that :func:`IS_Net.paths.sam_checkpoint_folders` lists.

    Raises:
        ValueError: If the model is unknown.
        CheckpointError: If a checkpoint is given for a model that has no weights, or a folder for one that is read from
            a file, or a file for one that is read from a folder.
        MissingFileError: If there is no checkpoint; the message says where to get it.
    """
    model, given = split_model(model)
    checkpoint = given if checkpoint is None else Path(checkpoint)
    if model not in BACKENDS:
        raise ValueError(f"unknown model {model!r}{did_you_mean(model, BACKENDS)}")
    if model == BOX:
        if checkpoint is not None:
            raise CheckpointError(f"{checkpoint}: {model} has no weights; omit the checkpoint, or choose another model")
        return None
    path = checkpoint or _find_weights(model)
    if path is None or not path.exists():
        folders = list(map(str, sam_checkpoint_folders()))
        names = " or ".join(weight_names()[model])
        found = f"{path} does not exist" if path else f"found no {names} in {' or '.join(folders)}"
        raise MissingFileError(
            f"SAM {model}: {found}; {how_to_fetch(model)} into {folders[0]}, or name its place with the "
            f"model, {model}=PATH. The model {BOX} needs no weights"
        )
    _module_for(model, path)
    return path


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights: the path itself, or those of a folder in order of their names.

    In a folder, they are ``*.safetensors``, or else ``*.bin`` (transformers' earlier format); and all ONNX models with
    their external data.
    """
    if not path.is_dir():
        return [path]
    found = {kind: sorted(path.glob(kind)) for kind in ("*.safetensors", "*.bin", "*.data", "*.onnx_data")}
    if models := model_files(path):
        return sorted({*models, *found["*.bin"], *found["*.data"], *found["*.onnx_data"]})
    return found["*.safetensors"] or found["*.bin"]


def model_files(folder: Path) -> list[Path]:
    """Return the ONNX models of a folder in order of their names."""
    return sorted(file for file in folder.iterdir() if file.suffix in ONNX_FORMATS)


def load_predictor(
    model: str = "vit_l", checkpoint: str | Path | None = None, device: str | torch.device = "auto"
) -> StageOnePredictor:
    """Load a model.

    Args:
        model: A name in :data:`BACKENDS`, or ``NAME=PATH``: ``vit_l``, ``vit_h`` or ``vit_b`` for SAM, ``hq_vit_l`` and
            so on for HQ-SAM, ``sam2``, ``sam3``, ``mobile``, ``onnx``; ``box`` for filled boxes, which need no weights.
        checkpoint: Its weights; see :func:`find_checkpoint`. A folder is read with transformers (or, of ``onnx``, with
            onnxruntime), a file with the package that its publisher wrote.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``, of SAM.

    Raises:
        ValueError: If the model is unknown.
        MissingFileError: If there is no checkpoint; the message says where to get it.
        CheckpointError: If the checkpoint is damaged, holds another model, or is given for a model without weights.
        MissingExtraError: If the package that the model needs is not installed.
        DeviceError: If the device is not available.
    """
    path = find_checkpoint(model, checkpoint)
    model = split_model(model)[0]
    return importlib.import_module(_module_for(model, path)).load(model, path, device)


def _module_for(model: str, path: Path | None) -> str:
    """Return the module that loads a model from a path; raise CheckpointError if there is none."""
    backend = BACKENDS[model]
    module = backend.of_folder if path is not None and path.is_dir() else backend.of_file
    if module is None:
        found, expected = ("a file", "a folder") if backend.of_file is None else ("a folder", "a file")
        raise CheckpointError(f"{path}: found {found}, expected {expected} for {model}; {how_to_fetch(model)}")
    return module


def _find_weights(model: str) -> Path | None:
    backend = BACKENDS[model]
    for folder in sam_checkpoint_folders():
        if backend.published and (folder / backend.published).is_file():
            return folder / backend.published
        if backend.of_folder and (folder / model).is_dir():
            return folder / model
    return None
