"""A network with everything around it: pixels of any size in, the alpha matte at that size out.

The same operations as in :mod:`IS_Net.preprocess` and :mod:`IS_Net.tensors`, as a module of PyTorch without branches
that depend on values, so that it can be recorded once and converted to other formats.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from IS_Net import int8
from IS_Net.models import ISNetDIS
from IS_Net.preprocess import BOX_CHANNEL, MASK_CHANNEL, Size
from IS_Net.runtime.torch_runtime import fold_batchnorm

Storage = Literal["float32", "float16", "int8"]
STORAGES = get_args(Storage)

_TARGET = 128  # a mask's pixels above it are the target, as in IS_Net.images.binarize


class StoredConvolution(nn.Module):
    """A convolution whose weights are stored in fewer bits, and computed in float32.

    A runtime that folds constants, as ONNX Runtime and OpenVINO do, restores the weights once when it loads the file.

    Args:
        convolution: The convolution; its weights are not modified.
        storage: ``float16``; or ``int8``, as :func:`IS_Net.int8.quantize` does it: one scale for each output channel.
    """

    def __init__(self, convolution: nn.Conv2d, storage: Storage) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = convolution.stride, convolution.padding, convolution.dilation
        self.bias, weight = convolution.bias, convolution.weight.detach()
        if storage == "float16":
            self.register_buffer("values", weight.half())
            self.scale = self.outliers = None
            return
        values, scale, outliers = int8.quantize(weight)
        is_outlier = values == int8.OUTLIER
        self.register_buffer("values", values.masked_fill(is_outlier, 0))
        self.register_buffer("scale", scale.view(-1, 1, 1, 1))
        self.register_buffer("outliers", outliers if len(outliers) else None)
        # in the flat weight: OpenVINO cannot convert an assignment by four indices
        self.register_buffer("places", is_outlier.flatten().nonzero()[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H, W)."""
        weight = self.values.float()
        if self.scale is not None:
            weight = weight * self.scale
        if self.outliers is not None:
            weight = weight.flatten().scatter(0, self.places, self.outliers).view_as(weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


def prepare_network(model: ISNetDIS, storage: Storage = "float32") -> ISNetDIS:
    """Return a copy of a network for a conversion: BatchNorm folded, without gradients, weights in a storage type.

    Args:
        model: The network; it is not modified.
        storage: Of the convolutions' weights; those of one output channel are small, and stay float32 with ``int8``.
    """
    network = fold_batchnorm(model).requires_grad_(False)
    if storage == "float32":
        return network
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and (storage == "float16" or child.out_channels > 1):
                setattr(parent, name, StoredConvolution(child, storage))
    return network


def input_channels(network: ISNetDIS) -> int:
    """Return the input channels of a network from :func:`prepare_network`."""
    stem = network.conv_in
    return (stem.values if isinstance(stem, StoredConvolution) else stem.weight).shape[1]


def compute_alpha(network: ISNetDIS, planes: Tensor) -> Tensor:
    """Run a network on bytes.

    Args:
        network: From :func:`prepare_network`.
        planes: (1, in_ch, h, w) uint8 or float, 0..255; see :func:`IS_Net.preprocess.make_planes`.

    Returns:
        (1, 1, h, w) float32 in [0, 1].
    """
    x = planes.float() / 255  # IS_Net.tensors.make_input writes to a part of a tensor, which few converters know
    x = torch.cat((x[:, :MASK_CHANNEL] - 0.5, x[:, MASK_CHANNEL:]), dim=1)
    return torch.sigmoid(network.predict_logits(x))


class PlanesNetwork(nn.Module):
    """A network with its normalization: what a runtime runs, between :mod:`IS_Net.preprocess` and the alpha matte.

    Args:
        network: From :func:`prepare_network`.
    """

    def __init__(self, network: ISNetDIS) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        """Return :func:`compute_alpha`."""
        return compute_alpha(self.network, planes)


class ExportedNetwork(nn.Module):
    """What an export computes: one whole pass of :class:`IS_Net.predictor.DISPredictor`.

    Args:
        network: From :func:`prepare_network`.
        size: (height, width) that the network works at.
        image_size: (height, width) of all images; None for any.
    """

    def __init__(self, network: ISNetDIS, size: Size, image_size: Size | None) -> None:
        super().__init__()
        self.network, self.size, self.image_size = network, tuple(size), image_size and tuple(image_size)
        self.in_ch = input_channels(network)

    def forward(self, image: Tensor, mask: Tensor | None = None, box: Tensor | None = None) -> Tensor:
        """Segment the object of a prompt.

        Args:
            image: (H, W, 3) RGB, 0..255.
            mask: (H, W) coarse mask, 0..255; all 0 means that there is none. Not used if the network has 3 channels.
            box: (4,) float32 x0, y0, x1, y1 in pixels, both ends included; it is clipped to the image. All 0 means that
                there is none: then it is the mask's bounds, or the whole frame without a mask. Not used if the network
                has 3 channels.

        Returns:
            (H, W) float32 alpha matte in [0, 1].
        """
        height, width = self.image_size or image.shape[:2]
        planes = self._resize(image.permute(2, 0, 1).unsqueeze(0).float())
        if self.in_ch > MASK_CHANNEL:
            planes = torch.cat((planes, *self._prompt_planes(mask.float(), box, height, width)), dim=1)
        alpha = compute_alpha(self.network, planes)
        if self.image_size != self.size:
            alpha = F.interpolate(alpha, size=(height, width), mode="bilinear", align_corners=False)
        return alpha.squeeze(0).squeeze(0)

    def _resize(self, planes: Tensor) -> Tensor:
        if self.image_size == self.size:
            return planes
        return F.interpolate(planes, size=self.size, mode="bilinear", align_corners=False).round()

    def _prompt_planes(self, mask: Tensor, box: Tensor, height: int | Tensor, width: int | Tensor) -> list[Tensor]:
        given = mask.amax().reshape(1) > 0
        filled = self._fill_box(mask, given, box, height, width)
        resized = self._resize(mask.unsqueeze(0).unsqueeze(0))
        if self.in_ch <= BOX_CHANNEL:
            return [torch.where(given, resized, filled)]
        return [resized, filled]

    def _fill_box(self, mask: Tensor, given: Tensor, box: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
        """Return the box channel, (1, 1, h, w), 0 or 255, as :func:`IS_Net.preprocess.fill_box` draws it."""
        x0, y0, x1, y1 = (box[index : index + 1] for index in range(4))  # Core ML's converter has no scalars in where
        has_box = torch.maximum(x1 - x0, y1 - y0) > 0
        rows = self._fill_side(mask.amax(dim=1), given, has_box, (y0, y1), height, self.size[0])
        columns = self._fill_side(mask.amax(dim=0), given, has_box, (x0, x1), width, self.size[1])
        return torch.minimum(rows.unsqueeze(1), columns.unsqueeze(0)).unsqueeze(0).unsqueeze(0)

    @staticmethod
    def _fill_side(
        mask: Tensor, given: Tensor, has_box: Tensor, ends: tuple[Tensor, Tensor], side: int | Tensor, small: int
    ) -> Tensor:
        """Return 255 where rows, or columns, are in the box, and 0 elsewhere: (small,)."""
        place = torch.arange(side, dtype=torch.float32)
        zero, most = place[:1], place[-1:]
        occupied = mask > _TARGET
        # a mask without a pixel above the threshold has no bounds: first > last, and the channel is zero
        first = torch.where(occupied, place, most + 1).amin().reshape(1)
        last = torch.where(occupied, place, zero - 1).amax().reshape(1)
        first, last = torch.where(given, first, zero), torch.where(given, last, most)
        first = torch.where(has_box, torch.maximum(ends[0], zero), first)
        last = torch.where(has_box, torch.minimum(ends[1], most), last)
        # from floor(first * small / side) to before ceil((last + 1) * small / side): exact, as there is no division
        pixel, scale = torch.arange(small, dtype=torch.float32), most + 1
        return 255 * torch.logical_and((pixel + 1) * scale > first * small, pixel * scale < (last + 1) * small).float()
