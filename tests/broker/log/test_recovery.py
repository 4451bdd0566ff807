"""Reading back journals that were cut, flipped or torn at every byte: whatever happens, a record is served as it was written or
its loss is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from broker.log.footer import DamagedRange
from broker.log.layout import FILE_HEADER_BYTES, GROUP_HEADER_BYTES, parse_batch_header
from broker.log.recovery import (
    EVERYTHING,
    Chain,
    RecoveredFile,
    Recovery,
    first_group,
    newest_durable_through,
    read_states,
)
from broker.log.scan import FoundFrame, frames, groups
from broker.log.sealing import LogKeys
from broker.log.state import Entry, Kind
from broker.machine import MachineDisk
from security.crypto.keystore import KeyStore
from tests.broker.log.journals import ORDERS, READINGS, SALT, Journal, MemoryBlob, make_keys, make_keystore, one_record

Flip = Callable[..., bytes]
Served = dict[tuple[bytes, int, int], bytes]


class Written:
    """A small journal of three groups with batches of three partitions and state entries, then one that confirms them."""

    def __init__(self, disk: MachineDisk) -> None:
        self.keystore: KeyStore = make_keystore(MemoryBlob())
        self.journal = journal = Journal(make_keys(self.keystore), disk)
        self.entries = [Entry(Kind.TOPIC, ORDERS, b"orders"), Entry(Kind.LOG_START, b"start", b"5")]
        journal.group(journal.frame((ORDERS, 0, one_record(b"a")), (READINGS, 1, one_record(b"b")), entries=self.entries[:1]))
        journal.group(journal.frame((ORDERS, 0, one_record(b"c")), key_hashes=[1, 2]), journal.frame(entries=self.entries[1:]))
        journal.group(journal.frame((READINGS, 1, one_record(b"d")), (ORDERS, 0, one_record(b"e"))))
        self.data_end = len(journal.data)
        journal.group()

    @property
    def data(self) -> bytes:
        return self.journal.data

    def recover(
        self, data: bytes, durable_through: int | None = None, *, view_group: int = 0, knows_keys: bool = False
    ) -> tuple[RecoveredFile, LogKeys]:
        """As the next process would; `knows_keys` as it does when the view is there."""
        keys = make_keys(self.keystore, "second")
        if knows_keys:
            for topic_id in (ORDERS, READINGS):
                for key_id, wrapped in self.journal.keys.keyring.known(topic_id):
                    keys.keyring.adopt(topic_id, key_id, wrapped)
        entry = self.journal.entry
        if durable_through is None:
            durable_through = max(newest_durable_through([(entry, data, len(data))]), view_group)
        recovery = Recovery(keys, {}, 1, view_group, 0, None)
        return recovery.read_journal(entry, data, durable_through, len(data)), keys

    def lost(self, found: RecoveredFile, keys: LogKeys, data: bytes) -> list[tuple[bytes, int, int]]:
        """Batches that are neither served unaltered nor told of. Fails on a batch that is served altered."""
        served = serve(found, keys, data)
        expected = self.journal.served()
        assert served.items() <= expected.items(), "served what was never written"
        sequences = {
            (p.partition.topic_id, p.partition.partition, p.stored.base_offset): p.stored.sequence for p in self.journal.sealed
        }
        return [
            place
            for place in expected.keys() - served.keys()
            if not (
                any(covers(lost, place[2]) for lost in damage_of(found, place[:2]))
                or any(covers(lost, sequences[place]) for lost in found.unattributed)
            )
        ]


def covers(lost: DamagedRange, number: int) -> bool:
    return lost.start <= number < lost.end


def damage_of(found: RecoveredFile, place: tuple[bytes, int]) -> list[DamagedRange]:
    part = found.partitions.get(place)
    return [] if part is None else part.summary.damage


def serve(found: RecoveredFile, keys: LogKeys, data: bytes) -> Served:
    """What a reader would get: batches of the indexes that open and lie in no damaged range."""
    served: Served = {}
    for (topic_id, partition), part in found.partitions.items():
        for at in range(len(part.index)):
            place = part.index.place(at)
            if any(lost.start < place.next_offset and place.base_offset < lost.end for lost in part.summary.damage):
                continue
            header = parse_batch_header(data, place.position)
            assert header is not None
            served[topic_id, partition, place.base_offset] = keys.open_batch(data, place.position, header)
    return served


def entries_of(found: RecoveredFile) -> list[Entry]:
    return [entry for _, entries in found.states for entry in entries if entry.kind != Kind.WRAPPED_KEY]


@pytest.fixture
def written(disk: MachineDisk) -> Written:
    return Written(disk)


def test_a_whole_journal_is_served_whole(written: Written) -> None:
    found, keys = written.recover(written.data)
    assert serve(found, keys, written.data) == written.journal.served()
    assert entries_of(found) == written.entries
    assert found.unattributed == []
    assert found.tail_cut is None
    assert (found.first_group, found.last_group, found.groups) == (1, 4, 4)
    assert found.data_end == len(written.data)
    assert not any(part.summary.damage for part in found.partitions.values())
    orders = found.partitions[ORDERS, 0]
    assert (orders.summary.first_offset, orders.summary.next_offset, orders.summary.batches) == (0, 3, 3)
    assert orders.index.with_key(1) == [0, 1, 2], "batches of unknown keys are candidates"
    assert set(found.keys) == {(topic, key_id) for topic in (ORDERS, READINGS) for key_id, _ in keys.keyring.known(topic)}


@pytest.mark.parametrize("knows_keys", [False, True], ids=["view lost", "view there"])
def test_every_byte_flipped_in_confirmed_groups_is_served_or_told(written: Written, flipped: Flip, knows_keys: bool) -> None:
    data = written.data
    assert len(data) < 4000
    view_group = 4 if knows_keys else 0
    for at in range(len(data)):
        wrong = flipped(data, at, 1 << (at * 5 % 8))
        found, keys = written.recover(wrong, view_group=view_group, knows_keys=knows_keys)
        assert written.lost(found, keys, wrong) == [], f"byte {at}"
        if not knows_keys:
            assert entries_of(found) == written.entries or found.unattributed, f"byte {at}: state lost in silence"
        assert found.tail_cut is None or found.tail_cut.position >= written.data_end, f"byte {at}: confirmed data cut"


def test_a_flip_costs_no_more_than_the_batch_it_hits(written: Written, flipped: Flip) -> None:
    for sealed in written.journal.sealed:
        at = sealed.position + sealed.sealed.size - 20
        wrong = flipped(written.data, at)
        found, keys = written.recover(wrong, view_group=4, knows_keys=True)
        expected = written.journal.served()
        place = (sealed.partition.topic_id, sealed.partition.partition)
        del expected[*place, sealed.stored.base_offset]
        assert serve(found, keys, wrong) == expected
        assert [(d.start, d.end) for d in damage_of(found, place)] == [(sealed.stored.base_offset, sealed.stored.next_offset)]


def test_every_truncation_keeps_all_whole_groups_and_never_raises(written: Written) -> None:
    data = written.data
    ends = written.journal.group_ends
    for size in range(len(data) + 1):
        cut = data[:size]
        found, keys = written.recover(cut)
        served = serve(found, keys, cut)
        assert served.items() <= written.journal.served().items()
        whole = sum(end <= size for end in ends)
        assert found.last_group >= whole
        expected = {
            (p.partition.topic_id, p.partition.partition, p.stored.base_offset)
            for p in written.journal.sealed
            if p.position + p.sealed.size <= ([FILE_HEADER_BYTES, *ends])[whole]
        }
        assert expected <= served.keys(), f"{size} bytes"
        if size > max(ends[whole - 1] if whole else 0, FILE_HEADER_BYTES) and whole < 4:
            assert found.tail_cut is not None or any(p.summary.damage for p in found.partitions.values()) or found.unattributed


def test_every_truncation_of_confirmed_groups_is_told(written: Written) -> None:
    data = written.data
    # A file without a single group is told by its caller: the view is ahead of all groups.
    for size in range(FILE_HEADER_BYTES + 1, written.data_end):
        found, _ = written.recover(data[:size], view_group=3, knows_keys=True)
        damaged = any(part.summary.damage for part in found.partitions.values())
        told = damaged or found.unattributed or found.tail_cut is not None
        assert told, f"{size} of {written.data_end} bytes"


def zeroed(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + bytes(min(end, len(data)) - start) + data[end:]


def spans(written: Written) -> Iterator[tuple[int, int]]:
    for size in (100, 250, 512, 1024):
        for start in range(FILE_HEADER_BYTES, written.data_end - 1, 37):
            yield start, min(start + size, written.data_end)


def test_every_lost_sector_of_confirmed_groups_is_told(written: Written) -> None:
    # A sector takes several headers at once: group, frame and batch.
    for start, end in spans(written):
        wrong = zeroed(written.data, start, end)
        found, keys = written.recover(wrong, view_group=4, knows_keys=True)
        assert written.lost(found, keys, wrong) == [], f"{start} to {end}"


def test_an_unconfirmed_group_is_kept_whole_or_cut_from_its_first_bad_byte(written: Written, flipped: Flip) -> None:
    # Without the confirming group the third is the unconfirmed tail.
    data = written.data[: written.data_end]
    start = written.journal.group_ends[1]
    before = {place for place in written.journal.served() if place not in {(READINGS, 1, 1), (ORDERS, 0, 2)}}
    for at in range(start, len(data)):
        wrong = flipped(data, at)
        found, keys = written.recover(wrong)
        assert serve(found, keys, wrong).keys() == before, f"byte {at}"
        assert found.tail_cut is not None
        assert found.tail_cut.position == found.data_end == start
        assert not any(part.summary.damage for part in found.partitions.values()), "a tail is no damage"


def test_a_torn_group_keeps_its_first_whole_frames_and_says_so(disk: MachineDisk) -> None:
    written = Written(disk)
    journal = written.journal
    journal.group(journal.frame((ORDERS, 0, one_record(b"x"))), journal.frame((ORDERS, 0, one_record(b"y"))))
    torn = zeroed(journal.data, len(journal.data) - 10, len(journal.data))
    found, keys = written.recover(torn)
    assert (ORDERS, 0, 3) in serve(found, keys, torn)
    assert (ORDERS, 0, 4) not in serve(found, keys, torn)
    assert found.torn_group == found.last_group == 5
    assert found.tail_cut is not None
    assert found.data_end == found.tail_cut.position


def test_a_batch_of_a_rolled_back_past_put_back_is_noticed_by_its_successor(disk: MachineDisk) -> None:
    # Sealed for the same offset, sequence and size by the same process, written before a failed sync, and rolled back.
    written = Written(disk)
    journal = written.journal
    log = journal.partition(ORDERS, 0)
    offset, tag, sequence = log.next_offset, log.tag, journal.next_sequence
    ghost = journal.frame((ORDERS, 0, one_record(b"old"))).batches[0]
    log.next_offset, log.tag, journal.next_sequence = offset, tag, sequence
    journal.sealed.remove(ghost)
    kept = journal.frame((ORDERS, 0, one_record(b"new")))
    journal.group(kept)
    journal.group(journal.frame((ORDERS, 0, one_record(b"after"))))
    journal.group()
    at = kept.batches[0].position
    wrong = journal.data[:at] + b"".join(ghost.sealed.parts) + journal.data[at + ghost.sealed.size :]
    assert len(wrong) == len(journal.data)
    found, keys = written.recover(wrong)
    served = serve(found, keys, wrong)
    assert (ORDERS, 0, offset) not in served
    assert (ORDERS, 0, offset + 1) in served
    assert [(d.start, d.end) for d in damage_of(found, (ORDERS, 0))] == [(offset, offset + 1)]
    assert written.lost(found, keys, wrong) == []


def test_batches_swapped_between_partitions_do_not_pass_for_each_other(written: Written) -> None:
    data = written.data
    first, second = written.journal.sealed[0], written.journal.sealed[1]
    assert first.sealed.size == second.sealed.size
    swapped = bytearray(data)
    swapped[first.position : first.position + first.sealed.size] = b"".join(second.sealed.parts)
    swapped[second.position : second.position + second.sealed.size] = b"".join(first.sealed.parts)
    found, keys = written.recover(bytes(swapped), view_group=4, knows_keys=True)
    assert serve(found, keys, bytes(swapped)).keys() == written.journal.served().keys() - {(ORDERS, 0, 0), (READINGS, 1, 0)}
    assert written.lost(found, keys, bytes(swapped)) == []


def test_bytes_of_another_file_do_not_pass_for_a_group(written: Written, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Journal(make_keys(written.keystore, "other"), MachineDisk(tmp_path_factory.mktemp("other")), first_group=5)
    other.group(other.frame((ORDERS, 0, one_record(b"foreign"))))
    pasted = written.data + other.data[FILE_HEADER_BYTES:].replace(SALT.to_bytes(8, "little"), bytes(8))
    found, keys = written.recover(pasted)
    assert serve(found, keys, pasted) == written.journal.served()
    assert found.tail_cut is not None
    assert found.tail_cut.position == len(written.data)


def test_a_shredded_topic_is_counted_and_its_neighbours_are_served(written: Written) -> None:
    written.keystore.shred(READINGS)
    found, keys = written.recover(written.data)
    assert {place[0] for place in serve(found, keys, written.data)} == {ORDERS}
    assert found.shredded_batches == 2
    assert found.unattributed == []


def test_a_chain_goes_on_from_the_file_before(written: Written) -> None:
    journal, data = written.journal, written.data
    keys = make_keys(written.keystore, "second")
    fits = Recovery(keys, {(ORDERS, 0): Chain(0, bytes(16))}, 1, 0, 0, None).read_journal(journal.entry, data, 4, len(data))
    assert damage_of(fits, (ORDERS, 0)) == []
    broken = Recovery(keys, {(ORDERS, 0): Chain(0, b"x" * 16)}, 1, 0, 0, None).read_journal(journal.entry, data, 4, len(data))
    assert damage_of(broken, (ORDERS, 0)) != []
    ahead = Recovery(keys, {(ORDERS, 0): Chain(2, None)}, 1, 0, 0, None).read_journal(journal.entry, data, 4, len(data))
    assert [(lost.start, lost.end) for lost in ahead.unattributed] == [(1, 2), (3, 4)]


def test_a_jump_in_sequences_is_told(written: Written) -> None:
    keys = make_keys(written.keystore, "second")
    journal, data = written.journal, written.data
    found = Recovery(keys, {}, 0, 0, 0, None).read_journal(journal.entry, data, 4, len(data))
    assert found.unattributed == []
    frame_at = [
        p for p in frames(data, FILE_HEADER_BYTES + GROUP_HEADER_BYTES, journal.group_ends[0]) if isinstance(p, FoundFrame)
    ][1]
    wrong = zeroed(data, frame_at.position, frame_at.end)
    found, _ = written.recover(wrong, view_group=4, knows_keys=True)
    assert (1, 3) in [(lost.start, lost.end) for lost in found.unattributed]


def test_the_only_group_with_a_damaged_header_is_still_read(disk: MachineDisk, flipped: Flip) -> None:
    keystore = make_keystore(MemoryBlob())
    journal = Journal(make_keys(keystore), disk, first_group=7)
    journal.group(journal.frame((ORDERS, 0, one_record(b"a"))))
    wrong = flipped(journal.data, FILE_HEADER_BYTES + 20)
    for durable_through in (7, EVERYTHING):
        keys = make_keys(keystore, "second")
        recovery = Recovery(keys, {}, 1, 0, 6, None)
        found = recovery.read_journal(journal.entry, wrong, durable_through, len(wrong))
        assert serve(found, keys, wrong) == journal.served()
        assert (found.first_group, found.last_group) == (7, 7)


def test_group_numbers_and_durability_are_read_from_the_headers(written: Written, flipped: Flip) -> None:
    entry, data = written.journal.entry, written.data
    assert newest_durable_through([(entry, data, len(data))]) == 3
    assert newest_durable_through([(entry, flipped(data, 5), len(data))]) == 3, "with a damaged file header too"
    assert newest_durable_through([(entry, b"", 0)]) == 0
    first = first_group(data, len(data))
    assert first is not None
    assert (first.number, first.first_sequence) == (1, 1)
    assert first_group(data[:FILE_HEADER_BYTES], FILE_HEADER_BYTES) is None


def test_states_of_a_sealed_journal_are_read_alone(written: Written, flipped: Flip) -> None:
    entry, data = written.journal.entry, written.data
    lost: list[DamagedRange] = []
    states = read_states(make_keys(written.keystore, "second"), entry, data, 4, lost)
    assert [e for _, entries in states for e in entries if e.kind != Kind.WRAPPED_KEY] == written.entries
    assert lost == []
    for at in range(len(data)):
        lost = []
        states = read_states(make_keys(written.keystore, "second"), entry, flipped(data, at), 4, lost)
        kept = [e for _, entries in states for e in entries if e.kind != Kind.WRAPPED_KEY]
        assert kept == written.entries or lost, f"byte {at}: state lost in silence"
        assert sum(len(entries) for _, entries in states) == 4 or lost


def test_a_state_group_is_never_numbered_too_low(written: Written, flipped: Flip) -> None:
    # What stands in a group whose header is damaged must be replayed into a view that is one group older.
    data = written.data
    second = [group.position for group in groups(data, FILE_HEADER_BYTES, len(data), SALT)][1]
    found, _ = written.recover(flipped(data, second + 8), view_group=0)
    numbers = {entry.key: group for group, entries in found.states for entry in entries}
    assert numbers[b"start"] == 2


def test_a_segment_without_its_footer_tells_of_bytes_that_no_batch_claims(written: Written, flipped: Flip) -> None:
    sealed = written.journal.sealed
    parts = [b"".join(batch.sealed.parts) for batch in sealed]
    data = bytes(FILE_HEADER_BYTES) + b"".join(parts)
    entry = written.journal.entry

    def read(wrong: bytes) -> tuple[RecoveredFile, LogKeys]:
        keys = make_keys(written.keystore, "second")
        for topic_id in (ORDERS, READINGS):
            for key_id, wrapped in written.journal.keys.keyring.known(topic_id):
                keys.keyring.adopt(topic_id, key_id, wrapped)
        return Recovery(keys, {}, 0, EVERYTHING, 0, None, whole=False).read_segment(entry, wrong, len(wrong)), keys

    found, keys = read(data)
    assert serve(found, keys, data) == written.journal.served()
    assert found.unattributed == []
    for at in range(FILE_HEADER_BYTES, len(data)):
        wrong = flipped(data, at)
        found, keys = read(wrong)
        missing = written.journal.served().keys() - serve(found, keys, wrong).keys()
        told = [place for place in missing if any(covers(lost, place[2]) for lost in damage_of(found, place[:2]))]
        assert len(missing) == 1
        assert told or found.unattributed, f"byte {at}"


@pytest.mark.parametrize("what", ["header", "body", "header zeroed with body"])
def test_unconfirmed_groups_behind_a_hole_are_cut(disk: MachineDisk, flipped: Flip, what: str) -> None:
    """With durability "os" many groups may be unconfirmed, and a power cut takes any of their pages: what is kept is a
    beginning of them, and nothing of it is damage."""
    keystore = make_keystore(MemoryBlob())
    journal = Journal(make_keys(keystore), disk)
    for value in (b"a", b"b", b"c", b"d"):
        journal.group(journal.frame((ORDERS, 0, one_record(value))), confirms=False)
    start, end = journal.group_ends[0], journal.group_ends[1]
    wrong = {
        "header": flipped(journal.data, start + 20),
        "body": flipped(journal.data, end - 5),
        "header zeroed with body": zeroed(journal.data, start, end),
    }[what]
    for durable_through in (0, 1):
        keys = make_keys(keystore, "second")
        found = Recovery(keys, {}, 1, 0, 0, None).read_journal(journal.entry, wrong, durable_through, len(wrong))
        assert [place[2] for place in serve(found, keys, wrong)] == [0]
        assert found.tail_cut is not None
        assert (found.data_end, found.tail_cut.position) == (start, start)
        assert (found.unattributed, damage_of(found, (ORDERS, 0))) == ([], [])
