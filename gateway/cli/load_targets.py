"""Connections that publish under load: `send` returns when the node has acknowledged.

REST speaks HTTP/1.1 on a kept connection through httptools, WebSocket `publish` operations matched by `ref`; both one at a time a
connection. They do little beside, so that what is measured is the node and not the generator.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import httptools

from gateway.cli.connection import Connection
from gateway.cli.failures import Unreachable
from gateway.cli.feed import SUBPROTOCOL

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

ANSWER_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0


class Answer(Exception):
    """The node refused: `reason` is the status, or the problem's last word."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Target(Protocol):
    """One connection."""

    async def open(self) -> None: ...

    async def send(self, records: list[dict[str, str]]) -> None:
        """Acknowledged when it returns. Raises Answer for a refusal, OSError and TimeoutError where none came."""

    async def close(self) -> None: ...


class RestTarget:
    """POST /v1/topics/{topic}/records."""

    def __init__(self, connection: Connection, topic: str) -> None:
        self._connection = connection
        place = urlsplit(connection.url)
        self._host, self._port = place.hostname or "", place.port or (443 if connection.encrypted else 80)
        token = f"Authorization: Bearer {connection.token}\r\n" if connection.token else ""
        self._head = (
            f"POST /v1/topics/{topic}/records HTTP/1.1\r\nHost: {place.netloc}\r\n{token}Content-Type: application/x-ndjson\r\n"
        ).encode()
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> None:
        tls: ssl.SSLContext | None = self._connection.tls() if self._connection.encrypted else None
        opening = asyncio.open_connection(self._host, self._port, ssl=tls)
        try:
            self._reader, self._writer = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"no answer from {self._connection.url}", str(error)) from None

    async def send(self, records: list[dict[str, str]]) -> None:
        body = "\n".join([json.dumps(record) for record in records]).encode()
        self._writer.write(self._head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        answer = _HttpAnswer()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while not answer.complete:
                data = await self._reader.read(64 * 1024)
                if not data:
                    raise ConnectionResetError("the node closed the connection")
                answer.feed(data)
        if answer.status >= 400:
            raise Answer(str(answer.status))

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError, TimeoutError):  # of a connection that is lost already
            await asyncio.wait_for(self._writer.wait_closed(), CONNECT_TIMEOUT_S)


class _HttpAnswer:
    def __init__(self) -> None:
        self.complete = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.complete = True

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())


class WebSocketTarget:
    """`publish` operations; acknowledgements come in any order."""

    def __init__(self, connection: Connection, topic: str) -> None:
        self._connection, self._topic = connection, topic
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._ref = 0
        self._socket: ClientConnection
        self._answers: asyncio.Task[None]

    async def open(self) -> None:
        self._socket = await open_websocket(self._connection)
        self._answers = asyncio.create_task(self._receive(), name="load answers")

    async def send(self, records: list[dict[str, str]]) -> None:
        self._ref = ref = self._ref + 1
        answer = self._waiting[ref] = asyncio.get_running_loop().create_future()
        message = {"op": "publish", "ref": ref, "topic": self._topic, "records": records}
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._socket.send(json.dumps(message))
                await answer
        finally:
            self._waiting.pop(ref, None)

    async def close(self) -> None:
        self._answers.cancel()
        await asyncio.gather(self._answers, return_exceptions=True)
        await self._socket.close()

    async def _receive(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            async for frame in self._socket:
                answers = json.loads(frame)
                for answer in answers if isinstance(answers, list) else [answers]:
                    self._settle(answer)
        except ConnectionClosed:
            pass
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the node closed the connection"))

    def _settle(self, answer: dict[str, Any]) -> None:
        waiting = self._waiting.get(answer.get("ref", 0))
        if waiting is None or waiting.done():
            return
        if answer["op"] == "error":
            waiting.set_exception(Answer(str(answer["problem"].get("type", "")).rpartition("/")[2]))
        else:
            waiting.set_result(None)


async def open_websocket(connection: Connection) -> ClientConnection:
    """Open, the node's greeting taken. Raises Unreachable."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException
    from websockets.typing import Subprotocol

    try:
        socket = await connect(
            connection.websocket_url,
            ssl=connection.tls() if connection.encrypted else None,
            additional_headers={"Authorization": f"Bearer {connection.token}"} if connection.token else None,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            open_timeout=CONNECT_TIMEOUT_S,
            max_size=64 * 1024 * 1024,
            proxy=None if connection.is_loopback else True,
        )
        await asyncio.wait_for(socket.recv(), CONNECT_TIMEOUT_S)
        return socket
    except (OSError, TimeoutError, WebSocketException) as error:
        raise Unreachable(f"no WebSocket at {connection.websocket_url}", str(error)) from None
