"""CPU and time of a start after a kill: one journal file that nobody sealed, read, opened, chained and sealed in place.

    python bench/recovery.py [--mib 1024] [--batch-kib 64] [--rounds 1] [--profile]

The node that wrote it ends by `os._exit`, so nothing is confirmed or sealed. The start runs in a process of its own, with the
file in the page cache; `cpu_s` counts all its threads. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from broker.batch import build
from broker.engine.base import Append
from broker.engine.embedded import EmbeddedEngine
from broker.freed_memory import keep_freed_memory
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.machine import MachineDisk, MachineSeams
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms

IN_FLIGHT = 64
PARTITIONS = 8
RECORDS = 64
Result = TypeVar("Result")


def engine(folder: Path) -> EmbeddedEngine:
    keys = folder / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    kek = keys / "kek.json"
    kms = LocalFileKms.load(kek) if kek.exists() else LocalFileKms.create(kek)
    keystore = KeyStore(KeyStoreBlob(MachineDisk(keys)), kms, os.urandom)
    return EmbeddedEngine(MachineSeams(folder / "data"), keystore, LogOptions(journal_file_bytes=1 << 40, ring_bytes_max=1 << 20))


async def write(folder: Path, mib: int, batch_bytes: int) -> None:
    """Ends the process as a kill does."""
    node = engine(folder)
    await node.start()
    await node.create_topic("bench", PARTITIONS, {"max.message.bytes": str(2 * batch_bytes + 4096)})
    records = min(RECORDS, max(1, batch_bytes // 64))
    value = os.urandom(max(1, batch_bytes // records - 20))
    batch = build([(1_700_000_000_000, b"key-%d" % n, value, ()) for n in range(records)])
    keys = [b"key-%d" % n for n in range(records)]
    left = iter(range(mib * 2**20 // len(batch)))

    async def producer() -> None:
        for n in left:
            await node.append([Append("bench", n % PARTITIONS, batch, keys)])

    await asyncio.gather(*[producer() for _ in range(IN_FLIGHT)])
    sys.stdout.flush()
    os._exit(0)


async def recover(folder: Path, *, profile: bool) -> dict[str, float]:
    node = engine(folder)
    profiler = cProfile.Profile() if profile else None
    if profiler is not None:  # the start works on a lane of its own, which a profiler of this thread does not see
        opened = node._open
        node._open = lambda: profiler.runcall(opened)  # type: ignore[method-assign]
    cpu, began = time.process_time(), time.perf_counter()
    await node.start()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    batches = node.stats().next_sequence - 1
    groups = node.recovery.groups
    await node.close()
    if profiler is not None:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(18)
    return {
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu_seconds, 2),
        "batches": batches,
        "groups": groups,
        "rss_mib": round(rss),
    }


def child(mode: str, folder: Path, arguments: argparse.Namespace) -> str:
    command = [sys.executable, __file__, "--child", mode, "--folder", str(folder), "--mib", str(arguments.mib)]
    command += ["--batch-kib", str(arguments.batch_kib), *(["--profile"] if arguments.profile else [])]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def run(work: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--batch-kib", type=float, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--child", choices=["write", "recover"])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.child == "write":
        run(write(arguments.folder, arguments.mib, int(arguments.batch_kib * 1024)))
    if arguments.child == "recover":
        print(json.dumps(run(recover(arguments.folder, profile=arguments.profile))))
        return
    folder = Path(tempfile.mkdtemp(prefix="sprawl-recovery-"))
    try:
        child("write", folder, arguments)
        rounds = []
        for number in range(arguments.rounds):
            copy = folder if arguments.rounds == 1 else folder / f"round-{number}"
            if copy is not folder:
                copy.mkdir()
                for part in ("data", "keys"):
                    shutil.copytree(folder / part, copy / part)
            rounds.append(json.loads(child("recover", copy, arguments)))
            if copy is not folder:
                shutil.rmtree(copy)
        best = min(rounds, key=lambda found: found["cpu_s"])
        print(json.dumps({"mib": arguments.mib, "batch_kib": arguments.batch_kib, **best, "rounds": rounds}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
