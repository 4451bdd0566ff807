"""Records that expire, as WebSocket readers meet them: at the live end, behind it, and with credit."""

from __future__ import annotations

import asyncio

import pytest

from broker.broker import Outgoing


async def publish(node, *records):
    """(text, ttl_ms or None)"""
    outgoing = [Outgoing(b"k", text.encode(), ttl_ms=ttl_ms) for text, ttl_ms in records]
    await node.pipeline.broker.publish("orders", outgoing, durable=True, auto_create=True)


@pytest.mark.parametrize("wanted", [{"topic": "orders"}, {"address": "orders/k"}, {"filter": "#"}, {"filter": "orders/+"}])
async def test_those_behind_get_what_lives(node, wanted):
    await publish(node, ("a", None), ("b", 1), ("c", 60_000), ("d", 1))
    await asyncio.sleep(0.01)
    async with node.client() as client:
        await client.subscribe(sub="s", **wanted, **{"from": "earliest"})
        records = await client.records(2)
        assert [record["text"] for record in records] == ["a", "c"]
        assert records[1]["expires_at"] > records[1]["timestamp"] + 59_000
        assert "expires_at" not in records[0]


async def test_those_at_the_live_end_too(node):
    await publish(node, ("first", None))
    async with node.client() as client, node.client() as other:
        for one in (client, other):  # two: they share a broadcast
            await one.subscribe(sub="s", topic="orders")
        await publish(node, ("gone", None), ("past", None))
        outgoing = [Outgoing(b"k", b"x", expires_at_ms=1), Outgoing(b"k", b"y")]
        await node.pipeline.broker.publish("orders", outgoing, durable=True, auto_create=True)
        for one in (client, other):
            assert [record["text"] for record in await one.records(3)] == ["gone", "past", "y"]


async def test_a_record_that_expires_before_there_is_credit_is_not_sent(node):
    async with node.client() as client:
        await publish(node, ("a", 50), ("b", None))
        await client.subscribe(sub="s", topic="orders", credit=0, **{"from": "earliest"})
        await asyncio.sleep(0.06)
        await client.say({"op": "credit", "sub": "s", "records": 10})
        assert [record["text"] for record in await client.records(1)] == ["b"]


async def test_a_publisher_gives_a_time_to_live(node):
    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders/k", "text": "a", "ttl_ms": 1})
        await client.ask({"op": "publish", "address": "orders/k", "text": "b", "ttl_ms": 60_000})
        refused = await client.ask({"op": "publish", "address": "orders/k", "text": "c", "ttl_ms": 0})
        assert refused["problem"]["type"] == "/problems/record-invalid"
        await asyncio.sleep(0.01)
        await client.subscribe(sub="s", topic="orders", **{"from": "earliest"})
        assert [record["text"] for record in await client.records(1)] == ["b"]
