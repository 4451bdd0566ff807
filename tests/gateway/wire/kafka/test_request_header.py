"""The head of a request."""

from __future__ import annotations

import pytest

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.request_header import read_header

LEGACY = b"\x00\x03\x00\x01\x00\x00\x00\x07\x00\x04test"
FLEXIBLE = b"\x00\x03\x00\x0c\xff\xff\xff\xff\x00\x04test\x01\x05\x02xx"


def test_both_forms() -> None:
    header = read_header(memoryview(LEGACY + b"body"))
    assert (header.api, header.version, header.correlation_id, header.client_id, header.end) == (3, 1, 7, "test", len(LEGACY))
    header = read_header(memoryview(FLEXIBLE + b"body"))
    assert (header.version, header.correlation_id, header.client_id, header.end) == (12, -1, "test", len(FLEXIBLE))


def test_a_client_without_a_name() -> None:
    assert read_header(memoryview(LEGACY[:8] + b"\xff\xff")).client_id is None


@pytest.mark.parametrize("whole", [LEGACY, FLEXIBLE])
def test_every_truncated_prefix_is_refused(whole: bytes) -> None:
    for end in range(len(whole)):
        with pytest.raises(MessageInvalid):
            read_header(memoryview(whole[:end]))


@pytest.mark.parametrize("client", [b"\xff\xfe", b"\x7f\xffx", b"\x00\x02\xff\xff"])
def test_hostile_names(client: bytes) -> None:
    with pytest.raises(MessageInvalid):
        read_header(memoryview(LEGACY[:8] + client))
