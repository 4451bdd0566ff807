"""Handshakes that are not finished, and a machine that has no more to give."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from gateway.listen import acceptor
from gateway.listen.tls import CertificateFiles
from gateway.settings import Listener
from security.certificates import CertificatePaths
from tests.gateway.listen.served import Served, client_context, serving, tls_contexts, until

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
LISTENER = Listener(port=0)


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def silent(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects and does no handshake."""
    assert served.server.address is not None
    return await asyncio.open_connection(*served.server.address)


async def end_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_an_unfinished_handshake_has_a_deadline(files: CertificateFiles) -> None:
    async with serving(application, listener=LISTENER, contexts=tls_contexts(files), handshake_ms=50) as served:
        reader, writer = await silent(served)
        assert await end_of(reader) == b""
        await until(lambda: served.refused("handshake-failed") == 1)
        assert served.server.connections == 0
        writer.close()


async def test_at_the_bound_the_oldest_makes_room_and_the_honest_come_in(
    files: CertificateFiles, authority: CertificatePaths
) -> None:
    context = client_context(authority)
    async with serving(application, listener=LISTENER, contexts=tls_contexts(files), context=context, handshakes_max=3) as served:
        held = [await silent(served) for _ in range(3)]
        client = await served.connect()
        assert (await client.ask(GET)).status == 200
        assert await end_of(held[0][0]) == b""
        assert served.refused("handshakes") == 1
        client = await served.connect()
        assert (await client.ask(GET)).status == 200
        assert served.refused("handshakes") == 1  # there was room again
        for _, writer in held:
            writer.close()


async def test_plain_http_on_a_tls_port_is_refused_and_counted(files: CertificateFiles) -> None:
    async with serving(application, listener=LISTENER, contexts=tls_contexts(files)) as served:
        reader, writer = await silent(served)
        writer.write(GET)
        assert b"200" not in await end_of(reader)
        await until(lambda: served.refused("handshake-failed") == 1)
        writer.close()


async def test_without_descriptors_it_waits_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Descriptors run out only for the whole process: so the system call is made to fail, once."""
    monkeypatch.setattr(acceptor, "REST_S", 0.02)
    accept, failures = socket.socket.accept, [OSError(errno.EMFILE, "Too many open files")]

    def failing(listening: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return accept(listening)

    async with serving(application) as served:
        monkeypatch.setattr(socket.socket, "accept", failing)
        client = await served.connect()
        assert (await client.ask(GET)).status == 200
        assert served.refused("descriptors") == 1
        assert "Too many open files" in caplog.text


async def test_handshakes_under_way_end_with_the_listener(files: CertificateFiles) -> None:
    async with serving(application, listener=LISTENER, contexts=tls_contexts(files)) as served:
        reader, writer = await silent(served)
        await asyncio.sleep(0.02)
        await served.server.stop_accepting()
        assert await end_of(reader) == b""
        writer.close()
