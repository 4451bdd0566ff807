"""Listeners on free loopback ports, and clients that can be as rude as they like."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from gateway.listen.direct import Direct
from gateway.listen.server import HttpServer, bind
from gateway.listen.tls import CertificateFiles, TlsContexts
from gateway.observe.metrics import Metrics
from gateway.settings import LimitsSection, Listener
from security.certificates import CertificatePaths, issue_client

PLAIN = Listener(port=0, plain=True, hosts=("a",))


def now() -> datetime:
    return datetime.now(UTC)


def client_context(authority: CertificatePaths, folder: Path | None = None, name: str = "device-7") -> ssl.SSLContext:
    """A client that trusts the CA; with a folder for its files it has a certificate of its own."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    if folder is not None:
        certificate, key = issue_client(authority, name, 1, now())
        (folder / "client.pem").write_bytes(certificate + key)
        context.load_cert_chain(folder / "client.pem")
    return context


class Answer(SimpleNamespace):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["instance"] == self.headers["x-request-id"]
        return document["type"].removeprefix("/problems/")


class Client:
    """One connection, spoken to in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        headers = {name.lower(): value for name, value in pairs}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(status=int(head[0].split()[1]), headers=headers, body=body)

    async def ask(self, data: bytes) -> Answer:
        self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """All until the server ends the connection; a reset is an end too."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):  # the server was faster
            await self.writer.wait_closed()


class Served:
    """A running listener."""

    def __init__(self, server: HttpServer, metrics: Metrics, context: ssl.SSLContext | None) -> None:
        self.server, self.metrics, self.context = server, metrics, context
        self.clients: list[Client] = []

    async def connect(self, context: ssl.SSLContext | None = None) -> Client:
        assert self.server.address is not None
        host, port = self.server.address
        tls = context or self.context
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname="localhost" if tls else None)
        self.clients.append(Client(reader, writer))
        return self.clients[-1]

    def refused(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("sprawl_refused_total", {"protocol": "http", "reason": reason}) or 0

    def open(self) -> float:
        return self.metrics.registry.get_sample_value("sprawl_connections", {"protocol": "http"}) or 0


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it holds; the test's own timeout ends it otherwise."""
    while not condition():  # noqa: ASYNC110  # conditions of the world outside, which sets no event
        await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    app: Callable[..., Awaitable[None]],
    *,
    listener: Listener = PLAIN,
    contexts: TlsContexts | None = None,
    context: ssl.SSLContext | None = None,
    websocket: type[asyncio.Protocol] | None = None,
    direct: Direct | None = None,
    **limits: Any,
) -> AsyncIterator[Served]:
    metrics = Metrics()
    server = HttpServer(app, websocket, listener, contexts, msgspec.structs.replace(LimitsSection(), **limits), metrics, direct)
    server.start(bind("http", listener))
    served = Served(server, metrics, context)
    try:
        yield served
    finally:
        for client in served.clients:
            await client.close()
        await server.drain(1)


def tls_contexts(files: CertificateFiles, mode: Any = "server") -> TlsContexts:
    return TlsContexts(files, mode, now, lambda outcome, expires_at_s: None)
