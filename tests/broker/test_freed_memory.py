"""What a peak leaves in glibc's heap goes back to the system, once, and only beyond the bound."""

from __future__ import annotations

import pytest

from broker.freed_memory import FreedMemory, _glibc, resident_bytes

MIB = 1024 * 1024
pytestmark = pytest.mark.skipif(_glibc() is None, reason="no glibc with mallinfo2")


def peak(size: int) -> list[bytes]:
    """Freed but for a tenth, which keeps the heap from shrinking by itself."""
    blocks = [b"x" * 64 * 1024 for _ in range(size // (64 * 1024))]
    return blocks[9::10]


def test_what_a_peak_leaves_is_given_back() -> None:
    freed = FreedMemory(8 * MIB)
    freed.look()
    before = resident_bytes()
    left = peak(64 * MIB)
    assert resident_bytes() > before + 32 * MIB
    assert freed.look()
    assert resident_bytes() < before + 24 * MIB
    given_back = freed.times_given_back
    assert not freed.look()  # it counts as free in the heap still
    assert freed.times_given_back == given_back
    assert len(left) > 50


def test_less_than_the_bound_stays() -> None:
    freed = FreedMemory(64 * MIB)
    freed.look()
    left = peak(16 * MIB)
    assert not freed.look()
    assert len(left) > 10
