"""/v1/topics: list, create, describe, alter, delete."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated

import msgspec

from broker import errors as broker
from broker.engine.base import Topic
from broker.topics.configs import RULES
from gateway.endpoints.documents import DOCUMENT_REFUSALS, answer_document, answer_nothing, document_body, read_document
from gateway.endpoints.exchange import Exchange
from gateway.endpoints.operations import Answer, Body, Operation, Schema
from gateway.endpoints.parameters import TOPIC, TOPIC_NAME, nullable
from gateway.errors import PartitionNotThere
from gateway.pipeline import Pipeline

OFFSET_MAX = (1 << 63) - 1


class NewTopic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`partitions` left out: topics.partitions_default."""

    name: str
    partitions: int | None = None
    configs: dict[str, str] = {}


class TopicChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays; a config of null goes back to its default."""

    partitions: int | None = None
    configs: dict[str, str | None] = {}


class PartitionAnswer(msgspec.Struct, frozen=True):
    """The partition holds offsets [log_start, high_watermark)."""

    partition: int
    log_start: int
    high_watermark: int


class TopicAnswer(msgspec.Struct, frozen=True):
    """`partitions` is their number."""

    name: str
    id: str
    partitions: int
    configs: Mapping[str, str]
    created_at_ms: int


class KeyCopyAnswer(msgspec.Struct, frozen=True):
    """A key backup, by the id that `sprawl keys backups` lists; `unknown` where the list cannot be read."""

    id: str
    expires_at_ms: int


class TopicDeleted(msgspec.Struct, frozen=True):
    """`key_backups` still hold the topic's key: copies of its files open with them."""

    deleted: str
    key_backups: list[KeyCopyAnswer]


class RecordsGone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which records of a partition are to be deleted: those below an offset, or all there are."""

    partition: Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)]
    before_offset: Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)] | None = None


class LogStartAnswer(msgspec.Struct, frozen=True):
    """Where the partition begins now."""

    partition: int
    log_start: int


class TopicDescription(msgspec.Struct, frozen=True):
    """A topic with its partitions."""

    name: str
    id: str
    partitions: list[PartitionAnswer]
    configs: Mapping[str, str]
    created_at_ms: int


class Topics(msgspec.Struct, frozen=True):
    topics: list[TopicAnswer]


def _refined(kind: type, *, name: bool, unset: bool) -> Body:
    """What a document about a topic may hold, as the broker checks it; the node bounds the partitions (log.partitions_max)."""
    values = {}
    for rule in RULES.values():
        value: Schema = {"type": "string", "pattern": rule.check.pattern}
        values[rule.name] = {**(nullable(value) if unset else value), "description": rule.doc}
    members: dict[str, Schema] = {
        "partitions": nullable({"type": "integer", "minimum": 1}),
        "configs": {"properties": values, "additionalProperties": False},
    }
    if name:
        members["name"] = TOPIC_NAME
    return document_body(kind, {"properties": members})


class TopicRoutes:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def operations(self) -> list[Operation]:
        one = "/v1/topics/{topic}"
        json = "application/json"
        document = (*DOCUMENT_REFUSALS, broker.IllegalTopicName, broker.InvalidConfig)
        unknown = (broker.UnknownTopic, broker.IllegalTopicName)
        made = Answer("The topic", {json: TopicAnswer}, {"Location": "its path"})
        return [
            Operation(
                "GET",
                "/v1/topics",
                self.list,
                "list_topics",
                "The topics that one may see",
                {200: Answer("By name", {json: Topics})},
                tag="topics",
            ),
            Operation(
                "POST",
                "/v1/topics",
                self.create,
                "create_topic",
                "Make a topic",
                {201: made},
                tag="topics",
                body=_refined(NewTopic, name=True, unset=False),
                refusals=(*document, broker.TopicExists),
            ),
            Operation(
                "GET",
                one,
                self.describe,
                "describe_topic",
                "One topic and its partitions",
                {200: Answer("The topic", {json: TopicDescription})},
                tag="topics",
                parameters=(TOPIC,),
                refusals=unknown,
            ),
            Operation(
                "PATCH",
                one,
                self.alter,
                "alter_topic",
                "Change a topic: more partitions, other configs",
                {200: Answer("The topic", {json: TopicAnswer})},
                tag="topics",
                parameters=(TOPIC,),
                body=_refined(TopicChange, name=False, unset=True),
                refusals=(*document, *unknown),
            ),
            Operation(
                "DELETE",
                one,
                self.delete,
                "delete_topic",
                "Delete a topic and its records for good",
                {
                    200: Answer("It is gone, and key backups still hold its key: destroy them too", {json: TopicDeleted}),
                    204: Answer("It is gone"),
                },
                tag="topics",
                parameters=(TOPIC,),
                refusals=unknown,
            ),
            Operation(
                "POST",
                f"{one}/delete-records",
                self.delete_records,
                "delete_records",
                "Delete the oldest records of a partition for good",
                {200: Answer("Where the partition begins now", {json: LogStartAnswer})},
                tag="topics",
                parameters=(TOPIC,),
                body=document_body(RecordsGone),
                refusals=(*DOCUMENT_REFUSALS, *unknown, PartitionNotThere, broker.OffsetOutOfRange),
            ),
        ]

    async def delete_records(self, exchange: Exchange, name: str) -> None:
        gone = await read_document(exchange, RecordsGone)
        before = -1 if gone.before_offset is None else gone.before_offset
        try:
            log_start = await self._pipeline.delete_records(exchange.session, name, gone.partition, before)
        except broker.UnknownPartition as error:
            raise PartitionNotThere(error.topic, error.partition, error.partitions) from None
        await answer_document(exchange, 200, LogStartAnswer(gone.partition, log_start))

    async def list(self, exchange: Exchange) -> None:
        topics = self._pipeline.list_topics(exchange.session)
        await answer_document(exchange, 200, Topics([_topic(topic) for topic in topics]))

    async def create(self, exchange: Exchange) -> None:
        new = await read_document(exchange, NewTopic)
        topic = await self._pipeline.create_topic(exchange.session, new.name, new.partitions, new.configs)
        await answer_document(exchange, 201, _topic(topic), [(b"location", f"/v1/topics/{topic.name}".encode("ascii"))])

    async def describe(self, exchange: Exchange, name: str) -> None:
        topic, offsets = self._pipeline.describe_topic(exchange.session, name)
        found = [PartitionAnswer(one.partition, one.log_start, one.high_watermark) for one in offsets]
        known = _topic(topic)
        await answer_document(exchange, 200, TopicDescription(known.name, known.id, found, known.configs, known.created_at_ms))

    async def alter(self, exchange: Exchange, name: str) -> None:
        change = await read_document(exchange, TopicChange)
        topic = await self._pipeline.alter_topic(exchange.session, name, change.partitions, change.configs)
        await answer_document(exchange, 200, _topic(topic))

    async def delete(self, exchange: Exchange, name: str) -> None:
        kept = await self._pipeline.delete_topic(exchange.session, name)
        if kept:
            copies = [KeyCopyAnswer(copy.backup, copy.expires_at_ms) for copy in kept]
            await answer_document(exchange, 200, TopicDeleted(name, copies))
        else:
            await answer_nothing(exchange)


def _topic(topic: Topic) -> TopicAnswer:
    return TopicAnswer(topic.name, str(uuid.UUID(bytes=topic.topic_id)), topic.partitions, topic.configs, topic.created_at_ms)
