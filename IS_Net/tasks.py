"""The two networks as the training loop sees them: input, loss, parameters and limits of each phase."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from IS_Net.device import autocast
from IS_Net.hypar import Settings
from IS_Net.losses import feature_loss, side_output_loss
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.preprocess import BOX_CHANNEL
from IS_Net.tensors import make_alpha, make_input, make_target, resize_batch
from IS_Net.training_prompts import find_bounds, outside_boxes, prepare_batch

_BOX_MARGIN = 0.1  # how much boxes grow on each side before outside_weight counts, as a share of the box


class SegmentationTask:
    """Phase 2: ISNetDIS learns to predict the mask; the frozen GT encoder supervises its features.

    Args:
        model: The network to train.
        gt_encoder: The trained GT encoder, or None to train without intermediate supervision. It is frozen.
        settings: The settings of the run.

    Attributes:
        network: What :meth:`loss` calls: the model, or what :func:`IS_Net.distributed.parallel` makes of it.
    """

    name = "segmentation"
    weights_file = "best.safetensors"
    memory_format = torch.channels_last
    """In which the network is trained; see :func:`IS_Net.device.training_format`."""

    def __init__(self, model: ISNetDIS, gt_encoder: ISNetGTEncoder | None, settings: Settings) -> None:
        self.model, self.gt_encoder, self.settings = model, gt_encoder, settings
        self.network: nn.Module = model
        model.recompute = settings.recompute
        self.lr, self.start_ite, self.max_ite = settings.lr, settings.start_ite, settings.max_ite
        self.cosine_decay, self.ema_decay = settings.lr_decay == "cosine", settings.ema
        self.stop_f: float | None = None
        if settings.freeze_bn:
            for layer in self._batchnorms():
                layer.requires_grad_(False)
        if gt_encoder is not None:
            gt_encoder.eval().requires_grad_(False)  # eval: its BatchNorm statistics must not change

    def _batchnorms(self) -> Iterator[nn.Module]:
        return (layer for layer in self.model.modules() if isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm)))

    def train(self) -> None:
        """Set the network to training mode, except for frozen BatchNorms."""
        self.model.train()
        if self.settings.freeze_bn:
            for layer in self._batchnorms():
                layer.eval()

    def parameters(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimizer, each with its ``factor`` of the learning rate."""
        stem, rest = [], []  # also frozen parameters, so that a resumed run may freeze other ones
        for name, parameter in self.model.named_parameters():
            (stem if name.startswith("conv_in.") else rest).append(parameter)
        return [{"params": rest, "factor": 1.0}, {"params": stem, "factor": self.settings.lr_stem_factor}]

    def input(self, planes: Tensor) -> Tensor:
        """Return the network's input for (B, in_ch [+ 1], H, W) uint8 planes: (B, in_ch, H, W) float32."""
        return make_input(planes[:, : self.model.in_ch])

    @torch.no_grad()
    def prepare(self, planes: Tensor, number: int, dtype: torch.dtype | None, total: int | None = None) -> Tensor:
        """Vary the prompts of a batch of the loader as the settings say; see :mod:`IS_Net.training_prompts`.

        It has to be called outside of autocast, which would keep the weights that it converts without gradients.

        Args:
            planes: (B, in_ch + 1, H, W) uint8, on the device of the network.
            number: Number of the batch in the run.
            dtype: Of autocast, for the network's own masks; None is float32.
            total: Samples in the batch of all processes; None means that there is only this one.

        Returns:
            (B, in_ch + 1, h, w) uint8, for :meth:`loss`.
        """
        if not self.settings.varies_prompts:
            return planes

        def predict_alpha(chosen: Tensor) -> Tensor:
            self.model.eval()  # the statistics of BatchNorm are those of a prediction, and do not change
            with autocast(chosen.device, dtype):
                logits = self.model.predict_logits(make_input(chosen))
            self.train()
            return make_alpha(logits, chosen.shape[-2:])

        return prepare_batch(planes, self.model.in_ch, number, self.settings, predict_alpha, total)

    def loss(self, planes: Tensor) -> Tensor:
        """Return the side-output loss plus the feature loss for (B, in_ch + 1, H, W) uint8 planes."""
        settings, target, extra = self.settings, make_target(planes[:, -1:]), None
        if settings.outside_weight:
            boxes = find_bounds(planes[:, BOX_CHANNEL] > 0)
            extra = settings.outside_weight * outside_boxes(boxes, _BOX_MARGIN, planes.shape[-2:])
        sides, features = self.network(self.input(planes).contiguous(memory_format=self.memory_format))
        loss = side_output_loss(sides, target, settings.bce_weight, settings.iou_weight, settings.edge_weight, extra)
        if self.gt_encoder is not None:
            with torch.no_grad():
                gt_features = self.gt_encoder.features(target)
            loss = loss + settings.feature_weight * feature_loss(features, gt_features)
        return loss


class GTEncoderTask:
    """Phase 1: the GT encoder learns to reconstruct the GT mask.

    Args:
        model: The GT encoder to train.
        settings: The settings of the run.

    Attributes:
        network: As in :class:`SegmentationTask`.
    """

    name = "gt_encoder"
    weights_file = "gt_encoder.safetensors"
    gt_encoder = None
    memory_format = torch.channels_last

    def __init__(self, model: ISNetGTEncoder, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.network: nn.Module = model
        model.recompute = settings.recompute
        self.lr, self.start_ite, self.max_ite = settings.gt_encoder_lr, 0, settings.gt_encoder_max_ite
        self.cosine_decay, self.ema_decay = False, 0.0
        self.stop_f: float | None = settings.gt_encoder_stop_f

    def train(self) -> None:
        """Set the network to training mode."""
        self.model.train()

    def parameters(self) -> list[dict[str, Any]]:
        """Return the only parameter group of the optimizer."""
        return [{"params": list(self.model.parameters()), "factor": 1.0}]

    def input(self, planes: Tensor) -> Tensor:
        """Return the ground truth of (B, in_ch + 1, H, W) uint8 planes: (B, 1, H, W) float32 in [0, 1]."""
        return make_target(planes[:, -1:])

    def prepare(self, planes: Tensor, _number: int, _dtype: torch.dtype | None, _total: int | None = None) -> Tensor:
        """Return a batch of the loader at ``input_size`` if it has the size that windows are cut from."""
        return resize_batch(planes, self.settings.input_size) if self.settings.window_share else planes

    def loss(self, planes: Tensor) -> Tensor:
        """Return the side-output loss for (B, in_ch + 1, H, W) uint8 planes."""
        target = self.input(planes)
        sides, _ = self.network(target.contiguous(memory_format=self.memory_format))
        return side_output_loss(sides, target, self.settings.bce_weight, self.settings.iou_weight)


Task = SegmentationTask | GTEncoderTask
