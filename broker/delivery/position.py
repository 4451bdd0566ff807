"""Where a reader begins (`Position`) and where it stands (`Cursor`)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from broker.engine.base import Engine, Stored
from broker.errors import BrokerError

_CURSOR = re.compile(r"([0-9]{1,19})-([0-9]{1,10})", re.ASCII)
_SEQUENCE_MAX = 2**63 - 1


class CursorAhead(BrokerError):
    """A cursor of another node, or of this one before its data were restored from an older copy."""

    def __init__(self, cursor: Cursor, next_sequence: int) -> None:
        self.cursor, self.next_sequence = str(cursor), next_sequence
        super().__init__(
            f"cursor {cursor} is ahead of this node's log, which goes on at {next_sequence}-0: "
            "it was given by another node or before a restore; begin at a timestamp or at earliest"
        )


class CursorUnknown(CursorAhead):
    """A cursor that no answer of this node ever held: its place lies beyond the records of its batch. Taken as it is, it would
    step over records without a word."""

    def __init__(self, cursor: Cursor, places: int) -> None:
        BrokerError.__init__(
            self, f"cursor {cursor} names no place in this log: there are {places} in that batch; take one that an answer gave"
        )
        self.cursor, self.next_sequence = str(cursor), cursor.sequence + 1


class PositionRefused(BrokerError):
    """A position that does not fit what is read: an offset where several topics are."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; begin at earliest, latest, a time or a cursor")


class Cursor(msgspec.Struct, frozen=True, order=True, gc=False):
    """The next record to deliver: in the batch with this commit sequence, so many offsets after its first.

    An offset difference and not a count of records, so that a cursor stays right when a batch loses records to compaction.
    As text `<sequence>-<index>`, the `id:` of Server-Sent Events.
    """

    sequence: int
    index: int = 0

    def __str__(self) -> str:
        return f"{self.sequence}-{self.index}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises `ValueError`."""
        match = _CURSOR.fullmatch(text)
        if match is None or int(match[1]) > _SEQUENCE_MAX:
            raise ValueError("a cursor looks like 1042-7 and is given by an earlier answer")
        return cls(int(match[1]), int(match[2]))


class AtOffset(msgspec.Struct, frozen=True, gc=False):
    """The record with this offset, or the first one after it; other partitions go on from the same commit."""

    partition: int
    offset: int


class AtTime(msgspec.Struct, frozen=True, gc=False):
    """The first record at or after this time, as in Kafka: what was committed later follows whatever its timestamp."""

    timestamp_ms: int


Position: TypeAlias = Literal["earliest", "latest"] | Cursor | AtOffset | AtTime


class Start(msgspec.Struct, frozen=True, gc=False):
    """A position found in the log. Records before `since_ms` are left out up to the first that is not."""

    cursor: Cursor
    since_ms: int | None = None


async def find_start(engine: Engine, topic: str, position: Position) -> Start:
    """Raises `CursorAhead`, `UnknownTopic`, `UnknownPartition`, `OffsetOutOfRange`."""
    if position == "earliest":
        return Start(Cursor(0))
    if position == "latest":
        return Start(Cursor(engine.next_sequence()))
    if isinstance(position, Cursor):
        if position > Cursor(engine.next_sequence()):
            raise CursorAhead(position, engine.next_sequence())
        return Start(position)
    if isinstance(position, AtTime):
        return Start(Cursor(await engine.sequence_for_time(topic, position.timestamp_ms)), since_ms=position.timestamp_ms)
    return Start(await _cursor_of(engine, topic, position.partition, position.offset))


def check_cursor(cursor: Cursor, batches: Sequence[Stored]) -> None:
    """`batches` are what follows from the cursor's sequence on, the first at least. Raises `CursorUnknown`."""
    for stored in batches[:1]:
        places = stored.next_offset - stored.base_offset
        if stored.sequence == cursor.sequence and cursor.index >= places:
            raise CursorUnknown(cursor, places)


async def find_start_of_many(engine: Engine, topics: Sequence[str], position: Position) -> Start:
    """The same for a reader of these topics, and of more that may come. Raises `CursorAhead`, `PositionRefused`."""
    if isinstance(position, AtOffset):
        raise PositionRefused("an offset is a place in one topic's partition, and the filter may reach many topics")
    if not isinstance(position, AtTime):
        return await find_start(engine, "", position)
    sequence = engine.next_sequence()
    for topic in topics:
        if topic in engine.topics():  # it may be deleted while the others are looked at
            sequence = min(sequence, await engine.sequence_for_time(topic, position.timestamp_ms))
            await asyncio.sleep(0)  # a look-up out of memory never suspends, and there may be thousands
    return Start(Cursor(sequence), since_ms=position.timestamp_ms)


async def _cursor_of(engine: Engine, topic: str, partition: int, offset: int) -> Cursor:
    # Taken first: a batch that is committed during the fetch must not fall between the two.
    end = Cursor(engine.next_sequence())
    while True:
        fetched = await engine.fetch(topic, partition, offset, bytes_max=1)
        if fetched.batches:
            first = fetched.batches[0]
            return Cursor(first.sequence, max(0, offset - first.base_offset))
        if fetched.next_offset <= offset or fetched.next_offset >= fetched.high_watermark:
            return end
        offset = fetched.next_offset
