"""What a peer may do to us over a real socket: each its close code, a bound, and the node goes on serving others."""

from __future__ import annotations

import asyncio
import json
import struct

import pytest

from tests.gateway.endpoints.websocket.conftest import masked, until

TEXT, BINARY, CONT, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10

VIOLATIONS = [
    ("unmasked frame", b"\x81\x02{}", 1002),
    ("reserved bit", b"\xc1" + masked(TEXT, b"{}")[1:], 1002),
    ("reserved opcode", masked(5, b"{}"), 1002),
    ("continuation of nothing", masked(CONT, b"{}"), 1002),
    ("fragmented ping", masked(PING, b"", fin=False), 1002),
    ("long ping", masked(PING, b"x" * 126), 1002),
    ("close of one byte", masked(CLOSE, b"\x03"), 1002),
    ("binary", masked(BINARY, b"{}"), 1003),
    ("invalid UTF-8", masked(TEXT, b'{"op":"\xff"}'), 1007),
    ("announced size beyond the bound", b"\x81\xff" + struct.pack("!Q", 1 << 40) + bytes(4), 1009),
    ("frame beyond the bound", masked(TEXT, b" " * 100_001), 1009),
    ("message beyond the bound", masked(TEXT, b" " * 60_000, fin=False) + masked(CONT, b" " * 60_000), 1009),
    ("fragments without end", masked(TEXT, b"", fin=False) + masked(CONT, b"", fin=False) * 70_000, 1008),
    ("flood of pings", masked(PING, b"") * 70_000, 4429),
    ("flood of pongs", masked(PONG, b"x") * 70_000, 4429),
]


async def test_violations(start_node):
    node = await start_node(message_bytes_max=100_000)
    async with node.client() as bystander:
        for what, stream, code in VIOLATIONS:
            client = await node.raw()
            client.send(stream)
            found, reason = await client.closed()
            assert found == code, (what, reason)
            assert reason, what
            assert await client.rest() == b"", what
            client.writer.close()
            assert (await bystander.ask({"op": "ping", "ref": what}))["ref"] == what
        await until(lambda: node.server.connections == 1)
    assert node.count("refused_total", reason="close-1002") == 7


async def test_violations_over_tls_arrive_too(start_node):
    node = await start_node(tls=True, message_bytes_max=100_000)
    for what, stream, code in VIOLATIONS[:1] + VIOLATIONS[9:12]:
        client = await node.raw()
        client.send(stream + masked(TEXT, b" " * 50_000) * 20)
        assert (await client.closed())[0] == code, what
        assert await client.rest() == b"", what


async def test_the_reason_arrives_though_the_peer_is_still_sending(start_node):
    """Closing a socket with unread input resets it, and a reset overtakes the close frame."""
    node = await start_node(message_bytes_max=100_000)
    client = await node.raw()
    for _ in range(100):
        client.send(masked(TEXT, b" " * 100_001))
    assert (await client.closed())[0] == 1009


async def test_operations_that_are_none(node):
    table = [
        ("{", "byte 1"),
        ('{"op":"ping",}', "byte 13"),
        ('{"op":"ping"} x', "byte 15"),
        ("", "byte 0"),
        ('"ping"', "expected"),
        ("17", "expected"),
        ('{"op":"wash"}', "the operations are auth, publish"),
        ('{"ping":1}', "op"),
        ('{"op":"ping","colour":1}', "colour"),
        ('{"op":"unsubscribe"}', "sub"),
        ('{"op":"credit","sub":"x","records":"many"}', "$.records"),
        ('{"op":"subscribe","address":5}', "$.address"),
        ('{"op":"publish","records":[{"text":"a"},{"txt":"b"}],"address":"a"}', "$.records[1]"),
        ("[" * 50_000, "nested"),
        ('{"op":"ping","ref":' + "[" * 50_000, "nested"),
        ('{"op":"ping","ref":"\\ud800"}', ""),
        (json.dumps([{"op": "ping"}] * 1001), "websocket.operations_max allows 1000"),
    ]
    async with node.client() as client:
        for message, said in table:
            answer = await client.ask(message)
            if said:
                assert answer["op"] == "error", message[:50]
                assert answer["problem"]["type"] == "/problems/body-malformed"
                assert said.lower() in answer["problem"]["detail"].lower(), answer
        assert (await client.ask({"op": "ping", "ref": 1})) == {"op": "pong", "ref": 1}


async def test_a_flood_of_operations_shares_the_loop(start_node):
    """While one connection has a million bytes of pings worked through, another is answered in between."""
    node = await start_node()
    flooder = await node.raw()
    async with node.client() as bystander:
        flood = masked(TEXT, json.dumps([{"op": "ping"}] * 1000).encode())
        flooder.send(flood * 50)
        answered = 0
        for number in range(20):
            assert (await bystander.ask({"op": "ping", "ref": number}))["ref"] == number
            answered += 1
        assert answered == 20
        for _ in range(50_000):
            assert await flooder.frame() == (TEXT, b'{"op":"pong"}')


async def test_answers_that_nobody_reads_stop_the_reading(start_node):
    node = await start_node(send_buffer_bytes_max=50_000, slow_reader_ms=60_000)
    client = await node.raw()
    client.writer.transport.set_write_buffer_limits(high=1 << 20)
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    operations = masked(TEXT, json.dumps([{"op": "ping", "ref": "x" * 200}] * 1000).encode())
    for _ in range(200):
        client.send(operations)
    (connection,) = node.server._connections
    await until(lambda: not connection._reading)
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert connection.transport.get_write_buffer_size() + connection._output._bytes < 50_000 + 300_000
    async with node.client() as bystander:
        assert (await bystander.ask({"op": "ping"}))["op"] == "pong"


@pytest.mark.parametrize("tls", [False, True])
async def test_half_closed_and_lost_connections_leave_nothing(start_node, tls):
    node = await start_node(tls=tls)
    await node.publish("orders", 10)
    for number in range(6):
        client = await node.raw()
        client.send(masked(TEXT, b'{"op":"subscribe","address":"orders"}'))
        await client.frame()
        client.send(masked(TEXT, b'{"op":"publish","address":"orders","text":"x"}')[: 20 + number])
        if number % 3 == 0 and not tls:
            client.writer.write_eof()
            await client.rest()
        elif number % 3 == 1:
            client.writer.transport.abort()
        else:
            client.writer.close()
    await until(lambda: node.server.connections == 0)
    await until(
        lambda: not any("subscriber" in task.get_name() or "broadcast" in task.get_name() for task in asyncio.all_tasks())
    )
    assert node.count("connections") == 0
    assert node.pipeline.feeds == 0


async def test_a_peer_that_does_not_answer_pings_is_let_go(start_node):
    node = await start_node(ping_interval_ms=50, ping_timeout_ms=50, recheck_ms=20, close_timeout_ms=50)
    client = await node.raw()
    assert await client.frame() == (PING, b"")
    assert (await client.closed())[0] == 1011
    await until(lambda: node.server.connections == 0)


async def test_a_peer_that_answers_pings_stays(start_node):
    node = await start_node(ping_interval_ms=20, ping_timeout_ms=20, recheck_ms=10)
    async with node.client() as client:
        await asyncio.sleep(0.2)
        assert (await client.ask({"op": "ping"}))["op"] == "pong"


async def test_a_peer_that_ignores_the_close_frame_is_cut(start_node):
    node = await start_node(close_timeout_ms=50)
    client = await node.raw()
    client.send(masked(TEXT, b'{"op":"auth","token":"wrong"}'))
    assert (await client.closed())[0] == 4401
    await until(lambda: node.server.connections == 0)


async def test_the_orderly_end(node):
    async with node.client() as client:
        await client.connection.close(1000, "done")
        assert client.connection.close_code == 1000
    client = await node.raw()
    client.send(masked(CLOSE, b""))
    assert await client.frame() == (CLOSE, b"")
    assert await client.rest() == b""


async def test_small_reads(node):
    """A handshake and messages that come byte by byte."""
    client = await node.raw()
    for message in (b'{"op":"ping","ref":1}', b'{"op":"publish","ref":2,"address":"orders/k","text":"x"}'):
        for byte in masked(TEXT, message):
            client.send(bytes([byte]))
            await asyncio.sleep(0)
    assert json.loads((await client.frame())[1]) == {"op": "pong", "ref": 1}
    assert json.loads((await client.frame())[1])["ref"] == 2
