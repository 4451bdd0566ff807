"""One connection's use of a durable consumer: records out, acknowledgements in.

    created --next--> in flight --ack--> settled
                          | nack, timeout, connection lost: waits (backoff), then in flight again with one attempt more
                          | reject, or the last attempt failed: dead-lettered and settled, in one append

It pulls, like a subscription: nothing is read before `next` is called, timers included, and what is in flight is not kept in
memory but read again from the log. So a consumer that never acknowledges costs its list of open records, which is bounded, and
gets no new ones beyond that bound; its records come again, and after their last attempt they go to the dead-letter topic.

At least once, in no promised order: new records come in commit order, others when they are due, which goes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from broker.delivery.consumer_errors import ConsumerDeleted, ConsumerInvalid
from broker.delivery.consumer_options import ACK_TIMEOUT_MS_MIN, check_reason, check_wait
from broker.delivery.dead_letter import Reason
from broker.delivery.filter import Filter
from broker.delivery.ledger import Ledger, World
from broker.delivery.position import Cursor, Start
from broker.delivery.source import Source, TopicSource
from broker.delivery.standing import Pending
from broker.delivery.subscription import Delivered, Subscription, record_bytes
from broker.engine.base import Damage, Gap
from broker.errors import BrokerError, Closed
from broker.record import Record

logger = logging.getLogger("sprawl.delivery")

CREDIT_MAX = 2**31 - 1
TAG_CHARS_MAX = 64
SEQUENCE_DIGITS_MAX, INDEX_DIGITS_MAX = 19, 10  # as in the text of a cursor

Cut: TypeAlias = Callable[[list[Delivered]], list[Delivered]]


class Reads(msgspec.Struct, frozen=True):
    """How topics are read where a filter reaches many: those for which `readable` is true, asked at each read, or when what
    `version` returns has changed."""

    wide: Callable[[Callable[[str], bool], Callable[[], object] | None], Source]
    readable: Callable[[str], bool] | None = None
    version: Callable[[], object] | None = None

    def source(self, filter: Filter) -> Source:
        readable = self.readable
        if readable is None:
            return self.wide(filter.topics, self.version)
        return self.wide(lambda name: filter.topics(name) and readable(name), self.version)


class Consumed(msgspec.Struct, gc=False):
    """A record as a consumer gets it. `attempt` is 1 at the first delivery; `tag` is what is acknowledged."""

    topic: str
    partition: int
    record: Record
    cursor: Cursor
    attempt: int

    @property
    def tag(self) -> str:
        return f"{self.cursor.sequence}-{self.cursor.index}-{self.attempt}"


class Settled(msgspec.Struct, frozen=True):
    """`unknown` are the tags of no record that this could be said of: never delivered, or, but for ack, in flight no more."""

    settled: int
    unknown: list[str]


class Consumer:
    """One caller calls `next`, one call at a time; everything else may be called meanwhile."""

    def __init__(
        self,
        world: World,
        ledger: Ledger,
        filter: Filter,
        reads: Reads,
        on_close: Callable[[Consumer], None],
    ) -> None:
        self.filter, self.created = filter, False
        self._world, self._ledger, self._on_close = world, ledger, on_close
        self._reads = reads
        self._wake = asyncio.Event()
        self._ended: Exception | None = None
        self._closed = False
        self._paused = self._saving = False
        self._credit: int | None = None
        self._fresh: list[Delivered] = []
        self._reader = self._open()
        engine = world.engine
        self._unwatch = engine.watch_all(self._wake.set) if filter.topic is None else engine.watch(filter.topic, self._wake.set)

    @property
    def name(self) -> str:
        return self._ledger.head.name

    @property
    def owner(self) -> str:
        return self._ledger.head.owner

    @property
    def dead_letter_topic(self) -> str | None:
        """Where it asked for its dead letters to go; None: where the topic says."""
        return self._ledger.head.options.dead_letter_topic

    @property
    def cursor(self) -> Cursor:
        """All before it is settled or in flight."""
        return self._ledger.next

    @property
    def in_flight(self) -> int:
        """Records that are with the consumer, unsettled."""
        return self._ledger.in_flight

    @property
    def paused(self) -> bool:
        return self._paused

    # Records out

    async def next(self, *, bytes_max: int, records_max: int, wait_max_ms: int, cut: Cut = list) -> list[Consumed]:
        """What is due and what is new, up to the bounds; waits only while there is nothing, no credit, no room or a pause.

        `cut` takes away what may not be delivered, which counts as settled; nothing is awaited between it and the return.
        Raises ConsumerTakenOver, ConsumerDeleted, what `cut` raises (nothing is lost by that), and what reading raises.
        """
        deadline_ms = self._now_ms() + wait_max_ms
        while True:
            self._require_open()
            self._wake.clear()
            found, more = await self._gather(bytes_max, records_max, cut)
            left_ms = deadline_ms - self._now_ms()
            if found or left_ms <= 0:
                return found
            if more:
                await asyncio.sleep(0)
            else:
                await self._wait(left_ms)

    async def _gather(self, bytes_max: int, records_max: int, cut: Cut) -> tuple[list[Consumed], bool]:
        """Records, and whether to look again at once."""
        room = 0 if self._paused else records_max if self._credit is None else min(records_max, self._credit)
        due, given_up = self._ledger.due(max(1, room))
        if given_up:
            await self._give_up(given_up)
        if room <= 0:
            return [], False
        again = await self._ledger.read_again(due[:room], bytes_max) if due else []
        size = sum([record_bytes(record) for _, record in again])
        if len(again) < room and size < bytes_max:
            await self._read(min(room - len(again), self._ledger.room), bytes_max - size)
        self._require_open()
        found = self._hand_out(again, room, cut)
        return found, not found and (bool(due) or self._behind())

    async def _read(self, records_max: int, bytes_max: int) -> None:
        """New records, unless some are there that could not be handed out before."""
        if self._fresh or records_max <= 0:
            return
        reader = self._reader
        read = await reader.next(bytes_max=bytes_max, records_max=records_max, wait_max_ms=0)
        if reader is not self._reader or self._ended is not None:
            return  # sent elsewhere meanwhile, or somebody else's
        self._fresh = read
        if not read:
            self._ledger.pass_over(reader.cursor)

    def _hand_out(self, again: list[tuple[Pending, Record]], room: int, cut: Cut) -> list[Consumed]:
        """All at once, so that an error of `cut` leaves everything as it was."""
        ledger, topics = self._ledger, self._world.engine.topics()
        open_ones = {
            one.cursor: one for one, _ in again if ledger.pending.get(one.cursor) is one and not (one.in_flight or one.leaving)
        }
        offered = [Delivered(one.topic, one.partition, record, one.cursor) for one, record in again if one.cursor in open_ones]
        fresh = self._fresh[: max(0, min(room - len(offered), ledger.room))]
        found: list[Consumed] = []
        for delivered in cut([*offered, *fresh]):
            one = open_ones.pop(delivered.cursor, None)
            if one is not None:
                ledger.deliver_again(one)
            elif (topic := topics.get(delivered.topic)) is not None:
                one = ledger.deliver(delivered, topic.topic_id)
            else:
                continue
            found.append(Consumed(delivered.topic, delivered.partition, delivered.record, delivered.cursor, one.attempts))
        for cursor in open_ones:
            ledger.settle(cursor)
        self._world.counts.cut += len(offered) + len(fresh) - len(found)
        if fresh:
            ledger.pass_over(fresh[-1].cursor)
            del self._fresh[: len(fresh)]
        if offered:
            self._save_soon()
        if self._credit is not None:
            self._credit -= len(found)
        return found

    async def _give_up(self, records: list[Pending]) -> None:
        """What cannot be put into its dead-letter topic now is tried again later; the others are delivered meanwhile."""
        try:
            await self._ledger.give_up(records, Reason.EXHAUSTED)
        except (Closed, ConsumerDeleted):
            raise
        except BrokerError as problem:
            logger.warning("%d records of consumer %s stay: no dead letters written: %s", len(records), self.name, problem)

    def _behind(self) -> bool:
        return self._ledger.room > 0 and (bool(self._fresh) or not self._reader.at_end)

    async def _wait(self, left_ms: int) -> None:
        """For news, for an acknowledgement that makes room, or for the first record that is due."""
        due_ms = self._ledger.next_due_ms()
        if due_ms is not None and (until_due_ms := due_ms - self._now_ms()) > 0:
            left_ms = min(left_ms, until_due_ms)
        try:
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that meets the result.
            async with asyncio.timeout(left_ms / 1_000):
                await self._wake.wait()
        except TimeoutError:
            return

    # Acknowledgements in

    async def ack(self, tags: Sequence[str]) -> Settled:
        """Durable when it returns. A record that is settled already counts as settled, so that it may be said twice."""
        self._require_open()
        unknown = []
        for tag in tags:
            cursor, _ = _parse(tag)
            if cursor is not None and self._ledger.settle(cursor):
                self._world.counts.acknowledged += 1
            elif cursor is None or cursor > self._ledger.next:
                unknown.append(tag)
        return await self._confirmed(tags, unknown)

    async def nack(self, tags: Sequence[str], *, delay_ms: int | None = None, reason: str = "") -> Settled:
        """Not processed: deliver again after `delay_ms`, or, where it is None, after a pause that grows with each attempt.

        Those that had all their deliveries go to the dead-letter topic. ConsumerInvalid, and what `Engine.append` raises.
        """
        self._require_open()
        check_wait("delay_ms", delay_ms)
        check_reason(reason)
        known, unknown = self._in_flight(tags)
        given_up = []
        for one in known:
            if self._ledger.exhausted(one):
                one.reason = reason or one.reason
                given_up.append(one)
            else:
                self._ledger.retry(one, delay_ms, reason)
        if given_up:
            await self._ledger.give_up(given_up, Reason.EXHAUSTED)
        self._world.counts.refused += len(known)
        return await self._confirmed(tags, unknown)

    async def reject(self, tags: Sequence[str], *, reason: str = "") -> Settled:
        """Never to be processed: to the dead-letter topic with it. ConsumerInvalid, and what `Engine.append` raises."""
        self._require_open()
        check_reason(reason)
        rejected, unknown = [], []
        for tag in tags:
            cursor, _ = _parse(tag)
            one = None if cursor is None else self._ledger.pending.get(cursor)
            if one is not None:
                one.reason = reason or one.reason
                rejected.append(one)
            elif cursor is None or cursor > self._ledger.next:
                unknown.append(tag)
        if rejected:
            await self._ledger.give_up(rejected, Reason.REJECTED)
        self._world.counts.refused += len(rejected)
        return await self._confirmed(tags, unknown)

    def extend(self, tags: Sequence[str], *, timeout_ms: int | None = None) -> Settled:
        """Still at it: the time for the acknowledgement begins anew."""
        self._require_open()
        check_wait("timeout_ms", timeout_ms, ACK_TIMEOUT_MS_MIN)
        known, unknown = self._in_flight(tags)
        for one in known:
            self._ledger.extend(one, timeout_ms)
        self._wake.set()
        return Settled(len(known), unknown)

    async def _confirmed(self, tags: Sequence[str], unknown: list[str]) -> Settled:
        self._wake.set()
        await self._ledger.confirm()
        return Settled(len(tags) - len(unknown), unknown)

    def _in_flight(self, tags: Sequence[str]) -> tuple[list[Pending], list[str]]:
        """Those that are with the consumer in the very attempt that the tag names: an older one says nothing of the newest."""
        known: dict[Cursor, Pending] = {}
        unknown = []
        for tag in tags:
            cursor, attempt = _parse(tag)
            one = None if cursor is None else self._ledger.pending.get(cursor)
            if one is not None and one.in_flight and not one.leaving and one.attempts == attempt:
                known[one.cursor] = one
            else:
                unknown.append(tag)
        return list(known.values()), unknown

    # Pacing

    def credit(self, records: int) -> None:
        """So many records more may be delivered. Before the first call there is no such bound. ConsumerInvalid."""
        total = records + (self._credit or 0)
        if records < 0 or total > CREDIT_MAX:
            raise ConsumerInvalid("credit", f"0 to {CREDIT_MAX} records in all")
        self._credit = total
        self._wake.set()

    def pause(self) -> None:
        """Deliver nothing until `resume`; acknowledgements are taken, and times run on."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wake.set()

    # Its life

    def take_damage(self) -> list[Damage]:
        """Ranges lost by the media that were crossed since the last call."""
        crossed = list(self._reader.damage.values())
        self._reader.damage.clear()
        return crossed

    def take_gaps(self) -> list[Gap]:
        """Ranges that retention, or a deletion, took before this reader came; since the last call."""
        crossed = list(self._reader.gaps.values())
        self._reader.gaps.clear()
        return crossed

    def reposition(self) -> None:
        """The ledger was sent elsewhere: read on from there."""
        self._fresh = []
        self._reader = self._open()
        self._wake.set()

    def end(self, error: Exception) -> None:
        """It is not this connection's any more: every call from now on, and one that waits, raises the error."""
        self._ended = self._ended or error
        self._unwatch()
        self._wake.set()

    def close(self) -> None:
        """What it had in flight is due at once, for whoever comes next. More than once does no harm."""
        if self._closed:
            return
        self._closed = True
        self.end(Closed())
        self._on_close(self)

    def _require_open(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _open(self) -> Subscription:
        ledger, engine = self._ledger, self._world.engine
        source: Source
        if self.filter.topic is None:
            source = self._reads.source(self.filter)
        else:
            source = TopicSource(engine, self.filter.topic, None if self.filter.exact is None else self.filter.exact[1])
        wanted = None if self.filter.open else self.filter.wants
        wanted_key = None if self.filter.only_headers else self.filter.wants_key
        start = Start(ledger.next, ledger.head.since_ms)
        return Subscription(engine, self._world.clock, source, start, wanted, wanted_key)

    def _save_soon(self) -> None:
        """So that a crash forgets few attempts. Nobody waits for it."""
        if not self._saving:
            self._saving = True
            self._world.spawn(self._save())

    async def _save(self) -> None:
        self._saving = False
        await self._ledger.confirm()

    def _now_ms(self) -> int:
        return self._world.clock.monotonic_ms()


def _parse(tag: str) -> tuple[Cursor | None, int]:
    """The cursor after the record, None for what is no tag, and the attempt."""
    parts = tag.split("-", 3) if len(tag) <= TAG_CHARS_MAX and tag.isascii() else ()
    if len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit() and parts[2].isdigit()):
        return None, 0
    if len(parts[0]) > SEQUENCE_DIGITS_MAX or len(parts[1]) > INDEX_DIGITS_MAX:
        return None, 0
    return Cursor(int(parts[0]), int(parts[1])), int(parts[2])
