"""DescribeLogDirs 1-4 (KIP-113, KIP-827): what the partitions take on the disk.

There is one log, and its folder is not told: a path of the machine is no client's business. Sizes are of records as stored,
sealed; what the disk has and has left is not told either (-1, which is Kafka's for unknown): the metrics say it.
"""

from __future__ import annotations

from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, told
from gateway.endpoints.kafka.turns import in_turns
from security.policy.model import Action

LOG_DIR = "sealed-log"
UNKNOWN_BYTES = -1


async def describe_log_dirs(call: Call, request: Any) -> dict[str, Any]:
    """Topics that the principal may describe; those and those partitions of them that are not there are left out, as in Kafka."""
    pipeline = call.node.pipeline
    try:
        pipeline.require(call.session, Action.METRICS, "sizes of the log")
        asked = None if request.topics is None else {one.topic: frozenset(one.partitions) for one in request.topics}
        topics = [
            {"name": topic.name, "partitions": partitions}
            async for topic in in_turns(pipeline.list_topics(call.session))
            if (asked is None or topic.name in asked)
            and topic.name in pipeline.broker.topics()  # it may have gone meanwhile
            and (partitions := _partitions(pipeline.broker.sizes(topic.name), None if asked is None else asked[topic.name]))
        ]
    except REFUSED as error:
        return {"error_code": told(error)[0], "results": []}
    log = {"error_code": 0, "log_dir": LOG_DIR, "topics": topics, "total_bytes": UNKNOWN_BYTES, "usable_bytes": UNKNOWN_BYTES}
    return {"error_code": 0, "results": [log]}


def _partitions(sizes: list[int], asked: frozenset[int] | None) -> list[dict[str, Any]]:
    return [
        {"partition_index": partition, "partition_size": size, "offset_lag": 0, "is_future_key": False}
        for partition, size in enumerate(sizes)
        if asked is None or partition in asked
    ]


OPERATIONS = (Operation(api=35, name="DescribeLogDirs", low=1, high=4, handle=describe_log_dirs),)
