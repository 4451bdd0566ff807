"""Operations out of JSON: what is taken, what is refused, and that one wrong operation leaves the others alone."""

from __future__ import annotations

import json

import pytest

from broker.delivery.position import AtOffset, AtTime, Cursor
from broker.delivery.subscription import Delivered
from broker.engine.base import Damage, Gap
from broker.record import Record
from gateway.endpoints.websocket_frames import JSON, Losses, encode_chunks
from gateway.endpoints.websocket_messages import (
    Auth,
    Ping,
    Publish,
    Refused,
    Subscribe,
    decode_operations,
    incoming_of,
    position_of,
)
from gateway.errors import ParameterInvalid


def decoded(message: str | bytes | object, **limits: int):
    text = message if isinstance(message, bytes) else (message if isinstance(message, str) else json.dumps(message)).encode()
    return list(decode_operations(text, **({"operations_max": 10, "ref_bytes_max": 50} | limits)))


def payload(frame: bytes) -> dict:
    return json.loads(frame[2 if frame[1] < 126 else 4 if frame[1] == 126 else 10 :])


class TestDecoding:
    def test_one_and_an_array(self):
        (ping,) = decoded({"op": "ping", "ref": {"a": 1}})
        assert isinstance(ping, Ping)
        assert bytes(ping.ref) == b'{"a": 1}'
        assert [type(operation) for operation in decoded([{"op": "ping"}, {"op": "auth", "token": "t"}])] == [Ping, Auth]
        assert decoded([]) == []

    def test_every_cut_prefix_is_refused_with_its_place(self):
        message = b'{"op":"publish","ref":1,"address":"a/b","value":{"x":[1,2]}}'
        for cut in range(len(message)):
            (refused,) = decoded(message[:cut])
            assert isinstance(refused, Refused)
            assert f"byte {cut}" in str(refused.error)

    def test_one_wrong_of_three(self):
        first, wrong, last = decoded([{"op": "ping"}, {"op": "unsubscribe", "ref": 7, "sub": "s", "x": 1}, {"op": "ping"}])
        assert isinstance(first, Ping)
        assert isinstance(last, Ping)
        assert (wrong.ref, wrong.sub) == (b"7", b'"s"')
        assert "unknown field x" in str(wrong.error)

    def test_a_long_ref_is_neither_kept_nor_echoed(self):
        (refused,) = decoded({"op": "ping", "ref": "x" * 60})
        assert "websocket.ref_bytes_max allows 50" in str(refused.error)
        assert refused.ref == b""
        (refused,) = decoded({"op": "wash", "ref": "x" * 60, "sub": "y" * 60})
        assert (refused.ref, refused.sub) == (b"", b"")

    def test_too_many_operations_are_refused_as_one(self):
        (refused,) = decoded([{"op": "ping"}] * 11)
        assert "websocket.operations_max allows 10" in str(refused.error)

    def test_a_token_does_not_show(self):
        (auth,) = decoded({"op": "auth", "token": "s3cret"})
        assert "s3cret" not in repr(auth)
        (refused,) = decoded({"op": "auth", "token": 5, "ref": "s3cret"})
        assert "s3cret" not in str(refused.error)


class TestMeaning:
    @pytest.mark.parametrize(
        ("start", "position"),
        [
            ("earliest", "earliest"),
            ("latest", "latest"),
            ({"cursor": "12-3"}, Cursor(12, 3)),
            ({"offset": 5, "partition": 2}, AtOffset(2, 5)),
            ({"timestamp": 17}, AtTime(17)),
            ({"timestamp": "1970-01-01T00:00:01Z"}, AtTime(1000)),
        ],
    )
    def test_positions(self, start, position):
        (subscribe,) = decoded({"op": "subscribe", "address": "a", "from": start})
        assert isinstance(subscribe, Subscribe)
        assert position_of(subscribe.start) == position

    @pytest.mark.parametrize(
        "start", [{}, {"offset": 1}, {"partition": 1}, {"cursor": "1-1", "timestamp": 1}, {"cursor": "x"}, {"timestamp": "x"}]
    )
    def test_positions_that_are_none(self, start):
        (subscribe,) = decoded({"op": "subscribe", "address": "a", "from": start})
        with pytest.raises(ParameterInvalid, match="from"):
            position_of(subscribe.start)

    def test_the_operations_key_is_for_records_without_one(self):
        (publish,) = decoded({"op": "publish", "address": "a/k", "records": [{"text": "1"}, {"text": "2", "key": "own"}]})
        assert isinstance(publish, Publish)
        topic, records = incoming_of(publish)
        assert topic == "a"
        assert [record.key for record in records] == [b"k", b"own"]


def delivered(number: int, value: bytes = b"x") -> Delivered:
    return Delivered("orders", 0, Record(number, 1, None, value), Cursor(number + 1))


class TestFrames:
    def test_records_are_cut_into_messages_with_their_own_cursors(self):
        records = [delivered(number, b"x" * 100) for number in range(10)]
        chunks = encode_chunks(JSON, records, None, Cursor(99), 500)
        messages = [payload(JSON.records(b'"s"', chunk)) for chunk in chunks]
        assert len(messages) > 2
        assert [record["offset"] for message in messages for record in message["records"]] == list(range(10))
        for message in messages[:-1]:
            assert message["cursor"] == f"{message['records'][-1]['offset'] + 1}-0"
        assert messages[-1]["cursor"] == "99-0"

    def test_a_record_beyond_the_bound_goes_alone(self):
        chunks = encode_chunks(JSON, [delivered(0), delivered(1, b"x" * 1000), delivered(2)], None, Cursor(3), 500)
        assert [len(payload(JSON.records(b'"s"', chunk))["records"]) for chunk in chunks] == [1, 1, 1]

    def test_nothing_makes_no_message(self):
        assert encode_chunks(JSON, [], None, Cursor(5), 500) == []

    def test_damage_is_told_even_without_records(self):
        (chunk,) = encode_chunks(JSON, [], Losses([Damage("orders", 1, 5, 9, "torn")], [Gap("a", 0, 1, 2)]), Cursor(5), 500)
        message = payload(JSON.records(b'"s"', chunk))
        assert message["records"] == []
        assert message["gaps"] == [{"topic": "a", "partition": 0, "from_offset": 1, "to_offset": 2}]
        assert message["damage"] == [{"topic": "orders", "partition": 1, "from_offset": 5, "to_offset": 9}]

    def test_names_are_json(self):
        frame = JSON.going_away([(json.dumps('a"b').encode(), Cursor(1, 2))])
        assert payload(frame) == {"op": "going-away", "subscriptions": [{"sub": 'a"b', "cursor": "1-2"}]}
        assert payload(JSON.error({"status": 400}, ref=b"[1]", sub=b'"s"')) == {
            "op": "error",
            "ref": [1],
            "sub": "s",
            "problem": {"status": 400},
        }
