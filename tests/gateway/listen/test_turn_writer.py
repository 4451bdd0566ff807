"""What is written in one turn of the loop goes together; nothing is lost or reordered by waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.listen.turn_writer import PENDING_BYTES_MAX, TLS_WRITE_BYTES_MAX, TurnWriter
from tests.gateway.listen.served import serving, until


class Remembering(asyncio.Transport):
    """Keeps what it is told, in order."""

    def __init__(self, *, tls: bool = False) -> None:
        super().__init__({"ssl_object": object()} if tls else None)
        self.told: list[Any] = []
        self.closing = False

    def write(self, data: Any) -> None:
        assert not self.closing
        self.told.append(bytes(data))

    def close(self) -> None:
        self.closing = True
        self.told.append("closed")

    def abort(self) -> None:
        self.closing = True
        self.told.append("aborted")

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 7


@pytest.fixture
def transport() -> Remembering:
    return Remembering()


async def test_writes_of_a_turn_are_one(transport: Remembering) -> None:
    writer = TurnWriter(transport, asyncio.get_running_loop())
    for data in (b"a", b"b", b"c"):
        writer.write(data)
    assert transport.told == []
    assert writer.get_write_buffer_size() == 3 + 7
    await asyncio.sleep(0)
    assert transport.told == [b"abc"]
    writer.write(b"d")
    await asyncio.sleep(0)
    assert transport.told == [b"abc", b"d"]
    assert writer.get_write_buffer_size() == 7


async def test_a_producer_that_never_yields_meets_the_bound(transport: Remembering) -> None:
    writer = TurnWriter(transport, asyncio.get_running_loop())
    for _ in range(10):
        writer.write(bytes(PENDING_BYTES_MAX // 2))
    assert [len(data) for data in transport.told] == [PENDING_BYTES_MAX] * 5


async def test_tls_gets_a_record_at_a_time() -> None:
    """OpenSSL keeps a buffer as large as the largest single write for as long as the connection lasts."""
    transport = Remembering(tls=True)
    writer = TurnWriter(transport, asyncio.get_running_loop())
    data = bytes(range(256)) * 200
    writer.write(data)
    writer.write(b"end")
    await asyncio.sleep(0)
    assert b"".join(transport.told) == data + b"end"
    assert max(len(part) for part in transport.told) == TLS_WRITE_BYTES_MAX


async def test_closing_writes_first(transport: Remembering) -> None:
    writer = TurnWriter(transport, asyncio.get_running_loop())
    writer.write(b"last")
    writer.close()
    await asyncio.sleep(0)
    assert transport.told == [b"last", "closed"]


async def test_aborting_throws_away(transport: Remembering) -> None:
    writer = TurnWriter(transport, asyncio.get_running_loop())
    writer.write(b"last")
    writer.abort()
    await asyncio.sleep(0)
    assert transport.told == ["aborted"]


async def test_what_comes_after_the_end_is_dropped(transport: Remembering) -> None:
    writer = TurnWriter(transport, asyncio.get_running_loop())
    transport.close()
    writer.write(b"late")
    await asyncio.sleep(0)
    assert transport.told == ["closed"]


async def test_the_head_of_an_answer_does_not_wait_for_its_body() -> None:
    """An event stream says 200 at once, its first event may be minutes away."""
    go_on = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"event"})

    async with serving(stream) as served:
        client = await served.connect()
        client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        go_on.set()
        assert await client.reader.readuntil(b"0\r\n\r\n") == b"5\r\nevent\r\n0\r\n\r\n"
        await client.close()
        await until(lambda: served.open() == 0)
