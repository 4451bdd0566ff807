"""GET /v1/topics/{topic}/events: a feed as Server-Sent Events (HTML standard, 9.2).

Each event's `id:` is the cursor after its record, so that a browser that connects again goes on there by `Last-Event-ID`, also
inside a batch. An `id:` alone, without data, moves the position and makes no event: sent first and with each heartbeat.

Nothing is read from the log before all that was written has left for the reader, and what is read is written in the same turn:
a slow reader holds one chunk of `sse.buffer_bytes_max`, and no record waits here while rights change.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from broker.delivery.position import AtTime, Cursor, Position
from broker.delivery.subscription import Delivered
from broker.engine.base import Damage
from gateway.endpoints.exchange import Exchange, encode
from gateway.endpoints.query import Query, parse_cursor, parse_time
from gateway.endpoints.read import DamageAnswer
from gateway.endpoints.records_json import to_answer
from gateway.endpoints.rest_options import SseOptions
from gateway.endpoints.watch import Watches
from gateway.errors import Draining, problem
from gateway.feed import Feed
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline
from security.errors import SecurityError

SLOW_S = 1.0

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
]


class EventRoutes:
    def __init__(self, pipeline: Pipeline, metrics: Metrics, options: SseOptions, watches: Watches) -> None:
        self._pipeline, self._metrics, self._options, self._watches = pipeline, metrics, options, watches

    async def events(self, exchange: Exchange, topic: str) -> None:
        """`?key=&from=earliest|latest|<cursor>|<timestamp>`; latest by default, and Last-Event-ID wins."""
        query = exchange.query()
        key = query.key()
        position = _position(exchange, query)
        query.finish()
        feed = await self._pipeline.subscribe(exchange.session, topic, key, position)
        try:
            await self._stream(exchange, topic, feed)
        finally:
            feed.close()

    async def _stream(self, exchange: Exchange, topic: str, feed: Feed) -> None:
        try:
            async with self._watches.watch(exchange):
                await exchange.begin(200, _HEADERS)
                await exchange.write(b"retry: %d\n%s" % (self._options.retry_ms, _move(feed.cursor)))
                if exchange.method != "HEAD":
                    await self._write_events(exchange, topic, feed)
        except Draining:
            if not exchange.started:
                raise
        except SecurityError as error:
            # Rights were taken away, or the credential has ended: the reader learns why, and nothing else.
            if not exchange.started:
                raise
            await exchange.write(b"event: error\ndata: %s\n\n" % encode(problem(error, exchange.id)))
        await exchange.write(b"", last=True)

    async def _write_events(self, exchange: Exchange, topic: str, feed: Feed) -> None:
        options = self._options
        while True:
            await self._drained(exchange)
            found = await feed.next(
                bytes_max=options.buffer_bytes_max, records_max=options.records_max, wait_max_ms=options.heartbeat_ms
            )
            damage = feed.take_damage()
            if found or damage:
                await exchange.write(_damage_events(damage) + _events(topic, found))
            else:
                await exchange.write(b":\n" + _move(feed.cursor))

    async def _drained(self, exchange: Exchange) -> None:
        """Returns when what was written has left; a reader that lets it wait is counted."""
        began = time.monotonic()
        await exchange.write(b"")
        if time.monotonic() - began >= SLOW_S:
            self._metrics.slow_readers_total.labels("sse").inc()


def _position(exchange: Exchange, query: Query) -> Position:
    start = query.text("from")
    resumed = exchange.headers.get(b"last-event-id")  # wins: it is how a browser goes on
    if resumed:
        return parse_cursor("Last-Event-ID", resumed.decode("latin-1"))
    if start is None or start == "latest":
        return "latest"
    if start == "earliest":
        return "earliest"
    if start.replace("-", "", 1).isdigit() and "-" in start:
        return parse_cursor("from", start)
    return AtTime(parse_time("from", start))


def _events(topic: str, found: Sequence[Delivered]) -> bytes:
    """`encode` writes no line breaks, and JSON values that have some were joined to one line: no value can end its field."""
    parts = []
    for delivered in found:
        record = encode(to_answer(topic, delivered.partition, delivered.record))
        parts.append(b"id: %s\ndata: %s\n\n" % (str(delivered.cursor).encode("ascii"), record))
    return b"".join(parts)


def _damage_events(damage: Sequence[Damage]) -> bytes:
    lost = (DamageAnswer(found.partition, found.from_offset, found.to_offset, found.reason) for found in damage)
    return b"".join(b"event: damage\ndata: %s\n\n" % encode(one) for one in lost)


def _move(cursor: Cursor) -> bytes:
    return b"id: %s\n\n" % str(cursor).encode("ascii")
