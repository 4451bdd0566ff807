"""Event streams at the live end: one read and one encoding for all who stand there.

A stream that has come to the end of the log, and may have all that its topic, key or filter brings, joins the broadcast of that
interest, as WebSocket subscriptions do (`websocket_broadcast.py`: same rules, same authorisation at the moment of writing). It is
handed what it has to write, and only while it waits for it: one that still writes falls behind, into the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from broker.delivery.consumer import Consumed
from broker.delivery.position import Cursor
from broker.delivery.subscription import Delivered
from gateway.endpoints.exchange import encode
from gateway.endpoints.filtered import FilteredDamage
from gateway.endpoints.records_json import to_answer
from gateway.endpoints.websocket_frames import Chunk, Frames, Losses
from security.principal import Session

if TYPE_CHECKING:
    from gateway.endpoints.websocket_broadcast import Broadcast, Group, Interest


class EventFrames(Frames):
    """Records as events."""

    def record(self, delivered: Delivered | Consumed) -> bytes:
        """`encode` writes no line breaks, and JSON values that have some were joined to one line: no value can end its field."""
        record = encode(to_answer(delivered.topic, delivered.partition, delivered.record))
        return b"id: %b\ndata: %b\n\n" % (str(delivered.cursor).encode("ascii"), record)

    def chunk(self, records: Sequence[bytes], cursor: Cursor, losses: Losses | None) -> Chunk:
        return Chunk(b"".join((_losses(losses), *records)) if losses else b"".join(records), 0)

    def records(self, sub: bytes, chunk: Chunk) -> bytes:
        return chunk.body


EVENTS = EventFrames(msgspec.json.Encoder())


def _losses(losses: Losses) -> bytes:
    """What the media lost; and what retention, or a deletion of records, took before this reader came."""
    damage = [FilteredDamage(one.topic, one.partition, one.from_offset, one.to_offset, one.reason) for one in losses.damage]
    told = [(b"damage", encode(one)) for one in damage] + [(b"gap", encode(one)) for one in losses.gaps]
    return b"".join([b"event: %b\ndata: %b\n\n" % event for event in told])


class LiveStream:
    """A member of a broadcast; its own output too. `group`, `broadcast` and `floor` belong to the broadcast."""

    frames: Frames = EVENTS
    sub = b""
    __slots__ = (
        "_behind",
        "_error",
        "_loop",
        "_waiting",
        "_written",
        "broadcast",
        "cursor",
        "floor",
        "group",
        "interest",
        "session",
    )

    def __init__(self, session: Session, interest: Interest, cursor: Cursor) -> None:
        self.session, self.interest, self.cursor = session, interest, cursor
        self.group: Group | None = None
        self.broadcast: Broadcast | None = None
        self.floor: Cursor | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._written: list[bytes] = []
        self._error: Exception | None = None
        self._behind = False

    # What the broadcast asks of it

    @property
    def output(self) -> LiveStream:
        return self

    @property
    def writable(self) -> bool:
        return self._waiting is not None and not self._waiting.done()

    def takes(self) -> bool:
        return self.writable

    def write(self, frame: bytes) -> None:
        self._written.append(frame)
        self._wake()

    def fall_behind(self) -> None:
        assert self.broadcast is not None
        self.broadcast.leave(self)
        self._behind = True
        self._wake()

    def fail(self, error: Exception) -> None:
        self._error = error
        self.fall_behind()

    # What its stream asks of it

    async def next(self, wait_ms: int) -> bytes:
        """What to write; nothing after `wait_ms`, or when it has fallen behind (`broadcast` None). Raises what ended it."""
        self._waiting = self._loop.create_future()
        timer = self._loop.call_later(wait_ms / 1_000, self._wake)
        try:
            await self._waiting
        finally:
            timer.cancel()
            self._waiting = None
        if self._error is not None:
            raise self._error
        written, self._written = self._written, []
        return written[0] if len(written) == 1 else b"".join(written)

    def fell_behind(self) -> bool:
        """Since the last call: what was delivered up to `cursor` the stream has not read itself."""
        fell, self._behind = self._behind, False
        return fell

    def position(self) -> Cursor:
        return self.cursor if self.broadcast is None else self.broadcast.position_of(self)

    async def leave(self) -> None:
        """The stream ends; returns when nothing reads for it any more."""
        if (broadcast := self.broadcast) is not None:
            broadcast.leave(self)
            await broadcast.ended()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
