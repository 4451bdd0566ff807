"""The guard against DNS rebinding."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.listen.hosts import Hosts
from gateway.settings import Listener
from tests.gateway.listen.served import serving

OURS = [b"localhost", b"LOCALHOST:8080", b"127.0.0.1", b"127.0.0.1:1", b"127.9.9.9", b"[::1]", b"[::1]:443", b"box.internal:80"]
THEIRS = [
    b"",
    b"evil.example",
    b"evil.example:8443",
    b"localhost.evil.example",
    b"127.0.0.1.evil.example",
    b"127.0.0.1@evil.example",
    b"localhost, evil.example",
    b"localhost evil.example",
    b"localhost:evil",
    b"0.0.0.0",
    b"[::]",
    b"10.0.0.1",
    b"::1",
    b"[::ffff:10.0.0.1]",
    b"2130706433",
    b"\xff",
    b"x" * 10_000,
]


def hosts() -> Hosts:
    found = Hosts.of(Listener(plain=True, hosts=("Box.internal",)))
    assert found is not None
    return found


@pytest.mark.parametrize("name", OURS)
def test_names_of_ours(name: bytes) -> None:
    assert hosts().allow([name])


@pytest.mark.parametrize("name", THEIRS)
def test_names_of_others(name: bytes) -> None:
    assert not hosts().allow([name])


def test_there_is_exactly_one() -> None:
    assert not hosts().allow([])
    assert not hosts().allow([b"localhost", b"localhost"])


def test_only_listeners_that_nothing_else_guards_look() -> None:
    assert Hosts.of(Listener()) is None
    assert Hosts.of(Listener(tls="mutual")) is None
    assert Hosts.of(Listener(anonymous=True)) is not None


async def answer_nothing(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def test_on_the_wire() -> None:
    rows = (
        (b"Host: localhost\r\n", 204),
        (b"Host: a\r\n", 204),  # PLAIN names it
        (b"Host: evil.example\r\n", 421),
        (b"", 421),
        (b"Host: localhost\r\nHost: evil.example\r\n", 421),
        (b"Host: evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 421),
    )
    async with serving(answer_nothing) as served:
        for head, status in rows:
            client = await served.connect()
            answer = await client.ask(b"GET /x HTTP/1.1\r\n" + head + b"\r\n")
            assert answer.status == status, head
            await client.close()
        assert served.refused("host-refused") == 4
