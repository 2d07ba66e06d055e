"""The Segment Anything Model (Kirillov et al., "Segment Anything", ICCV 2023), with prompts in batches."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from IS_Net.checkpoint import find_weights, load_torch_file, require_finite
from IS_Net.device import autocast, fast_dtype, pick_device
from IS_Net.errors import CheckpointError, import_extra
from sam.backends import checkpoint_names, how_to_fetch
from sam.backends.base import Select, require_rgb
from sam.prompts import Prompt, check_points

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

import_extra("torchvision", "sam")  # segment_anything needs it, and does not declare that
segment_anything = import_extra("segment_anything", "sam")

PROMPTS_PER_BATCH = 32
"""How many prompts the mask decoder takes together. More of them take memory and no less time."""

BUILDERS: dict[str, Callable[[], Sam]] = {
    "vit_l": segment_anything.build_sam_vit_l,
    "vit_h": segment_anything.build_sam_vit_h,
    "vit_b": segment_anything.build_sam_vit_b,
}
"""Builds the network of each model, without weights."""

_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""The published models by the width of their image encoders."""


def load(model: str, checkpoint: Path, device: str | torch.device) -> BatchedSamPredictor:
    """Load a model; see :func:`sam.backends.load_predictor`."""
    chosen = pick_device(device)
    sam = BUILDERS[model]()
    _load_weights(sam, checkpoint, model)
    return BatchedSamPredictor(sam.to(chosen), model, _sha256(checkpoint))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _load_weights(sam: Sam, path: Path, model: str) -> None:
    try:
        content = load_torch_file(path)
    except CheckpointError as error:
        size = path.stat().st_size  # tells an error page, or an incomplete download
        raise CheckpointError(f"{error}; it has {size} bytes: {how_to_fetch(model)}") from error
    try:
        state = find_weights(content, path)
    except CheckpointError as error:
        message = f"{error}; it does not hold the weights of SAM {model}: {how_to_fetch(model)}"
        raise CheckpointError(message) from error
    found = {key: value.shape for key, value in state.items()}
    expected = {key: value.shape for key, value in sam.state_dict().items()}
    if found != expected:
        difference, remedy = _difference(found, expected), _remedy(found, model)
        raise CheckpointError(f"{path}: does not hold the weights of SAM {model} ({difference}); {remedy}")
    require_finite(state, path)
    sam.load_state_dict(state)


def _difference(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    missing, unknown = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or unknown:
        examples = ", ".join(sorted(missing or unknown)[:2])
        return f"{len(missing)} tensors are missing, {len(unknown)} are unknown, such as {examples}"
    key = next(key for key in expected if found[key] != expected[key])
    return f"{key} is {tuple(found[key] or ())}, expected {tuple(expected[key])}"


def _remedy(found: Mapping[str, object], model: str) -> str:
    """Return what to do: the checkpoint may hold another published model."""
    width = (found.get("image_encoder.pos_embed") or [0])[-1]
    actual = _WIDTHS.get(width)
    if actual and actual != model:
        return f"it looks like {actual}: use --model {actual}, or the checkpoint of {model}"
    return f"expected the published {checkpoint_names()[model]}: {how_to_fetch(model)}"


class BatchedSamPredictor(segment_anything.SamPredictor):
    """segment_anything's SamPredictor, which can also take all prompts of an image together.

    The image encoder runs in 16 bits where that is faster: on CUDA, and on CPUs with AMX. The mask decoder, a small
    part of the work, always runs in float32.

    Args:
        sam: The network, on its device.
        name: The name of the model, for the manifest.
        checkpoint: sha256 of the checkpoint file, for the manifest.
    """

    selects = True
    box_only = False

    def __init__(self, sam: Sam, name: str, checkpoint: str | None = None) -> None:
        super().__init__(sam.eval())
        self.name, self.checkpoint = name, checkpoint
        self._dtype = fast_dtype(sam.device)

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Set the image of the following calls, (H, W, 3) uint8, and encode it.

        Args:
            image: The pixels.
            image_format: ``RGB`` or ``BGR``, the order of the channels.

        Raises:
            ValueError: If the shape or dtype is another.
        """
        require_rgb(image)
        super().set_image(image, image_format)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Segment the object of one prompt; see :meth:`sam.backends.base.StageOnePredictor.predict`.

        Raises:
            RuntimeError: If no image is set.
            PromptError: If the points are not as :func:`sam.prompts.check_points` expects.
        """
        if self.is_image_set:
            points = check_points(
                point_coords, point_labels, self.original_size, has_box=box is not None or mask_input is not None
            )
            point_coords, point_labels = points or (None, None)
        return super().predict(point_coords, point_labels, box, mask_input, multimask_output, return_logits)

    def set_torch_image(self, transformed_image: torch.Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encode an image that is already resized; :meth:`set_image` calls this."""
        with autocast(self.model.device, self._dtype):
            super().set_torch_image(transformed_image, original_image_size)
        self.features = self.features.float()

    def predict_prompts(
        self, prompts: Sequence[Prompt], select: Select = "score"
    ) -> Iterator[tuple[np.ndarray, float | None]]:
        """Segment the objects of several prompts of the image, decoded in batches.

        Args:
            prompts: In pixels of the image; each has a box, points, or both.
            select: Which of SAM's three masks: ``score`` takes the one with the highest predicted IoU, ``first``
                always the first, as the published code does.

        Yields:
            For each prompt, its mask, (H, W) bool, and its predicted IoU. Masks are upsampled one at a time, so that
            many objects of a large image do not fill the memory.

        Raises:
            RuntimeError: If no image is set.
        """
        if not self.is_image_set:
            raise RuntimeError("no image is set; call set_image first")
        for logits, score in self._decode(prompts, select):
            mask = self.model.postprocess_masks(logits[None, None], self.input_size, self.original_size)
            yield (mask[0, 0] > self.model.mask_threshold).cpu().numpy(), score

    @torch.inference_mode()
    def _decode(self, prompts: Sequence[Prompt], select: Select) -> list[tuple[torch.Tensor, float]]:
        """Return low-resolution logits (h, w) and predicted IoU of the mask selected for each prompt."""
        # Only prompts of equal form share a batch. Padding to equal numbers of points would change the masks, because
        # the decoder attends to the padding.
        groups = defaultdict(list)
        for index, prompt in enumerate(prompts):
            groups[prompt.box is not None, len(prompt.points or ())].append(index)
        decoded: dict[int, tuple[torch.Tensor, float]] = {}
        for indices in groups.values():
            for start in range(0, len(indices), PROMPTS_PER_BATCH):
                batch = indices[start : start + PROMPTS_PER_BATCH]
                logits, scores = self._decode_batch([prompts[index] for index in batch])
                best = scores.argmax(dim=1) if select == "score" else torch.zeros_like(scores[:, 0], dtype=torch.long)
                rows = torch.arange(len(batch), device=best.device)
                decoded |= zip(batch, zip(logits[rows, best], scores[rows, best].tolist(), strict=True), strict=True)
        return [decoded[index] for index in range(len(prompts))]

    def _decode_batch(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode prompts of equal form: logits (B, 3, h, w) and predicted IoU (B, 3)."""
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
