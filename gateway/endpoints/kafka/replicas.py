"""ElectLeaders 0-2 (KIP-183, KIP-460) and ListPartitionReassignments 0 (KIP-455) for a cluster of one: every partition is led by
this node, its only replica, so an election is never needed and nothing is on its way elsewhere.
"""

from __future__ import annotations

from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.model import Action

ELECTION_TYPES = (0, 1)  # preferred, unclean


async def elect_leaders(call: Call, request: Any) -> dict[str, Any]:
    try:
        call.node.pipeline.require(call.session, Action.ADMIN, "an election of leaders")
        if getattr(request, "election_type", 0) not in ELECTION_TYPES:
            raise Refusal(ErrorCode.INVALID_REQUEST, "there is no such type of election")
    except REFUSED as error:
        return {"error_code": told(error)[0], "replica_election_results": []}
    topics = call.node.pipeline.broker.topics()
    if request.topic_partitions is None:  # all: Kafka names those that needed none with no partition
        return {"error_code": 0, "replica_election_results": [{"topic": name, "partition_result": []} for name in topics]}
    results = []
    async for asked in in_turns(request.topic_partitions):
        count = topics[asked.topic].partitions if asked.topic in topics else 0
        outcomes = [_outcome(partition, 0 <= partition < count) for partition in asked.partitions]
        results.append({"topic": asked.topic, "partition_result": outcomes})
    return {"error_code": 0, "replica_election_results": results}


def _outcome(partition: int, known: bool) -> dict[str, Any]:
    code = ErrorCode.ELECTION_NOT_NEEDED if known else ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    message = "this node leads the partition" if known else "there is no such partition"
    return {"partition_id": partition, "error_code": int(code), "error_message": message}


async def list_partition_reassignments(call: Call, request: Any) -> dict[str, Any]:
    try:
        call.node.pipeline.require(call.session, Action.METRICS, "reassignments of partitions")
    except REFUSED as error:
        code, message = told(error)
        return {"error_code": code, "error_message": message, "topics": []}
    return {"error_code": 0, "error_message": None, "topics": []}


OPERATIONS = (
    Operation(api=43, name="ElectLeaders", low=0, high=2, handle=elect_leaders),
    Operation(api=46, name="ListPartitionReassignments", low=0, high=0, handle=list_partition_reassignments),
)
