"""From an image and its coarse mask, or a prompt, to an alpha matte."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from IS_Net.checkpoint import load_isnet
from IS_Net.device import autocast, autocast_dtype, pick_device
from IS_Net.models import ConvBNReLU, ISNetDIS
from IS_Net.preprocess import MASK_CHANNEL, Box, check_box, make_alpha, make_input, make_planes

DEFAULT_SIZE = (1024, 1024)


def _mask_to_uint8(mask: np.ndarray) -> np.ndarray:
    """Return any of the mask forms that ``predict`` takes as uint8 0..255."""
    mask = np.asarray(mask)
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):  # (1, H, W), as SamPredictor returns one mask
        mask = mask.squeeze(0 if mask.shape[0] == 1 else 2)
    if mask.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W), found {mask.shape}")
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


class DISPredictor:
    """Refines coarse masks with a trained IS-Net.

    Args:
        model: The network; it is copied.
        device: As :func:`IS_Net.device.pick_device` takes it.
        precision: ``auto``, ``full`` or ``half``, as :func:`IS_Net.device.autocast_dtype` takes it.
        input_size: (height, width) that the network works at: the size it was trained at.

    Raises:
        DeviceError: If the device or the precision is not to be had.
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
        """Load a checkpoint of this project or a published ``.pth``, of 3, 4 or 5 input channels.

        Args:
            path: The checkpoint.
            device: As in the constructor.
            precision: As in the constructor.
            input_size: None takes the size noted in the checkpoint, or 1024 x 1024 where none is noted.

        Raises:
            CheckpointError: If the file is missing, damaged, or of another network.
            DeviceError: If the device or the precision is not to be had.
        """
        model, facts = load_isnet(path)
        return cls(model, device, precision, input_size or facts.get("input_size") or DEFAULT_SIZE)

    @property
    def in_ch(self) -> int:
        """Input channels: 3 = image, 4 = image + mask, 5 = image + mask + box."""
        return self.model.in_ch

    @torch.inference_mode()
    def predict(self, image: np.ndarray, mask: np.ndarray | None = None, box: Box | None = None) -> np.ndarray:
        """Refine one coarse mask.

        Args:
            image: (H, W, 3) uint8 RGB, upright.
            mask: (H, W), bool, uint8 0/1 or 0..255, or float 0..1. May be left out for a 3-channel network alone,
                which does not look at it.
            box: xyxy in pixels; None means the mask's bounds. Only a 5-channel network looks at it.

        Returns:
            (H, W) float32 alpha in [0, 1]; all 0 where the mask is empty.

        Raises:
            ValueError: If a shape, dtype or range is another.
            BoxError: If the box lies outside the image.
        """
        coarse = None if mask is None else _mask_to_uint8(mask)
        planes = make_planes(image, coarse, box, self.in_ch, self.input_size)
        if box is not None:
            check_box(box, *image.shape[:2])
        if self.in_ch > MASK_CHANNEL and not coarse.any():
            return np.zeros(image.shape[:2], dtype=np.float32)
        x = make_input(torch.from_numpy(planes)[None].to(self.device))
        with autocast(self.device, self.dtype):
            logits = self.model.predict_logits(x)
        return make_alpha(logits, image.shape[:2])[0, 0].cpu().numpy()
