"""Records that a consumer could not or would not process, in a topic of their own, each with why and where it came from.

A dead letter is the record itself (key, value, headers, message id) with headers that say what happened:

    sprawl-dlq-reason       rejected | deliveries-exhausted
    sprawl-dlq-detail       what the consumer said, where it said something
    sprawl-dlq-topic, -partition, -offset, -timestamp       where the record stands in the log
    sprawl-dlq-attempts     deliveries, those before a replay included
    sprawl-dlq-consumer, -owner                             who gave up
    sprawl-dlq-value        only where the letter has no room for the value, which then stays where the record stands

Its timestamp is when it was given up, so retention of the dead-letter topic counts from then; and it never expires on its own.

A dead letter that a consumer of the dead-letter topic gives up as well stays where it is: it is in the log already, and a
consumer of everything would otherwise feed itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from broker.batch import Draft, build
from broker.engine.base import Append, Topic
from broker.record import EXPIRES_AT_HEADER, Record
from broker.topics.configs import DEAD_LETTER_TOPIC, batch_bytes_max, edge_compression

SUFFIX = ".dlq"
TOPIC_CHARS_MAX = 249
PREFIX = "sprawl-dlq-"
VALUE_LEFT_OUT_HEADER = PREFIX + "value"

# Attempts that a replayed record had already: written by a replay, counted on when the record is given up again.
ATTEMPTS_HEADER = "sprawl-attempts"
REPLAYED_FROM_HEADER = "sprawl-replayed-from"

# Headers of ours that say something of one stay in the log, not of the record.
_NOT_CARRIED = (PREFIX, EXPIRES_AT_HEADER, ATTEMPTS_HEADER, REPLAYED_FROM_HEADER)

# What the headers above may add to a record; a dead-letter topic that we make takes that much more in a batch.
HEADERS_BYTES_MAX = 4_096
BATCH_BYTES_MAX = 16 * 1024 * 1024
NUMBER_DIGITS_MAX = 19


class Reason(StrEnum):
    REJECTED = "rejected"
    EXHAUSTED = "deliveries-exhausted"


class Death(msgspec.Struct, frozen=True, gc=False):
    """What is said of a record that is given up."""

    topic: str
    partition: int
    reason: Reason
    detail: str
    attempts: int
    consumer: str
    owner: str


class Letter(msgspec.Struct, frozen=True, gc=False):
    """What the headers of a dead letter say."""

    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    attempts: int
    consumer: str
    owner: str


def dead_letter_topic(topic: Topic, asked: str | None = None) -> str:
    """Where dead letters of a topic go: where the consumer asks, else by the topic's config, else `<topic>.dlq`."""
    if asked is not None:
        return asked
    return topic.configs.get(DEAD_LETTER_TOPIC) or topic.name[: TOPIC_CHARS_MAX - len(SUFFIX)] + SUFFIX


def configs_of_new(topic: Topic) -> dict[str, str]:
    """For a dead-letter topic that does not exist: room for the largest batch of the topic, and its headers."""
    return {"max.message.bytes": str(min(batch_bytes_max(topic.configs) + HEADERS_BYTES_MAX, BATCH_BYTES_MAX))}


def is_dead_letter(record: Record) -> bool:
    return any(name == PREFIX + "topic" for name, _ in record.headers)


def draft_of(record: Record, death: Death, now_ms: int) -> Draft:
    """The dead letter. Its message id is the record's: it is the same message."""
    attempts = death.attempts + earlier_attempts(record)
    said = {
        "reason": death.reason.value,
        "detail": death.detail,
        "topic": death.topic,
        "partition": str(death.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp_ms),
        "attempts": str(attempts),
        "consumer": death.consumer,
        "owner": death.owner,
    }
    added = [((PREFIX + name).encode(), text.encode()) for name, text in said.items() if text]
    return now_ms, record.key, record.value, (*own_headers(record), *added)


def own_headers(record: Record) -> list[tuple[bytes, bytes | None]]:
    """The record's headers, its message id included, without what was said of an earlier stay in the log."""
    return [(name.encode(), content) for name, content in record.headers if not name.startswith(_NOT_CARRIED)]


def is_whole(record: Record) -> bool:
    """Whether the letter has the record's value, and not only a word about it."""
    return all(name != VALUE_LEFT_OUT_HEADER for name, _ in record.headers)


def earlier_attempts(record: Record) -> int:
    return _number(_texts(record).get(ATTEMPTS_HEADER, ""))


def read_letter(record: Record) -> Letter | None:
    """None where the record is no dead letter. What is missing or no number reads as empty or 0: anybody who may publish by
    another protocol may have written it."""
    texts = _texts(record)
    if PREFIX + "topic" not in texts:
        return None
    words = {name: texts.get(PREFIX + name, "") for name in ("reason", "detail", "topic", "consumer", "owner")}
    numbers = {name: _number(texts.get(PREFIX + name, "")) for name in ("partition", "offset", "attempts")}
    return Letter(timestamp_ms=_number(texts.get(PREFIX + "timestamp", "")), **words, **numbers)  # type: ignore[arg-type]


def appends_of(topic: Topic, letters: Sequence[tuple[int, Draft]]) -> list[Append]:
    """Batches for the dead-letter topic; each letter comes with the partition it had, and keeps its order within it."""
    by_partition: dict[int, list[Draft]] = {}
    for partition, draft in letters:
        by_partition.setdefault(partition % topic.partitions, []).append(draft)
    return [append for partition, drafts in by_partition.items() for append in _batches(topic, partition, drafts)]


def _batches(topic: Topic, partition: int, drafts: list[Draft]) -> list[Append]:
    """One, or as many as the topic's bound asks for. A letter that is too large even alone leaves its value in the log."""
    batch = build(drafts, compression=edge_compression(topic.configs))
    if len(batch) > batch_bytes_max(topic.configs):
        if len(drafts) > 1:
            middle = len(drafts) // 2
            return _batches(topic, partition, drafts[:middle]) + _batches(topic, partition, drafts[middle:])
        if drafts[0][2] is not None:
            return _batches(topic, partition, [_without_value(drafts[0])])
    return [Append(topic.name, partition, batch, keys=list({draft[1] for draft in drafts}))]


def _without_value(draft: Draft) -> Draft:
    timestamp_ms, key, value, headers = draft
    note = b"left out: %d bytes are too many for this topic" % len(value or b"")
    return timestamp_ms, key, None, (*headers, (VALUE_LEFT_OUT_HEADER.encode(), note))


def _texts(record: Record) -> Mapping[str, str]:
    """The first header of each name of ours."""
    texts: dict[str, str] = {}
    for name, content in record.headers:
        if name.startswith("sprawl-") and content is not None:
            texts.setdefault(name, content.decode("utf-8", "replace"))
    return texts


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX else 0
