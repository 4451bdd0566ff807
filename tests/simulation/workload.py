"""What clients do to the node: publish, read along, read back, make and delete topics, all at once and all from the seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from broker.batch import build
from broker.compression import Compression
from broker.engine.base import Append, Damage, Engine, StateChange, StateSpace, Topic
from broker.errors import OffsetOutOfRange, TopicProblem, Unavailable
from broker.seams import Clock
from tests.simulation.ledger import Ledger, Records
from tests.simulation.starts import EVERYTHING, Retention
from tests.simulation.states import StateLedger
from tests.simulation.trace import Trace

TOPICS = {"orders": 4, "readings": 5}
"""Made at the first start: nine partitions. The others come and go while clients are at work."""
STAMPED = "orders"
LATE_TOPICS = {"late": 2, "fleeting": 1}
DELETED = "fleeting"
ALL_TOPICS = (*TOPICS, *LATE_TOPICS)
KEYS = [b"key-%d" % number for number in range(24)]
VALUE_BYTES = (0, 20, 100, 300, 2_000, 30_000)
VALUE_WEIGHTS = (1, 6, 6, 4, 2, 1)
WRITERS = 5
LIFE_MS_MAX = 20_000
"""Of virtual time; a life takes about 300."""
WRITER_PAUSES_MS = (0.0, 0.0, 0.2, 1.0, 4.0)


def draw_retention(random: random.Random) -> dict[str, Retention]:
    """What topics keep; times are short, as lives are. The stamped topic keeps everything."""
    age_ms, size = random.choice((None, 100, 400)), random.choice((None, 10_000, 60_000))
    return {"readings": Retention(age_ms, None), "late": Retention(None, size), DELETED: Retention(age_ms, size)}


class Workload:
    """The clients of one life of the node: `goal` acknowledged batches, then everybody stops.

    `whole`: no media was ever damaged, so answers leave nothing out.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        states: StateLedger,
        clock: Clock,
        random: random.Random,
        trace: Trace,
        *,
        life: int,
        goal: int,
        whole: bool,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._states = states
        self._clock = clock
        self._random = random
        self._trace = trace
        self._life = life
        self._whole = whole
        self._goal = ledger.acknowledged + goal
        self._deadline_ms = clock.monotonic_ms() + LIFE_MS_MAX
        self._built = 0
        self._done = asyncio.Event()
        self.told: list[Damage] = []

    async def run(self, disturb: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Raises what any client raises. `disturb` runs beside the clients and is cancelled with them."""
        await self._make_topics()
        writers = [self._write() for _ in range(WRITERS)]
        readers = [self._follow(topic) for topic in list(self._engine.topics())]
        readers += [self._read_a_partition() for _ in range(2)] + [self._look_up(), self._scan()]
        background = [asyncio.ensure_future(each) for each in [*readers, self._manage(), self._let_go(), disturb()]]
        foreground = [asyncio.ensure_future(each) for each in writers]
        try:
            await asyncio.gather(*foreground)
        finally:
            for task in background:
                task.cancel()
            for outcome in await asyncio.gather(*background, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    def wanted(self) -> bool:
        """A disk that fails from the first topic on leaves nothing to do: then the deadline ends this life."""
        return self._ledger.acknowledged < self._goal and self._clock.monotonic_ms() < self._deadline_ms

    # Topics

    async def _make_topics(self) -> None:
        """All of them, at the first start; where a failing disk left one out, the next life tries again."""
        for name, partitions in TOPICS.items():
            if name not in self._engine.topics():
                with suppress(Unavailable, OSError):
                    await self._create(name, partitions)

    async def _create(self, name: str, partitions: int) -> None:
        facts = self._ledger.creating(name, partitions)
        configs = self._ledger.starts.retention.get(name, Retention()).configs
        topic = await self._engine.create_topic(name, partitions, configs)
        self._ledger.created(facts, topic)
        self._trace.count("topic created")

    async def _manage(self) -> None:
        """Now and then somebody creates, grows or deletes a topic under the clients' feet."""
        while True:
            await self._pause(self._random.choice((5.0, 20.0, 60.0)))
            name = self._random.choice([*LATE_TOPICS, *LATE_TOPICS, "readings"])
            try:
                await self._manage_one(name)
            except (Unavailable, OSError):
                await self._pause(10.0)

    async def _manage_one(self, name: str) -> None:
        topic = self._engine.topics().get(name)
        if topic is None:
            if self._ledger.topics.get(name) is None or self._ledger.topics[name].existence == "gone":
                await self._create(name, LATE_TOPICS[name])
        elif name == DELETED:
            self._ledger.deleting(name)
            await self._engine.delete_topic(name)
            self._ledger.deleted(name)
            self._trace.count("topic deleted")
        elif name == "readings" and topic.partitions < 8:
            self._ledger.growing(name, topic.partitions + 1)
            await self._engine.alter_topic(name, partitions=topic.partitions + 1)
            self._ledger.grown(name, topic.partitions + 1)
            self._trace.count("topic grown")

    # Letting records go

    async def _let_go(self) -> None:
        """Somebody deletes records, or retention looks for what is too old or too much."""
        while True:
            await self._pause(self._random.choice((5.0, 20.0, 60.0)))
            topics = list(self._engine.topics().values())
            try:
                if self._random.random() < 0.4:
                    await self._engine.apply_retention()
                    self._trace.count("retention applied")
                elif topics:
                    topic = self._random.choice(topics)
                    await self._delete_records(topic, self._random.randrange(topic.partitions))
            except Unavailable:
                await self._pause(10.0)
            except TopicProblem:
                continue
            self._look_at_starts()

    async def delete_some(self) -> bool:
        """For somebody who needs space. False: there is nothing to delete."""
        topics = list(self._engine.topics().values())
        if not topics:
            return False
        topic = self._random.choice(topics)
        try:
            await self._delete_records(topic, self._random.randrange(topic.partitions), share=0.5)
        except TopicProblem:
            return False
        return True

    async def _delete_records(self, topic: Topic, partition: int, share: float | None = None) -> None:
        offsets = self._engine.offsets(topic.name)[partition]
        start = offsets.log_start
        if share is None:
            share = self._random.choice((0.0, 0.1, 0.3, 0.3, 1.0))
        # Mostly not at the border of a batch; 1 in 20 times all there is.
        before = start + round((offsets.high_watermark - start) * share)
        offset = -1 if self._random.random() < 0.05 else before
        self._ledger.starts.deleting((topic.topic_id, partition), offset)
        answer = await self._engine.delete_records(topic.name, partition, offset)
        self._trace.count("records deleted")
        if answer < before:
            self._ledger.broken(f"{topic.name}/{partition} begins at {answer} after everything before {before} was deleted")
        self._ledger.began(topic, partition, answer)

    def _look_at_starts(self) -> None:
        for topic in self._engine.topics().values():
            for offsets in self._engine.offsets(topic.name):
                self._ledger.began(topic, offsets.partition, offsets.log_start)

    def _log_start(self, topic: Topic, partition: int) -> int:
        """As it is now; of a topic that is deleted meanwhile, beyond everything."""
        now = self._engine.topics().get(topic.name)
        if now is None or now.topic_id != topic.topic_id:
            return EVERYTHING
        return self._engine.offsets(topic.name)[partition].log_start

    # Writers

    async def _write(self) -> None:
        while self.wanted():
            await (self._set_state() if self._random.random() < 0.08 else self._publish())
            pause_ms = self._random.choice(WRITER_PAUSES_MS)
            if pause_ms:
                await self._pause(pause_ms)

    async def _publish(self) -> None:
        topics = dict(self._engine.topics())
        names = [name for name in topics if name in self._ledger.topics and self._ledger.topics[name].existence == "sure"]
        if not names:
            return await self._pause(5.0)
        appends, records = [], []
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 5))):
            append, facts = self._draw(topics[self._random.choice(names)])
            appends.append(append)
            records.append(facts)
        await self._append({name: topics[name].topic_id for name in names}, appends, records, self._draw_changes(0.3))

    async def _set_state(self) -> None:
        """As a consumer does that only moves its position."""
        await self._append({}, [], [], self._draw_changes(1.0))

    async def _append(
        self, topic_ids: dict[str, bytes], appends: list[Append], records: list[Records], changes: list[StateChange]
    ) -> None:
        call = self._ledger.publishing(topic_ids, appends, records)
        self._states.changing(call, changes)
        durable = self._random.random() < 0.9
        try:
            answers = await self._engine.append(appends, durable=durable, changes=changes)
        except Unavailable as unavailable:
            self._trace.count(f"append answered {type(unavailable).__name__}")
            self._ledger.unknown(call)
            await self._pause(5.0)
        except TopicProblem:
            # Deleted meanwhile: before the append, or while it waited for its sync.
            self._ledger.unknown(call)
        else:
            if durable:
                self._ledger.acknowledge(call, answers)
            else:
                self._ledger.assigned(call)
            for change in changes:
                self._states.saw(change.space, change.key, self._engine.state(change.space, change.key))
            self._trace.note("acknowledged", [(answer.partition, answer.base_offset, answer.sequence) for answer in answers])

    def _draw_changes(self, share: float) -> list[StateChange]:
        """Entries of keyed state, each value of its own; some are deletes."""
        if self._random.random() >= share:
            return []
        changes = []
        for _ in range(self._random.choice((1, 1, 2, 4))):
            self._built += 1
            value = b"%d/%d " % (self._life, self._built) + bytes(self._random.choice((0, 20, 300)))
            space = self._random.choice(list(StateSpace))
            changes.append(StateChange(space, self._random.choice(KEYS), None if self._random.random() < 0.15 else value))
        self._trace.count("state changed")
        return changes

    async def stamp(self, count: int) -> bool:
        """Batches of one shape, one after the other: what a life loses by a power cut, the next can seal again byte for byte."""
        topic = self._engine.topics().get(STAMPED)
        if topic is None:
            return False
        for _ in range(count):
            self._built += 1
            draft = (self._clock.now_ms(), KEYS[0], b"stamp %8d %8d" % (self._life, self._built), ())
            append = Append(STAMPED, 0, build([draft]), [KEYS[0]])
            call = self._ledger.publishing({STAMPED: topic.topic_id}, [append], [((KEYS[0],), (draft[0],))])
            try:
                self._ledger.acknowledge(call, await self._engine.append([append]))
            except Unavailable:
                self._ledger.unknown(call)
                return False
        return True

    def _draw(self, topic: Topic) -> tuple[Append, Records]:
        """A batch of one record to twenty, each with bytes of its own."""
        now_ms, draw = self._clock.now_ms(), self._random
        drafts: list[tuple[int, bytes | None, bytes | None, tuple[tuple[bytes, bytes], ...]]] = []
        for _ in range(draw.choice((1, 1, 2, 5, 20))):
            self._built += 1
            unique = b"%d/%d " % (self._life, self._built)
            value = unique + draw.randbytes(draw.choices(VALUE_BYTES, VALUE_WEIGHTS)[0])
            key = None if draw.random() < 0.1 else draw.choice(KEYS)
            headers = ((b"trace", unique),) if draw.random() < 0.2 else ()
            drafts.append((now_ms + draw.randint(-5, 5), key, value, headers))
        batch = build(drafts, compression=draw.choice((Compression.NONE, Compression.NONE, Compression.ZSTD)))
        keys = tuple(draft[1] for draft in drafts)
        known = list(dict.fromkeys(keys)) if draw.random() < 0.7 else None
        append = Append(topic.name, draw.randrange(topic.partitions), batch, known)
        return append, (keys, tuple(draft[0] for draft in drafts))

    # Readers

    async def _follow(self, name: str) -> None:
        """A subscriber of a topic: everything in commit order, from a random point on; sometimes it starts over."""
        topic = self._engine.topics()[name]
        sequence = self._random.choice((0, self._engine.next_sequence()))
        follower = self._ledger.follow(topic, sequence)
        while True:
            try:
                floors = self._ledger.starts.floors()
                tail = await self._engine.tail(
                    name, sequence, bytes_max=self._random.choice((1, 20_000, 200_000)), wait_max_ms=self._random.randint(0, 50)
                )
            except Unavailable:
                await self._pause(5.0)
                continue
            except TopicProblem:
                return
            self.told += tail.damage
            for stored in tail.batches:
                batch = self._ledger.saw(topic, stored, floors)
                if not sequence <= batch.sequence < tail.next_sequence:
                    self._ledger.broken(f"tail of {name} from {sequence} to {tail.next_sequence} gave {batch}")
                sequence = batch.sequence + 1
                follower.seen.add(batch.sequence)
            sequence = tail.next_sequence
            if tail.damage:
                follower = self._ledger.follow(topic, sequence)
            follower.to_sequence = sequence
            if not tail.batches:
                await self._pause(self._random.choice((0.1, 1.0, 10.0)))

    async def _scan(self) -> None:
        """A subscriber of many topics at once, also of those that are made later."""
        wanted = self._random.choice((set(ALL_TOPICS), {STAMPED, "late"}, {"readings", "fleeting"}))
        sequence = self._random.choice((0, self._engine.next_sequence()))
        # A topic whose deletion fails in the end is back, and who read along meanwhile was not shown it.
        follower = self._ledger.follow_all(lambda batch: batch.topic in wanted and batch.topic != DELETED, sequence)
        while True:
            bytes_max, wait_max_ms = self._random.choice((1, 20_000, 200_000)), self._random.randint(0, 50)
            topics, floors = dict(self._engine.topics()), self._ledger.starts.floors()
            try:
                scan = await self._engine.scan(sequence, topics=wanted.__contains__, bytes_max=bytes_max, wait_max_ms=wait_max_ms)
            except Unavailable:
                await self._pause(5.0)
                continue
            self.told += scan.damage
            topics |= self._engine.topics()
            for name, stored in scan.batches:
                batch = self._ledger.saw(topics[name], stored, floors) if name in topics and name != DELETED else None
                if name not in wanted or not sequence <= stored.sequence < scan.next_sequence:
                    self._ledger.broken(f"scan of {sorted(wanted)} from {sequence} to {scan.next_sequence} gave {name}: {batch}")
                sequence = stored.sequence + 1
                follower.seen.add(stored.sequence)
            sequence = scan.next_sequence
            if scan.damage:
                follower = self._ledger.follow_all(follower.asked, sequence)
            follower.to_sequence = sequence
            if not scan.batches:
                await self._pause(self._random.choice((0.1, 1.0, 10.0)))

    async def _read_a_partition(self) -> None:
        """A consumer that fetches one partition, then another."""
        while True:
            topics = list(self._engine.topics().values())
            if not topics:
                await self._pause(5.0)
                continue
            topic = self._random.choice(topics)
            try:
                await self._fetch_for_a_while(topic, self._random.randrange(topic.partitions))
            except Unavailable:
                await self._pause(5.0)
            except OffsetOutOfRange as behind:
                if behind.offset >= behind.log_start:
                    self._ledger.broken(f"nothing is wrong with that offset: {behind}")
                self._trace.count("reader overtaken by the log start")
            except TopicProblem:
                continue

    async def _fetch_for_a_while(self, topic: Topic, partition: int) -> None:
        offsets = self._engine.offsets(topic.name)[partition]
        offset = self._random.choice((offsets.log_start, offsets.high_watermark))
        for _ in range(self._random.randint(1, 20)):
            floors = self._ledger.starts.floors()
            fetched = await self._engine.fetch(
                topic.name,
                partition,
                offset,
                bytes_max=self._random.choice((1, 20_000, 200_000)),
                bytes_min=self._random.choice((1, 1, 5_000)),
                wait_max_ms=self._random.randint(0, 30),
            )
            self.told += fetched.damage
            for stored in fetched.batches:
                batch = self._ledger.saw(topic, stored, floors)
                if batch.base_offset > offset and not fetched.damage:
                    self._ledger.broken(f"fetch of {topic.name}/{partition} at {offset} skips to {batch}")
                offset = batch.next_offset
            if offset > fetched.high_watermark:
                self._ledger.broken(f"{topic.name}/{partition}: read to {offset}, beyond {fetched.high_watermark}")
            offset = max(offset, fetched.next_offset)
            if (start := self._log_start(topic, partition)) != EVERYTHING:
                self._ledger.began(topic, partition, start)
            await self._pause(self._random.choice((0.0, 0.5, 3.0)))

    async def _look_up(self) -> None:
        """Questions by key and by time, while everything moves: the answer is at least as new as what was known before."""
        while True:
            await self._pause(self._random.choice((0.2, 1.0, 5.0)))
            topics = list(self._engine.topics().values())
            if not topics:
                continue
            topic = self._random.choice(topics)
            partition = self._random.randrange(topic.partitions)
            try:
                await self._random.choice((self._look_up_key, self._look_up_time))(topic, partition)
            except (Unavailable, TopicProblem):
                continue

    async def _look_up_key(self, topic: Topic, partition: int) -> None:
        key = self._random.choice(KEYS)
        log, floors = self._ledger.log(topic.topic_id, partition), self._ledger.starts.floors()
        latest = await self._engine.find_latest(topic.name, partition, key)
        start = self._log_start(topic, partition)
        known = [batch for batch in log if any(of_record == key for _, of_record, _ in batch.left(start))]
        found = None if latest is None else self._ledger.saw(topic, latest, floors)
        if found is not None and key not in found.keys:
            self._ledger.broken(f"find_latest of {topic.name}/{partition} for {key!r} gave {found}, which has {found.keys}")
        if known and self._whole and (found is None or found.base_offset < known[-1].base_offset):
            self._ledger.broken(f"find_latest of {topic.name}/{partition} for {key!r} gave {found}, older than {known[-1]}")

    async def _look_up_time(self, topic: Topic, partition: int) -> None:
        log = self._ledger.log(topic.topic_id, partition)
        if not log:
            return
        time_ms = self._random.choice(self._random.choice(log).timestamps)
        first = next(batch for batch in log if max(batch.timestamps) >= time_ms)
        answer = await self._engine.offset_for_time(topic.name, partition, time_ms)
        sequence = await self._engine.sequence_for_time(topic.name, time_ms)
        newest = await self._engine.offset_of_max_timestamp(topic.name, partition)
        start = self._log_start(topic, partition)
        log = [batch for batch in log if batch.base_offset >= start]
        if not self._whole or not log or first.base_offset < start:
            return
        if not (0 <= answer.offset < first.next_offset and answer.timestamp_ms >= time_ms):
            self._ledger.broken(f"the first record of {topic.name}/{partition} from {time_ms} on is in {first}, not {answer}")
        if sequence > first.sequence:
            self._ledger.broken(f"sequence {sequence} for time {time_ms} of {topic.name} leaves out {first}")
        if newest.timestamp_ms < max(max(batch.timestamps) for batch in log):
            self._ledger.broken(f"the newest record of {topic.name}/{partition} is newer than {newest}")

    async def _pause(self, about_ms: float) -> None:
        await asyncio.sleep(self._random.random() * 2 * about_ms / 1000)
