"""Subscriptions by filter: what they get, with whom they share, and that nobody gets more by a wildcard than by a name."""

from __future__ import annotations

import asyncio

import pytest

from broker.broker import Outgoing
from security.policy.rbac import policy_from_mapping
from tests.gateway.endpoints.websocket.conftest import POLICY, until


async def publish(node, topic, *records):
    """(key, text) or (key, text, headers)"""
    outgoing = [Outgoing(key.encode(), text.encode(), *more) for key, text, *more in records]
    await node.pipeline.broker.publish(topic, outgoing, durable=True, auto_create=True)


def texts(records):
    return [record["text"] for record in records]


class TestWhatIsDelivered:
    async def test_levels_of_one_topic(self, node):
        await publish(node, "orders", ("eu/1", "a"), ("us/1", "b"), ("eu/2", "c"), ("eu/2/x", "d"))
        async with node.client() as client:
            await client.subscribe(sub="s", filter="orders/eu/+", **{"from": "earliest"})
            assert texts(await client.records(2)) == ["a", "c"]
            await publish(node, "orders", ("us/2", "e"), ("eu/3", "f"))
            assert texts(await client.records(1)) == ["f"]

    async def test_several_topics_with_those_made_later(self, node):
        await publish(node, "orders", ("status", "a"), ("x", "no"))
        async with node.client() as client:
            await client.subscribe(sub="s", filter={"address": "+/status"}, **{"from": "earliest"})
            (first,) = await client.records(1)
            await publish(node, "parcels", ("status", "b"))
            (second,) = await client.records(1)
            assert [(record["topic"], record["text"]) for record in (first, second)] == [("orders", "a"), ("parcels", "b")]

    async def test_key_prefix_and_headers(self, node):
        await publish(
            node,
            "orders",
            ("eu/1", "a", [(b"type", b"paid")]),
            ("eu/2", "b", [(b"type", b"new")]),
            ("us/1", "c", [(b"type", b"paid")]),
        )
        async with node.client() as client:
            wanted = {"address": "orders", "key_prefix": "eu/", "headers": {"type": "paid"}}
            await client.subscribe(sub="s", filter=wanted, **{"from": "earliest"})
            assert texts(await client.records(1)) == ["a"]

    async def test_everything(self, node):
        await publish(node, "a", ("k", "1"))
        await publish(node, "b", ("k", "2"))
        async with node.client() as client:
            await client.subscribe(sub="s", filter="#", **{"from": "earliest"})
            assert texts(await client.records(2)) == ["1", "2"]

    async def test_the_name_left_out_is_the_filters_address(self, node):
        await publish(node, "orders", ("k", "1"))
        async with node.client() as client:
            assert (await client.subscribe(filter="orders/+"))["sub"] == "orders/+"

    async def test_go_on_at_a_cursor(self, node):
        await publish(node, "orders", *((f"eu/{number}", str(number)) for number in range(10)))
        async with node.client() as client:
            await client.say({"op": "subscribe", "sub": "s", "filter": "orders/eu/+", "from": "earliest", "credit": 4})
            await client.hear()
            message = await client.hear()
            first = texts(message["records"])
            assert len(first) == 4
        async with node.client() as client:
            await client.subscribe(sub="s", filter="orders/eu/+", **{"from": {"cursor": message["cursor"]}})
            assert sorted(first + texts(await client.records(6))) == [str(number) for number in range(10)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("members", "slug"),
        [
            ({"filter": "or#ders"}, "filter-invalid"),
            ({"filter": "orders/#/x"}, "filter-invalid"),
            ({"filter": "orders/" + "/" * 100}, "filter-invalid"),
            ({"filter": "x" * 3_000}, "filter-invalid"),
            ({"filter": {"address": "orders", "key_prefix": "x" * 3_000}}, "filter-invalid"),
            ({"filter": {"address": "orders", "headers": {str(number): "" for number in range(99)}}}, "filter-invalid"),
            ({"filter": {"address": "orders", "colour": "red"}}, "body-malformed"),
            ({"filter": "orders/+", "address": "orders"}, "parameter-invalid"),
            ({"filter": "orders/+", "topic": "orders"}, "parameter-invalid"),
            ({"filter": "nowhere/+"}, "unknown-topic"),
            ({"filter": "+/x", "from": {"partition": 0, "offset": 1}}, "position-refused"),
        ],
    )
    async def test_by_name(self, node, members, slug):
        await publish(node, "orders", ("k", "1"))
        async with node.client() as client:
            answer = await client.ask({"op": "subscribe", "sub": "s", "ref": 1, **members})
            assert answer["problem"]["type"] == f"/problems/{slug}", answer
            assert (await client.ask({"op": "ping", "ref": 2}))["ref"] == 2


class TestRights:
    async def test_some_keys_are_cut_by_a_filter_too(self, node):
        await publish(node, "orders", ("eu/1", "a"), ("us/1", "b"), ("eu/2", "c"))
        async with node.client(node.token("eu-reader")) as client:
            await client.subscribe(sub="s", filter="orders/+/#", **{"from": "earliest"})
            assert texts(await client.records(2)) == ["a", "c"]
            await publish(node, "orders", ("us/2", "no"), ("eu/3", "d"))
            assert texts(await client.records(1)) == ["d"]

    async def test_topics_that_may_not_be_read_are_not_there(self, node):
        await publish(node, "secrets", ("eu/0", "no"))
        await publish(node, "orders", ("eu/1", "a"))
        async with node.client(node.token("eu-reader")) as client:
            await client.subscribe(sub="s", filter="#", **{"from": "earliest"})
            assert texts(await client.records(1)) == ["a"]
            await publish(node, "secrets", ("eu/0", "no"))
            await publish(node, "orders", ("eu/2", "b"))
            assert texts(await client.records(1)) == ["b"]

    async def test_a_broadcast_of_everything_is_cut_when_a_forbidden_topic_comes(self, start_node):
        """A reader of all topics shares the broadcast until a topic is made that it may not read; nothing is lost by that."""
        node = await start_node()
        node.policy.replace(
            policy_from_mapping({**POLICY, "roles": {"open": [{"actions": ["read", "describe"], "topic": "open-*"}]}})
        )
        await publish(node, "open-a", ("k", "1"))
        async with node.client(node.token("open")) as narrow, node.client() as wide:
            for client in (narrow, wide):
                await client.subscribe(sub="s", filter="#")
            await publish(node, "open-a", ("k", "2"))
            for client in (narrow, wide):
                assert texts(await client.records(1)) == ["2"]
            await publish(node, "closed", ("k", "no"))
            await publish(node, "open-b", ("k", "3"))
            assert texts(await narrow.records(1)) == ["3"]
            assert texts(await wide.records(2)) == ["no", "3"]

    async def test_a_revoked_token_ends_it(self, start_node):
        node = await start_node(recheck_ms=20)
        await publish(node, "orders", ("k", "1"))
        token = node.token()
        async with node.client(token) as client:
            await client.subscribe(sub="s", filter="#")
            node.revoke(token)
            assert (await client.closed())[0] == 4403


class TestSharing:
    async def test_one_read_for_all_at_the_live_end(self, node, monkeypatch):
        """What is encoded is counted: once a record, however many listen."""
        await publish(node, "orders", ("eu/0", "0"))
        from gateway.endpoints.websocket_frames import JsonFrames

        encoded = []
        plain = JsonFrames.record
        monkeypatch.setattr(JsonFrames, "record", lambda frames, one: (encoded.append(one), plain(frames, one))[1])
        async with node.client() as first, node.client() as second, node.client() as third:
            clients = (first, second, third)
            for client in clients:
                await client.subscribe(sub="s", filter="orders/eu/+")
            await publish(node, "orders", ("eu/1", "1"), ("us/1", "no"))
            for client in clients:
                assert texts(await client.records(1)) == ["1"]
            assert len(encoded) == 1

    async def test_equal_interests_share_whatever_they_are_called(self, node):
        await publish(node, "orders", ("eu/0", "0"))
        async with node.client() as first, node.client() as second:
            await first.subscribe(sub="s", filter="orders/#")
            await second.subscribe(sub="s", address="orders")
            hub = next(iter(node.server._connections))._hub
            await until(lambda: len(hub._broadcasts) == 1)
            await publish(node, "orders", ("k", "1"))
            for client in (first, second):
                assert texts(await client.records(1)) == ["1"]


class TestPause:
    @pytest.mark.parametrize("members", [{"address": "orders"}, {"filter": "orders/k/#"}, {"address": "orders", "credit": 100}])
    async def test_nothing_comes_until_resume_and_nothing_is_missed(self, node, members):
        await publish(node, "orders", ("k/0", "0"))
        async with node.client() as client:
            await client.subscribe(sub="s", **members)
            assert (await client.ask({"op": "pause", "sub": "s", "ref": 1})) == {"op": "paused", "sub": "s", "ref": 1}
            await publish(node, "orders", ("k/1", "1"), ("k/2", "2"))
            await asyncio.sleep(0.05)
            assert (await client.ask({"op": "ping", "ref": 3})) == {"op": "pong", "ref": 3}
            assert (await client.ask({"op": "resume", "sub": "s"}))["op"] == "resumed"
            assert texts(await client.records(2)) == ["1", "2"]

    async def test_twice_does_no_harm_and_unknown_is_told(self, node):
        await publish(node, "orders", ("k", "0"))
        async with node.client() as client:
            await client.subscribe(sub="s", address="orders")
            for operation in ("resume", "pause", "pause", "resume", "resume"):
                await client.ask({"op": operation, "sub": "s"})
            await publish(node, "orders", ("k", "1"))
            assert texts(await client.records(1)) == ["1"]
            assert (await client.ask({"op": "pause", "sub": "t"}))["problem"]["type"] == "/problems/parameter-invalid"

    async def test_paused_it_is_unsubscribed_where_it_stands(self, node):
        await publish(node, "orders", ("k", "0"))
        async with node.client() as client:
            subscribed = await client.subscribe(sub="s", address="orders")
            await client.ask({"op": "pause", "sub": "s"})
            await publish(node, "orders", ("k", "1"))
            assert (await client.ask({"op": "unsubscribe", "sub": "s"}))["cursor"] == subscribed["cursor"]
