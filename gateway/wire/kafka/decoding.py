"""Readers of Kafka's structures, made from their schemas. They believe no length: an array is bounded before it is begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import cache
from struct import Struct
from typing import Any, TypeAlias
from uuid import UUID

from kio.schema.errors import ErrorCode as KioErrorCode

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.schema import FieldPlan, fields_of

# Elements of all arrays of one message: some 200 bytes of memory and a microsecond each, where one byte may stand for one.
ELEMENTS_MAX = 100_000
TAGS_MAX = 64

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Cursor:
    """The bytes of a message, and how far they have been read."""

    __slots__ = ("data", "elements", "position")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = data
        self.position = 0
        self.elements = 0

    def take(self, size: int) -> bytes:
        begin = self.position
        end = begin + size
        if size < 0 or end > len(self.data):
            raise MessageInvalid(f"a field of {size} bytes at byte {begin}, where {len(self.data) - begin} are left")
        self.position = end
        return bytes(self.data[begin:end])

    def varint(self) -> int:
        """Unsigned, of at most 32 bits."""
        data, position = self.data, self.position
        number, shift = 0, 0
        while True:
            byte = data[position]
            position += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 28:
                raise MessageInvalid(f"a number longer than 32 bits at byte {position}")
        if number >> 32:
            raise MessageInvalid(f"a number longer than 32 bits at byte {position}")
        self.position = position
        return number

    def count(self, number: int) -> int:
        """`number` elements are to follow, each of at least one byte."""
        self.elements += number
        if number > len(self.data) - self.position:
            raise MessageInvalid(f"an array of {number} elements in the {len(self.data) - self.position} bytes that are left")
        if self.elements > ELEMENTS_MAX:
            raise MessageInvalid(f"more than {ELEMENTS_MAX} elements in one message")
        return number


Reader: TypeAlias = Callable[[Cursor], Any]


@cache
def reader_of(schema: Any) -> Reader:
    """Reads one structure, as an instance of `schema`."""
    flexible: bool = schema.__flexible__
    plans = fields_of(schema)
    plain = [(plan.name, _field(plan, flexible)) for plan in plans if plan.tag is None]
    tagged = {plan.tag: (plan.name, _field(plan, flexible)) for plan in plans if plan.tag is not None}
    absent = _absent(schema, tagged)

    def read(cursor: Cursor) -> Any:
        values = {name: reader(cursor) for name, reader in plain}
        if flexible:
            values |= absent
            _read_tags(cursor, tagged, values)
        return schema(**values)

    return read


def _absent(schema: Any, tagged: dict[Any, tuple[str, Reader]]) -> dict[str, Any]:
    """Tagged fields that have no default in the dataclass: what stands for them when they are not there."""
    names = {name for name, _ in tagged.values()}
    given = {field.name: field.default for field in fields(schema) if field.name in names}
    zero = {plan.name: plan.default for plan in fields_of(schema) if plan.name in names}
    return {name: zero[name] if repr(default).startswith("<dataclasses._MISSING") else default for name, default in given.items()}


def _read_tags(cursor: Cursor, tagged: dict[Any, tuple[str, Reader]], values: dict[str, Any]) -> None:
    if cursor.data[cursor.position] == 0:
        cursor.position += 1
        return
    count = cursor.varint()
    if count > TAGS_MAX:
        raise MessageInvalid(f"{count} tagged fields, where {TAGS_MAX} are the most")
    last = -1
    for _ in range(count):
        tag, size = cursor.varint(), cursor.varint()
        end = cursor.position + size
        if tag <= last or end > len(cursor.data):
            raise MessageInvalid(f"the tagged field {tag} of {size} bytes is out of order or beyond the message")
        last = tag
        if tag in tagged:
            name, reader = tagged[tag]
            values[name] = reader(cursor)
            if cursor.position != end:
                raise MessageInvalid(f"the tagged field {tag} is not the {size} bytes that it says")
        cursor.position = end


def _field(plan: FieldPlan, flexible: bool) -> Reader:
    element = _element(plan, flexible)
    return _array(element, plan.nullable, flexible) if plan.array else element


def _element(plan: FieldPlan, flexible: bool) -> Reader:
    if plan.entity is not None:
        reader = reader_of(plan.entity)
        return _nullable_entity(reader) if plan.nullable and not plan.array else reader
    nullable = plan.nullable and not plan.array
    if plan.kind == "string":
        return _strings(nullable, flexible)
    if plan.kind in ("bytes", "records"):
        return _bytes(nullable, flexible)
    return _SCALARS[plan.kind]


def _number(layout: str) -> Reader:
    struct = Struct(layout)
    size, unpack = struct.size, struct.unpack

    def read(cursor: Cursor) -> Any:
        return unpack(cursor.take(size))[0]

    return read


_INT16, _INT32, _INT64 = _number(">h"), _number(">i"), _number(">q")


def _bool(cursor: Cursor) -> bool:
    return cursor.take(1) != b"\x00"


def _uuid(cursor: Cursor) -> UUID | None:
    """None for the id of all zeros, which is Kafka's for none."""
    raw = cursor.take(16)
    return UUID(bytes=raw) if any(raw) else None


_SCALARS: dict[str, Reader] = {
    "int8": _number(">b"),
    "int16": _INT16,
    "int32": _INT32,
    "int64": _INT64,
    "uint8": _number(">B"),
    "uint16": _number(">H"),
    "uint32": _number(">I"),
    "uint64": _number(">Q"),
    "float64": _number(">d"),
    "bool": _bool,
    "uuid": _uuid,
    "error_code": lambda cursor: KioErrorCode(_INT16(cursor)),
    "timedelta_i32": lambda cursor: timedelta(milliseconds=_INT32(cursor)),
    "timedelta_i64": lambda cursor: timedelta(milliseconds=_INT64(cursor)),
    "datetime_i64": lambda cursor: _EPOCH + timedelta(milliseconds=_INT64(cursor)),
}


def _strings(nullable: bool, flexible: bool) -> Reader:
    raw = _sized(_INT16, nullable, flexible)

    def read(cursor: Cursor) -> str | None:
        found = raw(cursor)
        return None if found is None else found.decode()

    return read


def _bytes(nullable: bool, flexible: bool) -> Reader:
    return _sized(_INT32, nullable, flexible)


def _sized(length: Reader, nullable: bool, flexible: bool) -> Callable[[Cursor], bytes | None]:
    def read(cursor: Cursor) -> bytes | None:
        size = cursor.varint() - 1 if flexible else length(cursor)
        if size == -1:
            if not nullable:
                raise MessageInvalid(f"nothing at byte {cursor.position}, where a value has to be")
            return None
        return cursor.take(size)

    return read


def _array(element: Reader, nullable: bool, flexible: bool) -> Reader:
    def read(cursor: Cursor) -> tuple[Any, ...] | None:
        number = cursor.varint() - 1 if flexible else _INT32(cursor)
        if number < 0:
            if number != -1 or not nullable:
                raise MessageInvalid(f"an array of {number} elements at byte {cursor.position}")
            return None
        return tuple([element(cursor) for _ in range(cursor.count(number))])

    return read


def _nullable_entity(reader: Reader) -> Reader:
    def read(cursor: Cursor) -> Any:
        return None if cursor.take(1) == b"\xff" else reader(cursor)

    return read
