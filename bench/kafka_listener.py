"""Kafka clients at a Sprawl node beside a warm Apache Kafka 4.3.1, in one run, taking turns.

    python bench/kafka_listener.py [--mib 256] [--rounds 3] [--warm-mib 2048] [--only produce,requests,tail,many] [--json FILE]

Both promise the same: what is acknowledged was handed to the operating system (Sprawl: `durability = "os"`, Kafka: its default).
Sprawl seals every batch (AES-256-GCM) and its client has authenticated (SASL PLAIN); Kafka stores in clear and asks nobody.
Topics are made beforehand. A third server is Sprawl with `durability = "fsync"`, beside, not compared.

The client is the same for all, one connection, and does as little as can be: it sends Produce requests that were built before
(one batch of 128 KiB before compression, acks all, five in flight, as librdkafka does), and asks for 1 MiB of a partition at a
time. So what is measured is the server. CPU time is the process's, read from the system: what goes on behind the appends (Sprawl
syncs, seals and merges its files) counts for the produce, as the next case begins when the server is idle. Memory is looked at
when it is idle too. What the kernel does on its own for a process counts for nobody; Apache Kafka leaves it all writing to disk,
Sprawl syncs a full file itself.

Prints medians and (from - to) of the rounds, MET or MISSED, then the medians as one JSON object. Six minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka.admin import AdminClient, NewTopic

from broker.batch import Compression, build
from gateway.cli.profile import load_profile
from gateway.wire.kafka.primitives import compact_string, uvarint
from tests.companions.kafka.apache import ApacheKafka

BATCH_BYTES = 128 * 1024
IN_FLIGHT = 5
FETCH_BYTES = 1024 * 1024
MANY_PARTITIONS = 1_000
MANY_CONNECTIONS = 200
HEAP_MIB = 1_024
LEADING_S_MAX = 60.0  # for so long a topic's partitions may have no leader yet
IDLE_LOOK_S, IDLE_CPU_S, IDLE_WAIT_S_MAX = 0.5, 0.04, 15.0  # idle: at most so much CPU within a look
# The node as it is installed: kio imports Hypothesis where it finds it, which takes 8 MiB that only a checkout has.
NODE = "import sys; sys.modules['hypothesis'] = None; from gateway.cli.main import main; main()"
WORDS = [f"{word}-{number}" for number in range(64) for word in ("order", "customer", "amount", "region", "status", "item")]

CASES = [(size, codec) for size in (1_024, 100) for codec in (Compression.NONE, Compression.LZ4)]


# Servers


class Server:
    """A process; `bootstrap` and what a client says first."""

    name = ""
    bootstrap = ""
    token = ""
    process: psutil.Process

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.bootstrap.rpartition(":")
        return host, int(port)

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def rss_mib(self) -> float:
        return self.process.memory_info().rss / 2**20

    def settle(self) -> float:
        """Wait until nothing goes on any more that was asked for before; the CPU time at which that was over."""
        until, cpu_s = time.perf_counter() + IDLE_WAIT_S_MAX, self.cpu_s()
        while time.perf_counter() < until:
            time.sleep(IDLE_LOOK_S)
            before, cpu_s = cpu_s, self.cpu_s()
            if cpu_s - before <= IDLE_CPU_S:
                return before
        return cpu_s

    def admin(self) -> AdminClient:
        config: dict[str, Any] = {"bootstrap.servers": self.bootstrap, "log_level": 4}
        if self.token:
            config |= {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
            config |= {"sasl.username": "token", "sasl.password": self.token}
        return AdminClient(config)

    def create(self, topic: str, partitions: int) -> None:
        admin = self.admin()
        for made in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
            made.result(60)


class Sprawl(Server):
    def __init__(self, home: Path, durability: str, profile: str | None) -> None:
        self.name = "sprawl" if durability == "os" else "sprawl fsync"
        settings = {
            "listeners.http.port": 0,
            "listeners.kafka.port": 0,
            "listeners.kafka.plain": "true",
            "log.durability": durability,
        }
        self._profile = profile
        program = ["-m", "cProfile", "-o", profile, "-m", "gateway.cli.main"] if profile else ["-c", NODE]
        command = [sys.executable, *program, "serve", "--home", str(home), "--json"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._child.stdout is not None
        facts = json.loads(self._child.stdout.readline())
        self.bootstrap = facts["kafka"]
        self.process = psutil.Process(self._child.pid)
        profile_of = load_profile(home)
        assert profile_of is not None
        assert profile_of.token is not None
        self.token = profile_of.token

    def __enter__(self) -> Sprawl:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        self._child.wait(60)


class Kafka(Server):
    name = "kafka"

    def __init__(self, home: Path) -> None:
        self._kafka = ApacheKafka(home, {"num.partitions": "1"}, heap_mib=HEAP_MIB)

    def __enter__(self) -> Kafka:
        self._kafka.start()
        self.bootstrap, self.process = self._kafka.bootstrap, self._kafka.process
        return self

    def __exit__(self, *_: object) -> None:
        self._kafka.kill()


# The client


class Connection:
    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(server.address, timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(64 * 1024)
        if server.token:
            self._authenticate(server.token)

    def _authenticate(self, token: str) -> None:
        self.socket.sendall(frame(17, 1, b"\0\5PLAIN"))
        assert bytes(self.receive()[4:6]) == b"\0\0"
        told = b"\0token\0" + token.encode()
        self.socket.sendall(frame(36, 1, struct.pack(">i", len(told)) + told))
        assert bytes(self.receive()[4:6]) == b"\0\0"

    def receive(self) -> memoryview:
        """An answer, without its length; gone with the next one."""
        self._fill(0, 4)
        size = int.from_bytes(self._buffer[:4], "big")
        if size > len(self._buffer):
            self._buffer = bytearray(size + 64 * 1024)
        self._fill(0, size)
        return memoryview(self._buffer)[:size]

    def _fill(self, start: int, end: int) -> None:
        view = memoryview(self._buffer)
        while start < end:
            read = self.socket.recv_into(view[start:end])
            if read == 0:
                raise ConnectionError("the server closed the connection")
            start += read


def frame(api: int, version: int, body: bytes, *, flexible: bool = False) -> bytes:
    head = struct.pack(">hhih", api, version, 1, 5) + b"bench" + (b"\0" if flexible else b"")
    return struct.pack(">i", len(head) + len(body)) + head + body


def records(size: int, count: int) -> list[Any]:
    """Text that compresses some three times, as events do."""
    chosen = random.Random(size)
    now_ms = int(time.time() * 1_000)

    def value() -> bytes:
        text = ""
        while len(text) < size:
            text += f"{chosen.choice(WORDS)}={chosen.getrandbits(24):x};"
        return text[:size].encode()

    return [(now_ms, None, value(), ()) for _ in range(count)]


def produce_request(topic: str, partition: int, batch: bytes) -> bytes:
    body = b"\0" + struct.pack(">hi", -1, 30_000) + b"\2" + compact_string(topic) + b"\2" + struct.pack(">i", partition)
    return frame(0, 9, body + uvarint(len(batch) + 1) + batch + b"\0\0\0", flexible=True)


def check_produced(answer: memoryview, topic: str) -> None:
    """Correlation id, tags, topics, name, partitions, partition; then the error."""
    at = 4 + 1 + 1 + len(compact_string(topic)) + 1 + 4
    assert bytes(answer[at : at + 2]) == b"\0\0", f"Produce was refused with error {int.from_bytes(answer[at : at + 2], 'big')}"


def produce(connection: Connection, topic: str, partition: int, batch: bytes, count: int, in_flight: int = IN_FLIGHT) -> None:
    request = produce_request(topic, partition, batch)
    pipelined(connection, topic, (request for _ in range(count)), in_flight)


def pipelined(connection: Connection, topic: str, requests: Iterable[bytes], in_flight: int = IN_FLIGHT) -> None:
    waiting = 0
    for request in requests:
        if waiting == in_flight:
            check_produced(connection.receive(), topic)
            waiting -= 1
        connection.socket.sendall(request)
        waiting += 1
    for _ in range(waiting):
        check_produced(connection.receive(), topic)


def fetch_request(topic: str, places: list[tuple[int, int]]) -> bytes:
    rows = b"".join(struct.pack(">iiqiqi", partition, -1, offset, -1, -1, FETCH_BYTES) + b"\0" for partition, offset in places)
    head = struct.pack(">iiiibii", -1, 500, 1, 50 * 1024 * 1024, 0, 0, -1)
    body = head + b"\2" + compact_string(topic) + uvarint(len(places) + 1) + rows + b"\0" + b"\1" + b"\1" + b"\0"
    return frame(1, 12, body, flexible=True)


def read_uvarint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def fetched(answer: memoryview) -> Iterator[tuple[int, int, int]]:
    """Partition, bytes of whole batches, and the offset after them."""
    at = 4 + 1 + 4 + 2 + 4
    topics, at = read_uvarint(answer, at)
    for _ in range(topics - 1):
        size, at = read_uvarint(answer, at)
        partitions, at = read_uvarint(answer, at + size - 1)
        for _ in range(partitions - 1):
            partition, error = struct.unpack_from(">ih", answer, at)
            assert error == 0, f"Fetch was refused with error {error}"
            aborted, at = read_uvarint(answer, at + 30)
            at += 17 * max(0, aborted - 1)
            size, at = read_uvarint(answer, at + 4)
            end, begin, following = at + size - 1, at, -1
            while begin + 61 <= end:
                base, length = struct.unpack_from(">qi", answer, begin)
                if begin + 12 + length > end:
                    break
                following = base + 1 + int.from_bytes(answer[begin + 23 : begin + 27], "big")
                begin += 12 + length
            yield partition, begin - at, following
            at = end + 1
        at += 1


def consume(connection: Connection, topic: str, end_offset: int) -> int:
    offset = total = 0
    while offset < end_offset:
        connection.socket.sendall(fetch_request(topic, [(0, offset)]))
        for _, size, following in fetched(connection.receive()):
            total += size
            offset = max(offset, following)
    return total


# What is measured


@contextmanager
def measured(server: Server, into: dict[str, Any], raw_bytes: int, requests: int = 0) -> Iterator[None]:
    """Time until the client has its answers, CPU until the server is idle again."""
    server.settle()
    cpu_s, began = server.cpu_s(), time.perf_counter()
    yield
    took_s = time.perf_counter() - began
    cpu_s = server.settle() - cpu_s
    into["mb_s"] = raw_bytes / took_s / 1e6
    into["cpu_s_gb"] = cpu_s / raw_bytes * 1e9
    if requests:
        into["requests_s"] = requests / took_s
        into["cpu_us_request"] = cpu_s / requests * 1e6


def named(size: int, codec: Compression) -> str:
    return f"{size}-{codec.name.lower()}"


Part = Callable[[Server, dict[str, dict[str, Any]]], None]


class Bench:
    def __init__(self, mib: int, only: set[str]) -> None:
        self._bytes, self._only = mib * 2**20, only
        self._batches = {case: build(records(case[0], BATCH_BYTES // case[0]), compression=case[1]) for case in CASES}
        self._one = build(records(100, 1))
        self._topics = 0

    def warm(self, server: Server, mib: int) -> None:
        """Topics of its own; what follows the JVM has done before."""
        began = time.perf_counter()
        share = max(1, mib * 2**20 // BATCH_BYTES // len(CASES))
        for size, codec in CASES:
            topic = self._create(server)
            connection = Connection(server)
            produce(connection, topic, 0, self._batches[size, codec], share)
            consume(connection, topic, 1 + share * (BATCH_BYTES // size))
        produce(Connection(server), self._create(server), 0, self._one, 20_000, 1)
        print(f"  {server.name}: {mib} MiB and 20,000 requests to warm up took {time.perf_counter() - began:.0f} s", flush=True)

    def rounds(self, servers: list[Server], count: int) -> dict[str, list[dict[str, dict[str, Any]]]]:
        """Servers take turns at each case, the first one last in every other round."""
        found: dict[str, list[dict[str, dict[str, Any]]]] = {server.name: [] for server in servers}
        for number in range(count):
            round: dict[str, dict[str, dict[str, Any]]] = {server.name: {} for server in servers}
            for part in self._parts():
                for server in servers if number % 2 == 0 else reversed(servers):
                    part(server, round[server.name])
            for server in servers:
                server.settle()
                round[server.name]["memory"] = {"rss_mib": server.rss_mib()}
                found[server.name].append(round[server.name])
            print(f"  round {number + 1} done, load {os.getloadavg()[0]:.1f}", flush=True)
        return found

    def _parts(self) -> list[Part]:
        parts: list[Part] = []
        if "produce" in self._only:
            parts += [partial(self._case, size=size, codec=codec) for size, codec in CASES]
        if "requests" in self._only:
            parts.append(self._requests)
        if "tail" in self._only:
            parts.append(self._tail)
        if "many" in self._only:
            parts += [self._many_partitions, self._many_connections]
        return parts

    def _create(self, server: Server, partitions: int = 1) -> str:
        self._topics += 1
        topic = f"bench-{self._topics}"
        server.create(topic, partitions)
        connection = Connection(server)
        for partition in range(partitions):
            self._first(connection, topic, partition)
        return topic

    def _case(self, server: Server, found: dict[str, dict[str, Any]], *, size: int, codec: Compression) -> None:
        topic, count = self._create(server), max(1, self._bytes // BATCH_BYTES)
        connection = Connection(server)
        batch, in_batch = self._batches[size, codec], BATCH_BYTES // size
        produce(connection, topic, 0, batch, 8)
        with measured(server, found.setdefault(f"produce {named(size, codec)}", {}), count * in_batch * size):
            produce(connection, topic, 0, batch, count)
        with measured(server, found.setdefault(f"consume {named(size, codec)}", {}), (count + 8) * in_batch * size):
            consume(connection, topic, 1 + (count + 8) * in_batch)

    def _requests(self, server: Server, found: dict[str, dict[str, Any]]) -> None:
        topic, count = self._create(server), 10_000
        connection = Connection(server)
        with measured(server, found.setdefault("one record a request", {}), count * 100, count):
            produce(connection, topic, 0, self._one, count, 1)

    def _tail(self, server: Server, found: dict[str, dict[str, Any]]) -> None:
        """A consumer at the live end, on a connection of its own, while another one produces."""
        batch, in_batch = self._batches[1_024, Compression.NONE], BATCH_BYTES // 1_024
        topic, count = self._create(server), max(1, self._bytes // BATCH_BYTES)
        reading = threading.Thread(target=consume, args=(Connection(server), topic, 1 + count * in_batch))
        with measured(server, found.setdefault("produce and consume at once", {}), count * in_batch * 1_024):
            reading.start()
            produce(Connection(server), topic, 0, batch, count)
            reading.join(60)
        if reading.is_alive():
            raise TimeoutError(f"{server.name}: the consumer did not get to the end within a minute")

    def _many_partitions(self, server: Server, found: dict[str, dict[str, Any]]) -> None:
        batch, in_batch = self._batches[1_024, Compression.NONE], BATCH_BYTES // 1_024
        topic, count = self._create(server, MANY_PARTITIONS), max(1, self._bytes // BATCH_BYTES)
        connection = Connection(server)
        with measured(server, found.setdefault("produce to 1,000 partitions", {}), count * in_batch * 1_024):
            pipelined(connection, topic, (produce_request(topic, number % MANY_PARTITIONS, batch) for number in range(count)))
        offsets = dict.fromkeys(range(MANY_PARTITIONS), 0)
        with measured(server, found.setdefault("consume from 1,000 partitions", {}), count * in_batch * 1_024):
            left = count * in_batch + MANY_PARTITIONS
            while left > 0:
                connection.socket.sendall(fetch_request(topic, list(offsets.items())))
                for partition, _, following in fetched(connection.receive()):
                    if following >= 0:
                        left -= following - offsets.pop(partition)
                        offsets[partition] = following

    def _many_connections(self, server: Server, found: dict[str, dict[str, Any]]) -> None:
        batch, in_batch = self._batches[1_024, Compression.NONE], BATCH_BYTES // 1_024
        topic, count = self._create(server, 8), max(1, self._bytes // BATCH_BYTES)
        connections = [Connection(server) for _ in range(MANY_CONNECTIONS)]
        requests = [produce_request(topic, number % 8, batch) for number in range(8)]
        with measured(server, found.setdefault("produce over 200 connections", {}), count * in_batch * 1_024):
            done = 0
            while done < count:
                turn = connections[: count - done]
                for number, one in enumerate(turn):
                    one.socket.sendall(requests[number % 8])
                for one in turn:
                    check_produced(one.receive(), topic)
                done += len(turn)

    def _first(self, connection: Connection, topic: str, partition: int) -> None:
        """Apache Kafka takes a while to lead so many partitions."""
        until = time.perf_counter() + LEADING_S_MAX
        while True:
            try:
                return produce(connection, topic, partition, self._one, 1, 1)
            except AssertionError:
                if time.perf_counter() > until:
                    raise
                time.sleep(0.05)


GOALS: list[tuple[str, str, Callable[[float, float], float], float, bool]] = [
    *[(f"produce {named(*case)}", "mb_s", lambda ours, theirs: ours / theirs, 1.2, True) for case in CASES],
    *[(f"produce {named(*case)}", "cpu_s_gb", lambda ours, theirs: ours / theirs, 0.7, False) for case in CASES],
    *[(f"consume {named(*case)}", "cpu_s_gb", lambda ours, theirs: ours / theirs, 1.2, False) for case in CASES],
    ("one record a request", "requests_s", lambda ours, theirs: ours / theirs, 1.5, True),
    ("memory", "rss_mib", lambda ours, theirs: ours / theirs, 0.25, False),
]


Rounds = list[dict[str, dict[str, Any]]]


def medians(rounds: Rounds) -> dict[str, dict[str, float]]:
    return {
        case: {what: statistics.median([one[case][what] for one in rounds]) for what in rounds[0][case]} for case in rounds[0]
    }


def table(rounds: dict[str, Rounds]) -> list[str]:
    names = list(rounds)
    lines = ["| case | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for case, whats in rounds[names[0]][0].items():
        for what in whats:
            cells = [cell([one[case][what] for one in rounds[name]]) for name in names]
            lines.append(f"| {case}: {what} | " + " | ".join(cells) + " |")
    return lines


def cell(values: list[float]) -> str:
    digits = 0 if min(values) >= 100 else 2
    middle, least, most = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least} - {most})"


def judged(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    ours, theirs = results["sprawl"], results["kafka"]
    lines = []
    for case, what, ratio, bound, at_least in GOALS:
        if case not in ours:
            continue
        value = ratio(ours[case][what], theirs[case][what])
        met = value >= bound if at_least else value <= bound
        sign = ">=" if at_least else "<="
        lines.append(f"{'MET   ' if met else 'MISSED'}  {case}: {what} {value:.2f}x of Apache Kafka's (goal {sign} {bound}x)")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="of records, in each case and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-mib", type=int, default=2_048)
    parser.add_argument("--only", default="produce,requests,tail,many")
    parser.add_argument("--servers", default="sprawl,kafka,fsync")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds there as well")
    parser.add_argument("--profile", help="write a cProfile of the node there (then its figures mean nothing)")
    chosen = parser.parse_args()
    bench = Bench(chosen.mib, set(chosen.only.split(",")))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sprawl-bench-")))
        make: dict[str, Callable[[], Any]] = {
            "sprawl": lambda: Sprawl(folder / "sprawl", "os", chosen.profile),
            "kafka": lambda: Kafka(folder / "kafka"),
            "fsync": lambda: Sprawl(folder / "fsync", "fsync", None),
        }
        servers: list[Server] = [stack.enter_context(make[name]()) for name in chosen.servers.split(",")]
        for server in servers:
            bench.warm(server, chosen.warm_mib)
        rounds = bench.rounds(servers, chosen.rounds)
    results = {name: medians(found) for name, found in rounds.items()}
    print(
        f"\n{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, medians of {chosen.rounds} rounds\n"
    )
    print("\n".join(table(rounds)), "\n")
    if {"sprawl", "kafka"} <= set(results):
        print("\n".join(judged(results)), "\n")
    if chosen.json:
        chosen.json.write_text(json.dumps({"medians": results, "rounds": rounds}, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
