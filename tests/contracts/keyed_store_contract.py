"""What every keyed store promises (`broker.seams.KeyedStore`), as tests: a subclass gives the `subject`.

The same promises are asked of RocksDB, whose process is killed and whose files are cut and flipped, and of the simulator's model
of it, whose power fails: a model that forgives more than RocksDB does would prove nothing, one that forgives less would be a
nuisance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pytest

from broker.errors import StorageDamaged
from broker.seams import KeyedStore

FOLDER = "view"
POSITION = b"\x00"
WRITES, FLUSHED = 12, 6

Write = tuple[Sequence[tuple[bytes, bytes]], Sequence[bytes]]


class Subject(Protocol):
    """A machine with keyed stores on it."""

    def open(self) -> KeyedStore:
        """StorageDamaged when it does not open."""

    def destroy(self) -> None: ...

    def write_and_die(self, writes: Sequence[Write], flush_after: int) -> None:
        """A process opens the store, writes all of them, flushes after so many of them, and is killed."""

    def torn(self) -> Iterator[str]:
        """For each name it yields, the machine is as a power cut may have left it: anything not flushed lost or damaged."""

    def damaged(self) -> Iterator[str]:
        """Likewise with damage anywhere, flushed or not."""


def write_number(number: int) -> Write:
    """The number-th write: a key of its own, the position, and its predecessor's mark gone; all or nothing of it."""
    puts = [(b"key %04d" % number, b"value %d " % number * 20), (b"mark %04d" % number, b""), (POSITION, b"%d" % number)]
    return puts, [b"mark %04d" % (number - 1)]


def content_after(count: int) -> dict[bytes, bytes]:
    content: dict[bytes, bytes] = {}
    for number in range(count):
        puts, deletes = write_number(number)
        content.update(puts)
        for key in deletes:
            content.pop(key, None)
    return content


def read(store: KeyedStore) -> dict[bytes, bytes]:
    try:
        return dict(store.items(b""))
    finally:
        store.close()


class KeyedStoreContract:
    @pytest.fixture
    def numbered(self, subject: Subject) -> Subject:
        """Twelve writes, the first six of them flushed, and the process killed."""
        subject.write_and_die([write_number(number) for number in range(WRITES)], FLUSHED)
        return subject

    def test_reads_see_writes_in_key_order(self, subject: Subject) -> None:
        store = subject.open()
        store.write([(b"b\xff", b"2"), (b"a1", b"1"), (b"a2", b"x"), (b"\xff", b""), (b"\x00", b"0")])
        store.write([(b"a2", b"3")], [b"b\xff", b"never there"])
        assert list(store.items(b"")) == [(b"\x00", b"0"), (b"a1", b"1"), (b"a2", b"3"), (b"\xff", b"")]
        assert list(store.items(b"a")) == [(b"a1", b"1"), (b"a2", b"3")]
        assert list(store.items(b"\xff")) == [(b"\xff", b"")]
        assert list(store.items(b"c")) == []
        assert (store.get(b"a1"), store.get(b"b\xff"), store.get(b"\xff")) == (b"1", None, b"")
        store.close()

    def test_within_one_write_the_deletes_come_last(self, subject: Subject) -> None:
        store = subject.open()
        store.write([(b"a", b"1"), (b"b", b"2")], [b"a"])
        assert list(store.items(b"")) == [(b"b", b"2")]
        store.close()

    def test_a_store_closed_in_peace_holds_everything(self, subject: Subject) -> None:
        store = subject.open()
        for number in range(WRITES):
            store.write(*write_number(number))
        store.flush()
        store.close()
        assert read(subject.open()) == content_after(WRITES)

    def test_a_killed_process_loses_no_write(self, numbered: Subject) -> None:
        assert read(numbered.open()) == content_after(WRITES)

    def test_killed_again_and_again_it_goes_on_where_it_was(self, subject: Subject) -> None:
        for first in range(0, WRITES, 4):
            subject.write_and_die([write_number(number) for number in range(first, first + 4)], 0)
            assert read(subject.open()) == content_after(first + 4)

    def test_more_than_fits_into_memory_is_there_after_a_kill(self, subject: Subject) -> None:
        big = [([(b"%04d" % number, b"%d" % number * 5_000), (POSITION, b"%d" % number)], ()) for number in range(800)]
        subject.write_and_die(big, 0)
        found = read(subject.open())
        assert len(found) == 801
        assert all(found[b"%04d" % number] == b"%d" % number * 5_000 for number in range(800))

    def test_a_power_cut_takes_whole_writes_from_the_end_and_nothing_flushed(self, numbered: Subject) -> None:
        outcomes: set[int | str] = set()
        for how in numbered.torn():
            count = self.whole_writes(numbered, how)
            if count is not None:
                assert FLUSHED <= count <= WRITES, f"{how}: {count} of {FLUSHED} flushed writes are there"
            outcomes.add("refused" if count is None else count)
        assert {FLUSHED, WRITES, "refused"} <= outcomes, "losing all of it, none of it, and refusing to open: each occurs"

    def test_damage_is_refused_or_takes_whole_writes_from_the_end(self, numbered: Subject) -> None:
        """The default of RocksDB would drop what lies behind a flipped bit, flushed or not, and say nothing."""
        outcomes = {self.whole_writes(numbered, how) for how in numbered.damaged()}
        assert None in outcomes

    def test_a_store_that_refuses_can_be_destroyed_and_filled_anew(self, numbered: Subject) -> None:
        for how in numbered.damaged():
            if self.whole_writes(numbered, how) is None:
                numbered.destroy()
                store = numbered.open()
                assert list(store.items(b"")) == []
                store.write(*write_number(0))
                store.flush()
                store.close()
                assert read(numbered.open()) == content_after(1)
                return
        pytest.fail("it never refused")

    @staticmethod
    def whole_writes(subject: Subject, how: str) -> int | None:
        """How many of the numbered writes are there: the first so many, whole. None: it refuses to open."""
        try:
            found = read(subject.open())
        except StorageDamaged:
            return None
        count = int(found.get(POSITION, b"-1")) + 1
        assert found == content_after(count), f"{how}: neither whole nor from the beginning"
        return count
