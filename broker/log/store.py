"""The log's files and partitions: what is on disk, opened, sealed in place, and looked up.

Owner thread, except where a method says that it blocks; those run on an executor's lane and touch files only.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from broker.log.files import LogFile
from broker.log.footer import DamagedRange, PartitionSummary, Summary, WrappedKey, build_footer, open_detail, read_detail
from broker.log.index import BatchIndex
from broker.log.journal import ActiveJournal, pack_journal_header
from broker.log.layout import FILE_HEADER_BYTES, FLAG_REWRITTEN, chain_begins_anew
from broker.log.manifest import FileEntry, FileKind, FileState, Manifest, seal_manifest
from broker.log.options import LogOptions
from broker.log.partition import Extent, PartitionLog
from broker.log.read_by_key import ReadByKey
from broker.log.recovery import NOT_CHAINED, PartitionKey, RecoveredFile, key_hashes
from broker.log.reserve import DiskSpace, is_full
from broker.log.scan import batches
from broker.log.scratch import SCRATCH_BYTES, Scratch
from broker.log.sealing import LogKeys, batch_tag
from broker.log.state import Entry, seal_snapshot
from broker.log.two_copies import TwoCopyFile
from broker.seams import File, Seams
from security.errors import TamperedData

logger = logging.getLogger("sprawl.log")

JOURNAL_FOLDER, SEGMENT_FOLDER, STATE_FOLDER, VIEW_FOLDER = "journal", "segments", "state", "view"
HEADER_LOST = "its header is damaged, and the footer that named it"
REWRITE_BYTES = 1024 * 1024
_SALT = struct.Struct("<Q")


class LogStore:
    """Files by number, partitions by topic and number, and the manifest that lists the files."""

    def __init__(self, seams: Seams, options: LogOptions) -> None:
        self.seams = seams
        self.options = options
        self.keys: LogKeys
        self.space = DiskSpace(seams, options)
        self.read_by_key = ReadByKey(seams.clock, options.key_walk_after_read_ms)
        self.manifest = Manifest(1, 0, 1, [])
        self.files: dict[int, LogFile] = {}
        self.summaries: dict[int, Summary] = {}
        self.partitions: dict[PartitionKey, PartitionLog] = {}
        self.unattributed: list[DamagedRange] = []
        self.next_sequence = 1  # the next one to become visible
        self.sealed_in_place = 0
        self.footers_repaired = 0
        self.repaired: dict[int, RecoveredFile] = {}  # read without their footers, to be sealed again
        self._manifest_file = TwoCopyFile(seams.disk, "", "manifest")
        self._indexes: OrderedDict[tuple[int, bytes, int], BatchIndex] = OrderedDict()
        self._indexes_bytes = 0

    # -- manifest ---------------------------------------------------------------------------------------------------------

    def manifest_copies(self) -> list[tuple[str, bytes]]:
        """Blocking."""
        return self._manifest_file.read_all()

    def holds_data(self) -> bool:
        """Blocking. Whether anything lies here that a key store must belong to."""
        return bool(self.manifest_copies()) or any(map(self.seams.disk.list, (JOURNAL_FOLDER, SEGMENT_FOLDER)))

    async def save_manifest(self) -> None:
        """Make the present list of files durable. Each save holds all that was decided before it; the lane keeps their order."""
        data = self._next_manifest()
        await self.seams.executor.run("manifest", lambda: self._manifest_file.write(data))

    def _next_manifest(self) -> bytes:
        entries = sorted((file.entry for file in self.files.values()), key=lambda entry: entry.number)
        self.manifest = msgspec.structs.replace(
            self.manifest, number=self.manifest.number + 1, files=entries, next_sequence=self.next_sequence
        )
        return seal_manifest(self.keys, self.manifest)

    def found_manifest(self) -> None:
        """Blocking: the first manifest of a new folder, before any file that it would have to list."""
        self._manifest_file.write(self._next_manifest())

    def equal_manifests(self) -> None:
        """Blocking: before a start removes anything, neither copy may list what the other does not. A write that was cut off
        between the two, or a damaged copy, is made good; `manifest` is the newest whole one."""
        copies = [data for _, data in self.manifest_copies()]
        if len(copies) < 2 or copies[0] != copies[1]:
            self._manifest_file.write(seal_manifest(self.keys, self.manifest))

    async def until_done(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Background work that must not be left half done: again after every failure of the disk, until it is cancelled."""
        while True:
            try:
                return await work()
            except OSError as problem:
                logger.warning("%s failed (%s), again in %d ms", what, problem, self.options.recover_retry_ms)
                if is_full(problem):
                    await self.space.refused()
                await asyncio.sleep(self.options.recover_retry_ms / 1000)

    def take_number(self) -> int:
        number = self.manifest.next_file
        self.manifest = msgspec.structs.replace(self.manifest, next_file=number + 1)
        return number

    # -- files ------------------------------------------------------------------------------------------------------------

    def attach(self, entry: FileEntry, file: File) -> LogFile:
        found = self.files[entry.number] = LogFile(self.seams.disk, entry, file)
        return found

    async def new_journal(self, first_group: int) -> ActiveJournal:
        """A new file, durable and listed before its first group."""
        epoch = self.keys.system_epoch()
        salt = _SALT.unpack(self.seams.random.bytes(8))[0]
        entry = FileEntry(self.take_number(), FileKind.JOURNAL, FileState.OPEN, 0, first_group, epoch.key_id, epoch.wrapped, b"")
        header = pack_journal_header(
            entry.number, self.keys.cluster_id, self.seams.clock.now_ms(), epoch.key_id, epoch.wrapped, salt
        )
        file = await self.seams.executor.run("manifest", lambda: self._create(entry.path, JOURNAL_FOLDER, header))
        log_file = self.attach(entry, file)
        try:
            await self.save_manifest()
        except OSError:
            self.unlist_unused(log_file)
            raise
        return ActiveJournal(log_file, salt, first_group)

    def unlist_unused(self, file: LogFile) -> None:
        """A journal without a group, from the next manifest on: listed for longer, it would look like one that lost its groups
        as soon as the files that got their numbers are merged away. It stays on the disk, as an orphan, until the next start:
        before another manifest is durable the last one may list it."""
        del self.files[file.number]
        file.close()

    def _create(self, path: str, folder: str, header: bytes) -> File:
        """Blocking."""
        file = self.seams.disk.open(path, create=True)
        try:
            file.write_at(0, [header])
            file.sync()
            self.seams.disk.sync_folder(folder)
        except OSError:
            file.close()  # what was begun would take the space that is short
            with suppress(OSError):
                self.seams.disk.remove(path)
            raise
        return file

    def live_extents(self, file: LogFile) -> list[Extent]:
        return [extent for log in self.partitions.values() for extent in log.extents if extent.file is file]

    async def seal_in_place(
        self,
        file: LogFile,
        data_end: int,
        first_group: int,
        last_group: int,
        keys: Iterable[WrappedKey],
        unattributed: Sequence[DamagedRange] = (),
    ) -> None:
        """Give a full journal its footer: footer, fsync, manifest. Its indexes then live on disk."""
        extents = [extent for extent in self.live_extents(file) if extent.index is not None]
        parts = [(extent.summary, extent.index) for extent in extents if extent.index is not None]
        for _, index in parts:
            index.freeze()
        known = [key for key in keys if key.topic_id in self._topic_ids()]
        summary = Summary(1, file.number, [], known, [], list(unattributed), first_group, last_group)
        tag, placed = await self.seams.executor.run("background", lambda: self._write_footer(file, data_end, parts, summary))
        file.entry = msgspec.structs.replace(file.entry, state=FileState.SEALED, data_end=data_end, summary_tag=tag)
        await self.save_manifest()
        self.summaries[file.number] = msgspec.structs.replace(summary, partitions=placed)
        for extent, part in zip(extents, placed, strict=True):
            extent.summary.detail_position, extent.summary.detail_size = part.detail_position, part.detail_size
            self._settle(extent)
        self.sealed_in_place += 1

    async def write_again(self, file: LogFile, start: int, end: int) -> None:
        """After a sync that failed the page cache may hold what the media does not, and call it clean: the next sync writes
        nothing of it (fsyncgate). Written again, what a start found is on the media after the next one."""
        if start < end:
            await self.seams.executor.run("background", lambda: self._write_again(file, start, end))

    def _write_again(self, file: LogFile, start: int, end: int) -> None:
        """Blocking."""
        for position in range(start, end, REWRITE_BYTES):
            file.file.write_at(position, [file.file.read_at(position, min(REWRITE_BYTES, end - position))])

    def _topic_ids(self) -> set[bytes]:
        return {topic_id for topic_id, _ in self.partitions}

    def _write_footer(
        self, file: LogFile, data_end: int, parts: Sequence[tuple[PartitionSummary, BatchIndex]], summary: Summary
    ) -> tuple[bytes, list[PartitionSummary]]:
        """Blocking. What a cut tail left behind `data_end` goes first. Nothing grows in this file any more."""
        buffers, tag, placed = build_footer(self.keys, file.number, data_end, parts, summary)
        if file.file.size() > data_end:
            file.file.truncate(data_end)
        file.file.write_at(data_end, buffers)
        file.file.sync()
        return tag, placed

    def _settle(self, extent: Extent) -> None:
        """The growing index is dropped; readers take the sealed one from the footer through the cache."""
        extent.index = None

    async def replace(
        self, files: Sequence[LogFile], snapshot: int | None, group: int, listed: Callable[[], None] = lambda: None
    ) -> None:
        """List the present files without these, durably, and the snapshot of the state up to `group`, if any; then let them go.
        `listed` is called between the two: readers see what a start would find.

        Once begun it is not given up: a disk that refuses is tried again for as long as the node runs (a restart before that
        still finds the files).
        """
        for file in files:
            del self.files[file.number]
        old = self.manifest.snapshot
        if snapshot is not None:
            self.list_snapshot(snapshot, group)
        await self.until_done("listing files", self.save_manifest)
        listed()
        await self.until_done("removing files", lambda: self.drop_files(files))
        if snapshot is not None and old is not None:
            await self.until_done("removing a snapshot", lambda: self.drop_snapshot(old))

    async def drop_files(self, files: Sequence[LogFile]) -> None:
        """Files that the durable manifest no longer lists."""
        for file in files:
            self.summaries.pop(file.number, None)
            for place in [place for place in self._indexes if place[0] == file.number]:
                self._indexes_bytes -= self._indexes.pop(place).size_in_memory()
        await self.seams.executor.run("background", lambda: self._retire(files))

    def _retire(self, files: Sequence[LogFile]) -> None:
        """Blocking."""
        for file in files:
            file.retire()
        for folder in sorted({file.path.split("/")[0] for file in files}):
            self.seams.disk.sync_folder(folder)

    # -- snapshots --------------------------------------------------------------------------------------------------------

    async def save_snapshot(self, group: int, entries: list[Entry]) -> int:
        """A durable file with all state up to `group`; the caller lists it. Returns its number."""
        number = self.take_number()
        path = snapshot_path(number)

        def write() -> None:
            self._create(path, STATE_FOLDER, seal_snapshot(self.keys, group, entries)).close()

        await self.seams.executor.run("background", write)
        return number

    def list_snapshot(self, number: int, group: int) -> None:
        """With the next manifest."""
        self.manifest = msgspec.structs.replace(self.manifest, snapshot=number, snapshot_group=group)

    async def drop_snapshot(self, number: int) -> None:
        path = snapshot_path(number)
        await self.seams.executor.run("background", lambda: self._remove(path))

    def _remove(self, path: str) -> None:
        """Blocking."""
        if self.seams.disk.exists(path):
            self.seams.disk.remove(path)

    # -- indexes ----------------------------------------------------------------------------------------------------------

    def index_at_hand(self, extent: Extent) -> BatchIndex | None:
        """The extent's index where it is in memory."""
        if extent.index is not None:
            return extent.index
        part = extent.summary
        place = (extent.file.number, part.topic_id, part.partition)
        found = self._indexes.get(place)
        if found is not None:
            self._indexes.move_to_end(place)
        return found

    def index_now(self, extent: Extent, scratch: Scratch) -> BatchIndex | None:
        """`index_of` without waiting: None where the disk would have to be asked, or where the footer's block is damaged."""
        found = self.index_at_hand(extent)
        part, file = extent.summary, extent.file
        if found is not None or part.detail_size > SCRATCH_BYTES:
            return found
        block = scratch.read(file, part.detail_position, part.detail_size)
        if block is None:
            return None
        try:
            found = open_detail(self.keys, block, file.number, part)
        except TamperedData:
            return None
        self._cache((file.number, part.topic_id, part.partition), found)
        return found

    async def index_of(self, extent: Extent) -> BatchIndex:
        """The extent's index: growing, cached, or read from its footer. TamperedData when that block is damaged."""
        found = self.index_at_hand(extent)
        if found is not None:
            return found
        part, file = extent.summary, extent.file
        place = (file.number, part.topic_id, part.partition)
        file.hold()
        try:
            found = await self.seams.executor.run("read", lambda: read_detail(self.keys, file.file, file.number, part))
        except TamperedData:
            made, damage = await self.seams.executor.run("read", lambda: self._reindex(file, part))
            self.footers_repaired += 1
            part.damage += [lost for lost in damage if not _known(lost, part.damage)]
            extent.index = made
            return made
        finally:
            file.release()
        self._cache(place, found)
        return found

    async def load_indexes(self, extents: Sequence[Extent]) -> None:
        """Those that are not in memory, with one piece of work; a damaged one is left to `index_of`."""
        missing = [extent for extent in extents if self.index_at_hand(extent) is None]
        if not missing:
            return
        for extent in missing:
            extent.file.hold()
        try:
            found = await self.seams.executor.run("read", lambda: [self._detail(extent) for extent in missing])
        finally:
            for extent in missing:
                extent.file.release()
        for extent, index in zip(missing, found, strict=True):
            if index is not None:
                self._cache((extent.file.number, extent.summary.topic_id, extent.summary.partition), index)

    def _detail(self, extent: Extent) -> BatchIndex | None:
        """Blocking. None when the footer's block is damaged."""
        try:
            return read_detail(self.keys, extent.file.file, extent.file.number, extent.summary)
        except TamperedData:
            return None

    def _reindex(self, file: LogFile, part: PartitionSummary) -> tuple[BatchIndex, list[DamagedRange]]:
        """Blocking. The footer's block is damaged: the batches' own headers make the index again, and opening them proves it.
        The chain, whose ends the summary knows, tells what they cannot: which are missing, and which are not the right ones."""
        data = file.file.read_at(0, file.entry.data_end)
        index = BatchIndex()
        damage: list[DamagedRange] = []
        base, reached, tag, flags = part.first_offset, part.first_offset, part.chain_in, 0
        found = [(b.position, b.header) for b in batches(data, FILE_HEADER_BYTES, len(data)) if b.header is not None]
        for position, header in sorted(found, key=lambda row: row[1].base_offset):
            if (header.topic_id, header.partition) != (part.topic_id, part.partition) or header.base_offset < reached:
                continue
            if header.base_offset > reached:
                damage.append(DamagedRange(reached, header.base_offset, HEADER_LOST))
            elif header.previous_tag != tag and not chain_begins_anew(flags, header.flags):
                damage.append(DamagedRange(base, reached, NOT_CHAINED))
            base, reached, tag = header.base_offset, header.next_offset, batch_tag(data, position, header)
            flags = header.flags
            index.add(
                base,
                header.last_offset_delta,
                position,
                header.sealed_bytes,
                header.sequence,
                header.max_timestamp_ms,
                header.flags,
                tag,
                key_hashes(data, position, header),
            )
        if reached < part.next_offset:
            damage.append(DamagedRange(reached, part.next_offset, HEADER_LOST))
        elif tag != part.chain_out and not flags & FLAG_REWRITTEN:  # of rewritten ones the footer says what was replaced
            damage.append(DamagedRange(base, reached, NOT_CHAINED))
        return index, [lost for lost in damage if lost.start < lost.end]

    def _cache(self, place: tuple[int, bytes, int], index: BatchIndex) -> None:
        if place not in self._indexes:
            self._indexes[place] = index
            self._indexes_bytes += index.size_in_memory()
        while self._indexes_bytes > self.options.index_cache_bytes_max and len(self._indexes) > 1:
            self._indexes_bytes -= self._indexes.popitem(last=False)[1].size_in_memory()

    # -- partitions -------------------------------------------------------------------------------------------------------

    def partition(self, topic_id: bytes, partition: int) -> PartitionLog:
        found = self.partitions.get((topic_id, partition))
        if found is None:
            found = self.partitions[topic_id, partition] = PartitionLog(topic_id, partition)
        return found

    def known_keys(self, topic_id: bytes) -> list[WrappedKey]:
        """Every wrapped key of a topic, for a file of which it is no longer known which it uses."""
        return [WrappedKey(topic_id, key_id, wrapped) for key_id, wrapped in self.keys.keyring.known(topic_id)]

    def forget_topic(self, topic_id: bytes) -> None:
        for place in [place for place in self.partitions if place[0] == topic_id]:
            del self.partitions[place]
        for cached in [place for place in self._indexes if place[1] == topic_id]:
            self._indexes_bytes -= self._indexes.pop(cached).size_in_memory()
        self.keys.forget(topic_id)

    def add_extent(self, file: LogFile, summary: PartitionSummary, index: BatchIndex | None) -> None:
        log = self.partition(summary.topic_id, summary.partition)
        log.extents.append(Extent(file, summary, index))

    def close(self) -> None:
        """Blocking."""
        for file in self.files.values():
            file.close()


def _known(lost: DamagedRange, damage: list[DamagedRange]) -> bool:
    return any(known.start <= lost.start and lost.end <= known.end for known in damage)


def snapshot_path(number: int) -> str:
    return f"{STATE_FOLDER}/{number:016x}.snapshot"
