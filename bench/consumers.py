"""What acknowledging costs beside merely reading, and what a consumer keeps.

    python bench/consumers.py [--records N] [--json]

1. Microseconds of CPU per record: a subscription alone, and a durable consumer that acknowledges page by page (one durable append
   a page), for pages of 1, 10 and 100 records. From memory, in one process, alternating; the fastest of three rounds.
2. A consumer with 1,000 open records that acknowledges them one by one: bytes of state written for each acknowledgement, and
   the memory of an open record.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from broker.broker import Broker, BrokerOptions, Outgoing
from broker.delivery.consumer_options import ConsumerOptions
from broker.delivery.consumers import Consumers
from broker.delivery.filter import Filter
from broker.engine.embedded import EmbeddedEngine
from broker.log.keystore_blob import KeyStoreBlob
from broker.machine import MachineClock, MachineDisk, MachineRandom, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

ROUNDS = 3
PAGES = (1, 10, 100)
READING = {"bytes_max": 4 << 20, "wait_max_ms": 0}
ORDERS = Filter.parse("orders")


async def fill(broker: Broker, records: int) -> None:
    for begin in range(0, records, 100):
        made = [Outgoing(b"k%d" % (number % 50), b"x" * 200) for number in range(begin, begin + 100)]
        await broker.publish("orders", made, durable=False, auto_create=True)
    await broker.publish("orders", [Outgoing(None, b"end")], durable=True, auto_create=True)


async def cost_of_reading(broker: Broker, records: int) -> float:
    reader = await broker.subscribe("orders", None, "earliest")
    begin, found = time.process_time_ns(), 0
    while found < records:
        found += len(await reader.next(**READING, records_max=100))
    return (time.process_time_ns() - begin) / 1_000 / found


async def cost_of_consuming(consumers: Consumers, page: int, records: int, name: str) -> float:
    consumer = await consumers.attach("bench", name, ORDERS, position="earliest")
    begin, found = time.process_time_ns(), 0
    while found < records:
        got = await consumer.next(**READING, records_max=page)
        await consumer.ack([one.tag for one in got])
        found += len(got)
    spent = (time.process_time_ns() - begin) / 1_000 / found
    await consumers.delete("bench", name)
    return spent


async def cost_of_open_records(consumers: Consumers, engine: EmbeddedEngine) -> dict[str, float]:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    consumer = await consumers.attach("bench", "open", ORDERS, ConsumerOptions(in_flight_max=1_000), "earliest")
    tags: list[str] = []
    while len(tags) < 1_000:
        tags += [one.tag for one in await consumer.next(**READING, records_max=1_000)]
    held = tracemalloc.get_traced_memory()[0] - before - sum(map(sys.getsizeof, tags))
    tracemalloc.stop()
    journaled, acks = engine.stats().bytes_journaled, 200
    for number in range(acks):
        await consumer.ack([tags[number * 5]])  # scattered: the open ones fall into as many runs as they can
    written = engine.stats().bytes_journaled - journaled
    return {"state_bytes_per_ack": written / acks, "bytes_per_open_record": held / 1_000}


async def run(folder: Path, records: int) -> dict[str, Any]:
    (folder / "keys").mkdir(mode=0o700)
    keys = KeyStore(KeyStoreBlob(MachineDisk(folder / "keys")), LocalFileKms.create(folder / "keys" / "kek.json"), os.urandom)
    engine = EmbeddedEngine(MachineSeams(folder / "data"), keys)
    await engine.start()
    consumers = Consumers(engine, MachineClock(), MachineRandom())
    broker = Broker(engine, MachineClock(), BrokerOptions(partitions_default=1), consumers)
    await fill(broker, records)
    best: dict[str, float] = {}
    for number in range(ROUNDS):
        found = {"reading": await cost_of_reading(broker, records)}
        for page in PAGES:
            found[f"page of {page}"] = await cost_of_consuming(consumers, page, min(records, page * 200), f"c{number}-{page}")
        best = {name: min(cost, best.get(name, cost)) for name, cost in found.items()}
    result = {"us_per_record": best, **await cost_of_open_records(consumers, engine)}
    await consumers.close()
    await engine.close()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-consumers-") as folder:
        result = asyncio.run(run(Path(folder), asked.records))
    if asked.json:
        print(json.dumps(result))
        return 0
    for name, microseconds in result["us_per_record"].items():
        print(f"{microseconds:8.2f} us CPU a record  {name}")
    print(f"{result['state_bytes_per_ack']:8.0f} bytes of log for one acknowledgement among 1,000 open records")
    print(f"{result['bytes_per_open_record']:8.0f} bytes of memory for an open record")
    return 0


if __name__ == "__main__":
    sys.exit(main())
