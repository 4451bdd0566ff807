"""The direct path over real sockets: what goes by it, what does not, and that no client can make it differ from the parser."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.listen.direct import BODY_BYTES_MAX, HEAD_BYTES_MAX, HEADS_MAX, Headers, Reply, opening, repeatable
from gateway.listen.server import HttpServer, bind
from gateway.listen.tls import CertificateFiles
from gateway.observe.metrics import Metrics
from gateway.settings import LimitsSection, Listener
from security.certificates import CertificatePaths
from tests.gateway.listen.served import PLAIN, Client, Served, client_context, serving, tls_contexts, until
from tests.gateway.listen.test_http import Application

LONG = 60_000


def post(body: bytes, path: bytes = b"/x", extra: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (path, extra, len(body)) + body


class Echo(Application):
    """Beside ASGI, where the answer is the body's size, it answers directly with the body itself, in capitals."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[bytes] = []
        self.bodies: list[bytes] = []
        self.release: asyncio.Event | None = None

    def prepare(self, method: bytes, url: bytes, headers: Headers, connection: Mapping[str, Any]) -> Echo | None:
        if method != b"POST" or url == b"/asgi":
            return None
        self.prepared.append(url)
        return self

    async def answer(self, body: bytes, reply: Reply) -> None:
        self.bodies.append(body)
        if self.release is not None:
            await self.release.wait()
        reply(201, b"text/plain", body.upper(), ((b"retry-after", b"1"),), "request-1")


def serve(app: Echo, **options: Any) -> Any:
    return serving(app, direct=app, **options)


class TestTheSecondTime:
    async def test_a_head_is_parsed_once_and_then_answered_directly(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await served.connect()
            assert (await client.ask(post(b"abc"))).body == b"3"
            for body in (b"abc", b"defg", b"", b"x" * 50_000):
                answer = await client.ask(post(body))
                assert (answer.status, answer.body) == (201, body.upper())
                assert answer.headers["x-request-id"] == "request-1"
                assert answer.headers["content-type"] == "text/plain"
                assert answer.headers["retry-after"] == "1"
                assert answer.headers["date"].endswith("GMT")
            assert (len(app.scopes), len(app.prepared)) == (1, 1)

    async def test_over_tls(self, authority: CertificatePaths, files: CertificateFiles) -> None:
        app = Echo()
        options = {"listener": Listener(port=0), "contexts": tls_contexts(files), "context": client_context(authority)}
        async with serve(app, **options) as served:
            client = await served.connect()
            await client.ask(post(b"abc"))
            assert (await client.ask(post(b"y" * 60_000))).body == b"Y" * 60_000

    async def test_another_head_and_another_connection_are_parsed(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await served.connect()
            await client.ask(post(b"abc"))
            assert (await client.ask(post(b"abc", extra=b"X: 1\r\n"))).body == b"3"
            assert (await client.ask(post(b"abc"))).body == b"ABC"
            assert (await (await served.connect()).ask(post(b"abc"))).body == b"3"

    async def test_what_the_application_does_not_want_stays_with_asgi(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await served.connect()
            for _ in range(3):
                assert (await client.ask(post(b"abc", b"/asgi"))).body == b"3"
            assert not app.bodies

    async def test_the_heads_remembered_are_bounded(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await served.connect()
            for round_number in range(2):
                for number in range(HEADS_MAX + 2):
                    answer = await client.ask(post(b"abc", b"/%d" % number))
                    known = round_number == 1 and number < HEADS_MAX
                    assert answer.body == (b"ABC" if known else b"3")
            assert len(app.prepared) == HEADS_MAX

    @pytest.mark.parametrize("size", [BODY_BYTES_MAX, BODY_BYTES_MAX + 1, 300_000])
    async def test_a_large_body_is_the_parsers(self, size: int) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await served.connect()
            await client.ask(post(b"abc"))
            answer = await client.ask(post(b"a" * size))
            assert answer.body == (b"A" * size if size <= BODY_BYTES_MAX else b"%d" % size)


class TestPieces:
    @pytest.mark.parametrize("cut", range(1, 80, 3))
    async def test_wherever_the_bytes_are_cut_the_answers_are_right(self, cut: int) -> None:
        """A head in pieces is the parser's, a body in pieces is not; either way the next request is found where it begins."""
        async with serve(Echo()) as served:
            client = await served.connect()
            await client.ask(post(b"abcdefghijklmnopqrst"))
            whole = post(b"abcdefghijklmnopqrst")
            for _ in range(2):
                client.send(whole[:cut])
                await client.writer.drain()
                await asyncio.sleep(0.002)
                client.send(whole[cut:])
                assert (await client.answer()).body in (b"20", b"ABCDEFGHIJKLMNOPQRST")
            assert (await client.ask(whole)).body == b"ABCDEFGHIJKLMNOPQRST"

    async def test_requests_sent_without_waiting_are_answered_in_order(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await served.connect()
            await client.ask(post(b"abc"))
            client.send(b"".join(post(b"r%d" % number) for number in range(20)))
            answers = [(await client.answer()).body for _ in range(20)]
            assert all(body in (b"%d" % len(b"r%d" % n), b"R%d" % n) for n, body in enumerate(answers))

    async def test_what_comes_before_the_answer_waits_for_it(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await served.connect()
            await client.ask(post(b"abc"))
            app.release = asyncio.Event()
            client.send(post(b"one"))
            await until(lambda: app.bodies == [b"one"])
            client.send(post(b"two"))
            await client.writer.drain()
            await asyncio.sleep(0.01)
            client.send(post(b"three"))
            await asyncio.sleep(0.01)
            assert app.bodies == [b"one"]
            app.release.set()
            assert (await client.answer()).body == b"ONE"
            assert [(await client.answer()).body for _ in range(2)] in ([b"TWO", b"THREE"], [b"3", b"5"], [b"TWO", b"5"])

    async def test_half_a_head_that_the_parser_holds_is_finished_by_the_parser(self) -> None:
        """The parser is inside a request that came with the end of another: what follows is no new one, however it looks."""
        app = Echo()
        async with serve(app) as served:
            client = await served.connect()
            known = post(b"abc")
            await client.ask(known)
            client.send(post(b"z" * 70_000) + b"POST /y HTTP/1.1\r\nX: ")
            assert (await client.answer()).body == b"70000"
            answer = await client.ask(known)
            assert answer.body == b"3"
            assert app.scopes[-1]["path"] == "/y"
            assert not app.bodies


class TestHostileHeads:
    HEADERS = ((b"host", b"a"), (b"content-length", b"3"))

    @pytest.mark.parametrize(
        "head",
        [
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
            b"POST /x HTTP/1.1\r\nHost: a\r\nX-Content-Length: 3\r\n\r\nabc",
            b"POST /x HTTP/1.1\r\nHost: a\nContent-Length: 3\r\n\r\nabc",
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3 \r\n\r\nabc",
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n X: folded\r\n\r\nabc",
            b"POST /x HTTP/1.1\nHost: a\nContent-Length: 0\n\nabc\r\nContent-Length: 3\r\n\r\nabc",
        ],
    )
    async def test_are_never_learned(self, head: bytes) -> None:
        app = Echo()
        async with serve(app) as served:
            for _ in range(2):
                client = await served.connect()
                client.send(head)
                client.send(head)
                client.writer.write_eof()
                await client.rest()
            assert not app.bodies

    @pytest.mark.parametrize("size", [0, 1, 20, 30, 45, 60])
    def test_an_opening_is_a_whole_head(self, size: int) -> None:
        whole = post(b"abc")
        assert opening(whole) is not None
        assert opening(whole[: min(size, whole.index(b"\r\n\r\n") + 3)]) is None

    def test_an_opening_is_small_and_followed_by_nothing_else(self) -> None:
        assert opening(post(b"abc", extra=b"X: " + b"x" * HEAD_BYTES_MAX + b"\r\n")) is None
        assert opening(post(b"abc") + b"P") is None
        assert opening(post(b"x" * (BODY_BYTES_MAX + 1))) is None
        found = opening(post(b"abc")[:-1])
        assert found is not None
        assert found[1:] == (3, len(post(b"abc")) - 3)

    def test_two_lengths_are_not_one(self) -> None:
        found = opening(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        assert found is not None
        assert repeatable(found[0], self.HEADERS)
        assert not repeatable(found[0], ((b"content-length", b"3"), (b"content-length", b"3")))
        assert not repeatable(found[0], (*self.HEADERS, (b"transfer-encoding", b"chunked")))
        assert not repeatable(found[0], self.HEADERS[:1])
        assert not repeatable(found[0] + b"\n", self.HEADERS)


class TestDeadlinesAndEnds:
    async def known(self, served: Served) -> Client:
        client = await served.connect()
        await client.ask(post(b"abc"))
        return client

    async def test_a_body_that_pauses_is_refused(self) -> None:
        async with serve(Echo(), request_body_ms=60, request_head_ms=LONG) as served:
            client = await self.known(served)
            client.send(post(b"abcdef")[:-3])
            answer = await client.answer()
            assert (answer.status, answer.problem) == (408, "body-timeout")
            assert await client.rest() == b""

    async def test_a_body_that_drips_is_refused(self) -> None:
        async with serve(Echo(), request_body_ms=LONG, request_total_ms=100) as served:
            client = await self.known(served)
            client.send(post(b"a" * 500)[:-500])

            async def drip() -> None:
                for _ in range(500):
                    client.send(b"a")
                    await asyncio.sleep(0.01)

            dripping = asyncio.create_task(drip())
            assert (await client.answer()).problem == "body-timeout"
            dripping.cancel()
            assert served.refused("body-timeout") == 1

    async def test_an_idle_connection_ends_as_ever(self) -> None:
        async with serve(Echo(), keep_alive_ms=60) as served:
            client = await self.known(served)
            await client.ask(post(b"abc"))
            assert await client.rest() == b""

    async def test_a_body_cut_off_is_no_request(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await self.known(served)
            client.send(post(b"abcdef")[:-3])
            client.writer.write_eof()
            assert b"request-cut-off" in await client.rest()
            assert not app.bodies

    async def test_a_client_that_sends_no_more_still_gets_its_answer(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await self.known(served)
            app.release = asyncio.Event()
            client.send(post(b"abc"))
            client.writer.write_eof()
            await until(lambda: bool(app.bodies))
            app.release.set()
            assert (await client.answer()).body == b"ABC"
            assert await client.rest() == b""

    async def test_a_client_that_goes_away_leaves_nothing_behind(self) -> None:
        app = Echo()
        async with serve(app) as served:
            client = await self.known(served)
            app.release = asyncio.Event()
            client.send(post(b"abc"))
            await until(lambda: bool(app.bodies))
            client.writer.transport.abort()
            app.release.set()
            await until(lambda: served.open() == 0)
            assert (await (await served.connect()).ask(post(b"abc"))).status == 200

    async def test_a_drain_waits_for_the_answer_and_then_ends_the_connection(self) -> None:
        app = Echo()
        metrics = Metrics()
        server = HttpServer(app, None, PLAIN, None, LimitsSection(), metrics, app)
        server.start(bind("http", PLAIN))
        client = await Served(server, metrics, None).connect()
        await client.ask(post(b"abc"))
        app.release = asyncio.Event()
        client.send(post(b"abc"))
        await until(lambda: bool(app.bodies))
        drain = asyncio.create_task(server.drain(5_000))
        await asyncio.sleep(0.01)
        app.release.set()
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"ABC", "close")
        assert await client.rest() == b""
        assert await drain == 0
        await client.close()
