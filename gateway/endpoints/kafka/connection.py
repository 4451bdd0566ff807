"""One connection of a Kafka client: frames in, answers out in the order of the requests.

    bytes -> frame -> header -> row of the table -> handler -> slot in the queue of answers -> written when it is the first

Handlers of Produce and Fetch begin in the turn in which the bytes came; a task is made where they have to wait for several
things, and for every other request. What is answered in one turn leaves in one write.

Produce, Fetch and Metadata of one connection may be under way together; every other request has the connection to itself, so
that nothing a client pipelined is seen to happen in another order than on Apache Kafka, which works on one request at a time.
What cannot be read ends the connection and nothing else. So does a request before authentication, and whoever cannot say who they
are any more. A connection that ends takes its pending requests with it.

Reading stops by itself: while a request waits for its turn nothing more is cut from the buffer, and a full one is not read to.

Sources: Kafka protocol guide; SocketServer of Apache Kafka 4.3; KIP-511 (ApiVersions), KIP-368 (sessions that end).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol, cast

import msgspec
from uuid_utils import uuid7

from gateway.endpoints.kafka.api_versions import API_VERSIONS, unsupported
from gateway.endpoints.kafka.authentication import Authentication
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.held_back import HeldBack
from gateway.endpoints.kafka.node import PROTOCOL, KafkaNode
from gateway.endpoints.kafka.operation import Answer, Later, Operation
from gateway.endpoints.kafka.serving import Ended, answered, awaited, begin, refused, serve
from gateway.pipeline import Listener
from gateway.wire.kafka import messages
from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.framing import FIRST_BYTES, LARGE_BYTES, Frames, FrameTooLarge
from gateway.wire.kafka.request_header import HEAD_BYTES, KnownHead, read_key, read_rest
from security.errors import IdentityProblem

TURN_FRAMES_MAX = 64  # requests of one connection begun before others have their turn
OPEN_REQUESTS_MAX = 100  # of somebody who has not said who it is: clients send five
# As fast a large request comes while others wait for the memory that it was promised: one above a mebibyte, and any other.
LARGE_BYTES_PER_S_MIN, BYTES_PER_S_MIN = 1024 * 1024, 64 * 1024

logger = logging.getLogger(__name__)


class Open(Protocol):
    """The set of open connections that the listener keeps."""

    def add(self, connection: Any) -> None: ...
    def discard(self, connection: Any) -> None: ...
    def __len__(self) -> int: ...


class Slot(msgspec.Struct, eq=False):
    """The place of one answer. `parts` is None until it is there, and empty where the client wants none."""

    call: Call | None
    operation: Operation | None
    held_bytes: int
    parts: list[Any] | None = None
    task: asyncio.Task[None] | None = None


class KafkaProtocol(asyncio.BufferedProtocol):
    """Made by the listener for each connection; `begun` tells it that the handshake is over."""

    def __init__(
        self,
        node: KafkaNode,
        listener: Listener,
        connections_max: int,
        write_stall_ms: int,
        connections: Open,
        begun: Callable[[], None],
    ) -> None:
        self.node, self.listener = node, listener
        self._connections, self._connections_max, self._begun = connections, connections_max, begun
        self._write_stall_s = write_stall_ms / 1_000
        self._loop = asyncio.get_running_loop()
        self.now_s = self._loop.time
        self._frames = Frames(node.options.open_request_bytes_max, self._admit)
        self.get_buffer = self._frames.buffer  # type: ignore[assignment, method-assign]  # a call less for each receive
        self._known: KnownHead | None = None
        self._known_operation: Operation | None = None
        self._open_requests = 0
        self._large_seen = (0.0, 0)  # when the large request under way was looked at last, and how much had come
        self._waiting: memoryview | None = None  # a whole frame whose turn has not come
        self._slots: deque[Slot] = deque()
        self._held_bytes = 0
        self._reading = self._closing = self._draining = False
        self._counted = False  # among the listener's connections
        self._stalled_since: float | None = None
        self._more: asyncio.Handle | None = None
        self._writing: asyncio.Handle | None = None
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until connection_made
        self.peer, self.local = "", ("", 0)
        self.id = str(uuid7())
        self.authentication = Authentication(self)
        self.held_back: HeldBack | None = None

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's TLS transport is one, and does not say so
        self._begun()
        if len(self._connections) >= self._connections_max:
            self.refused("connections")
            self.transport.abort()
            return
        self._connections.add(self)
        self._counted = True
        self.node.metrics.connections.labels(PROTOCOL).inc()
        nowhere = ("", 0)  # what the kernel says of a peer that is gone already
        peer = transport.get_extra_info("peername") or nowhere
        local = transport.get_extra_info("sockname") or nowhere
        self.peer, self.local = f"{peer[0]}:{peer[1]}", (str(local[0]), int(local[1]))
        self._reading = True
        self._opened_at = self._active_at = self._closing_since = self._large_since = self._loop.time()

    def client_certificate(self) -> bytes | None:
        found: ssl.SSLObject | None = self.transport.get_extra_info("ssl_object")
        return None if found is None else found.getpeercert(binary_form=True)

    def buffer_updated(self, nbytes: int) -> None:
        self._active_at = self.now_s()
        self._frames.updated(nbytes)
        if self._more is None:
            self._work()
        else:
            self._read_or_not(self._frames.settle())

    def eof_received(self) -> bool:
        """Kafka's clients never close one direction only: the connection ends."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._counted:
            return
        self._closing = True
        self._connections.discard(self)
        self.node.metrics.connections.labels(PROTOCOL).dec()
        if self._more is not None:
            self._more.cancel()
        for slot in self._slots:
            if slot.task is not None:
                slot.task.cancel()
        self.node.memory.forget(self._again)
        self.node.fetch_sessions.forget(self)
        self._give_back(self._held_bytes)
        self.authentication.ended()

    def pause_writing(self) -> None:
        self._stalled_since = self._loop.time()

    def resume_writing(self) -> None:
        self._stalled_since = None
        self._active_at = self._loop.time()
        self._work()

    # Requests, in their order

    def _work(self) -> None:
        """Begin what may begin, and read on only where there is room."""
        self._more = None
        try:
            for _ in range(TURN_FRAMES_MAX):
                if self._closing or self._draining or not self._begin_next():
                    break
                if not self._frames.more and self._waiting is None:
                    break
            else:
                self._again()
        except FrameTooLarge as refusal:
            self.cut("request-too-large", str(refusal))
        except MessageInvalid as refusal:
            self.cut("request-malformed", str(refusal))
        except Ended as end:
            self.cut(end.reason, end.detail)
        if self._slots and self._slots[0].parts is not None and self._writing is None:
            self._write_ready()
            if self._waiting is not None:
                self._again()
        room = self._frames.settle()
        if room is not self._reading and not self._closing:
            self._read_or_not(room)

    def _begin_next(self) -> bool:
        """Whether a request has begun: the next one is whole, and its turn has come."""
        frame = self._waiting if self._waiting is not None else self._frames.next()
        if frame is None:
            return False
        self._waiting = frame
        node = self.node
        if self._stalled_since is not None:
            return False
        if self._slots and (len(self._slots) >= node.options.requests_in_flight_max or node.memory.short):
            return False
        if self.authentication.wants_tokens:
            return self._begin_token(frame)
        api, version, correlation_id = read_key(frame)
        known, operation = self._known, self._known_operation
        if (
            known is None
            or operation is None
            or known.api != api
            or known.version != version
            or frame[HEAD_BYTES : known.end] != known.rest
        ):
            known, operation = None, node.operations.get(api)
            if operation is None or not operation.serves(version):
                if self._slots:
                    return False
                self._unsupported(api, version, correlation_id)
                return not self._closing
        if self._slots and not self._together(operation):
            return False
        if known is None:
            known = self._head(frame, api, version, operation)
        self._waiting = None
        session = self.authentication.session
        if session is None and not self._may_ask_more():
            return False
        begin_at = known.end
        call = Call(node, self, api, version, correlation_id, known.client_id, self._active_at)
        slot = Slot(call, operation, len(frame))
        self._enter(slot)
        if operation.raw and session is not None:
            self._begin_raw(slot, call, operation, frame[begin_at:])
        else:
            call.began_s = self.now_s()
            self._begin_task(slot, serve, call, operation, frame[begin_at:])
        return True

    def _head(self, frame: memoryview, api: int, version: int, operation: Operation) -> KnownHead:
        """Kept of raw operations, which are those that come again and again. MessageInvalid."""
        client_id, end = read_rest(frame, api, version)
        head = KnownHead(api, version, bytes(frame[HEAD_BYTES:end]), client_id, end)
        if operation.raw:
            self._known, self._known_operation = head, operation
        return head

    def _may_ask_more(self) -> bool:
        self._open_requests += 1
        if self._open_requests > OPEN_REQUESTS_MAX:
            self.cut("unauthenticated", f"more than {OPEN_REQUESTS_MAX} requests, and it has not said who it is")
        return not self._closing

    def _together(self, operation: Operation) -> bool:
        if self.authentication.session is None or not (operation.raw or operation.overlaps):
            return False
        for slot in self._slots:
            other = slot.operation
            if other is None or not (other.raw or other.overlaps) or (other.waits and operation.waits):
                return False
        return True

    def _begin_token(self, frame: memoryview) -> bool:
        """After SaslHandshake 0 tokens come without a header, and so do the answers (before KIP-152)."""
        if self._slots:
            return False
        self._waiting = None
        slot = Slot(None, None, len(frame))
        self._enter(slot)
        self._begin_task(slot, self._serve_token, bytes(frame))
        return True

    def _enter(self, slot: Slot) -> None:
        if slot.held_bytes <= LARGE_BYTES:  # above, it was counted when it began to come
            self._held_bytes += slot.held_bytes
            self.node.memory.held_bytes += slot.held_bytes
        self._slots.append(slot)

    def _begin_raw(self, slot: Slot, call: Call, operation: Operation, body: memoryview) -> None:
        begun: Any = begin(call, operation, body)
        if type(begun) is list:
            slot.parts = begun
        elif type(begun) is Later:
            begun.then = partial(self._settled, slot)
        else:
            coming: Coroutine[Any, Any, Answer] = begun
            task = self._begin_task(slot, awaited, call, operation, coming)
            task.add_done_callback(lambda _: coming.close())  # where the task was cancelled before it ran

    def _settled(self, slot: Slot, answer: Answer, error: Exception | None) -> None:
        """What came later is there."""
        call, operation = slot.call, slot.operation
        assert call is not None
        assert operation is not None
        try:
            slot.parts = answered(call, operation, answer) if error is None else refused(call, operation, error)
        except Ended as end:
            self.cut(end.reason, end.detail)
            return
        if len(self._slots) == 1:
            self._write()
        else:
            self._answer()

    def _begin_task(self, slot: Slot, work: Callable[..., Awaitable[list[Any]]], *arguments: Any) -> asyncio.Task[None]:
        slot.task = self._loop.create_task(self._kept(slot, work, arguments))
        return slot.task

    async def _kept(self, slot: Slot, work: Callable[..., Awaitable[list[Any]]], arguments: tuple[Any, ...]) -> None:
        try:
            slot.parts = await work(*arguments)
        except Ended as end:
            self.cut(end.reason, end.detail)
            return
        except asyncio.CancelledError:  # the connection has ended, or the node is stopping
            slot.parts = []
            if not self._closing:
                self._answer()
            raise
        self._answer()

    # What has no table

    async def _serve_token(self, token: bytes) -> list[Any]:
        try:
            answer = await self.authentication.raw_token(token)
        except IdentityProblem as refusal:
            raise Ended("unauthenticated", str(refusal)) from None
        return [len(answer).to_bytes(4, "big") + answer]

    def _unsupported(self, api: int, version: int, correlation_id: int) -> None:
        """Of ApiVersions, an answer that every version can read; of anything else the client cannot know the form."""
        self._waiting = None
        if api != API_VERSIONS:
            self.cut("api-unsupported", f"version {version} of {messages.api_name(api)}")
            return
        body = correlation_id.to_bytes(4, "big", signed=True) + unsupported(self.node)
        self.transport.write(len(body).to_bytes(4, "big") + body)

    # Answers

    def _answer(self) -> None:
        """An answer is there. Those that are ready in the same turn leave in one write."""
        if len(self._slots) == 1:
            self._write()
        elif self._writing is None:
            self._writing = self._loop.call_soon(self._write)

    def _write(self) -> None:
        """Write what is next and there, then begin what waited for it."""
        self._writing = None
        self._write_ready()
        if self._waiting is not None and not self._closing and self._more is None:
            self._work()

    def _write_ready(self) -> None:
        slots = self._slots
        pieces: list[Any] = []
        free_bytes = 0
        while slots and (parts := slots[0].parts) is not None:
            free_bytes += slots.popleft().held_bytes
            pieces += parts
        if self._closing:
            return
        if pieces:
            self._active_at = self.now_s()
            if len(pieces) == 1:
                self.transport.write(pieces[0])
            else:
                self.transport.writelines(pieces)
        self._held_bytes -= free_bytes
        self.node.memory.give_back(free_bytes)
        if self.authentication.session is not None:
            self._frames.bytes_max = self.node.options.request_bytes_max
        if self._draining and not slots:
            self.close()

    # Bounds

    def _admit(self, size: int) -> bool:
        """For a large request that begins to come."""
        if not self.node.memory.admit(size, self._again):
            return False
        self._held_bytes += size
        self._large_since = self._loop.time()
        return True

    def _again(self) -> None:
        """There may be room for it now."""
        if self._more is None and not self._closing:
            self._more = self._loop.call_soon(self._work)

    def _give_back(self, size: int) -> None:
        self._held_bytes -= size
        self.node.memory.give_back(size)

    def _read_or_not(self, wanted: bool) -> None:
        """A frame that waits leaves the rest in the buffer, which is then full at some time."""
        if wanted != self._reading:
            self._reading = wanted
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()

    def check(self, now: float) -> None:
        """Called a few times a second."""
        options = self.node.options
        pause_s = options.request_pause_ms / 1_000
        if self._closing:
            if now - self._closing_since > self._write_stall_s:  # what was written last is not read
                self.transport.abort()
        elif self._stalled_since is not None and now - self._stalled_since > self._write_stall_s:
            self.cut("write-stalled", "the client does not read")
            self.transport.abort()
        elif self._frames.held_bytes and self.node.memory.short and self._comes_slowly(now, pause_s):
            self.cut("request-timeout", "a large request comes too slowly while others wait for its memory")
        elif self.authentication.session is None and now - self._opened_at > options.auth_ms / 1_000:
            self.cut("auth-timeout", "it has not said who it is")  # whatever it asks besides
        elif self._slots:
            self._active_at = now
        elif self._frames.partial and self._reading and now - self._active_at > pause_s:
            self.cut("request-timeout", "a request was begun and not ended")
        elif now - self._active_at > options.idle_ms / 1_000:
            self.close()

    def _comes_slowly(self, now: float, pause_s: float) -> bool:
        """It was promised its memory by what it announced alone."""
        if now - self._large_since > pause_s:
            return True
        at, come = self._large_seen
        if at < self._large_since:
            self._large_seen = (now, self._frames.large_come)
        elif now - at > 1:
            self._large_seen = (now, self._frames.large_come)
            pace = LARGE_BYTES_PER_S_MIN if self._frames.large_size > FIRST_BYTES else BYTES_PER_S_MIN
            return self._frames.large_come - come < pace * (now - at)
        return False

    # The end

    def refused(self, reason: str) -> None:
        self.node.metrics.refused_total.labels(PROTOCOL, reason).inc()

    def cut(self, reason: str, detail: str) -> None:
        """End the connection for something that the client did; counted by reason."""
        if not self._closing:
            self.refused(reason)
            logger.info("a Kafka connection is closed: %s (%s)", reason, detail, extra={"peer": self.peer, "connection": self.id})
        self.close()

    def close(self) -> None:
        """What was answered is written first, where it is the turn of that."""
        if not self._closing:
            while self._slots and self._slots[0].parts is not None:
                self.transport.writelines(self._slots.popleft().parts or [])
            self._closing = True
            self._closing_since = self._loop.time()
            self.transport.close()

    def finish(self) -> None:
        """End the connection when what is under way has been answered."""
        self._draining = True

    def shutdown(self) -> None:
        """The node is stopping: what is under way may end, what waits is given up."""
        self._draining = True
        for slot in self._slots:
            if slot.operation is not None and slot.operation.waits and slot.task is not None:
                slot.task.cancel()
                slot.parts = []  # it may not have begun, and then does not say so itself
        self._write()
