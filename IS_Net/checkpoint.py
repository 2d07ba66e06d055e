"""Save and load weights and training states.

Weights are saved as safetensors files with metadata, in full precision or in 8 bits. The ``.pth`` files of the
published IS-Net and DIS-SAM can be loaded too, as can ``.onnx`` exports of IS-Net. A training state, ``last.pt``, holds
everything that a run needs to resume. Files are written atomically, and loading one never runs code that it holds.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from IS_Net import int8 as int8_storage
from IS_Net.errors import CheckpointError
from IS_Net.images import atomic_file
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.models.input_channels import add_mask_skip, expand_input
from IS_Net.onnx_weights import OnnxError, read_onnx
from IS_Net.preprocess import MASK_CHANNEL

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
Metadata = dict[str, Any]

STATE_VERSION = 2
_WRAPPERS = ("ema_model", "state_dict", "model_state_dict", "model", "net")  # the first one is a training state's
_GT_ENCODER_STEM = "conv_in.conv.weight"
_IN_CH = (3, 4, 5)
_METADATA_KEY = "dis-sam"
_STORAGE = "storage"


def save_weights(path: str | Path, model: nn.Module, metadata: Mapping[str, Any], int8: bool = False) -> None:
    """Write a network's weights as a safetensors file.

    Args:
        path: The file.
        model: The network.
        metadata: JSON-serializable; :func:`read_weights` returns it.
        int8: Store convolution weights in 8 bits, as :func:`IS_Net.int8.pack` does. The file's metadata then also has
            ``"storage": "int8"``, which :func:`read_weights` removes.

    Raises:
        CheckpointError: If ``int8`` is set and a weight is not finite.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = dict(metadata)
    if int8:
        metadata[_STORAGE] = "int8"
        try:
            weights = int8_storage.pack(weights)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}; save it without int8, or check the training") from error
    with atomic_file(path) as file:
        file.write(serialize(weights, metadata={_METADATA_KEY: json.dumps(metadata)}))


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a training state (plain Python values and tensors only) for :func:`load_state`."""
    with atomic_file(path) as file:
        torch.save({"version": STATE_VERSION, **state}, file)


def _require_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: the checkpoint does not exist; saved_models/README.md says where to get one")
    return path


def load_torch_file(path: str | Path) -> Any:
    """Read a ``.pth`` or ``.pt`` file without running code that it may hold.

    This is the only call of ``torch.load`` in the project.

    Args:
        path: The file; its tensors are loaded onto the CPU.

    Returns:
        What the file holds: tensors and plain Python values.

    Raises:
        CheckpointError: If the file is missing, is damaged, or holds anything but tensors and plain values.
    """
    return _load_pickled(_require_file(path))


def _load_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, which could run code when loaded, or is damaged; "
            "save only its state_dict() and load that"
        ) from error
    except Exception as error:  # damaged bytes, read as a pickle, raise errors of all types
        raise CheckpointError(f"{path}: cannot be read; it is damaged or not a checkpoint ({error})") from error


_OLD_SETTINGS = {"composite": "copy_paste", "mask_path": "mask_skip_logit", "lr_stem": "lr_stem_factor"}


def upgrade_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a training state of version 1 to the names of the current version."""
    names = {"facts": "metadata", "average": "ema_model", "teacher": "gt_encoder"}
    state = {names.get(key, key): value for key, value in state.items()}
    if isinstance(state.get("progress"), dict):
        progress = state["progress"]
        state["progress"] = {"patience_count" if key == "stale" else key: value for key, value in progress.items()}
    if isinstance(state.get("settings"), dict):
        state["settings"] = {_OLD_SETTINGS.get(key, key): value for key, value in state["settings"].items()}
    return {**state, "version": STATE_VERSION}


def _load_current(path: Path) -> Any:
    """Read a ``.pth`` or ``.pt`` file; a training state of an earlier version is converted."""
    content = _load_pickled(path)
    return upgrade_state(content) if isinstance(content, dict) and content.get("version") == 1 else content


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a training state.

    Raises:
        CheckpointError: If the file is missing, damaged, or not a training state of a known version.
    """
    path = _require_file(path)
    state = _load_current(path)
    version = state.get("version") if isinstance(state, dict) else None
    if version != STATE_VERSION:
        raise CheckpointError(
            f"{path}: expected a training state of version 1 or {STATE_VERSION}, found version {version}; to start a "
            "new run from its weights, give the file another name than last.pt"
        )
    return state


def _read_safetensors(path: Path) -> tuple[Weights, Metadata]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}")))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); copy it again") from error
    storage = metadata.pop(_STORAGE, None)
    if storage not in (None, "int8"):
        raise CheckpointError(f"{path}: is stored as {storage}; expected int8 or plain floats: update DIS-SAM")
    if storage == "int8":
        try:
            weights = int8_storage.unpack(weights)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}; copy the file again") from error
    return weights, metadata


def read_weights(path: str | Path) -> tuple[Weights, Metadata]:
    """Read the weights of any checkpoint and its metadata ({} if it has none).

    Args:
        path: A ``.safetensors`` file of :func:`save_weights`; an ``.onnx`` export of IS-Net
            (:func:`IS_Net.onnx_weights.read_onnx`); a training state, whose EMA is taken if it has one; or a published
            ``.pth``: a state dict, or one under ``state_dict`` or a similar key. The prefix ``module.`` of
            DataParallel is removed.

    Raises:
        CheckpointError: If the file is missing, damaged, or does not hold a state dict.
    """
    path = _require_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".onnx":
        try:
            return read_onnx(path)
        except OnnxError as error:
            raise CheckpointError(f"{path}: {error}") from error
    content = _load_current(path)
    is_state = isinstance(content, dict) and content.get("version") == STATE_VERSION
    metadata = content.get("metadata", {}) if is_state else {}
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(
            f"{path}: expected a state dict (names to tensors), found {type(content).__name__}; save the network's "
            "state_dict()"
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}, metadata


def input_channels(weights: Weights, path: str | Path) -> int:
    """Return the number of input channels of IS-Net weights: that of the first convolution.

    Args:
        weights: A state dict.
        path: Its file, for messages.

    Raises:
        CheckpointError: If the weights are not those of an ISNetDIS with 3, 4 or 5 input channels.
    """
    stem = weights.get("conv_in.weight")
    if stem is None or stem.ndim != 4:
        found = "a GT encoder" if _GT_ENCODER_STEM in weights else "another network"
        raise CheckpointError(
            f"{path}: expected weights of ISNetDIS (conv_in.weight), found those of {found}; choose another checkpoint"
        )
    if stem.shape[1] not in _IN_CH:
        raise CheckpointError(f"{path}: expected 3, 4 or 5 input channels, found {stem.shape[1]}")
    return stem.shape[1]


def load_weights(model: ISNetDIS | ISNetGTEncoder, path: str | Path, mask_skip_logit: float = 0.0) -> Metadata:
    """Load a checkpoint into a network. All names and shapes must agree.

    There is one exception, which is logged: an ISNetDIS accepts weights with fewer input channels. The missing ones
    get zero weights, or, if the mask channel is missing and ``mask_skip_logit`` is not 0, a mask skip connection with
    that logit (:func:`IS_Net.models.input_channels.add_mask_skip`).

    Returns:
        The metadata of the checkpoint.

    Raises:
        CheckpointError: If the file cannot be read, or its names or shapes are not those of the network.
    """
    weights, metadata = read_weights(path)
    assign_weights(model, weights, path, mask_skip_logit)
    return metadata


def assign_weights(
    model: ISNetDIS | ISNetGTEncoder, weights: Weights, path: str | Path, mask_skip_logit: float = 0.0
) -> None:
    """Load weights that were read from ``path`` into a network, as :func:`load_weights` does."""
    mask_skip = False
    if isinstance(model, ISNetDIS):
        found = input_channels(weights, path)
        if found > model.in_ch:
            raise CheckpointError(
                f"{path}: has {found} input channels, the network {model.in_ch}; set hypar['model'] to {found}"
            )
        if found < model.in_ch:
            weights = expand_input(weights, model.in_ch)
            mask_skip = bool(mask_skip_logit) and found <= MASK_CHANNEL
            how = f"a mask skip connection (logit {mask_skip_logit:g})" if mask_skip else "zero weights"
            logger.warning("%s has %d input channels; expanded to %d with %s", path, found, model.in_ch, how)
    _check_names(model, weights, path)
    model.load_state_dict(add_mask_skip(weights, mask_skip_logit) if mask_skip else weights)
    logger.info("weights: %s", path)


def _check_names(model: nn.Module, weights: Weights, path: str | Path) -> None:
    own = model.state_dict()
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"{path}: does not fit {type(model).__name__}: {'; '.join(problems[:5])}{more}. Nothing was loaded; "
            "choose a checkpoint of this network"
        )


def load_isnet(path: str | Path) -> tuple[ISNetDIS, Metadata]:
    """Build the ISNetDIS of a checkpoint, whose input channels are read from its tensors, and load the weights.

    Returns:
        The network, on the CPU, and the metadata of the checkpoint.

    Raises:
        CheckpointError: As :func:`load_weights`.
    """
    weights, metadata = read_weights(path)
    model = ISNetDIS(input_channels(weights, path))
    _check_names(model, weights, path)
    model.load_state_dict(weights)
    logger.info("weights: %s", path)
    return model, metadata
