"""A disk that forgets what was not synced, and the page cache in front of it.

`Media` outlives the process. Each file has two contents: `cache`, what everybody reads while the machine is on, and `media`,
what is left after a power cut. Between the two lie the changes since the last sync. At a cut each of them is, by the seed,
lost, kept, torn to a prefix, or torn to any subset of its 512-byte sectors; a later change may survive where an earlier one is
lost. What a sector holds afterwards is one of the states it had in the page cache since the last sync, which is what hardware
can do; the bytes of a neighbouring synced sector are never touched (powersafe overwrite, SQLite's term). The file's size comes
back anywhere between what was synced and what was written. Names are the same one level up: what happened in a folder since its
last sync survives entry by entry, a rename as a whole or not at all.

A failed sync follows Linux since the fsyncgate thread of 2018: the error is reported once, the pages are marked clean whether
they reached the media or not, and the next sync succeeds without writing them.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from broker.errors import FolderInUse
from broker.seams import Buffer
from tests.simulation.faults import Faults, Verdict
from tests.simulation.trace import Trace

SECTOR_BYTES = 512
Watch = Callable[[str, bytes], None]


class Change(NamedTuple):
    """A write of `data` at `position`, or, with `data` None, a truncate to `position`."""

    position: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.position :]
            content.extend(bytes(self.position - len(content)))
            return
        content.extend(bytes(max(0, self.position - len(content))))
        content[self.position : self.position + len(self.data)] = self.data

    def sectors(self) -> range:
        length = 0 if self.data is None else len(self.data)
        return range(self.position // SECTOR_BYTES, -(-(self.position + length) // SECTOR_BYTES))


class Inode:
    """One file: the page cache, the media, and the way from one to the other."""

    __slots__ = ("_origin", "cache", "media", "pending")

    def __init__(self) -> None:
        self.cache = bytearray()
        self.media = bytearray()
        self.pending: list[Change] = []
        self._origin: bytearray | None = None  # the cache when `pending` began, where it was not the media (after a failed sync)

    def change(self, change: Change) -> None:
        change.apply(self.cache)
        self.pending.append(change)

    def sync(self) -> None:
        if self._origin is None:
            for change in self.pending:
                change.apply(self.media)
        else:
            self._write_back()
        self.pending.clear()

    def fail_sync(self, random: random.Random, trace: Trace) -> None:
        """The pages are clean now, written or not; readers may still see what the media does not have."""
        self._settle(random, trace)
        self._origin = bytearray(self.cache)
        self.pending.clear()
        if random.random() < 0.5:  # memory pressure: the clean pages are dropped, reads come from the media again
            trace.count("pages dropped after a failed sync")
            self.cache = bytearray(self.media)
            self._origin = None

    def lose_power(self, random: random.Random, trace: Trace, mode: str) -> None:
        if self.pending and mode != "lost":
            self._settle(random, trace)
        self.cache = bytearray(self.media)
        self.pending.clear()
        self._origin = None

    def flip(self, position: int, bit: int) -> None:
        self.media[position] ^= 1 << bit
        if position < len(self.cache):
            self.cache[position] ^= 1 << bit

    def _write_back(self) -> None:
        """A sync after a failed one: only pages dirtied since then are written, with what the cache now holds."""
        for change in self.pending:
            if change.data is None:
                change.apply(self.media)
            else:
                for sector in change.sectors():
                    self._copy_sector(sector, self.cache)
        self._origin = bytearray(self.cache)

    def _copy_sector(self, sector: int, source: bytearray) -> None:
        start = sector * SECTOR_BYTES
        data = source[start : start + SECTOR_BYTES]
        if data:
            Change(start, bytes(data)).apply(self.media)

    def _settle(self, random: random.Random, trace: Trace) -> None:
        """Let chance decide what of the pending changes is on the media."""
        synced_size, lost_before = len(self.media), False
        replay = bytearray(self.media if self._origin is None else self._origin)
        for change in self.pending:
            change.apply(replay)
            fate = random.choice(("lost", "kept", "torn to a prefix", "torn to sectors"))
            if change.data is None:
                if fate == "kept":
                    change.apply(self.media)
                continue
            trace.count(f"unsynced write {fate}")
            if fate != "lost" and lost_before:
                trace.count("unsynced writes reordered")
            lost_before |= fate != "kept"
            self._land(change, fate, replay, random)
        if all(change.data is not None for change in self.pending):
            self._settle_size(synced_size, random, trace)

    def _land(self, change: Change, fate: str, replay: bytearray, random: random.Random) -> None:
        if fate == "kept":
            chosen: Sequence[int] = change.sectors()
        elif fate == "torn to sectors":
            chosen = [sector for sector in change.sectors() if random.random() < 0.5]
        elif fate == "torn to a prefix":
            assert change.data is not None
            end = change.position + random.randrange(len(change.data) + 1)
            chosen = range(change.position // SECTOR_BYTES, end // SECTOR_BYTES)
            rest = end // SECTOR_BYTES * SECTOR_BYTES
            Change(rest, bytes(replay[rest:end])).apply(self.media)
        else:
            return
        for sector in chosen:
            self._copy_sector(sector, replay)

    def _settle_size(self, synced_size: int, random: random.Random, trace: Trace) -> None:
        fate = random.choice(("follows the data", "follows the data", "lost", "ahead of the data"))
        if fate == "lost" and len(self.media) > synced_size:
            trace.count("unsynced file size lost")
            del self.media[random.randint(synced_size, len(self.media)) :]
        elif fate == "ahead of the data" and len(self.media) < len(self.cache):
            trace.count("unsynced file size ahead of the data")
            self.media.extend(bytes(len(self.cache) - len(self.media)))


class NameChange(NamedTuple):
    """An entry made (`inode` at `path`, None for a folder), moved (`source` to `path`) or removed (`path`)."""

    kind: str
    path: str
    inode: Inode | None = None
    source: str = ""

    def apply(self, names: dict[str, Inode | None]) -> None:
        if self.kind == "remove":
            names.pop(self.path, None)
            return
        names.pop(self.source, None)
        names[self.path] = self.inode


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def normal(path: str) -> str:
    return "" if path in ("", ".") else path.strip("/")


CAPACITY_BYTES = 1 << 30


class Media:
    """What outlives the process: names, files and changes to both that no sync has covered. A folder is a name without inode."""

    def __init__(self, random: random.Random, trace: Trace, *, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self.names: dict[str, Inode | None] = {}
        self.lock_holder: str | None = None
        self._durable: dict[str, Inode | None] = {}
        self._pending: list[NameChange] = []
        self._random = random
        self._trace = trace

    def rename_entry(self, change: NameChange) -> None:
        change.apply(self.names)
        self._pending.append(change)

    def sync_folder(self, folder: str) -> None:
        for change in self._pending:
            if folder_of(change.path) == folder:
                change.apply(self._durable)
        self._pending = [change for change in self._pending if folder_of(change.path) != folder]

    def lose_power(self, mode: str | None = None) -> None:
        """Only what was synced is sure; the rest is up to the seed, or all of it is "lost"."""
        mode = mode or self._random.choice(("mixed", "mixed", "lost", "kept"))
        for change in self._pending:
            survives = mode == "kept" or (mode == "mixed" and self._random.random() < 0.5)
            self._trace.count(f"unsynced {change.kind} {'kept' if survives else 'lost'}")
            if survives:
                change.apply(self._durable)
        self._pending.clear()
        self._durable = {path: inode for path, inode in self._durable.items() if self._reachable(path)}
        self.names = dict(self._durable)
        self.lock_holder = None
        for inode in self.names.values():
            if inode is not None:
                inode.lose_power(self._random, self._trace, mode)

    def files(self) -> list[str]:
        """Paths of all files, sorted."""
        return sorted(path for path, inode in self.names.items() if inode is not None)

    def used_bytes(self) -> int:
        return sum(len(inode.cache) for inode in self.names.values() if inode is not None)

    def content(self, path: str) -> bytes:
        """What is on the media."""
        inode = self.names[path]
        assert inode is not None
        return bytes(inode.media)

    def flip(self, path: str, positions: Sequence[int]) -> None:
        """Flip a bit at each of these positions of what is synced in a file."""
        inode = self.names[path]
        assert inode is not None
        for position in positions:
            inode.flip(position, self._random.randrange(8))
        self._trace.note("flip", path, positions)

    def replace(self, path: str, content: bytes, position: int = 0) -> None:
        """Put other bytes on the media, behind everybody's back."""
        inode = self.names[path]
        assert inode is not None
        for side in (inode.media, inode.cache):
            side[position : position + len(content)] = content
        self._trace.note("replace", path, position, len(content))

    def _reachable(self, path: str) -> bool:
        folder = folder_of(path)
        return not folder or (folder in self._durable and self._reachable(folder))


class SimulatedFile:
    def __init__(self, disk: SimulatedDisk, path: str, inode: Inode) -> None:
        self._disk, self._path, self._inode = disk, path, inode
        self._open = True

    def write_at(self, position: int, buffers: Sequence[Buffer]) -> int:
        data = b"".join(buffers)
        with self._disk.operation("write", self._path, self._open, position, len(data), zlib.crc32(data)) as verdict:
            room = self._disk.free_bytes() - max(0, position + len(data) - len(self._inode.cache))
            if verdict.error is not None or room < 0:
                landed = data[: int(len(data) * verdict.landed)]
                if landed:
                    self._inode.change(Change(position, landed))
                raise verdict.error or OSError(28, "No space left on device")
            self._disk.watch(self._path, data)
            if data:
                self._inode.change(Change(position, data))
        return len(data)

    def read_at(self, position: int, size: int) -> bytes:
        self._disk.check(self._path, self._open)
        return bytes(self._inode.cache[position : position + size])

    def read_now(self, position: int, into: memoryview) -> int:
        data = self.read_at(position, len(into))
        into[: len(data)] = data
        return len(data)

    def size(self) -> int:
        self._disk.check(self._path, self._open)
        return len(self._inode.cache)

    def truncate(self, size: int) -> None:
        with self._disk.operation("truncate", self._path, self._open, size) as verdict:
            if verdict.error is not None:
                raise verdict.error
            self._inode.change(Change(size, None))

    def allocate(self, size: int) -> None:
        """Takes the room; like the real call it may find none, and leave what it had got."""
        with self._disk.operation("write", self._path, self._open, "allocate", size) as verdict:
            more = size - len(self._inode.cache)
            if verdict.error is not None or self._disk.free_bytes() < more:
                raise verdict.error or OSError(28, "No space left on device")
            self._inode.change(Change(len(self._inode.cache), bytes(more)))

    def sync(self) -> None:
        with self._disk.operation("sync", self._path, self._open) as verdict:
            if verdict.error is not None:
                self._inode.fail_sync(self._disk.random, self._disk.trace)
                raise verdict.error
            self._inode.sync()

    def close(self) -> None:
        self._disk.check(self._path, True)
        self._open = False


class _Operation:
    """The power may fail on either side of an operation."""

    def __init__(self, faults: Faults, kind: str, path: str) -> None:
        self._faults = faults
        self._verdict = faults.meet(kind, path)

    def __enter__(self) -> Verdict:
        if self._verdict.cut_before:
            self._faults.cut()
        return self._verdict

    def __exit__(self, *_: object) -> None:
        if self._verdict.cut_after:
            self._faults.cut()


class SimulatedDisk:
    """`broker.seams.Disk` for one life of the process: after a cut, every call raises PowerCut for ever."""

    def __init__(self, media: Media, faults: Faults, random: random.Random, trace: Trace, watch: Watch) -> None:
        self._media = media
        self._faults = faults
        self.random = random
        self.trace = trace
        self.watch = watch

    def open(self, path: str, *, create: bool = False) -> SimulatedFile:
        path = normal(path)
        if not create:
            self.check(path, True)
            inode = self._media.names.get(path)
            if inode is None:
                raise FileNotFoundError(2, "No such file or directory", path)
            return SimulatedFile(self, path, inode)
        with self.operation("create", path, True) as verdict:
            if verdict.error is not None:
                raise verdict.error
            if path in self._media.names:
                raise FileExistsError(17, "File exists", path)
            self._need_folder(folder_of(path))
            inode = Inode()
            self._media.rename_entry(NameChange("create", path, inode))
            return SimulatedFile(self, path, inode)

    def list(self, folder: str) -> list[str]:
        folder = normal(folder)
        self.check(folder, True)
        return sorted(path.rpartition("/")[2] for path in self._media.names if folder_of(path) == folder)

    def exists(self, path: str) -> bool:
        self.check(path, True)
        return normal(path) == "" or normal(path) in self._media.names

    def make_folder(self, folder: str) -> None:
        folder = normal(folder)
        with self.operation("create", folder, True) as verdict:
            if verdict.error is not None:
                raise verdict.error
            parts = folder.split("/") if folder else []
            for depth in range(1, len(parts) + 1):
                part = "/".join(parts[:depth])
                if part not in self._media.names:
                    self._media.rename_entry(NameChange("create", part))

    def rename(self, source: str, target: str) -> None:
        source, target = normal(source), normal(target)
        assert folder_of(source) == folder_of(target), "a rename between folders needs two folder syncs: not modelled, not used"
        with self.operation("rename", source, True, target) as verdict:
            if verdict.error is not None:
                raise verdict.error
            inode = self._media.names.get(source)
            if inode is None:
                raise FileNotFoundError(2, "No such file or directory", source)
            self._media.rename_entry(NameChange("rename", target, inode, source))

    def remove(self, path: str) -> None:
        path = normal(path)
        with self.operation("remove", path, True) as verdict:
            if verdict.error is not None:
                raise verdict.error
            if path not in self._media.names:
                raise FileNotFoundError(2, "No such file or directory", path)
            self._media.rename_entry(NameChange("remove", path))

    def sync_folder(self, folder: str) -> None:
        folder = normal(folder)
        with self.operation("sync folder", folder, True) as verdict:
            if verdict.error is not None:
                raise verdict.error
            self._need_folder(folder)
            self._media.sync_folder(folder)

    def free_bytes(self) -> int:
        self.check("", True)
        return max(0, self._media.capacity_bytes - self._media.used_bytes())

    def lock(self, path: str, holder: str) -> Callable[[], None]:
        self.check(path, True)
        if self._media.lock_holder is not None:
            raise FolderInUse(folder_of(normal(path)) or ".", self._media.lock_holder)
        self._media.lock_holder = holder
        return self._unlock

    def operation(self, kind: str, path: str, is_open: bool, *facts: object) -> _Operation:
        if not is_open:
            raise OSError(9, "Bad file descriptor", path)
        operation = _Operation(self._faults, kind, path)
        self.trace.note(kind, path, *facts)
        return operation

    def check(self, path: str, is_open: bool) -> None:
        self._faults.alive()
        if not is_open:
            raise OSError(9, "Bad file descriptor", path)

    def _unlock(self) -> None:
        self._media.lock_holder = None

    def _need_folder(self, folder: str) -> None:
        if folder and self._media.names.get(folder, self) is not None:
            raise FileNotFoundError(2, "No such file or directory", folder)
