"""Both stages as one: an image and a prompt, or an image and a coarse mask, become an alpha matte."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dis_sam.outputs import OutputError, encode, render
from IS_Net.errors import PromptError
from IS_Net.images import atomic_file, image_to_array, mask_to_array, read_image, read_mask
from IS_Net.manifest import fingerprint
from IS_Net.masks import keep_levels
from IS_Net.paths import starter_weights
from IS_Net.predictor import Detail, DISPredictor, PreparedImage, check_mask
from IS_Net.preprocess import MASK_CHANNEL, Box, check_box
from sam.backends import available_model, find_checkpoint, load_predictor, split_model
from sam.backends.base import StageOnePredictor
from sam.prompts import check_points
from sam.proposal import best_mask

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Picture = np.ndarray | Image.Image | str | Path
"""An image or a mask: an array, a PIL image, or the path of a file."""

Points = Sequence[Sequence[float]] | np.ndarray
Labels = Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What was segmented in an image.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        alpha: (H, W) float32 in [0, 1], the alpha matte of the object.
        coarse: (H, W), the coarse mask that was refined: bool from stage 1 (the filled box if there is no SAM), or
            uint8 0..255 if it was given; None if there was no prompt.
        score: The predicted IoU of the alpha matte, in [0, 1]; NaN if it is unknown (see :meth:`DISSAM.segment`).
    """

    image: np.ndarray
    alpha: np.ndarray
    coarse: np.ndarray | None = None
    score: float = math.nan

    def __repr__(self) -> str:
        height, width = self.alpha.shape
        coarse = "no coarse mask" if self.coarse is None else "a coarse mask"
        return f"<Result: {width} x {height} pixels, {coarse}, score {self.score:.3f}>"

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool: where the alpha matte is above 0.5."""
        return self.alpha > 0.5

    def rgba(self, bits: int = 8) -> np.ndarray:
        """Return the cut-out: the object with its own colors, estimated where it is soft, and its alpha.

        The colors are not multiplied by alpha. See :func:`dis_sam.outputs.render_all`.

        Args:
            bits: 8 or 16 per channel.

        Returns:
            (H, W, 4) RGBA, uint8 or uint16.

        Raises:
            OutputError: If ``bits`` is neither 8 nor 16.
        """
        return render(self, "rgba", bits=bits)

    def save(
        self,
        path: str | Path,
        kind: str = "rgba",
        *,
        bits: int = 8,
        threshold: float | None = None,
        crop: bool = False,
    ) -> None:
        """Write the result as a PNG file, atomically. An existing file is replaced, and a missing folder created.

        Args:
            path: Must have the extension ``.png``.
            kind: What to write: ``rgba``, ``alpha``, ``mask``, ``white``, ``overlay`` or a color, ``#RRGGBB``; see
                :func:`dis_sam.outputs.render_all`, also for the following.
            bits: 8 or 16 per channel.
            threshold: Alpha above it counts as 1, the rest as 0; None leaves the alpha matte as it is.
            crop: Whether to crop to the object.

        Raises:
            OutputError: If the extension is another, the kind is unknown, or ``bits`` or ``threshold`` is out of range.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise OutputError(f"{path}: expected a file name with .png, found {path.suffix or 'no extension'}")
        data = encode(render(self, kind, bits=bits, threshold=threshold, crop=crop))
        with atomic_file(path) as file:
            file.write(data)


class _StageOne:
    """Stage 1 for all sessions of a model: loaded when it is needed, called by one thread at a time.

    Args:
        predictor: See :class:`DISSAM`.
    """

    def __init__(self, predictor: StageOnePredictor | Callable[[], StageOnePredictor]) -> None:
        self._predictor = predictor
        self._lock = threading.RLock()
        self._encoded: PreparedImage | None = None

    @property
    def predictor(self) -> StageOnePredictor:
        """The model; it is loaded now if it has not been."""
        with self._lock:
            if not hasattr(self._predictor, "set_image"):
                self._predictor = self._predictor()
            return self._predictor

    def predict(
        self, image: PreparedImage, proposal: np.ndarray | None = None, **prompt: np.ndarray | None
    ) -> tuple[np.ndarray, float]:
        """Encode the image if needed, and return what :func:`sam.proposal.best_mask` does, with its arguments."""
        with self._lock:
            predictor = self.predictor
            if self._encoded is not image:
                self._encoded = None  # if encoding fails, no prompt may refer to the previous image
                predictor.set_image(image.pixels)
                self._encoded = image
            return best_mask(predictor, proposal, **prompt)


class DISSAM:
    """Both stages as one: image and prompt -> alpha matte. Mirrors SamPredictor.

    Threads: :meth:`cut` may be called on one object by any number of threads. :meth:`set_image` changes the object, so
    that threads that use it and :meth:`predict` or :meth:`segment` need a :meth:`session` each; where another thread
    has set an image in between, these raise an error instead of using it.

    Args:
        sam_predictor: Stage 1: from :func:`sam.backends.load_predictor`, or segment_anything's SamPredictor; or a
            function without arguments that loads it, which is called when stage 1 is first needed.
        dis_predictor: Stage 2.
    """

    def __init__(
        self, sam_predictor: StageOnePredictor | Callable[[], StageOnePredictor], dis_predictor: DISPredictor
    ) -> None:
        self._stage_one = _StageOne(sam_predictor)
        self.dis = dis_predictor
        self._lock = threading.Lock()
        self._image: PreparedImage | None = None
        self._setters: list[int] = []  # the threads that have set an image, the last one at the end

    @property
    def sam(self) -> StageOnePredictor:
        """Stage 1."""
        return self._stage_one.predictor

    def session(self) -> DISSAM:
        """Return an object for another image that shares the networks of this one, for example for another thread.

        Stage 1 holds the encoding of one image; it encodes again when sessions with stage 1 take turns.
        """
        other = DISSAM(self._stage_one._predictor, self.dis)
        other._stage_one = self._stage_one
        return other

    def set_image(self, image: Picture) -> None:
        """Set the image of the following prompts.

        It is resized once for stage 2, and encoded once by stage 1 when a prompt first needs that, however many prompts
        follow.

        Args:
            image: (H, W, 3) uint8 RGB, upright; or a PIL image or the path of a file, which are turned upright.

        Raises:
            ValueError: If the array has another shape or dtype.
            ImageError: If the file is missing, damaged, or not an image.
        """
        self._set_image(image)

    def _set_image(self, image: Picture) -> PreparedImage:
        self._keep(None)  # whatever fails below, no prompt may refer to the previous image
        pixels = _to_image(image)
        # an array is copied: stage 1 and windows read it later, when its owner may have modified it
        prepared = self.dis.prepare(pixels.copy() if pixels is image else pixels)
        self._keep(prepared)
        return prepared

    def _keep(self, image: PreparedImage | None) -> None:
        thread = threading.get_ident()
        with self._lock:
            self._image = image
            self._setters = [*(other for other in self._setters if other != thread), thread]

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: Box | None = None,
        mask_input: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Segment the object of one prompt, as SamPredictor's method of this name does.

        Args:
            point_coords: (N, 2) x, y in pixels.
            point_labels: (N,) 1 for the object, 0 for the background.
            box: xyxy in pixels.
            mask_input: (1, 256, 256) logits of an earlier call of stage 1; see SamPredictor.

        Returns:
            The alpha matte, (H, W) float32 in [0, 1]; the coarse mask, (H, W) bool: of the masks of stage 1, the one
            with the highest predicted IoU; and that predicted IoU (NaN if stage 1 is ``box``, which predicts none).
            With a box alone, SAM 2 may also be given what stage 2 finds from it: :func:`sam.proposal.best_mask`.

        Raises:
            RuntimeError: If no image is set, or another thread has set one since this thread did.
            ValueError: If there is no prompt, or points are given without labels.
            PromptError: If there are points and no box, and stage 1 is ``box``; or the points are faulty, see
                :func:`sam.prompts.check_points`.
            BoxError: If the box has no area, or lies outside the image.
        """
        prepared = self._require_image()
        if point_coords is None and box is None and mask_input is None:
            raise ValueError("no prompt; provide a box, points with labels, or a mask_input")
        clipped = None if box is None else check_box(box, *prepared.size)
        if (point_coords is None) != (point_labels is None):
            raise ValueError("found only one of point_coords and point_labels; provide a label (1 or 0) for each point")
        if point_coords is not None:
            has_hint = box is not None or mask_input is not None
            point_coords, point_labels = check_points(point_coords, point_labels, prepared.size, has_hint)
        coarse, score = self._stage_1(prepared, point_coords, point_labels, clipped, mask_input)
        refined = self.dis.refine(prepared, self._for_stage_2(prepared, coarse), clipped)
        return refined.alpha, coarse, score

    def segment(
        self,
        box: Box | None = None,
        points: Points | None = None,
        labels: Labels | None = None,
        mask: Picture | None = None,
        *,
        detail: Detail = "auto",
        keep_better: bool = False,
        need_score: bool = False,
    ) -> Result:
        """Segment one object of the image that is set.

        A box or points go to stage 1, whose mask is refined; if stage 1 is ``box``, the box alone goes to stage 2. With
        a box alone, SAM 2 may also be given what stage 2 finds from it (:func:`sam.proposal.best_mask`). A mask is
        refined without stage 1. Without any prompt, the most salient object is segmented, without stage 1.

        Args:
            box: xyxy in pixels of the upright image.
            points: (N, 2) x, y in pixels. They need SAM.
            labels: (N,) 1 for the object, 0 for the background; None means that all points are on the object.
            mask: Any coarse mask of the object: (H, W) bool, uint8 0/1 or 0..255, or float 0..1; or a PIL image or the
                path of a file, see :func:`IS_Net.images.read_mask`. It may come with a box, but not with points.
            detail: What to do for photographs larger than the network's input: ``auto``, ``off`` or ``max``; see
                :meth:`IS_Net.predictor.DISPredictor.predict`.
            keep_better: Whether to return the coarse mask itself if it is probably better than the refined one.
            need_score: Whether to compute the score if that takes one more pass of stage 2, as it does where a mask is
                refined. Where stage 2 is given the box alone, or no prompt, the score is always known.

        Returns:
            Image, alpha matte, coarse mask and score.

        Raises:
            RuntimeError: If no image is set, or another thread has set one since this thread did.
            PromptError: If there are points together with a mask; labels without points; other numbers of points and
                labels; a point outside the image; no point on the object and no box; or points and no box, and
                stage 1 is ``box``.
            BoxError: If the box has no area, or lies outside the image.
            ImageError: If the file of the mask is missing, damaged, or not an image.
            ValueError: If the mask has another shape, dtype or range, or another size than the image.
        """
        options = {"detail": detail, "keep_better": keep_better, "need_score": need_score}
        return self._segment(self._require_image(), box, points, labels, mask, **options)

    def _segment(
        self,
        prepared: PreparedImage,
        box: Box | None,
        points: Points | None,
        labels: Labels | None,
        mask: Picture | None,
        **options: Any,
    ) -> Result:
        clipped = None if box is None else check_box(box, *prepared.size, with_mask=mask is not None)
        if points is not None or labels is not None:
            points, labels = _check_points(points, labels, prepared.size, box is not None, mask is not None)
        if mask is not None:
            coarse = given = check_mask(_to_mask(mask), prepared.size, mask if _is_path(mask) else "the mask")
        elif box is None and points is None:
            coarse = given = None
        else:
            coarse, _ = self._stage_1(prepared, points, labels, clipped)
            given = self._for_stage_2(prepared, coarse)
        refined = self.dis.refine(prepared, given, clipped, **options)
        return Result(prepared.pixels, refined.alpha, coarse, refined.score)

    def cut(
        self,
        image: Picture,
        box: Box | None = None,
        points: Points | None = None,
        labels: Labels | None = None,
        mask: Picture | None = None,
        *,
        detail: Detail = "auto",
        keep_better: bool = False,
        need_score: bool = False,
    ) -> Result:
        """Set an image (:meth:`set_image`) and segment one object of it (:meth:`segment`); the arguments are theirs."""
        options = {"detail": detail, "keep_better": keep_better, "need_score": need_score}
        return self._segment(self._set_image(image), box, points, labels, mask, **options)

    def _require_image(self) -> PreparedImage:
        thread = threading.get_ident()
        with self._lock:
            image, setters = self._image, self._setters
        if len(setters) > 1 and setters[-1] != thread:
            raise RuntimeError(
                "another thread has set an image of its own in this object; use a session() for each thread, or cut()"
            )
        if image is None:
            raise RuntimeError("no image is set; call set_image(image) before predict() and segment()")
        return image

    def _stage_1(
        self,
        prepared: PreparedImage,
        points: Points | None,
        labels: Labels | None,
        box: Box | None,
        mask_input: np.ndarray | None = None,
    ) -> tuple[np.ndarray, float]:
        """Return the mask of stage 1 with the highest predicted IoU, (H, W) bool, and that IoU.

        A model that uses proposals is also given what stage 2 finds from the box alone.
        """
        proposal = None
        is_box_alone = box is not None and points is None and mask_input is None
        if is_box_alone and self.dis.in_ch > MASK_CHANNEL and getattr(self.sam, "uses_proposals", False):
            proposal = self.dis.refine(prepared, None, box, detail="off").alpha
        return self._stage_one.predict(
            prepared,
            proposal,
            point_coords=None if points is None else np.asarray(points),
            point_labels=None if labels is None else np.asarray(labels),
            box=None if box is None else np.asarray(box),
            mask_input=mask_input,
        )

    def _for_stage_2(self, prepared: PreparedImage, coarse: np.ndarray) -> np.ndarray | None:
        """Return the mask that stage 2 is given: none if the mask of stage 1 is only the filled box."""
        return None if getattr(self.sam, "box_only", False) else check_mask(coarse, prepared.size)


def _check_points(
    points: Points | None, labels: Labels | None, size: tuple[int, int], has_box: bool, has_mask: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (N, 2) float64 and labels (N,) int64.

    Raises:
        PromptError: As :meth:`DISSAM.segment` says.
    """
    if has_mask:
        raise PromptError("found points together with a mask; a mask is refined without stage 1: omit one of the two")
    if points is None:
        raise PromptError("found labels without points; expected one label (1 object, 0 background) per point")
    try:
        coordinates = np.asarray(points, dtype=np.float64)
        kinds = np.ones(len(coordinates), dtype=np.int64) if labels is None else np.asarray(labels)
    except (TypeError, ValueError):
        coordinates = kinds = np.empty(0)
    if coordinates.ndim != 2 or coordinates.shape[1] != 2 or not len(coordinates) or not np.isfinite(coordinates).all():
        raise PromptError(f"expected points as [[x, y], ..] of finite numbers, found {points!r}")
    if kinds.shape != coordinates.shape[:1] or not np.isin(kinds, (0, 1)).all():
        raise PromptError(f"expected one label, 1 (object) or 0 (background), for each of the points, found {labels!r}")
    return check_points(coordinates, kinds, size, has_box)


def load(
    weights: str | Path | None = None,
    sam: str = "auto",
    device: str | torch.device = "auto",
    precision: str = "auto",
    runtime: str = "auto",
) -> DISSAM:
    """Load both stages. The model of stage 1 is loaded when a prompt first needs it; the log names it then.

    Args:
        weights: The checkpoint of stage 2; None takes the starter weights.
        sam: The model of stage 1, a name in :data:`sam.backends.BACKENDS`, such as ``vit_l`` or ``sam2``; ``NAME=PATH``
            takes its weights from a file or folder; ``box`` for none, so that stage 2 is given the boxes alone;
            ``auto`` for the best model whose weights are found, else ``box``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``full`` or ``half``, of stage 2.
        runtime: What runs stage 2: ``torch``, ``openvino``, ``ncnn``, ``onnx`` or ``auto``; see
            :func:`IS_Net.runtime.base.choose_runtime`.

    Raises:
        CheckpointError: If the weights are missing, damaged, or belong to another network.
        MissingFileError: If there is no checkpoint of the model of stage 1.
        ValueError: If the model of stage 1 is unknown.
        DeviceError: If the device, the precision or the runtime is not available.
    """
    model = available_model() if sam == "auto" else sam
    checkpoint = find_checkpoint(model)
    name = split_model(model)[0]

    def load_stage_1() -> StageOnePredictor:
        logger.info("stage 1: %s", f"SAM {name}, {checkpoint}" if checkpoint else f"none; boxes go to stage 2 ({name})")
        return load_predictor(model, checkpoint, device)

    return DISSAM(load_stage_1, _load_stage_2(weights, device, precision, runtime))


def refine(
    image: Picture,
    mask: Picture,
    box: Box | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    runtime: str = "auto",
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
        runtime: ``torch``, ``openvino``, ``ncnn``, ``onnx`` or ``auto``; see
            :func:`IS_Net.runtime.base.choose_runtime`.

    Returns:
        (H, W) float32 alpha matte in [0, 1]; all 0 if the mask is empty.

    Raises:
        ImageError: If a file is missing, damaged, or not an image.
        ValueError: If an array has another shape, dtype or range, or the sizes of mask and image differ.
        BoxError: If the box is not four numbers in order, or lies outside the image.
        CheckpointError: If the weights are missing, damaged, or belong to another network.
        DeviceError: If the device, the precision or the runtime is not available.
    """
    predictor = _load_stage_2(weights, device, precision, runtime)
    prepared = predictor.prepare(_to_image(image))
    names = mask if _is_path(mask) else "the mask", f"its image {image}" if _is_path(image) else "its image"
    coarse = check_mask(_to_mask(mask), prepared.size, *names)
    clipped = None if box is None else check_box(box, *prepared.size, with_mask=True)
    return predictor.refine(prepared, coarse, clipped).alpha


def _is_path(value: Picture) -> bool:
    return isinstance(value, str | Path)


def _to_image(image: Picture) -> np.ndarray:
    if _is_path(image):
        return read_image(image)
    return image_to_array(image) if isinstance(image, Image.Image) else np.asarray(image)


def _to_mask(mask: Picture) -> np.ndarray:
    if _is_path(mask):
        return keep_levels(read_mask(mask))
    return keep_levels(mask_to_array(mask)) if isinstance(mask, Image.Image) else np.asarray(mask)


def _load_stage_2(weights: str | Path | None, device: str | torch.device, precision: str, runtime: str) -> DISPredictor:
    path = Path(starter_weights() if weights is None else weights).resolve()
    # A file that was overwritten, by a training run for example, is loaded again.
    version = fingerprint(path) if path.is_file() else None
    return _load_cached(path, version, str(device), precision, runtime)


@lru_cache(maxsize=2)
def _load_cached(path: Path, version: str | None, device: str, precision: str, runtime: str) -> DISPredictor:
    return DISPredictor.from_checkpoint(path, device, precision, runtime=runtime)
