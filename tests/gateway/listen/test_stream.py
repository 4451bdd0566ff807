"""The listener of protocols that are not HTTP: it begins connections, looks at their deadlines, and ends in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gateway.listen.connections import Connections
from gateway.listen.server import bind
from gateway.listen.stream import StreamServer
from gateway.observe.metrics import Metrics
from gateway.settings import KafkaListener, LimitsSection

PLAIN = KafkaListener(port=0, plain=True)


class Echo(asyncio.Protocol):
    """Says back what it is told. `stubborn`: it does not end when it is asked to."""

    stubborn = False
    broken = False

    def __init__(self, connections: Connections, begun: Callable[[], None]) -> None:
        self.connections, self.begun = connections, begun
        self.checks = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.begun()
        self.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    def check(self, now: float) -> None:
        self.checks += 1
        if self.broken:
            raise RuntimeError("a mistake of ours")

    def shutdown(self) -> None:
        if not self.stubborn:
            self.transport.close()


class Stubborn(Echo):
    stubborn = True


class Broken(Echo):
    broken = True


async def started(kind: type[Echo] = Echo, **limits: int) -> StreamServer:
    made = msgspec.structs.replace(LimitsSection(), **limits)
    server = StreamServer("kafka", kind, PLAIN, None, made, Metrics())
    server.start(bind("kafka", PLAIN))
    return server


async def connected(server: StreamServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    assert server.address is not None
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(b"x")
    assert await reader.read(1) == b"x"
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_serves_and_looks_at_deadlines() -> None:
    server = await started()
    _, writer = await connected(server)
    (connection,) = server.connections
    while not connection.checks:  # noqa: ASYNC110  the listener's own clock
        await asyncio.sleep(0.01)
    assert await server.drain(1_000) == 0
    assert not server.connections
    writer.close()


async def test_what_does_not_end_is_cut() -> None:
    server = await started(Stubborn)
    reader, writer = await connected(server)
    assert await server.drain(1) == 1
    assert await ended(reader)
    writer.close()


async def test_a_mistake_with_one_connection_is_its_own() -> None:
    server = await started(Broken)
    reader, writer = await connected(server)
    assert await ended(reader)
    writer.close()
    _, another = await connected(server)
    assert await server.drain(1_000) == 0
    another.close()


async def test_accepts_nobody_any_more() -> None:
    server = await started()
    reader, writer = await connected(server)
    await server.stop_accepting()
    with pytest.raises(ConnectionError):
        await connected(server)
    writer.write(b"still")
    assert await reader.read(5) == b"still"
    await server.drain(1_000)
    writer.close()


def test_tls_goes_with_contexts() -> None:
    with pytest.raises(ValueError, match="not plain"):
        StreamServer("kafka", Echo, KafkaListener(port=0), None, LimitsSection(), Metrics())
