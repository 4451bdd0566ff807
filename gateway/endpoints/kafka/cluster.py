"""DescribeCluster 0-2 (KIP-700, KIP-919, KIP-1073): a cluster of one, which is broker and controller."""

from __future__ import annotations

from typing import Any

from gateway.endpoints.kafka.authorized_operations import NOT_ASKED, on_cluster
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Answer, Operation
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.quotas import Quota

BROKERS = 1  # the type of endpoint that clients ask for; 2 are controllers


async def describe_cluster(call: Call, request: Any) -> Answer:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    if getattr(request, "endpoint_type", BROKERS) != BROKERS:
        return {
            "error_code": ErrorCode.MISMATCHED_ENDPOINT_TYPE,
            "error_message": "this is a broker's endpoint, not a controller's",
            "cluster_id": "",
            "brokers": (),
        }
    host, port = call.advertised()
    return {
        "error_code": ErrorCode.NONE,
        "cluster_id": call.node.cluster_id,
        "controller_id": call.node.node_id,
        "brokers": [{"broker_id": call.node.node_id, "host": host, "port": port}],
        "cluster_authorized_operations": on_cluster(call) if request.include_cluster_authorized_operations else NOT_ASKED,
    }


OPERATIONS = (Operation(api=60, name="DescribeCluster", low=0, high=2, handle=describe_cluster),)
