"""A named consumer on one connection: records out with tags, acknowledgements in.

To its connection it is a subscription like others, but it never shares a broadcast: which record is due is its own affair. The
`ConsumerFeed` keeps its place, counts what is in flight, and authorises at each read; here it is only asked while the
connection takes what is written, a bounded step at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.delivery.consumer import Consumed, Settled
from broker.delivery.consumer_options import ConsumerOptions
from broker.delivery.filter import Filter
from broker.delivery.position import Cursor, Position
from gateway.endpoints.websocket_frames import Losses, encode_consumed
from gateway.endpoints.websocket_messages import Ack, Extend, Nack, Reject, Settle
from gateway.endpoints.websocket_subscription import Opening, Subscription
from gateway.errors import ParameterInvalid
from security.errors import QuotaExceeded
from security.principal import Session

if TYPE_CHECKING:
    from gateway.consumer_feed import ConsumerFeed


class ConsumerReader(Subscription):
    """`name` is the consumer's, which outlives the connection."""

    operation = "consume"
    __slots__ = ("_begun", "_feed", "_filter", "_name", "_options", "_position")

    def __init__(self, opening: Opening, filter: Filter, name: str, options: ConsumerOptions) -> None:
        super().__init__(opening)
        self._filter, self._name, self._options = filter, name, options
        self._position: Position = "latest"
        self._begun = False
        self._feed: ConsumerFeed | None = None

    # What its connection asks of it

    def start(self, position: Position) -> None:
        self._position = position
        self._spawn()

    def renew(self, session: Session) -> None:
        """The connection has authenticated again: the consumer is asked for again, with the new session."""
        self.stop()
        self.session = session
        self._spawn()

    def add_credit(self, records: int) -> None:
        self.credit = records + (self.credit or 0)
        if self._feed is not None:
            self._feed.credit(records)

    def pause(self) -> None:
        self._paused = True
        if self._feed is not None:
            self._feed.pause()

    def resume(self) -> None:
        self._paused = False
        if self._feed is not None:
            self._feed.resume()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def position(self) -> Cursor | None:
        """Where the consumer goes on by itself; to tell, not to begin at."""
        return None if self._feed is None else self._feed.cursor

    async def settle(self, operation: Settle) -> Settled:
        """Durable when it returns. The errors of the consumer, and ParameterInvalid before it has begun."""
        feed = self._feed
        if feed is None:
            raise ParameterInvalid("sub", "the consumer has not begun: wait for `subscribed`")
        match operation:
            case Ack(tags=tags):
                return await feed.ack(tags)
            case Nack(tags=tags, delay_ms=delay_ms, reason=reason):
                return await feed.nack(tags, delay_ms=delay_ms, reason=reason)
            case Reject(tags=tags, reason=reason):
                return await feed.reject(tags, reason=reason)
            case Extend(tags=tags, timeout_ms=timeout_ms):
                return feed.extend(tags, timeout_ms=timeout_ms)

    # Reading

    def _spawn(self) -> None:
        self._task = asyncio.create_task(self._run(), name="consumer")

    async def _run(self) -> None:
        try:
            feed = await self._open()
            while True:
                await self.output.drained()
                async with self._turn:
                    while not self.output.takes():
                        await self.output.drained()
                    some = await self._step(feed, wait_max_ms=0)
                if not some:
                    await self._news(feed)
        except Exception as error:
            self._task = None
            self.stop()
            self._on_failure(self, error)

    async def _open(self) -> ConsumerFeed:
        while True:
            try:
                feed = await self._hub.pipeline.consume(self.session, self._filter, self._name, self._options, self._position)
                break
            except QuotaExceeded as wait:
                if not self._begun:
                    raise
                await asyncio.sleep(wait.retry_after_ms / 1000)  # renewed: to go on is not the client's doing
        self._feed, self._begun = feed, True
        if self.credit is not None:
            feed.credit(self.credit)
        if self._paused:
            feed.pause()
        self._hub.count("consume", "ok")
        frame = self.frames.subscribed(
            self.sub, feed.cursor, ref=self.take_ref(), consumer=self._name, created=feed.created, in_flight=feed.in_flight
        )
        self.output.write(frame)
        return feed

    async def _step(self, feed: ConsumerFeed, *, wait_max_ms: int) -> bool:
        """Read and write once; whether there was anything."""
        bytes_max, records_max = self._hub.piece
        async with self._hub.reads:
            found = await feed.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=wait_max_ms)
        return self._write(feed, found)

    async def _news(self, feed: ConsumerFeed) -> None:
        """Wait without holding the turn; so one record at most comes of it."""
        found = await feed.next(bytes_max=1, records_max=1, wait_max_ms=self._hub.options.read_wait_ms)
        self._write(feed, found)

    def _write(self, feed: ConsumerFeed, found: Sequence[Consumed]) -> bool:
        losses = Losses(feed.take_damage(), feed.take_gaps())
        if self.credit is not None:
            self.credit -= len(found)
        frame_bytes_max = self._hub.options.frame_bytes_max
        for chunk in encode_consumed(self.frames, found, losses, feed.cursor, frame_bytes_max):
            self.output.write_piece(self.frames.records(self.sub, chunk))
        return bool(found or losses)
