"""Where a partition begins: moved by retention and by whoever deletes records, durable as a state entry (decision 0001, 5).

The entry says what the files below it said: which offset and tag the first kept batch follows. So a partition of which no
file is left goes on at its offset, and a hole behind the log start is still told from records that were let go.
"""

from __future__ import annotations

import struct

import msgspec

from broker.log.index import BatchIndex
from broker.log.partition import Extent, LogStart, PartitionLog
from broker.log.state import ENTRY_VERSION, Entry, Kind, StateTable, check_entry_version, log_start_key
from broker.log.store import LogStore

_PLACE = struct.Struct("<16sI")


class _Value(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """The entry's value. Field order is the format."""

    version: int
    offset: int
    chain_in: bytes
    base_offset: int = -1
    cut_sequence: int = 0


def log_start_entry(log: PartitionLog, start: LogStart) -> Entry:
    value = _Value(ENTRY_VERSION, start.offset, start.chain_in, start.base_offset, start.cut_sequence)
    return Entry(Kind.LOG_START, log_start_key(log.topic_id, log.partition), msgspec.msgpack.encode(value))


def parse_log_start(entry: Entry) -> tuple[bytes, int, LogStart]:
    """Topic id, partition and its start."""
    assert entry.value is not None
    check_entry_version(f"the log start of topic {entry.key[:16].hex()}", entry.value)
    value = msgspec.msgpack.decode(entry.value, type=_Value)
    topic_id, partition = _PLACE.unpack(entry.key)
    base_offset = value.offset if value.base_offset < 0 else value.base_offset
    return topic_id, partition, LogStart(value.offset, value.chain_in, base_offset, value.cut_sequence)


def log_starts(table: StateTable) -> dict[tuple[bytes, int], LogStart]:
    """Of every partition that does not begin at 0."""
    found = map(parse_log_start, table.entries(Kind.LOG_START))
    return {(topic_id, partition): start for topic_id, partition, start in found}


def forgotten_starts(table: StateTable, topic_id: bytes) -> list[Entry]:
    """The deletes that go with the deletion of a topic."""
    return [Entry(Kind.LOG_START, entry.key, None) for entry in table.entries(Kind.LOG_START) if entry.key[:16] == topic_id]


async def start_at(store: LogStore, log: PartitionLog, offset: int) -> LogStart:
    """The start of a partition whose records below `offset` (at most its high watermark) are let go."""
    high_watermark, tag = log.high_watermark, log.visible_tag
    newest = log.extents[-1].summary.max_sequence if log.extents else log.cut_sequence
    at = log.extent_at_offset(offset)
    if offset == high_watermark or at >= len(log.extents):
        return LogStart(offset, tag, offset, newest)
    extent = log.extents[at]
    before = log.extents[at - 1] if at else None
    extent.file.hold()
    try:
        return _start_in(log, extent, await store.index_of(extent), before, offset)
    finally:
        extent.file.release()


def _start_in(log: PartitionLog, extent: Extent, index: BatchIndex, before: Extent | None, offset: int) -> LogStart:
    ordinal = index.at_offset(offset)
    if ordinal:
        previous = index.place(ordinal - 1)
        cut_sequence, chain_in = previous.sequence, previous.tag
    else:
        cut_sequence, chain_in = before.summary.max_sequence if before else log.cut_sequence, extent.summary.chain_in
    place = index.place(ordinal) if ordinal < len(index) else None
    if place is None or place.base_offset > offset:
        # Damage lies here: nothing names a predecessor, and what is missing from the offset on stays missing.
        return LogStart(offset, b"", offset, cut_sequence)
    if place.base_offset < offset:
        cut_sequence = place.sequence
    damaged = any(lost.start <= place.base_offset <= lost.end for lost in log.damage())
    return LogStart(offset, b"" if damaged else chain_in, place.base_offset, cut_sequence)
