"""The judge. It knows every batch that was ever handed to the engine, what the engine said of it, and what any reader has seen.

A batch is recognised by its own bytes (all but the sixteen that the log fills in), so nothing the engine says about itself is
believed. The rules, for every life of the process:

- what was acknowledged, or was ever seen by a reader, is there: same bytes, same offset, same commit sequence;
- what nobody published is not there, nor what was refused, nor what an earlier recovery had left out;
- an append whose outcome is unknown is there whole or not at all, all batches of the call together;
- offsets are dense, sequences grow, within a partition and over a topic;
- what lies below a partition's log start is gone, for every reader that begins afterwards (`starts.py`);
- the exception is a range that the node itself reports as damaged, and only in worlds where bits were flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from broker.engine.base import Append, Appended, Damage, PartitionOffsets, Stored, Topic
from tests.simulation.published import Batch, Call, Place
from tests.simulation.starts import LogStarts, stored_bytes_max


class Broken(AssertionError):
    """A promise was broken."""


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
    """A live reader in commit order: of what it asked for it has been given everything in [from_sequence, to_sequence)."""

    asked: Callable[[Batch], bool]
    from_sequence: int
    to_sequence: int
    seen: set[int] = field(default_factory=set)


class Ledger:
    def __init__(self, on_broken: Callable[[Broken], None], believed_ms: Callable[[], int] = lambda: 0) -> None:
        self._on_broken = on_broken
        self.starts = LogStarts(self.broken, believed_ms)
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
                call,
                append.topic,
                topic_ids[append.topic],
                append.partition,
                fingerprint(append.batch),
                keys,
                timestamps,
                len(append.batch),
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

    def began(self, topic: Topic, partition: int, log_start: int) -> None:
        """The node says where a partition begins."""
        place = topic.topic_id, partition
        in_flight = [b for call in self._open_calls for b in call.batches if b.place == place and b.base_offset < 0]
        self.starts.saw(place, topic.name, log_start, self.log(*place), sum(map(stored_bytes_max, in_flight)))

    def saw(self, topic: Topic, stored: Stored, floors: Mapping[Place, int] | None = None) -> Batch:
        """A reader was given a batch: from now on it may not vanish. `floors`: where partitions began when he asked."""
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
        if max(stored.first_offset, stored.base_offset) < (floors or {}).get(batch.place, 0):
            self.broken(f"read from {stored.first_offset} on, below the log start {(floors or {})[batch.place]}: {batch}")
        self._place(batch, stored.base_offset, stored.sequence)
        if not batch.seen:
            batch.seen = True
            self.seen += 1
        return batch

    def follow(self, topic: Topic, from_sequence: int) -> Follower:
        return self.follow_all(lambda batch: batch.topic_id == topic.topic_id, from_sequence)

    def follow_all(self, asked: Callable[[Batch], bool], from_sequence: int) -> Follower:
        follower = Follower(asked, from_sequence, from_sequence)
        self._followers.append(follower)
        return follower

    def check_followers(self, missing: Iterable[Batch]) -> None:
        """Whoever has seen a sequence has seen all that he asked for below it: nothing may become visible behind a reader.

        `missing` lies in reported damage: there was nothing to be seen.
        """
        damaged = {batch.sequence for batch in missing}
        for follower in self._followers:
            for sequence in range(follower.from_sequence, follower.to_sequence):
                batch = self._sequences.get(sequence)
                if sequence in follower.seen or sequence in damaged:
                    continue
                if batch is not None and batch.next_offset <= self.starts.highest(batch.place):
                    continue
                if batch is not None and follower.asked(batch):
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
        placed = sorted(self._logs.get((topic_id, partition), {}).items())
        return [batch for _, batch in placed if not self.starts.gone(batch)]

    def check_partition(
        self, topic: Topic, offsets: PartitionOffsets, found: Sequence[Batch], damage: Sequence[Damage]
    ) -> list[Batch]:
        """`found` is a partition read from its start, in order. Returns what is missing, all of it inside reported damage.

        What was let go once may be gone although a damaged state has forgotten that it was.
        """
        partition, high_watermark = offsets.partition, offsets.high_watermark
        ranges = [(d.from_offset, d.to_offset) for d in damage if d.topic == topic.name and d.partition == partition]
        offset = offsets.log_start
        ranges.append((offset, self.starts.highest((topic.topic_id, partition))))
        for batch in found:
            if batch.base_offset < offset and (batch is not found[0] or batch.next_offset <= offset):
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
            if not _covered(max(batch.base_offset, offsets.log_start), batch.next_offset, ranges):
                self.broken(f"lost: {batch}; reported damage {ranges}")
        return missing

    def settle(self, damaged: set[Place]) -> None:
        """After a start was read back: every open outcome is decided now. What is not there stays away for good.

        A batch without an offset cannot be compared with a range: in a partition with damage it may have been in there.
        """
        for call in self._open_calls:
            there = [batch for batch in call.batches if batch.seen]
            if not there:
                # Without batches, or with batches that nobody can see any more, the state it set tells (`states.py`).
                told = all(batch.place not in damaged and not self._may_be_gone(batch) for batch in call.batches)
                call.outcome = "absent" if call.batches and told else "unknown"
                continue
            call.outcome = "acknowledged"
            for batch in call.batches:
                batch.gone = batch.gone or (batch not in there and self._may_be_gone(batch))
                if batch not in there and batch.place not in damaged and not self._may_be_gone(batch):
                    self.broken(f"half of an append: {there[0]} is there, {batch} is not")
        self._open_calls.clear()

    def excuse(self, from_sequence: int) -> dict[int, Batch]:
        """Batches from a commit sequence on may be gone: their outcomes are open again. Returns them by their sequence."""
        newest = [(sequence, batch) for sequence, batch in self._sequences.items() if sequence >= from_sequence]
        excused = {sequence: batch for sequence, batch in newest if not self.starts.gone(batch)}
        for batch in excused.values():
            del self._sequences[batch.sequence]
            del self._logs[batch.place][batch.base_offset]
            batch.excused_to = batch.next_offset
            batch.base_offset = batch.sequence = -1
            batch.seen = False
            batch.call.outcome = "unknown"
        known = {id(call) for call in self._open_calls}
        calls = {id(batch.call): batch.call for batch in excused.values()}
        self._open_calls += [call for identity, call in calls.items() if identity not in known]
        return excused

    def _may_be_gone(self, batch: Batch) -> bool:
        """Let go before anybody saw it: with its topic, or below a log start that has moved."""
        return (
            batch.gone
            or self.is_deleted(batch)
            or (self.starts.gone(batch) if batch.base_offset >= 0 else self.starts.moved(batch.place))
        )

    def is_deleted(self, batch: Batch) -> bool:
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
