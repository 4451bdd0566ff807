"""Reading back a journal that was not sealed: what is kept, what is quarantined, what is cut (decision 0001, section 10).

Every batch is opened and chained. Up to the newest durable-through, damage is quarantined and the rest kept; after it, the first
byte that does not check ends the log. Sealed files whose footers are damaged are read the same way, with everything durable.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import msgspec

from broker.log.footer import DamagedRange, PartitionSummary, WrappedKey
from broker.log.index import BatchIndex
from broker.log.journal_bytes import JournalBytes
from broker.log.layout import (
    BATCH_HEADER_BYTES,
    FILE_HEADER_BYTES,
    FLAG_KEYS_COMPLETE,
    FLAG_REWRITTEN,
    GROUP_HEADER_BYTES,
    NO_TAG,
    TAG_BYTES,
    BatchHeader,
    GroupHeader,
    chain_begins_anew,
)
from broker.log.manifest import FileEntry
from broker.log.scan import FoundBatch, FoundFrame, FoundGroup, Gap, batches, frames
from broker.log.sealing import LogKeys, batch_tag
from broker.log.state import Entry, Kind, decode_entries, parse_wrapped_key
from broker.seams import Buffer
from security.crypto.envelope import Cipher
from security.crypto.keystore import SYSTEM_TOPIC_ID
from security.errors import KeyProblem, KeyShredded, TamperedData

PartitionKey = tuple[bytes, int]
UNKNOWN_TAG = b""
"""As the chain's end of a file: whatever follows is not compared with it."""
EVERYTHING = 1 << 62
"""As `durable_through`: the whole file is confirmed."""
STATE_LOST = "state entries of a frame do not authenticate"
FRAME_LOST = "a frame was lost, with what state entries it had"
GROUP_LOST = "a confirmed group was lost whole"
BYTES_LOST = "bytes of a segment that no batch header claims"
BATCHES_LOST = "batches lost with their frame"
NOT_CHAINED = "not the batch that its successor was chained to"


class TailCut(msgspec.Struct, frozen=True, gc=False):
    """Bytes after the last confirmed group that did not check and were dropped."""

    path: str
    position: int
    size: int
    reason: str


class Chain:
    """Where a partition stands while it is read: `tag` None accepts any predecessor (after damage), `next_offset` None any
    first offset. `flags`: of the batch before, 0 where only its tag is known."""

    __slots__ = ("base_offset", "flags", "next_offset", "tag")

    def __init__(self, next_offset: int | None, tag: bytes | None, base_offset: int | None = None) -> None:
        self.next_offset = next_offset
        self.tag = tag
        self.base_offset = base_offset
        self.flags = 0


class RecoveredPartition:
    """One partition's batches of one file, as found."""

    def __init__(self, summary: PartitionSummary) -> None:
        self.summary = summary
        self.index = BatchIndex()


class RecoveredFile:
    """What one file gave."""

    def __init__(self, entry: FileEntry) -> None:
        self.entry = entry
        self.partitions: dict[PartitionKey, RecoveredPartition] = {}
        self.keys: dict[tuple[bytes, int], WrappedKey] = {}
        self.states: list[tuple[int, list[Entry]]] = []
        self.unattributed: list[DamagedRange] = []
        self.tail_cut: TailCut | None = None
        self.first_group = 0
        self.last_group = 0
        self.data_end = FILE_HEADER_BYTES
        self.confirmed_end = FILE_HEADER_BYTES  # behind it lies what no later group says was synced
        self.groups = 0
        self.shredded_batches = 0
        self.next_sequence = 0
        self.state_damaged = False
        self.torn_group = 0  # the group of which only the first frames were kept


class Recovery:
    """Reads files in order; chains and the expected sequence go on from one to the next."""

    def __init__(
        self,
        keys: LogKeys,
        chains: dict[PartitionKey, Chain],
        next_sequence: int,
        view_group: int,
        last_group: int,
        next_first_group: int | None,
        *,
        whole: bool = True,
    ) -> None:
        """`next_sequence`: the first one expected, 0 if that is not known. `last_group`: the newest one before the file.
        `next_first_group`: the first group found after it. `whole` False: the file is read out of its context, so a partition
        may begin anywhere in it."""
        self.last_group = last_group
        self._keys = keys
        self._chains = chains
        self._view_group = view_group
        self._next_first_group = next_first_group
        self._whole = whole
        self._ciphers: dict[tuple[bytes, int], Cipher] = {}
        self._region_at = 0  # where in the file the bytes begin that are looked at
        self.next_sequence = next_sequence

    def read_journal(self, entry: FileEntry, source: JournalBytes | bytes, durable_through: int, end: int) -> RecoveredFile:
        """`end`: where the file's data ends; `durable_through`: groups up to this number are never cut. All groups are known to
        be there when the last one ends where the entry says that the data does."""
        found = RecoveredFile(entry)
        data = JournalBytes.of(source, end)
        self._keys.keyring.adopt(SYSTEM_TOPIC_ID, entry.system_key_id, entry.wrapped_system_key)
        system_key_id = entry.system_key_id  # the manifest repeats all that the file's header says, but for the salt
        walked = data.groups()
        if not walked or walked[0].position > FILE_HEADER_BYTES:
            self._read_before(found, data, walked, durable_through, system_key_id, end)
        for at, group in enumerate(walked):
            if found.tail_cut is not None:
                break
            if self._follows_a_hole(found, group, durable_through):
                self._cut(found, found.data_end, end, "a group before the last one is gone")
                break
            self._read_group(found, data, group, walked[at + 1 :][:1], durable_through, system_key_id, end)
        if found.tail_cut is None and found.data_end < end:
            self._cut(found, found.data_end, end, "no further group checks")
        return found

    def _follows_a_hole(self, found: RecoveredFile, group: FoundGroup, durable_through: int) -> bool:
        """Whether something is missing before an unconfirmed group: a power cut took it, which only happens without fsync."""
        expected = group.position == found.data_end and group.header.number == self.last_group + 1
        return group.header.number > durable_through and found.groups > 0 and not expected

    def _read_before(
        self, found: RecoveredFile, data: JournalBytes, walked: list[FoundGroup], durable_through: int, key_id: int, end: int
    ) -> None:
        """Bytes before the first group header that checks: the first group's header is damaged, or the file is empty."""
        region_end = walked[0].position if walked else end
        if region_end <= FILE_HEADER_BYTES:
            return
        last = walked[0].header.number - 1 if walked else self._last_confirmed_here(durable_through)
        # What a later group of the same file follows is confirmed by D alone, whatever numbers other files were given.
        if last > durable_through if walked else last <= self.last_group:
            self._cut(found, FILE_HEADER_BYTES, end, "the first group does not check")
            return
        if not walked:
            self._note_lost_groups(found, data, FILE_HEADER_BYTES, end, last)
        found.first_group = min(self.last_group + 1, last)
        found.last_group = self.last_group = found.first_group if last == EVERYTHING else max(last, found.first_group)
        self._read_region(found, data, FILE_HEADER_BYTES, region_end, found.last_group, True, key_id)
        found.data_end = found.confirmed_end = region_end

    def _read_group(
        self,
        found: RecoveredFile,
        data: JournalBytes,
        group: FoundGroup,
        following: list[FoundGroup],
        durable_through: int,
        key_id: int,
        end: int,
    ) -> None:
        number = group.header.number
        body_at = group.position + GROUP_HEADER_BYTES
        body_end = body_at + group.header.body_bytes
        confirmed, through = number <= durable_through, number
        last = number if body_end == end == found.entry.data_end else max(number, self._last_confirmed_here(durable_through))
        if confirmed and following and not (number == durable_through and following[0].header.number > number + 1):
            body_end, through = following[0].position, following[0].header.number - 1
        elif confirmed and number < last:
            self._note_lost_groups(found, data, min(body_end, end), end, last)
            # Where no bytes are left for them they are not here: a file after this one may hold them, its headers damaged.
            through = number if last == EVERYTHING or body_end >= end else last
            body_end = end
        elif body_end > end:
            if not confirmed:
                self._cut(found, group.position, end, "the last group is not whole")
                return
            body_end = end
        found.first_group = found.first_group or number
        found.last_group = self.last_group = max(through, self.last_group)
        found.groups += 1
        self.note_sequence(found, group.header.first_sequence)
        if not self._read_region(found, data, body_at, body_end, through, confirmed, key_id):
            found.torn_group = number if found.data_end > group.position else 0
            self._cut(found, found.data_end, end, "the last group does not check")
            return
        self.note_sequence(found, group.header.first_sequence + group.header.batches)
        found.data_end = body_end
        if confirmed:
            found.confirmed_end = body_end

    def _note_lost_groups(self, found: RecoveredFile, data: JournalBytes, start: int, end: int, last: int) -> None:
        """Confirmed groups up to `last` belong here, though no header of theirs checks: what if nothing is there?"""
        region = frames(data.read(start, end), 0, max(0, end - start))
        nothing = all(isinstance(piece, Gap) and not piece.batches for piece in region)
        if nothing and last != EVERYTHING:
            after = self.next_sequence
            found.unattributed.append(DamagedRange(after, after, GROUP_LOST))

    def _last_confirmed_here(self, durable_through: int) -> int:
        """The newest confirmed group that belongs into this file, whether or not its header checks."""
        following = self._next_first_group
        return durable_through if following is None else min(durable_through, following - 1)

    def _read_region(
        self, found: RecoveredFile, source: JournalBytes, start: int, end: int, group: int, confirmed: bool, key_id: int
    ) -> bool:
        """Frames in a region. False when unconfirmed bytes do not check; `data_end` is then before the first of them.

        `group` is the newest that the region may hold: what it says is replayed into every view that is older.
        """
        if not confirmed:
            found.data_end = start - GROUP_HEADER_BYTES
        data, self._region_at = source.read(start, end), start
        for piece in frames(data, 0, end - start):
            if isinstance(piece, Gap):
                if not confirmed:
                    return False
                self._read_gap(found, data, piece, group)
            elif not self._read_frame(found, data, piece, group, confirmed, key_id):
                return False
            if not confirmed:
                found.data_end = start + piece.end
        return True

    def _read_gap(self, found: RecoveredFile, data: bytes, gap: Gap, group: int) -> None:
        found.state_damaged = found.state_damaged or may_hold_frame(gap)
        if may_hold_frame(gap) and (group > self._view_group or self.next_sequence == 0):
            found.unattributed.append(DamagedRange(self.next_sequence, self.next_sequence, FRAME_LOST))
        for batch in gap.batches:
            if batch.header is not None:
                self.note_sequence(found, batch.header.sequence)
                self._take(found, data, batch)
                self.next_sequence = max(self.next_sequence, batch.header.sequence + 1)

    def _read_frame(self, found: RecoveredFile, data: bytes, frame: FoundFrame, group: int, confirmed: bool, key_id: int) -> bool:
        entries = open_state(self._keys, data, frame, key_id) if frame.state_bytes else []
        if entries is None:
            if not confirmed:
                return False
            found.state_damaged = True
            if group > self._view_group:
                lost = DamagedRange(frame.first_sequence, frame.first_sequence, STATE_LOST)
                found.unattributed.append(lost)
            entries = []
        self._adopt_keys(found, entries)
        if not confirmed and not self._all_open(data, frame.batches):
            return False
        found.states.append((group, entries))
        self.note_sequence(found, frame.first_sequence)
        for batch in frame.batches:
            self._take(found, data, batch)
        self.next_sequence = max(self.next_sequence, frame.first_sequence + len(frame.batches))
        return True

    def _adopt_keys(self, found: RecoveredFile, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.kind == Kind.WRAPPED_KEY and entry.value is not None:
                topic_id, key_id, wrapped = parse_wrapped_key(entry)
                self._keys.keyring.adopt(topic_id, key_id, wrapped)
                found.keys[topic_id, key_id] = WrappedKey(topic_id, key_id, wrapped)

    def _all_open(self, data: bytes, found: list[FoundBatch]) -> bool:
        return all(b.header is not None and self._problem(data, b.position, b.header) in (None, "shredded") for b in found)

    def _open(self, data: bytes, position: int, header: BatchHeader) -> None:
        """As `LogKeys.open_batch`; each key is looked up once a file, not once a batch: nothing is shredded during a start."""
        cipher = self._ciphers.get((header.topic_id, header.key_id))
        if cipher is None:
            cipher = self._keys.keyring.opening_cipher(header.topic_id, header.key_id)
            self._ciphers[header.topic_id, header.key_id] = cipher
        body_at, end = position + BATCH_HEADER_BYTES + 8 * header.key_hashes, position + header.sealed_bytes
        if end > len(data) or body_at + TAG_BYTES > end:
            raise TamperedData("a sealed batch shorter than its header says")
        associated = data[position:body_at] + self._keys.cluster_id
        self._keys.unseal(cipher, header.nonce, memoryview(data)[body_at:end], associated)

    def _problem(self, data: bytes, position: int, header: BatchHeader) -> str | None:
        """Why a batch cannot be served; None when it opens."""
        try:
            self._open(data, position, header)
        except TamperedData:
            return "does not authenticate"
        except KeyShredded:
            return "shredded"
        except KeyProblem:
            return "its key is unknown"
        return None

    def note_sequence(self, found: RecoveredFile, sequence: int) -> None:
        """Sequences have no holes: a jump means batches that nothing names any more."""
        if sequence > self.next_sequence > 0:
            found.unattributed.append(DamagedRange(self.next_sequence, sequence, BATCHES_LOST))
        self.next_sequence = max(self.next_sequence, sequence)

    def _take(self, found: RecoveredFile, data: bytes, batch: FoundBatch) -> None:
        named = batch.header or batch.entry
        if named is None:
            return
        place = (named.topic_id, named.partition)
        chain = self._chains.get(place)
        if chain is None:
            chain = self._chains[place] = self._new_chain()
        problem = "its header is damaged" if batch.header is None else self._problem(data, batch.position, batch.header)
        if problem == "shredded":
            found.shredded_batches += 1
            return
        if chain.next_offset is None:
            chain.next_offset = named.base_offset
        next_offset = named.base_offset + named.last_offset_delta + 1
        if problem is not None or batch.header is None:
            if next_offset > chain.next_offset:
                sequence = self.next_sequence if batch.header is None else batch.header.sequence
                self._damaged(found, (named.topic_id, named.partition), chain, next_offset, sequence, problem or "damaged")
            return
        self._chain_on(found, data, batch.position, batch.header, chain)

    def _new_chain(self) -> Chain:
        return Chain(0, NO_TAG) if self._whole else Chain(None, None)

    def _chain_on(self, found: RecoveredFile, data: bytes, position: int, header: BatchHeader, chain: Chain) -> None:
        assert chain.next_offset is not None
        if header.base_offset < chain.next_offset:
            stale = DamagedRange(header.sequence, header.sequence + 1, "a batch for offsets that are taken already")
            found.unattributed.append(stale)
            return
        if header.base_offset > chain.next_offset:
            place = (header.topic_id, header.partition)
            self._damaged(found, place, chain, header.base_offset, header.sequence, "missing")
        elif self.chain_broken(chain.tag, header) and not chain_begins_anew(chain.flags, header.flags):
            start = chain.base_offset if chain.base_offset is not None else max(0, header.base_offset - 1)
            part = self._partition(found, (header.topic_id, header.partition), chain, header.previous_tag, header.sequence)
            part.summary.damage.append(DamagedRange(start, header.base_offset, NOT_CHAINED))
        self._keep(found, data, position, header, chain)

    @staticmethod
    def chain_broken(tag: bytes | None, header: BatchHeader) -> bool:
        return tag is not None and header.previous_tag != tag

    def _damaged(
        self, found: RecoveredFile, place: PartitionKey, chain: Chain, end: int, near_sequence: int, reason: str
    ) -> None:
        assert chain.next_offset is not None
        part = self._partition(found, place, chain, chain.tag or NO_TAG, near_sequence)
        part.summary.damage.append(DamagedRange(chain.next_offset, end, reason))
        part.summary.next_offset = max(part.summary.next_offset, end)
        chain.next_offset, chain.tag, chain.base_offset, chain.flags = end, None, None, 0

    @staticmethod
    def _partition(found: RecoveredFile, place: PartitionKey, chain: Chain, chain_in: bytes, sequence: int) -> RecoveredPartition:
        part = found.partitions.get(place)
        if part is None:
            start = chain.next_offset or 0
            summary = PartitionSummary(*place, 0, start, start, 0, 0, 0, sequence, sequence, chain_in, chain_in)
            part = found.partitions[place] = RecoveredPartition(summary)
        return part

    def _keep(self, found: RecoveredFile, data: bytes, position: int, header: BatchHeader, chain: Chain) -> None:
        part = self._partition(found, (header.topic_id, header.partition), chain, header.previous_tag, header.sequence)
        hashes = key_hashes(data, position, header)
        tag = batch_tag(data, position, header)
        part.index.add(
            header.base_offset,
            header.last_offset_delta,
            self._region_at + position,
            header.sealed_bytes,
            header.sequence,
            header.max_timestamp_ms,
            header.flags,
            tag,
            hashes,
        )
        summary = part.summary
        summary.next_offset = header.next_offset
        summary.batches += 1
        summary.size += header.sealed_bytes
        summary.max_timestamp_ms = max(summary.max_timestamp_ms, header.max_timestamp_ms)
        summary.max_sequence = header.sequence
        summary.chain_out = tag
        chain.next_offset, chain.tag, chain.base_offset = header.next_offset, tag, header.base_offset
        chain.flags = header.flags
        self._note_key(found, header)
        self.next_sequence = max(self.next_sequence, header.sequence + 1)

    def _note_key(self, found: RecoveredFile, header: BatchHeader) -> None:
        if (header.topic_id, header.key_id) not in found.keys:
            wrapped = self._keys.keyring.wrapped(header.topic_id, header.key_id)
            found.keys[header.topic_id, header.key_id] = WrappedKey(header.topic_id, header.key_id, wrapped)

    @staticmethod
    def _cut(found: RecoveredFile, position: int, end: int, reason: str) -> None:
        found.data_end = position
        found.tail_cut = TailCut(found.entry.path, position, end - position, reason)

    def read_segment(self, entry: FileEntry, data: bytes, end: int) -> RecoveredFile:
        """A merged segment whose footer is damaged: its batches by their own headers, partition by partition."""
        found = RecoveredFile(entry)
        found.data_end = end
        opened: list[FoundBatch] = sorted(
            batches(data, FILE_HEADER_BYTES, end), key=lambda b: b.header.base_offset if b.header else 0
        )
        for batch in opened:
            self._take(found, data, batch)
        if sum(batch.header.sealed_bytes for batch in opened if batch.header) != end - FILE_HEADER_BYTES:
            # Batches lie back to back there. Which is missing nothing says: at a partition's end not even a hole in its offsets.
            found.unattributed.append(DamagedRange(0, 0, BYTES_LOST))
        for part in found.partitions.values():
            if len(part.index) and part.index.flags[-1] & FLAG_REWRITTEN:
                part.summary.chain_out = UNKNOWN_TAG  # what was replaced ended so, and only the footer said how
        return found


def key_hashes(data: Buffer, position: int, header: BatchHeader) -> Sequence[int] | None:
    """The hashes a sealed batch carries; None when its keys were not looked at."""
    if not header.flags & FLAG_KEYS_COMPLETE:
        return None
    at = position + BATCH_HEADER_BYTES
    return array("Q", bytes(data[at : at + 8 * header.key_hashes]))


def newest_durable_through(files: Iterable[tuple[FileEntry, JournalBytes | bytes, int]]) -> int:
    """D: the newest group that any group header says was synced."""
    return max(
        (group.header.durable_through for _, data, end in files for group in JournalBytes.of(data, end).groups()), default=0
    )


def first_group(data: JournalBytes | bytes, end: int) -> GroupHeader | None:
    """The first group header that checks."""
    return next((group.header for group in JournalBytes.of(data, end).groups()), None)


def read_states(
    keys: LogKeys, entry: FileEntry, source: JournalBytes | bytes, last_group: int, unattributed: list[DamagedRange]
) -> list[tuple[int, list[Entry]]]:
    """The state entries of a whole journal, by group; what is lost goes to `unattributed`."""
    keys.keyring.adopt(SYSTEM_TOPIC_ID, entry.system_key_id, entry.wrapped_system_key)
    journal = JournalBytes.of(source, len(source) if isinstance(source, bytes) else source.end)
    states: list[tuple[int, list[Entry]]] = []
    found = journal.groups()
    # What lies before the first header that checks is read too: its groups are the ones before that one.
    starts = [FILE_HEADER_BYTES, *(group.position + GROUP_HEADER_BYTES for group in found)]
    ends = [*(group.position for group in found), journal.end]
    newest = [*(group.header.number - 1 for group in found), last_group]
    for start, end, group in zip(starts, ends, newest, strict=True):
        data = journal.read(start, end)
        for frame in frames(data, 0, end - start):
            if isinstance(frame, Gap):
                if may_hold_frame(frame):
                    unattributed.append(DamagedRange(0, 0, FRAME_LOST))
            elif frame.state_bytes:
                entries = open_state(keys, data, frame, entry.system_key_id)
                if entries is None:
                    unattributed.append(DamagedRange(frame.first_sequence, frame.first_sequence, STATE_LOST))
                else:
                    states.append((group, entries))
    return states


def may_hold_frame(gap: Gap) -> bool:
    """Whether a gap is more than the header of a group that does not check."""
    return gap.end - gap.position > GROUP_HEADER_BYTES


def open_state(keys: LogKeys, data: bytes, frame: FoundFrame, key_id: int) -> list[Entry] | None:
    """A frame's state entries; None when they do not authenticate."""
    ends = [batch.position + batch.entry.sealed_bytes for batch in frame.batches if batch.entry is not None]
    tags = b"".join([data[end - TAG_BYTES : end] for end in ends])
    block = data[frame.state_position : frame.state_position + frame.state_bytes]
    try:
        return decode_entries(keys.open_state(key_id, block, frame.associated + tags))
    except (TamperedData, KeyProblem):
        return None
