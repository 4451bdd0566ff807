"""A listener for protocols that are not HTTP: a bound socket, its acceptor, deadlines that are looked at, an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from gateway.listen.acceptor import Acceptor
from gateway.listen.connections import Connections
from gateway.listen.tls import TlsContexts
from gateway.observe.metrics import Metrics
from gateway.settings import LimitsSection, Socket

# Deadlines are of seconds and minutes.
CHECK_S = 0.25
# After the drain: for connections that were cut to be gone.
END_S = 1.0

logger = logging.getLogger(__name__)


class Connection(Protocol):
    """What the listener asks of a connection; it adds itself to the listener's connections and takes itself away."""

    @property
    def transport(self) -> asyncio.Transport: ...
    def check(self, now: float) -> None:
        """Look at the deadlines; called a few times a second."""

    def shutdown(self) -> None:
        """Finish what is under way, then close."""


Make = Callable[[Connections, Callable[[], None]], asyncio.BaseProtocol]
"""The open connections, and what to call at the connection's first moment -> its protocol."""


class StreamServer:
    """`name` is the protocol's, as in `listeners.<name>` and in the metrics."""

    def __init__(
        self, name: str, make: Make, listener: Socket, contexts: TlsContexts | None, limits: LimitsSection, metrics: Metrics
    ) -> None:
        if listener.plain != (contexts is None):
            raise ValueError("a listener has TLS contexts exactly when it is not plain")
        self.name, self.limits, self._metrics = name, limits, metrics
        self._make, self._listener, self._contexts = make, listener, contexts
        self.connections = Connections()
        self._acceptor: Acceptor | None = None
        self._checks: asyncio.Task[None] | None = None
        self.address: tuple[str, int] | None = None
        """Host and port that are really bound; None until `start`."""

    def start(self, listening: socket.socket) -> None:
        """Serve a socket from `bind`, which is this server's from now on."""
        host, port = listening.getsockname()[:2]
        if exposed := [name for name in ("plain", "anonymous") if getattr(self._listener, name)]:
            logger.warning(
                "the %s listener on %s port %d is %s: for development only", self.name, host, port, " and ".join(exposed)
            )
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self.limits.write_stall_ms)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.limits.unsent_bytes_max)
        self.address = (host, port)
        self._acceptor = Acceptor(listening, self._contexts, self)
        self._checks = asyncio.create_task(self._check())
        self._acceptor.start()

    def refused(self, reason: str) -> None:
        self._metrics.refused_total.labels(self.name, reason).inc()

    def protocol(self, begun: Callable[[], None], *, encrypted: bool) -> asyncio.BaseProtocol:
        return self._make(self.connections, begun)

    async def stop_accepting(self) -> None:
        """Those who are connected stay."""
        if self._acceptor is not None:
            await self._acceptor.stop()
            self._acceptor = None

    async def drain(self, drain_ms: int) -> int:
        """Let requests under way finish, idle connections end; what is left after `drain_ms` is cut. Returns how many were."""
        await self.stop_accepting()
        for connection in list(self.connections):
            connection.shutdown()
        await self._gone(drain_ms / 1_000)
        cut = len(self.connections)
        for connection in list(self.connections):
            connection.transport.abort()
        await self._gone(END_S)
        if self._checks is not None:
            self._checks.cancel()
            await asyncio.gather(self._checks, return_exceptions=True)
        return cut

    async def _gone(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                await self.connections.empty.wait()
        except TimeoutError:
            pass

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            now = asyncio.get_running_loop().time()
            for connection in list(self.connections):
                self._checked(connection, now)

    def _checked(self, connection: Connection, now: float) -> None:
        """A mistake of ours with one connection must not take the deadlines of all others with it."""
        try:
            connection.check(now)
        except Exception:
            logger.exception("the deadlines of a connection could not be looked at, it is cut")
            connection.transport.abort()
