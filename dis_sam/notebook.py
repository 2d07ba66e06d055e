"""What `Demo.ipynb` shows: a box that is drawn with the mouse, and results side by side."""

from __future__ import annotations

import base64
import importlib.util
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from IS_Net.compositing import paste
from IS_Net.errors import import_extra
from IS_Net.images import encode_image
from IS_Net.preprocess import Box, check_box

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_YELLOW = (255, 214, 0)
_LONGEST_SIDE = 7.0  # inches of the picture in which the box is drawn, at 100 pixels per inch
_TITLE = 0.4  # inches
_CHECKER = (255, 214)  # gray values
_WIDTH = 14.0  # inches of a figure
_DPI = 80


class BoxInput:
    """A picture in which a box is drawn with the mouse; as the last line of a cell, it is shown below that cell.

    Where no widgets can be used, it shows the picture with the given box, and the box stays as it is. That is the case
    without ipympl (extra ``notebook``), if nobody is at the front end, as in ``jupyter execute``, and in a saved
    notebook on a code-hosting page.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: The box at the start, xyxy in pixels.
        interactive: Whether to use widgets; None uses them where they work (see :func:`widgets_work`).

    Raises:
        BoxError: If the box has no area, or lies outside the image.
    """

    def __init__(self, image: np.ndarray, box: Box, interactive: bool | None = None) -> None:
        height, width = image.shape[:2]
        x0, y0, x1, y1 = check_box(box, height, width)
        self._image = image
        self._box = round(x0), round(y0), round(x1), round(y1)
        self._canvas: Any = None
        if widgets_work() if interactive is None else interactive:
            self._show_widget()

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The box that was drawn last: first column and row, last column and row."""
        return self._box

    @property
    def is_interactive(self) -> bool:
        """Whether boxes can be drawn."""
        return self._canvas is not None

    def _show_widget(self) -> None:
        try:
            from matplotlib.figure import Figure
            from matplotlib.widgets import RectangleSelector

            ipympl = importlib.import_module("ipympl.backend_nbagg")
        except ImportError:  # missing, or of a version that does not fit: the coordinates remain
            return
        height, width = self._image.shape[:2]
        inches = _LONGEST_SIDE / max(height, width)
        below_title = height * inches
        drawing = Figure(figsize=(max(width * inches, 3), below_title + _TITLE), dpi=100)
        self._canvas = ipympl.Canvas(drawing)
        ipympl.FigureManager(self._canvas, 0)  # connects the canvas to the front end
        self._canvas.header_visible = False
        # no layout engine: it would move the picture a little with every change of the title
        self._axes = drawing.add_axes((0, 0, 1, below_title / (below_title + _TITLE)))
        self._axes.imshow(self._image)
        self._axes.set_axis_off()
        self._selector = RectangleSelector(
            *(self._axes, self._on_select),
            useblit=False,
            button=1,
            minspanx=1,
            minspany=1,
            interactive=True,
            props={"edgecolor": "gold", "fill": False, "linewidth": 2},
        )
        self._selector.extents = self._box[0], self._box[2], self._box[1], self._box[3]
        self._write_title()

    def _on_select(self, *_: Any) -> None:
        x0, x1, y0, y1 = self._selector.extents
        if x1 - x0 > 1 and y1 - y0 > 1:  # else it is a click, which draws nothing
            self._box = box_of_drag((x0, y0), (x1, y1), self._image.shape[:2])
            self._write_title()

    def _write_title(self) -> None:
        self._axes.set_title(f"box = {self._box}", fontsize=10)
        self._canvas.draw_idle()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Return the widget, and the picture with the box for viewers that show no widgets."""
        picture = encode_image(outline(self._image, self._box), ".jpg", quality=85)
        bundle: dict[str, Any] = {"text/plain": f"box = {self._box}", "image/jpeg": base64.b64encode(picture).decode()}
        if self._canvas is not None:
            view = "application/vnd.jupyter.widget-view+json"
            bundle[view] = self._canvas._repr_mimebundle_()[view]
        return bundle


def widgets_work() -> bool:
    """Return whether ipympl is installed and somebody is at the front end who could use a widget."""
    kernels = sys.modules.get("ipykernel.ipkernel")
    if kernels is None or not kernels.IPythonKernel.initialized() or importlib.util.find_spec("ipympl") is None:
        return False
    # front ends allow input() only if there is somebody to answer; `jupyter execute` and nbconvert do not allow it
    return bool(getattr(kernels.IPythonKernel.instance(), "_allow_stdin", False))


def box_of_drag(
    start: tuple[float, float], end: tuple[float, float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the box of the pixels between the two ends of a drag, in any direction.

    Args:
        start: x, y in the coordinates of the picture, whatever its scale on the screen: the middle of the first pixel
            is (0, 0), and its area reaches from -0.5 to 0.5.
        end: x, y.
        size: Height and width of the picture.

    Returns:
        xyxy: the columns and rows of the first and the last pixel, both inside the picture.
    """
    height, width = size
    (x0, x1), (y0, y1) = (sorted(math.floor(value + 0.5) for value in ends) for ends in zip(start, end, strict=True))
    return max(x0, 0), max(y0, 0), min(x1, width - 1), min(y1, height - 1)


def outline(picture: np.ndarray, box: Box) -> np.ndarray:
    """Draw a box into a copy of a picture.

    Args:
        picture: (H, W, 3) uint8 RGB, or (H, W): bool, uint8 0..255, or float 0..1.
        box: xyxy in pixels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    x0, y0, x1, y1 = (round(value) for value in box)
    thickness = max(2, round(max(picture.shape[:2]) / 200))
    return cv2.rectangle(_as_rgb(picture).copy(), (x0, y0), (x1, y1), _YELLOW, thickness)


def on_checker(rgba: np.ndarray, squares: int = 24) -> np.ndarray:
    """Paste a cut-out onto a checkerboard.

    Args:
        rgba: (H, W, 4) uint8, from :meth:`dis_sam.pipeline.Result.rgba`.
        squares: The number of squares along the longer side.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = rgba.shape[:2]
    side = max(1, math.ceil(max(height, width) / squares))
    odd = (np.arange(height)[:, None] // side + np.arange(width) // side) % 2
    background = np.repeat(np.array(_CHECKER, np.float32)[odd][..., None], 3, axis=2)
    return np.rint(paste(rgba[..., :3], rgba[..., 3] / np.float32(255), background)).astype(np.uint8)


def edge_window(alpha: np.ndarray, share: float = 0.2) -> tuple[slice, slice]:
    """Choose where to magnify the edge of an object: the part of the picture that holds most of it.

    Args:
        alpha: (H, W) float32 in [0, 1].
        share: Size of the part, as a share of the picture's height and width.

    Returns:
        Rows and columns.
    """
    rows, columns = (max(1, round(length * share)) for length in alpha.shape)
    mask = (alpha > 0.5).astype(np.uint8)
    total = cv2.integral(cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)))
    inside = total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
    y, x = (int(value) for value in np.unravel_index(np.argmax(inside), inside.shape))
    return slice(y, y + rows), slice(x, x + columns)


def side_by_side(rows: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw rows of pictures.

    Args:
        rows: By the name of the row: its pictures by their titles, as many in each row. A picture is (h, w, 3) uint8
            RGB, or (h, w): bool, uint8 0..255, or float 0..1. The first row's titles stand above the columns.

    Raises:
        ValueError: If there is no row, or the rows have other numbers of pictures.
        MissingExtraError: If matplotlib is not installed.
    """
    counts = {len(pictures) for pictures in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"expected rows with the same number of pictures, at least 1; found {sorted(counts)}")
    (columns,) = counts
    heights = [max(picture.shape[0] / picture.shape[1] for picture in row.values()) for row in rows.values()]
    inches = sum(heights) * _WIDTH / columns + 0.15 * len(rows) + 0.3
    new_figure = import_extra("matplotlib.figure", "notebook").Figure
    figure = new_figure(figsize=(_WIDTH, inches), dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (name, pictures) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name)
        for axis, picture in zip(axes, pictures.values(), strict=True):
            axis.imshow(_as_rgb(picture))
            axis.set(xticks=(), yticks=())
            axis.spines[:].set_visible(False)
    for axis, title in zip(grid[0], next(iter(rows.values())), strict=True):
        axis.set_title(title, fontsize=11)
    return figure


def _as_rgb(picture: np.ndarray) -> np.ndarray:
    if picture.ndim == 3:
        return picture
    gray = picture if picture.dtype == np.uint8 else np.rint(picture * np.float32(255)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)
