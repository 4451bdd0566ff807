"""Merging sealed files by partition, in the background and rate-limited (decision 0001, sections 6 to 8).

Batches move unchanged, each opened and chained on the way. A partition with enough bytes gets a segment of its own, the rest go
together into one. Order: temporary file, fsync, rename, fsync folder, state snapshot, manifest, and only then the old files go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from broker.log.files import LogFile
from broker.log.footer import DamagedRange, PartitionSummary, Summary, WrappedKey, build_footer
from broker.log.index import BatchIndex, Place
from broker.log.layout import (
    FILE_HEADER_BYTES,
    FLAG_KEYS_COMPLETE,
    FORMAT_VERSION,
    SEGMENT_MAGIC,
    WRAPPED_KEY_BYTES,
    BatchHeader,
    FileHeader,
    pack_file_header,
    parse_batch_header,
)
from broker.log.manifest import FileEntry, FileKind, FileState
from broker.log.partition import Extent, PartitionLog
from broker.log.reader import chain_broken
from broker.log.record_keys import walked
from broker.log.recovery import NOT_CHAINED, key_hashes
from broker.log.sealing import LogKeys, batch_tag
from broker.log.store import SEGMENT_FOLDER, LogStore
from broker.seams import Buffer, File
from security.crypto.envelope import KeyHasher
from security.errors import KeyProblem, KeyShredded, TamperedData

CHUNK_BYTES = 1024 * 1024
SOURCES_TOGETHER_MAX = 32  # what the owner thread looks up in one piece
HOLE_BYTES_MAX = 4 * 1024  # between two batches that are read in one go: what heads of groups and frames take, and a little more


class Source(NamedTuple):
    """One partition's part in the merge: its extents in the input files, consecutive and in offset order, from the batch on
    that holds the log start `start`."""

    log: PartitionLog
    extents: list[Extent]
    start: int

    @property
    def size(self) -> int:
        return sum(extent.summary.size for extent in self.extents)


class Output:
    """One segment being written."""

    def __init__(self, entry: FileEntry, file: File) -> None:
        self.entry = entry
        self.file = file
        self.end = FILE_HEADER_BYTES
        self.parts: list[tuple[PartitionSummary, BatchIndex, Source]] = []
        self.keys: dict[tuple[bytes, int], WrappedKey] = {}
        self.summary: Summary | None = None

    @property
    def temporary(self) -> str:
        return f"{self.entry.path}.new"


class Chunk(NamedTuple):
    """A run of batches of one extent to copy."""

    extent: Extent
    places: list[Place]


class Merge:
    """One merge of `inputs`. Construct on the owner thread, await `run`; a failure leaves everything as it was."""

    def __init__(self, store: LogStore, inputs: Sequence[LogFile]) -> None:
        self._store = store
        self.inputs = list(inputs)
        self._outputs: list[Output] = []
        self.bytes_moved = 0
        self.batches_moved = 0
        self.damage_found: list[DamagedRange] = []

    async def write(self) -> None:
        """All outputs, synced and in place, not yet listed."""
        for sources in self._plan():
            output = await self._open_output()
            for together in self._together(sources):
                if len(together) == 1:
                    await self._copy(output, together[0])
                else:
                    await self._copy_together(output, together)
            await self._close_output(output)

    def _plan(self) -> list[list[Source]]:
        """Sources by output: one each for partitions with enough bytes, and one for the rest."""
        sources = [
            Source(log, extents, log.log_start)
            for log in self._store.partitions.values()
            if (extents := [extent for extent in log.extents if extent.file in self.inputs])
        ]
        own = [[source] for source in sources if source.size >= self._store.options.merge_own_bytes]
        rest = [source for source in sources if source.size < self._store.options.merge_own_bytes]
        return [*own, rest] if rest or (not own and self._unattributed()) else own

    def _together(self, sources: list[Source]) -> list[list[Source]]:
        """Small ones are copied by one piece of work: two for each extent of 1,000 partitions took 20 s of CPU a GB."""
        cut: list[list[Source]] = []
        size = 0
        for source in sources:
            size += source.size
            if not cut or size > CHUNK_BYTES or len(cut[-1]) == SOURCES_TOGETHER_MAX:
                cut.append([])
                size = source.size
            cut[-1].append(source)
        return cut

    async def _open_output(self) -> Output:
        number = self._store.take_number()
        entry = FileEntry(number, FileKind.SEGMENT, FileState.SEALED, 0, 0, 0, b"", b"")
        salt = int.from_bytes(self._store.seams.random.bytes(8), "little")
        header = pack_file_header(
            FileHeader(
                SEGMENT_MAGIC,
                FORMAT_VERSION,
                FILE_HEADER_BYTES,
                number,
                self._store.keys.cluster_id,
                self._store.seams.clock.now_ms(),
                0,
                bytes(WRAPPED_KEY_BYTES),
                salt,
            )
        )
        file = await self._store.seams.executor.run("background", lambda: self._create(f"{entry.path}.new", header))
        output = Output(entry, file)
        self._outputs.append(output)
        return output

    def _create(self, path: str, header: bytes) -> File:
        """Blocking."""
        file = self._store.seams.disk.open(path, create=True)
        file.write_at(0, [header])
        return file

    async def _copy(self, output: Output, source: Source) -> None:
        copy = _Copy(source)
        for extent in source.extents:
            for chunk in await self._chunks(copy, extent):
                await self._run(output, [self._job(output, copy, chunk)])
        output.parts.append((copy.summary, copy.index, source))

    async def _copy_together(self, output: Output, sources: list[Source]) -> None:
        await self._store.load_indexes([extent for source in sources for extent in source.extents])
        copies = [_Copy(source) for source in sources]
        jobs: list[_CopyJob] = []
        for copy in copies:
            for extent in copy.source.extents:
                jobs += [self._job(output, copy, chunk) for chunk in await self._chunks(copy, extent)]
        await self._run(output, jobs)
        output.parts += [(copy.summary, copy.index, copy.source) for copy in copies]

    async def _chunks(self, copy: _Copy, extent: Extent) -> list[Chunk]:
        """What is kept of an extent."""
        index = await self._store.index_of(extent)
        first_kept = index.at_offset(copy.source.start)
        if first_kept and extent is copy.source.extents[0]:
            begin_at(copy.summary, index, first_kept)
        return chunks(extent, index, first_kept)

    def _job(self, output: Output, copy: _Copy, chunk: Chunk) -> _CopyJob:
        topic_id = chunk.extent.summary.topic_id
        hasher, walks = self._store.keys.hasher(topic_id), topic_id in self._store.read_by_key
        return _CopyJob(self._store.keys, chunk, output.file, copy, hasher, walks=walks)

    async def _run(self, output: Output, jobs: list[_CopyJob]) -> None:
        """One after the other, as one piece of work."""
        files = [job.chunk.extent.file for job in jobs]
        for file in files:
            file.hold()
        try:
            await self._store.seams.executor.run("background", lambda: _run_all(jobs, output.end))
        finally:
            for file in files:
                file.release()
        begin = output.end
        for job in jobs:
            self._take(output, job, job.copy.summary, job.copy.index)
            self._store.read_by_key.batches_walked += job.batches_walked
        await self._slowly(output.end - begin)
        await asyncio.sleep(sum(job.bytes_walked for job in jobs) / self._store.options.key_walk_bytes_per_s)

    def _take(self, output: Output, job: Written, summary: PartitionSummary, index: BatchIndex) -> None:
        """What a job on a lane has written belongs to the output from now on."""
        fresh = [lost for lost in job.damage if not any(d.start <= lost.start and lost.end <= d.end for d in summary.damage)]
        summary.damage += fresh
        self.damage_found += fresh
        for row in job.rows:
            index.add(*row)
            summary.batches += 1
            summary.size += row[3]
            summary.max_timestamp_ms = max(summary.max_timestamp_ms, row[5])
        for place in job.key_places:
            output.keys.setdefault(place, WrappedKey(*place, self._store.keys.keyring.wrapped(*place)))
        self.bytes_moved += job.end - output.end
        self.batches_moved += len(job.rows)
        output.end = job.end

    async def _slowly(self, size: int) -> None:
        await asyncio.sleep(size / self._store.options.merge_bytes_per_s)

    async def _close_output(self, output: Output) -> None:
        lost = self._unattributed() if output is self._outputs[0] else []
        summary = Summary(
            1, output.entry.number, [], list(output.keys.values()), [file.number for file in self.inputs], lost, 0, 0
        )
        parts = [(part, index) for part, index, _ in output.parts]
        tag, placed = await self._store.seams.executor.run("background", lambda: self._finish(output, parts, summary))
        output.entry = msgspec.structs.replace(output.entry, data_end=output.end, summary_tag=tag)
        output.summary = msgspec.structs.replace(summary, partitions=placed)
        for (part, _, _), done in zip(output.parts, placed, strict=True):
            part.detail_position, part.detail_size = done.detail_position, done.detail_size

    def _finish(
        self, output: Output, parts: Sequence[tuple[PartitionSummary, BatchIndex]], summary: Summary
    ) -> tuple[bytes, list[PartitionSummary]]:
        """Blocking: the segment is whole and durable under its name before anybody lists it."""
        disk = self._store.seams.disk
        buffers, tag, placed = build_footer(self._store.keys, output.entry.number, output.end, parts, summary)
        output.file.write_at(output.end, buffers)
        self._sync_segment(output.file)
        disk.rename(output.temporary, output.entry.path)
        disk.sync_folder(SEGMENT_FOLDER)
        return tag, placed

    @staticmethod
    def _sync_segment(file: File) -> None:
        file.sync()

    async def take_over(self, snapshot: int, group: int) -> None:
        """List the outputs instead of the inputs, durably, and the snapshot of the state up to `group`; then let the inputs go.

        Until that is durable the inputs are what is read, as a start before it would find them; a disk that refuses it is tried
        again for as long as the node runs.
        """
        store = self._store
        for output in self._outputs:
            file = store.attach(output.entry, output.file)
            assert output.summary is not None
            store.summaries[file.number] = output.summary
        await store.replace(self.inputs, snapshot, group, self._swap_all)

    def _swap_all(self) -> None:
        for output in self._outputs:
            file = self._store.files[output.entry.number]
            for part, _, source in output.parts:
                self._swap(source, Extent(file, part, None))

    def _unattributed(self) -> list[DamagedRange]:
        """Damage that no partition could be named for goes on with the first output."""
        summaries = [self._store.summaries[file.number] for file in self.inputs if file.number in self._store.summaries]
        return [damage for summary in summaries for damage in summary.unattributed]

    @staticmethod
    def _swap(source: Source, merged: Extent) -> None:
        """Damage that readers met while the merge ran is kept."""
        for extent in source.extents:
            merged.summary.damage += [d for d in extent.summary.damage if d not in merged.summary.damage]
        at = source.log.extents.index(source.extents[0])
        source.log.extents[at : at + len(source.extents)] = [merged]

    def abandon(self) -> None:
        """Blocking: close and remove what was written."""
        for output in self._outputs:
            output.file.close()
            for path in (output.temporary, output.entry.path):
                if self._store.seams.disk.exists(path):
                    self._store.seams.disk.remove(path)


class _Known(NamedTuple):
    """The batch copied before, which the next one must be chained to."""

    base_offset: int
    next_offset: int
    tag: bytes
    flags: int = 0


class _Copy:
    """One source on its way: what its jobs so far have come to."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.summary = joined_summary(source.extents)
        self.index = BatchIndex()
        self.known: _Known | None = None


def _run_all(jobs: Sequence[_CopyJob], end: int) -> None:
    """Blocking: each goes on where the one before it ended."""
    for job in jobs:
        job.end, job.known = end, job.copy.known
        job.run()
        end, job.copy.known = job.end, job.known


Row = tuple[int, int, int, int, int, int, int, bytes, Sequence[int] | None]
"""Of an index: what `BatchIndex.add` takes."""


class Written(Protocol):
    """A job's results."""

    end: int
    rows: list[Row]
    damage: list[DamagedRange]
    key_places: dict[tuple[bytes, int], None]


class _CopyJob:
    """Reads a chunk, checks every batch, writes the good ones. Runs on a lane; the results are read afterwards. `walks`: keys of
    batches that came without are looked at; those that an index has learned before are looked at in any case."""

    def __init__(self, keys: LogKeys, chunk: Chunk, target: File, copy: _Copy, hasher: KeyHasher, *, walks: bool = False) -> None:
        self._hasher = hasher
        self._walks = walks
        self.batches_walked = self.bytes_walked = 0
        self._keys = keys
        self.chunk = chunk
        self.copy = copy
        self._target = target
        self.end = 0  # of the target; set when it is its turn
        self.known = copy.known
        self.rows: list[Row] = []
        self.damage: list[DamagedRange] = []
        self.key_places: dict[tuple[bytes, int], None] = {}

    def run(self) -> None:
        """Blocking. KeyShredded when the topic was deleted meanwhile."""
        start = self.end
        pieces: list[Buffer] = []
        for run in runs(self.chunk.places):
            begin = run[0].position
            data = memoryview(self.chunk.extent.file.file.read_at(begin, run[-1].position + run[-1].size - begin))
            for place in run:
                self._take(place, data[place.position - begin : place.position - begin + place.size], pieces)
        if pieces:
            self._target.write_at(start, pieces)

    def _take(self, place: Place, data: Buffer, pieces: list[Buffer]) -> None:
        header = parse_batch_header(data)
        clear = None if header is None or not self._belongs(header, place, data) else self._opened(data, header)
        if header is None or clear is None:
            # What is lost is named by the index: the batch itself can no longer be trusted to say.
            self.known = None
            self.damage.append(DamagedRange(place.base_offset, place.next_offset, "found damaged while merging"))
            return
        if self.known is not None and chain_broken(self.known[1:], header):
            # One of an earlier chunk stays where it was written; the range keeps it from being served.
            if self.rows:
                pieces.pop()
                self.end -= self.rows.pop()[3]
            self.damage.append(DamagedRange(self.known.base_offset, self.known.next_offset, NOT_CHAINED))
        hashes = key_hashes(data, 0, header)
        if hashes is None and (self._walks or place.flags & FLAG_KEYS_COMPLETE):
            hashes = walked(self._hasher, clear)
            self.batches_walked += 1
            self.bytes_walked += len(data)
        self.rows.append(
            (
                header.base_offset,
                header.last_offset_delta,
                self.end,
                header.sealed_bytes,
                header.sequence,
                header.max_timestamp_ms,
                header.flags if hashes is None else header.flags | FLAG_KEYS_COMPLETE,
                place.tag,
                hashes,
            )
        )
        pieces.append(data)
        self.end += len(data)
        self.known = _Known(header.base_offset, header.next_offset, place.tag, header.flags)
        self.key_places[header.topic_id, header.key_id] = None

    def _belongs(self, header: BatchHeader, place: Place, data: Buffer) -> bool:
        """Whether it is the batch that became visible there, and no other that opens."""
        part = self.chunk.extent.summary
        named = (header.topic_id, header.partition, header.base_offset, header.sequence, header.sealed_bytes)
        expected = (part.topic_id, part.partition, place.base_offset, place.sequence, place.size)
        return named == expected and batch_tag(data, 0, header) == place.tag

    def _opened(self, data: Buffer, header: BatchHeader) -> bytes | None:
        try:
            return self._keys.open_batch(data, 0, header)
        except KeyShredded:
            raise
        except (TamperedData, KeyProblem):
            return None


def joined_summary(extents: Sequence[Extent]) -> PartitionSummary:
    """Of the extent that takes the place of these, before anything is counted in it."""
    first, last = extents[0].summary, extents[-1].summary
    return PartitionSummary(
        first.topic_id,
        first.partition,
        max(extent.summary.generation for extent in extents),
        first.first_offset,
        last.next_offset,
        0,
        0,
        0,
        min(extent.summary.min_sequence for extent in extents),
        max(extent.summary.max_sequence for extent in extents),
        first.chain_in,
        last.chain_out,
        damage=[damage for extent in extents for damage in extent.summary.damage],
    )


def begin_at(summary: PartitionSummary, index: BatchIndex, ordinal: int) -> None:
    """Batches below the log start are left behind: the merged extent begins with the first one that is kept."""
    summary.chain_in = index.place(ordinal - 1).tag
    summary.first_offset = index.place(ordinal).base_offset if ordinal < len(index) else index.place(ordinal - 1).next_offset


def chunks(extent: Extent, index: BatchIndex, first_kept: int = 0) -> list[Chunk]:
    cut: list[Chunk] = []
    size = CHUNK_BYTES
    for ordinal in range(first_kept, len(index)):
        place = index.place(ordinal)
        if size >= CHUNK_BYTES:
            cut.append(Chunk(extent, []))
            size = 0
        cut[-1].places.append(place)
        size += place.size
    return cut


def runs(places: Sequence[Place]) -> list[list[Place]]:
    """Neighbours that one read brings: a read for each took more than the copying where batches are small."""
    cut: list[list[Place]] = []
    reached = size = 0
    for place in places:
        hole = place.position - reached
        size += hole + place.size
        if not cut or not 0 <= hole <= HOLE_BYTES_MAX or size > 2 * CHUNK_BYTES:
            cut.append([])
            size = place.size
        cut[-1].append(place)
        reached = place.position + place.size
    return cut


def choose(store: LogStore) -> list[LogFile]:
    """Sealed files worth merging now: the longest run of the oldest shared ones in which every partition's extents are
    consecutive (so that the merged extent has no hole). Empty when there are fewer than `merge_files_min`."""
    shared = sorted(
        (
            file
            for file in store.files.values()
            if file.entry.state is not FileState.OPEN and file.entry.data_end <= store.options.merge_input_bytes_max
        ),
        key=lambda file: _age(store, file),
    )
    shared = [file for file in shared if not _is_own(store, file)]
    for start in range(len(shared)):
        run = _consecutive(store, shared[start:])
        if len(run) >= store.options.merge_files_min:
            return run
    return _mostly_dead(store)


def _mostly_dead(store: LogStore) -> list[LogFile]:
    """One file worth rewriting for the space it gives back, if there is one."""
    for file in store.files.values():
        if file.entry.state is FileState.OPEN or file.entry.data_end < store.options.merge_dead_bytes:
            continue
        live = sum(extent.summary.size for extent in store.live_extents(file))
        dead = file.entry.data_end - live
        if dead >= store.options.merge_dead_bytes and dead >= live:
            return [file]
    return []


def _age(store: LogStore, file: LogFile) -> tuple[int, int]:
    sequences = [extent.summary.min_sequence for extent in store.live_extents(file)]
    return (min(sequences, default=0), file.number)


def _is_own(store: LogStore, file: LogFile) -> bool:
    """A segment of one partition that already has the size of its own."""
    extents = store.live_extents(file)
    whole = len(extents) == 1 and extents[0].summary.size >= store.options.merge_own_bytes
    return file.entry.kind is FileKind.SEGMENT and whole


def _consecutive(store: LogStore, files: list[LogFile]) -> list[LogFile]:
    chosen: list[LogFile] = []
    for file in files:
        if not all(_unbroken(log, {*chosen, file}) for log in store.partitions.values()):
            break
        chosen.append(file)
    return chosen


def _unbroken(log: PartitionLog, files: set[LogFile]) -> bool:
    places = [at for at, extent in enumerate(log.extents) if extent.file in files]
    return not places or places[-1] - places[0] + 1 == len(places)
