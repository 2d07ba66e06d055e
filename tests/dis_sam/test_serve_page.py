"""The local page in a real browser: Debian's chromium, driven by Playwright. Skipped where one of them is missing."""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from test_serve import FakeModel, serving

from IS_Net.images import decode_mask, encode_image, encode_png

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

PATIENCE = 30_000
"""Milliseconds; the machine may be busy."""
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 3, "has_touch": True, "is_mobile": True}


def draw_photograph(width: int, height: int) -> np.ndarray:
    """Return a picture of smooth colors with some shapes, (height, width, 3) uint8."""
    ramps = np.linspace(0, 200, width)[None, :, None], np.linspace(200, 30, height)[:, None, None]
    image = np.broadcast_to((ramps[0] + ramps[1]) / 2, (height, width, 3)).astype(np.uint8)
    image = np.ascontiguousarray(image)
    cv2.circle(image, (width // 2, height // 2), min(width, height) // 4, (210, 90, 40), -1)
    cv2.rectangle(image, (width // 10, height // 10), (width // 4, height // 3), (40, 120, 200), -1)
    return image


PHOTO = encode_image(draw_photograph(640, 480), ".png")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(save_to=tmp_path_factory.mktemp("pairs")) as found:
        yield found


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    FakeModel.calls.clear()
    FakeModel.pause = None
    yield
    if FakeModel.pause is not None:
        FakeModel.pause.set()


class Tab:
    """A page in the browser, and what a user does with it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.problems: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._on_request)

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "blob:")):
            self.problems.append(f"request to {request.url}")

    def open(self, content: bytes = PHOTO, name: str = "photo.png") -> None:
        count = self.page.locator("#strip .thumb").count()
        self.page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": content})
        playwright.expect(self.page.locator("#strip .thumb")).to_have_count(count + 1, timeout=PATIENCE)
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is being computed and everything is drawn."""
        self.page.wait_for_selector("#busy", state="hidden")
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def on_screen(self, x: float, y: float) -> tuple[float, float]:
        """Return where the middle of a pixel of the photograph is on the screen."""
        scale, left, top, canvas_left, canvas_top = self.page.evaluate(
            "() => { const canvas = document.getElementById('canvas'), area = canvas.getBoundingClientRect();"
            "return [canvas.dataset.scale, canvas.dataset.left, canvas.dataset.top, area.left, area.top].map(Number); }"
        )
        return canvas_left + left + (x + 0.5) * scale, canvas_top + top + (y + 0.5) * scale

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.on_screen(*start))
        mouse.down()
        mouse.move(*self.on_screen((start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
        mouse.move(*self.on_screen(*end))
        mouse.up()

    def draw_box(self, box: tuple[int, int, int, int]) -> None:
        count = self.objects
        self.drag(box[:2], box[2:])
        playwright.expect(self.page.locator("#objects li")).to_have_count(count + 1)
        self.settle()

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.on_screen(x, y))
        self.settle()

    def tool(self, name: str) -> None:
        self.page.locator(f"#tools input[value={name}]").check(force=True)

    def view(self, name: str) -> None:
        self.page.locator(f"#views input[value={name}]").check(force=True)
        self.settle()

    @property
    def objects(self) -> int:
        return self.page.locator("#objects li").count()

    @property
    def box(self) -> list[int]:
        """The selected box, as the panel shows it."""
        return [int(field.input_value()) for field in self.page.locator("#box-fields input").all()]

    def download(self, kind: str = "rgba", **settings: bool) -> bytes:
        self.page.click("#download")
        self.page.locator(f"input[name=as][value={kind}]").check()
        for name, checked in settings.items():
            self.page.locator(f"#{name}").set_checked(checked)
        with self.page.expect_download() as info:
            self.page.click("#download-now")
        self.name = info.value.suggested_filename
        return Path(info.value.path()).read_bytes()

    def pixel(self, x: float, y: float) -> list[int]:
        """Return the color of the canvas, RGBA, over a pixel of the photograph."""
        x, y = self.on_screen(x, y)
        return self.page.evaluate(
            "([x, y]) => { const canvas = document.getElementById('canvas'), area = canvas.getBoundingClientRect();"
            "const dpr = canvas.width / area.width, context = canvas.getContext('2d');"
            "return [...context.getImageData((x - area.left) * dpr, (y - area.top) * dpr, 1, 1).data]; }",
            [x, y],
        )


@contextmanager
def tab(browser: Any, address: str, options: dict[str, Any] | None = None, path: str = "/") -> Iterator[Tab]:
    context = browser.new_context(**(options or DESKTOP), accept_downloads=True)
    opened = Tab(context.new_page(), address)
    opened.page.goto(address + path)
    try:
        yield opened
        assert opened.problems == []
    finally:
        context.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Tab]:
    with tab(browser, address) as opened:
        opened.page.wait_for_selector("#examples li")
        yield opened


def cut(address: str, picture: bytes, name: str, **fields: Any) -> bytes:
    answer = httpx.post(f"{address}/api/cut", data=fields, files={"picture": (name, picture)}, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content


def text_of(box: list[int] | tuple[int, ...]) -> str:
    return ",".join(map(str, box))


# --- boxes ---


def test_a_box_drawn_with_the_mouse_gives_what_the_api_gives(page: Tab):
    page.open()
    page.draw_box((150, 60, 500, 400))
    assert page.box == [150, 60, 500, 400]
    assert page.download() == cut(page.address, PHOTO, "photo.png", box="150,60,500,400")
    assert page.name == "photo.cutout.png"
    assert "90% sure" in page.page.inner_text("#objects li")
    alpha = page.download("alpha", crop=True, bits=True)
    assert alpha == cut(page.address, PHOTO, "photo.png", box="150,60,500,400", **{"as": "alpha"}, bits=16, crop=True)
    hard = page.download("mask", crop=False, bits=False, hard=True)
    assert hard == cut(page.address, PHOTO, "photo.png", box="150,60,500,400", **{"as": "mask"}, threshold=0.5)


def test_boxes_are_resized_moved_typed_and_removed(page: Tab):
    page.open()
    page.draw_box((150, 60, 500, 400))
    page.drag((500, 400), (560, 420))  # the lower right handle
    assert page.box == [150, 60, 560, 420]
    page.drag((250, 60), (260, 80))  # a side moves the box
    assert page.box == [160, 80, 570, 440]
    page.drag((300, 80), (900, 900))  # not beyond the picture
    assert page.box == [229, 119, 639, 479]
    field = page.page.locator("#box-fields input").first
    field.fill("7")
    field.press("Enter")
    page.settle()
    assert FakeModel.calls[-1]["box"] == (7, 119, 639, 479)
    field.fill("9999")
    field.press("Enter")
    playwright.expect(page.page.locator(".toast.problem")).to_contain_text("640 by 480")
    assert page.box == [7, 119, 639, 479]
    page.page.click("#objects .icon-button")
    assert page.objects == 0


def test_several_objects(page: Tab):
    page.open()
    page.draw_box((20, 20, 200, 200))
    page.draw_box((300, 100, 600, 450))
    page.draw_box((60, 60, 150, 150))  # inside the first box
    assert page.objects == 3
    page.click(450, 300)
    assert page.box == [300, 100, 600, 450]
    page.click(100, 100)
    assert page.box == [60, 60, 150, 150]  # the smaller one
    page.click(250, 20)
    assert page.page.locator("#objects .active").count() == 0
    boxes = ["20,20,200,200", "300,100,600,450", "60,60,150,150"]
    assert page.download() == cut(page.address, PHOTO, "photo.png", box=boxes)
    with zipfile.ZipFile(io.BytesIO(page.download("zip"))) as archive:
        assert archive.read("photo_3.alpha.png") == cut(page.address, PHOTO, "p.png", box=boxes[2], **{"as": "alpha"})


def test_the_main_object_is_found_without_a_prompt(page: Tab):
    page.open()
    page.page.click("#salient")
    page.settle()
    assert FakeModel.calls[-1]["box"] is None
    assert page.download() == cut(page.address, PHOTO, "photo.png")
    page.page.click("#salient")
    assert page.objects == 1


def test_a_photograph_with_an_exif_orientation(page: Tab):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(draw_photograph(640, 480)).save(file, "JPEG", exif=exif, quality=95)
    page.open(file.getvalue(), "phone.jpg")
    assert page.page.get_attribute("#canvas", "aria-label") == "phone, 480 by 640 pixels"
    upright = np.rot90(draw_photograph(640, 480), -1)
    for x, y in ((400, 100), (240, 320), (60, 600)):
        assert np.abs(np.array(page.pixel(x, y)[:3]) - upright[y, x]).max() < 12
    page.draw_box((100, 200, 400, 500))
    data = page.download()
    assert data == cut(page.address, file.getvalue(), "phone.jpg", box="100,200,400,500")
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (480, 640)


def test_a_photograph_of_24_megapixels(page: Tab):
    picture = encode_image(draw_photograph(6000, 4000), ".jpg", 90)
    page.open(picture, "large.jpg")
    page.draw_box((1240, 1020, 4330, 3010))
    for x, y, corner, exact in ((0, 1, -0.5, (1243, 1017)), (2, 3, 0.5, (4321, 2999))):
        # look so closely at a corner of the box that single pixels are seen, and drag it to one of them
        page.page.mouse.move(*page.on_screen(page.box[x], page.box[y]))
        while float(page.page.get_attribute("#canvas", "data-scale")) < 16:
            page.page.mouse.wheel(0, -400)
            page.settle()
        page.drag((page.box[x] + corner, page.box[y] + corner), exact)
        page.settle()
        page.page.click("#zoom-fit")
        page.settle()
    assert page.box == [1243, 1017, 4321, 2999]
    assert FakeModel.calls[-1]["box"] == (1243, 1017, 4321, 2999)
    assert page.download() == cut(page.address, picture, "large.jpg", box="1243,1017,4321,2999")


# --- views and pictures ---


def test_views(page: Tab):
    page.open()
    page.draw_box((200, 100, 440, 380))
    inside, outside = (320, 240), (600, 440)
    photo = draw_photograph(640, 480)
    near = lambda at, color: np.abs(np.array(page.pixel(*at)[:3]) - color).max() < 6  # noqa: E731
    assert near(inside, photo[240, 320])
    assert page.pixel(*outside)[0] < photo[440, 600][0] * 0.6  # darkened
    page.view("cutout")
    assert near(inside, photo[240, 320])
    page.page.locator("#backgrounds input[value=color]").check(force=True)
    page.page.fill("#color", "#ff00ff")
    page.settle()
    assert near(outside, (255, 0, 255))
    assert page.download("background") == cut(page.address, PHOTO, "p.png", box="200,100,440,380", **{"as": "#ff00ff"})
    page.page.set_input_files(
        "#background-file",
        {"name": "b.png", "mimeType": "", "buffer": encode_image(np.full((50, 50, 3), 9, np.uint8), ".png")},
    )
    playwright.expect(page.page.locator("#backgrounds input[value=picture]")).to_be_checked()
    page.settle()
    assert near(outside, (9, 9, 9))
    with Image.open(io.BytesIO(page.download("background"))) as image:
        assert image.size == (640, 480)
        assert image.convert("RGB").getpixel(outside) == (9, 9, 9)
        assert np.abs(np.array(image.convert("RGB").getpixel(inside)) - photo[240, 320]).max() < 3
    page.view("alpha")
    assert near(inside, (255, 255, 255))
    assert near(outside, (0, 0, 0))
    page.view("compare")
    divider = page.page.locator("#divider")
    divider.press("Home")  # all of it is after
    page.settle()
    assert near((250, 440), (9, 9, 9))
    divider.press("End")
    page.settle()
    assert near((250, 440), photo[440, 250])
    assert divider.get_attribute("aria-valuenow") == "100"


def test_pictures_are_kept_side_by_side(page: Tab):
    page.open()
    page.draw_box((150, 60, 500, 400))
    other = encode_image(draw_photograph(300, 400), ".jpg")
    page.open(other, "other.jpg")
    assert page.objects == 0
    page.draw_box((50, 50, 200, 300))
    page.page.click("#strip .thumb >> nth=0")
    playwright.expect(page.page.locator("#box-fields input").first).to_have_value("150")
    page.settle()
    with zipfile.ZipFile(io.BytesIO(page.download("alpha", all=True))) as archive:
        assert archive.read("photo.alpha.png") == cut(
            page.address, PHOTO, "p.png", box="150,60,500,400", **{"as": "alpha"}
        )
        assert archive.read("other.alpha.png") == cut(
            page.address, other, "o.jpg", box="50,50,200,300", **{"as": "alpha"}
        )
    page.page.hover("#strip li >> nth=0")
    page.page.click("#strip .remove >> nth=0")
    playwright.expect(page.page.locator("#strip .thumb")).to_have_count(1)
    assert page.box == [50, 50, 200, 300]


def test_formats_that_the_browser_does_not_know(page: Tab):
    file = io.BytesIO()
    photo = draw_photograph(320, 240)
    Image.fromarray(photo).save(file, "TIFF")
    page.open(file.getvalue(), "scan.tif")
    assert np.abs(np.array(page.pixel(160, 120)[:3]) - photo[120, 160]).max() < 12
    page.draw_box((50, 50, 200, 200))
    assert page.download() == cut(page.address, file.getvalue(), "scan.tif", box="50,50,200,200")


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_files_are_dropped_and_pasted(page: Tab, way: str):
    page.page.evaluate(
        "([way, bytes]) => { const transfer = new DataTransfer();"
        "transfer.items.add(new File([new Uint8Array(bytes)], 'dropped.png', {type: 'image/png'}));"
        "document.querySelector('main').dispatchEvent(way === 'drop'"
        "? new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true})"
        ": new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true})); }",
        [way, list(PHOTO)],
    )
    playwright.expect(page.page.locator("#strip .thumb")).to_have_count(1)
    assert "dropped" in page.page.title()


def test_bad_files_are_named_and_the_page_goes_on(page: Tab):
    for content, name in (
        (b"hello", "notes.jpg"),
        (encode_image(draw_photograph(300, 200), ".jpg")[:2000], "half.jpg"),
    ):
        page.page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": content})
        playwright.expect(page.page.locator(".toast.problem").last).to_contain_text(name)
    page.open()
    page.draw_box((150, 60, 500, 400))


def test_too_large_files_are_not_sent(browser: Any):
    with serving(max_mb=0.002) as address, tab(browser, address) as page:
        page.page.wait_for_selector("#examples li")
        page.page.set_input_files("#file", {"name": "big.png", "mimeType": "", "buffer": bytes(3000)})
        playwright.expect(page.page.locator(".toast.problem")).to_contain_text("at most 0.002 MB")


# --- masks and points ---


def test_points(page: Tab):
    page.open()
    page.tool("exclude")
    page.click(100, 100)
    assert "box or an include point" in page.page.inner_text("#hint")
    page.tool("include")
    page.click(300, 200)
    page.click(350, 260)
    page.tool("exclude")
    page.click(500, 400)
    np.testing.assert_array_equal(FakeModel.calls[-1]["points"], [[300, 200], [350, 260], [500, 400]])
    np.testing.assert_array_equal(FakeModel.calls[-1]["labels"], [1, 1, 0])
    assert "3 points" in page.page.inner_text("#objects li")
    page.click(500, 400)  # a click on a point removes it
    assert "2 points" in page.page.inner_text("#objects li")
    page.tool("box")
    page.drag((200, 100), (450, 350))
    page.settle()
    assert FakeModel.calls[-1]["box"] == (200, 100, 450, 350)
    assert len(FakeModel.calls[-1]["points"]) == 2
    assert page.objects == 1


def test_the_brush_edits_the_coarse_mask(page: Tab):
    page.open()
    page.draw_box((200, 100, 400, 300))
    page.tool("paint")
    page.settle()
    playwright.expect(page.page.locator("#brush-value")).to_have_text("26 px")
    page.page.keyboard.press("]")
    playwright.expect(page.page.locator("#brush-value")).to_have_text("32 px")
    page.page.keyboard.press("[")
    page.settle()
    page.page.wait_for_timeout(300)  # the coarse mask comes from the server
    page.drag((300, 200), (500, 200))
    page.settle()
    mask = FakeModel.calls[-1]["mask"]
    assert mask.shape == (480, 640)
    expected = np.zeros((480, 640), np.uint8)
    expected[100:301, 200:401] = 255
    diameter = int(page.page.input_value("#brush"))
    cv2.line(expected, (300, 200), (500, 200), 255, diameter)
    assert (mask != expected).sum() < 60
    page.tool("erase")
    page.drag((210, 110), (210, 290))
    page.settle()
    erased = FakeModel.calls[-1]["mask"]
    assert erased[200, 210] == 0
    assert erased[200, 490] == 255
    page.page.click("#undo")
    page.settle()
    page.page.click("#reset-mask")
    page.settle()
    assert page.box == [200, 100, 400, 300]
    assert page.download() == cut(page.address, PHOTO, "p.png", box="200,100,400,300")


def test_a_mask_is_painted_without_a_box(page: Tab):
    page.open()
    page.tool("paint")
    page.drag((100, 100), (300, 100))
    page.settle()
    mask = FakeModel.calls[-1]["mask"]
    assert page.objects == 1
    assert mask[100, 200] == 255
    assert mask[300, 200] == 0


@pytest.mark.parametrize("shape", ["gray", "reduced", "alpha"])
def test_a_mask_is_loaded(page: Tab, shape: str):
    mask = np.zeros((480, 640), np.uint8)
    cv2.circle(mask, (320, 240), 100, 255, -1)
    data = encode_png(mask)
    if shape == "reduced":
        data = encode_png(np.ascontiguousarray(mask[::2, ::2]))
    elif shape == "alpha":
        data = encode_png(np.dstack([np.zeros((480, 640, 3), np.uint8), mask]))
    page.open()
    page.page.set_input_files("#mask-file", {"name": "mask.png", "mimeType": "", "buffer": data})
    playwright.expect(page.page.locator("#objects li")).to_have_count(1)
    page.settle()
    assert (FakeModel.calls[-1]["mask"] != mask).sum() < (700 if shape == "reduced" else 1)
    page.page.set_input_files("#mask-file", {"name": "m.png", "mimeType": "", "buffer": encode_png(mask[:100])})
    playwright.expect(page.page.locator(".toast.problem")).to_contain_text("640 by 100")


def test_training_pairs_are_saved(browser: Any, tmp_path: Path):
    with serving(save_to=tmp_path) as address, tab(browser, address) as page:
        page.open()
        page.draw_box((150, 60, 500, 400))
        page.page.click("#save-pair")
        playwright.expect(page.page.locator(".toast")).to_contain_text("Saved as photo")
        alpha = cut(address, PHOTO, "photo.png", box="150,60,500,400", **{"as": "alpha"})
        np.testing.assert_array_equal(decode_mask((tmp_path / "gt" / "photo.png").read_bytes()), decode_mask(alpha))
    with serving() as address, tab(browser, address) as page:
        page.open()
        assert not page.page.is_visible("#save-pair")


# --- history and keys ---


def test_undo_and_redo(page: Tab):
    page.open()
    assert page.page.is_disabled("#undo")
    page.draw_box((150, 60, 500, 400))
    page.drag((500, 400), (560, 420))
    page.draw_box((20, 20, 100, 100))
    calls = len(FakeModel.calls)
    page.page.keyboard.press("Control+z")
    page.page.keyboard.press("Control+z")
    page.settle()
    assert page.objects == 1
    assert page.box == [150, 60, 500, 400]
    page.page.keyboard.press("Control+Shift+z")
    assert page.box == [150, 60, 560, 420]
    page.page.keyboard.press("Control+y")
    assert page.objects == 2
    page.page.keyboard.press("Delete")
    assert page.objects == 1
    page.page.click("#undo")
    assert page.objects == 2
    page.settle()
    assert len(FakeModel.calls) == calls  # nothing was computed again
    boxes = ["150,60,560,420", "20,20,100,100"]
    assert page.download() == cut(page.address, PHOTO, "p.png", box=boxes)


def test_everything_by_keyboard(page: Tab):
    keys = page.page.keyboard
    page.page.locator("#examples button").first.focus()
    keys.press("Enter")
    playwright.expect(page.page.locator("#strip .thumb")).to_have_count(1)
    page.settle()
    for _ in range(30):
        if page.page.evaluate("() => document.activeElement.id") == "canvas":
            break
        keys.press("Tab")
    assert page.page.evaluate("() => document.activeElement.id") == "canvas"
    for _ in range(6):
        keys.press("ArrowLeft")
        keys.press("ArrowUp")
    keys.press("Enter")
    for _ in range(12):
        keys.press("ArrowRight")
        keys.press("ArrowDown")
    keys.press("Shift+ArrowRight")
    keys.press("Enter")
    playwright.expect(page.page.locator("#objects li")).to_have_count(1)
    page.settle()
    x0, y0, x1, y1 = page.box
    assert (x1 - x0 - 1, y1 - y0) == (y1 - y0, x1 - x0 - 1)
    playwright.expect(page.page.locator("#status")).to_contain_text("cut out")
    keys.press("p")
    page.settle()
    page.page.wait_for_timeout(300)
    for key in ("ArrowLeft", "Enter", "ArrowLeft", "ArrowLeft", "Enter"):
        keys.press(key)
    page.settle()
    assert FakeModel.calls[-1]["mask"] is not None
    before = page.on_screen(0, 0)
    keys.down("Space")
    keys.press("ArrowRight")
    keys.up("Space")
    page.settle()
    assert page.on_screen(0, 0)[0] < before[0]
    keys.press("d")
    with page.page.expect_download():
        for _ in range(20):
            keys.press("Tab")
            if page.page.evaluate("() => document.activeElement.id") == "download-now":
                break
        keys.press("Enter")


def test_space_and_dragging_move_the_picture(page: Tab):
    page.open()
    page.page.click("#tools label >> nth=0")
    page.page.click("#zoom-in")  # has the focus now, but the space is meant for the picture
    page.settle()
    before = page.on_screen(0, 0)
    page.page.mouse.move(640, 400)
    page.page.keyboard.down("Space")
    page.page.mouse.down()
    page.page.mouse.move(700, 430)
    page.page.mouse.up()
    page.page.keyboard.up("Space")
    page.settle()
    after = page.on_screen(0, 0)
    assert (after[0] - before[0], after[1] - before[1]) == pytest.approx((60, 30), abs=0.01)
    assert page.objects == 0


def test_single_letters_can_be_turned_off(page: Tab):
    page.open()
    page.page.keyboard.press("?")
    page.page.uncheck("#letters")
    page.page.click("#help-dialog button[type=submit]")
    page.page.keyboard.press("e")
    assert page.page.is_checked("#tools input[value=box]")


# --- phones ---


class Fingers:
    """Fingers on the screen; Playwright itself only taps."""

    def __init__(self, page: Tab) -> None:
        self.session = page.page.context.new_cdp_session(page.page)

    def __call__(self, kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(points)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})


def test_phone(browser: Any, address: str):
    with tab(browser, address, PHONE) as page:
        page.page.wait_for_selector("#examples li")
        page.open()
        touch = Fingers(page)
        touch("touchStart", page.on_screen(150, 60))
        touch("touchMove", page.on_screen(300, 200))
        touch("touchMove", page.on_screen(500, 400))
        touch("touchEnd")
        playwright.expect(page.page.locator("#objects li")).to_have_count(1)
        page.settle()
        overflow = page.page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0
        outside = page.page.evaluate(
            "() => [...document.querySelectorAll('header button, header label, .tools label, .tools button')]"
            ".filter((e) => e.offsetParent && (({left, right, top, bottom}) =>"
            "left < 0 || top < 0 || right > innerWidth || bottom > innerHeight)(e.getBoundingClientRect()))"
            ".map((e) => e.outerHTML)"
        )
        assert outside == []
        small = page.page.evaluate(
            "() => [...document.querySelectorAll('header button, .tools label, .tools button, .zoom button')]"
            ".filter((e) => e.offsetParent && Math.min(e.offsetWidth, e.offsetHeight) < 36).map((e) => e.outerHTML)"
        )
        assert small == []
        page.page.tap("#options")
        assert page.page.is_visible("#close-panel")
        assert page.box == pytest.approx([150, 60, 500, 400], abs=1)
        box = page.box
        page.page.tap("#close-panel")
        assert not page.page.is_visible("#panel")
        scale = float(page.page.get_attribute("#canvas", "data-scale"))
        touch("touchStart", (150, 400), (250, 400))
        touch("touchMove", (120, 400), (280, 400))
        touch("touchMove", (100, 400), (300, 400))
        touch("touchEnd")
        page.settle()
        assert float(page.page.get_attribute("#canvas", "data-scale")) == pytest.approx(2 * scale, rel=0.02)
        assert page.objects == 1  # two fingers draw nothing
        assert page.download() == cut(address, PHOTO, "photo.png", box=text_of(box))


# --- several users ---


def test_two_tabs_at_once(browser: Any, address: str):
    with tab(browser, address) as one, tab(browser, address) as two:
        one.open()
        two.open(encode_image(draw_photograph(300, 400), ".png"), "other.png")
        FakeModel.pause = threading.Event()
        one.drag((150, 60), (500, 400))
        two.drag((50, 50), (200, 300))
        playwright.expect(one.page.locator("#objects small")).to_have_text("Working...")
        playwright.expect(two.page.locator("#objects small")).to_have_text("Working...")
        FakeModel.pause.set()
        one.settle()
        two.settle()
        assert one.download() == cut(address, PHOTO, "p.png", box="150,60,500,400")
        assert one.name == "photo.cutout.png"
        two.download()
        assert two.name == "other.cutout.png"
        assert two.box == [50, 50, 200, 300]


def test_a_closed_tab_cancels_its_work(browser: Any, address: str):
    with tab(browser, address) as one, tab(browser, address) as two:
        one.open()
        two.open()
        FakeModel.pause = threading.Event()
        one.drag((150, 60), (500, 400))
        playwright.expect(one.page.locator("#objects small")).to_have_text("Working...")
        end = time.monotonic() + 10
        while not FakeModel.calls and time.monotonic() < end:
            time.sleep(0.02)
        two.drag((10, 10), (90, 90))
        playwright.expect(two.page.locator("#objects small")).to_have_text("Working...")
        two.page.close()
        time.sleep(0.5)
        FakeModel.pause.set()
        one.settle()
        one.draw_box((20, 20, 100, 100))
        assert [call["box"][0] for call in FakeModel.calls] == [150, 20]


def test_a_download_shows_what_it_saves(page: Tab):
    """It took the place of the page's own request, which then never showed the result."""
    page.open()
    page.draw_box((150, 60, 500, 400))
    page.view("alpha")
    FakeModel.pause = threading.Event()
    for x in (510, 560):  # the second one waits for the first
        page.drag((page.box[2], 400), (x, 400))
        page.page.wait_for_timeout(150)
    page.page.click("#download")
    with page.page.expect_download() as info:
        page.page.click("#download-now")
        page.page.wait_for_timeout(150)
        FakeModel.pause.set()
    saved = Path(info.value.path()).read_bytes()
    assert saved == cut(page.address, PHOTO, "photo.png", box="150,60,560,400")
    page.settle()
    assert page.pixel(540, 200)[0] > 200 and page.pixel(600, 200)[0] < 50


def test_a_changed_box_cancels_the_one_before(page: Tab):
    page.open()
    FakeModel.pause = threading.Event()
    page.drag((150, 60), (500, 400))
    playwright.expect(page.page.locator("#objects small")).to_have_text("Working...")
    for x in (510, 520, 530):
        page.drag((page.box[2], 400), (x, 400))
        page.page.wait_for_timeout(150)
    FakeModel.pause.set()
    page.settle()
    playwright.expect(page.page.locator("#objects small")).to_contain_text("sure")
    assert [call["box"][2] for call in FakeModel.calls] == [500, 530]
    assert page.download() == cut(page.address, PHOTO, "p.png", box="150,60,530,400")


def test_a_fast_model_follows_a_dragged_box(page: Tab):
    page.open()
    page.draw_box((150, 60, 500, 400))
    page.page.mouse.move(*page.on_screen(500.5, 400.5))
    page.page.mouse.down()
    page.page.mouse.move(*page.on_screen(600, 440))
    page.page.wait_for_timeout(400)
    assert FakeModel.calls[-1]["box"] == (150, 60, 600, 440)
    page.page.keyboard.press("Escape")  # the box keeps its size
    page.page.mouse.up()
    page.settle()
    assert page.box == [150, 60, 500, 400]
    assert page.page.is_disabled("#redo")
    assert page.download() == cut(page.address, PHOTO, "p.png", box="150,60,500,400")


def test_a_picture_that_the_server_has_dropped_is_uploaded_again(page: Tab):
    uploads: list[str] = []

    def note(answer: Any) -> None:
        if answer.request.method == "POST" and answer.url.endswith("/api/pictures"):
            uploads.append(answer.json()["id"])

    page.page.on("response", note)
    page.open()
    page.draw_box((150, 60, 500, 400))
    httpx.delete(f"{page.address}/api/pictures/{uploads[0]}")
    assert page.download() == cut(page.address, PHOTO, "p.png", box="150,60,500,400")
    httpx.delete(f"{page.address}/api/pictures/{uploads[1]}")
    page.draw_box((20, 20, 100, 100))
    assert len(uploads) == 3


# --- access ---


def test_the_page_asks_for_the_token(browser: Any):
    token = "a-token-of-some-length"
    with serving(token=token, hosts=None) as address:
        with tab(browser, address) as page:
            page.page.fill("#token", "wrong token")
            page.page.keyboard.press("Enter")
            playwright.expect(page.page.locator("#token-error")).to_be_visible()
            page.page.fill("#token", token)
            page.page.keyboard.press("Enter")
            page.page.wait_for_selector("#examples li")
            page.page.reload()
            page.page.wait_for_selector("#examples li")  # the tab remembers it
            page.open()
            page.draw_box((150, 60, 500, 400))
            page.download()
        with tab(browser, address, path=f"/?token={token}") as page:
            page.page.wait_for_selector("#examples li")
            assert page.page.url == f"{address}/"


def test_the_page_behind_a_prefix(browser: Any):
    with serving(prefix="/tools/cut") as address, tab(browser, address, path="/tools/cut") as page:
        page.page.wait_for_selector("#examples li")
        page.open()
        page.draw_box((150, 60, 500, 400))
        page.download()
        page.page.goto(f"{address}/tools/cut/docs")
        playwright.expect(page.page.locator("article").first).to_contain_text("/api/cut")


def test_points_are_hidden_without_sam(browser: Any):
    with serving(sam="box") as address, tab(browser, address) as page:
        page.open()
        assert not page.page.is_visible("#tools input[value=include] + svg")
        page.page.keyboard.press("i")
        assert page.page.is_checked("#tools input[value=box]")


# --- accessibility ---


def find_axe() -> Path | None:
    """Return axe.min.js, of the npm package axe-core, if it is installed or named by AXE_CORE."""
    named = os.environ.get("AXE_CORE")
    places = [Path(named)] if named else []
    places += [parent / "node_modules" / "axe-core" / "axe.min.js" for parent in Path(__file__).resolve().parents]
    return next((place for place in places if place.is_file()), None)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_axe_finds_no_fault(browser: Any, address: str, device: str, scheme: str):
    axe = find_axe()
    if axe is None:
        pytest.skip("needs axe-core: npm install axe-core, or AXE_CORE=/path/to/axe.min.js")
    options = {**(PHONE if device == "phone" else DESKTOP), "color_scheme": scheme, "bypass_csp": True}

    def check(where: str) -> None:
        page.page.add_script_tag(path=str(axe))
        found = page.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        faults = [(v["id"], v["impact"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"]]
        assert faults == [], where

    with tab(browser, address, options) as page:
        page.page.wait_for_selector("#examples img[src]")
        check("start")
        page.open()
        page.draw_box((150, 60, 500, 400))
        page.draw_box((20, 20, 100, 100))
        check("objects")
        page.view("compare")
        check("compare")
        if device == "phone":
            page.page.tap("#options")
            check("panel")
            page.page.tap("#close-panel")
        page.page.click("#download")
        check("download")
        page.page.keyboard.press("Escape")
        page.page.click("#help")
        check("help")
        page.page.keyboard.press("Escape")
        page.page.set_input_files("#file", {"name": "x.jpg", "mimeType": "", "buffer": b"no picture"})
        page.page.wait_for_selector(".toast")
        check("message")
        page.page.goto(f"{address}/docs")
        page.page.wait_for_selector("article")
        check("docs")


def test_everything_has_a_name(page: Tab):
    page.open()
    page.draw_box((150, 60, 500, 400))
    nameless = page.page.evaluate(
        "() => [...document.querySelectorAll('button, input, canvas[tabindex], [role=slider]')]"
        ".filter((e) => e.offsetParent && !(e.getAttribute('aria-label') || e.labels?.[0]?.textContent.trim()"
        "|| e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
