"""One server side WebSocket connection (RFC 6455), without I/O.

Theory of operation. Bytes go in through `receive`, events come out of it; calls like `accept` and `close` make bytes, which
`data_to_send` hands over. The input side (handshake, masks, fragments, control frames, close handshake) is `websockets`' sans-I/O
`ServerProtocol`; data frames go out past it, because a broadcast builds one frame and writes the same bytes to every subscriber
[14.6 us a delivery through `websockets`, 1.2 us with a prebuilt frame]. That is sound because server frames are neither masked
nor, without an extension, altered per connection: so no permessage-deflate, ever.

States, and what moves them:

    CONNECTING      -> Upgrade event -> accept() -> AUTHENTICATING, or reject() -> CLOSED
    AUTHENTICATING  -> authenticated() -> OPEN; until then messages are small (`auth_message_bytes_max`)
    OPEN            -> close() -> CLOSING; the peer's close frame, or a violation -> CLOSED
    CLOSING         -> messages are thrown away until the peer's close frame -> CLOSED
    CLOSED          -> when `ended` is true the transport is closed, after what is left to send

A sub-protocol is spoken in one kind of data frames: `sprawl.v1.json`, which is also what a client gets that offers none, in text
frames, `sprawl.v1.msgpack` in binary ones.

A violation closes with its RFC 6455 code: 1002 framing and masking, 1003 the other kind of frame, 1007 invalid UTF-8, 1008 floods
of fragments, 1009 too big. Codes from 4000 on are ours.
"""

from __future__ import annotations

import enum
import http
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import msgspec
from websockets.datastructures import Headers, MultipleValuesError
from websockets.exceptions import NegotiationError
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

SUBPROTOCOL = "sprawl.v1.json"
BINARY_SUBPROTOCOL = "sprawl.v1.msgpack"
BEARER_SUBPROTOCOL = "bearer."

_OTHER_KIND = {
    False: f"send JSON in text frames; binary frames are for the sub-protocol {BINARY_SUBPROTOCOL}",
    True: f"send MessagePack in binary frames; text frames are for the sub-protocol {SUBPROTOCOL}",
}

# `websockets` logs headers and frames, tokens included, at DEBUG, and a line per connection at INFO.
_logger = logging.getLogger("gateway.wire.websocket")
_logger.setLevel(logging.WARNING)


class CloseCode(enum.IntEnum):
    """RFC 6455, 7.4.1, and ours from 4000 on: 44xx is HTTP status 4xx."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    ABNORMAL = 1006  # never sent: the connection was lost without a close frame
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    AUTH_TIMEOUT = 4408
    TOO_MUCH = 4429


class State(enum.IntEnum):
    CONNECTING, AUTHENTICATING, OPEN, CLOSING, CLOSED = range(5)


class Limits(msgspec.Struct, frozen=True):
    """What one peer may send. A record of 1 MiB fits a message as base64; an `auth` message is a token and its JSON."""

    message_bytes_max: int = 2 * 1024 * 1024
    auth_message_bytes_max: int = 16 * 1024
    fragments_max: int = 1024


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A valid opening handshake that waits for `accept` or `reject`.

    `authorization` is the header as sent; `token` comes from a `bearer.<token>` sub-protocol. Neither shows in a repr.
    """

    path: str
    host: str
    origin: str | None
    request_id: str | None
    authorization: str | None = field(repr=False)
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """The conversation is over: the peer's close frame, a violation (answered already), or a lost connection (1006)."""

    code: int
    reason: str
    by_peer: bool


Event = Upgrade | bytes | Ended
"""`bytes` is one whole message; valid UTF-8 if it came in text frames."""


def text_frame(payload: bytes) -> bytes:
    """One unfragmented, unmasked text frame around a UTF-8 payload; ready for any number of connections."""
    return _frame(b"\x81", payload)


def binary_frame(payload: bytes) -> bytes:
    """The same for a binary payload."""
    return _frame(b"\x82", payload)


def _frame(head: bytes, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return head + size.to_bytes(1, "big") + payload
    if size < 65536:
        return head + b"\x7e" + size.to_bytes(2, "big") + payload
    return head + b"\x7f" + size.to_bytes(8, "big") + payload


def origin_allowed(origin: str | None, host: str, *, secure: bool, allowed: Sequence[str]) -> bool:
    """Whether a handshake may come from a page of this origin (RFC 6454 text form).

    Only browsers send the header, and they send whatever credentials they hold: a page elsewhere must not ride on them. An
    empty `allowed` means pages served by this very host and port.
    """
    if origin is None:
        return True
    if allowed:
        return origin in allowed
    scheme = "https" if secure else "http"
    return _authority(origin, scheme) == _authority(f"{scheme}://{host}", scheme) is not None


def _authority(url: str, scheme: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    # `urlsplit` takes tabs and newlines out and an empty query off: another text would pass as this one.
    if (
        parts.scheme != scheme
        or not parts.hostname
        or parts.username is not None
        or url.lower() != f"{scheme}://{parts.netloc}".lower()
        or not parts.netloc.endswith("" if port is None else f":{port}")
    ):
        return None
    return parts.hostname, port or (443 if scheme == "https" else 80)


class Connection:
    """The state machine above. Not reusable; one per TCP connection."""

    def __init__(self, limits: Limits) -> None:
        self.state = State.CONNECTING
        self.ended = False
        self.frames = 0
        """Received so far, of any kind: what a turn of the shell is measured in."""
        self.binary = False
        """Whether the sub-protocol is spoken in binary frames; settled by the handshake."""
        self.control_frames = 0
        """Pings and pongs among them: the shell, which has a clock, bounds their rate."""
        self._limits = limits
        self._partial = bytearray()
        self._fragments = 0
        self._handshake: Response | None = None
        self._protocol = ServerProtocol(
            select_subprotocol=_select_subprotocol, max_size=limits.auth_message_bytes_max, logger=_logger
        )

    # In

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Feed bytes; afterwards send `data_to_send`. Ignored once the connection has ended."""
        if self.ended:
            return []
        self._protocol.receive_data(cast(bytes, data))
        events: list[Event] = []
        for received in self._protocol.events_received():
            if isinstance(received, Request):
                self._on_request(received, events)
            elif isinstance(received, Frame):
                self._on_frame(received, events)
        if self._protocol.eof_sent and self.state < State.CLOSED:
            self._on_violation(events)
        return events

    def receive_eof(self) -> list[Event]:
        """The peer half-closed. Without a close frame before it this is an abnormal end (RFC 6455, 7.1.5)."""
        if self.state == State.CLOSED:
            return []
        self._protocol.receive_eof()
        self.state, self.ended = State.CLOSED, True
        return [Ended(CloseCode.ABNORMAL, "the connection was lost without a close frame", by_peer=True)]

    # Out

    def accept(self, headers: Mapping[str, str]) -> None:
        """Answer 101; messages follow."""
        assert self._handshake is not None
        for name, value in headers.items():
            self._handshake.headers[name] = value
        self._protocol.send_response(self._handshake)
        self.state = State.AUTHENTICATING

    def reject(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Answer the handshake with an HTTP error and end."""
        fixed = {"Connection": "close", "Content-Length": str(len(body))}
        self._protocol.send_response(Response(status, http.HTTPStatus(status).phrase, Headers({**headers, **fixed}), body))
        self.state = State.CLOSED

    def authenticated(self) -> None:
        """Full size messages from here on; allowed again while open (a token renewed)."""
        assert self.state in (State.AUTHENTICATING, State.OPEN)
        self.state = State.OPEN
        self._protocol.max_message_size = self._limits.message_bytes_max

    def ping(self, payload: bytes) -> None:
        self._protocol.send_ping(payload)

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; the reason is cut to what a control frame holds (RFC 6455, 5.5: 125 bytes)."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason.encode()[:123].decode(errors="ignore"))
            self.state = State.CLOSING

    def fail(self, code: int, reason: str) -> None:
        """Answer a violation that only the shell can see; what the peer sends from here on is not even parsed."""
        if self.state in (State.AUTHENTICATING, State.OPEN):
            self._violate(code, reason, [])

    def data_to_send(self) -> list[bytes]:
        """What to write now, in order. When `ended` is true afterwards, nothing follows: close the transport."""
        writes = self._protocol.data_to_send()
        if writes and not writes[-1]:  # websockets' mark for "no more": half-close
            self.ended = True
            writes.pop()
        return writes

    # Handlers

    def _on_request(self, request: Request, events: list[Event]) -> None:
        response = self._protocol.accept(request)
        try:
            upgrade = _upgrade(request)
        except MultipleValuesError as problem:
            response = self._protocol.reject(400, f"Failed to open a WebSocket connection: header {problem} is repeated.\n")
        if response.status_code != 101:
            self._protocol.send_response(response)
            self.state = State.CLOSED
            events.append(Ended(CloseCode.PROTOCOL_ERROR, f"handshake refused with {response.status_code}", by_peer=False))
            return
        self._handshake = response
        self.binary = response.headers.get("Sec-WebSocket-Protocol") == BINARY_SUBPROTOCOL
        events.append(upgrade)

    def _on_frame(self, frame: Frame, events: list[Event]) -> None:
        self.frames += 1
        if frame.opcode is Opcode.CLOSE:
            self._on_close(events)
        elif frame.opcode is Opcode.PING or frame.opcode is Opcode.PONG:
            self.control_frames += 1
        elif self.state >= State.CLOSING:
            return
        elif frame.opcode is not Opcode.CONT and (frame.opcode is Opcode.BINARY) is not self.binary:
            self._violate(CloseCode.UNSUPPORTED_DATA, _OTHER_KIND[self.binary], events)
        elif frame.fin and frame.opcode is not Opcode.CONT:
            self._on_message(frame.data, events)
        else:
            self._on_fragment(frame, events)

    def _on_fragment(self, frame: Frame, events: list[Event]) -> None:
        self._partial += frame.data
        self._fragments += 1
        if self._fragments > self._limits.fragments_max:
            reason = f"a message may have {self._limits.fragments_max} fragments"
            self._violate(CloseCode.POLICY_VIOLATION, reason, events)
        elif frame.fin:
            message = bytes(self._partial)
            self._partial.clear()
            self._fragments = 0
            self._on_message(message, events)

    def _on_message(self, payload: bytes | bytearray | memoryview, events: list[Event]) -> None:
        message = bytes(payload)
        if not self.binary and not message.isascii():
            try:
                message.decode()
            except UnicodeDecodeError as problem:
                self._violate(CloseCode.INVALID_DATA, f"invalid UTF-8 at byte {problem.start}", events)
                return
        events.append(message)

    def _on_close(self, events: list[Event]) -> None:
        closed = self._protocol.close_rcvd
        assert closed is not None
        if self.state < State.CLOSING:
            events.append(Ended(closed.code, closed.reason, by_peer=True))
        self.state = State.CLOSED

    def _violate(self, code: int, reason: str, events: list[Event]) -> None:
        self._protocol.fail(code, reason)
        self.state = State.CLOSED
        self._partial.clear()
        events.append(Ended(code, reason, by_peer=False))

    def _on_violation(self, events: list[Event]) -> None:
        """The input side gave up by itself, and has answered."""
        if self.state < State.CLOSING:
            sent = self._protocol.close_sent or Close(CloseCode.PROTOCOL_ERROR, "not a WebSocket handshake")
            events.append(Ended(sent.code, sent.reason, by_peer=False))
        self.state = State.CLOSED
        self._partial.clear()


def _upgrade(request: Request) -> Upgrade:
    headers = request.headers
    return Upgrade(
        path=request.path.partition("?")[0],
        host=headers.get("Host", ""),
        origin=headers.get("Origin"),
        request_id=headers.get("X-Request-Id"),
        authorization=headers.get("Authorization"),
        token=next((name[len(BEARER_SUBPROTOCOL) :] for name in _offered(headers) if name.startswith(BEARER_SUBPROTOCOL)), None),
    )


def _offered(headers: Headers) -> list[str]:
    return [name.strip() for line in headers.get_all("Sec-WebSocket-Protocol") for name in line.split(",")]


def _select_subprotocol(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The first one offered that we speak. None offered is fine (`websocat`); a token must never be echoed, and browsers fail
    when nothing is selected."""
    if not offered:
        return None
    for name in offered:
        if name in (SUBPROTOCOL, BINARY_SUBPROTOCOL):
            return name
    raise NegotiationError(f"offer the sub-protocol {SUBPROTOCOL} or {BINARY_SUBPROTOCOL}, or none")
