"""The rows of publishing in the table of operations: what a body, the query and the headers may hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from broker import errors as broker
from broker.batch_errors import BatchTooLarge
from broker.delivery.expiry import TTL_MS_MAX
from gateway import errors as gateway
from gateway.endpoints.cloudevent_schemas import EVENT_IN, EVENT_IN_WITHOUT_KEY
from gateway.endpoints.cloudevents import BATCH, STRUCTURED
from gateway.endpoints.idempotency_key import PARAMETER as IDEMPOTENCY_KEY
from gateway.endpoints.operations import Alternatives, Answer, Body, Handler, Operation, Parameter, Schema
from gateway.endpoints.parameters import (
    ADDRESS_KEY,
    BASE64,
    MESSAGE_ID,
    MILLISECONDS,
    NULL,
    PADDED_BASE64,
    PARTITION_NUMBER,
    TIME,
    TOPIC,
    nullable,
    number,
)
from gateway.endpoints.records_json import Members

AddressOf: TypeAlias = Callable[[Sequence[bytes]], tuple[Any, ...]]

_PARAMETERS = (
    Parameter(
        name="acks",
        schema={"type": "string", "enum": ["durable", "none"]},
        about="`durable` answers when the records are on disk; `none` at once, and then they may be lost",
    ),
    Parameter(
        name="partition",
        schema=PARTITION_NUMBER,
        about="the partition of records that name none of their own; left out, their keys decide",
    ),
)
_TIMESTAMP = Parameter(
    name="timestamp", schema=TIME, about="the time of records that have none of their own; milliseconds since 1970, or RFC 3339"
)
_KEYS = Alternatives(
    name="default",
    about="the key of records that have none of their own",
    forms=(
        (Parameter(name="key", about="as text"),),
        (Parameter(name="key64", schema=BASE64, about="in base64 or base64url, if it is no text"),),
    ),
)
_HEADER_NAMES: Schema = {"pattern": "^(?![sS][pP][rR][aA][wW][lL]-)"}
_HEADERS64 = {
    "type": "object",
    "propertyNames": _HEADER_NAMES,
    "additionalProperties": nullable({"anyOf": [PADDED_BASE64, {"type": "array", "items": nullable(PADDED_BASE64)}]}),
}
_GIVEN = {"type": "string"}
# A record object: what `Members` decodes, with what is checked besides.
_RECORD: Schema = {
    "allOf": [
        Members,
        {
            "properties": {
                "key64": nullable(PADDED_BASE64),
                "value64": nullable(PADDED_BASE64),
                "headers": nullable({"type": "object", "propertyNames": _HEADER_NAMES}),
                "headers64": nullable(_HEADERS64),
                "timestamp": nullable(TIME),
                "id": nullable(MESSAGE_ID),
                "partition": nullable(PARTITION_NUMBER),
                "ttl_ms": nullable(number(TTL_MS_MAX, 1)),
                "expires_at": nullable(MILLISECONDS),
            }
        },
        {"anyOf": [{"properties": {"key": NULL}}, {"properties": {"key64": NULL}}]},
        {"anyOf": [{"properties": {"ttl_ms": NULL}}, {"properties": {"expires_at": NULL}}]},
        {
            "anyOf": [
                {"required": ["value"], "properties": {"text": NULL, "value64": NULL}},
                {"required": ["text"], "properties": {"text": _GIVEN, "value": False, "value64": NULL}},
                {"required": ["value64"], "properties": {"value64": PADDED_BASE64, "value": False, "text": NULL}},
            ]
        },
    ]
}
_KEYLESS: Schema = {"allOf": [_RECORD, {"properties": {"key": NULL, "key64": NULL}}]}
_ABOUT_BODY = """Record objects: one, an array, or one a line. CloudEvents 1.0: structured, a batch, or binary, which is any other
type with `ce-` headers; the extension `partitionkey` is the record's key. Of any other type the body is one value as it is: the
header `Message-Id` (a UUIDv7) is its id, `Sprawl-Ttl-Ms` how long it lives, `Sprawl-Header-<name>` are its headers.

A body may come compressed: `Content-Encoding` gzip or zstd."""


def _body(record: Schema, event: Schema, records_max: int) -> Body:
    records = {"type": "array", "items": record, "minItems": 1, "maxItems": records_max}
    return Body(
        _ABOUT_BODY,
        {
            "application/json": {"anyOf": [record, records]},
            "application/x-ndjson": records,
            STRUCTURED.decode(): event,
            BATCH.decode(): {"type": "array", "items": event, "minItems": 1, "maxItems": records_max},
            "application/octet-stream": {"type": "string", "format": "binary"},
            "text/plain": {"type": "string"},
        },
    )


_REFUSALS = (
    gateway.BodyMalformed,
    gateway.BodyTooLarge,
    gateway.ContentEncodingUnsupported,
    gateway.MediaTypeUnsupported,
    gateway.RecordInvalid,
    gateway.RequestInvalid,
    broker.IdempotencyKeyReused,
    broker.IdempotencyKeyInUse,
    broker.IdempotentTooLarge,
    broker.IdempotencyKeysFull,
    broker.IllegalTopicName,
    broker.UnknownTopic,
    broker.UnknownPartition,
    broker.RecordTooLarge,
    BatchTooLarge,
)


def publish_rows(
    to_topic: Handler, to_address: Handler, address_of: AddressOf, receipts: type, records_max: int
) -> list[Operation]:
    """`to_topic(exchange, topic)`, `to_address(exchange, address)`; `receipts` is what they answer with."""
    topic, address = "/v1/topics/{topic}/records", "/v1/records/{topic}"
    about = "The path is the address of every record of the body: they have no key of their own."
    keyless = _body(_KEYLESS, EVENT_IN_WITHOUT_KEY, records_max)

    def row(
        path: str, handler: Handler, name: str, summary: str, parameters: Sequence[Parameter | Alternatives], **more: Any
    ) -> Operation:
        answers = {
            200: Answer("Stored: where each record landed", {"application/json": receipts}),
            202: Answer("Taken with acks none: not stored yet, perhaps never", {"application/json": receipts}),
        }
        return Operation(
            "POST",
            path,
            handler,
            name,
            summary,
            answers,
            tag="records",
            parameters=(*parameters, *_PARAMETERS, _TIMESTAMP, IDEMPOTENCY_KEY),
            refusals=_REFUSALS,
            label="publish",
            **more,
        )

    return [
        row(
            topic,
            to_topic,
            "publish_to_topic",
            "Publish records",
            (TOPIC, _KEYS),
            body=_body(_RECORD, EVENT_IN, records_max),
        ),
        row(
            address,
            to_address,
            "publish_without_key",
            "Publish records without key",
            (TOPIC,),
            about=about,
            body=keyless,
            values=address_of,
        ),
        row(
            address + "/{key...}",
            to_address,
            "publish_to_address",
            "Publish records with the key of the path",
            (TOPIC, ADDRESS_KEY),
            about=about,
            body=keyless,
            values=address_of,
        ),
    ]
