"""The examples of docs/export.md: onnxruntime alone, in Python and in a browser.

The page needs chromium, and onnxruntime-web's files: run `npm install onnxruntime-web` in docs/examples/browser.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from IS_Net.exporting.formats import write_export
from IS_Net.predictor import DISPredictor
from tests.thin_networks import lively

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
RUNTIME = EXAMPLES / "browser" / "node_modules" / "onnxruntime-web"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SIZE = (96, 128)
BOX = (30, 20, 89, 99)
PATIENCE = 60_000
"""Milliseconds; the machine may be busy."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "dis_sam.onnx"
    write_export(lively(4), path, "onnx", SIZE, None, "float32", {})
    return path


def picture() -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    return np.kron(image, np.ones((10, 10, 1), np.uint8))  # (120, 150, 3)


def check(content: bytes | Path) -> None:
    """Compare a cut-out with what the predictor computes in two passes."""
    found = np.asarray(Image.open(io.BytesIO(content) if isinstance(content, bytes) else content))
    alpha = DISPredictor(lively(4), "cpu", "full", SIZE).predict(picture(), box=BOX, detail="off")
    assert found.shape == (120, 150, 4) and np.ptp(alpha) > 0.3
    assert np.abs(found[..., 3] - 255 * alpha).max() < 4  # the mask between both passes has another size
    solid = found[..., 3] > 60  # a browser's canvas multiplies colors by alpha: where there is little, they get lost
    assert solid.any() and np.abs(found[..., :3][solid].astype(int) - picture()[solid]).max() <= 4


def test_python_with_onnxruntime_alone(model: Path, tmp_path: Path):
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    arguments = [str(model), "photo.png", "cutout.png", *map(str, BOX)]
    code = f"import runpy, sys; sys.argv[1:] = {arguments!r}; runpy.run_path({str(EXAMPLES / 'onnx_python.py')!r})\n"
    code += "assert not {'torch', 'IS_Net', 'dis_sam'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
    check(tmp_path / "cutout.png")


class Files(SimpleHTTPRequestHandler):
    """Serves static files, and says nothing."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(model: Path, tmp_path: Path) -> Iterator[str]:
    """Serve the page with the model, as any web server does; yield its address."""
    folder = tmp_path / "page"
    folder.mkdir()
    for name in ("index.html", "cut.js"):
        shutil.copy2(EXAMPLES / "browser" / name, folder)
    shutil.copy2(model, folder)
    (folder / "node_modules").symlink_to(RUNTIME.parent)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.skipif(not RUNTIME.is_dir(), reason="needs onnxruntime-web in docs/examples/browser/node_modules")
def test_the_page_cuts_a_picture_out_without_a_server(address: str):
    playwright = pytest.importorskip("playwright.sync_api")
    content = io.BytesIO()
    Image.fromarray(picture()).save(content, "png")
    problems: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: problems.append(request.method) if request.method != "GET" else None,
        )
        page.goto(address)
        playwright.expect(page.locator("#status")).to_have_text("Choose a picture.", timeout=PATIENCE)
        page.set_input_files("#file", {"name": "p.png", "mimeType": "image/png", "buffer": content.getvalue()})
        playwright.expect(page.locator("#cut")).to_be_enabled()
        area = page.locator("#photo").bounding_box()
        border = 1  # of the canvas, which getBoundingClientRect includes
        scale = (area["width"] - 2 * border) / 150

        def place(x: float, y: float) -> tuple[float, float]:
            return area["x"] + border + (x + 0.5) * scale, area["y"] + border + (y + 0.5) * scale

        page.mouse.move(*place(*BOX[:2]))
        page.mouse.down()
        page.mouse.move(*place(*BOX[2:]), steps=4)
        page.mouse.up()
        page.click("#cut")
        playwright.expect(page.locator("#status")).to_contain_text("Done in", timeout=PATIENCE)
        with page.expect_download() as waiting:
            page.click("#save")
        check(Path(waiting.value.path()).read_bytes())
        browser.close()
    assert not problems
