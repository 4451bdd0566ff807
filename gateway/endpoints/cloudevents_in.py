"""CloudEvents from HTTP messages: binary, structured and batch (HTTP binding 3.1, 3.2, 3.3; JSON format 2 to 4)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec

from broker.record import valid_message_id
from gateway.endpoints.cloudevents import FAMILY, HTTP_PREFIX, INTEGER_MAX, INTEGER_MIN, RECORD_PREFIX, Attributes, check
from gateway.endpoints.records_json import CONTENT_TYPE, check_utf8, decode, is_json_type
from gateway.errors import BodyMalformed, BodyTooLarge, EventInvalid
from gateway.pipeline import Incoming

_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
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
        case int() if INTEGER_MIN <= given <= INTEGER_MAX:
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
    timestamp_ms = check(attributes, index)
    headers: list[tuple[bytes, bytes | None]] = []
    for name, text in attributes.items():
        if name == "datacontenttype":
            headers.insert(0, (CONTENT_TYPE, text.encode()))
        else:
            headers.append((f"{RECORD_PREFIX}{name}".encode(), text.encode()))
    key = attributes.get("partitionkey")
    message_id = attributes["id"] if valid_message_id(attributes["id"]) else None
    return Incoming(None if key is None else key.encode(), value, headers, timestamp_ms, message_id)
