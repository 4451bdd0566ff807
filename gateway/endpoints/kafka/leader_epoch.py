"""OffsetForLeaderEpoch 2-4 (KIP-320): where the log of a leader's epoch ends. One node leads for ever: there is epoch 0, and it
ends where the log does."""

from __future__ import annotations

from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.fetch import LEADER_EPOCH
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.quotas import Quota

UNDEFINED = -1


async def offset_for_leader_epoch(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    topics = [
        {"topic": topic.topic, "partitions": [await _answer(call, topic.topic, one) async for one in in_turns(topic.partitions)]}
        async for topic in in_turns(request.topics)
    ]
    return {"topics": topics}


async def _answer(call: Call, topic: str, one: Any) -> dict[str, Any]:
    code, epoch, end = 0, UNDEFINED, UNDEFINED
    try:
        place = await call.node.pipeline.fetching.place(call.session, topic, one.partition, "latest")
        if one.current_leader_epoch > LEADER_EPOCH:
            raise Refusal(ErrorCode.UNKNOWN_LEADER_EPOCH, f"the epoch is {LEADER_EPOCH}")
        if one.leader_epoch == LEADER_EPOCH:
            epoch, end = LEADER_EPOCH, place.offset
    except REFUSED as error:
        code, _ = told(error)
    return {"error_code": code, "partition": one.partition, "leader_epoch": epoch, "end_offset": end}


OPERATIONS = (Operation(api=23, name="OffsetForLeaderEpoch", low=2, high=4, handle=offset_for_leader_epoch),)
