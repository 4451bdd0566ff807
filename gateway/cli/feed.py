"""A subscription over WebSocket that outlives its connections.

The position moves on only after the reader has taken a page, and a new connection starts from that position: nothing is lost,
nothing comes twice. What the node says no to (401, 403, close codes 4401 and 4403) ends the feed; everything else is a fault
that may pass, met with a bounded number of attempts in a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.cli.client import backoff_s, unreachable
from gateway.cli.connection import Connection
from gateway.cli.failures import Failure, Refused, Unreachable
from gateway.cli.positions import Position
from gateway.cli.selection import Selection

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed

    from gateway.cli.websocket_client import WebSocketClient

SUBPROTOCOL = "sprawl.v1.json"
SUBSCRIPTION = "cli"
ANSWER_TIMEOUT_S = 10.0

# In a row, without a subscription in between: with the backoff about two minutes.
ATTEMPTS_MAX = 30

# 1008 policy violation, and ours: 4401 unauthenticated, 4403 forbidden or revoked.
FINAL_CLOSE_CODES = frozenset({1002, 1003, 1007, 1008, 4401, 4403, 4408})


PASSING_STATUSES = frozenset({429, 500, 502, 503, 504})


class Page(NamedTuple):
    """`records` are JSON texts as the node wrote them; `cursor` is where reading goes on after them."""

    records: list[bytes]
    cursor: str


class Lost(msgspec.Struct):
    """Offsets [from_offset, to_offset) that the node's disk lost."""

    partition: int
    from_offset: int
    to_offset: int
    reason: str = ""
    topic: str = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        where = f"partition {self.partition}" + (f" of topic {self.topic}" if self.topic else "")
        return f"the node's disk lost offsets {self.from_offset} to {self.to_offset - 1} of {where}{why}"


class Gone(msgspec.Struct):
    """Offsets [from_offset, to_offset) that retention, or a deletion of records, took before this reader came."""

    topic: str
    partition: int
    from_offset: int
    to_offset: int

    def __str__(self) -> str:
        return (
            f"offsets {self.from_offset} to {self.to_offset - 1} of partition {self.partition} of topic {self.topic} "
            "are gone: retention or a deletion took them"
        )


class Message(msgspec.Struct):
    """What the node sends, as far as a subscription looks at it. `records` are left as the texts they arrived as."""

    op: str
    records: list[msgspec.Raw] = []
    cursor: str | None = None
    damage: list[Lost] = []
    gaps: list[Gone] = []
    problem: dict[str, Any] = {}
    ref: Any = None


class Feed:
    """Iterate over it for pages. `notice` is told of lost and regained connections, one line each. A `selection` stands for
    topic and key."""

    def __init__(
        self,
        connection: Connection,
        topic: str,
        key: str | None,
        position: Position,
        *,
        partition: int = 0,
        notice: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        selection: Selection | None = None,
    ) -> None:
        self._connection = connection
        self._selection = Selection(topic, key) if selection is None else selection
        self._partition, self._notice, self._sleep = partition, notice, sleep
        self.position = position
        self.connections = 0
        self._socket: WebSocketClient | None = None
        self._closed = False

    def close(self) -> None:
        """From any thread: the iteration ends."""
        self._closed = True
        if self._socket is not None:
            self._socket.close()

    def __iter__(self) -> Iterator[Page]:
        failures, told = 0, ""
        while True:
            before = self.connections
            try:
                yield from self._pages()
            except Unreachable as lost:
                if self._closed:
                    return
                failures, told = (failures + 1, told) if self.connections == before else (1, "")
                if self.connections == 0 or failures > ATTEMPTS_MAX:
                    raise
                told = self._tell(lost, told)
                self._sleep(backoff_s(failures - 1))

    def _tell(self, lost: Unreachable, told: str) -> str:
        """Each reason once, however often it is met in a row."""
        reason = f"{lost.title}: {lost.detail}"
        if reason != told:
            self._notice(f"{reason}; trying again")
        return reason

    def _pages(self) -> Iterator[Page]:
        from websockets.exceptions import ConnectionClosed

        with self._connect() as self._socket:
            socket = self._socket
            try:
                self._subscribe(socket)
                while True:
                    for page in self._receive(socket):
                        yield page
                        if page.cursor:
                            self.position = Position("cursor", cursor=page.cursor)
            except ConnectionClosed as closed:
                raise self._ended(closed) from None
            except TimeoutError as error:
                raise unreachable(self._connection, error) from None

    def _connect(self) -> WebSocketClient:
        from websockets.exceptions import InvalidHandshake, InvalidStatus

        from gateway.cli.websocket_client import WebSocketClient

        try:
            return WebSocketClient(self._connection, SUBPROTOCOL)
        except InvalidStatus as error:
            raise self._problem(_decode_problem(error.response.status_code, bytes(error.response.body or b""))) from None
        except (OSError, TimeoutError, InvalidHandshake, EOFError) as error:
            raise unreachable(self._connection, error) from None

    def _subscribe(self, socket: WebSocketClient) -> None:
        socket.send(msgspec.json.encode(self._members()).decode())
        until = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            for answer in decode_messages(socket.recv(timeout=max(0.0, until - time.monotonic()))):
                self._raise_problem(answer)
                if answer.op == "subscribed":
                    self._begin(answer)
                    return

    def _members(self) -> dict[str, Any]:
        """Of the operation that opens the feed."""
        start = self.position.as_message(self._partition)
        return {"op": "subscribe", "sub": SUBSCRIPTION, **self._selection.as_message(), "from": start}

    def _begin(self, answer: Message) -> None:
        if answer.cursor is not None:
            self.position = Position("cursor", cursor=answer.cursor)
        self.connections += 1
        if self.connections > 1:
            self._notice(f"connected again, going on at cursor {self.position.cursor}")

    def _receive(self, socket: WebSocketClient) -> Iterator[Page]:
        for message in decode_messages(socket.recv()):
            self._raise_problem(message)
            for lost in (*message.damage, *message.gaps):
                self._notice(str(lost))
            if message.op == "records":
                yield Page([bytes(record) for record in message.records], message.cursor or self.position.cursor)

    def _raise_problem(self, message: Message) -> None:
        if message.op == "error":
            raise self._problem(message.problem)

    def _problem(self, problem: dict[str, Any]) -> Failure:
        if problem.get("status") in PASSING_STATUSES:
            return Unreachable(f"no subscription from {self._connection.url}", str(problem.get("detail") or problem.get("title")))
        return Refused(problem)

    def _ended(self, closed: ConnectionClosed) -> Failure:
        close = closed.rcvd
        if close is None:
            return Unreachable(f"the connection to {self._connection.url} was lost", "no goodbye came")
        if close.code in FINAL_CLOSE_CODES:
            status = {4401: 401, 4403: 403}.get(close.code, 400)
            return Refused(
                {"status": status, "title": close.reason or "the node closed the connection", "close_code": close.code}
            )
        return Unreachable(f"the node closed the connection to {self._connection.url}", f"{close.code} {close.reason}".strip())


_one = msgspec.json.Decoder(Message)
_many = msgspec.json.Decoder(list[Message])


def decode_messages(frame: str | bytes) -> list[Message]:
    """A frame holds one message or an array of them."""
    try:
        return _many.decode(frame) if frame[:1] in ("[", b"[") else [_one.decode(frame)]
    except msgspec.MsgspecError as error:
        raise Refused({"title": "the node sent a message that is not understood", "detail": str(error)}) from None


def _decode_problem(status: int, body: bytes) -> dict[str, Any]:
    try:
        return {"status": status, **msgspec.json.decode(body, type=dict[str, Any])}
    except msgspec.MsgspecError:
        return {"status": status, "title": f"the node refused the connection with HTTP {status}"}
