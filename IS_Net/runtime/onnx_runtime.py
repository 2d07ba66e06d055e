"""The network in ONNX Runtime, on the CPU, or on a CUDA device if the package ``onnxruntime-gpu`` is installed.

Weights are converted once for each size, which takes some seconds and PyTorch. The converted network is kept in
``onnx/`` of the cache folder (:mod:`IS_Net.runtime.kept`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from IS_Net.errors import DeviceError
from IS_Net.machine import requested_threads
from IS_Net.preprocess import Size
from IS_Net.runtime.base import require_float32
from IS_Net.runtime.kept import open_kept

if TYPE_CHECKING:
    import torch

    from IS_Net.models import ISNetDIS

onnxruntime.disable_telemetry_events()  # its builds for Windows report what is run to their makers

_METHOD = 1
"""Part of every key. Increase it when the same weights give other networks than before."""
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_ONLY_ERRORS = 3  # of the levels of severity of its messages
_AXES = ("height", "width")
_TRACED_SIZE = 128  # see IS_Net.runtime.openvino_runtime


def pick_provider(device: str | torch.device) -> tuple[str, dict[str, Any]]:
    """Return what ONNX Runtime runs a network with: the name of an execution provider, and its options.

    Args:
        device: ``auto`` (CUDA if this ONNX Runtime has it, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: If CUDA is requested and this ONNX Runtime does not have it.
    """
    kind, _, index = str(device).partition(":")
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise DeviceError(
            f"device {str(device)!r} was requested, but ONNX Runtime {onnxruntime.__version__} has no CUDA; install "
            "onnxruntime-gpu in place of onnxruntime, or use cpu or torch"
        )
    if kind == "cpu" or not has_cuda:
        return _CPU, {}
    return _CUDA, {"device_id": int(index or 0)}


class OnnxRuntime:
    """A network that ONNX Runtime has loaded.

    Args:
        content: The network: the path of an ``.onnx`` file, or its content; see :func:`convert_network`.
        size: (height, width) of its input.
        device: See :func:`pick_provider`.

    Raises:
        DeviceError: If the device is not available.
        ValueError: If the content is damaged.
    """

    name = "onnx"
    precision = "float32"

    def __init__(self, content: Path | bytes, size: Size, device: str | torch.device = "cpu") -> None:
        provider = pick_provider(device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = requested_threads()
        options.log_severity_level = _ONLY_ERRORS
        for axis, side in zip(_AXES, size, strict=True):  # what is known before is computed before
            options.add_free_dimension_override_by_name(axis, side)
        providers = [provider] if provider[0] == _CPU else [provider, _CPU]
        source = content if isinstance(content, bytes) else str(content)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers)
        except Exception as error:  # it has many classes of errors, and no common one
            raise ValueError(f"ONNX Runtime cannot open the network: {error}") from error
        if provider[0] not in self._session.get_providers():  # it falls back to the CPU where CUDA cannot be loaded
            raise DeviceError(
                f"device {str(device)!r}: ONNX Runtime finds CUDA, but cannot use it; check nvidia-smi and the "
                "versions of CUDA and cuDNN that this onnxruntime-gpu was built for, or use cpu or torch"
            )
        [planes] = self._session.get_inputs()
        self.in_ch = int(planes.shape[1])
        self.device = f"cuda:{provider[1]['device_id']}" if provider[0] == _CUDA else "cpu"
        threads = f"{requested_threads()} threads, " if self.device == "cpu" else ""
        self.where = f"{self.device} ({threads}ONNX Runtime)"

    def alpha(self, planes: np.ndarray) -> np.ndarray:
        """See :meth:`IS_Net.runtime.base.Runtime.alpha`."""
        return self._session.run(None, {"planes": planes[None]})[0][0, 0]

    def release(self) -> None:
        """See :meth:`IS_Net.runtime.base.Runtime.release`; ONNX Runtime frees memory only as a part of a prediction."""


def convert_network(model: ISNetDIS) -> bytes:
    """Convert a network to ONNX: ``planes`` (1, in_ch, h, w) uint8 -> ``alpha`` (1, 1, h, w) float32, for any size.

    Args:
        model: The network; it is not modified.

    Returns:
        The content of an ``.onnx`` file.
    """
    import torch

    from IS_Net.exporting.formats import make_onnx, quiet_conversion
    from IS_Net.exporting.graph import PlanesNetwork, prepare_network

    example = torch.zeros((1, model.in_ch, _TRACED_SIZE, _TRACED_SIZE), dtype=torch.uint8)
    any_size = {name: dict(enumerate(_AXES, 2)) for name in ("planes", "alpha")}
    with quiet_conversion():
        return make_onnx(PlanesNetwork(prepare_network(model)).eval(), (example,), ["planes"], any_size)


def open_weights(
    path: str | Path, device: str | torch.device = "auto", precision: str = "auto", input_size: Size | None = None
) -> tuple[OnnxRuntime, dict[str, Any], Size]:
    """Make a checkpoint's network ready to run; see :func:`IS_Net.runtime.open_weights`."""
    require_float32(precision, "ONNX Runtime")
    pick_provider(device)  # before seconds of work

    def reopen(content: np.ndarray, size: Size, file: Path | None) -> OnnxRuntime:
        return OnnxRuntime(file or content.tobytes(), size, device)

    def convert(model: ISNetDIS, _: Size) -> bytes:
        return convert_network(model)

    return open_kept("ONNX", path, [_METHOD], input_size, reopen, convert)
