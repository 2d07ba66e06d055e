"""Write exports in four formats, and open them again.

An export is one file, except in two formats whose programs expect otherwise: OpenVINO's ``.xml`` has its weights in a
``.bin`` file beside it, and a Core ML model is a folder, ``.mlpackage``.

Every export holds metadata: texts by name, such as the version and the license. ONNX has them in ``metadata_props``,
OpenVINO in the runtime information ``dis_sam``, TorchScript in the file ``dis_sam.json`` inside of it, and Core ML in
the user-defined metadata.
"""

from __future__ import annotations

import io
import json
import logging
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import nn

from IS_Net.errors import UserError, import_extra
from IS_Net.exporting import SUFFIXES
from IS_Net.exporting.graph import ExportedNetwork, Storage, prepare_network
from IS_Net.models import ISNetDIS
from IS_Net.preprocess import MASK_CHANNEL, Size

if TYPE_CHECKING:
    import openvino

Format = Literal["onnx", "openvino", "torchscript", "coreml"]
FORMATS = get_args(Format)

INPUTS = ("image", "mask", "box")
"""Names of the inputs; a network of 3 channels has only the first. See
:class:`IS_Net.exporting.graph.ExportedNetwork`."""
OUTPUT = "alpha"

_OPSET = 17  # of ONNX; the oldest with all that is used, so that older programs can read it
_ENTRY = "dis_sam"
_TRACED_SIZE = (96, 80)  # of the image that a network for any image size is recorded with


class ExportError(UserError, RuntimeError):
    """A network that cannot be converted, or an export that cannot be opened."""


class Export(Protocol):
    """An export that was opened."""

    metadata: dict[str, str]

    def alpha(self, image: np.ndarray, mask: np.ndarray | None = None, box: np.ndarray | None = None) -> np.ndarray:
        """Run it.

        Args:
            image: (H, W, 3) uint8 RGB.
            mask: (H, W) uint8, 0..255; None is passed on as zeros, which mean that there is none.
            box: (4,) x0, y0, x1, y1 in pixels; None is passed on as zeros, which mean that there is none.

        Returns:
            (H, W) float32 alpha matte in [0, 1].
        """


# --- writing --------------------------------------------------------------------------------------------------------


def write_export(
    model: ISNetDIS,
    path: Path,
    kind: Format,
    size: Size,
    image_size: Size | None,
    storage: Storage,
    metadata: Mapping[str, str],
) -> None:
    """Convert a network and write it.

    Args:
        model: The network; it is not modified.
        path: The file, with the format's suffix; for Core ML, the folder.
        kind: The format.
        size: (height, width) that the network works at.
        image_size: (height, width) of the images; None for any.
        storage: Type in which the weights are stored.
        metadata: Texts by name.

    Raises:
        MissingExtraError: If the format's package is not installed.
        ExportError: If the format cannot express the network.
    """
    if kind == "coreml":
        _write_coreml(ExportedNetwork(prepare_network(model), size, image_size).eval(), path, metadata, storage)
        return
    network = ExportedNetwork(prepare_network(model, storage), size, image_size).eval()
    with quiet_conversion():
        _WRITERS[kind](network, path, dict(metadata))


@contextmanager
def quiet_conversion() -> Iterator[None]:
    """Let a network be recorded, without gradients and without PyTorch's warnings of its own tracer."""
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _example(network: ExportedNetwork, dtype: torch.dtype = torch.uint8) -> tuple[torch.Tensor, ...]:
    size = network.image_size or _TRACED_SIZE
    inputs = torch.zeros((*size, 3), dtype=dtype), torch.zeros(size, dtype=dtype), torch.zeros(4)
    return inputs if network.in_ch > MASK_CHANNEL else inputs[:1]


def _record(network: nn.Module, example: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
    # without a second run to compare: it takes as long as the first
    return torch.jit.trace(network, example, check_trace=False)


def _write_torchscript(network: ExportedNetwork, path: Path, metadata: dict[str, str]) -> None:
    torch.jit.save(_record(network, _example(network)), path, _extra_files={f"{_ENTRY}.json": json.dumps(metadata)})


def make_onnx(
    network: nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: list[str],
    any_size: Mapping[str, Mapping[int, str]] | None = None,
) -> bytes:
    """Convert a module to ONNX.

    PyTorch has two converters. This is the older one: it needs no further package, and what it converts is the
    recording that the other formats are made of too.

    Args:
        network: The module, in eval mode; its output is called ``alpha``.
        example: Inputs to record it with.
        inputs: Their names.
        any_size: For each name, the names of the axes that may have any length.

    Returns:
        The content of an ``.onnx`` file.
    """
    file = io.BytesIO()
    torch.onnx.export(
        _record(network, example), example, file, input_names=inputs, output_names=[OUTPUT], dynamic_axes=any_size,
        opset_version=_OPSET, dynamo=False,
        do_constant_folding=False,  # it would restore weights that are stored in fewer bits
    )  # fmt: skip
    return file.getvalue()


def _write_onnx(network: ExportedNetwork, path: Path, metadata: dict[str, str]) -> None:
    onnx = import_extra("onnx", "onnx")
    example, any_size = _example(network), None
    inputs = list(INPUTS[: len(example)])
    if network.image_size is None:
        axes = {0: "height", 1: "width"}
        any_size = {name: axes for name in (*inputs, OUTPUT) if name != "box"}
    model = onnx.load_from_string(make_onnx(network, example, inputs, any_size))
    model.producer_name, model.producer_version = "dis-sam", metadata.get("version", "")
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def _write_openvino(network: ExportedNetwork, path: Path, metadata: dict[str, str]) -> None:
    openvino = _import_openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = _example(network)
    recorded = _record(network, example)
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(recorded, example_input=example)  # the model only refers to it
    model = frontend.convert(frontend.load(decoder))
    sides = list(network.image_size or (-1, -1))
    shapes = {"image": [*sides, 3], "mask": sides, "box": [4]}
    for port, name in zip(model.inputs, INPUTS, strict=False):
        port.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    model.reshape({port: openvino.PartialShape(shapes[port.any_name]) for port in model.inputs})
    for key, value in metadata.items():
        model.set_rt_info(value, [_ENTRY, key])
    openvino.save_model(model, path, compress_to_fp16=False)


def _import_openvino() -> Any:
    # OpenVINO reports every import and conversion to its makers over the network unless this package of its is missing
    sys.modules.setdefault("openvino_telemetry", None)
    return import_extra("openvino", "fast")


def _write_coreml(network: ExportedNetwork, path: Path, metadata: Mapping[str, str], storage: Storage) -> None:
    if network.image_size is None:
        raise ExportError("coreml: its converter has no resizing to any size; omit --dynamic, or give --image-size")
    if storage == "int8":
        raise ExportError("coreml: int8 weights of this network could not be verified; use --half")
    coremltools = _import_coremltools()
    precision = coremltools.precision.FLOAT32
    if storage == "float16":  # of the convolutions; coordinates of boxes need more bits
        precision = coremltools.transform.FP16ComputePrecision(op_selector=lambda step: step.op_type == "conv")
    example = _example(network, torch.float32)  # Core ML has no inputs of bytes
    try:
        with quiet_conversion(), _silenced("coremltools"):
            model = coremltools.convert(
                torch.export.export(network, example).run_decompositions({}),
                outputs=[coremltools.TensorType(name=OUTPUT)],
                convert_to="mlprogram",
                compute_precision=precision,
                minimum_deployment_target=coremltools.target.iOS16,
                skip_model_load=True,
            )
    except Exception as error:  # the converter raises errors of all types with versions that it does not know
        versions = f"coremltools {coremltools.__version__}, PyTorch {torch.__version__}, NumPy {np.__version__}"
        raise ExportError(
            f"coreml: the conversion failed with {versions}: {type(error).__name__}: {error}; install versions "
            "that this coremltools was tested with, or export to ONNX"
        ) from error
    model.version, model.license = metadata.get("version", ""), metadata.get("license", "")
    model.short_description = metadata.get("description", "")
    model.user_defined_metadata.update(metadata)
    model.save(str(path))


def _import_coremltools() -> Any:
    with _silenced("coremltools"):  # outside of macOS, it warns that it can run nothing
        return import_extra("coremltools", "coreml")


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    before, log.level = log.level, logging.ERROR
    try:
        yield
    finally:
        log.level = before


_WRITERS = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torchscript": _write_torchscript,
}


def files_of(path: Path) -> list[Path]:
    """Return the files and folders that an export consists of."""
    return [path.with_suffix(".bin"), path] if path.suffix == SUFFIXES["openvino"] else [path]


# --- opening --------------------------------------------------------------------------------------------------------


def open_export(path: str | Path) -> Export:
    """Open an export; its name's end says which format it has.

    Raises:
        MissingExtraError: If the format's package is not installed.
        ExportError: If the file is missing, damaged, or not an export.
    """
    path = Path(path)
    kind = next((kind for kind, suffix in SUFFIXES.items() if path.suffix == suffix), None)
    if kind is None:
        raise ExportError(f"{path}: expected an export, {', '.join(SUFFIXES.values())}")
    if not path.exists():
        raise ExportError(f"{path}: the export does not exist")
    try:
        return _OPENED[kind](path)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise ExportError(f"{path}: cannot be read as {kind}; export it again ({error})") from error


def _fill(
    image: np.ndarray, mask: np.ndarray | None, box: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all inputs, with zeros where there is no mask or no box."""
    mask = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
    return image, mask, np.zeros(4, np.float32) if box is None else np.asarray(box, np.float32)


class _TorchScriptExport:
    def __init__(self, path: Path) -> None:
        extra = {f"{_ENTRY}.json": ""}
        with quiet_conversion():
            self._module = torch.jit.load(path, map_location="cpu", _extra_files=extra)
        self.metadata: dict[str, str] = json.loads(extra[f"{_ENTRY}.json"])
        self._count = len(list(self._module.graph.inputs())) - 1  # without the module itself

    @torch.inference_mode()
    def alpha(self, image: np.ndarray, mask: np.ndarray | None = None, box: np.ndarray | None = None) -> np.ndarray:
        inputs = map(torch.from_numpy, _fill(image, mask, box)[: self._count])
        return self._module(*inputs).numpy()


class _OnnxExport:
    def __init__(self, path: Path) -> None:
        onnxruntime = import_extra("onnxruntime", "onnx")
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # it has many classes of errors, and no common one
            raise ExportError(f"{path}: ONNX Runtime cannot open it ({error})") from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self._names = [found.name for found in self._session.get_inputs()]

    def alpha(self, image: np.ndarray, mask: np.ndarray | None = None, box: np.ndarray | None = None) -> np.ndarray:
        given = dict(zip(INPUTS, _fill(image, mask, box), strict=True))
        return self._session.run(None, {name: given[name] for name in self._names})[0]


class _OpenVINOExport:
    def __init__(self, path: Path) -> None:
        openvino = _import_openvino()
        model = openvino.Core().read_model(path)
        found = model.get_rt_info()
        self.metadata = _read_rt_info(model) if _ENTRY in found else {}
        precision = {"INFERENCE_PRECISION_HINT": "f32"}
        self._compiled: openvino.CompiledModel = openvino.Core().compile_model(model, "CPU", precision)

    def alpha(self, image: np.ndarray, mask: np.ndarray | None = None, box: np.ndarray | None = None) -> np.ndarray:
        inputs = _fill(image, mask, box)[: len(self._compiled.inputs)]
        return np.array(self._compiled(inputs)[0])


def _read_rt_info(model: openvino.Model) -> dict[str, str]:
    return {key: str(model.get_rt_info([_ENTRY, key]).value) for key in model.get_rt_info([_ENTRY]).value}


class _CoreMLExport:
    """A Core ML model; it runs on macOS only, its metadata can be read everywhere."""

    def __init__(self, path: Path) -> None:
        coremltools = _import_coremltools()
        self.runs = platform.system() == "Darwin"
        self._model = coremltools.models.MLModel(str(path), skip_model_load=not self.runs)
        self.metadata: dict[str, str] = dict(self._model.user_defined_metadata)
        self._names = [found.name for found in self._model.get_spec().description.input]

    def alpha(self, image: np.ndarray, mask: np.ndarray | None = None, box: np.ndarray | None = None) -> np.ndarray:
        if not self.runs:
            raise ExportError(f"coreml: Core ML runs on macOS only, and this is {platform.system()}")
        given = dict(zip(INPUTS, _fill(image, mask, box), strict=True))
        return self._model.predict({name: given[name].astype(np.float32) for name in self._names})[OUTPUT]


_OPENED = {
    "onnx": _OnnxExport,
    "openvino": _OpenVINOExport,
    "torchscript": _TorchScriptExport,
    "coreml": _CoreMLExport,
}
