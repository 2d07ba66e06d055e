"""The two networks as the training loop sees them: input, loss, parameters and limits of each phase."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from IS_Net.losses import feature_loss, side_output_loss
from IS_Net.models import ISNetDIS, ISNetGTEncoder
from IS_Net.preprocess import make_input, make_target


class SegmentationTask:
    """Phase 2: ISNetDIS learns the mask; the frozen ground-truth encoder supervises its features.

    Args:
        model: The network that is trained.
        teacher: The trained ground-truth encoder, or None to train without intermediate supervision.
        settings: A checked ``hypar``, for the losses' weights.
    """

    name = "segmentation"
    weights_file = "best.safetensors"

    def __init__(self, model: ISNetDIS, teacher: ISNetGTEncoder | None, settings: dict[str, Any]) -> None:
        self.model, self.teacher, self.settings = model, teacher, settings
        self.lr, self.max_ite, self.stop_f = settings["lr"], settings["max_ite"], None
        self.start_ite = settings["start_ite"]
        self.cosine, self.ema = settings["lr_decay"] == "cosine", settings["ema"]
        if settings["freeze_bn"]:
            for layer in self._batchnorms():
                layer.requires_grad_(False)
        if teacher is not None:
            teacher.eval().requires_grad_(False)  # eval: its BatchNorm statistics stay as trained

    def _batchnorms(self) -> Iterator[nn.BatchNorm2d]:
        return (layer for layer in self.model.modules() if isinstance(layer, nn.BatchNorm2d))

    def train(self) -> None:
        """Set the network to training mode, save for BatchNorm where it is frozen."""
        self.model.train()
        if self.settings["freeze_bn"]:
            for layer in self._batchnorms():
                layer.eval()

    def parameters(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups, each with its ``factor`` of the learning rate."""
        stem, rest = [], []  # frozen ones too, which have no gradient: a resumed run may freeze other ones
        for name, parameter in self.model.named_parameters():
            (stem if name.startswith("conv_in.") else rest).append(parameter)
        return [{"params": rest, "factor": 1.0}, {"params": stem, "factor": self.settings["lr_stem_factor"]}]

    def input(self, planes: Tensor) -> Tensor:
        """Return what the network sees of (B, in_ch [+ 1], H, W) uint8 planes."""
        return make_input(planes[:, : self.model.in_ch])

    def loss(self, planes: Tensor) -> Tensor:
        """Return side-output loss and feature supervision of (B, in_ch + 1, H, W) uint8 planes."""
        target = make_target(planes[:, -1:])
        sides, features = self.model(self.input(planes))
        weights = (self.settings[key] for key in ("bce_weight", "iou_weight", "edge_weight"))
        loss = side_output_loss(sides, target, *weights)
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher.features(target)
            loss = loss + self.settings["feature_weight"] * feature_loss(features, wanted)
        return loss


class GTEncoderTask:
    """Phase 1: the ground-truth encoder learns to give the ground truth back.

    Args:
        model: The encoder that is trained.
        settings: A checked ``hypar``.
    """

    name = "gt_encoder"
    weights_file = "gt_encoder.safetensors"
    teacher = None

    def __init__(self, model: ISNetGTEncoder, settings: dict[str, Any]) -> None:
        self.model, self.settings = model, settings
        self.lr, self.max_ite = settings["gt_encoder_lr"], settings["gt_encoder_max_ite"]
        self.stop_f: float | None = settings["gt_encoder_stop_f"]
        self.start_ite, self.cosine, self.ema = 0, False, 0.0

    def train(self) -> None:
        """Set the network to training mode."""
        self.model.train()

    def parameters(self) -> list[dict[str, Any]]:
        """Return the optimizer's one group."""
        return [{"params": list(self.model.parameters()), "factor": 1.0}]

    def input(self, planes: Tensor) -> Tensor:
        """Return the ground truth of (B, in_ch + 1, H, W) uint8 planes."""
        return make_target(planes[:, -1:])

    def loss(self, planes: Tensor) -> Tensor:
        """Return the side-output loss of (B, in_ch + 1, H, W) uint8 planes."""
        target = self.input(planes)
        sides, _ = self.model(target)
        return side_output_loss(sides, target, self.settings["bce_weight"], self.settings["iou_weight"])


Task = SegmentationTask | GTEncoderTask
