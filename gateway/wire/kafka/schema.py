"""What kio says of a field, in the terms that readers and writers are chosen by."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from datetime import datetime, timedelta
from types import NoneType
from typing import Any, get_args, get_origin

import msgspec


class FieldPlan(msgspec.Struct, frozen=True):
    """`entity` is the type of a nested structure, else None; `nullable` is about the array where it is one. `default` is None
    for no value where the field may have none; durations and times are milliseconds."""

    name: str
    kind: str
    array: bool
    nullable: bool
    entity: Any
    tag: int | None
    default: Any


ZERO: dict[str, Any] = {"bool": False, "string": "", "bytes": b"", "records": None, "uuid": None, "float64": 0.0}


def fields_of(schema: Any) -> list[FieldPlan]:
    return [_plan(field) for field in fields(schema)]


def _plan(field: Field[Any]) -> FieldPlan:
    kind, nullable = _unwrapped(field.type)
    array = get_origin(kind) is tuple
    if array:
        kind, inner_nullable = _unwrapped(get_args(kind)[0])
        nullable = nullable or inner_nullable
    entity = kind if hasattr(kind, "__dataclass_fields__") else None
    name = str(field.metadata.get("kafka_type", "entity"))
    tag = field.metadata.get("tag")
    return FieldPlan(field.name, name, array, nullable, entity, tag, _default(field, name, array, nullable, entity))


def _unwrapped(kind: Any) -> tuple[Any, bool]:
    """The type without None, and whether it had it."""
    options = get_args(kind)
    if get_origin(kind) is tuple or NoneType not in options:
        return kind, False
    return next(option for option in options if option is not NoneType), True


def _default(field: Field[Any], kind: str, array: bool, nullable: bool, entity: Any) -> Any:
    if field.default is not MISSING:
        return in_milliseconds(field.default)
    if nullable and kind != "datetime_i64":
        return None
    if array:
        return ()
    if entity is not None:
        return {}
    return ZERO.get(kind, -1 if kind == "datetime_i64" else 0)


def in_milliseconds(value: Any) -> Any:
    """Durations and times as numbers; everything else as it is."""
    if isinstance(value, timedelta):
        return round(value.total_seconds() * 1_000)
    if isinstance(value, datetime):
        return round(value.timestamp() * 1_000)
    return value
