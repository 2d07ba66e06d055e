"""What runs the network at prediction: PyTorch on any device; on the CPU, runtimes that are faster there.

On the CPU, ncnn or OpenVINO (the extra ``fast``) or ONNX Runtime (the extra ``onnx``) is used where it is installed,
with weights that are converted once and kept in the cache folder. A process that finds them there does not import
PyTorch, which alone takes about two seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from IS_Net.preprocess import Size
from IS_Net.runtime.base import Runtime, choose_runtime, pick_size

if TYPE_CHECKING:
    import torch


def open_weights(
    path: str | Path,
    device: str | torch.device = "auto",
    precision: str = "auto",
    input_size: Size | None = None,
    runtime: str = "auto",
) -> tuple[Runtime, dict[str, Any], Size]:
    """Make a network of a checkpoint ready to run.

    Args:
        path: A checkpoint of this project or a published ``.pth``, with 3, 4 or 5 input channels.
        device: See :func:`IS_Net.device.pick_device`.
        precision: ``auto``, ``full`` or ``half``; see :func:`IS_Net.device.autocast_dtype`.
        input_size: (height, width); None takes the size in the checkpoint's metadata, or 1024 x 1024 if it has none.
        runtime: See :func:`IS_Net.runtime.base.choose_runtime`.

    Returns:
        The network, the checkpoint's metadata, and the input size.

    Raises:
        CheckpointError: If the file is missing, damaged, or belongs to another network.
        DeviceError: If the device, the precision or the runtime is not available.
    """
    chosen = choose_runtime(runtime, device)
    if chosen == "openvino":
        from IS_Net.runtime.openvino_runtime import open_weights as open_openvino

        return open_openvino(path, precision, input_size)
    if chosen == "ncnn":
        from IS_Net.runtime.ncnn_runtime import open_weights as open_ncnn

        return open_ncnn(path, precision, input_size)
    if chosen == "onnx":
        from IS_Net.runtime.onnx_runtime import open_weights as open_onnx

        return open_onnx(path, device, precision, input_size)
    # PyTorch takes seconds to import
    from IS_Net.checkpoint import load_isnet
    from IS_Net.runtime.torch_runtime import TorchRuntime

    model, metadata = load_isnet(path)
    size = pick_size(input_size, metadata)
    return TorchRuntime(model, device, precision), metadata, size
