"""IS-Net and its GT encoder.

The networks of "Highly Accurate Dichotomous Image Segmentation" (Qin et al., ECCV 2022), built from the residual
U-blocks (RSU) of "U^2-Net" (Qin et al., Pattern Recognition 2020), with the input channels of DIS-SAM. Names and shapes
in the state dicts are those of the published code, so that published checkpoints load strictly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def upsample_like(x: Tensor, target: Tensor) -> Tensor:
    """Resize (B, C, h, w) to the height and width of ``target``: bilinear, align_corners False."""
    if x.shape[-2:] == target.shape[-2:]:
        return x
    return F.interpolate(x, size=target.shape[-2:], mode="bilinear", align_corners=False)


def _pool() -> nn.MaxPool2d:
    # ceil_mode keeps the last row and column of an odd size
    return nn.MaxPool2d(2, stride=2, ceil_mode=True)


class ConvBNReLU(nn.Module):
    """3 x 3 convolution, batch normalization, ReLU (``REBNCONV`` in the published code).

    Args:
        in_ch: Input channels.
        out_ch: Output channels.
        dilation: The convolution's dilation; the padding follows it, so the size stays.
    """

    def __init__(self, in_ch: int, out_ch: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(in_ch, out_ch, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out_ch)
        self.relu_s1 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_ch, H, W) to (B, out_ch, H, W)."""
        if self.training and not self.bn_s1.training:  # frozen: scaling the weights is cheaper than scaling the output
            return self.relu_s1(self._conv_of_frozen_norm(x))
        return self.relu_s1(self.bn_s1(self.conv_s1(x)))

    def _conv_of_frozen_norm(self, x: Tensor) -> Tensor:
        conv, norm = self.conv_s1, self.bn_s1
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = (conv.bias - norm.running_mean) * gain + norm.bias
        return F.conv2d(x, conv.weight * gain.view(-1, 1, 1, 1), bias, padding=conv.padding, dilation=conv.dilation)


class RSU(nn.Module):
    """Residual U-block: a small U-Net whose output is added to its first convolution's.

    One class covers the published RSU7, RSU6, RSU5, RSU4 (pooling between the levels, dilation 2 in the deepest
    one) and RSU4F (constant resolution, dilations 1, 2, 4, 8).

    Args:
        depth: Levels of the U, the L of RSU-L.
        in_ch: Input channels.
        mid_ch: Channels inside the U.
        out_ch: Output channels.
        pool: False for the "F" variant.
    """

    def __init__(self, depth: int, in_ch: int, mid_ch: int, out_ch: int, pool: bool = True) -> None:
        super().__init__()
        self.depth, self.pooled = depth, pool
        dilations = [1] * (depth - 1) + [2] if pool else [2**level for level in range(depth)]

        self.rebnconvin = ConvBNReLU(in_ch, out_ch)
        for level, dilation in enumerate(dilations, start=1):
            block = ConvBNReLU(out_ch if level == 1 else mid_ch, mid_ch, dilation)
            self.add_module(f"rebnconv{level}", block)
        for level in range(depth - 1, 0, -1):
            block = ConvBNReLU(2 * mid_ch, out_ch if level == 1 else mid_ch, 1 if pool else dilations[level - 1])
            self.add_module(f"rebnconv{level}d", block)
        self.pool = _pool() if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_ch, H, W) to (B, out_ch, H, W)."""
        residual = self.rebnconvin(x)
        encoded = []
        x = residual
        for level in range(1, self.depth):
            # there is no pooling before the first level and before the deepest one, which has a dilation instead
            x = getattr(self, f"rebnconv{level}")(x if level == 1 else self.pool(x))
            encoded.append(x)
        x = getattr(self, f"rebnconv{self.depth}")(x)
        for level in range(self.depth - 1, 0, -1):
            skip = encoded.pop()
            x = getattr(self, f"rebnconv{level}d")(torch.cat((upsample_like(x, skip), skip), dim=1))
        return x + residual


@contextmanager
def _fixed_statistics(stage: nn.Module) -> Iterator[None]:
    """Keep the running statistics of BatchNorms as they are while these normalize with those of the batch."""
    norms = [module for module in stage.modules() if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class _SixStages(nn.Module):
    """Common base of both networks: six side outputs, each computed from one of six feature maps.

    Attributes:
        recompute: Whether a training keeps only the outputs of the stages, and computes what is inside a stage again in
            the backward pass: gradient checkpointing ("Training Deep Nets with Sublinear Memory Cost", Chen et al.,
            2016). Gradients and BatchNorm statistics are the same.
    """

    side_channels = (64, 64, 128, 256, 512, 512)
    recompute = False

    def _run(self, stage: RSU, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Run a stage on (B, C, h, w), in the decoder upsampled and concatenated with the map of the encoder."""

        def compute(x: Tensor, skip: Tensor | None) -> Tensor:
            return stage(x if skip is None else torch.cat((upsample_like(x, skip), skip), dim=1))

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), _fixed_statistics(stage)  # the first pass has updated them

        if not (self.recompute and self.training):
            return compute(x, skip)
        # the networks draw no random numbers, so that there is no state of them to restore
        return checkpoint(compute, x, skip, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    def _add_sides(self, out_ch: int) -> None:
        for level, channels in enumerate(self.side_channels, start=1):
            self.add_module(f"side{level}", nn.Conv2d(channels, out_ch, 3, padding=1))

    def _encode(self, x: Tensor) -> list[Tensor]:
        encoded = [self._run(self.stage1, self.conv_in(x))]
        for level in range(2, 7):
            encoded.append(self._run(getattr(self, f"stage{level}"), self.pool(encoded[-1])))
        return encoded

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the six feature maps that the side outputs are computed from, finest first."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Run the network with all side outputs.

        Args:
            x: (B, in_ch, H, W) float; any height and width.

        Returns:
            Six side logits, each (B, out_ch, H, W), finest first, and the six feature maps
            (B, 64 | 64 | 128 | 256 | 512 | 512, h, w) at 1/2, 1/4, ... 1/64 of the size, rounded up.
        """
        features = self.features(x)
        sides = [getattr(self, f"side{level}")(feature) for level, feature in enumerate(features, start=1)]
        return [upsample_like(side, x) for side in sides], features


class ISNetDIS(_SixStages):
    """The segmentation network: IS-Net on image, coarse mask and, in the 5-channel release, the filled box.

    Args:
        in_ch: 3 = image, 4 = image + mask, 5 = image + mask + box.
        out_ch: Channels of each side output.
    """

    def __init__(self, in_ch: int = 4, out_ch: int = 1) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_ch, 64, 3, stride=2, padding=1)

        self.stage1 = RSU(7, 64, 32, 64)
        self.stage2 = RSU(6, 64, 32, 128)
        self.stage3 = RSU(5, 128, 64, 256)
        self.stage4 = RSU(4, 256, 128, 512)
        self.stage5 = RSU(4, 512, 256, 512, pool=False)
        self.stage6 = RSU(4, 512, 256, 512, pool=False)
        self.pool = _pool()

        self.stage5d = RSU(4, 1024, 256, 512, pool=False)
        self.stage4d = RSU(4, 1024, 128, 256)
        self.stage3d = RSU(5, 512, 64, 128)
        self.stage2d = RSU(6, 256, 32, 64)
        self.stage1d = RSU(7, 128, 16, 64)
        self._add_sides(out_ch)

    @property
    def in_ch(self) -> int:
        """Input channels."""
        return self.conv_in.in_channels

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the six decoder maps, finest first."""
        encoded = self._encode(x)
        decoded = [encoded.pop()]
        for level in range(5, 0, -1):
            decoded.insert(0, self._run(getattr(self, f"stage{level}d"), decoded[0], encoded.pop()))
        return decoded

    def predict_logits(self, x: Tensor) -> Tensor:
        """Compute the finest side output only.

        Args:
            x: (B, in_ch, H, W) float.

        Returns:
            (B, out_ch, H, W) logits, equal to the first side output of ``forward``.
        """
        return upsample_like(self.side1(self.features(x)[0]), x)


class _GTStem(nn.Module):
    """First convolution of the GT encoder (``myrebnconv`` in the published code)."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_ch, out_ch, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(out_ch)
        self.rl = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rl(self.bn(self.conv(x)))


class ISNetGTEncoder(_SixStages):
    """The GT encoder: trained to reconstruct the GT mask, then frozen; its features supervise those of ISNetDIS.

    Args:
        in_ch: Channels of the GT.
        out_ch: Channels of each side output.
    """

    def __init__(self, in_ch: int = 1, out_ch: int = 1) -> None:
        super().__init__()
        self.conv_in = _GTStem(in_ch, 16)
        self.stage1 = RSU(7, 16, 16, 64)
        self.stage2 = RSU(6, 64, 16, 64)
        self.stage3 = RSU(5, 64, 32, 128)
        self.stage4 = RSU(4, 128, 32, 256)
        self.stage5 = RSU(4, 256, 64, 512, pool=False)
        self.stage6 = RSU(4, 512, 64, 512, pool=False)
        self.pool = _pool()
        self._add_sides(out_ch)

    @property
    def in_ch(self) -> int:
        """Input channels."""
        return self.conv_in.conv.in_channels

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the six encoder maps, finest first."""
        return self._encode(x)

    def predict_logits(self, x: Tensor) -> Tensor:
        """Compute the finest side output only, (B, out_ch, H, W) logits."""
        return upsample_like(self.side1(self.stage1(self.conv_in(x))), x)
