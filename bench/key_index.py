"""Reading by exact key while others append: what the key index costs writers, and what it saves readers.

    python bench/key_index.py [--mib 256] [--keys 100000] [--readers 32] [--seconds 5]

Writers append batches of 20 records whose keys are drawn from `keys`, as fast as the log takes them, once with the keys named
(indexed) and once without (every batch then is a candidate for every key), alternating. Then readers follow one key each beside
a writer, from the beginning (`tail` with a key), and ask for its newest record (`find_latest`). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import uvloop

from broker.batch import build, keys
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.freed_memory import keep_freed_memory
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.machine import MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

RECORDS = 20
IN_FLIGHT = 64
PARTITIONS = 4
VALUE = os.urandom(200)


def engine(folder: Path) -> EmbeddedEngine:
    for part in ("keys", "data"):
        (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    kms = LocalFileKms.create(folder / "keys" / "kek.json")
    keystore = KeyStore(KeyStoreBlob(MachineDisk(folder / "keys")), kms, os.urandom)
    return EmbeddedEngine(MachineSeams(folder / "data"), keystore, LogOptions(ring_bytes_max=1 << 20))


def batches(count: int, key_count: int) -> list[tuple[bytes, list[bytes | None]]]:
    chosen = random.Random(1)
    made = []
    for n in range(count):
        held: list[bytes | None] = [b"device/%d" % chosen.randrange(key_count) for _ in range(RECORDS)]
        made.append((build([(1_700_000_000_000 + n, key, VALUE, ()) for key in held]), held))
    return made


async def fill(node: EmbeddedEngine, made: list[tuple[bytes, list[bytes | None]]], *, indexed: bool) -> float:
    """CPU microseconds a record."""
    left = iter(range(len(made)))
    cpu = time.process_time()

    async def producer() -> None:
        for n in left:
            batch, held = made[n]
            await node.append([Append("bench", n % PARTITIONS, batch, held if indexed else None)])

    await asyncio.gather(*[producer() for _ in range(IN_FLIGHT)])
    return 1e6 * (time.process_time() - cpu) / (RECORDS * len(made))


async def catch_up(node: EmbeddedEngine, key: bytes) -> tuple[float, int, int]:
    """Milliseconds to read a key's history to the live end; batches given, and those that really hold the key."""
    began, sequence, given, right = time.perf_counter(), 0, 0, 0
    while sequence < node.next_sequence():
        page = await node.tail("bench", sequence, bytes_max=1 << 20, key=key)
        sequence = page.next_sequence
        given += len(page.batches)
        right += sum(key in keys(stored.batch) for stored in page.batches)
    return 1e3 * (time.perf_counter() - began), given, right


async def newest(node: EmbeddedEngine, key: bytes) -> float:
    began = time.perf_counter()
    for partition in range(PARTITIONS):
        await node.find_latest("bench", partition, key)
    return 1e3 * (time.perf_counter() - began)


async def readers(node: EmbeddedEngine, key_count: int, count: int, stop: asyncio.Event) -> dict[str, list[float]]:
    """Readers that begin anew with another key each time, until they are told to stop."""
    found: dict[str, list[float]] = {"catch_up_ms": [], "latest_ms": [], "given": [], "right": []}
    chosen = random.Random(2)

    async def reader() -> None:
        while not stop.is_set():
            key = b"device/%d" % chosen.randrange(key_count)
            took, given, right = await catch_up(node, key)
            found["catch_up_ms"].append(took)
            found["given"].append(given)
            found["right"].append(right)
            found["latest_ms"].append(await newest(node, key))

    await asyncio.gather(*[reader() for _ in range(count)])
    return found


async def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    count = arguments.mib * 2**20 // (RECORDS * 230)
    made = batches(count, arguments.keys)
    costs: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * arguments.rounds):
        indexed = turn % 2 == 0
        node = engine(folder / f"writes-{turn}")
        await node.start()
        await node.create_topic("bench", PARTITIONS, {})
        costs[indexed].append(await fill(node, made, indexed=indexed))
        await node.close()
        shutil.rmtree(folder / f"writes-{turn}")
    node = engine(folder / "reads")
    await node.start()
    await node.create_topic("bench", PARTITIONS, {})
    await fill(node, made, indexed=True)
    stop = asyncio.Event()
    reading = asyncio.create_task(readers(node, arguments.keys, arguments.readers, stop))
    until, appended = time.perf_counter() + arguments.seconds, 0
    began = time.perf_counter()
    while time.perf_counter() < until:
        await fill(node, made[:500], indexed=True)
        appended += 500
    writing_s = time.perf_counter() - began
    stop.set()
    found = await reading
    history = node.stats().next_sequence
    await node.close()
    return {
        "records": count * RECORDS,
        "append_us_a_record": {"indexed": round(median(costs[True]), 2), "not": round(median(costs[False]), 2)},
        "index_us_a_record": round(median(costs[True]) - median(costs[False]), 2),
        "under_load": {
            "appended_records_s": round(appended * RECORDS / writing_s),
            "readers": arguments.readers,
            "histories_read_s": round(len(found["catch_up_ms"]) / writing_s, 1),
            "catch_up_ms": percentiles(found["catch_up_ms"]),
            "latest_ms": percentiles(found["latest_ms"]),
            "batches_of_the_log": history,
            "batches_given_a_history": round(median(found["given"])),
            "of_them_wrong": sum(found["given"]) - sum(found["right"]),
        },
    }


def percentiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"p50": values[0] if values else 0.0}
    cuts = quantiles(values, n=100)
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2), "p99": round(cuts[98], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(prefix="sprawl-keys-"))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(measure(folder, arguments))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
