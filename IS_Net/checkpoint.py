"""Save and load weights and training states.

Weights are saved as safetensors files with metadata, in full precision or in 8 bits. The ``.pth`` files of the
published IS-Net and DIS-SAM can be loaded too, as can ``.onnx`` exports of IS-Net. A training state, ``last.pt``, holds
everything that a run needs to resume. Files are written atomically, and loading one never runs code that it holds.

What is written has checksums, and a file whose bytes have changed since is refused: a safetensors file has a CRC-32 of
the whole file in its header, and the zip format of ``torch.save`` has one of each tensor. Files without them load too.
Weights that are not finite are refused.
"""

from __future__ import annotations

import json
import logging
import mmap
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from IS_Net import int8 as int8_storage
from IS_Net.errors import CheckpointError
from IS_Net.hypar import MAX_SIZE
from IS_Net.images import atomic_file
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.models.input_channels import add_mask_skip, copy_mask_to_box, expand_input
from IS_Net.onnx_weights import OnnxError, read_onnx
from IS_Net.preprocess import BOX_CHANNEL, MASK_CHANNEL

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
Metadata = dict[str, Any]

STATE_VERSION = 2
_WRAPPERS = (
    *("ema_model", "params_ema", "model_ema", "ema", "ema_state_dict", "state_dict_ema"),
    *("state_dict", "model_state_dict", "model", "params", "net", "network", "module", "weights"),
)
"""Keys under which state dicts are found, averaged weights first. The first one is a training state's."""
_MAX_DEPTH = 4  # of such keys inside each other
_COUNTERS = (".total_ops", ".total_params")  # tensors that a profiler adds to every module
_GT_ENCODER_STEM = "conv_in.conv.weight"
_IN_CH = (3, 4, 5)
_METADATA_KEY = "dis-sam"
_STORAGE = "storage"
_CHECKSUM_KEY = "dis-sam-crc32"
_NO_CHECKSUM = b"00000000"
_CHECKSUM = re.compile(rb'"%s":"([^"]{8})"' % _CHECKSUM_KEY.encode())
_MAX_EXPANSION = 4  # of a zip file; torch.save does not compress
_MAX_REASON = 160  # characters of a library's message


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
    content = _add_checksum_field(serialize(weights, metadata={_METADATA_KEY: json.dumps(metadata)}))
    start, end = _find_checksum(content)
    content[start:end] = b"%08x" % zlib.crc32(content)
    with atomic_file(path) as file:
        file.write(content)


def _add_checksum_field(content: bytes) -> bytearray:
    """Return a safetensors file with room for its checksum in its metadata.

    safetensors writes several texts of metadata in random order; equal networks would give different files.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"][_CHECKSUM_KEY] = _NO_CHECKSUM.decode()
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns what follows
    return bytearray(len(text).to_bytes(8, "little") + text + content[start:])


def _find_checksum(content: bytes | bytearray | mmap.mmap) -> tuple[int, int]:
    """Return where in a safetensors file its checksum is; (0, 0) if it has none."""
    header = bytes(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found = _CHECKSUM.search(header)
    return (8 + found.start(1), 8 + found.end(1)) if found else (0, 0)


def _verify_safetensors(path: Path) -> None:
    """Compare a safetensors file with its checksum, if it has one: the CRC-32 of the file with zeros in its place.

    Raises:
        CheckpointError: If they differ.
        OSError: If the file cannot be read.
        ValueError: If it is empty.
    """
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        memoryview(content) as view,
    ):
        start, end = _find_checksum(content)
        if not end:
            return
        with view[:start] as before, view[end:] as after:
            found = zlib.crc32(after, zlib.crc32(_NO_CHECKSUM, zlib.crc32(before)))
        written = content[start:end].decode(errors="replace")
        if written != f"{found:08x}":
            raise CheckpointError(
                f"{path}: is damaged: its checksum is {found:08x}, and {written!a} was written; copy "
                "the file again, or take an earlier checkpoint"
            )


def _verify_zip(path: Path) -> None:
    """Check a file of ``torch.save`` before it is loaded: that it does not expand, and its checksums.

    Raises:
        CheckpointError: If its entries are much larger than the file, or differ from their checksums.
    """
    if not zipfile.is_zipfile(path):  # the legacy format
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total, size = sum(entry.file_size for entry in entries), path.stat().st_size
            if total > _MAX_EXPANSION * size:
                raise CheckpointError(
                    f"{path}: has {size / 1e6:.1f} MB and would expand to {total / 1e6:.1f} MB; expected a file that "
                    "torch.save wrote, which is not compressed: get it from another source"
                )
            for entry in entries:
                if entry.CRC:  # torch.save writes 0 if it was told not to compute them
                    with archive.open(entry) as file:
                        while file.read(1 << 20):
                            pass
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes raise errors of all types
        raise CheckpointError(
            f"{path}: is damaged ({_reason(error)}); copy the file again, or take an earlier checkpoint"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the beginning of a library's message, without terminal codes, as one line."""
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error) or type(error).__name__)
    line = " ".join(plain.split())
    return line if len(line) <= _MAX_REASON else line[:_MAX_REASON] + " ..."


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a training state (plain Python values and tensors only) for :func:`load_state`.

    Raises:
        OSError: If the file cannot be written; the message names ``path``.
    """
    with atomic_file(path) as file:
        try:
            torch.save({"version": STATE_VERSION, **state}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # PyTorch's zip writer hides it behind one about positions
                raise error.__context__ from None
            raise


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


def _may_be_torch_file(path: Path) -> bool:
    """Return whether a file begins as a ZIP archive, a pickle or, as those of the first versions, a tar archive."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80")) or tarfile.is_tarfile(path)


def _load_pickled(path: Path) -> Any:
    try:
        _verify_zip(path)
        if not _may_be_torch_file(path):
            raise CheckpointError(
                f"{path}: is damaged or not a checkpoint; expected .safetensors, or what torch.save wrote"
            )
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f" ({named[1]})" if named else ""
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values{found}, which could run code when loaded, or is "
            "damaged; save only its state_dict() and load that"
        ) from error
    except Exception as error:  # damaged bytes, read as a pickle, raise errors of all types
        raise CheckpointError(
            f"{path}: cannot be read; it is damaged or not a checkpoint ({_reason(error)})"
        ) from error


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
        _verify_safetensors(path)
        with safe_open(path, framework="pt") as file:
            metadata = _check_metadata(json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}")), path)
            # copied, because the tensors are views of the file, which may be overwritten
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    except CheckpointError:
        raise
    except Exception as error:  # RecursionError for deep JSON, MemoryError for a false length, and others
        raise CheckpointError(f"{path}: cannot be read as safetensors ({_reason(error)}); copy it again") from error
    storage = metadata.pop(_STORAGE, None)
    if storage not in (None, "int8"):
        raise CheckpointError(f"{path}: is stored as {storage}; expected int8 or plain floats: update DIS-SAM")
    if storage == "int8":
        try:
            weights = int8_storage.unpack(weights)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}; copy the file again") from error
    return weights, metadata


def _check_metadata(metadata: Any, path: Path) -> Metadata:
    """Return the metadata of a checkpoint if it is of the expected types.

    Raises:
        CheckpointError: If it is not a dict with names, or ``input_size`` is not two sides.
    """
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise CheckpointError(
            f"{path}: metadata: expected a dict of names, found {_reason(ValueError(repr(metadata)))}"
        )
    size = metadata.get("input_size")
    sides = list(size) if isinstance(size, (list, tuple)) else [size]
    if size is not None and not (len(sides) == 2 and all(type(side) is int and 0 < side <= MAX_SIZE for side in sides)):
        raise CheckpointError(
            f"{path}: metadata, key 'input_size': expected [height, width] of at most {MAX_SIZE}, found {size!r}"
        )
    return metadata


def find_weights(content: Any, path: str | Path) -> Weights:
    """Find the state dict in what a checkpoint holds, and remove the prefix that all of its names may have.

    Args:
        content: A state dict; or a dict that holds one, or several of which averaged weights are taken first, under
            ``state_dict``, ``model``, ``params``, ``ema`` or a similar key, also inside each other; or a dict that
            holds a single state dict under any key.
        path: The file, for messages.

    Returns:
        Tensors by name. A prefix such as ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile) or ``net.``, or
        several, is removed; so are the counters of a profiler.

    Raises:
        CheckpointError: If there is no state dict, several under unknown keys, or names that are not text.
    """
    found = _find_state(content)
    if found is None:
        kind = type(content).__name__
        if isinstance(content, dict) and content:
            kind += f" with the keys {', '.join(map(repr, list(content)[:5]))}"
        raise CheckpointError(
            f"{path}: expected a state dict (names to tensors), found {kind}; save the network's state_dict()"
        )
    names = list(found)
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: expected a state dict with names, found the key {names[0]!r}")
    kept = {name: tensor for name, tensor in found.items() if not name.endswith(_COUNTERS)} or found
    prefix = _common_prefix(kept)
    if prefix:
        logger.info("%s: the prefix %r is removed from all names", path, prefix)
    return {name[len(prefix) :]: tensor for name, tensor in kept.items()}


def _find_state(content: Any, depth: int = _MAX_DEPTH) -> dict | None:
    if not isinstance(content, dict) or not content or not depth:
        return None
    if all(isinstance(value, Tensor) for value in content.values()):
        return content
    for wrapper in _WRAPPERS:
        if found := _find_state(content.get(wrapper), depth - 1):
            return found
    others = [found for value in content.values() if (found := _find_state(value, 2))]
    return others[0] if len(others) == 1 else None


def _common_prefix(names: Iterable[str]) -> str:
    """Return the parts, each with its dot, that all names begin with; "" if only one name is given."""
    split = [name.split(".") for name in names]
    shared: list[str] = []
    while len(split) > 1 and all(len(parts) > len(shared) + 1 for parts in split):
        part = split[0][len(shared)]
        if any(parts[len(shared)] != part for parts in split):
            break
        shared.append(part)
    return "".join(f"{part}." for part in shared)


def read_weights(path: str | Path) -> tuple[Weights, Metadata]:
    """Read the weights of any checkpoint and its metadata ({} if it has none).

    Args:
        path: A ``.safetensors`` file of :func:`save_weights`; an ``.onnx`` export of IS-Net
            (:func:`IS_Net.onnx_weights.read_onnx`); a training state, whose EMA is taken if it has one; or a published
            ``.pth``, see :func:`find_weights`.

    Raises:
        CheckpointError: If the file is missing, damaged, or does not hold a state dict.
    """
    path = _require_file(path)
    if path.suffix == ".safetensors":
        weights, metadata = _read_safetensors(path)
        return find_weights(weights, path), metadata
    if path.suffix == ".onnx":
        try:
            return read_onnx(path)
        except OnnxError as error:
            raise CheckpointError(f"{path}: {error}") from error
    content = _load_current(path)
    is_state = isinstance(content, dict) and content.get("version") == STATE_VERSION
    metadata = _check_metadata(content.get("metadata", {}), path) if is_state else {}
    return find_weights(content, path), metadata


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
        if nested := next((name for name in weights if name.endswith(".conv_in.weight")), None):
            found = (
                f"several networks: IS-Net's have the prefix {nested.removesuffix('conv_in.weight')!r}, and "
                f"{_first_without(weights, nested.removesuffix('conv_in.weight'))!r} does not"
            )
        raise CheckpointError(
            f"{path}: expected weights of ISNetDIS (conv_in.weight), found those of {found}; choose another checkpoint"
        )
    if stem.shape[1] not in _IN_CH:
        raise CheckpointError(f"{path}: expected 3, 4 or 5 input channels, found {stem.shape[1]}")
    return stem.shape[1]


def _first_without(weights: Weights, prefix: str) -> str:
    return next((name for name in weights if not name.startswith(prefix)), "")


def load_weights(
    model: ISNetDIS | ISNetGTEncoder, path: str | Path, mask_skip_logit: float = 0.0, box_gain: float = 0.0
) -> Metadata:
    """Load a checkpoint into a network. All names and shapes must agree.

    There is one exception, which is logged: an ISNetDIS accepts weights with fewer input channels. The missing ones
    get zero weights, or, if the mask channel is missing and ``mask_skip_logit`` is not 0, a mask skip connection with
    that logit (:func:`IS_Net.models.input_channels.add_mask_skip`); and if the box channel is missing and ``box_gain``
    is not 0, that multiple of the mask channel's weights (:func:`IS_Net.models.input_channels.copy_mask_to_box`).

    Returns:
        The metadata of the checkpoint.

    Raises:
        CheckpointError: If the file cannot be read, or its names or shapes are not those of the network.
    """
    weights, metadata = read_weights(path)
    assign_weights(model, weights, path, mask_skip_logit, box_gain)
    return metadata


def assign_weights(
    model: ISNetDIS | ISNetGTEncoder,
    weights: Weights,
    path: str | Path,
    mask_skip_logit: float = 0.0,
    box_gain: float = 0.0,
) -> None:
    """Load weights that were read from ``path`` into a network, as :func:`load_weights` does."""
    mask_skip = copy_mask = False
    if isinstance(model, ISNetDIS):
        found = input_channels(weights, path)
        if mask_skip_logit and found > MASK_CHANNEL:
            logger.warning("mask_skip_logit=%g is not used: %s has a mask channel already", mask_skip_logit, path)
        if box_gain and found > BOX_CHANNEL:
            logger.warning("box_gain=%g is not used: %s has a box channel already", box_gain, path)
        if found > model.in_ch:
            raise CheckpointError(
                f"{path}: has {found} input channels, the network {model.in_ch}; set hypar['model'] to {found}"
            )
        if found < model.in_ch:
            weights = expand_input(weights, model.in_ch)
            mask_skip = bool(mask_skip_logit) and found <= MASK_CHANNEL
            copy_mask = bool(box_gain) and model.in_ch > BOX_CHANNEL
            how = [f"a mask skip connection (logit {mask_skip_logit:g})"] if mask_skip else []
            how += [f"{box_gain:g} of the mask's weights for the box"] if copy_mask else []
            how = " and ".join(how) or "zero weights"
            logger.warning("%s has %d input channels; expanded to %d with %s", path, found, model.in_ch, how)
    _check_names(model, weights, path)
    if mask_skip:
        weights = add_mask_skip(weights, mask_skip_logit)
    model.load_state_dict(copy_mask_to_box(weights, box_gain) if copy_mask else weights)
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
    require_finite(weights, path)


def require_finite(weights: Weights, path: str | Path) -> None:
    """Check that weights, which must have plain shapes, are finite numbers.

    Raises:
        CheckpointError: If a tensor holds NaN or infinity, complex numbers, or is not dense; the message names it.
    """
    for name, tensor in weights.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, {tensor.layout}; expected dense real numbers")
        # a sum is many times as fast as isfinite, and takes no memory; it may overflow where all values are finite
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite; the training that wrote it had failed: take an "
                "earlier checkpoint"
            )


def load_isnet(path: str | Path) -> tuple[ISNetDIS, Metadata]:
    """Build the ISNetDIS of a checkpoint, whose input channels are read from its tensors, and load the weights.

    Returns:
        The network, on the CPU, and the metadata of the checkpoint.

    Raises:
        CheckpointError: As :func:`load_weights`.
    """
    weights, metadata = read_weights(path)
    with torch.device("meta"):  # without memory and random weights, which would be replaced at once
        model = ISNetDIS(input_channels(weights, path))
    _check_names(model, weights, path)
    for name, own in model.state_dict().items():
        weights[name] = weights[name].to(own.dtype)  # a published file may hold float16
    model.load_state_dict(weights, assign=True)
    logger.info("weights: %s", path)
    return model, metadata
