"""Batches of several partitions in commit order, from memory and files alike, looked up no earlier than it is their turn.

Owner thread. A row is one partition's batches; rows that begin later than what is taken cost a comparison and no look-up.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from broker.engine.base import Stored
from broker.log.files import LogFile
from broker.log.index import BatchIndex, Place
from broker.log.partition import Extent, PartitionLog
from broker.log.reader import Wanted

CHUNK_BATCHES_MIN, CHUNK_BATCHES_MAX = 4, 64
"""Looked up at a time: few at first, as the byte bound may end the read in the middle of any row, then twice as many each."""

IndexOf = Callable[[Extent], Awaitable[BatchIndex]]
Hold = Callable[[LogFile], None]


class Due(NamedTuple):
    """One batch whose turn may come: in memory, or to be read. `size` counts against the reader's bound."""

    sequence: int
    size: int
    item: Stored | Wanted


class Row:
    """One partition's batches from a commit sequence on. `first` is a lower bound until `fill` made it exact; None: no more."""

    __slots__ = (
        "_at",
        "_chunk",
        "_chunk_batches",
        "_extent",
        "_index_of",
        "_key_hashes",
        "_ordinals",
        "_reached",
        "first",
        "log",
    )

    def __init__(self, log: PartitionLog, sequence: int, key_hashes: tuple[int, ...] | None, index_of: IndexOf) -> None:
        """With `key_hashes` only batches that may hold one of the keys."""
        self.log = log
        self._key_hashes = key_hashes
        self._index_of = index_of
        self._reached = sequence
        self._chunk: Sequence[Due] = ()
        self._chunk_batches = CHUNK_BATCHES_MIN
        self._at = 0
        self._extent: Extent | None = None
        self._ordinals: Sequence[int] = ()
        self.first = self._bound()

    def _bound(self) -> int | None:
        if self._in_memory():
            self._fill_from_memory()
            return self._chunk[0].sequence if self._chunk else None
        extent = extent_with(self.log, self._reached)
        return None if extent is None else max(self._reached, extent.summary.min_sequence)

    def _in_memory(self) -> bool:
        return self._key_hashes is None and self._reached > self.log.ring_floor

    def filled(self) -> bool:
        return self._at < len(self._chunk)

    def settle(self) -> None:
        """After batches were taken or looked up: where the next one is, or may be."""
        self.first = self._chunk[self._at].sequence if self.filled() else self._bound()

    async def fill(self, hold: Hold) -> None:
        """Look the next batches up."""
        if self._in_memory():
            self._fill_from_memory()
        elif (extent := extent_with(self.log, self._reached)) is not None:
            hold(extent.file)
            self._fill_from_file(extent, await self._index_of(extent))
        self.settle()

    def _fill_from_memory(self) -> None:
        self._chunk, self._at = (), 0
        while not self._chunk and (found := self.log.ring.from_sequence(self._reached, self._more())):
            self._chunk = [Due(stored.sequence, len(stored.batch), stored) for stored in found if self._kept(stored.next_offset)]
            self._reached = found[-1].sequence + 1

    def _fill_from_file(self, extent: Extent, index: BatchIndex) -> None:
        ordinals = self._ordinals_of(extent, index)
        at = bisect_left(ordinals, index.at_sequence(self._reached))
        count = self._more()
        places = [index.place(ordinal) for ordinal in ordinals[at : at + count]]
        self._chunk = [Due(p.sequence, p.size, self._item(extent, p)) for p in places if self._kept(p.next_offset)]
        self._at = 0
        more = at + count < len(ordinals)
        # Whatever grew in this extent behind the ordinals is not visible to this read: nothing is lost by stepping over it.
        self._reached = places[-1].sequence + 1 if more else max(self._reached, extent.summary.max_sequence + 1)

    def _more(self) -> int:
        count, self._chunk_batches = self._chunk_batches, min(2 * self._chunk_batches, CHUNK_BATCHES_MAX)
        return count

    def _kept(self, next_offset: int) -> bool:
        return next_offset > self.log.log_start

    def _ordinals_of(self, extent: Extent, index: BatchIndex) -> Sequence[int]:
        if self._key_hashes is None:
            return range(len(index))
        if self._extent is not extent:
            self._extent, self._ordinals = extent, index.with_any(self._key_hashes)
        return self._ordinals

    def _item(self, extent: Extent, place: Place) -> Stored | Wanted:
        recent = None if self._key_hashes is None else self.log.ring.at(place.base_offset)
        return recent or Wanted(extent.file, place, self.log.topic_id, self.log.partition)

    def before(self, sequence: int) -> Iterator[Due]:
        """The batches looked up that lie below a commit sequence; each leaves the row when it is taken."""
        while self.filled() and self._chunk[self._at].sequence < sequence:
            self._at += 1
            yield self._chunk[self._at - 1]


async def in_commit_order(
    rows: Iterable[Row], visible: int, bytes_max: int, hold: Hold
) -> tuple[list[tuple[PartitionLog, Due]], int]:
    """Batches below `visible`, up to `bytes_max` together (at least one), and the commit sequence to go on from."""
    heap = [(row.first, number, row) for number, row in enumerate(rows) if row.first is not None]
    heapq.heapify(heap)
    taken: list[tuple[PartitionLog, Due]] = []
    size = 0
    while heap and heap[0][0] < visible:
        first, number, row = heap[0]
        if not row.filled():
            await row.fill(hold)
        else:
            # Where another row may begin, this one's batches end for now; one of the same sequence the other cannot have.
            others = min([visible, *(other[0] for other in heap[1:3])])
            for due in row.before(max(others, first + 1)):
                size += due.size
                if taken and size > bytes_max:
                    return taken, due.sequence
                taken.append((row.log, due))
            row.settle()
        if row.first is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (row.first, number, row))
    return taken, visible


def extent_with(log: PartitionLog, sequence: int) -> Extent | None:
    """The first extent that reaches the commit sequence."""
    at = log.extent_at_sequence(sequence)
    return log.extents[at] if at < len(log.extents) else None
