"""What of each partition is decided: where its first open transaction begins (Kafka's last stable offset, KIP-98), and which of
its records were aborted. Readers of every protocol ask here; on the owner thread.

What is in flight counts as open until it is visible, and as never begun when its append failed: both are told by the append's own
waiter, so nobody has to be called back. Aborted transactions are kept in StateSpace.ABORTED while the log has records of them:

    key     topic id (16), partition (4), offset of the marker (8)
    value   version (1), producer id (8), first offset (8)
"""

from __future__ import annotations

import asyncio
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

import msgspec

from broker.batch_header import CONTROL, TRANSACTIONAL
from broker.engine.base import Engine, StateChange, StateSpace, Stored
from broker.errors import FormatUnsupported

_ABORTED_KEY = struct.Struct(">16sIq")
_ABORTED = struct.Struct("<Bqq")
_VERSION = 1
FORGOTTEN_AT_ONCE = 1_000  # aborted transactions, in one append
_ATTRIBUTES_AT = 22  # the lower byte of them, in a batch's header
_PRODUCER_ID = struct.Struct(">q")
_PRODUCER_ID_AT = 43
_UNDECIDED = TRANSACTIONAL | CONTROL

Waiter = asyncio.Future[None]


def failed(waiter: Waiter | None) -> bool:
    return waiter is not None and waiter.done() and (waiter.cancelled() or waiter.exception() is not None)


def taken(waiter: Waiter) -> None:
    """As a callback: whoever asked may be gone, and then nobody else takes the outcome."""
    if not waiter.cancelled():
        waiter.exception()


class Aborted(msgspec.Struct, frozen=True, gc=False):
    """The producer's records from `first_offset` up to its marker do not count."""

    producer_id: int
    first_offset: int
    marker_offset: int


class _Open:
    """A transaction on one partition, from its first batch on until its marker is visible."""

    __slots__ = ("begun", "ended", "marker_sequence", "offset", "producer_id", "sequence")

    def __init__(self, producer_id: int, offset: int, sequence: int, begun: Waiter | None) -> None:
        self.producer_id, self.offset, self.sequence, self.begun = producer_id, offset, sequence, begun
        self.marker_sequence = -1
        self.ended: Waiter | None = None

    def over(self, next_sequence: int) -> bool:
        if failed(self.begun):
            return True
        if self.begun is not None and self.begun.done():
            self.begun = None
        if failed(self.ended):
            self.marker_sequence, self.ended = -1, None
        return 0 <= self.marker_sequence < next_sequence

    def holds(self, producer_id: int, stored: Stored) -> bool:
        """A producer's next transaction may begin while the marker of this one is on its way."""
        ended = 0 <= self.marker_sequence < stored.sequence and not failed(self.ended)
        return producer_id == self.producer_id and stored.base_offset >= self.offset and not ended


class _PartitionAborted:
    """In the order of their markers: all, and those of each producer."""

    __slots__ = ("all", "of")

    def __init__(self) -> None:
        self.all: list[Aborted] = []
        self.of: dict[int, list[Aborted]] = {}

    def add(self, one: Aborted) -> None:
        self.all.append(one)
        self.of.setdefault(one.producer_id, []).append(one)

    def remove(self, gone: list[Aborted]) -> None:
        """All at once: each alone would move what follows it."""
        marked = {one.marker_offset for one in gone}
        self.all = [one for one in self.all if one.marker_offset not in marked]
        for producer_id in {one.producer_id for one in gone}:
            left = [one for one in self.of.get(producer_id, ()) if one.marker_offset not in marked]
            if left:
                self.of[producer_id] = left
            else:
                self.of.pop(producer_id, None)


class Stability:
    """Empty on a node whose producers use no transactions: then each question is one look into an empty mapping."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[bytes, dict[int, list[_Open]]] = {}
        self._aborted: dict[tuple[bytes, int], _PartitionAborted] = {}
        self.aborted_count = 0

    # What happens

    def begin(self, topic_id: bytes, partition: int, producer_id: int, offset: int, sequence: int, begun: Waiter | None) -> None:
        left = self._still_open(topic_id, partition) if topic_id in self._open else []  # also where nobody ever reads
        self._open.setdefault(topic_id, {})[partition] = [*left, _Open(producer_id, offset, sequence, begun)]

    def end(self, topic_id: bytes, partition: int, producer_id: int, marker_sequence: int, ended: Waiter) -> None:
        for one in self._open.get(topic_id, {}).get(partition, ()):
            if one.producer_id == producer_id and (one.marker_sequence < 0 or failed(one.ended)):
                one.marker_sequence, one.ended = marker_sequence, ended

    def abort(self, topic_id: bytes, partition: int, one: Aborted) -> None:
        """Told when its marker has a place; `drop` when that append failed."""
        self._aborted.setdefault((topic_id, partition), _PartitionAborted()).add(one)
        self.aborted_count += 1

    def drop(self, topic_id: bytes, partition: int, gone: list[Aborted]) -> None:
        """What is not stored, or not any more. The topic may be gone too."""
        of_partition = self._aborted.get((topic_id, partition))
        if of_partition is None:
            return
        before = len(of_partition.all)
        of_partition.remove(gone)
        self.aborted_count -= before - len(of_partition.all)
        if not of_partition.all:
            del self._aborted[topic_id, partition]

    def load(self, open: Iterable[tuple[bytes, int, int, int, int]], known: Callable[[bytes], bool]) -> list[bytes]:
        """As stored; the keys of entries of topics that are gone, to be deleted."""
        for topic_id, partition, producer_id, offset, sequence in open:
            self.begin(topic_id, partition, producer_id, offset, sequence, None)
        stale = []
        for key, value in sorted(self._engine.states(StateSpace.ABORTED)):
            topic_id, partition, marker_offset = _ABORTED_KEY.unpack(key)
            version, producer_id, first_offset = _ABORTED.unpack(value)
            if version > _VERSION:
                raise FormatUnsupported("the state of an aborted transaction", version, _VERSION)
            if known(topic_id):
                self.abort(topic_id, partition, Aborted(producer_id, first_offset, marker_offset))
            else:
                stale.append(key)
        return stale

    def forget(self, topic_id: bytes) -> list[bytes]:
        """The topic is gone: the keys of its entries."""
        self._open.pop(topic_id, None)
        gone = [place for place in self._aborted if place[0] == topic_id]
        keys = [_ABORTED_KEY.pack(*place, one.marker_offset) for place in gone for one in self._aborted[place].all]
        for place in gone:
            self.aborted_count -= len(self._aborted.pop(place).all)
        return keys

    async def markers_gone(self, topic_id: bytes, partition: int, offsets: Sequence[int]) -> None:
        found, marked = self._aborted.get((topic_id, partition)), set(offsets)
        gone = [] if found is None else [one for one in found.all if one.marker_offset in marked]
        for start in range(0, len(gone), FORGOTTEN_AT_ONCE):
            some = gone[start : start + FORGOTTEN_AT_ONCE]
            await self._engine.append([], changes=[aborted_gone(topic_id, partition, one) for one in some])
            self.drop(topic_id, partition, some)

    def places(self) -> list[tuple[bytes, int]]:
        """Topic ids and partitions that have aborted transactions."""
        return list(self._aborted)

    def overdue(self, topic_id: bytes, partition: int, log_start: int) -> list[Aborted]:
        """Those of which the log has no record any more."""
        found = self._aborted.get((topic_id, partition))
        return [] if found is None else [one for one in found.all if one.marker_offset < log_start]

    # What is asked

    def stable_offset(self, topic_id: bytes, partition: int, high_watermark: int) -> int:
        """All below is decided; at most the high watermark."""
        if topic_id not in self._open:
            return high_watermark
        return min([one.offset for one in self._still_open(topic_id, partition)] + [high_watermark])

    def stable_sequence(self, topic_ids: Iterable[bytes]) -> int:
        """Of these topics all batches below this commit sequence are decided; at most the next one to come."""
        lowest = self._engine.next_sequence()
        if self._open:
            for topic_id in topic_ids:
                for partition in list(self._open.get(topic_id, ())):
                    lowest = min([one.sequence for one in self._still_open(topic_id, partition)] + [lowest])
        return lowest

    def committed(self, topic_id: bytes, stored: Stored) -> bool:
        """Whether readers of records may have the batch: no marker, and not of a transaction that is open or was aborted."""
        kind = stored.batch[_ATTRIBUTES_AT] & _UNDECIDED
        if not kind:
            return True
        if kind & CONTROL:
            return False
        (producer_id,) = _PRODUCER_ID.unpack_from(stored.batch, _PRODUCER_ID_AT)
        if topic_id in self._open and any(one.holds(producer_id, stored) for one in self._still_open(topic_id, stored.partition)):
            return False
        return not self._was_aborted(topic_id, stored.partition, producer_id, stored.base_offset)

    def aborted(self, topic_id: bytes, partition: int, from_offset: int, to_offset: int) -> list[Aborted]:
        """Aborted transactions with records in the range, in the order of their markers."""
        found = self._aborted.get((topic_id, partition))
        if found is None:
            return []
        begin = bisect_right(found.all, from_offset - 1, key=_marker_offset)
        return [one for one in found.all[begin:] if one.first_offset < to_offset]

    def _was_aborted(self, topic_id: bytes, partition: int, producer_id: int, offset: int) -> bool:
        of_partition = self._aborted.get((topic_id, partition))
        if of_partition is None or (of := of_partition.of.get(producer_id)) is None:
            return False
        at = bisect_right(of, offset, key=_marker_offset)  # the transactions of one producer lie one after the other
        return at < len(of) and of[at].first_offset <= offset

    def _still_open(self, topic_id: bytes, partition: int) -> list[_Open]:
        """What is over is forgotten here."""
        of_topic = self._open[topic_id]
        of_partition = of_topic.get(partition)
        if of_partition is None:
            return []
        next_sequence = self._engine.next_sequence()
        left = [one for one in of_partition if not one.over(next_sequence)]
        if left:
            of_topic[partition] = left
            return left
        del of_topic[partition]
        if not of_topic:
            del self._open[topic_id]
        return []


def _marker_offset(one: Aborted) -> int:
    return one.marker_offset


def aborted_change(topic_id: bytes, partition: int, one: Aborted) -> StateChange:
    key = _ABORTED_KEY.pack(topic_id, partition, one.marker_offset)
    return StateChange(StateSpace.ABORTED, key, _ABORTED.pack(_VERSION, one.producer_id, one.first_offset))


def aborted_gone(topic_id: bytes, partition: int, one: Aborted) -> StateChange:
    return StateChange(StateSpace.ABORTED, _ABORTED_KEY.pack(topic_id, partition, one.marker_offset), None)
