"""The network in OpenVINO, on the CPU.

Weights are converted and compiled once for each processor, size and precision, which takes some seconds and PyTorch.
The compiled network is kept in ``openvino/`` of the cache folder (:mod:`IS_Net.runtime.kept`).
"""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from IS_Net.errors import DeviceError
from IS_Net.machine import available_cores, has_amx, requested_threads
from IS_Net.preprocess import Size
from IS_Net.runtime.base import require_known_precision
from IS_Net.runtime.kept import open_kept

# OpenVINO reports every import and conversion to its makers over the network, and writes into the user's home folder,
# unless this package of its is missing. It is hidden from the process.
sys.modules.setdefault("openvino_telemetry", None)
import openvino  # noqa: E402

if TYPE_CHECKING:
    from IS_Net.models import ISNetDIS

_METHOD = 1
"""Part of every key. Increase it when the same weights give other networks than before."""
_TRACED_SIZE = 128
"""Side of the input that the network is recorded with. The smallest at which each of its poolings halves a side, so
that no resizing is left out."""


def pick_precision(precision: str) -> str:
    """Return ``float32`` or ``bfloat16``.

    Args:
        precision: ``full``, ``half``, or ``auto``: bfloat16 on processors with AMX. Without AMX it is not faster.

    Raises:
        DeviceError: If the precision is unknown, or if ``half`` is requested and the processor has no bfloat16.
    """
    require_known_precision(precision)
    if precision == "full" or (precision == "auto" and not has_amx()):
        return "float32"
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "bfloat16"
    if precision == "auto":
        return "float32"
    raise DeviceError("half precision was requested, but OpenVINO has no 16-bit type on this CPU; use auto")


class OpenVINORuntime:
    """A compiled network.

    Args:
        compiled: The network; see :func:`compile_network`.
        precision: Its precision, for the log.
        content: What the network's weights are read from; it is kept as long as the network.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: openvino.CompiledModel, precision: str, content: object = None) -> None:
        self.precision = precision
        self.in_ch = int(compiled.input(0).shape[1])
        self.where = f"cpu ({compiled.get_property('INFERENCE_NUM_THREADS')} threads, OpenVINO)"
        self._compiled, self._content = compiled, content
        self._local = threading.local()

    def alpha(self, planes: np.ndarray) -> np.ndarray:
        """See :meth:`IS_Net.runtime.base.Runtime.alpha`."""
        request = getattr(self._local, "request", None)
        if request is None:  # a request holds the memory of one run, so each thread has its own
            request = self._local.request = self._compiled.create_infer_request()
        return np.array(request.infer({0: planes[None]}, share_inputs=True, share_outputs=True)[0][0, 0])

    def release(self) -> None:
        """See :meth:`IS_Net.runtime.base.Runtime.release`; OpenVINO keeps little."""


def _config(precision: str) -> dict[str, Any]:
    threads = requested_threads()
    return {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # threads stay on their cores, which OpenVINO counts from 0: several processes would all choose the same ones
        "ENABLE_CPU_PINNING": threads >= available_cores(),
    }


def convert_network(model: ISNetDIS, size: Size) -> openvino.Model:
    """Convert a network: (1, in_ch, h, w) uint8 -> (1, 1, h, w) float32 alpha matte, normalization included.

    Args:
        model: The network; it is not modified.
        size: (height, width) of the input.
    """
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from IS_Net.runtime.torch_runtime import fold_batchnorm
    from IS_Net.tensors import make_alpha, make_input

    network = fold_batchnorm(model).requires_grad_(False)

    def whole(planes: torch.Tensor) -> torch.Tensor:
        return make_alpha(network.predict_logits(make_input(planes)), planes.shape[-2:])

    example = torch.zeros((1, model.in_ch, _TRACED_SIZE, _TRACED_SIZE), dtype=torch.uint8)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of its own tracer, and of sizes that are compared
        # a function and no module, and no second run to compare: this takes a sixth of the time
        recorded = torch.jit.trace(whole, example, check_trace=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(recorded, example_input=(example,))  # the model only refers to it
        converted = frontend.convert(frontend.load(decoder))
    converted.reshape([1, model.in_ch, *size])
    return converted


def compile_network(converted: openvino.Model, precision: str) -> openvino.CompiledModel:
    """Compile a converted network for this processor.

    Args:
        converted: From :func:`convert_network`.
        precision: ``float32`` or ``bfloat16``.
    """
    return openvino.Core().compile_model(converted, "CPU", _config(precision))


def open_weights(
    path: str | Path, precision: str = "auto", input_size: Size | None = None
) -> tuple[OpenVINORuntime, dict[str, Any], Size]:
    """Make a checkpoint's network ready to run; see :func:`IS_Net.runtime.open_weights`."""
    chosen = pick_precision(precision)

    def reopen(content: np.ndarray, _: Size, __: Path | None) -> OpenVINORuntime:
        shared = openvino.Tensor(content, shared_memory=True)  # OpenVINO shares only what can be written
        return OpenVINORuntime(openvino.Core().import_model(shared, "CPU", _config(chosen)), chosen, shared)

    def convert(model: ISNetDIS, size: Size) -> bytes:
        return compile_network(convert_network(model, size), chosen).export_model().getvalue()

    processor = openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
    parts = [_METHOD, openvino.get_version(), processor, has_amx(), chosen]
    return open_kept("OpenVINO", path, parts, input_size, reopen, convert)
