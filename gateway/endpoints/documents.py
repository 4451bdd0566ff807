"""JSON documents of the routes that administer: small, typed, refused by name where they hold something unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.exchange import JSON, Exchange, encode
from gateway.endpoints.publish import media_type_of
from gateway.endpoints.records_json import check_utf8, decode
from gateway.errors import MediaTypeUnsupported

DOCUMENT_BYTES_MAX = 64 * 1024

Document = TypeVar("Document")


async def read_document(exchange: Exchange, kind: type[Document]) -> Document:
    """MediaTypeUnsupported, BodyTooLarge, BodyMalformed."""
    media_type = media_type_of(exchange)
    if media_type != JSON:
        raise MediaTypeUnsupported(media_type.decode("latin-1") or "none", (JSON.decode(),))
    body = await exchange.body(DOCUMENT_BYTES_MAX)
    check_utf8(body)
    return decode(msgspec.json.Decoder(kind), body)


def exchange_of(request: Request) -> Exchange:
    """What `RestApp` put beside starlette's request: who asks, and the bounded body."""
    exchange: Exchange = request.scope["sprawl.exchange"]
    return exchange


def answer_document(status: int, document: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(document), status, headers, JSON.decode())
