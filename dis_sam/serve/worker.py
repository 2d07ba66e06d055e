"""A queue of jobs for the one model: a thread runs them one after the other, but none that nobody waits for.

One prediction uses all cores, so that two at once would take as long as one after the other, and twice the memory.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """Too many jobs wait."""


class ClientLimitError(Exception):
    """Too many jobs of one client wait."""


class SupersededError(Exception):
    """A newer job of the same slot took the place of this one before it began."""


class AbandonedError(Exception):
    """Nobody waits for the result of this job anymore."""


@dataclass
class Job:
    """A job of the queue.

    Attributes:
        function: Does the work; it is called with this job, whose :meth:`check` it may call between parts of the work.
        client: Who waits for it.
        slot: Jobs of one slot replace each other as long as they wait; None if the job replaces none.
        future: Its result.
    """

    function: Callable[[Job], Any]
    client: Hashable
    slot: Hashable | None = None
    future: Future[Any] = field(default_factory=Future)
    _abandoned: threading.Event = field(default_factory=threading.Event)

    def abandon(self) -> None:
        """Cancel the job if it waits; let it end at its next :meth:`check` if it runs."""
        self._abandoned.set()
        self.future.cancel()

    def check(self) -> None:
        """Raise AbandonedError if nobody waits for the result anymore."""
        if self._abandoned.is_set():
            raise AbandonedError


class Worker:
    """Runs jobs in one thread, in the order in which they were submitted.

    Args:
        limit: How many jobs may wait, those of all clients together.
        limit_per_client: How many jobs of one client may wait.
        rest: Frees what the jobs kept for the next one; it is called when no job has come for a while. None: nothing.
        rest_after: Seconds until then.
    """

    def __init__(
        self,
        limit: int,
        limit_per_client: int,
        rest: Callable[[], None] | None = None,
        rest_after: float = 60.0,
    ) -> None:
        self.limit, self.limit_per_client = limit, limit_per_client
        self._rest, self._rest_after = rest, rest_after
        self._waiting: deque[Job] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[Job], Any], client: Hashable, slot: Hashable | None = None) -> Job:
        """Append a job to the queue.

        Args:
            function: See :class:`Job`.
            client: See :class:`Job`.
            slot: See :class:`Job`. A waiting job of the same slot ends with SupersededError.

        Raises:
            ClientLimitError: If too many jobs of the client wait.
            QueueFullError: If too many jobs wait.
        """
        job = Job(function, client, slot)
        with self._condition:
            old = [other for other in self._waiting if slot is not None and other.slot == slot]
            self._waiting = deque(other for other in self._waiting if other not in old and not other.future.cancelled())
            for other in old:
                if other.future.set_running_or_notify_cancel():
                    other.future.set_exception(SupersededError())
            if sum(other.client == client for other in self._waiting) >= self.limit_per_client:
                raise ClientLimitError
            if len(self._waiting) >= self.limit:
                raise QueueFullError
            self._waiting.append(job)
            self._condition.notify()
        return job

    def waiting(self) -> int:
        """Return the number of jobs that wait."""
        with self._condition:
            return sum(not job.future.cancelled() for job in self._waiting)

    def close(self) -> None:
        """Cancel the jobs that wait; the thread ends with the running job, which is not waited for long."""
        with self._condition:
            self._closed = True
            for job in self._waiting:
                job.abandon()
            self._waiting.clear()
            self._condition.notify()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        timeout = None  # there is nothing to free before the first job
        while not self._closed:
            job = self._next(timeout)
            timeout = self._rest_after if job and self._rest else None
            if job is None:
                if self._rest and not self._closed:
                    try:
                        self._rest()
                    except Exception:  # the thread must live on for the next job
                        logger.exception("memory could not be freed")
                continue
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                result = job.function(job)
            except BaseException as error:  # the error belongs to whoever waits for the job
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
            del job  # a picture must not stay in memory until the next job comes

    def _next(self, timeout: float | None) -> Job | None:
        """Return the next job; None if none has come in time, or the queue is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._waiting or self._closed, timeout)
            return self._waiting.popleft() if self._waiting else None
