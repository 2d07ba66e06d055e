"""The server of the local page: its API, its limits, and who may use it."""

from __future__ import annotations

import asyncio
import io
import json
import math
import socket
import threading
import time
import weakref
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from dis_sam.outputs import encode, render
from dis_sam.pipeline import Result
from dis_sam.serve import examples
from dis_sam.serve.command import ServeError, check_access, main
from dis_sam.serve.guard import Guard
from dis_sam.serve.pictures import Decoded, Picture, PictureStore, Prompt, join, safe_stem
from dis_sam.serve.training_pairs import save_pair
from dis_sam.serve.worker import ClientLimitError, QueueFullError, SupersededError, Worker
from IS_Net.errors import PromptError
from IS_Net.images import decode_mask, encode_image, encode_png
from IS_Net.preprocess import check_box
from sam.prompts import check_prompts, read_prompts

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")
app = pytest.importorskip("dis_sam.serve.app", reason="needs the extra serve")
from dis_sam.serve import downloads  # noqa: E402


class FakeModel:
    """A model that finds a soft ellipse in each box, around each point, or under each mask.

    Attributes:
        calls: The prompts of all models of this class.
        pause: Set to make predictions wait.
    """

    calls: list[dict[str, Any]] = []  # noqa: RUF012
    pause: threading.Event | None = None

    def __init__(self) -> None:
        self.image: np.ndarray | None = None

    def set_image(self, image: np.ndarray) -> None:
        self.image = image

    def segment(self, box=None, points=None, labels=None, mask=None, **options) -> Result:
        FakeModel.calls.append({"box": box, "points": points, "labels": labels, "mask": mask, **options})
        if FakeModel.pause is not None:
            assert FakeModel.pause.wait(20)
        height, width = self.image.shape[:2]
        if mask is not None:
            alpha = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 1.5)
            return Result(self.image, alpha, mask, math.nan)
        if box is None and points is not None:
            positive = points[labels == 1]
            box = (*(positive.min(axis=0) - 40), *(positive.max(axis=0) + 40))
        x0, y0, x1, y1 = check_box(
            box if box is not None else (width * 0.2, height * 0.2, width * 0.8, height * 0.8), height, width
        )
        y, x = np.ogrid[:height, :width]
        radius = np.hypot((x - (x0 + x1) / 2) / (x1 - x0 + 1), (y - (y0 + y1) / 2) / (y1 - y0 + 1))
        alpha = np.clip((0.5 - radius) * min(x1 - x0, y1 - y0) / 3 + 0.5, 0, 1).astype(np.float32)
        coarse = np.zeros((height, width), dtype=bool)
        coarse[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
        return Result(self.image, alpha, coarse, 0.9)


RNG = np.random.default_rng(5)
IMAGE = cv2.GaussianBlur(RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8), (0, 0), 3)
PNG = encode_image(IMAGE, ".png")
MASK = np.zeros((120, 160), np.uint8)
MASK[30:90, 40:120] = 255
BOX = (20, 10, 120, 90)
ANSWER_TIME = 20


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    FakeModel.calls.clear()
    FakeModel.pause = None
    yield
    if FakeModel.pause is not None:
        FakeModel.pause.set()


@contextmanager
def serving(make: Callable[[], Any] = FakeModel, **options: Any) -> Iterator[str]:
    """Run a server in a thread, with the fake model if no other is given; yield its address."""
    settings = app.ServerSettings(**{"sam": "vit_b", **options})
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app.create_app(make, settings), log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        if FakeModel.pause is not None:
            FakeModel.pause.set()
        server.should_exit = True
        thread.join(ANSWER_TIME)


@contextmanager
def client_of(**options: Any) -> Iterator[httpx.Client]:
    with serving(**options) as address, httpx.Client(base_url=address, timeout=ANSWER_TIME) as client:
        yield client


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    with client_of() as client:
        yield client


@pytest.fixture
def client(shared: httpx.Client) -> httpx.Client:
    return shared


def cut(client: httpx.Client, data: dict[str, Any] | None = None, picture: bytes = PNG, name: str = "cat.png"):
    return client.post("/api/cut", data=data or {}, files={"picture": (name, picture)})


def upload(client: httpx.Client, picture: bytes = PNG, name: str = "cat.png") -> dict[str, Any]:
    answer = client.post("/api/pictures", files={"picture": (name, picture)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def segment(client: httpx.Client, picture_id: str, prompt: dict[str, Any] | None = None, **fields: Any):
    files = {"mask": ("mask.png", fields.pop("mask"))} if "mask" in fields else None
    data = {"prompt": json.dumps(prompt or {}), **fields}
    return client.post(f"/api/pictures/{picture_id}/segment", data=data, files=files)


def expected(prompt: dict[str, Any], image: np.ndarray = IMAGE) -> Result:
    model = FakeModel()
    model.set_image(image)
    result = model.segment(**prompt)
    FakeModel.calls.pop()
    return result


def detail(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + ANSWER_TIME
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- for programs ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"as": "alpha", "bits": 16},
        {"as": "mask", "threshold": 0.2},
        {"as": "rgba", "crop": True},
        {"as": "#ff8000", "bits": 16, "threshold": 0.7, "crop": True},
        {"as": "white"},
        {"as": "overlay"},
    ],
)
def test_cut_returns_what_the_command_writes(client: httpx.Client, options: dict[str, Any]):
    answer = cut(client, {"box": "20,10,120,90", **options})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    known = {"bits": 8, **options}
    pixels = render(expected({"box": BOX}), known.pop("as", "rgba"), **known)
    assert answer.content == encode(pixels)
    assert answer.headers["x-score"] == "0.9000"


def test_file_names_tell_what_they_hold(client: httpx.Client):
    names = [
        cut(client, {"box": "20,10,120,90", "as": kind}, name="größe.jpg").headers["content-disposition"]
        for kind in ("rgba", "alpha", "#00FF00")
    ]
    assert "filename*=UTF-8''gr%C3%B6%C3%9Fe.cutout.png" in names[0]
    assert 'filename="gr__e.alpha.png"' in names[1]
    assert "gr%C3%B6%C3%9Fe.00FF00.png" in names[2]


def test_several_boxes_give_one_picture(client: httpx.Client):
    boxes = ((5, 5, 60, 50), (80, 40, 150, 110))
    answer = cut(client, {"box": ["5,5,60,50", "80,40,150,110"], "as": "alpha"})
    together = np.maximum(*(expected({"box": box}).alpha for box in boxes))
    np.testing.assert_array_equal(decode_mask(answer.content), np.rint(together * np.float32(255)))
    assert [call["box"] for call in FakeModel.calls] == list(boxes)


def test_points_are_labeled(client: httpx.Client):
    assert cut(client, {"point": ["60,60", "20.5,30,0"]}).status_code == 200
    [call] = FakeModel.calls
    np.testing.assert_array_equal(call["points"], [[60, 60], [20.5, 30]])
    np.testing.assert_array_equal(call["labels"], [1, 0])
    assert call["box"] is None
    assert "several boxes" in detail(cut(client, {"point": "60,60", "box": ["1,1,5,5", "2,2,9,9"]}), 422)


def test_points_need_sam():
    with client_of(sam="box") as client:
        assert "dis-sam fetch" in detail(cut(client, {"point": "60,60"}), 422)
        picture = upload(client)["id"]
        assert "dis-sam fetch" in detail(segment(client, picture, {"points": [[5, 5, 1]]}), 422)
        assert client.get("/api/info").json()["points"] is False


def test_without_a_prompt_the_salient_thing_is_cut_out(client: httpx.Client):
    assert cut(client).status_code == 200
    assert FakeModel.calls == [{"box": None, "points": None, "labels": None, "mask": None, "detail": "auto"}]
    cut(client, {"detail": "max"})
    assert FakeModel.calls[-1]["detail"] == "max"


def test_refine(client: httpx.Client):
    files = {"picture": ("cat.png", PNG), "mask": ("m.png", encode_png(MASK))}
    answer = client.post("/api/refine", files=files, data={"as": "alpha", "bits": 16})
    assert answer.content == encode(render(expected({"mask": MASK}), "alpha", bits=16))
    assert answer.headers["x-score"] == ""
    client.post("/api/refine", files=files, data={"box": "20,10,120,90", "keep_better": True})
    assert FakeModel.calls[-1]["keep_better"] is True
    np.testing.assert_array_equal(FakeModel.calls[-1]["mask"], MASK)
    assert FakeModel.calls[-1]["box"] == BOX


def test_refine_names_both_sizes(client: httpx.Client):
    files = {"picture": ("cat.png", PNG), "mask": ("m.png", encode_png(MASK[:60]))}
    message = detail(client.post("/api/refine", files=files), 422)
    assert "m.png is 160 x 60" in message
    assert "cat.png is 160 x 120" in message


def test_photographs_are_turned_upright_and_keep_profile_and_resolution(client: httpx.Client):
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "JPEG", exif=exif, icc_profile=icc, dpi=(300, 300))
    answer = cut(client, {"box": "10,20,90,120"}, file.getvalue(), "phone.jpg")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (120, 160)
        assert image.info["icc_profile"] == icc
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    picture = upload(client, file.getvalue(), "phone.jpg")
    assert (picture["width"], picture["height"]) == (120, 160)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"box": "1,2,3"}, "expected x0,y0,x1,y1, found '1,2,3'"),
        ({"box": "1,2,three,4"}, "three"),
        ({"box": "nan,2,3,4"}, "nan"),
        ({"box": "90,20,10,30"}, "wrong order"),
        ({"box": "500,500,600,600"}, "outside"),
        ({"point": "1"}, "x,y for the object"),
        ({"point": "1,2,7"}, "label 1 or 0"),
        ({"as": "jpeg"}, "unknown kind of output 'jpeg'"),
        ({"as": "#12"}, "six hex digits"),
        ({"bits": "12"}, "bits"),
        ({"threshold": "1.5"}, "threshold"),
        ({"box": ["1,1,9,9"] * 101}, "at most 100"),
    ],
)
def test_wrong_options_are_named(client: httpx.Client, data: dict[str, Any], words: str):
    assert words in detail(cut(client, data), 422)


def truncated_jpeg() -> bytes:
    return encode_image(IMAGE, ".jpg")[:1500]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", truncated_jpeg()],
)
def test_bad_files_are_named(client: httpx.Client, content: bytes):
    assert "bad.jpg" in detail(cut(client, picture=content, name="bad.jpg"), 422)
    assert "bad.jpg" in detail(client.post("/api/pictures", files={"picture": ("bad.jpg", content)}), 422)
    files = {"picture": ("cat.png", PNG), "mask": ("bad.jpg", content)}
    assert "bad.jpg" in detail(client.post("/api/refine", files=files), 422)


def test_missing_fields_are_named(client: httpx.Client):
    assert "picture" in detail(client.post("/api/cut", data={"box": "1,1,5,5"}), 422)
    assert "mask" in detail(client.post("/api/refine", files={"picture": ("cat.png", PNG)}), 422)


# --- limits ---


def test_uploads_and_pictures_have_a_largest_size():
    with client_of(max_mb=0.1, max_megapixels=0.02) as client:
        noise = RNG.integers(0, 256, (300, 300, 3), dtype=np.uint8)
        assert "at most 0.1 MB" in detail(cut(client, picture=encode_image(noise, ".png")), 413)
        message = detail(
            cut(client, picture=encode_image(np.zeros((200, 150, 3), np.uint8), ".png"), name="big.png"), 413
        )
        assert "big.png: found 150 x 200 = 0.0 megapixels, expected at most 0.02" in message
        assert cut(client).status_code == 200


def test_bodies_without_a_length_have_a_largest_size():
    with client_of(max_mb=0.1) as client:
        boundary = {"Content-Type": "multipart/form-data; boundary=x"}

        def body() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
            for _ in range(20):
                yield bytes(10_000)
            yield b"\r\n--x--\r\n"

        assert "at most 0.1 MB" in detail(client.post("/api/cut", content=body(), headers=boundary), 413)


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_bomb_is_refused_before_it_is_decoded(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("IS_Net.images.decode_photograph", decode)
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    assert "megapixels" in detail(cut(client, picture=file.getvalue()), 413)


def test_uploads_stay_in_memory(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    import tempfile

    def rollover(_: Any) -> None:
        raise AssertionError("written to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
    noise = RNG.integers(0, 256, (900, 900, 3), dtype=np.uint8)
    content = encode_image(noise, ".png")
    assert len(content) > 2_000_000
    assert cut(client, picture=content).status_code == 200
    assert upload(client, content)["width"] == 900


@pytest.fixture
def paused() -> threading.Event:
    FakeModel.pause = threading.Event()
    return FakeModel.pause


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Start a function in a thread; return a function that waits for its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(ANSWER_TIME)
        return results[0]

    return result


def test_a_full_queue_is_told(paused: threading.Event):
    with client_of(max_queue=2, max_queue_per_client=9) as client:
        started = [in_thread(lambda: cut(client))]
        wait_for(lambda: len(FakeModel.calls) == 1)
        started += [in_thread(lambda: cut(client)), in_thread(lambda: cut(client))]
        time.sleep(0.5)
        answer = cut(client)
        assert "busy" in detail(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
        paused.set()
        assert [result().status_code for result in started] == [200, 200, 200]


def test_one_client_cannot_fill_the_queue(paused: threading.Event):
    with client_of(max_queue=9, max_queue_per_client=1) as client:
        first, second = upload(client)["id"], upload(client)["id"]
        running = in_thread(lambda: segment(client, first))
        wait_for(lambda: len(FakeModel.calls) == 1)
        waiting = in_thread(lambda: segment(client, first, {"box": BOX}))
        time.sleep(0.3)
        answer = segment(client, first, {"box": [1, 1, 50, 50]})
        assert "wait already" in detail(answer, 429)
        assert "retry-after" in answer.headers
        other = in_thread(lambda: segment(client, second))
        time.sleep(0.3)
        paused.set()
        assert [result().status_code for result in (running, waiting, other)] == [200, 200, 200]


def test_slow_results_are_told(paused: threading.Event):
    with client_of(timeout=0.4) as client:
        assert "no result after 0.4 s" in detail(cut(client), 504)
        assert "no result after 0.4 s" in detail(cut(client), 504)  # this one waited in the queue
        paused.set()
        time.sleep(0.2)
        assert cut(client).status_code == 200
        assert len(FakeModel.calls) == 2  # nothing was computed for the second request


def test_work_of_a_client_that_has_gone_is_cancelled(paused: threading.Event):
    with client_of() as client:
        running = in_thread(lambda: cut(client, {"box": "1,1,50,50"}))
        wait_for(lambda: len(FakeModel.calls) == 1)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/api/cut", data={"box": "5,5,90,90"}, files={"picture": ("cat.png", PNG)}, timeout=0.5)
        last = in_thread(lambda: cut(client, {"box": "9,9,60,60"}))
        time.sleep(0.5)
        paused.set()
        assert [running().status_code, last().status_code] == [200, 200]
        assert [call["box"][0] for call in FakeModel.calls] == [1, 9]


def test_a_newer_request_replaces_a_waiting_one(paused: threading.Event):
    with client_of() as client:
        picture = upload(client)["id"]
        running = in_thread(lambda: segment(client, picture, {"box": [1, 1, 50, 50]}, slot="a"))
        wait_for(lambda: len(FakeModel.calls) == 1)
        old = in_thread(lambda: segment(client, picture, {"box": [2, 2, 60, 60]}, slot="a"))
        time.sleep(0.3)
        other = in_thread(lambda: segment(client, picture, {"box": [3, 3, 60, 60]}, slot="b"))
        new = in_thread(lambda: segment(client, picture, {"box": [4, 4, 60, 60]}, slot="a"))
        assert "newer request" in detail(old(), 409)
        paused.set()
        assert {result().status_code for result in (running, other, new)} == {200}
        assert sorted(call["box"][0] for call in FakeModel.calls) == [1, 3, 4]


def test_only_some_bodies_are_in_memory_at_once():
    gate, answers = asyncio.Event(), []

    async def application(*_: Any) -> None:
        await gate.wait()

    async def send(message: Any) -> None:
        answers.append(message)

    async def requests() -> None:
        guard = Guard(application, ValueError, None, None, 1000, max_bodies=2)
        scope = {"type": "http", "path": "/api/cut", "method": "POST", "headers": [(b"host", b"localhost")]}
        running = [asyncio.create_task(guard(scope, None, send)) for _ in range(2)]
        await asyncio.sleep(0)
        await guard(scope, None, send)
        assert [message.get("status") for message in answers] == [503, None]
        gate.set()
        await asyncio.gather(*running)
        await guard(scope, None, send)
        assert len(answers) == 2

    asyncio.run(requests())


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("boxes", "unknown field 'boxes'; did you mean 'box'?"),
        ("mask", "unknown field 'mask'; a mask goes to /api/refine"),
    ],
)
def test_fields_that_cut_does_not_know(client: httpx.Client, field: str, message: str):
    """They were ignored, and the main object came back."""
    answer = client.post("/api/cut", data={field: "1,1,9,9"}, files={"picture": ("a.png", PNG)})
    assert message in detail(answer, 422)
    answer = client.post(
        "/api/refine", data={"point": "9,9"}, files={"picture": ("a.png", PNG), "mask": ("m.png", PNG)}
    )
    assert "unknown field 'point'" in detail(answer, 422)


def test_worker_outlives_a_rest_that_fails(caplog: pytest.LogCaptureFixture):
    def rest() -> None:
        raise RuntimeError("the device is lost")

    worker = Worker(limit=3, limit_per_client=2, rest=rest, rest_after=0.01)
    for number in (1, 2):
        assert worker.submit(lambda _, n=number: n, "a").future.result(ANSWER_TIME) == number
        wait_for(lambda n=number: caplog.text.count("the device is lost") >= n)
    worker.close()


def test_worker_rests_once_when_no_job_comes():
    rested: list[int] = []
    worker = Worker(limit=3, limit_per_client=2, rest=lambda: rested.append(1), rest_after=0.01)
    time.sleep(0.05)
    assert not rested  # nothing was computed
    for number in (1, 2):
        worker.submit(lambda _: None, "a").future.result(ANSWER_TIME)
        wait_for(lambda n=number: len(rested) == n)
    time.sleep(0.05)
    assert len(rested) == 2
    worker.close()
    assert len(rested) == 2


def test_worker_runs_jobs_in_order_and_counts_those_that_wait():
    worker, gate, order = Worker(limit=3, limit_per_client=2), threading.Event(), []
    first = worker.submit(lambda _: gate.wait(ANSWER_TIME), "a")
    wait_for(lambda: worker.waiting() == 0)
    jobs = [worker.submit(lambda _, k=k: order.append(k), "a") for k in range(2)]
    with pytest.raises(ClientLimitError):
        worker.submit(lambda _: None, "a")
    jobs.append(worker.submit(lambda _: order.append(2), "b"))
    with pytest.raises(QueueFullError):
        worker.submit(lambda _: None, "c")
    jobs[0].abandon()
    assert worker.waiting() == 2
    jobs.append(worker.submit(lambda _: order.append(3), "c", slot="s"))
    replacing = worker.submit(lambda _: 1 / 0, "c", slot="s")
    gate.set()
    assert first.future.result(ANSWER_TIME)
    with pytest.raises(SupersededError):
        jobs[3].future.result(ANSWER_TIME)
    with pytest.raises(ZeroDivisionError):
        replacing.future.result(ANSWER_TIME)
    assert order == [1, 2]
    worker.close()
    assert not worker._thread.is_alive()


# --- for the page ---


def test_the_matte_is_the_alpha_cropped(client: httpx.Client):
    picture = upload(client)
    assert picture == {"id": picture["id"], "name": "cat", "width": 160, "height": 120}
    answer = segment(client, picture["id"], {"box": BOX})
    left, top, width, height = map(int, answer.headers["x-area"].split(","))
    with Image.open(io.BytesIO(answer.content)) as image:
        matte = np.asarray(image.convert("RGBA"))
    assert matte.shape[:2] == (height, width)
    assert (matte[..., :3] == 255).all()
    whole = np.zeros((120, 160), np.uint8)
    whole[top : top + height, left : left + width] = matte[..., 3]
    np.testing.assert_array_equal(whole, np.rint(expected({"box": BOX}).alpha * 255))


def test_an_empty_matte_is_one_transparent_pixel():
    data, area = downloads.encode_matte(np.zeros((5, 7), np.float32))
    assert area == (0, 0, 1, 1)
    with Image.open(io.BytesIO(data)) as image:
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 0)


def test_results_are_computed_once(client: httpx.Client):
    picture = upload(client)["id"]
    keys = {segment(client, picture, {"box": BOX}).headers["x-result"] for _ in range(3)}
    assert len(keys) == len(FakeModel.calls) == 1


def test_the_page_downloads_what_cut_returns(client: httpx.Client):
    picture = upload(client)["id"]
    keys = [segment(client, picture, {"box": box}).headers["x-result"] for box in (BOX, (5, 5, 60, 50))]
    for count, boxes in ((1, ["20,10,120,90"]), (2, ["20,10,120,90", "5,5,60,50"])):
        what = {"items": [{"picture": picture, "results": keys[:count]}], "as": "rgba", "bits": 16, "crop": True}
        answer = client.post("/api/export", json=what)
        assert answer.content == cut(client, {"box": boxes, "bits": 16, "crop": True}).content
        assert "cat.cutout.png" in answer.headers["content-disposition"]


def test_everything_comes_as_zip(client: httpx.Client):
    first, second = upload(client), upload(client, name="folder/cat.jpg")
    keys = [segment(client, first["id"], {"box": box}).headers["x-result"] for box in (BOX, (5, 5, 60, 50))]
    masked = segment(client, second["id"], mask=encode_png(MASK)).headers["x-result"]
    items = [{"picture": first["id"], "results": keys}, {"picture": second["id"], "results": [masked]}]
    answer = client.post("/api/export", json={"items": items, "as": "zip"})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        names = set(archive.namelist())
        assert archive.read("cat.cutout.png") == cut(client, {"box": ["20,10,120,90", "5,5,60,50"]}).content
        assert archive.read("cat_2.alpha.png") == cut(client, {"box": "5,5,60,50", "as": "alpha"}).content
        np.testing.assert_array_equal(decode_mask(archive.read("cat-2.coarse.png")), MASK)
        prompts = json.loads(archive.read("prompts.json"))
    whole = {f"{stem}.{kind}.png" for stem in ("cat", "cat-2") for kind in ("cutout", "alpha", "mask", "coarse")}
    parts = {f"cat_{k}.{kind}.png" for k in (1, 2) for kind in ("cutout", "alpha")}
    assert names == whole | parts | {"prompts.json"}
    assert prompts["cat"][0] == {"object": "1", "box": list(map(float, BOX))}
    assert prompts["cat-2"] == [{"object": "1", "box": [40, 30, 119, 89]}]  # the bounds of the mask
    answer = client.post("/api/export", json={"items": items, "as": "mask"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert set(archive.namelist()) == {"cat.mask.png", "cat-2.mask.png"}
    assert "unknown kind" in detail(client.post("/api/export", json={"items": items, "as": "gif"}), 422)


def test_files_in_a_zip_have_different_names(client: httpx.Client):
    """The second picture's files replaced those of the first one's object 1."""
    pictures = [upload(client, name=name)["id"] for name in ("a.png", "a_1.png", "A_2.png")]
    counts, boxes = (2, 1, 1), (BOX, (5, 5, 60, 50))
    items = [
        {"picture": id, "results": [segment(client, id, {"box": box}).headers["x-result"] for box in boxes[:count]]}
        for id, count in zip(pictures, counts, strict=True)
    ]
    answer = client.post("/api/export", json={"items": items, "as": "zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        stems = [name.split(".")[0] for name in archive.namelist() if name.endswith(".cutout.png")]
    assert sorted(stems) == ["A_2-2", "a", "a_1", "a_1-2", "a_2"]


def test_the_prompts_of_a_zip_can_be_used(client: httpx.Client, tmp_path: Path):
    picture = upload(client)["id"]
    asked = ({"box": BOX}, {"points": [[60, 60, 1], [5, 5, 0]]}, {})
    answers = [segment(client, picture, prompt) for prompt in asked]
    answers.append(segment(client, picture, mask=encode_png(MASK)))
    answers.append(segment(client, picture, mask=encode_png(np.zeros_like(MASK))))  # finds nothing
    items = [{"picture": picture, "results": [answer.headers["x-result"] for answer in answers]}]
    answer = client.post("/api/export", json={"items": items, "as": "zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extract("prompts.json", tmp_path)
    (tmp_path / "cat.png").write_bytes(PNG)
    prompts = check_prompts(read_prompts(tmp_path / "prompts.json"), {"cat": tmp_path / "cat.png"})
    assert prompts.keys() == {"cat_1", "cat_2", "cat_3", "cat_4"}
    assert prompts["cat_1"].box == BOX
    assert (prompts["cat_2"].points, prompts["cat_2"].labels) == (((60, 60), (5, 5)), (1, 0))
    rows, columns = np.nonzero(expected({}).mask)
    assert prompts["cat_3"].box == (columns.min(), rows.min(), columns.max(), rows.max())
    assert prompts["cat_4"].box == (40, 30, 119, 89)


def test_a_single_pixel_is_no_box():
    alpha = np.zeros((5, 7), np.float32)
    alpha[2, 3] = 1
    assert Prompt().as_dict(Result(IMAGE, alpha)) == {}
    alpha[2, 4] = 1
    assert Prompt().as_dict(Result(IMAGE, alpha)) == {"box": [3, 2, 4, 2]}


def test_the_coarse_mask_can_be_edited(client: httpx.Client):
    large = np.kron(IMAGE, np.ones((4, 4, 1), np.uint8))
    picture = upload(client, encode_image(large, ".png"))["id"]
    key = segment(client, picture, {"box": [80, 40, 480, 360]}).headers["x-result"]
    answer = client.get(f"/api/pictures/{picture}/results/{key}/coarse?longest=160")
    coarse = decode_mask(answer.content)
    assert coarse.shape == (120, 160)
    assert set(np.unique(coarse)) == {0, 255}
    assert (coarse > 0).sum() == pytest.approx(100 * 80, rel=0.02)
    coarse[:20] = 255
    segment(client, picture, mask=encode_png(coarse))
    mask = FakeModel.calls[-1]["mask"]
    assert mask.shape == (480, 640)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask[:75] == 255).all()
    assert "same size" in detail(segment(client, picture, mask=encode_png(MASK[:50])), 422)


def test_without_sam_the_brush_begins_with_the_result():
    with client_of(sam="box") as client:
        picture = upload(client)["id"]
        key = segment(client, picture, {"box": BOX}).headers["x-result"]
        coarse = decode_mask(client.get(f"/api/pictures/{picture}/results/{key}/coarse").content)
        np.testing.assert_array_equal(coarse > 0, expected({"box": BOX}).mask)


def test_colors_for_display_are_the_cut_outs(client: httpx.Client):
    picture = upload(client)["id"]
    answer = segment(client, picture, {"box": BOX})
    left, top, width, height = map(int, answer.headers["x-area"].split(","))
    colors = client.get(f"/api/pictures/{picture}/results/{answer.headers['x-result']}/colors").content
    with Image.open(io.BytesIO(colors)) as image:
        shown = np.asarray(image).astype(int)
    rgba = render(expected({"box": BOX}), "rgba")[top : top + height, left : left + width]
    visible = rgba[..., 3] > 128
    assert np.abs(shown - rgba[..., :3])[visible].mean() < 4


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("[1", "expected JSON"),
        ("[]", "expected a prompt"),
        ('{"box": [1, 2, 3]}', "four numbers"),
        ('{"box": [1, 2, true, 4]}', "four numbers"),
        ('{"box": [1, 2, NaN, 4]}', "four numbers"),
        ('{"box": [1, 2, 1e999, 4]}', "four numbers"),
        ('{"box": [1, 2, %s, 4]}' % ("9" * 400), "four numbers"),
        ('{"points": [[1, -%s, 1]]}' % ("9" * 400), "points as"),
        ('{"points": [[1, 2]]}', "points as"),
        ('{"points": 5}', "points as"),
        ('{"kind": 5}', "expected a prompt"),
        (json.dumps({"points": [[1, 1, 1]] * 101}), "at most 100"),
    ],
)
def test_wrong_prompts_are_named(client: httpx.Client, prompt: str, words: str):
    picture = upload(client)["id"]
    assert words in detail(client.post(f"/api/pictures/{picture}/segment", data={"prompt": prompt}), 422)


def test_pictures_that_are_gone_are_told(client: httpx.Client):
    picture = upload(client)["id"]
    key = segment(client, picture, {"box": BOX}).headers["x-result"]
    assert "no result" in detail(client.get(f"/api/pictures/{picture}/results/{'0' * 32}/coarse"), 404)
    assert client.delete(f"/api/pictures/{picture}").status_code == 204
    assert "upload it again" in detail(segment(client, picture), 404)
    what = {"items": [{"picture": picture, "results": [key]}]}
    assert "upload it again" in detail(client.post("/api/export", json=what), 404)


def test_memory_is_limited():
    store = PictureStore(max_bytes=200_000, max_idle=60)
    pictures = [Picture(Decoded(np.zeros((100, 100, 3), np.uint8), "x"), FakeModel()) for _ in range(4)]
    prompt, result = Prompt((1, 2, 3, 4)), Result(IMAGE, np.zeros((100, 100), np.float32))
    for picture in pictures[:3]:
        store.add(picture)
        store.keep(picture, prompt, result)
    assert len(store) == 3
    assert store.result(pictures[0], prompt.key) is None  # the oldest result went first
    assert store.result(pictures[2], prompt.key) is result
    store.get(pictures[0].id)
    store.keep(pictures[0], prompt, result)
    for _ in range(4):  # more pictures than fit
        store.add(Picture(Decoded(np.zeros((100, 100, 3), np.uint8), "x"), FakeModel()))
    with pytest.raises(KeyError):
        store.get(pictures[1].id)
    assert sum(p.nbytes() for p in store._pictures.values()) <= 200_000
    large = Picture(Decoded(np.zeros((500, 500, 3), np.uint8), "x"), FakeModel())
    store.add(large)
    assert len(store) == 1  # it exceeds the limit alone, and is kept
    assert store.get(large.id) is large


def test_pictures_that_nobody_uses_are_dropped():
    store = PictureStore(max_bytes=10**9, max_idle=60)
    pictures = [Picture(Decoded(IMAGE, "x"), FakeModel()) for _ in range(4)]
    for picture in pictures:
        store.add(picture)
    pictures[0].used -= 50
    store.get(pictures[0].id)
    for picture in pictures[:3]:
        picture.used -= 50
    pictures[1].used -= 11
    store.drop_idle()
    assert len(store) == 3
    pictures[2].used -= 11
    for picture in pictures[1:3]:
        with pytest.raises(KeyError):
            store.get(picture.id)
    assert len(store) == 2


def test_idle_pictures_are_dropped_without_another_request():
    models: list[weakref.ref[FakeModel]] = []

    def make() -> FakeModel:
        model = FakeModel()
        models.append(weakref.ref(model))
        return model

    with client_of(make=make, max_idle=0.1) as client:
        upload(client)
        wait_for(lambda: models[0]() is None)


def test_dropped_results_are_computed_again():
    with client_of(memory_mb=0.2) as client:
        picture = upload(client)["id"]
        keys = [segment(client, picture, {"box": box}).headers["x-result"] for box in (BOX, (5, 5, 60, 50))]
        assert len(FakeModel.calls) == 2
        what = {"items": [{"picture": picture, "results": keys}], "as": "alpha"}
        answer = client.post("/api/export", json=what)
        assert answer.content == cut(client, {"box": ["20,10,120,90", "5,5,60,50"], "as": "alpha"}).content


def test_joined_results():
    one = Result(IMAGE, np.full((2, 2), 0.25, np.float32), np.eye(2, dtype=bool), 0.5)
    two = Result(IMAGE, np.eye(2, dtype=np.float32), np.array([[0, 255], [0, 0]], np.uint8), math.nan)
    three = Result(IMAGE, np.zeros((2, 2), np.float32))
    joined = join([one, two, three])
    np.testing.assert_array_equal(joined.alpha, [[1, 0.25], [0.25, 1]])
    np.testing.assert_array_equal(joined.coarse, [[True, True], [False, True]])
    assert join([three]) is three
    assert join([three, three]).coarse is None


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("cat.jpg", "cat"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\cat.jpg", "cat"),
        ("a\n\0b?.png", "a__b_"),
        ("...", "picture"),
        ("", "picture"),
        (None, "picture"),
        ("x" * 300 + ".png", "x" * 200),
        ("名" * 95 + ".png", "名" * 66),
    ],
)
def test_safe_stem(name: str | None, stem: str):
    assert safe_stem(name) == stem


def test_a_prompt_of_another_form_is_refused():
    with pytest.raises(PromptError):
        Prompt.parse({"box": "1,2,3,4"})
    assert Prompt.parse({"box": None, "points": None}) == Prompt()
    keys = {p.key for p in (Prompt(), Prompt((1, 2, 3, 4)), Prompt(None, ((1, 2, 1),)), Prompt(None, (), b"m"))}
    assert len(keys) == 4


# --- training pairs ---


def test_training_pairs(tmp_path: Path):
    jpeg = encode_image(IMAGE, ".jpg")
    with client_of(save_to=tmp_path) as client:
        assert client.get("/api/info").json()["save"] is True
        for number, (content, name) in enumerate([(jpeg, "cat.jpg"), (PNG, "cat.png")]):
            picture = upload(client, content, name)["id"]
            key = segment(client, picture, {"box": BOX}).headers["x-result"]
            answer = client.post(f"/api/pictures/{picture}/save", json={"results": [key]}).json()
            stem = ("cat", "cat-2")[number]
            assert answer == {"name": stem, "im": f"im/{stem}.jpg", "gt": f"gt/{stem}.png", "mask": f"mask/{stem}.png"}
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert files == sorted(
        f"{p}/{s}.{'jpg' if p == 'im' else 'png'}" for p in ("im", "gt", "mask") for s in ("cat", "cat-2")
    )
    assert (tmp_path / "im" / "cat.jpg").read_bytes() == jpeg
    gt = decode_mask((tmp_path / "gt" / "cat-2.png").read_bytes())
    np.testing.assert_array_equal(gt, np.rint(expected({"box": BOX}).alpha * 255))
    mask = decode_mask((tmp_path / "mask" / "cat-2.png").read_bytes())
    np.testing.assert_array_equal(mask > 0, expected({"box": BOX}).coarse)


def test_training_pairs_replace_no_file(tmp_path: Path):
    (tmp_path / "gt").mkdir()
    (tmp_path / "gt" / "CAT.png").write_bytes(b"mine")
    files = save_pair(tmp_path, "cat", Result(IMAGE, MASK.astype(np.float32) / 255))
    assert files["gt"].name == "cat-2.png"
    assert (tmp_path / "gt" / "CAT.png").read_bytes() == b"mine"


def test_training_pairs_of_long_names(tmp_path: Path):
    with client_of(save_to=tmp_path) as client:
        picture = upload(client, name="名" * 95 + ".png")["id"]
        key = segment(client, picture).headers["x-result"]
        for _ in range(2):
            answer = client.post(f"/api/pictures/{picture}/save", json={"results": [key]})
            assert answer.status_code == 200, answer.text
            assert (tmp_path / answer.json()["im"]).is_file()


def test_a_folder_of_training_pairs_that_cannot_be_written_is_named(tmp_path: Path):
    folder = tmp_path / "file" / "pairs"
    folder.parent.touch()
    with client_of(save_to=folder) as client:
        picture = upload(client)["id"]
        key = segment(client, picture).headers["x-result"]
        message = detail(client.post(f"/api/pictures/{picture}/save", json={"results": [key]}), 507)
    assert message.startswith(f"{folder}: cannot be written")
    assert "check its rights" in message


def test_the_command_refuses_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def load(*_: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("dis_sam.pipeline.load", load)
    (tmp_path / "mask").touch()
    assert main(["--port", "0", "--save-to", str(tmp_path)]) == 2
    assert str(tmp_path / "mask") in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mask"}


def test_training_pairs_need_the_option(client: httpx.Client):
    picture = upload(client)["id"]
    assert client.post(f"/api/pictures/{picture}/save", json={"results": ["x"]}).status_code == 404
    assert client.get("/api/info").json()["save"] is False


# --- who may use it ---


def test_only_local_names_are_served(client: httpx.Client):
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example:8000", "localhost.evil.example", "", "[::1"):
        assert "--allow-host" in detail(client.get("/", headers={"Host": host}), 403)


def test_pages_of_other_sites_are_refused(client: httpx.Client):
    address = str(client.base_url).rstrip("/")
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
    ):
        files = {"picture": ("cat.png", PNG)}
        assert "another site" in detail(client.post("/api/cut", files=files, headers=headers), 403)
    for headers in ({}, {"Origin": address}, {"Sec-Fetch-Site": "same-origin", "Origin": address}):
        assert client.post("/api/cut", files={"picture": ("cat.png", PNG)}, headers=headers).status_code == 200
    assert client.get("/api/info", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link to the page
    assert "access-control-allow-origin" not in client.get("/api/info", headers={"Origin": address}).headers


def test_the_token():
    token = "a-token-of-some-length"
    with client_of(token=token, hosts=None) as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": token},
            {"Authorization": "Bearer ä".encode()},
        ):
            assert "token" in detail(client.get("/api/info", headers=headers), 401)
        assert client.get(f"/api/info?token={token}").status_code == 401  # addresses are written to logs
        accepted = {"Authorization": f"Bearer {token}", "Host": "studio.example"}
        assert client.get("/api/info", headers=accepted).status_code == 200
        for public in ("/", "/docs", "/openapi.json", "/static/main.js"):
            assert client.get(public).status_code == 200
        for path in ("/api/examples", "/api/pictures/x", "/static/../api/info", "//api/info", "/API/info", "/nothing"):
            assert client.get(path).status_code == 401, path


def test_headers_let_the_page_load_nothing_from_elsewhere(client: httpx.Client):
    for path in ("/", "/docs", "/static/main.js", "/api/info", "/nothing"):
        headers = client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    assert client.get("/api/info").headers["cache-control"] == "no-store"
    assert client.get("/", headers={"Host": "evil.example"}).headers["x-frame-options"] == "DENY"


STATIC = Path(examples.__file__).parent / "static"


def test_static_files_name_no_other_server():
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, path
        assert "https:" not in text, path
        if path.suffix == ".html":  # the policy forbids code and style in the page
            assert not {" style=", "<style", " onclick="} & set(text.split("<"))
            assert " style=" not in text


def test_the_documentation_is_complete(client: httpx.Client):
    root = client.get("/openapi.json").json()
    assert {"/api/cut", "/api/refine", "/api/pictures", "/api/export"} <= root["paths"].keys()
    for methods in root["paths"].values():
        for operation in methods.values():
            assert operation["description"]
            assert operation["tags"]
    assert "docs.js" in client.get("/docs").text


@pytest.mark.parametrize("stripped", [False, True], ids=["kept", "removed"])
def test_prefix(stripped: bool):
    """Some proxies remove the prefix from the path, others do not."""
    start = "" if stripped else "/tools/cut"
    with client_of(prefix="/tools/cut") as client:
        page = client.get(f"{start}/")
        assert '<base href="/tools/cut/">' in page.text
        assert client.get(f"{start}/static/main.js").status_code == 200
        assert client.get(f"{start}/api/info").status_code == 200
        assert client.get(f"{start}/openapi.json").json()["servers"] == [{"url": "/tools/cut"}]
        answer = client.get("/tools/cut")
        assert (answer.status_code, answer.headers["location"]) == (307, "/tools/cut/")
        assert client.post(f"{start}/api/cut", files={"picture": ("cat.png", PNG)}).status_code == 200


def test_a_failure_is_logged_and_not_shown(client: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(FakeModel, "segment", fail)
    message = detail(cut(client), 500)
    assert "log" in message
    assert "secret" not in message

    class OutOfMemoryError(RuntimeError):
        pass

    def exhaust(*_: Any, **__: Any) -> None:
        raise OutOfMemoryError

    monkeypatch.setattr(FakeModel, "segment", exhaust)
    assert "memory" in detail(cut(client), 503)


# --- the command ---


def test_others_need_a_token():
    for host, allowed in (("0.0.0.0", []), ("::", []), ("192.168.1.5", []), ("127.0.0.1", ["studio.example"])):
        with pytest.raises(ServeError, match="there is no token"):
            check_access(host, None, allowed)
    for token in ("short", "ä" * 30, "with a\nnewline in it"):
        with pytest.raises(ServeError, match="at least 16 ASCII"):
            check_access("0.0.0.0", token, [])
    token = "a-token-of-some-length"
    assert check_access("0.0.0.0", token, []) is None
    assert set(check_access("127.0.0.1", None, [])) == {"localhost", "127.0.0.1", "::1"}
    assert "studio.example" in check_access("127.0.0.1", token, ["studio.example"])
    assert set(check_access("0.0.0.0", token, ["studio.example"])) >= {"0.0.0.0", "studio.example"}


def test_the_command_refuses_to_start_without_a_token(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DIS_SAM_TOKEN", raising=False)
    assert main(["--host", "0.0.0.0"]) == 2
    assert "DIS_SAM_TOKEN=" in capsys.readouterr().err


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_a_host_that_cannot_be_a_name(capsys: pytest.CaptureFixture):
    assert main(["--host", "foo..bar", "--token", "x" * 16]) == 2
    assert "foo..bar:8000: cannot be listened at" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--port", "99999"], ["--prefix", "cut"], ["--prefix", "/a b"], ["--max-mb", "0"], ["--sam", "vit_x"]),
        ["--memory-mb", "1e303"],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_help_names_the_runtimes_as_cut_does(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "the fastest that is installed of ncnn, OpenVINO" in " ".join(capsys.readouterr().out.split())


def test_pictures_share_networks_but_not_what_was_computed():
    from dis_sam.pipeline import DISSAM
    from dis_sam.serve.command import _new_model

    class Sam:
        network = object()
        loads = 0

        def set_image(self, image: np.ndarray) -> None:
            self.features = image

    def load() -> Sam:
        Sam.loads += 1
        return Sam()

    dis: Any = object()
    model = DISSAM(load, dis)
    first, second = _new_model(model), _new_model(model)
    first.sam.set_image(IMAGE)
    assert not hasattr(second.sam, "features")
    assert first.sam.network is second.sam.network
    assert first.dis is second.dis is dis
    assert Sam.loads == 1


def test_real_networks_behind_the_api():
    """Two pictures are worked on in turn; each gives what both stages give for it alone."""
    pytest.importorskip("segment_anything")
    import torch

    from dis_sam.pipeline import DISSAM
    from dis_sam.serve.command import _new_model
    from IS_Net.models import ISNetDIS
    from IS_Net.predictor import DISPredictor
    from sam.backends.segment_anything import BatchedSamPredictor
    from tests.sam.tiny_sam import tiny_sam

    torch.manual_seed(0)
    dis = DISPredictor(ISNetDIS(5), "cpu", "full", (64, 96))
    network = tiny_sam()
    shared = DISSAM(lambda: BatchedSamPredictor(network, "vit_b"), dis)
    images = (IMAGE, np.ascontiguousarray(IMAGE[::-1, :120]))
    prompts = ({"box": [20, 10, 100, 90]}, {"points": [[60, 60, 1], [10, 20, 0]]})
    with client_of(make=lambda: _new_model(shared)) as client:
        pictures = [upload(client, encode_image(image, ".png"))["id"] for image in images]
        for prompt in prompts:
            for image, picture in zip(images, pictures, strict=True):
                key = segment(client, picture, prompt).headers["x-result"]
                what = {"items": [{"picture": picture, "results": [key]}], "as": "alpha", "bits": 16}
                answer = client.post("/api/export", json=what)
                points = np.array(prompt["points"]) if "points" in prompt else None
                alone = DISSAM(BatchedSamPredictor(network, "vit_b"), dis).cut(
                    image,
                    prompt.get("box"),
                    None if points is None else points[:, :2],
                    None if points is None else points[:, 2],
                )
                assert np.ptp(alone.alpha) > 0
                assert answer.content == encode(render(alone, "alpha", bits=16))


# --- examples ---


def test_examples_are_photographs_or_drawings(monkeypatch: pytest.MonkeyPatch):
    found = examples.find_examples()
    assert len(found) >= 2
    monkeypatch.setattr(examples, "find_spec", lambda _: None)
    drawn = examples.find_examples()
    assert {example.source for example in drawn.values()} == {"drawn by DIS-SAM"}
    for example in (*found.values(), *drawn.values()):
        with Image.open(io.BytesIO(example.load())) as image:
            assert image.width >= 400


def test_examples_are_served(client: httpx.Client):
    listed = client.get("/api/examples").json()
    for example in listed:
        answer = client.get(f"/api/examples/{example['name']}")
        assert answer.headers["content-type"] == "image/png"
        assert upload(client, answer.content, example["name"])["width"] > 0
    assert "no example" in detail(client.get("/api/examples/x.png"), 404)
