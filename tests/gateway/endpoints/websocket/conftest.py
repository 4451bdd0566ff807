"""A real listener on a free loopback port, over a real engine, on uvloop as in production; and clients, well-behaved and rude.

The well-behaved one is the `websockets` library, a foreign implementation: its version is printed in the report's head.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import uvloop
import websockets
from websockets.asyncio.client import ClientConnection, connect

from broker.broker import Broker, BrokerOptions
from broker.delivery.consumers import Consumers
from broker.engine.embedded import EmbeddedEngine
from broker.machine import MachineClock, MachineRandom
from gateway.endpoints.send_buffers import SendBuffers
from gateway.endpoints.websocket import make_websocket_protocol
from gateway.endpoints.websocket_options import WebSocketOptions
from gateway.listen.server import HttpServer, bind
from gateway.listen.tls import CertificateFiles, TlsContexts
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline, PipelineOptions
from gateway.settings import LimitsSection, Listener
from security.certificates import CertificatePaths, ensure_development_ca, issue_client
from security.identity.chain import Chain
from security.identity.mtls import CertificateProvider
from security.identity.tokens import TokenProvider, TokenStore
from security.policy.model import Scope
from security.policy.quotas import Quotas
from security.policy.rbac import PolicyEngine, policy_from_mapping

POLICY = {
    "roles": {
        "eu-reader": [{"actions": ["read"], "topic": "orders", "key": "eu/*"}],
        "eu-writer": [{"actions": ["publish"], "topic": "orders", "key": "eu/*"}],
    },
    "bindings": [{"role": "admin", "principals": ["cert:device-7"]}],
}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_report_header(config: pytest.Config) -> str:
    return f"foreign WebSocket client: websockets {websockets.__version__}"


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until it holds; the test's own timeout ends it otherwise."""
    while not condition():  # noqa: ASYNC110  # nobody sets an event for it
        await asyncio.sleep(0.005)


async def not_found(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Client:
    """The foreign client, speaking JSON."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, *operations: Any) -> None:
        for operation in operations:
            await self.connection.send(operation if isinstance(operation, str | bytes) else json.dumps(operation))

    async def hear(self) -> dict[str, Any]:
        message = await self.connection.recv()
        assert isinstance(message, str)
        return json.loads(message)

    async def ask(self, operation: Any) -> dict[str, Any]:
        await self.say(operation)
        return await self.hear()

    async def subscribe(self, **members: Any) -> dict[str, Any]:
        answer = await self.ask({"op": "subscribe", **members})
        assert answer["op"] == "subscribed", answer
        return answer

    async def records(self, count: int) -> list[dict[str, Any]]:
        """The records of the next `records` messages, until there are so many."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            message = await self.hear()
            assert message["op"] == "records", message
            found += message["records"]
        return found

    async def closed(self) -> tuple[int, str]:
        """Wait for the end; whatever still comes is thrown away."""
        try:
            while True:
                await self.connection.recv()
        except websockets.ConnectionClosed:
            assert self.connection.close_code is not None
            return self.connection.close_code, self.connection.close_reason or ""


class RawClient:
    """One TCP connection, spoken to in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        first, size = await self.reader.readexactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(size)

    async def closed(self) -> tuple[int, str]:
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                return struct.unpack("!H", payload[:2])[0], payload[2:].decode()

    async def rest(self) -> bytes:
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


class Node:
    """Engine, pipeline and listener. `tokens` are made on demand, by role."""

    def __init__(self, engine: EmbeddedEngine, store: TokenStore, options: WebSocketOptions, metrics: Metrics) -> None:
        self.engine, self.store, self.options, self.metrics = engine, store, options, metrics
        self.clock = MachineClock()
        self.policy = PolicyEngine(policy_from_mapping(POLICY))
        self.quotas = Quotas({})
        self.audited: list[tuple[Any, ...]] = []
        chain = Chain([TokenProvider(store), CertificateProvider([], self.clock.now_ms)])
        audit = SimpleNamespace(record=lambda *entry: self.audited.append(entry))
        self.consumers = Consumers(engine, self.clock, MachineRandom())
        broker = Broker(engine, self.clock, BrokerOptions(), self.consumers)
        self.pipeline = Pipeline(broker, self.policy, chain, self.quotas, audit, self.clock, metrics, PipelineOptions())
        self.server: HttpServer
        self.buffers: SendBuffers
        self.context: ssl.SSLContext | None = None
        self._tokens: dict[tuple[str, ...], str] = {}
        self._raw: list[RawClient] = []

    @property
    def url(self) -> str:
        assert self.server.address is not None
        return f"{'wss' if self.context else 'ws'}://localhost:{self.server.address[1]}/v1/ws"

    def token(self, *roles: str, scopes: list[str] | None = None, ttl_ms: int | None = None) -> str:
        parsed = None if scopes is None else [Scope.parse(scope) for scope in scopes]
        return self.store.create("test", roles or ("admin",), parsed, ttl_ms)[0]

    def revoke(self, token: str) -> None:
        self.store.revoke(token.split("_")[1])

    @asynccontextmanager
    async def anybody(self, **options: Any) -> AsyncIterator[Client]:
        """Connected, without having said who it is.

        It takes all that comes, unless told otherwise: with a full queue the library does not read the end of a close handshake.
        """
        fixed: dict[str, Any] = {"ssl": self.context, "compression": None, "max_queue": None}
        async with connect(self.url, **(fixed | options)) as connection:
            yield Client(connection)

    @asynccontextmanager
    async def client(self, token: str | None = None, **options: Any) -> AsyncIterator[Client]:
        """Authenticated at the handshake; `ready` has been heard."""
        role = ("admin",)
        if token is None:
            token = self._tokens[role] = self._tokens.get(role) or self.token(*role)
        headers = {"Authorization": f"Bearer {token}"}
        async with self.anybody(additional_headers=headers, **options) as client:
            ready = await client.hear()
            assert ready["op"] == "ready", ready
            yield client

    async def raw(self, **headers: str) -> RawClient:
        """Upgraded and authenticated as admin, then spoken to in bytes."""
        client = await self.tcp()
        client.send(upgrade(Authorization=f"Bearer {self.token()}", **headers))
        answer = await client.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        opcode, payload = await client.frame()
        assert (opcode, json.loads(payload)["op"]) == (1, "ready")
        return client

    async def tcp(self) -> RawClient:
        assert self.server.address is not None
        reader, writer = await asyncio.open_connection(
            *self.server.address, ssl=self.context, server_hostname="localhost" if self.context else None
        )
        self._raw.append(RawClient(reader, writer))
        return self._raw[-1]

    async def publish(self, topic: str, count: int, *, size: int = 100, first: int = 0, batch: int = 100) -> None:
        """Beside the listener: records with text values `<number>|xxx`, keys k0 to k9, in batches."""
        from broker.broker import Outgoing

        for start in range(first, first + count, batch):
            records = [
                Outgoing(b"k%d" % (number % 10), b"%d|" % number + b"x" * size, partition=0)
                for number in range(start, min(start + batch, first + count))
            ]
            await self.pipeline.broker.publish(topic, records, durable=True, auto_create=True)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"sprawl_{name}", {"protocol": "websocket", **labels}) or 0

    def close_raw(self) -> None:
        for client in self._raw:
            client.writer.transport.abort()


def upgrade(path: str = "/v1/ws", **headers: str) -> bytes:
    fixed = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in (fixed | headers).items()]
    return (f"GET {path} HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A client's frame with the mask 0, which leaves the payload as it is."""
    size = len(payload)
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += struct.pack("!BH", 0xFE, size)
    else:
        head += struct.pack("!BQ", 0xFF, size)
    return head + bytes(4) + payload


StartNode = Callable[..., Any]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificatePaths:
    return ensure_development_ca(tmp_path_factory.mktemp("certs"), [], datetime.now(UTC))


@pytest.fixture
async def start_node(engine: EmbeddedEngine, tmp_path: Path, authority: CertificatePaths) -> AsyncIterator[StartNode]:
    """`await start_node(tls=False, anonymous=False, **options)`: a node whose limits are the test's."""
    started: list[Node] = []

    async def start(
        *,
        tls: bool = False,
        mutual: bool = False,
        anonymous: bool = False,
        send_buffers_bytes_max: int = 256 * 1024 * 1024,
        **options: Any,
    ) -> Node:
        metrics = Metrics()
        store = TokenStore(tmp_path / f"tokens{len(started)}.json", MachineClock().now_ms, os.urandom)
        node = Node(engine, store, WebSocketOptions(**options), metrics)
        node.buffers = SendBuffers(send_buffers_bytes_max)
        contexts = None
        if tls or mutual:
            files = CertificateFiles(authority.server, authority.server_key, authority.ca)
            mode: Any = "mutual-optional" if mutual else "server"
            contexts = TlsContexts(files, mode, lambda: datetime.now(UTC), lambda outcome, expires_at_s: None)
            node.context = ssl.create_default_context(cafile=str(authority.ca))
            if mutual:
                certificate, key = issue_client(authority, "device-7", 1, datetime.now(UTC))
                (tmp_path / "client.pem").write_bytes(certificate + key)
                node.context.load_cert_chain(tmp_path / "client.pem")
        listener = Listener(port=0, plain=contexts is None, anonymous=anonymous, tls="mutual-optional" if mutual else "server")
        websocket = make_websocket_protocol(node.pipeline, metrics, node.options, node.buffers)
        node.server = HttpServer(not_found, websocket, listener, contexts, msgspec.structs.replace(LimitsSection()), metrics)
        node.server.start(bind("http", listener))
        started.append(node)
        return node

    yield start
    for node in started:
        node.close_raw()
        await node.server.drain(2_000)


@pytest.fixture
async def node(start_node: StartNode) -> Node:
    made: Node = await start_node()
    return made
