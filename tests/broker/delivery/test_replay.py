"""Windows and paces, without a log and without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.delivery.replay import SPEED_MAX, SPEED_MIN, BeforeMessage, BeforeOffset, BeforeTime, End, Pace, ends

timestamps = st.lists(st.integers(0, 10**12), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("end", "outside", "inside"),
    [
        (BeforeTime(100), [(0, 0, 100, "a"), (3, 9, 101, None)], [(0, 0, 99, "a")]),
        (BeforeOffset(1, 7), [(1, 7, 0, "a"), (1, 8, 0, "a")], [(1, 6, 0, "a"), (0, 9, 0, "a")]),
        (BeforeMessage("x"), [(0, 0, 0, "x")], [(0, 0, 0, "y"), (0, 0, 0, None)]),
        (None, [], [(0, 0, 0, None)]),
    ],
)
def test_a_window_ends_at_the_first_record_that_reaches_it(
    end: End, outside: list[tuple[int, int, int, str | None]], inside: list[tuple[int, int, int, str | None]]
) -> None:
    assert all(ends(end, *record) for record in outside)
    assert not any(ends(end, *record) for record in inside)


def test_at_original_speed_records_are_as_far_apart_as_they_were() -> None:
    pace = Pace(1.0)
    assert [pace.due_ms(at) for at in (5_000, 5_000, 6_500, 6_400, 8_000)] == [0, 0, 1_500, 1_500, 3_000]


def test_a_factor_shortens_and_lengthens_all_distances() -> None:
    fast, slow = Pace(10.0), Pace(0.5)
    assert [fast.due_ms(at) for at in (0, 1_000, 3_000)] == [0, 100, 300]
    assert [slow.due_ms(at) for at in (0, 1_000, 3_000)] == [0, 2_000, 6_000]


def test_long_pauses_are_cut() -> None:
    pace = Pace(2.0, pause_ms_max=1_000)
    assert [pace.due_ms(at) for at in (0, 1_000, 86_400_000, 86_401_000)] == [0, 500, 1_500, 2_000]


@given(timestamps, st.floats(SPEED_MIN, SPEED_MAX), st.none() | st.integers(1, 10_000))
def test_no_record_is_due_before_the_one_before_it(times: list[int], speed: float, pause_ms_max: int | None) -> None:
    pace = Pace(speed, pause_ms_max)
    due = [pace.due_ms(at) for at in times]
    assert due[0] == 0
    assert due == sorted(due)
    span_ms = (max(times) - times[0]) / speed
    assert due[-1] <= span_ms * 1.000_001 + 1
    if pause_ms_max is not None:
        assert due[-1] <= pause_ms_max * (len(times) - 1) * 1.000_001


@given(timestamps)
def test_as_fast_as_possible_waits_for_nothing(times: list[int]) -> None:
    pace = Pace(None, 5)
    assert {pace.due_ms(at) for at in times} == {0.0}


@pytest.mark.parametrize("speed", [0.0, -1.0, SPEED_MIN / 2, SPEED_MAX * 2, float("nan"), float("inf")])
def test_speeds_have_bounds(speed: float) -> None:
    with pytest.raises(ValueError, match="a speed is from"):
        Pace(speed)
