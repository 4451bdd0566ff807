"""The judge of log starts: where a partition begins is somebody's wish, it never goes back once it is durable, and by age nothing
goes on the word of a clock that has just run ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from tests.simulation.published import Batch, Place

EVERYTHING = 1 << 62
SEALED_BYTES_MORE_MAX = 128 + 16
KEY_HASH_BYTES = 8


@dataclass(frozen=True)
class Retention:
    """Of one topic, as its configs say; None: no bound."""

    age_ms: int | None = None
    size: int | None = None

    @property
    def configs(self) -> dict[str, str]:
        wanted = {"retention.ms": self.age_ms, "retention.bytes": self.size}
        return {name: str(value) for name, value in wanted.items() if value is not None}


class LogStarts:
    def __init__(self, broken: Callable[[str], NoReturn], believed_ms: Callable[[], int]) -> None:
        self._broken = broken
        self._believed_ms = believed_ms
        self.retention: Mapping[str, Retention] = {}
        self._floors: dict[Place, int] = {}
        self._settled: dict[Place, int] = {}
        self._highest: dict[Place, int] = {}
        self._asked: dict[Place, int] = {}

    def floor(self, place: Place) -> int:
        """What is below this is gone for every reader that begins now."""
        return self._floors.get(place, 0)

    def floors(self) -> dict[Place, int]:
        return dict(self._floors)

    def highest(self, place: Place) -> int:
        """It began here once: what is below may be gone even where a start was lost with damaged state."""
        return self._highest.get(place, 0)

    def gone(self, batch: Batch) -> bool:
        return batch.next_offset <= self.floor(batch.place)

    def moved(self, place: Place) -> bool:
        """Since the last start was read back: what was not seen since then may be gone."""
        return self.floor(place) > self._settled.get(place, 0)

    def deleting(self, place: Place, offset: int) -> None:
        """`delete_records` is about to be called; -1: everything."""
        self._asked[place] = max(self._asked.get(place, 0), EVERYTHING if offset == -1 else offset)

    def saw(self, place: Place, name: str, start: int, log: Sequence[Batch], in_flight: int = 0) -> None:
        """Where the node says that a partition begins. `log`: what is there as far as known; `in_flight`: bytes beside it."""
        floor = self.floor(place)
        if start < floor:
            self._broken(f"{name}/{place[1]} begins at {start}, and began at {floor} before")
        if start > floor and start > self._asked.get(place, 0):
            self._by_retention(name, start, [batch for batch in log if batch.next_offset > self._asked.get(place, 0)], in_flight)
        self._floors[place] = start
        self._highest[place] = max(start, self.highest(place))

    def _by_retention(self, name: str, start: int, log: Sequence[Batch], in_flight: int) -> None:
        retention = self.retention.get(name, Retention())
        taken = [batch for batch in log if batch.base_offset < start]
        kept = in_flight + sum(stored_bytes_max(batch) for batch in log if batch.base_offset >= start)
        too_old_ms = self._believed_ms() - (retention.age_ms or 0)
        by_age = retention.age_ms is not None and all(max(batch.timestamps) < too_old_ms for batch in taken)
        by_size = retention.size is not None and kept >= retention.size
        if not by_age and not by_size:
            young = [(batch, max(batch.timestamps) - too_old_ms) for batch in taken]
            self._broken(f"{name} begins at {start}: nobody deleted that, nor does {retention} ({kept} bytes kept, {young})")

    def power_lost(self) -> None:
        """With durability "os" the newest deletions may be undone."""
        self._floors = dict(self._settled)

    def state_damaged(self) -> None:
        """Entries of state are lost and reported: a start may be among them."""
        self._floors.clear()

    def settle(self, starts: Mapping[Place, int]) -> None:
        """After a start was read back: what was asked for and did not happen will not."""
        self._settled = dict(starts)
        self._asked = dict(starts)


def stored_bytes_max(batch: Batch) -> int:
    return batch.size + SEALED_BYTES_MORE_MAX + KEY_HASH_BYTES * len(batch.keys)
