"""Server CPU of REST publishing, over TLS, sealed and durable; and what an idle node takes.

    python bench/rest.py [--seconds 5]

Starts a node of its own, drives it with ready-made requests on kept connections from this process, and reads the node's CPU time
and RSS from the system. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import uvloop

from gateway.cli.profile import load_profile

CONNECTIONS = 16
RECORDS = 100
VALUE_BYTES = 200


class Node:
    """A `sprawl serve` process on free ports."""

    def __init__(self, home: Path) -> None:
        self.home = home
        command = [sys.executable, "-m", "gateway.cli.main", "serve", "--home", str(home), "--json"]
        command += ["--set", "listeners.http.port=0", "--set", "listeners.kafka.port=0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        self.facts = json.loads(self._process.stdout.readline())
        profile = load_profile(home)
        assert profile is not None
        assert profile.token is not None
        self.url, self.ca, self.token = profile.url, profile.ca, profile.token
        self.system = psutil.Process(self._process.pid)

    def cpu_seconds(self) -> float:
        times = self.system.cpu_times()
        return times.user + times.system

    def rss_mib(self) -> float:
        return self.system.memory_info().rss / 2**20

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


def request(token: str, body: bytes, content_type: str) -> bytes:
    head = (
        "POST /v1/topics/bench/records HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """Sends the same request again as soon as its answer is whole."""

    def __init__(self, message: bytes, until: float) -> None:
        self._message = message
        self._until = until
        self._buffer = b""
        self.answers = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._message)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        if b" 200 " not in head[:16]:
            self.done.set_exception(RuntimeError(self._buffer[:600].decode(errors="replace")))
            self._transport.close()
            return
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if len(self._buffer) < head_end + 4 + length:
            return
        self._buffer = b""
        self.answers += 1
        if time.perf_counter() < self._until:
            self._transport.write(self._message)  # type: ignore[attr-defined]
        else:
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def drive(node: Node, message: bytes, seconds: float) -> int:
    context = ssl.create_default_context(cafile=node.ca)
    host, port = node.url.split("//")[1].split(":")
    until = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Client(message, until), host, int(port), ssl=context) for _ in range(CONNECTIONS)
    ]
    await asyncio.gather(*[client.done for _, client in made])
    return sum(client.answers for _, client in made)


def measure(node: Node, message: bytes, records: int, seconds: float) -> dict[str, float]:
    uvloop.run(drive(node, message, min(1.0, seconds)))  # connections, caches and the topic itself
    cpu, start = node.cpu_seconds(), time.perf_counter()
    answers = uvloop.run(drive(node, message, seconds))
    spent, took = node.cpu_seconds() - cpu, time.perf_counter() - start
    return {"cpu_us_a_record": spent / (answers * records) * 1e6, "records_s": answers * records / took, "requests": answers}


def bodies() -> dict[str, tuple[bytes, str, int]]:
    text = os.urandom(VALUE_BYTES // 2 - 20).hex()
    records = [{"key": f"device-{n}", "value": {"reading": n, "text": text}} for n in range(RECORDS)]
    return {
        "ndjson_100": (b"\n".join(json.dumps(record).encode() for record in records), "application/x-ndjson", RECORDS),
        "json_100": (json.dumps(records).encode(), "application/json", RECORDS),
        "one": (json.dumps(records[0]).encode(), "application/json", 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="sprawl-bench-"))
    try:
        node = Node(home)
        try:
            time.sleep(2)  # idle means after the start's own work
            results: dict[str, object] = {"idle_rss_mib": node.rss_mib(), "connections": CONNECTIONS, "value_bytes": VALUE_BYTES}
            for name, (body, content_type, records) in bodies().items():
                results[name] = measure(node, request(node.token, body, content_type), records, chosen.seconds)
            results["rss_after_mib"] = node.rss_mib()
        finally:
            node.stop()
    finally:
        shutil.rmtree(home)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
