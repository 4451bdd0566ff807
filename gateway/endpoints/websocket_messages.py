"""What a client says in sub-protocol `sprawl.v1.json`: operations as typed structs. The node's side: `websocket_frames.py`.

    client  {"op":"auth","token"}                                      {"op":"ping","ref"}
            {"op":"publish","ref","address":"topic/key", ...record}    ... or "topic","key"; or "records":[...]; "acks"
            {"op":"subscribe","sub","address","from","credit"}         ... or "topic","key"
            {"op":"unsubscribe","sub"}                                 {"op":"credit","sub","records"}
    node    {"op":"ready","principal",...}                             {"op":"pong","ref"}
            {"op":"ack","ref","records":[{"id","topic","partition","offset"}]}
            {"op":"subscribed","sub","cursor"}                         {"op":"unsubscribed","sub","cursor"}
            {"op":"records","sub","cursor","records":[...],"damage"}   {"op":"error","ref"|"sub","problem":{...}}
            {"op":"going-away","subscriptions":[{"sub","cursor"}]}

A text frame holds one operation or an array of them. `ref` is any JSON, echoed as it came. `cursor` is where a reader goes on
after what it was sent so far: `"from":{"cursor":...}`. Members that nobody knows are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from broker.delivery.position import AtOffset, AtTime, Cursor, Position
from broker.topics.addresses import Address, parse_address
from gateway.endpoints.records_json import RecordMembers, to_incoming
from gateway.endpoints.timestamps import parse_timestamp_ms
from gateway.errors import BodyMalformed, ParameterInvalid
from gateway.pipeline import Incoming

_NONE = msgspec.Raw()


class Operation(msgspec.Struct, tag_field="op", forbid_unknown_fields=True, gc=False):
    """`ref` is the client's own mark of the operation."""

    ref: msgspec.Raw = _NONE


class Auth(Operation, tag="auth", kw_only=True):
    """Who I am; also later, to renew a token before it expires."""

    token: str

    def __repr__(self) -> str:
        return "Auth(token=...)"


class Publish(RecordMembers, tag_field="op", tag="publish", kw_only=True):
    """One record (its members beside the operation's), or `records`; all of them are one atomic append."""

    ref: msgspec.Raw = _NONE
    address: str | None = None
    topic: str | None = None
    records: list[RecordMembers] | None = None
    acks: Literal["durable", "none"] = "durable"

    def __post_init__(self) -> None:
        if self.records is None:
            RecordMembers.__post_init__(self)
        elif len(self.value) or self.text is not None or self.value64 is not None:
            raise ValueError('a publish has either "records" or the members of one record')


class From(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A place in the log: a cursor, a partition's offset, or a time (milliseconds or RFC 3339)."""

    cursor: str | None = None
    offset: int | None = None
    partition: int | None = None
    timestamp: int | str | None = None


class Subscribe(Operation, tag="subscribe", tag_field="op", kw_only=True):
    """`sub` names the subscription in all messages about it; left out, it is the address."""

    sub: str | None = None
    address: str | None = None
    topic: str | None = None
    key: str | None = None
    key64: bytes | None = None
    start: Literal["earliest", "latest"] | From = msgspec.field(name="from", default="latest")
    credit: int | None = None


class Unsubscribe(Operation, tag="unsubscribe", kw_only=True):
    sub: str


class Credit(Operation, tag="credit", kw_only=True):
    """So many records more may be sent."""

    sub: str
    records: int


class Ping(Operation, tag="ping"):
    pass


AnyOperation: TypeAlias = Auth | Publish | Subscribe | Unsubscribe | Credit | Ping
OPERATIONS = ("auth", "publish", "subscribe", "unsubscribe", "credit", "ping")


class Refused(msgspec.Struct, frozen=True):
    """An operation that is none; `ref` and `sub` as far as they can be found."""

    error: Exception
    ref: bytes = b""
    sub: bytes = b""


class _Envelope(msgspec.Struct):
    """What names an operation, taken from one that is otherwise wrong."""

    ref: msgspec.Raw = _NONE
    sub: msgspec.Raw = _NONE


_decoder = msgspec.json.Decoder(AnyOperation | list[AnyOperation])
_one: msgspec.json.Decoder[AnyOperation] = msgspec.json.Decoder(AnyOperation)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_envelope = msgspec.json.Decoder(_Envelope)


# From bytes to operations


def decode_operations(message: bytes, *, operations_max: int, ref_bytes_max: int) -> Sequence[AnyOperation | Refused]:
    """The operations of one message, in order. What is wrong with one of an array leaves the others as they are."""
    try:
        decoded = _decoder.decode(message)
        operations: Sequence[AnyOperation | Refused] = decoded if isinstance(decoded, list) else (decoded,)
    except (msgspec.DecodeError, RecursionError) as error:
        operations = _decode_singly(message, error)
    if len(operations) > operations_max:
        reason = f"{len(operations)} operations; websocket.operations_max allows {operations_max} in one message"
        return (Refused(BodyMalformed(reason)),)
    return [_bound_ref(operation, ref_bytes_max) for operation in operations]


def _decode_singly(message: bytes, error: Exception) -> Sequence[AnyOperation | Refused]:
    if not message.lstrip().startswith(b"["):
        return (_refused(message, error),)
    try:
        elements = _raw_list.decode(message)
    except (msgspec.DecodeError, RecursionError) as malformed:
        return (Refused(_malformed(message, malformed)),)
    return [_decode_element(bytes(element)) for element in elements]


def _decode_element(element: bytes) -> AnyOperation | Refused:
    try:
        return _one.decode(element)
    except (msgspec.DecodeError, RecursionError) as error:
        return _refused(element, error)


def _refused(element: bytes, error: Exception) -> Refused:
    problem = _malformed(element, error)
    try:
        envelope = _envelope.decode(element)
    except (msgspec.DecodeError, RecursionError):
        return Refused(problem)
    return Refused(problem, bytes(envelope.ref), bytes(envelope.sub))


def _malformed(message: bytes, error: Exception) -> BodyMalformed:
    """msgspec's errors end with a path or with a position, or say that the input was truncated."""
    if isinstance(error, RecursionError):
        return BodyMalformed("it is nested too deeply")
    reason, _, place = str(error).partition(" - at ")
    if place:
        if place == "`$.op`":
            reason = f"{reason}; the operations are {', '.join(OPERATIONS)}"
        return BodyMalformed(reason.replace("`", ""), place.strip("`"))
    reason, _, position = reason.partition(" (byte ")
    if position:
        return BodyMalformed(reason, f"byte {position.rstrip(')')}")
    if reason.startswith("Input data was truncated"):  # also said of half a surrogate pair
        return BodyMalformed(
            "it ends inside a value, or holds half of a \\u surrogate pair", f"byte {len(message)} at the latest"
        )
    return BodyMalformed(reason.replace("`", ""))


def _bound_ref(operation: AnyOperation | Refused, ref_bytes_max: int) -> AnyOperation | Refused:
    size = len(operation.ref)
    if isinstance(operation, Refused):
        return operation if max(size, len(operation.sub)) <= ref_bytes_max else Refused(operation.error)
    if size > ref_bytes_max:
        return Refused(BodyMalformed(f"ref has {size} bytes; websocket.ref_bytes_max allows {ref_bytes_max}", "$.ref"))
    return operation


# From operations to what the pipeline takes


def incoming_of(operation: Publish) -> tuple[str, list[Incoming]]:
    """Topic and records of a publish; the operation's key is that of the records which have none. GatewayError."""
    address = address_of(operation)
    if operation.records is None:
        records = to_incoming((operation,))
    elif operation.records:
        records = to_incoming(operation.records)
    else:
        raise ParameterInvalid("records", "it is empty")
    if address.key is not None:
        for record in records:
            if record.key is None:
                record.key = address.key
    return address.topic, records


def address_of(operation: Publish | Subscribe) -> Address:
    key = operation.key64 if operation.key is None else operation.key.encode()
    if operation.key is not None and operation.key64 is not None:
        raise ParameterInvalid("key", 'there is "key" and "key64"; give one')
    if (operation.address is None) == (operation.topic is None):
        raise ParameterInvalid("address", 'give either "address" ("topic/key") or "topic"')
    if operation.topic is not None:
        return Address(operation.topic, key)
    address = parse_address(operation.address or "")
    if key is not None:
        raise ParameterInvalid("key", 'the key belongs into the address; or give "topic" and "key"')
    return address


def position_of(start: Literal["earliest", "latest"] | From) -> Position:
    if not isinstance(start, From):
        return start
    given = (start.cursor is not None) + (start.offset is not None) + (start.timestamp is not None)
    if given != 1 or (start.offset is None) != (start.partition is None):
        raise ParameterInvalid("from", '"earliest", "latest", {"cursor"}, {"offset","partition"} or {"timestamp"}')
    try:
        if start.cursor is not None:
            return Cursor.parse(start.cursor)
        if start.timestamp is not None:
            time = start.timestamp
            return AtTime(parse_timestamp_ms(time) if isinstance(time, str) else time)
    except ValueError as error:
        raise ParameterInvalid("from", str(error)) from None
    assert start.offset is not None
    assert start.partition is not None
    return AtOffset(start.partition, start.offset)
