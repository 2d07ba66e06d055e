"""Auto-annotation functions for CVAT: the module is a function factory for ``cvat-cli``; see docs/annotations.md.

A detection function segments the images of a task: the most salient object of each, or the objects of a COCO file,
which may be the task's own export. An interaction function segments the box that an annotator draws.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from dis_sam.formats import coco
from dis_sam.formats.annotation import box_from_edges, segment
from IS_Net.errors import DatasetError, import_extra
from IS_Net.images import image_to_array
from IS_Net.preprocess import box_from_mask

if TYPE_CHECKING:
    from dis_sam.pipeline import DISSAM, Result

logger = logging.getLogger(__name__)


def create(
    label: str = "object",
    annotations: str = "",
    interactive: bool = False,
    weights: str = "",
    sam: str = "auto",
    device: str = "auto",
) -> Detection | Interaction:
    """Load the model and return a function for CVAT. ``cvat-cli`` calls this with its ``-p NAME=TYPE:VALUE``.

    Args:
        label: The label of the most salient object; a task must have it.
        annotations: A COCO file whose objects are segmented instead, each with the label of its category.
        interactive: Return the interaction function.
        weights: The checkpoint of stage 2; an empty text takes the starter weights.
        sam: See :func:`dis_sam.pipeline.load`.
        device: See :func:`dis_sam.pipeline.load`.

    Raises:
        MissingExtraError: If cvat-sdk is not installed.
        DatasetError: If the COCO file cannot be read.
    """
    from dis_sam.pipeline import load

    model = load(weights or None, sam, device)
    return Interaction(model) if interactive else Detection(model, label, annotations or None)


class Detection:
    """A detection function, as ``cvat_sdk.auto_annotation.DetectionFunction`` describes it.

    Args:
        model: Both stages.
        label: The label of the most salient object.
        annotations: A COCO file whose objects are segmented instead. The ``file_name`` of its images are the names of
            the frames, as in CVAT's own export.

    Attributes:
        spec: The labels.
    """

    def __init__(self, model: DISSAM, label: str = "object", annotations: str | Path | None = None) -> None:
        self._sdk, self._masks = _import_sdk()
        self._model = model
        self._coco = None if annotations is None else coco.read(annotations)
        labels = {1: label}
        if self._coco is not None:
            categories = self._coco.content.get("categories")
            known = [c for c in categories if isinstance(c, dict)] if isinstance(categories, list) else []
            labels = {c["id"]: c["name"] for c in known if type(c.get("id")) is int and c.get("name")}
            if not labels:
                raise DatasetError(f"{annotations}: expected categories with integer ids and names; found none")
            self._images = {image.file_name: image for image in self._coco.images}
        self.spec = self._sdk.DetectionFunctionSpec(
            labels=[self._sdk.label_spec(name, number, type="mask") for number, name in labels.items()]
        )

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Return the shapes of an image: masks, or polygons (without holes) where CVAT asks for them.

        Args:
            context: A ``DetectionFunctionContext``.
            image: The frame.
        """
        pixels = image_to_array(image)
        need_score = context.conf_threshold is not None
        if self._coco is None:
            self._model.set_image(pixels)
            return list(self._shapes(context, 1, self._model.segment(need_score=need_score)))
        entry = self._images.get(context.frame_name)
        if entry is None:
            return []
        before = len(self._coco.problems)
        annotations = self._coco.annotations(entry, entry.records, pixels.shape[:2])
        for problem in self._coco.problems[before:]:
            logger.warning("%s", problem)
        if annotations:
            self._model.set_image(pixels)
        categories = {record["id"]: record.get("category_id") for record in entry.records}
        shapes = []
        for annotation in annotations:
            result = segment(self._model, annotation, need_score=need_score)
            shapes += self._shapes(context, categories[annotation.id], result)
        return shapes

    def _shapes(self, context: Any, label: int, result: Result) -> Iterator[Any]:
        threshold = context.conf_threshold or 0
        if result.score < threshold and not math.isnan(result.score):
            return
        if context.conv_mask_to_poly:
            contours, _ = cv2.findContours(result.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            for contour in contours:
                if len(contour) >= 3:
                    yield self._sdk.polygon(label, contour.reshape(-1).astype(float).tolist())
        elif points := _encode(self._masks, result.mask):
            yield self._sdk.mask(label, points)


class Interaction:
    """An interaction function, as ``cvat_sdk.auto_annotation.InteractionFunction`` describes it.

    It needs a box; points refine the prompt if a SAM checkpoint is available.

    Args:
        model: Both stages.

    Attributes:
        spec: The prompts that it takes.
    """

    def __init__(self, model: DISSAM) -> None:
        self._sdk, self._masks = _import_sdk()
        if not hasattr(self._sdk, "InteractionFunctionSpec"):
            raise DatasetError(
                "this version of cvat-sdk has no interaction functions; install a newer one (2.80 or later)"
            )
        self._model = model
        self._current: np.ndarray | None = None
        self.spec = self._sdk.InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=1)

    def preprocess_image(self, context: Any, image: Image.Image) -> np.ndarray:
        """Return an image as (H, W, 3) uint8 RGB."""
        return image_to_array(image)

    def detect(self, context: Any, pp_image: np.ndarray, prompts: Any) -> list[Any]:
        """Return the mask of the object in the box; an empty list if nothing was found.

        Args:
            context: An ``InteractionFunctionContext``.
            pp_image: From :meth:`preprocess_image`. The same array is encoded once, however many prompts follow.
            prompts: ``InteractionPrompts``.
        """
        if pp_image is not self._current:
            self._current = None
            self._model.set_image(pp_image)
            self._current = pp_image
        (x0, y0), (x1, y1) = prompts.bounding_box
        points = [*prompts.pos_points, *prompts.neg_points]
        labels = [1] * len(prompts.pos_points) + [0] * len(prompts.neg_points)
        result = self._model.segment(box=box_from_edges(x0, y0, x1, y1), points=points or None, labels=labels or None)
        encoded = _encode(self._masks, result.mask)
        return [self._sdk.InteractionResultShape(type="mask", points=encoded)] if encoded else []


def _import_sdk() -> tuple[Any, Any]:
    return import_extra("cvat_sdk.auto_annotation", "cvat"), import_extra("cvat_sdk.masks", "cvat")


def _encode(masks: Any, mask: np.ndarray) -> list[float]:
    """Return a mask, (H, W) bool, as CVAT's run lengths and bounds; an empty list if it is empty."""
    box = box_from_mask(mask)
    if box is None:
        return []
    x0, y0, x1, y1 = box
    return masks.encode_mask(mask, [x0, y0, x1 + 1, y1 + 1])
