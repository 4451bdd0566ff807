"""What the node says in sub-protocol `sprawl.v1.json`, as ready frames (the table of messages: `websocket_messages.py`).

`sub` and `ref` are JSON already: they are put in as they are, so that the costly part, the records, is encoded once for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from broker.delivery.position import Cursor
from broker.delivery.subscription import Delivered
from broker.engine.base import Damage
from gateway.endpoints.records_json import to_answer
from gateway.pipeline import Receipt
from gateway.wire.websocket import text_frame

_encoder = msgspec.json.Encoder()


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """The part of a `records` message that is the same for everybody."""

    body: bytes


def encode_chunks(delivered: Sequence[Delivered], damage: Iterable[Damage], cursor: Cursor, frame_bytes_max: int) -> list[Chunk]:
    """Records as JSON, cut into messages of about `frame_bytes_max` bytes; none if there is neither record nor damage.

    `cursor` is where the reader stands after all of it, which may be further than after the last record.
    """
    losses = _losses(damage)
    chunks: list[Chunk] = []
    texts: list[bytes] = []
    size, before = 0, cursor
    for record in delivered:
        text = _encoder.encode(to_answer(record.topic, record.partition, record.record))
        if texts and size + len(text) > frame_bytes_max:
            chunks.append(_chunk(texts, before, b""))
            texts, size = [], 0
        texts.append(text)
        size += len(text)
        before = record.cursor
    if texts or losses:
        chunks.append(_chunk(texts, cursor, losses))
    return chunks


def _chunk(texts: list[bytes], cursor: Cursor, losses: bytes) -> Chunk:
    return Chunk(b',"cursor":"%b","records":[%b]%b}' % (str(cursor).encode(), b",".join(texts), losses))


def _losses(damage: Iterable[Damage]) -> bytes:
    """Ranges the media lost are told, never stepped over in silence."""
    ranges = [{"partition": lost.partition, "from_offset": lost.from_offset, "to_offset": lost.to_offset} for lost in damage]
    return b',"damage":' + _encoder.encode(ranges) if ranges else b""


def records_frame(sub: bytes, chunk: Chunk) -> bytes:
    return text_frame(b'{"op":"records","sub":%b%b' % (sub, chunk.body))


def ready_frame(members: dict[str, Any]) -> bytes:
    return text_frame(_encoder.encode({"op": "ready", **members}))


def ack_frame(ref: bytes, receipts: Sequence[Receipt]) -> bytes:
    return text_frame(b'{"op":"ack"%b,"records":%b}' % (_member(b"ref", ref), _encoder.encode(receipts)))


def subscribed_frame(sub: bytes, cursor: Cursor, *, ref: bytes = b"") -> bytes:
    return text_frame(b'{"op":"subscribed","sub":%b,"cursor":"%b"%b}' % (sub, str(cursor).encode(), _member(b"ref", ref)))


def unsubscribed_frame(sub: bytes, cursor: Cursor | None, *, ref: bytes = b"") -> bytes:
    """No cursor for a subscription that had not begun."""
    at = b"" if cursor is None else b'"%b"' % str(cursor).encode()
    return text_frame(b'{"op":"unsubscribed","sub":%b%b%b}' % (sub, _member(b"cursor", at), _member(b"ref", ref)))


def pong_frame(ref: bytes) -> bytes:
    return text_frame(b'{"op":"pong"%b}' % _member(b"ref", ref))


def error_frame(problem: dict[str, Any], *, ref: bytes = b"", sub: bytes = b"") -> bytes:
    named = _member(b"ref", ref) + _member(b"sub", sub)
    return text_frame(b'{"op":"error"%b,"problem":%b}' % (named, _encoder.encode(problem)))


def going_away_frame(positions: Iterable[tuple[bytes, Cursor]]) -> bytes:
    """Where each subscription has to begin on the next connection."""
    listed = b",".join(b'{"sub":%b,"cursor":"%b"}' % (sub, str(cursor).encode()) for sub, cursor in positions)
    return text_frame(b'{"op":"going-away","subscriptions":[%b]}' % listed)


def _member(name: bytes, text: bytes) -> bytes:
    return b',"%b":%b' % (name, text) if text else b""
