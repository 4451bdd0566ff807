"""Membership of classic groups: JoinGroup 0-9, SyncGroup 0-5, Heartbeat 0-4, LeaveGroup 0-5.

JoinGroup     0 no rebalance timeout (the session timeout counts); 4+ a new member is told its id first (KIP-394); 5+ static
              members (KIP-345); 8+ a reason, for the log; 9 a static leader that comes back assigns nothing (KIP-814)
SyncGroup     5 protocol type and name are checked and told (KIP-559)
LeaveGroup    0-2 one member; 3+ several, also by instance id (KIP-345)

A join and a sync wait for the others of the group; both leave the wait when the connection breaks.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from broker.groups.classic_member import Join, Sync
from broker.groups.group_errors import MemberIdRequired
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.group_codes import code_of
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED
from security.policy.model import Action

NO_GENERATION = -1
ID_FIRST_VERSION, MAY_SKIP_VERSION, NULL_PROTOCOL_VERSION, BATCH_LEAVE_VERSION = 4, 9, 7, 3
_MILLISECOND = timedelta(milliseconds=1)


async def join_group(call: Call, request: Any) -> dict[str, Any]:
    try:
        call.node.pipeline.authorise_group(call.session, request.group_id)
        joined = await call.node.groups.join(request.group_id, _join(call, request))
        call.node.pipeline.authorise_group(call.session, request.group_id)  # it waited, and rights may have changed
    except REFUSED as error:
        member_id = error.member_id if isinstance(error, MemberIdRequired) else request.member_id
        return _join_refused(call, code_of(error), member_id)
    if joined.leader == joined.member_id:
        call.node.pipeline.audit(call.session, Action.GROUP, f"group {request.group_id}: generation {joined.generation}")
    return {
        "error_code": 0,
        "generation_id": joined.generation,
        "protocol_type": joined.protocol_type,
        "protocol_name": joined.protocol,
        "leader": joined.leader,
        "skip_assignment": joined.skip_assignment,
        "member_id": joined.member_id,
        "members": [
            {"member_id": member_id, "group_instance_id": instance_id, "metadata": metadata}
            for member_id, instance_id, metadata in joined.members
        ],
    }


def _join(call: Call, request: Any) -> Join:
    session_timeout_ms = request.session_timeout // _MILLISECOND
    rebalance_timeout = getattr(request, "rebalance_timeout", None)
    return Join(
        member_id=request.member_id,
        instance_id=getattr(request, "group_instance_id", None),
        client_id=call.client_id or "",
        client_host=client_host(call),
        session_timeout_ms=session_timeout_ms,
        rebalance_timeout_ms=session_timeout_ms if rebalance_timeout is None else rebalance_timeout // _MILLISECOND,
        protocol_type=request.protocol_type,
        protocols=tuple([(protocol.name, bytes(protocol.metadata)) for protocol in request.protocols]),
        id_first=call.version >= ID_FIRST_VERSION,
        may_skip=call.version >= MAY_SKIP_VERSION,
    )


def client_host(call: Call) -> str:
    """As Kafka's tools show it: an address behind a slash, without the port."""
    return f"/{call.session.peer.rpartition(':')[0].strip('[]')}"


def _join_refused(call: Call, code: int, member_id: str) -> dict[str, Any]:
    return {
        "error_code": code,
        "generation_id": NO_GENERATION,
        "protocol_type": None,
        "protocol_name": None if call.version >= NULL_PROTOCOL_VERSION else "",
        "leader": "",
        "member_id": member_id,
        "members": [],
    }


async def sync_group(call: Call, request: Any) -> dict[str, Any]:
    asked = Sync(
        request.member_id,
        getattr(request, "group_instance_id", None),
        request.generation_id,
        getattr(request, "protocol_type", None),
        getattr(request, "protocol_name", None),
        {one.member_id: bytes(one.assignment) for one in request.assignments},
    )
    try:
        call.node.pipeline.authorise_group(call.session, request.group_id)
        synced = await call.node.groups.sync(request.group_id, asked)
        call.node.pipeline.authorise_group(call.session, request.group_id)  # as above
    except REFUSED as error:
        return {"error_code": code_of(error), "protocol_type": None, "protocol_name": None, "assignment": b""}
    return {
        "error_code": 0,
        "protocol_type": synced.protocol_type,
        "protocol_name": synced.protocol,
        "assignment": synced.assignment,
    }


async def heartbeat(call: Call, request: Any) -> dict[str, Any]:
    try:
        call.node.pipeline.authorise_group(call.session, request.group_id)
        instance_id = getattr(request, "group_instance_id", None)
        call.node.groups.heartbeat(request.group_id, request.member_id, instance_id, request.generation_id)
    except REFUSED as error:
        return {"error_code": code_of(error)}
    return {"error_code": 0}


async def leave_group(call: Call, request: Any) -> dict[str, Any]:
    if call.version < BATCH_LEAVE_VERSION:
        identities: list[tuple[str, str | None]] = [(request.member_id, None)]
    else:
        identities = [(member.member_id, member.group_instance_id) for member in request.members]
    try:
        call.node.pipeline.authorise_group(call.session, request.group_id)
        problems = call.node.groups.leave(request.group_id, identities)
    except REFUSED as error:
        return {"error_code": code_of(error), "members": []}
    codes = [0 if problem is None else code_of(problem) for problem in problems]
    members = [
        {"member_id": member_id, "group_instance_id": instance_id, "error_code": code}
        for (member_id, instance_id), code in zip(identities, codes, strict=True)
    ]
    return {"error_code": codes[0] if call.version < BATCH_LEAVE_VERSION else 0, "members": members}


OPERATIONS = (
    Operation(api=11, name="JoinGroup", low=0, high=9, handle=join_group, waits=True),
    Operation(api=14, name="SyncGroup", low=0, high=5, handle=sync_group, waits=True),
    Operation(api=12, name="Heartbeat", low=0, high=4, handle=heartbeat),
    Operation(api=13, name="LeaveGroup", low=0, high=5, handle=leave_group),
)
