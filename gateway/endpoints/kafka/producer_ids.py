"""InitProducerId 0-5 and DescribeProducers 0.

InitProducerId     without a transactional id a new producer id, for whoever may publish at all (KIP-98); with one the next epoch
                   of it, which fences who had it before. 3+ the producer says what it has, and goes on with it (KIP-360)
DescribeProducers  who has written to a partition lately, and where its open transaction began (KIP-664); for its readers
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from broker.engine.base import Topic
from broker.errors import UnknownPartition, UnknownTopic
from broker.producers.errors import ProducerFenced
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.group_codes import code_of
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.errors import AccessDenied
from security.policy.model import Action
from security.policy.quotas import Quota

NO_PRODUCER = -1
FENCED_VERSION = 4  # from here on a client knows PRODUCER_FENCED (KIP-588)
_MILLISECOND = timedelta(milliseconds=1)


async def init_producer_id(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    try:
        producer_id, epoch = await _init(call, request)
    except REFUSED as error:
        return {"error_code": _code(call, error), "producer_id": NO_PRODUCER, "producer_epoch": NO_PRODUCER}
    return {"error_code": 0, "producer_id": producer_id, "producer_epoch": epoch}


async def _init(call: Call, request: Any) -> tuple[int, int]:
    transactions, transactional_id = call.node.broker.transactions, request.transactional_id
    if transactional_id is None:
        _authorise_numbering(call)
        return await transactions.init_producer_id(None, 0)
    call.node.pipeline.authorise_transaction(call.session, transactional_id)
    producer = getattr(request, "producer_id", NO_PRODUCER), getattr(request, "producer_epoch", NO_PRODUCER)
    if (producer[0] < 0) != (producer[1] < 0):
        raise Refusal(ErrorCode.INVALID_REQUEST, "a producer id and its epoch come together")
    timeout_ms = request.transaction_timeout // _MILLISECOND
    return await transactions.init_producer_id(transactional_id, timeout_ms, None if producer[0] < 0 else producer)


def _authorise_numbering(call: Call) -> None:
    try:
        call.node.pipeline.authorise_numbering(call.session)
    except AccessDenied as denied:
        raise Refusal(ErrorCode.CLUSTER_AUTHORIZATION_FAILED, str(denied)) from denied


def _code(call: Call, error: Exception) -> int:
    if isinstance(error, ProducerFenced) and call.version < FENCED_VERSION:
        return int(ErrorCode.INVALID_PRODUCER_EPOCH)
    return code_of(error)


async def describe_producers(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    topics: list[dict[str, Any]] = []
    async for one in in_turns(request.topics):
        partitions = [_describe(call, one.name, partition) async for partition in in_turns(one.partition_indexes)]
        topics.append({"name": one.name, "partitions": partitions})
    return {"topics": topics}


def _describe(call: Call, name: str, partition: int) -> dict[str, Any]:
    try:
        topic = _readable(call, name, partition)
    except REFUSED as error:
        code, message = told(error)
        return {"partition_index": partition, "error_code": code, "error_message": message, "active_producers": []}
    producers = [
        {
            "producer_id": producer_id,
            "producer_epoch": producer.epoch,
            "last_sequence": producer.last_sequence,
            "last_timestamp": producer.last_ms,
            "coordinator_epoch": -1,
            "current_txn_start_offset": producer.open_offset,
        }
        for producer_id, producer in call.node.broker.producers.of_partition(topic, partition)
    ]
    return {"partition_index": partition, "error_code": 0, "error_message": None, "active_producers": producers}


def _readable(call: Call, name: str, partition: int) -> Topic:
    call.node.pipeline.authorise(call.session, Action.READ, name)
    topic = call.node.broker.topics().get(name)
    if topic is None:
        raise UnknownTopic(name)
    if not 0 <= partition < topic.partitions:
        raise UnknownPartition(name, partition, topic.partitions)
    return topic


OPERATIONS = (
    Operation(api=22, name="InitProducerId", low=0, high=5, handle=init_producer_id),
    Operation(api=61, name="DescribeProducers", low=0, high=0, handle=describe_producers),
)
