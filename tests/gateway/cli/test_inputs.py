"""What `publish` reads, as record objects."""

import io
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.failures import Unusable
from gateway.cli.inputs import LINE_BYTES_MAX, Line, Shape, file_lines, stdin_values, value_lines
from gateway.endpoints.records_json import decode_records, to_incoming


def records(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Without the message id, which is checked here once: a UUIDv7, no two alike."""
    parsed = [json.loads(line.record) for line in lines]
    ids = [record.pop("id") for record in parsed]
    assert all(uuid.UUID(one).version == 7 for one in ids)
    assert len(set(ids)) == len(ids)
    return parsed


def from_file(folder: Path, name: str, content: bytes, shape: Shape | None = None) -> list[dict[str, Any]]:
    (folder / name).write_bytes(content)
    return records(file_lines(folder / name, shape or Shape()))


class TestValues:
    @pytest.mark.parametrize(
        ("value", "kind", "expected"),
        [
            (b"hello", "auto", {"text": "hello"}),
            (b"", "auto", {"text": ""}),
            (b"42", "auto", {"text": "42"}),
            (b'{"amount": 12}', "auto", {"value": {"amount": 12}}),
            (b"[1, 2]", "auto", {"value": [1, 2]}),
            (b"{not json}", "auto", {"text": "{not json}"}),
            (b'{"amount": 12}', "text", {"text": '{"amount": 12}'}),
            (b"42", "json", {"value": 42}),
            (b"\xff\x00", "auto", {"value64": "/wA="}),
            ("größe".encode(), "text", {"text": "größe"}),
        ],
    )
    def test_each_kind(self, value: bytes, kind: Any, expected: dict[str, Any]) -> None:
        assert records(value_lines([value], Shape(kind=kind))) == [expected]

    def test_key_and_headers_are_the_same_for_all(self) -> None:
        shape = Shape(key="eu/7", headers={"source": "till"})
        common = {"key": "eu/7", "headers": {"source": "till"}}
        assert records(value_lines([b"a", b"b"], shape)) == [{**common, "text": "a"}, {**common, "text": "b"}]

    def test_what_is_no_json_is_refused_by_its_number(self) -> None:
        with pytest.raises(Unusable, match="line 2"):
            list(value_lines([b"1", b"{"], Shape(kind="json")))

    @given(st.binary(max_size=200), st.none() | st.text(max_size=20))
    def test_every_value_arrives_byte_for_byte_where_the_node_reads_it(self, value: bytes, key: str | None) -> None:
        (line,) = value_lines([value], Shape(key=key, kind="text"))
        (record,) = to_incoming(decode_records(line.record, lines=True, records_max=10))
        assert (record.value, record.key) == (value, None if key is None else key.encode())


class TestStdin:
    def test_a_record_a_line_the_last_one_with_or_without_its_end(self) -> None:
        assert list(stdin_values(io.BytesIO(b"a\n\nb"))) == [b"a", b"", b"b"]
        assert list(stdin_values(io.BytesIO(b"a\n\nb\n"))) == [b"a", b"", b"b"]

    def test_a_line_without_end_is_refused_before_it_fills_the_memory(self) -> None:
        class Endless(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                buffer[:] = b"x" * len(buffer)
                return len(buffer)

        with pytest.raises(Unusable, match=str(LINE_BYTES_MAX)):
            next(stdin_values(io.BufferedReader(Endless(), 1024 * 1024)))


class TestNdjson:
    def test_values_keep_their_text(self, tmp_path: Path) -> None:
        content = b'{"n": 1.10, "big": 123456789012345678901234567890}\n\n 2 \n'
        (tmp_path / "x.ndjson").write_bytes(content)
        first, second = file_lines(tmp_path / "x.ndjson", Shape())
        assert b'"value":{"n": 1.10, "big": 123456789012345678901234567890}' in first.record
        assert b'"value":2' in second.record
        assert (first.number, second.number, second.end) == (1, 3, len(content))

    def test_key_and_timestamp_come_from_members(self, tmp_path: Path) -> None:
        shape = Shape(key_column="k", timestamp_column="at")
        content = b'{"k": "a", "at": 17}\n{"k": 7, "at": "2026-11-23T13:00:00Z"}\n{"k": null, "at": 18}\n'
        found = from_file(tmp_path, "x.jsonl", content, shape)
        assert [(record["key"], record["timestamp"]) for record in found] == [("a", 17), ("7", 1_795_438_800_000), (None, 18)]

    @pytest.mark.parametrize(
        ("content", "shape", "said"),
        [
            (b"1\n{\n", Shape(), "line 2"),
            (b"\xff\n", Shape(), "line 1"),
            (b"1\n", Shape(key_column="k"), "line 1"),
            (b'{"a": 1}\n', Shape(key_column="k"), "no column 'k'"),
            (b'{"at": true}\n', Shape(timestamp_column="at"), "no time"),
            (b'{"at": "noon"}\n', Shape(timestamp_column="at"), "no time"),
            (b'{"at": "2026-11-23T13:00:00"}\n', Shape(timestamp_column="at"), "no time"),
        ],
    )
    def test_refusals_name_the_line(self, tmp_path: Path, content: bytes, shape: Shape, said: str) -> None:
        with pytest.raises(Unusable, match=said):
            from_file(tmp_path, "x.ndjson", content, shape)

    def test_envelopes_are_published_as_they_were_read(self, tmp_path: Path) -> None:
        read = (
            b'{"id":"0193507e-7f1c-7cc3-8d7b-0d8a5c9f1e11","topic":"orders","partition":3,"offset":17,"timestamp":5,"key":"a",'
            b'"value":{"n":1.10},"headers":{"source":"till"}}\n{"id":null,"topic":"t","partition":0,"offset":1,"key64":"/w==","text":"x"}\n'
        )
        (tmp_path / "x.ndjson").write_bytes(read)
        lines = list(file_lines(tmp_path / "x.ndjson", Shape(envelope=True)))
        assert b'"value":{"n":1.10}' in lines[0].record
        first, second = (json.loads(line.record) for line in lines)
        assert first["id"] == "0193507e-7f1c-7cc3-8d7b-0d8a5c9f1e11"
        assert not {"topic", "partition", "offset"} & (first.keys() | second.keys())
        assert uuid.UUID(second["id"]).version == 7
        assert (second["key64"], second["text"]) == ("/w==", "x")


class TestCsv:
    def test_a_row_is_an_object_with_the_names_of_the_header(self, tmp_path: Path) -> None:
        content = b'carrier,note,delay\r\nUA,"a ""quoted"",\nnote",007\r\n\r\nAA,,-2.50\r\n'
        assert from_file(tmp_path, "x.csv", content) == [
            {"value": {"carrier": "UA", "note": 'a "quoted",\nnote', "delay": "007"}},
            {"value": {"carrier": "AA", "note": "", "delay": "-2.50"}},
        ]

    def test_numbers_are_kept_digit_for_digit(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_bytes(b"a,b,c,d,e\n-2.50,007,1e400,NaN,\n")
        (line,) = file_lines(tmp_path / "x.csv", Shape(numbers=True))
        assert line.record.endswith(b'"value":{"a":-2.50,"b":"007","c":1e400,"d":"NaN","e":""}}')

    def test_a_byte_order_mark_is_no_part_of_the_first_name(self, tmp_path: Path) -> None:
        assert from_file(tmp_path, "x.csv", b"\xef\xbb\xbfa\n1\n") == [{"value": {"a": "1"}}]

    def test_key_and_timestamp_columns(self, tmp_path: Path) -> None:
        shape = Shape(key_column="carrier", timestamp_column="at")
        (record,) = from_file(tmp_path, "x.csv", b"carrier,at\nUA,2013-01-01T10:00:00Z\n", shape)
        assert (record["key"], record["timestamp"]) == ("UA", 1_357_034_400_000)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "no header"),
            (b"a,b\n1\n", "line 2 has 1 fields"),
            (b"a\n1,2\n", "line 2 has 2 fields"),
            (b"a\n\xff\n", "not UTF-8"),
            (b'a\n"x', "cannot be read"),
            (b'a\n"x"y\n', "cannot be read"),
            (b"a\n" + b"x" * 200_000 + b"\n", "cannot be read"),
            (b"a,a\n1,2\n", "twice"),
        ],
    )
    def test_refusals(self, tmp_path: Path, content: bytes, said: str) -> None:
        with pytest.raises(Unusable) as refusal:
            from_file(tmp_path, "x.csv", content)
        assert said in "".join(refusal.value.lines())


@pytest.mark.parametrize("name", ["x.parquet", "x", "x.csv.gz"])
def test_other_kinds_of_file_are_refused_with_what_there_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unusable) as refusal:
        from_file(tmp_path, name, b"")
    assert ".ndjson" in refusal.value.what_to_do


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"missing\.csv"):
        list(file_lines(tmp_path / "missing.csv", Shape()))
