"""Bounded queues of tasks: order, limit, errors and abandoned iterations."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from IS_Net.bounded import BoundedQueue, map_bounded


class IdlePool:
    """A pool whose tasks never run."""

    def __init__(self) -> None:
        self.futures: list[Future] = []

    def submit(self, function, /, *args) -> Future:
        future: Future = Future()
        self.futures.append(future)
        return future


@pytest.mark.parametrize("limit", [1, 3, 50])
def test_results_come_in_the_order_of_the_items(limit):
    def slow_for_even(number: int) -> int:
        time.sleep(0.004 * (number % 2 == 0))
        return number**2

    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in map_bounded(pool, slow_for_even, range(20), limit)]
    assert found == [number**2 for number in range(20)]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_never_more_items_are_drawn_than_the_limit_allows(limit):
    drawn = []

    def endless():
        while True:
            drawn.append(len(drawn))
            yield drawn[-1]

    pool = IdlePool()
    results = map_bounded(pool, str, endless(), limit)
    for number in range(10):
        future = next(results)
        assert future is pool.futures[number] and not future.done()
        assert len(drawn) == len(pool.futures) == number + limit


def test_an_error_is_raised_by_the_future_of_its_item():
    with ThreadPoolExecutor(2) as pool:
        first, second, third = map_bounded(pool, lambda x: 1 / x, [1, 0, 2], limit=2)
        assert (first.result(), third.result()) == (1, 0.5)
        with pytest.raises(ZeroDivisionError):
            second.result()


def test_tasks_of_an_abandoned_iteration_are_canceled():
    pool = IdlePool()
    results = map_bounded(pool, str, range(100), limit=4)
    next(results)
    results.close()
    assert [future.cancelled() for future in pool.futures] == [False, True, True, True]


def test_a_full_queue_waits_for_its_oldest_task():
    release, ended = threading.Event(), []

    def task(number: int) -> None:
        release.wait(10)
        ended.append(number)

    with ThreadPoolExecutor(1) as pool:
        queue = BoundedQueue(pool, limit=2)
        queue.submit(task, 0)
        queue.submit(task, 1)
        threading.Timer(0.05, release.set).start()
        queue.submit(task, 2)
        assert ended[:1] == [0]  # the queue had room only after task 0
        queue.close()
        assert ended == [0, 1, 2]


def test_errors_of_tasks_are_raised_at_the_latest_on_closing():
    done = []
    with ThreadPoolExecutor(2) as pool:
        queue = BoundedQueue(pool, limit=2)
        queue.submit(int, "no number")
        queue.submit(done.append, 1)
        with pytest.raises(ValueError, match="no number"):
            queue.submit(done.append, 2)
        queue.submit(int, "neither")
        with pytest.raises(ValueError, match="neither"):
            queue.close()
    assert done == [1]
