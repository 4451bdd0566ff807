"""Fuzz target: request headers that the REST forms read themselves: Idempotency-Key, If-None-Match, Origin."""

from __future__ import annotations

import re
from typing import Any, cast

from gateway.endpoints.conditional import last_modified, matches
from gateway.endpoints.exchange import Exchange
from gateway.endpoints.idempotency_key import CHARS_MAX, idempotency_key
from gateway.endpoints.origins import Origins
from gateway.errors import OriginRefused, ParameterInvalid
from tests.fuzz.refusals import check_refusal

NOW_MS = 1_760_000_000_000
TAG = b'"5-abc"'
ALLOWED = "https://app.example.org"

CORPUS = [
    b'"8e03978e-40d5-43e8-bc93-6894a57f9324"',
    b"8e03978e-40d5",
    b'"a \\"quoted\\" \\\\ key"',
    b'"a\\q"',
    b"k" * (CHARS_MAX + 1),
    b'W/"5-abc", "x"',
    b'*, "5-abc"',
    b'"' + b"\\\\" * 300 + b'"',
    b"https://app.example.org",
    b"https://app.example.org.evil.example",
    b"null",
    b"https://a:8443",
]


class Request:
    """As much of an exchange as these ask for."""

    def __init__(self, **headers: bytes) -> None:
        self.headers = {name.replace("_", "-").encode(): value for name, value in headers.items()}
        self.scope: dict[str, Any] = {"headers": list(self.headers.items()), "scheme": "https"}
        self.extra: list[tuple[bytes, bytes]] = []


def _exchange(**headers: bytes) -> Exchange:
    return cast("Exchange", Request(**headers))


def one_input(data: bytes) -> None:
    _key(data)
    if matches(_exchange(if_none_match=data), TAG):
        assert data.strip() == b"*" or TAG in data
    assert matches(_exchange(if_none_match=data), b"W/" + TAG) == matches(_exchange(if_none_match=data), TAG)
    _origin(data)
    modified = last_modified(int.from_bytes(data[:8], "big", signed=True), NOW_MS)
    assert modified is None or re.fullmatch(rb"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", modified)


def _key(data: bytes) -> None:
    try:
        key = idempotency_key(_exchange(idempotency_key=data))
    except ParameterInvalid as error:
        check_refusal(error)
        return
    assert key is not None
    assert 0 < len(key) <= CHARS_MAX
    assert key.isascii()
    assert key.isprintable()
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert idempotency_key(_exchange(idempotency_key=quoted.encode())) == key, "both forms name one key"


def _origin(data: bytes) -> None:
    exchange = _exchange(origin=data, host=b"a:8443")
    try:
        Origins([ALLOWED]).check(exchange)
    except OriginRefused as error:
        check_refusal(error, len(data) * 6 + 400)
        return
    assert data.decode("latin-1").lower() in (ALLOWED, "https://a:8443")
    assert bool(exchange.extra) == (data == ALLOWED.encode())
