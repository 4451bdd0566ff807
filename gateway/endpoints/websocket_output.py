"""What waits to be written to one connection, and when it is written.

Frames are collected and written once per loop turn, for all connections together (`Flusher`): a connection that gets a frame of
each of ten broadcasts costs one system call. Transports keep nothing back (high-water mark 0), so after each write it is known
what the kernel has not taken. That waits here, up to `send_buffer_bytes_max`, and with that of all connections within
`SendBuffers`: beyond it `writable` is false, and whoever wants to send leaves its records in the log and comes back after
`drained`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.endpoints.send_buffers import Buffered, SendBuffers, transport_below

FLUSHES_PER_TURN_MAX = 512
"""About 3 ms of system calls; a larger fan-out lets the loop breathe in between."""

SWEEP_S = 0.01
SWEEP_S_EACH = 25e-6
"""How often those that let bytes wait are looked at, and so much less often for each of them [1.5 us a look]. What leaves between
two writes is seen no other way, of TLS not even that all has left."""

PIECE_BYTES = 4 * 1024
"""What one reader wrote alone is not left to the end of the turn if it is more: each piece is on the account before the next."""

TLS_WRITE_BYTES_MAX = 16 * 1024
"""One TLS record. OpenSSL's buffer grows by what one write puts in, and a third, and never shrinks: a slow reader that once got a
frame of 512 KiB cost 700 KiB for as long as it stayed connected, with this 120."""

_JOIN_BYTES_MAX = 64 * 1024
"""Small frames are joined into one write (one TLS record, one buffer); copying large ones would cost more than it saves."""


class Flusher:
    """The outputs that have something to write, flushed together; and those that let something wait, swept together."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffers: SendBuffers) -> None:
        self.buffers = buffers
        self._loop = loop
        self._waiting: list[Output] = []
        self._scheduled = False
        self._backlogged: dict[Output, None] = {}
        self._sweep: asyncio.TimerHandle | None = None

    def add(self, output: Output) -> None:
        self._waiting.append(output)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    async def flushed(self) -> None:
        """Wait until nothing of before waits to be written."""
        while self._scheduled:  # noqa: ASYNC110  # a turn or two
            await asyncio.sleep(0)

    def _flush(self) -> None:
        now, self._waiting = self._waiting[:FLUSHES_PER_TURN_MAX], self._waiting[FLUSHES_PER_TURN_MAX:]
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            self._loop.call_soon(self._flush)
        for output in now:
            output.flush()

    def watch(self, output: Output) -> None:
        self._backlogged[output] = None
        if self._sweep is None:
            self._sweep_later()

    def unwatch(self, output: Output) -> None:
        self._backlogged.pop(output, None)
        if not self._backlogged and self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _sweep_later(self) -> None:
        self._sweep = self._loop.call_later(SWEEP_S + SWEEP_S_EACH * len(self._backlogged), self._look)

    def _look(self) -> None:
        self._sweep_later()
        for output in list(self._backlogged):
            output.look()


class Output:
    """One connection's side of it.

    `on_full` is called when `writable` has become false although all was written; `on_slow` when that lasted for
    `slow_reader_ms`; `on_writable` when it is true again; `on_cut` when the node needs the memory at once.
    """

    __slots__ = (
        "_below",
        "_bytes",
        "_bytes_max",
        "_drained",
        "_flusher",
        "_frames",
        "_gone",
        "_loop",
        "_on_cut",
        "_on_full",
        "_on_slow",
        "_on_writable",
        "_paused",
        "_sealed",
        "_slow_ms",
        "_slow_timer",
        "_transport",
        "waiting_bytes",
        "writable",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        flusher: Flusher,
        *,
        bytes_max: int,
        slow_reader_ms: int,
        on_full: Callable[[], None],
        on_slow: Callable[[], None],
        on_writable: Callable[[], None],
        on_cut: Callable[[], None],
    ) -> None:
        self.writable = True
        self.waiting_bytes = 0
        """What the kernel had not taken at the last look."""
        self._transport = transport
        self._flusher = flusher
        self._bytes_max = bytes_max
        self._slow_ms = slow_reader_ms
        self._on_full, self._on_slow, self._on_writable, self._on_cut = on_full, on_slow, on_writable, on_cut
        self._frames: list[bytes] = []
        self._bytes = 0
        self._paused = False
        self._sealed = self._gone = False
        self._loop = asyncio.get_running_loop()
        self._slow_timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._below: Buffered | None = transport_below(transport)
        if self._below is not None:
            self._below.set_write_buffer_limits(high=0, low=0)
            transport.set_write_buffer_limits(high=1, low=0)  # uvloop's TLS takes 0 for always full
        else:
            transport.set_write_buffer_limits(high=0, low=0)

    def write(self, frame: bytes) -> None:
        """Queue a frame for this turn's flush. Deliveries look at `writable` first; replies need not (reading stops)."""
        if self._sealed:
            return
        if not self._frames:
            self._flusher.add(self)
        self._frames.append(frame)
        self._bytes += len(frame)
        if self._bytes + self.waiting_bytes >= self._bytes_max:
            self.writable = False

    def write_piece(self, frame: bytes) -> None:
        """What was read for this connection alone."""
        self.write(frame)
        if self._bytes >= PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        frames, size = self._frames, self._bytes
        if not frames:
            return
        self._frames, self._bytes = [], 0
        if self._transport.is_closing():
            return
        if self._below is not None and size > TLS_WRITE_BYTES_MAX:
            self._write_in_parts(frames[0] if len(frames) == 1 else b"".join(frames))
        elif len(frames) == 1:
            self._transport.write(frames[0])
        elif size <= _JOIN_BYTES_MAX:
            self._transport.write(b"".join(frames))
        else:
            self._transport.writelines(frames)
        below = self._below
        if self._paused or self.waiting_bytes or (below is not None and below.get_write_buffer_size()):
            self.look()
        elif not self.writable:
            self._set_writable()

    def _write_in_parts(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(data), TLS_WRITE_BYTES_MAX):
            self._transport.write(view[start : start + TLS_WRITE_BYTES_MAX])

    def pause(self) -> None:
        """The kernel has not taken all of it."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.look()

    def look(self) -> None:
        """Bring the account up to date, and what follows from it."""
        if self._gone:
            return
        before, size = self.waiting_bytes, self._transport.get_write_buffer_size()
        if self._below is not None:
            size += self._below.get_write_buffer_size()
        self.waiting_bytes = size
        flusher = self._flusher
        if size and not before:
            flusher.watch(self)
        elif before and not size:
            flusher.unwatch(self)
        if size != before:
            flusher.buffers.hold(self, size)
        # Going on at a quarter: a reader that drains gets large pieces, not a frame for every frame it takes.
        enough = self._bytes_max if self.writable else self._bytes_max // 4 + 1
        if size and (size >= enough or flusher.buffers.pressed):
            self._set_full()
        elif not self.writable and self._bytes + size < self._bytes_max:
            self._set_writable()

    def takes(self) -> bool:
        """Whether a delivery may be written now: `writable` says how it was at the last look, before the node was pressed."""
        if self.waiting_bytes and self._flusher.buffers.pressed:
            self.look()
        return self.writable

    def cut(self) -> None:
        """The account is overdrawn, and this connection has let bytes wait the longest."""
        self._forget()
        self._on_cut()

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
        self._forget()
        self._frames, self._bytes = [], 0

    def _forget(self) -> None:
        self._gone = True
        self._cancel_timer()
        self._flusher.unwatch(self)
        self._flusher.buffers.hold(self, 0)
        self.waiting_bytes = 0

    def _set_full(self) -> None:
        self.writable = False
        if self._slow_timer is None:
            self._slow_timer = self._loop.call_later(self._slow_ms / 1000, self._on_slow)
            self._on_full()

    def _set_writable(self) -> None:
        self.writable = True
        self._cancel_timer()
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
        self._on_writable()

    def _cancel_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
