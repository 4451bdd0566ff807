"""Lengths of time, as typed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.durations import DURATION_MS_MAX, UNIT_MS, parse_duration_ms, show_duration


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("90s", 90_000),
        ("1ms", 1),
        ("10 minutes", 600_000),
        ("1 Minute", 60_000),
        ("2h", 7_200_000),
        ("30d", 30 * 86_400_000),
        ("1w", 604_800_000),
        ("2 years", 730 * 86_400_000),
        ("1h30m", 5_400_000),
        (" 1 day 12 hours ", 129_600_000),
    ],
)
def test_forms_that_people_type(text: str, expected_ms: int) -> None:
    assert parse_duration_ms(text) == expected_ms


@pytest.mark.parametrize(
    "text",
    ["", "  ", "10", "s", "-5s", "1.5h", "10 parsecs", "1h 30", "0s", "0d0h", "101 years", "999999999999w", "1h\x00", "１0s"],
)
def test_refusals_say_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="30d or 1h30m"):
        parse_duration_ms(text)


@given(st.integers(1, DURATION_MS_MAX))
def test_every_duration_reads_back(duration_ms: int) -> None:
    parts, rest = [], duration_ms
    for unit, unit_ms in sorted(UNIT_MS.items(), key=lambda item: -item[1]):
        count, rest = divmod(rest, unit_ms)
        if count:
            parts.append(f"{count}{unit}")
    assert parse_duration_ms("".join(parts)) == duration_ms


@pytest.mark.parametrize(
    ("duration_ms", "shown"),
    [(0, "0s"), (7, "7ms"), (42_000, "42s"), (129_600_000, "1d 12h"), (604_800_000 + 60_000, "1w 1m"), (3_723_004, "1h 2m")],
)
def test_shown_with_the_two_units_that_matter(duration_ms: int, shown: str) -> None:
    assert show_duration(duration_ms) == shown
