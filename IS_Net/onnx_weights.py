"""Read IS-Net weights from ONNX exports, the format in which other projects publish them.

Only the convolutions and batch normalizations of the graph are read; the graph is not run. All convolutions of IS-Net
except those of the side outputs form one chain, so that their order in the file identifies them, whatever names the
exporter gave them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from IS_Net.errors import import_extra
from IS_Net.models import ISNetDIS

logger = logging.getLogger(__name__)

_COPIES = ("Cast", "Identity")
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear")
_SIDES = 6
_IN_CH = (3, 4, 5)


class OnnxError(ValueError):
    """An ONNX file that cannot be read or does not hold an IS-Net; the message does not name the file."""


@torch.inference_mode()
def skeleton(in_ch: int) -> tuple[ISNetDIS, list[str]]:
    """Return an IS-Net without weights and the names of its convolutions in the order in which they run."""
    with torch.device("meta"):
        model = ISNetDIS(in_ch).eval()
    order: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    model.to_empty(device="cpu")(torch.zeros(1, in_ch, 32, 32))  # faster than on the meta device
    return model.to("meta"), order


def unfold(weight: Tensor) -> Tensor:
    """Estimate the BatchNorm gain of each channel that was folded into a convolution's weights.

    Folded weights differ in magnitude by a factor of hundreds between layers and channels. An optimizer like Adam,
    whose step size is the same for all, would destroy the small ones before it changed the large ones. Divided by these
    gains, the weights have the magnitude of an initialized network, sqrt(2 / inputs) (He et al., "Delving Deep into
    Rectifiers", ICCV 2015).

    Args:
        weight: (out, in, kh, kw), float.

    Returns:
        (out,), above 0; at least a tenth of the layer's median.
    """
    size = weight.flatten(1).square().mean(1).sqrt()
    if not size.any():
        return torch.ones_like(size)
    least = 0.1 * (size.median() if size.median() > 0 else size.max())
    return size.clamp_min(least) / (2 / weight[0].numel()) ** 0.5


class _Graph:
    """An ONNX graph: its convolutions, the batch normalization behind each, and the constants that they use."""

    def __init__(self, path: Path) -> None:
        onnx = import_extra("onnx", "import")
        try:
            graph = onnx.load(path).graph
            value = onnx.numpy_helper.to_array
            self.constants = {tensor.name: value(tensor) for tensor in graph.initializer}
            for node in graph.node:
                if node.op_type == "Constant" and node.attribute[0].name == "value":
                    self.constants[node.output[0]] = value(node.attribute[0].t)
            self.sizes = [[dim.dim_value for dim in i.type.tensor_type.shape.dim] for i in graph.input]
        except Exception as error:  # damaged bytes raise errors of all types
            raise OnnxError(f"cannot be read as ONNX; copy it again ({error})") from error
        self.origins: dict[str, str] = {}
        for node in graph.node:  # in topological order
            if node.op_type in _COPIES:
                self.origins[node.output[0]] = self.origin(node.input[0])
        self.convolutions = [node for node in graph.node if node.op_type == "Conv"]
        self.norms = {self.origin(n.input[0]): n for n in graph.node if n.op_type == "BatchNormalization"}
        self.quantized = any(node.op_type in _QUANTIZED for node in graph.node)

    def origin(self, name: str) -> str:
        """Return the name of the value that ``name`` is a cast or copy of, or ``name`` itself."""
        return self.origins.get(name, name)

    def constant(self, name: str) -> Tensor:
        """Return a constant as float32."""
        name = self.origin(name)
        if name not in self.constants:
            raise OnnxError(f"the weights {name} are computed, not stored; export the network in eval mode")
        return torch.from_numpy(self.constants[name].astype("float32"))


def read_onnx(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights of an IS-Net exported to ONNX, in half or full precision.

    A batch normalization that the exporter folded into its convolution becomes one with mean 0, variance 1 and the
    gains of :func:`unfold`. An export without the coarser side outputs gets zero weights for them, which is logged.

    Args:
        path: The ``.onnx`` file.

    Returns:
        A state dict of ISNetDIS, float32, and its metadata: ``in_ch``, and ``input_size`` if the export fixes it.

    Raises:
        OnnxError: If the file cannot be read, is quantized, or holds another network.
        MissingExtraError: If the package onnx is not installed.
    """
    graph = _Graph(Path(path))
    try:
        return _read_graph(graph, path)
    except OnnxError:
        raise
    except Exception as error:  # a damaged graph that could be parsed: nodes without inputs, weights of text, and more
        raise OnnxError(f"cannot be read as IS-Net; copy it again ({type(error).__name__}: {error})") from error


def _read_graph(graph: _Graph, path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found = graph.convolutions
    if graph.quantized:
        raise OnnxError("is quantized; expected float16 or float32 weights: use the export before quantization")
    stem = graph.constant(found[0].input[1]) if found else torch.empty(0)
    if stem.ndim != 4:
        raise OnnxError(f"is another network: it has {len(found)} convolutions, the first {tuple(stem.shape)}")
    in_ch = stem.shape[1]
    if in_ch not in _IN_CH:
        raise OnnxError(f"is another network: expected 3, 4 or 5 input channels, found {in_ch}")
    model, order = skeleton(in_ch)
    fewest = len(order) - _SIDES + 1
    if not fewest <= len(found) <= len(order):
        raise OnnxError(
            f"is another network: it has {len(found)} convolutions, IS-Net {len(order)} ({fewest} with the finest "
            "side output alone)"
        )

    weights = {}
    for name, node in zip(order, found, strict=False):
        weights |= _convolution(graph, node, name, model)
    own = model.state_dict()
    for name in order[len(found) :]:
        weights |= {key: torch.zeros(own[key].shape) for key in (f"{name}.weight", f"{name}.bias")}
    if len(found) < len(order):
        logger.warning("%s has no side outputs %s; their weights are set to zero", path, ", ".join(order[len(found) :]))

    size = next((size[2:] for size in graph.sizes if len(size) == 4), [0])
    return {name: weights[name] for name in own}, {"in_ch": in_ch} | ({"input_size": size} if all(size) else {})


def _convolution(graph: _Graph, node: Any, name: str, model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of one convolution and of the batch normalization behind it."""
    module = model.get_submodule(name)
    weight = graph.constant(node.input[1])
    if weight.shape != module.weight.shape:
        raise OnnxError(
            f"is another network: convolution {node.name or node.output[0]} is {tuple(weight.shape)}, "
            f"IS-Net's {name} {tuple(module.weight.shape)}"
        )
    stored, expected = graph.origin(node.input[1]), f"{name}.weight"
    # an exporter may store equal weights only once, under one of their names; then the other name does not exist
    if stored != expected and stored in model.state_dict() and expected in graph.constants:
        raise OnnxError(f"is not in the order of IS-Net: it has {stored} where IS-Net has {expected}")
    bias = graph.constant(node.input[2]) if len(node.input) > 2 else torch.zeros(weight.shape[0])
    weights = {f"{name}.weight": weight, f"{name}.bias": bias}

    norm = graph.norms.get(node.output[0])
    stem, _, leaf = name.rpartition(".")
    if leaf != "conv_s1":
        if norm is not None:
            raise OnnxError(f"is another network: it normalizes the output of {name}")
        return weights
    channels, eps = weight.shape[0], model.get_submodule(f"{stem}.bn_s1").eps
    if norm is None:
        gain = unfold(weight)
        weights = {f"{name}.weight": weight / gain.view(-1, 1, 1, 1), f"{name}.bias": bias / gain}
        values = [gain, torch.zeros(channels), torch.zeros(channels), torch.full((channels,), 1 - eps)]
    else:
        values = [graph.constant(value) for value in norm.input[1:5]]
        values[3] += next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5) - eps
    for key, value in zip(("weight", "bias", "running_mean", "running_var"), values, strict=True):
        weights[f"{stem}.bn_s1.{key}"] = value
    return {**weights, f"{stem}.bn_s1.num_batches_tracked": torch.tensor(0)}
