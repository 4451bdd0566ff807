"""Fetch (API 1), versions 4 to 18, by hand: batches go out from where they lie.

Versions, as FetchRequest.json and FetchResponse.json of Kafka 4.3 have them: 5 log start offset; 7 fetch sessions (KIP-227); 9
leader epoch (KIP-320); 11 rack (KIP-392); 12 flexible, last fetched epoch (KIP-595); 13 topics by id (KIP-516); 15 the replica's
state as a tagged field (KIP-903); 16 endpoints of nodes as a tagged field of the answer (KIP-951; never sent here); 17 and 18 are
tagged fields of replicas.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.primitives import (
    check_count,
    check_partitions,
    compact_string,
    read_compact_string,
    read_count,
    read_string,
    skip_tags,
    string,
    uvarint,
)
from gateway.wire.kafka.produce import TopicRef

LOW, HIGH = 4, 18
SESSIONS_FROM, FLEXIBLE_FROM, TOPIC_IDS_FROM = 7, 12, 13

_INT32 = struct.Struct(">i")
_HEAD_4 = struct.Struct(">iiiib")  # replica, wait, bytes at least, bytes at most, isolation
_HEAD_7 = struct.Struct(">iiiibii")  # and session, epoch
_HEAD_15 = struct.Struct(">iiibii")  # without the replica
_PARTITION_4 = struct.Struct(">iqi")
_PARTITION_5 = struct.Struct(">iqqi")
_PARTITION_9 = struct.Struct(">iiqqi")
_PARTITION_12 = struct.Struct(">iiqiqi")
_ROWS_12 = struct.Struct(">iiqiqiB")  # and no tagged fields
_ANSWER_4 = struct.Struct(">ihqq")
_ANSWER_5 = struct.Struct(">ihqqq")
_NOTHING_12 = struct.Struct(">ihqqqBiBB")  # a partition without batches: aborted, replica, records, tagged fields
_ABORTED = struct.Struct(">qq")
_SESSION = struct.Struct(">ihi")

_TOPIC_BYTES_MIN = 2 + 4
_COMPACT_TOPIC_BYTES_MIN = 1 + 1 + 1
NO_REPLICA = -1


class PartitionWanted(msgspec.Struct, frozen=True, gc=False):
    """`leader_epoch` -1: the client does not know one."""

    partition: int
    offset: int
    bytes_max: int
    leader_epoch: int = -1


class FetchRequest(msgspec.Struct, frozen=True, gc=False):
    """`replica_id` is -1 for clients; `read_committed` is isolation level 1. `session_epoch` -1: no session (KIP-227)."""

    replica_id: int
    wait_max_ms: int
    bytes_min: int
    bytes_max: int
    read_committed: bool
    session_id: int
    session_epoch: int
    topics: Sequence[tuple[TopicRef, Sequence[PartitionWanted]]]
    forgotten: Sequence[tuple[TopicRef, Sequence[int]]] = ()


class PartitionFetched(msgspec.Struct, frozen=True, gc=False):
    """`aborted`: producer id and first offset of aborted transactions within the batches; None for a reader that did not ask."""

    partition: int
    error: int = 0
    high_watermark: int = -1
    last_stable_offset: int = -1
    log_start: int = -1
    aborted: Sequence[tuple[int, int]] | None = None
    batches: Sequence[bytes] = ()


def parse_fetch(version: int, body: memoryview) -> FetchRequest:
    """MessageInvalid for bytes that are no such request."""
    try:
        return _parse_flexible(version, body) if version >= FLEXIBLE_FROM else _parse(version, body)
    except (IndexError, struct.error):
        raise MessageInvalid("a Fetch request that ends inside a field") from None


def _parse(version: int, body: memoryview) -> FetchRequest:
    if version >= SESSIONS_FROM:
        replica, wait, bytes_min, bytes_max, isolation, *session = _HEAD_7.unpack_from(body, 0)
        position = _HEAD_7.size
    else:
        replica, wait, bytes_min, bytes_max, isolation = _HEAD_4.unpack_from(body, 0)
        session, position = [0, -1], _HEAD_4.size
    fields = _PARTITION_9 if version >= 9 else _PARTITION_5 if version >= 5 else _PARTITION_4
    topics = []
    total = 0
    count = check_count(_INT32.unpack_from(body, position)[0], body, position, _TOPIC_BYTES_MIN)
    position += 4
    for _ in range(count):
        name, position = read_string(body, position)
        count = check_count(_INT32.unpack_from(body, position)[0], body, position, fields.size)
        position += 4
        end = position + count * fields.size
        if end > len(body):
            raise MessageInvalid("a Fetch request that ends inside a field")
        check_partitions(total := total + count)
        rows = fields.iter_unpack(body[position:end])
        topics.append((name, [_wanted(version, row) for row in rows]))
        position = end
    forgotten = []
    if version >= SESSIONS_FROM:
        count = check_count(_INT32.unpack_from(body, position)[0], body, position, _TOPIC_BYTES_MIN)
        position += 4
        for _ in range(count):
            name, position = read_string(body, position)
            count = check_count(_INT32.unpack_from(body, position)[0], body, position, 4)
            position += 4
            forgotten.append((name, struct.unpack_from(f">{count}i", body, position)))
            position += 4 * count
    if version >= 11:
        read_string(body, position)  # the client's rack: there is one node
    return FetchRequest(replica, wait, bytes_min, bytes_max, isolation == 1, session[0], session[1], topics, forgotten)


def _wanted(version: int, row: tuple[int, ...]) -> PartitionWanted:
    if version >= 9:
        return PartitionWanted(row[0], row[2], row[-1], row[1])
    return PartitionWanted(row[0], row[1], row[-1])


def _parse_flexible(version: int, body: memoryview) -> FetchRequest:
    if version >= 15:
        wait, bytes_min, bytes_max, isolation, *session = _HEAD_15.unpack_from(body, 0)
        replica, position = NO_REPLICA, _HEAD_15.size  # a replica names itself in a tagged field: there are none here
    else:
        replica, wait, bytes_min, bytes_max, isolation, *session = _HEAD_7.unpack_from(body, 0)
        position = _HEAD_7.size
    by_id = version >= TOPIC_IDS_FROM
    topics = []
    total = 0
    count, position = read_count(body, position, _COMPACT_TOPIC_BYTES_MIN)
    for _ in range(count):
        topic, position = _topic(body, position, by_id)
        count, position = read_count(body, position, _ROWS_12.size)
        partitions, position = _rows(body, position, count)
        position = skip_tags(body, position)
        topics.append((topic, partitions))
        check_partitions(total := total + len(partitions))
    forgotten = []
    count, position = read_count(body, position, _COMPACT_TOPIC_BYTES_MIN)
    for _ in range(count):
        topic, position = _topic(body, position, by_id)
        count, position = read_count(body, position, 4)
        forgotten.append((topic, struct.unpack_from(f">{count}i", body, position)))
        position = skip_tags(body, position + 4 * count)
    _, position = read_compact_string(body, position)  # the client's rack
    skip_tags(body, position)
    return FetchRequest(replica, wait, bytes_min, bytes_max, isolation == 1, session[0], session[1], topics, forgotten)


def _rows(body: memoryview, position: int, count: int) -> tuple[list[PartitionWanted], int]:
    """Partitions of one topic. Those without tagged fields, as clients send them, have all the same length; the first one that
    has some shows by its count of them, wherever the following ones lie."""
    end = position + count * _ROWS_12.size
    rows = list(_ROWS_12.iter_unpack(body[position:end]))
    if not any(row[-1] for row in rows):
        return [PartitionWanted(partition, offset, own, epoch) for partition, epoch, offset, _, _, own, _ in rows], end
    partitions = []
    for _ in range(count):
        partition, epoch, offset, _, _, own_bytes_max = _PARTITION_12.unpack_from(body, position)
        position = skip_tags(body, position + _PARTITION_12.size)
        partitions.append(PartitionWanted(partition, offset, own_bytes_max, epoch))
    return partitions, position


def _topic(body: memoryview, position: int, by_id: bool) -> tuple[TopicRef, int]:
    if not by_id:
        return read_compact_string(body, position)
    end = position + 16
    if end > len(body):
        raise MessageInvalid("a topic id beyond the message")
    return bytes(body[position:end]), end


def build_fetch(
    version: int,
    topics: Sequence[tuple[TopicRef, Sequence[PartitionFetched]]],
    *,
    error: int = 0,
    session_id: int = 0,
    throttle_ms: int = 0,
) -> list[bytes]:
    """The answer's body in pieces to be written one after the other: batches as they are, what stands between them joined."""
    flexible = version >= FLEXIBLE_FROM
    parts: list[bytes] = []
    head = [_SESSION.pack(throttle_ms, error, session_id) if version >= SESSIONS_FROM else _INT32.pack(throttle_ms)]
    head.append(uvarint(len(topics) + 1) if flexible else _INT32.pack(len(topics)))
    for topic, partitions in topics:
        if not flexible:
            head += (string(str(topic)), _INT32.pack(len(partitions)))
        else:
            head += (topic if isinstance(topic, bytes) else compact_string(topic), uvarint(len(partitions) + 1))
        for fetched in partitions:
            if flexible and not fetched.batches and not fetched.aborted:
                head.append(_nothing(fetched))
                continue
            size = sum(map(len, fetched.batches))
            head.append(_partition(version, fetched, size))
            if size:
                parts.append(b"".join(head))
                parts += fetched.batches
                head = []
            if flexible:
                head.append(b"\x00")
        if flexible:
            head.append(b"\x00")
    if flexible:
        head.append(b"\x00")
    if head:
        parts.append(b"".join(head))
    return parts


def _nothing(fetched: PartitionFetched) -> bytes:
    """All of a partition without batches, as most are that are waited for, from version 12 on."""
    marks = (fetched.high_watermark, fetched.last_stable_offset, fetched.log_start)
    return _NOTHING_12.pack(fetched.partition, fetched.error, *marks, int(fetched.aborted is not None), -1, 1, 0)


def _partition(version: int, fetched: PartitionFetched, size: int) -> bytes:
    """All before the records, their length included."""
    numbers = (fetched.partition, fetched.error, fetched.high_watermark, fetched.last_stable_offset)
    fixed = _ANSWER_5.pack(*numbers, fetched.log_start) if version >= 5 else _ANSWER_4.pack(*numbers)
    aborted = fetched.aborted
    if version >= FLEXIBLE_FROM:
        if not aborted:
            listed = b"\x00" if aborted is None else b"\x01"
        else:
            listed = b"".join((uvarint(len(aborted) + 1), *[_ABORTED.pack(*one) + b"\x00" for one in aborted]))
        return b"".join((fixed, listed, b"\xff\xff\xff\xff", uvarint(size + 1)))
    if not aborted:
        listed = b"\xff\xff\xff\xff" if aborted is None else b"\x00\x00\x00\x00"
    else:
        listed = b"".join((_INT32.pack(len(aborted)), *[_ABORTED.pack(*one) for one in aborted]))
    replica = b"\xff\xff\xff\xff" if version >= 11 else b""
    return b"".join((fixed, listed, replica, _INT32.pack(size)))
