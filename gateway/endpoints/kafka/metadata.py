"""Metadata 0-13 and DescribeTopicPartitions 0: topics and where their partitions are, which is always here.

Topics are asked for by name, by id (from 12 on, KIP-516), or all. A name that is not there is made where the request, the node's
`broker.auto_create` and the session's rights allow; unlike Apache Kafka's, the answer then has it already. Rights come before
existence: who may not describe a topic is told so whether there is one, and of an id only that it is not known.

Sources: MetadataRequest and DescribeTopicPartitionsRequest (KIP-966) of Apache Kafka 4.3, KIP-430 (authorised operations).
"""

from __future__ import annotations

from typing import Any

from broker.engine.base import Topic
from broker.errors import TopicExists, UnknownTopic
from gateway.endpoints.kafka.authorized_operations import NOT_ASKED, on_cluster, on_topic
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Answer, Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.errors import AccessDenied
from security.policy.model import Action
from security.policy.quotas import Quota

LEADER_EPOCH = 0
IDS_FROM = 12  # the id in requests of 10 and 11 was a mistake in the schema (KAFKA-10729)
PARTITIONS_TOLD_MAX = 2_000  # max.request.partition.size.limit


async def metadata(call: Call, request: Any) -> Answer:
    host, port = call.advertised()
    asked = request.topics
    everything = asked is None or (call.version == 0 and not asked)
    if everything:
        topics = [_found(call, request, topic) async for topic in in_turns(call.node.pipeline.list_topics(call.session))]
    else:
        call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
        once = {one.name if one.name is not None else one: one for one in asked}  # whatever ids come with a name
        topics = [await _asked(call, request, one) async for one in in_turns(once.values())]
    cluster_operations = getattr(request, "include_cluster_authorized_operations", False)
    return {
        "brokers": [{"node_id": call.node.node_id, "host": host, "port": port}],
        "cluster_id": call.node.cluster_id,
        "controller_id": call.node.node_id,
        "topics": topics,
        "cluster_authorized_operations": on_cluster(call) if cluster_operations else NOT_ASKED,
    }


async def _asked(call: Call, request: Any, one: Any) -> dict[str, Any]:
    topic_id = getattr(one, "topic_id", None)
    try:
        if one.name is None:
            return _found(call, request, _by_id(call, topic_id))
        if topic_id is not None and call.version < IDS_FROM:
            raise Refusal(ErrorCode.INVALID_REQUEST, f"topics are asked for by id from version {IDS_FROM} on")
        return _found(call, request, await _by_name(call, one.name, getattr(request, "allow_auto_topic_creation", True)))
    except REFUSED as error:
        refused: dict[str, Any] = {"error_code": told(error)[0], "topic_id": topic_id, "partitions": ()}
        return refused | {"name": one.name if one.name is not None or call.version >= IDS_FROM else ""}


def _by_id(call: Call, topic_id: Any) -> Topic:
    found = None if topic_id is None else call.node.broker.topic_of(topic_id.bytes)
    if found is None:
        raise Refusal(ErrorCode.UNKNOWN_TOPIC_ID, "there is no topic of this id")
    try:
        call.node.pipeline.authorise(call.session, Action.DESCRIBE, found.name)
    except AccessDenied:
        raise Refusal(ErrorCode.UNKNOWN_TOPIC_ID, "there is no topic of this id") from None
    return found


async def _by_name(call: Call, name: str, create: bool) -> Topic:
    pipeline = call.node.pipeline
    pipeline.authorise(call.session, Action.DESCRIBE, name)
    found = call.node.broker.topics().get(name)
    if found is not None:
        return found
    if not create or not call.node.auto_create:
        raise UnknownTopic(name)
    try:
        return await pipeline.create_topic(call.session, name, None, {})
    except TopicExists:  # another client was faster
        return call.node.broker.topic(name)


def _found(call: Call, request: Any, topic: Topic) -> dict[str, Any]:
    operations = getattr(request, "include_topic_authorized_operations", False)
    return {
        "error_code": ErrorCode.NONE,
        "name": topic.name,
        "topic_id": topic.topic_id,
        "partitions": [_partition(call, number) for number in range(topic.partitions)],
        "topic_authorized_operations": on_topic(call, topic.name) if operations else NOT_ASKED,
    }


def _partition(call: Call, number: int) -> dict[str, Any]:
    nodes = (call.node.node_id,)
    return {
        "error_code": ErrorCode.NONE,
        "partition_index": number,
        "leader_id": call.node.node_id,
        "leader_epoch": LEADER_EPOCH,
        "replica_nodes": nodes,
        "isr_nodes": nodes,
    }


async def describe_topic_partitions(call: Call, request: Any) -> Answer:
    """By name, in their order, at most as many partitions as asked for; the cursor says where the next answer goes on."""
    names = sorted({topic.name for topic in request.topics})
    if names:
        call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    else:
        names = [topic.name for topic in call.node.pipeline.list_topics(call.session)]
    first = 0
    if request.cursor is not None:
        names = [name for name in names if name >= request.cursor.topic_name]
        first = request.cursor.partition_index if names and names[0] == request.cursor.topic_name else 0
    if first < 0:
        invalid = int(ErrorCode.INVALID_REQUEST)
        asked_for = dict.fromkeys([topic.name for topic in request.topics])
        return {"topics": [{"error_code": invalid, "name": name, "partitions": ()} for name in asked_for], "next_cursor": None}
    left = min(max(request.response_partition_limit, 1), PARTITIONS_TOLD_MAX)
    topics: list[dict[str, Any]] = []
    async for name in in_turns(names):
        if left <= 0:
            return {"topics": topics, "next_cursor": {"topic_name": name, "partition_index": 0}}
        told_of = _described(call, name)
        partitions = told_of["partitions"][first : first + left]
        topics.append(told_of | {"partitions": partitions})
        left -= len(partitions)
        if first + len(partitions) < len(told_of["partitions"]):
            return {"topics": topics, "next_cursor": {"topic_name": name, "partition_index": first + len(partitions)}}
        first = 0
    return {"topics": topics, "next_cursor": None}


def _described(call: Call, name: str) -> dict[str, Any]:
    try:
        call.node.pipeline.authorise(call.session, Action.DESCRIBE, name)
        found = _found(call, None, call.node.broker.topic(name))
        empty = {"eligible_leader_replicas": (), "last_known_elr": ()}
        partitions = [partition | empty for partition in found["partitions"]]
        return found | {"partitions": partitions, "topic_authorized_operations": on_topic(call, name)}
    except REFUSED as error:
        operations = on_topic(call, name) if isinstance(error, UnknownTopic) else NOT_ASKED
        return {"error_code": told(error)[0], "name": name, "partitions": (), "topic_authorized_operations": operations}


OPERATIONS = (
    Operation(api=3, name="Metadata", low=0, high=13, handle=metadata, overlaps=True),
    Operation(api=75, name="DescribeTopicPartitions", low=0, high=0, handle=describe_topic_partitions),
)
