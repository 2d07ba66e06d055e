"""The box that is drawn in a notebook, and the pictures beside each other."""

from __future__ import annotations

import base64
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dis_sam.notebook import BoxInput, box_of_drag, edge_window, on_checker, outline, side_by_side, widgets_work
from IS_Net.errors import BoxError

pytestmark = pytest.mark.filterwarnings("ignore:Passing unrecognized arguments:DeprecationWarning")  # of ipympl

pytest.importorskip("ipympl")
backend_bases = pytest.importorskip("matplotlib.backend_bases")

WIDGET = "application/vnd.jupyter.widget-view+json"
YELLOW = (255, 214, 0)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8)


# --- from a drag to a box ---


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ((3, 4), (10, 20), (3, 4, 10, 20)),  # from the middle of a pixel to the middle of another
        ((10, 20), (3, 4), (3, 4, 10, 20)),
        ((10, 4), (3, 20), (3, 4, 10, 20)),
        ((2.51, 3.5), (10.49, 19.51), (3, 4, 10, 20)),  # anywhere in the same two pixels
        ((-0.5, -0.5), (49.5, 39.5), (0, 0, 49, 39)),  # from edge to edge of the picture
        ((-7, 5), (80, 60), (0, 5, 49, 39)),
    ],
)
def test_box_of_a_drag(start: tuple, end: tuple, expected: tuple):
    assert box_of_drag(start, end, (40, 50)) == expected


def drag(drawn: BoxInput, start: tuple[int, int], end: tuple[int, int]) -> None:
    """Drag the mouse from one place of the screen to another, in its pixels."""
    canvas = drawn._canvas
    events = (("button_press_event", start), ("motion_notify_event", end), ("button_release_event", end))
    for name, place in events:
        event = backend_bases.MouseEvent(name, canvas, *place, button=1)
        canvas.callbacks.process(name, event)


def on_screen(drawn: BoxInput, x: float, y: float) -> tuple[int, int]:
    """Return the pixel of the screen at the middle of a pixel of the whole picture; the screen's y axis points up."""
    drawn._canvas.draw()  # the layout is made when the figure is drawn
    height, width = drawn._image.shape[:2]
    frame = drawn._axes.get_window_extent()
    return round(frame.x0 + frame.width * (x + 0.5) / width), round(frame.y1 - frame.height * (y + 0.5) / height)


@pytest.mark.parametrize("size", [(40, 50), (333, 517), (700, 180), (3000, 4000)])
def test_the_box_is_exact_at_any_scale(size: tuple[int, int]):
    height, width = size
    drawn = BoxInput(picture(height, width), (1, 1, 9, 9), interactive=True)
    assert drawn.is_interactive and drawn.box == (1, 1, 9, 9)
    box = width // 5, height // 7, width - 4, height - 3
    drag(drawn, on_screen(drawn, box[0], box[1]), on_screen(drawn, box[2], box[3]))
    scale = drawn._axes.get_window_extent().width / width
    assert drawn.box == pytest.approx(box, abs=0 if scale > 1 else 0.5 / scale + 0.5)  # half a pixel of the screen
    assert all(isinstance(value, int) for value in drawn.box)
    assert str(drawn.box) in drawn._axes.get_title()


def test_the_box_is_exact_after_zooming():
    drawn = BoxInput(picture(3000, 4000), (100, 100, 900, 900), interactive=True)
    drawn._axes.set_xlim(1999.5, 2099.5)  # what the zoom of the toolbar does: 100 x 75 pixels are seen
    drawn._axes.set_ylim(1074.5, 999.5)
    drawn._canvas.draw()
    frame = drawn._axes.get_window_extent()

    def place(x: int, y: int) -> tuple[int, int]:
        return round(frame.x0 + frame.width * (x - 1999.5) / 100), round(frame.y1 - frame.height * (y - 999.5) / 75)

    drag(drawn, place(2010, 1005), place(2077, 1061))
    assert drawn.box == (2010, 1005, 2077, 1061)


def test_a_drawn_box_can_be_resized():
    drawn = BoxInput(picture(80, 100), (20, 30, 60, 70), interactive=True)
    drag(drawn, on_screen(drawn, 60, 70), on_screen(drawn, 75, 50))  # its corner at the bottom right
    assert drawn.box == (20, 30, 75, 50)


def test_a_click_keeps_the_box():
    drawn = BoxInput(picture(80, 100), (20, 30, 60, 70), interactive=True)
    for place in ((5, 5), (40, 50)):
        drag(drawn, on_screen(drawn, *place), on_screen(drawn, *place))
        assert drawn.box == (20, 30, 60, 70)
    drag(drawn, on_screen(drawn, 80, 70), on_screen(drawn, 90, 75))
    assert drawn.box == (80, 70, 90, 75)


# --- without widgets ---


def test_outside_of_notebooks_there_are_no_widgets():
    assert not widgets_work()
    drawn = BoxInput(picture(40, 50), [3.2, 4, 30, 35.6])
    assert not drawn.is_interactive and drawn.box == (3, 4, 30, 36)
    assert drawn._repr_mimebundle_().keys() == {"text/plain", "image/jpeg"}


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_widgets_need_ipympl_and_somebody_at_the_front_end(
    answers: bool, installed: bool, monkeypatch: pytest.MonkeyPatch
):
    class IPythonKernel:
        initialized = staticmethod(lambda: True)
        instance = staticmethod(lambda: SimpleNamespace(_allow_stdin=answers))

    monkeypatch.setitem(sys.modules, "ipykernel.ipkernel", SimpleNamespace(IPythonKernel=IPythonKernel))
    if not installed:
        monkeypatch.setitem(sys.modules, "ipympl", None)
    assert widgets_work() is (answers and installed)
    assert BoxInput(picture(40, 50), (1, 2, 30, 35)).is_interactive is (answers and installed)


@pytest.mark.parametrize("module", ["ipympl.backend_nbagg", "matplotlib.widgets"])
def test_packages_that_cannot_be_imported_leave_the_coordinates(module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, module, None)
    drawn = BoxInput(picture(40, 50), (1, 2, 30, 35), interactive=True)
    assert not drawn.is_interactive and drawn.box == (1, 2, 30, 35)
    assert WIDGET not in drawn._repr_mimebundle_()


@pytest.mark.parametrize("ask", [False, True])
def test_a_kernel_shows_a_widget_if_somebody_can_answer(ask: bool):
    manager = pytest.importorskip("jupyter_client.manager")
    code = "import numpy as np\nfrom dis_sam.notebook import BoxInput\n"
    code += "BoxInput(np.zeros((40, 50, 3), np.uint8), (1, 2, 30, 35))"
    shown: list[dict] = []

    def collect(message: dict) -> None:
        if message["msg_type"] in ("execute_result", "display_data", "error"):
            shown.append(message["content"])

    with manager.run_kernel(kernel_name="python3") as client:
        reply = client.execute_interactive(code, allow_stdin=ask, output_hook=collect, timeout=120)
    assert reply["content"]["status"] == "ok"
    (content,) = shown
    assert content["data"]["text/plain"] == "box = (1, 2, 30, 35)"
    assert "image/jpeg" in content["data"] and (WIDGET in content["data"]) is ask


@pytest.mark.parametrize("interactive", [False, True])
def test_the_picture_for_viewers_without_widgets_has_the_box(interactive: bool):
    drawn = BoxInput(np.zeros((200, 300, 3), np.uint8), (50, 60, 250, 160), interactive=interactive)
    bundle = drawn._repr_mimebundle_()
    assert bundle["text/plain"] == "box = (50, 60, 250, 160)"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(bundle["image/jpeg"]))))
    assert shown.shape == (200, 300, 3)
    rows, columns = np.nonzero(shown[..., 0] > 128)
    assert np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - (50, 60, 250, 160)).max() <= 2
    assert shown[70:150, 60:240].max() < 30
    assert (WIDGET in bundle) is interactive
    if interactive:
        assert bundle[WIDGET]["model_id"]


@pytest.mark.parametrize("box", [(5, 5, 5, 5), (60, 1, 70, 9), (9, 9, 1, 1)])
def test_wrong_boxes_are_named(box: tuple):
    with pytest.raises(BoxError):
        BoxInput(picture(40, 50), box)


# --- pictures ---


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_outline(dtype: type):
    gray = np.zeros((40, 50), dtype)
    gray[10:20, 10:20] = 255 if dtype is np.uint8 else 1
    drawn = outline(gray, (5, 6, 30, 35))
    assert drawn.shape == (40, 50, 3) and drawn.dtype == np.uint8
    for y, x in ((6, 5), (6, 30), (35, 5), (35, 30), (20, 5), (35, 17)):
        assert tuple(drawn[y, x]) == YELLOW
    assert (drawn[12:18, 12:18] == 255).all() and not drawn[22:30, 22:28].any()
    image = picture(40, 50)
    before = image.copy()
    assert (outline(image, (5, 6, 30, 35)) != image).any() and (image == before).all()


def test_on_checker():
    rgba = np.zeros((48, 96, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 48:, 3] = 255
    shown = on_checker(rgba, squares=8)  # of 12 pixels
    assert (shown[:, 48:] == (200, 0, 0)).all()
    assert (shown[:12, :12] == 255).all() and (shown[12:24, 12:24] == 255).all()
    assert (shown[:12, 12:24] == shown[0, 12]).all() and len(set(shown[0, 12].tolist())) == 1 and shown[0, 12, 0] < 255
    rgba[..., 3] = 51
    assert on_checker(rgba, squares=8)[0, 0].tolist() == [244, 204, 204]  # 0.2 * (200, 0, 0) + 0.8 * 255


def test_edge_window_holds_most_of_the_edge():
    alpha = np.zeros((200, 300), np.float32)
    alpha[20:60, 20:280] = 1  # long, straight edges
    alpha[120:180:4, 200:240] = 1  # a comb, whose edges are many
    rows, columns = edge_window(alpha)
    assert rows.stop - rows.start == 40 and columns.stop - columns.start == 60
    assert rows.start >= 110 and rows.stop <= 190 and columns.start <= 200 and columns.stop >= 240
    assert edge_window(np.zeros((7, 3), np.float32)) == (slice(0, 1), slice(0, 1))
    assert alpha[edge_window(alpha, share=1)].shape == (200, 300)


def test_side_by_side():
    image, alpha = picture(40, 80), np.linspace(0, 1, 3200, dtype=np.float32).reshape(40, 80)
    rows = {
        "ring": {"photograph": image, "alpha": alpha},
        "cup": {"photograph": image[:, :40], "alpha": alpha[:, :40] > 0.5},
    }
    figure = side_by_side(rows)
    assert [axes.get_title() for axes in figure.axes] == ["photograph", "alpha", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["ring", "", "cup", ""]
    drawn = [axes.images[0].get_array() for axes in figure.axes]
    assert (drawn[0] == image).all() and (drawn[2] == image[:, :40]).all()
    assert (drawn[1] == np.rint(alpha * 255)[..., None]).all()  # not stretched to what the picture holds
    assert np.unique(drawn[3]).tolist() == [0, 255]
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert np.asarray(Image.open(buffer).convert("RGB")).std() > 10


@pytest.mark.parametrize("rows", [{}, {"a": {}}, {"a": {"x": picture(4, 4)}, "b": {}}])
def test_rows_must_match(rows: dict):
    with pytest.raises(ValueError, match="same number of pictures"):
        side_by_side(rows)
