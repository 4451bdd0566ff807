"""Transactions: AddPartitionsToTxn 0-3, AddOffsetsToTxn 0-4, TxnOffsetCommit 0-5, EndTxn 0-5 (KIP-98).

AddPartitionsToTxn  where one partition is refused none is added, and the others are told so. 4+ is between brokers
TxnOffsetCommit     3+ is fenced by the group's generation (KIP-447); 5 needs no AddOffsetsToTxn before it (KIP-890)
EndTxn              5 gives the producer the epoch of its next transaction (KIP-890)

Rights: the transactional id, and each topic to publish to, or the group and each topic to commit offsets of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.engine.base import Topic
from broker.errors import UnknownPartition, UnknownTopic
from broker.groups.offsets import GroupOffset
from broker.producers.errors import NotInTransaction, ProducerFenced
from broker.transactions.transaction import Place
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.group_codes import code_of
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.model import Action
from security.policy.quotas import Quota

FENCED_VERSION = 2  # from here on a client knows PRODUCER_FENCED (KIP-588)
BUMPING_VERSION = 5
JOINING_VERSION = 5
ABORTABLE_VERSION = 4  # of TxnOffsetCommit: from here on a client knows TRANSACTION_ABORTABLE (KIP-890)
NO_PRODUCER = -1

PartitionCodes = Mapping[tuple[str, int], int]


async def add_partitions_to_txn(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    asked = [(topic.name, partition) for topic in request.v3_and_below_topics for partition in topic.partitions]
    producer = request.v3_and_below_producer_id, request.v3_and_below_producer_epoch
    try:
        call.node.pipeline.authorise_transaction(call.session, request.v3_and_below_transactional_id)
        places, codes = await _places(call, asked)
        if codes:
            codes = {one: codes.get(one, int(ErrorCode.OPERATION_NOT_ATTEMPTED)) for one in asked}
        else:
            await call.node.broker.transactions.add_partitions(request.v3_and_below_transactional_id, producer, places)
    except REFUSED as error:
        codes = dict.fromkeys(asked, _code(call, error))
    return {
        "results_by_topic_v3_and_below": [
            {
                "name": topic.name,
                "results_by_partition": [
                    {"partition_index": partition, "partition_error_code": codes.get((topic.name, partition), 0)}
                    for partition in topic.partitions
                ],
            }
            for topic in request.v3_and_below_topics
        ]
    }


async def _places(call: Call, asked: list[tuple[str, int]]) -> tuple[list[Place], dict[tuple[str, int], int]]:
    """What may be added, and the codes of what may not."""
    places, codes = [], {}
    async for name, partition in in_turns(asked):
        try:
            topic = _topic(call, Action.PUBLISH, name, partition)
            places.append(Place(name, topic.topic_id, partition))
        except REFUSED as error:
            codes[name, partition] = code_of(error)
    return places, codes


def _topic(call: Call, action: Action, name: str, partition: int) -> Topic:
    """Rights come before existence."""
    call.node.pipeline.authorise(call.session, action, name)
    topic = call.node.broker.topics().get(name)
    if topic is None:
        raise UnknownTopic(name)
    if not 0 <= partition < topic.partitions:
        raise UnknownPartition(name, partition, topic.partitions)
    return topic


def _code(call: Call, error: Exception) -> int:
    if isinstance(error, ProducerFenced) and call.version < FENCED_VERSION:
        return int(ErrorCode.INVALID_PRODUCER_EPOCH)
    return code_of(error)


async def add_offsets_to_txn(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    producer = request.producer_id, request.producer_epoch
    try:
        call.node.pipeline.authorise_transaction(call.session, request.transactional_id)
        call.node.pipeline.authorise_group(call.session, request.group_id)
        await call.node.broker.transactions.add_offsets(request.transactional_id, producer, request.group_id)
    except REFUSED as error:
        return {"error_code": _code(call, error)}
    return {"error_code": 0}


async def txn_offset_commit(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    codes: dict[tuple[str, int], int] = {}
    try:
        call.node.pipeline.authorise_transaction(call.session, request.transactional_id)
        call.node.pipeline.authorise_group(call.session, request.group_id)
        offsets = await _offsets(call, request, codes)
        _check_member(call, request)
        if offsets:
            await call.node.broker.transactions.commit_offsets(
                request.transactional_id,
                (request.producer_id, request.producer_epoch),
                request.group_id,
                offsets,
                joins=call.version >= JOINING_VERSION,
            )
    except REFUSED as error:
        # The group's coordinator never says PRODUCER_FENCED: to it a producer is an id and an epoch.
        code = code_of(error)
        if isinstance(error, ProducerFenced):
            code = int(ErrorCode.INVALID_PRODUCER_EPOCH)
        elif isinstance(error, NotInTransaction) and call.version >= ABORTABLE_VERSION:
            code = int(ErrorCode.TRANSACTION_ABORTABLE)
        for topic in request.topics:
            for one in topic.partitions:
                codes.setdefault((topic.name, one.partition_index), code)
    return {
        "topics": [
            {
                "name": topic.name,
                "partitions": [
                    {"partition_index": one.partition_index, "error_code": codes.get((topic.name, one.partition_index), 0)}
                    for one in topic.partitions
                ],
            }
            for topic in request.topics
        ]
    }


async def _offsets(call: Call, request: Any, codes: dict[tuple[str, int], int]) -> list[GroupOffset]:
    """Those that may be committed; the codes of the others are added."""
    found = []
    async for name, one in in_turns([(asked.name, one) for asked in request.topics for one in asked.partitions]):
        try:
            topic = _topic(call, Action.READ, name, one.partition_index)
            epoch, metadata = getattr(one, "committed_leader_epoch", -1), one.committed_metadata or ""
            offset = GroupOffset(topic.topic_id, one.partition_index, one.committed_offset, epoch, metadata)
            call.node.groups.offsets.check(offset)
            found.append(offset)
        except REFUSED as error:
            codes[name, one.partition_index] = code_of(error)
    return found


def _check_member(call: Call, request: Any) -> None:
    call.node.groups.check_transactional_commit(
        request.group_id,
        getattr(request, "member_id", ""),
        getattr(request, "group_instance_id", None),
        getattr(request, "generation_id", -1),
    )


async def end_txn(call: Call, request: Any) -> dict[str, Any]:
    producer = request.producer_id, request.producer_epoch
    try:
        call.node.pipeline.authorise_transaction(call.session, request.transactional_id)
        producer_id, epoch = await call.node.broker.transactions.end(
            request.transactional_id, producer, commit=request.committed, bumps=call.version >= BUMPING_VERSION
        )
    except REFUSED as error:
        return {"error_code": _code(call, error), "producer_id": NO_PRODUCER, "producer_epoch": NO_PRODUCER}
    return {"error_code": 0, "producer_id": producer_id, "producer_epoch": epoch}


OPERATIONS = (
    Operation(api=24, name="AddPartitionsToTxn", low=0, high=3, handle=add_partitions_to_txn),
    Operation(api=25, name="AddOffsetsToTxn", low=0, high=4, handle=add_offsets_to_txn),
    Operation(api=26, name="EndTxn", low=0, high=5, handle=end_txn),
    Operation(api=28, name="TxnOffsetCommit", low=0, high=5, handle=txn_offset_commit),
)
