"""What small publications of one topic cost less together: those that come while the last ones are being committed become one
batch a partition.

    1st          handed to the engine at once
    2nd ... nth  while that is under way: encoded as they come, handed over together when it is done
    and so on

Nobody waits longer for it: the engine commits in groups too, and what comes while one is being synced goes with the next. But a
batch costs the same to seal, write, index and acknowledge however many records are in it [a batch 18 us of CPU, a record 1].
Each publication stays atomic, being in one frame. Order holds: whatever else is appended to the topic hands this over first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from broker.batch_header import HEADER_BYTES
from broker.columns import Batches, Columns, Place
from broker.compression import Compression
from broker.engine.base import Append, Appended
from broker.errors import Closed

# A reader of one record opens its whole batch, and walks it.
GATHERED_RECORDS_MAX = 1_000
GATHERED_BYTES_MAX = 256 * 1024

Places = list[tuple[int, int]]
Submit = Callable[[Sequence[Append]], tuple[list[Appended], "asyncio.Future[None] | None"]]


class Gathering:
    """Of one topic, on the owner thread. `submit` hands batches to the engine, durably; none has more than `batch_bytes_max`."""

    __slots__ = ("_batch_bytes_max", "_batches", "_compression", "_submit", "_topic", "_under_way", "_waiting")

    def __init__(self, topic: str, compression: Compression, batch_bytes_max: int, submit: Submit) -> None:
        self._batch_bytes_max = batch_bytes_max
        self._topic, self._compression, self._submit = topic, compression, submit
        self._batches: Batches | None = None
        self._waiting: list[tuple[asyncio.Future[Places], Places]] = []
        self._under_way = 0

    def add(self, columns: Columns, places: Sequence[Place], now_ms: int, size: int) -> asyncio.Future[Places]:
        """The records' partitions and offsets, when they are durable. `size` bounds what they take in their batches."""
        batches = self._batches
        if batches is not None and not self._fits(batches, columns, size):
            self.hand_over()
            batches = None
        if batches is None:
            batches = self._batches = Batches(columns.headers, now_ms)
        landed = batches.add(columns, places, now_ms)
        batches.size += size
        columns.release()
        waiter: asyncio.Future[Places] = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, landed))
        if not self._under_way:
            self.hand_over()
        return waiter

    def hand_over(self) -> None:
        """What was gathered goes to the engine now."""
        batches, waiting = self._batches, self._waiting
        if batches is None:
            return
        self._batches, self._waiting = None, []
        try:
            appended, durable = self._submit(batches.appends(self._topic, self._compression))
        except Exception as refusal:
            _refuse(waiting, refusal)
            return
        assert durable is not None
        self._under_way += 1

        def settled(outcome: asyncio.Future[None]) -> None:
            self._under_way -= 1
            refusal = Closed() if outcome.cancelled() else outcome.exception()
            if refusal is None:
                _answer(waiting, appended)
            else:
                _refuse(waiting, refusal)
            if not self._under_way:
                self.hand_over()

        durable.add_done_callback(settled)

    def _fits(self, batches: Batches, columns: Columns, size: int) -> bool:
        return (
            batches.headers is columns.headers
            and batches.count + columns.count <= GATHERED_RECORDS_MAX
            and batches.size + size <= min(GATHERED_BYTES_MAX, self._batch_bytes_max - HEADER_BYTES)
        )


def _answer(waiting: Sequence[tuple[asyncio.Future[Places], Places]], appended: Sequence[Appended]) -> None:
    base = {one.partition: one.base_offset for one in appended}
    for waiter, landed in waiting:
        if not waiter.done():
            waiter.set_result([(partition, base[partition] + index) for partition, index in landed])


def _refuse(waiting: Sequence[tuple[asyncio.Future[Places], Places]], refusal: BaseException) -> None:
    for waiter, _ in waiting:
        if not waiter.done():
            waiter.set_exception(refusal)
