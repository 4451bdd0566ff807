"""The judge of keyed state: every value that was ever set belongs to one `append`, and shares its fate.

- what an acknowledged append set is there, until a later one overwrites it;
- an append whose outcome is unknown has set all of its entries or none, as its batches are there or not;
- nothing comes back that was overwritten, and nothing that nobody set;
- the exception is state that the node itself reports as damaged, and only in worlds where bits were flipped: an older value then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from broker.engine.base import Engine, StateChange, StateSpace
from tests.simulation.published import Call

Key = tuple[StateSpace, bytes]


@dataclass(slots=True, eq=False)
class Entry:
    """One key: the value that has to be there, and what was written after it."""

    settled: bytes | None = None
    writes: list[tuple[Call, bytes | None]] = field(default_factory=list)
    ever: set[bytes | None] = field(default_factory=lambda: {None})

    def allowed(self) -> list[bytes | None]:
        """What may stand here: the newest acknowledged value, or one of a later append whose outcome is open."""
        values = [self.settled]
        for call, value in self.writes:
            if call.outcome == "acknowledged":
                values = [value]
            elif call.outcome in ("in flight", "unknown"):
                values.append(value)
        return values


class StateLedger:
    def __init__(self, broken: Callable[[str], NoReturn]) -> None:
        self._broken = broken
        self._entries: dict[Key, Entry] = {}
        self.checked = 0

    def changing(self, call: Call, changes: Sequence[StateChange]) -> None:
        """An `append` with these changes is about to be called; of changes of one key the last counts."""
        for (space, key), value in {(change.space, change.key): change.value for change in changes}.items():
            entry = self._entries.setdefault((space, key), Entry())
            entry.writes.append((call, value))
            entry.ever.add(value)

    def saw(self, space: StateSpace, key: bytes, value: bytes | None) -> None:
        """A live reader was given a value."""
        entry = self._entries.get((space, key), Entry())
        self.checked += 1
        if value not in entry.allowed():
            self._broken(f"state {space.name} {key!r} is {_short(value)}, not one of {[_short(v) for v in entry.allowed()]}")

    def reopen(self) -> None:
        """A power cut may have taken appends that were acknowledged (durability "os"): those with batches are open again
        already, and what was only state is now."""
        for call, _ in self._writes():
            if not call.batches and call.outcome == "acknowledged":
                call.outcome = "unknown"

    def settle(self, engine: Engine, *, damage_told: bool) -> int:
        """After a start, when what became of every append with batches is decided: every entry against what has to be there.

        `damage_told`: the node reports that state was damaged. Returns how many entries are older than they should be.
        """
        found: dict[Key, bytes | None] = {(space, key): v for space in StateSpace for key, v in engine.states(space)}
        for (space, key), value in found.items():
            if engine.state(space, key) != value:
                self._broken(f"state {space.name} {key!r}: state() and states() differ")
            if (space, key) not in self._entries:
                self._broken(f"state {space.name} {key!r} is there, and nobody set it")
        self._decide(found)
        lost = [key for key, entry in self._entries.items() if found.get(key) not in entry.allowed()]
        for space, key in lost:
            entry, value = self._entries[space, key], found.get((space, key))
            if not damage_told or value not in entry.ever:
                wanted = [_short(value) for value in entry.allowed()]
                self._broken(f"after a start, state {space.name} {key!r} is {_short(value)}, not one of {wanted}")
        self._close(found)
        return len(lost)

    def _decide(self, found: dict[Key, bytes | None]) -> None:
        """A value that is there proves the whole append that set it."""
        for key, entry in self._entries.items():
            for call, value in entry.writes:
                if value is not None and found.get(key) == value and call.outcome == "unknown":
                    call.outcome = "acknowledged"

    def _close(self, found: dict[Key, bytes | None]) -> None:
        for call, _ in self._writes():
            if call.outcome in ("in flight", "unknown"):
                call.outcome = "absent"
        for key, entry in self._entries.items():
            entry.settled = found.get(key)
            entry.writes.clear()

    def _writes(self) -> Iterator[tuple[Call, bytes | None]]:
        for entry in self._entries.values():
            yield from entry.writes


def _short(value: bytes | None) -> str:
    return "nothing" if value is None else repr(value[:24])
