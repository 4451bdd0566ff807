"""Many connections: RSS of the node for each idle one, and for all of them when nobody reads.

    python bench/connections.py [--connections 10000] [--ways websocket,sse,slow] [--tls] [--budget-mib 256]

    websocket   each subscribes to a topic and nothing comes
    sse         the same over Server-Sent Events
    slow        WebSocket subscribers that read nothing while `--mib` MiB are published: what waits for them stays within
                `limits.send_buffers_bytes_max`, and RSS within that of the idle connections plus it

RSS of the process is what is counted; what the kernel holds has its own bound (`limits.unsent_bytes_max`, the peer's window).
Each way has a node of its own. Prints one JSON object. Each process holds one descriptor for a connection: `ulimit -n` has to
allow them.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from gateway.cli.profile import load_profile

MIB = 1024 * 1024
TOPIC = "bench"
RECORD_BYTES = 1_000
UPGRADE = (
    "GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n\r\n"
)
EVENTS = "GET /v1/topics/bench/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"


class Node:
    """A `sprawl serve` process on a free port."""

    def __init__(self, *, tls: bool, connections: int, budget_bytes: int) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="sprawl-bench-"))
        settings = {
            "listeners.http.port": 0,
            "listeners.kafka.port": 0,
            "listeners.http.plain": str(not tls).lower(),
            "limits.connections_max": connections + 100,
            "limits.send_buffers_bytes_max": budget_bytes,
            "sse.streams_max": connections + 100,
            "pipeline.feeds_max": connections + 100,
            "websocket.slow_reader_ms": 3_600_000,
        }
        command = [sys.executable, "-m", "gateway.cli.main", "serve", "--home", str(self._home), "--json"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        self.url: str = json.loads(self._process.stdout.readline())["url"]
        host, port = self.url.split("//")[1].rsplit(":", 1)
        self.address = (host, int(port))
        profile = load_profile(self._home)
        assert profile is not None
        assert profile.token is not None
        self.token = profile.token
        self.context = ssl.create_default_context(cafile=profile.ca) if tls else None
        self._system = psutil.Process(self._process.pid)

    def rss(self) -> int:
        found: int = self._system.memory_info().rss
        return found

    def settled_rss(self) -> int:
        """When it has not grown for a second."""
        before = -1
        while (now := self.rss()) > before:
            before = now
            time.sleep(1)
        return now

    def post(self, path: str, body: bytes, content_type: str) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type}
        request = urllib.request.Request(self.url + path, body, headers)
        with urllib.request.urlopen(request, context=self.context) as answer:
            answer.read()

    def metric(self, name: str) -> float:
        request = urllib.request.Request(self.url + "/metrics", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, context=self.context) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        shutil.rmtree(self._home)


def frame(operation: dict[str, Any]) -> bytes:
    payload = json.dumps(operation).encode()
    assert len(payload) < 126
    return bytes([0x81, 0x80 | len(payload)]) + bytes(4) + payload


def hear(connection: socket.socket, awaited: bytes) -> None:
    heard = b""
    while awaited not in heard:
        part = connection.recv(65536)
        assert part, heard
        heard += part


def connect(node: Node, way: str, receive_buffer: int | None = None) -> socket.socket:
    plain = socket.socket()
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    plain.connect(node.address)
    connection = plain if node.context is None else node.context.wrap_socket(plain, server_hostname="localhost")
    if way == "sse":
        connection.sendall(EVENTS.format(token=node.token).encode())
        hear(connection, b"id: ")
    else:
        connection.sendall(UPGRADE.format(token=node.token).encode())
        hear(connection, b'"ready"')
        connection.sendall(frame({"op": "subscribe", "address": TOPIC}))
        hear(connection, b'"subscribed"')
    return connection


def measure(way: str, connections: int, *, tls: bool, budget_bytes: int, mib: int) -> dict[str, Any]:
    node = Node(tls=tls, connections=connections, budget_bytes=budget_bytes)
    clients: list[socket.socket] = []
    try:
        node.post(f"/v1/topics/{TOPIC}/records", b'{"text":"the topic is made"}', "application/json")
        clients.append(connect(node, way))
        before = node.settled_rss()
        clients += [connect(node, way, 4096 if way == "slow" else None) for _ in range(connections)]
        idle = node.settled_rss()
        found = {
            "connections": connections,
            "rss_mib": idle / MIB,
            "kib_a_connection": (idle - before) / connections / 1024,
        }
        if way == "slow":
            found |= fill(node, idle, budget_bytes, mib)
        return found
    finally:
        for client in clients:
            client.close()
        node.stop()


def fill(node: Node, idle: int, budget_bytes: int, mib: int) -> dict[str, Any]:
    """Publish until nothing more can wait in the kernel, and look at what waits in the node."""
    record = json.dumps({"text": base64.b64encode(os.urandom(RECORD_BYTES * 3 // 4)).decode()}).encode()
    most = most_held = 0
    for _ in range(mib):
        node.post(f"/v1/topics/{TOPIC}/records", b"\n".join([record] * (MIB // RECORD_BYTES)), "application/x-ndjson")
        most = max(most, node.rss())
        most_held = max(most_held, int(node.metric("sprawl_send_buffers_held_bytes")))
    before, quiet = -1.0, 0
    while quiet < 3:  # all has been delivered, or waits
        time.sleep(1)
        most = max(most, node.rss())
        most_held = max(most_held, int(node.metric("sprawl_send_buffers_held_bytes")))
        now = node.metric('sprawl_records_out_total{protocol="websocket"}')
        quiet = quiet + 1 if now == before else 0
        before = now
    return {
        "delivered_mib": before * RECORD_BYTES / MIB,
        "published_mib": mib,
        "budget_mib": budget_bytes / MIB,
        "held_mib": most_held / MIB,
        "cut": node.metric("sprawl_send_buffers_cut"),
        "rss_full_mib": most / MIB,
        "grown_mib": (most - idle) / MIB,
        "within_budget": most - idle <= budget_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--ways", default="websocket,sse,slow")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--budget-mib", type=int, default=256)
    parser.add_argument("--mib", type=int, default=16, help="published to slow readers")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or a node would be left
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    results = {
        way: measure(way, chosen.connections, tls=chosen.tls, budget_bytes=chosen.budget_mib * MIB, mib=chosen.mib)
        for way in chosen.ways.split(",")
    }
    print(json.dumps({"tls": chosen.tls, **results}))


if __name__ == "__main__":
    main()
