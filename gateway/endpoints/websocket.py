"""WebSocket under uvicorn: `uvicorn.Config(ws=make_websocket_protocol(...))`.

uvicorn reads the upgrade request, makes our protocol, replays the request to it as bytes and hands the transport over
(`HttpToolsProtocol.handle_websocket_upgrade`). From there on the connection is ours: no ASGI, no task per connection.

Input is bounded by not reading: while publishes are at their bound, while the peer does not read its answers, while a credential
is looked up. What one read brought is worked through in turns of `turn_frames_max`, so a peer that floods us with tiny frames
gets its share of the loop and no more.

Every way out ends in `_finish`: the last frames, a half-close so that they arrive (a reset would take them with it), and after
`close_timeout_ms` an abort, for a peer that neither reads nor leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import uuid_utils

from gateway.endpoints import websocket_frames, websocket_messages
from gateway.endpoints.send_buffers import SendBuffers
from gateway.endpoints.websocket_frames import Frames
from gateway.endpoints.websocket_handshake import Refusal, check_upgrade, credential_of, refusal_of, request_id_of
from gateway.endpoints.websocket_hub import PROTOCOL, Hub
from gateway.endpoints.websocket_messages import AnyOperation, Auth, Refused, decode_operations
from gateway.endpoints.websocket_operations import Operations
from gateway.endpoints.websocket_options import WebSocketOptions
from gateway.endpoints.websocket_output import Output
from gateway.errors import Draining, problem, translate
from gateway.observe.metrics import Metrics
from gateway.pipeline import Listener, Pipeline
from gateway.wire.websocket import CloseCode, Connection, Ended, Event, State, Upgrade
from security.errors import IdentityProblem
from security.identity.chain import BearerToken, Credential, NoCredential
from security.principal import Session

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

SLICE_BYTES = 4096
"""Input is parsed in pieces of this size: at most 680 empty frames, about 5 ms, between two looks at the turn's budget."""

LINGER_MS = 250
"""TLS has no half-close: so long what a violator still sends is thrown away before the connection is closed."""

logger = logging.getLogger(__name__)


def make_websocket_protocol(
    pipeline: Pipeline, metrics: Metrics, options: WebSocketOptions, buffers: SendBuffers
) -> type[asyncio.Protocol]:
    """What uvicorn takes as `ws=`. All connections made by it share their broadcasts; one call for all listeners will do."""
    hub: Hub | None = None

    class BoundWebSocketProtocol(WebSocketProtocol):
        def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
            nonlocal hub
            if hub is None:  # the loop runs only now
                hub = Hub(pipeline, metrics, options, buffers)
            super().__init__(hub, server_state, app_state["sprawl"])

    return BoundWebSocketProtocol


class WebSocketProtocol(asyncio.Protocol):
    """One connection, from the upgrade request to its end."""

    def __init__(self, hub: Hub, server_state: ServerState, accepted: dict[str, Any]) -> None:
        """`accepted` is what the listener knows of the connection: `peer`, `client_certificate` (DER or None), `listener`."""
        self._hub, self._options, self._loop = hub, hub.options, hub.loop
        self._server_state = server_state
        self._peer: str = accepted["peer"]
        self._certificate: bytes | None = accepted["client_certificate"]
        self._listener: Listener = accepted["listener"]
        self._connection = Connection(hub.options.wire_limits())
        self._id = str(uuid_utils.uuid7())
        self._operations: Operations | None = None
        self._decoders, self._frames = websocket_messages.JSON, cast(Frames, websocket_frames.JSON)
        self._queue: deque[AnyOperation | Refused | Ended] = deque()
        self._unread = memoryview(b"")
        self._reading = True
        self._scheduled = False
        self._identifying: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._received_at = self._loop.time()
        self._pinged = False
        self._lingering = False
        self._control_second, self._control_base = 0, 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._output = Output(
            self.transport,
            self._hub.flusher,
            bytes_max=self._options.send_buffer_bytes_max,
            slow_reader_ms=self._options.slow_reader_ms,
            on_full=self._on_full,
            on_slow=self._on_slow,
            on_writable=self._go_on,
            on_cut=self._on_cut,
        )
        self._server_state.connections.add(cast(Any, self))
        self._hub.opened(self)
        self._start_timer("auth", self._options.auth_timeout_ms, self._on_auth_timeout)

    def data_received(self, data: bytes) -> None:
        self._received_at, self._pinged = self._loop.time(), False
        self._unread = memoryview(bytes(self._unread) + data if self._unread else data)
        if not self._scheduled:
            self._work()

    def eof_received(self) -> None:
        """The peer has left, or half-closed, which without a close frame is the same (RFC 6455, 7.1.5)."""
        self._connection.receive_eof()
        self._stop()
        self._start_timer("abort", self._options.close_timeout_ms, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.ended = True
        self._stop()
        for timer in self._timers.values():
            timer.cancel()
        for task in (self._identifying, self._draining):
            if task is not None:
                task.cancel()
        self._output.close()
        self._server_state.connections.discard(cast(Any, self))
        self._hub.closed(self)

    def pause_writing(self) -> None:
        self._output.pause()

    def resume_writing(self) -> None:
        self._output.resume()

    def shutdown(self) -> None:
        """uvicorn stops; it waits until we are out of `server_state.connections`."""
        self._hub.draining = True
        if self._operations is not None and self._connection.state is State.OPEN:
            self._draining = self._draining or self._loop.create_task(self._drain(self._operations))
        elif self._connection.state is State.CONNECTING:
            self.transport.close()
        else:
            self._close(CloseCode.GOING_AWAY, str(Draining()))

    # Input, in turns

    def _blocked(self) -> bool:
        """What is a reason to take no more: answers that nobody reads, a credential being looked up, publishes at their bound."""
        if not self._output.writable or self._identifying is not None:
            return True
        if self._connection.state >= State.CLOSING:
            return False
        return self._draining is not None or (self._operations is not None and self._operations.blocked)

    def _work(self) -> None:
        self._scheduled = False
        budget = self._options.turn_frames_max
        while not self._blocked():
            if not self._queue and not self._unread:
                self._read(True)
                return
            if budget <= 0:
                self._scheduled = True
                self._loop.call_soon(self._work)
                break
            budget -= self._run() if self._queue else self._feed()
        self._read(False)

    def _go_on(self) -> None:
        """What blocked may have ended."""
        if not self._scheduled and not self._reading:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def _read(self, wanted: bool) -> None:
        if wanted != self._reading and not self.transport.is_closing():
            self._reading = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def _feed(self) -> int:
        """Parse one slice; returns the number of its frames, at least 1."""
        frames, control_frames = self._connection.frames, self._connection.control_frames
        piece, self._unread = self._unread[:SLICE_BYTES], self._unread[SLICE_BYTES:]
        events = self._connection.receive(piece)
        for event in events:
            self._on_event(event)
        self._send()
        if self._connection.control_frames > control_frames:
            self._bound_control_frames(control_frames)
        return max(1, self._connection.frames - frames)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, bytes):
            options = self._options
            self._queue.extend(
                decode_operations(
                    event, self._decoders, operations_max=options.operations_max, ref_bytes_max=options.ref_bytes_max
                )
            )
        elif isinstance(event, Upgrade):
            self._on_upgrade(event)
        else:  # after the operations that came before it
            self._queue.append(event)
            self._start_timer("abort", self._options.close_timeout_ms, self.transport.abort)

    def _run(self) -> int:
        operation = self._queue.popleft()
        if isinstance(operation, Ended):
            self._on_ended(operation)
        elif isinstance(operation, Auth):
            self._identifying = self._loop.create_task(self._authenticate(operation))
        elif self._operations is not None:
            self._operations.run(operation)
        else:
            self._close(CloseCode.UNAUTHENTICATED, 'the first message has to be {"op":"auth","token":"..."}')
        return 1

    def _bound_control_frames(self, before: int) -> None:
        second = int(self._loop.time())
        if second != self._control_second:
            self._control_second, self._control_base = second, before
        limit = self._options.control_frames_per_second_max
        if self._connection.control_frames - self._control_base > limit:
            reason = f"websocket.control_frames_per_second_max allows {limit} pings and pongs a second"
            self._connection.fail(CloseCode.TOO_MUCH, reason)
            self._on_event(Ended(CloseCode.TOO_MUCH, reason, by_peer=False))
            self._send()

    # Handshake and credentials

    def _on_upgrade(self, upgrade: Upgrade) -> None:
        if self._connection.binary:
            self._decoders, self._frames = websocket_messages.MSGPACK, websocket_frames.MSGPACK
        self._id = request_id_of(upgrade, self._id)
        secure = self.transport.get_extra_info("ssl_object") is not None
        refusal = check_upgrade(upgrade, self._options, secure=secure, draining=self._hub.draining, request_id=self._id)
        if refusal is None:
            self._identifying = self._loop.create_task(self._admit(upgrade))
        else:
            self._refuse(refusal)

    async def _admit(self, upgrade: Upgrade) -> None:
        """Accept the handshake, unless it carries a credential that is no good."""
        try:
            credential = credential_of(upgrade, self._certificate)
            if isinstance(credential, NoCredential) and not self._listener.anonymous:
                self._accept()  # the first message brings it
            else:
                session = await self._identify(credential)
                self._accept()
                self._open(session)
        except Exception as error:
            if isinstance(error, IdentityProblem) and upgrade.authorization is None and upgrade.token is not None:
                # Only browsers carry a token so, and their pages see the close code of a connection, never an HTTP answer.
                self._accept()
                self._deny(error, b"")
            else:
                self._refuse(refusal_of(error, self._id))
        self._identified()

    async def _authenticate(self, operation: Auth) -> None:
        try:
            self._open(await self._identify(BearerToken(operation.token)))
        except Exception as error:
            self._deny(error, bytes(operation.ref))
        self._identified()

    async def _identify(self, credential: Credential) -> Session:
        return await self._hub.pipeline.identify(
            credential, peer=self._peer, protocol=PROTOCOL, listener=self._listener, id=self._id
        )

    def _identified(self) -> None:
        self._identifying = None
        self._go_on()

    def _accept(self) -> None:
        self._connection.accept({"X-Request-Id": self._id})
        self._send()

    def _open(self, session: Session) -> None:
        """Or renew: a client may authenticate again before its token expires."""
        if self._connection.state not in (State.AUTHENTICATING, State.OPEN):
            return
        self._connection.authenticated()
        self._stop_timer("auth")
        if self._operations is None:
            self._operations = Operations(self._hub, session, self._output, self._frames, close=self._close, on_room=self._go_on)
        else:
            self._operations.renew(session)
        principal = session.principal
        members = {"principal": principal.name, "session": session.id, "expires_at": principal.expires_at_ms}
        self._output.write(self._frames.ready({name: value for name, value in members.items() if value is not None}))

    def _deny(self, error: Exception, ref: bytes) -> None:
        row = translate(error)
        self._hub.refused(row.slug)
        document = problem(error, self._id)
        self._output.write(self._frames.error(document, ref=ref))
        code = CloseCode.UNAUTHENTICATED if isinstance(error, IdentityProblem) else row.websocket_close
        self._close(code or CloseCode.INTERNAL_ERROR, document["detail"])

    def _refuse(self, refusal: Refusal) -> None:
        self._hub.refused(refusal.slug)
        self._connection.reject(refusal.status, refusal.headers, refusal.body)
        self._send()

    # Output, and the ways out

    def _send(self) -> None:
        """Pass on what the connection has to say: handshake answers, pongs, close frames."""
        for frame in self._connection.data_to_send():
            self._output.write(frame)
        if self._connection.state >= State.CLOSING:
            self._output.seal()
        if self._connection.ended and not self._queue:
            self._finish()

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake. Whatever has not been answered stays so."""
        if self._connection.state in (State.AUTHENTICATING, State.OPEN):
            self._stop()
            self._connection.close(code, reason)
            self._send()
            self._start_timer("abort", self._options.close_timeout_ms, self.transport.abort)
            self._go_on()

    def _on_ended(self, ended: Ended) -> None:
        if not ended.by_peer:
            self._hub.refused(f"close-{ended.code}")
            self._lingering = True
        self._stop()
        self._finish()

    def _finish(self) -> None:
        """The last frame has been written: close, in a way that lets it arrive."""
        self._output.flush()
        if not self._lingering:
            self.transport.close()
        elif self.transport.can_write_eof():
            self.transport.write_eof()  # the peer, reading it, closes; until then what it still sends is thrown away
        else:
            self._start_timer("linger", LINGER_MS, self.transport.close)

    def _stop(self) -> None:
        """Nothing more is done for the client."""
        self._queue.clear()
        self._stop_timer("auth")
        if self._operations is not None:
            self._operations.stop()

    async def _drain(self, operations: Operations) -> None:
        try:
            async with asyncio.timeout(self._options.drain_ms / 1000):
                await operations.settled()
        except TimeoutError:
            logger.warning("publishes were still under way after websocket.drain_ms", extra={"request_id": self._id})
        operations.go_away()
        self._close(CloseCode.GOING_AWAY, str(Draining()))

    # Time

    def look(self) -> None:
        """Called by the hub every `recheck_ms`."""
        if self._operations is None or self._connection.state is not State.OPEN:
            return
        self._operations.check()
        idle_ms = (self._loop.time() - self._received_at) * 1000
        if not self._reading or idle_ms < self._options.ping_interval_ms:
            return
        if not self._pinged:
            self._pinged = True
            self._connection.ping(b"")
            self._send()
        elif idle_ms >= self._options.ping_interval_ms + self._options.ping_timeout_ms:
            self._close(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")  # `websockets` words and code

    def _on_auth_timeout(self) -> None:
        if self._connection.state is State.CONNECTING:
            self.transport.close()
        self._hub.refused("auth-timeout")
        limit = self._options.auth_timeout_ms
        self._close(CloseCode.AUTH_TIMEOUT, f"no valid credential within websocket.auth_timeout_ms ({limit} ms)")

    def _on_full(self) -> None:
        self._hub.metrics.slow_readers_total.labels(PROTOCOL).inc()

    def _on_cut(self) -> None:
        """No close frame: it would wait behind what the peer does not read."""
        self._hub.refused("send-buffers-full")
        self.transport.abort()

    def _on_slow(self) -> None:
        self._hub.refused("slow-reader")
        limit = self._options.slow_reader_ms
        self._close(CloseCode.TOO_MUCH, f"the send buffer did not drain within websocket.slow_reader_ms ({limit} ms)")

    def _start_timer(self, name: str, delay_ms: int, call: Callable[[], None]) -> None:
        """Once; what runs already is not put off."""
        if name not in self._timers:
            self._timers[name] = self._loop.call_later(delay_ms / 1000, call)

    def _stop_timer(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()
