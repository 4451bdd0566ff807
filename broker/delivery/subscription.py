"""A reader of one topic, of one key of it, or of what a filter wants of many, in commit order.

It pulls: nothing is read, kept or pushed before `next` is called, so a reader that stands still costs at most what its last
`next` fetched (`bytes_max`, or one batch if that is larger). Whoever stops between two calls loses nothing and sees nothing
twice: the cursor moves with each record that `next` returns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec

from broker.batch import keys
from broker.delivery.expiry import living
from broker.delivery.position import Cursor, Start
from broker.delivery.source import Source
from broker.engine.base import Damage, Engine, Gap, Scan, Stored
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


Wanted: TypeAlias = Callable[[Record], bool]
WantedKey: TypeAlias = Callable[[bytes | None], bool]


class Subscription:
    """One consumer calls `next`, one call at a time. `wanted` None means every record that the source has; `wanted_key` is false
    for keys of which none is wanted.

    `damage` has the ranges lost by the media that were crossed since the owner last emptied it, `gaps` those that retention or a
    deletion took before this reader came. What has expired is left out, and said nowhere.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        source: Source,
        start: Start,
        wanted: Wanted | None = None,
        wanted_key: WantedKey | None = None,
    ) -> None:
        self._engine, self._clock, self._source = engine, clock, source
        self._wanted, self._wanted_key = wanted, wanted_key
        self._rare = False
        self._since_ms = start.since_ms
        self._fetched: deque[tuple[str, Stored]] = deque()
        self._walk: Iterator[Delivered] = iter(())
        self._from_sequence = start.cursor.sequence
        self.cursor = start.cursor
        self._exhausted = False
        self._looked_to = 0
        self.damage: dict[tuple[str, int, int], Damage] = {}
        self.gaps: dict[tuple[str, int], Gap] = {}

    def seek(self, cursor: Cursor) -> None:
        """Go on there; what was read and not taken is given up."""
        self._fetched.clear()
        self._walk = iter(())
        self._from_sequence, self.cursor = cursor.sequence, cursor
        self._since_ms, self._exhausted, self._looked_to = None, False, 0

    @property
    def at_end(self) -> bool:
        """All that was visible at the last look was delivered; False where that is not known without another look."""
        return self._exhausted and max(self._from_sequence, self._looked_to) >= self._engine.next_sequence()

    async def next(self, *, bytes_max: int, records_max: int, wait_max_ms: int) -> list[Delivered]:
        """Up to `records_max` records, ending with the one that reaches `bytes_max`; waits only while there is none.

        May come back empty early, after stepping over SCAN_BYTES_MAX bytes: call again.
        """
        deadline_ms = self._clock.monotonic_ms() + wait_max_ms
        stepped_over = 0
        found = self._take(bytes_max, records_max)
        while not found and stepped_over < SCAN_BYTES_MAX:
            left_ms = max(0, deadline_ms - self._clock.monotonic_ms())
            visible = self._engine.next_sequence()
            scan = await self._source.read(self._from_sequence, bytes_max=bytes_max, wait_max_ms=left_ms)
            self._receive(scan)
            if not scan.batches:
                self._looked_to = visible  # an open transaction may hold back what is there
            if not scan.batches and left_ms == 0:
                break
            stepped_over += sum(len(stored.batch) for _, stored in scan.batches)
            found = self._take(bytes_max, records_max)
            if not found:
                await asyncio.sleep(0)  # a read out of memory never suspends
        return found

    def _receive(self, scan: Scan) -> None:
        self._fetched.extend(scan.batches)
        self._from_sequence = scan.next_sequence
        if not scan.batches:
            self.cursor = max(self.cursor, Cursor(scan.next_sequence))
        for damage in scan.damage:
            self._note(damage)
        for gap in scan.gap:
            if len(self.gaps) < DAMAGE_MAX:
                self.gaps[gap.topic, gap.partition] = gap

    def _note(self, damage: Damage) -> None:
        if len(self.damage) < DAMAGE_MAX:
            self.damage[damage.topic, damage.partition, damage.from_offset] = damage

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
                topic, stored = self._fetched.popleft()
                if self._rare and self._wants_none(stored):
                    self.cursor = max(self.cursor, Cursor(stored.sequence + 1))
                else:
                    self._walk = self._open(topic, stored)
            else:
                self._exhausted = True
                break
        return found

    def _open(self, topic: str, stored: Stored) -> Iterator[Delivered]:
        """The batch's records that are wanted; the cursor is past the batch when it ends."""
        first = stored.base_offset
        if self.cursor.sequence == stored.sequence:
            first += self.cursor.index
        wanted, self._rare = self._wanted, True
        try:
            for record in living(stored, self._clock):
                if (
                    record.offset >= first
                    and (wanted is None or wanted(record))
                    and (self._since_ms is None or self._begins(record))
                ):
                    self._rare = False
                    self.cursor = _cursor_after(stored, record)
                    yield Delivered(topic, stored.partition, record, self.cursor)
                    first = record.offset + 1
        except (BatchRefused, RecordTooLarge) as error:
            # It authenticated, so a producer made it so: without this, one such batch would stop every reader for ever.
            self._note(Damage(topic, stored.partition, first, stored.next_offset, str(error)))
        self.cursor = max(self.cursor, Cursor(stored.sequence + 1))

    def _wants_none(self, stored: Stored) -> bool:
        """By its keys alone, a quarter of the work of reading its records: asked after a batch of which nothing was wanted."""
        if self._wanted_key is None:
            return False
        try:
            return not any(map(self._wanted_key, set(keys(stored.batch))))
        except (BatchRefused, RecordTooLarge):
            return False  # whoever opens it reports it

    def _begins(self, record: Record) -> bool:
        """Whether the reader's time is reached: from the first such record on, times do not matter."""
        if self._since_ms is not None and record.timestamp_ms < self._since_ms:
            return False
        self._since_ms = None
        return True


def _cursor_after(stored: Stored, record: Record) -> Cursor:
    """The next batch where the record is its batch's last: then nothing needs the batch any more."""
    if record.offset + 1 == stored.next_offset:
        return Cursor(stored.sequence + 1)
    return Cursor(stored.sequence, record.offset + 1 - stored.base_offset)
