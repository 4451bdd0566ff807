"""Offsets of groups: OffsetCommit 2-10, OffsetFetch 1-10, OffsetDelete 0 (KIP-496).

OffsetCommit  topics by name, from 10 on by id (KIP-848); a retention time (2-4) is not heard, as in Kafka: it is the setting
              `groups.offsets_retention_ms` for all
OffsetFetch   1 partitions carry the error; 2+ all topics where none are named; 7+ offsets of a transaction under way are told as
              unstable to who asks for stable ones (KIP-447); 8+ several groups (KIP-709); 9+ members are checked (KIP-848);
              10 topics by id. A group that is named several times is answered once, for the last

Rights: the group, and each topic: reading it to commit, reading or describing it to fetch.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from typing import Any

from broker.engine.base import Topic
from broker.errors import UnknownTopic
from broker.groups.group_errors import GroupNotEmpty, GroupUnknown, TopicSubscribed
from broker.groups.offsets import GroupOffset
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.group_codes import code_of
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.model import Action, Decision
from security.policy.quotas import Quota

NO_OFFSET = -1
IDS_VERSION, GROUPS_VERSION, GROUP_ERROR_VERSION = 10, 8, 2


class _Place:
    """One partition of a request, with the topic as it was named there, and what came of it."""

    __slots__ = ("asked", "code", "partition", "topic", "what")

    def __init__(self, asked: Any, partition: int, what: Any) -> None:
        self.asked, self.partition, self.what = asked, partition, what
        self.topic: Topic | None = None
        self.code = 0


async def offset_commit(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    places = [[_Place(topic, one.partition_index, one) for one in topic.partitions] for topic in request.topics]
    instance_id = getattr(request, "group_instance_id", None)
    try:
        call.node.pipeline.authorise_group(call.session, request.group_id)
        found = [place async for place in _all(places) if _find(call, place)]
        if found:
            who = (request.member_id, instance_id, request.generation_id_or_member_epoch)
            call.node.groups.check_commit(request.group_id, *who)
            offsets = [offset async for place in in_turns(found) if (offset := _to_commit(call, place)) is not None]
            await call.node.groups.commit(request.group_id, *who, offsets)
    except REFUSED as error:
        code = code_of(error)
        for place in [one for topic in places for one in topic]:
            place.code = place.code or code
    return {"topics": [_answer(topic, [_code(place) for place in found]) for topic, found in _zip(request.topics, places)]}


def _all(places: Iterable[Iterable[_Place]]) -> AsyncIterator[_Place]:
    return in_turns(chain.from_iterable(places))


def _find(call: Call, place: _Place) -> bool:
    """The place's topic, with the right to read it. Where it is refused, the place says why."""
    try:
        topic = _topic(call, place.asked)
        call.node.pipeline.authorise(call.session, Action.READ, topic.name)
        if not 0 <= place.partition < topic.partitions:
            raise UnknownTopic(topic.name)
        place.topic = topic
    except REFUSED as error:
        place.code = code_of(error)
    return place.topic is not None


def _to_commit(call: Call, place: _Place) -> GroupOffset | None:
    """None where it is refused, and then the place says why."""
    assert place.topic is not None
    one = place.what
    leader_epoch, metadata = getattr(one, "committed_leader_epoch", -1), one.committed_metadata or ""
    offset = GroupOffset(place.topic.topic_id, place.partition, one.committed_offset, leader_epoch, metadata)
    try:
        call.node.groups.offsets.check(offset)
        return offset
    except REFUSED as error:
        place.code = code_of(error)
        return None


def _topic(call: Call, asked: Any) -> Topic:
    """By name or, in later versions, by id; rights come before existence."""
    broker = call.node.pipeline.broker
    if hasattr(asked, "topic_id"):
        found = _by_id(call, asked)
        if found is None:
            raise Refusal(ErrorCode.UNKNOWN_TOPIC_ID, "there is no topic with this id")
        return found
    call.node.pipeline.authorise(call.session, Action.READ, asked.name)
    if (found := broker.topics().get(asked.name)) is None:
        raise UnknownTopic(asked.name)
    return found


def _by_id(call: Call, asked: Any) -> Topic | None:
    """No id at all (zero on the wire) is an unknown one."""
    return None if asked.topic_id is None else call.node.pipeline.broker.topic_of(asked.topic_id.bytes)


def _zip(topics: Sequence[Any], places: Sequence[list[_Place]]) -> Iterable[tuple[Any, list[_Place]]]:
    return zip(topics, places, strict=True)


def _code(place: _Place) -> dict[str, Any]:
    return {"partition_index": place.partition, "error_code": place.code}


def _answer(asked: Any, partitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Named as it was asked for."""
    named = {"topic_id": asked.topic_id} if hasattr(asked, "topic_id") else {"name": asked.name}
    return {**named, "partitions": partitions}


async def offset_fetch(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    stable = getattr(request, "require_stable", False)
    if call.version >= GROUPS_VERSION:
        groups = [
            await _fetch(
                call, one.group_id, one.topics, stable, getattr(one, "member_id", None), getattr(one, "member_epoch", -1)
            )
            for one in {one.group_id: one for one in request.groups}.values()
        ]
        return {"groups": groups}
    found = await _fetch(call, request.group_id, request.topics, stable, None, -1)
    if found["error_code"] and call.version < GROUP_ERROR_VERSION:
        found["topics"] = [
            _answer(topic, [_fetched(index, code=found["error_code"]) for index in topic.partition_indexes])
            for topic in request.topics
        ]
    return found


async def _fetch(
    call: Call, group: str, topics: Sequence[Any] | None, stable: bool, member_id: str | None, epoch: int
) -> dict[str, Any]:
    try:
        call.node.pipeline.authorise_group(call.session, group)
        call.node.groups.check_fetch(group, member_id, epoch)
    except REFUSED as error:
        return {"group_id": group, "topics": [], "error_code": code_of(error)}
    if topics is None:
        found = await _fetch_all(call, group, stable)
    else:
        found = [await _fetch_topic(call, group, one, stable) async for one in in_turns(topics)]
    return {"group_id": group, "topics": found, "error_code": 0}


async def _fetch_topic(call: Call, group: str, asked: Any, stable: bool) -> dict[str, Any]:
    """A topic that is not there has no offsets; by its id it is told that it is not there."""
    broker, code, topic = call.node.pipeline.broker, 0, None
    if hasattr(asked, "topic_id"):
        topic = _by_id(call, asked)
        code = 0 if topic is not None else int(ErrorCode.UNKNOWN_TOPIC_ID)
    elif may_see(call, asked.name):
        topic = broker.topics().get(asked.name)
    else:
        code = int(ErrorCode.TOPIC_AUTHORIZATION_FAILED)
    if topic is not None and not may_see(call, topic.name):
        topic, code = None, int(ErrorCode.TOPIC_AUTHORIZATION_FAILED)
    indexes = in_turns(asked.partition_indexes)
    return _answer(asked, [_fetch_one(call, group, topic, index, code, stable) async for index in indexes])


def _fetch_one(call: Call, group: str, topic: Topic | None, partition: int, code: int, stable: bool) -> dict[str, Any]:
    offsets = call.node.groups.offsets
    if topic is None or not 0 <= partition < topic.partitions:
        return _fetched(partition, code=code)
    if stable and offsets.unstable(group, topic.topic_id, partition):
        return _fetched(partition, code=int(ErrorCode.UNSTABLE_OFFSET_COMMIT))
    kept = offsets.committed(group, topic.topic_id, partition)
    return _fetched(partition) if kept is None else _fetched(partition, kept.offset, kept.leader_epoch, kept.metadata)


async def _fetch_all(call: Call, group: str, stable: bool) -> list[dict[str, Any]]:
    by_topic: dict[bytes, list[int]] = {}
    for kept in call.node.groups.offsets.all(group):
        by_topic.setdefault(kept.topic_id, []).append(kept.partition)
    found = []
    async for topic_id, partitions in in_turns(by_topic.items()):
        topic = call.node.pipeline.broker.topic_of(topic_id)
        if topic is None or not may_see(call, topic.name):
            continue
        named = {"topic_id": uuid.UUID(bytes=topic_id)} if call.version >= IDS_VERSION else {"name": topic.name}
        found.append({**named, "partitions": [_fetch_one(call, group, topic, one, 0, stable) for one in partitions]})
    return found


def _fetched(
    partition: int, offset: int = NO_OFFSET, leader_epoch: int = -1, metadata: str = "", code: int = 0
) -> dict[str, Any]:
    return {
        "partition_index": partition,
        "committed_offset": offset,
        "committed_leader_epoch": leader_epoch,
        "metadata": metadata,
        "error_code": code,
    }


def may_see(call: Call, topic: str) -> bool:
    """Whether the session may read or describe it."""
    pipeline = call.node.pipeline
    return pipeline.decide_reading(call.session, topic).form is not Decision.NONE or pipeline.may_describe(call.session, topic)


async def offset_delete(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    places = [[_Place(topic, one.partition_index, one) for one in topic.partitions] for topic in request.topics]
    try:
        call.node.pipeline.authorise_group(call.session, request.group_id)
        if not request.group_id:
            raise Refusal(ErrorCode.INVALID_GROUP_ID, "the group has no name")
        group = call.node.groups.find(request.group_id)
        if group is None:
            raise GroupUnknown(request.group_id)
        subscribed = call.node.groups.subscribed(group)
        if subscribed is None and not group.empty:
            raise GroupNotEmpty(request.group_id)
        doomed = [found async for place in _all(places) if (found := _to_delete(call, place, subscribed)) is not None]
        await call.node.groups.delete_offsets(request.group_id, doomed)
        call.node.pipeline.audit(call.session, Action.GROUP, f"group {request.group_id}: {len(doomed)} offsets deleted")
    except REFUSED as error:
        return {"error_code": code_of(error), "topics": []}
    topics = [_answer(topic, [_code(place) for place in found]) for topic, found in _zip(request.topics, places)]
    return {"error_code": 0, "topics": topics}


def _to_delete(call: Call, place: _Place, subscribed: Any) -> tuple[bytes, int] | None:
    if not _find(call, place):
        return None
    assert place.topic is not None
    if subscribed is not None and subscribed(place.topic.name):
        place.code = code_of(TopicSubscribed())
        return None
    return place.topic.topic_id, place.partition


OPERATIONS = (
    Operation(api=8, name="OffsetCommit", low=2, high=10, handle=offset_commit),
    Operation(api=9, name="OffsetFetch", low=1, high=10, handle=offset_fetch),
    Operation(api=47, name="OffsetDelete", low=0, high=0, handle=offset_delete),
)
