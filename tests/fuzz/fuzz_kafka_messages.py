"""Fuzz target: a request of a Kafka client, header and body, in any API and version that the schemas have."""

from __future__ import annotations

from gateway.wire.kafka import messages
from gateway.wire.kafka.decoding import ELEMENTS_MAX
from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.request_header import read_header, read_key
from tests.fuzz.refusals import check_refusal

HEAD = b"\x00\x00\x00\x07\x00\x04test"

CORPUS = [
    b"\x00\x03\x00\x0c" + HEAD + b"\x00\x02" + bytes(16) + b"\x07orders\x00\x01\x00\x00",
    b"\x00\x03\x00\x01" + HEAD + b"\x00\x00\x00\x01\x00\x06orders",
    b"\x00\x12\x00\x03" + HEAD + b"\x00\x05java\x064.3.1\x00",
    b"\x00\x24\x00\x02" + HEAD + b"\x00\x09\x00a\x00token\x00",
    b"\x00\x03\x00\x0c" + HEAD + b"\x00\xff\xff\xff\xff\x0f",
    b"\x00\x13\x00\x07" + HEAD + b"\x00\x02\x02o\x00\x00\x00\x01\x00\x01\x01\x02\x02k\x02v\x00\x00\x00\x00\x00\x01\x00\x00",
    b"\x00\x0b\x00\x09"
    + HEAD
    + b"\x00\x02g\x00\x00\x27\x10\x00\x00\x27\x10\x01\x00\x09consumer\x02\x06range\x03\x00\x00\x00\x00\x00",
]


def one_input(data: bytes) -> None:
    try:
        api, version, _ = read_key(data)
        messages.request_schema(api, version)
    except MessageInvalid as error:
        check_refusal(error)
        return
    except KeyError:
        return  # the table of operations says which there are
    try:
        header = read_header(memoryview(data))
        request = messages.decode(api, version, memoryview(data)[header.end :])
    except MessageInvalid as error:
        check_refusal(error)
        return
    assert type(request) is messages.request_schema(api, version)
    assert len(repr(request)) < 1_000 + 400 * min(len(data), ELEMENTS_MAX) * 10
