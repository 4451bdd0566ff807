"""What a client says on a WebSocket connection: operations as typed structs. The node's side: `websocket_frames.py`.

In sub-protocol `sprawl.v1.json`:

    client  {"op":"auth","token"}                                      {"op":"ping","ref"}
            {"op":"publish","ref","address":"topic/key", ...record}    ... or "topic","key"; or "records":[...]; "acks"
            {"op":"subscribe","sub","address","from","credit"}         ... or "topic","key"; or "filter"
            {"op":"unsubscribe"|"pause"|"resume","sub"}                {"op":"credit","sub","records"}
            {"op":"consume","sub","consumer",...,"options"}            as subscribe, with acknowledgements
            {"op":"ack"|"nack"|"reject"|"extend","sub","tags":[...]}   ... "delay_ms","reason","timeout_ms"
    node    {"op":"ready","principal",...}                             {"op":"pong","ref"}
            {"op":"ack","ref","records":[{"id","topic","partition","offset"}]}
            {"op":"subscribed","sub","cursor"}                         {"op":"unsubscribed"|"paused"|"resumed","sub","cursor"}
            {"op":"settled","sub","settled","unknown":[...]}
            {"op":"records","sub","cursor","records":[...],"damage","gaps"}   {"op":"error","ref"|"sub","problem":{...}}
            {"op":"going-away","subscriptions":[{"sub","cursor"}]}

A text frame holds one operation or an array of them. `ref` is any JSON, echoed as it came. `cursor` is where a reader goes on
after what it was sent so far: `"from":{"cursor":...}`. Members that nobody knows are refused by name.

`sprawl.v1.msgpack` has the same messages as MessagePack in binary frames. Keys are bytes there (so no `key64`), and records are
arrays: `[key, value, headers, timestamp, id, partition, ttl_ms]` to publish, what is at the end and nil may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from broker.columns import COLUMN_RECORDS_MAX, Columns, SharedHeaders
from broker.delivery.filter import Filter
from broker.delivery.position import AtOffset, AtTime, Cursor, Position
from broker.topics.addresses import Address, parse_address
from gateway.endpoints.records_json import NO_HEADERS, RecordMembers, to_incoming
from gateway.endpoints.timestamps import parse_timestamp_ms
from gateway.errors import BodyMalformed, ParameterInvalid
from gateway.pipeline import Incoming, Publication

_NONE = msgspec.Raw()
_NO_SHARED_HEADERS = SharedHeaders(())


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


class PackedRecord(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A record as it comes in MessagePack: an array, in this order. Nothing is added to its headers."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] | None = None
    timestamp: int | None = None
    id: str | None = None
    partition: int | None = None
    ttl_ms: int | None = None


class PackedPublish(Operation, tag="publish", tag_field="op", kw_only=True):
    """The records of a publish in MessagePack are one atomic append too."""

    records: list[PackedRecord]
    address: str | None = None
    topic: str | None = None
    key: bytes | None = None
    acks: Literal["durable", "none"] = "durable"


class From(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A place in the log: a cursor, a partition's offset, or a time (milliseconds or RFC 3339)."""

    cursor: str | None = None
    offset: int | None = None
    partition: int | None = None
    timestamp: int | str | None = None


class FilterMembers(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`address` with MQTT's wildcards; all that is given has to hold."""

    address: str | None = None
    key_prefix: str | None = None
    headers: dict[str, str] | None = None


class PackedFilterMembers(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The same in MessagePack."""

    address: str | None = None
    key_prefix: bytes | None = None
    headers: dict[str, str] | None = None


class Subscribe(Operation, tag="subscribe", tag_field="op", kw_only=True):
    """`sub` names the subscription in all messages about it; left out, it is the address."""

    sub: str | None = None
    address: str | None = None
    topic: str | None = None
    key: str | None = None
    key64: bytes | None = None
    filter: str | FilterMembers | None = None
    start: Literal["earliest", "latest"] | From = msgspec.field(name="from", default="latest")
    credit: int | None = None


class PackedSubscribe(Operation, tag="subscribe", tag_field="op", kw_only=True):
    """The same in MessagePack."""

    sub: str | None = None
    address: str | None = None
    topic: str | None = None
    key: bytes | None = None
    filter: str | PackedFilterMembers | None = None
    start: Literal["earliest", "latest"] | From = msgspec.field(name="from", default="latest")
    credit: int | None = None


class ConsumerMembers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """How a consumer is to be served; what is left out is as before, or the node's default."""

    ack_timeout_ms: int | None = None
    deliveries_max: int | None = None
    retry_backoff_ms: int | None = None
    retry_backoff_max_ms: int | None = None
    in_flight_max: int | None = None
    dead_letter_topic: str | None = None


class Consume(Subscribe, tag="consume", tag_field="op", kw_only=True):
    """Go on as this named consumer; `from` counts only where it is new."""

    consumer: str
    options: ConsumerMembers = ConsumerMembers()


class PackedConsume(PackedSubscribe, tag="consume", tag_field="op", kw_only=True):
    """The same in MessagePack."""

    consumer: str
    options: ConsumerMembers = ConsumerMembers()


class Unsubscribe(Operation, tag="unsubscribe", kw_only=True):
    sub: str


class Pause(Operation, tag="pause", kw_only=True):
    """Nothing more is sent until `resume`."""

    sub: str


class Resume(Operation, tag="resume", kw_only=True):
    sub: str


class Ack(Operation, tag="ack", kw_only=True):
    """The records with these tags are done with."""

    sub: str
    tags: list[str]


class Nack(Operation, tag="nack", kw_only=True):
    """They are to be delivered again, after `delay_ms` or the consumer's backoff."""

    sub: str
    tags: list[str]
    delay_ms: int | None = None
    reason: str = ""


class Reject(Operation, tag="reject", kw_only=True):
    """They go to the dead-letter topic."""

    sub: str
    tags: list[str]
    reason: str = ""


class Extend(Operation, tag="extend", kw_only=True):
    """They take longer: their timeout begins anew."""

    sub: str
    tags: list[str]
    timeout_ms: int | None = None


class Credit(Operation, tag="credit", kw_only=True):
    """So many records more may be sent."""

    sub: str
    records: int


class Ping(Operation, tag="ping"):
    pass


AnyPublish: TypeAlias = Publish | PackedPublish
AnySubscribe: TypeAlias = Subscribe | PackedSubscribe
AnyConsume: TypeAlias = Consume | PackedConsume
Settle: TypeAlias = Ack | Nack | Reject | Extend
_Both: TypeAlias = Auth | Unsubscribe | Credit | Pause | Resume | Settle | Ping
_Json: TypeAlias = _Both | Publish | Subscribe | Consume
_Msgpack: TypeAlias = _Both | PackedPublish | PackedSubscribe | PackedConsume
AnyOperation: TypeAlias = _Json | _Msgpack
OPERATIONS = (
    *("auth", "publish", "subscribe", "unsubscribe", "credit", "pause", "resume", "ping"),
    *("consume", "ack", "nack", "reject", "extend"),
)


class Refused(msgspec.Struct, frozen=True):
    """An operation that is none; `ref` and `sub` as far as they can be found."""

    error: Exception
    ref: bytes = b""
    sub: bytes = b""


class _Envelope(msgspec.Struct):
    """What names an operation, taken from one that is otherwise wrong."""

    ref: msgspec.Raw = _NONE
    sub: msgspec.Raw = _NONE


# From bytes to operations


class Decoder(Protocol):
    def decode(self, buf: bytes, /) -> Any: ...


class Decoders:
    """Of one sub-protocol; `begins_array` says of a message whether it is an array of operations."""

    def __init__(self, make: Callable[[Any], Decoder], operation: Any, begins_array: Callable[[bytes], bool]) -> None:
        self.whole, self.one = make(operation | list[operation]), make(operation)
        self.elements, self.envelope = make(list[msgspec.Raw]), make(_Envelope)
        self.begins_array = begins_array


JSON = Decoders(msgspec.json.Decoder, _Json, lambda message: message.lstrip().startswith(b"["))
MSGPACK = Decoders(
    msgspec.msgpack.Decoder, _Msgpack, lambda message: message[:1] in (b"\xdc", b"\xdd") or 0x90 <= (message or b"\0")[0] <= 0x9F
)


def decode_operations(
    message: bytes, decoders: Decoders = JSON, *, operations_max: int, ref_bytes_max: int
) -> Sequence[AnyOperation | Refused]:
    """The operations of one message, in order. What is wrong with one of an array leaves the others as they are."""
    try:
        decoded = decoders.whole.decode(message)
        operations: Sequence[AnyOperation | Refused] = decoded if isinstance(decoded, list) else (decoded,)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        operations = _decode_singly(message, decoders, error)
    if len(operations) > operations_max:
        reason = f"{len(operations)} operations; websocket.operations_max allows {operations_max} in one message"
        return (Refused(BodyMalformed(reason)),)
    return [_bound_ref(operation, ref_bytes_max) for operation in operations]


def _decode_singly(message: bytes, decoders: Decoders, error: Exception) -> Sequence[AnyOperation | Refused]:
    if not decoders.begins_array(message):
        return (_refused(message, decoders, error),)
    try:
        elements = decoders.elements.decode(message)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as malformed:
        return (Refused(_malformed(message, malformed)),)
    return [_decode_element(bytes(element), decoders) for element in elements]


def _decode_element(element: bytes, decoders: Decoders) -> AnyOperation | Refused:
    try:
        decoded: AnyOperation = decoders.one.decode(element)
        return decoded
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        return _refused(element, decoders, error)


def _refused(element: bytes, decoders: Decoders, error: Exception) -> Refused:
    problem = _malformed(element, error)
    try:
        envelope = decoders.envelope.decode(element)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Refused(problem)
    return Refused(problem, bytes(envelope.ref), bytes(envelope.sub))


def _malformed(message: bytes, error: Exception) -> BodyMalformed:
    """msgspec's errors end with a path or with a position, or say that the input was truncated."""
    if isinstance(error, RecursionError):
        return BodyMalformed("it is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return BodyMalformed("a string in it is no UTF-8")
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


def incoming_of(operation: AnyPublish) -> tuple[str, Publication]:
    """Topic and records of a publish; the operation's key is that of the records which have none. GatewayError."""
    address = address_of(operation)
    if isinstance(operation, PackedPublish):
        columns = _columns(operation.records, address.key)
        if columns is not None:
            return address.topic, columns
        records = [_unpacked(record) for record in operation.records]
    elif operation.records is None:
        records = to_incoming((operation,))
    else:
        records = to_incoming(operation.records)
    if not records:
        raise ParameterInvalid("records", "it is empty")
    if address.key is not None:
        for record in records:
            if record.key is None:
                record.key = address.key
    return address.topic, records


def _columns(records: Sequence[PackedRecord], key: bytes | None) -> Columns | None:
    """Records that have nothing but a key and a value, in the form that is cheapest to store; None where one has more."""
    if not 0 < len(records) <= COLUMN_RECORDS_MAX:
        return None
    keys, values = [], []
    for record in records:
        value = record.value
        if value is None or record.headers or record.id or record.timestamp is not None:
            return None
        if record.partition is not None or record.ttl_ms is not None:
            return None
        keys.append(key if record.key is None else record.key)
        values.append(value)
    return Columns(keys, values, _NO_SHARED_HEADERS)


def _unpacked(record: PackedRecord) -> Incoming:
    headers = [(name.encode(), content) for name, content in record.headers] if record.headers else NO_HEADERS
    return Incoming(record.key, record.value, headers, record.timestamp, record.id, record.partition, ttl_ms=record.ttl_ms)


def address_of(operation: AnyPublish | AnySubscribe) -> Address:
    key = _key_of(operation)
    if (operation.address is None) == (operation.topic is None):
        raise ParameterInvalid("address", 'give either "address" ("topic/key") or "topic"')
    if operation.topic is not None:
        return Address(operation.topic, key)
    address = parse_address(operation.address or "")
    if key is not None:
        raise ParameterInvalid("key", 'the key belongs into the address; or give "topic" and "key"')
    return address


def _key_of(operation: AnyPublish | AnySubscribe) -> bytes | None:
    if isinstance(operation, PackedPublish | PackedSubscribe):
        return operation.key
    if operation.key is None:
        return operation.key64
    if operation.key64 is not None:
        raise ParameterInvalid("key", 'there is "key" and "key64"; give one')
    return operation.key.encode()


def filter_of(operation: AnySubscribe) -> Filter:
    """What a subscription or consumer is to get. ParameterInvalid, FilterInvalid."""
    wanted = operation.filter
    if wanted is None:
        return Filter.parse(address_of(operation).text())
    if operation.address is not None or operation.topic is not None or _key_of(operation) is not None:
        raise ParameterInvalid("filter", 'give either "filter", or "address", or "topic" and "key"')
    if isinstance(wanted, str):
        return Filter.parse(wanted)
    prefix = wanted.key_prefix.encode() if isinstance(wanted.key_prefix, str) else wanted.key_prefix
    return Filter.parse(wanted.address, key_prefix=prefix, headers=wanted.headers)


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
