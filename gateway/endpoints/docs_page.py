"""GET /docs: the OpenAPI document as a page for people, with a form to try each operation.

Files of our own, and nothing from any other host: the content security policy lets the browser load scripts, styles and
data from this node alone, and no inline ones. The page may not be framed. It holds no secret; a token typed into it stays in its
memory.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from gateway.endpoints.conditional import CONDITIONS, NOT_MODIFIED, fresh
from gateway.endpoints.exchange import Exchange
from gateway.endpoints.operations import TEXT, Answer, Operation

FOLDER = Path(__file__).with_name("docs")
FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs/icon.svg": ("icon.svg", "image/svg+xml"),
}

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = [
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
]


class DocsRoutes:
    def operations(self) -> list[Operation]:
        rows = []
        for path, (name, media_type) in FILES.items():
            body = (FOLDER / name).read_bytes()
            tag = b'W/"%s"' % hashlib.sha256(body).hexdigest()[:32].encode("ascii")
            page = Answer("The page" if path == "/docs" else "A part of it", {media_type: TEXT}, {"ETag": "its version"})
            rows.append(
                Operation(
                    "GET",
                    path,
                    partial(_answer, body=body, media_type=media_type.encode("ascii"), tag=tag),
                    name.replace(".", "_"),
                    "This interface as a page" if path == "/docs" else f"A part of the page: {name}",
                    {200: page, **NOT_MODIFIED},
                    parameters=CONDITIONS,
                    open=True,
                )
            )
        return rows


async def _answer(exchange: Exchange, *, body: bytes, media_type: bytes, tag: bytes) -> None:
    if not await fresh(exchange, tag, headers=_HEADERS):
        await exchange.answer(200, media_type, body, [(b"etag", tag), *_HEADERS])
