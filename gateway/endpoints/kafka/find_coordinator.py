"""FindCoordinator 0-6: who keeps a group (key type 0) or a transactional id (1; from version 1 on).

A node is a cluster of one and coordinates all of them, so whoever may use the group or the id is told this node. 4+ several keys
(KIP-699). Share groups (2) are not there.
"""

from __future__ import annotations

from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.quotas import Quota

GROUP, TRANSACTION = 0, 1
KEYS_VERSION = 4
NO_NODE = -1


async def find_coordinator(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    key_type = getattr(request, "key_type", GROUP)
    if call.version < KEYS_VERSION:
        return _coordinator(call, request.key, key_type)
    keys = dict.fromkeys(request.coordinator_keys)
    return {"coordinators": [_coordinator(call, key, key_type) async for key in in_turns(keys)]}


def _coordinator(call: Call, key: str, key_type: int) -> dict[str, Any]:
    try:
        _require_known(call, key, key_type)
    except REFUSED as error:
        code, message = told(error)
        return _answer(key, NO_NODE, "", -1, code, message)
    host, port = call.advertised()
    return _answer(key, call.node.node_id, host, port, 0, None)


def _require_known(call: Call, key: str, key_type: int) -> None:
    if key_type == GROUP:
        call.node.pipeline.authorise_group(call.session, key)
    elif key_type == TRANSACTION:
        call.node.pipeline.authorise_transaction(call.session, key)
    else:
        raise Refusal(ErrorCode.INVALID_REQUEST, f"there are no coordinators of type {key_type}")


def _answer(key: str, node_id: int, host: str, port: int, code: int, message: str | None) -> dict[str, Any]:
    return {"key": key, "node_id": node_id, "host": host, "port": port, "error_code": code, "error_message": message}


OPERATIONS = (Operation(api=10, name="FindCoordinator", low=0, high=6, handle=find_coordinator),)
