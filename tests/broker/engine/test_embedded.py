"""The embedded engine: the contract on a roomy and on a cramped log, and what only an engine with a disk can get wrong."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from broker.batch import build
from broker.engine.base import Append, Engine
from broker.engine.embedded import EmbeddedEngine
from broker.errors import (
    AppendUnknown,
    BrokerError,
    Closed,
    DiskFull,
    FolderInUse,
    KeysMismatch,
    Overloaded,
    StorageDamaged,
    UnknownTopic,
)
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.log.reserve import Space
from broker.machine import MachineDisk, MachineExecutor, MachineFile, MachineSeams
from broker.seams import Buffer
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms
from security.errors import KeyMissing, KeyWrong
from tests.contracts.engine_contract import (
    PLENTY,
    EngineContract,
    Reopen,
    Traffic,
    follow,
    lives_of,
    one,
    read_partition,
    values_of,
)

# Everything soon lies in sealed and merged files and is read from there: the ring holds a batch or two, a file a handful.
CRAMPED: dict[str, Any] = {
    "journal_file_bytes": 8_192,
    "merge_files_min": 2,
    "ring_bytes_max": 1_000,
    "index_cache_bytes_max": 1_000,
}


class UnsyncedFile(MachineFile):
    def sync(self) -> None: ...


class UnsyncedDisk(MachineDisk):
    """For the contract, whose engines all stop cleanly: it takes a third of the time that a synced one takes."""

    def open(self, path: str, *, create: bool = False) -> MachineFile:
        return UnsyncedFile(open_file(self.root / path, create))

    def sync_folder(self, folder: str) -> None: ...


def open_file(path: Path, create: bool) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)


def make_keystore(keys: Path, disk: Callable[[Path], MachineDisk] = MachineDisk) -> KeyStore:
    keys.mkdir(mode=0o700, exist_ok=True)
    kek = keys / "kek.json"
    kms = LocalFileKms.load(kek) if kek.exists() else LocalFileKms.create(kek)
    return KeyStore(KeyStoreBlob(disk(keys)), kms, os.urandom)


class Lives:
    """One data folder and its keys, through as many lives of an engine as a test needs."""

    def __init__(
        self,
        root: Path,
        disk: Callable[[Path], MachineDisk] = MachineDisk,
        keys_disk: Callable[[Path], MachineDisk] = MachineDisk,
        **options: Any,
    ) -> None:
        self.data, self.keys = root / "data", root / "keys"
        self._disk, self._keys_disk = disk, keys_disk
        self.options = LogOptions(**options)
        self._open: list[tuple[EmbeddedEngine, MachineSeams]] = []

    def make(self, holder: str = "a Sprawl node") -> EmbeddedEngine:
        seams = MachineSeams(self.data)
        seams.disk = self._disk(self.data)
        made = EmbeddedEngine(seams, make_keystore(self.keys, self._keys_disk), self.options, holder)
        self._open.append((made, seams))
        return made

    def use(self, executor: HeldExecutor) -> HeldExecutor:
        """From now on, for the life that runs."""
        _, seams = self._open[-1]
        seams.executor.close()
        seams.executor = executor
        executor.hold = True
        return executor

    async def begin(self) -> EmbeddedEngine:
        """The next life; the one before ends first."""
        await self.end()
        made = self.make()
        await made.start()
        return made

    async def end(self) -> None:
        for made, seams in self._open:
            await made.close()
            seams.executor.close()
        self._open.clear()

    def files(self) -> dict[str, tuple[int, str]]:
        """Every file of data and keys with its size and digest."""
        return {
            str(path): (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for folder in (self.data, self.keys)
            for path in folder.rglob("*")
            if path.is_file()
        }


async def until(reached: Callable[[], bool]) -> None:
    """Background work has no event to wait for; the bound is only for a test that fails."""
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class _OnDisk(EngineContract):
    disk: ClassVar[type[MachineDisk]] = UnsyncedDisk
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    async def lives(self, tmp_path: Path) -> AsyncIterator[Lives]:
        lives = Lives(tmp_path, self.disk, self.disk, **self.options)
        yield lives
        await lives.end()

    @pytest.fixture
    async def engine(self, lives: Lives) -> Engine:
        return await lives.begin()

    @pytest.fixture
    def reopen(self, lives: Lives) -> Reopen:
        return lives.begin


class TestEmbedded(_OnDisk):
    pass


class TestEmbeddedCramped(_OnDisk):
    options = CRAMPED


@pytest.fixture
async def lives(tmp_path: Path) -> AsyncIterator[Lives]:
    lives = Lives(tmp_path)
    yield lives
    await lives.end()


class TestStarting:
    async def test_a_folder_has_one_engine(self, lives: Lives) -> None:
        first = lives.make(holder="node one, pid 17")
        await first.start()
        with pytest.raises(FolderInUse) as refused:
            await lives.make().start()
        assert refused.value.holder == "node one, pid 17"
        await first.create_topic("orders", 1, {})

    async def test_a_closed_engine_refuses_and_leaves_the_folder(self, lives: Lives) -> None:
        engine = await lives.begin()
        await engine.create_topic("orders", 1, {})
        await engine.close()
        await engine.close()
        for refused in (
            engine.append([one("orders", b"a")]),
            engine.fetch("orders", 0, 0, bytes_max=PLENTY),
            engine.tail("orders", 0, bytes_max=PLENTY),
            engine.create_topic("readings", 1, {}),
            engine.delete_topic("orders"),
        ):
            with pytest.raises(Closed):
                await refused
        assert set((await lives.begin()).topics()) == {"orders"}

    async def test_a_tail_gives_nothing_beyond_where_the_next_begins(self, lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
        """More is appended while it reads files: the next tail gives that, and nobody is given it twice."""
        engine = await lives.begin()
        await engine.create_topic("orders", 1, {})
        await engine.append([one("orders", b"before")])
        end, read = engine.next_sequence(), engine._lookup.from_sequence

        async def meanwhile(*arguments: Any) -> Any:
            await engine.append([one("orders", b"meanwhile")])
            return await read(*arguments)

        monkeypatch.setattr(engine._recent, "newest", lambda *_: None)
        monkeypatch.setattr(engine._lookup, "from_sequence", meanwhile)
        tail = await engine.tail("orders", 0, bytes_max=PLENTY)
        assert (values_of(tail.batches), tail.next_sequence) == ([b"before"], end)

    async def test_polls_end_when_the_engine_stops(self, lives: Lives) -> None:
        engine = await lives.begin()
        await engine.create_topic("orders", 1, {})
        poll = asyncio.create_task(engine.fetch("orders", 0, 0, bytes_max=PLENTY, wait_max_ms=600_000))
        await asyncio.sleep(0.01)
        await engine.close()
        with pytest.raises(Closed):
            await poll

    @pytest.fixture
    async def stopped(self, lives: Lives) -> Lives:
        """A folder with a record in it, and nobody running."""
        engine = await lives.begin()
        await engine.create_topic("orders", 1, {})
        await engine.append([one("orders", b"a")])
        await lives.end()
        return lives

    @staticmethod
    def _another_kek(lives: Lives) -> None:
        (lives.keys / "kek.json").unlink()
        LocalFileKms.create(lives.keys / "kek.json")

    @staticmethod
    def _another_kek_of_that_name(lives: Lives) -> None:
        path = lives.keys / "kek.json"
        file = msgspec.json.decode(path.read_bytes())
        key = file["keys"][0]["key"]
        file["keys"][0]["key"] = ("A" if key[0] != "A" else "B") + key[1:]
        path.write_bytes(msgspec.json.encode(file))

    @staticmethod
    def _no_keystore(lives: Lives) -> None:
        for copy in lives.keys.glob("keystore*"):
            copy.unlink()

    @staticmethod
    def _another_cluster(lives: Lives) -> None:
        """A key store that opens with the same KEK."""
        TestStarting._no_keystore(lives)
        make_keystore(lives.keys).create(bytes(range(16)))

    @pytest.mark.parametrize(
        ("spoil", "error"),
        [
            (_another_kek, KeyMissing),
            (_another_kek_of_that_name, KeyWrong),
            (_no_keystore, KeyMissing),
            (_another_cluster, KeysMismatch),
        ],
        ids=["another-kek", "another-kek-of-that-name", "no-keystore", "another-cluster"],
    )
    async def test_wrong_keys_are_named_and_nothing_changes(
        self, stopped: Lives, spoil: Callable[[Lives], None], error: type[Exception], tmp_path: Path
    ) -> None:
        shutil.copytree(stopped.keys, tmp_path / "right keys")
        spoil(stopped)
        before = stopped.files()
        for _ in range(2):
            with pytest.raises(error):
                await stopped.begin()
            assert stopped.files() == before
        shutil.rmtree(stopped.keys)
        shutil.copytree(tmp_path / "right keys", stopped.keys)
        assert values_of(await read_partition(await stopped.begin(), "orders")) == [b"a"]

    async def test_no_keystore_and_no_manifest_is_no_new_folder(self, stopped: Lives) -> None:
        """Sealed files alone prove that there was a key store."""
        self._no_keystore(stopped)
        for path in stopped.data.glob("*anifest*"):
            path.unlink()
        before = stopped.files()
        with pytest.raises(KeyMissing):
            await stopped.begin()
        assert stopped.files() == before

    async def test_no_manifest_is_damage(self, stopped: Lives) -> None:
        for path in stopped.data.glob("*anifest*"):
            path.unlink()
        before = stopped.files()
        with pytest.raises(StorageDamaged):
            await stopped.begin()
        assert stopped.files() == before


class TestDurability:
    async def test_os_keeps_everything_through_a_clean_stop(self, tmp_path: Path) -> None:
        lives = Lives(tmp_path, durability="os", **CRAMPED)
        engine = await lives.begin()
        assert engine.capabilities().durability == "os"
        traffic = Traffic(7)
        await traffic.create(engine)
        await traffic.write(engine, 40)
        await traffic.check(await lives.begin())
        await lives.end()

    async def test_appends_beyond_the_queue_are_refused(self, tmp_path: Path) -> None:
        append = one("orders", b"x" * 1_000)
        lives = Lives(tmp_path, append_queue_bytes_max=5 * len(append.batch))
        engine = await lives.begin()
        await engine.create_topic("orders", 1, {})
        results = await asyncio.gather(*(engine.append([append]) for _ in range(20)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        accepted = [result[0].base_offset for result in results if isinstance(result, list)]
        assert len(accepted) + len(refused) == 20
        assert refused
        assert (refused[0].queue, refused[0].limit) == ("append_queue_bytes_max", 5 * len(append.batch))
        assert accepted == list(range(len(accepted)))
        await engine.append([append])
        assert len(await read_partition(engine, "orders")) == len(accepted) + 1
        await lives.end()

    async def test_one_append_larger_than_the_queue_is_taken_alone(self, tmp_path: Path) -> None:
        lives = Lives(tmp_path, append_queue_bytes_max=100)
        engine = await lives.begin()
        await engine.create_topic("orders", 1, {})
        await engine.append([one("orders", b"x" * 1_000)])
        assert values_of(await read_partition(engine, "orders")) == [b"x" * 1_000]
        await lives.end()


class FaultyFile(MachineFile):
    def __init__(self, descriptor: int, path: str, disk: FaultyDisk) -> None:
        super().__init__(descriptor)
        self._path, self._disk = path, disk

    def write_at(self, position: int, buffers: Sequence[Buffer]) -> int:
        self._disk.meet("write", self._path)
        if self._disk.tears and self._disk.failing(self._path):
            data = b"".join(buffers)
            super().write_at(position, [data[: len(data) // 2]])
            raise OSError(errno.EIO, "torn on purpose")
        return super().write_at(position, buffers)

    def read_at(self, position: int, size: int) -> bytes:
        self._disk.meet("read", self._path)
        return super().read_at(position, size)

    def sync(self) -> None:
        self._disk.meet("sync", self._path)
        super().sync()


class FaultyDisk(MachineDisk):
    """Fails what is told to: `fail["write"] = (errno, times)`; `gate` stops at a path until it is let through."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fail: dict[str, tuple[int, int]] = {}
        self.prefix = "journal/"
        self.tears = False
        self.met = 0
        self.failed: set[str] = set()
        self.written = ""
        self.gate: Gate | None = None

    def open(self, path: str, *, create: bool = False) -> MachineFile:
        if create:
            self.meet("create", path)
        return FaultyFile(open_file(self.root / path, create), path, self)

    def failing(self, path: str) -> bool:
        if not path.startswith(self.prefix):
            return False
        self.tears = False
        self.met += 1
        self.failed.add(path)
        return True

    def meet(self, operation: str, path: str) -> None:
        if self.gate is not None:
            self.gate.pass_by(operation, path)
        if operation == "write":
            self.written = path
        number, times = self.fail.get(operation, (0, 0))
        if times and path.startswith(self.prefix):
            self.fail[operation] = (number, times - 1)
            self.met += 1
            self.failed.add(path)
            raise OSError(number, f"{operation} failed on purpose")


class Gate:
    """Stops the first operation on paths that begin so, until it is opened."""

    def __init__(self, operation: str, prefix: str) -> None:
        self._operation, self._prefix = operation, prefix
        self.reached, self._opened = threading.Event(), threading.Event()

    def pass_by(self, operation: str, path: str) -> None:
        if operation == self._operation and path.startswith(self._prefix):
            self.reached.set()
            assert self._opened.wait(30)

    def open(self) -> None:
        self._opened.set()


class TestFailingDisk:
    @pytest.fixture
    async def disk(self, tmp_path: Path) -> FaultyDisk:
        return FaultyDisk(tmp_path / "data")

    @pytest.fixture
    async def lives(self, tmp_path: Path, disk: FaultyDisk) -> AsyncIterator[Lives]:
        lives = Lives(tmp_path, disk=lambda _: disk, recover_retry_ms=10)
        yield lives
        disk.fail.clear()
        await lives.end()

    @pytest.fixture
    async def engine(self, lives: Lives) -> EmbeddedEngine:
        """With a record before the failure."""
        engine = await lives.begin()
        await engine.create_topic("orders", 2, {})
        await engine.append([one("orders", b"before", key=b"k")])
        return engine

    async def _check_after(self, engine: EmbeddedEngine, disk: FaultyDisk, lives: Lives) -> None:
        """Nothing that failed is there; a new file goes on; all that was acknowledged is there in the next life."""
        await until(lambda: engine.append_problem() is None)
        assert values_of(await follow(engine, "orders")) == [b"before"]
        assert [o.high_watermark for o in engine.offsets("orders")] == [1, 0]
        (appended,) = await engine.append([one("orders", b"after", key=b"k")])
        assert appended.base_offset == 1
        assert disk.written.startswith("journal/")
        assert disk.written not in disk.failed
        async for opened in lives_of(engine, lives.begin):
            assert values_of(await read_partition(opened, "orders")) == [b"before", b"after"]
            assert values_of(await follow(opened, "orders")) == [b"before", b"after"]
            assert opened.damage() == []
            found = await opened.find_latest("orders", 0, b"k")
            assert found is not None
            assert found.base_offset == 1

    @pytest.mark.parametrize(
        ("operation", "number"),
        [("write", errno.EIO), ("sync", errno.EIO), ("write", errno.ENOSPC), ("sync", errno.ENOSPC)],
        ids=["write-EIO", "sync-EIO", "write-ENOSPC", "sync-ENOSPC"],
    )
    async def test_a_failure_is_told_and_leaves_nothing(
        self, engine: EmbeddedEngine, disk: FaultyDisk, lives: Lives, operation: str, number: int
    ) -> None:
        heard: list[None] = []
        unwatch = engine.watch("orders", lambda: heard.append(None))
        disk.fail[operation] = (number, 1)
        appends = [[one("orders", b"lost 1"), one("orders", b"lost 2", partition=1)], [one("orders", b"lost 3", key=b"k")]]
        results = await asyncio.gather(*(engine.append(call) for call in appends), return_exceptions=True)
        # Where the disk is full the next journal file, in the space given back, proves that nothing is there.
        assert [type(result) for result in results] == [DiskFull if number == errno.ENOSPC else AppendUnknown] * 2
        assert disk.met == 1
        assert not heard
        unwatch()
        assert engine.stats().append_failures == 1
        await self._check_after(engine, disk, lives)

    async def test_a_torn_write_leaves_nothing(self, engine: EmbeddedEngine, disk: FaultyDisk, lives: Lives) -> None:
        disk.tears = True
        with pytest.raises(AppendUnknown):
            await engine.append([one("orders", b"lost")] * 5)
        assert disk.met == 1
        await self._check_after(engine, disk, lives)

    async def test_a_failure_nobody_waits_for(self, engine: EmbeddedEngine, disk: FaultyDisk, lives: Lives) -> None:
        disk.fail["sync"] = (errno.EIO, 1)
        await engine.append([one("orders", b"lost")], durable=False)
        await until(lambda: disk.met == 1)
        await self._check_after(engine, disk, lives)

    async def test_the_problem_is_told_until_a_new_file_opens(
        self, engine: EmbeddedEngine, disk: FaultyDisk, lives: Lives
    ) -> None:
        disk.fail = {"sync": (errno.EIO, 1), "create": (errno.ENOSPC, 1_000_000)}
        with pytest.raises(AppendUnknown):
            await engine.append([one("orders", b"lost")])
        await until(lambda: disk.met > 3)
        problem = engine.append_problem()
        assert problem is not None
        assert "disk failed" in problem
        # What is not tried has no unknown outcome, and says the same whenever it comes: also when a look at the disk has just
        # found space while there is no new file yet.
        for space in (Space.NONE, Space.PLENTY):
            engine._store.space.space = space
            with pytest.raises(DiskFull):
                await engine.append([one("orders", b"not tried")])
            with pytest.raises(DiskFull):
                await engine.create_topic("readings", 1, {})
        assert values_of(await read_partition(engine, "orders")) == [b"before"]
        disk.fail.clear()
        await self._check_after(engine, disk, lives)
        assert set((await lives.begin()).topics()) == {"orders"}

    async def test_a_stop_while_the_disk_fails_keeps_what_was_acknowledged(
        self, engine: EmbeddedEngine, disk: FaultyDisk, lives: Lives
    ) -> None:
        disk.fail = {"sync": (errno.EIO, 1_000_000), "create": (errno.EIO, 1_000_000)}
        with pytest.raises(AppendUnknown):
            await engine.append([one("orders", b"lost")])
        async with asyncio.timeout(30):
            await lives.end()
        disk.fail.clear()
        engine = await lives.begin()
        assert values_of(await read_partition(engine, "orders")) in ([b"before"], [b"before", b"lost"])
        assert engine.damage() == []

    @pytest.mark.parametrize("operation", ["write", "sync"])
    async def test_topic_changes_that_fail_are_not_there(
        self, engine: EmbeddedEngine, disk: FaultyDisk, lives: Lives, operation: str
    ) -> None:
        changes: tuple[Callable[[], Any], ...] = (
            lambda: engine.create_topic("readings", 1, {}),
            lambda: engine.alter_topic("orders", partitions=9),
            lambda: engine.delete_topic("orders"),
        )
        for change in changes:
            disk.fail[operation] = (errno.EIO, 1)
            with pytest.raises(AppendUnknown):
                await change()
            await until(lambda: engine.append_problem() is None)
            assert {name: topic.partitions for name, topic in engine.topics().items()} == {"orders": 2}
        await self._check_after(engine, disk, lives)

    async def test_failures_again_and_again(self, engine: EmbeddedEngine, disk: FaultyDisk, lives: Lives) -> None:
        acknowledged = [b"before"]
        chance = random.Random(5)
        for n in range(60):
            if chance.random() < 0.3:
                disk.fail[chance.choice(("write", "sync", "create"))] = (errno.EIO, 1)
            try:
                await engine.append([one("orders", b"%d" % n)])
            except BrokerError:
                await until(lambda: engine.append_problem() is None)
            else:
                acknowledged.append(b"%d" % n)
        disk.fail.clear()
        assert disk.met > 5
        assert len(acknowledged) > 20
        async for opened in lives_of(engine, lives.begin, lives.begin):
            assert values_of(await read_partition(opened, "orders")) == acknowledged
            assert values_of(await follow(opened, "orders", bytes_max=300)) == acknowledged
            assert opened.damage() == []


class TestSealingAndMerging:
    @pytest.fixture
    async def disk(self, tmp_path: Path) -> FaultyDisk:
        return FaultyDisk(tmp_path / "data")

    @pytest.fixture
    async def lives(self, tmp_path: Path, disk: FaultyDisk) -> AsyncIterator[Lives]:
        lives = Lives(tmp_path, disk=lambda _: disk, **CRAMPED, merge_own_bytes=20_000)
        yield lives
        if disk.gate is not None:
            disk.gate.open()
        await lives.end()

    async def test_everything_reads_the_same_from_sealed_and_merged_files(self, lives: Lives) -> None:
        engine = await lives.begin()
        traffic = Traffic(3)
        await traffic.create(engine)
        await traffic.write(engine, 60)
        await until(lambda: engine.stats().merges > 0)
        assert engine.stats().sealed_in_place > 2
        await traffic.check(engine)
        for _ in range(2):
            engine = await lives.begin()
            await traffic.check(engine)
            await traffic.write(engine, 30)
            await traffic.check(engine)
        await until(lambda: engine.stats().merges > 0)
        assert engine.stats().file_reads > 0
        assert list((lives.data / "segments").iterdir())

    async def test_a_topic_deleted_while_its_records_are_merged(self, lives: Lives, disk: FaultyDisk) -> None:
        engine = await lives.begin()
        disk.gate = gate = Gate("write", "segments/")
        for name in ("orders", "readings"):
            await engine.create_topic(name, 1, {})
        kept: list[bytes] = []
        while not gate.reached.is_set():
            kept.append(b"%d" % len(kept) + b"." * 500)
            await engine.append([one("orders", kept[-1]), one("readings", kept[-1])])
        deleting = asyncio.create_task(engine.delete_topic("orders"))
        await until(lambda: "orders" not in engine.topics())
        gate.open()
        async with asyncio.timeout(30):
            await deleting
        disk.gate = None
        for _ in range(40):
            kept.append(b"%d" % len(kept) + b"." * 500)
            await engine.append([one("readings", kept[-1])])
        await until(lambda: engine.stats().merges > 0)
        async for opened in lives_of(engine, lives.begin):
            with pytest.raises(UnknownTopic):
                await opened.fetch("orders", 0, 0, bytes_max=PLENTY)
            assert values_of(await read_partition(opened, "readings")) == kept
            assert opened.damage() == []

    async def test_a_merge_that_fails_is_tried_again(self, lives: Lives, disk: FaultyDisk) -> None:
        engine = await lives.begin()
        traffic = Traffic(11)
        await traffic.create(engine)
        disk.prefix = "segments/"
        disk.fail = {"write": (errno.EIO, 1), "sync": (errno.ENOSPC, 1), "create": (errno.EIO, 1)}
        await traffic.write(engine, 60)
        await until(lambda: disk.met == 3 or not any(times for _, times in disk.fail.values()))
        await traffic.check(engine)
        await traffic.write(engine, 40)
        await until(lambda: engine.stats().merges > 0)
        await traffic.check(engine)
        await traffic.check(await lives.begin())

    async def test_deleted_records_go_from_the_disk_with_their_files(self, lives: Lives) -> None:
        engine = await lives.begin()
        for name in ("orders", "readings"):
            await engine.create_topic(name, 1, {})
        for _ in range(60):
            await engine.append([one("orders", b"x" * 2_000)])
        await engine.delete_topic("orders")
        engine = await lives.begin()
        for _ in range(60):
            await engine.append([one("readings", b"y" * 200)])
        await until(lambda: engine.stats().merges > 0)
        await lives.end()
        assert sum(size for path, (size, _) in lives.files().items() if path.endswith((".journal", ".segment"))) < 60_000


Read = Callable[[EmbeddedEngine], Awaitable[object]]

# Those that open batches; indexes alone open without the keys of the topic.
READS: dict[str, Read] = {
    "fetch": lambda engine: engine.fetch("orders", 0, 0, bytes_max=PLENTY),
    "tail": lambda engine: engine.tail("orders", 0, bytes_max=PLENTY),
    "tail-by-key": lambda engine: engine.tail("orders", 0, bytes_max=PLENTY, key=b"0"),
    "find-latest": lambda engine: engine.find_latest("orders", 0, b"0"),
    "offset-for-time": lambda engine: engine.offset_for_time("orders", 0, 0),
    "offset-of-max-timestamp": lambda engine: engine.offset_of_max_timestamp("orders", 0),
}


class HeldExecutor(MachineExecutor):
    """What was read comes back only when `let_go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.read, self.let_go = asyncio.Event(), asyncio.Event()

    def run(self, lane: str, work: Callable[[], Any]) -> asyncio.Future[Any]:
        ran = super().run(lane, work)
        return asyncio.ensure_future(self._held(ran)) if self.hold and lane == "read" else ran

    async def _held(self, ran: asyncio.Future[Any]) -> Any:
        result = await ran
        self.read.set()
        await self.let_go.wait()
        return result


class TestDeletingWhileReading:
    @pytest.fixture
    async def disk(self, tmp_path: Path) -> FaultyDisk:
        return FaultyDisk(tmp_path / "data")

    @pytest.fixture
    async def lives(self, tmp_path: Path, disk: FaultyDisk) -> AsyncIterator[Lives]:
        lives = Lives(tmp_path, disk=lambda _: disk, **{**CRAMPED, "merge_files_min": 1_000})
        yield lives
        if disk.gate is not None:
            disk.gate.open()
        await lives.end()

    async def _fill(self, lives: Lives) -> EmbeddedEngine:
        """Records in sealed files, whose keys and indexes the process has not met yet."""
        engine = await lives.begin()
        await engine.create_topic("orders", 1, {})
        for n in range(12):
            await engine.append([one("orders", b"x" * 2_000, key=b"%d" % n)])
        return await lives.begin()

    @pytest.mark.parametrize("read", READS.values(), ids=READS)
    async def test_a_read_that_meets_the_deletion_hears_of_it(self, lives: Lives, disk: FaultyDisk, read: Read) -> None:
        engine = await self._fill(lives)
        disk.gate = gate = Gate("read", "journal/")
        reading = asyncio.ensure_future(read(engine))
        await until(gate.reached.is_set)
        await engine.delete_topic("orders")
        gate.open()
        async with asyncio.timeout(30):
            (result,) = await asyncio.gather(reading, return_exceptions=True)
        assert isinstance(result, UnknownTopic)

    async def test_a_poll_whose_topic_goes_while_it_reads_does_not_wait(self, lives: Lives) -> None:
        engine = await self._fill(lives)
        executor = lives.use(HeldExecutor())
        poll = asyncio.create_task(engine.fetch("orders", 0, 0, bytes_max=PLENTY, bytes_min=PLENTY, wait_max_ms=600_000))
        await executor.read.wait()
        await engine.delete_topic("orders")
        executor.let_go.set()
        async with asyncio.timeout(30):
            with pytest.raises(UnknownTopic):
                await poll


WRITER = """
    import asyncio, sys
    from pathlib import Path
    from tests.broker.engine.test_embedded import Lives
    from tests.contracts.engine_contract import one

    async def write(root, life, options):
        engine = await Lives(root, **options).begin()
        if "orders" not in engine.topics():
            await engine.create_topic("orders", 2, {})
        print("started", flush=True)

        async def append(writer):
            count = 0
            while True:
                value = f"{life}.{writer}.{count}"
                both = [one("orders", value.encode(), partition=partition, key=b"k") for partition in (0, 1)]
                answers = await engine.append(both)
                print(*(appended.base_offset for appended in answers), value, flush=True)
                count += 1

        await asyncio.gather(*(append(writer) for writer in range(4)))

    asyncio.run(write(Path(sys.argv[1]), sys.argv[2], dict(journal_file_bytes=20_000, merge_files_min=2)))
"""


class TestKilled:
    async def test_acknowledged_records_survive_kills(self, tmp_path: Path) -> None:
        lives = Lives(tmp_path)
        printed: list[dict[int, bytes]] = [{}, {}]
        chance = random.Random()
        for life in range(3):
            await asyncio.to_thread(self._write_and_kill, tmp_path, life, chance.randint(1, 400), printed)
            engine = await lives.begin()
            for partition in (0, 1):
                found = await read_partition(engine, "orders", partition)
                values = dict(enumerate(values_of(found)))
                assert {offset: values.get(offset) for offset in printed[partition]} == printed[partition]
                assert len(set(values.values())) == len(values)
                assert [stored.base_offset for stored in found] == list(values)
            # Both batches of a call are there, or neither.
            assert len({offsets.high_watermark for offsets in engine.offsets("orders")}) == 1
            assert engine.damage() == []
            followed = await follow(engine, "orders", bytes_max=3_000)
            assert len(followed) == sum(offsets.high_watermark for offsets in engine.offsets("orders"))
            await lives.end()

    @staticmethod
    def _write_and_kill(root: Path, life: int, lines: int, printed: list[dict[int, bytes]]) -> None:
        """Blocking. Every whole line was printed after the acknowledgement."""
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(root), str(life)]
        repository = Path(__file__).parents[3]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=repository) as writer:
            assert writer.stdout is not None
            try:
                assert writer.stdout.readline() == b"started\n"
                acknowledged = [writer.stdout.readline() for _ in range(lines)]
            finally:
                writer.send_signal(signal.SIGKILL)
            acknowledged += writer.stdout.readlines()
        for line in acknowledged:
            if line.endswith(b"\n"):
                *offsets, value = line.split()
                for partition, offset in enumerate(offsets):
                    assert printed[partition].setdefault(int(offset), value) == value


class TestSealed:
    async def test_nothing_clear_is_on_the_disk(self, tmp_path: Path) -> None:
        """Keys, values, header names and values, and topic names: in journals, merged segments, footers and state."""
        lives = Lives(tmp_path, **CRAMPED)
        marker = b"clear-marker"
        engine = await lives.begin()
        await engine.create_topic("topic-clear-marker", 1, {})
        batch = build([(0, b"key-" + marker, marker * 20, ((b"header-" + marker, marker),))])
        for _ in range(80):
            await engine.append([Append("topic-clear-marker", 0, batch, keys=[b"key-" + marker])])
        await until(lambda: engine.stats().merges > 0)
        running = self._holding(lives, marker)
        await lives.end()
        assert (running, self._holding(lives, marker)) == ([], [])

    @staticmethod
    def _holding(lives: Lives, marker: bytes) -> list[str]:
        files = [path for folder in (lives.data, lives.keys) for path in folder.rglob("*") if path.is_file()]
        assert len(files) > 5
        holding: list[str] = []
        for path in files:
            with suppress(FileNotFoundError):  # renamed or merged away since it was listed
                if marker in path.read_bytes():
                    holding.append(path.name)
        return holding

    async def test_files_are_for_the_owner_only(self, tmp_path: Path) -> None:
        lives = Lives(tmp_path, **CRAMPED)
        engine = await lives.begin()
        await engine.create_topic("orders", 1, {})
        for _ in range(40):
            await engine.append([one("orders", b"x" * 1_000)])
        await lives.end()
        ours = [path for path in lives.data.rglob("*") if path.is_file() and "view" not in path.parts]
        assert len(ours) > 5
        assert {path.stat().st_mode & 0o777 for path in ours} == {0o600}
        assert {path.stat().st_mode & 0o777 for path in (lives.data, lives.data / "journal", lives.keys)} == {0o700}
