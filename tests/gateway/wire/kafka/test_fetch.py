"""The Fetch parser and builder against kio, which reads and writes the same bytes from the published schema."""

from __future__ import annotations

import importlib
import io
import struct
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from kio.serial import entity_reader, entity_writer

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.fetch import (
    HIGH,
    LOW,
    SESSIONS_FROM,
    TOPIC_IDS_FROM,
    PartitionFetched,
    PartitionWanted,
    build_fetch,
    parse_fetch,
)
from gateway.wire.kafka.primitives import PARTITIONS_MAX

VERSIONS = range(LOW, HIGH + 1)
TOPIC_ID = UUID(int=7)


def request_bytes(version: int) -> bytes:
    schema: Any = importlib.import_module(f"kio.schema.fetch.v{version}.request")
    named: dict[str, Any] = {"topic_id": TOPIC_ID} if version >= TOPIC_IDS_FROM else {"topic": "orders"}
    epoch: dict[str, Any] = {"current_leader_epoch": 2} if version >= 9 else {}
    wanted = [schema.FetchPartition(partition=n, fetch_offset=55 + n, partition_max_bytes=1_000, **epoch) for n in (3, 4)]
    more: dict[str, Any] = {}
    if version >= SESSIONS_FROM:
        forgotten = schema.ForgottenTopic(**named, partitions=(1, 2))
        more = {"session_id": 8, "session_epoch": 9, "forgotten_topics_data": (forgotten,)}
    if version >= 11:
        more["rack_id"] = "rack"
    request = schema.FetchRequest(
        max_wait=timedelta(milliseconds=500),
        min_bytes=1,
        max_bytes=99,
        isolation_level=1,
        topics=(schema.FetchTopic(**named, partitions=tuple(wanted)),),
        **more,
    )
    written = io.BytesIO()
    entity_writer(schema.FetchRequest)(written, request)
    return written.getvalue()


@pytest.mark.parametrize("version", VERSIONS)
class TestParse:
    def test_what_kio_writes(self, version: int) -> None:
        request = parse_fetch(version, memoryview(request_bytes(version)))
        assert (request.replica_id, request.wait_max_ms, request.bytes_min, request.bytes_max) == (-1, 500, 1, 99)
        assert request.read_committed
        topic = TOPIC_ID.bytes if version >= TOPIC_IDS_FROM else "orders"
        epoch = 2 if version >= 9 else -1
        assert [(name, list(wanted)) for name, wanted in request.topics] == [
            (topic, [PartitionWanted(3, 58, 1_000, epoch), PartitionWanted(4, 59, 1_000, epoch)])
        ]
        if version >= SESSIONS_FROM:
            assert (request.session_id, request.session_epoch) == (8, 9)
            assert [(name, list(partitions)) for name, partitions in request.forgotten] == [(topic, [1, 2])]
        else:
            assert (request.session_id, request.session_epoch) == (0, -1)

    def test_every_truncated_prefix_is_refused(self, version: int) -> None:
        body = request_bytes(version)
        for end in range(len(body)):
            with pytest.raises(MessageInvalid):
                parse_fetch(version, memoryview(body[:end]))

    def test_bytes_after_the_message_do_not_matter(self, version: int) -> None:
        """As in Kafka: librdkafka sends some."""
        body = request_bytes(version)
        assert parse_fetch(version, memoryview(body + b"abc")) == parse_fetch(version, memoryview(body))

    def test_each_byte_changed_is_read_or_refused(self, version: int) -> None:
        body = request_bytes(version)
        for at in range(len(body)):
            for value in (0x00, 0x7F, 0x80, 0xFF):
                changed = bytearray(body)
                changed[at] = value
                try:
                    parse_fetch(version, memoryview(changed))
                except MessageInvalid:
                    continue


def test_the_partitions_of_one_request_are_bounded() -> None:
    head = bytes(17) + b"\0\0\0\2"
    each = PARTITIONS_MAX // 2 + 1
    topic = b"\0\1a" + each.to_bytes(4, "big") + bytes(16 * each)
    with pytest.raises(MessageInvalid, match=f"more than {PARTITIONS_MAX}"):
        parse_fetch(4, memoryview(head + topic + topic))


@pytest.mark.parametrize("version", VERSIONS)
class TestBuild:
    def test_kio_reads_the_answer(self, version: int) -> None:
        schema: Any = importlib.import_module(f"kio.schema.fetch.v{version}.response")
        topic = TOPIC_ID.bytes if version >= TOPIC_IDS_FROM else "orders"
        found = [
            PartitionFetched(3, 0, 100, 90, 2, [(5, 6), (7, 8)], [b"abc", b"def"]),
            PartitionFetched(4, 1),
            PartitionFetched(5, 0, 100, 100, 2, []),
        ]
        pieces = build_fetch(version, [(topic, found), (topic, [])], throttle_ms=7)
        body = b"".join(pieces)
        answer, size = entity_reader(schema.FetchResponse)(body, 0)
        assert size == len(body)
        assert answer.throttle_time == timedelta(milliseconds=7)
        assert [len(one.partitions) for one in answer.responses] == [3, 0]
        full, refused, empty = answer.responses[0].partitions
        assert (full.partition_index, full.error_code, full.high_watermark, full.last_stable_offset) == (3, 0, 100, 90)
        assert [(one.producer_id, one.first_offset) for one in full.aborted_transactions] == [(5, 6), (7, 8)]
        assert full.records == b"abcdef"
        assert (refused.error_code, refused.high_watermark, refused.records, refused.aborted_transactions) == (1, -1, b"", None)
        assert (empty.records, empty.aborted_transactions) == (b"", ())
        if version >= 5:
            assert (full.log_start_offset, refused.log_start_offset) == (2, -1)

    def test_batches_are_not_copied(self, version: int) -> None:
        topic = TOPIC_ID.bytes if version >= TOPIC_IDS_FROM else "orders"
        batches = [b"abc" * 100, b"def" * 100]
        pieces = build_fetch(version, [(topic, [PartitionFetched(0, batches=batches)])])
        assert [piece for piece in pieces if any(piece is batch for batch in batches)] == batches

    def test_an_error_of_the_whole_answer(self, version: int) -> None:
        schema: Any = importlib.import_module(f"kio.schema.fetch.v{version}.response")
        answer, _ = entity_reader(schema.FetchResponse)(b"".join(build_fetch(version, [], error=70)), 0)
        assert answer.responses == ()
        if version >= SESSIONS_FROM:
            assert (answer.error_code, answer.session_id) == (70, 0)


@pytest.mark.parametrize("version", [12, 13, 18])
@pytest.mark.parametrize("tagged", [(), (0,), (1,), (2,), (0, 1, 2)])
def test_tagged_fields_of_partitions_are_passed_over_wherever_they_are(version: int, tagged: tuple[int, ...]) -> None:
    topic = TOPIC_ID.bytes if version >= TOPIC_IDS_FROM else b"\x07orders"
    head = (
        struct.pack(">iiibii", 500, 1, 1_000, 0, 0, -1) if version >= 15 else struct.pack(">iiiibii", -1, 500, 1, 1_000, 0, 0, -1)
    )
    rows = [
        struct.pack(">iiqiqi", number, -1, 10 + number, -1, -1, 99) + (b"\x01\x05\x03abc" if number in tagged else b"\x00")
        for number in range(3)
    ]
    body = head + b"\x02" + topic + b"\x04" + b"".join(rows) + b"\x00" + b"\x01" + b"\x01" + b"\x00"
    [(_, wanted)] = parse_fetch(version, memoryview(body)).topics
    assert list(wanted) == [PartitionWanted(number, 10 + number, 99, -1) for number in range(3)]
    for end in range(len(body)):
        with pytest.raises(MessageInvalid):
            parse_fetch(version, memoryview(body[:end]))
