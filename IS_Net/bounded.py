"""Run functions in a pool of workers with a bounded number of tasks in flight, so that memory stays bounded too."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Pool(Protocol):
    """The part of :class:`concurrent.futures.Executor` that is used here."""

    def submit(self, function: Callable[..., R], /, *args: Any) -> Future[R]:
        """Schedule a call of the function."""


def map_bounded(pool: Pool, function: Callable[[T], R], items: Iterable[T], limit: int) -> Iterator[Future[R]]:
    """Apply a function to items in a pool, without drawing all items at once.

    Args:
        pool: Runs the function.
        function: Is called with one item.
        items: May be endless; it is drawn from as results are taken.
        limit: The highest number of futures that are running, waiting or finished and not yet yielded; at least 1.

    Yields:
        The future of each item, in the order of the items. It may still be running. When the iteration is abandoned,
        the tasks that have not started are canceled.
    """
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= limit:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()


class BoundedQueue:
    """Tasks whose results are not needed, such as writing files; a full queue makes :meth:`submit` wait.

    Args:
        pool: Runs the tasks.
        limit: The highest number of unfinished tasks, at least 1.
    """

    def __init__(self, pool: Pool, limit: int) -> None:
        self._pool, self._limit = pool, limit
        self._waiting: deque[Future] = deque()

    def submit(self, function: Callable[..., Any], *args: Any) -> None:
        """Schedule a call; while the queue is full, wait for the oldest task.

        Raises:
            Exception: The error of that task, if it failed.
        """
        if len(self._waiting) >= self._limit:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(function, *args))

    def close(self) -> None:
        """Wait for all tasks.

        Raises:
            Exception: The error of the first task that failed, once all tasks have ended.
        """
        wait(self._waiting)
        while self._waiting:
            self._waiting.popleft().result()
