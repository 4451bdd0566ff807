"""A full disk: records are refused, everything that makes space works, and appends go on by themselves.

On a file system of a few megabytes where this user may mount one, and everywhere on a disk that counts and refuses like it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from broker.batch import walk
from broker.engine.base import Append, StateChange, StateSpace
from broker.engine.embedded import EmbeddedEngine
from broker.errors import DiskFull
from broker.log.keystore_blob import KeyStoreBlob
from broker.log.options import LogOptions
from broker.log.reserve import RESERVE_PATH, DiskSpace, Space
from broker.machine import MachineDisk, MachineFile, MachineSeams
from broker.seams import Buffer
from security.crypto.keystore import KeyStore
from security.crypto.kms import LocalFileKms
from tests.broker.log.journals import one_record

KIB, MIB = 1024, 1024 * 1024
SIZE = 8 * MIB
SMALL: dict[str, Any] = {
    "journal_file_bytes": 256 * KIB,
    "reserve_bytes": MIB,
    "space_check_ms": 10,
    "recover_retry_ms": 10,
    "sweep_journal_bytes": 0,
    "merge_files_min": 10_000,
}


class SmallFile(MachineFile):
    def __init__(self, descriptor: int, disk: SmallDisk) -> None:
        super().__init__(descriptor)
        self._disk = disk

    def write_at(self, position: int, buffers: Sequence[Buffer]) -> int:
        end = position + sum(map(len, buffers))
        self._disk.need(end - self.size())
        return super().write_at(position, buffers)

    def allocate(self, size: int) -> None:
        self._disk.need(size - self.size())
        super().allocate(size)


class SmallDisk(MachineDisk):
    """As large as `capacity`; what it says to be free may be more, as under a quota. RocksDB's files do not count."""

    def __init__(self, root: Path, capacity: int = SIZE) -> None:
        super().__init__(root)
        self.capacity = capacity
        self.says_free: int | None = None

    def _used(self) -> int:
        size = 0
        for folder in ("", "journal", "segments", "state"):
            with suppress(FileNotFoundError):  # the engine's threads remove files meanwhile
                paths = [self.root / folder / name for name in os.listdir(self.root / folder)]
                size += sum(path.stat().st_size for path in paths if path.is_file())
        return size

    def open(self, path: str, *, create: bool = False) -> MachineFile:
        if create:
            self.need(1)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        return SmallFile(os.open(self.root / path, flags, 0o600), self)

    def need(self, size: int) -> None:
        if size > 0 and self._used() + size > self.capacity:
            raise OSError(errno.EDQUOT if self.says_free else errno.ENOSPC, "no space, on purpose")

    def free_bytes(self) -> int:
        return max(0, self.capacity - self._used()) if self.says_free is None else self.says_free


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A real file system of that size."""
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", f"size={SIZE}", "none", place], capture_output=True).returncode
    ):
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


class Node:
    """One data folder through its lives."""

    def __init__(self, root: Path, disk: MachineDisk, keys: Path) -> None:
        self.root, self.disk, self._keys = root, disk, keys
        keys.mkdir(mode=0o700)
        LocalFileKms.create(keys / "kek.json")
        self.engine: EmbeddedEngine
        self._running = False

    async def start(self, **options: object) -> EmbeddedEngine:
        await self.stop()
        seams = MachineSeams(self.root)
        seams.disk = self.disk
        keystore = KeyStore(KeyStoreBlob(MachineDisk(self._keys)), LocalFileKms.load(self._keys / "kek.json"), os.urandom)
        self.engine = EmbeddedEngine(seams, keystore, LogOptions(**{**SMALL, **options}))
        await self.engine.start()
        self._running = True
        return self.engine

    async def stop(self) -> None:
        if self._running:
            await self.engine.close()
        self._running = False

    def reserved_bytes(self) -> int:
        try:
            return (self.root / RESERVE_PATH).stat().st_size
        except FileNotFoundError:
            return 0

    async def fill(self, topic: str = "orders") -> int:
        """Publish until refused; the number of records."""
        for number in range(10_000):
            try:
                await self.publish(topic)
            except DiskFull:
                return number
        raise AssertionError("never full")

    async def publish(self, topic: str = "orders") -> None:
        await self.engine.append([Append(topic, 0, one_record(os.urandom(32 * KIB)), [b"k"])])

    async def count(self, topic: str = "orders") -> int:
        (offsets,) = self.engine.offsets(topic)
        at, found = offsets.log_start, 0
        while at < offsets.high_watermark:
            fetched = await self.engine.fetch(topic, 0, at, bytes_max=MIB)
            found += sum(1 for stored in fetched.batches for _ in walk(stored.batch))
            at = fetched.next_offset
        return found

    async def publishes_again(self, topic: str = "orders") -> None:
        async with asyncio.timeout(30):
            while True:
                try:
                    return await self.publish(topic)
                except DiskFull:
                    await asyncio.sleep(0.01)

    def hog(self) -> Path:
        """Somebody else takes what is left."""
        hog = self.root.parent / "hog"
        if isinstance(self.disk, SmallDisk):
            self.disk.capacity = self.disk._used()
            return hog
        with hog.open("wb") as file:
            try:
                while True:
                    os.write(file.fileno(), bytes(4096))
            except OSError:
                return hog

    def hog_goes(self) -> None:
        if isinstance(self.disk, SmallDisk):
            self.disk.capacity = SIZE
        (self.root.parent / "hog").unlink(missing_ok=True)


@pytest.fixture(params=["counted", "tmpfs"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    place = request.getfixturevalue("tmpfs") if request.param == "tmpfs" else tmp_path / "small"
    place.mkdir(exist_ok=True)
    disk = MachineDisk(place / "data") if request.param == "tmpfs" else SmallDisk(place / "data")
    made = Node(place / "data", disk, tmp_path / "keys")
    await made.start()
    await made.engine.create_topic("orders", 1, {"retention.ms": "-1"})
    yield made
    made.hog_goes()
    await made.stop()


async def test_records_are_refused_and_reads_go_on(node: Node) -> None:
    assert (node.root / RESERVE_PATH).stat().st_size == MIB
    stored = await node.fill()
    assert stored > 100
    with pytest.raises(DiskFull) as refused:
        await node.publish()
    assert refused.value.needed_bytes == MIB
    assert "the disk is full" in (node.engine.append_problem() or "")
    assert (node.engine.stats().disk_full, node.engine.stats().disk_full_times) == (Space.LOW, 1)
    assert (node.root / RESERVE_PATH).exists(), "refused before the disk refuses"
    assert await node.count() == stored
    # Positions and acknowledgements of readers are kept as long as there is some space.
    await node.engine.append([], changes=[StateChange(StateSpace.POSITION, b"reader", b"7")])
    assert node.engine.state(StateSpace.POSITION, b"reader") == b"7"


async def test_deleted_records_make_space_and_appends_go_on(node: Node) -> None:
    stored = await node.fill()
    await node.engine.delete_records("orders", 0, stored // 2)
    await node.publishes_again()
    assert node.engine.append_problem() is None
    assert await node.count() == stored - stored // 2 + 1


async def test_a_deleted_topic_makes_space(node: Node) -> None:
    await node.engine.create_topic("kept", 1, {})
    await node.publish("kept")
    await node.fill()
    await node.engine.delete_topic("orders")
    await node.publishes_again("kept")
    assert await node.count("kept") == 2


async def test_shorter_retention_makes_space(node: Node) -> None:
    await node.fill()
    await node.engine.alter_topic("orders", configs={"retention.bytes": str(2 * MIB)})
    await node.publishes_again()


async def test_again_and_again(node: Node) -> None:
    for _ in range(4):
        await node.fill()
        await node.engine.delete_records("orders", 0, -1)
        await node.publishes_again()
    assert node.engine.stats().disk_full_times >= 4
    await node.start()
    assert await node.count() == 1
    assert node.engine.damage() == []


async def test_with_not_one_byte_left_the_reserve_is_given_back(node: Node) -> None:
    """Somebody else fills the disk between two looks."""
    await node.start(space_check_ms=3_600_000)
    for _ in range(20):
        await node.publish()
    node.hog()
    await node.fill()
    stored = await node.count()
    await node.engine.delete_records("orders", 0, 5)
    await node.engine.create_topic("audit", 1, {})
    await node.engine.delete_topic("audit")
    assert await node.count() == stored - 5
    assert node.engine.stats().disk_full == Space.NONE
    with pytest.raises(DiskFull):
        await node.engine.append([], changes=[StateChange(StateSpace.POSITION, b"reader", b"7")])
    await node.engine.append([], changes=[StateChange(StateSpace.POSITION, b"reader", None)])
    node.hog_goes()
    await node.publishes_again()
    assert (node.root / RESERVE_PATH).stat().st_size == MIB
    await node.start()
    assert await node.count() == stored - 5 + 1
    assert node.engine.damage() == []


async def test_a_node_starts_on_a_full_disk(node: Node) -> None:
    for _ in range(20):
        await node.publish()
    await node.stop()
    node.hog()
    await node.start()
    assert await node.count() == 20
    await node.fill()
    await node.engine.delete_topic("orders")
    node.hog_goes()
    await node.engine.create_topic("orders", 1, {})
    await node.publishes_again()


async def test_a_quota_does_not_show_in_the_free_space(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "data", 4 * MIB)
    node = Node(tmp_path / "data", disk, tmp_path / "keys")
    await node.start()
    await node.engine.create_topic("orders", 1, {})
    disk.says_free = 1 << 40
    stored = await node.fill()
    assert node.reserved_bytes() == 0  # it is there for a moment each time that it is tried
    for _ in range(20):  # what is said to be free is not believed: the reserve cannot be had
        await asyncio.sleep(0.002)
        assert node.engine.append_problem() is not None
    await node.engine.delete_records("orders", 0, stored)
    await node.publishes_again()
    assert node.reserved_bytes() > 0
    await node.stop()


async def test_a_limit_on_files_refuses_and_is_no_end(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the kernel itself refuses the write (EFBIG); a new journal file takes over."""
    node = Node(tmp_path / "data", MachineDisk(tmp_path / "data"), tmp_path / "keys")
    await node.start(journal_file_bytes=64 * MIB)
    await node.engine.create_topic("orders", 1, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 * KIB, before[1]))
    stored = 0
    try:
        for _ in range(20):
            try:
                await node.publish()
                stored += 1
            except Exception:
                async with asyncio.timeout(30):
                    while node.engine.append_problem() is not None:  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 15 < stored < 20
    assert await node.count() == stored
    await node.start()
    assert await node.count() == stored
    await node.stop()


# -- alone --------------------------------------------------------------------------------------------------------------------


class Watched:
    """`DiskSpace` over a disk of a given size."""

    def __init__(self, root: Path, capacity: int) -> None:
        seams = MachineSeams(root)
        self.disk = SmallDisk(root, capacity)
        seams.disk = self.disk
        self.space = DiskSpace(seams, LogOptions(reserve_bytes=1000))

    async def free(self, size: int) -> Space:
        """So much besides the reserve, if one is made."""
        for _ in range(2):
            self.disk.capacity = self.disk._used() + size
            await self.space.look()
        return self.space.space


async def test_a_roomy_disk_keeps_no_reserve(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 1 << 40)
    assert await watched.free(1 << 40) is Space.PLENTY
    assert not watched.disk.exists(RESERVE_PATH)
    assert await watched.free((4 << 30) - 1) is Space.PLENTY
    assert watched.disk.exists(RESERVE_PATH)


async def test_levels_and_the_way_back(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 10_000)
    sizes = (5_000, 1_000, 999, 1_000, 1_249, 1_250, 499, 1_249, 1_250)
    seen = [await watched.free(size) for size in sizes]
    expected = ("PLENTY", "PLENTY", "LOW", "LOW", "LOW", "PLENTY", "NONE", "LOW", "PLENTY")
    assert [space.name for space in seen] == list(expected)
    assert watched.space.times_full == 2


async def test_what_is_written_counts_between_two_looks(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 10_000)
    await watched.free(5_000)
    watched.space.spent(4_000)
    watched.space.require(records=True)
    watched.space.spent(1)
    with pytest.raises(DiskFull) as refused:
        watched.space.require(records=True)
    assert (refused.value.free_bytes, refused.value.needed_bytes) == (999, 1_000)
    watched.space.require(records=False)


async def test_a_merge_does_not_take_what_is_kept_back(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 10_000)
    await watched.free(5_000)
    assert watched.space.room_for(4_000)
    assert not watched.space.room_for(4_001)


async def test_a_reserve_cut_off_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 100_000)
    (tmp_path / RESERVE_PATH).write_bytes(bytes(10))
    await watched.free(5_000)
    assert (tmp_path / RESERVE_PATH).stat().st_size == 1000


async def test_after_a_refusal_only_a_reserve_proves_that_there_is_space(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 10_000)
    await watched.free(5_000)
    await watched.space.refused()
    assert not watched.disk.exists(RESERVE_PATH)
    assert await watched.free(0) is Space.NONE
    assert await watched.free(1_999) is Space.NONE
    assert watched.space.problem().needed_bytes == 2_000
    assert await watched.free(4_000) is Space.PLENTY
    assert watched.disk.exists(RESERVE_PATH)


async def test_without_a_reserve_only_the_disk_refuses(tmp_path: Path) -> None:
    seams = MachineSeams(tmp_path)
    seams.disk = SmallDisk(tmp_path, 10)
    space = DiskSpace(seams, LogOptions(reserve_bytes=0))
    space.prepare()
    levels: list[Space] = []
    for step in (space.look, space.refused, space.look):
        await step()
        levels.append(space.space)
    assert levels == [Space.PLENTY, Space.NONE, Space.PLENTY]
