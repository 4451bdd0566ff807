"""CloudEvents 1.0.2 on HTTP, in and out: binary, structured (JSON) and batch.

A record that holds an event has the form of the Kafka protocol binding's binary mode (3.2), whichever way it came: attributes as
`ce_<name>` headers, datacontenttype as content-type, the data as value, the extension `partitionkey` as key. So whoever reads the
topic by the Kafka protocol finds standard events. The event's id becomes the message id where it is a UUIDv7, its time the
record's timestamp.

On the way out every record can be an event: one that never was gets an id, a source and a type of its place.

Our own code, and not the `cloudevents` package (2.2): that gives events without id or time ones of its own, takes data apart into
objects and writes them anew, and knows no batches. It is the referee of our tests.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

from broker.record import CONTENT_TYPE_HEADER, Record, valid_message_id
from gateway.endpoints.parameters import PADDED_BASE64, RFC3339
from gateway.endpoints.records_json import CONTENT_TYPE, check_utf8, content_type, decode, is_json_type, one_line_json
from gateway.endpoints.timestamps import parse_timestamp_ms
from gateway.errors import BodyMalformed, BodyTooLarge, EventInvalid
from gateway.pipeline import TIMESTAMP_MS_MAX, Incoming

STRUCTURED = b"application/cloudevents+json"
BATCH = b"application/cloudevents-batch+json"
FAMILY = b"application/cloudevents"

HTTP_PREFIX = b"ce-"
RECORD_PREFIX = "ce_"
SPECVERSION = "1.0"
OWN_TYPE = "dev.sprawl.record"
"""The type of records that came as no event."""

REQUIRED = ("specversion", "id", "source", "type")
ATTRIBUTE_NAME_CHARS_MAX = 64  # the specification (3.1.1) advises 20 and sets no bound
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]+", re.ASCII)
_INTEGER_MIN, _INTEGER_MAX = -(2**31), 2**31 - 1
# 3.1: no control characters, no halves of surrogate pairs, no noncharacters.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(?:;[ \t\x21-\x7e]*)?", re.ASCII)
# RFC 3986, appendix A: the characters of a URI, with or without a scheme.
_URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", re.ASCII)
_ABSOLUTE_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", re.ASCII)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)

EVENT: Mapping[str, Any] = {
    "type": "object",
    "required": list(REQUIRED),
    "properties": {
        "specversion": {"const": SPECVERSION},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1},
        "type": {"type": "string", "minLength": 1},
        "time": {"type": "string"},
        "datacontenttype": {"type": "string"},
        "data_base64": {"type": "string"},
    },
    "propertyNames": {"pattern": "^(?:[a-z0-9]{1,64}|data_base64)$"},
}
"""An event in JSON, as it comes out; the document's schema."""

_TEXT = {"type": "string", "pattern": "^[^\u0000-\u001f\u007f-\u009f\ufdd0-\ufdef\ufffe\uffff]*$"}
_JSON_MEDIA_TYPE = r"^(?:application/json|[A-Za-z0-9.-]{1,20}/[A-Za-z0-9.-]{1,20}\+json)$"


def _unset_or(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


EVENT_IN: Mapping[str, Any] = {
    "allOf": [
        {
            "type": "object",
            "required": list(REQUIRED),
            "properties": {
                "specversion": {"const": SPECVERSION},
                "id": {**_TEXT, "minLength": 1},
                "source": {"type": "string", "pattern": f"^{_URI_REFERENCE.pattern}$"},
                "type": {**_TEXT, "minLength": 1},
                "subject": _unset_or({**_TEXT, "minLength": 1}),
                "time": _unset_or(RFC3339),
                "dataschema": _unset_or({"type": "string", "pattern": f"^{_ABSOLUTE_URI.pattern}$"}),
                "datacontenttype": _unset_or({"type": "string", "pattern": f"^{_MEDIA_TYPE.pattern}$"}),
                "data": {},
                "data_base64": PADDED_BASE64,
            },
            "propertyNames": {"pattern": "^(?:[a-z0-9]{1,64}|data_base64)$"},
            "additionalProperties": {
                "anyOf": [
                    _TEXT,
                    {"type": "boolean"},
                    {"type": "integer", "minimum": _INTEGER_MIN, "maximum": _INTEGER_MAX},
                    {"type": "null"},
                ]
            },
        },
        {
            "anyOf": [
                {"properties": {"data": False}},
                {
                    "properties": {
                        "data_base64": False,
                        "datacontenttype": _unset_or({"type": "string", "pattern": _JSON_MEDIA_TYPE}),
                    }
                },
                {"properties": {"data_base64": False, "data": {"type": "string"}}},
            ]
        },
    ]
}
"""An event in JSON, as it comes in; the document's schema of what is checked here."""
EVENT_IN_WITHOUT_KEY: Mapping[str, Any] = {"allOf": [EVENT_IN, {"properties": {"partitionkey": {"type": "null"}}}]}
"""Where the path is the key. (That very key is allowed as well, which no schema can say.)"""

Attributes: TypeAlias = dict[str, str]
_Members: TypeAlias = dict[str, msgspec.Raw]


class _Required(msgspec.Struct, gc=False):
    """What every event has: a body of a million empty objects ends at the first, not as a million in memory."""

    specversion: str
    id: str
    source: str
    type: str


_one: msgspec.json.Decoder[_Members] = msgspec.json.Decoder(_Members)
_many: msgspec.json.Decoder[list[_Members]] = msgspec.json.Decoder(list[_Members])
_required: msgspec.json.Decoder[list[_Required]] = msgspec.json.Decoder(list[_Required])
_scalar: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


# In


def is_event(media_type: bytes, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request brings events: by its content type, else by a header that only events have (HTTP binding, 3)."""
    if media_type.startswith(FAMILY):
        return True
    return b"ce-specversion" in headers or b"ce-type" in headers or b"ce-source" in headers or b"ce-id" in headers


def from_binary(fields: Iterable[tuple[bytes, bytes]], value: bytes) -> Incoming:
    """One event: attributes from `ce-` headers, the body its data. EventInvalid."""
    attributes: Attributes = {}
    media_type: bytes | None = None
    for name, content in fields:
        if name == b"content-type":
            media_type = content
        elif name.startswith(HTTP_PREFIX):
            attribute = name[len(HTTP_PREFIX) :].decode("latin-1")
            if attribute in attributes:
                raise EventInvalid(attribute, "it is given twice")
            if attribute == "datacontenttype":
                raise EventInvalid(attribute, "in a binary event it is the Content-Type header")
            attributes[attribute] = _from_header(attribute, content)
    if media_type is not None:
        attributes["datacontenttype"] = media_type.decode("latin-1")
    return _incoming(attributes, value, None)


def from_structured(body: bytes) -> Incoming:
    """One event as JSON. BodyMalformed, EventInvalid."""
    check_utf8(body)
    return _from_members(decode(_one, body), None)


def from_batch(body: bytes, events_max: int) -> list[Incoming]:
    """An array of events, which may be empty in CloudEvents, not here. BodyMalformed, BodyTooLarge, EventInvalid."""
    check_utf8(body)
    if body.count(b"{") > events_max and len(decode(_required, body)) > events_max:
        raise BodyTooLarge("rest.records_max", events_max, "events")
    events = decode(_many, body)
    if not events:
        raise BodyMalformed("it holds no event")
    return [_from_members(members, index) for index, members in enumerate(events)]


def _from_members(members: _Members, index: int | None) -> Incoming:
    data, coded = members.pop("data", None), members.pop("data_base64", None)
    if data is not None and coded is not None:
        raise EventInvalid("data_base64", "there is data as well: an event has one of them", index)
    attributes: Attributes = {}
    for name, raw in members.items():
        text = _text_of(name, _value(name, raw, index), index)
        if text is not None:
            attributes[name] = text
    media_type = attributes.get("datacontenttype")
    if coded is not None:
        return _incoming(attributes, _decoded(coded, index), index)
    if data is None:
        return _incoming(attributes, b"", index)
    if media_type is None:
        attributes["datacontenttype"] = "application/json"  # JSON format, 3.1: as if it were given
    elif not is_json_type(media_type.encode("utf-8", "replace")):
        text = _value("data", data, index) if bytes(data)[:1] == b'"' else None
        if text is None:
            raise EventInvalid("data", f"with datacontenttype {media_type[:80]!r} it is a string; or take data_base64", index)
        return _incoming(attributes, text.encode(), index)
    return _incoming(attributes, bytes(data), index)


def _value(name: str, raw: msgspec.Raw, index: int | None) -> Any:
    """Of one member. Numbers are looked at only now, and not all that are JSON are numbers to us."""
    try:
        return _scalar.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise EventInvalid(name, f"it cannot be read: {error}", index) from None


def _text_of(name: str, given: Any, index: int | None) -> str | None:
    """The canonical string of an attribute (2): of a boolean, an integer of 32 bits or a string; None where it is not set."""
    match given:
        case None:
            return None
        case bool():
            return "true" if given else "false"
        case int() if _INTEGER_MIN <= given <= _INTEGER_MAX:
            return str(given)
        case str():
            return given
    kind = "a number that is no integer of 32 bits" if isinstance(given, int | float) else "an object or a list"
    raise EventInvalid(name, f"it is {kind}; attributes are strings, booleans or integers", index)


def _decoded(coded: msgspec.Raw, index: int | None) -> bytes:
    text = _value("data_base64", coded, index)
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        raise EventInvalid("data_base64", "it is no base64 (RFC 4648, 4)", index) from None


def _from_header(attribute: str, content: bytes) -> str:
    """HTTP binding, 3.1.3.2: a quoted string is unquoted, then percent-encoded UTF-8 is decoded, once."""
    text = content.decode("latin-1")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = _QUOTED_PAIR.sub(r"\1", text[1:-1])
    try:
        return unquote_to_bytes(text.encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise EventInvalid(attribute, "it is no percent-encoded UTF-8") from None


def _incoming(attributes: Attributes, value: bytes, index: int | None) -> Incoming:
    timestamp_ms = _check(attributes, index)
    headers: list[tuple[bytes, bytes | None]] = []
    for name, text in attributes.items():
        if name == "datacontenttype":
            headers.insert(0, (CONTENT_TYPE, text.encode()))
        else:
            headers.append((f"{RECORD_PREFIX}{name}".encode(), text.encode()))
    key = attributes.get("partitionkey")
    message_id = attributes["id"] if valid_message_id(attributes["id"]) else None
    return Incoming(None if key is None else key.encode(), value, headers, timestamp_ms, message_id)


def _check(attributes: Attributes, index: int | None) -> int | None:
    """Every attribute against its rules (2, 3.1); returns the time in milliseconds if a record can have it."""
    for name in REQUIRED:
        if name not in attributes:
            raise EventInvalid(name, "it is missing, and every event has one", index)
    for name, text in attributes.items():
        if reason := _wrong(name, text):
            raise EventInvalid(name, reason, index)
    if "time" not in attributes:
        return None
    try:
        timestamp_ms = _rfc3339_ms(attributes["time"])
    except ValueError:
        raise EventInvalid("time", "it is no time of RFC 3339 with its zone", index) from None
    return timestamp_ms if 0 <= timestamp_ms <= TIMESTAMP_MS_MAX else None


def _wrong(name: str, text: str) -> str | None:
    if not _ATTRIBUTE_NAME.fullmatch(name) or len(name) > ATTRIBUTE_NAME_CHARS_MAX:
        return f"names of attributes have 1 to {ATTRIBUTE_NAME_CHARS_MAX} of a-z and 0-9"
    if _FORBIDDEN.search(text):
        return "it holds a control character or a noncharacter"
    match name:
        case "specversion":
            return None if text == SPECVERSION else f"it is {SPECVERSION}, no other version is understood"
        case "data":
            return "that is the body's name, and no attribute's"
        case "source":
            return None if _URI_REFERENCE.fullmatch(text) else "it is no URI reference (RFC 3986, 4.1)"
        case "dataschema":
            return None if _ABSOLUTE_URI.fullmatch(text) else "it is no absolute URI (RFC 3986, 4.3)"
        case "datacontenttype":
            return None if _MEDIA_TYPE.fullmatch(text) else "it is no media type (RFC 2046)"
        case "id" | "type" | "subject":
            return None if text else "it is empty"
    return None


def _rfc3339_ms(text: str) -> int:
    if "-" not in text:  # milliseconds, which `parse_timestamp_ms` takes as well
        raise ValueError(text)
    return parse_timestamp_ms(text)


# Out


def attributes_of(record: Record) -> Attributes | None:
    """Of a record that holds an event in binary mode; None of any other, and where an attribute is broken."""
    attributes: Attributes = {}
    for name, content in record.headers:
        lowered = name.lower()
        if content is None or not (lowered.startswith(RECORD_PREFIX) or lowered == CONTENT_TYPE_HEADER):
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return None
        attribute = "datacontenttype" if lowered == CONTENT_TYPE_HEADER else lowered[len(RECORD_PREFIX) :]
        attributes.setdefault(attribute, text)
    try:
        _check(attributes, None)
    except EventInvalid:
        return None
    return attributes


def to_binary(attributes: Attributes) -> list[tuple[bytes, bytes]]:
    """The headers of an answer whose body is the data; its content type is not among them."""
    return [
        (HTTP_PREFIX + name.encode("ascii"), _to_header(text)) for name, text in attributes.items() if name != "datacontenttype"
    ]


def to_structured(topic: str, partition: int, record: Record) -> bytes:
    """The record as an event in JSON, whatever it came as."""
    if (whole := _structured_value(record)) is not None:
        return whole
    attributes = attributes_of(record) or _own_attributes(topic, partition, record)
    if record.key and "partitionkey" not in attributes and (key := _attribute_text(record.key)) is not None:
        attributes["partitionkey"] = key
    members: dict[str, Any] = dict(attributes)
    if record.value:
        _put_data(members, record.value)
    return _encode(members)


def to_batch(events: Sequence[bytes]) -> bytes:
    """`events` from `to_structured`."""
    return b"[%s]" % b",".join(events)


def _structured_value(record: Record) -> bytes | None:
    """A Kafka producer may have written the event in structured mode: then the value is the event."""
    media_type = content_type(record)
    if record.value is None or media_type is None or media_type.partition(b";")[0].strip().lower() != STRUCTURED:
        return None
    try:
        from_structured(record.value)
    except (BodyMalformed, EventInvalid):
        return None
    return one_line_json(record.value)


def _own_attributes(topic: str, partition: int, record: Record) -> Attributes:
    """Of a record that came as no event: where it is, is who it is."""
    attributes = {
        "specversion": SPECVERSION,
        "id": record.message_id or f"{partition}-{record.offset}",
        "source": f"/v1/topics/{topic}/partitions/{partition}",
        "type": OWN_TYPE,
    }
    if 0 <= record.timestamp_ms <= TIMESTAMP_MS_MAX:
        moment = datetime.fromtimestamp(record.timestamp_ms / 1_000, UTC)
        attributes["time"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    media_type = content_type(record)
    text = None if media_type is None else _attribute_text(media_type)
    if text is not None and _MEDIA_TYPE.fullmatch(text):
        attributes["datacontenttype"] = text
    return attributes


def _put_data(members: dict[str, Any], value: bytes) -> None:
    """JSON as JSON, text as a string where the content type says that it is some other text, bytes in base64."""
    media_type = members.get("datacontenttype", "").encode()
    if is_json_type(media_type):
        if (json_text := one_line_json(value)) is not None:
            members["data"] = msgspec.Raw(json_text)
            return
    elif media_type.startswith(b"text/"):
        try:
            members["data"] = value.decode()
            return
        except UnicodeDecodeError:
            pass
    members["data_base64"] = value


def _attribute_text(content: bytes) -> str | None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if _FORBIDDEN.search(text) else text


def _to_header(text: str) -> bytes:
    """Printable ASCII but space, double quote and percent stands for itself (HTTP binding, 3.1.3.2)."""
    return "".join(
        character if "!" <= character <= "~" and character not in '"%' else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in text
    ).encode("ascii")
