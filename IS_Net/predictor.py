"""Refine coarse masks with a trained IS-Net: image + mask and/or box -> alpha matte."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from IS_Net.checkpoint import load_isnet
from IS_Net.device import autocast, autocast_dtype, pick_device
from IS_Net.images import size_mismatch
from IS_Net.models import ConvBNReLU, ISNetDIS
from IS_Net.preprocess import (
    MASK_CHANNEL,
    Box,
    check_box,
    make_alpha,
    make_image_planes,
    make_input,
    make_prompt_planes,
)

DEFAULT_SIZE = (1024, 1024)


def check_mask(
    mask: np.ndarray, size: tuple[int, int], name: object = "the mask", image: object = "its image"
) -> np.ndarray:
    """Convert a coarse mask to uint8 0..255.

    Args:
        mask: (H, W), (1, H, W) or (H, W, 1), bool, uint8 0/1 or 0..255, or float 0..1.
        size: (height, width) of the image.
        name: How errors refer to the mask.
        image: How errors refer to the image.

    Returns:
        (H, W) uint8, 0..255.

    Raises:
        ValueError: If the shape, dtype or range is another, or the size is not that of the image.
    """
    mask = np.asarray(mask)
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):  # (1, H, W): SamPredictor returns a single mask so
        mask = mask.squeeze(0 if mask.shape[0] == 1 else 2)
    if mask.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W), found {mask.shape}")
    if mask.shape != size:
        raise ValueError(size_mismatch(name, mask.shape, image, size))
    if mask.dtype == bool:
        return mask.astype(np.uint8) * np.uint8(255)
    if mask.dtype == np.uint8:
        return mask * np.uint8(255) if mask.max(initial=0) <= 1 else mask
    if np.issubdtype(mask.dtype, np.floating):
        if not (np.isfinite(mask).all() and mask.min(initial=0) >= 0 and mask.max(initial=0) <= 1):
            raise ValueError(f"expected a float mask within 0..1, found {mask.min()}..{mask.max()}")
        return np.rint(mask * 255).astype(np.uint8)
    raise ValueError(f"expected a mask of bool, uint8 or float, found {mask.dtype}")


def fold_batchnorm(model: ISNetDIS) -> ISNetDIS:
    """Return a copy in eval mode whose BatchNorms are folded into their convolutions: the same function, faster."""
    model = copy.deepcopy(model).eval()
    for block in model.modules():
        if isinstance(block, ConvBNReLU):
            block.conv_s1 = fuse_conv_bn_eval(block.conv_s1, block.bn_s1)
            block.bn_s1 = nn.Identity()
    return model


@dataclass(frozen=True)
class PreparedImage:
    """An image at the size that the network works at; see :meth:`DISPredictor.prepare`.

    Attributes:
        planes: (3, h, w) uint8 RGB at the network's input size.
        size: (height, width) of the image itself.
    """

    planes: np.ndarray
    size: tuple[int, int]


class DISPredictor:
    """Refines coarse masks with a trained IS-Net. It keeps no state between calls.

    Args:
        model: The network; it is copied.
        device: See :func:`IS_Net.device.pick_device`.
        precision: ``auto``, ``full`` or ``half``; see :func:`IS_Net.device.autocast_dtype`.
        input_size: (height, width) that the network works at: the size it was trained at.

    Raises:
        DeviceError: If the device or the precision is not available.
    """

    def __init__(
        self,
        model: ISNetDIS,
        device: str | torch.device = "auto",
        precision: str = "auto",
        input_size: tuple[int, int] = DEFAULT_SIZE,
    ) -> None:
        self.device = pick_device(device)
        self.dtype = autocast_dtype(self.device, precision)
        self.model = fold_batchnorm(model).to(self.device, memory_format=torch.channels_last)
        self.input_size = (int(input_size[0]), int(input_size[1]))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        precision: str = "auto",
        input_size: tuple[int, int] | None = None,
    ) -> DISPredictor:
        """Load a checkpoint of this project or a published ``.pth``, with 3, 4 or 5 input channels.

        Args:
            path: The checkpoint.
            device: See the constructor.
            precision: See the constructor.
            input_size: None takes the size in the checkpoint's metadata, or 1024 x 1024 if it has none.

        Raises:
            CheckpointError: If the file is missing, damaged, or belongs to another network.
            DeviceError: If the device or the precision is not available.
        """
        model, metadata = load_isnet(path)
        return cls(model, device, precision, input_size or metadata.get("input_size") or DEFAULT_SIZE)

    @property
    def in_ch(self) -> int:
        """Number of input channels: 3 = image, 4 = image + mask, 5 = image + mask + filled box."""
        return self.model.in_ch

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Check an image and resize it, once for any number of masks and boxes.

        Args:
            image: (H, W, 3) uint8 RGB, upright.

        Raises:
            ValueError: If the shape or dtype is another.
        """
        # copied, so that it does not change with the caller's array
        return PreparedImage(make_image_planes(image, self.input_size).copy(), image.shape[:2])

    def predict(
        self, image: np.ndarray | PreparedImage, mask: np.ndarray | None = None, box: Box | None = None
    ) -> np.ndarray:
        """Refine one coarse mask.

        Args:
            image: (H, W, 3) uint8 RGB, upright; or what :meth:`prepare` returns for it.
            mask: (H, W), bool, uint8 0/1 or 0..255, or float 0..1. May be None only for a 3-channel network, which does
                not use it.
            box: xyxy in pixels; None means the bounds of the mask. Only a 5-channel network uses it.

        Returns:
            (H, W) float32 alpha matte in [0, 1]; all 0 if the mask is empty.

        Raises:
            ValueError: If a shape, dtype or range is another, the mask is missing, or its size is not the image's.
            BoxError: If the box has no area or lies outside the image.
        """
        prepared = image if isinstance(image, PreparedImage) else self.prepare(image)
        coarse = None if mask is None else check_mask(mask, prepared.size)
        clipped = None if box is None else check_box(box, *prepared.size)
        return self.refine(prepared, coarse, clipped)

    @torch.inference_mode()
    def refine(self, image: PreparedImage, mask: np.ndarray | None, box: Box | None) -> np.ndarray:
        """Refine one coarse mask, as :meth:`predict` does, with values that have been checked.

        Args:
            image: From :meth:`prepare`.
            mask: (H, W) uint8 0..255, from :func:`check_mask`; None only for a 3-channel network.
            box: xyxy in pixels, from :func:`IS_Net.preprocess.check_box`; None means the bounds of the mask.

        Returns:
            (H, W) float32 alpha matte in [0, 1]; all 0 if the mask is empty.

        Raises:
            ValueError: If the mask is missing.
        """
        prompt_planes = make_prompt_planes(mask, box, self.in_ch, image.size, self.input_size)
        if self.in_ch > MASK_CHANNEL and not mask.any():
            return np.zeros(image.size, dtype=np.float32)
        planes = torch.from_numpy(np.concatenate((image.planes, prompt_planes)))
        x = make_input(planes[None].to(self.device))
        with autocast(self.device, self.dtype):
            logits = self.model.predict_logits(x)
        return make_alpha(logits, image.size)[0, 0].cpu().numpy()
