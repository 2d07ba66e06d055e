"""What turns a prompt into a coarse mask: the Segment Anything Model, or GrabCut where there are no weights."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.build_sam import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from segment_anything.modeling import Sam

from IS_Net.device import autocast, fast_dtype, pick_device
from IS_Net.errors import CheckpointError
from IS_Net.images import binarize
from IS_Net.preprocess import resize_uint8
from sam.prompts import Prompt

logger = logging.getLogger(__name__)

GRABCUT = "grabcut"
Select = Literal["score", "first"]
PROMPTS_AT_ONCE = 32
"""How many prompts go through SAM's mask decoder together; more of them take memory and no less time."""

_ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_FOLDERS = (_ROOT / "sam" / "notebooks", _ROOT / "saved_models")
CHECKPOINT_SOURCE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"


class SamModel(NamedTuple):
    """A published SAM: the name of its checkpoint file, and what builds the network without weights."""

    file: str
    build: Callable[[], Sam]


SAM_MODELS = {
    "vit_l": SamModel("sam_vit_l_0b3195.pth", build_sam_vit_l),
    "vit_h": SamModel("sam_vit_h_4b8939.pth", build_sam_vit_h),
    "vit_b": SamModel("sam_vit_b_01ec64.pth", build_sam_vit_b),
}


class Predictor(Protocol):
    """What stage 1 and ``DISSAM`` ask of a backend; SamPredictor's own interface, and prompts in batches.

    Attributes:
        name: ``vit_b``, ``vit_l``, ``vit_h`` or ``grabcut``.
        checkpoint: sha256 of the weights' file; None where there is none.
        selects: Whether there are several masks to a prompt to select from.
    """

    name: str
    checkpoint: str | None
    selects: bool

    def set_image(self, image: np.ndarray) -> None:
        """Take an image, (H, W, 3) uint8 RGB, for the calls that follow."""

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return masks (C, H, W) bool, predicted IoU (C,) float32 and low-resolution logits of one prompt."""

    def predict_prompts(
        self, prompts: Sequence[Prompt], select: Select = "score"
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        """Yield a mask (H, W) bool and its predicted IoU, or None, for each prompt in turn."""


def available_model() -> str:
    """Return the best model whose checkpoint is at hand: ``vit_l``, ``vit_h``, ``vit_b``, else ``grabcut``."""
    return next((name for name in SAM_MODELS if _find_checkpoint(name)), GRABCUT)


def load_predictor(
    model: str = "vit_l", checkpoint: str | Path | None = None, device: str | torch.device = "auto"
) -> Predictor:
    """Load a backend.

    Args:
        model: ``vit_l``, ``vit_h`` or ``vit_b`` for SAM, ``grabcut`` for the stand-in that needs no weights.
        checkpoint: SAM's weights; None looks for the published file name in ``sam/notebooks`` and ``saved_models``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. GrabCut always runs on the CPU.

    Raises:
        ValueError: If the model is unknown, or GrabCut is given a checkpoint.
        FileNotFoundError: If there is no checkpoint; says where its publishers offer it.
        CheckpointError: If the checkpoint is damaged or holds another model.
        DeviceError: If the device is not there.
    """
    if model == GRABCUT:
        if checkpoint is not None:
            raise ValueError(f"{GRABCUT} has no weights, but was given the checkpoint {checkpoint}; leave it out")
        return GrabCutPredictor()
    if model not in SAM_MODELS:
        raise ValueError(f"unknown model {model!r}; expected one of {', '.join([*SAM_MODELS, GRABCUT])}")
    path = Path(checkpoint) if checkpoint is not None else _find_checkpoint(model)
    if path is None or not path.is_file():
        file, folders = SAM_MODELS[model].file, " and ".join(map(str, CHECKPOINT_FOLDERS))
        missing = f"{path} does not exist" if path else f"found no {file} in {folders}"
        raise FileNotFoundError(
            f"SAM {model}: {missing}. Its publishers offer {file} at {CHECKPOINT_SOURCE}; put it into "
            f"{CHECKPOINT_FOLDERS[0]}, or name it with --checkpoint. --model {GRABCUT} needs no weights"
        )
    chosen = pick_device(device)
    sam = SAM_MODELS[model].build()
    _load_weights(sam, path, model)
    return BatchedSamPredictor(sam.to(chosen), model, _sha256(path))


def _find_checkpoint(model: str) -> Path | None:
    paths = (folder / SAM_MODELS[model].file for folder in CHECKPOINT_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _load_weights(sam: Sam, path: Path, model: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        why = f"{path.stat().st_size} bytes; {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch checkpoint ({why}); it is damaged or something else: fetch it "
            f"again from {CHECKPOINT_SOURCE}"
        ) from error
    found = {key: getattr(value, "shape", None) for key, value in state.items()} if isinstance(state, dict) else {}
    wanted = {key: value.shape for key, value in sam.state_dict().items()}
    if found != wanted:
        difference, remedy = _difference(found, wanted), _remedy(found, model)
        raise CheckpointError(f"{path}: does not hold the weights of SAM {model} ({difference}); {remedy}")
    sam.load_state_dict(state)


def _difference(found: dict[str, object], wanted: dict[str, object]) -> str:
    missing, unknown = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or unknown:
        examples = ", ".join(sorted(missing or unknown)[:2])
        return f"{len(missing)} tensors are missing, {len(unknown)} are unknown, such as {examples}"
    key = next(key for key in wanted if found[key] != wanted[key])
    return f"{key} is {tuple(found[key] or ())}, expected {tuple(wanted[key])}"


def _remedy(found: dict[str, object], model: str) -> str:
    """Say which published model a checkpoint holds, if any; they differ in the width of the image encoder."""
    width = (found.get("image_encoder.pos_embed") or [0])[-1]
    actual = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}.get(width)
    if actual and actual != model:
        return f"it looks like {actual}: ask for --model {actual}, or give the checkpoint of {model}"
    return f"the published {SAM_MODELS[model].file} is at {CHECKPOINT_SOURCE}"


class BatchedSamPredictor(SamPredictor):
    """segment_anything's SamPredictor, which also takes all prompts of an image at once.

    The image encoder runs in 16 bits on CUDA and in float32 elsewhere; the mask decoder, a small part of the work,
    always in float32.

    Args:
        sam: The network, on its device.
        name: The model's, for the manifest.
        checkpoint: sha256 of its weights' file, for the manifest.
    """

    selects = True

    def __init__(self, sam: Sam, name: str, checkpoint: str | None = None):
        super().__init__(sam.eval())
        self.name, self.checkpoint = name, checkpoint
        self._dtype = fast_dtype(sam.device) if sam.device.type == "cuda" else None

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encode an image that is already resized; :meth:`set_image` ends here."""
        with autocast(self.model.device, self._dtype):
            super().set_torch_image(transformed_image, original_image_size)
        self.features = self.features.float()

    def predict_prompts(
        self, prompts: Sequence[Prompt], select: Select = "score"
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        """Segment the objects of the image that was set, all prompts decoded together.

        Args:
            prompts: In pixels of the image; each has a box, points, or both.
            select: Which of SAM's three masks: ``score`` takes that of the highest predicted IoU, ``first`` always
                the first, as the published code does.

        Yields:
            For each prompt, its mask, (H, W) bool, and SAM's prediction of the mask's IoU. Masks are scaled up one at
            a time, so that many objects of a large image do not fill the memory.
        """
        if not self.is_image_set:
            raise RuntimeError("no image is set; call set_image first")
        for logits, score in self._decode(prompts, select):
            mask = self.model.postprocess_masks(logits[None, None], self.input_size, self.original_size)
            yield (mask[0, 0] > self.model.mask_threshold).cpu().numpy(), score

    @torch.inference_mode()
    def _decode(self, prompts: Sequence[Prompt], select: Select) -> list[tuple[torch.Tensor, float]]:
        """Return low-resolution logits (h, w) and predicted IoU of the mask selected for each prompt."""
        # Padding to equal numbers of points would change the result: the decoder attends to what it is padded with.
        alike = defaultdict(list)
        for index, prompt in enumerate(prompts):
            alike[prompt.box is not None, len(prompt.points or ())].append(index)
        decoded: dict[int, tuple[torch.Tensor, float]] = {}
        for indices in alike.values():
            for start in range(0, len(indices), PROMPTS_AT_ONCE):
                batch = indices[start : start + PROMPTS_AT_ONCE]
                logits, scores = self._decode_alike([prompts[index] for index in batch])
                best = scores.argmax(dim=1) if select == "score" else torch.zeros_like(scores[:, 0], dtype=torch.long)
                rows = torch.arange(len(batch), device=best.device)
                decoded |= zip(batch, zip(logits[rows, best], scores[rows, best].tolist(), strict=True), strict=True)
        return [decoded[index] for index in range(len(prompts))]

    def _decode_alike(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts of one form: logits (B, 3, h, w) and predicted IoU (B, 3)."""
        points = boxes = None
        if prompts[0].box is not None:
            boxes = self._to_tensor(self.transform.apply_boxes(_array([p.box for p in prompts]), self.original_size))
        if prompts[0].points is not None:
            coords = self.transform.apply_coords(_array([p.points for p in prompts]), self.original_size)
            points = self._to_tensor(coords), self._to_tensor(_array([p.labels for p in prompts]))
        sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=None)
        return self.model.mask_decoder(
            image_embeddings=self.features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )

    def _to_tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def _array(values: Sequence) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


class GrabCutPredictor:
    """A stand-in for SAM that needs no weights: OpenCV's GrabCut inside the box.

    It parts colors, knows nothing of objects, and is far from SAM; it lets the pipeline run anywhere. Its masks are
    the same in every run.
    """

    name = GRABCUT
    checkpoint = None
    selects = False
    _LONG_SIDE = 320
    """GrabCut looks at the box and its surroundings at this size; its time grows faster than the pixels."""
    _ITERATIONS = 3

    def __init__(self) -> None:
        self._image: np.ndarray | None = None
        logger.warning("masks come from OpenCV's GrabCut, a stand-in that needs no weights; this is not SAM")

    def set_image(self, image: np.ndarray) -> None:
        """Take an image, (H, W, 3) uint8 RGB, for the calls that follow."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected an image of shape (H, W, 3) uint8, found {image.shape} {image.dtype}")
        self._image = image

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, None]:
        """Segment one object, as SamPredictor's method of this name does.

        Args:
            point_coords: (N, 2) x, y in pixels, or None.
            point_labels: (N,) 1 for the object, 0 for the background, or None.
            box: (4,) xyxy in pixels, or None.
            mask_input: Must be None; GrabCut has no use for logits.
            multimask_output: GrabCut has one mask to offer, either way.

        Returns:
            Masks (1, H, W) bool; scores (1,) float32, NaN, for GrabCut does not judge itself; None for the logits.
        """
        if mask_input is not None:
            raise ValueError("GrabCut takes no mask_input; leave it out, or use SAM")
        points = [] if point_coords is None else _array(point_coords).reshape(-1, 2).tolist()
        labels = [] if point_labels is None else np.asarray(point_labels).reshape(-1).tolist()
        mask = self._cut(points, labels, None if box is None else _array(box).reshape(-1).tolist())
        return mask[None], np.full(1, np.nan, dtype=np.float32), None

    def predict_prompts(
        self, prompts: Sequence[Prompt], select: Select = "score"
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        """Yield a mask, (H, W) bool, for each prompt, and None for the predicted IoU."""
        for prompt in prompts:
            yield self._cut(prompt.points or (), prompt.labels or (), prompt.box), None

    def _cut(self, points: Sequence[Sequence[float]], labels: Sequence[int], box: Sequence[float] | None) -> np.ndarray:
        if self._image is None:
            raise RuntimeError("no image is set; call set_image first")
        height, width = self._image.shape[:2]
        left, top, right, bottom = _pixels(box, height, width)
        mask = np.zeros((height, width), dtype=bool)
        if left >= right or top >= bottom:
            return mask

        # the box and half its size around it: enough to learn the background's colors from
        pad_x, pad_y = (right - left) // 2 + 8, (bottom - top) // 2 + 8
        x0, y0, x1, y1 = (
            max(left - pad_x, 0),
            max(top - pad_y, 0),
            min(right + pad_x, width),
            min(bottom + pad_y, height),
        )
        window = self._image[y0:y1, x0:x1]
        scale = min(1.0, self._LONG_SIDE / max(window.shape[:2]))
        size = tuple(max(1, round(side * scale)) for side in window.shape[:2])

        seeds = np.full(size, cv2.GC_BGD, dtype=np.uint8)
        inside = (
            slice(int((top - y0) * scale), int(np.ceil((bottom - y0) * scale))),
            slice(int((left - x0) * scale), int(np.ceil((right - x0) * scale))),
        )
        seeds[inside] = cv2.GC_PR_FGD
        self._seed_points(seeds, [((x - x0) * scale, (y - y0) * scale) for x, y in points], labels, box is None)
        if not (seeds == cv2.GC_BGD).any():
            rim = max(1, max(size) // 50)  # the box is the whole image: its rim is the likeliest background
            rest = seeds[rim:-rim, rim:-rim].copy()
            seeds[seeds == cv2.GC_PR_FGD] = cv2.GC_PR_BGD
            seeds[rim:-rim, rim:-rim] = rest

        found = self._grabcut(np.ascontiguousarray(resize_uint8(window, size).transpose(1, 2, 0)), seeds)
        if found is None:
            mask[top:bottom, left:right] = True
            return mask
        scaled_up = binarize(resize_uint8(found.astype(np.uint8) * np.uint8(255), window.shape[:2])[0])
        mask[top:bottom, left:right] = scaled_up[top - y0 : bottom - y0, left - x0 : right - x0]
        return mask

    @staticmethod
    def _seed_points(
        seeds: np.ndarray, points: Sequence[tuple[float, float]], labels: Sequence[int], without_box: bool
    ) -> None:
        """Mark clicks as certain; without a box, their surroundings as likely and the rest as unlikely."""
        centers = [(round(x), round(y)) for x, y in points]
        if without_box and centers:
            seeds[:] = cv2.GC_PR_BGD
            for center, label in zip(centers, labels, strict=True):
                if label:
                    cv2.circle(seeds, center, max(2, min(seeds.shape) // 5), cv2.GC_PR_FGD, cv2.FILLED)
        for center, label in zip(centers, labels, strict=True):
            cv2.circle(seeds, center, max(1, max(seeds.shape) // 100), cv2.GC_FGD if label else cv2.GC_BGD, cv2.FILLED)

    def _grabcut(self, image: np.ndarray, seeds: np.ndarray) -> np.ndarray | None:
        """Return where the object is, (h, w) bool, or None where GrabCut finds nothing or cannot work."""
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        try:
            cv2.grabCut(image, seeds, None, *models, self._ITERATIONS, cv2.GC_INIT_WITH_MASK)
        except cv2.error:  # too few pixels, inside the box or around it, to learn colors from
            return None
        found = (seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)
        return found if found.any() else None


def _pixels(box: Sequence[float] | None, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the pixels that a box touches as half-open ranges: left, top, right, bottom; empty if it has none."""
    if box is None:
        return 0, 0, width, height
    x0, y0, x1, y1 = np.nan_to_num(np.asarray(box, dtype=np.float64)).tolist()
    left, top = max(int(np.floor(min(x0, width))), 0), max(int(np.floor(min(y0, height))), 0)
    right, bottom = int(min(np.ceil(x1) + 1, width)), int(min(np.ceil(y1) + 1, height))
    return left, top, right, bottom
