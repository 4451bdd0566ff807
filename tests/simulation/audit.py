"""Reading everything back from a started node, by every read path there is, for the judge (`ledger.py`)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from broker.engine.base import Damage, Engine, PartitionOffsets, Topic
from tests.simulation.ledger import Batch, Ledger, Place

KEYS_SAMPLED = 2
TIMES_SAMPLED = 2
PAGE_BYTES = (1, 8_192, 65_536, 1 << 20)


@dataclass
class Found:
    """What one reading-back found."""

    batches: int = 0
    missing: list[Batch] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)


class Audit:
    """One reading-back. `damage_allowed` is False in a world where no bit was ever flipped."""

    def __init__(self, engine: Engine, ledger: Ledger, random: random.Random, *, damage_allowed: bool) -> None:
        self._engine = engine
        self._ledger = ledger
        self._random = random
        self._damage_allowed = damage_allowed
        self._found = Found()
        self._told: list[Damage] = []

    async def run(self) -> Found:
        """Raises Broken. Nothing else may use the engine meanwhile."""
        self._ledger.check_topics(self._engine.topics().values())
        logs: list[tuple[Topic, PartitionOffsets, list[Batch]]] = []
        for topic in list(self._engine.topics().values()):
            of_topic = [(topic, offsets, await self._read(topic, offsets)) for offsets in self._engine.offsets(topic.name)]
            await self._read_in_commit_order(topic, [batch for _, _, log in of_topic for batch in log])
            logs += of_topic
        self._check_damage()
        for topic, offsets, log in logs:
            self._found.batches += len(log)
            self._found.missing += self._ledger.check_partition(topic, offsets, log, self._found.damage)
        self._ledger.settle(self._damaged())
        self._ledger.check_followers(self._found.missing)
        for topic, offsets, log in logs:
            await self._ask(topic, offsets.partition, log)
        return self._found

    def _damaged(self) -> set[Place]:
        topics = self._engine.topics()
        return {(topics[damage.topic].topic_id, damage.partition) for damage in self._found.damage}

    async def _read(self, topic: Topic, offsets: PartitionOffsets) -> list[Batch]:
        """A partition from its log start to its high watermark, by `fetch`."""
        log: list[Batch] = []
        offset, bytes_max = offsets.log_start, self._random.choice(PAGE_BYTES)
        while offset < offsets.high_watermark:
            fetched = await self._engine.fetch(topic.name, offsets.partition, offset, bytes_max=bytes_max)
            log += [self._ledger.saw(topic, stored) for stored in fetched.batches]
            self._told += fetched.damage
            if fetched.next_offset <= offset:
                self._ledger.broken(f"fetch of {topic.name}/{offsets.partition} at {offset} goes on at {fetched.next_offset}")
            if (fetched.high_watermark, fetched.log_start) != (offsets.high_watermark, offsets.log_start):
                self._ledger.broken(f"fetch of {topic.name}/{offsets.partition} tells other offsets than {offsets}")
            offset = fetched.next_offset
        return log

    async def _read_in_commit_order(self, topic: Topic, expected: list[Batch]) -> None:
        """A topic from its first sequence on, by `tail`: the same batches, in the order of their sequences."""
        read: list[Batch] = []
        sequence, bytes_max = 0, self._random.choice(PAGE_BYTES)
        while sequence < self._engine.next_sequence():
            tail = await self._engine.tail(topic.name, sequence, bytes_max=bytes_max)
            read += [self._ledger.saw(topic, stored) for stored in tail.batches]
            self._told += tail.damage
            if tail.next_sequence <= sequence:
                self._ledger.broken(f"tail of {topic.name} at {sequence} goes on at {tail.next_sequence}")
            sequence = tail.next_sequence
        expected.sort(key=lambda batch: batch.sequence)
        if read != expected:
            one_sided = set(read) ^ set(expected)
            self._ledger.broken(f"tail and fetch of {topic.name} differ: {sorted(map(repr, one_sided)) or 'in their order'}")

    def _check_damage(self) -> None:
        """Damage met while reading must be on the node's list, and only flipped bits may cause any."""
        self._found.damage = self._engine.damage()
        if self._found.damage and not self._damage_allowed:
            self._ledger.broken(f"damage is reported, and not one bit was flipped: {self._found.damage}")
        for told in self._told:
            if not any(_same_place(told, d) and d.from_offset <= told.from_offset for d in self._found.damage):
                self._ledger.broken(f"a reader was told of {told}, damage() does not list it: {self._found.damage}")

    async def _ask(self, topic: Topic, partition: int, log: list[Batch]) -> None:
        keys = sorted({key for batch in log for key in batch.keys if key is not None})
        for key in [*self._random.sample(keys, min(KEYS_SAMPLED, len(keys))), b"never published"]:
            await self._ask_for_key(topic, partition, log, key)
        times = [time for batch in log for time in batch.timestamps] or [0]
        for time in [self._random.choice(times) + self._random.choice((0, 1)) for _ in range(TIMES_SAMPLED)] + [max(times) + 1]:
            await self._ask_for_time(topic, partition, log, time)

    async def _ask_for_key(self, topic: Topic, partition: int, log: list[Batch], key: bytes) -> None:
        latest = await self._engine.find_latest(topic.name, partition, key)
        expected = next((batch for batch in reversed(log) if key in batch.keys), None)
        found = None if latest is None else self._ledger.saw(topic, latest)
        if found is not expected:
            self._ledger.broken(f"the latest batch of {topic.name}/{partition} with key {key!r} is {expected}, not {found}")
        with_key: list[Batch] = []
        sequence = 0
        while sequence < self._engine.next_sequence():
            tail = await self._engine.tail(topic.name, sequence, bytes_max=PAGE_BYTES[-1], partitions=[partition], key=key)
            with_key += [self._ledger.saw(topic, stored) for stored in tail.batches]
            sequence = tail.next_sequence
        missed = [batch for batch in log if key in batch.keys and batch not in with_key]
        if missed:
            self._ledger.broken(f"tail of {topic.name}/{partition} by key {key!r} leaves out {missed}")

    async def _ask_for_time(self, topic: Topic, partition: int, log: list[Batch], time_ms: int) -> None:
        answer = await self._engine.offset_for_time(topic.name, partition, time_ms)
        records = ((batch.base_offset + at, t) for batch in log for at, t in enumerate(batch.timestamps))
        expected = next(((offset, t) for offset, t in records if t >= time_ms), (-1, -1))
        if (answer.offset, answer.timestamp_ms) != expected:
            self._ledger.broken(f"the first record of {topic.name}/{partition} from {time_ms} on is {expected}, not {answer}")
        newest = await self._engine.offset_of_max_timestamp(topic.name, partition)
        newest_ms = max((t for batch in log for t in batch.timestamps), default=-1)
        if newest.timestamp_ms != newest_ms:
            self._ledger.broken(f"the newest record of {topic.name}/{partition} is of {newest_ms}, not {newest}")
        sequence = await self._engine.sequence_for_time(topic.name, time_ms)
        early = [batch for batch in log if max(batch.timestamps) >= time_ms and batch.sequence < sequence]
        if early:
            self._ledger.broken(f"sequence {sequence} for time {time_ms} of {topic.name} leaves out {early}")


def _same_place(one: Damage, other: Damage) -> bool:
    return (one.topic, one.partition) == (other.topic, other.partition)
