"""The contract of keyed stores, asked of RocksDB under SIGKILL with its log cut and flipped, and of the simulator's model."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from broker.machine import MachineStores
from tests.contracts.keyed_store_contract import FOLDER, KeyedStoreContract
from tests.simulation.faults import Faults, Plan
from tests.simulation.store import SimulatedKeyedStores, StoresMedia
from tests.simulation.trace import Trace

ROOT = Path(__file__).parents[2]
TEARS = 160
SECTOR_BYTES = 512

PROCESS = """
import json, os, signal, sys
from pathlib import Path
from broker.machine import MachineStores
writes, flush_after = json.load(sys.stdin)
stores = MachineStores(Path(sys.argv[1]))
store = stores.open(sys.argv[2])
log = max((stores._root / sys.argv[2]).glob("*.log"), default=None)
for number, (puts, deletes) in enumerate(writes, 1):
    store.write([(bytes.fromhex(k), bytes.fromhex(v)) for k, v in puts], [bytes.fromhex(k) for k in deletes])
    if number == flush_after:
        store.flush()
        print(log.name, log.stat().st_size, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


class RocksMachine:
    """RocksDB in a folder of this machine. What a power cut leaves of what was not flushed is written into its log by hand."""

    def __init__(self, root):
        self._root, self._before = root / "now", root / "before"
        self._stores = MachineStores(self._root)
        self._random = random.Random(1)

    def open(self):
        return self._stores.open(FOLDER)

    def destroy(self):
        self._stores.destroy(FOLDER)

    def write_and_die(self, writes, flush_after):
        asked = [([(key.hex(), value.hex()) for key, value in puts], [key.hex() for key in deletes]) for puts, deletes in writes]
        ended = subprocess.run(
            [sys.executable, "-c", PROCESS, str(self._root), FOLDER],
            input=json.dumps([asked, flush_after]),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
        assert ended.returncode == -9, ended.stderr
        shutil.rmtree(self._before, ignore_errors=True)
        shutil.copytree(self._root / FOLDER, self._before)
        if flush_after:
            name, size = ended.stdout.split()
            self._log, self._flushed = name, int(size)

    def torn(self):
        yield from self._damage(self._flushed)

    def damaged(self):
        yield from self._damage(0)

    def _damage(self, start):
        """The log from `start` on: cut, bits flipped, sectors never written, a tail of zeros or of what the disk had before."""
        data = (self._before / self._log).read_bytes()
        yield self._put("untouched", data)
        for at in sorted({start, *range(start, len(data), 37), *range(start, min(start + 20, len(data)))}):
            yield self._put(f"cut at {at}", data[:at])
        for at in range(start, len(data), 41):
            flipped = data[at] ^ 1 << self._random.randrange(8)
            yield self._put(f"a bit flipped at {at}", data[:at] + bytes([flipped]) + data[at + 1 :])
        for at in range(start, len(data), 101):
            end = at // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES
            yield self._put(f"zeros from {at} to {end}", data[:at] + bytes(len(data[at:end])) + data[end:])
            yield self._put(f"zeros from {at} on", data[:at] + bytes(len(data) - at))
            yield self._put(f"garbage from {at} on", data[:at] + self._random.randbytes(len(data) - at))

    def _put(self, how, log):
        shutil.rmtree(self._root / FOLDER)
        shutil.copytree(self._before, self._root / FOLDER)
        (self._root / FOLDER / self._log).write_bytes(log)
        return how


class SimulatedMachine:
    def __init__(self):
        self._live(0)

    def _live(self, seed):
        self._random = random.Random(seed)
        self.media = StoresMedia(self._random, Trace())
        self._start()

    def _start(self):
        self._faults = Faults(Plan(), self._random, Trace(), lambda: None)
        self._stores = SimulatedKeyedStores(self.media, self._faults, Trace(), lambda puts: None)

    def open(self):
        return self._stores.open(FOLDER)

    def destroy(self):
        self._stores.destroy(FOLDER)

    def write_and_die(self, writes, flush_after):
        self._asked = writes, flush_after
        store = self.open()
        for number, write in enumerate(writes, 1):
            store.write(*write)
            if number == flush_after:
                store.flush()
        self._faults.kill()
        self._start()

    def torn(self):
        yield from self._again(lambda: self.media.lose_power())

    def damaged(self):
        yield from self._again(lambda: self.media.flip(FOLDER))

    def _again(self, happen):
        for seed in range(TEARS):
            self._live(seed)
            self.write_and_die(*self._asked)
            happen()
            yield f"seed {seed}"


class TestRocksDB(KeyedStoreContract):
    @pytest.fixture
    def subject(self, tmp_path):
        return RocksMachine(tmp_path)


class TestSimulated(KeyedStoreContract):
    @pytest.fixture
    def subject(self):
        return SimulatedMachine()
