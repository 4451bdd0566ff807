"""Whole batches on the way out: what a Kafka consumer's request goes through, step by step as in `gateway/pipeline.py`.

One request reads many partitions, and waits for any of them while there is too little. Batches pass unopened; for a session that
may read some keys only they are opened, and forbidden records are cut.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from broker.delivery.whole_batches import stepping_over, without_forbidden
from broker.engine.base import Fetched, Stored
from broker.errors import BrokerError, OffsetOutOfRange
from gateway.errors import GatewayError
from security.errors import AccessDenied, SecurityError
from security.policy.model import Action, Decision
from security.policy.quotas import Quota
from security.principal import Session

if TYPE_CHECKING:
    from gateway.pipeline import Pipeline

REFUSALS = (BrokerError, SecurityError, GatewayError)

_COUNT = struct.Struct(">i")
_COUNT_AT = 57

Decisions = dict[str, Decision | AccessDenied]

PlaceAt = int | Literal["earliest", "latest", "newest"]
"""The first record at or after a time in milliseconds; the log start; its end; the record with the newest timestamp."""


class FetchWanted(msgspec.Struct, frozen=True, gc=False):
    """`problem`: why this partition is not even looked at."""

    topic: str
    partition: int
    offset: int
    bytes_max: int
    problem: Exception | None = None


class PartitionRead(msgspec.Struct, gc=False):
    """`error`, or batches from the offset on: of the first one records may lie below it. `aborted`: producer id and first offset
    of aborted transactions, for readers of what is committed."""

    error: Exception | None = None
    high_watermark: int = -1
    stable_offset: int = -1
    log_start: int = -1
    batches: Sequence[Stored] = ()
    reached: int = -1
    aborted: Sequence[tuple[int, int]] = ()

    def pieces(self) -> list[bytes]:
        """The batches' bytes; and, where their end was cut away, one without records that says where to go on."""
        pieces = [stored.batch for stored in self.batches]
        if self.reached > (self.batches[-1].next_offset if self.batches else 0):
            pieces.append(stepping_over(self.reached))
        return pieces


class Place(msgspec.Struct, frozen=True, gc=False):
    """An offset, and the timestamp of the record there where it was looked for by time; -1, -1: there is none."""

    offset: int
    timestamp_ms: int = -1


class FetchLimits(msgspec.Struct, frozen=True):
    """Wait up to `wait_max_ms` for `bytes_min`; at most `bytes_max`, unless the first batch alone is larger (KIP-74)."""

    bytes_min: int
    bytes_max: int
    wait_max_ms: int
    read_committed: bool = False


class Fetching:
    """The way out of whole batches; one for the node."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def fetch(self, session: Session, wanted: Sequence[FetchWanted], limits: FetchLimits) -> list[PartitionRead]:
        """One answer for each partition, in their order. IdentityProblem and QuotaExceeded are about the request, and raised."""
        pipeline = self._pipeline
        pipeline.chain.still_valid(session.principal)
        pipeline.charge(session, Quota.REQUESTS, 1)
        topics = list(dict.fromkeys([one.topic for one in wanted]))
        decisions = self._authorise(session, topics)
        deadline_ms = pipeline.clock.monotonic_ms() + limits.wait_max_ms
        waited = False
        while True:
            seen = pipeline.broker.next_sequence()
            look = Look(pipeline, decisions, limits)
            reads = await look.at(wanted)
            waited |= look.waited
            if look.failed or look.size >= limits.bytes_min or not wanted:
                break
            if not await self._woken(topics, deadline_ms, seen):
                break
            waited = True
        if not pipeline.quotas.unlimited:
            waited |= await self._pace(session, look.size)
        if waited:  # between this and the return nothing waits
            decisions = self._authorise(session, topics)
        for one, read in zip(wanted, reads, strict=True):
            _cut(read, decisions[one.topic])
        self._deliver(session, reads)
        return reads

    async def place(self, session: Session, topic: str, partition: int, at: PlaceAt, *, read_committed: bool = False) -> Place:
        """Where a reader may begin. Whoever may describe the topic or read some of it may ask. AccessDenied, UnknownTopic,
        UnknownPartition."""
        pipeline = self._pipeline
        pipeline.chain.still_valid(session.principal)
        if pipeline.decide_reading(session, topic).form is Decision.NONE:
            pipeline.authorise(session, Action.DESCRIBE, topic)
        offsets = pipeline.broker.partition_offsets(topic, partition)
        if at == "earliest":
            return Place(offsets.log_start)
        end = offsets.high_watermark
        if read_committed:
            topic_id = pipeline.broker.topic(topic).topic_id
            end = pipeline.broker.stability.stable_offset(topic_id, partition, end)
        if at == "latest":
            return Place(end)
        if at == "newest":
            found = await pipeline.broker.newest_time(topic, partition)
        else:
            found = await pipeline.broker.first_at(topic, partition, at)
        return Place(found.offset, found.timestamp_ms) if found.offset < end else Place(-1)

    # 2 and 4. Authorise, before the read and after each wait

    def _authorise(self, session: Session, topics: Sequence[str]) -> Decisions:
        return {topic: self._decide(session, topic) for topic in topics}

    def _decide(self, session: Session, topic: str) -> Decision | AccessDenied:
        try:
            return self._pipeline.authorise(session, Action.READ, topic)
        except AccessDenied as denied:
            return denied

    # 3. Wait

    async def _woken(self, topics: Sequence[str], deadline_ms: int, seen: int) -> bool:
        """Whether one of the topics may have more, before the deadline."""
        broker = self._pipeline.broker
        left_ms = deadline_ms - self._pipeline.clock.monotonic_ms()
        if left_ms <= 0:
            return False
        if broker.next_sequence() != seen:  # a commit while files were read, which woke nobody
            return True
        happened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not happened.done():
                happened.set_result(None)

        unwatch = [broker.watch(topic, wake) for topic in topics]
        try:
            # Not `wait_for`: in Python 3.11 it swallows a cancellation that meets the result.
            async with asyncio.timeout(left_ms / 1_000):
                await happened
        except TimeoutError:
            return False
        finally:
            for each in unwatch:
                each()
        return True

    # 5 and 6. Pace, deliver

    async def _pace(self, session: Session, size: int) -> bool:
        """Waits until what is about to be delivered is paid for; whether it had to."""
        waited = False
        while size and (wait_ms := self._pipeline.owed_ms(session, Quota.BYTES_OUT, size)):
            waited = True
            await asyncio.sleep(wait_ms / 1_000)
        return waited

    def _deliver(self, session: Session, reads: Sequence[PartitionRead]) -> None:
        records = size = 0
        for read in reads:
            for stored in read.batches:
                records += _COUNT.unpack_from(stored.batch, _COUNT_AT)[0]
                size += len(stored.batch)
        if size:
            self._pipeline.deliver(session, records, size)


class Look:
    """One look at all partitions of a request, in their order."""

    __slots__ = ("_bytes_left", "_decisions", "_limits", "_pipeline", "failed", "size", "waited")

    def __init__(self, pipeline: Pipeline, decisions: Decisions, limits: FetchLimits) -> None:
        self._pipeline, self._decisions, self._limits = pipeline, decisions, limits
        self._bytes_left = limits.bytes_max
        self.size = 0
        """Bytes of batches found. What was lost, has expired or was deleted is worth an answer too, and counts one."""
        self.failed = False
        self.waited = False

    async def at(self, wanted: Sequence[FetchWanted]) -> list[PartitionRead]:
        reads = []
        for one in wanted:
            try:
                reads.append(await self._read(one))
            except REFUSALS as refusal:
                self.failed = True
                reads.append(PartitionRead(refusal))
        return reads

    async def _read(self, one: FetchWanted) -> PartitionRead:
        decision = self._decisions[one.topic]
        if isinstance(decision, AccessDenied):
            raise decision
        if one.problem is not None:
            self.failed = True
            return PartitionRead(one.problem)
        broker = self._pipeline.broker
        room = min(one.bytes_max, self._bytes_left)
        fetched = broker.recent_batches(one.topic, one.partition, one.offset, bytes_max=max(1, room))
        if fetched is None:
            if room <= 0:
                return self._unread(one)
            self.waited = True
            fetched = await broker.fetch_batches(one.topic, one.partition, one.offset, bytes_max=room, wait_max_ms=0)
        if fetched.next_offset == one.offset and not self._limits.read_committed:  # nobody waits more often than at the end
            return PartitionRead(None, fetched.high_watermark, self._stable(one, fetched), fetched.log_start)
        return self._taken(one, fetched, room)

    def _unread(self, one: FetchWanted) -> PartitionRead:
        """There is no room left in the answer."""
        at = self._pipeline.broker.partition_offsets(one.topic, one.partition)
        if not at.log_start <= one.offset <= at.high_watermark:
            raise OffsetOutOfRange(one.topic, one.partition, one.offset, at.log_start, at.high_watermark)
        fetched = Fetched([], one.offset, at.log_start, at.high_watermark, [])
        return PartitionRead(None, at.high_watermark, self._stable(one, fetched), at.log_start)

    def _stable(self, one: FetchWanted, fetched: Fetched) -> int:
        topic = self._pipeline.broker.topic(one.topic)
        return self._pipeline.broker.stability.stable_offset(topic.topic_id, one.partition, fetched.high_watermark)

    def _taken(self, one: FetchWanted, fetched: Fetched, room: int) -> PartitionRead:
        stable = self._stable(one, fetched)
        batches, reached = fetched.batches, fetched.next_offset
        if self._limits.read_committed and reached > stable:
            batches = [stored for stored in batches if stored.base_offset < stable]
            reached = min(reached, stable)
        size = sum([len(stored.batch) for stored in batches])
        if batches and size > room and self.size:  # only the first answer of all may be larger than asked for
            return PartitionRead(None, fetched.high_watermark, stable, fetched.log_start)
        self._bytes_left -= size
        self.size += size or int(reached > one.offset)
        read = PartitionRead(None, fetched.high_watermark, stable, fetched.log_start, batches)
        if reached > one.offset:
            read.reached = reached
        if self._limits.read_committed:
            topic = self._pipeline.broker.topic(one.topic)
            aborted = self._pipeline.broker.stability.aborted(topic.topic_id, one.partition, one.offset, reached)
            read.aborted = [(each.producer_id, each.first_offset) for each in aborted]
        return read


def _cut(read: PartitionRead, decision: Decision | AccessDenied) -> None:
    """What the session may have of it, at this moment."""
    if read.error is not None:
        return
    if isinstance(decision, AccessDenied):
        read.error = decision
        read.high_watermark = read.stable_offset = read.log_start = read.reached = -1
        read.batches, read.aborted = (), ()
    elif read.batches and decision.form is not Decision.ALL:
        read.batches = without_forbidden(read.batches, decision.allows)
