"""Fuzz target: the direct path of small publishes, against the HTTP parser that it stands in for.

Two requests on one connection, `first NUL NUL second`. Where the first was taken by the parser and the second goes the direct
way, the parser must see in the second exactly one request with the same line and headers, and the same body: else something
could be smuggled past one of the two.
"""

from __future__ import annotations

import httptools

from gateway.listen.direct import BODY_BYTES_MAX, opening, repeatable

_HEAD = b"POST /v1/topics/orders/records HTTP/1.1\r\nhost: a\r\nauthorization: Bearer x\r\ncontent-type: application/json\r\n"


def _request(length: bytes, body: bytes, extra: bytes = b"", name: bytes = b"content-length") -> bytes:
    return _HEAD + extra + name + b": " + length + b"\r\naccept: */*\r\n\r\n" + body


CORPUS = [
    _request(b"2", b"{}") + b"\0\0" + _request(b"4", b"[{}]"),
    _request(b"2", b"{}") + b"\0\0" + _request(b"4", b"[{"),
    _request(b"2", b"{}") + b"\0\0" + _request(b"00004", b"[{}]"),
    _request(b"2", b"{}", b"content-length: 2\r\n") + b"\0\0" + _request(b"4", b"[{}]", b"content-length: 2\r\n"),
    _request(b"2", b"{}", b"transfer-encoding: chunked\r\n")
    + b"\0\0"
    + _request(b"4", b"[{}]", b"transfer-encoding: chunked\r\n"),
    _request(b"2", b"{}", b"x: a\n") + b"\0\0" + _request(b"4", b"[{}]", b"x: a\n"),
    _request(b"2", b"{}", b" folded: a\r\n") + b"\0\0" + _request(b"4", b"[{}]", b" folded: a\r\n"),
    _request(b"99999", b"") + b"\0\0" + _request(b"70000", b""),
    _request(b"2", b"{}", name=b"Content-Length") + b"\0\0" + _request(b"3", b"{ }", name=b"Content-Length"),
]


class Seen:
    """What the parser makes of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body, self.ended, self.begun = b"", b"", 0, 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_ended = False
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
            self.whole = True
        except httptools.HttpParserError:
            self.whole = False
        self.line = (self.parser.get_method(), self.url) if self.head_ended else None

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.head_ended = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ended += 1


def one_input(data: bytes) -> None:
    first, _, second = data.partition(b"\0\0")
    begun, following = opening(first), opening(second)
    if following is None:
        return
    head, length, body_at = following
    assert 0 <= length <= BODY_BYTES_MAX
    assert len(second) - body_at <= length
    if begun is None or begun[0] != head:
        return
    known, seen = Seen(first), Seen(second)
    if not (known.whole and known.head_ended and repeatable(head, known.headers)):
        return
    assert seen.whole, "the parser refuses what goes the direct way"
    assert seen.head_ended
    assert seen.begun == 1
    assert seen.line == known.line
    assert _without_length(seen) == _without_length(known)
    assert int(dict(seen.headers)[b"content-length"]) == length
    assert seen.body == second[body_at:]
    assert seen.ended == (len(seen.body) == length)


def _without_length(seen: Seen) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in seen.headers if name != b"content-length"]
