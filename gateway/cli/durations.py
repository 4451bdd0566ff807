"""Lengths of time as people type them: `90s`, `15 minutes`, `1d12h`."""

from __future__ import annotations

import re

UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "y": 365 * 86_400_000}

NAMES = {
    **{unit: unit for unit in UNIT_MS},
    **dict.fromkeys(("millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("hour", "hours"), "h"),
    **dict.fromkeys(("day", "days"), "d"),
    **dict.fromkeys(("week", "weeks"), "w"),
    **dict.fromkeys(("year", "years"), "y"),
}

# A hundred years: beyond it a typing error is likelier than a wish, and sums with the clock stay inside int64.
DURATION_MS_MAX = 100 * UNIT_MS["y"]

_PART = re.compile(r"\s*(\d{1,12})\s*([a-z]+)", re.ASCII)


def parse_duration_ms(text: str) -> int:
    """Milliseconds, at least 1. Raises ValueError, whose message says what would be right."""
    position, total, lowered = 0, 0, text.strip().lower()
    while position < len(lowered):
        part = _PART.match(lowered, position)
        unit = NAMES.get(part.group(2)) if part else None
        if part is None or unit is None:
            raise ValueError(
                f"{text!r} is no length of time: write a number and a unit (ms, s, m, h, d, w, y), as in 90s, 30d or 1h30m"
            )
        total += int(part.group(1)) * UNIT_MS[unit]
        position = part.end()
    if not 0 < total <= DURATION_MS_MAX:
        raise ValueError(f"{text!r} is no usable length of time: give 1 ms to 100 years, as in 90s, 30d or 1h30m")
    return total


def show_duration(duration_ms: int) -> str:
    """The two largest units that matter: `1d 12h`, `42s`, `7ms`."""
    parts: list[str] = []
    for unit in ("y", "w", "d", "h", "m", "s", "ms"):
        count, duration_ms = divmod(duration_ms, UNIT_MS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"
