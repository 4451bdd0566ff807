"""Where it listens, what it refuses to be, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from gateway.listen.errors import AddressUnusable, ListenerExposed, PortInUse
from gateway.listen.server import HttpServer, bind
from gateway.listen.tls import CertificateFiles
from gateway.observe.metrics import Metrics
from gateway.settings import LimitsSection, Listener
from tests.gateway.listen.served import PLAIN, serving, tls_contexts, until

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


class Held:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.started, self.go_on, self.cancelled = asyncio.Event(), asyncio.Event(), False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


class TestBinding:
    def test_a_port_in_use_is_named_with_what_to_do(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(PortInUse, match=rf"port {port} on 127\.0\.0\.1 is in use.*set listeners\.http\.port"):
                bind("http", Listener(port=port))

    @pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
    def test_an_address_that_is_not_ours_is_named(self, host: str) -> None:
        with pytest.raises(AddressUnusable, match=f"cannot listen on {host} port 0"):
            bind("http", Listener(host=host, port=0))

    @pytest.mark.parametrize("exposing", [{"plain": True}, {"anonymous": True}])
    def test_a_name_for_loopback_that_leads_elsewhere_is_refused(
        self, exposing: dict[str, bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        elsewhere = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.1", 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: elsewhere)
        with pytest.raises(ListenerExposed, match="loopback only"):
            bind("http", Listener(host="localhost", port=0, **exposing))

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
    def test_port_0_takes_a_free_one(self, host: str) -> None:
        with bind("http", Listener(host=host, port=0, plain=True)) as listening:
            assert listening.getsockname()[1] > 0

    async def test_tls_cannot_be_forgotten(self, files: CertificateFiles) -> None:
        for listener, contexts in ((Listener(port=0), None), (PLAIN, tls_contexts(files))):
            with pytest.raises(ValueError, match="exactly when it is not plain"):
                HttpServer(Held(), None, listener, contexts, LimitsSection(), Metrics())

    @pytest.mark.parametrize("exposing", [{"plain": True}, {"plain": True, "anonymous": True}])
    async def test_a_plain_or_anonymous_listener_warns(self, exposing: dict[str, bool], caplog: pytest.LogCaptureFixture) -> None:
        async with serving(Held(), listener=Listener(port=0, **exposing)):
            assert f"is {' and '.join(exposing)}: for development only" in caplog.text


class TestConnections:
    async def test_a_vanished_peer_is_found_by_what_it_does_not_acknowledge(self) -> None:
        async with serving(Held(), write_stall_ms=12_345) as served:
            await served.connect()
            await until(lambda: served.server.connections == 1)
            (connection,) = served.server._connections
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_345

    async def test_a_mistake_with_one_leaves_the_others_their_deadlines(self, caplog: pytest.LogCaptureFixture) -> None:
        async with serving(Held(), request_head_ms=40) as served:
            spoilt, other = await served.connect(), await served.connect()
            await until(lambda: served.server.connections == 2)
            first = next(iter(served.server._connections))
            first.deadline = None
            assert [await client.rest() for client in (spoilt, other)] == [b"", b""]
            assert served.refused("head-timeout") == 1
            assert "it is cut" in caplog.text


class TestDraining:
    async def test_nobody_new_comes_in_and_the_idle_are_closed(self) -> None:
        application = Held()
        application.go_on.set()
        async with serving(application) as served:
            client = await served.connect()
            assert (await client.ask(GET)).status == 200
            assert await served.server.drain(5_000) == 0
            assert await client.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                await served.connect()

    async def test_a_request_under_way_is_answered_and_then_the_connection_ends(self) -> None:
        application = Held()
        async with serving(application) as served:
            client = await served.connect()
            client.send(GET)
            await application.started.wait()
            draining = asyncio.create_task(served.server.drain(5_000))
            await until(lambda: served.server._acceptor is None)
            assert not draining.done()
            application.go_on.set()
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await draining == 0

    async def test_what_does_not_end_is_cut(self) -> None:
        application = Held()
        async with serving(application) as served:
            clients = [await served.connect() for _ in range(3)]
            for client in clients:
                client.send(GET)
            await until(lambda: len(served.server._state.tasks) == 3)
            assert await served.server.drain(20) == 3
            assert application.cancelled
            assert b"200 OK" not in await clients[0].rest()
            assert served.server.connections == 0

    async def test_stopping_a_listener_that_never_started_is_nothing(self) -> None:
        assert await HttpServer(Held(), None, PLAIN, None, LimitsSection(), Metrics()).drain(1) == 0
