"""A real socket each: what the listener gives to the application, and what a client may not do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.listen import acceptor
from gateway.listen.tls import CertificateFiles
from gateway.settings import Listener
from security.certificates import CertificatePaths
from tests.gateway.listen.served import PLAIN, client_context, serving, tls_contexts, until

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
LONG = 60_000


def post(size: int, body: bytes = b"") -> bytes:
    return b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body


class Application:
    """Answers with the size of the body; remembers scopes and what it was told of clients that went away."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.disconnects = 0
        self.hold: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        if self.hold is not None:
            await self.hold.wait()
        body = b"%d" % size
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


class TestOrdinaryRequests:
    async def test_a_connection_serves_request_after_request(self) -> None:
        async with serving(Application()) as served:
            client = await served.connect()
            for size in (0, 5, 100_000):
                answer = await client.ask(post(size, bytes(size)))
                assert (answer.status, answer.body) == (200, b"%d" % size)
                assert answer.headers["date"].endswith("GMT")
                assert "server" not in answer.headers
            assert served.open() == 1
            await client.close()
            await until(lambda: served.open() == 0)

    async def test_the_application_learns_peer_and_listener(self) -> None:
        application = Application()
        async with serving(application) as served:
            client = await served.connect()
            await client.ask(GET)
            known = application.scopes[0]["extensions"]["sprawl"]
            host, port = client.writer.get_extra_info("sockname")
            assert known == {"peer": f"{host}:{port}", "client_certificate": None, "listener": PLAIN}

    async def test_a_request_may_come_byte_by_byte(self) -> None:
        async with serving(Application()) as served:
            client = await served.connect()
            for byte in post(3, b"abc"):
                client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await client.answer()).body == b"3"

    async def test_pipelined_requests_are_answered_in_their_order(self) -> None:
        async with serving(Application()) as served:
            client = await served.connect()
            client.send(b"".join(post(size, bytes(size)) for size in range(20)))
            assert [(await client.answer()).body for _ in range(20)] == [b"%d" % size for size in range(20)]

    async def test_expect_continue_is_answered(self) -> None:
        async with serving(Application()) as served:
            client = await served.connect()
            client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert (await client.ask(b"ab")).body == b"2"


class TestClientsThatTakeTheirTime:
    async def test_a_head_that_drips_is_told_408(self) -> None:
        async with serving(Application(), request_head_ms=60, linger_ms=40) as served:
            client = await served.connect()
            client.send(b"GET /x HTTP/1.1\r\n")
            answering = asyncio.create_task(client.answer())
            while not answering.done():
                client.send(b"X-Slow: 1\r\n")
                await asyncio.sleep(0.01)
            answer = answering.result()
            assert (answer.status, answer.problem, answer.headers["connection"]) == (408, "head-timeout", "close")
            assert await client.rest() == b""
            assert served.refused("head-timeout") == 1

    async def test_one_that_never_says_a_word_is_just_closed(self) -> None:
        async with serving(Application(), request_head_ms=40) as served:
            client = await served.connect()
            assert await client.rest() == b""
            assert served.refused("head-timeout") == 1

    async def test_the_second_request_of_a_connection_has_a_deadline_too(self) -> None:
        async with serving(Application(), request_head_ms=40, linger_ms=40) as served:
            client = await served.connect()
            await client.ask(GET)
            assert (await client.ask(b"GET /x HT")).problem == "head-timeout"

    async def test_an_idle_connection_is_closed(self) -> None:
        async with serving(Application(), keep_alive_ms=40) as served:
            client = await served.connect()
            assert (await client.ask(GET)).status == 200
            assert await client.rest() == b""
            assert served.refused("head-timeout") == 0

    async def test_a_body_that_pauses_is_told_408_and_the_application_finds_the_client_gone(self) -> None:
        application = Application()
        async with serving(application, request_body_ms=40, linger_ms=40) as served:
            client = await served.connect()
            answer = await client.ask(post(10, b"abc"))
            assert (answer.status, answer.problem) == (408, "body-timeout")
            assert await client.rest() == b""
            assert application.disconnects == 1

    async def test_a_body_that_drips_has_an_end_in_all(self) -> None:
        async with serving(Application(), request_body_ms=LONG, request_total_ms=60, linger_ms=40) as served:
            client = await served.connect()
            client.send(post(1_000_000))
            answering = asyncio.create_task(client.answer())
            while not answering.done():
                client.send(b"x")
                await asyncio.sleep(0.005)
            assert answering.result().problem == "body-timeout"

    async def test_a_client_is_not_blamed_for_a_slow_application(self) -> None:
        """Beyond 64 KiB unread bytes the server stops reading: the body then pauses because of us."""
        started, go_on = asyncio.Event(), asyncio.Event()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            started.set()
            await go_on.wait()
            await Application()(scope, receive, send)

        async with serving(application, request_body_ms=50) as served:
            client = await served.connect()
            client.send(post(1_000_000, bytes(1_000_000)))
            await started.wait()
            await asyncio.sleep(0.2)  # four times the deadline
            go_on.set()
            assert (await client.answer()).body == b"1000000"

    async def test_a_client_that_reads_nothing_is_cut(self) -> None:
        async def endless(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(1_000):
                await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
                await asyncio.sleep(0)

        async with serving(endless, write_stall_ms=40) as served:
            client = await served.connect()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(GET)
            await until(lambda: served.refused("write-stalled") == 1)
            await until(lambda: served.open() == 0)


class TestHeadsThatAreTooLarge:
    @pytest.mark.parametrize(
        "head",
        [
            b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 2_000),
            b"GET /x HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"x" * 2_000),
            b"GET /x HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"x" * 90) for n in range(20)) + b"\r\n",
            b"GET /x HTTP/1.1\r\n" + b"".join(b"X-%d: \r\n" % n for n in range(30)) + b"\r\n",
            b"GET /x HTTP/1.1\r\nX: " + b"x" * 2_000,  # and never ends
            b"GET /" + b"x" * 2_000,
            b"GET /x HTTP/1.1\r\n" + b"x" * 2_000,
        ],
        ids=["path", "value", "sum", "count", "value without end", "path without end", "name without end"],
    )
    async def test_is_told_431(self, head: bytes) -> None:
        async with serving(Application(), head_bytes_max=1_000, headers_max=25, linger_ms=40) as served:
            client = await served.connect()
            answer = await client.ask(head)
            assert (answer.status, answer.problem) == (431, "head-too-large")
            assert await client.rest() == b""
            assert served.refused("head-too-large") == 1

    async def test_trailers_count_with_the_head(self) -> None:
        async with serving(Application(), head_bytes_max=1_000, linger_ms=40) as served:
            client = await served.connect()
            client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
            assert (await client.ask(b"X: %s\r\n\r\n" % (b"x" * 2_000))).problem == "head-too-large"

    async def test_chunk_extensions_do_not_go_on_for_ever(self) -> None:
        async with serving(Application(), head_bytes_max=1_000, linger_ms=40) as served:
            client = await served.connect()
            client.send(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;")
            answering = asyncio.create_task(client.answer())
            while not answering.done():
                client.send(b"x" * 400)
                await asyncio.sleep(0.001)
            assert answering.result().problem == "head-too-large"

    async def test_the_answer_is_not_lost_however_much_more_is_sent(self) -> None:
        async with serving(Application(), head_bytes_max=1_000, linger_ms=2_000) as served:
            client = await served.connect()
            client.send(b"GET /" + b"x" * 3_000_000)
            assert (await client.answer()).status == 431


class TestRequestsThatAreNone:
    @pytest.mark.parametrize(
        "data",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET\r\n\r\n",
            b"GET /x HTTP/1.1\r\nHost : a\r\n\r\n",
            b"GET /x HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
            b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /x HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        ],
        ids=["TLS", "no target", "space in name", "two lengths", "smuggling", "chunk size", "path not ASCII", "NUL"],
    )
    async def test_are_told_400(self, data: bytes) -> None:
        async with serving(Application(), linger_ms=40) as served:
            client = await served.connect()
            answer = await client.ask(data)
            assert (answer.status, answer.problem) == (400, "request-malformed")
            assert await client.rest() == b""
            assert served.refused("request-malformed") == 1

    async def test_an_upgrade_that_is_not_known_is_left_alone(self) -> None:
        async with serving(Application()) as served:
            client = await served.connect()
            answer = await client.ask(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await client.rest() == b""

    async def test_more_pipelined_requests_than_allowed_end_the_connection(self) -> None:
        application = Application()
        application.hold = asyncio.Event()
        async with serving(application, pipelined_max=3) as served:
            client = await served.connect()
            client.send(GET * 10)
            assert await client.rest() == b""
            assert served.refused("pipelined") == 1
            application.hold.set()


class TestHalfClosedSockets:
    async def test_who_has_sent_all_still_gets_the_answer(self) -> None:
        application = Application()
        application.hold = asyncio.Event()
        async with serving(application) as served:
            client = await served.connect()
            client.send(post(3, b"abc"))
            client.writer.write_eof()
            await until(lambda: bool(application.scopes))
            application.hold.set()
            assert (await client.answer()).body == b"3"
            assert await client.rest() == b""

    @pytest.mark.parametrize("length", range(1, len(post(3, b"abc"))))
    async def test_who_has_not_is_told_400(self, length: int) -> None:
        application = Application()
        async with serving(application) as served:
            client = await served.connect()
            client.send(post(3, b"abc")[:length])
            client.writer.write_eof()
            assert (await client.answer()).problem == "request-cut-off"
            assert await client.rest() == b""
            await until(lambda: served.open() == 0)
            assert application.disconnects == len(application.scopes)

    async def test_who_says_nothing_is_just_closed(self) -> None:
        async with serving(Application()) as served:
            client = await served.connect()
            client.writer.write_eof()
            assert await client.rest() == b""
            assert served.refused("request-cut-off") == 0

    async def test_with_tls_the_connection_ends(self, files: CertificateFiles, authority: CertificatePaths) -> None:
        application = Application()
        context = client_context(authority)
        async with serving(application, listener=Listener(port=0), contexts=tls_contexts(files), context=context) as served:
            client = await served.connect()
            client.send(post(10, b"abc"))
            await until(lambda: bool(application.scopes))
            await client.close()
            await until(lambda: application.disconnects == 1)
            assert served.open() == 0


class TestTooManyConnections:
    async def test_one_more_is_told_503_and_has_a_place_when_another_left(self) -> None:
        async with serving(Application(), connections_max=2, linger_ms=40) as served:
            first, second = await served.connect(), await served.connect()
            assert [(await client.ask(GET)).status for client in (first, second)] == [200, 200]
            surplus = await served.connect()
            answer = await surplus.ask(GET)
            assert (answer.status, answer.problem, answer.headers["retry-after"]) == (503, "connections", "1")
            assert await surplus.rest() == b""
            assert served.refused("connections") == 1
            assert (await second.ask(GET)).status == 200
            await first.close()
            await until(lambda: served.open() == 1)
            assert (await (await served.connect()).ask(GET)).status == 200

    async def test_far_more_are_closed_without_a_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(acceptor, "SURPLUS_MAX", 1)
        async with serving(Application(), connections_max=1) as served:
            clients = [await served.connect() for _ in range(2)]
            await until(lambda: served.open() == 2)
            assert await (await served.connect()).rest() == b""
            assert served.refused("connections") == 1
            assert [(await client.ask(GET)).status for client in clients] == [200, 503]


class TestAnswersBeforeTheEndOfTheBody:
    async def test_the_rest_is_thrown_away_and_the_connection_goes_on(self) -> None:
        async def refusing(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

        async with serving(refusing) as served:
            client = await served.connect()
            assert (await client.ask(post(5, b"ab"))).status == 413
            client.send(b"cde")
            assert (await client.ask(GET)).status == 413

    async def test_but_not_for_long(self) -> None:
        async def refusing(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

        async with serving(refusing, linger_ms=40) as served:
            client = await served.connect()
            assert (await client.ask(post(10_000_000, b"ab"))).status == 413
            assert await client.rest() == b""


class TestClientCertificates:
    async def test_the_application_gets_the_certificate(
        self, files: CertificateFiles, authority: CertificatePaths, tmp_path: Path
    ) -> None:
        application = Application()
        listener = Listener(port=0, tls="mutual")
        context = client_context(authority, tmp_path)
        async with serving(application, listener=listener, contexts=tls_contexts(files, "mutual"), context=context) as served:
            client = await served.connect()
            assert (await client.ask(GET)).status == 200
            certificate = application.scopes[0]["extensions"]["sprawl"]["client_certificate"]
            assert b"device-7" in certificate

    @pytest.mark.parametrize(("mode", "served_at_all"), [("server", True), ("mutual-optional", True), ("mutual", False)])
    async def test_who_has_none(
        self, mode: Any, served_at_all: bool, files: CertificateFiles, authority: CertificatePaths
    ) -> None:
        application = Application()
        listener = Listener(port=0, tls=mode)
        context = client_context(authority)
        async with serving(application, listener=listener, contexts=tls_contexts(files, mode), context=context) as served:
            client = await served.connect()
            client.send(GET)
            if served_at_all:
                assert (await client.answer()).status == 200
                assert application.scopes[0]["extensions"]["sprawl"]["client_certificate"] is None
            else:
                assert await client.rest() == b""
                assert application.scopes == []
                assert served.refused("handshake-failed") == 1

    async def test_a_context_that_forgot_to_ask_lets_nobody_in(
        self, files: CertificateFiles, authority: CertificatePaths
    ) -> None:
        """The other side of the boundary: the listener is mutual, its TLS is not."""
        application = Application()
        listener = Listener(port=0, tls="mutual")
        context = client_context(authority)
        async with serving(application, listener=listener, contexts=tls_contexts(files, "server"), context=context) as served:
            client = await served.connect()
            client.send(GET)
            assert await client.rest() == b""
            assert application.scopes == []
            assert served.refused("client-certificate-missing") == 1


class Echo(asyncio.Protocol):
    """Stands where the WebSocket protocol stands: tells what it was given."""

    def __init__(self, config: Any, server_state: Any, app_state: Any) -> None:
        self.connections, self.app_state = server_state.connections, app_state

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.connections.add(self)

    def data_received(self, data: bytes) -> None:
        told = {"peer": self.app_state["sprawl"]["peer"], "head": data.decode()}
        self.transport.write(json.dumps(told).encode() + b"\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    def shutdown(self) -> None:
        self.transport.close()


async def test_a_websocket_handshake_is_handed_over_with_what_is_known_of_the_connection() -> None:
    application = Application()
    async with serving(application, websocket=Echo, request_head_ms=40, keep_alive_ms=40) as served:
        client = await served.connect()
        assert (await client.ask(GET)).status == 200
        client.send(b"GET /v1/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        told = json.loads(await client.reader.readline())
        assert told["peer"].startswith("127.0.0.1:")
        assert told["head"].startswith("GET /v1/ws HTTP/1.1\r\nhost: a\r\n")
        await asyncio.sleep(0.1)  # the deadlines of HTTP are over, and not its own
        client.send(b"frame")
        assert json.loads(await client.reader.readline())["head"] == "frame"
        assert served.server.connections == 1
        assert served.open() == 0
