"""The durable consumers of a node: made, found, used by one connection at a time, sent elsewhere, deleted.

A consumer is known by its owner (a principal's name) and its own name, so owners do not meet each other's names. What it reads,
its filter, is fixed when it is made. Its state lives in the log (`standing.py`); in memory are a line for each, and the whole of
those in use.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import msgspec

from broker.delivery import ledger as ledgers
from broker.delivery import standing
from broker.delivery.consumer import Consumer, Reads
from broker.delivery.consumer_errors import (
    ConsumerConflict,
    ConsumerDeleted,
    ConsumersFull,
    ConsumerTakenOver,
    ConsumerUnknown,
)
from broker.delivery.consumer_options import ConsumerOptions, DeliveryOptions, Terms, check_consumer_name
from broker.delivery.filter import Filter
from broker.delivery.ledger import Counts, Ledger, World
from broker.delivery.position import Cursor, Position, Start, check_cursor, find_start, find_start_of_many
from broker.delivery.source import ScanSource, Source
from broker.delivery.standing import Kept
from broker.engine.base import Engine, StateChange, StateSpace
from broker.errors import BrokerError, Closed, TopicProblem, UnknownTopic
from broker.seams import Clock, Random

logger = logging.getLogger("sprawl.delivery")

# Lag is asked of the log partition by partition: so many in one listing, then it is left out.
LAG_READS_MAX = 256

Result = TypeVar("Result")
Readable: TypeAlias = Callable[[str], bool]


class ConsumerInfo(msgspec.Struct, frozen=True):
    """All before `position` is settled, all before `next` is settled or pending. `pending` counts the records delivered and not
    settled, `in_flight` those of them that are with the consumer now.

    `lag_records`: pending, and the records behind `next` in the topics that the filter reaches and whoever asks may read,
    wanted or not, damaged and expired ones included; None where there are too many partitions to count, or the one topic is
    gone or not to be read.
    """

    name: str
    owner: str
    filter: Filter
    options: ConsumerOptions
    terms: Terms
    dead_letter_topic: str | None
    created_at_ms: int
    changed_at_ms: int
    position: Cursor
    next: Cursor
    pending: int
    in_flight: int
    connected: bool
    lag_records: int | None


class ConsumerStats(msgspec.Struct, frozen=True):
    """How many there are, how many are in use, and what happened to records since the start."""

    consumers: int
    connected: int
    records: Counts


class Consumers:
    """One for each node. Owner thread of the engine."""

    def __init__(self, engine: Engine, clock: Clock, random: Random, options: DeliveryOptions | None = None) -> None:
        self.options = options or DeliveryOptions()
        self.counts = Counts()
        self._world = World(engine, clock, random, self.options, self.counts, self._spawn)
        self._engine, self._clock = engine, clock
        self._known: dict[bytes, tuple[str, str]] | None = None
        self._ledgers: dict[bytes, Ledger] = {}
        self._live: dict[bytes, Consumer] = {}
        self._naming = asyncio.Lock()
        self.wide: Callable[[Callable[[str], bool], Callable[[], object] | None], Source] = self._scan
        """Where filters over many topics read from; the broker has them share their scans."""
        self._background: set[asyncio.Task[Any]] = set()

    # Use

    async def attach(
        self,
        owner: str,
        name: str,
        filter: Filter,
        options: ConsumerOptions | None = None,
        position: Position = "latest",
        *,
        readable: Callable[[str], bool] | None = None,
        version: Callable[[], object] | None = None,
    ) -> Consumer:
        """The consumer, made where there is none, beginning at `position`; whoever used it so far is told.

        `readable` narrows the topics of a filter over many of them, asked at each read, or when `version` changes.

        ConsumerInvalid, ConsumerConflict, ConsumersFull; of a new one also UnknownTopic, CursorAhead, OffsetOutOfRange,
        PositionRefused.
        """
        check_consumer_name(name)
        options = options or ConsumerOptions()
        options.check(self.options)
        if filter.topic is not None and filter.topic not in self._engine.topics():
            raise UnknownTopic(filter.topic)
        work = self._begin(self._attach(owner, name, filter, options, position, Reads(self.wide, readable, version)))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_close_unused)
            raise

    async def _attach(
        self, owner: str, name: str, filter: Filter, options: ConsumerOptions, position: Position, reads: Reads
    ) -> Consumer:
        async with self._naming:
            key = standing.state_key(owner, name)
            ledger = self._ledger(key)
            created = ledger is None
            if ledger is None:
                ledger = await self._create(key, owner, name, filter, options, position, reads.readable)
            elif ledger.head.filter != filter:
                raise ConsumerConflict(name, f"reads {ledger.head.address!r}: delete it, or take another name")
            else:
                await self._take_up(key, ledger, options)
            if (older := self._live.pop(key, None)) is not None:
                older.end(ConsumerTakenOver(name))
                ledger.release()
            consumer = self._live[key] = Consumer(self._world, ledger, filter, reads, self._closed)
            consumer.created = created
            return consumer

    async def _take_up(self, key: bytes, ledger: Ledger, options: ConsumerOptions) -> None:
        ledger.set_options(options.over(ledger.head.options))
        self._ledgers[key] = ledger
        try:
            await ledger.confirm()
        except BaseException:
            if key not in self._live:
                self._ledgers.pop(key, None)
            raise
        self._ledgers[key] = ledger  # who used it last may have put it away meanwhile

    async def _create(
        self,
        key: bytes,
        owner: str,
        name: str,
        filter: Filter,
        options: ConsumerOptions,
        position: Position,
        readable: Readable | None,
    ) -> Ledger:
        self._require_place(owner)
        start = await self._start(filter, position, readable)
        now_ms = self._clock.now_ms()
        cursor = start.cursor
        head = Kept(
            standing.VERSION, owner, name, filter.address, filter.key_prefix, filter.headers, options,
            now_ms, now_ms, cursor.sequence, cursor.index, start.since_ms, 0,
        )  # fmt: skip
        ledger = Ledger(self._world, head)
        ledger.touch()
        await ledger.confirm()
        self._ledgers[key] = ledger
        self._index()[key] = (owner, name)
        return ledger

    def _require_place(self, owner: str) -> None:
        index = self._index()
        if len(index) >= self.options.consumers_max:
            raise ConsumersFull("delivery.consumers_max", self.options.consumers_max)
        if sum([other == owner for other, _ in index.values()]) >= self.options.consumers_per_owner_max:
            raise ConsumersFull("delivery.consumers_per_owner_max", self.options.consumers_per_owner_max)

    def _closed(self, consumer: Consumer) -> None:
        key = standing.state_key(consumer.owner, consumer.name)
        if self._live.get(key) is not consumer:
            return
        del self._live[key]
        ledger = self._ledgers[key]
        ledger.release()
        self._spawn(self._put_away(key, ledger))

    async def _put_away(self, key: bytes, ledger: Ledger) -> None:
        """Save it, and forget it unless somebody uses it again."""
        try:
            await ledger.save()
        finally:
            if key not in self._live and self._ledgers.get(key) is ledger:
                del self._ledgers[key]

    # Care

    async def infos(self, owner: str | None, consumers_max: int, readable: Readable | None = None) -> list[ConsumerInfo]:
        """Of one owner, or all, by owner and name. What is not `readable` to whoever asks counts in no lag."""
        wanted = sorted((known, key) for key, known in self._index().items() if owner is None or known[0] == owner)
        reads = [LAG_READS_MAX]
        found = []
        for _, key in wanted[:consumers_max]:
            found.append(await self._info(key, reads, readable))
            await asyncio.sleep(0)  # a thousand states with a thousand open records each are not decoded in one go
        return [info for info in found if info is not None]

    async def info(self, owner: str, name: str, readable: Readable | None = None) -> ConsumerInfo:
        """ConsumerUnknown."""
        found = await self._info(standing.state_key(owner, name), [LAG_READS_MAX], readable)
        if found is None:
            raise ConsumerUnknown(name)
        return found

    def filter_of(self, owner: str, name: str) -> Filter:
        """ConsumerUnknown."""
        return self._require(owner, name)[1].head.filter

    async def delete(self, owner: str, name: str) -> None:
        """ConsumerUnknown."""
        await asyncio.shield(self._begin(self._delete(owner, name)))

    async def _delete(self, owner: str, name: str) -> None:
        async with self._naming:
            key, ledger = self._require(owner, name)
            await ledger.delete()
            self._drop(key, ConsumerDeleted(name))

    async def give(self, owner: str, name: str, to: str) -> None:
        """To another owner, with its position: a principal's name may change, as with a new token. ConsumerUnknown,
        ConsumerConflict, ConsumersFull."""
        await asyncio.shield(self._begin(self._give(owner, name, to)))

    async def _give(self, owner: str, name: str, to: str) -> None:
        async with self._naming:
            key, ledger = self._require(owner, name)
            taken = standing.state_key(to, name)
            if taken in self._index():
                raise ConsumerConflict(name, "exists with the new owner already")
            if sum([other == to for other, _ in self._index().values()]) >= self.options.consumers_per_owner_max:
                raise ConsumersFull("delivery.consumers_per_owner_max", self.options.consumers_per_owner_max)
            ledger.release()
            await ledger.delete([StateChange(StateSpace.POSITION, taken, ledger.copy_for(to))])
            self._drop(key, ConsumerDeleted(name))
            self._index()[taken] = (to, name)

    async def seek(self, owner: str, name: str, position: Position, readable: Readable | None = None) -> ConsumerInfo:
        """Deliver from there; what was pending is forgotten. ConsumerUnknown, and what finding the position raises."""
        await asyncio.shield(self._begin(self._seek(owner, name, position, readable)))
        return await self.info(owner, name, readable)

    async def _seek(self, owner: str, name: str, position: Position, readable: Readable | None) -> None:
        async with self._naming:
            key, ledger = self._require(owner, name)
            start = await self._start(ledger.head.filter, position, readable)
            self._ledgers[key] = ledger
            ledger.seek(start)
            if (live := self._live.get(key)) is not None:
                live.reposition()
            try:
                await ledger.confirm()
            finally:
                if live is None:
                    self._ledgers.pop(key, None)

    def buries_in(self, topic: str) -> bool:
        """Whether some consumer asked for its dead letters to go to this topic."""
        heads = [standing.decode_head(value) for key, value in self._engine.states(StateSpace.POSITION) if key in self._index()]
        return any(head.options.dead_letter_topic == topic for head in heads)

    def stats(self) -> ConsumerStats:
        return ConsumerStats(len(self._index()), len(self._live), self.counts)

    async def close(self) -> None:
        """Save what is in use. Before the engine is closed."""
        while self._live or self._background:
            for consumer in list(self._live.values()):
                consumer.close()
            if self._background:
                await asyncio.wait(self._background)

    # Parts

    def _index(self) -> dict[bytes, tuple[str, str]]:
        """Owner and name of each, read once. What cannot be read is left out, and refused by name when it is asked for."""
        if self._known is None:
            self._known = {}
            for key, value in self._engine.states(StateSpace.POSITION):
                if key.startswith(standing.KEY_PREFIX):
                    try:
                        head = standing.decode_head(value)
                    except BrokerError as problem:
                        logger.error("a consumer cannot be read: %s", problem)
                        continue
                    self._known[key] = (head.owner, head.name)
        return self._known

    def _ledger(self, key: bytes) -> Ledger | None:
        if (found := self._ledgers.get(key)) is not None:
            return found
        value = self._engine.state(StateSpace.POSITION, key)
        return None if value is None else ledgers.load(self._world, value)

    def _require(self, owner: str, name: str) -> tuple[bytes, Ledger]:
        key = standing.state_key(owner, name)
        ledger = self._ledger(key)
        if ledger is None:
            raise ConsumerUnknown(name)
        return key, ledger

    def _drop(self, key: bytes, told: Exception) -> None:
        self._index().pop(key, None)
        self._ledgers.pop(key, None)
        if (live := self._live.pop(key, None)) is not None:
            live.end(told)

    def _scan(self, topics: Callable[[str], bool], version: Callable[[], object] | None) -> Source:
        return ScanSource(self._engine, topics)

    async def _start(self, filter: Filter, position: Position, readable: Readable | None) -> Start:
        """Where a position is found, or refused, says nothing of topics that are not `readable`."""

        def topics(name: str) -> bool:
            return filter.topics(name) and (readable is None or readable(name))

        if isinstance(position, Cursor) and position.index:  # it comes from whoever asks, maybe made up
            scan = await self._scan(topics, None).read(position.sequence, bytes_max=1, wait_max_ms=0)
            check_cursor(position, [stored for _, stored in scan.batches])
        if filter.topic is not None:
            return await find_start(self._engine, filter.topic, position)
        return await find_start_of_many(self._engine, [name for name in self._engine.topics() if topics(name)], position)

    async def _info(self, key: bytes, reads: list[int], readable: Readable | None) -> ConsumerInfo | None:
        ledger = self._ledger(key)
        if ledger is None:
            return None
        head = ledger.head
        filter = head.filter
        lag = await self._lag(filter, ledger.next, reads, readable)
        return ConsumerInfo(
            head.name,
            head.owner,
            filter,
            head.options,
            ledger.terms,
            head.options.dead_letter_topic,
            head.created_at_ms,
            head.changed_at_ms,
            ledger.position,
            ledger.next,
            len(ledger.pending),
            ledger.in_flight,
            key in self._live,
            None if lag is None else lag + len(ledger.pending),
        )

    async def _lag(self, filter: Filter, next: Cursor, reads: list[int], readable: Readable | None) -> int | None:
        """Records from `next` on; `reads` is what is left of the bound."""
        if readable is not None and filter.topic is not None and not readable(filter.topic):
            return None
        if next.sequence >= self._engine.next_sequence():
            return 0
        lag = 0
        names = [name for name in self._engine.topics() if filter.topics(name)] if filter.topic is None else [filter.topic]
        names = [name for name in names if readable is None or readable(name)]
        try:
            for name in names:
                for partition in self._engine.offsets(name):
                    if reads[0] <= 0:
                        return None
                    reads[0] -= 1
                    tail = await self._engine.tail(name, next.sequence, bytes_max=1, partitions=[partition.partition])
                    if tail.batches:
                        first = tail.batches[0]
                        inside = next.index if first.sequence == next.sequence else 0
                        lag += partition.high_watermark - first.base_offset - inside
        except TopicProblem:
            return None
        return max(0, lag)

    def _begin(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Work that a caller who goes away does not cut in two: in the log and not in memory, or the reverse."""
        task = asyncio.get_running_loop().create_task(work, name="consumers")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_heard)
        return task

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._begin(work).add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None or isinstance(error, Closed | ConsumerDeleted):
            return
        # What was confirmed is safe; the rest is delivered again.
        logger.warning("how far a consumer got could not be saved: %s", error)


def _heard(task: asyncio.Task[Any]) -> None:
    """The caller may be gone, and asyncio complains of exceptions that nobody took."""
    if not task.cancelled():
        task.exception()


def _close_unused(task: asyncio.Task[Consumer]) -> None:
    """Whoever asked for it is gone."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
