"""The coordinator of transactions (KIP-98; fencing by KIP-360; epochs that grow with each transaction by KIP-890).

    init_producer_id -> add_partitions, add_offsets, commit_offsets, batches (`Producers.check`) -> end

What Kafka does in steps with states between is one append here: the end of a transaction writes the markers of all partitions,
the offsets and the coordinator's state together, so nothing is prepared, and nothing is left half done by a crash. Every change
is submitted at once and in order, each on top of the one before; when an append fails, so does all that was submitted after it,
and what is known is read again from the engine's state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from broker.batch_header import BatchHeader
from broker.engine.base import Append, Appended, Engine, StateChange, StateSpace, Topic
from broker.errors import BrokerError, StateFull
from broker.groups.offsets import GroupOffset
from broker.producers.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTransactionState,
    InvalidTransactionTimeout,
    NotInTransaction,
    ProducerFenced,
    TransactionalIdInvalid,
    TransactionalIdUnknown,
)
from broker.producers.ids import ProducerIds
from broker.producers.producers import Producers
from broker.seams import Clock
from broker.transactions.ending import PartitionEnd
from broker.transactions.epochs import ProducerAndEpoch, ended_state, is_repeated, next_epoch, require_ended_so, taken_over
from broker.transactions.markers import marker
from broker.transactions.options import TransactionOptions
from broker.transactions.stability import Stability, Waiter, aborted_gone, failed, taken
from broker.transactions.transaction import (
    EPOCH_EXHAUSTED,
    EPOCH_MAX,
    NO_PRODUCER,
    VERSION,
    Pending,
    Place,
    Transaction,
    TransactionState,
    pending_change,
    read_pending,
    read_transaction,
    transaction_change,
    transaction_key,
    with_partitions,
)
from security.errors import KeyProblem

logger = logging.getLogger("sprawl.transactions")

NEVER_MS = -1
CARE_MS = 60_000  # how often what is out of date is looked for
CHANGES_AT_ONCE = 1_000

OffsetChanges = Callable[[str, Iterable[GroupOffset]], Sequence[StateChange]]


class TransactionStats(msgspec.Struct, frozen=True):
    """Now: transactional ids known, transactions open, aborted ones whose records the log still has (counted for each partition),
    producers known (for each partition). Since start: transactions committed, aborted, and of these the overdue."""

    ids: int
    open: int
    aborted_kept: int
    producers: int
    committed: int
    aborted: int
    overdue: int


class _Held:
    """`joined`: the transaction with the partitions of a produce that is being submitted just now."""

    __slots__ = ("joined", "pending", "transaction", "waiter")

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.pending: dict[tuple[str, bytes], dict[int, Pending]] = {}
        self.waiter: Waiter | None = None
        self.joined: Transaction | None = None


class _Joining:
    """A partition joins the transaction with its first batch."""

    __slots__ = ("_held", "_id", "_place", "_transactions")

    def __init__(self, transactions: Transactions, id: str, held: _Held, place: Place) -> None:
        self._transactions, self._id, self._held, self._place = transactions, id, held, place

    def changes(self) -> Sequence[StateChange]:
        held = self._held
        held.joined = self._transactions.extended(held.joined or held.transaction, [self._place])
        return (transaction_change(self._id, held.joined),)

    def submitted(self, waiter: Waiter) -> None:
        held = self._held
        if held.joined is not None:
            held.waiter = waiter
            self._transactions.set(self._id, held, held.joined)


class Transactions:
    """On the owner thread. `start` before anything is asked, once the engine has started."""

    def __init__(
        self, engine: Engine, clock: Clock, options: TransactionOptions, producers: Producers, stability: Stability
    ) -> None:
        self._engine, self._clock, self._options = engine, clock, options
        self._producers, self._stability = producers, stability
        self._ids = ProducerIds(engine)
        self._held: dict[str, _Held] = {}
        self._ongoing: dict[str, None] = {}
        self._with_offsets: dict[str, _Held] = {}
        self._task: asyncio.Task[None] | None = None
        self._care_at_ms = 0
        self._committed = self._aborted = self._overdue = 0
        self.offset_changes: OffsetChanges | None = None

    # Start and stop

    async def start(self) -> None:
        """Reads what is stored; from then on looks after timeouts by itself."""
        stale = [StateChange(StateSpace.PRODUCER, key, None) for key in self._producers.load()]
        topics = {topic.topic_id for topic in self._engine.topics().values()}
        aborted = self._stability.load(self._producers.open_transactions(), topics.__contains__)
        stale += [StateChange(StateSpace.ABORTED, key, None) for key in aborted]
        self._load()
        self._producers.verify = self.verify
        await self._let_go(stale)
        self._task = asyncio.get_running_loop().create_task(self._look_after(), name="transactions")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _load(self) -> None:
        entries = list(self._engine.states(StateSpace.TRANSACTION))
        for key, value in entries:
            if (found := read_transaction(key, value)) is not None:
                self._held[found[0]] = _Held(found[1])
                self.set(found[0], self._held[found[0]], found[1])
        for key, value in entries:
            if (kept := read_pending(key, value)) is not None and kept[0] in self._held:
                held = self._with_offsets[kept[0]] = self._held[kept[0]]
                held.pending[kept[1:3]] = {one.partition: one for one in kept[3]}

    # What producers ask for

    async def init_producer_id(
        self, transactional_id: str | None, timeout_ms: int, expected: ProducerAndEpoch | None = None
    ) -> ProducerAndEpoch:
        """A new producer id, or for a transactional id its next epoch: who had it before is fenced, and what it had open is
        aborted. `expected`: what a producer that goes on after an error has now (KIP-360).

        TransactionalIdInvalid, InvalidTransactionTimeout, ProducerFenced, StateFull, and what `Engine.append` raises.
        """
        if transactional_id is None:
            return await self._ids.next(), 0
        self._check_new(transactional_id, timeout_ms)
        spare = await self._ids.next() if self._needs_id(transactional_id) else NO_PRODUCER
        held = self._find(transactional_id)
        if held is None:
            if len(self._held) >= self._options.ids_max:
                raise StateFull("transactions.ids_max", self._options.ids_max)
            now_ms = self._clock.now_ms()
            state = TransactionState.EMPTY
            new = Transaction(VERSION, spare, 0, NO_PRODUCER, NO_PRODUCER, timeout_ms, state, NEVER_MS, now_ms)
            await self._submit(transactional_id, new)
            return spare, 0
        following = msgspec.structs.replace(
            taken_over(transactional_id, held.transaction, expected, spare),
            timeout_ms=timeout_ms,
            updated_ms=self._clock.now_ms(),
        )
        if held.transaction.is_ongoing:
            fencing = min(held.transaction.epoch + 1, EPOCH_MAX)
            await asyncio.shield(self._end(transactional_id, held, following, commit=False, epoch=fencing))
        else:
            await self._submit(transactional_id, following)
        return following.producer_id, following.epoch

    async def add_partitions(self, transactional_id: str, producer: ProducerAndEpoch, places: Sequence[Place]) -> None:
        """InvalidProducerIdMapping, ProducerFenced, StateFull."""
        held = self._owned(transactional_id, producer)
        if not all(held.transaction.has(place.topic_id, place.partition) for place in places):
            await self._submit(transactional_id, self.extended(held.transaction, places))
        elif held.waiter is not None:
            await asyncio.shield(held.waiter)

    async def add_offsets(self, transactional_id: str, producer: ProducerAndEpoch, group: str) -> None:
        """Offsets of the group will be committed with the transaction."""
        held = self._owned(transactional_id, producer)
        if not held.transaction.is_ongoing or group not in held.transaction.groups:
            await self._submit(transactional_id, self._with_group(held.transaction, group))
        elif held.waiter is not None:
            await asyncio.shield(held.waiter)

    async def commit_offsets(
        self,
        transactional_id: str,
        producer: ProducerAndEpoch,
        group: str,
        offsets: Sequence[GroupOffset],
        *,
        joins: bool = False,
    ) -> None:
        """They count once the transaction is committed. `joins`: the group needs no `add_offsets` (KIP-890)."""
        held = self._owned(transactional_id, producer)
        following = held.transaction
        if not following.is_ongoing or group not in following.groups:
            if not joins:
                raise NotInTransaction(f"group {group[:80]!r}")
            following = self._with_group(following, group)
        changed: dict[tuple[str, bytes], dict[int, Pending]] = {}
        for one in offsets:
            of_topic = changed.setdefault((group, one.topic_id), dict(held.pending.get((group, one.topic_id), {})))
            of_topic[one.partition] = Pending(one.partition, one.offset, one.leader_epoch, one.metadata)
        changes = [pending_change(transactional_id, *where, list(of_topic.values())) for where, of_topic in changed.items()]
        waiter = self._put(transactional_id, following, changes=lambda _: changes)[1]
        held.pending.update(changed)
        self._with_offsets[transactional_id] = held
        await asyncio.shield(waiter)

    async def end(
        self, transactional_id: str, producer: ProducerAndEpoch, *, commit: bool, bumps: bool = False
    ) -> ProducerAndEpoch:
        """Durable with all its markers and offsets when this returns; asked again, the same answer. `bumps`: the producer goes on
        with the epoch that is returned (KIP-890).

        InvalidProducerIdMapping, ProducerFenced, InvalidTransactionState.
        """
        spare = await self._ids.next() if bumps and self._needs_id(transactional_id) else NO_PRODUCER
        held = self._found(transactional_id)
        transaction = held.transaction
        if bumps and is_repeated(transaction, producer):
            require_ended_so(transaction, commit=commit)
            return await self._as_it_is(held)
        self._require(transactional_id, transaction, producer)
        if not transaction.is_ongoing:
            if not bumps:
                require_ended_so(transaction, commit=commit)
                return await self._as_it_is(held)
            if commit:
                raise InvalidTransactionState("there is nothing to commit")
            transaction = msgspec.structs.replace(transaction, started_ms=self._clock.now_ms())  # it had none of its own
        following, epoch = transaction, transaction.epoch
        if bumps:
            following, epoch = next_epoch(transaction, spare), epoch + 1
        following = msgspec.structs.replace(following, state=ended_state(commit=commit))
        waiter = self._end(transactional_id, held, following, commit=commit, epoch=epoch)
        await asyncio.shield(waiter)
        return following.producer_id, following.epoch

    def verify(
        self, topic: Topic, partition: int, header: BatchHeader, transactional_id: str | None, joins: bool
    ) -> _Joining | None:
        """Whether a batch belongs to an open transaction. InvalidTransactionState, InvalidProducerIdMapping,
        InvalidProducerEpoch."""
        if transactional_id is None:
            raise InvalidTransactionState("a transactional batch came without a transactional id")
        held = self._found(transactional_id)
        held.joined = None
        transaction = held.transaction
        if transaction.producer_id != header.producer_id:
            raise InvalidProducerIdMapping(transactional_id)
        if transaction.epoch != header.producer_epoch:
            raise InvalidProducerEpoch(header.producer_id, header.producer_epoch, transaction.epoch)
        if transaction.has(topic.topic_id, partition):
            return None
        if not joins:
            raise NotInTransaction(f"partition {topic.name}/{partition}")
        self._require_room(transaction)
        return _Joining(self, transactional_id, held, Place(topic.name, topic.topic_id, partition))

    def unstable(self, group: str, topic_id: bytes, partition: int) -> bool:
        """Whether an open transaction holds an offset of the group for this partition (KIP-447)."""
        return any(partition in held.pending.get((group, topic_id), ()) for held in self._with_offsets.values())

    # What administrators ask for

    def describe(self, transactional_id: str) -> Transaction:
        """TransactionalIdUnknown."""
        held = self._find(transactional_id)
        if held is None:
            raise TransactionalIdUnknown(transactional_id)
        return held.transaction

    def all(self) -> Iterator[tuple[str, Transaction]]:
        for transactional_id in list(self._held):
            if (held := self._find(transactional_id)) is not None:
                yield transactional_id, held.transaction

    def stats(self) -> TransactionStats:
        return TransactionStats(
            ids=len(self._held),
            open=len(self._ongoing),
            aborted_kept=self._stability.aborted_count,
            producers=len(self._producers),
            committed=self._committed,
            aborted=self._aborted,
            overdue=self._overdue,
        )

    async def forget(self, topic: Topic) -> None:
        """The topic is deleted: nothing of it is kept. What an open transaction wrote there needs no end."""
        gone = [StateChange(StateSpace.PRODUCER, key, None) for key in self._producers.forget(topic.topic_id)]
        gone += [StateChange(StateSpace.ABORTED, key, None) for key in self._stability.forget(topic.topic_id)]
        await self._let_go(gone)

    # Steps

    def set(self, transactional_id: str, held: _Held, transaction: Transaction) -> None:
        """It is so from now on."""
        held.transaction, held.joined = transaction, None
        if transaction.is_ongoing:
            self._ongoing[transactional_id] = None
        else:
            self._ongoing.pop(transactional_id, None)

    def extended(self, transaction: Transaction, places: Sequence[Place]) -> Transaction:
        """With these partitions; it begins with its first."""
        self._require_room(transaction)
        topics = with_partitions(transaction.topics if transaction.is_ongoing else {}, list(places))
        if sum(len(partitions) for _, partitions in topics.values()) > self._options.partitions_max:
            raise StateFull("transactions.partitions_max", self._options.partitions_max)
        return msgspec.structs.replace(self._begun(transaction), topics=topics)

    def _with_group(self, transaction: Transaction, group: str) -> Transaction:
        begun = self._begun(transaction)
        return msgspec.structs.replace(begun, groups=[*begun.groups, group])

    def _begun(self, transaction: Transaction) -> Transaction:
        now_ms = self._clock.now_ms()
        if transaction.is_ongoing:
            return msgspec.structs.replace(transaction, updated_ms=now_ms)
        state = TransactionState.ONGOING
        return msgspec.structs.replace(transaction, state=state, started_ms=now_ms, updated_ms=now_ms, topics={}, groups=[])

    def _require_room(self, transaction: Transaction) -> None:
        if not transaction.is_ongoing and self._stability.aborted_count >= self._options.aborted_max:
            raise StateFull("transactions.aborted_max", self._options.aborted_max)

    async def _submit(self, transactional_id: str, following: Transaction) -> None:
        await asyncio.shield(self._put(transactional_id, following)[1])

    def _put(
        self,
        transactional_id: str,
        following: Transaction,
        appends: Sequence[Append] = (),
        changes: Callable[[Sequence[Appended]], Sequence[StateChange]] = lambda _: (),
    ) -> tuple[list[Appended], Waiter]:
        """One frame; from here on the transaction is what it will be."""
        own = transaction_change(transactional_id, following)
        landed, waiter = self._engine.submit(appends, changes=lambda landed: [*changes(landed), own])
        assert waiter is not None
        waiter.add_done_callback(lambda done: self._done(transactional_id, done))
        held = self._held.setdefault(transactional_id, _Held(following))
        held.waiter = waiter
        self.set(transactional_id, held, following)
        return landed, waiter

    def _done(self, transactional_id: str, waiter: Waiter) -> None:
        taken(waiter)
        if failed(waiter):
            self._find(transactional_id)  # so that it is looked after, whether or not anybody asks for it again

    def _end(self, transactional_id: str, held: _Held, following: Transaction, *, commit: bool, epoch: int) -> Waiter:
        """Markers with `epoch` to every partition that is still there, offsets where they are committed, and the state."""
        before, now_ms = held.transaction, self._clock.now_ms()
        topics = self._engine.topics()
        places = [
            (topics[place.topic], place)
            for place in (before.places if before.is_ongoing else ())
            if place.topic in topics and topics[place.topic].topic_id == place.topic_id
        ]
        batch = marker(before.producer_id, epoch, commit=commit, at_ms=now_ms)
        ends = [
            PartitionEnd(self._producers, topic, place.partition, before.producer_id, epoch, commit, now_ms)
            for topic, place in places
        ]

        def changes(landed: Sequence[Appended]) -> Sequence[StateChange]:
            made = [change for end, appended in zip(ends, landed, strict=True) for change in end.changes(appended)]
            return [*made, *self._offsets(transactional_id, held, commit=commit)]

        ended = msgspec.structs.replace(following, topics={}, groups=[], updated_ms=now_ms)
        appends = [Append(place.topic, place.partition, batch, keys=()) for _, place in places]
        landed, waiter = self._put(transactional_id, ended, appends, changes)
        for end, appended in zip(ends, landed, strict=True):
            end.submitted(self._stability, appended, waiter)
        held.pending.clear()
        self._with_offsets.pop(transactional_id, None)
        if before.is_ongoing:
            self._committed, self._aborted = self._committed + commit, self._aborted + (not commit)
        return waiter

    def _offsets(self, transactional_id: str, held: _Held, *, commit: bool) -> list[StateChange]:
        changes: list[StateChange] = []
        for (group, topic_id), offsets in held.pending.items():
            if commit:
                assert self.offset_changes is not None, "offsets are pending and nobody keeps them"
                found = [GroupOffset(topic_id, *msgspec.structs.astuple(one)) for one in offsets.values()]
                changes += self.offset_changes(group, found)
            changes.append(pending_change(transactional_id, group, topic_id, None))
        return changes

    def _find(self, transactional_id: str) -> _Held | None:
        """As submitted, unless that failed: then as visible."""
        held = self._held.get(transactional_id)
        if held is None or held.waiter is None or not held.waiter.done():
            return held
        if not failed(held.waiter):
            held.waiter = None
            return held
        value = self._engine.state(StateSpace.TRANSACTION, transaction_key(transactional_id))
        found = None if value is None else read_transaction(transaction_key(transactional_id), value)
        self._with_offsets.pop(transactional_id, None)
        if found is None:
            del self._held[transactional_id]
            self._ongoing.pop(transactional_id, None)
            return None
        held.waiter = None
        self.set(transactional_id, held, found[1])
        held.pending.clear()
        for kept in (read_pending(*entry) for entry in self._engine.states(StateSpace.TRANSACTION)):
            if kept is not None and kept[0] == transactional_id:
                self._with_offsets[transactional_id] = held
                held.pending[kept[1:3]] = {one.partition: one for one in kept[3]}
        return held

    def _found(self, transactional_id: str) -> _Held:
        held = self._find(transactional_id)
        if held is None:
            raise InvalidProducerIdMapping(transactional_id)
        return held

    def _owned(self, transactional_id: str, producer: ProducerAndEpoch) -> _Held:
        held = self._found(transactional_id)
        self._require(transactional_id, held.transaction, producer)
        return held

    def _require(self, transactional_id: str, transaction: Transaction, producer: ProducerAndEpoch) -> None:
        if transaction.producer_id != producer[0]:
            raise InvalidProducerIdMapping(transactional_id)
        if transaction.epoch != producer[1]:
            raise ProducerFenced(transactional_id)

    async def _as_it_is(self, held: _Held) -> ProducerAndEpoch:
        transaction = held.transaction
        if held.waiter is not None:
            await asyncio.shield(held.waiter)
        return transaction.producer_id, transaction.epoch

    def _check_new(self, transactional_id: str, timeout_ms: int) -> None:
        if not transactional_id:
            raise TransactionalIdInvalid("it is empty")
        if len(transactional_id.encode()) > self._options.id_bytes_max:
            raise TransactionalIdInvalid(f"longer than transactions.id_bytes_max, {self._options.id_bytes_max} bytes")
        if not 0 < timeout_ms <= self._options.timeout_max_ms:
            raise InvalidTransactionTimeout(timeout_ms, self._options.timeout_max_ms)

    def _needs_id(self, transactional_id: str) -> bool:
        held = self._find(transactional_id)
        return held is None or held.transaction.epoch >= EPOCH_EXHAUSTED - 1

    # Time

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(self._options.check_ms / 1000)
            try:
                await self.abort_overdue()
                if self._clock.monotonic_ms() >= self._care_at_ms:
                    self._care_at_ms = self._clock.monotonic_ms() + CARE_MS
                    await self.expire()
            except (BrokerError, KeyProblem, OSError) as problem:
                logger.warning("looking after transactions is put off: %s", problem)
            except Exception:  # a mistake of ours with one of them must not leave all others open for ever
                logger.exception("looking after transactions failed")

    async def abort_overdue(self) -> int:
        """Aborts transactions that are open for longer than their timeout, and fences their producers; how many."""
        now_ms, waiters = self._clock.now_ms(), []
        for transactional_id in list(self._ongoing):
            found = self._find(transactional_id)
            transaction = None if found is None else found.transaction
            if transaction is not None and transaction.is_ongoing and transaction.over_at_ms() <= now_ms:
                epoch, state = min(transaction.epoch + 1, EPOCH_MAX), TransactionState.COMPLETE_ABORT
                following = msgspec.structs.replace(transaction, epoch=epoch, last_epoch=NO_PRODUCER, state=state)
                held = self._held[transactional_id]
                waiters.append(self._end(transactional_id, held, following, commit=False, epoch=epoch))
                self._overdue += 1
                logger.info("transaction of producer %d aborted: open for longer than its timeout", transaction.producer_id)
        for waiter in waiters:
            await asyncio.shield(waiter)
        return len(waiters)

    async def expire(self) -> None:
        """Lets go of what is out of date: transactional ids, producers, aborted transactions whose records are gone."""
        before_ms = self._clock.now_ms() - self._options.expiration_ms
        await self._drop_ids(before_ms)
        await self._producers.expire()
        await self._drop_aborted()

    async def _drop_ids(self, before_ms: int) -> None:
        """Looked at and let go in one turn: an id that is used while others go must not go with them."""
        idle = [id for id, transaction in self.all() if not transaction.is_ongoing and transaction.updated_ms < before_ms]
        gone = {id: self._held[id] for id in idle if self._held[id].waiter is None}
        gone = dict(list(gone.items())[:CHANGES_AT_ONCE])
        if not gone:
            return
        for id in gone:
            del self._held[id]
        try:
            await self._engine.append([], changes=[transaction_change(id, None) for id in gone])
        except BaseException:
            for id, held in gone.items():
                self._held.setdefault(id, held)
            raise

    async def _drop_aborted(self) -> None:
        for at, (topic_id, partition) in enumerate(self._stability.places()):
            if at % CHANGES_AT_ONCE == 0:
                await asyncio.sleep(0)
            topic = self._engine.topic_of(topic_id)
            if topic is None:
                continue  # deleted just now
            log_start = self._engine.partition_offsets(topic.name, partition).log_start
            overdue = self._stability.overdue(topic_id, partition, log_start)[:CHANGES_AT_ONCE]
            if overdue:
                await self._engine.append([], changes=[aborted_gone(topic_id, partition, one) for one in overdue])
                self._stability.drop(topic_id, partition, overdue)

    async def _let_go(self, gone: Sequence[StateChange]) -> None:
        """What stays behind when this fails is of no topic, and goes at the next start."""
        try:
            for start in range(0, len(gone), CHANGES_AT_ONCE):
                await self._engine.append([], changes=gone[start : start + CHANGES_AT_ONCE])
        except BrokerError as problem:
            logger.warning("state of producers of deleted topics is removed at the next start: %s", problem)
