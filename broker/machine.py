"""The real seams: this machine's clock, randomness, disk, RocksDB and threads. No other module of the broker touches them."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from rocksdict import AccessType, DBCompressionType, DBRecoveryMode, Options, Rdict, WriteBatch, WriteOptions

from broker.errors import FolderInUse, StorageDamaged
from broker.seams import Buffer

if sys.byteorder != "little":
    raise ImportError("the log's columns are little-endian (decision 0001); this machine is not")

Result = TypeVar("Result")
IOV_MAX = os.sysconf("SC_IOV_MAX")
READ_WORKERS = 2
READ_NOW = getattr(os, "RWF_NOWAIT", 0)  # Linux 4.14: bytes that are in the page cache, no disk asked
FOLDER_MODE = 0o700
FILE_MODE = 0o600


COLLECT_AFTER_OBJECTS = 10_000
COLLECT_MIDDLE_AFTER, COLLECT_ALL_AFTER = 20, 100


def calm_collector() -> None:
    """Have Python look for reference cycles after 10,000 new objects instead of 700, and never among those that are there now.

    What a request makes is freed by its reference counts; the modules, tables and routes of a started node are not garbage. One
    durable append of one record cost 50 us with the defaults and 45 with this (`bench/append_path.py`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, COLLECT_MIDDLE_AFTER, COLLECT_ALL_AFTER)


class MachineClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


class MachineRandom:
    def bytes(self, count: int) -> bytes:
        return os.urandom(count)


class MachineFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write_at(self, position: int, buffers: Sequence[Buffer]) -> int:
        if len(buffers) <= IOV_MAX:
            return self._write_whole(position, buffers)
        total = 0
        for start in range(0, len(buffers), IOV_MAX):
            total += self._write_whole(position + total, buffers[start : start + IOV_MAX])
        return total

    def _write_whole(self, position: int, buffers: Sequence[Buffer]) -> int:
        size = sum(map(len, buffers))
        written = os.pwritev(self._descriptor, buffers, position)
        while written < size:  # a short write: a signal, or a disk that is nearly full
            rest = memoryview(b"".join(buffers))[written:]
            more = os.pwrite(self._descriptor, rest, position + written)
            if more == 0:
                raise OSError(f"the disk took {written} of {size} bytes")
            written += more
        return size

    def read_at(self, position: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, position)
        if len(data) == size:
            return data
        pieces = [data]
        got = len(data)
        while data and got < size:
            data = os.pread(self._descriptor, size - got, position + got)
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def read_now(self, position: int, into: memoryview) -> int:
        if not READ_NOW:
            return 0
        try:
            return os.preadv(self._descriptor, [into], position, READ_NOW)
        except OSError:  # nothing of it is in the page cache, or the file system does not know the flag: the read lane finds out
            return 0

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def allocate(self, size: int) -> None:
        os.posix_fallocate(self._descriptor, 0, size)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class MachineDisk:
    """A folder of this machine. Files are 0600, folders 0700."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def open(self, path: str, *, create: bool = False) -> MachineFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        return MachineFile(os.open(self.root / path, flags, FILE_MODE))

    def list(self, folder: str) -> list[str]:
        path = self.root / folder
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def exists(self, path: str) -> bool:
        return (self.root / path).exists()

    def make_folder(self, folder: str) -> None:
        (self.root / folder).mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def rename(self, source: str, target: str) -> None:
        (self.root / source).replace(self.root / target)

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def sync_folder(self, folder: str) -> None:
        descriptor = os.open(self.root / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self) -> int:
        stats = os.statvfs(self.root)
        return stats.f_bavail * stats.f_frsize

    def lock(self, path: str, holder: str) -> Callable[[], None]:
        descriptor = os.open(self.root / path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise FolderInUse(str(self.root), other or "another process") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        return lambda: os.close(descriptor)


class RocksStore:
    """RocksDB through rocksdict, raw bytes. Never `sync=True`: it holds the GIL; `flush_wal(True)` releases it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        options = Options(raw_mode=True)
        options.create_if_missing(not read_only)
        options.set_compression_type(DBCompressionType.none())  # values are sealed: nothing to gain
        # The default, point-in-time, opens after a flipped bit and drops everything behind it (storage measurements, section B).
        options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
        options.set_write_buffer_size(4 * 1024 * 1024)
        options.set_max_background_jobs(2)
        options.set_keep_log_file_num(2)
        self._db = Rdict(str(path), options, access_type=AccessType.read_only() if read_only else AccessType.read_write())
        self._write_options = WriteOptions()

    def get(self, key: bytes) -> bytes | None:
        """StorageDamaged when its block does not check."""
        try:
            found: bytes | None = self._db.get(key)
        except Exception as problem:
            raise self._damaged(problem) from problem
        return found

    def items(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """StorageDamaged when a block does not check: `Rdict.items` ends there as if that were all, so status is asked for."""
        rows = self._db.iter()
        try:
            rows.seek(prefix)
            while rows.valid() and cast("bytes", rows.key()).startswith(prefix):
                yield cast("bytes", rows.key()), cast("bytes", rows.value())
                rows.next()
            rows.status()
        except Exception as problem:
            raise self._damaged(problem) from problem
        finally:
            del rows  # the error's traceback would keep it, and with it the lock that a rebuild needs

    def _damaged(self, problem: Exception) -> StorageDamaged:
        return StorageDamaged(str(self._path), f"RocksDB does not read it ({problem})")

    def write(self, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes] = ()) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in puts:
            batch.put(key, value)
        for key in deletes:
            batch.delete(key)
        self._on_disk(lambda: self._db.write(batch, self._write_options))

    def flush(self) -> None:
        self._on_disk(lambda: self._db.flush_wal(True))

    @staticmethod
    def _on_disk(work: Callable[[], None]) -> None:
        """rocksdict raises bare Exception; what a disk refuses is OSError everywhere else."""
        try:
            work()
        except Exception as problem:
            raise OSError(f"RocksDB: {problem}") from problem

    def close(self) -> None:
        self._db.close()


class MachineStores:
    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, folder: str) -> RocksStore:
        try:
            return RocksStore(self._root / folder)
        except Exception as problem:  # rocksdict raises bare Exception for everything
            raise StorageDamaged(str(self._root / folder), f"RocksDB does not open it ({problem})") from problem

    def open_for_reading(self, folder: str) -> RocksStore:
        """The same without changing a byte of it, not even by what a start would tidy up."""
        try:
            return RocksStore(self._root / folder, read_only=True)
        except Exception as problem:
            raise StorageDamaged(str(self._root / folder), f"RocksDB does not open it ({problem})") from problem

    def destroy(self, folder: str) -> None:
        shutil.rmtree(self._root / folder, ignore_errors=True)


class _Lane:
    """Worker threads of one lane; with one of them, work runs in order."""

    def __init__(self, name: str, workers: int) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], Any], future: asyncio.Future[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._queue.put((work, future, loop))

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            work, future, loop = item
            try:
                result, error = work(), None
            except BaseException as raised:  # handed to the owner thread, whatever it is
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop was closed while this ran: nobody is left to hear of it
                return

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class MachineExecutor:
    """A thread a lane, more for reads; threads start with the lane's first work."""

    def __init__(self, read_workers: int = READ_WORKERS) -> None:
        self._lanes: dict[str, _Lane] = {}
        self._read_workers = read_workers

    def run(self, lane: str, work: Callable[[], Result]) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        found = self._lanes.get(lane)
        if found is None:
            found = self._lanes[lane] = _Lane(lane, self._read_workers if lane == "read" else 1)
        found.submit(work, future, loop)
        return future

    def close(self) -> None:
        """Waits for work that runs; blocking."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()


class MachineSeams:
    """All seams over one data folder."""

    def __init__(self, data_folder: Path) -> None:
        self.clock = MachineClock()
        self.random = MachineRandom()
        self.disk = MachineDisk(data_folder)
        self.stores = MachineStores(data_folder)
        self.executor = MachineExecutor()
