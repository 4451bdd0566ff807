"""DeleteRecords 0-2 (KIP-107): the oldest records of partitions go, up to an offset, or all there are (-1)."""

from __future__ import annotations

from typing import Any

from broker.errors import UnknownTopic
from broker.topics.configs import compacted, deleted
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.model import Action

NO_OFFSET = -1


async def delete_records(call: Call, request: Any) -> dict[str, Any]:
    """Each partition once, of those named again the last."""
    asked: dict[str, dict[int, int]] = {}
    for topic in request.topics:
        partitions = asked.setdefault(topic.name, {})
        partitions.update((one.partition_index, one.offset) for one in topic.partitions)
    topics = []
    async for name, offsets in in_turns(asked.items()):
        answers = [await _delete(call, name, partition, offset) async for partition, offset in in_turns(offsets.items())]
        topics.append({"name": name, "partitions": answers})
    return {"topics": topics}


async def _delete(call: Call, topic: str, partition: int, offset: int) -> dict[str, Any]:
    code, low_watermark = 0, NO_OFFSET
    try:
        _require_deletable(call, topic)
        low_watermark = await call.node.pipeline.delete_records(call.session, topic, partition, offset)
    except REFUSED as error:
        code, _ = told(error)
    return {"partition_index": partition, "low_watermark": low_watermark, "error_code": code}


def _require_deletable(call: Call, name: str) -> None:
    """A topic that is compacted and no more promises the newest of each key for good."""
    call.node.pipeline.authorise(call.session, Action.DELETE, name)
    topic = call.node.pipeline.broker.topics().get(name)
    if topic is None:
        raise UnknownTopic(name)
    if compacted(topic.configs) and not deleted(topic.configs):
        raise Refusal(ErrorCode.POLICY_VIOLATION, f"records of {name!r} go by compaction only: cleanup.policy lacks `delete`")


OPERATIONS = (Operation(api=21, name="DeleteRecords", low=0, high=2, handle=delete_records),)
