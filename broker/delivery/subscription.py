"""A reader of one topic, or of one key of it, in commit order.

It pulls: nothing is read, kept or pushed before `next` is called, so a reader that stands still costs at most what its last
`next` fetched (`bytes_max`, or one batch if that is larger). Whoever stops between two calls loses nothing and sees nothing
twice: the cursor moves with each record that `next` returns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

import msgspec

from broker.batch import walk
from broker.delivery.position import Cursor, Start
from broker.engine.base import Damage, Engine, Stored, Tail
from broker.errors import BatchRefused, RecordTooLarge
from broker.record import Record
from broker.seams import Clock

# A reader whose key is rare steps over batches for so long, then comes up for air: one reader shall not hold the loop.
SCAN_BYTES_MAX = 8 * 1024 * 1024

# Ranges remembered between two looks of the owner; a reader far behind may cross many.
DAMAGE_MAX = 256


class Delivered(msgspec.Struct, gc=False):
    """`cursor` is the position after this record."""

    topic: str
    partition: int
    record: Record
    cursor: Cursor


def record_bytes(record: Record) -> int:
    """Bytes of key and value: what readers are charged for."""
    return len(record.key or b"") + len(record.value or b"")


class Subscription:
    """One consumer calls `next`, one call at a time. `key` None means every record; an empty key is a key.

    `damage` has the ranges lost by the media that were crossed since the owner last emptied it.
    """

    def __init__(self, engine: Engine, clock: Clock, topic: str, key: bytes | None, start: Start) -> None:
        self._engine, self._clock, self._topic, self._key = engine, clock, topic, key
        self._since_ms = start.since_ms
        self._fetched: deque[Stored] = deque()
        self._walk: Iterator[Delivered] = iter(())
        self._from_sequence = start.cursor.sequence
        self.cursor = start.cursor
        self._exhausted = False
        self.damage: dict[tuple[int, int], Damage] = {}

    @property
    def at_end(self) -> bool:
        """All that was visible at the last look was delivered; False where that is not known without another look."""
        return self._exhausted and self._from_sequence >= self._engine.next_sequence()

    async def next(self, *, bytes_max: int, records_max: int, wait_max_ms: int) -> list[Delivered]:
        """Up to `records_max` records, ending with the one that reaches `bytes_max`; waits only while there is none.

        May come back empty early, after stepping over SCAN_BYTES_MAX bytes: call again.
        """
        deadline_ms = self._clock.monotonic_ms() + wait_max_ms
        stepped_over = 0
        found = self._take(bytes_max, records_max)
        while not found and stepped_over < SCAN_BYTES_MAX:
            left_ms = max(0, deadline_ms - self._clock.monotonic_ms())
            tail = await self._engine.tail(
                self._topic, self._from_sequence, bytes_max=bytes_max, wait_max_ms=left_ms, key=self._key
            )
            self._receive(tail)
            if not tail.batches and left_ms == 0:
                break
            stepped_over += sum(len(stored.batch) for stored in tail.batches)
            found = self._take(bytes_max, records_max)
            if not found:
                await asyncio.sleep(0)  # a tail out of memory never suspends
        return found

    def _receive(self, tail: Tail) -> None:
        self._fetched.extend(tail.batches)
        self._from_sequence = tail.next_sequence
        if not tail.batches:
            self.cursor = max(self.cursor, Cursor(tail.next_sequence))
        for damage in tail.damage:
            self._note(damage)

    def _note(self, damage: Damage) -> None:
        if len(self.damage) < DAMAGE_MAX:
            self.damage[damage.partition, damage.from_offset] = damage

    def _take(self, bytes_max: int, records_max: int) -> list[Delivered]:
        found: list[Delivered] = []
        size = 0
        self._exhausted = False
        while len(found) < records_max and size < bytes_max:
            delivered = next(self._walk, None)
            if delivered is not None:
                found.append(delivered)
                size += record_bytes(delivered.record)
            elif self._fetched:
                self._walk = self._open(self._fetched.popleft())
            else:
                self._exhausted = True
                break
        return found

    def _open(self, stored: Stored) -> Iterator[Delivered]:
        """The batch's records that are wanted; the cursor is past the batch when it ends."""
        first = stored.base_offset
        if self.cursor.sequence == stored.sequence:
            first += self.cursor.index
        try:
            for record in walk(stored.batch):
                if record.offset >= first and self._wanted(record):
                    self.cursor = _cursor_after(stored, record)
                    yield Delivered(self._topic, stored.partition, record, self.cursor)
                    first = record.offset + 1
        except (BatchRefused, RecordTooLarge) as error:
            # It authenticated, so a producer made it so: without this, one such batch would stop every reader for ever.
            self._note(Damage(self._topic, stored.partition, first, stored.next_offset, str(error)))
        self.cursor = max(self.cursor, Cursor(stored.sequence + 1))

    def _wanted(self, record: Record) -> bool:
        if self._key is not None and record.key != self._key:
            return False
        if self._since_ms is None:
            return True
        if record.timestamp_ms < self._since_ms:
            return False
        self._since_ms = None
        return True


def _cursor_after(stored: Stored, record: Record) -> Cursor:
    """The next batch where the record is its batch's last: then nothing needs the batch any more."""
    if record.offset + 1 == stored.next_offset:
        return Cursor(stored.sequence + 1)
    return Cursor(stored.sequence, record.offset + 1 - stored.base_offset)
