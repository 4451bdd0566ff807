"""GET /v1/records/{topic}/{key}: the newest record of an address, as it was published.

The answer is an HTTP message of its own: value and content type as they came, the rest in headers; of a record that holds a
CloudEvent, that event in binary mode. `Accept: application/cloudevents+json` asks for any record as an event in JSON,
`?envelope=true` for the record object of the other routes.
"""

from __future__ import annotations

import base64
import re

from broker import errors as broker
from broker.delivery.expiry import expires_at_ms
from broker.record import MESSAGE_ID_HEADER, RESERVED_HEADER_PREFIX, Record
from broker.topics.addresses import Address
from gateway.endpoints.cloudevent_schemas import EVENT
from gateway.endpoints.cloudevents import RECORD_PREFIX, STRUCTURED
from gateway.endpoints.cloudevents_out import attributes_of, to_binary, to_structured
from gateway.endpoints.conditional import CONDITIONS, NOT_MODIFIED, fresh, last_modified
from gateway.endpoints.exchange import JSON, Exchange, encode
from gateway.endpoints.operations import Answer, Operation, Parameter
from gateway.endpoints.parameters import ADDRESS_KEY, FLAG, TOPIC
from gateway.endpoints.publish import HEADER_PREFIX
from gateway.endpoints.publish_rows import AddressOf
from gateway.endpoints.records_json import RecordAnswer, content_type, to_answer
from gateway.errors import NoRecord
from gateway.pipeline import Pipeline

OCTETS = b"application/octet-stream"

# What was stored may be anything, so browsers shall neither guess its type nor run it in the node's origin.
_HARMLESS = [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", b"sandbox; default-src 'none'")]
# A stored type or header goes back out only in the form of one (RFC 9110, 5.5): it must not end the line and begin another.
_FIELD_VALUE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e\t]{0,1022}[\x21-\x7e])?")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,128}", re.ASCII)
_MEDIA_TYPE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(?:;[ \t\x21-\x7e]*)?")

_ENVELOPE = Parameter(name="envelope", schema=FLAG, about="the record object in place of its value")
_HEADERS = {
    "Record-Source": "`latest`: the newest record of the address",
    "Record-Topic": "its topic",
    "Record-Partition": "its partition",
    "Record-Offset": "its offset",
    "Record-Timestamp": "its time, milliseconds since 1970",
    "Record-Expires-At": "when nobody is given it any more, milliseconds since 1970",
    "Record-Key64": "its key in base64url",
    "Message-Id": "its id",
    "ETag": "its version",
    "Last-Modified": "its time, where that lies in the past",
}


class LatestRoutes:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def operations(self, address_of: AddressOf) -> list[Operation]:
        """`address_of` makes an address of a path's segments."""
        kinds = {"*/*": {}, JSON.decode(): RecordAnswer, STRUCTURED.decode(): EVENT}
        found = Answer("Its value as it was published, its envelope, or a CloudEvent", kinds, _HEADERS)

        def row(path: str, name: str, summary: str, parameters: tuple[Parameter, ...]) -> Operation:
            return Operation(
                "GET",
                path,
                self.latest,
                name,
                summary,
                {200: found, **NOT_MODIFIED},
                tag="records",
                parameters=(*parameters, _ENVELOPE, *CONDITIONS),
                refusals=(broker.UnknownTopic, broker.IllegalTopicName, NoRecord),
                label="latest",
                values=address_of,
            )

        path = "/v1/records/{topic}"
        return [
            row(path, "latest_without_key", "The latest record without key", (TOPIC,)),
            row(path + "/{key...}", "latest", "The latest record of an address", (TOPIC, ADDRESS_KEY)),
        ]

    async def latest(self, exchange: Exchange, address: Address) -> None:
        query = exchange.query()
        envelope = query.flag("envelope")
        query.finish()
        found = await self._pipeline.latest(exchange.session, address.topic, address.key)
        if found is None:
            raise NoRecord(address.topic)
        partition, record = found
        form = "record" if envelope else "event" if exchange.accepts(STRUCTURED) else "value"
        if record.value is None and form == "value":
            raise NoRecord(address.topic)  # a tombstone: there was one, and it was deleted
        tag = f'W/"{partition}-{record.offset}-{record.message_id or record.timestamp_ms}-{form}"'.encode("ascii", "replace")
        modified = last_modified(record.timestamp_ms, self._pipeline.clock.now_ms())
        # Caches of many users must not keep it; a browser's own asks each time whether it still holds.
        headers = [(b"etag", tag), (b"cache-control", b"private, no-cache"), (b"vary", b"accept")]
        if modified is not None:
            headers.append((b"last-modified", modified))
        if await fresh(exchange, tag, modified, headers[1:]):
            return
        headers.append((b"record-source", b"latest"))
        match form:
            case "record":
                await exchange.answer(200, JSON, encode(to_answer(address.topic, partition, record)), headers)
            case "event":
                await exchange.answer(200, STRUCTURED, to_structured(address.topic, partition, record), headers)
            case _:
                headers += [*_record_headers(address.topic, partition, record), *_HARMLESS]
                await exchange.answer(200, _safe_type(record), record.value or b"", headers)


def _safe_type(record: Record) -> bytes:
    media_type = content_type(record)
    return media_type if media_type is not None and _MEDIA_TYPE.fullmatch(media_type) else OCTETS


def _record_headers(topic: str, partition: int, record: Record) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"record-topic", topic.encode("ascii")),
        (b"record-partition", b"%d" % partition),
        (b"record-offset", b"%d" % record.offset),
        (b"record-timestamp", b"%d" % record.timestamp_ms),
    ]
    if (at_ms := expires_at_ms(record)) is not None:
        headers.append((b"record-expires-at", b"%d" % at_ms))
    message_id = record.message_id
    if message_id is not None and message_id.isprintable():
        headers.append((b"message-id", message_id.encode("ascii")))
    if record.key is not None:
        headers.append((b"record-key64", base64.urlsafe_b64encode(record.key).rstrip(b"=")))
    event = attributes_of(record)
    if event is not None:
        headers += to_binary(event)
    for name, content in record.headers:
        if event is not None and name.lower().startswith(RECORD_PREFIX):
            continue
        if _returnable(name) and content is not None and _FIELD_VALUE.fullmatch(content):
            headers.append((HEADER_PREFIX + name.encode("ascii"), content))
    return headers


def _returnable(name: str) -> bool:
    """As a header of the answer; every header, whatever its bytes, is in the envelope."""
    ours = name == MESSAGE_ID_HEADER or name.startswith(RESERVED_HEADER_PREFIX) or name == "content-type"
    return not ours and _FIELD_NAME.fullmatch(name) is not None
