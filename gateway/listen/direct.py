"""Requests that need no ASGI: small ones, whose head this connection has sent before, byte for byte.

Clients that keep a connection send the same head again and again; only the number in Content-Length differs. Such a head was
parsed, checked against every bound and given to the application once. What the application prepared then answers from there on,
without parser, scope and messages between [us of server CPU for a publish of one record over TLS: see bench/rest.py].

Only what is simple goes this way, and the parser never sees it: the whole head at the beginning of what was received, between
two requests, one Content-Length, no more bytes than it announces. Everything else is the parser's, as if this were not here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

# Heads that a connection is remembered by, each a copy of some hundred bytes; a client with more of them is parsed each time.
HEADS_MAX = 4
HEAD_BYTES_MAX = 4 * 1024
# uvicorn's high-water mark: what it too holds of a body before the application has asked for it.
BODY_BYTES_MAX = 64 * 1024

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,5})\r\n")

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

# Status, media type, body, further headers, the request's id.
Reply: TypeAlias = Callable[[int, bytes, bytes, Headers, str], None]


class Prepared(Protocol):
    """What the application made of a head."""

    def answer(self, body: bytes, reply: Reply) -> Coroutine[Any, Any, None]:
        """Calls `reply` exactly once unless it is cancelled; raises nothing else."""


class Direct(Protocol):
    """What an application offers beside ASGI."""

    def prepare(self, method: bytes, url: bytes, headers: Headers, connection: Mapping[str, Any]) -> Prepared | None:
        """None where requests with this head go the ASGI way. `headers` have lower-case names; `connection` is the listener's."""


def opening(data: bytes) -> tuple[bytes, int, int] | None:
    """The head without the digits of Content-Length and the empty line, the length, and where the body begins.

    None where it is not the whole head of a request that may go this way.
    """
    end = data.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
    if end < 0:
        return None
    found = _LENGTH.search(data, 0, end + 2)
    if found is None:
        return None
    start, stop = found.span(1)
    length = int(found[1])
    if length > BODY_BYTES_MAX or len(data) - end - 4 > length:
        return None
    return data[:start] + data[stop:end], length, end + 4


def repeatable(head: bytes, headers: Headers) -> bool:
    """Whether the parser took this head as it looks: a line for each header, and its length said once."""
    names = [name for name, _ in headers]
    lines = head.count(b"\r\n")
    return (
        lines == len(headers) == head.count(b"\n") == head.count(b"\r")
        and names.count(b"content-length") == 1
        and b"transfer-encoding" not in names
    )
