"""Networks with the order and names of IS-Net's and the GT encoder's layers, and a thousandth of their weights."""

from __future__ import annotations

import torch
from torch import nn

from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.models.isnet import RSU, _GTStem

CHANNELS = (5, 6, 7, 8, 9, 9)
DEPTHS = (7, 6, 5, 4, 4, 4)


def _add_encoder(network: nn.Module, in_ch: int) -> None:
    for level, (depth, out) in enumerate(zip(DEPTHS, CHANNELS, strict=True), start=1):
        network.add_module(f"stage{level}", RSU(depth, in_ch if level == 1 else CHANNELS[level - 2], 2, out, level < 5))
    network.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)


class Thin(ISNetDIS):
    """IS-Net with few channels."""

    def __init__(self, in_ch: int = 4, out_ch: int = 1) -> None:
        nn.Module.__init__(self)
        self.conv_in = nn.Conv2d(in_ch, 5, 3, stride=2, padding=1)
        _add_encoder(self, 5)
        decoded = CHANNELS[5]
        for level, depth in zip((5, 4, 3, 2, 1), (4, 4, 5, 6, 7), strict=True):
            out = (6, 6, 7, 8, 9)[level - 1]
            self.add_module(f"stage{level}d", RSU(depth, decoded + CHANNELS[level - 1], 3, out, level < 5))
            decoded = out
        self.side_channels = (6, 6, 7, 8, 9, 9)
        self._add_sides(out_ch)


def lively(in_ch: int = 5) -> Thin:
    """Return a network whose alpha mattes vary, in eval mode."""
    torch.manual_seed(in_ch)
    network = Thin(in_ch).train()
    with torch.no_grad():
        for _ in range(3):  # statistics of BatchNorm that are not those of a new network
            network(torch.rand(2, in_ch, 128, 128))
        network.side1.weight.mul_(30)
    return network.eval()


class ThinGTEncoder(ISNetGTEncoder):
    """The GT encoder with few channels; its features have the shapes of :class:`Thin`'s."""

    def __init__(self, in_ch: int = 1, out_ch: int = 1) -> None:
        nn.Module.__init__(self)
        self.conv_in = _GTStem(in_ch, 4)
        widths = (6, 6, 7, 8, 9, 9)
        for level, (depth, out) in enumerate(zip(DEPTHS, widths, strict=True), start=1):
            self.add_module(f"stage{level}", RSU(depth, 4 if level == 1 else widths[level - 2], 2, out, level < 5))
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.side_channels = widths
        self._add_sides(out_ch)
