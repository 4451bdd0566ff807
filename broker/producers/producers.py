"""Producers that number their batches: what was stored once is not stored again, and nothing is stored out of order (KIP-98).

Whoever appends does so between two awaits of its own:

    found = producers.check(topic, partition, header, ...)      Duplicate: answer with its place, once `pending` is done
    landed, waiter = engine.submit(..., changes=lambda landed: found.changes(landed[0]))        Admission
    found.submitted(waiter)

with `durable=True` whatever the producer waits for, and waits for `asyncio.shield(waiter)`: the waiter says here, too, how the
append ended. When it failed the producer is as it was at its newest visible batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from broker.batch_header import BatchHeader
from broker.engine.base import Appended, Engine, StateChange, StateSpace, Topic
from broker.errors import BatchRefused, StateFull
from broker.producers.errors import InvalidProducerEpoch, InvalidTransactionState, OutOfOrderSequence
from broker.producers.options import ProducerOptions
from broker.producers.producer import KEY, Producer, decode, encode, last_sequence
from broker.seams import Clock
from broker.transactions.stability import Stability, Waiter, failed, taken

# Entries looked at before others run, under 1 ms; those of them that expired go in one frame.
LOOKED_AT_ONCE = 1_000


class Joining(Protocol):
    """What a transactional batch changes in its transaction besides: a partition that joins with its first batch (KIP-890)."""

    def changes(self) -> Sequence[StateChange]: ...

    def submitted(self, waiter: Waiter) -> None: ...


class Verifier(Protocol):
    """Whether a transactional batch belongs to an open transaction; see `Transactions.verify`."""

    def __call__(
        self, topic: Topic, partition: int, header: BatchHeader, transactional_id: str | None, joins: bool
    ) -> Joining | None: ...


class Duplicate(msgspec.Struct, frozen=True):
    """The batch is stored, or about to be: then `pending` is the waiter of that append."""

    base_offset: int
    append_time_ms: int
    pending: Waiter | None


class _Known:
    """`placing` has a place in the append that is being submitted just now."""

    __slots__ = ("placing", "producer", "waiter")

    def __init__(self, producer: Producer | None) -> None:
        self.producer = producer
        self.waiter: Waiter | None = None
        self.placing: Admission | None = None


class Admission:
    """The batch may be appended, now."""

    __slots__ = ("_header", "_joining", "_known", "_next", "_opened", "_partition", "_producers", "_topic")

    def __init__(
        self, producers: Producers, topic: Topic, partition: int, header: BatchHeader, known: _Known, joining: Joining | None
    ) -> None:
        self._producers, self._topic, self._partition, self._header = producers, topic, partition, header
        self._known, self._joining = known, joining
        self._next: Producer | None = None
        self._opened = False

    def changes(self, appended: Appended) -> Sequence[StateChange]:
        """What is committed with the batch. Nothing is remembered before `submitted`. BatchRefused for a second batch of the same
        producer and partition in one append: it was not checked against the first."""
        header, known = self._header, self._known
        if known.placing is not None:
            raise BatchRefused("several batches of one producer for one partition in one request")
        known.placing = self
        last = last_sequence(header.base_sequence, header.last_offset_delta + 1)
        before = known.producer or Producer(header.producer_epoch, 0)
        following = before.with_batch(
            header.producer_epoch, header.base_sequence, last, appended.base_offset, appended.append_time_ms
        )
        if header.is_transactional and not following.in_transaction:
            self._opened = True
            following = msgspec.structs.replace(following, open_offset=appended.base_offset, open_sequence=appended.sequence)
        self._next = following
        key = KEY.pack(self._topic.topic_id, self._partition, header.producer_id)
        own = StateChange(StateSpace.PRODUCER, key, encode(following))
        return (own,) if self._joining is None else (own, *self._joining.changes())

    def submitted(self, waiter: Waiter | None) -> None:
        """The append was accepted; `waiter` is its own (None: it is done)."""
        following = self._next
        assert following is not None, "submitted without changes"
        self._known.producer, self._known.waiter, self._known.placing = following, waiter, None
        if waiter is not None:
            waiter.add_done_callback(taken)
        if self._opened:
            self._producers.stability.begin(
                self._topic.topic_id,
                self._partition,
                self._header.producer_id,
                following.open_offset,
                following.open_sequence,
                waiter,
            )
        if self._joining is not None and waiter is not None:
            self._joining.submitted(waiter)


class Producers:
    """On the owner thread. Its truth is the engine's keyed state; what it holds besides is what is in flight."""

    def __init__(self, engine: Engine, clock: Clock, options: ProducerOptions, stability: Stability) -> None:
        self._engine, self._clock, self._options = engine, clock, options
        self.stability = stability
        self.verify: Verifier = _no_transactions
        self._known: dict[bytes, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def load(self) -> list[bytes]:
        """What is stored, after the engine has started; the keys of entries of topics that are gone, to be deleted."""
        topics = {topic.topic_id for topic in self._engine.topics().values()}
        stale: list[bytes] = []
        for key, value in self._engine.states(StateSpace.PRODUCER):
            if len(key) != KEY.size:
                continue  # not of one producer: see broker/producers/ids.py
            if key[:16] in topics:
                self._known[key] = _Known(decode(value))
            else:
                stale.append(key)
        return stale

    def open_transactions(self) -> list[tuple[bytes, int, int, int, int]]:
        """Topic id, partition, producer id, first offset, first commit sequence."""
        return [
            (*KEY.unpack(key), known.producer.open_offset, known.producer.open_sequence)
            for key, known in self._known.items()
            if known.producer is not None and known.producer.in_transaction
        ]

    def check(
        self, topic: Topic, partition: int, header: BatchHeader, *, transactional_id: str | None = None, joins: bool = False
    ) -> Duplicate | Admission:
        """Of a batch with a producer id, whose header was checked. `joins`: its partition joins the transaction with it (Produce
        from version 12 on). One submit holds at most one batch of a producer and partition.

        OutOfOrderSequence, InvalidProducerEpoch, InvalidTransactionState, InvalidProducerIdMapping,
        BatchRefused, StateFull.
        """
        if header.base_sequence < 0 or header.producer_epoch < 0:
            raise BatchRefused("a producer id without epoch or sequence")
        key = KEY.pack(topic.topic_id, partition, header.producer_id)
        known = self._current(key)
        known.placing = None
        producer = known.producer
        first, last = header.base_sequence, last_sequence(header.base_sequence, header.last_offset_delta + 1)
        follows = producer is not None and first == producer.expected(header.producer_epoch)
        if producer is not None and not follows and (found := producer.duplicate(header.producer_epoch, first, last)):
            pending = known.waiter if known.waiter is not None and not known.waiter.done() else None
            return Duplicate(found.base_offset, found.append_time_ms, pending)
        joining = self.verify(topic, partition, header, transactional_id, joins) if header.is_transactional else None
        if producer is None:
            self._require_room()
            self._known[key] = known
        else:
            _check_follows(producer, topic, partition, header)
        return Admission(self, topic, partition, header, known, joining)

    def find(self, topic: Topic, partition: int, producer_id: int) -> Producer | None:
        """As of what was submitted last."""
        return self._current(KEY.pack(topic.topic_id, partition, producer_id)).producer

    def of_partition(self, topic: Topic, partition: int) -> list[tuple[int, Producer]]:
        """Producer ids and producers that are known on a partition (KIP-664)."""
        prefix = KEY.pack(topic.topic_id, partition, 0)[:20]
        found = [(KEY.unpack(key)[2], self._current(key).producer) for key in list(self._known) if key.startswith(prefix)]
        return [(producer_id, producer) for producer_id, producer in found if producer is not None]

    # Ends of transactions

    def changed(self, topic: Topic, partition: int, producer_id: int, producer: Producer) -> StateChange:
        """What says that the producer is so from now on; `put` it once that was submitted."""
        return StateChange(StateSpace.PRODUCER, KEY.pack(topic.topic_id, partition, producer_id), encode(producer))

    def put(self, topic: Topic, partition: int, producer_id: int, producer: Producer, waiter: Waiter | None) -> None:
        known = self._known.setdefault(KEY.pack(topic.topic_id, partition, producer_id), _Known(None))
        known.producer, known.waiter = producer, waiter

    # Letting go

    def forget(self, topic_id: bytes) -> list[bytes]:
        """The topic is gone: the keys of its entries."""
        gone = [key for key in self._known if key.startswith(topic_id)]
        for key in gone:
            del self._known[key]
        return gone

    async def expire(self) -> int:
        """Producers that wrote nothing for long, and have no open transaction, are forgotten; how many."""
        before_ms, keys, expired = self._clock.now_ms() - self._options.expiration_ms, list(self._known), 0
        for start in range(0, len(keys), LOOKED_AT_ONCE):
            found = [(key, self._known.get(key)) for key in keys[start : start + LOOKED_AT_ONCE]]
            overdue = {key: known for key, known in found if known is not None and _idle(known, before_ms)}
            expired += len(overdue)
            await self._let_go(overdue)
            await asyncio.sleep(0)
        return expired

    async def _let_go(self, overdue: dict[bytes, _Known]) -> None:
        for key in overdue:
            del self._known[key]
        stored = [key for key, known in overdue.items() if known.producer is not None]
        if not stored:
            return
        try:
            await self._engine.append([], changes=[StateChange(StateSpace.PRODUCER, key, None) for key in stored])
        except BaseException:
            for key in stored:
                self._known.setdefault(key, overdue[key])
            raise

    def _current(self, key: bytes) -> _Known:
        """As submitted, unless that failed: then as visible."""
        known = self._known.get(key)
        if known is None:
            return _Known(None)
        if failed(known.waiter):
            value = self._engine.state(StateSpace.PRODUCER, key)
            known.producer, known.waiter = None if value is None else decode(value), None
        elif known.waiter is not None and known.waiter.done():
            known.waiter = None
        return known

    def _require_room(self) -> None:
        if len(self._known) >= self._options.entries_max:
            raise StateFull("producers.entries_max", self._options.entries_max)


def _check_follows(producer: Producer, topic: Topic, partition: int, header: BatchHeader) -> None:
    epoch = header.producer_epoch
    if epoch < producer.epoch:
        raise InvalidProducerEpoch(header.producer_id, epoch, producer.epoch)
    if header.base_sequence != (expected := producer.expected(epoch)):
        raise OutOfOrderSequence(header.producer_id, topic.name, partition, header.base_sequence, expected)
    if producer.in_transaction and not header.is_transactional:
        raise InvalidTransactionState(f"producer {header.producer_id} has an open transaction, this batch is of none")


def _idle(known: _Known, before_ms: int) -> bool:
    if known.waiter is not None and not known.waiter.done():
        return False
    return known.producer is None or (known.producer.last_ms < before_ms and not known.producer.in_transaction)


def _no_transactions(
    topic: Topic, partition: int, header: BatchHeader, transactional_id: str | None, joins: bool
) -> Joining | None:
    raise InvalidTransactionState("this node takes no transactions")
