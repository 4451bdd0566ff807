"""Stopping: what is under way is answered, every subscriber is told where to go on."""

from __future__ import annotations

import asyncio
import json

from tests.gateway.endpoints.websocket.conftest import masked, until, upgrade


async def test_going_away_with_the_cursor_of_each_subscription(node):
    await node.publish("orders", 20)
    await node.publish("payments", 5)
    async with node.client() as client:
        await client.subscribe(sub="o", address="orders", **{"from": "earliest"})
        read = await client.records(20)
        await client.subscribe(sub="p", address="payments")
        await client.subscribe(sub="c", address="orders", credit=7, **{"from": "earliest"})
        assert len(await client.records(7)) == 7
        draining = asyncio.create_task(node.server.drain(2_000))
        last = await client.hear()
        code, reason = await client.closed()
        assert await draining == 0
    assert (code, last["op"]) == (1001, "going-away")
    assert "connect again" in reason
    cursors = {entry["sub"]: entry["cursor"] for entry in last["subscriptions"]}
    assert set(cursors) == {"o", "p", "c"}
    subscription = await node.pipeline.broker.subscribe("orders", None, _cursor(cursors["o"]))
    await node.publish("orders", 3, first=len(read))
    found = await subscription.next(bytes_max=1 << 20, records_max=100, wait_max_ms=0)
    assert [int(delivered.record.value.split(b"|")[0]) for delivered in found] == [20, 21, 22]
    subscription = await node.pipeline.broker.subscribe("orders", None, _cursor(cursors["c"]))
    found = await subscription.next(bytes_max=1 << 20, records_max=100, wait_max_ms=0)
    assert int(found[0].record.value.split(b"|")[0]) == 7


def _cursor(text: str):
    from broker.delivery.position import Cursor

    return Cursor.parse(text)


async def test_publishes_under_way_are_acknowledged_first(node):
    held = asyncio.Event()
    publish = node.pipeline.publish

    async def slow(*arguments, **named):
        await held.wait()
        return await publish(*arguments, **named)

    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders", "text": "x"})
        node.pipeline.publish = slow
        await client.say(*({"op": "publish", "ref": number, "address": "orders", "text": "x"} for number in range(5)))
        await until(lambda: len(next(iter(node.server._connections))._operations._publisher._under_way) == 5)
        draining = asyncio.create_task(node.server.drain(2_000))
        await asyncio.sleep(0.02)
        held.set()
        assert [(await client.hear())["ref"] for _ in range(5)] == list(range(5))
        assert (await client.hear())["op"] == "going-away"
        assert (await client.closed())[0] == 1001
        assert await draining == 0


async def test_publishes_that_hang_do_not_hold_the_drain(start_node):
    node = await start_node(drain_ms=50)
    never = asyncio.Event()

    async def hanging(*arguments, **named):
        await never.wait()
        return []

    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders", "text": "x"})
        node.pipeline.publish = hanging
        await client.say({"op": "publish", "ref": 1, "address": "orders", "text": "x"})
        await until(lambda: bool(next(iter(node.server._connections))._operations._publisher._under_way))
        draining = asyncio.create_task(node.server.drain(2_000))
        assert (await client.hear())["op"] == "going-away"
        assert (await client.closed())[0] == 1001
        assert await draining == 0
    never.set()


async def test_who_has_not_authenticated_is_sent_away_too(node):
    async with node.anybody() as client:
        await client.connection.ping()
        draining = asyncio.create_task(node.server.drain(2_000))
        assert (await client.closed())[0] == 1001
        assert await draining == 0


async def test_a_connection_under_drain_takes_nothing_new(start_node):
    node = await start_node()
    held = asyncio.Event()
    publish = node.pipeline.publish

    async def slow(*arguments, **named):
        await held.wait()
        return await publish(*arguments, **named)

    async with node.client() as client:
        await client.ask({"op": "publish", "address": "orders", "text": "x"})
        node.pipeline.publish = slow
        await client.say({"op": "publish", "ref": 1, "address": "orders", "text": "x"})
        await until(lambda: bool(next(iter(node.server._connections))._operations._publisher._under_way))
        draining = asyncio.create_task(node.server.drain(2_000))
        await asyncio.sleep(0.02)
        await client.say({"op": "publish", "ref": 2, "address": "orders", "text": "late"})
        await asyncio.sleep(0.02)
        held.set()
        heard = [await client.hear(), await client.hear()]
        assert [message["op"] for message in heard] == ["ack", "going-away"]
        assert (await client.closed())[0] == 1001
        assert await draining == 0


async def test_an_upgrade_under_drain_is_refused(node):
    client = await node.tcp()
    async with node.client() as keeper:
        hub = next(connection._hub for connection in node.server._connections if hasattr(connection, "_hub"))
        hub.draining = True
        client.send(upgrade(Authorization=f"Bearer {node.token()}"))
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "/problems/draining"
        assert (await keeper.ask({"op": "ping"}))["op"] == "pong"


async def test_a_slow_reader_does_not_hold_the_drain(start_node):
    node = await start_node(send_buffer_bytes_max=50_000, close_timeout_ms=100)
    await node.publish("orders", 9_000, size=1000)
    client = await node.raw()
    client.reader._transport.pause_reading()
    client.send(masked(1, b'{"op":"subscribe","address":"orders","from":"earliest"}'))
    await until(lambda: node.count("slow_readers_total") == 1)
    assert await node.server.drain(2_000) == 0
