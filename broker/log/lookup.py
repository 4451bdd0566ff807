"""Finding and reading visible batches: by offset, by commit sequence, by key, by time. Memory first, then files.

Owner thread; file reads run on the read lane, at most `reads_in_flight_max` at once. A file is held from the moment one of its
batches is wanted until it is read, because a merge may replace it meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from broker.batch import keys as keys_of
from broker.batch import offset_of_timestamp, walk
from broker.batch_header import read_header
from broker.compression import Compression
from broker.engine.base import Stored
from broker.errors import DiskFailed
from broker.log.commit_order import Row, in_commit_order
from broker.log.files import LogFile
from broker.log.footer import DamagedRange
from broker.log.index import BatchIndex, Place
from broker.log.partition import Extent, PartitionLog
from broker.log.read_ahead import ReadAhead
from broker.log.reader import Opened, ReadBack, Wanted, chained, open_batches, parts
from broker.log.record_keys import UNREADABLE
from broker.log.scratch import Scratch
from broker.log.store import LogStore
from broker.log.stretch import AT_ONCE_BYTES_MAX, open_stretch, stretch_at

CANDIDATES_MAX = 64  # batches opened at once while one with a key is looked for,
CANDIDATES_BYTES_MAX = 1024 * 1024  # and their bytes
QUICKLY_WALKED_BYTES = 4096
LOOKED_AT_MAX = 4096  # batches in memory that one scan passes by before others get their turn: about 1 ms
NOT_FOUND = (-1, -1)


class Found(NamedTuple):
    """Batches of one partition, damage met, and the offset to go on from."""

    stored: list[Stored]
    damage: list[DamagedRange]
    reached: int


class InOrder(NamedTuple):
    """Batches in commit order and damage met, each with its partition, and the commit sequence to go on from."""

    stored: list[tuple[PartitionLog, Stored]]
    damage: list[tuple[PartitionLog, DamagedRange]]
    reached: int


Wanting = Callable[[PartitionLog], bool]


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
        self._pages: ReadAhead[Found] = ReadAhead(store.options.read_ahead_bytes_max // 2)
        self._rows: ReadAhead[InOrder] = ReadAhead(store.options.read_ahead_bytes_max // 2)
        self._scratch = Scratch()
        self.file_reads = 0

    async def close(self) -> None:
        """Nothing is read ahead any more."""
        await self._pages.close()
        await self._rows.close()

    @property
    def pages_read_ahead(self) -> int:
        """Pages that were there before their readers asked."""
        return self._pages.hits + self._rows.hits

    # -- by offset --------------------------------------------------------------------------------------------------------

    def recent_from_offset(self, log: PartitionLog, offset: int, bytes_max: int) -> list[Stored] | None:
        """The same out of memory; None where it does not reach back that far."""
        recent = log.ring.from_offset(offset)
        return None if recent is None else _up_to(recent, bytes_max)

    def at_once(self, log: PartitionLog, offset: int, bytes_max: int) -> list[Stored] | None:
        """The same without waiting: out of memory, the system's included. None where the disk would have to be asked, where it is
        being asked already, where so much is wanted that others should not wait for it, and where anything is damaged."""
        recent = self.recent_from_offset(log, offset, bytes_max)
        if recent is not None:
            return recent
        if self._pages.has((log.place, offset, bytes_max)) or log.damage():
            return None
        found: list[Stored] = []
        left = bytes_max
        while (extent := _extent_from(log, offset)) is not None and not (found and log.ring.from_offset(offset)):
            index = self._store.index_now(extent, self._scratch)
            ordinal = 0 if index is None else index.at_offset(offset)
            if index is None or ordinal == len(index):
                break
            if bytes_max > AT_ONCE_BYTES_MAX and index.span_from(ordinal) > AT_ONCE_BYTES_MAX:
                return None
            stretch = stretch_at(index, ordinal, left, first_of_all=not found)
            if stretch is None:
                break
            view = self._scratch.read(extent.file, stretch.position, stretch.span)
            opened = None if view is None else open_stretch(self._store.keys, log, index, stretch, view)
            if opened is None:
                return found if found and 2 * left <= bytes_max else None  # small pieces cost their reader more requests
            found += opened
            offset, left = opened[-1].next_offset, left - stretch.size
            if bytes_max - left >= AT_ONCE_BYTES_MAX:
                break
        return found or None

    async def from_offset(self, log: PartitionLog, offset: int, bytes_max: int) -> Found:
        """Batches that hold or follow `offset`, up to `bytes_max` (at least one)."""
        taken = self.recent_from_offset(log, offset, bytes_max)
        if taken is not None:
            return Found(taken, [], taken[-1].next_offset if taken else offset)
        place = (log.place, offset, bytes_max)
        going_on = self._pages.goes_on(place)
        found = await self._pages.take(place)
        if found is None or not found.stored:
            found = await self._from_files(log, offset, bytes_max)
        reached, following = found.reached, (log.place, found.reached, bytes_max)
        self._pages.stopped(following)
        if going_on and reached < log.high_watermark and log.ring.from_offset(reached) is None:
            self._pages.start(following, bytes_max, [log], lambda: self._from_files(log, reached, bytes_max))
        return found

    async def _from_files(self, log: PartitionLog, offset: int, bytes_max: int) -> Found:
        with _Held() as held:
            wanted, reached = await self._places_from_offset(log, offset, bytes_max, held)
            read = await self._read(wanted)
        _remember([log], read)
        damage = [d for d in log.damage() if d.end > offset and d.start < reached]
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
                if wanted and (size > bytes_max or place.base_offset < reached):
                    return wanted, reached  # the latter: compaction has replaced the files meanwhile, and it reaches further
                wanted.append(Wanted(extent.file, place, log.topic_id, log.partition))
                reached = place.next_offset
            reached = max(reached, extent.summary.next_offset)
        return wanted, reached

    # -- by commit sequence -----------------------------------------------------------------------------------------------

    async def from_sequence(
        self, logs: Iterable[PartitionLog], sequence: int, bytes_max: int, key_hashes: tuple[int, ...] | None
    ) -> InOrder:
        """Batches of several partitions, of whatever topics, in commit order, up to `bytes_max` (at least one); with `key_hashes`
        those that may hold one of these keys."""
        among = list(logs)
        if key_hashes is None and not any(log.ring_floor >= sequence for log in among):
            return await self._merged(among, sequence, bytes_max, None)  # all in memory: nothing to read ahead of
        places = tuple([log.place for log in among])
        place = (places, sequence, bytes_max, key_hashes)
        going_on = self._rows.goes_on(place)
        found = await self._rows.take(place)
        if found is None or not found.stored:  # one without batches says how far it looked then, and there may be some now
            found = await self._merged(among, sequence, bytes_max, key_hashes)
        reached, following = found.reached, (places, found.reached, bytes_max, key_hashes)
        self._rows.stopped(following)
        if going_on and reached < self._store.next_sequence and any(log.ring_floor >= reached for log in among):
            self._rows.start(following, bytes_max, among, lambda: self._merged(among, reached, bytes_max, key_hashes))
        return found

    async def _merged(
        self, logs: Sequence[PartitionLog], sequence: int, bytes_max: int, key_hashes: tuple[int, ...] | None
    ) -> InOrder:
        visible = self._store.next_sequence
        with _Held() as held:
            rows = [Row(log, sequence, key_hashes, self._store.index_of) for log in logs]
            taken, reached = await in_commit_order(rows, visible, bytes_max, held.add)
            read = await self._read([due.item for _, due in taken if isinstance(due.item, Wanted)])
        owners = {due.sequence: log for log, due in taken}
        _remember(owners.values(), read)
        stored = [due.item for _, due in taken if isinstance(due.item, Stored)] + read.stored
        stored.sort(key=lambda found: found.sequence)
        return _without_damage([(owners[found.sequence], found) for found in stored], read, owners.values(), reached)

    def from_memory(self, recent: Iterable[tuple[PartitionLog, Stored]], wanted: Wanting, bytes_max: int) -> InOrder:
        """The same out of the newest batches of all partitions, those that `wanted` says. It may come to nothing before the
        end: the caller goes on from `reached`."""
        taken: list[tuple[PartitionLog, Stored]] = []
        size, reached = 0, self._store.next_sequence
        for looked_at, (log, stored) in enumerate(recent):
            if looked_at == LOOKED_AT_MAX:
                reached = stored.sequence
                break
            if not wanted(log) or stored.next_offset <= log.log_start:
                continue
            size += len(stored.batch)
            if taken and size > bytes_max:
                reached = stored.sequence
                break
            taken.append((log, stored))
        return _without_damage(taken, ReadBack([], []), [log for log, _ in taken], reached)

    # -- by key -----------------------------------------------------------------------------------------------------------

    async def newest_with_key(
        self, log: PartitionLog, key: bytes | None, key_hash: int, readable: Callable[[Stored], bool]
    ) -> Stored | None:
        """The newest readable batch that really holds the key: hashes and batches of unknown keys only make candidates."""
        below = log.high_watermark
        while below > log.log_start and (extent := _extent_below(log, below)) is not None:
            with _Held() as held:
                held.add(extent.file)
                index = await self._store.index_of(extent)
                for places in newest_first(index, tuple(index.with_key(key_hash))):
                    kept = [place for place in places if place.next_offset > log.log_start]
                    wanted = [Wanted(extent.file, place, log.topic_id, log.partition) for place in kept]
                    found = await self._newest_holding(log, wanted, key, readable)
                    if found is not None or len(kept) < len(places):
                        return found
            below = extent.summary.first_offset
        return None

    async def _newest_holding(
        self, log: PartitionLog, wanted: Sequence[Wanted], key: bytes | None, readable: Callable[[Stored], bool]
    ) -> Stored | None:
        """Of these batches, which lie in offset order."""
        recent = {want.place.base_offset: log.ring.at(want.place.base_offset) for want in wanted}
        read = await self._read([want for want in wanted if recent[want.place.base_offset] is None])
        _remember([log], read)
        there = [*(stored for stored in recent.values() if stored is not None), *_undamaged(read.stored, log.damage())]
        there = sorted([stored for stored in there if readable(stored)], key=lambda stored: stored.base_offset, reverse=True)
        if all(_quickly_walked(stored) for stored in there):
            return _first_holding(there, key, log.log_start)
        log_start = log.log_start
        return await self._store.seams.executor.run("read", lambda: _first_holding(there, key, log_start))

    async def _one(self, log: PartitionLog, want: Wanted) -> Stored | None:
        """A single batch, from memory if it is there; None when it is damaged."""
        recent = log.ring.from_offset(want.place.base_offset)
        if recent is not None:
            return next(iter(recent), None)
        read = await self._read([want])
        _remember([log], read)
        return next(iter(_undamaged(read.stored, log.damage())), None)

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
                for ordinal in range(index.at_offset(log.log_start), len(index)):
                    if index.max_timestamps[ordinal] < timestamp_ms:
                        continue
                    stored = await self._one(log, Wanted(extent.file, index.place(ordinal), log.topic_id, log.partition))
                    found = None if stored is None else offset_of_timestamp(stored.batch, timestamp_ms, log.log_start)
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
                first = index.at_offset(log.log_start)
                times = list(index.max_timestamps[first:])
                if times and index.base_offsets[first] < log.log_start:  # the youngest of its records may be deleted
                    stored = await self._one(log, Wanted(extent.file, index.place(first), log.topic_id, log.partition))
                    records = () if stored is None else walk(stored.batch)
                    times[:1] = [record.timestamp_ms for record in records if record.offset >= log.log_start]
                lower = max((t for t in times if t < below_ms), default=None)
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
                for ordinal in range(index.at_offset(log.log_start), len(index)):
                    if index.max_timestamps[ordinal] >= timestamp_ms:
                        return index.sequences[ordinal]
        return None

    async def _read(self, wanted: Sequence[Wanted]) -> ReadBack:
        """Read and open batches on the read lane; their files are held by the caller."""
        if not wanted:
            return ReadBack([], [])
        async with self._reads:
            self.file_reads += 1
            try:
                return chained(wanted, await self._open(wanted))
            except OSError as problem:
                raise DiskFailed("reading", str(problem)) from problem

    async def _open(self, wanted: Sequence[Wanted]) -> list[Opened | DamagedRange]:
        """Large reads in parts, side by side: while one thread opens, another reads (and with two CPUs opens too)."""
        run, keys = self._store.seams.executor.run, self._store.keys
        cut = parts(wanted, self._store.options.read_parts_max)
        if len(cut) == 1:
            return await run("read", lambda: open_batches(keys, wanted))
        opened = await asyncio.gather(*[run("read", partial(open_batches, keys, part)) for part in cut])
        return [found for part in opened for found in part]


def newest_first(index: BatchIndex, ordinals: Sequence[int]) -> Iterator[list[Place]]:
    """Their places, the newest ones first, one by one to begin with: mostly the first look is the last. Each list is in offset
    order."""
    end, count = len(ordinals), 1
    while end > 0:
        places: list[Place] = []
        size = 0
        for ordinal in reversed(ordinals[max(0, end - count) : end]):
            place = index.place(ordinal)
            size += place.size
            if places and size > CANDIDATES_BYTES_MAX:
                break
            places.insert(0, place)
        end -= len(places)
        count = min(2 * count, CANDIDATES_MAX)
        yield places


def _quickly_walked(stored: Stored) -> bool:
    """Whether its keys are looked at in the time that another thread takes to begin."""
    batch = stored.batch
    return len(batch) <= QUICKLY_WALKED_BYTES and read_header(batch).compression is Compression.NONE


def _first_holding(batches: Sequence[Stored], key: bytes | None, log_start: int) -> Stored | None:
    return next((stored for stored in batches if _holds(stored, key, log_start)), None)


def _holds(stored: Stored, key: bytes | None, log_start: int) -> bool:
    """Whether one of its records that are kept has the key. What a producer made unreadable holds nothing that anybody reads."""
    try:
        if stored.base_offset >= log_start:
            return key in keys_of(stored.batch)
        return any(record.key == key and record.offset >= log_start for record in walk(stored.batch))
    except UNREADABLE:
        return False


def _extent_from(log: PartitionLog, offset: int) -> Extent | None:
    at = log.extent_at_offset(offset)
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


def _remember(logs: Iterable[PartitionLog], read: ReadBack) -> None:
    """Damage met by a reader is reported from then on, and carried by the next merge."""
    if not read.damage:
        return
    by_place = {(log.topic_id, log.partition): log for log in logs}
    for place, damaged in read.damage:
        log = by_place[place]
        if log.extents and damaged not in log.damage():
            at = min(log.extent_at_offset(damaged.start), len(log.extents) - 1)
            log.extents[at].summary.damage.append(damaged)


def _without_damage(
    found: list[tuple[PartitionLog, Stored]], read: ReadBack, logs: Iterable[PartitionLog], reached: int
) -> InOrder:
    """What lies in damaged ranges is left out and told of instead."""
    damage: dict[tuple[PartitionLog, DamagedRange], None] = {}
    touched: set[int] = set()
    for log in dict.fromkeys(logs):
        lost = log.damage()
        if not lost:
            continue
        own = [stored for owner, stored in found if owner is log]
        met = [damaged for place, damaged in read.damage if place == (log.topic_id, log.partition)]
        met += [d for d in lost if any(_touches(d, stored) for stored in own)] + _passed(lost, own)
        damage.update(dict.fromkeys((log, d) for d in met))
        touched.update(stored.sequence for stored in own if any(_touches(d, stored) for d in lost))
    kept = [pair for pair in found if pair[1].sequence not in touched] if touched else found
    return InOrder(kept, list(damage), reached)


def _passed(damage: Sequence[DamagedRange], stored: Sequence[Stored]) -> list[DamagedRange]:
    """Damaged ranges that end where one of the batches begins: whoever follows is told of them once."""
    begins = {found.base_offset for found in stored}
    passed: list[DamagedRange] = []
    for damaged in sorted(damage, key=lambda d: d.end, reverse=True):
        if damaged.end in begins:
            begins.add(damaged.start)
            passed.append(damaged)
    return passed


def _touches(damaged: DamagedRange, stored: Stored) -> bool:
    return stored.base_offset < damaged.end and damaged.start < stored.next_offset


def _undamaged(stored: list[Stored], damage: Sequence[DamagedRange]) -> list[Stored]:
    """Without batches that lie in ranges reported as damaged: they may open and still not be what was acknowledged."""
    if not damage:
        return stored
    return [found for found in stored if not any(_touches(d, found) for d in damage)]
