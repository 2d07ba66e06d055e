"""What the requests share: settings, the model's queue, the pictures in memory, and the threads that decode them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException, Request

from dis_sam.pipeline import Result
from dis_sam.serve.examples import Example
from dis_sam.serve.guard import LOCAL_NAMES
from dis_sam.serve.pictures import Model, Picture, PictureStore, Prompt, TooManyPixelsError
from dis_sam.serve.worker import (
    AbandonedError,
    ClientLimitError,
    Job,
    QueueFullError,
    SupersededError,
    Worker,
)
from IS_Net.errors import UserError

logger = logging.getLogger(__name__)

_THREADS, MAX_IN_THREADS = 2, 16
"""How many pictures are decoded or encoded at once, and how many of them may be in work or wait."""
_LOOKS = 60
"""How often the server looks for pictures that nobody uses, in the time after which they are dropped."""
CLOSED = 499
"""The status code, known from nginx, of a request whose client has gone; nobody sees it."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class ServerSettings:
    """How the server works.

    Attributes:
        sam: The model of stage 1; ``box`` if there is none, and so no points.
        token: What requests must bring; None for none.
        hosts: The names that the Host header may contain; None allows all.
        prefix: The path under which a proxy serves the page, such as ``/cut``.
        save_to: The folder of training pairs; None disables them.
        max_mb: Largest upload, in megabytes.
        max_megapixels: Largest picture.
        max_queue: How many requests may wait for the model, all users together.
        max_queue_per_client: How many requests of one user may wait.
        timeout: Seconds after which a request is answered with an error.
        memory_mb: Of decoded pictures and results, in megabytes.
        max_idle: Seconds after which a picture that nobody uses is dropped.
    """

    sam: str = "box"
    token: str | None = None
    hosts: tuple[str, ...] | None = LOCAL_NAMES
    prefix: str = ""
    save_to: Path | None = None
    max_mb: float = 60
    max_megapixels: float = 100
    max_queue: int = 16
    max_queue_per_client: int = 4
    timeout: float = 120
    memory_mb: float = 2000
    max_idle: float = 3600

    @property
    def max_pixels(self) -> int:
        """Pixels of the largest picture."""
        return int(self.max_megapixels * 1e6)


@dataclass
class Server:
    """What the requests share."""

    settings: ServerSettings
    new_model: Callable[[], Model]
    worker: Worker
    store: PictureStore
    examples: dict[str, Example]
    threads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_THREADS))
    in_threads: int = 0

    async def compute(
        self, request: Request, function: Callable[[Job], _T], client: str, slot: tuple[str, ...] | None = None
    ) -> _T:
        """Run a function in the model's thread, as long as the client waits for it."""
        try:
            job = self.worker.submit(function, client, slot)
        except ClientLimitError as error:
            raise HTTPException(
                429,
                f"{self.settings.max_queue_per_client} of your requests wait already; wait until one is answered",
                {"Retry-After": "2"},
            ) from error
        except QueueFullError as error:
            raise HTTPException(
                503,
                f"the server is busy: {self.settings.max_queue} requests wait for the model; try again in some seconds",
                {"Retry-After": "5"},
            ) from error
        work = asyncio.wrap_future(job.future)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, timeout=self.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                with failures():
                    return work.result()
            if gone.done():
                raise HTTPException(CLOSED, "the client has closed the connection")
            raise HTTPException(
                504,
                f"no result after {self.settings.timeout:g} s; the server is busy, or the picture is large: try again, "
                "or start the server with a larger --timeout",
            )
        except SupersededError as error:
            raise HTTPException(409, "a newer request for the same object replaced this one") from error
        finally:
            gone.cancel()
            if not work.done():
                work.add_done_callback(_ignore)
                job.abandon()

    async def in_thread(self, function: Callable[[], _T]) -> _T:
        """Run a function that decodes or encodes pictures in a thread; only a few at once, for the memory's sake."""
        if self.in_threads >= MAX_IN_THREADS:
            raise HTTPException(
                503, "the server is busy with other pictures; try again in some seconds", {"Retry-After": "5"}
            )
        self.in_threads += 1
        try:
            async with self.threads:
                with failures():
                    return await asyncio.to_thread(function)
        finally:
            self.in_threads -= 1

    def picture(self, picture_id: str) -> Picture:
        """Return a picture that was uploaded."""
        try:
            return self.store.get(picture_id)
        except KeyError:
            raise HTTPException(
                404, "the server no longer has this picture, because its memory is limited; upload it again"
            ) from None

    async def result(self, request: Request, picture: Picture, key: str) -> Result:
        """Return the result of an earlier prompt, computed again if it is not in memory."""
        if key not in picture.prompts:
            raise HTTPException(404, f"the picture has no result {key!r}; segment the object again")
        return await self.segment(request, picture, picture.prompts[key])

    async def segment(
        self, request: Request, picture: Picture, prompt: Prompt, slot: tuple[str, ...] | None = None
    ) -> Result:
        """Return the result of a prompt: that in memory, or a new one, which is kept. A slot is :meth:`compute`'s."""
        result = self.store.result(picture, prompt.key)
        if result is None:
            result = await self.compute(request, lambda _: picture.compute(prompt), picture.id, slot)
        self.store.keep(picture, prompt, result)
        return result

    async def results(self, request: Request, picture: Picture, keys: Sequence[str]) -> list[Result]:
        """Return the results of several earlier prompts of a picture."""
        return [await self.result(request, picture, key) for key in keys]

    async def drop_idle(self) -> None:
        """Drop the pictures that nobody uses, until the task is cancelled; no request may come that would do it."""
        while True:
            await asyncio.sleep(self.settings.max_idle / _LOOKS)
            self.store.drop_idle()


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn errors that are not the user's into answers that do not tell what is inside."""
    try:
        yield
    except (HTTPException, UserError, TooManyPixelsError, SupersededError, AbandonedError):
        raise
    except Exception as error:
        # PyTorch's own class is a RuntimeError; its name is the same on all devices
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise HTTPException(
                503, "the server has too little memory for this picture; scale it down, or try again later"
            ) from error
        logger.exception("a request failed")
        raise HTTPException(500, f"the server failed ({type(error).__name__}); its log says more") from error


def _ignore(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()  # otherwise asyncio reports that nobody retrieved it


async def _disconnected(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.1)
