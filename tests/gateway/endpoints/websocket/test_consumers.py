"""Named consumers: what is acknowledged is done with, what is not comes again, also on another connection."""

from __future__ import annotations

import asyncio

import msgpack
import pytest

from broker.delivery.ledger import Ledger
from tests.gateway.endpoints.websocket.conftest import until
from tests.gateway.endpoints.websocket.test_delivery import numbers
from tests.gateway.endpoints.websocket.test_msgpack import packed

START = {"from": "earliest"}


async def consume(client, **members):
    answer = await client.ask({"op": "consume", "sub": "s", "consumer": "billing", "address": "orders", **members})
    assert answer["op"] == "subscribed", answer
    return answer


def tags(records) -> list[str]:
    return [record["tag"] for record in records]


async def settle(client, op, found, **more):
    return await client.ask({"op": op, "sub": "s", "tags": tags(found), **more})


class TestAcknowledging:
    async def test_records_come_with_attempt_and_tag(self, node):
        await node.publish("orders", 3)
        async with node.client() as client:
            answer = await consume(client, ref=7, **START)
            assert (answer["consumer"], answer["created"], answer["in_flight"], answer["ref"]) == ("billing", True, 0, 7)
            found = await client.records(3)
            assert numbers(found) == [0, 1, 2]
            assert [record["attempt"] for record in found] == [1, 1, 1]
            assert len(set(tags(found))) == 3

    async def test_what_is_acknowledged_does_not_come_again(self, node):
        await node.publish("orders", 4)
        async with node.client() as client:
            await consume(client, **START)
            found = await client.records(4)
            told = await settle(client, "ack", found[:2] + found[3:], ref="a")
            assert told == {"op": "settled", "sub": "s", "settled": 3, "ref": "a"}
        async with node.client() as client:
            assert not (await consume(client))["created"]
            (again,) = await client.records(1)
            assert (numbers([again]), again["attempt"]) == ([2], 2)
            await node.publish("orders", 1, first=4)
            assert numbers(await client.records(1)) == [4]

    async def test_what_waits_for_the_log_is_bounded_in_bytes(self, node, monkeypatch):
        """A tag is as long as its sender likes, until somebody looks at it: a log that stalls must not gather them."""
        waiting, peak = 0, 0
        confirm = Ledger.confirm

        async def slow(ledger):
            nonlocal waiting, peak
            waiting += 1
            peak = max(peak, waiting)
            await asyncio.sleep(0.05)
            waiting -= 1
            await confirm(ledger)

        await node.publish("orders", 1)
        async with node.client() as client:
            await consume(client, **START)
            await client.records(1)
            monkeypatch.setattr(Ledger, "confirm", slow)
            for number in range(16):
                await client.say({"op": "ack", "sub": "s", "ref": number, "tags": ["x" * 900_000]})
            assert [(await client.hear())["ref"] for _ in range(16)] == list(range(16))
        assert peak <= 5  # websocket.publish_bytes_in_flight_max is 4 MiB

    async def test_nack_brings_it_again_at_once(self, node):
        await node.publish("orders", 2)
        async with node.client() as client:
            await consume(client, **START)
            found = await client.records(2)
            await client.say({"op": "nack", "sub": "s", "tags": tags(found[:1]), "delay_ms": 0, "reason": "not now"})
            heard = [await client.hear(), await client.hear()]
            (records,) = [message["records"] for message in heard if message["op"] == "records"]
            assert (numbers(records), records[0]["attempt"]) == ([0], 2)

    async def test_an_unanswered_record_comes_again_after_the_timeout(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await consume(client, options={"ack_timeout_ms": 100, "retry_backoff_ms": 0}, **START)
            assert [(await client.records(1))[0]["attempt"] for _ in range(3)] == [1, 2, 3]

    async def test_extend_puts_the_timeout_off(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await consume(client, options={"ack_timeout_ms": 200, "retry_backoff_ms": 0}, **START)
            found = await client.records(1)
            assert (await settle(client, "extend", found, timeout_ms=60_000))["settled"] == 1
            await asyncio.sleep(0.4)
            assert (await client.ask({"op": "ping", "ref": 1}))["op"] == "pong"
            assert (await settle(client, "ack", found))["settled"] == 1

    async def test_reject_sends_it_to_the_dead_letters(self, node):
        await node.publish("orders", 2)
        async with node.client() as client:
            await consume(client, **START)
            found = await client.records(2)
            assert (await settle(client, "reject", found[1:], reason="no such customer"))["settled"] == 1
            await client.subscribe(sub="dead", address="orders.dlq", **START)
            (dead,) = await client.records(1)
            assert numbers([dead]) == [1]

    async def test_unknown_tags_are_told(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await consume(client, **START)
            (found,) = await client.records(1)
            told = await client.ask({"op": "ack", "sub": "s", "tags": [found["tag"], "9999-0-1", "x"]})
            assert (told["settled"], told["unknown"]) == (1, ["9999-0-1", "x"])

    async def test_settlements_are_answered_in_order_with_publishes(self, node):
        await node.publish("orders", 3)
        async with node.client() as client:
            await consume(client, **START)
            found = await client.records(3)
            operations = []
            for number, record in enumerate(found):
                operations.append({"op": "ack", "sub": "s", "tags": [record["tag"]], "ref": 2 * number})
                operations.append({"op": "publish", "address": "other/k", "text": "x", "ref": 2 * number + 1})
            await client.say(operations)
            assert [(await client.hear())["ref"] for _ in operations] == list(range(6))


class TestPace:
    async def test_credit(self, node):
        await node.publish("orders", 10)
        async with node.client() as client:
            await consume(client, credit=3, **START)
            assert numbers(await client.records(3)) == [0, 1, 2]
            assert (await client.ask({"op": "ping", "ref": 1}))["op"] == "pong"
            await client.say({"op": "credit", "sub": "s", "records": 2})
            assert numbers(await client.records(2)) == [3, 4]

    async def test_in_flight_is_bounded_when_nothing_is_acknowledged(self, node):
        await node.publish("orders", 10)
        async with node.client() as client:
            await consume(client, options={"in_flight_max": 4}, **START)
            found = await client.records(4)
            assert numbers(found) == [0, 1, 2, 3]
            assert (await client.ask({"op": "ping", "ref": 1}))["op"] == "pong"
            await client.say({"op": "ack", "sub": "s", "tags": tags(found[:1])})
            heard = {message["op"]: message for message in [await client.hear(), await client.hear()]}
            assert numbers(heard["records"]["records"]) == [4]

    async def test_pause_and_resume(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await consume(client)
            assert (await client.ask({"op": "pause", "sub": "s"}))["op"] == "paused"
            await node.publish("orders", 2, first=1)
            await asyncio.sleep(0.05)
            assert (await client.ask({"op": "ping", "ref": 1}))["op"] == "pong"
            assert (await client.ask({"op": "resume", "sub": "s"}))["op"] == "resumed"
            assert numbers(await client.records(2)) == [1, 2]


class TestConnections:
    async def test_the_newer_connection_takes_over_and_the_older_is_told(self, node):
        await node.publish("orders", 2)
        async with node.client() as older, node.client() as newer:
            await consume(older, **START)
            found = await older.records(2)
            await consume(newer)
            told = await older.hear()
            assert (told["op"], told["sub"], told["problem"]["type"]) == ("error", "s", "/problems/consumer-taken-over")
            again = await newer.records(2)
            assert sorted(numbers(again)) == sorted(numbers(found))
            assert (await older.ask({"op": "ping", "ref": 1}))["op"] == "pong"
            assert (await settle(older, "ack", found))["op"] == "error"

    async def test_unsubscribe_gives_back_what_was_in_flight(self, node):
        await node.publish("orders", 1)
        async with node.client() as first, node.client() as second:
            await consume(first, **START)
            await first.records(1)
            assert (await first.ask({"op": "unsubscribe", "sub": "s"}))["op"] == "unsubscribed"
            await consume(second)
            assert numbers(await second.records(1)) == [0]

    async def test_consumers_and_subscriptions_beside_each_other(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await consume(client)
            await client.ask({"op": "subscribe", "sub": "plain", "address": "orders"})
            await node.publish("orders", 1, first=1)
            heard = {message["sub"]: message for message in [await client.hear(), await client.hear()]}
            assert "tag" in heard["s"]["records"][0]
            assert "tag" not in heard["plain"]["records"][0]

    async def test_a_filter(self, node):
        await node.publish("orders", 20)
        async with node.client() as client:
            operation = {"op": "consume", "sub": "s", "consumer": "c", "filter": {"address": "#", "key_prefix": "k3"}, **START}
            assert (await client.ask(operation))["op"] == "subscribed"
            assert numbers(await client.records(2)) == [3, 13]

    async def test_a_reader_of_some_keys_consumes_those(self, node):
        for key, text in (("eu/1", "1|"), ("us/1", "2|"), ("eu/2", "3|")):
            async with node.client() as admin:
                await admin.ask({"op": "publish", "address": f"orders/{key}", "text": text})
        async with node.client(node.token("eu-reader")) as client:
            await consume(client, **START)
            assert sorted(numbers(await client.records(2))) == [1, 3]

    async def test_a_revoked_token_ends_it(self, start_node):
        node = await start_node(recheck_ms=20)
        await node.publish("orders", 1)
        token = node.token()
        async with node.client(token) as client:
            await consume(client)
            node.revoke(token)
            assert (await client.closed())[0] == 4403

    async def test_in_messagepack(self, node):
        await node.publish("orders", 2)
        async with packed(node) as client:
            operation = {"op": "consume", "sub": "s", "consumer": "billing", "topic": "orders", **START}
            assert (await client.ask(operation))["op"] == "subscribed"
            records = (await client.hear())["records"]
            assert [(len(record), record[9]) for record in records] == [(11, 1), (11, 1)]
            await client.connection.send(msgpack.packb({"op": "ack", "sub": "s", "tags": [record[10] for record in records]}))
            assert (await client.hear()) == {"op": "settled", "sub": "s", "settled": 2}

    async def test_a_closed_connection_leaves_nothing_open(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await consume(client)
        await until(lambda: not node.server._connections)
        await until(lambda: node.count("subscriptions") == 0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("operation", "slug"),
        [
            ({"op": "consume", "sub": "s", "consumer": "", "address": "orders"}, "consumer-invalid"),
            ({"op": "consume", "sub": "s", "consumer": "a b", "address": "orders"}, "consumer-invalid"),
            ({"op": "consume", "sub": "s", "consumer": "x" * 129, "address": "orders"}, "consumer-invalid"),
            ({"op": "consume", "sub": "s", "address": "orders"}, "body-malformed"),
            ({"op": "consume", "sub": "s", "consumer": "c", "address": "nowhere"}, "unknown-topic"),
            ({"op": "consume", "sub": "s", "consumer": "c", "filter": "a/#/b"}, "filter-invalid"),
            (
                {"op": "consume", "sub": "s", "consumer": "c", "address": "orders", "options": {"deliveries_max": 0}},
                "consumer-invalid",
            ),
            ({"op": "consume", "sub": "s", "consumer": "c", "address": "orders", "options": {"speed": 1}}, "body-malformed"),
            ({"op": "ack", "sub": "none", "tags": []}, "parameter-invalid"),
            ({"op": "ack", "sub": "plain", "tags": ["1-0-1"]}, "parameter-invalid"),
            ({"op": "ack", "sub": "used", "tags": ["1-0-1"] * 1_001}, "parameter-invalid"),
            ({"op": "ack", "sub": "used", "tags": "1-0-1"}, "body-malformed"),
            ({"op": "nack", "sub": "used", "tags": [], "delay_ms": -1}, "consumer-invalid"),
            ({"op": "nack", "sub": "used", "tags": [], "reason": "x" * 5_000}, "consumer-invalid"),
            ({"op": "extend", "sub": "used", "tags": [], "timeout_ms": 10**12}, "consumer-invalid"),
        ],
    )
    async def test_by_name_and_the_connection_lives(self, node, operation, slug):
        await node.publish("orders", 1)
        async with node.client() as client:
            await client.subscribe(sub="plain", address="orders")
            await client.ask({"op": "consume", "sub": "used", "consumer": "used", "address": "orders"})
            answer = await client.ask({**operation, "ref": 1})
            assert (answer["op"], answer.get("ref")) == ("error", 1), answer
            assert answer["problem"]["type"] == f"/problems/{slug}", answer
            assert (await client.ask({"op": "ping", "ref": 2}))["ref"] == 2

    async def test_who_may_not_read_may_not_consume(self, node):
        await node.publish("orders", 1)
        async with node.client(node.token("eu-writer")) as client:
            answer = await client.ask({"op": "consume", "sub": "s", "consumer": "c", "address": "orders"})
            assert answer["problem"]["type"] == "/problems/access-denied"
