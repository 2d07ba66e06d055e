"""The objects of an annotation file, and the loop that refines those of one image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from IS_Net.errors import DatasetError, UserError

if TYPE_CHECKING:
    from dis_sam.pipeline import DISSAM, Result


@dataclass(frozen=True)
class Annotation:
    """One object of one image.

    Attributes:
        id: What the file calls it: the id of a COCO annotation, the index of a labelme shape.
        where: File, id and image, for messages.
        box: xyxy in pixels of the upright image, clipped to it: (first column, first row, last column, last row).
        decode: Returns the coarse mask; None if the file has only a box.
    """

    id: Any
    where: str
    box: tuple[float, float, float, float]
    decode: Callable[[], np.ndarray] | None = field(default=None, repr=False, compare=False)

    def mask(self) -> np.ndarray | None:
        """Return the coarse mask, (H, W) bool, or None if the file has only a box. It is decoded at each call."""
        return None if self.decode is None else self.decode()


Refiner = Callable[[np.ndarray, Sequence[Annotation]], Iterable[np.ndarray]]
"""Gets an image, (H, W, 3) uint8 RGB, and some of its objects; yields the mask of each, (H, W) bool, in their order.

A mask depends on the image and on the object's box and coarse mask alone: runs that resume rely on it. If the refiner
raises a UserError, the object whose mask it would have yielded has failed, and it is called again with the rest.
"""


def refine_with(model: DISSAM, **options: Any) -> Refiner:
    """Return a refiner that refines the coarse mask of each object, or segments its box if it has no mask.

    The image is set once for all of its objects. Each object is refined alone, so that touching objects stay apart.

    Args:
        model: Both stages.
        options: Of :meth:`dis_sam.pipeline.DISSAM.segment`, such as ``detail`` and ``keep_better``.
    """

    def refine(image: np.ndarray, annotations: Sequence[Annotation]) -> Iterator[np.ndarray]:
        model.set_image(image)
        for annotation in annotations:
            yield segment(model, annotation, **options).mask

    return refine


def segment(model: DISSAM, annotation: Annotation, **options: Any) -> Result:
    """Refine the coarse mask of an object, or segment its box if it has no mask, in the image that is set."""
    mask = annotation.mask()
    prompt = {"box": annotation.box} if mask is None else {"mask": mask}
    return model.segment(**prompt, **options)


@dataclass
class Summary:
    """What a run did.

    Attributes:
        refined: Number of objects refined in this run.
        kept: Number of objects whose results an earlier run left.
        skipped: Number of objects that are not refined: crowds, points and lines. They are written unchanged.
        problems: One error per object, image or file that failed. What failed is written unchanged.
    """

    refined: int = 0
    kept: int = 0
    skipped: int = 0
    problems: list[UserError] = field(default_factory=list)

    def __str__(self) -> str:
        counts = [f"{self.refined} objects refined"]
        counts += [f"{self.kept} kept from an earlier run"] if self.kept else []
        counts += [f"{self.skipped} left as they are (crowds, points or lines)"] if self.skipped else []
        return "\n".join([", ".join(counts), *(f"failed: {problem}" for problem in self.problems)])


def refine_objects(
    image: np.ndarray, annotations: Sequence[Annotation], refiner: Refiner, problems: list[UserError]
) -> Iterator[tuple[Annotation, np.ndarray]]:
    """Refine the objects of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        annotations: The objects.
        refiner: See :data:`Refiner`.
        problems: Gets the error of each object that fails.

    Yields:
        Each object that succeeds, with its refined mask, (H, W) bool and not empty.

    Raises:
        ValueError: If the refiner yields a mask of another shape or dtype, or too few masks.
    """
    rest = list(annotations)
    while rest:
        masks = iter(refiner(image, tuple(rest)))
        while rest:
            try:
                mask = next(masks)
            except UserError as error:
                problems.append(DatasetError(f"{rest.pop(0).where}: {error}"))
                break
            except StopIteration:
                raise ValueError(f"the refiner yielded no mask for {rest[0].where}") from None
            annotation = rest.pop(0)
            if mask.dtype != bool or mask.shape != image.shape[:2]:
                raise ValueError(
                    f"{annotation.where}: expected a refined mask of bool {image.shape[:2]}, "
                    f"found {mask.dtype} {mask.shape}"
                )
            if mask.any():
                yield annotation, mask
            else:
                problems.append(DatasetError(f"{annotation.where}: the refined mask is empty; nothing was found there"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: If the file is missing or not JSON.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: the annotation file does not exist")
    try:
        # utf-8-sig: some tools write a byte order mark
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of thousands of digits
        raise DatasetError(f"{path}: cannot be read as JSON in UTF-8: {error}") from error


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON. Names in any script stay readable."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, an escape in the input file, has no UTF-8 form
        return json.dumps(value, indent=indent)
    return text


def to_numbers(values: Any) -> list[float] | None:
    """Return a JSON list of finite numbers as floats, or None if it is something else."""
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        return None
    try:
        numbers = [float(value) for value in values]
    except OverflowError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def is_far_outside(points: Iterable[Sequence[float]], size: tuple[int, int]) -> bool:
    """Return whether one of the points (x, y) lies more than the image's own size outside of the image (height, width).

    Slightly outside is common, and clipped. Coordinates of another unit or image are not, and rasterizing them would
    take time and memory in proportion to their distance.
    """
    height, width = size
    return any(not (-width <= x <= 2 * width and -height <= y <= 2 * height) for x, y in points)


def box_from_edges(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
    """Convert edges, which lie between pixels, to xyxy, whose ends are pixels: those of columns 2 and 3 are 2 and 4."""
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)
