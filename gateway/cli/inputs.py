"""What `publish` reads, turned into record objects of the REST surface, one NDJSON line each.

Arguments and lines of stdin are values; a line of an NDJSON file is a JSON value, kept byte for byte; a row of a CSV file is an
object with the header's names. Every record gets its message id here (UUIDv7), before the first attempt to send it, so that a
resend carries the same one.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import msgspec

from gateway.cli.failures import Unusable
from gateway.cli.positions import parse_time_ms

ValueKind = Literal["auto", "json", "text"]

# Longer than any record the node takes by default (1 MiB): past it the file is not what its name says.
LINE_BYTES_MAX = 16 * 1024 * 1024

# The grammar of RFC 8259: 007 and 1. are no numbers, so what --numbers converts is written back unchanged.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)

# Members that the node adds to a record on the way out; publishing gives a record new ones.
_PLACE_MEMBERS = ("topic", "partition", "offset", "cursor")


class Line(NamedTuple):
    """`record` is a record object without its newline; `number` and `end` are where the source stood: line, byte."""

    record: bytes
    number: int
    end: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What every record of one call has in common, and where the rest comes from.

    `key_column` and `timestamp_column` name members of the value; `envelope` says that lines are whole record objects, as
    `subscribe --json` prints them. `ttl_ms` is for records that do not say themselves when they end.
    """

    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: ValueKind = "auto"
    key_column: str | None = None
    timestamp_column: str | None = None
    numbers: bool = False
    envelope: bool = False
    ttl_ms: int | None = None


def value_lines(values: Iterable[bytes], shape: Shape) -> Iterator[Line]:
    """Arguments, or lines of stdin: bytes without newline."""
    make, end = _Maker(shape), 0
    for number, value in enumerate(values, 1):
        end += len(value) + 1
        yield Line(make.from_value(value, number), number, end)


def file_lines(path: Path, shape: Shape) -> Iterator[Line]:
    """By the file's suffix: .ndjson, .jsonl or .csv."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise Unusable(
            f"{path.name} is of no kind that --file reads",
            what_to_do=f"name it {' or '.join(READERS)}; for a record a line use `sprawl publish ADDRESS - < {path}`",
        )
    try:
        with path.open("rb") as file:
            yield from reader(file, _Maker(shape))
    except OSError as error:
        raise Unusable(f"{path} cannot be read", str(error.strerror)) from None


def stdin_values(stream: IO[bytes]) -> Iterator[bytes]:
    while line := stream.readline(LINE_BYTES_MAX + 1):
        if len(line) > LINE_BYTES_MAX:
            raise Unusable(f"a line of the input is longer than {LINE_BYTES_MAX} bytes", what_to_do="publish it with curl")
        yield line.removesuffix(b"\n")


def _ndjson_lines(file: IO[bytes], make: _Maker) -> Iterator[Line]:
    end = 0
    for number, line in enumerate(stdin_values(file), 1):
        end += len(line) + 1
        if stripped := line.strip():
            yield Line(make.from_json(stripped, number), number, end)


def _csv_lines(file: IO[bytes], make: _Maker) -> Iterator[Line]:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            names = _csv_names(next(rows, []))
            for row in rows:
                if row:
                    yield Line(make.from_row(names, row, rows.line_num), rows.line_num, file.tell())
        except UnicodeDecodeError:
            raise Unusable("the CSV file is not UTF-8", f"near line {rows.line_num + 1}", "convert it with iconv") from None
        except csv.Error as error:
            raise Unusable("the CSV file cannot be read", f"line {rows.line_num}: {error}") from None


def _csv_names(names: list[str]) -> list[str]:
    if not names:
        raise Unusable("the CSV file has no header row", what_to_do="its first row must name the columns")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Unusable(f"the CSV file names a column {twice!r} twice", what_to_do="give each column a name of its own")
    return names


READERS: dict[str, Callable[[IO[bytes], Any], Iterator[Line]]] = {
    ".ndjson": _ndjson_lines,
    ".jsonl": _ndjson_lines,
    ".csv": _csv_lines,
}


class _Maker:
    """Builds record objects; what is the same in all of them is encoded once."""

    def __init__(self, shape: Shape) -> None:
        import uuid_utils

        self._uuid7 = uuid_utils.uuid7
        self._shape = shape
        self._key = b"" if shape.key is None else b',"key":' + _encode(shape.key)
        self._headers = b',"headers":' + _encode(dict(shape.headers)) if shape.headers else b""
        if shape.ttl_ms is not None:
            self._headers += b',"ttl_ms":%d' % shape.ttl_ms

    def from_value(self, value: bytes, number: int) -> bytes:
        kind = self._shape.kind
        if self._shape.envelope:
            return self.from_json(value, number)
        if kind == "json" or (kind == "auto" and value[:1] in (b"{", b"[") and _is_json(value)):
            return self.from_json(value, number)
        try:
            member = b'"text":' + _encode(value.decode())
        except UnicodeDecodeError:
            member = b'"value64":"' + base64.b64encode(value) + b'"'
        return self._join(member, self._key, None)

    def from_json(self, line: bytes, number: int) -> bytes:
        if self._shape.envelope:
            return self._from_envelope(line, number)
        columns: Mapping[str, Any] = {}
        if self._shape.key_column is not None or self._shape.timestamp_column is not None:
            columns = _decode(line, number, dict[str, Any])
        else:
            _decode(line, number, Any)
        return self._join(b'"value":' + line, self._key_of(columns, number), self._timestamp_of(columns, number))

    def from_row(self, names: Sequence[str], row: Sequence[str], number: int) -> bytes:
        if len(row) != len(names):
            raise Unusable(f"line {number} has {len(row)} fields", f"the header names {len(names)}")
        columns = dict(zip(names, row, strict=True))
        cells = (_encode(name) + b":" + self._cell(text) for name, text in columns.items())
        value = b'"value":{' + b",".join(cells) + b"}"
        return self._join(value, self._key_of(columns, number), self._timestamp_of(columns, number))

    def _cell(self, text: str) -> bytes:
        return text.encode() if self._shape.numbers and _NUMBER.fullmatch(text) else _encode(text)

    def _from_envelope(self, line: bytes, number: int) -> bytes:
        members = _decode(line, number, dict[str, msgspec.Raw])
        for place in _PLACE_MEMBERS:
            members.pop(place, None)
        if bytes(members.get("id", b"null")) == b"null":
            members["id"] = msgspec.Raw(_encode(str(self._uuid7())))
        if self._shape.ttl_ms is not None and "ttl_ms" not in members and "expires_at" not in members:
            members["ttl_ms"] = msgspec.Raw(b"%d" % self._shape.ttl_ms)
        return msgspec.json.encode(members)

    def _key_of(self, columns: Mapping[str, Any], number: int) -> bytes:
        name = self._shape.key_column
        if name is None:
            return self._key
        key = _column(columns, name, number)
        return b',"key":' + _encode(key if key is None or isinstance(key, str) else json.dumps(key))

    def _timestamp_of(self, columns: Mapping[str, Any], number: int) -> int | None:
        name = self._shape.timestamp_column
        if name is None:
            return None
        moment = _column(columns, name, number)
        if isinstance(moment, int) and not isinstance(moment, bool):
            return moment
        try:
            return int(moment) if moment.isdigit() else parse_time_ms(moment)
        except (AttributeError, ValueError):
            raise Unusable(
                f"line {number}: {name} is no time: {str(moment)[:40]!r}",
                what_to_do="write Unix milliseconds, or RFC 3339 with its zone such as 2026-11-23T13:00:00Z",
            ) from None

    def _join(self, member: bytes, key: bytes, timestamp_ms: int | None) -> bytes:
        stamp = b"" if timestamp_ms is None else b',"timestamp":%d' % timestamp_ms
        return b'{"id":"' + str(self._uuid7()).encode() + b'"' + key + stamp + self._headers + b"," + member + b"}"


def argument_bytes(text: str) -> bytes:
    """A command line argument as the bytes that the shell passed."""
    return os.fsencode(text)


def _column(columns: Mapping[str, Any], name: str, number: int) -> Any:
    try:
        return columns[name]
    except KeyError:
        raise Unusable(f"line {number} has no column {name!r}", f"it has {', '.join(columns) or 'none'}") from None


def _is_json(value: bytes) -> bool:
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _decode(line: bytes, number: int, kind: Any) -> Any:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"line {number} is not the JSON that is expected", str(error)) from None


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value)
