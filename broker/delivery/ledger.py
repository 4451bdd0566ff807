"""What became of the records of one consumer, in memory and, through the log, on disk.

Changes are made in memory at once and counted (`_version`); `confirm` returns when all of them so far are in the log. Writes
come one after the other, each with the whole state, so whoever waits for a write that began earlier is served by the next one
together with everybody else. A failed write leaves the change unconfirmed: the next `confirm` writes it again.

A crash forgets what was not confirmed: then a record is delivered again that was not acknowledged for sure, and its count of
attempts may lack the last one. Nothing else can happen: `next` never stands in the log before a record that is not pending
there and not settled.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from broker.delivery import standing
from broker.delivery.consumer_errors import ConsumerDeleted
from broker.delivery.consumer_options import WAIT_MS_MAX, ConsumerOptions, DeliveryOptions, Terms
from broker.delivery.dead_letter import Death, Reason, appends_of, configs_of_new, dead_letter_topic, draft_of, is_dead_letter
from broker.delivery.expiry import living
from broker.delivery.position import Cursor, Start
from broker.delivery.retry import backoff_ms
from broker.delivery.standing import Kept, Pending
from broker.delivery.subscription import Delivered, record_bytes
from broker.engine.base import Append, Engine, StateChange, StateSpace, Topic
from broker.errors import BatchRefused, BrokerError, OffsetOutOfRange, RecordTooLarge, TopicExists, TopicProblem
from broker.record import Record
from broker.seams import Clock, Random

logger = logging.getLogger("sprawl.delivery")

# Due times are kept in a heap whose entries go stale when a record is settled; beyond this many for each record it is made anew.
STALE_FACTOR_MAX = 4
LEAVING_BYTES_MAX = 4 * 1024 * 1024  # records read at a time on their way to the dead-letter topic
GIVE_UP_AGAIN_MS = 1_000  # no dead letter could be written: whatever was in the way is not gone at once
# Whoever acknowledges a thousand open records one by one has the whole of them written again each time: at this rate at most.
STATE_BYTES_PER_S = 4 * 1024 * 1024
REST_MS_MAX = 20  # for the largest state; a clock that jumped makes it no longer
SAID_TIMED_OUT = "no acknowledgement in time"
SAID_GONE = "the connection ended"


class Counts(msgspec.Struct):
    """What happened to records since the node started. `lost`: gone from the log before they were settled, expired included."""

    delivered: int = 0
    redelivered: int = 0
    acknowledged: int = 0
    refused: int = 0
    timed_out: int = 0
    dead_lettered: int = 0
    cut: int = 0
    lost: int = 0


class World(msgspec.Struct, frozen=True):
    """What ledgers and consumers need of the node. `spawn` runs work that nobody waits for."""

    engine: Engine
    clock: Clock
    random: Random
    options: DeliveryOptions
    counts: Counts
    spawn: Callable[[Coroutine[Any, Any, None]], None]


class Ledger:
    """One for each consumer that is in use, whoever uses it. Owner thread."""

    def __init__(self, world: World, head: Kept, pending: Iterable[Pending] = ()) -> None:
        self._world = world
        self.head = head
        self.next = head.next
        self.key = standing.state_key(head.owner, head.name)
        self.pending: dict[Cursor, Pending] = {}
        self._heap: list[tuple[int, Cursor]] = []
        self._version = self._saved = 0
        self._saved_next = head.next
        self._rested_at_ms = 0
        self._lock = asyncio.Lock()
        self._deleted = False
        self.set_options(head.options)
        for one in pending:
            self.pending[one.cursor] = one
            self._schedule(one)

    # What it says

    @property
    def position(self) -> Cursor:
        """All before it is settled, and what it stands at is not."""
        return min(self.pending, default=self.next)

    @property
    def room(self) -> int:
        """So many new records may be delivered."""
        return max(0, self._room - len(self.pending))

    @property
    def in_flight(self) -> int:
        return sum([one.in_flight for one in self.pending.values()])

    @property
    def unsaved(self) -> bool:
        return self._version != self._saved or self.next != self._saved_next

    def next_due_ms(self) -> int | None:
        """When the first record times out or is due; monotonic."""
        heap = self._heap
        while heap and not self._timely(*heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    # What happens to records

    def set_options(self, options: ConsumerOptions) -> None:
        if options != self.head.options:
            self._version += 1
        self.head = msgspec.structs.replace(self.head, options=options)
        self.terms = Terms.of(options, self._world.options)
        many = self.head.address.partition("/")[0] in ("+", "#")
        self._room = standing.room(standing.head_bytes(self.head), self.terms.in_flight_max, many_topics=many)

    def deliver(self, delivered: Delivered, topic_id: bytes) -> Pending:
        """A record is delivered for the first time. It needs no confirmation: without it, it is delivered again."""
        at_ms = self._now_ms() + self.terms.ack_timeout_ms
        record = delivered.record
        one = Pending(
            delivered.cursor, delivered.topic, topic_id, delivered.partition, record.offset, 1, in_flight=True, at_ms=at_ms
        )
        self.pending[delivered.cursor] = one
        self._schedule(one)
        self.pass_over(delivered.cursor)
        self.head = msgspec.structs.replace(self.head, since_ms=None) if self.head.since_ms is not None else self.head
        self._world.counts.delivered += 1
        return one

    def deliver_again(self, one: Pending) -> None:
        one.attempts += 1
        one.in_flight, one.at_ms = True, self._now_ms() + self.terms.ack_timeout_ms
        self._schedule(one)
        self._version += 1
        self._world.counts.delivered += 1
        self._world.counts.redelivered += 1

    def pass_over(self, cursor: Cursor) -> None:
        """Nothing before the cursor is for this consumer, but what is pending."""
        if cursor > self.next:
            self.next = cursor

    def touch(self) -> None:
        """Something is to be written."""
        self._version += 1

    def settle(self, cursor: Cursor) -> bool:
        """Whether the record was pending. It is settled now."""
        if self.pending.pop(cursor, None) is None:
            return False
        self._version += 1
        return True

    def retry(self, one: Pending, delay_ms: int | None, reason: str) -> None:
        """Deliver it again, after a pause: the delay, or one that grows and is drawn by lot."""
        terms = self.terms
        if delay_ms is None:
            delay_ms = backoff_ms(one.attempts, terms.retry_backoff_ms, terms.retry_backoff_max_ms, self._world.random)
        one.in_flight, one.at_ms, one.reason = False, self._now_ms() + delay_ms, reason or one.reason
        self._schedule(one)
        self._version += 1

    def extend(self, one: Pending, timeout_ms: int | None) -> None:
        one.at_ms = self._now_ms() + (self.terms.ack_timeout_ms if timeout_ms is None else timeout_ms)
        self._schedule(one)

    def exhausted(self, one: Pending) -> bool:
        return one.attempts >= self.terms.deliveries_max

    def release(self) -> None:
        """Nobody has them any more: what was in flight is due at once."""
        now_ms = self._now_ms()
        for one in self.pending.values():
            if one.in_flight:
                one.in_flight, one.at_ms, one.reason = False, now_ms, one.reason or SAID_GONE
                self._schedule(one)
                self._version += 1

    def due(self, records_max: int) -> tuple[list[Pending], list[Pending]]:
        """Up to so many records to deliver again, the earliest due first, and those that had all their deliveries. What was in
        flight for too long waits for its turn from now on."""
        again: dict[Cursor, Pending] = {}
        given_up: dict[Cursor, Pending] = {}
        now_ms = self._now_ms()
        while len(again) < records_max and (at_ms := self.next_due_ms()) is not None and at_ms <= now_ms:
            one = self.pending[heapq.heappop(self._heap)[1]]
            if one.in_flight and self._time_out(one) and one.at_ms > now_ms:
                continue
            (given_up if self.exhausted(one) else again)[one.cursor] = one
        for one in (*again.values(), *given_up.values()):  # they stay due until something happens to them
            self._schedule(one)
        return list(again.values()), list(given_up.values())

    def _time_out(self, one: Pending) -> bool:
        """Whether it will be delivered again."""
        self._world.counts.timed_out += 1
        if self.exhausted(one):
            one.in_flight, one.reason = False, one.reason or SAID_TIMED_OUT
            self._version += 1
            return False
        self.retry(one, None, one.reason or SAID_TIMED_OUT)
        return True

    def seek(self, start: Start) -> None:
        """Begin again there: whatever was pending is settled, whatever was settled behind it is not."""
        self.pending.clear()
        self._heap.clear()
        self.next = start.cursor
        self.head = msgspec.structs.replace(self.head, since_ms=start.since_ms)
        self._version += 1

    # Reading what was delivered before

    async def read_again(self, wanted: Sequence[Pending], bytes_max: int) -> list[tuple[Pending, Record]]:
        """The records, up to `bytes_max` together (at least one). What the log does not have any more is settled as lost."""
        found: list[tuple[Pending, Record]] = []
        size = at = 0
        order = sorted(wanted, key=_place_of)
        while at < len(order) and (not found or size < bytes_max):
            first = order[at]
            records, reached = await self._read_batch(first)
            while at < len(order) and _place_of(order[at])[:2] == _place_of(first)[:2] and order[at].offset < reached:
                one, record = order[at], records.get(order[at].offset)
                at += 1
                if self.pending.get(one.cursor) is not one:
                    continue  # settled meanwhile
                if record is None:
                    self.settle(one.cursor)
                    self._world.counts.lost += 1
                elif not found or size < bytes_max:
                    found.append((one, record))
                    size += record_bytes(record)
        return found

    async def _read_batch(self, one: Pending) -> tuple[dict[int, Record], int]:
        """Records of one batch by offset, without the expired, and the offset to which it reaches; none if the log lost them."""
        topic = self._world.engine.topics().get(one.topic)
        if topic is None or topic.topic_id != one.topic_id:
            return {}, one.offset + 1
        try:
            fetched = await self._world.engine.fetch(one.topic, one.partition, one.offset, bytes_max=1)
        except (OffsetOutOfRange, TopicProblem):
            return {}, one.offset + 1
        records: dict[int, Record] = {}
        reached = one.offset + 1
        for stored in fetched.batches[:1]:
            reached = max(reached, stored.next_offset)
            try:
                records = {record.offset: record for record in living(stored, self._world.clock)}
            except (BatchRefused, RecordTooLarge):
                continue
        return records, reached

    # On disk

    async def confirm(self) -> None:
        """All changes so far are durable when this returns. Raises what `Engine.append` raises: then it is not known."""
        wanted = self._version
        if self._saved < wanted:
            await self._to_the_end(self._confirm(wanted))

    async def save(self) -> None:
        """The same, and how far it has read."""
        if self.unsaved:
            self._version += 1
            await self.confirm()

    async def _confirm(self, wanted: int) -> None:
        async with self._lock:
            if self._saved < wanted and (rest_ms := self._rested_at_ms - self._now_ms()) > 0:
                await asyncio.sleep(min(rest_ms, REST_MS_MAX) / 1_000)
            if self._saved < wanted:
                await self._write(())

    async def give_up(self, wanted: Sequence[Pending], reason: Reason) -> None:
        """Put records into the dead-letter topic and settle them, in one append. A record that cannot be put there (the topic
        cannot be made, the disk is full) is due again after the longest pause; then this raises."""
        await self._to_the_end(self._give_up(wanted, reason))

    async def _give_up(self, wanted: Sequence[Pending], reason: Reason) -> None:
        async with self._lock:
            left = [one for one in wanted if self.pending.get(one.cursor) is one and not one.leaving]
            for one in left:
                one.leaving = True
            try:
                while left:
                    read = await self.read_again(left, LEAVING_BYTES_MAX)
                    await self._bury(read, reason)
                    left = [one for one in left if self.pending.get(one.cursor) is one]
            except Exception:
                for one in left:
                    one.leaving = False
                    self.retry(one, max(self.terms.retry_backoff_max_ms, GIVE_UP_AGAIN_MS), "")
                raise

    async def _bury(self, read: list[tuple[Pending, Record]], reason: Reason) -> None:
        letters: dict[str, list[tuple[int, Any]]] = {}
        topics: dict[str, Topic] = {}
        now_ms = self._world.clock.now_ms()
        for one, record in read:
            if is_dead_letter(record):
                continue  # it stays where it is
            name = await self._dead_letter_topic(one.topic, topics)
            if name is None:
                continue
            head = self.head
            death = Death(one.topic, one.partition, reason, one.reason, one.attempts, head.name, head.owner)
            letters.setdefault(name, []).append((one.partition, draft_of(record, death, now_ms)))
        appends = [append for name, drafts in letters.items() for append in appends_of(topics[name], drafts)]
        leaving = [one.cursor for one, _ in read]
        await self._write(appends, leaving)
        self._world.counts.dead_lettered += len(leaving)

    async def _dead_letter_topic(self, name: str, topics: dict[str, Topic]) -> str | None:
        """The name, and the topic in `topics`; made where it is missing. None where the record's own topic is gone."""
        engine = self._world.engine
        topic = engine.topics().get(name)
        if topic is None:
            return None
        wanted = dead_letter_topic(topic, self.head.options.dead_letter_topic)
        found = engine.topics().get(wanted)
        if found is None:
            try:
                found = await engine.create_topic(wanted, 1, configs_of_new(topic))
                logger.info("made the dead-letter topic %s of %s", wanted, name)
            except TopicExists:
                found = engine.topics()[wanted]
        topics[wanted] = found
        return wanted

    async def _write(self, appends: Sequence[Append], leaving: Sequence[Cursor] = ()) -> None:
        """The state without those that are `leaving`, together with the appends. Under the lock."""
        if self._deleted:
            raise ConsumerDeleted(self.head.name)
        version, reached = self._version, self.next
        gone = set(leaving)
        kept = [one for cursor, one in self.pending.items() if cursor not in gone]
        now_ms = self._world.clock.now_ms()
        head = msgspec.structs.replace(
            self.head,
            changed_at_ms=now_ms,
            next_sequence=reached.sequence,
            next_index=reached.index,
            pending=len(kept),
        )
        value = standing.encode(head, kept, now_ms, self._now_ms())
        await self._world.engine.append(appends, changes=[StateChange(StateSpace.POSITION, self.key, value)])
        self.head = msgspec.structs.replace(self.head, changed_at_ms=now_ms)
        self._saved, self._saved_next = version, reached
        self._rested_at_ms = self._now_ms() + len(value) * 1_000 // STATE_BYTES_PER_S
        for cursor in leaving:
            self.pending.pop(cursor, None)

    async def delete(self, also: Sequence[StateChange] = ()) -> None:
        """For good: what comes later is refused. `also` is written with it."""
        await self._to_the_end(self._delete(also))

    async def _delete(self, also: Sequence[StateChange]) -> None:
        async with self._lock:
            if self._deleted:
                raise ConsumerDeleted(self.head.name)
            await self._world.engine.append([], changes=[StateChange(StateSpace.POSITION, self.key, None), *also])
            self._deleted = True

    def copy_for(self, owner: str) -> bytes:
        """The value for another owner's consumer of the same name, with nothing in flight."""
        head = msgspec.structs.replace(
            self.head, owner=owner, next_sequence=self.next.sequence, next_index=self.next.index, pending=len(self.pending)
        )
        return standing.encode(head, self.pending.values(), self._world.clock.now_ms(), self._now_ms())

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """A caller that goes away meanwhile leaves no write whose outcome this ledger does not hear of."""
        task = asyncio.get_running_loop().create_task(work, name="consumer state")
        task.add_done_callback(_heard)
        await asyncio.shield(task)

    # Parts

    def _now_ms(self) -> int:
        return self._world.clock.monotonic_ms()

    def _schedule(self, one: Pending) -> None:
        if len(self._heap) > STALE_FACTOR_MAX * len(self.pending) + 64:
            self._heap = [(other.at_ms, other.cursor) for other in self.pending.values()]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (one.at_ms, one.cursor))

    def _timely(self, at_ms: int, cursor: Cursor) -> bool:
        one = self.pending.get(cursor)
        return one is not None and not one.leaving and one.at_ms == at_ms


def load(world: World, value: bytes) -> Ledger:
    """FormatUnsupported, StorageDamaged."""
    names = {topic.topic_id: name for name, topic in world.engine.topics().items()}
    clock = world.clock
    head, pending = standing.decode(value, names, clock.now_ms(), clock.monotonic_ms(), WAIT_MS_MAX)
    return Ledger(world, head, pending)


def _place_of(one: Pending) -> tuple[bytes, int, int]:
    return one.topic_id, one.partition, one.offset


def _heard(task: asyncio.Task[None]) -> None:
    """The caller may be gone: somebody has to take the exception."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, BrokerError):
        logger.error("the state of a consumer could not be written", exc_info=error)
