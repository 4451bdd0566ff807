"""The newest batches of all partitions in clear, in commit order, within a budget: what readers at the live end are served from.

Each partition's ring holds the same batches by offset; this decides together for all of them what is the oldest and goes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from broker.engine.base import Stored
from broker.log.partition import PartitionLog

OBJECTS_BYTES = 300  # what a batch takes in memory besides its own bytes: of small ones that is most


class Recent:
    """Owner thread only."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.size = 0
        self._items: deque[tuple[PartitionLog, Stored]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def push(self, log: PartitionLog, stored: Stored) -> None:
        log.ring.items.append(stored)
        self._items.append((log, stored))
        self.size += len(stored.batch) + OBJECTS_BYTES

    def trim(self) -> None:
        while self.size > self.bytes_max and self._items:
            self._drop_oldest()

    def clear(self) -> None:
        while self._items:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        log, oldest = self._items.popleft()
        self.size -= len(oldest.batch) + OBJECTS_BYTES
        log.ring_floor = oldest.sequence
        log.ring.drop_first()

    def newest(self, sequence: int, count: int) -> Iterator[tuple[PartitionLog, Stored]] | None:
        """`since`, when what it would give is at most `count` batches."""
        if not self._items or self._items[-1][1].sequence - sequence >= count:
            return None
        return self.since(sequence)

    def since(self, sequence: int) -> Iterator[tuple[PartitionLog, Stored]] | None:
        """Batches of all partitions from a commit sequence on; None when the oldest here is younger. The iterator must be used
        up before anything is awaited."""
        if not self._items:
            return None
        at = sequence - self._items[0][1].sequence  # commit sequences have no holes within one life of the node
        if at < 0 or at > len(self._items):
            return None
        if at * 2 < len(self._items):
            return islice(self._items, at, None)
        # A deque is walked from its nearer end: most who ask are a few batches behind.
        return (self._items[n] for n in range(at - len(self._items), 0))
