"""Requests from bytes and responses to bytes, held against kio's own reader and writer."""

from __future__ import annotations

import io
from typing import Any
from uuid import UUID

import pytest
from kio.schema.index import api_key_map, schema_name_map
from kio.serial import entity_reader, entity_writer
from kio.static.constants import EntityType

from gateway.wire.kafka import messages
from gateway.wire.kafka.decoding import ELEMENTS_MAX
from gateway.wire.kafka.errors import MessageInvalid

METADATA, API_VERSIONS, CREATE_TOPICS, JOIN_GROUP = 3, 18, 19, 11
# kio reads no negative time, which is Kafka's "none"; one schema has a nullable structure among its tags.
NOT_COMPARED = {"create_delegation_token", "renew_delegation_token", "expire_delegation_token", "update_raft_voter"}
EVERY_MESSAGE = [
    (api, version)
    for api, name in api_key_map.items()
    for version, types in schema_name_map[name].items()
    if EntityType.request in types
    and name not in NOT_COMPARED
    and version in (min(schema_name_map[name]), max(schema_name_map[name]))
]
TOPIC = {"name": "orders", "topic_id": bytes(range(16)), "partitions": [{"partition_index": 1, "isr_nodes": [1, 2]}]}


def written(entity: Any) -> bytes:
    buffer = io.BytesIO()
    entity_writer(type(entity))(buffer, entity)
    return buffer.getvalue()


@pytest.mark.parametrize(("api", "version"), EVERY_MESSAGE)
def test_an_empty_response_is_what_kio_reads(api: int, version: int) -> None:
    encoded = messages.encode(api, version, {})
    read, size = entity_reader(messages.response_schema(api, version))(encoded, 0)
    assert size == len(encoded)
    assert written(read) == encoded


class TestEncode:
    @pytest.mark.parametrize("version", range(14))
    def test_every_version_takes_the_same_dictionary(self, version: int) -> None:
        values = {"brokers": [{"node_id": 1, "host": "h", "port": 9092}], "topics": [TOPIC], "throttle_time": 17}
        encoded = messages.encode(METADATA, version, values)
        answer, size = entity_reader(messages.response_schema(METADATA, version))(encoded, 0)
        assert size == len(encoded)
        assert (answer.brokers[0].host, answer.topics[0].name) == ("h", "orders")
        assert answer.topics[0].partitions[0].isr_nodes == (1, 2)
        if version >= 3:
            assert answer.throttle_time.total_seconds() == 0.017
        if version >= 10:
            assert answer.topics[0].topic_id == UUID(bytes=bytes(range(16)))

    def test_a_tagged_field_is_written_where_it_says_something(self) -> None:
        plain = messages.encode(API_VERSIONS, 3, {})
        tagged = messages.encode(API_VERSIONS, 3, {"finalized_features_epoch": 1})
        assert len(tagged) == len(plain) + 10
        assert messages.encode(API_VERSIONS, 3, {"finalized_features_epoch": -1}) == plain

    def test_a_name_that_no_version_has_is_a_mistake(self) -> None:
        with pytest.raises(ValueError, match="trottle_time"):
            messages.encode(METADATA, 12, {"trottle_time": 0})
        assert messages.encode(METADATA, 0, {"throttle_time": 1})  # later versions have it

    @pytest.mark.parametrize(
        "values",
        [{"error_code": 40_000}, {"api_keys": [{"api_key": None}]}, {"api_keys": 3}, {"error_code": "no"}],
    )
    def test_a_value_that_does_not_fit_raises(self, values: dict[str, Any]) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011  struct.error, TypeError: never bytes
            messages.encode(API_VERSIONS, 0, values)

    def test_nothing_where_a_value_has_to_be_raises(self) -> None:
        with pytest.raises(ValueError, match="host"):
            messages.encode(METADATA, 12, {"brokers": [{"node_id": 1, "host": None, "port": 1}]})

    def test_an_id_has_16_bytes(self) -> None:
        with pytest.raises(ValueError, match="15 bytes"):
            messages.encode(METADATA, 12, {"topics": [TOPIC | {"topic_id": bytes(15)}]})


METADATA_REQUEST = b"\x02" + bytes(range(16)) + b"\x07orders\x00\x01\x00\x00"
JOIN_REQUEST = b"\x02g\x00\x00\x27\x10\x00\x00\x27\x10\x01\x00\x09consumer\x02\x06range\x03ab\x00\x00\x00"


class TestDecode:
    def test_as_kio_reads(self) -> None:
        for api, version, body in ((METADATA, 12, METADATA_REQUEST), (JOIN_GROUP, 9, JOIN_REQUEST)):
            known, size = entity_reader(messages.request_schema(api, version))(body, 0)
            assert size == len(body)
            assert messages.decode(api, version, body) == known
            assert messages.decode(api, version, memoryview(bytearray(body))) == known

    @pytest.mark.parametrize(("api", "version", "body"), [(METADATA, 12, METADATA_REQUEST), (JOIN_GROUP, 9, JOIN_REQUEST)])
    def test_every_truncated_prefix_is_refused(self, api: int, version: int, body: bytes) -> None:
        for end in range(len(body)):
            with pytest.raises(MessageInvalid):
                messages.decode(api, version, body[:end])

    def test_what_follows_is_left_alone(self) -> None:
        """librdkafka 2.16 sends three bytes too many when it asks for all topics."""
        assert messages.decode(METADATA, 12, METADATA_REQUEST + b"\x00\x00\x00").topics[0].name == "orders"

    def test_an_unknown_tag_is_passed_over_and_a_known_one_read(self) -> None:
        assert messages.decode(METADATA, 12, METADATA_REQUEST[:-1] + b"\x01\x05\x02xx").topics[0].name == "orders"

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b"\xff\xff\xff\xff\x0f", "elements"),  # kio's reader asks the allocator for 256 GiB, and the process ends
            (b"\xff\xff\xff\xff\x7f", "32 bits"),
            (b"\xff\xff\xff\xff\xff\xff", "32 bits"),
            (b"\x02" + bytes(16) + b"\x07\xff\xff\xff\xff\xff\xff\x00\x01\x00\x00", "cannot be read"),  # no UTF-8
            (b"\x02" + bytes(16) + b"\x7forders", "126 bytes"),
            (METADATA_REQUEST[:-1] + b"\x41" + b"\x00\x00" * 65, "tagged fields"),
            (METADATA_REQUEST[:-1] + b"\x02\x05\x00\x05\x00", "out of order"),
            (METADATA_REQUEST[:-1] + b"\x01\x05\x09x", "beyond"),
        ],
    )
    def test_hostile(self, body: bytes, reason: str) -> None:
        with pytest.raises(MessageInvalid, match=reason):
            messages.decode(METADATA, 12, body)

    def test_legacy_lengths(self) -> None:
        assert messages.decode(METADATA, 1, b"\xff\xff\xff\xff").topics is None
        for body in (b"\xff\xff\xff\xfe", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x01\xff\xff", b"\x00\x00\x00\x01\x80\x00"):
            with pytest.raises(MessageInvalid):
                messages.decode(METADATA, 1, body)

    def test_the_bound_of_elements(self) -> None:
        names = b"\x00\x01x"
        within = ELEMENTS_MAX.to_bytes(4, "big") + names * ELEMENTS_MAX
        assert len(messages.decode(METADATA, 1, within).topics) == ELEMENTS_MAX
        beyond = (ELEMENTS_MAX + 1).to_bytes(4, "big") + names * (ELEMENTS_MAX + 1)
        with pytest.raises(MessageInvalid, match=str(ELEMENTS_MAX)):
            messages.decode(METADATA, 1, beyond)

    def test_a_schema_that_is_not_there(self) -> None:
        with pytest.raises(KeyError):
            messages.decode(METADATA, 99, b"")
        with pytest.raises(KeyError):
            messages.decode(9_999, 0, b"")


def test_the_answer_to_api_versions_has_a_header_that_every_client_reads() -> None:
    assert messages.response_head(API_VERSIONS, 4, 7) == b"\x00\x00\x00\x07"
    assert messages.response_head(METADATA, 12, -1) == b"\xff\xff\xff\xff\x00"
    assert messages.response_head(METADATA, 8, 7) == b"\x00\x00\x00\x07"
