"""Conditional reads (RFC 9110, 13): who has it already is told so, and sent nothing.

`If-None-Match` decides where it is given, else `If-Modified-Since`. Times are compared for equality, as nginx does by default: a
record's timestamp is its publisher's, so a newer value may well carry an older time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

from gateway.endpoints.exchange import Exchange, HeaderList
from gateway.endpoints.operations import Answer, Parameter

# A time that is this young may still be that of a later value as well: it has whole seconds only (RFC 9110, 8.8.2.2).
SETTLED_MS = 2_000

# RFC 9110, 8.8.3.
_TAGS = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')

NOT_MODIFIED: Mapping[int, Answer] = {304: Answer("It has not changed since", {}, {"ETag": "its version"})}

CONDITIONS = (
    Parameter(name="If-None-Match", place="header", about="entity tags that the caller has, or `*`"),
    Parameter(name="If-Modified-Since", place="header", about="the `Last-Modified` that the caller has"),
)


def last_modified(timestamp_ms: int, now_ms: int) -> bytes | None:
    """The HTTP date of a record; None for a time to come, one that is not settled yet, or one that has no such date."""
    if not 0 <= timestamp_ms <= now_ms - SETTLED_MS:
        return None
    return formatdate(timestamp_ms // 1_000, usegmt=True).encode("ascii")


def matches(exchange: Exchange, tag: bytes, modified: bytes | None = None) -> bool:
    """Whether the caller has this version; `tag` with its quotes, weak or not: the comparison is the weak one (13.1.2)."""
    given = exchange.headers.get(b"if-none-match")
    if given is not None:
        return given.strip() == b"*" or tag.removeprefix(b"W/") in _TAGS.findall(given)
    return modified is not None and exchange.headers.get(b"if-modified-since") == modified


async def fresh(exchange: Exchange, tag: bytes, modified: bytes | None = None, headers: HeaderList = ()) -> bool:
    """True, and 304 was answered, where the caller has this version already."""
    if not matches(exchange, tag, modified):
        return False
    await exchange.begin(HTTPStatus.NOT_MODIFIED, [(b"etag", tag), *headers])
    await exchange.write(b"", last=True)
    return True
