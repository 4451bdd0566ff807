"""What clients do to the node: publish, read along, read back, make and delete topics, all at once and all from the seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from broker.batch import build
from broker.compression import Compression
from broker.engine.base import Append, Damage, Engine, Topic
from broker.errors import TopicProblem, Unavailable
from broker.seams import Clock
from tests.simulation.ledger import Ledger, Records
from tests.simulation.trace import Trace

TOPICS = {"orders": 4, "readings": 5}
"""Made at the first start: nine partitions. The others come and go while clients are at work."""
STAMPED = "orders"
LATE_TOPICS = {"late": 2, "fleeting": 1}
KEYS = [b"key-%d" % number for number in range(24)]
VALUE_BYTES = (0, 20, 100, 300, 2_000, 30_000)
VALUE_WEIGHTS = (1, 6, 6, 4, 2, 1)
WRITERS = 5
LIFE_MS_MAX = 20_000
"""Of virtual time; a life takes about 300."""
WRITER_PAUSES_MS = (0.0, 0.0, 0.2, 1.0, 4.0)


class Workload:
    """The clients of one life of the node: `goal` acknowledged batches, then everybody stops.

    `whole`: no media was ever damaged, so answers leave nothing out.
    """

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
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
        readers += [self._read_a_partition() for _ in range(2)] + [self._look_up()]
        background = [asyncio.ensure_future(each) for each in [*readers, self._manage(), disturb()]]
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
        topic = await self._engine.create_topic(name, partitions, {})
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
        elif name == "fleeting":
            self._ledger.deleting(name)
            await self._engine.delete_topic(name)
            self._ledger.deleted(name)
            self._trace.count("topic deleted")
        elif name == "readings" and topic.partitions < 8:
            self._ledger.growing(name, topic.partitions + 1)
            await self._engine.alter_topic(name, partitions=topic.partitions + 1)
            self._ledger.grown(name, topic.partitions + 1)
            self._trace.count("topic grown")

    # Writers

    async def _write(self) -> None:
        while self.wanted():
            await self._publish()
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
        call = self._ledger.publishing({name: topics[name].topic_id for name in names}, appends, records)
        durable = self._random.random() < 0.9
        try:
            answers = await self._engine.append(appends, durable=durable)
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
            self._trace.note("acknowledged", [(answer.partition, answer.base_offset, answer.sequence) for answer in answers])

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
                batch = self._ledger.saw(topic, stored)
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
            except TopicProblem:
                continue

    async def _fetch_for_a_while(self, topic: Topic, partition: int) -> None:
        offset = self._random.choice((0, self._engine.offsets(topic.name)[partition].high_watermark))
        for _ in range(self._random.randint(1, 20)):
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
                batch = self._ledger.saw(topic, stored)
                if batch.base_offset > offset and not fetched.damage:
                    self._ledger.broken(f"fetch of {topic.name}/{partition} at {offset} skips to {batch}")
                offset = batch.next_offset
            if offset > fetched.high_watermark:
                self._ledger.broken(f"{topic.name}/{partition}: read to {offset}, beyond {fetched.high_watermark}")
            offset = max(offset, fetched.next_offset)
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
        known = [batch for batch in self._ledger.log(topic.topic_id, partition) if key in batch.keys]
        latest = await self._engine.find_latest(topic.name, partition, key)
        found = None if latest is None else self._ledger.saw(topic, latest)
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
        if not self._whole:
            return
        if not (0 <= answer.offset < first.next_offset and answer.timestamp_ms >= time_ms):
            self._ledger.broken(f"the first record of {topic.name}/{partition} from {time_ms} on is in {first}, not {answer}")
        if sequence > first.sequence:
            self._ledger.broken(f"sequence {sequence} for time {time_ms} of {topic.name} leaves out {first}")
        if newest.timestamp_ms < max(max(batch.timestamps) for batch in log):
            self._ledger.broken(f"the newest record of {topic.name}/{partition} is newer than {newest}")

    async def _pause(self, about_ms: float) -> None:
        await asyncio.sleep(self._random.random() * 2 * about_ms / 1000)
