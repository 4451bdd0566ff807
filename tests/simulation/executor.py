"""Lanes of blocking work on the owner's own thread: each piece runs whole at a moment of virtual time that the seed chose.

Between handing in and running, and between running and the arrival of the result, the owner thread and the other lanes go on:
that is where a real thread pool would interleave. Within one lane results arrive in the order of the work, except in `read`,
which has several workers. A piece is not interrupted half-way by another lane; the power may fail inside it at any operation.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from tests.simulation.faults import PowerCut
from tests.simulation.trace import Trace

Result = TypeVar("Result")

READ_WORKERS = 4
WORK_US = {"commit": 400, "read": 150, "manifest": 900, "background": 900}
"""Median length of a piece of work; a fdatasync on a common cloud disk takes 1-5 ms, most other pieces far less."""
SLOW_FACTOR = 50
"""A slow spell of the disk: what takes 0.4 ms takes 20."""


class Lane:
    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        self.idle = workers
        self.waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()


class SimulatedExecutor:
    def __init__(self, loop: asyncio.AbstractEventLoop, random: random.Random, trace: Trace) -> None:
        self._loop = loop
        self._random = random
        self._trace = trace
        self._lanes: dict[str, Lane] = {}
        self._slow_pieces_left = 0
        self._closed = False

    def run(self, lane: str, work: Callable[[], Result]) -> asyncio.Future[Result]:
        if self._closed:
            raise RuntimeError("the executor is closed")
        where = self._lanes.setdefault(lane, Lane(lane, READ_WORKERS if lane == "read" else 1))
        future: asyncio.Future[Result] = self._loop.create_future()
        where.waiting.append((work, future))
        self._next(where)
        return future

    def close(self) -> None:
        self._closed = True

    def slow_down(self, pieces: int) -> None:
        """The next pieces of work take `SLOW_FACTOR` times as long."""
        self._trace.count("slow disk")
        self._slow_pieces_left = pieces

    def _next(self, lane: Lane) -> None:
        if lane.idle and lane.waiting:
            lane.idle -= 1
            work, future = lane.waiting.popleft()
            self._loop.call_later(self._pause(lane), self._work, lane, work, future)

    def _work(self, lane: Lane, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self._trace.note("work", lane.name)
        result, error = None, None
        try:
            result = work()
        except PowerCut:
            return
        except Exception as raised:
            error = raised
        self._loop.call_later(self._pause(lane), self._finish, lane, future, result, error)

    def _finish(self, lane: Lane, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        lane.idle += 1
        if not future.cancelled():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._next(lane)

    def _pause(self, lane: Lane) -> float:
        """Seconds; mostly short, sometimes ten times as long, so that every order of lanes comes up."""
        pause_us = WORK_US.get(lane.name, 100) * self._random.expovariate(1.0)
        if self._random.random() < 0.05:
            pause_us *= 10
        if self._slow_pieces_left:
            self._slow_pieces_left -= 1
            pause_us *= SLOW_FACTOR
        return pause_us / 1_000_000
