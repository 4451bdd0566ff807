"""The real seams: disk, RocksDB, executor lanes and the folder's lock of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker.errors import FolderInUse, StorageDamaged
from broker.machine import (
    IOV_MAX,
    READ_WORKERS,
    MachineClock,
    MachineDisk,
    MachineExecutor,
    MachineRandom,
    MachineStores,
    RocksStore,
)

HANG_S = 20


@pytest.fixture
def disk(tmp_path: Path) -> MachineDisk:
    return MachineDisk(tmp_path / "data")


# -- clock and randomness -------------------------------------------------------------------------------------------------


def test_clocks_are_in_milliseconds_and_the_monotonic_one_never_goes_back() -> None:
    clock = MachineClock()
    assert 1_700_000_000_000 < clock.now_ms() < 10_000_000_000_000
    seen = [clock.monotonic_ms() for _ in range(100)]
    assert seen == sorted(seen)


def test_random_bytes_have_the_length_asked_for_and_differ() -> None:
    random = MachineRandom()
    assert [len(random.bytes(count)) for count in (0, 1, 16, 60)] == [0, 1, 16, 60]
    assert len({random.bytes(16) for _ in range(50)}) == 50


# -- disk -----------------------------------------------------------------------------------------------------------------


def test_a_new_folder_and_its_files_are_the_owners_alone(disk: MachineDisk) -> None:
    disk.make_folder("deep/er")
    disk.open("deep/er/file", create=True).close()
    assert disk.root.stat().st_mode & 0o777 == 0o700
    assert (disk.root / "deep" / "er").stat().st_mode & 0o777 == 0o700
    assert (disk.root / "deep" / "er" / "file").stat().st_mode & 0o777 == 0o600


def test_buffers_are_written_one_after_the_other_and_read_back(disk: MachineDisk) -> None:
    file = disk.open("file", create=True)
    assert file.write_at(3, [b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3]]) == 6
    assert file.size() == 9
    assert file.read_at(0, 100) == b"\0\0\0abcdef"
    assert file.read_at(5, 2) == b"cd"
    assert file.read_at(9, 5) == b""
    file.sync()
    file.close()


def test_more_buffers_than_one_call_takes(disk: MachineDisk) -> None:
    file = disk.open("file", create=True)
    buffers = [b"%d," % number for number in range(2 * IOV_MAX + 7)]
    assert file.write_at(0, buffers) == len(b"".join(buffers))
    assert file.read_at(0, file.size()) == b"".join(buffers)
    file.close()


def test_a_short_write_is_continued(disk: MachineDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    file = disk.open("file", create=True)
    real_pwritev, real_pwrite = os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: real_pwritev(fd, [b"".join(buffers)[:3]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, rest, at: real_pwrite(fd, bytes(rest)[:2], at))
    assert file.write_at(1, [b"abcd", b"efgh"]) == 8
    assert file.read_at(1, 8) == b"abcdefgh"
    file.close()


def test_a_disk_that_takes_nothing_more_is_an_error(disk: MachineDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    file = disk.open("file", create=True)
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: real(fd, [b"".join(buffers)[:3]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, rest, at: 0)
    with pytest.raises(OSError, match="the disk took 3 of 8 bytes"):
        file.write_at(0, [b"abcdefgh"])
    file.close()


def test_short_reads_are_continued(disk: MachineDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    file = disk.open("file", create=True)
    file.write_at(0, [b"abcdefgh"])
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 3), at))
    assert file.read_at(1, 100) == b"bcdefgh"
    file.close()


def test_create_refuses_a_file_that_exists_and_open_one_that_does_not(disk: MachineDisk) -> None:
    disk.open("file", create=True).close()
    with pytest.raises(FileExistsError):
        disk.open("file", create=True)
    with pytest.raises(FileNotFoundError):
        disk.open("other")


def test_truncate_rename_remove_and_list(disk: MachineDisk) -> None:
    for name in ("b", "a"):
        file = disk.open(name, create=True)
        file.write_at(0, [name.encode() * 10])
        file.truncate(4)
        file.close()
    assert disk.list("") == ["a", "b"]
    assert disk.list("nowhere") == []
    disk.rename("a", "b")
    assert disk.list("") == ["b"]
    assert (disk.root / "b").read_bytes() == b"aaaa"
    disk.sync_folder("")
    assert disk.exists("b")
    disk.remove("b")
    assert not disk.exists("b")
    with pytest.raises(FileNotFoundError):
        disk.remove("b")


def test_free_bytes_are_those_of_the_file_system(disk: MachineDisk) -> None:
    assert 0 < disk.free_bytes() <= shutil.disk_usage(disk.root).total


# -- lock -----------------------------------------------------------------------------------------------------------------


def test_the_lock_is_held_by_one_and_names_the_holder(disk: MachineDisk) -> None:
    unlock = disk.lock("LOCK", "node one, process 5")
    with pytest.raises(FolderInUse, match="in use by node one, process 5") as refusal:
        MachineDisk(disk.root).lock("LOCK", "another")
    assert refusal.value.holder == "node one, process 5"
    unlock()
    unlock = disk.lock("LOCK", "two")
    assert (disk.root / "LOCK").read_text() == "two", "nothing is left of a longer name"
    unlock()


def test_a_killed_process_leaves_no_lock(disk: MachineDisk) -> None:
    code = (
        "import sys, time, pathlib; from broker.machine import MachineDisk;"
        "MachineDisk(pathlib.Path(sys.argv[1])).lock('LOCK', 'the other process'); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(disk.root)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUse, match="the other process"):
            disk.lock("LOCK", "us")
    finally:
        other.kill()
        other.communicate(timeout=HANG_S)
    disk.lock("LOCK", "us")()


# -- keyed store ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stores(tmp_path: Path) -> MachineStores:
    return MachineStores(tmp_path)


def test_a_write_is_read_back_in_key_order_by_prefix(stores: MachineStores) -> None:
    store = stores.open("view")
    store.write([(b"\x02b", b"2"), (b"\x01z", b"1"), (b"\x02a", b"3"), (b"\x03", b"4")])
    assert list(store.items(b"")) == [(b"\x01z", b"1"), (b"\x02a", b"3"), (b"\x02b", b"2"), (b"\x03", b"4")]
    assert list(store.items(b"\x02")) == [(b"\x02a", b"3"), (b"\x02b", b"2")]
    assert list(store.items(b"\x09")) == []
    assert store.get(b"\x02a") == b"3"
    assert store.get(b"\x02") is None
    store.write([(b"\x02a", b"new")], [b"\x03", b"never there"])
    assert store.get(b"\x02a") == b"new"
    assert store.get(b"\x03") is None
    store.close()


def test_what_was_flushed_is_there_when_the_store_opens_again(stores: MachineStores) -> None:
    for number in range(3):
        store = stores.open("view")
        assert len(list(store.items(b""))) == number
        store.write([(b"%d" % number, b"v")])
        store.flush()
        store.close()


def test_an_open_store_is_not_opened_twice(stores: MachineStores) -> None:
    store = stores.open("view")
    with pytest.raises(StorageDamaged, match="RocksDB does not open it"):
        stores.open("view")
    store.close()


def test_flushed_writes_survive_a_kill(stores: MachineStores, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from broker.machine import MachineStores\n"
        "store = MachineStores(pathlib.Path(sys.argv[1])).open('view')\n"
        "for number in range(100000):\n"
        "    store.write([(b'%08d' % number, b'v' * 50), (b'last', b'%08d' % number)])\n"
        "    store.flush(); print(number, flush=True)\n"
    )
    for _ in range(2):
        other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert other.stdout is not None
        told = [other.stdout.readline() for _ in range(50)]
        other.kill()
        told += other.communicate(timeout=HANG_S)[0].splitlines(keepends=True)
        acknowledged = max(int(line) for line in told if line.endswith(b"\n"))
        store = stores.open("view")
        rows = dict(store.items(b""))
        assert int(rows[b"last"]) >= acknowledged, "a write is there whole, with all before it"
        assert len(rows) >= acknowledged + 2
        store.close()


def damaged(stores: MachineStores, tmp_path: Path) -> list[Path]:
    store = stores.open("view")
    store.write([(b"%04d" % number, os.urandom(60)) for number in range(300)])
    store.flush()
    store.close()
    return list((tmp_path / "view").glob("*.sst"))


def test_a_flipped_bit_is_refused_and_never_read_as_fewer_rows(stores: MachineStores, tmp_path: Path) -> None:
    (table,) = damaged(stores, tmp_path)
    shutil.copytree(tmp_path / "view", tmp_path / "kept")
    whole = table.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 25)):
        shutil.rmtree(tmp_path / "view")
        shutil.copytree(tmp_path / "kept", tmp_path / "view")
        table.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert rows_or_refusal(stores) in (300, "refused"), f"byte {at}"


def rows_or_refusal(stores: MachineStores) -> int | str:
    try:
        store = stores.open("view")
    except StorageDamaged:
        return "refused"
    try:
        return len(list(store.items(b"")))
    except StorageDamaged:
        return "refused"
    finally:
        store.close()


def test_a_store_that_is_damaged_can_be_destroyed_and_opened_anew(stores: MachineStores, tmp_path: Path) -> None:
    (table,) = damaged(stores, tmp_path)
    data = bytearray(table.read_bytes())
    data[30] ^= 1
    table.write_bytes(data)
    store = stores.open("view")
    with pytest.raises(StorageDamaged, match="RocksDB does not read it"):
        list(store.items(b""))
    with pytest.raises(StorageDamaged, match="RocksDB does not read it"):
        store.get(b"0000")
    store.close()
    stores.destroy("view")
    again = stores.open("view")
    assert list(again.items(b"")) == []
    again.close()
    stores.destroy("never made")


def test_what_the_disk_refuses_is_an_os_error(stores: MachineStores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.open("view")

    class Failing:
        def write(self, *_: object) -> None:
            raise Exception("IO error: no space")  # as rocksdict does

        flush_wal = write

    real, store._db = store._db, Failing()  # type: ignore[assignment]
    calls: list[Callable[[], None]] = [lambda: store.write([(b"k", b"v")]), store.flush]
    for call in calls:
        with pytest.raises(OSError, match="RocksDB: IO error: no space"):
            call()
    store._db = real
    store.close()


def test_values_are_not_compressed_and_the_store_is_no_magnet_for_folders(stores: MachineStores, tmp_path: Path) -> None:
    store: RocksStore = stores.open("view")
    store.write([(b"k", bytes(5000))])
    store.flush()
    store.close()
    assert sum(path.stat().st_size for path in (tmp_path / "view").glob("*.sst")) > 5000


# -- executor -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def executor() -> AsyncIterator[MachineExecutor]:
    made = MachineExecutor()
    yield made
    made.close()


async def test_a_lane_runs_its_work_in_order_off_the_owner_thread(executor: MachineExecutor) -> None:
    done: list[tuple[int, str]] = []

    def work(number: int) -> Callable[[], int]:
        def run() -> int:
            done.append((number, threading.current_thread().name))
            return number

        return run

    results = await asyncio.gather(*(executor.run("commit", work(number)) for number in range(200)))
    assert results == list(range(200))
    assert done == [(number, "commit-0") for number in range(200)]


async def test_lanes_do_not_wait_for_each_other(executor: MachineExecutor) -> None:
    go = threading.Event()
    held = executor.run("background", lambda: go.wait(HANG_S))
    assert await executor.run("commit", lambda: 5) == 5
    await executor.run("commit", go.set)
    assert await held


async def test_reads_run_beside_each_other(executor: MachineExecutor) -> None:
    together = threading.Barrier(READ_WORKERS)
    await asyncio.gather(*(executor.run("read", lambda: together.wait(HANG_S)) for _ in range(READ_WORKERS)))


async def test_an_error_arrives_where_the_work_was_asked_for(executor: MachineExecutor) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        await executor.run("commit", fail)
    assert await executor.run("commit", lambda: "goes on") == "goes on"


async def test_cancelling_the_waiter_leaves_the_lane_alive(executor: MachineExecutor) -> None:
    go = threading.Event()
    waiting = executor.run("commit", lambda: go.wait(HANG_S))
    waiting.cancel()
    go.set()
    assert await executor.run("commit", lambda: "next") == "next"


async def test_close_waits_for_work_that_runs() -> None:
    executor, done = MachineExecutor(), []
    future = executor.run("commit", lambda: done.append("done"))
    executor.close()
    assert done == ["done"]
    await future


def test_what_is_in_the_page_cache_is_read_without_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MachineDisk(tmp_path).open("a", create=True)
    file.write_at(0, [b"0123456789"])
    into = bytearray(4)
    assert file.read_now(3, memoryview(into)) in (0, 4)  # 0: the file system of this folder cannot tell
    assert bytes(into) in (bytes(4), b"3456")
    assert file.read_now(8, memoryview(into)) in (0, 2)
    assert file.read_now(100, memoryview(into)) == 0
    monkeypatch.setattr("broker.machine.READ_NOW", 0)  # another system than Linux
    assert file.read_now(3, memoryview(into)) == 0
    file.close()
    monkeypatch.undo()
    assert file.read_now(3, memoryview(into)) == 0  # no error: the read lane finds out
