"""The next page of readers that go through files in order, read and opened while they handle the last one.

A reader that asks for what comes right behind its last page is taken to go on. Its next page is then read before it asks: the
disk and the cipher work beside the reader, not before it. What was read ahead is given to one reader once, and only if nothing
that it depends on changed meanwhile. Owner thread.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar

from broker.log.partition import PartitionLog

PLACES_MAX = 1024  # where readers stopped, newest last: of more than these one that goes on is not recognised
LOGS_MAX = 64  # partitions of one page; a reader of more is bound by other things than reading
Page = TypeVar("Page")


class _Ahead(Generic[Page]):
    """One page under way. `state` is what it depends on."""

    __slots__ = ("logs", "size", "state", "task")

    def __init__(self, task: asyncio.Task[Page], size: int, logs: Sequence[PartitionLog]) -> None:
        self.task = task
        self.size = size
        self.logs = logs
        self.state = _state(logs)


class ReadAhead(Generic[Page]):
    """`bytes_max` bounds all pages together: those under way and those that wait for their reader."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.size = 0
        self.hits = 0
        self._pages: OrderedDict[Hashable, _Ahead[Page]] = OrderedDict()
        self._places: OrderedDict[Hashable, None] = OrderedDict()

    def goes_on(self, place: Hashable) -> bool:
        """Whether a reader stopped where this one begins."""
        return place in self._places

    def has(self, place: Hashable) -> bool:
        """Whether the page that begins here is there or under way."""
        return place in self._pages

    async def take(self, place: Hashable) -> Page | None:
        """The page that begins here, if it was read ahead and still holds."""
        ahead = self._pages.pop(place, None)
        if ahead is None:
            return None
        self.size -= ahead.size
        await asyncio.wait([ahead.task])
        if ahead.task.cancelled() or ahead.task.exception() is not None or ahead.state != _state(ahead.logs):
            return None  # whatever it was: the reader finds out for itself
        self.hits += 1
        return ahead.task.result()

    def stopped(self, place: Hashable) -> None:
        """A reader's page ended here."""
        self._places[place] = None
        self._places.move_to_end(place)
        if len(self._places) > PLACES_MAX:
            self._places.popitem(last=False)

    def start(
        self, place: Hashable, size: int, logs: Sequence[PartitionLog], read: Callable[[], Coroutine[Any, Any, Page]]
    ) -> None:
        """Read the page that begins here, of at most about `size` bytes, if there is room for it."""
        if place in self._pages or len(logs) > LOGS_MAX or not self._make_room(size):
            return
        task = asyncio.get_running_loop().create_task(read(), name="read-ahead")
        task.add_done_callback(_look)
        self._pages[place] = _Ahead(task, size, logs)
        self.size += size

    def _make_room(self, size: int) -> bool:
        """Pages that nobody came for go first, the oldest before the others."""
        while self._pages and self.size + size > self.bytes_max:
            place, oldest = next(iter(self._pages.items()))
            if not oldest.task.done():
                return False
            del self._pages[place]
            self.size -= oldest.size
        return self.size + size <= self.bytes_max

    async def close(self) -> None:
        """No page is under way when this returns."""
        tasks = [ahead.task for ahead in self._pages.values()]
        self._pages.clear()
        self.size = 0
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _state(logs: Sequence[PartitionLog]) -> list[tuple[int, int, int]]:
    """Records that were let go, found damaged, or compacted, are not given out."""
    return [(log.log_start, log.generation, sum(len(extent.summary.damage) for extent in log.extents)) for log in logs]


def _look(task: asyncio.Task[Any]) -> None:
    """An error that nobody came for is no news: the next reader meets it itself."""
    if not task.cancelled():
        task.exception()
