"""What the models of the Segment Anything family share: an image is encoded once, prompts are decoded in batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from IS_Net.device import fast_dtype
from IS_Net.errors import ImageError
from IS_Net.files import sha256
from IS_Net.images import size_text
from IS_Net.predictor import check_mask
from sam.backends.base import Select, require_rgb
from sam.prompts import Prompt, check_points

PROMPTS_PER_BATCH = 32
"""How many prompts the mask decoder takes together. More of them take memory and no less time."""

IMAGES_PER_BATCH = 4
"""How many images the image encoder takes together on a GPU. A CPU is busy with one."""

PROMPT_GAIN = 10.0
"""How far apart the logits of object and background are in :meth:`PromptableModel.mask_prompt`."""


@dataclass(frozen=True)
class Encoding:
    """What a model has computed of an image; prompts are decoded with it.

    Attributes:
        features: The model's own.
        size: Height and width of the image.
        input_size: Height and width of the image in the network's input.
    """

    features: Any
    size: tuple[int, int]
    input_size: tuple[int, int]


class PromptableModel(ABC):
    """A :class:`sam.backends.base.StageOnePredictor`, for which a model supplies an encoder and a decoder.

    The image encoder runs in 16 bits where that is faster: on CUDA, and on CPUs with AMX. The mask decoder, a small
    part of the work, always runs in float32.

    Args:
        name: The name of the model, for the manifest.
        checkpoint: Hash of the weights, for the manifest; see :func:`hash_weights`.
        device: The device of the network.
        side: Side of the network's square input in pixels.
        logits_side: Side of its square low-resolution logits.
        stretches: Whether images are stretched to that square. Otherwise, their longer side becomes ``side`` and the
            rest of the square is padding.
    """

    selects = True
    box_only = False
    uses_proposals = False

    def __init__(
        self,
        name: str,
        checkpoint: str | None,
        device: torch.device,
        side: int,
        logits_side: int,
        stretches: bool = False,
    ) -> None:
        self.name, self.checkpoint, self.device = name, checkpoint, device
        self.side, self.logits_side, self.stretches = side, logits_side, stretches
        self.images_per_batch = 1 if device.type == "cpu" else IMAGES_PER_BATCH
        self._dtype = fast_dtype(device)
        self._encoding: Encoding | None = None

    @abstractmethod
    def _encode(self, images: Sequence[np.ndarray]) -> Iterable[Any]:
        """Return the features of each image, (H, W, 3) uint8 RGB."""

    @abstractmethod
    def _decode(
        self,
        features: Any,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        mask_input: torch.Tensor | None,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode B prompts of equal form.

        Args:
            features: Of the image.
            points: (B, N, 2) float32 x, y in pixels of the network's input, and (B, N) int64 labels.
            boxes: (B, 4) float32 xyxy, likewise.
            mask_input: (B, 1, h, w) float32 logits of an earlier call.
            multimask_output: Whether to return all masks of a model that returns several.

        Returns:
            Low-resolution logits (B, C, h, w) and predicted IoU (B, C).
        """

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        """Encode images together; see :meth:`sam.backends.base.StageOnePredictor.encode`."""
        for image in images:
            require_rgb(image)
        sizes = [image.shape[:2] for image in images]
        for size in sizes:
            if 0 in self._input_size(size):
                raise ImageError(
                    f"the image of {size_text(size)} pixels is too long and thin for {self.name}: when its longer side "
                    f"is resized to {self.side} pixels, nothing is left of the shorter one; crop it"
                )
        features = self._encode(images)
        return [Encoding(own, size, self._input_size(size)) for own, size in zip(features, sizes, strict=True)]

    def set_encoding(self, encoding: Encoding) -> None:
        """Set the image of the following calls, as :meth:`encode` returned it."""
        self._encoding = encoding

    def set_image(self, image: np.ndarray) -> None:
        """Set the image of the following calls, (H, W, 3) uint8 RGB, and encode it.

        Raises:
            ValueError: If the shape or dtype is another, or the image is too long and thin (ImageError).
        """
        self._encoding = None  # if encoding fails, no prompt may refer to the previous image
        (self._encoding,) = self.encode([image])

    @torch.inference_mode()
    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segment the object of one prompt; see :meth:`sam.backends.base.StageOnePredictor.predict`.

        Raises:
            RuntimeError: If no image is set.
            PromptError: If the points are not as :func:`sam.prompts.check_points` expects.
        """
        encoding = self._require_encoding()
        has_hint = box is not None or mask_input is not None
        points = check_points(point_coords, point_labels, encoding.size, has_box=has_hint)
        logits, scores = self._decode(
            encoding.features,
            None if points is None else self._points([points[0]], [points[1]]),
            None if box is None else self._boxes([box]),
            None if mask_input is None else self._tensor(mask_input)[None],
            multimask_output,
        )
        masks = self._upsample(logits, encoding)[0] > 0
        return masks.cpu().numpy(), scores[0].cpu().numpy(), logits[0].cpu().numpy()

    def predict_prompts(
        self, prompts: Sequence[Prompt], select: Select = "score"
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        """Segment the objects of several prompts of the image, decoded in batches.

        Args:
            prompts: In pixels of the image; each has a box, points, or both.
            select: Which of the model's masks: ``score`` takes the one with the highest predicted IoU, ``first``
                always the first, as the published code does.

        Yields:
            For each prompt, its mask, (H, W) bool, and its predicted IoU. Masks are upsampled one at a time, so that
            many objects of a large image do not fill the memory.

        Raises:
            RuntimeError: If no image is set.
        """
        encoding = self._require_encoding()
        for logits, score in self._decode_all(encoding.features, prompts, select):
            yield (self._upsample(logits[None, None], encoding)[0, 0] > 0).cpu().numpy(), score

    @torch.inference_mode()
    def _decode_all(self, features: Any, prompts: Sequence[Prompt], select: Select) -> list[tuple[torch.Tensor, float]]:
        """Return low-resolution logits (h, w) and predicted IoU of the mask selected for each prompt."""
        # Only prompts of equal form share a batch. Padding to equal numbers of points would change the masks, because
        # the decoder attends to the padding.
        groups = defaultdict(list)
        for index, prompt in enumerate(prompts):
            groups[prompt.box is not None, len(prompt.points or ())].append(index)
        decoded: dict[int, tuple[torch.Tensor, float]] = {}
        for (has_box, count), indices in groups.items():
            for start in range(0, len(indices), PROMPTS_PER_BATCH):
                batch = indices[start : start + PROMPTS_PER_BATCH]
                chosen = [prompts[index] for index in batch]
                points = self._points([p.points for p in chosen], [p.labels for p in chosen]) if count else None
                boxes = self._boxes([p.box for p in chosen]) if has_box else None
                logits, scores = self._decode(features, points, boxes, None, True)
                best = scores.argmax(dim=1) if select == "score" else torch.zeros_like(scores[:, 0], dtype=torch.long)
                rows = torch.arange(len(batch), device=best.device)
                decoded |= zip(batch, zip(logits[rows, best], scores[rows, best].tolist(), strict=True), strict=True)
        return [decoded[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def mask_prompt(self, alpha: np.ndarray) -> np.ndarray:
        """Return a mask of the image as a prompt; see :meth:`sam.backends.base.StageOnePredictor.mask_prompt`.

        Raises:
            RuntimeError: If no image is set.
            ValueError: If the mask is not as :func:`IS_Net.predictor.check_mask` expects.
        """
        encoding = self._require_encoding()
        side = self.logits_side
        size = tuple(max(round(length * side / self.side), 1) for length in encoding.input_size)
        values = torch.from_numpy(check_mask(alpha, encoding.size).astype(np.float32) / 255)[None, None]
        resized = F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=True)[0]
        padded = F.pad(resized, (0, side - size[1], 0, side - size[0]))
        return (PROMPT_GAIN * (padded - 0.5)).numpy()

    def _require_encoding(self) -> Encoding:
        if self._encoding is None:
            raise RuntimeError("no image is set; call set_image first")
        return self._encoding

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return (self.side, self.side) if self.stretches else fit_longer_side(size, self.side)

    def _upsample(self, logits: torch.Tensor, encoding: Encoding) -> torch.Tensor:
        """Return logits (B, C, h, w) at the image's size, (B, C, H, W)."""
        if not self.stretches:
            height, width = encoding.input_size
            logits = F.interpolate(logits, (self.side, self.side), mode="bilinear", align_corners=False)
            logits = logits[..., :height, :width]
        return F.interpolate(logits, encoding.size, mode="bilinear", align_corners=False)

    def _points(self, coordinates: Sequence, labels: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
        values = np.asarray(labels, dtype=np.int64)
        return self._in_input(np.asarray(coordinates, dtype=np.float64)), torch.as_tensor(values, device=self.device)

    def _boxes(self, boxes: Sequence) -> torch.Tensor:
        corners = np.asarray(boxes, dtype=np.float64).reshape(len(boxes), 2, 2)
        return self._in_input(corners).reshape(len(boxes), 4)

    def _in_input(self, coordinates: np.ndarray) -> torch.Tensor:
        """Scale coordinates x, y of the image to those of the network's input."""
        (height, width), (input_height, input_width) = self._encoding.size, self._encoding.input_size
        return self._tensor(coordinates * (input_width / width, input_height / height))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(self.device)


def fit_longer_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return height and width scaled so that the longer one is ``side``, rounded as segment_anything does."""
    scale = side * 1.0 / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to a height and width as segment_anything does: bilinear, antialiased."""
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], Image.Resampling.BILINEAR))


def hash_weights(files: Sequence[Path]) -> str:
    """Return what identifies weights: the SHA-256 of the file; of several, that of their SHA-256 in order."""
    hashes = [sha256(path) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
