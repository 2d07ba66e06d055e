"""Both stages as one: an image and a prompt, or an image and a coarse mask, become an alpha matte."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from IS_Net.images import image_to_array, mask_to_array, read_image, read_mask
from IS_Net.manifest import fingerprint
from IS_Net.paths import starter_weights
from IS_Net.predictor import DISPredictor, PreparedImage, check_mask
from IS_Net.preprocess import Box, check_box
from sam.backends import available_model, find_checkpoint, load_predictor
from sam.backends.base import StageOnePredictor

Picture = np.ndarray | Image.Image | str | Path
"""An image or a mask: an array, a PIL image, or the path of a file."""


class DISSAM:
    """Both stages as one: image and prompt -> alpha matte. Mirrors SamPredictor.

    Args:
        sam_predictor: Stage 1: from :func:`sam.backends.load_predictor`, or segment_anything's SamPredictor; or a
            function without arguments that loads it, which is called when stage 1 is first needed.
        dis_predictor: Stage 2.
    """

    def __init__(
        self, sam_predictor: StageOnePredictor | Callable[[], StageOnePredictor], dis_predictor: DISPredictor
    ) -> None:
        self._sam = sam_predictor
        self.dis = dis_predictor
        self._image: PreparedImage | None = None

    @property
    def sam(self) -> StageOnePredictor:
        """Stage 1."""
        if not hasattr(self._sam, "set_image"):
            self._sam = self._sam()
        return self._sam

    def set_image(self, image: Picture) -> None:
        """Set the image of the following prompts. It is encoded and resized once, however many prompts follow.

        Args:
            image: (H, W, 3) uint8 RGB, upright; or a PIL image or the path of a file, which are turned upright.

        Raises:
            ValueError: If the array has another shape or dtype.
            ImageError: If the file is missing, damaged, or not an image.
        """
        self._image = None  # whatever fails below, no prompt may refer to the previous image
        pixels = _to_image(image)
        prepared = self.dis.prepare(pixels)
        self.sam.set_image(pixels)
        self._image = prepared

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: Box | None = None,
        mask_input: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Segment the object of one prompt.

        Args:
            point_coords: (N, 2) x, y in pixels.
            point_labels: (N,) 1 for the object, 0 for the background.
            box: xyxy in pixels.
            mask_input: (1, 256, 256) logits of an earlier call of stage 1; see SamPredictor.

        Returns:
            The alpha matte, (H, W) float32 in [0, 1]; the coarse mask, (H, W) bool: of the masks of stage 1, the one
            with the highest predicted IoU; and that predicted IoU (NaN for GrabCut, which predicts none).

        Raises:
            RuntimeError: If no image is set.
            ValueError: If there is no prompt, or points are given without labels.
            BoxError: If the box has no area, or lies outside the image.
        """
        if self._image is None:
            raise RuntimeError("no image is set; call set_image(image) before predict()")
        if point_coords is None and box is None and mask_input is None:
            raise ValueError("no prompt; provide a box, points with labels, or a mask_input")
        if (point_coords is None) != (point_labels is None):
            raise ValueError("found only one of point_coords and point_labels; provide a label (1 or 0) for each point")
        clipped = None if box is None else check_box(box, *self._image.size)
        masks, scores, _ = self.sam.predict(
            point_coords=None if point_coords is None else np.asarray(point_coords),
            point_labels=None if point_labels is None else np.asarray(point_labels),
            box=None if box is None else np.asarray(box),
            mask_input=mask_input,
            multimask_output=True,
        )
        best = int(np.argmax(scores))
        coarse = np.asarray(masks[best]).astype(bool)
        alpha = self.dis.refine(self._image, check_mask(coarse, self._image.size), clipped)
        return alpha, coarse, float(scores[best])


def load(
    weights: str | Path | None = None,
    sam: str = "auto",
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> DISSAM:
    """Load both stages. The model of stage 1 is loaded when the first image is set.

    Args:
        weights: The checkpoint of stage 2; None takes the starter weights.
        sam: The model of stage 1, a name in :data:`sam.backends.BACKENDS`; ``auto`` takes the best one whose checkpoint
            is found, else GrabCut.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``full`` or ``half``, of stage 2.

    Raises:
        CheckpointError: If the weights are missing, damaged, or belong to another network.
        FileNotFoundError: If there is no checkpoint of the model of stage 1.
        ValueError: If the model of stage 1 is unknown.
        DeviceError: If the device or the precision is not available.
    """
    model = available_model() if sam == "auto" else sam
    checkpoint = find_checkpoint(model)
    return DISSAM(lambda: load_predictor(model, checkpoint, device), _load_stage_2(weights, device, precision))


def refine(
    image: Picture,
    mask: Picture,
    box: Box | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> np.ndarray:
    """Refine a coarse mask. The weights are loaded once per process.

    Args:
        image: (H, W, 3) uint8 RGB, upright; or a PIL image or the path of a file, which are turned upright.
        mask: (H, W), bool, uint8 0/1 or 0..255, or float 0..1, upright; or a PIL image or the path of a file, see
            :func:`IS_Net.images.read_mask`. Any coarse mask of the target: drawn, segmented, or a filled polygon.
        box: xyxy in pixels; None means the bounds of the mask. Only a 5-channel network uses it.
        weights: The checkpoint; None takes the starter weights.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``full`` or ``half``.

    Returns:
        (H, W) float32 alpha matte in [0, 1]; all 0 if the mask is empty.

    Raises:
        ImageError: If a file is missing, damaged, or not an image.
        ValueError: If an array has another shape, dtype or range, or the sizes of mask and image differ.
        BoxError: If the box has no area, or lies outside the image.
        CheckpointError: If the weights are missing, damaged, or belong to another network.
        DeviceError: If the device or the precision is not available.
    """
    predictor = _load_stage_2(weights, device, precision)
    prepared = predictor.prepare(_to_image(image))
    pixels = read_mask(mask) if _is_path(mask) else mask_to_array(mask) if isinstance(mask, Image.Image) else mask
    names = mask if _is_path(mask) else "the mask", f"its image {image}" if _is_path(image) else "its image"
    coarse = check_mask(pixels, prepared.size, *names)
    return predictor.refine(prepared, coarse, None if box is None else check_box(box, *prepared.size))


def _is_path(value: Picture) -> bool:
    return isinstance(value, str | Path)


def _to_image(image: Picture) -> np.ndarray:
    if _is_path(image):
        return read_image(image)
    return image_to_array(image) if isinstance(image, Image.Image) else np.asarray(image)


def _load_stage_2(weights: str | Path | None, device: str | torch.device, precision: str) -> DISPredictor:
    path = Path(starter_weights() if weights is None else weights).resolve()
    # A file that was overwritten, by a training run for example, is loaded again.
    version = fingerprint(path) if path.is_file() else None
    return _load_cached(path, version, str(device), precision)


@lru_cache(maxsize=2)
def _load_cached(path: Path, version: str | None, device: str, precision: str) -> DISPredictor:
    return DISPredictor.from_checkpoint(path, device, precision)
