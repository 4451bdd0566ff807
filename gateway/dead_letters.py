"""What can be done with dead letters: find their topics, read them, publish them again where they came from, let them go.

Each is made of the pipeline's steps, so a dead-letter topic is guarded as any other: to read letters needs *read* there, to
replay them *publish* where they came from as well, to purge them *delete*.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from broker.broker import Outgoing
from broker.delivery.dead_letter import (
    ATTEMPTS_HEADER,
    REPLAYED_FROM_HEADER,
    SUFFIX,
    Letter,
    dead_letter_topic,
    is_whole,
    own_headers,
    read_letter,
)
from broker.delivery.position import Cursor, Position
from broker.delivery.subscription import record_bytes
from broker.engine.base import Damage, PartitionOffsets
from broker.record import MESSAGE_ID_HEADER, Record, valid_message_id
from gateway.errors import BodyTooLarge, NoDeadLetter, NotDeadLetters, RequestInvalid
from gateway.pipeline import Pipeline, Receipt
from security.policy.model import Action, Decision
from security.policy.quotas import Quota
from security.principal import Session

REPLAYS_MAX = 1_000
REPLAY_BYTES_MAX = 8 * 1024 * 1024
_MESSAGE_ID = MESSAGE_ID_HEADER.encode()


class DeadLetterTopic(msgspec.Struct, frozen=True):
    """`letters` counts offsets that are held; `of` the topics whose dead letters go there, as far as one may know of them."""

    topic: str
    of: list[str]
    letters: int


class Found(msgspec.Struct, frozen=True, gc=False):
    """A dead letter where it stands."""

    topic: str
    partition: int
    record: Record
    letter: Letter


class LetterPage(msgspec.Struct, frozen=True):
    """`at_end` false: there may be more from `next_cursor` on."""

    letters: list[Found]
    next_cursor: Cursor
    at_end: bool
    damage: list[Damage]


class Place(msgspec.Struct, frozen=True, order=True, gc=False):
    partition: int
    offset: int


class Replayed(msgspec.Struct, frozen=True, gc=False):
    """The letter, and where its record is now."""

    place: Place
    receipt: Receipt


class DeadLetters:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def topics(self, session: Session) -> list[DeadLetterTopic]:
        """Those that exist and that the session may describe, by name."""
        pipeline = self._pipeline
        pipeline.chain.still_valid(session.principal)
        pipeline.charge(session, Quota.REQUESTS, 1)
        return [
            DeadLetterTopic(
                name, [topic for topic in of if self._describes(session, topic)], _held(pipeline.broker.offsets(name))
            )
            for name, of in sorted(self._known().items())
            if self._describes(session, name)
        ]

    async def page(self, session: Session, topic: str, position: Position, *, letters_max: int, bytes_max: int) -> LetterPage:
        """Letters in the order in which they were given up. What else may be in the topic is passed over."""
        feed = await self._pipeline.subscribe(session, topic, None, position)
        try:
            read = await feed.next(bytes_max=bytes_max, records_max=letters_max, wait_max_ms=0)
            found = [
                Found(topic, one.partition, one.record, letter) for one in read if (letter := read_letter(one.record)) is not None
            ]
            return LetterPage(found, feed.cursor, feed.at_end, feed.take_damage())
        finally:
            feed.close()

    async def one(self, session: Session, topic: str, place: Place) -> Found:
        """NoDeadLetter where there is none, or none that may be seen."""
        self._pipeline.authorise(session, Action.READ, topic)
        self._pipeline.charge(session, Quota.REQUESTS, 1)
        return (await self._read(session, topic, [place]))[0]

    async def replay(self, session: Session, topic: str, places: Sequence[Place]) -> list[Replayed]:
        """Publish the letters' records where they came from: same key, value, headers and id, the attempts so far noted.

        All of one topic are one append. The letters stay: purge them when they are not needed any more. NoDeadLetter, and what
        publishing raises; then those of other topics may be published already, as the order of topics is that of their names.
        """
        self._pipeline.authorise(session, Action.READ, topic)
        letters = await self._read(session, topic, sorted(set(places)))
        by_origin: dict[str, list[Found]] = {}
        for found in letters:
            _check_whole(found)
            by_origin.setdefault(found.letter.topic, []).append(found)
        for origin in by_origin:
            self._pipeline.authorise(session, Action.PUBLISH, origin)
            self._pipeline.broker.topic(origin)
        replayed = []
        for origin, group in sorted(by_origin.items()):
            replayed += await self._publish(session, origin, group)
        return sorted(replayed, key=lambda one: one.place)

    async def purge(
        self, session: Session, topic: str, partition: int | None, before_offset: int | None
    ) -> list[PartitionOffsets]:
        """Let letters below an offset go, all of them where it is None, of one partition or of each; the offsets left.

        NotDeadLetters for a topic that no dead letters go to: nobody shall delete a topic's records by a slip of its name.
        """
        pipeline = self._pipeline
        pipeline.authorise(session, Action.DELETE, topic)
        pipeline.charge(session, Quota.REQUESTS, 1)
        pipeline.broker.topic(topic)
        if topic not in self._known() and not pipeline.broker.consumers.buries_in(topic):
            raise NotDeadLetters(topic)
        wanted = pipeline.broker.offsets(topic) if partition is None else [pipeline.broker.partition_offsets(topic, partition)]
        for offsets in wanted:
            before = offsets.high_watermark if before_offset is None else before_offset
            await pipeline.broker.delete_records(topic, offsets.partition, before)
        pipeline.audit(session, Action.DELETE, f"dead letters of topic {topic}")
        return pipeline.broker.offsets(topic)

    # Parts

    def _known(self) -> Mapping[str, list[str]]:
        """Dead-letter topics that exist, and whose they are: by config, by default, or by their own name alone."""
        topics = self._pipeline.broker.topics()
        known: dict[str, list[str]] = {name: [] for name in topics if name.endswith(SUFFIX)}
        for name, topic in topics.items():
            if (wanted := dead_letter_topic(topic)) in topics:
                known.setdefault(wanted, []).append(name)
        return known

    def _describes(self, session: Session, topic: str) -> bool:
        pipeline = self._pipeline
        return pipeline.policy.decide(session.principal, Action.DESCRIBE, topic, pipeline.clock.now_ms()).form is Decision.ALL

    async def _read(self, session: Session, topic: str, places: Sequence[Place]) -> list[Found]:
        """The letters at these places, which are in order. Authorised, paced and counted."""
        found: list[Found] = []
        size = 0
        for run in _runs(places):
            records = await self._records(session, topic, run)
            for place in run:
                record = records.get(place.offset)
                letter = None if record is None else read_letter(record)
                if record is None or letter is None:
                    raise NoDeadLetter(topic, place.partition, place.offset)
                size += record_bytes(record)
                if size > REPLAY_BYTES_MAX and found:
                    raise BodyTooLarge("dead_letters.replay_bytes_max", REPLAY_BYTES_MAX)
                found.append(Found(topic, place.partition, record, letter))
        self._pipeline.pace(session, size)
        self._pipeline.deliver(session, len(found), size)
        return found

    async def _records(self, session: Session, topic: str, run: Sequence[Place]) -> dict[int, Record]:
        """By offset: what there is from the first to the last place of a run. BodyTooLarge before more than that is held."""
        records: dict[int, Record] = {}
        size = 0
        partition, offset, last = run[0].partition, run[0].offset, run[-1].offset
        offsets = self._pipeline.broker.partition_offsets(topic, partition)
        if not offsets.log_start <= offset <= last < offsets.high_watermark:
            raise NoDeadLetter(topic, partition, offset if offset < offsets.log_start else last)
        while offset <= last:
            page = await self._pipeline.fetch(session, topic, partition, offset, last - offset + 1, REPLAY_BYTES_MAX, 0)
            records |= {record.offset: record for record in page.records}
            size += sum([record_bytes(record) for record in page.records])
            if size > REPLAY_BYTES_MAX and len(records) > 1:
                raise BodyTooLarge("dead_letters.replay_bytes_max", REPLAY_BYTES_MAX)
            if page.next_offset <= offset:
                break
            offset = page.next_offset
        return records

    async def _publish(self, session: Session, origin: str, letters: Sequence[Found]) -> list[Replayed]:
        """The pipeline's steps. Headers of ours are added after they were refused to everybody else."""
        pipeline = self._pipeline
        decision = pipeline.authorise(session, Action.PUBLISH, origin)
        records = [_outgoing(found) for found in letters]
        size = pipeline.admit(session, records)
        pipeline.validate(session, origin, records, decision)
        for record, found in zip(records, letters, strict=True):
            record.headers = (*record.headers, *_noted(found))
        places = await pipeline.append(session, origin, records, durable=True)
        pipeline.audit(session, Action.PUBLISH, origin)
        pipeline.metrics.bytes_in_total.labels(session.protocol).inc(size)
        receipts = pipeline.acknowledge(session, origin, records, places, durable=True)
        return [
            Replayed(Place(found.partition, found.record.offset), receipt)
            for found, receipt in zip(letters, receipts, strict=True)
        ]


def _check_whole(found: Found) -> None:
    if not is_whole(found.record):
        letter, place = found.letter, f"{found.topic}/{found.partition}/{found.record.offset}"
        raise RequestInvalid(
            f"the dead letter {place} has no room for its record's value, which is at "
            f"{letter.topic}/{letter.partition}/{letter.offset}"
        )


def _held(offsets: Sequence[PartitionOffsets]) -> int:
    return sum(partition.high_watermark - partition.log_start for partition in offsets)


def _runs(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Neighbours are read together."""
    run: list[Place] = []
    for place in places:
        if run and (place.partition, place.offset) != (run[-1].partition, run[-1].offset + 1):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _outgoing(found: Found) -> Outgoing:
    """The record as it was, but for its time, which is now: a record's age is that of its publication."""
    record = found.record
    message_id = record.message_id
    headers = tuple(
        [header for header in own_headers(record) if header[0] != _MESSAGE_ID and not header[0].startswith(b"sprawl-")]
    )
    return Outgoing(
        record.key, record.value, headers, message_id=message_id if message_id and valid_message_id(message_id) else None
    )


def _noted(found: Found) -> tuple[tuple[bytes, bytes], ...]:
    """How often it was delivered before, to be counted on, and where it lay meanwhile."""
    place = f"{found.topic}/{found.partition}/{found.record.offset}"
    return (
        (ATTEMPTS_HEADER.encode(), str(found.letter.attempts).encode()),
        (REPLAYED_FROM_HEADER.encode(), place.encode()),
    )
