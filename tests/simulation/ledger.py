"""The judge. It knows every batch that was ever handed to the engine, what the engine said of it, and what any reader has seen.

A batch is recognised by its own bytes (all but the sixteen that the log fills in), so nothing the engine says about itself is
believed. The rules, for every life of the process:

- what was acknowledged, or was ever seen by a reader, is there: same bytes, same offset, same commit sequence;
- what nobody published is not there, nor what was refused, nor what an earlier recovery had left out;
- an append whose outcome is unknown is there whole or not at all, all batches of the call together;
- offsets are dense, sequences grow, within a partition and over a topic;
- the exception is a range that the node itself reports as damaged, and only in worlds where bits were flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from broker.engine.base import Append, Appended, Damage, PartitionOffsets, Stored, Topic

Outcome = Literal["in flight", "acknowledged", "unknown", "refused", "absent"]
Place = tuple[bytes, int]
"""Topic id and partition."""


class Broken(AssertionError):
    """A promise was broken."""


@dataclass(slots=True, eq=False)
class Batch:
    """One published batch: the judge's own copy of the facts."""

    call: Call
    topic: str
    topic_id: bytes
    partition: int
    fingerprint: bytes
    keys: tuple[bytes | None, ...]
    timestamps: tuple[int, ...]
    base_offset: int = -1
    sequence: int = -1
    seen: bool = False

    @property
    def place(self) -> Place:
        return self.topic_id, self.partition

    @property
    def next_offset(self) -> int:
        return self.base_offset + len(self.keys)

    def __repr__(self) -> str:
        where = f"{self.topic}/{self.partition} at {self.base_offset}+{len(self.keys)} sequence {self.sequence}"
        return f"{where} ({self.call.outcome}{', seen' if self.seen else ''})"


@dataclass(slots=True, eq=False)
class Call:
    """One `append`."""

    outcome: Outcome = "in flight"
    batches: list[Batch] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class TopicFacts:
    """A topic that was created, or whose creation or deletion was under way when the power failed."""

    name: str
    topic_id: bytes | None
    partitions: set[int]
    existence: Literal["sure", "maybe", "gone"]


def fingerprint(batch: bytes) -> bytes:
    """All that the log must not change: not the base offset and the leader epoch, which lie outside Kafka's checksum."""
    return batch[16:]


@dataclass(slots=True, eq=False)
class Follower:
    """A live reader of a topic in commit order: it has been given everything in [from_sequence, to_sequence)."""

    topic_id: bytes
    from_sequence: int
    to_sequence: int
    seen: set[int] = field(default_factory=set)


class Ledger:
    def __init__(self, on_broken: Callable[[Broken], None]) -> None:
        self._on_broken = on_broken
        self._known: dict[bytes, Batch] = {}
        self._open_calls: list[Call] = []
        self._logs: dict[Place, dict[int, Batch]] = {}
        self._sequences: dict[int, Batch] = {}
        self._followers: list[Follower] = []
        self.topics: dict[str, TopicFacts] = {}
        self.acknowledged = 0
        self.seen = 0

    def broken(self, what: str) -> NoReturn:
        broken = Broken(what)
        self._on_broken(broken)
        raise broken

    # Topics

    def creating(self, name: str, partitions: int) -> TopicFacts:
        facts = self.topics[name] = TopicFacts(name, None, {partitions}, "maybe")
        return facts

    def created(self, facts: TopicFacts, topic: Topic) -> None:
        facts.topic_id, facts.existence = topic.topic_id, "sure"

    def growing(self, name: str, partitions: int) -> None:
        self.topics[name].partitions.add(partitions)

    def grown(self, name: str, partitions: int) -> None:
        self.topics[name].partitions = {partitions}

    def deleting(self, name: str) -> None:
        self.topics[name].existence = "maybe"

    def deleted(self, name: str) -> None:
        """Its records are nobody's business any more, and must not come back under the name."""
        facts = self.topics[name]
        facts.existence = "gone"
        for place in [place for place in self._logs if place[0] == facts.topic_id]:
            for batch in self._logs.pop(place).values():
                self._sequences.pop(batch.sequence, None)

    def check_topics(self, topics: Iterable[Topic]) -> None:
        """What a started node lists: every sure topic, no gone one, none invented; what was open is decided by it."""
        listed = {topic.name: topic for topic in topics}
        for name, topic in listed.items():
            facts = self.topics.get(name)
            if facts is None or facts.existence == "gone":
                self.broken(f"topic {name!r} exists, and nobody created it or its deletion was acknowledged")
            if facts.topic_id not in (None, topic.topic_id):
                self.broken(f"topic {name!r} has another id than when it was created")
            if topic.partitions not in facts.partitions:
                self.broken(f"topic {name!r} has {topic.partitions} partitions, not one of {sorted(facts.partitions)}")
            facts.topic_id, facts.existence, facts.partitions = topic.topic_id, "sure", {topic.partitions}
        for name, facts in self.topics.items():
            if name not in listed and facts.existence == "sure":
                self.broken(f"topic {name!r} was created and is gone")
            if name not in listed and facts.existence == "maybe":
                self.deleted(name)

    # Appends

    def publishing(self, topic_ids: dict[str, bytes], appends: Sequence[Append], records: Sequence[Records]) -> Call:
        """An `append` is about to be called."""
        call = Call()
        for append, (keys, timestamps) in zip(appends, records, strict=True):
            batch = Batch(
                call, append.topic, topic_ids[append.topic], append.partition, fingerprint(append.batch), keys, timestamps
            )
            if batch.fingerprint in self._known:
                raise ValueError("every batch of a workload has bytes of its own")
            self._known[batch.fingerprint] = batch
            call.batches.append(batch)
        self._open_calls.append(call)
        return call

    def acknowledge(self, call: Call, answers: Sequence[Appended]) -> None:
        if [(batch.topic, batch.partition, len(batch.keys)) for batch in call.batches] != [
            (answer.topic, answer.partition, answer.count) for answer in answers
        ]:
            self.broken(f"the acknowledgement {answers} is not for {call.batches}")
        call.outcome = "acknowledged"
        self._open_calls.remove(call)
        for batch, answer in zip(call.batches, answers, strict=True):
            self._place(batch, answer.base_offset, answer.sequence)
        self.acknowledged += len(answers)

    def assigned(self, call: Call) -> None:
        """`append` with durable=False returned: nothing is promised."""
        call.outcome = "unknown"

    def unknown(self, call: Call) -> None:
        call.outcome = "unknown"

    def refuse(self, call: Call) -> None:
        """The engine said no: it must never be seen."""
        call.outcome = "refused"
        self._open_calls.remove(call)

    # Readers

    def saw(self, topic: Topic, stored: Stored) -> Batch:
        """A reader was given a batch: from now on it may not vanish."""
        where = f"{topic.name}/{stored.partition}"
        batch = self._known.get(fingerprint(stored.batch))
        if batch is None:
            self.broken(f"{where} at {stored.base_offset}: a batch that nobody published, or altered")
        if batch.call.outcome in ("refused", "absent"):
            self.broken(f"read a batch that was {batch.call.outcome}: {batch}")
        if batch.place != (topic.topic_id, stored.partition):
            self.broken(f"read from {where} what was published elsewhere: {batch}")
        if int.from_bytes(stored.batch[:8], "big") != stored.base_offset:
            self.broken(f"the base offset inside the batch is not {stored.base_offset}: {batch}")
        if stored.next_offset - stored.base_offset != len(batch.keys):
            self.broken(f"next offset {stored.next_offset} of {batch}")
        if stored.max_timestamp_ms != max(batch.timestamps):
            self.broken(f"max timestamp {stored.max_timestamp_ms} of {batch}")
        self._place(batch, stored.base_offset, stored.sequence)
        if not batch.seen:
            batch.seen = True
            self.seen += 1
        return batch

    def follow(self, topic: Topic, from_sequence: int) -> Follower:
        follower = Follower(topic.topic_id, from_sequence, from_sequence)
        self._followers.append(follower)
        return follower

    def check_followers(self, missing: Iterable[Batch]) -> None:
        """Whoever has seen a sequence has seen all of the topic below it: nothing may become visible behind a reader.

        `missing` lies in reported damage: there was nothing to be seen.
        """
        damaged = {batch.sequence for batch in missing}
        for follower in self._followers:
            for sequence in range(follower.from_sequence, follower.to_sequence):
                batch = self._sequences.get(sequence)
                if sequence in follower.seen or sequence in damaged:
                    continue
                if batch is not None and batch.topic_id == follower.topic_id:
                    self.broken(f"a reader that had got to sequence {follower.to_sequence} never got {batch}")
        self._followers.clear()

    def _place(self, batch: Batch, base_offset: int, sequence: int) -> None:
        if batch.base_offset < 0:
            self._place_first(batch, base_offset, sequence)
        elif (batch.base_offset, batch.sequence) != (base_offset, sequence):
            self.broken(f"now at {base_offset}, sequence {sequence}: {batch}")

    def _place_first(self, batch: Batch, base_offset: int, sequence: int) -> None:
        log = self._logs.setdefault(batch.place, {})
        batch.base_offset, batch.sequence = base_offset, sequence
        for other in (log.get(base_offset), self._sequences.get(sequence)):
            if other is not None:
                self.broken(f"two batches in one place: {other} and {batch}")
        log[base_offset] = batch
        self._sequences[sequence] = batch

    # After a start: everything there is, against everything there has to be

    def log(self, topic_id: bytes, partition: int) -> list[Batch]:
        """All batches of a partition that have to be there, by offset."""
        return [batch for _, batch in sorted(self._logs.get((topic_id, partition), {}).items())]

    def check_partition(
        self, topic: Topic, offsets: PartitionOffsets, found: Sequence[Batch], damage: Sequence[Damage]
    ) -> list[Batch]:
        """`found` is a partition read from its start, in order. Returns what is missing, all of it inside reported damage."""
        partition, high_watermark = offsets.partition, offsets.high_watermark
        ranges = [(d.from_offset, d.to_offset) for d in damage if d.topic == topic.name and d.partition == partition]
        offset = 0
        for batch in found:
            if batch.base_offset < offset:
                self.broken(f"offsets overlap or go back at {offset}: {batch}")
            if not _covered(offset, batch.base_offset, ranges):
                self.broken(f"a hole from {offset} to {batch.base_offset} in {topic.name}/{partition} that no damage explains")
            offset = batch.next_offset
        if offset > high_watermark or not _covered(offset, high_watermark, ranges):
            self.broken(f"{topic.name}/{partition} ends at {offset}, its high watermark is {high_watermark}")
        sequences = [batch.sequence for batch in found]
        if sequences != sorted(set(sequences)):
            self.broken(f"sequences of {topic.name}/{partition} do not grow with its offsets: {sequences}")
        here = set(found)
        missing = [batch for batch in self.log(topic.topic_id, partition) if batch not in here]
        for batch in missing:
            if not _covered(batch.base_offset, batch.next_offset, ranges):
                self.broken(f"lost: {batch}; reported damage {ranges}")
        return missing

    def settle(self, damaged: set[Place]) -> None:
        """After a start was read back: every open outcome is decided now. What is not there stays away for good.

        A batch without an offset cannot be compared with a range: in a partition with damage it may have been in there.
        """
        for call in self._open_calls:
            there = [batch for batch in call.batches if batch.seen]
            if not there:
                call.outcome = "absent"
                continue
            call.outcome = "acknowledged"
            for batch in call.batches:
                if batch not in there and batch.place not in damaged and not self._deleted(batch):
                    self.broken(f"half of an append: {there[0]} is there, {batch} is not")
        self._open_calls.clear()

    def excuse(self, from_sequence: int) -> list[Batch]:
        """The newest group was damaged on the media before anything confirmed it: the node may cut it, and says so."""
        lost = [batch for sequence, batch in self._sequences.items() if sequence >= from_sequence]
        for batch in lost:
            del self._sequences[batch.sequence]
            del self._logs[batch.place][batch.base_offset]
            batch.base_offset = batch.sequence = -1
            batch.seen = False
            batch.call.outcome = "unknown"
            if batch.call not in self._open_calls:
                self._open_calls.append(batch.call)
        return lost

    def _deleted(self, batch: Batch) -> bool:
        facts = self.topics.get(batch.topic)
        return facts is None or facts.existence == "gone" or facts.topic_id != batch.topic_id


Records = tuple[tuple[bytes | None, ...], tuple[int, ...]]
"""Keys and timestamps of a batch's records, in order."""


def _covered(start: int, end: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether every offset of [start, end) lies in one of the ranges."""
    for low, high in sorted(ranges):
        if low <= start < high:
            start = high
    return start >= end
