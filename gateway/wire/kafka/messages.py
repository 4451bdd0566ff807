"""Every Kafka message but Produce and Fetch: requests from bytes, responses to bytes.

The schemas are kio's, generated from Kafka's own; its readers and writers are not used. The readers believe the length of an
array before they have seen it, and the process ends when the allocator refuses [kio 0.6.5: `Metadata` of 5 bytes]. Here each
message has a plan, made of its schema at first use: a reader or writer for each field, in order.

    decode(3, 12, body) -> MetadataRequest          attributes as in kio.schema.metadata.v12.request
    encode(3, 12, {"brokers": [...], ...}) -> bytes   names as in kio.schema.metadata.v12.response, one dictionary per structure

What a response leaves out takes the schema's default; what the version does not know is left out; what no version knows is a
mistake of ours, and raises. Numbers stand for error codes, durations and times (milliseconds), 16 bytes or a UUID for ids.

Sources: Kafka's protocol guide; KIP-482 (compact forms and tagged fields), KIP-893 (nullable structures).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from kio.index import UnknownAPIKey, UnknownEntity, load_request_schema, load_response_schema
from kio.schema.index import api_key_map

from gateway.wire.kafka.decoding import Cursor, reader_of
from gateway.wire.kafka.encoding import writer_of
from gateway.wire.kafka.errors import MessageInvalid

API_VERSIONS = 18


def decode(api: int, version: int, body: bytes | bytearray | memoryview) -> Any:
    """The request after its header. Raises MessageInvalid; KeyError where kio has no such schema.

    What comes after it is left alone, as Kafka does: librdkafka 2.16 sends three bytes too many when it asks for all topics.
    """
    cursor = Cursor(body)
    try:
        return reader_of(request_schema(api, version))(cursor)
    except (IndexError, UnicodeDecodeError, ValueError, OverflowError):
        raise MessageInvalid(f"version {version} of {api_name(api)} cannot be read at byte {cursor.position}") from None


def encode(api: int, version: int, values: Mapping[str, Any]) -> bytes:
    """The response without its header. ValueError for a name that no version has, and for values that do not fit."""
    written = bytearray()
    writer_of(response_schema(api, version), api)(written, values)
    return bytes(written)


@cache
def flexible(api: int, version: int) -> bool:
    """Whether the request has header version 2, with tagged fields; so has the response (header version 1) save one."""
    return bool(request_schema(api, version).__flexible__)


def response_head(api: int, version: int, correlation_id: int) -> bytes:
    """The response header."""
    head = correlation_id.to_bytes(4, "big", signed=True)
    return head + b"\x00" if flexible_answer(api, version) else head


def api_name(api: int) -> str:
    """`metadata`, `find_coordinator`, ...; the number where nobody knows it."""
    return api_key_map.get(api, str(api))


def prepare(api: int, version: int) -> None:
    """Make the plans now: the schemas' modules take milliseconds to load, which the first caller need not wait for."""
    reader_of(request_schema(api, version))
    writer_of(response_schema(api, version), api)


@cache
def request_schema(api: int, version: int) -> Any:
    return _found(load_request_schema, api, version)


@cache
def response_schema(api: int, version: int) -> Any:
    return _found(load_response_schema, api, version)


@cache
def has_error_code(api: int, version: int) -> bool:
    """Whether the response has an error code for all of it."""
    return "error_code" in response_schema(api, version).__dataclass_fields__


@cache
def has_error_message(api: int, version: int) -> bool:
    return "error_message" in response_schema(api, version).__dataclass_fields__


def _found(load: Any, api: int, version: int) -> Any:
    try:
        return load(api, version)
    except (UnknownAPIKey, UnknownEntity):
        raise KeyError(f"there is no schema of version {version} of {api_name(api)}") from None


@cache
def flexible_answer(api: int, version: int) -> bool:
    """Whether the response header has tagged fields. That of ApiVersions never has: its reader may not know the version yet
    (KIP-511)."""
    return api != API_VERSIONS and bool(response_schema(api, version).__flexible__)
