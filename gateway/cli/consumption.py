"""A durable consumer of the command line: a feed whose records are settled one by one, over as many connections as it takes.

Where it goes on is the node's to know. A connection that is lost loses no record: what was not settled for sure comes again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.cli.connection import Connection
from gateway.cli.failures import Refused, Unreachable
from gateway.cli.feed import ANSWER_TIMEOUT_S, SUBSCRIPTION, Feed, Message, Page, decode_messages
from gateway.cli.positions import Position
from gateway.cli.selection import Selection

if TYPE_CHECKING:
    from gateway.cli.websocket_client import WebSocketClient

# Another connection has the consumer, or it is gone: to come back would only take it away again.
FINAL_SLUGS = frozenset({"/problems/consumer-taken-over", "/problems/consumer-deleted"})


class Consumption(Feed):
    """Iterate over it for pages; settle each of their records. `ahead` records are sent before the first is settled, no more than
    `count` in all.

    It ends when nothing came for `idle_s`; None: never.
    """

    def __init__(
        self,
        connection: Connection,
        selection: Selection,
        name: str,
        position: Position,
        options: dict[str, int],
        *,
        partition: int,
        ahead: int,
        count: int | None,
        idle_s: float | None,
        notice: Callable[[str], None],
    ) -> None:
        super().__init__(connection, "", None, position, partition=partition, notice=notice, selection=selection)
        self._name, self._options, self._ahead, self._idle_s = name, options, ahead, idle_s
        self._count, self._asked_for = count, 0
        self._refs = 0
        self._open: set[int] = set()

    def settle(self, tag: str, op: str, **members: Any) -> None:
        """`op` is ack, nack or reject. Confirmed when `finish` returns; on a connection that is lost meanwhile it is not, and
        the record comes again."""
        from websockets.exceptions import ConnectionClosed

        socket = self._socket
        assert socket is not None
        self._refs += 1
        self._open.add(self._refs)
        settling = {"op": op, "sub": SUBSCRIPTION, "tags": [tag], "ref": self._refs, **members}
        more = []
        if self._count is None or self._asked_for < self._count:
            self._asked_for += 1
            more = [{"op": "credit", "sub": SUBSCRIPTION, "records": 1}]
        with suppress(ConnectionClosed):  # reading meets it too, and connects again
            socket.send(msgspec.json.encode([settling, *more]).decode())

    def finish(self) -> None:
        """Wait until the node has taken what was settled on this connection. `Unreachable` where it does not say so."""
        from websockets.exceptions import ConnectionClosed

        socket = self._socket
        assert socket is not None
        until = time.monotonic() + ANSWER_TIMEOUT_S
        try:
            while self._open:
                for message in decode_messages(socket.recv(timeout=max(0.0, until - time.monotonic()))):
                    self._take(message)
        except (ConnectionClosed, TimeoutError):
            lost = f"the node did not confirm the last {len(self._open)}"
            raise Unreachable(lost, "the connection was lost", "they come again to whoever consumes next") from None

    def _members(self) -> dict[str, Any]:
        left = self._ahead if self._count is None else min(self._ahead, self._count - self._refs)
        self._asked_for = self._refs + left
        return {
            "op": "consume",
            "sub": SUBSCRIPTION,
            "consumer": self._name,
            **self._selection.as_message(),
            "from": self.position.as_message(self._partition),
            "credit": left,
            "options": self._options,
        }

    def _begin(self, answer: Message) -> None:
        self._open.clear()
        self.connections += 1
        if self.connections > 1:
            self._notice("connected again")

    def _receive(self, socket: WebSocketClient) -> Iterator[Page]:
        try:
            frame = socket.recv(timeout=self._idle_s)
        except TimeoutError:
            self.finish()
            self._closed = True
            raise Unreachable("nothing came", f"for {self._idle_s} s") from None
        for message in decode_messages(frame):
            if (page := self._take(message)) is not None:
                yield page

    def _take(self, message: Message) -> Page | None:
        if message.op == "error" and message.problem.get("type") in FINAL_SLUGS:
            raise Refused(message.problem)
        self._raise_problem(message)
        if message.op == "settled" and isinstance(message.ref, int):
            self._open.discard(message.ref)
        for lost in message.damage:
            self._notice(str(lost))
        if message.op != "records":
            return None
        return Page([bytes(record) for record in message.records], "")
