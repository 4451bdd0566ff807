"""The two WebSocket sub-protocols beside each other: server CPU and bytes for each record, published and read.

    python bench/websocket_protocols.py [--seconds 2] [--rounds 3]

One plain node, one client. Records of 200 B with a key, 100 in a message, 8 messages outstanding ("publish"); and one reader from
the beginning of what was published ("read"). The sub-protocols take turns; of the rounds the median. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from websocket_fanout import MARK, Client, Node, connect

RECORDS = 100
OUTSTANDING = 8
READ_RECORDS = 50_000
VALUE = MARK + "x" * (200 - len(MARK))
JSON, MSGPACK = "sprawl.v1.json", "sprawl.v1.msgpack"


def encoded(subprotocol: str, operation: dict[str, Any]) -> bytes:
    if subprotocol == JSON:
        return framed(0x81, json.dumps(operation).encode())
    return framed(0x82, msgspec.msgpack.encode(operation))


def framed(head: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        length = struct.pack("!BB", head, 0x80 | size)
    elif size < 65536:
        length = struct.pack("!BBH", head, 0xFE, size)
    else:
        length = struct.pack("!BBQ", head, 0xFF, size)
    return length + bytes(4) + payload


def publication(subprotocol: str) -> bytes:
    keys = [f"k{number}" for number in range(RECORDS)]
    records: list[Any] = [{"key": key, "text": VALUE} for key in keys]
    if subprotocol == MSGPACK:
        records = [[key.encode(), VALUE.encode()] for key in keys]
    return encoded(subprotocol, {"op": "publish", "topic": "bench", "records": records})


class Publisher:
    def __init__(self, client: Client, message: bytes) -> None:
        self._client, self._message = client, message
        self._answered = asyncio.Event()
        self.answers = 0

    def heard(self, answers: int) -> None:
        self.answers += answers
        self._answered.set()

    async def run(self, seconds: float) -> int:
        until, sent = time.perf_counter() + seconds, 0
        self.answers = 0
        while time.perf_counter() < until or self.answers < sent:
            while time.perf_counter() < until and sent - self.answers < OUTSTANDING:
                self._client.transport.write(self._message)
                sent += 1
            self._answered.clear()
            await self._answered.wait()
        return sent


async def publish(node: Node, subprotocol: str, seconds: float) -> dict[str, float]:
    found: list[Publisher] = []
    client = await connect(
        node, b"\xa3ack" if subprotocol == MSGPACK else b'"ack"', lambda count: found[0].heard(count), subprotocol
    )
    message = publication(subprotocol)
    found.append(Publisher(client, message))
    await found[0].run(0.3)
    cpu = node.cpu_seconds()
    sent = await found[0].run(seconds)
    spent = node.cpu_seconds() - cpu
    client.transport.abort()
    return {"cpu_us_a_record": spent / (sent * RECORDS) * 1e6, "bytes_a_record": len(message) / RECORDS}


class Reader(Client):
    """Counts bytes as well."""

    read_bytes = 0

    def data_received(self, data: bytes) -> None:
        self.read_bytes += len(data)
        super().data_received(data)


async def read(node: Node, subprotocol: str) -> dict[str, float]:
    done = asyncio.Event()
    read = 0

    def heard(count: int) -> None:
        nonlocal read
        read += count
        if read >= READ_RECORDS:
            done.set()

    client = await connect(node, MARK.encode(), heard, subprotocol, kind=Reader)
    operation = {"op": "subscribe", "sub": "s", "address": "bench", "from": "earliest", "credit": READ_RECORDS}
    cpu, before = node.cpu_seconds(), client.read_bytes  # type: ignore[attr-defined]
    client.transport.write(encoded(subprotocol, operation))
    await done.wait()
    spent = node.cpu_seconds() - cpu
    size = client.read_bytes - before  # type: ignore[attr-defined]
    client.transport.abort()
    return {"cpu_us_a_record": spent / read * 1e6, "bytes_a_record": size / read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="sprawl-bench-"))
    node = Node(home, plain=True)
    found: dict[str, list[dict[str, float]]] = {}
    try:
        while (published := len(found.get("json_publish", ()))) < chosen.rounds or not published:
            for name, subprotocol in (("json", JSON), ("msgpack", MSGPACK)):
                found.setdefault(f"{name}_publish", []).append(uvloop.run(publish(node, subprotocol, chosen.seconds)))
        for _ in range(chosen.rounds):
            for name, subprotocol in (("json", JSON), ("msgpack", MSGPACK)):
                found.setdefault(f"{name}_read", []).append(uvloop.run(read(node, subprotocol)))
    finally:
        node.stop()
        shutil.rmtree(home)
    results: dict[str, Any] = {
        what: {figure: statistics.median([one[figure] for one in rounds]) for figure in rounds[0]}
        for what, rounds in found.items()
    }
    for what in ("publish", "read"):
        for figure in ("cpu_us_a_record", "bytes_a_record"):
            results[f"msgpack_{what}"][f"{figure}_of_json"] = results[f"msgpack_{what}"][figure] / results[f"json_{what}"][figure]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
