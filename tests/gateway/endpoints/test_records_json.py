"""Record objects in and out: what was read can be published again, and nothing hostile gets through as something else."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.record import Record
from gateway.endpoints.records_json import (
    JSON_HEADERS,
    RecordMembers,
    content_type,
    decode_records,
    is_json_type,
    one_line_json,
    to_answer,
    to_incoming,
)
from gateway.errors import BodyMalformed, BodyTooLarge, RecordInvalid
from gateway.pipeline import Incoming

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
MESSAGE_ID = ("sprawl-message-id", ID.encode())


def incoming(*documents: Any, lines: bool = False) -> list[Incoming]:
    body = b"\n".join(json.dumps(document).encode() for document in documents) if lines else json.dumps(list(documents)).encode()
    return to_incoming(decode_records(body, lines=lines, records_max=1_000))


def answer(record: Record) -> dict[str, Any]:
    encoded = msgspec.json.encode(to_answer("orders", 3, record))
    assert b"\n" not in encoded
    assert b"\r" not in encoded
    found: dict[str, Any] = json.loads(encoded)
    return found


class TestIn:
    def test_a_value_is_kept_as_its_own_text(self) -> None:
        body = b'{"value":  {"b" : 1.50e3, "a":[1,2 ,3], "a": "\\u00e4"}  }'
        [record] = to_incoming(decode_records(body, lines=False, records_max=1))
        assert record.value == b'{"b" : 1.50e3, "a":[1,2 ,3], "a": "\\u00e4"}'
        assert record.headers is JSON_HEADERS

    @pytest.mark.parametrize("value", [{"a": 1}, [1, 2], "text", 7, 1.5, True, False, 10**40])
    def test_any_json_value(self, value: Any) -> None:
        [record] = incoming({"value": value})
        assert json.loads(record.value or b"") == value

    def test_null_is_a_tombstone(self) -> None:
        [record] = incoming({"key": "k", "value": None})
        assert (record.value, record.headers) == (None, ())

    def test_text_and_bytes(self) -> None:
        text, binary = incoming({"text": "grüße"}, {"value64": base64.b64encode(b"\x00\xff").decode()})
        assert (text.value, text.headers) == ("grüße".encode(), ((b"content-type", b"text/plain; charset=utf-8"),))
        assert (binary.value, binary.headers) == (b"\x00\xff", ())
        assert [record.value for record in incoming({"text": ""}, {"value64": ""})] == [b"", b""]

    def test_keys(self) -> None:
        records = incoming(
            {"key": "ä", "text": ""}, {"key64": "/w==", "text": ""}, {"key": None, "text": ""}, {"key": "", "text": ""}
        )
        assert [record.key for record in records] == ["ä".encode(), b"\xff", None, b""]

    def test_headers_keep_their_duplicates_and_nulls(self) -> None:
        [record] = incoming(
            {"text": "", "headers": {"a": ["1", None, "2"], "b": None}, "headers64": {"c": "/w==", "d": ["AA==", None]}}
        )
        assert record.headers == (
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"a", b"1"),
            (b"a", None),
            (b"a", b"2"),
            (b"b", None),
            (b"c", b"\xff"),
            (b"d", b"\x00"),
            (b"d", None),
        )

    def test_a_content_type_of_ones_own_is_the_only_one(self) -> None:
        [record] = incoming({"value": {}, "headers": {"Content-Type": "application/cloudevents+json"}})
        assert record.headers == ((b"Content-Type", b"application/cloudevents+json"),)

    def test_timestamps_ids_and_partitions(self) -> None:
        one, other = incoming(
            {"text": "", "timestamp": 17, "id": ID, "partition": 2}, {"text": "", "timestamp": "1970-01-01T00:00:01Z"}
        )
        assert (one.timestamp_ms, one.message_id, one.partition) == (17, ID, 2)
        assert (other.timestamp_ms, other.message_id, other.partition) == (1_000, None, None)

    @pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n  \n"])
    def test_ndjson_with_any_line_ends(self, ending: bytes) -> None:
        body = b'{"text":"1"}\r\n\n{"text":"2"}' + ending
        assert [record.value for record in to_incoming(decode_records(body, lines=True, records_max=9))] == [b"1", b"2"]

    def test_a_single_object_and_an_array(self) -> None:
        assert len(decode_records(b' {"text":"1"} ', lines=False, records_max=1)) == 1
        assert len(decode_records(b' [{"text":"1"},{"text":"2"}] ', lines=False, records_max=2)) == 2

    def test_the_bound_on_records(self) -> None:
        for lines in (True, False):
            documents = [{"text": ""}] * 1_000
            assert len(incoming(*documents, lines=lines)) == 1_000
            with pytest.raises(BodyTooLarge, match=r"rest\.records_max allows 1000 records"):
                incoming(*documents, {"text": ""}, lines=lines)

    def test_a_flood_of_empty_objects_ends_at_the_first(self) -> None:
        flood = b"[" + b"{}," * 100_000 + b"{}]"
        with pytest.raises(BodyMalformed) as refusal:
            decode_records(flood, lines=False, records_max=10)
        assert refusal.value.where == "$[0]"

    @pytest.mark.parametrize(
        ("body", "where", "reason"),
        [
            (b"", "", "ends inside"),
            (b"[]", "", "no record"),
            (b"   ", "", "ends inside"),
            (b"null", "", "Expected"),
            (b'"text"', "", "Expected"),
            (b"[1]", "$[0]", "Expected"),
            (b"[[]]", "$[0]", "Expected"),
            (b'{"text":"a"', "", "ends inside"),
            (b'{"text":"a"} x', "byte 14", "trailing"),
            (b'{"text":"a"}{"text":"b"}', "byte 13", "trailing"),
            (b'[{"text":"a"},]', "byte 14", "trailing comma"),
            (b'{"value":tru}', "byte 10", "malformed"),
            (b'{"value":NaN}', "byte 9", "malformed"),
            (b'{"value":01}', "byte 10", "invalid number"),
            (b'{"value":"\\ud800"}', "", "surrogate"),
            (b'{"value":"\\q"}', "byte 11", "escape"),
            (b'{"value":"a\nb"}', "byte 11", "invalid character"),
            (b'\xef\xbb\xbf{"text":"a"}', "byte 0", "malformed"),
            (b'{"text":"\xff"}', "byte 9", "0xff is no UTF-8"),
            (b'{"value":{"deep":"\xc3("}}', "byte 18", "0xc3 is no UTF-8"),
            (b'{"value":"\xed\xa0\x80"}', "byte 10", "UTF-8"),
            (b'[{"text":"a"},{"txt":"b"}]', "$[1]", "unknown field `txt`"),
            (b'{"text":1}', "$.text", "Expected"),
            (b'{"text":"a","key":1}', "$.key", "Expected"),
            (b'{"text":"a","partition":"1"}', "$.partition", "Expected"),
            (b'{"text":"a","partition":1.5}', "$.partition", "Expected"),
            (b'{"text":"a","headers":[]}', "$.headers", "Expected"),
            (b'{"text":"a","headers":{"a":1}}', "$.headers[...]", "Expected"),
            (b'{"text":"a","headers":{"a":["b",1]}}', "$.headers[...][1]", "Expected"),
            (b'{"value64":"a"}', "$.value64", "base64"),
            (b'{"value64":"_w=="}', "$.value64", "base64"),
            (b'{"value64":"YQ"}', "$.value64", "base64"),
            (b'{"text":"a","key64":"%"}', "$.key64", "base64"),
            (b'{"value":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "", "nested too deeply"),
        ],
    )
    def test_hostile_bodies(self, body: bytes, where: str, reason: str) -> None:
        with pytest.raises(BodyMalformed, match=reason) as refusal:
            decode_records(body, lines=False, records_max=10)
        assert (refusal.value.where or "") == where

    @pytest.mark.parametrize(
        ("body", "where"),
        [
            (b'{"text":"a"}\n{"text":', "line 2"),
            (b'{"text":"a"}\n\n{"txt":"b"}\n{"text":"c"}', "line 3"),
            (b'{"text":"a"}\n{"text":"b"} {"text":1}', "line 2, byte 14"),
            (b'{"text":"a"}\n[{"text":"b"}]', "line 2"),
            (b'{"text":"a"}\n{"text":"b","key":1}', "line 2, $.key"),
            (b'{"text":"a"}\n{"value":tru}', "line 2, byte 10"),
            (b'{"text":"a"}\n{"value":' + b"[" * 5_000 + b"}", "line 2"),
        ],
    )
    def test_ndjson_names_the_line(self, body: bytes, where: str) -> None:
        with pytest.raises(BodyMalformed) as refusal:
            decode_records(body, lines=True, records_max=10)
        assert refusal.value.where == where

    def test_empty_ndjson(self) -> None:
        for body in (b"", b"\n", b" \r\n\n"):
            with pytest.raises(BodyMalformed, match="no record"):
                decode_records(body, lines=True, records_max=10)

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"key": "a", "key64": "YQ=="}, "both"),
            ({"timestamp": "noon"}, "a time is"),
            ({"timestamp": "2026-02-30T00:00:00Z"}, "a time is"),
        ],
    )
    def test_records_that_contradict_themselves_are_named_by_index(self, wrong: dict[str, Any], reason: str) -> None:
        with pytest.raises(RecordInvalid, match=f"record 1 .*{reason}"):
            incoming({"text": ""}, {"text": ""} | wrong)

    @given(st.binary(max_size=200), st.booleans())
    def test_no_body_raises_anything_else(self, body: bytes, lines: bool) -> None:
        with contextlib.suppress(BodyMalformed, BodyTooLarge, RecordInvalid):
            to_incoming(decode_records(body, lines=lines, records_max=10))

    def test_every_truncation_of_a_body_is_refused(self) -> None:
        body = b'[{"key":"k","value":{"a":[1,"\\u00e4"]},"headers":{"h":["1",null]},"timestamp":1,"partition":0}]'
        decode_records(body, lines=False, records_max=10)
        for end in range(len(body)):
            with pytest.raises(BodyMalformed):
                decode_records(body[:end], lines=False, records_max=10)

    @pytest.mark.parametrize(
        "members", [{}, {"key": "k"}, {"value": 1, "text": "a"}, {"value": None, "value64": ""}, {"text": "a", "value64": "YQ=="}]
    )
    def test_one_value_each(self, members: dict[str, Any]) -> None:
        for lines in (True, False):
            with pytest.raises(RecordInvalid, match=r"record 1 .*one of"):
                incoming({"text": ""}, members, lines=lines)
        with pytest.raises(msgspec.ValidationError, match="one of"):
            msgspec.json.decode(json.dumps(members), type=RecordMembers)


class TestOut:
    def test_the_members(self) -> None:
        record = Record(
            17, 1_000, b"eu/7", b'{"amount": 12}', (MESSAGE_ID, ("content-type", b"application/json"), ("source", b"till"))
        )
        assert answer(record) == {
            "id": ID,
            "topic": "orders",
            "partition": 3,
            "offset": 17,
            "timestamp": 1_000,
            "key": "eu/7",
            "value": {"amount": 12},
            "headers": {"content-type": "application/json", "source": "till"},
        }

    def test_no_key_no_value_no_id(self) -> None:
        found = answer(Record(0, 0, None, None))
        assert (found["key"], found["value"], found["id"]) == (None, None, None)

    def test_what_is_no_utf8(self) -> None:
        found = answer(Record(0, 0, b"\xff", b"\xfe", (MESSAGE_ID, ("h", b"\xfd"), ("h", None), ("i", b"text"))))
        assert (found["key64"], found["value64"]) == ("/w==", "/g==")
        assert (found["headers64"], found["headers"]) == ({"h": ["/Q==", None]}, {"i": "text"})
        assert not {"key", "value", "text"} & set(found)

    @pytest.mark.parametrize("media_type", [b"application/json", b"Application/JSON; charset=utf-8", b"application/geo+json"])
    def test_json_comes_out_as_json(self, media_type: bytes) -> None:
        assert answer(Record(0, 0, None, b"[1]", (MESSAGE_ID, ("Content-Type", media_type))))["value"] == [1]

    @pytest.mark.parametrize(
        "value", [b"{", b'{"a":1}}', b'{"a":1} x', b"", b"nul", b'"\\ud800"', b'"\x01"', b'"a\nb"', b"[" * 5_000 + b"]" * 5_000]
    )
    def test_what_only_claims_to_be_json_comes_out_as_text(self, value: bytes) -> None:
        assert answer(Record(0, 0, None, value, (MESSAGE_ID, ("content-type", b"application/json"))))["text"] == value.decode()

    def test_json_that_is_no_utf8_comes_out_as_bytes(self) -> None:
        found = answer(Record(0, 0, None, b'"\xff"', (MESSAGE_ID, ("content-type", b"application/json"))))
        assert base64.b64decode(found["value64"]) == b'"\xff"'

    @given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\r\n 01aeu\\', max_size=60).map(str.encode))
    def test_no_value_breaks_its_line_or_the_document_around_it(self, value: bytes) -> None:
        record = Record(0, 0, b"k", value, (MESSAGE_ID, ("content-type", b"application/json")))
        found = answer(record)
        assert found["key"] == "k"
        if "value" in found:
            assert found["value"] == json.loads(value)

    def test_line_breaks_of_json_are_joined_and_the_rest_kept(self) -> None:
        assert one_line_json(b'{\r\n  "a": 1.50,\n "b": "x\\ny"}') == b'{"a":1.50,"b":"x\\ny"}'
        assert one_line_json(b'{ "a": 1.50}') == b'{ "a": 1.50}'

    def test_our_own_headers_stay_inside(self) -> None:
        record = Record(0, 0, None, b"v", (MESSAGE_ID, ("sprawl-expires-at", b"1"), ("sprawl-message-id", b"2")))
        assert "headers" not in answer(record)

    def test_the_first_content_type_counts(self) -> None:
        assert content_type(Record(0, 0, None, b"", (("a", b"b"), ("Content-Type", b"x/y"), ("content-type", b"z/z")))) == b"x/y"
        assert content_type(Record(0, 0, None, b"")) is None

    @pytest.mark.parametrize("other", [b"", b"text/json", b"application/jsonp", b"application/x-ndjson", b"+json/a"])
    def test_other_types(self, other: bytes) -> None:
        assert not is_json_type(other)


texts = st.text(max_size=20)
names = st.text(alphabet="abcABC-_.", min_size=1, max_size=8)
headers = st.lists(st.tuples(names, st.none() | st.binary(max_size=10)), max_size=5)


@given(
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=40) | st.sampled_from([b'{"a": [1, 2]}', b"17", b'"t"', b"{\n}"]),
    headers,
    st.sampled_from([None, b"application/json", b"text/plain", b"image/png"]),
)
def test_what_was_read_can_be_published_again(
    key: bytes | None, value: bytes | None, own: list[tuple[str, bytes | None]], media_type: bytes | None
) -> None:
    """Key, value and headers are the same after a round trip; of JSON texts those that break lines lose their spaces."""
    typed = [] if media_type is None else [("content-type", media_type)]
    record = Record(5, 99, key, value, (MESSAGE_ID, *typed, *own))
    document = answer(record)
    for place in ("topic", "partition", "offset"):
        del document[place]
    [again] = incoming(document)
    assert (again.key, again.timestamp_ms, again.message_id) == (key, 99, ID)
    if value is not None and "value" in document and b"\n" in value:
        assert json.loads(again.value or b"") == json.loads(value)
    else:
        assert again.value == value
    by_name: dict[bytes, list[bytes | None]] = {}
    for name, content in again.headers:
        by_name.setdefault(name, []).append(content)
    wanted: dict[bytes, list[bytes | None]] = {}
    for header, content in (*typed, *own):
        wanted.setdefault(header.encode(), []).append(content)
    if media_type is None and value is not None:
        by_name.pop(b"content-type", None)  # implied by the member that carried the value
    assert by_name == wanted


def test_members_of_other_messages_may_be_added_by_inheritance() -> None:
    """As WebSocket does: one shape of records in every protocol."""

    class Publish(RecordMembers, forbid_unknown_fields=True, gc=False):
        op: str = ""

    found = msgspec.json.decode(b'{"op":"publish","text":"a"}', type=Publish)
    assert to_incoming([found])[0].value == b"a"


@pytest.mark.parametrize("lines", [False, True])
def test_a_refusal_does_not_repeat_a_name_of_any_length(lines: bool) -> None:
    body = b'{"' + b"n" * 100_000 + b'":1}'
    with pytest.raises(BodyMalformed) as refused:
        decode_records(body, lines=lines, records_max=10)
    assert "unknown field `nnn" in str(refused.value)
    assert len(str(refused.value)) < 300
