"""Writers of Kafka's structures, made from their schemas. They take dictionaries, and append to one buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from struct import Struct
from typing import Any, TypeAlias
from uuid import UUID

from kio.index import load_response_schema
from kio.schema.index import api_key_map, schema_name_map

from gateway.wire.kafka.primitives import uvarint
from gateway.wire.kafka.schema import FieldPlan, fields_of, in_milliseconds

Writer: TypeAlias = Callable[[bytearray, Any], None]

_NO_ID = bytes(16)


@cache
def writer_of(schema: Any, api: int) -> Writer:
    """Writes one structure. Names that no version of the API's response has raise ValueError."""
    flexible: bool = schema.__flexible__
    plans = fields_of(schema)
    plain = [(plan.name, plan.default, _field(plan, flexible, api)) for plan in plans if plan.tag is None]
    tagged = sorted([(plan.tag or 0, plan, _field(plan, flexible, api)) for plan in plans if plan.tag is not None])
    names = frozenset(plan.name for plan in plans)

    def write(buffer: bytearray, values: Mapping[str, Any]) -> None:
        if not values.keys() <= names and (wrong := values.keys() - names - _known(api)):
            raise ValueError(f"no version of {schema.__name__} has {', '.join(sorted(wrong))}")
        for name, default, writer in plain:
            writer(buffer, values.get(name, default))
        if flexible:
            _write_tags(buffer, tagged, values)

    return write


@cache
def names_of(schema: Any) -> frozenset[str]:
    """The names of its fields, those of inner structures too."""
    plans = fields_of(schema)
    inner = [names_of(plan.entity) for plan in plans if plan.entity is not None]
    return frozenset(plan.name for plan in plans).union(*inner)


@cache
def _known(api: int) -> frozenset[str]:
    """The names of the API's responses, whatever the version."""
    versions = schema_name_map[api_key_map[api]]
    return frozenset(name for version in versions for name in names_of(load_response_schema(api, version)))


def _write_tags(buffer: bytearray, tagged: list[tuple[Any, FieldPlan, Writer]], values: Mapping[str, Any]) -> None:
    given = [(tag, plan, writer) for tag, plan, writer in tagged if values.get(plan.name, plan.default) != plan.default]
    buffer += uvarint(len(given))
    for tag, plan, writer in given:
        value = bytearray()
        writer(value, values[plan.name])
        buffer += uvarint(tag) + uvarint(len(value)) + value


def _field(plan: FieldPlan, flexible: bool, api: int) -> Writer:
    element = _element(plan, flexible, api)
    return _array(element, flexible) if plan.array else element


def _element(plan: FieldPlan, flexible: bool, api: int) -> Writer:
    if plan.entity is not None:
        writer = writer_of(plan.entity, api)
        return _nullable_entity(writer) if plan.nullable and not plan.array and plan.tag is None else writer
    nullable = plan.nullable and not plan.array
    if plan.kind == "string":
        return _string(flexible, nullable, plan.name)
    if plan.kind in ("bytes", "records"):
        return _bytes(flexible, nullable, plan.name)
    return _SCALARS[plan.kind]


def _number(layout: str) -> Writer:
    pack = Struct(layout).pack

    def write(buffer: bytearray, value: Any) -> None:
        buffer += pack(value)

    return write


def _milliseconds(layout: str) -> Writer:
    pack = Struct(layout).pack

    def write(buffer: bytearray, value: Any) -> None:
        buffer += pack(-1 if value is None else in_milliseconds(value))

    return write


def _uuid(buffer: bytearray, value: Any) -> None:
    raw = _NO_ID if value is None else value.bytes if isinstance(value, UUID) else bytes(value)
    if len(raw) != 16:
        raise ValueError(f"an id of {len(raw)} bytes, where 16 are wanted")
    buffer += raw


_SCALARS: dict[str, Writer] = {
    "int8": _number(">b"),
    "int16": _number(">h"),
    "int32": _number(">i"),
    "int64": _number(">q"),
    "uint8": _number(">B"),
    "uint16": _number(">H"),
    "uint32": _number(">I"),
    "uint64": _number(">Q"),
    "float64": _number(">d"),
    "bool": _number(">?"),
    "uuid": _uuid,
    "error_code": _number(">h"),
    "timedelta_i32": _milliseconds(">i"),
    "timedelta_i64": _milliseconds(">q"),
    "datetime_i64": _milliseconds(">q"),
}


def _string(flexible: bool, nullable: bool, name: str) -> Writer:
    raw = _sized(2, flexible, nullable, name)

    def write(buffer: bytearray, value: str | None) -> None:
        raw(buffer, None if value is None else value.encode())

    return write


def _bytes(flexible: bool, nullable: bool, name: str) -> Writer:
    return _sized(4, flexible, nullable, name)


def _sized(length_bytes: int, flexible: bool, nullable: bool, name: str) -> Callable[[bytearray, bytes | None], None]:
    def write(buffer: bytearray, value: bytes | None) -> None:
        if value is None:
            if not nullable:
                raise ValueError(f"{name} has to have a value")
            buffer += b"\x00" if flexible else b"\xff" * length_bytes
            return
        buffer += uvarint(len(value) + 1) if flexible else len(value).to_bytes(length_bytes, "big", signed=True)
        buffer += value

    return write


def _array(element: Writer, flexible: bool) -> Writer:
    def write(buffer: bytearray, values: Any) -> None:
        if values is None:
            buffer += b"\x00" if flexible else b"\xff\xff\xff\xff"
            return
        buffer += uvarint(len(values) + 1) if flexible else len(values).to_bytes(4, "big")
        for value in values:
            element(buffer, value)

    return write


def _nullable_entity(writer: Writer) -> Writer:
    def write(buffer: bytearray, value: Any) -> None:
        if value is None:
            buffer += b"\xff"
            return
        buffer += b"\x01"
        writer(buffer, value)

    return write
