"""POST of records: JSON, NDJSON, or a raw body as one record's value."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from broker.columns import Columns
from broker.delivery.expiry import TTL_MS_MAX
from broker.record import valid_message_id
from broker.topics.addresses import Address
from gateway.endpoints.cloudevents import BATCH, FAMILY, STRUCTURED
from gateway.endpoints.cloudevents_in import from_batch, from_binary, from_structured, is_event
from gateway.endpoints.exchange import JSON, NDJSON, Exchange, encode
from gateway.endpoints.idempotency_key import REPLAYED, idempotency_key
from gateway.endpoints.operations import Operation
from gateway.endpoints.publish_rows import AddressOf, publish_rows
from gateway.endpoints.query import PARTITION_MAX
from gateway.endpoints.records_json import CONTENT_TYPE, read_records
from gateway.endpoints.rest_options import RestOptions
from gateway.errors import BodyMalformed, MediaTypeUnsupported, ParameterInvalid, RecordInvalid
from gateway.pipeline import ColumnReceipts, EarlierReceipts, Incoming, Pipeline, Publication, Receipt

_KEY_TWICE = "it has a key, and the path names one for all; post to /v1/topics/{topic}/records instead"

SUPPORTED = (
    "application/json",
    "application/x-ndjson",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "any other type for one raw value",
)
HEADER_PREFIX = b"sprawl-header-"
TTL_DIGITS_MAX = 12

# What clients send when nobody chose a type (curl -d, HTML forms): stored as a raw value it would surprise.
_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data")
# RFC 9110, 8.3.1, with the parameters left as they are.
_MEDIA_TYPE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t\x21-\x7e]*)?")
_CHARSET = re.compile(rb";[ \t]*charset=\"?([^\";]*)", re.IGNORECASE)


class Published(msgspec.Struct, gc=False):
    records: Sequence[Receipt]


def published(receipts: Sequence[Receipt]) -> bytes:
    """The answer's body."""
    return receipts.json() if isinstance(receipts, ColumnReceipts) else encode(Published(receipts))


class PublishRoutes:
    def __init__(self, pipeline: Pipeline, options: RestOptions) -> None:
        self._pipeline, self._options = pipeline, options

    def operations(self, address_of: AddressOf) -> list[Operation]:
        return publish_rows(self.to_topic, self.to_address, address_of, Published, self._options.records_max)

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
        key, timestamp_ms = query.key(), query.timestamp_ms()
        query.finish()
        once = idempotency_key(exchange)
        if is_event(media_type, exchange.headers):
            records: Publication = await self._events(exchange, media_type, address)
        elif media_type in (JSON, NDJSON):
            records = await self._json(exchange, lines=media_type == NDJSON)
        else:
            records = [await self._raw(exchange)]
        if key is not None or timestamp_ms is not None:
            records = _put_defaults(records, key, timestamp_ms)
        if address is not None:
            put_key(records, address.key)
        if partition >= 0:
            records = _put_partition(records, partition)
        receipts = await self._pipeline.publish(exchange.session, topic, records, durable=durable, idempotency_key=once)
        replayed = (REPLAYED,) if isinstance(receipts, EarlierReceipts) else ()
        await exchange.answer(200 if durable else 202, JSON, published(receipts), replayed)

    async def _json(self, exchange: Exchange, *, lines: bool) -> Publication:
        """In a function of its own, so that the body and what was decoded are gone before the log is waited for."""
        body = await exchange.body(self._options.body_bytes_max)
        return read_records(body, lines=lines, records_max=self._options.records_max)

    async def _events(self, exchange: Exchange, media_type: bytes, address: Address | None) -> list[Incoming]:
        """CloudEvents. Their key is the extension partitionkey: in an address it may be repeated, and no other may be given."""
        body = await exchange.body(self._options.body_bytes_max)
        if media_type == STRUCTURED:
            records = [from_structured(body)]
        elif media_type == BATCH:
            records = from_batch(body, self._options.records_max)
        elif media_type.startswith(FAMILY):
            raise MediaTypeUnsupported(_shown(media_type), SUPPORTED)
        else:
            records = [from_binary(exchange.scope["headers"], body)]
            records[0].ttl_ms = _ttl_ms(exchange)
        if address is not None:
            for record in records:
                record.key = None if record.key == address.key else record.key
        return records

    async def _raw(self, exchange: Exchange) -> Incoming:
        """The body is the value; everything else about the record is in the query and the headers."""
        message_id = exchange.headers.get(b"message-id")
        if message_id is not None and not valid_message_id(message_id.decode("latin-1")):
            raise ParameterInvalid("Message-Id", "it is no UUIDv7 in lower case (RFC 9562); leave it out to be given one")
        headers, ttl_ms = _headers(exchange), _ttl_ms(exchange)
        value = await exchange.body(self._options.body_bytes_max)
        if not value and b"content-type" not in exchange.headers:
            raise BodyMalformed("there is none; an empty value is sent with a Content-Type")
        message_id_text = None if message_id is None else message_id.decode("ascii")
        return Incoming(None, value, headers, None, message_id_text, ttl_ms=ttl_ms)


def media_type_of(exchange: Exchange) -> bytes:
    """Type and subtype in lower case, empty where none is given. MediaTypeUnsupported."""
    whole = exchange.headers.get(b"content-type", b"")
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


def _ttl_ms(exchange: Exchange) -> int | None:
    """`Sprawl-Ttl-Ms`, milliseconds until the record expires."""
    text = exchange.headers.get(b"sprawl-ttl-ms")
    if text is None:
        return None
    if not text.isdigit() or len(text) > TTL_DIGITS_MAX:
        raise ParameterInvalid("Sprawl-Ttl-Ms", f"it is not from 1 to {TTL_MS_MAX}, in milliseconds")
    return int(text)


def _put_defaults(publication: Publication, key: bytes | None, timestamp_ms: int | None) -> list[Incoming]:
    """The query's key and time, for records that have none of their own."""
    if isinstance(publication, Columns):
        pairs = publication.pairs()
        return [Incoming(key if own is None else own, value, publication.headers.pairs, timestamp_ms) for own, value in pairs]
    records = list(publication)
    for record in records:
        record.key = key if record.key is None else record.key
        record.timestamp_ms = timestamp_ms if record.timestamp_ms is None else record.timestamp_ms
    return records


def put_key(records: Publication, key: bytes | None) -> None:
    """The key of every record. RecordInvalid where one has a key of its own."""
    if isinstance(records, Columns):
        if not any(records.keys) and "" not in records.keys:
            records.put_key(key)
            return
        index = next(index for index, given in enumerate(records.keys) if given is not None)
        raise RecordInvalid(index, _KEY_TWICE)
    for index, record in enumerate(records):
        if record.key is not None:
            raise RecordInvalid(index, _KEY_TWICE)
        record.key = key


def _put_partition(publication: Publication, partition: int) -> list[Incoming]:
    """The query's, for records that name none of their own."""
    if isinstance(publication, Columns):
        return [Incoming(key, value, publication.headers.pairs, partition=partition) for key, value in publication.pairs()]
    records = list(publication)
    for record in records:
        record.partition = partition if record.partition is None else record.partition
    return records


def _shown(header: bytes) -> str:
    return header[:80].decode("latin-1")
