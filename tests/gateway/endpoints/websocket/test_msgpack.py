"""The binary sub-protocol, spoken by a foreign MessagePack and compared byte by byte with what its document shows."""

from __future__ import annotations

import itertools
import re
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest

from broker.broker import Outgoing
from broker.delivery.position import Cursor
from broker.delivery.subscription import Delivered
from broker.engine.base import Damage, Gap
from broker.record import Record
from gateway.endpoints.websocket_frames import JSON, MSGPACK, Losses, encode_chunks
from gateway.endpoints.websocket_messages import MSGPACK as DECODERS
from gateway.endpoints.websocket_messages import Auth, Ping, Refused, decode_operations, incoming_of
from gateway.errors import GatewayError

SUBPROTOCOL = "sprawl.v1.msgpack"
DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "guide" / "websocket-binary.md"
ID = "019a7f2e-5c00-7000-8000-000000000001"


def decoded(message, **limits: int):
    packed = message if isinstance(message, bytes) else msgpack.packb(message)
    return list(decode_operations(packed, DECODERS, **({"operations_max": 10, "ref_bytes_max": 50} | limits)))


def payload(frame: bytes):
    assert frame[0] == 0x82
    return msgpack.unpackb(frame[2 if frame[1] < 126 else 4 if frame[1] == 126 else 10 :])


def delivered(number: int, value: bytes | None = b"x", headers=()) -> Delivered:
    return Delivered(
        "orders", 0, Record(number, 1_000, b"k", value, (("sprawl-message-id", ID.encode()), *headers)), Cursor(number + 1)
    )


class TestDecoding:
    def test_one_and_an_array(self):
        (ping,) = decoded({"op": "ping", "ref": {"a": [1, b"\xff"]}})
        assert isinstance(ping, Ping)
        assert msgpack.unpackb(bytes(ping.ref)) == {"a": [1, b"\xff"]}
        assert [type(operation) for operation in decoded([{"op": "ping"}, {"op": "auth", "token": "t"}])] == [Ping, Auth]
        assert decoded([]) == []

    def test_records_are_arrays_whose_end_may_be_left_out(self):
        (publish,) = decoded(
            {
                "op": "publish",
                "topic": "orders",
                "records": [[b"\xff", b"\x00"], [None, None, [["h", b"\xfe"], ["n", None]], 5, ID, 3]],
            }
        )
        topic, (first, second) = incoming_of(publish)
        assert topic == "orders"
        assert (first.key, first.value, list(first.headers), first.timestamp_ms) == (b"\xff", b"\x00", [], None)
        assert (second.key, second.value, second.timestamp_ms, second.message_id, second.partition) == (None, None, 5, ID, 3)
        assert list(second.headers) == [(b"h", b"\xfe"), (b"n", None)]

    def test_records_of_key_and_value_alone_go_as_columns(self):
        """The same records, whichever way they take."""
        plain = [[b"a", b"1"], [None, b""], [b"", b"\xff"]]
        (publish,) = decoded({"op": "publish", "address": "orders/k", "records": plain})
        _, columns = incoming_of(publish)
        assert columns.pairs() == [(b"a", b"1"), (b"k", b""), (b"", b"\xff")]
        for more in ([b"b", None], [b"b", b"2", [["h", b""]]], [b"b", b"2", None, 7], [b"b", b"2", None, None, None, 0]):
            (publish,) = decoded({"op": "publish", "address": "orders/k", "records": [*plain, more]})
            _, records = incoming_of(publish)
            assert [(record.key, record.value) for record in records[:3]] == columns.pairs()

    @pytest.mark.parametrize(
        "record",
        [
            [],
            [b"k"],
            ["text", b""],
            [b"k", "text"],
            [b"k", b"", [["h"]]],
            [b"k", b"", {}],
            [b"", b"", [], "1"],
            [b""] * 9,
            {"key": b""},
            7,
        ],
    )
    def test_records_of_another_shape_are_refused_with_their_place(self, record):
        (refused,) = decoded({"op": "publish", "ref": 1, "topic": "a", "records": [[b"k", b"v"], record]})
        assert isinstance(refused, Refused)
        assert refused.ref == b"\x01"
        assert "$.records[1]" in str(refused.error) or "$.records[...]" in str(refused.error)

    def test_every_cut_prefix_is_refused(self):
        message = msgpack.packb({"op": "publish", "ref": 1, "address": "a/b", "records": [[b"k", b"v" * 300, [["h", b"x"]]]]})
        for cut in range(len(message)):
            (refused,) = decoded(message[:cut])
            assert isinstance(refused, Refused), cut
            assert str(refused.error)

    def test_every_flipped_byte_is_refused_or_read(self):
        """Any outcome but an exception."""
        message = msgpack.packb(
            [{"op": "publish", "ref": "r", "topic": "ab", "records": [[b"k", b"v", [["h", b"x"]], 7, ID, 1]]}] * 2
        )
        for place in range(len(message)):
            for flip in (1, 0x20, 0x80, 0xFF):
                changed = bytearray(message)
                changed[place] ^= flip
                for operation in decoded(bytes(changed)):
                    if not isinstance(operation, Refused) and hasattr(operation, "records"):
                        try:
                            incoming_of(operation)
                        except GatewayError:
                            continue

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"\xc1",
            b"\x90" * 5_000 + b"\x01",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"{}",
        ],
        ids=["empty", "never-used", "deep", "array-4G", "map-4G", "bin-4G", "json"],
    )
    def test_hostile(self, message):
        operations = decoded(message, operations_max=10_000)
        assert operations == [] or all(isinstance(operation, Refused) for operation in operations)

    def test_deep_nesting_in_a_ref(self):
        (refused,) = decoded(b"\x82\xa2op\xa4ping\xa3ref" + b"\x91" * 100_000 + b"\x01")
        assert isinstance(refused, Refused)

    def test_one_wrong_of_three(self):
        first, wrong, last = decoded([{"op": "ping"}, {"op": "unsubscribe", "ref": 7, "sub": "s", "x": 1}, {"op": "ping"}])
        assert isinstance(first, Ping)
        assert isinstance(last, Ping)
        assert (wrong.ref, wrong.sub) == (b"\x07", b"\xa1s")

    def test_bounds(self):
        (refused,) = decoded({"op": "ping", "ref": "x" * 60})
        assert "websocket.ref_bytes_max allows 50" in str(refused.error)
        (refused,) = decoded([{"op": "ping"}] * 11)
        assert "websocket.operations_max allows 10" in str(refused.error)


class TestFrames:
    def test_a_record_is_an_array(self):
        (chunk,) = encode_chunks(
            MSGPACK, [delivered(7, b"\xff\x00", (("a", b"\xfe"), ("sprawl-expires-at", b"99")))], None, Cursor(8), 500
        )
        assert payload(MSGPACK.records(b"\xa1s", chunk)) == {
            "op": "records",
            "sub": "s",
            "cursor": "8-0",
            "records": [["orders", 0, 7, 1_000, ID, b"k", b"\xff\x00", [["a", b"\xfe"]], 99]],
        }

    def test_a_tombstone_and_a_record_of_another_maker(self):
        foreign = Delivered("orders", 1, Record(0, 5, None, None, ()), Cursor(1))
        (chunk,) = encode_chunks(MSGPACK, [foreign], None, Cursor(1), 500)
        assert payload(MSGPACK.records(b"\xa1s", chunk))["records"] == [["orders", 1, 0, 5, None, None, None, [], None]]

    @pytest.mark.parametrize("count", [1, 15, 16, 300, 70_000])
    def test_any_number_of_records(self, count):
        (chunk,) = encode_chunks(MSGPACK, [delivered(number) for number in range(count)], None, Cursor(count), 1 << 30)
        assert [record[2] for record in payload(MSGPACK.records(b"\xa1s", chunk))["records"]] == list(range(count))

    def test_records_are_cut_into_messages_with_their_own_cursors(self):
        chunks = encode_chunks(MSGPACK, [delivered(number, b"x" * 100) for number in range(10)], None, Cursor(99), 500)
        messages = [payload(MSGPACK.records(b"\xa1s", chunk)) for chunk in chunks]
        assert len(messages) > 2
        assert [record[2] for message in messages for record in message["records"]] == list(range(10))
        assert [message["cursor"] for message in messages][-1] == "99-0"

    def test_damage_is_told(self):
        (chunk,) = encode_chunks(MSGPACK, [], Losses([Damage("orders", 1, 5, 9, "torn")], [Gap("a", 0, 1, 2)]), Cursor(5), 500)
        message = payload(MSGPACK.records(b"\xa1s", chunk))
        assert message["gaps"] == [{"topic": "a", "partition": 0, "from_offset": 1, "to_offset": 2}]
        assert (message["records"], message["damage"]) == (
            [],
            [{"topic": "orders", "partition": 1, "from_offset": 5, "to_offset": 9}],
        )

    def test_it_is_smaller_than_json(self):
        binary = delivered(7, bytes(range(200)))
        sizes = [
            len(frames.records(frames.encoded("s"), encode_chunks(frames, [binary], None, Cursor(8), 500)[0]))
            for frames in (MSGPACK, JSON)
        ]
        assert sizes[0] < 0.7 * sizes[1]


class TestDocument:
    """The bytes in docs/guide/websocket-binary.md are the node's."""

    @pytest.fixture
    def examples(self) -> list[bytes]:
        blocks = re.findall(r"```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        return [bytes.fromhex("".join(re.findall(r"(?<![^ ])[0-9a-f]{2}(?= |$)", _bytes(block)))) for block in blocks]

    def test_a_publish(self, examples):
        (publish,) = decoded(examples[0])
        topic, columns = incoming_of(publish)
        assert (topic, columns.pairs()) == ("orders", [(b"eu/7", b"\x01\x02")])
        assert bytes(publish.ref) == b"\x07"

    def test_a_delivery(self, examples):
        headers = (("sprawl-message-id", ID.encode()), ("source", b"till"))
        record = Delivered("orders", 3, Record(17, 1_767_225_600_000, b"eu/7", b"\x01\x02", headers), Cursor(42))
        (chunk,) = encode_chunks(MSGPACK, [record], None, Cursor(42), 1_000)
        assert MSGPACK.records(b"\xa1s", chunk) == examples[1]


def _bytes(block: str) -> str:
    """The hexadecimal part of each line: all before the first word that is no byte."""
    return " ".join(
        " ".join(itertools.takewhile(lambda word: re.fullmatch("[0-9a-f]{2}", word), line.split())) for line in block.splitlines()
    )


class Packed:
    """A connection of the foreign client, speaking MessagePack."""

    def __init__(self, connection) -> None:
        self.connection = connection

    async def ask(self, operation):
        await self.connection.send(msgpack.packb(operation))
        return await self.hear()

    async def hear(self):
        message = await self.connection.recv()
        assert isinstance(message, bytes)
        return msgpack.unpackb(message)


@asynccontextmanager
async def packed(node, *offers: str, **options):
    headers = {"Authorization": f"Bearer {node.token()}"}
    offered = offers or (SUBPROTOCOL,)
    async with node.anybody(subprotocols=offered, additional_headers=headers, **options) as client:
        assert client.connection.subprotocol == SUBPROTOCOL
        speaker = Packed(client.connection)
        ready = await speaker.hear()
        assert ready["op"] == "ready"
        yield speaker


class TestConnection:
    async def test_publish_and_subscribe(self, node):
        await node.publish("orders", 1)
        async with packed(node) as client:
            assert (await client.ask({"op": "subscribe", "sub": "s", "address": "orders"}))["op"] == "subscribed"
            await client.connection.send(
                msgpack.packb(
                    {"op": "publish", "ref": b"\x01", "topic": "orders", "records": [[b"\xff", b"\xfe", [["h", b"\xfd"]], 9, ID]]}
                )
            )
            heard = {}
            for _ in range(2):
                message = await client.hear()
                heard[message["op"]] = message
            (receipt,) = heard["ack"]["records"]
            assert heard["ack"]["ref"] == b"\x01"
            assert receipt["id"] == ID
            (record,) = heard["records"]["records"]
            assert record == ["orders", receipt["partition"], receipt["offset"], 9, ID, b"\xff", b"\xfe", [["h", b"\xfd"]], None]

    async def test_the_key_of_a_subscription_is_bytes(self, node):
        await node.pipeline.broker.publish(
            "orders", [Outgoing(b"\xff", b"1"), Outgoing(b"k", b"2")], durable=True, auto_create=True
        )
        async with packed(node) as client:
            await client.ask({"op": "subscribe", "sub": "s", "topic": "orders", "key": b"\xff", "from": "earliest"})
            assert [record[6] for record in (await client.hear())["records"]] == [b"1"]

    async def test_both_sub_protocols_hear_the_same_broadcast(self, node):
        await node.publish("orders", 1)
        async with packed(node) as binary, node.client() as text:
            await binary.ask({"op": "subscribe", "sub": "s", "address": "orders"})
            await text.subscribe(sub="s", address="orders")
            await node.publish("orders", 3, first=1)
            (records,) = [(await binary.hear())["records"]]
            texts = await text.records(3)
            assert [record[6].decode() for record in records] == [record["text"] for record in texts]
            assert [record[4] for record in records] == [record["id"] for record in texts]

    async def test_the_first_one_offered_is_taken(self, node):
        async with packed(node, SUBPROTOCOL, "sprawl.v1.json"):
            pass
        async with node.anybody(subprotocols=["sprawl.v1.json", SUBPROTOCOL]) as client:
            assert client.connection.subprotocol == "sprawl.v1.json"

    async def test_a_token_beside_it(self, node):
        async with node.anybody(subprotocols=[SUBPROTOCOL, f"bearer.{node.token()}"]) as client:
            assert (await Packed(client.connection).hear())["op"] == "ready"

    async def test_auth_as_the_first_message(self, node):
        async with node.anybody(subprotocols=[SUBPROTOCOL]) as client:
            assert (await Packed(client.connection).ask({"op": "auth", "token": node.token()}))["op"] == "ready"

    async def test_text_frames_are_refused(self, node):
        async with packed(node) as client:
            await client.connection.send('{"op":"ping"}')
            await client.connection.wait_closed()
            assert client.connection.close_code == 1003
            assert "sprawl.v1.json" in client.connection.close_reason

    async def test_what_is_malformed_is_told_and_the_connection_lives(self, node):
        async with packed(node) as client:
            await client.connection.send(b"\xc1")
            told = await client.hear()
            assert (told["op"], told["problem"]["type"]) == ("error", "/problems/body-malformed")
            assert (await client.ask({"op": "ping", "ref": 5})) == {"op": "pong", "ref": 5}

    async def test_fragments(self, node):
        async with packed(node) as client:
            message = msgpack.packb({"op": "ping", "ref": "x" * 30})
            await client.connection.send([message[:5], message[5:20], message[20:]])
            assert (await client.hear())["ref"] == "x" * 30

    async def test_drain_tells_where_to_go_on(self, node):
        await node.publish("orders", 1)
        async with packed(node) as client:
            subscribed = await client.ask({"op": "subscribe", "sub": "s", "address": "orders"})
            for connection in list(node.server._connections):
                connection.shutdown()
            assert (await client.hear()) == {"op": "going-away", "subscriptions": [{"sub": "s", "cursor": subscribed["cursor"]}]}
