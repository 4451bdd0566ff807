"""The index of one partition in one file, growing and settled: both must answer alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.log.index import BatchIndex, _grouped_keys, _paired_keys
from broker.log.layout import FLAG_HAS_EXPIRY, FLAG_KEYS_COMPLETE

HASHES = st.lists(st.integers(0, 5) | st.integers(0, 2**64 - 1), unique=True, max_size=6).map(sorted)
BATCHES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(1, 9), st.integers(-(2**63), 2**63 - 1), st.none() | HASHES),
    max_size=30,
)


def filled(rows: list[tuple[int, int, int, int, list[int] | None]]) -> BatchIndex:
    """Rows of gap before the batch, last offset delta, steps to its sequence, timestamp, hashes."""
    index, offset, sequence = BatchIndex(), 10, 0
    for number, (gap, delta, step, timestamp_ms, hashes) in enumerate(rows):
        offset, sequence = offset + gap, sequence + step
        flags = FLAG_HAS_EXPIRY | (0 if hashes is None else FLAG_KEYS_COMPLETE)
        index.add(offset, delta, 1000 + 500 * number, 500, sequence, timestamp_ms, flags, tag(number), hashes)
        offset += delta + 1
    return index


def tag(number: int) -> bytes:
    return number.to_bytes(16, "big")


@given(BATCHES)
def test_a_settled_index_is_the_growing_one(rows: list[tuple[int, int, int, int, list[int] | None]]) -> None:
    growing = filled(rows)
    settled = BatchIndex.from_columns(growing.to_columns(), FLAG_KEYS_COMPLETE)
    assert len(settled) == len(growing) == len(rows)
    assert [settled.place(at) for at in range(len(rows))] == [growing.place(at) for at in range(len(rows))]
    assert settled.to_columns() == growing.to_columns()
    hashes = {found for row in rows for found in row[4] or ()} | {1, 2**64 - 1}
    for found in hashes:
        assert list(settled.with_key(found)) == list(growing.with_key(found))
    end = growing.place(len(rows) - 1).next_offset if rows else 10
    for offset in range(9, min(end + 2, 200)):
        assert settled.at_offset(offset) == growing.at_offset(offset)


@given(BATCHES)
def test_every_batch_with_a_key_and_every_opaque_one_is_a_candidate(
    rows: list[tuple[int, int, int, int, list[int] | None]],
) -> None:
    index = filled(rows)
    for found in {found for row in rows for found in row[4] or ()} | {7}:
        expected = [at for at, row in enumerate(rows) if row[4] is None or found in row[4]]
        assert list(index.with_key(found)) == expected


@given(BATCHES, st.integers(0, 300))
def test_at_offset_finds_the_batch_that_holds_it_or_the_next(
    rows: list[tuple[int, int, int, int, list[int] | None]], offset: int
) -> None:
    index = filled(rows)
    places = [index.place(at) for at in range(len(index))]
    expected = next((place.ordinal for place in places if offset < place.next_offset), len(places))
    assert index.at_offset(offset) == expected


@given(BATCHES, st.integers(0, 100))
def test_at_sequence_finds_the_first_at_or_after(rows: list[tuple[int, int, int, int, list[int] | None]], sequence: int) -> None:
    index = filled(rows)
    expected = next((at for at, found in enumerate(index.sequences) if found >= sequence), len(index))
    assert index.at_sequence(sequence) == expected


def test_keys_are_grouped_again_after_the_index_has_grown() -> None:
    index = filled([(0, 0, 1, 0, [5])])
    assert list(index.with_key(5)) == [0]
    index.add(20, 0, 9000, 500, 50, 0, FLAG_KEYS_COMPLETE, tag(1), [5, 6])
    assert list(index.with_key(5)) == [0, 1]
    assert list(index.with_key(6)) == [1]


def test_a_place_names_the_batch_that_became_visible() -> None:
    place = filled([(0, 4, 1, 7, None), (2, 0, 3, 8, None)]).place(1)
    assert (place.base_offset, place.next_offset, place.position, place.size) == (17, 18, 1500, 500)
    assert (place.sequence, place.max_timestamp_ms, place.flags, place.tag) == (4, 8, FLAG_HAS_EXPIRY, tag(1))


def test_a_settled_index_does_not_grow() -> None:
    settled = BatchIndex.from_columns(BatchIndex().to_columns(), FLAG_KEYS_COMPLETE)
    with pytest.raises(TypeError, match="does not grow"):
        settled.add(0, 0, 0, 0, 0, 0, 0, tag(0), None)


@pytest.mark.parametrize("wrong", [b"", b"1234567", b"\xff" * 8])
def test_columns_that_do_not_fit_their_counts_are_refused(wrong: bytes) -> None:
    whole = filled([(0, 0, 1, 0, [5])]).to_columns()
    for columns in (wrong, whole[:-1], whole + b"\x00"):
        with pytest.raises(ValueError, match="detail block"):
            BatchIndex.from_columns(columns, FLAG_KEYS_COMPLETE)


def test_size_in_memory_grows_with_batches_and_keys() -> None:
    def settled(rows: int, keys: int) -> int:
        columns = filled([(0, 0, 1, 0, list(range(keys)))] * rows).to_columns()
        return BatchIndex.from_columns(columns, FLAG_KEYS_COMPLETE).size_in_memory()

    assert settled(11, 0) - settled(10, 0) == 60
    assert settled(1, 9) - settled(1, 8) == 12


@given(st.lists(HASHES, max_size=40))
def test_keys_that_repeat_and_keys_that_do_not_are_sorted_alike(runs: list[list[int]]) -> None:
    hashes, ordinals = _grouped_keys(runs)
    assert (hashes, ordinals) == _paired_keys(runs)
    assert list(zip(hashes, ordinals, strict=True)) == sorted((found, at) for at, run in enumerate(runs) for found in run)


@given(BATCHES, HASHES, st.data())
def test_what_is_learned_late_is_found_as_if_it_had_come_with_its_batch(
    rows: list[tuple[int, int, int, int, list[int] | None]], hashes: list[int], data: st.DataObject
) -> None:
    index = filled(rows)
    opaque = [at for at, row in enumerate(rows) if row[4] is None]
    assert index.opaque() == opaque
    learned = data.draw(st.permutations(opaque))[: data.draw(st.integers(0, len(opaque)))]
    for ordinal in learned:
        if data.draw(st.booleans()):
            index.with_key(7)  # readers came before
        assert index.learn(ordinal, hashes)
        assert index.learn(ordinal, [1, 2, 3]), "once is enough"
    known = filled([row if at not in learned else (*row[:4], hashes) for at, row in enumerate(rows)])
    assert index.to_columns() == known.to_columns()
    assert index.opaque() == known.opaque()
    for found in {*hashes, 7, *(one for row in rows for one in row[4] or ())}:
        assert list(index.with_key(found)) == list(known.with_key(found))
        assert list(index.with_any((found, 3))) == sorted({*known.with_key(found), *known.with_key(3)})


def test_nothing_is_learned_once_the_columns_are_being_written() -> None:
    index = filled([(0, 0, 1, 0, None)])
    index.freeze()
    assert not index.learn(0, [5])
    assert index.opaque() == [0]
    assert not BatchIndex.from_columns(index.to_columns(), FLAG_KEYS_COMPLETE).learn(0, [5])
