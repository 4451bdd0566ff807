"""Where to start reading, as people type it after `--from`.

beginning                  the oldest record that is still there (earliest is the same)
latest                     only what is published from now on
offset:42                  the record with this offset in a partition (--partition, 0 where the topic has one)
cursor:1042-7              where an earlier subscription stopped
2026-11-23T13:00:00Z       RFC 3339: records at or after this moment
"10 minutes ago"           the same, counted back from now
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from gateway.cli.durations import parse_duration_ms

Kind = Literal["earliest", "latest", "offset", "cursor", "timestamp"]

FORMS = "beginning, latest, offset:N, cursor:C, an RFC 3339 time such as 2026-11-23T13:00:00Z, or a time like '10 minutes ago'"
OFFSET_MAX = 2**63 - 1

_CURSOR = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_AGO = re.compile(r"(.+?)\s*ago", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Position:
    """`number` is an offset, or Unix time in milliseconds; `cursor` is the node's text, not ours to take apart."""

    kind: Kind
    number: int = 0
    cursor: str = ""

    def as_message(self, partition: int) -> Any:
        """The `from` member of a WebSocket `subscribe`."""
        if self.kind == "offset":
            return {"offset": self.number, "partition": partition}
        if self.kind == "timestamp":
            return {"timestamp": self.number}
        return {"cursor": self.cursor} if self.kind == "cursor" else self.kind

    def as_query(self) -> dict[str, str]:
        """The query of a REST read."""
        if self.kind == "timestamp":
            return {"timestamp": str(self.number)}
        if self.kind == "cursor":
            return {"cursor": self.cursor}
        return {"offset": str(self.number) if self.kind == "offset" else self.kind}


def parse_position(text: str, now_ms: int) -> Position:
    """Raises ValueError, whose message names the forms there are."""
    stripped = text.strip()
    word, _, rest = stripped.partition(":")
    if stripped.lower() in ("beginning", "earliest"):
        return Position("earliest")
    if stripped.lower() == "latest":
        return Position("latest")
    if word.lower() == "offset":
        return Position("offset", number=_parse_offset(rest))
    if word.lower() == "cursor":
        return Position("cursor", cursor=_parse_cursor(rest))
    ago = _AGO.fullmatch(stripped)
    if ago is not None:
        return Position("timestamp", number=max(0, now_ms - parse_duration_ms(ago.group(1))))
    return Position("timestamp", number=parse_time_ms(stripped))


def parse_time_ms(text: str) -> int:
    """RFC 3339 with its zone -> Unix time in milliseconds. A time without a zone is refused, not guessed."""
    try:
        moment = datetime.fromisoformat(text.replace("z", "Z"))
    except ValueError:
        raise ValueError(f"{text!r} is no position: use {FORMS}") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: end it with Z for UTC or with an offset such as +01:00")
    return int(moment.timestamp() * 1_000)


def _parse_offset(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= OFFSET_MAX):
        raise ValueError(f"offset:{text} is no offset: write a whole number from 0 on, as in offset:42")
    return int(text)


def _parse_cursor(text: str) -> str:
    if not _CURSOR.fullmatch(text):
        raise ValueError(f"cursor:{text[:40]} is no cursor: give it as the node gave it, as in cursor:1042-7")
    return text
