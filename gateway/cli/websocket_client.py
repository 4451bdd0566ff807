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
from queue import Empty, SimpleQueue
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

# One half in the network's queue and one in the caller's. That frames were taken is told once for several: to tell costs a change
# of thread, and with one for each frame `sprawl consume`, which settles record by record, took twice the time.
FRAMES_WAITING_MAX = 16
FRAMES_TOLD_AT_ONCE = 4

# Handed over and not yet written.
MESSAGES_UNSENT_MAX = 16

T = TypeVar("T")


class WebSocketClient:
    """An open connection. Its methods may be called from any thread; what `websockets` raises passes through."""

    def __init__(self, connection: Connection, subprotocol: str) -> None:
        """Raises OSError, TimeoutError and `websockets.exceptions.InvalidHandshake`."""
        self._socket: ClientConnection | None = None
        self._received: SimpleQueue[Data | ConnectionClosed] = SimpleQueue()
        self._taken = 0
        self._receiving: asyncio.Task[None]
        self._unsent: deque[Future[None]] = deque()
        self._closing = threading.Lock()
        self._closed = False
        self._leave = asyncio.Event()
        self._room = asyncio.Semaphore(FRAMES_WAITING_MAX // 2)
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
        try:
            message = self._received.get(timeout=timeout)
        except Empty:
            raise TimeoutError(f"no message came for {timeout} s") from None
        if isinstance(message, ConnectionClosed):
            self._received.put(message)  # for whoever asks again
            raise message
        self._tell_taken()
        return message

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
                self._loop.call_soon_threadsafe(self._leave.set)
                self._closed = True
        self._thread.join()

    # In the caller's thread

    def _tell_taken(self) -> None:
        with self._closing:
            self._taken += 1
            if self._taken % FRAMES_TOLD_AT_ONCE == 0 and not self._closed:
                self._loop.call_soon_threadsafe(self._make_room)

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
        except BaseException:  # KeyboardInterrupt; what has ended takes no notice
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
        closing = asyncio.create_task(self._socket.close())
        self._make_room()
        _, late = await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT_S)
        if late:
            self._socket.transport.abort()
        await asyncio.gather(closing, self._receiving)

    async def _open(self, connection: Connection, subprotocol: str) -> None:
        self._socket = await connect(
            connection.websocket_url,
            ssl=connection.tls() if connection.encrypted else None,
            additional_headers={"Authorization": f"Bearer {connection.token}"} if connection.token else None,
            subprotocols=[Subprotocol(subprotocol)],
            compression=None,
            open_timeout=OPEN_TIMEOUT_S,
            max_size=FRAME_BYTES_MAX,
            max_queue=FRAMES_WAITING_MAX // 2,
            proxy=None if connection.is_loopback else True,
        )
        self._receiving = asyncio.create_task(self._receive(self._socket))

    async def _receive(self, socket: ClientConnection) -> None:
        """Ahead of the caller. After `close` what comes is dropped: it stands before the node's goodbye, which a full queue would
        hide until the time is up."""
        try:
            while True:
                message = await socket.recv()
                if not self._leave.is_set():
                    self._received.put(message)
                    await self._room.acquire()
        except ConnectionClosed as closed:
            self._received.put(closed)

    def _make_room(self) -> None:
        for _ in range(FRAMES_TOLD_AT_ONCE):
            self._room.release()

    async def _send(self, message: str) -> None:
        assert self._socket is not None
        await self._socket.send(message)
