"""Stands between a TLS transport and its protocol, and lends it one buffer to read into.

For a protocol that takes bytes, uvloop's TLS allocates 256 KiB for each read, however little came [52 us of server CPU for an
echo of 350 bytes, 31 with a buffer lent, 14 without TLS]. One buffer serves all: it is filled and emptied within one callback.
"""

from __future__ import annotations

import asyncio

# One TLS record is at most 16 KiB; uvicorn stops reading at 64 KiB of unread body.
BUFFER_BYTES = 64 * 1024

_buffer = memoryview(bytearray(BUFFER_BYTES))


class Buffered(asyncio.BufferedProtocol):
    """Passes everything on to `inner`, which may be replaced: by `take_over`, when a connection changes its protocol."""

    __slots__ = ("inner",)

    def __init__(self, inner: asyncio.Protocol) -> None:
        self.inner = inner

    def take_over(self, transport: asyncio.Transport) -> None:
        """Get in front of the protocol that the transport was given meanwhile."""
        given = transport.get_protocol()
        if given is not self:
            assert isinstance(given, asyncio.Protocol)
            self.inner = given
            transport.set_protocol(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.inner.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.inner.data_received(bytes(_buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()
