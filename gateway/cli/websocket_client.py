"""A WebSocket for code that blocks, whose TLS is touched by one thread only.

`websockets.sync` reads in a thread of its own while the caller writes, on one TLS object. OpenSSL forbids that: while SSL_read
takes the session tickets of TLS 1.3, SSL_write answers "want read", and Python waits for bytes that nobody will send. One
connection in 1,500 stood still until the node gave it up (`limits.request_head_ms`). Here an event loop in one background thread
does all I/O, so the node's pings are answered while the caller is busy.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Self, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Data, Subprotocol

from gateway.cli.connection import Connection

OPEN_TIMEOUT_S = 10.0

# For the goodbye and the node's answer to it. Who ends a command does not want to wait for a node that is away.
CLOSE_TIMEOUT_S = 2.0

# A record of 1 MiB is 1.4 MB as base64 in JSON; a frame holds several. What the node sends beyond this is a fault.
FRAME_BYTES_MAX = 64 * 1024 * 1024
FRAMES_WAITING_MAX = 16

# To wait for each costs two changes of thread: `sprawl consume`, which settles record by record, took twice the time.
MESSAGES_UNSENT_MAX = 16

T = TypeVar("T")


class WebSocketClient:
    """An open connection. From any thread; what `websockets` raises passes through."""

    def __init__(self, connection: Connection, subprotocol: str) -> None:
        """Raises OSError, TimeoutError and `websockets.exceptions.InvalidHandshake`."""
        self._socket: ClientConnection | None = None
        self._unsent: deque[Future[None]] = deque()
        self._closing = threading.Lock()
        self._closed = False
        self._leave = asyncio.Event()
        self._receiving = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="websocket", daemon=True)
        self._thread.start()
        try:
            self._result(self._start(self._open(connection, subprotocol)))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def recv(self, timeout: float | None = None) -> Data:
        """The next message. Raises ConnectionClosed, and TimeoutError when none came for `timeout` seconds."""
        return self._result(self._start(self._recv(timeout)))

    def send(self, message: str) -> None:
        """Returns when it is handed over, at most MESSAGES_UNSENT_MAX ahead of the network. Raises ConnectionClosed, also for
        messages before this one."""
        while self._unsent and (self._unsent[0].done() or len(self._unsent) >= MESSAGES_UNSENT_MAX):
            self._result(self._unsent.popleft())
        self._unsent.append(self._start(self._send(message)))

    def close(self) -> None:
        """Idempotent. What was handed over goes first, what still comes is dropped; calls that wait raise ConnectionClosed."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()

    # In the caller's thread

    def _start(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        with self._closing:  # what is handed over before `_leave` is set has an end; nothing is handed over after it
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(call, self._loop)
        call.close()
        raise self._ended()

    def _result(self, running: Future[T]) -> T:
        try:
            return running.result()
        except CancelledError:
            raise self._ended() from None
        except BaseException:  # KeyboardInterrupt: the call must not take a message that nobody waits for
            running.cancel()
            raise

    def _ended(self) -> ConnectionClosed:
        self._thread.join()
        assert self._socket is not None
        return self._socket.close_exc

    # In the loop's thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # at its end it cancels the calls that still wait
            runner.run(self._live())

    async def _live(self) -> None:
        await self._leave.wait()
        if self._socket is None:
            return
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.gather(self._socket.close(), self._drop())
        except TimeoutError:
            self._socket.transport.abort()
            await self._socket.wait_closed()

    async def _drop(self) -> None:
        """What still comes stands before the node's goodbye: a full queue would hide it until the time is up."""
        with suppress(ConnectionClosed):
            while True:
                await self._recv(None)

    async def _open(self, connection: Connection, subprotocol: str) -> None:
        self._socket = await connect(
            connection.websocket_url,
            ssl=connection.tls() if connection.encrypted else None,
            additional_headers={"Authorization": f"Bearer {connection.token}"} if connection.token else None,
            subprotocols=[Subprotocol(subprotocol)],
            compression=None,
            open_timeout=OPEN_TIMEOUT_S,
            max_size=FRAME_BYTES_MAX,
            max_queue=FRAMES_WAITING_MAX,
            proxy=None if connection.is_loopback else True,
        )

    async def _recv(self, timeout: float | None) -> Data:
        assert self._socket is not None
        async with asyncio.timeout(timeout), self._receiving:
            return await self._socket.recv()

    async def _send(self, message: str) -> None:
        assert self._socket is not None
        await self._socket.send(message)
