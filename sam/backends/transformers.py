"""SAM, HQ-SAM, SAM 2 (Ravi et al., 2024) and SAM 3's tracker (Carion et al., 2025), with Hugging Face's transformers.

The weights lie in a folder, as ``save_pretrained`` writes it and as they are published. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from IS_Net.checkpoint import require_finite
from IS_Net.device import autocast, pick_device
from IS_Net.errors import CheckpointError, import_extra
from sam.backends import how_to_fetch, weight_files
from sam.backends.promptable import PromptableModel, hash_weights

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

import_extra("torchvision", "transformers")  # the image processors need it
transformers = import_extra("transformers", "transformers")


class _Family(NamedTuple):
    """A class of transformers.

    Attributes:
        class_name: Its name.
        types: The values of ``model_type`` in the config.json of folders that it reads.
        stretches: See :class:`sam.backends.promptable.PromptableModel`.
        uses_proposals: See :class:`sam.backends.base.StageOnePredictor`.
    """

    class_name: str
    types: tuple[str, ...]
    stretches: bool = False
    uses_proposals: bool = False


_SAM = _Family("SamModel", ("sam",))
_HQ_SAM = _Family("SamHQModel", ("sam_hq",))
FAMILIES: dict[str, _Family] = {
    "vit_l": _SAM,
    "vit_h": _SAM,
    "vit_b": _SAM,
    "hq_vit_l": _HQ_SAM,
    "hq_vit_h": _HQ_SAM,
    "hq_vit_b": _HQ_SAM,
    "sam2": _Family("Sam2Model", ("sam2", "sam2_video"), stretches=True, uses_proposals=True),
    "sam3": _Family("Sam3TrackerModel", ("sam3_tracker", "sam3_tracker_video", "sam3_video"), stretches=True),
}
"""The family of each model."""

SIZES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""The published sizes of SAM and HQ-SAM by the width of their image encoders."""


def load(model: str, checkpoint: Path, device: str | torch.device) -> TransformersPredictor:
    """Load a model from a folder; see :func:`sam.backends.load_predictor`."""
    family = FAMILIES[model]
    _check_config(checkpoint, model, family)
    chosen = pick_device(device)
    network = _load_network(checkpoint, model, family)
    if family is _HQ_SAM:
        _use_attended_image(network.mask_decoder)
    processor = _load_processor(checkpoint, network.config.prompt_encoder_config.image_size)
    weights = hash_weights(weight_files(checkpoint))
    return TransformersPredictor(
        network.eval().to(chosen), processor, model, weights, family.stretches, family.uses_proposals
    )


def _check_config(folder: Path, model: str, family: _Family) -> None:
    """Raise CheckpointError if the folder does not hold the model."""
    expected = f"expected a folder as save_pretrained writes it, with {family.class_name}; {how_to_fetch(model)}"
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: found no config.json; {expected}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: found no model_type ({error}); {expected}") from error
    if found not in family.types:
        actual = next((name for name, other in FAMILIES.items() if found in other.types), None)
        remedy = f"choose the model {actual} ({actual}=FOLDER), or another folder" if actual else expected
        raise CheckpointError(f"{path}: found the model_type {found!r}, expected {family.types[0]!r}; {remedy}")
    if family in (_SAM, _HQ_SAM):
        # transformers writes only what differs from its defaults, which are those of vit_b
        width = (config.get("vision_config") or {}).get("hidden_size", 768)
        prefix = "hq_" if family is _HQ_SAM else ""
        actual = f"{prefix}{SIZES.get(width, '')}"
        if actual != model:
            remedy = f"choose the model {actual} ({actual}=FOLDER), or another folder" if width in SIZES else expected
            raise CheckpointError(f"{path}: found an image encoder of width {width}, not that of {model}; {remedy}")
    if not weight_files(folder):
        raise CheckpointError(f"{folder}: found no model.safetensors; {expected}")


def _load_network(folder: Path, model: str, family: _Family) -> PreTrainedModel:
    with _quiet():
        try:
            network, report = getattr(transformers, family.class_name).from_pretrained(
                folder,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        except Exception as error:  # of many classes: safetensors, torch, json, transformers
            raise CheckpointError(f"{folder}: cannot be loaded ({error}); {how_to_fetch(model)}") from error
    faults = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if faults:
        raise CheckpointError(
            f"{folder}: {len(faults)} tensors of {family.class_name} are missing or have another shape, such as "
            f"{min(faults)}; {how_to_fetch(model)}"
        )
    require_finite(network.state_dict(), folder)
    return network


def _load_processor(folder: Path, side: int) -> BaseImageProcessor:
    with _quiet():
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: found no image processor ({error}); expected the published preprocessor_config.json, or "
                "what the image processor's save_pretrained writes"
            ) from error
    size = processor.size
    found = size.get("longest_edge") or size.get("height")
    if found != side:
        raise CheckpointError(
            f"{folder}: the image processor resizes to {found} pixels, and the network takes {side}; "
            "use the preprocessor_config.json that was published with these weights"
        )
    return processor


def _use_attended_image(mask_decoder: torch.nn.Module) -> None:
    """Let the mask decoder of SamHQModel upscale the image embeddings that its transformer returns.

    In transformers 4.57 to 5.24, it upscales those that it gave to the transformer, transposed, so that the masks are
    not those of HQ-SAM. Where that is corrected, this changes nothing.
    """
    attended: list[torch.Tensor] = []  # (images, prompts, H * W, C)

    def keep(module: torch.nn.Module, inputs: Any, outputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        attended[:] = [outputs[1]]

    def replace(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (attended.pop().transpose(2, 3).reshape(inputs[0].shape),)

    mask_decoder.transformer.register_forward_hook(keep)
    mask_decoder.upscale_conv1.register_forward_pre_hook(replace)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress bar and the reports of a loading; what is wrong becomes an error."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class TransformersPredictor(PromptableModel):
    """A network of transformers: SamModel, SamHQModel, Sam2Model or Sam3TrackerModel.

    The multiple masks of SamHQModel are in the order of their predicted IoU, so that the first is the best.

    Args:
        network: The network, on its device.
        processor: Its image processor.
        name: See :class:`sam.backends.promptable.PromptableModel`; likewise the following.
        checkpoint: Likewise.
        stretches: Likewise.
        uses_proposals: See :class:`sam.backends.base.StageOnePredictor`.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        processor: BaseImageProcessor,
        name: str,
        checkpoint: str | None,
        stretches: bool,
        uses_proposals: bool = False,
    ) -> None:
        prompts = network.config.prompt_encoder_config
        logits_side = 4 * prompts.image_size // prompts.patch_size
        super().__init__(name, checkpoint, network.device, prompts.image_size, logits_side, stretches)
        self.network, self.processor = network, processor
        self.uses_proposals = uses_proposals

    def _encode(self, images: Sequence[np.ndarray]) -> Iterable[Any]:
        arrays = [np.ascontiguousarray(image) for image in images]
        pixels = self.processor(images=arrays, return_tensors="pt", input_data_format="channels_last").pixel_values
        with autocast(self.device, self._dtype):
            encoded = self.network.get_image_embeddings(pixels.to(self.device))
        if self.network.config.model_type == "sam_hq":
            embeddings, (early, *_) = encoded
            for embedding, features in zip(embeddings.float().split(1), early.float().split(1), strict=True):
                yield {"image_embeddings": embedding, "intermediate_embeddings": [features]}
        elif self.stretches:
            for levels in zip(*(level.float().split(1) for level in encoded), strict=True):
                yield {"image_embeddings": list(levels)}
        else:
            for embedding in encoded.float().split(1):
                yield {"image_embeddings": embedding}

    def _decode(
        self,
        features: Any,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        mask_input: torch.Tensor | None,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # transformers' first dimension counts images, its second one prompts
        coordinates, labels = (None, None) if points is None else (points[0][None], points[1][None])
        output = self.network(
            **features,
            input_points=coordinates,
            input_labels=labels,
            input_boxes=None if boxes is None else boxes[None],
            input_masks=mask_input,
            multimask_output=multimask_output,
        )
        return output.pred_masks[0], output.iou_scores[0]
