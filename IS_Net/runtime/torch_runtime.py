"""The network in PyTorch, on any device."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from IS_Net.device import autocast_dtype, describe, dtype_name, pick_device
from IS_Net.models import ConvBNReLU, ISNetDIS
from IS_Net.tensors import make_alpha, make_input


@torch.no_grad()
def fold_batchnorm(model: ISNetDIS) -> ISNetDIS:
    """Return a copy in eval mode whose BatchNorms are folded into their convolutions: the same function, faster."""
    blocks = [block for block in model.modules() if isinstance(block, ConvBNReLU)]
    # the tensors of the blocks are not copied, because folding makes new ones
    shared = {id(tensor): tensor for block in blocks for tensor in (*block.parameters(), *block.buffers())}
    model = copy.deepcopy(model, shared).eval()
    for block in model.modules():
        if isinstance(block, ConvBNReLU):
            conv, norm = block.conv_s1, block.bn_s1
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
            block.bn_s1 = nn.Identity()
    return model


class TorchRuntime:
    """The network in PyTorch: BatchNorm folded, channels_last, 16 bits where that is faster.

    In 16 bits, the weights are converted once. The result is that of autocast, which would convert them in each pass.

    Args:
        model: The network; it is copied.
        device: See :func:`IS_Net.device.pick_device`.
        precision: See :func:`IS_Net.device.autocast_dtype`.

    Raises:
        DeviceError: If the device or the precision is not available.
    """

    name = "torch"

    def __init__(self, model: ISNetDIS, device: str | torch.device = "auto", precision: str = "auto") -> None:
        chosen = pick_device(device)
        self.dtype = autocast_dtype(chosen, precision) or torch.float32
        self.model = fold_batchnorm(model).to(chosen, self.dtype, memory_format=torch.channels_last)
        self.torch_device = chosen
        self.device, self.where, self.precision = str(chosen), describe(chosen), dtype_name(self.dtype)
        self.in_ch = model.in_ch

    @torch.inference_mode()
    def alpha(self, planes: np.ndarray) -> np.ndarray:
        """See :meth:`IS_Net.runtime.base.Runtime.alpha`."""
        x = make_input(torch.from_numpy(planes)[None].to(self.torch_device))
        logits = self.model.predict_logits(x.to(self.dtype))
        return make_alpha(logits, planes.shape[-2:])[0, 0].cpu().numpy()

    def release(self) -> None:
        """See :meth:`IS_Net.runtime.base.Runtime.release`; PyTorch keeps none of the computer's."""
