"""Whole batches on the way out: what a Kafka consumer's request goes through, step by step as in `gateway/pipeline.py`.

One request reads many partitions, and waits for any of them while there is too little. Batches pass unopened; for a session that
may read some keys only they are opened, and forbidden records are cut.

What is in memory is answered in the turn in which it is asked for. A partition at whose end nothing has happened costs two
comparisons; nobody looks at it again before something happens to its topic.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from broker.delivery.whole_batches import stepping_over, without_forbidden
from broker.engine.base import Fetched, PartitionEnds, Stored, Topic
from broker.errors import BrokerError, IllegalTopicName, OffsetOutOfRange, UnknownTopic
from gateway.errors import GatewayError, bare
from security.errors import AccessDenied, IdentityProblem, SecurityError
from security.policy.model import Action, Decision
from security.policy.quotas import Quota
from security.principal import Session

if TYPE_CHECKING:
    from broker.broker import Broker
    from gateway.pipeline import Pipeline

REFUSALS = (BrokerError, SecurityError, GatewayError)
TURN_BYTES = 1024 * 1024  # read before others have their turn: some 0.5 ms
TURN_LOOKS = 1_024  # partitions looked at before others have theirs: about as long
TOPIC_LOOKS = 16  # what a decision about one more topic counts
WATCHES_TURN = 256  # topics watched before others have their turn

_COUNT = struct.Struct(">i")
_COUNT_AT = 57

PlaceAt = int | Literal["earliest", "latest", "newest"]
"""The first record at or after a time in milliseconds; the log start; its end; the record with the newest timestamp."""


class FetchWanted(msgspec.Struct):
    """`problem`: why this partition is not even looked at. `topic_id`: the topic is meant only while it has this id, and else
    `problem_unknown` is the answer. `ends` is found once, for the topic of the id `ends_of`."""

    topic: str
    partition: int
    offset: int
    bytes_max: int
    problem: Exception | None = None
    topic_id: bytes | None = None
    problem_unknown: Exception | None = None
    ends: PartitionEnds | None = None
    ends_of: bytes = b""


class PartitionRead(msgspec.Struct):
    """`error`, or batches from the offset on: of the first one records may lie below it. `aborted`: producer id and first offset
    of aborted transactions, for readers of what is committed. `worth`: what it counts against `bytes_min`."""

    error: Exception | None = None
    high_watermark: int = -1
    stable_offset: int = -1
    log_start: int = -1
    batches: Sequence[Stored] = ()
    reached: int = -1
    aborted: Sequence[tuple[int, int]] = ()
    worth: int = 0

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
        found = self.begin(session, wanted, limits)
        return found if isinstance(found, list) else await found

    def begin(self, session: Session, wanted: Sequence[FetchWanted], limits: FetchLimits) -> list[PartitionRead] | Pending:
        """The answer where it is at hand, else what to await for it; `fetch` in two."""
        pipeline = self._pipeline
        pipeline.chain.still_valid(session.principal)
        pipeline.charge(session, Quota.REQUESTS, 1)
        look = Look(pipeline, session, wanted, limits)
        if look.go() and (look.enough or limits.wait_max_ms <= 0) and pipeline.quotas.unlimited:
            return look.delivered()
        return Pending(self, look, pipeline.clock.monotonic_ms() + limits.wait_max_ms)

    async def wait(self, look: Look, deadline_ms: int) -> list[PartitionRead]:
        """The rest of `begin`."""
        with _Watched(self._pipeline.broker) as watched:
            while True:
                while not look.go():
                    await look.step()
                left_ms = deadline_ms - self._pipeline.clock.monotonic_ms()
                if look.enough or left_ms <= 0:
                    break
                woken = await watched.woken(look, left_ms)
                if woken is None:
                    break
                look.again(woken)
        if not self._pipeline.quotas.unlimited:
            await self._pace(look)
        return look.delivered()

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

    # 5. Pace

    async def _pace(self, look: Look) -> None:
        """Waits until what is about to be delivered is paid for."""
        while look.size and (wait_ms := self._pipeline.owed_ms(look.session, Quota.BYTES_OUT, look.size)):
            look.waited = True
            await asyncio.sleep(wait_ms / 1_000)


class Pending:
    """A fetch that has to wait: nothing goes on, and nothing is held, before it is awaited."""

    __slots__ = ("_deadline_ms", "_fetching", "_look")

    def __init__(self, fetching: Fetching, look: Look, deadline_ms: int) -> None:
        self._fetching, self._look, self._deadline_ms = fetching, look, deadline_ms

    def __await__(self) -> Generator[Any, None, list[PartitionRead]]:
        return self._fetching.wait(self._look, self._deadline_ms).__await__()


class _Watched:
    """3. The topics of a request while it waits: watched from the first wait on, until the answer."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._unwatch: list[Callable[[], None]] = []
        self._woken: set[str] = set()
        self._happened: asyncio.Future[None] | None = None

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        for unwatch in self._unwatch:
            unwatch()

    async def woken(self, look: Look, left_ms: int) -> set[str] | None:
        """Topics to which something happened since they were looked at; None when the time has passed before."""
        look.waited = True
        if not self._unwatch and await self._watch(look):
            return look.topics()
        if not self._woken:
            self._happened = asyncio.get_running_loop().create_future()
            try:
                # Not `wait_for`: in Python 3.11 it swallows a cancellation that meets the result.
                async with asyncio.timeout(left_ms / 1_000):
                    await self._happened
            except TimeoutError:
                return None
        woken, self._woken = self._woken, set()
        return woken

    async def _watch(self, look: Look) -> bool:
        """Whether there was a commit since the look began, which woke nobody."""
        for number, topic in enumerate(look.topics()):
            if number % WATCHES_TURN == WATCHES_TURN - 1:
                await asyncio.sleep(0)
            self._unwatch.append(self._broker.watch(topic, partial(self._wake, topic)))
        return self._broker.next_sequence() != look.seen

    def _wake(self, topic: str) -> None:
        self._woken.add(topic)
        if self._happened is not None and not self._happened.done():
            self._happened.set_result(None)


class _LookedAt:
    """A topic in one look: what the session may have of it, or why nothing."""

    __slots__ = ("decision", "refusal", "topic", "topic_id")

    def __init__(self, decision: Decision | None, topic: Topic | None, refusal: Exception | None) -> None:
        self.decision, self.topic, self.refusal = decision, topic, refusal
        self.topic_id = b"" if topic is None else topic.topic_id


class Look:
    """A look at all partitions of a request, in their order; and again at those of topics to which something happened."""

    __slots__ = (
        "_at",
        "_due",
        "_ends",
        "_filled",
        "_from_files",
        "_full",
        "_limits",
        "_pipeline",
        "_reads",
        "_topics",
        "_wanted",
        "failed",
        "seen",
        "session",
        "size",
        "waited",
    )

    def __init__(self, pipeline: Pipeline, session: Session, wanted: Sequence[FetchWanted], limits: FetchLimits) -> None:
        self._pipeline, self.session, self._wanted, self._limits = pipeline, session, wanted, limits
        self._ends = pipeline.broker.partition_ends
        self._topics: dict[str, _LookedAt] = {}
        self._reads = [_NOTHING] * len(wanted)
        self._due: Sequence[int] = range(len(wanted))
        self._at = 0
        self._filled: set[int] = set()
        self._full = False
        self._from_files = 0  # bytes that may be read of the partition that is next, from the disk
        self.seen = pipeline.broker.next_sequence()
        self.size = 0
        """Bytes of batches found. What was lost, has expired or was deleted is worth an answer too, and counts one."""
        self.failed = False
        self.waited = False
        """Whether anything was waited for since rights were looked at."""

    @property
    def enough(self) -> bool:
        return self.failed or self.size >= self._limits.bytes_min or not self._wanted

    def topics(self) -> set[str]:
        return {one.topic for one in self._wanted}

    def again(self, woken: set[str]) -> None:
        """Begin another look, at the partitions of these topics only."""
        self.seen = self._pipeline.broker.next_sequence()
        self._topics.clear()
        self._full = False
        self._due, self._at = [number for number, one in enumerate(self._wanted) if one.topic in woken], 0
        for number in self._due:
            self.size -= self._reads[number].worth
            self._reads[number] = _NOTHING
        self._filled.difference_update(self._due)

    # Reading: 3

    def go(self) -> bool:
        """Look on for as long as no file has to be read and nobody else is held up; whether that was all."""
        due, wanted = self._due, self._wanted
        size_max, looks = self.size + TURN_BYTES, TURN_LOOKS
        while self._at < len(due):
            if looks <= 0 or self.size >= size_max:
                return False
            number = due[self._at]
            topics = len(self._topics)
            try:
                read = self._read(wanted[number])
            except IdentityProblem:  # about the request
                raise
            except REFUSALS as refusal:
                read = self._refused(refusal)
            if read is None:
                return False
            self._take(number, read)
            looks -= 1 + TOPIC_LOOKS * (len(self._topics) - topics)
        return True

    async def step(self) -> None:
        """What `go` stopped before: a file to be read, or others."""
        self.waited = True
        room, self._from_files = self._from_files, 0
        if not room:
            return await asyncio.sleep(0)
        number = self._due[self._at]
        one = self._wanted[number]
        try:
            fetched = await self._pipeline.broker.fetch_batches(
                one.topic, one.partition, one.offset, bytes_max=room, wait_max_ms=0
            )
            self._take(number, self._taken(one, fetched, room))
        except REFUSALS as refusal:
            self._take(number, self._refused(refusal))

    def _take(self, number: int, read: PartitionRead) -> None:
        reads = self._reads
        reads[number] = read
        self._at += 1
        if read.worth:
            self.size += read.worth
            self._filled.add(number)

    def _read(self, one: FetchWanted) -> PartitionRead | None:
        """None where files have to be read."""
        if one.problem is not None and not one.topic:
            return self._refused(one.problem)
        topic = self._topics.get(one.topic)
        if topic is None:
            topic = self._topics[one.topic] = self._looked_at(one.topic)
        if topic.topic is None or topic.refusal is not None or one.problem is not None or one.topic_id is not None:
            refusal = _refusal(one, topic) or one.problem
            if refusal is not None or topic.topic is None:
                return self._refused(refusal or UnknownTopic(one.topic))
        ends = one.ends
        if ends is None or one.ends_of != topic.topic_id:
            ends = one.ends = self._ends(topic.topic, one.partition)
            one.ends_of = topic.topic_id
        if one.offset == ends.high_watermark:  # nobody waits more often than at the end
            return self._nothing_new(one, ends)
        return self._batches(one, ends)

    def _batches(self, one: FetchWanted, ends: PartitionEnds) -> PartitionRead | None:
        broker = self._pipeline.broker
        room = min(one.bytes_max, self._limits.bytes_max - self.size)
        if self._full or (room <= 0 and self.size):
            if not ends.log_start <= one.offset <= ends.high_watermark:
                raise OffsetOutOfRange(one.topic, one.partition, one.offset, ends.log_start, ends.high_watermark)
            return self._nothing_new(one, ends)
        fetched = broker.recent_batches(one.topic, one.partition, one.offset, bytes_max=max(1, room))
        if fetched is None:
            self._from_files = max(1, room)
            return None
        return self._taken(one, fetched, room)

    def _nothing_new(self, one: FetchWanted, ends: PartitionEnds) -> PartitionRead:
        end = ends.high_watermark
        stable = self._pipeline.broker.stability.stable_offset(one.ends_of, one.partition, end)
        return PartitionRead(None, end, stable, ends.log_start)

    def _taken(self, one: FetchWanted, fetched: Fetched, room: int) -> PartitionRead:
        stability = self._pipeline.broker.stability
        stable = stability.stable_offset(one.ends_of, one.partition, fetched.high_watermark)
        batches, reached = fetched.batches, fetched.next_offset
        if self._limits.read_committed and reached > stable:
            batches = [stored for stored in batches if stored.base_offset < stable]
            reached = min(reached, stable)
        size = sum([len(stored.batch) for stored in batches])
        if batches and size > room and self.size:  # only the first answer of all may be larger than asked for
            self._full = True  # what follows would be read in vain, one batch of each
            return PartitionRead(None, fetched.high_watermark, stable, fetched.log_start)
        read = PartitionRead(None, fetched.high_watermark, stable, fetched.log_start, batches)
        if reached > one.offset:
            read.reached = reached
            read.worth = size or 1
        if self._limits.read_committed:
            aborted = stability.aborted(one.ends_of, one.partition, one.offset, reached)
            read.aborted = [(each.producer_id, each.first_offset) for each in aborted]
        return read

    def _refused(self, refusal: Exception) -> PartitionRead:
        self.failed = True
        return PartitionRead(bare(refusal))

    # 2 and 4. Authorise, before the read and after each wait

    def _looked_at(self, name: str) -> _LookedAt:
        topic = self._pipeline.broker.topics().get(name)
        try:
            decision = self._pipeline.authorise(self.session, Action.READ, name)
        except (AccessDenied, IllegalTopicName) as refusal:
            return _LookedAt(None, topic, bare(refusal))
        return _LookedAt(decision, topic, UnknownTopic(name) if topic is None else None)

    # 4 and 6. Cut, deliver

    def delivered(self) -> list[PartitionRead]:
        """What the session may have of it at this moment, counted as delivered: it is written in the same turn."""
        if self.waited:
            self._judge_again()
        records = size = 0
        for number in self._filled:
            read = self._reads[number]
            decision = self._topics[self._wanted[number].topic].decision
            if read.batches and decision is not None and decision.form is not Decision.ALL:
                read.batches = without_forbidden(read.batches, decision.allows)
            for stored in read.batches:
                records += _COUNT.unpack_from(stored.batch, _COUNT_AT)[0]
                size += len(stored.batch)
        if size:
            self._pipeline.deliver(self.session, records, size)
        return self._reads

    def _judge_again(self) -> None:
        self._topics.clear()
        for number, one in enumerate(self._wanted):
            if self._reads[number].error is not None:
                continue
            topic = self._topics.get(one.topic)
            if topic is None:
                topic = self._topics[one.topic] = self._looked_at(one.topic)
            refusal = _refusal(one, topic)
            if refusal is not None:
                self._reads[number] = PartitionRead(refusal)
                self._filled.discard(number)


_NOTHING = PartitionRead()


def _refusal(one: FetchWanted, topic: _LookedAt) -> Exception | None:
    """A topic that was made again under the name has another id; and rights come before existence."""
    if one.topic_id is None or topic.topic_id == one.topic_id or isinstance(topic.refusal, AccessDenied):
        return topic.refusal
    return one.problem_unknown or UnknownTopic(one.topic)
