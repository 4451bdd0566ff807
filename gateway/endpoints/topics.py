"""/v1/topics: list, create, describe, alter, delete."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from broker.engine.base import Topic
from gateway.endpoints.documents import answer_document, exchange_of, read_document
from gateway.pipeline import Pipeline


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
    """`partitions` is their number; in the answer of describe they are listed."""

    name: str
    id: str
    partitions: int | list[PartitionAnswer]
    configs: Mapping[str, str]
    created_at_ms: int


class TopicRoutes:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def routes(self) -> list[BaseRoute]:
        one = "/v1/topics/{topic}"
        return [
            Route("/v1/topics", self.list, methods=["GET"]),
            Route("/v1/topics", self.create, methods=["POST"]),
            Route(one, self.describe, methods=["GET"]),
            Route(one, self.alter, methods=["PATCH"]),
            Route(one, self.delete, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        topics = self._pipeline.list_topics(exchange_of(request).session)
        return answer_document(200, {"topics": [_topic(topic) for topic in topics]})

    async def create(self, request: Request) -> Response:
        exchange = exchange_of(request)
        new = await read_document(exchange, NewTopic)
        topic = await self._pipeline.create_topic(exchange.session, new.name, new.partitions, new.configs)
        return answer_document(201, _topic(topic), {"location": f"/v1/topics/{topic.name}"})

    async def describe(self, request: Request) -> Response:
        topic, offsets = self._pipeline.describe_topic(exchange_of(request).session, request.path_params["topic"])
        found = [PartitionAnswer(one.partition, one.log_start, one.high_watermark) for one in offsets]
        return answer_document(200, msgspec.structs.replace(_topic(topic), partitions=found))

    async def alter(self, request: Request) -> Response:
        exchange = exchange_of(request)
        change = await read_document(exchange, TopicChange)
        name = request.path_params["topic"]
        topic = await self._pipeline.alter_topic(exchange.session, name, change.partitions, change.configs)
        return answer_document(200, _topic(topic))

    async def delete(self, request: Request) -> Response:
        await self._pipeline.delete_topic(exchange_of(request).session, request.path_params["topic"])
        return Response(status_code=204)


def _topic(topic: Topic) -> TopicAnswer:
    return TopicAnswer(topic.name, str(uuid.UUID(bytes=topic.topic_id)), topic.partitions, topic.configs, topic.created_at_ms)
