"""Save and load weights and whole training states.

Weights are safetensors files with a few facts beside them (metadata), in full precision or in 8 bits; ``.pth`` files
of the published IS-Net and DIS-SAM load too, and ``.onnx`` exports of IS-Net. ``last.pt`` holds everything that a run
needs to go on. All files appear whole or not at all, and none can run code when it is loaded.
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

from IS_Net.errors import CheckpointError
from IS_Net.images import atomic_file
from IS_Net.int8 import dequantize, quantize
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.models.input_channels import add_mask_skip, expand_input
from IS_Net.onnx_weights import OnnxError, read_onnx
from IS_Net.preprocess import MASK_CHANNEL

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
STATE_VERSION = 1
_WRAPPERS = ("average", "state_dict", "model_state_dict", "model", "net")  # average: a training state's
_GT_ENCODER_STEM = "conv_in.conv.weight"
_IN_CH = (3, 4, 5)
_STORAGE = "storage"
_SCALE = ".scale"
_OUTLIERS = ".outliers"


def save_weights(path: str | Path, model: nn.Module, facts: Mapping[str, Any], int8: bool = False) -> None:
    """Write a network's weights as safetensors, with facts about them (JSON-serializable) as metadata.

    Args:
        path: The file.
        model: The network.
        facts: Come back from :func:`read_weights`.
        int8: Store convolution weights in a quarter of the space, as :func:`quantize` makes them: ``name`` is
            (out, in, kh, kw) int8, ``name.scale`` (out,) float32, their product by output channel the weight;
            ``name.outliers``, where there are any, float32, are the weights at whose places -128 stands. The rest is
            float32 (counters stay integers), also the side outputs' few convolutions. ``"storage": "int8"`` among the
            facts in the file says so; :func:`read_weights` takes it out again, and puts the weights together.

    Raises:
        CheckpointError: If ``int8`` is asked for and a weight is not finite.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    facts = dict(facts)
    if int8:
        facts[_STORAGE] = "int8"
        for name, tensor in list(weights.items()):
            if tensor.ndim == 4 and len(tensor) > 1:
                if not tensor.isfinite().all():
                    raise CheckpointError(f"{path}: {name} is not finite everywhere, and not to be had as int8")
                weights[name], weights[name + _SCALE], outliers = quantize(tensor)
                if len(outliers):
                    weights[name + _OUTLIERS] = outliers
            elif tensor.is_floating_point():
                weights[name] = tensor.float()
    with atomic_file(path) as file:
        file.write(serialize(weights, metadata={"dis-sam": json.dumps(facts)}))


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a training state (plain Python values and tensors only), for :func:`load_state`."""
    with atomic_file(path) as file:
        torch.save({"version": STATE_VERSION, **state}, file)


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
    path = _require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, which could run code when loaded, or is damaged; "
            f"save its state_dict() alone and load that ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # damaged bytes, read as a pickle, raise all kinds
        raise CheckpointError(f"{path}: cannot be read; it is damaged or no checkpoint ({error})") from error


def _require_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint; see saved_models/README.md for where to get one")
    return path


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a training state.

    Raises:
        CheckpointError: If the file is missing, damaged, or no training state of this version.
    """
    path = _require_file(path)
    state = load_torch_file(path)
    version = state.get("version") if isinstance(state, dict) else None
    if version != STATE_VERSION:
        raise CheckpointError(
            f"{path}: is no training state of version {STATE_VERSION} (found {version}); to start from its weights "
            "alone, give the file another name than last.pt"
        )
    return state


def _read_safetensors(path: Path) -> tuple[Weights, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(json.loads((file.metadata() or {}).get("dis-sam", "{}")))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); copy it again") from error
    storage = facts.pop(_STORAGE, None)
    if storage not in (None, "int8"):
        raise CheckpointError(f"{path}: is stored as {storage}; expected int8 or plain floats: update DIS-SAM")
    if storage == "int8":
        for name in [name for name, tensor in weights.items() if tensor.dtype == torch.int8]:
            scale, outliers = (weights.pop(name + part, torch.empty(0)) for part in (_SCALE, _OUTLIERS))
            try:
                weights[name] = dequantize(weights[name], scale, outliers)
            except ValueError as error:
                raise CheckpointError(f"{path}: {name} is damaged ({error}); copy the file again") from error
    return weights, facts


def read_weights(path: str | Path) -> tuple[Weights, dict[str, Any]]:
    """Read the weights of any checkpoint, and the facts saved beside them ({} where there are none).

    Args:
        path: ``.safetensors``, the int8 ones of :func:`save_weights` included; ``.onnx``, an export of IS-Net
            (:func:`IS_Net.onnx_weights.read_onnx`); a training state, of which the moving average is taken
            where it keeps one; or a published ``.pth``: a bare state dict,
            one under ``state_dict`` or the like, with or without the ``module.`` that DataParallel puts before its
            names.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds no state dict.
    """
    path = _require_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".onnx":
        try:
            return read_onnx(path)
        except OnnxError as error:
            raise CheckpointError(f"{path}: {error}") from error
    content = load_torch_file(path)
    facts = content.get("facts", {}) if isinstance(content, dict) else {}
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: holds no state dict (names to tensors), but {type(content).__name__}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}, facts


def input_channels(weights: Weights, where: str | Path) -> int:
    """Return the input channels of IS-Net weights, read off the first convolution.

    Raises:
        CheckpointError: If there is no such convolution, it is a ground-truth encoder's, or of other than 3, 4 or 5
            input channels.
    """
    stem = weights.get("conv_in.weight")
    if stem is None or stem.ndim != 4:
        what = "a ground-truth encoder" if _GT_ENCODER_STEM in weights else "another network"
        raise CheckpointError(f"{where}: expected weights of ISNetDIS (conv_in.weight), found those of {what}")
    if stem.shape[1] not in _IN_CH:
        raise CheckpointError(f"{where}: has {stem.shape[1]} input channels; expected 3, 4 or 5")
    return stem.shape[1]


def load_weights(model: ISNetDIS | ISNetGTEncoder, path: str | Path, mask_skip_logit: float = 0.0) -> dict[str, Any]:
    """Load a checkpoint into a network, strictly: all names and shapes must agree.

    One difference is bridged, and said aloud: an ISNetDIS takes weights with fewer input channels, the further
    ones getting zeros; or, where the mask is new and ``mask_skip_logit`` is not 0, what :func:`IS_Net.models.input_channels.add_mask_skip` makes
    of them with that logit.

    Returns:
        The facts saved beside the weights.

    Raises:
        CheckpointError: If the file cannot be read, or its names or shapes are not the network's.
    """
    weights, facts = read_weights(path)
    assign_weights(model, weights, path, mask_skip_logit)
    return facts


def assign_weights(
    model: ISNetDIS | ISNetGTEncoder, weights: Weights, path: str | Path, mask_skip_logit: float = 0.0
) -> None:
    """Put weights that were read from ``path`` into a network, as :func:`load_weights` does."""
    carried = False
    if isinstance(model, ISNetDIS):
        found = input_channels(weights, path)
        carried = bool(mask_skip_logit) and found <= MASK_CHANNEL < model.in_ch
        if found < model.in_ch:
            weights = expand_input(weights, model.in_ch)
            how = f"the mask carried to the side outputs (logit {mask_skip_logit:g})" if carried else "zero weights"
            logger.warning("%s has %d input channels; widened to %d with %s", path, found, model.in_ch, how)
        elif found > model.in_ch:
            raise CheckpointError(
                f"{path}: has {found} input channels, the network {model.in_ch}; set hypar['model'] to {found}"
            )
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
    model.load_state_dict(add_mask_skip(weights, mask_skip_logit) if carried else weights)
    logger.info("weights: %s", path)


def load_isnet(path: str | Path) -> tuple[ISNetDIS, dict[str, Any]]:
    """Build the ISNetDIS that a checkpoint is of (its channels are read from its tensors), and load it.

    Returns:
        The network, on the CPU, and the facts saved beside the weights.

    Raises:
        CheckpointError: As :func:`load_weights`.
    """
    weights, facts = read_weights(path)
    model = ISNetDIS(input_channels(weights, path))
    assign_weights(model, weights, path)
    return model, facts
