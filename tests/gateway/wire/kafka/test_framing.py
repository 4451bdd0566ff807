"""Frames: whole, in pieces, too large, and never more memory than what came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.kafka.errors import MessageInvalid
from gateway.wire.kafka.framing import BUFFER_BYTES, FIRST_BYTES, GLANCE_BYTES, LARGE_BYTES, Frames, FrameTooLarge


def framed(*bodies: bytes) -> bytes:
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


def feed(frames: Frames, data: bytes, step: int) -> list[bytes]:
    """As a transport does: as much as there is room for, at most `step` at a time."""
    found, position = [], 0
    while True:
        while (frame := frames.next()) is not None:
            found.append(bytes(frame))
        frames.settle()
        if position == len(data):
            return found
        assert frames.room
        buffer = frames.buffer()
        size = min(len(buffer), step, len(data) - position)
        assert size > 0
        buffer[:size] = data[position : position + size]
        frames.updated(size)
        position += size


SIZES = st.lists(
    st.sampled_from([0, 1, 5, 1_000, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, BUFFER_BYTES, 200_000]), max_size=12
)


@given(SIZES, st.sampled_from([1_009, 4_096, 65_536, 10**9]))
def test_frames_come_out_as_they_went_in(sizes: list[int], step: int) -> None:
    bodies = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    frames = Frames(1_000_000)
    assert feed(frames, framed(*bodies), step) == bodies
    assert not frames.partial


def test_one_buffer_for_all_and_nothing_of_others_in_it() -> None:
    one, other = Frames(1_000_000), Frames(1_000_000)
    assert one.buffer().obj is other.buffer().obj
    first, second = framed(b"a" * 3_000, b"b" * 20_000), framed(b"c" * 3_000, b"d" * 20_000)
    found: tuple[list[bytes], list[bytes]] = ([], [])
    for begin in range(0, len(first), 700):  # in turns, each cut off in the middle of something
        found[0].extend(feed(one, first[begin : begin + 700], 700))
        found[1].extend(feed(other, second[begin : begin + 700], 700))
    assert found == ([b"a" * 3_000, b"b" * 20_000], [b"c" * 3_000, b"d" * 20_000])
    assert one.buffer().obj is other.buffer().obj


def test_behind_a_large_frame_another_is_expected() -> None:
    frames = Frames(1_000_000)
    large, small = bytes(LARGE_BYTES + 1), bytes(LARGE_BYTES)
    assert len(frames.buffer()) == BUFFER_BYTES
    assert feed(frames, framed(large), 10**9) == [large]
    assert len(frames.buffer()) == GLANCE_BYTES
    assert feed(frames, framed(large)[:GLANCE_BYTES], 10**9) == []
    assert len(frames.buffer()) == 4 + len(large) - GLANCE_BYTES  # all the rest, where it stays
    assert feed(frames, framed(large)[GLANCE_BYTES:], 10**9) == [large]
    assert feed(frames, framed(small), 10**9) == [small]
    assert len(frames.buffer()) == BUFFER_BYTES


def test_more_until_all_was_taken() -> None:
    frames = Frames(1_000_000)
    for size in (LARGE_BYTES, LARGE_BYTES + 1):
        data = framed(bytes(size), b"behind")
        frames.buffer()[: len(data)] = data
        frames.updated(len(data))
        assert frames.more
        assert frames.next() == bytes(size)
        assert frames.more
        assert frames.next() == b"behind"
        assert not frames.more


def test_byte_by_byte() -> None:
    bodies = [b"", b"a", b"abc" * 100]
    assert feed(Frames(1_000), framed(*bodies), 1) == bodies


def test_what_was_taken_is_not_written_to_again() -> None:
    frames = Frames(1_000_000)
    data = framed(b"first", b"second")
    frames.buffer()[: len(data)] = data
    frames.updated(len(data))
    first, second = frames.next(), frames.next()
    assert feed(frames, framed(b"third!"), 100) == [b"third!"]
    assert (first, second) == (b"first", b"second")


def test_too_large_is_refused_by_its_length_alone() -> None:
    frames = Frames(1_000)
    assert feed(frames, framed(b"x" * 1_000), 99) == [b"x" * 1_000]
    with pytest.raises(FrameTooLarge) as refusal:
        feed(frames, (1_001).to_bytes(4, "big"), 4)
    assert (refusal.value.size, refusal.value.bytes_max) == (1_001, 1_000)


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\x80\x00\x00\x00"])
def test_a_negative_length_is_refused(length: bytes) -> None:
    with pytest.raises(MessageInvalid):
        feed(Frames(1_000), length, 4)


def test_a_length_allocates_nothing_that_does_not_come() -> None:
    frames = Frames(100 * FIRST_BYTES)
    assert feed(frames, (100 * FIRST_BYTES).to_bytes(4, "big") + b"x", 5) == []
    assert frames.partial
    assert frames.held_bytes == FIRST_BYTES
    assert feed(frames, b"x" * FIRST_BYTES, 65_536) == []
    assert frames.held_bytes == 2 * FIRST_BYTES


def test_a_frame_that_waits_leaves_room_until_the_buffer_is_full() -> None:
    """The connection does not take frames whose turn has not come; the transport then reads until there is no room."""
    frames = Frames(1_000)
    data = framed(b"x" * 996) * (BUFFER_BYTES // 1_000 + 1)
    position = 0
    while frames.room:
        buffer = frames.buffer()
        size = min(len(buffer), len(data) - position)
        buffer[:size] = data[position : position + size]
        frames.updated(size)
        frames.settle()
        position += size
    assert position == BUFFER_BYTES
    assert frames.next() == b"x" * 996
    assert frames.room
