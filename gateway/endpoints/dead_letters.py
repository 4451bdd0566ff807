"""Dead letters over HTTP: which topics hold them, what they say, publishing them again, letting them go."""

from __future__ import annotations

from typing import Annotated

import msgspec

from broker import errors as broker
from broker.delivery.position import CursorAhead
from gateway.dead_letters import REPLAYS_MAX, DeadLetters, Found, Place
from gateway.endpoints.documents import answer_document, document_body, read_document
from gateway.endpoints.exchange import Exchange
from gateway.endpoints.operations import Alternatives, Answer, Operation, Parameter
from gateway.endpoints.parameters import OFFSET, PARTITION, PARTITION_NUMBER, TOPIC, number
from gateway.endpoints.query import OFFSET_MAX, PARTITION_MAX, parse_number
from gateway.endpoints.read import TOPIC_START, DamageAnswer
from gateway.endpoints.records_json import RecordAnswer, to_answer
from gateway.endpoints.rest_options import RestOptions
from gateway.endpoints.topics import PartitionAnswer
from gateway.errors import (
    BodyMalformed,
    BodyTooLarge,
    MediaTypeUnsupported,
    NoDeadLetter,
    NotDeadLetters,
    ParameterInvalid,
    RequestInvalid,
)
from gateway.pipeline import Pipeline, Receipt

JSON = "application/json"
LETTERS_DEFAULT = 100

LETTER_OFFSET = Parameter(name="offset", place="path", schema=OFFSET, about="the letter's offset")
PURGED = Alternatives(
    name="purged",
    about="which letters; all of them where nothing is said",
    forms=(
        (
            Parameter(name="partition", schema=PARTITION_NUMBER, about="of this partition"),
            Parameter(name="before_offset", schema=OFFSET, about="only those below this offset"),
        ),
    ),
)


class DeadLetterTopicAnswer(msgspec.Struct, frozen=True):
    """`of` are the topics whose dead letters go there."""

    topic: str
    of: list[str]
    letters: int


class DeadLetterTopics(msgspec.Struct, frozen=True):
    topics: list[DeadLetterTopicAnswer]


class Origin(msgspec.Struct, frozen=True):
    """Where the record stands that was given up; `timestamp` as it was published, in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int


class LetterAnswer(msgspec.Struct, frozen=True):
    """`reason` is `rejected` or `deliveries-exhausted`, `detail` what the consumer said. `record` is the letter itself."""

    reason: str
    detail: str
    attempts: int
    consumer: str
    owner: str
    origin: Origin
    record: RecordAnswer


class LetterPageAnswer(msgspec.Struct, frozen=True):
    """`at_end` false: there may be more from `next_cursor` on."""

    dead_letters: list[LetterAnswer]
    next_cursor: str
    at_end: bool
    damage: list[DamageAnswer]


class LetterPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a letter stands in the dead-letter topic."""

    partition: Annotated[int, msgspec.Meta(ge=0, le=PARTITION_MAX)]
    offset: Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)]


class Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The letters to publish again."""

    letters: Annotated[list[LetterPlace], msgspec.Meta(min_length=1, max_length=REPLAYS_MAX)]


class ReplayedAnswer(msgspec.Struct, frozen=True):
    """The letter at `partition` and `offset` is this record now."""

    partition: int
    offset: int
    record: Receipt


class ReplayAnswer(msgspec.Struct, frozen=True):
    replayed: list[ReplayedAnswer]


class PurgeAnswer(msgspec.Struct, frozen=True):
    """What is left."""

    topic: str
    partitions: list[PartitionAnswer]


class DeadLetterRoutes:
    def __init__(self, pipeline: Pipeline, options: RestOptions) -> None:
        self._dead_letters, self._options = DeadLetters(pipeline), options

    def operations(self) -> list[Operation]:
        of_topic = "/v1/topics/{topic}/dead-letters"
        unknown = (broker.UnknownTopic, broker.IllegalTopicName, broker.UnknownPartition)
        document = (BodyMalformed, BodyTooLarge, MediaTypeUnsupported)
        limit = number(self._options.records_max, 1)
        return [
            Operation(
                "GET",
                "/v1/dead-letters",
                self.topics,
                "list_dead_letter_topics",
                "The topics that hold dead letters, as far as one may know of them",
                {200: Answer("By name", {JSON: DeadLetterTopics})},
                tag="dead letters",
            ),
            Operation(
                "GET",
                of_topic,
                self.list,
                "list_dead_letters",
                "Dead letters in the order in which they were given up",
                {200: Answer("A page", {JSON: LetterPageAnswer})},
                tag="dead letters",
                parameters=(TOPIC, TOPIC_START, Parameter(name="limit", schema=limit, about="letters of the page, at most")),
                refusals=(*unknown, broker.OffsetOutOfRange, CursorAhead),
            ),
            Operation(
                "DELETE",
                of_topic,
                self.purge,
                "purge_dead_letters",
                "Let dead letters go, for good",
                {200: Answer("What is left", {JSON: PurgeAnswer})},
                tag="dead letters",
                parameters=(TOPIC, PURGED),
                refusals=(*unknown, broker.OffsetOutOfRange, NotDeadLetters),
            ),
            Operation(
                "GET",
                of_topic + "/{partition}/{offset}",
                self.show,
                "show_dead_letter",
                "One dead letter",
                {200: Answer("The letter", {JSON: LetterAnswer})},
                tag="dead letters",
                parameters=(TOPIC, PARTITION, LETTER_OFFSET),
                refusals=(*unknown, NoDeadLetter),
            ),
            Operation(
                "POST",
                "/v1/topics/{topic}/dead-letter-replays",
                self.replay,
                "replay_dead_letters",
                "Publish dead letters again where they came from; they stay until they are purged",
                {200: Answer("Where their records are now", {JSON: ReplayAnswer})},
                tag="dead letters",
                parameters=(TOPIC,),
                body=document_body(Replay),
                refusals=(*unknown, *document, NoDeadLetter, RequestInvalid, broker.RecordTooLarge),
            ),
        ]

    async def topics(self, exchange: Exchange) -> None:
        exchange.query().finish()
        found = self._dead_letters.topics(exchange.session)
        answers = [DeadLetterTopicAnswer(one.topic, one.of, one.letters) for one in found]
        await answer_document(exchange, 200, DeadLetterTopics(answers))

    async def list(self, exchange: Exchange, topic: str) -> None:
        query = exchange.query()
        position = query.position("earliest")
        limit = query.number("limit", LETTERS_DEFAULT, self._options.records_max, 1)
        query.finish()
        page = await self._dead_letters.page(
            exchange.session, topic, position, letters_max=limit, bytes_max=self._options.response_bytes_max
        )
        damage = [DamageAnswer(one.partition, one.from_offset, one.to_offset, one.reason) for one in page.damage]
        letters = [_letter(found) for found in page.letters]
        await answer_document(exchange, 200, LetterPageAnswer(letters, str(page.next_cursor), page.at_end, damage))

    async def show(self, exchange: Exchange, topic: str, partition: str, offset: str) -> None:
        exchange.query().finish()
        place = Place(parse_number("partition", partition, PARTITION_MAX), parse_number("offset", offset))
        await answer_document(exchange, 200, _letter(await self._dead_letters.one(exchange.session, topic, place)))

    async def replay(self, exchange: Exchange, topic: str) -> None:
        exchange.query().finish()
        wanted = await read_document(exchange, Replay)
        places = [Place(one.partition, one.offset) for one in wanted.letters]
        replayed = await self._dead_letters.replay(exchange.session, topic, places)
        answers = [ReplayedAnswer(one.place.partition, one.place.offset, one.receipt) for one in replayed]
        await answer_document(exchange, 200, ReplayAnswer(answers))

    async def purge(self, exchange: Exchange, topic: str) -> None:
        query = exchange.query()
        partition, before = query.text("partition"), query.text("before_offset")
        query.finish()
        if (partition is None) != (before is None):
            raise ParameterInvalid("before_offset", "it goes together with partition: offsets count within a partition")
        left = await self._dead_letters.purge(
            exchange.session,
            topic,
            None if partition is None else parse_number("partition", partition, PARTITION_MAX),
            None if before is None else parse_number("before_offset", before),
        )
        partitions = [PartitionAnswer(one.partition, one.log_start, one.high_watermark) for one in left]
        await answer_document(exchange, 200, PurgeAnswer(topic, partitions))


def _letter(found: Found) -> LetterAnswer:
    letter = found.letter
    return LetterAnswer(
        letter.reason,
        letter.detail,
        letter.attempts,
        letter.consumer,
        letter.owner,
        Origin(letter.topic, letter.partition, letter.offset, letter.timestamp_ms),
        to_answer(found.topic, found.partition, found.record),
    )
