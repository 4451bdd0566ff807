"""`--from`, as typed."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.positions import OFFSET_MAX, Position, parse_position

NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beginning", Position("earliest")),
        ("earliest", Position("earliest")),
        (" Latest ", Position("latest")),
        ("offset:0", Position("offset", number=0)),
        (f"offset:{OFFSET_MAX}", Position("offset", number=OFFSET_MAX)),
        ("cursor:1042-7", Position("cursor", cursor="1042-7")),
        ("10 minutes ago", Position("timestamp", number=NOW_MS - 600_000)),
        ("90s ago", Position("timestamp", number=NOW_MS - 90_000)),
        ("1h30mAGO", Position("timestamp", number=NOW_MS - 5_400_000)),
        ("99 years ago", Position("timestamp", number=0)),
        ("2026-11-23T13:00:00Z", Position("timestamp", number=1_795_438_800_000)),
        ("2026-11-23t13:00:00z", Position("timestamp", number=1_795_438_800_000)),
        ("2026-11-23T14:00:00.250+01:00", Position("timestamp", number=1_795_438_800_250)),
        ("2026-11-23 13:00:00+00:00", Position("timestamp", number=1_795_438_800_000)),
    ],
)
def test_forms(text: str, expected: Position) -> None:
    assert parse_position(text, NOW_MS) == expected


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "use beginning"),
        ("yesterday", "use beginning"),
        ("2026-13-01T00:00:00Z", "use beginning"),
        ("2026-11-23T13:00:00", "end it with Z"),
        ("2026-11-23", "end it with Z"),
        ("ten minutes ago", "write a number and a unit"),
        (" ago", "use beginning"),
        ("offset:", "offset:42"),
        ("offset:-1", "offset:42"),
        ("offset:1e3", "offset:42"),
        ("offset:９", "offset:42"),
        (f"offset:{OFFSET_MAX + 1}", "offset:42"),
        ("offset:" + "0" * 5000, "offset:42"),
        ("cursor:", "cursor:1042-7"),
        ("cursor:a b", "cursor:1042-7"),
        ("cursor:" + "1" * 129, "cursor:1042-7"),
    ],
)
def test_refusals_say_what_would_be_right(text: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        parse_position(text, NOW_MS)


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_every_rfc_3339_time_is_taken_to_the_millisecond(moment: datetime) -> None:
    position = parse_position(moment.isoformat(timespec="milliseconds"), NOW_MS)
    assert position.kind == "timestamp"
    assert datetime.fromtimestamp(position.number / 1_000, UTC).replace(microsecond=0) == moment.replace(microsecond=0)


@pytest.mark.parametrize(
    ("position", "message", "query"),
    [
        (Position("earliest"), "earliest", {"offset": "earliest"}),
        (Position("latest"), "latest", {"offset": "latest"}),
        (Position("offset", number=42), {"offset": 42, "partition": 3}, {"offset": "42"}),
        (Position("cursor", cursor="9-1"), {"cursor": "9-1"}, {"cursor": "9-1"}),
        (Position("timestamp", number=17), {"timestamp": 17}, {"timestamp": "17"}),
    ],
)
def test_both_protocols_are_told_the_same(position: Position, message: object, query: dict[str, str]) -> None:
    assert (position.as_message(3), position.as_query()) == (message, query)
