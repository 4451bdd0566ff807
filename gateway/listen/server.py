"""The HTTP listener: a bound socket, its acceptor, uvicorn's protocol, and an orderly end.

uvicorn's `Server` is not used, only its configuration and state: it would install signal handlers, end the process when something
fails, and accept without a bound on handshakes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.listen.acceptor import Acceptor
from gateway.listen.connections import Connections as Connections
from gateway.listen.direct import Direct
from gateway.listen.errors import AddressUnusable, ListenerExposed, PortInUse
from gateway.listen.http import Gate, HttpProtocol
from gateway.listen.tls import TlsContexts
from gateway.observe.metrics import Metrics
from gateway.settings import LimitsSection, Listener, Socket, is_loopback

# Connections the kernel keeps while the loop is busy: nginx 511, Go and uvicorn what the kernel allows (4096), asyncio 100.
BACKLOG = 1_024
# Deadlines are looked at so many times in the shortest of them, and at least twice a second.
CHECKS_PER_DEADLINE = 4
CHECK_S_MIN, CHECK_S_MAX = 0.01, 0.5
# After the drain: for cancelled requests and cut connections to be gone.
END_S = 1.0

logger = logging.getLogger(__name__)


def bind(protocol: str, listener: Socket) -> socket.socket:
    """The listening socket. Raises `PortInUse`, `AddressUnusable`, `ListenerExposed`. Blocks while a host name is resolved."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise AddressUnusable(protocol, listener.host, listener.port, str(error.strerror)) from None
    if (listener.plain or listener.anonymous) and not is_loopback(str(address[0])):
        raise ListenerExposed(protocol, str(address[0]))
    listening = socket.socket(family, kind, number)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(protocol, listener.host, listener.port) from None
        raise AddressUnusable(protocol, listener.host, listener.port, str(error.strerror)) from None
    return listening


class HttpServer:
    """REST, Server-Sent Events and WebSocket on one socket. `websocket` is the class given to uvicorn as `ws=`, `direct` the
    application's way without ASGI."""

    def __init__(
        self,
        app: Callable[..., Any],
        websocket: type[asyncio.Protocol] | None,
        listener: Listener,
        contexts: TlsContexts | None,
        limits: LimitsSection,
        metrics: Metrics,
        direct: Direct | None = None,
    ) -> None:
        if listener.plain != (contexts is None):
            raise ValueError("a listener has TLS contexts exactly when it is not plain")
        self._contexts = contexts
        self._listener = listener
        self._state = ServerState()
        self._state.connections = self._connections = Connections()
        self._gate = Gate(_uvicorn_config(app, websocket), self._state, listener, limits, metrics, direct)
        self._acceptor: Acceptor | None = None
        self._ticks: list[asyncio.Task[None]] = []
        self.address: tuple[str, int] | None = None
        """Host and port that are really bound; None until `start`."""

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self, listening: socket.socket) -> None:
        """Serve a socket from `bind`, which is this server's from now on."""
        host, port = listening.getsockname()[:2]
        if exposed := [name for name in ("plain", "anonymous") if getattr(self._listener, name)]:
            logger.warning("the listener on %s port %d is %s: for development only", host, port, " and ".join(exposed))
        # A peer that has vanished without a word (power, radio) is found by what it does not acknowledge; connections inherit it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._gate.limits.write_stall_ms)
        # What the kernel keeps of answers that a slow reader does not fetch; without it that grows to tcp_wmem's 4 MiB for each.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self._gate.limits.unsent_bytes_max)
        self.address = (host, port)
        self._acceptor = Acceptor(listening, self._contexts, self._gate)
        self._ticks = [asyncio.create_task(self._check()), asyncio.create_task(self._date())]
        self._acceptor.start()

    async def stop_accepting(self) -> None:
        """Those who are connected stay."""
        if self._acceptor is not None:
            await self._acceptor.stop()
            self._acceptor = None

    async def drain(self, drain_ms: int) -> int:
        """Let requests under way finish, idle connections end; what is left after `drain_ms` is cut. Returns how many were."""
        await self.stop_accepting()
        for connection in list(self._connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(drain_ms / 1_000):
                await self._connections.empty.wait()
        except TimeoutError:
            pass
        cut = len(self._connections)
        await self._cut()
        for tick in self._ticks:
            tick.cancel()
        await asyncio.gather(*self._ticks, return_exceptions=True)
        return cut

    async def _cut(self) -> None:
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel("the node is stopping")
        if tasks:
            await asyncio.wait(tasks, timeout=END_S)
        for connection in list(self._connections):
            connection.transport.abort()
        try:
            async with asyncio.timeout(END_S):
                await self._connections.empty.wait()
        except TimeoutError:
            logger.error("%d connections did not end", len(self._connections))

    async def _check(self) -> None:
        limits = self._gate.limits
        shortest_ms = min(
            limits.request_head_ms, limits.request_body_ms, limits.keep_alive_ms, limits.linger_ms, limits.write_stall_ms
        )
        pause_s = min(max(shortest_ms / 1_000 / CHECKS_PER_DEADLINE, CHECK_S_MIN), CHECK_S_MAX)
        while True:
            await asyncio.sleep(pause_s)
            now = asyncio.get_running_loop().time()
            for connection in list(self._connections):
                if isinstance(connection, HttpProtocol):
                    _checked(connection, now)

    async def _date(self) -> None:
        """The Date header of answers (RFC 9110, 6.6.1), made once a second."""
        while True:
            self._state.default_headers = [(b"date", formatdate(usegmt=True).encode("ascii"))]
            await asyncio.sleep(1)


def _checked(connection: HttpProtocol, now: float) -> None:
    """A mistake of ours with one connection must not take the deadlines of all others with it."""
    try:
        connection.check(now)
    except Exception:
        logger.exception("the deadlines of a connection could not be looked at, it is cut")
        connection.transport.abort()


def _uvicorn_config(app: Callable[..., Any], websocket: type[asyncio.Protocol] | None) -> Config:
    config = Config(
        app,
        http=HttpProtocol,
        ws=websocket or "none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    config.load()
    return config
