"""CreateTopics 2-7 (KIP-4, KIP-464 defaults of the broker, KIP-525 configs in the answer, KIP-516 ids), DeleteTopics 1-6
(KIP-516), CreatePartitions 0-3 (KIP-195).

A node is a cluster of one: a replication factor is 1, or -1 for the default, and every replica lies on this node. Items are
answered one by one, in Kafka's order of checks; rights come before existence.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from broker.engine.base import Topic
from broker.errors import IllegalTopicName, UnknownTopic
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.topic_configs import settable, topic_configs
from gateway.endpoints.kafka.turns import in_turns
from gateway.pipeline import TOPIC_CHARS_SHOWN
from gateway.wire.kafka.error_codes import ErrorCode
from security.errors import AccessDenied
from security.policy.model import Action

NO_ID = uuid.UUID(int=0)


async def create_topics(call: Call, request: Any) -> dict[str, Any]:
    asked = Counter(topic.name for topic in request.topics)
    validate_only = getattr(request, "validate_only", False)
    answers = []
    async for topic in in_turns({topic.name: topic for topic in request.topics}.values()):
        try:
            if asked[topic.name] > 1:
                raise Refusal(ErrorCode.INVALID_REQUEST, "the request names this topic more than once")
            answers.append(_created(call, await _create(call, topic, validate_only)))
        except REFUSED as error:
            code, message = told(error)
            answers.append(_topic_answer(topic.name, NO_ID, code, message))
    return {"topics": answers}


async def _create(call: Call, asked: Any, validate_only: bool) -> Topic:
    """Name, existence and configs are looked at before partitions and replicas, as Kafka does."""
    partitions, refusal = _partitions(call, asked)
    configs = settable(asked.name, dict(_given(asked.configs)))
    topic = await call.node.pipeline.create_topic(
        call.session, asked.name, partitions, configs, validate_only=validate_only or refusal is not None
    )
    if refusal is not None:
        raise refusal
    return topic


def _given(configs: Iterable[Any]) -> Iterable[tuple[str, str]]:
    for config in configs:
        if config.value is None:
            raise Refusal(ErrorCode.INVALID_CONFIG, f"config {config.name[:80]!r} has no value; leave it out for its default")
        yield config.name, config.value


def _partitions(call: Call, asked: Any) -> tuple[int | None, Refusal | None]:
    """How many, None for the node's default; or why not so."""
    if asked.assignments:
        if asked.replication_factor != -1:
            return None, Refusal(ErrorCode.INVALID_REQUEST, "with assignments of its replicas, the replication factor is -1")
        if asked.num_partitions != -1:
            return None, Refusal(ErrorCode.INVALID_REQUEST, "with assignments of its replicas, the number of partitions is -1")
        return len(asked.assignments), _assignments(call, asked.assignments)
    reason = f"a replication factor of {asked.replication_factor} is not possible: this is a cluster of one, so it is 1 or -1"
    if asked.replication_factor < 1 and asked.replication_factor != -1:
        return None, Refusal(ErrorCode.INVALID_REPLICATION_FACTOR, reason)
    if asked.num_partitions < 1 and asked.num_partitions != -1:
        return None, Refusal(ErrorCode.INVALID_PARTITIONS, "the number of partitions is at least 1, or -1 for the node's default")
    if asked.replication_factor > 1:
        return None, Refusal(ErrorCode.INVALID_REPLICATION_FACTOR, reason)
    return (None if asked.num_partitions == -1 else asked.num_partitions), None


def _assignments(call: Call, assignments: Sequence[Any]) -> Refusal | None:
    if sorted(one.partition_index for one in assignments) != list(range(len(assignments))):
        reason = "the partitions assigned are 0, 1, 2 and so on, each once"
        return Refusal(ErrorCode.INVALID_REPLICA_ASSIGNMENT, reason)
    return _replicas(call, [one.broker_ids for one in assignments])


def _replicas(call: Call, replicas: Iterable[Sequence[int]]) -> Refusal | None:
    own = call.node.node_id
    if all(tuple(ids) == (own,) for ids in replicas):
        return None
    return Refusal(ErrorCode.INVALID_REPLICA_ASSIGNMENT, f"this is a cluster of one: each partition is on broker {own} alone")


def _created(call: Call, topic: Topic) -> dict[str, Any]:
    """Partitions and configs are told to those who may describe the topic; others get the reason for their absence (KIP-525)."""
    answer = _topic_answer(topic.name, uuid.UUID(bytes=topic.topic_id), 0, None)
    try:
        call.node.pipeline.authorise(call.session, Action.DESCRIBE, topic.name)
    except REFUSED as error:
        return {**answer, "topic_config_error_code": told(error)[0], "configs": None}
    configs = [config.briefly() for config in topic_configs(topic.configs)]
    return {**answer, "num_partitions": topic.partitions, "replication_factor": 1, "configs": configs}


def _topic_answer(name: str, topic_id: uuid.UUID, code: int, message: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "topic_id": topic_id,
        "error_code": code,
        "error_message": message,
        "topic_config_error_code": 0,
        "num_partitions": -1,
        "replication_factor": -1,
        "configs": [],
    }


async def delete_topics(call: Call, request: Any) -> dict[str, Any]:
    """By name, from version 6 on also by id. Who may not describe a topic is not told the name behind an id."""
    if call.version >= 6:
        asked = [(topic.name, topic.topic_id) for topic in request.topics]
    else:
        asked = [(name, None) for name in request.topic_names]
    broker = call.node.pipeline.broker
    ids = {topic_id: broker.topic_of(topic_id.bytes) for _, topic_id in asked if topic_id}
    times = Counter(name or (topic.name if (topic := ids[topic_id]) else None) for name, topic_id in asked if name or topic_id)
    answers = []
    async for name, topic_id in in_turns(dict.fromkeys(asked)):
        answer = {"name": name, "topic_id": topic_id or NO_ID, "error_code": 0, "error_message": None}
        try:
            answer["name"] = found = _named(call, name, topic_id)
            if times[found] > 1:
                raise Refusal(ErrorCode.INVALID_REQUEST, "the request names this topic more than once")
            topic = broker.topics().get(found)
            own_id = NO_ID if topic is None else uuid.UUID(bytes=topic.topic_id)
            await call.node.pipeline.delete_topic(call.session, found)
            answer["topic_id"] = own_id
        except REFUSED as error:
            answer["error_code"], answer["error_message"] = told(_unknown(error))
        answers.append(answer)
    return {"responses": answers}


def _unknown(error: Exception) -> Exception:
    """A name that no topic can have is one that none has, in Kafka's answers about topics that are to be there."""
    return UnknownTopic(error.topic[:TOPIC_CHARS_SHOWN]) if isinstance(error, IllegalTopicName) else error


def _named(call: Call, name: str | None, topic_id: uuid.UUID | None) -> str:
    """As of now: while others of the request were deleted, one may have gone and another have come under its name."""
    if name is not None:
        if topic_id:
            raise Refusal(ErrorCode.INVALID_REQUEST, "a topic is named by its name or by its id, not by both")
        return name
    if not topic_id:
        raise Refusal(ErrorCode.INVALID_REQUEST, "a topic is named by its name or by its id; there is neither")
    found = call.node.pipeline.broker.topic_of(topic_id.bytes)
    if found is None:
        raise Refusal(ErrorCode.UNKNOWN_TOPIC_ID, "no topic has this id")
    try:
        call.node.pipeline.authorise(call.session, Action.DESCRIBE, found.name)
    except AccessDenied:
        raise Refusal(ErrorCode.TOPIC_AUTHORIZATION_FAILED, "the topic of this id may not be described") from None
    return found.name


async def create_partitions(call: Call, request: Any) -> dict[str, Any]:
    asked = Counter(topic.name for topic in request.topics)
    answers = []
    async for topic in in_turns({topic.name: topic for topic in request.topics}.values()):
        answer = {"name": topic.name, "error_code": 0, "error_message": None}
        try:
            if asked[topic.name] > 1:
                raise Refusal(ErrorCode.INVALID_REQUEST, "the request names this topic more than once")
            await _grow(call, topic, request.validate_only)
        except REFUSED as error:
            answer["error_code"], answer["error_message"] = told(_unknown(error))
        answers.append(answer)
    return {"results": answers}


async def _grow(call: Call, asked: Any, validate_only: bool) -> None:
    pipeline = call.node.pipeline
    pipeline.authorise(call.session, Action.ALTER, asked.name)
    topic = pipeline.broker.topics().get(asked.name)
    if topic is None:
        raise UnknownTopic(asked.name)
    if asked.count <= topic.partitions:
        reason = f"the topic has {topic.partitions} partitions: {asked.count} would not be more"
        raise Refusal(ErrorCode.INVALID_PARTITIONS, reason)
    if asked.assignments is not None:
        if len(asked.assignments) != asked.count - topic.partitions:
            reason = f"{len(asked.assignments)} assignments are not those of {asked.count - topic.partitions} new partitions"
            raise Refusal(ErrorCode.INVALID_REPLICA_ASSIGNMENT, reason)
        if refusal := _replicas(call, [one.broker_ids for one in asked.assignments]):
            raise refusal
    await pipeline.alter_topic(call.session, asked.name, asked.count, {}, validate_only=validate_only)


OPERATIONS = (
    Operation(api=19, name="CreateTopics", low=2, high=7, handle=create_topics),
    Operation(api=20, name="DeleteTopics", low=1, high=6, handle=delete_topics),
    Operation(api=37, name="CreatePartitions", low=0, high=3, handle=create_partitions),
)
