"""GET of records: a partition from an offset on, a topic or a key of it in commit order, the latest of an address."""

from __future__ import annotations

import base64
import re

import msgspec

from broker.broker import Page
from broker.delivery.position import AtTime
from broker.engine.base import Damage
from broker.record import MESSAGE_ID_HEADER, RESERVED_HEADER_PREFIX, Record
from broker.topics.addresses import Address
from gateway.endpoints.exchange import JSON, NDJSON, Exchange, encode
from gateway.endpoints.publish import HEADER_PREFIX
from gateway.endpoints.query import PARTITION_MAX, Query, parse_number
from gateway.endpoints.records_json import RecordAnswer, content_type, to_answer
from gateway.endpoints.rest_options import RestOptions
from gateway.endpoints.watch import Watches
from gateway.errors import Draining, NoRecord, ParameterInvalid
from gateway.feed import Feed
from gateway.pipeline import PartitionStart, Pipeline

encode_lines = msgspec.json.Encoder().encode_lines

OCTETS = b"application/octet-stream"

# What was stored may be anything, so browsers shall neither guess its type nor run it in the node's origin.
_HARMLESS = [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"sandbox; default-src 'none'")]
# A stored type or header goes back out only in the form of one (RFC 9110, 5.5): it must not end the line and begin another.
_FIELD_VALUE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e\t]{0,1022}[\x21-\x7e])?")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,128}", re.ASCII)


class DamageAnswer(msgspec.Struct, gc=False):
    """Offsets [from_offset, to_offset) that the media lost."""

    partition: int
    from_offset: int
    to_offset: int
    reason: str


class PartitionPage(msgspec.Struct, gc=False):
    records: list[RecordAnswer]
    next_offset: int
    log_start: int
    high_watermark: int
    damage: list[DamageAnswer]


class TopicPage(msgspec.Struct, gc=False):
    """`at_end` false: there may be more from `next_cursor` on, even if `records` is empty."""

    records: list[RecordAnswer]
    next_cursor: str
    at_end: bool
    damage: list[DamageAnswer]


class Bounds(msgspec.Struct, frozen=True, gc=False):
    records_max: int
    bytes_max: int
    wait_max_ms: int


class ReadRoutes:
    def __init__(self, pipeline: Pipeline, options: RestOptions, watches: Watches) -> None:
        self._pipeline, self._options, self._watches = pipeline, options, watches

    async def partition(self, exchange: Exchange, topic: str, partition_text: str) -> None:
        """GET /v1/topics/{topic}/partitions/{partition}/records?offset=|timestamp=&limit=&bytes_max=&wait_ms="""
        partition = parse_number("partition", partition_text, PARTITION_MAX)
        query = exchange.query()
        start = _partition_start(query)
        bounds = self._bounds(query)
        query.finish()
        try:
            page = await self._read(exchange, topic, partition, start, bounds)
        except Draining:
            page = await self._read(exchange, topic, partition, start, msgspec.structs.replace(bounds, wait_max_ms=0))
        await self._answer_partition(exchange, topic, partition, page)

    async def topic(self, exchange: Exchange, topic: str) -> None:
        """GET /v1/topics/{topic}/records?key=&cursor=|timestamp=|offset=&limit=&bytes_max=&wait_ms="""
        query = exchange.query()
        key = query.key()
        position = query.position("earliest")
        bounds = self._bounds(query)
        query.finish()
        feed = await self._pipeline.subscribe(exchange.session, topic, key, position)
        try:
            await self._answer_topic(exchange, topic, feed, bounds)
        finally:
            feed.close()

    async def latest(self, exchange: Exchange, address: Address) -> None:
        """GET /v1/records/{topic}/{key}: its newest value as it was published, or the record object (`envelope=true`)."""
        query = exchange.query()
        envelope = query.flag("envelope")
        query.finish()
        found = await self._pipeline.latest(exchange.session, address.topic, address.key)
        if found is None:
            raise NoRecord(address.topic)
        partition, record = found
        source = (b"record-source", b"latest")
        if envelope:
            await exchange.answer(200, JSON, encode(to_answer(address.topic, partition, record)), [source])
        elif record.value is None:
            raise NoRecord(address.topic)  # a tombstone: there was one, and it was deleted
        else:
            headers = [source, *_record_headers(address.topic, partition, record), *_HARMLESS]
            await exchange.answer(200, _safe_type(record), record.value, headers)

    def _bounds(self, query: Query) -> Bounds:
        options = self._options
        return Bounds(
            query.number("limit", options.records_default, options.records_max, 1),
            query.number("bytes_max", options.response_bytes_default, options.response_bytes_max, 1),
            query.number("wait_ms", 0, options.wait_ms_max),
        )

    async def _read(self, exchange: Exchange, topic: str, partition: int, start: PartitionStart, bounds: Bounds) -> Page:
        arguments = msgspec.structs.asdict(bounds)
        if bounds.wait_max_ms == 0:
            return await self._pipeline.read(exchange.session, topic, partition, start, **arguments)
        async with self._watches.watch(exchange):
            return await self._pipeline.read(exchange.session, topic, partition, start, **arguments)

    async def _answer_partition(self, exchange: Exchange, topic: str, partition: int, page: Page) -> None:
        records = [to_answer(topic, partition, record) for record in page.records]
        if not exchange.accepts(NDJSON):
            body = PartitionPage(records, page.next_offset, page.log_start, page.high_watermark, _damage(page.damage))
            await exchange.answer(200, JSON, encode(body))
            return
        headers = [
            (b"next-offset", b"%d" % page.next_offset),
            (b"log-start", b"%d" % page.log_start),
            (b"high-watermark", b"%d" % page.high_watermark),
            *_damage_header(page.damage),
        ]
        await exchange.answer(200, NDJSON, encode_lines(records), headers)

    async def _answer_topic(self, exchange: Exchange, topic: str, feed: Feed, bounds: Bounds) -> None:
        arguments = msgspec.structs.asdict(bounds)
        found = []
        if bounds.wait_max_ms == 0:
            found = await feed.next(**arguments)
        else:
            try:
                async with self._watches.watch(exchange):
                    found = await feed.next(**arguments)
            except Draining:
                pass  # what there was to deliver, nothing, is the answer
        records = [to_answer(topic, delivered.partition, delivered.record) for delivered in found]
        damage = feed.take_damage()
        if exchange.accepts(NDJSON):
            headers = [(b"next-cursor", str(feed.cursor).encode()), (b"at-end", _flag(feed.at_end)), *_damage_header(damage)]
            await exchange.answer(200, NDJSON, encode_lines(records), headers)
        else:
            body = TopicPage(records, str(feed.cursor), feed.at_end, _damage(damage))
            await exchange.answer(200, JSON, encode(body))


def _partition_start(query: Query) -> PartitionStart:
    timestamp_ms = query.timestamp_ms()
    offset = query.text("offset")
    if timestamp_ms is not None and offset is not None:
        raise ParameterInvalid("offset", "timestamp is given too")
    if timestamp_ms is not None:
        return AtTime(timestamp_ms)
    if offset is None or offset == "earliest":
        return "earliest"
    return "latest" if offset == "latest" else parse_number("offset", offset)


def _damage(damage: list[Damage]) -> list[DamageAnswer]:
    return [DamageAnswer(lost.partition, lost.from_offset, lost.to_offset, lost.reason) for lost in damage]


def _damage_header(damage: list[Damage]) -> list[tuple[bytes, bytes]]:
    """`Damage: 3/10-20`: offsets 10 to 19 of partition 3 are lost."""
    if not damage:
        return []
    ranges = (f"{lost.partition}/{lost.from_offset}-{lost.to_offset}" for lost in damage)
    return [(b"damage", ", ".join(ranges).encode("ascii"))]


def _flag(flag: bool) -> bytes:
    return b"true" if flag else b"false"


def _safe_type(record: Record) -> bytes:
    media_type = content_type(record)
    return media_type if media_type is not None and _FIELD_VALUE.fullmatch(media_type) else OCTETS


def _record_headers(topic: str, partition: int, record: Record) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"record-topic", topic.encode("ascii")),
        (b"record-partition", b"%d" % partition),
        (b"record-offset", b"%d" % record.offset),
        (b"record-timestamp", b"%d" % record.timestamp_ms),
    ]
    message_id = record.message_id
    if message_id is not None and message_id.isprintable():
        headers.append((b"message-id", message_id.encode("ascii")))
    if record.key is not None:
        headers.append((b"record-key64", base64.urlsafe_b64encode(record.key).rstrip(b"=")))
    for name, content in record.headers:
        if _returnable(name) and content is not None and _FIELD_VALUE.fullmatch(content):
            headers.append((HEADER_PREFIX + name.encode("ascii"), content))
    return headers


def _returnable(name: str) -> bool:
    """As a header of the answer; every header, whatever its bytes, is in the envelope."""
    ours = name == MESSAGE_ID_HEADER or name.startswith(RESERVED_HEADER_PREFIX) or name == "content-type"
    return not ours and _FIELD_NAME.fullmatch(name) is not None
