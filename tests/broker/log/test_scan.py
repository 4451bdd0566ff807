"""Finding groups, frames and batches in whole and damaged bytes."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from broker.log.layout import FILE_HEADER_BYTES, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeader, pack_group_header
from broker.log.scan import FoundFrame, Gap, batches, frame_at, frames, groups
from broker.log.state import Entry
from tests.broker.log.journals import ORDERS, READINGS, SALT, Journal, one_record

Flip = Callable[..., bytes]


def three_groups(journal: Journal) -> bytes:
    """Group 1: keys, two batches, an entry. Group 2: one batch. Group 3: three frames."""
    entry = Entry(3, b"some key", b"some value")
    journal.group(journal.frame((ORDERS, 0, one_record(b"a")), (READINGS, 1, one_record(b"b")), entries=[entry]))
    journal.group(journal.frame((ORDERS, 0, one_record(b"c"))))
    last = [(ORDERS, 1, one_record(b"d")), (ORDERS, 0, one_record(b"e" * 300)), (READINGS, 1, one_record(b"f"))]
    journal.group(*(journal.frame(batch) for batch in last))
    return journal.data


def numbers(data: bytes, salt: int = SALT) -> list[int]:
    return [found.header.number for found in groups(data, FILE_HEADER_BYTES, len(data), salt)]


def test_groups_are_walked_in_order(journal: Journal) -> None:
    data = three_groups(journal)
    found = list(groups(data, FILE_HEADER_BYTES, len(data), SALT))
    assert [group.header.number for group in found] == [1, 2, 3]
    assert [group.position for group in found] == [FILE_HEADER_BYTES, *journal.group_ends[:2]]
    assert [(group.header.frames, group.header.batches) for group in found] == [(2, 2), (1, 1), (3, 3)]
    assert [group.header.first_sequence for group in found] == [1, 3, 4]


def test_groups_of_another_salt_are_nothing(journal: Journal) -> None:
    assert numbers(three_groups(journal), salt=SALT + 1) == []


def test_every_prefix_gives_the_groups_whose_headers_it_holds(journal: Journal) -> None:
    data = three_groups(journal)
    starts = [FILE_HEADER_BYTES, *journal.group_ends[:2]]
    for size in range(len(data) + 1):
        assert numbers(data[:size]) == [n for n, start in enumerate(starts, 1) if start + GROUP_HEADER_BYTES <= size]


def test_a_damaged_group_header_costs_that_header_only(journal: Journal, flipped: Flip) -> None:
    data = three_groups(journal)
    second = journal.group_ends[0]
    for at in range(second, second + GROUP_HEADER_BYTES):
        assert numbers(flipped(data, at)) == [1, 3], at


def test_a_length_that_leads_nowhere_is_not_believed(journal: Journal) -> None:
    data = three_groups(journal)
    header = next(groups(data, FILE_HEADER_BYTES, len(data), SALT)).header
    for body in (0, 10, header.body_bytes - 1, header.body_bytes + 1, 2**32 - 1):
        forged = pack_group_header(header._replace(body_bytes=body))
        assert numbers(data[:FILE_HEADER_BYTES] + forged + data[FILE_HEADER_BYTES + GROUP_HEADER_BYTES :]) == [1, 2, 3]


def test_numbers_only_grow(journal: Journal) -> None:
    data = three_groups(journal)
    stale = data[FILE_HEADER_BYTES : journal.group_ends[0]]
    assert numbers(data + stale) == [1, 2, 3]


def body(journal: Journal, group: int) -> tuple[int, int]:
    starts = [FILE_HEADER_BYTES, *journal.group_ends]
    return starts[group - 1] + GROUP_HEADER_BYTES, starts[group]


def test_frames_give_their_batches_and_state(journal: Journal) -> None:
    data = three_groups(journal)
    keys, frame = list(frames(data, *body(journal, 1)))
    assert isinstance(keys, FoundFrame)
    assert isinstance(frame, FoundFrame)
    assert keys.batches == []
    assert keys.state_bytes > 0
    named = [(b.header.topic_id, b.header.partition) if b.header else None for b in frame.batches]
    assert named == [(ORDERS, 0), (READINGS, 1)]
    assert frame.end == body(journal, 1)[1]
    assert frame.state_position + frame.state_bytes == frame.end


def test_a_damaged_frame_header_is_a_gap_with_the_batches_that_name_themselves(journal: Journal, flipped: Flip) -> None:
    data = three_groups(journal)
    start, end = body(journal, 3)
    first, second, third = [piece for piece in frames(data, start, end) if isinstance(piece, FoundFrame)]
    for at in range(second.position, second.position + 72):
        found = list(frames(flipped(data, at), start, end))
        assert found[0] == first
        assert isinstance(found[1], Gap)
        assert (found[1].position, found[1].end) == (second.position, third.position)
        assert [batch.position for batch in found[1].batches] == [second.batches[0].position]
        assert found[2] == third


def test_a_damaged_batch_header_leaves_the_directory_to_speak_for_it(journal: Journal, flipped: Flip) -> None:
    data = three_groups(journal)
    start, end = body(journal, 2)
    frame = frame_at(data, start, end)
    assert frame is not None
    for at in range(frame.batches[0].position, frame.batches[0].position + 128):
        (found,) = frames(flipped(data, at), start, end)
        assert isinstance(found, FoundFrame)
        assert found.batches[0].header is None
        assert found.batches[0].entry == frame.batches[0].entry


def test_a_frame_that_does_not_fit_is_none(journal: Journal) -> None:
    data = three_groups(journal)
    start, end = body(journal, 2)
    assert frame_at(data, start, end) is not None
    for shorter in range(start, end):
        assert frame_at(data, start, shorter) is None


def test_batches_are_found_wherever_they_begin(journal: Journal) -> None:
    data = three_groups(journal)
    found = list(batches(data, FILE_HEADER_BYTES, len(data)))
    assert [(b.header.base_offset, b.header.sequence) for b in found if b.header] == [
        (0, 1),
        (0, 2),
        (1, 3),
        (0, 4),
        (2, 5),
        (1, 6),
    ]
    assert list(batches(data, FILE_HEADER_BYTES, found[-1].position + 200)) == found[:-1]


@given(st.binary(max_size=400), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_no_bytes_make_a_scanner_raise_or_run_on(noise: bytes, body_bytes: int, number: int) -> None:
    header = pack_group_header(GroupHeader(GROUP_MAGIC, body_bytes, number, 0, 0, 0, 0, 0, SALT))
    data = noise[:200] + header + noise + b"SPFR" + noise + b"SPB1" + noise + header
    assert len(list(groups(data, 0, len(data), SALT))) <= 2
    pieces = list(frames(data, 0, len(data)))
    assert pieces[0].position == 0
    assert [piece.end for piece in pieces[:-1]] == [piece.position for piece in pieces[1:]]
    assert pieces[-1].end == len(data)
    assert list(batches(data, 0, len(data))) == []
