"""Replaying a stretch of the log: where it ends, and when each of its records is due.

Replays go in commit order and their windows are half open, [begin, end): where one ends another may begin, and nothing is
replayed twice or left out. A time, an offset or a message id ends the window at the first record that reaches it, as `Position`
begins one there: what was committed before it is inside whatever its own timestamp, what was committed after it is outside.

Without I/O and without a clock: whoever replays reads, waits and writes.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

SPEED_MIN, SPEED_MAX = 0.001, 1_000_000.0
TIMES_MAX = 1_000_000


class BeforeTime(msgspec.Struct, frozen=True, gc=False):
    """Ends with the first record that is at or after this time, Unix time in milliseconds."""

    timestamp_ms: int


class BeforeOffset(msgspec.Struct, frozen=True, gc=False):
    """Ends with the first record of the partition that has this offset or a higher one."""

    partition: int
    offset: int


class BeforeMessage(msgspec.Struct, frozen=True, gc=False):
    """Ends with the record that has this message id."""

    message_id: str


End: TypeAlias = BeforeTime | BeforeOffset | BeforeMessage | None


def ends(end: End, partition: int, offset: int, timestamp_ms: int, message_id: str | None) -> bool:
    """Whether this record is the first one outside of the window."""
    match end:
        case BeforeTime():
            return timestamp_ms >= end.timestamp_ms
        case BeforeOffset():
            return partition == end.partition and offset >= end.offset
        case BeforeMessage():
            return message_id == end.message_id
        case None:
            return False


class Pace:
    """When each record of one pass is due, in milliseconds after the pass began: the distances of their timestamps by `speed`.

    `speed` None: at once. Timestamps that go back, or stand still, wait for nothing: the record is due with the one before. A
    pause longer than `pause_ms_max` is cut to that, so that a night without records does not stop a replay.
    """

    __slots__ = ("_due_ms", "_newest_ms", "_pause_ms_max", "_speed")

    def __init__(self, speed: float | None, pause_ms_max: int | None = None) -> None:
        if speed is not None and not SPEED_MIN <= speed <= SPEED_MAX:
            raise ValueError(f"a speed is from {SPEED_MIN} to {SPEED_MAX:.0f} times the original")
        self._speed, self._pause_ms_max = speed, pause_ms_max
        self._newest_ms: int | None = None
        self._due_ms = 0.0

    def due_ms(self, timestamp_ms: int) -> float:
        """Of the next record."""
        if self._speed is None:
            return 0.0
        if self._newest_ms is not None and timestamp_ms > self._newest_ms:
            pause_ms = (timestamp_ms - self._newest_ms) / self._speed
            self._due_ms += pause_ms if self._pause_ms_max is None else min(pause_ms, self._pause_ms_max)
        self._newest_ms = timestamp_ms if self._newest_ms is None else max(self._newest_ms, timestamp_ms)
        return self._due_ms
