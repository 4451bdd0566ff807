"""One request and its answer: credentials, bodies, headers."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.endpoints.exchange import LARGE_BYTES, Bodies, Exchange
from gateway.errors import BodyTooLarge, Busy, ClientGone
from security.identity.chain import BearerToken, ClientCertificate, Credential, NoCredential


class Wire:
    """What the server under the application would do, with the messages it was sent."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def exchange(
        self, headers: dict[bytes, bytes] | None = None, *, certificate: bytes | None = None, bodies: Bodies | None = None
    ) -> Exchange:
        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": b"/",
            "headers": list((headers or {}).items()),
            "extensions": {"sprawl": {"peer": "127.0.0.1:1", "client_certificate": certificate, "listener": None}},
        }
        return Exchange(scope, self.receive, self.send, bodies or Bodies(1 << 20))


def part(body: bytes, *, last: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": not last}


@pytest.mark.parametrize(
    ("authorization", "certificate", "expected"),
    [
        (None, None, NoCredential()),
        (None, b"der", ClientCertificate(b"der")),
        (b"Bearer abc", None, BearerToken("abc")),
        (b"bEARER   abc ", None, BearerToken("abc")),
        (b"Bearer abc", b"der", BearerToken("abc")),
        (b"Basic abc", b"der", BearerToken("")),  # a wrong proof is not passed over for another one
        (b"", b"der", BearerToken("")),
        (b"abc", None, BearerToken("")),
    ],
)
def test_which_credential_counts(authorization: bytes | None, certificate: bytes | None, expected: Credential) -> None:
    headers = {} if authorization is None else {b"authorization": authorization}
    assert Wire().exchange(headers, certificate=certificate).credential() == expected


async def test_a_whole_body_is_not_copied() -> None:
    body = b"x" * 100
    assert await Wire(part(body, last=True)).exchange().body(100) is body


async def test_a_body_in_parts() -> None:
    wire = Wire(part(b"ab", last=False), part(b"", last=False), part(b"c", last=True))
    assert await wire.exchange().body(3) == b"abc"


async def test_a_body_that_is_too_large_or_never_ends() -> None:
    with pytest.raises(BodyTooLarge):
        await Wire().exchange({b"content-length": b"101"}).body(100)
    with pytest.raises(BodyTooLarge):
        await Wire(part(b"x" * 60, last=False), part(b"x" * 41, last=False)).exchange().body(100)
    with pytest.raises(ClientGone):
        await Wire(part(b"x", last=False), {"type": "http.disconnect"}).exchange().body(100)


async def test_what_is_held_is_given_back() -> None:
    bodies = Bodies(100)
    one = Wire(part(b"x" * 60, last=True)).exchange(bodies=bodies)
    await one.body(100)
    other = Wire(part(b"x" * 41, last=True)).exchange(bodies=bodies)
    with pytest.raises(Busy):
        await other.body(100)
    other.close()
    assert bodies.held_bytes == 60
    one.close()
    one.close()
    assert bodies.held_bytes == 0


async def test_an_answer_has_its_length_and_the_requests_id() -> None:
    wire = Wire()
    exchange = wire.exchange({b"x-request-id": b"r1"})
    await exchange.answer(200, b"text/plain", b"abc", [(b"a", b"b")])
    [start, body] = wire.sent
    assert dict(start["headers"]) == {b"content-type": b"text/plain", b"content-length": b"3", b"a": b"b", b"x-request-id": b"r1"}
    assert (body["body"], body["more_body"]) == (b"abc", False)


async def test_a_large_answer_is_refused_before_it_begins() -> None:
    wire, bodies = Wire(), Bodies(LARGE_BYTES)
    exchange = wire.exchange(bodies=bodies)
    with pytest.raises(Busy):
        await exchange.answer(200, b"text/plain", b"x" * (LARGE_BYTES + 1))
    assert wire.sent == []
    await exchange.answer(200, b"text/plain", b"x" * LARGE_BYTES)
    assert len(wire.sent) == 2


async def test_nobody_is_told_when_nobody_listens() -> None:
    wire = Wire()
    await wire.exchange().refuse(ClientGone())
    assert wire.sent == []


def test_accept() -> None:
    exchange = Wire().exchange({b"accept": b"text/html, Application/X-NDJSON;q=0.9"})
    assert exchange.accepts(b"application/x-ndjson")
    assert not exchange.accepts(b"application/json")
    assert not Wire().exchange().accepts(b"application/json")
