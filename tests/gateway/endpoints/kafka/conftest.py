"""A whole node on free ports, with a Kafka listener that is plain, and clients of it that speak the protocol through kio alone.

client = await kafka.client()                      the admin's; `token=""` for one without credentials
answer = await client.call(3, 12, topics=None)     api, version, the request's fields -> kio's response entity
kafka.bootstrap                                    for foreign clients, with `kafka.admin` as PLAIN password
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from kio.index import load_request_schema, load_response_schema
from kio.serial import entity_reader, entity_writer

from gateway.app import Node
from gateway.config import load
from security.policy.model import Scope

ROLES = {
    "all": [{"actions": ["publish", "read", "describe", "create", "delete", "alter"], "topic": "*"},
            {"actions": ["group", "transaction"], "topic": "*"}],
    "none": [{"actions": ["describe"], "topic": "elsewhere"}],
    "some-keys": [
        {"actions": ["publish", "read"], "topic": "orders", "key": "eu/*"},
        {"actions": ["describe"], "topic": "orders"},
        {"actions": ["group"], "topic": "*"},
    ],
}  # fmt: skip


class Closed(Exception):
    """The node has closed the connection."""


class RawClient:
    """One connection. `send` and `receive` are its halves, for what is pipelined or malformed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.correlation_id = 0

    async def login(self, token: str, name: str = "token") -> Any:
        """SASL PLAIN; the answer to SaslAuthenticate."""
        await self.call(17, 1, mechanism="PLAIN")
        return await self.call(36, 2, auth_bytes=f"\0{name}\0{token}".encode())

    async def call(self, api: int, version: int, **values: Any) -> Any:
        self.send(api, version, **values)
        return await self.receive(api, version)

    def send(self, api: int, version: int, *, client_id: str | None = "test", **values: Any) -> int:
        """Returns the correlation id."""
        self.correlation_id += 1
        self.write(request_bytes(api, version, self.correlation_id, client_id, **values))
        return self.correlation_id

    def write(self, frame: bytes) -> None:
        self.writer.write(len(frame).to_bytes(4, "big") + frame)

    async def frame(self) -> bytes:
        try:
            size = int.from_bytes(await self.reader.readexactly(4), "big")
            return await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Closed from None

    async def receive(self, api: int, version: int, correlation_id: int | None = None) -> Any:
        frame = await self.frame()
        wanted = self.correlation_id if correlation_id is None else correlation_id
        schema = load_response_schema(api, version)
        assert int.from_bytes(frame[:4], "big") == wanted
        begin = 4 if api == 18 or not schema.__flexible__ else 5
        answer, read = entity_reader(schema)(frame[begin:], 0)
        assert begin + read == len(frame)
        return answer

    async def closed(self) -> bool:
        """Waits until the node has closed the connection; whether it did so without another word."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def request_bytes(api: int, version: int, correlation_id: int, client_id: str | None = "test", **values: Any) -> bytes:
    """Header and body. Structures are given as dictionaries; what is left out takes the schema's default, or its zero."""
    schema = load_request_schema(api, version)
    header = schema.__header_schema__
    head = {"request_api_key": api, "request_api_version": version, "correlation_id": correlation_id, "client_id": client_id}
    buffer = io.BytesIO()
    entity_writer(header)(buffer, header(**head))
    entity_writer(schema)(buffer, made(schema, values))
    return buffer.getvalue()


def made(schema: Any, values: dict[str, Any]) -> Any:
    unknown = set(values) - {field.name for field in fields(schema)}
    assert not unknown, f"{schema.__name__} {schema.__version__} has no {unknown}"
    return schema(**{field.name: _value(field, values) for field in fields(schema) if field.name in values or needs(field)})


def needs(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(field: Any, values: dict[str, Any]) -> Any:
    from datetime import timedelta

    from gateway.wire.kafka.schema import fields_of  # what kio says of its own fields

    plan = next(plan for plan in fields_of(type("One", (), {"__dataclass_fields__": {field.name: field}})))
    value = values.get(field.name, plan.default)
    if plan.kind.startswith("timedelta") and not isinstance(value, timedelta):
        return timedelta(milliseconds=value)
    if value is None or plan.entity is None:
        return tuple(value) if plan.array and value is not None else value
    if plan.array:
        return tuple(made(plan.entity, one) if isinstance(one, dict) else one for one in value)
    return made(plan.entity, value) if isinstance(value, dict) else value


class Kafka:
    """The node and who may use it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        assert node.admin_token is not None
        self.admin = node.admin_token
        self.host, self.port = node.addresses.get("kafka", ("", 0))
        self._clients: list[RawClient] = []

    @property
    def bootstrap(self) -> str:
        return f"{self.host}:{self.port}"

    def token(self, *roles: str, scopes: Sequence[str] | None = None, ttl_ms: int | None = None) -> str:
        """`all`, `none`, `some-keys` (publish and read of `orders`, keys `eu/*`), or a role that every node has."""
        parsed = None if scopes is None else [Scope.parse(scope) for scope in scopes]
        return self.node.tokens.create("test", roles, parsed, ttl_ms)[0]

    async def connect(self) -> RawClient:
        """Nobody yet."""
        client = RawClient(*await asyncio.open_connection(self.host, self.port))
        self._clients.append(client)
        return client

    async def client(self, token: str | None = None) -> RawClient:
        """Logged in with the token, or the admin's; not at all with an empty one."""
        client = await self.connect()
        if token != "":
            answer = await client.login(token or self.admin)
            assert answer.error_code == 0, answer
        return client

    def count(self, name: str, **labels: str) -> float:
        return self.node.metrics.registry.get_sample_value(f"sprawl_{name}", labels) or 0

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


OpenKafka = Callable[..., Any]


@pytest.fixture
async def open_kafka(tmp_path: Path) -> AsyncIterator[OpenKafka]:
    """Starts a node with the test's own settings."""
    opened: list[Kafka] = []

    async def start(**settings: Any) -> Kafka:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        flags = {
            "node.home": str(tmp_path / f"node{len(opened)}"),
            "listeners.http.port": 0,
            "listeners.http.plain": True,
            "listeners.kafka.port": 0,
            "listeners.kafka.plain": True,
            "logging.level": "error",
            "kafka.failed_authentication_ms": 1,
            "policy.roles": ROLES,
        } | named
        node = Node(load(None, {}, flags))
        await node.start()
        opened.append(Kafka(node))
        return opened[-1]

    yield start
    for kafka in opened:
        await kafka.close()
        await kafka.node.stop()


@pytest.fixture
async def kafka(open_kafka: OpenKafka) -> Kafka:
    found: Kafka = await open_kafka()
    return found
