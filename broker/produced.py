"""What a batch that a Kafka producer built is asked before it is stored: the checks of Kafka's `UnifiedLog` and `LogValidator`,
in their order, as far as the header answers them.

Records are opened only where something depends on them: on a compacted topic every record needs a key, and whoever may write some
keys only has each of them looked at. Elsewhere records that contradict their header are their readers' to find, and nothing here
takes time by their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import crc32c
import msgspec

from broker.batch import keys
from broker.batch_errors import BatchTooLarge, IllegalBatch, TimestampRefused, TooManyRecords
from broker.batch_header import (
    CHECKED_FROM,
    CODEC,
    CONTROL,
    HEADER_BYTES,
    MAGIC,
    TRANSACTIONAL,
    BatchHeader,
    sound_header,
    verify,
)
from broker.engine.base import Topic
from broker.topics.configs import (
    MESSAGE_BYTES_MAX,
    TIMESTAMP_AFTER_MAX_MS,
    TIMESTAMP_BEFORE_MAX_MS,
    batch_bytes_max,
    compacted,
    dated_by_node,
    timestamp_bounds_ms,
)

_LENGTH_AT, _LENGTH_END, _MAGIC_AT = 8, 12, 16

RECORDS_NAMED_MAX = 100
RECORDS_MAX = 250_000  # walked in half a second; clients send 10,000 and less
RECORDS_MAX_NAME = "pipeline.batch_records_max"
OPENED_AT_ONCE_MAX = 1_000  # records of a batch that may be opened on the event loop: 2 ms
_NO_KEY = "Compacted topic cannot accept message without key in topic partition"  # Kafka's words


class Rules(msgspec.Struct, frozen=True, gc=False):
    """What a topic asks of batches, looked up once for each state of the topic."""

    topic: Topic
    batch_bytes_max: int
    compacted: bool
    dated_by_node: bool
    before_max_ms: int
    after_max_ms: int
    records_max: int


def rules_of(topic: Topic, records_max: int = RECORDS_MAX) -> Rules:
    configs = topic.configs
    bounds_ms = timestamp_bounds_ms(configs)
    return Rules(topic, batch_bytes_max(configs), compacted(configs), dated_by_node(configs), *bounds_ms, records_max)


def check_produced(rules: Rules, batch: memoryview, now_ms: int) -> BatchHeader:
    """The header of the one batch that a producer may send to a partition at once.

    CorruptBatch, IllegalBatch, TimestampRefused, UnsupportedCompression, BatchTooLarge, TooManyRecords.
    """
    size = len(batch)
    header = sound_header(batch)
    if (
        header is not None
        and size <= rules.batch_bytes_max
        and header.count <= rules.records_max
        and not header.attributes & CONTROL
        and (header.base_sequence >= 0 if header.producer_id >= 0 else not header.attributes & TRANSACTIONAL)
        and (
            rules.dated_by_node
            or (
                header.max_timestamp_ms - now_ms <= rules.after_max_ms
                and now_ms - header.base_timestamp_ms <= rules.before_max_ms
            )
        )
        and crc32c.crc32c(batch[CHECKED_FROM:]) == header.crc
    ):
        return header
    return _check_by_steps(rules, batch, now_ms)


def _check_by_steps(rules: Rules, batch: memoryview, now_ms: int) -> BatchHeader:
    """The same, one after the other, for who has to be told what is wrong."""
    size = len(batch)
    if size <= _MAGIC_AT:
        raise IllegalBatch("there is no record batch")
    length = int.from_bytes(batch[_LENGTH_AT:_LENGTH_END], "big", signed=True) + _LENGTH_END
    if length > size:
        raise IllegalBatch(f"{size} bytes of a record batch of {length}")
    if length >= HEADER_BYTES:  # what is shorter contradicts itself
        if batch[_MAGIC_AT] != MAGIC:
            raise IllegalBatch(f"format {batch[_MAGIC_AT]} of record batches, where 2 is the only one")
        if length < size:
            raise IllegalBatch("more than one record batch for a partition")
    if size > rules.batch_bytes_max:
        raise BatchTooLarge("record batch", size, MESSAGE_BYTES_MAX, rules.batch_bytes_max)
    header = verify(batch)
    if header.base_offset != 0:
        raise IllegalBatch(f"a base offset of {header.base_offset}, where producers send 0")
    if header.is_control:
        raise IllegalBatch("control records are the node's to write")
    if header.count < 1 or header.last_offset_delta != header.count - 1:
        raise IllegalBatch(f"{header.count} records, and a last offset delta of {header.last_offset_delta}")
    if header.count > rules.records_max:
        raise TooManyRecords(header.count, RECORDS_MAX_NAME, rules.records_max)
    if header.producer_id >= 0:
        if header.base_sequence < 0:
            raise IllegalBatch(f"a producer id with sequence {header.base_sequence}")
    elif header.is_transactional:
        raise IllegalBatch("a transactional batch without a producer id")
    if not rules.dated_by_node:
        _check_times(rules, header, now_ms)
    return header


def _check_times(rules: Rules, header: BatchHeader, now_ms: int) -> None:
    """Those of the header: its newest record's, and its first one's."""
    if header.max_timestamp_ms - now_ms > rules.after_max_ms:
        raise TimestampRefused(header.max_timestamp_ms, now_ms, TIMESTAMP_AFTER_MAX_MS, rules.after_max_ms)
    if now_ms - header.base_timestamp_ms > rules.before_max_ms:
        raise TimestampRefused(header.base_timestamp_ms, now_ms, TIMESTAMP_BEFORE_MAX_MS, rules.before_max_ms)


def opens_slowly(header: BatchHeader) -> bool:
    """Whether opening it may take long: by many records, or by what it decompresses to, which nobody knows before."""
    return header.count > OPENED_AT_ONCE_MAX or bool(header.attributes & CODEC)


def checked_keys(rules: Rules, batch: memoryview, *, wanted: bool) -> Sequence[bytes | None] | None:
    """The keys of its records, where the topic or the caller (`wanted`) asks for them; None where nobody does.

    IllegalBatch for records without a key on a compacted topic, and what `broker.batch.keys` raises.
    """
    if not rules.compacted and not wanted:
        return None
    return with_keys(rules, keys(batch))


def with_keys(rules: Rules, found: Sequence[bytes | None]) -> Sequence[bytes | None]:
    """The keys, where the topic takes them. IllegalBatch."""
    if rules.compacted and None in found:
        without = [(index, _NO_KEY) for index, key in enumerate(found) if key is None]
        raise IllegalBatch(f"{len(without)} records without a key on a compacted topic", without[:RECORDS_NAMED_MAX])
    return found
