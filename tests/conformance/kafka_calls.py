"""One connection to a Kafka broker, any API in any version: what is asked and answered as dictionaries, in the schema's names.

Written on kio's readers and writers alone, so that nothing of Sprawl's own codec takes part in judging Sprawl.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import types
import typing
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cache
from itertools import count
from typing import Any

import kio.schema.request_header.v1.header as header_v1
import kio.schema.request_header.v2.header as header_v2
from kio.index import load_payload_module
from kio.schema.index import api_key_map
from kio.serial import entity_reader, entity_writer
from kio.static.constants import EntityType
from kio.static.primitive import i64

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
APIS = {name: key for key, name in api_key_map.items()}
ANSWER_S = 30.0
TIMELESS = frozenset({"describe_transactions"})
KIND = frozenset({"__type__", "__version__", "__flexible__", "__api_key__", "__header_schema__"})


class KafkaCalls:
    """`await call("metadata", 12, topics=None)`; one call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client_id: str) -> None:
        self._reader, self._writer, self._client_id = reader, writer, client_id
        self._correlation = count(1)

    @classmethod
    async def connect(cls, bootstrap: str, client_id: str = "referee", token: str | None = None) -> KafkaCalls:
        """With a token: SASL PLAIN."""
        host, _, port = bootstrap.rpartition(":")
        calls = cls(*await asyncio.open_connection(host, int(port)), client_id)
        if token is not None:
            shaken = await calls.call("sasl_handshake", 1, mechanism="PLAIN")
            assert shaken["error_code"] == 0, shaken
            proved = await calls.call("sasl_authenticate", 2, auth_bytes=b"\0token\0" + token.encode())
            assert proved["error_code"] == 0, proved
        return calls

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def call(self, api: str, version: int, **fields: Any) -> dict[str, Any]:
        request, response = _schemas(api, version)
        answer = await self._exchange(api, version, request, fields)
        # ApiVersions has the old header always; flexible answers an empty list of tags after the correlation id.
        found, _ = entity_reader(response)(answer, 5 if request.__flexible__ and api != "api_versions" else 4)
        plain = _plain(found)
        assert isinstance(plain, dict)
        return plain

    async def _exchange(self, api: str, version: int, request: Any, fields: Mapping[str, Any]) -> bytes:
        out = io.BytesIO()
        kind: Any = header_v2.RequestHeader if request.__flexible__ else header_v1.RequestHeader
        header = kind(
            request_api_key=APIS[api],
            request_api_version=version,
            correlation_id=next(self._correlation),
            client_id=self._client_id,
        )
        entity_writer(kind)(out, header)
        entity_writer(request)(out, build(request, fields))
        body = out.getvalue()
        self._writer.write(len(body).to_bytes(4, "big") + body)
        async with asyncio.timeout(ANSWER_S):
            return await self._reader.readexactly(int.from_bytes(await self._reader.readexactly(4), "big"))


@cache
def _schemas(api: str, version: int) -> tuple[Any, Any]:
    found = []
    for kind in (EntityType.request, EntityType.response):
        module = load_payload_module(APIS[api], version, kind)
        found += [
            entity
            for entity in vars(module).values()
            if getattr(entity, "__type__", None) is kind and entity.__module__ == module.__name__
        ]
    request, response = found
    return request, timeless(response) if api in TIMELESS else response


def timeless(entity: Any) -> Any:
    """The same, where times are milliseconds: kio cannot read a time of -1 where none is foreseen."""
    parts: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(entity):
        hint, metadata = _hints(entity)[field.name], dict(field.metadata)
        if metadata.get("kafka_type") == "datetime_i64":
            hint, metadata["kafka_type"] = i64, "int64"
        elif dataclasses.is_dataclass(_inner(hint)):
            hint = types.GenericAlias(tuple, (timeless(_inner(hint)), ...))
        parts.append((field.name, hint, dataclasses.field(default=field.default, metadata=metadata)))
    own = {name: value for name, value in vars(entity).items() if name in KIND}
    return dataclasses.make_dataclass(entity.__name__, parts, namespace=own, frozen=True, slots=True, kw_only=True)


def build(schema: Any, fields: Mapping[str, Any]) -> Any:
    """An entity of nested dictionaries and lists; integers for milliseconds and error codes, as on the wire. A name that ends in
    `?` is left out where the version has no such field."""
    hints = _hints(schema)
    known = {field.name: field for field in dataclasses.fields(schema)}
    fields = {name.rstrip("?"): value for name, value in fields.items() if not name.endswith("?") or name[:-1] in known}
    if unknown := set(fields) - set(known):
        raise TypeError(f"{schema.__name__} v{schema.__version__} has no {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    return schema(**{name: _value(hints[name], known[name], value) for name, value in fields.items()})


@cache
def _hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _value(hint: Any, field: Any, value: Any) -> Any:
    match field.metadata.get("kafka_type"), value:
        case (("timedelta_i32" | "timedelta_i64"), int()):
            return timedelta(milliseconds=value)
        case "datetime_i64", int():
            return None if value == -1 else EPOCH + timedelta(milliseconds=value)
        case _, list() | tuple():
            inner = _inner(hint)
            return tuple(build(inner, one) if isinstance(one, dict) else one for one in value)
        case _, dict():
            return build(_inner(hint), value)
    return value


def _inner(hint: Any) -> Any:
    """The entity in `tuple[Entity, ...] | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return _inner(next(arg for arg in typing.get_args(hint) if arg is not type(None)))
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    match value:
        case timedelta():
            return value // timedelta(milliseconds=1)
        case datetime():
            return (value - EPOCH) // timedelta(milliseconds=1)
        case Enum():
            return value.value
        case uuid.UUID():
            return str(value)
        case bytes() | memoryview() | bytearray():
            return bytes(value)
    return value
