"""Examining a whole data folder, offline: every file, every header, every tag, every chain, both copies of what stands twice.

Reads only: nothing is changed, so it may be run on a folder that a start refuses. The caller holds the
folder's lock. Blocking from end to end.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from broker.errors import StorageDamaged
from broker.log.batch_check import Progress, Span, joined
from broker.log.examination import FileExamination, LostState, summary_of
from broker.log.findings import Examined, Finding, Severity, Verdict
from broker.log.footer import Summary
from broker.log.journal_bytes import JournalBytes
from broker.log.log_start import log_starts
from broker.log.manifest import FileEntry, FileState, Manifest, newest_manifest
from broker.log.reader import PartitionKey
from broker.log.recovery import newest_durable_through
from broker.log.sealing import LogKeys
from broker.log.state import Entry, Kind, Snapshot, StateTable, StateView, TopicState, open_snapshot
from broker.log.store import JOURNAL_FOLDER, SEGMENT_FOLDER, STATE_FOLDER, VIEW_FOLDER, snapshot_path
from broker.log.two_copies import TwoCopyFile
from broker.seams import Disk, File, KeyedStore, Random
from security.crypto.keyring import Keyring
from security.crypto.keystore import SYSTEM_TOPIC_ID, KeyStore
from security.errors import TamperedData

MANIFESTS = ("manifest.a", "manifest.b")


class Verifier:
    """`keystore` is loaded. `open_view` opens the view without changing it; None: there is none, or it is not to be looked at."""

    def __init__(
        self,
        disk: Disk,
        keystore: KeyStore,
        random: Random,
        open_view: Callable[[], KeyedStore] | None,
        progress: Progress = lambda _: None,
    ) -> None:
        self._disk = disk
        self._keystore = keystore
        self._keys = LogKeys(Keyring(keystore, random.bytes), keystore.cluster_id, random)
        self._open_view = open_view
        self._progress = progress
        self._findings: list[Finding] = []
        self._examined: list[Examined] = []
        self._files: dict[int, File] = {}
        self._summaries: dict[int, Summary | None] = {}
        self._spans: dict[PartitionKey, list[Span]] = {}
        self._states: list[tuple[int, list[Entry]]] = []
        self._lost_states: list[LostState] = []
        self._live = keystore.topic_ids()
        self._table = StateTable()
        self._view_group = 0
        self._view_whole = False
        self._snapshot: Snapshot | None = None

    def run(self) -> Verdict:
        """StorageDamaged when nothing says which files there are; FormatUnsupported and KeysMismatch as at a start."""
        manifest = self._manifest()
        try:
            if manifest is not None:
                self._examine(manifest)
        finally:
            for file in self._files.values():
                file.close()
        return Verdict(cluster_id=self._keystore.cluster_id.hex(), files=self._examined, findings=self._findings)

    def bytes_to_read(self) -> int:
        """Of the files in the log's folders: what `progress` adds up to, about."""
        return sum(
            self._size(f"{folder}/{name}") for folder in (JOURNAL_FOLDER, SEGMENT_FOLDER) for name in self._disk.list(folder)
        )

    def _examine(self, manifest: Manifest) -> None:
        self._open_files(manifest)
        self._read_snapshot(manifest)
        view = self._read_view(manifest)
        self._table.apply(view if self._view_whole else [] if self._snapshot is None else self._snapshot.entries)
        self._examine_files(manifest)
        self._compare_view(view)
        self._judge_states()
        self._join()
        self._orphans(manifest)

    # -- small files ------------------------------------------------------------------------------------------------------

    def _manifest(self) -> Manifest | None:
        copies = TwoCopyFile(self._disk, "", "manifest").read_all()
        manifest, damaged = newest_manifest(self._keys, copies)
        for path, data in copies:
            self._examined.append(Examined(path=path, kind="manifest", bytes=len(data)))
        if manifest is None:
            left = [name for folder in (JOURNAL_FOLDER, SEGMENT_FOLDER) for name in self._disk.list(folder)]
            if left:
                raise StorageDamaged(" and ".join(MANIFESTS), f"both are gone, yet {len(left)} log files are there")
            return None
        for path in damaged:
            self._add(Severity.MENDABLE, "manifest", path, "does not authenticate; the other copy is whole")
        whole = [(path, data) for path, data in copies if path not in damaged]
        for path in MANIFESTS:
            if path not in dict(copies):
                self._add(Severity.MENDABLE, "manifest", path, "is not there; the other copy is whole")
        if len(whole) == 2 and whole[0][1] != whole[1][1]:
            older = min(whole, key=lambda copy: self._manifest_number(copy[1]))[0]
            self._add(Severity.MENDABLE, "manifest", older, "is older than the other copy: a write was cut off between the two")
        return manifest

    def _manifest_number(self, data: bytes) -> int:
        found, _ = newest_manifest(self._keys, [("", data)])
        return 0 if found is None else found.number

    def _read_snapshot(self, manifest: Manifest) -> None:
        if manifest.snapshot is None:
            return
        path = snapshot_path(manifest.snapshot)
        try:
            data = self._read(path)
            self._examined.append(Examined(path=path, kind="snapshot", bytes=len(data)))
            self._snapshot = open_snapshot(self._keys, path, data)
            self._adopt(self._snapshot.entries)
        except (TamperedData, FileNotFoundError) as problem:
            gone = isinstance(problem, FileNotFoundError)
            self._add(Severity.MENDABLE, "snapshot", path, "is not there" if gone else "does not authenticate")

    def _adopt(self, entries: list[Entry]) -> None:
        table = StateTable()
        table.apply(entries)
        table.adopt_keys(self._keys)

    def _read_view(self, manifest: Manifest) -> list[Entry]:
        """Its entries; damage of it counts only when the snapshot is gone as well."""
        if self._open_view is None:
            return []
        self._examined.append(Examined(path=VIEW_FOLDER, kind="view"))
        problem: str | None = None
        entries: list[Entry] = []
        try:
            view = StateView(self._open_view(), self._keys)
            try:
                self._view_group, entries = view.load()
            finally:
                view.close()
        except (StorageDamaged, TamperedData) as damage:
            problem = str(damage)
        else:
            if self._view_group < manifest.snapshot_group:
                problem = f"it reflects group {self._view_group}, the snapshot {manifest.snapshot_group}"
        self._view_whole = problem is None
        if problem is not None:
            self._add(Severity.MENDABLE, "view", VIEW_FOLDER, problem)
            self._view_group, entries = 0, []
        if not self._view_whole and self._snapshot is None and manifest.snapshot is not None:
            self._add(
                Severity.LOST, "view", VIEW_FOLDER, "neither it nor the snapshot is whole: state older than the journals is gone"
            )
        return entries

    def _compare_view(self, entries: list[Entry]) -> None:
        """Snapshot and later groups must make the same state. Wrapped keys are left out: a start adds its own."""
        if not self._view_whole or self._snapshot is None or self._lost_states:
            return
        table = StateTable()
        table.apply(self._snapshot.entries)
        for group, changes in sorted(self._states, key=lambda state: state[0]):
            if group <= self._view_group:
                table.apply(changes)
        different = _told(entries) ^ _told(table.entries())
        if different:
            problem = f"{len(different)} entries differ from what the snapshot and the journals make"
            self._add(Severity.MENDABLE, "view", VIEW_FOLDER, problem)

    # -- files ------------------------------------------------------------------------------------------------------------

    def _open_files(self, manifest: Manifest) -> None:
        """Footers first: they carry the keys that everything else needs."""
        for entry in manifest.files:
            try:
                file = self._files[entry.number] = self._disk.open(entry.path)
            except FileNotFoundError:
                self._add(Severity.LOST, "file", entry.path, "is gone, yet the manifest lists it")
                continue
            if entry.state is FileState.SEALED:
                found = self._summaries[entry.number] = summary_of(self._keys, entry, file)
                for key in () if found is None else found.keys:
                    self._keys.keyring.adopt(key.topic_id, key.key_id, key.wrapped)

    def _examine_files(self, manifest: Manifest) -> None:
        self._live -= {SYSTEM_TOPIC_ID}
        there = [entry for entry in manifest.files if entry.number in self._files]
        unsealed = [entry for entry in there if entry.state is not FileState.SEALED]
        through = self._durable_through(unsealed)
        names = self._names()
        unconfirmed: tuple[FileEntry, int] | None = None  # the journal before, when a power cut may have taken groups of it
        # Journals first, oldest first: they carry keys too, of batches in segments that lost their footers.
        for entry in sorted(there, key=lambda entry: (entry.kind, entry.number)):
            examination = FileExamination(
                self._keys,
                entry,
                self._files[entry.number],
                live=self._live,
                names=names,
                snapshot_group=0 if self._snapshot is None else self._snapshot.group,
                progress=self._progress,
            )
            if entry.state is FileState.SEALED:
                examination.sealed(self._summaries[entry.number])
            else:
                if unconfirmed is not None:
                    before, last_group = unconfirmed
                    examination.last_group = max(last_group, through, before.first_group - 1)
                examination.unsealed(through)
                unconfirmed = None if entry.data_end else (entry, examination.last_group)
            self._take(examination)

    def _take(self, examination: FileExamination) -> None:
        self._examined.append(examination.examined)
        self._findings += examination.findings
        self._states += examination.states
        self._lost_states += examination.lost_states
        for place, span in examination.spans.items():
            self._spans.setdefault(place, []).append(span)

    def _durable_through(self, unsealed: list[FileEntry]) -> int:
        loaded = [(entry, *self._bytes_of(self._files[entry.number])) for entry in unsealed]
        sealed = [found.last_group for found in self._summaries.values() if found is not None]
        return max([newest_durable_through(loaded), self._view_group, *sealed])

    @staticmethod
    def _bytes_of(file: File) -> tuple[JournalBytes, int]:
        end = file.size()
        return JournalBytes(file, end), end

    def _names(self) -> dict[bytes, str]:
        topics = self._table.entries(Kind.TOPIC)
        return {e.key: msgspec.msgpack.decode(e.value, type=TopicState).name for e in topics if e.value is not None}

    # -- together ---------------------------------------------------------------------------------------------------------

    def _judge_states(self) -> None:
        """State entries that do not open are lost only when neither view nor snapshot reflects their group."""
        held = max(self._view_group if self._view_whole else 0, 0 if self._snapshot is None else self._snapshot.group)
        for lost in self._lost_states:
            severity = Severity.HARMLESS if lost.group <= held else Severity.LOST
            self._add(severity, "state", lost.path, lost.problem, lost.start, lost.end)

    def _join(self) -> None:
        names, starts = self._names(), log_starts(self._table)
        for (topic_id, partition), spans in self._spans.items():
            if topic_id not in self._live:
                continue
            begin = starts.get((topic_id, partition))
            start = 0 if begin is None else max(begin.offset, begin.base_offset)  # the latter is more where damage lies between
            for span, first, end, why in joined([span for span in spans if span.next_offset > start], start):
                if not self._told_of(topic_id, partition, first, end):
                    self._findings.append(
                        Finding(
                            severity=Severity.LOST,
                            what="chain",
                            path=span.path,
                            problem=why,
                            topic=names.get(topic_id, topic_id.hex()),
                            topic_id=topic_id,
                            partition=partition,
                            from_offset=first,
                            to_offset=end,
                        )
                    )

    def _told_of(self, topic_id: bytes, partition: int, start: int, end: int) -> bool:
        """Whether a finding about these offsets, or right beside them, stands already."""
        return any(
            (found.topic_id, found.partition) == (topic_id, partition)
            and found.from_offset is not None
            and found.to_offset is not None
            and found.from_offset <= end
            and start <= found.to_offset
            for found in self._findings
        )

    def _orphans(self, manifest: Manifest) -> None:
        listed = {entry.path for entry in manifest.files}
        if manifest.snapshot is not None:
            listed.add(snapshot_path(manifest.snapshot))
        for folder in (JOURNAL_FOLDER, SEGMENT_FOLDER, STATE_FOLDER):
            for name in self._disk.list(folder):
                if f"{folder}/{name}" not in listed:
                    self._add(Severity.NOTE, "orphan", f"{folder}/{name}", "no manifest lists it: the next start removes it")

    # -- small things -----------------------------------------------------------------------------------------------------

    def _add(
        self, severity: Severity, what: str, path: str, problem: str, start: int | None = None, end: int | None = None
    ) -> None:
        self._findings.append(Finding(severity=severity, what=what, path=path, problem=problem, start=start, end=end))

    def _read(self, path: str) -> bytes:
        file = self._disk.open(path)
        try:
            return file.read_at(0, file.size())
        finally:
            file.close()

    def _size(self, path: str) -> int:
        file = self._disk.open(path)
        try:
            return file.size()
        finally:
            file.close()


def _told(entries: list[Entry]) -> set[tuple[int, bytes, bytes | None]]:
    return {(entry.kind, entry.key, entry.value) for entry in entries if entry.kind != Kind.WRAPPED_KEY}
