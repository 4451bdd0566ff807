"""Records as JSON, the same in every protocol that speaks JSON.

    in     {"key": "eu/7", "value": {"amount": 12}, "headers": {"source": "till"},
            "timestamp": 1767225600000, "id": "<UUIDv7>", "partition": 3}
    out    {"id": "<UUIDv7>", "topic": "orders", "partition": 3, "offset": 17, "timestamp": 1767225600000,
            "key": "eu/7", "value": {"amount": 12}, "headers": {"content-type": "application/json", "source": "till"}}

The value is one of `value` (any JSON, stored as its own text with content-type application/json; null makes a tombstone), `text`
(stored as UTF-8, text/plain) and `value64` (bytes in base64). What is no UTF-8 comes out as `key64`, `value64`, `headers64`, and
goes in so too: what was read can be published again.

A record with `ttl_ms` (counted from when the node takes it) or `expires_at` is delivered to nobody from then on; it comes out
with `expires_at`.

A JSON value is never decoded into objects: it is checked and carried as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from broker.columns import COLUMN_RECORDS_MAX, Columns, SharedHeaders
from broker.delivery.expiry import expires_at_ms
from broker.record import CONTENT_TYPE_HEADER, EXPIRES_AT_HEADER, RESERVED_HEADER_PREFIX, Record
from gateway.endpoints.timestamps import parse_timestamp_ms
from gateway.errors import BodyMalformed, BodyTooLarge, RecordInvalid
from gateway.pipeline import Incoming

Decoded = TypeVar("Decoded")
Headers: TypeAlias = tuple[tuple[bytes, bytes | None], ...]

CONTENT_TYPE = CONTENT_TYPE_HEADER.encode()
REASON_CHARACTERS_MAX = 200
JSON_TYPE = b"application/json"
TEXT_TYPE = b"text/plain; charset=utf-8"

# Shared by all records of their kind: the pipeline looks at a headers object once.
JSON_HEADERS: Headers = ((CONTENT_TYPE, JSON_TYPE),)
TEXT_HEADERS: Headers = ((CONTENT_TYPE, TEXT_TYPE),)
NO_HEADERS: Headers = ()

_SHARED_JSON_HEADERS = SharedHeaders(JSON_HEADERS)

ONE_VALUE = 'a record has one of "value", "text" and "value64"; "value": null makes a tombstone'

_NO_VALUE = msgspec.Raw()


class Members(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A record object as it comes in. `timestamp` is milliseconds or RFC 3339, `expires_at` milliseconds."""

    key: str | None = None
    key64: bytes | None = None
    value: msgspec.Raw = _NO_VALUE
    text: str | None = None
    value64: bytes | None = None
    headers: dict[str, str | list[str | None] | None] | None = None
    headers64: dict[str, bytes | list[bytes | None] | None] | None = None
    timestamp: int | str | None = None
    id: str | None = None
    partition: int | None = None
    ttl_ms: int | None = None
    expires_at: int | None = None


class RecordMembers(Members, forbid_unknown_fields=True, gc=False):
    """The same, checked while it is decoded: a body full of empty objects ends at the first, not as a million in memory."""

    def __post_init__(self) -> None:
        given = (len(self.value) > 0) + (self.text is not None) + (self.value64 is not None)
        if given != 1:
            raise ValueError(ONE_VALUE)


class PlainMembers(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Of most records these are all; whatever has other members, or no value, is decoded as `Members`."""

    value: msgspec.Raw
    key: str | None = None


class RecordAnswer(msgspec.Struct, gc=False):
    """A record object as it goes out; what is UNSET is left out. `cursor` is after the record, in pages over topics."""

    id: str | None
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: str | UnsetType | None = UNSET
    key64: bytes | UnsetType = UNSET
    value: msgspec.Raw | UnsetType | None = UNSET
    text: str | UnsetType = UNSET
    value64: bytes | UnsetType = UNSET
    headers: dict[str, str | list[str | None] | None] | UnsetType = UNSET
    headers64: dict[str, bytes | list[bytes | None] | None] | UnsetType = UNSET
    expires_at: int | UnsetType = UNSET
    cursor: str | UnsetType = UNSET


class _Decoders(msgspec.Struct, frozen=True):
    one: msgspec.json.Decoder[Members]
    many: msgspec.json.Decoder[list[Members]]


_quick = _Decoders(msgspec.json.Decoder(Members), msgspec.json.Decoder(list[Members]))
_checking = _Decoders(msgspec.json.Decoder(RecordMembers), msgspec.json.Decoder(list[RecordMembers]))
_plain_one = msgspec.json.Decoder(PlainMembers)
_plain_many = msgspec.json.Decoder(list[PlainMembers])
_any = msgspec.json.Decoder(msgspec.Raw)

_NULL = b"null"


# In


def read_records(body: bytes, *, lines: bool, records_max: int) -> Columns | list[Incoming]:
    """The records of a body, in columns where that can hold them all. BodyMalformed, BodyTooLarge, RecordInvalid."""
    columns = _read_columns(body, lines, min(records_max, COLUMN_RECORDS_MAX))
    return columns or to_incoming(decode_records(body, lines=lines, records_max=records_max))


def _read_columns(body: bytes, lines: bool, records_max: int) -> Columns | None:
    """None where there is anything else than keys and values; who is told what is wrong is told by `decode_records`."""
    # Before more is in memory than may be: the shortest object has eleven bytes, and to count braces costs half of a decode.
    if len(body) // len(b'{"value":1}') > records_max and body.count(b"{") > records_max:
        return None
    try:
        body.decode()
        if lines:
            records = _plain_one.decode_lines(body)
        elif body.lstrip()[:1] == b"[":
            records = _plain_many.decode(body)
        else:
            records = [_plain_one.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    values = [record.value for record in records]
    if not values or (4 in map(len, values) and _NULL in map(bytes, values)):  # a tombstone has no content type
        return None
    return Columns([record.key for record in records], values, _SHARED_JSON_HEADERS)


def decode_records(body: bytes, *, lines: bool, records_max: int) -> list[Members]:
    """The record objects of a body: NDJSON (`lines`), one object, or an array of them. BodyMalformed, BodyTooLarge."""
    check_utf8(body)
    # Every object has a brace: a body without too many of them has not too many records either.
    decoders = _quick if body.count(b"{") <= records_max else _checking
    if lines:
        if body.count(b"\n") > records_max:
            raise BodyTooLarge("rest.records_max", records_max, "records")
        records = _decode_lines(decoders.one, body)
    elif body.lstrip()[:1] == b"[":
        records = decode(decoders.many, body)
    else:
        records = [decode(decoders.one, body)]
    if len(records) > records_max:
        raise BodyTooLarge("rest.records_max", records_max, "records")
    if not records:
        raise BodyMalformed("it holds no record")
    return records


def to_incoming(records: Iterable[Members]) -> list[Incoming]:
    """RecordInvalid for members that contradict each other. One pass; keep it lean."""
    incoming = []
    for index, record in enumerate(records):
        text, value = record.text, record.value64
        if len(record.value):
            if text is not None or value is not None:
                raise RecordInvalid(index, ONE_VALUE)
            value, headers = bytes(record.value), JSON_HEADERS
            if value == b"null":
                value, headers = None, NO_HEADERS
        elif text is not None:
            if value is not None:
                raise RecordInvalid(index, ONE_VALUE)
            value, headers = text.encode(), TEXT_HEADERS
        elif value is not None:
            headers = NO_HEADERS
        else:
            raise RecordInvalid(index, ONE_VALUE)
        if record.headers is not None or record.headers64 is not None:
            headers = _merge(record, headers)
        key = record.key64
        if record.key is not None:
            if key is not None:
                raise RecordInvalid(index, 'it has both "key" and "key64"')
            key = record.key.encode()
        timestamp_ms = record.timestamp
        if isinstance(timestamp_ms, str):
            timestamp_ms = _timestamp_ms(index, timestamp_ms)
        incoming.append(
            Incoming(key, value, headers, timestamp_ms, record.id, record.partition, record.ttl_ms, record.expires_at)
        )
    return incoming


def check_utf8(body: bytes) -> None:
    """BodyMalformed with the position; msgspec does not look into what it keeps as raw text."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise BodyMalformed(f"byte 0x{body[error.start]:02x} is no UTF-8", f"byte {error.start}") from None


def _decode_lines(decoder: msgspec.json.Decoder[Members], body: bytes) -> list[Members]:
    try:
        return decoder.decode_lines(body)
    except (msgspec.DecodeError, RecursionError) as error:
        for number, line in enumerate(body.split(b"\n"), 1):  # only now: finding the line costs as much as decoding
            if line.strip():
                decode(decoder, line, f"line {number}")
        raise BodyMalformed(str(error)) from None


def decode(decoder: msgspec.json.Decoder[Decoded], body: bytes, line: str = "") -> Decoded:
    """What `decoder` makes of the body, or BodyMalformed with the line and the position or path in it."""
    try:
        return decoder.decode(body)
    except RecursionError:
        raise BodyMalformed("it is nested too deeply", line or None) from None
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        raise BodyMalformed(_shown(reason), _place(line, _shown(path.strip("`")))) from None
    except msgspec.DecodeError as error:
        reason, _, position = str(error).removesuffix(")").partition(" (")
        if "truncated" in reason:  # msgspec's word for a lone surrogate too
            reason = "it ends inside a value, or holds half of a \\u surrogate pair"
        raise BodyMalformed(reason, _place(line, position)) from None


def _shown(text: str) -> str:
    """A refusal repeats the name of an unknown member, which may be as long as the body."""
    return text if len(text) <= REASON_CHARACTERS_MAX else f"{text[:REASON_CHARACTERS_MAX]}..."


def _place(line: str, rest: str) -> str | None:
    return ", ".join(part for part in (line, rest) if part) or None


def _timestamp_ms(index: int, text: str) -> int:
    try:
        return parse_timestamp_ms(text)
    except ValueError as error:
        raise RecordInvalid(index, f"its timestamp: {error}") from None


def _merge(record: Members, implied: Headers) -> Headers:
    """The record's own headers; the implied content type only where they have none."""
    merged: list[tuple[bytes, bytes | None]] = []
    for name, text in (record.headers or {}).items():
        texts = text if isinstance(text, list) else [text]
        merged += [(name.encode(), None if one is None else one.encode()) for one in texts]
    for name, content in (record.headers64 or {}).items():
        contents = content if isinstance(content, list) else [content]
        merged += [(name.encode(), one) for one in contents]
    if any(name.lower() == CONTENT_TYPE for name, _ in merged):
        return tuple(merged)
    return (*implied, *merged)


# Out


def to_answer(topic: str, partition: int, record: Record) -> RecordAnswer:
    answer = RecordAnswer(record.message_id, topic, partition, record.offset, record.timestamp_ms)
    key = record.key
    if key is None:
        answer.key = None
    elif (text := _text(key)) is not None:
        answer.key = text
    else:
        answer.key64 = key
    _put_value(answer, record)
    if len(record.headers) > 1:  # the message id is one
        _put_headers(answer, record)
    return answer


def content_type(record: Record) -> bytes | None:
    """Of the first header of that name."""
    for name, content in record.headers:
        if name == CONTENT_TYPE_HEADER or name.lower() == CONTENT_TYPE_HEADER:
            return content
    return None


def is_json_type(media_type: bytes) -> bool:
    """application/json, with parameters or not, and every +json (RFC 6839, 3.1)."""
    if media_type == JSON_TYPE:
        return True
    essence = media_type.partition(b";")[0].strip().lower()
    return essence == JSON_TYPE or essence.endswith(b"+json")


def one_line_json(value: bytes) -> bytes | None:
    """The JSON text without line breaks, which would end a line of NDJSON or an event's field; None if it is no JSON."""
    if _text(value) is None:
        return None
    try:
        if b"\n" in value or b"\r" in value:
            return msgspec.json.format(value, indent=-1)
        _any.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value


def _put_value(answer: RecordAnswer, record: Record) -> None:
    value = record.value
    if value is None:
        answer.value = None
        return
    media_type = content_type(record)
    if media_type is not None and is_json_type(media_type) and (json_text := one_line_json(value)) is not None:
        answer.value = msgspec.Raw(json_text)
    elif (text := _text(value)) is not None:
        answer.text = text
    else:
        answer.value64 = value


def _put_headers(answer: RecordAnswer, record: Record) -> None:
    """Those that are not ours. A name with one content that is no UTF-8 goes to `headers64` with all of its contents."""
    by_name: dict[str, list[bytes | None]] = {}
    for name, content in record.headers:
        if not name.startswith(RESERVED_HEADER_PREFIX):
            by_name.setdefault(name, []).append(content)
        elif name == EXPIRES_AT_HEADER and (at_ms := expires_at_ms(record)) is not None:
            answer.expires_at = at_ms
    texts: dict[str, str | list[str | None] | None] = {}
    binaries: dict[str, bytes | list[bytes | None] | None] = {}
    for name, contents in by_name.items():
        decoded = [None if content is None else _text(content) for content in contents]
        if any(text is None and content is not None for text, content in zip(decoded, contents, strict=True)):
            binaries[name] = contents[0] if len(contents) == 1 else contents
        else:
            texts[name] = decoded[0] if len(decoded) == 1 else decoded
    if texts:
        answer.headers = texts
    if binaries:
        answer.headers64 = binaries


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
