"""SAM, SAM 2 and models that were distilled from them, as a pair of ONNX files: image encoder and mask decoder.

The layout is that of samexporter (https://github.com/vietanhdev/samexporter), whose decoder for SAM is the export of
segment_anything itself (``SamOnnxModel``). The two files lie in a folder; which is which shows in their inputs. Each is
``.onnx``, or ``.ort``, onnxruntime's own format.

=============  ==============================================  =====================================================
               SAM                                             SAM 2
=============  ==============================================  =====================================================
encoder in     image (1, 3, S, S), normalized and padded, or   image (1, 3, S, S), stretched and normalized
               (H, W, 3), 0..255
encoder out    image_embeddings                                high_res_feats_0, high_res_feats_1, image_embed
decoder in     image_embeddings, point_coords, point_labels,   the three, point_coords, point_labels, mask_input,
               mask_input, has_mask_input, orig_im_size        has_mask_input
decoder out    iou_predictions, low_res_masks                  masks, iou_predictions
=============  ==============================================  =====================================================

A box is two points with the labels 2 and 3. ``masks`` of SAM is not used: its size is that of the image with which the
export was traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from IS_Net.errors import CheckpointError, DeviceError, import_extra
from sam.backends import ONNX_FORMATS, how_to_fetch, model_files, weight_files
from sam.backends.promptable import PromptableModel, hash_weights, resize_image

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

onnxruntime = import_extra("onnxruntime", "onnx")

_MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
_STD = np.array([58.395, 57.12, 57.375], dtype=np.float32)
_PROMPT = {"point_coords", "point_labels", "mask_input", "has_mask_input"}
_INPUTS = {
    "SAM": {"image_embeddings", "orig_im_size"},
    "SAM 2": {"image_embed", "high_res_feats_0", "high_res_feats_1"},
}
"""Inputs of the decoder beside the prompt."""
_OUTPUTS = {"SAM": "low_res_masks", "SAM 2": "masks"}
"""The output of the decoder that holds the low-resolution logits."""


def load(model: str, checkpoint: Path, device: str | torch.device) -> OnnxPredictor:
    """Load a pair of files from a folder; see :func:`sam.backends.load_predictor`."""
    files = model_files(checkpoint)
    expected = f"expected an image encoder and a mask decoder; {how_to_fetch(model)}"
    if len(files) != 2:
        found = ", ".join(path.name for path in files) or "none"
        formats = " or ".join(ONNX_FORMATS)
        raise CheckpointError(
            f"{checkpoint}: found {len(files)} files with the extension {formats} ({found}), {expected}"
        )
    providers = _providers(str(device))
    sessions = [_open(path, providers) for path in files]
    decoders = [session for session in sessions if "point_coords" in _names(session.get_inputs())]
    if len(decoders) != 1:
        inputs = "; ".join(
            f"{path.name} takes {', '.join(_names(session.get_inputs()))}"
            for path, session in zip(files, sessions, strict=True)
        )
        raise CheckpointError(f"{checkpoint}: found no pair ({inputs}), {expected}")
    decoder = decoders[0]
    encoder = next(session for session in sessions if session is not decoder)
    kind = _kind_of(decoder, files[sessions.index(decoder)])
    outputs = _names(encoder.get_outputs())
    of_sam2 = _INPUTS["SAM 2"]
    if not of_sam2 <= set(outputs) if kind == "SAM 2" else of_sam2 & set(outputs):
        wanted = ", ".join(sorted(of_sam2)) if kind == "SAM 2" else "image_embeddings, as the decoder of SAM takes it"
        raise CheckpointError(
            f"{files[sessions.index(encoder)]}: found the outputs {', '.join(outputs)}, expected {wanted}; "
            f"{how_to_fetch(model)}"
        )
    return OnnxPredictor(encoder, decoder, kind, model, hash_weights(weight_files(checkpoint)))


def _open(path: Path, providers: list[Any]) -> InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # one setting for all that computes in this process
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's classes have no common base
        raise CheckpointError(f"{path}: onnxruntime cannot load it ({error}); {how_to_fetch('onnx')}") from error


def _providers(device: str) -> list[Any]:
    """Return onnxruntime's providers for a device.

    Raises:
        DeviceError: If this onnxruntime does not support the device.
    """
    kind, _, index = device.partition(":")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if kind == "cuda" or (kind == "auto" and has_cuda):
        if not has_cuda:
            raise DeviceError(f"device {device!r} was requested, and this onnxruntime runs on the CPU; use auto or cpu")
        return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]
    if kind not in ("auto", "cpu"):
        raise DeviceError(f"device {device!r} is not supported for ONNX files; use auto, cpu, cuda or cuda:N")
    return ["CPUExecutionProvider"]


def _names(values: Iterable[Any]) -> list[str]:
    return [value.name for value in values]


def _kind_of(decoder: InferenceSession, path: Path) -> str:
    """Return ``SAM`` or ``SAM 2``.

    Raises:
        CheckpointError: If inputs or outputs are others.
    """
    inputs, outputs = set(_names(decoder.get_inputs())), set(_names(decoder.get_outputs()))
    for kind, own in _INPUTS.items():
        if inputs == own | _PROMPT and {_OUTPUTS[kind], "iou_predictions"} <= outputs:
            return kind
    known = "; or ".join(
        f"({kind}) the inputs {', '.join(sorted(own | _PROMPT))} and the outputs {_OUTPUTS[kind]}, iou_predictions"
        for kind, own in _INPUTS.items()
    )
    raise CheckpointError(
        f"{path}: found the inputs {', '.join(sorted(inputs))} and the outputs {', '.join(sorted(outputs))}, expected "
        f"{known}, as samexporter writes them"
    )


class OnnxPredictor(PromptableModel):
    """An image encoder and a mask decoder, run by onnxruntime.

    Args:
        encoder: The image encoder.
        decoder: The mask decoder.
        kind: ``SAM`` or ``SAM 2``.
        name: See :class:`sam.backends.promptable.PromptableModel`.
        checkpoint: Likewise.
    """

    def __init__(
        self, encoder: InferenceSession, decoder: InferenceSession, kind: str, name: str, checkpoint: str | None
    ) -> None:
        # both networks have a stride of 16 pixels, and the logits a stride of 4
        logits_side = next(value.shape[-1] for value in decoder.get_inputs() if value.name == "mask_input")
        side = 4 * logits_side
        super().__init__(name, checkpoint, torch.device("cpu"), side, logits_side, stretches=kind == "SAM 2")
        self.encoder, self.decoder, self.kind = encoder, decoder, kind
        self.uses_proposals = kind == "SAM 2"
        scores = next(value.shape for value in decoder.get_outputs() if value.name == "iou_predictions")
        self.selects = scores[-1] != 1  # an export with --return-single-mask

    def _encode(self, images: Sequence[np.ndarray]) -> Iterable[Any]:
        takes = self.encoder.get_inputs()[0]
        for image in images:  # the exports take one
            pixels = resize_image(image, self._input_size(image.shape[:2])).astype(np.float32)
            if len(takes.shape) == 4:
                pixels = (pixels - _MEAN) / _STD
                height, width = pixels.shape[:2]
                pixels = np.pad(pixels, ((0, self.side - height), (0, self.side - width), (0, 0)))
                pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
            outputs = self.encoder.run(None, {takes.name: pixels})
            names = _names(self.encoder.get_outputs()) if self.kind == "SAM 2" else ["image_embeddings"]
            yield dict(zip(names, outputs, strict=False))

    def _decode(
        self,
        features: Any,
        points: tuple[torch.Tensor, torch.Tensor] | None,
        boxes: torch.Tensor | None,
        mask_input: torch.Tensor | None,
        multimask_output: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        number = len(boxes if boxes is not None else points[0] if points is not None else mask_input)
        results = []
        for index in range(number):  # the exports take one prompt
            coordinates, labels = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
            if points is not None:
                coordinates, labels = points[0][index].numpy(), points[1][index].numpy()
            if boxes is not None:
                coordinates = np.concatenate([coordinates, boxes[index].numpy().reshape(2, 2)])
                labels = np.concatenate([labels, [2, 3]])
            elif self.kind == "SAM":  # the padding that segment_anything adds itself where there is no box
                coordinates, labels = np.concatenate([coordinates, [[0, 0]]]), np.concatenate([labels, [-1]])
            results.append(self._run_decoder(features, coordinates, labels, mask_input))
        logits, scores = (torch.from_numpy(np.concatenate(values)) for values in zip(*results, strict=True))
        if scores.shape[1] == 4:  # the first is SAM's single mask
            chosen = slice(1, None) if multimask_output else slice(0, 1)
            return logits[:, chosen], scores[:, chosen]
        if multimask_output or scores.shape[1] == 1:
            return logits, scores
        best = scores.argmax(dim=1)  # the export holds no single mask
        rows = torch.arange(number)
        return logits[rows, best][:, None], scores[rows, best][:, None]

    def _run_decoder(
        self, features: dict[str, np.ndarray], coordinates: np.ndarray, labels: np.ndarray, mask: torch.Tensor | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return low-resolution logits (1, C, h, w) and predicted IoU (1, C)."""
        side = self.logits_side
        values = {
            **features,
            "point_coords": coordinates[None].astype(np.float32),
            "point_labels": labels[None].astype(np.float32),
            "mask_input": np.zeros((1, 1, side, side), np.float32) if mask is None else mask.numpy(),
            "has_mask_input": np.array([mask is not None], dtype=np.float32),
        }
        if self.kind == "SAM":
            values["orig_im_size"] = np.array([self.side, self.side], dtype=np.float32)  # of the unused output
        logits, scores = self.decoder.run([_OUTPUTS[self.kind], "iou_predictions"], values)
        return logits, scores
