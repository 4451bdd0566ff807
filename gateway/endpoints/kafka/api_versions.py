"""ApiVersions 0-4 (KIP-35, KIP-511): what this node does, which is the table of operations and nothing beside it.

An ApiVersions of a version that is not known is answered as version 0, with the error and the versions that are: the client asks
again. The client's name and version (3 and on) are not looked at.
"""

from __future__ import annotations

import re
from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.node import KafkaNode
from gateway.endpoints.kafka.operation import Answer, Operation
from gateway.wire.kafka import messages
from gateway.wire.kafka.error_codes import ErrorCode
from gateway.wire.kafka.messages import API_VERSIONS as API_VERSIONS

END_TXN, CONSUMER_GROUP_HEARTBEAT = 26, 68
FEATURES_EPOCH = 1  # they never change while a node runs

_SOFTWARE = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")


async def api_versions(call: Call, request: Any) -> Answer:
    if call.version >= 3 and not (
        _SOFTWARE.fullmatch(request.client_software_name) and _SOFTWARE.fullmatch(request.client_software_version)
    ):
        return {"error_code": ErrorCode.INVALID_REQUEST}
    rows = [{"api_key": row.api, "min_version": row.low, "max_version": row.high} for row in call.node.operations.values()]
    features = _features(call.node)
    return {
        "error_code": ErrorCode.NONE,
        "api_keys": rows,
        # KIP-584. Readers of version 3 take no minimum of 0 (KAFKA-17011).
        "supported_features": [
            {"name": name, "min_version": 0 if call.version >= 4 else 1, "max_version": level} for name, level in features.items()
        ],
        "finalized_features_epoch": FEATURES_EPOCH,
        "finalized_features": [
            {"name": name, "max_version_level": level, "min_version_level": level} for name, level in features.items()
        ],
    }


def _features(node: KafkaNode) -> dict[str, int]:
    """What clients look for before they use it: transactions without AddPartitionsToTxn (KIP-890), groups of KIP-848."""
    features = {}
    if END_TXN in node.operations and node.operations[END_TXN].high >= 5:
        features["transaction.version"] = 2
    if CONSUMER_GROUP_HEARTBEAT in node.operations:
        features["group.version"] = 1
    return features


def unsupported(node: KafkaNode) -> bytes:
    """The body of the answer to a version that is not known."""
    row = node.operations[API_VERSIONS]
    known = [{"api_key": row.api, "min_version": row.low, "max_version": row.high}]
    return messages.encode(API_VERSIONS, 0, {"error_code": ErrorCode.UNSUPPORTED_VERSION, "api_keys": known})


OPERATIONS = (Operation(api=API_VERSIONS, name="ApiVersions", low=0, high=4, handle=api_versions, open=True),)
