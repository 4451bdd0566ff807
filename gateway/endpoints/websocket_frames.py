"""What the node says on a WebSocket connection, as ready frames (the table of messages: `websocket_messages.py`).

The two sub-protocols say the same messages. `sprawl.v1.json` writes them as JSON in text frames, `sprawl.v1.msgpack` as
MessagePack in binary frames, and there records are arrays with keys and values as bytes (docs/guide/websocket-binary.md).

`sub` and `ref` are encoded already: they are put in as they are, so that the costly part, the records, is encoded once for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from broker.delivery.consumer import Consumed
from broker.delivery.expiry import expires_at_ms
from broker.delivery.position import Cursor
from broker.delivery.subscription import Delivered
from broker.engine.base import Damage, Gap
from broker.record import MESSAGE_ID_HEADER, RESERVED_HEADER_PREFIX
from gateway.endpoints.records_json import to_answer
from gateway.pipeline import Receipt
from gateway.wire.websocket import binary_frame, text_frame

_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """The part of a `records` message that is the same for everybody; `members` counts those of its map."""

    body: bytes
    members: int


class Losses(msgspec.Struct, frozen=True, gc=False):
    """Ranges that a reader will not get: the media lost them (`damage`), or retention or a deletion took them (`gaps`). They are
    told, never stepped over in silence."""

    damage: Sequence[Damage] = ()
    gaps: Sequence[Gap] = ()

    def __bool__(self) -> bool:
        return bool(self.damage or self.gaps)

    def topics(self) -> set[str]:
        return {lost.topic for lost in self.damage} | {gap.topic for gap in self.gaps}


class Encoder(Protocol):
    def encode(self, obj: Any, /) -> bytes: ...


class Frames:
    """The messages of one sub-protocol; shared by all of its connections."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def encoded(self, plain: Any) -> bytes:
        """A name or a mark as it stands in messages."""
        return self._encoder.encode(plain)

    # Records

    def record(self, delivered: Delivered | Consumed) -> bytes:
        raise NotImplementedError

    def consumed(self, delivered: Consumed) -> bytes:
        """The same with `attempt` and `tag`."""
        raise NotImplementedError

    def chunk(self, records: Sequence[bytes], cursor: Cursor, losses: Losses | None) -> Chunk:
        raise NotImplementedError

    def records(self, sub: bytes, chunk: Chunk) -> bytes:
        raise NotImplementedError

    # Everything else

    def message(self, op: str, **members: Any) -> bytes:
        """Members that are None are left out."""
        raise NotImplementedError

    def ready(self, members: dict[str, Any]) -> bytes:
        return self.message("ready", **members)

    def ack(self, ref: bytes, receipts: Sequence[Receipt]) -> bytes:
        return self.message("ack", ref=_raw(ref), records=receipts if isinstance(receipts, list) else list(receipts))

    def subscribed(self, sub: bytes, cursor: Cursor, *, ref: bytes = b"", **more: Any) -> bytes:
        return self.message("subscribed", sub=_raw(sub), cursor=str(cursor), ref=_raw(ref), **more)

    def unsubscribed(self, sub: bytes, cursor: Cursor | None, *, ref: bytes = b"") -> bytes:
        """No cursor for a subscription that had not begun."""
        return self.message("unsubscribed", sub=_raw(sub), cursor=None if cursor is None else str(cursor), ref=_raw(ref))

    def paused(self, sub: bytes, *, ref: bytes = b"") -> bytes:
        return self.message("paused", sub=_raw(sub), ref=_raw(ref))

    def resumed(self, sub: bytes, *, ref: bytes = b"") -> bytes:
        return self.message("resumed", sub=_raw(sub), ref=_raw(ref))

    def pong(self, ref: bytes) -> bytes:
        return self.message("pong", ref=_raw(ref))

    def settled(self, sub: bytes, settled: int, unknown: Sequence[str], *, ref: bytes = b"") -> bytes:
        """`unknown` are the tags that no delivery of this consumer ever had."""
        return self.message("settled", sub=_raw(sub), settled=settled, unknown=unknown or None, ref=_raw(ref))

    def error(self, problem: dict[str, Any], *, ref: bytes = b"", sub: bytes = b"") -> bytes:
        return self.message("error", ref=_raw(ref), sub=_raw(sub), problem=problem)

    def going_away(self, positions: Iterable[tuple[bytes, Cursor]]) -> bytes:
        """Where each subscription has to begin on the next connection."""
        listed = [{"sub": msgspec.Raw(sub), "cursor": str(cursor)} for sub, cursor in positions]
        return self.message("going-away", subscriptions=listed)


class JsonFrames(Frames):
    """`sprawl.v1.json`."""

    def record(self, delivered: Delivered | Consumed) -> bytes:
        return _json.encode(to_answer(delivered.topic, delivered.partition, delivered.record))

    def consumed(self, delivered: Consumed) -> bytes:
        record = to_answer(delivered.topic, delivered.partition, delivered.record)
        return b'%b,"attempt":%d,"tag":"%b"}' % (_json.encode(record)[:-1], delivered.attempt, delivered.tag.encode())

    def chunk(self, records: Sequence[bytes], cursor: Cursor, losses: Losses | None) -> Chunk:
        lost = b"".join([b',"%b":%b' % (name, _json.encode(ranges)) for name, ranges in _ranges(losses)])
        return Chunk(b',"cursor":"%b","records":[%b]%b}' % (str(cursor).encode(), b",".join(records), lost), 0)

    def records(self, sub: bytes, chunk: Chunk) -> bytes:
        return text_frame(b'{"op":"records","sub":%b%b' % (sub, chunk.body))

    def message(self, op: str, **members: Any) -> bytes:
        return text_frame(_json.encode({"op": op, **_given(members)}))


class PackedAnswer(msgspec.Struct, array_like=True, gc=False):
    """A record as it goes out in MessagePack: an array, in this order. A value of None is a tombstone."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    id: str | None
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    expires_at: int | None


class MsgpackFrames(Frames):
    """`sprawl.v1.msgpack`."""

    def record(self, delivered: Delivered | Consumed) -> bytes:
        record = delivered.record
        headers: Sequence[tuple[str, bytes | None]] = record.headers
        if headers and headers[0][0] == MESSAGE_ID_HEADER:  # where our edges put it
            headers = headers[1:]
        expires_at: int | None = None
        if headers:
            expires_at = expires_at_ms(record)
            headers = [header for header in headers if not header[0].startswith(RESERVED_HEADER_PREFIX)]
        return _msgpack.encode(
            PackedAnswer(
                delivered.topic,
                delivered.partition,
                record.offset,
                record.timestamp_ms,
                record.message_id,
                record.key,
                record.value,
                headers,
                expires_at,
            )
        )

    def consumed(self, delivered: Consumed) -> bytes:
        """An array of 11: attempt and tag after the 9 of `PackedAnswer`."""
        return b"\x9b%b%b%b" % (self.record(delivered)[1:], _msgpack.encode(delivered.attempt), _msgpack.encode(delivered.tag))

    def chunk(self, records: Sequence[bytes], cursor: Cursor, losses: Losses | None) -> Chunk:
        parts = [b"\xa6cursor", _msgpack.encode(str(cursor)), b"\xa7records", _array_head(len(records)), *records]
        lost = _ranges(losses)
        for name, ranges in lost:
            parts += [_msgpack.encode(name.decode()), _msgpack.encode(ranges)]
        return Chunk(b"".join(parts), 4 + len(lost))

    def records(self, sub: bytes, chunk: Chunk) -> bytes:
        return binary_frame(b"%c\xa2op\xa7records\xa3sub%b%b" % (0x80 | chunk.members, sub, chunk.body))

    def message(self, op: str, **members: Any) -> bytes:
        return binary_frame(_msgpack.encode({"op": op, **_given(members)}))


JSON = JsonFrames(_json)
MSGPACK = MsgpackFrames(_msgpack)


def encode_chunks(
    frames: Frames, delivered: Sequence[Delivered], losses: Losses | None, cursor: Cursor, frame_bytes_max: int
) -> list[Chunk]:
    """Records cut into messages of about `frame_bytes_max` bytes; none if there is neither record nor loss.

    `cursor` is where the reader stands after all of it, which may be further than after the last record.
    """
    return _cut(frames, [(frames.record(one), one.cursor) for one in delivered], losses, cursor, frame_bytes_max)


def encode_consumed(
    frames: Frames, consumed: Sequence[Consumed], losses: Losses | None, cursor: Cursor, frame_bytes_max: int
) -> list[Chunk]:
    """The same for a consumer, whose place is kept by the node: each message has the cursor of the whole."""
    return _cut(frames, [(frames.consumed(one), cursor) for one in consumed], losses, cursor, frame_bytes_max)


def _cut(
    frames: Frames, records: Sequence[tuple[bytes, Cursor]], losses: Losses | None, cursor: Cursor, frame_bytes_max: int
) -> list[Chunk]:
    chunks: list[Chunk] = []
    encoded: list[bytes] = []
    size, before = 0, cursor
    for one, after in records:
        if encoded and size + len(one) > frame_bytes_max:
            chunks.append(frames.chunk(encoded, before, None))
            encoded, size = [], 0
        encoded.append(one)
        size += len(one)
        before = after
    if encoded or losses:
        chunks.append(frames.chunk(encoded, cursor, losses))
    return chunks


def _ranges(losses: Losses | None) -> list[tuple[bytes, list[dict[str, str | int]]]]:
    """As members of a `records` message, those that are empty left out."""
    if losses is None:
        return []
    names = ("topic", "partition", "from_offset", "to_offset")
    told = ((b"damage", losses.damage), (b"gaps", losses.gaps))
    return [(member, [{name: getattr(lost, name) for name in names} for lost in ranges]) for member, ranges in told if ranges]


def _raw(encoded: bytes) -> msgspec.Raw | None:
    return msgspec.Raw(encoded) if encoded else None


def _given(members: dict[str, Any]) -> dict[str, Any]:
    return {name: member for name, member in members.items() if member is not None}


def _array_head(length: int) -> bytes:
    """fixarray, array 16 or array 32 (MessagePack specification, "array format family")."""
    if length < 16:
        return bytes((0x90 | length,))
    if length < 65536:
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")
