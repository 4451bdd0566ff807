"""JSON documents of the routes that administer: small, typed, refused by name where they hold something unknown."""

from __future__ import annotations

from http import HTTPStatus
from typing import TypeVar

import msgspec

from gateway.endpoints.exchange import JSON, Exchange, HeaderList, encode
from gateway.endpoints.operations import Body, Schema
from gateway.endpoints.publish import media_type_of
from gateway.endpoints.records_json import check_utf8, decode
from gateway.errors import BodyMalformed, BodyTooLarge, ContentEncodingUnsupported, MediaTypeUnsupported

DOCUMENT_BYTES_MAX = 64 * 1024
# What `read_document` may raise, for the operation's row.
DOCUMENT_REFUSALS = (BodyMalformed, BodyTooLarge, ContentEncodingUnsupported, MediaTypeUnsupported)

Document = TypeVar("Document")


async def read_document(exchange: Exchange, kind: type[Document]) -> Document:
    """MediaTypeUnsupported, BodyTooLarge, BodyMalformed."""
    media_type = media_type_of(exchange)
    if media_type != JSON:
        raise MediaTypeUnsupported(media_type.decode("latin-1") or "none", (JSON.decode(),))
    body = await exchange.body(DOCUMENT_BYTES_MAX)
    check_utf8(body)
    return decode(msgspec.json.Decoder(kind), body)


def document_body(kind: type, checked: Schema | None = None) -> Body:
    """What `read_document` takes, for the operation's row; `checked` is a schema of what the handler checks besides."""
    schema = kind if checked is None else {"allOf": [kind, checked]}
    return Body(f"At most {DOCUMENT_BYTES_MAX} bytes; unknown members are refused", {JSON.decode(): schema})


async def answer_document(exchange: Exchange, status: int, document: object, headers: HeaderList = ()) -> None:
    await exchange.answer(status, JSON, encode(document), headers)


async def answer_nothing(exchange: Exchange) -> None:
    """Done, and there is nothing to say about it."""
    await exchange.begin(HTTPStatus.NO_CONTENT, [])
    await exchange.write(b"", last=True)
