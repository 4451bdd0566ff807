"""What waits to be written to one connection, and when it is written.

Frames are collected and written once per loop turn, for all connections together (`Flusher`): a connection that gets a frame of
each of ten broadcasts costs one system call. Nothing is queued beyond `send_buffer_bytes_max`: then `writable` is false, and
whoever wants to send leaves its records in the log and comes back after `drained`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FLUSHES_PER_TURN_MAX = 512
"""About 3 ms of system calls; a larger fan-out lets the loop breathe in between."""

_JOIN_BYTES_MAX = 64 * 1024
"""Small frames are joined into one write (one TLS record, one buffer); copying large ones would cost more than it saves."""


class Flusher:
    """The outputs that have something to write, flushed together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Output] = []
        self._scheduled = False

    def add(self, output: Output) -> None:
        self._waiting.append(output)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        now, self._waiting = self._waiting[:FLUSHES_PER_TURN_MAX], self._waiting[FLUSHES_PER_TURN_MAX:]
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            self._loop.call_soon(self._flush)
        for output in now:
            output.flush()


class Output:
    """One connection's side of it.

    `on_slow` is called when a full buffer has not drained within `slow_reader_ms`, `on_writable` when `writable` is true again.
    """

    __slots__ = (
        "_bytes",
        "_bytes_max",
        "_drained",
        "_flusher",
        "_frames",
        "_loop",
        "_on_slow",
        "_on_writable",
        "_paused",
        "_sealed",
        "_slow_ms",
        "_slow_timer",
        "_transport",
        "writable",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        flusher: Flusher,
        *,
        bytes_max: int,
        slow_reader_ms: int,
        on_slow: Callable[[], None],
        on_writable: Callable[[], None],
    ) -> None:
        self.writable = True
        self._transport = transport
        self._flusher = flusher
        self._bytes_max = bytes_max
        self._slow_ms = slow_reader_ms
        self._on_slow, self._on_writable = on_slow, on_writable
        self._frames: list[bytes] = []
        self._bytes = 0
        self._paused = False
        self._sealed = False
        self._loop = asyncio.get_running_loop()
        self._slow_timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        # Resuming at a quarter: a reader that drains gets large pieces, not a frame for every frame it takes.
        transport.set_write_buffer_limits(high=bytes_max, low=bytes_max // 4)

    def write(self, frame: bytes) -> None:
        """Queue a frame for this turn's flush. Deliveries look at `writable` first; replies need not (reading stops)."""
        if self._sealed:
            return
        if not self._frames:
            self._flusher.add(self)
        self._frames.append(frame)
        self._bytes += len(frame)
        if self._bytes >= self._bytes_max:
            self.writable = False

    def flush(self) -> None:
        frames, size = self._frames, self._bytes
        if not frames:
            return
        self._frames, self._bytes = [], 0
        if self._transport.is_closing():
            return
        if not self._paused and not self.writable:
            self._set_writable()
        if len(frames) == 1:
            self._transport.write(frames[0])
        elif size <= _JOIN_BYTES_MAX:
            self._transport.write(b"".join(frames))
        else:
            self._transport.writelines(frames)

    def pause(self) -> None:
        """The transport's buffer is beyond the limit."""
        self._paused, self.writable = True, False
        if self._slow_timer is None:
            self._slow_timer = self._loop.call_later(self._slow_ms / 1000, self._on_slow)

    def resume(self) -> None:
        self._paused = False
        self._cancel_timer()
        if self._bytes < self._bytes_max:
            self._set_writable()

    async def drained(self) -> None:
        """Wait until `writable`."""
        while not self.writable:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def seal(self) -> None:
        """A close frame was written: nothing may follow it (RFC 6455, 5.5.1)."""
        self._sealed = True

    def close(self) -> None:
        """The connection is lost: nobody waits for it any more."""
        self.seal()
        self._cancel_timer()
        self._frames, self._bytes = [], 0

    def _set_writable(self) -> None:
        self.writable = True
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
        self._on_writable()

    def _cancel_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
