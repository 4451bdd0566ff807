"""Subscriptions: where they begin, that nothing is missed or seen twice, what is shared and with whom."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from broker.broker import Outgoing
from security.policy.quotas import Quota, Quotas
from security.policy.rbac import policy_from_mapping
from tests.gateway.endpoints.websocket.conftest import POLICY, until


def numbers(records) -> list[int]:
    return [int(record["text"].split("|")[0]) for record in records]


async def published_at(node, topic, *times):
    for number, timestamp_ms in enumerate(times):
        record = Outgoing(None, b"%d|" % number, timestamp_ms=timestamp_ms, partition=0)
        await node.pipeline.broker.publish(topic, [record], durable=True, auto_create=True)


class TestBeginnings:
    async def test_latest_is_the_default(self, node):
        await node.publish("orders", 5)
        async with node.client() as client:
            await client.subscribe(address="orders")
            await node.publish("orders", 2, first=5)
            assert numbers(await client.records(2)) == [5, 6]

    async def test_earliest_then_live(self, node):
        await node.publish("orders", 250)
        async with node.client() as client:
            await client.subscribe(address="orders", **{"from": "earliest"})
            assert numbers(await client.records(250)) == list(range(250))
            await node.publish("orders", 10, first=250)
            assert numbers(await client.records(10)) == list(range(250, 260))

    async def test_cursor_goes_on_where_the_last_message_ended(self, node):
        await node.publish("orders", 30, batch=7)
        async with node.client() as client:
            await client.say({"op": "subscribe", "sub": "a", "address": "orders", "from": "earliest", "credit": 10})
            assert (await client.hear())["op"] == "subscribed"
            message = await client.hear()
            assert numbers(message["records"]) == list(range(10))
        async with node.client() as client:
            await client.subscribe(address="orders", **{"from": {"cursor": message["cursor"]}})
            assert numbers(await client.records(20)) == list(range(10, 30))

    async def test_offset(self, node):
        await node.publish("orders", 30, batch=7)
        async with node.client() as client:
            await client.subscribe(address="orders", **{"from": {"offset": 17, "partition": 0}})
            assert numbers(await client.records(13)) == list(range(17, 30))

    @pytest.mark.parametrize("timestamp", [2_000, "1970-01-01T00:00:02Z"])
    async def test_timestamp(self, node, timestamp):
        await published_at(node, "orders", 1_000, 2_000, 3_000)
        async with node.client() as client:
            await client.subscribe(address="orders", **{"from": {"timestamp": timestamp}})
            assert numbers(await client.records(2)) == [1, 2]

    async def test_one_key(self, node):
        await node.publish("orders", 50)
        async with node.client() as client:
            await client.subscribe(address="orders/k3", **{"from": "earliest"})
            assert numbers(await client.records(5)) == [3, 13, 23, 33, 43]
            await node.publish("orders", 20, first=50)
            assert numbers(await client.records(2)) == [53, 63]

    async def test_refusals(self, node):
        table = [
            ({}, "parameter-invalid"),
            ({"address": "nowhere"}, "unknown-topic"),
            ({"address": "orders", "from": {}}, "parameter-invalid"),
            ({"address": "orders", "from": {"cursor": "x"}}, "parameter-invalid"),
            ({"address": "orders", "from": {"cursor": "999999-0"}}, "cursor-ahead"),
            ({"address": "orders", "from": {"offset": 3}}, "parameter-invalid"),
            ({"address": "orders", "from": {"offset": 1000, "partition": 0}}, "offset-out-of-range"),
            ({"address": "orders", "from": {"offset": 0, "partition": 99}}, "unknown-partition"),
            ({"address": "orders", "from": {"timestamp": "soon"}}, "parameter-invalid"),
            ({"address": "orders", "from": "yesterday"}, "body-malformed"),
            ({"address": "orders", "sub": "x" * 300}, "parameter-invalid"),
            ({"address": "orders", "credit": -1}, "parameter-invalid"),
        ]
        await node.publish("orders", 1)
        async with node.client() as client:
            for members, slug in table:
                error = await client.ask({"op": "subscribe", "ref": "r", **members})
                assert error["op"] == "error", members
                assert error["problem"]["type"] == f"/problems/{slug}", error
                assert error["ref"] == "r"
            assert (await client.ask({"op": "ping"}))["op"] == "pong"


class TestNames:
    async def test_a_name_is_in_all_messages_and_free_again_after_unsubscribe(self, node):
        await node.publish("orders", 3)
        async with node.client() as client:
            subscribed = await client.subscribe(sub="mine", ref=1, address="orders", **{"from": "earliest"})
            assert (subscribed["sub"], subscribed["ref"]) == ("mine", 1)
            message = await client.hear()
            assert message["sub"] == "mine"
            again = await client.ask({"op": "subscribe", "sub": "mine", "address": "orders", "ref": 2})
            assert (again["op"], again["sub"], again["ref"]) == ("error", "mine", 2)
            assert "in use" in again["problem"]["detail"]
            await node.publish("orders", 1, first=3)
            assert numbers(await client.records(1)) == [3]
            left = await client.ask({"op": "unsubscribe", "sub": "mine", "ref": 3})
            assert (left["op"], left["sub"], left["ref"]) == ("unsubscribed", "mine", 3)
            await node.publish("orders", 2, first=4)
            await client.subscribe(sub="mine", address="orders", **{"from": {"cursor": left["cursor"]}})
            assert numbers(await client.records(2)) == [4, 5]

    async def test_unknown_names(self, node):
        async with node.client() as client:
            for operation in ({"op": "unsubscribe", "sub": "no"}, {"op": "credit", "sub": "no", "records": 1}):
                error = await client.ask(operation)
                assert (error["sub"], error["problem"]["type"]) == ("no", "/problems/parameter-invalid")

    async def test_subscriptions_are_bounded(self, start_node):
        node = await start_node(subscriptions_max=3)
        await node.publish("orders", 1)
        async with node.client() as client:
            for name in "abc":
                await client.subscribe(sub=name, address="orders")
            refused = await client.ask({"op": "subscribe", "sub": "d", "address": "orders"})
            assert "websocket.subscriptions_max (3)" in refused["problem"]["detail"]
            assert (await client.ask({"op": "unsubscribe", "sub": "a"}))["op"] == "unsubscribed"
            await client.subscribe(sub="d", address="orders")


class TestHaste:
    """Operations that overtake each other in one message."""

    async def test_subscribe_and_unsubscribe_at_once(self, node):
        await node.publish("orders", 3)
        async with node.client() as client:
            wanted = {"op": "subscribe", "sub": "s", "address": "orders", "from": "earliest"}
            await client.say([wanted, {"op": "unsubscribe", "sub": "s"}, {"op": "ping"}])
            assert await client.hear() == {"op": "unsubscribed", "sub": "s"}
            assert await client.hear() == {"op": "pong"}
            await client.subscribe(**{key: value for key, value in wanted.items() if key != "op"})
            assert numbers(await client.records(3)) == [0, 1, 2]

    async def test_subscribe_and_authenticate_at_once(self, node):
        await node.publish("orders", 3)
        async with node.client() as client:
            await client.say([{"op": "subscribe", "sub": "s", "address": "orders"}, {"op": "auth", "token": node.token()}])
            heard = [(await client.hear())["op"] for _ in range(2)]
            assert sorted(heard) == ["ready", "subscribed"]
            await node.publish("orders", 1, first=3)
            assert numbers(await client.records(1)) == [3]

    async def test_publish_and_close_while_subscribing(self, node):
        for _ in range(20):
            async with node.client() as client:
                await client.say([{"op": "publish", "address": "orders", "text": "x"}, {"op": "subscribe", "address": "orders"}])
        await until(lambda: node.server.connections == 0 and node.pipeline.feeds == 0)
        await until(lambda: not any("subscriber" in task.get_name() for task in asyncio.all_tasks()))


class TestCredit:
    async def test_no_more_than_credit_is_sent(self, node):
        await node.publish("orders", 20)
        async with node.client() as client:
            await client.subscribe(sub="s", address="orders", credit=0, **{"from": "earliest"})
            assert (await client.ask({"op": "ping"}))["op"] == "pong"
            await client.say({"op": "credit", "sub": "s", "records": 4})
            assert numbers(await client.records(4)) == [0, 1, 2, 3]
            assert (await client.ask({"op": "ping"}))["op"] == "pong"
            await client.say({"op": "credit", "sub": "s", "records": 17})
            assert numbers(await client.records(16)) == list(range(4, 20))
            await node.publish("orders", 3, first=20)
            assert numbers(await client.records(1)) == [20]
            assert (await client.ask({"op": "ping"}))["op"] == "pong"

    async def test_credit_for_a_subscription_without_is_refused(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await client.subscribe(sub="s", address="orders")
            for records in (0, -5, 10):
                assert (await client.ask({"op": "credit", "sub": "s", "records": records}))["op"] == "error"


class TestSharing:
    async def test_at_the_live_end_one_read_serves_all(self, node):
        await node.publish("orders", 1)
        reads = 0
        tail = node.engine.tail

        async def counted(*arguments, **named):
            nonlocal reads
            reads += 1
            return await tail(*arguments, **named)

        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(node.client()) for _ in range(30)]
            for client in clients:
                await client.subscribe(address="orders")
            await asyncio.sleep(0.05)
            node.engine.tail = counted
            for number in range(1, 11):
                await node.publish("orders", 1, first=number)
                for client in clients:
                    assert numbers(await client.records(1)) == [number]
            node.engine.tail = tail
        assert reads <= 2 * 10 + 2
        assert node.count("records_out_total") == 300

    async def test_names_may_differ(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            for name in ("a", "b", "orders"):
                await client.subscribe(sub=name, address="orders")
            await node.publish("orders", 1, first=1)
            messages = [await client.hear() for _ in range(3)]
        assert sorted(message["sub"] for message in messages) == ["a", "b", "orders"]
        assert all(numbers(message["records"]) == [1] for message in messages)

    async def test_nothing_is_missed_or_doubled_whoever_joins_when(self, start_node):
        """Readers come and go at random places of a log that grows all the while, some of them slow."""
        node = await start_node(read_records_max=50, read_bytes_max=4_000, send_buffer_bytes_max=20_000)
        choose = random.Random(7)
        total = 1_500
        await node.publish("orders", 500, batch=9)

        async def produce():
            for first in range(500, total, 25):
                await node.publish("orders", 25, first=first, batch=choose.choice([1, 5, 25]))

        async def read(start: int):
            await asyncio.sleep(choose.random() * 0.3)
            seen: list[int] = []
            position = {"offset": start, "partition": 0}
            while not seen or seen[-1] < total - 1:
                async with node.client() as client:
                    await client.subscribe(address="orders", **{"from": position})
                    stop_after = choose.randrange(1, 40)
                    while stop_after and (not seen or seen[-1] < total - 1):
                        message = await client.hear()
                        seen += numbers(message["records"])
                        position = {"cursor": message["cursor"]}
                        stop_after -= 1
                        if choose.random() < 0.05:
                            await asyncio.sleep(0.02)
            return start, seen

        readers = [asyncio.create_task(read(choose.randrange(0, 450))) for _ in range(8)]
        await produce()
        for start, seen in await asyncio.gather(*readers):
            assert seen == list(range(start, total))

    async def test_the_last_one_to_leave_ends_the_reading(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await client.subscribe(address="orders")
            await until(lambda: any("broadcast" in task.get_name() for task in asyncio.all_tasks()))
        await until(lambda: not any("broadcast" in task.get_name() for task in asyncio.all_tasks()))
        assert not any("subscriber" in task.get_name() for task in asyncio.all_tasks())


class TestRights:
    async def publish_keys(self, node, *keys: str):
        records = [Outgoing(key.encode(), b"0|") for key in keys]
        await node.pipeline.broker.publish("orders", records, durable=True, auto_create=True)

    async def test_some_keys_gets_only_those_from_the_log_and_live(self, node):
        await self.publish_keys(node, "eu/1", "us/1", "eu/2")
        async with node.client(node.token("eu-reader")) as some, node.client() as everybody:
            await some.subscribe(address="orders", **{"from": "earliest"})
            await everybody.subscribe(address="orders", **{"from": "earliest"})
            assert sorted(record["key"] for record in await some.records(2)) == ["eu/1", "eu/2"]
            assert sorted(record["key"] for record in await everybody.records(3)) == ["eu/1", "eu/2", "us/1"]
            for number in range(5):
                await self.publish_keys(node, f"us/{number}")
                await self.publish_keys(node, f"eu/{number}", f"us/{number}")
                assert [record["key"] for record in await some.records(1)] == [f"eu/{number}"]
                assert len(await everybody.records(3)) == 3

    async def test_some_keys_may_share_an_allowed_key_and_no_other(self, node):
        await self.publish_keys(node, "eu/1", "us/1")
        async with node.client(node.token("eu-reader")) as client:
            await client.subscribe(address="orders/eu/1")
            denied = await client.ask({"op": "subscribe", "address": "orders/us/1"})
            assert denied["problem"]["type"] == "/problems/access-denied"
            other = await client.ask({"op": "subscribe", "address": "payments"})
            assert other["problem"]["type"] == "/problems/access-denied"
            await self.publish_keys(node, "us/1", "eu/1", "eu/2")
            assert [record["key"] for record in await client.records(1)] == ["eu/1"]

    async def test_a_scoped_token_is_cut_alike(self, node):
        await self.publish_keys(node, "eu/1", "us/1")
        async with node.client(node.token("admin", scopes=["read:orders:us/*"])) as client:
            await client.subscribe(address="orders", **{"from": "earliest"})
            assert [record["key"] for record in await client.records(1)] == ["us/1"]

    async def test_a_changed_policy_takes_hold_at_the_next_delivery(self, node):
        await self.publish_keys(node, "eu/1")
        async with node.client(node.token("eu-reader")) as some, node.client(node.token("subscriber")) as reader:
            await some.subscribe(sub="s", address="orders")
            await reader.subscribe(sub="r", address="orders")
            await self.publish_keys(node, "eu/1")
            assert len(await some.records(1)) == len(await reader.records(1)) == 1
            narrowed = {"eu-reader": [{"actions": ["read"], "topic": "other"}]}
            node.policy.replace(policy_from_mapping({"roles": narrowed, "bindings": []}))
            await self.publish_keys(node, "eu/2")
            refused = await some.hear()
            assert (refused["op"], refused["sub"], refused["problem"]["status"]) == ("error", "s", 403)
            assert len(await reader.records(1)) == 1
            assert (await some.ask({"op": "ping"}))["op"] == "pong"

    async def test_from_all_to_some_keys_at_the_live_end(self, node):
        policy = {**POLICY, "roles": {"reader": [{"actions": ["read"], "topic": "orders"}]}, "bindings": []}
        node.policy.replace(policy_from_mapping(policy))
        await self.publish_keys(node, "eu/1")
        async with node.client(node.token("reader")) as client:
            await client.subscribe(address="orders")
            await self.publish_keys(node, "us/1")
            assert [record["key"] for record in await client.records(1)] == ["us/1"]
            policy["roles"] = {"reader": [{"actions": ["read"], "topic": "orders", "key": "eu/*"}]}
            node.policy.replace(policy_from_mapping(policy))
            await self.publish_keys(node, "us/2")
            await self.publish_keys(node, "eu/2")
            assert [record["key"] for record in await client.records(1)] == ["eu/2"]
            policy["roles"] = {"reader": [{"actions": ["read"], "topic": "orders"}]}
            node.policy.replace(policy_from_mapping(policy))
            await self.publish_keys(node, "us/3")
            assert [record["key"] for record in await client.records(1)] == ["us/3"]

    async def test_a_revoked_token_is_sent_nothing_more(self, start_node):
        node = await start_node(recheck_ms=60_000)
        token = node.token()
        await node.publish("orders", 1)
        async with node.client(token) as client, node.client() as other:
            for subscriber in (client, other):
                await subscriber.subscribe(address="orders")
            node.revoke(token)
            await node.publish("orders", 1, first=1)
            assert numbers(await other.records(1)) == [1]
            assert (await client.hear())["problem"]["type"] == "/problems/token-revoked"
            assert (await client.closed())[0] == 4403

    async def test_a_quota_paces_a_broadcast(self, node):
        class Ledger(Quotas):
            """Puts off every other payment, and remembers what was paid."""

            unlimited = property(lambda ledger: False)

            def __init__(self) -> None:
                super().__init__({})
                self.asked = self.paid = 0

            def admit(self, quota, principal_name, cost, now_ns):
                if quota is not Quota.BYTES_OUT:
                    return 0
                self.asked += 1
                if self.asked % 2:
                    return 5
                self.paid += cost
                return 0

        await node.publish("orders", 1)
        async with node.client(node.token()) as client:
            await client.subscribe(address="orders")
            ledger = node.pipeline.quotas = Ledger()
            total, read = 0, []
            for first in range(1, 101, 10):
                await node.publish("orders", 10, first=first, size=100)
                read += await client.records(10)
                total += sum(len(record["text"]) + len(record["key"]) for record in read[-10:])
            assert numbers(read) == list(range(1, 101))
            # Nothing is delivered for nothing, nothing is charged twice.
            await until(lambda: ledger.paid == total)

    async def test_a_deleted_topic_ends_its_subscriptions(self, node):
        await node.publish("orders", 1)
        async with node.client() as client:
            await client.subscribe(sub="s", address="orders")
            await node.engine.delete_topic("orders")
            await node.publish("orders", 1)
            error = await client.hear()
            assert (error["op"], error["sub"]) == ("error", "s")


class TestRecords:
    async def test_both_ways_alike(self, node):
        records = [
            {"key": "k", "value": {"a": [1, None, "\u00fc"]}, "headers": {"h": "1", "many": ["a", "b"]}, "timestamp": 5},
            {"key64": "AP8=", "text": "t", "timestamp": 6},
            {"value64": "AP8=", "timestamp": 7},
            {"value": None, "key": "gone", "timestamp": 8},
        ]
        async with node.client() as client:
            await client.ask({"op": "publish", "topic": "orders", "records": records})
            await client.subscribe(address="orders", **{"from": "earliest"})
            found = sorted(await client.records(4), key=lambda record: record["timestamp"])
        for record, given in zip(found, records, strict=True):
            for name, content in given.items():
                assert record[name] == content or (name == "headers" and content.items() <= record[name].items())
            assert record["topic"] == "orders"
            assert {"id", "partition", "offset"} < set(record)

    async def test_messages_stay_below_the_frame_bound(self, start_node):
        node = await start_node(frame_bytes_max=10_000)
        await node.publish("orders", 60, size=1_000)
        async with node.client(max_size=12_000) as client:
            await client.subscribe(address="orders", **{"from": "earliest"})
            assert numbers(await client.records(60)) == list(range(60))
            await node.publish("orders", 60, first=60, size=1_000, batch=60)
            assert numbers(await client.records(60)) == list(range(60, 120))
