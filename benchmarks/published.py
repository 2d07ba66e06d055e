"""The published procedure of DIS-SAM, written plainly: what the other benchmarks compare this project with.

Everything is in float32 and in contiguous NCHW, without worker processes. The networks are this project's classes, so
that both sides have the same weights; what is done with them is what the published code does:

- prediction runs all six side outputs, brings each to the input's size, and stretches the map from its minimum to its
  maximum on the host;
- training runs the whole frozen GT encoder for its features, computes each loss on probabilities, and the orthogonal
  term one parameter at a time;
- samples are files of one tensor each, which are converted, flipped and normalized one at a time;
- SAM encodes the image again for each of its objects.

Known defects of the published code are left out where they change results and cost nothing: the box channel covers the
whole box, and the BatchNorms of the frozen GT encoder do not drift.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from IS_Net.models import ISNetDIS, ISNetGTEncoder

Box = tuple[int, int, int, int]
"""xyxy in pixels; both ends belong to the box."""

BCE_WEIGHT, IOU_WEIGHT, ORTHOGONAL_WEIGHT = 20.0, 0.5, 1e-8


# --- pixels ---------------------------------------------------------------------------------------------------------


def read_pixels(path: Path) -> np.ndarray:
    """Decode a file, upright: (H, W, 3) uint8 RGB, also for masks."""
    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image.convert("RGB")))


def resize(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resize pixels, (H, W) or (H, W, C) uint8, to (C, height, width) uint8: bilinear, cut off to whole numbers."""
    planes = torch.tensor(np.atleast_3d(pixels), dtype=torch.float32).permute(2, 0, 1)
    return F.interpolate(planes[None], size, mode="bilinear")[0].to(torch.uint8)


def fill_box(box: Box, size: tuple[int, int]) -> np.ndarray:
    """Draw the box channel, (H, W) uint8: 255 inside."""
    plane = np.zeros(size, np.uint8)
    x0, y0, x1, y1 = box
    plane[y0 : y1 + 1, x0 : x1 + 1] = 255
    return plane


def normalize(planes: Tensor) -> Tensor:
    """Convert planes, (C, H, W) uint8 with the image first, to the network's input in float32."""
    mean = torch.zeros(len(planes), 1, 1)
    mean[:3] = 0.5
    return torch.divide(planes, 255.0) - mean


# --- prediction -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict_alpha(
    model: ISNetDIS, image: np.ndarray, mask: np.ndarray | None, box: Box | None, size: tuple[int, int]
) -> np.ndarray:
    """Predict a map, not yet stretched.

    Args:
        model: The network in eval mode, on its device.
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 0..255; used if the network has 4 or 5 channels.
        box: Used if the network has 5 channels.
        size: (height, width) that the network works at.

    Returns:
        (H, W) float32 in [0, 1].
    """
    planes = [resize(image, size)]
    if model.in_ch > 3:
        planes.append(resize(mask, size))
    if model.in_ch > 4:
        planes.append(resize(fill_box(box, image.shape[:2]), size))
    x = normalize(torch.cat(planes))[None].to(next(model.parameters()).device)
    probabilities = [torch.sigmoid(side) for side in model(x)[0]]
    return F.interpolate(probabilities[0], image.shape[:2], mode="bilinear")[0, 0].cpu().numpy()


def stretch(alpha: np.ndarray) -> np.ndarray:
    """Stretch a map, (H, W) float32, from its minimum to its maximum, and convert it to uint8."""
    low, high = alpha.min(), alpha.max()
    return ((alpha - low) / (high - low) * 255).astype(np.uint8)


def predict(
    model: ISNetDIS, image: np.ndarray, mask: np.ndarray | None, box: Box | None, size: tuple[int, int]
) -> np.ndarray:
    """Predict a map, (H, W) uint8; the arguments are those of :func:`predict_alpha`."""
    return stretch(predict_alpha(model, image, mask, box, size))


# --- training, phase 2 ----------------------------------------------------------------------------------------------


def side_output_loss(probabilities: Sequence[Tensor], target: Tensor) -> Tensor:
    """Sum over the side outputs of the weighted BCE and the IoU loss of each sample."""
    total = torch.zeros((), device=target.device)
    for probability in probabilities:
        iou = torch.zeros((), device=target.device)
        for found, wanted in zip(probability, target, strict=True):
            intersection = (found * wanted).sum()
            iou = iou + 1 - (intersection + 1) / (found.sum() + wanted.sum() - intersection + 1)
        total = total + BCE_WEIGHT * F.binary_cross_entropy(probability, target) + IOU_WEIGHT * iou / len(target)
    return total


def orthogonal_loss(model: nn.Module) -> Tensor:
    """Sum of ``|W W^T - I|``, parameter by parameter, without biases."""
    total = torch.zeros((), device=next(model.parameters()).device)
    for name, parameter in model.named_parameters():
        if "bias" not in name:
            weight = parameter.view(len(parameter), -1)
            total = total + (weight @ weight.T - torch.eye(len(weight), device=weight.device)).abs().sum()
    return total


class Training:
    """Training steps of phase 2.

    Args:
        model: The network.
        gt_encoder: The trained GT encoder, which is frozen.
        device: Where to train.
    """

    def __init__(self, model: ISNetDIS, gt_encoder: ISNetGTEncoder, device: torch.device) -> None:
        self.model, self.device = model.to(device).train(), device
        self.gt_encoder = gt_encoder.to(device).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=4e-5, weight_decay=0)

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Return the whole loss.

        Args:
            x: (B, in_ch, H, W) float32, the network's input, on the device.
            target: (B, 1, H, W) float32 in [0, 1], on the device.
        """
        _, wanted = self.gt_encoder(target)
        sides, found = self.model(x)
        loss = side_output_loss([torch.sigmoid(side) for side in sides], target)
        for feature, gt_feature in zip(found, wanted, strict=True):
            loss = loss + F.mse_loss(feature, gt_feature)
        return loss + ORTHOGONAL_WEIGHT * orthogonal_loss(self.model)

    def step(self, x: Tensor, target: Tensor) -> float:
        """Take an optimizer step on a batch on the host, as :meth:`loss` takes it; return the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(x.to(self.device), target.to(self.device))
        loss.backward()
        self.optimizer.step()
        return loss.item()


# --- data -----------------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """The files of a sample."""

    image: Path
    mask: Path
    gt: Path


class TensorFiles(Dataset):
    """A data set whose samples are stored as files of one uint8 tensor each.

    Args:
        samples: The files to convert.
        folder: Where to store the tensors.
        size: (height, width) of the tensors.
        flips: Whether to flip horizontally, vertically, both or not at all, each with probability 0.25.
    """

    def __init__(self, samples: Sequence[Files], folder: Path, size: tuple[int, int], flips: bool) -> None:
        self.samples, self.folder, self.flips = samples, folder, flips
        folder.mkdir(parents=True, exist_ok=True)
        for index, files in enumerate(samples):
            torch.save(resize(read_pixels(files.image), size), self._path(index, "image"))
            torch.save(resize(read_pixels(files.mask)[..., 0], size), self._path(index, "mask"))
            torch.save(resize(read_pixels(files.gt)[..., 0], size), self._path(index, "gt"))

    def _path(self, index: int, kind: str) -> Path:
        return self.folder / f"{index}_{kind}.pt"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Mapping[str, Tensor | int]:
        """Return ``index``, ``image`` (5, H, W), ``label``, ``mask`` and ``box`` (1, H, W), float32, normalized."""
        image, mask, gt = (torch.load(self._path(index, kind)) for kind in ("image", "mask", "gt"))
        rows, columns = torch.where(gt[0] > 0)
        box = torch.zeros_like(gt)
        box[0, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 255
        sample = {"image": torch.divide(torch.cat((image, mask, box)), 255.0)}
        sample |= {key: torch.divide(plane, 255.0) for key, plane in (("label", gt), ("mask", mask), ("box", box))}
        horizontal, vertical = (torch.rand(2) < 0.5).tolist() if self.flips else (False, False)
        for axis, wanted in ((2, horizontal), (1, vertical)):
            if wanted:
                sample = {key: torch.flip(value, [axis]) for key, value in sample.items()}
        mean = torch.tensor([0.5, 0.5, 0.5, 0, 0])[:, None, None]
        sample["image"] = sample["image"] - mean
        return {"index": index, **sample}


def train_loader(dataset: TensorFiles, batch_size: int) -> DataLoader:
    """Return a loader in this process, in random order."""
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=0)


# --- validation -----------------------------------------------------------------------------------------------------


def count_levels(alpha: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """Return precision and recall, (255,) each, of a map, (H, W) float in 0..255, at falling thresholds."""
    inside, outside = alpha[gt > 128], alpha[gt <= 128]
    true_positive = torch.histc(inside, bins=255, min=0, max=255).flip(0).cumsum(0)
    false_positive = torch.histc(outside, bins=255, min=0, max=255).flip(0).cumsum(0)
    return true_positive / (true_positive + false_positive + 1e-4), true_positive / ((gt > 128).sum() + 1e-4)


@torch.no_grad()
def validate(model: ISNetDIS, dataset: TensorFiles) -> dict[str, float]:
    """Score a network: the maximum of F of the mean precision and recall, and MAE.

    Args:
        model: The network in eval mode, on its device; it takes the first channels of the samples.
        dataset: Its samples; the ground truths are read again from their files.

    Returns:
        ``max_f`` and ``mae``, of maps that are stretched.
    """
    device, curves, maes = next(model.parameters()).device, [], []
    for batch in DataLoader(dataset, batch_size=1, num_workers=0):
        target = batch["label"].to(device)
        probabilities = [torch.sigmoid(side) for side in model(batch["image"][:, : model.in_ch].to(device))[0]]
        side_output_loss(probabilities, target).item()
        gt = torch.tensor(read_pixels(dataset.samples[int(batch["index"])].gt)[..., 0]).to(device)
        alpha = F.interpolate(probabilities[0], gt.shape, mode="bilinear")[0, 0]
        alpha = (alpha - alpha.min()) / (alpha.max() - alpha.min()) * 255
        curves.append(torch.stack(count_levels(alpha, gt)).cpu())
        maes.append(((alpha - gt).abs().sum() / (gt.numel() * 255)).item())
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    precision, recall = torch.stack(curves).mean(0)
    f = 1.3 * precision * recall / (0.3 * precision + recall + 1e-8)
    return {"max_f": f.max().item(), "mae": float(np.mean(maes))}


# --- stage 1 --------------------------------------------------------------------------------------------------------


class Sam(Protocol):
    """segment_anything's SamPredictor."""

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image, (H, W, 3) uint8 RGB."""

    def predict(self, *, box: np.ndarray, multimask_output: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return masks (3, H, W) bool, scores and logits."""


def make_masks(sam: Sam, image: np.ndarray, boxes: Sequence[Box]) -> list[np.ndarray]:
    """Return the coarse mask of each box of an image, (H, W) bool: the first of SAM's three."""
    masks = []
    for box in boxes:
        sam.set_image(image)
        masks.append(sam.predict(box=np.array(box), multimask_output=True)[0][0])
    return masks
