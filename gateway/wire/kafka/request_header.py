"""The head of every request: which API, in which version, and what its answer is to be told apart by (KIP-482 for version 2)."""

from __future__ import annotations

import struct

import msgspec

from gateway.wire.kafka import messages
from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.primitives import read_nullable_string, skip_tags

HEAD_BYTES = 8  # api, version, correlation id: what every version of the header begins with
_KEY = struct.Struct(">hhi")


class RequestHeader(msgspec.Struct, frozen=True, gc=False):
    """`end` is where the request itself begins."""

    api: int
    version: int
    correlation_id: int
    client_id: str | None
    end: int


class KnownHead(msgspec.Struct, frozen=True, gc=False):
    """What stood before the last request of one kind, which most often stands before the next one too: bytes from HEAD_BYTES on,
    and what they were read as."""

    api: int
    version: int
    rest: bytes
    client_id: str | None
    end: int


def read_key(frame: bytes | bytearray | memoryview) -> tuple[int, int, int]:
    """API, version and correlation id, which are told apart from what follows by nothing. MessageInvalid."""
    if len(frame) < HEAD_BYTES:
        raise MessageInvalid(f"a request of {len(frame)} bytes, where its header has at least {HEAD_BYTES}")
    api, version, correlation_id = _KEY.unpack_from(frame)
    return api, version, correlation_id


def read_header(frame: memoryview) -> RequestHeader:
    """Of an API and version that are known. MessageInvalid."""
    api, version, correlation_id = read_key(frame)
    return RequestHeader(api, version, correlation_id, *read_rest(frame, api, version))


def read_rest(frame: memoryview, api: int, version: int) -> tuple[str | None, int]:
    """What follows the key, of an API and version that are known: the client's id, and where the request itself begins.
    MessageInvalid."""
    try:
        client_id, position = read_nullable_string(frame, HEAD_BYTES)
        if messages.flexible(api, version):
            position = skip_tags(frame, position)
    except IndexError:
        raise MessageInvalid(f"the header of a request ends at byte {len(frame)}") from None
    return client_id, position
