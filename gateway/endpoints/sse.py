"""GET /v1/events and /v1/topics/{topic}/events: a feed as Server-Sent Events (HTML standard, 9.2).

Each event's `id:` is the cursor after its record, so that a browser that connects again goes on there by `Last-Event-ID`, also
inside a batch. An `id:` alone, without data, moves the position and makes no event: sent first and with each heartbeat.

Nothing is read from the log before all that was written has left for the reader, and what is read is written in the same turn:
a slow reader holds one chunk of `sse.buffer_bytes_max`, less where there are very many (`send_buffers.py`), and no record waits
here while rights change.
"""

from __future__ import annotations

import asyncio
import math
import time

from broker.delivery.position import AtTime, Cursor, Position
from broker.topics.addresses import Address, legal_topic_name
from gateway.endpoints.exchange import Exchange, encode
from gateway.endpoints.filtered import (
    FILTER_PARAMETERS,
    FILTER_REFUSALS,
    HEADERS,
    KEY_PREFIX,
    FilteredDamage,
    FilteredGap,
    filter_of,
)
from gateway.endpoints.openapi import Problem
from gateway.endpoints.operations import Answer, Operation, Parameter, Schema
from gateway.endpoints.parameters import CURSOR, MOMENT, TOPIC, WHICH_KEY
from gateway.endpoints.query import Query, parse_cursor, parse_time
from gateway.endpoints.records_json import RecordAnswer
from gateway.endpoints.rest_options import SseOptions
from gateway.endpoints.send_buffers import SendBuffers
from gateway.endpoints.sse_live import EVENTS, LiveStream
from gateway.endpoints.watch import Watch, Watches
from gateway.endpoints.websocket_broadcast import Interest, plainest
from gateway.endpoints.websocket_frames import Losses, encode_chunks
from gateway.endpoints.websocket_hub import Hub
from gateway.endpoints.websocket_options import WebSocketOptions
from gateway.errors import ClientGone, Draining, problem
from gateway.feed import Feed
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline
from security.errors import SecurityError

SLOW_S = 1.0
PAUSE_S = 0.01
"""Before asking again a feed that gave nothing though there is more: the quota paces it, or what it wants is rare."""

_FROM = Parameter(
    name="from",
    schema={"anyOf": [{"enum": ["earliest", "latest"]}, CURSOR, MOMENT]},
    about="earliest, latest (where nothing is said), a cursor, or a time",
)
_LAST = {"type": "string", "pattern": r"^(?:[0-9]{1,18}-[0-9]{1,10})?$"}
# One event of the stream, as OpenAPI 3.2 means its `itemSchema`.
_ID = {"type": "string", "description": "the cursor after the record"}


def _event_form(name: str, kind: type) -> Schema:
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": kind}
    return {"type": "object", "properties": {"id": _ID, "event": {"const": name}, "data": data}}


_EVENT = {
    "anyOf": [
        _event_form("message", RecordAnswer),
        _event_form("damage", FilteredDamage),
        _event_form("gap", FilteredGap),
        _event_form("error", Problem),
    ]
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
        self._hub: Hub | None = None

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
        plain = not legal or (wanted.key_prefix is None and not wanted.headers)
        await self._serve(exchange, Address(topic, key) if plain else wanted, position)

    async def filtered(self, exchange: Exchange) -> None:
        """`?address=&key_prefix=&headers=&from=`, over all topics that may be read."""
        query = exchange.query()
        wanted = filter_of(query)
        position = _position(exchange, query)
        query.finish()
        await self._serve(exchange, plainest(wanted), position)

    async def _serve(self, exchange: Exchange, interest: Interest, position: Position) -> None:
        feed = await self._live().subscribe(exchange.session, interest, position)
        live = LiveStream(exchange.session, interest, feed.cursor)
        self._buffers.connections += 1
        try:
            await self._stream(exchange, feed, live)
        finally:
            self._buffers.connections -= 1
            feed.close()
            await live.leave()

    def _live(self) -> Hub:
        """Made with the first stream, on the loop that serves it."""
        if self._hub is None:
            options = self._options
            bounds = WebSocketOptions(
                read_bytes_max=options.buffer_bytes_max,
                read_records_max=options.records_max,
                frame_bytes_max=2 * options.buffer_bytes_max,
                read_wait_ms=options.heartbeat_ms,
            )
            self._hub = Hub(self._pipeline, self._metrics, bounds, self._buffers)
        return self._hub

    async def _stream(self, exchange: Exchange, feed: Feed, live: LiveStream) -> None:
        try:
            async with self._watches.watch(exchange) as watch:
                holder = _Stream(watch)
                await exchange.begin(200, _HEADERS)
                await exchange.write(b"retry: %d\n%s" % (self._options.retry_ms, _move(feed.cursor)))
                if exchange.method != "HEAD":
                    await self._write_events(exchange, holder, feed, live)
        except Draining:
            if not exchange.started:
                raise
        except SecurityError as error:
            # Rights were taken away, or the credential has ended: the reader learns why, and nothing else.
            if not exchange.started:
                raise
            await exchange.write(b"event: error\ndata: %s\n\n" % encode(problem(error, exchange.id)))
        await exchange.write(b"", last=True)

    async def _write_events(self, exchange: Exchange, holder: _Stream, feed: Feed, live: LiveStream) -> None:
        try:
            await self._follow(exchange, holder, feed, live)
        finally:
            self._buffers.hold(holder, 0)

    async def _follow(self, exchange: Exchange, holder: _Stream, feed: Feed, live: LiveStream) -> None:
        options = self._options
        ends_at = time.monotonic() + options.lifetime_ms / 1_000 if options.lifetime_ms else math.inf
        while (left_s := ends_at - time.monotonic()) > 0:
            await self._drained(exchange)
            self._buffers.hold(holder, 0)
            wait_ms = min(options.heartbeat_ms, math.ceil(left_s * 1_000)) if options.lifetime_ms else options.heartbeat_ms
            if live.broadcast is not None:
                chunk = await self._next_live(live, wait_ms)
            else:
                if live.fell_behind():
                    feed.seek(live.cursor)
                chunk = await self._next_read(feed, live, wait_ms)
            if chunk:
                self._buffers.hold(holder, len(chunk))
                await exchange.write(chunk)

    async def _next_live(self, live: LiveStream, wait_ms: int) -> bytes:
        """What the broadcast brings; a heartbeat, with a look at the rights; nothing when the stream has to read for itself."""
        chunk = await live.next(wait_ms)
        if not chunk and live.broadcast is not None:
            if self._live().shares(live.session, live.interest):
                return b":\n" + _move(live.position())
            live.fall_behind()
        return chunk

    async def _next_read(self, feed: Feed, live: LiveStream, wait_ms: int) -> bytes:
        """What follows in the log. At its end the stream joins the broadcast, or waits, where it may not have all of it."""
        options, buffers, hub = self._options, self._buffers, self._live()
        sharing = hub.shares(live.session, live.interest)
        bytes_max, records_max = buffers.piece_bytes(options.buffer_bytes_max), buffers.piece_records(options.records_max)
        found = await feed.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=0 if sharing else wait_ms)
        losses = Losses(feed.take_damage(), feed.take_gaps())
        if found or losses:
            chunks = encode_chunks(EVENTS, found, losses, feed.cursor, 2 * options.buffer_bytes_max)
            return b"".join([chunk.body for chunk in chunks])
        if not sharing:
            return b":\n" + _move(feed.cursor)
        live.cursor = feed.cursor
        if feed.owes or not feed.at_end or not hub.reached(live, caught_up=True):
            await asyncio.sleep(PAUSE_S)
        elif hub.shares(live.session, live.interest):
            hub.join(live)
        return b""

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


def _move(cursor: Cursor) -> bytes:
    return b"id: %s\n\n" % str(cursor).encode("ascii")
