"""A reader that stops reading costs a bounded amount of memory, loses nothing, and holds nobody up."""

from __future__ import annotations

import asyncio
import resource

import pytest

from tests.gateway.endpoints.websocket.conftest import masked, until
from tests.gateway.endpoints.websocket.test_delivery import numbers

SUBSCRIBE = b'{"op":"subscribe","address":"orders","from":"earliest"}'


def buffered(node) -> int:
    """Bytes that the node holds for its connections, in this process."""
    outputs = [connection._output for connection in node.server._connections]
    for output in outputs:
        output.look()
    assert node.buffers.held_bytes == sum(output.waiting_bytes for output in outputs)
    return sum(output.waiting_bytes + output._bytes for output in outputs)


@pytest.mark.parametrize("tls", [False, True])
async def test_memory_is_bounded_and_all_arrives_in_order(start_node, tls):
    limit, read_bytes = 100_000, 50_000
    node = await start_node(tls=tls, send_buffer_bytes_max=limit, read_bytes_max=read_bytes, slow_reader_ms=60_000)
    await node.publish("orders", 1)
    # A small queue: the library stops reading its socket when it is full.
    async with node.client(max_queue=1) as slow, node.client() as fast:
        for client in (slow, fast):
            await client.subscribe(address="orders")
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        total, most = 12_000, 0
        # 12 MB in all; some of it fills the buffers of the kernel.
        for first in range(1, total, 500):
            await node.publish("orders", 500, first=first, size=1000)
            assert numbers(await fast.records(500)) == list(range(first, first + 500))
            most = max(most, buffered(node))
        # One read may overshoot the bound: its records, as JSON.
        assert most < limit + 2 * read_bytes
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss < 60_000
        assert node.count("slow_readers_total") >= 1
        assert numbers(await slow.records(total)) == list(range(1, total + 1))


async def test_many_subscriptions_of_a_slow_reader_share_its_bound(start_node):
    limit, read_bytes = 100_000, 50_000
    node = await start_node(send_buffer_bytes_max=limit, read_bytes_max=read_bytes, slow_reader_ms=60_000)
    await node.publish("orders", 6_000, size=1000)
    client = await node.raw()
    client.reader._transport.pause_reading()
    for number in range(50):
        client.send(masked(1, SUBSCRIBE[:-1] + b',"sub":"%d"}' % number))
    most = 0
    for _ in range(100):
        await asyncio.sleep(0.005)
        most = max(most, buffered(node))
    assert limit < most < limit + 2 * read_bytes
    assert node.pipeline.feeds <= 51
    (connection,) = node.server._connections
    held = [subscriber for subscriber in connection._operations._subscribers.values() if subscriber._feed is not None]
    assert sum(bool(subscriber._feed._subscription._fetched) for subscriber in held) <= 1


@pytest.mark.parametrize("tls", [False, True])
async def test_what_waits_below_tls_is_on_the_account(start_node, tls):
    """uvloop's TLS tells only what it has not encrypted; a whole write may wait in the TCP transport below it."""
    node = await start_node(tls=tls, read_bytes_max=1_000_000, send_buffer_bytes_max=2_000_000, slow_reader_ms=60_000)
    await node.publish("orders", 6_000, size=1000, batch=1_000)
    client = await node.raw()
    client.reader._transport.pause_reading()
    client.send(masked(1, SUBSCRIBE))
    await until(lambda: node.buffers.held_bytes > 500_000)
    (connection,) = node.server._connections
    below = connection._output._below
    assert (below is not None) == tls
    if below is not None:
        assert below.get_write_buffer_size() > 0
        assert node.buffers.held_bytes >= below.get_write_buffer_size()


@pytest.mark.parametrize("tls", [False, True])
async def test_many_slow_readers_stay_within_the_nodes_bound_and_lose_nothing(start_node, tls):
    """Twenty readers that read nothing, each of which might hold 1 MB, share 1 MB; who reads is served all the while."""
    bound = 1_000_000
    node = await start_node(tls=tls, send_buffers_bytes_max=bound, slow_reader_ms=60_000)
    await node.publish("orders", 8_000, size=1000)
    slow = [await node.raw() for _ in range(20)]
    for client in slow:
        client.reader._transport.pause_reading()
        client.send(masked(1, SUBSCRIBE))
    most = 0
    async with node.client() as fast:
        await fast.subscribe(address="orders", **{"from": "earliest"})
        read: list[int] = []
        while len(read) < 8_000:
            read += numbers((await fast.hear())["records"])
            most = max(most, buffered(node))
        assert read == list(range(8_000))
        while most < bound // 2:
            await asyncio.sleep(0.01)
            most = max(most, buffered(node))
        for _ in range(20):
            await asyncio.sleep(0.01)
            most = max(most, buffered(node))
    assert bound // 2 <= most <= bound * 1.1
    assert node.buffers.cut_total == 0
    first = slow[0]
    first.reader._transport.resume_reading()
    sizes = 0
    while sizes < 8_000:
        _, payload = await first.frame()
        sizes += payload.count(b'"offset":')
    assert sizes == 8_000


async def test_records_larger_than_a_piece_cut_the_longest_waiting(start_node):
    bound = 600_000
    node = await start_node(send_buffers_bytes_max=bound, slow_reader_ms=60_000)
    await node.publish("orders", 60, size=200_000, batch=1)
    slow = [await node.raw() for _ in range(6)]
    for client in slow:
        client.reader._transport.pause_reading()
        client.send(masked(1, SUBSCRIBE))
    await until(lambda: node.count("refused_total", reason="send-buffers-full") >= 1)
    assert node.buffers.held_bytes <= bound
    async with node.client() as fast:
        await fast.subscribe(address="orders", **{"from": "earliest"})
        assert numbers(await fast.records(60)) == list(range(60))


async def test_who_does_not_drain_in_time_is_closed(start_node):
    node = await start_node(send_buffer_bytes_max=50_000, slow_reader_ms=100, close_timeout_ms=200)
    await node.publish("orders", 1)
    client = await node.raw()
    client.send(masked(1, SUBSCRIBE))
    await client.frame()
    client.reader._transport.pause_reading()
    async with node.client() as fast:
        await fast.subscribe(address="orders")
        for first in range(1, 10_001, 500):
            await node.publish("orders", 500, first=first, size=1000)
            assert numbers(await fast.records(500)) == list(range(first, first + 500))
        await until(lambda: node.count("refused_total", reason="slow-reader") == 1)
        await until(lambda: node.server.connections == 1)
        await node.publish("orders", 1, first=10_001)
        assert numbers(await fast.records(1)) == [10_001]


async def test_who_reads_again_in_time_for_the_close_frame_is_told(start_node):
    node = await start_node(send_buffer_bytes_max=50_000, slow_reader_ms=100, close_timeout_ms=10_000)
    await node.publish("orders", 9_000, size=1000)
    client = await node.raw()
    client.reader._transport.pause_reading()
    client.send(masked(1, SUBSCRIBE))
    await until(lambda: node.count("refused_total", reason="slow-reader") == 1)
    client.reader._transport.resume_reading()
    code, reason = await client.closed()
    assert code == 4429
    assert "websocket.slow_reader_ms (100 ms)" in reason


async def test_a_reader_that_is_slow_but_drains_stays(start_node):
    node = await start_node(send_buffer_bytes_max=20_000, read_bytes_max=10_000, slow_reader_ms=2_000)
    await node.publish("orders", 2_000, size=500)
    async with node.client(max_queue=1) as client:
        await client.subscribe(address="orders", **{"from": "earliest"})
        read: list[int] = []
        while len(read) < 2_000:
            read += numbers((await client.hear())["records"])
            await asyncio.sleep(0.001)
        assert read == list(range(2_000))
