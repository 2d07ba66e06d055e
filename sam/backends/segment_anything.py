"""The Segment Anything Model (Kirillov et al., "Segment Anything", ICCV 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from IS_Net.checkpoint import find_weights, load_torch_file, require_finite
from IS_Net.device import autocast, pick_device
from IS_Net.errors import CheckpointError, import_extra
from sam.backends import BACKENDS, how_to_fetch
from sam.backends.attention import fuse_attention
from sam.backends.promptable import PromptableModel, fit_longer_side, hash_weights, resize_image

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

import_extra("torchvision", "sam")  # segment_anything needs it, and does not declare that
segment_anything = import_extra("segment_anything", "sam")

BUILDERS: dict[str, Callable[[], Sam]] = {
    "vit_l": segment_anything.build_sam_vit_l,
    "vit_h": segment_anything.build_sam_vit_h,
    "vit_b": segment_anything.build_sam_vit_b,
}
"""Builds the network of each model, without weights."""

_SIZES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""The published models by the width of their image encoders."""


def load(model: str, checkpoint: Path, device: str | torch.device) -> BatchedSamPredictor:
    """Load a model; see :func:`sam.backends.load_predictor`."""
    chosen = pick_device(device)
    sam = BUILDERS[model]()
    load_weights(sam, checkpoint, model)
    fuse_attention(sam.image_encoder)
    return BatchedSamPredictor(sam.to(chosen), model, hash_weights([checkpoint]))


def load_weights(sam: Sam, path: Path, model: str) -> None:
    """Load published weights into a network of segment_anything or segment_anything_hq.

    Raises:
        CheckpointError: If the file is damaged, could run code, or holds the weights of another network.
    """
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
    size = _SIZES.get((found.get("image_encoder.pos_embed") or [0])[-1])
    actual = f"hq_{size}" if any(".hf_mlp." in key for key in found) else size
    if size and actual != model:
        return f"it looks like {actual}: choose that model ({actual}=PATH), or the checkpoint of {model}"
    return f"expected the published {BACKENDS[model].published}: {how_to_fetch(model)}"


class BatchedSamPredictor(PromptableModel):
    """A network of segment_anything with the interface of its SamPredictor, and prompts and images in batches.

    Args:
        sam: The network, on its device.
        name: The name of the model, for the manifest.
        checkpoint: sha256 of the checkpoint file, for the manifest.
    """

    def __init__(self, sam: Sam, name: str, checkpoint: str | None = None) -> None:
        super().__init__(
            name, checkpoint, sam.device, sam.image_encoder.img_size, sam.prompt_encoder.mask_input_size[0]
        )
        self.model = sam.eval()

    def _encode(self, images: Sequence[np.ndarray]) -> Iterable[Any]:
        resized = [resize_image(image, fit_longer_side(image.shape[:2], self.side)) for image in images]
        pixels = [torch.from_numpy(image).to(self.device).permute(2, 0, 1) for image in resized]
        with autocast(self.device, self._dtype):
            encoded = self.model.image_encoder(torch.stack([self.model.preprocess(image) for image in pixels]))
        return self._of_each_image(encoded)

    def _of_each_image(self, encoded: Any) -> Iterable[Any]:
        """Return what the decoder needs of each image, float32, from what the image encoder returned."""
        return ({"image_embeddings": embedding} for embedding in encoded.float().split(1))

    def _decode(
        self,
        features: Any,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        mask_input: torch.Tensor | None,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sparse, dense = self.model.prompt_encoder(points=points, boxes=boxes, masks=mask_input)
        return self.model.mask_decoder(
            **features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
