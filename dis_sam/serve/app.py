"""The application: the page, what it asks for, and the JSON API for programs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi import Path as UrlPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.formparsers import MultiPartParser

from dis_sam import __version__
from dis_sam.outputs import check_kind
from dis_sam.pipeline import Result
from dis_sam.serve.downloads import (
    encode_colors,
    encode_matte,
    export_files,
    export_prompts,
    file_headers,
    make_files,
    make_zip,
    reduce_pixels,
    score_text,
    unique_names,
)
from dis_sam.serve.examples import find_examples
from dis_sam.serve.guard import Guard
from dis_sam.serve.pictures import (
    Decoded,
    Model,
    Picture,
    PictureStore,
    Prompt,
    TooManyPixelsError,
    decode_mask,
    decode_picture,
    join,
    safe_stem,
    segment,
)
from dis_sam.serve.server import CLOSED, MAX_IN_THREADS, Server, ServerSettings
from dis_sam.serve.training_pairs import save_pair
from dis_sam.serve.worker import AbandonedError, Job, Worker
from IS_Net.errors import PromptError, UserError, did_you_mean
from IS_Net.images import encode_image, size_mismatch

STATIC = Path(__file__).parent / "static"
MAX_BOXES = 100
"""Boxes of a request, and objects of a download."""


class Item(BaseModel):
    """The objects of one picture, for a download."""

    picture: str = Field(description="The picture's id.")
    results: list[str] = Field(min_length=1, max_length=MAX_BOXES, description="Keys of the results of its objects.")


class Export(BaseModel):
    """What to download."""

    items: list[Item] = Field(min_length=1, max_length=MAX_BOXES)
    kind: str = Field("rgba", alias="as", description="As of /api/cut, or `zip` for everything.")
    bits: Literal[8, 16] = 8
    threshold: float | None = Field(None, ge=0, lt=1)
    crop: bool = False


class SavePair(BaseModel):
    """The objects of a training sample."""

    results: list[str] = Field(min_length=1, max_length=MAX_BOXES)


PictureFile = Annotated[UploadFile, File(description="The photograph: JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF.")]
Kind = Annotated[
    str,
    Form(
        alias="as",
        description="`rgba`: the cut-out, with the object's own colors at soft edges. `alpha`: the alpha matte. "
        "`mask`: black and white. `white` or `#RRGGBB`: on this color. `overlay`: the picture with the object marked.",
    ),
]
Bits = Annotated[Literal["8", "16"], Form(description="Bits per channel.")]
Threshold = Annotated[
    float | None,
    Form(ge=0, lt=1, description="Alpha above it counts as 1 and the rest as 0; without it, edges are soft."),
]
Detail = Annotated[
    Literal["auto", "off", "max"],
    Form(
        description="Work on parts of large photographs at their full resolution: `auto` if the weights were trained "
        "for it, `off`, or `max` for as many parts as it takes."
    ),
]
Crop = Annotated[bool, Form(description="Crop to the object.")]
PictureId = Annotated[str, UrlPath(description="The picture's id.")]
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "The picture, as PNG."}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text}
    for code, text in {
        401: "The token is missing or wrong.",
        413: "The upload or the picture is too large.",
        422: "The picture or the prompt cannot be used; `detail` says why.",
        429: "Too many of your requests wait.",
        503: "The server is busy.",
        504: "The result took too long.",
    }.items()
}


def _parse_boxes(texts: Iterable[str]) -> list[tuple[float, ...]]:
    return [_numbers(text, (4,), "box", "x0,y0,x1,y1") for text in texts]


def _parse_points(texts: Iterable[str]) -> list[list[float]]:
    points = [_numbers(text, (2, 3), "point", "x,y for the object or x,y,0 for the background") for text in texts]
    return [[point[0], point[1], point[2] if len(point) == 3 else 1] for point in points]


def _numbers(text: str, counts: tuple[int, ...], what: str, expected: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts or not np.isfinite(values).all():
        raise HTTPException(422, f"{what}: expected {expected}, found {text!r}")
    return values


def create_app(
    new_model: Callable[[], Model], settings: ServerSettings, rest: Callable[[], None] | None = None
) -> Guard:
    """Make the application.

    Args:
        new_model: Makes the model for one picture. All of them share their networks, and are called in one thread.
        settings: How the server works.
        rest: Frees what the networks keep for their next call; it is called when nobody uses the server for a while.

    Returns:
        An ASGI application.
    """
    server = Server(
        settings,
        new_model,
        Worker(settings.max_queue, settings.max_queue_per_client, rest),
        PictureStore(int(settings.memory_mb * 1e6), settings.max_idle),
        find_examples(),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        dropping = asyncio.create_task(server.drop_idle())
        yield
        dropping.cancel()
        await asyncio.to_thread(server.worker.close)

    # uploads larger than this are written to temporary files; nothing may be kept on disk, and the guard limits them
    MultiPartParser.spool_max_size = 1 << 62
    MultiPartParser.max_file_size = 1 << 62  # the older name
    options: dict[str, Any] = {}
    if "telemetry" in inspect.signature(FastAPI.__init__).parameters:  # newer versions can report to other servers
        options["telemetry"] = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
    app = FastAPI(
        title="DIS-SAM",
        version=__version__,
        description="A box around a thing in a photograph becomes a pixel-accurate mask of it. Boxes are x0,y0,x1,y1 "
        "in pixels of the upright picture; both ends belong to the box.",
        docs_url=None,  # FastAPI's own pages load their scripts from another server
        redoc_url=None,
        lifespan=lifespan,
        **options,
    )
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _add_error_handlers(app)
    _add_pages(app, settings)
    _add_programs_api(app, server)
    _add_page_api(app, server)
    return Guard(
        app,
        lambda message: HTTPException(413, message),
        settings.token,
        settings.hosts,
        int(settings.max_mb * 1e6),
        settings.max_queue + MAX_IN_THREADS,
        settings.prefix,
    )


def _add_error_handlers(app: FastAPI) -> None:
    def answer(status: int, message: str) -> JSONResponse:
        return JSONResponse({"detail": message}, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{'.'.join(str(p) for p in e['loc'][1:])}: {e['msg']}" for e in error.errors()]
        return answer(422, "; ".join(parts))

    @app.exception_handler(UserError)
    async def unusable(_: Request, error: UserError) -> JSONResponse:
        return answer(422, str(error))

    @app.exception_handler(TooManyPixelsError)
    async def too_many_pixels(_: Request, error: TooManyPixelsError) -> JSONResponse:
        return answer(413, str(error))

    @app.exception_handler(AbandonedError)
    async def abandoned(_: Request, __: AbandonedError) -> JSONResponse:
        return answer(CLOSED, "nobody waits for this result")


def _add_pages(app: FastAPI, settings: ServerSettings) -> None:
    def page(name: str) -> HTMLResponse:
        html = (STATIC / name).read_text(encoding="utf-8")
        base = f'<base href="{settings.prefix}/">' if settings.prefix else ""
        return HTMLResponse(html.replace("<!--base-->", base))

    @app.get("/", include_in_schema=False)
    def index() -> HTMLResponse:
        return page("index.html")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return page("docs.html")


_OUTPUT_FIELDS = ("as", "bits", "threshold", "crop", "detail")
"""Fields of both addresses for programs."""


def _add_programs_api(app: FastAPI, server: Server) -> None:
    settings = server.settings

    async def answer(
        request: Request,
        decoded: Decoded,
        prompts: list[Prompt],
        kind: str,
        bits: str,
        threshold: float | None,
        crop: bool,
        **options: Any,
    ) -> Response:
        def work(job: Job) -> Result:
            model = server.new_model()
            model.set_image(decoded.image)
            results = []
            for prompt in prompts:
                job.check()
                results.append(segment(model, prompt, decoded.image.shape[:2], **options))
            return join(results)

        client = request.client.host if request.client else ""
        result = await server.compute(request, work, client)
        make = partial(make_files, result, decoded, decoded.name, [kind], int(bits), threshold, crop)
        [(name, data)] = (await server.in_thread(make)).items()
        return Response(data, media_type="image/png", headers={"X-Score": score_text(result), **file_headers(name)})

    @app.post("/api/cut", tags=["programs"], responses={**_PNG, **_ERRORS}, response_class=Response)
    async def cut(
        request: Request,
        picture: PictureFile,
        box: Annotated[list[str], Form(description="`x0,y0,x1,y1`. Several boxes give one picture.")] = [],  # noqa: B006
        point: Annotated[list[str], Form(description="`x,y` on the object, or `x,y,0` on the background.")] = [],  # noqa: B006
        kind: Kind = "rgba",
        bits: Bits = "8",
        threshold: Threshold = None,
        crop: Crop = False,
        detail: Detail = "auto",
    ) -> Response:
        """Cut an object out of a photograph: that in a box, that under points, or the most salient one."""
        await _refuse_unknown(request, ("picture", "box", "point", *_OUTPUT_FIELDS))
        kind, boxes, points = check_kind(kind), _parse_boxes(box), _parse_points(point)
        if len(boxes) > MAX_BOXES:
            raise HTTPException(422, f"found {len(boxes)} boxes, expected at most {MAX_BOXES}")
        if points and len(boxes) > 1:
            raise HTTPException(422, "found points together with several boxes; points need at most one box")
        _check_points(points, settings)
        prompts = [Prompt.parse({"box": list(b), "points": points}) for b in boxes] or [
            Prompt.parse({"points": points})
        ]
        data = await picture.read()
        decoded = await server.in_thread(partial(decode_picture, data, picture.filename, settings.max_pixels))
        return await answer(request, decoded, prompts, kind, bits, threshold, crop, detail=detail)

    @app.post("/api/refine", tags=["programs"], responses={**_PNG, **_ERRORS}, response_class=Response)
    async def refine(
        request: Request,
        picture: PictureFile,
        mask: Annotated[UploadFile, File(description="Any coarse mask of the object, of the picture's size.")],
        box: Annotated[str | None, Form(description="`x0,y0,x1,y1`; without it, the bounds of the mask.")] = None,
        kind: Kind = "rgba",
        bits: Bits = "8",
        threshold: Threshold = None,
        crop: Crop = False,
        detail: Detail = "auto",
        keep_better: Annotated[bool, Form(description="Keep the mask if it is probably better.")] = False,
    ) -> Response:
        """Refine a coarse mask."""
        await _refuse_unknown(request, ("picture", "mask", "box", "keep_better", *_OUTPUT_FIELDS))
        kind, boxes = check_kind(kind), _parse_boxes([] if box is None else [box])
        data, mask_data = await picture.read(), await mask.read()

        def decode() -> Decoded:
            decoded = decode_picture(data, picture.filename, settings.max_pixels)
            found = decode_mask(mask_data, mask.filename, settings.max_pixels)
            if found.shape != decoded.image.shape[:2]:
                names = mask.filename or "the mask", f"its picture {picture.filename or ''}".rstrip()
                raise PromptError(size_mismatch(names[0], found.shape, names[1], decoded.image.shape[:2]))
            return decoded

        decoded = await server.in_thread(decode)
        prompt = Prompt(boxes[0] if boxes else None, (), mask_data)
        options = {"detail": detail, "keep_better": keep_better}
        return await answer(request, decoded, [prompt], kind, bits, threshold, crop, **options)


async def _refuse_unknown(request: Request, known: Sequence[str]) -> None:
    """Answer 422 to a field that the address does not take, which would change nothing without a word."""
    for name in await request.form():
        if name not in known:
            hint = "; a mask goes to /api/refine" if name == "mask" else did_you_mean(name, known)
            raise HTTPException(422, f"unknown field {name!r}{hint}")


def _check_points(points: Sequence[Any], settings: ServerSettings) -> None:
    if points and settings.sam == "box":
        raise HTTPException(
            422, "points need SAM, and the server runs without it; use a box, or get SAM with: dis-sam fetch vit_l"
        )


def _add_page_api(app: FastAPI, server: Server) -> None:
    settings = server.settings

    @app.get("/api/info", tags=["page"])
    def info() -> dict[str, Any]:
        """Return what the server offers, and its limits."""
        return {
            "version": __version__,
            "points": settings.sam != "box",
            "sam": settings.sam,
            "save": settings.save_to is not None,
            "max_mb": settings.max_mb,
            "max_megapixels": settings.max_megapixels,
        }

    @app.get("/api/examples", tags=["page"])
    def examples() -> list[dict[str, str]]:
        """Return the example pictures."""
        return [{"name": e.name, "title": e.title, "source": e.source} for e in server.examples.values()]

    @app.get("/api/examples/{name}", tags=["page"], response_class=Response)
    def example(name: str) -> Response:
        """Return the file of an example picture."""
        if name not in server.examples:
            raise HTTPException(404, f"there is no example {name!r}")
        media = "image/jpeg" if name.endswith(".jpg") else "image/png"
        return Response(server.examples[name].load(), media_type=media)

    @app.post("/api/pictures", tags=["page"], responses=_ERRORS)
    async def upload(picture: PictureFile) -> dict[str, Any]:
        """Store a photograph in the server's memory; the answer's id stands for it."""
        data = await picture.read()
        decoded = await server.in_thread(partial(decode_picture, data, picture.filename, settings.max_pixels))
        source = data if settings.save_to is not None and decoded.jpeg else None
        stored = Picture(decoded, server.new_model(), source)
        server.store.add(stored)
        height, width = stored.size
        return {"id": stored.id, "name": decoded.name, "width": width, "height": height}

    @app.delete("/api/pictures/{picture_id}", tags=["page"], status_code=204, response_class=Response)
    def forget(picture_id: PictureId) -> Response:
        """Drop a picture from the server's memory."""
        server.store.remove(picture_id)
        return Response(status_code=204)

    @app.get("/api/pictures/{picture_id}", tags=["page"], response_class=Response)
    async def show(picture_id: PictureId) -> Response:
        """Return the picture as JPEG, for browsers that cannot show the file itself (TIFF)."""
        picture = server.picture(picture_id)
        data = await server.in_thread(lambda: encode_image(picture.decoded.image, ".jpg", 92))
        return Response(data, media_type="image/jpeg")

    @app.post(
        "/api/pictures/{picture_id}/segment", tags=["page"], responses={**_PNG, **_ERRORS}, response_class=Response
    )
    async def segment_object(
        request: Request,
        picture_id: PictureId,
        prompt: Annotated[
            str, Form(description='JSON: `{"box": [x0, y0, x1, y1], "points": [[x, y, label]]}`.')
        ] = "{}",
        slot: Annotated[str, Form(max_length=64, description="A newer request of this name replaces it.")] = "",
        mask: Annotated[UploadFile | None, File(description="A coarse mask; it may be a reduced one.")] = None,
    ) -> Response:
        """Segment one object. The answer is its matte for display; the header `X-Result` names the result."""
        picture = server.picture(picture_id)
        try:
            value = json.loads(prompt)
        except (ValueError, RecursionError) as error:
            raise HTTPException(422, f"prompt: expected JSON, found {prompt[:80]!r}") from error
        parsed = Prompt.parse(value, None if mask is None else await mask.read())
        _check_points(parsed.points, settings)
        result = await server.segment(request, picture, parsed, (picture_id, slot) if slot else None)
        matte, area = await server.in_thread(lambda: encode_matte(result.alpha))
        headers = {"X-Result": parsed.key, "X-Score": score_text(result), "X-Area": ",".join(map(str, area))}
        return Response(matte, media_type="image/png", headers=headers)

    @app.get("/api/pictures/{picture_id}/results/{key}/coarse", tags=["page"], responses=_PNG, response_class=Response)
    async def coarse(
        request: Request,
        picture_id: PictureId,
        key: str,
        longest: Annotated[int, Query(ge=16, le=8192, description="Length of the longer side.")] = 2048,
    ) -> Response:
        """Return the coarse mask of a result, reduced, to be edited with the brush.

        Where there is none but a filled box, it is the result's own mask.
        """
        picture = server.picture(picture_id)
        result = await server.result(request, picture, key)
        is_box = settings.sam == "box" and picture.prompts[key].mask is None

        def work() -> bytes:
            mask = result.mask if is_box or result.coarse is None else result.coarse
            pixels = mask.astype(np.uint8) * np.uint8(255) if mask.dtype == bool else mask
            return encode_image(np.where(reduce_pixels(pixels, longest) > 127, np.uint8(255), np.uint8(0)), ".png")

        return Response(await server.in_thread(work), media_type="image/png")

    @app.get("/api/pictures/{picture_id}/results/{key}/colors", tags=["page"], response_class=Response)
    async def colors(
        request: Request,
        picture_id: PictureId,
        key: str,
        longest: Annotated[int, Query(ge=16, le=8192, description="Length of the longer side.")] = 2048,
    ) -> Response:
        """Return the object's own colors, for display: as JPEG, cropped like the matte, reduced."""
        result = await server.result(request, server.picture(picture_id), key)
        return Response(await server.in_thread(lambda: encode_colors(result, longest)), media_type="image/jpeg")

    @app.post("/api/export", tags=["page"], responses={**_PNG, **_ERRORS}, response_class=Response)
    async def export(request: Request, what: Export) -> Response:
        """Return one result as PNG; or everything of one or more pictures, or one kind of several, as ZIP."""
        if what.kind != "zip":
            check_kind(what.kind)
        pictures = [server.picture(item.picture) for item in what.items]
        stems, counts = [picture.decoded.name for picture in pictures], [len(item.results) for item in what.items]
        names = list(unique_names(stems, counts))
        files: dict[str, bytes] = {}
        prompts: dict[str, Any] = {}
        for picture, name, item in zip(pictures, names, what.items, strict=True):
            results = await server.results(request, picture, item.results)
            options = what.kind, what.bits, what.threshold, what.crop
            make = partial(export_files, results, picture.decoded, name, *options)
            files |= await server.in_thread(make)
            if what.kind == "zip":
                prompts[name] = await server.in_thread(partial(export_prompts, results, picture, item.results))
        if what.kind != "zip" and len(files) == 1:
            name, data = next(iter(files.items()))
            return Response(data, media_type="image/png", headers=file_headers(name))
        if what.kind == "zip":
            files["prompts.json"] = json.dumps(prompts, indent=1, ensure_ascii=False).encode()
        data = await server.in_thread(lambda: make_zip(files))
        stem = names[0] if len(names) == 1 else "dis-sam"
        return Response(data, media_type="application/zip", headers=file_headers(f"{safe_stem(stem)}.zip"))

    if settings.save_to is None:
        return
    folder = settings.save_to

    @app.post("/api/pictures/{picture_id}/save", tags=["page"], responses=_ERRORS)
    async def save(request: Request, picture_id: PictureId, what: SavePair) -> dict[str, str]:
        """Write image, ground truth and coarse mask into the folder of training pairs."""
        picture = server.picture(picture_id)
        result = join(await server.results(request, picture, what.results))

        def write() -> dict[str, Path]:
            try:
                return save_pair(folder, picture.decoded.name, result, picture.source)
            except OSError as error:
                message = f"{folder}: cannot be written ({error}); check its rights and the disk"
                raise HTTPException(507, message) from error

        files = await server.in_thread(write)
        return {"name": files["im"].stem, **{part: str(path.relative_to(folder)) for part, path in files.items()}}
