"""Append throughput of the sealed log against raw write + fdatasync of the same bytes, alternating in one run.

    python bench/append.py [--mib 1536] [--rounds 3]

Sealing in place and merging happen within the measured time. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
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

BATCH_BYTES = 64 * 1024
IN_FLIGHT = 64
PARTITIONS = 8


def a_batch() -> bytes:
    value = os.urandom(BATCH_BYTES // 64 - 20)
    return build([(1_700_000_000_000, b"key-%d" % n, value, ()) for n in range(64)])


def raw(folder: Path, batch: bytes, batches: int, group: int) -> float:
    """Seconds to write the same bytes in the same group sizes, a fdatasync each, into files of 64 MiB."""
    start = time.perf_counter()
    descriptor, written, number = -1, 1 << 40, 0
    for first in range(0, batches, group):
        if written >= 64 * 1024 * 1024:
            if descriptor >= 0:
                os.close(descriptor)
            number += 1
            descriptor, written = os.open(folder / f"raw-{number}", os.O_CREAT | os.O_WRONLY, 0o600), 0
        count = min(group, batches - first)
        written += os.pwritev(descriptor, [batch] * count, written)
        os.fdatasync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - start


def engine(folder: Path, options: LogOptions) -> EmbeddedEngine:
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    keystore = KeyStore(KeyStoreBlob(MachineDisk(keys)), LocalFileKms.create(keys / "kek.json"), os.urandom)
    return EmbeddedEngine(MachineSeams(folder / "data"), keystore, options)


async def sealed(folder: Path, batch: bytes, batches: int) -> dict[str, float]:
    node = engine(folder, LogOptions())
    await node.start()
    await node.create_topic("bench", PARTITIONS, {})
    keys = [b"key-%d" % n for n in range(64)]
    left = iter(range(batches))
    cpu, start = time.process_time(), time.perf_counter()

    async def producer() -> None:
        for n in left:
            await node.append([Append("bench", n % PARTITIONS, batch, keys)])

    await asyncio.gather(*[producer() for _ in range(IN_FLIGHT)])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    stats = node.stats()
    read_start, read = time.perf_counter(), 0
    for partition in range(PARTITIONS):
        offset = 0
        while (fetched := await node.fetch("bench", partition, offset, bytes_max=1 << 20)).batches:
            read += sum(len(stored.batch) for stored in fetched.batches)
            offset = fetched.next_offset
    read_seconds = time.perf_counter() - read_start
    await node.close()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "groups": stats.groups,
        "sealed_in_place": stats.sealed_in_place,
        "merges": stats.merges,
        "merged_mib": stats.merged_bytes / 2**20,
        "read_mib_s": read / 2**20 / read_seconds,
    }


def without_sealing() -> None:
    """The same engine with the cipher left out: what sealing costs is the difference. For measuring only."""

    class Plain:
        @staticmethod
        def seal(_nonce: bytes, data: bytes, _associated: bytes) -> bytes:
            return bytes(data) + bytes(16)

        @staticmethod
        def open(_nonce: bytes, data: bytes, _associated: bytes) -> bytes:
            return bytes(data[:-16])

    seal_batch = LogKeys.seal_batch

    def plain_seal(self: LogKeys, clear: bytes, **fields: object) -> object:
        epoch = self.keyring.sealing_epoch(fields["topic_id"])  # type: ignore[arg-type]
        kept, epoch.cipher = epoch.cipher, Plain  # type: ignore[assignment]
        try:
            return seal_batch(self, clear, **fields)  # type: ignore[arg-type]
        finally:
            epoch.cipher = kept

    LogKeys.seal_batch = plain_seal  # type: ignore[assignment,method-assign]
    LogKeys.unseal = staticmethod(lambda _c, nonce, data, associated: Plain.open(nonce, data, associated))  # type: ignore[method-assign,assignment]


def one_process(mode: str, folder: Path, mib: int) -> dict[str, float]:
    """Each measurement in a process of its own, so that none warms or fragments another's."""
    arguments = [sys.executable, __file__, "--only", mode, "--folder", str(folder), "--mib", str(mib)]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)


def measure(mode: str, folder: Path, mib: int) -> dict[str, float]:
    batch = a_batch()
    batches = mib * 1024 * 1024 // len(batch)
    if mode == "raw":
        return {"seconds": raw(folder, batch, batches, IN_FLIGHT), "batches": batches}
    keep_freed_memory()
    if mode == "plain":
        without_sealing()
    return uvloop.run(sealed(folder, batch, batches))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("raw", "sealed", "plain"))
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    if chosen.only:
        print(json.dumps(measure(chosen.only, chosen.folder, chosen.mib)))
        return
    rows: dict[str, list[dict[str, float]]] = {"raw": [], "sealed": [], "plain": []}
    for _ in range(chosen.rounds):
        for mode, results in rows.items():
            folder = Path(tempfile.mkdtemp(prefix="sprawl-bench-", dir=chosen.folder))
            try:
                results.append(one_process(mode, folder, chosen.mib))
            finally:
                shutil.rmtree(folder)
    seconds = {mode: median(result["seconds"] for result in results) for mode, results in rows.items()}
    print(
        json.dumps(
            {
                "mib": chosen.mib,
                "rounds": chosen.rounds,
                "raw_mib_s": chosen.mib / seconds["raw"],
                "sealed_mib_s": chosen.mib / seconds["sealed"],
                "plain_mib_s": chosen.mib / seconds["plain"],
                "append_ratio": median(r["seconds"] / s["seconds"] for r, s in zip(rows["raw"], rows["sealed"], strict=True)),
                "sealing_cost": 1 - seconds["plain"] / seconds["sealed"],
                "sealed_read_mib_s": median(result["read_mib_s"] for result in rows["sealed"]),
                "plain_read_mib_s": median(result["read_mib_s"] for result in rows["plain"]),
                "sealed": rows["sealed"][-1],
            }
        )
    )


if __name__ == "__main__":
    main()
