"""Refine coarse masks with a trained IS-Net: image + mask and/or box -> alpha matte.

A prediction is one or more whole passes at the size that the network works at, and, for larger photographs, passes over
windows of the photograph along the edges that the whole passes found; see :meth:`DISPredictor.predict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import cv2
import numpy as np

from IS_Net.errors import CheckpointError
from IS_Net.images import size_mismatch
from IS_Net.manifest import fingerprint
from IS_Net.preprocess import (
    BOX_CHANNEL,
    MASK_CHANNEL,
    Box,
    Window,
    alpha_to_uint8,
    clip_box,
    fill_box,
    make_image_planes,
    make_prompt_planes,
    make_window_planes,
    prompt_box,
    prompt_mask,
    resize_alpha,
    resize_uint8,
)
from IS_Net.runtime import open_weights
from IS_Net.runtime.base import DEFAULT_SIZE, Runtime

if TYPE_CHECKING:
    import torch

    from IS_Net.hub import HubModel
    from IS_Net.models import ISNetDIS

Passes = int | Literal["auto"]
Detail = Literal["auto", "off", "max"]

PASSES_WITH_MASK, PASSES_WITHOUT_MASK = 1, 2
"""Number of whole passes that ``auto`` takes. On 26 photographs with the starter weights, mean IoU and boundary IoU are
.937/.836 after one pass from simulated SAM masks and .925/.819 after two; from boxes alone, .816/.652 and .852/.715."""

SURE, CLEARLY = 0.85, 0.1
"""If the last two passes from a box alone agree less than the first of these, a smaller box is tried too, and its alpha
matte is taken if its passes agree more by the second; see :meth:`DISPredictor.predict`. How much that helps:
recipes/starter/LOG.md, "A smaller box"."""
INNER_MARGIN = 1 / 12
"""The smaller box lacks this share of the width on the left and on the right, and of the height above and below: the
inverse of a box that is a tenth too large on each side."""

WINDOWS = "windows"
"""Key of a checkpoint's metadata: whether the weights were trained on windows of photographs too."""
CALIBRATION = "score_calibration"
"""Key of a checkpoint's metadata: the two coefficients of :func:`calibrate`."""

EXACT_SHARE = 0.75
"""A mask is kept if at least this share of the refined border lies on its own border; see :func:`is_exact`."""

EDGE_RANGE = 0.1
"""An edge is where the alpha matte of a whole pass varies by more than this among neighbors, or is further than this
from both 0 and 1."""
BAND = 16
"""Windows change the alpha matte up to about this far from edges, in pixels of the network's input."""
BOX_MARGIN = 0.1
"""Windows look at edges in the box and this share of its width and height around it."""
OVERLAP = 0.25
"""Share of a window's side that neighboring windows overlap by."""
_LARGE = 16_000_000
"""Photographs with more pixels are given the memory that the runtime would keep for its next prediction."""
MAX_WINDOWS = 16
"""Number of windows up to which ``detail="auto"`` works at native scale; beyond it, at a lower scale."""


def check_mask(
    mask: np.ndarray, size: tuple[int, int], name: object = "the mask", image: object = "its image"
) -> np.ndarray:
    """Convert a coarse mask to uint8 0..255.

    Args:
        mask: (H, W), (1, H, W) or (H, W, 1), bool, uint8 0/1 or 0..255, or float 0..1.
        size: (height, width) of the image.
        name: How errors refer to the mask.
        image: How errors refer to the image.

    Returns:
        (H, W) uint8, 0..255.

    Raises:
        ValueError: If the shape, dtype or range is another, or the size is not that of the image.
    """
    mask = np.asarray(mask)
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[2]):  # (1, H, W): SamPredictor returns a single mask so
        mask = mask.squeeze(0 if mask.shape[0] == 1 else 2)
    if mask.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W), found {mask.shape}")
    if mask.shape != size:
        raise ValueError(size_mismatch(name, mask.shape, image, size))
    if mask.dtype == bool:
        return mask.astype(np.uint8) * np.uint8(255)
    if mask.dtype == np.uint8:
        return mask * np.uint8(255) if mask.max(initial=0) <= 1 else mask
    if np.issubdtype(mask.dtype, np.floating):
        if not (np.isfinite(mask).all() and mask.min(initial=0) >= 0 and mask.max(initial=0) <= 1):
            raise ValueError(f"expected a float mask within 0..1, found {mask.min()}..{mask.max()}")
        return np.rint(mask * 255).astype(np.uint8)
    raise ValueError(f"expected a mask of bool, uint8 or float, found {mask.dtype}")


@dataclass(frozen=True)
class PreparedImage:
    """An image at the size that the network works at; see :meth:`DISPredictor.prepare`.

    Attributes:
        planes: (3, h, w) uint8 RGB at the network's input size.
        pixels: (H, W, 3) uint8 RGB, the image itself. It is not a copy: do not modify the array while this is in use.
    """

    planes: np.ndarray
    pixels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), the height and width of the image itself."""
        return self.pixels.shape[:2]


class Refined(NamedTuple):
    """What :meth:`DISPredictor.refine` returns."""

    alpha: np.ndarray
    """(H, W) float32 in [0, 1]."""
    score: float
    """Predicted IoU of the refined alpha matte, also if the mask was kept; NaN if unknown."""
    kept: bool
    """Whether the alpha matte is the given mask; see ``keep_better``."""


class DISPredictor:
    """Refines coarse masks with a trained IS-Net. It keeps no state between calls, and serves any number of threads.

    Each process needs its own: start processes with ``spawn``, because those that are forked after a prediction may
    wait for threads that only their parent has.

    Args:
        network: A network of PyTorch, which is copied; or one that is ready to run (:mod:`IS_Net.runtime`), with which
            ``device`` and ``precision`` are not used.
        device: See :func:`IS_Net.device.pick_device`.
        precision: ``auto``, ``full`` or ``half``; see :func:`IS_Net.device.autocast_dtype`.
        input_size: (height, width) that the network works at: the size it was trained at.
        metadata: What the checkpoint records about the weights. Used are ``windows`` (bool), whether they were trained
            on windows of photographs, and ``score_calibration``, the two coefficients of :func:`calibrate`.

    Raises:
        DeviceError: If the device or the precision is not available.
        CheckpointError: If the calibration in the metadata is not two numbers, the second of them positive.
    """

    def __init__(
        self,
        network: ISNetDIS | Runtime,
        device: str | torch.device = "auto",
        precision: str = "auto",
        input_size: tuple[int, int] = DEFAULT_SIZE,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.runtime = _make_ready(network, device, precision)
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.metadata = dict(metadata or {})
        self.calibration = _check_calibration(self.metadata.get(CALIBRATION, IDENTITY))
        self._checkpoint: tuple[Path, str] | None = None  # the file that it was loaded from, and its version

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        precision: str = "auto",
        input_size: tuple[int, int] | None = None,
        runtime: str = "auto",
    ) -> DISPredictor:
        """Load a checkpoint of this project or a published ``.pth``, with 3, 4 or 5 input channels.

        Args:
            path: The checkpoint.
            device: See the constructor.
            precision: See the constructor.
            input_size: None takes the size in the checkpoint's metadata, or 1024 x 1024 if it has none.
            runtime: ``torch``, ``openvino``, ``ncnn``, ``onnx`` or ``auto``; see
                :func:`IS_Net.runtime.base.choose_runtime`.

        Raises:
            CheckpointError: If the file is missing, damaged, or belongs to another network.
            DeviceError: If the device, the precision or the runtime is not available.
        """
        version = fingerprint(Path(path)) if Path(path).is_file() else ""
        network, metadata, size = open_weights(path, device, precision, input_size, runtime)
        try:
            predictor = cls(network, input_size=size, metadata=metadata)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        predictor._checkpoint = Path(path).absolute(), version
        return predictor

    # --- the Hugging Face Hub ---

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: str | torch.device = "auto",
        precision: str = "auto",
        runtime: str = "auto",
        **download: Any,
    ) -> DISPredictor:
        """Load a model from a folder, without the network, or from the Hugging Face Hub. Needs the extra ``hub``.

        Args:
            name_or_path: A folder that :meth:`save_pretrained` wrote, or a repository, ``USER/MODEL``.
            device: See the constructor.
            precision: See the constructor.
            runtime: See :meth:`from_checkpoint`.
            download: Options of ``huggingface_hub.ModelHubMixin.from_pretrained``, such as ``revision`` and ``token``.

        Raises:
            MissingExtraError: If huggingface_hub is not installed.
            CheckpointError: If the model cannot be downloaded, is damaged, or belongs to another network.
            DeviceError: If the device, the precision or the runtime is not available.
        """
        from IS_Net.hub import find_model

        model = find_model(name_or_path, **download)
        size = model.settings.get("input_size")
        return cls.from_checkpoint(model.checkpoint, device, precision, tuple(size) if size else None, runtime)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the model to a folder: weights, ``config.json``, and a model card. Needs the extra ``hub``.

        The weights are those of the checkpoint that this was loaded from, in their stored precision. An existing
        ``README.md`` is kept.

        Args:
            save_directory: The folder; it is created if it does not exist.
            options: Of ``huggingface_hub.ModelHubMixin.save_pretrained``; with
                ``model_card_kwargs={"license": "apache-2.0"}``, the model card states the license of the weights.

        Raises:
            MissingExtraError: If huggingface_hub is not installed.
            CheckpointError: If this was not loaded from a checkpoint, or the file has changed since.
            DatasetError: If this is a file, or the folder that this was loaded from.
            OSError: If the folder cannot be written.
        """
        return self._hub_model().save_pretrained(save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hugging Face Hub, as :meth:`save_pretrained` writes it. Needs the extra ``hub``.

        Args:
            repo_id: The repository, ``USER/MODEL``; it is created if it does not exist.
            options: Of ``huggingface_hub.ModelHubMixin.push_to_hub``, such as ``private`` and ``token``; for
                ``model_card_kwargs``, see :meth:`save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            MissingExtraError: If huggingface_hub is not installed.
            CheckpointError: If this was not loaded from a checkpoint, or the file has changed since.
        """
        card = {"name": repo_id} | (options.pop("model_card_kwargs", None) or {})
        return self._hub_model().push_to_hub(repo_id, model_card_kwargs=card, **options)

    def _hub_model(self) -> HubModel:
        from IS_Net.hub import HubModel

        if self._checkpoint is None:
            raise CheckpointError(
                "the network was not loaded from a checkpoint; write one with IS_Net.checkpoint.save_weights, and load "
                "it with from_checkpoint"
            )
        path, version = self._checkpoint
        if not path.is_file() or fingerprint(path) != version:
            raise CheckpointError(f"{path}: has changed or is gone since it was loaded; load it again")
        settings = {"architecture": "ISNetDIS", "in_ch": self.in_ch, "input_size": list(self.input_size)}
        return HubModel(path, settings, self.metadata)

    @property
    def in_ch(self) -> int:
        """Number of input channels: 3 = image, 4 = image + mask, 5 = image + mask + filled box."""
        return self.runtime.in_ch

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """Check an image and resize it, once for any number of masks and boxes.

        Args:
            image: (H, W, 3) uint8 RGB, upright. The result refers to it; do not modify it while the result is in use.

        Raises:
            ValueError: If the shape or dtype is another, or the image has no pixels.
        """
        # the planes are copied, because an image that is not resized may be their memory
        return PreparedImage(make_image_planes(image, self.input_size).copy(), image)

    def predict(
        self,
        image: np.ndarray | PreparedImage,
        mask: np.ndarray | None = None,
        box: Box | None = None,
        *,
        passes: Passes = "auto",
        detail: Detail = "auto",
        keep_better: bool = False,
        return_score: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, float]:
        """Segment the object of a prompt: a coarse mask, a box, or both. With neither, the most salient object.

        What the network gets where the mask or the box is missing is listed in :mod:`IS_Net.preprocess`. A mask that is
        given and empty gives an empty alpha matte by rule. A 3-channel network uses neither mask nor box.

        Args:
            image: (H, W, 3) uint8 RGB, upright; or what :meth:`prepare` returns for it.
            mask: (H, W), bool, uint8 0/1 or 0..255, or float 0..1; or None.
            box: xyxy in pixels, at least one; None means the bounds of the mask, or the whole frame if there is no
                mask.
            passes: Number of whole passes, at least 1: each takes the alpha matte of the one before as its mask, with
                the same box. ``auto`` is 1 if a mask is given, else 2. Networks with 4 channels do not see the
                box. If their two passes from a box alone agree too little, ``auto`` takes two more from a smaller box,
                and their result if they agree clearly more (:data:`SURE`).
            detail: What to do for photographs larger than the network's input. ``off``: the alpha matte of the whole
                passes, upsampled. ``max``: further passes over windows of the photograph at native scale, along the
                edges that the whole passes found in and near the box. ``auto``: such windows, at a lower scale where
                there would be more than 16, if the metadata of the checkpoint has ``windows: true``; else
                ``off``, because windows make the results of weights that were not trained on windows worse.
            keep_better: Whether to return the given mask itself if it is probably better than the refined one; see
                :func:`is_exact`.
            return_score: Whether to return the score too. It may take one more whole pass.

        Returns:
            (H, W) float32 alpha matte in [0, 1]. With ``return_score``, also a float: the predicted IoU of the alpha
            matte, in [0, 1]; NaN for an empty mask, and for a 3-channel network, whose passes do not differ.

        Raises:
            ValueError: If a shape, dtype or range is another, the mask's size is not the image's, or ``passes`` or
                ``detail`` is not one of the values above.
            BoxError: If the box is not four finite numbers, has its corners in the wrong order, or lies outside the
                image.
        """
        prepared = image if isinstance(image, PreparedImage) else self.prepare(image)
        coarse = None if mask is None else check_mask(mask, prepared.size)
        clipped = None if box is None else clip_box(box, *prepared.size)
        result = self.refine(
            prepared, coarse, clipped, passes=passes, detail=detail, keep_better=keep_better, need_score=return_score
        )
        return (result.alpha, result.score) if return_score else result.alpha

    def refine(
        self,
        image: PreparedImage,
        mask: np.ndarray | None,
        box: Box | None,
        *,
        passes: Passes = "auto",
        detail: Detail = "auto",
        keep_better: bool = False,
        need_score: bool = False,
    ) -> Refined:
        """Segment the object of a prompt, as :meth:`predict` does, with values that have been checked.

        Args:
            image: From :meth:`prepare`.
            mask: (H, W) uint8 0..255, from :func:`check_mask`, or None.
            box: xyxy in pixels, from :func:`IS_Net.preprocess.clip_box`, or None.
            passes: See :meth:`predict`.
            detail: See :meth:`predict`.
            keep_better: See :meth:`predict`.
            need_score: Whether to take one more whole pass if the score is not known without it: it is known after two
                passes.

        Returns:
            The alpha matte, its score, and whether it is the given mask.

        Raises:
            ValueError: If ``passes`` or ``detail`` is not one of the values that :meth:`predict` names.
        """
        if passes != "auto" and (isinstance(passes, bool) or not isinstance(passes, int) or passes < 1):
            raise ValueError(f"expected passes to be 'auto' or a number of 1 and up, found {passes!r}")
        if detail not in get_args(Detail):
            raise ValueError(f"expected detail to be one of {', '.join(get_args(Detail))}, found {detail!r}")
        if self.in_ch > MASK_CHANNEL and mask is not None and not mask.any():
            return Refined(np.zeros(image.size, dtype=np.float32), math.nan, False)
        mask = prompt_mask(mask, box, image.size)
        unseen = mask is None and box is not None and self.in_ch <= BOX_CHANNEL
        box = prompt_box(mask, box, image.size)
        number = passes
        if passes == "auto":
            number = PASSES_WITHOUT_MASK if mask is None else PASSES_WITH_MASK
        small, agreed = self._whole_passes(image, mask, box, number, need_score)
        if passes == "auto" and unseen and agreed < SURE:
            other, other_agreed = self._whole_passes(image, mask, _shrink_box(box), number, need_score)
            if other_agreed > agreed + CLEARLY:
                small, agreed = other, other_agreed
        self._make_room(image)
        score = calibrate(agreed, self.calibration)
        keep = keep_better and mask is not None and self.in_ch > MASK_CHANNEL
        if keep and is_exact(resize_uint8(mask, self.input_size)[0] / np.float32(255), small):
            return Refined(mask.astype(np.float32) / 255, score, True)
        alpha = resize_alpha(small, image.size)
        larger = image.size[0] > self.input_size[0] or image.size[1] > self.input_size[1]
        if larger and (detail == "max" or (detail == "auto" and self.metadata.get(WINDOWS) is True)):
            self._add_detail(image, alpha, small, box, MAX_WINDOWS if detail == "auto" else None)
            self._make_room(image)
        return Refined(alpha, score, False)

    def _make_room(self, image: PreparedImage) -> None:
        """Free what the runtime keeps for its next call, where the photograph itself takes much memory."""
        if image.size[0] * image.size[1] > _LARGE:
            self.runtime.release()

    def _whole_passes(
        self, image: PreparedImage, mask: np.ndarray | None, box: Box | None, passes: int, need_agreement: bool
    ) -> tuple[np.ndarray, float]:
        """Return the alpha matte of the last pass, (h, w) at the network's size, and :func:`agreement`.

        The agreement is that of the last pass with the one before, or with one more if there is only one pass and it is
        needed; else NaN.
        """
        prompt_planes = make_prompt_planes(mask, box, self.in_ch, image.size, self.input_size)
        planes = np.concatenate((image.planes, prompt_planes))
        alpha, agreed = self.runtime.alpha(planes), math.nan
        if self.in_ch <= MASK_CHANNEL:
            return alpha, agreed
        for number in range(2, max(passes, 2 if need_agreement else 1) + 1):
            planes[MASK_CHANNEL] = alpha_to_uint8(alpha)
            following = self.runtime.alpha(planes)
            agreed = agreement(alpha, following)
            if number <= passes:
                alpha = following
        return alpha, agreed

    def _add_detail(
        self, image: PreparedImage, alpha: np.ndarray, small: np.ndarray, box: Box | None, max_windows: int | None
    ) -> None:
        """Replace an alpha matte near its edges by the alpha mattes of windows of the image.

        Args:
            image: The image.
            alpha: (H, W) float32 of the whole passes; it is modified.
            small: The same at the network's size, (h, w).
            box: The box of the prompt; None means the whole frame.
            max_windows: Number of windows up to which they have native scale; None means any number.
        """
        region = fill_box(_grow_box(box, image.size), image.size, self.input_size)[0]
        weight = resize_alpha(edge_band(small, region > 0), image.size)
        windows = choose_windows(weight > 0, self.input_size, max_windows)
        mask = alpha_to_uint8(alpha)
        change, total = np.zeros_like(alpha), np.zeros_like(alpha)
        for window in windows:
            planes = make_window_planes(image.pixels, mask, box, window, self.in_ch, self.input_size)
            fine = resize_alpha(self.runtime.alpha(planes), window.size)
            blend = window_weight(window.size)
            window.crop(change)[:] += blend * (fine - window.crop(alpha))
            window.crop(total)[:] += blend
        # the differences are averaged, not the alpha mattes, so that where all agree nothing changes, not even rounding
        np.divide(change, total, out=change, where=total > 0)
        change *= weight
        alpha += change
        np.clip(alpha, 0, 1, out=alpha)


def _make_ready(network: ISNetDIS | Runtime, device: str | torch.device, precision: str) -> Runtime:
    if hasattr(network, "alpha"):
        return network
    from IS_Net.runtime.torch_runtime import TorchRuntime  # PyTorch takes seconds to import

    return TorchRuntime(network, device, precision)


IDENTITY = (0.0, 1.0)
"""The coefficients with which :func:`calibrate` changes nothing."""


def _check_calibration(found: Any) -> tuple[float, float]:
    try:
        offset, slope = map(float, found)
    except (TypeError, ValueError):
        offset = slope = math.nan
    if not (math.isfinite(offset) and math.isfinite(slope) and slope > 0):
        raise CheckpointError(
            f"metadata, key {CALIBRATION!r}: expected two numbers, offset and slope > 0, found {found!r}"
        )
    return offset, slope


def calibrate(agreement: float, coefficients: tuple[float, float]) -> float:
    """Convert the agreement of two passes to a predicted IoU.

    Args:
        agreement: From :func:`agreement`; NaN gives NaN.
        coefficients: Offset a and slope b > 0 of ``score = sigmoid(a + b * logit(agreement))``, which rises with the
            agreement (Platt, "Probabilistic outputs for support vector machines", 1999). (0, 1) is the identity.

    Returns:
        The predicted IoU, in [0, 1].
    """
    if coefficients == IDENTITY or math.isnan(agreement):
        return agreement
    offset, slope = coefficients
    clipped = min(max(agreement, 1e-6), 1 - 1e-6)  # the logits of 0 and 1 are infinite
    return 1 / (1 + math.exp(-(offset + slope * math.log(clipped / (1 - clipped)))))


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Return the soft IoU of two alpha mattes: the sum of their minima over the sum of their maxima.

    Args:
        first: Float in [0, 1], of any shape.
        second: Of the same shape.

    Returns:
        In [0, 1]; 0 if the second one has no value above 0.5, because it then holds no object.
    """
    if not (second > 0.5).any():
        return 0.0
    return float(np.minimum(first, second).sum(dtype=np.float64) / np.maximum(first, second).sum(dtype=np.float64))


_NEIGHBORS = np.ones((3, 3), dtype=np.uint8)


def is_exact(mask: np.ndarray, alpha: np.ndarray) -> bool:
    """Return whether a coarse mask is probably better than the alpha matte that was made from it.

    That is so if at least EXACT_SHARE of the alpha matte's border lies within a pixel of the mask's border: the network
    then found hardly any edge that the mask does not have, so what differs is mostly what it lost. The masks of SAM and
    the like are off by more than a pixel along most of their border. An alpha matte without an object has no border,
    and the mask is kept. On 26 photographs with the starter weights, the share is .73 to 1 for the ground truth as a
    mask, and at most .68 for simulated SAM masks.

    Args:
        mask: (h, w) float32 in [0, 1], the mask at the network's size.
        alpha: (h, w) float32 in [0, 1].
    """
    border, near = _border(alpha > 0.5), cv2.dilate(_border(mask > 0.5), _NEIGHBORS)
    return bool(np.count_nonzero(border & near) >= EXACT_SHARE * np.count_nonzero(border))


def _border(mask: np.ndarray) -> np.ndarray:
    """Return 1 (uint8) at the pixels of a mask, (h, w) bool, of whose eight neighbors one is not in it, else 0."""
    inside = mask.astype(np.uint8)
    return inside - cv2.erode(inside, _NEIGHBORS)  # pixels beyond the image do not count as outside


# --- windows --------------------------------------------------------------------------------------------------------


def _grow_box(box: Box | None, size: tuple[int, int]) -> Box:
    """Return a box with BOX_MARGIN on each side; the whole frame if there is none."""
    x0, y0, x1, y1 = (0, 0, size[1] - 1, size[0] - 1) if box is None else box
    margin_x, margin_y = BOX_MARGIN * (x1 - x0 + 1), BOX_MARGIN * (y1 - y0 + 1)
    return x0 - margin_x, y0 - margin_y, x1 + margin_x, y1 + margin_y


def _shrink_box(box: Box) -> Box:
    """Return the smaller box that is tried, which is not empty."""
    x0, y0, x1, y1 = box
    margin_x, margin_y = INNER_MARGIN * (x1 - x0), INNER_MARGIN * (y1 - y0)
    return x0 + margin_x, y0 + margin_y, x1 - margin_x, y1 - margin_y


def edge_band(alpha: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return how much of the windows' alpha mattes is taken at each pixel.

    Args:
        alpha: (h, w) float32, the alpha matte of the whole passes at the network's size.
        region: (h, w) bool, where edges count.

    Returns:
        (h, w) float32: 1 up to BAND / 2 pixels from the edges of the alpha matte, 0 beyond 3 / 2 BAND, linear in
        between.
    """
    spread = cv2.dilate(alpha, _NEIGHBORS) - cv2.erode(alpha, _NEIGHBORS)
    edges = ((spread > EDGE_RANGE) | ((alpha > EDGE_RANGE) & (alpha < 1 - EDGE_RANGE))) & region
    wide = cv2.dilate(edges.astype(np.float32), np.ones((2 * BAND + 1,) * 2, dtype=np.uint8))

    def total(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (BAND + 1, BAND + 1), normalize=False, borderType=cv2.BORDER_CONSTANT)

    return total(wide) / total(np.ones_like(wide))  # the mean of the pixels in the image


def choose_windows(band: np.ndarray, size: tuple[int, int], max_windows: int | None = None) -> list[Window]:
    """Choose overlapping windows that together contain a band of pixels.

    Args:
        band: (H, W) bool.
        size: (height, width) of a window; a side longer than the image's is cut to it.
        max_windows: If more windows are needed, larger ones are chosen; None allows any number.

    Returns:
        The windows, all of one size; none if the band is empty.
    """
    scale = 1.0
    while True:
        height, width = (min(round(side * scale), limit) for side, limit in zip(size, band.shape, strict=True))
        windows = [
            Window(top, left, height, width)
            for top in _starts(band.any(axis=1), height)
            for left in _starts(band[top : top + height].any(axis=0), width)
            if band[top : top + height, left : left + width].any()
        ]
        if max_windows is None or len(windows) <= max_windows or (height, width) == band.shape:
            return windows
        scale += 0.25


def _starts(occupied: np.ndarray, length: int) -> list[int]:
    """Return the first positions of intervals of a length that contain all occupied positions, with some context."""
    found = np.flatnonzero(occupied)
    if found.size == 0:
        return []
    context = length // 16  # the network sees little of what surrounds an edge at the border of its input
    first, end = max(int(found[0]) - context, 0), min(int(found[-1]) + 1 + context, len(occupied))
    if end - first <= length:
        return [min(max((first + end - length) // 2, 0), len(occupied) - length)]
    overlap = round(OVERLAP * length)
    number = math.ceil((end - first - overlap) / (length - overlap))
    return [round(first + index * (end - length - first) / (number - 1)) for index in range(number)]


def window_weight(size: tuple[int, int]) -> np.ndarray:
    """Return the weight of a window's pixels where windows overlap: it falls to almost 0 at the window's border.

    Args:
        size: (height, width) of the window.

    Returns:
        (height, width) float32 in (0, 1].
    """
    rows, columns = (
        np.minimum(1, (np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5) / max(OVERLAP * side, 1))
        for side in size
    )
    return np.outer(rows, columns).astype(np.float32)
