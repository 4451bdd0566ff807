"""The Produce parser and builder against kio, which reads and writes the same bytes from the published schema."""

from __future__ import annotations

import importlib
import io
import struct
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.serial import entity_reader, entity_writer

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.primitives import PARTITIONS_MAX
from gateway.wire.kafka.produce import (
    FLEXIBLE_FROM,
    HIGH,
    LOW,
    TOPIC_IDS_FROM,
    PartitionAnswer,
    ProduceRequest,
    _parse_flexible,
    _parse_usual,
    build_produce,
    parse_produce,
)

VERSIONS = range(LOW, HIGH + 1)
TOPIC_ID = UUID(int=7)


def request_bytes(
    version: int, *, records: bytes | None = b"records", acks: int = -1, transactional_id: str | None = None
) -> bytes:
    schema: Any = importlib.import_module(f"kio.schema.produce.v{version}.request")
    named: dict[str, Any] = {"topic_id": TOPIC_ID} if version >= TOPIC_IDS_FROM else {"name": "orders"}
    partitions = (
        schema.PartitionProduceData(index=3, records=records),
        schema.PartitionProduceData(index=4, records=None),
    )
    request = schema.ProduceRequest(
        transactional_id=transactional_id,
        acks=acks,
        timeout=timedelta(milliseconds=1_500),
        topic_data=(schema.TopicProduceData(**named, partition_data=partitions),),
    )
    written = io.BytesIO()
    entity_writer(schema.ProduceRequest)(written, request)
    return written.getvalue()


@pytest.mark.parametrize("version", VERSIONS)
class TestParse:
    def test_what_kio_writes(self, version: int) -> None:
        body = request_bytes(version, transactional_id="bank-1")
        request = parse_produce(version, memoryview(body))
        assert (request.transactional_id, request.acks, request.timeout_ms) == ("bank-1", -1, 1_500)
        [(topic, partitions)] = request.topics
        assert topic == (TOPIC_ID.bytes if version >= TOPIC_IDS_FROM else "orders")
        assert [(index, None if records is None else bytes(records)) for index, records in partitions] == [
            (3, b"records"),
            (4, None),
        ]

    def test_records_stay_where_they_were_received(self, version: int) -> None:
        body = bytearray(request_bytes(version, records=b"abc"))
        records = parse_produce(version, memoryview(body)).topics[0][1][0][1]
        body[:] = body.replace(b"abc", b"xyz")
        assert records == b"xyz"

    def test_every_truncated_prefix_is_refused(self, version: int) -> None:
        body = request_bytes(version, transactional_id="t")
        for end in range(len(body)):
            with pytest.raises(MessageInvalid):
                parse_produce(version, memoryview(body[:end]))

    def test_bytes_after_the_message_do_not_matter(self, version: int) -> None:
        """As in Kafka: librdkafka sends some."""
        body = request_bytes(version)
        assert parse_produce(version, memoryview(body + b"abc")) == parse_produce(version, memoryview(body))

    def test_each_byte_changed_is_read_or_refused(self, version: int) -> None:
        body = request_bytes(version)
        for at in range(len(body)):
            for value in (0x00, 0x7F, 0x80, 0xFF):
                changed = bytearray(body)
                changed[at] = value
                try:
                    parse_produce(version, memoryview(changed))
                except MessageInvalid:
                    continue


@pytest.mark.parametrize(
    ("version", "body", "reason"),
    [
        (3, b"\xff\xff" + b"\xff\xff" + b"\0\0\0\1" + b"\x7f\xff\xff\xff", "an array of 2147483647"),
        (3, b"\xff\xff" + b"\xff\xff" + b"\0\0\0\1" + b"\xff\xff\xff\xff", "an array of -1"),
        (3, b"\xff\xff" + b"\0\0" + b"\0\0\0\1" + b"\0\0\0\1" + b"\xff\xfe" + b"\0\0\0\0", "a string of -2"),
        (3, b"\0\1\xff" + b"\0\0" + b"\0\0\0\1" + b"\0\0\0\0", "no UTF-8"),
        (9, b"\0" + b"\0\0" + b"\0\0\0\1" + b"\0", "an array of -1"),
        (9, b"\0" + b"\0\0" + b"\0\0\0\1" + b"\xff\xff\xff\xff\xff\x01", "longer than 32 bits"),
        (9, b"\0" + b"\0\0" + b"\0\0\0\1" + b"\x01" + b"\x41" + bytes(65), "65 tagged fields"),
        (9, b"\0" + b"\0\0" + b"\0\0\0\1" + b"\x01" + b"\x02\x05\x00\x05\x00", "out of order"),
        (9, b"\0" + b"\0\0" + b"\0\0\0\1" + b"\x01" + b"\x01\x05\x7f", "beyond the message"),
    ],
)
def test_hostile_requests(version: int, body: bytes, reason: str) -> None:
    with pytest.raises(MessageInvalid, match=reason):
        parse_produce(version, memoryview(body))


def test_the_partitions_of_one_request_are_bounded() -> None:
    head = b"\xff\xff\xff\xff\0\0\0\1\0\0\0\2"
    topic = b"\0\1a" + (PARTITIONS_MAX // 2 + 1).to_bytes(4, "big") + b"\0\0\0\0\xff\xff\xff\xff" * (PARTITIONS_MAX // 2 + 1)
    with pytest.raises(MessageInvalid, match=f"more than {PARTITIONS_MAX}"):
        parse_produce(3, memoryview(head + topic + topic))


@pytest.mark.parametrize("version", VERSIONS)
def test_kio_reads_the_answer(version: int) -> None:
    schema: Any = importlib.import_module(f"kio.schema.produce.v{version}.response")
    topic = TOPIC_ID.bytes if version >= TOPIC_IDS_FROM else "orders"
    refused = PartitionAnswer(4, 87, record_errors=((2, "no key"), (5, None)), message="refused")
    body = build_produce(version, [(topic, [PartitionAnswer(3, 0, 77, 1_000, 9), refused])], 5)
    answer, size = entity_reader(schema.ProduceResponse)(body, 0)
    assert size == len(body)
    assert answer.throttle_time == timedelta(milliseconds=5)
    [(good, bad)] = [one.partition_responses for one in answer.responses]
    assert (good.index, good.error_code, good.base_offset, good.log_append_time.timestamp()) == (3, 0, 77, 1)
    assert (bad.index, bad.error_code, bad.base_offset, bad.log_append_time) == (4, 87, -1, None)
    if version >= 5:
        assert (good.log_start_offset, bad.log_start_offset) == (9, -1)
    if version >= 8:
        assert (good.record_errors, good.error_message) == ((), None)
        assert [(each.batch_index, each.batch_index_error_message) for each in bad.record_errors] == [(2, "no key"), (5, None)]
        assert bad.error_message == "refused"


@pytest.mark.parametrize("version", range(FLEXIBLE_FROM, HIGH + 1))
class TestUsual:
    """One batch of one partition is read and answered in fewer steps."""

    def body(self, version: int, records: bytes | None = b"r" * 200) -> bytes:
        schema: Any = importlib.import_module(f"kio.schema.produce.v{version}.request")
        named: dict[str, Any] = {"topic_id": TOPIC_ID} if version >= TOPIC_IDS_FROM else {"name": "orders"}
        places = (schema.PartitionProduceData(index=3, records=records),)
        topics = (schema.TopicProduceData(**named, partition_data=places),)
        request = schema.ProduceRequest(transactional_id=None, acks=1, timeout=timedelta(milliseconds=9), topic_data=topics)
        written = io.BytesIO()
        entity_writer(schema.ProduceRequest)(written, request)
        return written.getvalue()

    def test_it_is_read_so(self, version: int) -> None:
        body = memoryview(self.body(version))
        usual = _parse_usual(version, body)
        assert usual is not None
        assert told(usual) == told(_parse_flexible(version, body))

    @given(data=st.data())
    def test_whatever_is_changed_in_it_both_say_the_same(self, version: int, data: st.DataObject) -> None:
        body = bytearray(self.body(version))
        for at in data.draw(st.lists(st.integers(0, 40), max_size=3)):
            body[at] = data.draw(st.sampled_from([0, 1, 2, 3, 0x7F, 0x80, 0xFF]))
        view = memoryview(bytes(body))[: data.draw(st.sampled_from([len(body), len(body) - 1, 40, 31]))]
        assert outcome(parse_produce, version, view) == outcome(_parse_flexible, version, view)

    def test_it_is_answered_so(self, version: int) -> None:
        topic = TOPIC_ID.bytes if version >= TOPIC_IDS_FROM else "orders"
        for answer in (PartitionAnswer(3, 0, 7, -1, 2), PartitionAnswer(3, 87, record_errors=[(1, "why")], message="what")):
            several = build_produce(version, [(topic, [answer]), (topic, [answer])])
            one = build_produce(version, [(topic, [answer])])
            assert several == b"\x03" + one[1:-5] * 2 + bytes(5)


def told(request: ProduceRequest) -> Any:
    topics = [(topic, [(at, None if one is None else bytes(one)) for at, one in places]) for topic, places in request.topics]
    return request.transactional_id, request.acks, request.timeout_ms, topics


def outcome(parse: Any, version: int, body: memoryview) -> Any:
    try:
        return told(parse(version, body))
    except (MessageInvalid, IndexError, struct.error):
        return "refused"
