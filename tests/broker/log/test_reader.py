"""Reading batches back from files: neighbours in one go, each bound to what became visible there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.log.files import LogFile
from broker.log.footer import DamagedRange
from broker.log.index import Place
from broker.log.layout import FLAG_REWRITTEN
from broker.log.reader import (
    PART_BATCH_BYTES_MIN,
    PART_BYTES_MIN,
    READ_BYTES_MAX,
    READ_HOLE_BYTES_MAX,
    ReadBack,
    Wanted,
    chained,
    open_batches,
    parts,
    read_batches,
)
from broker.machine import MachineDisk, MachineFile
from security.crypto.keystore import KeyStore
from security.errors import KeyShredded
from tests.broker.log.journals import ORDERS, Journal, MemoryBlob, make_keys, make_keystore, one_record


class CountingFile:
    def __init__(self, file: MachineFile) -> None:
        self._file, self.reads = file, list[tuple[int, int]]()

    def read_at(self, position: int, size: int) -> bytes:
        self.reads.append((position, size))
        return self._file.read_at(position, size)


class Written:
    """A journal of one topic, two partitions in turn: the calls are for one topic each."""

    def __init__(self, disk: MachineDisk, values: Sequence[bytes]) -> None:
        self.disk = disk
        self.keystore: KeyStore = make_keystore(MemoryBlob())
        self.journal = Journal(make_keys(self.keystore), disk)
        for number, value in enumerate(values):
            self.journal.group(self.journal.frame((ORDERS, number % 2, one_record(value))))
        self.file = CountingFile(disk.open(self.journal.entry.path))
        self.journal.file.file = self.file  # type: ignore[assignment]
        self.path = disk.root / self.journal.entry.path

    def wanted(self, *numbers: int) -> list[Wanted]:
        found = []
        for number in numbers:
            batch = self.journal.sealed[number]
            stored = batch.stored
            place = Place(
                0,
                stored.base_offset,
                stored.next_offset,
                batch.position,
                batch.sealed.size,
                stored.sequence,
                0,
                0,
                batch.sealed.tag,
            )
            found.append(Wanted(self.journal.file, place, batch.partition.topic_id, batch.partition.partition))
        return found

    def read(self, *numbers: int) -> ReadBack:
        return read_batches(self.journal.keys, self.wanted(*numbers))

    def flip(self, at: int) -> None:
        data = bytearray(self.path.read_bytes())
        data[at] ^= 1
        self.path.write_bytes(data)

    def put(self, at: int, data: bytes) -> None:
        whole = self.path.read_bytes()
        self.path.write_bytes(whole[:at] + data + whole[at + len(data) :])


@pytest.fixture
def written(disk: MachineDisk) -> Written:
    return Written(disk, [b"value %d" % number for number in range(8)])


def test_batches_come_back_in_the_order_wanted(written: Written) -> None:
    found = written.read(0, 2, 1, 6)
    assert [stored.batch for stored in found.stored] == [written.journal.sealed[n].stored.batch for n in (0, 2, 1, 6)]
    assert found.damage == []


def test_neighbours_are_read_in_one_call(written: Written) -> None:
    assert len(written.read(*range(8)).stored) == 8
    assert len(written.file.reads) == 1
    start, size = written.file.reads[0]
    last = written.journal.sealed[-1]
    assert (start, start + size) == (written.journal.sealed[0].position, last.position + last.sealed.size)


def test_holes_and_lengths_end_a_call(disk: MachineDisk) -> None:
    hole = bytes(READ_HOLE_BYTES_MAX + 1)
    written = Written(disk, [b"a", hole, b"b", b"", b"c"])
    assert len(written.read(0, 2, 4).stored) == 3
    assert len(written.file.reads) == 2
    written.file.reads.clear()
    assert len(written.read(4, 2).stored) == 2, "backwards is a call each"
    assert len(written.file.reads) == 2


def test_one_call_is_bounded(disk: MachineDisk) -> None:
    written = Written(disk, [bytes(READ_BYTES_MAX // 2 - 1000)] * 4)
    assert len(written.read(0, 1, 2, 3).stored) == 4
    assert all(size <= READ_BYTES_MAX for _, size in written.file.reads)
    assert len(written.file.reads) == 2


def test_a_batch_larger_than_a_call_is_read_whole(disk: MachineDisk) -> None:
    written = Written(disk, [bytes(READ_BYTES_MAX + 1)])
    assert len(written.read(0).stored) == 1


def test_every_byte_flipped_is_damage_of_that_batch_alone(written: Written) -> None:
    batch = written.journal.sealed[2]
    for at in range(batch.position, batch.position + batch.sealed.size):
        written.flip(at)
        found = written.read(0, 2, 4)
        assert [stored.sequence for stored in found.stored] == [1, 5]
        ((owner, lost),) = found.damage
        assert (owner, lost.start, lost.end) == ((ORDERS, 0), 1, 2)
        written.flip(at)


def test_a_file_cut_short_is_damage(written: Written) -> None:
    batch = written.journal.sealed[6]
    whole = written.path.read_bytes()
    for size in (0, batch.position, batch.position + 5, batch.position + batch.sealed.size - 1):
        written.path.write_bytes(whole[:size])
        found = written.read(6)
        assert found.stored == []
        assert [(lost.start, lost.end) for _, lost in found.damage] == [(3, 4)]


def test_another_batch_in_its_place_is_damage(written: Written) -> None:
    first, second = written.journal.sealed[0], written.journal.sealed[1]
    written.put(first.position, b"".join(second.sealed.parts))
    found = written.read(0)
    assert found.stored == []
    assert [lost.reason for _, lost in found.damage] == ["another batch lies in its place"]


def test_a_batch_sealed_for_the_same_place_and_rolled_back_is_damage_even_alone(disk: MachineDisk) -> None:
    written = Written(disk, [b"first"])
    journal = written.journal
    log = journal.partition(ORDERS, 0)
    before = log.next_offset, log.tag, journal.next_sequence
    ghost = journal.frame((ORDERS, 0, one_record(b"old"))).batches[0]
    log.next_offset, log.tag, journal.next_sequence = before
    journal.file.file = disk.open(journal.entry.path)
    journal.group(journal.frame((ORDERS, 0, one_record(b"new"))))
    kept = journal.sealed[-1]
    written.put(kept.position, b"".join(ghost.sealed.parts))
    found = written.read(len(journal.sealed) - 1)
    assert found.stored == []
    assert [lost.reason for _, lost in found.damage] == ["another batch lies in its place"]


def test_a_chain_that_breaks_drops_the_one_before(written: Written) -> None:
    # An index that was made of the batches themselves says what they say; the chain knows better.
    journal = written.journal
    log = journal.partition(ORDERS, 0)
    after = log.next_offset, log.tag
    log.next_offset, log.tag = journal.sealed[4].stored.base_offset, b"?" * 16
    other = journal.frame((ORDERS, 0, one_record(b"value 4"))).batches[0]
    log.next_offset, log.tag = after
    original = written.wanted(4)[0]
    assert other.sealed.size == original.place.size
    written.put(original.place.position, b"".join(other.sealed.parts))
    place = original.place._replace(sequence=other.stored.sequence, tag=other.sealed.tag)
    wanted = [*written.wanted(2), original._replace(place=place), *written.wanted(6)]
    found = read_batches(journal.keys, wanted)
    assert [stored.base_offset for stored in found.stored] == [3], "2 does not fit to 4, nor 4 to 6"
    assert [(lost.start, lost.end) for _, lost in found.damage] == [(1, 2), (2, 3)]


def test_a_key_that_is_not_to_be_had_is_damage_by_name(written: Written) -> None:
    keys = make_keys(written.keystore, "a process that read no wrapped keys")
    found = read_batches(keys, written.wanted(0))
    assert found.stored == []
    assert "its key is not to be had" in found.damage[0][1].reason


def test_a_shredded_topic_is_not_damage(written: Written) -> None:
    written.keystore.shred(ORDERS)
    with pytest.raises(KeyShredded):
        written.read(0)


def test_nothing_wanted_nothing_read(written: Written) -> None:
    assert written.read() == ReadBack([], [])
    assert written.file.reads == []


# -- in parts -------------------------------------------------------------------------------------------------------------


def sized(*sizes: int) -> list[Wanted]:
    places = [Place(0, n, n + 1, 0, size, n, 0, 0, b"") for n, size in enumerate(sizes)]
    return [Wanted(None, place, ORDERS, 0) for place in places]  # type: ignore[arg-type]


@given(st.lists(st.integers(PART_BATCH_BYTES_MIN, 2 * PART_BYTES_MIN), min_size=1, max_size=40), st.integers(1, 5))
def test_parts_are_all_of_it_in_order_and_at_most_so_many(sizes: list[int], count: int) -> None:
    wanted = sized(*sizes)
    cut = parts(wanted, count)
    assert [want for part in cut for want in part] == wanted
    assert 1 <= len(cut) <= count
    assert all(cut)
    if len(cut) > 1:
        even = sum(sizes) / len(cut)
        assert all(sum(want.place.size for want in part) <= even + max(sizes) for part in cut)


def test_small_reads_and_small_batches_are_one_part() -> None:
    assert len(parts(sized(*[PART_BATCH_BYTES_MIN] * 4), 2)) == 1
    assert len(parts(sized(*[PART_BATCH_BYTES_MIN - 1] * 1_000), 2)) == 1
    assert len(parts(sized(PART_BYTES_MIN, PART_BYTES_MIN), 2)) == 2
    assert len(parts(sized(PART_BYTES_MIN, PART_BYTES_MIN), 1)) == 1


def test_parts_put_together_are_the_whole_read(written: Written) -> None:
    wanted = written.wanted(*range(8))
    opened = open_batches(written.journal.keys, wanted[:3]) + open_batches(written.journal.keys, wanted[3:])
    assert chained(wanted, opened) == written.read(*range(8))


def test_a_chain_that_breaks_between_two_parts_is_seen(written: Written) -> None:
    wanted = written.wanted(0, 2, 4, 6)
    opened = open_batches(written.journal.keys, wanted[:2]) + open_batches(written.journal.keys, wanted[2:])
    second = opened[2]
    assert not isinstance(second, DamagedRange)
    opened[2] = second._replace(header=second.header._replace(previous_tag=b"?" * 16))
    found = chained(wanted, opened)
    assert [stored.base_offset for stored in found.stored] == [0, 2, 3]
    assert [(lost.start, lost.end) for _, lost in found.damage] == [(1, 2)]


@pytest.mark.parametrize("rewritten", [0, 1], ids=["before", "after"])
def test_what_compaction_rewrote_is_chained_within_its_own_file_only(written: Written, rewritten: int) -> None:
    """A reader was at work when compaction replaced a file: its next batch, of another file, names what was replaced."""
    wanted = written.wanted(0, 2)
    opened = [one for one in open_batches(written.journal.keys, wanted) if not isinstance(one, DamagedRange)]
    opened[1] = opened[1]._replace(header=opened[1].header._replace(previous_tag=b"?" * 16))
    marked = opened[rewritten]
    opened[rewritten] = marked._replace(header=marked.header._replace(flags=marked.header.flags | FLAG_REWRITTEN))
    another = LogFile(written.disk, written.journal.entry, written.journal.file.file)
    found = chained([wanted[0], wanted[1]._replace(file=another)], opened)
    assert ([stored.base_offset for stored in found.stored], found.damage) == ([0, 1], [])
    if rewritten == 1:  # what is not rewritten may follow rewritten batches in their own file too: it names what was replaced
        assert [lost.start for _, lost in chained(wanted, opened).damage] == [0]


def test_what_was_not_rewritten_is_chained_over_files(written: Written) -> None:
    wanted = written.wanted(0, 2)
    opened = [one for one in open_batches(written.journal.keys, wanted) if not isinstance(one, DamagedRange)]
    opened[1] = opened[1]._replace(header=opened[1].header._replace(previous_tag=b"?" * 16))
    another = LogFile(written.disk, written.journal.entry, written.journal.file.file)
    found = chained([wanted[0], wanted[1]._replace(file=another)], opened)
    assert [lost.start for _, lost in found.damage] == [0]
