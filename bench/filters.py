"""What filters cost a reader, and what shared scans save.

    python bench/filters.py [--records N] [--sessions N]

1. Microseconds of CPU per record that a subscription steps over or delivers, from memory, without a filter and with filters that
   match everything, something and nothing. A filter that matches everything must cost no more than none (budget: 1.05 x).
2. N sessions that catch up over a log read from files (nothing kept in memory): CPU and bytes read from the log per session,
   each for itself and together. The log must be read once for all (budget: 1.2 x the reads of one session).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from broker.broker import Broker, BrokerOptions, Outgoing
from broker.delivery.filter import Filter
from broker.delivery.position import Cursor, Start
from broker.delivery.shared_scan import SharedScanOptions, SharedScans
from broker.delivery.source import ScanSource, Source
from broker.delivery.subscription import Subscription
from broker.engine.embedded import EmbeddedEngine
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.machine import MachineClock, MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

ROUNDS = 5
OPEN_RATIO_MAX = 1.05
READS_RATIO_MAX = 1.2
TOPICS = ("orders", "payments")


def new_engine(folder: Path, ring_bytes_max: int) -> EmbeddedEngine:
    (folder / "keys").mkdir(parents=True, mode=0o700)
    keys = KeyStore(KeyStoreBlob(MachineDisk(folder / "keys")), LocalFileKms.create(folder / "keys" / "kek.json"), os.urandom)
    return EmbeddedEngine(MachineSeams(folder / "data"), keys, LogOptions(ring_bytes_max=ring_bytes_max))


async def fill(broker: Broker, records: int) -> None:
    for begin in range(0, records, 200):
        made = [
            Outgoing(
                b"%s/%d" % (b"us" if n % 4 else b"eu", n % 500), b"x" * 180, ((b"type", b"paid" if n % 10 == 0 else b"open"),)
            )
            for n in range(begin, min(begin + 200, records))
        ]
        await broker.publish(TOPICS[begin // 200 % 2], made, durable=False, auto_create=True)
    await broker.publish(TOPICS[0], [Outgoing(None, b"end")], durable=True, auto_create=True)


async def read_all(reader: Subscription) -> int:
    found = 0
    while page := await reader.next(bytes_max=4 << 20, records_max=100_000, wait_max_ms=0):
        found += len(page)
    return found


async def cost_of_filters(folder: Path, records: int) -> dict[str, Any]:
    engine = new_engine(folder, ring_bytes_max=1 << 30)
    await engine.start()
    broker = Broker(engine, MachineClock(), BrokerOptions(partitions_default=1))
    await fill(broker, records)
    filters = {
        "no filter": None,
        "#": Filter.parse("#"),
        "+/+/+ (all that have such a key)": Filter.parse("+/+/+"),
        "+/eu/+ (a quarter)": Filter.parse("+/eu/+"),
        "header type=paid (a tenth)": Filter.parse(headers={"type": "paid"}),
        "+/none/# (nothing)": Filter.parse("+/none/#"),
    }
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, filter in filters.items():
            wanted, wanted_key = (None, None) if filter is None or filter.open else (filter.wants, filter.wants_key)
            source: Source = ScanSource(engine, lambda topic: True)
            if name == "#":
                source = SharedScans(engine, MachineClock()).source(lambda topic: True, lambda: 0)
            reader = Subscription(engine, MachineClock(), source, Start(Cursor(0)), wanted, wanted_key)
            begin = time.process_time_ns()
            await read_all(reader)
            taken = (time.process_time_ns() - begin) / 1_000 / records
            best[name] = min(taken, best.get(name, taken))
    await engine.close()
    return {"us_per_record": {name: round(value, 3) for name, value in best.items()}, "open_ratio": best["#"] / best["no filter"]}


async def cost_of_sessions(folder: Path, records: int, sessions: int) -> dict[str, Any]:
    engine = new_engine(folder, ring_bytes_max=1)
    await engine.start()
    broker = Broker(engine, MachineClock(), BrokerOptions(partitions_default=1))
    await fill(broker, records)
    result: dict[str, Any] = {"sessions": sessions, "records": records}
    filter = Filter.parse("+/none/#")
    for name, count in (("one", 1), ("each for itself", sessions), ("together", sessions)):
        scans = SharedScans(engine, MachineClock(), SharedScanOptions(bytes_per_s=1 << 40))
        sources: list[Source] = [
            ScanSource(engine, lambda topic: True) if name == "each for itself" else scans.source(lambda topic: True, lambda: 0)
            for _ in range(count)
        ]
        readers = [
            Subscription(engine, MachineClock(), source, Start(Cursor(0)), filter.wants, filter.wants_key) for source in sources
        ]
        reads, begin, wall = engine.stats().file_reads, time.process_time_ns(), time.monotonic()
        await asyncio.gather(*map(read_all, readers))
        result[name] = {
            "cpu_ms_per_session": round((time.process_time_ns() - begin) / 1e6 / count, 2),
            "seconds": round(time.monotonic() - wall, 2),
            "file_reads": engine.stats().file_reads - reads,
        }
    await engine.close()
    result["reads_ratio"] = result["together"]["file_reads"] / result["one"]["file_reads"]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-filters-") as folder:
        filters = asyncio.run(cost_of_filters(Path(folder) / "filters", asked.records))
        shared = asyncio.run(cost_of_sessions(Path(folder) / "shared", asked.records // 4, asked.sessions))
    met = filters["open_ratio"] <= OPEN_RATIO_MAX and shared["reads_ratio"] <= READS_RATIO_MAX
    if asked.json:
        print(json.dumps({"filters": filters, "shared_scan": shared, "met": met}))
        return 0 if met else 1
    for name, microseconds in filters["us_per_record"].items():
        print(f"{microseconds:7.3f} us CPU a record  {name}")
    print(f"a filter that matches everything: {filters['open_ratio']:.2f} x no filter (budget {OPEN_RATIO_MAX})")
    for name in ("one", "each for itself", "together"):
        print(f"{name:16} {shared[name]}")
    print(f"{asked.sessions} sessions read the log {shared['reads_ratio']:.2f} times (budget {READS_RATIO_MAX})")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
