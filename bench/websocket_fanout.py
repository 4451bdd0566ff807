"""Fan-out: server CPU of one record delivered to 500 subscribers, beside gorilla/websocket and `websockets` in the same run.

    python bench/websocket_fanout.py [--seconds 3] [--subscribers 500] [--rounds 2] [--ways plain,gorilla]

Sprawl (records are sealed and durable, the publish is included) and servers that do nothing but the conversation take turns:

    plain, tls      sub-protocol sprawl.v1.json, a node each
    msgpack         sprawl.v1.msgpack, at the plain node
    sse             Server-Sent Events at the plain node
    gorilla         Go, prepared messages (bench/peers/websocket, built here; left out by name where there is no Go)
    websockets      Python's `websockets.broadcast`

Records of 200 B are published over one connection, with 8 outstanding ("burst": several broadcasts share a write) and one by one
("single": each is with everybody before the next; then the kernel's share, a system call and a wake-up for every delivery, is
most of it). CPU time is the process's, read from the system; of several rounds the median. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import ssl
import statistics
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
SSE_GOAL_US = 20.0
"""Each stream is an ASGI response with a task of its own; reading, authorising and encoding are shared, writing is not."""
HERE = Path(__file__).parent
PEERS = HERE.parent / "build" / "peers"
OUTSTANDING = {"burst": 8, "single": 1}
VALUE_BYTES = 200
MARK = "@#@#"  # once in each record, whatever carries it
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


def build_gorilla() -> Path | None:
    """None without Go."""
    if shutil.which("go") is None:
        return None
    binary = PEERS / "websocket"
    PEERS.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-trimpath", "-o", str(binary), "."], cwd=HERE / "peers" / "websocket", check=True)
    return binary


class Node(Server):
    """A `sprawl serve` process on a free port."""

    def __init__(self, home: Path, *, plain: bool) -> None:
        command = [sys.executable, "-m", "gateway.cli.main", "serve", "--home", str(home), "--json"]
        command += [
            "--set",
            "listeners.http.port=0",
            "--set",
            "listeners.kafka.port=0",
            *(["--set", "listeners.http.plain=true"] if plain else []),
        ]
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
            record = {
                "id": str(uuid7()),
                "topic": "bench",
                "partition": 0,
                "offset": 1,
                "key": "k",
                "text": operation["text"],
                "headers": {"content-type": "text/plain; charset=utf-8"},
            }
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

    def say_bytes(self, payload: bytes) -> None:
        assert len(payload) < 126
        self.transport.write(bytes([0x82, 0x80 | len(payload)]) + bytes(4) + payload)


async def open_client(node: Server, mark: bytes, heard: Any, kind: type[Client] = Client) -> Client:
    host, port = node.url.split("//")[1].split("/")[0].split(":")
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: kind(mark, heard), host, int(port), ssl=node.context)
    return client


async def connect(
    node: Server, mark: bytes, heard: Any, subprotocol: str = "sprawl.v1.json", kind: type[Client] = Client
) -> Client:
    client = await open_client(node, mark, heard, kind)
    client.transport.write(
        b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: " + subprotocol.encode() + b"\r\n"
        b"Authorization: Bearer " + node.token.encode() + b"\r\n\r\n"
    )
    await client.hear(b"ready")
    return client


async def subscribe(node: Server, way: str, heard: Any) -> Client:
    mark = MARK.encode()
    if way == "sse":
        client = await open_client(node, mark, heard)
        client.transport.write(
            b"GET /v1/topics/bench/events HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer " + node.token.encode() + b"\r\n\r\n"
        )
        await client.hear(b"id: ")
    elif way == "msgpack":
        client = await connect(node, mark, heard, "sprawl.v1.msgpack")
        client.say_bytes(b"\x82\xa2op\xa9subscribe\xa7address\xa5bench")
        await client.hear(b"subscribed")
    else:
        client = await connect(node, mark, heard)
        client.say({"op": "subscribe", "address": "bench"})
        await client.hear(b'"op":"subscribed"')
    return client


class Fanout:
    """One publisher, many subscribers of one topic."""

    def __init__(self, node: Server, way: str, subscribers: int, outstanding: int) -> None:
        self._node, self._way, self._subscribers, self._outstanding = node, way, subscribers, outstanding
        self.published = self.delivered = 0
        self._until = 0.0
        self._value = MARK + os.urandom(VALUE_BYTES // 2).hex()[len(MARK) :]
        self._clients: list[Client] = []
        self._done = asyncio.Event()
        self._publisher: Client

    async def start(self) -> None:
        self._publisher = await connect(self._node, ACK_MARK, lambda count: None)
        self._publisher.say({"op": "publish", "address": "bench/k", "text": "the topic is made"})
        await self._publisher.hear(ACK_MARK)
        for _ in range(self._subscribers):
            self._clients.append(await subscribe(self._node, self._way, self._heard))

    async def stop(self) -> None:
        for client in (self._publisher, *self._clients):
            client.transport.abort()
        await asyncio.sleep(0.2)

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


async def measure(node: Server, way: str, subscribers: int, outstanding: int, seconds: float) -> dict[str, float]:
    fanout = Fanout(node, way, subscribers, outstanding)
    await fanout.start()
    await fanout.run(min(1.0, seconds))
    cpu, start = node.cpu_seconds(), time.perf_counter()
    await fanout.run(seconds)
    spent, took = node.cpu_seconds() - cpu, time.perf_counter() - start
    deliveries = fanout.delivered
    await fanout.stop()
    return {"cpu_us_a_delivery": spent / deliveries * 1e6, "deliveries_s": deliveries / took, "deliveries": deliveries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--subscribers", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", default="plain,gorilla,msgpack,tls,sse,websockets")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peer:
        uvloop.run(serve_peer())
        return
    print(json.dumps(run(chosen.ways.split(","), chosen.subscribers, chosen.rounds, chosen.seconds)))


def run(ways: list[str], subscribers: int, rounds: int, seconds: float) -> dict[str, Any]:
    homes = [Path(tempfile.mkdtemp(prefix="sprawl-bench-")) for _ in range(2)]
    results: dict[str, Any] = {
        "subscribers": subscribers,
        "value_bytes": VALUE_BYTES,
        "goal_us": GOAL_US,
        "sse_goal_us": SSE_GOAL_US,
    }
    gorilla = build_gorilla() if "gorilla" in ways else None
    started: list[Server] = []
    servers: dict[str, Server] = {}
    try:
        for way in ways:
            if way == "gorilla" and gorilla is None:
                print("no Go here: gorilla/websocket is left out", file=sys.stderr)
                continue
            if way in ("plain", "msgpack", "sse"):
                shared = next((server for server in started if isinstance(server, Node) and server.context is None), None)
                server = shared or Node(homes[0], plain=True)
            elif way == "tls":
                server = Node(homes[1], plain=False)
            else:
                server = Server([str(gorilla)] if way == "gorilla" else [sys.executable, __file__, "--peer"])
            started.append(server)
            servers[way] = server
        for name, outstanding in OUTSTANDING.items():
            found: dict[str, list[dict[str, float]]] = {way: [] for way in servers}
            for _ in range(rounds):
                for way, server in servers.items():
                    found[way].append(uvloop.run(measure(server, way, subscribers, outstanding, seconds)))
            for way, measured in found.items():
                results[f"{way}_{name}"] = {
                    figure: statistics.median([one[figure] for one in measured]) for figure in measured[0]
                }
            for peer in {"gorilla", "websockets"} & set(servers):
                theirs = results[f"{peer}_{name}"]["cpu_us_a_delivery"]
                for way in set(servers) - {"gorilla", "websockets"}:
                    results[f"{way}_{name}"][f"of_{peer}"] = results[f"{way}_{name}"]["cpu_us_a_delivery"] / theirs
    finally:
        for server in dict.fromkeys(started):
            server.stop()
        for home in homes:
            shutil.rmtree(home)
    return results


if __name__ == "__main__":
    main()
