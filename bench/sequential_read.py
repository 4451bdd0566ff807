"""What sealing costs a sequential reader: the same files read by `fetch`, opened and with the cipher left out, alternating.

    python bench/sequential_read.py [--mib 512] [--batch-kib 64] [--fetch-kib 1024] [--rounds 5]
                                     [--parts 2] [--ahead-mib 32]

The log lies in sealed and merged files and in the page cache, not in the ring. `raw` is the same files by `read` of the fetch's
size. Throughput is wall clock (the price that a reader sees: opening runs beside reading on the read lane), CPU is of all
threads. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import uvloop

from broker.batch import build
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.freed_memory import keep_freed_memory
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.log.sealing import LogKeys
from broker.machine import MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

IN_FLIGHT = 64
RECORDS = 64


def engine(folder: Path, parts: int = 2, ahead: int = 32 << 20) -> EmbeddedEngine:
    keys = folder / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    kek = keys / "kek.json"
    kms = LocalFileKms.load(kek) if kek.exists() else LocalFileKms.create(kek)
    keystore = KeyStore(KeyStoreBlob(MachineDisk(keys)), kms, os.urandom)
    options = LogOptions(ring_bytes_max=1 << 16, read_parts_max=parts, read_ahead_bytes_max=ahead)
    return EmbeddedEngine(MachineSeams(folder / "data"), keystore, options)


async def write(folder: Path, mib: int, batch_bytes: int) -> None:
    node = engine(folder)
    await node.start()
    await node.create_topic("bench", 1, {})
    records = min(RECORDS, max(1, batch_bytes // 64))
    value = os.urandom(max(1, batch_bytes // records - 20))
    batch = build([(1_700_000_000_000, b"key-%d" % n, value, ()) for n in range(records)])
    left = iter(range(mib * 2**20 // len(batch)))

    async def producer() -> None:
        for _ in left:
            await node.append([Append("bench", 0, batch, [b"key-%d" % n for n in range(records)])])

    await asyncio.gather(*[producer() for _ in range(IN_FLIGHT)])
    await node.close()


async def read(node: EmbeddedEngine, fetch_bytes: int) -> tuple[int, float, float]:
    """Bytes, seconds, CPU seconds of one pass."""
    cpu, began = time.process_time(), time.perf_counter()
    size = offset = 0
    while (page := await node.fetch("bench", 0, offset, bytes_max=fetch_bytes)).batches:
        size += sum(len(stored.batch) for stored in page.batches)
        offset = page.next_offset
    return size, time.perf_counter() - began, time.process_time() - cpu


def raw(folder: Path, fetch_bytes: int) -> tuple[int, float, float]:
    cpu, began = time.process_time(), time.perf_counter()
    size = 0
    for path in [*(folder / "data" / "journal").iterdir(), *(folder / "data" / "segments").iterdir()]:
        descriptor = os.open(path, os.O_RDONLY)
        while data := os.read(descriptor, fetch_bytes):
            size += len(data)
        os.close(descriptor)
    return size, time.perf_counter() - began, time.process_time() - cpu


def unsealed(_cipher: object, _nonce: bytes, sealed: memoryview, _associated: bytes) -> bytes:
    """In place of opening: the ciphertext, copied as a reader of plain files would copy it."""
    return bytes(sealed[:-16])


async def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    node = engine(folder, arguments.parts, int(arguments.ahead_mib * 2**20))
    await node.start()
    opens = LogKeys.unseal
    passes: dict[str, list[tuple[int, float, float]]] = {"raw": [], "plain": [], "sealed": []}
    fetch_bytes = int(arguments.fetch_kib * 1024)
    await read(node, fetch_bytes)
    for _ in range(arguments.rounds):
        passes["raw"].append(raw(folder, fetch_bytes))
        LogKeys.unseal = staticmethod(unsealed)  # type: ignore[method-assign, assignment]
        passes["plain"].append(await read(node, fetch_bytes))
        LogKeys.unseal = staticmethod(opens)  # type: ignore[method-assign]
        passes["sealed"].append(await read(node, fetch_bytes))
    await node.close()
    return {
        name: {
            "mib_s": median(size / 2**20 / seconds for size, seconds, _ in found),
            "cpu_us_a_mib": median(1e6 * cpu / (size / 2**20) for size, _, cpu in found),
        }
        for name, found in passes.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--batch-kib", type=float, default=64)
    parser.add_argument("--fetch-kib", type=float, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", type=int, default=LogOptions().read_parts_max)
    parser.add_argument("--ahead-mib", type=float, default=LogOptions().read_ahead_bytes_max / 2**20)
    arguments = parser.parse_args()
    keep_freed_memory()
    folder = Path(tempfile.mkdtemp(prefix="sprawl-read-"))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(write(folder, arguments.mib, int(arguments.batch_kib * 1024)))
            found = runner.run(measure(folder, arguments))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    price = 1 - found["sealed"]["mib_s"] / found["plain"]["mib_s"]
    cpu_price = 1 - found["plain"]["cpu_us_a_mib"] / found["sealed"]["cpu_us_a_mib"]
    rounded = {name: {unit: round(value) for unit, value in units.items()} for name, units in found.items()}
    print(json.dumps({**vars(arguments), "price": round(price, 3), "cpu_price": round(cpu_price, 3), **rounded}))


if __name__ == "__main__":
    main()
