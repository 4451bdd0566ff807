"""Times as callers write them: milliseconds since 1970, or RFC 3339 with its zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

# RFC 3339, 5.6, in capitals or not; fractions beyond the microsecond are cut. No leap seconds: Unix time has none.
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)",
    re.ASCII,
)
_MILLISECONDS = re.compile(r"\d{1,15}", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

FORMS = "milliseconds since 1970, or RFC 3339 with its zone such as 2026-11-23T13:00:00Z"


def parse_timestamp_ms(text: str) -> int:
    """Either form; a time before 1970 is negative. Raises `ValueError`."""
    if _MILLISECONDS.fullmatch(text):
        return int(text)
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"a time is {FORMS}")
    date, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{zone.upper()}")
    except ValueError:
        raise ValueError(f"there is no such date or time; a time is {FORMS}") from None
    return (moment - _EPOCH) // _MILLISECOND + int((fraction or "0").ljust(3, "0")[:3])
