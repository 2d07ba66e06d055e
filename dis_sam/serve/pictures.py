"""The pictures that the page works on: decoded once, kept in memory only, the least recently used dropped first."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from PIL import Image

from IS_Net import images
from IS_Net.errors import ImageError, PromptError
from IS_Net.images import size_mismatch, size_text
from IS_Net.preprocess import box_from_mask

if TYPE_CHECKING:
    from dis_sam.pipeline import Result

# Only formats whose decoders are part of Pillow's own code or of well-tested libraries: some others start programs.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
MAX_POINTS = 100
"""Points of a prompt."""
_MAX_MASK_PIXELS = 1 << 24  # of masks for small pictures; others may have as many pixels as their picture
_MAX_PROMPTS = 200
"""Prompts of a picture that are remembered."""
_LONGEST_STEM = 200
"""Bytes of a picture's name; with what is appended for its results, it stays below the 255 of file systems."""


class TooManyPixelsError(Exception):
    """A picture that is larger than the server allows."""


class Model(Protocol):
    """What a picture is segmented with: the part of :class:`dis_sam.pipeline.DISSAM` that is used here."""

    def set_image(self, image: np.ndarray) -> None:
        """Set the image of the following prompts, (H, W, 3) uint8 RGB."""

    def segment(
        self,
        box: Sequence[float] | None = None,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        *,
        detail: str = "auto",
        keep_better: bool = False,
    ) -> Result:
        """Segment one object."""


@dataclass(frozen=True)
class Decoded:
    """A decoded upload.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        name: The stem of the file's name; it contains no separator of folders.
        icc: The color profile, or None.
        dpi: (horizontal, vertical) resolution, or None.
        jpeg: Whether the file is a JPEG.
    """

    image: np.ndarray
    name: str
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    jpeg: bool = False


def safe_stem(file_name: str | None) -> str:
    """Return the stem of an uploaded file's name, without what a file system or a header could not hold."""
    stem = PurePosixPath((file_name or "").replace("\\", "/")).stem
    stem = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in stem).strip(" .")
    return stem.encode()[:_LONGEST_STEM].decode(errors="ignore") or "picture"


def _check_file(data: bytes, name: str, max_pixels: int) -> str:
    """Check the format and the size of an uploaded picture without decoding it; return the format."""
    Image.init()  # registers all formats
    known = [kind for kind in FORMATS if kind in Image.OPEN]  # older versions of Pillow do not read AVIF
    try:
        with Image.open(io.BytesIO(data), formats=known) as image:
            if image.width * image.height <= max_pixels:
                return str(image.format)
            found = f"{size_text((image.height, image.width))} = {image.width * image.height / 1e6:.1f} megapixels"
    except Image.DecompressionBombError:
        found = "far more"
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            f"{name}: found {len(data)} bytes that are not a picture of a known format; expected "
            f"{', '.join(known)}: export it as JPEG or PNG"
        ) from error
    raise TooManyPixelsError(
        f"{name}: found {found}, expected at most {max_pixels / 1e6:g} megapixels; scale it down, or start the server "
        "with a larger --max-megapixels"
    )


def decode_picture(data: bytes, file_name: str | None, max_pixels: int) -> Decoded:
    """Decode an uploaded photograph.

    Args:
        data: The content of the file.
        file_name: Its name, for messages and for the names of results.
        max_pixels: Larger pictures are refused before they are decoded.

    Raises:
        TooManyPixelsError: If the picture is larger.
        ImageError: If it is damaged, or not a picture.
    """
    name = file_name or "the picture"
    kind = _check_file(data, name, max_pixels)
    photograph = images.decode_photograph(data, name)
    jpeg = kind in ("JPEG", "MPO")  # MPO: a JPEG file of some cameras that holds more than one picture
    return Decoded(photograph.pixels, safe_stem(file_name), photograph.icc, photograph.dpi, jpeg)


def decode_mask(data: bytes, file_name: str | None, max_pixels: int) -> np.ndarray:
    """Decode an uploaded mask to (H, W) uint8 0..255, upright; see :func:`IS_Net.images.read_mask`.

    Raises:
        TooManyPixelsError: If it is larger than ``max_pixels``.
        ImageError: If it is damaged, or not a picture.
    """
    name = file_name or "the mask"
    _check_file(data, name, max_pixels)
    return images.decode_mask(data, name)


@dataclass(frozen=True)
class Prompt:
    """What says which object is meant. Without box, points and mask, it is the most salient object.

    Attributes:
        box: xyxy in pixels of the upright picture.
        points: (x, y, label) of each point; label 1 is the object, 0 the background.
        mask: A coarse mask as the content of an image file: of the picture's size, or of its shape and smaller.
    """

    box: tuple[float, ...] | None = None
    points: tuple[tuple[float, ...], ...] = ()
    mask: bytes | None = None

    @classmethod
    def parse(cls, value: Any, mask: bytes | None = None) -> Prompt:
        """Check a prompt ``{"box": [x0, y0, x1, y1] | null, "points": [[x, y, label], ..]}``.

        Raises:
            PromptError: If it has another form.
        """
        if not isinstance(value, dict) or not set(value) <= {"box", "points"}:
            raise PromptError(
                f'expected a prompt {{"box": [x0, y0, x1, y1], "points": [[x, y, label]]}}, found {value!r}'
            )
        box, points = value.get("box"), value.get("points") or []
        if box is not None and not _are_numbers(box, 4):
            raise PromptError(f"expected four numbers x0, y0, x1, y1 as the box, found {box!r}")
        if not isinstance(points, list) or not all(_are_numbers(p, 3) and p[2] in (0, 1) for p in points):
            raise PromptError(f"expected points as [[x, y, label], ..] with label 1 or 0, found {points!r}")
        if len(points) > MAX_POINTS:
            raise PromptError(f"found {len(points)} points, expected at most {MAX_POINTS}")
        return cls(None if box is None else tuple(map(float, box)), tuple(tuple(map(float, p)) for p in points), mask)

    @property
    def key(self) -> str:
        """An identifier of the content."""
        mask = "" if self.mask is None else hashlib.sha256(self.mask).hexdigest()
        return hashlib.sha256(json.dumps([self.box, self.points, mask]).encode()).hexdigest()[:32]

    def as_dict(self, result: Result) -> dict[str, Any]:
        """Return box and points as prompt files hold them; see :func:`sam.prompts.read_prompts`.

        Args:
            result: What was segmented. Its tight box stands for a prompt that has neither box nor points.

        Returns:
            The prompt; empty if it has no box, because the result has not.
        """
        box = self.box
        if box is None and not self.points:
            box = box_from_mask(result.mask)
            if box is None or box[:2] == box[2:]:  # a single pixel is not accepted as a box
                return {}
        prompt: dict[str, Any] = {} if box is None else {"box": list(box)}
        if self.points:
            prompt |= {"points": [list(p[:2]) for p in self.points], "labels": [int(p[2]) for p in self.points]}
        return prompt


def _are_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        # not isfinite, which fails for integers beyond the range of float
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= sys.float_info.max for v in value)
    )


def segment(model: Model, prompt: Prompt, size: tuple[int, int], **options: Any) -> Result:
    """Segment the object of a prompt in the image that is set.

    Args:
        model: With the image.
        prompt: The prompt.
        size: (height, width) of the image.
        **options: ``detail`` and ``keep_better``, see :meth:`dis_sam.pipeline.DISSAM.segment`.

    Raises:
        UserError: If the prompt cannot be used.
    """
    if prompt.box is not None:
        options["box"] = prompt.box
    if prompt.points:
        points = np.asarray(prompt.points)
        options |= {"points": points[:, :2], "labels": points[:, 2].astype(np.int64)}
    if prompt.mask is not None:
        limit = max(size[0] * size[1], _MAX_MASK_PIXELS)
        options["mask"] = _fit_mask(decode_mask(prompt.mask, "the mask", limit), size)
    return model.segment(**options)


def _fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a mask that was drawn on a reduced picture; return (H, W) uint8, or as it is if it has the size."""
    if mask.shape == size:
        return mask
    scale = mask.shape[0] / size[0], mask.shape[1] / size[1]
    if abs(scale[0] * size[1] - mask.shape[1]) > 1 or abs(scale[1] * size[0] - mask.shape[0]) > 1:
        raise PromptError(size_mismatch("the mask", mask.shape, "its picture", size))
    enlarged = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.where(enlarged > 127, np.uint8(255), np.uint8(0))


def join(results: Sequence[Result]) -> Result:
    """Return several objects of one image as one: the highest alpha and the union of the coarse masks.

    Args:
        results: At least one; all of the same image.
    """
    first = results[0]
    if len(results) == 1:
        return first
    masks = [result.coarse for result in results if result.coarse is not None]
    coarse = reduce(np.logical_or, [m if m.dtype == bool else m > 128 for m in masks]) if masks else None
    alpha = reduce(np.maximum, [result.alpha for result in results])
    return replace(first, alpha=alpha, coarse=coarse, score=min(result.score for result in results))


@dataclass
class Picture:
    """A picture that the page works on.

    Attributes:
        id: Cannot be guessed; whoever knows it may use the picture.
        decoded: The picture.
        model: Holds what the networks computed of it.
        source: The content of the uploaded file, if training pairs are saved.
        prompts: The latest prompts, by their keys.
        results: What is still in memory of their results; it is computed again when it is needed.
    """

    decoded: Decoded
    model: Model
    source: bytes | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    prompts: OrderedDict[str, Prompt] = field(default_factory=OrderedDict)
    results: OrderedDict[str, Result] = field(default_factory=OrderedDict)
    used: float = field(default_factory=time.monotonic)
    _is_set: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.decoded.image.shape[:2]

    def compute(self, prompt: Prompt) -> Result:
        """Segment the object of a prompt. Only the worker's thread may call this."""
        if not self._is_set:
            self.model.set_image(self.decoded.image)
            self._is_set = True
        result = segment(self.model, prompt, self.size)
        if result.image is not self.decoded.image:  # the model has a copy of its own; one in memory is enough
            self.decoded = replace(self.decoded, image=result.image)
        return result

    def nbytes(self) -> int:
        """Return about how many bytes the picture takes in memory."""
        held = self.decoded.image.nbytes + len(self.source or b"")
        held += sum(len(prompt.mask or b"") for prompt in self.prompts.values())
        return held + sum(_nbytes(result) for result in self.results.values())


def _nbytes(result: Result) -> int:
    return result.alpha.nbytes + (0 if result.coarse is None else result.coarse.nbytes)


class PictureStore:
    """The pictures of all users, within a limit of memory.

    When the limit is exceeded, results of the least recently used pictures go first, because they can be computed
    again, and then those pictures, which their pages upload again when they need them. All methods may be called from
    any thread.

    Args:
        max_bytes: The limit. A single picture may exceed it.
        max_idle: Seconds after which :meth:`drop_idle` drops a picture that nobody uses.
    """

    def __init__(self, max_bytes: int, max_idle: float) -> None:
        self.max_bytes, self.max_idle = max_bytes, max_idle
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pictures)

    def add(self, picture: Picture) -> None:
        """Store a picture."""
        with self._lock:
            self._pictures[picture.id] = picture
            self._shrink(picture)

    def get(self, picture_id: str) -> Picture:
        """Return a picture, which counts as used now.

        Raises:
            KeyError: If it is unknown, or was dropped.
        """
        self.drop_idle()
        with self._lock:
            picture = self._pictures[picture_id]
            picture.used = time.monotonic()
            self._pictures.move_to_end(picture_id)
            return picture

    def remove(self, picture_id: str) -> None:
        """Drop a picture if it is there."""
        with self._lock:
            self._pictures.pop(picture_id, None)

    def drop_idle(self) -> None:
        """Drop the pictures that nobody has used for long."""
        with self._lock:
            oldest = time.monotonic() - self.max_idle
            for picture in [p for p in self._pictures.values() if p.used < oldest]:
                del self._pictures[picture.id]

    def result(self, picture: Picture, key: str) -> Result | None:
        """Return the result of a prompt if it is in memory."""
        with self._lock:
            result = picture.results.get(key)
            if result is not None:
                picture.results.move_to_end(key)
            return result

    def keep(self, picture: Picture, prompt: Prompt, result: Result) -> None:
        """Store the result of a prompt."""
        with self._lock:
            picture.prompts[prompt.key] = prompt
            picture.results[prompt.key] = result
            for latest in (picture.prompts, picture.results):
                latest.move_to_end(prompt.key)
            if len(picture.prompts) > _MAX_PROMPTS:
                picture.results.pop(picture.prompts.popitem(last=False)[0], None)
            self._shrink(picture)

    def _shrink(self, keep: Picture) -> None:
        excess = sum(picture.nbytes() for picture in self._pictures.values()) - self.max_bytes
        for picture in self._pictures.values():
            newest = next(reversed(picture.results), None)
            for key in list(picture.results):
                if excess > 0 and not (picture is keep and key == newest):
                    excess -= _nbytes(picture.results.pop(key))
        for picture in list(self._pictures.values()):
            if excess > 0 and picture is not keep:
                excess -= picture.nbytes()
                del self._pictures[picture.id]
