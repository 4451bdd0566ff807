"""One partition: what is handed out, what is visible, the ring of the newest batches, the extents."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from broker.engine.base import Stored
from broker.log.footer import DamagedRange, PartitionSummary
from broker.log.layout import NO_TAG
from broker.log.partition import Extent, PartitionLog, Ring
from tests.broker.log.journals import ORDERS, Journal

# Records of a batch, and the step from the sequence of the batch before.
STEPS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), max_size=40)


def batches_of(steps: list[tuple[int, int]]) -> list[Stored]:
    found, offset, sequence = [], 100, 0
    for count, step in steps:
        sequence += step
        found.append(Stored(0, offset, offset + count, sequence, 0, b"%d" % offset))
        offset += count
    return found


@given(STEPS, st.integers(0, 60))
def test_the_ring_answers_as_a_list_of_what_is_left(steps: list[tuple[int, int]], dropped: int) -> None:
    batches = batches_of(steps)
    ring = Ring()
    for stored in batches:
        ring.push(stored)
    for _ in range(min(dropped, len(batches))):
        ring.drop_first()
    left = batches[dropped:]
    assert len(ring) == len(left)
    assert len(ring.items) <= 2 * len(left) + 1, "what was dropped is let go"
    end = batches[-1].next_offset if batches else 101
    for offset in range(99, end + 1):
        found = ring.from_offset(offset)
        if not left or offset < left[0].base_offset:
            assert found is None
        else:
            assert found is not None
            assert list(found) == [stored for stored in left if stored.next_offset > offset]
        assert ring.at(offset) == next((stored for stored in left if stored.base_offset == offset), None)
    for sequence in range(200):
        assert ring.from_sequence(sequence) == [stored for stored in left if stored.sequence >= sequence]


def grow(log: PartitionLog, journal: Journal, stored: Stored, tag: bytes) -> None:
    log.next_offset, log.tag = stored.next_offset, tag
    log.grow(
        journal.file,
        stored,
        position=128,
        size=200,
        flags=0,
        tag=tag,
        previous_tag=log.visible_tag,
        key_hashes=None,
    )


def test_what_became_visible_is_counted_in_its_extent(journal: Journal) -> None:
    log = PartitionLog(ORDERS, 3)
    grow(log, journal, Stored(3, 0, 5, 7, 50, b""), b"a" * 16)
    grow(log, journal, Stored(3, 5, 6, 9, 40, b""), b"b" * 16)
    (extent,) = log.extents
    part = extent.summary
    assert (part.first_offset, part.next_offset, part.batches, part.size) == (0, 6, 2, 400)
    assert (part.min_sequence, part.max_sequence, part.max_timestamp_ms) == (7, 9, 50)
    assert (part.chain_in, part.chain_out) == (NO_TAG, b"b" * 16)
    assert (log.high_watermark, log.visible_tag) == (6, b"b" * 16)


def test_timestamps_below_zero_count_too(journal: Journal) -> None:
    log = PartitionLog(ORDERS, 0)
    grow(log, journal, Stored(0, 0, 1, 1, -1, b""), b"a" * 16)
    assert log.extents[0].summary.max_timestamp_ms == -1


def test_a_sealed_extent_does_not_grow_any_more(journal: Journal) -> None:
    log = PartitionLog(ORDERS, 0)
    grow(log, journal, Stored(0, 0, 1, 1, 0, b""), b"a" * 16)
    log.extents[0].index = None
    grow(log, journal, Stored(0, 1, 2, 2, 0, b""), b"b" * 16)
    assert [extent.summary.first_offset for extent in log.extents] == [0, 1]
    assert log.extents[1].summary.chain_in == b"a" * 16


def test_rolling_back_forgets_what_never_became_visible(journal: Journal) -> None:
    log = PartitionLog(ORDERS, 0)
    grow(log, journal, Stored(0, 0, 4, 1, 0, b""), b"a" * 16)
    log.next_offset, log.tag = 9, b"z" * 16
    log.roll_back()
    assert (log.next_offset, log.tag, log.high_watermark) == (4, b"a" * 16, 4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=12))
def test_extents_are_found_by_offset_and_by_sequence(gaps: list[tuple[int, int]]) -> None:
    log = PartitionLog(ORDERS, 0)
    offset = 0
    for gap, size in gaps:
        offset += gap
        part = PartitionSummary(
            ORDERS, 0, 0, offset, offset + size, 1, 0, 0, 10 * offset, 10 * (offset + size) - 1, NO_TAG, NO_TAG
        )
        log.extents.append(Extent(None, part, None))  # type: ignore[arg-type]
        offset += size
    ends = [extent.summary.next_offset for extent in log.extents]
    for wanted in range(offset + 2):
        assert log.extent_at_offset(wanted) == next((at for at, end in enumerate(ends) if wanted < end), len(ends))
        assert log.extent_at_sequence(wanted) == bisect_left([10 * end - 1 for end in ends], wanted)


def test_damage_is_that_of_all_extents(journal: Journal) -> None:
    log = PartitionLog(ORDERS, 0)
    grow(log, journal, Stored(0, 0, 4, 1, 0, b""), b"a" * 16)
    log.extents[0].index = None
    grow(log, journal, Stored(0, 4, 5, 2, 0, b""), b"b" * 16)
    log.extents[0].summary.damage.append(DamagedRange(1, 2, "first"))
    log.extents[1].summary.damage.append(DamagedRange(4, 5, "second"))
    assert [lost.reason for lost in log.damage()] == ["first", "second"]
