"""Produce (API 0), versions 3 to 13, by hand: records stay where they were received.

Versions, as ProduceRequest.json and ProduceResponse.json of Kafka 4.3 have them: 3 transactional id; 5 log start offset in the
answer; 8 record errors (KIP-467); 9 flexible (KIP-482); 10 current leader as tagged fields of the answer (KIP-951; never sent
here: the leader does not move); 12 implicit adding of partitions to transactions (KIP-890); 13 topics by id (KIP-516).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import msgspec

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.primitives import (
    check_count,
    check_partitions,
    compact_nullable_string,
    compact_string,
    nullable_string,
    read_compact_nullable_string,
    read_compact_string,
    read_count,
    read_nullable_string,
    read_string,
    read_uvarint,
    skip_tags,
    string,
    uvarint,
)

LOW, HIGH = 3, 13
FLEXIBLE_FROM, TOPIC_IDS_FROM = 9, 13

# A topic as the client named it: its name, or from version 13 on its id of 16 bytes.
TopicRef: TypeAlias = str | bytes

# Partition and what it is to be given: a view of the received buffer, None where the client sent null.
PartitionRecords: TypeAlias = tuple[int, memoryview | None]

_HEAD = struct.Struct(">hi")  # acks, timeout
_INT32 = struct.Struct(">i")
_PARTITION = struct.Struct(">ii")
_ANSWER_5 = struct.Struct(">ihqqq")
_ANSWER_3 = struct.Struct(">ihqq")

_TOPIC_BYTES_MIN = 2 + 4
_COMPACT_TOPIC_BYTES_MIN = 1 + 1 + 1
_PARTITION_BYTES_MIN = 4 + 1
_USUAL_BYTES_MIN = 32  # above all that is looked at before the records

_compact_name = lru_cache(1_024)(compact_string)  # the same few, in each request and its answer


class ProduceRequest(msgspec.Struct, frozen=True, gc=False):
    """`acks`: 0, 1 or -1 (all), whatever else the client sent; `timeout_ms` is how long it waits."""

    transactional_id: str | None
    acks: int
    timeout_ms: int
    topics: Sequence[tuple[TopicRef, Sequence[PartitionRecords]]]


class PartitionAnswer(msgspec.Struct, frozen=True, gc=False):
    """`record_errors`: index in the batch and why, of records that were refused; `message`: why the batch was."""

    partition: int
    error: int
    base_offset: int = -1
    append_time_ms: int = -1
    log_start: int = -1
    record_errors: Sequence[tuple[int, str | None]] = ()
    message: str | None = None


def parse_produce(version: int, body: memoryview) -> ProduceRequest:
    """The records are views of `body`, unopened. MessageInvalid for bytes that are no such request."""
    try:
        if version >= FLEXIBLE_FROM:
            return _parse_usual(version, body) or _parse_flexible(version, body)
        return _parse(body)
    except (IndexError, struct.error):
        raise MessageInvalid("a Produce request that ends inside a field") from None


def _parse(body: memoryview) -> ProduceRequest:
    transactional_id, position = read_nullable_string(body, 0)
    acks, timeout_ms = _HEAD.unpack_from(body, position)
    position += 6
    topics = []
    total = 0
    count = check_count(_INT32.unpack_from(body, position)[0], body, position, _TOPIC_BYTES_MIN)
    position += 4
    for _ in range(count):
        name, position = read_string(body, position)
        partitions = []
        count = check_count(_INT32.unpack_from(body, position)[0], body, position, _PARTITION_BYTES_MIN)
        position += 4
        for _ in range(count):
            partition, size = _PARTITION.unpack_from(body, position)
            position += 8
            records, position = _records(body, position, size)
            partitions.append((partition, records))
        topics.append((name, partitions))
        check_partitions(total := total + len(partitions))
    return ProduceRequest(transactional_id, acks, timeout_ms, topics)


def _parse_usual(version: int, body: memoryview) -> ProduceRequest | None:
    """One batch for one topic, without a transactional id and tagged fields, as most requests are: the same in fewer steps. None
    where it is not that."""
    size = len(body)
    if size < _USUAL_BYTES_MIN or body[0] != 0 or body[7] != 2:
        return None
    acks, timeout_ms = _HEAD.unpack_from(body, 1)
    topic: TopicRef
    if version >= TOPIC_IDS_FROM:
        at = 24
        topic = bytes(body[8:at])
    else:
        at = 8 + body[8]
        if body[8] >= 0x80 or body[8] == 0 or at + 7 > size:
            return None
        try:
            topic = str(body[9:at], "utf-8")
        except UnicodeDecodeError:
            return None
    if body[at] != 2:
        return None
    number, begin = read_uvarint(body, at + 5)
    end = begin + number - 1
    if number == 0 or bytes(body[end : end + 3]) != b"\0\0\0":
        return None
    return ProduceRequest(None, acks, timeout_ms, ((topic, ((_INT32.unpack_from(body, at + 1)[0], body[begin:end]),)),))


def _parse_flexible(version: int, body: memoryview) -> ProduceRequest:
    transactional_id, position = read_compact_nullable_string(body, 0)
    acks, timeout_ms = _HEAD.unpack_from(body, position)
    topics = []
    total = 0
    count, position = read_count(body, position + 6, _COMPACT_TOPIC_BYTES_MIN)
    for _ in range(count):
        topic: TopicRef
        if version >= TOPIC_IDS_FROM:
            topic = bytes(body[position : (position := position + 16)])
        else:
            topic, position = read_compact_string(body, position)
        partitions = []
        count, position = read_count(body, position, _PARTITION_BYTES_MIN)
        for _ in range(count):
            partition = _INT32.unpack_from(body, position)[0]
            size, position = read_uvarint(body, position + 4)
            records, position = _records(body, position, size - 1)
            position = skip_tags(body, position)
            partitions.append((partition, records))
        position = skip_tags(body, position)
        topics.append((topic, partitions))
        check_partitions(total := total + len(partitions))
    skip_tags(body, position)
    return ProduceRequest(transactional_id, acks, timeout_ms, topics)


def _records(body: memoryview, position: int, size: int) -> tuple[memoryview | None, int]:
    if size == -1:
        return None, position
    end = position + size
    if size < 0 or end > len(body):
        raise MessageInvalid(f"records of {size} bytes at byte {position}, where {len(body) - position} are left")
    return body[position:end], end


def build_produce(version: int, topics: Sequence[tuple[TopicRef, Sequence[PartitionAnswer]]], throttle_ms: int = 0) -> bytes:
    """The answer's body, topics and partitions in the order of the request."""
    flexible = version >= FLEXIBLE_FROM
    if flexible and len(topics) == 1 and not throttle_ms:
        topic, partitions = topics[0]
        if len(partitions) == 1 and not (answer := partitions[0]).error:
            return _build_landed(topic, answer)
    parts = [uvarint(len(topics) + 1) if flexible else _INT32.pack(len(topics))]
    for topic, partitions in topics:
        if not flexible:
            parts += (string(str(topic)), _INT32.pack(len(partitions)))
        else:
            parts += (topic if isinstance(topic, bytes) else compact_string(topic), uvarint(len(partitions) + 1))
        for answer in partitions:
            parts.append(_build_partition(version, answer))
        if flexible:
            parts.append(b"\x00")
    parts.append(_INT32.pack(throttle_ms))
    if flexible:
        parts.append(b"\x00")
    return b"".join(parts)


def _build_landed(topic: TopicRef, answer: PartitionAnswer) -> bytes:
    """The same, for one partition of one topic that has taken its batch: no errors of records, no message, no tags."""
    name = topic if isinstance(topic, bytes) else _compact_name(topic)
    numbers = _ANSWER_5.pack(answer.partition, 0, answer.base_offset, answer.append_time_ms, answer.log_start)
    return b"".join((b"\x02", name, b"\x02", numbers, b"\x01\x00\x00\x00\x00\x00\x00\x00\x00"))


def _build_partition(version: int, answer: PartitionAnswer) -> bytes:
    if version < 5:
        return _ANSWER_3.pack(answer.partition, answer.error, answer.base_offset, answer.append_time_ms)
    numbers = (answer.partition, answer.error, answer.base_offset, answer.append_time_ms, answer.log_start)
    fixed = _ANSWER_5.pack(*numbers)
    if version < 8:
        return fixed
    if version >= FLEXIBLE_FROM:
        if not answer.record_errors and answer.message is None:
            return fixed + b"\x01\x00\x00"
        errors = [_INT32.pack(index) + compact_nullable_string(why) + b"\x00" for index, why in answer.record_errors]
        return b"".join((fixed, uvarint(len(errors) + 1), *errors, compact_nullable_string(answer.message), b"\x00"))
    errors = [_INT32.pack(index) + nullable_string(why) for index, why in answer.record_errors]
    return b"".join((fixed, _INT32.pack(len(errors)), *errors, nullable_string(answer.message)))
