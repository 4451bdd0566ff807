"""Examining one file of the log, offline: headers, groups, frames, state blocks, batches, chain and footer, each against what
authenticates it (decision 0001). Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from broker.log.batch_check import Batches, Expected, Progress, Span, Window, named
from broker.log.findings import Examined, Finding, Severity
from broker.log.footer import DamagedRange, PartitionSummary, Summary, read_detail, read_summary
from broker.log.layout import (
    FILE_HEADER_BYTES,
    GROUP_HEADER_BYTES,
    parse_file_header,
    salt_of_groups,
)
from broker.log.manifest import FileEntry, FileKind
from broker.log.reader import PartitionKey
from broker.log.recovery import may_hold_frame, open_state
from broker.log.scan import FoundBatch, FoundFrame, FoundGroup, Gap, batches, frames, groups
from broker.log.sealing import LogKeys
from broker.log.state import Entry, Kind, parse_wrapped_key
from broker.seams import File
from security.crypto.keystore import SYSTEM_TOPIC_ID
from security.errors import KeyProblem, TamperedData


class LostState(NamedTuple):
    """State entries of a group that do not open: lost only when nothing else reflects that group."""

    path: str
    group: int
    start: int
    end: int
    problem: str


class FileExamination:
    """One file. `live`: topics whose root keys are there; batches of others are shredded."""

    def __init__(
        self,
        keys: LogKeys,
        entry: FileEntry,
        file: File,
        *,
        live: set[bytes],
        names: dict[bytes, str],
        snapshot_group: int,
        progress: Progress,
    ) -> None:
        self.keys = keys
        self.entry = entry
        self.live = live
        self.examined = Examined(path=entry.path, kind=entry.kind.name.lower())
        self.findings: list[Finding] = []
        self.spans: dict[PartitionKey, Span] = {}
        self.states: list[tuple[int, list[Entry]]] = []
        self.lost_states: list[LostState] = []
        self.last_group = 0  # so far; the newest before the file when that may have lost some: what does not follow is cut
        self._file = file
        self._names = names
        self._snapshot_group = snapshot_group
        self._progress = progress

    def add(
        self,
        severity: Severity,
        what: str,
        problem: str,
        start: int | None = None,
        end: int | None = None,
        *,
        place: PartitionKey | None = None,
        offsets: tuple[int, int] | None = None,
    ) -> None:
        topic_id, partition = (b"", None) if place is None else place
        self.findings.append(
            Finding(
                severity=severity,
                what=what,
                path=self.entry.path,
                problem=problem,
                start=start,
                end=end,
                topic=None if place is None else self._names.get(topic_id, topic_id.hex()),
                topic_id=topic_id,
                partition=partition,
                from_offset=None if offsets is None else offsets[0],
                to_offset=None if offsets is None else offsets[1],
            )
        )

    # -- sealed files -----------------------------------------------------------------------------------------------------

    def sealed(self, summary: Summary | None) -> None:
        """`summary` None: the footer does not authenticate, which was found before any file was examined."""
        size = self.examined.bytes = self._file.size()
        self._header()
        if summary is None:
            self.add(
                Severity.MENDABLE, "footer", "does not authenticate; the file's own batches say it all", self.entry.data_end, size
            )
            self._without_footer()
            return
        self.last_group = summary.last_group
        for lost in summary.unattributed:
            self.add(Severity.QUARANTINED, "bytes", f"{lost.reason} (near commit sequence {lost.start})")
        whole = self._structure() if self.entry.kind is FileKind.JOURNAL else None
        self._indexed(summary, whole)

    def _indexed(self, summary: Summary, whole: bytes | None) -> None:
        """Every batch that the indexes name, in one pass over the file."""
        expected: list[Expected] = []
        known: dict[PartitionKey, list[DamagedRange]] = {}
        for part in summary.partitions:
            place = (part.topic_id, part.partition)
            if part.topic_id in self.live:
                known[place] = part.damage
                self._on_record(part)
                chain_out = part.chain_out or None
                self.spans[place] = Span(self.entry.path, part.first_offset, part.next_offset, part.chain_in, chain_out)
            expected += self._expected(part)
        expected.sort()
        window = Window(self._file, self.entry.data_end, self._progress)
        check = Batches(self, known, whole=False)
        reached = FILE_HEADER_BYTES
        for want in expected:
            if whole is None and want.position > reached:
                self.add(Severity.HARMLESS, "bytes", "no index names a batch here", reached, want.position)
            check.check(*((whole, want.position) if whole is not None else window.at(want.position, want.size)), want)
            reached = max(reached, want.position + want.size)
        if whole is None and reached < self.entry.data_end:
            self.add(Severity.HARMLESS, "bytes", "no index names a batch here", reached, self.entry.data_end)

    def _on_record(self, part: PartitionSummary) -> None:
        for lost in part.damage:
            place = (part.topic_id, part.partition)
            self.add(Severity.QUARANTINED, "batch", lost.reason, place=place, offsets=(lost.start, lost.end))

    def _expected(self, part: PartitionSummary) -> Iterator[Expected]:
        try:
            index = read_detail(self.keys, self._file, self.entry.number, part)
        except (TamperedData, ValueError):
            start, end = part.detail_position, part.detail_position + part.detail_size
            place = (part.topic_id, part.partition)
            self.add(
                Severity.MENDABLE, "index", "does not authenticate; the batches' own headers say it", start, end, place=place
            )
            yield from self._unindexed(part)
            return
        for ordinal in range(len(index)):
            found = index.place(ordinal)
            yield Expected(
                found.position, found.size, part.topic_id, part.partition, found.base_offset, found.next_offset, found.tag
            )

    def _unindexed(self, part: PartitionSummary) -> Iterator[Expected]:
        data = self._file.read_at(0, self.entry.data_end)
        place = (part.topic_id, part.partition)
        reached = part.first_offset
        found = [b for b in batches(data, FILE_HEADER_BYTES, len(data)) if b.header is not None]
        for batch in sorted((named(b) for b in found), key=lambda want: want.base_offset):
            if (batch.topic_id, batch.partition) != place or batch.base_offset < reached:
                continue
            self._hole(part, reached, batch.base_offset)
            reached = batch.next_offset
            yield batch
        self._hole(part, reached, part.next_offset)

    def _hole(self, part: PartitionSummary, start: int, end: int) -> None:
        on_record = any(known.start <= start and end <= known.end for known in part.damage)
        if start < end and part.topic_id in self.live and not on_record:
            place = (part.topic_id, part.partition)
            problem = "its header is damaged, and the footer that named it"
            self.add(Severity.LOST, "batch", problem, place=place, offsets=(start, end))

    def _without_footer(self) -> None:
        end = self.entry.data_end
        if self.entry.kind is FileKind.JOURNAL:
            self._walked(end, 1 << 62)
            return
        data = self._read(end)
        check = Batches(self, {}, whole=True)
        found = [named(b) for b in batches(data, FILE_HEADER_BYTES, end) if b.header is not None]
        for want in sorted(found, key=lambda want: (want.topic_id, want.partition, want.base_offset)):
            check.check(data, want.position, want)
        self.spans = check.spans
        claimed = sum(want.size for want in found)
        if claimed != end - FILE_HEADER_BYTES:
            self.add(Severity.LOST, "bytes", f"{end - FILE_HEADER_BYTES - claimed} bytes that no batch header claims")

    # -- journals ---------------------------------------------------------------------------------------------------------

    def unsealed(self, durable_through: int) -> None:
        """A journal without a footer: open, full and not sealed yet, or closed after a failed write."""
        size = self.examined.bytes = self._file.size()
        self._header()
        if self.entry.data_end:
            self._walked(min(size, self.entry.data_end), 1 << 62)
        else:
            self._walked(size, durable_through)

    def _structure(self) -> bytes:
        """Groups, frames and state blocks of a journal whose batches the footer names."""
        data = self._read(self.entry.data_end)
        for group, region in self._regions(data, len(data), self.last_group):
            for piece in region:
                if isinstance(piece, Gap):
                    self._gap(piece, group, served_by_index=True)
                else:
                    self._state(data, piece, group)
        return data

    def _walked(self, end: int, durable_through: int) -> None:
        """All of a journal by its own headers; behind the last confirmed group only an unconfirmed tail may be damaged."""
        data = self._read(end)
        check = Batches(self, {}, whole=True)
        found = list(groups(data, FILE_HEADER_BYTES, len(data), self._salt(data)))
        for at, group in enumerate(found):
            confirmed = group.header.number <= durable_through
            body_end = group.position + GROUP_HEADER_BYTES + group.header.body_bytes
            stop = found[at + 1].position if confirmed and at + 1 < len(found) else min(body_end, len(data))
            if at == 0 and group.position > FILE_HEADER_BYTES:
                self._region(data, FILE_HEADER_BYTES, group.position, group.header.number - 1, check)
            if not confirmed and (body_end > len(data) or not self._tail_checks(data, group, stop)):
                self._tail(group.position, len(data), "its last group does not check")
                break
            self._region(data, group.position + GROUP_HEADER_BYTES, stop, group.header.number, check)
            self.examined.groups += 1
            self.last_group = group.header.number
            if at + 1 == len(found) and stop < len(data):
                self._behind_last(stop, len(data), durable_through)
        if not found and len(data) > FILE_HEADER_BYTES:
            self._behind_last(FILE_HEADER_BYTES, len(data), 0)
        self.spans = check.spans

    def _behind_last(self, start: int, end: int, durable_through: int) -> None:
        """Bytes behind the last group that checks. Of a file whose later groups were confirmed elsewhere they are unknown: the
        offsets that the next file begins with tell what is missing."""
        closed = durable_through == 1 << 62
        if closed:
            self.add(Severity.LOST, "group", "bytes behind the last group that checks", start, end)
        else:
            self._tail(start, end, "no further group checks")

    def _tail(self, start: int, end: int, why: str) -> None:
        self.add(Severity.NOTE, "tail", f"{end - start} unconfirmed bytes ({why}): the next start cuts them", start, end)

    def _tail_checks(self, data: bytes, group: FoundGroup, stop: int) -> bool:
        """Whether a group that nothing confirmed is whole: then it may have been acknowledged, and counts."""
        if self.last_group and group.header.number != self.last_group + 1:
            return False
        trial = FileExamination(
            self.keys,
            self.entry,
            self._file,
            live=self.live,
            names=self._names,
            snapshot_group=self._snapshot_group,
            progress=lambda _: None,
        )
        trial._region(data, group.position + GROUP_HEADER_BYTES, stop, group.header.number, Batches(trial, {}, whole=False))
        return not trial.findings and not trial.lost_states

    def _region(self, data: bytes, start: int, stop: int, group: int, check: Batches) -> None:
        for piece in frames(data, start, stop):
            if isinstance(piece, Gap):
                self._gap(piece, group, served_by_index=False)
            else:
                self._state(data, piece, group)
            for batch in piece.batches:
                self._batch(data, batch, check)

    def _batch(self, data: bytes, batch: FoundBatch, check: Batches) -> None:
        want = named(batch)
        check.check(data, want.position, want)

    def _regions(self, data: bytes, end: int, last_group: int) -> Iterator[tuple[int, Iterable[FoundFrame | Gap]]]:
        """Group numbers (the newest that a region may hold) and the frames of their bodies."""
        found = list(groups(data, FILE_HEADER_BYTES, end, self._salt(data)))
        self.examined.groups = len(found)
        starts = [FILE_HEADER_BYTES, *(group.position + GROUP_HEADER_BYTES for group in found)]
        ends = [*(group.position for group in found), end]
        newest = [*(group.header.number - 1 for group in found), last_group]
        for start, stop, group in zip(starts, ends, newest, strict=True):
            yield group, frames(data, start, stop)

    def _gap(self, gap: Gap, group: int, *, served_by_index: bool) -> None:
        """Bytes in which no frame header checks. Batches that name themselves in them are examined by the caller."""
        if not may_hold_frame(gap):
            self.add(Severity.HARMLESS, "group", "its header does not check; what follows it does", gap.position, gap.end)
            return
        problem = "no frame header checks here"
        self.lost_states.append(LostState(self.entry.path, group, gap.position, gap.end, problem))
        if not served_by_index and not gap.batches:
            self.add(Severity.LOST, "frame", f"{problem}, nor does a batch's own", gap.position, gap.end)

    def _state(self, data: bytes, frame: FoundFrame, group: int) -> None:
        if not frame.state_bytes:
            return
        start, end = frame.state_position, frame.state_position + frame.state_bytes
        try:
            entries = open_state(self.keys, data, frame, self.entry.system_key_id)
        except KeyProblem:
            entries = None
        if entries is None:
            self.lost_states.append(LostState(self.entry.path, group, start, end, "state entries do not authenticate"))
            return
        for entry in entries:
            if entry.kind == Kind.WRAPPED_KEY and entry.value is not None:
                self.keys.keyring.adopt(*parse_wrapped_key(entry))
        if group > self._snapshot_group:
            self.states.append((group, entries))

    # -- small things -----------------------------------------------------------------------------------------------------

    def _read(self, end: int) -> bytes:
        data = self._file.read_at(0, end)
        self._progress(len(data))
        return data

    def _header(self) -> None:
        header = parse_file_header(self._file.read_at(0, FILE_HEADER_BYTES))
        if header is None:
            self.add(Severity.HARMLESS, "header", "does not check; the manifest repeats what it says", 0, FILE_HEADER_BYTES)
        elif (header.number, header.cluster_id) != (self.entry.number, self.keys.cluster_id):
            self.add(Severity.LOST, "header", "another file lies here", 0, FILE_HEADER_BYTES)
        if self.entry.kind is FileKind.JOURNAL:
            self.keys.keyring.adopt(SYSTEM_TOPIC_ID, self.entry.system_key_id, self.entry.wrapped_system_key)

    @staticmethod
    def _salt(data: bytes) -> int:
        header = parse_file_header(data[:FILE_HEADER_BYTES])
        return salt_of_groups(data) if header is None else header.salt


def summary_of(keys: LogKeys, entry: FileEntry, file: File) -> Summary | None:
    """The footer's summary; None when it does not authenticate."""
    try:
        summary, data_end = read_summary(keys, file, entry.path, entry.number, entry.summary_tag)
    except TamperedData:
        return None
    return summary if data_end == entry.data_end else None
