"""The account of what waits for slow readers, and the size of a piece."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoints.send_buffers import PIECE_BYTES_MIN, SendBuffers

READ = 256 * 1024


class Holder:
    def __init__(self) -> None:
        self.was_cut = False

    def cut(self) -> None:
        self.was_cut = True


def test_a_piece_is_what_the_options_say_until_there_are_many():
    buffers = SendBuffers(256 * 1024 * 1024)
    assert buffers.piece_bytes(READ) == READ
    buffers.connections = 250
    assert buffers.piece_bytes(READ) == READ
    buffers.connections = 5_000
    assert buffers.piece_bytes(READ) == 13_421
    buffers.connections = 1_000_000
    assert buffers.piece_bytes(READ) == PIECE_BYTES_MIN
    assert buffers.piece_records(1_000) == 16


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), max_size=60))
def test_the_account_is_the_sum_and_never_overdrawn(moves):
    buffers = SendBuffers(1_000)
    holders = [Holder() for _ in range(10)]
    held = dict.fromkeys(range(10), 0)
    for who, size in moves:
        if holders[who].was_cut:
            continue
        held[who] = size
        buffers.hold(holders[who], size)
        for number, holder in enumerate(holders):
            if holder.was_cut:
                held[number] = 0
        assert buffers.held_bytes == sum(held.values()) <= 1_000
        assert buffers.pressed == (buffers.held_bytes >= 500)
        assert buffers.stats().holders == sum(1 for size in held.values() if size)
