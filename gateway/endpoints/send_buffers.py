"""What all connections of WebSocket and event streams together may hold for readers that are slower than what they asked for.

Each connection has a bound of its own, but ten thousand times one connection's bound is more than a machine has. So:

- Up to half of `limits.send_buffers_bytes_max` every connection may fill its own buffer.
- From there on (`pressed`), whoever has something waiting is sent nothing more until it has left: its subscriptions wait in the
  log, where they cost a cursor. Who has nothing waiting goes on; one piece (`piece_bytes`) for each connection fits in the
  other half, also as JSON.
- What still goes beyond the bound (records larger than a piece) is paid by those who let bytes wait the longest: they are cut.

What the kernel has taken is not counted: it has its own bounds (`net.ipv4.tcp_wmem`).
"""

from __future__ import annotations

import gc
from typing import Protocol

import msgspec

SEND_BUFFERS_BYTES_MAX = 256 * 1024 * 1024
PIECE_BYTES_MIN = 4 * 1024
PIECE_RECORD_BYTES = 256
"""What a small record is counted with: as JSON its members are as long as that."""


class Holder(Protocol):
    """A connection that holds bytes."""

    def cut(self) -> None:
        """End it at once; what it holds is given up."""


class SendBuffersStats(msgspec.Struct, frozen=True):
    held_bytes: int
    holders: int
    cut: int


class SendBuffers:
    """The account. Holders are kept in the order in which they began to let bytes wait."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self.connections = 0
        """Open now, those that hold nothing included."""
        self.pressed = False
        self.cut_total = 0
        self._holders: dict[Holder, int] = {}

    def stats(self) -> SendBuffersStats:
        return SendBuffersStats(self.held_bytes, len(self._holders), self.cut_total)

    def piece_bytes(self, bytes_max: int) -> int:
        """How much to read for one connection at a time."""
        return min(bytes_max, max(PIECE_BYTES_MIN, self.bytes_max // (4 * (self.connections or 1))))

    def piece_records(self, records_max: int) -> int:
        return min(records_max, max(PIECE_BYTES_MIN, self.bytes_max // (4 * (self.connections or 1))) // PIECE_RECORD_BYTES)

    def hold(self, holder: Holder, size: int) -> None:
        """`holder` lets `size` bytes wait from now on, in place of what it had; 0 gives all of it back."""
        before = self._holders.get(holder, 0)
        if size == before:
            return
        if size:
            self._holders[holder] = size
        else:
            del self._holders[holder]
        self.held_bytes += size - before
        self.pressed = 2 * self.held_bytes >= self.bytes_max
        if self.held_bytes > self.bytes_max:
            self._cut()

    def _cut(self) -> None:
        for holder in list(self._holders):
            if self.held_bytes <= self.bytes_max:
                return
            self.held_bytes -= self._holders.pop(holder)
            self.cut_total += 1
            holder.cut()
        self.pressed = 2 * self.held_bytes >= self.bytes_max


class Buffered(Protocol):
    """A transport, as far as its buffer goes."""

    def get_write_buffer_size(self) -> int: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


def transport_below(transport: Buffered) -> Buffered | None:
    """The TCP transport that a TLS transport of uvloop writes to; None for one that is no TLS, or hides it.

    A TLS transport counts what it has not encrypted yet, not what waits below it, which may be a whole write; uvloop shows the
    latter to the garbage collector only.
    """
    for protocol in gc.get_referents(transport):
        if type(protocol).__name__ == "SSLProtocol":
            for below in gc.get_referents(protocol):
                if type(below).__name__ == "TCPTransport":
                    found: Buffered = below
                    return found
    return None
