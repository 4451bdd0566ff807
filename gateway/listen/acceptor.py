"""From a listening socket to connections, with a bound on what is not a connection yet.

A client that never finishes its TLS handshake is seen by no protocol, and the loop's own `create_server` takes any number.
Here handshakes are counted, have a deadline, and at the bound the oldest makes room for the newest: whoever is honest is done in
milliseconds, so those who hold handshakes open push out each other.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sized
from functools import partial
from typing import Protocol

from gateway.listen.tls import TlsContexts
from gateway.settings import LimitsSection

# Connections taken from the kernel before others have their turn.
ACCEPTS_PER_TURN = 64
# Above connections_max, so many at once are still told 503; more are closed without a word.
SURPLUS_MAX = 64
# Out of descriptors or memory: asyncio waits as long before it accepts again.
REST_S = 1.0

logger = logging.getLogger(__name__)


class Gate(Protocol):
    """What the acceptor asks of the protocol behind it."""

    @property
    def limits(self) -> LimitsSection: ...
    @property
    def connections(self) -> Sized: ...
    def refused(self, reason: str) -> None: ...
    def protocol(self, begun: Callable[[], None], *, encrypted: bool) -> asyncio.BaseProtocol:
        """For a new connection; it calls `begun` at its first moment."""


class Acceptor:
    """Accepts on `listening` (bound, listening, non-blocking) from `start` until `stop`. Without `contexts` it is plain."""

    def __init__(self, listening: socket.socket, contexts: TlsContexts | None, gate: Gate) -> None:
        self._listening = listening
        self._contexts = contexts
        self._gate = gate
        self._limits: LimitsSection = gate.limits
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first
        self._rest: asyncio.TimerHandle | None = None
        self._stopped = False

    def start(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    async def stop(self) -> None:
        """Take no more, and drop handshakes under way; the listening socket is closed."""
        self._stopped = True
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        pending = list(self._handshakes)
        for handshake in pending:
            handshake.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            connection.setblocking(False)
            self._take(connection)

    def _pause(self, error: OSError) -> None:
        logger.error("cannot accept connections for %s s: %s", REST_S, error.strerror)
        self._gate.refused("descriptors")
        self._loop.remove_reader(self._listening)
        self._rest = self._loop.call_later(REST_S, self.start)

    def _take(self, connection: socket.socket) -> None:
        if len(self._gate.connections) + len(self._handshakes) >= self._limits.connections_max + SURPLUS_MAX:
            self._gate.refused("connections")
            connection.close()
            return
        if len(self._handshakes) >= self._limits.handshakes_max:
            self._gate.refused("handshakes")
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        handshake = self._loop.create_task(self._connect(connection))
        self._handshakes[handshake] = None
        handshake.add_done_callback(self._ended)

    def _forget(self, handshake: asyncio.Task[None] | None) -> None:
        if handshake is not None:
            self._handshakes.pop(handshake, None)

    def _ended(self, handshake: asyncio.Task[None]) -> None:
        self._forget(handshake)
        if not handshake.cancelled() and (error := handshake.exception()) is not None:
            logger.error("a connection could not be begun", exc_info=error)

    async def _connect(self, connection: socket.socket) -> None:
        # From its first moment a connection is counted as one, and not also as a handshake.
        begun = partial(self._forget, asyncio.current_task())
        protocol = self._gate.protocol(begun, encrypted=self._contexts is not None)
        try:
            if self._contexts is None:
                await self._loop.connect_accepted_socket(lambda: protocol, connection)
                return
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._contexts.current,
                ssl_handshake_timeout=self._limits.handshake_ms / 1_000,
                ssl_shutdown_timeout=self._limits.write_stall_ms / 1_000,
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are among them
            # Scanners, health checks of load balancers, plain HTTP: not worth a line each, worth a number.
            self._gate.refused("handshake-failed")
            logger.debug("a TLS handshake failed: %s", error)
