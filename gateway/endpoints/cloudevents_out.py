"""Records as CloudEvents: binary, structured and batch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from broker.record import CONTENT_TYPE_HEADER, Record
from gateway.endpoints.cloudevents import (
    FORBIDDEN,
    HTTP_PREFIX,
    MEDIA_TYPE,
    OWN_TYPE,
    RECORD_PREFIX,
    SPECVERSION,
    STRUCTURED,
    Attributes,
    check,
)
from gateway.endpoints.cloudevents_in import from_structured
from gateway.endpoints.records_json import content_type, is_json_type, one_line_json
from gateway.errors import BodyMalformed, EventInvalid
from gateway.pipeline import TIMESTAMP_MS_MAX

_encode = msgspec.json.Encoder().encode


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
        check(attributes, None)
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
    if text is not None and MEDIA_TYPE.fullmatch(text):
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
    return None if FORBIDDEN.search(text) else text


def _to_header(text: str) -> bytes:
    """Printable ASCII but space, double quote and percent stands for itself (HTTP binding, 3.1.3.2)."""
    return "".join(
        character if "!" <= character <= "~" and character not in '"%' else "".join(f"%{byte:02X}" for byte in character.encode())
        for character in text
    ).encode("ascii")
