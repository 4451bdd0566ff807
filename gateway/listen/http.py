"""HTTP/1.1 connections: uvicorn's protocol on httptools, with a bound on everything a client can make the node hold or wait for.

A connection is in one phase, and each has its deadline:

    HEAD      the head of a request arrives (or nothing does yet)     request_head_ms, then 408
    BODY      its body arrives                                        request_body_ms idle, request_total_ms in all, then 408
    ANSWER    all of the request is here, the answer is not           the application's own waits are bounded
    IDLE      between requests                                        keep_alive_ms, then closed
    LINGER    refused: what still comes is read and thrown away       linger_ms, then closed

`check` is called for every connection a few times a second instead of arming timers, which would cost each request two of them.
Refusals are told as problem documents (RFC 9457) and counted by reason; a peer that reads nothing is cut after write_stall_ms.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Sized
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uuid_utils import uuid7
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.listen.buffered import Buffered
from gateway.listen.direct import HEADS_MAX, Direct, Headers, Prepared, opening, repeatable
from gateway.listen.hosts import Hosts
from gateway.listen.turn_writer import TurnWriter
from gateway.observe.metrics import Metrics
from gateway.settings import LimitsSection, Listener

PROTOCOL = "http"
RETRY_AFTER_S = 1


class Phase(Enum):
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    IDLE = auto()
    LINGER = auto()


class Refusal(msgspec.Struct, frozen=True):
    """What a client is told; `reason` is the last part of the problem's type and the label in the metrics."""

    status: int
    reason: str
    title: str
    detail: str
    retry: bool = False

    def answer(self, instance: str) -> bytes:
        """The whole response, after which the connection ends."""
        problem = {
            "type": f"/problems/{self.reason}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        body = msgspec.json.encode(problem)
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            "content-type: application/problem+json",
            f"content-length: {len(body)}",
            f"x-request-id: {instance}",
            *([f"retry-after: {RETRY_AFTER_S}"] if self.retry else []),
            "connection: close",
        ]
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii") + body


class Refused(Exception):
    """Raised in a callback of the parser, to end its work."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.reason)


def _refusals(limits: LimitsSection) -> dict[str, Refusal]:
    """Every refusal of this layer, with the limits that are configured."""
    made = (
        Refusal(400, "request-malformed", "The request is malformed", "this is no HTTP/1.1 request that can be understood"),
        Refusal(
            400, "request-cut-off", "The request ended early", "the sending side was closed before the whole request was sent"
        ),
        Refusal(
            408,
            "head-timeout",
            "The request took too long",
            f"its head did not arrive within limits.request_head_ms ({limits.request_head_ms})",
        ),
        Refusal(
            408,
            "body-timeout",
            "The request took too long",
            f"its body paused for longer than limits.request_body_ms ({limits.request_body_ms}), "
            f"or took longer than limits.request_total_ms ({limits.request_total_ms})",
        ),
        Refusal(
            421,
            "host-refused",
            "The request names another host",
            "a plain or anonymous listener answers to localhost, loopback addresses and the names in listeners.http.hosts: "
            "ask by one of those, or add the name of the Host header there",
        ),
        Refusal(
            431,
            "head-too-large",
            "The request's head is too large",
            f"limits.head_bytes_max allows {limits.head_bytes_max} bytes, limits.headers_max {limits.headers_max} header fields",
        ),
        Refusal(
            503,
            "connections",
            "Too many connections",
            f"limits.connections_max ({limits.connections_max}) is reached; use connections again, or retry in a moment",
            retry=True,
        ),
        Refusal(
            503, "pipelined", "Too many requests at once", f"limits.pipelined_max ({limits.pipelined_max}) requests wait already"
        ),
    )
    return {refusal.reason: refusal for refusal in made}


class Gate:
    """What all connections of a listener share. `direct` is the application's, where it has one."""

    def __init__(
        self,
        config: Config,
        state: ServerState,
        listener: Listener,
        limits: LimitsSection,
        metrics: Metrics,
        direct: Direct | None = None,
    ) -> None:
        self.direct = direct
        self._default_headers: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")
        self.config, self.state, self.listener, self.limits, self.metrics = config, state, listener, limits, metrics
        self.refusals = _refusals(limits)
        self.hosts = Hosts.of(listener)
        self.head_s = limits.request_head_ms / 1_000
        self.body_s = limits.request_body_ms / 1_000
        self.total_s = limits.request_total_ms / 1_000
        self.keep_alive_s = limits.keep_alive_ms / 1_000
        self.linger_s = limits.linger_ms / 1_000
        self.stall_s = limits.write_stall_ms / 1_000

    def default_headers(self) -> bytes:
        """Those of every answer, as they are written; made again when they change, once a second."""
        current = self.state.default_headers
        if current is not self._default_headers[0]:
            self._default_headers = (current, b"".join([b"%b: %b\r\n" % pair for pair in current]))
        return self._default_headers[1]

    @property
    def connections(self) -> Sized:
        return self.state.connections

    def protocol(self, begun: Callable[[], None], *, encrypted: bool) -> asyncio.BaseProtocol:
        """For a new connection. Behind TLS it is lent a buffer."""
        made = HttpProtocol(self, begun)
        if not encrypted:
            return made
        made.front = front = Buffered(made)
        return front

    def refused(self, reason: str) -> None:
        self.metrics.refused_total.labels(PROTOCOL, reason).inc()


class Straight:
    """A request on the direct path, whose body has `length` bytes; -1 where it is whole.

    `last`: the connection ends with its answer; `ahead`: bytes of what follows it.
    """

    __slots__ = ("_missing", "_parts", "ahead", "last", "prepared")

    def __init__(self, prepared: Prepared, length: int) -> None:
        self.prepared = prepared
        self.last = False
        self.ahead = b""
        self._missing = length
        self._parts: list[bytes] = []

    def take(self, data: bytes) -> bool:
        """Whether the body is whole with these bytes, which is so once."""
        if self._missing < 0:
            self.ahead += data
            return False
        part = data[: self._missing]
        self._parts.append(part)
        self._missing -= len(part)
        if self._missing:
            return False
        self.ahead = data[len(part) :]
        self._missing = -1
        return True

    def take_body(self) -> bytes:
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)


class HttpProtocol(HttpToolsProtocol):
    """One connection. `scope["extensions"]["sprawl"]` has `peer` ("ip:port"), `client_certificate` (DER or None), `listener`."""

    writer: TurnWriter
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # uvicorn says never None, and begins with None

    def __init__(self, gate: Gate, connected: Callable[[], object]) -> None:
        """`connected` is called when the connection is made, TLS included."""
        super().__init__(gate.config, gate.state, {}, asyncio.get_running_loop())
        self.gate = gate
        self.connected = connected
        self.front: Buffered | None = None
        self.extensions: dict[str, Any] = {}
        self.phase = Phase.HEAD
        self.deadline = math.inf
        self.body_ends_at = math.inf
        self.head_bytes = 0
        # Bytes since something whole came out of the parser: it keeps a header that never ends in memory.
        self.unparsed_bytes = 0
        self.surplus = False
        self.stalled_bytes = 0
        self.stall_ends_at = math.inf
        # The direct path: heads it knows, the one that the parser is learning from, the request under way.
        self.heads: dict[bytes, Prepared] = {}
        self.learning: bytes | None = None
        self.straight: Straight | None = None
        self.parsing = False  # the parser is inside a request

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.writer = TurnWriter(transport, self.loop)
        self.transport = self.writer
        self.connected()
        self.gate.metrics.connections.labels(PROTOCOL).inc()
        self.deadline = self.loop.time() + self.gate.head_s
        self.surplus = len(self.connections) > self.gate.limits.connections_max
        certificate = _client_certificate(transport)
        if self.gate.listener.tls == "mutual" and not certificate:
            # TLS has seen to this. If ever it has not, nobody comes in without a certificate all the same.
            self.gate.refused("client-certificate-missing")
            transport.abort()
        peer = f"{self.client[0]}:{self.client[1]}" if self.client else ""
        self.extensions = {"sprawl": {"peer": peer, "client_certificate": certificate, "listener": self.gate.listener}}
        # Where the WebSocket class finds it: it is made by uvicorn, with this state.
        self.app_state = self.extensions

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self.connections:  # else it was handed to the WebSocket protocol
            self.gate.metrics.connections.labels(PROTOCOL).dec()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.LINGER or self.parser is None:
            return
        if self.phase is Phase.IDLE:
            self.phase = Phase.HEAD
            self.deadline = self.loop.time() + self.gate.head_s
        elif self.phase is Phase.BODY:
            self.deadline = min(self.loop.time() + self.gate.body_s, self.body_ends_at)
        if self.straight is not None:
            self._go_on(self.straight, data)
            return
        if self.gate.direct is not None and not self.parsing and self._begins(data):
            return
        self.unparsed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade()
        except httptools.HttpParserError as error:
            cause = error.__context__
            self.refuse(cause.refusal.reason if isinstance(cause, Refused) else "request-malformed")
        else:
            if self.unparsed_bytes > self.gate.limits.head_bytes_max and self.phase in (Phase.HEAD, Phase.BODY):
                self.refuse("head-too-large")

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """A client that has sent all of its request may still wait for the answer (RFC 9112, 9.6); with TLS it cannot."""
        if self.phase is Phase.ANSWER and self.scheme == "http" and self.straight is not None:
            self.straight.last = True
            return True
        if self.phase is Phase.ANSWER and self.scheme == "http" and self.cycle is not None:
            self.cycle.keep_alive = False
            return True
        if self.phase is Phase.BODY or (self.phase is Phase.HEAD and self.unparsed_bytes):
            self.refuse("request-cut-off")
        self.writer.flush()  # the transport closes itself now
        return False

    def handle_websocket_upgrade(self) -> None:
        self.gate.metrics.connections.labels(PROTOCOL).dec()
        self.deadline = math.inf
        self.writer.flush()
        self.transport = self.writer.underlying
        super().handle_websocket_upgrade()
        if self.front is not None:
            self.front.take_over(self.transport)

    def _upgrade(self) -> None:
        if self._should_upgrade():
            self.handle_websocket_upgrade()
        elif self.cycle is not None:
            # An upgrade that is not known is left alone (RFC 9110, 7.8), but what follows is no HTTP to this parser any more.
            self.cycle.keep_alive = False

    # The request, as the parser meets its parts

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.parsing = True
        self.scope["extensions"] = self.extensions
        self.head_bytes = 0
        if self.phase is not Phase.HEAD:  # pipelined: it came with the end of the one before
            self.phase = Phase.HEAD
            self.deadline = self.loop.time() + self.gate.head_s

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come by here as well, and count with the head.
        super().on_header(name, value)
        self._count_head(len(name) + len(value) + 4)  # ": " and CRLF
        if len(self.headers) > self.gate.limits.headers_max:
            raise Refused(self.gate.refusals["head-too-large"])

    def on_headers_complete(self) -> None:
        if self.surplus:
            raise Refused(self.gate.refusals["connections"])
        if len(self.pipeline) >= self.gate.limits.pipelined_max:
            raise Refused(self.gate.refusals["pipelined"])
        if self.gate.hosts is not None and not self.gate.hosts.allow([value for name, value in self.headers if name == b"host"]):
            raise Refused(self.gate.refusals["host-refused"])
        self.unparsed_bytes = 0
        self.phase = Phase.BODY
        now = self.loop.time()
        self.body_ends_at = now + self.gate.total_s
        self.deadline = min(now + self.gate.body_s, self.body_ends_at)
        super().on_headers_complete()
        if self.learning is not None:
            self._learn(self.learning)

    def on_body(self, body: bytes) -> None:
        self.unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.unparsed_bytes = 0
        self.parsing = False
        self.phase = Phase.ANSWER
        self.deadline = math.inf
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._idle()  # it was answered before it was all here

    def on_response_complete(self) -> None:
        """uvicorn's, with the deadlines of `check` instead of a timer for each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self.phase is Phase.ANSWER:
            self._idle()
        elif self.phase is Phase.BODY:
            # Answered before the end of the body, as a refusal is: the rest is thrown away, for a while.
            self.body_ends_at = self.deadline = self.loop.time() + self.gate.linger_s

    def _idle(self) -> None:
        self.phase = Phase.IDLE
        self.deadline = self.loop.time() + self.gate.keep_alive_s

    def _count_head(self, size: int) -> None:
        self.head_bytes += size
        if self.head_bytes > self.gate.limits.head_bytes_max:
            raise Refused(self.gate.refusals["head-too-large"])

    # The direct path

    def _begins(self, data: bytes) -> bool:
        """Between two requests. False: it is for the parser, which may learn its head."""
        self.learning = None
        if self.phase is not Phase.HEAD or self.pipeline or not self._answered() or self.flow.write_paused:
            return False
        begun = opening(data)
        if begun is None:
            return False
        head, length, body_at = begun
        prepared = self.heads.get(head)
        if prepared is None:
            self.learning = head
            return False
        if len(data) - body_at == length:  # all of it at once, as almost always
            self.straight = Straight(prepared, -1)
            self._run(prepared, data[body_at:])
            return True
        self.phase = Phase.BODY
        now = self.loop.time()
        self.body_ends_at = now + self.gate.total_s
        self.deadline = min(now + self.gate.body_s, self.body_ends_at)
        self.straight = Straight(prepared, length)
        self._go_on(self.straight, data[body_at:])
        return True

    def _learn(self, head: bytes) -> None:
        """The parser has just taken what `head` was cut from."""
        self.learning = None
        direct = self.gate.direct
        if direct is None or len(self.heads) >= HEADS_MAX or not repeatable(head, self.headers):
            return
        prepared = direct.prepare(self.parser.get_method(), self.url, self.headers, self.extensions["sprawl"])
        if prepared is not None:
            self.heads[head] = prepared

    def _go_on(self, request: Straight, data: bytes) -> None:
        """A piece of its body; what comes after that waits, and the client too."""
        if request.take(data):
            self._run(request.prepared, request.take_body())
        if request.ahead:
            self.flow.pause_reading()

    def _run(self, prepared: Prepared, body: bytes) -> None:
        self.phase = Phase.ANSWER
        self.deadline = math.inf
        task = self.loop.create_task(prepared.answer(body, self._reply))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _reply(self, status: int, media_type: bytes, body: bytes, headers: Headers, id: str) -> None:
        request, self.straight = self.straight, None
        self.server_state.total_requests += 1
        if request is None or self.transport.is_closing():
            return
        further = b"".join([b"%b: %b\r\n" % pair for pair in headers]) if headers else b""
        self.writer.write(
            b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n%b"
            % (
                STATUS_LINE[status],
                self.gate.default_headers(),
                media_type,
                len(body),
                id.encode(),
                further,
                b"connection: close\r\n" if request.last else b"",
                body,
            )
        )
        if request.last:
            self.transport.close()
            return
        self._idle()
        if request.ahead:
            self.flow.resume_reading()
            self.data_received(request.ahead)

    def shutdown(self) -> None:
        """The node stops: after the answer under way, if any."""
        if self.straight is None:
            super().shutdown()
        else:
            self.straight.last = True

    # Deadlines and refusals

    def check(self, now: float) -> None:
        """What is overdue at `now` (the loop's time) is refused, closed or cut."""
        if self.transport.is_closing() or self.flow.write_paused:
            self._check_output(now)
        else:
            self.stall_ends_at = math.inf
        if self.flow.read_paused and self.phase in (Phase.HEAD, Phase.BODY):
            # The application is slow, or answers an earlier request: it is not the client that is late.
            self.body_ends_at = max(self.body_ends_at, now + self.gate.body_s)
            self.deadline = now + (self.gate.head_s if self.phase is Phase.HEAD else self.gate.body_s)
        if now >= self.deadline and not self.transport.is_closing():
            self._overdue()

    def _overdue(self) -> None:
        if self.phase is Phase.HEAD and not self.unparsed_bytes and self.cycle is None:
            self.gate.refused("head-timeout")
            self.transport.close()  # it never said a word: nobody waits for an answer
        elif self.phase is Phase.HEAD:
            self.refuse("head-timeout")
        elif self.phase is Phase.BODY and not self._answered():
            self.refuse("body-timeout")
        else:
            self.transport.close()

    def _check_output(self, now: float) -> None:
        waiting = self.transport.get_write_buffer_size()
        if self.stall_ends_at == math.inf or waiting < self.stalled_bytes:
            self.stalled_bytes = waiting
            self.stall_ends_at = now + self.gate.stall_s
        elif now >= self.stall_ends_at:
            self.gate.refused("write-stalled")
            self.transport.abort()

    def refuse(self, reason: str) -> None:
        """Count, answer where nothing else is being answered, and linger: a reset would take the answer with it."""
        self.gate.refused(reason)
        answerable = self._answerable()
        self._end_requests()
        self.phase = Phase.LINGER
        self.deadline = self.loop.time() + self.gate.linger_s
        if not answerable:
            self.transport.close()
            return
        self.transport.write(self.gate.refusals[reason].answer(str(uuid7())))
        self.flow.resume_reading()

    def _answered(self) -> bool:
        return self.straight is None and (self.cycle is None or self.cycle.response_complete)

    def _answerable(self) -> bool:
        """Whether an answer written now would be taken for the answer to what is refused, and not for another's."""
        if self.phase is Phase.HEAD:
            return self._answered()
        if self.straight is not None:
            return self.phase is Phase.BODY
        return self.phase is Phase.BODY and not self.pipeline and self.cycle is not None and not self.cycle.response_started

    def _end_requests(self) -> None:
        """Whoever works on a request finds the client gone."""
        self.straight = None
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in (self.cycle, *waiting):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()


def _client_certificate(transport: asyncio.Transport) -> bytes | None:
    connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return None if connection is None else connection.getpeercert(binary_form=True)
