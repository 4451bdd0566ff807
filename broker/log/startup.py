"""Opening a data folder: keys, manifest, view, sealed files, recovery of journals, and what is reported of it (decision 0001,
section 10)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from broker.errors import FormatUnsupported, StorageDamaged
from broker.log.files import LogFile
from broker.log.footer import DamagedRange, read_summary
from broker.log.journal_bytes import JournalBytes
from broker.log.layout import FILE_HEADER_BYTES, FORMAT_VERSION, NO_TAG, GroupHeader, parse_file_header
from broker.log.log_start import log_starts
from broker.log.manifest import FileEntry, FileKind, FileState, newest_manifest
from broker.log.partition import Extent, LogStart
from broker.log.recovery import (
    EVERYTHING,
    Chain,
    PartitionKey,
    RecoveredFile,
    Recovery,
    TailCut,
    first_group,
    newest_durable_through,
    read_states,
)
from broker.log.sealing import LogKeys
from broker.log.state import Entry, StateTable, StateView, open_snapshot
from broker.log.store import JOURNAL_FOLDER, SEGMENT_FOLDER, STATE_FOLDER, VIEW_FOLDER, LogStore, snapshot_path
from broker.seams import Seams
from security.crypto.keyring import Keyring
from security.crypto.keystore import KeyStore
from security.errors import TamperedData


class RecoveryReport(msgspec.Struct, gc=False):
    """What the last start found. `damaged_files`: small files or footers of which a damaged copy was stepped over.
    `state_damaged`: something was damaged that the state would be restored from."""

    journals: int = 0
    groups: int = 0
    tail_cuts: list[TailCut] = []
    damaged_files: list[str] = []
    orphans: list[str] = []
    view_rebuilt: str | None = None
    view_ahead: bool = False
    shredded_batches: int = 0
    state_damaged: bool = False


class Opened(msgspec.Struct, gc=False):
    """The result of a start, before the first new journal file. `state_group`: the newest group that changed the state.
    `view_lacks`: entries up to it to be written to the view; None when it has them all."""

    view: StateView
    table: StateTable
    recovered: list[RecoveredFile]
    last_group: int
    state_group: int
    view_lacks: list[Entry] | None
    next_sequence: int
    report: RecoveryReport


class Startup:
    """Blocking from end to end: runs on a lane while nobody else touches the store."""

    def __init__(self, seams: Seams, store: LogStore, keystore: KeyStore) -> None:
        self._seams = seams
        self._store = store
        self._keystore = keystore
        self._report = RecoveryReport()
        self._repaired_states: list[tuple[int, list[Entry]]] = []
        self._damaged_manifests: list[str] = []
        self._view: StateView | None = None
        self._starts: dict[PartitionKey, LogStart] = {}

    def run(self) -> Opened:
        try:
            return self._run()
        except BaseException:
            self._close_view()
            raise

    def _run(self) -> Opened:
        disk = self._seams.disk
        for folder in (JOURNAL_FOLDER, SEGMENT_FOLDER, STATE_FOLDER):
            disk.make_folder(folder)
        disk.sync_folder("")
        self._new_keys()
        self._load_manifest()
        self._check_files()
        self._store.equal_manifests()
        self._remove_orphans()
        view, group, entries = self._open_view()
        try:
            return self._open_files(view, group, entries)
        except TamperedData as problem:
            # A wrapped key of the view differs from the one in a file: the files are authenticated, so the view is wrong.
            self._close_view()
            self._forget_opened()
            self._new_keys()
            view, group, entries = self._rebuild_view(f"it contradicts the files ({problem})")
            return self._open_files(view, group, entries)

    def _forget_opened(self) -> None:
        self._report = RecoveryReport(orphans=self._report.orphans, damaged_files=list(self._damaged_manifests))
        self._repaired_states.clear()
        self._store.unattributed.clear()
        self._store.close()
        self._store.files.clear()
        self._store.partitions.clear()
        self._store.summaries.clear()
        self._store.repaired.clear()

    def _new_keys(self) -> None:
        keyring = Keyring(self._keystore, self._seams.random.bytes)
        self._store.keys = LogKeys(keyring, self._keystore.cluster_id, self._seams.random)

    def _load_manifest(self) -> None:
        manifest, damaged = newest_manifest(self._store.keys, self._store.manifest_copies())
        self._damaged_manifests = damaged
        self._report.damaged_files += damaged
        if manifest is None:
            left = [name for folder in (JOURNAL_FOLDER, SEGMENT_FOLDER) for name in self._seams.disk.list(folder)]
            if left:
                raise StorageDamaged("manifest.a and manifest.b", f"both are gone, yet {len(left)} log files are there")
            self._store.found_manifest()
            return
        self._store.manifest = manifest

    def _check_files(self) -> None:
        """Refuse what this build cannot read or does not find, by name, before anything is changed."""
        for entry in self._store.manifest.files:
            if not self._seams.disk.exists(entry.path):
                raise StorageDamaged(entry.path, "it is gone, yet the manifest lists it")
            header = parse_file_header(self._read(entry.path, FILE_HEADER_BYTES))
            if header is not None and header.version > FORMAT_VERSION:
                raise FormatUnsupported(entry.path, header.version, FORMAT_VERSION)

    def _read(self, path: str, size_max: int | None = None) -> bytes:
        file = self._seams.disk.open(path)
        try:
            return file.read_at(0, file.size() if size_max is None else size_max)
        finally:
            file.close()

    def _remove_orphans(self) -> None:
        """What the manifest does not list was never part of the log, or no longer is."""
        listed = {entry.path for entry in self._store.manifest.files}
        if self._store.manifest.snapshot is not None:
            listed.add(snapshot_path(self._store.manifest.snapshot))
        for folder in (JOURNAL_FOLDER, SEGMENT_FOLDER, STATE_FOLDER):
            for name in self._seams.disk.list(folder):
                if f"{folder}/{name}" not in listed:
                    self._seams.disk.remove(f"{folder}/{name}")
                    self._report.orphans.append(f"{folder}/{name}")

    # -- view -------------------------------------------------------------------------------------------------------------

    def _new_view(self) -> StateView:
        self._view = StateView(self._seams.stores.open(VIEW_FOLDER), self._store.keys)
        return self._view

    def _close_view(self) -> None:
        """RocksDB holds a lock of its own, so it is closed before it is rebuilt and when a start fails."""
        if self._view is not None:
            self._view.close()
            self._view = None

    def _open_view(self) -> tuple[StateView, int, list[Entry]]:
        try:
            view = self._new_view()
            group, entries = view.load()
        except (StorageDamaged, TamperedData) as problem:
            self._close_view()
            self._new_keys()
            return self._rebuild_view(str(problem))
        manifest = self._store.manifest
        if manifest.snapshot is not None:
            self._read_snapshot(manifest.snapshot)  # damage is told while the view can still do without it
        if group < manifest.snapshot_group:
            self._close_view()
            self._new_keys()
            return self._rebuild_view("it is older than the snapshot that replaced removed journals")
        return view, group, entries

    def _read_snapshot(self, number: int) -> tuple[int, list[Entry]] | None:
        path = snapshot_path(number)
        try:
            snapshot = open_snapshot(self._store.keys, path, self._read(path))
        except (TamperedData, FileNotFoundError):
            if path not in self._report.damaged_files:
                self._report.damaged_files.append(path)
            self._report.state_damaged = True
            return None
        return snapshot.group, snapshot.entries

    def _rebuild_view(self, reason: str) -> tuple[StateView, int, list[Entry]]:
        self._report.view_rebuilt, self._report.state_damaged = reason, True
        group, entries = 0, list[Entry]()
        if self._store.manifest.snapshot is not None:
            found = self._read_snapshot(self._store.manifest.snapshot)
            if found is None:
                raise StorageDamaged(VIEW_FOLDER, f"{reason}; and its snapshot is damaged too: state cannot be restored")
            group, entries = found
        self._seams.stores.destroy(VIEW_FOLDER)
        view = self._new_view()
        table = StateTable()
        table.apply(entries)
        table.adopt_keys(self._store.keys)
        return view, group, entries

    # -- files ------------------------------------------------------------------------------------------------------------

    def _open_files(self, view: StateView, view_group: int, entries: list[Entry]) -> Opened:
        table = StateTable()
        table.apply(entries)
        table.adopt_keys(self._store.keys)
        unsealed: list[FileEntry] = []
        footless: list[FileEntry] = []
        sealed_last_group = 0
        for entry in self._store.manifest.files:
            log_file = self._store.attach(entry, self._seams.disk.open(entry.path))
            if entry.state is not FileState.SEALED:
                unsealed.append(entry)
            elif not self._take_summary(log_file):
                footless.append(entry)
            else:
                sealed_last_group = max(sealed_last_group, self._store.summaries[entry.number].last_group)
        for entry in footless:
            sealed_last_group = max(sealed_last_group, self._read_without_footer(entry))
        self._starts = log_starts(table)
        recovered, last_group, ahead = self._recover(unsealed, view_group, sealed_last_group)
        if ahead:
            view, view_group, entries = self._view_was_ahead()
            table = StateTable()
            table.apply(entries)
        state_group, view_lacks = self._replay(table, view_group, recovered)
        self._begin_partitions(log_starts(table))
        self._join_extents()
        self._report.journals = len(unsealed)
        next_sequence = self._next_sequence(recovered)
        return Opened(view, table, recovered, last_group, state_group, view_lacks, next_sequence, self._report)

    def _next_sequence(self, recovered: list[RecoveredFile]) -> int:
        seen = [extent.summary.max_sequence + 1 for log in self._store.partitions.values() for extent in log.extents]
        return max([self._store.manifest.next_sequence, *seen, *(found.next_sequence for found in recovered)])

    def _take_summary(self, file: LogFile) -> bool:
        try:
            summary, _ = read_summary(self._store.keys, file.file, file.path, file.number, file.entry.summary_tag)
        except TamperedData:
            self._report.damaged_files.append(file.path)
            return False
        self._store.summaries[file.number] = summary
        self._store.unattributed += summary.unattributed
        for key in summary.keys:
            self._store.keys.keyring.adopt(key.topic_id, key.key_id, key.wrapped)
        for part in summary.partitions:
            self._store.add_extent(file, part, None)
        return True

    def _read_without_footer(self, entry: FileEntry) -> int:
        """A sealed file whose footer is damaged: its own bytes say it all once more."""
        file = self._store.files[entry.number]
        journals = [other for other in self._store.manifest.files if other.kind is FileKind.JOURNAL]
        following = min((other.first_group for other in journals if other.number > entry.number), default=None)
        recovery = Recovery(self._store.keys, {}, 0, EVERYTHING, entry.first_group - 1, following, whole=False)
        if entry.kind is FileKind.JOURNAL:
            found = recovery.read_journal(entry, JournalBytes(file.file, entry.data_end), EVERYTHING, entry.data_end)
        else:
            found = recovery.read_segment(entry, file.file.read_at(0, entry.data_end), entry.data_end)
        self._add_recovered(file, found)
        self._repaired_states += found.states
        self._store.footers_repaired += 1
        self._store.repaired[entry.number] = found
        return found.last_group

    def _add_recovered(self, file: LogFile, found: RecoveredFile) -> None:
        self._store.unattributed += found.unattributed
        self._report.groups += found.groups
        self._report.shredded_batches += found.shredded_batches
        self._report.state_damaged = self._report.state_damaged or found.state_damaged
        for part in found.partitions.values():
            self._store.add_extent(file, part.summary, part.index)

    def _begin_partitions(self, starts: Mapping[PartitionKey, LogStart]) -> None:
        """What lies below the log starts is no part of the log any more, whatever files still hold of it."""
        for log in self._store.partitions.values():
            # What a merge has left of records that were just deleted may be nothing, where the next extent begins: it is first.
            log.extents.sort(key=lambda extent: (extent.summary.first_offset, extent.summary.next_offset))
        for place, start in starts.items():
            log = self._store.partition(*place)
            log.begin_at(start)
            log.drop_dead()

    def _join_extents(self) -> None:
        """Check that each partition's extents meet; what is missing between them is damage."""
        for log in self._store.partitions.values():
            kept = log.first_kept or LogStart(0, NO_TAG, 0, 0)
            offset, tag = kept.base_offset, kept.chain_in
            if log.extents and log.extents[0].summary.first_offset < offset:
                # It begins with batches that are let go: nothing says any more what they followed.
                offset, tag = log.extents[0].summary.first_offset, b""
            for extent in log.extents:
                part = extent.summary
                if part.first_offset > max(offset, log.log_start):
                    missing = DamagedRange(max(offset, log.log_start), part.first_offset, "missing between two files")
                    part.damage.append(missing)
                elif tag not in (part.chain_in, b"") and not self._damaged_near(log.extents, offset):
                    part.damage.append(DamagedRange(max(0, offset - 1), offset, "not what its successor was chained to"))
                offset, tag = part.next_offset, part.chain_out

    def _chains_before(self, sequence: int) -> dict[PartitionKey, Chain]:
        """Where each partition stands before a commit sequence. A journal may be unsealed while later ones are sealed."""
        chains: dict[PartitionKey, Chain] = {}
        for place, log in self._store.partitions.items():
            before = [extent for extent in log.extents if extent.summary.min_sequence < sequence]
            if before:
                last = max((extent.summary for extent in before), key=lambda part: part.next_offset)
                tag = None if self._damaged_near(before, last.next_offset) else last.chain_out or None
                chains[place] = Chain(last.next_offset, tag)
        for place in self._starts:
            if place not in chains:
                chains[place] = Chain(None, None)  # files below its log start may be gone; `_join_extents` sees if more is
        return chains

    @staticmethod
    def _damaged_near(extents: list[Extent], offset: int) -> bool:
        return any(d.start <= offset <= d.end for extent in extents for d in extent.summary.damage)

    # -- journals ---------------------------------------------------------------------------------------------------------

    def _recover(
        self, unsealed: list[FileEntry], view_group: int, sealed_last_group: int
    ) -> tuple[list[RecoveredFile], int, bool]:
        """Files found, the newest group, and whether the view is ahead of it."""
        loaded = [(entry, *self._load(entry)) for entry in unsealed]
        durable = max(newest_durable_through(loaded), sealed_last_group, view_group)
        firsts = {entry.number: first_group(data, end) for entry, data, end in loaded}
        recovered: list[RecoveredFile] = []
        newest = 0
        cut = False
        unconfirmed: FileEntry | None = None  # the file before, when it may have lost groups that nothing confirms
        for entry, data, end in loaded:
            first = firsts[entry.number]
            newest = max(newest, self._last_group_before(entry.number), 0)
            known = EVERYTHING if unconfirmed is None else max(newest, durable, unconfirmed.first_group - 1)
            if first is not None and (first.number > known + 1 or (cut and first.number not in (newest + 1, 0))):
                # Written after bytes that were lost (only without fsync): nothing behind a cut, or a hole, is confirmed.
                found = RecoveredFile(entry)
                found.tail_cut = TailCut(entry.path, FILE_HEADER_BYTES, end - FILE_HEADER_BYTES, "follows a cut")
            else:
                before = max(newest, entry.first_group - 1)  # sealed journals may be merged away by now
                found = self._read_unsealed(entry, data, end, durable, view_group, before, first, firsts)
            if found.tail_cut is not None:
                cut = True
                self._report.tail_cuts.append(found.tail_cut)
            newest = max(newest, found.last_group)
            unconfirmed = entry if entry.data_end == 0 else None
            self._add_recovered(self._store.files[entry.number], found)
            recovered.append(found)
        newest = max([newest, sealed_last_group, *(entry.first_group - 1 for entry in unsealed)])
        # A number that the view knows is not given out again, even if its group is lost.
        return recovered, max(newest, view_group), view_group > newest

    def _read_unsealed(
        self,
        entry: FileEntry,
        data: JournalBytes,
        end: int,
        durable: int,
        view_group: int,
        last_group: int,
        first: GroupHeader | None,
        firsts: dict[int, GroupHeader | None],
    ) -> RecoveredFile:
        following = self._first_group_after(entry.number, firsts)
        recovery = Recovery(
            self._store.keys,
            self._chains_before(EVERYTHING if first is None else first.first_sequence),
            first.first_sequence if first is not None and first.number == last_group + 1 else 0,
            view_group,
            last_group,
            following,
        )
        found = recovery.read_journal(entry, data, EVERYTHING if entry.data_end else durable, end)
        if found.tail_cut is None and found.last_group + 1 == following:
            # The next file says with which sequence it goes on: what is missing before it was lost at this one's end.
            for header in firsts.values():
                if header is not None and header.number == following:
                    recovery.note_sequence(found, header.first_sequence)
        found.next_sequence = recovery.next_sequence
        return found

    def _last_group_before(self, number: int) -> int:
        """The newest group of the sealed journals before a file."""
        return max((summary.last_group for n, summary in self._store.summaries.items() if n < number), default=0)

    def _first_group_after(self, number: int, firsts: dict[int, GroupHeader | None]) -> int | None:
        """The first group found in any journal after a file."""
        unsealed = [first.number for n, first in firsts.items() if n > number and first is not None]
        sealed = [summary.first_group for n, summary in self._store.summaries.items() if n > number and summary.first_group]
        return min(unsealed + sealed, default=None)

    def _load(self, entry: FileEntry) -> tuple[JournalBytes, int]:
        file = self._store.files[entry.number].file
        end = min(file.size(), entry.data_end) if entry.data_end else self._end_of_open(entry)
        return JournalBytes(file, end), end

    def _end_of_open(self, entry: FileEntry) -> int:
        """Before the footer, if one was written and the manifest was not told any more: its bytes are no group's."""
        file = self._store.files[entry.number].file
        try:
            return read_summary(self._store.keys, file, entry.path, entry.number, None)[1]
        except TamperedData:
            return file.size()

    def _view_was_ahead(self) -> tuple[StateView, int, list[Entry]]:
        """It reflects a group that the journal no longer has: only damage to the newest group can do that."""
        self._report.view_ahead = True
        self._close_view()
        return self._rebuild_view("it reflects groups that the journal has lost")

    def _replay(self, table: StateTable, view_group: int, recovered: list[RecoveredFile]) -> tuple[int, list[Entry] | None]:
        """Bring the table up to the journals, sealed ones too; the newest group it reflects, and what the view lacks of it.

        The view hears of it only when the files are sealed: what is lost of the state is then on record in a footer, and a start
        that ends in between tells of it again, where a view that had passed the place would not.
        """
        states = [state for found in recovered for state in found.states]
        states += self._sealed_states(view_group) + self._repaired_states
        newest = view_group
        later: list[Entry] = []
        for group, entries in sorted(states, key=lambda state: state[0]):
            if group > view_group:
                table.apply(entries)
                later += entries
                newest = max(newest, group)
        # A position says that its group is confirmed; of a torn one only the beginning was kept, so it stays before that.
        torn = [found.torn_group - 1 for found in recovered if found.torn_group]
        newest = max(view_group, min([newest, *torn]))
        if self._report.view_rebuilt is not None:
            later = table.entries()
        if not later and newest == view_group:
            return newest, None
        table.adopt_keys(self._store.keys)
        return newest, later

    def _sealed_states(self, view_group: int) -> list[tuple[int, list[Entry]]]:
        """Entries of sealed journals that the view does not reflect: only after it was lost, as sealing flushes it."""
        states: list[tuple[int, list[Entry]]] = []
        for number, summary in self._store.summaries.items():
            file = self._store.files[number]
            if file.entry.kind is FileKind.JOURNAL and summary.last_group > view_group:
                data = JournalBytes(file.file, min(file.entry.data_end, file.file.size()))
                states += read_states(self._store.keys, file.entry, data, summary.last_group, self._store.unattributed)
        return states
