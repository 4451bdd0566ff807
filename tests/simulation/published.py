"""What clients hand to the engine, as the judge remembers it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["in flight", "acknowledged", "unknown", "refused", "absent"]
Place = tuple[bytes, int]
"""Topic id and partition."""


@dataclass(slots=True, eq=False)
class Batch:
    """One published batch: the judge's own copy of the facts."""

    call: Call
    topic: str
    topic_id: bytes
    partition: int
    fingerprint: bytes
    keys: tuple[bytes | None, ...]
    timestamps: tuple[int, ...]
    size: int
    base_offset: int = -1
    sequence: int = -1
    seen: bool = False
    gone: bool = False
    """It was let go before anybody saw it, as far as one can tell."""
    excused_to: int = 0
    """Its next offset when its outcome was opened again."""

    @property
    def place(self) -> Place:
        return self.topic_id, self.partition

    @property
    def next_offset(self) -> int:
        return self.base_offset + len(self.keys)

    def left(self, log_start: int) -> list[tuple[int, bytes | None, int]]:
        """Offset, key and timestamp of each record that a log start leaves."""
        records = zip(range(self.base_offset, self.next_offset), self.keys, self.timestamps, strict=True)
        return [record for record in records if record[0] >= log_start]

    def __repr__(self) -> str:
        where = f"{self.topic}/{self.partition} at {self.base_offset}+{len(self.keys)} sequence {self.sequence}"
        return f"{where} ({self.call.outcome}{', seen' if self.seen else ''})"


@dataclass(slots=True, eq=False)
class Call:
    """One `append`."""

    outcome: Outcome = "in flight"
    batches: list[Batch] = field(default_factory=list)
