"""Both forms of a time, and what is neither."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.endpoints.timestamps import parse_timestamp_ms


@given(st.integers(0, 253_402_000_000_000_000), st.integers(-23 * 60, 23 * 60))
def test_rfc3339_of_any_moment_and_zone(microseconds: int, minutes: int) -> None:
    moment = datetime(1970, 1, 2, tzinfo=UTC) + timedelta(microseconds=microseconds)
    zoned = moment.astimezone(timezone(timedelta(minutes=minutes)))
    expected = (zoned - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert parse_timestamp_ms(zoned.isoformat()) == expected


@given(st.integers(0, 10**15 - 1))
def test_milliseconds(number: int) -> None:
    assert parse_timestamp_ms(str(number)) == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00.5z", 500),
        ("1970-01-01 00:00:01.0019+00:00", 1_001),
        ("2026-11-23T13:00:00.123456789+01:00", 1_795_435_200_123),
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_forms(text: str, expected: int) -> None:
    assert parse_timestamp_ms(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "1.5",
        "1e3",
        "9" * 16,
        "٣",
        "now",
        "2026-11-23",
        "2026-11-23T13:00:00",
        "2026-11-23T13:00Z",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-11-23T24:00:01Z",
        "2026-11-23T23:59:60Z",
        "2026-11-23T13:00:00+25:00",
        "2026-W01-1T00:00:00Z",
        "20261123T130000Z",
        "2026-11-23T13:00:00Z ",
        "2026-11-23T13:00:00Z\n",
        "2026-11-23T13:00:00.Z",
        "2026-11-23T13:00:00,5Z",
    ],
)
def test_neither(text: str) -> None:
    with pytest.raises(ValueError, match="a time is"):
        parse_timestamp_ms(text)
