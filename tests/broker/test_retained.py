"""What compaction leaves of a batch: a model of records, whatever the codec, and what Kafka's readers rely on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.batch import build, keys, verify, walk, with_log_append_time
from broker.batch_errors import CorruptBatch
from broker.batch_header import HEADER_BYTES, TIMESTAMP_MS_MAX, read_header
from broker.compression import Compression
from broker.retained import delete_horizon, empty, holds_records, outline, outline_some, retain

Draft = tuple[int, bytes | None, bytes | None, tuple[tuple[bytes, bytes | None], ...]]

KEYS = st.one_of(st.none(), st.binary(max_size=200))
HEADERS = st.lists(
    st.tuples(st.binary(max_size=20).map(lambda b: b.hex().encode()), st.none() | st.binary(max_size=20)), max_size=2
)
DRAFTS = st.lists(
    st.tuples(st.integers(0, 2**45), KEYS, st.none() | st.binary(max_size=300), HEADERS.map(tuple)), min_size=1, max_size=8
)


@given(
    drafts=DRAFTS,
    codec=st.sampled_from(Compression),
    base=st.integers(0, 2**40),
    beyond=st.integers(0, 2**30),
    horizon=st.none() | st.integers(0, 2**45),
    data=st.data(),
)
def test_the_records_that_are_kept_read_as_before(
    drafts: list[Draft], codec: Compression, base: int, beyond: int, horizon: int | None, data: st.DataObject
) -> None:
    batch = build(drafts, compression=codec, base_offset=base, producer_id=7, producer_epoch=3, base_sequence=11)
    kept = data.draw(st.lists(st.booleans(), min_size=len(drafts), max_size=len(drafts)).filter(any))
    left = retain(batch, kept, base + len(drafts) + beyond, horizon)
    header = verify(left)
    assert list(walk(left)) == [record for record, keep in zip(walk(batch), kept, strict=True) if keep]
    assert (header.base_offset, header.next_offset) == (base, base + len(drafts) + beyond)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (7, 3, 11)
    assert header.compression is codec
    assert header.count == sum(kept)
    assert header.max_timestamp_ms == max(draft[0] for draft, keep in zip(drafts, kept, strict=True) if keep)
    assert delete_horizon(left) == horizon


@given(drafts=DRAFTS, first=st.integers(0, 2**45), then=st.integers(0, 2**45))
def test_a_delete_horizon_is_set_once(drafts: list[Draft], first: int, then: int) -> None:
    every = [True] * len(drafts)
    marked = retain(build(drafts), every, len(drafts), first)
    assert delete_horizon(retain(marked, every, len(drafts) + 5, then)) == first
    assert list(walk(retain(marked, every, len(drafts) + 5, then))) == list(walk(build(drafts)))


def test_nothing_to_do_leaves_the_very_bytes() -> None:
    batch = build([(1, b"a", b"1", ()), (2, b"b", None, ())], compression=Compression.LZ4, base_offset=40)
    assert retain(batch, [True, True], 42) is batch


def test_a_horizon_that_the_format_cannot_say_is_left_out() -> None:
    far = retain(build([(-(2**61), b"a", None, ())]), [True], 1, 2**63)
    assert delete_horizon(far) is None
    assert [record.timestamp_ms for record in walk(far)] == [-(2**61)]
    assert delete_horizon(retain(build([(0, b"a", None, ())]), [True], 1, 2**70)) == TIMESTAMP_MS_MAX


def test_records_dated_by_the_log_keep_its_date() -> None:
    batch = with_log_append_time(build([(1, b"a", b"1", ()), (900, b"b", b"2", ())]), 5_000)
    assert [record.timestamp_ms for record in walk(retain(batch, [True, False], 2, 77))] == [5_000]


def test_an_outline_names_keys_and_tombstones() -> None:
    found = outline(build([(1, b"a", b"1", ()), (2, None, b"", ()), (3, b"b", None, ())], base_offset=9))
    assert (found.offsets, found.keys, found.tombstones) == ([9, 10, 11], [b"a", None, b"b"], [2])


@given(drafts=DRAFTS, codec=st.sampled_from(Compression), kept=st.lists(st.booleans(), min_size=8, max_size=8))
def test_an_outline_agrees_with_a_walk(drafts: list[Draft], codec: Compression, kept: list[bool]) -> None:
    """Of batches as they came, and of those that compaction left before."""
    batch = build(drafts, compression=codec, base_offset=9)
    if any(kept[: len(drafts)]):
        batch = retain(batch, kept[: len(drafts)], 9 + len(drafts), 2**40 if kept[-1] else None)
    found, records = outline(batch), list(walk(batch))
    assert list(zip(found.offsets, found.keys, strict=True)) == [(record.offset, record.key) for record in records]
    assert found.tombstones == [at for at, record in enumerate(records) if record.value is None]


@given(drafts=DRAFTS, codec=st.sampled_from(Compression), data=st.data())
def test_an_outline_of_some_records_is_that_of_all_without_the_others(
    drafts: list[Draft], codec: Compression, data: st.DataObject
) -> None:
    batch = build(drafts, compression=codec, base_offset=9)
    kept = data.draw(st.lists(st.booleans(), min_size=len(drafts), max_size=len(drafts)).filter(any))
    horizon = data.draw(st.none() | st.integers(0, 2**45))
    some = outline_some(batch, [at for at, keep in enumerate(kept) if keep])
    assert some.keys == [draft[1] for draft, keep in zip(drafts, kept, strict=True) if keep]
    assert some.offsets == [9 + at for at, keep in enumerate(kept) if keep]
    assert some.retain([True] * len(some), 100, horizon) == retain(batch, kept, 100, horizon)


@given(drafts=DRAFTS, at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_an_outline_refuses_what_a_walk_refuses(drafts: list[Draft], at: int, value: int) -> None:
    batch = bytearray(build(drafts))
    batch[HEADER_BYTES + at % (len(batch) - HEADER_BYTES)] = value
    try:
        records = [(record.offset, record.key) for record in walk(bytes(batch))]
    except CorruptBatch:
        with pytest.raises(CorruptBatch):
            outline(bytes(batch))
    else:
        found = outline(bytes(batch))
        assert list(zip(found.offsets, found.keys, strict=True)) == records


def test_an_outline_of_a_batch_cut_short_is_refused() -> None:
    batch = build([(1, b"a", b"1" * 200, ((b"name", b"content"),)), (2, None, b"", ())])
    for size in range(len(batch)):
        with pytest.raises(CorruptBatch):
            outline(batch[:size])


def test_an_empty_batch_covers_its_offsets_and_has_no_record() -> None:
    batch = empty(30, 47)
    assert (verify(batch).base_offset, read_header(batch).next_offset) == (30, 47)
    assert (list(walk(batch)), keys(batch), holds_records(batch)) == ([], [], False)
    assert holds_records(build([(0, None, None, ())]))
