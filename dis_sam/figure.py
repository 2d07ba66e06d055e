"""The figure of a comparison: a row for each object, a column for each method, with magnified edges below.

Everything is drawn with Pillow and OpenCV, at the size at which it is looked at.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from IS_Net.errors import UserError
from IS_Net.metrics.suite import FIGURES
from IS_Net.preprocess import Box, Window, box_from_mask

PHOTOGRAPH, TRUTH = "photograph", "ground truth"
"""Headings of the first columns."""

COLUMN = 280
"""Width of a column in pixels."""
MAX_SIDE = 65_500
"""The longest side of a JPEG is 65,535 pixels."""

_MARGIN, _GAP, _PAD = 16, 10, 4
_TALLEST, _FLATTEST = 1.4, 0.45  # height of a picture's cell, as a share of its width
_CROP_HEIGHT = 0.64  # of the magnified part's cell, as a share of its width
_WHOLE_FRAME = 0.35  # the whole photograph is shown if the object's surroundings cover at least this share of it
_SURROUNDINGS = 0.12  # shown around the object, as a share of its longer side
_INSET = 0.3  # longer side of the small copy of the photograph, as a share of its cell's shorter side
_CROP_SHARE = 6.0  # the magnified part is this much smaller than what the picture above it shows
_SMALLEST_CROP = 24  # pixels
_AGREEING = 0.02  # weight of edges at which all methods agree

_TEXT, _QUIET, _PAPER, _EMPTY, _LINE = (29, 35, 42), (90, 101, 112), (255, 255, 255), (236, 239, 242), (200, 206, 212)
_PROMPT, _CROP, _DARK = (255, 214, 10), (0, 163, 224), (20, 20, 20)
_ON_OBJECT, _ON_BACKGROUND = (46, 204, 64), (255, 65, 54)
_HEADING, _NAME, _SCORES = 16, 15, 14  # sizes of texts in pixels


class FigureError(UserError, ValueError):
    """A figure that cannot be drawn."""


@dataclass(frozen=True, eq=False)
class Row:
    """An object of a photograph, and what the methods made of it.

    Attributes:
        name: The name of the object.
        photograph: (H, W, 3) uint8 RGB.
        maps: By method: (H, W) uint8, or a text that says why there is no map.
        truth: (H, W) uint8, the ground truth; None if there is none.
        scores: By method: figures by the keys of :data:`IS_Net.metrics.suite.FIGURES`.
        box: The box of the prompt, xyxy in pixels.
        points: (x, y) of the points of the prompt.
        labels: 1 (object) or 0 (background) of each point.
        mask: (H, W) uint8, the coarse mask that was given as the prompt.
    """

    name: str
    photograph: np.ndarray
    maps: Mapping[str, np.ndarray | str]
    truth: np.ndarray | None = None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    box: Box | None = None
    points: Sequence[tuple[float, float]] | None = None
    labels: Sequence[int] | None = None
    mask: np.ndarray | None = None

    @property
    def drawn_maps(self) -> list[np.ndarray]:
        """The maps that there are."""
        return [levels for levels in self.maps.values() if not isinstance(levels, str)]


# --- what is shown ----------------------------------------------------------------------------------------------------


def choose_view(row: Row) -> Window:
    """Return the part of the photograph that is shown: all of it, or, if the object is small, its surroundings.

    Nothing that belongs to the prompt, to the ground truth or to any map is left out.
    """
    height, width = row.photograph.shape[:2]
    boxes = [box_from_mask(levels) for levels in (row.truth, row.mask, *row.drawn_maps) if levels is not None]
    boxes += [row.box, *((x, y, x, y) for x, y in row.points or ())]
    found = np.array([box for box in boxes if box is not None], np.float64).reshape(-1, 4)
    if not len(found):
        return Window(0, 0, height, width)
    x0, y0, x1, y1 = *found[:, :2].min(0), *(found[:, 2:].max(0) + 1)
    margin = max(_SURROUNDINGS * max(x1 - x0, y1 - y0), 16)
    x0, y0, x1, y1 = x0 - margin, y0 - margin, x1 + margin, y1 + margin
    flattest, tallest = _FLATTEST * (x1 - x0), _TALLEST * (x1 - x0)
    if y1 - y0 < flattest:  # fill the cell
        y0, y1 = (y0 + y1 - flattest) / 2, (y0 + y1 + flattest) / 2
    elif y1 - y0 > tallest:
        wide = (y1 - y0) / _TALLEST
        x0, x1 = (x0 + x1 - wide) / 2, (x0 + x1 + wide) / 2
    left, top, right, bottom = max(int(x0), 0), max(int(y0), 0), min(int(x1) + 1, width), min(int(y1) + 1, height)
    if (right - left) * (bottom - top) >= _WHOLE_FRAME * height * width:
        return Window(0, 0, height, width)
    return Window(top, left, bottom - top, right - left)


def choose_crop(row: Row, view: Window, column: int = COLUMN) -> Window:
    """Return the part that is magnified: where edges are dense and the methods differ.

    Each pixel near an edge of the ground truth counts by how much the maps differ there, and a little if they agree.
    Without a ground truth, the edges are those of the map with the longest edges, because coarse masks have few. Filled
    boxes do not count beside other maps: they differ from them everywhere.

    Args:
        row: The object.
        view: The part of the photograph that is shown, which contains the magnified part.
        column: Width of the column in pixels: the magnified part is not reduced if the photograph is large.
    """
    side = max(min(max(view.size) / _CROP_SHARE, column), _SMALLEST_CROP)
    width = min(round(side), view.width)
    height = min(max(round(side * _CROP_HEIGHT), 1), view.height)
    maps = [levels for levels in row.drawn_maps if not _is_filled_box(levels)] or row.drawn_maps
    shown = [view.crop(levels) for levels in maps]
    references = [view.crop(row.truth)] if row.truth is not None else shown
    if not references:
        return Window(view.top + (view.height - height) // 2, view.left + (view.width - width) // 2, height, width)
    edges = max((_edges(levels) for levels in references), key=lambda found: int(found.sum()))
    near = cv2.dilate(edges, np.ones((2 * max(width // 24, 1) + 1,) * 2, np.uint8)).astype(np.float32)
    spread = np.maximum.reduce(shown) - np.minimum.reduce(shown) if shown else np.zeros_like(edges)
    weight = near * (_AGREEING + spread.astype(np.float32) / 255)
    sums = weight
    half = max(width // 2, 1), max(height // 2, 1)
    for _ in range(2):  # what is near the middle of the window counts more, so that edges do not lie at its rim
        sums = cv2.boxFilter(sums, -1, half, normalize=False, borderType=cv2.BORDER_CONSTANT)
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    top = min(max(int(y) - height // 2, 0), view.height - height)
    left = min(max(int(x) - width // 2, 0), view.width - width)
    return Window(view.top + top, view.left + left, height, width)


def _is_filled_box(levels: np.ndarray) -> bool:
    box = box_from_mask(levels)
    if box is None:
        return False
    x0, y0, x1, y1 = box
    return int((levels > 128).sum()) == (x1 - x0 + 1) * (y1 - y0 + 1)


def _edges(levels: np.ndarray) -> np.ndarray:
    """Return 1 on the border of a map's object, else 0: (H, W) uint8."""
    return cv2.morphologyEx((levels > 128).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))


# --- texts ------------------------------------------------------------------------------------------------------------


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    font = _font(_NAME)
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask("\U0010fffd"))


@lru_cache(maxsize=4096)
def _legible(character: str) -> str:
    """Return a character, or what stands for it if the font does not have it: its base letter, or a question mark."""
    if _has_glyph(character):
        return character
    base = "".join(part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part))
    return base if base and all(map(_has_glyph, base)) else "?"


def _printable(text: str) -> str:
    """Replace what the font does not have, which would be drawn as boxes."""
    return "".join(map(_legible, unicodedata.normalize("NFC", text)))


def _width(text: str, size: int) -> float:
    return _font(size).getlength(text)


def _shortened(text: str, width: float, size: int) -> str:
    """Return a text that fits a width; a longer one loses its middle."""
    if _width(text, size) <= width:
        return text
    kept = len(text) - 1
    while kept > 1 and _width(f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}", size) > width:
        kept -= 1
    return f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"


def wrap(text: str, width: float, size: int, lines: int) -> list[str]:
    """Break a text into at most some lines of a width, at spaces, hyphens and underscores where there are any."""
    found: list[str] = []
    rest = _printable(text).strip()
    while rest and len(found) < lines - 1 and _width(rest, size) > width:
        end = next(end for end in range(len(rest), 0, -1) if end == 1 or _width(rest[:end].rstrip(), size) <= width)
        breaks = [place + 1 for place in range(end // 3, end) if rest[place] in " -_>/"]
        end = breaks[-1] if breaks else end
        found.append(rest[:end].strip())
        rest = rest[end:].strip()
    return [*found, _shortened(rest, width, size)] if rest else found


def _figure_texts(scores: Mapping[str, float]) -> dict[str, str]:
    """Return heading and value of each figure of one image."""
    texts = {}
    for key, value in scores.items():
        figure = FIGURES[key]
        heading = figure.heading if figure.of_one is None else figure.of_one
        if heading:
            digits = min(figure.digits, 3)
            texts[key] = (
                f"{heading} {f'{value:.{digits}f}'.removeprefix('0') if digits == 3 else f'{value:.{digits}f}'}"
            )
    return texts


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(rows: Sequence[Row], methods: Sequence[str], column: int = COLUMN) -> np.ndarray:
    """Draw the figure.

    Args:
        rows: At least one. If one of them has a ground truth, there is a column for it.
        methods: The keys of the rows' maps, in the order of the columns.
        column: Width of a column in pixels.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        FigureError: If a side would be longer than :data:`MAX_SIDE`.
    """
    has_truth = any(row.truth is not None for row in rows)
    headings = [PHOTOGRAPH, *([TRUTH] if has_truth else []), *methods]
    width = 2 * _MARGIN + len(headings) * (column + _GAP) - _GAP
    if width > MAX_SIDE:
        raise FigureError(f"the figure would be {width} pixels wide, at most {MAX_SIDE} fit; compare fewer methods")
    strips = [_head(headings, column, width)]
    height = len(strips[0])
    for row in rows:
        strips.append(_strip(row, headings, column, width))
        height += len(strips[-1])
        if height > MAX_SIDE:
            raise FigureError(
                f"the figure would be over {MAX_SIDE} pixels high after {len(strips) - 1} objects of {len(rows)}; "
                "compare fewer photographs, or make several figures"
            )
    return np.vstack(strips)


def _head(headings: Sequence[str], column: int, width: int) -> np.ndarray:
    texts = [wrap(heading, column, _HEADING, 2) for heading in headings]
    line = round(1.3 * _HEADING)
    canvas = Image.new("RGB", (width, _MARGIN + line * max(map(len, texts))), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for place, lines in enumerate(texts):
        top = canvas.height - line * len(lines)
        for number, text in enumerate(lines):
            left = _MARGIN + place * (column + _GAP) + (column - _width(text, _HEADING)) / 2
            pen.text((left, top + number * line), text, _TEXT, _font(_HEADING))
    return np.asarray(canvas)


def _strip(row: Row, headings: Sequence[str], column: int, width: int) -> np.ndarray:
    """Draw the row of an object: its name, the pictures, the magnified parts, the scores."""
    view = choose_view(row)
    crop = choose_crop(row, view, column)
    picture = column, round(column * min(max(view.height / view.width, _FLATTEST), _TALLEST))
    magnified = column, round(column * _CROP_HEIGHT)
    texts = {method: _figure_texts(scores) for method, scores in row.scores.items()}
    lines = {method: _lay_out(list(own.items()), column) for method, own in texts.items()}
    score_line, caption = round(1.4 * _SCORES), round(1.9 * _NAME)
    tops = np.cumsum([0, caption, picture[1] + _GAP // 2, magnified[1] + _PAD])
    height = int(tops[3]) + score_line * max(map(len, lines.values()), default=0) + _GAP
    canvas = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    scale = _scale(crop, magnified) / _scale(view, picture)
    note = f"parts below: {scale:.1f} x larger"
    room = width - 2 * _MARGIN - _width(note, _SCORES) - 2 * _GAP
    pen.text((_MARGIN, 6), wrap(row.name, room, _NAME, 1)[0] if row.name.strip() else "", _TEXT, _font(_NAME))
    pen.text((width - _MARGIN - _width(note, _SCORES), 7), note, _QUIET, _font(_SCORES))
    best = _best(row.scores)
    for place, heading in enumerate(headings):
        left = _MARGIN + place * (column + _GAP)
        pixels = {PHOTOGRAPH: row.photograph, TRUTH: row.truth}.get(heading) if place < 2 else None
        shown = row.maps.get(heading, "no map") if pixels is None else pixels
        if heading == TRUTH and place == 1 and row.truth is None:
            shown = "no ground truth"
        if isinstance(shown, str):
            _message(pen, shown, (left, int(tops[1])), (column, picture[1] + _GAP // 2 + magnified[1]))
            continue
        whole, at = _fit(view.crop(shown), picture)
        if heading == PHOTOGRAPH and place == 0:
            _mark(whole, row, view, crop)
        _put(canvas, whole, (left + at[0], int(tops[1]) + at[1]), _LINE)
        detail, at = _fit(crop.crop(shown), magnified)
        _put(canvas, detail, (left + at[0], int(tops[2]) + at[1]), _CROP)
        for number, line in enumerate(lines.get(heading, ())):
            x, y = float(left), int(tops[3]) + number * score_line
            for key in line:
                text = texts[heading][key]
                pen.text((x, y), text, _TEXT, _font(_SCORES))
                if heading in best.get(key, ()):
                    pen.text((x + 0.7, y), text, _TEXT, _font(_SCORES))  # bold
                x += _width(text, _SCORES) + _GAP
    return np.asarray(canvas)


def _lay_out(texts: Sequence[tuple[str, str]], width: int) -> list[list[str]]:
    """Distribute figures, as keys and texts, over lines of a width."""
    lines: list[list[str]] = []
    used = 0.0
    for key, text in texts:
        own = _width(text, _SCORES) + _GAP
        if not lines or used + own - _GAP > width:
            lines.append([])
            used = 0.0
        lines[-1].append(key)
        used += own
    return lines


def _best(scores: Mapping[str, Mapping[str, float]]) -> dict[str, set[str]]:
    """Return the methods with the best value of each figure, as it is printed; none where all have it."""
    best: dict[str, set[str]] = {}
    for key in next(iter(scores.values()), {}):
        choose = max if FIGURES[key].higher_is_better else min
        top = choose(figures[key] for figures in scores.values())
        found = {method for method, figures in scores.items() if round(figures[key], 3) == round(top, 3)}
        best[key] = found if len(found) < len(scores) else set()
    return best


def _scale(window: Window, cell: tuple[int, int]) -> float:
    """Return how many pixels of a cell, (width, height), a pixel of a window covers."""
    return min(cell[0] / window.width, cell[1] / window.height)


def _fit(pixels: np.ndarray, cell: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """Scale a picture so that it fits a cell, (width, height); return it, and where it is when it is centered."""
    height, width = pixels.shape[:2]
    scale = min(cell[0] / width, cell[1] / height)
    size = min(max(round(width * scale), 1), cell[0]), min(max(round(height * scale), 1), cell[1])
    enlarge = cv2.INTER_CUBIC if pixels.ndim == 3 else cv2.INTER_LINEAR
    scaled = cv2.resize(pixels, size, interpolation=enlarge if scale > 1 else cv2.INTER_AREA)
    picture = Image.fromarray(scaled).convert("RGB")
    return picture, ((cell[0] - size[0]) // 2, (cell[1] - size[1]) // 2)


def _put(canvas: Image.Image, picture: Image.Image, place: tuple[int, int], color: tuple[int, int, int]) -> None:
    """Paste a picture, with a line around it."""
    canvas.paste(picture, place)
    ends = place[0] + picture.width - 1, place[1] + picture.height - 1
    ImageDraw.Draw(canvas).rectangle((*place, *ends), outline=color, width=2 if color == _CROP else 1)


def _message(pen: ImageDraw.ImageDraw, text: str, place: tuple[int, int], size: tuple[int, int]) -> None:
    """Write why a cell is empty."""
    (left, top), (width, height) = place, size
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=_EMPTY)
    line = round(1.4 * _SCORES)
    lines = wrap(text, width - 2 * _GAP, _SCORES, 4)
    for number, part in enumerate(lines):
        x = left + (width - _width(part, _SCORES)) / 2
        pen.text((x, top + (height - line * len(lines)) / 2 + number * line), part, _QUIET, _font(_SCORES))


def _mark(picture: Image.Image, row: Row, view: Window, crop: Window) -> None:
    """Draw the prompt and the magnified part into the picture of the photograph."""
    x_scale, y_scale = picture.width / view.width, picture.height / view.height
    pen = ImageDraw.Draw(picture)

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - view.left) * x_scale, (y - view.top) * y_scale

    if view.size != row.photograph.shape[:2]:
        _draw_inset(picture, row, view)
    if row.mask is not None:
        _outline(picture, view.crop(row.mask))
    if row.box is not None:
        x0, y0, x1, y1 = row.box
        _rectangle(pen, (*place(x0, y0), *place(x1 + 1, y1 + 1)), picture.size, _PROMPT)
    ends = *place(crop.left, crop.top), *place(crop.left + crop.width, crop.top + crop.height)
    _rectangle(pen, ends, picture.size, _CROP)
    for (x, y), label in zip(row.points or (), row.labels or (), strict=True):
        x, y = place(x + 0.5, y + 0.5)
        color = _ON_OBJECT if label else _ON_BACKGROUND
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=color, outline=_PAPER, width=2)


def _rectangle(
    pen: ImageDraw.ImageDraw, ends: Sequence[float], size: tuple[int, int], color: tuple[int, int, int]
) -> None:
    """Draw a rectangle of two pixels with a dark line around it, inside the picture where it reaches its border."""
    x0, y0, x1, y1 = (
        max(round(ends[0]), 1),
        max(round(ends[1]), 1),
        min(round(ends[2]) - 1, size[0] - 2),
        min(round(ends[3]) - 1, size[1] - 2),
    )
    if x1 - x0 < 4 or y1 - y0 < 4:  # so small that the lines would cover it: around it
        x0, y0, x1, y1 = x0 - 4, y0 - 4, x1 + 4, y1 + 4
    pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_DARK, width=1)
    pen.rectangle((x0, y0, x1, y1), outline=color, width=2)


def _outline(picture: Image.Image, mask: np.ndarray) -> None:
    """Draw the outline of a mask."""
    small = cv2.resize(mask, picture.size, interpolation=cv2.INTER_AREA) > 128
    contours, _ = cv2.findContours(small.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    pixels = np.array(picture)
    cv2.drawContours(pixels, contours, -1, _DARK, 3, cv2.LINE_AA)
    cv2.drawContours(pixels, contours, -1, _PROMPT, 1, cv2.LINE_AA)
    picture.paste(Image.fromarray(pixels))


def _draw_inset(picture: Image.Image, row: Row, view: Window) -> None:
    """Draw a small copy of the whole photograph into the corner that shows least of the object."""
    side = max(round(_INSET * min(picture.size)), 1)
    small, _ = _fit(row.photograph, (side, side))
    scale = small.width / row.photograph.shape[1]
    pen = ImageDraw.Draw(small)
    ends = [edge * scale for edge in (view.left, view.top, view.left + view.width, view.top + view.height)]
    pen.rectangle((0, 0, small.width - 1, small.height - 1), outline=_PAPER, width=1)
    pen.rectangle((ends[0], ends[1], max(ends[2], ends[0] + 3), max(ends[3], ends[1] + 3)), outline=_CROP, width=1)
    busy = np.zeros((picture.height, picture.width), np.float32)
    for levels in (row.truth, row.mask, *row.drawn_maps):
        if levels is not None:
            busy += cv2.resize(view.crop(levels), picture.size, interpolation=cv2.INTER_AREA)
    corners = [(x, y) for y in (3, picture.height - small.height - 3) for x in (3, picture.width - small.width - 3)]
    free = min(corners, key=lambda corner: busy[corner[1] :, corner[0] :][: small.height, : small.width].sum())
    picture.paste(small, free)
