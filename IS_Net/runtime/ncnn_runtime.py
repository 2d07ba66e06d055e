"""The network in ncnn, on the CPU: fast convolutions by Winograd's algorithm (Lavin and Gray, CVPR 2016).

They need a fraction of the multiplications of direct convolutions; results differ by rounding. OpenVINO, ONNX Runtime
and PyTorch compute direct ones on CPUs, so that ncnn is the fastest where 16 bits are not faster still.

Weights are converted once for each size, which takes some seconds and PyTorch. The converted network is kept in
``ncnn/`` of the cache folder (:mod:`IS_Net.runtime.kept`): the weights in ncnn's format, and the graph behind them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ncnn
import numpy as np

from IS_Net.machine import requested_threads
from IS_Net.preprocess import MASK_CHANNEL, Size
from IS_Net.runtime.base import require_float32
from IS_Net.runtime.kept import open_kept

if TYPE_CHECKING:
    import torch

    from IS_Net.models import ISNetDIS

_METHOD = 1
"""Part of every key. Increase it when the same weights give other networks than before."""
_MAGIC = 7767517  # of ncnn's text format
_LENGTH = 8  # bytes of the graph's length, at the end of the content
_INPUT, _OUTPUT = "planes", "alpha"


class NcnnRuntime:
    """A network that ncnn has loaded.

    Args:
        path: The weights; what follows them in the file is not read. See :func:`convert_network`.
        graph: The layers.
        size: (height, width) of the input.

    Raises:
        ValueError: If the file or the graph is damaged.
    """

    name = "ncnn"
    device = "cpu"
    precision = "float32"

    def __init__(self, path: Path, graph: str, size: Size) -> None:
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = requested_threads()
        options.use_vulkan_compute = False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_packed = options.use_bf16_storage = False
        if self._net.load_param_mem(graph) or self._net.load_model(str(path)):
            raise ValueError(f"{path}: ncnn cannot load the network")
        self._pools = ncnn.PoolAllocator(), ncnn.PoolAllocator()
        self.size, self.in_ch = size, _count_channels(graph)
        self.where = f"cpu ({requested_threads()} threads, ncnn)"

    def alpha(self, planes: np.ndarray) -> np.ndarray:
        """See :meth:`IS_Net.runtime.base.Runtime.alpha`."""
        height, width = self.size
        content = ncnn.Mat(width, height, self.in_ch)
        values = np.array(content, copy=False)
        np.divide(planes, np.float32(255), out=values)
        values[:MASK_CHANNEL] -= 0.5
        blobs, workspace = self._pools
        with self._net.create_extractor() as extractor:  # one for each call, so that threads do not mix
            extractor.set_blob_allocator(blobs)
            extractor.set_workspace_allocator(workspace)
            extractor.input(_INPUT, content)
            code, found = extractor.extract(_OUTPUT)
            if code:
                raise MemoryError(f"ncnn ended with the error {code}; it probably lacks memory")
            return np.array(found)[0]

    def release(self) -> None:
        """See :meth:`IS_Net.runtime.base.Runtime.release`."""
        for pool in self._pools:
            pool.clear()


def _count_channels(graph: str) -> int:
    """Return the channels of the input, which its layer, the third line, states."""
    return int(graph.splitlines()[2].rpartition("2=")[2])


def convert_network(model: ISNetDIS, size: Size) -> bytes:
    """Convert a network: (in_ch, h, w) float32, normalized -> (1, h, w) float32 alpha matte.

    Args:
        model: The network; it is not modified.
        size: (height, width) of the input.

    Returns:
        The weights, the graph, and the length of the graph in bytes (8 bytes, little-endian).
    """
    import torch
    from torch import nn

    from IS_Net.exporting.graph import prepare_network

    class Alpha(nn.Module):
        def __init__(self, network: ISNetDIS) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.network.predict_logits(x))

    with torch.inference_mode(False), torch.no_grad():
        recorded = torch.export.export(Alpha(prepare_network(model)).eval(), (torch.zeros(1, model.in_ch, *size),))
    weights: list[bytes] = []
    graph = _write_graph(_list_layers(recorded, weights, size, model.in_ch)).encode()
    return b"".join((*weights, graph, len(graph).to_bytes(_LENGTH, "little")))


def _list_layers(
    recorded: torch.export.ExportedProgram, weights: list[bytes], size: Size, channels: int
) -> Iterator[tuple[str, str, list[str], str]]:
    """Yield type, settings, inputs and output of each layer, in the order of the computation.

    Args:
        recorded: The network.
        weights: Receives the content of the file of weights.
        size: (height, width) of the input.
        channels: Of the input.

    Raises:
        NotImplementedError: If the network has an operation that IS-Net does not have.
    """
    parameters = {name: recorded.state_dict[key] for name, key in recorded.graph_signature.inputs_to_parameters.items()}
    nodes = [node for node in recorded.graph.nodes if node.op == "call_function"]
    activated = {node.args[0]: node for node in nodes if _operation(node) in ("relu", "relu_")}
    [given] = recorded.graph_signature.user_inputs
    names = {given: _INPUT, nodes[-1].name: _OUTPUT}

    def name_of(node: Any) -> str:
        return names.get(node.name, node.name)

    yield "Input", f"0={size[1]} 1={size[0]} 2={channels}", [], _INPUT
    for node in nodes:
        operation, args, output = _operation(node), node.args, node
        inputs = list(args[0]) if isinstance(args[0], Sequence) else [args[0]]
        if operation == "conv2d":
            weight, bias = (parameters[argument.name].detach().float().contiguous() for argument in args[1:3])
            (stride, _), (padding, _), (dilation, _) = (*args[3:], *([1, 1], [0, 0], [1, 1])[len(args) - 3 :])
            rows, columns = weight.shape[2:]
            kind, output = "Convolution", activated.get(node, node)
            settings = (
                f"0={len(weight)} 1={columns} 11={rows} 2={dilation} 3={stride} 4={padding} 5=1 6={weight.numel()} "
                f"9={int(node in activated)}"
            )
            weights += [bytes(4), weight.numpy().tobytes(), bias.numpy().tobytes()]  # the first 4: they are float32
        elif operation in ("relu", "relu_") and args[0] in activated and _operation(args[0]) == "conv2d":
            continue  # a part of the convolution
        elif operation == "max_pool2d" and args[1:] == ([2, 2], [2, 2], [0, 0], [1, 1], True):
            kind, settings = "Pooling", "0=0 1=2 2=2 3=0 5=0"
        elif operation == "upsample_bilinear2d" and args[2] is False:
            kind, settings = "Interp", f"0=2 3={args[1][0]} 4={args[1][1]} 6=0"
        elif operation == "cat" and args[1] == 1:
            kind, settings = "Concat", "0=0"
        elif operation == "add":
            kind, settings, inputs = "BinaryOp", "0=0", list(args)
        elif operation == "sigmoid":
            kind, settings = "Sigmoid", ""
        else:
            raise NotImplementedError(f"{node.target} with {args}")
        yield kind, settings, list(map(name_of, inputs)), name_of(output)


def _operation(node: Any) -> str:
    """Return the name of an operation, such as ``conv2d``."""
    return node.target.__name__.partition(".")[0]


def _write_graph(layers: Iterator[tuple[str, str, list[str], str]]) -> str:
    """Write layers in ncnn's text format, in which every output has one reader: others get copies of it."""
    listed = list(layers)
    readers: dict[str, list[str]] = {}
    for _, _, inputs, _ in listed:
        for name in inputs:
            readers.setdefault(name, []).append(f"{name}/{len(readers.get(name, []))}")
    copies = {name: iter(found) for name, found in readers.items() if len(found) > 1}
    lines, outputs = [], 0
    for number, (kind, settings, inputs, output) in enumerate(listed):
        taken = [next(copies[name]) if name in copies else name for name in inputs]
        lines.append(" ".join([kind, f"{kind}_{number}", str(len(taken)), "1", *taken, output, settings]).rstrip())
        outputs += 1
        if output in copies:
            made = readers[output]
            lines.append(" ".join(["Split", f"Split_{number}", "1", str(len(made)), output, *made]))
            outputs += len(made)
    return "\n".join([str(_MAGIC), f"{len(lines)} {outputs}", *lines, ""])


def open_content(content: np.ndarray, size: Size, file: Path | None = None) -> NcnnRuntime:
    """Load a network.

    Args:
        content: What :func:`convert_network` returns, as (N,) uint8.
        size: (height, width) of the input.
        file: A file with the same content; None writes a temporary one.

    Raises:
        ValueError: If the content is damaged.
        OSError: If the temporary file cannot be written.
    """
    if file is None:
        with tempfile.TemporaryDirectory(prefix="dis-sam-") as folder:  # ncnn's interface for Python takes no bytes
            file = Path(folder) / "network"
            file.write_bytes(content)
            return open_content(content, size, file)
    length = int.from_bytes(content[-_LENGTH:].tobytes(), "little")
    graph = content[-_LENGTH - length : -_LENGTH].tobytes().decode()
    return NcnnRuntime(file, graph, size)


def open_weights(
    path: str | Path, precision: str = "auto", input_size: Size | None = None
) -> tuple[NcnnRuntime, dict[str, Any], Size]:
    """Make a checkpoint's network ready to run; see :func:`IS_Net.runtime.open_weights`."""
    require_float32(precision, "ncnn")
    return open_kept("ncnn", path, [_METHOD], input_size, open_content, convert_network)
