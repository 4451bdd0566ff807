"""GET of records: a partition from an offset on, a topic or a key of it in commit order."""

from __future__ import annotations

import msgspec

from broker import errors as broker
from broker.broker import Page
from broker.delivery.position import AtTime, CursorAhead
from broker.engine.base import Damage
from gateway.endpoints.cloudevent_schemas import EVENT
from gateway.endpoints.cloudevents import BATCH
from gateway.endpoints.cloudevents_out import to_batch, to_structured
from gateway.endpoints.exchange import JSON, NDJSON, Exchange, encode
from gateway.endpoints.operations import Alternatives, Answer, Operation, Parameter
from gateway.endpoints.parameters import CURSOR, OFFSET, PARTITION, PARTITION_NUMBER, TIMESTAMP, TOPIC, WHICH_KEY, number
from gateway.endpoints.query import PARTITION_MAX, Query, parse_number
from gateway.endpoints.records_json import RecordAnswer, to_answer
from gateway.endpoints.rest_options import RestOptions
from gateway.endpoints.watch import Watches
from gateway.errors import Draining, ParameterInvalid
from gateway.feed import Feed
from gateway.pipeline import PartitionStart, Pipeline

VARY = (b"vary", b"accept")

encode_lines = msgspec.json.Encoder().encode_lines

_NDJSON, _BATCH = NDJSON.decode(), BATCH.decode()


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


READ_CURSOR = Parameter(name="cursor", schema=CURSOR, about="where an earlier answer said to go on: its `next_cursor`")
END = Parameter(name="offset", schema={"enum": ["earliest", "latest"]}, about="with the oldest record, or with the next to come")
PARTITION_START = Alternatives(
    name="start",
    about="where to begin; earliest where nothing is said",
    forms=((Parameter(name="offset", schema=OFFSET, about="with this offset"),), (END,), (TIMESTAMP,)),
)
TOPIC_START = Alternatives(
    name="start",
    about="where to begin; earliest where nothing is said",
    forms=(
        (READ_CURSOR,),
        (TIMESTAMP,),
        (END,),
        (
            Parameter(name="offset", schema=OFFSET, about="with this offset of the partition"),
            Parameter(name="partition", schema=PARTITION_NUMBER, about="the partition that the offset is of"),
        ),
    ),
)
# One record a line, or an array of CloudEvents; what the page says about itself is then in the headers.
_LINES = {_NDJSON: list[RecordAnswer], _BATCH: {"type": "array", "items": EVENT}}
_DAMAGE_HEADER = {"Damage": "`3/10-20`: of partition 3 the offsets 10 to 19 are lost"}
_PARTITION_HEADERS = {
    "Next-Offset": "where to go on",
    "Log-Start": "the oldest offset",
    "High-Watermark": "the offset that comes next",
    **_DAMAGE_HEADER,
}
_TOPIC_HEADERS = {"Next-Cursor": "where to go on", "At-End": "whether that was the end of the log", **_DAMAGE_HEADER}
_UNKNOWN = (broker.UnknownTopic, broker.IllegalTopicName)


class Bounds(msgspec.Struct, frozen=True, gc=False):
    records_max: int
    bytes_max: int
    wait_max_ms: int


class ReadRoutes:
    def __init__(self, pipeline: Pipeline, options: RestOptions, watches: Watches) -> None:
        self._pipeline, self._options, self._watches = pipeline, options, watches

    def operations(self) -> list[Operation]:
        of_topic = "/v1/topics/{topic}"
        bounds = (
            Parameter(name="limit", schema=number(self._options.records_max, 1), about="records of the page, at most"),
            Parameter(
                name="bytes_max",
                schema=number(self._options.response_bytes_max, 1),
                about="bytes of their keys and values, at most",
            ),
            Parameter(
                name="wait_ms", schema=number(self._options.wait_ms_max), about="how long to wait while there is no record"
            ),
        )
        return [
            Operation(
                "GET",
                of_topic + "/partitions/{partition}/records",
                self.partition,
                "read_partition",
                "Records of a partition, in the order of their offsets",
                {200: Answer("A page", {"application/json": PartitionPage, **_LINES}, _PARTITION_HEADERS)},
                tag="records",
                parameters=(TOPIC, PARTITION, PARTITION_START, *bounds),
                refusals=(*_UNKNOWN, broker.UnknownPartition, broker.OffsetOutOfRange),
                label="read",
            ),
            Operation(
                "GET",
                of_topic + "/records",
                self.topic,
                "read_topic",
                "Records of a topic or of one key, in the order of their commits",
                {200: Answer("A page", {"application/json": TopicPage, **_LINES}, _TOPIC_HEADERS)},
                tag="records",
                parameters=(TOPIC, WHICH_KEY, TOPIC_START, *bounds),
                refusals=(*_UNKNOWN, broker.UnknownPartition, broker.OffsetOutOfRange, CursorAhead),
                label="read",
            ),
        ]

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
        headers = [
            (b"next-offset", b"%d" % page.next_offset),
            (b"log-start", b"%d" % page.log_start),
            (b"high-watermark", b"%d" % page.high_watermark),
            *_damage_header(page.damage),
        ]
        if exchange.accepts(BATCH):
            events = [to_structured(topic, partition, record) for record in page.records]
            await exchange.answer(200, BATCH, to_batch(events), [VARY, *headers])
            return
        records = [to_answer(topic, partition, record) for record in page.records]
        if exchange.accepts(NDJSON):
            await exchange.answer(200, NDJSON, encode_lines(records), [VARY, *headers])
            return
        body = PartitionPage(records, page.next_offset, page.log_start, page.high_watermark, _damage(page.damage))
        await exchange.answer(200, JSON, encode(body), [VARY])

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
        damage = feed.take_damage()
        headers = [(b"next-cursor", str(feed.cursor).encode()), (b"at-end", _flag(feed.at_end)), *_damage_header(damage)]
        if exchange.accepts(BATCH):
            events = [to_structured(topic, delivered.partition, delivered.record) for delivered in found]
            await exchange.answer(200, BATCH, to_batch(events), [VARY, *headers])
            return
        records = [to_answer(topic, delivered.partition, delivered.record) for delivered in found]
        if exchange.accepts(NDJSON):
            await exchange.answer(200, NDJSON, encode_lines(records), [VARY, *headers])
            return
        await exchange.answer(200, JSON, encode(TopicPage(records, str(feed.cursor), feed.at_end, _damage(damage))), [VARY])


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
