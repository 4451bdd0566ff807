"""Reading everything back from a started node, by every read path there is, for the judge (`ledger.py`)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from broker.engine.base import Damage, Engine, PartitionOffsets, Topic
from tests.simulation.ledger import Ledger
from tests.simulation.published import Batch, Place

KEYS_SAMPLED = 2
TIMES_SAMPLED = 2
PAGE_BYTES = (1, 8_192, 65_536, 1 << 20)


Left = list[tuple[Batch, list[tuple[int, bytes | None, int]]]]
"""Batches of a partition, each with what its log start leaves of it."""


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
        self._floors: dict[Place, int] = {}

    async def run(self) -> Found:
        """Raises Broken. Nothing else may use the engine meanwhile."""
        self._ledger.check_topics(self._engine.topics().values())
        logs: list[tuple[Topic, PartitionOffsets, list[Batch]]] = []
        self._begin()
        for topic in list(self._engine.topics().values()):
            of_topic = [(topic, offsets, await self._read(topic, offsets)) for offsets in self._engine.offsets(topic.name)]
            await self._read_in_commit_order(topic, [batch for _, _, log in of_topic for batch in log])
            logs += of_topic
        await self._scan([batch for _, _, log in logs for batch in log])
        self._check_damage()
        for topic, offsets, log in logs:
            self._found.batches += len(log)
            self._found.missing += self._ledger.check_partition(topic, offsets, log, self._found.damage)
        self._ledger.settle(self._damaged())
        self._ledger.starts.settle(self._floors)
        self._ledger.check_followers(self._found.missing)
        for topic, offsets, log in logs:
            await self._ask(topic, offsets, log)
        return self._found

    def _begin(self) -> None:
        """Where the partitions begin now is where they begin for good."""
        starts = {}
        for topic in self._engine.topics().values():
            for offsets in self._engine.offsets(topic.name):
                self._ledger.began(topic, offsets.partition, offsets.log_start)
                starts[topic.topic_id, offsets.partition] = offsets.log_start
        self._floors = starts

    def _damaged(self) -> set[Place]:
        topics = self._engine.topics()
        return {(topics[damage.topic].topic_id, damage.partition) for damage in self._found.damage}

    async def _read(self, topic: Topic, offsets: PartitionOffsets) -> list[Batch]:
        """A partition from its log start to its high watermark, by `fetch`."""
        log: list[Batch] = []
        offset, bytes_max = offsets.log_start, self._random.choice(PAGE_BYTES)
        while offset < offsets.high_watermark:
            fetched = await self._engine.fetch(topic.name, offsets.partition, offset, bytes_max=bytes_max)
            log += [self._ledger.saw(topic, stored, self._floors) for stored in fetched.batches]
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
            read += [self._ledger.saw(topic, stored, self._floors) for stored in tail.batches]
            self._told += tail.damage
            if tail.next_sequence <= sequence:
                self._ledger.broken(f"tail of {topic.name} at {sequence} goes on at {tail.next_sequence}")
            sequence = tail.next_sequence
        expected.sort(key=lambda batch: batch.sequence)
        if read != expected:
            one_sided = set(read) ^ set(expected)
            self._ledger.broken(f"tail and fetch of {topic.name} differ: {sorted(map(repr, one_sided)) or 'in their order'}")

    async def _scan(self, expected: list[Batch]) -> None:
        """All topics at once, by `scan`."""
        topics = self._engine.topics()
        read: list[Batch] = []
        sequence, bytes_max = 0, self._random.choice(PAGE_BYTES)
        while sequence < self._engine.next_sequence():
            scan = await self._engine.scan(sequence, topics=lambda name: True, bytes_max=bytes_max)
            read += [self._ledger.saw(topics[name], stored, self._floors) for name, stored in scan.batches]
            self._told += scan.damage
            if scan.next_sequence <= sequence:
                self._ledger.broken(f"scan at {sequence} goes on at {scan.next_sequence}")
            sequence = scan.next_sequence
        expected.sort(key=lambda batch: batch.sequence)
        if read != expected:
            one_sided = set(read) ^ set(expected)
            self._ledger.broken(f"scan and fetch differ: {sorted(map(repr, one_sided)) or 'in their order'}")

    def _check_damage(self) -> None:
        """Damage met while reading must be on the node's list, and only flipped bits may cause any."""
        self._found.damage = self._engine.damage()
        if self._found.damage and not self._damage_allowed:
            self._ledger.broken(f"damage is reported, and not one bit was flipped: {self._found.damage}")
        for told in self._told:
            if not any(_same_place(told, d) and d.from_offset <= told.from_offset for d in self._found.damage):
                self._ledger.broken(f"a reader was told of {told}, damage() does not list it: {self._found.damage}")

    async def _ask(self, topic: Topic, offsets: PartitionOffsets, log: list[Batch]) -> None:
        left = [(batch, batch.left(offsets.log_start)) for batch in log]
        keys = sorted({key for _, records in left for _, key, _ in records if key is not None})
        for key in [*self._random.sample(keys, min(KEYS_SAMPLED, len(keys))), b"never published"]:
            await self._ask_for_key(topic, offsets.partition, left, key)
        times = [time for _, records in left for _, _, time in records] or [0]
        for time in [self._random.choice(times) + self._random.choice((0, 1)) for _ in range(TIMES_SAMPLED)] + [max(times) + 1]:
            await self._ask_for_time(topic, offsets.partition, left, time)

    async def _ask_for_key(self, topic: Topic, partition: int, left: Left, key: bytes) -> None:
        latest = await self._engine.find_latest(topic.name, partition, key)
        with_it = [batch for batch, records in left if any(of_record == key for _, of_record, _ in records)]
        expected = with_it[-1] if with_it else None
        found = None if latest is None else self._ledger.saw(topic, latest, self._floors)
        if found is not expected:
            self._ledger.broken(f"the latest batch of {topic.name}/{partition} with key {key!r} is {expected}, not {found}")
        with_key: list[Batch] = []
        sequence = 0
        while sequence < self._engine.next_sequence():
            tail = await self._engine.tail(topic.name, sequence, bytes_max=PAGE_BYTES[-1], partitions=[partition], key=key)
            with_key += [self._ledger.saw(topic, stored, self._floors) for stored in tail.batches]
            sequence = tail.next_sequence
        missed = [batch for batch in with_it if batch not in with_key]
        if missed:
            self._ledger.broken(f"tail of {topic.name}/{partition} by key {key!r} leaves out {missed}")

    async def _ask_for_time(self, topic: Topic, partition: int, left: Left, time_ms: int) -> None:
        answer = await self._engine.offset_for_time(topic.name, partition, time_ms)
        records = [(offset, time) for _, of_batch in left for offset, _, time in of_batch]
        expected = next(((offset, t) for offset, t in records if t >= time_ms), (-1, -1))
        if (answer.offset, answer.timestamp_ms) != expected:
            self._ledger.broken(f"the first record of {topic.name}/{partition} from {time_ms} on is {expected}, not {answer}")
        newest = await self._engine.offset_of_max_timestamp(topic.name, partition)
        newest_ms = max((time for _, time in records), default=-1)
        if newest.timestamp_ms != newest_ms:
            self._ledger.broken(f"the newest record of {topic.name}/{partition} is of {newest_ms}, not {newest}")
        sequence = await self._engine.sequence_for_time(topic.name, time_ms)
        early = [b for b, of_batch in left if b.sequence < sequence and any(time >= time_ms for _, _, time in of_batch)]
        if early:
            self._ledger.broken(f"sequence {sequence} for time {time_ms} of {topic.name} leaves out {early}")


def _same_place(one: Damage, other: Damage) -> bool:
    return (one.topic, one.partition) == (other.topic, other.partition)
