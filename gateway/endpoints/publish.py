"""POST of records: JSON, NDJSON, or a raw body as one record's value."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from broker.record import valid_message_id
from broker.topics.addresses import Address
from gateway.endpoints.exchange import JSON, NDJSON, Exchange, encode
from gateway.endpoints.query import PARTITION_MAX, Query
from gateway.endpoints.records_json import CONTENT_TYPE, decode_records, to_incoming
from gateway.endpoints.rest_options import RestOptions
from gateway.errors import MediaTypeUnsupported, ParameterInvalid, RecordInvalid
from gateway.pipeline import Incoming, Pipeline, Receipt

SUPPORTED = ("application/json", "application/x-ndjson", "any other type for one raw value")
HEADER_PREFIX = b"sprawl-header-"

# What clients send when nobody chose a type (curl -d, HTML forms): stored as a raw value it would surprise.
_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data")
# RFC 9110, 8.3.1, with the parameters left as they are.
_MEDIA_TYPE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t\x21-\x7e]*)?")
_CHARSET = re.compile(rb";[ \t]*charset=\"?([^\";]*)", re.IGNORECASE)


class Published(msgspec.Struct, gc=False):
    records: list[Receipt]


class PublishRoutes:
    def __init__(self, pipeline: Pipeline, options: RestOptions) -> None:
        self._pipeline, self._options = pipeline, options

    async def to_topic(self, exchange: Exchange, topic: str) -> None:
        """POST /v1/topics/{topic}/records: each record has its own key."""
        await self._publish(exchange, topic, None)

    async def to_address(self, exchange: Exchange, address: Address) -> None:
        """POST /v1/records/{topic}/{key}: the path is the key of every record."""
        await self._publish(exchange, address.topic, address)

    async def _publish(self, exchange: Exchange, topic: str, address: Address | None) -> None:
        media_type = media_type_of(exchange)
        query = exchange.query()
        durable = query.choice("acks", "durable", "none") == "durable"
        partition = query.number("partition", -1, PARTITION_MAX)
        if media_type in (JSON, NDJSON):
            query.finish()
            records = await self._json(exchange, lines=media_type == NDJSON)
        else:
            records = [await self._raw(exchange, query, keyed=address is not None)]
        if address is not None:
            _put_key(records, address.key)
        if partition >= 0:
            _put_partition(records, partition)
        receipts = await self._pipeline.publish(exchange.session, topic, records, durable=durable)
        await exchange.answer(200 if durable else 202, JSON, encode(Published(receipts)))

    async def _json(self, exchange: Exchange, *, lines: bool) -> list[Incoming]:
        """In a function of its own, so that the body and what was decoded are gone before the log is waited for."""
        body = await exchange.body(self._options.body_bytes_max)
        return to_incoming(decode_records(body, lines=lines, records_max=self._options.records_max))

    async def _raw(self, exchange: Exchange, query: Query, *, keyed: bool) -> Incoming:
        """The body is the value; everything else about the record is in the query and the headers."""
        key = None if keyed else query.key()
        timestamp_ms = query.timestamp_ms()
        query.finish()
        message_id = exchange.headers.get(b"message-id")
        if message_id is not None and not valid_message_id(message_id.decode("latin-1")):
            raise ParameterInvalid("Message-Id", "it is no UUIDv7 in lower case (RFC 9562); leave it out to be given one")
        headers = _headers(exchange)
        value = await exchange.body(self._options.body_bytes_max)
        return Incoming(key, value, headers, timestamp_ms, None if message_id is None else message_id.decode("ascii"))


def media_type_of(exchange: Exchange) -> bytes:
    """Type and subtype in lower case, empty where none is given. MediaTypeUnsupported."""
    whole = exchange.headers.get(b"content-type", b"")
    if exchange.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise MediaTypeUnsupported("Content-Encoding: " + _shown(exchange.headers[b"content-encoding"]), ("the body as it is",))
    if whole in (JSON, NDJSON, b""):
        return whole
    match = _MEDIA_TYPE.fullmatch(whole)
    if match is None:
        raise MediaTypeUnsupported(_shown(whole), SUPPORTED)
    essence = match[1].lower()
    if essence in _FORMS:
        raise MediaTypeUnsupported(_shown(essence), SUPPORTED)
    if essence in (JSON, NDJSON):
        charset = _CHARSET.search(whole)
        if charset is not None and charset[1].strip().lower() not in (b"utf-8", b"utf8", b"us-ascii"):
            raise MediaTypeUnsupported(_shown(whole), SUPPORTED)  # RFC 8259, 8.1: JSON is UTF-8
    return essence


def _headers(exchange: Exchange) -> list[tuple[bytes, bytes | None]]:
    """The content type as it came, then what `Sprawl-Header-<name>` names, in their order, duplicates kept."""
    headers: list[tuple[bytes, bytes | None]] = []
    if content_type := exchange.headers.get(b"content-type"):
        headers.append((CONTENT_TYPE, content_type))
    for name, content in exchange.scope["headers"]:
        if name.startswith(HEADER_PREFIX):
            headers.append((name[len(HEADER_PREFIX) :], content))
    return headers


def _put_key(records: Sequence[Incoming], key: bytes | None) -> None:
    for index, record in enumerate(records):
        if record.key is not None:
            raise RecordInvalid(index, "it has a key, and the path names one for all; post to /v1/topics/{topic}/records instead")
        record.key = key


def _put_partition(records: Sequence[Incoming], partition: int) -> None:
    for index, record in enumerate(records):
        if record.partition is not None and record.partition != partition:
            raise RecordInvalid(index, "its partition is not the one in the query")
        record.partition = partition


def _shown(header: bytes) -> str:
    return header[:80].decode("latin-1")
