"""Finding and reading visible batches: by offset, by commit sequence, by key, by time. Memory first, then files.

Owner thread; file reads run on the read lane, at most `reads_in_flight_max` at once. A file is held from the moment one of its
batches is wanted until it is read, because a merge may replace it meanwhile.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from broker.batch import keys as keys_of
from broker.batch import offset_of_timestamp
from broker.engine.base import Stored
from broker.errors import DiskFailed
from broker.log.files import LogFile
from broker.log.footer import DamagedRange
from broker.log.index import BatchIndex
from broker.log.partition import Extent, PartitionLog
from broker.log.reader import ReadBack, Wanted, read_batches
from broker.log.store import LogStore

NOT_FOUND = (-1, -1)


class Found(NamedTuple):
    """Batches read, damage met (partition, range), and where to go on: an offset, or a commit sequence."""

    stored: list[Stored]
    damage: list[tuple[int, DamagedRange]]
    reached: int


class _Held:
    """Files held while their batches are looked up and read."""

    def __init__(self) -> None:
        self._files: dict[LogFile, None] = {}

    def add(self, file: LogFile) -> None:
        if file not in self._files:
            file.hold()
            self._files[file] = None

    def all_of(self, log: PartitionLog) -> list[Extent]:
        """The partition's extents as they are now, every file held before anything is awaited: a merge may replace them."""
        extents = list(log.extents)
        for extent in extents:
            self.add(extent.file)
        return extents

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.release()


class Lookup:
    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._reads = asyncio.Semaphore(store.options.reads_in_flight_max)
        self.file_reads = 0

    # -- by offset --------------------------------------------------------------------------------------------------------

    async def from_offset(self, log: PartitionLog, offset: int, bytes_max: int) -> Found:
        """Batches that hold or follow `offset`, up to `bytes_max` (at least one)."""
        recent = log.ring.from_offset(offset)
        if recent is not None:
            taken = _up_to(recent, bytes_max)
            return Found(taken, [], taken[-1].next_offset if taken else offset)
        with _Held() as held:
            wanted, reached = await self._places_from_offset(log, offset, bytes_max, held)
            read = await self._read(wanted)
        _remember([log], read)
        damage = [(log.partition, d) for d in log.damage() if d.end > offset and d.start < reached]
        return Found(_undamaged(read.stored, damage), damage, reached)

    async def _places_from_offset(self, log: PartitionLog, offset: int, bytes_max: int, held: _Held) -> tuple[list[Wanted], int]:
        wanted: list[Wanted] = []
        size, reached = 0, offset
        while (extent := _extent_from(log, reached)) is not None:
            held.add(extent.file)
            index = await self._store.index_of(extent)
            for ordinal in range(index.at_offset(reached), len(index)):
                place = index.place(ordinal)
                size += place.size
                if wanted and size > bytes_max:
                    return wanted, reached
                wanted.append(Wanted(extent.file, place, log.topic_id, log.partition))
                reached = place.next_offset
            reached = max(reached, extent.summary.next_offset)
        return wanted, reached

    # -- by commit sequence -----------------------------------------------------------------------------------------------

    async def from_sequence(self, logs: Sequence[PartitionLog], sequence: int, bytes_max: int, key_hash: int | None) -> Found:
        """Batches of several partitions in commit order, up to `bytes_max` (at least one)."""
        visible = self._store.next_sequence
        with _Held() as held:
            rows: list[list[tuple[int, int, Stored | Wanted]]] = [
                await self._row(log, sequence, bytes_max, key_hash, held) for log in logs
            ]
            taken: list[Stored | Wanted] = []
            size, reached = 0, visible
            for found, length, item in heapq.merge(*rows, key=lambda row: row[0]):
                if found >= visible:
                    break  # became visible while this looked: the next call's
                size += length
                if taken and size > bytes_max:
                    reached = found
                    break
                taken.append(item)
            read = await self._read([item for item in taken if isinstance(item, Wanted)])
        _remember(logs, read)
        stored = [item for item in taken if isinstance(item, Stored)] + read.stored
        stored.sort(key=lambda found: found.sequence)
        touched = [(log.partition, d) for log in logs for d in log.damage() if any(_touches(d, s, log.partition) for s in stored)]
        passed = [(log.partition, d) for log in logs for d in _passed(log, stored)]
        damage = list(dict.fromkeys(read.damage + touched + passed))
        return Found(_undamaged(stored, damage), damage, reached)

    async def _row(
        self, log: PartitionLog, sequence: int, bytes_max: int, key_hash: int | None, held: _Held
    ) -> list[tuple[int, int, Stored | Wanted]]:
        """One partition's next batches in commit order: all there are, or more than `bytes_max` and more than one, so that the
        last of a row cut short is never taken and nothing behind it is passed by."""
        if key_hash is None and sequence > log.ring_floor:
            return [(found.sequence, len(found.batch), found) for found in log.ring.from_sequence(sequence)]
        row: list[tuple[int, int, Stored | Wanted]] = []
        size, reached = 0, sequence
        while (extent := _extent_with(log, reached)) is not None:
            held.add(extent.file)
            index = await self._store.index_of(extent)
            for ordinal in _ordinals(index, index.at_sequence(reached), key_hash):
                place = index.place(ordinal)
                recent = None if key_hash is None else log.ring.at(place.base_offset)
                item = recent or Wanted(extent.file, place, log.topic_id, log.partition)
                row.append((place.sequence, place.size, item))
                size += place.size
                if size > bytes_max and len(row) > 1:
                    return row
            reached = extent.summary.max_sequence + 1
        return row

    # -- by key -----------------------------------------------------------------------------------------------------------

    async def newest_with_key(self, log: PartitionLog, key: bytes | None, key_hash: int) -> Stored | None:
        """The newest batch that really holds the key: hashes and batches of unknown keys only make candidates."""
        below = log.high_watermark
        while (extent := _extent_below(log, below)) is not None:
            with _Held() as held:
                held.add(extent.file)
                index = await self._store.index_of(extent)
                for ordinal in reversed(index.with_key(key_hash)):
                    want = Wanted(extent.file, index.place(ordinal), log.topic_id, log.partition)
                    stored = await self._one(log, want)
                    if stored is not None and key in keys_of(stored.batch):
                        return stored
            below = extent.summary.first_offset
        return None

    async def _one(self, log: PartitionLog, want: Wanted) -> Stored | None:
        """A single batch, from memory if it is there; None when it is damaged."""
        recent = log.ring.from_offset(want.place.base_offset)
        if recent is not None:
            return next(iter(recent), None)
        read = await self._read([want])
        _remember([log], read)
        damage = [(log.partition, d) for d in log.damage()]
        return next(iter(_undamaged(read.stored, damage)), None)

    # -- by time ----------------------------------------------------------------------------------------------------------

    async def offset_for_time(self, log: PartitionLog, timestamp_ms: int) -> tuple[int, int]:
        """Offset and timestamp of the first record at or after the time; (-1, -1) if there is none."""
        reached = log.log_start
        while (extent := _extent_from(log, reached)) is not None:
            reached = extent.summary.next_offset
            if extent.summary.max_timestamp_ms < timestamp_ms:
                continue
            with _Held() as held:
                held.add(extent.file)
                index = await self._store.index_of(extent)
                for ordinal in range(len(index)):
                    if index.max_timestamps[ordinal] < timestamp_ms:
                        continue
                    stored = await self._one(log, Wanted(extent.file, index.place(ordinal), log.topic_id, log.partition))
                    found = None if stored is None else offset_of_timestamp(stored.batch, timestamp_ms)
                    if found is not None:
                        return found
        return NOT_FOUND

    async def newest_time(self, log: PartitionLog) -> tuple[int, int]:
        """Offset and timestamp of the record with the highest timestamp."""
        newest = max((extent.summary.max_timestamp_ms for extent in log.extents if extent.summary.batches), default=None)
        while newest is not None:
            found = await self.offset_for_time(log, newest)
            if found != NOT_FOUND:
                return found
            newest = await self._newest_readable_time(log, newest)
        return NOT_FOUND

    async def _newest_readable_time(self, log: PartitionLog, below_ms: int) -> int | None:
        """The highest timestamp below a bound: the batches that had it turned out to be damaged."""
        newest: int | None = None
        with _Held() as held:
            for extent in held.all_of(log):
                index = await self._store.index_of(extent)
                lower = max((t for t in index.max_timestamps if t < below_ms), default=None)
                if lower is not None and (newest is None or lower > newest):
                    newest = lower
        return newest

    async def sequence_for_time(self, logs: Iterable[PartitionLog], timestamp_ms: int) -> int:
        lowest = self._store.next_sequence
        for log in logs:
            found = await self._first_sequence_at(log, timestamp_ms)
            if found is not None:
                lowest = min(lowest, found)
        return lowest

    async def _first_sequence_at(self, log: PartitionLog, timestamp_ms: int) -> int | None:
        """The commit sequence of the first batch that reaches the time."""
        with _Held() as held:
            for extent in held.all_of(log):
                if extent.summary.max_timestamp_ms < timestamp_ms:
                    continue
                index = await self._store.index_of(extent)
                hits = (s for s, t in zip(index.sequences, index.max_timestamps, strict=True) if t >= timestamp_ms)
                found = next(hits, None)
                if found is not None:
                    return found
        return None

    async def _read(self, wanted: Sequence[Wanted]) -> ReadBack:
        """Read and open batches on the read lane; their files are held by the caller."""
        if not wanted:
            return ReadBack([], [])
        async with self._reads:
            self.file_reads += 1
            try:
                return await self._store.seams.executor.run("read", lambda: read_batches(self._store.keys, wanted))
            except OSError as problem:
                raise DiskFailed("reading", str(problem)) from problem


def _ordinals(index: BatchIndex, start: int, key_hash: int | None) -> Sequence[int]:
    """Batches from `start` on, all or those that may hold the key."""
    if key_hash is None:
        return range(start, len(index))
    held = index.with_key(key_hash)
    return held[bisect_left(held, start) :]


def _extent_from(log: PartitionLog, offset: int) -> Extent | None:
    at = log.extent_at_offset(offset)
    return log.extents[at] if at < len(log.extents) else None


def _extent_with(log: PartitionLog, sequence: int) -> Extent | None:
    at = log.extent_at_sequence(sequence)
    return log.extents[at] if at < len(log.extents) else None


def _extent_below(log: PartitionLog, offset: int) -> Extent | None:
    """The newest extent that begins below `offset`."""
    for extent in reversed(log.extents):
        if extent.summary.first_offset < offset:
            return extent
    return None


def _up_to(recent: Iterable[Stored], bytes_max: int) -> list[Stored]:
    taken: list[Stored] = []
    size = 0
    for stored in recent:
        size += len(stored.batch)
        if taken and size > bytes_max:
            break
        taken.append(stored)
    return taken


def _remember(logs: Sequence[PartitionLog], read: ReadBack) -> None:
    """Damage met by a reader is reported from then on, and carried by the next merge."""
    for partition, damaged in read.damage:
        for log in logs:
            if log.partition == partition and damaged not in log.damage():
                at = min(log.extent_at_offset(damaged.start), len(log.extents) - 1)
                log.extents[at].summary.damage.append(damaged)


def _passed(log: PartitionLog, stored: Sequence[Stored]) -> list[DamagedRange]:
    """Damaged ranges that end where one of the batches begins: whoever follows is told of them once."""
    damage = log.damage()
    if not damage:
        return []
    begins = {found.base_offset for found in stored if found.partition == log.partition}
    passed: list[DamagedRange] = []
    for damaged in sorted(damage, key=lambda d: d.end, reverse=True):
        if damaged.end in begins:
            begins.add(damaged.start)
            passed.append(damaged)
    return passed


def _touches(damaged: DamagedRange, stored: Stored, partition: int) -> bool:
    return stored.partition == partition and stored.base_offset < damaged.end and damaged.start < stored.next_offset


def _undamaged(stored: list[Stored], damage: Sequence[tuple[int, DamagedRange]]) -> list[Stored]:
    """Without batches that lie in ranges reported as damaged: they may open and still not be what was acknowledged."""
    if not damage:
        return stored
    return [found for found in stored if not any(_touches(d, found, partition) for partition, d in damage)]
