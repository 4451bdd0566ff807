"""Over TLS everything comes through one lent buffer: whole, in order, and to the right connection."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from gateway.listen.buffered import BUFFER_BYTES
from gateway.listen.tls import CertificateFiles
from gateway.settings import Listener
from security.certificates import CertificatePaths
from tests.gateway.listen.served import client_context, serving, tls_contexts

LISTENER = Listener(port=0)


async def digesting(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the SHA-256 of the body."""
    digest = hashlib.sha256()
    while True:
        message = await receive()
        digest.update(message.get("body", b""))
        if not message.get("more_body", False):
            break
    body = digest.hexdigest().encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"64")]})
    await send({"type": "http.response.body", "body": body})


async def test_bodies_of_all_sizes_of_many_connections_at_once(files: CertificateFiles, authority: CertificatePaths) -> None:
    context = client_context(authority)
    sizes = (0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 1_000_003)
    async with serving(digesting, listener=LISTENER, contexts=tls_contexts(files), context=context) as served:

        async def upload(number: int) -> None:
            client = await served.connect()
            for size in sizes:
                body = hashlib.shake_128(b"%d" % number).digest(size)
                answer = await client.ask(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body)
                assert answer.body == hashlib.sha256(body).hexdigest().encode()

        await asyncio.gather(*(upload(number) for number in range(8)))


class Counting(asyncio.Protocol):
    """Stands where the WebSocket protocol stands: answers each read with the bytes so far."""

    def __init__(self, config: Any, server_state: Any, app_state: Any) -> None:
        self.connections, self.size = server_state.connections, 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"GET"):
            self.size += len(data)
            self.transport.write(b"%d\n" % self.size)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    def shutdown(self) -> None:
        self.transport.close()


async def test_a_protocol_that_takes_over_is_served_by_it_too(files: CertificateFiles, authority: CertificatePaths) -> None:
    context = client_context(authority)
    contexts = tls_contexts(files)
    async with serving(digesting, listener=LISTENER, contexts=contexts, context=context, websocket=Counting) as served:
        client = await served.connect()
        client.send(b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        for size in (1, 10, 100):
            await asyncio.sleep(0.02)
            client.send(bytes(size))
        while await client.reader.readline() != b"111\n":
            pass
        assert served.server.connections == 1
