"""Groups of the consumer protocol (KIP-848): ConsumerGroupHeartbeat 0-1, ConsumerGroupDescribe 0-1.

Heartbeat   all there is: joining (epoch 0), leaving (-1, or -2 where a static member will be back), what is owned, and in the
            answer what is assigned. 0: the node makes the member's id; 1: the client does, and may subscribe by a pattern (RE2)
Describe    1 tells the kind of member

Server-side assignors: uniform (the default) and range. A group whose members are of the classic protocol is not taken over while
it has any; an empty one is. Rights: the group, and describing the topics; a pattern reaches those that may be described.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from broker.engine.base import Topic
from broker.groups.assignors import Places
from broker.groups.consumer import ConsumerGroup
from broker.groups.consumer_keeping import by_topic
from broker.groups.consumer_member import JOIN, LEAVE, LEAVE_FOR_A_WHILE, Beat, ConsumerMember
from broker.groups.group_errors import GroupUnknown
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.group_codes import code_of
from gateway.endpoints.kafka.groups import client_host
from gateway.endpoints.kafka.groups_admin import EVERY_OPERATION, NOT_ASKED_FOR
from gateway.endpoints.kafka.groups_offsets import may_see
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.model import Action
from security.policy.quotas import Quota

OWN_ID_VERSION = 1
CONSUMER_MEMBER = 1
_MILLISECOND = timedelta(milliseconds=1)


async def consumer_group_heartbeat(call: Call, request: Any) -> dict[str, Any]:
    interval_ms = call.node.groups.options.consumer_heartbeat_interval_ms
    try:
        call.node.pipeline.authorise_group(call.session, request.group_id)
        _check(call, request)
        await _require_topics(call, request.subscribed_topic_names or ())
        member_id = request.member_id or str(uuid.uuid4())
        beaten = await call.node.groups.beat(
            request.group_id, _beat(call, request, member_id), lambda topic: may_see(call, topic)
        )
    except REFUSED as error:
        return {"error_code": code_of(error), "error_message": told(error)[1], "member_epoch": 0, "heartbeat_interval": 0}
    if request.member_epoch == JOIN:
        call.node.pipeline.audit(call.session, Action.GROUP, f"group {request.group_id}: epoch {beaten.epoch}")
    return {
        "error_code": 0,
        "member_id": beaten.member_id,
        "member_epoch": beaten.epoch,
        "heartbeat_interval": interval_ms if beaten.epoch >= 0 else 0,  # who left sends none
        "assignment": None if beaten.assigned is None else {"topic_partitions": _partitions(beaten.assigned)},
    }


def _check(call: Call, request: Any) -> None:
    """What contradicts itself, in Kafka's order."""
    pattern = getattr(request, "subscribed_topic_regex", None)
    _require(bool(request.group_id), "GroupId can't be empty.")
    _require(request.instance_id != "", "InstanceId can't be empty.")
    _require(request.rack_id != "", "RackId can't be empty.")
    _require(
        bool(request.member_id) or (call.version < OWN_ID_VERSION and request.member_epoch == JOIN), "MemberId can't be empty."
    )
    if request.member_epoch == JOIN:
        _require(request.rebalance_timeout != -_MILLISECOND, "RebalanceTimeoutMs must be provided in first request.")
        _require(request.topic_partitions == (), "TopicPartitions must be empty when (re-)joining.")
        _require(
            request.subscribed_topic_names is not None or bool(pattern),
            "Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining.",
        )
    _require(request.member_epoch >= LEAVE_FOR_A_WHILE, "MemberEpoch is invalid.")
    if request.member_epoch == LEAVE_FOR_A_WHILE:
        _require(request.instance_id is not None, "InstanceId can't be null.")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Refusal(ErrorCode.INVALID_REQUEST, message)


async def _require_topics(call: Call, names: Sequence[str]) -> None:
    async for name in in_turns(names):
        if not may_see(call, name):
            raise Refusal(ErrorCode.TOPIC_AUTHORIZATION_FAILED, "a topic of the subscription may not be described")


def _beat(call: Call, request: Any, member_id: str) -> Beat:
    timeout_ms = request.rebalance_timeout // _MILLISECOND
    owned = request.topic_partitions
    return Beat(
        member_id=member_id,
        epoch=request.member_epoch,
        instance_id=request.instance_id,
        rack_id=request.rack_id,
        rebalance_timeout_ms=None if timeout_ms == LEAVE else timeout_ms,
        topics=request.subscribed_topic_names,
        pattern=getattr(request, "subscribed_topic_regex", None),
        assignor=request.server_assignor,
        owned=None if owned is None else _places(owned),
        client_id=call.client_id or "",
        client_host=client_host(call),
    )


def _places(topics: Sequence[Any]) -> Places:
    return frozenset(
        [(topic.topic_id.bytes, partition) for topic in topics if topic.topic_id is not None for partition in topic.partitions]
    )


def _partitions(places: Places) -> list[dict[str, Any]]:
    return [
        {"topic_id": uuid.UUID(bytes=topic_id), "partitions": partitions} for topic_id, partitions in by_topic(places).items()
    ]


async def consumer_group_describe(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    operations = EVERY_OPERATION if request.include_authorized_operations else NOT_ASKED_FOR
    return {"groups": [_describe(call, name, operations) async for name in in_turns(dict.fromkeys(request.group_ids))]}


def _describe(call: Call, name: str, operations: int) -> dict[str, Any]:
    try:
        call.node.pipeline.authorise_group(call.session, name)
        group = call.node.groups.find(name)
        if not isinstance(group, ConsumerGroup):
            raise GroupUnknown(name, "does not exist" if group is None else "is not a consumer group")
        members = [_member(call, member) for member in group.members.values()]
    except REFUSED as error:
        return {
            "group_id": name,
            "error_code": code_of(error),
            "error_message": told(error)[1],
            "group_state": "",
            "assignor_name": "",
            "members": [],
            "authorized_operations": NOT_ASKED_FOR,
        }
    return {
        "group_id": name,
        "error_code": 0,
        "group_state": str(group.state),
        "group_epoch": group.epoch,
        "assignment_epoch": group.assignment_epoch,
        "assignor_name": group.assignor,
        "members": members,
        "authorized_operations": operations,
    }


def _member(call: Call, member: ConsumerMember) -> dict[str, Any]:
    return {
        "member_id": member.id,
        "instance_id": member.instance_id,
        "rack_id": member.rack_id,
        "member_epoch": member.epoch,
        "client_id": member.client_id,
        "client_host": member.client_host,
        "subscribed_topic_names": list(member.topics),
        "subscribed_topic_regex": member.pattern or "",
        "assignment": {"topic_partitions": _named(call, member.holds)},
        "target_assignment": {"topic_partitions": _named(call, member.target)},
        "member_type": CONSUMER_MEMBER,
    }


def _named(call: Call, places: Places) -> list[dict[str, Any]]:
    """With the topics' names; whoever may not know one of them is refused the group."""
    found = []
    for topic_id, partitions in by_topic(places).items():
        topic: Topic | None = call.node.pipeline.broker.topic_of(topic_id)
        if topic is None:
            continue
        if not may_see(call, topic.name):
            raise Refusal(ErrorCode.TOPIC_AUTHORIZATION_FAILED, "the group reads a topic that may not be described")
        found.append({"topic_id": uuid.UUID(bytes=topic_id), "topic_name": topic.name, "partitions": partitions})
    return found


OPERATIONS = (
    Operation(api=68, name="ConsumerGroupHeartbeat", low=0, high=1, handle=consumer_group_heartbeat),
    Operation(api=69, name="ConsumerGroupDescribe", low=0, high=1, handle=consumer_group_describe),
)
