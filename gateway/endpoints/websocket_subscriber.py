"""One subscription of one connection.

It is a member of a broadcast while it stands at the live end. Else it reads for itself, through the pipeline's `Feed`, which
authorises every read again: a bounded step at a time, only while the connection takes what is written, and one subscription of
a connection at a time (`turn`). Whoever is allowed *some keys* only, or gave `credit`, always reads for itself.

What a connection can make the node hold is therefore its send buffer and what one read returned, however many subscriptions it
has and however far behind they are: all that a waiting subscription keeps is its cursor.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING

from broker.delivery.position import Cursor, Position
from broker.delivery.subscription import record_bytes
from gateway.endpoints.websocket_frames import Losses, encode_chunks
from gateway.endpoints.websocket_subscription import Opening, Subscription
from gateway.feed import Feed
from security.errors import QuotaExceeded
from security.policy.quotas import Quota
from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.websocket_broadcast import Broadcast, Group, Interest

STEPS_PER_TURN_MAX = 16
"""Reads (4 MiB by default) after which another subscription of the connection has its turn."""

PAUSE_S = 0.01
"""Before asking again a feed that gave nothing though there is more: the quota paces it, or its key is rare."""


class Turned(Enum):
    """What a turn of catching up came to."""

    JOINED = auto()
    AT_END = auto()
    NOT_YET = auto()


class Subscriber(Subscription):
    """`group`, `broadcast` and `floor` belong to the broadcast it is a member of."""

    operation = "subscribe"
    __slots__ = ("_credited", "_feed", "_pending", "broadcast", "cursor", "floor", "group", "interest")

    def __init__(self, opening: Opening, interest: Interest) -> None:
        super().__init__(opening)
        self.interest = interest
        self.cursor = Cursor(0)
        self.group: Group | None = None
        self.broadcast: Broadcast | None = None
        self.floor: Cursor | None = None
        self._pending: Position | None = None
        self._credited = asyncio.Event()
        self._feed: Feed | None = None

    # What its connection and its broadcast ask of it

    def start(self, position: Position) -> None:
        self._pending = position
        self._spawn()

    def fall_behind(self) -> None:
        """Leave the broadcast, and go on alone from there."""
        assert self.broadcast is not None
        self.broadcast.leave(self)
        self._spawn()

    def renew(self, session: Session) -> None:
        """The connection has authenticated again: everything is asked again, with the new session."""
        self.stop()
        self.session = session
        if not self._paused:
            self._spawn()

    def pause(self) -> None:
        """Nothing is sent until `resume`, and nothing kept but the cursor."""
        if not self._paused:
            self._paused = True
            self.stop()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._spawn()

    def add_credit(self, records: int) -> None:
        self.credit = records + (self.credit or 0)
        self._credited.set()

    def stop(self) -> None:
        if self.broadcast is not None:
            self.broadcast.leave(self)
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._drop()

    def fail(self, error: Exception) -> None:
        """The subscription ends with this error; its connection says so to the client."""
        self.stop()
        self._on_failure(self, error)

    def position(self) -> Cursor | None:
        """Where another subscription has to begin to miss nothing and see nothing twice; None before it has begun itself."""
        if self._pending is not None:
            return None
        return self.cursor if self.broadcast is None else self.broadcast.position_of(self)

    # Reading alone

    def _spawn(self) -> None:
        self._task = asyncio.create_task(self._run(), name="subscriber")

    async def _run(self) -> None:
        """From the position asked for, or from where it stands."""
        try:
            if self._pending is None or not await self._begin(self._pending):
                await self._read()
        except Exception as error:
            self._task = None
            self.fail(error)
        finally:
            if self._task is asyncio.current_task():  # else it was stopped, and maybe another one has taken over
                self._drop()

    async def _begin(self, position: Position) -> bool:
        """Find the position and say so; whether the subscriber has become a member of a broadcast at once."""
        self._feed = await self._hub.subscribe(self.session, self.interest, position)
        self.cursor, self._pending = self._feed.cursor, None
        self._hub.count("subscribe", "ok")
        self.output.write(self.frames.subscribed(self.sub, self.cursor, ref=self.take_ref()))
        return position == "latest" and self._join(caught_up=True)

    async def _read(self) -> None:
        """Turn after turn until the broadcast has been reached; for good where this subscriber may not share one."""
        while True:
            while self.credit == 0:
                self._credited.clear()
                await self._credited.wait()
            async with self._turn:
                await self.output.drained()
                turned = await self._catch_up(self._feed or await self._open())
            if turned is Turned.JOINED:
                return
            if turned is Turned.AT_END:
                await self._news()

    async def _open(self) -> Feed:
        while True:
            try:
                self._feed = await self._hub.subscribe(self.session, self.interest, self.cursor)
                return self._feed
            except QuotaExceeded as wait:  # the client asked once, a long time ago: to go on is not its doing
                await asyncio.sleep(wait.retry_after_ms / 1000)

    async def _catch_up(self, feed: Feed) -> Turned:
        """One turn of reading and writing."""
        size = 0
        for _ in range(STEPS_PER_TURN_MAX):
            if self.credit == 0 or not self.output.takes():
                break
            size = await self._step(feed)
            if self._reached(caught_up=feed.at_end):
                await self._pay(size)
                self._drop()
                if self._join(caught_up=True):
                    return Turned.JOINED
                feed, size = await self._open(), 0
            elif feed.at_end and not self._sharing():
                return Turned.AT_END
            elif not size and not feed.at_end:
                await asyncio.sleep(PAUSE_S)
        if size and not feed.at_end:
            await self._pay(size)
            self._drop()  # and with it what it has read ahead
        return Turned.NOT_YET

    async def _step(self, feed: Feed) -> int:
        """Read and write once; returns the bytes that were delivered."""
        options = self._hub.options
        bytes_max, records_max = self._hub.piece
        if self.credit is not None:
            records_max = min(self.credit, records_max)
        async with self._hub.reads:
            delivered = await feed.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=0)
        losses = Losses(feed.take_damage(), feed.take_gaps())
        for chunk in encode_chunks(self.frames, delivered, losses, feed.cursor, options.frame_bytes_max):
            self.output.write_piece(self.frames.records(self.sub, chunk))
        self.cursor = feed.cursor
        if self.credit is not None:
            self.credit -= len(delivered)
        return sum([record_bytes(record.record) for record in delivered])

    async def _pay(self, size: int) -> None:
        """For the last read of a feed that is given up: a feed pays when it reads again."""
        while True:
            wait_ms = self._hub.pipeline.owed_ms(self.session, Quota.BYTES_OUT, size)
            if wait_ms == 0:
                return
            await asyncio.sleep(wait_ms / 1000)

    async def _news(self) -> None:
        """Wait until there may be something to read. What wakes it is thrown away: it was not authorised for this moment."""
        subscription = await self._hub.follow(self.interest, self.cursor)
        await subscription.next(bytes_max=1, records_max=1, wait_max_ms=self._hub.options.read_wait_ms)

    def _sharing(self) -> bool:
        return self.credit is None and self._hub.shares(self.session, self.interest)

    def _reached(self, *, caught_up: bool) -> bool:
        return self._hub.reached(self, caught_up=caught_up) and self._sharing()

    def _join(self, *, caught_up: bool) -> bool:
        if not self._reached(caught_up=caught_up):
            return False
        self._hub.join(self)
        return True

    def _drop(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None
