"""GET /v1/events and /v1/topics/{topic}/events: a feed as Server-Sent Events (HTML standard, 9.2).

Each event's `id:` is the cursor after its record, so that a browser that connects again goes on there by `Last-Event-ID`, also
inside a batch. An `id:` alone, without data, moves the position and makes no event: sent first and with each heartbeat.

Nothing is read from the log before all that was written has left for the reader, and what is read is written in the same turn:
a slow reader holds one chunk of `sse.buffer_bytes_max`, less where there are very many (`send_buffers.py`), and no record waits
here while rights change.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from broker.delivery.position import AtTime, Cursor, Position
from broker.delivery.subscription import Delivered
from broker.engine.base import Damage, Gap
from broker.topics.addresses import Address, legal_topic_name
from gateway.endpoints.exchange import Exchange, encode
from gateway.endpoints.filtered import (
    FILTER_PARAMETERS,
    FILTER_REFUSALS,
    HEADERS,
    KEY_PREFIX,
    FilteredDamage,
    filter_of,
)
from gateway.endpoints.operations import Answer, Operation, Parameter
from gateway.endpoints.parameters import CURSOR, MOMENT, TOPIC, WHICH_KEY
from gateway.endpoints.query import Query, parse_cursor, parse_time
from gateway.endpoints.records_json import RecordAnswer, to_answer
from gateway.endpoints.rest_options import SseOptions
from gateway.endpoints.send_buffers import SendBuffers
from gateway.endpoints.watch import Watch, Watches
from gateway.errors import ClientGone, Draining, problem
from gateway.feed import Feed
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline
from security.errors import SecurityError

SLOW_S = 1.0

_FROM = Parameter(
    name="from",
    schema={"anyOf": [{"enum": ["earliest", "latest"]}, CURSOR, MOMENT]},
    about="earliest, latest (where nothing is said), a cursor, or a time",
)
_LAST = {"type": "string", "pattern": r"^(?:[0-9]{1,18}-[0-9]{1,10})?$"}
# One event of the stream, as OpenAPI 3.2 means its `itemSchema`.
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "the cursor after the record"},
        "event": {"enum": ["message", "damage", "gap", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": RecordAnswer},
    },
}
_LAST_EVENT_ID = Parameter(
    name="Last-Event-ID", place="header", schema=_LAST, about="go on after this event; it wins over `from`"
)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
]


_STREAM = {200: Answer("The stream: each event's id is the cursor after its record", {"text/event-stream": _EVENT})}


class _Stream:
    """What holds bytes: cut, it ends like one whose client has gone."""

    __slots__ = ("_watch",)

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def cut(self) -> None:
        self._watch.end(ClientGone())


class EventRoutes:
    def __init__(self, pipeline: Pipeline, metrics: Metrics, options: SseOptions, watches: Watches, buffers: SendBuffers) -> None:
        self._pipeline, self._metrics, self._options = pipeline, metrics, options
        self._watches, self._buffers = watches, buffers

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET",
                "/v1/topics/{topic}/events",
                self.events,
                "events",
                "Records as Server-Sent Events, from now on or from a position",
                _STREAM,
                tag="records",
                parameters=(TOPIC, WHICH_KEY, KEY_PREFIX, HEADERS, _FROM, _LAST_EVENT_ID),
                refusals=FILTER_REFUSALS,
                protocol="sse",
                label="events",
                timed=False,
            ),
            Operation(
                "GET",
                "/v1/events",
                self.filtered,
                "filtered_events",
                "Records of all topics that a filter reaches, as Server-Sent Events",
                _STREAM,
                tag="records",
                parameters=(*FILTER_PARAMETERS, _FROM, _LAST_EVENT_ID),
                refusals=FILTER_REFUSALS,
                protocol="sse",
                label="events",
                timed=False,
            ),
        ]

    async def events(self, exchange: Exchange, topic: str) -> None:
        """`?key=&from=earliest|latest|<cursor>|<timestamp>`; latest by default, and Last-Event-ID wins."""
        query = exchange.query()
        key = query.key()
        position = _position(exchange, query)
        legal = legal_topic_name(topic)  # else it could be a wildcard, and is refused by name
        wanted = filter_of(query, Address(topic, key).text() if legal else "#")
        query.finish()
        if not legal or (wanted.key_prefix is None and not wanted.headers):
            feed = await self._pipeline.subscribe(exchange.session, topic, key, position)
        else:
            feed = await self._pipeline.subscribe_filter(exchange.session, wanted, position)
        await self._serve(exchange, feed)

    async def filtered(self, exchange: Exchange) -> None:
        """`?address=&key_prefix=&headers=&from=`, over all topics that may be read."""
        query = exchange.query()
        wanted = filter_of(query)
        position = _position(exchange, query)
        query.finish()
        await self._serve(exchange, await self._pipeline.subscribe_filter(exchange.session, wanted, position))

    async def _serve(self, exchange: Exchange, feed: Feed) -> None:
        self._buffers.connections += 1
        try:
            await self._stream(exchange, feed)
        finally:
            self._buffers.connections -= 1
            feed.close()

    async def _stream(self, exchange: Exchange, feed: Feed) -> None:
        try:
            async with self._watches.watch(exchange) as watch:
                holder = _Stream(watch)
                await exchange.begin(200, _HEADERS)
                await exchange.write(b"retry: %d\n%s" % (self._options.retry_ms, _move(feed.cursor)))
                if exchange.method != "HEAD":
                    await self._write_events(exchange, holder, feed)
        except Draining:
            if not exchange.started:
                raise
        except SecurityError as error:
            # Rights were taken away, or the credential has ended: the reader learns why, and nothing else.
            if not exchange.started:
                raise
            await exchange.write(b"event: error\ndata: %s\n\n" % encode(problem(error, exchange.id)))
        await exchange.write(b"", last=True)

    async def _write_events(self, exchange: Exchange, holder: _Stream, feed: Feed) -> None:
        try:
            await self._follow(exchange, holder, feed)
        finally:
            self._buffers.hold(holder, 0)

    async def _follow(self, exchange: Exchange, holder: _Stream, feed: Feed) -> None:
        options, buffers = self._options, self._buffers
        ends_at = time.monotonic() + options.lifetime_ms / 1_000 if options.lifetime_ms else math.inf
        while (left_s := ends_at - time.monotonic()) > 0:
            await self._drained(exchange)
            buffers.hold(holder, 0)
            wait_ms = min(options.heartbeat_ms, math.ceil(left_s * 1_000)) if options.lifetime_ms else options.heartbeat_ms
            bytes_max, records_max = buffers.piece_bytes(options.buffer_bytes_max), buffers.piece_records(options.records_max)
            found = await feed.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=wait_ms)
            damage, gaps = feed.take_damage(), feed.take_gaps()
            if found or damage or gaps:
                chunk = _damage_events(damage) + _gap_events(gaps) + _events(found)
                buffers.hold(holder, len(chunk))
                await exchange.write(chunk)
            else:
                await exchange.write(b":\n" + _move(feed.cursor))

    async def _drained(self, exchange: Exchange) -> None:
        """Returns when what was written has left; a reader that lets it wait is counted."""
        began = time.monotonic()
        await exchange.write(b"")
        if time.monotonic() - began >= SLOW_S:
            self._metrics.slow_readers_total.labels("sse").inc()


def _position(exchange: Exchange, query: Query) -> Position:
    asked = _asked(query.text("from"))
    resumed = exchange.headers.get(b"last-event-id")  # wins: it is how a browser goes on
    return parse_cursor("Last-Event-ID", resumed.decode("latin-1")) if resumed else asked


def _asked(start: str | None) -> Position:
    if start is None or start == "latest":
        return "latest"
    if start == "earliest":
        return "earliest"
    if start.replace("-", "", 1).isdigit() and "-" in start:
        return parse_cursor("from", start)
    return AtTime(parse_time("from", start))


def _events(found: Sequence[Delivered]) -> bytes:
    """`encode` writes no line breaks, and JSON values that have some were joined to one line: no value can end its field."""
    parts = []
    for delivered in found:
        record = encode(to_answer(delivered.topic, delivered.partition, delivered.record))
        parts.append(b"id: %s\ndata: %s\n\n" % (str(delivered.cursor).encode("ascii"), record))
    return b"".join(parts)


def _damage_events(damage: Sequence[Damage]) -> bytes:
    lost = [FilteredDamage(one.topic, one.partition, one.from_offset, one.to_offset, one.reason) for one in damage]
    return b"".join([b"event: damage\ndata: %s\n\n" % encode(one) for one in lost])


def _gap_events(gaps: Sequence[Gap]) -> bytes:
    """What retention, or a deletion of records, took before this reader came."""
    return b"".join([b"event: gap\ndata: %s\n\n" % encode(gap) for gap in gaps])


def _move(cursor: Cursor) -> bytes:
    return b"id: %s\n\n" % str(cursor).encode("ascii")
