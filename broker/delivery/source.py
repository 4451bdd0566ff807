"""Where a subscription's batches come from: one topic, one key of it, or every topic that a filter reaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from broker.engine.base import Engine, Scan


class Source(Protocol):
    """Batches in commit order. All methods of the engine's contract hold: visible only, at least one if there is one."""

    async def read(self, from_sequence: int, *, bytes_max: int, wait_max_ms: int) -> Scan: ...


class TopicSource:
    """One topic; with `key`, only batches that may hold it. UnknownTopic once the topic is gone."""

    def __init__(self, engine: Engine, topic: str, key: bytes | None = None) -> None:
        self._engine, self._topic, self._key = engine, topic, key

    async def read(self, from_sequence: int, *, bytes_max: int, wait_max_ms: int) -> Scan:
        tail = await self._engine.tail(self._topic, from_sequence, bytes_max=bytes_max, wait_max_ms=wait_max_ms, key=self._key)
        return Scan([(self._topic, stored) for stored in tail.batches], tail.next_sequence, tail.damage, tail.gap)


class ScanSource:
    """Every topic for which `topics` is true, whenever it was made."""

    def __init__(self, engine: Engine, topics: Callable[[str], bool]) -> None:
        self._engine, self._topics = engine, topics

    async def read(self, from_sequence: int, *, bytes_max: int, wait_max_ms: int) -> Scan:
        return await self._engine.scan(from_sequence, topics=self._topics, bytes_max=bytes_max, wait_max_ms=wait_max_ms)
