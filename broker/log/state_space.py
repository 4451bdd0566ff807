"""Keyed state that others keep beside their data: bounded, changed with an append or alone, read out of memory.

Owner thread. What is admitted and not yet visible counts as well, so that no number of appends in flight passes the bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.engine.base import StateChange, StateSpace
from broker.errors import RecordTooLarge, StateFull
from broker.log.journal import PendingFrame
from broker.log.options import LogOptions
from broker.log.state import Entry, StateTable

ENTRY_OVERHEAD_BYTES = 16  # kind, msgpack heads: what an entry takes in a frame besides its key and value


class StateSpaces:
    """The spaces of `StateSpace` over the table of all entries."""

    def __init__(self, options: LogOptions, table: StateTable) -> None:
        self._options = options
        self._table = table
        self._pending_entries = 0
        self._pending_bytes = 0

    def get(self, space: StateSpace, key: bytes) -> bytes | None:
        return self._table.get(space, key)

    def items(self, space: StateSpace) -> Iterator[tuple[bytes, bytes]]:
        """As they are now: a copy, so that changes made meanwhile do not disturb who walks it."""
        return iter(self._table.items(space))

    def admit(self, frame: PendingFrame, changes: Sequence[StateChange]) -> None:
        """Put the changes into the frame. RecordTooLarge for one entry, StateFull for all of them; deletes always pass."""
        entries = grown = size = 0
        growing: set[StateSpace] = set()
        for change in changes:
            self._check(change)
            size += len(change.key) + ENTRY_OVERHEAD_BYTES
            if change.value is None:
                continue
            size += len(change.value)
            known = self._table.get(change.space, change.key)
            entries += known is None
            added = len(change.value) + (len(change.key) if known is None else -len(known))
            if added > 0:
                grown += added
                growing.add(change.space)
        if entries or grown:
            self._require_room(entries, grown, growing)
        self._pending_entries += entries
        self._pending_bytes += grown
        frame.state_entries, frame.state_bytes = entries, grown
        frame.entries = [Entry(change.space, change.key, change.value) for change in changes]
        frame.size += size

    def settle(self, frame: PendingFrame) -> None:
        """The frame is visible: what it holds is counted by the table from now on."""
        self._pending_entries -= frame.state_entries
        self._pending_bytes -= frame.state_bytes

    def roll_back(self) -> None:
        """Nothing that was only admitted exists any more."""
        self._pending_entries = self._pending_bytes = 0

    def _check(self, change: StateChange) -> None:
        options = self._options
        if len(change.key) > options.state_key_bytes_max:
            raise RecordTooLarge("key of a state entry", len(change.key), "state_key_bytes_max", options.state_key_bytes_max)
        if change.value is not None and len(change.value) > options.state_value_bytes_max:
            raise RecordTooLarge(
                "value of a state entry", len(change.value), "state_value_bytes_max", options.state_value_bytes_max
            )

    def _require_room(self, entries: int, grown: int, growing: set[StateSpace]) -> None:
        """What is pending counts for each space alike: that is little, and soon over."""
        options = self._options
        if self._table.space_entries + self._pending_entries + entries > options.state_entries_max:
            raise StateFull("state_entries_max", options.state_entries_max)
        if self._table.space_bytes + self._pending_bytes + grown > options.state_bytes_max:
            raise StateFull("state_bytes_max", options.state_bytes_max)
        for space in growing:
            if self._table.bytes_of.get(space, 0) + self._pending_bytes + grown > options.state_space_bytes_max:
                raise StateFull("state_space_bytes_max", options.state_space_bytes_max)
