"""What one append costs the processor, apart from HTTP: concurrent appends of small batches, sealed and durable.

    python bench/append_path.py                         one record of 200 B to one partition, 16 callers
    python bench/append_path.py --partitions 4 --records 25

Prints CPU of the process and of the event loop's thread per append, best of the rounds: on a shared machine the best is the least
disturbed. Settings: durability fsync, AES-256-GCM, the collector calmed as `sprawl serve` does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

import uvloop

from broker.batch import build
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.freed_memory import keep_freed_memory
from broker.log.keystore_blob import KeyStoreBlob
from broker.machine import MachineDisk, MachineSeams, calm_collector
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

VALUE_BYTES = 200
MESSAGE_ID = (b"sprawl-message-id", b"0190d3a2-7c3e-7000-8000-000000000000")


def calls(partitions: int, records: int) -> list[Append]:
    keys = [b"key-%d" % number for number in range(records)]
    batch = build([(1_700_000_000_000, key, b"x" * VALUE_BYTES, (MESSAGE_ID,)) for key in keys])
    return [Append("bench", partition, batch, keys=keys) for partition in range(partitions)]


async def measure(arguments: argparse.Namespace, folder: Path) -> tuple[float, float]:
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    keystore = KeyStore(KeyStoreBlob(MachineDisk(keys)), LocalFileKms.create(keys / "kek.json"), os.urandom)
    engine = EmbeddedEngine(MachineSeams(folder / "data"), keystore)
    await engine.start()
    await engine.create_topic("bench", arguments.partitions, {})
    publication = calls(arguments.partitions, arguments.records)

    async def caller(appends: int) -> None:
        for _ in range(appends):
            await engine.append(publication)

    each = arguments.appends // arguments.callers
    await asyncio.gather(*(caller(50) for _ in range(arguments.callers)))
    calm_collector()
    best = (float("inf"), float("inf"))
    for _ in range(arguments.rounds):
        process_s, thread_s = time.process_time(), time.thread_time()
        await asyncio.gather(*(caller(each) for _ in range(arguments.callers)))
        count = each * arguments.callers
        taken = ((time.process_time() - process_s) / count * 1e6, (time.thread_time() - thread_s) / count * 1e6)
        best = min(best, taken)
    await engine.close()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--records", type=int, default=1)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--appends", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        process_us, thread_us = uvloop.run(measure(arguments, Path(folder)))
    print(
        f"{arguments.partitions} batches of {arguments.records} records an append, {arguments.callers} callers:"
        f" {process_us:.1f} us CPU an append, {thread_us:.1f} of them on the event loop"
    )


if __name__ == "__main__":
    main()
