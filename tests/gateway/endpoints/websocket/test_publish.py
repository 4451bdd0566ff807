"""Publish with acknowledgement."""

from __future__ import annotations

import asyncio
import base64
import json

from broker.record import new_message_id


async def stored(node, topic="orders", partitions=4):
    """(key, value) of every record, partition by partition."""
    found = []
    for partition in range(partitions):
        page = await node.pipeline.broker.fetch(topic, partition, 0, records_max=100_000, bytes_max=1 << 24, wait_max_ms=0)
        found += [(record.key, record.value) for record in page.records]
    return found


async def test_one_record(node):
    message_id = new_message_id()
    async with node.client() as client:
        operation = {"op": "publish", "ref": [1, "a"], "address": "orders/eu/7", "value": {"amount": 12}, "id": message_id}
        ack = await client.ask(operation)
    assert ack["op"] == "ack"
    assert ack["ref"] == [1, "a"]
    (receipt,) = ack["records"]
    assert (receipt["id"], receipt["topic"], receipt["offset"]) == (message_id, "orders", 0)
    assert await stored(node) == [(b"eu/7", b'{"amount": 12}')]


async def test_addresses(node):
    table = [
        ({"address": "orders"}, None),
        ({"address": "orders/"}, b""),
        ({"address": "orders/a/b"}, b"a/b"),
        ({"topic": "orders"}, None),
        ({"topic": "orders", "key": "a/b"}, b"a/b"),
        ({"topic": "orders", "key64": base64.b64encode(b"\x00\xff").decode()}, b"\x00\xff"),
    ]
    async with node.client() as client:
        for number, (named, _) in enumerate(table):
            assert (await client.ask({"op": "publish", "text": str(number), **named}))["op"] == "ack"
    expected = [(key, b"%d" % number) for number, (_, key) in enumerate(table)]
    assert sorted(await stored(node), key=repr) == sorted(expected, key=repr)


async def test_many_records_are_one_append(node):
    records = [{"text": "a"}, {"text": "b", "key": "own"}, {"value64": "AP8="}, {"value": None}]
    async with node.client() as client:
        ack = await client.ask({"op": "publish", "ref": "many", "address": "orders/k", "records": records})
        assert [receipt["topic"] for receipt in ack["records"]] == ["orders"] * 4
        refused = await client.ask(
            {"op": "publish", "address": "orders/k", "records": [{"text": "c"}, {"text": "d", "id": "no"}]}
        )
        assert refused["op"] == "error"
        assert refused["problem"]["index"] == 1
    assert sorted(await stored(node), key=repr) == sorted(
        [(b"k", b"a"), (b"own", b"b"), (b"k", b"\x00\xff"), (b"k", None)], key=repr
    )


async def test_an_array_of_operations_is_answered_one_by_one_in_order(node):
    operations = [{"op": "publish", "ref": number, "address": "orders/k", "text": str(number)} for number in range(50)]
    operations[20] = {"op": "publish", "ref": 20, "address": "orders/k"}
    operations[30] = {"op": "publish", "ref": 30, "address": "orders/k", "text": "x", "partition": 99}
    operations[40] = {"op": "wash", "ref": 40}
    async with node.client() as client:
        await client.say(operations)
        answers = [await client.hear() for _ in operations]
    assert [answer["ref"] for answer in answers] == list(range(50))
    assert [answer["ref"] for answer in answers if answer["op"] == "error"] == [20, 30, 40]
    assert "publish, subscribe" in answers[40]["problem"]["detail"]
    assert [answer["problem"]["status"] for answer in answers if answer["op"] == "error"] == [400, 404, 400]


async def test_order_is_kept_from_the_first_record_of_a_new_topic_on(node):
    count = 1500
    async with node.client() as client:
        await client.say(
            *({"op": "publish", "ref": number, "address": "fresh/k", "text": str(number)} for number in range(count))
        )
        acks = [await client.hear() for _ in range(count)]
    assert [ack["ref"] for ack in acks] == list(range(count))
    assert [ack["records"][0]["offset"] for ack in acks] == list(range(count))
    assert [value for _, value in await stored(node, "fresh")] == [b"%d" % number for number in range(count)]


async def test_acks_none_gives_no_offset(node):
    async with node.client() as client:
        ack = await client.ask({"op": "publish", "address": "orders", "text": "x", "acks": "none"})
        assert set(ack["records"][0]) == {"id", "topic", "partition"}


REFUSALS = [
    ({}, "parameter-invalid", "address"),
    ({"address": "orders", "topic": "orders"}, "parameter-invalid", "address"),
    ({"address": "orders/k", "key": "k"}, "parameter-invalid", "belongs into the address"),
    ({"topic": "orders", "key": "k", "key64": "aw=="}, "parameter-invalid", '"key64"'),
    ({"address": "/orders"}, "illegal-topic-name", "no legal topic name"),
    ({"address": "orders", "records": []}, "body-malformed", "either"),
    ({"topic": "orders", "value": 1, "value64": "aw=="}, "body-malformed", "one of"),
    ({"address": "orders", "colour": "red"}, "body-malformed", "colour"),
    ({"address": "orders", "acks": "some"}, "body-malformed", "$.acks"),
    ({"address": "orders", "id": "17"}, "record-invalid", "UUIDv7"),
    ({"address": "orders", "timestamp": "yesterday"}, "record-invalid", "timestamp"),
    ({"address": "orders", "headers": {"sprawl-x": "1"}}, "record-invalid", "sprawl-"),
    ({"address": "orders", "partition": 4}, "unknown-partition", "0 to 3"),
    ({"address": "orders", "text": "x" * 1_100_000}, "record-too-large", "record_bytes_max"),
]


async def test_refusals_name_what_is_wrong_and_the_connection_lives_on(node):
    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders", "text": "first"})
        for members, slug, said in REFUSALS:
            text = {} if members.keys() & {"value", "value64"} else {"text": "x"}
            error = await client.ask({"op": "publish", "ref": 7, **text, **members})
            assert (error["op"], error["ref"]) == ("error", 7)
            assert error["problem"]["type"] == f"/problems/{slug}", error
            assert said in error["problem"]["detail"], error
        assert (await client.ask({"op": "ping", "ref": "still here"})) == {"op": "pong", "ref": "still here"}


async def test_empty_records_are_refused(node):
    async with node.client() as client:
        error = await client.ask({"op": "publish", "address": "orders", "records": []})
        assert "it is empty" in error["problem"]["detail"]


async def test_a_denied_publish_is_an_error_of_that_operation_only(node):
    async with node.client(node.token("eu-writer")) as client:
        denied = await client.ask({"op": "publish", "ref": 1, "address": "orders/us/1", "text": "x"})
        assert denied["problem"]["status"] == 403
        mixed = [{"text": "x", "key": "eu/1"}, {"text": "x", "key": "us/1"}]
        assert (await client.ask({"op": "publish", "topic": "orders", "records": mixed}))["problem"]["status"] == 403
        other = await client.ask({"op": "publish", "address": "other/eu/1", "text": "x"})
        assert other["problem"]["status"] == 403
    assert "orders" not in node.engine.topics()


async def test_publishes_in_flight_are_bounded(start_node):
    node = await start_node(publishes_in_flight_max=8)
    under_way, most = 0, 0
    publish = node.pipeline.publish

    async def counted(*arguments, **named):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await publish(*arguments, **named)
        finally:
            under_way -= 1

    node.pipeline.publish = counted
    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders", "text": "first"})
        await client.say(
            [{"op": "publish", "ref": number, "address": "orders", "text": "x"} for number in range(500)],
            *({"op": "publish", "ref": 500 + number, "address": "orders", "text": "x"} for number in range(500)),
        )
        assert [(await client.hear())["ref"] for _ in range(1000)] == list(range(1000))
    assert most == 8


async def test_published_bytes_in_flight_are_bounded(start_node):
    node = await start_node(publish_bytes_in_flight_max=100_000)
    sizes: list[int] = []
    under_way = 0
    publish = node.pipeline.publish

    async def counted(session, topic, records, **named):
        nonlocal under_way
        under_way += sum(len(record.value) for record in records)
        sizes.append(under_way)
        try:
            return await publish(session, topic, records, **named)
        finally:
            under_way -= sum(len(record.value) for record in records)

    node.pipeline.publish = counted
    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders", "text": "first"})
        await client.say(*({"op": "publish", "ref": number, "address": "orders", "text": "x" * 40_000} for number in range(40)))
        assert [(await client.hear())["ref"] for _ in range(40)] == list(range(40))
    # The one that crosses the bound is the last to go.
    assert 100_000 <= max(sizes) < 140_000


async def test_what_was_sent_before_the_close_frame_is_stored(node):
    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders/k", "text": "0"})
        await client.say([{"op": "publish", "address": "orders/k", "text": str(number)} for number in range(1, 100)])
    while len(await stored(node)) < 100:  # noqa: ASYNC110  # nobody sets an event for it
        await asyncio.sleep(0.005)
    assert [value for _, value in await stored(node)] == [b"%d" % number for number in range(100)]


async def test_answers_are_json_whatever_the_reference(node):
    async with node.client() as client:
        for reference in (None, True, 1.5, "\u00fc\U0001f600", [], {"a": [1]}, ""):
            assert (await client.ask({"op": "ping", "ref": reference}))["ref"] == reference
        assert await client.ask({"op": "ping"}) == {"op": "pong"}
        too_long = await client.ask({"op": "ping", "ref": "x" * 300})
        assert "websocket.ref_bytes_max" in too_long["problem"]["detail"]
        assert "ref" not in too_long


async def test_metrics_count_records(node):
    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders", "records": [{"text": "abc"}] * 5})
    assert node.count("records_in_total") == 5
    assert json.loads(json.dumps(node.count("bytes_in_total"))) == 15
