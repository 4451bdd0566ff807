"""A reader that begins at a timestamp in the middle of a log that no cache holds: time to its first record, and MB/s against
reading the raw files, alternating in one run.

    python bench/cold_reader.py [--gib 1] [--batch-kib 64] [--partitions 4] [--rounds 3] [--keep FOLDER]

The files are written, synced and dropped from the page cache (`posix_fadvise`, DONTNEED) before each pass; the node is started
anew, so its own memory is cold too. The reader asks for the timestamp of the record half way through and follows the topic in
commit order to the end. `raw` reads as many bytes of the same files by `read` of 1 MiB. With `--keep` the log is left there, and
used again by the next run: 20 GiB take some minutes to write. Prints one JSON object.
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

from broker.batch import build, walk
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.freed_memory import keep_freed_memory
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.machine import MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

IN_FLIGHT = 64
RECORDS = 64
FETCH_BYTES = 1 << 20
NOON_MS = 1_760_000_000_000


def engine(folder: Path) -> EmbeddedEngine:
    keys = folder / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    kek = keys / "kek.json"
    kms = LocalFileKms.load(kek) if kek.exists() else LocalFileKms.create(kek)
    keystore = KeyStore(KeyStoreBlob(MachineDisk(keys)), kms, os.urandom)
    return EmbeddedEngine(MachineSeams(folder / "data"), keystore, LogOptions(merge_bytes_per_s=1 << 40))


def log_files(folder: Path) -> list[Path]:
    return [path for part in ("journal", "segments") for path in sorted((folder / "data" / part).iterdir())]


async def write(folder: Path, size: int, batch_bytes: int, partitions: int) -> None:
    """One record a millisecond of its own: the timestamp finds the place."""
    node = engine(folder)
    await node.start()
    await node.create_topic("bench", partitions, {"retention.ms": "-1"})
    value = os.urandom(max(1, batch_bytes // RECORDS - 20))
    count = size // batch_bytes
    left = iter(range(count))

    async def producer() -> None:
        for n in left:
            batch = build([(NOON_MS + n, b"key-%d" % m, value, ()) for m in range(RECORDS)])
            await node.append([Append("bench", n % partitions, batch, [b"key-%d" % m for m in range(RECORDS)])])

    await asyncio.gather(*[producer() for _ in range(IN_FLIGHT)])
    await node.close()
    (folder / "batches").write_text(str(count))


def forget(folder: Path) -> None:
    """Out of the page cache, as far as the kernel follows the advice."""
    for path in log_files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


async def read(folder: Path, batches: int) -> dict[str, float]:
    began = time.perf_counter()
    node = engine(folder)
    await node.start()
    started = time.perf_counter()
    forget(folder)  # what the start itself read
    asked_ms = NOON_MS + batches // 2
    cpu, asked = time.process_time(), time.perf_counter()
    sequence = await node.sequence_for_time("bench", asked_ms)
    first_s = size = found = 0.0
    end = node.next_sequence()
    while sequence < end:
        page = await node.tail("bench", sequence, bytes_max=FETCH_BYTES)
        sequence = page.next_sequence
        size += sum(len(stored.batch) for stored in page.batches)
        found += len(page.batches)
        if not first_s and any(record.timestamp_ms >= asked_ms for stored in page.batches for record in walk(stored.batch)):
            first_s = time.perf_counter() - asked
    seconds, cpu_s = time.perf_counter() - asked, time.process_time() - cpu
    await node.close()
    return {
        "start_s": started - began,
        "first_record_ms": 1e3 * first_s,
        "read_bytes": size,
        "batches": found,
        "mb_s": size / 1e6 / seconds,
        "cpu_us_a_mb": 1e6 * cpu_s / (size / 1e6),
    }


def raw(folder: Path, size: float) -> float:
    """MB/s of reading as many bytes of the newest files."""
    began, left = time.perf_counter(), size
    for path in reversed(log_files(folder)):
        descriptor = os.open(path, os.O_RDONLY)
        while left > 0 and (data := os.read(descriptor, FETCH_BYTES)):
            left -= len(data)
        os.close(descriptor)
    return (size - left) / 1e6 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--batch-kib", type=float, default=64)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="sprawl-cold-"))
    folder.mkdir(exist_ok=True)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if not (folder / "batches").exists():
                size = int(arguments.gib * 2**30)
                runner.run(write(folder, size, int(arguments.batch_kib * 1024), arguments.partitions))
            batches = int((folder / "batches").read_text())
            found, raws = [], []
            for _ in range(arguments.rounds):
                forget(folder)
                found.append(runner.run(read(folder, batches)))
                forget(folder)
                raws.append(raw(folder, found[-1]["read_bytes"]))
        files = len(log_files(folder))
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    middle = {name: round(median(one[name] for one in found), 2) for name in found[0]}
    ratio = middle["mb_s"] / median(raws)
    options = {"gib": arguments.gib, "batch_kib": arguments.batch_kib, "partitions": arguments.partitions, "files": files}
    print(json.dumps({**options, **middle, "raw_mb_s": round(median(raws)), "of_raw": round(ratio, 3)}))


if __name__ == "__main__":
    main()
