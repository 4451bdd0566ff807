"""WebSocket fan-out: server CPU of one record delivered to 500 subscribers, beside the `websockets` library in the same run.

    python bench/websocket_fanout.py [--seconds 3] [--subscribers 500]

Sprawl (a node of its own, plain and with TLS; records are sealed and durable, the publish is included) and a server that does
nothing but `websockets.broadcast` take turns. Records of 200 B are published over one connection, with 8 outstanding ("burst":
several broadcasts share a write) and one by one ("single": each is with everybody before the next; then the kernel's share, a
system call and a wake-up for every delivery, is most of it). CPU time is the process's, read from the system. In the prototypes,
plain and in bursts, the library took 14.6 us a delivery, Go's gorilla with prepared messages 6.2. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import uvloop
from uuid_utils import uuid7
from websockets.asyncio.server import broadcast, serve

from gateway.cli.profile import load_profile

GOAL_US = 7.0
OUTSTANDING = {"burst": 8, "single": 1}
VALUE_BYTES = 200
RECORD_MARK = b'"offset":'  # once in each record
ACK_MARK = b'{"op":"ack"'


class Server:
    """A process, its address and its CPU time."""

    token = ""
    context: ssl.SSLContext | None = None

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        self.url = json.loads(self._process.stdout.readline())["websocket_url"]
        self._system = psutil.Process(self._process.pid)

    def cpu_seconds(self) -> float:
        times = self._system.cpu_times()
        return times.user + times.system

    def rss_mib(self) -> float:
        return self._system.memory_info().rss / 2**20

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


class Node(Server):
    """A `sprawl serve` process on a free port."""

    def __init__(self, home: Path, *, plain: bool) -> None:
        command = [sys.executable, "-m", "gateway.cli.main", "serve", "--home", str(home), "--json"]
        command += ["--set", "listeners.http.port=0", *(["--set", "listeners.http.plain=true"] if plain else [])]
        super().__init__(command)
        profile = load_profile(home)
        assert profile is not None
        assert profile.token is not None
        self.token = profile.token
        self.context = None if plain else ssl.create_default_context(cafile=profile.ca)


async def serve_peer() -> None:
    """The same conversation, and no more: no identity, no policy, no log."""
    subscribers: set[Any] = set()

    async def handle(connection: Any) -> None:
        await connection.send('{"op":"ready"}')
        async for message in connection:
            operation = json.loads(message)
            if operation["op"] == "subscribe":
                subscribers.add(connection)
                await connection.send('{"op":"subscribed"}')
                continue
            record = {"id": str(uuid7()), "topic": "bench", "partition": 0, "offset": 1, "key": "k", "text": operation["text"]}
            broadcast(subscribers, json.dumps({"op": "records", "sub": "bench", "cursor": "1-0", "records": [record]}))
            await connection.send('{"op":"ack"}')
        subscribers.discard(connection)

    async with serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        print(json.dumps({"websocket_url": f"ws://127.0.0.1:{port}/v1/ws"}), flush=True)
        await asyncio.get_running_loop().create_future()


class Client(asyncio.Protocol):
    """Counts records by a mark in them, as cheaply as can be: the machine's other core is the node's."""

    def __init__(self, mark: bytes, heard: Any) -> None:
        self._mark, self._heard = mark, heard
        self._tail = b""
        self._awaited = b""
        self._begun: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        text = self._tail + data
        if self._begun is not None:
            self._tail = text
            if self._awaited in text:
                self._begun.set_result(None)
                self._begun, self._tail = None, b""
            return
        count = text.count(self._mark)
        self._tail = text[1 - len(self._mark) :]
        if count:
            self._heard(count)

    async def hear(self, awaited: bytes) -> None:
        self._awaited, self._begun = awaited, asyncio.get_running_loop().create_future()
        await self._begun

    def say(self, operation: Any) -> None:
        payload = json.dumps(operation).encode()
        size = bytes([0x80 | len(payload)]) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload))
        self.transport.write(b"\x81" + size + bytes(4) + payload)


async def connect(node: Server, mark: bytes, heard: Any) -> Client:
    host, port = node.url.split("//")[1].split("/")[0].split(":")
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(mark, heard), host, int(port), ssl=node.context)
    client.transport.write(
        b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Authorization: Bearer " + node.token.encode() + b"\r\n\r\n"
    )
    await client.hear(b'"op":"ready"')
    return client


class Fanout:
    """One publisher, many subscribers of one topic."""

    def __init__(self, node: Server, subscribers: int, outstanding: int) -> None:
        self._node, self._subscribers, self._outstanding = node, subscribers, outstanding
        self.published = self.delivered = 0
        self._until = 0.0
        self._value = os.urandom(VALUE_BYTES // 2).hex()
        self._done = asyncio.Event()
        self._publisher: Client

    async def start(self) -> None:
        self._publisher = await connect(self._node, ACK_MARK, lambda count: None)
        self._publisher.say({"op": "publish", "address": "bench/k", "text": "the topic is made"})
        await self._publisher.hear(ACK_MARK)
        for _ in range(self._subscribers):
            client = await connect(self._node, RECORD_MARK, self._heard)
            client.say({"op": "subscribe", "address": "bench"})
            await client.hear(b'"op":"subscribed"')

    async def run(self, seconds: float) -> None:
        self.published = self.delivered = 0
        self._done.clear()
        self._until = time.perf_counter() + seconds
        self._go_on()
        await self._done.wait()

    def _go_on(self) -> None:
        if time.perf_counter() < self._until:
            while self.published * self._subscribers - self.delivered < self._outstanding * self._subscribers:
                self._publisher.say({"op": "publish", "address": "bench/k", "text": self._value})
                self.published += 1
        elif self.delivered == self.published * self._subscribers:
            self._done.set()

    def _heard(self, count: int) -> None:
        self.delivered += count
        if self.delivered % self._subscribers == 0:
            self._go_on()


async def measure(node: Server, subscribers: int, outstanding: int, seconds: float) -> dict[str, float]:
    fanout = Fanout(node, subscribers, outstanding)
    await fanout.start()
    await fanout.run(min(1.0, seconds))
    cpu, start = node.cpu_seconds(), time.perf_counter()
    await fanout.run(seconds)
    spent, took = node.cpu_seconds() - cpu, time.perf_counter() - start
    deliveries = fanout.delivered
    return {"cpu_us_a_delivery": spent / deliveries * 1e6, "deliveries_s": deliveries / took, "deliveries": deliveries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--subscribers", type=int, default=500)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peer:
        uvloop.run(serve_peer())
        return
    homes = [Path(tempfile.mkdtemp(prefix="sprawl-bench-")) for _ in range(2)]
    servers: dict[str, Server] = {}
    results: dict[str, Any] = {"subscribers": chosen.subscribers, "value_bytes": VALUE_BYTES, "goal_us": GOAL_US}
    try:
        servers["plain"] = Node(homes[0], plain=True)
        servers["peer"] = Server([sys.executable, __file__, "--peer"])
        servers["tls"] = Node(homes[1], plain=False)
        for name, outstanding in OUTSTANDING.items():
            for way, server in servers.items():
                results[f"{way}_{name}"] = uvloop.run(measure(server, chosen.subscribers, outstanding, chosen.seconds))
            for way in ("plain", "tls"):
                ratio = results[f"{way}_{name}"]["cpu_us_a_delivery"] / results[f"peer_{name}"]["cpu_us_a_delivery"]
                results[f"{way}_{name}"]["of_peer"] = ratio
    finally:
        for server in servers.values():
            server.stop()
        for home in homes:
            shutil.rmtree(home)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
