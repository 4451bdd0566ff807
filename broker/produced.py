"""What a batch that a Kafka producer built is asked before it is stored: the checks of Kafka's `UnifiedLog` and `LogValidator`,
in their order, as far as the header answers them.

Records are opened only where something depends on them: on a compacted topic every record needs a key, and whoever may write some
keys only has each of them looked at. Elsewhere records that contradict their header are their readers' to find, and nothing here
takes time by their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.batch import keys
from broker.batch_errors import BatchTooLarge, IllegalBatch, TimestampRefused
from broker.batch_header import HEADER_BYTES, MAGIC, BatchHeader, verify
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
_NO_KEY = "Compacted topic cannot accept message without key in topic partition"  # Kafka's words


class Rules(msgspec.Struct, frozen=True, gc=False):
    """What a topic asks of batches, looked up once for each state of the topic."""

    topic: Topic
    batch_bytes_max: int
    compacted: bool
    dated_by_node: bool
    before_max_ms: int
    after_max_ms: int


def rules_of(topic: Topic) -> Rules:
    configs = topic.configs
    return Rules(topic, batch_bytes_max(configs), compacted(configs), dated_by_node(configs), *timestamp_bounds_ms(configs))


def check_produced(rules: Rules, batch: memoryview, now_ms: int) -> BatchHeader:
    """The header of the one batch that a producer may send to a partition at once.

    CorruptBatch, IllegalBatch, TimestampRefused, UnsupportedCompression, BatchTooLarge.
    """
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


def checked_keys(rules: Rules, batch: memoryview, *, wanted: bool) -> Sequence[bytes | None] | None:
    """The keys of its records, where the topic or the caller (`wanted`) asks for them; None where nobody does.

    IllegalBatch for records without a key on a compacted topic, and what `broker.batch.keys` raises.
    """
    if not rules.compacted and not wanted:
        return None
    found = keys(batch)
    if rules.compacted and None in found:
        without = [(index, _NO_KEY) for index, key in enumerate(found) if key is None]
        raise IllegalBatch(f"{len(without)} records without a key on a compacted topic", without[:RECORDS_NAMED_MAX])
    return found
