"""Fuzz target: messages of a WebSocket connection in both sub-protocols, down to what the pipeline takes."""

from __future__ import annotations

import base64

import msgspec

from broker.delivery.filter import Filter, FilterInvalid
from broker.topics.addresses import Address
from gateway.endpoints.websocket_messages import (
    JSON,
    MSGPACK,
    AnyOperation,
    PackedPublish,
    PackedSubscribe,
    Publish,
    Refused,
    Subscribe,
    address_of,
    decode_operations,
    filter_of,
    incoming_of,
    position_of,
)
from gateway.errors import GatewayError
from tests.fuzz.refusals import check_refusal

OPERATIONS_MAX, REF_BYTES_MAX = 10, 100

_MESSAGES = [
    {"op": "auth", "token": "spr_x"},
    {"op": "publish", "ref": 7, "address": "orders/eu/7", "value": {"a": 1}, "headers": {"a": "b"}, "ttl_ms": 5},
    {
        "op": "publish",
        "topic": "orders",
        "records": [{"key": "a", "text": "b"}, {"value64": "AP8=", "timestamp": 1}],
        "acks": "none",
    },
    {"op": "subscribe", "sub": "s", "address": "orders/eu/7", "from": {"cursor": "10-2"}, "credit": 5},
    {"op": "subscribe", "topic": "orders", "key": "a", "from": {"offset": 1, "partition": 0}},
    {
        "op": "subscribe",
        "sub": "s",
        "filter": {"address": "orders/+", "key_prefix": "e", "headers": {"a": "b"}},
        "from": "earliest",
    },
    {"op": "subscribe", "sub": "s", "filter": "#", "from": {"timestamp": "2026-11-23T13:00:00Z"}},
    {"op": "consume", "sub": "s", "address": "orders", "consumer": "w", "options": {"ack_timeout_ms": 100, "deliveries_max": 3}},
    {"op": "nack", "sub": "s", "tags": ["10-2-1"], "delay_ms": 5, "reason": "busy"},
    {"op": "extend", "sub": "s", "tags": ["10-2-1"], "timeout_ms": 5},
    [
        {"op": "ping", "ref": "x"},
        {"op": "pause", "sub": "s"},
        {"op": "nonsense", "ref": [1]},
        {"op": "credit", "sub": "s", "records": -1},
    ],
]
_PACKED = [
    {"op": "publish", "topic": "orders", "records": [[b"k", b"v", [["a", b"b"], ["c", None]], 5, None, 0], [None, None]]},
    {"op": "publish", "address": "orders/eu", "records": [], "acks": "none"},
    {"op": "subscribe", "topic": "orders", "key": b"\xff", "filter": {"key_prefix": b"\xff"}},
    {"op": "consume", "sub": "s", "topic": "orders", "key": b"k", "consumer": "w", "options": {}},
]
CORPUS = [
    *(msgspec.json.encode(message) for message in _MESSAGES),
    *(msgspec.msgpack.encode(message) for message in [*_MESSAGES, *_PACKED]),
    b"[" * 2_000,
    b"\x91" * 2_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    base64.b85decode("ZsNfX"),
]


def one_input(data: bytes) -> None:
    for decoders in (JSON, MSGPACK):
        operations = decode_operations(data, decoders, operations_max=OPERATIONS_MAX, ref_bytes_max=REF_BYTES_MAX)
        assert len(operations) <= OPERATIONS_MAX
        for operation in operations:
            assert len(operation.ref) <= REF_BYTES_MAX
            if isinstance(operation, Refused):
                check_refusal(operation.error)
            else:
                _into_the_pipeline(operation)


def _into_the_pipeline(operation: AnyOperation) -> None:
    try:
        if isinstance(operation, Publish | PackedPublish):
            topic, records = incoming_of(operation)
            assert isinstance(topic, str)
            assert records
        elif isinstance(operation, Subscribe | PackedSubscribe):
            position_of(operation.start)
            assert isinstance(filter_of(operation), Filter)
            if operation.filter is None:
                assert isinstance(address_of(operation), Address)
    except (GatewayError, FilterInvalid) as error:
        check_refusal(error, 4_000)
