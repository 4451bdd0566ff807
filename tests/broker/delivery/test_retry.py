"""Pauses between deliveries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.delivery.retry import backoff_ms


class Drawn:
    """Random bytes that are all ones, or all zeros: the ends of what may be drawn."""

    def __init__(self, byte: int) -> None:
        self.byte = byte

    def bytes(self, count: int) -> bytes:
        return bytes([self.byte]) * count


LOWEST, HIGHEST = Drawn(0), Drawn(255)


def test_the_upper_end_doubles_up_to_its_bound() -> None:
    assert [backoff_ms(attempts, 100, 1_000, HIGHEST) for attempts in range(1, 7)] == [100, 200, 400, 800, 1_000, 1_000]


def test_the_lower_end_is_no_pause() -> None:
    assert {backoff_ms(attempts, 100, 1_000, LOWEST) for attempts in range(1, 50)} == {0}


def test_no_pause_is_possible() -> None:
    assert backoff_ms(3, 0, 1_000, HIGHEST) == backoff_ms(3, 100, 0, HIGHEST) == 0


@given(st.integers(0, 2**70), st.integers(0, 2**31), st.integers(0, 2**31), st.binary(min_size=8, max_size=8))
def test_it_is_never_out_of_bounds(attempts: int, first_ms: int, longest_ms: int, drawn: bytes) -> None:
    class Given:
        def bytes(self, count: int) -> bytes:
            assert count == 8
            return drawn

    assert 0 <= backoff_ms(attempts, first_ms, longest_ms, Given()) <= longest_ms
