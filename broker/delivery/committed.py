"""Reading a partition by offsets where transactions write to it: what is committed, and nothing beyond what is decided (Kafka's
read_committed). The engine does the same by itself for readers in commit order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from broker.engine.base import Engine, Fetched
from broker.seams import Clock
from broker.transactions.stability import Stability


async def fetch_committed(
    engine: Engine,
    stability: Stability,
    clock: Clock,
    topic: str,
    partition: int,
    offset: int,
    *,
    bytes_max: int,
    wait_max_ms: int,
) -> Fetched:
    """As `Engine.fetch`; `next_offset` is past what was aborted, and not past what is open."""
    deadline_ms = clock.monotonic_ms() + wait_max_ms
    while True:
        seen = engine.next_sequence()
        left_ms = max(0, deadline_ms - clock.monotonic_ms())
        fetched = await engine.fetch(topic, partition, offset, bytes_max=bytes_max, wait_max_ms=left_ms)
        found = _committed(engine, stability, topic, partition, fetched)
        if found.batches or found.damage or not fetched.batches:
            return found
        offset, stepped = max(offset, found.next_offset), found.next_offset > offset
        if stepped and offset < fetched.high_watermark:
            continue
        if not await _changed(engine, clock, topic, seen, deadline_ms):
            return found


def _committed(engine: Engine, stability: Stability, topic: str, partition: int, fetched: Fetched) -> Fetched:
    known = engine.topics().get(topic)
    if known is None or not fetched.batches:
        return fetched
    end = stability.stable_offset(known.topic_id, partition, fetched.high_watermark)
    kept = [stored for stored in fetched.batches if stored.base_offset < end and stability.committed(known.topic_id, stored)]
    return msgspec.structs.replace(fetched, batches=kept, next_offset=min(fetched.next_offset, end))


async def _changed(engine: Engine, clock: Clock, topic: str, seen: int, deadline_ms: int) -> bool:
    """Wait for a commit on the topic since `seen`; False when the deadline passed first."""
    left_ms = deadline_ms - clock.monotonic_ms()
    if left_ms <= 0:
        return False
    if engine.next_sequence() != seen:
        return True
    happened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    unwatch = engine.watch(topic, _once(happened))
    try:
        async with asyncio.timeout(left_ms / 1000):
            await happened
    except TimeoutError:
        return False
    finally:
        unwatch()
    return True


def _once(happened: asyncio.Future[None]) -> Callable[[], None]:
    def wake() -> None:
        if not happened.done():
            happened.set_result(None)

    return wake
