"""GET /v1/records: what a filter wants of every topic that may be read; and the query parameters that make a filter."""

from __future__ import annotations

import msgspec

from broker import errors as broker
from broker.delivery.filter import HEADERS_MAX, KEY_PREFIX_BYTES_MAX, Filter, FilterInvalid
from broker.delivery.position import Cursor, CursorAhead, PositionRefused
from broker.delivery.subscription import Delivered
from broker.engine.base import Damage, Gap
from gateway.endpoints.exchange import JSON, NDJSON, Exchange, encode
from gateway.endpoints.operations import TEXT, Answer, Operation, Parameter
from gateway.endpoints.parameters import CURSOR, number
from gateway.endpoints.query import Query, parse_cursor
from gateway.endpoints.read import TOPIC_START
from gateway.endpoints.records_json import RecordAnswer, to_answer
from gateway.endpoints.rest_options import RestOptions
from gateway.endpoints.watch import Watches
from gateway.errors import Draining, ParameterInvalid
from gateway.feed import Feed
from gateway.pipeline import Pipeline

_encode_lines = msgspec.json.Encoder().encode_lines

# Of what is accepted not all, so that the pattern is one that readers of the document understand.
_LEVEL = r"(?:\+|[a-zA-Z0-9 ._-]{0,16})"
ADDRESS_FILTER = Parameter(
    name="address",
    schema={"type": "string", "pattern": rf"^(?:#|(?:\+|[a-zA-Z0-9_-]{{1,249}})(?:/{_LEVEL}){{0,20}}(?:/#)?)$"},
    about="topic/key with wildcards: `+` is any one level, a last `#` that level and all below; without a slash, whole topics",
)
KEY_PREFIX = Parameter(
    name="key_prefix",
    schema={"type": "string"},
    about=f"only records whose key begins with this text, at most {KEY_PREFIX_BYTES_MAX} bytes",
)
HEADERS = Parameter(
    name="headers",
    schema={
        "type": "string",
        "pattern": rf"^[a-zA-Z0-9_-]{{1,40}}:[ -~]{{0,40}}(?:\n[a-zA-Z0-9_-]{{1,40}}:[ -~]{{0,40}}){{0,{HEADERS_MAX - 1}}}$",
    },
    about="only records with these headers: `name:value`, one a line",
)
FILTER_PARAMETERS = (ADDRESS_FILTER, KEY_PREFIX, HEADERS)
FILTER_REFUSALS = (FilterInvalid, PositionRefused, broker.UnknownTopic, broker.IllegalTopicName, CursorAhead)


def filter_of(query: Query, address: str | None = None) -> Filter:
    """Of `address` (where the path has not said it), `key_prefix` and `headers`. FilterInvalid, ParameterInvalid."""
    key_prefix, headers = query.text("key_prefix"), query.text("headers")
    return Filter.parse(
        query.text("address") if address is None else address,
        key_prefix=None if key_prefix is None else key_prefix.encode(),
        headers=None if headers is None else [_header(line) for line in headers.split("\n")],
    )


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ParameterInvalid("headers", "it is `name:value`, one a line")
    return name, value


class FilteredDamage(msgspec.Struct, gc=False):
    """Offsets [from_offset, to_offset) that the media lost."""

    topic: str
    partition: int
    from_offset: int
    to_offset: int
    reason: str


class FilteredGap(msgspec.Struct, gc=False):
    """Offsets [from_offset, to_offset) that retention or a deletion took before this reader came."""

    topic: str
    partition: int
    from_offset: int
    to_offset: int


class FilteredPage(msgspec.Struct, gc=False):
    """`at_end` false: there may be more from `next_cursor` on, even if `records` is empty. Each record has its `cursor`."""

    records: list[RecordAnswer]
    next_cursor: str
    at_end: bool
    damage: list[FilteredDamage]
    gaps: list[FilteredGap]


class FilteredRoutes:
    def __init__(self, pipeline: Pipeline, options: RestOptions, watches: Watches) -> None:
        self._pipeline, self._options, self._watches = pipeline, options, watches

    def operations(self) -> list[Operation]:
        options = self._options
        return [
            Operation(
                "GET",
                "/v1/records",
                self.records,
                "read_filtered",
                "Records of all topics that a filter reaches, in the order of their commits",
                {200: Answer("A page", {"application/json": FilteredPage, "application/x-ndjson": TEXT})},
                tag="records",
                parameters=(
                    *FILTER_PARAMETERS,
                    TOPIC_START,
                    Parameter(name="until", schema=CURSOR, about="a cursor that ends reading: `at_end` is true there"),
                    Parameter(name="limit", schema=number(options.records_max, 1), about="records of the page, at most"),
                    Parameter(
                        name="bytes_max",
                        schema=number(options.response_bytes_max, 1),
                        about="bytes of their keys and values, at most",
                    ),
                    Parameter(name="wait_ms", schema=number(options.wait_ms_max), about="how long to wait for a record"),
                ),
                refusals=(*FILTER_REFUSALS, broker.UnknownPartition, broker.OffsetOutOfRange),
                label="read",
            )
        ]

    async def records(self, exchange: Exchange) -> None:
        """`?address=&key_prefix=&headers=&cursor=|timestamp=|offset=&until=&limit=&bytes_max=&wait_ms=`"""
        options, query = self._options, exchange.query()
        filter = filter_of(query)
        position = query.position("earliest")
        end = query.text("until")
        until = None if end is None else parse_cursor("until", end)
        records_max = query.number("limit", options.records_default, options.records_max, 1)
        bytes_max = query.number("bytes_max", options.response_bytes_default, options.response_bytes_max, 1)
        wait_ms = query.number("wait_ms", 0, options.wait_ms_max)
        query.finish()
        feed = await self._pipeline.subscribe_filter(exchange.session, filter, position)
        try:
            if wait_ms == 0:
                found = await feed.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=0)
            else:
                found = await self._wait(exchange, feed, bytes_max, records_max, wait_ms)
            await self._answer(exchange, feed, found, until)
        finally:
            feed.close()

    async def _wait(self, exchange: Exchange, feed: Feed, bytes_max: int, records_max: int, wait_ms: int) -> list[Delivered]:
        try:
            async with self._watches.watch(exchange):
                return await feed.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=wait_ms)
        except Draining:
            return []  # what there was to deliver, nothing, is the answer

    async def _answer(self, exchange: Exchange, feed: Feed, found: list[Delivered], until: Cursor | None) -> None:
        at_end, reached = feed.at_end, feed.cursor
        if until is not None and reached >= until:
            at_end, reached, found = True, until, [one for one in found if one.cursor <= until]
        records = list(map(_answer_of, found))
        damage, gaps, cursor = feed.take_damage(), feed.take_gaps(), str(reached)
        if exchange.accepts(NDJSON):
            headers = [(b"next-cursor", cursor.encode()), (b"at-end", b"true" if at_end else b"false")]
            if damage:
                headers.append((b"damage", ", ".join(map(_place, damage)).encode("ascii")))
            if gaps:
                headers.append((b"gaps", ", ".join(map(_place, gaps)).encode("ascii")))
            await exchange.answer(200, NDJSON, _encode_lines(records), headers)
        else:
            lost = [FilteredDamage(one.topic, one.partition, one.from_offset, one.to_offset, one.reason) for one in damage]
            gone = [FilteredGap(one.topic, one.partition, one.from_offset, one.to_offset) for one in gaps]
            await exchange.answer(200, JSON, encode(FilteredPage(records, cursor, at_end, lost, gone)))


def _answer_of(one: Delivered) -> RecordAnswer:
    answer = to_answer(one.topic, one.partition, one.record)
    answer.cursor = str(one.cursor)
    return answer


def _place(lost: Damage | Gap) -> str:
    """`orders/3/10-20`: offsets 10 to 19 of partition 3 of orders."""
    return f"{lost.topic}/{lost.partition}/{lost.from_offset}-{lost.to_offset}"
